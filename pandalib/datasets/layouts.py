"""How published data sets and plain folders lay out normal images, test images and masks."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pandalib.datasets.listing import MASKS, Listing, counted, find_images, image_files, subfolders
from pandalib.datasets.task import split_80_20


class Layout(NamedTuple):
    """A published layout: folders below that of one kind of object."""

    name: str
    train: str  # normal images to learn from
    test: str  # holds a folder for each kind of test image
    normal: str  # the normal kind
    masks: str  # holds a folder for each kind, a mask for each image
    sign: str = ""  # a folder that tells it from others


LAYOUTS = (
    Layout("MVTec LOCO", "train/good", "test", "good", "ground_truth", "test/logical_anomalies"),
    Layout("MVTec AD", "train/good", "test", "good", "ground_truth"),
    Layout("BTAD", "train/ok", "test", "ok", "ground_truth"),
    # No split in its folders: that of split_csv/1cls.csv beside them is used, else 80 to 20.
    Layout("VisA", "Data/Images/Normal", "Data/Images", "Normal", "Data/Masks"),
)
KNOWN = ", ".join(layout.name for layout in LAYOUTS)
CLASSES = "one folder per class"


class Found(NamedTuple):
    """The images of a folder, by what they are for."""

    root: Path
    layout: str  # a name of `LAYOUTS`, or `CLASSES`
    normal: str
    train: list[Path]
    tests: dict[str, list[Path]]  # kind -> files
    masks: dict[Path, list[Path]] | None  # of each anomalous test image; None: there are none
    masks_folder: Path | None
    left_out: list[tuple[str, str]]  # of the test images
    left_out_of_train: list[tuple[str, str]]


def read_layout(path_spec, *, seed: int = 0) -> Found:
    """Find the images of "PATH" or "PATH:CLASS", the longest part that exists being the path.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        For the path.
    ValueError
        No layout fits, or the class is missing or not named.
    """
    root, named = _split_spec(path_spec)
    layout = known_layout(root)
    if layout is not None and named in (None, layout.normal):
        return _read_known(root, layout, seed)
    where, classes = _class_folders(root)
    normal = _known_class(named, root, classes)
    tests = {kind: find_images(where / kind) for kind in plain_classes(where)}
    if where == root:
        train, kept = split_80_20(tests[normal].files, seed)
        train = tests[normal]._replace(files=train)
        tests[normal] = tests[normal]._replace(files=kept)
    else:
        train = find_images(root / "train" / normal)
    masks = next((root / name for name in subfolders(root) if name.lower() in MASKS), None)
    return _found(root, CLASSES, normal, train, tests, masks)


def class_specs(path_spec) -> list[str]:
    """The tasks of a folder, each class normal in turn, as "PATH:CLASS"; of a known layout "PATH".

    A class in `path_spec` makes no difference, unless it is another than the layout's normal one.
    Raises as `read_layout`.
    """
    root, named = _split_spec(path_spec)
    layout = known_layout(root)
    if layout is not None and named in (None, layout.normal):
        return [str(root)]
    _, classes = _class_folders(root)
    if named is not None:
        _known_class(named, root, classes)  # raises where there is no such class
    return [f"{root}:{name}" for name in classes]


def known_layout(root: Path) -> Layout | None:
    """The published layout that a folder has, if any."""
    for layout in LAYOUTS:
        there = all((root / part).is_dir() for part in (layout.train, layout.test, layout.sign))
        if there and subfolders(root / layout.test):
            return layout
    return None


def images_to_fit(arguments, *, recursive: bool = False) -> Listing:
    """As `find_images`, but of a folder in a known layout the normal images to learn from."""
    root = _one_folder(arguments)
    for layout in LAYOUTS if root is not None else ():
        if not (root / layout.train).is_dir():
            continue
        if known_layout(root) is None:  # without test images
            listing = find_images(root / layout.train)
            left_out = [(f"{layout.train}/{name}", reason) for name, reason in listing.left_out]
            note = f"read {layout.train}"
            return listing._replace(left_out=left_out, top=root, note=note)
        found = read_layout(root)
        note = f"read as {found.layout}: {counted(len(found.train), 'normal image')}"
        return Listing(found.train, found.left_out_of_train, root, note)
    return find_images(arguments, recursive=recursive)


def images_to_score(arguments, *, recursive: bool = False) -> Listing:
    """As `find_images`, but of a folder in a known layout the test images."""
    root = _one_folder(arguments)
    if root is None or known_layout(root) is None:
        return find_images(arguments, recursive=recursive)
    found = read_layout(root)
    files = [file for kind in found.tests.values() for file in kind]
    note = f"read as {found.layout}: {counted(len(files), 'test image')}"
    return Listing(files, found.left_out, root, note)


def plain_classes(folder) -> list[str]:
    """Names of the folders in a folder that can be classes: masks are none."""
    return [name for name in subfolders(folder) if name.lower() not in MASKS]


def _one_folder(arguments) -> Path | None:
    if isinstance(arguments, (list, tuple)) and len(arguments) == 1:
        arguments = arguments[0]
    if isinstance(arguments, (str, os.PathLike)):
        path = Path(arguments).expanduser()
        return path if path.is_dir() else None
    return None


def _split_spec(path_spec) -> tuple[Path, str | None]:
    spec = path = os.path.expanduser(path_spec)
    colon = ":"
    while colon and not os.path.exists(path):
        path, colon, _ = path.rpartition(":")
    path = path or spec
    subfolders(path)  # raises where it is no folder
    return Path(path), spec[len(path) + 1 :] or None


def _read_known(root: Path, layout: Layout, seed: int) -> Found:
    test = root / layout.test
    tests = {kind: find_images(test / kind) for kind in subfolders(test)}
    if (root / layout.train).parent != test:
        train = find_images(root / layout.train)
    elif layout.normal in tests:
        table = root.parent / "split_csv" / "1cls.csv"
        trained = _trained(table, root) if table.is_file() else None
        files, listing = tests[layout.normal].files, tests[layout.normal]
        if trained is None:
            train, kept = split_80_20(files, seed)
        else:
            train = [file for file in files if file in trained]
            kept = [file for file in files if file not in trained]
        train, tests[layout.normal] = listing._replace(files=train), listing._replace(files=kept)
    return _found(root, layout.name, layout.normal, train, tests, root / layout.masks)


def _trained(table: Path, root: Path) -> set[Path]:
    """The training images of one object by VisA's table."""
    with open(table, encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("object") == root.name]
    return {root.parent / row["image"] for row in rows if row.get("split") == "train"}


def _found(
    root, layout, normal, train: Listing, tests: dict[str, Listing], masks: Path | None
) -> Found:
    def named(listing: Listing) -> list[tuple[str, str]]:
        folder = Path(os.path.relpath(listing.top, root)).as_posix()
        return [(f"{folder}/{name}", reason) for name, reason in listing.left_out]

    left_out = [entry for listing in tests.values() for entry in named(listing)]
    tests = {kind: listing.files for kind, listing in tests.items()}
    pairs = None
    if masks is not None and masks.is_dir() and image_files(masks, recursive=True):
        pairs = _pair_masks(masks, {kind: tests[kind] for kind in tests if kind != normal})
    return Found(root, layout, normal, train.files, tests, pairs, masks, left_out, named(train))


def _class_folders(root: Path) -> tuple[Path, list[str]]:
    """The folder of the test classes, and the classes that can be normal."""
    train, test = root / "train", root / "test"
    split = [folder for folder in (train, test) if folder.is_dir() and subfolders(folder)]
    if split and not (train.is_dir() and test.is_dir()):
        raise ValueError(
            f"{str(root)!r} has only one of train/ and test/: expected both, with a folder per "
            "class."
        )
    classes = plain_classes(train if split else root)
    if not split:
        sets = [name for name in classes if known_layout(root / name)]
        if sets:
            raise ValueError(
                f"{str(root)!r} holds several data sets, {', '.join(sets)}: name one of them, as "
                f"{str(root / sets[0])!r}."
            )
    if not classes:
        raise ValueError(
            f"the folder {str(root)!r} holds no class folders: expected the layout of {KNOWN}, or "
            "train/CLASS and test/CLASS, or one folder per class."
        )
    return test if split else root, classes


def _known_class(named: str | None, folder: Path, classes: list[str]) -> str:
    """The class folder meant; typed and stored names may differ in their Unicode form."""
    there = f"Classes in {str(folder)!r}: {', '.join(classes)}."
    if named is None:
        raise ValueError(f"which class is normal? Write PATH:CLASS. {there}")
    for name in classes:
        if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", named):
            return name
    raise ValueError(f"there is no class {named!r}. {there}")


def _pair_masks(masks: Path, tests: dict[str, list[Path]]) -> dict[Path, list[Path]]:
    """Anomalous image -> masks by name, never by position.

    NAME_mask or NAME with any ending, or all images in the folder NAME; in a folder for each kind,
    or in one for all.
    """
    pairs = {}
    shared = [kind for kind in tests if not (masks / kind).is_dir()]
    _by_stem(file for kind in shared for file in tests[kind])  # raises for a name in two kinds
    for kind, images in tests.items():
        folder = masks if kind in shared else masks / kind
        files, folders = _by_stem(image_files(folder)), subfolders(folder)
        for stem, image in _by_stem(images).items():
            file = files.get(f"{stem}_mask") or files.get(stem)
            inside = image_files(folder / stem) if file is None and stem in folders else []
            pairs[image] = [file] if file else inside
    return pairs


def _by_stem(files: Iterable[Path]) -> dict[str, Path]:
    stems = {}
    for file in files:
        if (other := stems.setdefault(file.stem, file)) != file:
            raise ValueError(f"{str(other)!r} and {str(file)!r} share a name: masks are ambiguous.")
    return stems
