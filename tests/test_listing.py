"""Whatever is named gives its images in one order, and what was left out is said."""

import csv
import os

import numpy as np
import pytest
from pictures import flat, one_sentence, save

from pandalib.datasets import listing
from pandalib.datasets.listing import Listing, find_images, subfolders
from pandalib.io import printable


def files(tmp_path, *names):
    return [flat(tmp_path / name, number) for number, name in enumerate(names)]


def test_a_folder(tmp_path):
    for name in ("b.PNG", "a.jpg", "10.png", "9.png", "Ä ö.png", ".hidden.png", "._a.jpg"):
        save(tmp_path / name, format="png")
    for name in ("readme.txt", "png"):
        (tmp_path / name).write_text("x")
    save(tmp_path / "deeper" / "c.png")
    save(tmp_path / ".cache" / "c.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "broken.gif").symlink_to("gone.gif")
    (tmp_path / "deeper" / "loop").symlink_to(tmp_path)
    wanted = ["10.png", "9.png", "a.jpg", "b.PNG", "broken.gif", "Ä ö.png"]
    assert find_images(str(tmp_path)).names == wanted
    assert find_images(tmp_path, recursive=True).names == sorted([*wanted, "deeper/c.png"])
    assert find_images(tmp_path / "a.jpg").names == ["a.jpg"]


def test_what_was_left_out(tmp_path):
    files(tmp_path, "a.png", "in/b.png", "c.jfif")
    for name in ("d.heic", "e.txt", "f.txt", "g.txt", "h.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    found = find_images(tmp_path)
    assert found.names == ["a.png", "c.jfif"] + ["d.heic"] * listing.HEIC
    reasons = dict(found.left_out)
    assert reasons.keys() - {"d.heic"} == {"e.txt", "f.txt", "g.txt", "h.txt", "link/", "in/"}
    assert "linked" in reasons["link/"] and "--recursive" in reasons["in/"]
    assert ("pillow-heif" in reasons.get("d.heic", "")) != listing.HEIC
    assert "'e.txt', 'f.txt', 'g.txt' and 1 more (no image" in found.warning
    assert "\n" not in found.warning and "in/" in found.warning
    assert dict(find_images(tmp_path, recursive=True).left_out).keys() - {"d.heic"} == {
        *("e.txt", "f.txt", "g.txt", "h.txt", "link/")
    }
    flat(tmp_path / "in" / "mask" / "b.png", 1)
    assert ("in/mask/", "masks") in find_images(tmp_path, recursive=True).left_out
    assert find_images(tmp_path / "in" / "mask").names == ["b.png"]
    assert find_images([tmp_path / "link"]).names == ["b.png"]  # named itself
    assert Listing([], [], tmp_path).warning == ""


def test_files_patterns_and_folders(tmp_path, monkeypatch):
    paths = files(tmp_path, "a.png", "b.jpg", "in/c.png", "in/[d].png", "other/e.png")
    monkeypatch.chdir(tmp_path)
    assert find_images(["b.jpg", "a.png"]).names == ["b.jpg", "a.png"]  # in the order given
    assert find_images("*.png").names == ["a.png"]
    assert find_images("**/*.png").names == ["a.png", "in/[d].png", "in/c.png", "other/e.png"]
    assert find_images("in/[d].png").files == [paths[3].relative_to(tmp_path)]  # no pattern
    found = find_images([tmp_path / "in", "*", paths[2], "other"])
    assert found.names == ["in/[d].png", "in/c.png", "a.png", "b.jpg", "other/e.png"]
    (tmp_path / "notes.txt").write_text("x")
    assert find_images(tmp_path / "*").left_out == [
        (f"{tmp_path / 'in'}/", "a folder: name it itself"),
        (f"{tmp_path / 'other'}/", "a folder: name it itself"),
        (str(tmp_path / "notes.txt"), "no image by its ending"),
    ]
    assert find_images(paths[2:4]).names == ["c.png", "[d].png"]


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("header", [["label", "File"], ["image", "x"], None])
def test_a_table_of_paths(tmp_path, header, delimiter):
    paths = files(tmp_path, "in/a, b.png", "in/c.png", "d.png")
    with open(tmp_path / "in" / "list.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        if header:
            writer.writerow(header)
        column = (
            0 if header is None else [cell.lower() in listing.COLUMNS for cell in header].index(1)
        )
        for path in (paths[2], paths[0], paths[1]):
            row = ["1", "2"]
            row[column] = os.path.relpath(path, tmp_path / "in")
            writer.writerow(row)
    assert find_images(tmp_path / "in" / "list.csv").names == ["d.png", "in/a, b.png", "in/c.png"]


def test_nothing_to_find(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    flat(tmp_path / "in" / "a.png", 1)
    (tmp_path / "list.csv").write_text("file\nin/a.png\ngone.png\n")
    for given, kind, words in (
        (tmp_path, ValueError, [".png .jpg .jpeg", "'in/'", "--recursive", "'readme.txt'"]),
        ([], ValueError, ["an empty list"]),
        (tmp_path / "*.gif", ValueError, ["*.gif"]),
        (tmp_path / "gone", FileNotFoundError, [tmp_path / "gone"]),
        (tmp_path / "gone.csv", FileNotFoundError, ["gone.csv"]),
        ("", FileNotFoundError, ["''"]),  # not the folder where we are
        (tmp_path / "list.csv", FileNotFoundError, ["list.csv", "'gone.png'", "row 2"]),
    ):
        with pytest.raises(kind) as error:
            find_images(given)
        one_sentence(error, *words)
    with pytest.raises(NotADirectoryError) as error:
        subfolders(tmp_path / "readme.txt")
    one_sentence(error, "is a file")


def test_names_stay_real(tmp_path):
    """A screenshot of macOS has U+202F in its name: an escaped name would match no file."""
    names = ["at 9.41\u202fAM.png", "全\u3000角.png", "soft\u00adhyphen.png", "\U0001f600.png"]
    names += [os.fsdecode(b"no text \xff.png"), "line\nbreak.png", "turned \u202e.png"]
    for name in names:
        flat(tmp_path / name, 1)
    assert set(find_images(tmp_path).names) == set(names)
    shown = [printable(name) for name in names]
    assert shown[:2] == names[:2] and shown[3] == names[3]
    assert shown[2] == "soft\\xadhyphen.png" and shown[4] == "no text \\udcff.png"
    assert shown[5:] == ["line\\nbreak.png", "turned \\u202e.png"]


def test_heic(tmp_path):
    """Where the extra is installed, photographs of telephones are read like all others."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra [heic]")
    from pandalib.datasets.images import Geometry

    grey = np.full((64, 64, 3), 90, np.uint8)
    pillow_heif.from_bytes("RGB", (64, 64), grey.tobytes()).save(tmp_path / "a.heic")
    found = find_images(tmp_path)
    assert found.names == ["a.heic"] and not found.left_out
    assert np.abs(Geometry.square(32).read(found.files[0]).astype(int) - 90).max() <= 3


def test_masks_beside_their_images_are_left_out(tmp_path):
    files(tmp_path, "a.jpg", "a_mask.png", "b.png", "b_GT.png", "c_mask.png", "in/deep/d.png")
    found = find_images(tmp_path)
    assert found.names == ["a.jpg", "b.png", "c_mask.png"]  # the last is nobody's mask
    assert "'a_mask.png', 'b_GT.png' (masks, by their names)" in found.warning
    assert "'in/' (1 image in it: name it, or --recursive" in found.warning


def test_a_pattern_passes_over_masks_below_it(tmp_path):
    files(tmp_path, "labels/set/test/a.png", "labels/set/ground_truth/a.png")
    found = find_images(tmp_path / "labels" / "set" / "**" / "*.png")
    assert [file.parent.name for file in found.files] == ["test"]
    assert "(masks)" in found.warning
    assert find_images(tmp_path / "labels" / "set" / "ground_truth" / "*.png").files


def test_what_is_named_twice_is_said(tmp_path):
    (path,) = files(tmp_path, "a.png")
    found = find_images([path, path])
    assert len(found.files) == 1 and "named more than once" in found.warning


def test_tables_that_are_none(tmp_path, monkeypatch):
    files(tmp_path, "~a.png")
    monkeypatch.chdir(tmp_path)
    assert find_images("~a.png").names == ["~a.png"]  # not somebody's home
    table = tmp_path / "t.csv"
    for content, words in (
        ("file\na.png".encode("utf-16"), "is a table in UTF-16: save it as UTF-8."),
        (b'file\n"' + b"x" * 140_000, "is no table: field larger than field limit"),
    ):
        table.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            find_images(table)
