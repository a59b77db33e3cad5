"""A Chromium without a window, driven over its debugging port: what a page really does."""

import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

from websocket import create_connection  # comes with JupyterLab

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
WHY_NOT = "no Chromium or Chrome on this machine: apt install chromium"
FLAGS = (
    "--headless",
    "--no-sandbox",  # containers have none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # only this machine is asked
)


class Browser:
    """One page. `with Browser(folder) as page: page.open(address); page.value("document.title")`"""

    def __init__(self, profile: Path):
        self.profile = Path(profile)

    def __enter__(self):
        command = [PROGRAM, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **silent)
        port_file, end = self.profile / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.is_file() and "\n" in port_file.read_text()):
            if time.monotonic() > end or self.process.poll() is not None:
                self.__exit__()
                raise RuntimeError(f"{PROGRAM} did not start")
            time.sleep(0.05)
        port = port_file.read_text().split()[0]
        tabs = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
        (page,) = [one for one in tabs if one["type"] == "page"]
        self.socket = create_connection(page["webSocketDebuggerUrl"], timeout=60)
        self.numbers, self.events = itertools.count(1), []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def call(self, method, **parameters):
        """A command of the Chrome DevTools protocol; what happens meanwhile goes to `events`."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self.events.append(message)

    def size(self, width, height, dark=False):
        screen = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])

    def open(self, address):
        """Load a page and wait until it is complete."""
        self.events = []
        self.call("Page.navigate", url=address)
        end = time.monotonic() + 60
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < end, f"{address} did not load"
            self.value("1")  # reads what has come in
            time.sleep(0.02)
        self.value("document.fonts.ready.then(() => 1)")

    def value(self, expression):
        """What a JavaScript expression gives; of a promise, what it resolves to."""
        how = dict(awaitPromise=True, returnByValue=True)
        result = self.call("Runtime.evaluate", expression=expression, **how)
        if "exceptionDetails" in result:
            error = result["exceptionDetails"].get("exception", {})
            raise RuntimeError(error.get("description", "exception"))
        return result["result"].get("value")

    def _of(self, method):
        return [event["params"] for event in self.events if event["method"] == method]

    @property
    def requested(self):
        """The addresses that the page has asked for."""
        return [one["request"]["url"] for one in self._of("Network.requestWillBeSent")]

    @property
    def complaints(self):
        """Exceptions of the page's scripts, and what the browser logs as an error."""
        thrown = [one["exceptionDetails"] for one in self._of("Runtime.exceptionThrown")]
        logged = [one["entry"] for one in self._of("Log.entryAdded")]
        texts = [str(one.get("exception", {}).get("description", one["text"])) for one in thrown]
        return texts + [entry["text"] for entry in logged if entry["level"] == "error"]
