"""One run: one method on one task, described by one flat record (the JSON of `python -m pandalib run`)."""

from __future__ import annotations

import os
import resource
import sys
import time

import numpy as np

from pandalib import tiers
from pandalib.adapt import diagnose, effective_rank, epochs_for, feature_variance
from pandalib.backbones import EMBEDDED, Backbone, load_backbone
from pandalib.cache import FeatureCache
from pandalib.detectors import DN2, Adapted, PixelKNN, SampleWise
from pandalib.ewc import EWC, Fisher, fisher_information, linear_probe, upstream_fisher
from pandalib.exposure import OutlierExposure
from pandalib.metrics import roc_auc
from pandalib.pixel_metrics import pixel_roc_auc, pro
from pandalib.segment import SPADE, MemoryBank, image_scores
from pandalib.sources.outliers import KINDS, check_unseen, load_outliers, outlier_folder
from pandalib.svdd import DeepSVDD
from pandalib.tasks import OneClassTask, load_task

METHODS = ("pixels", "dn2", "whitened", "compactness", "early", "ses", "ewc", "oe", "svdd", "spade", "bank")
WITHOUT_BACKBONE = {"pixels", "svdd"}
WORK = {"compactness": "long", "early": "early", "ses": "sample_wise", "ewc": "long", "oe": "exposure"}  # which budget of the tier's pace
CHECKPOINTS = 10  # about so many go into the history of a run
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
    size: int | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    missing_masks: str = "error",
    level: str | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    clip: float | None = None,
    strength: float | None = None,
    fisher: str | None = None,
    fisher_images: str | None = None,
    outliers: str | None = None,
    n_outliers: int | None = None,
    n_images: int = 50,
    kappa: int = 1,
    sigma: float = 4.0,
    balanced: bool = False,
    bf16: bool = False,
) -> dict:
    """Fit `method` on the normal images of `task`, score its test images, measure.

    Parameters
    ----------
    task, seed, n_train, n_test, size, missing_masks, level : as in `load_task`.
    method : one of `METHODS`.
    tier : gives the defaults of backbone, weights, last and size.
    backbone, weights, last : as in `load_backbone`. A backbone without weights gets ImageNet's.
    epochs, lr, clip : of the adaptation; None: the pace of the tier (of DeepSVDD, its own).
    strength : lambda of EWC; None: the tier's.
    fisher : a file with the Fisher information (`Fisher.save`).
    fisher_images : a folder with one folder of images per class, from which to compute it. With neither, the embedded
        network takes its own pretraining task, another whole network its own predictions on the training images.
    outliers : for outlier exposure: near, middle, far or noise, which are drawn for pictograms (None: near), or a folder
        of images that are not normal. No test image may be among them.
    n_outliers : None: 2000 drawn ones, or all of the folder.
    n_images, kappa, sigma, balanced : of `pandalib.segment.SPADE`; sigma also of the memory bank.
    bf16 : adapt and score in bfloat16.

    Returns
    -------
    dict with the keys task, method, tier, backbone, weights_sha256, seed, n_train, n_test, roc_auc, pixel_roc_auc,
    pro, seconds, peak_rss_mb, history. What does not apply is None; history is a list, one record per checkpoint.
    pixel_roc_auc and pro are those of spade and bank, where masks tell anomalous from normal pixels.

    Raises
    ------
    ValueError, OSError naming what was given and what was expected.
    """
    start = time.perf_counter()
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: choose one of {', '.join(METHODS)}.")
    if tier not in tiers.TIERS:
        raise ValueError(f"tier {tier!r} is unknown: choose one of {', '.join(tiers.TIERS)}.")
    defaults = tiers.TIERS[tier]
    if task.startswith(("pictograms:", "surfaces:")):  # drawn images have a size of their own
        resize = None
    else:
        size, resize = size or defaults.size, defaults.resize if size is None else None
    data = load_task(
        task, seed=seed, n_train=n_train, n_test=n_test, size=size, resize=resize, missing_masks=missing_masks, level=level
    )
    network = None
    if method not in WITHOUT_BACKBONE:
        name = backbone or defaults.backbone
        default_weights = defaults.weights if name == defaults.backbone else "imagenet"
        network = load_backbone(name, weights or default_weights, last=last or defaults.last, seed=seed)
    cache = None if tier == "embedded" else FeatureCache()
    strangers = outliers_of(data, outliers, n_outliers, level=level, resize=resize, seed=seed) if method == "oe" else None
    history: list[dict] = []
    detector = _detector(
        method, network, data, history, cache=cache, pace=defaults.pace, epochs=epochs, lr=lr, clip=clip, strength=strength,
        fisher=fisher, fisher_images=fisher_images, outliers=strangers, n_images=n_images, kappa=kappa, sigma=sigma, balanced=balanced, seed=seed, bf16=bf16,
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
        seconds=round(time.perf_counter() - start, 3),
        peak_rss_mb=round(peak_rss_mb(), 1),
        history=history,
    )


def _detector(
    method, backbone, data, history, *, cache, pace, epochs, lr, clip, strength, fisher, fisher_images, outliers, n_images, kappa, sigma, balanced, seed, bf16
):  # fmt: skip
    """The unfitted detector of a method, which will fill `history` while it is fitted."""
    if method == "pixels":
        return PixelKNN()
    if method in ("dn2", "whitened"):
        return DN2(backbone, whiten=method == "whitened", cache=cache)
    if method in LAYERS:
        stages = [name for part in (backbone.stem, backbone.head) for name, _ in part.named_children()]
        layers = [name for name in LAYERS[method] if name in stages]
        if not layers:
            raise ValueError(f"method {method!r} compares {', '.join(LAYERS[method])}, and {backbone.name} up to {backbone.last} has none of them: choose a later last=.")
        if method == "bank":
            return MemoryBank(backbone, layers=layers, sigma=sigma, seed=seed)
        return SPADE(backbone, layers=layers, n_images=n_images, kappa=kappa, sigma=sigma, balanced=balanced, cache=cache)
    if method == "svdd":
        options = {key: value for key, value in (("epochs", epochs), ("lr", lr)) if value is not None}
        detector = DeepSVDD(seed=seed, **options)
        step = max(1, detector.epochs // CHECKPOINTS)
        detector.on_epoch = lambda done: history.append(_svdd_record(done, data)) if done.epoch % step == 0 or done.epoch == detector.epochs else None
        return detector
    epochs = epochs_for(getattr(pace, WORK[method]), len(data.train)) if epochs is None else epochs
    if method == "oe":
        return OutlierExposure(
            backbone, outliers, epochs=epochs, lr=pace.exposure_lr if lr is None else lr, clip=pace.exposure_clip if clip is None else clip, seed=seed,
            on_epoch=_exposure_recorder(backbone, data, history, cache, bf16, every=max(1, epochs // CHECKPOINTS), last=epochs), bf16=bf16, cache=cache,
        )  # fmt: skip
    usual_lr = pace.ewc_lr if method == "ewc" else pace.lr
    options = dict(
        epochs=epochs, lr=usual_lr if lr is None else lr, clip=pace.clip if clip is None else clip, every=max(1, epochs // CHECKPOINTS), seed=seed, bf16=bf16,
        cache=cache, on_checkpoint=_recorder(backbone, data, history, cache, bf16),
    )  # fmt: skip
    if method == "ses":
        return SampleWise(backbone, **options)
    penalty = None
    if method == "ewc":
        penalty = EWC(backbone, pace.strength if strength is None else strength, fisher_of(backbone, data.train, fisher, fisher_images, seed=seed))
    return Adapted(backbone, penalty=penalty, **options)


def fisher_of(backbone: Backbone, normal_images, file: str | None = None, images: str | None = None, *, size: int | None = None, seed: int = 0) -> Fisher:
    """The Fisher information for EWC, from the best source at hand.

    Parameters
    ----------
    file : as written by `Fisher.save`; refused when it belongs to other weights.
    images : a folder with one folder of images per class. A whole network predicts on them; a cut one is first given a
        linear classifier of those classes.
    normal_images : uint8 (N, 3, H, W); without file and folder a whole network predicts on these, the embedded network
        on its own pretraining task.

    Raises ValueError when both are given, when there is neither a classifier nor a folder, or the file belongs to other weights.
    """
    from pandalib.sources.folders import labelled_images

    if file is not None and images is not None:
        raise ValueError(f"fisher={file!r} and fisher_images={images!r}: give one of them.")
    if file is not None:
        return Fisher.load(file, backbone)
    if images is not None:
        pictures, labels = labelled_images(images, size=size or np.shape(normal_images[:1])[-1])
        classifier = backbone.classifier or linear_probe(backbone, pictures, labels, seed=seed)
        return fisher_information(backbone, pictures, classifier=classifier, seed=seed)
    if backbone.name == EMBEDDED and backbone.n_classes is not None and backbone.classifier is not None:
        return upstream_fisher(backbone)
    if backbone.classifier is None:
        raise ValueError(f"{backbone.name} up to {backbone.last} has no classifier, so EWC needs fisher_images=FOLDER (one folder of images per class) or fisher=FILE.")
    return fisher_information(backbone, normal_images, seed=seed)


def outliers_of(data: OneClassTask, outliers: str | None = None, n: int | None = None, *, level: str | None = None, resize: int | None = None, seed: int = 0):
    """Outliers for a task, at the size of its images: drawn ones for pictograms, or those of a folder.

    Parameters
    ----------
    outliers : one of `pandalib.sources.outliers.KINDS`, or a folder; None: "near" for pictograms, and for others there
        is no default.
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
        return load_outliers(outliers or "near", N_OUTLIERS if n is None else n, seed=seed, **options)
    if not os.path.exists(os.path.expanduser(outliers)):
        raise ValueError(f"outliers {outliers!r} are unknown: choose one of {', '.join(KINDS)} (for pictograms), or a folder of images.")
    images = outlier_folder(outliers, n, size=np.shape(data.train[:1])[-1], resize=resize, seed=seed)
    check_unseen(images, data)
    return images


def _recorder(backbone: Backbone, data: OneClassTask, history: list[dict], cache: FeatureCache | None, bf16: bool):
    """A callback that measures each checkpoint on the test images. Its ROC-AUC is for looking at: nothing is chosen by it."""
    train, test = (backbone.stem_features(images, cache=cache) for images in (data.train, data.test))
    centre = backbone.head_features(train, bf16=bf16).mean(axis=0)

    def record(checkpoint) -> None:
        gallery, features = (checkpoint.backbone.head_features(stem, bf16=bf16) for stem in (train, test))
        history.append(dict(epoch=checkpoint.epoch) | diagnose(gallery, features, data.labels, centre=centre))

    return record


def _exposure_recorder(backbone: Backbone, data: OneClassTask, history: list[dict], cache: FeatureCache | None, bf16: bool, *, every: int, last: int):
    """As `_recorder`, for outlier exposure: the loss is that of training, and the ROC-AUC that of the detector's own scores."""
    train, test = (backbone.stem_features(images, cache=cache) for images in (data.train, data.test))

    def record(done) -> None:
        if done.epoch % every and done.epoch != last:
            return
        gallery, features = (done.detector.backbone_.head_features(stem, bf16=bf16) for stem in (train, test))
        found = diagnose(gallery, features, data.labels) | dict(loss=done.loss, roc_auc=roc_auc(data.labels, done.detector.score_features(features)))
        history.append(dict(epoch=done.epoch) | found)

    return record


def _svdd_record(done, data: OneClassTask) -> dict:
    features = done.detector.features(data.test)
    scores = np.square(features - done.detector.centre_.numpy()).mean(axis=1)
    anomalous = data.labels.astype(bool)
    return dict(
        epoch=done.epoch, loss=None if done.epoch == 0 else done.loss, roc_auc=roc_auc(data.labels, scores),
        feature_variance=feature_variance(features), effective_rank=effective_rank(features),
        normal_distance=float(scores[~anomalous].mean()), anomalous_distance=float(scores[anomalous].mean()),
    )  # fmt: skip


def peak_rss_mb() -> float:
    """The most memory this process has held so far, in MiB."""
    try:  # Linux: there the other figure begins with what the parent held when it started this process
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1024**2)  # Linux counts kilobytes, macOS bytes
