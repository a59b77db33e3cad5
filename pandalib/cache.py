"""Two caches for the frozen part's output: on disk for later runs, in memory during a sweep.

On disk each array is a file in numpy's own format (.npy), in float16, whose last 32 bytes are a
SHA-256 of everything before them. Its name is the hash of all that the numbers depend on: weights,
transform, images. Files are written atomically, and a damaged one is computed again. So several
processes may fill one folder, and deleting it is safe.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from pandalib.io import atomic_file, cache_folder

_HASH_BYTES = 32
_ABANDONED = 3600  # seconds after which an unfinished file belongs to a process that died


class FeatureCache:
    """Arrays on disk by key, in float16.

    Parameters
    ----------
    folder : path, optional
        Default: PANDALIB_CACHE, else data/cache.
    limit_gb : float
        Beyond this size the files unused for longest are deleted, but never the newest one.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from pandalib.cache import FeatureCache, content_key
    >>> images = np.arange(6.0).reshape(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache, key = FeatureCache(folder), content_key("halved", images)
    ...     first = cache.get(key, (3, 2), [images[:2] / 2, images[2:] / 2])
    ...     again = cache.get(key, (3, 2), [])  # nothing is computed
    ...     again.tolist()
    [[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]]
    """

    def __init__(self, folder: Path | str | None = None, *, limit_gb: float = 4.0):
        self.folder = Path(folder) if folder is not None else cache_folder()
        self.limit_gb = limit_gb

    def get(self, key: str, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> np.ndarray:
        """The array stored under `key`; if there is none, it is computed, stored and returned.

        Raises OSError if the folder cannot be written.

        Parameters
        ----------
        key : str
            Stands for everything that the numbers depend on; see `content_key`.
        shape : tuple of int
            Of the whole array, (N, ...).
        chunks : iterable of arrays
            Its parts along the first axis, computed only when needed.

        Returns
        -------
        array : ndarray, shape (N, ...), float16
            Read from the disk as it is used; writing into it changes no file.
        """
        path = self.folder / f"{key[:40]}.float16.npy"
        array = self._read(path, shape)
        if array is None:
            try:
                self._write(path, shape, chunks)
            except OSError as error:
                raise OSError(
                    f"features cannot be kept: {error} Or point PANDALIB_CACHE to another folder, "
                    "or work with cache=None."
                ) from error
            self._evict(keep=path)
            array = self._read(path, shape)
        if array is None:
            raise OSError(f"{path} does not hold the {shape} numbers just computed.")
        return array

    def _write(self, path: Path, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> None:
        digest = hashlib.sha256(self._header(shape))
        with atomic_file(path) as file:
            file.write(self._header(shape))
            for chunk in chunks:
                numbers = np.ascontiguousarray(chunk, dtype=np.float16)
                digest.update(numbers)
                file.write(numbers)
            file.write(digest.digest())

    def _read(self, path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
        """The stored array; None if it is absent, damaged or of another shape."""
        header = self._header(shape)
        try:
            content = np.memmap(path, mode="c")
            if hashlib.sha256(content[:-_HASH_BYTES]).digest() != bytes(content[-_HASH_BYTES:]):
                return None
            if bytes(content[: len(header)]) != header:
                return None
            array = content[len(header) : -_HASH_BYTES].view(np.float16).reshape(shape)
        except (OSError, ValueError):
            return None
        with suppress(OSError):  # a read-only folder will do
            os.utime(path)  # used just now: the last to be evicted
        return array

    def _header(self, shape: tuple[int, ...]) -> bytes:
        """The bytes with which numpy begins a .npy file of such an array."""
        header = io.BytesIO()
        description = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, description)
        return header.getvalue()

    def _evict(self, keep: Path) -> None:
        """Delete the files unused for longest, and the remains of killed processes."""
        files = []
        for path in [*self.folder.glob("*.npy"), *self.folder.glob(".*.part")]:
            with suppress(OSError):  # another process deleted it first
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        excess = sum(size for _, size, _ in files) - self.limit_gb * 1e9
        for used, size, path in sorted(files):
            unfinished = path.suffix == ".part"
            abandoned = unfinished and time.time() - used > _ABANDONED
            if abandoned or (excess > 0 and not unfinished and path != keep):
                with suppress(OSError):  # Windows does not delete a file that is in use
                    path.unlink()
                    excess -= size


class Memory:
    """Replaces `FeatureCache` in a process with many runs, as in a sweep; nothing is rounded.

    Parameters
    ----------
    limit_mb : float
        Beyond this size the arrays unused for longest are dropped.
    n_results : int
        How many results `recall` keeps.
    """

    def __init__(self, limit_mb: float = 512, n_results: int = 16):
        self.limit_mb = limit_mb
        self.n_results = n_results
        self._arrays: dict[str, np.ndarray] = {}  # both in the order of their last use
        self._results: dict[str, object] = {}

    def get(self, key: str, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> np.ndarray:
        """As `FeatureCache.get`."""
        array = self._arrays.pop(key, None)
        if array is None:
            array = np.concatenate(list(chunks))
        self._arrays[key] = array
        size = sum(other.nbytes for other in self._arrays.values())
        while size > self.limit_mb * 2**20 and len(self._arrays) > 1:
            size -= self._arrays.pop(next(iter(self._arrays))).nbytes
        return array

    def recall(self, function, *arguments, **options):
        """`function(*arguments, **options)`, or its result from the last time."""
        key = repr((function.__module__, function.__qualname__, arguments, sorted(options.items())))
        result = self._results.pop(key, None)
        if result is None:
            result = function(*arguments, **options)
        self._results[key] = result
        if len(self._results) > self.n_results:
            self._results.pop(next(iter(self._results)))
        return result


def content_key(*parts) -> str:
    """SHA-256 of strings, arrays and lazy images: equal content, equal key.

    A sequence with a method `fingerprint()`, as folders of files have, is not decoded.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            content = part.encode()
        elif hasattr(part, "fingerprint"):
            content = part.fingerprint().encode()
        else:
            array = np.ascontiguousarray(part)
            digest.update(f"{array.dtype}{array.shape}".encode())
            content = array.data
        digest.update(b"|")
        digest.update(content)
    return digest.hexdigest()
