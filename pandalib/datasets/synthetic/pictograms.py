"""Pictograms: the embedded images. Ten symbols, drawn by code; one of them is normal, the other nine are anomalous.

64 x 64 RGB, each image a function of (split, symbol, seed, index). The symbols come from the DejaVu fonts that
matplotlib ships; position, angle, size, colours and textures are random, so that pixels alone tell nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from pandalib.datasets.synthetic.drawing import Style, TextureBank, draw, generator
from pandalib.datasets.task import OneClassTask

SYMBOLS = {
    "star": "★",
    "umbrella": "☂",
    "plane": "✈",
    "heart": "♥",
    "phone": "☎",
    "anchor": "⚓",
    "scissors": "✂",
    "notes": "♫",
    "snowman": "☃",
    "knight": "♞",
}
# Other symbols of the same kind, for outlier exposure: none of them is one of the ten.
OUTLIERS = "☀☁☘☠☢☮☯♔♠♣♦⚔⚙⚡✉✎✔✖✿❀❄"
# The letters that lie behind the symbols at the hard level.
LETTERS = "ABCDEGHKMNPQRSUVWXZabdeghkmnqrsuy23456789"

# Difficulty by name. In "medium", the default, position, size and contrast vary more than in the upstream task: what the
# pretrained features still tell apart there is what adaptation has to gain (docs/decisions.md).
LEVELS = {
    "plain": Style(
        rotation=0.35,
        shift=0.17,
        scale=(0.45, 0.75),
        clutter=0.3,
        contrast=(0.22, 0.45),
        noise=0.02,
    ),
    "easy": Style(
        rotation=0.6, shift=0.25, scale=(0.32, 0.85), clutter=0.7, contrast=(0.16, 0.42), noise=0.03
    ),
    "medium": Style(
        rotation=0.6, shift=0.32, scale=(0.23, 0.92), clutter=1.0, contrast=(0.12, 0.40), noise=0.04
    ),
    "hard": Style(
        rotation=0.6,
        shift=0.32,
        scale=(0.23, 0.92),
        clutter=1.0,
        contrast=(0.12, 0.40),
        noise=0.04,
        distractors=2,
    ),
}
DEFAULT_LEVEL = "medium"


@functools.cache
def textures() -> TextureBank:
    return TextureBank(64, seed=77)  # not the textures of the upstream task


class Pictograms(Sequence):
    """Images of one symbol, drawn on demand.

    Parameters
    ----------
    symbol : a name from `SYMBOLS`, or a single character, or " " for a background without a symbol.
    n : number of images.
    split : "train", "test" or any other word: images of different splits share nothing.
    seed : with the index it fixes each image.
    level : a name from `LEVELS`.

    Integer, slice and integer-array indexing give uint8 arrays (3, 64, 64) or (n, 3, 64, 64).
    """

    def __init__(
        self,
        symbol: str,
        n: int,
        *,
        split: str = "train",
        seed: int = 0,
        level: str = DEFAULT_LEVEL,
    ):
        if level not in LEVELS:
            raise ValueError(f"level {level!r} is unknown: choose one of {', '.join(LEVELS)}.")
        if symbol not in SYMBOLS and len(symbol) != 1:
            raise ValueError(
                f"symbol {symbol!r} is unknown: choose one of {', '.join(SYMBOLS)}, or give a single character."
            )
        self.symbol, self.n, self.split, self.seed, self.level = symbol, n, split, seed, level

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index):
        if isinstance(index, (int, np.integer)):
            if not -self.n <= index < self.n:
                raise IndexError(f"image {index} of {self.n}")
            return self._image(int(index) % self.n)
        numbers = np.arange(self.n)[index]
        return (
            np.stack([self._image(int(i)) for i in numbers])
            if len(numbers)
            else np.empty((0, 3, 64, 64), np.uint8)
        )

    def _image(self, index: int) -> np.ndarray:
        character = SYMBOLS.get(self.symbol, self.symbol)
        rng = generator(f"pictograms/{self.split}/{character}", self.seed, index)
        return draw(rng, textures(), character, LEVELS[self.level], LETTERS)[0]


@functools.lru_cache(maxsize=2)
def _test_images(n: int, seed: int, level: str) -> np.ndarray:
    """`n` test images of each symbol: the ten tasks of a seed share them, and draw them once."""
    return np.concatenate(
        [Pictograms(name, n, split="test", seed=seed, level=level)[:] for name in SYMBOLS]
    )


def load_task(
    symbol: str,
    *,
    seed: int = 0,
    n_train: int = 400,
    n_test: int = 60,
    level: str = DEFAULT_LEVEL,
    size: int = 64,
) -> OneClassTask:
    """One symbol is normal, the other nine are anomalous.

    Parameters
    ----------
    symbol : str
        A name from `SYMBOLS`.
    n_train, n_test : int
        Number of training images, and of test images of each of the ten symbols.
    seed, level
        As in `Pictograms`.
    size : int
        Only 64.

    Returns
    -------
    task : OneClassTask

    Raises
    ------
    ValueError
        An unknown symbol or level, another size, or fewer than 2 training images.
    """
    if symbol not in SYMBOLS:
        raise ValueError(f"pictograms:{symbol} is unknown: choose one of {', '.join(SYMBOLS)}.")
    if n_train < 2 or n_test < 1 or size != 64:
        raise ValueError(
            f"n_train={n_train}, n_test={n_test}, size={size}: expected at least 2 training images, "
            "at least 1 test image a symbol, and 64 x 64 pixels."
        )
    kinds = tuple(name for name in SYMBOLS for _ in range(n_test))
    return OneClassTask(
        name=f"pictograms:{symbol}",
        train=Pictograms(symbol, n_train, split="train", seed=seed, level=level)[:],
        test=_test_images(n_test, seed, level).copy(),  # nobody changes those of another task
        labels=np.array([int(kind != symbol) for kind in kinds]),
        kinds=kinds,
    )
