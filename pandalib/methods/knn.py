"""The k-nearest-neighbour score: an image far from every normal training image is anomalous.

DN2 (Bergman, Cohen and Hoshen 2020; the scorer of PANDA, Reiss et al. 2021, section 3) scores a
test image x by the sum of the *squared* Euclidean distances between its features f(x) and those of
its k = 2 nearest normal training images, N_k:

    score(x) = sum over g in N_k(f(x)) of ||f(x) - g||^2

The features of the normal training images are the gallery. Higher = more anomalous.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from pandalib.cache import FeatureCache
from pandalib.methods.whitening import Whitening, l2_normalise, whitened_leave_one_out_scores
from pandalib.validation import as_array, as_features, as_images, check_fitted, check_k

try:
    import faiss
except ImportError:  # in a browser, where lesson 00 runs without it
    faiss = None
if TYPE_CHECKING:  # torch, which a browser lacks as well
    from pandalib.backbones import Backbone

# faiss computes ||x||^2 + ||y||^2 - 2 x.y in float32. Two steps make the result accurate, and the
# same in any batch:
# 1. The mean of the gallery is subtracted first, in float64. Distances do not change, but the terms
#    that cancel do: with a common offset of 1000 in 512 dimensions faiss alone is wrong by 80 %.
# 2. faiss only proposes: a few candidates more than k, whose distances are computed again from
#    the differences in float64. So a duplicate is at exactly 0.
_SPARE = 2
_BLOCK = 1024


class _Gallery:
    """Normal features, ready to be searched, and a centred copy of them in float32."""

    def __init__(self, features: np.ndarray):
        self.features = features
        self.mean = features.mean(axis=0, dtype=np.float64)
        self.centred = self._centre(features)

    def search(
        self, queries: np.ndarray, k: int, leave_out: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `squared_distances`; with `leave_out`, query i is row i, and not its own neighbour."""
        n, d = self.features.shape
        check_k(k, n, leave_out)
        if queries.shape[1] != d:
            raise ValueError(
                f"queries have {queries.shape[1]} dimensions: expected {d}, as the gallery has."
            )
        distances = np.empty((len(queries), k), np.float32)
        indices = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), _BLOCK):
            block = slice(start, start + _BLOCK)
            rows = queries[block]
            candidates = self._candidates(rows, min(n, k + leave_out + _SPARE))
            exact = self._exact_distances(rows, candidates)
            if leave_out:
                # By index: a duplicate of the image is another image, rightly at distance zero.
                exact[candidates == start + np.arange(len(rows))[:, None]] = np.inf
            nearest = np.lexsort((candidates, exact))[:, :k]  # by distance, then by index
            distances[block] = np.take_along_axis(exact, nearest, axis=1)
            indices[block] = np.take_along_axis(candidates, nearest, axis=1)
        return distances, indices

    def scores(self, queries: np.ndarray, k: int, leave_out: bool = False) -> np.ndarray:
        """Sum of the squared distances to the k nearest, float64 (n,)."""
        return self.search(queries, k, leave_out)[0].sum(axis=1, dtype=np.float64)

    def _centre(self, features: np.ndarray) -> np.ndarray:
        """Subtract the mean in float64, then round to float32."""
        centred = np.empty(features.shape, np.float32)
        return np.subtract(features, self.mean, out=centred, casting="same_kind")

    def _candidates(self, queries: np.ndarray, n_candidates: int) -> np.ndarray:
        queries = self._centre(queries)
        if faiss is None:
            return _candidates_by_numpy(queries, self.centred, n_candidates)
        _, candidates = faiss.knn(queries, self.centred, n_candidates)
        if candidates.min() < 0:  # faiss found nothing at a finite distance
            raise ValueError(
                "squared distances overflow float32: expected features below about 1e18."
            )
        return candidates

    def _exact_distances(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        queries = queries.astype(np.float64)
        exact = np.empty(candidates.shape)
        for column, rows in enumerate(candidates.T):
            difference = self.features[rows] - queries
            exact[:, column] = np.einsum("nd,nd->n", difference, difference)
        return exact


def _candidates_by_numpy(queries: np.ndarray, gallery: np.ndarray, n: int) -> np.ndarray:
    """In place of faiss: the n nearest rows of the gallery for each query (m, n), in any order."""
    distances = (gallery**2).sum(axis=1) - 2 * queries @ gallery.T  # ||q||^2 changes no order
    return np.argpartition(distances, n - 1, axis=1)[:, :n]


def squared_distances(
    gallery: ArrayLike, queries: ArrayLike, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Squared Euclidean distances to the k nearest gallery features, exact to float32.

    Every pair is compared. Two neighbours are ranked rightly if their squared distances differ by
    about 1e-6 of the gallery's squared spread; by less, if both are among the k + 2 nearest.

    Parameters
    ----------
    gallery : array or tensor, shape (N, d)
    queries : array or tensor, shape (n, d)
    k : int
        1 to N.

    Returns
    -------
    distances : ndarray, shape (n, k), float32
        Ascending; the same bits for a query alone and in any batch.
    indices : ndarray, shape (n, k), int64
        Rows of the gallery; at equal distances the lower row first, among those k + 2 nearest.

    Raises
    ------
    ValueError
        k below 1 or above N; different dimensions; features not two-dimensional or not finite.
    """
    gallery = _Gallery(as_features(gallery, "gallery"))
    return gallery.search(as_features(queries, "queries"), k)


def knn_scores(gallery: ArrayLike, queries: ArrayLike, k: int = 2) -> np.ndarray:
    """Score of DN2, float64 (n,): sum of the `squared_distances` to the k nearest normal features.

    Higher = more anomalous.
    """
    gallery = _Gallery(as_features(gallery, "gallery"))
    return gallery.scores(as_features(queries, "queries"), k)


def leave_one_out_scores(gallery: ArrayLike, k: int = 2) -> np.ndarray:
    """Score each image of a gallery (N, d) against the others, as if it were new: float64 (N,).

    Left out by index, never by "drop the nearest": if an image is in the gallery twice, its copy
    counts, at distance zero. So k is at most N - 1.
    """
    gallery = _Gallery(as_features(gallery, "gallery"))
    return gallery.scores(gallery.features, k, leave_out=True)


def nearest_others(gallery: ArrayLike, k: int) -> np.ndarray:
    """Rows of the k nearest others of each gallery image, int64 (N, k), nearest first."""
    gallery = _Gallery(as_features(gallery, "gallery"))
    return gallery.search(gallery.features, k, leave_out=True)[1]


def kmeans_gallery(features: ArrayLike, n_centres: int, seed: int = 0) -> np.ndarray:
    """Replace a gallery (N, d) by its k-means centres, float32 (n_centres, d).

    A faster search (PANDA, section 3). The same bits for the same seed and any number of threads.
    """
    features = as_features(features)
    n, d = features.shape
    if not 1 <= n_centres <= n:
        raise ValueError(f"n_centres={n_centres}: expected 1 to {n}, the number of images.")
    # faiss works in float32, where a common offset drowns the rest.
    mean = features.mean(axis=0, dtype=np.float64)
    # faiss is several times faster than scikit-learn. It uses all points, not a sample of 256 per
    # centre; a minimum of 1 keeps a warning out of the notebook.
    kmeans = faiss.Kmeans(
        d, n_centres, seed=seed, min_points_per_centroid=1, max_points_per_centroid=n
    )
    kmeans.train((features - mean).astype(np.float32))
    return (kmeans.centroids + mean).astype(np.float32)


@dataclass(eq=False, repr=False)
class KNN(BaseEstimator):
    """The k-nearest-neighbour anomaly detector on features; `KNN()` is the scorer of DN2.

    Parameters
    ----------
    k : int
        Number of neighbours.
    normalise : bool
        Divide every feature vector by its length first (`l2_normalise`).
    whiten : bool
        Then whiten (`Whitening`, shrinkage by Ledoit and Wolf), fitted on the training features.
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

    Examples
    --------
    >>> from pandalib import KNN
    >>> detector = KNN(k=2).fit([[0.0, 0.0], [3.0, 4.0], [0.0, 2.0], [10.0, 0.0]])
    >>> detector.score([[0.0, 1.0], [10.0, 10.0]]).tolist()
    [2.0, 185.0]
    >>> detector.leave_one_out().tolist()
    [29.0, 38.0, 17.0, 165.0]
    """

    k: int = 2
    _: KW_ONLY
    normalise: bool = False
    whiten: bool = False
    n_centres: int | None = None
    seed: int = 0

    def fit(self, features: ArrayLike, y=None) -> KNN:
        """Remember the features (N, d) of normal images; y is ignored."""
        features = as_features(features)
        if self.normalise:
            features = l2_normalise(features)
        if self.whiten:
            self.whitening_ = Whitening().fit(features)
            features = self.whitening_.transform(features)
        if self.n_centres is not None:
            features = kmeans_gallery(features, self.n_centres, self.seed)
        check_k(self.k, len(features))
        self.gallery_ = features
        self._gallery = _Gallery(features)
        return self

    def score(self, features: ArrayLike, y=None) -> np.ndarray:
        """Score images by their features (n, d): float64 (n,), higher = more anomalous.

        A training image is its own nearest neighbour: use `leave_one_out` for those. y, which
        scikit-learn's Pipeline passes, is ignored.
        """
        check_fitted(self, "gallery_")
        features = as_features(features)
        if self.normalise:
            features = l2_normalise(features)
        if self.whiten:
            features = self.whitening_.transform(features)
        return self._gallery.scores(features, self.k)

    def leave_one_out(self) -> np.ndarray:
        """Score each training image as if it had not been in the training set: float64 (N,).

        It is left out of the gallery and of the whitening, by index: the mean and covariance are
        those of the others (`whitened_leave_one_out_scores` says why that matters). Not defined
        with `n_centres`, where no row of the gallery is the image.
        """
        check_fitted(self, "gallery_")
        if self.n_centres is not None:
            raise ValueError(
                f"n_centres={self.n_centres}: leave-one-out expects n_centres=None, "
                "since each image has shaped the k-means centres."
            )
        if self.whiten:
            return whitened_leave_one_out_scores(self.gallery_, self.whitening_, self.k)
        return self._gallery.scores(self.gallery_, self.k, leave_out=True)


@dataclass(eq=False, repr=False)
class DN2(BaseEstimator):
    """Deep nearest neighbours: kNN on pretrained features (Bergman, Cohen and Hoshen 2020).

    Parameters
    ----------
    backbone : Backbone
        The pretrained network, which is not adapted.
    k, normalise, whiten, n_centres, seed
        As for `KNN`; the defaults are the paper's.
    cache : FeatureCache or None
        Keeps the frozen part's output on disk for the next run.

    Attributes
    ----------
    scorer_ : KNN
        On the features of the normal images.

    Examples
    --------
    >>> import numpy as np
    >>> from pandalib import DN2, load_backbone
    >>> images = np.random.default_rng(0).integers(0, 99, (9, 3, 64, 64), dtype=np.uint8)
    >>> images[8] = 255 - images[8]  # bright, where the others are dark
    >>> scores = DN2(load_backbone()).fit(images[:7]).score(images[7:])
    >>> bool(scores[1] > 10 * scores[0])
    True
    """

    backbone: Backbone
    k: int = 2
    _: KW_ONLY
    normalise: bool = False
    whiten: bool = False
    n_centres: int | None = None
    seed: int = 0
    cache: FeatureCache | None = None

    def fit(self, normal_images, y=None) -> DN2:
        """Extract and remember the features of normal images, uint8 (N, 3, H, W)."""
        features = self.backbone.features(normal_images, cache=self.cache)
        self.scorer_ = KNN(
            self.k,
            normalise=self.normalise,
            whiten=self.whiten,
            n_centres=self.n_centres,
            seed=self.seed,
        ).fit(features)
        return self

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W): higher = more anomalous."""
        check_fitted(self, "scorer_")
        return self.scorer_.score(self.backbone.features(images, cache=self.cache))


@dataclass(eq=False, repr=False)
class PixelKNN(BaseEstimator):
    """kNN on the pixels themselves: the baseline without any features.

    Parameters
    ----------
    k : int
        Number of neighbours.

    Attributes
    ----------
    scorer_ : KNN
        On the pixels of the normal images, from 0 to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from pandalib import PixelKNN
    >>> black, white = np.zeros((2, 3, 4, 4), np.uint8), np.full((1, 3, 4, 4), 255, np.uint8)
    >>> PixelKNN().fit(black).score(white).tolist()  # twice 48 values that differ by 1
    [96.0]
    """

    k: int = 2

    def fit(self, normal_images, y=None) -> PixelKNN:
        """Remember normal images, uint8 (N, 3, H, W)."""
        self.scorer_ = KNN(self.k).fit(pixels(normal_images))
        return self

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W): higher = more anomalous."""
        check_fitted(self, "scorer_")
        return self.scorer_.score(pixels(images))


def pixels(images) -> np.ndarray:
    """Images, uint8 (N, 3, H, W), as rows of pixel values from 0 to 1, float32 (N, 3 * H * W)."""
    images = as_array(as_images(images)[:])
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
