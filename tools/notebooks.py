"""Execute the notebooks in place, so that what is committed is what ran: `make notebooks`.

    python tools/notebooks.py [NOTEBOOK ...]      default: all of notebooks/

Prints for each its seconds, the seconds from the kernel's start to its first figure, and on Linux
the largest memory of its kernel. A notebook that fails is left as it was. No times, no widget state
and no version of this machine's Python stay in the files.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pandalib.io import write_atomically

os.environ["PANDALIB_QUIET"] = "1"  # no progress bar in the files
LARGEST = 1_000_000  # bytes of one notebook


def largest_memory(process: int) -> int | None:
    """Bytes that a running process has held at most; None where the system does not say."""
    status = Path(f"/proc/{process}/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else None


def execute(path: Path) -> tuple[float, float | None, int | None]:
    """Run one notebook and write it back: seconds, those to the first figure, bytes of its kernel.

    The last two are None where there is no figure, and where the system does not say.
    """
    notebook = nbformat.read(path, as_version=4)
    start, first_figure, memory = time.perf_counter(), None, None

    def after_cell(cell, cell_index, **_):
        nonlocal first_figure, memory
        memory = largest_memory(client.km.provisioner.pid)
        drawn = any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        if drawn and first_figure is None:
            first_figure = time.perf_counter() - start

    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        on_cell_executed=after_cell,
    )
    client.execute()
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    text = nbformat.writes(notebook) + "\n"
    if len(text) > LARGEST:
        raise ValueError(f"{path} would have {len(text)} bytes, more than {LARGEST}.")
    write_atomically(path, text.encode())
    return time.perf_counter() - start, first_figure, memory


def main(names: list[str]) -> int:
    failed = False
    for path in [Path(name) for name in names] or sorted((ROOT / "notebooks").glob("*.ipynb")):
        try:
            seconds, figure, memory = execute(path)
        except (CellExecutionError, ValueError) as error:
            print(f"{path.name}: left as it was.\n{error}", file=sys.stderr)
            failed = True
            continue
        words = f"first figure after {figure:.1f} s" if figure else "no figure"
        words += f", kernel {memory / 2**30:.2f} GiB at most" if memory else ""
        print(f"{path.name}: {seconds:.1f} s, {words}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
