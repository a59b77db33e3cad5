"""A heat map laid over its image, and where it is hottest in words.

One scale for all images, anchored on the threshold of the alarm: the colours (magma, which darkens evenly, so that it can be
told apart by colour-blind readers and in grey print) go from nothing to twice the threshold; a line runs along the threshold itself.
"""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

from pandalib.methods.distances import enlargement

SIDE = 320  # pixels of the longer side that an overlay has at least: a line needs some
REACH = 2.0  # the darkest colour, in thresholds
_COLOURS = matplotlib.colormaps["magma_r"](np.linspace(0.1, 0.9, 256))[:, :3].astype(
    np.float32
)  # ends short of black, which looks like a hole


def overlay(image: np.ndarray, heat: np.ndarray, threshold: float) -> np.ndarray:
    """Image uint8 (3, H, W) in grey under its map (H, W): uint8 (H', W', 3), enlarged where it is small."""
    factor = max(1, round(SIDE / max(heat.shape)))
    across, down = (enlargement(side, side * factor) for side in (heat.shape[1], heat.shape[0]))
    grey = (
        down
        @ (
            np.tensordot([0.299, 0.587, 0.114], image.astype(np.float32), axes=1).astype(np.float32)
            / 255
        )
        @ across.T
    )
    relative = down @ (heat / np.float32(threshold)) @ across.T
    mixed = _laid_over(grey, relative)
    hot = relative > 1
    # White over black: seen on light and on dark ground.
    edge = binary_dilation(hot, iterations=2) & ~hot
    mixed[binary_dilation(edge, iterations=2)] = 0
    mixed[edge] = 1
    return np.rint(np.clip(mixed, 0, 1) * 255).astype(np.uint8)


def scale_bar(width: int = 256, height: int = 20) -> np.ndarray:
    """The colours from 0 to `REACH` thresholds over middle grey, with the line at the threshold: uint8 (height, width, 3)."""
    relative = np.broadcast_to(np.linspace(0, REACH, width, dtype=np.float32), (height, width))
    mixed = _laid_over(np.full((height, width), 0.5, np.float32), relative)
    middle = round(width / REACH)
    mixed[:, middle - 2 : middle + 3] = 0
    mixed[:, middle - 1 : middle + 2] = 1
    return np.rint(mixed * 255).astype(np.uint8)


def _laid_over(grey: np.ndarray, relative: np.ndarray) -> np.ndarray:
    """Colours over a faded image: (h, w, 3), 0 to 1. What is cool stays clear."""
    colours = _COLOURS[np.clip(relative / REACH * 255, 0, 255).astype(int)]
    opacity = 0.68 * np.clip((relative - 0.45) / 0.75, 0, 1)[..., None]
    faded = (0.3 + 0.7 * grey)[..., None]
    return faded * (1 - opacity) + colours * opacity


def jpeg(pixels: np.ndarray, quality: int = 88) -> bytes:
    """uint8 (h, w, 3) as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(
        buffer, "JPEG", quality=quality, subsampling=0, optimize=True
    )
    return buffer.getvalue()


def in_words(spot) -> str:
    """A place from the top and from the left, 0 to 1 each, as one of nine names."""
    row, column = (min(2, int(3 * part)) for part in spot)
    names = (
        ("upper left", "top", "upper right"),
        ("left", "centre", "right"),
        ("lower left", "bottom", "lower right"),
    )
    return names[row][column]
