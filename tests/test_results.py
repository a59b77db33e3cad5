"""What is said beside the results: near-duplicates, strange images, other sizes; p-values."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pandalib import Inspector, load_backbone
from pandalib.cli import main
from pandalib.datasets.folder import write_images
from pandalib.inspection.regions import p_values


def clouds(n, seed):
    """Soft shades of grey, 36 x 48 pixels."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(90, 160, (n, 1, 3, 4)))
    soft = F.interpolate(coarse, (36, 48), mode="bicubic").numpy() + rng.normal(
        0, 2, (n, 1, 36, 48)
    )
    return np.clip(soft, 0, 255).astype(np.uint8).repeat(3, axis=1)


def spoilt(pictures):
    """A square in white and black, at the same place in each."""
    pictures = pictures.copy()
    pictures[:, :, 4:12, 20:30] = 255
    pictures[:, :, 6:10, 22:28] = 0
    return pictures


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of 36 x 48 pixels: 20 to learn from; 6 good and 5 bad ones."""
    folder = tmp_path_factory.mktemp("photos")
    pictures = clouds(31, seed=3)
    write_images(pictures[:20], folder / "normal")
    write_images(pictures[20:26], folder / "test" / "good")
    write_images(spoilt(pictures[26:]), folder / "test" / "bad")
    return folder


@pytest.fixture(scope="module")
def model(photos, tmp_path_factory):
    target = str(tmp_path_factory.mktemp("model") / "m")
    assert main(["fit", str(photos / "normal"), "--size", "48", "--out", target]) == 0
    return target


def test_p_values_are_ranks():
    normal = np.random.default_rng(0).normal(size=40)
    scores = np.array([-9.0, normal[3], 0.1, 9.0])
    expected = [(1 + sum(one >= score for one in normal)) / 41 for score in scores]
    assert p_values(scores, normal) == pytest.approx(expected)


def test_other_sizes_are_named_in_a_note(model, photos, tmp_path, capsys):
    with Image.open(next((photos / "test" / "good").iterdir())) as picture:
        picture.resize((60, 45)).save(tmp_path / "larger.png")
    assert main(["score", model, str(tmp_path / "larger.png")]) == 0
    said = capsys.readouterr().err
    assert "note: images of 60 x 45 pixels, and normal ones of 48 x 36: at another scale" in said
    assert main(["score", model, str(photos / "test" / "good")]) == 0
    assert "another scale" not in capsys.readouterr().err


def test_near_duplicates_and_strange_images_are_said(photos, tmp_path, capsys):
    files = sorted((photos / "normal").iterdir())
    for file in files[:2]:
        with Image.open(file) as picture:  # saved again: other pixels, the same scene
            picture.save(tmp_path / f"{file.stem}.jpg", quality=97)
    with Image.open(files[9]) as picture:
        strange = spoilt(np.asarray(picture).transpose(2, 0, 1)[None])[0]
    Image.fromarray(strange.transpose(1, 2, 0)).save(tmp_path / "strange.png")
    given = [str(photos / "normal"), str(tmp_path / "*.*g")]
    rest = ["--size", "48", "--out", str(tmp_path / "m")]
    assert main(["fit", *given, *rest]) == 0
    said = capsys.readouterr().err
    assert "near-duplicates: 4 images in 2 groups" in said and "00.jpg" in said
    assert "the strangest normal images, in multiples of the median score" in said
    assert said.index("strange.png") > 0 and "images as " in said
    report = tmp_path / "reports" / "normal.html"
    rest += ["--force", "--report", str(report)]
    assert main(["fit", *given, *rest]) == 0
    page = report.read_text(encoding="utf-8")
    assert page.index("strange.png") < page.index("00.jpg") and "among the normal images?" in page
    # Nothing to review: the file is moved, and the detector fitted again.
    assert "<script" not in page and "verdict" not in page.lower()
    assert main(["fit", *given, *rest, "--leave-out-above", "3"]) == 0
    words = r"Already left out, by <code>--leave-out-above</code>:\s+<bdi>\S+strange.png"
    assert re.search(words, report.read_text("utf-8"))
    said = capsys.readouterr().err
    assert re.search(r"left out: \S+strange.png, [\d.]+ times the median normal score", said)


def test_a_report_of_normal_images_that_cannot_be_written(photos, tmp_path, capsys):
    folder, model = photos / "normal", tmp_path / "model"
    first = sorted(folder.iterdir())[0]
    for target, reason in (
        ("-", "expected the name of a file"),
        (str(first), "is one of the images"),
        (str(model / "r.html"), "lies in the detector's folder"),
        (str(tmp_path), "is a folder"),
    ):
        given = ["fit", str(folder), "--size", "48", "--out", str(model), "--report", target]
        assert main(given) == 2 and reason in capsys.readouterr().err
        assert not model.exists()
    assert main(["fit", str(folder), "--size", "48", "--out", str(model)]) == 0
    given = ["fit", str(folder), "--add-to", str(model), "--report", str(tmp_path / "r.html")]
    assert main(given) == 2 and "fit all with --out" in capsys.readouterr().err


# ---------------------------------------------------------------- nothing wrong without a word


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--csv", "{model}/detector.json"], "lies in the detector's folder"),
        (["--report", "{bad}/0000.png"], "is one of the images"),
        (["--csv", "{out}/x", "--json", "{out}/x"], "name the same file"),
        (["--maps", "{bad}"], "holds none of the images"),
        (["--maps", "{bad}/.."], "holds none of the images"),
        (["--maps", "-"], "holds none of the images"),
    ],
)
def test_a_target_never_replaces_what_is_there(model, photos, tmp_path, capsys, options, said):
    bad = photos / "test" / "bad"
    names = sorted(file.name for file in bad.iterdir())
    before = {file: file.read_bytes() for folder in (bad, Path(model)) for file in folder.iterdir()}
    words = [
        one.format(model=model, bad=bad, out=tmp_path).replace("0000.png", names[0])
        for one in options
    ]
    assert main(["score", model, str(bad), *words]) == 2
    assert said in capsys.readouterr().err
    after = {file: file.read_bytes() for folder in (bad, Path(model)) for file in folder.iterdir()}
    assert after == before and not [*tmp_path.iterdir()]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_no_file(model, photos, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert main(["score", model, str(photos / "normal"), "--csv", str(tmp_path / "pipe")]) == 2
    assert "is a device or a pipe" in capsys.readouterr().err and (tmp_path / "pipe").is_fifo()


def test_a_linked_target_stays_a_link(model, photos, tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "there.csv")
    bad = str(photos / "test" / "bad")
    assert main(["score", model, bad, "--csv", str(tmp_path / "link.csv")]) == 0
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "there.csv").stat().st_size


def test_a_map_that_cannot_be_written_loses_nothing_else(model, photos, tmp_path, capsys):
    first = next((photos / "test" / "bad").iterdir())
    (tmp_path / "in").mkdir()
    long = tmp_path / "in" / f"{'n' * 250}.png"
    long.write_bytes(first.read_bytes())
    targets = ["--csv", str(tmp_path / "t.csv"), "--maps", str(tmp_path / "maps")]
    assert main(["score", model, str(long.parent), *targets]) == 1
    assert (tmp_path / "t.csv").read_text().count("\n") == 2
    assert "was not written: File name too long" in capsys.readouterr().err


def test_the_run_is_not_lost_for_its_target(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pandalib.experiments.run.run", None)  # never reached
    words = ["--task", "pictograms:star", "--method", "dn2", "--json", str(tmp_path)]
    assert main(["run", *words]) == 2
    assert "is a folder: expected the name of a file" in capsys.readouterr().err


def test_a_review_never_contradicts_what_was_learned(model, photos):
    inspector = Inspector.load(model)
    normal, bad = (sorted((photos / name).iterdir()) for name in ("normal", "test/bad"))
    inspector.add_defects([bad[0]])
    threshold = inspector.threshold()
    with pytest.raises(ValueError, match="was confirmed as a defect before"):
        inspector.add([bad[0], bad[1]])
    with pytest.raises(ValueError, match="is one of the normal images that were learned"):
        inspector.add_defects([normal[0]])
    assert inspector.threshold() == threshold and len(inspector.check_names_) == 1


def test_what_no_command_could_load_is_not_fitted(photos):
    with pytest.raises(ValueError, match="expected at most 4194304 in all, as with size=2048"):
        Inspector(load_backbone(), size=4096, progress=False).fit(photos / "normal")


def test_a_long_burst_is_said(photos, tmp_path, capsys):
    rng = np.random.default_rng(0)
    scenes = clouds(5, seed=9)[np.arange(75) % 5].astype(int)
    frames = np.clip(scenes + rng.integers(-2, 3, scenes.shape), 0, 255).astype(np.uint8)
    write_images(frames, tmp_path / "film")
    words = ["--size", "48", "--out", str(tmp_path / "m"), "--false-alarm-rate", "0.2"]
    assert main(["fit", str(tmp_path / "film"), *words]) == 0
    assert "75 of 75 normal images are nearly the same as others" in capsys.readouterr().err
    assert main(["fit", str(photos / "normal"), "--size", "48", "--out", str(tmp_path / "n")]) == 0
    assert "nearly the same" not in capsys.readouterr().err


def test_all_normal_images_are_looked_at_before_some_are_left_out(tmp_path, capsys):
    pictures = clouds(60, seed=5)
    inspector = Inspector(load_backbone(), n_maps=20, size=48, progress=False)
    outside = sorted(set(range(60)) - set(inspector.fit(pictures).sample_.tolist()))[:3]
    pictures[outside] = spoilt(pictures[outside])
    inspector.set_params(leave_out_above=2.0).fit(pictures)
    assert {int(name.split()[1]) for name, _ in inspector.left_out_} >= set(outside)
    assert len(inspector.sample_) == 20
    write_images(pictures, tmp_path / "normal")
    words = ["--size", "48", "--n-maps", "20", "--out", str(tmp_path / "m")]
    assert main(["fit", str(tmp_path / "normal"), *words]) == 0
    assert "among 20 drawn from 60 (--n-maps 60 looks at all)" in capsys.readouterr().err


def test_only_the_first_page_is_read_and_that_is_said(model, photos, tmp_path, capsys):
    first = Image.open(next((photos / "normal").iterdir()))
    pages = [first, first.rotate(90)]
    first.save(tmp_path / "pages.tif", save_all=True, append_images=pages)
    assert main(["score", model, str(tmp_path)]) == 0
    said = "of files with several pages or frames the first is read: 'pages.tif'"
    assert said in capsys.readouterr().err


def test_settings_of_reading_that_cannot_be(model, photos, capsys):
    bad = str(photos / "test" / "bad")
    for words, said in (
        (["--device", "cuda:99"], "--device cuda:99 cannot be used"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--workers", "-1"], "--workers -1: expected 0 or more"),
    ):
        assert main(["score", model, bad, *words]) == 2
        assert said in capsys.readouterr().err
