"""Outliers for exposure: drawn ones for the pictograms, by their distance from what will be tested, or a folder of images.

None of the drawn ones shows one of the ten symbols (tests/test_outliers.py), so a detector that has seen them has still
seen no anomaly of the test. Of a folder only this can be checked: that no image of it is a test image.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from pandalib.datasets.synthetic.drawing import generator
from pandalib.datasets.folder import _sample
from pandalib.datasets.synthetic.glyphs import draw_batch
from pandalib.datasets.images import ENDINGS, ImageFolder, image_names, subfolders
from pandalib.datasets.synthetic.pictograms import DEFAULT_LEVEL, OUTLIERS, Pictograms
from pandalib.datasets.load import OneClassTask

KINDS = {
    "near": "other symbols, drawn as the ten are",
    "middle": "letters and signs of the upstream task",
    "far": "backgrounds without any symbol",
    "noise": "random pixels",
}


def load_outliers(
    kind: str, n: int, *, seed: int = 0, level: str = DEFAULT_LEVEL, symbols: str = OUTLIERS
) -> np.ndarray:
    """Images that are not normal, uint8 (n, 3, 64, 64).

    Parameters
    ----------
    kind : one of `KINDS`.
    n : how many. A smaller number gives the first ones of a larger.
    level : difficulty of the pictograms, for "near" and "far".
    symbols : of "near", used in turn.

    Raises ValueError for an unknown kind or level, n below 1, or no symbols.
    """
    if kind not in KINDS:
        raise ValueError(f"outliers {kind!r} are unknown: choose one of {', '.join(KINDS)}.")
    _check_number(n)
    if not symbols:
        raise ValueError("there are no symbols: expected at least 1 character.")
    if kind == "middle":
        return draw_batch(range(n), split="outliers", seed=seed)[0]
    if kind == "noise":
        return np.stack(
            [
                generator("noise", seed, i).integers(0, 256, (3, 64, 64), dtype=np.uint8)
                for i in range(n)
            ]
        )
    drawn = [
        Pictograms(symbol, n, split="outliers", seed=seed, level=level)
        for symbol in (symbols if kind == "near" else " ")
    ]
    return np.stack([drawn[i % len(drawn)][i] for i in range(n)])


def outlier_folder(
    path, n: int | None = None, *, size: int, resize: int | None = None, seed: int = 0
) -> ImageFolder:
    """The images in a folder and in the folders directly in it, as a lazy sequence uint8 (N, 3, size, size).

    Parameters
    ----------
    n : at most so many, drawn by `seed` (None: all). A smaller sample is part of the larger one.
    size, resize : in pixels, as in `pandalib.datasets.images.read_image`.

    Raises FileNotFoundError or NotADirectoryError for the path, ValueError where there is no image, or for n below 1.
    """
    if n is not None:
        _check_number(n)
    root = Path(path).expanduser()
    files = [
        folder / name
        for folder in (root, *(root / name for name in subfolders(root)))
        for name in image_names(folder)
    ]
    if not files:
        raise ValueError(
            f"the folder {str(path)!r} holds no images, nor do the folders in it: expected files ending in {' '.join(ENDINGS)}."
        )
    return ImageFolder(_sample(files, n, seed, "outliers"), size, resize)


def check_unseen(outliers: ImageFolder, task: OneClassTask) -> None:
    """Raise ValueError when an outlier is, pixel by pixel, a test image: the detector would learn what it is tested on."""
    tested = {_digest(image): number for number, image in enumerate(task.test)}
    for file, image in zip(outliers.files, outliers, strict=True):
        number = tested.get(_digest(image))
        if number is not None:
            name = f"number {number}" if task.files is None else repr(task.files[number])
            raise ValueError(
                f"outlier {str(file)!r} is the same as test image {name} ({task.kinds[number]}): take it out, since nothing may be learned from what is tested."
            )


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image)).digest()


def _check_number(n: int) -> None:
    if n < 1:
        raise ValueError(f"n={n} outliers: expected at least 1.")
