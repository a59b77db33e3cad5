"""Archives from elsewhere, unpacked whole or not at all, and never beyond the folder meant for them.

An archive is a list of names that somebody else chose: it may point upwards, to a link or to a device, or swell to fill the disk.
Only plain files and folders below the target are written; anything else is an error that names the member, not a member left out.
"""

from __future__ import annotations

import gzip
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pandalib.io import atomic_folder
from pandalib.progress import progress

CHUNK = 1 << 20
MAX_MEMBERS = 1_000_000
# Images hardly shrink in an archive, text and drawn masks do; a bomb grows a thousandfold.
MAX_GROWTH = 100
MIN_LIMIT = 100_000_000  # bytes that any archive may unpack to
# What the readers raise for damaged, unknown or encrypted archives.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
)
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz")


class ArchiveError(ValueError):
    """An archive is damaged, or holds what no archive of images holds; the message names it, the member and the cause."""


def unpack(files, folder, *, max_bytes: int | None = None, max_members: int = MAX_MEMBERS) -> Path:
    """Unpack files into one new folder, which appears when everything is in it.

    A tar (plain, gz, xz) or zip archive is unpacked, NAME.gz becomes NAME, any other file is copied.

    Parameters
    ----------
    files : a path, or several.
    folder : where to; it must not exist yet.
    max_bytes : largest total size in bytes (default: a hundred times that of the archives).
    max_members : largest number of files and folders.

    Returns
    -------
    Path of the folder.

    Raises
    ------
    ArchiveError for a damaged archive, a limit that is passed, or a member that is a link, a device, a second file of one
    name, or would lie outside the folder. FileExistsError where the folder is there. After any error nothing is left.
    """
    files, folder = (
        [Path(file) for file in ([files] if isinstance(files, (str, Path)) else files)],
        Path(folder),
    )
    if folder.exists():
        raise FileExistsError(f"{str(folder)!r} is there already: delete or rename it first.")
    if max_bytes is None:
        max_bytes = max(MIN_LIMIT, MAX_GROWTH * sum(file.stat().st_size for file in files))
    with atomic_folder(folder) as temporary:
        n_members = n_bytes = 0
        for file in files:
            try:
                for name, content in progress(_members(file), f"unpacking {file.name}"):
                    n_members += 1
                    if n_members > max_members:
                        raise ArchiveError(f"more than {max_members} members")
                    n_bytes = _write(temporary, name, content, n_bytes, max_bytes)
            except ArchiveError as error:
                raise ArchiveError(f"{str(file)!r} is not unpacked: {error}.") from error
            except _DAMAGE as error:
                cause = str(error).split("\n")[0].rstrip(".:") or type(error).__name__
                raise ArchiveError(
                    f"{str(file)!r} is damaged, or no archive of its kind ({cause}): delete it and get it again."
                ) from error
    return folder


def _members(file: Path) -> Iterator[tuple[str, BinaryIO | None]]:
    """Name and content of each member in turn; a folder has no content. Links and devices are refused by name."""
    name = file.name.lower()
    if name.endswith(".zip"):
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise ArchiveError(f"{member.filename!r} is a link or a device")
                if member.is_dir():
                    yield member.filename, None
                else:
                    with archive.open(member) as content:
                        yield member.filename, content
    elif name.endswith(TARS):
        with tarfile.open(file) as archive:
            for member in archive:
                if not (member.isreg() or member.isdir()):
                    raise ArchiveError(f"{member.name!r} is a link or a device")
                yield member.name, archive.extractfile(member)
            while archive.fileobj.read(CHUNK):  # to the end, where the checksum of all is
                pass
    elif name.endswith(".gz"):
        if file.stat().st_size == 0:  # which gzip takes for the archive of an empty file
            raise EOFError("it is empty")
        with gzip.open(file) as content:
            yield file.name[:-3], content
    else:
        with open(file, "rb") as content:
            yield file.name, content


def _write(folder: Path, name: str, content: BinaryIO | None, n_bytes: int, max_bytes: int) -> int:
    """Write one member; the total number of bytes, counted as they are written, because headers may lie."""
    path = folder.joinpath(*_safe_parts(name))
    try:
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
            return n_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            while chunk := content.read(CHUNK):
                n_bytes += len(chunk)
                if n_bytes > max_bytes:
                    raise ArchiveError(f"it unpacks to more than {max_bytes} bytes")
                file.write(chunk)
    except (FileExistsError, NotADirectoryError) as error:
        raise ArchiveError(f"{name!r} is in it twice") from error
    return n_bytes


def _safe_parts(name: str) -> Iterable[str]:
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or "\0" in name
        or re.match("[A-Za-z]:", name)
    ):
        raise ArchiveError(f"{name!r} would lie outside the folder")
    return path.parts
