"""PRO and pixel ROC-AUC against the usual code: `python bench/pixel_metrics.py` writes docs/results/pixel_metrics_speed.md.

The usual code for PRO takes 200 evenly spaced thresholds and loops over images and regions at each; for pixel ROC-AUC
it is scikit-learn.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from scipy import ndimage
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pandalib import pixel_roc_auc, pro  # noqa: E402
from pandalib.files import write_atomically  # noqa: E402
from pandalib.pixel_metrics import regions  # noqa: E402

PAGE = """# PRO and pixel ROC-AUC: seconds and values

Made by `python bench/pixel_metrics.py` on {machine}; numpy {numpy}. Medians of {rounds} rounds (of one for the loop);
{n} drawn maps of {size} x {size} in float32, half of the images good, {n_regions} regions, {share:.1%} of the pixels anomalous.

| maps | figure | usual code, s | pandalib, s | ratio | usual value | exact value | difference |
|---|---|---|---|---|---|---|---|
{rows}

The usual code for PRO takes 200 evenly spaced thresholds, alarms above and not at them, and stretches the curve so that the
last corner below 0.30 becomes 1. So its value follows the scale of the scores: squared distances and distances have the
same order and the same exact value, but the evenly spaced thresholds meet other scores.
"""


def looped_pro(masks: np.ndarray, maps: np.ndarray, n_thresholds: int = 200, limit: float = 0.30) -> float:
    """The usual code: per threshold, image and region, the share of alarmed pixels."""
    parts = [[np.nonzero(labels == k) for k in range(1, n + 1)] for labels, n in (ndimage.label(m, np.ones((3, 3))) for m in masks)]
    rates, overlaps = [], []
    for threshold in np.linspace(maps.min(), maps.max(), n_thresholds):
        alarm = maps > threshold
        overlaps.append(np.mean([one[where].mean() for one, regions_of_one in zip(alarm, parts) for where in regions_of_one]))
        rates.append((alarm & ~masks).sum() / (~masks).sum())
    rates, overlaps = np.array(rates), np.array(overlaps)
    rates, overlaps = rates[rates < limit], overlaps[rates < limit]
    return float(np.trapezoid(overlaps[::-1], rates[::-1] / rates.max()))


def drawn(n: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Masks with discs of 2 to 30 pixels' radius in every other image; distances: smooth noise, higher at the discs."""
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


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    masks, distances = drawn(options.images, options.size)
    rows = []
    for kind, maps in (("distances", distances), ("squared distances", distances**2)):
        for figure, usual, ours, rounds in (
            ("PRO, limit 0.30", looped_pro, pro, 1),
            ("pixel ROC-AUC", lambda m, s: roc_auc_score(m.ravel(), s.ravel()), pixel_roc_auc, options.rounds),
        ):
            (slow, theirs), (fast, exact) = timed(usual, masks, maps, rounds=rounds), timed(ours, masks, maps, rounds=options.rounds)
            rows.append(f"| {kind} | {figure} | {slow:.3g} | {fast:.3f} | {slow / fast:.0f} | {theirs:.4f} | {exact:.4f} | {theirs - exact:+.1e} |")
            print(rows[-1], flush=True)
    page = PAGE.format(
        machine=f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}", numpy=np.__version__, rounds=options.rounds,
        n=options.images, size=options.size, n_regions=regions(masks).max(), share=masks.mean(), rows="\n".join(rows),
    )  # fmt: skip
    write_atomically(ROOT / "docs" / "results" / "pixel_metrics_speed.md", page.encode())


if __name__ == "__main__":
    main()
