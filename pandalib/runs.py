"""One run: one method on one task, described by one flat record (the JSON of `python -m pandalib run`)."""

from __future__ import annotations

import resource
import sys
import time

from pandalib import tiers
from pandalib.backbones import load_backbone
from pandalib.detectors import DN2, PixelKNN
from pandalib.metrics import roc_auc
from pandalib.tasks import load_task

# Each method makes an unfitted detector from a backbone; one that needs no backbone says so in WITHOUT_BACKBONE.
METHODS = {
    "pixels": lambda backbone, seed: PixelKNN(),
    "dn2": lambda backbone, seed: DN2(backbone),
    "whitened": lambda backbone, seed: DN2(backbone, whiten=True),
}
WITHOUT_BACKBONE = {"pixels"}


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
) -> dict:
    """Fit `method` on the normal images of `task`, score its test images, measure.

    Parameters
    ----------
    task, seed, n_train, n_test, size, missing_masks, level : as in `load_task`.
    method : one of `METHODS`.
    tier : gives the defaults of backbone, weights, last and size.
    backbone, weights, last : as in `load_backbone`. A backbone without weights gets ImageNet's.

    Returns
    -------
    dict with the keys task, method, tier, backbone, weights_sha256, seed, n_train, n_test, roc_auc, pixel_roc_auc,
    pro, seconds, peak_rss_mb, history. What does not apply is None; history is a list, one record per checkpoint.

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
    if not task.startswith("pictograms:"):  # drawn images have the size that they have
        size, resize = size or defaults.size, defaults.resize if size is None else None
    else:
        resize = None
    data = load_task(
        task, seed=seed, n_train=n_train, n_test=n_test, size=size, resize=resize, missing_masks=missing_masks, level=level
    )
    network = None
    if method not in WITHOUT_BACKBONE:
        name = backbone or defaults.backbone
        default_weights = defaults.weights if name == defaults.backbone else "imagenet"
        network = load_backbone(name, weights or default_weights, last=last or defaults.last, seed=seed)
    detector = METHODS[method](network, seed).fit(data.train)
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
        pixel_roc_auc=None,
        pro=None,
        seconds=round(time.perf_counter() - start, 3),
        peak_rss_mb=round(peak_rss_mb(), 1),
        history=[],
    )


def peak_rss_mb() -> float:
    """The most memory this process has held so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1024**2)  # Linux counts kilobytes, macOS bytes
