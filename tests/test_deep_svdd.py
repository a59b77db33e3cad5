"""DeepSVDD by its definition: nothing to collapse with, in its own network or a pretrained one."""

import math

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small import images, normalised
from torch import nn

from pandalib import DeepSVDD
from pandalib.methods.deep_svdd import away_from_zero, svdd_network

IMAGES = images(21)
SETTINGS = dict(epochs=3, batch_size=8, n_features=16, progress=False)


def test_no_entry_of_the_centre_is_near_zero():
    moved = away_from_zero(torch.tensor([0.0, -0.0, 0.03, -0.03, 0.1, -0.1, 2.0, -2.0]))
    assert torch.equal(moved, torch.tensor([0.1, 0.1, 0.1, -0.1, 0.1, -0.1, 2.0, -2.0]))
    centre = DeepSVDD(**{**SETTINGS, "epochs": 1}).fit(IMAGES).centre_
    assert centre.shape == (16,) and centre.abs().min() >= 0.1 and (centre.abs() == 0.1).any()


def test_the_network_has_no_bias():
    kinds = nn.Conv2d | nn.Linear | nn.BatchNorm2d
    layers = [module for module in svdd_network(16).modules() if isinstance(module, kinds)]
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d] * 3 + [nn.Linear]
    assert all(layer.bias is None for layer in layers)
    assert len(list(svdd_network(16).parameters())) == 4  # BatchNorm has no scale either


def test_the_zero_image_goes_to_zero():
    network, zeros = svdd_network(16, seed=3), torch.zeros(2, 3, 64, 64)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert network.eval()(zeros).abs().max() == 0 < network(x).abs().max()
        torch.testing.assert_close(network(3 * x), 3 * network(x), rtol=1e-4, atol=1e-4)
        network.train()(x)
        assert network.eval()(zeros).abs().max() > 0  # by the running means, the one shift left
        large = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        small = large.reshape(2, 3, 32, 2, 32, 2).mean(dim=(3, 5))
        torch.testing.assert_close(network(large), network(small))


def by_hand(pictures, *, epochs, batch_size, n_features, seed=0, lr=1e-3, weight_decay=1e-6):
    """Losses of each epoch: Adam written out, a tenth of the rate for the last third."""
    network = svdd_network(n_features, seed=seed)
    weights = list(network.parameters())
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    with torch.no_grad():
        mean = network.eval()(normalised(pictures)).mean(dim=0).tolist()
    centre = torch.tensor([c if abs(c) >= 0.1 else math.copysign(0.1, c) for c in mean])
    losses, step = [], 0
    for epoch in range(1, epochs + 1):
        rate = lr if epoch <= max(1, 2 * epochs // 3) else lr / 10
        order = np.random.default_rng((seed, epoch)).permutation(len(pictures))
        n_batches, total = math.ceil(len(order) / batch_size), 0.0
        sizes = [len(order) // n_batches + (i < len(order) % n_batches) for i in range(n_batches)]
        for begin, size in zip(np.cumsum([0, *sizes]), sizes):
            f = network.train()(normalised(pictures[order[begin : begin + size]]))
            loss = ((f - centre) ** 2).sum(dim=1).mean() / n_features
            step += 1
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, gradient, m, v in zip(weights, gradients, first, second):
                    gradient = gradient + weight_decay * weight
                    m.mul_(0.9).add_(0.1 * gradient)
                    v.mul_(0.999).add_(0.001 * gradient**2)
                    root = (v / (1 - 0.999**step)).sqrt() + 1e-8
                    weight.sub_(rate * (m / (1 - 0.9**step)) / root)
            total += loss.item() * size
        losses.append(total / len(order))
    return losses


@pytest.mark.parametrize("epochs", [1, 3])
def test_training_is_the_definition(epochs):
    settings = dict(epochs=epochs, batch_size=8, n_features=16, seed=2)
    losses = DeepSVDD(progress=False, **settings).fit(IMAGES).losses_
    np.testing.assert_allclose(losses, by_hand(IMAGES, **settings), rtol=1e-3)


def test_a_score_is_the_distance_to_the_centre():
    detector = DeepSVDD(**{**SETTINGS, "epochs": 6}).fit(IMAGES)
    assert len(detector.losses_) == 6 and detector.losses_[-1] < 0.8 * detector.losses_[0]
    queries, centre = images(5, seed=7), detector.centre_.numpy()
    with torch.inference_mode():
        features = detector.network_(normalised(queries)).numpy()
    np.testing.assert_allclose(detector.features(queries), features, rtol=1e-4, atol=1e-5)
    distances = [((f - centre) ** 2).sum() / 16 for f in features]
    np.testing.assert_allclose(detector.score(queries), distances, rtol=1e-4)
    assert not detector.network_.training


def test_two_images_and_not_fewer():
    with pytest.raises(ValueError, match="1 normal images: DeepSVDD needs"):
        DeepSVDD(**SETTINGS).fit(IMAGES[:1])
    assert np.isfinite(DeepSVDD(**SETTINGS).fit(IMAGES[:2]).score(IMAGES)).all()
    with pytest.raises(ValueError, match="images are float32"):
        DeepSVDD(**SETTINGS).fit(IMAGES.astype(np.float32))
    with pytest.raises(ValueError, match="epochs=0: expected"):
        DeepSVDD(epochs=0).fit(IMAGES)


def test_the_callback_sees_every_epoch_and_changes_nothing():
    seen = []

    def look(done):
        seen.append((done.epoch, done.loss, done.detector.score(IMAGES[:3])))

    watched = DeepSVDD(on_epoch=look, **SETTINGS).fit(IMAGES)
    alone = DeepSVDD(**SETTINGS).fit(IMAGES)
    epochs, losses, scores = zip(*seen)
    assert epochs == (0, 1, 2, 3) and math.isnan(losses[0])
    assert list(losses[1:]) == watched.losses_ == alone.losses_
    assert np.array_equal(scores[-1], alone.score(IMAGES[:3]))
    assert not np.array_equal(scores[0], scores[1])


def test_it_is_an_estimator():
    detector = DeepSVDD(**SETTINGS)
    with pytest.raises(ValueError, match="DeepSVDD has seen no normal images yet"):
        detector.score(IMAGES)
    assert repr(detector).startswith("DeepSVDD(batch_size=8")
    assert clone(detector).set_params(epochs=1).fit(IMAGES).score(IMAGES).shape == (21,)
