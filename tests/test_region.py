"""A region of interest by mask or polygon, the same for every size of image."""

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from pictures import one_sentence, save

from pandalib.datasets.images import Geometry
from pandalib.datasets.region import read_region


def test_polygons_hold_the_pixels_whose_centres_they_hold():
    corners = np.random.default_rng(0).uniform(1, [59, 49], (5, 2))
    y, x = np.mgrid[:50, :60] + 0.5
    wanted = Polygon(corners).contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(50, 60)
    found = read_region(corners, 50, 60)
    convex = np.array([[5.1, 5.3], [50.2, 12.7], [30.4, 44.9]])
    assert 0 < found.sum() and found.shape == (50, 60)
    by_winding = Polygon(convex).contains_points(np.stack([x.ravel(), y.ravel()], 1))
    assert (read_region(convex, 50, 60) == by_winding.reshape(50, 60)).all()
    assert not (found & ~wanted).any()  # a side that crosses another: the even-odd rule


def test_text_fractions_and_masks(tmp_path):
    square = np.zeros((40, 80), bool)
    square[10:30, 20:60] = True
    for region in (
        "20,10 60,10 60,30 20,30",
        [(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)],
        save(tmp_path / "mask.png", np.uint8(255) * square),
        str(save(tmp_path / "half.png", np.uint8(1) * square[::2, ::2])),
    ):
        assert (read_region(region, 40, 80) == square).all()
    large = read_region("0.25,0.25 0.75,0.25 0.75,0.75 0.25,0.75", 80, 160)
    assert (large[::2, ::2] == square).all()
    shown = Geometry(20, 20).fit_mask(read_region("20,10 60,10 60,30 20,30", 40, 80))
    assert shown[5:15, 5:15].all() and shown.sum() == 100


def test_regions_that_cannot_be(tmp_path):
    mask = save(tmp_path / "mask.png", np.zeros((40, 80), np.uint8))
    for region, words in (
        (mask, ["holds no pixel"]),
        (save(tmp_path / "tall.png", np.ones((80, 40), np.uint8)), ["80 x 40 pixels"]),
        ("10,10 20,20", ["at least three"]),
        ([(1, 2, 3)] * 4, ["at least three"]),
        ("-1,0 4,0 4,4", ["at least 0"]),
        ("0,0 82,0 82,40 0,40", ["outside of an image of 80 x 40"]),
        ("gone.png", ["gone.png"]),
        ("90,90 99,90 99,99", ["outside of an image"]),
    ):
        with pytest.raises(ValueError) as error:
            read_region(region, 40, 80)
        one_sentence(error, *words)
