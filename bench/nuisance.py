"""What should not count, measured: `python bench/nuisance.py` writes docs/results/nuisance.md.

Three questions, each over three seeds. Which simple anomaly do deeper features miss? What does
`pandalib.NuisanceProjection` do to the target and to the nuisance, where both are known because the
images are drawn? And what does it do on photographs of solar cells, where the kind of cell is the
only thing that is known besides good and defective? About five minutes on two cores.
"""

from __future__ import annotations

import argparse

import common
import numpy as np

from pandalib import NuisanceProjection, knn_scores, load_backbone, roc_auc
from pandalib.datasets import elpv
from pandalib.datasets.images import Geometry, ImageFolder
from pandalib.datasets.synthetic.pictograms import SYMBOLS, Pictograms
from pandalib.io import write_atomically
from pandalib.methods.whitening import l2_normalise

LAYERS = ("conv", "layer1", "layer2", "layer3", "layer4")
USUAL_HUES, OTHER_HUES = (0.0, 1.5), (3.0, 4.5)
# What is usual and what is rare of each nuisance.
SIDES = {
    "x": ((-0.32, -0.12), (0.12, 0.32)),
    "size": ((0.25, 0.40), (0.60, 0.85)),
    "background": ((0.30, 0.45), (0.65, 0.80)),
}
RARE = 0.05  # of the normal images to learn from
N_TRAIN, N_TEST = 300, 60  # of each symbol
PAGE = """# What should not count

Made by `python bench/nuisance.py`. Embedded tier: this project's own images, level "medium",
and its own network; for the solar cells MobileNetV2 with ImageNet weights. kNN with k = 2,
{n_seeds} seeds. ROC-AUC; "±" is half the 95 % interval of the mean, over the ten symbols (the seeds
of a symbol are averaged first).

## A simple anomaly that deep features miss

{n_train} normal images of a symbol, background of a reddish to yellow hue. Anomalous are {n_test}
of the nine other symbols on such a background, or {n_test} of the same symbol on a background of
a bluish hue. "Mean colour": the mean of red, green and blue over the whole image, three numbers.
The others are the pooled features of each stage of the network.

| features | another symbol | another background |
|---|---|---|
{depth}

## A nuisance that is known, and projected out

For each symbol {n_train} normal images, 5 % of them on the rare side of the nuisance, and known
to be there. Tested on normal images of both sides, and on the nine other symbols of both sides.
Target: anomalous against normal, 1 is best. Nuisance: normal images of the rare side against those
of the usual side, 0.5 is best. The control removes one direction too, the one along which the
normal features vary most, and asks for no label.

| nuisance | | features | projected | projected − features | control − features |
|---|---|---|---|---|---|
{projection}

## Solar cells

{cells_train} good cells of monocrystalline silicon and a few of polycrystalline silicon,
MobileNetV2 at 96 px, features of length one. Tested on 200 good and 200 defective cells of each
kind. Target and nuisance as above, the nuisance is the kind. In brackets the lowest and the highest
of {n_seeds} splits.

| good poly cells to learn from | | features | projected | projected − features |
|---|---|---|---|---|
{cells}

{credit}
"""


def pooled(backbone, images: np.ndarray) -> dict[str, np.ndarray]:
    """The mean colour, and the pooled features of each stage: name -> (n, d)."""
    found = {"mean colour": images.mean(axis=(2, 3))}
    parts = [
        {name: maps[name].mean(dim=(2, 3)).numpy() for name in LAYERS}
        for maps in backbone.iter_layers(images, LAYERS)
    ]
    return found | {name: np.concatenate([part[name] for part in parts]) for name in LAYERS}


def depth(backbone, seeds: range, n_train: int, n_test: int) -> dict[str, np.ndarray]:
    """Features -> ROC-AUC (seeds, symbols, 2): for another symbol, for another background."""
    found: dict[str, list] = {}
    for seed in seeds:
        rng = np.random.default_rng([seed, 1])

        def draw(symbol, n, split, hues, seed=seed, rng=rng):
            hue = {"background_hue": rng.uniform(*hues, n)}
            return Pictograms(symbol, n, split=split, seed=seed, attributes=hue)[:]

        each = -(-n_test // 9)
        tested = {s: pooled(backbone, draw(s, each, "others", USUAL_HUES)) for s in SYMBOLS}
        for symbol in SYMBOLS:
            gallery = pooled(backbone, draw(symbol, n_train, "train", USUAL_HUES))
            normal = pooled(backbone, draw(symbol, n_test, "test", USUAL_HUES))
            moved = pooled(backbone, draw(symbol, n_test, "moved", OTHER_HUES))
            for name, features in gallery.items():
                others = np.concatenate([tested[s][name] for s in SYMBOLS if s != symbol])
                scores = [knn_scores(features, f, 2) for f in (normal[name], others, moved[name])]
                found.setdefault(name, []).append(
                    [
                        roc_auc(
                            np.repeat([0, 1], [n_test, len(one)]), np.concatenate([scores[0], one])
                        )
                        for one in scores[1:]
                    ]
                )
    return {name: np.reshape(rows, (len(seeds), -1, 2)) for name, rows in found.items()}


def of_sides(rng, name: str, n: int, rare_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of a nuisance (n,), and which of them are rare: the first ones."""
    rare = np.arange(n) < round(rare_share * n)
    usual, other = SIDES[name]
    return np.where(rare, rng.uniform(*other, n), rng.uniform(*usual, n)), rare


def without_main_direction(gallery: np.ndarray, queries: np.ndarray) -> list[np.ndarray]:
    """The control: both without the first principal direction of the gallery."""
    mean = gallery.mean(axis=0)
    main = np.linalg.svd(gallery - mean, full_matrices=False)[2][:1]
    return [(f - (f - mean) @ main.T @ main).astype(np.float32) for f in (gallery, queries)]


def two_aucs(gallery, queries, anomalous, rare) -> list[float]:
    """ROC-AUC for the target, and for the nuisance among normal images."""
    scores = knn_scores(gallery, queries, 2)
    normal = ~anomalous
    return [roc_auc(anomalous, scores), roc_auc(rare[normal], scores[normal])]


def projection(backbone, seeds: range, name: str, n_train: int, n_test: int) -> np.ndarray:
    """ROC-AUC (3, seeds, symbols, 2): features, projected, control; target and nuisance."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 2])

        def draw(symbol, n, split, rare_share, seed=seed, rng=rng):
            values, rare = of_sides(rng, name, n, rare_share)
            images = Pictograms(symbol, n, split=split, seed=seed, attributes={name: values})
            return backbone.features(images[:]), rare

        tested = {symbol: draw(symbol, n_test, "test", 0.5) for symbol in SYMBOLS}
        queries = np.concatenate([features for features, _ in tested.values()])
        rare = np.concatenate([sides for _, sides in tested.values()])
        kinds = np.repeat(list(SYMBOLS), n_test)
        for symbol in SYMBOLS:
            gallery, known = draw(symbol, n_train, "train", RARE)
            fitted = NuisanceProjection().fit(gallery, known)
            ways = (
                (gallery, queries),
                (fitted.transform(gallery), fitted.transform(queries)),
                without_main_direction(gallery, queries),
            )
            found.append([two_aucs(*way, kinds != symbol, rare) for way in ways])
    return np.reshape(found, (len(seeds), -1, 3, 2)).transpose(2, 0, 1, 3)


def cells(seeds: range, n_mono: int = 300, n_poly=(15, 150), n_test: int = 200) -> dict:
    """Number of poly cells -> ROC-AUC (2, seeds, 2): features, projected; target and nuisance."""
    backbone = load_backbone("mobilenet_v2", "imagenet")
    features = {}
    for kind in elpv.CLASSES:
        for state in ("good", "defect"):
            images = ImageFolder(elpv.cells(kind, state), Geometry.square(96))
            features[kind, state] = l2_normalise(backbone.features(images))
    found = {}
    for n_rare in n_poly:
        rows = []
        for seed in seeds:
            rng = np.random.default_rng([seed, 3])
            good = {kind: rng.permutation(features[kind, "good"]) for kind in elpv.CLASSES}
            gallery = np.concatenate([good["mono"][:n_mono], good["poly"][:n_rare]])
            known = np.repeat(["mono", "poly"], [n_mono, n_rare])
            rest = [good[k][n_mono : n_mono + n_test] for k in elpv.CLASSES]
            broken = [rng.permutation(features[k, "defect"])[:n_test] for k in elpv.CLASSES]
            parts = [*rest, *broken]
            sizes = [len(part) for part in parts]
            queries = np.concatenate(parts)
            poly = np.repeat([False, True, False, True], sizes)
            anomalous = np.repeat([False, False, True, True], sizes)
            fitted = NuisanceProjection().fit(gallery, known)
            pairs = (gallery, queries), (fitted.transform(gallery), fitted.transform(queries))
            rows.append([two_aucs(*pair, anomalous, poly) for pair in pairs])
        found[n_rare] = np.transpose(rows, (1, 0, 2))
    return found


def page(n_seeds: int, n_train: int, n_test: int) -> str:
    backbone, seeds = load_backbone(device="cpu"), range(n_seeds)

    def with_half(values, sign="") -> str:
        return common.with_half(values.mean(axis=0), sign)  # over the symbols

    depths = depth(backbone, seeds, n_train, n_test)
    rows = [
        f"| {name} | {with_half(auc[..., 0])} | {with_half(auc[..., 1])} |"
        for name, auc in depths.items()
    ]
    lines = []
    for name in SIDES:
        plain, projected, control = projection(backbone, seeds, name, n_train, n_test)
        for number, what in enumerate(("target", "nuisance")):
            one, two, three = (way[..., number] for way in (plain, projected, control))
            lines.append(
                f"| {name} | {what} | {with_half(one)} | {with_half(two)} | "
                f"{with_half(two - one, '+')} | {with_half(three - one, '+')} |"
            )

    def with_range(values, sign="") -> str:
        low, high = values.min(), values.max()
        return f"{values.mean():{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"

    photographs = []
    for n_rare, (plain, projected) in cells(seeds).items():
        for number, what in enumerate(("target", "nuisance")):
            one, two = plain[:, number], projected[:, number]
            photographs.append(
                f"| {n_rare} | {what} | {with_range(one)} | {with_range(two)} | "
                f"{with_range(two - one, '+')} |"
            )
    return PAGE.format(
        n_seeds=n_seeds,
        n_train=n_train,
        n_test=n_test,
        cells_train=300,
        depth="\n".join(rows),
        projection="\n".join(lines),
        cells="\n".join(photographs),
        credit=f"Photographs: {elpv.CREDIT}.",
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="try it out; nothing is written")
    if parser.parse_args(arguments).tiny:
        print(page(2, 20, 10))
        return 0
    write_atomically(common.RESULTS / "nuisance.md", page(3, N_TRAIN, N_TEST).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
