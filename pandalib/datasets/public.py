"""The public data sets as one-class tasks: one class is normal, the others are anomalous.

A detector learns from the training images of the normal class and is tested on all test images.
What a set is, where it comes from and which split this means is written in data/data_sets.toml.
torchvision downloads and reads some; the others are downloaded manually and read by
`pandalib.datasets.folder`. The set NAME lies in PANDALIB_DATASETS/NAME, by default
data/public/NAME. Nothing is downloaded unless you ask for it: by `python -m pandalib data NAME`,
by download=True, or by PANDALIB_DOWNLOAD=1.

CIFAR's files are pickles, which can run code: torchvision compares each with its MD5 before it
opens it, and nothing else here is ever unpickled.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pandalib.datasets import folder as folders
from pandalib.datasets.images import Geometry, ImageArray, ImageFolder, take
from pandalib.datasets.layouts import class_specs
from pandalib.datasets.task import OneClassTask, choose
from pandalib.io import ROOT, atomic_folder, data_folder

_TABLE = tomllib.loads((ROOT / "data" / "data_sets.toml").read_text(encoding="utf-8"))
# Sources of tasks -> the data set whose files they read, and what the table says of it.
SETS = {source: row.get("files_of", source) for source, row in _TABLE.items()}
ROWS = {source: _TABLE[SETS[source]] | row for source, row in _TABLE.items()}


def row_of(name: str) -> dict:
    """What data/data_sets.toml says of a data set. Raises ValueError for an unknown name."""
    if name not in ROWS:
        raise ValueError(f"data set {name!r} is unknown: choose one of {', '.join(ROWS)}.")
    return ROWS[name]


def folder_of(name: str) -> Path:
    """Where the files of a data set lie, or will."""
    root = os.environ.get("PANDALIB_DATASETS") or data_folder() / "public"
    return Path(root).expanduser() / SETS[name]


def is_here(name: str) -> bool:
    """Whether the folder of a data set holds anything."""
    folder = folder_of(name)
    return folder.is_dir() and any(folder.iterdir())


def how_to_get(name: str) -> str:
    """The command, the page, the folder and its layout, in a sentence."""
    row = row_of(name)
    command = f"run `python -m pandalib data {name}`, or " if "torchvision" in row else ""
    place = f"{str(folder_of(name))!r}: {row['layout']}"
    return f"{command}download it manually from {row['page']} into {place}."


def require(name: str, *, download: bool | None = None) -> Path:
    """The folder of a data set, downloaded if `download` (None: if PANDALIB_DOWNLOAD=1).

    Raises
    ------
    FileNotFoundError
        It is not here; the message says how to get it.
    OSError
        The download failed.
    """
    if download is None:
        download = os.environ.get("PANDALIB_DOWNLOAD") == "1"
    if not is_here(name) and download:
        return fetch(name)
    if not is_here(name):
        raise FileNotFoundError(f"{row_of(name)['title']} is not here: {how_to_get(name)}")
    return folder_of(name)


def fetch(name: str) -> Path:
    """Download a data set, whole or not at all, unless it is here. Raises as `require`."""
    row, folder = row_of(name), folder_of(name)
    if is_here(name) or "torchvision" not in row:
        return require(name, download=False)
    try:
        with atomic_folder(folder.resolve()) as temporary:
            _torchvision(row, temporary, row["splits"][0], download=True)
    except Exception as error:  # network, disk and archive raise a dozen types
        raise OSError(f"{name} could not be downloaded ({error}): {how_to_get(name)}") from error
    return folder


def load_task(
    source: str,
    name: str,
    *,
    size: int = 224,
    resize: int | None = None,
    fit: str | None = None,
    seed: int = 0,
    n_train: int | None = None,
    n_test: int | None = None,
    missing_masks: str = "error",
    download: bool | None = None,
) -> OneClassTask:
    """A task of a public data set, whose images are read and resized when they are needed.

    Parameters
    ----------
    source : str
        One of `SETS`.
    name : str
        The normal class, by its name or its number.
    size, resize, fit, seed, n_train, n_test, missing_masks, download
        As in `pandalib.load_task`.

    Raises
    ------
    FileNotFoundError
        The set is not here; the message says how to get it.
    ValueError
        An unknown set or class, files that are not as the set has them, or too few of them.
    """
    row, names = row_of(source), names_of(source)
    name = _class_name(source, name, names)
    place = require(source, download=download)
    sample = dict(seed=seed, n_train=n_train, n_test=n_test)
    if "folder" in row:
        spec = row["folder"].format(place=place, name=name)
        fitting = dict(size=size, resize=resize, fit=fit)
        task = folders.load_task(spec, missing_masks=missing_masks, **fitting, **sample)
        return replace(task, name=f"{source}:{name}", credit=credit(row))
    if (place / "train" / name).is_dir():  # copies as files, in train/CLASS and test/CLASS
        task = folders.load_task(f"{place}:{name}", size=size, resize=resize, fit=fit, **sample)
        return replace(task, name=f"{source}:{name}", credit=f"{credit(row)}; copies as files")

    (train_images, train_labels), (test_images, test_labels) = (
        _read(source, place, split) for split in row["splits"]
    )
    train = np.flatnonzero(train_labels == names.index(name))
    geometry = Geometry.for_images([train_images[number] for number in train], size, fit, resize)
    tests = {kind: np.flatnonzero(test_labels == label) for label, kind in enumerate(names)}
    train, test, kinds = choose(train, tests, name, where=source, **sample)
    made = ImageFolder if isinstance(train_images, list) else ImageArray
    test_images = take(made(test_images, geometry), test)
    return OneClassTask(
        name=f"{source}:{name}",
        train=take(made(train_images, geometry), train),
        test=test_images,
        labels=np.array([kind != name for kind in kinds], np.int64),
        kinds=kinds,
        files=getattr(test_images, "files", None) and tuple(map(str, test_images.files)),
        credit=credit(row),
    )


def credit(row: dict) -> str:
    """The source of a set and its licence, in a few words."""
    return f"{row['title']} ({row['page']}), licence: {row['licence']}"


def names_of(source: str) -> tuple[str, ...]:
    """The classes that can be normal; those of cub200 are read from its folder."""
    row = row_of(source)
    if "classes" in row:
        return tuple(row["classes"])
    return tuple(spec.rpartition(":")[2] for spec in class_specs(require(source)))


def _class_name(source: str, given: str, names: Sequence[str]) -> str:
    wanted = given.lower().replace(" ", "_")
    if wanted.isdecimal() and int(wanted) < len(names):
        return names[int(wanted)]
    if wanted not in names:
        raise ValueError(f"{source} has no class {given!r}: choose one of {', '.join(names)}.")
    return wanted


def _read(source: str, place: Path, split: dict) -> tuple[list | np.ndarray, np.ndarray]:
    """The files, or the pixels, of all training or test images that torchvision finds; labels."""
    row = row_of(source)
    try:
        data = _torchvision(row, place, split)
    except Exception as error:  # damaged files make it raise a dozen types
        raise ValueError(
            f"torchvision cannot read {row['title']} in {str(place)!r} ({error}): delete that "
            f"folder and {how_to_get(source)}"
        ) from error
    # Some of these attributes are private (_images). Without them every image would be decoded to
    # learn its label. torchvision's version is pinned, and the tests would notice a change.
    images, labels = getattr(data, row["images"]), np.asarray(getattr(data, row["labels"]))
    if source == "cifar100":  # torchvision knows the fine labels, in alphabetical order
        coarse = {fine: group for group, fines in row["groups"].items() for fine in fines}
        labels = np.array([row["classes"].index(coarse[fine]) for fine in sorted(coarse)])[labels]
    return images if isinstance(images, list) else np.asarray(images), labels


def _torchvision(row: dict, place: Path, split: dict, **options):
    from torchvision import datasets  # takes seconds, and most tasks do without

    return getattr(datasets, row["torchvision"])(place, **split, **options)
