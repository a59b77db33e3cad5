"""Pictograms and glyphs: a function of (seed, index), disjoint, and as hard as its level says."""

import numpy as np
import pytest

from pandalib.datasets.synthetic import glyphs, pictograms
from pandalib.datasets.synthetic.drawing import (
    Style,
    TextureBank,
    coordinates,
    draw,
    enlargement,
    generator,
    glyph_mask,
    oklch,
    place,
)
from pandalib.datasets.synthetic.pictograms import LEVELS, OUTLIERS, SYMBOLS, Pictograms
from pandalib.datasets.load import load_task, sibling_tasks


def test_an_image_depends_on_seed_and_index_alone():
    images = Pictograms("star", 20, seed=3)
    whole = images[:]
    assert whole.shape == (20, 3, 64, 64) and whole.dtype == np.uint8
    assert np.array_equal(images[7], whole[7])
    assert np.array_equal(images[[12, 3]], whole[[12, 3]])
    assert np.array_equal(images[5:2:-1], whole[5:2:-1])
    assert np.array_equal(images[-1], whole[19])
    assert np.array_equal(Pictograms("star", 1000, seed=3)[7], whole[7])  # however many there are
    assert not np.array_equal(Pictograms("star", 20, seed=4)[7], whole[7])
    assert not np.array_equal(Pictograms("star", 20, seed=3, split="test")[7], whole[7])
    assert images[3:3].shape == (0, 3, 64, 64)
    with pytest.raises(IndexError, match="image 20 of 20"):
        images[20]


def test_no_two_images_are_the_same():
    images = np.concatenate(
        [
            Pictograms(symbol, 30, split=split)[:]
            for symbol in SYMBOLS
            for split in ("train", "test")
        ]
    )
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_glyphs_by_number_in_any_order():
    images, labels, surfaces = glyphs.draw_batch(range(30))
    again = glyphs.draw_batch([17, 4])
    assert np.array_equal(again[0], images[[17, 4]])
    assert np.array_equal(again[1], labels[[17, 4]]) and np.array_equal(again[2], surfaces[[17, 4]])
    assert 0 <= labels.min() and labels.max() < len(glyphs.classes())
    assert surfaces.max() < glyphs.N_TEXTURES


def test_upstream_downstream_and_outliers_are_disjoint():
    upstream, normal, outliers = set(glyphs.classes()), set(SYMBOLS.values()), set(OUTLIERS)
    assert len(glyphs.classes()) == len(upstream) and 450 <= len(upstream) <= 550
    assert not upstream & normal and not upstream & outliers and not normal & outliers
    assert not upstream & set(glyphs.RELATIVES)
    assert len(SYMBOLS) == 10 and len(outliers) == len(OUTLIERS) >= 20
    # Other textures, too.
    assert not np.array_equal(glyphs.textures().frequency[0], pictograms.textures().frequency[0])


def test_every_symbol_is_really_in_the_fonts():
    for character in [*SYMBOLS.values(), *OUTLIERS, *pictograms.LETTERS, *glyphs.classes()]:
        assert all(glyphs._drawn(character, name) for name in glyphs.FONT_FILES), (
            f"{character!r} is drawn as the missing-glyph box"
        )


def test_classes_do_not_look_alike():
    looks = np.stack(
        [glyphs._look(character) for character in [*glyphs.classes(), *SYMBOLS.values()]]
    )
    alike = looks @ looks.T - np.eye(len(looks))
    assert alike.max() <= glyphs.SAME + 1e-6


def test_levels_differ_in_what_their_names_say():
    assert pictograms.DEFAULT_LEVEL in LEVELS
    noise = [LEVELS[name].noise for name in ("plain", "easy", "medium", "hard")]
    clutter = [LEVELS[name].clutter for name in ("plain", "easy", "medium", "hard")]
    contrast = [LEVELS[name].contrast for name in ("plain", "easy", "medium", "hard")]
    assert (
        noise == sorted(noise)
        and clutter == sorted(clutter)
        and contrast == sorted(contrast, reverse=True)
    )
    assert [LEVELS[name].distractors for name in ("plain", "easy", "medium", "hard")] == [
        0,
        0,
        0,
        2,
    ]
    with pytest.raises(ValueError, match="'brutal' is unknown: choose one of plain, easy"):
        Pictograms("star", 3, level="brutal")
    with pytest.raises(ValueError, match="'stra' is unknown: choose one of star"):
        Pictograms("stra", 3)


def test_symbol_is_visible_and_blank_has_none():
    style = Style(clutter=0.0, noise=0.0)
    with_star, _ = draw(generator("t", 0, 1), pictograms.textures(), "★", style)
    without, _ = draw(generator("t", 0, 1), pictograms.textures(), " ", style)
    changed = (with_star != without).any(axis=0)
    assert 0.03 < changed.mean() < 0.4
    cluttered, _ = draw(
        generator("t", 0, 1), pictograms.textures(), " ", style._replace(clutter=1.0)
    )
    assert cluttered.mean(axis=0).std() > 3 * without.mean(axis=0).std()


def test_place_moves_turns_and_scales():
    mask = glyph_mask("■")
    centre = lambda image: (
        image.sum(0) @ np.arange(64) / image.sum(),
        image.sum(1) @ np.arange(64) / image.sum(),
    )  # noqa: E731
    small = place(mask, 64, height=0.4, angle=0, shift=(0, 0))
    assert np.allclose(centre(small), (31.5, 31.5), atol=0.5)
    moved = place(mask, 64, height=0.4, angle=0, shift=(0.25, -0.125))
    assert np.allclose(centre(moved), (31.5 + 16, 31.5 - 8), atol=0.5)
    large = place(mask, 64, height=0.8, angle=0, shift=(0, 0))
    assert large.sum() == pytest.approx(4 * small.sum(), rel=0.05)
    turned = place(glyph_mask("I"), 64, height=0.8, angle=np.pi / 2, shift=(0, 0))
    assert np.ptp(np.nonzero(turned.sum(0) > 1)[0]) > 3 * np.ptp(np.nonzero(turned.sum(1) > 1)[0])


def test_enlargement_keeps_constants_and_lines():
    matrix = enlargement(8, 16)
    assert np.allclose(matrix.sum(axis=1), 1)
    line = np.arange(8, dtype=float)
    assert np.allclose(np.diff((matrix @ line)[1:-1]), 0.5)
    assert coordinates(4).shape == (16, 2) and np.allclose(coordinates(4).mean(axis=0), 0)


def test_colours_have_the_lightness_asked_for():
    assert np.allclose(oklch(1.0, 0.0, 0.0), 1, atol=1e-3) and np.allclose(
        oklch(0.0, 0.0, 0.0), 0, atol=1e-3
    )
    grey = oklch(0.5999, 0.0, 0.0)  # linear light 0.6^3 = 0.216, sRGB 0.502
    assert np.allclose(grey, 0.502, atol=2e-3)


def test_texture_bank_is_fixed_by_its_seed():
    one, same, other = TextureBank(3, seed=5), TextureBank(3, seed=5), TextureBank(3, seed=6)
    draw_it = lambda bank: bank.draw(1, 16, zoom=1.0, angle=0.3, shift=(0.1, 0.2))  # noqa: E731
    assert np.array_equal(draw_it(one), draw_it(same)) and not np.array_equal(
        draw_it(one), draw_it(other)
    )
    assert draw_it(one).shape == (2, 16, 16) and 0 <= draw_it(one).min() and draw_it(one).max() <= 1


def test_task():
    task = load_task("pictograms:heart", seed=1, n_train=12, n_test=3)
    assert task.train.shape == (12, 3, 64, 64) and task.test.shape == (30, 3, 64, 64)
    assert (
        task.labels.sum() == 27
        and [k for k, label in zip(task.kinds, task.labels) if label == 0] == ["heart"] * 3
    )
    assert np.array_equal(task.train, Pictograms("heart", 12, seed=1)[:])
    # All ten tasks share their test images; only the labels differ.
    other = load_task("pictograms:star", seed=1, n_train=12, n_test=3)
    assert np.array_equal(other.test, task.test) and not np.array_equal(other.labels, task.labels)
    place = task.kinds.index("notes")
    assert np.array_equal(
        task.test[place : place + 3], Pictograms("notes", 3, split="test", seed=1)[:]
    )
    other.test[:] = 0  # drawn once for all ten, and yet each has its own
    assert load_task("pictograms:star", seed=1, n_train=12, n_test=3).test.any() and task.test.any()
    for changes in (dict(seed=2), dict(level="easy")):
        assert not np.array_equal(
            load_task("pictograms:star", **{**dict(seed=1, n_train=12, n_test=3), **changes}).test,
            task.test,
        )
    assert sibling_tasks("pictograms:heart") == [f"pictograms:{symbol}" for symbol in SYMBOLS]


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("pictograms:stra", {}, "pictograms:stra is unknown: choose one of star"),
        ("pictogram:star", {}, "task 'pictogram:star' is unknown: expected pictograms:SYMBOL"),
        ("pictograms:star", {"size": 128}, "size=128: pictograms are 64 x 64"),
        ("pictograms:star", {"n_train": 1}, "n_train=1, n_test=60: at least 2 training images"),
        ("folder:", {}, "task 'folder:' names no folder"),
        ("folder:.", {"level": "easy"}, "level='easy': only pictograms and surfaces have levels"),
        ("pictograms:star", {"level": "brutal"}, "level 'brutal' is unknown"),
    ],
)
def test_task_errors(spec, options, message):
    with pytest.raises(ValueError, match=message):
        load_task(spec, **options)
