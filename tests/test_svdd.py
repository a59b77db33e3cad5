"""DeepSVDD: nothing to collapse with, trained by its definition, and its constraint on a pretrained network."""

import math

import numpy as np
import pytest
import torch
from small import images, normalised
from torch import nn

from pandalib import EWC, DeepSVDD, Fisher, backbones, load_backbone, roc_auc
from pandalib.methods import deep_svdd as svdd
from pandalib.methods.panda import fit_compactness
from pandalib.backbones import normalise
from pandalib.weights import read_state, verify_embedded
from pandalib.methods.deep_svdd import away_from_zero, svdd_network

IMAGES = images(21)
SETTINGS = dict(epochs=3, batch_size=8, n_features=16, progress=False)


def test_no_entry_of_the_centre_is_near_zero():
    moved = away_from_zero(
        torch.tensor([0.0, -0.0, 0.03, -0.03, 0.1, -0.1, 2.0, -2.0, 0.0999, -0.0999])
    )
    expected = [0.1, 0.1, 0.1, -0.1, 0.1, -0.1, 2.0, -2.0, 0.1, -0.1]
    assert torch.equal(moved, torch.tensor(expected)) and moved.dtype == torch.float32
    assert torch.equal(
        away_from_zero(torch.tensor([0.4, -0.2]), least=0.5), torch.tensor([0.5, -0.5])
    )
    centre = DeepSVDD(**{**SETTINGS, "epochs": 1}).fit(IMAGES).centre_
    assert centre.shape == (16,) and centre.abs().min() >= 0.1 and (centre.abs() == 0.1).any()


def test_the_network_has_no_bias():
    network = svdd_network(16)
    layers = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d)
    ]
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d] * 3 + [nn.Linear]
    assert all(layer.bias is None for layer in layers)
    assert not any(
        layer.affine or layer.weight is not None
        for layer in layers
        if isinstance(layer, nn.BatchNorm2d)
    )
    assert {name.rsplit(".", 1)[1] for name, _ in network.named_parameters()} == {"weight"} and len(
        list(network.parameters())
    ) == 4


def test_the_zero_image_goes_to_zero():
    network = svdd_network(16, seed=3)
    zeros, x = (
        torch.zeros(2, 3, 64, 64),
        torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
    )
    with torch.no_grad():
        assert network.eval()(zeros).abs().max() == 0 < network(x).abs().max()
        torch.testing.assert_close(
            network(3 * x), 3 * network(x), rtol=1e-4, atol=1e-4
        )  # a shift anywhere would show
        assert network.train()(zeros).abs().max() == 0
        network(x)
        assert (
            network.eval()(zeros).abs().max() > 0
        )  # the one shift that is left: the running means of BatchNorm


def test_any_size_is_averaged_down_to_32():
    network = svdd_network(16).eval()
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        small = x.reshape(2, 3, 32, 2, 32, 2).mean(dim=(3, 5))
        torch.testing.assert_close(network(x), network(small))
        assert network(normalised(images(2, side=96))).shape == (2, 16)


def by_hand(pictures, *, epochs, batch_size, n_features, seed=0, lr=1e-3, weight_decay=1e-6):
    """Losses of each epoch: Adam written out, the rate a tenth for the last third, no last batch of one."""
    network = svdd_network(n_features, seed=seed)
    weights = list(network.parameters())
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    with torch.no_grad():
        centre = network.eval()(normalised(pictures)).mean(dim=0)
    centre = torch.tensor(
        [entry if abs(entry) >= 0.1 else math.copysign(0.1, entry) for entry in centre.tolist()]
    )
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
            for weight, gradient, m, v in zip(
                weights, torch.autograd.grad(loss, weights), first, second
            ):
                with torch.no_grad():
                    gradient = gradient + weight_decay * weight
                    m.mul_(0.9).add_(0.1 * gradient)
                    v.mul_(0.999).add_(0.001 * gradient**2)
                    weight.sub_(
                        rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
                    )
            total += loss.item() * size
        losses.append(total / len(order))
    return losses


def test_training_is_the_definition():
    expected = by_hand(
        IMAGES, seed=2, **{key: value for key, value in SETTINGS.items() if key != "progress"}
    )
    np.testing.assert_allclose(
        DeepSVDD(seed=2, **SETTINGS).fit(IMAGES).losses_, expected, rtol=1e-3
    )


def test_training_lowers_the_loss_and_a_score_is_the_distance():
    detector = DeepSVDD(**{**SETTINGS, "epochs": 6}).fit(IMAGES)
    assert len(detector.losses_) == 6 and detector.losses_[-1] < 0.8 * detector.losses_[0]
    queries = images(5, seed=7)
    with torch.inference_mode():
        features = detector.network_(normalised(queries)).numpy()
    np.testing.assert_allclose(detector.features(queries), features, rtol=1e-4, atol=1e-5)
    centre = detector.centre_.numpy()
    np.testing.assert_allclose(
        detector.score(queries), [((f - centre) ** 2).sum() / 16 for f in features], rtol=1e-4
    )
    assert not detector.network_.training


def test_it_tells_stripes_from_blotches():
    stripes = np.zeros((20, 3, 32, 32), np.uint8)
    stripes[:, :, ::4] = 255
    detector = DeepSVDD(epochs=10, n_features=16, batch_size=8, progress=False).fit(images(60))
    scores = detector.score(np.concatenate([images(20, seed=9), stripes]))
    assert roc_auc(np.repeat([0, 1], 20), scores) > 0.9


def test_one_seed_one_result():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (DeepSVDD(seed=seed, **SETTINGS).fit(IMAGES) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)  # the global generator is left alone
    assert first.losses_ == again.losses_ != other.losses_
    assert not torch.equal(svdd_network(16, seed=1)[1].weight, svdd_network(16, seed=2)[1].weight)
    assert np.array_equal(first.score(IMAGES), again.score(IMAGES))


def test_two_images_and_not_fewer():
    for few in (IMAGES[:0], IMAGES[:1]):
        with pytest.raises(
            ValueError, match=f"{len(few)} normal images: DeepSVDD needs at least 2"
        ):
            DeepSVDD(**SETTINGS).fit(few)
    assert np.isfinite(DeepSVDD(**SETTINGS).fit(IMAGES[:2]).score(IMAGES)).all()
    with pytest.raises(ValueError, match="images are float32"):
        DeepSVDD(**SETTINGS).fit(IMAGES.astype(np.float32))


def test_no_batch_of_one(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        svdd, "normalise", lambda pictures: sizes.append(len(pictures)) or normalise(pictures)
    )
    DeepSVDD(**{**SETTINGS, "epochs": 1, "batch_size": 20}).fit(IMAGES)
    assert sizes[1:] == [11, 10]  # after the 21 that give the centre


def test_the_callback_sees_every_epoch_and_changes_nothing():
    seen = []

    def look(done):
        seen.append((done.epoch, done.loss, done.detector.score(IMAGES[:3])))

    watched, alone = (
        DeepSVDD(on_epoch=callback, **SETTINGS).fit(IMAGES) for callback in (look, None)
    )
    assert watched.losses_ == alone.losses_ and np.array_equal(
        watched.score(IMAGES), alone.score(IMAGES)
    )
    assert [epoch for epoch, _, _ in seen] == [0, 1, 2, 3] and math.isnan(seen[0][1])
    assert [loss for _, loss, _ in seen[1:]] == watched.losses_
    assert np.array_equal(seen[-1][2], watched.score(IMAGES[:3])) and not np.array_equal(
        seen[0][2], seen[1][2]
    )


@pytest.fixture(scope="module")
def bias_free():
    return load_backbone(bias_free=True)


def test_a_pretrained_network_without_biases(bias_free):
    normal = load_backbone()
    layers = [
        module for part in (bias_free.head, bias_free.classifier) for module in part.modules()
    ]
    assert all(
        layer.bias is None
        for layer in layers
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d)
    )
    assert not any(layer.affine for layer in layers if isinstance(layer, nn.BatchNorm2d))
    assert {name.rsplit(".", 1)[1] for name, _ in bias_free.head.named_parameters()} == {"weight"}
    assert (
        bias_free.weights_sha256 != normal.weights_sha256
        and bias_free.frozen_sha256() != normal.frozen_sha256()
    )
    assert bias_free.weights_sha256 == load_backbone(bias_free=True).weights_sha256
    assert (
        bias_free.weights_sha256
        != load_backbone("glyphs_resnet4", "random", bias_free=True).weights_sha256
    )
    # Stem included: the plain network with every shift set to 0 and every scale to 1, running statistics as they were.
    network = backbones.embedded_network(len((state := read_state(verify_embedded()))["fc.weight"]))
    network.load_state_dict(state)
    with torch.no_grad():
        for module in network.eval().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(1)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
        network.fc = nn.Identity()
        expected = network(normalised(IMAGES)).numpy()
    np.testing.assert_allclose(
        bias_free.features(IMAGES), expected, atol=1e-4 * np.abs(expected).max()
    )
    assert not np.allclose(normal.features(IMAGES), expected, atol=0.1 * np.abs(expected).max())


def test_the_fisher_information_of_the_normal_network_is_refused(bias_free):
    normal = load_backbone()
    fisher = Fisher(
        {name: torch.ones_like(p) for name, p in normal.head.named_parameters()},
        normal.weights_sha256,
        "layer3",
        "layer4",
        "ones",
        1,
    )
    assert EWC(normal, 1.0, fisher)
    with pytest.raises(
        ValueError,
        match=rf"belongs to weights {normal.weights_sha256[:12]}, the backbone has {bias_free.weights_sha256[:12]}",
    ):
        EWC(bias_free, 1.0, fisher)


def test_a_network_without_biases_can_be_adapted(bias_free):
    losses = fit_compactness(
        bias_free,
        bias_free.frozen_features(IMAGES),
        epochs=2,
        lr=0.25,
        max_grad_norm=0.1,
        progress=False,
    ).losses
    assert losses[1] < losses[0]
