"""`make test-fast`: what it leaves out exists, and is left out; what a run of all tests measures, it does not."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SLOW = [
    line
    for line in (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("name", SLOW)
def test_what_is_left_out_exists(name):
    file, _, test = name.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert not test or test in {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef)
    }


def test_names_are_once_in_the_list():
    assert len(set(SLOW)) == len(SLOW)
    whole = {name for name in SLOW if "::" not in name}
    assert not [name for name in SLOW if "::" in name and name.partition("::")[0] in whole]


def test_marks_follow_the_list(tmp_path):
    """Collected from the top of the repository, as make does it: neither a listed test nor a listed file nor a notebook is left."""
    file, test = next(name.split("::") for name in SLOW if "::" in name and "test_fast" not in name)
    whole = next(name for name in SLOW if "::" not in name)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        file,
        whole,
        "notebooks/00_start_here.ipynb",
    ]
    fast = subprocess.run(
        [*command, "-m", "not slow"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    slow = subprocess.run([*command, "-m", "slow"], cwd=ROOT, capture_output=True, text=True).stdout
    assert (
        file in fast and f"{file}::{test}" not in fast and whole not in fast and "ipynb" not in fast
    )
    assert f"{file}::{test}" in slow and whole in slow and "00_start_here.ipynb" in slow


def test_the_threshold_of_coverage_is_for_a_whole_run_only():
    def command(*arguments):
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("MAKE") and name != "ARGS"
        }  # of the make that runs this
        return subprocess.run(
            ["make", "-n", *arguments],
            cwd=ROOT,
            env=clean,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]

    assert "--cov=pandalib" in command("test") and "--cov-fail-under=95" in command("test")
    for arguments in (["test", "ARGS=tests/test_knn.py"], ["test-fast"], ["test-fast", "ARGS=-x"]):
        assert "--cov" not in command(*arguments) and "tools/offline.py" in command(*arguments)
    assert '-m "not slow"' in command("test-fast") and command("test-fast", "ARGS=-x").endswith(
        "-x"
    )
