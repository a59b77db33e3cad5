"""Outlier exposure: the definition, from the pixels, and that nothing but the head and the new layer learns."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from small import images, normalised, plain_network, small_backbone

from pandalib import FeatureCache, OutlierExposure, backbones, detectors, load_backbone, load_outliers, load_task, roc_auc
from pandalib.backbones import read_state, verify_embedded
from pandalib.exposure import cycled

IMAGES, STRANGERS = images(33), 255 - images(50, seed=1) // 4  # any colour, and light ones
SETTINGS = dict(epochs=3, lr=0.5, clip=0.5, batch_size=16, progress=False)


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def fitted(backbone):
    return OutlierExposure(backbone, STRANGERS, **SETTINGS).fit(IMAGES)


def rounds(n, seed):
    """The outliers' order: time after time a new permutation."""
    return itertools.chain.from_iterable(np.random.default_rng((seed, number, 1)).permutation(n) for number in itertools.count())


def by_hand(network, pictures, strangers, *, epochs, lr, clip, batch_size=32, momentum=0.9, seed=0):
    """The definition: the whole network for every batch, the loss, gradient, clip and step written out.

    Returns the mean loss of each epoch and a function that scores images.
    """
    network = copy.deepcopy(network).eval()
    torch.manual_seed(seed)
    linear = torch.nn.Linear(network.classifier[2].in_features, 1)
    trained = [parameter for part in (network.layer3, network.layer4, linear) for parameter in part.parameters()]
    velocity = [torch.zeros_like(parameter) for parameter in trained]
    waiting = rounds(len(strangers), seed)

    def logits(batch):
        x = normalised(batch)
        for name in ("conv", "layer1", "layer2", "layer3", "layer4"):
            x = getattr(network, name)(x)
        return x.mean(dim=(2, 3)) @ linear.weight[0] + linear.bias

    losses = []
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng((seed, epoch)).permutation(len(pictures))
        total = 0.0
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            others = list(itertools.islice(waiting, len(rows)))  # as many of either
            normal, anomalous = torch.sigmoid(logits(pictures[rows])), torch.sigmoid(logits(strangers[others]))
            loss = -((1 - normal).log().sum() + anomalous.log().sum()) / (2 * len(rows))
            gradients = torch.autograd.grad(loss, trained)
            norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
            scale = 1.0 if clip is None else min(1.0, clip / norm)
            with torch.no_grad():
                for parameter, gradient, v in zip(trained, gradients, velocity):
                    v.mul_(momentum).add_(gradient * scale)
                    parameter.sub_(lr * v)
            total += loss.item() * len(rows)
        losses.append(total / len(order))
    return losses, lambda batch: torch.sigmoid(logits(batch)).detach().numpy()


def check_definition(backbone, network, pictures, strangers, **settings):
    detector = OutlierExposure(backbone, strangers, progress=False, **settings).fit(pictures)
    losses, score = by_hand(network, pictures, strangers, **settings)
    np.testing.assert_allclose(detector.losses_, losses, rtol=1e-5)
    queries = images(9, seed=5)
    np.testing.assert_allclose(1 / (1 + np.exp(-detector.score(queries))), score(queries), rtol=1e-3, atol=1e-5)
    return losses


@pytest.mark.parametrize(
    "changes",
    [
        dict(),  # 33 images in batches of 16: the last batch is one image and one outlier
        dict(clip=0.05, batch_size=20),
        dict(clip=None, lr=0.3, momentum=0.5, seed=4),
        dict(n_outliers=5),  # fewer than a batch
        dict(n_outliers=1),
    ],
)
def test_losses_and_scores_are_those_of_the_definition(backbone, changes):
    changes = dict(changes)
    settings = {key: value for key, value in SETTINGS.items() if key != "progress"} | changes
    losses = check_definition(backbone, plain_network(), IMAGES, STRANGERS[: settings.pop("n_outliers", 50)], **settings)
    assert losses[-1] < 0.98 * losses[0]  # something has moved


def test_losses_of_the_embedded_network_are_those_of_the_definition():
    state = read_state(verify_embedded())
    network = backbones.embedded_network(len(state["fc.weight"]))
    network.load_state_dict(state)
    network.conv = torch.nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    network.classifier = [None, None, network.fc]
    check_definition(load_backbone(), network, images(17, seed=1), STRANGERS[:12], epochs=2, lr=0.05, clip=1.0, batch_size=8)


def test_only_the_head_and_the_linear_layer_learn():
    backbone = small_backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    detector = OutlierExposure(backbone, STRANGERS, **SETTINGS).fit(IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    trainable = {f"head.{name}" for name, _ in backbone.head.named_parameters()}
    for name, value in detector.backbone_.state_dict().items():  # BatchNorm's running statistics are among these
        assert torch.equal(value, before[name]) == (name not in trainable), name
    assert any("running_mean" in name for name in before) and detector.backbone_.stem is backbone.stem
    assert not any(parameter.requires_grad for part in (backbone, detector.backbone_, detector.linear_) for parameter in part.parameters())
    assert not detector.backbone_.head.training


def test_a_network_without_a_head_leaves_the_linear_layer():
    cut = small_backbone(last="layer2")
    detector = OutlierExposure(cut, STRANGERS, **SETTINGS).fit(IMAGES)
    assert detector.losses_[-1] < detector.losses_[0] and detector.linear_.in_features == 12


def test_one_seed_one_result(backbone, fitted):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again, other = (OutlierExposure(backbone, STRANGERS, seed=seed, **SETTINGS).fit(IMAGES) for seed in (0, 1))
    assert torch.equal(torch.rand(1), expected)  # the global generator is left alone
    assert fitted.losses_ == again.losses_ != other.losses_
    assert np.array_equal(fitted.score(IMAGES), again.score(IMAGES))
    scores = fitted.score(IMAGES)
    assert np.array_equal(fitted.fit(IMAGES).score(IMAGES), scores)  # a second fit starts anew


def test_cycled_goes_round_in_permutations():
    numbers = list(itertools.islice(cycled(7, seed=1), 28))
    parts = [tuple(numbers[i : i + 7]) for i in range(0, 28, 7)]
    assert all(sorted(part) == list(range(7)) for part in parts) and len(set(parts)) == 4
    assert numbers == list(itertools.islice(rounds(7, 1), 28)) != list(itertools.islice(cycled(7, seed=2), 28))


def test_every_outlier_is_met_equally_often(backbone):
    """Over the ends of batches and of epochs: 99 outliers are wanted of 10, so each comes nine or ten times."""

    seen = []
    stem, strangers = backbone.stem_features(IMAGES), backbone.stem_features(STRANGERS[:10])

    class Outliers:
        def __len__(self):
            return 10

        def __getitem__(self, rows):
            seen.extend(rows.tolist())
            return strangers[rows]

    OutlierExposure(backbone, None, **SETTINGS).fit_stems(stem, Outliers())
    assert len(seen) == 3 * 33 and set(np.bincount(seen)) == {9, 10}


def test_a_float16_cache_gives_nearly_the_same(tmp_path, monkeypatch):
    task, network = load_task("pictograms:star", n_train=64, n_test=20), load_backbone()
    strangers = load_outliers("near", 64)
    options = dict(epochs=4, lr=0.05, clip=1.0, progress=False)
    plain, cached = (OutlierExposure(network, strangers, cache=cache, **options).fit(task.train) for cache in (None, FeatureCache(tmp_path)))
    one, other = plain.score(task.test), cached.score(task.test)
    assert not np.array_equal(one, other) and len(list(tmp_path.glob("*.features"))) == 3
    assert abs(roc_auc(task.labels, one) - roc_auc(task.labels, other)) < 1e-3
    assert roc_auc(task.labels, one) > 0.8
    monkeypatch.setattr(detectors, "CHUNK", 7)
    for detector, scores in ((plain, one), (cached, other)):
        np.testing.assert_allclose(detector.score(task.test), scores, atol=1e-4)  # in parts that fit into memory


def test_it_learns_what_it_is_shown(backbone):
    """Trained on light outliers it finds other light images, and the score rises with likeness to an outlier."""
    detector = OutlierExposure(backbone, STRANGERS, **{**SETTINGS, "epochs": 12}).fit(IMAGES)
    normal, anomalous = images(40, seed=7), 255 - images(40, seed=8) // 4
    scores = detector.score(np.concatenate([normal, anomalous]))
    assert roc_auc(np.repeat([0, 1], 40), scores) > 0.95
    assert detector.losses_[-1] < 0.5 * detector.losses_[0]
    assert scores.dtype == np.float64 and scores.shape == (80,)
    assert np.median(scores[:40]) < 0 < np.median(scores[40:])  # logits: below 0 is more likely normal


def test_the_callback_sees_every_epoch_and_changes_nothing(backbone, fitted):
    seen = []

    def look(done):
        seen.append((done.epoch, done.loss, done.detector.score(IMAGES[:3])))

    watched = OutlierExposure(backbone, STRANGERS, on_epoch=look, **SETTINGS).fit(IMAGES)
    assert watched.losses_ == fitted.losses_ and np.array_equal(watched.score(IMAGES), fitted.score(IMAGES))
    assert [epoch for epoch, _, _ in seen] == [1, 2, 3] and [loss for _, loss, _ in seen] == watched.losses_
    assert np.array_equal(seen[-1][2], watched.score(IMAGES[:3])) and not np.array_equal(seen[0][2], seen[1][2])


def test_bf16_keeps_the_order(backbone, fitted):
    fast = OutlierExposure(backbone, STRANGERS, bf16=True, **SETTINGS).fit(IMAGES)
    queries = images(40, seed=7)
    ranks = [np.argsort(np.argsort(detector.score(queries))) for detector in (fitted, fast)]
    assert np.corrcoef(*ranks)[0, 1] > 0.97 and fast.losses_ != fitted.losses_
    np.testing.assert_allclose(fast.losses_, fitted.losses_, rtol=0.05)


@pytest.mark.parametrize("pays", [True, False])
def test_what_a_trial_of_bfloat16_decides_is_done(backbone, monkeypatch, pays):
    batches = []

    def trial(head, example, *, device):
        batches.append(len(example))
        return pays, 1.5

    monkeypatch.setattr("pandalib.adapt.bfloat16_pays", trial)
    settings, queries = {**SETTINGS, "epochs": 1}, images(5, seed=7)
    found, same, other = (
        OutlierExposure(backbone, STRANGERS, bf16=bf16, **settings).fit(IMAGES)
        for bf16 in ("auto", pays, not pays)
    )
    assert found.losses_ == same.losses_ != other.losses_
    assert np.array_equal(found.score(queries), same.score(queries))
    assert not np.array_equal(found.score(queries), other.score(queries))
    assert (found.bf16_, found.bf16_ratio_) == (pays, 1.5)
    assert (same.bf16_, same.bf16_ratio_) == (pays, None)
    assert batches == [32]  # 16 normal images and 16 outliers, as in training
    with pytest.raises(ValueError, match=r"bf16='on': expected True, False or \"auto\""):
        OutlierExposure(backbone, STRANGERS, bf16="on", **SETTINGS)


def test_a_loss_that_is_no_number_stops_the_run(backbone):
    with pytest.raises(FloatingPointError, match=r"the loss of epoch \d is (nan|inf): lower lr \(now 1e\+30\), or clip the gradient \(now None\)"):
        OutlierExposure(backbone, STRANGERS, **{**SETTINGS, "lr": 1e30, "clip": None}).fit(IMAGES)
    assert all(torch.isfinite(parameter).all() for parameter in backbone.head.parameters())


@pytest.mark.parametrize(
    ("normal", "outliers", "message"),
    [
        (IMAGES, images(4, side=64), r"^normal images are 32 x 32 and outliers 64 x 64 pixels: expected one size"),
        (IMAGES, IMAGES[:0], r"^there are no outliers: expected at least 1"),
        (IMAGES[:0], STRANGERS, r"^there are no normal images: expected at least 1"),
        (IMAGES, STRANGERS / 255, r"^images are float64 \(1, 3, 32, 32\): expected uint8"),
        (IMAGES.astype(np.float32), STRANGERS, r"^images are float32 \(1, 3, 32, 32\): expected uint8"),
        (IMAGES, STRANGERS[0], r"^images are uint8 \(1, 32, 32\): expected uint8 \(N, 3, H, W\)"),
    ],
)
def test_images_that_cannot_be(backbone, normal, outliers, message):
    with pytest.raises(ValueError, match=message):
        OutlierExposure(backbone, outliers, **SETTINGS).fit(normal)


def test_stems_that_cannot_be(backbone, fitted):
    stem = backbone.stem_features(IMAGES[:2])
    for normal, outliers, name in ((stem[:0], stem, "normal images"), (stem, stem[:0], "outliers")):
        with pytest.raises(ValueError, match=f"there are no {name}"):
            OutlierExposure(backbone, None, **SETTINGS).fit_stems(normal, outliers)
    with pytest.raises(ValueError, match="there are no images"):
        fitted.score(IMAGES[:0])
    with pytest.raises(ValueError, match="images are float32"):
        fitted.score(IMAGES.astype(np.float32))
    with pytest.raises(NotFittedError, match="OutlierExposure has seen no normal images"):
        OutlierExposure(backbone, STRANGERS, **SETTINGS).score(IMAGES)


@pytest.mark.parametrize("changes", [{name: value} for name in ("epochs", "batch_size") for value in (0, -1, 1.5, None)])
def test_counts_that_cannot_be(backbone, changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r}: expected a whole number of at least 1.$"):
        OutlierExposure(backbone, STRANGERS, **{**SETTINGS, **changes})


@pytest.mark.parametrize("changes", [{name: value} for name in ("lr", "clip") for value in (0.0, -1, math.nan, math.inf)])
def test_rates_that_cannot_be(backbone, changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r}: expected a number above 0.$"):
        OutlierExposure(backbone, STRANGERS, **{**SETTINGS, **changes})
