"""The mean-shifted contrastive loss view by view; training that follows it; scores by angle."""

import math

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from small import images

from pandalib import MeanShifted
from pandalib.methods.mean_shifted import angular_loss, augmentation, mean_shifted_loss

NORMAL, QUERIES = images(11), images(5, seed=1)
OPTIONS = dict(epochs=3, lr=0.05, max_grad_norm=1.0, batch_size=4, progress=False)


def unit(vector):
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_the_loss_is_that_of_the_paper(temperature):
    rng = np.random.default_rng(0)
    one, other, centre = rng.normal(2, 1, (5, 7)), rng.normal(2, 1, (5, 7)), rng.normal(size=7)
    theta = [unit(unit(view) - centre) for view in [*one, *other]]
    total = 0
    for number, view in enumerate(theta):
        partner = (number + 5) % 10
        rest = [other for z, other in enumerate(theta) if z != number]
        below = sum(math.exp(view @ z / temperature) for z in rest)
        total -= math.log(math.exp(view @ theta[partner] / temperature) / below)
    tensors = [torch.from_numpy(array) for array in (one, other, centre)]
    assert float(mean_shifted_loss(*tensors, temperature)) == pytest.approx(total / 10)
    expected = -np.mean([unit(view) @ unit(centre) for view in one])
    assert float(angular_loss(tensors[0], tensors[2])) == pytest.approx(expected)


def test_length_does_not_matter_and_views_that_agree_have_the_smallest_loss():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 6, 9, generator=generator)
    centre = torch.randn(9, generator=generator) / 9
    loss = mean_shifted_loss(one, other, centre)
    torch.testing.assert_close(mean_shifted_loss(3 * one, other / 5, centre), loss)
    assert mean_shifted_loss(one, one, centre) < loss < mean_shifted_loss(one, -one, centre)


@pytest.mark.parametrize("angular", [False, True])
def test_training_lowers_the_loss_and_the_pretrained_network_stays(backbone, angular):
    before = backbone.trainable_sha256()
    options = OPTIONS | dict(epochs=12, angular=angular)
    fitted = MeanShifted(backbone, **options).fit(NORMAL)
    assert np.mean(fitted.losses_[-3:]) < np.mean(fitted.losses_[:3]) - 0.05
    assert backbone.trainable_sha256() == before != fitted.backbone_.trainable_sha256()
    again = clone(fitted).fit(NORMAL)
    assert again.losses_ == fitted.losses_
    assert np.array_equal(again.score(QUERIES), fitted.score(QUERIES))
    assert clone(fitted).set_params(seed=1).fit(NORMAL).losses_ != fitted.losses_


def test_the_centre_is_that_of_the_pretrained_features(backbone):
    fitted = MeanShifted(backbone, **OPTIONS).fit(NORMAL)
    expected = np.mean([unit(feature) for feature in backbone.features(NORMAL)], axis=0)
    np.testing.assert_allclose(fitted.checkpoints_.centre.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_scores_are_angles_to_the_two_nearest(backbone):
    fitted = MeanShifted(backbone, **OPTIONS).fit(NORMAL)
    gallery = [unit(one) for one in fitted.backbone_.features(NORMAL).astype(float)]
    for query, score in zip(fitted.backbone_.features(QUERIES), fitted.score(QUERIES)):
        angles = sorted(2 * (1 - unit(query.astype(float)) @ one) for one in gallery)
        assert score == pytest.approx(sum(angles[:2]), rel=1e-3)


def test_views_differ_and_keep_their_size():
    torch.manual_seed(0)
    picture = torch.from_numpy(images(1, 48)[0, :, :36])
    transform = augmentation(36, 48)
    one, other = transform(picture), transform(picture)
    assert one.shape == other.shape == picture.shape and one.dtype == torch.uint8
    assert not torch.equal(one, other)


def test_bad_settings(backbone):
    detector = MeanShifted(backbone, **OPTIONS)
    with pytest.raises(NotFittedError, match="This MeanShifted has seen no normal images yet"):
        detector.score(QUERIES)
    for name, value in dict(lr=0, temperature=-1, epochs=0, k=0, batch_size=1).items():
        with pytest.raises(ValueError, match=f"{name}={value}"):
            clone(detector).set_params(**{name: value}).fit(NORMAL)
    with pytest.raises(ValueError, match="1 normal images, batch_size=4: expected at least 2"):
        detector.fit(NORMAL[:1])
    with pytest.raises(FloatingPointError, match="lower lr"):
        clone(detector).set_params(lr=1e30, max_grad_norm=None).fit(NORMAL)
