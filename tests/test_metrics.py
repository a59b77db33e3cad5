import numpy as np
import pytest
import sklearn.metrics
import torch

from pandalib.metrics import bootstrap_interval, roc_auc, roc_curve, threshold_at


def auc_by_counting_pairs(labels, scores):
    pairs = [(a > n) + 0.5 * (a == n) for a in scores[labels == 1] for n in scores[labels == 0]]
    return sum(pairs) / len(pairs)


def test_auc_of_a_small_example_by_hand():
    # Pairs (anomalous, normal): 3>1, 3=3 counts one half, 2>1, 2<3: 2.5 of 4.
    assert roc_auc([0, 0, 1, 1], [1.0, 3.0, 3.0, 2.0]) == 0.625


@pytest.mark.parametrize(
    "make_scores",
    [
        lambda rng, y: rng.standard_normal(len(y)) + y,
        lambda rng, y: (100 + 0.001 * (rng.standard_normal(len(y)) + y)).astype(
            np.float32
        ),  # raw distances
        lambda rng, y: rng.integers(0, 4, len(y)) + y,  # many ties, whole numbers
        lambda rng, y: 1e300 * (rng.standard_normal(len(y)) + y),
        lambda rng, y: 1e-300 * (rng.standard_normal(len(y)) + y),
        lambda rng, y: (1e-44 * rng.integers(0, 9, len(y))).astype(np.float32),  # subnormal
        lambda rng, y: (rng.standard_normal(len(y)) + y).astype(np.float16),
        lambda rng, y: rng.random(len(y)) < 0.5,
    ],
)
def test_auc_equals_scikit_learn_and_pair_counting(make_scores):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(rng.integers(2, 80)) % rng.integers(2, 5) == 0)
        if labels.all() or not labels.any():
            continue
        scores = make_scores(rng, labels)
        # 1e-12: rounding of the reference's float64 sum of trapezia.
        assert roc_auc(labels, scores) == pytest.approx(
            sklearn.metrics.roc_auc_score(labels, scores), abs=1e-12
        )
        assert roc_auc(labels, scores) == auc_by_counting_pairs(labels, scores)


def test_whole_numbers_too_close_for_float64_are_still_told_apart():
    assert roc_auc([0, 1], np.array([2**53, 2**53 + 1])) == 1.0


def test_constant_scores_give_one_half_exactly():
    assert roc_auc([0, 1, 1, 0, 1], np.full(5, 0.1)) == 0.5


def test_auc_does_not_depend_on_order_and_turns_over_with_the_sign():
    rng = np.random.default_rng(0)
    labels, scores = rng.random(501) < 0.3, rng.integers(0, 40, 501)
    order = rng.permutation(501)
    assert roc_auc(labels[order], scores[order]) == roc_auc(labels, scores)
    assert roc_auc(labels, -scores) == pytest.approx(1 - roc_auc(labels, scores), abs=1e-15)


def test_labels_may_be_bool_int_float_list_or_tensor():
    scores = [0.1, 0.4, 0.3, 0.9]
    whole = [0, 0, 1, 1]
    for labels in (
        whole,
        np.array(whole, bool),
        np.array(whole, float),
        torch.tensor(whole),
        torch.tensor(whole) > 0,
    ):
        assert roc_auc(labels, scores) == 0.75
    assert roc_auc([0, 0, 1, 1], torch.tensor(scores, requires_grad=True)) == 0.75
    assert roc_auc([0, 0, 1, 1], torch.tensor(scores, dtype=torch.bfloat16)) == 0.75


@pytest.mark.parametrize("function", [roc_auc, roc_curve, bootstrap_interval])
@pytest.mark.parametrize(
    "labels, scores, message",
    [
        ([0, 0], [1.0, 2.0], "all 2 labels are normal"),
        ([True, True, True], [1.0, 2.0, 3.0], "all 3 labels are anomalous"),
        ([1], [1.0], "all 1 labels are anomalous"),
        ([0, 1, 1, 0], [1.0, np.nan, 2.0, np.nan], r"2 NaN values among 4, the first at index 1"),
        ([0, 1, 1], [1.0, 2.0, -np.inf], r"1 infinite values among 3, the first at index 2"),
        ([0, 1], [1.0, 2.0, 3.0], r"shapes \(2,\) and \(3,\)"),
        ([], [], "scores is empty"),
        ([0, 1, 2], [1.0, 2.0, 3.0], "got 2 at index 2"),
        ([-1, 1], [1.0, 2.0], "got -1 at index 0"),
        ([0, np.nan], [1.0, 2.0], "got nan at index 1"),
        (["cat", "dog"], [1.0, 2.0], "got 'cat' at index 0"),
        ([[0], [1]], [[1.0], [2.0]], r"one-dimensional.*got shape \(2, 1\)"),
        ([0, 1], 3.0, r"got shape \(\)"),
        ([0, 1], ["a", "b"], "real numbers"),
        ([0, 1], [1j, 2], "real numbers"),
    ],
)
def test_wrong_input_is_named(function, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        function(labels, scores)


def test_curve_of_a_small_example_by_hand():
    # From the top: 3 is shared by a normal and an anomalous image (one slanted step); 2 is anomalous; 1 is normal.
    false_positive_rate, true_positive_rate, thresholds = roc_curve(
        [0, 0, 1, 1], [1.0, 3.0, 3.0, 2.0]
    )
    np.testing.assert_array_equal(false_positive_rate, [0, 0.5, 0.5, 1])
    np.testing.assert_array_equal(true_positive_rate, [0, 0.5, 1, 1])
    np.testing.assert_array_equal(thresholds, [np.inf, 3, 2, 1])


def test_curve_equals_scikit_learn_and_its_area_is_the_auc():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = np.arange(60) % 3 == 0
        scores = (100 + 0.01 * rng.integers(0, 30, 60)).astype(np.float32)
        curve = roc_curve(labels, scores)
        for ours, theirs in zip(
            curve, sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
        ):
            np.testing.assert_array_equal(ours, theirs)
        assert np.trapezoid(curve[1], curve[0]) == pytest.approx(roc_auc(labels, scores), abs=1e-12)


def test_bootstrap_is_stratified_and_seeded():
    labels, scores = np.array([1, 0, 0, 1, 0]), np.array([5.0, 1.0, 2.0, 6.0, 3.0])
    seen = []

    def metric(labels, scores):
        seen.append(
            (
                labels.sum(),
                set(scores[labels]) <= {5.0, 6.0},
                set(scores[~labels]) <= {1.0, 2.0, 3.0},
                *scores,
            )
        )
        return scores.mean()

    interval = bootstrap_interval(labels, scores, metric=metric, n_resamples=50, seed=3)
    assert len(seen) == 50 and all(row[:3] == (2, True, True) for row in seen)
    assert len(set(seen)) > 10  # drawn anew each time
    assert bootstrap_interval(labels, scores, metric=metric, n_resamples=50, seed=3) == interval
    assert bootstrap_interval(labels, scores, metric=metric, n_resamples=50, seed=4) != interval


def test_bootstrap_width_agrees_with_the_theory():
    # Hanley and McNeil (1982) give the standard error of the AUC for scores that are exponential in the two kinds.
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 2
    scores = rng.exponential(1 + 3 * labels)
    auc = roc_auc(labels, scores)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    error = np.sqrt((auc * (1 - auc) + 299 * (q1 + q2 - 2 * auc**2)) / 300**2)
    low, high = bootstrap_interval(labels, scores, level=0.9)
    # 10 %: 1000 resamples know a quantile's place to about 5 %.
    assert high - low == pytest.approx(2 * 1.645 * error, rel=0.1)
    wide_low, wide_high = bootstrap_interval(labels, scores, level=0.99)
    assert wide_low < low < auc < high < wide_high


def test_bootstrap_is_the_percentiles_of_the_resampled_values():
    labels, scores = np.array([0, 1, 0, 1, 0, 1]), np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    for level, n_resamples in ((0.5, 21), (0.9, 41)):
        seen = []
        metric = lambda labels, scores: seen.append(scores.mean()) or seen[-1]  # noqa: E731
        low, high = bootstrap_interval(
            labels, scores, metric=metric, n_resamples=n_resamples, level=level
        )
        # With this many, either end falls on one of the sorted values: no interpolation.
        left_out = round((1 - level) / 2 * (n_resamples - 1))
        assert (low, high) == pytest.approx((sorted(seen)[left_out], sorted(seen)[-1 - left_out]))
    usual = bootstrap_interval(labels, scores)
    assert usual == bootstrap_interval(
        labels, scores, metric=roc_auc, n_resamples=1000, level=0.95, seed=0
    )
    assert usual != bootstrap_interval(labels, scores, n_resamples=1000, level=0.8)
    rng = np.random.default_rng(0)
    many = np.arange(60) % 2, rng.standard_normal(60)
    assert (
        bootstrap_interval(*many)
        == bootstrap_interval(*many, seed=0)
        != bootstrap_interval(*many, seed=1)
    )
    counted = []
    bootstrap_interval(labels, scores, metric=lambda *_: counted.append(0) or 0.5)
    assert len(counted) == 1000


def test_bootstrap_of_perfect_separation_has_no_width():
    assert bootstrap_interval([0, 0, 1, 1], [1.0, 2.0, 3.0, 4.0], n_resamples=20) == (1.0, 1.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"level": 95}, "level .* got 95"),
        ({"level": 1}, "level .* got 1"),
        ({"level": 1.5}, "level .* got 1.5"),
        ({"level": 0}, "got 0"),
        ({"n_resamples": 0}, "at least 1; got 0"),
    ],
)
def test_bootstrap_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval([0, 1], [1.0, 2.0], **options)


@pytest.mark.parametrize(
    "n, rate, rank",
    [
        (19, 0.05, 19),
        (20, 0.05, 20),
        (39, 0.05, 38),
        (9, 0.1, 9),
        (9, 0.7, 3),
        (9, 1 - 0.9, 9),
        (99, 0.29, 71),
        (5000, 0.5, 2501),
        (1, 0.5, 1),
        (99, 0.999, 1),
    ],
)
def test_threshold_is_the_conformal_order_statistic(n, rate, rank):
    scores = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))  # the r-th smallest is r
    assert threshold_at(scores, rate) == rank
    assert threshold_at(torch.tensor(scores), rate) == rank


def test_threshold_of_many_scores_in_any_order():
    # A partial sort may leave neighbours of the wanted rank in the right place by chance: many orders.
    for seed in range(300):
        assert threshold_at(np.random.default_rng(seed).permutation(np.arange(2001)), 0.5) == 1000


@pytest.mark.parametrize(
    "n, rate, needed", [(18, 0.05, 19), (8, 0.1, 9), (98, 0.01, 99), (1, 0.3, 3)]
)
def test_too_few_normal_images_for_a_rate(n, rate, needed):
    with pytest.raises(ValueError, match=f"needs at least {needed} normal images; got {n}"):
        threshold_at(np.arange(n), rate)
    threshold_at(np.arange(needed), rate)  # and this many are enough


def test_the_rate_that_the_error_suggests_is_possible():
    with pytest.raises(ValueError, match="a rate of 0.091 or more"):
        threshold_at(np.arange(10), 0.01)
    assert threshold_at(np.arange(10), 0.091) == 9
    with pytest.raises(ValueError, match="a rate of 0.1 or more"):
        threshold_at(np.arange(9), 0.01)
    assert threshold_at(np.arange(9), 0.1) == 8


@pytest.mark.parametrize("rate", [0, 1, 5, -0.1, np.nan])
def test_a_rate_is_a_share(rate):
    with pytest.raises(ValueError, match="false_alarm_rate must lie between 0 and 1"):
        threshold_at(np.arange(100), rate)


def test_threshold_refuses_broken_scores():
    with pytest.raises(ValueError, match="normal_scores holds 1 NaN"):
        threshold_at([1.0, np.nan], 0.5)
    with pytest.raises(ValueError, match="normal_scores is empty"):
        threshold_at([], 0.5)


def test_threshold_keeps_its_rate():
    # One new score against 39: its rank is uniform on 1..40, so the alarm rate is exactly 2/40 for any distribution.
    rng = np.random.default_rng(0)
    scores = rng.lognormal(sigma=2, size=(4000, 40))
    alarms = np.mean([new > threshold_at(row, 0.05) for *row, new in scores])
    assert abs(alarms - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000)  # four standard errors
    # Ties can only lower it.
    tied = np.mean([new > threshold_at(row, 0.05) for *row, new in np.round(scores[:1000])])
    assert tied <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 1000)
