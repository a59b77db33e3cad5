"""Compactness adaptation: the definition, bit for bit again after a crash, and the ways to know when to stop."""

import copy
import math

import numpy as np
import pytest
import torch
from small import images, normalised, plain_network, small_backbone

from pandalib import DN2, Adapted, FeatureCache, SampleWise, backbones, detectors, load_backbone, load_task
from pandalib.adapt import (
    Checkpoints, _step_seconds, adapt, bfloat16_pays, compactness, diagnose, effective_rank, epochs_for,
    feature_variance, hold_out, sample_wise, trainable_head,
)  # fmt: skip
from pandalib.backbones import normalise, read_state, verify_embedded
from pandalib.ewc import EWC
from pandalib.knn import knn_scores
from pandalib.metrics import roc_auc
from pandalib.progress import progress

IMAGES = images(33)
PACE = dict(lr=0.5, clip=0.005)  # this clip cuts every gradient of the small network
SETTINGS = dict(epochs=3, batch_size=16, progress=False, **PACE)


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def stem(backbone):
    return backbone.stem_features(IMAGES)


def parameters(network) -> list[torch.Tensor]:
    return list(network.head.parameters())


def equal(one: Checkpoints, other: Checkpoints) -> bool:
    """The same checkpoints, bit for bit, and the same losses."""
    same = one.epochs == other.epochs and one.losses == other.losses and torch.equal(one.centre, other.centre)
    return same and all(torch.equal(a, b) for x, y in zip(one, other) for a, b in zip(parameters(x), parameters(y)))


def by_hand(network, head_names, pictures, *, epochs, lr, clip, batch_size, momentum=0.9, weight_decay=0.0, seed=0, penalty=None):
    """The definition: the whole network for every batch, the centre fixed, gradient, clip and step written out.

    Returns the mean loss of each epoch. `penalty` is the list of F_i times lambda.
    """
    network = copy.deepcopy(network).eval()
    trained = [parameter for name in head_names for parameter in getattr(network, name).parameters()]

    def features(rows):
        x = normalised(pictures[rows])
        for name in ("conv", "layer1", "layer2", "layer3", "layer4"):
            x = getattr(network, name)(x)
        return x.mean(dim=(2, 3))

    with torch.no_grad():
        centre = features(range(len(pictures))).double().mean(dim=0).float()
    start = [parameter.detach().clone() for parameter in trained]
    velocity = [torch.zeros_like(parameter) for parameter in trained]
    losses = []
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng((seed, epoch)).permutation(len(pictures))
        total = 0.0
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            f = features(rows)
            loss = sum(((f[i] - centre) ** 2).sum() / f.shape[1] for i in range(len(rows))) / len(rows)
            gradients = list(torch.autograd.grad(loss, trained))
            if penalty is not None:
                gradients = [g + strength * (p.detach() - s) for g, strength, p, s in zip(gradients, penalty, trained, start)]
            norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
            scale = 1.0 if clip is None else min(1.0, clip / norm)
            with torch.no_grad():
                for parameter, gradient, v in zip(trained, gradients, velocity):
                    v.mul_(momentum).add_(gradient * scale + weight_decay * parameter)
                    parameter.sub_(lr * v)
            total += loss.item() * len(rows)
        losses.append(total / len(order))
    return losses


@pytest.mark.parametrize(
    "changes",
    [
        dict(),  # 33 images in batches of 16: the last batch is one image
        dict(batch_size=20, weight_decay=0.02),  # the last batch is smaller
        dict(clip=None, lr=0.01, momentum=0.5),
        dict(seed=4, batch_size=64),  # one batch, smaller than batch_size
    ],
)
def test_losses_are_those_of_the_definition(backbone, stem, changes):
    settings = {**SETTINGS, **changes}
    losses = adapt(backbone, stem, **settings).losses
    settings.pop("progress")
    expected = by_hand(plain_network(), ("layer3", "layer4"), IMAGES, **settings)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert max(losses) > 1.001 * min(losses)  # something has moved


def test_losses_of_the_embedded_network_are_those_of_the_definition():
    state = read_state(verify_embedded())
    network = backbones.embedded_network(len(state["fc.weight"]))
    network.load_state_dict(state)
    network.conv = torch.nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    pictures, embedded = images(17, seed=1), load_backbone()
    settings = dict(epochs=2, batch_size=8, lr=0.25, clip=0.1)
    losses = adapt(embedded, embedded.stem_features(pictures), progress=False, **settings).losses
    np.testing.assert_allclose(losses, by_hand(network, ("layer3", "layer4"), pictures, **settings), rtol=1e-5)


def test_a_penalty_comes_before_the_clip(backbone, stem):
    class L2:
        def identity(self):
            return {}

        def add_gradient(self, head):
            for parameter, start in zip(head.parameters(), parameters(backbone)):
                parameter.grad += 3.0 * (parameter.detach() - start)

    with_penalty = adapt(backbone, stem, penalty=L2(), **SETTINGS).losses
    hand = {key: value for key, value in SETTINGS.items() if key != "progress"}
    expected = by_hand(plain_network(), ("layer3", "layer4"), IMAGES, penalty=[3.0] * len(parameters(backbone)), **hand)
    np.testing.assert_allclose(with_penalty, expected, rtol=1e-5)
    assert with_penalty[-1] > adapt(backbone, stem, **SETTINGS).losses[-1]


def test_only_the_parameters_of_the_head_move():
    backbone = small_backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    adapted = adapt(backbone, backbone.stem_features(IMAGES), **SETTINGS)[-1]
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not any(parameter.requires_grad for network in (backbone, adapted) for parameter in network.parameters())
    trainable = {f"head.{name}" for name, _ in backbone.head.named_parameters()}
    for name, value in adapted.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trainable), name
    assert any("running_mean" in name for name in before) and adapted.stem is backbone.stem


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-3)])
def test_a_cached_stem_gives_the_same_course(dtype, tolerance, tmp_path):
    task, network = load_task("pictograms:star", n_train=40, n_test=15), load_backbone()
    courses = []
    for cache in (None, FeatureCache(tmp_path, dtype=dtype)):
        history = []

        def record(checkpoint):
            gallery, features = (checkpoint.backbone.features(part, cache=cache) for part in (task.train, task.test))
            history.append([roc_auc(task.labels, knn_scores(gallery, features)), feature_variance(features)])

        losses = adapt(network, network.stem_features(task.train, cache=cache), epochs=2, lr=0.25, clip=0.1, on_checkpoint=record, progress=False).losses
        courses.append((np.array(losses), np.array(history)))
    (losses, history), (cached_losses, cached_history) = courses
    np.testing.assert_allclose(cached_losses, losses, rtol=tolerance)
    np.testing.assert_allclose(cached_history, history, atol=tolerance, rtol=tolerance)
    assert history[-1, 1] < 0.9 * history[0, 1]  # it has begun to collapse


def test_one_seed_one_result(backbone, stem):
    first, again, other = (adapt(backbone, stem, seed=seed, **SETTINGS) for seed in (2, 2, 3))
    assert equal(first, again) and not equal(first, other)


def test_what_is_left_out_has_its_documented_value(backbone, stem):
    """Momentum 0.9, no weight decay, batches of 32, seed 0, every epoch kept: the definition with these gives the same losses."""
    settings = dict(epochs=3, lr=0.05, clip=0.1)
    usual = adapt(backbone, stem, progress=False, **settings)
    np.testing.assert_allclose(usual.losses, by_hand(plain_network(), ("layer3", "layer4"), IMAGES, batch_size=32, momentum=0.9, **settings), rtol=1e-5)
    assert usual.epochs == [0, 1, 2, 3] and usual.folder is None and usual.backbone is backbone
    assert usual.centre.dtype == torch.float32
    np.testing.assert_allclose(usual.centre, backbone.features(IMAGES).mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(("options", "shown"), [({}, True), ({"progress": True}, True), ({"progress": False}, False)])
def test_the_bar_is_shown_unless_told_not_to(backbone, stem, monkeypatch, options, shown):
    seen = []
    monkeypatch.setattr("pandalib.adapt.bar", lambda epochs, what, *, shown: seen.append((list(epochs), what, shown)) or epochs)
    adapt(backbone, stem[:4], **{key: value for key, value in SETTINGS.items() if key != "progress"}, **options)
    assert seen == [([1, 2, 3], "adapting", shown)]


# ---------------------------------------------------------------- bfloat16


def test_a_trial_changes_nothing(backbone, stem):
    head = trainable_head(backbone)
    before = [parameter.detach().clone() for parameter in head.parameters()]
    pays, ratio = bfloat16_pays(head, backbone.for_head(stem[:8]), device=backbone.device)
    assert pays is (ratio >= 1.2) and 0 < ratio < math.inf
    for parameter, old in zip(head.parameters(), before, strict=True):
        assert torch.equal(parameter, old) and parameter.grad is None


@pytest.mark.parametrize(
    ("float32", "bfloat16", "pays", "ratio", "steps"),
    [
        ([0.06], [0.03], True, 2.0, 12),  # 0.09 s a round: half a second is over after six
        ([0.03], [0.06], False, 0.5, 12),
        ([0.05, 0.03, 0.05], [0.2, 0.02, 0.3], True, 1.5, 6),  # the fastest of each; 0.3 s end it
        ([0.03], [0.27], False, 1 / 9, 2),  # one slow step is enough
        ([0.6], [0.3], True, 2.0, 2),
        ([0.11], [0.1], False, 1.1, 6),  # too little
    ],
)
def test_the_faster_one_of_a_trial(
    backbone, stem, monkeypatch, float32, bfloat16, pays, ratio, steps
):
    seen = []

    def step_seconds(head, example, bf16, device):
        seen.append((len(example), bf16))
        number = (len(seen) - 1) // 2 - 1  # the first of each does not count
        times = bfloat16 if bf16 else float32
        return 99.0 if number < 0 else times[min(number, len(times) - 1)]

    monkeypatch.setattr("pandalib.adapt._step_seconds", step_seconds)
    found = bfloat16_pays(trainable_head(backbone), stem[:8], device=backbone.device)
    assert found == (pays, pytest.approx(ratio))
    assert seen == [(1, True), (1, False)] + [(8, True), (8, False)] * (steps // 2)


def test_a_step_is_timed_in_the_format_asked_for(backbone, stem):
    formats = []
    head = trainable_head(backbone)
    head.register_forward_hook(lambda head, inputs, output: formats.append(output.dtype))
    for bf16 in (True, False):
        assert _step_seconds(head, backbone.for_head(stem[:2]), bf16, backbone.device) > 0
    assert formats == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("pays", [True, False])
def test_what_the_trial_decides_is_done(backbone, stem, monkeypatch, pays):
    batches = []

    def trial(head, example, *, device):
        batches.append(len(example))
        return pays, 3.0 if pays else 0.1

    monkeypatch.setattr("pandalib.adapt.bfloat16_pays", trial)
    settings, seen = {**SETTINGS, "epochs": 1}, []
    look = dict(on_checkpoint=lambda done: seen.append(done.bf16))
    found = adapt(backbone, stem, bf16="auto", **look, **settings)
    asked, other = (adapt(backbone, stem, bf16=bf16, **settings) for bf16 in (pays, not pays))
    assert equal(found, asked) and found.losses != other.losses
    assert (found.bf16, found.bf16_ratio) == (pays, 3.0 if pays else 0.1)
    assert (asked.bf16, asked.bf16_ratio) == (pays, None) and seen == [pays, pays]
    assert batches == [16]  # as many as a step takes, and no trial where none was asked for


@pytest.mark.parametrize("make", [Adapted, SampleWise])
@pytest.mark.parametrize("pays", [True, False])
def test_scores_are_computed_as_the_trial_decided(backbone, monkeypatch, make, pays):
    monkeypatch.setattr("pandalib.adapt.bfloat16_pays", lambda *_, **__: (pays, 1.3))
    options = dict(epochs=1, progress=False, **PACE)
    queries = images(5, seed=5)
    found = make(backbone, bf16="auto", **options).fit(IMAGES)
    same, other = (make(backbone, bf16=bf16, **options).fit(IMAGES) for bf16 in (pays, not pays))
    assert np.array_equal(found.score(queries), same.score(queries))
    assert not np.array_equal(found.score(queries), other.score(queries))
    assert (found.bf16_, found.bf16_ratio_) == (pays, 1.3)
    assert (same.bf16_, same.bf16_ratio_) == (pays, None)


def test_a_resumed_run_keeps_the_format_it_began_with(backbone, stem, tmp_path, monkeypatch):
    monkeypatch.setattr("pandalib.adapt.bfloat16_pays", lambda *_, **__: (True, 2.0))
    adapt(backbone, stem, bf16="auto", folder=tmp_path, **SETTINGS)
    monkeypatch.setattr("pandalib.adapt.bfloat16_pays", lambda *_, **__: (False, 0.5))
    longer = {**SETTINGS, "epochs": 4}
    resumed = adapt(backbone, stem, bf16="auto", folder=tmp_path, **longer)
    assert equal(resumed, adapt(backbone, stem, bf16=True, **longer))
    assert (resumed.bf16, resumed.bf16_ratio) == (True, None)


@pytest.mark.parametrize("bf16", ["on", "bfloat16", None, 2])
def test_another_format_is_refused(backbone, stem, bf16):
    with pytest.raises(ValueError, match=rf'bf16={bf16!r}: expected True, False or "auto"'):
        adapt(backbone, stem, bf16=bf16, **SETTINGS)


class Killed(Exception):
    pass


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kill_at", [0, 2, 4, 5])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(backbone, stem, tmp_path, every, kill_at):
    settings = {**SETTINGS, "epochs": 5, "every": every, "weight_decay": 1e-3, "penalty": EWC(backbone, 2.0, None)}
    whole = adapt(backbone, stem, **settings)
    assert whole.epochs == ([0, 1, 2, 3, 4, 5] if every == 1 else [0, 2, 4, 5])

    def kill(checkpoint):
        if checkpoint.epoch == kill_at:
            raise Killed

    with pytest.raises(Killed):
        adapt(backbone, stem, folder=tmp_path, on_checkpoint=kill, **settings)
    seen = []
    resumed = adapt(backbone, stem, folder=tmp_path, on_checkpoint=lambda done: seen.append(done.epoch), **settings)
    assert equal(resumed, whole)
    kept = [epoch for epoch in whole.epochs if 0 < epoch < kill_at]  # the one that it was killed at is made again
    assert seen == [epoch for epoch in whole.epochs if epoch > max(kept, default=-1)]
    assert equal(adapt(backbone, stem, folder=tmp_path, on_checkpoint=kill if kill_at == 0 else None, **settings), whole)  # done: nothing to do
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(("every", "momentum"), [(1, 0.9), (2, 0.9), (3, 0.9), (1, 0.0)])  # without momentum there is none to keep
def test_a_run_is_continued_for_longer(backbone, stem, tmp_path, every, momentum):
    settings = {**SETTINGS, "every": every, "momentum": momentum}
    short = adapt(backbone, stem, folder=tmp_path, **settings)
    assert short.epochs[-1] == 3
    longer = adapt(backbone, stem, folder=tmp_path, **{**settings, "epochs": 5})
    assert equal(longer, adapt(backbone, stem, **{**settings, "epochs": 5}))
    with pytest.raises(ValueError, match=rf"{tmp_path} holds a run of 5 epochs, more than epochs=4"):
        adapt(backbone, stem, folder=tmp_path, **{**settings, "epochs": 4})


def test_a_detector_is_continued_for_longer(backbone, tmp_path):
    options = dict(progress=False, **PACE)
    Adapted(backbone, epochs=2, folder=tmp_path, **options).fit(IMAGES)
    longer = Adapted(backbone, epochs=4, folder=tmp_path, **options).fit(IMAGES)
    assert longer.checkpoints_.epochs == [0, 4] and equal(longer.checkpoints_, Adapted(backbone, epochs=4, **options).fit(IMAGES).checkpoints_)
    with pytest.raises(ValueError, match=r"kept no checkpoint of epoch 1, which every=1 asks for: choose an empty folder"):
        SampleWise(backbone, epochs=4, folder=tmp_path / "ses", every=2, **options).fit(IMAGES)
        SampleWise(backbone, epochs=4, folder=tmp_path / "ses", every=1, **options).fit(IMAGES)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (dict(lr=0.04), "lr was 0.5, now 0.04"),
        (dict(clip=None), "clip was 0.005, now None"),
        (dict(momentum=0.8), "momentum was 0.9, now 0.8"),
        (dict(weight_decay=0.1), "weight_decay was 0.0, now 0.1"),
        (dict(batch_size=8), "batch_size was 16, now 8"),
        (dict(seed=1), "seed was 0, now 1"),
        (dict(bf16=True), "bf16 was False, now True"),
        (dict(penalty="L2"), "penalty was None, now {'strength': 2.0"),
        (dict(images=IMAGES[:20]), "centre was "),
        (dict(images=IMAGES[:, ::-1]), "centre was "),
        (dict(backbone=1), "weights_sha256 was "),
    ],
)
def test_the_folder_of_another_run_is_refused(backbone, tmp_path, changes, name):
    adapt(backbone, backbone.stem_features(IMAGES), folder=tmp_path, **SETTINGS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    settings = {**SETTINGS, **changes}
    other = small_backbone(settings.pop("backbone", 0))
    pictures = settings.pop("images", IMAGES)
    if "penalty" in settings:
        settings["penalty"] = EWC(other, 2.0, None)
    with pytest.raises(ValueError, match=rf"{tmp_path} holds checkpoints of another run \({name}.*\): choose an empty folder"):
        adapt(other, other.stem_features(pictures), folder=tmp_path, **settings)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("damage", ["cut", "bit", "no tensors at all", "another file", "empty"])
@pytest.mark.parametrize("name", ["resume.safetensors", "epoch-0002.safetensors"])
def test_a_damaged_checkpoint_is_refused(backbone, stem, tmp_path, name, damage):
    from safetensors.torch import save_file

    checkpoints = adapt(backbone, stem, folder=tmp_path, **SETTINGS)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        content[len(content) * 3 // 4] ^= 1
        path.write_bytes(content)
    elif damage == "another file":
        save_file({"layer3.0.conv1.weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(b"" if damage == "empty" else damage.encode())
    with pytest.raises(ValueError, match=rf"checkpoint {path} is damaged or no checkpoint: empty its folder and adapt again"):
        adapt(backbone, stem, folder=tmp_path, **{**SETTINGS, "epochs": 4})[2]
    if name.startswith("epoch"):
        with pytest.raises(ValueError, match=name):
            checkpoints[2]
        assert parameters(checkpoints[1])  # the others are still there


def test_a_checkpoint_of_another_epoch_or_network_is_refused(backbone, stem, tmp_path):
    from pandalib.sealed import read_tensors, write_tensors

    checkpoints = adapt(backbone, stem, folder=tmp_path / "own", **SETTINGS)
    other = small_backbone(1)
    adapt(other, other.stem_features(IMAGES), folder=tmp_path / "other", **SETTINGS)
    path = tmp_path / "own" / "epoch-0002.safetensors"
    tensors, facts = read_tensors(path)
    fewer = dict(list(tensors.items())[1:])
    wider = {name: tensor.repeat(2, *[1] * (tensor.ndim - 1)) for name, tensor in tensors.items()}
    for wrong in ((tensors, facts | {"epoch": 1}), (tensors, {"weights_sha256": facts["weights_sha256"]}), (fewer, facts), (wider, facts), (tensors, {"epoch": 2})):
        write_tensors(path, *wrong)
        with pytest.raises(ValueError, match=f"^checkpoint {path} is one of another epoch or network: empty its folder and adapt again.$"):
            checkpoints[2]
    path.write_bytes((tmp_path / "other" / "epoch-0002.safetensors").read_bytes())
    with pytest.raises(ValueError, match="another epoch or network"):
        checkpoints[-2]
    write_tensors(path, tensors, facts)
    assert parameters(checkpoints[2]) and parameters(checkpoints[1])


@pytest.mark.parametrize("lost", ["identity", "epoch", "epochs", "losses", "a tensor"])
def test_a_state_that_lacks_something_is_refused(backbone, stem, tmp_path, lost):
    from pandalib.sealed import read_tensors, write_tensors

    adapt(backbone, stem, folder=tmp_path, **SETTINGS)
    path = tmp_path / "resume.safetensors"
    tensors, facts = read_tensors(path)
    if lost == "a tensor":
        tensors.pop(next(name for name in tensors if name.startswith("momentum.")))
    write_tensors(path, tensors, {key: value for key, value in facts.items() if key != lost})
    with pytest.raises(ValueError, match=f"^checkpoint {path} is damaged or no checkpoint: empty its folder and adapt again.$"):
        adapt(backbone, stem, folder=tmp_path, **SETTINGS)


def test_a_missing_checkpoint_is_named(backbone, stem, tmp_path):
    checkpoints = adapt(backbone, stem, folder=tmp_path, **SETTINGS)
    (tmp_path / "epoch-0001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=rf"checkpoint {tmp_path}/epoch-0001.safetensors is missing: empty its folder"):
        checkpoints[1]


def test_checkpoints_in_memory_and_on_disk(backbone, stem, tmp_path):
    memory, disk = adapt(backbone, stem, **SETTINGS), adapt(backbone, stem, folder=tmp_path / "deep" / "er", **SETTINGS)
    assert equal(memory, disk)
    assert sorted(path.name for path in disk.folder.iterdir()) == [*(f"epoch-{i:04d}.safetensors" for i in range(4)), "resume.safetensors"]
    for checkpoints in (memory, disk):
        assert len(checkpoints) == 4 and len(checkpoints[1:]) == 3 and len(list(checkpoints)) == 4
        assert all(torch.equal(a, b) for a, b in zip(parameters(checkpoints[-1]), parameters(checkpoints[3])))
        assert all(torch.equal(a, b) for a, b in zip(parameters(checkpoints[1:][-1]), parameters(checkpoints[3])))
        assert all(torch.equal(a, b) for a, b in zip(parameters(checkpoints[0]), parameters(backbone)))
        with pytest.raises(IndexError):
            checkpoints[4]
        assert np.array_equal(checkpoints[2].features(IMAGES), memory[2].features(IMAGES))


@pytest.mark.parametrize(("every", "epochs"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4, 5]), (5, [0, 5]), (9, [0, 5])])
def test_every(backbone, stem, every, epochs):
    seen = []
    checkpoints = adapt(backbone, stem, every=every, on_checkpoint=seen.append, **{**SETTINGS, "epochs": 5})
    assert checkpoints.epochs == epochs == [checkpoint.epoch for checkpoint in seen] and len(checkpoints.losses) == 5
    for number, checkpoint in enumerate(seen):
        assert math.isnan(checkpoint.loss) if number == 0 else checkpoint.loss == checkpoints.losses[checkpoint.epoch - 1]
        assert all(torch.equal(a, b) for a, b in zip(parameters(checkpoint.backbone), parameters(checkpoints[number])))
    assert equal(checkpoints, adapt(backbone, stem, every=every, **{**SETTINGS, "epochs": 5}))  # looking changes nothing


@pytest.mark.parametrize("changes", [{name: value} for name in ("epochs", "batch_size", "every") for value in (0, -1, 1.5, 2.0, math.nan, None)])
def test_counts_that_cannot_be(backbone, stem, changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r}: expected a whole number of at least 1.$"):
        adapt(backbone, stem, **{**SETTINGS, **changes})


@pytest.mark.parametrize("changes", [{name: value} for name in ("lr", "clip") for value in (0.0, -1, math.nan, math.inf)])
def test_rates_that_cannot_be(backbone, stem, changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r}: expected a number above 0.$"):
        adapt(backbone, stem, **{**SETTINGS, **changes})


def test_nothing_to_adapt_to_or_nothing_to_adapt(stem):
    backbone = small_backbone()
    with pytest.raises(ValueError, match="there are no images to adapt to"):
        adapt(backbone, stem[:0], **SETTINGS)
    cut = small_backbone(last="layer2")
    with pytest.raises(ValueError, match="small up to layer2 has no stage 'layer3' to adapt: choose adapt_from"):
        adapt(cut, cut.stem_features(IMAGES), **SETTINGS)


def test_a_loss_that_is_no_number_stops_the_run(backbone, stem, tmp_path):
    with pytest.raises(FloatingPointError, match=r"the loss of epoch \d is (nan|inf): lower lr \(now 1e\+20\), or clip the gradient \(now None\)"):
        adapt(backbone, stem, folder=tmp_path, **{**SETTINGS, "lr": 1e20, "clip": None})
    with pytest.raises(FloatingPointError, match=r"lower lr \(now 1e\+30\), or clip the gradient \(now 2.0\)"):
        adapt(backbone, stem, **{**SETTINGS, "lr": 1e30, "clip": 2.0})
    assert all(torch.isfinite(parameter).all() for parameter in parameters(backbone))
    assert not (tmp_path / "resume.safetensors").exists()  # nothing of it is gone on with


def test_one_image(backbone):
    checkpoints = adapt(backbone, backbone.stem_features(IMAGES[:1]), **SETTINGS)
    assert checkpoints.losses == pytest.approx([0, 0, 0], abs=1e-9)  # it is the centre


def test_weight_decay_acts_after_the_clip(backbone, stem):
    settings = {**SETTINGS, "epochs": 2}
    plain, decayed = (adapt(backbone, stem, weight_decay=decay, **{**settings, "clip": 1e-6})[-1] for decay in (0.0, 0.1))

    def size(network):
        return math.sqrt(sum(float(p.square().sum()) for p in parameters(network)))

    assert size(plain) == pytest.approx(size(backbone), rel=1e-5)  # that clip leaves it where it was
    assert size(decayed) < 0.98 * size(backbone)


@pytest.mark.parametrize(
    ("minibatches", "n", "batch_size", "expected"), [(260, 400, 32, 20), (2300, 5000, 32, 15), (39, 400, 32, 3), (1, 5000, 32, 1), (10, 10, 32, 10), (10, 33, 32, 5), (10, 20, 4, 2)]
)
def test_epochs_for(minibatches, n, batch_size, expected):
    assert epochs_for(minibatches, n, batch_size) == expected
    if batch_size == 32:
        assert epochs_for(minibatches, n) == expected


def test_compactness_by_hand():
    loss = compactness(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1.0, 0.0]))
    assert loss == pytest.approx(((0 + 4) / 2 + (4 + 0) / 2) / 2)


def test_feature_variance_by_hand():
    assert feature_variance([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]) == pytest.approx((8 / 3 + 0) / 2)
    assert feature_variance(np.full((7, 3), 0.1, np.float32)) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_effective_rank_known_cases(dtype):
    def with_eigenvalues(values, n=40, d=12, offset=0.0):
        rng = np.random.default_rng(0)
        q, _ = np.linalg.qr(np.concatenate([np.ones((n, 1)), rng.normal(size=(n, n - 1))], axis=1))  # all but the first are centred
        r, _ = np.linalg.qr(rng.normal(size=(d, d)))
        return (q[:, 1 : 1 + len(values)] * np.sqrt(values) @ r[: len(values)] + offset).astype(dtype)

    for k in (1, 3, 12):
        assert effective_rank(with_eigenvalues([2.0] * k)) == pytest.approx(k, rel=1e-3)
        assert effective_rank(with_eigenvalues([2.0] * k, offset=10.0)) == pytest.approx(k, rel=1e-3)  # of the covariance: a shift is nothing
    assert effective_rank(with_eigenvalues([2.0] * 7, n=9, d=30)) == pytest.approx(7, rel=1e-3)  # fewer images than dimensions
    shares = np.array([0.7, 0.2, 0.1])
    assert effective_rank(with_eigenvalues(5 * shares)) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-3)
    for n in (1, 3, 10):
        assert effective_rank(np.full((n, 4), 0.1, dtype)) == 0  # one point


def test_diagnose_by_hand():
    rng = np.random.default_rng(0)
    gallery, features, centre = rng.normal(size=(20, 6)), rng.normal(1.0, size=(15, 6)), rng.normal(size=6)
    labels = np.arange(15) % 3 == 0
    scores = np.array([np.sort(np.square(gallery - f).sum(axis=1))[:3].sum() for f in features])
    found = diagnose(gallery, features, labels, centre=centre, k=3)
    assert found == {
        "loss": pytest.approx(np.mean([np.square(g - centre).sum() / 6 for g in gallery])),
        "roc_auc": pytest.approx(np.mean([a > b for a in scores[labels] for b in scores[~labels]])),
        "feature_variance": pytest.approx(np.square(features - features.mean(axis=0)).sum() / 15 / 6),
        "effective_rank": pytest.approx(effective_rank(features)),
        "normal_distance": pytest.approx(scores[~labels].mean()),
        "anomalous_distance": pytest.approx(scores[labels].mean()),
    }
    unlabelled = diagnose(gallery, features)
    assert unlabelled == {**found, "loss": None, "roc_auc": None, "normal_distance": None, "anomalous_distance": None}
    assert list(unlabelled) == list(found)
    assert diagnose(gallery, features, labels) == diagnose(gallery, features, labels, k=2) != diagnose(gallery, features, labels, k=3)
    for broken, name in ((dict(gallery=gallery * np.nan, features=features), "gallery"), (dict(gallery=gallery, features=features * np.nan), "features")):
        with pytest.raises(ValueError, match=f"^{name} holds"):
            diagnose(**broken)


def test_sample_wise_by_loops():
    rng = np.random.default_rng(0)
    test, held_out = rng.gamma(2, size=(5, 40)), rng.gamma(2, size=(5, 7))
    scores, chosen = sample_wise(test, held_out)
    for image in range(40):
        ratios = [test[t, image] / (sum(held_out[t]) / 7) for t in range(5)]
        assert scores[image] == pytest.approx(max(ratios)) and chosen[image] == ratios.index(max(ratios))
    assert len(set(chosen)) > 2
    np.testing.assert_array_equal(sample_wise([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]])[1], [0])  # the first of equals
    small = test.astype(np.float16), held_out.astype(np.float16)
    np.testing.assert_array_equal(sample_wise(*small)[0], sample_wise(*(part.astype(np.float64) for part in small))[0])  # worked out in float64
    for part in (0, 1):
        mixed = [values.astype(np.float16 if i == part else np.float64) for i, values in enumerate(small)]
        np.testing.assert_array_equal(sample_wise(*mixed)[0], sample_wise(*small)[0])


@pytest.mark.parametrize(
    ("test", "held_out", "message"),
    [
        (np.ones((3, 4)), np.ones((2, 4)), r"scores are \(3, 4\) and \(2, 4\): expected \(T, n\)"),
        (np.ones(3), np.ones((3, 4)), r"scores are \(3,\) and \(3, 4\): expected \(T, n\)"),
        (np.ones((3, 4)), np.ones(3), r"scores are \(3, 4\) and \(3,\): expected \(T, n\)"),
        (np.ones(4), np.ones((1, 4)), r"scores are \(4,\)"),
        (np.ones((1, 4)), np.ones(4), r"and \(4,\)"),
        (np.ones((3, 4)), np.ones((3, 0)), r"and \(3, 0\)"),
        (np.ones((0, 4)), np.ones((0, 4)), r"scores are \(0, 4\)"),
        ([[1.0, np.nan]], [[1.0]], "NaN or infinite"),
        ([[1.0, 2.0]], [[np.inf]], "NaN or infinite"),
        (np.ones((2, 4)), [[1.0, 1.0], [0.0, 0.0]], "held-out images score 0 on average: they are in the gallery"),
    ],
)
def test_sample_wise_refuses(test, held_out, message):
    with pytest.raises(ValueError, match=message):
        sample_wise(test, held_out)


@pytest.mark.parametrize(("n", "share", "m"), [(400, 0.1, 40), (33, 0.1, 3), (4, 0.5, 2), (50, 0.9, 45)])
def test_hold_out_is_disjoint_and_complete(n, share, m):
    train, held_out = hold_out(n, share, seed=1)
    assert len(held_out) == m and np.array_equal(np.union1d(train, held_out), np.arange(n)) and len(train) + m == n
    assert (np.diff(train) > 0).all() and (np.diff(held_out) > 0).all()
    assert np.array_equal(held_out, hold_out(n, share, seed=1)[1])
    assert np.array_equal(hold_out(n, share)[1], hold_out(n, share, seed=0)[1])
    if n > 4:
        assert not np.array_equal(held_out, hold_out(n, share, seed=2)[1])


@pytest.mark.parametrize(("n", "share"), [(10, 0.1), (10, 0.9), (3, 0.5), (10, 0.0), (10, 1.0), (10, -0.5), (0, 0.5)])
def test_hold_out_needs_two_on_either_side(n, share):
    with pytest.raises(ValueError, match=f"{n} images with a held-out share of {share}: expected at least 2"):
        hold_out(n, share)


def test_sample_wise_detector_is_the_definition(backbone, stem):
    queries = images(9, seed=5)
    detector = SampleWise(backbone, epochs=3, share=0.2, k=2, every=2, seed=1, progress=False, **PACE).fit(IMAGES)
    held_out = detector.held_out_
    train = np.setdiff1d(np.arange(33), held_out)
    assert len(held_out) == 7
    expected = adapt(backbone, stem[train], seed=1, every=2, epochs=3, progress=False, **PACE)
    assert equal(detector.checkpoints_, expected) and expected.epochs == [0, 2, 3]
    curves, levels = [], []
    for network in expected:
        gallery = network.features(IMAGES[train])  # without the held-out images
        curves.append(knn_scores(gallery, network.features(queries)))
        levels.append(knn_scores(gallery, network.features(IMAGES[held_out])))
    assert np.min(levels) > 0
    np.testing.assert_allclose(detector.held_out_scores_, levels, rtol=1e-3)
    np.testing.assert_allclose(detector.curves(queries), curves, rtol=1e-3)
    ratios = np.array([curve / level.mean() for curve, level in zip(curves, levels)])
    np.testing.assert_allclose(detector.score(queries), ratios.max(axis=0), rtol=1e-3)


def test_adapted_is_the_definition(backbone, stem):
    queries, seen = images(9, seed=5), []
    detector = Adapted(backbone, k=3, on_checkpoint=lambda done: seen.append(done.epoch), epochs=3, seed=1, progress=False, **PACE).fit(IMAGES)
    network = adapt(backbone, stem, epochs=3, seed=1, progress=False, **PACE)[-1]
    np.testing.assert_allclose(detector.score(queries), knn_scores(network.features(IMAGES), network.features(queries), k=3), rtol=1e-3)
    assert seen == [0, 3] == detector.checkpoints_.epochs
    assert not np.allclose(detector.score(queries), DN2(backbone, k=3).fit(IMAGES).score(queries), rtol=0.02)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("make", [Adapted, SampleWise])
def test_scoring_in_parts_changes_nothing(backbone, make, cached, monkeypatch, tmp_path):
    queries = images(9, seed=5)
    detector = make(backbone, epochs=2, progress=False, cache=FeatureCache(tmp_path) if cached else None, **PACE).fit(IMAGES)
    whole = detector.score(queries)
    sizes = []
    monkeypatch.setattr(detectors, "CHUNK", 4)
    head_features = backbones.Backbone.head_features
    monkeypatch.setattr(backbones.Backbone, "head_features", lambda self, part, **options: sizes.append(len(part)) or head_features(self, part, **options))
    np.testing.assert_allclose(detector.score(queries), whole, rtol=1e-4)
    assert set(sizes) == {4, 1}


def test_bf16_keeps_the_order(backbone):
    queries = images(40, seed=7)
    options = dict(epochs=2, progress=False, **PACE)
    exact, fast = (Adapted(backbone, bf16=bf16, **options).fit(IMAGES) for bf16 in (False, True))
    one, other = exact.score(queries), fast.score(queries)
    ranks = [np.argsort(np.argsort(scores)) for scores in (one, other)]
    assert np.corrcoef(*ranks)[0, 1] > 0.97 and not np.array_equal(one, other)
    assert all(parameter.dtype == torch.float32 for parameter in parameters(fast.backbone_))
    np.testing.assert_allclose(fast.checkpoints_.losses, exact.checkpoints_.losses, rtol=0.02)
    assert fast.checkpoints_.losses != exact.checkpoints_.losses
    unrounded = knn_scores(fast.backbone_.features(IMAGES), fast.backbone_.features(queries))
    # The features that are scored are in bfloat16 as well.
    assert 1e-4 < np.median(np.abs(other / unrounded - 1)) < 0.1


def test_stem_and_head_of_a_checkpoint_are_one_network(backbone, stem):
    network = adapt(backbone, stem, **SETTINGS)[-1]
    with torch.inference_mode():
        np.testing.assert_allclose(network(normalise(IMAGES))["pooled"].numpy(), network.head_features(stem), atol=1e-5)


def test_the_bar_is_for_people(monkeypatch):
    import sys

    class Terminal:
        def __init__(self, watched):
            self.watched, self.text = watched, ""

        def isatty(self):
            return self.watched

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    def text(quiet, watched=True, **options):
        monkeypatch.setenv("PANDALIB_QUIET", "1") if quiet else monkeypatch.delenv("PANDALIB_QUIET", raising=False)
        terminal = Terminal(watched)
        monkeypatch.setattr(sys, "stderr", terminal)
        assert list(progress(range(3), "adapting", **options)) == [0, 1, 2]
        return terminal.text

    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert "adapting" in text(quiet=False) and "3/3" not in text(quiet=False).rsplit("\r", 1)[-1]  # and it vanishes
    assert text(quiet=True) == "" == text(quiet=False, shown=False) == text(quiet=False, watched=False)
    assert progress(range(3), "adapting", total=5).total == 5
