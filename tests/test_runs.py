"""One run, its record, and the command line around it."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from pandalib import DN2, PixelKNN, detectors, fisher_information, load_backbone, load_task, runs, tiers
from pandalib.__main__ import main
from pandalib.adapt import adapt
from pandalib.detectors import pixels
from pandalib.metrics import roc_auc
from pandalib.runs import METHODS, run
from pandalib.sources import glyphs
from pandalib.sources.images import read_image

KEYS = [
    "task", "method", "tier", "backbone", "weights_sha256", "seed", "n_train", "n_test", "roc_auc", "pixel_roc_auc",
    "pro", "seconds", "peak_rss_mb", "history",
]  # fmt: skip
SMALL = dict(n_train=30, n_test=5)


MOMENT = ["epoch", "loss", "roc_auc", "feature_variance", "effective_rank", "normal_distance", "anomalous_distance"]
ADAPTED = ("compactness", "early", "ses", "ewc")


@pytest.fixture
def small_fisher(tmp_path):
    network = load_backbone()
    fisher_information(network, glyphs.draw_batch(range(2), split="fisher")[0], progress=False).save(tmp_path / "f.safetensors")
    return str(tmp_path / "f.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_record(method, small_fisher):
    record = run("pictograms:phone", method, seed=3, epochs=2, fisher=small_fisher, **SMALL)
    assert list(record) == KEYS
    assert record["task"] == "pictograms:phone" and record["seed"] == 3 and record["tier"] == "embedded"
    assert (record["n_train"], record["n_test"]) == (30, 50)
    assert 0 <= record["roc_auc"] <= 1 and record["seconds"] > 0 and record["peak_rss_mb"] > 50
    if method in ("pixels", "svdd"):
        assert record["backbone"] is None and record["weights_sha256"] is None
    else:
        assert record["backbone"] == "glyphs_resnet4" and record["weights_sha256"] == load_backbone().weights_sha256
    history = record["history"]
    if method in (*ADAPTED, "svdd"):
        assert [list(moment) for moment in history] == [MOMENT] * 3 and [moment["epoch"] for moment in history] == [0, 1, 2]
        assert method == "svdd" or history[2]["loss"] < history[1]["loss"]  # one step of Adam may overshoot
        json.dumps(record, allow_nan=False)
        if method != "ses":  # which lets each image choose
            assert history[-1]["roc_auc"] == pytest.approx(record["roc_auc"], abs=1e-6)
    else:
        assert history == []


def test_methods_are_all_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert isinstance(METHODS, tuple) and len(METHODS) == 8 and all(method in text for method in METHODS)


def test_an_adapted_run_is_the_definition():
    """The history from the library's parts: kNN before and after, and the centre of the pretrained features."""
    record = run("pictograms:phone", "compactness", seed=3, epochs=1, lr=0.2, clip=0.05, **SMALL)
    task, network = load_task("pictograms:phone", seed=3, **SMALL), load_backbone()
    checkpoints = adapt(network, network.stem_features(task.train), epochs=1, lr=0.2, clip=0.05, seed=3, progress=False)
    centre = network.features(task.train).mean(axis=0)
    for moment, checkpoint in zip(record["history"], checkpoints, strict=True):
        gallery, features = checkpoint.features(task.train), checkpoint.features(task.test)
        distances = np.sort(((features[:, None] - gallery[None]) ** 2).sum(-1), axis=1)[:, :2].sum(1)
        expected = dict(
            loss=np.square(gallery - centre).mean(), roc_auc=roc_auc(task.labels, distances), feature_variance=features.var(axis=0).mean(),
            normal_distance=distances[task.labels == 0].mean(), anomalous_distance=distances[task.labels == 1].mean(),
        )  # fmt: skip
        assert {key: moment[key] for key in expected} == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("method", "work"), [("compactness", "long"), ("early", "early"), ("ses", "sample_wise"), ("ewc", "long")])
def test_each_method_has_the_work_of_its_tier(method, work, monkeypatch, small_fisher):
    pace = tiers.EMBEDDED._replace(long=5, early=3, sample_wise=4, lr=0.125, clip=0.0625, strength=7.0)
    monkeypatch.setitem(tiers.TIERS, "embedded", tiers.TIERS["embedded"]._replace(pace=pace))
    calls = []
    monkeypatch.setattr(detectors, "adapt", lambda *arguments, **settings: calls.append(settings) or adapt(*arguments, **settings))
    history = run("pictograms:phone", method, fisher=small_fisher, **SMALL)["history"]
    (settings,) = calls
    assert settings["epochs"] == getattr(pace, work) and history[-1]["epoch"] == getattr(pace, work)  # one minibatch an epoch
    assert (settings["lr"], settings["clip"]) == (0.125, 0.0625)
    penalty = settings.get("penalty")
    assert (penalty is not None and penalty.strength == 7.0 and penalty.fisher.n_samples == 2) == (method == "ewc")


def test_the_history_of_a_long_run_has_about_ten_moments_and_the_last():
    for method, epochs in (("svdd", 25), ("compactness", 25)):
        seen = [moment["epoch"] for moment in run("pictograms:phone", method, epochs=epochs, n_train=4, n_test=2)["history"]]
        assert seen == [*range(0, 25, 2), 25]


def test_options_of_adaptation_on_the_command_line(small_fisher, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(detectors, "adapt", lambda *arguments, **settings: calls.append(settings) or adapt(*arguments, **settings))
    common = ["run", "--task", "pictograms:star", "--n-train", "20", "--n-test", "3", "--json", "-", "--epochs", "1"]
    free, frozen = ["--method", "compactness"], ["--method", "ewc", "--fisher", small_fisher, "--lambda"]
    courses = []
    for options in (free, [*frozen, "0"], [*frozen, "1e9"], [*free, "--bf16"], [*free, "--lr", "0.01", "--clip", "0.2"]):
        assert main([*common, *options]) == 0
        courses.append([moment["feature_variance"] for moment in json.loads(capsys.readouterr().out)["history"]])
    assert [settings["epochs"] for settings in calls] == [1] * 5
    assert [settings["penalty"].strength for settings in calls[1:3]] == [0, 1e9]
    assert [settings["bf16"] for settings in calls] == [False, False, False, True, False]
    assert (calls[4]["lr"], calls[4]["clip"]) == (0.01, 0.2)
    assert courses[0] == courses[1] and len(courses[0]) == 2 and courses[0] != courses[3] != courses[4]


def test_fisher_images_on_the_command_line(tmp_path, capsys, monkeypatch):
    from PIL import Image

    pictures, _, _ = glyphs.draw_batch(range(6), split="fisher")
    for i, picture in enumerate(pictures):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    made, compute = [], runs.fisher_information
    monkeypatch.setattr(runs, "fisher_information", lambda *arguments, **options: made.append(compute(*arguments, **options)) or made[-1])
    options = ["--n-train", "10", "--n-test", "2", "--epochs", "1", "--json", "-", "--fisher-images", str(tmp_path)]
    for last in ([], ["--last", "layer3"]):
        assert main(["run", "--task", "pictograms:star", "--method", "ewc", *options, *last]) == 0
        json.loads(capsys.readouterr().out)
    assert [fisher.n_samples for fisher in made] == [6, 6] and ["linear probe" in fisher.recipe for fisher in made] == [False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "ewc", "--fisher", "nowhere"], "Fisher information nowhere: there is no such file"),
        (["--method", "ewc", "--fisher-images", "/no/such/place"], "/no/such/place"),
        (["--method", "ewc", "--last", "layer3"], "has no classifier, so EWC needs fisher_images=FOLDER"),
        (["--method", "ewc", "--lambda", "-1"], "strength=-1.0: expected lambda"),
        (["--method", "compactness", "--epochs", "0"], "epochs=0: expected a whole number of at least 1"),
        (["--method", "compactness", "--lr", "0"], "lr=0.0: expected a number above 0"),
        (["--method", "early", "--clip", "-2"], "clip=-2.0: expected a number above 0"),
        (["--method", "ses", "--n-train", "4"], "4 images with a held-out share of 0.1: expected at least 2 images in either part"),
        (["--method", "compactness", "--last", "layer2"], "has no stage 'layer3' to adapt"),
    ],
)
def test_errors_of_adaptation_are_one_line(options, message, capsys, monkeypatch):
    monkeypatch.setattr(runs, "upstream_fisher", lambda network: None)  # as L2: the error is elsewhere
    assert main(["run", "--task", "pictograms:star", "--n-train", "10", "--n-test", "2", *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("pandalib: ") and captured.err.count("\n") == 1 and not captured.out


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
        (["--task", "pictograms:star", "--method", "ewc", "--fisher", "a", "--fisher-images", "b", "--n-train", "9", "--n-test", "2"], "give one of them"),
        (["--task", "pictograms:star", "--method", "svdd", "--epochs", "0", "--n-train", "9", "--n-test", "2"], "epochs=0"),
        (
            ["--task", "pictograms:star", "--method", "early", "--lr", "1e30", "--clip", "1e30", "--n-train", "9", "--n-test", "2"],
            "lower lr (now 1e+30)",
        ),
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
    assert not any(isinstance(getattr(pandalib, name), types.ModuleType) for name in pandalib.__all__)  # a module of that name would hide it
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pandalib.nothing
