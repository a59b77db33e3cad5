"""Tasks by name: every source, its options, and several normal classes at once."""

import numpy as np
import pytest
from pictures import flat, one_sentence, save

from pandalib import load_task, sibling_tasks
from pandalib.cache import content_key
from pandalib.datasets.load import SOURCES, classes_of
from pandalib.datasets.task import sample, split_80_20

SMALL = dict(n_train=4, n_test=3, seed=5)


def test_samples_nest_and_splits_are_disjoint():
    items = list(range(100))
    few, more = sample(items, 5, 1, "a"), sample(items, 20, 1, "a")
    assert set(few) < set(more) and more == sorted(more) and sample(items, None, 1, "a") == items
    assert len({tuple(sample(items, 5, seed, stream)) for seed in (1, 2) for stream in "ab"}) == 4
    train, test = split_80_20(items, 0)
    assert len(train) == 80 and sorted(train + test) == items
    assert len(split_80_20(items[:2], 0)[1]) == 1  # at least one is tested


def test_every_source_has_tasks(tmp_path):
    for source in SOURCES:
        if source not in ("folder", "cub200"):  # whose classes are read from the disk
            siblings = sibling_tasks(f"{source}:x")
            assert all(sibling.startswith(f"{source}:") for sibling in siblings) and siblings
    for name in ("a", "b"):
        flat(tmp_path / name / "1.png", 1)
    expected = [f"folder:{tmp_path}:a", f"folder:{tmp_path}:b"]
    assert sibling_tasks(f"folder:{tmp_path}:b") == expected


@pytest.mark.parametrize(
    "spec, options, words",
    [
        ("pictogram:star", {}, "SOURCE one of pictograms"),
        ("pictograms:stra", {}, "choose one of star"),
        ("pictograms:star", {"size": 128}, "size of 64"),
        ("pictograms:star", {"resize": 70}, "resize=70 does not concern pictograms:star"),
        ("pictograms:star", {"defects": ["hole"]}, "defects=['hole'] does not concern"),
        ("folder:.", {"level": "easy"}, "level='easy' does not concern"),
        ("cifar10:cat", {"level": "hard"}, "level='hard' does not concern"),
        ("surfaces:weave", {"missing_masks": "drop"}, "does not concern"),
        ("pictograms:star+heart", {"resize": 70}, "does not concern"),
        ("", {}, "is unknown"),
    ],
)
def test_mistakes(spec, options, words):
    with pytest.raises(ValueError) as error:
        load_task(spec, **options)
    one_sentence(error, words)
    with pytest.raises(ValueError, match="is unknown"):
        sibling_tasks("imagenet:cat")
    with pytest.raises(FileNotFoundError):
        load_task("folder:")


# ---------------------------------------------------------------- several normal classes


def test_drawn_classes_are_pooled():
    """Training images of both; the test images of each alone, where those of either are normal."""
    pooled = load_task("pictograms:star+phone", **SMALL)
    star, phone = (load_task(f"pictograms:{name}", **SMALL) for name in ("star", "phone"))
    assert pooled.name == "pictograms:star+phone" and pooled.masks is None
    assert (pooled.train == np.concatenate([star.train, phone.train])).all()
    assert pooled.labels.tolist() == [int(kind not in ("star", "phone")) for kind in pooled.kinds]
    assert pooled.labels.sum() == 8 * 3 and sorted(pooled.kinds) == sorted(star.kinds)
    shown = {bytes(image): kind for image, kind in zip(star.test, star.kinds, strict=True)}
    assert [shown[bytes(image)] for image in pooled.test] == list(pooled.kinds)


@pytest.mark.parametrize("split", ["", "train"])
def test_folders_are_pooled_and_nothing_learned_from_is_tested(tmp_path, split):
    """To the task of cats all dogs are test images, those that the task of dogs learns from too."""
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog", "ox"):
        for number in range(10):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            save(tmp_path / split / kind / f"{number}.png", pixels)
            if split:
                flat(tmp_path / "test" / kind / f"{number}.png", number)
    pooled = load_task(f"folder:{tmp_path}:cat+dog", size=8)
    cat, dog = (load_task(f"folder:{tmp_path}:{kind}", size=8) for kind in ("cat", "dog"))
    trained = [str(file) for file in pooled.train.files]
    assert trained == [str(file) for task in (cat, dog) for file in task.train.files]
    assert not set(trained) & set(pooled.files)
    n = 10 if split else 2
    assert pooled.kinds == ("cat",) * n + ("dog",) * n + ("ox",) * 10
    assert pooled.labels.tolist() == [0] * 2 * n + [1] * 10
    assert pooled.name == f"folder:{tmp_path}:cat+dog"
    assert pooled.files == tuple(map(str, pooled.test.files))
    assert (pooled.train[:] == np.concatenate([cat.train[:], dog.train[:]])).all()
    assert content_key(pooled.train) != content_key(cat.train)


@pytest.mark.parametrize(
    "spec, words",
    [
        ("pictograms:star+star", "different classes between the + signs"),
        ("pictograms:star+", "pictograms: is unknown"),
        ("pictograms:star+hart", "pictograms:hart is unknown"),
        ("pictograms:" + "+".join(s.split(":")[1] for s in sibling_tasks("pictograms")), "none is"),
        ("surfaces:weave+wood", "cannot be pooled"),
    ],
)
def test_what_cannot_be_pooled(spec, words):
    with pytest.raises(ValueError) as error:
        load_task(spec, n_train=4, n_test=1)
    one_sentence(error, words)


def test_what_is_pooled_and_what_is_not(tmp_path):
    assert classes_of("cifar10:cat+dog+ship") == ["cifar10:cat", "cifar10:dog", "cifar10:ship"]
    assert classes_of("folder:/a/b:x+y") == ["folder:/a/b:x", "folder:/a/b:y"]
    for single in ("cifar10:cat", "folder:/photos+more", "unicorns+horses"):
        assert classes_of(single) == []
    (tmp_path / "c++").mkdir()
    assert classes_of(f"folder:{tmp_path}:c++") == []  # a class of that name
