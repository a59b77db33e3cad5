"""The public data sets: what there is, where it lies, and how to get it (data/registry.json).

A set NAME lives in PANDALIB_DATASETS/NAME (default data/public/NAME): its archives, and in `unpacked` what is in them.
Nothing is fetched unless asked for: by `python -m pandalib data NAME`, by `fetch`, or by PANDALIB_DOWNLOAD=1.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

from pandalib.datasets.archives import unpack
from pandalib.datasets.download import DownloadError, check_file, download, record_hash, recorded
from pandalib.io import ROOT, data_folder

REGISTRY = ROOT / "data" / "registry.json"


@functools.cache
def registry() -> dict[str, dict]:
    """Name -> row. Keys of a row: title, page, licence, tasks, files (name, urls, bytes, sha256, md5, source of the
    hashes), by_hand, protocol, tried, and for us marker (what is there once it is unpacked) and into (unpacked where).
    """
    return json.loads(REGISTRY.read_text(encoding="utf-8"))


def row_of(name: str) -> dict:
    if name not in registry():
        raise ValueError(f"data set {name!r} is unknown: choose one of {', '.join(registry())}.")
    return registry()[name]


def folder_of(name: str) -> Path:
    """Where a data set lives, or will: PANDALIB_DATASETS/NAME, or data/public/NAME."""
    return Path(os.environ.get("PANDALIB_DATASETS") or data_folder() / "public").expanduser() / name


def find(name: str) -> Path | None:
    """The folder that holds what the row's `marker` says; None where there is none.

    It may be `unpacked` in the folder of the set, that folder itself, for those who unpack by hand, or one in either.
    """
    marker, folder = row_of(name)["marker"], folder_of(name)
    for place in (folder / "unpacked", folder):
        if place.is_dir():
            inner = sorted(
                entry
                for entry in place.iterdir()
                if entry.is_dir() and not entry.name.startswith(".") and entry.name != "unpacked"
            )
            for candidate in (place, *inner):
                if next(candidate.glob(marker), None) is not None:
                    return candidate
    return None


def state_of(name: str) -> str:
    """What is here, in a few words."""
    if find(name) is not None:
        return "here"
    files = row_of(name)["files"]
    there = [file["name"] for file in files if (folder_of(name) / file["name"]).exists()]
    if len(there) == len(files):
        return "here, packed"
    if there or any(folder_of(name).glob("*.part")):
        return "begun"
    return "missing" if all(file["urls"] for file in files) else "by hand"


def how_to_get(name: str) -> str:
    """Where it comes from and where to put it, in sentences."""
    row, folder = row_of(name), folder_of(name)
    command = f"`python -m pandalib data {name}`"
    names = ", ".join(file["name"] for file in row["files"])
    by_hand = f"get {names} from {row['page']}, put it into {str(folder)!r} and run {command}, or put its contents there."
    if all(file["urls"] for file in row["files"]):
        return f"Run {command}. By hand: {by_hand}"
    return f"By hand: {row['by_hand']} {by_hand[0].upper()}{by_hand[1:]}"


def size_of(name: str) -> int | None:
    """Bytes to download; None where they are not known."""
    sizes = [file["bytes"] for file in row_of(name)["files"]]
    return None if None in sizes else sum(sizes)


def require(name: str, *, download: bool | None = None) -> Path:
    """The folder of a data set that is here; with `download` (default: PANDALIB_DOWNLOAD=1) it is fetched first.

    Raises
    ------
    FileNotFoundError that names the command, the page, the files and where to put them.
    """
    place = find(name)
    if place is not None:
        return place
    if os.environ.get("PANDALIB_DOWNLOAD") == "1" if download is None else download:
        return fetch(name)
    raise FileNotFoundError(
        f"the data set {name} ({row_of(name)['title']}) is not here. {how_to_get(name)}"
    )


def fetch(name: str, *, progress: bool = True, say=lambda text: None) -> Path:
    """Get, check and unpack a data set; what is there already is checked only.

    Parameters
    ----------
    progress : show bars.
    say : is given what is worth a line, as `print`.

    Returns
    -------
    Path of the folder with its contents.

    Raises
    ------
    FileNotFoundError where files have to be got by hand; DownloadError for a file that cannot be fetched or is another
    one than expected; ArchiveError for one that cannot be unpacked. Each says what to do.
    """
    row, folder, place = row_of(name), folder_of(name), find(name)
    archives = [folder / file["name"] for file in row["files"]]
    for file, path in zip(row["files"], archives, strict=True):
        expected = dict(sha256=file["sha256"], md5=file["md5"], n_bytes=file["bytes"])
        known, first = file["sha256"] or file["md5"], not recorded(path)
        if place is not None and not path.exists():
            continue  # unpacked, and the archive deleted
        if not path.exists() and not file["urls"]:
            raise FileNotFoundError(
                f"{name} needs {file['name']}, which no program can fetch. {how_to_get(name)}"
            )
        try:
            if file["urls"]:
                download(file["urls"], path, **expected, progress=progress)
            else:
                check_file(path, **expected)
        except DownloadError as error:
            raise DownloadError(f"{error} {how_to_get(name)}") from error
        if known:
            say(f"{file['name']}: {'SHA-256' if file['sha256'] else 'MD5'} as expected")
        elif first:
            record_hash(path)
            say(
                f"{file['name']}: nobody publishes a hash; this one's is kept in {path.name}.sha256 and holds from now on"
            )
        else:
            say(f"{file['name']}: SHA-256 as when it came here first")
    if place is None:
        target = folder / "unpacked"
        try:
            unpack(archives, target / row["into"] if row["into"] else target)
        except FileExistsError:
            if find(name) is None:  # no other process has just done the same
                raise
        place = find(name)
        if place is None:
            raise ValueError(
                f"{name}: {str(target)!r} does not hold {row['marker']!r} after unpacking: the files in {str(folder)!r} are others than expected."
            )
        say(f"unpacked into {str(target)!r}; the archives may be deleted")
    return place
