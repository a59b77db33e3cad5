"""The lessons in Google Colab: the cell with which each begins, and what that cell calls.

    python tools/colab.py        puts the cell into notebooks/*.ipynb

The cell does nothing outside of Colab, nor where pandalib can be imported. In Colab it asks for the
address of the repository, fetches that and calls `prepare`. Colab brings a torch of its own that
fits its GPU, so packages that are there stay as they are, whatever their version.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CELL = """\
# Google Colab only; elsewhere this cell does nothing.
import importlib.util, runpy, subprocess, sys

address = ""  # on Colab, the repository's address: https://github.com/...
if "google.colab" in sys.modules and importlib.util.find_spec("pandalib") is None:
    assert address, "Fill in the repository's address in this cell, and run it again."
    clone = ["git", "clone", "--quiet", "--depth=1", address, "course"]
    subprocess.run(clone, check=True)
    runpy.run_path("course/tools/colab.py")["prepare"]()"""


def prepare() -> None:
    """Install the packages that are missing, and let this kernel and the next find pandalib."""
    asked = project()
    asked = [*asked["dependencies"], *asked["optional-dependencies"]["photographs"]]
    missing = [one for one in asked if not is_installed(one)]
    for packages in (missing, ["--no-deps", "--editable", str(ROOT)]):
        if packages:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", *packages]
            subprocess.run(pip, check=True)
    sys.path.insert(0, str(ROOT))  # pip has told the next Python; this one runs already


def project() -> dict:
    import tomllib  # of Python 3.11 and newer

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def is_installed(requirement: str) -> bool:
    name = re.match(r"[\w.-]+", requirement)[0]
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return name == "jupyterlab"  # Colab is the front end
    return True


def main() -> None:
    import nbformat  # comes with Jupyter, which Colab's own environment lacks

    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if not any(cell.id == "colab" for cell in notebook.cells):
            notebook.cells.insert(1, nbformat.v4.new_code_cell(id="colab"))
        (cell,) = [cell for cell in notebook.cells if cell.id == "colab"]
        cell.source = CELL
        cell.metadata.slideshow = {"slide_type": "skip"}
        cell.metadata.jupyter = {"source_hidden": True}  # folded, in JupyterLab and in Colab
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
