"""Detectors on images: fit on normal images only, score any images, higher = more anomalous."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from pandalib.methods.panda import Checkpoint, fit_compactness, hold_out, sample_wise_scores
from pandalib.backbones import Backbone
from pandalib.cache import FeatureCache
from pandalib.methods.knn import KNN

CHUNK = 1024  # images whose stem activations are in memory at once when there is no cache


class PANDA:
    """kNN on features that the compactness loss has adapted: PANDA (Reiss et al. 2021, section 3).

    Without a penalty, `epochs` decides whether this is early stopping or collapse; with `pandalib.methods.ewc.EWC` it is PANDA-EWC.

    Parameters
    ----------
    backbone : the pretrained network; it stays as it is.
    epochs, lr, clip, weight_decay, penalty, seed, every, folder, on_checkpoint, bf16, progress : as in `pandalib.methods.panda.adapt`;
        `every` left out keeps the first and the last checkpoint only.
    k : neighbours, as in `pandalib.methods.knn.KNN`.
    cache : keep the stem's activations on disk for the next run.

    Attributes
    ----------
    checkpoints_, backbone_, scorer_ : all checkpoints, the last of them, and the kNN on its features.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        epochs: int,
        lr: float,
        max_grad_norm: float | None,
        weight_decay: float = 0.0,
        penalty=None,
        k: int = 2,
        seed: int = 0,
        checkpoint_every: int | None = None,
        folder: Path | str | None = None,
        on_checkpoint: Callable[[Checkpoint], None] | None = None,
        bf16: bool = False,
        cache: FeatureCache | None = None,
        progress: bool = True,
    ):
        self.backbone, self.k, self.bf16, self.cache = backbone, k, bf16, cache
        self.settings = dict(
            epochs=epochs,
            lr=lr,
            max_grad_norm=max_grad_norm,
            weight_decay=weight_decay,
            penalty=penalty,
            seed=seed,
            checkpoint_every=checkpoint_every or epochs,
            folder=folder,
            on_checkpoint=on_checkpoint,
            bf16=bf16,
            progress=progress,
        )

    def fit(self, normal_images) -> PANDA:
        """Adapt to normal images, uint8 (N, 3, H, W), and remember their new features."""
        stem = self.backbone.frozen_features(normal_images, cache=self.cache)
        self.checkpoints_ = fit_compactness(self.backbone, stem, **self.settings)
        self.backbone_ = self.checkpoints_[-1]
        self.scorer_ = KNN(self.k).fit(self.backbone_.features_from(stem, bf16=self.bf16))
        return self

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W)."""
        parts = frozen_parts(self.backbone, images, self.cache)
        return np.concatenate(
            [
                self.scorer_.score(self.backbone_.features_from(part, bf16=self.bf16))
                for part in parts
            ]
        )


class PANDASES:
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
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        epochs: int,
        lr: float,
        max_grad_norm: float | None,
        weight_decay: float = 0.0,
        holdout_fraction: float = 0.1,
        k: int = 2,
        seed: int = 0,
        checkpoint_every: int = 1,
        folder: Path | str | None = None,
        on_checkpoint: Callable[[Checkpoint], None] | None = None,
        bf16: bool = False,
        cache: FeatureCache | None = None,
        progress: bool = True,
    ):
        self.backbone, self.holdout_fraction, self.k, self.bf16, self.cache = (
            backbone,
            holdout_fraction,
            k,
            bf16,
            cache,
        )
        self.settings = dict(
            epochs=epochs,
            lr=lr,
            max_grad_norm=max_grad_norm,
            weight_decay=weight_decay,
            seed=seed,
            checkpoint_every=checkpoint_every,
            folder=folder,
            on_checkpoint=on_checkpoint,
            bf16=bf16,
            progress=progress,
        )

    def fit(self, normal_images) -> PANDASES:
        """Adapt to most of the normal images, uint8 (N, 3, H, W), and score the others at every checkpoint."""
        stem = self.backbone.frozen_features(normal_images, cache=self.cache)
        train, self.held_out_ = hold_out(len(stem), self.holdout_fraction, self.settings["seed"])
        self.checkpoints_ = fit_compactness(self.backbone, stem[train], **self.settings)
        self.scorers_, held_out_scores = [], []
        for network in self.checkpoints_:
            features = network.features_from(stem, bf16=self.bf16)
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
                        scorer.score(network.features_from(part, bf16=self.bf16))
                        for scorer, network in zip(self.scorers_, networks)
                    ]
                )
                for part in frozen_parts(self.backbone, images, self.cache)
            ],
            axis=1,
        )

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W): the largest ratio to the held-out images' mean score."""
        return sample_wise_scores(self.curves(images), self.held_out_scores_)[0]


def frozen_parts(backbone: Backbone, images, cache: FeatureCache | None) -> Iterator[torch.Tensor]:
    """The stem's activations of the images in parts that fit into memory."""
    if cache is not None:
        whole = backbone.frozen_features(images, cache=cache)  # on disk, read as needed
        yield from (whole[start : start + CHUNK] for start in range(0, len(whole), CHUNK))
    else:
        yield from (
            backbone.frozen_features(images[start : start + CHUNK])
            for start in range(0, max(1, len(images)), CHUNK)
        )
