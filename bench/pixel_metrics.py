"""PRO and ROC-AUC against the usual code: `python bench/pixel_metrics.py` writes
docs/results/pixel_metrics_speed.md.

The usual code for PRO takes 200 evenly spaced thresholds and loops over images and regions at each;
for ROC-AUC it is scikit-learn. Beside them anomalib's metrics, in a process of their own, and
scores that are hard to count: raw distances near 100, ties, a mask that fills its image.
"""

from __future__ import annotations

import statistics
import time

import common
import numpy as np
import peers
from common import Line, faster, finish, machine, section, versions
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from pandalib import pixel_roc_auc, pro, roc_auc
from pandalib.metrics import regions

PAGE = """# PRO and ROC-AUC: seconds and values

Made by `python bench/pixel_metrics.py` on {machine}; {versions}, anomalib {anomalib}. Medians of
{rounds} rounds (of one for the loop); {n} drawn maps of {size} x {size} in float32, half of the
images good, {n_regions} regions, {share:.1%} of the pixels anomalous.

{section}
## Drawn maps

| maps | figure | usual code, s | anomalib, s | pandalib, s | usual / pandalib | anomalib / \
pandalib | usual value | anomalib's value | exact value |
|---|---|---|---|---|---|---|---|---|---|
{rows}

The usual code for PRO takes 200 evenly spaced thresholds, alarms above and not at them, and
stretches the curve so that the last corner below 0.30 becomes 1. So its value follows the scale of
the scores: squared distances and distances have the same order and the same exact value, but the
evenly spaced thresholds meet other scores.

## Hard cases

The value by the definition: for ROC-AUC all pairs are compared one by one in float64, for PRO all
thresholds. "-": the figure is not defined there, or the library has it not.

| case | figure | by definition | scikit-learn | anomalib | pandalib |
|---|---|---|---|---|---|
{cases}

anomalib's ROC-AUC is torchmetrics' curve, which takes scores outside 0..1 for logits and puts them
through a sigmoid: near 100 all become 1. Its PRO numbers the regions of a mask from the second
value on that occurs in it, as the first is background: where a mask fills its image, its region is
lost.
"""


def looped_pro(
    masks: np.ndarray, maps: np.ndarray, n_thresholds: int = 200, limit: float = 0.30
) -> float:
    """The usual code: per threshold, image and region, the share of alarmed pixels."""
    parts = [
        [np.nonzero(labels == k) for k in range(1, n + 1)]
        for labels, n in (ndimage.label(m, np.ones((3, 3))) for m in masks)
    ]
    rates, overlaps = [], []
    for threshold in np.linspace(maps.min(), maps.max(), n_thresholds):
        alarm = maps > threshold
        overlaps.append(
            np.mean(
                [
                    one[where].mean()
                    for one, regions_of_one in zip(alarm, parts)
                    for where in regions_of_one
                ]
            )
        )
        rates.append((alarm & ~masks).sum() / (~masks).sum())
    rates, overlaps = np.array(rates), np.array(overlaps)
    rates, overlaps = rates[rates < limit], overlaps[rates < limit]
    return float(np.trapezoid(overlaps[::-1], rates[::-1] / rates.max()))


def drawn(n: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Masks with discs of 2 to 30 pixels' radius in every other image; distances: smooth noise,
    higher at the discs.
    """
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:size, :size]
    masks = np.zeros((n, size, size), bool)
    for mask in masks[::2]:
        for _ in range(rng.integers(1, 5)):
            centre, radius = rng.integers(0, size, 2), rng.uniform(2, 30)
            mask |= (row - centre[0]) ** 2 + (column - centre[1]) ** 2 < radius**2
    noise = ndimage.gaussian_filter(rng.standard_normal(masks.shape), (0, 4, 4))
    blurred = ndimage.gaussian_filter(masks.astype(np.float64), (0, 4, 4))
    return masks, (np.exp(0.5 * noise / noise.std()) + 2 * blurred).astype(np.float32)


def timed(function, *arguments, rounds: int) -> tuple[float, float]:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        value = function(*arguments)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), value


def pairs_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """ROC-AUC by its definition: every pair, ties one half."""
    scores = scores.astype(np.float64)
    difference = scores[labels == 1][:, None] - scores[labels == 0][None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def threshold_pro(masks: np.ndarray, maps: np.ndarray, limit: float = 0.30) -> float:
    """PRO by its definition: every score a threshold, region by region, the last trapezoid cut at
    the limit.
    """
    parts = [
        (number, labels == k)
        for number, (labels, n) in enumerate(ndimage.label(m, np.ones((3, 3))) for m in masks)
        for k in range(1, n + 1)
    ]
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        alarm = maps >= threshold
        rates.append((alarm & ~masks).sum() / (~masks).sum())
        overlaps.append(np.mean([alarm[number][where].mean() for number, where in parts]))
    rates, overlaps = np.array(rates), np.array(overlaps)
    inside = rates <= limit
    x, y = (
        np.append(rates[inside], limit),
        np.append(overlaps[inside], np.interp(limit, rates, overlaps)),
    )
    return float(np.trapezoid(y, x) / limit)


def hard_cases(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Scores and maps by what makes them hard; image figures have labels and scores, pixel figures
    masks and maps.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [60, 40])
    near = rng.standard_normal(100) + 1.5 * labels
    small = np.zeros((4, 16, 16), bool)
    small[0, 2:6, 3:9], small[1, 8:12, 8:12], small[1, 1:3, 12:15] = True, True, True
    maps = (rng.standard_normal(small.shape) + 2 * small).astype(np.float32)
    full = small.copy()
    full[2] = True
    return {
        "scores of 0 to 1": dict(
            labels=labels, scores=(1 / (1 + np.exp(-near))).astype(np.float32)
        ),
        "raw distances near 100": dict(labels=labels, scores=(100 + near).astype(np.float32)),
        "ties: one decimal": dict(
            labels=labels, scores=np.round(1 / (1 + np.exp(-near)), 1).astype(np.float32)
        ),
        "all scores equal, 0.5": dict(labels=labels, scores=np.full(100, 0.5, np.float32)),
        "maps": dict(masks=small, maps=maps),
        "maps near 100": dict(masks=small, maps=100 + maps),
        "maps with ties": dict(masks=small, maps=np.round(maps)),
        "one mask fills its image": dict(masks=full, maps=maps),
        "a constant map": dict(masks=small, maps=np.full(small.shape, 0.5, np.float32)),
    }


def compare_cases() -> tuple[list[str], list[Line]]:
    cases = hard_cases()
    arrays = {
        f"{number}/{key}": value
        for number, case in enumerate(cases.values())
        for key, value in case.items()
    }
    theirs = peers.ask("anomalib_metrics", arrays, repeat=1)[1]
    rows, off = [], {"scikit-learn": [], "anomalib": [], "pandalib": []}
    for number, (name, case) in enumerate(cases.items()):
        if "labels" in case:
            figures = [
                (
                    "ROC-AUC",
                    "roc_auc",
                    pairs_auc,
                    roc_auc_score,
                    roc_auc,
                    (case["labels"], case["scores"]),
                )
            ]
        else:
            figures = [
                (
                    "pixel ROC-AUC",
                    "pixel_roc_auc",
                    lambda m, s: pairs_auc(m.ravel(), s.ravel()),
                    lambda m, s: roc_auc_score(m.ravel(), s.ravel()),
                    pixel_roc_auc,
                    (case["masks"], case["maps"]),
                ),
                ("PRO, limit 0.30", "pro", threshold_pro, None, pro, (case["masks"], case["maps"])),
            ]
        for figure, key, definition, usual, ours, given in figures:
            true = definition(*given)
            values = {
                "scikit-learn": None if usual is None else float(usual(*given)),
                "anomalib": theirs[f"{number}/{key}"]["value"],
                "pandalib": ours(*given),
            }
            for side, value in values.items():
                off[side].append(0.0 if value is None else abs(value - true))
            rows.append(
                f"| {name} | {figure} | {true:.4f} | "
                + " | ".join("-" if value is None else f"{value:.4f}" for value in values.values())
                + " |"
            )
            print(rows[-1], flush=True)
    lines = [
        Line(
            "metrics, hard cases: pandalib, largest distance from the definition",
            "at most 1e-9",
            f"{max(off['pandalib']):.1e}",
            max(off["pandalib"]) <= 1e-9,
        )
    ]
    return rows, lines + [
        Line(
            f"metrics, hard cases: {side}, largest distance from the definition",
            "",
            f"{max(off[side]):.1e}",
            None,
        )
        for side in ("scikit-learn", "anomalib")
    ]


def main() -> None:
    import torch

    options = common.arguments(
        __doc__,
        7,
        ("--images", dict(type=int, default=40)),
        ("--size", dict(type=int, default=224)),
    )
    if options.tiny:
        options.images, options.size = 4, 48
    masks, distances = drawn(options.images, options.size)
    kinds = {"distances": distances, "squared distances": distances**2}
    arrays = {
        f"{number}/{key}": value
        for number, maps in enumerate(kinds.values())
        for key, value in (("masks", masks), ("maps", maps))
    }
    _, theirs = peers.ask(
        "anomalib_metrics", arrays, threads=torch.get_num_threads(), repeat=min(3, options.rounds)
    )
    rows, lines = [], []
    for number, (kind, maps) in enumerate(kinds.items()):
        for figure, key, usual, ours, rounds in (
            ("PRO, limit 0.30", "pro", looped_pro, pro, 1),
            (
                "pixel ROC-AUC",
                "pixel_roc_auc",
                lambda m, s: roc_auc_score(m.ravel(), s.ravel()),
                pixel_roc_auc,
                options.rounds,
            ),
        ):
            (slow, value), (fast, exact) = (
                timed(usual, masks, maps, rounds=rounds),
                timed(ours, masks, maps, rounds=options.rounds),
            )
            their = theirs[f"{number}/{key}"]
            rows.append(
                f"| {kind} | {figure} | {slow:.3g} | {their['seconds']:.3g} | {fast:.3g} | "
                f"{slow / fast:.1f} | {their['seconds'] / fast:.1f} | "
                f"{value:.4f} | {their['value']:.4f} | {exact:.4f} |"
            )
            print(rows[-1], flush=True)
            lines.append(faster(f"{figure} of {kind}, against the usual code", slow, fast))
            lines.append(faster(f"{figure} of {kind}, against anomalib", their["seconds"], fast))
    cases, more = compare_cases()
    page = PAGE.format(
        machine=machine(),
        versions=versions("numpy", "scikit-learn", "torch"),
        anomalib=peers.VERSIONS["anomalib"],
        rounds=options.rounds,
        section=section(lines + more),
        n=options.images,
        size=options.size,
        n_regions=regions(masks).max(),
        share=masks.mean(),
        rows="\n".join(rows),
        cases="\n".join(cases),
    )
    finish("pixel_metrics_speed.md", page, options.tiny)


if __name__ == "__main__":
    main()
