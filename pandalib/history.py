"""The history of a run: what is measured at its checkpoints.

The ROC-AUC in it is for looking at. Nothing is chosen by it, least of all the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pandalib.adapt import Checkpoint, diagnose, effective_rank, feature_variance
from pandalib.backbones import Backbone
from pandalib.exposure import ExposureEpoch
from pandalib.metrics import roc_auc
from pandalib.svdd import SVDDEpoch
from pandalib.tasks import OneClassTask


def adaptation_recorder(
    backbone: Backbone, data: OneClassTask, history: list[dict], *, cache, k: int, every: int, last: int
) -> Callable[[Checkpoint], None]:
    """A callback of `adapt` that measures every `every`-th epoch, the first and the `last` on the test images."""
    train, test = (backbone.stem_features(images, cache=cache) for images in (data.train, data.test))
    centre = None

    def record(checkpoint: Checkpoint) -> None:
        nonlocal centre
        if not _due(checkpoint.epoch, every, last):
            return
        bf16 = checkpoint.bf16
        gallery, features = (
            checkpoint.backbone.head_features(stem, bf16=bf16) for stem in (train, test)
        )
        if centre is None:  # the first checkpoint is the pretrained network; a run that goes on elsewhere starts later
            first = gallery if checkpoint.epoch == 0 else backbone.head_features(train, bf16=bf16)
            centre = first.mean(axis=0)
        history.append(dict(epoch=checkpoint.epoch) | diagnose(gallery, features, data.labels, centre=centre, k=k))

    return record


def exposure_recorder(
    backbone: Backbone, data: OneClassTask, history: list[dict], *, cache, every: int, last: int
) -> Callable[[ExposureEpoch], None]:
    """The same for outlier exposure: the loss is that of training, and the ROC-AUC that of the detector's own scores."""
    train, test = (backbone.stem_features(images, cache=cache) for images in (data.train, data.test))

    def record(done: ExposureEpoch) -> None:
        if not _due(done.epoch, every, last):
            return
        network, bf16 = done.detector.backbone_, done.detector.bf16_
        gallery, features = (network.head_features(stem, bf16=bf16) for stem in (train, test))
        found = diagnose(gallery, features, data.labels) | dict(loss=done.loss, roc_auc=roc_auc(data.labels, done.detector.score_features(features)))
        history.append(dict(epoch=done.epoch) | found)

    return record


def svdd_recorder(data: OneClassTask, history: list[dict], *, every: int, last: int) -> Callable[[SVDDEpoch], None]:
    """The same for DeepSVDD, whose score is the distance to its centre."""

    def record(done: SVDDEpoch) -> None:
        if _due(done.epoch, every, last):
            history.append(svdd_record(done, data))

    return record


def svdd_record(done: SVDDEpoch, data: OneClassTask) -> dict:
    features = done.detector.features(data.test)
    scores = np.square(features - done.detector.centre_.numpy()).mean(axis=1)
    anomalous = data.labels.astype(bool)
    return dict(
        epoch=done.epoch, loss=None if done.epoch == 0 else done.loss, roc_auc=roc_auc(data.labels, scores),
        feature_variance=feature_variance(features), effective_rank=effective_rank(features),
        normal_distance=float(scores[~anomalous].mean()), anomalous_distance=float(scores[anomalous].mean()),
    )  # fmt: skip


def _due(epoch: int, every: int, last: int) -> bool:
    return epoch % every == 0 or epoch == last
