"""A region of interest: the part of every image that is looked at."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pandalib.datasets.images import Geometry


def read_region(region: str | os.PathLike | Sequence, height: int, width: int) -> np.ndarray:
    """The pixels to look at in an image of this size.

    Parameters
    ----------
    region : path-like, str or sequence of (x, y)
        A mask image, in which what is not black is looked at; or the corners of a polygon, also as
        text, "10,20 300,20 300,180": x and y in pixels from the upper left corner, or, if none is
        above 1, as fractions of width and height, for images of several sizes.
    height, width : int
        Of the image, upright.

    Returns
    -------
    inside : bool array (height, width)

    Raises
    ------
    ImageError
        For a mask that cannot be read.
    ValueError
        Other proportions, fewer than three corners, or nothing inside.

    Examples
    --------
    >>> read_region([(1, 0), (3, 0), (3, 2), (1, 2)], 3, 4).astype(int)
    array([[0, 1, 1, 0],
           [0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    corners = _corners(region)
    if corners is None:
        blank = Image.new("L", (width, height))
        inside = Geometry(height, width).read_mask(region, image=blank)
    else:
        inside = _polygon(corners, height, width)
    if not inside.any():
        raise ValueError(f"the region {region!r} holds no pixel of {width} x {height}.")
    return inside


def check_proportions(region: np.ndarray, height: int, width: int) -> None:
    """Raise ValueError if a region (H, W) would be another place in an image of this size."""
    given, wanted = region.shape[1] / region.shape[0], width / height
    if abs(given / wanted - 1) > 0.01:
        raise ValueError(
            f"an image has {width} x {height} pixels: expected the proportions of the region of "
            f"interest, {region.shape[1]} x {region.shape[0]}."
        )


def _corners(region) -> np.ndarray | None:
    """The corners of a polygon, (n, 2); None for a file."""
    if isinstance(region, os.PathLike):
        return None
    if isinstance(region, str):
        try:
            region = [[float(number) for number in pair.split(",")] for pair in region.split()]
        except ValueError:
            return None
    lengths = {len(corner) for corner in region}
    if len(region) < 3 or lengths != {2}:
        raise ValueError(
            f"the region {region!r} is no polygon: expected 'x,y x,y x,y', at least three corners."
        )
    corners = np.asarray(region, float)
    if not (np.isfinite(corners).all() and (corners >= 0).all()):
        raise ValueError(f"the region {region!r} has corners that are not numbers of at least 0.")
    return corners


def _polygon(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels whose centres lie inside, by the even-odd rule."""
    if corners.max() <= 1:
        corners = corners * [width, height]
    if (corners > np.array([width, height]) + 1).any():
        raise ValueError(
            f"the region has a corner at {corners.max(axis=0).tolist()}, outside of an image of "
            f"{width} x {height} pixels: expected pixels of the first normal image, or fractions."
        )
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    inside = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:  # does a ray to the right cross this side?
            crossing = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
            inside ^= ((y0 <= y) != (y1 <= y)) & (x < crossing)
    return inside
