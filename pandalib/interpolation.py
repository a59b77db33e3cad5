"""Enlarging and blurring as matrices: both are linear, so one pair of matrix products does them for a whole stack.

An image M (h, w) becomes A @ M @ B.T, where A (H, h) enlarges and blurs along the rows' axis and B along the columns'.
"""

from __future__ import annotations

import functools

import numpy as np


@functools.cache
def enlargement(small: int, large: int) -> np.ndarray:
    """(large, small) float32 matrix of bilinear interpolation between pixel centres: E @ image @ E.T enlarges an image."""
    if small == 1:
        return np.ones((large, 1), dtype=np.float32)
    at = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    left = np.minimum(at.astype(int), small - 2)
    matrix = np.zeros((large, small), dtype=np.float32)
    matrix[np.arange(large), left] = 1 - (at - left)
    matrix[np.arange(large), left + 1] = at - left
    return matrix


@functools.cache
def blurred_enlargement(small: int, large: int, sigma: float) -> np.ndarray:
    """`enlargement`, then a Gaussian of standard deviation `sigma` in pixels of the large image: (large, small), float32.

    The Gaussian is scipy's: cut off at four sigma, the image mirrored at its border.
    """
    if sigma == 0:
        return enlargement(small, large)
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(enlargement(small, large).astype(np.float64), sigma, axis=0).astype(
        np.float32
    )
