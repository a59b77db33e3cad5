"""A notebook may take twice the minutes that it states, and no more: its last cell fails then. Slow tests are marked, see tests/slow.txt."""

import os
from pathlib import Path

import pytest

os.environ["PANDALIB_QUIET"] = (
    "1"  # the kernels inherit it: a progress bar would differ from run to run
)
seconds = {}  # notebook -> time its cells have taken so far


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    notebook = getattr(item, "parent", None)
    if type(item).__name__ != "IPyNbCell" or call.when != "call":
        return
    seconds[notebook] = seconds.get(notebook, 0.0) + call.duration
    report = outcome.get_result()
    limit = 120.0 * notebook.nb.metadata.pandalib.minutes
    if item is notebook_items(item)[-1] and report.passed and seconds[notebook] > limit:
        report.outcome = "failed"
        report.longrepr = f"{notebook.name} took {seconds[notebook]:.0f} s, more than twice the {limit / 120:g} min that it states."


def notebook_items(item):
    return [other for other in item.session.items if other.parent is item.parent]


def pytest_collection_modifyitems(items):
    """Mark as slow all notebooks, and what tests/slow.txt names."""
    listed = set(
        (Path(__file__).parent / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    )
    for item in items:
        name = item.nodeid.partition("[")[0]
        if type(item).__name__ == "IPyNbCell" or {name, name.partition("::")[0]} & listed:
            item.add_marker(pytest.mark.slow)
