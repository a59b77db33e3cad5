"""The inspector against its definition; what is saved comes back or is refused; nothing is half-written."""

import csv
import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from scipy.spatial.distance import cdist
from sklearn.exceptions import NotFittedError
from small import images, small_backbone

import pandalib
from pandalib import SPADE, Inspector, load_backbone
from pandalib.inspection import storage as detector_files, inspector
from pandalib.__main__ import main
from pandalib.io import sha256_of
from pandalib.inspection.inspector import _sample
from pandalib.io import sealed, unsealed
from pandalib.methods.distances import image_scores
from pandalib.datasets.images import list_images, open_images
from pandalib.datasets.images import ImageError, ImageFolder

SIDE = 32
NORMAL, QUERIES = images(30, SIDE), images(6, SIDE, seed=1)
SETTINGS = dict(n_maps=22, n_images=4, false_alarm_rate=0.1, progress=False)


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def fitted(backbone):
    return Inspector(backbone, **SETTINGS).fit(NORMAL)


def new(backbone, **changes):
    return Inspector(backbone, size=SIDE, **SETTINGS | changes)


def write(folder, pictures, names=None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.transpose(1, 2, 0)).save(
            folder / (names[number] if names else f"{number:03}.png")
        )
    return folder


def same(one, other, rtol=1e-4):
    """Fitted alike, to the rounding of the network in other batches."""
    np.testing.assert_allclose(one.features_, other.features_, rtol=rtol, atol=1e-5)
    assert np.array_equal(one.kept_, other.kept_)
    np.testing.assert_allclose(one.normal_scores_, other.normal_scores_, rtol=20 * rtol)
    np.testing.assert_allclose(one.score(QUERIES), other.score(QUERIES), rtol=20 * rtol)


# --- what a score is ---


def test_parts_are_those_of_the_definition(backbone, fitted):
    gallery, queries = (
        backbone.features(NORMAL).astype(float),
        backbone.features(QUERIES).astype(float),
    )
    own = cdist(gallery, gallery, "sqeuclidean")
    np.fill_diagonal(own, np.inf)
    own = np.sort(own, axis=1)[:, :2].sum(axis=1)[fitted.kept_]
    whole = np.sort(cdist(queries, gallery, "sqeuclidean"), axis=1)[:, :2].sum(axis=1)
    spade = SPADE(backbone, n_images=4, balanced=True).fit(NORMAL[fitted.kept_])
    places = image_scores(spade.leave_one_out_maps(progress=False))
    assert len(fitted.kept_) == 22 and fitted.features_.shape == gallery.shape
    for part, normal, new_ in (("image", own, whole), ("place", places, spade.score(QUERIES))):
        usual = np.quantile(normal, 0.9)
        np.testing.assert_allclose(fitted.normal_parts_[part], normal / usual, rtol=2e-3)
        np.testing.assert_allclose(fitted.parts(QUERIES)[part], new_ / usual, rtol=2e-3)
    larger = np.maximum(*fitted.parts(QUERIES).values())
    assert np.array_equal(fitted.score(QUERIES), larger)
    np.testing.assert_allclose(
        fitted.maps(QUERIES), spade.maps(QUERIES) / np.quantile(places, 0.9), rtol=2e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        fitted.maps(QUERIES).max(axis=(1, 2)), fitted.parts(QUERIES)["place"], rtol=1e-5
    )


def test_threshold_is_a_rank_among_the_normal_images(fitted):
    ordered = np.sort(fitted.normal_scores_)
    assert (
        fitted.threshold() == ordered[-2]
    )  # 22 scores make 23 ranks: a tenth of them, whole ones, is 2
    assert fitted.threshold(0.2) == ordered[-4] and fitted.threshold(0.5) == ordered[-11]
    assert np.array_equal(fitted.alarms(QUERIES), fitted.score(QUERIES) > ordered[-2])
    assert fitted.alarms(QUERIES, rate=0.5).sum() >= fitted.alarms(QUERIES).sum()


def test_new_normal_images_alarm_as_often_as_asked_for(backbone):
    rates = []
    for seed in range(4):
        normal = images(60, SIDE, seed=100 + seed)
        rates.append(
            Inspector(backbone, false_alarm_rate=0.2, n_images=5, progress=False)
            .fit(normal)
            .alarms(images(80, SIDE, seed=200 + seed))
            .mean()
        )
    assert 0.08 < np.mean(rates) < 0.3, rates


def test_image_part_without_itself_goes_by_index(backbone):
    """More copies than neighbours: the image itself need not be among the nearest that are found."""
    detector = new(backbone)
    detector.features_ = np.repeat(np.float32([[0, 0], [3, 0], [0, 4]]), [6, 1, 1], axis=0)
    detector.kept_ = np.arange(8)
    assert detector._image_part_without_itself().tolist() == [0] * 6 + [18, 32]


def test_where_normal_images_are_all_alike_there_is_no_scale():
    assert (
        inspector._usual(np.zeros(20)) == 1
        and inspector._usual(np.eye(1, 20)[0]) == 0.05
        and inspector._usual(np.arange(11.0)) == 9
    )


# --- which images are kept ---


def test_sample_is_uniform_and_whoever_leaves_never_returns():
    for n in (1, 5, 6, 17, 40):
        small, large = _sample(n, 5, seed=3), _sample(n + 9, 5, seed=3)
        assert (
            len(small) == min(n, 5)
            and np.all(np.diff(small) > 0)
            and set(large[large < n]) <= set(small)
        )
    counts = np.bincount(
        np.concatenate([_sample(20, 5, seed) for seed in range(2000)]), minlength=20
    )
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 0.75)
    assert _sample(12, 4, seed=0).tolist() == [
        0,
        3,
        8,
        9,
    ]  # and in every version of numpy: saved detectors count on it


@pytest.mark.parametrize("first", [12, 24, 29])
def test_fit_then_add_is_fit_of_all(backbone, fitted, first):
    both = Inspector(backbone, **SETTINGS).fit(NORMAL[:first])
    before = set(both.kept_)
    both.add(NORMAL[first:])
    same(both, fitted)
    if first == 24:
        assert before - set(both.kept_) and set(both.kept_) - before  # some left, some came


def test_adding_nobody_to_the_sample(backbone):
    """All keys of the new images are too large: the pyramids stay, the gallery grows."""
    cut = next(n for n in range(25, 60) if np.array_equal(_sample(n, 9, 0), _sample(n + 1, 9, 0)))
    pictures = images(cut + 1, SIDE, seed=5)
    detector = Inspector(backbone, **SETTINGS | dict(n_maps=9)).fit(pictures[:cut])
    rows = detector.spade_.normal_.rows.copy()
    detector.add(pictures[cut:])
    assert len(detector.features_) == cut + 1 and np.array_equal(detector.spade_.normal_.rows, rows)


def test_copies_are_left_out(backbone, fitted):
    doubled = Inspector(backbone, **SETTINGS).fit(np.concatenate([NORMAL, NORMAL[3:9]]))
    same(doubled, fitted)
    assert doubled.n_copies_ == 6
    doubled.add(NORMAL[:10])
    same(doubled, fitted)
    assert doubled.n_copies_ == 16
    with pytest.raises(
        ValueError, match=r"1 normal image \(without 29 copies\): a false-alarm rate of 0.1 needs 9"
    ):
        Inspector(backbone, **SETTINGS).fit(NORMAL[[0] * 30])


def test_a_failed_fit_or_add_changes_nothing(backbone, tmp_path):
    detector = new(backbone).fit(NORMAL)
    before = dict(detector.__dict__)
    bad = write(tmp_path / "bad", NORMAL[:12])
    (bad / "011.png").write_bytes(b"junk")
    for call in (detector.add, detector.fit):
        with pytest.raises(ImageError, match="011.png"):
            call(bad)
        with pytest.raises(ValueError, match="expected uint8"):
            call(NORMAL.astype(np.float32))
    with pytest.raises(ValueError, match="images are 48 x 48 pixels: expected 32 x 32"):
        detector.add(images(3, 48))
    with pytest.raises(ValueError, match="5 normal images: a false-alarm rate of 0.1 needs 9"):
        detector.fit(NORMAL[:5])
    assert detector.__dict__ == before
    with pytest.raises(NotFittedError):
        new(backbone).add(NORMAL)


# --- few images, rates that cannot be had ---


def test_twenty_images_are_enough_for_one_in_twenty(backbone):
    detector = Inspector(backbone, progress=False).fit(NORMAL[:20])
    assert detector.threshold() == detector.normal_scores_.max()
    with pytest.raises(
        ValueError,
        match="rate of 0.01 needs at least 99 normal images; got 20. Add normal images, or ask for a rate of 0.048 or more",
    ):
        detector.threshold(0.01)
    with pytest.raises(
        ValueError,
        match="18 normal images: a false-alarm rate of 0.05 needs 19. Add normal images, or ask for a rate of 0.053 or more",
    ):
        Inspector(backbone, progress=False).fit(NORMAL[:18])


def test_rates_beyond_the_kept_images(backbone, fitted):
    with pytest.raises(
        ValueError,
        match=r"needs the scores of 99 normal images, and this detector keeps those of 22 \(n_maps\) among 30: fit it with n_maps=99",
    ):
        fitted.threshold(0.01)
    with pytest.raises(ValueError, match="n_maps=10: a false-alarm rate of 0.05 needs 19 or more"):
        Inspector(backbone, n_maps=10)
    with pytest.raises(ValueError, match="false_alarm_rate must lie between 0 and 1"):
        fitted.threshold(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(false_alarm_rate=1.0), "false_alarm_rate=1.0: expected a share between 0 and 1"),
        (dict(n_maps=0), "n_maps=0"),
        (dict(k=0), "k=0"),
        (dict(sigma=-1), "sigma=-1: expected the width of the blur"),
        (dict(size=64, resize=32), "size=64, resize=32: expected 1 <= size <= resize"),
        (dict(memory_mb=0), "memory_mb=0: expected megabytes"),
        (dict(layers=()), "expected a list of names"),
        (dict(seed=-1), "seed=-1: expected a whole number, 0 or more"),
    ],
)
def test_bad_settings(backbone, changes, message):
    with pytest.raises(ValueError, match=message):
        Inspector(backbone, **changes)


def test_layers_and_sizes_follow_the_network(backbone):
    assert Inspector(small_backbone(truncate_after="layer2")).layers == ("layer1", "layer2")
    assert Inspector(backbone).size == 224 and Inspector(load_backbone()).size == 128
    with pytest.raises(ValueError, match="has no layer layer9"):
        Inspector(backbone, layers=["layer9"], **SETTINGS).fit(NORMAL)


# --- what may be called images ---


def test_folder_list_sequence_and_array_are_one(backbone, fitted, tmp_path):
    folder = write(tmp_path / "normal", NORMAL)
    files = sorted(folder.iterdir())
    for given in (
        folder,
        str(folder),
        files,
        [str(file) for file in files],
        ImageFolder(files, SIDE),
        torch.from_numpy(NORMAL),
    ):
        detector = new(backbone).fit(given)
        same(detector, fitted)
    queries = write(tmp_path / "queries", QUERIES)
    expected = detector.score(QUERIES)
    np.testing.assert_allclose(detector.score(queries), expected, rtol=1e-4)
    np.testing.assert_allclose(detector.score(queries / "002.png"), expected[2:3], rtol=1e-3)
    np.testing.assert_allclose(
        detector.maps(str(queries)), detector.maps(QUERIES), rtol=1e-3, atol=1e-4
    )


def test_mvtec_layout_and_subfolders(backbone, tmp_path):
    write(tmp_path / "train" / "good", NORMAL)
    write(tmp_path / "test" / "hole", QUERIES[:2])
    write(tmp_path / "test" / "good", QUERIES[2:])
    write(tmp_path / "test" / ".hidden", QUERIES)
    assert len(new(backbone).fit(tmp_path).features_) == 30
    names = open_images(tmp_path / "test", SIDE, recursive=True)[1]
    assert names == [
        "good/000.png",
        "good/001.png",
        "good/002.png",
        "good/003.png",
        "hole/000.png",
        "hole/001.png",
    ]
    assert open_images(list_images(tmp_path / "test", recursive=True), SIDE)[
        1
    ] == names and open_images([tmp_path / "test" / "hole" / "001.png"], SIDE)[1] == ["001.png"]
    with pytest.raises(
        ValueError, match="holds no images: .*Its subfolders are searched with recursive=True"
    ):
        list_images(tmp_path)
    os.symlink(tmp_path, tmp_path / "test" / "loop")
    assert len(list_images(tmp_path / "test", recursive=True)) == 6


def test_names_can_be_printed(tmp_path):
    strange = ["a\nb.png", "\u202egnp.exe.png", "caf\u00e9.png", os.fsdecode(b"\xff.png")]
    folder = write(tmp_path / "strange", NORMAL[:4], strange)
    names = open_images(folder, SIDE)[1]
    assert sorted(names) == sorted(["a\\nb.png", "\\u202egnp.exe.png", "café.png", "\\udcff.png"])
    "".join(names).encode("utf-8")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "there are no images"),
        (np.zeros((0, 3, 8, 8), np.uint8), "there are no images"),
        ([np.zeros((3, 8, 8), np.uint8)], "images are list: expected a folder"),
        (7, "images are int: expected a folder"),
        ({}, "images are dict: expected a folder"),
        (np.zeros((3, 8, 8), np.uint8), r"for one image pass image\[None\]"),
    ],
)
def test_what_is_no_image(fitted, given, message):
    with pytest.raises(ValueError, match=message):
        fitted.score(given)


def test_missing_folders_and_empty_ones(fitted, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        fitted.score(tmp_path / "nowhere")
    for recursive in (False, True):
        with pytest.raises(ValueError, match="hold.* no images: expected files ending in"):
            fitted.score(tmp_path, recursive=recursive)


def test_another_geometry_is_refused(backbone, tmp_path):
    folder = write(tmp_path / "normal", NORMAL)
    detector = new(backbone).fit(folder)
    with pytest.raises(ValueError, match="cropped to 32 after resizing to 40: expected 32 and 32"):
        detector.score(ImageFolder(sorted(folder.iterdir()), SIDE, 40))
    with pytest.raises(NotFittedError):
        new(backbone).score(folder)


def test_unreadable_files(backbone, fitted, tmp_path):
    folder = write(tmp_path / "normal", NORMAL)
    (folder / "010b.png").write_bytes(b"")
    (folder / "zz.jpg").write_bytes(b"junk")
    with pytest.raises(ImageError, match="010b.png.* it is empty"):
        new(backbone).fit(folder)
    detector = new(backbone).fit(folder, skip_unreadable=True)
    same(detector, fitted)
    assert [name for name, _ in detector.unreadable_] == [
        "010b.png",
        "zz.jpg",
    ] and detector.unreadable_[0][1] == "it is empty (0 bytes)"
    with pytest.raises(ImageError, match="010b.png"):
        detector.score(folder)
    ranking = detector.rank(folder, skip_unreadable=True, top=3)
    assert (
        len(ranking.names) == 30
        and "010b.png" not in ranking.names
        and len(ranking.unreadable) == 2
    )
    for name in ranking.names:
        (folder / name).unlink()
    with pytest.raises(
        ValueError,
        match="none of 2 files can be read as an image, the first, '010b.png': it is empty",
    ):
        detector.rank(folder, skip_unreadable=True)


class Lazy(Sequence):
    """Says how many images are asked for at once, as a folder of very many files would be read."""

    def __init__(self, pictures):
        self.pictures, self.largest = pictures, 0

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        part = self.pictures[index]
        self.largest = max(self.largest, len(part))
        return part


def test_images_are_read_in_batches(backbone, monkeypatch):
    monkeypatch.setattr(inspector, "PIXELS_PER_BATCH", 8 * SIDE**2)
    monkeypatch.setattr("pandalib.backbones.PIXELS_PER_BATCH", 8 * SIDE**2)
    lazy = Lazy(images(100, SIDE))
    detector = Inspector(backbone, **SETTINGS | dict(memory_mb=0.1)).fit(lazy)
    bytes_an_image = 8 * detector.spade_.normal_.rows.shape[1]
    assert lazy.largest == 8 and len(detector.spade_.normal_) == 22 and 2 * bytes_an_image < 0.1e6
    lazy.largest = 0
    ranking = detector.rank(lazy, top=2)
    assert lazy.largest * bytes_an_image <= 0.1e6 and len(ranking.names) == 100
    assert all(
        finding.map.base is None and finding.image.base is None for finding in ranking.top
    )  # a view would keep its whole batch


# --- ranking ---


def test_ranking(fitted):
    pictures = np.concatenate([QUERIES, NORMAL[:9], QUERIES[:2]])  # ties
    ranking = fitted.rank(pictures, top=5)
    scores, maps = fitted.score(pictures), fitted.maps(pictures)
    assert np.array_equal(ranking.scores, scores) and ranking.names[3] == "image 3"
    expected = sorted(range(len(scores)), key=lambda number: (-scores[number], number))
    assert (
        ranking.order.tolist() == expected
        and [finding.number for finding in ranking.top] == expected[:5]
    )
    for finding in ranking.top:
        assert np.array_equal(finding.image, pictures[finding.number]) and np.array_equal(
            finding.map, maps[finding.number]
        )
    rows, columns = np.unravel_index(maps.reshape(len(maps), -1).argmax(axis=1), (SIDE, SIDE))
    np.testing.assert_allclose(ranking.spots, np.stack([rows + 0.5, columns + 0.5], axis=1) / SIDE)
    assert len(fitted.rank(pictures, top=99).top) == len(pictures)
    with pytest.raises(ValueError, match="top=0"):
        fitted.rank(pictures, top=0)


# --- on disk ---


@pytest.fixture
def saved(fitted, tmp_path):
    folder = tmp_path / "model"
    fitted.save(folder)
    return folder


def facts(folder) -> dict:
    return json.loads((folder / "detector.json").read_text())


def change(folder, key, value):
    """As somebody would who can work out a hash."""
    content = unsealed((folder / "detector.json").read_bytes())
    entry = content
    *path, last = key.split(".")
    for name in path:
        entry = entry[name]
    if value is KeyError:
        del entry[last]
    else:
        entry[last] = value
    (folder / "detector.json").write_bytes(sealed(content))


def replace_tensors(folder, **changes):
    """As somebody would who can work out a hash."""
    path = folder / facts(folder)["tensors"]["file"]
    tensors = {
        key: value for key, value in (load_file(path) | changes).items() if value is not None
    }
    path.unlink()
    save_file(tensors, folder / "new")
    digest = sha256_of(folder / "new")
    name = f"normal-{digest[:12]}.safetensors"
    (folder / "new").rename(folder / name)
    change(folder, "tensors", dict(file=name, sha256=digest))


def test_saved_and_loaded_to_the_bit(backbone, fitted, saved):
    again = Inspector.load(saved, backbone=backbone)
    assert np.array_equal(again.score(QUERIES), fitted.score(QUERIES)) and np.array_equal(
        again.maps(QUERIES), fitted.maps(QUERIES)
    )
    assert [again.threshold(rate) for rate in (None, 0.3)] == [
        fitted.threshold(rate) for rate in (None, 0.3)
    ]
    assert sorted(path.name for path in saved.iterdir()) == [
        "detector.json",
        facts(saved)["tensors"]["file"],
    ]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in saved.iterdir())
    content = facts(saved)
    assert (
        content["n_normal"] == 30
        and content["image_size"] == [SIDE, SIDE]
        and content["weights"]["sha256"] == backbone.weights_sha256
    )
    assert content["thresholds"] == {
        "0.01": None,
        "0.05": fitted.threshold(0.05),
        "0.1": fitted.threshold(0.1),
    }
    more = images(8, SIDE, seed=9)
    same(again.add(more), Inspector(backbone, **SETTINGS).fit(np.concatenate([NORMAL, more])))
    again.save(saved)
    assert len(list(saved.iterdir())) == 2 and facts(saved)["n_normal"] == 38
    assert len(Inspector.load(saved, backbone=backbone).features_) == 38


def test_three_lines(tmp_path):
    write(tmp_path / "normal", NORMAL[:20])
    Inspector(load_backbone(), size=SIDE, progress=False).fit(tmp_path / "normal").save(
        tmp_path / "model"
    )
    detector = pandalib.Inspector.load(tmp_path / "model")
    scores = detector.score(tmp_path / "normal")
    assert scores.shape == (20,) and detector.backbone.source == "embedded"


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "step", ["save_file", "sha256_of", "os.replace", "write_atomically", "unlink"]
)
def test_killed_while_saving(backbone, fitted, saved, monkeypatch, step):
    """The old detector is there, or the new one; the next save clears up."""
    old, larger = (
        fitted.score(QUERIES),
        Inspector(backbone, **SETTINGS).fit(NORMAL).add(images(5, SIDE, seed=4)),
    )

    def killed(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:
        if step == "unlink":  # of the old tensors
            unlink = Path.unlink
            patch.setattr(
                Path,
                "unlink",
                lambda path, **options: (
                    killed() if path.name.startswith("normal-") else unlink(path, **options)
                ),
            )
        else:
            patch.setattr(detector_files if "." not in step else os, step.split(".")[-1], killed)
        with pytest.raises(Killed):
            larger.save(saved)
    after = Inspector.load(saved, backbone=backbone)
    if len(after.features_) == 30:
        assert step != "unlink" and np.array_equal(after.score(QUERIES), old)
    else:
        assert step == "unlink"
    larger.save(saved)
    assert (
        len(list(saved.iterdir())) == 2
        and len(Inspector.load(saved, backbone=backbone).features_) == 35
    )


def test_killed_before_the_first_detector_was_whole(backbone, fitted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            detector_files, "write_atomically", lambda *arguments: (_ for _ in ()).throw(Killed)
        )
        fitted.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no detector"):
        Inspector.load(tmp_path, backbone=backbone)
    fitted.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_only_a_new_folder_or_a_detector_is_written_to(fitted, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="holds 'photo.png' and no detector"):
        fitted.save(tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        fitted.save(tmp_path / "photo.png")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize("where", [0, 9, 400, -1])
def test_a_flipped_bit_is_refused(backbone, saved, where):
    path = saved / facts(saved)["tensors"]["file"]
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"{path.name} is damaged: its SHA-256 is not the one in detector.json"
    ):
        Inspector.load(saved, backbone=backbone)


def test_a_missing_or_cut_file_is_refused(backbone, saved):
    path = saved / facts(saved)["tensors"]["file"]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        Inspector.load(saved, backbone=backbone)
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=f"{path.name} is missing, which detector.json names"
    ):
        Inspector.load(saved, backbone=backbone)
    with pytest.raises(FileNotFoundError, match="holds no detector: expected detector.json"):
        Inspector.load(saved / "nowhere")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '"pandalib detector"',
        "{}",
        '{"format": "pandalib detector", "version": NaN}',
        "\xff\x00",
        '{"format": ["pandalib detector"]}',
    ],
)
def test_json_that_is_none_or_another(backbone, saved, text):
    (saved / "detector.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="detector.json (is damaged|describes no detector)"):
        Inspector.load(saved, backbone=backbone)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", 3),
        ("truncate_after", None),
        ("weights", "embedded"),
        ("weights.sha256", "abc"),
        ("weights.source", ["x"]),
        ("weights.head_sha256", KeyError),
        ("image_size", [32]),
        ("image_size", [32, "32"]),
        ("image_size", [32, 10**9]),
        ("image_size", [True, 32]),
        ("size", 0),
        ("size", 2.5),
        ("resize", KeyError),
        ("layers", "layer1"),
        ("layers", []),
        ("layers", [1]),
        ("n_maps", -1),
        ("n_images", "4"),
        ("sigma", "4"),
        ("sigma", -1),
        ("k", True),
        ("false_alarm_rate", 1),
        ("seed", -1),
        ("n_normal", 0),
        ("n_copies", None),
        ("usual", {}),
        ("usual.place", 0),
        ("usual.image", "1"),
        ("tensors.file", "../normal-0123456789ab.safetensors"),
        ("tensors.file", "/etc/passwd"),
        ("tensors.file", "normal-0123456789ab.safetensors\n"),
        ("tensors.file", "weights.pth"),
        ("tensors.sha256", 64 * "g"),
        ("tensors", KeyError),
    ],
)
def test_json_of_a_stranger(backbone, saved, key, value):
    change(saved, key, value)
    with pytest.raises(
        ValueError, match=rf"detector.json is damaged: {key.split('.')[0]}.*expected"
    ):
        Inspector.load(saved, backbone=backbone)


@pytest.mark.parametrize("value", [2, "1", None, 0, True])
def test_another_format_version(backbone, saved, value):
    change(saved, "version", value)
    with pytest.raises(
        ValueError, match=f"format version {value!r}, this pandalib reads 1: update pandalib"
    ):
        Inspector.load(saved, backbone=backbone)


@pytest.mark.parametrize(
    "changes",
    [
        dict(features=None),
        dict(features=np.zeros((30, 5), np.float32)),
        dict(features=np.full((30, 20), np.nan, np.float32)),
        dict(kept=np.arange(22)[::-1].copy()),
        dict(kept=np.arange(22) + 20),
        dict(kept=np.arange(22, dtype=np.int32)),
        dict(kept=np.arange(22) - 1),
        dict(pyramids=np.zeros((22, 9), np.float16)),
        dict(scales=np.zeros(3)),
        dict(scales=np.ones(2)),
        dict(normal_image=np.full(22, -1.0)),
        dict(normal_place=np.full(22, np.inf)),
        dict(digests=np.zeros(3, np.uint64)),
        dict(pyramids="nan"),
    ],
)
def test_tensors_of_a_stranger(backbone, saved, changes):
    if "pyramids" in changes and isinstance(changes["pyramids"], str):
        rows = load_file(saved / facts(saved)["tensors"]["file"])["pyramids"]
        rows[3, 7] = np.nan
        changes = dict(pyramids=rows)
    replace_tensors(saved, **changes)
    with pytest.raises(
        ValueError, match="detector.json is no detector that can be used: .* Fit it again"
    ):
        Inspector.load(saved, backbone=backbone)


def test_settings_that_do_not_fit_each_other(backbone, saved):
    change(saved, "layers", ["layer1", "layer2", "layer7"])
    with pytest.raises(ValueError, match="no detector that can be used: .*no layer layer7"):
        Inspector.load(saved, backbone=backbone)
    change(saved, "layers", ["layer1", "layer2", "layer3"])
    change(saved, "n_normal", 31)
    with pytest.raises(
        ValueError, match=r"features is float32 \(30, 20\), expected float32 \(31, 20\)"
    ):
        Inspector.load(saved, backbone=backbone)


def test_another_network_is_refused(backbone, saved):
    with pytest.raises(
        ValueError,
        match="weights of SHA-256 .*, and the given network has .*: give the right file with weights=FILE",
    ):
        Inspector.load(saved, backbone=small_backbone(seed=1))
    head = small_backbone(seed=1).trainable
    with pytest.raises(ValueError, match="an adapted head of SHA-256"):
        Inspector.load(saved, backbone=backbone.with_trainable(head))
    with pytest.raises(
        ValueError, match="whose weights are no file: give the network itself with backbone="
    ):
        Inspector.load(saved)


def test_weights_of_a_file_that_moved(tmp_path):
    original = Path(pandalib.weights.verify_embedded())
    mine = shutil.copy(original, tmp_path / "mine.safetensors")
    write(tmp_path / "normal", NORMAL[:20])
    detector = Inspector(load_backbone("glyphs_resnet4", mine), size=SIDE, progress=False).fit(
        tmp_path / "normal"
    )
    detector.save(tmp_path / "model")
    expected = detector.score(QUERIES)
    assert np.array_equal(Inspector.load(tmp_path / "model").score(QUERIES), expected)
    moved = (tmp_path / "mine.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(
        FileNotFoundError,
        match="mine.safetensors, with which .*detector.json was fitted, are not there: say where they are with weights=FILE",
    ):
        Inspector.load(tmp_path / "model")
    assert np.array_equal(
        Inspector.load(tmp_path / "model", weights=moved).score(QUERIES), expected
    )
    other = tmp_path / "other.pth"
    other.write_bytes(b"not even weights, and not opened as such")
    with pytest.raises(ValueError, match="other.pth is not the file of weights with which"):
        Inspector.load(tmp_path / "model", weights=other)


# --- command line ---


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder of normal images, one of new images, a fitted detector."""
    root = tmp_path_factory.mktemp("shop")
    write(root / "normal", NORMAL[:20])
    write(root / "new", np.concatenate([NORMAL[20:23], QUERIES[:3]]))
    assert (
        main(["fit", str(root / "normal"), "--out", str(root / "model"), "--size", str(SIDE)]) == 0
    )
    return root


def test_fit_says_what_it_made(shop, tmp_path, capsys):
    arguments = [
        "fit",
        str(shop / "normal"),
        "--out",
        str(tmp_path / "m"),
        "--size",
        "32",
        "--layers",
        "layer2, layer3",
        "--false-alarm-rate",
        "0.1",
        "--n-maps",
        "15",
        "--seed",
        "3",
    ]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    detector = Inspector.load(tmp_path / "m")
    assert (
        f"20 normal images (0 unreadable)  glyphs_resnet4 up to layer4, weights {detector.backbone.weights_sha256[:12]}  threshold {detector.threshold():.4g} at a false-alarm rate of 0.1"
        in out
    )
    assert "--tier standard" in err
    assert (detector.layers, detector.n_maps, detector.seed, detector.size) == (
        ("layer2", "layer3"),
        15,
        3,
        32,
    )
    assert (
        main(arguments) == 2
        and "holds a detector already: choose another folder, --force" in capsys.readouterr().err
    )
    assert main([*arguments, "--force"]) == 0


def test_fit_adds(shop, tmp_path, capsys):
    shutil.copytree(shop / "model", tmp_path / "model")
    write(tmp_path / "more", NORMAL[18:26])
    (tmp_path / "more" / "broken.png").write_bytes(b"")
    add = ["fit", str(tmp_path / "more"), "--add-to", str(tmp_path / "model")]
    assert main(add) == 2 and "broken.png" in capsys.readouterr().err
    assert main([*add, "--skip-unreadable"]) == 0
    out, err = capsys.readouterr()
    assert (
        "26 normal images (6 added, 1 unreadable)" in out
        and "'broken.png' cannot be read as an image: it is empty" in err
        and "2 images that are copies" in err
    )
    assert (
        main([*add, "--size", "64"]) == 2
        and "--size is settled when a detector is fitted" in capsys.readouterr().err
    )
    assert (
        main(["fit", str(tmp_path / "more"), "--add-to", str(tmp_path / "none")]) == 2
        and "holds no detector" in capsys.readouterr().err
    )


def test_fit_refuses(shop, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine")
    assert (
        main(["fit", str(shop / "normal"), "--out", str(tmp_path), "--force"]) == 2
        and "holds 'mine.txt' and no detector" in capsys.readouterr().err
    )
    assert (
        main(["fit", str(shop / "new"), "--out", str(tmp_path / "m"), "--size", "32"]) == 2
        and "6 normal images: a false-alarm rate of 0.05 needs 19" in capsys.readouterr().err
    )
    monkeypatch.setenv("PANDALIB_TIER", "huge")
    assert (
        main(["fit", str(shop / "normal"), "--out", str(tmp_path / "m")]) == 2
        and "tier 'huge' is unknown" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        main(["fit", str(shop / "normal")])
    assert not (tmp_path / "m").exists()


def test_score_prints_a_ranking(shop, tmp_path, capsys):
    report, table, whole = (
        tmp_path / name for name in ("report.html", "scores.csv", "scores.json")
    )
    assert (
        main(
            [
                "score",
                str(shop / "model"),
                str(shop / "new"),
                "--report",
                str(report),
                "--csv",
                str(table),
                "--json",
                str(whole),
                "--top",
                "4",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out.splitlines()
    detector = Inspector.load(shop / "model")
    scores = detector.score(shop / "new")
    n_alarms = int((scores > detector.threshold()).sum())
    order = np.argsort(-scores, kind="stable")
    assert out[1].split() == [
        "1",
        f"{scores[order[0]] / detector.threshold():.3f}",
        "yes" if n_alarms else "no",
        f"{order[0]:03}.png",
    ]
    assert out[-2:] == [
        "... and 2 more",
        f"{n_alarms} of 6 images raise an alarm (score above {detector.threshold():.4g})",
    ]
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [row["file"] for row in rows] == [f"{number:03}.png" for number in order] and float(
        rows[2]["score"]
    ) == scores[order[2]]
    content = json.loads(whole.read_text())
    assert (
        content["n_alarms"] == n_alarms
        and content["unreadable"] == []
        and [row["score"] for row in content["images"]] == scores[order].tolist()
    )
    assert report.read_text().count('<li class="card') == 4


def test_score_goes_on_after_an_unreadable_file(shop, tmp_path, capsys):
    shutil.copytree(shop / "new", tmp_path / "new")
    (tmp_path / "new" / "broken.png").write_bytes(b"junk")
    assert (
        main(
            [
                "score",
                str(shop / "model"),
                str(tmp_path / "new"),
                "--json",
                "-",
                "--report",
                str(tmp_path / "r.html"),
            ]
        )
        == 1
    )
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert (
        content["n_images"] == 6
        and content["unreadable"][0]["file"] == "broken.png"
        and "cannot read 'broken.png' as an image: its content is none of PNG" in err
    )
    assert "1 file that could not be read" in (tmp_path / "r.html").read_text()


def test_score_at_another_rate(shop, capsys):
    assert (
        main(["score", str(shop / "model"), str(shop / "new" / "000.png"), "--rate", "0.5"]) == 0
        and "of 1 images" in capsys.readouterr().out
    )
    assert (
        main(["score", str(shop / "model"), str(shop / "new"), "--rate", "0.01"]) == 2
        and "needs at least 99 normal images; got 20" in capsys.readouterr().err
    )
