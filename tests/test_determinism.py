"""The table of docs/testing.md, line by line: what has the same bits, and what has a band.

Four processes compute everything (`everything.py`), two with one thread and two with two. One of
the first pair is killed in the middle of an adaptation, and both of the second pair go on with it.
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
TEXT = (HERE.parent / "docs" / "testing.md").read_text(encoding="utf-8")
LINES = TEXT.split("<!-- determinism -->")[1].strip().splitlines()[2:]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES]
PATIENCE = 300  # seconds; the machine may be busy


def start(folder: Path, threads: int, kill: bool) -> subprocess.Popen:
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",  # the promise is the CPU's
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",  # more threads than cores: none waits by turning in a circle
        "PANDALIB_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(HERE.parent),
    }
    command = [sys.executable, str(HERE / "everything.py"), str(folder), *(["--kill"] * kill)]
    into = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, env=environment, **into)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Everything, by number of threads and which of two processes."""
    arrays, killed = {}, None
    for which in (0, 1):
        processes = {}
        for threads in (1, 2):
            folder = tmp_path_factory.mktemp(f"{threads}-{which}")
            if which == 1:
                shutil.copytree(killed, folder / "killed")
            processes[threads] = folder, start(folder, threads, kill=(threads, which) == (1, 0))
        for threads, (folder, process) in processes.items():
            said = process.communicate(timeout=PATIENCE)[0]
            expected = -signal.SIGKILL if (threads, which) == (1, 0) else 0
            assert process.returncode == expected, said
            arrays[threads, which] = dict(np.load(folder / "found.npz"))
        killed = killed or processes[1][0] / "killed"
    return arrays


def agree(one: np.ndarray, other: np.ndarray, wanted: str) -> None:
    """`wanted`: "same bits", or "within 1e-5" of the largest value."""
    off = np.abs(one - other).max() / np.abs(one).max()
    if wanted == "same bits":
        same = one.dtype == other.dtype and one.tobytes() == other.tobytes()
        assert same, f"off by {off:.1e} of the largest value"
    else:
        band = float(re.fullmatch(r"within (1e-\d+)", wanted).group(1))
        assert off <= band, f"off by {off:.1e} of the largest value"


def test_every_line_of_the_table_is_computed(found):
    names = [row[0] for row in ROWS]
    assert len(names) == len(set(names)) > 15 and set(names) == set(found[1, 1])
    assert set(found[1, 0]) == set(names) - {"adaptation, resumed"}
    assert all(np.isfinite(values).all() and values.any() for values in found[1, 1].values())
    # The second thread was really there, or the bands would say nothing.
    assert any(not np.array_equal(found[1, 1][name], found[2, 1][name]) for name in names)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_line_holds(found, row):
    name, again, threads, way = row
    assert again == "same bits"  # the promise: same machine, same threads, same seed
    for number in (1, 2):
        if name in found[number, 0]:
            agree(found[number, 0][name], found[number, 1][name], again)
    agree(found[1, 1][name], found[2, 1][name], threads)
    if way:
        other, wanted = re.fullmatch(r"(.*): (.*)", way).groups()
        agree(found[1, 0][other], found[1, 1][name], wanted)


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
