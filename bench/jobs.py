"""What a process of `bench/peers.py` does: one side of a comparison, alone with its memory. Not
started by hand.

    python bench/jobs.py JOB FOLDER

reads FOLDER/in.npz and in.json and writes out.npz and out.json. A job is a function of arrays and
settings that returns arrays and facts. Importing does not count in any of the seconds, and each
timed call has had one before it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
BATCH = 32  # anomalib's own


def main(job: str, folder: Path) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with np.load(folder / "in.npz", allow_pickle=False) as found:
        arrays = dict(found)
    settings = json.loads((folder / "in.json").read_text(encoding="utf-8"))
    arrays, facts = JOBS[job](arrays, **settings)
    np.savez(folder / "out.npz", **arrays)
    (folder / "out.json").write_text(json.dumps(facts), encoding="utf-8")


def measured(function, *arguments):
    """Seconds of one call, the most memory in MiB that the process held above what it began with,
    and the value.
    """
    from pandalib.experiments.run import peak_rss_mb, reset_peak_rss

    gc.collect()
    with suppress(
        OSError, AttributeError
    ):  # glibc keeps what was freed: then it would not count again
        ctypes.CDLL(None).malloc_trim(0)
    reset_peak_rss()
    before, start = peak_rss_mb(), time.perf_counter()
    value = function(*arguments)
    return time.perf_counter() - start, peak_rss_mb() - before, value


# ---------------------------------------------------------------- kNN scores


def pyod_knn(arrays, k: int, method: str, repeat: int):
    """pyod's KNN: fit, which scores the gallery against itself as well, and the scores of the
    queries.
    """
    from pyod.models.knn import KNN

    return _knn(
        lambda gallery: KNN(n_neighbors=k, method=method).fit(gallery),
        lambda fitted: fitted.decision_scores_,
        lambda fitted, rows: fitted.decision_function(rows),
        arrays,
        repeat,
    )


def pandalib_knn(arrays, k: int, repeat: int):
    """The same of pandalib."""
    from pandalib import KNN

    def fit(gallery):
        fitted = KNN(k).fit(gallery)
        fitted.own_scores = fitted.leave_one_out()
        return fitted

    return _knn(
        fit,
        lambda fitted: fitted.own_scores,
        lambda fitted, rows: fitted.score(rows),
        arrays,
        repeat,
    )


def _knn(fit, own, score, arrays, repeat: int):
    score(fit(arrays["gallery"][:50]), arrays["queries"][:50])  # the libraries' first call
    taken = {"fit": [], "score": []}
    for _ in range(repeat):
        spent, memory, fitted = measured(fit, arrays["gallery"])
        taken["fit"].append(spent)
        spent, _, scores = measured(score, fitted, arrays["queries"])
        taken["score"].append(spent)
    return {"scores": scores, "own": own(fitted)}, {
        **{key: float(np.median(values)) for key, values in taken.items()},
        "fit_mb": memory,
    }


# ---------------------------------------------------------------- maps


class OfAnomalib:
    """anomalib's networks without its engine: fit(images) and maps(images), from uint8 (n, 3, H,
    W).
    """

    def __init__(self, network, method: str, layers, coreset_ratio: float | None):
        import torch

        torch.manual_seed(0)  # PaDiM draws its features, PatchCore its first patch
        if method == "padim":
            from anomalib.models.image.padim.torch_model import PadimModel

            self.model = PadimModel(
                backbone=network, layers=list(layers), pre_trained=False, n_features=100
            )
        else:
            from anomalib.models.image.patchcore.torch_model import PatchcoreModel

            self.model = PatchcoreModel(
                backbone=network, layers=list(layers), pre_trained=False, num_neighbors=9
            )
        self.coreset_ratio = coreset_ratio

    def fit(self, images):
        import torch

        self.model.train()
        with torch.no_grad():
            for batch in _batches(images):
                self.model(batch)
            self.model.fit() if self.coreset_ratio is None else self.model.subsample_embedding(
                self.coreset_ratio
            )
        self.model.eval()
        return self

    def maps(self, images):
        import torch

        with torch.no_grad():
            found = [self.model(batch) for batch in _batches(images)]
        return torch.cat([part.anomaly_map[:, 0] for part in found]).numpy(), torch.cat(
            [part.pred_score.flatten() for part in found]
        ).numpy()


class OfPandalib:
    """pandalib's detectors, the same two calls."""

    def __init__(
        self,
        backbone,
        method: str,
        layers,
        coreset_ratio: float | None,
        n_images: int | None = None,
    ):
        from pandalib import SPADE, PaDiM, PatchCore

        if method == "spade":
            self.detector = SPADE(backbone, layers=layers, n_images=n_images, balanced=True)
        elif method == "padim":
            self.detector = PaDiM(backbone, layers=layers, n_features=100, progress=False)
        else:
            self.detector = PatchCore(
                backbone, layers=layers, coreset_ratio=coreset_ratio, progress=False
            )

    def fit(self, images):
        self.detector.fit(images)
        return self

    def maps(self, images):
        from pandalib.methods.distances import image_scores

        maps = self.detector.maps(images)
        return maps, image_scores(maps)


class OfInspector:
    """pandalib's inspector with its defaults, the same two calls."""

    def __init__(self, backbone, layers, **not_asked):
        from pandalib import Inspector

        self.inspector = Inspector(backbone, layers=layers, progress=False)

    def fit(self, images):
        self.inspector.fit(images)
        return self

    def maps(self, images):
        found = list(self.inspector.inspect(images))
        return np.stack([seen.map for seen in found]), np.array([seen.score for seen in found])


def _batches(images):
    """As a reader of anomalib's documentation would: scaled to 0..1, less ImageNet's mean, over its
    deviation.
    """
    import torch

    mean, std = (
        torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1),
    )
    for start in range(0, len(images), BATCH):
        yield (torch.from_numpy(images[start : start + BATCH]).float() / 255 - mean) / std


def torchvision_network(weights: str | None):
    """The network as torchvision builds it, with the same weights: this project's own (None), or a
    file for ResNet-18.
    """
    from pandalib.backbones import embedded_network
    from pandalib.weights import read_state, verify_embedded

    state = read_state(verify_embedded() if weights is None else Path(weights))
    if weights is None:
        network = embedded_network(len(state["fc.weight"]))
    else:
        import torchvision

        network = torchvision.models.resnet18(weights=None)
    network.load_state_dict(
        state, strict=weights is None
    )  # a file may end before layer4, which nobody asks for
    return network.eval()


def fitted(make, images):
    return make().fit(images)


def maps(arrays, *, side: str, weights: dict[str, str | None], **settings):
    """One detector on all sets of images: arrays `name/train`, `name/test`, `weights` by name."""
    from pandalib import load_backbone

    found, facts = {}, {}
    for number, (name, file) in enumerate(weights.items()):
        if side != "anomalib":
            network = (
                load_backbone(device="cpu")
                if file is None
                else load_backbone("resnet18", file, truncate_after="layer3", device="cpu")
            )
            make = partial(OfPandalib if side == "pandalib" else OfInspector, network, **settings)
        else:
            network = torchvision_network(file)
            make = partial(OfAnomalib, network, **settings)
        train, test = arrays[f"{name}/train"], arrays[f"{name}/test"]
        if number == 0:
            make().fit(train[:20]).maps(test[:2])
        fit, fit_mb, detector = measured(fitted, make, train)
        score, score_mb, (found[f"{name}/maps"], found[f"{name}/scores"]) = measured(
            detector.maps, test
        )
        facts[name] = dict(fit=fit, score=score / len(test), fit_mb=fit_mb, score_mb=score_mb)
        del detector
    return found, facts


# ---------------------------------------------------------------- metrics


def anomalib_metrics(arrays, repeat: int):
    """anomalib's AUROC and AUPRO. `i/masks` and `i/maps` give pixel figures, `i/labels` and
    `i/scores` image figures.
    """
    import torch
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.auroc import _AUROC

    def of(metric, values, truth):
        metric.update(values, truth)
        return float(metric.compute())

    facts = {}
    for case in dict.fromkeys(key.split("/")[0] for key in arrays):
        for figure, metric, values, truth in (
            ("roc_auc", _AUROC, "scores", "labels"),
            ("pixel_roc_auc", _AUROC, "maps", "masks"),
            ("pro", _AUPRO, "maps", "masks"),
        ):
            if f"{case}/{values}" in arrays:
                parts = [torch.from_numpy(arrays[f"{case}/{key}"]) for key in (values, truth)]
                parts[1] = parts[1].long() if figure != "pro" else parts[1].float()
                taken = [measured(of, metric(), *parts) for _ in range(repeat)]
                facts[f"{case}/{figure}"] = dict(
                    seconds=float(np.median([spent for spent, *_ in taken])), value=taken[-1][2]
                )
    return {}, facts


JOBS = {
    "pyod_knn": pyod_knn,
    "pandalib_knn": pandalib_knn,
    "maps": maps,
    "anomalib_metrics": anomalib_metrics,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
