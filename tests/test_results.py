"""Regions, p-values, heat maps as files; targets are tried before the work; labelled images."""

import csv
import io
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small import images, small_backbone

from pandalib import Inspector, roc_auc
from pandalib.cli import main
from pandalib.datasets.folder import write_images
from pandalib.datasets.images import Geometry
from pandalib.inspection.evaluation import compare, f1, labelled, measure, precision, recall
from pandalib.inspection.regions import find_regions, p_values
from pandalib.inspection.results import check_targets, map_writer


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


# --- regions and p-values ---


def test_regions_are_in_pixels_of_the_original():
    heat = np.zeros((20, 40), np.float32)
    heat[2:5, 10:20] = 3.0
    heat[3, 15] = 5.0
    heat[15, 30], heat[16, 31] = 2.5, 2.0  # corners touch: one region
    heat[10, 10] = 0.9
    high, low = find_regions(heat, 1.0, Geometry(20, 40), 200, 400)
    assert high[:5] == (100, 20, 200, 50, 3000) and high.peak == 5
    assert (high.peak_x, high.peak_y) == (155, 35)
    assert low[:5] == (300, 150, 320, 170, 200) and low.peak == 2.5
    assert find_regions(heat, 5.0, Geometry(20, 40), 200, 400) == []
    # padded and cropped images: the same place of the original, 100 x 200
    square = np.zeros((40, 40), np.float32)
    square[20, 20] = 1
    for geometry in (Geometry(40, 40, "pad"), Geometry.square(40, fit="crop")):
        (found,) = find_regions(square, 0.5, geometry, 100, 200)
        assert abs(found.peak_x - 102) <= 2 and abs(found.peak_y - 52) <= 2
    (edge,) = find_regions(np.ones((4, 4)), 0.5, Geometry(4, 4, "pad"), 100, 200)
    assert edge[:4] == (0, 0, 200, 100) and edge.peak_y >= 0  # nothing beyond the image


def test_p_values_are_ranks():
    normal = np.random.default_rng(0).normal(size=40)
    scores = np.array([-9.0, normal[3], 0.1, 9.0])
    expected = [(1 + sum(one >= score for one in normal)) / 41 for score in scores]
    assert p_values(scores, normal) == pytest.approx(expected)


# --- files ---


def test_maps_have_the_size_of_the_original(model, photos, tmp_path, capsys):
    target = tmp_path / "maps"
    rest = ["--maps", str(target), "--json", str(tmp_path / "s.json"), "--csv", "-"]
    assert main(["score", model, str(photos / "test" / "bad"), *rest]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    found = json.loads((tmp_path / "s.json").read_text())
    detector = Inspector.load(model)
    for row, entry in zip(rows, found["images"], strict=True):
        name = entry["file"]
        with Image.open(target / f"{name}.map.tif") as heat:
            values = np.asarray(heat)
        assert values.dtype == np.uint16 and values.shape == (36, 48)
        assert values.max() / 1000 == pytest.approx(entry["place"] / found["threshold"], rel=0.02)
        with Image.open(target / f"{name}.map.png") as picture:
            assert picture.size == (48, 36)
        region = entry["regions"][0]
        assert int(row["n_regions"]) == len(entry["regions"]) > 0
        assert int(row["region_left"]) == region["left"] <= region["peak_x"] < region["right"]
        assert 14 <= region["peak_x"] <= 36 and region["peak_y"] <= 18  # the square
        assert row["alarm"] == "True" and float(row["p_value"]) == pytest.approx(1 / 21)
    assert len(list(target.iterdir())) == 10
    # a name that leads out of the folder stays inside
    write = map_writer(tmp_path / "inside", detector, 1.0)
    write("../../x.png", images(1, 48)[0, :, :36], np.zeros((36, 48), np.float32))
    assert (tmp_path / "inside" / "x.png.map.png").is_file()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--report", ".", "--report '.' is a folder: expected the name of a file, as"),
        ("--csv", "nowhere/t.csv", "there is no folder 'nowhere'"),
        ("--json", "/", "is a folder"),
        ("--maps", __file__, "is a file: expected a folder"),
    ],
)
def test_targets_are_tried_before_the_work(
    model, photos, option, value, words, capsys, monkeypatch
):
    monkeypatch.setattr(Inspector, "rank", lambda *_, **__: pytest.fail("scored first"))
    assert main(["score", model, str(photos / "test" / "bad"), option, value]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to(monkeypatch, tmp_path):
    monkeypatch.setattr("pandalib.inspection.results.os.access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot be written to"):
        check_targets(folders=[tmp_path / "new" / "deep"])
    check_targets(csv="-", json=None)


def test_files_patterns_and_tables_are_images(model, photos, tmp_path, capsys):
    bad = photos / "test" / "bad"
    files = sorted(map(str, bad.iterdir()))
    table = tmp_path / "list.csv"
    table.write_text("file\n" + "\n".join(files) + "\n")
    printed = []
    for given in ([str(bad)], files, [str(bad / "*.png")], [str(table)]):
        assert main(["score", model, *given]) == 0
        printed.append(capsys.readouterr().out)
    assert len(set(printed)) == 1 and "5 of 5 images raise an alarm" in printed[0]
    assert main(["score", model, str(bad), "--fail-on-alarm"]) == 3


def test_fitted_images_are_named_in_a_note(model, photos, capsys):
    assert main(["score", model, str(photos / "normal"), str(photos / "test" / "good")]) == 0
    assert "note: the detector was fitted to 20 of these images" in capsys.readouterr().err


def test_other_sizes_are_named_in_a_note(model, photos, tmp_path, capsys):
    with Image.open(next((photos / "test" / "good").iterdir())) as picture:
        picture.resize((60, 45)).save(tmp_path / "larger.png")
    assert main(["score", model, str(tmp_path / "larger.png")]) == 0
    said = capsys.readouterr().err
    assert "note: images of 60 x 45 pixels, and normal ones of 48 x 36: at another scale" in said
    assert main(["score", model, str(photos / "test" / "good")]) == 0
    assert "another scale" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        (["--weights", "random"], "a detector on them could not be loaded again"),
        (["--weights", "x.pth"], "without --backbone: name the network"),
        (["--out", __file__], "is a file: expected a folder"),
    ],
)
def test_a_fit_that_could_not_be_used_is_refused(photos, tmp_path, rest, words, capsys):
    target = [] if "--out" in rest else ["--out", str(tmp_path / "m")]
    assert main(["fit", str(photos / "normal"), *target, *rest]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "m").exists()


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
    assert "strangest, in medians of the normal scores: " in said
    assert said.index("strange.png") > 0 and "images read at" in said
    assert main(["fit", *given, *rest, "--force", "--leave-out-above", "3"]) == 0
    assert "strange.png scores" in capsys.readouterr().err


# --- labelled images ---


def test_evaluation_is_by_its_definitions(model, photos):
    detector = Inspector.load(model)
    listing, labels = labelled(f"{photos / 'test'}:good")
    assert labels.tolist() == [0] * 6 + [1] * 5 and "6 normal and 5 anomalous" in listing.note
    result = measure(detector, listing, labels, rate=0.5)
    scores = detector.score(listing) / detector.threshold(0.5)
    assert np.array_equal(result.scores, scores)
    hits, false = (scores[6:] > 1).sum(), (scores[:6] > 1).sum()
    facts = result.facts
    assert facts["roc_auc"] == roc_auc(labels, scores)
    assert facts["recall"] == hits / 5 and facts["false_alarm_rate"] == false / 6
    assert facts["precision"] == hits / (hits + false)
    assert facts["f1"] == pytest.approx(2 * hits / (2 * hits + false + 5 - hits))
    low, high = facts["false_alarm_rate_interval"]
    assert low <= facts["false_alarm_rate"] <= high
    nothing = np.zeros(4)
    truth = np.array([True, False, True, False])
    assert precision(truth, nothing) == recall(truth, nothing) == f1(truth, nothing) == 0
    assert compare(result, result) == dict(roc_auc=0.0, roc_auc_interval=(0.0, 0.0))


def test_evaluate_compares_two_detectors(model, photos, tmp_path, capsys):
    other = Inspector(small_backbone(), size=48, place="spade", progress=False)
    folder = f"{photos / 'test'}:good"
    assert (
        main(["evaluate", model, folder, "--against", model, "--json", str(tmp_path / "e.json")])
        == 0
    )
    printed = capsys.readouterr().out
    assert "6 normal and 5 anomalous images" in printed and "ROC-AUC  " in printed
    assert "ROC-AUC of the first minus the second: +0.000 (+0.000 to +0.000)" in printed
    content = json.loads((tmp_path / "e.json").read_text())
    assert content["model"] == content["against"] and content["difference"]["roc_auc"] == 0
    assert other.place == "spade"
    assert main(["evaluate", model, str(photos / "normal")]) == 2


def test_labelled_images_of_both_kinds_are_needed(photos, tmp_path):
    write_images(images(3, 48), tmp_path / "one" / "good")
    write_images(images(3, 48), tmp_path / "one" / "bad")
    (tmp_path / "one" / "bad" / "0.png").unlink()
    listing, labels = labelled(f"{tmp_path / 'one'}:good")
    assert labels.tolist() == [0, 0, 0, 1, 1]  # all images of one folder per class
