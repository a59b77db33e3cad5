"""Faults, each really caused: kill -9, a full disk, a read-only disk, flipped bits. What was there is whole, or there is one clear error.

docs/faults.md lists every fault, what comes of it, and the test that causes it, here or in the tests of the module concerned.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import images, small_backbone
from worlds import fill, in_child, killed_at, mounts_or_skip, read_only, small_disk

from pandalib.datasets import download as download_module
from pandalib.methods.panda import fit_compactness
from pandalib.datasets.archives import unpack
from pandalib.backbones import load_backbone
from pandalib.weights import verify_embedded
from pandalib.cache import FeatureCache, content_key
from pandalib.inspection.storage import read_facts
from pandalib.methods.ewc import Fisher, fisher_information, upstream_fisher
from pandalib.experiments.sweep import (
    FORMAT,
    KEYS,
    PLAN,
    RUNS,
    read_plan,
    read_results,
    write_plan,
    write_result,
)
from pandalib.io import ROOT, data_folder, sha256_of, write_atomically
from pandalib.experiments.grids import file_name, identity, load_grid
from pandalib.inspection.inspector import Inspector
from pandalib.io import read_tensors, sealed, unsealed, write_tensors
from pandalib.datasets.folder import write_images, write_mvtec
from pandalib.datasets.load import OneClassTask

SETTINGS = dict(epochs=2, lr=0.5, max_grad_norm=5e-3, batch_size=16, progress=False)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """So that what a fork works out has the same bits as what the test works out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------- everything that writes

OLD, NEW = 0, 1
FLOATS = (
    np.random.default_rng(0).normal(size=(2, 60, 8, 8, 8)).astype(np.float16)
)  # of the cache, 61 kB each
PHOTOGRAPHS = images(22, 32)


class Writer:
    """Writes version OLD or NEW of something into a folder and reads back which is there: OLD, NEW, or None for neither."""

    replaces = True  # NEW may be written over OLD; otherwise only into a new or an empty folder

    def __init__(self, write, read, replaces=True):
        self.write, self.read, self.replaces = write, read, replaces


def network():
    return small_backbone()


def write_cache(folder, version):
    data = FLOATS[version]
    return FeatureCache(folder / "cache").get(
        content_key(data), data.shape, iter(np.split(data, 6))
    )


def read_cache(folder):
    """NEW counts: each version has a file of its own, and a damaged one would be an error here."""
    there = [
        version
        for version in (OLD, NEW)
        if (folder / "cache" / f"{content_key(FLOATS[version])[:40]}.float16.features").exists()
    ]
    for version in there:
        data = FLOATS[version]
        assert np.array_equal(
            FeatureCache(folder / "cache").get(content_key(data), data.shape, iter(())), data
        )
    return max(there, default=None)


@pytest.fixture(scope="module")
def writers():
    backbone = network()
    stem = backbone.frozen_features(images(33))
    fisher = fisher_information(backbone, images(2), progress=False)
    fishers = [
        Fisher(
            fisher.values,
            fisher.weights_sha256,
            fisher.adapt_from,
            fisher.truncate_after,
            "test",
            n,
        )
        for n in (OLD, NEW)
    ]
    inspectors = [
        Inspector(
            backbone, n_maps=6, n_images=3, sigma=1.0, false_alarm_rate=0.2, progress=False
        ).fit(PHOTOGRAPHS[: 12 + 2 * n])
        for n in (OLD, NEW)
    ]
    whole = fit_compactness(backbone, stem, **SETTINGS)
    task = OneClassTask(
        "made:up",
        PHOTOGRAPHS[:6],
        PHOTOGRAPHS[6:10],
        np.array([0, 0, 1, 1]),
        ("good", "good", "bad", "bad"),
    )
    archive = {"a/first": b"1" * 30_000, "b/second": bytes(range(256)) * 100}

    def write_checkpoints(folder, version):
        if version == OLD:  # one epoch of the two
            return fit_compactness(
                backbone, stem, folder=folder / "run", **{**SETTINGS, "epochs": 1}
            )
        return fit_compactness(backbone, stem, folder=folder / "run", **SETTINGS)

    def read_checkpoints(folder):
        """How far it had come; whoever goes on must arrive where an undisturbed run arrives."""
        if not (folder / "run" / "resume.safetensors").exists():
            return None
        epochs = read_tensors(folder / "run" / "resume.safetensors")[1]["epoch"]
        copy = folder / "copy"
        shutil.copytree(folder / "run", copy)
        again = fit_compactness(backbone, stem, folder=copy, **SETTINGS)
        assert again.losses == whole.losses and again.epochs == whole.epochs
        assert all(
            torch.equal(a, b)
            for one, other in zip(again, whole)
            for a, b in zip(one.head.parameters(), other.trainable.parameters())
        )
        shutil.rmtree(copy)
        return epochs - 1

    def read_fisher(folder):
        path = folder / "fisher.safetensors"
        return Fisher.load(path, backbone).n_samples if path.exists() else None

    def read_detector(folder):
        if not (folder / "detector" / "detector.json").exists():
            return None
        found = Inspector.load(folder / "detector", backbone=backbone)
        version = (len(found.features_) - 12) // 2
        assert np.array_equal(
            found.score(PHOTOGRAPHS[-3:]), inspectors[version].score(PHOTOGRAPHS[-3:])
        )
        return version

    def read_photographs(folder):
        if not (folder / "new").exists():
            return None
        assert sum(path.is_file() for path in (folder / "new").rglob("*")) == 10
        return NEW

    def write_archive(folder, version):
        path = folder.parent / "archive.zip"
        with zipfile.ZipFile(path, "w") as file:
            for name, content in archive.items():
                file.writestr(name, content)
        return unpack(path, folder / "new")

    def read_archive(folder):
        if not (folder / "new").exists():
            return None
        assert {
            str(path.relative_to(folder / "new")): path.read_bytes()
            for path in (folder / "new").rglob("*")
            if path.is_file()
        } == archive
        return NEW

    def read_file(folder):
        path = folder / "result.json"
        return unsealed(path.read_bytes())["version"] if path.exists() else None

    return {
        "stem cache": Writer(write_cache, read_cache),
        "checkpoints": Writer(write_checkpoints, read_checkpoints),
        "fisher": Writer(
            lambda folder, version: fishers[version].save(folder / "fisher.safetensors"),
            read_fisher,
        ),
        "detector": Writer(
            lambda folder, version: inspectors[version].save(folder / "detector"), read_detector
        ),
        "any file": Writer(
            lambda folder, version: write_atomically(
                folder / "result.json", sealed(dict(version=version, filler=30_000 * "x"))
            ),
            read_file,
        ),
        "images": Writer(
            lambda folder, version: write_images(PHOTOGRAPHS[:10], folder / "new"),
            read_photographs,
            replaces=False,
        ),
        "export": Writer(
            lambda folder, version: write_mvtec(task, folder / "new"),
            read_photographs,
            replaces=False,
        ),
        "archive": Writer(write_archive, read_archive, replaces=False),
    }


EVERY = [
    "stem cache",
    "checkpoints",
    "fisher",
    "detector",
    "any file",
    "images",
    "export",
    "archive",
]


def visible(folder: Path) -> dict[str, bytes]:
    """All files but hidden ones and those in hidden folders: a killed process cannot take its temporary files with it."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in files.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def prepared(writer: Writer, folder: Path) -> int | None:
    """An empty folder, or one with the old version: which."""
    folder.mkdir(parents=True)
    if not writer.replaces:
        return None
    writer.write(folder, OLD)
    return OLD


# ---------------------------------------------------------------- kill -9


@pytest.mark.parametrize("name", EVERY)
def test_killed_at_every_step_of_a_write(writers, name, tmp_path):
    """The old version is there, or the new one, and writing it again succeeds."""
    writer, seen = writers[name], []
    before = prepared(writer, tmp_path / "whole")
    for step in range(40):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole", folder)
        killed = killed_at(step, lambda: writer.write(folder, NEW))
        seen.append(writer.read(folder))
        if not killed:
            break
        assert seen[-1] in (before, NEW)
        writer.write(folder, NEW)
        assert writer.read(folder) == NEW
    assert seen[-1] == NEW and step >= 1, "the child was never killed"
    assert seen == sorted(
        seen, key=lambda version: -1 if version is None else version
    )  # once new, never old again


def test_killed_in_the_middle_of_the_stem_cache(tmp_path):
    """With half of the numbers written, as when the notebook's kernel is ended."""

    def half():
        yield FLOATS[0][:30]
        os.kill(os.getpid(), signal.SIGKILL)

    key = content_key(FLOATS[0])
    with pytest.raises(SystemExit):
        in_child(lambda: FeatureCache(tmp_path).get(key, FLOATS[0].shape, half()))
    (remains,) = tmp_path.iterdir()
    assert remains.name.startswith(".") and remains.name.endswith(".part")
    assert np.array_equal(
        FeatureCache(tmp_path).get(key, FLOATS[0].shape, iter([FLOATS[0]])), FLOATS[0]
    )
    assert list(visible(tmp_path)) == [f"{key[:40]}.float16.features"]
    os.utime(remains, (1, 1))
    FeatureCache(tmp_path).get(content_key("other"), FLOATS[1].shape, iter([FLOATS[1]]))
    assert not remains.exists()  # cleared away when it is old enough to belong to nobody


def test_killed_in_the_middle_of_a_download(tmp_path, monkeypatch):
    """What had come is kept, and the next call asks for the rest only."""
    from test_download import CONTENT, SHA256, Handler, Server

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        real = Handler.do_GET
        monkeypatch.setattr(
            Handler, "do_GET", lambda self: slow(self) if self.path == "/slow-file" else real(self)
        )

        def slow(handler):
            server.requests.append(("slow-file", handler.headers["Range"], None))
            start = int((handler.headers["Range"] or "bytes=0-")[6:-1])
            headers = {"ETag": server.etag, "Content-Length": str(len(CONTENT) - start)}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
            handler.answer(
                206 if start else 200, headers, CONTENT[start : start + 120_000], length=False
            )
            if not start:
                server.stop.wait(20)
            handler.wfile.write(CONTENT[start + 120_000 :])

        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        path, part = tmp_path / "a.bin", tmp_path / "a.bin.part"
        options = dict(sha256=SHA256, progress=False)
        process = multiprocessing.get_context("fork").Process(
            target=download_module.download, args=(server.url("slow-file"), path), kwargs=options
        )
        process.start()
        end = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size >= 100_000):
            assert time.monotonic() < end
            time.sleep(0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL and not path.exists()
        have = part.stat().st_size
        assert (
            download_module.download(server.url("slow-file"), path, **options).read_bytes()
            == CONTENT
        )
        assert server.requests[-1] == ("slow-file", f"bytes={have}-", None) and sorted(
            visible(tmp_path)
        ) == ["a.bin"]
        server.stop.set()
        server.shutdown()


# ---------------------------------------------------------------- a full disk, a read-only disk


@pytest.mark.parametrize("share", [0, 0.4])
@pytest.mark.parametrize("name", EVERY)
def test_the_disk_is_full(writers, name, share, tmp_path):
    """One error that names the file or folder; the old version stays and no temporary file takes room; with room it goes on."""
    mounts_or_skip()
    writer, disk = writers[name], tmp_path / "disk"
    disk.mkdir()

    def child():
        small_disk(disk, 4 << 20)
        folder = disk / "here"
        folder.mkdir()
        writer.write(folder, NEW)  # to see how much room that takes
        needed = sum(-(-len(content) // 4096) * 4096 for content in visible(folder).values())
        shutil.rmtree(folder)
        before = prepared(writer, folder)
        there = visible(folder)
        filler = fill(disk, int(share * needed))
        try:
            writer.write(folder, NEW)
        except OSError as error:
            words = str(error)
        else:
            raise AssertionError("it found room")
        hidden = [str(path) for path in folder.rglob(".*")]
        if (
            writer.replaces and name != "checkpoints"
        ):  # of which those that found room stay: nothing is lost
            assert visible(folder) == there
        filler.unlink()
        assert writer.read(folder) == before
        writer.write(folder, NEW)
        assert writer.read(folder) == NEW
        return [words, hidden]

    words, hidden = in_child(child)
    assert hidden == []
    assert str(disk / "here") in words and "\n" not in words, words
    assert re.search("No space left on device.*(make room|free some space)|no room", words), words


def test_the_disk_is_full_during_a_download(tmp_path, monkeypatch):
    from test_download import CONTENT, SHA256, Server

    mounts_or_skip()
    monkeypatch.setattr(download_module, "PAUSE", 0)
    disk = tmp_path / "disk"
    disk.mkdir()
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

        def child():
            os.environ.pop("http_proxy", None)
            small_disk(disk, 1 << 20)
            filler, found = fill(disk, 100_000), []
            for path in (
                "file",
                "unsized",
            ):  # that says its length, and that does not: found out before, and on the way
                try:
                    download_module.download(
                        server.url(path), disk / path, sha256=SHA256, progress=False
                    )
                except OSError as error:
                    found.append(str(error))
                assert not (disk / path).exists()
            filler.unlink()
            assert (
                download_module.download(
                    server.url("unsized"), disk / "unsized", sha256=SHA256, progress=False
                ).read_bytes()
                == CONTENT
            )
            return found

        first, second = in_child(child)
        server.shutdown()
    assert re.match(f"no room: '{disk}' has .* GB free", first) and re.match(
        f"no room is left in '{disk}' for unsized", second
    )


@pytest.mark.parametrize("name", EVERY)
def test_the_disk_is_read_only(writers, name, tmp_path):
    """What is there can be read; a write is one error that names the file or folder."""
    mounts_or_skip()
    writer, folder = writers[name], tmp_path / "here"
    before = prepared(writer, folder)

    def child():
        there = visible(folder)
        read_only(folder)
        if name != "checkpoints":  # its reader goes on with a copy
            assert writer.read(folder) == before
        try:
            writer.write(folder, NEW)
        except OSError as error:
            assert visible(folder) == there
            return str(error)

    words = in_child(child)
    assert str(folder) in words and "Read-only file system" in words and "\n" not in words, words


def test_a_read_only_data_folder(tmp_path, monkeypatch):
    """As on a hub, where one checkout serves a class: all is read; what would be kept there names the way out, and takes it."""
    mounts_or_skip()
    data = tmp_path / "data"
    shutil.copytree(data_folder() / "weights", data / "weights")
    monkeypatch.setenv("PANDALIB_DATA", str(data))
    monkeypatch.delenv("PANDALIB_CACHE", raising=False)
    pictures = images(3, 64)

    def child():
        read_only(data)
        backbone, words = load_backbone(), []
        expected = backbone.features(pictures)
        for work in (
            lambda: backbone.features(pictures, cache=FeatureCache()),
            lambda: upstream_fisher(backbone, 2, progress=False),
        ):
            try:
                work()
            except OSError as error:
                words.append(str(error))
        os.environ["PANDALIB_CACHE"] = str(tmp_path / "elsewhere")
        found = backbone.features(pictures, cache=FeatureCache(dtype="float32"))
        assert (
            np.allclose(found, expected, atol=1e-5)
            and upstream_fisher(backbone, 2, progress=False).n_samples == 2
        )
        return words

    words = in_child(child)
    assert len(words) == 2 and all(
        str(data / "cache") in text and "Read-only file system" in text and "PANDALIB_CACHE" in text
        for text in words
    ), words


def test_a_result_that_cannot_be_written_is_printed(tmp_path, monkeypatch, capsys):
    """`run` has worked for an hour, and the disk is full: the record is on the screen, the error below it."""
    from pandalib.experiments import run as runs
    from pandalib.__main__ import main

    monkeypatch.setattr(
        runs, "run", lambda **options: dict(task="t", method="dn2", roc_auc=0.75, seconds=1.0)
    )
    (tmp_path / "file").write_text("in the way")
    assert (
        main(
            [
                "run",
                "--task",
                "t",
                "--method",
                "dn2",
                "--json",
                str(tmp_path / "file" / "result.json"),
            ]
        )
        == 2
    )
    printed = capsys.readouterr()
    assert json.loads(printed.out)["roc_auc"] == 0.75
    assert re.fullmatch(
        r"pandalib: '.*result.json' cannot be written \(.*\): make room there, or choose another place.\n",
        printed.err,
    )


# ---------------------------------------------------------------- flipped bits


def flips(path: Path, n: int, seed: int):
    """`n` times the file with one bit flipped at a random place, half of them in its first kilobytes, where names and settings are."""
    rng, whole = np.random.default_rng(seed), path.read_bytes()
    for number in range(n):
        content = bytearray(whole)
        content[int(rng.integers(len(whole) if number % 2 else min(len(whole), 4096)))] ^= 1 << int(
            rng.integers(8)
        )
        path.write_bytes(content)
        yield number
    path.write_bytes(whole)


def refused(read, path: Path) -> bool:
    """Whether reading is refused, in words that name the file."""
    try:
        read()
    except (ValueError, FileNotFoundError) as error:
        assert str(path) in str(error) or path.name in str(error), error
        return True
    return False


def test_flipped_bits_in_the_stem_cache(tmp_path):
    data, asked = FLOATS[0], []
    cache, key = FeatureCache(tmp_path), content_key(FLOATS[0])
    cache.get(key, data.shape, iter([data]))
    (path,) = tmp_path.iterdir()

    def source():
        asked.append(1)
        yield data

    for _ in flips(path, 60, seed=1):
        assert np.array_equal(cache.get(key, data.shape, source()), data)
    assert len(asked) >= 50  # computed anew, but for a blank that became another


@pytest.mark.parametrize("kind", ["fisher", "checkpoint", "resume"])
def test_flipped_bits_in_tensors(kind, writers, tmp_path):
    """Numbers, names, shapes, settings, counts: all of it is under the hash."""
    writers["fisher" if kind == "fisher" else "checkpoints"].write(tmp_path, NEW)
    path = (
        tmp_path
        / {
            "fisher": "fisher.safetensors",
            "checkpoint": "run/epoch-0001.safetensors",
            "resume": "run/resume.safetensors",
        }[kind]
    )
    tensors, facts = read_tensors(path)
    n_refused = 0
    for _ in flips(path, 120, seed=2):
        try:
            found, told = read_tensors(path)
        except ValueError:
            n_refused += 1
        else:  # in what pads the header
            assert (
                told == facts
                and all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
                and found.keys() == tensors.keys()
            )
    assert n_refused >= 118
    backbone = network()
    for _ in flips(path, 6, seed=3):
        if kind == "fisher":
            assert refused(lambda: Fisher.load(path, backbone), path)
        elif kind == "checkpoint":
            assert refused(
                lambda: fit_compactness(
                    backbone, backbone.frozen_features(images(33)), folder=path.parent, **SETTINGS
                )[1],
                path,
            )
        else:
            assert refused(
                lambda: fit_compactness(
                    backbone, backbone.frozen_features(images(33)), folder=path.parent, **SETTINGS
                ),
                path,
            )


def test_a_checkpoint_in_the_place_of_another(writers, tmp_path):
    """Whole files, in the wrong place: each knows its epoch and its network."""
    writers["checkpoints"].write(tmp_path, NEW)
    folder, backbone = tmp_path / "run", network()
    stem = backbone.frozen_features(images(33))
    shutil.copy(folder / "epoch-0001.safetensors", folder / "epoch-0002.safetensors")
    with pytest.raises(
        ValueError,
        match="epoch-0002.safetensors is one of another epoch or network: empty its folder",
    ):
        fit_compactness(backbone, stem, folder=folder, **SETTINGS)[2]
    shutil.copy(folder / "epoch-0001.safetensors", folder / "resume.safetensors")
    with pytest.raises(ValueError, match="resume.safetensors is damaged or no checkpoint"):
        fit_compactness(backbone, stem, folder=folder, **SETTINGS)


def test_flipped_bits_in_weights(tmp_path, monkeypatch):
    shutil.copytree(data_folder() / "weights", tmp_path / "weights")
    monkeypatch.setenv("PANDALIB_DATA", str(tmp_path))
    for _ in flips(verify_embedded(), 4, seed=4):
        with pytest.raises(
            ValueError, match=r"glyphs_resnet4.safetensors is damaged: its SHA-256 is"
        ):
            load_backbone()
    index = tmp_path / "weights" / "index.json"
    whole, expected = index.read_bytes(), load_backbone().n_classes
    for key in (
        b'"file"',
        b'"glyphs_',
        b'"sha256"',
        b': "71',
        b'"n_glyphs"',
        b"494",
        b'"n_textures"',
        b"128",
    ):
        place = whole.index(key) + len(key) - 2
        for bit in range(0, 8, 2):
            content = bytearray(whole)
            content[place] ^= 1 << bit
            index.write_bytes(content)
            assert refused(load_backbone, index.parent) or load_backbone().n_classes == expected


def test_downloaded_weights_are_checked_each_time(tmp_path, monkeypatch):
    """torchvision's file in its cache: the beginning of its hash stands in its name."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save({}, tmp_path / "part.pth")
    path = tmp_path / "checkpoints" / f"resnet18-{sha256_of(tmp_path / 'part.pth')[:8]}.pth"
    monkeypatch.setattr(
        "torchvision.models.get_model_weights",
        lambda name: {"IMAGENET1K_V1": SimpleNamespace(url=f"https://host/{path.name}")},
    )
    shutil.copy(tmp_path / "part.pth", path)
    with pytest.raises(
        ValueError, match="lack 100 tensors"
    ):  # the right file, as far as its hash goes
        load_backbone("resnet18", "imagenet")
    for _ in flips(path, 3, seed=5):
        with pytest.raises(
            ValueError,
            match=f"{path.name} is damaged: its SHA-256 does not begin with .* Delete it, and it is fetched again",
        ):
            load_backbone("resnet18", "imagenet")


class Failing(BaseHTTPRequestHandler):
    """/FAULT/NAME: answers that are not the file."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        fault = self.path.split("/")[1]
        self.send_response(dict(gone=404, busy=503, circle=302).get(fault, 200))
        if fault == "circle":
            self.send_header("Location", self.path)
        self.send_header("Content-Length", "9999" if fault == "short" else "10")
        self.end_headers()
        self.wfile.write(b"0123456789")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("gone", "HTTP Error 404"),
        ("busy", "HTTP Error 503"),
        ("circle", "infinite loop"),
        ("wrong", "invalid hash value"),
        ("short", "invalid hash value|IncompleteRead"),
    ],
)
def test_imagenet_weights_from_a_server_that_fails(fault, words, tmp_path, monkeypatch):
    """A dead link, a redirect loop, a wrong and a truncated file: one error that says what to do, and nothing in the cache."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{fault}/x-01234567.pth"
        monkeypatch.setattr(
            "torchvision.models.get_model_weights",
            lambda name: {"IMAGENET1K_V1": SimpleNamespace(url=url)},
        )
        with pytest.raises(
            ConnectionError,
            match=rf"ImageNet weights of resnet18 are not on this machine and {url} cannot be fetched \(.*({words}).*put it at ",
        ):
            load_backbone("resnet18", "imagenet")
        server.shutdown()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_flipped_bits_in_sealed_json(tmp_path):
    content = dict(
        roc_auc=0.912345,
        seconds=3,
        history=[dict(epoch=1, loss=0.25)],
        task="pictograms:star",
        error=None,
    )
    path = tmp_path / "a.json"
    path.write_bytes(sealed(content))
    assert unsealed(path.read_bytes()) == content
    n_refused = 0
    for _ in flips(path, 300, seed=6):
        try:
            assert unsealed(path.read_bytes()) == content
        except ValueError:
            n_refused += 1
    assert n_refused > 250
    assert (
        "\x00" not in path.read_text() and json.loads(path.read_text())["roc_auc"] == 0.912345
    )  # and anybody can read it


@pytest.fixture
def swept(tmp_path):
    """A sweep of one run: its folder, result and files."""
    (tmp_path / "g.toml").write_text(
        '[grid]\nname = "g"\ntier = "embedded"\ntasks = ["pictograms:star"]\nmethods = ["dn2"]\n'
    )
    grid = load_grid(tmp_path / "g.toml")
    (settings,) = grid.runs()
    record = (
        dict.fromkeys(KEYS)
        | settings
        | dict(
            roc_auc=0.875,
            seconds=1.5,
            history=[],
            n_train=400,
            n_test=600,
            backbone="glyphs_resnet4",
            weights_sha256="a" * 64,
        )
    )
    folder = tmp_path / "out"
    write_plan(grid, [settings], folder)
    result = write_result(
        dict(format=FORMAT, id=identity(settings), **record, settings=settings, versions={}), folder
    )
    return folder, result, folder / RUNS / file_name(settings)


def test_flipped_bits_in_results(swept):
    """The run counts as not done; the plan is named. Never another number."""
    folder, result, path = swept
    plan, n_absent, n_refused = read_plan(folder), 0, 0
    for _ in flips(path, 200, seed=9):
        found = read_results(folder)
        assert found in ([], [result])
        n_absent += not found
    for _ in flips(folder / PLAN, 150, seed=10):
        try:
            assert read_plan(folder) == plan
        except ValueError as error:
            assert str(error).startswith(f"{folder / PLAN} is damaged")
            n_refused += 1
    assert n_absent > 150 and n_refused > 100 and read_results(folder) == [result]


@pytest.mark.parametrize(
    "changes",
    [
        dict(roc_auc="1"),
        dict(settings=3),
        dict(settings={}),
        dict(task=None),
        dict(backbone=5),
        dict(error="oh"),
        dict(error=dict(type=1, message="")),
        dict(history=None),
        dict(seed=True),
        dict(format="1"),
    ],
)
def test_results_of_a_stranger(swept, changes):
    """With a hash that is right, and other things in it than a run leaves: not a result."""
    folder, result, path = swept
    path.write_bytes(sealed(result | changes))
    assert read_results(folder) == []
    for runs in (
        [3],
        [{}],
        [dict(task=1, method="dn2", tier="embedded", seed=0)],
        [result["settings"] | dict(strange=1)],
        [result["settings"] | dict(tier="none")],
        "runs",
        None,
    ):
        (folder / PLAN).write_bytes(
            sealed(unsealed((folder / PLAN).read_bytes()) | dict(runs=runs))
        )
        with pytest.raises(
            ValueError, match="plan.json is damaged .*: delete it and call the sweep again"
        ):
            read_plan(folder)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"[" * 10_000,
        b'{"a": ' * 10_000,
        b'{"sha256": "0"}',
        b'{"a": NaN, "sha256": "0"}',
        b"\xff\xfe",
        b"1e999",
    ],
)
def test_json_that_nobody_sealed(text):
    with pytest.raises(ValueError):
        unsealed(text)


def test_what_cannot_be_sealed(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        sealed(dict(loss=float("nan")))
    with pytest.raises(ValueError):
        write_tensors(tmp_path / "a.safetensors", {}, dict(loss=float("inf")))
    assert not list(tmp_path.iterdir())
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises((ValueError, RecursionError)):
        sealed(dict(nested=nested))


def test_flipped_bits_in_a_detector(writers, tmp_path):
    """Both files of it: the tensors, and the settings and thresholds beside them."""
    writers["detector"].write(tmp_path, NEW)
    folder, backbone = tmp_path / "detector", network()
    facts = unsealed((folder / "detector.json").read_bytes())
    for _ in flips(folder / facts["tensors"]["file"], 10, seed=7):
        assert refused(
            lambda: Inspector.load(folder, backbone=backbone), folder / facts["tensors"]["file"]
        )
    n_refused = 0
    for _ in flips(folder / "detector.json", 200, seed=8):
        try:
            assert read_facts(folder) == facts  # a blank became another one
        except ValueError as error:
            assert f"{folder / 'detector.json'} " in str(error)
            n_refused += 1
    assert n_refused > 150


# ---------------------------------------------------------------- the list itself


def test_every_test_that_the_list_names_is_there():
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)::(test_\w+)`", text)
    assert len(named) > 60
    sources = {
        module: (ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8") for module, _ in named
    }
    missing = [
        f"{module}::{test}" for module, test in named if f"def {test}(" not in sources[module]
    ]
    assert not missing
