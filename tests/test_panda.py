"""Compactness adaptation by its definition, and the three ways to know when to stop."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from small import (
    check_that_only_the_trainable_part_moved,
    images,
    plain_network,
    pooled,
    sgd_by_hand,
    small_backbone,
)

from pandalib import (
    DN2,
    EWC,
    PANDA,
    PANDAEWC,
    PANDASES,
    FeatureCache,
    fisher_information,
    load_backbone,
    load_task,
)
from pandalib.backbones import Backbone
from pandalib.methods import panda
from pandalib.methods.knn import knn_scores
from pandalib.methods.panda import (
    compactness,
    epochs_for,
    fit_compactness,
    hold_out,
    sample_wise_scores,
)

# The same examples every time, and no limit on a single one: the machine may be busy.

IMAGES, QUERIES = images(33), images(9, seed=5)
PACE = dict(lr=0.5, max_grad_norm=0.005)  # this norm cuts every gradient of the small network
SETTINGS = dict(epochs=3, batch_size=16, progress=False, **PACE)


@pytest.fixture(scope="module")
def frozen(backbone):
    return backbone.frozen_features(IMAGES)


def parameters(network) -> list[torch.Tensor]:
    return list(network.trainable.parameters())


def by_hand(network, pictures, **settings) -> list[float]:
    """The mean loss of each epoch by the definition, with the whole network for every batch."""
    network = copy.deepcopy(network).eval()
    trained = [*network.layer3.parameters(), *network.layer4.parameters()]
    with torch.no_grad():
        centre = pooled(network, pictures).double().mean(dim=0).float()

    def loss_of(rows):
        f = pooled(network, pictures[rows])
        return sum(((f[i] - centre) ** 2).sum() / f.shape[1] for i in range(len(rows))) / len(rows)

    return sgd_by_hand(trained, loss_of, len(pictures), **settings)


def test_compactness_by_hand():
    loss = compactness(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1.0, 0.0]))
    assert loss == pytest.approx(((0 + 4) / 2 + (4 + 0) / 2) / 2)


@pytest.mark.parametrize(
    "changes",
    [
        dict(batch_size=16),  # of 33 images: the last batch is one
        dict(batch_size=64, weight_decay=0.02),  # one batch, smaller than batch_size
        dict(max_grad_norm=None, lr=0.01, momentum=0.5, seed=4),
        dict(lr=0.05, max_grad_norm=0.1),  # all else as it is when left out
    ],
)
def test_losses_are_those_of_the_definition(backbone, frozen, changes):
    settings = dict(epochs=3, **PACE) | changes
    checkpoints = fit_compactness(backbone, frozen, progress=False, **settings)
    np.testing.assert_allclose(
        checkpoints.losses, by_hand(plain_network(), IMAGES, **settings), rtol=1e-5
    )
    assert max(checkpoints.losses) > 1.001 * min(checkpoints.losses)  # something has moved
    assert checkpoints.epochs == [0, 1, 2, 3]
    np.testing.assert_allclose(
        checkpoints.centre, backbone.features(IMAGES).mean(axis=0), atol=1e-5
    )


def test_a_penalty_comes_before_the_clip_and_not_into_the_losses(backbone, frozen):
    def l2(trainable):
        pairs = zip(trainable.parameters(), parameters(backbone))
        return 1.5 * sum((theta - start).square().sum() for theta, start in pairs)

    losses = fit_compactness(backbone, frozen, penalty=l2, **SETTINGS).losses
    hand = {key: value for key, value in SETTINGS.items() if key != "progress"}
    np.testing.assert_allclose(losses, by_hand(plain_network(), IMAGES, l2=3.0, **hand), rtol=1e-5)
    assert losses[-1] > fit_compactness(backbone, frozen, **SETTINGS).losses[-1]


def test_only_the_trainable_parameters_move():
    backbone = small_backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    adapted = fit_compactness(backbone, backbone.frozen_features(IMAGES), **SETTINGS)[-1]
    check_that_only_the_trainable_part_moved(backbone, before, adapted)


def test_one_seed_one_result(backbone, frozen):
    first, again, other = (
        fit_compactness(backbone, frozen, seed=seed, **SETTINGS) for seed in (2, 2, 3)
    )
    assert first.losses == again.losses != other.losses
    assert all(map(torch.equal, parameters(first[-1]), parameters(again[-1])))


def test_what_cannot_be(backbone, frozen, tmp_path):
    for name, value in (
        *(("lr", value) for value in (0.0, math.nan)),
        *(("max_grad_norm", value) for value in (-1, math.inf)),
        *(
            (name, value)
            for name in ("epochs", "batch_size", "checkpoint_every")
            for value in (0, 1.5)
        ),
    ):
        with pytest.raises(ValueError, match=f"{name}={value!r}: expected"):
            fit_compactness(backbone, frozen, **{**SETTINGS, name: value})
    cut = small_backbone(truncate_after="layer2")
    with pytest.raises(ValueError, match="small up to layer2 has no stage 'layer3' to adapt"):
        fit_compactness(cut, cut.frozen_features(IMAGES), **SETTINGS)
    endless = SETTINGS | dict(lr=1e20, max_grad_norm=None)
    with pytest.raises(FloatingPointError, match=r"lower lr \(now 1e\+20\)"):
        fit_compactness(backbone, frozen, folder=tmp_path, **endless)
    assert not (tmp_path / "resume.safetensors").exists()  # nothing that a run could go on with
    assert all(torch.isfinite(parameter).all() for parameter in parameters(backbone))


@given(st.integers(4, 200), st.floats(0, 1), st.integers(0, 3))
@example(10, 0.2, 0)  # two on either side are enough
@example(10, 0.8, 0)
@example(10, 0.1, 0)
@example(10, 0.9, 0)
def test_hold_out_splits(n, fraction, seed):
    n_held_out = round(n * fraction)
    if min(n_held_out, n - n_held_out) < 2:
        with pytest.raises(ValueError, match="expected at least 2 images in either part"):
            hold_out(n, fraction, seed)
        return
    train, held_out = hold_out(n, fraction, seed)
    assert len(held_out) == n_held_out and sorted([*train, *held_out]) == list(range(n))
    assert list(train) == sorted(train) and list(held_out) == sorted(held_out)
    assert np.array_equal(held_out, hold_out(n, fraction, seed)[1])


def test_hold_out_has_a_seed():
    assert np.array_equal(hold_out(99, 0.5)[1], hold_out(99, 0.5, seed=0)[1])
    assert not np.array_equal(hold_out(99, 0.5)[1], hold_out(99, 0.5, seed=1)[1])


@pytest.mark.parametrize(
    ("minibatches", "n", "batch_size", "expected"),
    [(260, 400, 32, 20), (2300, 5000, 32, 15), (1, 5000, 32, 1), (10, 33, 32, 5), (10, 20, 4, 2)],
)
def test_epochs_for(minibatches, n, batch_size, expected):
    assert epochs_for(110, 330) == 10  # 11 batches of 32, but 10 of 33
    assert epochs_for(minibatches, n, batch_size) == expected


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.data())
def test_sample_wise_takes_the_largest_ratio(n_checkpoints, n, m, data):
    ties = st.integers(0, 3).map(float)
    test = data.draw(arrays(np.float64, (n_checkpoints, n), elements=ties | st.floats(0, 1e6)))
    held_out = data.draw(arrays(np.float64, (n_checkpoints, m), elements=st.floats(0.1, 1e6)))
    scores, chosen = sample_wise_scores(test, held_out)
    typical = held_out.mean(axis=1)
    for image in range(n):
        ratios = [test[t, image] / typical[t] for t in range(n_checkpoints)]
        assert scores[image] == max(ratios) and chosen[image] == ratios.index(max(ratios))
    # Another unit at every checkpoint, the same for all images, changes nothing but rounding;
    # powers of two not even that.
    units = 2.0 ** np.arange(n_checkpoints)[:, None]
    for found, expected in zip(
        sample_wise_scores(test * units, held_out * units), (scores, chosen)
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("test", "held_out", "words"),
    [
        (np.ones((3, 4)), np.ones((2, 4)), r"scores are \(3, 4\) and \(2, 4\): expected one row"),
        (np.ones(3), np.ones((3, 4)), r"test_scores are float64 \(3,\)"),
        ([[1.0, 2.0]], [[np.inf]], "held_out_scores contains infinity"),
        (
            np.ones((2, 4)),
            [[1.0, 1.0], [0.0, 0.0]],
            "score 0 on average: they are in the gallery, or the features have collapsed to one",
        ),
    ],
)
def test_sample_wise_scores_refuse(test, held_out, words):
    with pytest.raises(ValueError, match=words):
        sample_wise_scores(test, held_out)


def test_panda_is_the_definition(backbone, frozen):
    seen = []
    options = dict(epochs=3, seed=1, weight_decay=0.01, progress=False, **PACE)
    detector = PANDA(backbone, k=3, on_checkpoint=lambda done: seen.append(done.epoch), **options)
    assert detector.fit(IMAGES) is detector
    network = fit_compactness(backbone, frozen, **options)[-1]
    gallery, queries = network.features(IMAGES), network.features(QUERIES)
    expected = knn_scores(gallery, queries, k=3)
    np.testing.assert_allclose(detector.score(QUERIES), expected, rtol=1e-3)
    assert seen == [0, 3] == detector.checkpoints_.epochs
    unadapted = DN2(backbone, k=3).fit(IMAGES).score(QUERIES)
    assert not np.allclose(detector.score(QUERIES), unadapted, rtol=0.02)
    assert (detector.bf16_, detector.bf16_ratio_) == (False, None)


def test_panda_ewc_is_panda_with_that_penalty(backbone):
    fisher = fisher_information(backbone, IMAGES[:6], progress=False)
    options = dict(epochs=3, progress=False, checkpoint_every=1, **PACE)
    scores = [
        detector.fit(IMAGES).score(QUERIES)
        for detector in (
            PANDAEWC(backbone, fisher, ewc_lambda=50.0, **options),
            PANDA(backbone, penalty=EWC(backbone, 50.0, fisher), **options),
            PANDA(backbone, **options),
        )
    ]
    assert np.array_equal(scores[0], scores[1]) and not np.allclose(scores[0], scores[2], rtol=1e-4)
    with pytest.raises(TypeError, match="penalty"):
        PANDAEWC(backbone, fisher, ewc_lambda=1.0, penalty=None, **options)


def test_panda_ses_is_the_definition(backbone, frozen):
    options = dict(epochs=3, checkpoint_every=2, seed=1, progress=False, **PACE)
    detector = PANDASES(backbone, holdout_fraction=0.2, **options).fit(IMAGES)
    held_out = detector.held_out_
    train = np.setdiff1d(np.arange(33), held_out)
    assert len(held_out) == 7
    expected = fit_compactness(backbone, frozen[train], **options)
    assert detector.checkpoints_.losses == expected.losses and expected.epochs == [0, 2, 3]
    curves, typical = [], []
    for network in expected:
        gallery = network.features(IMAGES[train])  # without the held-out images
        curves.append(knn_scores(gallery, network.features(QUERIES)))
        typical.append(knn_scores(gallery, network.features(IMAGES[held_out])))
    assert np.min(typical) > 0
    np.testing.assert_allclose(detector.held_out_scores_, typical, rtol=1e-3)
    np.testing.assert_allclose(detector.curves(QUERIES), curves, rtol=1e-3)
    ratios = np.array([curve / one.mean() for curve, one in zip(curves, typical)])
    np.testing.assert_allclose(detector.score(QUERIES), ratios.max(axis=0), rtol=1e-3)


@pytest.mark.parametrize("kind", [PANDA, PANDASES])
def test_every_option_reaches_its_place(backbone, kind, tmp_path):
    options = dict(epochs=2, checkpoint_every=1, seed=4, k=3, normalise=True, progress=False)
    cache = FeatureCache(tmp_path / "cache")
    detector = kind(backbone, folder=tmp_path / "run", cache=cache, **options, **PACE).fit(IMAGES)
    detector.score(QUERIES)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # of the normal and of the new images
    assert any((tmp_path / "run").iterdir())
    if kind is PANDASES:
        assert np.array_equal(detector.held_out_, hold_out(len(IMAGES), 0.1, seed=4)[1])
        scorers = detector.scorers_
        assert len(scorers) == 3
    else:
        features = detector.checkpoints_[2].features(IMAGES)
        np.testing.assert_allclose(detector.backbone_.features(IMAGES), features, rtol=1e-4)
        scorers = [detector.scorer_]
    assert all((scorer.k, scorer.normalise) == (3, True) for scorer in scorers)


@pytest.mark.parametrize("cached", [False, True])
def test_scoring_in_parts_changes_nothing(backbone, cached, monkeypatch, tmp_path):
    cache = FeatureCache(tmp_path) if cached else None
    detector = PANDASES(backbone, epochs=2, progress=False, cache=cache, **PACE).fit(IMAGES)
    whole, sizes = detector.score(QUERIES), []
    monkeypatch.setattr(panda, "CHUNK", 4)
    frozen_features = Backbone.frozen_features

    def watched(self, part, **options):
        sizes.append(len(part))
        return frozen_features(self, part, **options)

    monkeypatch.setattr(Backbone, "frozen_features", watched)
    np.testing.assert_allclose(detector.score(QUERIES), whole, rtol=1e-4)
    assert sizes == ([9] if cached else [4, 4, 1])
    with pytest.raises(ValueError, match="there are no images"):
        detector.score(QUERIES[:0])


def test_bfloat16_keeps_the_order():
    task, network = load_task("pictograms:star", n_train=64, n_test=5), load_backbone()
    options = dict(epochs=2, lr=0.25, max_grad_norm=0.1, progress=False)
    exact, coarse = (PANDA(network, bf16=bf16, **options).fit(task.train) for bf16 in (False, True))
    ranks = [np.argsort(np.argsort(one.score(task.test))) for one in (exact, coarse)]
    assert np.corrcoef(*ranks)[0, 1] > 0.99
    assert coarse.bf16_ is True and coarse.checkpoints_.losses != exact.checkpoints_.losses
    np.testing.assert_allclose(coarse.checkpoints_.losses, exact.checkpoints_.losses, rtol=0.02)
    tried = PANDA(network, bf16="auto", **options).fit(task.train)
    assert tried.bf16_ == (tried.bf16_ratio_ >= 1.2)


@pytest.mark.parametrize("kind", [PANDA, PANDAEWC, PANDASES])
def test_detectors_are_estimators(backbone, kind):
    extra = dict(fisher=None, ewc_lambda=1.0) if kind is PANDAEWC else {}
    detector = kind(backbone, epochs=1, progress=False, **PACE, **extra)
    own = {PANDA: "penalty", PANDAEWC: "ewc_lambda", PANDASES: "holdout_fraction"}[kind]
    assert {"backbone", "lr", "k", own} < detector.get_params(deep=False).keys()
    assert detector.backbone is backbone and repr(detector).startswith(kind.__name__ + "(")
    with pytest.raises(ValueError, match="has seen no normal images yet"):
        detector.score(QUERIES)
    copied = clone(detector).set_params(k=1)
    assert (copied.k, detector.k, copied.lr) == (1, 2, detector.lr)
    assert np.isfinite(copied.fit(IMAGES).score(QUERIES)).all()
