"""Whatever a user calls "my images" - a folder, a file, a list of files, an array - as one sequence with a name for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pandalib.datasets.images import ENDINGS, ImageFolder, list_images, visible_entries


def find_images(path, *, recursive: bool = False) -> list[Path]:
    """Image files of a folder, sorted; with `recursive` those in its subfolders as well (links to folders are not followed). Of a file, itself.

    Raises FileNotFoundError, or ValueError where there is no image.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not recursive:
        try:
            return list_images(path)
        except ValueError as error:
            inside = path.is_dir() and any(entry.is_dir() for entry in visible_entries(path))
            hint = (
                " Its subfolders are searched with recursive=True (--recursive)." if inside else ""
            )
            raise ValueError(f"{error}{hint}") from None
    visible_entries(path)  # raises where it is no folder
    found = []
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [
            Path(folder, name)
            for name in names
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        ]
    if not found:
        raise ValueError(
            f"the folder {str(path)!r} and its subfolders hold no images: expected files ending in {' '.join(ENDINGS)}."
        )
    return sorted(found, key=lambda file: file.relative_to(path).parts)


def find_normal_images(path, *, recursive: bool = False) -> list[Path]:
    """As `find_images`; of a folder in MVTec's layout, the images of train/good."""
    good = Path(path).expanduser() / "train" / "good"
    return find_images(good if good.is_dir() else path, recursive=recursive)


def open_images(
    images, size: int, resize: int | None = None, *, recursive: bool = False, normal: bool = False
) -> tuple[Sequence, list[str]]:
    """A sequence whose slices are uint8 (n, 3, H, W), and the name of each image.

    Parameters
    ----------
    images : a folder or a file, by its path; a list of files; or a sequence of images, which is returned as it is: an array or
        tensor uint8 (N, 3, H, W), an `ImageFolder`, a task's images.
    size, resize : of files, as in `pandalib.datasets.images.read_image`.
    recursive : search subfolders too.
    normal : of a folder in MVTec's layout take train/good.

    Raises FileNotFoundError, or ValueError where there are no images or something else was given.
    """
    if isinstance(images, (str, os.PathLike)):
        root = Path(images).expanduser()
        files = (find_normal_images if normal else find_images)(root, recursive=recursive)
        names = [
            _readable(file.relative_to(root).as_posix() if root.is_dir() else file.name)
            for file in files
        ]
        return ImageFolder(files, size, resize), names
    if isinstance(images, (list, tuple)) and all(
        isinstance(file, (str, os.PathLike)) for file in images
    ):
        images = ImageFolder([Path(file).expanduser() for file in images], size, resize)
    if not (hasattr(images, "__len__") and hasattr(images, "__getitem__")) or isinstance(
        images, (list, tuple, dict)
    ):
        raise ValueError(
            f"images are {type(images).__name__}: expected a folder, a file, a list of files, or an array uint8 (N, 3, H, W)."
        )
    if len(images) == 0:
        raise ValueError("there are no images: expected at least one.")
    if isinstance(images, ImageFolder):
        top = os.path.commonpath(
            [os.path.abspath(file.parent) for file in images.files]
        )  # the names need not tell where all of them lie
        return images, [
            _readable(Path(os.path.relpath(os.path.abspath(file), top)).as_posix())
            for file in images.files
        ]
    if np.ndim(images[:1]) != 4:
        raise ValueError(
            f"images have the shape {np.shape(images)}: expected uint8 (N, 3, H, W); for one image pass image[None]."
        )
    return images, [f"image {number}" for number in range(len(images))]


def _readable(name: str) -> str:
    """A name that can be printed anywhere: control characters, marks that turn text around and bytes that are no text are written as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii")
        for c in name
    )
