"""Which files are images: by folder, file, pattern or table, and what is left out, with reasons."""

from __future__ import annotations

import csv
import glob
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ENDINGS = tuple(".png .jpg .jpeg .jfif .bmp .tif .tiff .webp .gif .ppm .pgm".split())
HEIC = importlib.util.find_spec("pillow_heif") is not None  # the extra [heic]
if HEIC:
    ENDINGS += (".heic", ".heif")
# Folders that hold no images of objects, and what ends the names of their masks.
MASKS = (
    "mask masks ground_truth groundtruth ground-truth gt label labels annotation annotations "
    "segmentation segmentations mask_images"
).split()
BESIDE = ("_mask", "_gt", "_label", "-mask", "-gt", "-label")
COLUMNS = ("file", "path", "filename", "image", "image_path")  # of a table of images, one of these


class Listing(NamedTuple):
    """Image files, and what was passed over on the way to them."""

    files: list[Path]
    left_out: list[tuple[str, str]]  # name and reason
    top: Path  # the folder that names begin at
    note: str = ""  # how the folder was read, for example "read as MVTec AD: 24 test images"

    @property
    def names(self) -> list[str]:
        """The files' names below `top`, exactly as they are; see `pandalib.io.printable`."""
        return [Path(os.path.relpath(file, self.top)).as_posix() for file in self.files]

    @property
    def warning(self) -> str:
        """What was left out, in one line; "" if nothing was."""
        return describe(self.left_out)


def counted(n: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 image, 2 images."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def first_names(names: list[str]) -> str:
    """Names in quotes; of many the first three, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(map(repr, names[:3]))}{more}"


def describe(left_out: list[tuple[str, str]]) -> str:
    """Names and reasons in one line; of many names the first three."""
    reasons = {}
    for name, reason in left_out:
        reasons.setdefault(reason, []).append(name)
    parts = [f"{first_names(names)} ({reason})" for reason, names in reasons.items()]
    return f"left out: {'; '.join(parts)}" if parts else ""


def find_images(arguments, *, recursive: bool = False) -> Listing:
    """The image files that are meant by what someone typed.

    Parameters
    ----------
    arguments : path-like or iterable of path-like
        Each a folder; a file; a pattern as `*.png` or `**/*.png`; or a table, FILE.csv, whose
        column `file`, `path`, `filename` or `image` (without such a header, its first column) names
        files, relative to the table.
    recursive : bool
        Search the folders in a folder too.

    Returns
    -------
    listing : Listing
        In a folder sorted by code points, the same order on every machine. Hidden files are left
        out without a word. Links to folders are not followed, since they may form a loop.

    Raises
    ------
    FileNotFoundError
        Something named is not there.
    ValueError
        There are no images.
    """
    if isinstance(arguments, (str, os.PathLike)):
        arguments = [arguments]
    files, left_out, paths = [], [], []
    for argument in arguments:
        path, others = Path(argument), []
        if not os.path.lexists(path):  # a file may be called ~name.png
            path = _at_home(path)
        paths.append(path)
        there = os.fspath(argument) and os.path.lexists(path)  # Path("") is the current folder
        if there and path.is_dir():
            found, others = _search(path, path, recursive)
        elif there and path.suffix.lower() == ".csv":
            found = _in_table(path)
        elif there:  # a broken link too: reading it says so
            found = [path]
        elif glob.has_magic(str(path)):
            found, others = _matched(path)
        else:
            raise FileNotFoundError(
                f"there is no file or folder {str(argument)!r}: check the path."
            )
        files += found
        left_out += others
    once: dict[str, Path] = {}
    for file in files:
        if once.setdefault(os.path.abspath(file), file) is not file:
            left_out.append((str(file), "named more than once"))
    files = list(once.values())
    if not files:
        raise ValueError(
            f"{', '.join(repr(str(path)) for path in paths) or 'an empty list'} holds no "
            f"images: expected files ending in {' '.join(ENDINGS)}"
            + (f"; {describe(left_out)}." if left_out else ".")
        )
    alone = len(paths) == 1 and paths[0].is_dir()
    return Listing(files, left_out, paths[0] if alone else common_folder(files))


def _matched(pattern: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """The image files that match a pattern, and what was left out; masks are no images there."""
    plain = next(n for n, part in enumerate(pattern.parts) if glob.has_magic(part))
    files, left_out = [], []
    for match in sorted(map(Path, glob.glob(str(pattern), recursive=True))):
        if {part.lower() for part in match.parts[plain:-1]} & {*MASKS}:
            left_out += [] if match.is_dir() else [(str(match), "masks")]
        elif not match.is_dir():
            files.append(match)
        elif "**" not in pattern.parts:
            left_out.append((f"{match}/", "a folder: name it itself"))
    found, others = _sort_out(files)
    return found, left_out + others


def common_folder(files: Iterable[Path]) -> Path:
    """The deepest folder that holds all of these files."""
    parents = {os.path.dirname(os.path.abspath(file)) for file in files}
    return Path(os.path.commonpath(parents) if parents else ".")


def image_files(folder, *, recursive: bool = False) -> list[Path]:
    """Paths of the image files in a folder, as in `find_images`; [] if there are none."""
    return _search(Path(folder), Path(folder), recursive)[0]


def subfolders(folder) -> list[str]:
    """Names of the folders in a folder, hidden ones left out, sorted by code points."""
    return [path.name for path in _visible(folder) if path.is_dir()]


def _search(folder: Path, top: Path, recursive: bool) -> tuple[list[Path], list[tuple[str, str]]]:
    """Image files and what was left out."""
    inside = _visible(folder)
    files, left_out = _sort_out([path for path in inside if not path.is_dir()], top)
    for path in inside:
        if not path.is_dir():
            continue
        name = f"{path.relative_to(top).as_posix()}/"
        if path.is_symlink():
            left_out.append((name, "a linked folder: name it itself"))
        elif path.name.lower() in MASKS:
            left_out.append((name, "masks"))
        elif recursive:
            found, others = _search(path, top, recursive)
            files += found
            left_out += others
        elif n := len(image_files(path, recursive=True)):
            images = "1 image in it" if n == 1 else f"{n} images in it"
            left_out.append((name, f"{images}: name it, or --recursive for all, recursive=True"))
    return sorted(files, key=lambda path: path.parts), left_out


def _sort_out(
    files: Iterable[Path], top: Path | None = None
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Image files by their endings, and the others."""
    found, left_out, files = [], [], list(files)
    stems = {(file.parent, file.stem.lower()) for file in files}
    for file in files:
        ending, stem = file.suffix.lower(), file.stem.lower()
        owners = {(file.parent, stem.removesuffix(end)) for end in BESIDE if stem.endswith(end)}
        if ending in ENDINGS and owners & stems:
            name = str(file) if top is None else file.relative_to(top).as_posix()
            left_out.append((name, "masks, by their names"))
        elif ending in ENDINGS:
            found.append(file)
        else:
            heic = ending in (".heic", ".heif")
            reason = "needs pip install pillow-heif" if heic else "no image by its ending"
            name = str(file) if top is None else file.relative_to(top).as_posix()
            left_out.append((name, reason))
    return found, left_out


def _visible(folder) -> list[Path]:
    if not os.path.exists(folder):  # not Path(folder): an empty name is no folder
        raise FileNotFoundError(f"there is no folder {str(folder)!r}: check the path.")
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{str(folder)!r} is a file: expected a folder of images.")
    visible = [path for path in Path(folder).iterdir() if not path.name.startswith(".")]
    return sorted(visible, key=lambda path: path.name)


def _in_table(path: Path) -> list[Path]:
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{str(path)!r} is a table in UTF-16: save it as UTF-8.")
    text = content.decode("utf-8-sig", errors="surrogateescape")
    lines = text.splitlines()
    try:
        table = csv.reader(lines, delimiter=_delimiter(lines[0] if lines else ""))
        rows = [row for row in table if any(row)]
    except csv.Error as error:
        raise ValueError(f"{str(path)!r} is no table: {error}.") from None
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = next((header.index(name) for name in COLUMNS if name in header), None)
    files = []
    for number, row in enumerate(rows if column is None else rows[1:], start=1):
        name = row[column or 0].strip() if len(row) > (column or 0) else ""
        file = path.parent / name
        file = file if "\0" in name or file.exists() else path.parent / _at_home(Path(name))
        if not name or not file.is_file():
            raise FileNotFoundError(
                f"{str(path)!r} names {name!r} in row {number}, which is not there: expected paths "
                f"relative to the table in a column called {', '.join(COLUMNS)}, or in the first."
            )
        files.append(file)
    return files


def _at_home(path: Path) -> Path:
    """~ and ~user in full, where there is such a home."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)
