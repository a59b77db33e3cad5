"""The lessons in Google Colab: the cell with which each begins, and what that cell calls.

    python tools/colab.py            writes the cell into notebooks/*.ipynb
    python tools/colab.py --check    writes nothing; exit 1 when a lesson's cell differs from what it should be

The cell does nothing outside of Colab, nor where pandalib can be imported. In Colab it fetches the release that the
lesson belongs to and calls `prepare`. Colab brings a torch of its own that fits its GPU, so packages that are there stay
as they are, whatever their version.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/OWNER/pandalib"  # a placeholder: the one place that says where releases are fetched from
CELL = """\
# For Google Colab; elsewhere this cell does nothing.
import importlib.util, runpy, subprocess, sys

if "google.colab" in sys.modules and importlib.util.find_spec("pandalib") is None:
    address, tag = "{address}", "{tag}"
    clone = f"git clone --quiet --depth=1 --branch {{tag}} {{address}} course"
    subprocess.run(clone.split(), check=True)
    runpy.run_path("course/tools/colab.py")["prepare"]()"""


def prepare() -> None:
    """Install the packages of pyproject.toml that are missing altogether, and let this kernel and the next find pandalib."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    missing = [
        requirement
        for requirement in project["dependencies"]
        if not is_installed(re.match(r"[\w.-]+", requirement)[0])
    ]
    missing = [
        requirement for requirement in missing if not requirement.startswith("jupyterlab")
    ]  # Colab is the front end
    if missing:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
    subprocess.run(
        [sys.executable, str(ROOT / "tools" / "install.py"), "--link"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    sys.path.insert(
        0, str(ROOT)
    )  # what --link has written is read when a Python starts; this one runs already


def is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def version() -> str:
    """`__version__` of pandalib, without importing it."""
    tree = ast.parse((ROOT / "pandalib" / "__init__.py").read_text(encoding="utf-8"))
    return next(
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
    )


def cell_source() -> str:
    return CELL.format(address=REPOSITORY, tag=f"v{version()}")


def with_cell(notebook):
    """The notebook with the cell in its place, before the first other code cell; numbers of later cells move on by one."""
    import nbformat

    cell = next((cell for cell in notebook.cells if cell.id == "colab"), None)
    if cell is None:
        cell = nbformat.v4.new_code_cell(
            id="colab", metadata={"slideshow": {"slide_type": "skip"}}, execution_count=1
        )
        for other in notebook.cells:
            if other.cell_type == "code" and other.execution_count:
                other.execution_count += 1
        first = next(
            number for number, other in enumerate(notebook.cells) if other.cell_type == "code"
        )
        notebook.cells.insert(first, cell)
    cell.source = cell_source()
    return notebook


def main(arguments: list[str]) -> int:
    import nbformat

    sys.path.insert(0, str(ROOT))
    from pandalib.io import write_atomically

    only_check, stale = "--check" in arguments, []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = nbformat.writes(with_cell(nbformat.read(path, as_version=4))) + "\n"
        if text == path.read_text(encoding="utf-8"):
            continue
        stale.append(path.name)
        if not only_check:
            write_atomically(path, text.encode())
            print(f"wrote {path.relative_to(ROOT)}")
    if only_check and stale:
        print(
            f"out of date: {', '.join(stale)}. Run `python tools/colab.py`, then `make student`.",
            file=sys.stderr,
        )
    return int(only_check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
