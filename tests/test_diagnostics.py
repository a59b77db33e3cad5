"""What is said of features: known cases, and the definition by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pandalib.methods.diagnostics import diagnose, effective_rank, feature_variance


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_effective_rank_of_known_features(dtype):
    for k in (1, 3, 12):  # k + 1 points at equal distances from each other span k directions
        corners = 2 * np.eye(k + 1, dtype=dtype) + 10
        assert effective_rank(corners) == pytest.approx(k, rel=1e-3)
        assert effective_rank(np.tile(corners, (5, 1))) == pytest.approx(k, rel=1e-3)
    for n in (1, 3, 10):
        assert effective_rank(np.full((n, 4), 0.1, dtype)) == 0  # one point
        assert feature_variance(np.full((n, 4), 0.1, np.float32)) == 0


@settings(derandomize=True, deadline=None, max_examples=60, database=None)
@given(st.integers(3, 30), st.integers(1, 6), st.integers(0, 1000), st.sampled_from([0.0, 1000.0]))
def test_rank_and_variance_see_neither_a_turn_nor_a_shift(n, d, seed, offset):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    features = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-1, 1, size=d) + offset
    rank, variance = effective_rank(features), feature_variance(features)
    assert 1 - 1e-9 <= rank <= min(n - 1, d) + 1e-6
    columns = [np.mean((column - sum(column) / n) ** 2) for column in features.T]
    assert variance == pytest.approx(np.mean(columns))
    assert effective_rank(7 * (features @ turn - 3)) == pytest.approx(rank, rel=1e-6)
    assert feature_variance(7 * (features @ turn - 3)) == pytest.approx(49 * variance, rel=1e-6)
    share = np.linalg.svd(features - features.mean(axis=0), compute_uv=False) ** 2
    share = share[share > 1e-12 * share.max()] / share.sum()
    expected = math.prod(p**-p for p in share)  # exp of the entropy, written as a product
    assert rank == pytest.approx(expected, rel=1e-6)


def test_diagnose_by_hand():
    rng = np.random.default_rng(0)
    gallery, centre = rng.normal(size=(20, 6)), rng.normal(size=6)
    features, labels = rng.normal(1.0, size=(15, 6)), np.arange(15) % 3 == 0
    scores = np.array([np.sort(np.square(gallery - f).sum(axis=1))[:3].sum() for f in features])
    variance = np.square(features - features.mean(axis=0)).sum() / 15 / 6
    found = diagnose(gallery, features, labels, centre=centre, k=3)
    assert found == {
        "loss": pytest.approx(np.mean([np.square(g - centre).sum() / 6 for g in gallery])),
        "roc_auc": pytest.approx(np.mean([a > b for a in scores[labels] for b in scores[~labels]])),
        "feature_variance": pytest.approx(variance),
        "effective_rank": pytest.approx(effective_rank(features)),
        "normal_distance": pytest.approx(scores[~labels].mean()),
        "anomalous_distance": pytest.approx(scores[labels].mean()),
    }
    unknown = ("loss", "roc_auc", "normal_distance", "anomalous_distance")
    assert diagnose(gallery, features) == found | dict.fromkeys(unknown)
    assert diagnose(gallery, features, labels) == diagnose(gallery, features, labels, k=2) != found
    for broken in (dict(gallery=gallery * np.nan), dict(features=features * np.nan)):
        (name,) = broken
        with pytest.raises(ValueError, match=f"{name} contains NaN"):
            diagnose(**(dict(gallery=gallery, features=features) | broken))
