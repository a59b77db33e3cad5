"""Tiers: the same notebooks on embedded, standard or paper-sized networks and images.

No result of one tier may be taken for another's, so every notebook prints `banner(...)` first.
"""

from __future__ import annotations

import os
from typing import NamedTuple

_chosen: Tier | None = None


class Pace(NamedTuple):
    """How fast and how long a tier adapts. Work is counted in minibatches of 32, whatever the number of images."""

    lr: float
    max_grad_norm: float
    early: int  # fixed early stopping
    sample_wise: int  # how far the checkpoints of sample-wise stopping reach
    long: int  # compactness without a stop, and EWC
    ewc_lr: float  # EWC's own learning rate: lambda times the largest F bounds what is stable
    ewc_lambda: float  # lambda of EWC
    exposure: int  # outlier exposure, minibatches of 32 normal images and 32 outliers
    exposure_lr: float
    exposure_max_grad_norm: float


class Tier(NamedTuple):
    """What a notebook works on unless it is told otherwise."""

    name: str
    backbone: str
    weights: str
    last: str | None  # the stage after which the network is cut; None: whole
    size: int  # side of an image in pixels
    resize: (
        int | None
    )  # of the shorter side before the centre crop; None: as `size`, so that no border is lost
    task: str
    needs: str
    pace: Pace


# The paper's pace is the official one: 15 epochs of 5,000 images early, 50 epochs with EWC. The embedded one was measured
# on other symbols than the ten (`python tools/adaptation_table.py --tune`).
PAPER = Pace(
    lr=1e-2,
    max_grad_norm=1e-3,
    early=2300,
    sample_wise=7800,
    long=7800,
    ewc_lr=1e-2,
    ewc_lambda=1e4,
    exposure=7800,
    exposure_lr=1e-1,
    exposure_max_grad_norm=1e-3,
)
EMBEDDED = Pace(
    lr=0.25,
    max_grad_norm=0.1,
    early=39,
    sample_wise=52,
    long=260,
    ewc_lr=0.08,
    ewc_lambda=3000.0,
    exposure=117,
    exposure_lr=0.05,
    exposure_max_grad_norm=1.0,
)
TIERS = {
    "embedded": Tier(
        "embedded",
        "glyphs_resnet4",
        "embedded",
        None,
        64,
        None,
        "pictograms:star",
        "nothing: no network, no GPU",
        EMBEDDED,
    ),
    "standard": Tier(
        "standard",
        "resnet18",
        "imagenet",
        None,
        224,
        None,
        "",
        "one download of weights, a laptop, a folder of images",
        PAPER,
    ),
    "paper": Tier(
        "paper", "resnet152", "imagenet", None, 224, 256, "", "weights, the data sets, a GPU", PAPER
    ),
}


def use(name: str, **changes) -> Tier:
    """Choose the tier for this session; `changes` replace single fields, for example `task="folder:photos:good"`.

    Raises ValueError for a name that is none of embedded, standard, paper.
    """
    global _chosen
    if name not in TIERS:
        raise ValueError(f"tier {name!r} is unknown: choose one of {', '.join(TIERS)}.")
    _chosen = TIERS[name]._replace(**changes)
    return _chosen


def current_tier() -> Tier:
    """The tier chosen by `use`, else by PANDALIB_TIER and PANDALIB_TASK, else embedded.

    Raises ValueError when the tier has no images of its own and none were named.
    """
    if _chosen is not None:
        tier = _chosen
    else:
        name = os.environ.get("PANDALIB_TIER") or "embedded"
        if name not in TIERS:
            raise ValueError(
                f"PANDALIB_TIER={name!r} is unknown: choose one of {', '.join(TIERS)}."
            )
        tier = TIERS[name]
        if os.environ.get("PANDALIB_TASK"):
            tier = tier._replace(task=os.environ["PANDALIB_TASK"])
    if not tier.task:
        raise ValueError(
            f"tier {tier.name!r} brings no images of its own: name some, as in PANDALIB_TASK=cifar10:airplane or folder:PATH:CLASS, "
            f"or pandalib.use({tier.name!r}, task='cifar10:airplane')."
        )
    return tier


def banner(tier: Tier, task=None, backbone=None) -> None:
    """Print what the numbers below were made with: tier, images, network, hash of its weights, versions."""
    from pandalib.doctor import version_of

    print(f"tier      {tier.name} (needs {tier.needs})")
    if task is not None:
        print(
            f"images    {task.name}: {len(task.train)} normal to learn from, {len(task.test)} to test"
        )
    if backbone is not None:
        print(
            f"network   {backbone.name} up to {backbone.last}, weights SHA-256 {backbone.weights_sha256[:12]}"
        )
    print(
        "versions  "
        + ", ".join(
            f"{name} {version_of(name)}" for name in ("torch", "torchvision", "numpy", "faiss-cpu")
        )
    )
