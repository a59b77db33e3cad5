"""The feature cache: whole files or none, damage noticed, bounded, safe for two processes at once."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from pandalib.cache import HEADER, FeatureCache, content_key

DATA = np.random.default_rng(0).normal(size=(50, 4, 2, 2)).astype(np.float32)
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


def test_computed_once_and_equal(tmp_path):
    source = Counted()
    exact = FeatureCache(tmp_path, dtype="float32")
    assert np.array_equal(get(exact, source), DATA) and np.array_equal(get(exact, source), DATA)
    assert source.calls == 1
    half = FeatureCache(tmp_path, dtype="float16")
    assert get(half, source).dtype == np.float16 and source.calls == 2  # a file of its own
    assert np.abs(get(half, source) - DATA).max() / np.abs(DATA).max() < 1e-3
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("position", [5, 40, HEADER, HEADER + 333, -1])
def test_a_flipped_bit_is_noticed(tmp_path, position):
    source, cache = Counted(), FeatureCache(tmp_path, dtype="float32")
    get(cache, source)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)
    assert np.array_equal(get(cache, source), DATA)
    assert source.calls == 2


@pytest.mark.parametrize("size", [0, 10, HEADER, HEADER + 100])
def test_a_truncated_file_is_computed_again(tmp_path, size):
    source, cache = Counted(), FeatureCache(tmp_path, dtype="float32")
    get(cache, source)
    (path,) = tmp_path.iterdir()
    os.truncate(path, size)
    assert np.array_equal(get(cache, source), DATA) and source.calls == 2
    assert np.array_equal(get(cache, source), DATA) and source.calls == 2  # mended on disk as well


def test_a_failing_computation_leaves_nothing(tmp_path):
    def broken():
        yield DATA[:10]
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        FeatureCache(tmp_path).get(KEY, DATA.shape, broken())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="10 rows of features were computed where 50"):
        FeatureCache(tmp_path).get(KEY, DATA.shape, iter([DATA[:10]]))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"features could not be kept in .*file.*PANDALIB_CACHE"):
        FeatureCache(tmp_path / "file").get(KEY, DATA.shape, Counted()())


def test_oldest_files_go_first(tmp_path):
    size = DATA.nbytes + HEADER
    cache = FeatureCache(tmp_path, dtype="float32", limit_gb=2.5 * size / 1e9)
    keys = [content_key(str(i)) for i in range(3)]
    for age, key in zip((300, 200), keys):
        cache.get(key, DATA.shape, iter([DATA]))
        path = next(tmp_path.glob(f"{key[:40]}*"))
        os.utime(path, (time.time() - age,) * 2)
    cache.get(keys[0], DATA.shape, iter([]))  # used just now: the second is the oldest
    open_map = cache.get(keys[1], DATA.shape, iter([]))
    os.utime(next(tmp_path.glob(f"{keys[1][:40]}*")), (time.time() - 200,) * 2)
    cache.get(keys[2], DATA.shape, iter([DATA]))
    left = {path.name[:40] for path in tmp_path.iterdir()}
    assert left == {keys[0][:40], keys[2][:40]}
    assert np.array_equal(open_map, DATA)  # whoever had it open goes on


def test_larger_than_the_limit_is_not_kept(tmp_path):
    source, cache = Counted(), FeatureCache(tmp_path, dtype="float32", limit_gb=1e-9)
    assert np.array_equal(get(cache, source), DATA)
    assert not list(tmp_path.iterdir())


def test_remains_of_a_killed_process_are_cleared(tmp_path):
    old, fresh = tmp_path / ".a.part", tmp_path / ".b.part"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    get(FeatureCache(tmp_path), Counted())
    assert not old.exists() and fresh.exists()  # the fresh one may belong to a living process


def test_two_processes_at_once(tmp_path):
    program = (
        "import sys, numpy as np, time\n"
        "from pandalib.cache import FeatureCache\n"
        "data = np.arange(4_000_000, dtype=np.float32).reshape(1000, 4000)\n"
        "def chunks():\n"
        "    for part in np.array_split(data, 20):\n"
        "        time.sleep(0.01)\n"
        "        yield part\n"
        "for number in range(3):\n"
        "    got = FeatureCache(sys.argv[1], dtype='float32').get(f'{number:040d}', data.shape, chunks())\n"
        "    assert np.array_equal(got, data)\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 3 and not list(tmp_path.glob(".*"))


def test_keys_tell_contents_apart():
    class Lazy:
        def fingerprint(self):
            return "abc"

    keys = [
        content_key("a", DATA),
        content_key("b", DATA),
        content_key("a", DATA[:-1]),
        content_key("a", DATA.reshape(-1)),
        content_key("a", DATA.astype(np.float64)),
        content_key("a", Lazy()),
        content_key("aabc"),
    ]
    assert len(set(keys)) == len(keys)
    assert content_key("a", DATA.copy()) == keys[0]
    with pytest.raises(ValueError, match="'int8'"):
        FeatureCache(dtype="int8")
