"""Tiles cover every pixel, and one map comes of theirs without a seam."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import one_sentence, ramp
from PIL import Image

from pandalib.datasets.images import Geometry
from pandalib.datasets.tiles import SEEN, Tiles, tile_boxes, tile_side

SQUARE = Geometry.square(16)


@settings(deadline=None, max_examples=100, derandomize=True, database=None)
@given(
    st.integers(1, 99), st.integers(1, 99), st.integers(1, 50), st.floats(0, 1, exclude_max=True)
)
def test_every_pixel_is_covered(height, width, tile, part):
    overlap = int(part * tile)
    boxes = tile_boxes(height, width, tile, overlap)
    seen = np.zeros((height, width), int)
    for top, left, bottom, right in boxes:
        assert (bottom - top, right - left) == (min(tile, height), min(tile, width))
        seen[top:bottom, left:right] += 1
    assert seen.all() and len(set(boxes)) == len(boxes)
    assert boxes[0][:2] == (0, 0) and boxes[-1][2:] == (height, width)  # flush with the border
    for start, end in ((0, 2), (1, 3)):
        edges = sorted({(box[start], box[end]) for box in boxes})
        assert all(before[1] - after[0] >= overlap for before, after in zip(edges, edges[1:]))
    step = tile - overlap
    least = [-(-max(0, length - tile) // step) + 1 for length in (height, width)]
    assert len(boxes) == np.prod(least)  # no more than are needed


@pytest.mark.parametrize("height, width", [(100, 100), (90, 310), (30, 200), (20, 25), (64, 64)])
@pytest.mark.parametrize("overlap", [0, 1, 16, 50])
def test_a_constant_stays_one(height, width, overlap):
    tiles = Tiles(np.zeros((height, width, 3), np.uint8), 64, overlap, SQUARE)
    found = tiles.stitch(np.full((8, 8), 3.7) for _ in tiles)  # one map at a time
    assert found.shape == (height, width) and found.dtype == np.float32
    np.testing.assert_allclose(found, 3.7, rtol=1e-6)
    with pytest.raises(ValueError):
        tiles.stitch([np.zeros((8, 8))] * (len(tiles) + 1))


def test_smooth_maps_have_no_seam():
    """A plane is linear, so restoring it exactly is possible everywhere off the tiles' borders."""
    y, x = np.mgrid[:200, :300]
    plane = (2.0 * x + y).astype(np.float32)
    tiles = Tiles(np.zeros((200, 300, 3), np.uint8), 64, 24, SQUARE)
    found = tiles.stitch(plane[a:c, b:d] for a, b, c, d in tiles.boxes)
    np.testing.assert_allclose(found, plane, rtol=1e-5, atol=1e-3)
    # Tiles that disagree by a constant are blended: no step is larger than the ramp's.
    levels = np.random.default_rng(0).uniform(size=len(tiles))
    found = tiles.stitch(np.full((4, 4), level) for level in levels)
    assert max(np.abs(np.diff(found, axis=axis)).max() for axis in (0, 1)) < 2 / 24


@pytest.mark.parametrize("row, column", [(0, 0), (1500, 2000), (2980, 3980), (207, 1234)])
def test_a_small_defect_in_a_large_image(row, column):
    """20 pixels in 4000 x 3000: lost in the whole image, in its place with tiles."""
    pixels = np.full((3000, 4000), 100, np.uint8)
    pixels[row : row + 20, column : column + 20] = 180
    whole = Geometry.for_images([pixels], 224).read(pixels)
    assert (whole > 120).mean() <= 4 / whole[0].size  # at most one or two pixels of it
    tile = tile_side(20, 224)
    tiles = Tiles(pixels, tile, tile // 4, Geometry.square(224))
    changed = [number for number, image in enumerate(tiles) if image.max() > 120]
    best = max(changed, key=lambda number: (tiles[number][0] > 150).sum())
    assert (tiles[best][0] > 150).sum() >= 0.8 * SEEN**2
    found = tiles.stitch(
        np.abs(tiles[number][0, ::4, ::4] - 100.0) if number in changed else np.zeros((56, 56))
        for number in range(len(tiles))
    )
    place = np.argwhere(found > 0.6 * found.max())
    assert np.abs(place.mean(0) - [row + 9.5, column + 9.5]).max() <= 4 and found.max() > 50


def test_tiles_are_parts_of_the_image():
    image = ramp(100, 70)
    tiles = Tiles(Image.fromarray(image), 32, 8, Geometry.square(32))
    for tile, (top, left, bottom, right) in zip(tiles, tiles.boxes, strict=True):
        assert (tile == image[top:bottom, left:right].transpose(2, 0, 1)).all()
    assert tiles[:2].shape == (2, 3, 32, 32)
    narrow = Tiles(image[:16], 32, 8, Geometry.square(32))[0]  # at the scale of the others
    assert (narrow[:, 8:24] == image[:16, :32].transpose(2, 0, 1)).all()


def test_wrong_sizes():
    for wrong in ((0, 0), (10, 10), (10, -1), (2.5, 0)):
        with pytest.raises(ValueError) as error:
            tile_boxes(50, 50, *wrong)
        one_sentence(error, "expected")
