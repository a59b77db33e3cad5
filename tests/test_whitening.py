"""Whitening against the covariance it inverts; leave-one-out against fitting again without it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf
from sklearn.exceptions import NotFittedError

from pandalib.methods.whitening import Whitening, l2_normalise, whitened_leave_one_out_scores
from pandalib.metrics import threshold_at


def correlated(n, d, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + offset


@st.composite
def spreads(draw, min_rows=3):
    """Features with a spread in every direction: a seeded normal distribution, turned and moved."""
    n, d = draw(st.integers(min_rows, 30)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    scale = 10.0 ** rng.uniform(-1, 1, size=d)
    return rng.normal(size=(n, d)) * scale @ turn + draw(st.sampled_from([0.0, 1000.0]))


def shrunk_covariance(features, shrinkage, mean_eigenvalue=None):
    """(1 - s) C + s mean(lambda) I, the covariance by division by n."""
    covariance = np.cov(features.T, bias=True)
    if mean_eigenvalue is None:
        mean_eigenvalue = np.trace(covariance) / len(covariance)
    return (1 - shrinkage) * covariance + shrinkage * mean_eigenvalue * np.eye(len(covariance))


def leave_one_out_by_fitting_again(features, shrinkage, k):
    """Covariance of the others, inverted; the mean eigenvalue is that of all, times n / (n - 1)."""
    n, d = features.shape
    mean_eigenvalue = np.trace(np.cov(features.T, bias=True)) / d * n / (n - 1)
    scores = []
    for i in range(n):
        others = np.delete(features, i, axis=0)
        covariance = shrunk_covariance(others, shrinkage, mean_eigenvalue)
        differences = others - features[i]
        distances = np.einsum("id,de,ie->i", differences, np.linalg.inv(covariance), differences)
        scores.append(np.sort(distances)[:k].sum())
    return np.array(scores)


def test_rows_have_length_one_and_zeros_stay():
    features = np.random.default_rng(0).standard_normal((5000, 7)) * 10.0 ** np.arange(-2, 5)
    features[3] = 0
    normalised = l2_normalise(features)
    assert normalised.dtype == np.float32
    np.testing.assert_array_equal(normalised[3], 0)
    expected = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-300)
    np.testing.assert_allclose(normalised, expected, rtol=1e-7)  # float32 rounding is 6e-8
    one_by_one = np.concatenate([l2_normalise(row[None]) for row in features[:300]])
    np.testing.assert_array_equal(normalised[:300], one_by_one)


@pytest.mark.parametrize(
    ("features", "shrinkage"), [(correlated(6, 20, offset=1e3), 0), (np.eye(2), None)]
)
def test_without_shrinkage_directions_without_spread_are_dropped(features, shrinkage):
    # n images span n - 1 directions around their mean; Ledoit and Wolf do not shrink two images.
    whitening = Whitening(shrinkage).fit(features)
    whitened = whitening.transform(features)
    assert whitening.shrinkage_ == 0 and whitened.shape == (len(features), len(features) - 1)
    covariance = np.atleast_2d(np.cov(whitened.T, bias=True))
    np.testing.assert_allclose(covariance, np.eye(len(covariance)), atol=1e-5)


@settings(max_examples=30)
@given(spreads(), st.none() | st.floats(0.01, 1))
def test_distances_are_mahalanobis_with_the_shrunk_covariance(features, shrinkage):
    whitening = Whitening(shrinkage).fit(features)
    whitened, s = whitening.transform(features).astype(float), whitening.shrinkage_
    assert s == shrinkage or shrinkage is None
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-4)
    if s > 0:
        shrunk = shrunk_covariance(features, s)
        product = whitening.components_ @ whitening.components_.T @ shrunk
        np.testing.assert_allclose(product, np.eye(len(shrunk)), atol=1e-6)
        difference = features[0] - features[1]
        expected = difference @ np.linalg.solve(shrunk, difference)
        found = np.square(whitened[0] - whitened[1]).sum()
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("n, d", [(6, 20), (100, 20), (5000, 3)])
def test_default_shrinkage_is_that_of_ledoit_and_wolf(n, d):
    features = correlated(n, d, offset=5.0)
    assert Whitening().fit(features).shrinkage_ == pytest.approx(ledoit_wolf(features)[1])
    assert np.isfinite(Whitening().fit(features[:, :1]).transform(features[:, :1])).all()


def test_same_bits_for_any_batch():
    # One direction is ten million times as wide as the rest: rounding shows even in float32.
    rng = np.random.default_rng(0)
    wide = 1e7 * rng.standard_normal((200, 1)) * rng.standard_normal(33)
    features = rng.standard_normal((200, 33)) + wide
    whitening = Whitening(shrinkage=1e-15).fit(features)
    one_by_one = np.concatenate([whitening.transform(row[None]) for row in features])
    np.testing.assert_array_equal(whitening.transform(features), one_by_one)


@pytest.mark.parametrize(
    "features, shrinkage, message",
    [
        (np.full((50, 3), 0.1), None, "all 50 rows"),
        (np.eye(3), 1.5, "shrinkage=1.5"),
    ],
)
def test_features_that_cannot_be_whitened(features, shrinkage, message):
    with pytest.raises(ValueError, match=message):
        Whitening(shrinkage).fit(features)


def test_whitening_is_a_transformer():
    assert repr(clone(Whitening(0.5))) == "Whitening(shrinkage=0.5)"
    with pytest.raises(NotFittedError, match="call fit"):
        Whitening().transform(np.eye(3))
    with pytest.raises(ValueError, match="features have 4 dimensions: expected 3"):
        Whitening().fit(np.eye(3)).transform(np.eye(4))


@settings(max_examples=25)
@given(spreads(min_rows=5), st.floats(0.05, 1), st.integers(1, 3))
def test_leave_one_out_equals_fitting_again(features, shrinkage, k):
    whitening = Whitening(shrinkage).fit(features)
    found = whitened_leave_one_out_scores(whitening.transform(features), whitening, k)
    expected = leave_one_out_by_fitting_again(features, shrinkage, k)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("n, d, shrinkage", [(40, 8, 0), (300, 5, 0.5), (30, 50, 1)])
def test_leave_one_out_to_many_digits(n, d, shrinkage):
    features = correlated(n, d)
    whitening = Whitening(shrinkage).fit(features)
    found = whitened_leave_one_out_scores(whitening.transform(features), whitening)
    expected = leave_one_out_by_fitting_again(features, shrinkage, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # through float32


def test_leave_one_out_counts_duplicates_at_zero():
    features = correlated(30, 5)
    features[[7, 20]] = features[3]
    whitening = Whitening().fit(features)
    scores = whitened_leave_one_out_scores(whitening.transform(features), whitening)
    assert (scores[[3, 7, 20]] == 0).all() and np.count_nonzero(scores) == 27


def test_leave_one_out_needs_other_images():
    features = correlated(6, 20)
    whitening = Whitening().fit(features)
    with pytest.raises(ValueError, match="k=6: .*6 with one left out"):
        whitened_leave_one_out_scores(whitening.transform(features), whitening, 6)
    textbook = Whitening(shrinkage=0).fit(features)
    with pytest.raises(ValueError, match="expected a shrinkage above 0"):
        whitened_leave_one_out_scores(textbook.transform(features), textbook)


def test_threshold_from_left_out_images_holds_with_fewer_images_than_dimensions():
    # With images left out of the gallery alone nearly every new normal image would alarm.
    alarms = []
    for seed in range(25):
        features = correlated(160, 60, seed)
        whitening = Whitening().fit(features[:60])
        train, new = whitening.transform(features[:60]), whitening.transform(features[60:])
        threshold = threshold_at(whitened_leave_one_out_scores(train, whitening, 1), 0.1)
        distances = np.square(new[:, None] - train).sum(axis=2).min(axis=1)
        alarms.append((distances > threshold).mean())
    # floor(0.1 * 61) / 61 = 0.098; spread over training sets about 0.04, of 25 means 0.008.
    assert np.mean(alarms) == pytest.approx(0.098, abs=0.02)
