"""The loop: order, means, callbacks; checkpoints that survive a crash; the trial of bfloat16."""

import math

import numpy as np
import pytest
import torch
from small import images, small_backbone

from pandalib import EWC
from pandalib.io import read_tensors, write_tensors
from pandalib.methods import training
from pandalib.methods.panda import fit_compactness
from pandalib.methods.training import TrainableCopy, Training, bfloat16_pays

IMAGES = images(33)
SETTINGS = dict(
    epochs=3, lr=0.5, max_grad_norm=0.005, batch_size=16, weight_decay=1e-3, progress=False
)


@pytest.fixture(scope="module")
def frozen(backbone):
    return backbone.frozen_features(IMAGES)


def loop(**options) -> Training:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.25)
    options = dict(n_images=7, epochs=3, batch_size=3, progress=False) | options
    return Training(optimiser, **options)


def batches(**options) -> list[list[int]]:
    run = loop(**options)
    found = []
    for rows in run:
        found.append(rows.tolist())
        run.record(torch.tensor(1.0))
    return found


def parameters(network) -> list[torch.Tensor]:
    return list(network.trainable.parameters())


def equal(one, other) -> bool:
    """The same checkpoints and losses, bit for bit."""
    pairs = zip(one, other, strict=True)
    return (one.epochs, one.losses) == (other.epochs, other.losses) and all(
        torch.equal(a, b) for x, y in pairs for a, b in zip(parameters(x), parameters(y))
    )


def test_each_epoch_visits_every_image_once_in_an_order_of_its_own():
    found = batches(seed=4)
    assert [len(rows) for rows in found] == [3, 3, 1] * 3
    for epoch in (1, 2, 3):
        order = sum(found[3 * epoch - 3 : 3 * epoch], [])
        assert order == np.random.default_rng((4, epoch)).permutation(7).tolist()
    assert found == batches(seed=4) != batches(seed=5)
    assert batches() == batches(seed=0)


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(7, 3, [3, 2, 2]), (21, 20, [11, 10]), (6, 3, [3, 3]), (2, 9, [2])]
)
def test_even_batches_end_with_no_batch_of_one(n, size, sizes):
    found = batches(n_images=n, batch_size=size, even_batches=True, epochs=1)
    assert [len(rows) for rows in found] == sizes
    assert sum(found, []) == sum(batches(n_images=n, batch_size=size, epochs=1), [])


def test_losses_are_means_over_images_and_callbacks_see_them():
    seen = []
    run = loop(callbacks=[lambda run: seen.append((run.epoch, list(run.losses)))])
    for rows in run:
        run.record(rows.double().square().mean())
    mean = pytest.approx(91 / 7)  # 0 + 1 + 4 + ... + 36
    assert seen == [(0, []), (1, [mean]), (2, [mean] * 2), (3, [mean] * 3)]


def test_a_loss_that_is_not_finite_stops_the_run():
    run = loop()
    with pytest.raises(FloatingPointError, match=r"epoch 2 is nan: lower lr \(now 0.25\)"):
        for number, _ in enumerate(run):
            run.record(torch.tensor(math.nan if number == 4 else 1.0))
    assert run.epoch == 1 and run.losses == [1.0]


def test_the_copy_learns_and_the_backbone_stays(backbone, frozen):
    network = TrainableCopy(backbone, False, frozen)
    features = network.features(frozen)
    np.testing.assert_allclose(features.detach(), backbone.features(IMAGES), atol=1e-5)
    features.sum().backward()
    assert all(p.grad is not None and p.requires_grad for p in network.trainable.parameters())
    assert all(p.grad is None and not p.requires_grad for p in parameters(backbone))
    assert not any(module.training for module in network.trainable.modules())
    assert (network.bf16, network.bf16_ratio) == (False, None)


def test_bfloat16_is_coarser_and_keeps_parameters_in_float32(backbone, frozen):
    exact, coarse = (TrainableCopy(backbone, bf16, frozen).features(frozen) for bf16 in (0, 1))
    assert exact.dtype == coarse.dtype == torch.float32
    difference = (exact - coarse).abs().max() / exact.abs().max()
    assert 1e-5 < difference < 0.05
    assert all(p.dtype == torch.float32 for p in parameters(backbone))
    with pytest.raises(ValueError, match="bf16='yes': expected True, False or"):
        TrainableCopy(backbone, "yes", frozen)


@pytest.mark.parametrize(
    ("slowest", "ratio"), [((0.06, 0.04), 1.5), ((0.04, 0.04), 1), ((0.04, 0.16), 0.25)]
)
def test_the_trial_takes_the_fastest_of_each_in_turn(backbone, frozen, monkeypatch, slowest, ratio):
    asked = []

    def step_seconds(network, batch, bf16):
        asked.append((len(batch), bf16))
        return slowest[bf16] * (1 if len(asked) in (5, 6) else 1.5)

    monkeypatch.setattr(training, "_step_seconds", step_seconds)
    network = TrainableCopy(backbone, "auto", frozen[:16])
    assert network.bf16_ratio == pytest.approx(ratio) and network.bf16 == (ratio >= 1.2)
    assert asked[:2] == [(1, False), (1, True)]  # does not count
    assert asked[2:] == [(16, False), (16, True)] * (len(asked) // 2 - 1) and len(asked) > 5


def test_a_real_trial_changes_nothing(backbone, frozen, monkeypatch):
    monkeypatch.setattr(training, "TRIAL_SECONDS", 0.02)
    network = TrainableCopy(backbone, False, frozen)
    pays, ratio = bfloat16_pays(network, frozen[:4])
    assert ratio > 0 and pays == (ratio >= 1.2)
    for ours, theirs in zip(network.trainable.parameters(), parameters(backbone)):
        assert ours.grad is None and torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("every", "epochs"),
    [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4, 5]), (5, [0, 5]), (9, [0, 5]), (None, [0, 5])],
)
def test_which_epochs_are_kept(backbone, frozen, every, epochs):
    seen = []
    settings = {**SETTINGS, "epochs": 5, "checkpoint_every": every}
    checkpoints = fit_compactness(backbone, frozen, on_checkpoint=seen.append, **settings)
    assert checkpoints.epochs == epochs == [done.epoch for done in seen]
    assert len(checkpoints) == len(epochs) and len(checkpoints.losses) == 5
    assert math.isnan(seen[0].loss)
    assert [done.loss for done in seen[1:]] == [checkpoints.losses[i - 1] for i in epochs[1:]]
    for done, network in zip(seen, checkpoints):
        assert all(map(torch.equal, parameters(done.backbone), parameters(network)))
    assert all(map(torch.equal, parameters(checkpoints[0]), parameters(backbone)))
    assert equal(checkpoints, fit_compactness(backbone, frozen, **settings))  # looking is free


class Killed(Exception):
    pass


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kill_at", [0, 2, 5])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    backbone, frozen, tmp_path, every, kill_at
):
    penalty = EWC(backbone, 2.0, None)
    settings = {**SETTINGS, "epochs": 5, "checkpoint_every": every, "penalty": penalty}
    whole = fit_compactness(backbone, frozen, **settings)

    def kill(checkpoint):
        if checkpoint.epoch == kill_at:
            raise Killed

    settings["folder"] = tmp_path
    with pytest.raises(Killed):
        fit_compactness(backbone, frozen, on_checkpoint=kill, **settings)
    seen = []
    resumed = fit_compactness(
        backbone, frozen, on_checkpoint=lambda done: seen.append(done.epoch), **settings
    )
    assert equal(resumed, whole)
    done = max([epoch for epoch in whole.epochs if 0 < epoch < kill_at], default=-1)
    assert seen == [epoch for epoch in whole.epochs if epoch > done]
    assert equal(fit_compactness(backbone, frozen, on_checkpoint=kill, **settings), whole)


@pytest.mark.parametrize(("every", "momentum"), [(1, 0.9), (None, 0.9), (2, 0.0)])
def test_a_run_goes_on_for_longer(backbone, frozen, tmp_path, every, momentum):
    settings = {**SETTINGS, "checkpoint_every": every, "momentum": momentum}
    fit_compactness(backbone, frozen, folder=tmp_path, **settings)
    settings["epochs"] = 5
    longer = fit_compactness(backbone, frozen, folder=tmp_path, **settings)
    assert equal(longer, fit_compactness(backbone, frozen, **settings))
    settings["epochs"] = 4
    with pytest.raises(ValueError, match=rf"epochs=4: {tmp_path} holds a run of 5 epochs"):
        fit_compactness(backbone, frozen, folder=tmp_path, **settings)


def test_a_run_that_goes_on_keeps_its_precision(backbone, frozen, tmp_path, monkeypatch):
    settings = {**SETTINGS, "folder": tmp_path, "bf16": "auto"}
    monkeypatch.setattr(training, "bfloat16_pays", lambda network, batch: (True, 2.0))
    fit_compactness(backbone, frozen, **settings)
    monkeypatch.setattr(training, "bfloat16_pays", lambda network, batch: (False, 0.5))
    longer = fit_compactness(backbone, frozen, **{**settings, "epochs": 5})
    assert longer.bf16 and equal(
        longer, fit_compactness(backbone, frozen, **{**SETTINGS, "bf16": True, "epochs": 5})
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(max_grad_norm=None), "max_grad_norm was 0.005, now None"),
        (dict(lr=0.4), "lr was 0.5, now 0.4"),
        (dict(momentum=0.8), "momentum was 0.9, now 0.8"),
        (dict(weight_decay=0.01), "weight_decay was 0.001, now 0.01"),
        (dict(bf16="auto"), "bf16 was False, now 'auto'"),
        (dict(batch_size=8), "batch_size was 16, now 8"),
        (dict(seed=1), "seed was 0, now 1"),
        (dict(checkpoint_every=2), "checkpoint_every was 1, now 2"),
        (dict(penalty="L2"), "penalty was None, now {'ewc_lambda': 2.0, 'fisher': None}"),
        (dict(penalty=lambda trainable: 0.0), "penalty was None, now 'function'"),
        (dict(images=IMAGES[:, ::-1]), "centre was "),
        (dict(backbone=1), "weights_sha256 was "),
    ],
)
def test_the_folder_of_another_run_is_refused(backbone, frozen, tmp_path, changes, words):
    fit_compactness(backbone, frozen, folder=tmp_path, **SETTINGS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    settings = {**SETTINGS, **changes}
    other = small_backbone(settings.pop("backbone", 0))
    pictures = other.frozen_features(settings.pop("images", IMAGES))
    if settings.get("penalty") == "L2":
        settings["penalty"] = EWC(other, 2.0, None)
    with pytest.raises(ValueError, match=rf"{tmp_path} holds checkpoints of another run \({words}"):
        fit_compactness(other, pictures, folder=tmp_path, **settings)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_checkpoints_on_disk_and_how_they_break(backbone, frozen, tmp_path):
    memory = fit_compactness(backbone, frozen, **SETTINGS)
    disk = fit_compactness(backbone, frozen, folder=tmp_path / "deep" / "er", **SETTINGS)
    assert equal(memory, disk) and torch.equal(memory.centre, disk.centre)
    assert all(map(torch.equal, parameters(disk[-1]), parameters(memory[1:][-1])))
    path, newest = disk.folder / "epoch-0002.safetensors", disk.folder / "epoch-0003.safetensors"
    tensors, facts = read_tensors(path)
    for wrong in (facts | {"epoch": 1}, facts | {"run": facts["run"] | {"lr": 0.1}}, {"epoch": 2}):
        write_tensors(path, tensors, wrong)
        with pytest.raises(ValueError, match=f"{path} is of another epoch or run"):
            disk[2]
    path.unlink()
    with pytest.raises(FileNotFoundError, match="epoch-0002"):
        disk[2]
    for damaged in (newest, disk.folder / "resume.safetensors"):
        damaged.write_bytes(damaged.read_bytes()[:-100])
        with pytest.raises(ValueError, match=f"{damaged} is not a checkpoint"):
            fit_compactness(backbone, frozen, folder=disk.folder, **{**SETTINGS, "epochs": 4})
