"""Files: where the project's data lies, hashes, and writing that is whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    """`data/` of the checkout, or where PANDALIB_DATA says."""
    return Path(os.environ.get("PANDALIB_DATA") or ROOT / "data")


def cache_folder() -> Path:
    """Where computed features are kept: PANDALIB_CACHE, or `data/cache/`. Safe to delete at any time."""
    return Path(os.environ.get("PANDALIB_CACHE") or data_folder() / "cache")


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing so that a reader, or a crash, sees the old one or the whole new one, never a part.

    Raises OSError that names the file where it cannot be written: no room, no permission, a disk that is read-only.
    """
    temporary = None
    try:
        with naming_target(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(
                dir=path.parent, prefix=_prefix(path), suffix=".part"
            )
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(
                temporary, 0o644
            )  # mkstemp makes it private; a shared folder wants it readable
            os.replace(temporary, path)
    except BaseException:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which appears as `folder` when all is in it; after a failure nothing is left. An empty `folder` is replaced.

    Raises FileExistsError where another process has filled it meanwhile, OSError that names the folder where it cannot be written.
    """
    temporary = None
    try:
        with naming_target(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(
                tempfile.mkdtemp(dir=folder.parent, prefix=_prefix(folder), suffix=".part")
            )
            yield temporary
            os.chmod(temporary, 0o755)  # mkdtemp makes it private
            try:
                if folder.is_dir():
                    folder.rmdir()  # refuses, should it no longer be empty
                os.rename(temporary, folder)
            except OSError as error:
                if folder.exists():
                    raise FileExistsError(
                        f"{str(folder)!r} was made by another process meanwhile."
                    ) from error
                raise
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def naming_target(path: Path) -> Iterator[None]:
    """Turn what the system says of a failed write, often without a name or with that of a temporary file, into an OSError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not _is_about(
            error.filename, path
        ):  # a sentence of our own, or another file's
            raise
        problem = type(error)(
            f"{str(path)!r} cannot be written ({os.strerror(error.errno)}): make room there, or choose another place."
        )
        problem.errno = error.errno
        raise problem from error


def _is_about(name, path: Path) -> bool:
    if name is None:
        return True
    name = Path(os.fsdecode(name))
    return path.is_relative_to(name) or any(part.startswith(_prefix(path)) for part in name.parts)


def _prefix(path: Path) -> str:
    """How the names of temporary files begin: hidden, and short enough beside the ending whatever the letters."""
    return f".{path.name[:40]}."
