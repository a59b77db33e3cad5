"""The methods without adaptation on the ten pictograms: `python tools/baseline_table.py` writes docs/results/pictograms.md.

ROC-AUC, mean over the ten symbols, each normal in turn, for three seeds of the images, at the default level; and DN2
alone at every level. The test labels measure and choose nothing. About five minutes on 2 cores.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pandalib.weights import embedded_facts  # noqa: E402
from pandalib.io import write_atomically  # noqa: E402
from pandalib.experiments.run import run  # noqa: E402
from pandalib.datasets.synthetic import glyphs  # noqa: E402
from pandalib.datasets.synthetic.pictograms import DEFAULT_LEVEL, LEVELS, SYMBOLS, Pictograms  # noqa: E402

SEEDS = (0, 1, 2)
COLUMNS = {
    "pixels": dict(method="pixels"),
    "random network": dict(method="dn2", weights="random"),
    "DN2": dict(method="dn2"),
    "whitened": dict(method="whitened"),
}
PAGE = """# Pictograms without adaptation

Made by `python tools/baseline_table.py` with the weights {weights} (upstream accuracy {accuracy:.3f} on {classes} glyphs).
Embedded tier: these are this project's own images, not the paper's, and none of these figures may stand beside published ones.

ROC-AUC at the level "{level}", 400 normal training images, 60 test images of each of the ten symbols; mean over seeds {seeds}.
The last row is the mean over symbols and seeds, with the lowest and the highest mean of a single seed.

| normal symbol | {columns} |
|---|{rule}|
{rows}
| **mean** | {means} |

| must be | pixels below 0.60 | random network below 0.62 | DN2 between 0.80 and 0.92 |
|---|---|---|---|
| is | {verdicts} |

## By level

DN2, mean over the ten symbols, seed 0.

| level | what it adds | DN2 |
|---|---|---|
{levels}

## Speed of drawing

On one core of the machine that made this page: {pictograms:.0f} pictograms, {glyphs:.0f} glyphs a second (at least 300 are wanted).
"""
ADDS = {
    "plain": "one size, calm background, good contrast",
    "easy": "more sizes and places, more clutter",
    "medium": "sizes 1 to 4, any place, low contrast",
    "hard": "up to two letters behind the symbol",
}


def rate(draw, n: int = 300) -> float:
    start = time.process_time()
    draw(n)
    return n / (time.process_time() - start)


def main() -> None:
    auc = np.empty((len(COLUMNS), len(SYMBOLS), len(SEEDS)))
    for column, options in enumerate(COLUMNS.values()):
        for row, symbol in enumerate(SYMBOLS):
            for number, seed in enumerate(SEEDS):
                auc[column, row, number] = run(f"pictograms:{symbol}", seed=seed, **options)[
                    "roc_auc"
                ]
        print(list(COLUMNS)[column], auc[column].mean().round(4), flush=True)
    by_level = {
        level: np.mean(
            [run(f"pictograms:{symbol}", "dn2", level=level)["roc_auc"] for symbol in SYMBOLS]
        )
        for level in LEVELS
    }
    facts, means = embedded_facts(), auc.mean(axis=(1, 2))
    spread = auc.mean(axis=1)  # (columns, seeds)
    page = PAGE.format(
        weights=f"`{facts['file']}` (SHA-256 `{facts['sha256'][:12]}...`)",
        accuracy=facts["glyph_accuracy"],
        classes=facts["n_glyphs"],
        level=DEFAULT_LEVEL,
        seeds=", ".join(map(str, SEEDS)),
        columns=" | ".join(COLUMNS),
        rule="|".join(["---"] * len(COLUMNS)),
        rows="\n".join(
            f"| {symbol} | " + " | ".join(f"{v:.3f}" for v in auc[:, row].mean(axis=1)) + " |"
            for row, symbol in enumerate(SYMBOLS)
        ),
        means=" | ".join(
            f"**{mean:.3f}** ({low:.3f} to {high:.3f})"
            for mean, low, high in zip(means, spread.min(axis=1), spread.max(axis=1))
        ),
        verdicts=" | ".join(
            f"{mean:.3f}, {'met' if low <= mean <= high else 'NOT met'}"
            for mean, (low, high) in zip(means, ((0, 0.6), (0, 0.62), (0.8, 0.92)))
        ),
        levels="\n".join(
            f"| {level}{' (default)' if level == DEFAULT_LEVEL else ''} | {ADDS[level]} | {value:.3f} |"
            for level, value in by_level.items()
        ),
        pictograms=rate(lambda n: Pictograms("star", n)[:]),
        glyphs=rate(lambda n: glyphs.draw_batch(range(n))),
    )
    write_atomically(ROOT / "docs" / "results" / "pictograms.md", page.encode())
    print(page)


if __name__ == "__main__":
    main()
