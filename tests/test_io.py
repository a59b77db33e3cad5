"""Files are written whole or not at all, and those with their hash notice every flipped bit."""

import errno
import json
import os
import random

import pytest
import torch

from pandalib import io
from pandalib.io import (
    atomic_folder,
    dump_json_with_hash,
    load_json_with_hash,
    load_strict_json,
    read_tensors,
    sha256_of,
    write_atomically,
    write_tensors,
)


def flips(content: bytes, n: int):
    """`n` times the content with one bit flipped, half of them in its first kilobytes."""
    draw = random.Random(0)
    for number in range(n):
        place = draw.randrange(len(content) if number % 2 else min(len(content), 4096))
        flipped = content[place] ^ 1 << draw.randrange(8)
        yield content[:place] + bytes([flipped]) + content[place + 1 :]


def test_a_file_is_replaced_at_once_and_readable(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, b"old")
    with io.atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and os.listdir(path.parent) == ["a.txt"]
    (tmp_path / "plain").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(OSError, match=f"{'x' * 300}'$"):  # too long a name
        write_atomically(tmp_path / ("x" * 300), b"")
    assert sha256_of(path).startswith("11507a0e2f5e69d5")


def test_a_folder_appears_in_the_end(tmp_path):
    for folder in (tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with atomic_folder(folder) as temporary:
            (temporary / "a").write_text("a")
            assert not (folder / "a").exists()
        assert [path.name for path in folder.iterdir()] == ["a"]
    with pytest.raises(OSError, match="new'"), atomic_folder(tmp_path / "new") as temporary:
        (temporary / "b").write_text("b")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "a", "empty", "new"]


def test_an_error_of_the_caller_passes_unchanged(tmp_path):
    elsewhere = OSError(errno.ENOENT, "no such file", "elsewhere")
    for error in (KeyboardInterrupt(), elsewhere, OSError("a sentence")):
        with pytest.raises(type(error)) as raised, io.atomic_file(tmp_path / "a") as file:
            file.write(b"a")
            raise error
        assert raised.value is error
    assert not list(tmp_path.iterdir())


def test_json_notices_every_flipped_bit():
    content = {"roc_auc": 0.912345, "history": [{"epoch": 1}], "task": "star", "error": None}
    text = dump_json_with_hash(content | {"shape": (2, 3)})
    assert load_json_with_hash(text) == content | {"shape": [2, 3]}
    assert json.loads(text)["roc_auc"] == 0.912345  # anyone can read it
    n_refused = 0
    for damaged in flips(text, 300):
        try:
            assert load_json_with_hash(damaged) == load_json_with_hash(
                text
            )  # one blank became another
        except ValueError:
            n_refused += 1
    assert n_refused > 250


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b"null", b'{"sha256": "0"}', b'{"a": NaN, "sha256": "0"}', b"\xff\xfe"]
    + [b"[" * 100_000, b'{"sha256": 1, "a":' + b"[" * 980 + b"]" * 980 + b"}"],
)
def test_json_without_its_hash(text):
    with pytest.raises(ValueError):
        load_json_with_hash(text)


def test_numbers_that_json_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json_with_hash({"loss": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_tensors(tmp_path / "a", {}, {"loss": float("inf")})
    with pytest.raises(ValueError, match="Infinity is not a number"):
        load_strict_json("[Infinity]")
    assert not list(tmp_path.iterdir())


def test_tensors_notice_every_flipped_bit(tmp_path):
    path, facts = tmp_path / "a.safetensors", {"epoch": 3, "names": ["a", "b"]}
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor([1, 2])}
    write_tensors(path, tensors, facts)
    found, told = read_tensors(path)
    assert told == facts and all(torch.equal(found[name], tensors[name]) for name in tensors)
    write_tensors(tmp_path / "again", dict(reversed(tensors.items())), facts)
    assert sha256_of(path) == sha256_of(tmp_path / "again")  # equal content, equal file
    n_refused = 0
    for damaged in flips(path.read_bytes(), 200):
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            found, told = read_tensors(tmp_path / "damaged")
            assert told == facts and all(torch.equal(found[name], tensors[name]) for name in found)
        except ValueError:
            n_refused += 1
    assert n_refused > 190  # the others change what pads the header
    for strange in (b"", b"\0" * 100, b"[]", path.read_bytes()[:-1]):
        path.write_bytes(strange)
        with pytest.raises(ValueError):
            read_tensors(path)
