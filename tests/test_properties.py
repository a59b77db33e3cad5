"""What holds for any input, tried on inputs that hypothesis looks for: metrics and nearest neighbours against brute force.

The definitions here are written out pair by pair, pixel by pixel and threshold by threshold; none is taken from the library.
"""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pandalib.methods.diagnostics import effective_rank, feature_variance
from pandalib.methods.panda import hold_out, sample_wise_scores
from pandalib.validation import l2_normalise
from pandalib.methods.knn import (
    KNN,
    knn_scores,
    leave_one_out_scores,
    nearest_others,
    squared_distances,
)
from pandalib.metrics import bootstrap_interval, roc_auc, roc_curve, threshold_at
from pandalib.pixel_metrics import pixel_roc_auc, pro, pro_curve, regions
from pandalib.methods.whitening import Whitening, whitened_leave_one_out_scores

# The same examples every time, and no limit on a single one: the machine may be busy.
settings.register_profile("same", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("same")

# Few different values make many ties; the others any float64, near and far apart.
SCORES = (
    st.integers(-3, 3).map(float)
    | st.floats(-1e6, 1e6)
    | st.sampled_from([1e300, -1e300, 5e-324, 1.0, 1.0 + 2**-52])
)


@st.composite
def labelled(draw, max_size=25):
    """Labels of both kinds with scores."""
    scores = draw(st.lists(SCORES, min_size=2, max_size=max_size))
    labels = draw(st.lists(st.integers(0, 1), min_size=len(scores), max_size=len(scores)))
    assume(0 < sum(labels) < len(labels))
    return np.array(labels), np.array(scores)


def pairs_in_order(labels, scores):
    """The share of pairs (anomalous, normal) in the right order, a tie counting one half."""
    pairs = [
        1.0 if a > n else 0.5 if a == n else 0.0
        for a, n in product(scores[labels == 1], scores[labels == 0])
    ]
    return sum(pairs) / len(pairs)


@given(labelled())
def test_auc_is_the_share_of_pairs_in_order(case):
    labels, scores = case
    assert roc_auc(labels, scores) == pairs_in_order(labels, scores)


@given(labelled())
def test_auc_is_a_matter_of_order(case):
    labels, scores = case
    ranks = np.unique(scores, return_inverse=True)[
        1
    ]  # any strictly increasing map does the same to the order
    for increasing in (ranks, 2 * ranks - 7, 3.0**ranks, np.arctan(ranks)):
        assert roc_auc(labels, increasing) == roc_auc(labels, scores)
    assert roc_auc(1 - labels, -scores) == roc_auc(labels, scores)  # the two kinds change places
    assert roc_auc(labels, -scores) == pytest.approx(1 - roc_auc(labels, scores), abs=1e-15)
    assert roc_auc(labels[::-1], scores[::-1]) == roc_auc(labels, scores)
    assert roc_auc(np.tile(labels, 3), np.tile(scores, 3)) == pytest.approx(
        roc_auc(labels, scores), abs=1e-15
    )


@given(labelled())
def test_every_corner_of_the_curve_by_its_threshold(case):
    labels, scores = case
    false_positive_rate, true_positive_rate, thresholds = roc_curve(labels, scores)
    assert thresholds.tolist() == [math.inf, *sorted(set(scores.tolist()), reverse=True)]
    for fpr, tpr, threshold in zip(false_positive_rate, true_positive_rate, thresholds):
        assert fpr == np.mean(scores[labels == 0] >= threshold) and tpr == np.mean(
            scores[labels == 1] >= threshold
        )
    assert np.trapezoid(true_positive_rate, false_positive_rate) == pytest.approx(
        roc_auc(labels, scores), abs=1e-12
    )


@settings(max_examples=25)
@given(labelled(max_size=12), st.integers(1, 30), st.floats(0.05, 0.95), st.integers(0, 5))
def test_a_bootstrap_interval_lies_within_what_the_metric_can_be(case, n_resamples, level, seed):
    labels, scores = case
    seen = []

    def metric(drawn_labels, drawn_scores):
        assert (
            np.bincount(drawn_labels, minlength=2).tolist()
            == np.bincount(labels, minlength=2).tolist()
        )
        for kind in (0, 1):
            assert set(drawn_scores[drawn_labels == kind]) <= set(scores[labels == kind])
        seen.append(pairs_in_order(drawn_labels, drawn_scores))
        return seen[-1]

    low, high = bootstrap_interval(
        labels, scores, metric=metric, n_resamples=n_resamples, level=level, seed=seed
    )
    assert len(seen) == n_resamples and min(seen) <= low <= high <= max(seen)
    assert (low, high) == bootstrap_interval(
        labels, scores, n_resamples=n_resamples, level=level, seed=seed
    )
    # The share of resampled values inside is the level, to within one value at either end.
    inside = sum(low <= value <= high for value in seen)
    assert inside >= level * n_resamples - 2
    assert (
        sum(value < low for value in seen)
        <= (1 - level) / 2 * n_resamples + 1
        >= sum(value > high for value in seen)
    )


@given(st.lists(SCORES, min_size=1, max_size=40), st.integers(1, 199))
@example([1.0] * 19, 10)
def test_a_threshold_keeps_its_promise_whichever_score_came_last(scores, rate):
    """Of n + 1 exchangeable scores each is the new one with the same probability: count how often it alarms."""
    rate /= 200
    alarms, too_few = 0, 0
    for new in range(len(scores)):
        others = scores[:new] + scores[new + 1 :]
        try:
            alarms += scores[new] > threshold_at(others, rate) if others else 0
        except ValueError as error:
            assert (
                f"needs at least {math.ceil(200 / (200 * rate) - 1 - 1e-9)} normal images; got {len(others)}"
                in str(error)
            )
            too_few += 1
    assert alarms <= rate * len(scores) + 1e-9
    assert too_few == (len(scores) if len(scores) > 1 and rate * len(scores) < 1 - 1e-9 else 0)
    if (
        too_few == 0 and len(scores) > 1 and len(set(scores)) == len(scores)
    ):  # and it is not wasteful: no lower threshold keeps it
        assert alarms == math.floor(rate * len(scores) + 1e-9)


@st.composite
def masked(draw):
    """Masks with anomalous and normal pixels, and maps with few or many values; one image may be anomalous all over."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)))
    masks = draw(arrays(np.uint8, shape, elements=st.integers(0, 1)))
    if shape[0] > 1 and draw(st.booleans()):
        masks[0] = 1
    assume(0 < masks.sum() < masks.size)
    maps = draw(
        arrays(np.float64, shape, elements=st.integers(0, 3).map(float) | st.floats(-1e3, 1e3))
    )
    return masks, maps


def regions_by_flooding(masks):
    """Lists of pixels (image, row, column) that touch at a side or a corner."""
    left, found = {tuple(pixel) for pixel in np.argwhere(masks)}, []
    while left:
        region = [left.pop()]
        for image, row, column in region:  # it grows while it is walked through
            near = {(image, row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            region += near
        found.append(sorted(region))
    return sorted(found)


def pro_by_thresholds(masks, maps, limit):
    """The area under the mean overlap, threshold by threshold, linear in between; divided by the limit."""
    found = regions_by_flooding(masks)
    corners = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel()), reverse=True):
        overlap = np.mean(
            [np.mean([maps[pixel] >= threshold for pixel in region]) for region in found]
        )
        corners.append((np.mean(maps[masks == 0] >= threshold), overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in zip(corners, corners[1:]):
        if x1 > x0 and x0 < limit:
            end = min(x1, limit)
            area += (end - x0) * (y0 + (y0 + (y1 - y0) * (end - x0) / (x1 - x0))) / 2
    return area / limit, corners


@given(masked())
def test_pixel_auc_is_the_share_of_pairs_of_pixels_in_order(case):
    masks, maps = case
    assert pixel_roc_auc(masks, maps) == pairs_in_order(masks.ravel(), maps.ravel())


@given(masked())
def test_regions_are_those_that_a_flood_finds(case):
    masks, _ = case
    labels = regions(masks)
    found = [
        sorted(map(tuple, np.argwhere(labels == number).tolist()))
        for number in range(1, labels.max() + 1)
    ]
    assert sorted(found) == [
        [tuple(map(int, pixel)) for pixel in region] for region in regions_by_flooding(masks)
    ]
    assert ((labels == 0) == (masks == 0)).all()


@given(masked(), st.sampled_from([0.05, 0.3, 0.5, 1.0]) | st.floats(0.01, 1))
def test_pro_is_the_area_threshold_by_threshold(case, limit):
    masks, maps = case
    expected, corners = pro_by_thresholds(masks, maps, limit)
    assert pro(masks, maps, limit=limit) == pytest.approx(expected, abs=1e-9)
    false_positive_rate, overlap, thresholds = pro_curve(masks, maps)
    np.testing.assert_allclose(
        np.stack([false_positive_rate, overlap], axis=1), corners, atol=1e-12
    )
    assert thresholds.tolist() == [math.inf, *sorted(set(maps.ravel().tolist()), reverse=True)]


@given(masked())
def test_pixel_metrics_are_a_matter_of_order(case):
    masks, maps = case
    ranks = np.unique(maps, return_inverse=True)[1].reshape(maps.shape)
    for increasing in (ranks, 3.0**ranks - 5):
        assert pixel_roc_auc(masks, increasing) == pixel_roc_auc(masks, maps) and pro(
            masks, increasing
        ) == pro(masks, maps)
    assert pro(masks, masks) == 1 == pixel_roc_auc(masks, masks)
    assert pro(masks, np.zeros(masks.shape)) == pytest.approx(
        0.15
    )  # of one step from (0, 0) to (1, 1), up to 0.3
    for other in (
        np.s_[::-1],
        np.s_[:, ::-1],
        np.s_[:, :, ::-1],
    ):  # images, rows and columns in another order
        assert pro(masks[other], maps[other]) == pro(masks, maps)


@st.composite
def galleries(draw, min_rows=2, max_rows=14, max_queries=6):
    """Gallery, queries and k: duplicates, one dimension, k = n, and a common offset of a thousand are all drawn often."""
    d = draw(st.sampled_from([1, 1, 2, 3, 17]))
    n, m = draw(st.integers(min_rows, max_rows)), draw(st.integers(1, max_queries))
    # Eighths, so that float32 holds them beside 1000 and distances are exact in float64.
    values = st.integers(-2, 2).map(float) | st.integers(-64, 64).map(lambda i: i / 8)
    rows = draw(arrays(np.float32, (n + m, d), elements=values.map(np.float32)))
    if draw(st.booleans()):  # some rows are others once more
        rows = rows[draw(st.lists(st.integers(0, n + m - 1), min_size=n + m, max_size=n + m))]
    rows = rows + np.float32(draw(st.sampled_from([0, 0, 1000, -1024])))
    return rows[:n], rows[n:], draw(st.integers(1, n))


def neighbours(gallery, query, left_out=None):
    """All gallery rows as (squared distance, index), nearest first and lower index first; without `left_out`."""
    return sorted(
        (sum((float(a) - float(b)) ** 2 for a, b in zip(row, query)), i)
        for i, row in enumerate(gallery)
        if i != left_out
    )


@given(galleries())
def test_neighbours_are_those_of_brute_force(case):
    gallery, queries, k = case
    expected = [neighbours(gallery, query)[:k] for query in queries]
    distances, indices = squared_distances(gallery, queries, k)
    np.testing.assert_allclose(
        distances, [[distance for distance, _ in row] for row in expected], rtol=1e-7
    )
    scores = knn_scores(gallery, queries, k)
    np.testing.assert_allclose(
        scores, [sum(distance for distance, _ in row) for row in expected], rtol=1e-6
    )
    np.testing.assert_array_equal(KNN(k).fit(gallery).score(queries), scores)
    if len(gallery) <= k + 8:  # every row is a candidate: then ties are told apart by index
        assert indices.tolist() == [[index for _, index in row] for row in expected]
    for query, row, found in zip(queries, indices, distances):
        assert len(set(row)) == k
        np.testing.assert_allclose(
            np.square(gallery[row].astype(float) - query).sum(axis=1), found, rtol=1e-7
        )


@given(galleries())
def test_leaving_one_out_is_brute_force_without_that_row(case):
    gallery, _, k = case
    k = min(k, len(gallery) - 1)
    expected = [neighbours(gallery, row, left_out=i)[:k] for i, row in enumerate(gallery)]
    sums = [sum(distance for distance, _ in row) for row in expected]
    np.testing.assert_allclose(leave_one_out_scores(gallery, k), sums, rtol=1e-6)
    np.testing.assert_array_equal(
        KNN(k).fit(gallery).leave_one_out(), leave_one_out_scores(gallery, k)
    )
    # The same as a gallery that never had the row, one by one.
    np.testing.assert_allclose(
        [
            knn_scores(np.delete(gallery, i, axis=0), gallery[[i]], k)[0]
            for i in range(len(gallery))
        ],
        sums,
        rtol=1e-6,
    )
    others = nearest_others(gallery, k)
    assert (
        others.shape == (len(gallery), k) and not (others == np.arange(len(gallery))[:, None]).any()
    )
    if len(gallery) <= k + 9:
        assert others.tolist() == [[index for _, index in row] for row in expected]


@given(galleries(), st.permutations(range(6)))
def test_the_order_of_queries_and_gallery_does_not_matter(case, order):
    gallery, queries, k = case
    order = [i for i in order if i < len(queries)]
    scores = knn_scores(gallery, queries, k)
    np.testing.assert_array_equal(knn_scores(gallery, queries[order], k), scores[order])
    np.testing.assert_allclose(knn_scores(gallery[::-1], queries, k), scores, rtol=1e-6)


@given(galleries(), st.integers(-8, 8))
def test_scores_grow_with_the_square_of_the_scale_and_with_k(case, power):
    gallery, queries, k = case
    scale = np.float32(2.0**power)
    np.testing.assert_allclose(
        knn_scores(gallery * scale, queries * scale, k),
        knn_scores(gallery, queries, k) * float(scale) ** 2,
        rtol=1e-6,
    )
    if k > 1:
        assert (knn_scores(gallery, queries, k) >= knn_scores(gallery, queries, k - 1)).all()
    np.testing.assert_array_equal(knn_scores(gallery, gallery, 1), 0)


@given(galleries())
def test_directions_have_length_one(case):
    rows, _, _ = case
    lengths = np.linalg.norm(rows.astype(float), axis=1)
    expected = rows / np.where(lengths > 0, lengths, 1)[:, None]
    np.testing.assert_allclose(l2_normalise(rows), expected, rtol=1e-6, atol=1e-7)


@st.composite
def spreads(draw, min_rows=3):
    """Features with a spread in every direction: rows of a seeded normal distribution, mixed and moved."""
    n, d = draw(st.integers(min_rows, 30)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    scale = 10.0 ** rng.uniform(-1, 1, size=d)
    return rng.normal(size=(n, d)) * scale @ np.linalg.qr(rng.normal(size=(d, d)))[0] + draw(
        st.sampled_from([0.0, 1000.0])
    )


@settings(max_examples=30)
@given(spreads(), st.none() | st.floats(0.01, 1))
def test_whitened_features_have_the_spread_that_shrinkage_leaves(features, shrinkage):
    whitening = Whitening(shrinkage).fit(features)
    whitened, s = whitening.transform(features).astype(float), whitening.shrinkage_
    assert 0 <= s <= 1 and (shrinkage is None or s == shrinkage)
    eigenvalues = np.linalg.eigvalsh(
        np.cov(features.T, bias=True).reshape(features.shape[1], -1)
    ).clip(0)
    expected = eigenvalues / ((1 - s) * eigenvalues + s * eigenvalues.mean())
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-4)
    covariance = (whitened.T @ whitened) / len(whitened)
    if s > 0:
        np.testing.assert_allclose(
            np.linalg.eigvalsh(covariance), np.sort(expected), atol=1e-3, rtol=1e-3
        )
        # Euclidean distance after whitening is Mahalanobis distance with the shrunk covariance.
        shrunk = (1 - s) * np.cov(features.T, bias=True).reshape(
            features.shape[1], -1
        ) + s * eigenvalues.mean() * np.eye(features.shape[1])
        difference = features[0] - features[1]
        assert np.square(whitened[0] - whitened[1]).sum() == pytest.approx(
            difference @ np.linalg.solve(shrunk, difference), rel=1e-3, abs=1e-6
        )


@settings(max_examples=25)
@given(spreads(min_rows=5), st.floats(0.05, 1), st.integers(1, 3))
def test_whitened_leave_one_out_is_a_refit_without_the_image(features, shrinkage, k):
    """By the definition: covariance of the others, shrunk towards the mean eigenvalue of all, times n / (n - 1)."""
    n, d = features.shape
    whitening = Whitening(shrinkage).fit(features)
    found = whitened_leave_one_out_scores(whitening.transform(features), whitening, k)
    mean_eigenvalue = np.trace(np.cov(features.T, bias=True).reshape(d, d)) / d * n / (n - 1)
    for i in range(n):
        others = np.delete(features, i, axis=0)
        shrunk = (1 - shrinkage) * np.cov(others.T, bias=True).reshape(
            d, d
        ) + shrinkage * mean_eigenvalue * np.eye(d)
        distances = sorted(
            float((row - features[i]) @ np.linalg.solve(shrunk, row - features[i]))
            for row in others
        )
        assert found[i] == pytest.approx(sum(distances[:k]), rel=1e-2, abs=1e-4)


@given(spreads())
def test_rank_and_variance_see_neither_a_turn_nor_a_shift(features):
    n, d = features.shape
    rank, variance = effective_rank(features), feature_variance(features)
    assert 1 - 1e-9 <= rank <= min(n - 1, d) + 1e-6
    assert variance == pytest.approx(
        np.mean([np.mean((column - sum(column) / n) ** 2) for column in features.T])
    )
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0]
    assert effective_rank(features @ turn - 3) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(7 * features) == pytest.approx(rank, rel=1e-6)
    assert feature_variance(7 * (features @ turn - 3)) == pytest.approx(49 * variance, rel=1e-6)
    share = np.linalg.svd(features - features.mean(axis=0), compute_uv=False) ** 2
    share = share[share > 1e-12 * share.max()] / share.sum()
    assert rank == pytest.approx(
        math.prod(p**-p for p in share), rel=1e-6
    )  # exp of the entropy, written as a product


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.data())
def test_sample_wise_takes_the_largest_ratio(n_checkpoints, n, m, data):
    test = data.draw(
        arrays(
            np.float64,
            (n_checkpoints, n),
            elements=st.integers(0, 3).map(float) | st.floats(0, 1e6),
        )
    )
    held_out = data.draw(arrays(np.float64, (n_checkpoints, m), elements=st.floats(0.1, 1e6)))
    scores, chosen = sample_wise_scores(test, held_out)
    levels = held_out.mean(axis=1)
    for image in range(n):
        ratios = [test[t, image] / levels[t] for t in range(n_checkpoints)]
        assert scores[image] == max(ratios) and chosen[image] == ratios.index(max(ratios))
    # Another unit at every checkpoint (both kinds of images alike) changes nothing but rounding; powers of two not even that.
    units = 2.0 ** np.arange(n_checkpoints)[:, None]
    again, same = sample_wise_scores(test * units, held_out * units)
    np.testing.assert_array_equal(again, scores)
    np.testing.assert_array_equal(same, chosen)


@given(st.integers(4, 200), st.floats(0, 1), st.integers(0, 3))
def test_hold_out_splits(n, share, seed):
    n_held_out = round(n * share)
    if min(n_held_out, n - n_held_out) < 2:
        with pytest.raises(ValueError, match="expected at least 2 images in either part"):
            hold_out(n, share, seed)
        return
    train, held_out = hold_out(n, share, seed)
    assert len(held_out) == n_held_out and sorted([*train, *held_out]) == list(range(n))
    assert list(train) == sorted(train) and list(held_out) == sorted(held_out)
