"""All methods of the course on the same images: `python bench/methods.py` writes
docs/results/methods.csv and methods.md.

Quality against the seconds that an image costs, on photographs of solar cells and on drawn
surfaces. Every method has the settings of its tier. Do it on a quiet machine: about ten minutes on
two cores.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
from dataclasses import replace

import common
import numpy as np
import torch

from pandalib import load_task, roc_auc
from pandalib.backbones import Backbone
from pandalib.datasets import elpv
from pandalib.experiments.config import METHODS, make_options, tier_named
from pandalib.experiments.run import Setup, load_network
from pandalib.io import write_atomically

SEED = 0  # the tables have more seeds; this is about seconds
SETS = {  # name: tier, tasks, size in pixels, normal images to learn from, images of each kind
    "cells": ("standard", ("elpv:mono", "elpv:poly"), 128, 200, 100),
    "surfaces": (
        "embedded",
        ("surfaces:weave", "surfaces:metal", "surfaces:washer"),
        128,
        50,
        None,
    ),
}
LEFT_OUT = {
    "compactness": "it is `early` without a stop",
    "oe": "it learns from outliers",
    "svdd": "it trains a network from nothing",
}
PAGE = """# All methods of the course on the same images

Made by `python bench/methods.py` on {machine}; {versions}. The numbers for the figure of lesson 09
are in [methods.csv](methods.csv).

Every method with the settings of its tier, 1 seed: this page is about seconds, and
[the tables](../methods.md) compare quality. ROC-AUC of images, mean over the tasks, in brackets the
lowest and the highest task. Seconds to learn from the normal images, and
milliseconds to score an image that is in memory already, and megabytes that the detector keeps
beside the network; medians. Cells: mono and poly, {n_train}
sound ones to learn from, MobileNetV2 at 128 px. Surfaces: weave, metal and washer, 50 normal
images, this project's own network. Left out are {left_out}.

{tables}

{credit}
"""


def kept_bytes(value) -> int:
    """Bytes of the arrays that a fitted detector holds, its network left out."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(kept_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(kept_bytes, value))
    if isinstance(value, Backbone) or not type(value).__module__.startswith("pandalib."):
        return 0
    return sum(map(kept_bytes, getattr(value, "__dict__", {}).values()))


def measured(task, method: str, tier) -> tuple[float, ...]:
    """ROC-AUC, seconds to fit, seconds to score an image, megabytes kept."""
    options = make_options(method, {})
    setup = Setup(task=task, backbone=load_network(options, tier, SEED), seed=SEED)
    start = time.perf_counter()
    detector = options.at_pace(tier.pace, len(task.train)).build(setup).fit(task.train)
    fitted = time.perf_counter()
    scores = detector.score(task.test)
    spent = time.perf_counter() - fitted
    megabytes = kept_bytes(detector) / 1e6
    return roc_auc(task.labels, scores), fitted - start, spent / len(task.test), megabytes


def in_memory(name: str, size: int, n_train: int, n_test: int | None):
    """A task whose images are arrays, so that no time is spent on reading or drawing them."""
    task = load_task(name, seed=SEED, size=size, n_train=n_train, n_test=n_test)
    return replace(task, train=task.train[:], test=task.test[:])


def rows(tiny: bool) -> list[dict]:
    found = []
    for images, (tier, names, size, n_train, n_test) in SETS.items():
        n_train, n_test = (20, 4) if tiny else (n_train, n_test)
        tasks = [in_memory(name, size, n_train, n_test) for name in names]
        for method in METHODS:
            if method in LEFT_OUT:
                continue
            values = np.array([measured(task, method, tier_named(tier)) for task in tasks])
            aucs = values[:, 0]
            _, fit, score, megabytes = np.median(values, axis=0)
            found.append(
                {
                    "images": images,
                    "method": method,
                    "roc_auc": round(float(aucs.mean()), 4),
                    "lowest": round(float(aucs.min()), 4),
                    "highest": round(float(aucs.max()), 4),
                    "fit_seconds": float(f"{fit:.3g}"),
                    "ms_per_image": float(f"{1e3 * score:.3g}"),
                    "megabytes": float(f"{megabytes:.3g}"),
                }
            )
    return found


def table(found: list[dict], images: str) -> str:
    lines = [
        f"## {images.capitalize()}\n",
        "| method | ROC-AUC | fit, s | ms an image | MB kept |",
        "|---|---|---|---|---|",
    ]
    chosen = [row for row in found if row["images"] == images]
    for row in sorted(chosen, key=lambda row: -row["roc_auc"]):
        auc, low, high = (row[key] for key in ("roc_auc", "lowest", "highest"))
        lines.append(
            f"| {row['method']} | {auc:.3f} ({low:.3f} to {high:.3f}) | {row['fit_seconds']:.3g} | "
            f"{row['ms_per_image']:.3g} | {row['megabytes']:.3g} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="try it out; nothing is written")
    tiny = parser.parse_args(arguments).tiny
    found = rows(tiny)
    page = PAGE.format(
        machine=common.machine(),
        versions=common.versions("torch", "faiss-cpu"),
        n_train=SETS["cells"][3],
        left_out=", ".join(f"`{name}` ({why})" for name, why in LEFT_OUT.items()),
        tables="\n\n".join(table(found, images) for images in SETS),
        credit=f"Photographs: {elpv.CREDIT}.",
    )
    if tiny:
        print(page)
        return 0
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_atomically(common.RESULTS / "methods.csv", text.getvalue().encode())
    write_atomically(common.RESULTS / "methods.md", page.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
