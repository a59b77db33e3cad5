"""Fisher information by its definition, and the penalty that it weighs."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small import CLASSES, images, normalised, plain_network, small_backbone

from pandalib import EWC, Fisher, fisher_information, linear_probe, load_backbone
from pandalib.datasets.synthetic import glyphs
from pandalib.methods import ewc
from pandalib.methods.panda import fit_compactness

IMAGES = images(6)
SETTINGS = dict(epochs=2, batch_size=8, lr=0.05, max_grad_norm=0.1, progress=False)


@pytest.fixture(scope="module")
def fisher(backbone):
    return fisher_information(backbone, IMAGES, progress=False)


def compute(backbone, pictures=IMAGES, labels=None, **options) -> Fisher:
    return fisher_information(backbone, pictures, labels, progress=False, **options)


def trained(network) -> dict[str, torch.Tensor]:
    stages = {"layer3": network.layer3, "layer4": network.layer4}
    return {
        f"{stage}.{name}": parameter
        for stage, module in stages.items()
        for name, parameter in module.named_parameters()
    }


def squares(network, pictures, labels, n_classes=None) -> dict[str, torch.Tensor]:
    """(d mean of log p(label | picture) / d theta_i)^2 through the whole, unfolded network."""
    named = trained(network)
    logits = network(normalised(pictures))[:, :n_classes]
    log_p = [row[y] - torch.logsumexp(row, dim=0) for row, y in zip(logits, labels)]
    gradients = torch.autograd.grad(sum(log_p) / len(log_p), list(named.values()))
    return {name: gradient**2 for name, gradient in zip(named, gradients)}


def mean(parts: list[dict], weights=None) -> dict[str, torch.Tensor]:
    weights = [1 / len(parts)] * len(parts) if weights is None else weights
    return {name: sum(w * part[name] for w, part in zip(weights, parts)) for name in parts[0]}


def per_sample(network, labels, n_classes=None) -> dict[str, torch.Tensor]:
    pairs = zip(IMAGES, labels)
    return mean([squares(network, picture[None], [y], n_classes) for picture, y in pairs])


def largest_error(values: dict, expected: dict) -> float:
    """Largest difference over all parameters, relative to the largest value."""
    assert values.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    return max(float((values[name] - expected[name]).abs().max()) for name in expected) / scale


@pytest.mark.parametrize(("n_classes", "other"), [(None, 3), (3, None)])
def test_each_sample_is_squared_alone(n_classes, other):
    backbone, network, labels = small_backbone(n_classes=n_classes), plain_network(), [0, 2, 1] * 2
    found, expected = compute(backbone, labels=labels), per_sample(network, labels, n_classes)
    assert largest_error(found.values, expected) < 1e-5
    assert largest_error(found.values, per_sample(network, labels, other)) > 0.01
    flat = torch.cat([value.flatten() for value in expected.values()])
    assert found.mean() == pytest.approx(float(flat.mean()), rel=1e-4)
    assert (found.adapt_from, found.truncate_after) == ("layer3", "layer4")
    assert (found.n_samples, found.weights_sha256) == (6, backbone.weights_sha256)
    assert found.recipe == "squares per sample, true labels (empirical), seed 0"
    own = compute(backbone, labels=labels, classifier=copy.deepcopy(backbone.classifier))
    assert largest_error(own.values, per_sample(network, labels)) < 1e-5  # all of its classes


def test_drawn_labels_follow_the_prediction(backbone):
    """The mean over many draws is the sum over all labels, weighed with their probability."""
    network, picture = plain_network(), IMAGES[:1]
    with torch.no_grad():
        p = network(normalised(picture))[0].softmax(dim=0)
    by_label = [squares(network, picture, [label]) for label in range(CLASSES)]
    exact = mean(by_label, p)
    few = [compute(backbone, picture, seed=seed) for seed in range(3)]
    for one in few:  # a single label each
        assert min(largest_error(one.values, part) for part in by_label) < 1e-5
    many = compute(backbone, np.repeat(picture, 1500, axis=0))
    assert largest_error(many.values, exact) < 0.08
    for wrong in (mean(by_label), by_label[int(p.argmax())]):
        assert largest_error(wrong, exact) > 0.2


def test_one_seed_one_result(backbone, fisher):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    again, other = compute(backbone), compute(backbone, seed=1)
    assert torch.equal(torch.rand(2), expected)  # the global generator is left alone
    assert largest_error(again.values, fisher.values) == 0
    assert largest_error(other.values, fisher.values) > 0
    assert other.recipe == "squares per sample, labels drawn from the prediction, seed 1"


def test_the_empirical_fisher_is_another(backbone):
    """Where the network is sure and right, true labels give next to nothing; else far too much."""
    with torch.no_grad():
        p = plain_network()(normalised(IMAGES))
    best, worst = (compute(backbone, labels=one).mean() for one in (p.argmax(1), p.argmin(1)))
    drawn = np.mean([compute(backbone, seed=seed).mean() for seed in range(20)])
    assert best < 0.7 * drawn < drawn < 0.7 * worst


def test_the_mean_of_a_batch_before_the_square_is_too_small(backbone):
    pictures = images(256, seed=2)
    whole = compute(backbone, pictures)
    for size in (4, 16):
        shortcut = compute(backbone, pictures, batch_size=size)
        assert 0.5 * size < whole.mean() / shortcut.mean() < 2 * size
        assert f"squares of the mean gradient of batches of {size}" in shortcut.recipe
    two = compute(backbone, pictures[:2], [0, 1], batch_size=2)
    assert largest_error(two.values, squares(plain_network(), pictures[:2], [0, 1])) < 1e-5


def test_computing_it_moves_nothing():
    backbone = small_backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    found = compute(backbone)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in backbone.parameters())
    frozen = backbone.frozen_features(IMAGES)
    assert largest_error(compute(backbone, frozen).values, found.values) == 0
    half = compute(backbone, frozen.half())  # as a cache of float16 holds them
    assert 0 < largest_error(half.values, found.values) < 0.02
    for name, parameter in backbone.trainable.named_parameters():
        assert found.values[name].shape == parameter.shape
        assert found.values[name].dtype == torch.float32 and (found.values[name] >= 0).all()


@pytest.mark.parametrize(
    ("network", "arguments", "words"),
    [
        ({}, dict(pictures=IMAGES[:0]), "^there are no images"),
        ({}, dict(labels=[0, 1]), r"labels are \(2,\): expected one for each of 6"),
        ({}, dict(labels=[0, 1, -2, 3, 4, 4]), "labels run from -2 to 4"),
        (dict(n_classes=2), dict(labels=[0, 1, 2, 0, 0, 0]), "from 0 to 2: expected 0 to 1"),
        (
            dict(truncate_after="layer3"),
            {},
            r"has no classifier: expected the whole network, or classifier=",
        ),
    ],
)
def test_what_cannot_be_computed(network, arguments, words):
    with pytest.raises(ValueError, match=words):
        compute(small_backbone(**network), **arguments)


def test_textures_are_not_among_the_classes_of_the_embedded_network():
    network = load_backbone()
    assert network.classifier[-1].out_features > network.n_classes == len(glyphs.classes())


@pytest.mark.parametrize("classes", [["b", "c", "a"], [3, 7]])
def test_linear_probe_is_scikit_learns_classifier(classes):
    backbone, pictures = small_backbone(truncate_after="layer3"), images(30, seed=3)
    labels = np.array(classes)[np.random.default_rng(0).integers(len(classes), size=30)]
    probe = linear_probe(backbone, pictures, labels)
    features = backbone.features(pictures)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(features, labels)
    with torch.inference_mode():
        logits = probe(backbone.trainable(backbone.frozen_features(pictures))).numpy()
    difference = logits if len(classes) > 2 else logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(difference, model.decision_function(features), atol=1e-3, rtol=1e-3)
    assert np.array_equal(model.classes_[logits.argmax(axis=1)], model.predict(features))
    assert not any(parameter.requires_grad for parameter in probe.parameters())
    found = compute(backbone, pictures, classifier=probe)
    assert found.recipe.endswith("seed 0, linear probe") and found.mean() > 0
    found.check(backbone)
    for wrong in (np.zeros(30), labels[:5]):
        with pytest.raises(ValueError, match="expected one for each of 30 images, two classes"):
            linear_probe(backbone, pictures, wrong)


def test_another_network_or_other_stages_are_refused(backbone, fisher):
    fisher.check(backbone)
    ours = f"belongs to weights {backbone.weights_sha256[:12]}, layer3 to layer4"
    for options, words in (
        (dict(seed=1), f"has weights {small_backbone(1).weights_sha256[:12]}, layer3 to layer4"),
        (dict(adapt_from="layer4"), "has weights .*, layer4 to layer4"),
        (dict(truncate_after="layer3"), "has weights .*, layer3 to layer3"),
    ):
        words = f"{ours}; the backbone {words}.*: compute it with pandalib"
        with pytest.raises(ValueError, match=words):
            EWC(small_backbone(**options), 1.0, fisher)
    wrong_shapes = dataclasses.replace(fisher, values={"layer3.0.bn1.bias": torch.ones(3)})
    with pytest.raises(ValueError, match="belongs to"):
        wrong_shapes.check(backbone)


def test_saved_and_read_back(backbone, fisher, tmp_path):
    path = tmp_path / "deep" / "f.safetensors"
    fisher.save(path)
    again = Fisher.load(str(path), backbone)
    assert largest_error(again.values, fisher.values) == 0
    assert dataclasses.replace(again, values={}) == dataclasses.replace(fisher, values={})
    with pytest.raises(ValueError, match="belongs to weights"):
        Fisher.load(path, small_backbone(1))
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no such file"):
        Fisher.load(tmp_path / "nowhere")
    whole = path.read_bytes()
    ewc.write_tensors(tmp_path / "other", fisher.values, dict(epoch=3))
    for damaged in (whole[:-100], b"not tensors", (tmp_path / "other").read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{path} is damaged, or holds no Fisher"):
            Fisher.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n_samples", "6"), ("recipe", 3), ("adapt_from", None)),
        *(("square", -1.0), ("square", np.nan), ("square", np.inf), ("type", torch.float64)),
    ],
)
def test_squares_and_origins_that_cannot_be_are_refused(fisher, name, value, tmp_path):
    facts = {fact: known for fact, known in vars(fisher).items() if fact != "values"}
    values = {parameter: squares.clone() for parameter, squares in fisher.values.items()}
    last = [*values][-1]
    if name == "square":
        values[last].view(-1)[-1] = value
    elif name == "type":
        values[last] = values[last].to(value)
    else:
        facts[name] = value
    ewc.write_tensors(tmp_path / "f", values, facts)
    words = "or holds no Fisher information: compute it with pandalib.fisher_information."
    with pytest.raises(ValueError, match=words):
        Fisher.load(tmp_path / "f")


@pytest.mark.parametrize(
    ("plain_l2", "order"), [(False, torch.channels_last), (True, torch.contiguous_format)]
)
def test_the_penalty_and_its_gradient_are_the_formulas(backbone, fisher, plain_l2, order):
    moved = copy.deepcopy(backbone.trainable).to(memory_format=order).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    start = {name: p.clone() for name, p in backbone.trainable.named_parameters()}
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    ones = {name: torch.ones_like(p) for name, p in start.items()}
    weights = ones if plain_l2 else fisher.values
    theta = dict(moved.named_parameters())
    by_hand = sum((weights[name] * (theta[name] - start[name]) ** 2).sum() for name in theta)
    penalty = EWC(backbone, 7.0, None if plain_l2 else fisher)
    value = penalty(moved)
    assert value.item() == pytest.approx(7 / 2 * by_hand.item(), rel=1e-5) and value > 0
    gradients = torch.autograd.grad(value, list(theta.values()))
    automatic = torch.autograd.grad(7 / 2 * by_hand, list(theta.values()))
    for name, ours, theirs in zip(theta, gradients, automatic):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        formula = 7 * weights[name] * (theta[name].detach() - start[name])
        torch.testing.assert_close(ours, formula, rtol=1e-6, atol=0)
    assert penalty(backbone.trainable) == 0


def distance(network, backbone) -> float:
    pairs = zip(network.trainable.parameters(), backbone.trainable.parameters())
    return max(float((a - b).abs().max()) for a, b in pairs)


def test_lambda_from_nothing_to_frozen(backbone, fisher):
    frozen = backbone.frozen_features(images(17, seed=1))

    def adapted(penalty=None, **changes):
        return fit_compactness(backbone, frozen, penalty=penalty, **{**SETTINGS, **changes})[-1]

    for weights in (fisher, None):
        assert distance(adapted(EWC(backbone, 0.0, weights)), adapted()) == 0
    moves = [distance(adapted(EWC(backbone, value, None)), backbone) for value in (0, 10, 30)]
    assert moves[0] > moves[1] > moves[2]
    slow = dict(lr=1e-5, max_grad_norm=None, epochs=30)  # lr x lambda x F well below 1
    held, loose = (adapted(EWC(backbone, value, None), **slow) for value in (1e4, 0))
    assert distance(held, backbone) < 0.05 * distance(loose, backbone)
    for value in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"ewc_lambda={value!r}: expected a number"):
            EWC(backbone, value, None)


def test_facts_tell_penalties_apart(backbone, fisher):
    other = compute(backbone, seed=9)
    pairs = [(1.0, fisher), (2.0, fisher), (1.0, None), (1.0, other)]
    facts = [str(EWC(backbone, *pair).facts) for pair in pairs]
    assert len(set(facts)) == 4
    assert facts[0] == str(EWC(small_backbone(), 1.0, fisher).facts)
