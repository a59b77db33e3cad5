"""Files: where the project's data lies, hashes, and writing that is whole or not at all."""

from __future__ import annotations

import hashlib
import os
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
    """Open a file for writing so that a reader, or a crash, sees the old one or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a shared folder wants it readable
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)
