"""Outlier exposure: when some images that are *not* normal are at hand, learn to tell the two apart.

Hendrycks et al. 2019; PANDA-OE, Reiss et al. 2021, section 3. The head and a new linear layer, d -> 1, are trained on
binary cross-entropy, normal 0, outlier 1, each batch with as many of either. There is no centre, no kNN and no
penalty: the two-sided task keeps the features from collapsing. The score is the output of the linear layer. What is
learned depends on which outliers are shown: they stand in for anomalies that nobody has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pandalib.adapt import check_bf16, check_counts, check_loss, check_rates, decide_bf16, trainable_head
from pandalib.backbones import Backbone, normalise, pool
from pandalib.cache import FeatureCache
from pandalib.detectors import stem_parts
from pandalib.features import check_fitted
from pandalib.progress import progress as bar


class ExposureEpoch(NamedTuple):
    """What a callback of `OutlierExposure` is given: the number of epochs done, the mean loss of the last, the detector.

    The detector goes on learning: score with it at once, or copy `backbone_` and `linear_`.
    """

    epoch: int
    loss: float
    detector: OutlierExposure


class OutlierExposure:
    """A classifier of normal images against outliers, on a pretrained network whose head is trained along.

    Parameters
    ----------
    backbone : the pretrained network; it stays as it is.
    outliers : uint8 (M, 3, H, W), images that are not normal. Never those that the detector is tested on.
    epochs : passes over the normal images. The outliers are gone through in an order of their own, over and over.
    lr, clip, momentum : of SGD, as in `pandalib.adapt.adapt`.
    batch_size : normal images in a batch; as many outliers join them.
    seed : of the linear layer and of both orders.
    on_epoch : called with an `ExposureEpoch` after each epoch.
    bf16 : compute in bfloat16 where that is safe (autocast): True, False, or "auto", as in
        `pandalib.adapt.adapt`.
    cache : keep the stem's activations on disk for the next run.

    Attributes
    ----------
    backbone_ : the network with its trained head.
    linear_ : the new layer.
    losses_ : mean loss of each epoch.
    bf16_, bf16_ratio_ : as of `pandalib.adapt.Checkpoints`.
    """

    def __init__(
        self,
        backbone: Backbone,
        outliers,
        *,
        epochs: int,
        lr: float,
        clip: float | None,
        momentum: float = 0.9,
        batch_size: int = 32,
        seed: int = 0,
        on_epoch: Callable[[ExposureEpoch], None] | None = None,
        bf16: bool | str = False,
        cache: FeatureCache | None = None,
        progress: bool = True,
    ):
        check_counts(epochs=epochs, batch_size=batch_size)
        check_rates(lr=lr, clip=clip)
        check_bf16(bf16)
        self.backbone, self.outliers, self.epochs, self.lr, self.clip, self.momentum = backbone, outliers, epochs, lr, clip, momentum
        self.batch_size, self.seed, self.on_epoch, self.bf16, self.cache, self.progress = batch_size, seed, on_epoch, bf16, cache, progress

    def fit(self, normal_images) -> OutlierExposure:
        """Train on normal images, uint8 (N, 3, H, W), against the outliers.

        Raises ValueError when there is no image of either kind, or their sizes differ; FloatingPointError when the
        loss is no longer finite.
        """
        _check_some(normal_images, self.outliers)
        ours, theirs = (" x ".join(map(str, normalise(images[:1]).shape[2:])) for images in (normal_images, self.outliers))
        if ours != theirs:
            raise ValueError(f"normal images are {ours} and outliers {theirs} pixels: expected one size, since size alone would tell them apart.")
        normal, outliers = (self.backbone.stem_features(images, cache=self.cache) for images in (normal_images, self.outliers))
        return self.fit_stems(normal, outliers)

    def fit_stems(self, normal: torch.Tensor, outliers: torch.Tensor) -> OutlierExposure:
        """As `fit`, from what the backbone's stem made of the images: (N, C, h, w) and (M, C, h, w)."""
        _check_some(normal, outliers)
        network = self.backbone
        head = trainable_head(network)
        self.bf16_, self.bf16_ratio_ = decide_bf16(
            self.bf16, head, network, normal, outliers, batch_size=min(self.batch_size, len(normal))
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            linear = nn.Linear(network.head_features(normal[:1]).shape[1], 1).to(network.device)
        parameters = [*head.parameters(), *linear.parameters()]
        optimiser = torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, fused=True)
        strangers = cycled(len(outliers), seed=self.seed)
        self.backbone_, self.linear_, self.losses_ = network.with_head(head), linear, []
        head.requires_grad_(True)  # which `with_head` has taken away
        for epoch in bar(range(1, self.epochs + 1), "outlier exposure", shown=self.progress):
            order = torch.from_numpy(np.random.default_rng((self.seed, epoch)).permutation(len(normal)))
            total = 0.0
            for rows in order.split(self.batch_size):
                others = torch.from_numpy(np.fromiter(strangers, np.int64, len(rows)))
                with torch.autocast(network.device.type, torch.bfloat16, enabled=self.bf16_):
                    feature_map = head(network.for_head(torch.cat([normal[rows], outliers[others]])))
                logits = linear(pool(feature_map.float()))[:, 0]
                target = torch.arange(2 * len(rows), device=logits.device) >= len(rows)
                loss = F.binary_cross_entropy_with_logits(logits, target.float())
                optimiser.zero_grad()
                loss.backward()
                if self.clip is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, self.clip)
                optimiser.step()
                total += loss.item() * len(rows)
            check_loss(total, epoch, lr=self.lr, clip=self.clip)
            self.losses_.append(total / len(order))
            if self.on_epoch is not None:
                self.on_epoch(ExposureEpoch(epoch, self.losses_[-1], self))
        head.requires_grad_(False)
        linear.requires_grad_(False)
        return self

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W): the logit, higher = more like an outlier.

        The paper's score is the sigmoid of it. The order is the same, but the sigmoid of a sure classifier rounds to
        exactly 1 for many images, and ties are lost.
        """
        check_fitted(self, "linear_")
        return np.concatenate([self.score_stems(part) for part in stem_parts(self.backbone, images, self.cache)])

    def score_stems(self, stem_features: torch.Tensor) -> np.ndarray:
        """As `score`, from the stem's activations (n, C, h, w)."""
        return self.score_features(self.backbone_.head_features(stem_features, bf16=self.bf16_))

    @torch.no_grad()
    def score_features(self, features: np.ndarray) -> np.ndarray:
        """As `score`, from the features of the trained network, float32 (n, d)."""
        return self.linear_(torch.from_numpy(features).to(self.backbone.device))[:, 0].cpu().numpy().astype(np.float64)


def _check_some(normal, outliers) -> None:
    for name, images in (("normal images", normal), ("outliers", outliers)):
        if len(images) == 0:
            raise ValueError(f"there are no {name}: expected at least 1.")


def cycled(n: int, *, seed: int) -> Iterator[int]:
    """The numbers 0 .. n-1 for ever, each time round in a new order."""
    time_round = 0
    while True:
        yield from np.random.default_rng((seed, time_round, 1)).permutation(n)
        time_round += 1
