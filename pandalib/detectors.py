"""Detectors on images: fit on normal images only, score any images, higher = more anomalous."""

from __future__ import annotations

import numpy as np

from pandalib.backbones import Backbone
from pandalib.cache import FeatureCache
from pandalib.knn import KNN


class PixelKNN:
    """kNN on the pixels themselves: what is left when there are no features. Hyper-parameters as in `KNN`."""

    def __init__(self, k: int = 2):
        self.k = k

    def fit(self, normal_images) -> PixelKNN:
        """Remember normal images, uint8 (N, 3, H, W)."""
        self.scorer_ = KNN(self.k).fit(pixels(normal_images))
        return self

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,): sum of squared distances to the k nearest normal images, pixels in 0..1."""
        return self.scorer_.score(pixels(images))


class DN2:
    """Deep nearest neighbours: kNN on pretrained features that are not adapted (Bergman et al. 2020; PANDA, section 3).

    Parameters
    ----------
    backbone : the pretrained network.
    k, normalise, whiten, n_centres, seed : as in `pandalib.knn.KNN`; the defaults are the paper's.
    cache : keep the stem's activations on disk for the next run.
    """

    def __init__(
        self,
        backbone: Backbone,
        k: int = 2,
        *,
        normalise: bool = False,
        whiten: bool = False,
        n_centres: int | None = None,
        seed: int = 0,
        cache: FeatureCache | None = None,
    ):
        self.backbone, self.cache = backbone, cache
        self.k, self.normalise, self.whiten, self.n_centres, self.seed = k, normalise, whiten, n_centres, seed

    def fit(self, normal_images) -> DN2:
        """Extract and remember the features of normal images, uint8 (N, 3, H, W)."""
        scorer = KNN(self.k, normalise=self.normalise, whiten=self.whiten, n_centres=self.n_centres, seed=self.seed)
        self.scorer_ = scorer.fit(self.backbone.features(normal_images, cache=self.cache))
        return self

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W)."""
        return self.scorer_.score(self.backbone.features(images, cache=self.cache))


def pixels(images) -> np.ndarray:
    """Images uint8 (N, 3, H, W) as rows of pixel values in 0..1, float32 (N, 3 * H * W)."""
    images = np.asarray(images[:])
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {images.shape}: expected uint8 (N, 3, H, W).")
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
