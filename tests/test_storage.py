"""A saved detector comes back to the bit, or is refused; nothing is half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save as as_safetensors
from small import images, small_backbone

import pandalib
from pandalib import Inspector, load_backbone
from pandalib.datasets.images import Geometry
from pandalib.inspection import storage
from pandalib.io import dump_json_with_hash, load_json_with_hash, sha256_of
from pandalib.weights import verify_embedded

SIDE = 32
NORMAL, QUERIES = images(30, SIDE), images(6, SIDE, seed=1)
SETTINGS = dict(n_maps=22, n_images=4, false_alarm_rate=0.1, progress=False)
OLD = Path(__file__).parent / "data" / "detector"  # written by the version before this format's


@pytest.fixture(scope="module", params=["bank", "spade"])
def fitted(backbone, request):
    return Inspector(backbone, method=request.param, **SETTINGS).fit(NORMAL)


@pytest.fixture(scope="module")
def larger(backbone):
    return Inspector(backbone, **SETTINGS).fit(np.concatenate([NORMAL, images(5, SIDE, seed=4)]))


@pytest.fixture
def saved(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    return tmp_path / "model"


def facts(folder) -> dict:
    return load_json_with_hash((folder / "detector.json").read_bytes())


def change(folder, key, value):
    """With the right hash, as a forger would."""
    content = entry = facts(folder)
    *path, last = key.split(".")
    for name in path:
        entry = entry[name]
    if value is KeyError:
        del entry[last]
    else:
        entry[last] = value
    (folder / "detector.json").write_bytes(dump_json_with_hash(content))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_saved_and_loaded_to_the_bit(backbone, fitted, saved):
    again = Inspector.load(saved, backbone=backbone)
    assert np.array_equal(again.score(QUERIES), fitted.score(QUERIES))
    assert np.array_equal(again.maps(QUERIES), fitted.maps(QUERIES))
    for rate in (None, 0.3):
        assert again.threshold(rate) == fitted.threshold(rate)
    for name in ("geometry_", "names_", "sizes_", "image_size_", "layers_", "n_copies_", "scales_"):
        assert getattr(again, name) == getattr(fitted, name)
    content = facts(saved)
    assert names(saved) == ["detector.json", content["tensors"]["file"]]
    assert content["n_normal"] == 30 and content["threshold"] == fitted.threshold()
    assert content["versions"]["numpy"] == np.__version__
    more = images(8, SIDE, seed=9)
    again.add(more)
    settings = SETTINGS | {"method": fitted.method}
    expected = Inspector(backbone, **settings).fit(np.concatenate([NORMAL, more]))
    np.testing.assert_allclose(again.score(QUERIES), expected.score(QUERIES), rtol=2e-3)
    again.save(saved)
    assert len(names(saved)) == 2 and facts(saved)["n_normal"] == 38
    assert len(Inspector.load(saved, backbone=backbone).features_) == 38


def test_a_detector_of_an_older_version_gives_the_scores_that_it_gave():
    detector = Inspector.load(OLD, device="cpu")
    expected = [2.619608329473889, 0.9015457949206276, 1.0385977975300136, 0.6714153260301506]
    np.testing.assert_allclose(detector.score(QUERIES[:4]), expected, rtol=1e-4)
    assert detector.threshold() == 1.1329395673480238
    assert detector.layers_ == ["layer2", "layer3"] and detector.n_maps == 9
    assert detector.method == "spade" and detector.geometry_ == Geometry(SIDE, SIDE, "crop")
    assert len(detector.add(NORMAL).features_) == 30  # its 12 images were the first of these


# --- interrupted ---


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_while_saving(backbone, fitted, larger, saved, monkeypatch, step, error):
    """Before the tensors, before the JSON: the old detector is there, and nothing beside it."""
    steps = iter(range(9))
    write = storage.write_atomically

    def interrupted(path, content):
        if next(steps) == step:
            raise error
        write(path, content)

    before = names(saved)
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(storage, "write_atomically", interrupted)
        larger.save(saved)
    assert names(saved) == before
    again = Inspector.load(saved, backbone=backbone)
    assert np.array_equal(again.score(QUERIES), fitted.score(QUERIES))
    steps = iter(range(9))
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(storage, "write_atomically", interrupted)
        larger.save(saved.parent / "new")
    assert not (saved.parent / "new").exists() or not names(saved.parent / "new")


def test_what_a_kill_has_left_is_cleared_away(backbone, fitted, larger, saved, monkeypatch):
    """The new tensors, and a temporary file, beside the old detector or beside nothing."""
    monkeypatch.setattr(storage, "_remove_leftovers", lambda folder: None)
    larger.save(saved)
    (saved / ".detector.json.0123abcd.part").write_bytes(b"{")
    shutil.copytree(saved, saved.parent / "first")
    (saved.parent / "first" / "detector.json").unlink()
    assert len(Inspector.load(saved, backbone=backbone).features_) == 35
    monkeypatch.undo()
    for folder in (saved, saved.parent / "first"):
        assert len(names(folder)) >= 3
        fitted.save(folder)
        assert names(folder) == ["detector.json", facts(folder)["tensors"]["file"]]
        assert len(Inspector.load(folder, backbone=backbone).features_) == 30


def test_only_a_new_folder_or_a_detector_is_written_to(fitted, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="holds 'photo.png' and no detector"):
        fitted.save(tmp_path)
    with pytest.raises(OSError, match="photo.png"):
        fitted.save(tmp_path / "photo.png")
    assert names(tmp_path) == ["photo.png"]


# --- damaged or forged ---


@pytest.mark.parametrize("where", [0, 9, 400, -1])
def test_a_flipped_bit_is_refused(backbone, saved, where):
    for name in (facts(saved)["tensors"]["file"], "detector.json"):
        path = saved / name
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[where if abs(where) < len(content) else 20] ^= 1
        if name == "detector.json" and where == -1:
            flipped = flipped[: len(flipped) // 2]
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            Inspector.load(saved, backbone=backbone)
        path.write_bytes(content)
    Inspector.load(saved, backbone=backbone)


def test_a_missing_file_is_named(backbone, saved):
    path = saved / facts(saved)["tensors"]["file"]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path.name} is missing, which detector.json"):
        Inspector.load(saved, backbone=backbone)
    with pytest.raises(FileNotFoundError, match="holds no detector: expected detector.json"):
        Inspector.load(saved / "nowhere")


@pytest.mark.parametrize("text", [b"", b"[]", b"[" * 100_000, b"{}", b"\xff\x00"])
def test_json_that_is_none_or_without_its_hash(saved, text):
    (saved / "detector.json").write_bytes(text)
    with pytest.raises(ValueError, match="detector.json is damaged"):
        Inspector.load(saved)


@pytest.mark.parametrize(("key", "value"), [("version", 2), ("version", None), ("format", "other")])
def test_another_format_is_refused(saved, key, value):
    change(saved, key, value)
    with pytest.raises(ValueError, match=f"detector.json holds .*{value}.*: expected .*'version'"):
        Inspector.load(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("last", None),
        ("weights", "embedded"),
        ("image_size", [48, 48]),
        ("geometry.height", 2.5),
        ("geometry", KeyError),
        ("method", "magic"),
        ("names", ["one.png"]),
        ("layers", ["layer2", "layer7"]),
        ("n_images", "4"),
        ("n_normal", 31),
        ("usual", {}),
        ("tensors.file", "../normal-0123456789ab.safetensors"),
        ("tensors.file", "/etc/passwd"),
        ("tensors", KeyError),
    ],
)
def test_forged_entries(backbone, saved, key, value):
    change(saved, key, value)
    with pytest.raises(ValueError, match="detector.json is not a usable detector"):
        Inspector.load(saved, backbone=backbone)


def test_forged_tensors(backbone, saved):
    path = saved / facts(saved)["tensors"]["file"]
    tensors = load_file(path)
    wrong = dict(features=np.full((30, 20), np.nan, np.float32), pyramids=np.zeros((22, 9)))
    few = {name: array for name, array in tensors.items() if name != "pyramids"}
    if "bank" in tensors:
        wrong["bank"] = np.full_like(tensors["bank"], np.inf)
    for content in (few, *(tensors | {name: array} for name, array in wrong.items()), None):
        path.write_bytes(b"none" if content is None else as_safetensors(content))
        change(saved, "tensors.sha256", sha256_of(path))
        with pytest.raises(ValueError, match="detector.json is not a usable detector"):
            Inspector.load(saved, backbone=backbone)


# --- the network ---


def test_another_network_is_refused(backbone, saved):
    with pytest.raises(ValueError, match="the weights of the network .*weights= .*backbone="):
        Inspector.load(saved, backbone=small_backbone(seed=1))
    other = backbone.with_trainable(small_backbone(seed=1).trainable)
    with pytest.raises(ValueError, match="the trainable part of the network"):
        Inspector.load(saved, backbone=other)
    with pytest.raises(ValueError, match="built by hand, expected as backbone="):
        Inspector.load(saved)


def test_weights_of_a_file_that_moved(tmp_path):
    mine = Path(shutil.copy(verify_embedded(), tmp_path / "mine.safetensors"))
    network = load_backbone("glyphs_resnet4", mine, truncate_after="layer3", adapt_from="layer2")
    detector = pandalib.Inspector(network, progress=False).fit(NORMAL[:20])
    detector.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "detector.json").read_text())["last"] == "layer3"
    expected = detector.score(QUERIES)
    assert np.array_equal(Inspector.load(tmp_path / "model").score(QUERIES), expected)
    moved = mine.rename(tmp_path / "moved.safetensors")
    with pytest.raises(FileNotFoundError, match="mine.safetensors .*--weights FILE"):
        Inspector.load(tmp_path / "model")
    again = Inspector.load(tmp_path / "model", weights=moved)
    assert np.array_equal(again.score(QUERIES), expected)
    other = tmp_path / "other.pth"
    other.write_bytes(b"not even weights, and not opened as such")
    with pytest.raises(ValueError, match="other.pth holds other weights than it was fitted with"):
        Inspector.load(tmp_path / "model", weights=other)
