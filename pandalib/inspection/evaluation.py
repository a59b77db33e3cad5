"""How good is a detector on labelled images? Two of them are compared on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pandalib.datasets.layouts import CLASSES, counted, read_layout
from pandalib.datasets.listing import Listing
from pandalib.metrics import bootstrap_interval, paired_interval, roc_auc


@dataclass(frozen=True)
class Evaluation:
    """The scores of labelled images, in thresholds, and what follows from them.

    Attributes
    ----------
    labels, scores : ndarray, shape (n,)
        1: anomalous. Above 1: an alarm.
    facts : dict
        Counts, and each of roc_auc, precision, recall, f1 and false_alarm_rate with its interval.
    """

    labels: np.ndarray
    scores: np.ndarray
    facts: dict

    def __str__(self) -> str:
        facts = self.facts
        lines = [f"  {facts['n_normal']} normal and {facts['n_anomalous']} anomalous images"]
        for name, words in WORDS.items():
            low, high = facts[f"{name}_interval"]
            lines.append(f"  {words:17} {facts[name]:.3f} ({low:.3f} to {high:.3f})")
        return "\n".join(lines)


def labelled(path_spec) -> tuple[Listing, np.ndarray]:
    """All labelled images of "PATH:CLASS" or of a folder in a known layout, and their labels.

    Of a known layout these are the test images, of one folder per class all images.

    Raises
    ------
    FileNotFoundError, ValueError
        As `pandalib.datasets.layouts.read_layout`; and if one of the two kinds is missing.
    """
    found = read_layout(path_spec)
    normal = list(found.tests.get(found.normal, ()))
    if found.layout == CLASSES and not (found.root / "train").is_dir():
        normal = sorted([*found.train, *normal])
    anomalous = [
        file for kind, files in found.tests.items() if kind != found.normal for file in files
    ]
    if not normal or not anomalous:
        raise ValueError(
            f"{str(found.root)!r} has {counted(len(normal), 'normal image')} and "
            f"{counted(len(anomalous), 'anomalous image')}: expected some of each."
        )
    note = f"read as {found.layout}: {len(normal)} normal and {len(anomalous)} anomalous images"
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    return Listing(normal + anomalous, found.left_out, Path(found.root), note), labels


def measure(inspector, listing: Listing, labels: np.ndarray, *, rate=None) -> Evaluation:
    """Score labelled images and measure how well they are told apart.

    Intervals are those of the bootstrap over these images (95 %).
    """
    scores = inspector.score(listing) / inspector.threshold(rate)
    facts = dict(n_normal=int((labels == 0).sum()), n_anomalous=int((labels == 1).sum()))
    for name, metric in METRICS.items():
        facts[name] = metric(labels.astype(bool), scores)
        facts[f"{name}_interval"] = bootstrap_interval(labels, scores, metric=metric)
    return Evaluation(labels, scores, facts)


def compare(one: Evaluation, other: Evaluation) -> dict:
    """The difference in ROC-AUC on the same images, with its paired interval."""
    difference = one.facts["roc_auc"] - other.facts["roc_auc"]
    return dict(
        roc_auc=difference,
        roc_auc_interval=paired_interval(one.labels, one.scores, other.scores),
    )


def precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of anomalous images among those that alarm; 0 if none does."""
    return float(labels[scores > 1].mean()) if (scores > 1).any() else 0.0


def recall(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of anomalous images that alarm."""
    return float((scores[labels] > 1).mean())


def f1(labels: np.ndarray, scores: np.ndarray) -> float:
    """The harmonic mean of precision and recall."""
    found, right = precision(labels, scores), recall(labels, scores)
    return 2 * found * right / (found + right) if found + right else 0.0


def false_alarm_rate(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of normal images that alarm."""
    return float((scores[~labels] > 1).mean())


METRICS = dict(
    roc_auc=roc_auc, precision=precision, recall=recall, f1=f1, false_alarm_rate=false_alarm_rate
)
WORDS = dict(
    roc_auc="ROC-AUC",
    precision="precision",
    recall="recall",
    f1="F1",
    false_alarm_rate="false-alarm rate",
)
