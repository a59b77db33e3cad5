"""Faults at every step of a write: killed, or a disk that is full or read-only.

What was there before stays whole, or the new version is there; an error is one sentence that names
the file; and writing again succeeds. docs/faults.md lists what else can go wrong.
"""

import builtins
import errno
import os
import shutil
import signal
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from small import images, small_backbone

from pandalib import Inspector
from pandalib.datasets.folder import write_mvtec
from pandalib.datasets.task import OneClassTask
from pandalib.io import dump_json_with_hash, load_json_with_hash, read_tensors, write_atomically
from pandalib.methods.panda import fit_compactness

OLD, NEW = 0, 1
PICTURES = images(22, 32)
NUMBERS = np.random.default_rng(0).normal(size=(2, 60, 8, 8)).astype(np.float16)
SETTINGS = dict(lr=0.5, max_grad_norm=5e-3, batch_size=16, progress=False)


class SingleFile:
    """Any single file."""

    def write(self, folder, version):
        write_atomically(
            folder / "result.json", dump_json_with_hash({"version": version, "filler": "x" * 9999})
        )

    def read(self, folder):
        path = folder / "result.json"
        return load_json_with_hash(path.read_bytes())["version"] if path.exists() else None


class TrainingRun:
    """One epoch is the old version, two the new; anyone who goes on ends with the same numbers."""

    def __init__(self):
        self.backbone = small_backbone()
        self.frozen = self.backbone.frozen_features(images(33))
        self.whole = fit_compactness(self.backbone, self.frozen, epochs=2, **SETTINGS)

    def write(self, folder, version):
        epochs = version + 1
        fit_compactness(self.backbone, self.frozen, epochs=epochs, folder=folder, **SETTINGS)

    def read(self, folder):
        if not (folder / "resume.safetensors").exists():
            return None
        epoch = read_tensors(folder / "resume.safetensors")[1]["epochs"][-1]
        copy = shutil.copytree(folder, folder.parent / f"copy of {folder.name}", dirs_exist_ok=True)
        again = fit_compactness(self.backbone, self.frozen, epochs=2, folder=copy, **SETTINGS)
        assert again.losses == self.whole.losses
        for ours, theirs in zip(again, self.whole, strict=True):
            parameters = zip(ours.trainable.parameters(), theirs.trainable.parameters())
            assert all(torch.equal(a, b) for a, b in parameters)
        return max(epoch - 1, 0)


class Detector:
    def __init__(self):
        options = dict(n_maps=6, n_images=3, sigma=1.0, false_alarm_rate=0.2, progress=False)
        self.backbone = small_backbone()
        self.versions = [
            Inspector(self.backbone, **options).fit(PICTURES[: 12 + version])
            for version in (OLD, NEW)
        ]

    def write(self, folder, version):
        self.versions[version].save(folder)

    def read(self, folder):
        if not (folder / "detector.json").exists():
            return None
        detector = Inspector.load(folder, backbone=self.backbone)
        version = len(detector.features_) - 12
        expected = self.versions[version].score(PICTURES[-3:])
        assert np.array_equal(detector.score(PICTURES[-3:]), expected)
        return version


class ExportedTask:
    """Written into a new folder only: the old version is none at all."""

    def write(self, folder, version):
        labels, kinds = np.array([0, 0, 1, 1]), ("good", "good", "bad", "bad")
        task = OneClassTask("made:up", PICTURES[:6], PICTURES[6:10], labels, kinds)
        if version == NEW:
            write_mvtec(task, folder / "new")

    def read(self, folder):
        assert len([*folder.glob("new/**/*.png")]) == (10 if (folder / "new").exists() else 0)
        return NEW if (folder / "new").exists() else OLD


WRITERS = (SingleFile, TrainingRun, Detector, ExportedTask)


@pytest.fixture(scope="module", params=WRITERS, ids=lambda writer: writer.__name__)
def writer(request):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the only one that a fork has, and the same bits with and without it
    yield request.param()
    torch.set_num_threads(threads)


@contextmanager
def at_step(step, event, changes=("fsync", "replace", "rename", "unlink")):
    """Let `event` happen at the `step`-th change on the disk.

    That is before a file is flushed, renamed or deleted, and after one was opened for writing,
    when it is empty.
    """
    left = step

    def count():
        nonlocal left
        left -= 1
        if left == -1:
            event()

    def counted(function):
        def call(*arguments, **options):
            count()
            return function(*arguments, **options)

        return call

    def counted_open(file, mode="r", *arguments, real_open=open, **options):
        opened = real_open(file, mode, *arguments, **options)
        if set(mode) & set("wxa+"):
            count()
        return opened

    with patch.object(builtins, "open", counted_open):
        with patch.multiple(os, **{name: counted(getattr(os, name)) for name in changes}):
            yield


def visible(folder):
    """All files but hidden ones, which a killed process cannot take with it."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.parts)
    }


def hidden(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_killed_at_every_step(writer, tmp_path):
    seen = []
    for step in range(60):
        folder = tmp_path / str(step)
        folder.mkdir()
        writer.write(folder, OLD)
        child = os.fork()
        if child == 0:
            with at_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                writer.write(folder, NEW)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        seen.append(writer.read(folder))
        if seen[-1] != NEW:
            writer.write(folder, NEW)
            assert writer.read(folder) == NEW
        if not killed:
            break
    assert step >= 1 and seen == sorted(seen) and seen[-1] == NEW  # once new, never old again


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_the_disk_fails_at_every_step(writer, code, tmp_path):
    def fail():
        fired.append(step)
        raise OSError(code, os.strerror(code))

    fired = []
    for step in range(60):
        folder = tmp_path / str(step)
        folder.mkdir()
        writer.write(folder, OLD)
        before = visible(folder)
        try:
            with at_step(step, fail, ("fsync", "replace", "rename")):
                writer.write(folder, NEW)
        except OSError as error:
            assert os.strerror(code) in str(error) and str(folder) in str(error)
            assert "\n" not in str(error)
            assert writer.read(folder) in (OLD, NEW)
            if writer.read(folder) == OLD and not isinstance(writer, TrainingRun):
                assert visible(folder) == before
        else:
            assert writer.read(folder) == NEW
        assert not hidden(folder)
        if writer.read(folder) == OLD:
            writer.write(folder, NEW)
            assert writer.read(folder) == NEW
        if step not in fired:
            break
    assert fired and step not in fired
