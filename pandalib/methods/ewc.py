"""Elastic weight consolidation: let the parameters move, except where the pretraining task would notice.

Kirkpatrick et al. 2017; PANDA-EWC, Reiss et al. 2021, section 3. With theta* the pretrained parameters of the head,

    loss + lambda / 2 * sum_i F_i (theta_i - theta*_i)^2,      F_i = E over x, y of (d log p(y | x) / d theta_i)^2

F is the diagonal of the Fisher information of the *pretraining* classification task: x its images, y a label drawn
from the network's own prediction p(y | x). The square is taken for each sample alone, then averaged. Squaring the mean
gradient of a batch of B instead gives about F / B, since the gradients of different samples cancel: a lambda means
something only together with the recipe of its F.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import nn

from pandalib.backbones import EMBEDDED, Backbone
from pandalib.io import cache_folder
from pandalib.progress import progress as bar
from pandalib.sealed import read_tensors, write_tensors


@dataclass(frozen=True)
class Fisher:
    """The diagonal Fisher information of a backbone's head.

    Attributes
    ----------
    values : for each parameter of the head, by name, a float32 tensor of its shape.
    weights_sha256 : of the network it belongs to.
    adapt_from, last : the stages that it covers.
    recipe : how it was made, in words.
    n_samples : number of images.
    """

    values: dict[str, torch.Tensor]
    weights_sha256: str
    adapt_from: str
    last: str
    recipe: str
    n_samples: int

    def mean(self) -> float:
        """Mean over all parameters: the scale that a lambda is relative to."""
        return float(
            sum(value.double().sum() for value in self.values.values())
            / sum(value.numel() for value in self.values.values())
        )

    def check(self, backbone: Backbone) -> None:
        """Raise ValueError unless this belongs to the weights and the stages of `backbone`."""
        if self.weights_sha256 != backbone.weights_sha256:
            raise ValueError(
                f"this Fisher information belongs to weights {self.weights_sha256[:12]}, the backbone has {backbone.weights_sha256[:12]}: "
                "compute it anew with pandalib.methods.ewc.fisher_information."
            )
        shapes = {
            name: parameter.shape for name, parameter in backbone.trainable.named_parameters()
        }
        if {name: value.shape for name, value in self.values.items()} != shapes:
            raise ValueError(
                f"this Fisher information covers {self.adapt_from} to {self.last}, the backbone adapts {backbone.adapt_from} to {backbone.last}: "
                "compute it anew with pandalib.methods.ewc.fisher_information."
            )

    def save(self, path: Path | str) -> None:
        """Write it as safetensors, with where it came from."""
        write_tensors(
            path, self.values, {key: value for key, value in vars(self).items() if key != "values"}
        )

    @staticmethod
    def load(path: Path | str, backbone: Backbone | None = None) -> Fisher:
        """Read it back; with a `backbone`, refuse one that belongs to other weights.

        Raises FileNotFoundError, or ValueError when the file is damaged or does not belong to the backbone.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"Fisher information {path}: there is no such file.")
        try:
            values, facts = read_tensors(path)
            fisher = Fisher(values=values, **facts)
            if not all(
                isinstance(text, str)
                for text in (fisher.weights_sha256, fisher.adapt_from, fisher.last)
            ):
                raise ValueError
            if not all(
                value.is_floating_point() and value.isfinite().all() and (value >= 0).all()
                for value in values.values()
            ):
                raise ValueError  # squares, so none is negative
        except (TypeError, ValueError):
            raise ValueError(
                f"{path} is damaged, or holds no Fisher information: compute it anew with pandalib.methods.ewc.fisher_information."
            ) from None
        if backbone is not None:
            fisher.check(backbone)
        return fisher


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
    """The diagonal Fisher information of the head, over images of the pretraining task.

    Parameters
    ----------
    backbone : a whole network, with its classifier.
    images : uint8 (n, 3, H, W), or their stem activations, float (n, C, h, w).
    labels : None (the definition) draws each label from the network's own prediction. True labels, int (n,), give the
        "empirical" Fisher, which measures misfit as well and shrinks as the network gets everything right.
    classifier : from the last feature map to logits, for a network that has none (`linear_probe`).
    batch_size : 1 is the definition. Above 1 the gradient is averaged before it is squared: the common shortcut, too
        small by about this factor; here so that it can be measured.
    seed : of the drawn labels.

    Raises
    ------
    ValueError when the network has no classifier, there are no images, or the labels do not fit.
    """
    classifier = classifier if classifier is not None else backbone.classifier
    if classifier is None:
        raise ValueError(
            f"{backbone.name} up to {backbone.last} has no classifier of its pretraining task: load the whole network, or "
            "give classifier=linear_probe(backbone, images, labels) from any labelled images."
        )
    if len(images) == 0:
        raise ValueError("there are no images: expected at least one of the pretraining task.")
    stem = (
        images
        if isinstance(images, torch.Tensor) and images.is_floating_point()
        else backbone.frozen_features(images)
    )
    n_classes = backbone.n_classes if classifier is backbone.classifier else None
    if labels is not None:
        labels = torch.as_tensor(np.array(labels)).long()
        if labels.shape != (len(stem),):
            raise ValueError(
                f"labels are {tuple(labels.shape)}: expected one for each of the {len(stem)} images."
            )
    # One image at a time is fastest with channels last, whatever the head's own order.
    head = (
        copy.deepcopy(backbone.trainable).to(memory_format=torch.channels_last).requires_grad_(True)
    )
    parameters = list(head.parameters())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    generator = torch.Generator().manual_seed(seed)
    to = dict(device=backbone.device, dtype=torch.float32, memory_format=torch.channels_last)
    starts = range(0, len(stem), batch_size)
    for start in bar(starts, "Fisher information", shown=progress):
        logits = classifier(head(stem[start : start + batch_size].to(**to)))[:, :n_classes]
        if labels is None:
            y = torch.multinomial(logits.detach().softmax(dim=1).cpu(), 1, generator=generator)[
                :, 0
            ]
        else:
            y = labels[start : start + batch_size]
            if y.min() < 0 or y.max() >= logits.shape[1]:
                raise ValueError(
                    f"labels run from {int(labels.min())} to {int(labels.max())}: expected 0 to {logits.shape[1] - 1}, the classes of the classifier."
                )
        gradients = torch.autograd.grad(F.cross_entropy(logits, y.to(backbone.device)), parameters)
        torch._foreach_addcmul_(sums, gradients, gradients)
    drawn = "labels drawn from the prediction" if labels is None else "true labels (empirical)"
    squares = (
        "squares per sample"
        if batch_size == 1
        else f"squares of the mean gradient of batches of {batch_size}"
    )
    torch._foreach_div_(sums, len(starts))
    return Fisher(
        values={name: value.cpu() for (name, _), value in zip(head.named_parameters(), sums)},
        weights_sha256=backbone.weights_sha256,
        adapt_from=backbone.adapt_from,
        last=backbone.last,
        recipe=f"{squares}, {drawn}, seed {seed}"
        + ("" if classifier is backbone.classifier else ", linear probe"),
        n_samples=len(stem),
    )


def upstream_fisher(
    backbone: Backbone,
    n_samples: int = 600,
    *,
    batch_size: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Fisher:
    """The Fisher information of this project's own network on its own upstream task, drawn anew; kept in the cache folder.

    `batch_size` as in `fisher_information`: above 1 it is the biased shortcut.

    Raises ValueError for another network: its pretraining images are not at hand.
    """
    from pandalib.datasets.synthetic import glyphs

    if (
        backbone.name != EMBEDDED or backbone.classifier is None or backbone.n_classes is None
    ):  # n_classes: its own weights
        raise ValueError(
            f"{backbone.name} up to {backbone.last} was not pretrained on glyphs: give labelled images to fisher_information."
        )
    biased = f"-batches-of-{batch_size}" if batch_size > 1 else ""
    name = f"fisher-{backbone.weights_sha256[:12]}-{backbone.adapt_from}-{n_samples}-{seed}{biased}.safetensors"
    path = cache_folder() / name
    try:
        return Fisher.load(path, backbone)
    except (FileNotFoundError, ValueError):
        images = glyphs.draw_batch(range(n_samples), split="fisher", seed=seed)[0]
        fisher = fisher_information(
            backbone, images, batch_size=batch_size, seed=seed, progress=progress
        )
        try:
            fisher.save(path)
        except OSError as error:
            raise OSError(
                f"the Fisher information could not be kept: {error} PANDALIB_CACHE says where."
            ) from error
        return fisher


def linear_probe(backbone: Backbone, images, labels: ArrayLike, *, seed: int = 0) -> nn.Module:
    """A linear classifier on the pooled pretrained features: a pretraining task for a network that came without one.

    Parameters
    ----------
    images : uint8 (n, 3, H, W) of any labelled classes; never those that the detector is to be tested on.
    labels : (n,), at least two different ones.

    Returns
    -------
    module from the last feature map (B, C, h, w) to logits (B, n_classes), classes in the order of `np.unique(labels)`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    labels = np.asarray(labels)
    if len(np.unique(labels)) < 2 or labels.shape != (len(images),):
        raise ValueError(
            f"labels are {labels.shape} with {len(np.unique(labels))} different values: expected one for each of the {len(images)} images, two classes or more."
        )
    features = backbone.features(images)
    scale = StandardScaler().fit(features)
    fit = LogisticRegression(max_iter=500, random_state=seed).fit(scale.transform(features), labels)
    weight, bias = (
        fit.coef_ / scale.scale_,
        fit.intercept_ - fit.coef_ @ (scale.mean_ / scale.scale_),
    )
    if len(weight) == 1:  # two classes: scikit-learn keeps one row, the log-odds of the second
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))
    return (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
        .requires_grad_(False)
        .to(backbone.device)
    )


class EWC:
    """The penalty lambda / 2 * sum_i F_i (theta_i - theta*_i)^2, as its gradient lambda * F_i * (theta_i - theta*_i).

    Parameters
    ----------
    backbone : the pretrained network; its head is theta*.
    strength : lambda. 0 lets everything move, a large one freezes the head. Where learning rate x lambda x F is above
        about 2, a parameter swings around its old value instead: lower the learning rate.
    fisher : F, checked against the backbone; None sets every F_i to 1, plain L2 towards the pretrained parameters.
    """

    def __init__(self, backbone: Backbone, ewc_lambda: float, fisher: Fisher | None):
        if not (np.isfinite(ewc_lambda) and ewc_lambda >= 0):
            raise ValueError(f"strength={strength!r}: expected lambda, a number of at least 0.")
        self.backbone, self.ewc_lambda, self.fisher = backbone, float(ewc_lambda), fisher
        self._start = [parameter.detach() for parameter in backbone.trainable.parameters()]
        self._weights = None
        if fisher is not None:
            fisher.check(backbone)
            self._weights = [
                fisher.values[name].to(backbone.device)
                for name, _ in backbone.trainable.named_parameters()
            ]

    def identity(self) -> dict:
        """What distinguishes this penalty from another (a resumed run must have the same)."""
        return dict(
            ewc_lambda=self.ewc_lambda,
            fisher=None if self.fisher is None else _digest(self.fisher.values),
        )

    def value(self, head: nn.Module) -> float:
        """The penalty at the parameters of `head`."""
        difference = torch._foreach_sub(
            [parameter.detach() for parameter in head.parameters()], self._start
        )
        weights = self._weights or [torch.ones_like(part) for part in difference]
        return (
            self.ewc_lambda
            / 2
            * sum(
                float((weight * part.square()).sum()) for weight, part in zip(weights, difference)
            )
        )

    def add_gradient(self, head: nn.Module) -> None:
        """Add the gradient of the penalty to `.grad` of the head's parameters, in place."""
        parameters = list(head.parameters())
        self._start = _in_order(self._start, parameters)
        difference = torch._foreach_sub(
            [parameter.detach() for parameter in parameters], self._start
        )
        gradients = [parameter.grad for parameter in parameters]
        if self._weights is None:
            torch._foreach_add_(gradients, difference, alpha=self.ewc_lambda)
        else:
            self._weights = _in_order(self._weights, parameters)
            torch._foreach_addcmul_(gradients, difference, self._weights, value=self.ewc_lambda)


def _in_order(tensors: list[torch.Tensor], parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors in the parameters' order in memory, since to walk through two orders side by side is slow; copied at most once."""
    if all(tensor.stride() == parameter.stride() for tensor, parameter in zip(tensors, parameters)):
        return tensors
    return [
        torch.empty_like(parameter).copy_(tensor) for tensor, parameter in zip(tensors, parameters)
    ]


def _digest(tensors: dict[str, torch.Tensor] | Sequence) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name].detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
