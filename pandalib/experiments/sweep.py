"""Sweeps: every run of a grid, each with a result file of its own, on one machine or on a Dask cluster.

    sweep("one_class_embedded", "results/one_class")        # killed and called again, it does what is missing

A result file holds the record of `pandalib.run` and where it came from: settings, versions, device, threads, commit, time;
nothing that names the machine. It is under a hash (`pandalib.sealed`), and written whole or not at all, by the process that did the run (on a cluster by the
caller, so that no shared folder is needed). A run that fails leaves its error in its file, and the others go on.
"""

from __future__ import annotations

import functools
import inspect
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pandalib.experiments import config as tiers
from pandalib.io import ROOT, write_atomically
from pandalib.experiments.grids import Grid, expand, file_name, identity, load_grid
from pandalib.sealed import sealed, unsealed

FORMAT = 1
PLAN = "plan.json"
RUNS = "runs"  # the folder of the result files
KEYS = (
    "task",
    "method",
    "tier",
    "backbone",
    "weights_sha256",
    "seed",
    "n_train",
    "n_test",
    "roc_auc",
    "pixel_roc_auc",
    "pro",
    "seconds",
    "peak_rss_mb",
    "history",
)
# Seconds of a run on 400 images at one thread, for the order of the runs and a first estimate; soon replaced by what is measured.
USUAL_SECONDS = dict(
    pixels=1.5,
    dn2=1.5,
    whitened=1.5,
    compactness=18,
    early=4,
    ses=8,
    ewc=18,
    oe=16,
    svdd=12,
    spade=6,
    bank=8,
)
TICK = 1.0  # seconds between two looks at the clock
CONNECTING = 15  # seconds to wait for a cluster's scheduler
_one_at_a_time = (
    threading.Lock()
)  # torch's seed and its number of threads belong to the whole process


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
    """Do every run of a grid that has no result in `folder` yet.

    Parameters
    ----------
    grid : a grid, its file, or the name of one of the project's own.
    folder : for `plan.json` and the result files in `runs/`. One grid has one folder.
    workers : processes at once. None: one a core, or one where there is a GPU.
    threads : of each process. None: the cores divided among the workers. Another number may change the last digits.
    scheduler : address of a Dask cluster, as "tcp://10.0.0.1:8786"; its workers then do the runs, one at a time each.
    retry_failed : do those runs again that failed before. Without it their errors stand.
    skip_missing : go on without the data sets that are not on this machine.
    progress : report on standard error how far it is and how long it will take.

    Returns
    -------
    list of dict, the results of all runs of the grid in its order, failed ones (with `error`) included.

    Raises
    ------
    ValueError for a grid that cannot be, a data set that is missing, a folder of another grid or with results of other
    weights; ConnectionError for a cluster that cannot be reached; OSError when a result cannot be written.
    """
    if not isinstance(grid, Grid):
        grid = load_grid(grid)
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: expected at least 1.")
    folder = Path(folder).expanduser()
    runs = grid.runs(skip_missing=skip_missing)
    if not runs:
        raise ValueError(f"grid {grid.name} has no runs left without the missing data sets.")
    write_plan(grid, runs, folder, skip_missing=skip_missing)
    results = read_runs(runs, folder)
    check_meaning(results.values())
    waiting = [
        run
        for run in runs
        if identity(run) not in results or retry_failed and "error" in results[identity(run)]
    ]
    waiting.sort(
        key=lambda run: -USUAL_SECONDS[run["method"]]
    )  # long ones first, so that no worker is left with one at the end
    if not waiting:
        return list(results.values())
    if scheduler is not None:
        finished, workers = _on_cluster(waiting, folder, scheduler, threads)
    else:
        prepare(waiting)
        workers = min(workers or usual_workers(), len(waiting))
        finished = _on_this_machine(
            waiting, folder, workers, threads or max(1, _cores() // workers)
        )
    line = _Line(grid.name, runs, results, waiting, workers, shown=progress)
    try:
        for result in finished:
            if result is not None:
                results[result["id"]] = result
            line.show(result)
    finally:
        finished.close()  # also after ctrl-C: no process stays behind
        line.close()
    return [results[identity(run)] for run in runs]


def estimate(runs: list[dict], results: list[dict], workers: int) -> float | None:
    """Seconds that `runs` will take: each the mean of those of its method, or its usual share of what was measured; None where nothing was, and nothing is known."""
    known: dict[str, list[float]] = {}
    for result in results:
        if result.get("seconds"):
            known.setdefault(result["method"], []).append(result["seconds"])
    if not known and any(run["tier"] != "embedded" for run in runs):
        return None
    mean = {method: sum(seconds) / len(seconds) for method, seconds in known.items()}
    pace = sum(mean.values()) / sum(USUAL_SECONDS[method] for method in mean) if mean else 1.0
    each = [mean.get(run["method"], pace * USUAL_SECONDS[run["method"]]) for run in runs]
    return max([sum(each) / max(1, workers), *each])


def usual_workers() -> int:
    """One process a physical core, or one where there is a GPU to share."""
    import torch

    return 1 if torch.cuda.is_available() else _cores()


def _cores() -> int:
    import joblib

    return joblib.cpu_count(
        only_physical_cores=True
    )  # heeds affinity and the limits of a container


# ---------------------------------------------------------------- one run


def attempt(settings: dict, threads: int | None = None) -> dict:
    """One run and where it came from; an exception becomes the `error` of the result."""
    with _one_at_a_time:
        return _attempt(settings, threads)


def _attempt(settings: dict, threads: int | None) -> dict:
    import faiss
    import torch

    from pandalib.experiments.run import reset_peak_rss, run

    if threads is not None:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(run).parameters.items()
        if name != "memory"
    }
    around = dict(
        settings=settings,
        all_settings=defaults | settings,
        tier_defaults=tier_defaults(settings["tier"]),
        versions=versions(),
        device=_device(),
        threads=torch.get_num_threads(),
        commit=commit(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    reset_peak_rss()
    start = time.perf_counter()
    try:
        record = run(**settings, memory=_memory())
    except Exception as error:  # whatever it is: the other runs go on
        record = failed(settings, error, seconds=time.perf_counter() - start)
    return dict(format=FORMAT, id=identity(settings), **record, **around)


def failed(settings: dict, error: BaseException, seconds: float | None = None) -> dict:
    """The record of a run that failed: the keys of every record, empty, and the error with the last lines of its trace."""
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    trace = [
        f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}"
        for frame in frames
    ]
    empty = dict.fromkeys(KEYS) | {key: settings[key] for key in ("task", "method", "tier", "seed")}
    seconds = None if seconds is None else round(seconds, 3)
    return empty | dict(
        seconds=seconds,
        history=[],
        error=dict(type=type(error).__name__, message=str(error), traceback=trace),
    )


def tier_defaults(name: str) -> dict:
    """What a tier stands for in a run: network, weights, size, pace."""
    tier = tiers.TIERS[name]
    return {
        key: value for key, value in tier._asdict().items() if key not in ("needs", "task", "pace")
    } | dict(pace=tier.pace._asdict())


@functools.cache
def _memory():
    from pandalib.cache import Memory

    return Memory()


@functools.cache
def versions() -> dict:
    from importlib.metadata import PackageNotFoundError, version

    import pandalib

    found = dict(pandalib=pandalib.__version__, python=".".join(map(str, sys.version_info[:3])))
    for name in ("torch", "torchvision", "numpy", "scikit-learn", "faiss-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # conda's name of faiss, for example
            found[name] = None
    return found


@functools.cache
def commit() -> str | None:
    """The commit of this checkout, "-changed" behind it where files differ from it; None outside of git."""
    try:
        ask = lambda *words: subprocess.run(
            ["git", "-C", ROOT, *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()  # noqa: E731
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", "pandalib", "data")
        return ask("rev-parse", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def _device() -> str:
    import torch

    return (
        f"cuda: {torch.cuda.get_device_name()}"
        if torch.cuda.is_available()
        else f"cpu: {torch.backends.cpu.get_cpu_capability()}"
    )


# ---------------------------------------------------------------- results on disk


def write_result(result: dict, folder: Path) -> dict:
    path = folder / RUNS / file_name(result["settings"])
    write_atomically(path, sealed(result))
    return result


def read_runs(runs: list[dict], folder: Path) -> dict[str, dict]:
    """The results there are, by the identity of their run; a file that is damaged counts as absent."""
    found = {}
    for settings in runs:
        result = _read(settings, folder)
        if result is not None:
            found[result["id"]] = result
    return found


def _read(settings: dict, folder: Path) -> dict | None:
    try:
        result = unsealed((folder / RUNS / file_name(settings)).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    sound = (
        result.get("format") == FORMAT
        and result.get("settings") == settings
        and result.get("id") == identity(settings)
        and all(key in result for key in KEYS)
    )
    return result if sound and _has_its_types(result) else None


def _has_its_types(result: dict) -> bool:
    """Whether the entries that others rely on are what they should be; a file may come from a stranger."""
    texts = all(isinstance(result[key], str) for key in ("task", "method", "tier")) and all(
        isinstance(result[key], str | None) for key in ("backbone", "weights_sha256")
    )
    numbers = all(
        type(result[key]) in (int, float, type(None))
        for key in (
            "seed",
            "n_train",
            "n_test",
            "roc_auc",
            "pixel_roc_auc",
            "pro",
            "seconds",
            "peak_rss_mb",
        )
    )
    error = result.get("error", dict(type="", message=""))
    return (
        texts
        and numbers
        and isinstance(result["history"], list)
        and isinstance(error, dict)
        and all(isinstance(error.get(key), str) for key in ("type", "message"))
    )


def write_plan(grid: Grid, runs: list[dict], folder: Path, *, skip_missing: bool = False) -> None:
    """Note in the folder what the grid is, so that its table knows what is missing."""
    sources = sorted({run["task"].partition(":")[0] for run in runs})
    plan = dict(
        format=FORMAT,
        name=grid.name,
        description=grid.description,
        tier=grid.tier,
        runs=runs,
        left_out=grid.missing() if skip_missing else {},
        classes={source: len(expand(source)) for source in sources if source != "folder"},
    )
    path = folder / PLAN
    if path.exists():
        other = read_plan(folder)
        if other["name"] != grid.name:
            raise ValueError(
                f"{folder} holds the results of grid {other['name']!r}, not of {grid.name!r}: choose another folder."
            )
    write_atomically(path, sealed(plan))


def read_plan(folder: str | Path) -> dict:
    """What a sweep noted: name, description, tier, runs (their settings), classes (of each data set), left_out.

    Raises FileNotFoundError where no sweep wrote, ValueError for a damaged file.
    """
    path = Path(folder).expanduser() / PLAN
    try:
        plan = unsealed(path.read_bytes())
        if plan["format"] != FORMAT or not all(
            isinstance(run, dict) and file_name(run) for run in plan["runs"]
        ):
            raise ValueError("it is of another format")
        return plan | {
            key: plan[key] for key in ("name", "description", "tier", "classes", "left_out")
        }
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path.parent} holds no results: there is no {PLAN} in it. `python -m pandalib sweep GRID --out {path.parent}` makes them."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it and call the sweep again, the results stay."
        ) from None


def read_results(folder: str | Path) -> list[dict]:
    """The results of a sweep so far, in the order of its grid.

    Raises as `read_plan`.
    """
    return list(read_runs(read_plan(folder)["runs"], Path(folder).expanduser()).values())


def check_meaning(results) -> None:
    """Raise ValueError where results were made with other weights or defaults of the tier than those that the same settings mean today."""
    from pandalib.backbones import EMBEDDED, embedded_facts
    from pandalib.io import sha256_of

    known: dict[str, str | None] = {}
    for result in results:
        if "error" in result:
            continue
        then, now = result["tier_defaults"], tier_defaults(result["tier"])
        if then != now:
            changed = next(
                (key for key in now["pace"] if then["pace"].get(key) != now["pace"][key]), None
            ) or next(key for key in now if then.get(key) != now[key])
            raise ValueError(
                f"{file_name(result['settings'])} was made when the tier {result['tier']} had another {changed}: choose another folder, so that no table mixes them."
            )
        if not result["weights_sha256"]:
            continue
        weights = result["settings"].get("weights") or (
            "embedded" if result["backbone"].split(":")[0] == EMBEDDED else "imagenet"
        )
        if weights not in known:
            file = Path(weights).expanduser()
            known[weights] = (
                embedded_facts()["sha256"]
                if weights == "embedded"
                else sha256_of(file)
                if file.is_file()
                else None
            )
        if known[weights] not in (None, result["weights_sha256"]):
            raise ValueError(
                f"{file_name(result['settings'])} was made with weights {result['weights_sha256'][:12]}, and {weights} ones are now "
                f"{known[weights][:12]}: choose another folder, so that no table mixes them."
            )


def prepare(runs: list[dict]) -> None:
    """What all processes will need, once and before they start: the weights, the Fisher information of the embedded network.

    Raises what `load_backbone` raises: better now than in every run.
    """
    from pandalib.backbones import load_backbone, verify_embedded
    from pandalib.experiments.run import WITHOUT_BACKBONE, fisher_of

    networks: dict[tuple, list[dict]] = {}
    for run in runs:
        if run["method"] not in WITHOUT_BACKBONE:
            networks.setdefault(
                tuple(run.get(key) for key in ("backbone", "weights", "last", "adapt_from"))
                + (run["tier"],),
                [],
            ).append(run)
    for (backbone, weights, last, adapt_from, tier), users in networks.items():
        defaults = tiers.TIERS[tier]
        name = backbone or defaults.backbone
        weights = weights or (defaults.weights if name == defaults.backbone else "imagenet")
        if weights == "embedded":
            verify_embedded()
        network = load_backbone(
            name,
            weights,
            last=last or defaults.last,
            device="cpu",
            **({"adapt_from": adapt_from} if adapt_from else {}),
        )
        recipes = {
            run.get("fisher_recipe", "per-sample")
            for run in users
            if run["method"] == "ewc" and not {"fisher", "fisher_images"} & set(run)
        }
        if weights == "embedded" and last is None:
            for recipe in recipes:
                fisher_of(network, None, recipe=recipe)


# ---------------------------------------------------------------- on one machine


def _attempt_and_write(settings: dict, folder: Path, threads: int) -> dict:
    found = _read(settings, folder)
    if found is not None and "error" not in found:  # another sweep of the same folder was faster
        return found
    return write_result(attempt(settings, threads), folder)


def _on_this_machine(
    waiting: list[dict], folder: Path, workers: int, threads: int
) -> Iterator[dict | None]:
    """Results as they come, and None in between, for the clock.

    joblib's processes (loky), one run in flight for each, so that it is known what a process was doing when it died. Then
    all of them are replaced, and what was in flight is done again, alone: who dies a second time has failed.
    """
    from concurrent.futures import FIRST_COMPLETED, wait
    from concurrent.futures.process import BrokenProcessPool

    from joblib.externals.loky import get_reusable_executor

    variables = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
    )
    variables["PANDALIB_QUIET"] = "1"  # no bars: the sweep has a line of its own
    start = lambda: get_reusable_executor(
        max_workers=workers,
        timeout=600,
        env=variables,
        initializer=_leave_with_parent,
        initargs=(os.getpid(),),
    )  # noqa: E731
    executor = start()
    line, suspects, flying = deque(waiting), deque(), {}
    try:
        while line or suspects or flying:
            for source, room in (
                (suspects, 1 - len(flying)),
                (line if not suspects else (), workers - len(flying)),
            ):
                for _ in range(min(room, len(source))):
                    settings = source.popleft()
                    flying[executor.submit(_attempt_and_write, settings, folder, threads)] = (
                        settings,
                        source is suspects,
                    )
            done, _ = wait(flying, timeout=TICK, return_when=FIRST_COMPLETED)
            broken = []
            for future in done:
                settings, again = flying.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool as error:
                    broken.append((settings, again, error))
            if broken:
                broken += [(*flying[future], None) for future in flying]  # they die with it
                flying = {}
                executor.shutdown(wait=True, kill_workers=True)
                executor = start()
                for settings, again, error in broken:
                    if again:
                        yield write_result(_died(settings, error), folder)
                    else:
                        suspects.append(settings)
            elif not done:
                yield None
    finally:
        executor.shutdown(wait=True, kill_workers=bool(flying))


def _leave_with_parent(parent: int) -> None:
    """Begin a process of a sweep: it ends when the sweep is killed, and leaves ctrl-C to it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(TICK)
        os._exit(1)  # at once: a result file is whole or not there

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # loky replaces a process that grows, which it takes for a leak; ours keep images and activations on purpose (`cache.Memory`).
    from joblib.externals.loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = 1 << 40
    threading.Thread(target=watch, daemon=True).start()


def _died(settings: dict, error: BaseException | None) -> dict:
    message = "the process that did this run was ended twice, from outside or by a fault in compiled code: most often memory ran out. Fewer workers need less."
    record = failed(settings, RuntimeError(message))
    record["error"]["type"] = "ProcessDied"
    return dict(
        format=FORMAT,
        id=identity(settings),
        **record,
        settings=settings,
        versions=versions(),
        commit=commit(),
        started=None,
    )


# ---------------------------------------------------------------- on a cluster


def _on_cluster(
    waiting: list[dict], folder: Path, address: str, threads: int | None
) -> tuple[Iterator[dict | None], int]:
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(
            "a cluster needs the extra [cluster]: pip install 'dask[distributed]'."
        ) from None
    try:
        client = Client(address, timeout=CONNECTING, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConnectionError(
            f"there is no Dask scheduler at {address!r} ({type(error).__name__}): expected an address as tcp://10.0.0.1:8786 of one that runs."
        ) from None
    n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
    return _cluster_results(client, waiting, folder, threads), n_workers


def _cluster_results(
    client, waiting: list[dict], folder: Path, threads: int | None
) -> Iterator[dict | None]:
    """As `_on_this_machine`. Dask itself repeats what a worker did that died, and gives up when several have died of it."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker

    finished: queue.Queue = queue.Queue()
    with client:
        futures = {}
        for number, settings in enumerate(waiting):
            future = client.submit(
                attempt_on_cluster, settings, threads, pure=False, priority=-number
            )
            futures[future.key] = (future, settings)
            future.add_done_callback(finished.put)
        while futures:
            try:
                future = finished.get(timeout=TICK)
            except queue.Empty:
                yield None
                continue
            _, settings = futures.pop(future.key)
            try:
                result = future.result()
            except KilledWorker as error:
                result = _died(settings, error)
            except CancelledError:
                raise ConnectionError(
                    "the Dask scheduler went away: call the same sweep again, what is done is kept."
                ) from None
            yield write_result(result, folder)


def attempt_on_cluster(settings: dict, threads: int | None) -> dict:
    """`attempt` with the threads that the Dask worker has; a worker does one run at a time, whatever its threads."""
    from distributed import get_worker

    os.environ["PANDALIB_QUIET"] = "1"
    return attempt(settings, threads or get_worker().state.nthreads)


# ---------------------------------------------------------------- how far it is


class _Line:
    """One line on standard error that is kept up to date; where nobody can see it change, one line a run."""

    def __init__(
        self,
        name: str,
        runs: list[dict],
        results: dict[str, dict],
        waiting: list[dict],
        workers: int,
        *,
        shown: bool,
    ):
        self.name, self.n, self.workers = name, len(runs), workers
        self.before = len(runs) - len(waiting)
        self.results = [result for result in results.values() if "error" not in result]
        self.left = {identity(run): run for run in waiting}
        self.failed = 0
        self.start = time.monotonic()
        self.shown = shown and os.environ.get("PANDALIB_QUIET") != "1"
        self.live = (
            sys.stderr.isatty()
            or "IPython" in sys.modules
            and sys.modules["IPython"].get_ipython() is not None
        )
        self.width = 0
        if self.shown and self.before:
            print(f"{name}: {self.before} of {self.n} runs have a result already", file=sys.stderr)

    def show(self, result: dict | None) -> None:
        news = ""
        if result is not None:
            self.left.pop(result["id"], None)
            if "error" in result:
                self.failed += 1
                news = f"{result['task']} {result['method']} seed {result['seed']} FAILED: {result['error']['message'].splitlines()[0] if result['error']['message'] else result['error']['type']}"
            else:
                self.results.append(result)
                news = f"{result['task']} {result['method']} seed {result['seed']}: {result['roc_auc']:.3f}"
        if not self.shown or not (self.live or news):
            return
        if self.live:
            if result is not None and "error" in result:
                self._write(news + "\n")
            self._write(self.state())
        else:
            print(f"{self.state()}  {news}", file=sys.stderr, flush=True)

    def state(self) -> str:
        gone = time.monotonic() - self.start
        seconds = estimate(list(self.left.values()), self.results, self.workers) if self.left else 0
        left = "" if seconds is None else f", about {in_words(seconds)} left" if self.left else ""
        failures = f", {self.failed} failed" if self.failed else ""
        waiting = (
            ", waiting for a worker of the cluster"
            if self.workers == 0 and len(self.left) == self.n - self.before
            else ""
        )
        return f"{self.name}: {self.n - len(self.left)} of {self.n}{failures}, {in_words(gone)} gone{left}{waiting}"

    def close(self) -> None:
        if self.shown and self.live:
            self._write("")

    def _write(self, text: str) -> None:
        sys.stderr.write("\r" + " " * self.width + "\r" + text)
        self.width = 0 if text.endswith("\n") else len(text)
        sys.stderr.flush()


def in_words(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
