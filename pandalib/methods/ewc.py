"""Elastic weight consolidation: parameters may move unless the pretraining task needs them.

Kirkpatrick et al. 2017; PANDA-EWC, Reiss et al. 2021, section 3. With theta* the pretrained
parameters of the trainable part, a penalty is added to the loss:

    loss + lambda / 2 * sum_i F_i (theta_i - theta*_i)^2,   F_i = E (d log p(y | x) / d theta_i)^2

F is the diagonal of the Fisher information of the *pretraining* task: x its images, y a label drawn
from the network's own prediction p(y | x). The gradient of each sample is squared, then the mean is
taken. The square of the mean gradient of a batch of B is only about F / B, since the gradients of
different samples cancel: a lambda has a meaning only together with the recipe of its F.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from pandalib.backbones import Backbone
from pandalib.io import read_tensors, write_tensors
from pandalib.progress import progress as bar
from pandalib.validation import as_array


@dataclass(frozen=True)
class Fisher:
    """The diagonal Fisher information of a backbone's trainable part.

    Attributes
    ----------
    values : dict
        For each parameter, by name, a float32 tensor of its shape.
    weights_sha256, adapt_from, truncate_after : str
        Of the network: its weights, and the stages that are covered.
    recipe : str
        How it was computed, in words.
    n_samples : int

    Examples
    --------
    >>> from pandalib import fisher_information, load_backbone, load_task
    >>> images = load_task("pictograms:anchor", n_train=3, n_test=1).train
    >>> fisher = fisher_information(load_backbone(), images, progress=False)
    >>> fisher.recipe
    'squares per sample, labels drawn from the prediction, seed 0'
    >>> fisher.mean() > 0
    True
    """

    values: dict[str, torch.Tensor]
    weights_sha256: str
    adapt_from: str
    truncate_after: str
    recipe: str
    n_samples: int

    def mean(self) -> float:
        """Mean over all parameters: the scale to which a lambda is relative."""
        total = sum(value.double().sum() for value in self.values.values())
        return float(total / sum(value.numel() for value in self.values.values()))

    def check(self, backbone: Backbone) -> None:
        """Raise ValueError unless this belongs to the weights and the stages of `backbone`."""
        ours, theirs = _origin(self), _origin(backbone)
        named = dict(backbone.trainable.named_parameters())
        if ours != theirs or _shapes(self.values) != _shapes(named):
            raise ValueError(
                f"this Fisher information belongs to {ours}; the backbone has {theirs}: "
                "compute it with pandalib.fisher_information."
            )

    def save(self, path: Path | str) -> None:
        """Write it as safetensors, with its origin."""
        facts = {name: value for name, value in vars(self).items() if name != "values"}
        write_tensors(path, self.values, facts)

    def _is_possible(self) -> bool:
        """Whether the origin is told in words, and the squares are finite and not below 0."""
        texts = (self.weights_sha256, self.adapt_from, self.truncate_after, self.recipe)
        return (
            all(isinstance(text, str) for text in texts)
            and isinstance(self.n_samples, int)
            and all(value.dtype == torch.float32 for value in self.values.values())
            and all(((value >= 0) & value.isfinite()).all() for value in self.values.values())
        )

    @staticmethod
    def load(path: Path | str, backbone: Backbone | None = None) -> Fisher:
        """Read what `save` wrote; with a `backbone`, only if it belongs to it.

        Raises FileNotFoundError, or ValueError for a file that is damaged, holds something else, or
        belongs to other weights or stages.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"Fisher information {path}: there is no such file.")
        try:
            values, facts = read_tensors(path)
            fisher = Fisher(values, **facts)
        except (TypeError, ValueError):
            fisher = None
        if fisher is None or not fisher._is_possible():
            raise ValueError(
                f"{path} is damaged, or holds no Fisher information: compute it with "
                "pandalib.fisher_information."
            )
        if backbone is not None:
            fisher.check(backbone)
        return fisher


def _origin(one: Fisher | Backbone) -> str:
    return f"weights {one.weights_sha256[:12]}, {one.adapt_from} to {one.truncate_after}"


def _shapes(named: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in named.items()}


def fisher_information(
    backbone: Backbone,
    images,
    labels: ArrayLike | None = None,
    *,
    classifier: nn.Module | None = None,
    batch_size: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Fisher:
    """The diagonal Fisher information of the trainable part, over images of the pretraining task.

    Parameters
    ----------
    backbone : Backbone
        A whole network, with its classifier.
    images : array or tensor
        uint8 (n, 3, H, W), or their frozen features, float (n, C, h, w).
    labels : None or array, shape (n,)
        None, the definition, draws each label from the network's own prediction. True labels give
        the "empirical" Fisher information, which also measures misfit: it shrinks as the network
        gets everything right.
    classifier : module or None
        From the last feature map to logits, for a network that has none (`linear_probe`).
    batch_size : int
        1 is the definition. Above 1, the gradient is averaged before it is squared. This common
        shortcut gives values that are too small by about this factor; it is here to be measured.
    seed : int
        Of the drawn labels.
    progress : bool

    Returns
    -------
    fisher : Fisher

    Raises
    ------
    ValueError
        A network without a classifier; no images; labels that do not fit.
    """
    own_classifier = classifier is None
    classifier = backbone.classifier if own_classifier else classifier
    if classifier is None:
        raise ValueError(
            f"{backbone.name} up to {backbone.truncate_after} has no classifier: expected the "
            "whole network, or classifier=linear_probe(backbone, images, labels)."
        )
    if len(images) == 0:
        raise ValueError("there are no images: expected images of the pretraining task.")
    if not (isinstance(images, torch.Tensor) and images.is_floating_point()):
        images = backbone.frozen_features(images)
    n_classes = backbone.n_classes if own_classifier else None
    if labels is not None:
        labels = torch.tensor(as_array(labels), dtype=torch.long)
        if labels.shape != (len(images),):
            raise ValueError(
                f"labels are {tuple(labels.shape)}: expected one for each of {len(images)} images."
            )
    # Single images are fastest with channels last, whatever the trainable part's own order.
    trainable = copy.deepcopy(backbone.trainable).to(memory_format=torch.channels_last)
    parameters = list(trainable.requires_grad_(True).parameters())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    generator = torch.Generator().manual_seed(seed)
    form = dict(device=backbone.device, dtype=torch.float32, memory_format=torch.channels_last)
    starts = range(0, len(images), batch_size)
    for start in bar(starts, "Fisher information", shown=progress):
        batch = images[start : start + batch_size].to(**form)
        logits = classifier(trainable(batch))[:, :n_classes]
        if labels is None:
            p = logits.detach().softmax(dim=1).cpu()
            y = torch.multinomial(p, 1, generator=generator)[:, 0]
        else:
            y = labels[start : start + batch_size]
            if y.min() < 0 or y.max() >= logits.shape[1]:
                raise ValueError(
                    f"labels run from {labels.min()} to {labels.max()}: expected 0 to "
                    f"{logits.shape[1] - 1}, the classes of the classifier."
                )
        loss = F.cross_entropy(logits, y.to(backbone.device))  # -log p(y | x), squared below
        gradients = torch.autograd.grad(loss, parameters)
        torch._foreach_addcmul_(sums, gradients, gradients)  # sums += gradients^2, all in one call
    values = [total.div_(len(starts)).cpu() for total in sums]
    squares = "squares per sample"
    if batch_size > 1:
        squares = f"squares of the mean gradient of batches of {batch_size}"
    drawn = "labels drawn from the prediction" if labels is None else "true labels (empirical)"
    probe = "" if own_classifier else ", linear probe"
    return Fisher(
        values=dict(zip(dict(trainable.named_parameters()), values)),
        weights_sha256=backbone.weights_sha256,
        adapt_from=backbone.adapt_from,
        truncate_after=backbone.truncate_after,
        recipe=f"{squares}, {drawn}, seed {seed}{probe}",
        n_samples=len(images),
    )


def linear_probe(backbone: Backbone, images, labels: ArrayLike) -> nn.Module:
    """A linear classifier of pooled features: a pretraining task for a network that has none.

    Parameters
    ----------
    backbone : Backbone
    images : array, shape (n, 3, H, W), uint8
        Of any two or more labelled classes, but never those that the detector is tested on.
    labels : array, shape (n,)

    Returns
    -------
    probe : module
        From the last feature map (B, C, h, w) to logits (B, n_classes), classes in the order of
        `np.unique(labels)`.
    """
    labels = np.asarray(labels)
    if len(np.unique(labels)) < 2 or labels.shape != (len(images),):
        raise ValueError(
            f"labels are {labels.shape} with {len(np.unique(labels))} different values: expected "
            f"one for each of {len(images)} images, two classes or more."
        )
    features = backbone.features(images)
    scale = StandardScaler().fit(features)
    fit = LogisticRegression(max_iter=500).fit(scale.transform(features), labels)
    weight = fit.coef_ / scale.scale_
    bias = fit.intercept_ - weight @ scale.mean_
    if len(weight) == 1:  # two classes: scikit-learn keeps one row, the log-odds of the second
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))
    probe = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    return probe.requires_grad_(False).to(backbone.device)


class EWC:
    """The penalty lambda / 2 * sum_i F_i (theta_i - theta*_i)^2, a term of the loss.

    Parameters
    ----------
    backbone : Backbone
        The pretrained network; its trainable part is theta*.
    ewc_lambda : float
        0 lets everything move, a large value freezes everything. If learning rate x lambda x F is
        above about 2, a parameter oscillates around its old value: lower the learning rate.
    fisher : Fisher or None
        F, checked against the backbone; None sets every F_i to 1: plain L2 towards theta*.

    Attributes
    ----------
    facts : dict
        What distinguishes this penalty from another; a resumed run must have the same.

    Examples
    --------
    >>> from pandalib import EWC, load_backbone
    >>> backbone = load_backbone()
    >>> penalty = EWC(backbone, 2.0, None)
    >>> float(penalty(backbone.trainable))  # at theta*
    0.0
    """

    def __init__(self, backbone: Backbone, ewc_lambda: float, fisher: Fisher | None):
        if not (np.isfinite(ewc_lambda) and ewc_lambda >= 0):
            raise ValueError(f"ewc_lambda={ewc_lambda!r}: expected a number of at least 0.")
        self.ewc_lambda = float(ewc_lambda)
        self.fisher = fisher
        start = {name: p.detach() for name, p in backbone.trainable.named_parameters()}
        weights = dict.fromkeys(start, 1.0)
        if fisher is not None:
            fisher.check(backbone)
            # In the parameters' own memory order: mixing two orders is slow.
            weights = {
                name: torch.empty_like(p).copy_(fisher.values[name]) for name, p in start.items()
            }
        self._terms = [(name, start[name], weights[name]) for name in start]

    def __call__(self, trainable: nn.Module) -> torch.Tensor:
        """The penalty at the parameters of `trainable`, a scalar with a gradient."""
        theta = dict(trainable.named_parameters())
        total = 0.0
        for name, start, weight in self._terms:
            # (theta - theta*)^2: as a loss of torch's in one pass, written out in two.
            squares = F.mse_loss(theta[name], start, reduction="none")
            total = total + (weight * squares).sum()
        return self.ewc_lambda / 2 * total

    @property
    def facts(self) -> dict:
        fisher = None if self.fisher is None else [self.fisher.recipe, self.fisher.mean()]
        return dict(ewc_lambda=self.ewc_lambda, fisher=fisher)
