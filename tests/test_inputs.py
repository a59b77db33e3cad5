"""The Fisher information of a run, from every source; its outliers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small import images, small_backbone

from pandalib import fisher_information, linear_probe, load_backbone, load_task, upstream_fisher
from pandalib.datasets.images import read_image
from pandalib.experiments import inputs
from pandalib.experiments.inputs import fisher_of, outliers_of

IMAGES = images(6)


def write_images(folder, n, seed):
    folder.mkdir(parents=True)
    for number, picture in enumerate(images(n, seed=seed)):
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"{number}.png")


def difference(one, other):
    return max(float((one.values[name] - other.values[name]).abs().max()) for name in one.values)


# ---------------------------------------------------------------- Fisher information


def test_a_whole_network_predicts_on_the_normal_images():
    network = small_backbone()
    expected = fisher_information(network, IMAGES, seed=2, progress=False)
    assert difference(fisher_of(network, IMAGES, seed=2), expected) == 0


def test_a_file_that_belongs_to_the_network(tmp_path):
    network, path = small_backbone(), tmp_path / "f.safetensors"
    saved = fisher_information(network, IMAGES, progress=False)
    saved.save(path)
    assert difference(fisher_of(network, images(2), path), saved) == 0
    with pytest.raises(ValueError, match="belongs to"):
        fisher_of(small_backbone(1), IMAGES, path)
    for options in (dict(images=tmp_path), dict(recipe="batch-mean")):
        with pytest.raises(ValueError, match="leave out images and recipe"):
            fisher_of(network, IMAGES, path, **options)


@pytest.mark.parametrize("truncate_after", ["layer4", "layer3"])
def test_a_folder_of_labelled_images(tmp_path, truncate_after):
    write_images(tmp_path / "a", 4, seed=4)
    write_images(tmp_path / "b", 5, seed=5)
    network = small_backbone(truncate_after=truncate_after)
    pictures = np.concatenate([images(4, seed=4), images(5, seed=5)])
    probe = None
    if network.classifier is None:
        probe = linear_probe(network, pictures, [0] * 4 + [1] * 5, seed=2)
    expected = fisher_information(network, pictures, classifier=probe, seed=2, progress=False)
    found = fisher_of(network, IMAGES, images=tmp_path, seed=2, progress=False)
    assert difference(found, expected) < 1e-5 and found.recipe == expected.recipe
    assert ("linear probe" in found.recipe) == (truncate_after == "layer3")
    larger = fisher_of(network, IMAGES, images=tmp_path, size=48, seed=2, progress=False)
    assert difference(larger, expected) > 1e-3


def test_without_a_classifier_there_is_no_fisher_information():
    with pytest.raises(ValueError, match="small up to layer3 has no classifier: EWC needs"):
        fisher_of(small_backbone(truncate_after="layer3"), IMAGES)


def test_recipes():
    network, many = small_backbone(), images(40)
    fair = fisher_of(network, many, progress=False)
    biased = fisher_of(network, many, recipe="batch-mean", progress=False)
    expected = fisher_information(network, many, batch_size=32, progress=False)
    assert difference(biased, expected) == 0 and biased.mean() < fair.mean() / 4
    uniform = fisher_of(network, many, recipe="uniform", progress=False)
    assert all((value == value.flatten()[0]).all() for value in uniform.values.values())
    assert uniform.mean() == pytest.approx(fair.mean(), rel=1e-5)
    assert fair.recipe in uniform.recipe
    with pytest.raises(ValueError, match="fisher_recipe='mean' is unknown: choose one of"):
        fisher_of(network, many, recipe="mean")


def test_the_embedded_network_takes_its_own_pretraining_task(tmp_path, monkeypatch):
    monkeypatch.setenv("PANDALIB_CACHE", str(tmp_path))
    network = load_backbone()
    first = upstream_fisher(network, 3, progress=False)
    (path,) = tmp_path.glob("fisher-*.safetensors")
    when = path.stat().st_mtime_ns
    again = upstream_fisher(network, 3, progress=False)
    assert difference(first, again) == 0 and path.stat().st_mtime_ns == when
    path.write_bytes(path.read_bytes()[:-8])  # damaged: worked out again
    assert difference(first, upstream_fisher(network, 3, progress=False)) == 0
    for options in (dict(seed=1), dict(batch_size=2)):
        assert difference(first, upstream_fisher(network, 3, progress=False, **options)) > 0
    assert len(list(tmp_path.glob("fisher-*.safetensors"))) == 3
    seen = []
    monkeypatch.setattr(inputs, "upstream_fisher", lambda *a, **b: seen.append(b) or first)
    assert fisher_of(network, IMAGES, recipe="batch-mean") is first
    assert seen == [dict(batch_size=32, progress=True)]
    with pytest.raises(ValueError, match="was not pretrained on glyphs"):
        upstream_fisher(small_backbone())


# ---------------------------------------------------------------- outliers


@pytest.fixture
def folder(tmp_path):
    """A task of two classes, and a folder of other images."""
    for seed, (kind, n) in enumerate(
        [("task/good", 12), ("task/bad", 12), ("others/one", 5), ("others/two", 4)]
    ):
        write_images(tmp_path / kind, n, seed)
    return tmp_path


def test_drawn_outliers():
    task = load_task("pictograms:star", n_train=2, n_test=1)
    assert outliers_of(task, n=3).shape == (3, 3, 64, 64)
    far = outliers_of(task, "far", 2, level="plain", seed=1)
    assert np.array_equal(far, inputs.load_outliers("far", 2, level="plain", seed=1))
    calls = []
    outliers_of(task, n=2, recall=lambda function, *a, **b: calls.append(a) or function(*a, **b))
    assert calls == [("near", 2)]


def test_outliers_of_a_folder_have_the_geometry_of_the_task(folder):
    """Outliers with another border could be told apart by it."""
    task = load_task(f"folder:{folder / 'task'}:good", size=32, resize=40)
    found = outliers_of(task, str(folder / "others"), resize=40)
    assert len(found) == 9
    assert np.array_equal(found[0], read_image(folder / "others" / "one" / "0.png", 32, 40))
    assert len(outliers_of(task, str(folder / "others"), 4)) == 4


def test_outliers_of_a_data_set(monkeypatch):
    """As many training images of each class; never of the data set that is tested."""

    def tiny(spec, *, n_train, **_):
        label = "abc".index(spec[-1])
        drawn = np.random.default_rng(label).integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
        return SimpleNamespace(train=drawn[:n_train])

    monkeypatch.setattr(inputs, "load_task", tiny)
    monkeypatch.setattr(inputs, "sibling_tasks", lambda name: [f"{name}:{kind}" for kind in "abc"])
    test = np.zeros((2, 3, 32, 32), np.uint8)
    task = SimpleNamespace(
        name="cifar10:bird", train=test, test=test.copy(), files=None, kinds=("a", "b")
    )
    whole, some = outliers_of(task, "cifar100"), outliers_of(task, "cifar100", 5)
    assert len(whole) == 21 and len(some) == 5
    assert np.array_equal(whole[8], tiny("cifar100:b", n_train=None).train[1])
    first_two = np.concatenate([tiny(f"cifar100:{kind}", n_train=2).train for kind in "abc"])
    assert set(map(bytes, some[:])) < set(map(bytes, first_two))
    with pytest.raises(ValueError, match="they are of the same data set"):
        outliers_of(task, "cifar10")
    task.test[1] = whole[4]
    with pytest.raises(ValueError, match="test image '1'"):
        outliers_of(task, "cifar100")


@pytest.mark.parametrize(
    ("task", "given", "words"),
    [
        (
            "pictograms:star",
            "nearer",
            "'nearer' is unknown: choose one of near, middle, far, noise",
        ),
        ("surfaces:weave", None, "needs outlier_images: a folder of images that are not normal"),
        ("surfaces:weave", "noise", "'noise' outliers are drawn for pictograms only"),
        ("folder:{}/task:good", "{}/task/bad", "nothing may be learned from what is tested"),
    ],
)
def test_outliers_that_cannot_be(task, given, words, folder):
    size = {} if task.startswith("folder") else dict(n_train=2, n_test=1)
    task = load_task(task.format(folder), **size)
    with pytest.raises(ValueError, match=words):
        outliers_of(task, given and given.format(folder))


def test_the_types_of_the_uniform_recipe_are_kept():
    found = fisher_of(small_backbone(), IMAGES, recipe="uniform", progress=False)
    assert all(value.dtype == torch.float32 for value in found.values.values())
