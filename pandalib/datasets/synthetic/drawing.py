"""Drawing by code: seeded textures, glyphs from the fonts that matplotlib ships, their placement.

Every image is a function of (stream, seed, index) alone, so any image can be drawn by itself, in
any order: `generator` turns those three into a random generator, and nothing else is random.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pandalib.datasets.synthetic.shading import coordinates, oklch, uniform

FONT_FILES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")
MASK_SIZE = 128  # pixels of a glyph mask: twice the image, so that shrunk glyphs keep smooth edges
FONT_SIZE = 80


class Style(NamedTuple):
    """How one kind of image is drawn; scales are glyph heights relative to the image."""

    distractors: int = 0  # letters behind the symbol, each present with probability 0.7
    rotation: float = 0.35  # the symbol is turned by up to this angle in radians, either way
    shift: float = 0.17  # ... and moved by up to this fraction of the image side
    scale: tuple[float, float] = (0.37, 0.70)
    clutter: float = 0.5  # lightness differences of the background texture, 0 (only hues vary) to 1
    contrast: tuple[float, float] = (0.22, 0.45)  # lightness difference of symbol and background
    noise: float = 0.02  # standard deviation of the pixel noise, in units of the full range


# What is known of a drawn image besides its symbol. Places are fractions of the image side from its
# middle (y points down), size is the symbol's height likewise, angles and hues are radians,
# lightness goes from 0 to 1, and contrast is the symbol's lightness minus the background's.
ATTRIBUTES = ("x", "y", "size", "angle", "hue", "contrast", "background", "background_hue")


class Drawing(NamedTuple):
    """An image, uint8 (3, size, size), the number of its texture, and its `ATTRIBUTES` by name."""

    image: np.ndarray
    texture: int
    attributes: dict[str, float]


def generator(stream: str, seed: int, index: int) -> np.random.Generator:
    """Random generator of one image: the same numbers on every machine."""
    return np.random.default_rng([zlib.crc32(stream.encode()), seed, index])


@functools.cache
def font(name: str) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(str(path), FONT_SIZE)


@functools.cache
def glyph_mask(character: str, font_name: str = FONT_FILES[0]) -> Image.Image:
    """One character as a grey mask, (128, 128), centred by its ink."""
    mask = Image.new("L", (MASK_SIZE, MASK_SIZE))
    pen, face = ImageDraw.Draw(mask), font(font_name)
    left, top, right, bottom = pen.textbbox((0, 0), character, font=face)
    corner = MASK_SIZE / 2 - (left + right) / 2, MASK_SIZE / 2 - (top + bottom) / 2
    pen.text(corner, character, fill=255, font=face)
    return mask


def place(
    mask: Image.Image, size: int, *, height: float, angle: float, shift: tuple[float, float]
) -> np.ndarray:
    """Turn, scale and move a glyph mask into an image, float32 (size, size) in 0..1.

    Drawn at twice the size and averaged: bilinear sampling alone breaks thin strokes as it shrinks.
    """
    canvas = 2 * size
    step = FONT_SIZE / (height * canvas)  # mask pixels per canvas pixel
    cos, sin = math.cos(angle) * step, math.sin(angle) * step
    x, y = canvas * (0.5 + shift[0]), canvas * (0.5 + shift[1])
    middle = MASK_SIZE / 2
    inverse = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    bilinear = Image.Resampling.BILINEAR
    drawn = mask.transform((canvas, canvas), Image.Transform.AFFINE, inverse, bilinear).reduce(2)
    return np.asarray(drawn, dtype=np.float32) / np.float32(255)


class TextureBank:
    """Smooth random textures: small networks of sines over the coordinates, fixed by their seed."""

    def __init__(self, n: int, seed: int, hidden: int = 12):
        rng = np.random.default_rng([zlib.crc32(b"textures"), seed])

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal((n, *shape)).astype(np.float32)

        self.n = n
        self.frequency = normal(2, hidden) * np.exp(0.6 * normal(1, 1) + 1.3)
        self.phase = 2 * normal(hidden)
        self.mix, self.mix_bias = 0.75 * normal(hidden, hidden), 1.5 * normal(hidden)
        self.out, self.out_bias = 1.1 * normal(hidden, 2), 0.9 * normal(2)

    def draw(
        self, number: int, size: int, *, zoom: float, angle: float, shift: tuple[float, float]
    ) -> np.ndarray:
        """Two fields in 0..1, float32 (2, size, size), drawn at half the size: they are smooth."""
        half = size // 2
        cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
        turn = np.array([[cos, sin], [-sin, cos]], dtype=np.float32)
        points = (coordinates(half) - np.array(shift, dtype=np.float32)) @ turn
        wave = np.sin(points @ self.frequency[number] + self.phase[number])
        wave = np.sin(wave @ self.mix[number] + self.mix_bias[number])
        field = 1 / (1 + np.exp(-(wave @ self.out[number] + self.out_bias[number])))
        enlarge = enlargement(half, size)
        return enlarge @ field.T.reshape(2, half, half) @ enlarge.T


@functools.cache
def enlargement(small: int, large: int) -> np.ndarray:
    """Matrix E, float32 (large, small), of bilinear interpolation: E @ image @ E.T enlarges."""
    at = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    left = np.minimum(at.astype(int), small - 2)
    matrix = np.zeros((large, small), dtype=np.float32)
    matrix[np.arange(large), left] = 1 - (at - left)
    matrix[np.arange(large), left + 1] = at - left
    return matrix


def paint(
    rng: np.random.Generator,
    bank: TextureBank,
    size: int,
    lightness: float,
    strength: float,
    hue: float | None = None,
) -> tuple[np.ndarray, int, float]:
    """A textured surface around one lightness, float32 (3, size, size), its texture and its hue."""
    number = int(rng.integers(bank.n))
    shift = (uniform(rng, -1, 1), uniform(rng, -1, 1))
    zoom, angle = math.exp(uniform(rng, -1.2, 0.0)), uniform(rng, -math.pi, math.pi)
    fields = bank.draw(number, size, zoom=zoom, angle=angle, shift=shift)
    drawn_hue, chroma = uniform(rng, 0, 2 * math.pi), uniform(rng, 0.02, 0.12)
    hue = drawn_hue if hue is None else hue
    spread = 0.30 * strength
    base = oklch(lightness, chroma, hue)
    second = oklch(lightness + spread, chroma, hue + uniform(rng, -1.0, 1.0))
    third = oklch(lightness - spread, chroma, hue + uniform(rng, -1.0, 1.0))
    towards = np.stack([second - base, third - base], axis=1)  # (3, 2)
    return base[:, None, None] + np.tensordot(towards, fields, axes=1), number, hue


def draw(
    rng: np.random.Generator,
    bank: TextureBank,
    character: str,
    style: Style,
    letters: str = "",
    size: int = 64,
    attributes: Mapping[str, float] | None = None,
) -> Drawing:
    """One image, and what is known about it.

    `character` may be " ": a background without a symbol. The generator is used up in a fixed
    order, so that images of two symbols at one (stream, seed, index) differ only by the symbol, and
    images that were given other `attributes` (some of `ATTRIBUTES`) only by these.
    """
    given = attributes or {}
    ground = uniform(rng, 0.30, 0.80)
    ground = given.get("background", ground)
    image, texture, ground_hue = paint(
        rng, bank, size, ground, style.clutter, given.get("background_hue")
    )

    def stamp(mask, scale: tuple, shift: float, rotation: float, visible: bool, given: Mapping):
        """The image so far with a glyph on it, and the glyph's attributes."""
        height = math.exp(uniform(rng, math.log(scale[0]), math.log(scale[1])))
        angle = uniform(rng, -rotation, rotation)
        at = (uniform(rng, -shift, shift), uniform(rng, -shift, shift))
        step = uniform(rng, *style.contrast) * (1 if rng.random() < 0.5 else -1)
        if not 0.12 <= ground + step <= 0.97:  # that side is out of range: the other one has room
            step = -step
        drawn = dict(x=at[0], y=at[1], size=height, angle=angle, contrast=step)
        known = {name: given.get(name, value) for name, value in drawn.items()}
        fill, _, known["hue"] = paint(
            rng, bank, size, ground + known["contrast"], 0.3, given.get("hue")
        )
        if not visible:
            return image, known
        at = (known["x"], known["y"])
        shape = place(mask, size, height=known["size"], angle=known["angle"], shift=at)
        return image + shape * (fill - image), known

    for _ in range(style.distractors):
        mask = glyph_mask(letters[int(rng.integers(len(letters)))])
        image, _ = stamp(mask, (0.25, 0.45), 0.4, math.pi, rng.random() < 0.7, {})
    mask = glyph_mask(character, FONT_FILES[int(rng.integers(len(FONT_FILES)))])
    visible = character != " "
    image, known = stamp(mask, style.scale, style.shift, style.rotation, visible, given)
    image = image + np.float32(style.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    known |= {"background": ground, "background_hue": ground_hue}
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return Drawing(pixels, texture, {name: known[name] for name in ATTRIBUTES})
