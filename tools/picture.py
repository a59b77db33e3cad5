"""The pictures of the README and of docs/experiments.md: `python tools/picture.py`.

docs/result.png is solar cells and where they are broken: a detector learns from sound
monocrystalline cells of the ELPV data set and ranks the test cells; there stand the highest scores,
with their heat maps, and the lowest. The others show what this project draws.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import pandalib
from pandalib import plots
from pandalib.datasets.synthetic import glyphs, pictograms, surfaces
from pandalib.inspection.report import overlay

N, GAP = 6, 4
OUTLINE = np.array([230, 0, 200], np.uint8)[:, None]  # of defects; no surface has this colour


def result() -> None:
    """Rank solar cells, and write docs/result.png."""
    tier = pandalib.use("standard", task="elpv:mono")
    task = pandalib.load_task(tier.task, seed=0, size=tier.size)
    backbone = pandalib.load_backbone(tier.backbone, tier.weights)
    detector = pandalib.Inspector(backbone, size=tier.size, progress=False).fit(task.train)
    ranking = detector.rank(task.test, top=N)
    threshold = detector.threshold()
    highest, lowest = ranking.order[:N], ranking.order[-N:][::-1]
    images = [
        *(found.image for found in ranking.top),
        *(
            overlay(found.image, found.map, threshold).transpose(2, 0, 1)[:, ::2, ::2]
            for found in ranking.top
        ),
        *(task.test[[number]][0] for number in lowest),
    ]
    side = min(image.shape[-1] for image in images)
    images = np.stack([image[:, :side, :side] for image in images])
    anomalous = [*task.labels[highest], *task.labels[highest], *task.labels[lowest]]
    titles = N * ["highest scores"] + N * ["where"] + N * ["lowest scores"]
    figure = plots.image_grid(images, columns=N, titles=titles, anomalous=anomalous, cell=1.3)
    figure.savefig(ROOT / "docs" / "result.png", dpi=110, bbox_inches="tight")
    print("ROC-AUC", round(pandalib.roc_auc(task.labels, ranking.scores), 3), task.credit)


def montage(rows: list) -> np.ndarray:
    """Rows of images (3, H, W) of one size, white between them: uint8 (H', W', 3)."""
    rows = [list(row) for row in rows]
    step = np.array(rows[0][0].shape[1:]) + GAP
    height, width = step * (len(rows), max(len(row) for row in rows)) - GAP
    whole = np.full((height, width, 3), 255, np.uint8)
    for (y, x), image in (((y, x), one) for y, row in enumerate(rows) for x, one in enumerate(row)):
        top, left = step * (y, x)
        whole[top : top + image.shape[1], left : left + image.shape[2]] = image.transpose(1, 2, 0)
    return whole


def outlined(drawn: surfaces.Surfaces) -> np.ndarray:
    """The first image, with a line around what the defect has changed."""
    images, masks = drawn.pairs([0])
    around = binary_dilation(masks[0], iterations=3) & ~binary_dilation(masks[0], iterations=2)
    images[0][:, around] = OUTLINE
    return images[0]


def drawings() -> dict[str, np.ndarray]:
    """Name of each picture of drawn images -> the picture."""
    upstream = glyphs.draw_batch(range(96))[0]
    kinds = [(kind, surfaces.DEFECTS[kind]) for kind in surfaces.KINDS]
    return {
        "glyphs": montage([upstream[at : at + 16] for at in range(0, 96, 16)]),
        "levels": montage(
            [
                [pictograms.Pictograms(name, 1, level=level)[0] for name in pictograms.SYMBOLS]
                for level in pictograms.LEVELS
            ]
        ),
        "pictograms": montage(
            zip(*(pictograms.Pictograms(name, 6)[:] for name in pictograms.SYMBOLS))
        ),
        "surfaces": montage(
            [
                [*surfaces.Surfaces(kind, 2)[:]]
                + [outlined(surfaces.Surfaces(kind, 1, defect=defect)) for defect in defects]
                for kind, defects in kinds
            ]
        ),
        "surface_levels": montage(
            [
                [
                    surfaces.Surfaces(kind, 1, defect=defect, level=level)[0]
                    for kind, defects in kinds
                    for defect in defects[:2]
                ]
                for level in surfaces.LEVELS
            ]
        ),
    }


def main() -> None:
    for name, picture in drawings().items():
        Image.fromarray(picture).save(ROOT / "docs" / f"{name}.png", optimize=True)
    result()


if __name__ == "__main__":
    main()
