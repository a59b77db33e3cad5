"""Fisher information by its definition, and the penalty that it weighs; nothing that belongs to another network is used."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small import CLASSES, images, normalised, plain_network, small_backbone
from torch import nn

from pandalib import EWC, Fisher, fisher_information, linear_probe, load_backbone, upstream_fisher
from pandalib.adapt import adapt
from pandalib.ewc import EMBEDDED
from pandalib.runs import fisher_of
from pandalib.sources import glyphs

IMAGES = images(6)
HEAD = ("layer3", "layer4")
SETTINGS = dict(epochs=2, batch_size=8, lr=0.05, clip=0.1, progress=False)


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def fisher(backbone):
    return fisher_information(backbone, IMAGES, progress=False)


def squares(network, picture, label, n_classes=None) -> dict[str, torch.Tensor]:
    """(d log p(label | picture) / d theta_i)^2 through the whole, unfolded network, for the parameters of the head."""
    logits = network(normalised(picture[None]))[0, :n_classes]
    named = {f"{stage}.{name}": parameter for stage in HEAD for name, parameter in getattr(network, stage).named_parameters()}
    log_p = logits[label] - torch.logsumexp(logits, dim=0)
    return {name: g**2 for name, g in zip(named, torch.autograd.grad(log_p, list(named.values())))}


def mean(parts: list[dict]) -> dict[str, torch.Tensor]:
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def predictions(network, pictures, n_classes=None) -> torch.Tensor:
    with torch.no_grad():
        return network(normalised(pictures))[:, :n_classes].softmax(dim=1)


def largest_error(values: dict, expected: dict) -> float:
    """Largest difference over all parameters, relative to the largest value."""
    assert values.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    return max(float((values[name] - expected[name]).abs().max()) for name in expected) / scale


@pytest.mark.parametrize("n_classes", [None, 3])
def test_each_sample_is_squared_alone(n_classes):
    backbone, network = small_backbone(n_classes=n_classes), plain_network()
    labels = np.array([0, 2, 1, 1, 0, 2])
    found = fisher_information(backbone, IMAGES, labels, progress=False)
    expected = mean([squares(network, picture, label, n_classes) for picture, label in zip(IMAGES, labels)])
    assert largest_error(found.values, expected) < 1e-5
    assert found.mean() == pytest.approx(float(torch.cat([value.flatten() for value in expected.values()]).mean()), rel=1e-4)
    assert (found.n_samples, found.adapt_from, found.last, found.weights_sha256) == (6, "layer3", "layer4", backbone.weights_sha256)
    assert "squares per sample" in found.recipe and "true labels (empirical)" in found.recipe
    other = mean([squares(network, picture, label, 3 if n_classes is None else None) for picture, label in zip(IMAGES, labels)])
    assert largest_error(found.values, other) > 0.01  # the number of classes matters


def test_drawn_labels_follow_the_prediction(backbone):
    """The mean over many draws is the sum over all labels, each weighed with its probability: the exact Fisher information."""
    network, picture = plain_network(), IMAGES[:1]
    p = predictions(network, picture)[0]
    by_label = [squares(network, picture[0], label) for label in range(CLASSES)]
    exact = {name: sum(weight * part[name] for weight, part in zip(p, by_label)) for name in by_label[0]}
    assert 0.02 < p.max() < 0.9 and p.argsort().tolist() != sorted(range(CLASSES))  # a case that could go wrong
    seen = [fisher_information(backbone, picture, seed=seed, progress=False) for seed in range(3)]
    assert all(min(largest_error(one.values, part) for part in by_label) < 1e-5 for one in seen)  # one label each
    many = fisher_information(backbone, np.repeat(picture, 1500, axis=0), progress=False)
    assert largest_error(many.values, exact) < 0.08
    uniform = mean(by_label)
    assert largest_error(uniform, exact) > 0.2 and largest_error(by_label[int(p.argmax())], exact) > 0.2  # neither would pass


def test_seeds_and_their_mean(backbone, fisher):
    again, other = (fisher_information(backbone, IMAGES, seed=seed, progress=False) for seed in (0, 1))
    assert largest_error(again.values, fisher.values) == 0 < largest_error(other.values, fisher.values)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fisher_information(backbone, IMAGES, progress=False)
    assert torch.equal(torch.rand(2), expected)  # the global generator is left alone
    network = plain_network()
    p = predictions(network, IMAGES)
    exact = mean([{name: sum(p[i, y] * squares(network, IMAGES[i], y)[name] for y in range(CLASSES)) for name in fisher.values} for i in range(6)])
    draws = mean([fisher_information(backbone, IMAGES, seed=seed, progress=False).values for seed in range(150)])
    assert largest_error(draws, exact) < 0.12
    assert "drawn from the prediction, seed 1" in other.recipe


def test_the_empirical_fisher_is_another(backbone):
    """Where the network is sure and right, true labels give nearly nothing; where it is wrong, far too much."""
    network = plain_network()
    p = predictions(network, IMAGES)
    right, wrong = p.argmax(dim=1).numpy(), p.argmin(dim=1).numpy()
    best, worst = (fisher_information(backbone, IMAGES, labels, progress=False).mean() for labels in (right, wrong))
    drawn = np.mean([fisher_information(backbone, IMAGES, seed=seed, progress=False).mean() for seed in range(20)])
    assert best < 0.7 * drawn < drawn < 0.7 * worst


def test_the_mean_of_a_batch_before_the_square_is_too_small(backbone):
    pictures = images(256, seed=2)
    whole = fisher_information(backbone, pictures, progress=False)
    for batch_size in (4, 16):
        shortcut = fisher_information(backbone, pictures, batch_size=batch_size, progress=False)
        assert 0.5 * batch_size < whole.mean() / shortcut.mean() < 2 * batch_size
        assert f"squares of the mean gradient of batches of {batch_size}" in shortcut.recipe
    two = fisher_information(backbone, pictures[:2], [0, 1], batch_size=2, progress=False)
    network = plain_network()
    logits = network(normalised(pictures[:2]))
    named = {f"{stage}.{name}": parameter for stage in HEAD for name, parameter in getattr(network, stage).named_parameters()}
    loss = -(logits[0].log_softmax(0)[0] + logits[1].log_softmax(0)[1]) / 2
    expected = {name: g**2 for name, g in zip(named, torch.autograd.grad(loss, list(named.values())))}
    assert largest_error(two.values, expected) < 1e-5


def test_computing_it_moves_nothing():
    backbone = small_backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    from_images = fisher_information(backbone, IMAGES, progress=False)
    from_stem = fisher_information(backbone, backbone.stem_features(IMAGES), progress=False)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in backbone.parameters())
    assert largest_error(from_stem.values, from_images.values) == 0
    from_cache = fisher_information(backbone, backbone.stem_features(IMAGES).half(), progress=False)  # as a cache of float16 holds them
    assert 0 < largest_error(from_cache.values, from_images.values) < 0.02
    assert all(value.device.type == "cpu" and value.dtype == torch.float32 and (value >= 0).all() for value in from_stem.values.values())
    assert {name: value.shape for name, value in from_stem.values.items()} == {name: p.shape for name, p in backbone.head.named_parameters()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(images=IMAGES[:0]), "there are no images: expected at least one of the pretraining task"),
        (dict(labels=[0, 1]), r"labels are \(2,\): expected one for each of the 6 images"),
        (dict(labels=[0, 1, 2, 3, 4, 5]), "labels run from 0 to 5: expected 0 to 4, the classes of the classifier"),
        (dict(labels=[0, 1, -2, 3, 4, 4]), "labels run from -2 to 4"),
        (dict(backbone=dict(last="layer3")), r"small up to layer3 has no classifier of its pretraining task: .*linear_probe"),
        (dict(backbone=dict(n_classes=2), labels=[0, 1, 2, 0, 0, 0]), "labels run from 0 to 2: expected 0 to 1"),
    ],
)
def test_what_cannot_be_computed(arguments, message):
    backbone = small_backbone(**arguments.get("backbone", {}))
    with pytest.raises(ValueError, match=message):
        fisher_information(backbone, arguments.get("images", IMAGES), arguments.get("labels"), progress=False)


def test_another_network_or_other_stages_are_refused(backbone, fisher, tmp_path):
    fisher.check(backbone)
    fisher.save(tmp_path / "f.safetensors")
    cases = [
        (small_backbone(1), rf"belongs to weights {backbone.weights_sha256[:12]}, the backbone has {small_backbone(1).weights_sha256[:12]}"),
        (small_backbone(adapt_from="layer4"), "covers layer3 to layer4, the backbone adapts layer4 to layer4"),
        (small_backbone(adapt_from="layer2"), "covers layer3 to layer4, the backbone adapts layer2 to layer4"),
        (small_backbone(last="layer3"), "covers layer3 to layer4, the backbone adapts layer3 to layer3"),
    ]
    for other, message in cases:
        for use in (fisher.check, lambda network: EWC(network, 1.0, fisher), lambda network: Fisher.load(tmp_path / "f.safetensors", network)):
            with pytest.raises(ValueError, match=f"{message}: compute it anew with pandalib.ewc.fisher_information"):
                use(other)


def test_saved_and_read_back(backbone, fisher, tmp_path):
    fisher.save(tmp_path / "deep" / "f.safetensors")
    again = Fisher.load(str(tmp_path / "deep" / "f.safetensors"), backbone)
    assert all(torch.equal(again.values[name], value) for name, value in fisher.values.items())
    assert dataclasses.replace(again, values={}) == dataclasses.replace(fisher, values={}) and again.values.keys() == fisher.values.keys()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["f.safetensors"]


@pytest.mark.parametrize("position", [0.3, 0.6, 0.999])
def test_a_flipped_bit_is_noticed(fisher, tmp_path, position):
    path = tmp_path / "f.safetensors"
    fisher.save(path)
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} is damaged.* [Cc]ompute it anew"):
        Fisher.load(path)


@pytest.mark.parametrize("content", ["cut", b"", b"no tensors at all", "weights", "other facts"])
def test_a_file_that_is_no_fisher(fisher, tmp_path, content):
    path = tmp_path / "f.safetensors"
    if content == "cut":
        fisher.save(path)
        path.write_bytes(path.read_bytes()[:-100])
    elif content == "weights":
        save_file({"a": torch.zeros(3)}, path)
    elif content == "other facts":
        save_file({"a": torch.zeros(3)}, path, metadata={"pandalib": json.dumps(dict(sha256="0", epoch=3))})
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} is damaged, or holds no Fisher information"):
        Fisher.load(path)
    with pytest.raises(FileNotFoundError, match=r"Fisher information .*nowhere: there is no such file"):
        Fisher.load(tmp_path / "nowhere")


@pytest.mark.parametrize("values", [torch.tensor([1.0, -1e-9]), torch.tensor([0.5, float("nan")]), torch.tensor([0.5, float("inf")]), torch.tensor([1, 2])])
def test_values_that_no_squares_have(fisher, values, tmp_path):
    path = tmp_path / "f.safetensors"
    dataclasses.replace(fisher, values={**fisher.values, "layer3.0.bn1.bias": values}).save(path)
    with pytest.raises(ValueError, match=f"^{path} is damaged, or holds no Fisher information: compute it anew with pandalib.ewc.fisher_information.$"):
        Fisher.load(path)


def test_the_recipe_in_words(backbone, fisher):
    assert fisher.recipe == "squares per sample, labels drawn from the prediction, seed 0"
    labels, other = np.arange(6) % CLASSES, copy.deepcopy(backbone.classifier)
    assert fisher_information(backbone, IMAGES, labels, batch_size=3, progress=False).recipe == "squares of the mean gradient of batches of 3, true labels (empirical), seed 0"
    assert fisher_information(backbone, IMAGES, classifier=other, seed=4, progress=False).recipe.endswith("prediction, seed 4, linear probe")


def test_another_classifier_has_classes_of_its_own():
    """Of the network's own classifier only the first `n_classes` outputs are classes; of one that is given, all."""
    backbone, labels = small_backbone(n_classes=3), [0, 2, 1, 1, 0, 2]
    found = fisher_information(backbone, IMAGES, labels, classifier=copy.deepcopy(backbone.classifier), progress=False)
    assert largest_error(found.values, mean([squares(plain_network(), picture, label) for picture, label in zip(IMAGES, labels)])) < 1e-5
    assert largest_error(found.values, fisher_information(backbone, IMAGES, labels, progress=False).values) > 0.01


@pytest.mark.parametrize(("options", "shown"), [({}, True), ({"progress": True}, True), ({"progress": False}, False)])
def test_it_says_how_far_it_is_unless_told_not_to(backbone, monkeypatch, options, shown):
    seen = []
    monkeypatch.setattr("pandalib.ewc.bar", lambda starts, what, *, shown: seen.append((len(starts), what, shown)) or starts)
    fisher_information(backbone, IMAGES, batch_size=4, **options)
    assert seen == [(2, "Fisher information", shown)]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Counts the drawn pretraining images; the cache folder is a new one."""
    calls, draw_batch = [], glyphs.draw_batch

    def counted(indices, **options):
        calls.append((list(indices), options))
        return draw_batch(indices, **options)

    monkeypatch.setattr(glyphs, "draw_batch", counted)
    monkeypatch.setenv("PANDALIB_CACHE", str(tmp_path / "cache"))
    return calls


def test_upstream_fisher_is_kept_and_made_again_when_damaged(drawn, tmp_path):
    network = load_backbone()
    first = upstream_fisher(network, 3, progress=False)
    assert drawn == [([0, 1, 2], dict(split="fisher", seed=0))]  # not the images that it was trained on
    expected = fisher_information(network, glyphs.draw_batch(range(3), split="fisher")[0], progress=False)
    assert largest_error(first.values, expected.values) == 0 and first.n_samples == 3
    drawn.clear()
    assert largest_error(upstream_fisher(network, 3, progress=False).values, first.values) == 0 and not drawn
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        assert largest_error(upstream_fisher(network, 3, progress=False).values, first.values) == 0
        assert len(drawn) == 1 and path.read_bytes() == whole
        drawn.clear()
    assert upstream_fisher(network, 2, progress=False).n_samples == 2
    assert upstream_fisher(network, 2, seed=1, progress=False).recipe.endswith("seed 1")
    assert drawn == [([0, 1], dict(split="fisher", seed=seed)) for seed in (0, 1)] and len(list((tmp_path / "cache").iterdir())) == 3


def test_upstream_fisher_that_cannot_be_kept(drawn, monkeypatch):
    def full(fisher, path):
        raise OSError("No space left on device.")

    monkeypatch.setattr(Fisher, "save", full)
    with pytest.raises(OSError, match=r"^the Fisher information could not be kept: No space left on device. PANDALIB_CACHE says where.$"):
        upstream_fisher(load_backbone(), 2, progress=False)


def test_upstream_fisher_of_batches_is_kept_apart(drawn, tmp_path):
    network = load_backbone()
    exact, biased = (upstream_fisher(network, 6, batch_size=size, progress=False) for size in (1, 2))
    assert len(drawn) == 2 and "squares per sample" in exact.recipe and "batches of 2" in biased.recipe
    again = [upstream_fisher(network, 6, batch_size=size, progress=False) for size in (1, 2)]
    assert len(drawn) == 2 and [one.recipe for one in again] == [exact.recipe, biased.recipe]
    assert largest_error(again[1].values, biased.values) == 0 < largest_error(exact.values, biased.values)
    by_name = {path.name: path for path in (tmp_path / "cache").iterdir()}
    assert sorted(by_name) == sorted(f"fisher-{network.weights_sha256[:12]}-layer3-6-0{end}.safetensors" for end in ("", "-batches-of-2"))
    # A file of other weights under that name: not used.
    dataclasses.replace(exact, weights_sha256="0" * 64).save(next(path for name, path in by_name.items() if "batches" not in name))
    assert upstream_fisher(network, 6, progress=False).weights_sha256 == network.weights_sha256 and len(drawn) == 3


def test_upstream_fisher_takes_600_images_and_says_how_far_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("PANDALIB_CACHE", str(tmp_path))
    asked, watched = [], []
    monkeypatch.setattr(glyphs, "draw_batch", lambda indices, **options: asked.append((len(indices), options)) or (images(2, side=64), None))
    monkeypatch.setattr("pandalib.ewc.bar", lambda starts, what, *, shown: watched.append((what, shown)) or starts)
    network = load_backbone()
    upstream_fisher(network)
    upstream_fisher(network, seed=1, progress=False)
    assert asked == [(600, dict(split="fisher", seed=0)), (600, dict(split="fisher", seed=1))]
    assert watched == [("Fisher information", True), ("Fisher information", False)]


def test_upstream_fisher_of_another_network(backbone, drawn):
    for other in (backbone, load_backbone(last="layer3"), load_backbone(EMBEDDED, "random")):
        with pytest.raises(ValueError, match=f"{other.name} up to {other.last} was not pretrained on glyphs: give labelled images"):
            upstream_fisher(other, 2, progress=False)
    assert not drawn


def test_the_embedded_network_has_as_many_classes_as_glyphs():
    network = load_backbone()
    labels = np.array([network.n_classes])
    assert network.classifier[-1].out_features > network.n_classes == len(glyphs.classes())
    with pytest.raises(ValueError, match=f"expected 0 to {network.n_classes - 1}, the classes"):  # textures are no class
        fisher_information(network, images(1), labels, progress=False)


@pytest.mark.parametrize("classes", [["a", "b"], ["b", "c", "a"], [3, 7]])
def test_linear_probe_is_scikit_learns_classifier(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    backbone = small_backbone(last="layer3")
    pictures, labels = images(30, seed=3), np.array(classes)[np.random.default_rng(0).integers(len(classes), size=30)]
    probe = linear_probe(backbone, pictures, labels)
    features = backbone.features(pictures)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(features, labels)
    with torch.inference_mode():
        logits = probe(backbone.head(backbone.stem_features(pictures))).numpy()
    assert logits.shape == (30, len(classes)) and not any(parameter.requires_grad for parameter in probe.parameters())
    decision = model.decision_function(features)
    np.testing.assert_allclose(logits if len(classes) > 2 else logits[:, 1] - logits[:, 0], decision, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(torch.tensor(logits).softmax(1).numpy(), model.predict_proba(features), atol=1e-4)
    assert np.array_equal(model.classes_[logits.argmax(axis=1)], model.predict(features))
    found = fisher_information(backbone, pictures, classifier=probe, progress=False)
    assert "linear probe" in found.recipe and found.last == "layer3" and found.mean() > 0
    found.check(backbone)


@pytest.mark.parametrize("labels", [np.zeros(6), np.arange(5), np.arange(12).reshape(6, 2)])
def test_linear_probe_refuses(backbone, labels):
    with pytest.raises(ValueError, match=r"expected one for each of the 6 images, two classes or more"):
        linear_probe(backbone, IMAGES, labels)


@pytest.fixture
def labelled_folder(tmp_path):
    for kind, number in (("cats", 4), ("dogs", 5)):
        (tmp_path / "classes" / kind).mkdir(parents=True)
        for i, picture in enumerate(images(number, seed=number)):
            Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / "classes" / kind / f"{i}.png")
    return tmp_path / "classes"


@pytest.mark.parametrize("last", ["layer4", "layer3"])
def test_fisher_of_a_labelled_folder(labelled_folder, last, monkeypatch):
    monkeypatch.setenv("PANDALIB_QUIET", "1")
    backbone = small_backbone(last=last)
    pictures, labels = np.concatenate([images(4, seed=4), images(5, seed=5)]), [0] * 4 + [1] * 5
    classifier = backbone.classifier if last == "layer4" else linear_probe(backbone, pictures, labels, seed=2)
    expected = fisher_information(backbone, pictures, classifier=classifier, seed=2)
    found = fisher_of(backbone, IMAGES, images=str(labelled_folder), seed=2)
    assert largest_error(found.values, expected.values) < 1e-5 and found.recipe == expected.recipe
    assert ("linear probe" in found.recipe) == (last == "layer3")
    assert found.n_samples == 9
    larger = fisher_of(backbone, IMAGES, images=str(labelled_folder), size=48, seed=2)
    assert largest_error(larger.values, expected.values) > 1e-3


def test_fisher_of_every_other_source(backbone, fisher, drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("PANDALIB_QUIET", "1")
    assert largest_error(fisher_of(backbone, IMAGES).values, fisher.values) == 0  # a whole network on what is at hand
    fisher.save(tmp_path / "f.safetensors")
    assert largest_error(fisher_of(backbone, images(2), file=str(tmp_path / "f.safetensors")).values, fisher.values) == 0
    with pytest.raises(ValueError, match="belongs to weights"):
        fisher_of(small_backbone(1), IMAGES, file=str(tmp_path / "f.safetensors"))
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such file"):
        fisher_of(backbone, IMAGES, file=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"small up to layer3 has no classifier, so EWC needs fisher_images=FOLDER .* or fisher=FILE"):
        fisher_of(small_backbone(last="layer3"), IMAGES)
    with pytest.raises(OSError, match="nowhere"):
        fisher_of(backbone, IMAGES, images=str(tmp_path / "nowhere"))
    (tmp_path / "one" / "class").mkdir(parents=True)
    Image.fromarray(IMAGES[0].transpose(1, 2, 0)).save(tmp_path / "one" / "class" / "a.png")
    with pytest.raises(ValueError, match=r"holds 1 class folder\(s\) with images: expected at least 2"):
        fisher_of(backbone, IMAGES, images=tmp_path / "one")
    assert not drawn
    used = []
    monkeypatch.setattr("pandalib.runs.upstream_fisher", lambda network: used.append(network) or "upstream")
    assert fisher_of(load_backbone(), IMAGES) == "upstream" and len(used) == 1  # the embedded network on its own task


def penalty_by_autograd(backbone, head, strength, weights):
    """lambda / 2 * sum of F (theta - theta*)^2, written out, with its gradients."""
    head = copy.deepcopy(head).requires_grad_(True)
    start = dict(backbone.head.named_parameters())
    value = strength / 2 * sum((weights(name) * (theta - start[name].detach()) ** 2).sum() for name, theta in head.named_parameters())
    return float(value.detach()), torch.autograd.grad(value, list(head.parameters()))


@pytest.mark.parametrize("plain_l2", [False, True])
def test_the_penalty_and_its_gradient(backbone, fisher, plain_l2):
    moved = copy.deepcopy(backbone.head).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    before = []
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            before.append(parameter.grad.clone())
    penalty = EWC(backbone, 7.0, None if plain_l2 else fisher)
    value, gradients = penalty_by_autograd(backbone, moved, 7.0, lambda name: 1.0 if plain_l2 else fisher.values[name])
    assert penalty.value(moved) == pytest.approx(value, rel=1e-5) and value > 0
    penalty.add_gradient(moved)
    for parameter, old, gradient in zip(moved.parameters(), before, gradients):
        torch.testing.assert_close(parameter.grad - old, gradient, rtol=1e-4, atol=1e-5)
    assert penalty.value(backbone.head) == 0


@pytest.mark.parametrize("plain_l2", [False, True])
def test_the_order_in_memory_changes_no_gradient(backbone, fisher, plain_l2):
    """A head may have its weights in another order in memory than the pretrained one."""
    gradients = []
    for order in (torch.channels_last, torch.contiguous_format):
        head = copy.deepcopy(backbone.head).to(memory_format=order).requires_grad_(True)
        penalty = EWC(backbone, 7.0, None if plain_l2 else fisher)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(torch.linspace(0, 1, parameter.numel()).view(parameter.shape))
                parameter.grad = torch.zeros_like(parameter)
        for _ in range(2):
            penalty.add_gradient(head)
        start, _ = penalty._start, penalty.add_gradient(head)
        assert penalty._start is start  # put in order once, not at each step
        assert all(a.stride() == b.stride() for a, b in zip(start, head.parameters()))
        gradients.append([parameter.grad for parameter in head.parameters()])
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*gradients) if a.ndim == 4)


def distance(network, backbone) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(network.head.parameters(), backbone.head.parameters()))


def test_strength_from_nothing_to_frozen(backbone, fisher):
    pictures = images(17, seed=1)
    stem = backbone.stem_features(pictures)
    free = adapt(backbone, stem, **SETTINGS)[-1]
    for weights in (fisher, None):
        none = adapt(backbone, stem, penalty=EWC(backbone, 0.0, weights), **SETTINGS)[-1]
        assert all(torch.equal(a, b) for a, b in zip(none.head.parameters(), free.head.parameters()))
    moves = [distance(adapt(backbone, stem, penalty=EWC(backbone, strength, None), **SETTINGS)[-1], backbone) for strength in (0, 10, 30)]
    assert moves[0] > moves[1] > moves[2]
    slow = {**SETTINGS, "lr": 1e-5, "clip": None, "epochs": 30}  # lr x lambda x F stays well below 1: steps that large would swing
    held, loose = (distance(adapt(backbone, stem, penalty=EWC(backbone, strength, None), **slow)[-1], backbone) for strength in (1e4, 0))
    assert held < 0.05 * loose


def test_important_parameters_move_less(backbone):
    """A Fisher information of zeros but for one tensor holds that tensor alone."""
    stem = backbone.stem_features(images(17, seed=1))
    held = "layer4.0.conv2.weight"
    values = {name: torch.full_like(p, 1.0 if name == held else 0.0) for name, p in backbone.head.named_parameters()}
    one = Fisher(values, backbone.weights_sha256, "layer3", "layer4", "by hand", 1)
    options = {**SETTINGS, "clip": None, "lr": 0.01}
    free, penalised = (dict(adapt(backbone, stem, penalty=p, **options)[-1].head.named_parameters()) for p in (None, EWC(backbone, 20.0, one)))
    start = dict(backbone.head.named_parameters())
    moved = {name: float((penalised[name] - start[name]).norm() / (free[name] - start[name]).norm()) for name in start}
    assert moved.pop(held) < 0.85 and all(0.9 < value < 1.2 for value in moved.values())


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_cannot_be(backbone, strength):
    with pytest.raises(ValueError, match=f"strength={strength!r}: expected lambda, a number of at least 0"):
        EWC(backbone, strength, None)


def test_what_makes_two_penalties_different(backbone, fisher):
    other = fisher_information(backbone, IMAGES, seed=9, progress=False)
    identities = [EWC(backbone, 1.0, fisher), EWC(backbone, 2.0, fisher), EWC(backbone, 1.0, None), EWC(backbone, 1.0, other)]
    assert all(set(penalty.identity()) == {"strength", "fisher"} for penalty in identities)  # the words of the error of another run
    identities = [json.dumps(penalty.identity()) for penalty in identities]
    assert len(set(identities)) == 4 and identities[0] == json.dumps(EWC(small_backbone(), 1.0, fisher).identity())


def test_the_penalty_knows_nothing_of_later_changes(fisher):
    """theta* is the pretrained head: adapting a network twice pulls it back to the first, not to the last."""
    backbone = small_backbone()
    penalty = EWC(backbone, 3.0, fisher)
    moved = adapt(backbone, backbone.stem_features(images(17, seed=1)), penalty=penalty, **SETTINGS)[-1]
    assert penalty.value(moved.head) > 0 == penalty.value(backbone.head)
    assert isinstance(backbone.classifier, nn.Module) and moved.classifier is backbone.classifier
