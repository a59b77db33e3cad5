"""Sweeps: every run of a grid, each with a result file of its own, on one machine or a cluster.

    sweep("one_class_embedded", "results/one_class")     # killed and called again, it goes on

A result file holds the record of `pandalib.run`, the scores of up to 2,000 test images, and its
origin: settings, versions, device, threads, commit, time, but nothing that names the machine. It is
written whole or not at all. A run that fails leaves its error in its file, and the others go on.
"""

from __future__ import annotations

import functools
import subprocess
import threading
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import faiss
import joblib
import torch

from pandalib.cache import Memory
from pandalib.datasets.load import sibling_tasks
from pandalib.experiments.config import TIERS, ImageOptions, make_options, versions
from pandalib.experiments.grids import Grid, load_grid
from pandalib.experiments.results import (
    MAIN,
    PLAN,
    identity,
    in_brief,
    options_in,
    read_plan,
    read_runs,
    write_result,
)
from pandalib.experiments.run import load_network, reset_peak_rss, run
from pandalib.io import ROOT, dump_json_with_hash, write_atomically
from pandalib.progress import progress as bar

LOG = "sweep.log"  # in the folder of a sweep
MOST_SCORES = 2000  # a file with the scores of more test images would be large
CONNECTING = 15  # seconds to wait for a scheduler

# Joblib replaces a worker whose memory has grown. Nothing is lost, so nobody need be warned.
warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)


def sweep(
    grid: Grid | str | Path,
    folder: str | Path,
    *,
    workers: int | None = None,
    threads: int | None = None,
    scheduler: str | None = None,
    retry_failed: bool = False,
    skip_missing: bool = False,
    progress: bool = True,
) -> list[dict]:
    """Do all runs of a grid that have no result in `folder` yet.

    Parameters
    ----------
    grid : Grid, path or str
        A grid, its file, or the name of one of the project's own.
    folder : path
        For the plan, the log, and the result files in `runs/`. One grid has one folder.
    workers : int, optional
        Processes at once. None: one per core, or a single one with a GPU.
    threads : int, optional
        Threads of each process. None: the cores divided among the workers. Another number may
        change the last digits.
    scheduler : str, optional
        Address of a running Dask cluster, as "tcp://10.0.0.1:8786".
    retry_failed : bool
        Repeat the runs that failed before. Otherwise their errors stand.
    skip_missing : bool
        Go on without the data sets that are not on this machine.
    progress : bool
        Show a progress bar; the log file grows in any case.

    Returns
    -------
    results : list of dict
        One per run, in the grid's order; failed ones have an `error`.

    Raises
    ------
    ValueError
        For a missing data set, and for a folder with the results of another grid.
    RuntimeError
        When a worker died; the same call goes on from there.
    """
    grid = grid if isinstance(grid, Grid) else load_grid(grid)
    folder = Path(folder).expanduser()
    runs = grid.runs(skip_missing=skip_missing)
    results = read_runs(runs, folder)
    if retry_failed:
        results = {key: result for key, result in results.items() if "error" not in result}
    waiting = [run for run in runs if identity(run) not in results]
    for options in {_network(one): one for one in map(_options, waiting)}.values():
        load_network(options, TIERS[grid.tier])  # missing weights are reported now
    _write_plan(grid, runs, folder, skip_missing=skip_missing)
    waiting.sort(key=identity)  # long and short ones mixed, so that the bar can tell the time left
    left = {identity(one): one for one in waiting}
    finished = _finished(waiting, folder, workers or default_workers(), threads, scheduler)
    try:
        for result in bar(finished, grid.name, total=len(waiting), shown=progress):
            results[result["id"]] = result
            del left[result["id"]]
            count = f"{len(runs) - len(left)} of {len(runs)}"
            with open(folder / LOG, "a", encoding="utf-8") as log:
                log.write(f"{_now()} {grid.name}: {count}  {in_brief(result)}\n")
    except BrokenExecutor as error:
        raise RuntimeError(
            f"a worker died, most often for lack of memory: {len(left)} runs have no result yet, "
            f"as {in_brief(next(iter(left.values())))}. The same call goes on from here; fewer "
            f"workers need less memory. ({' '.join(str(error).split())[:300]})"
        ) from error
    return [results[identity(one)] for one in runs]


def _finished(
    waiting: list[dict], folder: Path, workers: int, threads: int | None, scheduler: str | None
) -> Iterator[dict]:
    """Results in the order in which they are done, each already in its file."""
    if scheduler is None:
        with joblib.parallel_config(backend="loky", inner_max_num_threads=threads):
            parallel = joblib.Parallel(workers, return_as="generator_unordered", batch_size=1)
            yield from parallel(joblib.delayed(attempt)(run, threads, folder) for run in waiting)
        return
    from distributed import Client, KilledWorker, as_completed  # the extra [cluster]

    with Client(scheduler, timeout=CONNECTING) as client:
        try:
            for future in as_completed(client.map(attempt, waiting, threads=threads, pure=False)):
                result = future.result()
                write_result(result, folder)  # no shared folder is needed
                yield result
        except KilledWorker as error:
            raise BrokenExecutor(str(error)) from error


def _write_plan(grid: Grid, runs: list[dict], folder: Path, *, skip_missing: bool) -> None:
    """Note in the folder what the grid is, so that its table knows what is missing."""
    path = folder / PLAN
    if path.exists() and read_plan(folder)["name"] != grid.name:
        raise ValueError(f"{folder} holds the results of another grid: choose another folder.")
    sources = sorted({run["task"].partition(":")[0] for run in runs} - {"folder"})
    plan = dict(
        name=grid.name,
        description=grid.description,
        tier=grid.tier,
        runs=runs,
        left_out=grid.missing() if skip_missing else {},
        classes={source: len(sibling_tasks(source)) for source in sources},
    )
    write_atomically(path, dump_json_with_hash(plan))


def _options(settings: dict) -> ImageOptions:
    return make_options(settings["method"], options_in(settings))


def _network(options: ImageOptions) -> tuple:
    """What decides which network a run loads."""
    names = ("backbone", "weights", "truncate_after", "adapt_from", "bias_free")
    return tuple(getattr(options, name, None) for name in names)


def default_workers() -> int:
    """One process per physical core, or a single one with a GPU."""
    return 1 if torch.cuda.is_available() else joblib.cpu_count(only_physical_cores=True)


# ---------------------------------------------------------------- one run

_one_at_a_time = threading.Lock()  # torch's seed and threads belong to the whole process


def attempt(settings: dict, threads: int | None = None, folder: Path | None = None) -> dict:
    """One run with its origin, written to its file; an exception becomes its `error`."""
    with _one_at_a_time:
        before = torch.get_num_threads(), faiss.omp_get_max_threads()
        if threads is not None:
            torch.set_num_threads(threads)
            faiss.omp_set_num_threads(threads)
        result = dict(
            id=identity(settings),
            settings=settings,
            all_settings=asdict(_options(settings)),
            tier_defaults=asdict(TIERS[settings["tier"]]),
            versions=versions(),
            device=_device(),
            threads=torch.get_num_threads(),
            commit=_commit(),
            started=_now(),
        )
        reset_peak_rss()
        try:
            result |= run(**settings, memory=_memory(), with_scores=True, progress=False)
            if result["n_test"] > MOST_SCORES:
                del result["labels"], result["scores"]
        except Exception as error:  # of any kind: the other runs go on
            result |= {key: settings[key] for key in MAIN} | {"error": _facts_of(error)}
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])
    if folder is not None:
        write_result(result, folder)
    return result


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _facts_of(error: Exception) -> dict:
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    trace = [f"{Path(one.filename).name}:{one.lineno} in {one.name}" for one in frames]
    return dict(type=type(error).__name__, message=str(error), traceback=trace)


@functools.cache
def _memory() -> Memory:
    """What a process keeps for its next runs; joblib replaces a process that grows by more."""
    return Memory(limit_mb=200)


@functools.cache
def _device() -> str:
    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"cpu: {torch.backends.cpu.get_cpu_capability()}"


@functools.cache
def _commit() -> str | None:
    """The commit of this checkout, with "-dirty" if files differ; None outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return found.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
