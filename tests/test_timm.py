"""Networks of timm: what they compute, where it is in the image, and what is refused."""

import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pandalib import DN2, PANDA, Inspector, load_backbone, timm_backbones
from pandalib.backbones import normalise
from pandalib.experiments.run import run
from pandalib.io import sha256_of

timm = pytest.importorskip("timm")
VIT, RESNET, CONVNEXT = "vit_tiny_patch16_224", "resnet10t", "convnext_atto"
ROTARY = "eva02_tiny_patch14_224"  # rotary positions, as DINOv3; the mean of the patches
ALL = (VIT, ROTARY, RESNET, CONVNEXT)
DYNAMIC = {VIT: {"dynamic_img_size": True}, ROTARY: {"dynamic_img_size": True}}


def images(name):
    """Noise of 4 x 6 patches."""
    side = 14 if name == ROTARY else 16
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, size=(3, 3, 4 * side, 6 * side), dtype=np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Networks in which no block is near the identity, and the files of their weights."""
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for name in ALL:
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=5, **DYNAMIC.get(name, {})).eval()
        with torch.no_grad():
            for key, tensor in network.named_parameters():
                if tensor.ndim == 1:
                    shift = -0.1 if key.endswith("bias") else 0.5
                    tensor.uniform_(shift, shift + 0.5)
            for key, tensor in network.named_buffers():
                if key.endswith("running_var"):
                    tensor.uniform_(0.2, 0.8)
        path = folder / f"{name}.safetensors"
        save_file(network.state_dict(), path)
        found[name] = network, path
    return found


@pytest.fixture(scope="module")
def backbones(saved):
    return {name: load_backbone(f"timm:{name}", path) for name, (_, path) in saved.items()}


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_pooled_feature_maps_and_logits_are_timms_own(name, saved, backbones):
    (network, path), backbone, pictures = saved[name], backbones[name], images(name)
    config = network.pretrained_cfg
    x = normalise(pictures, config["mean"], config["std"])
    maps = network.forward_features(x)
    raw = backbone.trainable(backbone.frozen(x))
    pooled = torch.from_numpy(backbone.features(pictures))
    alone = [torch.from_numpy(backbone.features(image[None])) for image in pictures]
    parts = backbone.features_from(backbone.frozen_features(pictures), batch_size=2)
    for found, expected in (
        (pooled, network.forward_head(maps, pre_logits=True)),
        (torch.cat(alone), pooled),
        (torch.from_numpy(parts), pooled),
        (backbone.classifier(raw), network.forward_head(maps)),
        (backbone(x, [backbone.truncate_after])[backbone.truncate_after], as_map(maps, network)),
    ):
        assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert backbone.weights_sha256 == sha256_of(path) and backbone.source == str(path)
    assert (backbone.mean, backbone.std) == (config["mean"], config["std"])
    assert backbone.size == config["input_size"][1]


def as_map(tokens, network):
    """Tokens of 4 x 6 patches, row by row, without those in front."""
    if tokens.ndim == 4:
        return tokens
    return tokens[:, network.num_prefix_tokens :].reshape(3, 4, 6, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ALL)
def test_a_changed_patch_changes_the_map_at_its_place(name, backbones):
    backbone, before = backbones[name], images(name)[:1]
    side, after = before.shape[2] // 4, before.copy()
    after[:, :, 2 * side : 3 * side, 4 * side : 5 * side] ^= 255
    for layer in ("embed", "blocks.1", "norm", "layer1", "stages.0"):
        if layer not in backbone.stages:
            continue
        maps = [
            next(backbone.iter_layers(one, [layer], pooled=False))[layer] for one in (before, after)
        ]
        change = (maps[1] - maps[0]).square().sum(dim=1)[0]
        row, column = divmod(int(change.argmax()), change.shape[1])
        place = row * 4 // change.shape[0], column * 6 // change.shape[1]
        assert place == (2, 4), layer
        if layer == "embed":  # before attention no other patch has changed
            assert int((change > 0).sum()) == 1


@pytest.mark.parametrize(("n_prefix", "width"), [(0, 3), (1, 3), (3, 3), (5, 3), (5, 16)])
def test_tokens_are_packed_and_unpacked(n_prefix, width):
    tokens = torch.randn(2, n_prefix + 4 * width, 7)
    packed = timm_backbones.pack(tokens, n_prefix, width)
    assert torch.equal(timm_backbones.unpack(packed, n_prefix), tokens)
    patches = timm_backbones.AsMap(n_prefix, channels_last=False)(packed)
    assert torch.equal(patches[:, :, 3, 1], tokens[:, n_prefix + 3 * width + 1])
    assert patches.shape == (2, 7, 4, width)
    assert timm_backbones.AsMap(0, channels_last=True)(torch.ones(2, 3, 4, 7)).shape == (2, 7, 3, 4)


@torch.no_grad()
def test_a_network_that_cannot_be_cut_is_one_frozen_stage():
    name = "convit_tiny"  # the class token joins the patches after ten blocks
    backbone = load_backbone(f"timm:{name}", "random", seed=3)
    assert backbone.stages == backbone.map_layers == ("features",) and len(backbone.trainable) == 0
    torch.manual_seed(3)
    network = timm.create_model(name).eval()
    x = torch.randn(1, 3, 224, 224)
    tokens, found = network.forward_features(x), backbone(x, ["features"])
    patches = tokens[0, 1:].reshape(14, 14, -1).permute(2, 0, 1)
    assert torch.allclose(found["features"][0], patches, atol=1e-4)
    assert torch.allclose(found["pooled"], tokens[:, 0], atol=1e-4)
    with pytest.raises(ValueError, match="64 x 224 pixels: expected its own 224 x 224"):
        backbone(x[:, :, :64])


@torch.no_grad()
def test_the_pooled_feature_that_is_asked_for(saved, backbones):
    network, path = saved[VIT]
    x = normalise(images(VIT), **{key: network.pretrained_cfg[key] for key in ("mean", "std")})
    tokens = network.forward_features(x)
    mean = load_backbone(f"timm:{VIT}", path, pool="mean")
    assert torch.allclose(mean(x)["pooled"], tokens[:, 1:].mean(dim=1), atol=1e-4)
    assert torch.allclose(backbones[VIT](x)["pooled"], tokens[:, 0], atol=1e-4)
    early = load_backbone(f"timm:{VIT}", path, truncate_after="blocks.1", adapt_from="blocks.1")
    tokens = network.blocks[:2](network._pos_embed(network.patch_embed(x)))
    assert torch.allclose(early(x)["pooled"], tokens[:, 0], atol=1e-4)
    assert early.map_layers == ("blocks.1",) and early.classifier is None
    assert len(early.trainable) == 1
    for name, pool, message in (
        (VIT, "max", "expected 'token' or 'mean'"),
        (RESNET, "mean", "for a transformer"),
    ):
        with pytest.raises(ValueError, match=f"pool='{pool}' for timm:{name}: .*{message}"):
            load_backbone(f"timm:{name}", "random", pool=pool)
    with pytest.raises(ValueError, match="pool='mean' is for transformers"):
        load_backbone("resnet18", "random", pool="mean")


@pytest.mark.parametrize(("name", "first"), [(VIT, "blocks.10"), (RESNET, "layer3")])
def test_the_last_stages_are_adapted_and_nothing_else(name, first, backbones):
    backbone = backbones[name]
    assert backbone.adapt_from == first
    pictures = images(name)
    before = backbone.frozen_sha256(), backbone.trainable_sha256()
    detector = PANDA(backbone, epochs=4, lr=1.0, max_grad_norm=10.0, progress=False).fit(pictures)
    assert (backbone.frozen_sha256(), backbone.trainable_sha256()) == before
    assert np.isfinite(detector.score(pictures)).all()
    assert not np.allclose(
        detector.score(pictures), DN2(backbone).fit(pictures).score(pictures), rtol=1e-3
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_weights(saved, backbones, tmp_path, suffix):
    network, path = saved[VIT]
    state = {key: value.clone() for key, value in network.state_dict().items()}

    def saved_as(name, state):
        target = tmp_path / f"{name}{suffix}"
        save_file(state, target) if suffix == ".safetensors" else torch.save(state, target)
        return target

    pictures, name = images(VIT)[:1], f"timm:{VIT}"
    headless = {key: value for key, value in state.items() if not key.startswith("head.")}
    found = load_backbone(name, saved_as("headless", headless))
    assert found.classifier is None
    assert np.array_equal(found.features(pictures), backbones[VIT].features(pictures))
    cut = {
        key: value for key, value in headless.items() if "blocks.1" not in key and key[:4] != "norm"
    }
    load_backbone(name, saved_as("cut", cut), truncate_after="blocks.0")
    for what, wrong, message in (
        (
            "missing",
            cut,
            "38 tensors are missing and 0 are superfluous, first blocks.1.norm1.weight, ",
        ),
        ("more", headless | {"blocks.12.a": torch.ones(1)}, "1 are superfluous, first blocks.12.a"),
        (
            "other",
            saved[RESNET][0].state_dict(),
            "tensors are missing and .* are superfluous, first",
        ),
        ("shape", headless | {"norm.weight": torch.ones(7)}, "size mismatch for norm.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            load_backbone(name, saved_as(what, wrong))
    (tmp_path / f"damaged{suffix}").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=f"damaged{suffix} cannot be read"):
        load_backbone(name, tmp_path / f"damaged{suffix}")


def test_no_code_in_a_file_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    torch.save({"norm.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="trap.pth cannot be read"):
        load_backbone(f"timm:{VIT}", tmp_path / "trap.pth")
    assert not (tmp_path / "run").exists()


def test_random_weights_follow_the_seed():
    first, again, other = (load_backbone(f"timm:{RESNET}", "random", seed=n) for n in (1, 1, 2))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert first.source == "random"


def test_timms_own_weights_come_from_timm(monkeypatch, saved):
    """Without a network, they are refused in one sentence that names the page."""
    network, real = saved[RESNET][0], timm.create_model
    asked = []

    def create(name, pretrained, **options):
        asked.append(pretrained)
        if options:
            raise TypeError("unexpected keyword argument 'dynamic_img_size'")
        return network

    monkeypatch.setattr(timm, "create_model", create)
    backbone = load_backbone(f"timm:{RESNET}", "imagenet")
    assert asked == [True, True] and backbone.source == "imagenet"
    assert load_backbone(f"timm:{RESNET}", "hub").source == "imagenet"

    def fails(name, pretrained, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(
        ConnectionError, match=r"\(no route to host\).*huggingface.co/timm/resnet10t"
    ):
        load_backbone(f"timm:{RESNET}", "imagenet")
    monkeypatch.setattr(timm, "create_model", real)
    with pytest.raises(ValueError, match="timm has no weights of botnet50ts_256"):
        load_backbone("timm:botnet50ts_256", "imagenet")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tiny_patch16_225", {}, "unknown to timm .*did you mean vit_tiny_patch16_224"),
        (f"{VIT}.nothing", {}, "unknown tag: choose one of vit_tiny_patch16_224.augreg"),
        (
            RESNET,
            dict(truncate_after="layer9"),
            "has no stage 'layer9': choose one of act1, layer1",
        ),
        (RESNET, dict(bias_free=True), "bias_free is for torchvision's networks"),
        (RESNET, dict(weights="embedded"), "embedded weights belong to glyphs_resnet4"),
        ("levit_128s", {}, "tokens whose places in the image are not known"),
        (
            "hrnet_w18_small",
            dict(adapt_from="features"),
            "not cut into stages and cannot be adapted",
        ),
    ],
)
def test_what_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(f"timm:{name}", **{"weights": "random"} | options)


def test_images_of_another_size_are_refused(backbones):
    pictures = np.zeros((1, 3, 60, 64), np.uint8)
    with pytest.raises(ValueError, match="60 x 64 pixels: expected sides that are multiples of 16"):
        backbones[VIT].features(pictures)


def test_without_timm_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"install the extra \[timm\]"):
        load_backbone(f"timm:{VIT}", "random")


def test_a_cut_that_is_not_the_network_is_refused(saved):
    network = saved[RESNET][0]
    stages = timm_backbones.cut(network, RESNET, None, None).stages
    timm_backbones.check_cut(RESNET, network, stages)
    stages["layer3"] = nn.Sequential(stages["layer3"], nn.ReLU(), nn.AvgPool2d(3, 1, 1))
    with pytest.raises(ValueError, match="cannot be cut into stages exactly"):
        timm_backbones.check_cut(RESNET, network, OrderedDict(stages))


def test_an_inspector_is_saved_with_its_pooled_feature(saved, tmp_path):
    pictures = np.random.default_rng(1).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    backbone = load_backbone(f"timm:{VIT}", saved[VIT][1], pool="mean")
    inspector = Inspector(backbone, progress=False)
    inspector.fit(pictures).save(tmp_path / "model")
    again = Inspector.load(tmp_path / "model")
    assert tuple(again.layers_) == ("norm",) and again.backbone.pool == "mean"
    assert np.array_equal(again.score(pictures), inspector.score(pictures))


def test_a_run_takes_the_networks_own_size(saved, tmp_path, monkeypatch):
    from PIL import Image

    for folder in ("train/good", "test/good", "test/bad"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for n in range(3):
            noise = np.random.default_rng([n, len(folder)]).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / "set" / folder / f"{n}.png")
    seen = []
    real = timm_backbones.Embed.forward
    monkeypatch.setattr(
        timm_backbones.Embed,
        "forward",
        lambda self, images: seen.append(tuple(images.shape[2:])) or real(self, images),
    )
    options = dict(backbone=f"timm:{VIT}", weights=str(saved[VIT][1]), missing_masks="none")
    task = f"folder:{tmp_path / 'set'}"
    record = run(task, "dn2", progress=False, **options)
    assert record["backbone"] == f"timm:{VIT}" and set(seen) == {(32, 48), (224, 224)}


def test_a_run_can_choose_what_is_pooled(monkeypatch):
    asked, real = [], load_backbone
    monkeypatch.setattr(
        "pandalib.experiments.run.load_backbone",
        lambda name, *rest, pool, **more: asked.append(pool) or real(name, *rest, **more),
    )
    for pool in (None, "token"):
        run("pictograms:star", "dn2", pool=pool, n_train=6, n_test=2)
    assert asked == [None, "token"]
