"""A detector on disk: `detector.json`, which says what it is and holds its own hash, and `normal-HASH.safetensors`, which it names by its hash.

The tensors are written first, under a name of their own; the JSON is replaced as a whole; then the old tensors go. So whoever is
killed, at any moment, leaves a folder with the old detector or the new one. What is read may come from a stranger:
every entry is checked, no path is followed out of the folder, and no file can run code.
"""

from __future__ import annotations

import math
import os
import re
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pandalib.backbones import Backbone, load_backbone
from pandalib.validation import check_fitted
from pandalib.io import sha256_of, write_atomically
from pandalib.sealed import parsed, sealed, unsealed
from pandalib.methods.spade import Pyramids

FORMAT, VERSION = "pandalib detector", 1
FACTS = "detector.json"
_TENSORS = re.compile(r"normal-[0-9a-f]{12}\.safetensors")
_OURS = re.compile(
    r"normal-[0-9a-f]{12}\.safetensors|\.normal\.[0-9]+\.part|\.detector\.json\..*\.part"
)
RATES = (0.01, 0.05, 0.1)  # whose thresholds are written down for the reader
_MISSING = object()
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST = 4096  # pixels of a side


def facts_of(inspector) -> dict:
    """What `detector.json` says of the detector itself: settings, network, images, thresholds."""
    check_fitted(inspector, "features_")
    network = inspector.backbone
    return dict(
        format=FORMAT,
        version=VERSION,
        backbone=network.name,
        truncate_after=network.truncate_after,
        weights=dict(
            source=network.source,
            sha256=network.weights_sha256,
            trainable_sha256=network.trainable_sha256(),
            adapt_from=network.adapt_from,
        ),
        image_size=list(inspector.image_size_),
        size=inspector.size,
        resize=inspector.resize,
        layers=list(inspector.layers),
        n_maps=inspector.n_maps,
        n_images=inspector.n_images,
        sigma=float(inspector.sigma),
        k=inspector.k,
        false_alarm_rate=float(inspector.false_alarm_rate),
        seed=inspector.seed,
        n_normal=len(inspector.features_),
        n_copies=inspector.n_copies_,
        usual=inspector.usual_,
        thresholds={
            f"{rate:g}": inspector.threshold(rate)
            if round(1 / rate) - 1 <= len(inspector.kept_)
            else None
            for rate in RATES
        },
    )


def save(inspector, folder) -> None:
    """See `Inspector.save`."""
    from pandalib import __version__
    from pandalib.doctor import version_of

    facts = facts_of(inspector)
    folder = Path(folder).expanduser()
    check_target(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = inspector.normal_parts_
    tensors = dict(
        features=inspector.features_,
        kept=inspector.kept_,
        digests=inspector.digests_,
        pyramids=np.ascontiguousarray(inspector.spade_.normal_.rows),
        scales=inspector.spade_.scales_,
        normal_image=parts["image"],
        normal_place=parts["place"],
    )
    temporary = folder / f".normal.{os.getpid()}.part"
    try:
        save_file(tensors, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        digest = sha256_of(temporary)
        name = f"normal-{digest[:12]}.safetensors"
        os.chmod(temporary, 0o644)  # as in `pandalib.io.atomic_file`
        os.replace(temporary, folder / name)
    except SafetensorError as error:  # a full disk shows as one
        raise OSError(
            f"the detector cannot be written to {str(folder)!r} ({error}): free some space there, or choose another folder."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    facts["tensors"] = dict(file=name, sha256=digest)
    facts["versions"] = dict(pandalib=__version__) | {
        package: version_of(package) for package in ("torch", "torchvision", "numpy", "faiss-cpu")
    }
    facts["written"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_atomically(folder / FACTS, sealed(facts))
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name != name:
            path.unlink(missing_ok=True)


def check_target(folder: Path) -> None:
    """Raise FileExistsError unless a detector may be written to `folder`: new, empty, or holding a detector and nothing before it."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{str(folder)!r} is a file: expected a folder for the detector.")
    if folder.is_dir() and not (folder / FACTS).exists():
        strange = [path.name for path in folder.iterdir() if not _OURS.fullmatch(path.name)]
        if strange:
            raise FileExistsError(
                f"{str(folder)!r} holds {strange[0]!r} and no detector: choose a new or an empty folder."
            )


def load(cls, folder, *, weights=None, backbone: Backbone | None = None):
    """See `Inspector.load`."""
    folder = Path(folder).expanduser()
    facts = read_facts(folder)
    where = folder / FACTS
    network = _network(facts, where, weights) if backbone is None else backbone
    given = (
        "the given network has"
        if backbone is not None
        else f"{weights or facts['weights']['source']} has"
    )
    for key, has in (
        ("sha256", network.weights_sha256),
        ("head_sha256", network.trainable_sha256()),
    ):
        if has != facts["weights"][key]:
            what = "weights" if key == "sha256" else "an adapted head"
            raise ValueError(
                f"{where} was fitted with {what} of SHA-256 {facts['weights'][key][:12]}..., and {given} {has[:12]}...: "
                f"give the right file with weights=FILE, or the network itself with backbone=."
            )
    if network.truncate_after != facts["truncate_after"]:
        raise ValueError(
            f"{where} was fitted with a network up to {facts['truncate_after']}, the given one reaches to {network.truncate_after}."
        )
    tensors = _read_tensors(folder, facts)
    try:
        inspector = cls(
            network,
            size=facts["size"],
            resize=facts["resize"],
            **{
                key: facts[key]
                for key in (
                    "layers",
                    "n_maps",
                    "n_images",
                    "sigma",
                    "k",
                    "false_alarm_rate",
                    "seed",
                )
            },
        )
        height, width = facts["image_size"]
        empty = Pyramids.of(network, np.zeros((1, 3, height, width), np.uint8), facts["layers"])
        d = empty.pooled.shape[1]
        n, m = facts["n_normal"], min(facts["n_normal"], facts["n_maps"])
        expected = dict(
            features=((n, d), np.float32),
            kept=((m,), np.int64),
            digests=((n,), np.uint64),
            pyramids=((m, empty.rows.shape[1]), np.float16),
            scales=((len(facts["layers"]),), np.float64),
            normal_image=((m,), np.float64),
            normal_place=((m,), np.float64),
        )
        for name, (shape, dtype) in expected.items():
            array = tensors.get(name)
            if array is None or array.shape != shape or array.dtype != dtype:
                has = "no such tensor" if array is None else f"{array.dtype} {array.shape}"
                raise ValueError(f"{name} is {has}, expected {np.dtype(dtype)} {shape}")
            # Row by row: a mask of all pyramids would be half as large as they are.
            if (
                not all(np.isfinite(row).all() for row in array)
                or dtype == np.float64
                and (array < 0).any()
            ):
                raise ValueError(f"{name} holds numbers that are not finite, or negative")
        kept = tensors["kept"]
        if not (
            kept[0] >= 0
            and kept[-1] < n
            and (np.diff(kept) > 0).all()
            and (tensors["scales"] > 0).all()
        ):
            raise ValueError(
                "the numbers of the kept images, or the scales of the layers, are impossible"
            )
        inspector.image_size_, inspector.n_copies_, inspector.usual_, inspector.unreadable_ = (
            (height, width),
            facts["n_copies"],
            facts["usual"],
            [],
        )
        inspector.features_, inspector.kept_, inspector.digests_ = (
            tensors["features"],
            kept,
            tensors["digests"],
        )
        inspector.normal_parts_ = dict(image=tensors["normal_image"], place=tensors["normal_place"])
        inspector._build(Pyramids(tensors["pyramids"], empty.shapes), tensors["scales"])
    except ValueError as error:
        raise ValueError(
            f"{where} is no detector that can be used: {str(error).rstrip('.')}. Fit it again."
        ) from None
    return inspector


def read_facts(folder: Path) -> dict:
    """The checked content of `detector.json`. Raises FileNotFoundError or ValueError that names the file."""
    path = folder / FACTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} holds no detector: expected {FACTS} in it, as `python -m pandalib fit` writes."
        )
    try:
        text = path.read_bytes()
        facts = parsed(text)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({' '.join(str(error).split())[:100]}): restore it from a copy, or fit the detector again."
        ) from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"{path} describes no detector of pandalib: expected format {FORMAT!r}.")
    if type(facts.get("version")) is not int or facts["version"] != VERSION:
        raise ValueError(
            f"{path} has format version {facts.get('version')!r}, this pandalib reads {VERSION}: update pandalib, or fit the detector again."
        )
    for key, (check, expected) in _ENTRIES.items():
        value = facts
        for name in key.split("."):
            value = value.get(name, _MISSING) if isinstance(value, dict) else _MISSING
        if value is _MISSING or not check(value):
            has = "is missing" if value is _MISSING else f"is {str(value)[:60]!r}"
            raise ValueError(
                f"{path} is damaged: {key} {has}, expected {expected}. Restore it from a copy, or fit the detector again."
            )
    try:
        return unsealed(text)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: {error}. Restore it from a copy, or fit the detector again."
        ) from None


def _network(facts: dict, where: Path, weights) -> Backbone:
    name, source, expected = (
        facts["backbone"],
        facts["weights"]["source"],
        facts["weights"]["sha256"],
    )
    if weights is None and source in (None, "random"):
        raise ValueError(
            f"{where} was fitted with a network whose weights are no file: give the network itself with backbone=."
        )
    chosen = weights or source
    if chosen not in ("embedded", "imagenet"):
        path = Path(chosen).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"the weights {path}, with which {where} was fitted, are not there: say where they are with weights=FILE (--weights FILE)."
            )
        if sha256_of(path) != expected:  # before it is opened
            raise ValueError(
                f"{path} is not the file of weights with which {where} was fitted (SHA-256 {expected[:12]}...): give that one with weights=FILE (--weights FILE)."
            )
    return load_backbone(
        name,
        chosen,
        truncate_after=facts["truncate_after"],
        adapt_from=facts["weights"]["adapt_from"],
    )


def _read_tensors(folder: Path, facts: dict) -> dict[str, np.ndarray]:
    path = folder / facts["tensors"]["file"]
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, which {FACTS} names: restore it from a copy, or fit the detector again."
        )
    if sha256_of(path) != facts["tensors"]["sha256"]:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is not the one in {FACTS}. Restore it from a copy, or fit the detector again."
        )
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({' '.join(str(error).split())[:100]}): restore it from a copy, or fit the detector again."
        ) from None


def _word(value) -> bool:
    return isinstance(value, str) and 0 < len(value) < 4096


def _hash(value) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _whole(low: int, high: float = math.inf):
    return lambda value: type(value) is int and low <= value <= high


def _number(check):
    return lambda value: type(value) in (int, float) and math.isfinite(value) and check(value)


_ENTRIES = {  # key -> check, and what is expected, in words
    "backbone": (_word, "a name"),
    "truncate_after": (_word, "a name"),
    "weights.source": (
        lambda value: value is None or _word(value),
        "embedded, imagenet, random, a file or null",
    ),
    "weights.sha256": (_hash, "a SHA-256"),
    "weights.head_sha256": (_hash, "a SHA-256"),
    "weights.adapt_from": (_word, "a name"),
    "image_size": (
        lambda value: (
            isinstance(value, list) and len(value) == 2 and all(map(_whole(1, _LARGEST), value))
        ),
        f"two numbers from 1 to {_LARGEST}",
    ),
    "size": (_whole(1), "a whole number of pixels"),
    "resize": (_whole(1), "a whole number of pixels"),
    "layers": (
        lambda value: isinstance(value, list) and 0 < len(value) < 100 and all(map(_word, value)),
        "a list of names",
    ),
    "n_maps": (_whole(1), "a whole number"),
    "n_images": (_whole(1), "a whole number"),
    "sigma": (_number(lambda value: value >= 0), "a number, 0 or more"),
    "k": (_whole(1), "a whole number"),
    "false_alarm_rate": (_number(lambda value: 0 < value < 1), "a number between 0 and 1"),
    "seed": (_whole(0), "a whole number"),
    "n_normal": (_whole(1), "a whole number"),
    "n_copies": (_whole(0), "a whole number"),
    "usual.image": (_number(lambda value: value > 0), "a number above 0"),
    "usual.place": (_number(lambda value: value > 0), "a number above 0"),
    "tensors.file": (
        lambda value: isinstance(value, str) and _TENSORS.fullmatch(value) is not None,
        "a name like normal-0123456789ab.safetensors",
    ),
    "tensors.sha256": (_hash, "a SHA-256"),
}
