"""What a run needs beside its images and network: the Fisher information of EWC, outliers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pandalib.backbones import Backbone
from pandalib.datasets.folder import labelled_images
from pandalib.datasets.images import join, take
from pandalib.datasets.load import load_task, sibling_tasks
from pandalib.datasets.outliers import KINDS, check_unseen, load_outliers, outlier_folder
from pandalib.datasets.public import SETS
from pandalib.datasets.synthetic import glyphs
from pandalib.datasets.task import OneClassTask
from pandalib.io import cache_folder
from pandalib.methods.ewc import Fisher, fisher_information, linear_probe
from pandalib.weights import EMBEDDED

FISHER_RECIPES = ("per-sample", "batch-mean", "uniform")
BIASED_BATCH = 32  # of the recipe "batch-mean": the official code's
N_OUTLIERS = 2000  # drawn for outlier exposure


def upstream_fisher(
    backbone: Backbone,
    n_samples: int = 600,
    *,
    batch_size: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Fisher:
    """The Fisher information of this project's network on the glyphs it was pretrained on.

    It is kept in the cache folder.

    Parameters
    ----------
    backbone : with the embedded weights.
    n_samples : number of glyphs, drawn anew.
    batch_size, seed, progress : as in `pandalib.fisher_information`.

    Raises
    ------
    ValueError
        For another network: its pretraining images are not at hand.
    """
    if backbone.name != EMBEDDED or backbone.classifier is None or backbone.n_classes is None:
        raise ValueError(
            f"{backbone.name} up to {backbone.truncate_after} was not pretrained on glyphs: "
            "give labelled images to fisher_information."
        )
    about = [backbone.weights_sha256[:12], backbone.adapt_from, n_samples, seed, batch_size]
    path = cache_folder() / f"fisher-{'-'.join(map(str, about))}.safetensors"
    try:
        return Fisher.load(path, backbone)
    except (FileNotFoundError, ValueError):  # not there, or damaged
        images = glyphs.draw_batch(range(n_samples), split="fisher", seed=seed)[0]
        fisher = fisher_information(
            backbone, images, batch_size=batch_size, seed=seed, progress=progress
        )
        fisher.save(path)
        return fisher


def fisher_of(
    backbone: Backbone,
    normal_images,
    file: str | Path | None = None,
    images: str | Path | None = None,
    *,
    size: int | None = None,
    recipe: str = "per-sample",
    seed: int = 0,
    progress: bool = True,
) -> Fisher:
    """The Fisher information for EWC, from the best source at hand.

    Parameters
    ----------
    backbone : the network.
    normal_images : uint8 (N, 3, H, W). Without file and folder a whole network predicts on these,
        and the embedded network takes the glyphs of its pretraining.
    file : as written by `Fisher.save`.
    images : a folder with one folder of images per class; a cut network is first given a linear
        classifier of these classes.
    size : side of these images in pixels; default: that of the normal images.
    recipe : "per-sample", the definition; "batch-mean", squares of the mean gradient of 32 images,
        which is up to 32 times too small; "uniform", the mean of F everywhere: plain L2.
    seed : of drawn labels and of the linear classifier.
    progress : show a bar.
    """
    if recipe not in FISHER_RECIPES:
        raise ValueError(
            f"fisher_recipe={recipe!r} is unknown: choose one of {', '.join(FISHER_RECIPES)}."
        )
    if file is not None and (images is not None or recipe == "batch-mean"):
        raise ValueError(
            f"fisher={str(file)!r} is a Fisher information: leave out images and recipe."
        )
    how = dict(batch_size=BIASED_BATCH if recipe == "batch-mean" else 1, progress=progress)
    if file is not None:
        fisher = Fisher.load(file, backbone)
    elif images is not None:
        pictures, labels = labelled_images(images, size=size or np.shape(normal_images[:1])[-1])
        probe = None
        if backbone.classifier is None:
            probe = linear_probe(backbone, pictures, labels, seed=seed)
        fisher = fisher_information(backbone, pictures, classifier=probe, seed=seed, **how)
    elif backbone.classifier is None:
        raise ValueError(
            f"{backbone.name} up to {backbone.truncate_after} has no classifier: EWC needs "
            "fisher_images=FOLDER (one folder of images per class) or fisher=FILE."
        )
    elif backbone.name == EMBEDDED and backbone.n_classes is not None:
        fisher = upstream_fisher(backbone, **how)
    else:
        fisher = fisher_information(backbone, normal_images, seed=seed, **how)
    if recipe == "uniform":
        mean = fisher.mean()
        same = {name: torch.full_like(value, mean) for name, value in fisher.values.items()}
        fisher = replace(fisher, values=same, recipe=f"mean of: {fisher.recipe}")
    return fisher


def outliers_of(
    task: OneClassTask,
    outlier_images: str | None = None,
    n: int | None = None,
    *,
    level: str | None = None,
    resize: int | None = None,
    seed: int = 0,
    recall: Callable | None = None,
) -> Sequence:
    """Outliers for a task, at the size of its images, none of them one of its test images.

    Parameters
    ----------
    task : the task.
    outlier_images : one of `pandalib.datasets.outliers.KINDS`, drawn for pictograms (None: "near");
        a public data set, as "cifar100", of which training images of all classes are taken in
        turn; or a folder.
    n : how many; None: 2000 drawn ones, or all.
    level, resize, seed : as in `pandalib.load_task`.
    recall : `Memory.recall`, to draw them once for several runs.

    Returns
    -------
    uint8 (n, 3, H, W), an array or a lazy sequence.
    """
    kind = outlier_images or "near"
    if kind in KINDS:
        if not task.name.startswith("pictograms:"):
            raise ValueError(
                f"{task.name} needs outlier_images: a folder of images that are not normal, or a "
                f"data set; {kind!r} outliers are drawn for pictograms only."
            )
        draw = load_outliers if recall is None else lambda *a, **b: recall(load_outliers, *a, **b)
        levels = {} if level is None else {"level": level}
        return draw(kind, N_OUTLIERS if n is None else n, seed=seed, **levels)
    size = np.shape(task.train[:1])[-1]
    if kind in SETS:
        images = _outlier_set(task, kind, n, size=size, resize=resize, seed=seed)
    elif Path(kind).expanduser().exists():
        images = outlier_folder(kind, n, size=size, resize=resize, seed=seed)
    else:
        raise ValueError(
            f"outlier_images={kind!r} is unknown: choose one of {', '.join(KINDS)}, a folder of "
            f"images, or a data set: {', '.join(SETS)}."
        )
    check_unseen(images, task)
    return images


def _outlier_set(
    task: OneClassTask, name: str, n: int | None, *, size: int, resize: int | None, seed: int
):
    """At most n training images of a data set, as many of each class as far as they last."""
    if SETS[name] == SETS.get(task.name.partition(":")[0]):
        raise ValueError(
            f"outlier_images={name!r} for {task.name}: they are of the same data set, and would "
            "show the anomalies that are to be found."
        )
    siblings = sibling_tasks(name)
    how = dict(seed=seed, n_test=1, size=size, resize=resize)
    how["n_train"] = None if n is None else max(2, math.ceil(n / len(siblings)))
    images = join([load_task(one, **how).train for one in siblings])
    if n is None or n >= len(images):
        return images
    return take(images, np.random.default_rng(seed).permutation(len(images))[:n])
