"""One run: one method on one task, described by one flat record (the JSON of `python -m pandalib run`)."""

from __future__ import annotations

import os
import resource
import sys
import time

import numpy as np

from pandalib import tiers
from pandalib.adapt import epochs_for
from pandalib.backbones import EMBEDDED, Backbone, load_backbone
from pandalib.cache import FeatureCache, Memory
from pandalib.detectors import DN2, Adapted, PixelKNN, SampleWise
from pandalib.ewc import EWC, Fisher, fisher_information, linear_probe, upstream_fisher
from pandalib.exposure import OutlierExposure
from pandalib.history import adaptation_recorder, exposure_recorder, svdd_recorder
from pandalib.metrics import roc_auc
from pandalib.pixel_metrics import pixel_roc_auc, pro
from pandalib.pooling import Chosen, Joined
from pandalib.segment import SPADE, MemoryBank, image_scores
from pandalib.sources.outliers import KINDS, check_unseen, load_outliers, outlier_folder
from pandalib.sources.public import SETS
from pandalib.svdd import DeepSVDD
from pandalib.tasks import OneClassTask, load_task, sibling_tasks

WITHOUT_BACKBONE = {"pixels", "svdd"}
BIASED_BATCH = 32  # images in a batch whose mean gradient is squared, for the Fisher recipe "batch-mean": the official code's
FISHER_RECIPES = ("per-sample", "batch-mean")
LAYERS = {"spade": ("layer1", "layer2", "layer3"), "bank": ("layer2", "layer3")}  # as far as the network has them
N_OUTLIERS = 2000  # drawn for outlier exposure


def run(
    task: str,
    method: str,
    *,
    tier: str = "embedded",
    seed: int = 0,
    backbone: str | None = None,
    weights: str | None = None,
    last: str | None = None,
    adapt_from: str = "layer3",
    size: int | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    missing_masks: str = "error",
    level: str | None = None,
    k: int = 2,
    normalise: bool = False,
    n_centres: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    clip: float | None = None,
    strength: float | None = None,
    fisher: str | None = None,
    fisher_images: str | None = None,
    fisher_recipe: str = "per-sample",
    outliers: str | None = None,
    n_outliers: int | None = None,
    n_images: int = 50,
    kappa: int = 1,
    sigma: float = 4.0,
    balanced: bool = False,
    bf16: bool | str = False,
    checkpoints: int = 10,
    memory: Memory | None = None,
) -> dict:
    """Fit `method` on the normal images of `task`, score its test images, measure.

    Parameters
    ----------
    task, seed, n_train, n_test, size, missing_masks, level : as in `load_task`.
    method : one of `METHODS`.
    tier : gives the defaults of backbone, weights, last and size.
    backbone, weights, last, adapt_from : as in `load_backbone`. A backbone without weights gets ImageNet's.
    k : neighbours, of every method that scores by kNN (not oe, svdd, spade, bank).
    normalise, n_centres : of dn2 and whitened, as in `pandalib.knn.KNN`.
    epochs, lr, clip : of the adaptation; None: the pace of the tier (of DeepSVDD, its own).
    strength : lambda of EWC; None: the tier's.
    fisher : a file with the Fisher information (`Fisher.save`).
    fisher_images : a folder with one folder of images per class, from which to compute it. With neither, the embedded
        network takes its own pretraining task, another whole network its own predictions on the training images.
    fisher_recipe : "per-sample", the definition, or "batch-mean": squares of the mean gradient of batches of 32, too small
        by up to that factor.
    outliers : for outlier exposure: near, middle, far or noise, which are drawn for pictograms (None: near), or a folder
        of images that are not normal. No test image may be among them.
    n_outliers : None: 2000 drawn ones, or all of the folder.
    n_images, kappa, sigma, balanced : of `pandalib.segment.SPADE`; sigma also of the memory bank.
    bf16 : adapt and score in bfloat16: True, False, or "auto", which takes it where a trial of half
        a second says that it is faster on this machine (`pandalib.adapt.bfloat16_pays`).
    checkpoints : about so many moments go into the history, besides the first; 0: none, which saves scoring at each of them.
    memory : what this process keeps from one run to the next (drawn images, activations of the stem); changes no number.

    Returns
    -------
    dict with the keys task, method, tier, backbone, weights_sha256, seed, n_train, n_test, roc_auc, pixel_roc_auc,
    pro, bf16, bf16_ratio, seconds, peak_rss_mb, history. What does not apply is None; history is a list, one record per
    checkpoint. bf16 says whether the run computed in bfloat16, bf16_ratio how many times as fast as float32 that was in
    the trial (None without one). pixel_roc_auc and pro are those of spade and bank, where masks tell anomalous from normal pixels.

    Raises
    ------
    ValueError, OSError naming what was given and what was expected.
    """
    start = time.perf_counter()
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: choose one of {', '.join(METHODS)}.")
    if tier not in tiers.TIERS:
        raise ValueError(f"tier {tier!r} is unknown: choose one of {', '.join(tiers.TIERS)}.")
    if checkpoints < 0:
        raise ValueError(f"checkpoints={checkpoints}: expected a whole number of at least 0.")
    defaults = tiers.TIERS[tier]
    if task.startswith(("pictograms:", "surfaces:")):  # drawn images have a size of their own
        resize = None
    else:
        size, resize = size or defaults.size, defaults.resize if size is None else None
    recall = memory.recall if memory is not None else _anew
    data = recall(load_task, task, seed=seed, n_train=n_train, n_test=n_test, size=size, resize=resize, missing_masks=missing_masks, level=level)
    network = strangers = None
    if method not in WITHOUT_BACKBONE:
        name = backbone or defaults.backbone
        default_weights = defaults.weights if name == defaults.backbone else "imagenet"
        network = load_backbone(name, weights or default_weights, last=last or defaults.last, adapt_from=adapt_from, seed=seed)
    if method == "oe":
        strangers = outliers_of(data, outliers, n_outliers, level=level, resize=resize, seed=seed, recall=recall)
    history: list[dict] = []
    detector = BUILDERS[method](
        backbone=network, data=data, history=history, cache=memory if tier == "embedded" else FeatureCache(), pace=defaults.pace, k=k, normalise=normalise,
        n_centres=n_centres, epochs=epochs, lr=lr, clip=clip, strength=strength, fisher=fisher, fisher_images=fisher_images, fisher_recipe=fisher_recipe,
        outliers=strangers, n_images=n_images, kappa=kappa, sigma=sigma, balanced=balanced, seed=seed, bf16=bf16, checkpoints=checkpoints,
    ).fit(data.train)  # fmt: skip
    pixels = dict(pixel_roc_auc=None, pro=None)
    if method in LAYERS and data.masks is not None and data.masks.any() and not data.masks.all():
        maps = detector.maps(data.test)  # all at once: the figures sort all pixels
        scores = image_scores(maps)
        pixels = dict(pixel_roc_auc=pixel_roc_auc(data.masks, maps), pro=pro(data.masks, maps))
    else:
        scores = detector.score(data.test)
    return dict(
        task=data.name,
        method=method,
        tier=tier,
        backbone=network and (network.name if last is None else f"{network.name}:{network.last}"),
        weights_sha256=network and network.weights_sha256,
        seed=seed,
        n_train=len(data.train),
        n_test=len(data.test),
        roc_auc=roc_auc(data.labels, scores),
        **pixels,
        bf16=getattr(detector, "bf16_", False),
        bf16_ratio=getattr(detector, "bf16_ratio_", None),
        seconds=round(time.perf_counter() - start, 3),
        peak_rss_mb=round(peak_rss_mb(), 1),
        history=history,
    )


def _anew(function, *arguments, **options):
    """What stands for `Memory.recall` where nothing is kept."""
    return function(*arguments, **options)


# One builder for each method: its unfitted detector, which fills `history` while it is fitted. Each names what it uses.


def _pixels(*, k, **_):
    return PixelKNN(k)


def _dn2(*, backbone, k, normalise, n_centres, seed, cache, whiten=False, **_):
    return DN2(backbone, k, normalise=normalise, whiten=whiten, n_centres=n_centres, seed=seed, cache=cache)


def _whitened(**options):
    return _dn2(whiten=True, **options)


def _adapted(work: str, lr: str = "lr"):
    """The builder of a method whose budget and learning rate are these of the tier's pace."""

    def build(*, penalty=None, **options):
        return Adapted(options["backbone"], penalty=penalty, **_training(work, lr, **options))

    return build


def _ses(**options):
    return SampleWise(options["backbone"], **_training("sample_wise", "lr", apart=True, **options))


def _ewc(*, backbone, data, pace, strength, fisher, fisher_images, fisher_recipe, seed, **options):
    information = fisher_of(backbone, data.train, fisher, fisher_images, recipe=fisher_recipe, seed=seed)
    penalty = EWC(backbone, pace.strength if strength is None else strength, information)
    return _adapted("long", "ewc_lr")(penalty=penalty, backbone=backbone, data=data, pace=pace, seed=seed, **options)


def _training(work, usual_lr, *, backbone, data, history, pace, k, epochs, lr, clip, seed, bf16, cache, checkpoints, apart=False, **_) -> dict:
    """How a head is adapted. `apart`: every epoch is a checkpoint for the method itself, whatever the history keeps."""
    epochs = epochs_for(getattr(pace, work), len(data.train)) if epochs is None else epochs
    every = max(1, epochs // checkpoints) if checkpoints else epochs
    record = None
    if checkpoints:
        record = adaptation_recorder(backbone, data, history, cache=cache, k=k, every=every, last=epochs)
    return dict(
        epochs=epochs, lr=getattr(pace, usual_lr) if lr is None else lr, clip=pace.clip if clip is None else clip, k=k, every=1 if apart else every,
        seed=seed, bf16=bf16, cache=cache, on_checkpoint=record,
    )  # fmt: skip


def _oe(*, backbone, data, history, outliers, pace, epochs, lr, clip, seed, bf16, cache, checkpoints, **_):
    epochs = epochs_for(pace.exposure, len(data.train)) if epochs is None else epochs
    every = max(1, epochs // checkpoints) if checkpoints else epochs
    record = None
    if checkpoints:
        record = exposure_recorder(backbone, data, history, cache=cache, every=every, last=epochs)
    return OutlierExposure(
        backbone,
        outliers,
        epochs=epochs,
        lr=pace.exposure_lr if lr is None else lr,
        clip=pace.exposure_clip if clip is None else clip,
        seed=seed,
        on_epoch=record,
        bf16=bf16,
        cache=cache,
    )


def _svdd(*, data, history, epochs, lr, seed, checkpoints, **_):
    options = {key: value for key, value in (("epochs", epochs), ("lr", lr)) if value is not None}
    detector = DeepSVDD(seed=seed, **options)
    if checkpoints:
        detector.on_epoch = svdd_recorder(data, history, every=max(1, detector.epochs // checkpoints), last=detector.epochs)
    return detector


def _spade(*, backbone, n_images, kappa, sigma, balanced, cache, **_):
    return SPADE(backbone, layers=_layers_of(backbone, "spade"), n_images=n_images, kappa=kappa, sigma=sigma, balanced=balanced, cache=cache)


def _bank(*, backbone, sigma, seed, **_):
    return MemoryBank(backbone, layers=_layers_of(backbone, "bank"), sigma=sigma, seed=seed)


def _layers_of(backbone: Backbone, method: str) -> list[str]:
    stages = [name for part in (backbone.stem, backbone.head) for name, _ in part.named_children()]
    layers = [name for name in LAYERS[method] if name in stages]
    if not layers:
        raise ValueError(f"method {method!r} compares {', '.join(LAYERS[method])}, and {backbone.name} up to {backbone.last} has none of them: choose a later last=.")
    return layers


BUILDERS = {
    "pixels": _pixels, "dn2": _dn2, "whitened": _whitened, "compactness": _adapted("long"), "early": _adapted("early"), "ses": _ses, "ewc": _ewc,
    "oe": _oe, "svdd": _svdd, "spade": _spade, "bank": _bank,
}  # fmt: skip
METHODS = tuple(BUILDERS)


def fisher_of(
    backbone: Backbone, normal_images, file: str | None = None, images: str | None = None, *, size: int | None = None, recipe: str = "per-sample", seed: int = 0
) -> Fisher:
    """The Fisher information for EWC, from the best source at hand.

    Parameters
    ----------
    file : as written by `Fisher.save`; refused when it belongs to other weights.
    images : a folder with one folder of images per class. A whole network predicts on them; a cut one is first given a
        linear classifier of those classes.
    normal_images : uint8 (N, 3, H, W); without file and folder a whole network predicts on these, the embedded network
        on its own pretraining task.
    recipe : "per-sample" or "batch-mean", as in `run`; a file has its own.

    Raises ValueError for an unknown recipe, when both are given, when there is neither a classifier nor a folder, or the file belongs to other weights.
    """
    from pandalib.sources.folders import labelled_images

    if file is not None and images is not None:
        raise ValueError(f"fisher={file!r} and fisher_images={images!r}: give one of them.")
    if recipe not in FISHER_RECIPES:
        raise ValueError(f"fisher_recipe={recipe!r} is unknown: choose one of {', '.join(FISHER_RECIPES)}.")
    biased = {} if recipe == "per-sample" else dict(batch_size=BIASED_BATCH)
    if file is not None and biased:
        raise ValueError(f"fisher={file!r} and fisher_recipe={recipe!r}: a file was made by a recipe of its own, leave one of them out.")
    if file is not None:
        return Fisher.load(file, backbone)
    if images is not None:
        pictures, labels = labelled_images(images, size=size or np.shape(normal_images[:1])[-1])
        classifier = backbone.classifier or linear_probe(backbone, pictures, labels, seed=seed)
        return fisher_information(backbone, pictures, classifier=classifier, seed=seed, **biased)
    if backbone.name == EMBEDDED and backbone.n_classes is not None and backbone.classifier is not None:
        return upstream_fisher(backbone, **biased)
    if backbone.classifier is None:
        raise ValueError(f"{backbone.name} up to {backbone.last} has no classifier, so EWC needs fisher_images=FOLDER (one folder of images per class) or fisher=FILE.")
    return fisher_information(backbone, normal_images, seed=seed, **biased)


def outliers_of(data: OneClassTask, outliers: str | None = None, n: int | None = None, *, level: str | None = None, resize: int | None = None, seed: int = 0, recall=_anew):
    """Outliers for a task, at the size of its images: drawn ones for pictograms, or those of a folder.

    Parameters
    ----------
    outliers : one of `pandalib.sources.outliers.KINDS`; a public data set, as "cifar100", of which the training images of
        all classes are taken in turn; or a folder. None: "near" for pictograms, and for others there is no default.
    recall : `Memory.recall`, to draw them once for several runs.
    n : None: 2000 drawn ones, or all of the folder.

    Returns
    -------
    uint8 (n, 3, H, W), an array or a lazy sequence.

    Raises ValueError where there are none for the task, and for a folder that holds one of its test images.
    """
    drawn = data.name.startswith("pictograms:")
    if outliers is None and not drawn or outliers in KINDS and not drawn:
        given = "no outliers were given" if outliers is None else f"outliers {outliers!r} are drawn for pictograms only"
        raise ValueError(f"{given}: {data.name} needs outliers=FOLDER, a folder of images that are not normal.")
    if outliers is None or outliers in KINDS:
        options = {} if level is None else dict(level=level)
        return recall(load_outliers, outliers or "near", N_OUTLIERS if n is None else n, seed=seed, **options)
    size = np.shape(data.train[:1])[-1]
    if outliers in SETS:
        images = _outlier_set(data, outliers, n, size=size, resize=resize, seed=seed)
    elif os.path.exists(os.path.expanduser(outliers)):
        images = outlier_folder(outliers, n, size=size, resize=resize, seed=seed)
    else:
        raise ValueError(f"outliers {outliers!r} are unknown: choose one of {', '.join(KINDS)} (for pictograms), a folder of images, or a data set: {', '.join(SETS)}.")
    check_unseen(images, data)
    return images


def _outlier_set(data: OneClassTask, name: str, n: int | None, *, size: int, resize: int | None, seed: int):
    """Training images of every class of a data set, as many of each as far as they last, and not more than n."""
    if SETS[name] == SETS.get(data.name.partition(":")[0]):
        raise ValueError(f"outliers {name!r} for {data.name}: they are of the same data set, and would show the anomalies that are to be found. Choose another set.")
    if n is not None and n < 1:
        raise ValueError(f"n={n} outliers: expected at least 1.")
    siblings = sibling_tasks(name)
    each = None if n is None else max(2, -(-n // len(siblings)))
    parts = [load_task(task, seed=seed, n_train=each, n_test=1, size=size, resize=resize).train for task in siblings]
    images = Joined(parts)
    return images if n is None or n >= len(images) else Chosen(images, np.random.default_rng(seed).permutation(len(images))[:n])


def peak_rss_mb() -> float:
    """The most memory this process has held so far, in MiB."""
    try:  # Linux: there the other figure begins with what the parent held when it started this process
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1024**2)  # Linux counts kilobytes, macOS bytes


def reset_peak_rss() -> None:
    """Begin to count `peak_rss_mb` anew, where Linux lets a process do that: one that does many runs gives each its own."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass
