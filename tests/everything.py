"""For the tests of determinism: everything that is worked out with numbers, small, as arrays in one file.

    python everything.py FOLDER [--kill]

writes FOLDER/found.npz; its keys are the lines of the table in docs/testing.md. With `--kill` the process goes on to an
adaptation that keeps its checkpoints in FOLDER/killed, and is killed in the middle of it. A process that finds such a folder
resumes it.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

os.environ["PANDALIB_QUIET"] = "1"
SETTINGS = dict(epochs=4, lr=0.25, clip=0.1, progress=False)
RECORDED = ("pixels", "dn2", "whitened", "early", "ses", "oe", "svdd")  # methods of a run; those on maps and EWC have lines of their own


def flat(parts) -> np.ndarray:
    return np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])


def of_checkpoints(checkpoints) -> np.ndarray:
    """Losses and all parameters of the last checkpoint."""
    return flat([checkpoints.losses, *(parameter.numpy() for parameter in checkpoints[-1].head.parameters())])


def everything(folder: Path) -> dict[str, np.ndarray]:
    from pandalib import EWC, KNN, SPADE, FeatureCache, MemoryBank, bootstrap_interval, fisher_information, leave_one_out_scores
    from pandalib import load_backbone, load_task, pixel_roc_auc, pro, roc_auc, run
    from pandalib.adapt import adapt
    from pandalib.features import kmeans_gallery

    star, weave = load_task("pictograms:star", n_train=70, n_test=6), load_task("surfaces:weave", n_train=12, n_test=2)
    network = load_backbone()
    found = {"drawn images": flat([star.train, star.test, weave.train, weave.test, weave.masks])}
    gallery, queries = (network.features(part) for part in (star.train, star.test))
    found["features"] = flat([gallery, queries])
    found["features, one image at a time"] = np.concatenate([network.features(star.test[[i]]) for i in range(8)])
    found["features, all images at once"] = network.features(star.test)[:8]
    cache = FeatureCache(folder / "cache")
    network.features(star.test, cache=cache)  # the second time they are read from there
    found["features, from the float16 cache"] = network.features(star.test, cache=cache)[:8]
    # From here on the same features for everybody: rounded, so that no last digit is handed down from a line above.
    gallery, queries = np.round(gallery, 2), np.round(queries, 2)
    found["kNN scores"] = flat([KNN().fit(gallery).score(queries), leave_one_out_scores(gallery), KNN(normalise=True).fit(gallery).score(queries)])
    found["kNN scores, one query at a time"] = flat([KNN().fit(gallery).score(query[None]) for query in queries])
    found["kNN scores, all queries at once"] = KNN().fit(gallery).score(queries)
    found["k-means gallery"] = kmeans_gallery(np.tile(gallery, (8, 1)) + np.arange(8).repeat(70)[:, None] / 10, 20)
    model = KNN(whiten=True).fit(gallery)
    found["whitened scores"] = flat([model.score(queries), model.leave_one_out()])
    scores = np.round(KNN().fit(gallery).score(queries), 1)
    maps = np.random.default_rng(0).integers(0, 50, size=weave.masks.shape)
    found["metrics"] = flat([roc_auc(star.labels, scores), bootstrap_interval(star.labels, scores, n_resamples=50), pixel_roc_auc(weave.masks, maps), pro(weave.masks, maps)])
    stem = network.stem_features(star.train).half().float()  # off by a little: the same for everybody
    found["adaptation"] = of_checkpoints(adapt(network, stem, **SETTINGS))
    found["adaptation, bfloat16"] = of_checkpoints(
        adapt(network, stem[:8], bf16=True, **{**SETTINGS, "epochs": 1})  # slow on some processors
    )
    fisher = fisher_information(network, stem[:10], progress=False)
    found["Fisher information"] = flat(fisher.values.values())
    found["adaptation with EWC"] = of_checkpoints(adapt(network, stem, penalty=EWC(network, 3000.0, fisher), **SETTINGS))
    for name, detector in (("SPADE", SPADE(network)), ("memory bank", MemoryBank(network, progress=False))):
        found[f"{name}, maps"] = detector.fit(weave.train).maps(weave.test)
    for method in RECORDED:
        record = run("pictograms:star", method, n_train=70, n_test=6, epochs=2, outliers="far" if method == "oe" else None, n_outliers=40, checkpoints=2)
        numbers = [value for moment in record["history"] for value in moment.values() if isinstance(value, float)]
        found[f"run, {method}"] = flat([record["roc_auc"], numbers])
    resumed = folder / "killed"
    if resumed.exists():
        found["adaptation, resumed"] = of_checkpoints(adapt(network, stem, folder=resumed, **SETTINGS))
    return found


def killed_run(folder: Path) -> None:
    """The adaptation of above, killed by the system's own means when it has done half."""
    from pandalib import load_backbone, load_task
    from pandalib.adapt import adapt

    network = load_backbone()
    stem = network.stem_features(load_task("pictograms:star", n_train=70, n_test=6).train).half().float()

    def kill(checkpoint):
        if checkpoint.epoch == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    adapt(network, stem, folder=folder, on_checkpoint=kill, **SETTINGS)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    np.savez(where / "found.npz", **everything(where))
    if "--kill" in sys.argv:
        killed_run(where / "killed")
