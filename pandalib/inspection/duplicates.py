"""Near-duplicates among normal images: frames of one scene, a file saved twice.

A leave-one-out score asks how unusual an image would be if it were new. An image whose twin stays
behind looks far more usual than a new one can, and a threshold from such scores alarms on every new
image. So an image is left out together with its near-duplicates.

Two images are near-duplicates when they look alike at 16 x 16 pixels, much more than to all others.
(Pooled features will not do: what is the same in two frames of one cloth, where each thread lies,
they have averaged away.) With d_j the distance of an image's thumbnail to its j-th nearest, its j
nearest are duplicates of it if

    d_j < d_(j+1) / 3   and   d_j < (typical distance of two images) / 4.

Different images of one kind have no such gap: in many dimensions all their distances are alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pandalib.methods.knn import squared_distances

SIDE = 16  # of a thumbnail
MOST = 10  # twins of one image that are looked for
GAP, SHARE = 3.0, 0.25


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Images (n, 3, H, W) at 16 x 16 pixels, as rows: uint8 (n, 768)."""
    small = F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(images)).float(), SIDE)
    return small.flatten(1).round().to(torch.uint8).numpy()


def _typical(rows: np.ndarray) -> float:
    """The median distance of two images drawn at random."""
    pairs = np.random.default_rng(0).integers(len(rows), size=(2, 1000))
    one, other = pairs[:, pairs[0] != pairs[1]]
    return float(np.median(np.linalg.norm(rows[one] - rows[other], axis=1)))


def near_duplicates(rows: np.ndarray) -> tuple[np.ndarray, int]:
    """The group of near-duplicates of each image, from its thumbnail (N, d); and a warning sign.

    Returns
    -------
    groups : int64 array (N,)
        Numbered from 0 in the order of their first image; most groups have one.
    n_close : int
        How many images are nearer than `SHARE` of the typical distance to one outside of their
        group. In a long burst or a slow pan no gap tells the frames of one scene from all others,
        and this is the only sign of it.

    Examples
    --------
    >>> near_duplicates(np.float32([[0, 0], [9, 0], [0, 0.1], [5, 7], [8, 8], [9.1, 0]]))
    (array([0, 1, 0, 2, 3, 1]), 0)
    >>> pan = np.arange(60.0)[:, None]
    >>> near_duplicates(pan)[1]
    60
    """
    rows, n = np.asarray(rows, np.float32), len(rows)
    if n < 3:
        return np.arange(n), 0
    n_near = min(n, MOST + 2)  # itself, the twins, and one more
    squared, nearest = squared_distances(rows, rows, n_near)
    distances = np.sqrt(squared)
    alike = distances < SHARE * _typical(rows)
    gaps = (distances[:, 1:-1] * GAP < distances[:, 2:]) & alike[:, 1:-1]
    twins = np.where(gaps.any(axis=1), gaps.shape[1] - gaps[:, ::-1].argmax(axis=1), 0)
    image, place = np.nonzero(np.arange(n_near) <= twins[:, None])
    links = coo_array((np.ones(len(image)), (image, nearest[image, place])), shape=(n, n))
    groups = connected_components(links, directed=False)[1].astype(np.int64)
    close = alike & (groups[nearest] != groups[:, None])
    return groups, int(close.any(axis=1).sum())


def others_of_group(groups: np.ndarray, rows: Sequence[int]) -> list[np.ndarray]:
    """For each of `rows` the numbers of the other images of its group, ascending.

    Examples
    --------
    >>> groups = np.array([0, 1, 0, 2])
    >>> [others.tolist() for others in others_of_group(groups, [0, 1, 2])]
    [[2], [], [0]]
    """
    ends = np.cumsum(np.bincount(groups))
    members = np.split(np.argsort(groups, kind="stable"), ends[:-1])  # of each group, ascending
    return [members[groups[row]][members[groups[row]] != row] for row in rows]


def scores_without(
    gallery: np.ndarray, rows: Sequence[int], copies: list[np.ndarray], k: int
) -> np.ndarray:
    """kNN scores of images of a gallery (N, d) compared with all but themselves and their copies.

    float64, one for each of `rows`: the sum of squared distances to the k nearest of the others.
    """
    most = max(map(len, copies), default=0)
    wanted = min(len(gallery), k + 1 + most)
    distances, numbers = squared_distances(gallery, gallery[rows], wanted)
    scores = []
    for row, left_out, apart, found in zip(rows, copies, distances, numbers):
        others = apart[~np.isin(found, [row, *left_out])][:k].astype(np.float64)
        scores.append(others.sum() * k / max(1, len(others)))  # fewer only in tiny galleries
    return np.array(scores)
