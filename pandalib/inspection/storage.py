"""A detector on disk: `detector.json`, under its own hash, and one file of tensors that it names.

The tensors are written first, under a new name; then the JSON is replaced as a whole; then the old
tensors are deleted. So a crash leaves either the old detector or the new one. No file can run code,
and no name in a file leads out of the folder.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import re
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as as_safetensors

from pandalib.backbones import Backbone, load_backbone
from pandalib.datasets.images import Geometry
from pandalib.experiments.config import versions
from pandalib.inspection.duplicates import SIDE
from pandalib.io import dump_json_with_hash, load_json_with_hash, sha256_of, write_atomically
from pandalib.methods.knn import KNN
from pandalib.methods.spade import Pyramids
from pandalib.validation import check_fitted

FORMAT = {"format": "pandalib detector", "version": 3}
OLDER = FORMAT | {"version": 1}  # SPADE on the central square; read, no longer written
FACTS = "detector.json"
ARRAYS = "features digests groups thumbnails check_images adapted".split()  # attributes, less the _
LARGEST = np.float32(1e15)  # squared and summed, it is still finite
SETTINGS = ("n_maps", "n_images", "sigma", "k", "false_alarm_rate", "seed")
OWN = "trainable."  # the tensors of an adapted network
NEW_SETTINGS = ("adapt", "method", "bank_size", "reweight", "normalise", "whiten")
KINDS = {
    **dict.fromkeys(("kept", "groups", "owners", "tile_owners", "adapted"), "i"),
    **dict.fromkeys(("digests", "check_images", "thumbnails"), "u"),
    "region": "b",
}  # of numpy's types; all others are floats
COUNTS = ("n_maps", "n_images", "k", "seed", "n_normal", "n_copies")
MOST_PIXELS = 2**22  # of an image
TENSORS = re.compile(r"normal-[0-9a-f]{12}\.safetensors")
LEFTOVER = re.compile(TENSORS.pattern + r"|\.(normal|detector)[-.].*\.part")


def save(inspector, folder) -> None:
    """See `Inspector.save`."""
    check_fitted(inspector, "features_")
    folder = check_target(folder)
    tensors = {name: getattr(inspector, f"{name}_") for name in ARRAYS}
    tensors |= {f"normal_{part}": values for part, values in inspector.normal_parts_.items()}
    tensors["kept"] = inspector.sample_
    if inspector.adapt is not None:
        trainable = inspector.backbone_.trainable.state_dict()
        tensors |= {f"{OWN}{name}": value.cpu().numpy() for name, value in trainable.items()}
    if inspector.tile_ is None:
        tensors["pyramids"] = inspector.pyramids_.rows
    else:
        tensors["tile_features"] = inspector.tile_features_
        tensors["tile_owners"] = inspector.tile_owners_
    if inspector.region_ is not None:
        tensors["region"] = inspector.region_
    if inspector.method == "bank":
        tensors["bank"] = inspector.places_.memory_bank_.numpy()
        tensors["owners"] = inspector.places_.owners_.numpy()
    else:
        tensors["scales"] = inspector.places_.scales_
    content = as_safetensors(tensors)
    digest = hashlib.sha256(content).hexdigest()
    name = f"normal-{digest[:12]}.safetensors"
    facts = _facts(inspector) | {"tensors": {"file": name, "sha256": digest}}
    try:
        write_atomically(folder / name, content)
        write_atomically(folder / FACTS, dump_json_with_hash(facts))
    finally:  # also after Ctrl-C
        _remove_leftovers(folder)


def check_target(folder) -> Path:
    """The folder; FileExistsError unless it is new, is empty, or holds a detector."""
    folder = Path(folder).expanduser()
    names = os.listdir(folder) if folder.exists() else []
    foreign = [name for name in names if not LEFTOVER.fullmatch(name)]
    if foreign and FACTS not in foreign:
        raise FileExistsError(
            f"{str(folder)!r} holds {foreign[0]!r} and no detector: expected a new or empty folder."
        )
    return folder


def _remove_leftovers(folder: Path) -> None:
    """Delete an earlier detector's tensors, and what an interrupted save has left."""
    try:
        named = read_facts(folder)["tensors"]["file"]
    except FileNotFoundError:
        named = None
    for path in folder.glob("*"):
        if LEFTOVER.fullmatch(path.name) and path.name != named:
            path.unlink(missing_ok=True)


def _facts(inspector) -> dict:
    """What `detector.json` says; some of its keys are older than our names."""
    network = inspector.backbone_
    return FORMAT | {
        "backbone": network.name,
        "last": network.truncate_after,
        "weights": {
            "source": network.source,
            "sha256": network.weights_sha256,
            "head_sha256": network.trainable_sha256(),
            "adapt_from": network.adapt_from,
            "pool": network.pool,
        },
        "image_size": inspector.image_size_,
        "geometry": asdict(inspector.geometry_),
        "tile": inspector.tile_,
        "overlap": inspector.overlap_,
        "layers": list(inspector.layers_),
        **{name: np.asarray(getattr(inspector, name)).item() for name in SETTINGS + NEW_SETTINGS},
        "n_normal": len(inspector.features_),
        "names": inspector.names_,
        "sizes": inspector.sizes_,
        "check_names": inspector.check_names_,
        "n_copies": inspector.n_copies_,
        "usual": inspector.scales_,
        "threshold": inspector.threshold(),
        "versions": versions(),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def load(cls, folder, *, weights=None, backbone: Backbone | None = None, device=None):
    """See `Inspector.load`."""
    folder = Path(folder).expanduser()
    facts = read_facts(folder)
    try:
        tensors = _read_tensors(folder, facts)
        network = _network(facts, weights, device) if backbone is None else backbone
        own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(OWN)}
        used = _with_trainable(network, own) if own else network
        _check_network(used, facts)
        inspector = _rebuilt(cls, network, facts, tensors)
        inspector.backbone_ = used
        return inspector
    except (ValueError, RuntimeError, LookupError, TypeError) as error:
        why = f"it lacks {error}." if isinstance(error, KeyError) else error
        raise ValueError(f"{folder / FACTS} is not a usable detector: {why}") from None


def read_facts(folder: Path) -> dict:
    """The content of `detector.json`. Raises FileNotFoundError or ValueError naming the file."""
    path = folder / FACTS
    if not path.is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no detector: expected {FACTS} in it.")
    try:
        facts = load_json_with_hash(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from None
    found = {key: facts.get(key) for key in FORMAT}
    if found not in (FORMAT, OLDER):
        raise ValueError(f"{path} holds {found}: expected {FORMAT}.")
    return facts


def _read_tensors(folder: Path, facts: dict) -> dict[str, np.ndarray]:
    name = facts["tensors"]["file"]
    if not TENSORS.fullmatch(name):
        raise ValueError(f"it names {name!r}, expected a file of tensors beside it.")
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, which {FACTS} names.")
    if sha256_of(path) != facts["tensors"]["sha256"]:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {FACTS}.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}.") from None


def _network(facts: dict, weights, device) -> Backbone:
    """The network by its name, with the weights it had, or those of a file with the same hash."""
    source = weights or facts["weights"]["source"]
    if source in (None, "random"):
        raise ValueError("its network was built by hand, expected as backbone=.")
    if source not in ("embedded", "imagenet"):
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"the weights {path} of this detector are not there: name their file as weights= "
                "(--weights FILE)."
            )
        if sha256_of(path) != facts["weights"]["sha256"]:  # before it is opened
            raise ValueError(f"{path} holds other weights than it was fitted with.")
    return load_backbone(
        facts["backbone"],
        source,
        truncate_after=facts["last"],
        adapt_from=facts["weights"]["adapt_from"],
        pool=facts["weights"].get("pool"),  # not in older detectors
        device=device,
    )


def _with_trainable(network: Backbone, own: dict[str, np.ndarray]) -> Backbone:
    """The network with an adapted trainable part."""
    trainable = copy.deepcopy(network.trainable)
    state = {name.removeprefix(OWN): torch.from_numpy(value) for name, value in own.items()}
    trainable.load_state_dict(state)
    return network.with_trainable(trainable)


def _check_network(network: Backbone, facts: dict) -> None:
    weights = facts["weights"]
    for what, found, expected in (
        ("weights", network.weights_sha256, weights["sha256"]),
        ("trainable part", network.trainable_sha256(), weights["head_sha256"]),
        ("last stage", network.truncate_after, facts["last"]),
    ):
        if found != expected:
            raise ValueError(
                f"the {what} of the network is {found[:12]}, expected {expected[:12]}: give the "
                "right one as weights= (--weights FILE) or backbone=."
            )


def _rebuilt(cls, network: Backbone, facts: dict, tensors: dict[str, np.ndarray]):
    for name in COUNTS:
        if type(facts[name]) is not int or facts[name] < 0:
            raise ValueError(f"{name} is {facts[name]!r}, expected a whole number of at least 0.")
    if facts["version"] == FORMAT["version"]:
        geometry = Geometry(**facts["geometry"])
        settings = {name: facts[name] for name in (*NEW_SETTINGS, "tile", "overlap")}
        names, check_names = list(facts["names"]), list(facts["check_names"])
        sizes = list(facts["sizes"])
    else:
        geometry = Geometry.square(facts["size"], facts["resize"], "crop")
        settings = {"method": "spade"}
        check_names, sizes = [], []
        # Unknown: noise, which is nobody's near-duplicate.
        rng, n = np.random.default_rng(0), facts["n_normal"]
        noise = rng.integers(256, size=(n, 3 * SIDE**2), dtype=np.uint8)
        tensors |= {"groups": np.arange(n), "thumbnails": noise}
        tensors["adapted"] = np.empty(0, np.int64)
        tensors["check_images"] = np.empty((0, 3, *facts["image_size"]), np.uint8)
        names = [f"image {number}" for number in range(facts["n_normal"])]
    settings |= {name: facts[name] for name in ("layers", *SETTINGS)}
    side = facts["image_size"][0] if settings.get("tile") else geometry.height
    size = dict(size=side, framing=geometry.fit, resize=geometry.resize)
    inspector = cls(network, **settings, **size)
    inspector.prepare()
    inspector.geometry_ = geometry
    inspector.image_size_ = sides = tuple(facts["image_size"])
    whole = all(type(side) is int for side in sides)
    # Before the network sees an image of that size, which might fill the memory.
    if not whole or math.prod(sides) > MOST_PIXELS:
        raise ValueError(f"its images are {sides} pixels, expected at most {MOST_PIXELS} in all.")
    own = (side, side) if inspector.tile_ else (geometry.height, geometry.width)
    if facts["version"] > 1 and sides != own:
        raise ValueError(f"its images of {sides} pixels have another geometry.")
    if not 0 <= facts["sigma"] <= 10 * max(sides):  # a blur far wider than the image takes minutes
        raise ValueError(f"its sigma is {facts['sigma']!r} pixels, for images of {sides}.")
    blank = np.zeros((1, 3, *inspector.image_size_), np.uint8)
    form = Pyramids.of(network, blank, inspector.layers_)
    n, n_adapted = facts["n_normal"], len(tensors["adapted"])
    m = min(n - n_adapted, facts["n_maps"])
    expected = {
        "features": (n, form.pooled.shape[1]),
        "kept": (m,),
        "digests": (n,),
        "groups": (n,),
        "thumbnails": (n, 3 * SIDE**2),
        "normal_image": (m,),
        "normal_place": (m,),
        "adapted": (n_adapted,),
        "check_images": (len(check_names), 3, *inspector.image_size_),
    }
    if inspector.tile_ is None:
        expected["pyramids"] = (m, form.rows.shape[1])
    else:
        n_tiles = len(tensors["tile_owners"])
        expected |= {"tile_features": (n_tiles, form.pooled.shape[1]), "tile_owners": (n_tiles,)}
    if "region" in tensors and tensors["region"].ndim == 2:
        expected["region"] = tensors["region"].shape
    if inspector.method == "bank":
        n_patches, channels = len(tensors["owners"]), sum(shape[2] for shape in form.shapes)
        expected |= {"bank": (n_patches, channels), "owners": (n_patches,)}
    else:
        expected["scales"] = (len(inspector.layers_),)
    shapes = {name: array.shape for name, array in tensors.items()}
    if shapes != expected or len(names) != n:
        raise ValueError(f"its tensors have the shapes {shapes}, expected {expected}.")
    _check_numbers(tensors, facts)
    for name in ARRAYS:
        setattr(inspector, f"{name}_", tensors[name])
    inspector.sample_ = tensors["kept"]
    inspector.names_, inspector.check_names_, inspector.sizes_ = names, check_names, sizes
    inspector.n_copies_ = facts["n_copies"]
    inspector.unreadable_, inspector.notes_, inspector.left_out_ = [], [], []
    inspector.scales_ = {part: facts["usual"][part] for part in ("image", "place")}
    inspector.normal_parts_ = {part: tensors[f"normal_{part}"] for part in inspector.scales_}
    if inspector.method == "bank":
        bank, owners = (torch.from_numpy(tensors[name]) for name in ("bank", "owners"))
        if len(bank) == 0:
            raise ValueError("its memory bank is empty.")
        inspector.places_.image_size_ = inspector.image_size_
        inspector.places_.set_bank(bank, owners, form.shapes[0][:2])
    inspector.region_ = tensors.get("region")
    if inspector.tile_ is not None:
        inspector.tile_features_ = tensors["tile_features"]
        inspector.tile_owners_ = tensors["tile_owners"]
        inspector.knn_ = KNN(inspector.k, normalise=inspector.normalise).fit(
            inspector.tile_features_
        )
        return inspector
    inspector.build(Pyramids(tensors["pyramids"], form.shapes), tensors.get("scales"))
    return inspector


def _check_numbers(tensors: dict[str, np.ndarray], facts: dict) -> None:
    """Raise ValueError for numbers that no detector has: its scores would be nonsense, or NaN."""
    for name, array in tensors.items():
        kind = KINDS.get(name, "f")
        if array.dtype.kind != kind:
            raise ValueError(f"its tensor {name!r} is {array.dtype}.")
        if kind == "f" and not (np.abs(array) < LARGEST).all():  # nor is NaN below it
            raise ValueError(f"its tensor {name!r} has numbers that no network computes.")
    kept, n = tensors["kept"], facts["n_normal"]
    if np.any(np.diff(kept) <= 0) or kept.min() < 0 or kept.max() >= n:
        raise ValueError(
            f"its tensor 'kept' does not number some of {n} images, in ascending order."
        )
    for name in tensors.keys() & {"groups", "owners", "tile_owners", "adapted"}:
        if np.any((tensors[name] < 0) | (tensors[name] >= n)):
            raise ValueError(f"its tensor {name!r} does not number some of {n} images.")
    scales = [*tensors.get("scales", ()), *(facts["usual"][part] for part in ("image", "place"))]
    if not all(isinstance(one, (float, np.floating)) and 0 < one < np.inf for one in scales):
        raise ValueError(f"its scales are {scales}, expected numbers above 0.")
