"""A notebook may take twice the minutes that it states: its last cell fails then.

Slow tests are marked, see tests/slow.txt.
"""

import os
from pathlib import Path

import pytest

os.environ["PANDALIB_QUIET"] = "1"  # kernels inherit it: a progress bar differs from run to run
SLOW = (Path(__file__).parent / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
seconds = {}  # notebook -> time its cells have taken so far


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    notebook = item.parent
    if type(item).__name__ != "IPyNbCell" or call.when != "call":
        return
    seconds[notebook] = seconds.get(notebook, 0.0) + call.duration
    report = outcome.get_result()
    minutes = notebook.nb.metadata.pandalib.minutes
    *_, last = (other for other in item.session.items if other.parent is notebook)
    if item is last and report.passed and seconds[notebook] > 120 * minutes:
        report.outcome = "failed"
        taken = f"{notebook.name} took {seconds[notebook]:.0f} s"
        report.longrepr = f"{taken}, more than twice the {minutes:g} min that it states."


def pytest_collection_modifyitems(items):
    for item in items:
        name = item.nodeid.partition("[")[0]
        if type(item).__name__ == "IPyNbCell" or {name, name.partition("::")[0]} & set(SLOW):
            item.add_marker(pytest.mark.slow)
