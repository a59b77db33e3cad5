"""DeepSVDD: keep the features from collapsing by taking away what a network needs to collapse.

Ruff et al. 2018. A network without biases maps the zero image to zero, so it cannot be the constant f(x) = c by its
biases alone: no bias in a convolution or a linear layer, no shift and scale in BatchNorm, and no entry of the centre
near zero, which zero weights would reach. (BatchNorm still subtracts its running means: these follow the images, not
the loss.) It is trained from scratch on the distance to the centre, and that distance is the score. A pretrained
network has biases, and loses what it knows with them: the point where PANDA begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from pandalib.backbones import normalise
from pandalib.progress import progress as bar

NEAREST_TO_ZERO = (
    0.1  # entries of the centre keep at least this distance from zero (Ruff et al. 2018)
)


class SVDDEpoch(NamedTuple):
    """What a callback of `DeepSVDD` is given: the number of epochs done, the mean loss of the last, the detector."""

    epoch: int
    loss: float
    detector: DeepSVDD


def away_from_zero(centre: torch.Tensor, least: float = NEAREST_TO_ZERO) -> torch.Tensor:
    """The centre (d,) with each entry nearer to zero than `least` moved to +least or -least, by its sign (0 to +least)."""
    moved = torch.where(centre < 0, -least, least).to(centre)
    return torch.where(centre.abs() < least, moved, centre)


def svdd_network(n_features: int = 128, *, seed: int = 0) -> nn.Sequential:
    """Three blocks of 5 x 5 convolution, BatchNorm, leaky ReLU and pooling, then a linear layer, and no bias anywhere.

    Images (B, 3, H, W), averaged down to 32 x 32 -> features (B, n_features).
    """
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(32)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for narrow, wide in ((3, 32), (32, 64), (64, 128)):
            conv = nn.Conv2d(narrow, wide, 5, padding=2, bias=False)
            layers += [
                conv,
                nn.BatchNorm2d(wide, eps=1e-4, affine=False),
                nn.LeakyReLU(),
                nn.MaxPool2d(2),
            ]
        layers += [nn.Flatten(), nn.Linear(128 * 16, n_features, bias=False)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


class DeepSVDD:
    """One-class DeepSVDD from scratch: score = ||f(x) - c||^2 / d.

    Parameters
    ----------
    epochs, lr, batch_size, weight_decay : of Adam. As in the authors' text, the learning rate falls to a tenth for the
        last third of the epochs.
    n_features : dimension d.
    seed : of the weights and of the order of the batches.
    on_epoch : called with an `SVDDEpoch` before training and after each epoch.

    Attributes
    ----------
    network_, centre_ : the trained network, and c from the untrained one, shape (d,).
    losses_ : mean loss of each epoch.
    """

    def __init__(
        self,
        epochs: int = 15,
        *,
        lr: float = 1e-3,
        batch_size: int = 64,
        weight_decay: float = 1e-6,
        n_features: int = 128,
        seed: int = 0,
        on_epoch: Callable[[SVDDEpoch], None] | None = None,
        progress: bool = True,
    ):
        self.epochs, self.lr, self.batch_size, self.weight_decay = (
            epochs,
            lr,
            batch_size,
            weight_decay,
        )
        self.n_features, self.seed, self.on_epoch, self.progress = (
            n_features,
            seed,
            on_epoch,
            progress,
        )

    def fit(self, normal_images) -> DeepSVDD:
        """Train on normal images, uint8 (N, 3, H, W).

        Raises ValueError for images of another form or fewer than 2 of them (BatchNorm needs two).
        """
        if self.epochs != int(self.epochs) or self.epochs < 1:
            raise ValueError(f"epochs={self.epochs!r}: expected a whole number of at least 1.")
        if len(normal_images) < 2:
            raise ValueError(f"{len(normal_images)} normal images: DeepSVDD needs at least 2.")
        self.network_ = svdd_network(self.n_features, seed=self.seed)
        self.centre_ = away_from_zero(torch.from_numpy(self.features(normal_images).mean(axis=0)))
        self.losses_: list[float] = []
        optimiser = torch.optim.Adam(
            self.network_.parameters(), lr=self.lr, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [max(1, 2 * self.epochs // 3)])
        if self.on_epoch is not None:
            self.on_epoch(SVDDEpoch(0, float("nan"), self))
        for epoch in bar(range(1, self.epochs + 1), "DeepSVDD", shown=self.progress):
            order, total = (
                np.random.default_rng((self.seed, epoch)).permutation(len(normal_images)),
                0.0,
            )
            self.network_.train()  # here BatchNorm has no pretrained statistics to protect
            for rows in np.array_split(
                order, -(-len(order) // self.batch_size)
            ):  # never a last batch of one
                x = normalise(np.stack([normal_images[int(row)] for row in rows]))
                loss = (self.network_(x) - self.centre_).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.item() * len(rows)
            schedule.step()
            self.losses_.append(total / len(order))
            if self.on_epoch is not None:
                self.on_epoch(SVDDEpoch(epoch, self.losses_[-1], self))
        self.network_.eval()
        return self

    @torch.no_grad()
    def features(self, images) -> np.ndarray:
        """Features of images, uint8 (n, 3, H, W) -> float32 (n, d)."""
        self.network_.eval()
        parts = (images[start : start + 256] for start in range(0, len(images), 256))
        return np.concatenate([self.network_(normalise(part)).numpy() for part in parts])

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W): squared distance to the centre over d."""
        return np.square(self.features(images) - self.centre_.numpy()).mean(
            axis=1, dtype=np.float64
        )
