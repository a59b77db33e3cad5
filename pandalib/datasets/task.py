"""The one-class task: learn from normal images, then rank test images by how anomalous they are."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OneClassTask:
    """Training images, all of them normal, and labelled test images, by which nothing is chosen.

    Attributes
    ----------
    name : str
        For example "pictograms:star" or "folder:parts:good".
    train : sequence of images, uint8 (N, 3, H, W)
        Normal images only; an array, or a sequence whose slices are such arrays.
    test : sequence of images, uint8 (n_test, 3, H, W)
    labels : int64 array (n_test,)
        0 normal, 1 anomalous.
    kinds : tuple of str
        The class or the defect of each test image.
    masks : bool array (n_test, H, W), optional
        The anomalous pixels, where they are known.
    files : tuple of str, optional
        The path of each test image.
    note : str, optional
        How a folder was read, in one line.
    credit : str, optional
        Where the images come from, and their licence, to stand beside every picture of them.
    train_attributes, test_attributes : dict of str to float64 array, optional
        What else is known about each image, one value per image, by name. Pictograms have those of
        `pandalib.datasets.synthetic.drawing.ATTRIBUTES`.

    Examples
    --------
    >>> images = np.zeros((3, 3, 8, 8), np.uint8)
    >>> task = OneClassTask("made:up", images, images[:2], np.array([0, 1]), ("good", "hole"))
    >>> len(task.train), task.kinds
    (3, ('good', 'hole'))
    """

    name: str
    train: Sequence
    test: Sequence
    labels: np.ndarray
    kinds: tuple[str, ...]
    masks: np.ndarray | None = None
    files: tuple[str, ...] | None = None
    note: str | None = None
    credit: str | None = None
    train_attributes: dict[str, np.ndarray] | None = None
    test_attributes: dict[str, np.ndarray] | None = None


def sample(items: Sequence, limit: int | None, seed: int, stream: str) -> list:
    """At most `limit` items in their original order; a smaller sample is part of a larger one.

    Each `stream` is drawn on its own, so adding a class does not change the sample of another.
    """
    rng = np.random.default_rng([seed, zlib.crc32(os.fsencode(stream))])
    order = rng.permutation(len(items))
    return [items[number] for number in sorted(order[:limit])]


def split_80_20(items: Sequence, seed: int) -> tuple[list, list]:
    """A seeded 80 % of the items for training and the rest, at least one, for testing."""
    train = set(sample(items, len(items) - max(1, round(0.2 * len(items))), seed, "split"))
    return [item for item in items if item in train], [item for item in items if item not in train]


def choose(
    train: Sequence,
    tests: dict[str, Sequence],
    normal: str,
    *,
    seed: int,
    n_train: int | None,
    n_test: int | None,
    where: str,
) -> tuple[list, list, tuple[str, ...]]:
    """The training images of a task, its test images, the normal ones first, and the kind of each.

    Raises
    ------
    ValueError
        Fewer than 2 training images, or no normal or no anomalous test image.
    """
    for name, number, least in (("n_train", n_train, 2), ("n_test", n_test, 1)):
        if number is not None and number < least:
            raise ValueError(f"{name}={number}: expected at least {least}, or None for all.")
    order = [normal, *(kind for kind in tests if kind != normal and len(tests[kind]))]
    problem = ""
    if len(train) < 2:  # each is compared with the others
        problem = f"{len(train)} normal training image(s), expected at least 2"
    elif not len(tests.get(normal, ())):
        problem = "no normal test images"
    elif len(order) == 1:
        problem = "no anomalous test images"
    if problem:
        raise ValueError(f"{where}, with {normal!r} as the normal class, has {problem}.")
    chosen = {kind: sample(tests[kind], n_test, seed, f"test:{kind}") for kind in order}
    kinds = tuple(kind for kind in order for _ in chosen[kind])
    test = [item for kind in order for item in chosen[kind]]
    return sample(train, n_train, seed, "train"), test, kinds
