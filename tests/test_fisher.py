"""The Fisher information of a run, from every source."""

import numpy as np
import pytest
from PIL import Image
from small import images, small_backbone

from pandalib import fisher_information, linear_probe, load_backbone, upstream_fisher
from pandalib.experiments import fisher as sources
from pandalib.experiments.fisher import fisher_of

IMAGES = images(6)


def write_images(folder, n, seed):
    folder.mkdir(parents=True)
    for number, picture in enumerate(images(n, seed=seed)):
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"{number}.png")


def difference(one, other):
    return max(float((one.values[name] - other.values[name]).abs().max()) for name in one.values)


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
        probe = linear_probe(network, pictures, [0] * 4 + [1] * 5)
    expected = fisher_information(network, pictures, classifier=probe, seed=2, progress=False)
    found = fisher_of(network, IMAGES, images=tmp_path, seed=2, progress=False)
    assert difference(found, expected) < 1e-5 and found.recipe == expected.recipe
    assert ("linear probe" in found.recipe) == (truncate_after == "layer3")


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
    monkeypatch.setattr(sources, "upstream_fisher", lambda *a, **b: seen.append(b) or first)
    assert fisher_of(network, IMAGES, recipe="batch-mean") is first
    assert seen == [dict(batch_size=32, progress=True)]
    with pytest.raises(ValueError, match="was not pretrained on glyphs"):
        upstream_fisher(small_backbone())
