"""For `test_determinism.py`: everything that is computed, small, as arrays in one file.

    python everything.py FOLDER [--kill]

writes FOLDER/found.npz; its keys are the lines of the table in docs/testing.md. With `--kill` the
process goes on to an adaptation with checkpoints in FOLDER/killed, and is killed in the middle of
it. A process that finds such a folder resumes it.
"""

import os
import signal
import sys
from pathlib import Path

os.environ["PANDALIB_QUIET"] = "1"  # before pandalib is imported: no bars

import numpy as np
import torch

from pandalib import (
    EWC,
    KNN,
    SPADE,
    Backbone,
    FeatureCache,
    PatchCore,
    bootstrap_interval,
    fisher_information,
    leave_one_out_scores,
    load_backbone,
    load_task,
    pixel_roc_auc,
    pro,
    roc_auc,
    run,
)
from pandalib.methods.knn import kmeans_gallery
from pandalib.methods.panda import fit_compactness

SETTINGS = dict(epochs=4, lr=0.25, max_grad_norm=0.1, progress=False)
IMAGES = dict(n_train=70, n_test=6)


def flat(parts) -> np.ndarray:
    return np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])


def of_features(network: Backbone, images: np.ndarray, folder: Path) -> dict[str, np.ndarray]:
    one = [network.features(images[[i]]) for i in range(8)]
    cache = FeatureCache(folder / "cache")
    network.features(images, cache=cache)  # the second time they are read from there
    return {
        "features, one image at a time": np.concatenate(one),
        "features, all images at once": network.features(images)[:8],
        "features, from the float16 cache": network.features(images, cache=cache)[:8],
    }


def of_scores(gallery: np.ndarray, queries: np.ndarray) -> dict[str, np.ndarray]:
    plain, whitened = KNN().fit(gallery), KNN(whiten=True).fit(gallery)
    normalised = KNN(normalise=True).fit(gallery).score(queries)
    tiled = np.tile(gallery, (8, 1)) + np.arange(8).repeat(len(gallery))[:, None] / 10
    return {
        "kNN scores": flat([plain.score(queries), leave_one_out_scores(gallery), normalised]),
        "kNN scores, one query at a time": flat([plain.score(query[None]) for query in queries]),
        "kNN scores, all queries at once": plain.score(queries),
        "k-means gallery": kmeans_gallery(tiled, 20),
        "whitened scores": flat([whitened.score(queries), whitened.leave_one_out()]),
    }


def of_checkpoints(checkpoints) -> np.ndarray:
    """Losses and all parameters of the last checkpoint."""
    parameters = checkpoints[-1].trainable.parameters()
    return flat([checkpoints.losses, *(parameter.numpy() for parameter in parameters)])


def of_training(network: Backbone, frozen: torch.Tensor, folder: Path) -> dict[str, np.ndarray]:
    fisher = fisher_information(network, frozen[:10], progress=False)
    penalty = EWC(network, 3000.0, fisher)
    with_ewc = fit_compactness(network, frozen, penalty=penalty, **SETTINGS)
    found = {
        "adaptation": of_checkpoints(fit_compactness(network, frozen, **SETTINGS)),
        "Fisher information": flat(fisher.values.values()),
        "adaptation with EWC": of_checkpoints(with_ewc),
    }
    killed = folder / "killed"
    if killed.exists():
        resumed = fit_compactness(network, frozen, folder=killed, **SETTINGS)
        found["adaptation, resumed"] = of_checkpoints(resumed)
    return found


def of_run(method: str) -> np.ndarray:
    few = dict(outlier_images="far", n_outliers=40) if method == "oe" else {}
    epochs = {} if method == "whitened" else dict(epochs=2, checkpoints=2)
    record = run("pictograms:star", method, **IMAGES, **epochs, **few)
    numbers = [value for checkpoint in record["history"] for value in checkpoint.values()]
    return flat([record["roc_auc"], [value for value in numbers if isinstance(value, float)]])


def everything(folder: Path, network: Backbone, star, frozen) -> dict[str, np.ndarray]:
    weave = load_task("surfaces:weave", n_train=12, n_test=2)
    gallery, queries = network.features(star.train), network.features(star.test)
    found = {
        "drawn images": flat([star.train, star.test, weave.train, weave.test, weave.masks]),
        "features": flat([gallery, queries]),
        "SPADE, maps": SPADE(network).fit(weave.train).maps(weave.test),
        "memory bank, maps": PatchCore(network, progress=False).fit(weave.train).maps(weave.test),
    }
    found |= of_features(network, star.test, folder)
    # Rounded, so that no last digit is passed on from one line of the table to another.
    found |= of_scores(np.round(gallery, 2), np.round(queries, 2))
    scores = np.round(KNN().fit(np.round(gallery, 2)).score(np.round(queries, 2)), 1)
    maps = np.random.default_rng(0).integers(0, 50, size=weave.masks.shape)
    interval = bootstrap_interval(star.labels, scores, n_resamples=50)
    pixels = [pixel_roc_auc(weave.masks, maps), pro(weave.masks, maps)]
    found["metrics"] = flat([roc_auc(star.labels, scores), interval, pixels])
    found |= of_training(network, frozen, folder)
    return found | {
        f"run, {method}": of_run(method) for method in ("whitened", "ses", "oe", "svdd")
    }


def kill(checkpoint) -> None:
    if checkpoint.epoch == 3:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    network, star = load_backbone(), load_task("pictograms:star", **IMAGES)
    frozen = network.frozen_features(star.train).half().float()  # rounded, as above
    np.savez(where / "found.npz", **everything(where, network, star, frozen))
    if "--kill" in sys.argv:
        fit_compactness(network, frozen, folder=where / "killed", on_checkpoint=kill, **SETTINGS)
