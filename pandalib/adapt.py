"""Compactness adaptation: pull the features of normal images together, and know when to stop.

Reiss et al. 2021 (PANDA), section 3. With c the mean feature of the training images *before* adaptation, never updated,
and d the dimension of a feature, the head is trained on

    loss = mean over the batch of ||f(x) - c||^2 / d

by stochastic gradient descent, the norm of each gradient clipped. BatchNorm stays in evaluation mode. The centre is for
training only: scores are kNN distances between re-extracted features. The trivial optimum is f(x) = c for every x, and
enough steps lead there: that is collapse.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from pandalib.backbones import Backbone
from pandalib.features import as_features
from pandalib.knn import KNN
from pandalib.metrics import roc_auc
from pandalib.progress import progress as bar
from pandalib.sealed import read_tensors, write_tensors

RESUME = "resume.safetensors"  # beside the checkpoints: the newest parameters with their momentum
TRIAL = 0.5  # seconds that a trial of bfloat16 takes
LONG_STEP = 0.25  # seconds: a step as long as that is not repeated
PAYS = 1.2  # times as fast as float32: for less, bfloat16 is not worth its coarser numbers


def compactness(features: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of ||f(x) - c||^2 / d, for features (B, d) and a centre (d,) -> scalar."""
    return (features - centre).square().mean()


class Checkpoint(NamedTuple):
    """What a callback is given: the network after `epoch` epochs, and the mean training loss of the last of them.

    `bf16` says whether it is trained in bfloat16.
    """

    epoch: int
    loss: float  # nan before training
    backbone: Backbone
    bf16: bool = False


class Checkpoints(Sequence):
    """The adapted heads of one training run, oldest first; number 0 is the pretrained network.

    `checkpoints[i]` is a backbone with the head of that moment; its stem is shared with the pretrained one.

    Attributes
    ----------
    epochs : list of int, the epoch of each checkpoint.
    losses : list of float, the mean training loss of every epoch (also of those without a checkpoint).
    centre : tensor (d,), float32.
    bf16, bf16_ratio : whether the run computed in bfloat16; how many times as fast as float32 that
        was in the trial, None where there was none.
    """

    def __init__(self, backbone: Backbone, centre: torch.Tensor, folder: Path | None = None):
        self.backbone, self.centre, self.folder = backbone, centre, folder
        self.bf16: bool = False
        self.bf16_ratio: float | None = None
        self.epochs: list[int] = []
        self.losses: list[float] = []
        self._states: list[dict[str, torch.Tensor] | Path] = []

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[i] for i in range(len(self))[number]]
        state = self._states[number]
        if isinstance(state, Path):
            state = self._from_disk(state, self.epochs[number])
        head = copy.deepcopy(self.backbone.head)
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                parameter.copy_(state[name])
        return self.backbone.with_head(head)

    def _from_disk(self, path: Path, epoch: int) -> dict[str, torch.Tensor]:
        state, facts = _read(path)
        shapes = {name: parameter.shape for name, parameter in self.backbone.head.named_parameters()}
        fits = {name: tensor.shape for name, tensor in state.items()} == shapes
        if not fits or facts.get("epoch") != epoch or facts.get("weights_sha256") != self.backbone.weights_sha256:
            raise ValueError(f"checkpoint {path} is one of another epoch or network: empty its folder and adapt again.")
        return state

    def keep(self, epoch: int, head: torch.nn.Module, metadata: dict) -> None:
        state = {name: parameter.detach().clone() for name, parameter in head.named_parameters()}
        if self.folder is not None:
            path = self.folder / f"epoch-{epoch:04d}.safetensors"
            write_tensors(path, state, {**metadata, "epoch": epoch})
            state = path
        self.epochs.append(epoch)
        self._states.append(state)


def adapt(
    backbone: Backbone,
    stem_features: torch.Tensor,
    *,
    epochs: int,
    lr: float,
    clip: float | None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 32,
    penalty=None,
    seed: int = 0,
    every: int = 1,
    folder: Path | str | None = None,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
    bf16: bool | str = False,
    progress: bool = True,
) -> Checkpoints:
    """Train a copy of the backbone's head on the compactness loss.

    Parameters
    ----------
    backbone : stays as it is; its head is copied.
    stem_features : (N, C, h, w), `backbone.stem_features(normal_images)`.
    epochs : passes over the N images, each in a new order.
    lr, momentum, weight_decay, batch_size : of SGD. The last batch of an epoch may be smaller.
    clip : norm to which each gradient, penalty included, is cut; None leaves it. With a small clip the pace is
        lr x clip x steps. Weight decay comes after the clip, and can exceed the clipped gradient.
    penalty : something with `add_gradient(head)`, called between the backward pass and the clip (`pandalib.ewc.EWC`).
    seed : order of the batches.
    every : epochs between checkpoints; the pretrained network and the last epoch are always kept.
    folder : keep the checkpoints there as safetensors, not in memory; a run that was killed goes on where it was.
    on_checkpoint : called at every checkpoint, the pretrained one included; when a run goes on, not for those before.
    bf16 : compute in bfloat16 where that is safe (autocast); the numbers are coarser. On a
        processor without instructions for it, it is many times slower than float32. "auto" takes
        it where a trial of about half a second says that it is faster (`bfloat16_pays`); a run that
        is resumed keeps the format that it began with.

    Raises
    ------
    ValueError for settings that cannot be, and for a folder with checkpoints of another run; FloatingPointError
    when the loss is no longer finite.
    """
    if len(stem_features) == 0:
        raise ValueError("there are no images to adapt to: expected stem features (N, C, h, w) with N of at least 1.")
    check_counts(epochs=epochs, batch_size=batch_size, every=every)
    check_rates(lr=lr, clip=clip)
    check_bf16(bf16)
    head = trainable_head(backbone)
    parameters = list(head.parameters())
    if not parameters:
        raise ValueError(f"{backbone.name} up to {backbone.last} has no stage {backbone.adapt_from!r} to adapt: choose adapt_from among its stages.")
    optimiser = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    centre = torch.from_numpy(backbone.head_features(stem_features).mean(axis=0, dtype=np.float64)).to(backbone.device, torch.float32)
    checkpoints = Checkpoints(backbone, centre, Path(folder) if folder is not None else None)
    if bf16 == "auto" and folder is not None:
        bf16 = _begun_with(checkpoints.folder)
    bf16, ratio = decide_bf16(bf16, head, backbone, stem_features, batch_size=batch_size)
    checkpoints.bf16, checkpoints.bf16_ratio = bf16, ratio
    # What makes two runs the same run. Not the number of epochs: a run may be continued for longer.
    identity = dict(
        weights_sha256=backbone.weights_sha256, centre=hashlib.sha256(centre.cpu().numpy().tobytes()).hexdigest(), n=len(stem_features),
        lr=lr, clip=clip, momentum=momentum, weight_decay=weight_decay, batch_size=batch_size, seed=seed, bf16=bf16,
        penalty=None if penalty is None else penalty.identity(),
    )  # fmt: skip

    def checkpoint(epoch: int, loss: float) -> None:
        checkpoints.keep(epoch, head, identity)
        if on_checkpoint is not None:
            on_checkpoint(Checkpoint(epoch, loss, checkpoints[-1], bf16))

    first = _resume(checkpoints, head, optimiser, identity, epochs, every) if folder is not None else 0
    if first == 0:
        checkpoint(0, math.nan)
    for epoch in bar(range(first + 1, epochs + 1), "adapting", shown=progress):
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(stem_features)))
        total = 0.0
        for rows in order.split(batch_size):
            with torch.autocast(backbone.device.type, torch.bfloat16, enabled=bf16):
                feature_map = head(backbone.for_head(stem_features[rows]))
            loss = compactness(feature_map.float().mean(dim=(2, 3)), centre)
            optimiser.zero_grad()
            loss.backward()
            if penalty is not None:
                penalty.add_gradient(head)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimiser.step()
            total += loss.item() * len(rows)
        check_loss(total, epoch, lr=lr, clip=clip)
        checkpoints.losses.append(total / len(order))
        if epoch % every == 0 or epoch == epochs:
            checkpoint(epoch, checkpoints.losses[-1])
            if folder is not None:
                _save_resume(checkpoints, head, optimiser, identity)
    return checkpoints


def trainable_head(backbone: Backbone) -> torch.nn.Module:
    """A copy of the backbone's head, to be trained; BatchNorm stays in evaluation mode."""
    return copy.deepcopy(backbone.head).requires_grad_(True)


def check_bf16(bf16: bool | str) -> None:
    """Raise ValueError unless it is True, False or "auto"."""
    if bf16 not in (True, False, "auto"):
        raise ValueError(f'bf16={bf16!r}: expected True, False or "auto".')


def decide_bf16(
    bf16: bool | str,
    head: torch.nn.Module,
    backbone: Backbone,
    *stems: torch.Tensor,
    batch_size: int,
) -> tuple[bool, float | None]:
    """Whether to train in bfloat16, and the ratio of the trial; None where there was no trial.

    A batch of the training has `batch_size` images of each of the stems' activations (N, C, h, w).
    """
    if bf16 != "auto":
        return bool(bf16), None
    batch = torch.cat([stem[:batch_size] for stem in stems])
    return bfloat16_pays(head, backbone.for_head(batch), device=backbone.device)


def bfloat16_pays(
    head: torch.nn.Module, example: torch.Tensor, *, device: torch.device
) -> tuple[bool, float]:
    """Try for about half a second whether training is faster in bfloat16 here.

    Training steps in the two formats alternate, and the fastest of each counts; where a step takes
    long, there is one of each. Parameters and their gradients stay as they are.

    Parameters
    ----------
    head : the layers to be trained.
    example : (B, C, h, w), a batch of their input, on `device`.

    Returns
    -------
    Whether bfloat16 pays, that is, the second value is at least 1.2; the seconds in float32 divided
    by those in bfloat16.
    """
    # What is set up once, as the threads or the kernels of a GPU, is not to count.
    first = example if device.type == "cuda" else example[:1]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for bf16 in seconds:
        _step_seconds(head, first, bf16, device)
    while True:
        for bf16, taken in seconds.items():
            taken.append(_step_seconds(head, example, bf16, device))
        everything = seconds[True] + seconds[False]
        if max(everything) > LONG_STEP or sum(everything) > TRIAL:
            ratio = min(seconds[False]) / min(seconds[True])
            return ratio >= PAYS, ratio


def _step_seconds(head, example: torch.Tensor, bf16: bool, device: torch.device) -> float:
    """Seconds of one forward and one backward pass."""
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        output = head(example)
    torch.autograd.grad(output.float().square().mean(), list(head.parameters()))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def check_counts(**values) -> None:
    """Raise ValueError unless each is a whole number of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number of at least 1.")


def check_rates(**values) -> None:
    """Raise ValueError unless each is a number above 0, or None."""
    for name, value in values.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value!r}: expected a number above 0.")


def check_loss(total: float, epoch: int, *, lr: float, clip: float | None) -> None:
    """Raise FloatingPointError when a loss is no longer finite."""
    if not math.isfinite(total):
        raise FloatingPointError(f"the loss of epoch {epoch} is {total}: lower lr (now {lr}), or clip the gradient (now {clip}).")


def epochs_for(minibatches: int, n_images: int, batch_size: int = 32) -> int:
    """The number of epochs that comes closest to a constant amount of work, at least 1 (PANDA-Early stops by minibatches)."""
    return max(1, round(minibatches / math.ceil(n_images / batch_size)))


def feature_variance(features: ArrayLike) -> float:
    """Mean over the d dimensions of the variance over the n images, features (n, d). Zero when f(x) is constant."""
    return float(as_features(features).var(axis=0, dtype=np.float64).mean())


def effective_rank(features: ArrayLike) -> float:
    """exp of the entropy of the normalised covariance eigenvalues: the number of directions in use (Roy and Vetterli 2007).

    Features (n, d) -> 1 to min(n - 1, d); 0 when they are constant.
    """
    features = as_features(features)
    centred = features - features[:1].astype(np.float64)  # equal rows become exact zeros, which a rounded mean would miss
    centred -= centred.mean(axis=0)
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    eigenvalues = np.clip(np.linalg.eigvalsh(gram), 0, None)
    if eigenvalues.sum() == 0:
        return 0.0
    share = eigenvalues / eigenvalues.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def diagnose(gallery: ArrayLike, features: ArrayLike, labels: ArrayLike | None = None, *, centre: ArrayLike | None = None, k: int = 2) -> dict:
    """How a network sees its images: has it collapsed, and does it still tell normal from anomalous?

    Parameters
    ----------
    gallery : (N, d), features of the normal training images.
    features : (n, d), features of other images.
    labels : (n,), 0 normal, 1 anomalous; for teaching only, since nothing may be chosen by them.
    centre : (d,), to work out the compactness loss of the gallery.

    Returns
    -------
    dict with `loss` (of the gallery), `roc_auc`, `feature_variance`, `effective_rank` (of `features`),
    `normal_distance`, `anomalous_distance` (mean kNN scores); None for what cannot be known without labels or centre.
    """
    gallery, features = as_features(gallery, "gallery"), as_features(features)
    scores = KNN(k).fit(gallery).score(features)
    found = dict(loss=None, roc_auc=None)
    if centre is not None:
        found["loss"] = float(compactness(torch.from_numpy(gallery), torch.as_tensor(centre).cpu()))
    found |= dict(feature_variance=feature_variance(features), effective_rank=effective_rank(features), normal_distance=None, anomalous_distance=None)
    if labels is not None:
        labels = np.asarray(labels).astype(bool)
        found |= dict(roc_auc=roc_auc(labels, scores), normal_distance=float(scores[~labels].mean()), anomalous_distance=float(scores[labels].mean()))
    return found


def sample_wise(test_scores: ArrayLike, held_out_scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Sample-wise early stopping: every image picks its own checkpoint, without a label (PANDA-SES, section 3).

    Parameters
    ----------
    test_scores : (T, n), kNN scores of the test images at each of T checkpoints.
    held_out_scores : (T, m), scores of normal images that are neither trained on nor in the gallery.

    Returns
    -------
    scores : (n,), max over t of test_scores[t] / mean(held_out_scores[t]).
    chosen : (n,), the t of that maximum, the first of equals.

    Raises
    ------
    ValueError when the shapes disagree, a score is not finite, or the held-out images score 0: then they are in the gallery.
    """
    test, held_out = np.asarray(test_scores, dtype=np.float64), np.asarray(held_out_scores, dtype=np.float64)
    if test.ndim != 2 or held_out.ndim != 2 or len(test) != len(held_out) or 0 in held_out.shape or len(test) == 0:
        raise ValueError(f"scores are {test.shape} and {held_out.shape}: expected (T, n) of test and (T, m) of held-out images, one row for each checkpoint.")
    if not (np.isfinite(test).all() and np.isfinite(held_out).all()):
        raise ValueError("scores hold NaN or infinite values: expected finite scores at every checkpoint.")
    level = held_out.mean(axis=1, keepdims=True)
    if (level <= 0).any():
        raise ValueError("the held-out images score 0 on average: they are in the gallery, or the features have collapsed to one point.")
    ratio = test / level
    return ratio.max(axis=0), ratio.argmax(axis=0)


def hold_out(n: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split the numbers 0 .. n-1 at random: those to train on and those to hold out, both sorted.

    Raises ValueError when either part would have fewer than 2 images.
    """
    n_held_out = round(n * share)
    if not (n_held_out >= 2 and n - n_held_out >= 2):
        raise ValueError(f"{n} images with a held-out share of {share}: expected at least 2 images in either part.")
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    try:
        return read_tensors(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"checkpoint {path} is missing: empty its folder and adapt again.") from None
    except ValueError:
        raise ValueError(f"checkpoint {path} is damaged or no checkpoint: empty its folder and adapt again.") from None


def _begun_with(folder: Path) -> bool | str:
    """`bf16` of the run that is in the folder; "auto" where there is none."""
    path = folder / RESUME
    if not path.exists():
        return "auto"
    return _read(path)[1].get("identity", {}).get("bf16", "auto")


def _save_resume(checkpoints: Checkpoints, head, optimiser, identity: dict) -> None:
    """Parameters and momentum in one file, replaced as one: whoever is killed finds the last whole epoch."""
    tensors = {}
    for name, parameter in head.named_parameters():
        tensors[f"parameter.{name}"] = parameter
        tensors[f"momentum.{name}"] = optimiser.state[parameter].get("momentum_buffer", torch.zeros_like(parameter))
    state = dict(identity=identity, epoch=checkpoints.epochs[-1], epochs=checkpoints.epochs, losses=checkpoints.losses)
    write_tensors(checkpoints.folder / RESUME, tensors, state)


def _resume(checkpoints: Checkpoints, head, optimiser, identity: dict, epochs: int, every: int) -> int:
    """Go on from the newest state in the folder; returns the number of epochs already done."""
    path = checkpoints.folder / RESUME
    if not path.exists():
        return 0
    tensors, state = _read(path)
    names = {f"{kind}.{name}" for kind in ("parameter", "momentum") for name, _ in head.named_parameters()}
    if tensors.keys() != names or not {"identity", "epoch", "epochs", "losses"} <= state.keys():
        raise ValueError(f"checkpoint {path} is damaged or no checkpoint: empty its folder and adapt again.")
    theirs, ours = state["identity"], json.loads(json.dumps(identity))
    different = [key for key in ours if theirs.get(key) != ours[key]]
    if different:
        key = different[0]
        raise ValueError(f"{checkpoints.folder} holds checkpoints of another run ({key} was {theirs.get(key)!r}, now {ours[key]!r}): choose an empty folder.")
    if state["epoch"] > epochs:
        raise ValueError(f"{checkpoints.folder} holds a run of {state['epoch']} epochs, more than epochs={epochs}: choose an empty folder, or read its checkpoints.")
    # As if it had run through: the last epoch of a shorter run is a checkpoint of this one only where `every` says so.
    wanted = [epoch for epoch in range(state["epoch"] + 1) if epoch % every == 0 or epoch == epochs]
    lacking = sorted(set(wanted) - set(state["epochs"]))
    if lacking:
        raise ValueError(f"{checkpoints.folder} kept no checkpoint of epoch {lacking[0]}, which every={every} asks for: choose an empty folder.")
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.copy_(tensors[f"parameter.{name}"])
            # In the parameter's own order in memory: the fused step walks through both side by side.
            optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
    checkpoints.epochs = wanted
    checkpoints.losses = list(state["losses"])
    checkpoints._states = [checkpoints.folder / f"epoch-{epoch:04d}.safetensors" for epoch in checkpoints.epochs]
    return state["epoch"]
