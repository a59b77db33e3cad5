import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.exceptions import NotFittedError

from pandalib.metrics import threshold_at
from pandalib.methods.whitening import Whitening, whitened_leave_one_out_scores


def correlated(n, d, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + offset


def leave_one_out_by_fitting_again(features, shrinkage, k):
    """The definition: covariance of the others, inverted; the mean eigenvalue is that of all, times n / (n - 1)."""
    n, d = features.shape
    mean_eigenvalue = np.trace(np.cov(features.T, bias=True)) / d * n / (n - 1)
    scores = []
    for i in range(n):
        others = np.delete(features, i, axis=0)
        covariance = (1 - shrinkage) * np.cov(
            others.T, bias=True
        ) + shrinkage * mean_eigenvalue * np.eye(d)
        differences = others - features[i]
        distances = np.einsum("id,de,ie->i", differences, np.linalg.inv(covariance), differences)
        scores.append(np.sort(distances)[:k].sum())
    return np.array(scores)


@pytest.mark.parametrize("offset", [0, 1e3])
def test_whitened_features_have_unit_covariance(offset):
    features = correlated(400, 12, offset=offset)
    whitened = Whitening(shrinkage=0).fit(features).transform(features)
    assert whitened.shape == (400, 12) and whitened.dtype == np.float32
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(12), atol=1e-5)


def test_textbook_whitening_drops_directions_without_spread():
    features = correlated(6, 20)
    whitened = Whitening(shrinkage=0).fit(features).transform(features)
    assert whitened.shape == (6, 5)  # six images span five directions around their mean
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(5), atol=1e-5)


@pytest.mark.parametrize("n", [6, 100])
def test_shrunk_whitening_is_the_inverse_of_the_shrunk_covariance(n):
    features = correlated(n, 20)
    whitening = Whitening(shrinkage=0.3).fit(features)
    covariance = np.cov(features.T, bias=True)
    shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / 20 * np.eye(20)
    np.testing.assert_allclose(
        whitening.components_ @ whitening.components_.T @ shrunk, np.eye(20), atol=1e-10
    )


@pytest.mark.parametrize("n, d", [(6, 20), (100, 20), (5000, 3), (4, 1)])
def test_default_shrinkage_is_that_of_ledoit_and_wolf(n, d):
    features = correlated(n, d, offset=5.0)
    if d > 1:  # in one dimension there is nothing to shrink towards, and any share gives the same
        assert Whitening().fit(features).shrinkage_ == pytest.approx(
            ledoit_wolf(features)[1], rel=1e-9
        )
    assert np.isfinite(Whitening().fit(features).transform(features)).all()


def test_same_bits_for_any_batch():
    # One direction is ten million times as wide as the rest, so large terms cancel and rounding shows even in float32.
    rng = np.random.default_rng(0)
    features = rng.standard_normal((200, 33)) + 1e7 * rng.standard_normal(
        (200, 1)
    ) * rng.standard_normal(33)
    whitening = Whitening(shrinkage=1e-15).fit(features)
    one_by_one = np.concatenate([whitening.transform(row[None]) for row in features])
    np.testing.assert_array_equal(whitening.transform(features), one_by_one)


@pytest.mark.parametrize(
    "features, shrinkage, message",
    [
        (np.ones((1, 3)), None, "at least 2 images.*got 1"),
        (np.full((50, 3), 0.1), None, "all 50 rows of features are identical"),
        (np.eye(3), 1.5, "between 0 and 1, or be None; got 1.5"),
        (np.array([[1.0, np.nan], [1, 1]]), None, "1 NaN"),
    ],
)
def test_fit_names_what_is_wrong(features, shrinkage, message):
    with pytest.raises(ValueError, match=message):
        Whitening(shrinkage).fit(features)


def test_transform_names_what_is_wrong():
    with pytest.raises(NotFittedError, match="call fit"):
        Whitening().transform(np.eye(3))
    with pytest.raises(ValueError, match="fitted on 3-dimensional features; got 4"):
        Whitening().fit(np.eye(3)).transform(np.eye(4))


@pytest.mark.parametrize(
    "n, d, shrinkage", [(40, 8, 0), (40, 8, 0.1), (30, 50, 0.2), (300, 5, 0.5), (30, 50, 1)]
)
@pytest.mark.parametrize("k", [1, 3])
def test_leave_one_out_equals_fitting_again(n, d, shrinkage, k):
    features = correlated(n, d)
    whitening = Whitening(shrinkage).fit(features)
    scores = whitened_leave_one_out_scores(
        whitening.transform(features), whitening, k
    )  # through float32
    np.testing.assert_allclose(
        scores, leave_one_out_by_fitting_again(features, shrinkage, k), rtol=1e-5
    )


def test_leave_one_out_counts_duplicates_at_zero():
    features = correlated(30, 5)
    features[[7, 20]] = features[3]
    whitening = Whitening().fit(features)
    scores = whitened_leave_one_out_scores(whitening.transform(features), whitening, 2)
    assert (scores[[3, 7, 20]] == 0).all() and np.count_nonzero(scores) == 27


def test_leave_one_out_needs_other_images():
    features = correlated(6, 20)
    whitening = Whitening().fit(features)
    whitened = whitening.transform(features)
    with pytest.raises(ValueError, match=r"k = 6 .* holds 6 images \(5 with one left out\)"):
        whitened_leave_one_out_scores(whitened, whitening, 6)
    textbook = Whitening(shrinkage=0).fit(features)
    with pytest.raises(ValueError, match="use a shrinkage above 0"):
        whitened_leave_one_out_scores(textbook.transform(features), textbook)


def test_threshold_from_left_out_images_holds_with_fewer_images_than_dimensions():
    # Leaving images out of the gallery but not out of the whitening would let nearly every new normal image alarm.
    alarms = []
    for seed in range(25):
        features = correlated(160, 60, seed)
        whitening = Whitening().fit(features[:60])
        train, new = whitening.transform(features[:60]), whitening.transform(features[60:])
        threshold = threshold_at(whitened_leave_one_out_scores(train, whitening, 1), 0.1)
        distances = np.square(new[:, None] - train).sum(axis=2).min(axis=1)
        alarms.append((distances > threshold).mean())
    # floor(0.1 * 61) / 61 = 0.098; spread over training sets about 0.04, so the mean of 25 is known to 0.008.
    assert np.mean(alarms) == pytest.approx(0.098, abs=0.02)
