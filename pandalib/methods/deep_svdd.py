"""DeepSVDD: keep features from collapsing by taking away what a network needs to collapse.

Ruff et al. 2018. Without biases a network f maps the zero image to zero, so biases alone cannot
make it the constant f(x) = c: there is no bias in a convolution or a linear layer, no shift and
scale in BatchNorm, and no entry of the centre c near zero, which zero weights would reach.
(BatchNorm still subtracts its running means, which follow the images, not the loss.) The network is
trained from scratch on the distance to the centre, and that distance is the score:

    loss = mean over the batch of ||f(x) - c||^2 / d,     score(x) = ||f(x) - c||^2 / d

A pretrained network has biases, and without them loses what it knows: this is where PANDA begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn

from pandalib.backbones import normalise
from pandalib.methods.panda import compactness
from pandalib.methods.training import Training
from pandalib.validation import as_images, check_counts, check_fitted, check_rates

NEAREST_TO_ZERO = 0.1  # entries of the centre keep at least this distance (Ruff et al. 2018)


class SVDDEpoch(NamedTuple):
    """Passed to a callback of `DeepSVDD`."""

    epoch: int
    loss: float  # nan before training
    detector: DeepSVDD


def away_from_zero(centre: torch.Tensor) -> torch.Tensor:
    """The centre (d,), with entries nearer to zero than 0.1 moved to 0.1 or -0.1."""
    moved = torch.where(centre < 0, -NEAREST_TO_ZERO, NEAREST_TO_ZERO).to(centre)
    return torch.where(centre.abs() < NEAREST_TO_ZERO, moved, centre)


def svdd_network(n_features: int = 128, *, seed: int = 0) -> nn.Sequential:
    """Three blocks of convolution, BatchNorm, leaky ReLU and pooling, and a layer; no bias.

    Images (B, 3, H, W), averaged down to 32 x 32 -> features (B, n_features).
    """
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(32)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for narrow, wide in ((3, 32), (32, 64), (64, 128)):
            layers += [
                nn.Conv2d(narrow, wide, 5, padding=2, bias=False),
                nn.BatchNorm2d(wide, eps=1e-4, affine=False),
                nn.LeakyReLU(),
                nn.MaxPool2d(2),
            ]
        layers += [nn.Flatten(), nn.Linear(128 * 16, n_features, bias=False)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


@dataclass(eq=False, repr=False)
class DeepSVDD(BaseEstimator):
    """One-class DeepSVDD from scratch: the score is the distance to the centre.

    Parameters
    ----------
    epochs, lr, batch_size, weight_decay
        Of Adam. As in the paper, the learning rate falls to a tenth for the last third.
    n_features : int
        Dimension d.
    seed : int
        Of the weights and of the order of the batches.
    on_epoch : callable or None
        Called with an `SVDDEpoch` before training and after each epoch.
    progress : bool

    Attributes
    ----------
    network_ : module
    centre_ : tensor, shape (d,)
        Mean feature of the untrained network, moved away from zero.
    losses_ : list of float
        Mean loss of each epoch.

    Examples
    --------
    >>> from pandalib import DeepSVDD, load_task
    >>> task = load_task("pictograms:star", n_train=20, n_test=1)
    >>> detector = DeepSVDD(epochs=3, progress=False).fit(task.train)
    >>> detector.losses_[0] > detector.losses_[-1], detector.score(task.test).shape
    (True, (10,))
    """

    epochs: int = 15
    _: KW_ONLY
    lr: float = 1e-3
    batch_size: int = 64
    weight_decay: float = 1e-6
    n_features: int = 128
    seed: int = 0
    on_epoch: Callable[[SVDDEpoch], None] | None = None
    progress: bool = True

    def fit(self, normal_images, y=None) -> DeepSVDD:
        """Train on normal images, uint8 (N, 3, H, W): at least 2, because of BatchNorm."""
        normal_images = as_images(normal_images)
        n = len(normal_images)
        if n < 2:
            raise ValueError(f"{n} normal images: DeepSVDD needs at least 2.")
        check_counts(epochs=self.epochs, batch_size=self.batch_size)
        check_rates(lr=self.lr)
        network = self.network_ = svdd_network(self.n_features, seed=self.seed)
        mean = self.features(normal_images).mean(axis=0)
        centre = self.centre_ = away_from_zero(torch.from_numpy(mean))
        parameters = network.parameters()
        optimiser = torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay)
        n_fast = max(1, 2 * self.epochs // 3) * math.ceil(n / self.batch_size)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [n_fast])  # a tenth after these
        training = Training(
            optimiser,
            n_images=n,
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
            even_batches=True,
            callbacks=[self._report],
            description="DeepSVDD",
            progress=self.progress,
        )

        for rows in training:
            network.train()  # here BatchNorm has no pretrained statistics to protect
            images = normalise(np.stack([normal_images[int(row)] for row in rows]))
            loss = compactness(network(images), centre)
            training.record(loss)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        network.eval()
        return self

    def _report(self, training: Training) -> None:
        self.losses_ = training.losses
        if self.on_epoch is not None:
            loss = training.losses[-1] if training.losses else math.nan
            self.on_epoch(SVDDEpoch(training.epoch, loss, self))

    @torch.no_grad()
    def features(self, images) -> np.ndarray:
        """Features of images, uint8 (n, 3, H, W) -> float32 (n, d)."""
        check_fitted(self, "network_")
        self.network_.eval()
        images = as_images(images)
        parts = (images[start : start + 256] for start in range(0, len(images), 256))
        return np.concatenate([self.network_(normalise(part)).numpy() for part in parts])

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W): higher = more anomalous."""
        difference = self.features(images) - self.centre_.numpy()
        return np.square(difference).mean(axis=1, dtype=np.float64)
