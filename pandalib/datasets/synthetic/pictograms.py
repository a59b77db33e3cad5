"""Pictograms: the embedded images. Ten symbols, drawn by code; one is normal, nine are anomalous.

64 x 64 RGB, each image a function of (split, symbol, seed, index). The symbols come from the DejaVu
fonts that matplotlib ships; position, angle, size, colours and textures are random, so that pixels
alone tell nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from pandalib.datasets.images import LazyImages
from pandalib.datasets.synthetic.drawing import (
    ATTRIBUTES,
    Drawing,
    Style,
    TextureBank,
    draw,
    generator,
)
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
LETTERS = "ABCDEGHKMNPQRSUVWXZabdeghkmnqrsuy23456789"  # behind the symbols at the hard level

# In "medium", the default, position, size and contrast vary more than in the upstream task, so that
# adaptation has something to gain (docs/decisions.md).
LEVELS = {
    "plain": Style(0, 0.35, 0.17, (0.45, 0.75), clutter=0.3, contrast=(0.22, 0.45), noise=0.02),
    "easy": Style(0, 0.6, 0.25, (0.32, 0.85), clutter=0.7, contrast=(0.16, 0.42), noise=0.03),
    "medium": Style(0, 0.6, 0.32, (0.23, 0.92), clutter=1.0, contrast=(0.12, 0.40), noise=0.04),
    "hard": Style(2, 0.6, 0.32, (0.23, 0.92), clutter=1.0, contrast=(0.12, 0.40), noise=0.04),
}
DEFAULT_LEVEL = "medium"


@functools.cache
def textures() -> TextureBank:
    return TextureBank(64, seed=77)  # not the textures of the upstream task


class Pictograms(LazyImages):
    """Images of one symbol, drawn when they are asked for.

    Parameters
    ----------
    symbol : str
        A name from `SYMBOLS`, or a single character, or " " for a background without a symbol.
    n : int
        Number of images.
    split : str
        "train", "test" or any other word: images of different splits share nothing.
    seed : int
        With the index it fixes each image.
    level : str
        A name from `LEVELS`.
    attributes : dict of str to float or array (n,), optional
        Names from `ATTRIBUTES` -> the value for all images, or one for each. Everything else of an
        image stays as it is without them.

    Examples
    --------
    >>> Pictograms("star", 100)[:4].shape
    (4, 3, 64, 64)
    >>> small = Pictograms("star", 2, attributes={"size": 0.3})
    >>> images, attributes = small.drawn()
    >>> attributes["size"].tolist()
    [0.3, 0.3]
    """

    size = 64

    def __init__(
        self,
        symbol: str,
        n: int,
        *,
        split="train",
        seed: int = 0,
        level: str = DEFAULT_LEVEL,
        attributes: Mapping[str, ArrayLike] | None = None,
    ):
        if level not in LEVELS:
            raise ValueError(f"level {level!r} is unknown: choose one of {', '.join(LEVELS)}.")
        if symbol not in SYMBOLS and len(symbol) != 1:
            known = ", ".join(SYMBOLS)
            raise ValueError(
                f"symbol {symbol!r} is unknown: choose one of {known}, or a single character."
            )
        chosen = {name: np.asarray(values, float) for name, values in (attributes or {}).items()}
        for name, values in chosen.items():
            if name not in ATTRIBUTES:
                known = ", ".join(ATTRIBUTES)
                raise ValueError(f"attribute {name!r} is unknown: choose among {known}.")
            if values.shape not in ((), (n,)) or not np.isfinite(values).all():
                raise ValueError(
                    f"attribute {name!r} has the shape {values.shape}: expected one finite number, "
                    f"or {n}, one for each image."
                )
        self.chosen = {name: np.broadcast_to(values, n) for name, values in chosen.items()}
        self.symbol = symbol
        self.n = n
        self.split = split
        self.seed = seed
        self.level = level

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), 3, self.size, self.size

    def __len__(self) -> int:
        return self.n

    def drawn(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """All images, uint8 (n, 3, 64, 64), and their attributes: name -> float64 (n,)."""
        drawings = [self._draw(number) for number in range(len(self))]
        images = np.stack([drawing.image for drawing in drawings])
        known = [drawing.attributes for drawing in drawings]
        return images, {name: np.array([one[name] for one in known]) for name in ATTRIBUTES}

    def _read(self, number: int) -> np.ndarray:
        return self._draw(number).image

    def _draw(self, number: int) -> Drawing:
        character = SYMBOLS.get(self.symbol, self.symbol)
        rng = generator(f"pictograms/{self.split}/{character}", self.seed, number)
        chosen = {name: float(values[number]) for name, values in self.chosen.items()}
        return draw(rng, textures(), character, LEVELS[self.level], LETTERS, attributes=chosen)


@functools.lru_cache(maxsize=2)
def _test_images(n: int, seed: int, level: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`n` test images of each symbol: the ten tasks of a seed share them, and draw them once."""
    kinds = [Pictograms(name, n, split="test", seed=seed, level=level).drawn() for name in SYMBOLS]
    images = np.concatenate([images for images, _ in kinds])
    return images, {
        name: np.concatenate([attributes[name] for _, attributes in kinds]) for name in ATTRIBUTES
    }


def load_task(
    symbol: str,
    *,
    seed: int = 0,
    n_train: int = 400,
    n_test: int = 60,
    level: str = DEFAULT_LEVEL,
    size: int = 64,
) -> OneClassTask:
    """One symbol is normal, the other nine are anomalous; `n_test` images of each are tested.

    Parameters as in `pandalib.load_task`. Raises ValueError for an unknown symbol or level, a size
    that is not 64, and fewer than 2 training images.
    """
    if symbol not in SYMBOLS:
        raise ValueError(f"pictograms:{symbol} is unknown: choose one of {', '.join(SYMBOLS)}.")
    if n_train < 2 or n_test < 1 or size != 64:
        raise ValueError(
            f"n_train={n_train}, n_test={n_test}, size={size}: expected at least 2 training "
            "images, at least 1 test image a symbol, and a size of 64."
        )
    kinds = tuple(name for name in SYMBOLS for _ in range(n_test))
    train, known = Pictograms(symbol, n_train, split="train", seed=seed, level=level).drawn()
    test, known_of_test = _test_images(n_test, seed, level)
    return OneClassTask(
        name=f"pictograms:{symbol}",
        train=train,
        test=test.copy(),  # nobody changes those of another task
        labels=np.array([int(kind != symbol) for kind in kinds]),
        kinds=kinds,
        train_attributes=known,
        test_attributes={name: values.copy() for name, values in known_of_test.items()},
    )
