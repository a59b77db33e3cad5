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

from pandalib import SPADE, Inspector, PatchCore, load_backbone, load_task
from pandalib.datasets.images import Geometry, ImageError, ImageFolder
from pandalib.inspection import inspector
from pandalib.inspection.inspector import _sample, _scale, counted
from pandalib.methods.distances import enlarged, image_scores
from pandalib.methods.whitening import l2_normalise

SIDE = 32
NORMAL, QUERIES = images(30, SIDE), images(6, SIDE, seed=1)
SETTINGS = dict(place="spade", n_maps=22, n_images=4, false_alarm_rate=0.1, progress=False)
BANK = SETTINGS | dict(place="bank", bank_size=300)


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def fitted(backbone):
    return Inspector(backbone, **SETTINGS).fit(NORMAL)


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
    among = cdist(gallery, gallery, "sqeuclidean")
    np.fill_diagonal(among, np.inf)
    among = np.sort(among, axis=1)[:, :2].sum(axis=1)[fitted.sample_]
    whole = np.sort(cdist(queries, gallery, "sqeuclidean"), axis=1)[:, :2].sum(axis=1)
    spade = SPADE(backbone, n_images=4, balanced=True).fit(NORMAL[fitted.sample_])
    places = image_scores(spade.leave_one_out_maps(progress=False))
    assert len(fitted.sample_) == 22 and fitted.features_.shape == gallery.shape
    for part, normal, found in (("image", among, whole), ("place", places, spade.score(QUERIES))):
        scale = np.quantile(normal, 0.9)
        np.testing.assert_allclose(fitted.normal_parts_[part], normal / scale, rtol=2e-3)
        np.testing.assert_allclose(fitted.parts(QUERIES)[part], found / scale, rtol=2e-3)
    assert np.array_equal(fitted.score(QUERIES), np.maximum(*fitted.parts(QUERIES).values()))
    maps, expected = fitted.maps(QUERIES), spade.maps(QUERIES) / np.quantile(places, 0.9)
    np.testing.assert_allclose(maps, expected, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(image_scores(maps), fitted.parts(QUERIES)["place"], rtol=1e-5)


def test_the_parts_of_a_memory_bank_are_those_of_the_definition(backbone):
    fitted = Inspector(backbone, **BANK).fit(NORMAL)
    how = dict(layers=backbone.map_layers[-2:], bank_size=300, progress=False)
    peer = PatchCore(backbone, **how).fit(NORMAL)
    assert torch.equal(peer.memory_bank_, fitted.place_.detector.memory_bank_)
    bank = peer.memory_bank_
    for number in fitted.sample_[:6]:  # each without its own patches, by a loop
        (found,) = backbone.iter_layers(NORMAL[number : number + 1], peer.layers)
        others = bank[[row for row in range(len(bank)) if peer.owners_[row] != number]]
        squared = torch.cdist(peer.patches_of(found)[0].flatten(0, 1), others).square()
        small = squared.amin(dim=1).view(1, *peer.grid_).numpy()
        highest = enlarged(small, (SIDE, SIDE), peer.sigma).max()
        score = fitted.normal_parts_["place"][fitted.sample_.tolist().index(number)]
        assert score * fitted.scales_["place"] == pytest.approx(
            highest, rel=5e-3
        )  # the sample is kept in float16
    raw = fitted.normal_parts_["place"] * fitted.scales_["place"]
    assert fitted.scales_["place"] == pytest.approx(np.quantile(raw, 0.9))
    expected = peer.score(QUERIES) / fitted.scales_["place"]
    np.testing.assert_allclose(fitted.parts(QUERIES)["place"], expected, rtol=1e-4)
    np.testing.assert_allclose(fitted.parts(QUERIES)["place"], image_scores(fitted.maps(QUERIES)))


def test_normalised_features(backbone):
    fitted = Inspector(backbone, **SETTINGS, normalise=True).fit(NORMAL)
    features = l2_normalise(backbone.features(NORMAL)).astype(float)
    among = cdist(features, features, "sqeuclidean")
    np.fill_diagonal(among, np.inf)
    among = np.sort(among, axis=1)[:, :2].sum(axis=1)[fitted.sample_]
    np.testing.assert_allclose(
        fitted.normal_parts_["image"], among / np.quantile(among, 0.9), rtol=2e-3
    )


def test_threshold_is_a_rank_among_the_normal_images(fitted):
    ordered = np.sort(fitted.normal_scores_)
    assert fitted.threshold() == ordered[-2]  # of 23 ranks a tenth, in whole ones, is 2
    assert fitted.threshold(0.2) == ordered[-4] and fitted.threshold(0.5) == ordered[-11]
    assert np.array_equal(fitted.alarms(QUERIES), fitted.score(QUERIES) > ordered[-2])
    assert fitted.alarms(QUERIES, rate=0.5).sum() >= fitted.alarms(QUERIES).sum()


@pytest.mark.parametrize("place", ["bank", "spade"])
def test_new_normal_images_alarm_as_often_as_asked_for(backbone, place):
    rates = []
    for seed in range(4):
        how = dict(false_alarm_rate=0.2, n_images=5, bank_size=1000)
        detector = Inspector(backbone, place=place, progress=False, **how)
        detector.fit(images(60, SIDE, seed=100 + seed))
        rates.append(detector.alarms(images(80, SIDE, seed=200 + seed)).mean())
    assert 0.08 < np.mean(rates) < 0.3, rates


def test_where_normal_images_are_all_alike_there_is_no_scale():
    assert _scale(np.zeros(20)) == 1
    assert _scale(np.eye(1, 20)[0]) == 0.05
    assert _scale(np.arange(11.0)) == 9


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
def test_fit_then_add_is_fit_of_all(backbone, fitted, first):
    both = Inspector(backbone, **SETTINGS).fit(NORMAL[:first])
    before = set(both.sample_)
    same(both.add(NORMAL[first:]), fitted)
    if first == 24:  # some left, some came
        assert before - set(both.sample_) and set(both.sample_) - before


def test_more_images_for_a_memory_bank(backbone):
    """New images are compared with all; the scores of earlier ones stay what they were."""
    detector = Inspector(backbone, **BANK).fit(NORMAL[:20])
    before = dict(
        zip(detector.sample_, detector.normal_parts_["place"] * detector.scales_["place"])
    )
    bank = detector.place_.detector.memory_bank_
    detector.add(NORMAL[20:])
    after = dict(zip(detector.sample_, detector.normal_parts_["place"] * detector.scales_["place"]))
    assert len(after) == 22 and max(detector.place_.detector.owners_) >= 20
    for number in set(after) & set(before):
        assert after[number] == pytest.approx(before[number])
    assert not torch.equal(bank, detector.place_.detector.memory_bank_)
    assert detector.parts(NORMAL[20:])["place"].max() < 1.5
    late = next(n for n in range(32, 60) if n - 1 not in _sample(n, 22, seed=0))
    detector.add(images(late - 31, SIDE, seed=5))
    before = detector.sample_.tolist()
    detector.add(images(1, SIDE, seed=6))  # an image that is not in the sample
    assert detector.sample_.tolist() == before and len(detector.features_) == late


def frames(n_scenes, n_frames, seed):
    """Scenes in the laboratory, each in frames that differ by a little noise."""
    rng = np.random.default_rng(seed)
    scenes = load_task("pictograms:star", n_train=n_scenes, n_test=1, seed=seed).train[:]
    noise = rng.normal(0, 2, (n_scenes, n_frames, *scenes.shape[1:]))
    pictures = np.clip(scenes[:, None] + noise, 0, 255).astype(np.uint8)
    return pictures.reshape(-1, *scenes.shape[1:])


@pytest.mark.parametrize("place", ["bank", "spade"])
def test_near_duplicates_are_left_out_together(place):
    """Twenty scenes of three frames: with each frame's twins left in, every new image alarms."""
    how = dict(place=place, bank_size=2000, progress=False)
    detector = Inspector(load_backbone(), **how).fit(frames(20, 3, seed=0))
    new = load_task("pictograms:star", n_train=30, n_test=1, seed=1).train[:]
    assert detector.groups_.tolist() == np.repeat(np.arange(20), 3).tolist()
    assert detector.near_duplicates()[1] == ["image 3", "image 4", "image 5"]
    assert detector.alarms(new).sum() <= 6
    with pytest.raises(ValueError, match="45 normal images are 15 different ones .* least 19"):
        detector.fit(frames(15, 3, seed=0))


def test_strange_normal_images_are_named_and_left_out_on_request(backbone, tmp_path):
    pictures = NORMAL.copy()
    pictures[4], pictures[17] = 0, 255
    folder = write(tmp_path / "normal", pictures)
    how = dict(progress=False, false_alarm_rate=0.1, size=SIDE)
    detector = Inspector(backbone, **how).fit(folder)
    (one, _), (other, second), (_, third) = detector.strangest(3)
    assert {one, other} == {"004.png", "017.png"} and detector.strange_ == []
    limit = (second + third) / 2
    without = Inspector(backbone, **how, leave_out_above=limit).fit(folder)
    assert [name for name, _ in without.strange_] == [one, other]
    assert without.strange_[1] == (other, second) and len(without.features_) == 28
    same(without, Inspector(backbone, **how).fit(np.delete(pictures, [4, 17], axis=0)))
    assert without.threshold() < detector.threshold() and without.leave_out_above == limit


def test_copies_are_left_out(backbone, fitted):
    doubled = Inspector(backbone, **SETTINGS).fit(np.concatenate([NORMAL, NORMAL[3:9]]))
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

    monkeypatch.setattr(SPADE, "iter_leave_one_out_maps", stopped)
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
    wrong |= dict(bank_size=0, leave_out_above=1.0)
    for name, value in wrong.items():
        detector = Inspector(backbone, **SETTINGS | {name: value})  # said in fit, not before
        with pytest.raises(ValueError, match=f"{name}={value}"):
            detector.fit(NORMAL)
    for layers in ((), "layer1", ["layer9"]):
        with pytest.raises(ValueError, match="layer"):
            Inspector(backbone, layers=layers, **SETTINGS).fit(NORMAL)


def test_it_is_an_estimator(backbone, fitted):
    detector = clone(fitted).set_params(n_images=5)
    assert detector.get_params()["n_images"] == 5 and detector.n_maps == 22
    assert detector.size is None and detector.layers is None
    assert repr(detector).startswith("Inspector(")
    for call in (detector.score, detector.add, detector.maps, detector.rank):
        with pytest.raises(NotFittedError):
            call(QUERIES)
    with pytest.raises(NotFittedError):
        detector.threshold()
    assert detector.fit(NORMAL, None) is detector and detector.size is None


def test_layers_and_sizes_follow_the_network(backbone, fitted):
    cut = Inspector(small_backbone(truncate_after="layer2"), **SETTINGS).fit(NORMAL)
    assert cut.layers_ == ("layer1", "layer2") and fitted.image_size_ == (SIDE, SIDE)
    assert Inspector(backbone, **BANK).fit(NORMAL).layers_ == ("layer2", "layer3")
    assert Inspector(load_backbone()).prepare() == 128 and Inspector(backbone).prepare() == 224


# --- what may be called images ---


def test_folder_list_sequence_and_array_are_one(backbone, fitted, tmp_path):
    folder = write(tmp_path / "train" / "good", NORMAL)
    files = sorted(folder.iterdir())
    pillow = [Image.open(file) for file in files]
    mvtec, lazy = tmp_path, ImageFolder(files, Geometry.square(SIDE))
    for given in (folder, mvtec, files, lazy, torch.from_numpy(NORMAL), pillow):
        detector = new(backbone).fit(given)
        same(detector, fitted)
    queries = write(tmp_path / "test", QUERIES)
    detector = new(backbone).fit(folder)
    expected = detector.score(QUERIES)
    np.testing.assert_allclose(detector.score(queries), expected, rtol=1e-4)
    np.testing.assert_allclose(detector.score(queries / "002.png"), expected[2:3], rtol=1e-3)
    maps = detector.maps(str(tmp_path), recursive=True)[:6]
    np.testing.assert_allclose(maps, detector.maps(QUERIES), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="resized to 40.*expected .*the whole image"):
        detector.score(ImageFolder(files, Geometry.square(SIDE, 40)))


@pytest.mark.parametrize("place", ["bank", "spade"])
def test_the_whole_image_is_seen(tmp_path, place):
    """A hole at the left of a wide photograph alarms as one in the centre does."""
    rng = np.random.default_rng(0)
    wide = rng.integers(110, 140, (24, 3, 40, 120), dtype=np.uint8).repeat(5, 2).repeat(5, 3)
    folder = write(tmp_path / "normal", wide[:20])
    clean = write(tmp_path / "clean", wide[20:])
    detector = Inspector(load_backbone(), size=96, place=place, progress=False).fit(folder)
    assert detector.image_size_ == (64, 128) and detector.geometry_.fit == "stretch"
    for left in (30, 290, 540):
        holed = wide[20:21].copy()
        holed[:, :, 90:130, left : left + 40] = 0
        file = write(tmp_path / f"hole{left}", holed) / "000.png"
        assert detector.score(file) > 1.5 * detector.threshold() > 1.5 * detector.score(clean)[0]
        (finding,) = detector.rank(file).top
        row, column = np.unravel_index(finding.map.argmax(), finding.map.shape)
        assert abs(column * 600 / 128 - left - 20) < 40 and abs(row * 200 / 64 - 110) < 40
    paper = Inspector(load_backbone(), size=96, framing="crop", progress=False).fit(folder)
    assert paper.image_size_ == (96, 96) and "central square" in str(paper.geometry_)


@pytest.mark.parametrize("place", ["bank", "spade"])
def test_only_a_region_of_interest_is_looked_at(tmp_path, place):
    rng = np.random.default_rng(0)
    pictures = rng.integers(110, 140, (24, 3, 16, 24), dtype=np.uint8).repeat(6, 2).repeat(6, 3)
    folder = write(tmp_path / "normal", pictures[:20])
    how = dict(size=96, place=place, progress=False)
    detector = Inspector(load_backbone(), region="72,0 144,0 144,96 72,96", **how).fit(folder)
    spoilt = {"inside": pictures[20:21].copy(), "outside": pictures[20:21].copy()}
    spoilt["inside"][:, :, 40:64, 100:124] = 0
    spoilt["outside"][:, :, 40:64, 10:34] = 0
    files = {name: write(tmp_path / name, picture) for name, picture in spoilt.items()}
    clean = write(tmp_path / "clean", pictures[20:21])
    assert detector.score(files["inside"]) > 1.5 * detector.threshold()
    assert np.array_equal(detector.score(files["outside"]), detector.score(clean))
    (heat,) = detector.maps(files["inside"])
    assert heat[:, : heat.shape[1] // 2].max() == 0 < heat.max()
    detector.save(tmp_path / "model")
    again = Inspector.load(tmp_path / "model")
    assert np.array_equal(again.score(files["inside"]), detector.score(files["inside"]))
    other = write(tmp_path / "other", pictures[:1, :, :, :96])
    with pytest.raises(ValueError, match="96 x 96 pixels: expected the proportions of the region"):
        again.score(other)


def test_one_image_in_memory_is_the_file(backbone, tmp_path):
    folder = write(tmp_path / "normal", NORMAL)
    detector = new(backbone, place="bank").fit(folder)
    file = write(tmp_path / "new", QUERIES[:1]) / "000.png"
    pixels = QUERIES[0].transpose(1, 2, 0)
    with Image.open(file) as picture:
        for given in (picture, pixels, [picture]):
            assert np.array_equal(detector.score(given), detector.score(file))
            assert np.array_equal(detector.maps(given), detector.maps(file))


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


def test_each_image_is_read_once_and_in_batches(backbone, monkeypatch):
    monkeypatch.setattr(inspector, "PIXELS_PER_BATCH", 8 * SIDE**2)
    lazy = Lazy(images(100, SIDE))
    detector = Inspector(backbone, **SETTINGS | dict(memory_mb=0.1)).fit(lazy)
    assert lazy.largest == 8 and (lazy.asked == 1).all() and len(detector.sample_) == 22
    lazy.forget()
    ranking = detector.rank(lazy, top=2)
    bytes_an_image = 8 * detector.place_.detector.normal_.rows.shape[1]
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
