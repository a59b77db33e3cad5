"""Checks at the door: each says in one sentence what was given and what is expected."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import check_is_fitted


def as_array(values: ArrayLike) -> np.ndarray:
    """Return an array, list or tensor on any device as a numpy array, without a copy if possible.

    bfloat16, which numpy lacks, becomes float32.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    return np.asarray(values)


def as_features(values: ArrayLike, name: str = "features") -> np.ndarray:
    """Return features as a finite two-dimensional array of floats.

    Parameters
    ----------
    values : array or tensor, shape (n, d)
        One row per image, real numbers of any type.
    name : str
        What to call the argument in an error.

    Returns
    -------
    features : ndarray, shape (n, d), float32 or float64
        C-contiguous; float64 if float32 could not hold all values of the given type.

    Raises
    ------
    ValueError
        An array that is not two-dimensional, is empty, or holds other than finite real numbers.
    """
    array = as_array(values)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} are {array.dtype} {array.shape}: expected real numbers of shape (n, d), "
            "one row per image."
        )
    dtype = np.float32 if np.can_cast(array.dtype, np.float32) else np.float64
    array = np.ascontiguousarray(array, dtype=dtype)
    assert_all_finite(array, input_name=name)
    return array


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


def check_k(k: int, n: int, leave_out: bool = False) -> None:
    """Raise ValueError unless a gallery of n holds k neighbours, with `leave_out` one fewer."""
    check_counts(k=k)
    if k > n - leave_out:
        gallery = f"{n} with one left out" if leave_out else n
        raise ValueError(f"k={k}: expected no more neighbours than the gallery holds ({gallery}).")


def check_fitted(estimator: object, attribute: str) -> None:
    """Raise scikit-learn's NotFittedError unless `estimator` has `attribute`."""
    check_is_fitted(
        estimator, attribute, msg="This %(name)s has seen no normal images yet: call fit first."
    )


def as_images(images) -> Sequence:
    """Return images as something whose slices are uint8 (n, 3, H, W).

    Parameters
    ----------
    images : array, tensor, list or sequence
        uint8 (N, 3, H, W) or (N, H, W, 3); a list of PIL images or of arrays, all of one size; or
        a sequence whose slices are uint8 (n, 3, H, W), as `ImageFolder`.

    Returns
    -------
    images : array, tensor or sequence
        A sequence is returned as it is, so that no file is decoded here.

    Raises
    ------
    ValueError
        Anything else: a path, a torch data set, one image, floats, several sizes, no images.
    """
    expected = "expected uint8 (N, 3, H, W), red, green and blue from 0 to 255"
    if isinstance(images, (str, os.PathLike)):
        raise ValueError(
            f"images are the path {str(images)!r}: {expected}; "
            "pandalib.datasets.folder.open_images(path, size) reads a folder."
        )
    if isinstance(images, (list, tuple)) and images:
        images = _stacked(images)
    name = type(images).__name__
    if any(base.__module__.startswith("torch.utils.data") for base in type(images).__mro__):
        raise ValueError(
            f"images are the torch data set {name}: {expected}; "
            "np.stack([np.asarray(image) for image, label in data]) makes an array of one."
        )
    if isinstance(images, (dict, set)) or not hasattr(images, "__getitem__"):
        raise ValueError(f"images are {name}: {expected}.")
    if len(images) == 0:
        raise ValueError(f"there are no images: {expected} with N of at least 1.")
    some = images if hasattr(images, "shape") else np.asarray(images[:1])
    shape, dtype = tuple(some.shape), str(getattr(some, "dtype", "uint8")).removeprefix("torch.")
    if dtype != "uint8" or len(shape) != 4 or 3 not in (shape[1], shape[3]):
        hint = "; for one image pass image[None]" if len(shape) == 3 and 3 in shape else ""
        raise ValueError(f"images are {dtype} {shape}: {expected}{hint}.")
    if shape[1] == 3:
        return images
    return images.permute(0, 3, 1, 2) if hasattr(images, "permute") else np.moveaxis(images, 3, 1)


def _stacked(images: Sequence) -> np.ndarray:
    """A list of PIL images or arrays as one array."""
    arrays = []
    for number, image in enumerate(images):
        if hasattr(image, "convert"):
            if image.mode not in ("RGB", "L"):
                raise ValueError(f"image {number} has the mode {image.mode}: expected RGB or L.")
            image = image.convert("RGB")
        arrays.append(as_array(image))
    sizes = dict.fromkeys(array.shape for array in arrays)
    if len(sizes) > 1:
        raise ValueError(f"images have the shapes {', '.join(map(str, sizes))}: expected one size.")
    return np.stack(arrays)
