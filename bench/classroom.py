"""What a class needs of one machine: `python bench/classroom.py` writes
docs/results/classroom_speed.md.

Each student's copy runs alone in a kernel with one thread, from its first cell to its last, while
its processor time and its memory are measured; memory that kernels share, the libraries' pages, is
told apart. A class is then estimated, not measured:

    memory  = students x the kernel's own memory + the shared memory once
    seconds = the larger of one kernel's seconds and students x processor seconds / cores

as if everybody pressed "Run All Cells" in the same moment. To see what the estimate is worth, as
many kernels as there are cores, and twice as many, run the first lesson at the same time.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import psutil
from common import Line, arguments, finish, machine, section, versions
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks" / "student").glob("[0-9]*.ipynb"))
EVERY = 0.2  # seconds between two looks at the memory
PAGE = """# What a class needs of one machine

Made by `python bench/classroom.py` on {machine}; {versions}; {memory:.0f} GB of memory. One thread
in each kernel; medians of {rounds} round(s).

{section}
## Measured: one kernel alone

| lesson | seconds | processor seconds | own memory, GB | shared memory, GB |
|---|---|---|---|---|
{measured}

Own memory: the most that a kernel held and no other process did. Shared: pages of libraries, which
all kernels of one machine have in common.

## Estimated: {students} kernels at once

{students} students press "Run All Cells" in the same moment. In a lesson that is read and solved,
cells run in turns, and most of these seconds are never waited for.

| lesson | memory, GB | minutes on 8 cores | minutes on 16 cores | minutes on 32 cores |
|---|---|---|---|---|
{estimated}

## The estimate, tried

The first lesson in several kernels at once on this machine ({cores} cores).

| kernels | estimated seconds | measured seconds | estimated memory, GB | measured memory, GB |
|---|---|---|---|---|
{tried}
"""


def watched(path: Path, seen: dict[int, tuple[float, int, int]]) -> tuple[float, float, int, int]:
    """Run a copy: seconds, processor seconds, own bytes, shared bytes, the last two at their most.

    While it runs, `seen` holds its latest processor seconds, own and shared bytes by process.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
    )
    over, most = threading.Event(), [0.0, 0, 0]

    def watch(process: psutil.Process) -> None:
        while not over.wait(EVERY):
            try:
                spent, memory = process.cpu_times(), process.memory_full_info()
            except psutil.Error:
                return
            own = memory.uss
            most[0] = spent.user + spent.system
            if own > most[1]:
                most[1:] = own, memory.rss - own
            seen[process.pid] = (most[0], own, memory.rss - own)

    start = time.perf_counter()
    with client.setup_kernel():
        process = psutil.Process(client.km.provisioner.pid)
        watcher = threading.Thread(target=watch, args=(process,))
        watcher.start()
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
        seconds = time.perf_counter() - start
        time.sleep(2 * EVERY)
        over.set()
        watcher.join()
    seen.pop(process.pid, None)
    return seconds, *most


def together(path: Path, n: int) -> tuple[float, float]:
    """The same copy in `n` kernels at once: seconds until the last one ends, bytes of all."""
    seen: dict[int, tuple[float, int, int]] = {}
    over, most = threading.Event(), [0]

    def watch() -> None:
        while not over.wait(EVERY):
            now = list(seen.values())
            if now:
                most[0] = max(most[0], sum(own for _, own, _ in now) + max(s for _, _, s in now))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    with ThreadPoolExecutor(n) as pool:
        list(pool.map(lambda _: watched(path, seen), range(n)))
    seconds = time.perf_counter() - start
    over.set()
    watcher.join()
    return seconds, most[0]


def estimate(one: tuple, students: int, cores: int) -> tuple[float, float]:
    """Seconds and bytes of `students` kernels at once, from one kernel's."""
    seconds, processor, own, shared = one
    return max(seconds, students * processor / cores), students * own + shared


def main() -> None:
    options = arguments(__doc__, 1, ("--students", dict(type=int, default=30)))
    os.environ |= {"OMP_NUM_THREADS": "1", "PANDALIB_QUIET": "1"}  # kernels inherit it
    paths, students, cores = (
        LESSONS[: 1 if options.tiny else None],
        options.students,
        os.cpu_count(),
    )
    alone = {}
    for path in paths:
        runs = [watched(path, {}) for _ in range(options.rounds)]
        alone[path] = tuple(map(statistics.median, zip(*runs)))
        print(path.name, alone[path], flush=True)
    measured, estimated, tried = [], [], []
    for path, one in alone.items():
        seconds, processor, own, shared = one
        measured.append(
            f"| {path.stem} | {seconds:.0f} | {processor:.0f} | "
            f"{own / 1e9:.2f} | {shared / 1e9:.2f} |"
        )
        minutes = [f"{estimate(one, students, n)[0] / 60:.1f}" for n in (8, 16, 32)]
        memory = estimate(one, students, 1)[1] / 1e9
        estimated.append(f"| {path.stem} | {memory:.0f} | {' | '.join(minutes)} |")
    for n in (cores,) if options.tiny else (cores, 2 * cores):
        seconds, memory = estimate(alone[paths[0]], n, cores)
        real_seconds, real_memory = together(paths[0], n)
        print(n, "kernels:", real_seconds, real_memory, flush=True)
        tried.append(
            f"| {n} | {seconds:.0f} | {real_seconds:.0f} | "
            f"{memory / 1e9:.1f} | {real_memory / 1e9:.1f} |"
        )
    largest = max(alone, key=lambda path: alone[path][2])
    slowest = max(alone, key=lambda path: alone[path][1])
    memory, busy = (
        estimate(alone[largest], students, 1)[1],
        estimate(alone[slowest], students, 16)[0],
    )
    lines = [
        Line(
            f"{students} kernels of the largest lesson ({largest.stem}), memory",
            "",
            f"{memory / 1e9:.0f} GB, estimated",
            None,
        ),
        Line(
            f"{students} kernels of the slowest lesson ({slowest.stem}) on 16 cores",
            "",
            f"{busy / 60:.1f} minutes, estimated",
            None,
        ),
    ]
    page = PAGE.format(
        machine=machine(),
        versions=versions("torch", "ipykernel"),
        memory=psutil.virtual_memory().total / 1e9,
        rounds=options.rounds,
        section=section(lines),
        students=students,
        cores=cores,
        measured="\n".join(measured),
        estimated="\n".join(estimated),
        tried="\n".join(tried),
    )
    finish("classroom_speed.md", page, options.tiny)


if __name__ == "__main__":
    main()
