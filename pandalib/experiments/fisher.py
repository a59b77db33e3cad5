"""Where the Fisher information of EWC comes from."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pandalib.backbones import Backbone
from pandalib.datasets.folder import labelled_images
from pandalib.datasets.synthetic import glyphs
from pandalib.datasets.task import sample
from pandalib.io import cache_folder
from pandalib.methods.ewc import Fisher, fisher_information, linear_probe
from pandalib.weights import EMBEDDED

FISHER_RECIPES = ("per-sample", "batch-mean", "uniform")
N_GLYPHS, N_IMAGES = 600, 200  # enough for the ranking of parameters to be stable
BIASED_BATCH = 32  # images per gradient in the official code


def upstream_fisher(
    backbone: Backbone,
    n_samples: int = N_GLYPHS,
    *,
    batch_size: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Fisher:
    """The Fisher information of this project's network on the glyphs it was pretrained on.

    It is kept in the cache folder.

    Parameters
    ----------
    backbone : Backbone
        With the embedded weights.
    n_samples : int
        Number of glyphs.
    batch_size, seed, progress
        As for `pandalib.fisher_information`.

    Returns
    -------
    fisher : Fisher

    Raises
    ------
    ValueError
        For another network, whose pretraining images are not available.
    """
    if backbone.name != EMBEDDED or backbone.classifier is None or backbone.n_classes is None:
        raise ValueError(
            f"{backbone.name} up to {backbone.truncate_after} was not pretrained on glyphs: "
            "give labelled images to fisher_information."
        )
    about = [backbone.weights_sha256[:12], backbone.adapt_from, n_samples, seed, batch_size]

    def compute() -> Fisher:
        images = glyphs.draw_batch(range(n_samples), split="fisher", seed=seed)[0]
        return fisher_information(
            backbone, images, batch_size=batch_size, seed=seed, progress=progress
        )

    return _kept("-".join(map(str, about)), backbone, compute)


def _kept(name: str, backbone: Backbone, compute) -> Fisher:
    """The Fisher information of this name from the cache folder; else computed, and kept there."""
    path = cache_folder() / f"fisher-{name}.safetensors"
    try:
        return Fisher.load(path, backbone)
    except (FileNotFoundError, ValueError):  # missing, or damaged
        fisher = compute()
        fisher.save(path)
        return fisher


def fisher_of(
    backbone: Backbone,
    normal_images,
    file: str | Path | None = None,
    images: str | Path | None = None,
    *,
    n_samples: int | None = None,
    recipe: str = "per-sample",
    seed: int = 0,
    progress: bool = True,
) -> Fisher:
    """The Fisher information for EWC, from the best source available, kept in the cache folder.

    Parameters
    ----------
    backbone : Backbone
    normal_images : uint8 (N, 3, H, W)
        Without file and folder, a whole network predicts on these, and the embedded network on
        the glyphs of its pretraining. No label is needed: the definition draws them from the
        network's own predictions.
    file : path, optional
        As written by `Fisher.save`.
    images : path, optional
        A folder with one folder of images per class; a cut network is first given a linear
        classifier of these classes.
    n_samples : int, optional
        Glyphs (default 600), or at most this many of the normal images (default 200), drawn with
        `seed`.
    recipe : {"per-sample", "batch-mean", "uniform"}
        The definition; squares of the mean gradient of 32 images, up to 32 times too small; the
        mean of F for every parameter, which is plain L2.
    seed : int
        Of drawn labels and drawn images.
    progress : bool

    Returns
    -------
    fisher : Fisher

    Raises
    ------
    ValueError
        For sources that exclude each other, and if there is none.
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
        pictures, labels = labelled_images(images, size=np.shape(normal_images[:1])[-1])
        probe = None
        if backbone.classifier is None:
            probe = linear_probe(backbone, pictures, labels)
        fisher = fisher_information(backbone, pictures, classifier=probe, seed=seed, **how)
    elif backbone.classifier is None:
        raise ValueError(
            f"{backbone.name} up to {backbone.truncate_after} has no classifier: EWC needs "
            "fisher_images=FOLDER (one folder of images per class) or fisher=FILE."
        )
    elif backbone.name == EMBEDDED and backbone.n_classes is not None:
        fisher = upstream_fisher(backbone, n_samples or N_GLYPHS, **how)
    else:
        rows = np.arange(len(normal_images))
        rows = sample(rows, n_samples or N_IMAGES, seed, "fisher")
        frozen = backbone.frozen_features(normal_images[rows])
        about = [backbone.trainable_sha256()[:12], backbone.adapt_from, seed, how["batch_size"]]
        digest = hashlib.sha256(frozen.numpy().tobytes()).hexdigest()[:12]
        fisher = _kept(
            "-".join(map(str, [*about, digest])),
            backbone,
            lambda: fisher_information(backbone, frozen, seed=seed, **how),
        )
    if recipe == "uniform":
        mean = fisher.mean()
        same = {name: torch.full_like(value, mean) for name, value in fisher.values.items()}
        fisher = replace(fisher, values=same, recipe=f"mean of: {fisher.recipe}")
    return fisher
