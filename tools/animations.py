"""Animations of the lessons' sliders for the book, which has no kernel to draw them.

    python tools/animations.py [NOTEBOOK ...]      default: all lessons that have a slider

Executes a copy of the lesson and writes docs/animations/NAME.gif for each slider, NAME being its
label: the figure at up to 12 of the slider's values. The lesson itself stays as it is.
"""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
from pandalib import plots
from pandalib.io import write_atomically

FOLDER = ROOT / "docs" / "animations"
FRAMES = 12
PAUSE = 900  # milliseconds: time to read a caption's number
WIDTH = 700  # pixels
INSTEAD = f"""import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import animations
from pandalib import plots
plots.slider = animations.record"""


def file_of(label: str) -> str:
    return re.sub(r"\W+", "-", label.lower()).strip("-") + ".gif"


def labels(source: str) -> list[str]:
    """The labels of the sliders in a cell."""
    return re.findall(r'plots\.slider\(.*?label="([^"]+)"', source, re.S)


def record(draw, values, *, start, label: str) -> None:
    """In place of `plots.slider`: its figure at values evenly far apart, one after the other."""
    values = list(values)
    places = sorted({round(i * (len(values) - 1) / (FRAMES - 1)) for i in range(FRAMES)})
    drawn = [Image.open(io.BytesIO(plots.png(*draw(values[i])))).convert("RGB") for i in places]
    size = [max(frame.size[axis] for frame in drawn) for axis in (0, 1)]
    frames = []
    for frame in drawn:  # tight figures differ by a few pixels
        whole = Image.new("RGB", size, "white")
        whole.paste(frame, ((size[0] - frame.size[0]) // 2, 0))
        whole.thumbnail((WIDTH, WIDTH))
        frames.append(whole.quantize(128, dither=Image.Dither.NONE))
    buffer = io.BytesIO()
    rest = dict(save_all=True, append_images=frames[1:], duration=PAUSE, loop=0)
    frames[0].save(buffer, "GIF", **rest)
    write_atomically(FOLDER / file_of(label), buffer.getvalue())


def main(names: list[str]) -> int:
    os.environ["PANDALIB_QUIET"] = "1"
    for path in [Path(name) for name in names] or sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        found = [label for cell in notebook.cells for label in labels(cell.source)]
        if not found:
            continue
        notebook.cells.insert(0, nbformat.v4.new_code_cell(INSTEAD))
        resources = {"metadata": {"path": str(path.parent)}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
        for label in found:
            file = FOLDER / file_of(label)
            print(f"{path.name}: {file.relative_to(ROOT)}, {file.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
