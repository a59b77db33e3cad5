"""An inspector's network adapted to normal images: with EWC, or stopped early (`pandalib.PANDA`).

A network that was trained on an image finds it more normal than any new one, so a threshold from
such images would promise too much. Half of the normal images adapt the network; the others alone
set the scales and the threshold. Near-duplicates stay in the same half.
"""

from __future__ import annotations

import numpy as np
import torch

from pandalib.backbones import Backbone
from pandalib.experiments.config import TIERS
from pandalib.methods.ewc import EWC
from pandalib.methods.panda import epochs_for, fit_compactness
from pandalib.weights import EMBEDDED

KINDS = ("ewc", "early")
MOST = 1000  # images to adapt to: their activations are in memory


def two_halves(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images to adapt to, at most half of them, and of the others, ascending.

    Drawn with `seed`, groups (N,) of near-duplicates as a whole.
    """
    size = np.bincount(groups)
    adapting = np.zeros(len(groups), bool)
    for group in np.argsort(np.random.Philox(seed).random_raw(len(size)), kind="stable"):
        if adapting.sum() + size[group] <= len(groups) // 2:
            adapting |= groups == group
    return np.flatnonzero(adapting), np.flatnonzero(~adapting)


def adapt(
    backbone: Backbone, frozen_features: torch.Tensor, kind: str, *, seed: int, progress: bool
) -> Backbone:
    """The network adapted at the pace of its tier; the one that is given stays as it is.

    "early" stops after a fixed number of minibatches; "ewc" goes on longer, held back by a penalty
    that weighs all parameters alike.
    """
    pace = TIERS["embedded" if backbone.name == EMBEDDED else "standard"].pace
    ewc = kind == "ewc"
    checkpoints = fit_compactness(
        backbone,
        frozen_features,
        epochs=epochs_for(pace.long if ewc else pace.early, len(frozen_features)),
        lr=pace.ewc_lr if ewc else pace.lr,
        max_grad_norm=pace.max_grad_norm,
        penalty=EWC(backbone, pace.ewc_lambda, None) if ewc else None,
        seed=seed,
        checkpoint_every=None,
        progress=progress,
    )
    return checkpoints[-1]
