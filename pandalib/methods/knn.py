"""The k-nearest-neighbour score: an image far from every normal training image is anomalous.

DN2 (Bergman, Cohen and Hoshen 2020; the scorer of PANDA, Reiss et al. 2021, section 3) scores a test image x by the
sum of the *squared* Euclidean distances between its features f(x) and those of its k = 2 nearest normal training
images, N_k:

    score(x) = sum over g in N_k(f(x)) of ||f(x) - g||^2

The normal training features are the gallery. Higher = more anomalous.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import ArrayLike

from pandalib.validation import (
    as_features,
    blocks,
    check_fitted,
    check_k,
    kmeans_gallery,
    l2_normalise,
)
from pandalib.methods.whitening import Whitening, whitened_leave_one_out_scores

# faiss works out ||x||^2 + ||y||^2 - 2 x.y in float32. Two steps make the result right and the same for any batch:
# 1. The mean of the gallery is subtracted first, in float64. Distances do not change, but the large terms that cancel
#    do: with a common offset of 1000 in 512 dimensions, faiss alone is wrong by 80 % (1000 becomes 200).
# 2. A few candidates more than k are fetched (no slower: the search is the work), their distances worked out again
#    from the differences in float64, and the k smallest kept. So faiss only proposes, and a duplicate is at exactly 0.
_SPARE = 8
_BLOCK = 1024


class _Gallery:
    """Normal features, ready to be searched. Holds one centred float32 copy; faiss.knn builds no index beside it."""

    def __init__(self, features: ArrayLike):
        self.features = as_features(features, "gallery")
        self.mean = self.features.mean(axis=0, dtype=np.float64)
        self.centred = self._centre(self.features)

    def _centre(self, features: np.ndarray) -> np.ndarray:
        centred = np.empty(features.shape, np.float32)
        with np.errstate(over="ignore"):  # what overflows float32 gets its error after the search
            for rows, out in zip(blocks(features), blocks(centred)):
                out[:] = rows - self.mean
        return centred

    def search(
        self, queries: np.ndarray, k: int, leave_out: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `squared_distances`. With `leave_out`, query i is gallery row i and is not its own neighbour."""
        n, d = self.features.shape
        k = check_k(k, n, leave_out)
        if queries.shape[1] != d:
            raise ValueError(
                f"gallery and queries must have the same dimension; got {d} and {queries.shape[1]}. "
                "Take both from the same layer of the same network."
            )
        distances = np.empty((len(queries), k), np.float32)
        indices = np.empty((len(queries), k), np.int64)
        n_candidates = min(n, k + leave_out + _SPARE)
        for start in range(0, len(queries), _BLOCK):
            rows = queries[start : start + _BLOCK]
            _, found = faiss.knn(self._centre(rows), self.centred, n_candidates)
            if found.min() < 0:  # faiss's mark for "nothing at a finite distance"
                raise ValueError(
                    "Squared distances overflow float32: the features are too large (above about 1e18); "
                    "divide them by a constant, or use l2_normalise."
                )
            rows = rows.astype(np.float64)
            exact = np.empty(found.shape)
            for column in range(n_candidates):
                difference = self.features[found[:, column]] - rows
                exact[:, column] = np.einsum("nd,nd->n", difference, difference)
            if (
                leave_out
            ):  # by index: a duplicate of the image is another image, and rightly at distance zero
                exact[found == np.arange(start, start + len(rows))[:, None]] = np.inf
            nearest = np.lexsort((found, exact), axis=1)[:, :k]  # by distance, then by index
            distances[start : start + _BLOCK] = np.take_along_axis(exact, nearest, axis=1)
            indices[start : start + _BLOCK] = np.take_along_axis(found, nearest, axis=1)
        return distances, indices


def squared_distances(
    gallery: ArrayLike, queries: ArrayLike, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Squared Euclidean distances to the k nearest gallery features.

    Every pair is compared, in blocks of queries; neighbours are told apart down to about 1e-6 of the squared spread of
    the gallery, and beyond that among the k + 8 nearest. Memory beyond the input is one float32 copy of the gallery
    (2 GB for a million rows of 512) and some megabytes.

    Parameters
    ----------
    gallery : array or tensor, shape (N, d)
        Features of the normal training images.
    queries : array or tensor, shape (n, d)
    k : int
        Number of neighbours, 1 to N.

    Returns
    -------
    distances : ndarray, shape (n, k), float32
        *Squared* Euclidean distances, ascending, accurate to float32; the same bits for a query alone and in any batch.
    indices : ndarray, shape (n, k), int64
        Rows of the gallery; of equal distances the lower row comes first (with more than k + 8 equals: some of them).

    Raises
    ------
    ValueError
        k below 1 or above N; different dimensions; features not two-dimensional, empty, NaN or infinite, or so large
        that a squared distance overflows float32.
    """
    return _Gallery(gallery).search(as_features(queries, "queries"), k)


def knn_scores(gallery: ArrayLike, queries: ArrayLike, k: int = 2) -> np.ndarray:
    """Score of DN2: sum of the squared distances to the k nearest normal training features.

    Parameters
    ----------
    gallery : array or tensor, shape (N, d)
    queries : array or tensor, shape (n, d)
    k : int

    Returns
    -------
    scores : ndarray, shape (n,), float64
        Higher = more anomalous.

    Raises
    ------
    ValueError
        As `squared_distances`.
    """
    return squared_distances(gallery, queries, k)[0].sum(axis=1, dtype=np.float64)


def leave_one_out_scores(gallery: ArrayLike, k: int = 2) -> np.ndarray:
    """Score of every gallery image against the others: what a normal image scores, without a further normal image.

    Left out by index, never by "drop the nearest": if an image is in the gallery twice, its copy counts, at distance
    zero.

    Parameters
    ----------
    gallery : array or tensor, shape (N, d)
    k : int
        1 to N - 1.

    Returns
    -------
    scores : ndarray, shape (N,), float64

    Raises
    ------
    ValueError
        As `squared_distances`; k above N - 1.
    """
    gallery = _Gallery(gallery)
    return gallery.search(gallery.features, k, leave_out=True)[0].sum(axis=1, dtype=np.float64)


def nearest_others(gallery: ArrayLike, k: int) -> np.ndarray:
    """For every gallery image the k nearest of the others, left out by index as in `leave_one_out_scores`.

    Parameters
    ----------
    gallery : array or tensor, shape (N, d)
    k : int
        1 to N - 1.

    Returns
    -------
    indices : ndarray, shape (N, k), int64, nearest first

    Raises
    ------
    ValueError
        As `leave_one_out_scores`.
    """
    gallery = _Gallery(gallery)
    return gallery.search(gallery.features, k, leave_out=True)[1]


class KNN:
    """The k-nearest-neighbour anomaly detector on features. `KNN()` is the scorer of DN2.

    Parameters
    ----------
    k : int
        Number of neighbours.
    normalise : bool
        Divide every feature vector by its length first (`pandalib.validation.l2_normalise`).
    whiten : bool
        Then whiten (`pandalib.validation.Whitening`, shrinkage by Ledoit and Wolf), fitted on the training features.
    n_centres : int or None
        Then replace the gallery by this many k-means centres.
    seed : int
        Of k-means; nothing else is random.

    Attributes
    ----------
    gallery_ : ndarray, shape (N, d) or (n_centres, d)
        What is searched: the training features after the steps above.
    whitening_ : Whitening
        With `whiten` only.
    """

    def __init__(
        self,
        k: int = 2,
        *,
        normalise: bool = False,
        whiten: bool = False,
        n_centres: int | None = None,
        seed: int = 0,
    ):
        self.k = k
        self.normalise = normalise
        self.whiten = whiten
        self.n_centres = n_centres
        self.seed = seed

    def fit(self, features: ArrayLike) -> KNN:
        """Remember the features of normal images.

        Parameters
        ----------
        features : array or tensor, shape (N, d)

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As `squared_distances`, `Whitening.fit` and `kmeans_gallery`.
        """
        features = as_features(features)
        if self.normalise:
            features = l2_normalise(features)
        if self.whiten:
            self.whitening_ = Whitening().fit(features)
            features = self.whitening_.transform(features)
        if self.n_centres is not None:
            features = kmeans_gallery(features, self.n_centres, self.seed)
        check_k(self.k, len(features))
        self._searcher_ = _Gallery(features)
        self.gallery_ = self._searcher_.features
        return self

    def score(self, features: ArrayLike) -> np.ndarray:
        """Score images by their features.

        Parameters
        ----------
        features : array or tensor, shape (n, d)

        Returns
        -------
        scores : ndarray, shape (n,), float64
            Higher = more anomalous. A training image meets itself: use `leave_one_out` for those.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            As `squared_distances`.
        """
        check_fitted(self, "gallery_")
        features = as_features(features)
        if self.normalise:
            features = l2_normalise(features)
        if self.whiten:
            features = self.whitening_.transform(features)
        return self._searcher_.search(features, self.k)[0].sum(axis=1, dtype=np.float64)

    def leave_one_out(self) -> np.ndarray:
        """Score every training image as if it had not been in the training set.

        Left out by index, of the gallery and of the whitening: each image is scored with the mean and covariance of
        the others (see `pandalib.methods.whitening.whitened_leave_one_out_scores` for why that matters).

        Returns
        -------
        scores : ndarray, shape (N,), float64

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            k above N - 1; with `n_centres`, where no row of the gallery is the image.
        """
        check_fitted(self, "gallery_")
        if self.n_centres is not None:
            raise ValueError(
                f"Leave-one-out is not defined for {self.n_centres} k-means centres: every image has shaped them. "
                "Use n_centres=None, or hold out normal images before fit and score those."
            )
        if self.whiten:
            return whitened_leave_one_out_scores(self.gallery_, self.whitening_, self.k)
        return self._searcher_.search(self.gallery_, self.k, leave_out=True)[0].sum(
            axis=1, dtype=np.float64
        )
