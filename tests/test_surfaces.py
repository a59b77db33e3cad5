"""Surfaces: a function of (seed, index), masks exact to the pixel, defects graded, and the way out to PNG files and back."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pandalib.__main__ import main
from pandalib.experiments.run import run
from pandalib.datasets.synthetic import surfaces
from pandalib.datasets.folder import write_mvtec
from pandalib.datasets.synthetic.shading import clouds, spline
from pandalib.datasets.synthetic.surfaces import DEFECTS, KINDS, LEVELS, LOGICAL, Surfaces
from pandalib.datasets.load import OneClassTask, load_task, sibling_tasks

EVERY = [(kind, name) for kind in KINDS for name in DEFECTS[kind] + LOGICAL[kind]]
GRADED = [(kind, name) for kind in KINDS for name in DEFECTS[kind]]


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("defect", [None, "hole"])
def test_an_image_depends_on_seed_and_index_alone(defect):
    images = Surfaces("weave", 9, defect=defect, seed=3)
    whole, masks = images.pairs()
    assert (
        whole.shape == (9, 3, 128, 128)
        and whole.dtype == np.uint8
        and masks.shape == (9, 128, 128)
        and masks.dtype == bool
    )
    assert np.array_equal(images[7], whole[7]) and np.array_equal(images.masks(7), masks[7])
    assert np.array_equal(images[[6, 3]], whole[[6, 3]]) and np.array_equal(
        images.masks([6, 3]), masks[[6, 3]]
    )
    assert np.array_equal(images[5:2:-1], whole[5:2:-1])
    assert np.array_equal(images[-1], whole[8])
    assert np.array_equal(
        Surfaces("weave", 1000, defect=defect, seed=3)[7], whole[7]
    )  # however many there are
    assert not np.array_equal(Surfaces("weave", 9, defect=defect, seed=4)[7], whole[7])
    assert images[3:3].shape == (0, 3, 128, 128) and images.masks([]).shape == (0, 128, 128)
    with pytest.raises(IndexError, match="image 9 of 9"):
        images[9]


def digests():
    shown = [(kind, defect) for kind in KINDS for defect in (None, *DEFECTS[kind])]
    pairs = [Surfaces(kind, 5, defect=defect).pairs([4, 1]) for kind, defect in shown]
    return [
        hashlib.sha256(images.tobytes() + masks.tobytes()).hexdigest() for images, masks in pairs
    ]


def test_another_process_draws_the_same():
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_surfaces; print(*test_surfaces.digests())"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }  # nor does the number of threads matter
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    here = digests()
    assert other.stdout.split() == here and len(set(here)) == len(here)


def test_no_two_images_are_the_same():
    for kind in KINDS:
        images = np.concatenate(
            [
                Surfaces(kind, 6, split=split, seed=seed)[:]
                for split in ("train", "test", f"test {DEFECTS[kind][0]}")
                for seed in (0, 1)
            ]
        )
        assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_splits_share_nothing():
    """Neither the surface nor the place of the defect nor the noise: images of two splits are as unlike as of two indices."""
    for kind in KINDS:
        one, other = (np.float32(Surfaces(kind, 6, split=split)[:]) for split in ("train", "test"))
        fine = [images - ndimage.uniform_filter(images, (0, 0, 5, 5)) for images in (one, other)]
        alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*fine, strict=True)]
        assert np.max(np.abs(alike)) < 0.35, (kind, alike)
        spots = [
            Surfaces(kind, 6, defect=DEFECTS[kind][0], split=split).masks()
            for split in ("train", "test")
        ]
        assert not any(np.array_equal(a, b) for a, b in zip(*spots, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_normal_images_vary_but_are_of_one_kind(kind):
    images = np.float32(Surfaces(kind, 12, seed=5)[:])
    assert images.mean(axis=(2, 3)).std(axis=0).max() > 0.8  # exposure and colour, in grey values
    assert np.ptp(images.mean(axis=(2, 3)), axis=0).max() < 40
    assert images.std(axis=0).mean() > 5  # position, phase, grain


def test_a_scene_is_the_same_at_every_size():
    for kind in KINDS:
        small, large = (np.float32(Surfaces(kind, 2, size=size)[:]) for size in (64, 256))
        shrunk = large.reshape(2, 3, 64, 4, 64, 4).mean(axis=(3, 5))
        smooth = [ndimage.gaussian_filter(images, (0, 0, 3, 3)) for images in (small, shrunk)]
        assert np.abs(smooth[0] - smooth[1]).mean() < 4, kind


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("kind, defect", EVERY)
def test_masks_are_exactly_what_the_defect_changed(kind, defect, size):
    n = {64: 12, 128: 6, 256: 2}[size]
    normal = Surfaces(kind, n, split="masks", size=size)
    assert not normal.masks().any()
    for level in LEVELS:
        images, masks = Surfaces(
            kind, n, defect=defect, split="masks", level=level, size=size
        ).pairs()
        assert images.shape == (n, 3, size, size) and images.dtype == np.uint8
        changed = np.abs(images.astype(int) - normal[:]).max(axis=1)
        assert np.array_equal(
            changed > 0, masks
        )  # outside bit for bit the normal image, inside never
        assert changed[masks].min() >= 2  # the threshold of three grey values, less rounding
        shares = masks.mean(axis=(1, 2))
        assert 0.001 <= shares.min() and shares.max() <= 0.25, (level, shares)
        # In one piece or a few, without speckle.
        for mask in masks:
            regions, count = ndimage.label(mask, np.ones((3, 3)))
            assert count <= 9
            filled = ndimage.binary_fill_holes(mask) & ~mask
            assert filled.sum() <= 0.12 * mask.sum(), filled.sum() / mask.sum()


def test_noise_is_there_and_makes_no_difference_to_masks(monkeypatch):
    images, masks = Surfaces("leather", 4, defect="stain").pairs()
    monkeypatch.setattr(surfaces, "NOISE", 0.0)
    clean, clean_masks = Surfaces("leather", 4, defect="stain").pairs()
    assert np.array_equal(masks, clean_masks)
    assert np.std(images - clean.astype(float)) == pytest.approx(0.012 * 255, rel=0.05)


def test_threshold_is_what_it_says(monkeypatch):
    """A larger threshold leaves the smaller changes out, of mask and image alike."""
    before = Surfaces("metal", 3, defect="dent").masks()
    monkeypatch.setattr(surfaces, "THRESHOLD", 20 / 255)
    images, masks = Surfaces("metal", 3, defect="dent").pairs()
    changed = np.abs(images.astype(int) - Surfaces("metal", 3)[:]).max(axis=1)
    assert np.array_equal(changed > 0, masks) and changed[masks].min() >= 19
    assert (masks <= before).all() and masks.sum() < 0.9 * before.sum()


@pytest.mark.parametrize("kind, defect", GRADED)
def test_levels_grade_what_can_be_seen(kind, defect):
    normal, seen, areas = Surfaces(kind, 8, split="levels", size=96)[:].astype(int), [], []
    for level in ("clear", "medium", "faint"):
        images, masks = Surfaces(
            kind, 8, defect=defect, split="levels", level=level, size=96
        ).pairs()
        change = np.abs(images - normal).mean(axis=1)
        seen.append(np.mean([one[mask].mean() for one, mask in zip(change, masks, strict=True)]))
        areas.append(masks.mean())
    assert seen[0] > 1.02 * seen[1] > 1.04 * seen[2]
    assert areas[0] >= areas[1] >= areas[2]


def test_logical_defects_do_not_depend_on_the_level():
    for kind in KINDS:
        for name in LOGICAL[kind]:
            clear, faint = (
                Surfaces(kind, 2, defect=name, level=level)[:] for level in ("clear", "faint")
            )
            assert np.array_equal(clear, faint)


def test_a_misprint_is_made_of_normal_parts():
    """As many red and blue pixels as before, elsewhere; and both places are in the mask."""
    normal = Surfaces("washer", 6, split="print")[:].astype(int)
    images, masks = Surfaces("washer", 6, defect="misprint", split="print").pairs()
    for before, after, mask in zip(normal, images.astype(int), masks, strict=True):
        dots = [np.ptp(image, axis=0) > 60 for image in (before, after)]
        assert (
            100 < dots[0].sum() < 250
            and abs(int(dots[0].sum()) - int(dots[1].sum())) < 0.1 * dots[0].sum()
        )
        assert (dots[0] <= mask).all() and (dots[1] <= mask).all() and not (dots[0] & dots[1]).any()
        assert (
            mask <= ndimage.binary_dilation(dots[0] | dots[1], iterations=2)
        ).all()  # and nothing else


def test_a_tile_of_the_wrong_colour_has_a_colour_of_its_neighbours():
    images, masks = Surfaces("tiles", 4, defect="wrong_colour", split="tiles").pairs()
    normal = Surfaces("tiles", 4, split="tiles")[:]
    for image, before, mask in zip(images, normal, masks, strict=True):
        inside = ndimage.binary_erosion(mask, iterations=3)
        colour = np.median(image[:, inside], axis=1)
        distance = np.abs(before.reshape(3, -1) - colour[:, None]).max(axis=0)
        assert (distance < 15).mean() > 0.12  # a good part of the normal image looks like this


# ---------------------------------------------------------------- names


def test_names():
    assert KINDS == ("weave", "wood", "tiles", "leather", "metal", "washer")
    for kind in KINDS:
        assert len(DEFECTS[kind]) >= 4 and list(DEFECTS[kind]) == sorted(DEFECTS[kind])
        assert (
            not set(DEFECTS[kind]) & set(LOGICAL[kind])
            and "good" not in DEFECTS[kind] + LOGICAL[kind]
        )
    assert {kind for kind in KINDS if LOGICAL[kind]} == {"tiles", "washer"}
    assert list(LEVELS) == ["clear", "medium", "faint"] and surfaces.DEFAULT_LEVEL in LEVELS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(kind="weav"),
            "surfaces:weav is unknown: choose one of weave, wood, tiles, leather, metal, washer",
        ),
        (
            dict(defect="rust"),
            "defect 'rust' of weave is unknown: choose one of broken_thread, cut, fibre, hole, stain, or None",
        ),
        (dict(level="easy"), "level 'easy' is unknown: choose one of clear, medium, faint"),
        (dict(size=63), "size=63: surfaces are drawn 64 to 256 pixels wide"),
        (dict(size=257), "size=257"),
        (dict(size=128.0), "size=128.0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        Surfaces(**{"kind": "weave", "n": 2} | arguments)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- tasks


def test_task():
    task = load_task("surfaces:washer", seed=1, n_train=5, n_test=2, level="clear", size=64)
    assert (
        task.name == "surfaces:washer"
        and task.train.shape == (5, 3, 64, 64)
        and task.test.shape == (30, 3, 64, 64)
    )
    assert task.kinds == ("good",) * 20 + tuple(
        name for name in DEFECTS["washer"] for _ in range(2)
    )
    assert task.labels.dtype == np.int64 and task.labels.tolist() == [0] * 20 + [1] * 10
    assert task.masks.dtype == bool and task.masks.shape == (30, 64, 64)
    assert task.masks.any(axis=(1, 2)).tolist() == [False] * 20 + [True] * 10
    assert np.array_equal(task.train, Surfaces("washer", 5, seed=1, size=64)[:])
    # Every test image has a surface of its own.
    assert (
        len(
            np.unique(
                np.where(task.masks[:, None], 0, task.test)[:, :, :8, :8].reshape(30, -1), axis=0
            )
        )
        == 30
    )
    assert sibling_tasks("surfaces:washer") == [f"surfaces:{kind}" for kind in KINDS]


def test_task_defaults_and_a_choice_of_defects():
    whole = load_task("surfaces:metal", size=64)
    assert len(whole.train) == 50 and len(whole.test) == 20 + 10 * len(DEFECTS["metal"])
    rust = load_task("surfaces:metal", size=64, defects=["rust"])
    assert set(rust.kinds) == {"good", "rust"}
    assert np.array_equal(
        rust.test[20:], whole.test[[kind == "rust" for kind in whole.kinds]]
    )  # whatever else is asked for
    assert load_task("surfaces:wood", n_train=2, n_test=1).train.shape[-1] == 128
    misprints = load_task(
        "surfaces:washer", size=64, n_train=2, n_test=3, defects=("misprint", "bent")
    )
    assert (
        misprints.kinds[20:] == ("misprint",) * 3 + ("bent",) * 3
        and misprints.masks[20:].any(axis=(1, 2)).all()
    )
    few = surfaces.load_task("wood", n_train=2, n_good=3, n_test=1, size=64)
    assert few.kinds.count("good") == 3


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("surfaces:", {}, "surfaces: is unknown: choose one of weave"),
        ("surfaces:silk", {}, "surfaces:silk is unknown: choose one of weave"),
        (
            "surface:weave",
            {},
            "task 'surface:weave' is unknown: expected pictograms:SYMBOL, surfaces:KIND",
        ),
        ("surfaces:weave", {"size": 300}, "size=300: surfaces are drawn 64 to 256 pixels wide"),
        (
            "surfaces:weave",
            {"level": "plain"},
            "level 'plain' is unknown: choose one of clear, medium, faint",
        ),
        (
            "surfaces:weave",
            {"n_train": 1},
            "n_train=1, n_good=20, n_test=10: at least 2 training images",
        ),
        ("surfaces:weave", {"n_test": 0}, "n_test=0"),
        ("surfaces:weave", {"defects": ["misprint"]}, "defect 'misprint' of weave is unknown"),
        (
            "surfaces:weave",
            {"defects": []},
            "defects=.*expected a list of names, out of broken_thread",
        ),
        ("surfaces:weave", {"defects": "hole"}, "defects='hole': expected a list of names"),
        ("pictograms:star", {"defects": ["hole"]}, "only surfaces have defects to choose"),
    ],
)
def test_task_errors(spec, options, message):
    with pytest.raises(ValueError, match=message):
        load_task(spec, **options)


def test_a_run_takes_their_own_size(monkeypatch):
    from pandalib.experiments import run as runs

    seen = []
    monkeypatch.setattr(
        runs,
        "load_task",
        lambda *arguments, **options: seen.append(load_task(*arguments, **options)) or seen[-1],
    )
    for options, size in (({}, 128), ({"size": 64}, 64), ({"tier": "standard"}, 128)):
        record = run("surfaces:metal", "pixels", n_train=3, n_test=1, **options)
        assert (
            seen[-1].test.shape[-1] == size
            and record["task"] == "surfaces:metal"
            and record["n_train"] == 3
        )


# ---------------------------------------------------------------- to files and back


def listing(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_export_round_trip(tmp_path):
    task = load_task("surfaces:tiles", seed=2, n_train=3, n_test=2)
    assert write_mvtec(task, tmp_path / "deep" / "tiles") == tmp_path / "deep" / "tiles"
    again = load_task(f"folder:{tmp_path / 'deep' / 'tiles'}", size=128)
    assert np.array_equal(again.train[:], task.train) and np.array_equal(again.test[:], task.test)
    assert (
        np.array_equal(again.masks, task.masks)
        and np.array_equal(again.labels, task.labels)
        and again.kinds == task.kinds
    )
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [
        "tiles"
    ]  # nothing half-written beside it
    names = listing(tmp_path / "deep" / "tiles")
    assert {
        "train/good/00.png",
        "test/good/19.png",
        "test/chip/01.png",
        "ground_truth/chip/01_mask.png",
    } <= set(names)
    assert not any(name.startswith("ground_truth/good") for name in names)
    assert (tmp_path / "deep" / "tiles").stat().st_mode & 0o777 == 0o755


def test_export_of_a_task_without_masks_whose_normal_kind_has_another_name(tmp_path):
    task = load_task("pictograms:phone", n_train=3, n_test=2)
    write_mvtec(task, tmp_path)  # an empty folder will do
    again = load_task(f"folder:{tmp_path}", size=64)
    assert (
        again.masks is None
        and not (tmp_path / "ground_truth").exists()
        and np.array_equal(again.train[:], task.train)
    )
    for kind in set(task.kinds):
        rows = [other == ("good" if kind == "phone" else kind) for other in again.kinds]
        assert np.array_equal(
            again.test[np.flatnonzero(rows)], task.test[[other == kind for other in task.kinds]]
        )
    write_mvtec(again, tmp_path / "copy")  # lazy images, too
    assert listing(tmp_path / "copy") == {
        name: data for name, data in listing(tmp_path).items() if not name.startswith("copy")
    }


def test_more_images_than_one_digit_counts_stay_in_order(tmp_path):
    task = load_task("surfaces:metal", n_train=12, n_test=2, size=64, defects=["rust"])
    write_mvtec(task, tmp_path / "m")
    assert np.array_equal(load_task(f"folder:{tmp_path / 'm'}", size=64).train[:], task.train)


def test_export_leaves_what_is_there(tmp_path):
    task = load_task("surfaces:metal", n_train=2, n_test=1, size=64)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("dear")
    (tmp_path / "file").write_text("too")
    with pytest.raises(
        FileExistsError, match="full' is not empty: expected a new or an empty folder"
    ):
        write_mvtec(task, tmp_path / "full")
    with pytest.raises(FileExistsError, match="file' is a file: expected a new or an empty folder"):
        write_mvtec(task, tmp_path / "file")
    assert listing(tmp_path) == {"full/mine.txt": b"dear", "file": b"too"}


def test_a_failed_export_leaves_nothing(tmp_path):
    task = load_task("surfaces:metal", n_train=2, n_test=1, size=64)

    class Broken:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            if index == 3:
                raise OSError("the disk is full")
            return task.train[0]

    (tmp_path / "out").mkdir()
    for target in ("out", "new"):
        with pytest.raises(OSError, match="the disk is full"):
            write_mvtec(replace(task, train=Broken()), tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not any(
        (tmp_path / "out").iterdir()
    )


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("ok", "a/b"), "kind 'a/b' of anomalous images cannot be the name of its folder"),
        (("ok", "good"), "kind 'good' of anomalous images cannot be"),
        (("ok", ".hidden"), "kind '.hidden' of anomalous"),
        (("ok", "ok"), "kind 'ok' is normal and anomalous"),
    ],
)
def test_kinds_that_cannot_be_folders(kinds, message, tmp_path):
    images = np.zeros((2, 3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=message):
        write_mvtec(
            OneClassTask("made:up", images, images, np.array([0, 1]), kinds), tmp_path / "x"
        )
    assert not any(tmp_path.iterdir())


def test_export_on_the_command_line(tmp_path, capsys):
    out = tmp_path / "washer"
    arguments = [
        "export",
        "--task",
        "surfaces:washer",
        "--out",
        str(out),
        "--seed",
        "4",
        "--level",
        "faint",
        "--size",
        "80",
        "--n-train",
        "3",
        "--n-test",
        "1",
    ]
    assert main(arguments) == 0
    assert (
        capsys.readouterr().out == f"surfaces:washer  3 images to learn from, 25 to test  {out}\n"
    )
    expected = load_task("surfaces:washer", seed=4, level="faint", size=80, n_train=3, n_test=1)
    again = load_task(f"folder:{out}", size=80)
    assert np.array_equal(again.test[:], expected.test) and np.array_equal(
        again.masks, expected.masks
    )
    before = listing(out)
    for wrong, message in (
        ([], "is not empty: expected a new or an empty folder"),
        (["--out", str(tmp_path / "b"), "--task", "surfaces:silk"], "surfaces:silk is unknown"),
        (["--out", str(tmp_path / "b"), "--level", "plain"], "level 'plain' is unknown"),
        (["--out", "/proc/none/x"], "/proc/none"),
    ):
        assert main([*arguments, *wrong]) == 2
        captured = capsys.readouterr()
        assert (
            message in captured.err
            and captured.err.startswith("pandalib: ")
            and captured.err.count("\n") == 1
            and not captured.out
        )
    assert listing(out) == before and [path.name for path in tmp_path.iterdir()] == ["washer"]


# ---------------------------------------------------------------- tools


def test_splines_keep_constants_and_lines():
    number, weight = spline(8, 16)
    assert number.shape == weight.shape == (4, 16) and np.allclose(weight.sum(axis=0), 1)
    line = (weight * np.arange(8, dtype=np.float32)[number]).sum(axis=0)
    assert np.allclose(np.diff(line[4:-4]), 0.5)


def test_clouds_are_smooth_of_unit_variance_and_stretched_as_asked():
    rng = np.random.default_rng(0)
    fields = np.stack([clouds(rng, 4, 16, 128) for _ in range(60)])
    assert fields.shape == (60, 128, 128) and fields.dtype == np.float32
    assert 0.8 < fields.std() < 1.3
    down, right = np.abs(np.diff(fields, axis=1)).mean(), np.abs(np.diff(fields, axis=2)).mean()
    assert 2.5 < right / down < 6  # four times as many columns as rows
