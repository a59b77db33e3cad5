"""What all methods that train have in common: loop, checkpoints, choice of precision.

    training = Training(optimiser, n_images=n, epochs=20, batch_size=32, seed=0)
    for rows in training:  # each epoch visits every image once, in a new order
        loss = ...
        training.record(loss)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

Loss, gradient and step stay visible in the file of each method; this file has the rest.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from pandalib.backbones import Backbone
from pandalib.io import read_tensors, write_tensors
from pandalib.progress import progress as bar

RESUME = "resume.safetensors"  # beside the checkpoints: the momentum of the newest of them
TRIAL_SECONDS = 0.5
PAYS = 1.2  # below this speed-up, bfloat16 is not worth its coarser numbers


@dataclass(eq=False)
class Training:
    """An iterator over the batches of all epochs, each given as row numbers.

    Parameters
    ----------
    optimiser : torch.optim.Optimizer
    n_images, epochs, batch_size : int
        The last batch of an epoch may be smaller.
    seed : int
        Of the order of the images, which differs from epoch to epoch.
    even_batches : bool
        All batches have the same size, give or take one, and none is larger than `batch_size`:
        BatchNorm cannot be trained on a last batch of one image.
    callbacks : sequence of callables
        Each is called with this object before the first epoch and after every one.
    description : str
        Of the progress bar.
    progress : bool

    Attributes
    ----------
    epoch : int
        Number of epochs done.
    losses : list of float
        Mean recorded loss of each epoch.
    """

    optimiser: torch.optim.Optimizer
    _: KW_ONLY
    n_images: int
    epochs: int
    batch_size: int
    seed: int = 0
    even_batches: bool = False
    callbacks: Sequence[Callable[[Training], None]] = ()
    description: str = "training"
    progress: bool = True
    epoch: int = field(default=0, init=False)
    losses: list[float] = field(default_factory=list, init=False)

    def __iter__(self) -> Iterator[torch.Tensor]:
        self._call_back()  # a callback may set `epoch` and `losses` to those of an interrupted run
        epochs = range(self.epoch + 1, self.epochs + 1)
        for epoch in bar(epochs, self.description, shown=self.progress):
            self._total = 0.0
            for rows in self._batches(epoch):
                self._n_rows = len(rows)
                yield rows
            if not math.isfinite(self._total):
                lr = self.optimiser.param_groups[0]["lr"]
                raise FloatingPointError(
                    f"the loss of epoch {epoch} is {self._total}: lower lr (now {lr}), or "
                    "max_grad_norm, which clips the gradient."
                )
            self.epoch = epoch
            self.losses.append(self._total / self.n_images)
            self._call_back()

    def record(self, loss: torch.Tensor) -> None:
        """Add the mean loss of the current batch to that of the epoch."""
        self._total += loss.item() * self._n_rows

    def _batches(self, epoch: int) -> Sequence[torch.Tensor]:
        order = np.random.default_rng((self.seed, epoch)).permutation(self.n_images)
        order = torch.from_numpy(order)
        if self.even_batches:
            return order.tensor_split(math.ceil(self.n_images / self.batch_size))
        return order.split(self.batch_size)

    def _call_back(self) -> None:
        for callback in self.callbacks:
            callback(self)


class TrainableCopy:
    """A copy of a backbone's trainable part, and the features that it computes.

    Parameters
    ----------
    backbone : Backbone
        Stays as it is.
    bf16 : True, False or "auto"
        Compute convolutions in bfloat16; "auto" decides by `bfloat16_pays`.
    batch : tensor, shape (B, C, h, w)
        The frozen features of one training batch, on which "auto" tries both.

    Attributes
    ----------
    trainable : module
        The copy. Its BatchNorm stays in evaluation mode.
    bf16 : bool
    bf16_ratio : float or None
        Speed-up over float32 in the trial; None without one.
    """

    def __init__(self, backbone: Backbone, bf16: bool | str, batch: torch.Tensor):
        if bf16 not in (True, False, "auto"):
            raise ValueError(f'bf16={bf16!r}: expected True, False or "auto".')
        if not list(backbone.trainable.parameters()):
            raise ValueError(
                f"{backbone.name} up to {backbone.truncate_after} has no stage "
                f"{backbone.adapt_from!r} to adapt: choose adapt_from among its stages."
            )
        self.backbone = backbone
        self.trainable = copy.deepcopy(backbone.trainable).requires_grad_(True)
        self.bf16, self.bf16_ratio = bool(bf16), None
        if bf16 == "auto":
            self.bf16, self.bf16_ratio = bfloat16_pays(self, batch)

    def features(self, frozen_features: torch.Tensor) -> torch.Tensor:
        """From frozen features (B, C, h, w) to pooled features, float32 (B, d), with gradients."""
        with torch.autocast(self.backbone.device.type, torch.bfloat16, enabled=self.bf16):
            feature_map = self.trainable(self.backbone.for_trainable(frozen_features))
        return self.backbone.pooled(feature_map.float())


def bfloat16_pays(network: TrainableCopy, batch: torch.Tensor) -> tuple[bool, float]:
    """Try for about half a second whether training is faster in bfloat16 on this machine.

    Forward and backward passes on a batch (B, C, h, w) alternate between the two formats, and the
    fastest of each counts. Parameters and their gradients stay as they are. Returns whether the
    ratio of the times, float32 / bfloat16, is at least 1.2, and the ratio.
    """
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for bf16 in seconds:  # one-time costs, as of threads and kernels, do not count
        _step_seconds(network, batch[:1], bf16)
    while sum(seconds[False] + seconds[True]) < TRIAL_SECONDS:
        for bf16, taken in seconds.items():
            taken.append(_step_seconds(network, batch, bf16))
    ratio = min(seconds[False]) / min(seconds[True])
    return ratio >= PAYS, ratio


def _step_seconds(network: TrainableCopy, batch: torch.Tensor, bf16: bool) -> float:
    """Time of one forward and one backward pass."""
    network.bf16 = bf16
    start = time.perf_counter()
    loss = network.features(batch).square().mean()
    torch.autograd.grad(loss, list(network.trainable.parameters()))
    if network.backbone.device.type == "cuda":
        torch.cuda.synchronize(network.backbone.device)
    return time.perf_counter() - start


class Checkpoint(NamedTuple):
    """Passed to a callback: the network after `epoch` epochs, and the mean loss of the last one."""

    epoch: int
    loss: float  # nan before training
    backbone: Backbone


class Checkpoints(Sequence):
    """The networks of one training run, oldest first; number 0 is the pretrained one.

    The method `save` is a callback of `Training`. With a folder, a run that was killed resumes at
    its newest checkpoint, and ends with the same numbers as if nothing had happened.

    Parameters
    ----------
    network : TrainableCopy
        What is trained; `checkpoints[i]` shares the frozen part of its backbone.
    centre : tensor, shape (d,)
    every : int or None
        Epochs between checkpoints. The first and the last network are always kept; None: only they.
    folder : path or None
        Keep the checkpoints there as safetensors, not in memory.
    settings : dict
        The other settings by which a run is recognised. The number of epochs is not among them,
        since a run may be continued. An object is compared by its attribute `facts`, if any.
    on_checkpoint : callable or None
        Called with each `Checkpoint`; in a resumed run, not again for earlier ones.

    Attributes
    ----------
    epochs : list of int
        The epoch of each checkpoint.
    losses : list of float
        Mean training loss of every epoch, with or without a checkpoint.
    centre, bf16, bf16_ratio
        The centre, and the precision as in `TrainableCopy`.

    Examples
    --------
    >>> from pandalib import load_backbone, load_task
    >>> from pandalib.methods.panda import fit_compactness
    >>> backbone, task = load_backbone(), load_task("pictograms:heart", n_train=20, n_test=1)
    >>> options = dict(epochs=3, lr=0.25, max_grad_norm=0.1, checkpoint_every=2, progress=False)
    >>> checkpoints = fit_compactness(backbone, backbone.frozen_features(task.train), **options)
    >>> checkpoints.epochs, checkpoints[-1].features(task.test).shape
    ([0, 2, 3], (10, 512))
    """

    def __init__(
        self,
        network: TrainableCopy,
        centre: torch.Tensor,
        *,
        every: int | None = 1,
        folder: Path | str | None = None,
        settings: dict,
        on_checkpoint: Callable[[Checkpoint], None] | None = None,
    ):
        self.backbone = network.backbone
        self.bf16 = network.bf16
        self.bf16_ratio = network.bf16_ratio
        self.centre = centre
        self.every = every
        self.folder = None if folder is None else Path(folder)
        self.on_checkpoint = on_checkpoint
        self.epochs: list[int] = []
        self.losses: list[float] = []
        self._network = network
        self._in_memory: dict[int, dict[str, torch.Tensor]] = {}
        if folder is not None:
            run = dict(
                weights_sha256=self.backbone.weights_sha256,
                centre=hashlib.sha256(centre.cpu().numpy()).hexdigest(),
                checkpoint_every=every,
                **settings,
            )
            self._run = json.loads(json.dumps(run, default=_facts))

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[i] for i in range(len(self))[number]]
        trainable = copy.deepcopy(self.backbone.trainable)
        _copy_into(trainable, self._parameters(self.epochs[number]))
        return self.backbone.with_trainable(trainable)

    def save(self, training: Training) -> None:
        """Keep the network if a checkpoint is due; before epoch 1, resume the folder's run."""
        if training.epoch == 0 and self.folder is not None and (self.folder / RESUME).exists():
            self._resume(training)
        elif self._is_due(training.epoch, training.epochs):
            self._save(training)

    def _is_due(self, epoch: int, n_epochs: int) -> bool:
        return epoch in (0, n_epochs) or (self.every is not None and epoch % self.every == 0)

    def _save(self, training: Training) -> None:
        epoch, self.losses = training.epoch, training.losses
        named = dict(self._network.trainable.named_parameters())
        if self.folder is None:
            self._in_memory[epoch] = {name: p.detach().clone() for name, p in named.items()}
        else:
            write_tensors(self._path(epoch), named, {"run": self._run, "epoch": epoch})
        self.epochs.append(epoch)
        if self.on_checkpoint is not None:
            loss = self.losses[-1] if self.losses else math.nan
            self.on_checkpoint(Checkpoint(epoch, loss, self[-1]))
        if self.folder is not None and epoch > 0:
            state = training.optimiser.state
            momentum = {
                name: state[p].get("momentum_buffer", torch.zeros_like(p))
                for name, p in named.items()
            }
            done = {"epochs": self.epochs, "losses": self.losses, "bf16": self.bf16}
            write_tensors(self.folder / RESUME, momentum, {"run": self._run, **done})

    def _resume(self, training: Training) -> None:
        momentum, facts = _read(self.folder / RESUME)
        for name, value in self._run.items():
            if facts["run"].get(name) != value:
                raise ValueError(
                    f"{self.folder} holds checkpoints of another run ({name} was "
                    f"{facts['run'].get(name)!r}, now {value!r}): choose an empty folder."
                )
        epoch = facts["epochs"][-1]
        if epoch > training.epochs:
            raise ValueError(
                f"epochs={training.epochs}: {self.folder} holds a run of {epoch} epochs."
            )
        _copy_into(self._network.trainable, self._parameters(epoch))
        for name, parameter in self._network.trainable.named_parameters():
            # The fused step needs it in the parameter's own memory order.
            buffer = torch.empty_like(parameter).copy_(momentum[name])
            training.optimiser.state[parameter]["momentum_buffer"] = buffer
        self.bf16 = self._network.bf16 = facts["bf16"]  # whatever a new trial says
        training.epoch = epoch
        training.losses = self.losses = facts["losses"]
        self.epochs = [done for done in facts["epochs"] if self._is_due(done, training.epochs)]

    def _parameters(self, epoch: int) -> dict[str, torch.Tensor]:
        if self.folder is None:
            return self._in_memory[epoch]
        parameters, facts = _read(self._path(epoch))
        if facts != {"run": self._run, "epoch": epoch}:
            raise ValueError(
                f"{self._path(epoch)} is of another epoch or run: choose an empty folder."
            )
        return parameters

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.safetensors"


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    try:
        return read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a checkpoint ({error}): choose an empty folder.") from None


@torch.no_grad()
def _copy_into(module: nn.Module, parameters: dict[str, torch.Tensor]) -> None:
    for name, parameter in module.named_parameters():
        parameter.copy_(parameters[name])


def _facts(value) -> str | dict:
    """A replacement for a setting that JSON cannot hold, such as a penalty."""
    return getattr(value, "facts", type(value).__name__)
