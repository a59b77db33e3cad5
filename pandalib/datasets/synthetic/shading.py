"""Tools for drawn surfaces: smooth noise, soft edges, colours that vary, light.

Fields are float32 (size, size). Lengths are in halves of the image side, from -1 at the left and
the top to 1, so that the size only says how finely a scene is sampled. Colours are sRGB, 0 to 1.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from pandalib.datasets.synthetic.drawing import coordinates, oklch, uniform

LIGHT_FROM = (-0.6, -0.8)  # the lamp stands at the upper left: bevels and dents are lit from there


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
