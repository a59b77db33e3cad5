"""The history of a run: what is measured at its checkpoints.

The ROC-AUC in it is for looking at. Nothing is chosen by it, least of all the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pandalib.methods.panda import Checkpoint, diagnose, effective_rank, feature_variance
from pandalib.backbones import Backbone
from pandalib.methods.outlier_exposure import ExposureEpoch
from pandalib.metrics import roc_auc
from pandalib.methods.deep_svdd import SVDDEpoch
from pandalib.datasets.load import OneClassTask


def adaptation_recorder(
    backbone: Backbone,
    data: OneClassTask,
    history: list[dict],
    *,
    cache,
    bf16: bool,
    k: int,
    checkpoint_every: int,
    last: int,
) -> Callable[[Checkpoint], None]:
    """A callback of `adapt` that measures every `every`-th epoch, the first and the `last` on the test images."""
    train, test = (
        backbone.frozen_features(images, cache=cache) for images in (data.train, data.test)
    )
    centre = None

    def record(checkpoint: Checkpoint) -> None:
        nonlocal centre
        if not _due(checkpoint.epoch, checkpoint_every, last):
            return
        gallery, features = (
            checkpoint.backbone.features_from(stem, bf16=bf16) for stem in (train, test)
        )
        if (
            centre is None
        ):  # the first checkpoint is the pretrained network; a run that goes on elsewhere starts later
            centre = (
                gallery.mean(axis=0)
                if checkpoint.epoch == 0
                else backbone.features_from(train, bf16=bf16).mean(axis=0)
            )
        history.append(
            dict(epoch=checkpoint.epoch)
            | diagnose(gallery, features, data.labels, centre=centre, k=k)
        )

    return record


def exposure_recorder(
    backbone: Backbone,
    data: OneClassTask,
    history: list[dict],
    *,
    cache,
    bf16: bool,
    checkpoint_every: int,
    last: int,
) -> Callable[[ExposureEpoch], None]:
    """The same for outlier exposure: the loss is that of training, and the ROC-AUC that of the detector's own scores."""
    train, test = (
        backbone.frozen_features(images, cache=cache) for images in (data.train, data.test)
    )

    def record(done: ExposureEpoch) -> None:
        if not _due(done.epoch, checkpoint_every, last):
            return
        gallery, features = (
            done.detector.backbone_.features_from(stem, bf16=bf16) for stem in (train, test)
        )
        found = diagnose(gallery, features, data.labels) | dict(
            loss=done.loss, roc_auc=roc_auc(data.labels, done.detector.score_features(features))
        )
        history.append(dict(epoch=done.epoch) | found)

    return record


def svdd_recorder(
    data: OneClassTask, history: list[dict], *, checkpoint_every: int, last: int
) -> Callable[[SVDDEpoch], None]:
    """The same for DeepSVDD, whose score is the distance to its centre."""

    def record(done: SVDDEpoch) -> None:
        if _due(done.epoch, checkpoint_every, last):
            history.append(svdd_record(done, data))

    return record


def svdd_record(done: SVDDEpoch, data: OneClassTask) -> dict:
    features = done.detector.features(data.test)
    scores = np.square(features - done.detector.centre_.numpy()).mean(axis=1)
    anomalous = data.labels.astype(bool)
    return dict(
        epoch=done.epoch,
        loss=None if done.epoch == 0 else done.loss,
        roc_auc=roc_auc(data.labels, scores),
        feature_variance=feature_variance(features),
        effective_rank=effective_rank(features),
        normal_distance=float(scores[~anomalous].mean()),
        anomalous_distance=float(scores[anomalous].mean()),
    )


def _due(epoch: int, checkpoint_every: int, last: int) -> bool:
    return epoch % checkpoint_every == 0 or epoch == last
