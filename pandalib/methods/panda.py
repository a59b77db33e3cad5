"""PANDA: adapt pretrained features to normal images, and stop before they collapse.

Reiss et al. 2021, section 3. With c the mean feature of the normal images *before* adaptation,
never updated, and d the dimension of a feature, the trainable part of the network minimises

    loss = mean over the batch of ||f(x) - c||^2 / d

by stochastic gradient descent with clipped gradients; BatchNorm stays in evaluation mode. The
centre is for training only: scores are kNN distances between the new features. The trivial optimum
is f(x) = c for every x, and enough steps lead there. Three ways to stop before that collapse:
after a fixed number of steps (`PANDA`), at each image's own checkpoint (`PANDASES`), by a penalty
on the parameters that the pretraining task needs (`PANDAEWC`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from pandalib.backbones import Backbone
from pandalib.cache import FeatureCache
from pandalib.methods.ewc import EWC, Fisher
from pandalib.methods.knn import KNN
from pandalib.methods.training import Checkpoint, Checkpoints, TrainableCopy, Training
from pandalib.validation import as_features, as_images, check_counts, check_fitted, check_rates

CHUNK = 1024  # images whose frozen features are in memory at once, without a cache


def compactness(features: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of ||f(x) - c||^2 / d, of features (B, d) and a centre (d,): a scalar."""
    return (features - centre).square().mean()


def fit_compactness(
    backbone: Backbone,
    frozen_features: torch.Tensor,
    *,
    epochs: int,
    lr: float,
    max_grad_norm: float | None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 32,
    penalty: Callable[[torch.nn.Module], torch.Tensor] | None = None,
    seed: int = 0,
    checkpoint_every: int | None = 1,
    folder: Path | str | None = None,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
    bf16: bool | str = False,
    progress: bool = True,
) -> Checkpoints:
    """Train a copy of the trainable part of a network on the compactness loss.

    Parameters
    ----------
    backbone : Backbone
        Stays as it is.
    frozen_features : tensor, shape (N, C, h, w)
        `backbone.frozen_features(normal_images)`.
    epochs : int
        Passes over the N images, each in a new order that follows from `seed`.
    lr, momentum, weight_decay, batch_size
        Of SGD. The last batch of an epoch may be smaller.
    max_grad_norm : float or None
        Longer gradients, penalty included, are clipped to this norm; weight decay is added later.
    penalty : callable or None
        From the trainable part to a scalar tensor, added to the loss: `EWC`, for example.
    checkpoint_every, folder, on_checkpoint
        As for `Checkpoints`, where the first is called `every`.
    bf16 : True, False or "auto"
        Compute in bfloat16, with coarser numbers: many times slower on a processor without
        instructions for it. "auto" tries for half a second whether it is faster here.

    Returns
    -------
    checkpoints : Checkpoints

    Raises
    ------
    ValueError
        Settings out of range; a folder with checkpoints of another run.
    FloatingPointError
        The loss is no longer finite.
    """
    check_rates(lr=lr, max_grad_norm=max_grad_norm)
    check_counts(epochs=epochs, batch_size=batch_size)
    if checkpoint_every is not None:
        check_counts(checkpoint_every=checkpoint_every)
    network = TrainableCopy(backbone, bf16, frozen_features[:batch_size])
    parameters = list(network.trainable.parameters())
    optimiser = torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True
    )
    centre = backbone.features_from(frozen_features).mean(axis=0, dtype=np.float64)
    centre = torch.from_numpy(centre).to(backbone.device, torch.float32)
    checkpoints = Checkpoints(
        network,
        centre,
        every=checkpoint_every,
        folder=folder,
        on_checkpoint=on_checkpoint,
        settings=dict(
            lr=lr,
            max_grad_norm=max_grad_norm,
            momentum=momentum,
            weight_decay=weight_decay,
            batch_size=batch_size,
            penalty=penalty,
            seed=seed,
            bf16=bf16,
        ),
    )
    training = Training(
        optimiser,
        n_images=len(frozen_features),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        callbacks=[checkpoints.save],
        description="adapting",
        progress=progress,
    )

    for rows in training:
        features = network.features(frozen_features[rows])  # (B, d)
        loss = compactness(features, centre)
        training.record(loss)  # the curve shows compactness alone, without the penalty
        if penalty is not None:
            loss = loss + penalty(network.trainable)
        optimiser.zero_grad()
        loss.backward()
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimiser.step()
    return checkpoints


def epochs_for(minibatches: int, n_images: int, batch_size: int = 32) -> int:
    """The number of epochs, at least 1, that comes closest to this number of minibatches.

    PANDA's early stopping counts minibatches, not epochs.
    """
    return max(1, round(minibatches / math.ceil(n_images / batch_size)))


def hold_out(n: int, holdout_fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split the numbers 0 .. n-1 at random into those to train on and those to hold out.

    Both are sorted.

    Raises ValueError when either part would have fewer than 2 images.
    """
    n_held_out = round(n * holdout_fraction)
    if not 2 <= n_held_out <= n - 2:
        raise ValueError(
            f"holdout_fraction={holdout_fraction} of {n} images: expected at least 2 images in "
            "either part."
        )
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


def sample_wise_scores(
    test_scores: ArrayLike, held_out_scores: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Sample-wise early stopping: each test image picks its own checkpoint, without a label.

    PANDA-SES (section 3): at each checkpoint t, divide the score of the image by the mean score of
    held-out normal images; then take the largest ratio over all t.

    Parameters
    ----------
    test_scores : array, shape (T, n)
        kNN scores of the test images at each of T checkpoints.
    held_out_scores : array, shape (T, m)
        Scores of normal images that are neither trained on nor in the gallery.

    Returns
    -------
    scores : ndarray, shape (n,)
        max over t of test_scores[t] / mean(held_out_scores[t]).
    chosen : ndarray, shape (n,)
        The t of that maximum, the first if several are equal.

    Raises
    ------
    ValueError
        Shapes that disagree; NaN; held-out images that score 0, since these are in the gallery.
    """
    test = as_features(np.asarray(test_scores, np.float64), "test_scores")
    held_out = as_features(np.asarray(held_out_scores, np.float64), "held_out_scores")
    if len(test) != len(held_out):
        raise ValueError(
            f"scores are {test.shape} and {held_out.shape}: expected one row for each checkpoint."
        )
    typical = held_out.mean(axis=1, keepdims=True)
    if (typical <= 0).any():
        raise ValueError(
            "the held-out images score 0 on average: they are in the gallery, or the features "
            "have collapsed to one point."
        )
    ratio = test / typical
    return ratio.max(axis=0), ratio.argmax(axis=0)


@dataclass(eq=False, repr=False)
class PANDA(BaseEstimator):
    """kNN on features adapted by the compactness loss for a fixed number of epochs.

    Parameters
    ----------
    backbone : Backbone
        The pretrained network; it stays as it is.
    epochs, lr, max_grad_norm, weight_decay, penalty, seed, bf16, progress
        As for `fit_compactness`.
    checkpoint_every, folder, on_checkpoint
        As for `Checkpoints`; by default only the first and the last network are kept.
    k, normalise
        Of the kNN, as for `KNN`. Training is on features as they are, as in the paper.
    cache : FeatureCache or None
        Keeps the frozen part's output on disk for the next run.

    Attributes
    ----------
    checkpoints_ : Checkpoints
    backbone_ : Backbone
        The last checkpoint.
    scorer_ : KNN
        On the features that `backbone_` computes from the normal images.
    bf16_, bf16_ratio_
        Whether training computed in bfloat16, and its speed in the trial: see `TrainableCopy`.

    Examples
    --------
    >>> from pandalib import PANDA, load_backbone, load_task, roc_auc
    >>> task = load_task("pictograms:heart", n_train=20, n_test=6)
    >>> detector = PANDA(load_backbone(), epochs=2, lr=0.25, max_grad_norm=0.1, progress=False)
    >>> roc_auc(task.labels, detector.fit(task.train).score(task.test)) > 0.8
    True
    """

    backbone: Backbone
    _: KW_ONLY
    epochs: int
    lr: float
    max_grad_norm: float | None
    weight_decay: float = 0.0
    penalty: Callable[[torch.nn.Module], torch.Tensor] | None = None
    k: int = 2
    normalise: bool = False
    seed: int = 0
    checkpoint_every: int | None = None
    folder: Path | str | None = None
    on_checkpoint: Callable[[Checkpoint], None] | None = None
    bf16: bool | str = False
    cache: FeatureCache | None = None
    progress: bool = True

    def fit(self, normal_images, y=None) -> PANDA:
        """Adapt to normal images, uint8 (N, 3, H, W), and remember their new features."""
        frozen = self.backbone.frozen_features(normal_images, cache=self.cache)
        self._adapt(frozen)
        self.backbone_ = self.checkpoints_[-1]
        features = self.backbone_.features_from(frozen)
        self.scorer_ = KNN(self.k, normalise=self.normalise).fit(features)
        return self

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W): higher = more anomalous."""
        check_fitted(self, "scorer_")
        return self.scorer_.score(self.backbone_.features(images, cache=self.cache))

    def _adapt(self, frozen_features: torch.Tensor) -> None:
        self.checkpoints_ = fit_compactness(
            self.backbone,
            frozen_features,
            epochs=self.epochs,
            lr=self.lr,
            max_grad_norm=self.max_grad_norm,
            weight_decay=self.weight_decay,
            penalty=self._make_penalty(),
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
            folder=self.folder,
            on_checkpoint=self.on_checkpoint,
            bf16=self.bf16,
            progress=self.progress,
        )
        self.bf16_ = self.checkpoints_.bf16
        self.bf16_ratio_ = self.checkpoints_.bf16_ratio

    def _make_penalty(self):
        return self.penalty


@dataclass(eq=False, repr=False)
class PANDAEWC(PANDA):
    """`PANDA` held back by elastic weight consolidation (`EWC`) rather than by early stopping.

    Parameters
    ----------
    fisher : Fisher or None
        From `fisher_information`; None weighs all parameters alike.
    ewc_lambda : float
        Weight of the penalty.
    backbone, epochs, lr, max_grad_norm, ...
        As for `PANDA`, but no `penalty`. The attributes are the same, too.

    Examples
    --------
    >>> from pandalib import PANDAEWC, fisher_information, load_backbone, load_task
    >>> task, network = load_task("pictograms:heart", n_train=20, n_test=1), load_backbone()
    >>> fisher = fisher_information(network, task.train, progress=False)
    >>> options = dict(epochs=2, lr=0.08, max_grad_norm=0.1, progress=False)
    >>> detector = PANDAEWC(network, fisher, ewc_lambda=3000.0, **options).fit(task.train)
    >>> detector.score(task.test).shape
    (10,)
    """

    fisher: Fisher | None
    _: KW_ONLY
    ewc_lambda: float
    penalty: None = field(default=None, init=False)  # no option: `fit` makes it of these two

    def _make_penalty(self) -> EWC:
        return EWC(self.backbone, self.ewc_lambda, self.fisher)


@dataclass(eq=False, repr=False)
class PANDASES(PANDA):
    """Sample-wise early stopping: each image is scored where it stands out most (PANDA-SES).

    Parameters
    ----------
    holdout_fraction : float
        The fraction of the normal images that is held out, of training and of the gallery. Their
        mean score is the typical score at each checkpoint.
    backbone, epochs, lr, max_grad_norm, ...
        As for `PANDA`.

    Attributes
    ----------
    checkpoints_ : Checkpoints
        T of them.
    scorers_ : list of KNN
        On the features of the training images at each checkpoint.
    held_out_ : ndarray, shape (m,)
        Rows of the held-out images.
    held_out_scores_ : ndarray, shape (T, m)

    Examples
    --------
    >>> from pandalib import PANDASES, load_backbone, load_task, roc_auc
    >>> task = load_task("pictograms:heart", n_train=20, n_test=6)
    >>> detector = PANDASES(load_backbone(), epochs=2, lr=0.25, max_grad_norm=0.1, progress=False)
    >>> roc_auc(task.labels, detector.fit(task.train).score(task.test)) > 0.8
    True
    """

    _: KW_ONLY
    checkpoint_every: int = 1
    holdout_fraction: float = 0.1

    def fit(self, normal_images, y=None) -> PANDASES:
        """Adapt to most of the normal images, uint8 (N, 3, H, W); score the others as it goes."""
        frozen = self.backbone.frozen_features(normal_images, cache=self.cache)
        train, self.held_out_ = hold_out(len(frozen), self.holdout_fraction, self.seed)
        self._adapt(frozen[train])
        self.scorers_, held_out_scores = [], []
        for network in self.checkpoints_:
            features = network.features_from(frozen)
            scorer = KNN(self.k, normalise=self.normalise).fit(features[train])
            self.scorers_.append(scorer)
            held_out_scores.append(scorer.score(features[self.held_out_]))
        self.held_out_scores_ = np.stack(held_out_scores)
        return self

    def curves(self, images) -> np.ndarray:
        """kNN scores at every checkpoint, (T, n), of images, uint8 (n, 3, H, W)."""
        check_fitted(self, "scorers_")
        images, networks = as_images(images), list(self.checkpoints_)
        # A cache keeps the frozen features of all images on disk; without one they are computed in
        # parts, so that memory does not grow with the number of images.
        size = CHUNK if self.cache is None else len(images)
        parts = []
        for start in range(0, len(images), size):
            frozen = self.backbone.frozen_features(images[start : start + size], cache=self.cache)
            pairs = zip(self.scorers_, networks)
            parts.append([scorer.score(net.features_from(frozen)) for scorer, net in pairs])
        return np.concatenate(parts, axis=1)

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W): higher = more anomalous.

        Each is the largest ratio, over the checkpoints, to the held-out images' mean score.
        """
        return sample_wise_scores(self.curves(images), self.held_out_scores_)[0]
