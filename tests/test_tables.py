"""Tables: means and intervals against their definitions, what stands beside them and what never does."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pandalib import summarise, write_table
from pandalib.experiments import published, tables
from pandalib.__main__ import main
from pandalib.experiments.sweep import FORMAT, KEYS, PLAN, write_result
from pandalib.experiments.grids import canonical, identity
from pandalib.experiments.published import published_numbers
from pandalib.io import sealed
from pandalib.experiments.tables import as_csv, as_markdown, class_interval

VERSIONS = dict(pandalib="0.1.0", torch="2", **{"faiss-cpu": "1"})


def result(
    task,
    method,
    *,
    tier="embedded",
    seed=0,
    roc_auc=0.9,
    weights="a" * 64,
    error=None,
    pixel=None,
    pro=None,
    n_train=400,
    **options,
) -> dict:
    settings = canonical(dict(task=task, method=method, tier=tier, seed=seed, **options))
    record = dict.fromkeys(KEYS) | dict(
        task=task,
        method=method,
        tier=tier,
        seed=seed,
        n_train=n_train,
        n_test=600,
        seconds=2.0,
        history=[],
    )
    record |= dict(
        backbone="net", weights_sha256=weights, roc_auc=roc_auc, pixel_roc_auc=pixel, pro=pro
    )
    if method == "pixels":
        record |= dict(backbone=None, weights_sha256=None)
    record |= (
        {}
        if error is None
        else dict(
            roc_auc=None,
            weights_sha256=None,
            backbone=None,
            error=dict(type="ValueError", message=error, traceback=[]),
        )
    )
    return dict(
        format=FORMAT, id=identity(settings), settings=settings, versions=VERSIONS, **record
    )


def plan_of(results, more=(), **classes) -> dict:
    runs = [one["settings"] for one in [*results, *more]]
    return dict(
        format=FORMAT,
        name="g",
        description="A grid.",
        tier=results[0]["tier"],
        runs=runs,
        classes=classes,
        left_out={},
    )


def folder_of(tmp_path, results, **plan):
    for one in results:
        write_result(one, tmp_path)
    (tmp_path / PLAN).write_bytes(sealed(plan_of(results) | plan))
    return tmp_path


def test_mean_over_classes_of_the_mean_over_seeds():
    """A class with more seeds weighs no more than another."""
    results = [
        result("pictograms:star", "dn2", seed=seed, roc_auc=value)
        for seed, value in enumerate((0.6, 0.8))
    ] + [result("pictograms:heart", "dn2", roc_auc=0.9)]
    (row,) = summarise(results)
    assert row["roc_auc"] == pytest.approx((0.7 + 0.9) / 2) and row[
        "roc_auc_by_class"
    ] == pytest.approx({"star": 0.7, "heart": 0.9})
    assert (row["n_classes"], row["seeds"], row["n_runs"], row["data_set"]) == (
        2,
        [0, 1],
        3,
        "pictograms",
    )
    assert row["pixel_roc_auc"] is None and row["pro"] is None and row["published"] == []


def test_the_interval_is_the_bootstrap_over_classes():
    values = [0.7013, 0.7557, 0.9071, 0.9532, 0.6119, 0.8547]
    low, high = class_interval(values)
    rng = np.random.default_rng(1)
    means = [
        np.mean([values[rng.integers(len(values))] for _ in values]) for _ in range(4000)
    ]  # written out, with other draws
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)
    assert class_interval(values[::-1]) == (low, high)  # the order of the classes is no matter
    assert class_interval([0.9]) == (None, None) and class_interval(
        [0.9, 0.9, 0.9]
    ) == pytest.approx((0.9, 0.9))


def test_cells_are_told_apart():
    results = [
        result("pictograms:star", "dn2"),
        result("pictograms:star", "dn2", k=5),
        result("pictograms:star", "early"),
        result("surfaces:weave", "dn2"),
        result("pictograms:star+heart", "dn2"),
        result("pictograms:heart", "dn2", backbone="resnet18"),
        result("folder:/a:cat", "dn2"),
        result("folder:/b:cat", "dn2"),
    ]
    rows = summarise(results)
    assert len(rows) == 8 and [row["normal_classes"] for row in rows] == [1, 1, 1, 1, 2, 1, 1, 1]
    assert [row["data_set"] for row in rows[-2:]] == ["folder:/a", "folder:/b"] and rows[-1][
        "roc_auc_by_class"
    ] == {"cat": 0.9}


def test_results_of_different_weights_are_never_averaged():
    results = [
        result("pictograms:star", "dn2"),
        result("pictograms:heart", "dn2", weights="b" * 64),
    ]
    with pytest.raises(
        ValueError,
        match="pictograms dn2: results of different weights .aaaaaaaaaaaa, bbbbbbbbbbbb. cannot be averaged",
    ):
        summarise(results)
    random = [
        result("pictograms:star", "dn2", weights=digit * 64, seed=seed) | dict()
        for seed, digit in enumerate("ab")
    ]
    for one in random:
        one["settings"]["weights"] = "random"
    assert summarise(random)[0]["n_runs"] == 2  # drawn anew for each seed
    assert len(summarise([results[0], result("pictograms:heart", "ewc", weights="b" * 64)])) == 2


def test_what_is_incomplete_says_so(tmp_path):
    done = [
        result(f"pictograms:{name}", "dn2", roc_auc=value)
        for name, value in (("star", 0.8), ("heart", 0.9))
    ]
    broken, absent = (
        result("pictograms:plane", "dn2", error="no | memory\nleft"),
        result("pictograms:phone", "dn2"),
    )
    plan = plan_of([*done, broken], [absent], pictograms=10)
    (row,) = summarise([*done, broken], plan)
    assert (
        row["n_classes"],
        row["classes_wanted"],
        row["n_runs"],
        row["runs_wanted"],
        row["n_failed"],
    ) == (2, 10, 2, 4, 1)
    page = as_markdown([row], plan, [*done, broken], "Alt.")
    assert (
        "2 of 10 classes, 2 of 4 runs, 1 failed" in page
        and "**Not finished:** 1 of 4 runs have no result yet." in page
    )
    assert "| pictograms:plane dn2 seed 0 | ValueError: no \\| memory left |" in page
    complete = summarise(done, plan_of(done, pictograms=2))
    assert (
        " of "
        not in re.findall(r"\| dn2 \|.*", as_markdown(complete, plan_of(done), done, "Alt."))[0]
    )


STANDARD = [
    result(f"cifar10:{name}", "ewc", tier="standard", roc_auc=0.9 + i / 100)
    for i, name in enumerate(("airplane", "bird"))
]


def test_published_numbers_stand_beside_the_same_experiment_only():
    beside = summarise(STANDARD)[0]["published"]
    assert [(number.value, number.mark) for number in beside] == [
        (pytest.approx(0.962), "verified")
    ]
    for other in (
        [result("cifar10:bird", "ewc", tier="embedded")],  # whatever images those are
        [result("pictograms:star", "ewc", tier="standard")],  # another data set
        [result("cifar10:bird", "compactness", tier="standard")],  # another method
        [result("cifar10:bird", "ewc", tier="standard", k=5)],
        [
            result("cifar10:bird", "ewc", tier="standard", n_train=100, ewc_lambda=1.0)
        ],  # an ablation
        [result("cifar10:bird+cat", "ewc", tier="standard")],  # several normal classes
    ):
        assert summarise(other)[0]["published"] == [], other[0]["settings"]
    assert (
        len(
            summarise([result("cifar10:bird", "ewc", tier="paper", checkpoints=1, bf16=True)])[0][
                "published"
            ]
        )
        == 1
    )


def test_a_table_outside_of_the_embedded_tier(tmp_path):
    folder = folder_of(
        tmp_path,
        [
            *STANDARD,
            result("cifar10:bird", "dn2", tier="standard"),
            result("cifar10:bird", "oe", tier="standard", outliers="cifar100"),
        ],
        classes=dict(cifar10=10),
    )
    rows = write_table(folder)
    page = (folder / "table.md").read_text()
    assert (
        "0.962 verified [1]" in page
        and "0.925 unverified [2]" in page
        and "0.989 verified [3]" in page
    )
    assert (
        "1. PANDA-EWC: CIFAR-10, one class normal" in page
        and "were reached with other outliers: 80 Million Tiny Images" in page
    )
    assert (
        "2 of 10 classes" in page
        and "PANDA-EWC, published, verified" in page
        and "| PANDA-EWC, published, verified | 0.974 | 0.939 |" in page
    )
    lines = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    assert [(line["method"], line["published"], line["mark"]) for line in lines] == [
        ("ewc", "0.9620", "verified"),
        ("dn2", "0.9250", "unverified"),
        ("oe", "0.9890", "verified"),
    ]
    assert all("CIFAR-10" in line["experiment"] for line in lines) and float(
        lines[0]["mean"]
    ) == pytest.approx(0.905)
    assert len(rows) == 3


def test_embedded_results_never_stand_beside_published_ones(tmp_path):
    names = (
        "cifar10:bird",
        "mvtec:screw",
        "pictograms:star",
    )  # even under a published data set's name
    folder = folder_of(
        tmp_path,
        [
            result(task, method, pixel=0.9, pro=0.9)
            for task in names
            for method in ("dn2", "ewc", "oe", "spade")
        ],
    )
    rows = write_table(folder)
    page, table = (folder / "table.md").read_text(), (folder / "table.csv").read_text()
    assert all(row["published"] == [] for row in rows)
    assert "published" not in table and not re.search(r"verified|Reiss|0\.962", page + table)
    assert (
        page.count("published") == 1
        and "none of these figures may stand beside published ones" in page
    )


def test_nothing_unverified_is_printed_without_the_word(tmp_path):
    """Every unverified number, in a table of its data set and method, in Markdown, CSV and legend."""
    tasks = sorted(
        {
            (number.data_set, method, number.metric)
            for number in published_numbers()
            for method in number.methods
        }
    )
    results = [
        result(
            f"{name}:x",
            method,
            tier="paper",
            roc_auc=0.5,
            pixel=0.5 if method == "spade" else None,
            pro=0.5 if method == "spade" else None,
        )
        for name, method, _ in set((a, b, "") for a, b, _ in tasks)
    ]
    folder = folder_of(tmp_path, results)
    rows = write_table(folder)
    page = (folder / "table.md").read_text()
    shown = [number for row in rows for number in row["published"]]
    assert {str(number) for number in shown} == {
        str(number) for number in published_numbers() if number.methods
    } and len(shown) > 20
    for number in shown:
        pattern = re.escape(f"{number.value:.3f}") + r"(?![\d])( \w+)?"
        words = {found.group(1) for found in re.finditer(pattern, page)}
        assert words <= {" verified", " unverified", None} and f" {number.mark}" in words
        if number.mark == "unverified" and not any(
            other.mark == "verified" and f"{other.value:.3f}" == f"{number.value:.3f}"
            for other in shown
        ):
            assert words == {" unverified"}, (number, words)
    for line in csv.DictReader(io.StringIO((folder / "table.csv").read_text())):
        assert bool(line["published"]) == bool(line["mark"]) == bool(line["experiment"])


def test_published_numbers_are_whole():
    """Each has its experiment; the figures that the course rests on, and their marks, are these."""
    numbers = published_numbers()
    assert len(numbers) == 32 and all(
        number.mark in published.MARKS and len(number.experiment.split()) > 2 and number.source
        for number in numbers
    )
    assert all(
        0.5 < value <= 1 for number in numbers for value in (number.value, *number.classes.values())
    )
    assert all(
        number.level == ("image" if number.metric == "roc_auc" else "pixel") for number in numbers
    )
    (ewc,) = published_numbers("cifar10", "ewc")
    assert (
        np.mean(list(ewc.classes.values())) == pytest.approx(ewc.value, abs=5e-4)
        and len(ewc.classes) == 10
        and ewc.classes["cat"] == pytest.approx(0.9055)
    )
    (dn2,) = published_numbers("mvtec", "dn2")
    assert (
        np.mean(list(dn2.classes.values())) == pytest.approx(dn2.value, abs=1e-3)
        and len(dn2.classes) == 15
    )
    verified = {
        (number.data_set, number.published_as, number.metric, round(100 * number.value, 2))
        for number in numbers
        if number.mark == "verified"
    }
    assert {
        ("catsdogs", "PANDA-OE", "roc_auc", 94.5),
        ("mvtec", "PANDA segmentation", "pro", 91.7),
        ("cub200", "PANDA", "roc_auc", 95.3),
    } <= verified
    unverified = {
        (number.data_set, round(100 * number.value, 2))
        for number in numbers
        if number.mark == "unverified"
    }
    assert unverified == {
        ("cifar10", 92.5),
        ("cifar10", 95.9),
        ("cifar100", 94.1),
        ("cifar100", 97.3),
        ("fashion_mnist", 94.5),
        ("fashion_mnist", 95.6),
        ("fashion_mnist", 91.8),
        ("dior", 93.0),
        ("dior", 94.3),
        ("dior", 95.9),
        ("wbc", 87.4),
        ("flowers102", 94.1),
        ("ksdd", 98.8),
        ("chexpert", 68.6),
    }
    assert not [
        number for number in numbers if number.data_set in ("ksdd", "chexpert") and number.methods
    ]  # whose experiment is not known


def test_a_damaged_file_of_published_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("PANDALIB_DATA", str(tmp_path))
    rows = json.loads(
        (Path(published.__file__).parent.parent / "data" / "published.json").read_text()
    )
    for damage, message in (
        ("{", "is missing or damaged"),
        (
            json.dumps(rows | dict(rows=[rows["rows"][0] | dict(mark="sure")])),
            "has no mark or no experiment",
        ),
    ):
        (tmp_path / "published.json").write_text(damage)
        published._all.cache_clear()
        with pytest.raises(ValueError, match=message):
            published_numbers()
    monkeypatch.undo()
    published._all.cache_clear()
    assert published_numbers()


def test_options_that_vary_stand_in_the_row_and_the_others_once(tmp_path):
    lambdas = [
        result(
            "pictograms:star",
            "ewc",
            checkpoints=1,
            **({} if value is None else dict(ewc_lambda=value)),
        )
        for value in (300.0, None, 30000.0)
    ]
    sizes = [result("pictograms:star", "dn2", n_train=50, **{})]
    sizes[0]["settings"]["n_train"] = 50
    page = as_markdown(
        summarise([*lambdas, result("pictograms:star", "dn2"), *sizes]),
        plan_of(lambdas),
        lambdas,
        "Alt.",
    )
    rows = [
        line.split(" | ")[0]
        for line in page.splitlines()
        if line.startswith("| ewc") or line.startswith("| dn2")
    ]
    assert rows == [
        "| ewc, n_train = 400, strength = 300.0",
        "| ewc, n_train = 400, strength = 3000.0",
        "| ewc, n_train = 400, strength = 30000.0",
        "| dn2, n_train = 400",
        "| dn2, n_train = 50",
    ]
    assert "The same wherever it applies: checkpoints = 1." in page


def test_one_line_of_csv_for_each_metric():
    lines = list(
        csv.DictReader(
            io.StringIO(
                as_csv(
                    summarise([result("surfaces:weave", "spade", roc_auc=0.9, pixel=0.8, pro=0.7)])
                )
            )
        )
    )
    assert [(line["metric"], line["mean"], line["low"]) for line in lines] == [
        ("roc_auc", "0.90000", ""),
        ("pixel_roc_auc", "0.80000", ""),
        ("pro", "0.70000", ""),
    ]


def test_the_figure_and_its_sentence(tmp_path):
    folder = folder_of(
        tmp_path, [*STANDARD, result("cifar10:bird", "dn2", tier="standard", roc_auc=0.4)]
    )
    write_table(folder)
    page = (folder / "table.md").read_text()
    alt = re.search(r"!\[(.*)\]\(table.png\)", page).group(1)
    assert (
        alt == "Mean ROC-AUC on cifar10, from dn2 (0.400) to ewc (0.905)." and page.count(alt) == 2
    )  # attached, and to be read
    with Image.open(folder / "table.png") as image:
        assert image.width > 500 and image.height > 100
    fig, _ = tables.figure(summarise(STANDARD))
    markers = {
        label.get_text(): handle.get_marker()
        for legend in fig.legends
        for label, handle in zip(legend.get_texts(), legend.legend_handles)
    }
    assert markers == {"mean over classes, interval": "o", "published, verified": "D"}
    fig, _ = tables.figure(summarise([result("dior:ship", "dn2", tier="paper")]))
    markers = {
        label.get_text(): handle.get_marker()
        for label, handle in zip(fig.legends[0].get_texts(), fig.legends[0].legend_handles)
    }
    assert markers == {"mean over classes, interval": "o", "published, unverified": "s"}


def test_the_same_results_give_the_same_files(tmp_path):
    results = [
        result(f"pictograms:{name}", "dn2", roc_auc=value)
        for name, value in (("star", 0.8), ("heart", 0.9), ("plane", 0.7))
    ]
    pages = []
    for number, order in enumerate((results, results[::-1])):
        folder = folder_of(tmp_path / str(number), order, runs=[one["settings"] for one in results])
        write_table(folder)
        pages.append(
            [(folder / name).read_bytes() for name in ("table.md", "table.csv", "table.png")]
        )
    assert pages[0] == pages[1]


def test_a_table_of_nothing(tmp_path, capsys):
    assert main(["table", str(tmp_path / "nowhere")]) == 2
    assert (
        "holds no results: there is no plan.json in it. `python -m pandalib sweep GRID --out"
        in capsys.readouterr().err
    )
    folder = folder_of(tmp_path, [result("pictograms:star", "dn2", error="no memory")])
    assert main(["table", str(folder)]) == 2
    assert (
        "none of its 1 runs has a result yet (1 failed): call the sweep again"
        in capsys.readouterr().err
    )
    assert not (folder / "table.md").exists()


def test_figures_by_class_are_long_rather_than_wide():
    few = [
        result(f"pictograms:{name}", "ewc", ewc_lambda=float(value), roc_auc=value / 10)
        for name in ("star", "heart")
        for value in (5, 6, 7)
    ]
    page = as_markdown(summarise(few), plan_of(few), few, "Alt.")
    assert "|  | star | heart |\n|---|---|---|\n| ewc, strength = 5.0 | 0.500 | 0.500 |" in page
