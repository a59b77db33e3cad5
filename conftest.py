"""A notebook may take twice the minutes that it states, and no more: its last cell fails then."""

import os

import pytest

os.environ["PANDALIB_QUIET"] = "1"  # the kernels inherit it: a progress bar would differ from run to run
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
