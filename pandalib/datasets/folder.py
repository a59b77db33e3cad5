"""Your own images: read a folder as a one-class task, write a task as a folder."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pandalib.datasets.images import (
    Geometry,
    ImageFolder,
    image_files,
    list_images,
    subfolders,
)
from pandalib.datasets.task import OneClassTask, choose, split_80_20
from pandalib.io import atomic_folder


class Layout(NamedTuple):
    """A folder, the class named, whether it has train/ and test/, whether it is MVTec's layout."""

    root: Path
    named: str | None
    split: bool
    mvtec: bool


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

    1. MVTec: PATH/train/good, PATH/test/good, PATH/test/DEFECT and, optionally,
       PATH/ground_truth/DEFECT with the mask of NAME.jpg as NAME_mask.png or NAME.png.
       The normal class is "good".
    2. PATH/train/CLASS and PATH/test/CLASS, with the normal class named.
    3. PATH/CLASS, with the normal class named: a seeded 80 % of it is for training, the rest and
       all other classes for testing.

    Images are decoded when they are needed, masks at once. Test images come with the normal
    class first, then the others by name; in a class, by file name.

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
    root, named, split, mvtec = layout = find_layout(path_spec)
    where = root / "test" if split else root
    normal = "good" if mvtec else _known_class(named, root / "train" if split else root)
    tests = {kind: list_images(where / kind) for kind in subfolders(where)}
    if split:
        train = list_images(root / "train" / normal)
    else:
        train, tests[normal] = split_80_20(tests[normal], seed)

    masks = {}
    if mvtec and missing_masks != "none" and _holds_masks(root):
        masks = _pair_masks(root, tests, normal)
        if missing_masks == "error":
            _require_masks(root, masks)
        tests = {
            kind: files if kind == normal else [file for file in files if masks[file]]
            for kind, files in tests.items()
        }
    geometry = Geometry.for_images(train, size, fit, resize)
    train, test, kinds = choose(
        train, tests, normal, seed=seed, n_train=n_train, n_test=n_test, where=repr(str(root))
    )
    stack = None
    if masks:
        stack = np.zeros((len(test), geometry.height, geometry.width), bool)
        for row, file in enumerate(test):
            if masks.get(file):
                stack[row] = geometry.read_mask(masks[file], image=file)
    return OneClassTask(
        name=f"folder:{layout.root}" + ("" if mvtec else f":{normal}"),
        train=ImageFolder(train, geometry),
        test=ImageFolder(test, geometry),
        labels=np.array([kind != normal for kind in kinds], np.int64),
        kinds=kinds,
        masks=stack,
        files=tuple(map(str, test)),
    )


def labelled_images(
    path, *, size: int, resize: int | None = None, fit: str | None = None
) -> tuple[ImageFolder, np.ndarray]:
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
    files = {kind: list_images(root / kind) for kind in subfolders(root)}
    if len(files) < 2:
        raise ValueError(f"{str(root)!r} holds {len(files)} class folder(s): expected at least 2.")
    labels = np.repeat(np.arange(len(files)), [len(names) for names in files.values()])
    files = [file for names in files.values() for file in names]
    return ImageFolder(files, Geometry.for_images(files, size, fit, resize)), labels


def class_specs(path_spec) -> list[str]:
    """The tasks of a folder, each class normal in turn, as "PATH:CLASS"; for MVTec's layout "PATH".

    A class in `path_spec` makes no difference. Raises as `load_task`.
    """
    root, named, split, mvtec = find_layout(path_spec)
    if mvtec:
        return [str(root)]
    folder = root / "train" if split else root
    if named is not None or not subfolders(folder):
        _known_class(named, folder)  # raises where there is no such class
    return [f"{root}:{name}" for name in subfolders(folder)]


def find_layout(path_spec) -> Layout:
    """What "PATH" or "PATH:CLASS" means, where the longest part that exists is the path."""
    spec = path = os.path.expanduser(path_spec)
    colon = ":"
    while colon and not os.path.exists(path):
        path, colon, _ = path.rpartition(":")
    path = path or spec
    subfolders(path)  # raises where it is no folder
    root, named = Path(path), spec[len(path) + 1 :] or None

    train, test = root / "train", root / "test"
    split = any(folder.is_dir() and subfolders(folder) for folder in (train, test))
    if split and not (train.is_dir() and test.is_dir()):
        raise ValueError(
            f"{path!r} has only one of train/ and test/: expected both, with a folder per class."
        )
    mvtec = bool(split) and (train / "good").is_dir() and named in (None, "good")
    return Layout(root, named, bool(split), mvtec)


def _known_class(named: str | None, folder: Path) -> str:
    """The class folder meant; typed and stored names may differ in their Unicode form."""
    classes = subfolders(folder)
    if not classes:
        raise ValueError(
            f"the folder {str(folder)!r} holds no class folders: expected train/good and "
            "test/DEFECT (MVTec's layout), train/CLASS and test/CLASS, or one folder per class."
        )
    there = f"Classes in {str(folder)!r}: {', '.join(classes)}."
    if named is None:
        raise ValueError(f"which class is normal? Write PATH:CLASS. {there}")
    for name in classes:
        if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", named):
            return name
    raise ValueError(f"there is no class {named!r}. {there}")


def _holds_masks(root: Path) -> bool:
    truth = root / "ground_truth"
    return truth.is_dir() and any(image_files(truth / kind) for kind in subfolders(truth))


def _pair_masks(root: Path, tests: dict[str, list[Path]], normal: str) -> dict[Path, Path | None]:
    """Anomalous image -> mask by name, never by position: NAME_mask or NAME, any ending."""
    pairs = {}
    for kind in (kind for kind in tests if kind != normal):
        folder = root / "ground_truth" / kind
        masks = _by_stem(image_files(folder) if folder.is_dir() else [])
        for stem, file in _by_stem(tests[kind]).items():
            pairs[file] = masks.get(f"{stem}_mask") or masks.get(stem)
    return pairs


def _by_stem(files: Iterable[Path]) -> dict[str, Path]:
    stems = {}
    for file in files:
        if (other := stems.setdefault(file.stem, file)) != file:
            raise ValueError(f"{str(other)!r} and {file.name!r} share a name: masks are ambiguous.")
    return stems


def _require_masks(root: Path, masks: dict[Path, Path | None]) -> None:
    missing = sorted(image for image, mask in masks.items() if mask is None)
    if missing:
        expected = root / "ground_truth" / missing[0].parent.name / f"{missing[0].stem}_mask.png"
        raise ValueError(
            f"{len(missing)} of {len(masks)} anomalous images have no mask: add {str(expected)!r} "
            "and so on, or pass missing_masks='drop' or 'none'."
        )


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
