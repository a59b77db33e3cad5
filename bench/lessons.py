"""How long the lessons take: `python bench/lessons.py [--rounds 3]` writes
docs/results/lessons_speed.md and the table in docs/teaching.md.

Copies of the notebooks are executed one after the other, each in a kernel of its own, as a reader's
is. Do it on a quiet machine.
"""

from __future__ import annotations

import argparse
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

WANTED_TOTAL, WANTED_FIRST = 480, 10  # seconds
PAGE = """# How long the lessons take

Made by `python bench/lessons.py` on {machine}; torch {torch}, {threads} threads. Medians of
{rounds} round(s), seconds from the start of the kernel; memory is the most that the kernel held,
its libraries included.

{section}
| lesson | all cells, s | first figure, s | wanted | memory, MB |
|---|---|---|---|---|
{rows}

All lessons together: {total:.0f} s; wanted at most {wanted_total} s, {verdict}.
"""
START, END = "<!-- lessons:", "<!-- end of lessons -->"


def minutes_to_read(notebook) -> int:
    """As the box at the top of a lesson says."""
    return int(
        re.search(r"\| Time \| about (\d+) minutes to read and solve", notebook.cells[0].source)[1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    measured = {path: [] for path in paths}
    for _ in range(options.rounds):
        for path in paths:
            with tempfile.TemporaryDirectory() as folder:
                measured[path].append(execute(Path(shutil.copy(path, folder))))
            print(path.name, measured[path][-1], flush=True)
    rows, guide, total = [], [], 0.0
    for path, rounds in measured.items():
        seconds, first = (statistics.median(values) for values in list(zip(*rounds))[:2])
        memory = [row[2] for row in rounds if row[2]]
        held = f"{statistics.median(memory) / 1e6:,.0f}" if memory else "not known here"
        rows.append(
            f"| {path.stem} | {seconds:.0f} | {first:.1f} | {WANTED_FIRST}, "
            f"{'met' if first <= WANTED_FIRST else 'NOT met'} | {held} |"
        )
        lesson = nbformat.read(path, as_version=4)
        title = lesson.cells[0].source.splitlines()[0].removeprefix("# ").split(":")[0]
        guide.append(f"| {path.name[:2]} | {title} | {minutes_to_read(lesson)} | {seconds:.0f} |")
        total += seconds
    slowest = max(
        (statistics.median([row[1] for row in rounds]), path.stem)
        for path, rounds in measured.items()
    )
    lines = [
        common.at_most(f"all {len(paths)} lessons together", total, WANTED_TOTAL, " s"),
        common.at_most(
            f"first figure, the slowest of the lessons ({slowest[1]})",
            slowest[0],
            WANTED_FIRST,
            " s",
        ),
    ]
    page = PAGE.format(
        section=common.section(lines),
        machine=f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        rounds=options.rounds,
        rows="\n".join(rows),
        total=total,
        wanted_total=WANTED_TOTAL,
        verdict="met" if total <= WANTED_TOTAL else "NOT met",
    )
    write_atomically(ROOT / "docs" / "results" / "lessons_speed.md", page.encode())
    where = ROOT / "docs" / "teaching.md"
    before, rest = where.read_text(encoding="utf-8").split(START)
    opening, after = rest.split(END)
    table = "\n".join(
        [
            "| lesson | | to read and solve, minutes | all cells run in, seconds |",
            "|---|---|---|---|",
            *guide,
        ]
    )
    write_atomically(
        where, f"{before}{START}{opening.splitlines()[0]}\n{table}\n{END}{after}".encode()
    )


if __name__ == "__main__":
    main()
