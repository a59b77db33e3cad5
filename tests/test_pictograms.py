"""Pictograms and glyphs: a function of (seed, index), disjoint, and as hard as the level says."""

import numpy as np
import pytest
from pictures import one_sentence

from pandalib import load_task, sibling_tasks
from pandalib.datasets.synthetic import glyphs, pictograms
from pandalib.datasets.synthetic.drawing import (
    ATTRIBUTES,
    Style,
    draw,
    enlargement,
    generator,
    glyph_mask,
    place,
)
from pandalib.datasets.synthetic.pictograms import OUTLIERS, SYMBOLS, Pictograms
from pandalib.datasets.synthetic.shading import coordinates, oklch


def test_an_image_depends_on_seed_and_index_alone():
    drawn = Pictograms("star", 20, seed=3)
    whole = drawn[:]
    assert whole.shape == drawn.shape == (20, 3, 64, 64) and whole.dtype == np.uint8
    for index in (7, -1, [12, 3], slice(5, 2, -1), slice(3, 3)):
        assert (drawn[index] == whole[index]).all()
    assert (Pictograms("star", 1000, seed=3)[7] == whole[7]).all()  # however many there are
    assert not (Pictograms("star", 20, seed=4)[7] == whole[7]).all()
    assert not (Pictograms("star", 20, seed=3, split="test")[7] == whole[7]).all()
    with pytest.raises(IndexError):
        drawn[20]
    sets = [
        Pictograms(symbol, 30, split=split) for symbol in SYMBOLS for split in ("train", "test")
    ]
    every = np.concatenate([some[:] for some in sets])
    assert len(np.unique(every.reshape(len(every), -1), axis=0)) == len(every)


def test_glyphs_by_number_in_any_order():
    drawn, labels, textures = glyphs.draw_batch(range(30))
    again = glyphs.draw_batch([17, 4])
    for one, other in zip(again, (drawn, labels, textures), strict=True):
        assert (one == other[[17, 4]]).all()
    assert 0 <= labels.min() and labels.max() < len(glyphs.classes())
    assert textures.max() < glyphs.N_TEXTURES


def test_upstream_downstream_and_outliers_are_disjoint():
    upstream, normal, outliers = set(glyphs.classes()), set(SYMBOLS.values()), set(OUTLIERS)
    assert len(glyphs.classes()) == len(upstream) and 450 <= len(upstream) <= 550
    assert not upstream & normal and not upstream & outliers and not normal & outliers
    assert not upstream & set(glyphs.RELATIVES)
    assert len(SYMBOLS) == 10 and len(outliers) == len(OUTLIERS) >= 20
    assert not (glyphs.textures().frequency[0] == pictograms.textures().frequency[0]).all()
    for character in [*normal, *outliers, *pictograms.LETTERS, *upstream]:
        assert all(glyphs._drawn(character, name) for name in glyphs.FONT_FILES), character
    looks = np.stack([glyphs._look(character) for character in [*glyphs.classes(), *normal]])
    assert (looks @ looks.T - np.eye(len(looks))).max() <= glyphs.SAME + 1e-6


def test_symbol_is_visible_and_blank_has_none():
    style = Style(clutter=0.0, noise=0.0)
    with_star, without, cluttered = (
        draw(
            generator("t", 0, 1), pictograms.textures(), character, style._replace(clutter=clutter)
        )[0]
        for character, clutter in (("★", 0.0), (" ", 0.0), (" ", 1.0))
    )
    assert 0.03 < (with_star != without).any(axis=0).mean() < 0.4
    assert cluttered.mean(axis=0).std() > 3 * without.mean(axis=0).std()


def test_attributes_are_those_of_the_image():
    """Where the symbol is, how large, on what: measured again on the pixels."""
    images, known = Pictograms("heart", 40, level="plain").drawn()
    assert (images == Pictograms("heart", 40, level="plain")[:]).all()
    assert tuple(known) == ATTRIBUTES and all(len(values) == 40 for values in known.values())
    without, _ = Pictograms(" ", 40, level="plain", attributes=known).drawn()
    assert without.shape == images.shape
    marks = Style(clutter=0.0, noise=0.0, contrast=(0.3, 0.4))
    for number in range(12):
        pair = [
            draw(generator("t", 0, number), pictograms.textures(), character, marks)
            for character in ("■", " ")
        ]
        blank = {**pair[1].attributes}
        assert blank == pair[0].attributes  # images of two symbols differ only by the symbol
        ink = (pair[0].image.astype(int) - pair[1].image).sum(axis=0)
        rows, columns = np.nonzero(np.abs(ink) > 0.5 * np.abs(ink).max())
        assert np.sign(ink[rows, columns].mean()) == np.sign(blank["contrast"])
        assert columns.mean() == pytest.approx(31.5 + 64 * blank["x"], abs=1.5)
        assert rows.mean() == pytest.approx(31.5 + 64 * blank["y"], abs=1.5)
        lightness = pair[1].image.mean() / 255
        assert lightness == pytest.approx(blank["background"], abs=0.2)


def test_an_attribute_that_is_given_changes_nothing_else():
    plain, known = Pictograms("star", 6).drawn()
    same, _ = Pictograms("star", 6, attributes=known).drawn()
    assert (same == plain).all()
    sizes = np.linspace(0.3, 0.8, 6)
    changed, now = Pictograms("star", 6, attributes={"size": sizes}).drawn()
    assert np.allclose(now["size"], sizes) and not (changed == plain).all()
    assert all((now[name] == known[name]).all() for name in ATTRIBUTES if name != "size")
    corner = {"size": 0.2, "x": -0.4, "y": -0.4}
    far = [Pictograms("star", 6, attributes=corner | {"hue": hue})[:] for hue in (0.0, 3.0)]
    differs = (far[0] != far[1]).any(axis=(0, 1))
    assert differs.any() and not differs[:, 40:].any() and not differs[40:].any()
    grounds = {"background": 0.3}, {"background": 0.8}
    dark, light = (Pictograms("star", 6, attributes=ground)[:].mean() for ground in grounds)
    assert light > 1.5 * dark
    whole = Pictograms("star", 6, attributes={"size": sizes})
    assert (whole[4] == changed[4]).all() and (whole[2:4] == changed[2:4]).all()


def test_place_moves_turns_and_scales():
    def centre(image):
        along = np.arange(64)
        return image.sum(0) @ along / image.sum(), image.sum(1) @ along / image.sum()

    square = glyph_mask("■")
    small = place(square, 64, height=0.4, angle=0, shift=(0, 0))
    assert np.allclose(centre(small), (31.5, 31.5), atol=0.5)
    moved = place(square, 64, height=0.4, angle=0, shift=(0.25, -0.125))
    assert np.allclose(centre(moved), (31.5 + 16, 31.5 - 8), atol=0.5)
    large = place(square, 64, height=0.8, angle=0, shift=(0, 0))
    assert large.sum() == pytest.approx(4 * small.sum(), rel=0.05)
    turned = place(glyph_mask("I"), 64, height=0.8, angle=np.pi / 2, shift=(0, 0))
    assert np.ptp(np.nonzero(turned.sum(0) > 1)[0]) > 3 * np.ptp(np.nonzero(turned.sum(1) > 1)[0])


def test_enlargement_keeps_constants_and_lines():
    matrix = enlargement(8, 16)
    assert np.allclose(matrix.sum(axis=1), 1)
    assert np.allclose(np.diff((matrix @ np.arange(8.0))[1:-1]), 0.5)
    assert coordinates(4).shape == (16, 2) and np.allclose(coordinates(4).mean(axis=0), 0)


def test_colours_have_the_lightness_asked_for():
    # Linear light 0.6^3 = 0.216 is 0.502 in sRGB.
    for lightness, expected in ((1.0, 1), (0.0, 0), (0.5999, 0.502)):
        assert np.allclose(oklch(lightness, 0.0, 0.0), expected, atol=2e-3)


def test_task():
    options = dict(seed=1, n_train=12, n_test=3)
    task = load_task("pictograms:heart", **options)
    assert task.train.shape == (12, 3, 64, 64) and task.test.shape == (30, 3, 64, 64)
    assert task.labels.tolist() == [int(kind != "heart") for kind in task.kinds]
    assert (task.train == Pictograms("heart", 12, seed=1)[:]).all()
    other = load_task("pictograms:star", **options)  # all ten tasks share their test images
    assert (other.test == task.test).all() and not (other.labels == task.labels).all()
    notes = task.test[[kind == "notes" for kind in task.kinds]]
    assert (notes == Pictograms("notes", 3, split="test", seed=1)[:]).all()
    other.test[:] = 0  # drawn once for all ten, and yet each has its own
    assert load_task("pictograms:star", **options).test.any() and task.test.any()
    for changes in (dict(seed=2), dict(level="easy")):
        assert not (load_task("pictograms:star", **options | changes).test == task.test).all()
    assert sibling_tasks("pictograms:heart") == [f"pictograms:{symbol}" for symbol in SYMBOLS]
    assert load_task("pictograms:heart", size=64, n_train=2, n_test=1).train.shape[-1] == 64
    _, known = Pictograms("notes", 3, split="test", seed=1).drawn()
    own = np.array([kind == "notes" for kind in task.kinds])
    assert (task.test_attributes["size"][own] == known["size"]).all()
    assert set(task.train_attributes) == set(ATTRIBUTES)
    both = load_task("pictograms:heart+notes", **options)
    assert len(both.train_attributes["x"]) == 24 and len(both.test_attributes["x"]) == 30
    own = np.array([kind == "notes" for kind in both.kinds])
    assert (both.test_attributes["size"][own] == known["size"]).all()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: load_task("pictograms:star", n_train=1), "n_train=1"),
        (lambda: load_task("pictograms:star", level="brutal"), "choose one of plain, easy"),
        (lambda: Pictograms("stra", 3), "choose one of star"),
        (lambda: Pictograms("star", 3, attributes={"colour": 1}), "choose among x, y, size"),
        (lambda: Pictograms("star", 3, attributes={"x": [0, 1]}), "expected one finite number"),
        (lambda: Pictograms("star", 3, attributes={"x": np.nan}), "expected one finite number"),
    ],
)
def test_mistakes(make, words):
    with pytest.raises(ValueError) as error:
        make()
    one_sentence(error, words)
