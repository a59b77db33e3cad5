"""How good is a detector on labelled images? Each number with its interval; two models in pairs.

Labels choose nothing here: the threshold is the detector's own, from normal images alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from pandalib.datasets.layouts import CLASSES, read_layout
from pandalib.datasets.listing import Listing, common_folder, counted, describe
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
    if found.left_out:
        note += f"; {describe(found.left_out)}"
    if labels.all() or not labels.any():
        raise ValueError(f"{str(folder)!r}, {note}: expected images of both kinds.")
    return files, labels, note


# A rate is a number of images out of a number of images.
RATES = {
    "precision": lambda labels, alarms: (labels & alarms, alarms),  # of those that alarm
    "recall": lambda labels, alarms: (labels & alarms, labels),  # of the anomalous ones
    "false_alarm_rate": lambda labels, alarms: (~labels & alarms, ~labels),  # of the normal ones
}
FEW = 20  # images of a kind: with fewer, no bootstrap tells how much a number may vary


def f1(labels, alarms) -> float:
    """The harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN)."""
    return float(2 * (labels & alarms).sum() / (labels.sum() + alarms.sum()))


def share(of, among) -> tuple[float, float, float]:
    """How many of these images are those, with Wilson's 95 % interval; of no images 0 (0 to 1).

    Examples
    --------
    >>> [round(number, 3) for number in share(np.array([False, False]), np.array([True, True]))]
    [0.0, 0.0, 0.658]
    """
    n, found = int(among.sum()), int(of.sum())
    if n == 0:
        return 0.0, 0.0, 1.0
    ends = binomtest(found, n).proportion_ci(method="wilson")
    return found / n, float(ends.low), float(ends.high)


def evaluate(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict:
    """ROC-AUC, and precision, recall, F1 and false-alarm rate of score > threshold.

    Parameters
    ----------
    labels : bool array (n,)
        True: anomalous.
    scores : array (n,)
    threshold : float

    Returns
    -------
    found : dict
        By name the value and its 95 % interval: (value, low, high). Of ROC-AUC and F1 it is
        `pandalib.metrics.bootstrap_interval`, too short for a few images; of the rates see `share`.

    Examples
    --------
    >>> found = evaluate(np.array([False, False, True, True]), np.array([1, 3, 2, 4]), 1.5)
    >>> [found[name][0] for name in ("roc_auc", "precision", "recall")]
    [0.75, 0.6666666666666666, 1.0]
    """
    found = {"roc_auc": (roc_auc(labels, scores), *bootstrap_interval(labels, scores))}
    alarms = scores > threshold
    found |= {name: share(*rate(labels, alarms)) for name, rate in RATES.items()}
    # The alarms, 1 or 0, stand in the place of scores.
    interval = bootstrap_interval(labels, alarms, metric=lambda y, a: f1(y, a > 0))
    found["f1"] = (f1(labels, alarms), *interval)
    return found


def evaluate_files(
    inspectors: Sequence, files, labels: np.ndarray, *, rate: float | None = None
) -> dict:
    """`evaluate` for each inspector on the same files; for two, the difference in ROC-AUC.

    A file that cannot be read, or that one of the inspectors was fitted with, counts for none.

    Parameters
    ----------
    inspectors : sequence of Inspector
        One or two.
    files : list of path
    labels : bool array (n,)
        True: anomalous.
    rate : float, optional
        False-alarm rate of the thresholds; default: each inspector's own.

    Returns
    -------
    found : dict
        "n_normal", "n_anomalous"; "models", for each inspector its "threshold", what `evaluate`
        returns and "fitted", the files that it was fitted with; "unreadable", the reason by file;
        for two inspectors "roc_auc_difference", the first minus the second, with its interval.

    Raises
    ------
    ValueError
        If the files that count are all of one kind.
    """
    rankings = [
        inspector.rank(files, top=1, rate=rate, skip_unreadable=True) for inspector in inspectors
    ]
    unreadable = dict(pair for ranking in rankings for pair in ranking.unreadable)
    left_out = {*unreadable, *(file for ranking in rankings for file in ranking.fitted)}
    names = Listing(files, [], common_folder(files)).names
    kept = [number for number, name in enumerate(names) if name not in left_out]
    labels = labels[kept]
    if labels.all() or not labels.any():
        raise ValueError("what remains is all of one kind: expected normal and anomalous images.")
    models, scores = [], []
    for inspector, ranking in zip(inspectors, rankings):
        by_name = dict(zip(ranking.names, ranking.scores))
        scores.append(np.array([by_name[names[number]] for number in kept]))
        threshold = inspector.threshold(rate)
        found = evaluate(labels, scores[-1], threshold)
        models.append({"threshold": threshold, **found, "fitted": list(ranking.fitted)})
    found = {
        "n_normal": int((~labels).sum()),
        "n_anomalous": int(labels.sum()),
        "models": models,
        "unreadable": unreadable,
    }
    if len(models) == 2:
        one, other = (model["roc_auc"][0] for model in models)
        found["roc_auc_difference"] = (one - other, *paired_interval(labels, *scores))
    return found
