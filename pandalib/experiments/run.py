"""One run: one method on one task, described by one flat record.

    run("pictograms:star", "ewc", ewc_lambda=300.0)

The options of each method stand in `pandalib.experiments.config`. The history of a run holds what
is measured at its checkpoints. The ROC-AUC in it is for looking at: nothing is chosen by it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from pandalib.backbones import Backbone
from pandalib.cache import FeatureCache, Memory
from pandalib.datasets.load import OneClassTask, load_task
from pandalib.experiments.config import ImageOptions, Setup, make_options, tier_named
from pandalib.experiments.inputs import load_network
from pandalib.methods.deep_svdd import SVDDEpoch
from pandalib.methods.outlier_exposure import ExposureEpoch
from pandalib.methods.panda import Checkpoint, diagnose, effective_rank, feature_variance
from pandalib.methods.spade import image_scores
from pandalib.metrics import roc_auc
from pandalib.pixel_metrics import pixel_roc_auc, pro

DRAWN = ("pictograms:", "surfaces:")  # images with a size of their own


def run(
    task: str,
    method: str,
    *,
    tier: str = "embedded",
    seed: int = 0,
    memory: Memory | None = None,
    progress: bool = True,
    **options,
) -> dict:
    """Fit a method on the normal images of a task, score its test images, measure.

    Parameters
    ----------
    task : as in `pandalib.load_task`.
    method : one of `pandalib.experiments.config.METHODS`.
    tier : gives the defaults of network, image size and pace.
    seed : of images, weights and batches.
    memory : what this process keeps from one run to the next; changes no number.
    progress : show bars.
    **options : of the method, as its dataclass in `pandalib.experiments.config` has them; None
        leaves one at its default.

    Returns
    -------
    dict with the keys task, method, tier, backbone, weights_sha256, seed, n_train, n_test, roc_auc,
    pixel_roc_auc, pro, seconds, peak_rss_mb, bf16, history. What does not apply is None. pixel_roc_auc
    and pro need a method with maps and masks that tell anomalous from normal pixels; bf16 is what
    was decided and, if it was tried, the ratio of times; history is a list, one dict a checkpoint.

    Examples
    --------
    >>> record = run("pictograms:star", "dn2", n_train=20, n_test=3)
    >>> record["n_test"], 0 < record["roc_auc"] <= 1
    (30, True)
    """
    start = time.perf_counter()
    chosen = make_options(method, options)
    defaults = tier_named(tier)
    recall = memory.recall if memory is not None else _call
    resize = defaults.resize if chosen.size is None and not task.startswith(DRAWN) else None
    data = _load_images(task, chosen, defaults.size, resize, seed, recall)
    network = load_network(chosen, defaults, seed)
    cache = memory if tier == "embedded" else FeatureCache()
    chosen = chosen.at_pace(defaults.pace, len(data.train))
    bf16 = None
    if hasattr(chosen, "bf16"):
        bf16 = _decide_bf16(chosen.bf16, network, data)
        chosen = replace(chosen, bf16=bf16["used"])
    recorder = Recorder(chosen, network, data, cache) if has_history(chosen) else None
    setup = Setup(
        task=data,
        backbone=network,
        seed=seed,
        cache=cache,
        recall=recall,
        resize=resize,
        checkpoint_every=recorder and recorder.every,
        on_checkpoint=recorder,
        progress=progress,
    )
    detector = chosen.build(setup).fit(data.train)
    maps, scores = None, None
    if hasattr(detector, "maps") and _has_both(data.masks):
        maps = detector.maps(data.test)  # all at once: the metrics sort all pixels
        scores = image_scores(maps)
    else:
        scores = detector.score(data.test)
    record = dict(
        task=data.name,
        method=method,
        tier=tier,
        backbone=network and _network_name(network, chosen),
        weights_sha256=network and network.weights_sha256,
        seed=seed,
        n_train=len(data.train),
        n_test=len(data.test),
        roc_auc=roc_auc(data.labels, scores),
        pixel_roc_auc=None if maps is None else pixel_roc_auc(data.masks, maps),
        pro=None if maps is None else pro(data.masks, maps),
    )
    return record | dict(
        seconds=round(time.perf_counter() - start, 3),
        peak_rss_mb=round(peak_rss_mb(), 1),
        bf16=bf16,
        history=recorder.history if recorder else [],
    )


def has_history(options: ImageOptions) -> bool:
    return getattr(options, "checkpoints", 0) > 0


def _call(function, *arguments, **options):
    """What stands for `Memory.recall` where nothing is kept."""
    return function(*arguments, **options)


def _load_images(task, options, size, resize, seed, recall) -> OneClassTask:
    """The images of a run; drawn ones have a size of their own."""
    named = {
        name: getattr(options, name) for name in ("n_train", "n_test", "missing_masks", "level")
    }
    if options.defects is not None:
        named["defects"] = tuple(name.strip() for name in options.defects.split(","))
    if not task.startswith(DRAWN):
        options_size = options.size or size
    else:
        options_size = options.size
    return recall(load_task, task, seed=seed, size=options_size, resize=resize, **named)


class Recorder:
    """Measures a detector on the test images at every n-th checkpoint and the last.

    Attributes
    ----------
    every : epochs between two records.
    history : list of dict with epoch, loss, roc_auc, feature_variance, effective_rank,
        normal_distance and anomalous_distance.
    """

    def __init__(self, options, network: Backbone | None, data: OneClassTask, cache):
        self.every = max(1, options.epochs // options.checkpoints)
        self.options, self.data, self.history = options, data, []
        self.centre = None  # mean of the pretrained features of the normal images
        if network is not None:
            self.frozen = [
                network.frozen_features(images, cache=cache) for images in (data.train, data.test)
            ]

    def __call__(self, done: Checkpoint | ExposureEpoch | SVDDEpoch) -> None:
        if done.epoch % self.every == 0 or done.epoch == self.options.epochs:
            measures = {Checkpoint: self._adapted, ExposureEpoch: self._exposed}
            found = measures.get(type(done), self._from_scratch)(done)
            self.history.append({"epoch": done.epoch} | found)

    def _features(self, network: Backbone) -> Iterator[np.ndarray]:
        """Features of the training and of the test images."""
        return (network.features_from(part, bf16=self.options.bf16) for part in self.frozen)

    def _adapted(self, done: Checkpoint) -> dict:
        gallery, features = self._features(done.backbone)
        if self.centre is None:  # the first checkpoint is the pretrained network
            self.centre = gallery.mean(axis=0)
        k = self.options.k
        return diagnose(gallery, features, self.data.labels, centre=self.centre, k=k)

    def _exposed(self, done: ExposureEpoch) -> dict:
        gallery, features = self._features(done.detector.backbone_)
        scores = done.detector.score_features(features)
        own = dict(loss=done.loss, roc_auc=roc_auc(self.data.labels, scores))
        return diagnose(gallery, features, self.data.labels) | own

    def _from_scratch(self, done: SVDDEpoch) -> dict:
        features = done.detector.features(self.data.test)
        scores = np.square(features - done.detector.centre_.numpy()).mean(axis=1)
        anomalous = self.data.labels.astype(bool)
        return dict(
            loss=None if done.epoch == 0 else done.loss,
            roc_auc=roc_auc(self.data.labels, scores),
            feature_variance=feature_variance(features),
            effective_rank=effective_rank(features),
            normal_distance=float(scores[~anomalous].mean()),
            anomalous_distance=float(scores[anomalous].mean()),
        )


def _decide_bf16(asked: bool | str, network: Backbone, data: OneClassTask) -> dict:
    """Whether to compute in bfloat16, and the measured ratio of times where it was tried."""
    return dict(used=bool(asked), ratio=None)


def _has_both(masks: np.ndarray | None) -> bool:
    """Whether there are normal and anomalous pixels."""
    return masks is not None and masks.any() and not masks.all()


def _network_name(network: Backbone, options: ImageOptions) -> str:
    cut = options.truncate_after
    return network.name if cut is None else f"{network.name}:{cut}"


def peak_rss_mb() -> float:
    """The most memory that this process has held so far, in MiB.

    Where the system does not tell, it is what the process holds now.
    """
    with suppress(OSError, StopIteration):  # Linux
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", memory.rss) / 2**20  # Windows knows the peak


def reset_peak_rss() -> None:
    """Start `peak_rss_mb` afresh, where Linux lets a process do that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
