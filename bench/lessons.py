"""How long the lessons take: `python bench/lessons.py [--rounds 3]` writes
docs/results/lessons_speed.md and the table in docs/teaching.md.

Copies of the notebooks are executed one after the other, each in a kernel of its own, as a reader's
is: once as this machine is, and once with the instructions of an ordinary laptop alone, AVX2. Do it
on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import common
import nbformat
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tools"))
from notebooks import execute
from pandalib.io import write_atomically

WANTED_TOTAL, WANTED_AVX2, WANTED_FIRST = 600, 1200, 10  # seconds
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
PAGE = """# How long the lessons take

Made by `python bench/lessons.py` on {machine}; torch {torch}, {threads} threads. Medians of
{rounds} round(s), seconds from the start of the kernel; memory is the most that the kernel held,
its libraries included.

{section}
| lesson | all cells, s | with AVX2 only, s | first figure, s | wanted | memory, MB |
|---|---|---|---|---|---|
{rows}

## Thirty at once, an estimate

Not measured: thirty kernels, each from its first cell to its last in the same moment. Memory is
thirty times a kernel's and JupyterLab's ({JUPYTERLAB} GB): it counts shared libraries thirty times;
minutes are thirty times the seconds above, divided among the cores, as if every lesson kept both of
its threads busy throughout. Both are upper bounds.

| lesson | memory, GB | minutes on 2 cores | on 8 | on 16 |
|---|---|---|---|---|
{thirty}
"""
JUPYTERLAB = 0.1  # GB, with one student's page open
START, END = "<!-- lessons:", "<!-- end of lessons -->"


def minutes_to_read(notebook) -> int:
    """As the box at the top of a lesson says."""
    return int(
        re.search(r"\| Time \| about (\d+) minutes to read and solve", notebook.cells[0].source)[1]
    )


def measure(paths: list[Path], rounds: int) -> dict[Path, tuple]:
    """For each lesson the medians of seconds, seconds to the first figure, bytes of memory."""
    measured = {path: [] for path in paths}
    for _ in range(rounds):
        for path in paths:
            with tempfile.TemporaryDirectory() as folder:
                measured[path].append(execute(Path(shutil.copy(path, folder))))
            print(path.name, measured[path][-1], flush=True)
    return {
        path: tuple(statistics.median(values) if all(values) else None for values in zip(*runs))
        for path, runs in measured.items()
    }


def of_thirty(name: str, seconds: float, memory_mb: float) -> str:
    """A row of the estimate: memory of thirty kernels, and minutes on some numbers of cores."""
    memory = 30 * (memory_mb / 1000 + JUPYTERLAB)
    minutes = (f"{30 * seconds * 2 / cores / 60:.0f}" for cores in (2, 8, 16))
    return f"| {name} | {memory:.0f} | {' | '.join(minutes)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--here-only", action="store_true", help="leave out the pass with AVX2")
    options = parser.parse_args()
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    native = measure(paths, options.rounds)
    plain = {}
    if not options.here_only:
        os.environ.update(AVX2)  # kernels inherit it
        plain = measure(paths, options.rounds)
    rows, guide, shares = [], [], []
    for path in paths:
        seconds, first, memory = native[path]
        held = f"{memory / 1e6:,.0f}" if memory else "not known here"
        slower = f"{plain[path][0]:.0f}" if plain else "not measured"
        rows.append(
            f"| {path.stem} | {seconds:.0f} | {slower} | {first:.1f} | "
            f"{WANTED_FIRST}, {'met' if first <= WANTED_FIRST else 'NOT met'} | {held} |"
        )
        lesson = nbformat.read(path, as_version=4)
        shares.append((seconds / (60 * lesson.metadata.pandalib.minutes), path.stem))
        title = lesson.cells[0].source.splitlines()[0].removeprefix("# ").split(":")[0]
        guide.append(
            f"| {path.name[:2]} | {title} | {minutes_to_read(lesson)} | {seconds:.0f} | {slower} |"
        )
    total = sum(native[path][0] for path in paths)
    slowest = max((native[path][1], path.stem) for path in paths)
    lines = [
        common.at_most(f"all {len(paths)} lessons together", total, WANTED_TOTAL, " s"),
        common.at_most(
            f"first figure, the slowest of the lessons ({slowest[1]})",
            slowest[0],
            WANTED_FIRST,
            " s",
        ),
        common.at_most(
            f"of the minutes that a lesson states, the worst ({max(shares)[1]})", max(shares)[0], 2
        ),
    ]
    if plain:
        total = sum(plain[path][0] for path in paths)
        lines.append(common.at_most("all, with AVX2 only", total, WANTED_AVX2, " s"))
    page = PAGE.format(
        section=common.section(lines),
        machine=machine,  # as it was before AVX2 was asked for
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        rounds=options.rounds,
        rows="\n".join(rows),
        thirty="\n".join(
            of_thirty(path.stem, native[path][0], (native[path][2] or 0) / 1e6) for path in paths
        ),
        JUPYTERLAB=JUPYTERLAB,
    )
    write_atomically(ROOT / "docs" / "results" / "lessons_speed.md", page.encode())
    where = ROOT / "docs" / "teaching.md"
    before, rest = where.read_text(encoding="utf-8").split(START)
    opening, after = rest.split(END)
    table = "\n".join(
        [
            "| lesson | | to read and solve, minutes | all cells run in, seconds | "
            "on an ordinary processor (AVX2) |",
            "|---|---|---|---|---|",
            *guide,
        ]
    )
    write_atomically(
        where, f"{before}{START}{opening.splitlines()[0]}\n{table}\n{END}{after}".encode()
    )


if __name__ == "__main__":
    main()
