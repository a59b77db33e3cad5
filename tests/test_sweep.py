"""Sweeps that are interrupted: killed whole, a process killed, a worker of a cluster killed. The table is the undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pandalib.experiments import sweep as experiments
from pandalib.experiments.sweep import RUNS, file_name, read_results, sweep
from pandalib.experiments.grids import load_grid
from pandalib.experiments.tables import write_table

GRID = """
[grid]
name = "small"
tier = "embedded"
tasks = ["pictograms:star", "pictograms:heart"]
methods = ["pixels", "dn2", "early"]
seeds = [0, 1]
[settings]
n_train = 40
n_test = 4
[settings.early]
epochs = 4
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PANDALIB_QUIET": "0"}
PATIENCE = 180  # seconds; the machine may be busy


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "small.toml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def undisturbed(grid, tmp_path_factory):
    """Result folder of a sweep that nothing happened to, by one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    sweep(grid, folder, workers=1, threads=1, progress=False)
    write_table(folder)
    return folder


def start(grid, folder, *options) -> subprocess.Popen:
    command = [sys.executable, "-m", "pandalib", "sweep", str(grid), "--out", str(folder), *options]
    return subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {PATIENCE} s"
        time.sleep(0.01)


def results(folder: Path) -> list[Path]:
    return sorted((folder / RUNS).glob("*.json"))


def numbers(folder: Path) -> dict:
    """All that has to be the same, by run: everything but times, memory and the moment."""
    changing = ("seconds", "peak_rss_mb", "started", "commit", "sha256")
    return {
        path.name: {
            key: value for key, value in json.loads(path.read_text()).items() if key not in changing
        }
        for path in results(folder)
    }


def assert_same_table(folder: Path, undisturbed: Path) -> None:
    write_table(folder)
    assert numbers(folder) == numbers(undisturbed) and len(results(folder)) == 12
    for name in ("table.md", "table.csv"):
        assert (folder / name).read_text() == (undisturbed / name).read_text()


def children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def alive(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )  # whose parent has gone may wait as a zombie
    except FileNotFoundError:
        return False


def working(pid: int) -> list[int]:
    """The processes of a sweep that do its runs."""
    lines = {child: Path(f"/proc/{child}/cmdline").read_text() for child in children(pid)}
    return [child for child, line in lines.items() if "loky" in line and "tracker" not in line]


def test_one_process_killed_then_the_sweep_then_called_again(
    grid, undisturbed, tmp_path, capsys, monkeypatch
):
    """One process, as when memory runs out: what it did is done again. Then kill -9: its processes leave too, the next call does what is missing."""
    process = start(grid, tmp_path, "--workers", "2", "--threads", "1")
    least = 2
    wait_for(lambda: len(results(tmp_path)) >= least, "the second result")
    if sys.platform.startswith("linux"):  # finds the processes in /proc
        pids = working(process.pid)
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGKILL)
        least = len(results(tmp_path)) + 3
        wait_for(lambda: len(results(tmp_path)) >= least, "a further result")
        pids = working(process.pid)
        os.kill(process.pid, signal.SIGKILL)  # the sweep alone
        wait_for(lambda: not any(map(alive, pids)), "the end of its processes")
    else:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in results(tmp_path)}
    assert least <= len(done) < 12, "killed too late: the grid is too quick for this machine"
    assert all(
        json.loads(path.read_text())["roc_auc"] is not None for path in done
    )  # none half-written, none failed
    with pytest.raises(AssertionError):
        assert_same_table(tmp_path, undisturbed)
    assert f"{12 - len(done)} of 12 runs have no result yet" in (tmp_path / "table.md").read_text()

    monkeypatch.setenv("PANDALIB_QUIET", "0")
    sweep(grid, tmp_path, workers=2, threads=1)
    err = capsys.readouterr().err
    assert f"small: {len(done)} of 12 runs have a result already" in err and err.count(
        " gone"
    ) == 12 - len(done)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert_same_table(tmp_path, undisturbed)
    before = {path: path.stat().st_mtime_ns for path in results(tmp_path)}
    sweep(grid, tmp_path, workers=2, threads=1)
    assert {path: path.stat().st_mtime_ns for path in results(tmp_path)} == before


def dies_on_heart(settings: dict, folder: Path, threads: int) -> dict:
    """In place of `_attempt_and_write`: a fault of compiled code in every run of one task."""
    if settings["task"] == "pictograms:heart" and settings["method"] == "dn2":
        os.kill(os.getpid(), signal.SIGKILL)
    return _attempt_and_write(settings, folder, threads)


_attempt_and_write = experiments._attempt_and_write


def test_a_run_that_kills_its_process_fails_after_the_second_time(
    grid, undisturbed, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(experiments, "_attempt_and_write", dies_on_heart)
    monkeypatch.setenv("PANDALIB_QUIET", "0")
    found = sweep(grid, tmp_path, workers=2, threads=1)
    failed = [result for result in found if "error" in result]
    assert [(result["task"], result["method"], result["seed"]) for result in failed] == [
        ("pictograms:heart", "dn2", 0),
        ("pictograms:heart", "dn2", 1),
    ]
    assert all(
        result["error"]["type"] == "ProcessDied"
        and "most often memory ran out" in result["error"]["message"]
        for result in failed
    )
    assert "2 failed" in capsys.readouterr().err
    names = {file_name(result["settings"]) for result in failed}
    assert {name: value for name, value in numbers(tmp_path).items() if name not in names} == {
        name: value for name, value in numbers(undisturbed).items() if name not in names
    }
    # Their errors stand, until they are asked for again.
    monkeypatch.setattr(experiments, "_attempt_and_write", _attempt_and_write)
    assert [result.get("error") for result in sweep(grid, tmp_path, workers=1, threads=1)].count(
        None
    ) == 10
    assert all(
        "error" not in result
        for result in sweep(grid, tmp_path, workers=1, threads=1, retry_failed=True)
    )
    assert_same_table(tmp_path, undisturbed)


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers, processes that talk over TCP on loopback: (address, the workers)."""
    pytest.importorskip("distributed", reason="needs the extra [cluster]: dask[distributed]")
    file, processes = tmp_path / "scheduler.json", []

    def run(*arguments) -> subprocess.Popen:
        command = [sys.executable, "-m", *arguments, "--no-dashboard"]
        with open(tmp_path / f"{len(processes)}.log", "w") as log:
            processes.append(
                subprocess.Popen(
                    command,
                    env=ENVIRONMENT,
                    cwd=tmp_path,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        return processes[-1]

    try:
        run(
            "distributed.cli.dask_scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--scheduler-file",
            str(file),
        )
        wait_for(lambda: file.exists() and file.read_text().endswith("}"), "the scheduler")
        address = json.loads(file.read_text())["address"]
        assert address.startswith("tcp://127.0.0.1:")
        workers = [
            run(
                "distributed.cli.dask_worker",
                address,
                "--no-nanny",
                "--nthreads",
                "1",
                "--name",
                name,
            )
            for name in ("one", "two")
        ]
        wait_for(
            lambda: all(
                "Registered to" in (tmp_path / f"{number}.log").read_text() for number in (1, 2)
            ),
            "both workers",
        )
        yield address, workers
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_on_a_cluster_with_one_worker_killed(grid, undisturbed, tmp_path, cluster):
    address, workers = cluster
    folder = tmp_path / "out"
    process = start(grid, folder, "--scheduler", address, "--threads", "1")
    wait_for(lambda: len(results(folder)) >= 2, "the second result")
    os.kill(workers[0].pid, signal.SIGKILL)
    assert len(results(folder)) < 12, "killed too late: the grid is too quick for this machine"
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert workers[0].wait() == -signal.SIGKILL and workers[1].poll() is None
    assert_same_table(folder, undisturbed)


def test_a_cluster_that_is_not_there(grid, tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="needs the extra [cluster]: dask[distributed]")
    monkeypatch.setattr(experiments, "CONNECTING", 1)
    with pytest.raises(
        ConnectionError,
        match=r"there is no Dask scheduler at 'tcp://127.0.0.1:9'.*expected an address as tcp://10.0.0.1:8786",
    ):
        sweep(grid, tmp_path, scheduler="tcp://127.0.0.1:9", progress=False)
    assert not results(tmp_path)
    assert read_results(tmp_path) == [] and len(load_grid(grid).runs()) == 12
