"""One run, its record and its history."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from small import images

import pandalib
from pandalib import (
    DN2,
    KNN,
    SPADE,
    OutlierExposure,
    PatchCore,
    PixelKNN,
    load_backbone,
    load_outliers,
    load_task,
    pixel_roc_auc,
    pro,
    roc_auc,
)
from pandalib.cache import Memory
from pandalib.datasets.images import Geometry
from pandalib.experiments import run as running
from pandalib.experiments.config import METHODS, TIERS, make_options
from pandalib.experiments.run import run
from pandalib.methods.panda import fit_compactness

KEYS = (
    "task method tier backbone weights_sha256 seed n_train n_test roc_auc pixel_roc_auc pro "
    "seconds peak_rss_mb bf16 history"
).split()
MEASURED = (
    "epoch loss roc_auc feature_variance effective_rank normal_distance anomalous_distance".split()
)
SMALL = dict(seed=3, n_train=30, n_test=5)
SURFACE = dict(seed=1, n_train=6, n_test=1, size=64)
ADAPTED = ("compactness", "early", "ses", "ewc")
TRAINED = (*ADAPTED, "mean_shifted", "oe", "svdd")


@pytest.fixture
def fisher(tmp_path):
    """The Fisher information of two images, in a file."""
    network = load_backbone()
    drawn = load_task("pictograms:star", n_train=2, n_test=1).train
    path = tmp_path / "fisher.safetensors"
    pandalib.fisher_information(network, drawn, progress=False).save(path)
    return str(path)


@pytest.mark.parametrize("method", METHODS)
def test_a_record_is_whole(method, fisher):
    options = dict(epochs=2) if method in TRAINED else {}
    options |= dict(fisher=fisher) if method == "ewc" else {}
    options |= dict(n_outliers=40) if method == "oe" else {}
    record = run("pictograms:phone", method, progress=False, **options, **SMALL)
    json.dumps(record, allow_nan=False)
    assert list(record) == KEYS
    assert (record["task"], record["method"], record["tier"]) == (
        "pictograms:phone",
        method,
        "embedded",
    )
    assert (record["seed"], record["n_train"], record["n_test"]) == (3, 30, 50)
    assert 0 <= record["roc_auc"] <= 1 and record["seconds"] > 0 and record["peak_rss_mb"] > 50
    assert record["pixel_roc_auc"] is None and record["pro"] is None  # there are no masks
    network = load_backbone()
    expected = (
        (None, None) if method in ("pixels", "svdd") else (network.name, network.weights_sha256)
    )
    assert (record["backbone"], record["weights_sha256"]) == expected
    assert (record["bf16"] == dict(used=False, ratio=None)) == (method in (*ADAPTED, "oe"))
    history = record["history"]
    if method not in TRAINED:
        assert history == []
        return
    # Before its first epoch the linear layer of outlier exposure means nothing.
    epochs = [1, 2] if method == "oe" else [0, 1, 2]
    assert [measured["epoch"] for measured in history] == epochs
    assert all(list(measured) == MEASURED for measured in history)
    if method != "ses":  # there each image chooses its own checkpoint
        assert history[-1]["roc_auc"] == pytest.approx(record["roc_auc"], abs=1e-6)


def nearest_two(gallery, features):
    """The kNN score, written out."""
    squares = ((features[:, None] - gallery[None]) ** 2).sum(-1)
    return np.sort(squares, axis=1)[:, :2].sum(axis=1)


def assert_measured(measured, gallery, features, labels, **expected):
    distances = nearest_two(gallery, features)
    expected = {"roc_auc": roc_auc(labels, distances)} | expected
    expected["feature_variance"] = features.var(axis=0).mean()
    expected["normal_distance"] = distances[labels == 0].mean()
    expected["anomalous_distance"] = distances[labels == 1].mean()
    assert {key: measured[key] for key in expected} == pytest.approx(expected, rel=1e-3)


def test_the_history_of_an_adapted_run_is_the_definition():
    options = dict(epochs=1, lr=0.2, max_grad_norm=0.05)
    record = run("pictograms:phone", "compactness", **options, **SMALL)
    task, network = load_task("pictograms:phone", **SMALL), load_backbone()
    frozen = network.frozen_features(task.train)
    checkpoints = fit_compactness(network, frozen, seed=3, progress=False, **options)
    centre = network.features(task.train).mean(axis=0)
    for measured, checkpoint in zip(record["history"], checkpoints, strict=True):
        gallery, features = checkpoint.features(task.train), checkpoint.features(task.test)
        loss = np.square(gallery - centre).mean()
        assert_measured(measured, gallery, features, task.labels, loss=loss)


def test_the_history_of_an_exposed_run_is_the_definition():
    """Its own loss and score, and the distances of kNN."""
    options = dict(epochs=2, lr=0.03, max_grad_norm=0.5)
    easy = dict(level="easy", **SMALL)
    record = run("pictograms:phone", "oe", n_outliers=50, **options, **easy)
    task, records = load_task("pictograms:phone", **easy), iter(record["history"])

    def compare(done):
        network = done.detector.backbone_
        gallery, features = network.features(task.train), network.features(task.test)
        auc = roc_auc(task.labels, done.detector.score(task.test))
        measured = next(records)
        assert measured["epoch"] == done.epoch
        assert_measured(measured, gallery, features, task.labels, loss=done.loss, roc_auc=auc)

    outliers = load_outliers("near", 50, seed=3, level="easy")
    options |= dict(seed=3, on_epoch=compare, progress=False)
    detector = OutlierExposure(load_backbone(), outliers, **options).fit(task.train)
    assert list(records) == []
    assert record["roc_auc"] == roc_auc(task.labels, detector.score(task.test))


@pytest.mark.parametrize("method", ["early", "ses", "oe", "svdd"])
def test_less_history_changes_no_score(method):
    options = dict(seed=3, epochs=4, n_train=20, n_test=3, progress=False)
    options |= dict(n_outliers=20) if method == "oe" else {}
    whole, ends, none = (
        run("pictograms:phone", method, checkpoints=number, **options) for number in (10, 1, 0)
    )
    assert whole["roc_auc"] == ends["roc_auc"] == none["roc_auc"] and none["history"] == []
    first = [] if method == "oe" else [0]
    assert [measured["epoch"] for measured in whole["history"]] == [*first, 1, 2, 3, 4]
    assert [measured["epoch"] for measured in ends["history"]] == [*first, 4]
    assert ends["history"][-1] == whole["history"][-1]


@pytest.mark.parametrize("method", ["spade", "bank"])
def test_a_run_with_masks_has_pixel_metrics(method):
    task, network = load_task("surfaces:weave", **SURFACE), load_backbone()
    if method == "spade":
        options = dict(n_images=3, sigma=2.0, balanced=True)
        detector = SPADE(network, **options)
    else:
        options = dict(sigma=2.0, coreset_ratio=0.2)
        layers = ["layer1", "layer2"]
        detector = PatchCore(network, layers=layers, seed=1, progress=False, **options)
        options["layers"] = "layer1, layer2"
    record = run("surfaces:weave", method, **options, **SURFACE)
    maps = detector.fit(task.train).maps(task.test)
    assert record["roc_auc"] == pytest.approx(roc_auc(task.labels, maps.max(axis=(1, 2))), abs=1e-6)
    assert record["pixel_roc_auc"] == pytest.approx(pixel_roc_auc(task.masks, maps), abs=1e-4)
    assert record["pro"] == pytest.approx(pro(task.masks, maps), abs=1e-3)


def test_masks_without_an_anomalous_pixel_give_no_pixel_metrics(monkeypatch):
    def blank(*arguments, **options):
        task = load_task(*arguments, **options)
        task.masks[:] = False
        return task

    monkeypatch.setattr(running, "load_task", blank)
    record = run("surfaces:weave", "spade", **SURFACE)
    assert record["pixel_roc_auc"] is None and record["pro"] is None and record["roc_auc"] > 0


def test_some_defects_of_a_surface():
    options = dict(SURFACE, n_test=2)
    record = run("surfaces:weave", "pixels", defects="hole, cut", **options)
    assert record["n_test"] == 20 + 2 * 2  # normal ones, and of each defect


def test_drawn_images_have_a_size_of_their_own(monkeypatch):
    seen = []
    monkeypatch.setattr(
        running, "load_task", lambda *a, **b: seen.append(load_task(*a, **b)) or seen[-1]
    )
    for options, size in (({}, 128), (dict(size=64), 64), (dict(tier="standard"), 128)):
        run("surfaces:metal", "pixels", n_train=3, n_test=1, **options)
        assert seen[-1].test.shape[-1] == size


def test_scores_give_the_recorded_roc_auc():
    record = run("pictograms:star", "dn2", n_train=20, n_test=3, with_scores=True, progress=False)
    labels = [int(one) for one in record["labels"]]
    assert len(labels) == record["n_test"] and sum(labels) == 27
    assert roc_auc_score(labels, record["scores"]) == pytest.approx(record["roc_auc"], abs=1e-12)


def test_options_are_those_of_the_detectors():
    task, network = load_task("pictograms:phone", **SMALL), load_backbone()
    for options in (dict(k=5), dict(normalise=True), dict(n_centres=6)):
        detector = DN2(network, seed=3, **options).fit(task.train)
        record = run("pictograms:phone", "dn2", **options, **SMALL)
        assert record["roc_auc"] == roc_auc(task.labels, detector.score(task.test))
    record = run("pictograms:phone", "pixels", k=4, **SMALL)
    assert record["roc_auc"] == roc_auc(task.labels, PixelKNN(4).fit(task.train).score(task.test))
    network = load_backbone(adapt_from="layer4", truncate_after="layer4", bias_free=True)
    frozen = network.frozen_features(task.train)
    how = dict(epochs=1, lr=0.25, max_grad_norm=0.1, progress=False)
    adapted = fit_compactness(network, frozen, seed=3, **how)[-1]
    scorer = KNN(3).fit(adapted.features(task.train))
    options = dict(epochs=1, adapt_from="layer4", k=3, checkpoints=0, bias_free=True)
    record = run("pictograms:phone", "early", truncate_after="layer4", **options, **SMALL)
    expected = roc_auc(task.labels, scorer.score(adapted.features(task.test)))
    assert record["roc_auc"] == pytest.approx(expected, abs=1e-6)
    assert record["backbone"] == "glyphs_resnet4:layer4"


def test_bfloat16_is_recorded():
    options = dict(epochs=1, checkpoints=0, n_train=8, n_test=2, progress=False)
    assert run("pictograms:star", "early", bf16=True, **options)["bf16"] == dict(
        used=True, ratio=None
    )
    tried = run("pictograms:star", "early", bf16="auto", **options)["bf16"]
    assert tried["used"] in (True, False) and tried["ratio"] > 0


def test_segmentation_needs_its_layers():
    with pytest.raises(ValueError, match="up to conv has no layer for maps"):
        run("surfaces:weave", "bank", truncate_after="conv", **SURFACE)
    for method in ("bank", "spade"):
        found = run("surfaces:weave", method, truncate_after="layer1", **SURFACE)
        assert found["backbone"].endswith(":layer1")


def test_a_memory_changes_no_number_and_saves_the_work(monkeypatch):
    memory, drawn = Memory(), []
    monkeypatch.setattr(running, "load_task", lambda *a, **b: drawn.append(a) or load_task(*a, **b))
    for method, more in (("dn2", {}), ("oe", dict(n_outliers=20, epochs=1))):
        options = dict(seed=3, n_train=10, n_test=2, progress=False, **more)
        plain, first, second = (
            run("pictograms:phone", method, memory=kept, **options)
            for kept in (None, memory, memory)
        )
        assert plain["roc_auc"] == first["roc_auc"] == second["roc_auc"]
        assert plain["history"] == first["history"] == second["history"]
    assert len(drawn) == 3  # twice without a memory, once with one


def test_the_network_of_another_tier_has_its_own_weights():
    options = make_options("dn2", dict(backbone="resnet18", weights="random"))
    network = running.load_network(options, TIERS["embedded"], seed=1)
    assert network.name == "resnet18" and network.source == "random"
    assert running.load_network(make_options("pixels", {}), TIERS["paper"]) is None


# ---------------------------------------------------------------- outliers


@pytest.fixture
def folder(tmp_path):
    """A task of two classes, and a folder of other images."""
    for seed, (kind, n) in enumerate(
        [("task/good", 12), ("task/bad", 12), ("others/one", 5), ("others/two", 4)]
    ):
        (tmp_path / kind).mkdir(parents=True)
        for number, picture in enumerate(images(n, seed=seed)):
            Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / kind / f"{number}.png")
    return tmp_path


def outliers_of(task, given=None, n=None, *, seed=0, recall=None, **options):
    """What a run shows to outlier exposure."""
    recall = recall or (lambda function, *a, **b: function(*a, **b))
    setup = running.Setup(task, None, seed, None, recall, None, None, False)
    options |= dict(outlier_images=given, n_outliers=n)
    return setup.outliers(make_options("oe", options))


def test_drawn_outliers():
    task = load_task("pictograms:star", n_train=2, n_test=1)
    assert outliers_of(task, n=3).shape == (3, 3, 64, 64)
    far = outliers_of(task, "far", 2, level="plain", seed=1)
    assert np.array_equal(far, load_outliers("far", 2, level="plain", seed=1))
    calls = []
    outliers_of(task, n=2, recall=lambda function, *a, **b: calls.append(a) or function(*a, **b))
    assert calls == [("near", 2)]


def test_outliers_of_a_folder_have_the_geometry_of_the_task(folder):
    """Outliers with another border could be told apart by it."""
    task = load_task(f"folder:{folder / 'task'}:good", size=32, resize=40)
    found = outliers_of(task, str(folder / "others"))
    assert found.geometry == task.train.geometry == Geometry.square(32, 40)
    assert len(found) == 9
    assert np.array_equal(found[0], task.train.geometry.read(folder / "others" / "one" / "0.png"))
    assert len(outliers_of(task, str(folder / "others"), 4)) == 4


def test_how_a_folder_was_read_is_said(folder, capsys):
    record = running.run(f"folder:{folder / 'task'}:good", "pixels", size=32)
    said = capsys.readouterr().err
    assert record["pixel_roc_auc"] is None and "hence no pixel metrics" in said
    assert "read as one folder per class: 10 training and 14 test images" in said
    running.run(f"folder:{folder / 'task'}:good", "pixels", size=32, progress=False)
    assert capsys.readouterr().err == ""


def test_outliers_of_a_data_set(monkeypatch):
    """As many training images of each class; never of the data set that is tested."""

    def tiny(spec, *, n_train, **_):
        label = "abc".index(spec[-1])
        drawn = np.random.default_rng(label).integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
        return SimpleNamespace(train=drawn[:n_train])

    monkeypatch.setattr(running, "load_task", tiny)
    monkeypatch.setattr(running, "sibling_tasks", lambda name: [f"{name}:{kind}" for kind in "abc"])
    test = np.zeros((2, 3, 32, 32), np.uint8)
    task = SimpleNamespace(
        name="cifar10:bird", train=test, test=test.copy(), files=None, kinds=("a", "b")
    )
    whole, some = outliers_of(task, "cifar100"), outliers_of(task, "cifar100", 5)
    assert len(whole) == 21 and len(some) == 5
    assert np.array_equal(whole[8], tiny("cifar100:b", n_train=None).train[1])
    first_two = np.concatenate([tiny(f"cifar100:{kind}", n_train=2).train for kind in "abc"])
    assert set(map(bytes, some[:])) < set(map(bytes, first_two))
    with pytest.raises(ValueError, match="they are from the same data set"):
        outliers_of(task, "cifar10")
    task.test[1] = whole[4]
    with pytest.raises(ValueError, match="test image '1'"):
        outliers_of(task, "cifar100")


@pytest.mark.parametrize(
    ("task", "given", "words"),
    [
        (
            "pictograms:star",
            "nearer",
            "'nearer' is unknown: choose one of near, single, middle, far, noise",
        ),
        ("surfaces:weave", None, "needs outlier_images: a folder of images that are not normal"),
        ("surfaces:weave", "near", "near ones are known for pictograms and solar cells only"),
        ("folder:{}/task:good", "{}/task/bad", "nothing may be learned from what is tested"),
    ],
)
def test_outliers_that_cannot_be(task, given, words, folder):
    size = {} if task.startswith("folder") else dict(n_train=2, n_test=1)
    task = load_task(task.format(folder), **size)
    with pytest.raises(ValueError, match=words):
        outliers_of(task, given and given.format(folder))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere it is what is held now")
def test_the_peak_of_memory_can_be_reset():
    code = (
        "from pandalib.experiments.run import peak_rss_mb, reset_peak_rss\n"
        "held = bytearray(b'1') * (300 * 2**20); before = peak_rss_mb(); del held\n"
        "reset_peak_rss(); print(before, peak_rss_mb())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert after > 50 and before - after > 250


def test_the_banks_weight_changes_the_scores_and_no_map():
    options = dict(n_train=6, n_test=2, layers="layer1,layer2", with_scores=True)
    plain, weighted = (
        run("surfaces:weave", "bank", reweight=reweight, **options) for reweight in (False, True)
    )
    assert plain["pixel_roc_auc"] == weighted["pixel_roc_auc"]
    assert plain["scores"] != weighted["scores"]
    assert np.all(np.less_equal(weighted["scores"], plain["scores"]))  # the weight is at most 1
