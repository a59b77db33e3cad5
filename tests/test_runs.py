"""One run, its record, and the command line around it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pandalib import DN2, PixelKNN, load_backbone, load_task
from pandalib.__main__ import main
from pandalib.detectors import pixels
from pandalib.metrics import roc_auc
from pandalib.runs import METHODS, run
from pandalib.sources.images import read_image

KEYS = [
    "task", "method", "tier", "backbone", "weights_sha256", "seed", "n_train", "n_test", "roc_auc", "pixel_roc_auc",
    "pro", "seconds", "peak_rss_mb", "history",
]  # fmt: skip
SMALL = dict(n_train=30, n_test=5)


@pytest.mark.parametrize("method", METHODS)
def test_record(method):
    record = run("pictograms:phone", method, seed=3, **SMALL)
    assert list(record) == KEYS
    assert record["task"] == "pictograms:phone" and record["seed"] == 3 and record["tier"] == "embedded"
    assert (record["n_train"], record["n_test"]) == (30, 50) and record["history"] == []
    assert 0 <= record["roc_auc"] <= 1 and record["seconds"] > 0 and record["peak_rss_mb"] > 50
    if method == "pixels":
        assert record["backbone"] is None and record["weights_sha256"] is None
    else:
        assert record["backbone"] == "glyphs_resnet4" and record["weights_sha256"] == load_backbone().weights_sha256


def test_the_same_run_is_the_same_result_and_the_definition():
    first, second = (run("pictograms:phone", "dn2", seed=3, **SMALL) for _ in range(2))
    assert first["roc_auc"] == second["roc_auc"]
    task, network = load_task("pictograms:phone", seed=3, **SMALL), load_backbone()
    gallery, queries = network.features(task.train).astype(np.float64), network.features(task.test).astype(np.float64)
    distances = ((queries[:, None] - gallery[None]) ** 2).sum(-1)
    assert first["roc_auc"] == pytest.approx(roc_auc(task.labels, np.sort(distances, axis=1)[:, :2].sum(1)), abs=1e-9)


def test_detectors_fit_and_score():
    task, network = load_task("pictograms:phone", **SMALL), load_backbone()
    for detector in (PixelKNN(), DN2(network), DN2(network, normalise=True), DN2(network, n_centres=5)):
        assert not [name for name in vars(detector) if name.endswith("_")]  # nothing learned before fit
        scores = detector.fit(task.train).score(task.test[:7])
        assert scores.shape == (7,) and (scores >= 0).all()
        assert np.array_equal(detector.score(task.test[3:4]), scores[3:4]) or np.allclose(detector.score(task.test[3:4]), scores[3:4], rtol=1e-4)
    assert pixels(task.train[:2]).max() <= 1
    with pytest.raises(ValueError, match="images are float32"):
        PixelKNN().fit(np.float32(task.train))


def test_command_prints_one_json_object(capsys):
    assert main(["run", "--task", "pictograms:star", "--method", "dn2", "--n-train", "20", "--n-test", "3", "--json", "-"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and list(json.loads(out)) == KEYS


def test_command_writes_a_file_or_a_line(tmp_path, capsys):
    arguments = ["run", "--task", "pictograms:star", "--method", "pixels", "--n-train", "20", "--n-test", "3"]
    assert main([*arguments, "--json", str(tmp_path / "deep" / "r.json")]) == 0
    assert list(json.loads((tmp_path / "deep" / "r.json").read_text())) == KEYS
    assert "pictograms:star  pixels  ROC-AUC 0." in capsys.readouterr().out


def test_folder_task_by_command(tmp_path, capsys):
    from PIL import Image

    rng = np.random.default_rng(0)
    for kind, brightness in (("good", 60), ("bad", 190)):
        (tmp_path / kind).mkdir()
        for number in range(12):
            picture = rng.integers(brightness - 30, brightness + 30, size=(40, 50, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / kind / f"{number}.png")
    arguments = ["run", "--task", f"folder:{tmp_path}:good", "--method", "pixels", "--size", "32", "--json", "-"]
    assert main(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["roc_auc"] == 1.0 and record["n_train"] + record["n_test"] == 24
    assert read_image(tmp_path / "good" / "0.png", 32).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "pictograms:star", "--method", "magic"], "method 'magic' is unknown: choose one of pixels, dn2"),
        (["--task", "pictograms:sta", "--method", "dn2"], "pictograms:sta is unknown: choose one of star"),
        (["--task", "folder:/no/such/place", "--method", "dn2"], "/no/such/place"),
        (["--task", "pictograms:star", "--method", "dn2", "--tier", "huge"], "tier 'huge' is unknown"),
        (["--task", "pictograms:star", "--method", "dn2", "--weights", "no.pth"], "weights no.pth: there is no such file"),
        (["--task", "pictograms:star", "--method", "dn2", "--n-train", "1"], "n_train=1"),
        (["--task", "pictograms:star", "--method", "pixels", "--json", "/proc/none/x.json"], "/proc/none"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("pandalib: ") and captured.err.count("\n") == 1 and not captured.out


def test_library_imports_lazily():
    code = "import sys, pandalib, pandalib.__main__; print(*[m for m in ('torch', 'torchvision', 'sklearn', 'faiss') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "\n" and done.returncode == 0
    import pandalib

    assert all(getattr(pandalib, name) is not None for name in pandalib.__all__) and set(pandalib.__all__) <= set(dir(pandalib))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pandalib.nothing
