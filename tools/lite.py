"""Lesson 00 as a page that runs in a browser, with nothing installed: `make book ARGS=--lite`.

JupyterLite, with Python compiled for the browser (Pyodide). It comes into `.venv-lite`, beside the
course's own environment; only making that needs a network. The site holds JupyterLite, the lesson
and the library; opening the page fetches Python itself and the packages of `FROM_PYODIDE`
from Pyodide's servers, and the photographs from the Python package index: about 100 MB, kept by
the browser. A page opened from a disk does not run, as browsers forbid that: put the folder on a
server, or try it with `python -m http.server`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import beside

VENV = ROOT / ".venv-lite"
PYTHON = beside.python_of(VENV)
VERSION = "0.8.6"
PACKAGES = (
    f"jupyterlite-core=={VERSION}",
    f"jupyterlite-pyodide-kernel=={VERSION}",
    "jupyter-server",
)
LESSON = "00_start_here"
# What the lesson imports and Pyodide brings; its wheels fit no other Python.
FROM_PYODIDE = ("numpy", "scipy", "scikit-learn", "matplotlib", "pillow", "joblib", "tqdm")
FIRST_CELL = """\
# In the browser: fetches what the lesson needs, about 100 MB the first time.
import piplite

await piplite.install({packages!r})
await piplite.install("panda-course", deps=False)  # without torch, which no browser runs
await piplite.install("elpv-dataset", deps=False)  # the photographs"""


class Trouble(Exception):
    """What cannot be had, in one sentence."""


def install() -> None:
    """Make `.venv-lite` from a package index; quick when it is there."""
    if not beside.install(VENV, VERSION, PACKAGES):
        raise Trouble("JupyterLite could not be installed: the message above says why.")


def wheel(folder: Path) -> Path:
    """The library as a wheel, built from this checkout."""
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*line, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (found,) = folder.glob("panda_course-*.whl")
    with zipfile.ZipFile(found, "a") as archive:  # which an installation finds in the checkout
        for name in ("data/data_sets.toml", "pyproject.toml", "requirements.lock"):
            archive.write(ROOT / name, name)
    return found


def lesson() -> str:
    """The student's copy of the lesson, with a first cell for the browser."""
    path = ROOT / "notebooks" / "student" / f"{LESSON}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.id == "colab":
            cell.source = FIRST_CELL.format(packages=[*FROM_PYODIDE, "ipywidgets"])
            cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.kernelspec = {
        "name": "python",
        "display_name": "Python (Pyodide)",
        "language": "python",
    }
    return nbformat.writes(notebook)


def build(site: Path, work: Path) -> Path:
    """JupyterLite in `site`; returns the page that opens the lesson."""
    install()
    shutil.rmtree(work, ignore_errors=True)
    files = work / "files"
    files.mkdir(parents=True)
    (files / f"{LESSON}.ipynb").write_text(lesson(), encoding="utf-8")
    line = [str(PYTHON), "-m", "jupyterlite_core", "build", "--lite-dir", str(work)]
    line += ["--contents", str(files), "--piplite-wheels", str(wheel(work))]
    line += ["--output-dir", str(site), "--apps", "lab", "--apps", "notebooks"]
    done = subprocess.run(line, cwd=work, capture_output=True, text=True)
    if done.returncode:
        raise Trouble(f"JupyterLite could not be built: {done.stderr.strip() or done.stdout}")
    return site / "notebooks" / "index.html"
