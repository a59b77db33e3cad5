"""Several normal classes at once."""

import numpy as np
import pytest
from PIL import Image

from pandalib import load_task
from pandalib.cache import content_key
from pandalib.datasets.pooling import Chosen, Joined, classes_of

SMALL = dict(n_train=4, n_test=3, seed=5)


def test_drawn_classes_are_pooled():
    """Training images of both; the test images of the single tasks, where those of either class are normal."""
    pooled = load_task("pictograms:star+phone", **SMALL)
    star, phone = (load_task(f"pictograms:{name}", **SMALL) for name in ("star", "phone"))
    assert pooled.name == "pictograms:star+phone" and np.array_equal(
        pooled.train, np.concatenate([star.train, phone.train])
    )
    assert (
        pooled.labels.tolist() == [int(kind not in ("star", "phone")) for kind in pooled.kinds]
        and pooled.labels.sum() == 8 * 3
        and pooled.masks is None
    )
    assert sorted(pooled.kinds) == sorted(star.kinds)
    shown = {bytes(image): kind for image, kind in zip(star.test, star.kinds)}
    assert len(shown) == 30 and [shown[bytes(image)] for image in pooled.test] == list(pooled.kinds)


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog", "ox"):
        (tmp_path / kind).mkdir()
        for number in range(10):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                tmp_path / kind / f"{number}.png"
            )
    return tmp_path


def test_folders_are_pooled_and_nothing_learned_from_is_tested(photographs):
    """A folder splits its normal class only: to the task of cats all dogs are test images, those that the task of dogs learns from as well."""
    pooled = load_task(f"folder:{photographs}:cat+dog", size=8)
    cat, dog, ox = (
        load_task(f"folder:{photographs}:{kind}", size=8) for kind in ("cat", "dog", "ox")
    )
    assert set(cat.files) & {str(file) for file in dog.train.files}  # the trap
    assert [str(file) for file in pooled.train.files] == [
        str(file) for task in (cat, dog) for file in task.train.files
    ]
    assert (
        not {str(file) for file in pooled.train.files} & set(pooled.files)
        and len(set(pooled.files)) == len(pooled.files) == 2 + 2 + 10
    )
    assert (
        pooled.labels.tolist() == [0] * 4 + [1] * 10
        and pooled.kinds == ("cat",) * 2 + ("dog",) * 2 + ("ox",) * 10
    )
    assert pooled.name == f"folder:{photographs}:cat+dog" and pooled.test[:].shape == (14, 3, 8, 8)
    for file, image in zip(pooled.files, pooled.test):
        with Image.open(file) as picture:
            assert np.array_equal(image, np.asarray(picture).transpose(2, 0, 1))


def test_sequences_without_a_copy(photographs):
    a, b = (load_task(f"folder:{photographs}:{kind}", size=8).train for kind in ("cat", "dog"))
    joined = Joined([a, b])
    whole = np.concatenate([a[:], b[:]])
    assert (
        joined.shape == (16, 3, 8, 8)
        and np.array_equal(joined[:], whole)
        and np.array_equal(joined[9], whole[9])
        and np.array_equal(joined[-1], whole[-1])
    )
    assert np.array_equal(joined[[15, 0, 8]], whole[[15, 0, 8]]) and np.array_equal(
        joined[6:10], whole[6:10]
    )
    some = Chosen(joined, np.array([8, 3]))
    assert np.array_equal(some[:], whole[[8, 3]]) and some.files == (b.files[0], a.files[3])
    keys = [
        content_key(images)
        for images in (joined, Joined([b, a]), some, Chosen(joined, np.array([3, 8])))
    ]
    assert len(set(keys)) == 4 and keys[0] == content_key(Joined([a, b]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pictograms:star+star", "expected different classes between the . signs"),
        ("pictograms:star+", "expected different classes between the . signs"),
        ("pictograms:star+hart", "pictograms:hart is unknown"),
        (
            "pictograms:star+umbrella+plane+heart+phone+anchor+scissors+notes+snowman+knight",
            "all classes are normal, and none is left to be anomalous",
        ),
        (
            "surfaces:weave+wood",
            "only data sets can be pooled whose test images are of the same classes",
        ),
    ],
)
def test_what_cannot_be_pooled(spec, message):
    with pytest.raises(ValueError, match=message):
        load_task(spec, n_train=4, n_test=1)


def test_what_is_pooled_and_what_is_not(tmp_path):
    assert classes_of("cifar10:cat+dog+ship") == ["cifar10:cat", "cifar10:dog", "cifar10:ship"]
    assert (
        classes_of("cifar10:cat")
        == classes_of("folder:/photos+more")
        == classes_of("unicorns+horses")
        == []
    )
    assert classes_of("folder:/a/b:x+y") == ["folder:/a/b:x", "folder:/a/b:y"]
    (tmp_path / "c++").mkdir()
    assert classes_of(f"folder:{tmp_path}:c++") == []  # a class of that name
