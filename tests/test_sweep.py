"""Sweeps: what a result file says, failing runs, and sweeps that are interrupted."""

import json
import os
import platform
import subprocess
import sys
import time
from datetime import datetime

import faiss
import pytest
import torch

from pandalib import load_grid, read_results, run, sweep
from pandalib.experiments import sweep as sweeping
from pandalib.experiments.results import PLAN, RUNS, file_name, identity, read_plan
from pandalib.experiments.sweep import LOG, attempt

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
ONE = dict(task="pictograms:star", method="pixels", tier="embedded", seed=0, n_train=20, n_test=4)
HERE = dict(workers=1, threads=1, progress=False)  # one worker is this process


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "small.toml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def undisturbed(grid, tmp_path_factory):
    """The folder of a sweep to which nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed")
    sweep(grid, folder, **HERE)
    return folder


@pytest.fixture
def one(tmp_path):
    """A grid of a single quick run."""
    path = tmp_path / "one.toml"
    text = GRID.split("[settings.early]")[0].replace('"dn2", "early"', "").replace("0, 1", "0")
    path.write_text(text.replace(', "pictograms:heart"', "").replace('"small"', '"one"'))
    assert len(load_grid(path).runs()) == 1
    return path


def results_in(folder):
    return sorted((folder / RUNS).glob("*.json"))


def numbers(folder) -> dict:
    """All that has to be the same, by run: everything but times, memory and threads."""
    changing = ("seconds", "peak_rss_mb", "started", "commit", "sha256", "threads")
    found = {}
    for path in results_in(folder):
        result = json.loads(path.read_text())
        found[path.name] = {key: one for key, one in result.items() if key not in changing}
    return found


def test_a_result_says_where_it_came_from(tmp_path):
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    result = attempt(ONE, 1, tmp_path)
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == threads
    record = run(**ONE)
    for key in set(record) - {"seconds", "peak_rss_mb"}:
        assert result[key] == record[key]
    assert result["settings"] == ONE and result["id"] == identity(ONE) and result["threads"] == 1
    assert result["all_settings"]["k"] == 2 and result["all_settings"]["n_train"] == 20
    assert result["tier_defaults"]["pace"]["lr"] == 0.25
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert result["device"].startswith(("cpu: ", "cuda: ")) and datetime.fromisoformat(
        result["started"]
    )
    (path,) = results_in(tmp_path)
    assert path.name == file_name(ONE) and json.loads(path.read_text())["id"] == result["id"]
    assert platform.node() not in path.read_text() and str(tmp_path) not in path.read_text()


def test_killed_and_called_again_it_goes_on(grid, undisturbed, tmp_path):
    """kill -9 in the middle: nothing is half-written, and the second call does what is missing."""
    command = [sys.executable, "-m", "pandalib", "sweep", str(grid), "--out", str(tmp_path)]
    process = subprocess.Popen([*command, "--workers", "1"], stderr=subprocess.PIPE)
    end = time.monotonic() + 180
    while len(results_in(tmp_path)) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in results_in(tmp_path)}
    assert 2 <= len(done) < 12, "killed too late: the grid is too quick for this machine"

    results = sweep(grid, tmp_path, workers=2, threads=1)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert numbers(tmp_path) == numbers(undisturbed) and len(results) == 12
    assert "small: 12 of 12  pictograms:" in (tmp_path / LOG).read_text().splitlines()[-1]
    assert sweep(grid, tmp_path) == results == read_results(tmp_path)
    assert [result["settings"] for result in results] == load_grid(grid).runs()


def test_a_failing_run_leaves_its_error_and_the_others_go_on(grid, tmp_path, monkeypatch):
    def fails_on_heart(task, method, **options):
        if task == "pictograms:heart" and method == "dn2":
            raise MemoryError("no room")
        return dict(ONE, task=task, method=method, roc_auc=0.5)

    monkeypatch.setattr(sweeping, "run", fails_on_heart)
    results = sweep(grid, tmp_path, **HERE)
    failed = [result for result in results if "error" in result]
    assert [(one["task"], one["method"], one["seed"]) for one in failed] == [
        ("pictograms:heart", "dn2", 0),
        ("pictograms:heart", "dn2", 1),
    ]
    assert (
        failed[0]["error"]["type"] == "MemoryError" and failed[0]["error"]["message"] == "no room"
    )
    assert "test_sweep.py" in failed[0]["error"]["traceback"][-1]
    assert "FAILED: MemoryError: no room" in (tmp_path / LOG).read_text()
    monkeypatch.setattr(sweeping, "run", lambda task, **_: dict(ONE, task=task, roc_auc=0.5))
    assert sum("error" in result for result in sweep(grid, tmp_path, **HERE)) == 2  # it stands
    again = sweep(grid, tmp_path, retry_failed=True, **HERE)
    assert not any("error" in result for result in again)


def dies(settings, threads, folder):
    """In place of `attempt`: a fault of compiled code."""
    os._exit(1)


def test_a_worker_that_dies(grid, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "attempt", dies)
    with pytest.raises(RuntimeError, match="12 runs have no result yet, as pictograms:"):
        sweep(grid, tmp_path, workers=2, threads=1, progress=False)
    assert results_in(tmp_path) == [] and (tmp_path / PLAN).exists()


def test_a_damaged_result_is_done_again(one, tmp_path):
    folder = tmp_path / "out"
    (first,) = sweep(one, folder, **HERE)
    (path,) = results_in(folder)
    path.write_text(path.read_text().replace('"roc_auc": 0', '"roc_auc": 1'))
    assert read_results(folder) == []
    (second,) = sweep(one, folder, **HERE)
    assert second["roc_auc"] == first["roc_auc"] and read_results(folder) == [second]


def test_one_grid_has_one_folder(one, grid, tmp_path):
    folder = tmp_path / "out"
    sweep(one, folder, **HERE)
    plan = read_plan(folder)
    assert plan["name"] == "one" and plan["classes"] == dict(pictograms=10)
    with pytest.raises(ValueError, match="holds the results of another grid"):
        sweep(grid, folder, **HERE)
    (folder / PLAN).write_text("{")
    with pytest.raises(ValueError, match="plan.json is damaged .*: delete it and sweep again"):
        read_results(folder)
    with pytest.raises(FileNotFoundError, match="pandalib sweep GRID --out"):
        read_plan(tmp_path / "nowhere")


def test_missing_weights_are_told_before_anything_starts(one, tmp_path):
    text = one.read_text().replace('"pixels"', '"dn2"')
    one.write_text(text + '[vary]\nweights = ["embedded", "none.safetensors"]\n')
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        sweep(one, tmp_path / "out", **HERE)
    assert not (tmp_path / "out").exists()


def test_data_sets_that_are_missing_stand_in_the_plan(one, tmp_path, monkeypatch):
    monkeypatch.setenv("PANDALIB_DATASETS", str(tmp_path / "none"))
    one.write_text(one.read_text().replace("tasks = [", 'tasks = ["cifar10", '))
    folder = tmp_path / "out"
    with pytest.raises(ValueError, match="cifar10"):
        sweep(one, folder, **HERE)
    assert not folder.exists()
    assert len(sweep(one, folder, skip_missing=True, **HERE)) == 1
    assert "pandalib data cifar10" in read_plan(folder)["left_out"]["cifar10"]


def test_on_a_cluster(grid, undisturbed, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra [cluster]")
    options = dict(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with distributed.LocalCluster(**options) as cluster:
        sweep(grid, tmp_path, scheduler=cluster.scheduler_address, threads=1, progress=False)
    assert numbers(tmp_path) == numbers(undisturbed)
