"""Where a map lies above the threshold: regions in pixels of the original image, and p-values."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from pandalib.datasets.images import Geometry

MOST = 20  # regions of one image


class Region(NamedTuple):
    """A connected part of an image above the threshold, in pixels of the original."""

    left: int
    top: int
    right: int  # the first column that is not in it
    bottom: int
    area: int
    peak_x: int
    peak_y: int
    peak: float  # the map's largest value in it, in thresholds


def find_regions(
    anomaly_map: np.ndarray, threshold: float, geometry: Geometry, height: int, width: int
) -> list[Region]:
    """The regions of a map (h, w) above the threshold, the highest peak first, at most 20.

    `height` and `width` are those of the original image, which `geometry` has read.

    Examples
    --------
    >>> heat = np.zeros((10, 10))
    >>> heat[2:4, 5] = 3, 4
    >>> find_regions(heat, 2.0, Geometry(10, 10), 100, 200)
    [Region(left=100, top=20, right=120, bottom=40, area=400, peak_x=110, peak_y=35, peak=2.0)]
    """
    numbered, _ = ndimage.label(anomaly_map > threshold, np.ones((3, 3)))
    start_x, start_y, end_x, end_y = geometry.window(height, width)
    x_step = (end_x - start_x) / anomaly_map.shape[1]
    y_step = (end_y - start_y) / anomaly_map.shape[0]
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbered), start=1):
        inside = numbered[rows, columns] == number
        values = np.where(inside, anomaly_map[rows, columns], -np.inf)
        row, column = np.unravel_index(values.argmax(), values.shape)
        x = start_x + x_step * np.array([columns.start, columns.stop, columns.start + column + 0.5])
        y = start_y + y_step * np.array([rows.start, rows.stop, rows.start + row + 0.5])
        x, y = np.clip(np.rint(x), 0, width), np.clip(np.rint(y), 0, height)
        area = round(float(inside.sum()) * x_step * y_step)
        peak = round(float(values.max() / threshold), 4)
        corners = int(x[0]), int(y[0]), int(x[1]), int(y[1])
        found.append(
            Region(*corners, area, min(int(x[2]), width - 1), min(int(y[2]), height - 1), peak)
        )
    found.sort(key=lambda region: -region.peak)
    return found[:MOST]


def p_values(scores: np.ndarray, normal_scores: np.ndarray) -> np.ndarray:
    """The rank of each score among those of normal images, (1 + number at least as high) / (n + 1).

    If an image is normal, its p-value is at most p with probability at most p (conformal
    prediction: Vovk, Gammerman and Shafer 2005). The smallest possible one is 1 / (n + 1).

    Examples
    --------
    >>> p_values(np.array([0.5, 2.0, 9.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [1.0, 0.75, 0.25]
    """
    ordered = np.sort(normal_scores)
    higher = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1 + higher) / (len(ordered) + 1)
