"""A Chromium without a window, driven over its debugging port: what a page really does, for the tests of book and slides."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

from websocket import create_connection  # comes with JupyterLab

PROGRAM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (path := shutil.which(name))
    ),
    None,
)
WHY_NOT = "no Chromium or Chrome on this machine"


class Browser:
    """One page. `with Browser(folder) as page: page.open(address); page.value("document.title")`."""

    def __init__(self, profile: Path):
        self.profile = Path(profile)

    def __enter__(self):
        # --no-sandbox: containers have none. A host that resolves nowhere: only files of this machine can be loaded.
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
            "--remote-allow-origins=*",
            "--no-first-run",
        ]
        flags += [
            f"--user-data-dir={self.profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--disable-dev-shm-usage",
        ]
        self.process = subprocess.Popen(
            [PROGRAM, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        port_file, end = self.profile / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.is_file() and "\n" in port_file.read_text()):
            if time.monotonic() > end or self.process.poll() is not None:
                self.__exit__()
                raise RuntimeError(f"{PROGRAM} did not start")
            time.sleep(0.05)
        port = port_file.read_text().split()[0]
        (page,) = [
            one
            for one in json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
            if one["type"] == "page"
        ]
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
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])

    def open(self, address):
        """Load a page and wait until it is complete; `requested` and `complaints` are those of this page."""
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
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(
                result["exceptionDetails"].get("exception", {}).get("description", "exception")
            )
        return result["result"].get("value")

    @property
    def requested(self):
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    @property
    def complaints(self):
        """Exceptions of the page's scripts, and what the browser logs as an error."""
        thrown = [
            event["params"]["exceptionDetails"]
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
        ]
        logged = [
            event["params"]["entry"] for event in self.events if event["method"] == "Log.entryAdded"
        ]
        return [str(one.get("exception", {}).get("description", one["text"])) for one in thrown] + [
            entry["text"] for entry in logged if entry["level"] == "error"
        ]

    def picture(self, path, whole=False):
        if whole:
            box = self.call("Page.getLayoutMetrics")["cssContentSize"]
            shot = self.call(
                "Page.captureScreenshot",
                captureBeyondViewport=True,
                clip={**box, "x": 0, "y": 0, "scale": 1},
            )
        else:
            shot = self.call("Page.captureScreenshot")
        Path(path).write_bytes(base64.b64decode(shot["data"]))
