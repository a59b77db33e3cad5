"""Draw the pictures of docs/: sheets of embedded images, and the ranking in the README: `python tools/sheets.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pandalib import DN2, load_backbone, load_task, plots  # noqa: E402
from pandalib.files import write_atomically  # noqa: E402
from pandalib.sources import glyphs  # noqa: E402
from pandalib.sources.pictograms import LEVELS, SYMBOLS, Pictograms  # noqa: E402

GAP = 4  # white pixels between images


def sheet(images: np.ndarray, columns: int) -> Image.Image:
    """Images uint8 (n, 3, h, w) side by side on white, n a multiple of `columns`."""
    n, _, height, width = images.shape
    framed = np.full((n, height + GAP, width + GAP, 3), 255, np.uint8)
    framed[:, :height, :width] = images.transpose(0, 2, 3, 1)
    grid = framed.reshape(n // columns, columns, height + GAP, width + GAP, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(grid.reshape(n // columns * (height + GAP), columns * (width + GAP), 3)[:-GAP, :-GAP])


def ranking() -> None:
    """The picture of the README: test images of one task by the score of DN2."""
    task = load_task("pictograms:phone")
    order = np.argsort(DN2(load_backbone()).fit(task.train).score(task.test))
    rows = np.concatenate([order[:10], order[-10:]])
    titles = ["low"] * 10 + ["high"] * 10
    image = plots.png(plots.image_grid(task.test[rows], titles=titles, anomalous=task.labels[rows]))
    write_atomically(ROOT / "docs" / "result.png", image)


def main() -> None:
    ranking()
    by_symbol = np.stack([Pictograms(symbol, 6, split="sheet")[:] for symbol in SYMBOLS])  # (10, 6, 3, 64, 64)
    sheet(by_symbol.swapaxes(0, 1).reshape(-1, 3, 64, 64), 10).save(ROOT / "docs" / "pictograms.png", optimize=True)
    levels = np.concatenate([[Pictograms(symbol, 1, split="sheet", level=level)[0] for symbol in SYMBOLS] for level in LEVELS])
    sheet(levels, 10).save(ROOT / "docs" / "levels.png", optimize=True)
    sheet(glyphs.draw_batch(range(96), split="sheet")[0], 16).save(ROOT / "docs" / "glyphs.png", optimize=True)


if __name__ == "__main__":
    main()
