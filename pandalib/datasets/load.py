"""The one-class task: learn from normal images only, then rank test images by how anomalous they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OneClassTask:
    """Training images without labels, because all are normal, and a labelled test set that chooses nothing.

    Attributes
    ----------
    name : for example "pictograms:star" or "folder:parts:good".
    train : uint8 (N, 3, H, W), normal images only; an array, or a sequence whose slices are such arrays.
    test : uint8 (n_test, 3, H, W), likewise.
    labels : int64 (n_test,), 0 normal, 1 anomalous.
    kinds : the class or defect of each test image.
    masks : bool (n_test, H, W) where the anomalous pixels are known, else None.
    files : the path of each test image, for images from a folder.
    """

    name: str
    train: Sequence
    test: Sequence
    labels: np.ndarray
    kinds: tuple[str, ...]
    masks: np.ndarray | None = None
    files: tuple[str, ...] | None = None


def load_task(
    spec: str,
    *,
    seed: int = 0,
    n_train: int | None = None,
    n_test: int | None = None,
    size: int | None = None,
    resize: int | None = None,
    missing_masks: str = "error",
    level: str | None = None,
    defects: Sequence[str] | None = None,
) -> OneClassTask:
    """Load a task by name.

    Parameters
    ----------
    spec : "pictograms:star" (any of the ten symbols), "surfaces:weave" (any of the six kinds), "folder:PATH" (MVTec
        layout), "folder:PATH:CLASS" (one folder per class; CLASS is normal), or a class of a public data set, as
        "cifar10:airplane" (`pandalib.datasets.public`; `python -m pandalib data` lists them). "pictograms:star+heart" has
        two normal classes (`pandalib.datasets.pooling`), each with its `n_train` images.
    seed : draws the images (pictograms, surfaces) or the split and the sample (folder).
    n_train, n_test : number of training images, and of test images per class or defect; None: the source's default.
    size : side of the square image in pixels, for folders and public data sets (default 224) and surfaces (64 to 256, default 128).
        Pictograms are 64.
    resize : of the shorter side before the centre crop (default `size`: the whole central square; the paper: 256 for 224).
    missing_masks : for folders in MVTec layout, what to do about anomalous images without a mask: "error", "drop" or "none".
    level : difficulty of the pictograms, or how visible the defects of surfaces are.
    defects : which defects of a surface to test on; None: all but the logical ones.

    Raises
    ------
    ValueError naming what was given and what there is, when the source or the class is unknown.
    """
    from pandalib.datasets.pooling import classes_of, pool

    if classes_of(spec):
        options = dict(
            seed=seed,
            n_train=n_train,
            n_test=n_test,
            size=size,
            resize=resize,
            missing_masks=missing_masks,
            level=level,
            defects=defects,
        )
        return pool(spec, lambda part: load_task(part, **options))
    source, _, name = spec.partition(":")
    counts = {
        key: value for key, value in (("n_train", n_train), ("n_test", n_test)) if value is not None
    }
    if defects is not None and source != "surfaces":
        raise ValueError(
            f"defects={defects!r}: only surfaces have defects to choose. Leave them out."
        )
    if source == "pictograms":
        from pandalib.datasets.synthetic import pictograms

        if size not in (None, 64):
            raise ValueError(f"size={size}: pictograms are 64 x 64. Leave the size out.")
        return pictograms.load_task(
            name, seed=seed, **counts, **({"level": level} if level else {})
        )
    if source == "surfaces":
        from pandalib.datasets.synthetic import surfaces

        options = {
            key: value for key, value in (("level", level), ("size", size)) if value is not None
        }
        return surfaces.load_task(name, seed=seed, defects=defects, **counts, **options)
    if source == "folder":
        from pandalib.datasets import folder as folders

        if level:
            raise ValueError(
                f"level={level!r}: only pictograms and surfaces have levels. Leave it out."
            )
        if not name:
            raise ValueError(
                f"task {spec!r} names no folder: expected folder:PATH or folder:PATH:CLASS."
            )
        return folders.load_task(
            name, seed=seed, size=size or 224, resize=resize, missing_masks=missing_masks, **counts
        )
    from pandalib.datasets import public

    if source in public.SETS:
        if level:
            raise ValueError(
                f"level={level!r}: only pictograms and surfaces have levels. Leave it out."
            )
        return public.load_task(
            spec, seed=seed, size=size or 224, resize=resize, missing_masks=missing_masks, **counts
        )
    raise _unknown(spec, public.SETS)


def sibling_tasks(spec: str) -> list[str]:
    """The tasks of the same data set, each class normal in turn: results are averaged over these.

    Pooling several classes as one normal set is another, harder experiment.
    """
    source, _, name = spec.partition(":")
    if source == "pictograms":
        from pandalib.datasets.synthetic.pictograms import SYMBOLS

        return [f"pictograms:{symbol}" for symbol in SYMBOLS]
    if source == "surfaces":
        from pandalib.datasets.synthetic.surfaces import KINDS

        return [f"surfaces:{kind}" for kind in KINDS]
    if source == "folder":
        from pandalib.datasets import folder as folders

        return [f"folder:{task}" for task in folders.class_specs(name)]
    from pandalib.datasets import public

    if source in public.SETS:
        return [f"{source}:{name}" for name in public.names_of(source)]
    raise _unknown(spec, public.SETS)


def _unknown(spec: str, sets) -> ValueError:
    return ValueError(
        f"task {spec!r} is unknown: expected pictograms:SYMBOL, surfaces:KIND, folder:PATH, folder:PATH:CLASS, or SET:CLASS with SET one of {', '.join(sets)}."
    )
