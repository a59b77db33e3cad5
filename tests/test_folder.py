"""Folders in every layout become the task that they should, or one clear error; and back again."""

import os
import shutil
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from pictures import flat, one_sentence, real, save
from PIL import Image

from pandalib.datasets import listing
from pandalib.datasets.folder import (
    labelled_images,
    load_task,
    open_images,
    write_images,
    write_mvtec,
)
from pandalib.datasets.images import Geometry, ImageError, ImageFolder
from pandalib.datasets.layouts import class_specs
from pandalib.datasets.load import load_task as load_any_task
from pandalib.datasets.synthetic.pictograms import Pictograms
from pandalib.datasets.task import OneClassTask


def classes(root, **counts):
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            flat(root / name / f"{i:02}.png", 50 * number + i)
    return root


def mvtec(root, masks=True):
    classes(root / "train", good=6)
    classes(root / "test", good=3, scratch=4, hole=2)
    for i in range(4 * masks):
        mask = np.zeros((8, 8), np.uint8)
        mask[i, :] = 255 * (i > 0)  # the first one is empty
        name = f"{i:02}_mask.png" if i % 2 else f"{i:02}.png"
        save(root / "ground_truth" / "scratch" / name, mask)
    for i in range(2 * masks):
        save(root / "ground_truth" / "hole" / f"{i:02}_mask.png", np.full((8, 8), 255, np.uint8))
    return root


def names(sequence):
    return [f"{file.parent.name}/{file.stem}" for file in sequence.files]


# ---------------------------------------------------------------- MVTec's layout


def test_mvtec_layout(tmp_path):
    root = mvtec(tmp_path / "parts")
    task = load_task(root, size=8)
    assert task.name == f"folder:{root}" == load_task(f"{root}:good", size=8).name
    assert names(task.train) == [f"good/0{i}" for i in range(6)]
    assert task.kinds == ("good",) * 3 + ("hole",) * 2 + ("scratch",) * 4
    assert task.labels.dtype == np.int64 and task.labels.tolist() == [0] * 3 + [1] * 6
    assert task.files == tuple(map(str, task.test.files))
    assert task.test[:].shape == (9, 3, 8, 8) and task.test[5].max() == 50
    assert task.masks.shape == (9, 8, 8) and task.masks.dtype == bool
    assert task.masks.sum((1, 2)).tolist() == [0, 0, 0, 64, 64, 0, 8, 8, 8]
    assert task.masks[7, 2].all()
    assert class_specs(root) == [str(root)]


def test_mvtec_without_masks(tmp_path):
    root = mvtec(tmp_path, masks=False)
    assert load_task(root, size=8).masks is None
    (root / "ground_truth" / "hole").mkdir(parents=True)
    assert load_task(root, size=8).masks is None


def test_missing_masks(tmp_path):
    root = mvtec(tmp_path)
    truth = root / "ground_truth"
    (truth / "scratch/01_mask.png").rename(truth / "scratch/99_mask.png")
    with pytest.raises(ValueError, match="1 of 6 anomalous images have no mask") as error:
        load_task(root, size=8, n_test=1)  # even if the sample would miss it
    one_sentence(error, truth / "scratch/01_mask.png", "'drop'")
    task = load_task(root, size=8, missing_masks="drop")
    assert names(task.test)[-4:] == ["hole/01", "scratch/00", "scratch/02", "scratch/03"]
    assert task.masks.sum((1, 2)).tolist() == [0, 0, 0, 64, 64, 0, 8, 8] and task.masks[6, 2].all()
    task = load_task(root, size=8, missing_masks="none")
    assert task.masks is None and len(task.test) == 9
    with pytest.raises(ValueError, match="missing_masks='skip'"):
        load_task(root, size=8, missing_masks="skip")

    shutil.rmtree(truth / "scratch")  # a defect without any mask is no reason to guess
    with pytest.raises(ValueError, match="4 of 6"):
        load_task(root, size=8)
    (truth / "hole/00_mask.png").rename(truth / "hole/x.png")
    (truth / "hole/01_mask.png").unlink()
    with pytest.raises(ValueError, match="6 of 6"):  # nothing pairs: wrong names, not "no masks"
        load_task(root, size=8)
    with pytest.raises(ValueError, match="no anomalous test images"):
        load_task(root, size=8, missing_masks="drop")


def test_masks_that_do_not_fit(tmp_path):
    root = mvtec(tmp_path)
    path = save(root / "ground_truth/hole/01_mask.png", np.zeros((16, 16), np.uint8))
    assert load_task(root, size=8).masks is not None  # another resolution is no harm
    save(path, np.zeros((16, 8), np.uint8))
    with pytest.raises(ImageError) as error:
        load_task(root, size=8)
    one_sentence(error, path, "01.png", "8 x 8", "8 x 16")
    save(root / "ground_truth/hole/01_mask.bmp", np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="masks are ambiguous") as error:
        load_task(root, size=8)
    one_sentence(error, "01_mask.bmp", "01_mask.png")


# ---------------------------------------------------------------- a folder per class


def test_train_and_test_classes(tmp_path):
    classes(tmp_path / "train", cat=5, dog=4)
    classes(tmp_path / "test", bird=2, cat=3, dog=2)
    task = load_task(f"{tmp_path}:dog", size=8)
    assert task.name == f"folder:{tmp_path}:dog" and task.masks is None
    assert names(task.train) == [f"dog/0{i}" for i in range(4)]
    assert task.train.files[0].parts[-3] == "train"
    assert task.kinds == ("dog",) * 2 + ("bird",) * 2 + ("cat",) * 3
    assert task.labels.tolist() == [0, 0, 1, 1, 1, 1, 1]
    specs = [f"{tmp_path}:cat", f"{tmp_path}:dog"]
    assert class_specs(tmp_path) == class_specs(f"{tmp_path}:cat") == specs


def test_class_called_good_among_others(tmp_path):
    """train/good makes it MVTec's layout only as long as nobody names another class."""
    classes(tmp_path / "train", good=3, bad=3)
    classes(tmp_path / "test", good=1, bad=1)
    assert load_task(f"{tmp_path}:bad", size=8).kinds == ("bad", "good")


def test_class_folders_are_split(tmp_path):
    classes(tmp_path, cat=20, dog=3, train=2)  # a class may be called "train"
    task = load_task(f"{tmp_path}:cat", size=8, seed=1)
    train, test = set(names(task.train)), set(names(task.test))
    assert len(train) == 16 and not train & test
    assert {f"cat/{i:02}" for i in range(20)} == train | {name for name in test if "cat" in name}
    assert task.kinds == ("cat",) * 4 + ("dog",) * 3 + ("train",) * 2
    assert names(task.train) == sorted(train)
    assert names(load_task(f"{tmp_path}:cat", size=8, seed=1).train) == names(task.train)
    assert names(load_task(f"{tmp_path}:cat", size=8, seed=2).train) != names(task.train)


def test_samples(tmp_path, monkeypatch):
    classes(tmp_path, cat=30, dog=20, eel=2)
    spec = f"{tmp_path}:cat"
    small, larger, whole = (
        load_task(spec, size=8, n_train=n, n_test=m) for n, m in ((5, 3), (9, 4), (None, None))
    )
    assert len(small.train) == 5 and small.kinds == ("cat",) * 3 + ("dog",) * 3 + ("eel",) * 2
    assert set(names(small.train)) < set(names(larger.train)) < set(names(whole.train))
    assert set(names(small.test)) < set(names(larger.test)) < set(names(whole.test))
    assert names(load_task(spec, size=8, n_train=5, n_test=3, seed=7).test) != names(small.test)
    assert len(load_task(spec, size=8, n_train=1000, n_test=1000).train) == 24

    iterdir = listing.Path.iterdir  # another file system lists in another order
    monkeypatch.setattr(listing.Path, "iterdir", lambda path: reversed(sorted(iterdir(path))))
    again = load_task(spec, size=8, n_train=5, n_test=3)
    assert (names(again.train), names(again.test)) == (names(small.train), names(small.test))

    classes(tmp_path, ape=20)  # a further class changes no other's sample, and repeats none
    more = names(load_task(spec, size=8, n_test=3).test)
    assert set(more) > set(names(small.test))
    assert len({name[-2:] for name in more if name[:3] in ("ape", "dog")}) > 3
    for wrong in ({"n_train": 1}, {"n_test": 0}):
        with pytest.raises(ValueError, match="expected at least") as error:
            load_task(spec, size=8, **wrong)
        one_sentence(error, *wrong)


def test_colons_spaces_unicode_links(tmp_path, monkeypatch):
    root = classes(tmp_path / "my parts: größe", **{"gut: ja": 5, "schlecht": 2})
    (tmp_path / "link").symlink_to(root)
    for spec in (f"{root}:gut: ja", f"{tmp_path}/link:gut: ja"):
        task = load_task(spec, size=8)
        assert task.kinds == ("gut: ja",) + ("schlecht",) * 2 and len(task.test[:]) == 3
    assert load_task(mvtec(tmp_path / "a:good"), size=8).name == f"folder:{tmp_path}/a:good"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert class_specs("~/link") == [f"{tmp_path}/link:gut: ja", f"{tmp_path}/link:schlecht"]
    accents = classes(tmp_path / "accents", **{unicodedata.normalize("NFD", "é"): 5, "x": 2})
    assert len(load_task(f"{accents}:{unicodedata.normalize('NFC', 'é')}", size=8).train) == 4


# ---------------------------------------------------------------- mistakes


def test_wrong_classes_and_paths(tmp_path):
    root = classes(tmp_path / "birds", airplane=3, bird=3)
    path = flat(tmp_path / "a.png", 1)
    (tmp_path / "empty").mkdir()
    for spec, kind, words in (
        (root, ValueError, ["which class is normal", "airplane, bird"]),
        (f"{root}:", ValueError, ["which class is normal"]),
        (f"{root}:plane", ValueError, ["no class 'plane'", "airplane, bird"]),
        (tmp_path / "empty", ValueError, ["no class folders", tmp_path / "empty"]),
        (f"{path}:cat", NotADirectoryError, ["is a file"]),
        (tmp_path / "gone", FileNotFoundError, [tmp_path / "gone"]),
        ("", FileNotFoundError, []),
    ):
        with pytest.raises(kind) as error:
            load_task(spec, size=8)
        one_sentence(error, *words)
    for spec in (f"{root}:plane", tmp_path / "empty"):
        with pytest.raises(ValueError):
            class_specs(spec)


def test_too_few_images(tmp_path):
    def fails(spec, *words):
        with pytest.raises(ValueError) as error:
            load_task(spec, size=8)
        one_sentence(error, *words)

    root = classes(tmp_path / "a", cat=2, dog=1)
    fails(f"{root}:cat", root, "1 normal training image(s)", "'cat'", "at least 2")
    fails(f"{root}:dog", "0 normal training image(s)")
    (root / "empty").mkdir()
    fails(f"{root}:cat", root / "empty", "holds no images")
    fails(f"{classes(tmp_path / 'b', cat=9)}:cat", "no anomalous test images", "cat")

    root = classes(tmp_path / "c" / "train", good=1).parent
    fails(root, root, "only one of train/ and test/")
    classes(root / "test", bad=1)
    fails(root, "1 normal training image(s)")
    classes(root / "train", good=2)
    fails(root, "no normal test images")
    shutil.move(root / "test/bad", root / "test/good")
    fails(root, "no anomalous test images")
    assert len(load_task(f"{classes(tmp_path / 'd', cat=3, dog=1)}:cat", size=8).train) == 2


def test_labelled_images(tmp_path):
    found, labels = labelled_images(classes(tmp_path / "a", cat=2, ape=1), size=4)
    assert names(found) == ["ape/00", "cat/00", "cat/01"] and labels.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="1 class folder"):
        labelled_images(classes(tmp_path / "b", cat=2), size=4)


# ---------------------------------------------------------------- images in any form


def test_open_images(tmp_path):
    first, second = (
        flat(tmp_path / "test" / "a.png", 1),
        flat(tmp_path / "test" / "in" / "b.png", 2),
    )
    good = flat(tmp_path / "train" / "good" / "c.png", 3)
    found, names = open_images(tmp_path / "test", 4)
    assert names == ["a.png"] and isinstance(found, ImageFolder) and found.shape[2:] == (4, 4)
    assert "'in/'" in found.listing.warning
    assert open_images(str(tmp_path / "test"), 4, recursive=True)[1] == ["a.png", "in/b.png"]
    assert open_images(tmp_path, 4)[1] == ["test/in/b.png"]  # MVTec's layout: its test images
    assert open_images(tmp_path, 4, normal=True)[1] == ["train/good/c.png"]
    assert open_images(second, 4)[1] == ["b.png"]
    found, names = open_images([first, str(second)], Geometry(4, 6))
    assert names == ["a.png", "in/b.png"] and found.shape == (2, 3, 4, 6)
    assert open_images(ImageFolder([good], Geometry.square(8)), 4)[1] == ["c.png"]
    drawn = Pictograms("star", 3)
    assert open_images(drawn, 4) == (drawn, ["image 0", "image 1", "image 2"])
    strange = flat(tmp_path / "line\nbreak\u202e\u202f é.png", 1)
    assert open_images([strange], 4)[1] == [strange.name]  # as it is: data files need the real one
    for wrong in (tmp_path / "train", [], None, 3, {"a": 1}):
        with pytest.raises(ValueError):
            open_images(wrong, 4)


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("spec", ["surfaces:tiles", "pictograms:phone"])
def test_what_is_written_is_read_back(tmp_path, spec):
    task = load_any_task(spec, seed=2, n_train=12, n_test=2)
    folder = write_mvtec(task, tmp_path / "deep" / "parts")
    again = load_task(folder, size=task.train.shape[-1])
    assert (again.train[:] == task.train).all()
    for kind in set(task.kinds):
        renamed = "good" if kind == "phone" else kind
        rows = [
            np.flatnonzero([k == name for k in found.kinds])
            for found, name in ((task, kind), (again, renamed))
        ]
        assert (task.test[rows[0]] == again.test[rows[1]]).all()
        assert (task.labels[rows[0]] == again.labels[rows[1]]).all()
        assert task.masks is None or (task.masks[rows[0]] == again.masks[rows[1]]).all()
    assert (again.masks is None) == (task.masks is None)
    assert os.listdir(tmp_path / "deep") == ["parts"]  # nothing half-written beside it
    with pytest.raises(FileExistsError, match="is not empty"):
        write_mvtec(again, folder)


def test_images_are_written_in_their_order(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (12, 3, 20, 20), dtype=np.uint8)
    folder = write_images(drawn, tmp_path / "new" / "photographs")
    files = sorted(folder.iterdir())
    assert files[0].name == "00.png" and len(files) == 12
    assert (np.stack([Geometry.square(20).read(file) for file in files]) == drawn).all()
    with pytest.raises(FileExistsError, match="is a file"):
        write_images(drawn, files[0])


def test_a_failed_export_leaves_nothing(tmp_path):
    def broken():
        yield np.zeros((3, 8, 8), np.uint8)
        raise OSError("the disk is full")

    class Broken(list):
        def __iter__(self):
            return broken()

    drawn = np.zeros((2, 3, 8, 8), np.uint8)
    task = OneClassTask("made:up", Broken([0, 0]), drawn, np.array([0, 1]), ("ok", "hole"))
    (tmp_path / "out").mkdir()
    for target in ("out", "new"):
        with pytest.raises(OSError, match="the disk is full"):
            write_mvtec(task, tmp_path / target)
    assert os.listdir(tmp_path) == ["out"] and not os.listdir(tmp_path / "out")
    for kind in ("good", "ok"):
        wrong = replace(task, train=drawn, kinds=("ok", kind))
        with pytest.raises(ValueError, match="also the name of normal") as error:
            write_mvtec(wrong, tmp_path / "x")
        one_sentence(error, repr(kind))


# ---------------------------------------------------------------- real images


def test_real_cifar10():
    root = real("cifar10")
    task = load_task(f"{root}:airplane", size=32, n_train=50, n_test=20)
    assert len(task.train) == 50 and task.labels.sum() == 180 and len(task.labels) == 200
    assert task.kinds[:20] == ("airplane",) * 20 and len(set(task.kinds)) == 10
    wanted = np.asarray(Image.open(task.files[25])).transpose(2, 0, 1)
    assert (task.test[:40][25] == wanted).all()
    assert len(class_specs(root)) == 10


def test_real_mvtec_leather():
    root = real("mvtec_leather")
    with pytest.raises(ValueError, match="color/008_mask.png"):
        load_task(root, size=64)
    task = load_task(root, size=56, resize=64, missing_masks="drop")
    assert task.train[:].shape == (4, 3, 56, 56) and task.kinds.count("good") == 4
    marked = task.masks.any((1, 2))
    assert marked[task.labels == 1].mean() > 0.8 and not marked[task.labels == 0].any()
