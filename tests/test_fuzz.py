"""A few damaged inputs for each reader; `python bench/fuzz.py` runs thousands."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import fuzz

from pandalib import Fisher, Inspector, read_results
from pandalib.experiments.results import read_plan
from pandalib.inspection.storage import FACTS
from pandalib.io import dump_json_with_hash, load_json_with_hash, write_tensors
from pandalib.weights import read_state

INPUTS = {"fisher": 12, "models": 25, "folders": 25}  # the slower ones; else 40


@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_reader_ends_in_a_result_or_in_one_sentence(name):
    counts, faults = fuzz.run(name, INPUTS.get(name, 40), seed=0)
    assert not faults
    assert counts["sentence"] > 3 and counts["result"] + counts["sentence"] == counts.total()


@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_good_input_is_a_result(name, tmp_path):
    reader = fuzz.READERS[name]
    reader.make(tmp_path)
    keep_one = {"images": "photo.jpg", "masks": "colour.png", "weights": "weights.pth"}.get(name)
    if name == "grids":
        (tmp_path / "fisher_embedded.toml").rename(tmp_path / "grid.toml")
    for path in tmp_path.iterdir() if keep_one else ():
        if path.name != keep_one:
            path.unlink()
    assert fuzz.outcome(reader, tmp_path) == ("result", "")


def raising(error):
    def read(folder):
        raise error

    return read


FAULTS = {
    "traceback": [raising(KeyError("x")), raising(SystemExit(1)), raising(AssertionError("nan"))],
    "no sentence": [raising(ValueError("two\nlines")), raising(OSError())],
    "written": [
        lambda folder: (folder / "half").write_text("x"),
        lambda folder: (folder / "file").write_text("other"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "number"), [(k, n) for k in FAULTS for n in range(len(FAULTS[k]))]
)
def test_a_fault_is_noticed(kind, number, tmp_path):
    (tmp_path / "file").write_text("text")
    reader = fuzz.Reader(None, None, FAULTS[kind][number])
    assert fuzz.outcome(reader, tmp_path)[0] == kind


def test_the_same_seed_gives_the_same_inputs_and_another_one_others(tmp_path):
    found = []
    for seed in (0, 0, 1):
        folder = tmp_path / f"{len(found)}"
        folder.mkdir()
        fuzz.make_images(folder)
        fuzz.change_image(np.random.default_rng([seed, 3]), folder)
        found.append(fuzz.contents(folder))
    assert found[0] == found[1] != found[2]


def test_checksums_are_those_that_a_png_has():
    good = fuzz.IMAGES["colour.png"]
    assert fuzz.with_checksums(good) == good
    damaged = good[:30] + b"\0\0\0\0" + good[34:]  # in the checksum of the first chunk
    assert fuzz.with_checksums(damaged)[:33] == good[:33]


# ---------------------------------------------------------------- what was found, one by one


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    fuzz.make_model(folder)
    return folder / "model"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(k=2.5), "k is 2.5, expected a whole number"),
        (dict(n_normal=-1), "n_normal is -1"),
        (dict(usual={"image": 0.0, "place": 1.0}), "its scales are"),
        (dict(usual={"image": "1", "place": 1.0}), "its scales are"),
        (dict(image_size=[10**6, 10**6]), "pixels, expected at most"),
        (dict(image_size=["64", 64]), "pixels, expected at most"),
        (dict(usual={}), "it lacks 'image'"),
        (dict(sigma=4e6), "its sigma is 4000000.0 pixels"),
    ],
)
def test_a_detector_with_facts_that_make_no_sense_is_refused(model, tmp_path, change, said):
    folder = shutil.copytree(model, tmp_path / "model")
    facts = load_json_with_hash((folder / FACTS).read_bytes())
    (folder / FACTS).write_bytes(dump_json_with_hash(facts | change))
    with pytest.raises(ValueError, match=said):
        Inspector.load(folder, backbone=fuzz.BACKBONE)


def test_a_detector_with_nan_in_its_tensors_is_refused(model, tmp_path):
    """Its scores would be NaN, and no alarm would ever be raised."""
    cases = (
        ("features", lambda array: array * np.float32(np.nan)),
        ("bank", lambda array: array * np.float32(np.nan)),
        ("bank", lambda array: array - np.float32(1e38)),  # finite, and its square is not
        ("owners", lambda array: array + 99),
        ("groups", lambda array: array - 1),
        ("kept", lambda array: array[::-1].copy()),
        ("normal_image", lambda array: array.astype(np.int64)),
    )
    for number, (name, spoil) in enumerate(cases):
        folder = shutil.copytree(model, tmp_path / str(number))
        (path,) = folder.glob("*.safetensors")
        tensors = load_file(path)
        content = save(tensors | {name: spoil(tensors[name])})
        digest = hashlib.sha256(content).hexdigest()
        (folder / f"normal-{digest[:12]}.safetensors").write_bytes(content)
        facts = load_json_with_hash((folder / FACTS).read_bytes())
        facts["tensors"] = {"file": f"normal-{digest[:12]}.safetensors", "sha256": digest}
        (folder / FACTS).write_bytes(dump_json_with_hash(facts))
        with pytest.raises(ValueError, match="its (tensor|scales)"):
            Inspector.load(folder, backbone=fuzz.BACKBONE)


@pytest.mark.parametrize(
    ("key", "value"),
    [("runs", [{}]), ("runs", [1]), ("classes", {"pictograms": "ten"}), ("name", None)],
)
def test_a_plan_of_another_kind_is_damaged(tmp_path, key, value):
    fuzz.make_results(tmp_path)
    plan = load_json_with_hash((tmp_path / "plan.json").read_bytes())
    (tmp_path / "plan.json").write_bytes(dump_json_with_hash(plan | {key: value}))
    with pytest.raises(ValueError, match="plan.json is damaged .*: delete it and sweep again"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    "change",
    [dict(roc_auc="high"), dict(history=5), dict(history=[{}]), dict(task="pictograms:phone")],
    ids=str,
)
def test_a_result_of_another_kind_counts_as_absent(tmp_path, change):
    fuzz.make_results(tmp_path)
    assert len(read_results(tmp_path)) == 2
    path = min(tmp_path.glob("runs/*.json"))
    path.write_bytes(dump_json_with_hash(load_json_with_hash(path.read_bytes()) | change))
    assert len(read_results(tmp_path)) == 1


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_fisher_information_is_never_negative_or_nan(tmp_path, value):
    fuzz.make_fisher(tmp_path)
    path = tmp_path / "some.safetensors"
    fisher = Fisher.load(path)
    first = next(iter(fisher.values))
    fisher.values[first].view(-1)[0] = value
    fisher.save(path)
    with pytest.raises(ValueError, match="holds no Fisher information"):
        Fisher.load(path)
    facts = {name: one for name, one in vars(fisher).items() if name != "values"}
    write_tensors(path, {first: torch.ones(2)}, facts | {"weights_sha256": 3})
    with pytest.raises(ValueError, match="holds no Fisher information"):
        Fisher.load(path)


def test_nobody_is_told_how_to_run_a_strangers_code(tmp_path):
    """torch's own message says which option to change for that."""
    path = tmp_path / "weights.pth"
    torch.save({"a": Image.new("L", (2, 2))}, path)
    with pytest.raises(ValueError, match="which might run code") as caught:
        read_state(path)
    assert "weights_only" not in str(caught.value) and json.dumps(str(caught.value))
