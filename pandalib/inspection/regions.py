"""What a map says in an image's own pixels: regions above the threshold; and ranks as p-values."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import find_objects, label

from pandalib.validation import as_array


class Region(NamedTuple):
    """A connected part of a map above the threshold, in pixels of the original image."""

    left: int
    top: int
    right: int  # the first column beyond it
    bottom: int
    area: int
    peak: float  # the largest value in it
    peak_x: int
    peak_y: int


def regions_above(anomaly_map, threshold: float) -> list[Region]:
    """The regions of a map (H, W) above a threshold, touching pixels being one; highest peak first.

    NaN is never above.

    Examples
    --------
    >>> anomaly_map = np.zeros((4, 6))
    >>> anomaly_map[1:3, 2:5] = [[5, 7, 5], [5, 5, 5]]
    >>> regions_above(anomaly_map, 4)
    [Region(left=2, top=1, right=5, bottom=3, area=6, peak=7.0, peak_x=3, peak_y=1)]
    """
    anomaly_map = as_array(anomaly_map)
    numbered, _ = label(anomaly_map > threshold, np.ones((3, 3)))
    found = []
    for number, (rows, columns) in enumerate(find_objects(numbered), start=1):
        inside = numbered[rows, columns] == number
        values = np.where(inside, anomaly_map[rows, columns], -np.inf)
        y, x = np.unravel_index(values.argmax(), values.shape)
        box = columns.start, rows.start, columns.stop, rows.stop
        peak = float(values[y, x]), int(columns.start + x), int(rows.start + y)
        found.append(Region(*box, int(inside.sum()), *peak))
    return sorted(found, key=lambda region: -region.peak)


def p_values(scores, normal_scores) -> np.ndarray:
    """The share of normal images that score at least as high, the image itself counted in: (n,).

    If an image is normal, its p-value is at most p with a probability of about p. With n normal
    images the smallest is 1 / (n + 1).

    Examples
    --------
    >>> p_values([0.5, 9.0], [1.0, 2.0, 3.0]).tolist()
    [1.0, 0.25]
    """
    normal = np.sort(as_array(normal_scores))
    above = len(normal) - np.searchsorted(normal, as_array(scores), side="left")
    return (1 + above) / (len(normal) + 1)
