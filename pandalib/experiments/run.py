"""One run: one method on one task, described by one flat record.

    run("pictograms:star", "ewc", ewc_lambda=300.0)

The options of each method stand in `pandalib.experiments.config`. The history of a run holds what
is measured at its checkpoints. The ROC-AUC in it is for looking at: nothing is chosen by it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from pandalib.backbones import Backbone, load_backbone
from pandalib.cache import FeatureCache, Memory
from pandalib.datasets.load import load_task
from pandalib.datasets.task import OneClassTask
from pandalib.experiments.config import ImageOptions, Setup, Tier, make_options, tier_named
from pandalib.methods.deep_svdd import SVDDEpoch
from pandalib.methods.diagnostics import diagnose, effective_rank, feature_variance
from pandalib.methods.distances import image_scores
from pandalib.methods.outlier_exposure import ExposureEpoch
from pandalib.methods.training import Checkpoint
from pandalib.metrics import pixel_roc_auc, pro, roc_auc

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
    pixel_roc_auc, pro, seconds, peak_rss_mb, bf16, history. What does not apply is None.
    pixel_roc_auc and pro need a method with maps, and masks; bf16 says whether it was used and, if
    it was tried, how many times as fast it is; history is a list, one dict a checkpoint.

    Examples
    --------
    >>> record = run("pictograms:star", "dn2", n_train=20, n_test=3)
    >>> record["n_test"], 0 < record["roc_auc"] <= 1
    (30, True)
    """
    start = time.perf_counter()
    chosen = make_options(method, options)
    defaults = tier_named(tier)
    recall = _call if memory is None else memory.recall
    resize = defaults.resize if chosen.size is None and not task.startswith(DRAWN) else None
    data = _load_images(task, chosen, defaults.size, resize, seed, recall)
    chosen = chosen.at_pace(defaults.pace, len(data.train))
    network = load_network(chosen, defaults, seed)
    cache = memory if tier == "embedded" else FeatureCache()
    recorder = None
    if getattr(chosen, "checkpoints", 0):
        recorder = Recorder(chosen, network, data, cache)
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
    maps = None
    if hasattr(detector, "maps") and _has_both(data.masks):
        maps = detector.maps(data.test)  # all at once: the metrics sort all pixels
    scores = detector.score(data.test) if maps is None else image_scores(maps)
    tried = hasattr(detector, "bf16_")
    return dict(
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
        seconds=round(time.perf_counter() - start, 3),
        peak_rss_mb=round(peak_rss_mb(), 1),
        bf16=dict(used=detector.bf16_, ratio=detector.bf16_ratio_) if tried else None,
        history=recorder.history if recorder else [],
    )


def load_network(options: ImageOptions, tier: Tier, seed: int = 0) -> Backbone | None:
    """The network of a run; None for a method without one."""
    if not hasattr(options, "backbone"):
        return None
    name = options.backbone or tier.backbone
    default_weights = tier.weights if name == tier.backbone else "imagenet"
    stages = {"adapt_from": options.adapt_from} if hasattr(options, "adapt_from") else {}
    return load_backbone(
        name,
        options.weights or default_weights,
        truncate_after=options.truncate_after or tier.truncate_after,
        bias_free=options.bias_free,
        seed=seed,
        **stages,
    )


def _call(function, *arguments, **options):
    """What stands for `Memory.recall` where nothing is kept."""
    return function(*arguments, **options)


def _load_images(task, options, size, resize, seed, recall) -> OneClassTask:
    """The images of a run. Drawn ones have a size of their own, all others the tier's."""
    names = ("n_train", "n_test", "missing_masks", "level")
    named = {name: getattr(options, name) for name in names}
    if options.defects is not None:
        named["defects"] = tuple(name.strip() for name in options.defects.split(","))
    if not task.startswith(DRAWN):
        named["size"] = options.size or size
    elif options.size is not None:
        named["size"] = options.size
    return recall(load_task, task, seed=seed, resize=resize, **named)


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
        return (network.features_from(part) for part in self.frozen)

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
