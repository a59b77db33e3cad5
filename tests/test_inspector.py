"""The inspector against its definition; one walk through the images; failures change nothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from small import images, small_backbone

from pandalib import KNN, SPADE, Inspector, PatchCore, load_backbone
from pandalib.datasets.images import Geometry, ImageError, ImageFolder
from pandalib.inspection import adapted, inspector
from pandalib.inspection.duplicates import near_duplicates, others_of_group
from pandalib.inspection.inspector import _sample, _scale, counted
from pandalib.methods.distances import image_scores

SIDE = 32
NORMAL, QUERIES = images(30, SIDE), images(6, SIDE, seed=1)
NORMAL[7] = NORMAL[3] // 2 * 2  # its near-duplicate
SETTINGS = dict(n_maps=22, n_images=4, false_alarm_rate=0.1, progress=False)


@pytest.fixture(scope="module", params=["bank", "spade"])
def method(request):
    return request.param


@pytest.fixture(scope="module")
def fitted(backbone, method):
    return Inspector(backbone, method=method, **SETTINGS).fit(NORMAL)


def new(backbone, **changes):
    return Inspector(backbone, size=SIDE, **SETTINGS | changes)


def write(folder, pictures) -> Path:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"{number:03}.png")
    return folder


def same(one, other, rtol=1e-4):
    """Fitted alike, to the rounding of the network in other batches."""
    np.testing.assert_allclose(one.features_, other.features_, rtol=rtol, atol=1e-5)
    assert np.array_equal(one.sample_, other.sample_)
    np.testing.assert_allclose(one.normal_scores_, other.normal_scores_, rtol=20 * rtol)
    np.testing.assert_allclose(one.score(QUERIES), other.score(QUERIES), rtol=20 * rtol)


# --- what a score is ---


def test_parts_are_those_of_the_definition(backbone, fitted):
    gallery = backbone.features(NORMAL).astype(float)
    queries = backbone.features(QUERIES).astype(float)
    rows = fitted.sample_.tolist()
    twins = {3: [7], 7: [3]}
    copies = [twins.get(row, []) for row in rows]
    among = cdist(gallery, gallery, "sqeuclidean")
    for row, near in zip(rows, copies):
        among[row, [row, *near]] = np.inf
    among = np.sort(among, axis=1)[:, :2].sum(axis=1)[rows]
    whole = np.sort(cdist(queries, gallery, "sqeuclidean"), axis=1)[:, :2].sum(axis=1)
    if fitted.method == "spade":
        detector = SPADE(backbone, n_images=4, balanced=True).fit(NORMAL[rows])
        ours = [[rows.index(number) for number in near if number in rows] for near in copies]
        maps = detector.iter_leave_one_out_maps(copies=ours, progress=False)
        places = np.concatenate([image_scores(part) for part in maps])
    else:
        detector = PatchCore(
            backbone, bank_size=5000, coreset_ratio=1.0, n_parts=10, progress=False
        ).fit(NORMAL)
        patches = detector._patches(NORMAL)
        places = np.concatenate(
            [
                detector.maps_and_scores(patches[row : row + 1], [row, *near])[1]
                for row, near in zip(rows, copies)
            ]
        )
    assert len(rows) == 22 and fitted.features_.shape == gallery.shape
    assert fitted.near_duplicates() == [["image 3", "image 7"]] and any(copies)
    for part, normal, found in (
        ("image", among, whole),
        ("place", places, detector.score(QUERIES)),
    ):
        scale = np.quantile(normal, 0.9)
        np.testing.assert_allclose(fitted.normal_parts_[part], normal / scale, rtol=2e-3)
        np.testing.assert_allclose(fitted.parts(QUERIES)[part], found / scale, rtol=2e-3)
    assert np.array_equal(fitted.score(QUERIES), np.maximum(*fitted.parts(QUERIES).values()))
    maps, expected = fitted.maps(QUERIES), detector.maps(QUERIES) / np.quantile(places, 0.9)
    np.testing.assert_allclose(maps, expected, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(image_scores(maps), fitted.parts(QUERIES)["place"], rtol=1e-5)


@pytest.mark.parametrize("whiten", [False, True])
def test_whole_images_may_be_normalised_and_whitened(backbone, whiten, tmp_path):
    normal = images(30, SIDE)  # no near-duplicates
    detector = Inspector(backbone, normalise=True, whiten=whiten, **SETTINGS).fit(normal)
    gallery = backbone.features(normal)
    rows = detector.sample_.tolist()
    raw = []
    for row in rows:  # each image against a detector of the others
        scorer = KNN(2, normalise=True, whiten=whiten)
        others = np.delete(gallery, row, axis=0)
        raw.append(scorer.fit(others).score(gallery[row : row + 1])[0])
    found = detector.normal_parts_["image"] * detector.scales_["image"]
    # Whitening keeps the shrinkage of all images, so there it is nearly the same.
    np.testing.assert_allclose(found, raw, rtol=0.25 if whiten else 1e-3)
    assert np.corrcoef(found, raw)[0, 1] > 0.99
    scorer = KNN(2, normalise=True, whiten=whiten).fit(gallery)
    expected = scorer.score(backbone.features(QUERIES)) / detector.scales_["image"]
    np.testing.assert_allclose(detector.parts(QUERIES)["image"], expected, rtol=1e-4)
    detector.save(tmp_path / "model")
    again = Inspector.load(tmp_path / "model", backbone=backbone)
    assert np.array_equal(again.score(QUERIES), detector.score(QUERIES))


def test_threshold_is_a_rank_among_the_normal_images(fitted):
    ordered = np.sort(fitted.normal_scores_)
    assert fitted.threshold() == ordered[-2]  # of 23 ranks a tenth, in whole ones, is 2
    assert fitted.threshold(0.2) == ordered[-4] and fitted.threshold(0.5) == ordered[-11]
    assert np.array_equal(fitted.alarms(QUERIES), fitted.score(QUERIES) > ordered[-2])
    assert fitted.alarms(QUERIES, rate=0.5).sum() >= fitted.alarms(QUERIES).sum()


@pytest.mark.parametrize("bank_size", [5000, 100])  # of 960 patches all, or few
def test_new_normal_images_alarm_as_often_as_asked_for(backbone, bank_size):
    rates = []
    settings = dict(false_alarm_rate=0.2, bank_size=bank_size, progress=False)
    for seed in range(4):
        detector = Inspector(backbone, **settings)
        detector.fit(images(60, SIDE, seed=100 + seed))
        rates.append(detector.alarms(images(80, SIDE, seed=200 + seed)).mean())
    assert 0.08 < np.mean(rates) < 0.3, rates


def test_where_normal_images_are_all_alike_there_is_no_scale():
    assert _scale(np.zeros(20)) == 1
    assert _scale(np.eye(1, 20)[0]) == 0.05
    assert _scale(np.arange(11.0)) == 9


# --- the whole image ---


def stripes(hole=None, wide=(120, 40), seed=0):
    """A photograph of a fabric, perhaps with a black hole at (x, y)."""
    rng, (width, height) = np.random.default_rng(seed), wide
    waves = 128 + 40 * np.sin(np.arange(width) * 0.8) * np.ones((height, 1))
    pixels = (waves + rng.normal(0, 6, (height, width))).clip(0, 255).astype(np.uint8)
    if hole is not None:
        x, y = hole
        pixels[y - 4 : y + 4, x - 4 : x + 4] = 0
    return np.repeat(pixels[..., None], 3, axis=2)


def save_all(folder, pictures) -> Path:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return folder


def test_a_fault_outside_the_central_square_is_seen(tmp_path):
    normal = save_all(tmp_path / "normal", [stripes(seed=n) for n in range(20)])
    holes = [(20, 20), (60, 20), (108, 8)]
    new = [stripes(hole, seed=99) for hole in holes] + [stripes(seed=98)]
    detector = Inspector(load_backbone(), size=64, progress=False).fit(normal)
    assert detector.geometry_ == Geometry(32, 128)
    ranking = detector.rank(save_all(tmp_path / "new", new))
    assert (ranking.scores > detector.threshold()).tolist() == [True, True, True, False]
    for (x, y), peak, regions in zip(holes, ranking.peaks, ranking.regions):
        assert np.abs(peak * (40, 120) - (y, x)).max() < 9  # in the original's pixels
        left, top, right, bottom, area, value, peak_x, peak_y = regions[0]
        assert left <= x < right <= 120 and top <= y < bottom <= 40
        assert abs(peak_x - x) < 9 and abs(peak_y - y) < 9 and area < 40 * 120
        assert value > detector.threshold()
    assert ranking.regions[3] == []
    cropped = Inspector(load_backbone(), size=64, framing="crop", progress=False).fit(normal)
    found = cropped.rank(tmp_path / "new")
    at_the_side, clean = found.parts["place"][[0, 3]]
    assert at_the_side < 2 * clean  # not seen, and the map says so:
    (seen,) = cropped.inspect(new[0])
    restored = cropped.restored(seen)
    assert restored.shape == (40, 120) and np.isnan(restored[:, :38]).all()
    assert not np.isnan(restored[:, 41:79]).any()


def test_upright_and_other_proportions_are_read_as_the_folder_is(tmp_path):
    normal = save_all(tmp_path / "normal", [stripes(seed=n) for n in range(20)])
    detector = Inspector(load_backbone(), size=64, framing="pad", progress=False).fit(normal)
    tall = stripes((10, 100), wide=(40, 120))
    (seen,) = detector.inspect(tall)
    assert seen.size == (120, 40) and seen.image.shape == (3, 32, 128)
    assert detector.restored(seen).shape == (120, 40)


def test_a_frame_in_memory_is_scored_as_its_file(fitted, tmp_path, backbone):
    detector = new(backbone, method=fitted.method).fit(
        save_all(tmp_path / "normal", [stripes(seed=n) for n in range(12)])
    )
    picture = stripes((30, 10))
    Image.fromarray(picture).save(tmp_path / "new.png")
    expected = detector.score(tmp_path / "new.png")
    for frame in (picture, Image.fromarray(picture), [picture], [Image.fromarray(picture)]):
        assert np.array_equal(detector.score(frame), expected)
    grey = picture[..., 0]
    assert np.array_equal(detector.score(grey), expected)


def test_a_model_keeps_the_range_of_16_bits(backbone, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        grey = rng.integers(800, 1000, (32, 32)).astype(np.uint16)
        Image.fromarray(grey).save(tmp_path / f"{number}.png")
    detector = new(backbone).fit(tmp_path)
    assert detector.geometry_.white == 1023
    detector.save(tmp_path / "model")
    assert Inspector.load(tmp_path / "model", backbone=backbone).geometry_ == detector.geometry_


# --- near-duplicates ---


def test_near_duplicates_do_not_lower_the_threshold(method):
    """20 scenes of 3 nearly equal frames: of 30 new scenes about 1 in 20 alarms, not all."""
    network, rng = load_backbone(), np.random.default_rng(0)

    def frames(scene, n):
        noise = rng.integers(-4, 5, (n, 3, 48, 48))
        return (scene.astype(int) + noise).clip(0, 255).astype(np.uint8)

    alarms = 0
    for seed in (3, 4, 5):
        scenes = images(50, 48, seed=seed)
        normal = np.concatenate([frames(scene, 3) for scene in scenes[:20]])
        others = np.concatenate([frames(scene, 1) for scene in scenes[20:]])
        detector = Inspector(network, method=method, progress=False).fit(normal)
        assert detector.groups_.tolist() == (np.arange(60) // 3).tolist()
        alarms += detector.alarms(others).sum()
    assert alarms <= 11, alarms  # of 90, where all would if frames of their scene were left in


def test_near_duplicates_are_told_from_images_that_are_alike():
    """In many dimensions all images of one kind are about equally far from each other."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 300)) + 50 * (np.arange(100) % 5)[:, None]  # five kinds of parts
    assert len(set(near_duplicates(rows)[0])) == 100
    rows[7], rows[31] = rows[2] + 1e-3, rows[7]
    groups, _ = near_duplicates(rows)
    assert np.flatnonzero(groups == groups[2]).tolist() == [2, 7, 31] and groups.max() == 97
    assert [one.tolist() for one in others_of_group(groups, [7, 8])] == [[2, 31], []]
    assert near_duplicates(rows[:2])[0].tolist() == [0, 1]


def test_images_that_are_all_alike_set_no_threshold():
    noise = np.random.default_rng(0).integers(0, 9, (40, 3, 48, 48), dtype=np.uint8)
    few = images(4, 48)[np.arange(40) % 4] // 2 + noise
    with pytest.raises(ValueError, match="40 normal images are 4 different ones and their near-"):
        Inspector(load_backbone(), progress=False).fit(few)


# --- which images are kept ---


def test_the_sample_is_uniform_and_who_leaves_it_never_returns():
    for n in (1, 5, 6, 17, 40):
        small, large = _sample(n, 5, seed=3), _sample(n + 9, 5, seed=3)
        assert len(small) == min(n, 5) and np.all(np.diff(small) > 0)
        assert set(large[large < n]) <= set(small)
    drawn = np.concatenate([_sample(20, 5, seed) for seed in range(2000)])
    assert np.abs(np.bincount(drawn, minlength=20) - 500).max() < 5 * np.sqrt(500 * 0.75)
    # In every version of numpy: saved detectors count on it.
    assert _sample(12, 4, seed=0).tolist() == [0, 3, 8, 9]


@pytest.mark.parametrize("first", [12, 24, 29])
def test_fit_then_add_is_fit_of_all(backbone, first):
    fitted = Inspector(backbone, method="spade", **SETTINGS).fit(NORMAL)
    both = Inspector(backbone, method="spade", **SETTINGS).fit(NORMAL[:first])
    before = set(both.sample_)
    same(both.add(NORMAL[first:]), fitted)
    if first == 24:  # some left, some came
        assert before - set(both.sample_) and set(both.sample_) - before


def test_copies_are_left_out(backbone, fitted):
    doubled = Inspector(backbone, method=fitted.method, **SETTINGS).fit(
        np.concatenate([NORMAL, NORMAL[3:9]])
    )
    same(doubled, fitted)
    assert doubled.n_copies_ == 6
    same(doubled.add(NORMAL[:10]), fitted)
    assert doubled.n_copies_ == 16


def test_a_failed_fit_or_add_changes_nothing(backbone, tmp_path, monkeypatch):
    detector = new(backbone).fit(NORMAL)
    before = dict(vars(detector))
    bad = write(tmp_path / "bad", NORMAL[:12])
    (bad / "011.png").write_bytes(b"junk")
    for call in (detector.add, detector.fit):
        with pytest.raises(ImageError, match="011.png"):
            call(bad)
        with pytest.raises(ValueError, match="expected uint8"):
            call(NORMAL.astype(np.float32))
    with pytest.raises(ValueError, match=r"\(48, 48\).*expected \(32, 32\)"):
        detector.add(images(3, 48))
    with pytest.raises(ValueError, match="5 normal images, 0 copies .* needs at least 9"):
        detector.fit(NORMAL[:5])

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Inspector, "_leave_one_out", stopped)
    for call in (detector.add, detector.fit):
        with pytest.raises(KeyboardInterrupt):
            call(QUERIES if call == detector.add else NORMAL)
    assert vars(detector) == before


# --- few images, rates that cannot be had, settings ---


def test_twenty_images_are_enough_for_one_in_twenty(backbone):
    detector = Inspector(backbone, progress=False).fit(NORMAL[:20])
    assert detector.threshold() == detector.normal_scores_.max()
    with pytest.raises(ValueError, match="0.01 needs at least 99 normal images; got 20"):
        detector.threshold(0.01)
    assert counted(1, "file") == "1 file" and counted(0, "copy", "copies") == "0 copies"
    with pytest.raises(ValueError, match="18 normal images.* 0.05 with k=2 needs at least 19"):
        Inspector(backbone, progress=False).fit(NORMAL[:18])
    with pytest.raises(
        ValueError, match="1 normal image, 1 copy and 0 .* with k=4 needs at least 5"
    ):
        Inspector(backbone, progress=False, k=4, false_alarm_rate=0.4).fit(NORMAL[[0, 0]])


def test_rates_beyond_the_sample(fitted):
    with pytest.raises(ValueError, match=r"those of 22 \(n_maps\) among 30: .*n_maps=99"):
        fitted.threshold(0.01)
    with pytest.raises(ValueError, match="false_alarm_rate"):
        fitted.threshold(0)


def test_settings_that_do_not_fit(backbone):
    wrong = dict(false_alarm_rate=1.0, n_maps=8, n_images=0.5, k=0, sigma=-1, size=0, memory_mb=0)
    wrong |= dict(method="magic", framing="zoom", bank_size=0)
    for name, value in wrong.items():
        detector = Inspector(backbone, **SETTINGS | {name: value})  # said in fit, not before
        with pytest.raises(ValueError, match=f"{name}={value!r}"):
            detector.fit(NORMAL)
    for layers in ((), "layer1", ["layer9"]):
        with pytest.raises(ValueError, match="layer"):
            Inspector(backbone, layers=layers, **SETTINGS).fit(NORMAL)


def test_it_is_an_estimator(backbone, fitted):
    detector = clone(fitted).set_params(n_images=5)
    assert detector.get_params()["n_images"] == 5 and detector.n_maps == 22
    assert detector.size is None and detector.layers is None
    assert repr(detector).startswith("Inspector(")
    for call in (detector.score, detector.add, detector.maps, detector.rank, detector.rank_normal):
        with pytest.raises(NotFittedError):
            call(QUERIES)
    with pytest.raises(NotFittedError):
        detector.threshold()
    assert detector.fit(NORMAL, None) is detector and detector.size is None


def test_layers_and_sizes_follow_the_network(backbone, fitted):
    cut = Inspector(small_backbone(truncate_after="layer2"), **SETTINGS).fit(NORMAL)
    assert cut.layers_ == ["layer1", "layer2"]
    all_of_them = ["layer1", "layer2", "layer3"]
    assert fitted.layers_ == all_of_them[-2 if fitted.method == "bank" else -3 :]
    assert fitted.image_size_ == (SIDE, SIDE)  # arrays keep their own
    detector = Inspector(load_backbone())
    detector.prepare()
    assert detector.geometry_ == Geometry(128, 128)
    detector.set_params(resize=150, size=140).prepare()
    assert detector.geometry_ == Geometry(140, 140, "crop", 150)


# --- what may be called images ---


def test_folder_list_sequence_and_array_are_one(backbone, fitted, tmp_path):
    folder = write(tmp_path / "train" / "good", NORMAL)
    files = sorted(folder.iterdir())
    pillow = [Image.open(file) for file in files]
    mvtec, lazy = tmp_path, ImageFolder(files, Geometry.square(SIDE))
    for given in (folder, mvtec, files, lazy, torch.from_numpy(NORMAL), pillow):
        detector = new(backbone, method=fitted.method).fit(given)
        same(detector, fitted)
    queries = write(tmp_path / "test", QUERIES)
    detector = new(backbone, method=fitted.method).fit(folder)
    expected = detector.score(QUERIES)
    np.testing.assert_allclose(detector.score(queries), expected, rtol=1e-4)
    np.testing.assert_allclose(detector.score(queries / "002.png"), expected[2:3], rtol=1e-3)
    maps = detector.maps(str(tmp_path), recursive=True)[:6]
    np.testing.assert_allclose(maps, detector.maps(QUERIES), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="resized to 40.*expected .*the whole image"):
        detector.score(ImageFolder(files, Geometry.square(SIDE, 40)))


def test_unreadable_files(backbone, fitted, tmp_path):
    folder = write(tmp_path / "normal", NORMAL)
    (folder / "000.png").rename(folder / "zz.png")
    (folder / "000.png").write_bytes(b"")  # the first of them, too
    (folder / "zzz.jpg").write_bytes(b"junk")
    with pytest.raises(ImageError, match="000.png.* it is empty"):
        new(backbone).fit(folder)
    detector = new(backbone).fit(folder, skip_unreadable=True)
    same(detector, new(backbone).fit(np.concatenate([NORMAL[1:], NORMAL[:1]])))
    assert detector.unreadable_[0] == ("000.png", "it is empty (0 bytes)")
    assert [name for name, _ in detector.unreadable_] == ["000.png", "zzz.jpg"]
    with pytest.raises(ImageError, match="000.png"):
        detector.score(folder)
    ranking = detector.rank(folder, skip_unreadable=True, top=3)
    assert len(ranking.names) == 30 and "000.png" not in ranking.names
    assert ranking.unreadable == detector.unreadable_
    for name in ranking.names[6:]:
        (folder / name).unlink()
    with pytest.raises(ValueError, match="6 normal images, 0 copies and 2 unreadable files left"):
        new(backbone).fit(folder, skip_unreadable=True)
    for name in ranking.names[:6]:
        (folder / name).unlink()
    with pytest.raises(ValueError, match="2 files and no image, '000.png' first: it is empty"):
        detector.rank(folder, skip_unreadable=True)


# --- one walk, in batches ---


class Lazy(Sequence):
    """Counts how often each image is asked for, and how many at once."""

    def __init__(self, pictures):
        self.pictures = pictures
        self.forget()

    def forget(self):
        self.asked, self.largest = np.zeros(len(self.pictures), int), 0

    @property
    def shape(self):
        return self.pictures.shape

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        self.asked[index] += 1
        self.largest = max(self.largest, len(self.asked[index]))
        return self.pictures[index]


def test_each_image_is_read_once_and_in_batches(backbone, method, monkeypatch):
    monkeypatch.setattr(inspector, "PIXELS_PER_BATCH", 8 * SIDE**2)
    lazy = Lazy(images(100, SIDE))
    detector = Inspector(backbone, method=method, **SETTINGS | dict(memory_mb=0.1)).fit(lazy)
    assert lazy.largest == 8 and (lazy.asked == 1).all() and len(detector.sample_) == 22
    lazy.forget()
    ranking = detector.rank(lazy, top=2)
    bytes_an_image = detector.places_._bytes_per_image()
    assert (lazy.asked == 1).all() and lazy.largest * bytes_an_image <= 0.1e6
    # A view would keep its whole batch.
    assert all(one.map.base is None and one.image.base is None for one in ranking.top)


def test_features_beyond_float16_are_refused():
    backbone = small_backbone()
    with torch.no_grad():
        backbone.frozen[1][0].conv2.weight.mul_(1e9)
    with pytest.raises(FloatingPointError, match="overflow"):
        Inspector(backbone, **SETTINGS, layers=["layer1"]).fit(NORMAL)


def test_ranking(fitted):
    pictures = np.concatenate([QUERIES, NORMAL[:9], QUERIES[:2]])  # ties
    ranking = fitted.rank(pictures, top=5)
    scores, maps = fitted.score(pictures), fitted.maps(pictures)
    assert np.array_equal(ranking.scores, scores) and ranking.names[3] == "image 3"
    expected = sorted(range(len(scores)), key=lambda number: (-scores[number], number))
    assert ranking.order.tolist() == expected
    assert [one.number for one in ranking.top] == expected[:5]
    for one in ranking.top:
        assert np.array_equal(one.image, pictures[one.number])
        assert np.array_equal(one.map, maps[one.number])
    for (row, column), heat in zip((ranking.peaks * SIDE - 0.5).astype(int), maps):
        assert heat[row, column] == heat.max()
    assert len(fitted.rank(pictures, top=99).top) == len(pictures)
    with pytest.raises(ValueError, match="top=0"):
        fitted.rank(pictures, top=0)


def test_normal_images_are_ranked_each_among_the_others(backbone, fitted, tmp_path):
    ranking = fitted.rank_normal(NORMAL, top=4)
    shown = [f"image {number}" for number in fitted.sample_]
    assert ranking.names == shown  # what is not in the sample is not among them
    for part, values in fitted.normal_parts_.items():
        assert np.array_equal(ranking.parts[part], values)
    assert [(ranking.names[one.number], ranking.scores[one.number]) for one in ranking.top] == [
        (name, pytest.approx(times * np.median(fitted.normal_scores_)))
        for name, times in fitted.strangest(4)
    ]
    for one in ranking.top:  # not the map of an image that finds itself
        number = int(fitted.sample_[one.number])
        assert np.array_equal(one.image, NORMAL[number])
        assert one.map.max() == pytest.approx(ranking.parts["place"][one.number], rel=1e-6)
    changed = NORMAL.copy()
    changed[number, 0, 0, 0] ^= 1  # another file under the same name
    assert f"image {number}" not in fitted.rank_normal(changed).names
    with pytest.raises(ValueError, match="none of these images is one of the normal images"):
        fitted.rank_normal(QUERIES)
    with pytest.raises(ValueError, match="none of these images is one of the normal images"):
        fitted.rank_normal(write(tmp_path / "other names", NORMAL))  # not one name in common


def test_normal_images_in_two_folders_with_the_same_names(backbone, tmp_path):
    folders = [write(tmp_path / "a", NORMAL[:20]), write(tmp_path / "b", NORMAL[20:])]
    both = new(backbone, n_maps=30).fit(folders[0]).add(folders[1])
    both.save(tmp_path / "model")
    again = Inspector.load(tmp_path / "model", backbone=backbone)
    assert len(again.rank_normal(folders[0]).names) == 20
    assert again.rank_normal(folders[1]).names == [f"{number:03}.png" for number in range(10)]
    (folders[1] / "003.png").write_bytes(b"broken since")
    found = again.rank_normal(folders[1])
    assert len(found.names) == 9 and found.unreadable[0][0] == "003.png"


def test_normal_images_in_a_region_of_interest(backbone, tmp_path):
    folder = write(tmp_path / "normal", NORMAL)
    some = new(backbone, region="0,0 20,0 20,20 0,20").fit(folder)
    ranking = some.rank_normal(folder, top=3)
    assert np.array_equal(ranking.scores, some.normal_scores_)
    for one in ranking.top:
        assert one.map.max() == pytest.approx(ranking.parts["place"][one.number], rel=1e-6)
        assert not one.map[21:].any()


# --- defects among the normal images ---


def test_defects_among_the_normal_images_are_listed_and_may_be_left_out(tmp_path):
    pictures = [stripes(seed=n) for n in range(37)]
    pictures += [stripes((10 + 40 * n, 20), seed=n + 50) for n in range(3)]
    folder = save_all(tmp_path / "normal", pictures)
    defects = {"037.png", "038.png", "039.png"}
    settings = dict(size=64, progress=False)
    plain = Inspector(load_backbone(), **settings).fit(folder)
    listed = plain.strangest(3)
    assert {name for name, _ in listed} == defects and plain.left_out_ == []
    assert listed[0][1] == plain.normal_scores_.max() / np.median(plain.normal_scores_)
    assert len(plain.strangest(None)) == 40
    limit = listed[2][1] * 0.99
    cleaned = Inspector(load_backbone(), leave_out_above=limit, **settings).fit(folder)
    assert cleaned.left_out_ == listed and len(cleaned.features_) == 37
    same_as = Inspector(load_backbone(), **settings).fit(sorted(folder.iterdir())[:37])
    assert np.array_equal(cleaned.normal_scores_, same_as.normal_scores_)
    hidden = [stripes((70, 30), seed=70)]
    assert cleaned.alarms(hidden).all() and not plain.alarms(hidden).any()
    with pytest.raises(ValueError, match="leave_out_above=-1"):
        Inspector(load_backbone(), leave_out_above=-1, **settings).fit(folder)


# --- an adapted network ---


@pytest.mark.parametrize("kind", ["early", "ewc"])
def test_the_network_may_be_adapted_to_half_of_the_images(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(adapted, "epochs_for", lambda minibatches, n_images: 3)
    network, pictures = load_backbone(), images(60, 48, seed=8)
    copies = pictures[:6] // 8 * 8 + 3  # near-duplicates of the first six
    normal = np.concatenate([pictures, copies])
    before = network.trainable_sha256()
    settings = dict(n_maps=20, false_alarm_rate=0.1, progress=False)
    detector = Inspector(network, adapt=kind, **settings).fit(normal)
    assert network.trainable_sha256() == before != detector.backbone_.trainable_sha256()
    halves = set(detector.adapted_.tolist())
    assert 20 <= len(halves) <= 33 and len(detector.sample_) == 20
    # What the network has seen sets no threshold, nor does a near-duplicate of it.
    assert not halves & set(detector.sample_.tolist())
    assert all((number in halves) == (60 + number in halves) for number in range(6))
    plain = Inspector(detector.backbone_, **settings).fit(normal)
    np.testing.assert_allclose(detector.features_, plain.features_, rtol=1e-4, atol=1e-4)
    raw = [one.parts(QUERIES_48)["place"] * one.scales_["place"] for one in (detector, plain)]
    np.testing.assert_allclose(*raw, rtol=1e-4)
    detector.save(tmp_path / "model")
    again = Inspector.load(tmp_path / "model")
    assert again.backbone_.trainable_sha256() == detector.backbone_.trainable_sha256()
    assert np.array_equal(again.score(QUERIES_48), detector.score(QUERIES_48))
    assert again.threshold() == detector.threshold() and again.adapt == kind
    more = images(8, 48, seed=9)
    assert len(again.add(more).features_) == 74 and not halves & set(again.sample_.tolist())


QUERIES_48 = images(5, 48, seed=21)


def test_too_few_images_to_adapt_to(backbone):
    with pytest.raises(ValueError, match="adapt='ewc' sets half of the 20 normal images aside"):
        Inspector(load_backbone(), adapt="ewc", progress=False).fit(images(20, 48))
    with pytest.raises(ValueError, match="adapt='magic'"):
        Inspector(backbone, adapt="magic", progress=False).fit(NORMAL)
