"""One worker against two, and the whole embedded one-class grid: `python bench/sweep.py` writes
docs/results/sweep_speed.md.

The comparison takes the same runs of a part of the grid, one thread a process, alternating, each
time into an empty folder; the start of the processes counts. A line more has one process with all
threads. `--tiny` tries it out in a minute, on few images, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import common
import joblib
import torch

from pandalib import load_grid, sweep
from pandalib.io import write_atomically

GRID = "one_class_embedded"
WANTED_RATIO, WANTED_SECONDS = 1.7, 360
PAGE = """# Sweeps

Made by `python bench/sweep.py` on {machine}, {cores} cores; torch {torch}.

{section}
## One worker and two

{n_part} runs of the grid `{grid}` ({part}), the same each time, into empty folders; medians of
{rounds} alternating rounds. The start of the processes counts: each imports torch and draws its
images.

| processes x threads | seconds | against one process of one thread |
|---|---|---|
{rows}

Wanted: two workers at least {wanted_ratio} times one worker: {ratio:.2f}, {ratio_met}.

## The whole grid

{n_grid} runs with {workers} workers: **{whole}**, wanted at most {wanted_whole}: {whole_met}. The
largest process held {memory:.0f} MiB.

| method | runs | mean seconds of a run |
|---|---|---|
{methods}

Where the time goes: in EWC, outlier exposure and early stopping more than nine tenths of it are the
trainable part's convolutions, their backward pass and the step of the optimiser (profile at one
thread). What a sweep leaves out, without a change of any number: a process keeps the images it has
drawn and what the frozen part made of them for its later runs (`pandalib.cache.Memory`), and the
history has the first and last moment only (`checkpoints = 1`), since every moment costs a pass over
all images.
"""


def in_words(seconds: float) -> str:
    """2 min 50 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def part_of(grid, tasks: list[str], tiny: bool):
    """The grid on a few of its tasks."""
    import dataclasses

    settings = dict(grid.blocks[0]["settings"])
    if tiny:
        settings |= dict(n_train=30, n_test=4)
        settings |= {method: dict(epochs=1) for method in ("early", "ses", "ewc", "oe")}
    block = {**grid.blocks[0], "tasks": tasks, "settings": settings}
    return dataclasses.replace(grid, blocks=(block,))


def timed(grid, workers: int, threads: int) -> tuple[float, list[dict]]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        results = sweep(grid, folder, workers=workers, threads=threads)
        seconds = time.perf_counter() - start
    failed = [result for result in results if "error" in result]
    if failed:
        raise SystemExit(
            f"{failed[0]['task']} {failed[0]['method']} failed: {failed[0]['error']['message']}"
        )
    return seconds, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--tiny", action="store_true", help="few images, one round; nothing is written"
    )
    options = parser.parse_args()
    cores = joblib.cpu_count(only_physical_cores=True)
    grid = load_grid(GRID)
    tasks = ["pictograms:star", "pictograms:phone"]
    part = part_of(grid, tasks, options.tiny)
    whole_grid = part_of(grid, ["pictograms"], True) if options.tiny else grid
    variants = {(1, 1): [], (2, 1): [], (1, cores): []}
    figures = None
    for _ in range(1 if options.tiny else options.rounds):
        for workers, threads in variants:
            seconds, results = timed(part, workers, threads)
            variants[workers, threads].append(seconds)
            if threads == 1:  # the same numbers, whoever did the run
                found = [(result["id"], result["roc_auc"]) for result in results]
                assert figures in (None, found), "one worker and two gave different results"
                figures = found
    median = {key: statistics.median(seconds) for key, seconds in variants.items()}
    ratio = median[1, 1] / median[2, 1]
    rows = "\n".join(
        f"| {workers} x {threads} | {median[workers, threads]:.1f} | "
        f"{median[1, 1] / median[workers, threads]:.2f} |"
        for workers, threads in variants
    )
    seconds, results = timed(whole_grid, cores, 1)
    methods = dict.fromkeys(result["method"] for result in results)
    each = {
        method: [result["seconds"] for result in results if result["method"] == method]
        for method in methods
    }
    lines = [
        common.Line(
            f"sweep: two workers against one, {len(part.runs())} runs",
            f"{WANTED_RATIO:g} times as fast",
            f"{ratio:.2f} times",
            ratio >= WANTED_RATIO,
        ),
        common.Line(
            f"sweep: the whole grid, {len(results)} runs",
            f"at most {in_words(WANTED_SECONDS)}",
            in_words(seconds),
            seconds <= WANTED_SECONDS,
        ),
    ]
    page = PAGE.format(
        section=common.section(lines),
        machine=f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        cores=os.cpu_count(),
        torch=torch.__version__,
        n_part=len(part.runs()),
        grid=GRID,
        part=" and ".join(tasks) + ", all methods",
        rounds=len(variants[1, 1]),
        rows=rows,
        wanted_ratio=WANTED_RATIO,
        ratio=ratio,
        ratio_met="met" if ratio >= WANTED_RATIO else "NOT met",
        n_grid=len(results),
        workers=cores,
        whole=in_words(seconds),
        wanted_whole=in_words(WANTED_SECONDS),
        whole_met="met" if seconds <= WANTED_SECONDS else "NOT met",
        memory=max(result["peak_rss_mb"] for result in results),
        methods="\n".join(
            f"| {method} | {len(values)} | {statistics.mean(values):.1f} |"
            for method, values in each.items()
        ),
    )
    print(page)
    if not options.tiny:
        write_atomically(ROOT / "docs" / "results" / "sweep_speed.md", page.encode())


if __name__ == "__main__":
    main()
