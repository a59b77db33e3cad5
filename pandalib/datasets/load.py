"""Tasks by name: "SOURCE:CLASS", where the class is normal.

"pictograms:star+heart" has two normal classes; everything else is anomalous. That is a harder
experiment than one normal class, and their results must not be compared.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pandalib.datasets import elpv, folder, layouts, public
from pandalib.datasets.images import join, take
from pandalib.datasets.synthetic import pictograms, surfaces
from pandalib.datasets.task import OneClassTask


class Source(NamedTuple):
    """A function that loads the task of a class, and one that names the classes."""

    load: Callable[..., OneClassTask]
    classes: Callable[..., Sequence[str]]


SOURCES = {
    "pictograms": Source(pictograms.load_task, lambda name: list(pictograms.SYMBOLS)),
    "surfaces": Source(surfaces.load_task, lambda name: surfaces.KINDS),
    "elpv": Source(elpv.load_task, lambda name: elpv.CLASSES),
    "folder": Source(folder.load_task, layouts.class_specs),
}
for _name in public.SETS:
    SOURCES[_name] = Source(
        functools.partial(public.load_task, _name),
        lambda name, source=_name: public.names_of(source),
    )


def load_task(
    spec: str,
    *,
    seed: int = 0,
    n_train: int | None = None,
    n_test: int | None = None,
    size: int | None = None,
    resize: int | None = None,
    fit: str | None = None,
    missing_masks: str = "error",
    level: str | None = None,
    defects: Sequence[str] | None = None,
    doubtful: str | None = None,
    download: bool | None = None,
) -> OneClassTask:
    """Load a task by name. An option that is None keeps the source's default.

    Parameters
    ----------
    spec : str
        "pictograms:star" (any of the ten symbols), "surfaces:weave" (any of the six kinds),
        "elpv:mono" or "elpv:poly" (solar cells),
        "folder:PATH" (MVTec's layout), "folder:PATH:CLASS" (one folder per class), or a class of a
        public data set, as "cifar10:airplane". With + several classes are normal.
    seed : int
        For drawing the images, or for the split and the sample of files.
    n_train, n_test : int, optional
        Number of training images of each normal class, and of test images per class or defect.
    size : int, optional
        Side of the square image in pixels: 224 for files, 64 to 256 for surfaces (default 128).
        Pictograms are 64. Files that are not square become a rectangle of about this area.
    resize : int, optional
        Of the shorter side before the centre crop (the paper: 256 for 224).
    fit : {"stretch", "pad", "crop"}, optional
        How files become images of one height and width, see `pandalib.datasets.images.Geometry`:
        the whole image by default, its centre if `resize` is given.
    missing_masks : {"error", "drop", "none"}
        For folders in MVTec's layout, what to do if anomalous images lack a mask: raise an error,
        leave these images out, or use no masks at all.
    level : str, optional
        Difficulty of the pictograms, or how visible the defects of surfaces are.
    defects : sequence of str, optional
        Which defects of a surface to test on; None: all but the logical ones.
    doubtful : {"out", "anomalous"}, optional
        What becomes of solar cells about which experts were in doubt.
    download : bool, optional
        Download a public data set that is not here; None: only if PANDALIB_DOWNLOAD=1.

    Returns
    -------
    task : OneClassTask

    Raises
    ------
    ValueError
        The source or the class is unknown, or the source has no such option.

    Examples
    --------
    >>> load_task("pictograms:star", n_train=4, n_test=1).train.shape
    (4, 3, 64, 64)
    """
    options = dict(
        seed=seed,
        n_train=n_train,
        n_test=n_test,
        size=size,
        resize=resize,
        fit=fit,
        missing_masks=None if missing_masks == "error" else missing_masks,
        level=level,
        defects=defects,
        doubtful=doubtful,
        download=download,
    )
    options = {name: value for name, value in options.items() if value is not None}
    if classes := classes_of(spec):
        return _pool(spec, [load_task(part, **options) for part in classes])
    load = _source(spec).load
    for name in options.keys() - inspect.signature(load).parameters.keys():
        raise ValueError(f"{name}={options[name]!r} does not concern {spec}: leave it out.")
    return load(spec.partition(":")[2], **options)


def sibling_tasks(spec: str) -> list[str]:
    """The tasks of the same data set, each class normal in turn: results are averaged over these.

    Examples
    --------
    >>> sibling_tasks("surfaces:weave")[:2]
    ['surfaces:weave', 'surfaces:wood']
    """
    source, _, name = spec.partition(":")
    return [f"{source}:{sibling}" for sibling in _source(spec).classes(name)]


def _source(spec: str) -> Source:
    source = spec.partition(":")[0]
    if source not in SOURCES:
        raise ValueError(
            f"task {spec!r} is unknown: expected folder:PATH, folder:PATH:CLASS, or SOURCE:CLASS "
            f"with SOURCE one of {', '.join(name for name in SOURCES if name != 'folder')}."
        )
    return SOURCES[source]


def classes_of(spec: str) -> list[str]:
    """The tasks that make up a pooled task; [] for a single class."""
    head, _, names = spec.rpartition(":")
    if "+" not in names or head in ("", "folder"):  # folder:PATH names no class
        return []
    root = Path(head.removeprefix("folder:")).expanduser()
    if head.startswith("folder:") and any((root / part / names).is_dir() for part in ("", "train")):
        return []  # a class with a + in its name
    return [f"{head}:{name}" for name in names.split("+")]


def _pool(spec: str, tasks: list[OneClassTask]) -> OneClassTask:
    """The task whose normal class is several classes of one data set.

    Each class keeps its own split, so no image is both learned from and tested.
    """
    names = [task.name.rpartition(":")[2] for task in tasks]  # as the data set writes them
    if len(set(names)) < len(names):
        raise ValueError(f"task {spec!r}: expected different classes between the + signs.")
    if not all(set(names) <= set(task.kinds) for task in tasks):
        raise ValueError(
            f"task {spec!r} cannot be pooled: expected test images of the classes that can be "
            f"normal, but they are {', '.join(dict.fromkeys(tasks[0].kinds))}."
        )
    # The normal test images of each task, then the classes that are normal in none of them.
    rows = [[kind == name for kind in task.kinds] for task, name in zip(tasks, names, strict=True)]
    rows.append([kind not in names for kind in tasks[0].kinds])
    rows = [np.flatnonzero(chosen).tolist() for chosen in rows]
    if not rows[-1]:
        raise ValueError(f"task {spec!r}: all classes are normal, and none is left as anomalous.")
    tested = list(zip([*tasks, tasks[0]], rows, strict=True))
    kinds = tuple(task.kinds[row] for task, chosen in tested for row in chosen)
    files, known = None, {}
    if tasks[0].files is not None:
        files = tuple(task.files[row] for task, chosen in tested for row in chosen)
    if tasks[0].test_attributes is not None:
        known = dict(train_attributes={}, test_attributes={})
        for name in tasks[0].test_attributes:
            parts = [task.test_attributes[name][chosen] for task, chosen in tested]
            known["test_attributes"][name] = np.concatenate(parts)
            parts = [task.train_attributes[name] for task in tasks]
            known["train_attributes"][name] = np.concatenate(parts)
    return OneClassTask(
        name=f"{tasks[0].name.rpartition(':')[0]}:{'+'.join(names)}",
        train=join([task.train for task in tasks]),
        test=join([take(task.test, chosen) for task, chosen in tested]),
        labels=np.array([kind not in names for kind in kinds], np.int64),
        kinds=kinds,
        files=files,
        **known,
    )
