"""Surfaces: embedded images for inspection. Six kinds, drawn by code; defects known to the pixel.

Each image is a function of (split, kind, seed, index), each defect of its name besides. A defect is
drawn over the normal image of the same index, before noise: the mask is where the two differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pandalib.datasets.images import LazyImages
from pandalib.datasets.synthetic import defects as drawn
from pandalib.datasets.synthetic.drawing import generator
from pandalib.datasets.synthetic.materials import MATERIALS
from pandalib.datasets.task import OneClassTask

KINDS = tuple(MATERIALS)
DEFECTS = {kind: tuple(drawn.DEFECTS[kind]) for kind in KINDS}
# Normal parts in the wrong place: nothing there looks strange by itself. Not in the default task.
LOGICAL = {kind: tuple(drawn.LOGICAL.get(kind, ())) for kind in KINDS}
SIZES = (64, 256)  # smallest and largest side in pixels
THRESHOLD = 3 / 255  # of the full range: a smaller change is neither drawn nor in the mask
NOISE = 0.012  # standard deviation of the pixel noise, in units of the full range
MARGIN = 0.05  # noise is cut off here, and colours keep as far from black and white: no clipping


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


class Surfaces(LazyImages):
    """Images of one kind of surface, drawn when asked for, normal or all with one defect.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    n : int
        Number of images.
    defect : str, optional
        A name from `DEFECTS[kind]` or `LOGICAL[kind]`; None: normal images. With it or without it,
        at any level, the images of one index are equal outside the mask.
    split : str
        "train", "test" or any other word: images of different splits share nothing.
    seed : int
        With the index it fixes each image.
    level : str
        A name from `LEVELS`.
    size : int
        Side in pixels, from 64 to 256.

    Examples
    --------
    >>> images, masks = Surfaces("weave", 10, defect="hole", size=64).pairs([0, 3])
    >>> images.shape, masks.shape
    ((2, 3, 64, 64), (2, 64, 64))
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
        known = {"surface": (kind, KINDS), "level": (level, LEVELS)}
        if defect is not None and kind in KINDS:
            known[f"defect of {kind}"] = (defect, DEFECTS[kind] + LOGICAL[kind])
        for what, (given, choices) in known.items():
            if given not in choices:
                raise ValueError(
                    f"{what} {given!r} is unknown: choose one of {', '.join(choices)}."
                )
        if not isinstance(size, (int, np.integer)) or not SIZES[0] <= size <= SIZES[1]:
            raise ValueError(f"size={size}: expected a whole number from {SIZES[0]} to {SIZES[1]}.")
        self.kind = kind
        self.n = n
        self.defect = defect
        self.split = split
        self.seed = seed
        self.level = level
        self.size = size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), 3, self.size, self.size

    def __len__(self) -> int:
        return self.n

    def pairs(self, index=slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Images, and masks of exactly the pixels that the defect changed, bool (n, size, size)."""
        numbers = np.arange(self.n)[index]
        if numbers.ndim == 0:
            return self._pair(int(numbers))
        pairs = [self._pair(int(number)) for number in numbers]
        masks = np.array([mask for _, mask in pairs], bool).reshape(-1, self.size, self.size)
        return self._stack([image for image, _ in pairs]), masks

    def _read(self, number: int) -> np.ndarray:
        return self._pair(number)[0]

    def _pair(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        rng = generator(f"surfaces/{self.split}/{self.kind}", self.seed, number)
        scene = MATERIALS[self.kind](rng, self.size)
        noise = NOISE * rng.standard_normal(scene.image.shape, dtype=np.float32)
        noise = np.clip(noise, -MARGIN, MARGIN)
        image = np.clip(scene.image, MARGIN, 1 - MARGIN)
        mask = np.zeros(image.shape[1:], bool)
        if self.defect is not None:
            faulty = np.clip(self._with_defect(scene, number), MARGIN, 1 - MARGIN)
            mask = (np.abs(faulty - image) > THRESHOLD).any(axis=0)
            image = np.where(mask, faulty, image)
        return np.rint((image + noise) * 255).astype(np.uint8), mask

    def _with_defect(self, scene, number: int) -> np.ndarray:
        rng = generator(f"defects/{self.split}/{self.kind}/{self.defect}", self.seed, number)
        if self.defect in LOGICAL[self.kind]:
            return drawn.LOGICAL[self.kind][self.defect](rng, scene, 1.0)
        contrast, scale = LEVELS[self.level]
        faulty = drawn.DEFECTS[self.kind][self.defect](rng, scene, scale)
        if self.defect in drawn.SHAPES:
            return faulty
        return scene.image + np.float32(contrast) * (faulty - scene.image)


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
    """Normal images of one kind of surface, against the same with defects.

    Parameters
    ----------
    kind, seed, level, size
        As in `Surfaces`.
    n_train, n_good, n_test : int
        Number of training images, of normal test images, and of test images with each defect.
    defects : sequence of str, optional
        Which, in this order; None: all of `DEFECTS[kind]`, not those of `LOGICAL[kind]`.

    Returns
    -------
    task : OneClassTask
        With masks. Each test image has a surface of its own, whatever else is asked for.

    Raises
    ------
    ValueError
        An unknown name, an impossible size, fewer than 2 training images, no test images.
    """
    options = dict(seed=seed, level=level, size=size)
    train = Surfaces(kind, n_train, **options)
    names = DEFECTS[kind] if defects is None else tuple(defects)
    if n_train < 2 or n_good < 1 or n_test < 1 or isinstance(defects, str) or not names:
        raise ValueError(
            f"n_train={n_train}, n_good={n_good}, n_test={n_test}, defects={defects!r}: expected "
            "at least 2, 1 and 1 images, and a list of defects."
        )
    # A split for each defect: with one for all, the defects would lie on the same few surfaces.
    tests = [Surfaces(kind, n_good, split="test", **options)]
    for name in names:
        tests.append(Surfaces(kind, n_test, defect=name, split=f"test {name}", **options))
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
