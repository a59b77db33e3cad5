"""Files: where data lies, atomic writing, and files that carry their own hash.

After a crash or on a full disk there is the old file or the new one, never a part of it. JSON and
tensors are stored with the SHA-256 of everything in them, so a bit that flips on a disk is an
error, never a different result. The hash is not a signature: anyone can compute it, so code that
reads such a file checks that its entries make sense as well. No file can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parent.parent
HASH = "sha256"  # the key of the hash in the JSON, and in the metadata of tensors


def data_folder() -> Path:
    """`data/` of the checkout, or where PANDALIB_DATA says."""
    return Path(os.environ.get("PANDALIB_DATA") or ROOT / "data")


def cache_folder() -> Path:
    """Where computed features are kept: PANDALIB_CACHE, else `data/cache/`. Safe to delete."""
    return Path(os.environ.get("PANDALIB_CACHE") or data_folder() / "cache")


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(name: str) -> str:
    """A file's name for a terminal or a page: what would be invisible there is escaped.

    Control characters and line ends are escaped, formatting characters, some of which turn text
    around, and bytes that are no text. Spaces of all kinds, accents and emoji stay. Data files hold
    the real name.
    """
    hidden = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in hidden else letter for letter in name
    )


def real_path(path: Path | str) -> Path:
    """Where a file would be written: `~` and links followed. IsADirectoryError for no name."""
    if str(path) == "":
        raise IsADirectoryError("'' is a folder: expected the name of a file.")
    return Path(os.path.realpath(Path(path).expanduser()))


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing; it appears under its name once everything is on the disk.

    Raises OSError with the file's name when it cannot be written: no room, no permission.
    """
    with _temporary(path) as temporary:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all; see `atomic_file`."""
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which appears as `folder` in the end; an empty one is replaced.

    Raises OSError with the folder's name when it cannot be written, or is no longer empty.
    """
    with _temporary(folder) as temporary:
        temporary.mkdir()
        yield temporary
        with suppress(OSError):
            folder.rmdir()  # only if it is empty; Windows renames to a new name alone
        os.rename(temporary, folder)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a hidden name beside `path`; after a failure, whatever has that name is removed."""
    # Short enough even if each letter of the name takes 4 bytes.
    temporary = path.parent / f".{path.name[:40]}.{secrets.token_hex(4)}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError) and _about(error, temporary):
            # The system named the temporary file or, on a full disk, no file.
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def _about(error: OSError, temporary: Path) -> bool:
    """Whether an error of the system is about this file, or a file in this folder."""
    if error.errno is None:  # raised by the caller, in words
        return False
    return error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(temporary)


def dump_json_with_hash(content: dict) -> bytes:
    """JSON text of `content`, with its hash as one more key, "sha256".

    Raises ValueError for NaN and infinite numbers, which JSON does not have.
    """
    content = json.loads(json.dumps(content, allow_nan=False))  # tuples become lists
    return (json.dumps(content | {HASH: _hash(content)}, indent=1) + "\n").encode()


def load_json_with_hash(text: bytes | str) -> dict:
    """Read what `dump_json_with_hash` wrote; ValueError for anything else."""
    content = load_strict_json(text)
    if not isinstance(content, dict) or HASH not in content:
        raise ValueError("it is not a JSON object with the SHA-256 of its content")
    if content.pop(HASH) != _hash(content):
        raise ValueError("its content is not what was written, by its SHA-256")
    return content


def load_strict_json(text: bytes | str):
    """Read JSON of any origin; ValueError for NaN, deep nesting and everything that is not JSON."""

    def refuse(constant: str):
        raise ValueError(f"{constant} is not a number in JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_tensors(path: Path | str, tensors: dict, facts: dict) -> None:
    """Write named tensors, and facts that JSON can hold, as safetensors, atomically.

    Raises ValueError for NaN and infinite numbers among the facts, OSError as `atomic_file`.
    """
    from safetensors.torch import save  # imports torch, which nothing else here needs

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = json.loads(json.dumps(facts, allow_nan=False))
    entry = json.dumps({"facts": facts, HASH: _hash(facts, tensors)})
    # One entry only: safetensors writes several in any order, and equal content is an equal file.
    write_atomically(Path(path), save(tensors, metadata={"pandalib": entry}))


def read_tensors(path: Path | str) -> tuple[dict, dict]:
    """The tensors and facts that `write_tensors` wrote.

    Raises FileNotFoundError; ValueError for content that is not, bit by bit, what was written.
    """
    from safetensors import SafetensorError  # as above: torch
    from safetensors.torch import load  # as above: torch

    content = Path(path).read_bytes()
    try:
        tensors = load(content)
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        entry = load_strict_json(load_strict_json(header)["__metadata__"]["pandalib"])
        if entry[HASH] != _hash(entry["facts"], tensors):
            raise ValueError("its content is not what was written, by its SHA-256")
        return tensors, entry["facts"]
    except (SafetensorError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(" ".join(str(error).split())[:100]) from None


def _hash(facts, tensors: dict | None = None) -> str:
    """SHA-256 of facts, and of the names, types, shapes and numbers of tensors."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors or {}):
        array = tensors[name].numpy()
        digest.update(f"|{name}|{array.dtype}{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
