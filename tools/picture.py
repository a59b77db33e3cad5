"""The picture of the README, solar cells and where they are broken: `python tools/picture.py`.

A detector learns from sound monocrystalline cells of the ELPV data set and ranks the test cells. In
docs/result.png stand the highest scores, with their heat maps, and the lowest.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import pandalib
from pandalib import plots
from pandalib.inspection.report import overlay

N = 6


def main() -> None:
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


if __name__ == "__main__":
    main()
