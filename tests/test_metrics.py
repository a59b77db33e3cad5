"""Metrics against their definitions, pair by pair, pixel by pixel, threshold by threshold."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pandalib.metrics import (
    bootstrap_interval,
    paired_interval,
    pixel_roc_auc,
    pro,
    pro_curve,
    regions,
    roc_auc,
    roc_curve,
    threshold_at,
)

# The same examples every time, and no limit on a single one: the machine may be busy.

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


@st.composite
def masked(draw):
    """Masks with both kinds of pixels, one image perhaps anomalous all over, and their maps."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)))
    masks = draw(arrays(np.uint8, shape, elements=st.integers(0, 1)))
    if shape[0] > 1 and draw(st.booleans()):
        masks[0] = 1
    assume(0 < masks.sum() < masks.size)
    values = st.integers(0, 3).map(float) | st.floats(-1e3, 1e3)
    return masks, draw(arrays(np.float64, shape, elements=values))


def pairs_in_order(labels, scores):
    """The share of pairs (anomalous, normal) in the right order, a tie counting one half."""
    pairs = list(product(scores[labels == 1], scores[labels == 0]))
    return sum((a > n) + 0.5 * (a == n) for a, n in pairs) / len(pairs)


def regions_by_flooding(masks):
    """The pixels of every region, by walking to neighbours at a side or a corner."""
    left, found = {tuple(pixel) for pixel in np.argwhere(masks)}, []
    while left:
        region = [left.pop()]
        for image, row, column in region:  # it grows while it is walked through
            near = {(image, row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            region += near
        found.append(sorted(region))
    return sorted(found)


def pro_by_definition(masks, maps, limit):
    """Area and corners (fpr, overlap), threshold by threshold, in fractions: no rounding at all."""
    found, normal = regions_by_flooding(masks), np.asarray(masks) == 0
    corners = [(Fraction(0), Fraction(0))]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        alarm = maps >= threshold
        inside = [sum(bool(alarm[pixel]) for pixel in region) for region in found]
        overlap = sum(Fraction(n, len(region)) for n, region in zip(inside, found)) / len(found)
        corners.append((Fraction(int(alarm[normal].sum()), int(normal.sum())), overlap))
    area, limit = Fraction(0), Fraction(limit)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:]):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            area += (end - x0) * (2 * y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return float(area / limit), corners


@given(labelled())
def test_auc_is_the_share_of_pairs_in_order(case):
    labels, scores = case
    assert roc_auc(labels, scores) == pairs_in_order(labels, scores)


@given(labelled())
def test_auc_is_a_matter_of_order(case):
    labels, scores = case
    auc = roc_auc(labels, scores)
    ranks = np.unique(scores, return_inverse=True)[1]
    for increasing in (ranks, 2 * ranks - 7, 3.0**ranks, np.arctan(ranks)):
        assert roc_auc(labels, increasing) == auc
    assert roc_auc(1 - labels, -scores) == auc  # the two kinds change places
    assert roc_auc(labels, -scores) == pytest.approx(1 - auc, abs=1e-15)
    assert roc_auc(labels[::-1], scores[::-1]) == auc


def test_auc_by_hand_and_of_any_kind_of_labels():
    # Pairs (anomalous, normal): 3 > 1, 3 = 3 counts one half, 2 > 1, 2 < 3: 2.5 of 4.
    whole, scores = [0, 0, 1, 1], [1.0, 3.0, 3.0, 2.0]
    for labels in (whole, np.array(whole, bool), np.array(whole, float), torch.tensor(whole) > 0):
        assert roc_auc(labels, scores) == 0.625
    assert roc_auc(whole, torch.tensor(scores, requires_grad=True)) == 0.625
    assert roc_auc([0, 1, 1, 0, 1], np.full(5, 0.1)) == 0.5
    assert roc_auc([0, 1], np.array([2**53, 2**53 + 1])) == 1.0  # too close for float64


@pytest.mark.parametrize("unit", [1, 100, 1e300])
def test_raw_distances_give_the_auc_of_scikit_learn(unit):
    rng = np.random.default_rng(0)
    labels = rng.random(501) < 0.3
    scores = unit + 0.001 * (rng.standard_normal(501) + labels)
    expected = sklearn.metrics.roc_auc_score(labels, scores)
    assert roc_auc(labels, scores) == pytest.approx(expected, abs=1e-12)  # its sum of trapezia


@given(labelled())
def test_every_corner_of_the_curve_by_its_threshold(case):
    labels, scores = case
    false_positive_rate, true_positive_rate, thresholds = roc_curve(labels, scores)
    assert thresholds.tolist() == [math.inf, *sorted(set(scores.tolist()), reverse=True)]
    for fpr, tpr, threshold in zip(false_positive_rate, true_positive_rate, thresholds):
        assert fpr == np.mean(scores[labels == 0] >= threshold)
        assert tpr == np.mean(scores[labels == 1] >= threshold)
    area = np.trapezoid(true_positive_rate, false_positive_rate)
    assert area == pytest.approx(roc_auc(labels, scores), abs=1e-12)


@pytest.mark.parametrize("function", [roc_auc, roc_curve, bootstrap_interval])
@pytest.mark.parametrize(
    "labels, scores, message",
    [
        ([0, 0], [1.0, 2.0], "labels are all normal"),
        ([True, True, True], [1.0, 2.0, 3.0], "labels are all anomalous"),
        ([0, 1, 1], [1.0, 2.0, -np.inf], "scores hold NaN or infinite"),
        ([0, 1], [1.0, 2.0, 3.0], r"labels \(2,\) and scores \(3,\)"),
        ([0, 1, 2], [1.0, 2.0, 3.0], "labels hold .*2.*: expected 0 .normal. or 1"),
        (["cat", "dog"], [1.0, 2.0], "labels hold .*cat"),
        ([[0], [1]], [[1.0], [2.0]], r"scores are float64 \(2, 1\).*\(n,\)"),
    ],
)
def test_labels_and_scores_that_cannot_be(function, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        function(labels, scores)


@settings(max_examples=25)
@given(labelled(max_size=12), st.integers(1, 30), st.floats(0.05, 0.95), st.integers(0, 5))
def test_the_bootstrap_draws_within_each_kind_and_takes_percentiles(case, n, level, seed):
    labels, scores = case
    seen = []

    def metric(drawn_labels, drawn_scores):
        np.testing.assert_array_equal(np.sort(drawn_labels), np.sort(labels))
        for kind in (0, 1):
            assert set(drawn_scores[drawn_labels == kind]) <= set(scores[labels == kind])
        seen.append(pairs_in_order(drawn_labels, drawn_scores))
        return seen[-1]

    options = dict(n_resamples=n, level=level, seed=seed)
    interval = bootstrap_interval(labels, scores, metric=metric, **options)
    assert len(seen) == n
    assert interval == bootstrap_interval(labels, scores, **options)
    assert interval == pytest.approx(np.percentile(seen, [50 - 50 * level, 50 + 50 * level]))


def test_bootstrap_defaults_and_seeds():
    rng = np.random.default_rng(0)
    labels, scores = np.arange(60) % 2, rng.standard_normal(60)
    default = bootstrap_interval(labels, scores)
    assert default == bootstrap_interval(labels, scores, n_resamples=1000, level=0.95, seed=0)
    assert default != bootstrap_interval(labels, scores, seed=1)
    assert bootstrap_interval([0, 0, 1, 1], [1.0, 2.0, 3.0, 4.0], n_resamples=20) == (1, 1)


def test_bootstrap_width_agrees_with_the_theory():
    # Hanley and McNeil (1982): the standard error of the AUC for exponential scores.
    labels = np.arange(600) % 2
    scores = np.random.default_rng(0).exponential(1 + 3 * labels)
    auc = roc_auc(labels, scores)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    error = np.sqrt((auc * (1 - auc) + 299 * (q1 + q2 - 2 * auc**2)) / 300**2)
    low, high = bootstrap_interval(labels, scores, level=0.9)
    # 10 %: 1000 resamples know a quantile's place to about 5 %.
    assert high - low == pytest.approx(2 * 1.645 * error, rel=0.1)
    wide_low, wide_high = bootstrap_interval(labels, scores, level=0.99)
    assert wide_low < low < auc < high < wide_high


def test_paired_interval_is_that_of_the_difference_on_the_same_resamples():
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2 == 1
    a = rng.standard_normal(80) + labels
    b = a + 0.3 * rng.standard_normal(80)
    both = np.arange(80)  # the metric is given image numbers in place of scores

    def difference(drawn, images):
        return roc_auc(drawn, a[images]) - roc_auc(drawn, b[images])

    options = dict(n_resamples=200, level=0.8, seed=3)
    expected = bootstrap_interval(labels, both, metric=difference, **options)
    assert paired_interval(labels, a, b, **options) == expected
    low, high = paired_interval(labels, a, b)
    assert (low, high) == paired_interval(labels, a, b, n_resamples=1000, level=0.95, seed=0)
    assert paired_interval(labels, b, a) == pytest.approx((-high, -low))
    assert paired_interval(labels, a, a, n_resamples=20) == (0, 0)
    widths = [np.ptp(bootstrap_interval(labels, scores)) for scores in (a, b)]
    assert high - low < 0.5 * max(widths)  # what is hard for both cancels
    with pytest.raises(ValueError, match="scores hold NaN"):
        paired_interval(labels, a, np.full(80, np.nan))
    for name, value in (("level", 1), ("level", 0), ("n_resamples", 0)):
        with pytest.raises(ValueError, match=f"{name}={value}: expected"):
            paired_interval(labels, a, b, **{name: value})


@pytest.mark.parametrize(
    "n, rate, rank",
    [
        (19, 0.05, 19),
        (39, 0.05, 38),
        (9, 0.7, 3),
        (9, 1 - 0.9, 9),
        (99, 0.29, 71),
        (1, 0.5, 1),
        (5000, 0.3, 3501),
    ],
)
def test_threshold_is_the_conformal_order_statistic(n, rate, rank):
    scores = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))  # the r-th smallest is r
    assert threshold_at(scores, rate) == threshold_at(torch.tensor(scores), rate) == rank


def test_thresholds_that_cannot_be():
    sentence = "at least 99 normal images; got 10.*rate of 0.091 or more"
    with pytest.raises(ValueError, match=sentence):
        threshold_at(np.arange(10), 0.01)
    assert threshold_at(np.arange(10), 0.091) == 9  # as suggested
    for rate in (0, 1, np.nan):
        with pytest.raises(ValueError, match="false_alarm_rate=.*between 0 and 1"):
            threshold_at(np.arange(100), rate)
    with pytest.raises(ValueError, match="rate of 0.1 or more"):
        threshold_at(np.arange(9), 0.01)
    with pytest.raises(
        ValueError, match=r"^normal_scores are float64 \(0,\): .* of shape \(n,\)\."
    ):
        threshold_at([], 0.5)
    with pytest.raises(ValueError, match="normal_scores"):
        threshold_at([1.0, np.nan], 0.5)


@given(st.lists(SCORES, min_size=2, max_size=40), st.integers(1, 199))
@example([1.0] * 19, 10)
def test_a_threshold_keeps_its_promise_whichever_score_came_last(scores, rate):
    """Of n + 1 exchangeable scores each is the new one with the same probability."""
    rate, n = rate / 200, len(scores)
    if rate * n < 1 - 1e-9:
        with pytest.raises(ValueError, match=f"at least {math.ceil(1 / rate - 1 - 1e-9)} normal"):
            threshold_at(scores[1:], rate)
        return
    others = [scores[:new] + scores[new + 1 :] for new in range(n)]
    alarms = sum(new > threshold_at(rest, rate) for new, rest in zip(scores, others))
    assert alarms <= rate * n + 1e-9
    if len(set(scores)) == n:  # it is not wasteful either: no lower threshold keeps the promise
        assert alarms == math.floor(rate * n + 1e-9)


@given(masked())
def test_pixel_auc_is_the_share_of_pairs_of_pixels_in_order(case):
    masks, maps = case
    assert pixel_roc_auc(masks, maps) == pairs_in_order(masks.ravel(), maps.ravel())


def test_pixel_auc_of_millions_of_pixels_stays_whole():
    # The number of pairs, 4e12, is past the range of int32 and of float32's whole numbers.
    masks = np.zeros((1, 2000, 2000), bool)
    masks[:, :1000] = True
    maps = masks.astype(np.float32)
    maps[0, 0, 0] = -1  # one anomalous pixel below every normal one
    assert pixel_roc_auc(masks, maps) == 1 - 1 / 2_000_000


@given(masked())
def test_regions_are_those_that_a_flood_finds(case):
    masks, _ = case
    labels = regions(masks)
    assert labels.dtype == np.int32 and ((labels == 0) == (masks == 0)).all()
    numbers = range(1, labels.max() + 1)
    found = [[tuple(map(int, pixel)) for pixel in np.argwhere(labels == n)] for n in numbers]
    expected = [[tuple(map(int, pixel)) for pixel in r] for r in regions_by_flooding(masks)]
    assert sorted(found) == expected


def test_pro_of_a_small_example_by_hand():
    # Two regions, of one and of two pixels, and nine normal pixels. From the top: 9 (region 2,
    # half), 8 (normal), 7 (region 1), 6 (normal), 5 (region 2, rest), 4, 3.
    masks = [[[1, 0, 1], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]]
    maps = [[[7, 8, 9], [6, 4, 5]], [[3, 3, 3], [3, 3, 3]]]
    false_positive_rate, overlap, thresholds = pro_curve(masks, maps)
    np.testing.assert_array_equal(thresholds, [np.inf, 9, 8, 7, 6, 5, 4, 3])
    np.testing.assert_allclose(false_positive_rate, np.array([0, 0, 1, 1, 2, 2, 3, 9]) / 9)
    np.testing.assert_allclose(overlap, [0, 0.25, 0.25, 0.75, 0.75, 1, 1, 1])
    # Up to 2.5 of 9 normal pixels: 1 x 0.25 + 1 x 0.75 + 0.5 x 1.
    assert pro(masks, maps, limit=2.5 / 9) == pytest.approx(1.5 / 2.5, abs=1e-15)


@given(masked(), st.sampled_from([1e-6, 0.05, 0.3, 1.0]) | st.floats(0.01, 1))
def test_pro_is_the_area_threshold_by_threshold(case, limit):
    masks, maps = case
    expected, corners = pro_by_definition(masks, maps, limit)
    assert pro(masks, maps, limit=limit) == pytest.approx(expected, abs=1e-9)
    false_positive_rate, overlap, thresholds = pro_curve(masks, maps)
    found = np.stack([false_positive_rate, overlap], axis=1)
    np.testing.assert_allclose(found, np.array(corners, float), atol=1e-12)
    assert false_positive_rate[-1] == overlap[-1] == 1.0
    assert thresholds.tolist() == [math.inf, *sorted(set(maps.ravel().tolist()), reverse=True)]


@given(masked())
def test_pixel_metrics_are_a_matter_of_order(case):
    masks, maps = case
    found = pro(masks, maps), pixel_roc_auc(masks, maps)
    ranks = np.unique(maps, return_inverse=True)[1].reshape(maps.shape)
    for increasing in (ranks, 3.0**ranks - 5):
        assert (pro(masks, increasing), pixel_roc_auc(masks, increasing)) == found
    for other in (np.s_[::-1], np.s_[:, ::-1], np.s_[:, :, ::-1]):  # images, rows, columns
        assert (pro(masks[other], maps[other]), pixel_roc_auc(masks[other], maps[other])) == found


@given(masked(), st.sampled_from([1.0, 0.3, 1 / 3, 1e-12]))
def test_perfect_inverted_and_constant_maps(case, limit):
    masks, maps = case
    for perfect in (masks, np.tanh(maps) + 4 * masks):  # in one step, or in many
        assert pro(masks, perfect, limit=limit) == 1 == pixel_roc_auc(masks, perfect)
    inverted = np.tanh(maps) - 4.0 * masks
    assert pro(masks, inverted, limit=limit) == 0 == pixel_roc_auc(masks, inverted)
    constant = np.full(masks.shape, 0.1)
    assert pixel_roc_auc(masks, constant) == 0.5
    assert pro(masks, constant, limit=limit) == pytest.approx(limit / 2, rel=1e-12)


def test_a_region_weighs_the_same_whatever_its_size_and_the_default_limit_is_30_percent():
    # One large defect and twenty of one pixel: one kind is found, the other missed.
    masks = np.zeros((2, 100, 100), bool)
    large, small = np.zeros_like(masks), np.zeros_like(masks)
    large[0, 20:80, 20:80] = small[1, ::20, ::25] = True
    masks = large | small
    noise = np.random.default_rng(0).random(masks.shape)
    for found, auc, overlap in ((large, 0.995, 1 / 21), (small, 0.005, 20 / 21)):
        maps = np.where(found, 2, np.where(masks, -1, noise))
        assert pixel_roc_auc(masks, maps) == pytest.approx(auc, abs=0.005)
        assert pro(masks, maps) == pytest.approx(overlap, abs=1e-12)
    assert pro(masks, noise) == pro(masks, noise, limit=0.3) != pro(masks, noise, limit=0.2)


def test_thousands_of_regions_add_up_without_error():
    rng = np.random.default_rng(0)
    masks = rng.random((3, 300, 300)) < 0.05
    maps = rng.random(masks.shape, dtype=np.float32)
    false_positive_rate, overlap, thresholds = pro_curve(masks, maps)
    assert pro(masks, maps, limit=1) == pytest.approx(np.trapezoid(overlap, false_positive_rate))
    # The last pixel's part is not lost among a quarter of a million additions.
    lowest = np.unravel_index(np.argmin(np.where(masks, maps, 2)), masks.shape)
    labels = regions(masks)
    part = 1 / np.count_nonzero(labels == labels[lowest]) / labels.max()
    before = overlap[thresholds > maps[lowest]][-1]
    assert 1 - before == pytest.approx(part, abs=1e-12)


MASKS = np.zeros((2, 2, 3), int)
MASKS[0, 0, 0] = 1
MAPS = np.arange(12.0).reshape(2, 2, 3)


@pytest.mark.parametrize("function", [pro, pro_curve, pixel_roc_auc])
@pytest.mark.parametrize(
    "masks, maps, message",
    [
        (MASKS, np.where(MAPS > 10, np.nan, MAPS), "maps hold NaN or infinite"),
        (MASKS[0], MAPS[0], r"maps are float64 \(2, 3\).*\(n, H, W\)"),
        (MASKS, MAPS[:1], r"masks \(2, 2, 3\) and maps \(1, 2, 3\)"),
        (MASKS * 255, MAPS, "masks hold .*255"),
        (MASKS * 0, MAPS, "masks are all normal"),
        (MASKS * 0 + 1, MAPS, "masks are all anomalous"),
    ],
)
def test_masks_and_maps_that_cannot_be(function, masks, maps, message):
    with pytest.raises(ValueError, match=message):
        function(masks, maps)
    for limit in (0, 1.0001, np.nan):
        with pytest.raises(ValueError, match="limit=.*between 0 and 1"):
            pro(MASKS, MAPS, limit=limit)
    assert not regions(MASKS * 0).any()  # normal images alone are not an error here
    with pytest.raises(ValueError, match="^masks hold 255"):
        regions(MASKS * 255)
    with pytest.raises(
        ValueError, match=r"^maps are .*: expected real numbers of shape \(n, H, W\)\."
    ):
        function(MASKS, MAPS[0])
    with pytest.raises(ValueError, match=r"masks are of shape \(2, 3\)"):
        regions(MASKS[0])


def test_types_of_maps_and_masks():
    maps = np.round(np.random.default_rng(0).random(MASKS.shape) * 50)
    expected = pro(MASKS, maps), pixel_roc_auc(MASKS, maps)
    for dtype in (np.int8, np.float16, ">f4"):
        assert (
            pro(MASKS, maps.astype(dtype)),
            pixel_roc_auc(MASKS, maps.astype(dtype)),
        ) == expected
    tensor = torch.tensor(maps, dtype=torch.bfloat16, requires_grad=True)
    assert pro(torch.tensor(MASKS), tensor) == pro(MASKS.tolist(), maps.tolist()) == expected[0]
