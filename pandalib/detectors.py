"""Detectors on images: fit on normal images only, score any images, higher = more anomalous."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from pandalib.adapt import Checkpoint, adapt, hold_out, sample_wise
from pandalib.backbones import Backbone
from pandalib.cache import FeatureCache
from pandalib.knn import KNN

CHUNK = 1024  # images whose stem activations are in memory at once when there is no cache


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


class Adapted:
    """kNN on features that the compactness loss has adapted: PANDA (Reiss et al. 2021, section 3).

    Without a penalty, `epochs` decides whether this is early stopping or collapse; with `pandalib.ewc.EWC` it is PANDA-EWC.

    Parameters
    ----------
    backbone : the pretrained network; it stays as it is.
    epochs, lr, clip, weight_decay, penalty, seed, every, folder, on_checkpoint, bf16, progress : as in `pandalib.adapt.adapt`;
        `every` left out keeps the first and the last checkpoint only.
    k : neighbours, as in `pandalib.knn.KNN`.
    cache : keep the stem's activations on disk for the next run.

    Attributes
    ----------
    checkpoints_, backbone_, scorer_ : all checkpoints, the last of them, and the kNN on its features.
    bf16_, bf16_ratio_ : as of `pandalib.adapt.Checkpoints`; scores are computed in the same format.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        epochs: int,
        lr: float,
        clip: float | None,
        weight_decay: float = 0.0,
        penalty=None,
        k: int = 2,
        seed: int = 0,
        every: int | None = None,
        folder: Path | str | None = None,
        on_checkpoint: Callable[[Checkpoint], None] | None = None,
        bf16: bool | str = False,
        cache: FeatureCache | None = None,
        progress: bool = True,
    ):
        self.backbone, self.k, self.cache = backbone, k, cache
        self.settings = dict(
            epochs=epochs, lr=lr, clip=clip, weight_decay=weight_decay, penalty=penalty, seed=seed, every=every or epochs,
            folder=folder, on_checkpoint=on_checkpoint, bf16=bf16, progress=progress,
        )  # fmt: skip

    def fit(self, normal_images) -> Adapted:
        """Adapt to normal images, uint8 (N, 3, H, W), and remember their new features."""
        stem = self.backbone.stem_features(normal_images, cache=self.cache)
        self.checkpoints_ = adapt(self.backbone, stem, **self.settings)
        self.bf16_, self.bf16_ratio_ = self.checkpoints_.bf16, self.checkpoints_.bf16_ratio
        self.backbone_ = self.checkpoints_[-1]
        self.scorer_ = KNN(self.k).fit(self.backbone_.head_features(stem, bf16=self.bf16_))
        return self

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W)."""
        parts = stem_parts(self.backbone, images, self.cache)
        features = (self.backbone_.head_features(part, bf16=self.bf16_) for part in parts)
        return np.concatenate([self.scorer_.score(rows) for rows in features])


class SampleWise:
    """Sample-wise early stopping: each image is scored at the checkpoint where it stands out most (PANDA-SES).

    Parameters
    ----------
    share : of the normal images, held out of training and gallery to say what is usual at each checkpoint.
    every : epochs between checkpoints.
    The rest as in `Adapted`.

    Attributes
    ----------
    checkpoints_, scorers_ : T checkpoints and the kNN on the features of each.
    held_out_, held_out_scores_ : numbers of the held-out images (m,), their scores (T, m).
    bf16_, bf16_ratio_ : as of `Adapted`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        epochs: int,
        lr: float,
        clip: float | None,
        weight_decay: float = 0.0,
        share: float = 0.1,
        k: int = 2,
        seed: int = 0,
        every: int = 1,
        folder: Path | str | None = None,
        on_checkpoint: Callable[[Checkpoint], None] | None = None,
        bf16: bool | str = False,
        cache: FeatureCache | None = None,
        progress: bool = True,
    ):
        self.backbone, self.share, self.k, self.cache = backbone, share, k, cache
        self.settings = dict(
            epochs=epochs, lr=lr, clip=clip, weight_decay=weight_decay, seed=seed, every=every, folder=folder,
            on_checkpoint=on_checkpoint, bf16=bf16, progress=progress,
        )  # fmt: skip

    def fit(self, normal_images) -> SampleWise:
        """Adapt to most of the normal images, uint8 (N, 3, H, W), and score the others at every checkpoint."""
        stem = self.backbone.stem_features(normal_images, cache=self.cache)
        train, self.held_out_ = hold_out(len(stem), self.share, self.settings["seed"])
        self.checkpoints_ = adapt(self.backbone, stem[train], **self.settings)
        self.bf16_, self.bf16_ratio_ = self.checkpoints_.bf16, self.checkpoints_.bf16_ratio
        self.scorers_, held_out_scores = [], []
        for network in self.checkpoints_:
            features = network.head_features(stem, bf16=self.bf16_)
            self.scorers_.append(KNN(self.k).fit(features[train]))
            held_out_scores.append(self.scorers_[-1].score(features[self.held_out_]))
        self.held_out_scores_ = np.stack(held_out_scores)
        return self

    def curves(self, images) -> np.ndarray:
        """kNN scores at every checkpoint, (T, n), of images, uint8 (n, 3, H, W)."""
        networks = list(self.checkpoints_)
        return np.concatenate(
            [
                np.stack(
                    [
                        scorer.score(network.head_features(part, bf16=self.bf16_))
                        for scorer, network in zip(self.scorers_, networks)
                    ]
                )
                for part in stem_parts(self.backbone, images, self.cache)
            ],
            axis=1,
        )

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W): the largest ratio to the held-out images' mean score."""
        return sample_wise(self.curves(images), self.held_out_scores_)[0]


def stem_parts(backbone: Backbone, images, cache: FeatureCache | None) -> Iterator[torch.Tensor]:
    """The stem's activations of the images in parts that fit into memory."""
    if cache is not None:
        whole = backbone.stem_features(images, cache=cache)  # on disk, read as needed
        yield from (whole[start : start + CHUNK] for start in range(0, len(whole), CHUNK))
    else:
        yield from (backbone.stem_features(images[start : start + CHUNK]) for start in range(0, max(1, len(images)), CHUNK))


def pixels(images) -> np.ndarray:
    """Images uint8 (N, 3, H, W) as rows of pixel values in 0..1, float32 (N, 3 * H * W)."""
    images = np.asarray(images[:])
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {images.shape}: expected uint8 (N, 3, H, W).")
    if len(images) == 0:
        raise ValueError("there are no images: expected uint8 (N, 3, H, W) with N of at least 1.")
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
