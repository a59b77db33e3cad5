"""Draw the pictures of docs/: sheets of embedded images, and the ranking in the README: `python tools/sheets.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pandalib import DN2, load_backbone, load_task, plots  # noqa: E402
from pandalib.io import write_atomically  # noqa: E402
from pandalib.datasets.synthetic import glyphs, surfaces  # noqa: E402
from pandalib.datasets.synthetic.pictograms import LEVELS, SYMBOLS, Pictograms  # noqa: E402
from pandalib.datasets.synthetic.surfaces import DEFECTS, KINDS, LOGICAL, Surfaces  # noqa: E402

GAP = 4  # white pixels between images
TILE = 128  # pixels of a surface


def sheet(images: np.ndarray, columns: int) -> Image.Image:
    """Images uint8 (n, 3, h, w) side by side on white, n a multiple of `columns`."""
    n, _, height, width = images.shape
    framed = np.full((n, height + GAP, width + GAP, 3), 255, np.uint8)
    framed[:, :height, :width] = images.transpose(0, 2, 3, 1)
    grid = framed.reshape(n // columns, columns, height + GAP, width + GAP, 3).transpose(
        0, 2, 1, 3, 4
    )
    return Image.fromarray(
        grid.reshape(n // columns * (height + GAP), columns * (width + GAP), 3)[:-GAP, :-GAP]
    )


def ranking() -> None:
    """The picture of the README: test images of one task by the score of DN2."""
    task = load_task("pictograms:phone")
    order = np.argsort(DN2(load_backbone()).fit(task.train).score(task.test))
    rows = np.concatenate([order[:10], order[-10:]])
    titles = ["low"] * 10 + ["high"] * 10
    image = plots.png(plots.image_grid(task.test[rows], titles=titles, anomalous=task.labels[rows]))
    write_atomically(ROOT / "docs" / "result.png", image)


def outlined(kind: str, defect: str, index: int, **options) -> np.ndarray:
    """An image with a defect, uint8 (3, h, w), a thin line around its mask."""
    image, mask = Surfaces(kind, index + 1, defect=defect, split="sheet", **options).pairs(index)
    around = binary_dilation(mask, iterations=3)
    image[:, around & ~binary_dilation(mask, iterations=2)] = np.array(
        [[255], [0], [200]], np.uint8
    )
    return image


def save_small(image: Image.Image, name: str) -> None:
    """In steps of 8 grey values, without the noise that would be most of the file."""
    image.point(lambda value: min(255, value // 8 * 8 + 4) if value < 252 else 255).save(
        ROOT / "docs" / name, optimize=True
    )


def surface_sheets() -> None:
    rows = []
    for kind in KINDS:
        white = np.full((3, TILE, TILE), 255, np.uint8)
        row = [
            *Surfaces(kind, 2, split="sheet", size=TILE)[:],
            *(outlined(kind, name, 2, size=TILE) for name in DEFECTS[kind]),
        ]
        row += [white] * (7 - len(row)) + [
            outlined(kind, name, 2, size=TILE) for name in LOGICAL[kind]
        ]
        rows += row + [white] * (9 - len(row))
    save_small(sheet(np.stack(rows), 9), "surfaces.png")
    shown = [(kind, name) for kind in KINDS for name in DEFECTS[kind][:2]]
    rows = [
        Surfaces(kind, 4, defect=name, split="sheet", level=level, size=TILE)[3]
        for level in surfaces.LEVELS
        for kind, name in shown
    ]
    save_small(sheet(np.stack(rows), len(shown)), "surface_levels.png")


def main() -> None:
    ranking()
    surface_sheets()
    by_symbol = np.stack(
        [Pictograms(symbol, 6, split="sheet")[:] for symbol in SYMBOLS]
    )  # (10, 6, 3, 64, 64)
    sheet(by_symbol.swapaxes(0, 1).reshape(-1, 3, 64, 64), 10).save(
        ROOT / "docs" / "pictograms.png", optimize=True
    )
    levels = np.concatenate(
        [
            [Pictograms(symbol, 1, split="sheet", level=level)[0] for symbol in SYMBOLS]
            for level in LEVELS
        ]
    )
    sheet(levels, 10).save(ROOT / "docs" / "levels.png", optimize=True)
    sheet(glyphs.draw_batch(range(96), split="sheet")[0], 16).save(
        ROOT / "docs" / "glyphs.png", optimize=True
    )


if __name__ == "__main__":
    main()
