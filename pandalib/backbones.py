"""Backbones: a pretrained network as a frozen stem, computed once, and a head that a method may adapt.

One forward pass gives every layer that is asked for and the pooled feature, the spatial mean of the last layer
(global average pooling; Reiss et al. 2021, section 3). The network always stays in evaluation mode: the running
statistics of BatchNorm are part of what was learned and never move.

    images uint8 (N, 3, H, W) -> normalise -> stem (frozen, cached) -> head -> pooled float32 (N, d)
"""

from __future__ import annotations

import copy
import hashlib
import http.client
import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import load
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.squeezenet import SqueezeNet

from pandalib.cache import FeatureCache, content_key
from pandalib.files import data_folder, sha256_of

EMBEDDED = "glyphs_resnet4"  # the name of the network that this project pretrains itself
EMBEDDED_INDEX = "index.json"  # beside its weights: file name, SHA-256, classes, how it was trained
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet: what torchvision's weights expect
PIXELS_PER_BATCH = 2**20  # about 256 images of 64 x 64, 20 of 224 x 224: activations stay in the tens of megabytes


class Backbone(nn.Module):
    """A network in named stages ("conv", "layer1", ... "layer4"), cut after `last`, frozen before `adapt_from`.

    Attributes
    ----------
    stem, head : the stages before and from `adapt_from`, as `nn.Sequential`. BatchNorm is folded into the stem's
        convolutions: exact to rounding, and faster.
    classifier : from the last feature map to the logits of the pretraining task, or None for a cut network.
    n_classes : the first so many logits are the pretraining task (the embedded classifier names textures behind them);
        None: all.
    weights_sha256 : hash of the weights' file; of the tensors, when they were drawn at random.
    source : what `load_backbone` took the weights from: "embedded", "imagenet", "random" or a file; None: built otherwise.
    """

    source: str | None = None

    def __init__(
        self,
        stages: OrderedDict[str, nn.Module],
        classifier: nn.Module | None,
        *,
        name: str,
        weights_sha256: str,
        adapt_from: str = "layer3",
        n_classes: int | None = None,
    ):
        super().__init__()
        names = list(stages)
        cut = names.index(adapt_from) if adapt_from in names else len(names)
        self.name, self.weights_sha256, self.last, self.adapt_from = name, weights_sha256, names[-1], adapt_from
        self.stem = nn.Sequential(OrderedDict((key, stages[key]) for key in names[:cut]))
        self.head = nn.Sequential(OrderedDict((key, stages[key]) for key in names[cut:]))
        self.classifier, self.n_classes = classifier, n_classes
        self.eval()
        fold_batchnorm(self.stem)
        self.requires_grad_(False)
        # Large maps are fastest with channels last, the embedded head's of 8 x 8 and less without: bench/adaptation.py.
        self.head_order = torch.contiguous_format if name == EMBEDDED else torch.channels_last
        self.to(memory_format=torch.channels_last)
        self.head.to(memory_format=self.head_order)

    def train(self, mode: bool = True) -> Backbone:
        """Always evaluation mode: adapting a network must not move the statistics of its BatchNorm."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def with_head(self, head: nn.Module) -> Backbone:
        """The same network with another head, for example an adapted one; stem and classifier are shared, not copied."""
        other = copy.copy(self)
        other._modules = {**self._modules, "head": head}
        return other.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor, layers: Sequence[str] = (), *, pooled: bool = True) -> dict[str, torch.Tensor]:
        """Normalised images (B, 3, H, W) -> {"pooled": (B, d)} and the feature map (B, C, h, w) of each of `layers`.

        Without `pooled` the network is run up to the last of `layers` only.
        """
        unknown = set(layers) - set(dict(self.stem.named_children())) - set(dict(self.head.named_children()))
        if unknown:
            raise ValueError(f"{self.name} up to {self.last} has no layer {', '.join(sorted(unknown))}.")
        found, x = {}, images
        for part in (self.stem, self.head):
            for name, stage in part.named_children():
                if not pooled and len(found) == len(set(layers)):
                    return found
                x = stage(x)
                if name in layers:
                    found[name] = x
        return {**found, "pooled": pool(x)} if pooled else found

    @torch.no_grad()
    def features(self, images, *, cache: FeatureCache | None = None) -> np.ndarray:
        """Pooled features of images, uint8 (N, 3, H, W) or a lazy sequence of them -> float32 (N, d).

        With a `cache`, the stem's share is computed once and kept on disk for the next call.

        Raises
        ------
        ValueError when the images are not uint8 (N, 3, H, W), or there is none.
        """
        if cache is not None:
            return self.head_features(self.stem_features(images, cache=cache))
        return np.concatenate([self(batch)["pooled"].float().cpu().numpy() for batch in self._batches(images)])

    @torch.no_grad()
    def iter_layers(self, images, layers: Sequence[str], *, pooled: bool = True) -> Iterator[dict[str, torch.Tensor]]:
        """Batch by batch what `forward` gives for images, uint8 (N, 3, H, W) or a lazy sequence of them.

        Raises ValueError as `features`, and for a layer that the network lacks.
        """
        for batch in self._batches(images):
            yield self(batch, layers, pooled=pooled)

    @torch.no_grad()
    def stem_features(self, images, *, cache: FeatureCache | None = None) -> torch.Tensor:
        """What the frozen stem makes of the images: (N, C, h, w), float32, or the cache's own type, on the CPU."""
        if cache is None:
            return torch.cat([self.stem(batch).cpu() for batch in self._batches(images)])
        first = next(self._batches(images[:1]))
        shape = (len(images), *self.stem(first).shape[1:])
        key = content_key(self.stem_sha256(), str(MEAN + STD), str(tuple(first.shape[1:])), images)
        chunks = (self.stem(batch).float().cpu().numpy() for batch in self._batches(images))
        return _as_tensor(cache.get(key, shape, chunks))

    @torch.no_grad()
    def head_features(self, stem_features: torch.Tensor, *, batch_size: int = 512, bf16: bool = False) -> np.ndarray:
        """From the stem's activations (N, C, h, w) to pooled features, float32 (N, d).

        With `bf16` the convolutions compute in bfloat16 (autocast): features are off by about 2e-3,
        and it is faster only on processors with instructions for it.
        """
        parts = (stem_features[i : i + batch_size] for i in range(0, len(stem_features), batch_size))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            return np.concatenate([pool(self.head(self.for_head(part)).float()).cpu().numpy() for part in parts])

    def for_head(self, stem_features: torch.Tensor) -> torch.Tensor:
        """The stem's activations (B, C, h, w) as the head takes them: on its device, float32, in its order in memory."""
        return stem_features.to(self.device, torch.float32, memory_format=self.head_order)

    def stem_sha256(self) -> str:
        """Hash of the stem's own numbers: what a cached activation depends on."""
        return state_sha256(self.stem.state_dict())

    def head_sha256(self) -> str:
        """Hash of the head's own numbers, which adaptation changes."""
        return state_sha256(self.head.state_dict())

    def _batches(self, images) -> Iterator[torch.Tensor]:
        """Normalised batches on the network's device."""
        if not hasattr(images, "shape") and not hasattr(images, "__getitem__"):
            raise ValueError(f"images are {type(images).__name__}: expected an array uint8 (N, 3, H, W).")
        if len(images) == 0:
            raise ValueError("there are no images: expected uint8 (N, 3, H, W) with N of at least 1.")
        step = max(1, PIXELS_PER_BATCH // int(np.prod(np.shape(images[:1])[-2:])))
        for start in range(0, len(images), step):
            yield normalise(images[start : start + step]).to(self.device)


def pool(feature_map: torch.Tensor) -> torch.Tensor:
    """Global average pooling: (B, C, h, w) -> (B, C)."""
    return feature_map.mean(dim=(2, 3))


def normalise(images) -> torch.Tensor:
    """uint8 (B, 3, H, W) -> float32 by ImageNet's mean and standard deviation, in channels_last order.

    Raises ValueError when the images are anything else.
    """
    images = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images, order="C"))  # a copy without negative strides
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        kind = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        raise ValueError(f"images are {kind}: expected uint8 (N, 3, H, W), red, green and blue from 0 to 255.")
    scale = torch.tensor([1 / (255 * std) for std in STD], device=images.device).view(1, 3, 1, 1)
    offset = torch.tensor([-mean / std for mean, std in zip(MEAN, STD)], device=images.device).view(1, 3, 1, 1)
    return torch.addcmul(offset, images.to(memory_format=torch.channels_last).float(), scale)


def load_backbone(
    name: str = EMBEDDED,
    weights: str | Path = "embedded",
    *,
    last: str | None = None,
    adapt_from: str = "layer3",
    bias_free: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Backbone:
    """Build a backbone.

    Parameters
    ----------
    name : "glyphs_resnet4" (this project's own), or any ResNet (also wide_ and ResNeXt) or SqueezeNet of torchvision.
    weights : "embedded" (this project's own, checked by hash), "imagenet" (torchvision's V1 weights, downloaded
        once), "random" (untrained, from `seed`), or a file: .safetensors, or .pth/.pt with nothing but tensors in it.
    last : cut the network after this stage, for example "layer3"; None keeps it whole.
    adapt_from : the first stage of the head.
    bias_free : take away every bias, and shift and scale of BatchNorm, which keeps its running statistics: DeepSVDD's
        constraint on a pretrained network.
    device : None takes a CUDA device where there is one, else the CPU.

    Raises
    ------
    ValueError for an unknown name, stage, or weights that do not fit; FileNotFoundError for a missing file;
    ConnectionError when weights must be downloaded and cannot be. Each says what to do.
    """
    if weights == "embedded" and name != EMBEDDED:
        raise ValueError(f"the embedded weights belong to {EMBEDDED}, not to {name}: choose weights='imagenet', 'random' or a file.")
    if weights == "random":
        state, digest = None, None
    elif weights == "embedded":
        path = verify_embedded()
        state, digest = read_state(path), sha256_of(path)
    elif weights == "imagenet":
        path = _imagenet_file(name)
        state, digest = read_state(path), sha256_of(path)
    else:
        path = Path(weights).expanduser()
        state, digest = read_state(path), sha256_of(path)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(name, _n_classes(state))
    stages, classifier = _stages(network)
    if last is not None and last not in stages:
        raise ValueError(f"{name} has no stage {last!r}: choose one of {', '.join(stages)}.")
    if last is not None and last != list(stages)[-1]:
        stages = OrderedDict(list(stages.items())[: list(stages).index(last) + 1])
        classifier = None
    if state is not None:
        wanted = {id(parameter) for part in [*stages.values(), classifier] if part is not None for parameter in _tensors(part)}
        classifier = _load(network, state, wanted, classifier, where=f"{weights} ({name})")
    if bias_free:
        remove_biases(network)
    if bias_free or digest is None:
        digest = state_sha256(network.state_dict())
    n_classes = _n_glyphs(state) if weights == "embedded" else None
    backbone = Backbone(stages, classifier, name=name, weights_sha256=digest, adapt_from=adapt_from, n_classes=n_classes)
    backbone.source = weights if weights in ("embedded", "imagenet", "random") else str(path)
    return backbone.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def verify_embedded() -> Path:
    """Path of the embedded weights, their SHA-256 checked against the index beside them.

    Raises FileNotFoundError or ValueError, naming the file and how to get it back.
    """
    folder = data_folder() / "weights"
    remedy = "Restore it with `git checkout -- data/weights`, or remake it with `python tools/pretrain.py`."
    index = folder / EMBEDDED_INDEX
    try:
        facts = json.loads(index.read_text(encoding="utf-8"))
        path, expected = folder / facts["file"], facts["sha256"]
    except FileNotFoundError:
        raise FileNotFoundError(f"{index} is missing. {remedy}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{index} is damaged. {remedy}") from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {remedy}")
    actual = sha256_of(path)
    if actual != expected:
        raise ValueError(f"{path} is damaged: its SHA-256 is {actual[:12]}..., expected {expected[:12]}.... {remedy}")
    return path


def embedded_facts() -> dict:
    """What `data/weights/index.json` says: classes, accuracy, settings and curve of the pretraining."""
    verify_embedded()
    return json.loads((data_folder() / "weights" / EMBEDDED_INDEX).read_text(encoding="utf-8"))


def _n_glyphs(state: dict[str, torch.Tensor]) -> int:
    """How many logits are glyphs, by the index; the others are textures."""
    try:
        facts = embedded_facts()
        n_glyphs, n_outputs = facts["n_glyphs"], facts["n_glyphs"] + facts["n_textures"]
    except (KeyError, TypeError):
        n_glyphs = n_outputs = None
    if n_outputs != len(state["fc.weight"]):
        raise ValueError(f"{data_folder() / 'weights' / EMBEDDED_INDEX} is damaged: it does not count the outputs of the network. Restore it with `git checkout -- data/weights`.")
    return n_glyphs


def embedded_network(n_classes: int) -> ResNet:
    """The network that `tools/pretrain.py` trains: one basic block a stage, 4.9 million parameters."""
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=n_classes)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a weights' file, floats as float32. Code in a file is never run: no pickle beyond plain tensors.

    Raises FileNotFoundError or ValueError naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: there is no such file.")
    try:
        if path.suffix == ".safetensors":
            state = load(path.read_bytes())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch raise a dozen types
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"weights {path} cannot be read ({reason}): expected .safetensors, or a .pth of tensors only.") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"weights {path} hold no state dict (names to tensors): save `network.state_dict()` instead.")
    for key, value in state.items():
        if not _is_plain(value):
            raise ValueError(f"weights {path}: {key} is no plain tensor with all its numbers in the file: save `network.state_dict()` of an ordinary network.")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _is_plain(tensor: torch.Tensor) -> bool:
    """Not sparse, not quantised, and not one number that claims to be a billion."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def state_sha256(state: dict[str, torch.Tensor]) -> str:
    """Hash of names, shapes and numbers of a state dict."""
    digest = hashlib.sha256()
    for key in sorted(state):
        array = state[key].detach().cpu().contiguous().numpy()
        digest.update(f"{key}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def fold_batchnorm(module: nn.Module) -> None:
    """Fold each BatchNorm in evaluation mode into the convolution before it, in place (torchvision's ResNet names)."""
    pairs = []
    for part in module.modules():
        children = dict(part.named_children())
        named = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)] + [("0", "1")]  # "0", "1": the shortcut's convolution
        pairs += [(part, a, b) for a, b in named if isinstance(children.get(b), nn.BatchNorm2d) and isinstance(children.get(a), nn.Conv2d)]
    for part, conv, norm in pairs:
        setattr(part, conv, fuse_conv_bn_eval(getattr(part, conv), getattr(part, norm)))
        setattr(part, norm, nn.Identity())


def remove_biases(module: nn.Module) -> None:
    """Take the biases of convolutions and linear layers, and shift and scale of BatchNorm, out of the module, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.bias = None
        elif isinstance(part, nn.BatchNorm2d):
            part.affine, part.weight, part.bias = False, None, None


def _build(name: str, n_classes: int | None) -> nn.Module:
    if name == EMBEDDED:
        return embedded_network(n_classes or 1000)
    families = [known for known in torchvision.models.list_models(torchvision.models) if known.startswith(("resn", "wide_resn", "squeeze"))]
    if name not in families:
        raise ValueError(f"backbone {name!r} is unknown: choose {EMBEDDED} or one of {', '.join(families)}.")
    return torchvision.models.get_model(name, weights=None, num_classes=n_classes or 1000)


def _stages(network: nn.Module) -> tuple[OrderedDict[str, nn.Module], nn.Module]:
    """The network in stages, by the names of a ResNet. A stage of SqueezeNet starts with its max-pooling."""
    if isinstance(network, ResNet):
        conv = OrderedDict((key, getattr(network, key)) for key in ("conv1", "bn1", "relu", "maxpool"))
        stages = OrderedDict(conv=nn.Sequential(conv), **{f"layer{i}": getattr(network, f"layer{i}") for i in (1, 2, 3, 4)})
        return stages, nn.Sequential(OrderedDict(pool=network.avgpool, flat=nn.Flatten(), fc=network.fc))
    assert isinstance(network, SqueezeNet)
    parts: list[list[nn.Module]] = [[]]
    for layer in network.features:
        if isinstance(layer, nn.MaxPool2d) and len(parts) > 1:
            parts.append([])
        parts[-1].append(layer)
        if isinstance(layer, nn.MaxPool2d) and len(parts) == 1:
            parts.append([])
    names = ["conv", *(f"layer{i}" for i in range(1, len(parts)))]
    stages = OrderedDict((key, nn.Sequential(*part)) for key, part in zip(names, parts))
    return stages, nn.Sequential(network.classifier, nn.Flatten())


def _n_classes(state: dict[str, torch.Tensor] | None) -> int | None:
    for key in ("fc.weight", "classifier.1.weight"):
        if state is not None and key in state and state[key].ndim:
            return len(state[key])
    return None


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from (buffer for key, buffer in module.named_buffers() if not key.endswith("num_batches_tracked"))


def _load(network: nn.Module, state: dict, wanted: set[int], classifier: nn.Module | None, where: str) -> nn.Module | None:
    """Copy `state` into the network; only the tensors in `wanted` must be there, and of them the classifier's may be absent."""
    own = dict(network.state_dict(keep_vars=True))
    optional = {id(tensor) for tensor in _tensors(classifier)} if classifier is not None else set()
    missing = [key for key, tensor in own.items() if id(tensor) in wanted and key not in state]
    required = [key for key in missing if id(own[key]) not in optional]
    if required:
        raise ValueError(f"weights {where} lack {len(required)} tensors, first {required[0]}: cut the network before them with last=..., or name the network that they belong to.")
    with torch.no_grad():
        for key, tensor in own.items():
            if id(tensor) in wanted and key in state:
                if tensor.shape != state[key].shape:
                    raise ValueError(f"weights {where}: {key} is {tuple(state[key].shape)}, the network has {tuple(tensor.shape)}.")
                tensor.copy_(state[key])
    return None if missing else classifier


def _imagenet_file(name: str) -> Path:
    """torchvision's file of V1 weights (those of the paper), from its cache or downloaded into it, checked by hash."""
    _build(name, None)  # one place for "unknown name"
    if name == EMBEDDED:
        raise ValueError(f"{EMBEDDED} has no ImageNet weights: choose weights='embedded', or another backbone.")
    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    prefix = path.stem.rsplit("-", 1)[1]  # torchvision's names end with the beginning of their SHA-256
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=os.environ.get("PANDALIB_QUIET") != "1")
        except (OSError, RuntimeError, http.client.HTTPException) as error:  # URLError is an OSError, a wrong hash a RuntimeError
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConnectionError(
                f"the ImageNet weights of {name} are not on this machine and {url} cannot be fetched ({reason}): fetch that file "
                f"elsewhere and put it at {path}, or work in the embedded tier (PANDALIB_TIER=embedded), which needs no network."
            ) from None
    if not sha256_of(path).startswith(prefix):
        raise ValueError(f"{path} is damaged: its SHA-256 does not begin with {prefix}, as its name says. Delete it, and it is fetched again.")
    return path


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over a read-only array, without torch's warning that writing to it would be undefined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
