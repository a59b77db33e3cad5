"""Backbones: a pretrained network as a frozen part, computed once, and a trainable part.

One forward pass gives all requested layers and the pooled feature, the spatial mean of the last
layer (global average pooling; Reiss et al. 2021, section 3). The network always stays in evaluation
mode: the running statistics of BatchNorm are part of what was learned and never change.

    images uint8 (N, 3, H, W) -> normalise -> frozen (cached) -> trainable -> pooled (N, d)
"""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, ResNet

from pandalib.cache import FeatureCache, content_key
from pandalib.io import sha256_of
from pandalib.timm_backbones import TIMM, check_cut, create, cut, in_sequence
from pandalib.validation import as_images
from pandalib.weights import (
    EMBEDDED,
    embedded_facts,
    find_weights,
    load_state,
    read_state,
    state_sha256,
)

# Of ImageNet, as torchvision's weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# About 256 images of 64 x 64, 20 of 224 x 224: activations stay in the tens of megabytes.
PIXELS_PER_BATCH = 2**20


class Family(NamedTuple):
    """How a family of networks is cut into stages, by the names of torchvision's modules."""

    stages: dict[str, list[str]]
    classifier: list[str]  # to the logits; "pool" and "flatten" are added where there are none
    logits: str  # the weights of its last layer
    adapt_from: str  # the first stage that is trained, unless another is named
    layers: tuple[str, ...]  # for maps, from fine to coarse


_RESNET = Family(
    stages={
        "conv": ["conv1", "bn1", "relu", "maxpool"],
        "layer1": ["layer1"],
        "layer2": ["layer2"],
        "layer3": ["layer3"],
        "layer4": ["layer4"],
    },
    classifier=["avgpool", "flatten", "fc"],
    logits="fc.weight",
    adapt_from="layer3",
    layers=("layer1", "layer2", "layer3"),
)
FAMILIES = {  # by the beginning of the name
    EMBEDDED: _RESNET,
    "resnet": _RESNET,
    "resnext": _RESNET,
    "wide_resnet": _RESNET,
    "mobilenet_v2": Family(
        stages={f"features.{number}": [f"features.{number}"] for number in range(19)},
        classifier=["pool", "flatten", "classifier"],
        logits="classifier.1.weight",
        adapt_from="features.14",
        layers=("features.3", "features.6", "features.13"),  # an 1/4, 1/8, 1/16 of the image
    ),
}


class Backbone(nn.Module):
    """A network in named stages, frozen before `adapt_from`, trainable from there on.

    Parameters
    ----------
    stages : OrderedDict of str to Module
        "conv", "layer1", ... or "features.0", ...; the first takes images, the last gives the
        feature map.
    classifier : Module or None
        From the last feature map to the logits of the pretraining task.
    name : str
    weights_sha256 : str
        Hash of the weights' file, or of the tensors if they were drawn at random.
    adapt_from : str
        The first trainable stage; if there is none of this name, all are frozen.
    n_classes : int or None
        How many of the first logits belong to the pretraining task; None: all of them.
    source : str or None
        The origin of the weights: "embedded", "imagenet", "random" or a file.
    map_layers : sequence of str
        The layers that methods with maps compare by default, from fine to coarse.
    mean, std : tuple of 3 floats
        What the network expects to be subtracted from its inputs, 0 to 1, and divided by.
    size : int
        Side in pixels of the images that it was trained on.
    pooling : Module or None
        From the last stage's output to the pooled feature (B, d); None: the spatial mean.
    pool : str or None
        What was asked for as the pooled feature, as in `load_backbone`.
    as_map : Module or None
        From a stage's output to its feature map (B, C, h, w); None: it is one.
    fold : bool
        Fold BatchNorm into the frozen convolutions.

    Attributes
    ----------
    stages : tuple of str
        The names of all stages.
    frozen, trainable : Sequential
        The stages. Folding BatchNorm is exact to rounding, and faster.
    truncate_after : str
        Name of the last stage.

    Examples
    --------
    >>> import numpy as np
    >>> from pandalib import load_backbone
    >>> backbone = load_backbone(device="cpu")
    >>> images = np.zeros((2, 3, 64, 64), np.uint8)
    >>> backbone.features(images).shape
    (2, 512)
    >>> maps = next(backbone.iter_layers(images, ["layer1", "layer3"]))
    >>> tuple(maps["layer3"].shape)
    (2, 256, 4, 4)
    """

    def __init__(
        self,
        stages: OrderedDict[str, nn.Module],
        classifier: nn.Module | None,
        *,
        name: str,
        weights_sha256: str,
        adapt_from: str = "layer3",
        n_classes: int | None = None,
        source: str | None = None,
        map_layers: Sequence[str] = _RESNET.layers,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        size: int = 224,
        pooling: nn.Module | None = None,
        pool: str | None = None,
        as_map: nn.Module | None = None,
        fold: bool = True,
    ):
        super().__init__()
        names = list(stages)
        cut = names.index(adapt_from) if adapt_from in names else len(names)
        self.name = name
        self.weights_sha256 = weights_sha256
        self.stages = tuple(names)
        self.truncate_after = names[-1]
        self.adapt_from = adapt_from
        self.map_layers = tuple(layer for layer in map_layers if layer in names)
        self.mean, self.std, self.size = tuple(mean), tuple(std), size
        self.frozen = in_sequence({stage: stages[stage] for stage in names[:cut]})
        self.trainable = in_sequence({stage: stages[stage] for stage in names[cut:]})
        self.classifier = classifier
        self.pooling, self.pool, self.as_map = pooling, pool, as_map or nn.Identity()
        self.n_classes = n_classes
        self.source = source
        self.eval()
        if fold:
            fold_batchnorm(self.frozen)
        self.requires_grad_(False)
        # Large maps are fastest with channels last; the embedded network's, 8 x 8 and smaller,
        # without: bench/adaptation.py.
        small_maps = name == EMBEDDED
        self.trainable_order = torch.contiguous_format if small_maps else torch.channels_last
        self.to(memory_format=torch.channels_last)
        self.trainable.to(memory_format=self.trainable_order)

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: training must not change the statistics of BatchNorm."""
        return super().train(False)

    def __repr__(self) -> str:
        return f"Backbone({self.name}, weights {self.weights_sha256[:12]})"

    def __sklearn_clone__(self) -> Backbone:
        """Return the network itself: detectors share it, since none of them changes it."""
        return self

    @property
    def device(self) -> torch.device:
        """The device that the network is on."""
        return next(self.parameters()).device

    def with_trainable(self, trainable: nn.Module) -> Backbone:
        """The same network with another trainable part; the rest is shared, not copied."""
        other = copy.copy(self)
        other._modules = {**self._modules, "trainable": trainable}
        return other.eval().requires_grad_(False)

    def forward(
        self, images: torch.Tensor, layers: Sequence[str] = (), *, pooled: bool = True
    ) -> dict[str, torch.Tensor]:
        """Feature maps and the pooled feature of normalised images.

        Parameters
        ----------
        images : Tensor, shape (B, 3, H, W)
        layers : names of stages
        pooled : bool
            Without it the network runs only as far as the last of `layers`.

        Returns
        -------
        found : dict
            The feature map (B, C, h, w) of each of `layers`, and "pooled": (B, d).
        """
        stages = zip(self.stages, (*self.frozen, *self.trainable))
        unknown = set(layers) - set(self.stages)
        if unknown:
            raise ValueError(
                f"{self.name} up to {self.truncate_after} has no layer "
                f"{', '.join(sorted(unknown))}: choose among {', '.join(self.stages)}."
            )
        found = {}
        x = images
        for name, stage in stages:
            x = stage(x)
            if name in layers:
                found[name] = self.as_map(x)
            if not pooled and len(found) == len(set(layers)):
                return found
        return {**found, "pooled": self.pooled(x)}

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """From the last stage's output (B, C, h, w) to the pooled feature (B, d)."""
        return self.as_map(x).mean(dim=(2, 3)) if self.pooling is None else self.pooling(x)

    @torch.no_grad()
    def features(self, images, *, cache: FeatureCache | None = None) -> np.ndarray:
        """Pooled features of images.

        Parameters
        ----------
        images : array or sequence, uint8 (N, 3, H, W)
            Anything that `pandalib.validation.as_images` accepts.
        cache : FeatureCache, optional
            Keeps the frozen part's output for the next call.

        Returns
        -------
        features : ndarray, shape (N, d), float32
        """
        if cache is not None:
            return self.features_from(self.frozen_features(images, cache=cache))
        return np.concatenate(
            [self(batch)["pooled"].float().cpu().numpy() for batch in self._batches(images)]
        )

    @torch.no_grad()
    def iter_layers(
        self, images, layers: Sequence[str], *, pooled: bool = True
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the result of `forward` for one batch of `images` after another."""
        for batch in self._batches(images):
            yield self(batch, layers, pooled=pooled)

    @torch.no_grad()
    def frozen_features(self, images, *, cache: FeatureCache | None = None) -> torch.Tensor:
        """The frozen part's output (N, C, h, w) on the CPU; a `FeatureCache` makes it float16."""
        if cache is None:
            return torch.cat([self.frozen(batch).cpu() for batch in self._batches(images)])
        images = as_images(images)
        first = next(self._batches(images[:1]))
        shape = (len(images), *self.frozen(first).shape[1:])
        key = content_key(
            self.frozen_sha256(), str(self.mean + self.std), str(tuple(first.shape[1:])), images
        )
        chunks = (self.frozen(batch).float().cpu().numpy() for batch in self._batches(images))
        return torch.from_numpy(cache.get(key, shape, chunks))

    @torch.no_grad()
    def features_from(
        self, frozen_features: torch.Tensor, *, batch_size: int = 512, bf16: bool = False
    ) -> np.ndarray:
        """From the frozen part's output (N, C, h, w) to pooled features, float32 (N, d).

        With `bf16` the convolutions compute in bfloat16 (autocast): faster, with errors of 2e-3.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            return np.concatenate(
                [
                    self.pooled(self.trainable(self.for_trainable(part)).float()).cpu().numpy()
                    for part in frozen_features.split(batch_size)
                ]
            )

    def for_trainable(self, frozen_features: torch.Tensor) -> torch.Tensor:
        """The frozen part's output in the trainable part's device, type and memory format."""
        return frozen_features.to(self.device, torch.float32, memory_format=self.trainable_order)

    def frozen_sha256(self) -> str:
        """Hash of the frozen part's own numbers, on which cached activations depend."""
        return state_sha256(self.frozen.state_dict())

    def trainable_sha256(self) -> str:
        """Hash of the trainable part's own numbers, which adaptation changes."""
        return state_sha256(self.trainable.state_dict())

    def _batches(self, images) -> Iterator[torch.Tensor]:
        """Normalised batches on the network's device."""
        images = as_images(images)
        height, width = np.shape(images if hasattr(images, "shape") else images[:1])[-2:]
        step = max(1, PIXELS_PER_BATCH // (height * width))
        if hasattr(images, "iter_batches"):  # files are decoded ahead, while the network works
            batches = images.iter_batches(step)
        else:
            batches = (images[start : start + step] for start in range(0, len(images), step))
        for batch in batches:
            yield normalise(batch, self.mean, self.std).to(self.device)


def normalise(images, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> torch.Tensor:
    """(images / 255 - mean) / std, as the network expects: uint8 (B, 3, H, W) -> float32.

    The defaults are those of ImageNet's networks. The result is in channels_last order.
    """
    images = as_images(images)
    if not isinstance(images, torch.Tensor):
        images = torch.from_numpy(np.array(images, order="C"))  # torch has no negative strides
    device = images.device
    scale = torch.tensor([1 / (255 * one) for one in std], device=device).view(1, 3, 1, 1)
    offset = torch.tensor([-m / s for m, s in zip(mean, std)], device=device)
    images = images.to(memory_format=torch.channels_last).float()
    return torch.addcmul(offset.view(1, 3, 1, 1), images, scale)


def load_backbone(
    name: str = EMBEDDED,
    weights: str | Path = "embedded",
    *,
    truncate_after: str | None = None,
    adapt_from: str | None = None,
    pool: str | None = None,
    bias_free: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Backbone:
    """Build a backbone: a network of torchvision's, or this project's own, with weights.

    Parameters
    ----------
    name : str
        "glyphs_resnet4", this project's own; "mobilenet_v2" or any ResNet (also wide_resnet and
        resnext) of torchvision; with the extra [timm] "timm:NAME", any network of timm.
    weights : str or path
        "embedded" (this project's own), "imagenet" (torchvision's V1 weights, downloaded once; for
        timm:NAME, which knows them as "hub" too, those that timm itself fetches, whatever images
        they were learned from),
        "random" (untrained, from `seed`), or a file: .safetensors, or .pth of tensors only.
    truncate_after : str, optional
        Cut the network after this stage, for example "layer3", "features.13" or "blocks.8".
    adapt_from : str, optional
        The first trainable stage; default: "layer3", of MobileNetV2 "features.14", of timm's
        transformers the last block but one, of timm's others the last stage but one.
    pool : {"token", "mean"}, optional
        For transformers of timm: the pooled feature is the class token, or the mean of the patch
        tokens; default: what the network itself takes.
    bias_free : bool
        Remove all biases, and shift and scale of BatchNorm, which keeps its running statistics: the
        constraint of DeepSVDD (Ruff et al. 2018) on a pretrained network.
    seed : int
    device : str or torch.device, optional
        Default: a CUDA device if there is one, else the CPU.

    Raises
    ------
    ValueError
        An unknown name or stage; weights that are damaged or belong to another network.
    FileNotFoundError
        A missing file.
    ConnectionError
        Weights that are not on this machine and cannot be downloaded.
    ModuleNotFoundError
        timm:NAME without timm.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    timm = name.startswith(TIMM)
    if not timm:
        _family(name)  # an unknown name is told before weights
    if timm and weights == "hub":
        weights = "imagenet"
    path = find_weights(name, weights)
    state = {} if path is None else read_state(path)
    build = _of_timm if timm else _of_torchvision
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, stages, modules, head, classifier, options = build(
            name, state, hub=weights == "imagenet", pool=pool, last=truncate_after
        )
    names = list(stages)
    if timm and bias_free:
        raise ValueError(f"bias_free is for torchvision's networks: {name} is of timm.")
    if len(names) == 1 and adapt_from is not None:
        raise ValueError(
            f"{name} is not cut into stages and cannot be adapted: leave adapt_from out, and "
            "choose a method that trains no part of it, as dn2."
        )
    if truncate_after is not None and truncate_after not in names:
        raise ValueError(
            f"{name} has no stage {truncate_after!r}: choose one of {', '.join(names)}."
        )
    n_kept = len(names) if truncate_after is None else names.index(truncate_after) + 1
    ignored = [module for stage in names[n_kept:] for module in modules[stage]]
    if ignored:
        ignored += head
        classifier = None
    if path is not None:
        whole = load_state(
            network,
            state,
            ignored=ignored,
            optional=() if timm else head,  # timm's network is built without what the file lacks
            source=f"{weights} ({name})",
        )
        classifier = classifier if whole else None
    if timm:
        check_cut(name, network, stages)
    if bias_free:
        remove_biases(network)
    drawn = bias_free or path is None
    options["adapt_from"] = adapt_from or options["adapt_from"]
    backbone = Backbone(
        OrderedDict((stage, stages[stage]) for stage in names[:n_kept]),
        classifier,
        name=name,
        weights_sha256=state_sha256(network.state_dict()) if drawn else sha256_of(path),
        n_classes=embedded_facts()["n_glyphs"] if weights == "embedded" else None,
        source=weights if weights in ("embedded", "imagenet", "random") else os.path.abspath(path),
        **options,
    )
    return backbone.to(device)


def _of_torchvision(name: str, state: dict, *, pool: str | None, **not_asked) -> tuple:
    """A network with random weights, its stages, their modules, those of its head, its classifier,
    and further arguments of `Backbone`.
    """
    family = _family(name)
    if pool is not None:
        raise ValueError(f"pool={pool!r} is for transformers (timm:NAME): {name} has no tokens.")
    logits = state.get(family.logits)
    n_outputs = len(logits) if logits is not None and logits.ndim else 1000
    if name == EMBEDDED:
        network = embedded_network(n_outputs)
    else:
        network = torchvision.models.get_model(name, weights=None, num_classes=n_outputs)
    stages, classifier = cut_stages(network, name)
    size = 64 if name == EMBEDDED else 224
    options = dict(adapt_from=family.adapt_from, map_layers=family.layers, size=size)
    return network, stages, family.stages, family.classifier, classifier, options


def _of_timm(name: str, state: dict, *, hub: bool, pool: str | None, last: str | None) -> tuple:
    """The same of a network of timm's; with `hub` its weights are timm's own."""
    name = name.removeprefix(TIMM)
    network = create(name, state, hub=hub)
    return network, *cut(network, name, pool, last)


def _family(name: str) -> Family:
    known = [EMBEDDED, *torchvision.models.list_models(torchvision.models)]
    known = [model for model in known if model.startswith(tuple(FAMILIES))]
    if name not in known:
        raise ValueError(f"backbone {name!r} is unknown: choose one of {', '.join(known)}.")
    return next(FAMILIES[prefix] for prefix in FAMILIES if name.startswith(prefix))


def embedded_network(n_classes: int) -> ResNet:
    """The network that `tools/pretrain.py` trains: one basic block a stage, 4.9 million numbers."""
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=n_classes)


def cut_stages(network: nn.Module, name: str) -> tuple[OrderedDict[str, nn.Module], nn.Module]:
    """The stages and the classifier of one of torchvision's networks, sharing its tensors."""
    added = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}

    def joined(names: list[str]) -> nn.Module:
        if len(names) == 1:
            return network.get_submodule(names[0])
        parts = ((one, added.get(one) or network.get_submodule(one)) for one in names)
        return nn.Sequential(OrderedDict(parts))

    family = _family(name)
    stages = OrderedDict((stage, joined(modules)) for stage, modules in family.stages.items())
    return stages, joined(family.classifier)


def fold_batchnorm(module: nn.Module) -> None:
    """Fold each BatchNorm, in evaluation mode, into the convolution just before it, in place."""
    for part in list(module.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(part.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(part, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(part, norm_name, nn.Identity())


def remove_biases(module: nn.Module) -> None:
    """Remove the biases, and shift and scale of BatchNorm, from a module, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.bias = None
        elif isinstance(part, nn.BatchNorm2d):
            part.affine, part.weight, part.bias = False, None, None
