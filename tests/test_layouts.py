"""Published layouts are recognised by name or refused in a sentence; masks are never classes."""

import csv
import shutil

import numpy as np
import pytest
from pictures import flat, one_sentence, save

from pandalib.datasets.folder import labelled_images, load_task
from pandalib.datasets.layouts import class_specs, images_to_fit, images_to_score, read_layout


def pictures(folder, n, value=10, ending="png"):
    return [flat(folder / f"{i:03}.{ending}", value + i) for i in range(n)]


def mask(path, row, value=255):
    marks = np.zeros((8, 8), np.uint8)
    marks[row] = value
    return save(path, marks)


def mvtec(root):
    pictures(root / "train" / "good", 6)
    pictures(root / "test" / "good", 3)
    for i, _ in enumerate(pictures(root / "test" / "hole", 2)):
        mask(root / "ground_truth" / "hole" / f"{i:03}_mask.png", i)
    return root


def btad(root):
    pictures(root / "train" / "ok", 6, ending="bmp")
    pictures(root / "test" / "ok", 3, ending="bmp")
    for i, _ in enumerate(pictures(root / "test" / "ko", 2, ending="bmp")):
        mask(root / "ground_truth" / "ko" / f"{i:03}.png", i)
    return root


def loco(root):
    pictures(root / "train" / "good", 6)
    pictures(root / "validation" / "good", 2)
    pictures(root / "test" / "good", 3)
    for kind in ("logical_anomalies", "structural_anomalies"):
        for i, _ in enumerate(pictures(root / "test" / kind, 1)):
            mask(root / "ground_truth" / kind / f"{i:03}" / "000.png", 0)
            mask(root / "ground_truth" / kind / f"{i:03}" / "001.png", 3)
    return root


def visa(root):
    images = root / "Data" / "Images"
    pictures(images / "Normal", 9, ending="JPG")
    for i, _ in enumerate(pictures(images / "Anomaly", 2, ending="JPG")):
        mask(root / "Data" / "Masks" / "Anomaly" / f"{i:03}.png", i, value=1 + i)
    return root


def visa_with_its_table(root):
    visa(root)
    (root.parent / "split_csv").mkdir()
    with open(root.parent / "split_csv" / "1cls.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("object split label image mask".split())
        writer.writerow(["other", "train", "normal", f"{root.name}/Data/Images/Normal/008.JPG", ""])
        for i in range(9):
            split = "test" if i < 3 else "train"
            name = f"{root.name}/Data/Images/Normal/{i:03}.JPG"
            writer.writerow([root.name, split, "normal", name, ""])
    return root


@pytest.mark.parametrize(
    "write, name, n_test, mask_rows",
    [
        (mvtec, "MVTec AD", 5, [[0], [1]]),
        (btad, "BTAD", 5, [[0], [1]]),
        (loco, "MVTec LOCO", 5, [[0, 3], [0, 3]]),
        (visa, "VisA", 4, [[0], [1]]),
        (visa_with_its_table, "VisA", 5, [[0], [1]]),
    ],
)
def test_published_layouts(tmp_path, write, name, n_test, mask_rows):
    root = write(tmp_path / "set" / "screw")
    task = load_task(root, size=8)
    assert task.name == f"folder:{root}" and class_specs(root) == [str(root)]
    assert task.labels.sum() == 2 and len(task.test) == n_test
    assert [np.flatnonzero(one.all(1)).tolist() for one in task.masks[-2:]] == mask_rows
    assert not task.masks[:-2].any()
    n_train = 7 if write is visa else 6
    assert len(task.train) == n_train and not set(task.train.files) & set(task.test.files)
    words = f"read as {name}: {n_train} training and {n_test} test images, 2 masks"
    assert task.note.startswith(words) and "\n" not in task.note
    fitted, scored = images_to_fit(root), images_to_score([str(root)])
    assert fitted.files == list(task.train.files)
    assert scored.files == sorted(task.test.files)
    assert fitted.note == f"read as {name}: {n_train} normal images"
    assert scored.note == f"read as {name}: {n_test} test images"
    assert all("/" in one and not one.startswith("/") for one in scored.names)


def test_visa_keeps_the_split_of_its_table(tmp_path):
    found = read_layout(visa_with_its_table(tmp_path / "set" / "candle"))
    assert [file.stem for file in found.tests["Normal"]] == ["000", "001", "002"]


def test_folders_that_are_no_data_set_are_listed_as_they_are(tmp_path):
    pictures(tmp_path, 2)
    assert len(images_to_score(tmp_path).files) == len(images_to_fit([tmp_path]).files) == 2
    assert images_to_score(tmp_path).note == ""
    pictures(tmp_path / "train" / "good", 3)  # without test images: still those to learn from
    assert images_to_fit(tmp_path).names == [f"train/good/00{i}.png" for i in range(3)]


@pytest.mark.parametrize("name", ["mask", "Masks", "ground_truth"])
@pytest.mark.parametrize("deeper", [False, True])
def test_masks_beside_classes_are_no_class(tmp_path, name, deeper):
    pictures(tmp_path / "normal", 10)
    pictures(tmp_path / "abnormal", 3)
    for i in range(3):
        mask(tmp_path / name / ("abnormal" if deeper else "") / f"{i:03}.png", i)
    task = load_task(f"{tmp_path}:normal", size=8)
    assert task.kinds == ("normal",) * 2 + ("abnormal",) * 3
    assert [np.flatnonzero(one.all(1)).tolist() for one in task.masks[2:]] == [[0], [1], [2]]
    assert class_specs(tmp_path) == [f"{tmp_path}:abnormal", f"{tmp_path}:normal"]
    assert labelled_images(tmp_path, size=8)[1].max() == 1
    assert task.note.startswith(
        "read as one folder per class: 8 training and 5 test images, 3 masks"
    )


def test_why_there_are_no_masks(tmp_path):
    root = mvtec(tmp_path / "a")
    assert "(missing_masks='none'), hence no pixel" in load_task(root, missing_masks="none").note
    (root / "ground_truth" / "hole" / "001_mask.png").unlink()
    note = load_task(root, missing_masks="drop").note
    assert "4 test images, 1 mask; 1 anomalous image without a mask left out" in note
    shutil.rmtree(root / "ground_truth")
    assert "no folder ground_truth" in load_task(root).note
    (root / "test" / "hole" / "x.heif").write_bytes(b"x")
    (root / "test" / "hole" / "x.dat").write_bytes(b"x")
    assert "left out: " in load_task(root).note


def test_layouts_that_are_refused(tmp_path):
    mvtec(tmp_path / "a" / "bottle")
    btad(tmp_path / "a" / "01")
    pictures(tmp_path / "b", 3)
    pictures(tmp_path / "c" / "normal", 9)
    pictures(tmp_path / "c" / "hole", 2)
    pictures(tmp_path / "c" / "dent", 2)
    mask(tmp_path / "c" / "mask" / "000.png", 1)
    for spec, words in (
        (tmp_path / "a", ["several data sets, 01, bottle", tmp_path / "a" / "01"]),
        (tmp_path / "b", ["MVTec AD, BTAD, VisA", "no class folders"]),
        (f"{tmp_path}/c:normal", ["share a name", "ambiguous"]),  # whose mask is 000.png?
    ):
        with pytest.raises(ValueError) as error:
            load_task(spec, size=8)
        one_sentence(error, *words)
