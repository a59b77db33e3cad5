"""A detector on disk: `detector.json`, under its own hash, and one file of tensors that it names.

The tensors are written first, under a new name; then the JSON is replaced as a whole; then the old
tensors are deleted. So a crash leaves either the old detector or the new one. No file can run code,
and no name in a file leads out of the folder.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as as_safetensors

from pandalib.backbones import Backbone, load_backbone
from pandalib.datasets.images import Geometry
from pandalib.experiments.config import versions
from pandalib.inspection.duplicates import SIDE
from pandalib.io import dump_json_with_hash, load_json_with_hash, sha256_of, write_atomically
from pandalib.validation import check_fitted

FORMAT = {"format": "pandalib detector", "version": 2}  # 1: SPADE, the central square of each image
FACTS = "detector.json"
SETTINGS = ("n_maps", "n_images", "sigma", "k", "false_alarm_rate", "seed")
NEW_SETTINGS = ("size", "framing", "resize", "place", "bank_size", "normalise", "leave_out_above")
TENSORS = re.compile(r"normal-[0-9a-f]{12}\.safetensors")
KINDS = {
    "kept": "i",
    "groups": "i",
    "owners": "i",
    "digests": "u",
    "region": "b",
}  # of numpy's types; all others are floats
COUNTS = ("n_maps", "n_images", "k", "seed", "n_normal", "n_copies")
MOST_PIXELS = 2**22  # of an image
LEFTOVER = re.compile(TENSORS.pattern + r"|\.(normal|detector)[-.].*\.part")


def save(inspector, folder) -> None:
    """See `Inspector.save`."""
    check_fitted(inspector, "features_")
    folder = check_target(folder)
    content = as_safetensors(
        {
            "features": inspector.features_,
            "kept": inspector.sample_,
            "digests": inspector.digests_,
            "groups": inspector.groups_,
            "thumbnails": inspector.thumbnails_,
            **inspector.place_.tensors(),
            **({} if inspector.region_ is None else {"region": inspector.region_}),
            "normal_image": inspector.normal_parts_["image"],
            "normal_place": inspector.normal_parts_["place"],
        }
    )
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
    """What `detector.json` says, under the keys of format 1, which are older than our names."""
    network = inspector.backbone
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
        "sizes": inspector.sizes_,
        "layers": list(inspector.layers_),
        **{name: np.asarray(getattr(inspector, name)).item() for name in SETTINGS},
        **{name: getattr(inspector, name) for name in NEW_SETTINGS},
        "n_normal": len(inspector.features_),
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
        _check_network(network, facts)
        return _rebuilt(cls, network, facts, tensors)
    except (ValueError, LookupError, TypeError) as error:
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
    if found not in (FORMAT, FORMAT | {"version": 1}):
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
    if facts["version"] == 1:
        old = Geometry.square(facts["size"], facts["resize"], "crop")
        facts |= {"framing": "crop", "place": "spade", "geometry": asdict(old)}
        facts |= {"bank_size": 5000, "normalise": False, "leave_out_above": None, "sizes": []}
        far = np.float32(1e4) * np.arange(facts["n_normal"], dtype=np.float32)
        far = np.repeat(far[:, None], 3 * SIDE**2, axis=1)  # unknown: no image's near-duplicates
        tensors |= {"groups": np.arange(facts["n_normal"]), "thumbnails": far}
    settings = {name: facts[name] for name in ("layers", *SETTINGS, *NEW_SETTINGS)}
    inspector = cls(network, **settings)
    inspector.prepare()
    inspector.geometry_ = Geometry(**facts["geometry"])
    inspector.image_size_ = sides = tuple(facts["image_size"])
    whole = all(type(side) is int for side in sides)
    # Before the network sees an image of that size, which might fill the memory.
    if not whole or math.prod(sides) > MOST_PIXELS:
        raise ValueError(f"its images are {sides} pixels, expected at most {MOST_PIXELS} in all.")
    if facts["version"] > 1 and sides != (inspector.geometry_.height, inspector.geometry_.width):
        raise ValueError(f"its images of {sides} pixels have another geometry.")
    if not 0 <= facts["sigma"] <= 10 * max(sides):  # a blur far wider than the image takes minutes
        raise ValueError(f"its sigma is {facts['sigma']!r} pixels, for images of {sides}.")
    n, m = facts["n_normal"], min(facts["n_normal"], facts["n_maps"])
    pooled, row = inspector.place_.extract(np.zeros((1, 3, *inspector.image_size_), np.uint8))
    expected = {
        "features": (n, pooled.shape[1]),
        "kept": (m,),
        "digests": (n,),
        "groups": (n,),
        "thumbnails": (n, 3 * SIDE**2),
        "normal_image": (m,),
        "normal_place": (m,),
    } | inspector.place_.expected(row, m, tensors)
    if "region" in tensors:
        expected["region"] = tensors["region"].shape[:2]
    shapes = {name: array.shape for name, array in tensors.items()}
    if shapes != expected:
        raise ValueError(f"its tensors have the shapes {shapes}, expected {expected}.")
    _check_numbers(tensors, facts)
    inspector.n_copies_, inspector.sizes_ = facts["n_copies"], list(facts["sizes"])
    inspector.unreadable_, inspector.names_, inspector.strange_ = [], [], []
    inspector.features_ = tensors["features"]
    inspector.sample_ = tensors["kept"]
    inspector.digests_ = tensors["digests"]
    inspector.groups_, inspector.thumbnails_ = tensors["groups"], tensors["thumbnails"]
    inspector.scales_ = {part: facts["usual"][part] for part in ("image", "place")}
    inspector.normal_parts_ = {part: tensors[f"normal_{part}"] for part in inspector.scales_}
    inspector.region_ = tensors.get("region")
    inspector.place_.restore(tensors, row, inspector.image_size_)
    inspector._fit_knn()
    return inspector


def _check_numbers(tensors: dict[str, np.ndarray], facts: dict) -> None:
    """Raise ValueError for numbers that no detector has: its scores would be nonsense, or NaN."""
    for name, array in tensors.items():
        kind = KINDS.get(name, "f")
        if array.dtype.kind != kind:
            raise ValueError(f"its tensor {name!r} is {array.dtype}.")
        if kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"its tensor {name!r} has numbers that are not finite.")
    kept, n = tensors["kept"], facts["n_normal"]
    if np.any(np.diff(kept) <= 0) or kept.min() < 0 or kept.max() >= n:
        raise ValueError(
            f"its tensor 'kept' does not number some of {n} images, in ascending order."
        )
    for name in tensors.keys() & {"groups", "owners"}:
        if tensors[name].min() < 0 or tensors[name].max() >= n:
            raise ValueError(f"its tensor {name!r} does not number some of {n} images.")
    scales = [*tensors.get("scales", ()), *(facts["usual"][part] for part in ("image", "place"))]
    if not all(isinstance(one, (float, np.floating)) and 0 < one < np.inf for one in scales):
        raise ValueError(f"its scales are {scales}, expected numbers above 0.")
