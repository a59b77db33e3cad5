"""Backbones: cutting, freezing, folding and caching change the speed and nothing else."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.base import clone
from small import plain_network, small_backbone
from torch import nn

from pandalib import DN2, backbones, load_backbone
from pandalib.backbones import EMBEDDED, MEAN, STD, Backbone, fold_batchnorm, normalise
from pandalib.cache import FeatureCache
from pandalib.datasets.synthetic import glyphs
from pandalib.datasets.synthetic.pictograms import Pictograms
from pandalib.weights import embedded_facts, read_state, verify_embedded

IMAGES = np.random.default_rng(0).integers(0, 256, size=(6, 3, 64, 64), dtype=np.uint8)


@pytest.fixture(scope="module")
def embedded():
    return load_backbone(device="cpu")


def logits(network, images):
    last = network.truncate_after
    with torch.inference_mode():
        return network.classifier(network(normalise(images), [last])[last])


def test_features_and_logits_are_those_of_the_plain_network(embedded):
    state = read_state(verify_embedded())
    network = backbones.embedded_network(len(state["fc.weight"])).eval()
    network.load_state_dict(state)
    pooled = []
    network.avgpool.register_forward_hook(
        lambda module, inputs, output: pooled.append(output.flatten(1))
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.inference_mode():
        expected = network((torch.from_numpy(IMAGES) / 255 - mean) / std)
    features = embedded.features(IMAGES)
    assert features.shape == (6, 512) and features.dtype == np.float32
    assert np.allclose(features, pooled[0], atol=1e-5, rtol=1e-5)
    assert torch.allclose(logits(embedded, IMAGES), expected, atol=1e-4)


def test_the_pretraining_task_is_solved(embedded):
    images, labels, _ = glyphs.draw_batch(range(400), split="check")
    facts = embedded_facts()
    assert facts["glyphs"] == glyphs.classes()  # the classifier's rows, in this order
    assert embedded.n_classes == len(glyphs.classes())
    found = logits(embedded, images)[:, : embedded.n_classes].argmax(dim=1).numpy()
    assert facts["glyph_accuracy"] >= 0.70
    assert (found == labels).mean() == pytest.approx(facts["glyph_accuracy"], abs=0.05)


def test_every_layer_of_one_forward(embedded):
    found = next(embedded.iter_layers(IMAGES, ["layer1", "layer3", "layer4"]))
    assert {key: tuple(value.shape[1:]) for key, value in found.items()} == {
        "layer1": (64, 16, 16),
        "layer3": (256, 4, 4),
        "layer4": (512, 2, 2),
        "pooled": (512,),
    }
    assert torch.equal(found["pooled"], found["layer4"].mean(dim=(2, 3)))
    with pytest.raises(ValueError, match="glyphs_resnet4 up to layer4 has no layer layer5"):
        embedded(normalise(IMAGES), ["layer5"])


def test_without_the_pooled_feature_later_stages_are_not_run(embedded):
    run = []
    hooks = [
        stage.register_forward_hook(lambda *_, name=name: run.append(name))
        for part in (embedded.frozen, embedded.trainable)
        for name, stage in part.named_children()
    ]
    found = next(embedded.iter_layers(IMAGES, ["layer2", "layer1"], pooled=False))
    for hook in hooks:
        hook.remove()
    assert run == ["conv", "layer1", "layer2"]
    whole = next(embedded.iter_layers(IMAGES, ["layer1", "layer2"]))
    assert found.keys() == {"layer1", "layer2"}
    assert all(torch.equal(found[name], whole[name]) for name in found)


def test_frozen_and_trainable_part_in_two_steps(embedded, tmp_path):
    features = embedded.features(IMAGES)
    frozen = embedded.frozen_features(IMAGES)
    assert frozen.shape == (6, 128, 8, 8)
    assert np.allclose(embedded.features_from(frozen, batch_size=4), features, atol=1e-5)
    for approximate in (
        embedded.features(IMAGES, cache=FeatureCache(tmp_path)),
        embedded.features_from(frozen, bf16=True),
    ):
        error = np.linalg.norm(approximate - features, axis=1) / np.linalg.norm(features, axis=1)
        assert 0 < error.max() < 5e-3


def test_cached_features_are_found_again_for_the_same_content_only(embedded, tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path)
    first = embedded.frozen_features(IMAGES, cache=cache)
    other = load_backbone(EMBEDDED, "random", seed=1, device="cpu")
    assert not torch.allclose(other.frozen_features(IMAGES, cache=cache).float(), first.float())
    embedded.frozen_features(IMAGES[::-1], cache=cache)
    assert len(list(tmp_path.iterdir())) == 3
    seen = []
    monkeypatch.setattr(
        backbones, "normalise", lambda images, *how: seen.append(len(images)) or normalise(images)
    )
    assert torch.equal(embedded.frozen_features(IMAGES.copy(), cache=cache), first)
    assert seen == [1]  # one image for the shape, none for the features


def test_all_kinds_of_images_give_the_same(embedded, monkeypatch):
    expected = embedded.features(IMAGES)
    last_axis = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1))
    for images in (
        torch.from_numpy(IMAGES),
        last_axis,
        [Image.fromarray(image) for image in last_axis],
        IMAGES[:, :, ::-1][:, :, ::-1],
    ):
        assert np.array_equal(embedded.features(images), expected)
    lazy = Pictograms("star", 5)
    assert np.array_equal(embedded.features(lazy), embedded.features(lazy[:]))
    monkeypatch.setattr(backbones, "PIXELS_PER_BATCH", 2 * 64 * 64)
    assert [len(batch) for batch in embedded._batches(lazy)] == [2, 2, 1]
    assert [len(batch) for batch in embedded._batches(IMAGES[:5])] == [2, 2, 1]
    assert np.allclose(embedded.features(IMAGES), expected, atol=1e-5)


@pytest.mark.parametrize(
    "images", [IMAGES.astype(np.float32), IMAGES[:, :1], IMAGES[:0], IMAGES[0], "folder", 7]
)
def test_other_images_are_refused_in_one_sentence(embedded, images, tmp_path):
    for cache in (None, FeatureCache(tmp_path)):
        with pytest.raises(ValueError, match=r"expected uint8 \(N, 3, H, W\).*$"):
            embedded.features(images, cache=cache)


def test_batchnorm_never_moves():
    network = load_backbone(EMBEDDED, "random", device="cpu")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert any("running_mean" in key for key in before)
    network.train()
    assert not any(module.training for module in network.modules())
    network(normalise(IMAGES))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_folding_batchnorm_is_exact():
    network, x = plain_network(), torch.randn(2, 3, 64, 64)  # whose BatchNorm is not trivial
    with torch.inference_mode():
        expected = network(x)
        fold_batchnorm(network)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        assert torch.allclose(network(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize(
    ("name", "cut", "kept"),
    [("resnet18", "layer2", 3), ("mobilenet_v2", "features.6", 7)],
)
def test_the_stages_of_each_family_are_the_whole_network(name, cut, kept):
    torch.manual_seed(3)
    plain = torchvision.models.get_model(name, weights=None).eval()
    rng = torch.Generator().manual_seed(0)
    for module in plain.modules():  # statistics of some training, so that no logit vanishes
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=rng)
            module.running_var.uniform_(0.02, 0.1, generator=rng)
    x = normalise(IMAGES[:2]).double()  # rounding would grow from layer to layer
    stages, classifier = backbones.cut_stages(plain.double(), name)
    with torch.inference_mode():
        expected = plain(x)
        staged = Backbone(stages, classifier, name=name, weights_sha256="", adapt_from=cut)
        found = staged.classifier(staged.trainable(staged.frozen(x)))  # BatchNorm is folded now
    assert torch.allclose(found, expected, atol=1e-9 * float(expected.abs().max()))
    assert staged.stages == tuple(stages) and len(staged.frozen) == kept - 1
    whole, part = (
        load_backbone(name, "random", seed=3, truncate_after=last, device="cpu")
        for last in (None, cut)
    )
    assert part.truncate_after == cut and part.classifier is None and len(part.trainable) == 0
    assert part.stages == whole.stages[:kept]
    found = next(whole.iter_layers(IMAGES[:2], [cut]))[cut].mean(dim=(2, 3))
    assert np.allclose(part.features(IMAGES[:2]), found, rtol=1e-3, atol=1e-5)
    assert part.weights_sha256 == whole.weights_sha256  # the same weights, cut elsewhere
    assert set(part.map_layers) == set(whole.map_layers) & set(part.stages)


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, again, other = (load_backbone(EMBEDDED, "random", seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.rand(3), expected)
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert np.array_equal(first.features(IMAGES), again.features(IMAGES))


def test_a_network_without_biases_maps_zero_to_zero():
    network = load_backbone(bias_free=True, adapt_from="conv", device="cpu")
    assert network.weights_sha256 != load_backbone().weights_sha256
    for module in network.trainable.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
    with torch.inference_mode():
        assert not network(torch.zeros(1, 3, 64, 64))["pooled"].any()


def test_another_trainable_part_shares_the_rest():
    backbone, other = small_backbone(0), small_backbone(1)
    mixed = backbone.with_trainable(other.trainable)
    assert mixed.frozen is backbone.frozen and mixed.classifier is backbone.classifier
    assert mixed.trainable_sha256() == other.trainable_sha256() != backbone.trainable_sha256()
    assert mixed.frozen_sha256() == backbone.frozen_sha256()
    frozen = backbone.frozen_features(IMAGES)
    assert np.array_equal(mixed.features_from(frozen), other.features_from(frozen))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(name="resnet19"),
            "'resnet19' is unknown: choose one of glyphs_resnet4, mobilenet_v2",
        ),
        (dict(name="resnet18"), "embedded weights belong to glyphs_resnet4, not to resnet18"),
        (dict(weights="imagenet"), "glyphs_resnet4 has no ImageNet weights"),
        (
            dict(name="mobilenet_v2", weights="random", truncate_after="layer2"),
            "has no stage 'layer2': choose one of",
        ),
        (dict(truncate_after="layer9"), "no stage 'layer9': choose one of conv, layer1"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(**arguments)


def test_a_clone_of_a_detector_shares_its_network_and_shows_it_in_one_line():
    network = load_backbone(device="cpu")
    copied = clone(DN2(network, k=1))
    assert copied.backbone is network
    assert repr(copied) == f"DN2(backbone={network!r}, k=1)" and "\n" not in repr(network)
