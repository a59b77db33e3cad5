"""Features: checked at the door, normalised, summarised.

Features are plain arrays, one row per image, from whatever network. Everything that compares them checks them here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator

import faiss
import numpy as np
from numpy.typing import ArrayLike


def as_array(values: ArrayLike) -> np.ndarray:
    """Return `values` (array, list, or torch tensor on any device) as a numpy array, without a copy where possible."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if (
            str(values.dtype) == "torch.bfloat16"
        ):  # the one torch type that numpy lacks; float32 holds it exactly
            values = values.float()
    return np.asarray(values)


def as_features(values: ArrayLike, name: str = "features") -> np.ndarray:
    """Check features once, at the door.

    Parameters
    ----------
    values : array or tensor, shape (n, d)
        One row per image, real numbers of any type.
    name : str
        What to call the argument in an error.

    Returns
    -------
    features : ndarray, shape (n, d), float32 or float64
        C-contiguous. float64 stays, integers above 16 bits become float64, and all else becomes float32.

    Raises
    ------
    ValueError
        Not two-dimensional, empty, not numeric, or with NaN or infinite values (it says how many, and the first row).
    """
    array = as_array(values)
    if array.ndim != 2:
        hint = f"; for one image pass {name}[None, :]" if array.ndim == 1 else ""
        raise ValueError(
            f"{name} must be two-dimensional, one row per image (n, d); got shape {array.shape}{hint}."
        )
    if array.size == 0:
        raise ValueError(
            f"{name} is empty, shape {array.shape}; at least one image and one dimension are needed."
        )
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers; got dtype {array.dtype}.")
    dtype = np.float32 if np.can_cast(array.dtype, np.float32) else np.float64
    array = np.ascontiguousarray(array, dtype=dtype)
    bad = np.concatenate([np.count_nonzero(~np.isfinite(rows), axis=1) for rows in blocks(array)])
    if bad.any():
        raise ValueError(
            f"{name} holds {bad.sum()} NaN or infinite values in {np.count_nonzero(bad)} of {len(array)} rows, the "
            f"first in row {np.flatnonzero(bad)[0]}; remove these rows or look for what produced them."
        )
    return array


def blocks(array: np.ndarray, size: int = 4096) -> Iterator[np.ndarray]:
    """Yield `array` in consecutive blocks of rows, so that float64 copies stay small."""
    for start in range(0, len(array), size):
        yield array[start : start + size]


def l2_normalise(features: ArrayLike) -> np.ndarray:
    """Divide every row by its Euclidean length.

    Between rows of length one, squared distance = 2 - 2 cosine similarity: only the direction counts. The authors of
    DN2 report that this can help.

    Parameters
    ----------
    features : array or tensor, shape (n, d)

    Returns
    -------
    normalised : ndarray, shape (n, d), float32
        Rows of length one. A row of zeros has no direction: it stays zero, at squared distance 1 from every other row.

    Raises
    ------
    ValueError
        As `as_features`.
    """
    features = as_features(features)
    normalised = np.empty(features.shape, np.float32)
    for rows, out in zip(blocks(features), blocks(normalised)):
        largest = np.abs(rows).max(axis=1, keepdims=True)
        rows = rows / np.where(largest > 0, largest, 1).astype(
            np.float64
        )  # now no square over- or underflows
        length = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
        out[:] = rows / np.where(length > 0, length, 1)
    return normalised


def kmeans_gallery(features: ArrayLike, n_centres: int, seed: int = 0) -> np.ndarray:
    """Replace a gallery by its k-means centres: a faster search for a small loss (PANDA's speed-up, section 3).

    Parameters
    ----------
    features : array or tensor, shape (N, d)
    n_centres : int
        1 to N.
    seed : int

    Returns
    -------
    centres : ndarray, shape (n_centres, d), float32
        The same bits for the same seed, with any number of threads.

    Raises
    ------
    ValueError
        `n_centres` below 1 or above N; features as in `as_features`.
    """
    features = as_features(features)
    n, d = features.shape
    if not 1 <= n_centres <= n:
        raise ValueError(
            f"n_centres must lie between 1 and the number of images, {n}; got {n_centres}."
        )
    n_centres = operator.index(n_centres)
    mean = features.mean(
        axis=0, dtype=np.float64
    )  # faiss works in float32, where a common offset drowns the rest
    # faiss rather than scikit-learn: several times faster, and the same bits with any number of threads. All points,
    # not a sample of 256 a centre; with the minimum of 1 faiss writes no warning into the notebook.
    kmeans = faiss.Kmeans(
        d, n_centres, seed=seed, min_points_per_centroid=1, max_points_per_centroid=n
    )
    kmeans.train((features - mean).astype(np.float32))
    return (kmeans.centroids + mean).astype(np.float32)


def check_k(k: int, n: int, leave_out: bool = False) -> int:
    """Return k as an int; raise ValueError unless n gallery images, less one with `leave_out`, hold k neighbours."""
    try:
        k = operator.index(k)
    except TypeError:
        raise ValueError(f"k must be a whole number of at least 1; got {k!r}.") from None
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}.")
    if k > n - leave_out:
        left = f" ({n - 1} with one left out)" if leave_out else ""
        raise ValueError(
            f"k = {k} neighbours were asked for, but the gallery holds {n} image{'s' * (n != 1)}{left}; "
            "lower k or add normal images."
        )
    return k


def check_fitted(estimator: object, attribute: str) -> None:
    """Raise scikit-learn's NotFittedError unless `estimator` has `attribute`."""
    if not hasattr(estimator, attribute):
        from sklearn.exceptions import (
            NotFittedError,
        )  # here, because scikit-learn takes most of a second to import

        name = type(estimator).__name__
        raise NotFittedError(
            f"This {name} has seen no normal images yet; call fit(features) first."
        )


def check_counts(**values: int) -> None:
    """Raise ValueError unless each value is a whole number of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number of at least 1.")


def check_rates(**values: float | None) -> None:
    """Raise ValueError unless each value is a finite number above 0, or None."""
    for name, value in values.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value!r}: expected a number above 0.")
