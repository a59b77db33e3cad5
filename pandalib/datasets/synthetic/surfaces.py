"""Surfaces: embedded images for inspection. Six kinds, drawn by code; the test images have defects, known to the pixel.

Each image is a function of (split, kind, seed, index), each defect of its name besides. A defect is drawn over the
normal image of the same index, before noise: the mask is exactly where the two images differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pandalib.datasets.synthetic import defects as drawn
from pandalib.datasets.synthetic.drawing import generator
from pandalib.datasets.synthetic.materials import MATERIALS
from pandalib.datasets.task import OneClassTask

KINDS = tuple(MATERIALS)
DEFECTS = {kind: tuple(drawn.DEFECTS[kind]) for kind in KINDS}
# Defects made of normal parts in the wrong place: nothing there looks strange by itself. Not part of the default task.
LOGICAL = {kind: tuple(drawn.LOGICAL.get(kind, ())) for kind in KINDS}
SIZES = (64, 256)  # smallest and largest side in pixels
# A change below this is none: it is neither drawn nor in the mask. In units of the full range.
THRESHOLD = 3 / 255
NOISE = 0.012  # standard deviation of the pixel noise, in units of the full range
# Noise is cut off here and the colours keep as far from black and white, so that clipping hides no change.
MARGIN = 0.05


class Visibility(NamedTuple):
    """How well defects can be seen."""

    contrast: float  # 1: at full strength; 0: not at all
    scale: float  # multiplies the lengths of a defect


# Logical defects are the same at every level: a part is in its place, or it is not.
LEVELS = {
    "clear": Visibility(1.0, 1.25),
    "medium": Visibility(0.7, 1.0),
    "faint": Visibility(0.4, 0.8),
}
DEFAULT_LEVEL = "medium"


class Surfaces(Sequence):
    """Images of one kind of surface, drawn on demand, normal or all with one defect.

    Parameters
    ----------
    kind : one of `KINDS`.
    n : number of images.
    defect : a name from `DEFECTS[kind]` or `LOGICAL[kind]`; None: normal images. With it or without it, at any level,
        the images of one index are equal outside the mask.
    split : "train", "test" or any other word: images of different splits share nothing.
    seed : with the index it fixes each image.
    level : a name from `LEVELS`.
    size : side in pixels, from 64 to 256.

    Integer, slice and integer-array indexing give uint8 arrays (3, size, size) or (n, 3, size, size).

    Raises ValueError for an unknown kind, defect or level, and for an impossible size.
    """

    def __init__(
        self,
        kind: str,
        n: int,
        *,
        defect: str | None = None,
        split: str = "train",
        seed: int = 0,
        level: str = DEFAULT_LEVEL,
        size: int = 128,
    ):
        if kind not in KINDS:
            raise ValueError(f"surfaces:{kind} is unknown: choose one of {', '.join(KINDS)}.")
        known = DEFECTS[kind] + LOGICAL[kind]
        if defect is not None and defect not in known:
            raise ValueError(
                f"defect {defect!r} of {kind} is unknown: choose one of {', '.join(known)}, or None for normal images."
            )
        if level not in LEVELS:
            raise ValueError(f"level {level!r} is unknown: choose one of {', '.join(LEVELS)}.")
        if not isinstance(size, (int, np.integer)) or not SIZES[0] <= size <= SIZES[1]:
            raise ValueError(
                f"size={size}: surfaces are drawn {SIZES[0]} to {SIZES[1]} pixels wide. Give a whole number in between, or leave it out for 128."
            )
        self.kind, self.n, self.defect, self.split, self.seed, self.level, self.size = (
            kind,
            n,
            defect,
            split,
            seed,
            level,
            size,
        )

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index):
        return self.pairs(index)[0]

    def masks(self, index=slice(None)) -> np.ndarray:
        """Where the defect is, bool (size, size) or (n, size, size): exactly the pixels that it changed."""
        return self.pairs(index)[1]

    def pairs(self, index=slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Images and masks at once, which is faster than one after the other."""
        if isinstance(index, (int, np.integer)):
            if not -self.n <= index < self.n:
                raise IndexError(f"image {index} of {self.n}")
            return self._pair(int(index) % self.n)
        numbers = np.arange(self.n)[index]
        images = np.empty((len(numbers), 3, self.size, self.size), np.uint8)
        masks = np.empty((len(numbers), self.size, self.size), bool)
        for row, number in enumerate(numbers):
            images[row], masks[row] = self._pair(int(number))
        return images, masks

    def _pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = generator(f"surfaces/{self.split}/{self.kind}", self.seed, index)
        scene = MATERIALS[self.kind](rng, self.size)
        noise = np.clip(
            NOISE * rng.standard_normal(scene.image.shape, dtype=np.float32), -MARGIN, MARGIN
        )
        image, mask = (
            np.clip(scene.image, MARGIN, 1 - MARGIN),
            np.zeros(scene.image.shape[1:], bool),
        )
        if self.defect is not None:
            faulty = np.clip(self._with_defect(scene, index), MARGIN, 1 - MARGIN)
            mask = (np.abs(faulty - image) > THRESHOLD).any(axis=0)
            image = np.where(mask, faulty, image)
        return np.rint((image + noise) * 255).astype(np.uint8), mask

    def _with_defect(self, scene, index: int) -> np.ndarray:
        rng = generator(f"defects/{self.split}/{self.kind}/{self.defect}", self.seed, index)
        if self.defect in LOGICAL[self.kind]:
            return drawn.LOGICAL[self.kind][self.defect](rng, scene, 1.0)
        contrast, scale = LEVELS[self.level]
        faulty = drawn.DEFECTS[self.kind][self.defect](rng, scene, scale)
        return (
            faulty
            if self.defect in drawn.SHAPES
            else scene.image + np.float32(contrast) * (faulty - scene.image)
        )


def load_task(
    kind: str,
    *,
    seed: int = 0,
    n_train: int = 50,
    n_good: int = 20,
    n_test: int = 10,
    level: str = DEFAULT_LEVEL,
    size: int = 128,
    defects: Sequence[str] | None = None,
) -> OneClassTask:
    """Learn from `n_train` normal images of one kind; test on `n_good` normal ones and `n_test` with each defect.

    Parameters
    ----------
    kind, seed, level, size : as in `Surfaces`.
    defects : which, in this order; None: all of `DEFECTS[kind]`. Those of `LOGICAL[kind]` have to be asked for.

    Returns
    -------
    OneClassTask with masks; the test images are the normal ones ("good"), then defect by defect. Each has a surface of
    its own, and it does not change with what else is asked for.

    Raises
    ------
    ValueError for an unknown kind, defect or level, an impossible size, fewer than 2 training images, no normal or no
    anomalous test image.
    """
    options = dict(seed=seed, level=level, size=size)
    train = Surfaces(kind, n_train, **options)
    if n_train < 2 or n_good < 1 or n_test < 1:
        raise ValueError(
            f"n_train={n_train}, n_good={n_good}, n_test={n_test}: at least 2 training images, 1 normal test image and 1 image a defect are needed."
        )
    names = DEFECTS[kind] if defects is None else tuple(defects)
    if isinstance(defects, str) or not names:
        raise ValueError(
            f"defects={defects!r}: expected a list of names, out of {', '.join(DEFECTS[kind] + LOGICAL[kind])}."
        )
    # A split for each defect: with one for all, the defects would lie on the same few surfaces.
    tests = [Surfaces(kind, n_good, split="test", **options)]
    tests += [
        Surfaces(kind, n_test, defect=name, split=f"test {name}", **options) for name in names
    ]
    images, masks = zip(*(test.pairs() for test in tests), strict=True)
    kinds = tuple(test.defect or "good" for test in tests for _ in range(len(test)))
    return OneClassTask(
        name=f"surfaces:{kind}",
        train=train[:],
        test=np.concatenate(images),
        labels=np.array([int(name != "good") for name in kinds]),
        kinds=kinds,
        masks=np.concatenate(masks),
    )
