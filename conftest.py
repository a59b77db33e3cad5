"""Marks the slow tests, see tests/slow.txt. bench/lessons.py measures how long the lessons take."""

import os
from pathlib import Path
from unittest.mock import patch

import pytest

os.environ["PANDALIB_QUIET"] = "1"  # kernels inherit it: a progress bar differs from run to run
SLOW = (Path(__file__).parent / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()


def pytest_collection_modifyitems(items):
    for item in items:
        name = item.nodeid.partition("[")[0]
        if type(item).__name__ == "IPyNbCell" or {name, name.partition("::")[0]} & set(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def own_environment():
    """Dask, for one, leaves OMP_NUM_THREADS=1 behind, which the kernels of all lessons inherit."""
    with patch.dict(os.environ):
        yield
