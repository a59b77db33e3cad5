"""One run, its record, and the command line around it."""

import functools
import inspect
import json
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from pandalib import (
    DN2, KNN, SPADE, MemoryBank, OutlierExposure, PixelKNN, backbones, detectors, fisher_information, load_backbone, load_outliers, load_task, pixel_roc_auc, pro, runs, tiers,
)  # fmt: skip
from pandalib.__main__ import main
from pandalib.adapt import adapt
from pandalib.cache import Memory
from pandalib.detectors import pixels
from pandalib.grids import identity
from pandalib.metrics import roc_auc
from pandalib.runs import METHODS, run
from pandalib.sources import glyphs
from pandalib.sources.images import read_image

KEYS = [
    "task", "method", "tier", "backbone", "weights_sha256", "seed", "n_train", "n_test", "roc_auc", "pixel_roc_auc",
    "pro", "bf16", "bf16_ratio", "seconds", "peak_rss_mb", "history",
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
    record = run("pictograms:phone", method, seed=3, epochs=2, fisher=small_fisher, n_outliers=40, **SMALL)
    assert list(record) == KEYS
    assert record["task"] == "pictograms:phone" and record["seed"] == 3 and record["tier"] == "embedded"
    assert (record["n_train"], record["n_test"]) == (30, 50)
    assert 0 <= record["roc_auc"] <= 1 and record["seconds"] > 0 and record["peak_rss_mb"] > 50
    if method in ("pixels", "svdd"):
        assert record["backbone"] is None and record["weights_sha256"] is None
    else:
        assert record["backbone"] == "glyphs_resnet4" and record["weights_sha256"] == load_backbone().weights_sha256
    history = record["history"]
    assert record["pixel_roc_auc"] is None and record["pro"] is None  # there are no masks
    assert record["bf16"] is False and record["bf16_ratio"] is None
    if method in (*ADAPTED, "oe", "svdd"):
        epochs = [1, 2] if method == "oe" else [0, 1, 2]  # before the first, the linear layer of oe means nothing
        assert [list(moment) for moment in history] == [MOMENT] * len(epochs) and [moment["epoch"] for moment in history] == epochs
        assert method == "svdd" or history[-1]["loss"] < history[-2]["loss"]  # one step of Adam may overshoot
        json.dumps(record, allow_nan=False)
        if method != "ses":  # which lets each image choose
            assert history[-1]["roc_auc"] == pytest.approx(record["roc_auc"], abs=1e-6)
    else:
        assert history == []


def test_methods_are_all_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert isinstance(METHODS, tuple) and len(METHODS) == 11 and all(method in text for method in METHODS)


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
    pace = tiers.EMBEDDED._replace(long=5, early=3, sample_wise=4, lr=0.125, ewc_lr=0.25, clip=0.0625, strength=7.0)
    monkeypatch.setitem(tiers.TIERS, "embedded", tiers.TIERS["embedded"]._replace(pace=pace))
    calls = []
    monkeypatch.setattr(detectors, "adapt", lambda *arguments, **settings: calls.append(settings) or adapt(*arguments, **settings))
    history = run("pictograms:phone", method, fisher=small_fisher, **SMALL)["history"]
    (settings,) = calls
    assert settings["epochs"] == getattr(pace, work) and history[-1]["epoch"] == getattr(pace, work)  # one minibatch an epoch
    assert (settings["lr"], settings["clip"]) == (0.25 if method == "ewc" else 0.125, 0.0625)
    penalty = settings.get("penalty")
    assert (penalty is not None and penalty.strength == 7.0 and penalty.fisher.n_samples == 2) == (method == "ewc")


def test_the_history_of_a_long_run_has_about_ten_moments_and_the_last():
    for method, first in (("svdd", 0), ("compactness", 0), ("oe", 2)):
        seen = [moment["epoch"] for moment in run("pictograms:phone", method, epochs=25, n_train=4, n_test=2, n_outliers=4)["history"]]
        assert seen == [*range(first, 25, 2), 25]


def test_an_exposed_run_is_the_definition(monkeypatch):
    """The pace of the tier, and the history from the library's parts: its own loss and score, the distances of kNN."""
    pace = tiers.EMBEDDED._replace(exposure=3, exposure_lr=0.03, exposure_clip=0.5)
    monkeypatch.setitem(tiers.TIERS, "embedded", tiers.TIERS["embedded"]._replace(pace=pace))
    record = run("pictograms:phone", "oe", seed=3, level="easy", n_outliers=50, **SMALL)
    task, network = load_task("pictograms:phone", seed=3, level="easy", **SMALL), load_backbone()
    seen = []

    def look(done):
        features, gallery = (done.detector.backbone_.features(images) for images in (task.test, task.train))
        distances = np.sort(((features[:, None] - gallery[None]) ** 2).sum(-1), axis=1)[:, :2].sum(1)
        seen.append(
            dict(
                epoch=done.epoch, loss=done.loss, roc_auc=roc_auc(task.labels, done.detector.score(task.test)), feature_variance=features.var(axis=0).mean(),
                normal_distance=distances[task.labels == 0].mean(), anomalous_distance=distances[task.labels == 1].mean(),
            )
        )  # fmt: skip

    outliers = load_outliers("near", 50, seed=3, level="easy")
    OutlierExposure(network, outliers, epochs=3, lr=0.03, clip=0.5, seed=3, on_epoch=look, progress=False).fit(task.train)
    assert [moment["epoch"] for moment in record["history"]] == [1, 2, 3]
    for moment, expected in zip(record["history"], seen, strict=True):
        assert {key: moment[key] for key in expected} == pytest.approx(expected, rel=1e-3)
    assert record["roc_auc"] == pytest.approx(seen[-1]["roc_auc"], abs=1e-9)


@pytest.fixture
def picture_folder(tmp_path):
    """A task of two classes with 12 images of 40 x 50 pixels each, and a folder of other images."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for kind, brightness, n in (("task/good", 60, 12), ("task/bad", 190, 12), ("others/one", 120, 5), ("others/two", 220, 4)):
        (tmp_path / kind).mkdir(parents=True)
        for number in range(n):
            picture = rng.integers(brightness - 30, brightness + 30, size=(40, 50, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / kind / f"{number}.png")
    return tmp_path


def test_outliers_from_a_folder(picture_folder, capsys, monkeypatch):
    made, load = [], runs.outlier_folder
    monkeypatch.setattr(runs, "outlier_folder", lambda *arguments, **options: made.append(load(*arguments, **options)) or made[-1])
    common = ["run", "--method", "oe", "--epochs", "2", "--json", "-", "--outliers", str(picture_folder / "others")]
    for task, options, n, shape in (
        (f"folder:{picture_folder}/task:good", ["--size", "32"], 9, (3, 32, 32)),
        (f"folder:{picture_folder}/task:good", ["--n-outliers", "4"], 4, (3, 64, 64)),
        ("pictograms:star", ["--n-train", "10", "--n-test", "2"], 9, (3, 64, 64)),
        ("surfaces:weave", ["--n-train", "4", "--n-test", "1", "--size", "96"], 9, (3, 96, 96)),
    ):
        assert main([*common, "--task", task, *options]) == 0
        record = json.loads(capsys.readouterr().out)
        assert 0 <= record["roc_auc"] <= 1 and len(record["history"]) == 2 and record["pixel_roc_auc"] is None
        assert len(made[-1]) == n and made[-1][0].shape == shape
    assert made[0].resize == 32 and set(made[1].files) < set(made[0].files)


def test_outliers_are_read_with_the_geometry_of_the_task(picture_folder):
    """The paper resizes to 256 and crops 224; outliers with another border could be told apart by it."""
    task = load_task(f"folder:{picture_folder}/task:good", size=224, resize=256)
    images = runs.outliers_of(task, str(picture_folder / "others"), resize=256)
    assert np.array_equal(images[0], read_image(picture_folder / "others" / "one" / "0.png", 224, 256))


@pytest.mark.parametrize(
    ("task", "outliers", "message"),
    [
        ("pictograms:star", "nearer", "outliers 'nearer' are unknown: choose one of near, middle, far, noise (for pictograms), a folder of images, or a data set"),
        ("pictograms:star", "{folder}/task/good/0.png", "is a file: expected the folder that holds the images"),
        ("surfaces:weave", None, "no outliers were given: surfaces:weave needs outliers=FOLDER, a folder of images that are not normal"),
        ("surfaces:weave", "near", "outliers 'near' are drawn for pictograms only: surfaces:weave needs outliers=FOLDER"),
        ("folder:{folder}/task:good", None, "no outliers were given: folder:{folder}/task:good needs outliers=FOLDER"),
        ("folder:{folder}/task:good", "noise", "outliers 'noise' are drawn for pictograms only"),
        ("folder:{folder}/task:good", "{folder}/task/bad", "outlier '{folder}/task/bad/0.png' is the same as test image '{folder}/task/bad/0.png' (bad): take it out"),
        ("folder:{folder}/task:good", "{folder}/task", "is the same as test image"),
        ("pictograms:star", "{folder}/others --n-outliers 0", "n=0 outliers: expected at least 1"),
    ],
)
def test_outliers_that_cannot_be(task, outliers, message, picture_folder, capsys):
    here = {"folder": picture_folder}
    options = [] if outliers is None else ["--outliers", *outliers.format(**here).split()]
    sizes = ["--n-train", "4", "--n-test", "1"] if not task.startswith("folder") else ["--size", "32"]
    assert main(["run", "--task", task.format(**here), "--method", "oe", *sizes, *options]) == 2
    captured = capsys.readouterr()
    assert message.format(**here) in captured.err and captured.err.startswith("pandalib: ") and captured.err.count("\n") == 1 and not captured.out


def test_a_copy_of_a_test_image_under_another_name_is_no_outlier(picture_folder, capsys):
    copied = picture_folder / "others" / "one" / "holiday.png"
    copied.write_bytes((picture_folder / "task" / "bad" / "7.png").read_bytes())
    assert main(["run", "--task", f"folder:{picture_folder}/task:good", "--method", "oe", "--outliers", str(picture_folder / "others"), "--size", "32"]) == 2
    assert f"outlier '{copied}' is the same as test image '{picture_folder}/task/bad/7.png' (bad)" in capsys.readouterr().err


SURFACE = dict(n_train=6, n_test=1, size=64)


@pytest.mark.parametrize("method", ["spade", "bank"])
def test_a_run_with_masks_has_pixel_figures(method):
    record = run("surfaces:weave", method, seed=1, n_images=3, sigma=2.0, **SURFACE)
    task, network = load_task("surfaces:weave", seed=1, **SURFACE), load_backbone()
    detector = SPADE(network, n_images=3, sigma=2.0) if method == "spade" else MemoryBank(network, sigma=2.0, seed=1, progress=False)
    maps = detector.fit(task.train).maps(task.test)
    assert list(record) == KEYS and record["history"] == []
    assert record["roc_auc"] == pytest.approx(roc_auc(task.labels, maps.max(axis=(1, 2))), abs=1e-6)
    assert record["pixel_roc_auc"] == pytest.approx(pixel_roc_auc(task.masks, maps), abs=1e-4)
    assert record["pro"] == pytest.approx(pro(task.masks, maps), abs=1e-3)
    assert record["pixel_roc_auc"] > 0.6
    json.dumps(record, allow_nan=False)


def test_masks_without_an_anomalous_pixel_have_no_pixel_figures(monkeypatch):
    def blank(*arguments, **options):
        task = load_task(*arguments, **options)
        task.masks[:] = False
        return task

    monkeypatch.setattr(runs, "load_task", blank)
    record = run("surfaces:weave", "spade", **SURFACE)
    assert record["pixel_roc_auc"] is None and record["pro"] is None and 0 <= record["roc_auc"] <= 1


def test_options_of_segmentation_on_the_command_line(capsys):
    common = ["run", "--task", "surfaces:weave", "--n-train", "6", "--n-test", "1", "--size", "64", "--json", "-", "--method"]
    figures = []
    for options in ("spade", "spade --n-images 1", "spade --kappa 3", "spade --sigma 1", "spade --balanced", "spade --last layer2", "spade --last layer1", "bank", "bank --sigma 1"):
        assert main([*common, *options.split()]) == 0
        figures.append(json.loads(capsys.readouterr().out)["pro"])
    assert len(set(figures)) == len(figures) and all(0 < figure <= 1 for figure in figures)


def test_the_cache_is_that_of_dn2(tmp_path, monkeypatch):
    """Outside the embedded tier the features of normal images stay on disk for the next run."""
    monkeypatch.setenv("PANDALIB_CACHE", str(tmp_path))
    monkeypatch.setitem(tiers.TIERS, "standard", tiers.TIERS["standard"]._replace(backbone="glyphs_resnet4", weights="embedded"))
    task = "surfaces:weave"
    first, second, embedded = (run(task, "spade", tier=tier, **SURFACE) for tier in ("standard", "standard", "embedded"))
    assert len(list(tmp_path.glob("*.features"))) == 1
    assert first["pro"] == second["pro"] == pytest.approx(embedded["pro"], abs=1e-6)


def test_options_of_adaptation_on_the_command_line(small_fisher, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(detectors, "adapt", lambda *arguments, **settings: calls.append(settings) or adapt(*arguments, **settings))
    common = ["run", "--task", "pictograms:star", "--n-train", "20", "--n-test", "3", "--json", "-", "--epochs", "1"]
    free, frozen = ["--method", "compactness"], ["--method", "ewc", "--lr", str(tiers.EMBEDDED.lr), "--fisher", small_fisher, "--lambda"]
    courses = []
    for options in (free, [*frozen, "0"], [*frozen, "1e9"], [*free, "--bf16", "on"], [*free, "--lr", "0.01", "--clip", "0.2"]):
        assert main([*common, *options]) == 0
        courses.append([moment["feature_variance"] for moment in json.loads(capsys.readouterr().out)["history"]])
    assert [settings["epochs"] for settings in calls] == [1] * 5
    assert [settings["penalty"].strength for settings in calls[1:3]] == [0, 1e9]
    assert [settings["bf16"] for settings in calls] == [False, False, False, True, False]
    assert (calls[4]["lr"], calls[4]["clip"]) == (0.01, 0.2)
    assert courses[0] == courses[1] and len(courses[0]) == 2 and courses[0] != courses[3] != courses[4]


@pytest.mark.parametrize(("method", "batch"), [("compactness", 20), ("ses", 18), ("oe", 40)])
def test_bfloat16_on_the_command_line(method, batch, monkeypatch, capsys, tmp_path):
    trials, formats = [], []
    head_features = backbones.Backbone.head_features

    def trial(head, example, *, device):
        trials.append(len(example))
        return found

    def spied(network, stem, *, bf16=False):
        formats.append(bf16)
        return head_features(network, stem)

    monkeypatch.setattr("pandalib.adapt.bfloat16_pays", trial)
    monkeypatch.setattr(backbones.Backbone, "head_features", spied)
    command = ["run", "--task", "pictograms:star", "--method", method, "--epochs", "1"]
    command += ["--n-train", "20", "--n-test", "1", "--n-outliers", "32"]
    command += ["--json", str(tmp_path / "record.json")]
    for choice, found, bf16, said in (
        ([], None, False, []),
        (["--bf16", "off"], None, False, []),
        (["--bf16", "on"], None, True, ["bfloat16"]),
        (["--bf16", "auto"], (True, 1.84), True, ["bfloat16 (1.8 times as fast as float32 here)"]),
        (["--bf16"], (False, 0.13), False, ["float32 (bfloat16 would be 0.13 times as fast here)"]),
    ):
        trials.clear(), formats.clear()
        assert main([*command, *choice]) == 0
        words = [f"precision: {one}" for one in said]
        assert capsys.readouterr().out.splitlines()[1:] == words
        assert trials == ([batch] if found else [])
        # In the history and the scores; before the training float32 gives the centre, or its size.
        assert set(formats[1:]) == {bf16} and len(formats) > 3
        record = json.loads((tmp_path / "record.json").read_text())
        assert (record["bf16"], record["bf16_ratio"]) == (bf16, found[1] if found else None)


def test_another_format_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--task", "pictograms:star", "--method", "early", "--bf16", "yes"])
    assert "choose from" in capsys.readouterr().err


def test_the_name_of_a_run_in_a_sweep_depends_on_no_trial():
    settings = dict(task="pictograms:star", method="early", tier="embedded", seed=0)
    assert identity(settings | dict(bf16=False)) == identity(settings)
    assert identity(settings | dict(bf16=True)) != identity(settings)
    everything = set(inspect.signature(run).parameters)
    assert "bf16" in everything and "bf16_ratio" not in everything  # what `identity` is made of


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
        (["--method", "oe", "--epochs", "0", "--n-outliers", "4"], "epochs=0: expected a whole number of at least 1"),
        (["--method", "oe", "--lr", "1e30", "--clip", "1e30", "--n-outliers", "4"], "lower lr (now 1e+30)"),
        (["--method", "oe", "--n-outliers", "0"], "n=0 outliers: expected at least 1"),
        (["--method", "spade", "--n-images", "0"], "n_images=0: expected a whole number of at least 1"),
        (["--method", "spade", "--kappa", "0"], "kappa=0: expected a whole number of at least 1"),
        (["--method", "spade", "--sigma", "-1"], "sigma=-1.0: expected the width of the blur"),
        (["--method", "spade", "--last", "conv"], "method 'spade' compares layer1, layer2, layer3, and glyphs_resnet4 up to conv has none of them"),
        (["--method", "bank", "--last", "layer1"], "method 'bank' compares layer2, layer3, and glyphs_resnet4 up to layer1 has none of them"),
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


def test_options_of_ablations_are_those_of_the_detectors():
    """k, length, k-means and blocks: the scores of the library's parts."""
    task, network = load_task("pictograms:phone", seed=3, **SMALL), load_backbone()
    for options in (dict(k=5), dict(normalise=True), dict(n_centres=6)):
        expected = roc_auc(task.labels, DN2(network, seed=3, **options).fit(task.train).score(task.test))
        assert run("pictograms:phone", "dn2", seed=3, **options, **SMALL)["roc_auc"] == pytest.approx(expected, abs=1e-9)
    assert run("pictograms:phone", "pixels", seed=3, k=4, **SMALL)["roc_auc"] == roc_auc(task.labels, PixelKNN(4).fit(task.train).score(task.test))
    for stage in ("layer2", "layer4"):
        network = load_backbone(adapt_from=stage)
        checkpoints = adapt(network, network.stem_features(task.train), epochs=1, lr=0.25, clip=0.1, seed=3, progress=False)
        scores = KNN(3).fit(checkpoints[-1].features(task.train)).score(checkpoints[-1].features(task.test))
        record = run("pictograms:phone", "early", seed=3, epochs=1, adapt_from=stage, k=3, checkpoints=1, **SMALL)
        assert record["roc_auc"] == pytest.approx(roc_auc(task.labels, scores), abs=1e-6) == pytest.approx(record["history"][-1]["roc_auc"], abs=1e-6)


def test_the_biased_recipe_of_the_fisher_information():
    network, images = load_backbone(), glyphs.draw_batch(range(64), split="fisher")[0]
    fair = runs.fisher_of(load_backbone("resnet18", "random"), images[:2])
    assert "squares per sample" in fair.recipe
    biased = runs.fisher_of(load_backbone("resnet18", "random"), images[:4], recipe="batch-mean")
    assert "squares of the mean gradient of batches of 32" in biased.recipe
    expected = fisher_information(network, images, batch_size=32, progress=False)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "upstream_fisher", lambda backbone, **options: seen.append(options) or fisher_information(backbone, images, progress=False, **options))
        found = runs.fisher_of(network, None, recipe="batch-mean")
    assert seen == [dict(batch_size=32)] and all(torch.equal(found.values[name], expected.values[name]) for name in expected.values)


@pytest.mark.parametrize("method", ["early", "ses", "oe", "svdd"])
def test_less_history_changes_no_score(method):
    common = dict(seed=3, epochs=4, n_outliers=20, n_train=20, n_test=3)
    whole, ends, none = (run("pictograms:phone", method, checkpoints=number, **common) for number in (10, 1, 0))
    assert whole["roc_auc"] == ends["roc_auc"] == none["roc_auc"] and none["history"] == []
    first = [] if method == "oe" else [0]
    assert [moment["epoch"] for moment in whole["history"]] == [*first, 1, 2, 3, 4] and [moment["epoch"] for moment in ends["history"]] == [*first, 4]
    assert ends["history"][-1] == whole["history"][-1]


def test_a_memory_changes_no_number_and_saves_the_work():
    memory, drawn = Memory(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "load_task", functools.wraps(load_task)(lambda *arguments, **options: drawn.append(arguments) or load_task(*arguments, **options)))
        for method in ("dn2", "oe"):
            options = dict(seed=3, n_outliers=20, checkpoints=1, **({} if method == "dn2" else dict(epochs=1)), n_train=10, n_test=2)
            plain, first, second = (run("pictograms:phone", method, memory=kept, **options) for kept in (None, memory, memory))
            assert plain["roc_auc"] == first["roc_auc"] == second["roc_auc"] and plain["history"] == first["history"] == second["history"]
        options = dict(seed=3, n_train=6, n_test=2, size=64)
        for balanced in (False, True):
            plain, first, second = (run("surfaces:weave", "spade", memory=kept, balanced=balanced, **options) for kept in (None, memory, memory))
            assert all(plain[key] == first[key] == second[key] for key in ("roc_auc", "pixel_roc_auc", "pro"))
    assert len(drawn) == 6  # once for each run without a memory, once with it for each task
    forgetful = Memory(limit_mb=1e-5, n_results=1)
    calls = []
    for number in (1, 1, 2, 1):
        assert forgetful.recall(lambda n: calls.append(n) or 10 * n, number) == 10 * number
        assert forgetful.get(str(number), (2, 2), iter([np.full((1, 2), number)] * 2)).tolist() == [[number] * 2] * 2
    assert calls == [1, 2, 1] and len(forgetful._arrays) == len(forgetful._results) == 1


def test_outliers_from_a_data_set(monkeypatch):
    """Training images of all its classes; never of the data set that is tested."""
    def tiny(spec, **options):
        label = "abc".index(spec[-1])
        images = np.random.default_rng(label).integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
        return types.SimpleNamespace(train=images[: options["n_train"]])

    monkeypatch.setattr(runs, "load_task", tiny)
    monkeypatch.setattr(runs, "sibling_tasks", lambda name: [f"{name}:{kind}" for kind in "abc"])
    data = types.SimpleNamespace(name="cifar10:bird", train=np.zeros((2, 3, 32, 32), np.uint8), test=np.zeros((2, 3, 32, 32), np.uint8), files=None, kinds=("a", "b"))
    whole, some = runs.outliers_of(data, "cifar100"), runs.outliers_of(data, "cifar100", 6)
    assert len(whole) == 21 and len(some) == 6 and whole[:].shape == (21, 3, 32, 32)
    assert np.array_equal(whole[8], tiny("cifar100:b", n_train=None).train[1])
    first_two = np.concatenate([tiny(f"cifar100:{kind}", n_train=2).train for kind in "abc"])
    assert sorted(map(bytes, some[:])) == sorted(map(bytes, first_two))  # as many of each class
    with pytest.raises(ValueError, match="outliers 'cifar10' for cifar10:bird: they are of the same data set"):
        runs.outliers_of(data, "cifar10")
    data.test[1] = whole[4]
    with pytest.raises(ValueError, match="outlier 'number 4' is the same as test image number 1 .b."):
        runs.outliers_of(data, "cifar100")


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
        (["--task", "pictograms:star", "--method", "dn2", "--n-train", "9", "--n-test", "2", "--k", "10"], "k = 10 neighbours were asked for, but the gallery holds 9"),
        (["--task", "pictograms:star", "--method", "dn2", "--n-train", "9", "--n-test", "2", "--checkpoints", "-1"], "checkpoints=-1: expected"),
        (["--task", "pictograms:star", "--method", "ewc", "--n-train", "9", "--n-test", "2", "--fisher-recipe", "mean"], "fisher_recipe='mean' is unknown: choose one of per-sample, batch-mean"),
        (
            ["--task", "pictograms:star", "--method", "ewc", "--n-train", "9", "--n-test", "2", "--fisher-recipe", "batch-mean", "--fisher", "a"],
            "a file was made by a recipe of its own",
        ),
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
    assert message in captured.err and captured.err.startswith("pandalib: ") and captured.err.count("\n") == 1
    assert bool(captured.out) == ("--json" in arguments)  # where it cannot be written, the result is printed at least


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the parent's memory does not count")
def test_peak_memory_is_this_process_alone():
    """Its parent has held much more when it starts it."""
    source = f"import sys\n{inspect.getsource(runs.peak_rss_mb)}\n"  # without torch, which takes half a gigabyte by itself
    code = source + "before = peak_rss_mb(); held = bytearray(b'1') * (100 * 2**20); print(before, peak_rss_mb())"
    held = bytearray(b"1") * (500 * 2**20)
    before, after = map(float, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert 2 < before < 100 and 95 < after - before < 110 and len(held) > 0


def test_library_imports_lazily():
    code = "import sys, pandalib, pandalib.__main__; print(*[m for m in ('torch', 'torchvision', 'sklearn', 'faiss') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "\n" and done.returncode == 0
    import pandalib

    assert all(getattr(pandalib, name) is not None for name in pandalib.__all__) and set(pandalib.__all__) <= set(dir(pandalib))
    assert not any(isinstance(getattr(pandalib, name), types.ModuleType) for name in pandalib.__all__)  # a module of that name would hide it
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pandalib.nothing
