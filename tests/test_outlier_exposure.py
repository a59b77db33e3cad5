"""Outlier exposure by its definition, from the pixels; only what is to be trained learns."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small import (
    check_that_only_the_trainable_part_moved,
    images,
    plain_network,
    pooled,
    sgd_by_hand,
    small_backbone,
)

from pandalib import OutlierExposure
from pandalib.methods import outlier_exposure
from pandalib.methods.outlier_exposure import cycled

IMAGES, OUTLIERS = images(33), 255 - images(50, seed=1) // 4  # any colour, and light ones
SETTINGS = dict(epochs=3, lr=0.5, max_grad_norm=0.5, batch_size=16, progress=False)


@pytest.fixture(scope="module")
def fitted(backbone):
    return OutlierExposure(backbone, OUTLIERS, **SETTINGS).fit(IMAGES)


def rounds(n, seed):
    """The outliers' order: time after time a new permutation."""
    return itertools.chain.from_iterable(
        np.random.default_rng((seed, number, 1)).permutation(n) for number in itertools.count()
    )


def by_hand(network, pictures, outliers, *, seed, **settings):
    """The mean loss of each epoch and a function that scores images, by the definition."""
    network = copy.deepcopy(network).eval()
    torch.manual_seed(seed)
    linear = torch.nn.Linear(network.classifier[2].in_features, 1)
    parts = (network.layer3, network.layer4, linear)
    trained = [parameter for part in parts for parameter in part.parameters()]
    waiting = rounds(len(outliers), seed)

    def logits(batch):
        return pooled(network, batch) @ linear.weight[0] + linear.bias

    def loss_of(rows):
        others = list(itertools.islice(waiting, len(rows)))  # as many of each kind
        p, q = torch.sigmoid(logits(pictures[rows])), torch.sigmoid(logits(outliers[others]))
        return -((1 - p).log().sum() + q.log().sum()) / (2 * len(rows))

    losses = sgd_by_hand(trained, loss_of, len(pictures), seed=seed, **settings)
    return losses, lambda batch: logits(batch).detach().numpy()


@pytest.mark.parametrize(
    ("changes", "n_outliers"),
    [
        (dict(batch_size=16), 50),  # of 33 images: the last batch is one image and one outlier
        (dict(max_grad_norm=None, momentum=0.5, seed=4, batch_size=16), 50),
        (dict(max_grad_norm=0.05, batch_size=16), 5),  # fewer than a batch
    ],
)
def test_losses_and_scores_are_those_of_the_definition(backbone, changes, n_outliers):
    outliers, queries = OUTLIERS[:n_outliers], images(9, seed=5)
    settings = dict(epochs=3, lr=0.5, max_grad_norm=0.5) | changes
    detector = OutlierExposure(backbone, outliers, progress=False, **settings).fit(IMAGES)
    settings = dict(batch_size=32, momentum=0.9, seed=0) | settings
    losses, score = by_hand(plain_network(), IMAGES, outliers, **settings)
    np.testing.assert_allclose(detector.losses_, losses, rtol=1e-5)
    np.testing.assert_allclose(detector.score(queries), score(queries), rtol=1e-3, atol=1e-4)
    frozen = backbone.frozen_features(queries)
    np.testing.assert_allclose(detector.score_frozen(frozen), detector.score(queries), atol=1e-4)
    assert losses[-1] < 0.98 * losses[0]  # something has moved


def test_only_the_trainable_part_and_the_linear_layer_learn():
    backbone = small_backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    detector = OutlierExposure(backbone, OUTLIERS, **SETTINGS).fit(IMAGES)
    check_that_only_the_trainable_part_moved(backbone, before, detector.backbone_)
    assert not any(parameter.requires_grad for parameter in detector.linear_.parameters())


def test_one_seed_one_result(backbone, fitted):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again, other = (
        OutlierExposure(backbone, OUTLIERS, seed=seed, **SETTINGS).fit(IMAGES) for seed in (0, 1)
    )
    assert torch.equal(torch.rand(1), expected)  # the global generator is left alone
    assert fitted.losses_ == again.losses_ != other.losses_
    scores = fitted.score(IMAGES)
    assert np.array_equal(scores, again.score(IMAGES))
    assert np.array_equal(again.fit(IMAGES).score(IMAGES), scores)  # a second fit starts over


def test_every_outlier_is_met_equally_often(backbone, monkeypatch):
    """Over the ends of batches and epochs: 99 of 10 outliers, so each comes nine or ten times."""
    seen = []

    def watched(n, *, seed):
        for number in cycled(n, seed=seed):
            seen.append(number)
            yield number

    monkeypatch.setattr(outlier_exposure, "cycled", watched)
    OutlierExposure(backbone, OUTLIERS[:10], **SETTINGS).fit(IMAGES)
    assert len(seen) == 3 * 33 and set(np.bincount(seen)) == {9, 10}
    numbers = list(itertools.islice(cycled(7, seed=1), 28))
    assert numbers == list(itertools.islice(rounds(7, 1), 28))
    assert numbers != list(itertools.islice(cycled(7, seed=2), 28))


def test_the_callback_sees_every_epoch_and_changes_nothing(backbone, fitted):
    seen = []

    def look(done):
        seen.append((done.epoch, done.loss, done.detector.score(IMAGES[:3])))

    watched = OutlierExposure(backbone, OUTLIERS, on_epoch=look, **SETTINGS).fit(IMAGES)
    epochs, losses, scores = zip(*seen)
    assert epochs == (1, 2, 3) and list(losses) == watched.losses_ == fitted.losses_
    assert np.array_equal(scores[-1], fitted.score(IMAGES[:3]))
    assert not np.array_equal(scores[0], scores[1])


def test_images_and_settings_that_cannot_be(backbone):
    for outliers, words in (
        (images(4, side=64), "expected some of each, all of one size"),
        (OUTLIERS / 255, "images are float64"),
    ):
        with pytest.raises(ValueError, match=words):
            OutlierExposure(backbone, outliers, **SETTINGS).fit(IMAGES)
    frozen = backbone.frozen_features(IMAGES)
    for pair in ((frozen, frozen[:0]), (frozen[:0], frozen)):
        with pytest.raises(ValueError, match="expected some of each"):
            OutlierExposure(backbone, None, **SETTINGS).fit_frozen(*pair)
    for name, value in (("epochs", 0), ("batch_size", 1.5), ("lr", math.nan), ("max_grad_norm", 0)):
        with pytest.raises(ValueError, match=f"{name}={value!r}: expected"):
            OutlierExposure(backbone, OUTLIERS, **{**SETTINGS, name: value}).fit(IMAGES)


def test_it_is_an_estimator(backbone):
    detector = OutlierExposure(backbone, OUTLIERS, **SETTINGS)
    assert detector.get_params()["outlier_images"] is OUTLIERS
    with pytest.raises(ValueError, match="OutlierExposure has seen no normal images yet"):
        detector.score(IMAGES)
    copied = clone(detector).set_params(epochs=1, bf16=True).fit(IMAGES)
    assert copied.score(IMAGES).shape == (33,)
    assert (copied.bf16_, copied.bf16_ratio_) == (True, None)
