"""One run: one method on one task, described by one flat record.

    run("pictograms:star", "ewc", ewc_lambda=300.0)

The options of each method are in `pandalib.experiments.config`. The history of a run holds what is
measured at its checkpoints. Its ROC-AUC is only for plotting: nothing is chosen by it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from pandalib.backbones import Backbone, load_backbone
from pandalib.cache import FeatureCache, Memory
from pandalib.datasets import elpv
from pandalib.datasets.images import Geometry, ImageArray, join, take
from pandalib.datasets.load import load_task, sibling_tasks
from pandalib.datasets.outliers import KINDS, check_unseen, load_outliers, outlier_folder
from pandalib.datasets.public import SETS
from pandalib.datasets.task import OneClassTask
from pandalib.experiments.config import ImageOptions, Tier, make_options, tier_named
from pandalib.experiments.fisher import fisher_of
from pandalib.methods.diagnostics import diagnose, effective_rank, feature_variance
from pandalib.methods.ewc import Fisher
from pandalib.metrics import pixel_roc_auc, pro, roc_auc
from pandalib.timm_backbones import TIMM

DRAWN = ("pictograms:", "surfaces:")  # images with a size of their own
N_OUTLIERS = 2000  # drawn for outlier exposure


def run(
    task: str,
    method: str,
    *,
    tier: str = "embedded",
    seed: int = 0,
    memory: Memory | None = None,
    with_scores: bool = False,
    progress: bool = True,
    **options,
) -> dict:
    """Fit a method to the normal images of a task, score its test images, measure the result.

    Parameters
    ----------
    task : str
        As in `pandalib.load_task`.
    method : str
        One of `pandalib.experiments.config.METHODS`.
    tier : str
        The defaults of network, image size and pace.
    seed : int
        For images, weights and batches.
    memory : Memory, optional
        What this process keeps from one run to the next; changes no result.
    with_scores : bool
        Add `labels`, a string of 0 and 1, and `scores`, floats, of the test images.
    progress : bool
    **options
        Of the method, see its dataclass in `pandalib.experiments.config`; None: the default.

    Returns
    -------
    record : dict
        With the keys task, method, tier, backbone, weights_sha256, seed, n_train, n_test, roc_auc,
        pixel_roc_auc, pro, seconds, peak_rss_mb, bf16, history. What does not apply is None.
        pixel_roc_auc and pro need a method with maps, and masks; bf16 says whether it was used
        and, if it was tried, how many times as fast it is; history has a dict for each checkpoint.

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
    network = load_network(chosen, defaults, seed)
    data = _load_images(task, chosen, defaults, network, seed, recall)
    for line in (data.note, data.credit):
        if line and progress:
            print(line, file=sys.stderr)
    chosen = chosen.at_pace(defaults.pace, len(data.train))
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
        checkpoint_every=recorder and recorder.every,
        on_checkpoint=recorder,
        progress=progress,
    )
    detector = chosen.build(setup).fit(data.train)
    masks = data.masks  # metrics of maps need normal and anomalous pixels
    if hasattr(detector, "maps") and masks is not None and masks.any() and not masks.all():
        maps, scores = detector.maps_with_scores(data.test)  # at once: metrics sort all pixels
    else:
        maps, scores = None, detector.score(data.test)
    tried = hasattr(detector, "bf16_")
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
        seconds=round(time.perf_counter() - start, 3),
        peak_rss_mb=round(peak_rss_mb(), 1),
        bf16=dict(used=detector.bf16_, ratio=detector.bf16_ratio_) if tried else None,
        history=recorder.history if recorder else [],
    )
    if with_scores:
        record["labels"] = "".join(str(int(label)) for label in data.labels)
        record["scores"] = [float(str(one)) for one in np.float32(scores)]  # the shortest digits
    return record


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
        pool=options.pool,
        seed=seed,
        **stages,
    )


def _call(function, *arguments, **options):
    """In place of `Memory.recall` if nothing is kept."""
    return function(*arguments, **options)


def _load_images(task, options, tier: Tier, network, seed: int, recall) -> OneClassTask:
    """The images of a run. Drawn ones have a size of their own, all others the tier's, or that of
    a network of timm.
    """
    if network is not None and network.name.startswith(TIMM):
        tier = replace(tier, size=network.size, resize=None)
    names = ("n_train", "n_test", "missing_masks", "level", "doubtful", "size", "fit")
    named = {name: getattr(options, name) for name in names}
    if options.defects is not None:
        named["defects"] = tuple(name.strip() for name in options.defects.split(","))
    if not task.startswith(DRAWN):
        named["fit"] = options.fit or tier.fit
        if named["fit"] == "crop" and options.size is None:
            named["resize"] = tier.resize
        named["size"] = options.size or tier.size
    return recall(load_task, task, seed=seed, **named)


@dataclass
class Setup:
    """What a run has at hand when it builds its detector."""

    task: OneClassTask
    backbone: Backbone | None
    seed: int
    cache: object = None  # `FeatureCache`, `Memory` or None
    recall: Callable = _call  # or `Memory.recall`, which draws images once for several runs
    checkpoint_every: int | None = None
    on_checkpoint: Callable | None = None
    progress: bool = False

    def fisher(self, options) -> Fisher:
        """The Fisher information that the options of EWC ask for."""
        return fisher_of(
            self.backbone,
            self.task.train,
            options.fisher,
            options.fisher_images,
            n_samples=options.fisher_samples,
            recipe=options.fisher_recipe,
            seed=self.seed,
            progress=self.progress,
        )

    def outliers(self, options) -> Sequence:
        """Outliers of the size of the images, none of them a test image: uint8 (n, 3, H, W)."""
        kind, n = options.outlier_images or "near", options.n_outliers
        source, _, name = self.task.name.partition(":")
        height, width = np.shape(self.task.train[:1])[-2:]
        geometry = getattr(self.task.train, "geometry", None) or Geometry(height, width)
        if kind == "near" and source == "elpv":
            images = take_some(elpv.other_defects(name, geometry), n, self.seed)
        elif kind == "near" and source != "pictograms":
            raise ValueError(
                f"{self.task.name} needs outlier_images: a folder of images that are not normal, "
                "or a data set; near ones are known for pictograms and solar cells only."
            )
        elif kind in KINDS:
            levels = {} if options.level is None else {"level": options.level}
            n = N_OUTLIERS if n is None else n
            images = self.recall(load_outliers, kind, n, seed=self.seed, **levels)
            if source == "pictograms":  # none of them can be a test image
                return images
            images = ImageArray(images.transpose(0, 2, 3, 1), geometry)
        elif kind in SETS:
            images = self._outliers_of_set(kind, n, geometry)
        elif Path(kind).expanduser().exists():
            images = outlier_folder(kind, n, geometry=geometry, seed=self.seed)
        else:
            raise ValueError(
                f"outlier_images={kind!r} is unknown: choose one of {', '.join(KINDS)}, a folder "
                f"of images, or a data set: {', '.join(SETS)}."
            )
        check_unseen(images, self.task)
        return images

    def _outliers_of_set(self, name: str, n: int | None, geometry: Geometry) -> Sequence:
        """At most n training images, equally many of each class where possible."""
        if SETS[name] == SETS.get(self.task.name.partition(":")[0]):
            raise ValueError(
                f"outlier_images={name!r} for {self.task.name}: they are from the same data set, "
                "and would show the anomalies that are to be found."
            )
        siblings = sibling_tasks(name)
        each = None if n is None else max(2, math.ceil(n / len(siblings)))
        how = dict(n_train=each, n_test=1, size=geometry.height, seed=self.seed)
        images = join([load_task(one, **how).train for one in siblings], geometry)
        return take_some(images, n, self.seed)


def take_some(images: Sequence, n: int | None, seed: int) -> Sequence:
    """At most n of the images, drawn with `seed`; None: all."""
    if n is None or n >= len(images):
        return images
    return take(images, np.random.default_rng(seed).permutation(len(images))[:n])


class Recorder:
    """Measures a detector on the test images at every n-th checkpoint and the last.

    Attributes
    ----------
    every : int
        Epochs between two records.
    history : list of dict
        With epoch, loss, roc_auc, feature_variance, effective_rank, normal_distance and
        anomalous_distance.
    """

    def __init__(self, options, network: Backbone | None, data: OneClassTask, cache):
        self.every = max(1, options.epochs // options.checkpoints)
        self.options, self.data, self.history = options, data, []
        self.centre = None  # mean of the pretrained features of the normal images
        if network is not None:
            self.frozen = [
                network.frozen_features(images, cache=cache) for images in (data.train, data.test)
            ]

    def __call__(self, done) -> None:
        """Measure the state that a detector passes to its callback."""
        if done.epoch % self.every == 0 or done.epoch == self.options.epochs:
            if not hasattr(done, "detector"):
                found = self._adapted(done)
            elif hasattr(done.detector, "backbone_"):
                found = self._exposed(done)
            else:
                found = self._from_scratch(done)
            self.history.append({"epoch": done.epoch} | found)

    def _features(self, network: Backbone) -> Iterator[np.ndarray]:
        """Features of the training and of the test images."""
        return (network.features_from(part) for part in self.frozen)

    def _adapted(self, done) -> dict:
        gallery, features = self._features(done.backbone)
        if self.centre is None:  # the first checkpoint is the pretrained network
            self.centre = gallery.mean(axis=0)
        how = dict(k=self.options.k, normalise=self.options.normalise)
        return diagnose(gallery, features, self.data.labels, centre=self.centre, **how)

    def _exposed(self, done) -> dict:
        gallery, features = self._features(done.detector.backbone_)
        scores = done.detector.score_features(features)
        own = dict(loss=done.loss, roc_auc=roc_auc(self.data.labels, scores))
        return diagnose(gallery, features, self.data.labels) | own

    def _from_scratch(self, done) -> dict:
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


def _network_name(network: Backbone, options: ImageOptions) -> str:
    cut = options.truncate_after
    return network.name if cut is None else f"{network.name}:{cut}"


def peak_rss_mb() -> float:
    """The largest memory that this process has held so far, in MiB; on macOS, its memory now."""
    with suppress(OSError, StopIteration):  # Linux
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", memory.rss) / 2**20  # Windows knows the peak


def reset_peak_rss() -> None:
    """Restart `peak_rss_mb`, where Linux allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
