"""Small defects in large images: overlapping tiles at full resolution, and one map from theirs.

A defect of 20 pixels in 4000 x 3000 is one pixel once the image has become 224 x 168. In tiles it
keeps its size. Tiles overlap, so that every defect smaller than the overlap lies whole in one of
them. A stitched map is the weighted mean of the tiles' maps,

    map(y, x) = sum_t w_t(y, x) map_t(y, x) / sum_t w_t(y, x),

where w_t falls linearly to zero over the overlap, towards the border of tile t: there a network
knows the least, and so no seam can show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from pandalib.datasets.images import Geometry, LazyImages
from pandalib.validation import check_counts

SEEN = 16  # pixels of the network's input that the smallest defect should cover


class Tiles(LazyImages):
    """The tiles of one image, each read when it is needed: uint8 (n, 3, size, size).

    Parameters
    ----------
    source : path-like, PIL image or array
        As for `Geometry.read`. It is kept decoded, 3 bytes a pixel.
    tile : int
        Side in pixels of the image. A side of the image that is shorter is padded.
    overlap : int
        Least number of pixels that neighbours share; 0 to tile - 1.
    geometry : Geometry
        Its height is the size that each tile gets; black and white are as for whole images.

    Examples
    --------
    >>> tiles = Tiles(np.zeros((300, 400, 3), np.uint8), 160, 40, Geometry.square(64))
    >>> tiles.shape, tiles.boxes[-1]
    ((9, 3, 64, 64), (140, 240, 300, 400))
    >>> tiles.stitch(np.ones((9, 8, 8))).shape
    (300, 400)
    """

    def __init__(self, source, tile: int, overlap: int, geometry: Geometry):
        side = geometry.height  # tiles at the border of a narrow image keep their scale
        self.geometry = replace(geometry, width=side, fit="pad", resize=None)
        self.pixels = geometry.pixels(source)
        self.overlap = overlap
        self.boxes = tile_boxes(*self.pixels.shape[:2], tile, overlap)

    def __len__(self) -> int:
        return len(self.boxes)

    def _read(self, number: int) -> np.ndarray:
        top, left, bottom, right = self.boxes[number]
        return self.geometry.read(self.pixels[top:bottom, left:right])

    def stitch(self, maps: Iterable[np.ndarray]) -> np.ndarray:
        """One map of the whole image, float32 (H, W), from the maps (h, w) of its tiles in order.

        `maps` may be an iterator: only one of them is needed at a time.
        """
        whole = np.zeros(self.pixels.shape[:2], np.float32)
        rows, columns = {}, {}  # the sum of products of weights is a product of sums: a full grid
        for (top, left, bottom, right), one in zip(self.boxes, maps, strict=True):
            rows[top] = down = _weights(bottom - top, self.overlap)
            columns[left] = across = _weights(right - left, self.overlap)
            restored = self.geometry.restore(one, bottom - top, right - left)
            whole[top:bottom, left:right] += restored * down[:, None] * across
        for weights, axis in ((rows, 0), (columns, 1)):
            total = np.zeros(whole.shape[axis], np.float32)
            for start, values in weights.items():
                total[start : start + len(values)] += values
            whole /= np.expand_dims(total, 1 - axis)
        return whole


def tile_side(smallest_defect: int, size: int) -> int:
    """The side of tiles in which a defect of this many pixels covers `SEEN` pixels of `size`."""
    check_counts(smallest_defect=smallest_defect, size=size)
    return max(1, round(size * smallest_defect / SEEN))


def tile_boxes(height: int, width: int, tile: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Top, left, bottom and right of the tiles that cover an image, row by row.

    They are evenly spaced, share at least `overlap` pixels, and the last ends at the border.
    """
    check_counts(tile=tile, overlap=overlap + 1)
    if overlap >= tile:
        raise ValueError(f"overlap={overlap}: expected less than the tile, {tile} pixels.")
    return [
        (top, left, min(top + tile, height), min(left + tile, width))
        for top in _starts(height, tile, overlap)
        for left in _starts(width, tile, overlap)
    ]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    room = max(0, length - tile)
    n = math.ceil(room / (tile - overlap))
    return [round(room * i / n) for i in range(n)] + [room]


def _weights(length: int, overlap: int) -> np.ndarray:
    """1 inside, falling towards both ends over the overlap; never 0."""
    inside = np.arange(length)
    edge = np.minimum(inside, inside[::-1]) + 1
    return np.minimum(1, edge / (overlap + 1)).astype(np.float32)
