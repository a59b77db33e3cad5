"""Several normal classes at once: "pictograms:star+heart" learns from both, and what is neither is anomalous.

A harder experiment than one class at a time, and another one: its figures are not those of the single classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pandalib.datasets.images import LazyImages
from pandalib.datasets.load import OneClassTask


class Joined(LazyImages):
    """Sequences of images of one size, one after the other, without a copy."""

    def __init__(self, parts: Sequence):
        self.parts = list(parts)
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _read(self, number: int) -> np.ndarray:
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.parts[part][int(number - self._starts[part])]

    @property
    def size(self) -> int:
        return np.shape(self.parts[0][:1])[-1]

    @property
    def files(self) -> tuple:
        """A name for each image, to point at."""
        return tuple(
            name
            for part in self.parts
            for name in getattr(part, "files", [f"number {i}" for i in range(len(part))])
        )

    def fingerprint(self) -> str:
        from pandalib.cache import content_key

        return hashlib.sha256(
            " ".join(content_key(part) for part in self.parts).encode()
        ).hexdigest()

    def __repr__(self) -> str:
        return f"Joined({len(self)} images in {len(self.parts)} parts)"


def join(parts: Sequence) -> Sequence:
    """Arrays become one array, anything else a lazy sequence."""
    return (
        np.concatenate(parts)
        if all(isinstance(part, np.ndarray) for part in parts)
        else Joined(parts)
    )


def classes_of(spec: str) -> list[str]:
    """The tasks that a pooled one is made of: "pictograms:star+heart" -> ["pictograms:star", "pictograms:heart"]; [] for a single class."""
    head, colon, names = spec.rpartition(":")
    if "+" not in names or not colon or head == "folder":  # folder:PATH has no class
        return []
    root = Path(head.removeprefix("folder:")).expanduser()
    if head != str(root) and any(
        (root / part / names).is_dir() for part in ("", "train")
    ):  # a class with a + in its name
        return []
    return [f"{head}:{name}" for name in names.split("+")]


def pool(spec: str, load: Callable[[str], OneClassTask]) -> OneClassTask:
    """The task whose normal class is several classes of one data set.

    Training images are those of each class alone. A test image is normal when its class is one of them; images held out by
    each class's own split are tested, so that none is both learned from and tested.

    Raises ValueError for a class that is named twice, for fewer anomalous classes than one, and for a data set whose test
    images are not told apart by the classes that can be normal (MVTec: good against defects).
    """
    parts = classes_of(spec)
    names = [part.rpartition(":")[2] for part in parts]
    if len(set(names)) < len(names) or not all(names):
        raise ValueError(f"task {spec!r}: expected different classes between the + signs.")
    tasks = [load(part) for part in parts]
    names = [task.name.rpartition(":")[2] for task in tasks]  # as the data set writes them
    if any(set(names) - set(task.kinds) for task in tasks):
        raise ValueError(
            f"task {spec!r}: only data sets can be pooled whose test images are of the same classes that can be normal; here they are {', '.join(dict.fromkeys(tasks[0].kinds))}."
        )
    # Of each task its own normal images, and of the first the classes that are normal in none.
    rows = [
        np.flatnonzero(np.array([kind == name for kind in task.kinds]))
        for task, name in zip(tasks, names)
    ]
    others = np.flatnonzero(np.array([kind not in names for kind in tasks[0].kinds]))
    if not len(others):
        raise ValueError(
            f"task {spec!r}: all classes are normal, and none is left to be anomalous."
        )
    chosen = [*zip(tasks, rows), (tasks[0], others)]
    return OneClassTask(
        name=f"{parts[0].rpartition(':')[0]}:{'+'.join(names)}",
        train=join([task.train for task in tasks]),
        test=join(
            [
                task.test[numbers]
                if isinstance(task.test, np.ndarray)
                else Chosen(task.test, numbers)
                for task, numbers in chosen
            ]
        ),
        labels=np.repeat([0, 1], [sum(map(len, rows)), len(others)]).astype(np.int64),
        kinds=tuple(task.kinds[number] for task, numbers in chosen for number in numbers),
        masks=None,
        files=None
        if any(task.files is None for task in tasks)
        else tuple(task.files[number] for task, numbers in chosen for number in numbers),
    )


class Chosen(LazyImages):
    """Some images of a lazy sequence, by number."""

    def __init__(self, images, numbers: np.ndarray):
        self.images, self.numbers, self.size = images, numbers, np.shape(images[:1])[-1]

    def __len__(self) -> int:
        return len(self.numbers)

    def _read(self, number: int) -> np.ndarray:
        return self.images[int(self.numbers[number])]

    @property
    def files(self) -> tuple:
        return tuple(self.images.files[number] for number in self.numbers)

    def fingerprint(self) -> str:
        from pandalib.cache import content_key

        return hashlib.sha256(
            f"{content_key(self.images)} {self.numbers.tolist()}".encode()
        ).hexdigest()
