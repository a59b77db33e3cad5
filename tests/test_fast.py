"""`make test-fast`: what it leaves out exists and is left out; coverage is of a whole run only."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINES = (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
SLOW = [line for line in LINES if line and not line.startswith("#")]


def test_what_is_left_out_exists_and_is_named_once():
    for name in SLOW:
        file, _, test = name.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not test or (test in tests and file not in SLOW), name
    assert len(set(SLOW)) == len(SLOW)


def test_marks_follow_the_list():
    """Collected from the top: neither a listed test nor a listed file nor a notebook is left."""
    name = next(name for name in SLOW if "::" in name and "test_fast" not in name)
    whole = next(name for name in SLOW if "::" not in name)
    run = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    run += [name.split("::")[0], whole, "notebooks/00_start_here.ipynb", "-m"]
    fast, slow = (
        subprocess.run([*run, mark], cwd=ROOT, capture_output=True, text=True).stdout
        for mark in ("not slow", "slow")
    )
    assert name.split("::")[0] in fast
    for left_out in (name, whole, "ipynb"):
        assert left_out in slow and left_out not in fast


def test_the_threshold_of_coverage_is_for_a_whole_run_only():
    def command(*arguments):
        own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        run = ["make", "-n", *arguments]
        return subprocess.check_output(run, cwd=ROOT, env=own, text=True).splitlines()[-1]

    assert "--cov=pandalib" in command("test") and "--cov-fail-under=95" in command("test")
    for arguments in (["test", "ARGS=tests/test_knn.py"], ["test-fast"], ["test-fast", "ARGS=-x"]):
        assert "--cov" not in command(*arguments) and "tools/offline.py" in command(*arguments)
    assert '-m "not slow"' in command("test-fast")
