"""Adaptation on real images: `python tools/real_adaptation.py FOLDER` writes docs/results/real_adaptation.md.

FOLDER holds `cifar10/{train,test}/<class>/`, `wbc/images/<class>/` and `weights/resnet18_tv_layers123_bnfolded.pth`, small
public extracts that are no part of this project. ResNet-18 up to layer3, images at 128 px; CIFAR-10: each of the ten
classes normal in turn, the first 400 training images and the first 100 test images of each class by file name; white blood
cells: each class of 20 images or more, 80 % of it for training. The network is cut, so the Fisher information needs a
linear probe on other labelled images: white blood cells for CIFAR-10, CIFAR-10's training images for the cells. All
settings are those of the embedded tier, lambda scaled so that lambda times the mean of F is the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from adaptation_table import LONG, columns, measure  # noqa: E402

from pandalib import fisher_information, linear_probe, load_backbone, load_task, upstream_fisher  # noqa: E402
from pandalib.io import write_atomically  # noqa: E402
from pandalib.datasets.folder import labelled_images  # noqa: E402
from pandalib.datasets.images import ImageFolder, list_images  # noqa: E402
from pandalib.experiments.config import EMBEDDED  # noqa: E402

SIZE = 128
PAGE = """# Adaptation on real images

Made by `python tools/real_adaptation.py FOLDER` (what FOLDER holds, and the splits: see there). ResNet-18 up to layer3, ImageNet V1
weights (SHA-256 `{weights}...`), only layer3 adapted, {epochs} epochs, EWC {epochs} and twice that. A check of this project's
code on small extracts, one seed: not a result of the paper, which uses ResNet-152, layer3 and layer4, and the whole data sets. The settings
were chosen on drawn symbols, none on these images. "Oracle" is the best epoch by the test labels: a ruler, not a method.

| normal class | {heads} |
|---|{rule}
{rows}
"""


def main(folder: Path) -> None:
    path = folder / "weights" / "resnet18_tv_layers123_bnfolded.pth"
    network, bare = (
        load_backbone("resnet18", path, truncate_after="layer3", bias_free=bias_free)
        for bias_free in (False, True)
    )
    wanted = EMBEDDED.ewc_lambda * upstream_fisher(load_backbone(), progress=False).mean()

    def fisher(images, labels):
        return fisher_information(
            network, images, classifier=linear_probe(network, images, labels), progress=False
        )

    cells, cell_labels = labelled_images(folder / "wbc" / "images", size=SIZE)
    cells_fisher = fisher(cells[:], cell_labels)
    classes = sorted(path.name for path in (folder / "cifar10" / "train").iterdir())
    first = lambda part, name, n: list_images(folder / "cifar10" / part / name)[:n]  # noqa: E731
    natural = ImageFolder([file for name in classes for file in first("train", name, 60)], SIZE)[:]
    natural_fisher = fisher(natural, np.repeat(range(len(classes)), 60))

    tasks = {}
    test = ImageFolder([file for name in classes for file in first("test", name, 100)], SIZE)[:]
    for name in classes:
        train = ImageFolder(first("train", name, 400), SIZE)[:]
        tasks[f"CIFAR-10 {name}"] = (
            train,
            test,
            np.repeat([int(other != name) for other in classes], 100),
            cells_fisher,
        )
    for kind in sorted({path.name for path in (folder / "wbc" / "images").iterdir()}):
        if len(list_images(folder / "wbc" / "images" / kind)) >= 20:
            task = load_task(f"folder:{folder / 'wbc' / 'images'}:{kind}", size=SIZE)
            tasks[f"cells {kind.split('_')[-1]}"] = (
                task.train[:],
                task.test[:],
                task.labels,
                natural_fisher,
            )
    rows: list[str] = []
    results: dict[str, dict] = {}
    for name, (train, images, labels, known) in tasks.items():
        results[name] = measure(
            network,
            bare,
            train,
            images,
            labels,
            fisher=known,
            ewc_lambda=wanted / known.mean(),
            seed=0,
        )
        values = {key: value.item() for key, value in columns([[results[name]]]).items()}
        rows.append(
            f"| {name} ({len(train)}) | "
            + " | ".join(f"{value:.3f}" for value in values.values())
            + " |"
        )
        print(rows[-1], flush=True)
    for group in ("CIFAR-10", "cells"):
        table = columns([[result] for name, result in results.items() if name.startswith(group)])
        rows.append(
            f"| **{group}, mean** | "
            + " | ".join(f"**{value.mean():.3f}**" for value in table.values())
            + " |"
        )
    page = PAGE.format(
        weights=network.weights_sha256[:12],
        epochs=LONG,
        heads=" | ".join(values),
        rule="---|" * len(values),
        rows="\n".join(rows),
    )
    write_atomically(ROOT / "docs" / "results" / "real_adaptation.md", page.encode())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
