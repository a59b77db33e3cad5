"""How good is a score, or a map? ROC-AUC, per-region overlap, uncertainty, thresholds from normals.

Higher = more anomalous; label or mask 1 = anomalous. The ROC-AUC is the probability that a random
anomalous image scores above a random normal one, a tie counting one half:

    AUC = (#{s_anomalous > s_normal} + 1/2 #{s_anomalous = s_normal}) / (n_anomalous n_normal)

Over the pixels of all images, one large defect outweighs many small ones. PRO (Bergmann et al.,
"Uninformed Students", CVPR 2020) gives each defect the same weight. With the regions R_1 .. R_K,
the connected parts of all masks, and a threshold t,

    overlap(t) = 1/K sum_k #{pixels of R_k with s >= t} / #R_k
    fpr(t)     = #{normal pixels with s >= t} / #{normal pixels}
    PRO        = 1/limit * area under overlap over fpr, from fpr = 0 to fpr = limit, e.g. 0.30

All of these depend on the order of the scores only. Public code often uses some 200 evenly spaced
thresholds; its PRO then changes with the scale of the scores, so distances and squared distances
differ. Here every distinct score is a threshold, found by one sort.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from pandalib.validation import as_array, check_counts

# A pixel's neighbours are the eight around it in the same image, not in the image before or after.
_EIGHT_NEIGHBOURS = np.zeros((3, 3, 3), bool)
_EIGHT_NEIGHBOURS[1] = True
_ONE = 2.0**62  # an overlap of 1, in the whole numbers in which it is summed


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve (the rank statistic of Mann and Whitney, ties by mid-ranks).

    Parameters
    ----------
    labels : array or tensor, shape (n,)
        0 or False: normal. 1 or True: anomalous.
    scores : array or tensor, shape (n,)
        Higher = more anomalous, in any unit: raw distances need no scaling.

    Returns
    -------
    auc : float from 0 to 1
        0.5 when all scores are equal. Pairs are counted in whole numbers, so the order of the
        images changes not a single bit.

    Raises
    ------
    ValueError
        Labels of one kind only, or other than 0 and 1; shapes that differ or are not (n,); NaN or
        infinite scores.
    """
    return _area(*_counts_by_score(*_check_labels(labels, scores))[1:])


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ROC curve, exact: one corner for every distinct score.

    Parameters
    ----------
    labels, scores : arrays or tensors, shape (n,)
        As for `roc_auc`.

    Returns
    -------
    false_positive_rate, true_positive_rate : ndarray, shape (m + 1,), float64
        Fraction of the normal and of the anomalous images with score >= threshold, from 0 to 1; m
        is the number of distinct scores.
    thresholds : ndarray, shape (m + 1,), float64
        Infinity (no alarm at all), then the distinct scores from high to low. Equal scores make one
        slanted step, so the area under straight lines between the corners is `roc_auc`.
    """
    distinct, n_normal, n_anomalous = _counts_by_score(*_check_labels(labels, scores))
    false_positive_rate = np.append(0, np.cumsum(n_normal)) / n_normal.sum()
    true_positive_rate = np.append(0, np.cumsum(n_anomalous)) / n_anomalous.sum()
    return false_positive_rate, true_positive_rate, np.append(np.inf, distinct)


def bootstrap_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    metric: Callable[[np.ndarray, np.ndarray], float] = roc_auc,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a metric by the stratified bootstrap (Efron and Tibshirani 1993).

    Normal and anomalous images are drawn with replacement, each among their own kind, so every
    resample has as many of each as the test set. The interval answers one question: how much would
    the result change with *other test images of the same kind*, for this same detector? It does not
    cover another training set, another seed of the training, another choice of the normal class, or
    images that are not independent (frames of one film). With few images of either kind it is too
    narrow, and if the two kinds separate perfectly it has no width: (1.0, 1.0).

    Parameters
    ----------
    labels, scores : arrays or tensors, shape (n,)
        As for `roc_auc`.
    metric : callable
        `metric(labels, scores) -> float`, called once per resample; labels come as booleans, normal
        images first.
    n_resamples : int
    level : float between 0 and 1
        The fraction of the resampled values that the interval contains.
    seed : int

    Returns
    -------
    low, high : float
    """
    labels, scores = _check_labels(labels, scores)
    drawn = _resamples(labels, n_resamples, seed)
    return _percentiles([metric(labels[images], scores[images]) for images in drawn], level)


def paired_interval(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of ROC-AUC(a) - ROC-AUC(b) of two detectors on the same images.

    Both are measured on the same resamples, so what makes an image hard for both cancels: the
    interval is narrower than two separate ones suggest. If it excludes 0, the difference is more
    than the choice of test images explains. The arguments, and what the interval does not cover,
    are those of `bootstrap_interval`.
    """
    anomalous, scores_a = _check_labels(labels, scores_a)
    _, scores_b = _check_labels(labels, scores_b)
    differences = [
        roc_auc(anomalous[images], scores_a[images]) - roc_auc(anomalous[images], scores_b[images])
        for images in _resamples(anomalous, n_resamples, seed)
    ]
    return _percentiles(differences, level)


def threshold_at(normal_scores: ArrayLike, false_alarm_rate: float) -> float:
    """The score above which to raise an alarm, chosen from normal images only.

    Split conformal prediction: t = the ceil((1 - rate) (n + 1))-th smallest of the n scores; alarm
    when score > t. If the next normal image and these n are exchangeable (same source, scored in
    the same way), it alarms with probability at most `false_alarm_rate`, whatever the distribution
    of scores (Vovk, Gammerman and Shafer 2005; Lei et al. 2018, theorem 2.2). This is an average
    over draws of the normal images: with one given set of n, the rate observed later varies around
    it, by about sqrt(rate (1 - rate) / n).

    It holds exactly for scores of held-out normal images. For leave-one-out scores of the gallery,
    which use each image twice, it holds nearly: measured, not proven. It does not hold for scores
    of training images that were not left out, nor for a detector that was adapted to these same
    images: hold some out.

    Parameters
    ----------
    normal_scores : array or tensor, shape (n,)
        Leave-one-out scores of normal training images (`KNN.leave_one_out`), or scores of held-out
        normal images. Never scores of test images.
    false_alarm_rate : float between 0 and 1
        Fraction of the normal images that may raise an alarm, for example 0.05.

    Returns
    -------
    threshold : float

    Raises
    ------
    ValueError
        Fewer images than the rate needs, which is 1 / rate - 1.
    """
    scores = _check_scores(normal_scores, "normal_scores", ndim=1)
    _check_fraction("false_alarm_rate", false_alarm_rate)
    # ceil((1 - rate)(n + 1)) = n + 1 - floor(rate (n + 1)); the 1e-9 keeps a rate such as
    # 1 - 0.9 = 0.0999... from costing a rank.
    n_above = math.floor(false_alarm_rate * (scores.size + 1) + 1e-9)
    if n_above < 1:
        needed = math.ceil(1 / false_alarm_rate - 1 - 1e-9)
        raise ValueError(
            f"A false-alarm rate of {false_alarm_rate:g} needs at least {needed} normal images; "
            f"got {scores.size}. Add normal images, or ask for a rate of "
            f"{math.ceil(1000 / (scores.size + 1)) / 1000:g} or more."
        )
    rank = scores.size + 1 - n_above
    return float(np.partition(scores, rank - 1)[rank - 1])


def pixel_roc_auc(masks: ArrayLike, maps: ArrayLike) -> float:
    """Area under the ROC curve over all pixels of all images (`roc_auc`).

    Parameters
    ----------
    masks : array or tensor, shape (n, H, W)
        0 or False: normal. 1 or True: anomalous. Normal images have masks of zeros.
    maps : array or tensor, shape (n, H, W)
        Higher = more anomalous, in any unit, the same one for all images.

    Returns
    -------
    auc : float from 0 to 1

    Raises
    ------
    ValueError
        Shapes that differ or are not (n, H, W); masks with values other than 0 and 1, or without
        any anomalous or any normal pixel; NaN or infinite maps.
    """
    masks, maps = _check_masks(masks, maps)
    return _area(*_counts_by_score(masks.ravel(), maps.ravel())[1:])


def pro(masks: ArrayLike, maps: ArrayLike, *, limit: float = 0.30) -> float:
    """Area under the per-region overlap up to a false-positive rate (Bergmann et al. 2020).

    Parameters
    ----------
    masks : array or tensor, shape (n, H, W)
        As for `pixel_roc_auc`. All 8-connected regions count the same, whatever their size. A mask
        of zeros adds normal pixels only; a mask of ones adds one region and no normal pixel.
    maps : array or tensor, shape (n, H, W)
    limit : float, above 0 and at most 1
        The false-positive rate at which the area ends. A result says little without its limit.

    Returns
    -------
    pro : float from 0 to 1
        The area by trapezoids, linear between corners and at the limit, divided by `limit`.
        Constant maps make a single step from (0, 0) to (1, 1) and give limit / 2: with the default
        limit, 0.15 is chance.
    """
    if limit != 1:
        _check_fraction("limit", limit)
    false_positives, overlap, _ = _corners(*_check_masks(masks, maps))
    # In pixels rather than rates: whole numbers, so perfect maps give exactly 1.
    end = float(limit) * int(false_positives[-1])
    n_corners = np.searchsorted(false_positives, end, side="right") + 1  # one is past the limit
    x = np.append(0, false_positives[:n_corners])
    y = np.append(0, overlap[:n_corners])
    y_end = np.interp(end, x, y)
    x, y = np.append(x[:n_corners], end), np.append(y[:n_corners], y_end)
    return float(np.trapezoid(y, x) / end)


def pro_curve(masks: ArrayLike, maps: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The curve under which PRO is the area, exact: one corner for every distinct score.

    Parameters
    ----------
    masks, maps : arrays or tensors, shape (n, H, W)
        As for `pro`.

    Returns
    -------
    false_positive_rate : ndarray, shape (m + 1,), float64
        Fraction of the normal pixels of all images with score >= threshold, from 0 to 1.
    per_region_overlap : ndarray, shape (m + 1,), float64
        Mean over all regions of the fraction of the region with score >= threshold, from 0 to 1.
    thresholds : ndarray, shape (m + 1,), float64
        As for `roc_curve`.
    """
    masks, maps = _check_masks(masks, maps)
    false_positives, overlap, pixel = _corners(masks, maps)
    false_positive_rate = np.append(0, false_positives) / false_positives[-1]
    thresholds = np.append(np.inf, maps.ravel()[pixel])
    return false_positive_rate, np.append(0, overlap), thresholds


def regions(masks: ArrayLike) -> np.ndarray:
    """Number the anomalous regions: pixels that touch at a side or a corner belong together.

    Masks (n, H, W) as for `pixel_roc_auc`; labels int32 (n, H, W). 0 is normal; the regions are
    numbered 1, 2, ... through all images, and none extends over two images.
    """
    masks = _as_binary(masks, "masks")
    if masks.ndim != 3:
        raise ValueError(f"masks are of shape {masks.shape}: expected (n, H, W).")
    return ndimage.label(masks, _EIGHT_NEIGHBOURS)[0]


def _sort_scores(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order from high to low, and the last place in it of each run of equal scores."""
    order = np.argsort(scores)[::-1]
    scores = scores[order]
    return order, np.flatnonzero(np.append(scores[1:] != scores[:-1], True))


def _counts_by_score(
    anomalous: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each distinct score, highest first, with its number of normal and of anomalous images."""
    order, last = _sort_scores(scores)
    caught = np.cumsum(anomalous[order])[last]
    n_anomalous = np.diff(caught, prepend=0)
    n_normal = np.diff(last + 1 - caught, prepend=0)
    return scores[order[last]], n_normal, n_anomalous


def _area(n_normal: np.ndarray, n_anomalous: np.ndarray) -> float:
    """ROC-AUC from the counts at each distinct score, highest first."""
    normal_below = n_normal.sum() - np.cumsum(n_normal)
    # Twice the number of pairs in the right order: with ties at one half, this remains a whole
    # number, and exact. It fits int64 up to 4 billion scores.
    twice_right = int((n_anomalous * (2 * normal_below + n_normal)).sum())
    return twice_right / (2 * int(n_normal.sum()) * int(n_anomalous.sum()))


def _corners(masks: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At each distinct score, highest first: false positives, overlap, a pixel with that score."""
    order, last = _sort_scores(maps.ravel())
    labels = regions(masks).ravel()
    size = np.bincount(labels)
    # What one pixel of each region contributes to the mean, in whole numbers of 2^-62, so that a
    # million contributions add up without error and in any order.
    part = np.rint(_ONE / (size * (len(size) - 1.0))).astype(np.int64)
    part[0] = 0  # normal pixels
    labels = labels[order]
    overlap = np.cumsum(part[labels])[last]
    return np.cumsum(labels == 0)[last], overlap / overlap[-1], order[last]


def _resamples(anomalous: np.ndarray, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield image numbers: as many normal and anomalous ones as there are, with replacement."""
    # scipy.stats.bootstrap draws in another order: other intervals from the same seed.
    check_counts(n_resamples=n_resamples)
    rng = np.random.default_rng(seed)
    normals, anomalies = np.flatnonzero(~anomalous), np.flatnonzero(anomalous)
    for _ in range(n_resamples):
        yield np.concatenate([rng.choice(each, each.size) for each in (normals, anomalies)])


def _percentiles(values: list[float], level: float) -> tuple[float, float]:
    _check_fraction("level", level)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}={value!r}: expected a number between 0 and 1.")


def _check_scores(scores: ArrayLike, name: str, ndim: int) -> np.ndarray:
    """Return scores as a real, finite array."""
    scores = as_array(scores)
    if scores.ndim != ndim or scores.size == 0 or scores.dtype.kind not in "biuf":
        shape = "(n,)" if ndim == 1 else "(n, H, W)"
        raise ValueError(
            f"{name} are {scores.dtype} {scores.shape}: expected real numbers of shape {shape}."
        )
    # An infinity could be ranked, but it comes from an overflow or a division by zero.
    if not np.isfinite(scores).all():
        raise ValueError(f"{name} hold NaN or infinite values: expected finite numbers.")
    return scores


def _as_binary(values: ArrayLike, name: str) -> np.ndarray:
    """Return labels or masks as booleans, True = anomalous."""
    values = as_array(values)
    anomalous = values == 1
    unknown = values[~(anomalous | (values == 0))]
    if unknown.size:
        first = unknown.tolist()[0]  # 255, not np.int64(255)
        raise ValueError(f"{name} hold {first!r}: expected 0 (normal) or 1 (anomalous) only.")
    return anomalous


def _check_pair(
    truth: ArrayLike, scores: ArrayLike, names: tuple[str, str], ndim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return booleans (True = anomalous) of both kinds, and as many scores."""
    scores = _check_scores(scores, names[1], ndim)
    truth = _as_binary(truth, names[0])
    if truth.shape != scores.shape:
        raise ValueError(
            f"{names[0]} {truth.shape} and {names[1]} {scores.shape}: expected the same shape."
        )
    if truth.all() or not truth.any():
        kind = "anomalous" if truth.all() else "normal"
        raise ValueError(f"{names[0]} are all {kind}: expected both normal and anomalous ones.")
    return truth, scores


def _check_labels(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    return _check_pair(labels, scores, ("labels", "scores"), ndim=1)


def _check_masks(masks: ArrayLike, maps: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    return _check_pair(masks, maps, ("masks", "maps"), ndim=3)
