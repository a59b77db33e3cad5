"""Archives that are what they should be come out whole; all others come out not at all."""

import io
import os
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from pandalib.datasets import archives
from pandalib.datasets.archives import ArchiveError, unpack

CONTENT = {"set/a.txt": b"first", "set/deep/b.bin": bytes(range(256)) * 50, "c": b""}


def tar(path, members, mode="w:gz"):
    """`members` : (name or TarInfo, bytes)."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def special(name, kind, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def zip_link(name):
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def content_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(archive, tmp_path, words, **options):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArchiveError, match=words) as error:
        unpack(archive, tmp_path / "out" / "set", **options)
    assert str(archive) in str(error.value) and "\n" not in str(error.value)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == [
        tmp_path / "out"
    ]  # its parent, empty
    (tmp_path / "out").rmdir()


@pytest.mark.parametrize(
    "name, mode",
    [
        ("a.tar", "w"),
        ("a.tar.gz", "w:gz"),
        ("a.tgz", "w:gz"),
        ("a.tar.xz", "w:xz"),
        ("A.ZIP", None),
    ],
)
def test_whole(tmp_path, name, mode):
    archive = (
        tar(tmp_path / name, CONTENT.items(), mode)
        if mode
        else zipped(tmp_path / name, CONTENT.items())
    )
    folder = unpack(archive, tmp_path / "x" / "out")
    assert content_of(folder) == CONTENT
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755 and os.listdir(tmp_path / "x") == ["out"]


def test_several_files_into_one_folder(tmp_path):
    import gzip

    one = zipped(tmp_path / "a.zip", [("a/1", b"1"), ("empty/", b"")])
    two = tmp_path / "labels.idx.gz"
    two.write_bytes(gzip.compress(b"labels"))
    three = tmp_path / "list.mat"
    three.write_bytes(b"list")
    folder = unpack([one, two, three], tmp_path / "out")
    assert (
        content_of(folder) == {"a/1": b"1", "labels.idx": b"labels", "list.mat": b"list"}
        and (folder / "empty").is_dir()
    )


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/tmp/evil", "a/..", "..\\evil", "C:evil"]
)
def test_no_member_leaves_the_folder(tmp_path, name):
    refused(
        tar(tmp_path / "a.tar.gz", [("good", b"1"), (name, b"2")]), tmp_path, "outside the folder"
    )
    refused(
        zipped(tmp_path / "a.zip", [("good", b"1"), (name, b"2")]), tmp_path, "outside the folder"
    )


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_no_links_and_no_devices(tmp_path, kind):
    refused(
        tar(tmp_path / "a.tar", [("good", b"1"), (special("bad", kind, "good"), b"")], "w"),
        tmp_path,
        "'bad' is a link or a device",
    )


def test_no_links_in_zip(tmp_path):
    refused(
        zipped(tmp_path / "a.zip", [(zip_link("bad"), b"/etc/passwd")]),
        tmp_path,
        "'bad' is a link or a device",
    )


def test_a_file_through_a_file(tmp_path):
    refused(
        tar(tmp_path / "a.tar", [("a", b"1"), ("a/b", b"2")], "w"), tmp_path, "'a/b' is in it twice"
    )
    refused(
        tar(tmp_path / "b.tar", [("a", b"1"), ("a", b"2")], "w"), tmp_path, "'a' is in it twice"
    )


def test_bombs(tmp_path, monkeypatch):
    big = zipped(tmp_path / "a.zip", [(f"{number}", bytes(1_000_000)) for number in range(5)])
    refused(big, tmp_path, "more than 3000000 bytes", max_bytes=3_000_000)
    monkeypatch.setattr(archives, "MIN_LIMIT", 1000)
    refused(
        big, tmp_path, f"more than {100 * big.stat().st_size} bytes"
    )  # the default: a hundred times the archive
    refused(
        tar(tmp_path / "a.tgz", [(f"{number}", b"") for number in range(11)]),
        tmp_path,
        "more than 10 members",
        max_members=10,
    )


def test_a_header_that_lies_about_the_size_does_not_pass_the_limit(tmp_path):
    path = zipped(tmp_path / "a.zip", [("a", bytes(100_000))])
    content = path.read_bytes()
    path.write_bytes(content.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    refused(path, tmp_path, "damaged")  # ten bytes come, and then their checksum is wrong


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.xz", "a.zip", "a.gz"])
def test_damaged(tmp_path, name):
    import gzip
    import lzma

    rng = np.random.default_rng(0).bytes(50_000)
    whole = {
        "a.tar.gz": lambda: tar(tmp_path / name, [("a", rng)]).read_bytes(),
        "a.tar.xz": lambda: lzma.compress(
            tar(tmp_path / "plain.tar", [("a", rng)], "w").read_bytes()
        ),
        "a.zip": lambda: zipped(tmp_path / name, [("a", rng)]).read_bytes(),
        "a.gz": lambda: gzip.compress(rng),
    }[name]()
    middle = len(whole) // 2
    for broken in (
        whole[:middle],
        b"<html>not found</html>",
        b"",
        whole[:middle] + b"xxxx" + whole[middle + 4 :],
    ):
        (tmp_path / name).write_bytes(broken)
        refused(tmp_path / name, tmp_path, "damaged, or no archive")


def test_encrypted(tmp_path):
    path = zipped(tmp_path / "a.zip", [("a", b"secret")])
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + place] |= 1
    path.write_bytes(content)
    refused(path, tmp_path, "encrypted")


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="delete or rename it"):
        unpack(zipped(tmp_path / "a.zip", CONTENT.items()), tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "none.zip", tmp_path / "other")
