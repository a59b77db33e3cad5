"""The standard tier on photographs: `python bench/photographs.py`.

Writes docs/results/photographs_speed.md: the first score of solar cells from a cold start and with
a warm cache, an epoch of adaptation, extraction beside the bare network, and the memory that all
60,000 images of CIFAR-10 take. Where CIFAR-10 is not at hand (`python -m pandalib data`), that line
is left out, which the page says.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import common
import numpy as np
import torch
import torchvision
from common import Line, alternate, at_most, finish, machine, section, versions

from pandalib import knn_scores, load_backbone, load_task
from pandalib.backbones import PIXELS_PER_BATCH, normalise
from pandalib.datasets.public import is_here
from pandalib.methods.panda import fit_compactness

PAGE = """# The standard tier on photographs

Made by `python bench/photographs.py` on {machine}; {versions}. Medians of {rounds}
rounds.

{section}
"Cold start": a process that has to import, read the cells and run the network, without a cache of
features. "An epoch": {n_train} cells at {size} px, the frozen part's output at hand, and all
{n_test} test cells scored again after it. Extraction: images a second beside the network's own
forward pass on normalised batches that lie ready, in the better of both memory formats.
{cifar}
"""
TASK, NAME = "elpv:poly", "mobilenet_v2"
OF_ALL_OF_CIFAR = """
from pandalib.experiments.run import peak_rss_mb
from pandalib import load_backbone, load_task
from pandalib.datasets.public import names_of
backbone = load_backbone("mobilenet_v2", "imagenet")
tasks = [load_task(f"cifar10:{name}", size=96) for name in names_of("cifar10")]
features = [backbone.features(task.train) for task in tasks] + [backbone.features(tasks[0].test)]
print(peak_rss_mb(), sum(map(len, features)))
"""


def first_scores(rounds: int, tiny: bool) -> list[Line]:
    """A whole process, from an empty cache and from the one that this leaves."""
    command = [sys.executable, "-m", "pandalib", "run", "--tier", "standard", "--task", TASK]
    command += ["--method", "dn2", "--json", "-", *(["--n-test", "5"] if tiny else [])]
    taken = {"cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for kind, spent in taken.items():
                start = time.perf_counter()
                subprocess.run(
                    command,
                    cwd=common.ROOT,
                    env=os.environ | {"PANDALIB_CACHE": cache},
                    check=True,
                    capture_output=True,
                )
                spent.append(time.perf_counter() - start)
    cold, warm = (float(np.median(spent)) for spent in taken.values())
    return [
        at_most(f"{TASK}: first score by DN2, cold start", cold, 60, " s"),
        at_most(f"{TASK}: the same with a warm cache", warm, 5, " s"),
    ]


def epoch(task, backbone, rounds: int) -> list[Line]:
    """An epoch of training on the cells' frozen features, and the test cells scored again."""
    frozen, frozen_test = (backbone.frozen_features(part[:]) for part in (task.train, task.test))
    marks = []

    def rescore(checkpoint):
        knn_scores(*(checkpoint.backbone.features_from(part) for part in (frozen, frozen_test)))
        marks.append(time.perf_counter())

    how = dict(lr=0.02, max_grad_norm=0.1, progress=False)
    fit_compactness(backbone, frozen, epochs=rounds, on_checkpoint=rescore, **how)
    taken = float(np.median(np.diff(marks)))
    return [at_most(f"{TASK}: an epoch of {len(frozen)} cells, with scoring", taken, 3, " s")]


def extraction(task, rounds: int) -> list[Line]:
    network = load_backbone(NAME, "imagenet", device="cpu")
    images = task.train[:]
    step = max(1, PIXELS_PER_BATCH // (images.shape[-1] * images.shape[-2]))
    ready = [normalise(images[start : start + step]) for start in range(0, len(images), step)]
    contiguous = [batch.contiguous() for batch in ready]
    bare = torchvision.models.mobilenet_v2(weights=None).features.eval()
    last = torchvision.models.mobilenet_v2(weights=None).features.eval()
    last = last.to(memory_format=torch.channels_last)

    def forward(part, batches):
        with torch.no_grad():
            return [part(batch).mean(dim=(2, 3)) for batch in batches]

    median, _ = alternate(
        {
            "pandalib": lambda: network.features(images),
            "contiguous": lambda: forward(bare, contiguous),
            "channels_last": lambda: forward(last, ready),
        },
        rounds,
    )
    share = min(median["contiguous"], median["channels_last"]) / median["pandalib"]
    what = f"{NAME}, {len(images)} cells at {images.shape[-1]} px: images a second"
    return [
        Line(
            what,
            "at least 0.9 of the bare forward pass",
            f"{share:.2f}, {len(images) / median['pandalib']:.0f} images a second",
            share >= 0.9,
        )
    ]


def memory() -> list[Line]:
    """The features of all images of CIFAR-10, in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        found = subprocess.run(
            [sys.executable, "-c", OF_ALL_OF_CIFAR],
            cwd=common.ROOT,
            env=os.environ | {"PANDALIB_CACHE": cache},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
    return [at_most("CIFAR-10: peak memory", float(found[0]), 2048, " MiB")]


def main() -> None:
    options = common.arguments(__doc__, 5)
    size = 64 if options.tiny else 160
    task = load_task(TASK, size=size, **(dict(n_train=40, n_test=5) if options.tiny else {}))
    backbone = load_backbone(NAME, "imagenet", device="cpu")
    lines = first_scores(min(options.rounds, 3), options.tiny)
    lines += epoch(task, backbone, max(2, options.rounds))
    lines += extraction(task, options.rounds)
    cifar = "CIFAR-10 was not at hand."
    if is_here("cifar10") and not options.tiny:
        lines += memory()
        cifar = "CIFAR-10: features of all 60,000 images at 96 px."
    for line in lines:
        print(line.row(), flush=True)
    page = PAGE.format(
        machine=machine(),
        versions=versions("torch", "torchvision", "numpy"),
        rounds=options.rounds,
        section=section(lines),
        n_train=len(task.train),
        n_test=len(task.test),
        size=size,
        cifar=cifar,
    )
    finish("photographs_speed.md", page, options.tiny)


if __name__ == "__main__":
    main()
