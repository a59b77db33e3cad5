"""The feature cache: whole files or none, damage noticed, bounded, safe for two processes."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from pandalib.cache import FeatureCache, Memory, content_key

DATA = np.random.default_rng(0).normal(size=(50, 4, 2, 2)).astype(np.float16)
KEY = content_key("test", DATA)


class Counted:
    """Yields the data in three chunks and counts how often it was asked to."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        yield from np.array_split(DATA, 3)


def get(cache, source):
    return cache.get(KEY, DATA.shape, source())


@pytest.fixture
def filled(tmp_path):
    """A cache with one file, where the data came from, and the file."""
    cache, source = FeatureCache(tmp_path), Counted()
    get(cache, source)
    (path,) = tmp_path.iterdir()
    return cache, source, path


def test_computed_once_and_equal(filled, tmp_path):
    cache, source, path = filled
    assert np.array_equal(get(cache, source), DATA) and source.calls == 1
    get(cache, source)[:] = 0  # writing into what was read changes no file
    assert np.array_equal(np.load(path, allow_pickle=False), DATA)  # an ordinary .npy
    assert np.array_equal(get(cache, source), DATA) and source.calls == 1
    rounded = cache.get(content_key("thirds"), (2,), [np.array([1 / 3, 2 / 3])])
    assert rounded.dtype == np.float16 and np.allclose(rounded, [1 / 3, 2 / 3], rtol=1e-3)


def test_each_flipped_bit_and_each_cut_is_noticed(filled):
    cache, source, path = filled
    whole = path.read_bytes()
    positions = [0, 60, 127, 128, len(whole) - 33, len(whole) - 1]
    damaged = [whole[:i] + bytes([whole[i] ^ 16]) + whole[i + 1 :] for i in positions]
    damaged += [whole[:size] for size in (0, 32, 128, len(whole) - 1)] + [whole + b"x"]
    for number, content in enumerate(damaged):
        path.unlink()  # what is mapped must not change under the reader
        path.write_bytes(content)
        assert np.array_equal(get(cache, source), DATA)
        assert source.calls == number + 2 and path.read_bytes() == whole  # mended


def test_a_failing_computation_leaves_nothing(tmp_path):
    def broken():
        yield DATA[:10]
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        FeatureCache(tmp_path).get(KEY, DATA.shape, broken())
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"does not hold the \(50, 4, 2, 2\)"):
        FeatureCache(tmp_path).get(KEY, DATA.shape, [DATA[:10]])


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="features cannot be kept: .*file.*PANDALIB_CACHE"):
        FeatureCache(tmp_path / "file").get(KEY, DATA.shape, Counted()())


def test_the_files_unused_for_longest_go_first(tmp_path, monkeypatch):
    monkeypatch.setenv("PANDALIB_CACHE", str(tmp_path))
    cache = FeatureCache(limit_gb=2.5 * DATA.nbytes / 1e9)
    first, second, third = (content_key(name) for name in ("first", "second", "third"))
    path_of = {key: tmp_path / f"{key[:40]}.float16.npy" for key in (first, second, third)}
    for age, key in ((300, first), (200, second)):
        cache.get(key, DATA.shape, [DATA])
        os.utime(path_of[key], (time.time() - age,) * 2)
    still_open = cache.get(second, DATA.shape, [])
    os.utime(path_of[second], (time.time() - 200,) * 2)
    cache.get(first, DATA.shape, [])  # used just now
    cache.get(third, DATA.shape, [DATA])
    assert set(tmp_path.iterdir()) == {path_of[first], path_of[third]}
    assert np.array_equal(still_open, DATA)
    tiny = FeatureCache(limit_gb=1e-9)
    tiny.get(second, DATA.shape, [DATA])
    assert set(tmp_path.iterdir()) == {path_of[second]}  # the newest stays, whatever its size


def test_what_a_killed_process_left_is_cleared(tmp_path):
    old, fresh = tmp_path / ".a.part", tmp_path / ".b.part"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    get(FeatureCache(tmp_path), Counted())
    assert not old.exists() and fresh.exists()  # the fresh one may belong to a living process


def test_two_processes_at_once(tmp_path):
    program = """
import sys, time, numpy as np
from pandalib.cache import FeatureCache
data = (np.arange(8_000_000) % 2000).astype(np.float16).reshape(2000, 4000)
def chunks():
    for part in np.array_split(data, 20):
        time.sleep(0.01)
        yield part
for number in range(3):
    found = FeatureCache(sys.argv[1]).get(f"{number:040d}", data.shape, chunks())
    assert np.array_equal(found, data)
"""
    runs = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert len(list(tmp_path.glob("*.npy"))) == len(list(tmp_path.iterdir())) == 3


def test_keys_tell_contents_apart():
    class Lazy:
        def fingerprint(self):
            return "abc"

    others = [
        ("b", DATA),
        ("a", DATA[:-1]),
        ("a", DATA.reshape(-1)),
        ("a", DATA.astype(np.float64)),
        ("a", Lazy()),
        ("aabc",),
    ]
    assert len({content_key("a", DATA), *(content_key(*parts) for parts in others)}) == 7
    assert content_key("a", DATA.copy()) == content_key("a", DATA)


def test_memory_keeps_arrays_and_results_within_its_limits():
    memory, source = Memory(limit_mb=2.5 * DATA.nbytes / 2**20, n_results=2), Counted()
    assert get(memory, source) is get(memory, source) and source.calls == 1
    assert np.array_equal(get(memory, source), DATA)
    memory.get("1", DATA.shape, [DATA])
    get(memory, source)
    memory.get("2", DATA.shape, [DATA])  # now "1" is unused for longest
    get(memory, source)
    assert source.calls == 1
    assert memory.get("1", DATA.shape, [DATA + 1])[0, 0, 0, 0] == DATA[0, 0, 0, 0] + 1
    calls = []
    results = [memory.recall(lambda n: calls.append(n) or n * 10, n) for n in (1, 1, 2, 1, 3, 2)]
    assert results == [10, 10, 20, 10, 30, 20] and calls == [1, 2, 3, 2]
