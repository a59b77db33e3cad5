"""PatchCore and PaDiM against anomalib, and SPADE: `python bench/segmentation_peers.py [FOLDER]`.

Writes docs/results/segmentation_peers_speed.md. Every side has the same images, weights and number
of threads and runs in a process of its own, which takes all sets of images one after the other; the
processes take turns. anomalib's networks are called without its engine, which would add to its
time. The figures of quality are this library's for all sides. FOLDER holds folders of
real images in MVTec AD's layout and weights; the default is `../shared/real`, and without it those
rows are left out, which the page says.
"""

from __future__ import annotations

from pathlib import Path

import common
import numpy as np
import peers
import torch
from common import EQUAL, Line, finish, machine, section, verdict, versions

from pandalib import load_task, pixel_roc_auc, pro, roc_auc
from pandalib.datasets.synthetic import surfaces
from pandalib.datasets.synthetic.surfaces import KINDS

FINE, COARSE, ALL = ("layer1", "layer2"), ("layer2", "layer3"), ("layer1", "layer2", "layer3")
SIDES = {
    "memory bank, layers 1 and 2, 2 %": dict(
        side="pandalib", method="bank", layers=FINE, coreset_ratio=0.02
    ),
    "PatchCore, layers 1 and 2, 2 %": dict(
        side="anomalib", method="patchcore", layers=FINE, coreset_ratio=0.02
    ),
    "memory bank, layers 2 and 3, 10 %": dict(
        side="pandalib", method="bank", layers=COARSE, coreset_ratio=0.1
    ),
    "PatchCore, layers 2 and 3, 10 %": dict(
        side="anomalib", method="patchcore", layers=COARSE, coreset_ratio=0.1
    ),
    "SPADE, K = 5": dict(
        side="pandalib", method="spade", layers=ALL, coreset_ratio=None, n_images=5
    ),
    "SPADE, K = 50": dict(
        side="pandalib", method="spade", layers=ALL, coreset_ratio=None, n_images=50
    ),
    "our PaDiM, layers 1 to 3, 100 features": dict(
        side="pandalib", method="padim", layers=ALL, coreset_ratio=None
    ),
    "PaDiM, layers 1 to 3, 100 features": dict(
        side="anomalib", method="padim", layers=ALL, coreset_ratio=None
    ),
}
NAMES = list(SIDES)
PAIRS = [
    (NAMES[0], NAMES[1]),
    (NAMES[2], NAMES[3]),
    (NAMES[6], NAMES[7]),
]  # (ours, theirs)
REPEATED = (
    "weave",
    "mvtec_leather",
)  # the sets of every round; the others have one: PatchCore takes minutes to fit to the larger ones
METRICS = ("image ROC-AUC", "pixel ROC-AUC", "PRO")
PAGE = """# Segmentation beside anomalib

Made by `python bench/segmentation_peers.py{argument}` on {machine}; {versions}, anomalib
{anomalib}. Sides take turns; medians of {rounds} rounds for {repeated}, one round for the others.

{section}
A line is met when pandalib is faster at scoring and no figure is lower by {equal} or
more. The two sides of a line are the same method, with the same layers and the same share of
patches or number of features; PaDiM's features are drawn at random, by each side its own. SPADE,
which anomalib lacks, stands in the table of all figures.

## All figures

128 px. Drawn surfaces: the mean over the kinds {kinds}, embedded weights. {real} "Memory": the most
that the process held above what it began with, libraries and images excluded, as the C library
keeps it: PatchCore's coreset leaves holes that are not given back. anomalib: batches of {batch},
its default; 9 neighbours for the image score, its default.

| images | method | fit, s | score, ms an image | memory to fit, MiB | memory to score, MiB, all \
test images | ... an image | {metrics} |
|---|---|---|---|---|---|---|---|---|---|
{rows}
"""


def load_sets(folder: Path | None, tiny: bool) -> dict[str, tuple[object, str | None]]:
    """Tasks by name with the file of their weights; None: the embedded network."""
    small = dict(n_train=6, n_good=2, n_test=1) if tiny else {}
    sets = {
        kind: (surfaces.load_task(kind, **small), None) for kind in (KINDS[:1] if tiny else KINDS)
    }
    if folder is not None and not tiny:
        weights = str(folder / "weights" / "resnet18_tv_layers123_bnfolded.pth")
        for name in ("mvtec_leather", "magnetic_tile"):
            sets[name] = (
                load_task(f"folder:{folder / name}", size=128, missing_masks="drop"),
                weights,
            )
    return sets


def figures(task, maps: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    return roc_auc(task.labels, scores), pixel_roc_auc(task.masks, maps), pro(task.masks, maps)


def measure(sets: dict, rounds: int, sides: list[str]) -> dict[str, dict[str, dict]]:
    """By side and set: seconds, memory and the three figures of quality; peers.Trouble when a side
    cannot run.
    """
    taken: dict[str, list[dict]] = {side: [] for side in sides}
    quality = {}
    for number in range(rounds):
        chosen = {name: pair for name, pair in sets.items() if number == 0 or name in REPEATED}
        arrays = {
            f"{name}/{part}": np.ascontiguousarray(getattr(task, part)[:])
            for name, (task, _) in chosen.items()
            for part in ("train", "test")
        }
        weights = {name: file for name, (_, file) in chosen.items()}
        for side in sides:
            settings = SIDES[side]
            found, facts = peers.ask(
                "maps",
                arrays,
                theirs=settings["side"] == "anomalib",
                threads=torch.get_num_threads(),
                weights=weights,
                **settings,
            )
            taken[side].append(facts)
            if number == 0:
                quality[side] = {
                    name: figures(task, found[f"{name}/maps"], found[f"{name}/scores"])
                    for name, (task, _) in sets.items()
                }
            print(
                f"round {number + 1}, {side}: "
                f"{sum(one['score'] for one in facts.values()) / len(facts):.4f} s an image",
                flush=True,
            )
    return {
        side: {
            name: {
                **_median([facts[name] for facts in rounds_of if name in facts]),
                "quality": quality[side][name],
                "n_test": len(task.test),
            }
            for name, (task, _) in sets.items()
        }
        for side, rounds_of in taken.items()
    }


def _median(parts: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.median([part[key] for part in parts])) for key in parts[0]}


def mean_of(parts: list[dict]) -> dict:
    return {key: np.mean([part[key] for part in parts], axis=0) for key in parts[0]}


def compared(found: dict[str, dict[str, dict]]) -> tuple[list[str], list[Line]]:
    """Rows of the page and its lines: the drawn surfaces as one."""
    groups = {"drawn surfaces": [name for name in next(iter(found.values())) if name in KINDS]}
    groups |= {
        name.replace("_", " "): [name] for name in next(iter(found.values())) if name not in KINDS
    }
    rows, lines = [], []
    for group, names in groups.items():
        of = {side: mean_of([parts[name] for name in names]) for side, parts in found.items()}
        for side, one in of.items():
            rows.append(
                f"| {group} | {side} | {one['fit']:.2f} | {1e3 * one['score']:.2f} | "
                f"{one['fit_mb']:.0f} | {one['score_mb']:.0f} | "
                f"{one['score_mb'] / one['n_test']:.2f} | "
                + " | ".join(f"{value:.3f}" for value in one["quality"])
                + " |"
            )
        for ours, theirs in PAIRS:
            one, other = of[ours], of[theirs]
            ratio, lower = (
                other["score"] / one["score"],
                [
                    metric
                    for metric, mine, their in zip(METRICS, one["quality"], other["quality"])
                    if mine <= their - EQUAL
                ],
            )
            measured = (
                f"score {ratio:.2f}, fit {other['fit'] / one['fit']:.2f} times as fast; "
                + ", ".join(
                    f"{m} {a:.3f} against {b:.3f}"
                    for m, a, b in zip(METRICS, one["quality"], other["quality"])
                )
            )
            lines.append(
                Line(
                    f"{group}: {ours}, against anomalib's {theirs}",
                    "faster, no figure lower",
                    measured,
                    bool(ratio > 1 and not lower),
                )
            )
            print(f"{lines[-1].what}: {measured}, {verdict(lines[-1].met)}", flush=True)
    return rows, lines


def main() -> None:
    options = common.arguments(
        __doc__,
        3,
        ("folder", dict(nargs="?", type=Path, default=common.ROOT.parent / "shared" / "real")),
    )
    folder = options.folder if options.folder.is_dir() else None
    rows, lines = compared(measure(load_sets(folder, options.tiny), options.rounds, NAMES))
    real = (
        "Leather and magnetic tile: small public extracts, ResNet-18 with ImageNet weights up to "
        "layer3."
        if folder
        else "Real images were not at hand."
    )
    page = PAGE.format(
        argument=" FOLDER" if folder else "",
        machine=machine(),
        versions=versions("torch", "torchvision", "numpy"),
        anomalib=peers.VERSIONS["anomalib"],
        rounds=options.rounds,
        repeated=" and ".join(REPEATED),
        section=section(lines),
        equal=EQUAL,
        kinds=", ".join(KINDS),
        real=real,
        batch=32,
        metrics=" | ".join(METRICS),
        rows="\n".join(rows),
    )
    finish("segmentation_peers_speed.md", page, options.tiny)


if __name__ == "__main__":
    main()
