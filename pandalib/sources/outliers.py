"""Outliers for exposure on the pictograms, by their distance from what the detector will be tested on.

None of them shows one of the ten symbols (tests/test_exposure.py), so a detector that has seen them has still seen no
anomaly of the test.
"""

from __future__ import annotations

import numpy as np

from pandalib.sources.drawing import generator
from pandalib.sources.glyphs import draw_batch
from pandalib.sources.pictograms import DEFAULT_LEVEL, OUTLIERS, Pictograms

KINDS = {
    "near": "other symbols, drawn as the ten are",
    "middle": "letters and signs of the upstream task",
    "far": "backgrounds without any symbol",
    "noise": "random pixels",
}


def load_outliers(kind: str, n: int, *, seed: int = 0, level: str = DEFAULT_LEVEL, symbols: str = OUTLIERS) -> np.ndarray:
    """Images that are not normal, uint8 (n, 3, 64, 64).

    Parameters
    ----------
    kind : one of `KINDS`.
    n : how many. A smaller number gives the first ones of a larger.
    level : difficulty of the pictograms, for "near" and "far".
    symbols : of "near", used in turn.

    Raises ValueError for an unknown kind, or n below 1.
    """
    if kind not in KINDS:
        raise ValueError(f"outliers {kind!r} are unknown: choose one of {', '.join(KINDS)}.")
    if n < 1:
        raise ValueError(f"n={n} outliers: expected at least 1.")
    if kind == "middle":
        return draw_batch(range(n), split="outliers", seed=seed)[0]
    if kind == "noise":
        return np.stack([generator("noise", seed, i).integers(0, 256, (3, 64, 64), dtype=np.uint8) for i in range(n)])
    drawn = [Pictograms(symbol, n, split="outliers", seed=seed, level=level) for symbol in (symbols if kind == "near" else " ")]
    return np.stack([drawn[i % len(drawn)][i] for i in range(n)])
