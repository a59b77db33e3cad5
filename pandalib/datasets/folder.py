"""Your own images: a folder in a known layout becomes a one-class task, and any task a folder."""

from __future__ import annotations

import difflib
import os
import unicodedata
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from pandalib.io import atomic_folder
from pandalib.datasets.images import (
    ImageFolder,
    check_geometry,
    image_names,
    list_images,
    read_mask_of,
    subfolders,
    visible_entries,
)
from pandalib.datasets.load import OneClassTask


def load_task(
    path_spec,
    *,
    size: int,
    resize: int | None = None,
    seed: int = 0,
    n_train: int | None = None,
    n_test: int | None = None,
    missing_masks: str = "error",
) -> OneClassTask:
    """Make a one-class task of a folder in one of three layouts, tried in this order.

    1. MVTec: PATH/train/good, PATH/test/good, PATH/test/DEFECT and, optionally, PATH/ground_truth/DEFECT with the mask
       of NAME.jpg as NAME_mask.png or NAME.png. The normal class is "good".
    2. PATH/train/CLASS and PATH/test/CLASS, with the normal class named.
    3. PATH/CLASS, with the normal class named: a seeded 80 % of it is for training, the rest and all other classes for
       testing.

    Images are decoded when they are asked for, so an unreadable one is reported then; masks are read at once.
    The order of the test images: the normal class first, then the others by name; in a class, by file name.

    Parameters
    ----------
    path_spec : "PATH" or "PATH:CLASS", where CLASS is normal. A PATH with colons that exists is taken as it is.
    size, resize : in pixels, as in `read_image`.
    seed : draws the split and the samples; they depend on the sorted file names only. A smaller sample is part of the
        larger one.
    n_train : at most so many training images (None: all).
    n_test : at most so many test images per class or defect (None: all).
    missing_masks : for anomalous images without a mask where ground_truth holds masks: "error"; "drop" leaves these
        images out; "none" uses no mask at all, so that only image-level scores remain.

    Returns
    -------
    OneClassTask with ImageFolder train and test; `kinds` are folder names. Normal test images have an all-False mask; a
    mask may also be empty for an anomalous image.

    Raises
    ------
    FileNotFoundError, NotADirectoryError for the path; ImageError for a mask that cannot be used; ValueError for a
    class that is missing or not named, an empty folder, fewer than 2 training images, no normal or no anomalous test
    image, a missing mask.
    """
    size, resize = check_geometry(size, resize)
    if missing_masks not in ("error", "drop", "none"):
        raise ValueError(f"missing_masks={missing_masks!r}: expected 'error', 'drop' or 'none'.")
    for name, number, least in (("n_train", n_train, 2), ("n_test", n_test, 1)):
        if number is not None and number < least:
            raise ValueError(f"{name}={number}: expected at least {least}, or None for all.")

    root, named, split, mvtec = _find_layout(path_spec)
    where = root / "test" if split else root
    normal = "good" if mvtec else _known_class(named, root / "train" if split else root)
    tests = {kind: list_images(where / kind) for kind in subfolders(where)}
    if split:
        train_files, train_from = (
            list_images(root / "train" / normal),
            repr(str(root / "train" / normal)),
        )
    else:
        train_from = f"80 % of the {len(tests[normal])} in {str(root / normal)!r}"
        train_files, tests[normal] = _split_80_20(tests[normal], seed)

    if len(train_files) < 2:
        raise ValueError(
            f"{len(train_files)} normal training image(s), from {train_from}: expected at least 2, because each is "
            f"compared with the others. Add normal images."
        )
    if not tests.get(normal):
        raise ValueError(
            f"no normal test images: expected some in {str(where / normal)!r}, beside the anomalous ones."
        )
    masks = None
    if mvtec and missing_masks != "none" and _holds_masks(root):
        masks = _pair_masks(root, {kind: files for kind, files in tests.items() if kind != normal})
        if missing_masks == "error":
            _require_masks(root, masks)
        tests = {
            k: files if k == normal else [f for f in files if masks[f]]
            for k, files in tests.items()
        }
    anomalous = [kind for kind in tests if kind != normal and tests[kind]]
    if not anomalous:
        reason = (
            "none has a mask"
            if masks
            else f"expected a further folder beside {normal!r} in {str(where)!r}"
        )
        raise ValueError(f"no anomalous test images: {reason}.")

    chosen = {
        kind: _sample(tests[kind], n_test, seed, f"test:{kind}") for kind in [normal, *anomalous]
    }
    files = [file for kind in chosen for file in chosen[kind]]
    kinds = tuple(kind for kind in chosen for _ in chosen[kind])
    return OneClassTask(
        name=f"folder:{root}" + ("" if mvtec else f":{normal}"),
        train=ImageFolder(_sample(train_files, n_train, seed, "train"), size, resize),
        test=ImageFolder(files, size, resize),
        labels=np.array([kind != normal for kind in kinds], dtype=np.int64),
        kinds=kinds,
        masks=None if masks is None else _read_masks(files, masks, size, resize),
        files=tuple(str(file) for file in files),
    )


def labelled_images(
    path, *, size: int, resize: int | None = None
) -> tuple[ImageFolder, np.ndarray]:
    """Images and class numbers of a folder with one folder of images per class: (sequence of N images, int64 (N,)).

    Class numbers follow the sorted folder names. Raises ValueError when there are fewer than two classes.
    """
    root = Path(path).expanduser()
    files = {kind: list_images(root / kind) for kind in subfolders(root)}
    if sum(map(bool, files.values())) < 2:
        raise ValueError(
            f"the folder {str(root)!r} holds {len(files)} class folder(s) with images: expected at least 2, one per class."
        )
    labels = np.repeat(np.arange(len(files)), [len(names) for names in files.values()])
    return ImageFolder(
        [file for names in files.values() for file in names], *check_geometry(size, resize)
    ), labels


def class_specs(path_spec) -> list[str]:
    """The tasks of a folder, each class normal in turn: "PATH:CLASS" by class name; for the MVTec layout only "PATH".

    A class in `path_spec` chooses nothing here. Raises as `load_task`.
    """
    root, named, split, mvtec = _find_layout(path_spec)
    if mvtec:
        return [str(root)]
    folder = root / "train" if split else root
    if named is not None or not subfolders(folder):
        _known_class(named, folder)  # raises where there is no such class
    return [f"{root}:{name}" for name in subfolders(folder)]


def write_mvtec(task: OneClassTask, folder) -> Path:
    """Write a task as PNG files in MVTec's layout: train/good, test/KIND and, with masks, ground_truth/KIND/NAME_mask.png.

    The normal kind becomes "good". `load_task` reads it back bit for bit, at the images' own size; the kinds are then in
    the order of their names. The files are written beside `folder` and moved there as a whole at the end: after a
    failure nothing is left.

    Parameters
    ----------
    task : its images are read one at a time.
    folder : a new or an empty folder.

    Returns
    -------
    Path of the folder.

    Raises
    ------
    FileExistsError where the folder holds something or is a file, OSError where it cannot be written, ValueError for a
    kind that cannot be the name of a folder, or that is both normal and anomalous.
    """
    folder = _empty_folder(folder)
    names = _kind_folders(task)
    width = len(str(max(len(task.train), len(task.test))))  # names sort as their numbers do
    counts = dict.fromkeys(names.values(), 0)
    with atomic_folder(folder) as temporary:
        for number in range(len(task.train)):
            _write_png(
                temporary / "train" / "good" / f"{number:0{width}}.png",
                task.train[number].transpose(1, 2, 0),
            )
        for number, name in enumerate(names[kind] for kind in task.kinds):
            stem = f"{counts[name]:0{width}}"
            counts[name] += 1
            _write_png(
                temporary / "test" / name / f"{stem}.png", task.test[number].transpose(1, 2, 0)
            )
            if task.masks is not None and task.labels[number]:
                _write_png(
                    temporary / "ground_truth" / name / f"{stem}_mask.png",
                    np.uint8(255) * task.masks[number],
                )
    return folder


def write_images(images, folder) -> Path:
    """Write images, uint8 (N, 3, H, W), as PNG files 000.png, 001.png ... into a new or an empty folder, all or none; its path.

    Raises FileExistsError where the folder holds something or is a file, OSError where it cannot be written.
    """
    folder = _empty_folder(folder)
    width = len(str(len(images)))
    with atomic_folder(folder) as temporary:
        for number in range(len(images)):
            _write_png(temporary / f"{number:0{width}}.png", images[number].transpose(1, 2, 0))
    return folder


def _empty_folder(folder) -> Path:
    """The whole path, after a check that nothing is there."""
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not folder.is_dir() or folder.is_dir() and any(folder.iterdir()):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise FileExistsError(
            f"{str(folder)!r} {what}: expected a new or an empty folder to write to."
        )
    return folder


def _kind_folders(task: OneClassTask) -> dict[str, str]:
    """Folder of each kind of test image."""
    normal = {kind for kind, label in zip(task.kinds, task.labels, strict=True) if not label}
    anomalous = {kind for kind, label in zip(task.kinds, task.labels, strict=True) if label}
    for kind in sorted(anomalous):
        if kind in normal:
            raise ValueError(
                f"kind {kind!r} is normal and anomalous: expected it to be one of them."
            )
        if (
            kind == "good"
            or kind.startswith(".")
            or set(kind) & set('/\\:*?"<>|\0')
            or not kind.strip()
        ):
            raise ValueError(
                f"kind {kind!r} of anomalous images cannot be the name of its folder: rename it."
            )
    return dict.fromkeys(normal, "good") | {kind: kind for kind in anomalous}


def _write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)


def _find_layout(path_spec) -> tuple[Path, str | None, bool, bool]:
    """Path, class named, whether there are train/ and test/, whether they are MVTec's."""
    root, named = _split_spec(os.path.expanduser(path_spec))
    split = _holds_classes(root / "train") or _holds_classes(root / "test")
    if split and not ((root / "train").is_dir() and (root / "test").is_dir()):
        raise ValueError(
            f"{str(root)!r} has only one of train/ and test/: expected both, with a folder per class."
        )
    return (
        root,
        named,
        split,
        split and (root / "train" / "good").is_dir() and named in (None, "good"),
    )


def _split_spec(spec: str) -> tuple[Path, str | None]:
    """PATH or PATH:CLASS, where the longest part that exists is the path."""
    path, colon = spec, ":"
    while colon and not os.path.exists(path):
        path, colon, _ = path.rpartition(":")
    path = path or spec
    visible_entries(path)  # raises where it is no folder
    return Path(path), spec[len(path) + 1 :] or None


def _holds_classes(folder: Path) -> bool:
    return folder.is_dir() and bool(subfolders(folder))


def _holds_masks(root: Path) -> bool:
    truth = root / "ground_truth"
    return truth.is_dir() and any(image_names(truth / kind) for kind in subfolders(truth))


def _known_class(named: str | None, folder: Path) -> str:
    """The class folder meant; names typed and names stored may use different Unicode forms of one letter."""
    classes = subfolders(folder)
    if not classes:
        raise ValueError(
            f"the folder {str(folder)!r} holds no class folders: expected train/good and test/DEFECT (MVTec layout), "
            f"train/CLASS and test/CLASS, or one folder per class."
        )
    there = f"Classes in {str(folder)!r}: {', '.join(classes)}."
    if named is None:
        raise ValueError(
            f"which class is normal? Write PATH:CLASS, for example {classes[0]!r} as CLASS. {there}"
        )
    for name in classes:
        if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", named):
            return name
    close = difflib.get_close_matches(named.lower(), [name.lower() for name in classes], n=1)
    hint = next((f" Did you mean {name!r}?" for name in classes if [name.lower()] == close), "")
    raise ValueError(f"there is no class {named!r}.{hint} {there}")


def _sample(files: list[Path], limit: int | None, seed: int, what: str) -> list[Path]:
    """At most `limit` files, in their old order. Each class draws from its own stream: a new class changes no other."""
    order = np.random.default_rng([seed, zlib.crc32(os.fsencode(what))]).permutation(len(files))
    return [files[i] for i in sorted(order[:limit])]


def _split_80_20(files: list[Path], seed: int) -> tuple[list[Path], list[Path]]:
    train = set(_sample(files, len(files) - max(1, round(0.2 * len(files))), seed, "split"))
    return [file for file in files if file in train], [file for file in files if file not in train]


def _by_stem(files: Iterable[Path]) -> dict[str, Path]:
    stems = {}
    for file in files:
        if (other := stems.setdefault(file.stem, file)) != file:
            raise ValueError(
                f"{str(other)!r} and {file.name!r} share a name, so masks are ambiguous: rename one."
            )
    return stems


def _pair_masks(root: Path, anomalous: dict[str, list[Path]]) -> dict[Path, Path | None]:
    """Image -> mask by name, never by position: in ground_truth/DEFECT either NAME_mask or NAME, any ending."""
    pairs = {}
    for kind, files in anomalous.items():
        folder = root / "ground_truth" / kind
        masks = _by_stem(folder / name for name in (image_names(folder) if folder.is_dir() else []))
        for stem, file in _by_stem(files).items():
            pairs[file] = masks.get(f"{stem}_mask") or masks.get(stem)
    return pairs


def _require_masks(root: Path, masks: dict[Path, Path | None]) -> None:
    missing = [image for image, mask in masks.items() if mask is None]
    if missing:
        first = missing[0]
        expected = root / "ground_truth" / first.parent.name / f"{first.stem}_mask.png"
        raise ValueError(
            f"{str(first)!r} has no mask ({len(missing)} of {len(masks)} anomalous images lack theirs): add "
            f"{str(expected)!r} and so on, or pass missing_masks='drop' (leave these images out) or 'none' (no masks)."
        )


def _read_masks(
    files: list[Path], masks: dict[Path, Path | None], size: int, resize: int
) -> np.ndarray:
    stack = np.zeros((len(files), size, size), dtype=bool)
    for row, file in enumerate(files):
        if masks.get(file):
            stack[row] = read_mask_of(file, masks[file], size, resize)
    return stack
