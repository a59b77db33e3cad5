"""A lesson in a real JupyterLab, started as `make teach` does, in a real browser.

It runs on a copy of the notebooks, since JupyterLab saves what it has opened.
"""

import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import browser
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
LESSON = "00_start_here.ipynb"
PAGE, RUN = 180, 900  # seconds: for a page to answer, for a lesson to run, on the busiest machine

pytestmark = [
    pytest.mark.skipif(browser.PROGRAM is None, reason=browser.WHY_NOT),
    pytest.mark.skipif(not shutil.which("make"), reason="no make on this machine"),
]

# Each cell: its prompt and its outputs. textContent, since cells out of sight are not drawn.
CELLS = """
[...document.querySelectorAll('.jp-CodeCell')].map(cell => ({
    prompt: cell.querySelector('.jp-InputPrompt').textContent.trim(),
    outputs: [...cell.querySelectorAll('.jp-OutputArea-child > .jp-OutputArea-output')].map(
        output => ({
            kind: output.dataset.mimeType || '',
            text: output.textContent.trim(),
            picture: (output.querySelector('img') || {src: ''}).src,
            slider: output.querySelectorAll('.noUi-handle').length,
        })),
}))"""
# What lies over the notebook: the elements on top at points of a grid that are not its own.
COVERING = """
(() => {
    const notebook = document.querySelector('.jp-NotebookPanel'), found = [];
    const box = notebook.getBoundingClientRect();
    for (let row = 1; row < 20; row++) for (let column = 1; column < 20; column++) {
        const x = box.left + box.width * column / 20, y = box.top + box.height * row / 20;
        const top = document.elementFromPoint(x, y);
        if (top && !notebook.contains(top)) found.push(top.className);
    }
    return found;
})()"""


def until(condition, seconds, what):
    """The first true answer of `condition`, asked again and again."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.2)
    return answer


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A copy of the course, and the address of a JupyterLab that shows it."""
    folder = tmp_path_factory.mktemp("lab")
    root = folder / "a course"
    for name in ("notebooks", "tools/lab_settings"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("student"))
    shutil.copy(ROOT / "Makefile", root)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    # As in a reader's shell, and without the settings of this user or of the make around this test.
    theirs = re.compile(r"PANDALIB_QUIET|JUPYTER|MAKE|MFLAGS")
    environment = {name: value for name, value in os.environ.items() if not theirs.match(name)}
    for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
        environment[f"JUPYTER_{name}"] = str(folder / name.lower())
    options = f"--no-browser --ip=127.0.0.1 --port={port} --IdentityProvider.token={token}"
    options += " --LabApp.expose_app_in_browser=True"  # the page's commands, as by its menus
    make = ["make", "-n", "teach", f"ARGS={options}"]
    shown = subprocess.check_output(make, cwd=root, env=environment, text=True)
    _, *command = shlex.split(shown.replace("\\\n", " ").strip().splitlines()[-1])
    assert command[:2] == ["-m", "jupyterlab"], shown
    log = folder / "server.log"
    with open(log, "w") as output:
        streams = dict(stdout=output, stderr=output, start_new_session=True)
        command = [sys.executable, *command]
        process = subprocess.Popen(command, cwd=root, env=environment, **streams)
    address = f"http://127.0.0.1:{port}/lab/tree/notebooks/{LESSON}?token={token}"

    def is_up():
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}")
        except urllib.error.URLError:
            return None

    try:
        until(is_up, PAGE, f"JupyterLab to start; its log is {log}")
        yield root, address
    finally:
        process.terminate()  # ends its kernels
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def page(course, tmp_path_factory):
    """The lesson, run from the first cell to the last in the browser."""
    with browser.Browser(tmp_path_factory.mktemp("profile")) as page:
        page.size(1280, 900)
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        page.open(course[1])
        until(lambda: page.value(CELLS), PAGE, "the lesson to be shown")
        status = "jupyterapp.shell.currentWidget?.sessionContext?.kernelDisplayStatus"
        until(lambda: page.value(status) == "idle", PAGE, "its kernel to be ready")
        command(page, "editmenu:clear-all")  # what is found afterwards is new
        until(lambda: not outputs(page), PAGE, "the stored outputs to go")
        command(page, "notebook:run-all-cells")
        until(lambda: has_run(page), RUN, "the lesson to run")
        yield page


def command(page, name):
    page.value(f"void jupyterapp.commands.execute('{name}')")


def outputs(page):
    return [output for cell in page.value(CELLS) for output in cell["outputs"]]


def has_run(page):
    """Nothing waits any more; after an error, cells without a number are left.

    The first cell, Colab's, is folded and shows none.
    """
    prompts = [cell["prompt"] for cell in page.value(CELLS)][1:]
    status = "document.querySelector('.jp-Notebook-ExecutionIndicator').dataset.status"
    return "[*]:" not in prompts and prompts[0] != "[ ]:" and page.value(status) == "idle"


def test_every_cell_runs_without_an_error_and_nothing_lies_over_the_page(page):
    errors = ("application/vnd.jupyter.error", "application/vnd.jupyter.stderr")
    assert not [output["text"] for output in outputs(page) if output["kind"] in errors]
    prompts = [cell["prompt"] for cell in page.value(CELLS)][1:]
    assert prompts == [f"[{number}]:" for number in range(2, len(prompts) + 2)]
    assert not page.value(COVERING)


def test_every_figure_stands_above_its_sentence(page):
    lesson = nbformat.read(ROOT / "notebooks" / LESSON, as_version=4)
    stored = [output for cell in lesson.cells for output in cell.get("outputs", [])]
    figures = [output for output in stored if "image/png" in output.get("data", {})]
    alts = [figure.metadata["image/png"]["alt"] for figure in figures]
    shown = outputs(page)
    below = [after["text"] for one, after in zip(shown, shown[1:]) if one["kind"] == "image/png"]
    numbers = re.compile(r"\d+ in 100")  # may differ by one on another machine
    assert [numbers.sub("", text) for text in below] == [
        numbers.sub("", f"Figure: {alt}") for alt in alts
    ]


def test_a_slider_moves_figure_and_sentence(page):
    def state():
        cells = [cell["outputs"] for cell in page.value(CELLS)]
        (found,) = [cell for cell in cells if any(output["slider"] for output in cell)]
        slider, picture, sentence = found
        return slider["text"], picture["picture"], sentence["text"]

    def press(key):
        page.value("document.querySelector('.noUi-handle').focus()")
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    before = state()
    assert before[2].startswith("Figure: With a false-alarm rate of 5 in 100")
    press("ArrowRight")
    until(lambda: "a false-alarm rate of 10 in 100" in state()[2], PAGE, "the sentence to change")
    until(lambda: state()[1] != before[1], PAGE, "the figure to change")
    assert state()[0] != before[0]
    press("ArrowLeft")
    until(lambda: state()[1:] == before[1:], PAGE, "figure and sentence to come back")


def test_what_is_saved_holds_no_widget_state(page, course):
    file = course[0] / "notebooks" / LESSON
    before = file.stat().st_mtime_ns
    command(page, "docmanager:save")
    until(lambda: file.stat().st_mtime_ns != before, PAGE, "the notebook to be saved")
    time.sleep(1)  # until it is written whole
    assert "widgets" not in nbformat.read(file, as_version=4).metadata
    assert not page.value(COVERING)
