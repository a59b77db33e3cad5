"""Solar cells: 2,624 electroluminescence photographs, 300 x 300, from an installed package.

`elpv-dataset` (extra [photographs]) holds the images and, for each, the probability of a defect
that experts gave it: 0, 1/3, 2/3 or 1. Cells are of monocrystalline or of polycrystalline silicon,
and each kind is a task of its own. Normal are the cells with probability 0, anomalous those with 1.
The package does not say which cells come from the same solar module, so cells of one module may
stand on both sides of our split.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pandalib.datasets.images import Geometry, ImageFolder
from pandalib.datasets.task import OneClassTask, choose, split_80_20

CLASSES = ("mono", "poly")
PACKAGE = "elpv_dataset"
CREDIT = (
    "solar cells of the ELPV data set (Buerhop-Lutz et al. 2018; Deitsch et al. 2019, 2021), "
    "CC BY-NC-SA 4.0"
)
DEGREES = {"0.0": "good", "0.3333333333333333": "1/3", "0.6666666666666666": "2/3", "1.0": "defect"}


def load_task(
    name: str,
    *,
    size: int = 160,
    resize: int | None = None,
    fit: str | None = None,
    seed: int = 0,
    n_train: int | None = None,
    n_test: int | None = None,
    doubtful: str = "out",
) -> OneClassTask:
    """The cells of one kind: 80 % of the good ones, drawn with `seed`, to learn from; the rest and
    all defective ones to test.

    Parameters
    ----------
    name : {"mono", "poly"}
    size, resize, fit, seed, n_train, n_test
        As in `pandalib.load_task`.
    doubtful : {"out", "anomalous"}
        What becomes of the cells with a probability of 1/3 and 2/3: they are left out, or they are
        anomalous test images of kinds of their own.

    Raises
    ------
    ModuleNotFoundError
        The package is not installed.
    ValueError
        Another kind of cell, or fewer than the images that were asked for.

    Examples
    --------
    >>> load_task("poly", n_train=4, n_test=2).kinds
    ('good', 'good', 'defect', 'defect')
    """
    if doubtful not in ("out", "anomalous"):
        raise ValueError(f"doubtful={doubtful!r}: expected 'out' or 'anomalous'.")
    good, *others = (cells(name, degree) for degree in ("good", "defect", "1/3", "2/3"))
    train, held_out = split_80_20(good, seed)
    tests = {"good": held_out, "defect": others[0]}
    if doubtful == "anomalous":
        tests |= {"doubtful, 1/3": others[1], "doubtful, 2/3": others[2]}
    sample = dict(seed=seed, n_train=n_train, n_test=n_test)
    train, test, kinds = choose(train, tests, "good", where=f"elpv:{name}", **sample)
    geometry = Geometry.for_images(train, size, fit, resize)
    return OneClassTask(
        name=f"elpv:{name}",
        train=ImageFolder(train, geometry),
        test=ImageFolder(test, geometry),
        labels=np.array([kind != "good" for kind in kinds], np.int64),
        kinds=kinds,
        files=tuple(map(str, test)),
        credit=CREDIT,
    )


def cells(name: str, degree: str) -> list[Path]:
    """The files of the cells of one kind, "mono" or "poly", and one of the values of `DEGREES`."""
    if name not in CLASSES:
        raise ValueError(f"elpv has no class {name!r}: choose one of {', '.join(CLASSES)}.")
    folder = data_folder()
    lines = (folder / "labels.csv").read_text(encoding="utf-8").split("\n")
    rows = (line.split() for line in lines if line)
    return [folder / file for file, p, kind in rows if (kind, DEGREES[p]) == (name, degree)]


def other_defects(name: str, geometry: Geometry) -> Sequence:
    """The defective cells of the other kind: near outliers that are in no test set of this one."""
    (other,) = set(CLASSES) - {name}
    return ImageFolder(cells(other, "defect"), geometry)


def data_folder() -> Path:
    """Where the package lies; it is never imported."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise ModuleNotFoundError(
            "the solar cells are not installed: run `make install`, or "
            '`python -m pip install "elpv-dataset>=1.0"`.'
        )
    return Path(found.submodule_search_locations[0]) / "data"
