"""The public data sets as one-class tasks: one class is normal, the others of the same set are anomalous.

Trained on: the training images of the normal class. Tested on: all test images. Which split that is, and what of it is
unverified, stands in the `protocol` of each row of the registry; how a set lies on the disk, in `pandalib.datasets.layouts`.
"""

from __future__ import annotations

import dataclasses
import difflib

import numpy as np

from pandalib.datasets import layouts
from pandalib.datasets.folder import _sample
from pandalib.datasets.images import check_geometry
from pandalib.datasets.registry import how_to_get, require
from pandalib.datasets.load import OneClassTask

# Sources of tasks -> the data set in the registry.
SETS = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "cifar100fine": "cifar100",
    "fashion_mnist": "fashion_mnist",
    "pets": "pets",
    "catsdogs": "catsdogs",
    "flowers102": "flowers102",
    "cub200": "cub200",
    "dior": "dior",
    "wbc": "wbc",
    "mvtec": "mvtec",
    "ksdd": "ksdd",
    "chexpert": "chexpert",
}
MVTEC = (
    "bottle",
    "cable",
    "capsule",
    "carpet",
    "grid",
    "hazelnut",
    "leather",
    "metal_nut",
    "pill",
    "screw",
    "tile",
    "toothbrush",
    "transistor",
    "wood",
    "zipper",
)
FIRST_NUMBER = {"wbc": 1}  # where a set's own numbers do not begin with 0


def load_task(
    spec: str,
    *,
    size: int = 224,
    resize: int | None = None,
    seed: int = 0,
    n_train: int | None = None,
    n_test: int | None = None,
    missing_masks: str = "error",
    download: bool | None = None,
) -> OneClassTask:
    """A task of a public data set, with lazy images: each is read and resized when it is asked for.

    Parameters
    ----------
    spec : "SET:CLASS", for example "cifar10:airplane"; CLASS is normal. SET is one of `SETS`; a class goes by its name
        (lower case, _ for blanks and signs) or its number. "ksdd:all" and "chexpert:no_finding" have one task each.
    size, resize : in pixels, as in `pandalib.datasets.images.read_image`.
    seed : draws the samples and, where a set has no official split (wbc, ksdd), the split.
    n_train : at most so many training images (None: all). A smaller sample is part of the larger one.
    n_test : at most so many test images per class or defect (None: all).
    missing_masks : for mvtec, as in `pandalib.datasets.folder.load_task`.
    download : fetch a set that is not here (None: only if PANDALIB_DOWNLOAD=1).

    Returns
    -------
    OneClassTask; the test images of the normal class come first, then the others in the set's order. mvtec and ksdd
    have masks; sets of image files have `files`.

    Raises
    ------
    FileNotFoundError for a set that is not here, which says how to get it; ValueError for an unknown set or class, for
    files that are not as the set has them, or too few of them.
    """
    source, _, given = spec.partition(":")
    if source not in SETS:
        raise ValueError(f"data set {source!r} is unknown: choose one of {', '.join(SETS)}.")
    size, resize = check_geometry(size, resize)
    for name, number, least in (("n_train", n_train, 2), ("n_test", n_test, 1)):
        if number is not None and number < least:
            raise ValueError(f"{name}={number}: expected at least {least}, or None for all.")
    if source != "cub200":  # the names of its classes come with it
        normal = _class_number(source, given, names_of(source))
    place = require(SETS[source], download=download)
    if source == "mvtec":
        return _mvtec(
            MVTEC[normal],
            place,
            size=size,
            resize=resize,
            seed=seed,
            n_train=n_train,
            n_test=n_test,
            missing_masks=missing_masks,
        )
    try:
        layout = layouts.LOADERS[source](place, seed)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the data set {source} in {str(place)!r} is not whole: {error}"
        ) from error
    if source == "cub200":
        normal = _class_number(source, given, layout.classes)
    return _one_class(
        source, layout, normal, size=size, resize=resize, seed=seed, n_train=n_train, n_test=n_test
    )


def _one_class(
    source: str,
    layout: layouts.Layout,
    normal: int,
    *,
    size: int,
    resize: int,
    seed: int,
    n_train,
    n_test,
) -> OneClassTask:
    classes, train, test = layout
    order = [normal, *(label for label in range(len(classes)) if label != normal)]
    train_numbers = np.flatnonzero(train.labels == normal).tolist()
    test_numbers = {label: np.flatnonzero(test.labels == label).tolist() for label in order}
    if len(train_numbers) < 2:
        raise ValueError(
            f"{source} has {len(train_numbers)} training image(s) of {classes[normal]}: at least 2 are needed. Choose another class."
        )
    if not test_numbers[normal] or not any(
        numbers for label, numbers in test_numbers.items() if label != normal
    ):
        raise ValueError(
            f"{source} has no {'anomalous' if test_numbers[normal] else 'normal'} test image for {classes[normal]}: are its files complete?"
        )
    chosen = [
        number
        for label, numbers in test_numbers.items()
        for number in _sample(numbers, n_test, seed, f"test:{classes[label]}")
    ]
    images = test.pick(chosen, size, resize)
    return OneClassTask(
        name=f"{source}:{names_of(source)[normal] if source in ('ksdd', 'chexpert') else classes[normal]}",
        train=train.pick(_sample(train_numbers, n_train, seed, "train"), size, resize),
        test=images,
        labels=(test.labels[chosen] != normal).astype(np.int64),
        kinds=tuple(classes[label] for label in test.labels[chosen]),
        masks=None
        if test.masks is None
        else np.stack([images.mask(row, test.masks[number]) for row, number in enumerate(chosen)]),
        files=tuple(map(str, images.files)) if hasattr(images, "files") else None,
    )


def _mvtec(kind: str, place, **options) -> OneClassTask:
    from pandalib.datasets import folder as folders

    if not (place / kind).is_dir():
        raise FileNotFoundError(
            f"MVTec AD is in {str(place)!r} without {kind}. {how_to_get('mvtec')}"
        )
    return dataclasses.replace(
        folders.load_task(str(place / kind), **options), name=f"mvtec:{kind}"
    )


def names_of(source: str) -> tuple[str, ...]:
    """The classes that can be normal. Those of cub200 and flowers102 are read from the set and from torchvision.

    Raises ValueError for an unknown set, FileNotFoundError for cub200 where it is not here.
    """
    if source == "flowers102":
        from torchvision.datasets import Flowers102

        return tuple(map(layouts.canonical, Flowers102.classes))
    if source == "cub200":
        return layouts.cub200(require("cub200"), 0).classes
    known = {
        "cifar10": layouts.CIFAR10,
        "cifar100": tuple(layouts.CIFAR100),
        "cifar100fine": layouts.CIFAR100_FINE,
        "fashion_mnist": layouts.FASHION,
        "pets": ("cat", "dog"),
        "catsdogs": ("cat", "dog"),
        "dior": layouts.DIOR,
        "wbc": layouts.WBC,
        "mvtec": MVTEC,
        "ksdd": ("all",),
        "chexpert": ("no_finding",),
    }
    if source not in known:
        raise ValueError(f"data set {source!r} is unknown: choose one of {', '.join(SETS)}.")
    return known[source]


def _class_number(source: str, given: str, names: tuple[str, ...]) -> int:
    wanted, first = layouts.canonical(given), FIRST_NUMBER.get(source, 0)
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal() and first <= int(wanted) < first + len(names):
        return int(wanted) - first
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    numbers = f", or a number from {first} to {first + len(names) - 1}" if len(names) > 1 else ""
    raise ValueError(
        f"{source} has no class {given!r}.{hint} Choose one of {', '.join(names)}{numbers}."
    )
