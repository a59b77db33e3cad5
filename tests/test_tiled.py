"""Inspection in tiles and in a region: against definitions, and seen where nothing else sees."""

import numpy as np
import pytest
from PIL import Image
from small import small_backbone

from pandalib import Inspector, load_backbone
from pandalib.datasets.images import ImageError
from pandalib.datasets.tiles import tile_boxes
from pandalib.inspection.report import write_report
from pandalib.inspection.tiled import small_map

SIZE = (260, 340)


def picture(seed, spot=None, side=6):
    """A large picture of soft and fine noise, perhaps with a dark spot at (x, y)."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(60, 200, (20, 26)).astype(np.uint8))
    soft = np.asarray(soft.resize(SIZE[::-1], Image.Resampling.BICUBIC)).astype(int)
    pixels = soft[..., None] + rng.integers(-9, 10, (*SIZE, 3))
    pixels = pixels.clip(0, 255).astype(np.uint8)
    if spot is not None:
        pixels[spot[1] : spot[1] + side, spot[0] : spot[0] + side] = 0
    return pixels


def save_all(folder, pictures):
    folder.mkdir()
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def normal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiled") / "normal"
    return save_all(folder, [picture(seed) for seed in range(10)])


SETTINGS = dict(size=64, k=1, false_alarm_rate=0.1, progress=False)


@pytest.fixture(scope="module")
def tiled(normal):
    return Inspector(load_backbone(), tile=120, overlap=20, **SETTINGS).fit(normal)


def test_normal_images_are_ranked_each_among_the_others(normal, tiled):
    ranking = tiled.rank_normal(normal, top=3)
    assert ranking.names == [f"{number:02}.png" for number in range(10)]
    assert np.array_equal(ranking.scores, tiled.normal_scores_)
    for one in ranking.top:  # a small map keeps the peak
        assert one.map.max() == pytest.approx(ranking.parts["place"][one.number], rel=1e-6)


def test_a_small_defect_is_seen_in_tiles(normal, tiled):
    spot, clean = picture(50, (200, 90)), picture(51)
    whole = Inspector(load_backbone(), **SETTINGS).fit(normal)
    plainly = [one.score(spot)[0] / one.threshold() for one in (tiled, whole)]
    assert plainly[0] > 2 * plainly[1]
    ranking = tiled.rank([spot, clean], top=2)
    assert (ranking.scores > tiled.threshold()).tolist() == [True, False]
    region = ranking.regions[0][0]
    assert region.left <= 203 < region.right and region.top <= 93 < region.bottom
    assert np.abs(ranking.peaks[0] * SIZE - (93, 203)).max() < 12
    (seen,) = tiled.inspect(spot)
    assert seen.map.shape == SIZE and np.array_equal(tiled.restored(seen), seen.map)
    assert np.array_equal(tiled.score(Image.fromarray(spot)), tiled.score(spot))


def test_parts_are_the_largest_of_the_tiles(normal, tiled):
    boxes = tile_boxes(*SIZE, 120, 20)
    assert tiled.n_tiles(normal, normal=True) == 10 * len(boxes) == len(tiled.tile_features_)
    query = picture(60)
    (seen,) = tiled.inspect(query)
    tiles = [
        np.asarray(Image.fromarray(query[t:b, x:r]).resize((64, 64), Image.Resampling.BILINEAR))
        for t, x, b, r in boxes
    ]
    pooled = tiled.backbone.features(np.stack(tiles).transpose(0, 3, 1, 2))
    gallery = tiled.tile_features_
    apart = ((pooled[:, None].astype(float) - gallery[None]) ** 2).sum(axis=2)
    expected = apart.min(axis=1).max() / tiled.scales_["image"]
    assert seen.parts["image"] == pytest.approx(expected, rel=1e-4)
    assert seen.parts["place"] == pytest.approx(seen.map.max(), rel=1e-5)
    # A normal image is compared with the others: its own tiles would be at distance 0.
    number = int(tiled.sample_[3])
    own, near = tiled.tile_owners_ == number, tiled._left_out(3)
    others = gallery[~np.isin(tiled.tile_owners_, near)]
    apart = ((gallery[own][:, None].astype(float) - others[None]) ** 2).sum(axis=2)
    expected = apart.min(axis=1).max() / tiled.scales_["image"]
    assert tiled.normal_parts_["image"][3] == pytest.approx(expected, rel=1e-4)


def test_tiles_are_saved_and_cannot_learn_more(tiled, normal, tmp_path):
    tiled.save(tmp_path / "model")
    again = Inspector.load(tmp_path / "model")
    query = [picture(70, (30, 40))]
    assert np.array_equal(again.score(query), tiled.score(query))
    assert again.threshold() == tiled.threshold() and again.tile_ == 120
    with pytest.raises(ValueError, match="with tiles cannot learn more: fit it again"):
        again.add(normal)
    ranking = again.rank(query)
    assert max(ranking.top[0].map.shape) <= 448
    write_report(tmp_path / "report.html", again, ranking)
    assert "tiles of 120 pixels" in (tmp_path / "report.html").read_text()


def test_settings_of_tiles(normal, tmp_path):
    network = small_backbone()
    detector = Inspector(network, smallest_defect=8, size=64)
    detector.prepare()
    assert (detector.tile_, detector.overlap_) == (32, 8)
    wrong = [dict(tile=40, smallest_defect=8), dict(overlap=3), dict(tile=40, overlap=40)]
    wrong += [dict(tile=40, method="spade"), dict(tile=40, framing="crop"), dict(tile=0)]
    for settings in wrong:
        with pytest.raises(ValueError, match="tile|overlap"):
            Inspector(network, size=64, **settings).fit(normal)
    folder = save_all(tmp_path / "bad", [picture(seed) for seed in range(2)])
    (folder / "02.png").write_text("junk")
    with pytest.raises(ImageError, match="02.png"):
        Inspector(network, tile=200, **SETTINGS).fit(folder)
    heat = np.arange(12.0).reshape(3, 4)
    assert small_map(heat, 1, 2).tolist() == [[9, 11]]


# --- a region of interest ---


@pytest.mark.parametrize("tile", [None, 120])
def test_outside_the_region_nothing_is_seen(tile, normal, tmp_path):
    corners = [(0, 0), (0.5, 0), (0.5, 1), (0, 1)]  # the left half
    detector = Inspector(load_backbone(), region=corners, tile=tile, **SETTINGS).fit(normal)
    inside, outside = picture(80, (40, 100), 70), picture(80, (240, 100), 70)
    pictures = dict(inside=inside, outside=outside, clean=picture(80))
    scores = {name: detector.score(image) for name, image in pictures.items()}
    assert scores["outside"] == scores["clean"] and scores["inside"] > 1.5 * scores["clean"]
    (seen,) = detector.inspect(inside)
    restored = detector.restored(seen)
    assert restored.shape == SIZE and (restored[:, 176:] == 0).all() and restored[:, :170].any()
    detector.save(tmp_path / "model")
    again = Inspector.load(tmp_path / "model")
    assert np.array_equal(again.score(inside), detector.score(inside))
    assert np.array_equal(again.region_, detector.region_)
    with pytest.raises(ValueError, match="proportions of the region of interest, 340 x 260"):
        detector.score(inside[:, :200])
    half = np.ascontiguousarray(np.asarray(Image.fromarray(inside).resize((170, 130))))
    assert detector.score(half).shape == (1,)
