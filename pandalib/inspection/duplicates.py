"""Near-copies among normal images: frames of one scene, several shots of one part.

A threshold is set by comparing each normal image with the others. If an image has a near-copy among
them, it looks more normal than any new image can, and the threshold comes out too low. So an image
is compared with all others but its near-copies. Images i and j are near-copies if, by pooled
features,

    ||f(i) - f(j)||^2 < 0.4 max(r(i), r(j)),

where r(i) is the squared distance from i to its 10th nearest image, of more than 200 images to the
5 % nearest, of fewer than 20 to the middle one. The limit is local, so that several kinds of parts
are no near-copies of each other, and an image has about ten near-copies at most. One that has more
than half of the others keeps them: whatever the data, most others remain to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pandalib.methods.knn import squared_distances

NEAR = 0.4  # of the distance to the 10th nearest
FEW, SHARE = 10, 20


def near_copies(features: np.ndarray, rows: Sequence[int]) -> list[np.ndarray]:
    """The numbers of the near-copies of some images, ascending, each without itself.

    Parameters
    ----------
    features : ndarray, shape (N, d)
    rows : sequence of int
        The images whose near-copies are wanted.

    Returns
    -------
    copies : list of int64 ndarray, one for each of `rows`

    Examples
    --------
    >>> scenes = np.random.default_rng(0).normal(size=(20, 99))
    >>> features = np.concatenate([scenes, scenes[:1] + 0.01])  # the first scene twice
    >>> [copies.tolist() for copies in near_copies(features, [0, 1, 20])]
    [[20], [], [0]]
    """
    n = len(features)
    nearest = max(1, min((n - 1) // 2, max(FEW, n // SHARE)))
    # One more than wanted, since each image finds itself.
    distances, numbers = squared_distances(features, features, min(n, nearest + 1))
    near = distances < NEAR * distances[:, -1:]
    pairs = np.column_stack([np.nonzero(near)[0], numbers[near]])
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    starts = np.searchsorted(pairs[:, 0], np.arange(n + 1))
    copies = [pairs[starts[row] : starts[row + 1], 1] for row in rows]
    return [one if len(one) <= (n - 1) // 2 else one[:0] for one in copies]


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
