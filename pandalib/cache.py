"""A cache on disk for features of a frozen network: computed once, checked by hash, written whole or not at all.

Two notebooks may fill one folder at once: each writes a temporary file of its own and renames it, so readers see
complete files only; an evicted file stays readable to whoever has it open.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from pandalib.io import atomic_file, cache_folder

HEADER = 4096  # bytes before the numbers: one line of JSON, padded, so that the numbers are aligned for memory maps
STALE = 3600  # seconds after which an unfinished file belongs to a process that died


class FeatureCache:
    """Arrays on disk by key.

    Parameters
    ----------
    folder : default PANDALIB_CACHE, else data/cache. Deleting it is safe.
    dtype : "float16" (half the size, rounded) or "float32".
    limit_gb : when the folder grows beyond this, the files unused for longest go. An array that is larger by
        itself is computed in memory and not kept.
    """

    def __init__(
        self, folder: Path | str | None = None, *, dtype: str = "float16", limit_gb: float = 4.0
    ):
        if dtype not in ("float16", "float32"):
            raise ValueError(f"dtype {dtype!r}: expected 'float16' or 'float32'.")
        self.folder = Path(folder) if folder is not None else cache_folder()
        self.dtype, self.limit_gb = np.dtype(dtype), limit_gb

    def get(self, key: str, shape: tuple[int, ...], chunks: Iterator[np.ndarray]) -> np.ndarray:
        """The array stored under `key`; if there is none, or it is damaged, `chunks` are computed, stored and returned.

        Parameters
        ----------
        key : hexadecimal, must name everything that the numbers depend on (see `content_key`).
        shape : of the whole array, (N, ...).
        chunks : yields arrays that follow one another along the first axis; only consumed when needed.

        Returns
        -------
        (N, ...) array of the cache's dtype, read-only where it lies on disk.

        Raises
        ------
        OSError with the folder's name when it cannot be written. Nothing half-written stays behind.
        """
        path = self.folder / f"{key[:40]}.{self.dtype.name}.features"
        found = self._read(path, shape)
        if found is not None:
            return found
        size = int(np.prod(shape)) * self.dtype.itemsize
        if size > self.limit_gb * 1e9:
            whole = np.empty(shape, self.dtype)
            for start, chunk in _numbered(chunks):
                whole[start : start + len(chunk)] = chunk
            return whole
        try:
            self._write(path, shape, chunks)
        except OSError as error:
            raise OSError(
                f"features could not be kept in {self.folder} ({os.strerror(error.errno) if error.errno else error}): free some space there, "
                f"point PANDALIB_CACHE to another folder, or work with cache=None."
            ) from error
        self._evict(keep=path)
        found = self._read(path, shape)
        if found is None:
            raise OSError(
                f"{path} does not hold what was just written to it: check the disk, or work with cache=None."
            )
        return found

    def _write(self, path: Path, shape: tuple[int, ...], chunks: Iterator[np.ndarray]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        digest, rows = hashlib.sha256(), 0
        with atomic_file(path) as file:
            file.seek(HEADER)
            for start, chunk in _numbered(chunks):
                numbers = np.ascontiguousarray(chunk, dtype=self.dtype)
                digest.update(numbers)
                file.write(numbers)
                rows = start + len(numbers)
            if rows != shape[0]:
                raise ValueError(
                    f"{rows} rows of features were computed where {shape[0]} were announced."
                )
            header = dict(shape=list(shape), dtype=self.dtype.name, sha256=digest.hexdigest())
            file.seek(0)
            file.write(json.dumps(header).encode().ljust(HEADER, b"\n"))

    def _read(self, path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
        """The stored array, or None when it is absent or not what its header says: then it is computed anew."""
        try:
            with open(path, "rb") as file:
                header = json.loads(file.read(HEADER))
                # Mapped through the open file: another process may evict the name meanwhile.
                numbers = np.memmap(
                    file, dtype=self.dtype, mode="r", offset=HEADER, shape=tuple(shape)
                )
            if header["shape"] != list(shape) or header["dtype"] != self.dtype.name:
                return None
            if hashlib.sha256(numbers).hexdigest() != header["sha256"]:
                return None
            with suppress(OSError):  # a folder that is read-only serves all the same
                os.utime(path)  # used just now: last to be evicted
            return numbers
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _evict(self, keep: Path) -> None:
        files = []
        for path in [*self.folder.glob("*.features"), *self.folder.glob(".*.part")]:
            try:
                status = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            if path.suffix == ".part":
                if time.time() - status.st_mtime > STALE:
                    path.unlink(missing_ok=True)
            else:
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit_gb * 1e9:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size


def content_key(*parts) -> str:
    """SHA-256 over strings, arrays and lazy image sequences: equal content, equal key.

    A sequence that knows a cheaper fingerprint of its content (`fingerprint()`, as folders of files do) is asked
    for it instead of being decoded.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            piece = part.encode()
        elif hasattr(part, "fingerprint"):
            piece = part.fingerprint().encode()
        else:
            array = np.ascontiguousarray(part)
            digest.update(f"{array.dtype}{array.shape}".encode())
            piece = array.data
        digest.update(b"|")
        digest.update(piece)
    return digest.hexdigest()


def _numbered(chunks: Iterator[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    start = 0
    for chunk in chunks:
        yield start, chunk
        start += len(chunk)


class Memory:
    """What one process keeps from one run to the next, so that a sweep draws images and runs the frozen stem once.

    It takes the place of `FeatureCache`, in memory and in the type in which the numbers come, which changes none of them.

    Parameters
    ----------
    limit_mb : of activations; the ones unused for longest go.
    n_results : results of `recall` that are kept.
    """

    dtype = None  # `FeatureCache` has one of its own

    def __init__(self, limit_mb: float = 512, n_results: int = 16):
        self.limit_mb, self.n_results = limit_mb, n_results
        self._arrays: dict[str, np.ndarray] = {}  # both in the order of their last use
        self._results: dict[str, object] = {}

    def get(self, key: str, shape: tuple[int, ...], chunks: Iterator[np.ndarray]) -> np.ndarray:
        """As `FeatureCache.get`."""
        found = self._arrays.pop(key, None)
        if found is None or found.shape != tuple(shape):
            found = np.concatenate(list(chunks))
        self._arrays[key] = found
        while (
            len(self._arrays) > 1
            and sum(array.nbytes for array in self._arrays.values()) > self.limit_mb * 2**20
        ):
            self._arrays.pop(next(iter(self._arrays)))
        return found

    def recall(self, function, *arguments, **options):
        """`function(*arguments, **options)`, or what it gave when it was last called with the same ones."""
        key = repr((function.__module__, function.__qualname__, arguments, sorted(options.items())))
        found = self._results.pop(key, None)
        if found is None:
            found = function(*arguments, **options)
        self._results[key] = found
        while len(self._results) > self.n_results:
            self._results.pop(next(iter(self._results)))
        return found
