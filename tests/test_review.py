"""A review is read with care: only images below its folder, only the two verdicts."""

import json

import pytest

from pandalib.inspection.review import FORMAT, read_review


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos" / "b").mkdir(parents=True)
    for name in ("a.png", "b/c.png", "d\udce9.png"):
        (tmp_path / "photos" / name).write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "secret.png")
    return tmp_path / "photos"


def write(folder, *entries, **changes):
    entries = [dict(file=name, verdict=verdict) for name, verdict in entries]
    path = folder / "review.json"
    path.write_text(json.dumps(FORMAT | {"reviewed": entries} | changes))
    return path


def test_files_by_verdict(folder):
    path = write(folder, ("a.png", "normal"), ("b/c.png", "defect"), ("d\udce9.png", "normal"))
    found = read_review(path)
    assert found.normal == [folder / "a.png", folder / "d\udce9.png"]
    assert found.defects == [folder / "b" / "c.png"] and found.defect_names == ["b/c.png"]
    moved = path.rename(folder.parent / "review.json")
    assert read_review(moved, folder) == found
    with pytest.raises(FileNotFoundError, match="'a.png', which is not in .*folder that was sc"):
        read_review(moved)


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/passwd", "b/../../secret.png", "link.png", "", "a\0.png", "..", "."],
)
def test_no_name_leads_out_of_the_folder(folder, name):
    words = "leads out of|is not in"
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_review(write(folder, (name, "normal")))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[" * 100_000, "{}", "null", '{"format": "pandalib review", "version": 1}'],
)
def test_what_is_no_review(folder, text):
    (folder / "review.json").write_text(text)
    with pytest.raises(ValueError, match="review.json' is not a review as a report writes it"):
        read_review(folder / "review.json")


def test_entries_that_make_no_sense(folder):
    twice = [("a.png", "normal"), ("a.png", "defect")]
    for entries in (twice, [("a.png", "fine")], [(7, "normal")]):
        with pytest.raises(ValueError, match="is not a review"):
            read_review(write(folder, *entries))
    for changes in (dict(version=2), dict(reviewed=[3]), dict(reviewed=None)):
        with pytest.raises(ValueError, match="is not a review"):
            read_review(write(folder, **changes))
    with pytest.raises(FileNotFoundError, match="there is no review"):
        read_review(folder / "none.json")
    with pytest.raises(ValueError, match="is no folder"):
        read_review(write(folder), folder / "a.png")
