"""Glyphs: the upstream task. Some 500 characters, none of them a pictogram or an outlier symbol.

Pretraining on it is to the pictograms what ImageNet is to CIFAR-10: other things, other textures,
the same kind of picture. Each image has two labels, the glyph and the texture of its background.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from pandalib.datasets.synthetic.drawing import (
    FONT_FILES,
    Style,
    TextureBank,
    draw,
    font,
    generator,
    glyph_mask,
)
from pandalib.datasets.synthetic.pictograms import OUTLIERS, SYMBOLS

STYLE = Style(0, 0.45, 0.15, (0.42, 0.85), clutter=0.7, contrast=(0.18, 0.45), noise=0.03)
N_TEXTURES = 128
# Latin, digits, Greek, Cyrillic, Armenian, Georgian, Hebrew, arrows, mathematical, technical and
# geometric signs, symbols, dingbats. What both fonts lack, and what looks alike, drops out below.
RANGES = (
    *((0x41, 0x5B), (0x61, 0x7B), (0x30, 0x3A), (0x391, 0x3CA), (0x410, 0x450), (0x531, 0x557)),
    *((0x10D0, 0x10F1), (0x5D0, 0x5EB), (0x2190, 0x2300), (0x2300, 0x23A0), (0x25A0, 0x2600)),
    *((0x2600, 0x26B0), (0x2701, 0x27BF)),
)
# Other drawings of a pictogram's own idea (outlined stars, the telephone sign, ...) give it away.
RELATIVES = "☆✩✪✫✬✭✮✯✰☔⛱☏✆✁✃✄♡❣❤❥❦❧♘♩♪♬♭⛄"
SAME = 0.93  # cosine similarity of the shrunken masks above which two characters are one class
FEWEST_PIXELS = 800  # of ink, of 128 x 128: smaller marks (dots, primes) are no objects


@functools.cache
def textures() -> TextureBank:
    return TextureBank(N_TEXTURES, seed=1)


@functools.cache
def classes() -> str:
    """The characters of the upstream task, one class each, in a fixed order."""
    # The pictograms are compared with as well: a class that looks like one would give it away.
    taken = sorted(set(SYMBOLS.values()) | set(OUTLIERS))
    looks = np.stack([_look(character) for character in taken])
    kept = []
    for character in (chr(code) for low, high in RANGES for code in range(low, high)):
        if character in taken or character in RELATIVES:
            continue
        if not all(_drawn(character, name) for name in FONT_FILES):
            continue
        ink, look = np.asarray(glyph_mask(character)).sum() / 255, _look(character)
        if ink >= FEWEST_PIXELS and (looks @ look).max() <= SAME:
            kept.append(character)
            looks = np.vstack([looks, look])
    return "".join(kept)


def _drawn(character: str, font_name: str) -> bool:
    """Whether the font has the character: what it lacks, it draws as one and the same box."""
    mask, box = font(font_name).getmask(character), font(font_name).getmask("\U0010ffff")
    return mask.size != box.size or bytes(mask) != bytes(box)


def _look(character: str) -> np.ndarray:
    small = np.asarray(glyph_mask(character).reduce(8), dtype=np.float32).ravel()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def draw_batch(
    indices: Sequence[int], *, split: str = "train", seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images of the upstream task, by number, in any order.

    Parameters
    ----------
    indices : sequence of n int
    split : str
        Images of different splits share nothing.
    seed : int

    Returns
    -------
    images : uint8 array (n, 3, 64, 64)
    glyphs : int64 array (n,)
        Which of `classes`.
    textures : int64 array (n,)
        Of the background.
    """
    images = np.empty((len(indices), 3, 64, 64), dtype=np.uint8)
    glyph_labels, texture_labels = np.empty((2, len(indices)), dtype=np.int64)
    for row, index in enumerate(indices):
        rng = generator(f"glyphs/{split}", seed, int(index))
        label = glyph_labels[row] = rng.integers(len(classes()))
        images[row], texture_labels[row], _ = draw(rng, textures(), classes()[label], STYLE)
    return images, glyph_labels, texture_labels
