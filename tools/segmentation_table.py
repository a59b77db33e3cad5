"""Segmentation on the drawn surfaces and on real images.

    python tools/segmentation_table.py            writes docs/results/segmentation.md
    python tools/segmentation_table.py FOLDER     writes docs/results/segmentation_real.md
    python tools/segmentation_table.py --tune     prints the first one for surfaces of another seed: for choosing settings

FOLDER holds `mvtec_leather` and `magnetic_tile` in MVTec layout and `weights/resnet18_tv_layers123_bnfolded.pth`, small public
extracts that are no part of this project.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pandalib import SPADE, PatchCore, load_backbone, load_task, pixel_roc_auc, pro, roc_auc  # noqa: E402
from pandalib.io import write_atomically  # noqa: E402
from pandalib.methods.distances import image_scores  # noqa: E402
from pandalib.datasets.synthetic import surfaces  # noqa: E402

SEEDS, TUNING_SEEDS = (0, 1, 2), (100,)
METRICS = ("pixel ROC-AUC", "PRO", "image ROC-AUC")
REAL_SIZE = 128
# Chosen with --tune: with layer3 beside them, whose numbers are the largest, both finer layers are drowned.
BANK_LAYERS, BANK_SHARE = ("layer1", "layer2"), 0.02


def detectors(backbone) -> dict:
    return {
        "SPADE, K = 50": SPADE(backbone, balanced=True),
        "SPADE, K = 5": SPADE(backbone, n_images=5, balanced=True),
        "SPADE, plain mean": SPADE(backbone),
        "memory bank": PatchCore(
            backbone, layers=BANK_LAYERS, coreset_ratio=BANK_SHARE, progress=False
        ),
    }


def measure(task, maps: np.ndarray, rows=slice(None)) -> tuple[float, float, float]:
    masks, maps, labels = task.masks[rows], maps[rows], task.labels[rows]
    return pixel_roc_auc(masks, maps), pro(masks, maps), roc_auc(labels, image_scores(maps))


def by_defect(task, maps: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """The metrics of each kind of defect against the normal test images."""
    kinds = np.array(task.kinds)
    # An empty mask is no region: such an image counts for the image-level figure of all defects together only.
    marked = task.masks.any(axis=(1, 2)) | (task.labels == 0)
    return {
        kind: measure(task, maps, marked & ((kinds == kind) | (task.labels == 0)))
        for kind in dict.fromkeys(kinds[task.labels == 1])
    }


def cells(values) -> str:
    return " | ".join(f"{value:.3f}" for value in values)


def measure_drawn(kind: str, seed: int) -> dict:
    """All figures of one kind of surface and one seed."""
    import torch

    torch.set_num_threads(1)  # two processes of one thread do more than one of two
    task = surfaces.load_task(kind, seed=seed)
    fitted = {
        name: detector.fit(task.train) for name, detector in detectors(load_backbone()).items()
    }
    maps = {name: detector.maps(task.test) for name, detector in fitted.items()}
    spade = next(iter(fitted))
    others = {
        level: surfaces.load_task(kind, seed=seed, level=level)
        for level in surfaces.LEVELS
        if level != surfaces.DEFAULT_LEVEL
    }
    if surfaces.LOGICAL[kind]:
        others["logical"] = surfaces.load_task(kind, seed=seed, defects=surfaces.LOGICAL[kind])
    found = {name: measure(other, fitted[spade].maps(other.test)) for name, other in others.items()}
    methods = {name: measure(task, values) for name, values in maps.items()}
    return dict(
        methods=methods,
        defects=by_defect(task, maps[spade]),
        levels={surfaces.DEFAULT_LEVEL: methods[spade], **found},
        logical=found.get("logical"),
    )


def drawn(seeds) -> str:
    """The page of the drawn surfaces; two processes."""
    from joblib import Parallel, delayed

    backbone = load_backbone()
    jobs = [(kind, seed) for kind in surfaces.KINDS for seed in seeds]
    results = dict(
        zip(jobs, Parallel(n_jobs=2, verbose=5)(delayed(measure_drawn)(*job) for job in jobs))
    )
    pick = lambda part, kind, *keys: [
        functools.reduce(dict.__getitem__, keys, results[kind, seed][part]) for seed in seeds
    ]  # noqa: E731
    found = {
        name: {kind: pick("methods", kind, name) for kind in surfaces.KINDS}
        for name in results[jobs[0]]["methods"]
    }
    defects = {
        kind: {defect: pick("defects", kind, defect) for defect in surfaces.DEFECTS[kind]}
        for kind in surfaces.KINDS
    }
    levels = {
        level: [values for kind in surfaces.KINDS for values in pick("levels", kind, level)]
        for level in surfaces.LEVELS
    }
    logical = {kind: pick("logical", kind) for kind in surfaces.KINDS if surfaces.LOGICAL[kind]}
    mean = np.mean([np.mean(values, axis=0) for values in found["SPADE, K = 50"].values()], axis=0)
    wanted = (0.97, 0.88, 0.90)
    heads = " | ".join(f"{name}: {metric}" for name in found for metric in METRICS)
    return "\n".join(
        [
            "# Segmentation on the drawn surfaces",
            "",
            f"Made by `python tools/segmentation_table.py` with the weights `{backbone.weights_sha256[:12]}...`.",
            "Embedded tier: these are this project's own images, not the paper's, and none of these figures may stand beside published ones.",
            "",
            f'128 px, level "{surfaces.DEFAULT_LEVEL}", 50 normal training images, 20 normal test images and 10 of each defect, mean over {len(seeds)} seed(s).',
            f'SPADE: layers {", ".join(SPADE(backbone).layers)}, sigma {SPADE(backbone).sigma:g} px, layers on one scale (`balanced`); "plain mean": as in the paper, K = 50. Memory bank: {" and ".join(BANK_LAYERS)},',
            f"a coreset of {BANK_SHARE:.0%}. Settings were chosen on surfaces of another seed (`--tune`).",
            "",
            f"| surface | {heads} |",
            "|---|" + "---|" * (len(found) * len(METRICS)),
            *(
                f"| {kind} | "
                + " | ".join(cells(np.mean(found[name][kind], axis=0)) for name in found)
                + " |"
                for kind in surfaces.KINDS
            ),
            "| **mean** | "
            + " | ".join(
                f"**{value:.3f}**"
                for name in found
                for value in np.mean([np.mean(v, axis=0) for v in found[name].values()], axis=0)
            )
            + " |",
            "| lowest and highest seed | "
            + " | ".join(
                f"{low:.3f} to {high:.3f}"
                for name in found
                for low, high in zip(
                    *(
                        end(np.mean(list(found[name].values()), axis=0), axis=0)
                        for end in (np.min, np.max)
                    )
                )
            )
            + " |",
            "",
            "| wanted, SPADE with K = 50 | is | |",
            "|---|---|---|",
            *(
                f"| {metric} at least {low:g} | {value:.3f} | {'met' if value >= low else f'**not met**, by {low - value:.3f}'} |"
                for metric, low, value in zip(METRICS, wanted, mean)
            ),
            "",
            "## By visibility",
            "",
            f"| level | {' | '.join(METRICS)} |",
            "|---|---|---|---|",
            *(
                f"| {level} | {cells(np.mean(levels[level], axis=0))} |"
                for level in surfaces.LEVELS
            ),
            "",
            "## By defect",
            "",
            f"| surface | defect | {' | '.join(METRICS)} |",
            "|---|---|---|---|---|",
            *(
                f"| {kind} | {defect} | {cells(np.mean(values, axis=0))} |"
                for kind, rows in defects.items()
                for defect, values in rows.items()
            ),
            "",
            "## Normal parts in the wrong place",
            "",
            "Not in the means above: defects whose every part has a counterpart on normal images.",
            "",
            f"| surface | defects | {' | '.join(METRICS)} |",
            "|---|---|---|---|---|",
            *(
                f"| {kind} | {', '.join(surfaces.LOGICAL[kind])} | {cells(np.mean(values, axis=0))} |"
                for kind, values in logical.items()
            ),
            "",
        ]
    )


def real(folder: Path) -> str:
    weights = folder / "weights" / "resnet18_tv_layers123_bnfolded.pth"
    backbone = load_backbone("resnet18", weights, truncate_after="layer3")
    lines = [
        "# Segmentation on real images",
        "",
        "Made by `python tools/segmentation_table.py FOLDER` (what FOLDER holds: see there). ResNet-18 up to layer3, ImageNet V1",
        f"weights (SHA-256 `{backbone.weights_sha256[:12]}...`), {REAL_SIZE} px, the same settings as on the drawn surfaces. A check of this project's code on small",
        "extracts: not a result of the paper, which uses Wide-ResNet-50-2 at 224 px and whole data sets.",
        "",
        "Leather: four images of each defect and of the normal class are too few for more than a sign of life. Magnetic tile: grey, under several exposures;",
        "images whose mask is empty count at image level and not in the rows by defect.",
        "",
    ]
    for name in ("mvtec_leather", "magnetic_tile"):
        task = load_task(f"folder:{folder / name}", size=REAL_SIZE, missing_masks="drop")
        n_defect = int(task.labels.sum())
        lines += [
            f"## {name.replace('_', ' ')}",
            "",
            f"{len(task.train)} normal images to learn from, {len(task.test) - n_defect} normal and {n_defect} defective ones to test.",
            "",
        ]
        lines += [
            f"| method | {' | '.join(METRICS)} | seconds to fit | seconds a test image |",
            "|---|---|---|---|---|---|",
        ]
        rows = {}
        for method, detector in detectors(backbone).items():
            start = time.perf_counter()
            detector.fit(task.train)
            fitted = time.perf_counter()
            maps = detector.maps(task.test)
            done = time.perf_counter()
            lines.append(
                f"| {method} | {cells(measure(task, maps))} | {fitted - start:.1f} | {(done - fitted) / len(maps):.3f} |"
            )
            print(lines[-1], flush=True)
            rows[method] = by_defect(task, maps)
        lines += [
            "",
            f"| defect | images | {' | '.join(f'{method}: {metric}' for method in rows for metric in METRICS)} |",
            "|---|---|" + "---|" * (3 * len(rows)),
        ]
        for defect in next(iter(rows.values())):
            lines.append(
                f"| {defect} | {task.kinds.count(defect)} | "
                + " | ".join(cells(rows[method][defect]) for method in rows)
                + " |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    text = (
        real(options.folder) if options.folder else drawn(TUNING_SEEDS if options.tune else SEEDS)
    )
    if not options.tune:
        write_atomically(
            ROOT
            / "docs"
            / "results"
            / ("segmentation_real.md" if options.folder else "segmentation.md"),
            text.encode(),
        )
    print(text)


if __name__ == "__main__":
    main()
