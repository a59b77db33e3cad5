"""Any network of timm, convolutional or transformer, cut into the stages of a `Backbone`.

    blocks of a transformer: tokens (B, prefix + h w, C), packed as a map (B, C, prefix rows + h, w)

A transformer carries a class token, and perhaps registers, in front of the tokens of its patches.
Packed, they fill the first rows of the map, with zeros after them; so the frozen part's output is
an image-like tensor, as for every other network, and height and width stay readable.

timm is imported when a network is asked for, and only here (the extra [timm]).
"""

from __future__ import annotations

import copy
import difflib
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

TIMM = "timm:"  # how the names of these backbones begin
POOLS = ("token", "mean")
PROBE = 64  # side in pixels of the image on which a cut is tried


class Cut(NamedTuple):
    """A network in stages, and what else a `Backbone` is built from."""

    stages: OrderedDict[str, nn.Module]
    modules: dict[str, list[str]]  # of each stage, by their names in the network
    head: list[str]  # the modules after the last stage
    classifier: nn.Module | None
    options: dict  # arguments of `Backbone`


def import_timm():
    """The package timm; ModuleNotFoundError says how to install it."""
    try:
        import timm  # an optional package, which takes a second to import
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "backbones named timm:NAME need the package timm: install the extra [timm], "
            "`python -m pip install timm`."
        ) from None
    return timm


def create(name: str, state: dict[str, torch.Tensor], *, hub: bool) -> nn.Module:
    """The network `name` of timm, with timm's own weights if `hub`, else with random ones.

    If there is a `state`, the network gets a classifier of as many classes, or none. Transformers
    are built so that they take images of any size that their patches divide.
    """
    timm = import_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names all."
        raise ValueError(f"backbone {TIMM + name!r} is unknown to timm {timm.__version__}: {hint}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a wrong tag
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*")) or "none"
        raise ValueError(
            f"backbone {TIMM + name!r} has an unknown tag: choose one of {tags}."
        ) from None
    options = {}
    if state:
        head = config.classifier  # the layer of the logits; a distilled network has two
        head = head if isinstance(head, str) else (head or ("head",))[0]
        rows = state.get(f"{head}.weight")
        options["num_classes"] = 0 if rows is None or not rows.ndim else len(rows)
    if hub and not config.has_weights:
        raise ValueError(f"timm has no weights of {name}: choose weights='random' or a file.")
    try:
        try:
            return timm.create_model(name, pretrained=hub, dynamic_img_size=True, **options).eval()
        except TypeError:  # not a transformer that takes several sizes
            return timm.create_model(name, pretrained=hub, **options).eval()
    except Exception as error:  # of the hub's client, a dozen types
        if not hub:
            raise
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        page = config.hf_hub_id and f"https://huggingface.co/{config.hf_hub_id}"
        raise ConnectionError(
            f"timm's weights of {name} are not on this machine and cannot be fetched ({reason}): "
            f"fetch their file elsewhere, from {page or config.url}, and name it as weights= "
            "(--weights FILE)."
        ) from None


# ---------------------------------------------------------------- tokens as a map


def prefix_rows(n_prefix: int, width: int) -> int:
    """How many rows of a packed map hold the tokens before those of the patches."""
    return -(-n_prefix // width)


def pack(tokens: torch.Tensor, n_prefix: int, width: int) -> torch.Tensor:
    """Tokens (B, n_prefix + h w, C) as a map (B, C, rows + h, w), the prefix in the first rows."""
    rows = prefix_rows(n_prefix, width)
    if rows:
        prefix, patches = tokens.split([n_prefix, tokens.shape[1] - n_prefix], dim=1)
        blank = tokens.new_zeros(len(tokens), rows * width - n_prefix, tokens.shape[2])
        tokens = torch.cat([prefix, blank, patches], dim=1)
    return tokens.unflatten(1, (-1, width)).permute(0, 3, 1, 2)


def unpack(packed: torch.Tensor, n_prefix: int) -> torch.Tensor:
    """The tokens (B, n_prefix + h w, C) of a packed map."""
    tokens = packed.permute(0, 2, 3, 1).flatten(1, 2)
    rows = prefix_rows(n_prefix, packed.shape[3])
    if rows:
        parts = [tokens[:, :n_prefix], tokens[:, rows * packed.shape[3] :]]
        tokens = torch.cat(parts, dim=1)
    return tokens


class AsMap(nn.Module):
    """The feature map (B, C, h, w) in a stage's output: without prefix, channels first."""

    def __init__(self, n_prefix: int, channels_last: bool):
        super().__init__()
        self.n_prefix, self.channels_last = n_prefix, channels_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.channels_last:
            return x.permute(0, 3, 1, 2)
        return x[:, :, prefix_rows(self.n_prefix, x.shape[3]) :]


class Door(nn.Module):
    """Images of a size that the network takes, or one sentence in place of timm's assertion."""

    def __init__(self, name: str, own: tuple[int, int], step: int | None):
        super().__init__()
        self.name, self.own, self.step = name, own, step

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        size = tuple(images.shape[2:])
        fits = size == self.own if self.step is None else not any(n % self.step for n in size)
        if not fits:
            wanted = "" if self.step is None else f"sides that are multiples of {self.step}, as "
            raise ValueError(
                f"{TIMM}{self.name} got images of {size[0]} x {size[1]} pixels: expected {wanted}"
                f"its own {self.own[0]} x {self.own[1]} (size={self.own[0]}; fit='crop' makes "
                "images square)."
            )
        return images


class Embed(nn.Module):
    """From images to the packed tokens of their patches, and those before them."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = without(network, ["blocks", "norm", *_after_norm(network)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.network.patch_embed(images)  # (B, h, w, C)
        tokens = self.network._pos_embed(patches)
        tokens = tokens[0] if isinstance(tokens, tuple) else tokens  # beside rotary positions
        tokens = self.network.norm_pre(tokens)
        return pack(tokens, self.network.num_prefix_tokens, patches.shape[2])


class Block(nn.Module):
    """A block, or the last norm, of a transformer on packed tokens.

    `rope` gives rotary positions, for each block its own if `number` is not None.
    """

    def __init__(self, block: nn.Module, n_prefix: int, rope=None, number: int | None = None):
        super().__init__()
        self.block, self.rope = block, rope
        self.n_prefix, self.number = n_prefix, number

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        width = packed.shape[3]
        height = packed.shape[2] - prefix_rows(self.n_prefix, width)
        tokens = unpack(packed, self.n_prefix)
        if self.rope is None:
            tokens = self.block(tokens)
        else:
            positions = self.rope.get_embed(shape=(height, width))
            positions = positions if self.number is None else positions[self.number]
            tokens = self.block(tokens, rope=positions)
        return pack(tokens, self.n_prefix, width)


class Whole(nn.Module):
    """All of a network that cannot be cut, up to its last feature map, packed if it is tokens."""

    def __init__(self, network: nn.Module, n_prefix: int | None, step: int | None):
        super().__init__()
        self.network, self.n_prefix, self.step = network, n_prefix, step

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.network.forward_features(images)
        return x if self.n_prefix is None else pack(x, self.n_prefix, images.shape[3] // self.step)


class PoolTokens(nn.Module):
    """Packed tokens to the class token or the mean of the patches, (B, C)."""

    def __init__(self, n_prefix: int, pool: str, norm: nn.Module | None = None):
        super().__init__()
        self.n_prefix, self.pool, self.norm = n_prefix, pool, norm or nn.Identity()

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        tokens = unpack(packed, self.n_prefix)
        first = self.pool == "token"
        return self.norm(tokens[:, 0] if first else tokens[:, self.n_prefix :].mean(dim=1))


class Head(nn.Module):
    """From the last stage's output to timm's own pooled feature (B, d), or to the logits."""

    def __init__(self, network: nn.Module, n_prefix: int | None, *, logits: bool):
        super().__init__()
        self.network, self.n_prefix, self.logits = network, n_prefix, logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.n_prefix is None else unpack(x, self.n_prefix)
        return self.network.forward_head(x, pre_logits=not self.logits).flatten(1)


# ---------------------------------------------------------------- the cut


def without(network: nn.Module, modules: list[str]) -> nn.Module:
    """The same network, sharing its tensors, without these of its modules."""
    part = copy.copy(network)
    part._modules = {name: one for name, one in network._modules.items() if name not in modules}
    return part


def cut(network: nn.Module, name: str, pool: str | None, last: str | None) -> Cut:
    """The stages of one of timm's networks, in evaluation mode.

    A transformer's are "embed", "blocks.0", ... and "norm"; a convolutional network's are those
    that timm lists as its features, and "final" for what follows them. A network that does not run
    one module after another is a single stage, "features". Not all of timm is possible: there must
    be a map of features, at known places of the image.

    Parameters
    ----------
    network : Module
    name : str
        What timm calls it.
    pool : {"token", "mean"}, optional
        A transformer's pooled feature: its class token, or the mean of its patch tokens; default:
        the pooled feature that timm itself gives, as for convolutional networks.
    last : str, optional
        The stage after which the network will be cut off. Its pooled feature is then the class
        token where timm takes that, else the mean over the map.

    Raises
    ------
    ValueError
        `pool` is not possible; a network without a feature map.
    """
    own = tuple(network.pretrained_cfg["input_size"][1:])
    transformer = is_transformer(network)
    fixed = network.pretrained_cfg.get("fixed_input_size") and not transformer
    step = _patch_side(network)
    images, expected = probe(network)
    n_prefix = getattr(network, "num_prefix_tokens", 0) if expected.ndim == 3 else None
    if n_prefix is not None:
        _check_tokens(name, network, images, expected)
    _check_pool(name, pool, n_prefix)
    if transformer:
        stages, modules = _blocks(network, n_prefix)
    else:
        stages, modules = _sequence(network, images, expected)
    used = {part.partition(".")[0] for parts in modules.values() for part in parts}
    if not stages:
        stages = OrderedDict(features=Whole(network, n_prefix, step))
        modules = {"features": []}
    if transformer or fixed:
        first = next(iter(stages))
        stages[first] = nn.Sequential(Door(name, own, step if transformer else None), stages[first])

    names = list(stages)
    early = last is not None and last != names[-1]
    rest = without(network, list(used))
    pooling = Head(rest, n_prefix, logits=False)
    if n_prefix is not None and (pool or early):
        how = pool or ("token" if network.global_pool == "token" else "mean")
        norm = None if early else getattr(network, "fc_norm", None)
        pooling = PoolTokens(n_prefix, how, norm)
    elif early:
        pooling = None  # the mean
    fine = [one["module"] for one in network.feature_info if one["reduction"] in (4, 8, 16)]
    tokens = n_prefix is not None
    options = dict(
        adapt_from=names[-3] if transformer else _two_before(network, names),
        map_layers=(last or names[-1],) if tokens or len(names) == 1 else tuple(fine),
        mean=network.pretrained_cfg["mean"],
        std=network.pretrained_cfg["std"],
        size=own[0],
        pooling=pooling,
        pool=pool,
        as_map=AsMap(n_prefix or 0, getattr(network, "output_fmt", "NCHW") == "NHWC"),
        fold=False,  # timm's BatchNorm may hold the activation
    )
    head = [one for one, _ in network.named_children() if one not in used]
    classifier = Head(rest, n_prefix, logits=True) if getattr(network, "num_classes", 0) else None
    return Cut(stages, modules, head, classifier, options)


def is_transformer(network: nn.Module) -> bool:
    """Whether it is one of blocks with tokens, which takes images of several sizes."""
    models = import_timm().models
    classes = (models.VisionTransformer, models.Eva)
    return isinstance(network, classes) and network.dynamic_img_size


def probe(network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """A random image, as small as possible, and what timm's own code makes of it."""
    size = (PROBE, PROBE)
    if is_transformer(network):
        size = (2 * _patch_side(network), 3 * _patch_side(network))
    elif network.pretrained_cfg.get("fixed_input_size"):
        size = tuple(network.pretrained_cfg["input_size"][1:])
    try:
        images, expected = _tried(network, size)
    except RuntimeError:  # so small an image has no last map
        images, expected = _tried(network, network.pretrained_cfg["input_size"][1:])
    if not isinstance(expected, torch.Tensor) or expected.ndim not in (3, 4):
        raise ValueError(
            f"{type(network).__name__} gives no feature map of an image: choose another network."
        )
    return images, expected


@torch.no_grad()
def _tried(network: nn.Module, size) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    return images, network.forward_features(images)


def check_cut(name: str, network: nn.Module, stages: OrderedDict[str, nn.Module]) -> None:
    """ValueError unless the stages, one after the other, give what the network gives."""
    images, expected = probe(network)
    with torch.no_grad():
        found = nn.Sequential(*stages.values())(images)
    if expected.ndim == 3:
        found = unpack(found, getattr(network, "num_prefix_tokens", 0))
    if not _close(found, expected):
        raise ValueError(f"{name} cannot be cut into stages exactly: choose another network.")


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal to rounding, relative to the largest value."""
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())


def _patch_side(network: nn.Module) -> int | None:
    """Side in pixels of a transformer's patches; None if it has none."""
    ratio = getattr(getattr(network, "patch_embed", None), "feat_ratio", None)
    return ratio() if ratio is not None else None


def _check_tokens(name: str, network: nn.Module, images, tokens: torch.Tensor) -> None:
    """ValueError unless each patch of the image has its token, in the order of the patches."""
    step = _patch_side(network)
    n_patches = tokens.shape[1] - getattr(network, "num_prefix_tokens", 0)
    height, width = images.shape[2:]
    if step is None or n_patches != (height // step) * (width // step):
        raise ValueError(
            f"{TIMM}{name} ({type(network).__name__}) has tokens whose places in the image are not "
            "known: choose a convolutional network, or a plain vision transformer."
        )


def _check_pool(name: str, pool: str | None, n_prefix: int | None) -> None:
    if pool is not None and (pool not in POOLS or n_prefix is None):
        raise ValueError(
            f"pool={pool!r} for {TIMM}{name}: expected 'token' or 'mean' for a transformer, or "
            "None, the network's own."
        )
    if pool == "token" and not n_prefix:
        raise ValueError(f"{TIMM}{name} has no class token: choose pool='mean'.")


def _after_norm(network: nn.Module) -> list[str]:
    """The modules of a transformer after its last norm."""
    names = [name for name, _ in network.named_children()]
    return names[names.index("norm") + 1 :]


def _blocks(network: nn.Module, n_prefix: int) -> tuple[OrderedDict, dict[str, list[str]]]:
    """The stages of a transformer, and their modules."""
    rope = getattr(network, "rope", None)
    mixed = getattr(network, "rope_mixed", False)
    stages = OrderedDict(embed=Embed(network))
    for number, block in enumerate(network.blocks):
        own = number if mixed else None
        stages[f"blocks.{number}"] = Block(block, n_prefix, rope, own)
    stages["norm"] = Block(network.norm, n_prefix)
    modules = {name: [name] for name in stages}
    after = _after_norm(network)
    first = [name for name, _ in network.named_children() if name not in ("blocks", "norm", *after)]
    return stages, modules | {"embed": first}


def _sequence(
    network: nn.Module, images: torch.Tensor, expected: torch.Tensor
) -> tuple[OrderedDict, dict[str, list[str]]]:
    """The stages of a network that runs its modules in their order; none if it does not."""
    ends = [one["module"] for one in network.feature_info]
    stages, modules, parts, x = OrderedDict(), {}, OrderedDict(), images
    for path, module in _in_order(network, ends):
        try:
            with torch.no_grad():
                x = module(x)
        except Exception:  # whatever a module says to an input that is not its own
            break
        parts[path] = module
        done = _close(x, expected)
        if path in ends or done:
            name = path if path in ends else "final"
            stages[name] = parts
            parts = OrderedDict()
        if done:
            modules = {name: list(one) for name, one in stages.items()}
            joined = map(in_sequence, stages.values())
            return OrderedDict(zip(stages, joined)), modules
    return OrderedDict(), {}


def _in_order(module: nn.Module, ends: list[str], prefix: str = "") -> Iterator:
    """The modules by their paths, as deep as the paths in `ends` reach."""
    for name, child in module.named_children():
        path = prefix + name
        if any(end.startswith(f"{path}.") for end in ends):
            yield from _in_order(child, ends, f"{path}.")
        else:
            yield path, child


def in_sequence(parts: dict[str, nn.Module]) -> nn.Sequential:
    """One module after the other; torch allows no point in their names."""
    return nn.Sequential(OrderedDict((path.replace(".", "_"), one) for path, one in parts.items()))


def _two_before(network: nn.Module, names: list[str]) -> str | None:
    """The last stage but one of those that timm lists as features: layer3 of a ResNet."""
    listed = [one["module"] for one in network.feature_info if one["module"] in names]
    return listed[-2] if len(listed) > 2 else None
