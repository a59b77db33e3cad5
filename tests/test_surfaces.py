"""Surfaces: a function of (seed, index), masks exact to the pixel, defects graded."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import one_sentence
from scipy import ndimage

from pandalib import load_task, sibling_tasks
from pandalib.datasets.synthetic import surfaces
from pandalib.datasets.synthetic.shading import clouds, spline
from pandalib.datasets.synthetic.surfaces import DEFECTS, KINDS, LEVELS, LOGICAL, Surfaces

GRADED = [(kind, name) for kind in KINDS for name in DEFECTS[kind]]
EVERY = [(kind, name) for kind in KINDS for name in DEFECTS[kind] + LOGICAL[kind]]


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("defect", [None, "hole"])
def test_an_image_depends_on_seed_and_index_alone(defect):
    drawn = Surfaces("weave", 9, defect=defect, seed=3)
    whole, masks = drawn.pairs()
    assert whole.shape == drawn.shape == (9, 3, 128, 128) and whole.dtype == np.uint8
    assert masks.shape == (9, 128, 128) and masks.dtype == bool
    for index in (7, -1, [6, 3], slice(5, 2, -1), slice(3, 3)):
        assert (drawn[index] == whole[index]).all() and (
            drawn.pairs(index)[1] == masks[index]
        ).all()
    more, other = (
        Surfaces("weave", n, defect=defect, seed=seed) for n, seed in ((1000, 3), (9, 4))
    )
    assert (more[7] == whole[7]).all() and not (other[7] == whole[7]).all()
    with pytest.raises(IndexError):
        drawn[9]


def digests():
    shown = [(kind, defect) for kind in KINDS for defect in (None, *DEFECTS[kind])]
    pairs = [Surfaces(kind, 5, defect=defect, size=64).pairs([4, 1]) for kind, defect in shown]
    return [hashlib.sha256(drawn.tobytes() + masks.tobytes()).hexdigest() for drawn, masks in pairs]


def test_another_process_draws_the_same():
    """Nor does the number of threads matter, nor the hash seed of strings."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_surfaces; "
    code += "print(*test_surfaces.digests())"
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    here = digests()
    assert other.stdout.split() == here and len(set(here)) == len(here)


@pytest.mark.parametrize("kind", KINDS)
def test_splits_share_nothing(kind):
    """Neither the surface nor the place of the defect nor the noise."""
    one, other = (np.float32(Surfaces(kind, 6, split=split)[:]) for split in ("train", "test"))
    fine = [drawn - ndimage.uniform_filter(drawn, (0, 0, 5, 5)) for drawn in (one, other)]
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*fine, strict=True)]
    assert np.max(np.abs(alike)) < 0.35
    options = dict(defect=DEFECTS[kind][0])
    places = [Surfaces(kind, 6, split=split, **options).pairs()[1] for split in ("train", "test")]
    assert not any((a == b).all() for a, b in zip(*places, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_normal_images_vary_but_are_of_one_kind(kind):
    drawn = np.float32(Surfaces(kind, 12, seed=5)[:])
    means = drawn.mean(axis=(2, 3))
    assert means.std(axis=0).max() > 0.8 and np.ptp(means, axis=0).max() < 40  # exposure, colour
    assert drawn.std(axis=0).mean() > 5  # position, phase, grain
    small, large = (np.float32(Surfaces(kind, 2, size=size)[:]) for size in (64, 256))
    shrunk = large.reshape(2, 3, 64, 4, 64, 4).mean(
        axis=(3, 5)
    )  # a scene is the same at every size
    smooth = [ndimage.gaussian_filter(drawn, (0, 0, 3, 3)) for drawn in (small, shrunk)]
    assert np.abs(smooth[0] - smooth[1]).mean() < 4


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("kind, defect", EVERY)
def test_masks_are_exactly_what_the_defect_changed(kind, defect, size):
    n = {64: 8, 128: 4, 256: 1}[size]
    normal = Surfaces(kind, n, split="masks", size=size)
    assert not normal.pairs()[1].any()
    for level in LEVELS:
        faulty = Surfaces(kind, n, defect=defect, split="masks", level=level, size=size)
        drawn, masks = faulty.pairs()
        changed = np.abs(drawn.astype(int) - normal[:]).max(axis=1)
        assert ((changed > 0) == masks).all()  # outside it is the normal image, inside never
        assert changed[masks].min() >= 2  # the threshold of three grey values, less rounding
        shares = masks.mean(axis=(1, 2))
        assert 0.001 <= shares.min() and shares.max() <= 0.25, (level, shares)
        for mask in masks:  # in one piece or a few, without speckle
            assert ndimage.label(mask, np.ones((3, 3)))[1] <= 9
            filled = ndimage.binary_fill_holes(mask) & ~mask
            assert filled.sum() <= 0.12 * mask.sum()


def test_noise_makes_no_difference_to_masks(monkeypatch):
    drawn, masks = Surfaces("leather", 4, defect="stain").pairs()
    monkeypatch.setattr(surfaces, "NOISE", 0.0)
    clean, clean_masks = Surfaces("leather", 4, defect="stain").pairs()
    assert (masks == clean_masks).all()
    assert np.std(drawn - clean.astype(float)) == pytest.approx(0.012 * 255, rel=0.05)


@pytest.mark.parametrize("kind, defect", GRADED)
def test_levels_grade_what_can_be_seen(kind, defect):
    normal, seen, areas = Surfaces(kind, 8, split="levels", size=96)[:].astype(int), [], []
    for level in ("clear", "medium", "faint"):
        faulty = Surfaces(kind, 8, defect=defect, split="levels", level=level, size=96)
        drawn, masks = faulty.pairs()
        change = np.abs(drawn - normal).mean(axis=1)
        seen.append(np.mean([one[mask].mean() for one, mask in zip(change, masks, strict=True)]))
        areas.append(masks.mean())
    assert seen[0] > 1.02 * seen[1] > 1.04 * seen[2] and areas[0] >= areas[1] >= areas[2]


def test_logical_defects_are_made_of_normal_parts():
    """The same at every level; a misprint has as many red and blue pixels as before, elsewhere."""
    for kind in KINDS:
        for name in LOGICAL[kind]:
            levels = [Surfaces(kind, 2, defect=name, level=level)[:] for level in LEVELS]
            assert all((drawn == levels[0]).all() for drawn in levels)
    normal = Surfaces("washer", 6, split="print")[:].astype(int)
    drawn, masks = Surfaces("washer", 6, defect="misprint", split="print").pairs()
    for before, after, mask in zip(normal, drawn.astype(int), masks, strict=True):
        old, new = (np.ptp(image, axis=0) > 60 for image in (before, after))
        assert 100 < old.sum() < 250 and abs(int(old.sum()) - int(new.sum())) < 0.1 * old.sum()
        assert ((old | new) <= mask).all() and not (old & new).any()
        assert (mask <= ndimage.binary_dilation(old | new, iterations=2)).all()  # nothing else
    drawn, masks = Surfaces("tiles", 4, defect="wrong_colour", split="tiles").pairs()
    for image, before, mask in zip(drawn, Surfaces("tiles", 4, split="tiles")[:], masks):
        colour = np.median(image[:, ndimage.binary_erosion(mask, iterations=3)], axis=1)
        distance = np.abs(before.reshape(3, -1) - colour[:, None]).max(axis=0)
        assert (distance < 15).mean() > 0.12  # a good part of the normal image looks like this


# ---------------------------------------------------------------- tasks


def test_task():
    task = load_task("surfaces:washer", seed=1, n_train=5, n_test=2, level="clear", size=64)
    assert task.name == "surfaces:washer" and task.train.shape == (5, 3, 64, 64)
    assert task.kinds == ("good",) * 20 + tuple(kind for kind in DEFECTS["washer"] for _ in (0, 1))
    assert task.labels.dtype == np.int64 and task.labels.tolist() == [0] * 20 + [1] * 10
    assert task.masks.any(axis=(1, 2)).tolist() == [False] * 20 + [True] * 10
    assert (task.train == Surfaces("washer", 5, seed=1, size=64)[:]).all()
    corners = np.where(task.masks[:, None], 0, task.test)[:, :, :8, :8].reshape(30, -1)
    assert len(np.unique(corners, axis=0)) == 30  # each test image has a surface of its own
    assert sibling_tasks("surfaces:washer") == [f"surfaces:{kind}" for kind in KINDS]


def test_task_defaults_and_a_choice_of_defects():
    whole = load_task("surfaces:metal", size=64)
    assert len(whole.train) == 50 and len(whole.test) == 20 + 10 * len(DEFECTS["metal"])
    rust = load_task("surfaces:metal", size=64, defects=["rust"])
    rows = [kind == "rust" for kind in whole.kinds]
    assert (rust.test[20:] == whole.test[rows]).all()  # whatever else is asked for
    assert load_task("surfaces:wood", n_train=2, n_test=1).train.shape[-1] == 128
    options = dict(n_train=2, n_good=3, n_test=1, size=64, defects=("misprint", "bent"))
    assert surfaces.load_task("washer", **options).kinds == ("good",) * 3 + ("misprint", "bent")
    for kind in KINDS:  # in their order as folders
        assert list(DEFECTS[kind]) == sorted(DEFECTS[kind])
        assert not {"good", *DEFECTS[kind]} & set(LOGICAL[kind])


@pytest.mark.parametrize(
    "spec, options, words",
    [
        ("surfaces:silk", {}, "surface 'silk' is unknown: choose one of weave"),
        ("surfaces:weave", {"size": 300}, "size=300: expected a whole number from 64 to 256"),
        ("surfaces:weave", {"size": 128.0}, "size=128.0"),
        ("surfaces:weave", {"level": "plain"}, "choose one of clear, medium, faint"),
        ("surfaces:weave", {"n_train": 1}, "n_train=1"),
        ("surfaces:weave", {"n_test": 0}, "n_test=0"),
        ("surfaces:weave", {"defects": ["misprint"]}, "defect of weave 'misprint' is unknown"),
        ("surfaces:weave", {"defects": []}, "defects=[]"),
        ("surfaces:weave", {"defects": "hole"}, "a list of defects"),
    ],
)
def test_mistakes(spec, options, words):
    with pytest.raises(ValueError) as error:
        load_task(spec, **options)
    one_sentence(error, words)


# ---------------------------------------------------------------- tools


def test_splines_and_clouds():
    number, weight = spline(8, 16)
    assert number.shape == weight.shape == (4, 16) and np.allclose(weight.sum(axis=0), 1)
    line = (weight * np.arange(8, dtype=np.float32)[number]).sum(axis=0)
    assert np.allclose(np.diff(line[4:-4]), 0.5)
    rng = np.random.default_rng(0)
    fields = np.stack([clouds(rng, 4, 16, 128) for _ in range(60)])
    assert fields.shape == (60, 128, 128) and fields.dtype == np.float32
    assert 0.8 < fields.std() < 1.3
    down, right = np.abs(np.diff(fields, axis=1)).mean(), np.abs(np.diff(fields, axis=2)).mean()
    assert 2.5 < right / down < 6  # four times as many columns as rows
