"""Downloads against a server of our own that breaks, stalls, lies and moves: the file is whole and right, or absent."""

import errno
import hashlib
import json
import multiprocessing
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from pandalib.datasets import download as module
from pandalib.datasets.download import DownloadError, check_file, download, hashes, record_hash

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.breaks, self.requests, self.stop = (
            CONTENT,
            '"one"',
            [],
            [],
            threading.Event(),
        )

    def url(self, path="file"):
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, request, address):
        pass  # a client that hangs up is part of the game


class Handler(BaseHTTPRequestHandler):
    """/file with ranges; server.breaks says after how many bytes of each answer the connection breaks."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server, path = self.server, self.path.strip("/")
        server.requests.append((path, self.headers["Range"], self.headers["If-Range"]))
        if path.startswith("to/"):
            return self.answer(302, {"Location": path[3:]})
        if path == "circle":
            return self.answer(302, {"Location": "/circle"})
        if path == "page":
            return self.answer(
                200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>we have moved</html>"
            )
        if path == "busy":
            return self.answer(503)
        if path == "stall":
            self.answer(200, {"Content-Length": str(len(CONTENT))}, CONTENT[:1000], length=False)
            return server.stop.wait(20)
        if path == "unsized":
            return self.answer(200, {}, server.content, length=False)
        if path == "slow":
            self.answer(200, {"Content-Length": str(len(CONTENT))}, CONTENT[:100_000], length=False)
            time.sleep(0.7)
            return self.wfile.write(CONTENT[100_000:])
        if path not in ("file", "weak", "rangeless", "liar"):
            return self.answer(404)
        content, etag = server.content, "W/" + server.etag if path == "weak" else server.etag
        start, headers = 0, {} if path == "rangeless" else {"ETag": etag}
        asked = self.headers["Range"]
        if asked and path == "liar":  # continues from elsewhere
            return self.answer(
                206, {"Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}"}, content
            )
        if asked and path == "file" and self.headers["If-Range"] in (None, etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        headers["Content-Length"] = str(len(body))
        self.answer(
            206 if start else 200,
            headers,
            body[: server.breaks.pop(0)] if server.breaks else body,
            length=False,
        )

    def answer(self, status, headers={}, body=b"", length=True):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0)
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.stop.set()
        server.shutdown()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_whole(server, tmp_path):
    path = download(
        server.url(),
        tmp_path / "new" / "a.bin",
        sha256=SHA256.upper(),
        md5=MD5,
        n_bytes=len(CONTENT),
    )
    assert path.read_bytes() == CONTENT and names(path.parent) == ["a.bin"]
    assert hashes(path) == dict(sha256=SHA256, md5=MD5)


def test_what_is_there_is_checked_and_not_fetched(server, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    download(server.url(), path, sha256=SHA256)
    assert not server.requests
    path.write_bytes(CONTENT[:-1] + b"?")  # damaged on the disk since
    download(server.url(), path, sha256=SHA256)
    assert len(server.requests) == 1 and path.read_bytes() == CONTENT


def test_a_damaged_file_stays_where_no_better_one_comes(server, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(DownloadError, match=r"is another: its sha256 is .*HTTP 404"):
        download(server.url("nowhere"), path, sha256=SHA256)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_resumes_after_a_break_in_the_same_call(server, tmp_path):
    server.breaks = [100_000, 50_000]
    assert download(server.url(), tmp_path / "a.bin", sha256=SHA256).read_bytes() == CONTENT
    assert [asked for _, asked, _ in server.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert names(tmp_path) == ["a.bin"]


def test_resumes_in_a_later_call(server, tmp_path):
    server.breaks = [10_000, 20_000, 30_000]
    with pytest.raises(
        DownloadError, match="it ended after 60000 of 300000 bytes; what has arrived is kept"
    ):
        download(server.url(), tmp_path / "a.bin", sha256=SHA256)
    assert (
        names(tmp_path) == ["a.bin.part", "a.bin.part.json"]
        and (tmp_path / "a.bin.part").read_bytes() == CONTENT[:60_000]
    )
    server.requests.clear()
    download(server.url(), tmp_path / "a.bin", sha256=SHA256)
    assert server.requests == [("file", "bytes=60000-", '"one"')] and names(tmp_path) == ["a.bin"]


def test_begins_anew_when_the_file_has_changed(server, tmp_path):
    server.breaks = [10_000] * 3
    with pytest.raises(DownloadError):
        download(server.url(), tmp_path / "a.bin")
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert download(server.url(), tmp_path / "a.bin").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("path", ["weak", "rangeless"])
def test_begins_anew_where_nothing_proves_that_it_is_the_same_file(server, tmp_path, path):
    server.breaks = [10_000]
    assert download(server.url(path), tmp_path / "a.bin", sha256=SHA256).read_bytes() == CONTENT
    assert [asked for _, asked, _ in server.requests] == [None, None]


def test_a_part_of_unknown_origin_is_not_continued(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    (tmp_path / "a.bin.part.json").write_text("{nonsense")
    assert download(server.url(), tmp_path / "a.bin", sha256=SHA256).read_bytes() == CONTENT


def test_an_answer_that_continues_elsewhere_is_refused(server, tmp_path):
    server.breaks = [10_000]
    with pytest.raises(DownloadError, match="continues another file"):
        download(server.url("liar"), tmp_path / "a.bin", sha256=SHA256)
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:10_000]


def test_stopped_between_the_last_byte_and_the_check(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    (tmp_path / "a.bin.part.json").write_text(
        json.dumps(dict(url=server.url(), etag='"one"', modified=None, total=len(CONTENT)))
    )
    assert (
        download(server.url(), tmp_path / "a.bin", sha256=SHA256).read_bytes() == CONTENT
        and not server.requests
    )


@pytest.mark.parametrize(
    "expected", [dict(sha256="0" * 64), dict(md5="0" * 32), dict(sha256=SHA256, md5="0" * 32)]
)
def test_wrong_hash_leaves_nothing(server, tmp_path, expected):
    with pytest.raises(DownloadError, match="another file than expected came: its .* not 0000"):
        download(server.url(), tmp_path / "a.bin", **expected)
    assert names(tmp_path) == []


def test_wrong_length_is_not_even_fetched(server, tmp_path):
    with pytest.raises(DownloadError, match="offers 300000 bytes, not the 299999 expected"):
        download(server.url(), tmp_path / "a.bin", n_bytes=len(CONTENT) - 1)
    assert names(tmp_path) == []


def test_an_answer_without_length(server, tmp_path):
    assert (
        download(server.url("unsized"), tmp_path / "a.bin", sha256=SHA256).read_bytes() == CONTENT
    )
    with pytest.raises(DownloadError, match="more than the 1000 bytes expected"):
        download(server.url("unsized"), tmp_path / "b.bin", n_bytes=1000)
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    "path, words",
    [
        ("nowhere", "HTTP 404"),
        ("circle", "infinite loop"),
        ("page", "web page"),
        ("busy", "HTTP 503"),
        ("stall", "timed out"),
        ("to/ftp://x/y", "FTP|ftp|http"),
    ],
)
def test_dead_ends_are_named_and_the_next_address_is_tried(server, tmp_path, path, words):
    with pytest.raises(DownloadError, match=words) as error:
        download(server.url(path), tmp_path / "a.bin", timeout=0.3)
    assert (
        server.url(path) in str(error.value)
        and "\n" not in str(error.value)
        and not (tmp_path / "a.bin").exists()
    )
    got = download([server.url(path), server.url()], tmp_path / "a.bin", sha256=SHA256, timeout=0.3)
    assert got.read_bytes() == CONTENT and names(tmp_path) == ["a.bin"]


def test_a_mirror_with_another_file_is_passed_over(server, tmp_path):
    with Server() as other:
        other.content = b"x" * len(CONTENT)
        threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
        assert (
            download([other.url(), server.url()], tmp_path / "a.bin", sha256=SHA256).read_bytes()
            == CONTENT
        )
        other.shutdown()


def test_a_redirection_is_followed(server, tmp_path):
    assert (
        download(server.url("to//file"), tmp_path / "a.bin", sha256=SHA256).read_bytes() == CONTENT
    )


def test_nobody_there(tmp_path):
    with Server() as server:
        url = server.url()
    with pytest.raises(DownloadError, match="[Rr]efused"):
        download(url, tmp_path / "a.bin")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "url", ["ftp://host/a", "file:///etc/hostname", "/etc/hostname", "data:,x"]
)
def test_only_http(tmp_path, url):
    with pytest.raises(ValueError, match="only http and https"):
        download(["http://127.0.0.1:9/a", url], tmp_path / "a.bin")
    with pytest.raises(ValueError, match="at least one"):
        download([], tmp_path / "a.bin")


def test_from_https_to_http_is_refused():
    request = module.urllib.request.Request("https://host/a")
    with pytest.raises(module._Refused, match="from https"):
        module._Redirects().redirect_request(request, None, 302, "Found", {}, "http://host/b")


def test_without_any_hash_the_first_download_counts(server, tmp_path):
    path = download(server.url(), tmp_path / "a.bin")
    assert (tmp_path / "a.bin.sha256").read_text() == f"{SHA256}  a.bin\n"
    path.write_bytes(b"damaged")
    with pytest.raises(DownloadError, match="is not the file expected: its sha256 is"):
        check_file(path)
    download(server.url(), path)  # fetched again, and held against the first
    assert path.read_bytes() == CONTENT
    check_file(path)
    path.unlink()
    server.content = CONTENT[::-1]
    with pytest.raises(DownloadError, match=f"not {SHA256}"):
        download(server.url(), path)
    assert not path.exists()


def test_check_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    check_file(path)  # nothing is known, so nothing is wrong
    check_file(path, sha256=SHA256, md5=MD5, n_bytes=len(CONTENT))
    for wrong in (dict(sha256=MD5), dict(md5=SHA256), dict(n_bytes=1)):
        with pytest.raises(DownloadError, match="Delete it and get it again"):
            check_file(path, **wrong)
    record_hash(path)
    check_file(path)


def test_no_room(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("", (), dict(free=1000)))
    with pytest.raises(DownloadError, match="no room: .* Make room"):
        download(server.url(), tmp_path / "a.bin")
    monkeypatch.undo()
    assert not (tmp_path / "a.bin").exists()


def test_the_disk_fills_up_on_the_way_and_it_goes_on_later(server, tmp_path, monkeypatch):
    class Full:
        def __init__(self, part):
            self.part, self.name = part, part.name

        def write(self, content):
            if self.part.tell() >= 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.part.write(content[:50_000])  # a short write, as before the disk is full

        def fileno(self):
            return self.part.fileno()

    real = module._copy
    monkeypatch.setattr(
        module, "_copy", lambda answer, part, *rest: real(answer, Full(part), *rest)
    )
    with pytest.raises(DownloadError, match="no room is left in .* make room and start again"):
        download(server.url(), tmp_path / "a.bin", sha256=SHA256)
    part = (tmp_path / "a.bin.part").read_bytes()
    assert len(part) >= 100_000 and part == CONTENT[: len(part)]
    monkeypatch.setattr(module, "_copy", real)
    assert download(server.url(), tmp_path / "a.bin", sha256=SHA256).read_bytes() == CONTENT
    assert server.requests[-1][1] == f"bytes={len(part)}-"


def test_two_processes_want_the_same_file(server, tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(
            target=download,
            args=(server.url("slow"), tmp_path / "a.bin"),
            kwargs=dict(sha256=SHA256),
        )
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and names(tmp_path) == ["a.bin"]
    assert len(server.requests) == 1  # the second waited and found it done


def test_who_waited_for_a_part_that_was_deleted_gets_one_of_its_own(tmp_path):
    part, found = tmp_path / "a.bin.part", []

    def wait():
        with module._locked(part, False) as mine:
            mine.write(b"mine")
            found.append(part.read_bytes())

    with module._locked(part, False):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)
        part.unlink()
    waiting.join(10)
    assert found == [b"mine"]
