"""Outlier exposure: given some images that are *not* normal, learn to tell them apart.

Hendrycks et al. 2019; PANDA-OE, Reiss et al. 2021, section 3. The trainable part and a new linear
layer, d -> 1, minimise binary cross-entropy (normal 0, outlier 1) on batches with as many outliers
as normal images:

    loss = mean over the batch of -y log s(z) - (1 - y) log(1 - s(z)),   z = w . f(x) + b

with s the sigmoid. There is no centre, no kNN and no penalty: having to separate two classes keeps
the features from collapsing. The score is z. What is learned depends on the outliers shown, which
stand in for anomalies that nobody has seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator
from torch import nn

from pandalib.backbones import Backbone
from pandalib.cache import FeatureCache
from pandalib.methods.training import TrainableCopy, Training
from pandalib.validation import check_counts, check_fitted, check_rates


class ExposureEpoch(NamedTuple):
    """Passed to a callback of `OutlierExposure`; the detector continues to learn afterwards."""

    epoch: int
    loss: float
    detector: OutlierExposure


@dataclass(eq=False, repr=False)
class OutlierExposure(BaseEstimator):
    """A classifier of normal images against outliers, trained together with the network.

    Parameters
    ----------
    backbone : Backbone
        The pretrained network; it stays as it is.
    outlier_images : array or sequence, shape (M, 3, H, W), uint8
        Images that are not normal, but never those that the detector is tested on.
    epochs : int
        Passes over the normal images; the outliers are repeated as needed.
    lr, max_grad_norm, momentum, bf16, cache, progress
        As for `PANDA` and `fit_compactness`.
    batch_size : int
        Normal images in a batch; as many outliers are added.
    seed : int
        Of the linear layer and of the order of both kinds.
    on_epoch : callable or None
        Called with an `ExposureEpoch` after each epoch.

    Attributes
    ----------
    backbone_ : Backbone
        With its trained part.
    linear_ : module
        The new layer.
    losses_ : list of float
        Mean loss of each epoch.
    bf16_, bf16_ratio_
        As for `TrainableCopy`.

    Examples
    --------
    >>> from pandalib import OutlierExposure, load_backbone, load_outliers, load_task, roc_auc
    >>> task = load_task("pictograms:anchor", n_train=20, n_test=6)
    >>> outliers = load_outliers("near", 20)
    >>> options = dict(epochs=2, lr=0.05, max_grad_norm=1.0, progress=False)
    >>> detector = OutlierExposure(load_backbone(), outliers, **options).fit(task.train)
    >>> roc_auc(task.labels, detector.score(task.test)) > 0.7
    True
    """

    backbone: Backbone
    outlier_images: np.ndarray | None
    _: KW_ONLY
    epochs: int
    lr: float
    max_grad_norm: float | None
    momentum: float = 0.9
    batch_size: int = 32
    seed: int = 0
    on_epoch: Callable[[ExposureEpoch], None] | None = None
    bf16: bool | str = False
    cache: FeatureCache | None = None
    progress: bool = True

    def fit(self, normal_images, y=None) -> OutlierExposure:
        """Train on normal images, uint8 (N, 3, H, W), against the outliers.

        Raises
        ------
        ValueError
            No images of either kind, or two sizes.
        FloatingPointError
            The loss is no longer finite.
        """
        pair = (normal_images, self.outlier_images)
        frozen = (self.backbone.frozen_features(images, cache=self.cache) for images in pair)
        return self.fit_frozen(*frozen)

    def fit_frozen(self, normal: torch.Tensor, outliers: torch.Tensor) -> OutlierExposure:
        """As `fit`, from frozen features: (N, C, h, w) and (M, C, h, w)."""
        if len(normal) == 0 or len(outliers) == 0 or normal.shape[1:] != outliers.shape[1:]:
            raise ValueError(
                f"frozen features are {tuple(normal.shape)} of normal images and "
                f"{tuple(outliers.shape)} of outliers: expected some of each, all of one size, "
                "since size alone would tell them apart."
            )
        check_rates(lr=self.lr, max_grad_norm=self.max_grad_norm)
        check_counts(epochs=self.epochs, batch_size=self.batch_size)
        example = torch.cat([normal[: self.batch_size], outliers[: self.batch_size]])
        network = TrainableCopy(self.backbone, self.bf16, example)
        self.bf16_, self.bf16_ratio_ = network.bf16, network.bf16_ratio
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            d = self.backbone.features_from(normal[:1]).shape[1]
            linear = nn.Linear(d, 1).to(self.backbone.device)
        parameters = [*network.trainable.parameters(), *linear.parameters()]
        optimiser = torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, fused=True)
        self.backbone_ = self.backbone.with_trainable(network.trainable)
        self.linear_ = linear
        network.trainable.requires_grad_(True)  # which `with_trainable` has taken away
        training = Training(
            optimiser,
            n_images=len(normal),
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
            callbacks=[self._report],
            description="outlier exposure",
            progress=self.progress,
        )
        next_outliers = cycled(len(outliers), seed=self.seed)

        for rows in training:
            others = torch.from_numpy(np.fromiter(next_outliers, np.int64, len(rows)))
            features = network.features(torch.cat([normal[rows], outliers[others]]))  # (2B, d)
            logits = linear(features)[:, 0]
            is_outlier = torch.arange(len(logits), device=logits.device) >= len(rows)
            loss = F.binary_cross_entropy_with_logits(logits, is_outlier.float())
            training.record(loss)
            optimiser.zero_grad()
            loss.backward()
            if self.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            optimiser.step()
        network.trainable.requires_grad_(False)
        linear.requires_grad_(False)
        return self

    def _report(self, training: Training) -> None:
        self.losses_ = training.losses
        if self.on_epoch is not None and training.epoch > 0:
            self.on_epoch(ExposureEpoch(training.epoch, training.losses[-1], self))

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W): higher = more anomalous.

        They are logits: above 0, an image is more like an outlier. The paper takes their sigmoid,
        which has the same order, but rounds to exactly 1 for many images of a confident classifier.
        """
        check_fitted(self, "linear_")
        return self.score_features(self.backbone_.features(images, cache=self.cache))

    def score_frozen(self, frozen_features: torch.Tensor) -> np.ndarray:
        """As `score`, from frozen features (n, C, h, w)."""
        return self.score_features(self.backbone_.features_from(frozen_features))

    @torch.no_grad()
    def score_features(self, features: np.ndarray) -> np.ndarray:
        """As `score`, from features of the trained network, float32 (n, d)."""
        logits = self.linear_(torch.from_numpy(features).to(self.backbone.device))
        return logits[:, 0].cpu().numpy().astype(np.float64)


def cycled(n: int, *, seed: int) -> Iterator[int]:
    """The numbers 0 .. n-1 over and over, each time in a new order."""
    for cycle in itertools.count():
        yield from np.random.default_rng((seed, cycle, 1)).permutation(n)
