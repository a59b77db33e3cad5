"""Two lessons in a real JupyterLab, started as `make teach` does, in a real browser: run, looked through, a slider moved.

The browser is Chromium or Chrome with its chromedriver, of the system: `apt install chromium chromium-driver`. Everything
runs on a copy of the notebooks, since JupyterLab saves what it has opened, and over loopback only.
"""

import json
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
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
LESSONS = {  # what the sentence of each slider says first, and after one step to the right
    "00_start_here.ipynb": (
        "With 5 in 100 false alarms allowed",
        "With 6 in 100 false alarms allowed",
    ),
    "02_collapse.ipynb": ("Scores after 0 epochs", "Scores after 1 epochs"),
}
PAGE, RUN = 180, 900  # seconds: for a page to answer, for a lesson to run, on the busiest machine
BROWSER = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (path := shutil.which(name))
    ),
    None,
)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.skipif(
        not BROWSER,
        reason="no Chromium or Chrome on this machine: apt install chromium chromium-driver",
    ),
    pytest.mark.skipif(
        not DRIVER, reason="no chromedriver on this machine: apt install chromium-driver"
    ),
    pytest.mark.skipif(
        not shutil.which("make"), reason="no make on this machine, so no `make teach`"
    ),
]

# Each cell of the page: its prompt and its outputs. textContent: cells out of sight are not drawn, and innerText is what is drawn.
CELLS = """
return [...document.querySelectorAll('.jp-Notebook .jp-Cell')].map(cell => ({
    prompt: cell.querySelector('.jp-InputPrompt') ? cell.querySelector('.jp-InputPrompt').textContent.trim() : null,
    outputs: [...cell.querySelectorAll('.jp-OutputArea-child > .jp-OutputArea-output')].map(output => ({
        kind: output.dataset.mimeType || '',
        width: output.querySelector('img') ? output.querySelector('img').naturalWidth : 0,
        picture: output.querySelector('img') ? output.querySelector('img').src : '',
        text: output.textContent.trim(),
        slider: output.querySelectorAll(".noUi-handle").length,
    })),
}));
"""
# What lies over the notebook: the elements on top at points of a grid that belong to something else.
COVERING = """
const notebook = document.querySelector('.jp-NotebookPanel'), box = notebook.getBoundingClientRect(), found = new Set();
for (let row = 1; row < 20; row++) for (let column = 1; column < 20; column++) {
    const top = document.elementFromPoint(box.left + box.width * column / 20, box.top + box.height * row / 20);
    if (top && !notebook.contains(top)) found.add(top.className + ': ' + top.innerText.slice(0, 80));
}
return [...found];
"""


def until(condition, seconds, what):
    """The first true answer of `condition`, asked again and again."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds} s for {what}")
        time.sleep(0.2)
    return answer


class Lab:
    """JupyterLab on a copy of the course, with the command line of `make teach`."""

    def __init__(self, root: Path):
        self.root, self.token = root / "a course", secrets.token_hex(8)
        for name in ("notebooks", "tools/lab_settings"):
            shutil.copytree(
                ROOT / name,
                self.root / name,
                ignore=shutil.ignore_patterns("student", ".ipynb_checkpoints"),
            )
        shutil.copy(ROOT / "Makefile", self.root)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        # As in a reader's shell: no PANDALIB_QUIET. No settings of this user's, and none of the make that may run this test.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not re.match(r"PANDALIB_|JUPYTER|MAKE|MFLAGS", name)
        }
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
        ):
            environment[name] = str(root / name.lower())
        if "PANDALIB_CACHE" in os.environ:
            environment["PANDALIB_CACHE"] = os.environ["PANDALIB_CACHE"]
        arguments = f"--no-browser --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0 --IdentityProvider.token={self.token}"
        shown = subprocess.run(
            ["make", "-n", "teach", f"ARGS={arguments}"],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        _, *command = shlex.split(
            shown.replace("\\\n", " ").strip().splitlines()[-1]
        )  # the last line starts JupyterLab
        assert command[:2] == ["-m", "jupyterlab"], shown
        self.log = root / "server.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ask(self, path):
        request = urllib.request.Request(
            f"{self.address}/api/{path}", headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=PAGE
        ) as answer:
            return json.load(answer)

    def is_up(self):
        assert self.process.poll() is None, f"JupyterLab has ended:\n{self.log.read_text()[-2000:]}"
        try:
            return self.ask("status")
        except OSError:
            return None

    def kernel_is_ready(self, name):
        """Idle, and the page is connected to it: what is run before that is lost."""
        sessions = [
            session for session in self.ask("sessions") if session["path"] == f"notebooks/{name}"
        ]
        return (
            sessions
            and sessions[0]["kernel"]["execution_state"] == "idle"
            and sessions[0]["kernel"]["connections"] > 0
        )

    def stop(self):
        self.process.terminate()  # ends its kernels
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        until(lab.is_up, PAGE, f"JupyterLab to start; its log is {lab.log}")
        yield lab
    finally:
        lab.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed: pip install selenium"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    # --no-sandbox: containers and the namespace without a network have none. Nothing but loopback is ever asked for.
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-proxy-server",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    service = webdriver.ChromeService(
        executable_path=DRIVER, log_output=str(tmp_path_factory.mktemp("browser") / "driver.log")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(PAGE)
    driver.set_script_timeout(PAGE)
    yield driver
    driver.quit()


class Lesson:
    """One lesson in the browser, as a reader has it."""

    def __init__(self, browser, lab, name):
        self.browser, self.lab, self.name, self.covering = browser, lab, name, set()
        self.file = lab.root / "notebooks" / name

    def script(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def cells(self):
        return self.script(CELLS)

    def outputs(self):
        return [output for cell in self.cells() for output in cell["outputs"]]

    def prompts(self):
        return [cell["prompt"] for cell in self.cells() if cell["prompt"]]

    def is_idle(self):
        return self.script(
            "const one = document.querySelector('.jp-Notebook-ExecutionIndicator'); return one && one.dataset.status === 'idle'"
        )

    def open(self):
        # Lesson 00 is where `make teach` leads; `reset` forgets what was open before.
        where = "/?" if self.name.startswith("00") else f"/lab/tree/notebooks/{self.name}?reset&"
        self.browser.get(f"{self.lab.address}{where}token={self.lab.token}")
        until(self.cells, PAGE, f"{self.name} to be shown")
        assert f"/lab/tree/notebooks/{self.name}" in self.browser.current_url
        until(lambda: self.lab.kernel_is_ready(self.name), PAGE, "its kernel to be ready")
        until(self.is_idle, PAGE, "the page to know that the kernel is ready")

    def choose(self, *labels):
        """Click through the menus; a click fails if something lies over the label."""
        for step, label in enumerate(labels):
            kind = "lm-Menu-itemLabel" if step else "lm-MenuBar-itemLabel"
            path = f"//*[contains(@class, '{kind}') and normalize-space(.)='{label}']"
            shown = lambda path=path: [
                one for one in self.browser.find_elements("xpath", path) if one.is_displayed()
            ]  # noqa: E731
            until(shown, PAGE, f"{label!r} in the menu")[0].click()

    def run_all(self):
        self.choose("Edit", "Clear Outputs of All Cells")  # what is found afterwards is new
        until(lambda: not self.outputs(), PAGE, "the committed outputs to go")
        self.choose("Run", "Run All Cells")
        until(self.has_run, RUN, f"{self.name} to run through")

    def has_run(self):
        """Nothing waits any more; after an error, cells without a number are left."""
        prompts = self.prompts()
        return "[*]:" not in prompts and prompts[0] != "[ ]:" and self.is_idle()

    def look_through(self):
        """Scroll from top to bottom and note what lies over the page on the way."""
        self.script("document.querySelector('.jp-Notebook .jp-WindowedPanel-outer').scrollTop = 0")
        at_end = False
        while not at_end:
            time.sleep(0.2)
            self.covering |= set(self.script(COVERING))
            at_end = self.script(
                "const box = document.querySelector('.jp-Notebook .jp-WindowedPanel-outer'), before = box.scrollTop;"
                "box.scrollTop += box.clientHeight * 0.9; return box.scrollTop === before"
            )


@pytest.fixture(scope="module", params=LESSONS)
def lesson(request, lab, browser):
    lesson = Lesson(browser, lab, request.param)
    lesson.open()
    lesson.covering |= set(lesson.script(COVERING))
    lesson.run_all()
    lesson.look_through()
    return lesson


def test_every_cell_runs_without_an_error(lesson):
    wrong = [
        output
        for output in lesson.outputs()
        if output["kind"] in ("application/vnd.jupyter.error", "application/vnd.jupyter.stderr")
    ]
    assert not wrong, wrong[0]["text"]
    assert lesson.prompts() == [f"[{number}]:" for number in range(1, len(lesson.prompts()) + 1)]


def test_nothing_lies_over_the_page(lesson):
    assert not lesson.covering


def test_every_figure_stands_above_its_sentence(lesson):
    committed = nbformat.read(ROOT / "notebooks" / lesson.name, as_version=4)
    outputs = [
        output
        for cell in committed.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    sentences = [f"Figure: {output.metadata['image/png']['alt']}" for output in outputs]
    shown = lesson.outputs()
    below = [
        after["text"]
        for output, after in zip(shown, [*shown[1:], {"text": "nothing"}])
        if output["kind"] == "image/png"
    ]
    numbers = re.compile(r"\d+ in 100")  # may differ by one on another machine
    assert [numbers.sub("", text) for text in below] == [
        numbers.sub("", text) for text in sentences
    ]
    assert all(
        output["width"] > 200 for output in shown if output["kind"] == "image/png"
    )  # drawn, not broken


def test_a_slider_moves_figure_and_sentence(lesson):
    from selenium.webdriver.common.keys import Keys

    def state():
        (cell,) = [
            cell for cell in lesson.cells() if any(output["slider"] for output in cell["outputs"])
        ]
        slider, picture, sentence = cell["outputs"]
        assert slider["slider"] == 1 and picture["kind"] == "image/png"
        return slider["text"], picture["picture"], sentence["text"]

    first, second = LESSONS[lesson.name]
    handles = lesson.browser.find_elements("css selector", ".jp-OutputArea .noUi-handle")
    assert len(handles) == 1, f"{len(handles)} sliders on the page, expected one"
    handle = handles[0]
    lesson.script("arguments[0].scrollIntoView({block: 'center'})", handle)
    readout, picture, sentence = state()
    assert sentence.startswith(f"Figure: {first}")
    handle.send_keys(Keys.ARROW_RIGHT)
    until(
        lambda: state()[2].startswith(f"Figure: {second}"),
        PAGE,
        f"the sentence to say {second!r}; it says {state()[2]!r}",
    )
    until(lambda: state()[1] != picture, PAGE, "the figure to change")
    assert state()[0] != readout
    handle.send_keys(Keys.ARROW_LEFT)
    until(lambda: state()[1:] == (picture, sentence), PAGE, "figure and sentence to come back")


def test_what_is_saved_holds_no_widget_state(lesson):
    before = lesson.file.stat().st_mtime_ns

    def is_saved():
        try:
            return lesson.file.stat().st_mtime_ns != before and json.loads(
                lesson.file.read_text(encoding="utf-8")
            )
        except (OSError, ValueError):  # not yet whole
            return False

    lesson.choose("File", "Save Notebook")
    until(is_saved, PAGE, "the notebook to be saved")
    saved = nbformat.read(lesson.file, as_version=4)
    assert "widgets" not in saved.metadata and "widget-state" not in lesson.file.read_text()
    counts = [cell.execution_count for cell in saved.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    lesson.covering.clear()
    assert not lesson.script(COVERING)
