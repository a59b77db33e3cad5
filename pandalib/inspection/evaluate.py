"""How good is a detector on labelled images? Each number with its interval; two models in pairs.

Labels choose nothing here: the threshold is the detector's own, from normal images alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pandalib.datasets.layouts import CLASSES, counted, read_layout
from pandalib.metrics import bootstrap_interval, paired_interval, roc_auc


def labelled_images(folder) -> tuple[list[Path], np.ndarray, str]:
    """The test images of "PATH" or "PATH:CLASS", whether each is anomalous, and how it was read.

    A folder without a split of its own gives all of its images. Raises as
    `pandalib.datasets.layouts.read_layout`; ValueError unless there are images of both kinds.
    """
    found = read_layout(folder)
    tests = dict(found.tests)
    if found.layout == CLASSES and not (found.root / "train").is_dir():
        tests[found.normal] = sorted({*found.train, *tests[found.normal]})
    files = [file for kind in tests.values() for file in kind]
    labels = np.array([kind != found.normal for kind in tests for _ in tests[kind]], bool)
    note = (
        f"read as {found.layout}: {counted(int((~labels).sum()), 'normal image')} "
        f"({found.normal}), {int(labels.sum())} anomalous"
    )
    if labels.all() or not labels.any():
        raise ValueError(f"{str(folder)!r}, {note}: expected images of both kinds.")
    return files, labels, note


def precision(labels, alarms) -> float:
    """The share of anomalous images among those that alarm; 0 if none does."""
    return float((labels & alarms).sum() / max(1, alarms.sum()))


def recall(labels, alarms) -> float:
    """The share of anomalous images that alarm."""
    return float((labels & alarms).sum() / labels.sum())


def f1(labels, alarms) -> float:
    """The harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN)."""
    return float(2 * (labels & alarms).sum() / (labels.sum() + alarms.sum()))


def false_alarm_rate(labels, alarms) -> float:
    """The share of normal images that alarm."""
    return float((~labels & alarms).sum() / (~labels).sum())


RATES = {one.__name__: one for one in (precision, recall, f1, false_alarm_rate)}


def evaluate(labels: np.ndarray, scores: np.ndarray, threshold: float, *, seed: int = 0) -> dict:
    """ROC-AUC, and precision, recall, F1 and false-alarm rate of score > threshold.

    Parameters
    ----------
    labels : bool array (n,)
        True: anomalous.
    scores : array (n,)
    threshold : float
    seed : int
        Of the bootstrap.

    Returns
    -------
    found : dict
        By name the value and its 95 % interval: (value, low, high); see
        `pandalib.metrics.bootstrap_interval` for what it covers.

    Examples
    --------
    >>> found = evaluate(np.array([False, False, True, True]), np.array([1, 3, 2, 4]), 1.5)
    >>> [found[name][0] for name in ("roc_auc", "precision", "recall")]
    [0.75, 0.6666666666666666, 1.0]
    """
    found = {"roc_auc": (roc_auc(labels, scores), *bootstrap_interval(labels, scores, seed=seed))}
    alarms = scores > threshold
    for name, rate in RATES.items():
        # The alarms stand in the place of scores: 1 or 0.
        low, high = bootstrap_interval(
            labels, alarms, metric=lambda y, a, rate=rate: rate(y, a > 0), seed=seed
        )
        found[name] = (rate(labels, alarms), low, high)
    return found


def compare(labels, scores, others, *, seed: int = 0) -> tuple[float, float, float]:
    """ROC-AUC of `scores` - that of `others` on the same images, and its paired 95 % interval."""
    low, high = paired_interval(labels, scores, others, seed=seed)
    return roc_auc(labels, scores) - roc_auc(labels, others), low, high
