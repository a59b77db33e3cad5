"""Backbones: what is cut, frozen, folded and cached changes nothing but the speed; wrong weights are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from pandalib import backbones
from pandalib.backbones import (
    EMBEDDED,
    Backbone,
    fold_batchnorm,
    load_backbone,
    normalise,
    read_state,
    verify_embedded,
)
from pandalib.cache import FeatureCache
from pandalib.io import data_folder

IMAGES = np.random.default_rng(0).integers(0, 256, size=(6, 3, 64, 64), dtype=np.uint8)


@pytest.fixture(scope="module")
def embedded() -> Backbone:
    return load_backbone()


def whole_network(state_file) -> nn.Module:
    """The embedded network as torchvision builds it, nothing folded, nothing cut."""
    state = read_state(state_file)
    network = backbones.embedded_network(len(state["fc.weight"]))
    network.load_state_dict(state)
    return network.eval()


def test_features_are_those_of_the_plain_network(embedded):
    network = whole_network(verify_embedded())
    logits = []
    network.avgpool.register_forward_hook(
        lambda module, inputs, output: logits.append(output.flatten(1))
    )
    with torch.inference_mode():
        scale = torch.from_numpy(IMAGES).float() / 255
        mean, std = (
            torch.tensor(backbones.MEAN).view(1, 3, 1, 1),
            torch.tensor(backbones.STD).view(1, 3, 1, 1),
        )
        plain_logits = network((scale - mean) / std)
    features = embedded.features(IMAGES)
    assert features.shape == (6, 512) and features.dtype == np.float32
    expected = logits[0].numpy()
    assert np.abs(features - expected).max() < 1e-5 * np.abs(expected).max() + 1e-5
    with torch.inference_mode():
        last = embedded(normalise(IMAGES), layers=["layer4"])["layer4"]
        assert torch.allclose(embedded.classifier(last), plain_logits, atol=1e-4)


def test_the_upstream_task_is_solved(embedded):
    from pandalib.datasets.synthetic import glyphs

    images, labels, _ = glyphs.draw_batch(range(400), split="check")
    with torch.inference_mode():
        last = embedded(normalise(images), layers=["layer4"])["layer4"]
        logits = embedded.classifier(last)[:, : len(glyphs.classes())].numpy()
    facts = backbones.embedded_facts()
    assert (
        facts["glyphs"] == glyphs.classes()
    )  # the classifier's rows are these characters, in this order
    assert facts["glyph_accuracy"] >= 0.70
    assert (logits.argmax(1) == labels).mean() == pytest.approx(facts["glyph_accuracy"], abs=0.05)


def test_every_layer_of_one_forward(embedded):
    with torch.inference_mode():
        found = embedded(normalise(IMAGES), layers=["layer1", "layer3", "layer4"])
        assert {key: tuple(value.shape[1:]) for key, value in found.items()} == {
            "layer1": (64, 16, 16),
            "layer3": (256, 4, 4),
            "layer4": (512, 2, 2),
            "pooled": (512,),
        }
        assert torch.equal(found["pooled"], found["layer4"].mean(dim=(2, 3)))
        with pytest.raises(ValueError, match="glyphs_resnet4 up to layer4 has no layer layer5"):
            embedded(normalise(IMAGES), layers=["layer5"])


def test_without_the_pooled_feature_later_stages_are_not_run(embedded, monkeypatch):
    whole = next(embedded.iter_layers(IMAGES, ["layer1", "layer2"]))
    run = []
    for part in (embedded.frozen, embedded.trainable):
        for name, stage in part.named_children():
            monkeypatch.setattr(
                stage,
                "forward",
                lambda x, name=name, forward=stage.forward: run.append(name) or forward(x),
            )
    found = next(embedded.iter_layers(IMAGES, ["layer2", "layer1"], pooled=False))
    assert run == ["conv", "layer1", "layer2"] and set(found) == {"layer1", "layer2"}
    assert all(torch.equal(found[name], whole[name]) for name in found)
    assert list(next(embedded.iter_layers(IMAGES, ["layer4"], pooled=False))) == ["layer4"]


def test_stem_and_head_in_two_steps(embedded, tmp_path):
    features = embedded.features(IMAGES)
    stem = embedded.frozen_features(IMAGES)
    assert stem.shape == (6, 128, 8, 8)
    assert np.allclose(embedded.features_from(stem), features, atol=1e-5)
    exact = embedded.features(IMAGES, cache=FeatureCache(tmp_path, dtype="float32"))
    assert np.allclose(exact, features, atol=1e-5)
    half = embedded.features(IMAGES, cache=FeatureCache(tmp_path))
    error = np.linalg.norm(half - features, axis=1) / np.linalg.norm(features, axis=1)
    assert 0 < error.max() < 1e-3
    assert len(list(tmp_path.iterdir())) == 2


def test_cached_stem_is_found_again_and_only_for_the_same_content(embedded, tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path)
    first = embedded.frozen_features(IMAGES, cache=cache)
    other = load_backbone(EMBEDDED, "random", seed=1)
    assert not torch.allclose(other.frozen_features(IMAGES, cache=cache).float(), first.float())
    embedded.frozen_features(IMAGES[::-1], cache=cache)
    assert len(list(tmp_path.iterdir())) == 3
    processed = []
    monkeypatch.setattr(
        backbones, "normalise", lambda images: processed.append(len(images)) or normalise(images)
    )
    assert torch.equal(embedded.frozen_features(IMAGES.copy(), cache=cache), first)
    assert processed == [1]  # one image for the shape, none for the features


def test_lazy_sequences_and_tensors_give_the_same(embedded):
    from pandalib.datasets.synthetic.pictograms import Pictograms

    lazy = Pictograms("star", 5)
    assert np.array_equal(embedded.features(lazy), embedded.features(lazy[:]))
    assert np.array_equal(embedded.features(torch.from_numpy(IMAGES)), embedded.features(IMAGES))


def test_large_images_go_in_small_batches(embedded):
    large = np.random.default_rng(1).integers(0, 256, size=(3, 3, 640, 800), dtype=np.uint8)
    assert [len(batch) for batch in embedded._batches(large)] == [2, 1]
    assert embedded.features(large).shape == (3, 512)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.float32), r"images are float32 \(6, 3, 64, 64\): expected uint8"),
        (IMAGES[:, :1], r"images are uint8 \(6, 1, 64, 64\)"),
        (IMAGES.transpose(0, 2, 3, 1), r"images are uint8 \(6, 64, 64, 3\)"),
        (IMAGES[:0], "there are no images"),
        (7, "images are int: expected an array"),
    ],
)
def test_images_of_the_wrong_kind(embedded, images, message):
    with pytest.raises(ValueError, match=message):
        embedded.features(images)


def test_batchnorm_never_moves():
    network = load_backbone(EMBEDDED, "random")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    assert not any(module.training for module in network.modules())
    network(normalise(IMAGES))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_folding_batchnorm_is_exact(name):
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = network(x)
    fold_batchnorm(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.inference_mode():
        assert torch.allclose(network(x), before, rtol=1e-4, atol=1e-4 * before.abs().max())


@pytest.mark.parametrize(
    ("name", "truncate_after", "shape"),
    [
        ("resnet18", "layer3", (2, 256)),
        ("wide_resnet50_2", "layer2", (2, 512)),
        ("squeezenet1_0", None, (2, 512)),
        ("squeezenet1_1", "layer2", (2, 256)),
    ],
)
def test_families(name, truncate_after, shape):
    network = load_backbone(name, "random", truncate_after=truncate_after)
    assert network.features(IMAGES[:2]).shape == shape
    assert network.classifier is None if truncate_after else network.classifier is not None
    again = load_backbone(name, "random", truncate_after=truncate_after)
    assert np.array_equal(network.features(IMAGES[:2]), again.features(IMAGES[:2]))
    assert (
        network.weights_sha256
        == again.weights_sha256
        != load_backbone(name, "random", truncate_after=truncate_after, seed=1).weights_sha256
    )


def test_squeezenet_stages_are_the_whole_network():
    torch.manual_seed(3)
    plain = torchvision.models.squeezenet1_0(weights=None).eval()
    staged = load_backbone("squeezenet1_0", "random", seed=3)
    with torch.inference_mode():
        x = normalise(IMAGES[:2])
        assert torch.allclose(staged(x)["pooled"], plain.features(x).mean(dim=(2, 3)), atol=1e-5)
        last = staged(x, layers=[staged.truncate_after])[staged.truncate_after]
        assert torch.allclose(staged.classifier(last), plain(x), atol=1e-5)


def test_random_weights_leave_the_global_generator_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    load_backbone(EMBEDDED, "random", seed=5)
    assert torch.equal(torch.rand(3), expected)


def test_weights_from_a_file_whole_and_cut(tmp_path):
    torch.manual_seed(0)
    plain = torchvision.models.resnet18(weights=None).eval()
    torch.save(plain.state_dict(), tmp_path / "whole.pth")
    save_file(
        {
            key: value
            for key, value in plain.state_dict().items()
            if not key.startswith(("layer4", "fc"))
        },
        tmp_path / "cut.safetensors",
    )
    whole = load_backbone("resnet18", tmp_path / "whole.pth", truncate_after="layer3")
    cut = load_backbone("resnet18", tmp_path / "cut.safetensors", truncate_after="layer3")
    assert np.array_equal(whole.features(IMAGES), cut.features(IMAGES))
    assert len(cut.weights_sha256) == 64 != whole.weights_sha256
    with pytest.raises(
        ValueError,
        match=r"cut.safetensors .*lack \d+ tensors, first layer4.0.conv1.weight: cut the network",
    ):
        load_backbone("resnet18", tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r"(is \(|lack).*"):
        load_backbone("resnet50", tmp_path / "whole.pth")


def test_weights_without_a_classifier_load_without_one(tmp_path):
    torch.manual_seed(0)
    state = {
        key: value
        for key, value in torchvision.models.resnet18(weights=None).state_dict().items()
        if not key.startswith("fc")
    }
    save_file(state, tmp_path / "headless.safetensors")
    network = load_backbone("resnet18", tmp_path / "headless.safetensors")
    assert network.classifier is None and network.truncate_after == "layer4"


class Malicious:
    def __reduce__(self):
        return (open, ("/tmp/pandalib-must-not-exist", "w"))


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"not weights at all", "pickle", "list"])
def test_files_that_are_no_weights(tmp_path, content):
    for ending in (".pth", ".safetensors"):
        path = tmp_path / f"bad{ending}"
        if content == "pickle":
            torch.save({"conv1.weight": Malicious()}, path)
        elif content == "list":
            torch.save([1, 2], path)
        else:
            path.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"weights .*bad{ending} (cannot be read|hold no state dict)"
        ):
            load_backbone("resnet18", path)
    from pathlib import Path

    assert not Path("/tmp/pandalib-must-not-exist").exists()
    with pytest.raises(FileNotFoundError, match="nowhere.pth: there is no such file"):
        load_backbone("resnet18", tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="resnet19"), "embedded weights belong to glyphs_resnet4, not to resnet19"),
        (
            dict(name="resnet19", weights="random"),
            "'resnet19' is unknown: choose glyphs_resnet4 or one of resnet101",
        ),
        (dict(name="vgg16", weights="random"), "'vgg16' is unknown"),
        (
            dict(name="resnet18", weights="random", truncate_after="layer9"),
            "has no stage 'layer9': choose one of conv, layer1",
        ),
        (dict(name=EMBEDDED, weights="imagenet"), "glyphs_resnet4 has no ImageNet weights"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(**arguments)


def test_imagenet_weights_without_a_network(monkeypatch, tmp_path):
    def unreachable(*arguments, **options):
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(
        ConnectionError,
        match=r"resnet18 are not on this machine and https://.*put it at .*checkpoints",
    ):
        load_backbone("resnet18", "imagenet")


@pytest.fixture
def copied_weights(tmp_path, monkeypatch):
    shutil.copytree(data_folder() / "weights", tmp_path / "weights")
    monkeypatch.setenv("PANDALIB_DATA", str(tmp_path))
    return tmp_path / "weights"


def test_damaged_embedded_weights_are_refused(copied_weights):
    path = verify_embedded()
    assert path.parent == copied_weights
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"is damaged: its SHA-256 .*git checkout.*python tools/pretrain.py"
    ):
        load_backbone()


def test_missing_embedded_weights_name_the_remedy(copied_weights):
    verify_embedded().unlink()
    with pytest.raises(
        FileNotFoundError, match=r"safetensors is missing. .*python tools/pretrain.py"
    ):
        load_backbone()
    (copied_weights / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index.json is damaged. .*python tools/pretrain.py"):
        load_backbone()
    (copied_weights / "index.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"index.json is missing. .*python tools/pretrain.py"
    ):
        load_backbone()


def test_the_committed_page_speaks_of_the_committed_file():
    folder = data_folder() / "weights"
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert index["sha256"] in page and f"**{index['glyph_accuracy']:.3f}**" in page
    assert verify_embedded().stat().st_size == index["bytes"] < 24_000_000
    assert len(index["curve"]) == index["settings"]["epochs"]
