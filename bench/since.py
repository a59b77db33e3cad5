"""Since PANDA, measured: `python bench/since.py` writes docs/results/since.md.

Three questions of lesson 09, each over three seeds. Which ways to compare patches need parts that
lie at the same place in every image? How few normal images will do, and what do turned copies add?
And what happens when defects hide among the normal images: does trimming repair it? About twenty
minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product

import common
import numpy as np
from common import with_half

from pandalib import (
    DN2,
    KNN,
    SPADE,
    PaDiM,
    PatchCore,
    PCAResidual,
    knn_scores,
    load_backbone,
    load_task,
    roc_auc,
    threshold_at,
)
from pandalib.datasets import elpv
from pandalib.datasets.synthetic.pictograms import SYMBOLS, Pictograms
from pandalib.datasets.synthetic.surfaces import Surfaces
from pandalib.io import write_atomically

FEW = (1, 2, 4, 8, 16)
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2)
RATE = 0.05  # of false alarms, at which recall is measured
PAGE = """# Since PANDA

Made by `python bench/since.py`, {n_seeds} seeds. ROC-AUC of images unless another measure is named.
"±" is half the 95 % interval of the mean by Student's t, over what each part names.

## Aligned parts, moving parts

{n_cells} sound solar cells to learn from and {n_tested} sound and as many defective ones to test,
MobileNetV2 at 128 px, one thread. Every cell is photographed alike, so a position shows the same
part in every image. "Moved": the same cells, each shifted by a random number of pixels in either
direction, what leaves on one side enters on the other. "±" over the seeds; differences are of the
same images.

| cells | method | as they are | moved | moved − as they are |
|---|---|---|---|---|
{aligned}

{credit}

## Few normal images

The drawn washer, which lies at any angle, and leather. {n_draws} draws of the normal images in each
seed; "turned": each image also at 90, 180 and 270 degrees. "±" over the seeds and draws. Memory
bank: a tenth of the patches of layer1 and layer2; PCA residual: of the same patches.

| surface | method | {few_heads} |
|---|---|{few_line}|
{few}

## Defects among the normal images

Recall: the share of the anomalies that score above 95 % of the normal test images. "Trimmed": the
normal images with the highest scores, when compared with the others, are removed before the fit.
Pictograms: 300 normal images, the hidden ones and the anomalies of the test all show one other
symbol; DN2, a tenth is trimmed; "±" over ten symbols. Washers: 50 normal images, all hidden ones
and all anomalies are scratched; memory bank in five folds, a fifth is trimmed; "±" over the seeds.

| images | hidden | recall | recall, trimmed | trimmed − not | hidden ones that were trimmed |
|---|---|---|---|---|---|
{hidden}
"""


def moved(images: np.ndarray, seed: int) -> np.ndarray:
    """Each image (3, H, W) shifted at random, round the edges."""
    rng = np.random.default_rng([seed, 9])
    shifts = rng.integers(0, images.shape[2:], (len(images), 2))
    return np.stack([np.roll(image, by, (1, 2)) for image, by in zip(images, shifts)])


def turned(images: np.ndarray) -> np.ndarray:
    """Images (n, 3, H, H) at 0, 90, 180 and 270 degrees: (4n, 3, H, H)."""
    return np.concatenate([np.rot90(images, k, (2, 3)) for k in range(4)])


def patch_methods(backbone, ratio: float) -> dict[str, Callable]:
    """Name -> a function that makes the detector."""
    fine, pair = backbone.map_layers, backbone.map_layers[-2:]
    bank = dict(layers=pair, coreset_ratio=ratio, progress=False)
    return {
        "DN2": lambda: DN2(backbone, k=2, normalise=True),
        "SPADE": lambda: SPADE(backbone, layers=fine, balanced=True),
        "memory bank": lambda: PatchCore(backbone, **bank),
        "memory bank, reweighted": lambda: PatchCore(backbone, reweight=True, **bank),
        "PaDiM": lambda: PaDiM(backbone, layers=fine, progress=False),
        "PCA residual": lambda: PCAResidual(backbone, layers=pair, progress=False),
    }


def aligned(seeds: range, n_train: int, n_test: int) -> list[str]:
    rows, makers = [], patch_methods(load_backbone("mobilenet_v2", "imagenet"), 0.02)
    for kind in elpv.CLASSES:
        found = {name: ([], []) for name in makers}
        for seed in seeds:
            task = load_task(f"elpv:{kind}", seed=seed, size=128, n_train=n_train, n_test=n_test)
            plain = task.train[:], task.test[:]
            shifted = moved(plain[0], seed), moved(plain[1], seed + 1000)
            for name, make in makers.items():
                for (train, test), values in zip((plain, shifted), found[name]):
                    values.append(roc_auc(task.labels, make().fit(train).score(test)))
        rows += [
            f"| {kind} | {name} | {with_half(one)} | {with_half(other)} | "
            f"{with_half(np.subtract(other, one), '+')} |"
            for name, (one, other) in found.items()
        ]
    return rows


def few(seeds: range, n_draws: int, counts=FEW) -> list[str]:
    rows, backbone = [], load_backbone(device="cpu")
    layers = dict(layers=["layer1", "layer2"], progress=False)
    makers = {
        "memory bank": lambda: PatchCore(backbone, coreset_ratio=0.1, **layers),
        "PCA residual": lambda: PCAResidual(backbone, **layers),
    }
    ways = {"": lambda images: images, ", turned": turned}
    for kind in ("washer", "leather"):
        found = {name + way: [] for name in makers for way in ways}
        for seed in seeds:
            task = load_task(f"surfaces:{kind}", seed=seed)
            for draw in range(n_draws):
                rng = np.random.default_rng([seed, draw])
                chosen = rng.permutation(len(task.train))
                parts = [task.train[np.sort(chosen[:n])] for n in counts]
                for (name, make), (way, copies) in product(makers.items(), ways.items()):
                    scored = [make().fit(copies(part)).score(task.test) for part in parts]
                    aucs = [roc_auc(task.labels, scores) for scores in scored]
                    found[name + way].append(aucs)
        rows += [
            f"| {kind} | {name} | {' | '.join(with_half(of_n) for of_n in np.transpose(values))} |"
            for name, values in found.items()
        ]
    return rows


def recall(labels, scores) -> float:
    """Share of the anomalies above the threshold that a twentieth of the normal images exceed."""
    return float((scores[labels == 1] > threshold_at(scores[labels == 0], RATE)).mean())


def hidden_symbols(seed: int, shares, n_train: int = 300, n_test: int = 180) -> np.ndarray:
    """(shares, symbols, 3): recall, recall after trimming, share of the hidden that was trimmed."""
    backbone, names = load_backbone(device="cpu"), list(SYMBOLS)
    labels = np.repeat([0, 1], n_test)
    features = {
        name: backbone.features(Pictograms(name, n_train + n_test, split="noisy", seed=seed)[:])
        for name in names
    }
    rows = []
    for share, (name, other) in product(shares, zip(names, names[1:] + names[:1])):
        n_hidden = round(share * n_train)
        own, strange = features[name], features[other]
        gallery = np.concatenate([own[: n_train - n_hidden], strange[:n_hidden]])
        queries = np.concatenate([own[n_train:], strange[n_train:]])
        order = np.argsort(KNN(2).fit(gallery).leave_one_out())
        kept, gone = np.split(order, [round(0.9 * n_train)])
        galleries = gallery, gallery[np.sort(kept)]
        recalls = [recall(labels, knn_scores(one, queries, 2)) for one in galleries]
        rows.append([*recalls, (gone >= n_train - n_hidden).sum() / max(n_hidden, 1)])
    return np.reshape(rows, (len(shares), -1, 3))


def hidden_scratches(seed: int, shares, n_train: int = 50, n_test: int = 60) -> np.ndarray:
    """As `hidden_symbols`, for washers: (shares, 3)."""
    backbone = load_backbone(device="cpu")
    labels = np.repeat([0, 1], n_test)

    def draw(n, split, defect=None):
        return Surfaces("washer", n, split=split, seed=seed, defect=defect)[:]

    def bank(images):
        layers = dict(layers=["layer1", "layer2"], progress=False)
        return PatchCore(backbone, coreset_ratio=0.1, **layers).fit(images)

    test = np.concatenate([draw(n_test, "test"), draw(n_test, "tested", "scratch")])
    rows = []
    for share in shares:
        n_hidden = round(share * n_train)
        train = [draw(n_train - n_hidden, "train"), draw(n_hidden, "hidden", "scratch")]
        train = np.concatenate(train)
        scores = np.empty(n_train)
        folds = np.random.default_rng([seed, 5]).permutation(n_train) % 5
        for fold in range(5):
            scores[folds == fold] = bank(train[folds != fold]).score(train[folds == fold])
        kept, gone = np.split(np.argsort(scores), [round(0.8 * n_train)])
        recalls = [recall(labels, bank(one).score(test)) for one in (train, train[np.sort(kept)])]
        rows.append([*recalls, (gone >= n_train - n_hidden).sum() / max(n_hidden, 1)])
    return np.array(rows)


def hidden(seeds: range, shares=SHARES, **sizes) -> list[str]:
    rows = []
    symbols = np.mean([hidden_symbols(seed, shares, **sizes) for seed in seeds], axis=0)
    washers = np.stack([hidden_scratches(seed, shares, **sizes) for seed in seeds], axis=1)
    for images, measured in (("pictograms", symbols), ("washers", washers)):  # (shares, n, 3)
        for share, found in zip(shares, measured):
            plain, trimmed, gone = found.T
            rows.append(
                f"| {images} | {share:.0%} | {with_half(plain)} | {with_half(trimmed)} | "
                f"{with_half(trimmed - plain, '+')} | {with_half(gone) if share else ''} |"
            )
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="try it out; nothing is written")
    tiny = parser.parse_args(arguments).tiny
    seeds, n_cells, n_tested, n_draws = (range(2), 6, 4, 1) if tiny else (range(3), 200, 60, 3)
    counts = FEW[:2] if tiny else FEW
    small = dict(n_train=10, n_test=20) if tiny else {}
    page = PAGE.format(
        n_seeds=len(seeds),
        n_cells=n_cells,
        n_tested=n_tested,
        n_draws=n_draws,
        aligned="\n".join(aligned(seeds, n_cells, n_tested)),
        credit=f"Photographs: {elpv.CREDIT}.",
        few_heads=" | ".join(f"{n} normal" for n in counts),
        few_line="---|" * (len(counts) - 1) + "---",
        few="\n".join(few(seeds, n_draws, counts)),
        hidden="\n".join(hidden(seeds, (0.0, 0.2) if tiny else SHARES, **small)),
    )
    if tiny:
        print(page)
    else:
        write_atomically(common.RESULTS / "since.md", page.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
