"""Tools for drawing: smooth noise, soft edges, colours that vary, light.

Fields are float32 (size, size). Lengths are in halves of the image side, from -1 at the left and
the top to 1, so that the size only says how finely a scene is sampled. Colours are sRGB, 0 to 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

LIGHT_FROM = (-0.6, -0.8)  # the lamp stands at the upper left: bevels and dents are lit from there
CODE = "rbbb"  # the dots printed on the washer, red and blue, clockwise


class Scene(NamedTuple):
    """One surface under its light, before noise."""

    image: np.ndarray  # float32 (3, size, size), without any defect
    spot: Callable[..., tuple[float, float]]  # by a generator, a place where a defect may lie
    angle: float = 0.0  # direction of the grain
    cover: np.ndarray | float = 1.0  # how much of each pixel is the thing inspected, not the bench
    redraw: Callable[..., np.ndarray] | None = None  # with something wrong: see each material

    @property
    def size(self) -> int:
        return self.image.shape[-1]


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


@functools.cache
def coordinates(size: int) -> np.ndarray:
    """(size * size, 2) pixel centres from -1 to 1, x first."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = np.meshgrid(line, line)
    return np.stack([x.ravel(), y.ravel()], axis=1)


@functools.cache
def axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixel centres, float32 (size, size) each."""
    x, y = coordinates(size).T.reshape(2, size, size)
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


@functools.cache
def spline(small: int, large: int) -> tuple[np.ndarray, np.ndarray]:
    """Cubic B-splines: numbers and weights of the four samples of each new one, (4, large)."""
    at = (np.arange(large) + 0.5) * small / large - 0.5
    left = np.floor(at).astype(int)
    t = at - left
    cubics = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    weights = (np.stack(cubics) / 6).astype(np.float32)
    return np.clip(left + np.arange(-1, 3)[:, None], 0, small - 1), weights


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def clouds(rng: np.random.Generator, rows: int, columns: int, size: int) -> np.ndarray:
    """Smooth noise of about unit variance; the fewer rows, the longer its waves from top to bottom.

    Four shifted copies a direction and no matrix product, whose threads would wait for each other
    a hundred times longer than they compute where other work keeps the cores busy.
    """
    noise = normal(rng, rows, columns) * np.float32(1 / 0.48)
    for cells in (rows, columns):
        noise = sum(
            weight[:, None] * noise.take(number, axis=0)
            for number, weight in zip(*spline(cells, size), strict=True)
        ).T
    return noise


def sample(field: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Bilinear values of a field that repeats, at fractional rows and columns."""
    top, left = np.floor(row), np.floor(column)
    down, right = row - top, column - left
    n_rows, n_columns = field.shape
    i, j = top.astype(np.int32) % n_rows, left.astype(np.int32) % n_columns
    i, below, after = i * n_columns, (i + 1) % n_rows * n_columns, (j + 1) % n_columns
    flat = field.ravel()
    upper = flat.take(i + j) * (1 - right) + flat.take(i + after) * right
    lower = flat.take(below + j) * (1 - right) + flat.take(below + after) * right
    return upper + (lower - upper) * down


def step(distance: np.ndarray, width: float) -> np.ndarray:
    """0 to 1 over a border `width` wide, where the distance to an edge changes sign."""
    return np.clip(distance * np.float32(1 / width) + np.float32(0.5), 0, 1)


def mix(one: np.ndarray, other: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """From one colour or image to another, pixel by pixel: (3, size, size)."""
    one, other = (c.reshape(3, 1, 1) if c.ndim == 1 else c for c in (one, other))
    return one + (other - one) * amount


def turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def lamp(rng: np.random.Generator, size: int, strength: float = 0.07) -> np.ndarray:
    """How brightly each pixel is lit, around 1: a slope in some direction, a dimmer rim."""
    x, y = axes(size)
    along, _ = turned(x, y, uniform(rng, -math.pi, math.pi))
    exposure = uniform(rng, 0.965, 1.035)
    slope = np.float32(strength * uniform(rng, 0.4, 1.0)) * along
    return np.float32(exposure) * (1 + slope - np.float32(0.035) * (x * x + y * y))


def oklch(lightness: float, chroma: float, hue: float) -> np.ndarray:
    """A colour by perceived lightness, chroma and hue in radians, as sRGB float32 (3,) in 0..1.

    Equal steps look equally large in this space (Ottosson 2020): `contrast` means the same for
    every hue.
    """
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short
    linear = np.clip(np.array([red, green, blue]), 0, 1)
    curved = 1.055 * linear ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, curved).astype(np.float32)


def tinted(rng: np.random.Generator, *colours: tuple[float, float, float]) -> list[np.ndarray]:
    """Colours of the kind (lightness, chroma, hue in degrees), a little different in each image."""
    return [
        oklch(
            lightness + uniform(rng, -0.015, 0.015),
            chroma * uniform(rng, 0.85, 1.15),
            math.radians(hue + uniform(rng, -4, 4)),
        )
        for lightness, chroma, hue in colours
    ]


def relief(height: np.ndarray) -> np.ndarray:
    """Brightness of a surface lit from the side: its slope towards the lamp, at any image size."""
    rate = np.float32(len(height) / 128)
    down, right = np.empty_like(height), np.empty_like(height)
    down[1:], down[0] = height[1:] - height[:-1], 0
    right[:, 1:], right[:, 0] = height[:, 1:] - height[:, :-1], 0
    return -rate * (right * np.float32(LIGHT_FROM[0]) + down * np.float32(LIGHT_FROM[1]))
