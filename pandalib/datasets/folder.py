"""Your own images: read a folder as a one-class task, write a task as a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pandalib.datasets.images import Geometry, ImageFolder
from pandalib.datasets.layouts import (
    CLASSES,
    Found,
    images_to_fit,
    images_to_score,
    plain_classes,
    read_layout,
)
from pandalib.datasets.listing import Listing, counted, describe, find_images
from pandalib.datasets.task import OneClassTask, choose
from pandalib.io import atomic_folder
from pandalib.validation import as_images


def load_task(
    path_spec,
    *,
    size: int = 224,
    resize: int | None = None,
    fit: str | None = None,
    seed: int = 0,
    n_train: int | None = None,
    n_test: int | None = None,
    missing_masks: str = "error",
) -> OneClassTask:
    """Make a one-class task of a folder in one of three layouts, tried in this order.

    1. A published one, see `pandalib.datasets.layouts`: MVTec AD, as PATH/train/good,
       PATH/test/good, PATH/test/DEFECT and, optionally, PATH/ground_truth/DEFECT with the mask of
       NAME.jpg as NAME_mask.png or NAME.png; MVTec LOCO, BTAD or VisA.
    2. PATH/train/CLASS and PATH/test/CLASS, with the normal class named.
    3. PATH/CLASS, with the normal class named: a seeded 80 % of it is for training, the rest and
       all other classes for testing.

    A folder `mask`, `masks` or `ground_truth` is never a class. Images are decoded when they are
    needed, masks at once. Test images come with the normal class first, then the others by name;
    in a class, by file name. Height and width follow from all training images, before a sample of
    `n_train` is drawn.

    Parameters
    ----------
    path_spec : str or path-like
        "PATH" or "PATH:CLASS", where CLASS is normal. A PATH with colons that exists stays whole.
    size, resize, fit, seed, n_train, n_test, missing_masks
        As in `pandalib.load_task`.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        For the path.
    ImageError
        For a mask that cannot be used.
    ValueError
        A class that is missing or not named, too few images, a missing mask.
    """
    Geometry.square(size, resize, fit)  # raises for a wrong one, before any file is read
    if missing_masks not in ("error", "drop", "none"):
        raise ValueError(f"missing_masks={missing_masks!r}: expected 'error', 'drop' or 'none'.")
    found = read_layout(path_spec, seed=seed)
    normal, tests = found.normal, found.tests
    masks = {} if found.masks is None or missing_masks == "none" else found.masks
    if masks and missing_masks == "error":
        _require_masks(masks, found.masks_folder)
    if masks:
        tests = {
            kind: files if kind == normal else [file for file in files if masks[file]]
            for kind, files in tests.items()
        }
    sample = dict(seed=seed, n_train=n_train, n_test=n_test)
    train, test, kinds = choose(found.train, tests, normal, where=repr(str(found.root)), **sample)
    geometry = Geometry.for_images(found.train, size, fit, resize)
    stack = None
    if masks:
        stack = np.zeros((len(test), geometry.height, geometry.width), bool)
        for row, file in enumerate(test):
            for mask in masks.get(file, ()):
                stack[row] |= geometry.read_mask(mask, image=file)
    return OneClassTask(
        name=f"folder:{found.root}" + (f":{normal}" if found.layout == CLASSES else ""),
        train=ImageFolder(train, geometry),
        test=ImageFolder(test, geometry),
        labels=np.array([kind != normal for kind in kinds], np.int64),
        kinds=kinds,
        masks=stack,
        files=tuple(map(str, test)),
        note=_note(found, len(train), test, kinds, stack, missing_masks, geometry),
    )


def _note(found: Found, n_train: int, test, kinds, stack, missing_masks: str, geometry) -> str:
    """How the folder was read, in one line, with the reason if there are no masks."""
    if found.masks is None:
        masks = "no masks (no folder ground_truth or masks holds any), hence no pixel metrics"
    elif missing_masks == "none":
        masks = "no masks (missing_masks='none'), hence no pixel metrics"
    else:
        masks = counted(sum(bool(found.masks.get(file)) for file in test), "mask")
        without = sum(not files for files in found.masks.values())
        if without:
            masks += f"; {counted(without, 'anomalous image')} without a mask left out"
        empty = sum(not mask.any() for mask, kind in zip(stack, kinds) if kind != found.normal)
        if empty:
            masks += f"; {empty} of the anomalous images' masks black, as if nothing were wrong"
    number = Counter(kinds)
    each = ", ".join(f"{kind} {number[kind]}" for kind in found.tests if number[kind])
    seen = f"{n_train} training and {counted(len(test), 'test image')}, {masks}; {each}; {geometry}"
    warning = describe(found.left_out)
    return f"read as {found.layout}: {seen}" + (f"; {warning}" if warning else "")


def _require_masks(masks: dict[Path, list[Path]], folder: Path) -> None:
    missing = sorted(image for image, files in masks.items() if not files)
    if missing:
        expected = folder / missing[0].parent.name / f"{missing[0].stem}_mask.png"
        raise ValueError(
            f"{len(missing)} of {len(masks)} anomalous images have no mask: add {str(expected)!r} "
            "and so on, or pass missing_masks='drop' or 'none'."
        )


def labelled_images(path, *, size: int) -> tuple[ImageFolder, np.ndarray]:
    """Images and class numbers of a folder with one folder of images per class.

    Returns
    -------
    images : ImageFolder of N images
    labels : int64 array (N,)
        Class numbers follow the sorted folder names.

    Raises
    ------
    ValueError
        There are fewer than two classes.
    """
    root = Path(path).expanduser()
    files = {kind: find_images(root / kind).files for kind in plain_classes(root)}
    if len(files) < 2:
        raise ValueError(f"{str(root)!r} holds {len(files)} class folder(s): expected at least 2.")
    labels = np.repeat(np.arange(len(files)), [len(names) for names in files.values()])
    files = [file for names in files.values() for file in names]
    return ImageFolder(files, Geometry.for_images(files, size)), labels


def open_images(
    images,
    geometry: Geometry | int,
    *,
    fit: str | None = None,
    resize: int | None = None,
    recursive: bool = False,
    normal: bool = False,
) -> tuple[Sequence, list[str]]:
    """Images in any form, as one sequence with a name for each.

    Parameters
    ----------
    images : path-like, list of them, Listing, or sequence of images
        Files as for `pandalib.datasets.listing.find_images`, or what
        `pandalib.validation.as_images` takes.
    geometry : Geometry or int
        Of files; a number is the size for `Geometry.for_images`, with `fit`
        and `resize`.
    recursive : bool
        Search subfolders too.
    normal : bool
        Of a folder in a known layout, as MVTec's, take the normal images to learn from; else the
        test images.

    Returns
    -------
    images : sequence whose slices are uint8 (n, 3, H, W)
        For files an `ImageFolder`: new images of the same kind need its `geometry`, and its
        `listing` says what was left out.
    names : list of str

    Raises
    ------
    FileNotFoundError, ValueError
        There are no images, or something else was given.
    """
    if isinstance(images, (str, os.PathLike)) or _are_paths(images):
        images = (images_to_fit if normal else images_to_score)(images, recursive=recursive)
    if isinstance(images, Listing):
        if not isinstance(geometry, Geometry):
            geometry = Geometry.for_images(images.files, geometry, fit, resize)
        return ImageFolder(images.files, geometry, images), images.names
    images = as_images(images)
    if isinstance(images, ImageFolder):
        return images, images.listing.names
    return images, [f"image {number}" for number in range(len(images))]


def _are_paths(images) -> bool:
    """Whether this is a list of paths, not an empty one."""
    some = isinstance(images, (list, tuple)) and len(images) > 0
    return some and all(isinstance(image, (str, os.PathLike)) for image in images)


# ---------------------------------------------------------------- writing


def write_mvtec(task: OneClassTask, folder) -> Path:
    """Write a task as PNG files in MVTec's layout, all or none.

    The normal kind becomes "good". `load_task` reads it back bit for bit at the images' own size,
    with the kinds in the order of their names.

    Parameters
    ----------
    task : OneClassTask
        Its images are read one at a time.
    folder : path-like
        A new or an empty folder.

    Returns
    -------
    folder : Path

    Raises
    ------
    FileExistsError
        The folder is not empty, or is a file.
    ValueError
        A kind is both normal and anomalous.
    """
    folder = empty_folder(folder)
    names = _kind_folders(task)
    width = len(str(max(len(task.train), len(task.test))))  # names sort as their numbers do
    counts = dict.fromkeys(names.values(), 0)
    with atomic_folder(folder) as temporary:
        for number, image in enumerate(task.train):
            _write_png(temporary / "train" / "good" / f"{number:0{width}}.png", image)
        for number, image in enumerate(task.test):
            name = names[task.kinds[number]]
            stem = f"{counts[name]:0{width}}"
            counts[name] += 1
            _write_png(temporary / "test" / name / f"{stem}.png", image)
            if task.masks is not None and task.labels[number]:
                mask = np.uint8(255) * task.masks[number]
                _write_png(temporary / "ground_truth" / name / f"{stem}_mask.png", mask)
    return folder


def write_images(images: Sequence, folder) -> Path:
    """Write images, uint8 (N, 3, H, W), as 000.png, 001.png ... into a new or an empty folder.

    All or none; returns the folder. Raises as `write_mvtec`.
    """
    folder = empty_folder(folder)
    width = len(str(len(images)))
    with atomic_folder(folder) as temporary:
        for number, image in enumerate(images):
            _write_png(temporary / f"{number:0{width}}.png", image)
    return folder


def empty_folder(folder) -> Path:
    """The absolute path of a new or an empty folder."""
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise FileExistsError(f"{str(folder)!r} {what}: expected a new or an empty folder.")
    return folder


def _kind_folders(task: OneClassTask) -> dict[str, str]:
    """The folder of each kind of test image."""
    normal = {kind for kind, label in zip(task.kinds, task.labels, strict=True) if not label}
    anomalous = {kind for kind, label in zip(task.kinds, task.labels, strict=True) if label}
    for kind in sorted(anomalous):
        if kind in normal | {"good"}:
            raise ValueError(
                f"kind {kind!r} of anomalous images is also the name of normal ones: expected "
                "another name."
            )
    return dict.fromkeys(normal, "good") | {kind: kind for kind in anomalous}


def _write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.ndim == 3:
        pixels = pixels.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
