"""Grids, the runs that they stand for, their names, and what a result file says."""

import inspect
import json
import socket

import faiss
import pytest
import torch

from pandalib import load_grid
from pandalib.experiments import sweep as experiments
from pandalib.datasets import load as tasks
from pandalib.__main__ import main
from pandalib.experiments.sweep import attempt, estimate, in_words, read_plan, read_results, sweep
from pandalib.experiments.grids import (
    CONCERNS,
    DEFAULT,
    canonical,
    expand,
    file_name,
    grids,
    identity,
)
from pandalib.experiments.run import METHODS, run
from pandalib.io import sealed, unsealed
from pandalib.datasets.synthetic.pictograms import SYMBOLS

HEAD = dict(name='"g"', tier='"embedded"', tasks='["pictograms:star"]', methods='["dn2"]')


@pytest.fixture(scope="module", autouse=True)
def here():
    """The runs of these sweeps are done in this process, which is quicker; tests/test_sweep.py has processes."""
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            experiments,
            "_on_this_machine",
            lambda waiting, folder, _, n: (
                experiments._attempt_and_write(run, folder, n) for run in waiting
            ),
        )
        yield
    torch.set_num_threads(threads[0]), faiss.omp_set_num_threads(threads[1])


def grid_of(tmp_path, text: str = "", **head):
    """A grid in a file; `head` replaces lines of [grid], None takes one out."""
    lines = [f"{key} = {value}" for key, value in (HEAD | head).items() if value is not None]
    path = tmp_path / "grid.toml"
    path.write_text("[grid]\n" + "\n".join(lines) + "\n" + text)
    return path


# ---------------------------------------------------------------- grids


def test_a_grid_is_the_product_of_its_axes(tmp_path):
    path = grid_of(
        tmp_path,
        "[settings]\nn_train = 30\n[vary]\nk = [1, 5]\n",
        tasks='["pictograms"]',
        methods='["dn2", "early"]',
        seeds="[0, 3]",
    )
    runs = load_grid(path).runs()
    assert (
        len(runs)
        == 10 * 2 * 2 * 2
        == len({identity(settings) for settings in runs})
        == len({file_name(settings) for settings in runs})
    )
    expected = [
        dict(
            task=f"pictograms:{symbol}", method=method, tier="embedded", seed=seed, k=k, n_train=30
        )
        for method in ("dn2", "early")
        for symbol in SYMBOLS
        for seed in (0, 3)
        for k in (1, 5)
    ]
    assert runs == expected


def test_what_does_not_concern_a_method_makes_no_run_of_its_own(tmp_path):
    """pixels knows no network, dn2 no lambda: each runs once beside five values and two networks."""
    text = '[vary]\nstrength = [1.0, 10.0, "default"]\n'
    path = grid_of(
        tmp_path,
        text,
        methods='["pixels", "dn2", "ewc"]',
        backbones='["glyphs_resnet4", { name = "resnet18", weights = "random", truncate_after = "layer3" }]',
    )
    counts = {
        method: [settings for settings in load_grid(path).runs() if settings["method"] == method]
        for method in ("pixels", "dn2", "ewc")
    }
    assert [len(found) for found in counts.values()] == [1, 2, 6]
    assert counts["dn2"][0] == dict(
        task="pictograms:star", method="dn2", tier="embedded", seed=0
    )  # the tier's own network goes without saying
    assert counts["dn2"][1] == counts["dn2"][0] | dict(
        backbone="resnet18", weights="random", truncate_after="layer3"
    )
    assert [settings.get("ewc_lambda") for settings in counts["ewc"]] == [1.0, 10.0, None] * 2


def test_settings_of_one_method_and_further_runs(tmp_path):
    text = '[settings]\ncheckpoints = 1\n[settings.ewc]\nepochs = 3\n[vary]\nstrength = [5.0]\n[[also]]\nmethods = ["dn2"]\nvary = { k = [1, 2] }\n'
    runs = load_grid(grid_of(tmp_path, text, methods='["early", "ewc"]')).runs()
    own = dict(task="pictograms:star", tier="embedded", seed=0)
    assert [dict(settings) for settings in runs] == [
        own | dict(method="early", checkpoints=1),
        own | dict(method="ewc", checkpoints=1, epochs=3, ewc_lambda=5.0),
        own | dict(method="dn2", k=1),
        own | dict(method="dn2"),  # 2 is the default
    ]


@pytest.mark.parametrize(
    ("text", "head", "message"),
    [
        ("", dict(tier=None), "[grid] lacks tier"),
        (
            "",
            dict(tier='"huge"'),
            "tier = 'huge' is unknown: choose one of embedded, standard, paper",
        ),
        ("", dict(name="3"), "name = 3: expected a text"),
        (
            "",
            dict(colour='"red"'),
            "[grid] has an unknown key 'colour': accepted are name, description, tier, tasks, methods, seeds, backbones",
        ),
        (
            "[extra]\n",
            {},
            "the file has an unknown key 'extra': accepted are grid, settings, vary, also",
        ),
        ("", dict(methods="[]"), "methods of the grid: expected a list of at least one value"),
        (
            "",
            dict(seeds="3"),
            "seeds of the grid: expected a list of at least one value, as in [1, 2]; got 3",
        ),
        ("", dict(seeds="[0, 1, 0]"), "seeds of the grid hold 0 twice"),
        ("", dict(seeds="[true]"), "seeds of the grid hold True: expected whole numbers"),
        ("", dict(seeds="[-1]"), "seeds of the grid hold -1: expected whole numbers of at least 0"),
        ("", dict(tasks="[1]"), "tasks of the grid hold 1: expected texts"),
        ("", dict(methods='["dn3"]'), "method 'dn3' is unknown: choose among pixels, dn2"),
        ("", dict(backbones="[18]"), "backbones of the grid hold 18: expected names, or tables"),
        (
            "",
            dict(backbones='[{ name = "resnet18", depth = "18" }]'),
            "a backbone has an unknown key 'depth'",
        ),
        (
            "[settings]\nneighbours = 3\n",
            {},
            "[settings] has an unknown option 'neighbours': accepted are weights, truncate_after",
        ),
        ("[settings]\nseed = 3\n", {}, "[settings] has an unknown option 'seed'"),
        ('[settings]\nk = "3"\n', {}, "[settings]: k = '3': expected a whole number"),
        ("[settings]\nk = 3.5\n", {}, "[settings]: k = 3.5: expected a whole number"),
        ("[settings]\nk = true\n", {}, "[settings]: k = True: expected a whole number"),
        ("[settings]\nnormalise = 1\n", {}, "[settings]: normalise = 1: expected true or false"),
        (
            "[settings]\nstrength = 1\n",
            {},
            "[settings]: strength changes nothing in dn2: it concerns ewc",
        ),
        ("[settings.dn3]\nk = 1\n", {}, "[settings.dn3]: 'dn3' is no method"),
        ("[settings.dn2]\nlr = 1\n", {}, "[settings.dn2]: lr changes nothing in dn2"),
        ("[vary]\nk = []\n", {}, "k of [vary]: expected a list of at least one value"),
        ("[vary]\nk = [1, 1]\n", {}, "k of [vary] hold 1 twice"),
        ("[vary]\nn_centres = [5, 0.5]\n", {}, "[vary]: n_centres = 0.5: expected a whole number"),
        ("[also]\nmethods = ['dn2']\n", {}, "expected [[also]], with two brackets"),
        ("[[also]]\nname = 'b'\n", {}, "[[also]] 1 has an unknown key 'name': accepted are tasks"),
        ("k = [\n", {}, "is no TOML"),
    ],
)
def test_a_grid_that_cannot_be(text, head, message, tmp_path, capsys):
    path = grid_of(tmp_path, text, **head)
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert (
        message in err
        and str(path) in err
        and err.count("\n") == 1
        and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize(
    ("tasks_", "message"),
    [
        ('["pictograms", "pictograms:star"]', "task 'pictograms:star' is in `tasks` twice"),
        ('["pictograms:sta"]', "pictograms:sta is unknown: choose one of star, umbrella"),
        ('["pictograms:star+hart"]', "pictograms:hart is unknown"),
        ('["unicorns"]', "task 'unicorns' is unknown"),
        ('["folder:/no/such/place"]', "/no/such/place"),
    ],
)
def test_tasks_that_cannot_be(tasks_, message, tmp_path):
    grid = load_grid(grid_of(tmp_path, tasks=tasks_))
    with pytest.raises(ValueError, match="grid") as error:
        sweep(grid, tmp_path / "out", progress=False)
    assert message in str(error.value) and not (tmp_path / "out").exists()


def test_a_data_set_that_is_not_here_is_told_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("PANDALIB_DATASETS", str(tmp_path / "none"))
    path = grid_of(
        tmp_path, tasks='["cifar10", "pictograms:star"]', methods='["pixels"]', seeds="[0]"
    )
    path.write_text(path.read_text() + "[settings]\nn_train = 20\nn_test = 4\n")
    with pytest.raises(
        ValueError,
        match=r"(?s)1 data set\(s\) cannot be used, and nothing was started:\n  cifar10: .*pandalib data cifar10.*--skip-missing",
    ):
        sweep(path, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    (result,) = sweep(path, tmp_path / "out", skip_missing=True, workers=1, progress=False)
    assert (
        result["task"] == "pictograms:star"
        and "pandalib data cifar10" in read_plan(tmp_path / "out")["left_out"]["cifar10"]
    )
    assert (
        main(["table", str(tmp_path / "out")]) == 0
        and "cifar10: the data set cifar10" in (tmp_path / "out" / "table.md").read_text()
    )


def test_data_sets_expand_to_their_classes(tmp_path):
    assert (
        expand("surfaces") == tasks.sibling_tasks("surfaces:weave")
        and len(expand("pictograms")) == 10
    )
    assert expand("pictograms:star") == ["pictograms:star"] and expand("pictograms:star+heart") == [
        "pictograms:star+heart"
    ]
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "1.png").write_bytes(b"")
    assert expand(f"folder:{tmp_path}") == [f"folder:{tmp_path}:cat", f"folder:{tmp_path}:dog"]
    assert expand(f"folder:{tmp_path}:dog") == [f"folder:{tmp_path}:dog"]


def test_the_same_run_has_the_same_name():
    plain = dict(task="pictograms:star", method="ewc", tier="embedded", seed=0)
    assert (
        identity(plain)
        == identity(dict(reversed(plain.items())))
        == identity(
            plain
            | dict(k=2, fisher_recipe="per-sample", backbone="glyphs_resnet4", weights="embedded")
        )
    )
    others = [
        plain | change
        for change in (
            dict(seed=1),
            dict(k=3),
            dict(task="pictograms:heart"),
            dict(backbone="resnet18"),
            dict(ewc_lambda=3000.0),
        )
    ]
    assert len({identity(settings) for settings in [plain, *others]}) == 6
    assert (
        file_name(plain) == f"pictograms_star-ewc-0-{identity(plain)}.json"
        and len(identity(plain)) == 12
    )
    assert (
        "/" not in file_name(plain | dict(task="folder:/a/b c/ü:x"))
        and canonical(plain | dict(k=2)) == plain
    )


def test_every_option_of_a_run_concerns_some_method():
    """A new option of `run` has to be named in CONCERNS, or grids cannot use it."""
    own = {"task", "method", "tier", "seed", "memory"}
    assert (
        set(CONCERNS) == set(METHODS)
        and set().union(*CONCERNS.values()) == set(inspect.signature(run).parameters) - own
    )


def test_an_option_that_concerns_no_method_changes_nothing(tmp_path):
    """CONCERNS against what the methods do: what it leaves out may be set at will."""
    common = dict(seed=1, n_train=12, n_test=2, checkpoints=0)
    other = dict(
        k=3,
        normalise=True,
        n_centres=4,
        epochs=1,
        lr=0.01,
        max_grad_norm=0.5,
        ewc_lambda=9.0,
        n_images=2,
        kappa=2,
        sigma=1.0,
        balanced=True,
        adapt_from="layer4",
    )
    for method in ("pixels", "dn2", "spade", "svdd", "bank"):
        foreign = {key: value for key, value in other.items() if key not in CONCERNS[method]}
        base = dict(epochs=1) if method == "svdd" else {}
        task = "surfaces:weave" if method in ("spade", "bank") else "pictograms:star"
        size = dict(size=64) if task.startswith("surfaces") else {}
        assert run(task, method, **common, **size, **base)["roc_auc"] == pytest.approx(
            run(task, method, **common, **size, **base, **foreign)["roc_auc"], abs=1e-9
        ), method


PAPER = sorted(name for name in grids() if name.endswith("_paper"))


@pytest.mark.parametrize("name", PAPER)
def test_each_committed_grid_has_an_embedded_fellow_of_a_few_minutes(name):
    paper, small = load_grid(name), load_grid(name.replace("_paper", "_embedded"))
    assert (
        paper.name == name
        and paper.tier == "paper"
        and small.tier == "embedded"
        and paper.description
        and small.description
    )
    assert small.name == name.replace("_paper", "_embedded")
    seconds = estimate(small.runs(), [], 2)
    assert seconds < 300 and (name == "one_class_paper" or seconds < 240)


def test_what_the_requirements_name_has_a_grid():
    wanted = [
        "one_class",
        "outlier_exposure",
        "segmentation",
        "blocks",
        "neighbours",
        "gallery",
        "training_images",
        "normal_classes",
        "fisher",
        "lambda",
    ]
    assert sorted(f"{name}_{tier}" for name in wanted for tier in ("embedded", "paper")) == list(
        grids()
    )
    small = load_grid("one_class_embedded")
    assert len(small.runs()) == 70 and small.blocks[0]["methods"] == [
        "pixels",
        "dn2",
        "whitened",
        "early",
        "ses",
        "ewc",
        "oe",
    ]
    assert DEFAULT in load_grid("lambda_embedded").blocks[0]["vary"]["ewc_lambda"]


def test_a_grid_that_is_nowhere():
    with pytest.raises(
        FileNotFoundError,
        match="grid 'one_clas': there is no such file, and no grid of that name: .* one_class_embedded",
    ):
        load_grid("one_clas")


# ---------------------------------------------------------------- one run


def test_a_result_says_where_it_came_from():
    settings = dict(
        task="pictograms:star",
        method="early",
        tier="embedded",
        seed=2,
        n_train=20,
        n_test=4,
        epochs=1,
    )
    result = attempt(settings, threads=1)
    record = run(**settings)
    same = [key for key in record if key not in ("seconds", "peak_rss_mb")]
    assert {key: result[key] for key in same} == {key: record[key] for key in same}
    assert (
        result["settings"] == settings
        and result["id"] == identity(settings)
        and result["threads"] == 1
    )
    assert (
        set(result["all_settings"]) == set(inspect.signature(run).parameters) - {"memory"}
        and result["all_settings"]["k"] == 2
    )
    assert (
        result["tier_defaults"]["pace"]["lr"] == 0.25
        and result["tier_defaults"]["backbone"] == "glyphs_resnet4"
    )
    assert {"pandalib", "torch", "torchvision", "numpy", "faiss-cpu", "python"} <= set(
        result["versions"]
    )
    assert (
        result["device"].startswith(("cpu: ", "cuda: "))
        and result["started"].endswith("+00:00")
        and "commit" in result
    )
    assert socket.gethostname() not in json.dumps(result, allow_nan=False)


def test_a_failure_is_a_result():
    settings = dict(
        task="pictograms:star",
        method="early",
        tier="embedded",
        seed=0,
        n_train=20,
        n_test=4,
        lr=1e30,
        max_grad_norm=1e30,
    )
    result = attempt(settings)
    assert (
        result["error"]["type"] == "FloatingPointError"
        and "lower lr (now 1e+30)" in result["error"]["message"]
    )
    assert result["error"]["traceback"][-1].startswith("adapt.py:") and not any(
        "/" in line.split(" in ")[0] for line in result["error"]["traceback"]
    )
    assert (
        result["roc_auc"] is None
        and result["history"] == []
        and result["seconds"] > 0
        and result["versions"]["torch"]
    )
    json.dumps(result, allow_nan=False)


def test_a_failing_run_is_told_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    """One of three runs cannot be (13 centres of 12 images). Its error stands until it is asked for again."""
    monkeypatch.setenv("PANDALIB_QUIET", "0")
    path = grid_of(
        tmp_path, '[settings]\nn_train = 12\nn_test = 2\n[vary]\nn_centres = [4, 13, "default"]\n'
    )
    command = ["sweep", str(path), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert (
        "failed: pictograms:star  dn2  seed 0  ValueError: n_centres must lie between 1 and the number of images, 12; got 13"
        in captured.out
    )
    assert (
        "g  2 of 3 runs" in captured.out
        and "FAILED: n_centres must lie" in captured.err
        and "g: 3 of 3, 1 failed" in captured.err
    )
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "runs").glob("*.json")}
    assert len(written) == 3
    assert main(command) == 1 and {file: file.stat().st_mtime_ns for file in written} == written
    assert main([*command, "--retry-failed"]) == 1
    assert sum(file.stat().st_mtime_ns != before for file, before in written.items()) == 1
    capsys.readouterr()
    assert main([*command, "--dry-run", "--retry-failed"]) == 0
    out = capsys.readouterr().out
    assert (
        "n_centres=13  n_test=2  n_train=12  failed" in out
        and out.count("  done\n") == 2
        and "3 runs, 1 to do, about " in out
    )
    assert main(["table", str(tmp_path / "out")]) == 1
    page = (tmp_path / "out" / "table.md").read_text()
    assert (
        "## Failed runs" in page
        and "n_centres = 13" in page
        and "ValueError: n_centres must lie" in page
    )


# ---------------------------------------------------------------- a folder of results


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    path = grid_of(folder, "[settings]\nn_train = 20\nn_test = 4\n", methods='["pixels", "dn2"]')
    return path, sweep(path, folder / "out", workers=1, progress=False), folder / "out"


def test_results_are_read_in_the_order_of_the_grid(swept):
    path, results, folder = swept
    assert [result["method"] for result in results] == ["pixels", "dn2"] and read_results(
        folder
    ) == results
    plan = read_plan(folder)
    assert (
        plan["name"] == "g"
        and plan["runs"] == load_grid(path).runs()
        and plan["classes"] == {"pictograms": 10}
        and plan["left_out"] == {}
    )


def test_a_damaged_result_is_made_again(swept):
    path, results, folder = swept
    file = folder / "runs" / file_name(results[0]["settings"])
    whole = file.read_text()
    for damage in (
        whole[: len(whole) // 2],
        "",
        "[]",
        sealed({**results[0], "id": "0" * 12}).decode(),
    ):
        file.write_text(damage)
        assert len(read_results(folder)) == 1
    assert (
        sweep(path, folder, workers=1, progress=False)[0]["roc_auc"] == results[0]["roc_auc"]
        and len(read_results(folder)) == 2
    )


def test_one_folder_one_grid(swept, tmp_path):
    _, _, folder = swept
    with pytest.raises(
        ValueError, match="holds the results of grid 'g', not of 'other': choose another folder"
    ):
        sweep(grid_of(tmp_path, name='"other"'), folder, progress=False)
    with pytest.raises(FileNotFoundError, match="holds no results: there is no plan.json in it"):
        read_results(tmp_path)
    (tmp_path / "plan.json").write_text('{"format": 1, "runs": [')
    with pytest.raises(
        ValueError, match="plan.json is damaged .*: delete it and call the sweep again"
    ):
        read_results(tmp_path)


def test_results_of_other_weights_are_not_continued(swept):
    path, results, folder = swept
    file = folder / "runs" / file_name(results[1]["settings"])
    whole = file.read_text()
    content = unsealed(whole)
    file.write_bytes(sealed(content | dict(weights_sha256="f" * 64)))
    with pytest.raises(
        ValueError,
        match="was made with weights ffffffffffff, and embedded ones are now .*: choose another folder",
    ):
        sweep(path, folder, workers=1, progress=False)
    content["tier_defaults"]["pace"]["early"] = 40
    file.write_bytes(sealed(content))
    with pytest.raises(
        ValueError, match="was made when the tier embedded had another early: choose another folder"
    ):
        sweep(path, folder, workers=1, progress=False)
    file.write_text(whole)


def test_missing_weights_are_told_before_anything_starts(tmp_path):
    path = grid_of(
        tmp_path, backbones='[{ name = "glyphs_resnet4", weights = "none.safetensors" }]'
    )
    with pytest.raises(FileNotFoundError, match="weights none.safetensors: there is no such file"):
        sweep(path, tmp_path / "out", workers=1, progress=False)
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--workers", "workers=0: expected at least 1"),
        ("--threads", "threads=0: expected at least 1"),
    ],
)
def test_options_that_cannot_be(option, message, tmp_path, capsys):
    assert main(["sweep", str(grid_of(tmp_path)), "--out", str(tmp_path / "out"), option, "0"]) == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------- how long


def test_estimate_takes_what_was_measured():
    runs = [
        dict(task="t", method=method, tier="paper", seed=0)
        for method in ("dn2", "dn2", "ewc", "ewc")
    ]
    seen = [
        dict(method="dn2", seconds=2.0),
        dict(method="dn2", seconds=4.0),
        dict(method="ewc", seconds=30.0),
    ]
    assert estimate(runs, seen, 1) == pytest.approx(3 + 3 + 30 + 30) and estimate(
        runs, seen, 2
    ) == pytest.approx(33)
    assert estimate(runs[2:3], seen, 8) == 30  # a run is not divided
    usual = experiments.USUAL_SECONDS
    assert estimate(runs, seen[:2], 1) == pytest.approx(
        6 + 2 * 3 * usual["ewc"] / usual["dn2"]
    )  # the other in its usual proportion
    assert (
        estimate(runs, [], 1) is None
        and estimate([dict(runs[0], tier="embedded")], [], 1) == usual["dn2"]
    )
    assert set(usual) == set(METHODS)
    assert [in_words(seconds) for seconds in (12.4, 200, 7500)] == [
        "12 s",
        "3 min 20 s",
        "2 h 5 min",
    ]
