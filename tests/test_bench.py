"""The benches compare like with like: their own definitions against the library on tiny inputs, and the page that collects their lines."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from pandalib import KNN, PatchCore, knn_scores, load_backbone, pixel_roc_auc, pro, roc_auc  # noqa: E402
from pandalib.methods.panda import fit_compactness  # noqa: E402
from pandalib.datasets.synthetic import surfaces  # noqa: E402
from pandalib.datasets.synthetic.surfaces import Surfaces  # noqa: E402

common, overview, peers, everything = (
    importlib.import_module(name) for name in ("common", "overview", "peers", "everything")
)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(device="cpu")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 3, 64, 64), dtype=np.uint8)


# ---------------------------------------------------------------- definitions


@pytest.mark.parametrize("name", ["embedded", "resnet18"])
def test_extraction_compares_the_same_network(name, images):
    extraction = importlib.import_module("extraction")
    backbone = (
        load_backbone(device="cpu")
        if name == "embedded"
        else load_backbone(name, "random", device="cpu")
    )
    network = extraction.torchvision_network(name, backbone)
    np.testing.assert_allclose(
        extraction.plain_loop(network, images), backbone.features(images), rtol=1e-4, atol=1e-4
    )


def test_adaptation_compares_the_same_training(backbone, images):
    adaptation = importlib.import_module("adaptation")
    train, test = images[:6], images[6:]
    stem, stem_test = backbone.frozen_features(train), backbone.frozen_features(test)
    plain = adaptation.plain_network("embedded")
    plain.requires_grad_(False)
    plain[3:].requires_grad_(True)
    optimiser = torch.optim.SGD(plain[3:].parameters(), lr=0.08, momentum=0.9)
    centre = torch.from_numpy(backbone.features_from(stem).mean(axis=0))
    order = torch.from_numpy(np.random.default_rng((0, 1)).permutation(len(train)))
    expected = adaptation.plain_epoch(plain, centre, train, test, optimiser, order)
    last = fit_compactness(backbone, stem, epochs=1, lr=0.08, max_grad_norm=0.1, progress=False)[-1]
    found = knn_scores(last.features_from(stem), last.features_from(stem_test))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert not np.allclose(
        expected,
        knn_scores(backbone.features_from(stem), backbone.features_from(stem_test)),
        rtol=1e-3,
    ), "the epoch changed nothing"


def test_four_ways_to_the_fisher_information_agree_and_the_fifth_does_not(backbone, images):
    fisher = importlib.import_module("fisher")
    stem = backbone.frozen_features(images[:5])
    labels = fisher.drawn_labels(backbone, stem)
    expected = fisher.plain_loop(backbone, images[:5], labels)
    for way in (fisher.by_loop, fisher.by_vmap, fisher.by_hooks):
        assert fisher.difference(expected, way(backbone, stem, labels)) < 1e-5, way.__name__
    for way in (fisher.by_vmap, fisher.by_hooks):
        assert fisher.difference(expected, way(backbone, stem, labels, chunk=2)) < 1e-5, (
            "a last chunk of one"
        )
    biased = fisher.fisher_information(
        backbone, stem, labels.numpy(), batch_size=5, progress=False
    ).values
    assert fisher.difference(expected, biased) > 0.1
    assert sum(value.double().sum() for value in biased.values()) < 0.7 * sum(
        value.double().sum() for value in expected.values()
    )


def test_hooks_refuse_layers_that_they_do_not_know():
    fisher = importlib.import_module("fisher")
    grouped = load_backbone("resnext50_32x4d", "random", device="cpu")
    with pytest.raises(ValueError, match="grouped convolutions"):
        fisher.by_hooks(grouped, torch.zeros(1, 512, 4, 4), torch.zeros(1, dtype=torch.long))


def test_segmentation_compares_the_same_distances(backbone):
    segmentation = importlib.import_module("segmentation")
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
    bench = importlib.import_module("pixel_metrics")
    cases = bench.hard_cases()
    assert len(cases) == 9
    for case in cases.values():
        if "labels" in case:
            assert roc_auc(case["labels"], case["scores"]) == pytest.approx(
                bench.pairs_auc(case["labels"], case["scores"]), abs=1e-12
            )
        else:
            masks, maps = case["masks"], case["maps"]
            assert pixel_roc_auc(masks, maps) == pytest.approx(
                bench.pairs_auc(masks.ravel(), maps.ravel()), abs=1e-12
            )
            assert pro(masks, maps) == pytest.approx(bench.threshold_pro(masks, maps), abs=1e-9)
    # By hand: of 2 x 2 pairs three are in order and one is tied.
    assert bench.pairs_auc(np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 2.0, 3.0])) == 3.5 / 4


def test_growth_searches_find_the_nearest():
    growth = importlib.import_module("growth")
    gallery, queries, labels = growth.clouds(900, 20)
    assert gallery.shape == (900, growth.D) and labels.sum() == 10
    true = np.argsort(
        np.square(queries[:, None].astype(np.float64) - gallery[None]).sum(axis=2), axis=1
    )[:, : growth.K]
    for way in growth.WAYS:
        distances, indices = growth.search(way, gallery)(queries)
        assert distances.shape == (20, growth.K)
        if way in ("pandalib, all pairs", "faiss, flat"):
            np.testing.assert_array_equal(indices, true)
        elif indices is not None:
            assert (
                np.mean(
                    [
                        len(np.intersect1d(one, other)) / growth.K
                        for one, other in zip(indices, true)
                    ]
                )
                > 0.7
            )
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
    with pytest.raises(peers.Trouble, match="pandalib_knn.*failed(.|\n)*k must be at least 1"):
        peers.ask(
            "pandalib_knn",
            dict(gallery=np.ones((60, 2)), queries=np.ones((1, 2))),
            theirs=False,
            k=0,
            repeat=1,
        )


def test_without_the_peers_the_command_that_makes_them_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "VENV", tmp_path / "none")
    assert "python bench/peers.py" in peers.why_not()
    with pytest.raises(peers.Trouble, match="are not installed"):
        peers.ask("pyod_knn", {})
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "complete.json").write_text('{"anomalib": "0.1"}')
    assert "made beside other packages" in peers.why_not()


def test_an_installation_that_fails_leaves_nothing_half_made(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "VENV", tmp_path / "new")
    monkeypatch.setattr(peers, "PYTHON", tmp_path / "new" / "python")
    real = subprocess.run

    def run(command, **options):
        if "venv" in command:
            (tmp_path / "new").mkdir()
            return real(
                [sys.executable, "-c", "import sys; sys.exit('ERROR: no ensurepip')"], **options
            )
        raise AssertionError(command)

    monkeypatch.setattr(peers.subprocess, "run", run)
    with pytest.raises(peers.Trouble, match="no ensurepip"):
        peers.install()
    assert not (tmp_path / "new").exists()


def test_versions_of_the_peers_fit_the_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["bench"]
    for requirement in map(Requirement, extras):
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
    """With all patches in the bank, its map inside the border is a blur of the distances to the nearest patch, as ours is of the squares."""
    task = surfaces.load_task("weave", n_train=3, n_good=2, n_test=1, size=64)
    arrays = {"weave/train": task.train, "weave/test": task.test}
    found, _ = peers.ask(
        "maps",
        arrays,
        weights={"weave": None},
        side="anomalib",
        method="patchcore",
        layers=["layer1"],
        coreset_ratio=1.0,
    )
    bank = PatchCore(backbone, layers=("layer1",), coreset_ratio=1.0, sigma=0, progress=False).fit(
        task.train
    )
    ours = np.sqrt(bank.maps(task.test))
    correlation = np.corrcoef(
        found["weave/maps"][:, 12:-12, 12:-12].ravel(),
        ndimage_blur(ours)[:, 12:-12, 12:-12].ravel(),
    )[0, 1]
    assert correlation > 0.99


def ndimage_blur(maps):
    from scipy import ndimage

    return np.stack([ndimage.gaussian_filter(one, 4.0) for one in maps])


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
    median, values = common.alternate(
        {"a": lambda: calls.append("a") or 1, "b": lambda: calls.append("b") or 2}, 2
    )
    assert (
        calls == ["a", "b"] * 3
        and values == {"a": 1, "b": 2}
        and all(value >= 0 for value in median.values())
    )


def test_the_overview_takes_in_every_line(tmp_path):
    lines = [
        common.Line("one", "faster", "2 times", True),
        common.Line("two", "faster", "0.5 times", False),
        common.Line("three", "", "x", None),
    ]
    (tmp_path / "fisher_speed.md").write_text(
        f"# Title\n\nMade by.\n\n{common.section(lines)}\n## More\n\n| a | table |\n|---|---|\n| not | a line |\n"
    )
    (tmp_path / "growth_speed.md").write_text("# An older page without the section\n")
    found = overview.table(tmp_path)
    assert found.startswith("1 lines met, 1 not met.") and "a line" not in found
    rows = [row for row in found.splitlines() if "Fisher" in row]
    assert (
        len(rows) == 3
        and rows[1]
        == "| [3. Fisher information](results/fisher_speed.md) | two | faster | 0.5 times | **NOT met** |"
    )
    assert (
        "| [6. Growth](results/growth_speed.md) | not measured yet" in found
        and "| 1. Features and kNN scores | not measured yet" in found
    )


def test_the_overview_keeps_what_is_written_by_hand():
    text = f"before\n{overview.START}\nold\n{overview.END}\nafter\n"
    assert overview.fill(text, "new") == f"before\n{overview.START}\nnew\n{overview.END}\nafter\n"
    with pytest.raises(ValueError, match="put them back"):
        overview.fill("no marks", "new")
    assert overview.fill(
        overview.PAGE.read_text(encoding="utf-8"), "x"
    )  # the real page has both marks


def test_every_bench_is_run_and_has_its_place_in_the_overview():
    assert set(everything.BENCHES) == set(overview.PAGES)
    for name in everything.BENCHES:
        source = (ROOT / "bench" / f"{name}.py").read_text(encoding="utf-8")
        assert f"{name}_speed.md" in source and "section(lines" in source or "section=" in source, (
            name
        )


def test_an_unknown_bench_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        everything.main(["fisherman"])
    assert (
        stop.value.code == 2 and "fisherman: expected some of extraction" in capsys.readouterr().err
    )


def test_without_peers_the_other_benches_run_and_the_exit_code_says_so(monkeypatch, capsys):
    started = []

    def refuse():
        raise peers.Trouble("no package index")

    monkeypatch.setattr(everything.peers, "install", refuse)
    monkeypatch.setattr(
        everything.subprocess,
        "run",
        lambda command, **options: (
            started.append(Path(command[1]).stem) or subprocess.CompletedProcess(command, 0)
        ),
    )
    assert everything.main(["fisher", "pixel_metrics", "--tiny"]) == 1
    assert (
        started == ["fisher"]
        and "pixel_metrics has no new page: no package index" in capsys.readouterr().err
    )
    assert everything.main(["fisher"]) == 0 and started[1:] == ["fisher", "overview"]
