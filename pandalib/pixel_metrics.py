"""How good is an anomaly map? ROC-AUC over pixels, and the per-region overlap (PRO).

Higher = more anomalous; mask 1 = anomalous pixel. Over pixels, one large defect outweighs many small ones. PRO
(Bergmann et al., "Uninformed Students", CVPR 2020) gives every defect the same weight. With the regions R_1 .. R_K, the
connected parts of all masks, and a threshold t,

    overlap(t) = 1/K sum_k #{pixels of R_k with s >= t} / #R_k
    fpr(t)     = #{normal pixels with s >= t} / #{normal pixels}
    PRO        = 1/limit * area under overlap over fpr, from fpr = 0 to fpr = limit, usually 0.30

Public code often takes some 200 evenly spaced thresholds instead of all scores; its figure then changes with the scale
of the scores (distances and squared distances differ). Here every distinct score is a threshold, found by one sort.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from pandalib.validation import as_array
from pandalib.metrics import _area, _counts_by_score, _sort_scores

# Neighbours are the eight pixels around, within one image; the images before and after it are not.
_EIGHT_NEIGHBOURS = np.zeros((3, 3, 3), bool)
_EIGHT_NEIGHBOURS[1] = True
_ONE = 2.0**62  # an overlap of 1, in the whole numbers in which it is summed


def _check_stack(values: np.ndarray, name: str) -> None:
    """Raise ValueError unless `values` has shape (n, H, W) and at least one pixel."""
    if values.ndim != 3:
        hint = {
            2: f"; for one image pass {name}[None]",
            4: f"; for one channel pass {name}[:, 0]",
        }.get(values.ndim, "")
        raise ValueError(
            f"{name} must be three-dimensional, (images, height, width); got shape {values.shape}{hint}."
        )
    if values.size == 0:
        raise ValueError(
            f"{name} is empty, shape {values.shape}; at least one image with one pixel is needed."
        )


def _place(bad: np.ndarray) -> str:
    """Say where the first True of (n, H, W) is."""
    image, row, column = np.unravel_index(np.argmax(bad), bad.shape)
    return f"image {image}, row {row}, column {column}"


def _check_masks(masks: ArrayLike) -> np.ndarray:
    """Return masks as booleans (n, H, W), True = anomalous, or raise ValueError."""
    masks = as_array(masks)
    _check_stack(masks, "masks")
    if masks.dtype == bool:
        return masks
    anomalous = masks == 1
    unknown = ~np.broadcast_to(
        anomalous | (masks == 0), masks.shape
    )  # text compares to a single False
    if unknown.any():
        raise ValueError(
            f"masks must be 0 (normal) or 1 (anomalous); got {masks[unknown][:1].tolist()[0]!r} at {_place(unknown)}. "
            "Binarise grey masks, for example `masks > 0`, and resize masks with nearest neighbours only: anything "
            "else mixes 0 and 1 at the edges."
        )
    return anomalous


def _check_maps(maps: ArrayLike) -> np.ndarray:
    """Return maps as a real array (n, H, W) without NaN or infinities, or raise ValueError."""
    maps = as_array(maps)
    _check_stack(maps, "maps")
    if maps.dtype.kind not in "biuf":
        raise ValueError(f"maps must hold real numbers; got dtype {maps.dtype}.")
    for kind, is_bad in (("NaN", np.isnan), ("infinite", np.isinf)):
        bad = is_bad(maps)
        if bad.any():
            raise ValueError(
                f"maps hold {np.count_nonzero(bad)} {kind} values among {maps.size}, the first at {_place(bad)}; look "
                "for what produced them before measuring anything."
            )
    return (
        maps.astype(np.float32) if maps.dtype == np.float16 else maps
    )  # the same numbers, sorted faster


def _check_masks_and_maps(masks: ArrayLike, maps: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return masks as booleans and maps, both of shape (n, H, W), with pixels of both kinds, or raise ValueError."""
    masks, maps = _check_masks(masks), _check_maps(maps)
    if masks.shape != maps.shape:
        raise ValueError(
            f"masks and maps must have one entry per pixel each; got shapes {masks.shape} and {maps.shape}. Bring the "
            "maps to the size of the masks, or the masks to that of the maps with nearest neighbours only."
        )
    if not masks.any():
        raise ValueError(
            f"masks hold no anomalous pixel among {masks.size}; add images with a defect and its mask, since on normal "
            "images alone nothing can be found."
        )
    if masks.all():
        raise ValueError(
            f"masks hold no normal pixel among {masks.size}; add normal images, each with a mask of zeros, since "
            "without them there is no false alarm to count."
        )
    return masks, maps


def regions(masks: ArrayLike) -> np.ndarray:
    """Number the anomalous regions: pixels that touch at a side or a corner belong together (8-connected).

    Parameters
    ----------
    masks : array or tensor, shape (n, H, W)
        0 or False: normal. 1 or True: anomalous.

    Returns
    -------
    labels : ndarray, shape (n, H, W), int32
        0: normal. 1, 2, ...: the region, numbered through all images, none reaching over two images.

    Raises
    ------
    ValueError
        Masks not of shape (n, H, W), empty, or with values other than 0 and 1.
    """
    return ndimage.label(_check_masks(masks), _EIGHT_NEIGHBOURS, output=np.int32)[0]


def pixel_roc_auc(masks: ArrayLike, maps: ArrayLike) -> float:
    """Area under the ROC curve over all pixels of all images, ties counting one half (`pandalib.metrics.roc_auc`).

    Parameters
    ----------
    masks : array or tensor, shape (n, H, W)
        0 or False: normal. 1 or True: anomalous. Normal images have masks of zeros and count like any other.
    maps : array or tensor, shape (n, H, W)
        Higher = more anomalous, in any unit, the same one for all images.

    Returns
    -------
    auc : float from 0 to 1
        0.5 when all maps are constant at one value. Pairs are counted in whole numbers, so the order of the images
        changes no bit.

    Raises
    ------
    ValueError
        Shapes that differ or are not (n, H, W); masks with values other than 0 and 1, or without any anomalous or any
        normal pixel; NaN or infinite maps; no images.
    """
    masks, maps = _check_masks_and_maps(masks, maps)
    _, n_normal, n_anomalous = _counts_by_score(masks.ravel(), maps.ravel())
    return _area(n_normal, n_anomalous)


def _corners(masks: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At each distinct score, highest first: false positives (a count), per-region overlap, a pixel with that score."""
    order, last = _sort_scores(maps.ravel())
    labels = regions(masks).ravel()
    size = np.bincount(labels)
    # The share of the mean that one pixel of each region brings. Summed in whole numbers of 2^-62, so that a million
    # shares add up without error and in any order; the rounding of the shares is below 1e-12 for ten million pixels.
    share = np.rint(_ONE / (size * (len(size) - 1.0))).astype(np.int64)
    share[0] = 0  # normal pixels
    labels = labels[order]
    overlap = np.cumsum(share[labels])[last]
    return np.cumsum(labels == 0)[last], overlap / overlap[-1], order[last]


def pro_curve(masks: ArrayLike, maps: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The curve under which PRO is the area, exact: one corner for every distinct score.

    Parameters
    ----------
    masks, maps : arrays or tensors, shape (n, H, W)
        As for `pro`.

    Returns
    -------
    false_positive_rate : ndarray, shape (m + 1,), float64
        Share of the normal pixels of all images with score >= threshold, from 0 to 1; m is the number of distinct
        scores.
    per_region_overlap : ndarray, shape (m + 1,), float64
        Mean over the regions of all images of the share of the region with score >= threshold, from 0 to 1.
    thresholds : ndarray, shape (m + 1,), float64
        Infinity (nothing alarms), then the distinct scores from high to low. Equal scores make one (slanted) step.

    Raises
    ------
    ValueError
        As `pixel_roc_auc`.
    """
    masks, maps = _check_masks_and_maps(masks, maps)
    false_positives, overlap, pixel = _corners(masks, maps)
    thresholds = maps.ravel()[pixel].astype(np.float64)
    return (
        np.append(0, false_positives) / false_positives[-1],
        np.append(0, overlap),
        np.append(np.inf, thresholds),
    )


def pro(masks: ArrayLike, maps: ArrayLike, *, limit: float = 0.30) -> float:
    """Area under the per-region overlap up to a false-positive rate (Bergmann et al. 2020, "Uninformed Students").

    Parameters
    ----------
    masks : array or tensor, shape (n, H, W)
        0 or False: normal. 1 or True: anomalous. Every 8-connected region counts the same, whatever its size. A mask
        of zeros adds normal pixels only; a mask of ones adds one region and no normal pixel.
    maps : array or tensor, shape (n, H, W)
        Higher = more anomalous, in any unit, the same one for all images.
    limit : float, above 0 and at most 1
        The false-positive rate at which the area ends. A figure says little without its limit.

    Returns
    -------
    pro : float from 0 to 1
        The area by trapezoids, linear between corners and at the limit, divided by `limit`. Maps that are constant at
        one value make a single step from (0, 0) to (1, 1) and give limit / 2: with the usual limit, 0.15 is chance.

    Raises
    ------
    ValueError
        As `pixel_roc_auc`; a limit outside (0, 1].
    """
    if not 0 < limit <= 1:
        raise ValueError(
            f"limit must be a share above 0 and at most 1, for example 0.3 for 30 %; got {limit}."
        )
    false_positives, overlap, _ = _corners(*_check_masks_and_maps(masks, maps))
    # In pixels rather than rates: whole numbers, so perfect maps give exactly 1.
    end = float(limit) * int(false_positives[-1])
    inside = np.searchsorted(
        false_positives, end, side="right"
    )  # the corners up to the limit, and one behind it
    x, y = np.append(0, false_positives[: inside + 1]), np.append(0, overlap[: inside + 1])
    at_end = np.interp(end, x, y)
    x, y = np.append(x[: inside + 1], end), np.append(y[: inside + 1], at_end)
    return float(np.trapezoid(y, x) / end)
