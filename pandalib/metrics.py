"""How good is a score? ROC-AUC, its curve, its uncertainty, and a threshold from normal images alone.

Higher score = more anomalous; label 1 = anomalous. The ROC-AUC is the probability that a random anomalous image scores
above a random normal one, a tie counting one half:

    AUC = (#{s_anomalous > s_normal} + 1/2 #{s_anomalous = s_normal}) / (n_anomalous n_normal)

It is a matter of order only: scores are compared, never rescaled, so raw distances of any size can be passed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from pandalib.validation import as_array


def _check_scores(scores: ArrayLike, name: str = "scores") -> np.ndarray:
    """Return scores as a one-dimensional real array without NaN or infinities, or raise ValueError."""
    scores = as_array(scores)
    if scores.ndim != 1:
        raise ValueError(
            f"{name} must be one-dimensional, one number per image; got shape {scores.shape}."
        )
    if scores.size == 0:
        raise ValueError(f"{name} is empty; at least one score is needed.")
    if scores.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers; got dtype {scores.dtype}.")
    if not np.isfinite(scores).all():
        # An infinity could be ranked, but it comes from an overflow or a division by zero: its rank means nothing.
        for kind, bad in (("NaN", np.isnan(scores)), ("infinite", np.isinf(scores))):
            if bad.any():
                raise ValueError(
                    f"{name} holds {np.count_nonzero(bad)} {kind} values among {scores.size}, the first at index "
                    f"{np.flatnonzero(bad)[0]}; look for what produced them before measuring anything."
                )
    return scores


def _check_labels_and_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return labels as booleans (True = anomalous) and scores, or raise ValueError."""
    scores = _check_scores(scores)
    labels = as_array(labels)
    if labels.shape != scores.shape:
        raise ValueError(
            f"labels and scores must have one entry per image each; got shapes {labels.shape} and {scores.shape}."
        )
    known = (labels == 0) | (labels == 1)
    if not np.all(known):
        first = np.flatnonzero(~np.broadcast_to(known, labels.shape))[0]
        raise ValueError(
            f"labels must be 0 (normal) or 1 (anomalous); got {labels[[first]].tolist()[0]!r} at index {first}. "
            "For one class against the rest pass `classes != normal_class`."
        )
    anomalous = labels == 1
    if anomalous.all() or not anomalous.any():
        kind = "anomalous" if anomalous[0] else "normal"
        raise ValueError(
            f"ROC needs normal and anomalous images; all {labels.size} labels are {kind}."
        )
    return anomalous, scores


def _sort_scores(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort once: the order from high to low, and the last place in it of each run of equal scores."""
    order = np.argsort(scores)[::-1]
    scores = scores[order]
    return order, np.flatnonzero(np.append(scores[1:] != scores[:-1], True))


def _counts_by_score(
    anomalous: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count at each distinct score, highest first: the score, the number of normal and of anomalous images."""
    order, last = _sort_scores(scores)
    caught = np.cumsum(anomalous[order])[last]
    n_anomalous = np.diff(caught, prepend=0)
    n_normal = np.diff(last + 1 - caught, prepend=0)
    return scores[order[last]], n_normal, n_anomalous


def _area(n_normal: np.ndarray, n_anomalous: np.ndarray) -> float:
    """ROC-AUC from the counts at each distinct score, highest first."""
    normal_below = n_normal.sum() - np.cumsum(n_normal)
    # Twice the number of pairs in the right order: with ties at one half, this stays a whole number and exact. It fits
    # int64 up to 4 thousand million scores.
    twice_right = int((n_anomalous * (2 * normal_below + n_normal)).sum())
    return twice_right / (2 * int(n_normal.sum()) * int(n_anomalous.sum()))


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
        0.5 when all scores are equal. Pairs are counted in whole numbers, so the order of the images changes no bit.

    Raises
    ------
    ValueError
        Labels of one kind only, or other than 0 and 1; shapes that differ or are not (n,); no images; NaN or infinite
        scores.
    """
    _, n_normal, n_anomalous = _counts_by_score(*_check_labels_and_scores(labels, scores))
    return _area(n_normal, n_anomalous)


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ROC curve, exact: one corner for every distinct score.

    Parameters
    ----------
    labels, scores : arrays or tensors, shape (n,)
        As for `roc_auc`.

    Returns
    -------
    false_positive_rate : ndarray, shape (m + 1,), float64
        Share of the normal images with score >= threshold, from 0 to 1; m is the number of distinct scores.
    true_positive_rate : ndarray, shape (m + 1,), float64
        Share of the anomalous images with score >= threshold, from 0 to 1.
    thresholds : ndarray, shape (m + 1,), float64
        Infinity (nothing alarms), then the distinct scores from high to low. Equal scores make one (slanted) step, so
        the area under straight lines between the corners is `roc_auc`.

    Raises
    ------
    ValueError
        As `roc_auc`.
    """
    distinct, n_normal, n_anomalous = _counts_by_score(*_check_labels_and_scores(labels, scores))
    false_positive_rate = np.append(0, np.cumsum(n_normal)) / n_normal.sum()
    true_positive_rate = np.append(0, np.cumsum(n_anomalous)) / n_anomalous.sum()
    return false_positive_rate, true_positive_rate, np.append(np.inf, distinct.astype(np.float64))


def bootstrap_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    metric: Callable[[np.ndarray, np.ndarray], float] = roc_auc,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a metric by the stratified bootstrap (Efron and Tibshirani 1993, chapter 13).

    Normal and anomalous images are drawn again with replacement, each among their own kind, so every resample has as
    many of either as the test set. The interval answers one question: how much would the figure move with *other test
    images of the same kind*, the detector staying as it is? It does not cover another training set, another seed of
    the training, another choice of the normal class, or images that are not independent (frames of one film). With
    few images of either kind it is too narrow, and where the two kinds separate perfectly it has no width: (1.0, 1.0).

    Parameters
    ----------
    labels, scores : arrays or tensors, shape (n,)
        As for `roc_auc`.
    metric : callable
        `metric(labels, scores) -> float`, called once per resample; labels come as booleans, normal images first.
    n_resamples : int, at least 1
    level : float between 0 and 1
        The share of the resampled values that the interval contains.
    seed : int

    Returns
    -------
    low, high : float

    Raises
    ------
    ValueError
        As `roc_auc`; `n_resamples` below 1; `level` not between 0 and 1.
    """
    anomalous, scores = _check_labels_and_scores(labels, scores)
    if operator.index(n_resamples) < 1:
        raise ValueError(f"n_resamples must be at least 1; got {n_resamples}.")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, for example 0.95; got {level}.")
    rng = np.random.default_rng(seed)
    normal, abnormal = scores[~anomalous], scores[anomalous]
    labels = np.repeat([False, True], [normal.size, abnormal.size])
    values = [
        metric(
            labels,
            np.concatenate([rng.choice(normal, normal.size), rng.choice(abnormal, abnormal.size)]),
        )
        for _ in range(n_resamples)
    ]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def threshold_at(normal_scores: ArrayLike, false_alarm_rate: float) -> float:
    """The score above which to raise an alarm, from normal images only (split conformal prediction).

    t = the ceil((1 - rate) (n + 1))-th smallest of the n scores; alarm when score > t. If the next normal image and
    these n are exchangeable (same source, scored in the same way), it alarms with probability at most
    `false_alarm_rate`, whatever the distribution of scores (Vovk, Gammerman and Shafer 2005; Lei et al. 2018, theorem
    2.2). This is an average over draws of the normal images: with one given set of n, the rate seen later varies around
    it, by about sqrt(rate (1 - rate) / n).

    It holds exactly for scores of held-out normal images. Leave-one-out scores of the gallery use every image twice
    and miss one neighbour each, so for them it holds nearly: measured, not proven. It does not hold for scores of
    training images that were not left out, nor for a detector that was adapted on these same images: hold some out.

    Parameters
    ----------
    normal_scores : array or tensor, shape (n,)
        Leave-one-out scores of normal training images (`pandalib.methods.knn.KNN.leave_one_out`), or scores of held-out
        normals. Never scores of test images.
    false_alarm_rate : float between 0 and 1
        Share of the normal images that may alarm, for example 0.05.

    Returns
    -------
    threshold : float

    Raises
    ------
    ValueError
        Scores not of shape (n,), empty, NaN or infinite; a rate outside (0, 1); fewer images than the rate needs,
        which is 1 / rate - 1.
    """
    scores = _check_scores(normal_scores, "normal_scores")
    if not 0 < false_alarm_rate < 1:
        raise ValueError(
            f"false_alarm_rate must lie between 0 and 1, for example 0.05; got {false_alarm_rate}."
        )
    # ceil((1 - rate)(n + 1)) = n + 1 - floor(rate (n + 1)); the 1e-9 keeps a rate such as 1 - 0.9 = 0.0999... from
    # costing a rank.
    n_above = math.floor(false_alarm_rate * (scores.size + 1) + 1e-9)
    if n_above < 1:
        needed = math.ceil(1 / false_alarm_rate - 1 - 1e-9)
        raise ValueError(
            f"A false-alarm rate of {false_alarm_rate:g} needs at least {needed} normal images; got {scores.size}. "
            f"Add normal images, or ask for a rate of {math.ceil(1000 / (scores.size + 1)) / 1000:g} or more."
        )
    rank = scores.size + 1 - n_above
    return float(np.partition(scores, rank - 1)[rank - 1])
