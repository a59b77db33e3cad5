"""Images for outlier exposure: drawn at a chosen distance from the test images, or a folder.

No drawn outlier shows one of the ten pictograms (tests/test_outliers.py), so a detector that has
seen them has still seen no anomaly of the test. For other images we can only check that none of
them is a test image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pandalib.cache import content_key
from pandalib.datasets.images import Geometry, ImageFolder
from pandalib.datasets.listing import image_files, subfolders
from pandalib.datasets.synthetic.drawing import generator
from pandalib.datasets.synthetic.glyphs import draw_batch
from pandalib.datasets.synthetic.pictograms import DEFAULT_LEVEL, OUTLIERS, Pictograms
from pandalib.datasets.task import OneClassTask, sample
from pandalib.validation import check_counts

KINDS = {
    "near": "other symbols, drawn as the ten are",
    "single": "one such symbol, in every image",
    "middle": "letters and signs of the upstream task",
    "far": "backgrounds without any symbol",
    "noise": "random pixels",
}


def load_outliers(kind: str, n: int, *, seed: int = 0, level: str = DEFAULT_LEVEL) -> np.ndarray:
    """Draw images that are not normal.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    n : int
        How many; a smaller n gives the first images of a larger one.
    level : str
        Difficulty of "near", "single" and "far"; "near" takes all symbols in turn.

    Returns
    -------
    images : uint8 array (n, 3, 64, 64)

    Raises
    ------
    ValueError
        An unknown kind or level, or n below 1.

    Examples
    --------
    >>> load_outliers("far", 2).shape
    (2, 3, 64, 64)
    """
    if kind not in KINDS:
        raise ValueError(f"outliers {kind!r} are unknown: choose one of {', '.join(KINDS)}.")
    check_counts(n=n)
    if kind == "middle":
        return draw_batch(range(n), split="outliers", seed=seed)[0]
    if kind == "noise":
        generators = (generator("noise", seed, number) for number in range(n))
        return np.stack([rng.integers(0, 256, (3, 64, 64), np.uint8) for rng in generators])
    symbols = {"near": OUTLIERS, "single": OUTLIERS[:1], "far": " "}[kind]
    drawn = [Pictograms(symbol, n, split="outliers", seed=seed, level=level) for symbol in symbols]
    return np.stack([drawn[number % len(drawn)][number] for number in range(n)])


def outlier_folder(path, n: int | None = None, *, geometry: Geometry, seed: int = 0) -> ImageFolder:
    """The images in a folder and in the folders directly in it.

    Parameters
    ----------
    path : path-like
    n : int, optional
        At most this many, drawn with `seed`; a smaller sample is part of a larger one.
    geometry : Geometry
        Of the task's images.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        For the path.
    ValueError
        There are no images, or n is below 1.
    """
    if n is not None:
        check_counts(n=n)
    root = Path(path).expanduser()
    folders = [root, *(root / name for name in subfolders(root))]
    files = [file for folder in folders for file in image_files(folder)]
    if not files:
        raise ValueError(f"the folder {str(path)!r} holds no images, nor do the folders in it.")
    return ImageFolder(sample(files, n, seed, "outliers"), geometry)


def check_unseen(outliers, task: OneClassTask) -> None:
    """Raise ValueError if an outlier equals a test image pixel for pixel."""
    tested = {content_key(image): number for number, image in enumerate(task.test)}
    for place, image in enumerate(outliers):
        number = tested.get(content_key(image))
        if number is not None:
            outlier = getattr(outliers, "files", range(len(outliers)))[place]
            image = number if task.files is None else task.files[number]
            raise ValueError(
                f"outlier {str(outlier)!r} is test image {str(image)!r} ({task.kinds[number]}): "
                "remove it, since nothing may be learned from what is tested."
            )
