"""The benches compare like with like: their own definitions against the library on tiny inputs."""

import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import adaptation
import common
import everything
import extraction
import fisher
import growth
import overview
import peers
import pixel_metrics
import segmentation
import since

from pandalib import KNN, PatchCore, knn_scores, load_backbone, pixel_roc_auc, pro, roc_auc
from pandalib.datasets.synthetic import surfaces
from pandalib.datasets.synthetic.surfaces import Surfaces
from pandalib.methods.panda import fit_compactness


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(device="cpu")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 3, 64, 64), dtype=np.uint8)


# ---------------------------------------------------------------- definitions


@pytest.mark.parametrize("name", ["embedded", "mobilenet_v2", "resnet18"])
def test_extraction_compares_the_same_network(name, images):
    which = [] if name == "embedded" else [name, "random"]
    backbone = load_backbone(*which, device="cpu")
    network = extraction.torchvision_network(name)
    found = extraction.plain_loop(network, images)
    np.testing.assert_allclose(found, backbone.features(images), rtol=1e-4, atol=1e-4)


def test_adaptation_compares_the_same_training(backbone, images):
    train, test = images[:6], images[6:]
    frozen, frozen_test = backbone.frozen_features(train), backbone.frozen_features(test)
    plain = adaptation.plain_network("embedded")
    plain.requires_grad_(False)
    plain[3:].requires_grad_(True)
    optimiser = torch.optim.SGD(plain[3:].parameters(), lr=0.08, momentum=0.9)
    centre = torch.from_numpy(backbone.features_from(frozen).mean(axis=0))
    order = torch.from_numpy(np.random.default_rng((0, 1)).permutation(len(train)))
    expected = adaptation.plain_epoch(plain, 3, centre, train, test, optimiser, order)
    settings = dict(epochs=1, lr=0.08, max_grad_norm=0.1, progress=False)
    last = fit_compactness(backbone, frozen, **settings)[-1]
    found = knn_scores(last.features_from(frozen), last.features_from(frozen_test))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    before = knn_scores(backbone.features_from(frozen), backbone.features_from(frozen_test))
    assert not np.allclose(expected, before, rtol=1e-3), "the epoch changed nothing"


def test_four_ways_to_the_fisher_information_agree_and_the_fifth_does_not(backbone, images):
    frozen = backbone.frozen_features(images[:5])
    labels = fisher.drawn_labels(backbone, frozen)
    expected = fisher.plain_loop(backbone, images[:5], labels)
    for way in (fisher.by_loop, fisher.by_vmap, fisher.by_hooks):
        assert fisher.difference(expected, way(backbone, frozen, labels)) < 1e-5, way.__name__
    for way in (fisher.by_vmap, fisher.by_hooks):
        found = way(backbone, frozen, labels, chunk=2)  # a last chunk of one
        assert fisher.difference(expected, found) < 1e-5, way.__name__
    settings = dict(batch_size=5, progress=False)
    biased = fisher.fisher_information(backbone, frozen, labels.numpy(), **settings).values
    assert fisher.difference(expected, biased) > 0.1
    low, high = (sum(one.double().sum() for one in f.values()) for f in (biased, expected))
    assert low < 0.7 * high


def test_segmentation_compares_the_same_distances(backbone):
    drawn = Surfaces("weave", 7, size=64)[:]
    detector = segmentation.SPADE(backbone, n_images=segmentation.K).fit(drawn[:-1])
    part = segmentation.Pyramids.of(backbone, drawn[-1:], detector.layers, dtype=np.float32)
    normal = detector.normal_
    galleries = [normal.positions(slice(None), layer) for layer in range(len(detector.layers))]
    sides = (
        segmentation.looped(part, normal.pooled, galleries),
        segmentation.by_faiss(part, normal.pooled, galleries),
        segmentation.ours(detector, part),
    )
    for loop, by_faiss, ours in zip(*sides, strict=True):
        np.testing.assert_allclose(ours.ravel(), loop, rtol=1e-3, atol=1e-4 * float(loop.max()))
        np.testing.assert_allclose(by_faiss.ravel(), loop, rtol=1e-3, atol=1e-4 * float(loop.max()))


def test_metrics_of_the_hard_cases_follow_the_definition():
    cases, pairs_auc = pixel_metrics.hard_cases(), pixel_metrics.pairs_auc
    assert len(cases) == 9
    for case in cases.values():
        if "labels" in case:
            expected = pairs_auc(case["labels"], case["scores"])
            assert roc_auc(case["labels"], case["scores"]) == pytest.approx(expected, abs=1e-12)
        else:
            masks, maps = case["masks"], case["maps"]
            expected = pairs_auc(masks.ravel(), maps.ravel())
            assert pixel_roc_auc(masks, maps) == pytest.approx(expected, abs=1e-12)
            expected = pixel_metrics.threshold_pro(masks, maps)
            assert pro(masks, maps) == pytest.approx(expected, abs=1e-9)
    # By hand: of 2 x 2 pairs three are in order and one is tied.
    assert pairs_auc(np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 2.0, 3.0])) == 3.5 / 4


def test_growth_searches_find_the_nearest():
    gallery, queries, labels = growth.clouds(900, 20)
    assert gallery.shape == (900, growth.D) and labels.sum() == 10
    squares = np.square(queries[:, None].astype(np.float64) - gallery[None]).sum(axis=2)
    true = np.argsort(squares, axis=1)[:, : growth.K]
    for way in growth.WAYS:
        distances, indices = growth.search(way, gallery)(queries)
        assert distances.shape == (20, growth.K)
        if way in ("pandalib, all pairs", "faiss, flat"):
            np.testing.assert_array_equal(indices, true)
        elif indices is not None:
            common_ones = [len(np.intersect1d(*pair)) for pair in zip(indices, true)]
            assert np.mean(common_ones) > 0.7 * growth.K
    assert growth.of_gallery(900, "pandalib, all pairs", 20, 1)["recall"] == 1.0


# ---------------------------------------------------------------- jobs and peers


def test_jobs_of_this_library_do_what_the_library_does(images, backbone):
    rng = np.random.default_rng(1)
    gallery, queries = (
        rng.standard_normal((30, 8)).astype(np.float32),
        rng.standard_normal((9, 8)).astype(np.float32),
    )
    found, facts = peers.ask(
        "pandalib_knn", dict(gallery=gallery, queries=queries), theirs=False, k=2, repeat=1
    )
    np.testing.assert_array_equal(found["scores"], knn_scores(gallery, queries, 2))
    np.testing.assert_array_equal(found["own"], KNN(2).fit(gallery).leave_one_out())
    assert facts["fit"] > 0 and facts["score"] > 0
    task = surfaces.load_task("weave", n_train=4, n_good=1, n_test=1, size=64)
    arrays = {"weave/train": task.train, "weave/test": task.test}
    settings = dict(side="pandalib", method="bank", layers=["layer1", "layer2"], coreset_ratio=0.1)
    found, facts = peers.ask("maps", arrays, theirs=False, weights={"weave": None}, **settings)
    expected = (
        PatchCore(backbone, layers=("layer1", "layer2"), coreset_ratio=0.1, progress=False)
        .fit(task.train)
        .maps(task.test)
    )
    np.testing.assert_allclose(found["weave/maps"], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found["weave/scores"], found["weave/maps"].max(axis=(1, 2)))
    assert facts["weave"].keys() == {"fit", "score", "fit_mb", "score_mb"}


def test_a_job_that_fails_says_why():
    arrays = dict(gallery=np.ones((60, 2)), queries=np.ones((1, 2)))
    with pytest.raises(peers.Trouble, match="pandalib_knn.*failed(.|\n)*k=0"):
        peers.ask("pandalib_knn", arrays, theirs=False, k=0, repeat=1)


def test_without_the_peers_the_command_that_makes_them_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "VENV", tmp_path / "none")
    assert "python bench/peers.py" in peers.why_not()
    with pytest.raises(peers.Trouble, match="are not installed"):
        peers.ask("pyod_knn", {})
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "complete.json").write_text('{"anomalib": "0.1"}')
    assert "made beside other packages" in peers.why_not()


def test_versions_of_the_peers_fit_the_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["optional-dependencies"]["bench"]):
        assert requirement.specifier.contains(peers.VERSIONS[requirement.name])


needs_peers = pytest.mark.skipif(peers.why_not() is not None, reason=f"{peers.why_not()}")


@needs_peers
def test_pyod_has_the_same_neighbours():
    rng = np.random.default_rng(2)
    gallery, queries = (
        rng.standard_normal((40, 6)).astype(np.float32),
        rng.standard_normal((7, 6)).astype(np.float32),
    )
    found, _ = peers.ask(
        "pyod_knn", dict(gallery=gallery, queries=queries), k=2, method="mean", repeat=1
    )
    distances = np.sort(np.linalg.norm(queries[:, None] - gallery[None], axis=2), axis=1)[:, :2]
    np.testing.assert_allclose(found["scores"], distances.mean(axis=1), rtol=1e-5)


@needs_peers
def test_anomalib_has_the_same_weights_and_patches(backbone):
    """With all patches in the bank, its map is a blur of our distances."""
    task = surfaces.load_task("weave", n_train=3, n_good=2, n_test=1, size=64)
    arrays = {"weave/train": task.train, "weave/test": task.test}
    settings = dict(layers=["layer1"], coreset_ratio=1.0)
    side = dict(side="anomalib", method="patchcore", weights={"weave": None})
    found, _ = peers.ask("maps", arrays, **side, **settings)
    bank = PatchCore(backbone, **settings, sigma=0, progress=False).fit(task.train)
    ours = gaussian_filter(np.sqrt(bank.maps(task.test)), (0, 4, 4))
    inside = np.s_[:, 12:-12, 12:-12]  # of the border
    correlation = np.corrcoef(found["weave/maps"][inside].ravel(), ours[inside].ravel())
    assert correlation[0, 1] > 0.99


# ---------------------------------------------------------------- lines


def test_a_line_is_met_only_if_faster_and_no_figure_is_lower():
    assert common.faster("x", 2.0, 1.0).met is True
    assert common.faster("x", 1.0, 1.0).met is False
    assert common.faster("x", 2.0, 1.0, wanted=2.5).met is False
    assert common.faster("x", 2.0, 1.0, qualities={"ROC-AUC": (0.9, 0.894)}).met is False
    assert common.faster("x", 2.0, 1.0, qualities={"ROC-AUC": (0.9, 0.896)}).met is True
    assert common.at_most("x", 1.5, 1.5).met is True and common.at_most("x", 1.51, 1.5).met is False


def test_sides_take_turns_and_the_first_turn_does_not_count():
    calls = []
    sides = {"a": lambda: calls.append("a") or 1, "b": lambda: calls.append("b") or 2}
    median, values = common.alternate(sides, 2)
    assert calls == ["a", "b"] * 3 and values == {"a": 1, "b": 2} and min(median.values()) >= 0


def test_the_overview_takes_in_every_line(tmp_path):
    lines = [
        common.Line("one", "faster", "2 times", True),
        common.Line("two", "faster", "0.5 times", False),
        common.Line("three", "", "x", None),
    ]
    more = "## More\n\n| a | table |\n|---|---|\n| not | a line |\n"
    page = f"# Title\n\nMade by.\n\n{common.section(lines)}\n{more}"
    (tmp_path / "fisher_speed.md").write_text(page)
    (tmp_path / "growth_speed.md").write_text("# An older page without the section\n")
    found = overview.table(tmp_path)
    assert found.startswith("1 lines met, 1 not met.") and "a line" not in found
    rows = [row for row in found.splitlines() if "Fisher" in row]
    start = "| [3. Fisher information](results/fisher_speed.md) "
    assert len(rows) == 3 and rows[1] == start + "| two | faster | 0.5 times | **NOT met** |"
    assert "| [6. Growth](results/growth_speed.md) | not measured yet" in found
    assert "| 1. Features and kNN scores | not measured yet" in found


def test_every_bench_is_run_and_has_its_place_in_the_overview():
    assert set(everything.BENCHES) == set(overview.PAGES)
    for name in everything.BENCHES:
        source = (ROOT / "bench" / f"{name}.py").read_text(encoding="utf-8")
        assert f"{name}_speed.md" in source and "section(lines" in source or "section=" in source, (
            name
        )


def test_moved_images_lose_no_pixel_and_turned_ones_are_all_four():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
    shifted = since.moved(images, seed=3)
    assert np.array_equal(np.sort(shifted.reshape(15, -1)), np.sort(images.reshape(15, -1)))
    assert not np.array_equal(shifted, images)
    copies = since.turned(images)
    assert copies.shape == (20, 3, 8, 8)
    assert np.array_equal(copies[5, :, 0], images[0, :, :, -1])  # the right column goes up


def test_recall_counts_what_is_above_all_but_a_twentieth():
    scores = np.concatenate([np.arange(39), [37.5, 36.5, 100.0]])
    # of 39 normal scores, rank ceil(0.95 * 40) = 38 is the threshold: 37
    assert since.recall(np.repeat([0, 1], [39, 3]), scores) == pytest.approx(2 / 3)


def test_the_half_of_an_interval_is_students():
    assert common.with_half([1.0, 2.0, 3.0]) == "2.000 ± 2.484"  # 4.3027 / sqrt(3)
