"""What a refactoring must not change: scores, losses, maps and metrics, to the last digit.

    python tools/witness.py --write       compute everything and write tests/witness.json
    python tools/witness.py               compute everything and compare it with that file
    python tools/witness.py ewc runs      compare these groups only

A comparison prints one line for each entry that differs by more than 1e-6 of its largest value and
then exits with 1. One thread, no GPU and a cache folder of its own make the numbers repeatable to
the last bit on one machine; another processor or another torch may change the last digits.

Entries that begin with "real" need small public extracts that are no part of this project
(`--real FOLDER`, default ../shared/real); without them they are skipped. What is too large to be
kept whole is kept as a sketch: each row of numbers multiplied by four fixed random vectors, so
that a change in any one number shows.
"""

from __future__ import annotations

import os

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # before numpy is imported: it reads them once
os.environ.update(CUDA_VISIBLE_DEVICES="", PANDALIB_QUIET="1")
for name in ("PANDALIB_TIER", "PANDALIB_TASK", "PANDALIB_DATA"):
    os.environ.pop(name, None)

import argparse  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from unittest.mock import patch  # noqa: E402

import faiss  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "tests" / "witness.json"
WITHIN = 1e-6

# ------------------------------------------------------------------------------- the library
# The only part that knows where things are and how they are called. Backbones, tasks, Fisher
# information and penalties are handed on as they come; what is compared leaves here as numbers.

sys.path.insert(0, str(ROOT))
import pandalib.experiments.run  # noqa: E402
from pandalib import metrics  # noqa: E402
from pandalib.backbones import load_backbone  # noqa: E402
from pandalib.cache import FeatureCache  # noqa: E402
from pandalib.datasets.folder import labelled_images, write_mvtec  # noqa: E402
from pandalib.datasets.load import load_task  # noqa: E402
from pandalib.datasets.outliers import load_outliers  # noqa: E402
from pandalib.datasets.synthetic.glyphs import draw_batch  # noqa: E402
from pandalib.experiments.fisher import upstream_fisher  # noqa: E402
from pandalib.inspection.inspector import Inspector  # noqa: E402
from pandalib.methods.deep_svdd import DeepSVDD  # noqa: E402
from pandalib.methods.diagnostics import diagnose, effective_rank, feature_variance  # noqa: E402
from pandalib.methods.distances import enlarged, image_scores, nearest_squared  # noqa: E402
from pandalib.methods.ewc import EWC, fisher_information, linear_probe  # noqa: E402
from pandalib.methods.knn import (  # noqa: E402
    DN2,
    KNN,
    PixelKNN,
    kmeans_gallery,
    knn_scores,
    leave_one_out_scores,
    nearest_others,
    squared_distances,
)
from pandalib.methods.outlier_exposure import OutlierExposure  # noqa: E402
from pandalib.methods.panda import (  # noqa: E402
    PANDASES,
    fit_compactness,
    hold_out,
)
from pandalib.methods.panda import sample_wise_scores as pick_checkpoints  # noqa: E402
from pandalib.methods.patchcore import PatchCore, coreset  # noqa: E402
from pandalib.methods.spade import SPADE  # noqa: E402
from pandalib.methods.whitening import Whitening, l2_normalise  # noqa: E402

SURFACES = ("weave", "wood", "leather", "metal", "tiles", "washer")
METHODS = "pixels dn2 whitened compactness early ses ewc oe svdd spade bank".split()


def run_with_scores(task: str, method: str, **options) -> tuple[dict, np.ndarray]:
    """The record of a run, and the scores of the test images that it takes its ROC-AUC from."""
    seen = []

    def roc_auc(labels, scores):
        seen.append(scores)
        return metrics.roc_auc(labels, scores)

    with patch.object(pandalib.experiments.run, "roc_auc", roc_auc):
        record = pandalib.experiments.run.run(task, method, progress=False, **options)
    return record, seen[-1]


def features(network, images, cache_folder=None) -> np.ndarray:
    return network.features(images, cache=cache_folder and FeatureCache(cache_folder))


def layer_maps(network, images, layers) -> dict[str, torch.Tensor]:
    return next(iter(network.iter_layers(images, layers)))


def stem_features(network, images) -> torch.Tensor:
    return network.frozen_features(images)


@torch.no_grad()
def logits(network, images, classifier=None) -> torch.Tensor:
    head = network.trainable(network.for_trainable(network.frozen_features(images)))
    return (classifier or network.classifier)(head)


def adapted(network, images, **options) -> tuple[list, np.ndarray, list]:
    """Losses of the epochs, the centre, and the network at each checkpoint."""
    frozen = network.frozen_features(images)
    found = fit_compactness(network, frozen, progress=False, **options)
    return found.losses, found.centre, list(found)


def adapted_sample_wise(network, train, test, **options) -> dict:
    found = PANDASES(network, progress=False, **options).fit(train)
    return dict(
        losses=found.checkpoints_.losses,
        held_out=found.held_out_,
        curves=found.curves(test),
        held_out_scores=found.held_out_scores_,
        scores=found.score(test),
    )


def fisher_of(network, images, labels=None, **options):
    return fisher_information(network, images, labels, progress=False, **options)


def fisher_values(fisher) -> dict[str, torch.Tensor]:
    return fisher.values


def penalty_gradient(penalty, network) -> list[torch.Tensor]:
    """Of each parameter of the network's head."""
    trainable = network.trainable.requires_grad_(True)
    gradients = torch.autograd.grad(penalty(trainable), list(trainable.parameters()))
    trainable.requires_grad_(False)
    return list(gradients)


def exposed(network, train, outliers, test, **options) -> dict:
    found = OutlierExposure(network, outliers, progress=False, **options).fit(train)
    return dict(
        losses=found.losses_, logits=found.score(test), features=found.backbone_.features(test)
    )


def svdd(train, test, **options) -> dict:
    found = DeepSVDD(progress=False, **options).fit(train)
    return dict(
        losses=found.losses_,
        centre=found.centre_,
        scores=found.score(test),
        features=found.features(test),
    )


def inspector_numbers(found, images) -> dict:
    ranking = found.rank(images)
    return dict(
        threshold=[found.threshold(), found.threshold(0.2)],
        scales=list(found.scales_.values()),
        normal_scores=found.normal_scores_,
        scores=ranking.scores,
        spots=ranking.peaks,
        **ranking.parts,
        maps=thinned(np.stack([finding.map for finding in ranking.top[:3]])),
    )


def inspector(network, normal, **options):
    return Inspector(network, method="spade", progress=False, **options).fit(normal)


# ------------------------------------------------------------------------------ small helpers

SMALL = dict(
    epochs=4, lr=0.25, max_grad_norm=0.1, seed=0
)  # of an adaptation of the embedded network


def numbers(values) -> list[float]:
    """Flat; a float32 by its shortest decimal, which reads back to the same float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().numpy()
    values = np.asarray(values)
    values = values.astype(int) if values.dtype == bool else values
    return [float(str(value)) for value in values.ravel()]


def sketch(rows, n: int = 4) -> np.ndarray:
    """Each row multiplied by n fixed random vectors, in float64: (rows, n)."""
    rows = np.asarray(rows[:].detach() if isinstance(rows, torch.Tensor) else rows[:])
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    raw = np.random.Philox(0).random_raw(rows.shape[1] * n)  # the same in every version of numpy
    return rows @ (raw / 2**64 - 0.5).reshape(-1, n)


def thinned(maps: np.ndarray, side: int = 8) -> np.ndarray:
    """About 8 x 8 of the values of each map."""
    down, across = (size // side for size in maps.shape[1:])
    return maps[:, down // 2 :: down, across // 2 :: across]


def fisher_summary(fisher) -> list[float]:
    """The mean of each parameter's values, then the sum of all."""
    values = [part.double() for part in fisher_values(fisher).values()]
    return [float(part.mean()) for part in values] + [float(sum(part.sum() for part in values))]


def of_run(task: str, method: str, **options):
    """The scores of a run, and all numbers of its record but time and memory."""
    record, scores = run_with_scores(task, method, seed=0, **options)
    yield "scores", scores
    for key in ("n_train", "n_test", "roc_auc", "pixel_roc_auc", "pro"):
        if record[key] is not None:
            yield key, [record[key]]
    for key in record["history"][0] if record["history"] else ():
        values = [moment[key] for moment in record["history"] if moment[key] is not None]
        yield f"history, {key}", values


def named(prefix: str, entries):
    for key, values in entries.items() if isinstance(entries, dict) else entries:
        yield f"{prefix}, {key}", values


def pictures(n_train: int = 40, n_test: int = 2):
    return load_task("pictograms:star", n_train=n_train, n_test=n_test)


def surface(n_train: int = 10, n_test: int = 2, kind: str = "weave"):
    return load_task(f"surfaces:{kind}", n_train=n_train, n_test=n_test, size=64)


def of_maps(detector, task):
    maps = detector.fit(task.train).maps(task.test)
    yield "maps of every fifth image", thinned(maps[::5])
    yield "maps, sketch", sketch(maps)
    yield "image scores", image_scores(maps)


# ------------------------------------------------------------------------------------ entries


def drawn():
    """Images, as far as the methods below depend on them."""
    for spec in ("pictograms:star", "pictograms:star+heart"):
        task = load_task(spec, n_train=6, n_test=1)
        yield f"{spec}, train", sketch(task.train)
        yield f"{spec}, test", sketch(task.test)
        yield f"{spec}, labels", task.labels
    yield "pictograms, hard", sketch(load_task("pictograms:star", n_train=4, level="hard").train)
    for kind in SURFACES:
        task = surface(3, 1, kind)
        yield f"surfaces:{kind}, train", sketch(task.train)
        yield f"surfaces:{kind}, test", sketch(task.test)
        yield f"surfaces:{kind}, masks", sketch(task.masks)
    for kind in ("near", "middle", "far", "noise"):
        yield f"outliers, {kind}", sketch(load_outliers(kind, 6))
    yield "glyphs", sketch(draw_batch(range(8))[0])


def folders():
    """A task written as PNG and read back, at other sizes and by other layouts."""
    with tempfile.TemporaryDirectory() as place:
        folder = write_mvtec(surface(6, 2), Path(place) / "weave")
        for size, resize in ((64, None), (48, 72), (96, None)):
            task = load_task(f"folder:{folder}", size=size, resize=resize)
            yield f"{size} of {resize}, train", sketch(task.train)
            yield f"{size} of {resize}, test", sketch(task.test)
            yield f"{size} of {resize}, masks", sketch(task.masks)
        task = load_task(f"folder:{folder / 'test'}:good", size=32)
        yield "80 to 20, train", sketch(task.train)
        yield "80 to 20, test", sketch(task.test)


def figures():
    """Metrics on scores with ties, and the statistics of features."""
    rng = np.random.default_rng(0)
    labels, scores = rng.random(90) < 0.4, np.round(rng.normal(size=90), 1)
    scores[labels] += 0.8
    normal = scores[~labels]
    yield "roc_auc", [metrics.roc_auc(labels, scores)]
    yield "roc_curve", np.stack(metrics.roc_curve(labels, scores))[:, 1:]  # begins at infinity
    for metric in (metrics.roc_auc, lambda labels, scores: float(scores[labels].mean())):
        yield (
            f"bootstrap_interval, {'roc_auc' if metric is metrics.roc_auc else 'mean'}",
            metrics.bootstrap_interval(labels, scores, metric=metric, n_resamples=200),
        )
    yield "threshold_at", [metrics.threshold_at(normal, rate) for rate in (0.05, 0.1, 0.3, 0.5)]
    masks = np.zeros((4, 24, 30), bool)
    masks[0, 2:9, 3:8] = masks[0, 15:20, 20:29] = masks[1, 8, 8] = masks[2, 4:20, 10:12] = True
    maps = np.round(rng.normal(size=masks.shape) + masks, 1)
    yield "pixel_roc_auc", [metrics.pixel_roc_auc(masks, maps)]
    yield "pro", [metrics.pro(masks, maps, limit=limit) for limit in (0.1, 0.3, 1.0)]
    curve = np.stack(metrics.pro_curve(masks, maps))
    yield "pro_curve", curve[:, np.isfinite(curve).all(axis=0)]
    gallery, queries = rng.normal(size=(60, 24)), rng.normal(size=(90, 24)) * 1.5
    yield "feature_variance", [feature_variance(gallery), feature_variance(gallery[:5])]
    yield "effective_rank", [effective_rank(gallery), effective_rank(gallery[:5])]
    found = diagnose(gallery, queries, labels, centre=torch.zeros(24))
    yield "diagnose", list(found.values())


def neighbours():
    """Scores by nearest neighbours, on random features with an offset and a duplicate."""
    rng = np.random.default_rng(1)
    shape = rng.normal(size=(24, 24))
    gallery, queries = (rng.normal(size=(n, 24)) @ shape + 5 for n in (60, 20))
    gallery[7] = gallery[3]
    for dtype in (np.float64, np.float32):
        a, b = gallery.astype(dtype), queries.astype(dtype)
        yield f"knn_scores, {dtype.__name__}", knn_scores(a, b, k=2)
        yield f"leave_one_out_scores, {dtype.__name__}", leave_one_out_scores(a, k=3)
    distances, found = squared_distances(gallery, queries, 5)
    yield "squared_distances", distances
    yield "squared_distances, rows", found
    yield "nearest_others", nearest_others(gallery, 3)
    yield "l2_normalise", sketch(l2_normalise(gallery))
    yield "kmeans_gallery", sketch(kmeans_gallery(gallery, 8, 0))
    for options in (
        dict(),
        dict(k=5),
        dict(normalise=True),
        dict(whiten=True),
        dict(normalise=True, whiten=True),
        dict(n_centres=8),
        dict(whiten=True, n_centres=8),
    ):
        name = "KNN" + "".join(f", {key}={value}" for key, value in options.items())
        model = KNN(**options).fit(gallery)
        yield f"{name}, scores", model.score(queries)
        if "n_centres" not in options:
            yield f"{name}, leave one out", model.leave_one_out()
    for shrinkage in (None, 0, 0.3, 1):
        model = Whitening(shrinkage).fit(gallery)
        yield f"Whitening({shrinkage}), shrinkage", [model.shrinkage_]
        yield f"Whitening({shrinkage}), lengths", np.linalg.norm(model.transform(queries), axis=1)


def networks():
    """Features of the embedded network, and of untrained ones of torchvision."""
    task, network = pictures(12, 1), load_backbone()
    yield "features", sketch(features(network, task.test))
    with tempfile.TemporaryDirectory() as place:
        yield "features from a cache", sketch(features(network, task.test, Path(place)))
    yield "stem", sketch(stem_features(network, task.test))
    yield "logits", sketch(logits(network, task.test))
    for layer, maps in layer_maps(network, task.test, ("layer1", "layer2", "layer4")).items():
        yield f"maps of {layer}", sketch(maps)
    yield "features, one image", features(network, task.test[:1])[0, ::8]
    for adapt_from in ("layer2", "layer4"):
        other = load_backbone(truncate_after="layer4", adapt_from=adapt_from)
        yield f"stem before {adapt_from}", sketch(stem_features(other, task.test))
    yield "bias_free", sketch(features(load_backbone(bias_free=True), task.test))
    for name, last in (("resnet18", "layer3"), ("resnet50", "layer1")):
        other = load_backbone(name, "random", truncate_after=last, seed=3)
        yield f"{name}, random", sketch(features(other, task.test))
    yield "DN2", DN2(network).fit(task.train).score(task.test)
    yield "PixelKNN", PixelKNN(3).fit(task.train).score(task.test)


def of_training(network, task, *, every_checkpoint: bool = True, **options):
    losses, centre, checkpoints = adapted(network, task.train, **options)
    yield "losses", losses
    yield "centre", sketch(centre[None])
    gallery = features(checkpoints[-1], task.train)
    for number, checkpoint in enumerate(checkpoints if every_checkpoint else checkpoints[-1:]):
        name = f"checkpoint {number}" if every_checkpoint else "last checkpoint"
        yield f"{name}, features", sketch(features(checkpoint, task.test))
    yield "scores", knn_scores(gallery, features(checkpoints[-1], task.test))


def compactness():
    task, network = pictures(), load_backbone()
    yield from of_training(network, task, **SMALL)
    for name, options in dict(
        unclipped=dict(max_grad_norm=None, lr=0.02),
        decay=dict(weight_decay=0.01, batch_size=7, momentum=0.5),
        other_seed=dict(seed=1, checkpoint_every=3),
    ).items():
        yield from named(
            name, of_training(network, task, every_checkpoint=False, **{**SMALL, **options})
        )
    later = load_backbone(adapt_from="layer4")
    yield from named("layer4", of_training(later, task, every_checkpoint=False, **SMALL))


def sample_wise():
    rng = np.random.default_rng(2)
    scores, chosen = pick_checkpoints(rng.random((5, 12)), rng.random((5, 4)))
    yield "scores of random curves", scores
    yield "chosen checkpoints", chosen
    yield "hold_out", np.concatenate(hold_out(40, 0.1, 0))
    task = pictures()
    yield from adapted_sample_wise(load_backbone(), task.train, task.test, **SMALL).items()


def ewc():
    task, network = pictures(), load_backbone()
    images, labels, _ = draw_batch(range(24), split="fisher")
    fishers = {
        "per sample": fisher_of(network, images),
        "batch mean": fisher_of(network, images, batch_size=8),
        "empirical": fisher_of(network, images, labels),
        "other seed": fisher_of(network, images, seed=1),
        "upstream": upstream_fisher(network, progress=False),
        "upstream, batch mean": upstream_fisher(network, 64, batch_size=32, progress=False),
    }
    for name, fisher in fishers.items():
        yield f"Fisher information, {name}", fisher_summary(fisher)
    cut = load_backbone(truncate_after="layer3")
    probe = linear_probe(cut, images, labels % 3)
    yield "linear probe, logits", logits(cut, images, probe)
    fisher = fisher_of(cut, images, classifier=probe)
    yield "Fisher information, linear probe", fisher_summary(fisher)
    _, _, (*_, moved) = adapted(network, task.train, **SMALL)
    for name, strength, fisher in (("EWC", 3000.0, fishers["upstream"]), ("L2", 0.1, None)):
        penalty = EWC(network, strength, fisher)
        yield f"{name}, value", [float(penalty(moved.trainable))]
        gradient = penalty_gradient(penalty, moved)
        yield (
            f"{name}, gradient",
            np.concatenate([sketch(part.reshape(1, -1)) for part in gradient]),
        )
        options = {**SMALL, "lr": 0.08, "penalty": penalty}
        yield from named(name, of_training(network, task, every_checkpoint=False, **options))


def exposure():
    task, network = pictures(), load_backbone()
    for kind in ("near", "noise"):
        outliers = load_outliers(kind, 30)
        options = dict(epochs=3, lr=0.05, max_grad_norm=1.0, seed=0)
        found = exposed(network, task.train, outliers, task.test, **options)
        found["features"] = sketch(found["features"])
        yield from named(kind, found)


def deep_svdd():
    task = pictures()
    found = svdd(task.train, task.test, epochs=3, batch_size=16, seed=0)
    yield from (found | dict(features=sketch(found["features"]))).items()


def spade():
    task, network = surface(), load_backbone()
    for name, options in dict(
        plain=dict(),
        balanced=dict(balanced=True, n_images=4),
        kappa=dict(kappa=3, sigma=2.0, layers=("layer2", "layer3"), n_images=3),
        batches=dict(memory_mb=1.0, sigma=0.0),
    ).items():
        detector = SPADE(network, **options)
        yield from named(name, of_maps(detector, task))
        yield f"{name}, scales", detector.scales_
    detector = SPADE(network, n_images=5).fit(task.train)
    yield "leave one out", thinned(detector.leave_one_out_maps(progress=False))
    yield "threshold", [detector.threshold(0.2)]
    wide = [images[:, :, :48] for images in (task.train, task.test)]
    yield "48 x 64 pixels", thinned(SPADE(network).fit(wide[0]).maps(wide[1])[::5])
    rng = np.random.default_rng(3)
    queries, gallery = (torch.from_numpy(rng.normal(size=(n, 9))).float() for n in (20, 70))
    yield "nearest_squared", [nearest_squared(queries, gallery, kappa).numpy() for kappa in (1, 3)]
    small = rng.normal(size=(2, 5, 7)).astype(np.float32)
    for sigma in (0.0, 3.0):
        yield f"enlarged, sigma {sigma}", thinned(enlarged(small, (40, 48), sigma))


def bank():
    task, network = surface(), load_backbone()
    for name, options in dict(
        default=dict(),
        fine=dict(layers=("layer1", "layer2"), coreset_ratio=0.02, seed=1),
        whole=dict(layers=("layer3",), coreset_ratio=1.0, sigma=1.0),
    ).items():
        detector = PatchCore(network, progress=False, **options)
        yield from named(name, of_maps(detector, task))
        yield f"{name}, bank", sketch(detector.memory_bank_)[:40]
    rows = torch.from_numpy(np.random.default_rng(4).normal(size=(200, 150))).float()
    yield "coreset", coreset(rows, 30)


def runs():
    """Every method by way of `run`, on drawn images, for a few epochs."""
    few = dict(n_train=48, n_test=2)
    for method in METHODS:
        options = dict(epochs=3) if method in ("compactness", "early", "ses", "ewc", "svdd") else {}
        if method == "oe":
            options = dict(epochs=2, n_outliers=40)
        yield from named(method, of_run("pictograms:star", method, **few, **options))
    for method, options in (
        ("spade", dict(balanced=True)),
        ("spade", dict(n_images=4, kappa=2, sigma=2.0)),
        ("bank", {}),
        ("dn2", {}),
        ("whitened", dict(normalise=True)),
    ):
        name = f"{method} on weave" + "".join(f", {key}" for key in options)
        numbers_of = of_run("surfaces:weave", method, n_train=10, n_test=2, size=64, **options)
        yield from named(name, numbers_of)
    for name, method, options in (
        ("dn2 of k-means", "dn2", dict(n_centres=10)),
        ("dn2, 5 neighbours", "dn2", dict(k=5)),
        ("ewc, batch mean", "ewc", dict(epochs=2, ewc_lambda=500.0, fisher_recipe="batch-mean")),
        ("compactness, layer4", "compactness", dict(epochs=2, adapt_from="layer4")),
        ("early, its own pace", "early", dict(checkpoints=3)),
        (
            "random network",
            "dn2",
            dict(backbone="resnet18", weights="random", truncate_after="layer2"),
        ),
    ):
        yield from named(name, of_run("pictograms:star", method, **few, **options))


def inspection():
    """A detector from a folder of PNG files, in this process and by the command line."""
    with tempfile.TemporaryDirectory() as place:
        folder = write_mvtec(surface(24, 2), Path(place) / "weave")
        more = write_mvtec(surface(30, 1), Path(place) / "more")
        found = inspector(load_backbone(), folder, size=64, n_images=6)
        yield from inspector_numbers(found, folder / "test" / "good").items()
        found.add(more)
        yield from named("after add", inspector_numbers(found, folder / "test" / "stain"))
        model, target = Path(place) / "model", Path(place) / "scores.json"
        how = ["--size", 64, "--false-alarm-rate", 0.1, "--method", "spade"]
        command("fit", folder, "--out", model, *how)
        command("score", model, folder / "test", "--recursive", "--json", target)
        scored = json.loads(target.read_text(encoding="utf-8"))
        yield "command line, threshold", [scored["threshold"], scored["n_alarms"]]
        for key in ("score", "relative", "alarm", "image", "place"):
            yield f"command line, {key}", [image[key] for image in scored["images"]]
        command(
            "run", "--task", f"folder:{folder}", "--method", "spade", "--size", 64, "--json", target
        )
        record = json.loads(target.read_text(encoding="utf-8"))
        keys = ("roc_auc", "pixel_roc_auc", "pro", "n_train", "n_test")
        yield "command line, run", [record[key] for key in keys]


def command(*words) -> None:
    """`python -m pandalib ...` of this checkout."""
    around = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-m", "pandalib", *map(str, words)],
        check=True,
        cwd=ROOT,
        env=around,
        stdout=subprocess.DEVNULL,
    )


# ------------------------------------------------- entries on real images; REAL is their folder

REAL = ROOT.parent / "shared" / "real"


def real_network(**options):
    """ResNet-18 up to layer3 with ImageNet's weights."""
    path = REAL / "weights" / "resnet18_tv_layers123_bnfolded.pth"
    return load_backbone("resnet18", path, truncate_after="layer3", **options)


def real_cifar10():
    """The embedded network on photographs, every method that needs no masks."""
    task = f"folder:{REAL / 'cifar10'}:cat"
    few = dict(n_train=40, n_test=3, size=64)
    for method in ("pixels", "dn2", "whitened", "compactness", "early", "ses", "ewc", "svdd", "oe"):
        options = {} if method in ("pixels", "dn2", "whitened") else dict(epochs=2)
        if method == "oe":
            options |= dict(outlier_images=str(REAL / "wbc" / "images"), n_outliers=30)
        yield from named(method, of_run(task, method, **few, **options))
    yield "images", sketch(load_task(task, n_train=5, n_test=1, size=64).train)


def real_maps():
    """SPADE and the memory bank, by either network: the central square, no border cut off."""
    resnet = dict(
        tier="standard",
        backbone="resnet18",
        truncate_after="layer3",
        weights=str(REAL / "weights" / "resnet18_tv_layers123_bnfolded.pth"),
    )
    for name, options in (
        ("magnetic_tile", dict(n_train=16, n_test=3)),
        ("mvtec_leather", dict(n_test=2)),
    ):
        task = f"folder:{REAL / name}"
        options |= dict(missing_masks="drop", fit="crop")
        for method in ("spade", "bank"):
            prefix = f"{name}, {method}"
            yield from named(prefix, of_run(task, method, size=96, **options))
            yield from named(
                f"{prefix}, resnet18", of_run(task, method, size=128, **options, **resnet)
            )
    for size, resize in ((96, None), (96, 110)):
        task = load_task(
            f"folder:{REAL / 'magnetic_tile'}",
            n_train=4,
            n_test=2,
            size=size,
            resize=resize,
            fit="crop",
            missing_masks="drop",
        )
        yield f"magnetic_tile, images {size} of {resize}", sketch(task.test)
        yield f"magnetic_tile, masks {size} of {resize}", sketch(task.masks)
    task = load_task(
        f"folder:{REAL / 'magnetic_tile'}",
        n_train=20,
        n_test=2,
        size=96,
        missing_masks="none",
        fit="crop",
    )
    found = inspector(load_backbone(), task.train[:], n_images=5)
    yield from named("magnetic_tile, inspector", inspector_numbers(found, task.test[:]))


def real_resnet18():
    """ResNet-18 with ImageNet's weights: features, kNN, Fisher information, adaptation, maps."""
    network = real_network()
    task = load_task(f"folder:{REAL / 'cifar10'}:cat", n_train=32, n_test=2, size=96)
    gallery, queries = features(network, task.train), features(network, task.test)
    yield "features", sketch(queries)
    for options in (dict(), dict(normalise=True), dict(whiten=True)):
        model = KNN(**options).fit(gallery)
        name = ", ".join(["kNN", *options])
        yield f"{name}, scores", model.score(queries)
        yield f"{name}, leave one out", model.leave_one_out()
    yield "bias_free", sketch(features(real_network(bias_free=True), task.test))
    cells, labels = labelled_images(REAL / "wbc" / "images", size=96)
    rows = np.concatenate([np.flatnonzero(labels == kind)[:6] for kind in np.unique(labels)])
    images, labels = np.stack([cells[int(row)] for row in rows]), labels[rows]
    yield "cells", sketch(images)
    probe = linear_probe(network, images, labels)
    yield "linear probe, logits", logits(network, images, probe)
    fisher = fisher_of(network, images, classifier=probe)
    yield "Fisher information", fisher_summary(fisher)
    few = dict(epochs=2, lr=0.25, max_grad_norm=0.1, seed=0)
    yield from named("compactness", of_training(network, task, **few))
    penalty = EWC(network, 300.0, fisher)
    few |= dict(lr=0.08, penalty=penalty)
    yield from named("EWC", of_training(network, task, every_checkpoint=False, **few))
    leather = load_task(
        f"folder:{REAL / 'mvtec_leather'}", n_test=1, size=128, missing_masks="drop"
    )
    yield from named("SPADE", of_maps(SPADE(network, balanced=True), leather))
    yield from named("memory bank", of_maps(PatchCore(network, progress=False), leather))


GROUPS = (
    drawn,
    folders,
    figures,
    neighbours,
    networks,
    compactness,
    sample_wise,
    ewc,
    exposure,
    deep_svdd,
    spade,
    bank,
    runs,
    inspection,
    real_cifar10,
    real_maps,
    real_resnet18,
)


# ----------------------------------------------------------------------- writing and comparing


def computed(groups) -> dict[str, list[float]]:
    found = {}
    for group in groups:
        start = time.perf_counter()
        for name, values in group():
            name = f"{group.__name__}: {name}"
            assert name not in found, f"{name} is computed twice"
            found[name] = numbers(values)
        print(f"{group.__name__} {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return found


def differences(kept: dict[str, list[float]], found: dict[str, list[float]]):
    """One line for each entry that is not what it was."""
    for name in sorted(kept.keys() | found.keys()):
        if name not in found or name not in kept:
            yield f"{name}: {'new' if name in found else 'no longer computed'}"
        elif len(kept[name]) != len(found[name]):
            yield f"{name}: {len(kept[name])} numbers before, {len(found[name])} now"
        else:
            before, now = np.array(kept[name]), np.array(found[name])
            largest = np.abs(before).max(initial=0) or 1.0
            off = np.abs(now - before).max(initial=0) / largest
            if not off <= WITHIN:  # NaN passes no comparison
                yield f"{name}: off by {off:.2g} of the largest value, {largest:.6g}"


def main() -> int:
    global REAL
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [group.__name__ for group in GROUPS]
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(names)}")
    parser.add_argument("--write", action="store_true", help="write the file: all groups")
    parser.add_argument("--real", type=Path, default=REAL, metavar="FOLDER")
    options = parser.parse_args()
    REAL = options.real.resolve()
    if unknown := set(options.groups) - set(names):
        parser.error(f"unknown group {', '.join(sorted(unknown))}: choose among {', '.join(names)}")
    if options.write and (options.groups or not REAL.is_dir()):
        parser.error(f"--write computes all groups and needs the real images in {REAL}")
    groups = [group for group in GROUPS if group.__name__ in (options.groups or names)]
    if not REAL.is_dir():
        groups = [group for group in groups if not group.__name__.startswith("real")]
        print(f"real entries are skipped: there is no folder {REAL}")
    assert Path(pandalib.__file__).parent == ROOT / "pandalib", pandalib.__file__
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PANDALIB_CACHE"] = cache  # nothing from an earlier version is read back
        found = computed(groups)
    if options.write:
        lines = [
            f"{json.dumps(name)}: {json.dumps(found[name], allow_nan=False)}" for name in found
        ]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        print(f"{len(found)} entries, {FILE.stat().st_size / 1000:.0f} kB")
        return 0
    chosen = tuple(f"{group.__name__}: " for group in groups)
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    kept = {name: values for name, values in kept.items() if name.startswith(chosen)}
    lines = list(differences(kept, found))
    same = sum(kept.get(name) == values for name, values in found.items())
    for line in lines:
        print(line)
    print(f"{len(lines)} of {len(kept)} entries differ; {same} are the same to the last digit")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
