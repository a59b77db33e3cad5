"""Mean-shifted contrastive adaptation (Reiss and Hoshen, AAAI 2023).

A contrastive loss pulls two views of an image together and pushes other images away. On features
that are pretrained and all normal, it does harm: the images are close to each other already, so it
spreads them over the sphere, away from where they were. Seen from their own mean there is room in
every direction. With phi(x) = f(x) / ||f(x)|| and c the mean of phi over the normal images *before*
adaptation, never updated, the features are shifted and normalised again,

    theta(x) = (phi(x) - c) / ||phi(x) - c||,

and for two augmented views x', x'' of each of B images, z running over all 2B views but x',

    loss(x', x'') = -s(x', x'') + log(sum over z of exp(s(x', z)))
    with s(a, b) = theta(a) . theta(b) / tau.

The score is that of kNN by angle: on features of length one, ||a - b||^2 = 2 (1 - a . b).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator
from torchvision.transforms import v2

from pandalib.backbones import Backbone
from pandalib.cache import FeatureCache
from pandalib.methods.knn import KNN
from pandalib.methods.training import Checkpoint, Checkpoints, TrainableCopy, Training
from pandalib.validation import as_images, check_counts, check_fitted, check_rates


def mean_shifted_loss(
    features: torch.Tensor, others: torch.Tensor, centre: torch.Tensor, temperature: float = 0.25
) -> torch.Tensor:
    """The mean of the loss over all views: a scalar.

    `features` and `others` (B, d) are those of two views of the same images in the same order;
    `centre` (d,) is the mean of normalised features.
    """
    views = F.normalize(torch.cat([features, others]), dim=1)  # phi, (2B, d)
    shifted = F.normalize(views - centre, dim=1)  # theta
    similarity = shifted @ shifted.T / temperature
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    similarity = similarity.masked_fill(itself, -torch.inf)
    partner = torch.arange(len(views), device=views.device).roll(len(features))
    return F.cross_entropy(similarity, partner)


def angular_loss(features: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Mean of -phi(x) . c / ||c||: compactness on the sphere, which the paper adds at will."""
    return -(F.normalize(features, dim=1) @ F.normalize(centre, dim=0)).mean()


def augmentation(height: int, width: int) -> v2.Transform:
    """A random view of an image: part of it, perhaps mirrored, in other colours, perhaps grey."""
    jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    return v2.Compose(
        [
            v2.RandomResizedCrop((height, width), scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([jitter], p=0.8),
            v2.RandomGrayscale(p=0.2),
        ]
    )


@dataclass(eq=False, repr=False)
class MeanShifted(BaseEstimator):
    """kNN by angle on features adapted by the mean-shifted contrastive loss.

    Every epoch sees new views, so the frozen part of the network has to run each time: an epoch
    costs many times as much as one of `PANDA`, whose frozen features are computed once.

    Parameters
    ----------
    backbone : Backbone
        The pretrained network; it stays as it is.
    epochs : int
    lr, max_grad_norm, momentum, weight_decay
        As for `fit_compactness`.
    temperature : float
        tau.
    angular : bool
        Add `angular_loss` of both views.
    batch_size : int
        Images, each seen in two views. All batches have the same size, give or take one.
    k : int
        Neighbours of the kNN.
    checkpoint_every, on_checkpoint
        As for `Checkpoints`, where the first is called `every`.
    seed : int
        Of the order of the images and of their views.
    cache : FeatureCache or None
        Of the frozen part of the images as they are.
    progress : bool

    Attributes
    ----------
    backbone_ : Backbone
        Adapted.
    checkpoints_ : Checkpoints
    knn_ : KNN
    losses_ : list of float
        Mean loss of each epoch.

    Examples
    --------
    >>> from pandalib import MeanShifted, load_backbone, load_task, roc_auc
    >>> task = load_task("pictograms:heart", n_train=24, n_test=6)
    >>> options = dict(epochs=1, lr=0.01, max_grad_norm=0.1, progress=False)
    >>> detector = MeanShifted(load_backbone(), **options).fit(task.train)
    >>> roc_auc(task.labels, detector.score(task.test)) > 0.7
    True
    """

    backbone: Backbone
    _: KW_ONLY
    epochs: int
    lr: float
    max_grad_norm: float | None
    momentum: float = 0.9
    weight_decay: float = 0.0
    temperature: float = 0.25
    angular: bool = False
    batch_size: int = 32
    k: int = 2
    checkpoint_every: int | None = None
    on_checkpoint: Callable[[Checkpoint], None] | None = None
    seed: int = 0
    cache: FeatureCache | None = None
    progress: bool = True

    def fit(self, normal_images, y=None) -> MeanShifted:
        """Adapt to normal images, uint8 (N, 3, H, W), and build the gallery.

        Raises
        ------
        ValueError
            Settings out of range, or fewer than two images: there is nothing to push away.
        FloatingPointError
            The loss is no longer finite.
        """
        images = as_images(normal_images)
        check_rates(lr=self.lr, max_grad_norm=self.max_grad_norm, temperature=self.temperature)
        check_counts(epochs=self.epochs, batch_size=self.batch_size, k=self.k)
        if len(images) < 2 or self.batch_size < 2:
            raise ValueError(
                f"{len(images)} normal images, batch_size={self.batch_size}: expected at least 2 "
                "of each, so that there is an image to push away."
            )
        frozen = self.backbone.frozen_features(images, cache=self.cache)
        network = TrainableCopy(self.backbone, False, frozen[:1])
        parameters = list(network.trainable.parameters())
        optimiser = torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=True,
        )
        phi = F.normalize(torch.from_numpy(self.backbone.features_from(frozen)), dim=1)
        centre = phi.mean(dim=0).to(self.backbone.device)
        self.checkpoints_ = Checkpoints(
            network,
            centre,
            every=self.checkpoint_every,
            on_checkpoint=self.on_checkpoint,
            settings={},
        )
        training = Training(
            optimiser,
            n_images=len(images),
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
            even_batches=True,
            callbacks=[self.checkpoints_.save],
            description="mean-shifted",
            progress=self.progress,
        )
        transform, rng = augmentation(*images[:1].shape[2:]), np.random.default_rng(self.seed)

        for rows in training:
            views = (self._view(images, rows, transform, rng) for _ in range(2))
            one, other = map(network.features, views)  # (B, d) each
            loss = mean_shifted_loss(one, other, centre, self.temperature)
            if self.angular:
                loss = loss + angular_loss(torch.cat([one, other]), centre)
            training.record(loss)
            optimiser.zero_grad()
            loss.backward()
            if self.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            optimiser.step()
        self.losses_ = training.losses
        self.backbone_ = self.checkpoints_[-1]
        self.knn_ = KNN(self.k, normalise=True).fit(self.backbone_.features_from(frozen))
        return self

    def _view(self, images, rows: torch.Tensor, transform, rng) -> torch.Tensor:
        """Frozen features (B, C, h, w) of a new view of each of these images."""
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            torch.manual_seed(int(rng.integers(2**31)))
            pictures = [
                transform(torch.from_numpy(np.ascontiguousarray(images[row : row + 1][0])))
                for row in rows.tolist()
            ]
        return self.backbone.frozen_features(torch.stack(pictures).numpy())

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W): higher = more anomalous."""
        check_fitted(self, "knn_")
        return self.knn_.score(self.backbone_.features(images, cache=self.cache))
