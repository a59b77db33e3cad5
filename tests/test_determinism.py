"""The table of docs/testing.md, line by line: what has the same bits in every process, and what differs by how much with the threads.

Four processes work out everything (`everything.py`), two with one thread and two with two. One of the first pair is killed
in the middle of an adaptation, and both of the second pair go on with it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
TABLE = (
    (HERE.parent / "docs" / "testing.md")
    .read_text(encoding="utf-8")
    .split("<!-- determinism -->")[1]
)
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.strip().splitlines()[2:]
]  # after the heading and its rule
PATIENCE = 300  # seconds; the machine may be busy


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Everything, by (threads, which process)."""
    folders = {
        (threads, which): tmp_path_factory.mktemp(f"{threads}-{which}")
        for which in (0, 1)
        for threads in (1, 2)
    }
    for which in (0, 1):
        processes = {}
        for threads in (1, 2):
            folder = folders[threads, which]
            if which == 1:
                shutil.copytree(folders[1, 0] / "killed", folder / "killed")
            command = [
                sys.executable,
                str(HERE / "everything.py"),
                str(folder),
                *(["--kill"] if (threads, which) == (1, 0) else []),
            ]
            own = os.environ | {
                "OMP_NUM_THREADS": str(threads),
                "PANDALIB_CACHE": str(folder / "cache"),
                "PYTHONPATH": str(HERE.parent),
            }
            own["OMP_WAIT_POLICY"] = (
                "passive"  # three threads share what may be two cores: none waits by turning in a circle
            )
            processes[threads] = subprocess.Popen(
                command, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        for threads, process in processes.items():
            said = process.communicate(timeout=PATIENCE)[0]
            assert process.returncode == (-signal.SIGKILL if (threads, which) == (1, 0) else 0), (
                said
            )
    return {key: dict(np.load(folder / "found.npz")) for key, folder in folders.items()}


def agree(one: np.ndarray, other: np.ndarray, wanted: str) -> None:
    """`wanted`: "same bits", or "within 1e-5" of the largest value."""
    if wanted == "same bits":
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes(), (
            f"not the same bits: off by {np.abs(one - other).max()}"
        )
        return
    band = float(re.fullmatch(r"within (1e-\d+)", wanted).group(1))
    off = np.abs(one - other).max() / np.abs(one).max()
    assert off <= band, f"off by {off:.1e} of the largest value"


def test_every_line_of_the_table_is_worked_out(found):
    names = [row[0] for row in ROWS]
    assert len(names) == len(set(names)) > 20 and set(names) == set(found[1, 1]) | set(found[1, 0])
    assert all(np.isfinite(values).all() and values.any() for values in found[1, 1].values())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_another_process_with_as_many_threads(found, row):
    name, wanted = row[:2]
    assert wanted == "same bits"  # the promise: same machine, same threads, same seed
    for threads in (1, 2):
        if name in found[threads, 0]:
            agree(found[threads, 0][name], found[threads, 1][name], wanted)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_two_threads_against_one(found, row):
    name, _, wanted, _ = row
    agree(found[1, 1][name], found[2, 1][name], wanted)


@pytest.mark.parametrize("row", [row for row in ROWS if row[3]], ids=lambda row: row[0])
def test_another_way_to_the_same_result(found, row):
    name, _, _, way = row
    other, wanted = re.fullmatch(r"(.*): (.*)", way).groups()
    agree(found[1, 0][other], found[1, 1][name], wanted)


def test_threads_do_change_last_digits(found):
    """Otherwise the column of bands would say nothing: the second thread was really there."""
    assert any(not np.array_equal(found[1, 1][row[0]], found[2, 1][row[0]]) for row in ROWS)


def test_agreement_is_told_from_difference():
    one = np.array([1.0, 2.0])
    agree(one, one.copy(), "same bits")
    agree(one, one + 1e-6, "within 1e-5")
    for other, wanted in (
        (one + 1e-15, "same bits"),
        (one.astype(np.float32), "same bits"),
        (one + 1e-4, "within 1e-5"),
    ):
        with pytest.raises(AssertionError):
            agree(one, other, wanted)
