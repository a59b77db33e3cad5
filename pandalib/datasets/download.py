"""Downloads that end whole or not at all: resumed after a break, checked by hash, safe beside another process.

A file grows as NAME.part beside its place and is renamed when its hash is right. What the server said of it (address,
ETag, date, length) lies in NAME.part.json: only when the server still says the same is the rest appended.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from pandalib.io import write_atomically
from pandalib.progress import progress as progress_bar

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3  # at one address, when something breaks on the way
PAUSE = 1.0  # seconds before the second attempt, twice as long before the third
REDIRECTS = 5


class DownloadError(OSError):
    """A file could not be fetched, or is not the one expected; the message says from where and why."""


class _Refused(Exception):
    """This address has nothing for us: try the next one."""


class _Broken(Exception):
    """The connection broke on the way: try to go on."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = REDIRECTS
    max_repeats = 2

    def redirect_request(self, request, file, code, message, headers, address):
        if urlsplit(request.full_url).scheme == "https" and urlsplit(address).scheme != "https":
            raise _Refused("it leads from https to an address without")
        _require_http(address)
        return super().redirect_request(request, file, code, message, headers, address)


def download(
    urls: str | Sequence[str],
    path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    n_bytes: int | None = None,
    timeout: float = TIMEOUT,
    progress: bool = True,
) -> Path:
    """Fetch one file from the first of `urls` that has it. A file that is there already is checked, not fetched.

    Without any hash the one of the first download is kept in PATH.sha256 and holds from then on (`check_file`).
    A second process that wants the same file waits for the first.

    Parameters
    ----------
    urls : addresses of the same file, http or https, tried in turn.
    path : where to put it. Its folder is made.
    sha256, md5 : hexadecimal; n_bytes : length. None where it is not known.
    timeout : seconds without a byte before a connection counts as broken.
    progress : show a bar.

    Returns
    -------
    Path of the file.

    Raises
    ------
    DownloadError, an OSError, with the reason of each address; what has arrived is kept for the next attempt, except
    when its hash is wrong. ValueError for an address that is not http(s), or no address at all.
    """
    urls, path = [urls] if isinstance(urls, str) else list(urls), Path(path)
    if not urls:
        raise ValueError(f"no address to get {path.name!r} from: expected at least one.")
    for url in urls:
        try:
            _require_http(url)
        except _Refused as error:
            raise ValueError(f"address {url!r}: {error}.") from None
    expected = dict(sha256=sha256, md5=md5, n_bytes=n_bytes)
    reasons = []
    if path.exists():
        wrong = _differences(path, **expected)
        if not wrong:
            return path
        reasons.append(f"the one in {str(path.parent)!r} is another: {wrong}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(path.name + ".part"), progress) as part:
        if path.exists() and not _differences(
            path, **expected
        ):  # another process has just finished it
            _forget(part)
            return path
        for url in urls:
            try:
                _fetch(url, part, n_bytes, timeout, progress)
                wrong = _differences(Path(part.name), **expected)
                if wrong:
                    part.truncate(0)
                    raise _Refused(f"another file than expected came: {wrong}")
            except _Refused as error:
                reasons.append(f"{url} ({error})")
                continue
            os.replace(part.name, path)
            if sha256 is None and md5 is None and not recorded(path):
                record_hash(path)
            _told(part).unlink(missing_ok=True)
            return path
        if os.fstat(part.fileno()).st_size == 0:
            _forget(part)
        raise DownloadError(
            f"{path.name} could not be fetched: {'; '.join(reasons)}. Check the connection, or whether the file has moved."
        )


def check_file(
    path, *, sha256: str | None = None, md5: str | None = None, n_bytes: int | None = None
) -> None:
    """Raise DownloadError where a file is not the one expected. Without hashes, the one recorded in PATH.sha256 counts."""
    wrong = _differences(Path(path), sha256, md5, n_bytes)
    if wrong:
        raise DownloadError(
            f"{str(path)!r} is not the file expected: {wrong}. Delete it and get it again."
        )


def record_hash(path) -> None:
    """Keep the SHA-256 of a file in PATH.sha256: from then on it holds where nobody has published one."""
    path = Path(path)
    write_atomically(_record(path), f"{hashes(path)['sha256']}  {path.name}\n".encode())


def recorded(path) -> bool:
    return _record(Path(path)).exists()


def hashes(path: Path) -> dict[str, str]:
    """SHA-256 and MD5 of a file, in one pass."""
    digests = dict(sha256=hashlib.sha256(), md5=hashlib.md5(usedforsecurity=False))
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _differences(path: Path, sha256: str | None, md5: str | None, n_bytes: int | None) -> str:
    """What is wrong with a file, in words; nothing if it is the one expected."""
    size = path.stat().st_size
    if n_bytes is not None and size != n_bytes:
        return f"it has {size} bytes, not {n_bytes}"
    expected = {name: value.lower() for name, value in (("sha256", sha256), ("md5", md5)) if value}
    kept = _record(path.with_name(path.name.removesuffix(".part")))
    if not expected and kept.exists():
        expected["sha256"] = kept.read_text().split()[0].lower()
    found = hashes(path) if expected else {}
    return "; ".join(
        f"its {name} is {found[name]}, not {value}"
        for name, value in expected.items()
        if found[name] != value
    )


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _told(part: BinaryIO) -> Path:
    return Path(part.name + ".json")


def _forget(part: BinaryIO) -> None:
    Path(part.name).unlink(missing_ok=True)
    _told(part).unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, shown: bool):
    """The part file, open and ours alone until it is closed; the lock of a process that dies goes with it."""
    while True:
        part = open(str(path), "ab", buffering=0)
        try:
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if shown:
                    print(
                        f"another process is fetching {path.stem}: waiting for it", file=sys.stderr
                    )
                fcntl.flock(part, fcntl.LOCK_EX)
            # While we waited, whoever had the lock may have renamed or deleted the file that we opened.
            if path.exists() and os.path.samestat(os.fstat(part.fileno()), path.stat()):
                break
        except BaseException:
            part.close()
            raise
        part.close()
    with part:
        yield part


def _require_http(address: str) -> None:
    if urlsplit(address).scheme not in ("http", "https"):
        raise _Refused("only http and https addresses are read")


def _fetch(url: str, part: BinaryIO, n_bytes: int | None, timeout: float, shown: bool) -> None:
    """Bring the part file to the end of what one address offers, resuming after a break."""
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE * attempt)
        try:
            return _receive(url, part, n_bytes, timeout, shown)
        except _Broken as error:
            if attempt == ATTEMPTS - 1:
                kept = (
                    "; what has arrived is kept for the next attempt"
                    if os.fstat(part.fileno()).st_size
                    else ""
                )
                raise _Refused(f"{error}{kept}") from error


def _receive(url: str, part: BinaryIO, n_bytes: int | None, timeout: float, shown: bool) -> None:
    have = os.fstat(part.fileno()).st_size
    told = _read_told(part) if have else {}
    if (
        have and told.get("url") == url and told.get("total") == have
    ):  # stopped between the last byte and the check
        return
    request = urllib.request.Request(
        url, headers={"User-Agent": "pandalib", "Accept-Encoding": "identity"}
    )
    if told.get("url") == url and (validator := _strong(told)):
        request.add_header("Range", f"bytes={have}-")
        request.add_header(
            "If-Range", validator
        )  # a server whose file has changed sends all of the new one
    try:
        answer = urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            part.truncate(0)  # the file there is another one by now
        words = f"HTTP {error.code} {error.reason}".split("\n")[0].rstrip(".")
        raise (_Broken if error.code in (416, 429) or error.code >= 500 else _Refused)(
            words
        ) from error
    except urllib.error.URLError as error:
        raise _Broken(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(error) or type(error).__name__) from error
    with answer:
        start, total = _agree(answer, have, told)
        if n_bytes is not None and total is not None and total != n_bytes:
            raise _Refused(f"it offers {total} bytes, not the {n_bytes} expected")
        if answer.headers.get_content_type() == "text/html":
            raise _Refused("it answers with a web page, not with the file")
        _require_space(part, (total or n_bytes or 0) - start)
        if start == 0:
            part.truncate(0)
            said = dict(
                url=url,
                etag=answer.headers["ETag"],
                modified=answer.headers["Last-Modified"],
                total=total,
            )
            write_atomically(_told(part), json.dumps(said).encode())
        got = start + _copy(answer, part, start, total, n_bytes, shown)
    if total is not None and got < total:
        raise _Broken(f"it ended after {got} of {total} bytes")


def _read_told(part: BinaryIO) -> dict:
    try:
        told = json.loads(_told(part).read_text())
        return told if isinstance(told, dict) else {}
    except (OSError, ValueError):
        return {}


def _strong(told: dict) -> str | None:
    """What proves that a server still has the same file, byte for byte; a weak ETag (W/) does not."""
    etag = told.get("etag")
    return etag if etag and not etag.startswith("W/") else told.get("modified")


def _agree(answer, have: int, told: dict) -> tuple[int, int | None]:
    """Where the answer's bytes belong, and the length of the whole file where the server says it."""
    if answer.status != 206:
        length = answer.headers["Content-Length"] or ""
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers["Content-Range"] or "")
    same = all(
        answer.headers[name] in (None, told.get(key))
        for name, key in (("ETag", "etag"), ("Last-Modified", "modified"))
    )
    if (
        not found
        or int(found[1]) != have
        or told.get("total") not in (None, int(found[2]))
        or not same
    ):
        raise _Refused(
            "it continues another file than the one begun; delete the .part file to begin anew"
        )
    return have, int(found[2])


def _require_space(part: BinaryIO, needed: int) -> None:
    free = shutil.disk_usage(Path(part.name).parent).free
    if needed > free:
        folder = Path(part.name).parent
        raise DownloadError(
            f"no room: {str(folder)!r} has {free / 1e9:.2f} GB free, and {needed / 1e9:.2f} GB of {Path(part.name).stem} are to come. Make room, or choose another disk."
        )


def _copy(
    answer, part: BinaryIO, start: int, total: int | None, n_bytes: int | None, shown: bool
) -> int:
    """Append what comes; the number of bytes. An answer without a length may not grow beyond what is expected."""
    bar = progress_bar((), Path(part.name).stem, shown=shown, total=total or n_bytes)
    bar.unit, bar.unit_scale = "B", True
    bar.update(start)
    got = 0
    try:
        while chunk := _read(answer):
            if n_bytes is not None and start + got + len(chunk) > n_bytes:
                part.truncate(0)
                raise _Refused(f"more than the {n_bytes} bytes expected came")
            rest = memoryview(chunk)
            while rest:
                rest = rest[part.write(rest) :]
            got += len(chunk)
            bar.update(len(chunk))
        os.fsync(part.fileno())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DownloadError(
                f"no room is left in {str(Path(part.name).parent)!r} for {Path(part.name).stem}, after {start + got} bytes: "
                f"make room and start again, it goes on from there."
            ) from error
        raise
    finally:
        bar.close()
    return got


def _read(answer) -> bytes:
    try:
        return answer.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(error) or type(error).__name__) from error
