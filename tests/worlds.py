"""For the tests of faults: a child process that is killed at a chosen step, or that meets a disk that is full or read-only.

A child is a fork: it starts at once, with all that the test has prepared, and what happens to it happens to nobody else. Disks are
mounted in a namespace of its own, as root or, where the system allows it, without; they vanish with it.
"""

import builtins
import ctypes
import json
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000  # linux/sched.h
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18  # linux/mount.h


def in_child(function: Callable):
    """What `function` returns in a forked process, as JSON brings it back; SystemExit of the signal that killed it; AssertionError with its traceback."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            one_thread()
            text = json.dumps(dict(result=function()))
        except BaseException as error:
            text = json.dumps(dict(error="".join(traceback.format_exception(error))))
        with os.fdopen(writer, "w") as file:
            file.write(text)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise SystemExit(os.WTERMSIG(status))
    found = json.loads(text)
    assert "error" not in found, found["error"]
    return found["result"]


def one_thread() -> None:
    """A fork has one thread only: a library that waits for its others would wait for ever."""
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def killed_at(step: int, function: Callable) -> bool:
    """Run `function` in a child that kill -9 meets at its `step`-th change on the disk; False when it has fewer.

    That is before a file is flushed, renamed or deleted, and after one was opened for writing, when it is empty.
    """

    def child():
        left, real_open = step, open

        def maybe_now():
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        def counted(real):
            def call(*arguments, **options):
                maybe_now()
                return real(*arguments, **options)

            return call

        def counted_open(file, mode="r", *arguments, **options):
            opened = real_open(file, mode, *arguments, **options)
            if set(mode) & set("wxa+"):
                maybe_now()
            return opened

        for name in ("fsync", "replace", "rename", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        builtins.open = counted_open
        function()

    try:
        in_child(child)
    except SystemExit as error:
        assert error.code == signal.SIGKILL
        return True
    return False


def mounts_or_skip() -> None:
    """Skip the test where no disk can be mounted."""
    if not hasattr(os, "fork") or not Path("/proc/self/ns/mnt").exists():
        pytest.skip("mounts a small disk in a namespace of its own, which needs Linux")
    reason = in_child(lambda: _unshared())
    if reason:
        pytest.skip(f"a disk cannot be mounted here ({reason}): needs root, or user namespaces")


def small_disk(folder: Path, size: int) -> None:
    """In a child: an empty disk of `size` bytes at `folder`."""
    assert _unshared() is None
    _mount("none", folder, "tmpfs", 0, f"size={size}")


def read_only(folder: Path) -> None:
    """In a child: `folder` as on a read-only disk."""
    assert _unshared() is None
    _mount(folder, folder, None, MS_BIND)
    _mount(None, folder, None, MS_REMOUNT | MS_BIND | MS_RDONLY)


def fill(folder: Path, left: int) -> Path:
    """A file that takes all room of the disk but `left` bytes, in whole pages."""
    path, page = folder / "filler", os.statvfs(folder).f_frsize
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while True:  # until there is no more: what the system says of its free room is an estimate
            file.write(bytes(page))
    os.truncate(path, path.stat().st_size - left // page * page)
    return path


def _unshared() -> str | None:
    """Give this process mounts of its own; the reason where that is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if libc.unshare(CLONE_NEWNS):
            uid, gid = os.getuid(), os.getgid()
            if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
                return os.strerror(ctypes.get_errno())
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{uid} {uid} 1"),
                ("gid_map", f"{gid} {gid} 1"),
            ):
                Path(f"/proc/self/{name}").write_text(text)
        _mount(None, "/", None, MS_REC | MS_PRIVATE)
    except OSError as error:
        return error.strerror
    return None


def _mount(source, target, kind: str | None, flags: int, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    encoded = [None if value is None else os.fsencode(value) for value in (source, target, kind)]
    if libc.mount(*encoded, ctypes.c_ulong(flags), options.encode()):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))
