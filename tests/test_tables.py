"""Tables: means and intervals against their definitions; what stands beside them."""

import csv
import io
import re

import numpy as np
import pytest
from PIL import Image

from pandalib import published_numbers, summarise, write_table
from pandalib.experiments.results import PLAN, canonical, identity, write_result
from pandalib.experiments.tables import (
    as_csv,
    as_markdown,
    class_interval,
    differences,
    labels,
    paired,
    read_by_class,
)
from pandalib.io import dump_json_with_hash
from pandalib.metrics import bootstrap_interval, paired_interval, roc_auc

VERSIONS = dict(pandalib="0.1.0", torch="2")


def result(task, method, *, tier="embedded", seed=0, roc_auc=0.9, weights="a" * 64, **options):
    """A result file's content; `error`, `pixel`, `pro` and `history` are of the record."""
    record = dict(roc_auc=roc_auc, pixel_roc_auc=options.pop("pixel", None))
    record |= dict(pro=options.pop("pro", None), history=options.pop("history", []))
    record |= dict(backbone="net", weights_sha256=weights, versions=VERSIONS)
    if method == "pixels":
        record |= dict(backbone=None, weights_sha256=None)
    if "error" in options:
        record = dict(error=dict(type="ValueError", message=options.pop("error")))
    main = dict(task=task, method=method, tier=tier, seed=seed)
    settings = canonical(main | options)
    return dict(id=identity(settings), settings=settings, **main, **record)


def plan_of(results, more=(), **classes):
    runs = [one["settings"] for one in [*results, *more]]
    about = dict(name="g", description="A grid.", tier=results[0]["tier"], left_out={})
    return about | dict(runs=runs, classes=classes)


def folder_of(folder, results, **classes):
    for one in results:
        write_result(one, folder)
    (folder / PLAN).write_bytes(dump_json_with_hash(plan_of(results, **classes)))
    return folder


def of_classes(method, values, **options):
    return [
        result(f"pictograms:{name}", method, roc_auc=one, **options) for name, one in values.items()
    ]


def test_mean_over_classes_of_the_mean_over_seeds():
    """A class with more seeds weighs no more than another."""
    results = [
        *(result("pictograms:star", "dn2", seed=seed, roc_auc=0.6 + seed / 5) for seed in (0, 1)),
        result("pictograms:heart", "dn2", roc_auc=0.9),
    ]
    (row,) = summarise(results)
    assert row.by_class == {"roc_auc": pytest.approx({"star": 0.7, "heart": 0.9})}
    assert row.mean("roc_auc") == pytest.approx(0.8)
    assert (row.n_classes, row.seeds, row.n_runs, row.data_set) == (2, [0, 1], 3, "pictograms")


def test_the_interval_is_the_bootstrap_over_classes():
    values = [0.7013, 0.7557, 0.9071, 0.9532, 0.6119, 0.8547]
    rng = np.random.default_rng(1)  # written out, with other draws
    means = [np.mean([values[rng.integers(len(values))] for _ in values]) for _ in range(4000)]
    assert class_interval(values) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)
    assert class_interval(values[::-1]) == class_interval(values)
    assert class_interval([0.9]) is None
    assert class_interval([0.9, 0.9]) == pytest.approx((0.9, 0.9))


def test_rows_are_compared_class_by_class():
    """Classes differ much, methods little: the paired difference is sure, the intervals overlap."""
    plain = dict(star=0.6, heart=0.7, plane=0.8, phone=0.95)
    better = {name: value + 0.01 for name, value in plain.items()} | dict(anchor=0.5)
    results = of_classes("dn2", plain) + of_classes("early", better)
    dn2, early = summarise(results)
    assert differences(early, dn2, "roc_auc") == pytest.approx([0.01] * 4)
    page = as_markdown([dn2, early], plan_of(results), results, "Alt.")
    assert "| method | network | ROC-AUC | ROC-AUC minus dn2 | runs |" in page
    assert "| +0.010 (+0.010 to +0.010) | 5 |" in page
    assert "| dn2 | net | 0.762 (" in page


def test_kinds_of_cells_are_compared_image_by_image():
    """Poly and mono are two data sets of one class: there the bootstrap draws the test images."""
    rng = np.random.default_rng(0)
    labels_ = np.repeat([0, 1], [40, 30])
    results, tests = [], {}
    for task, shift in (("elpv:mono", 2.0), ("elpv:poly", 1.0)):
        for seed in (0, 1):
            noise = rng.normal(size=70)
            for method, gain in (("dn2", 0.0), ("early", 0.5)):
                scores = np.float32(noise + (shift + gain) * labels_)
                tests[task, method, seed] = labels_, scores
                one = result(
                    task, method, tier="standard", seed=seed, roc_auc=roc_auc(labels_, scores)
                )
                one |= dict(labels="".join(map(str, labels_)), scores=[float(x) for x in scores])
                results.append(one)
    rows = summarise(results)
    assert [(row.data_set, row.method) for row in rows] == [
        (kind, method) for kind in ("elpv:mono", "elpv:poly") for method in ("dn2", "early")
    ]
    for dn2, early in (rows[:2], rows[2:]):
        of = [[tests[dn2.data_set, method, seed] for seed in (0, 1)] for method in ("dn2", "early")]
        alone = np.mean([bootstrap_interval(*test) for test in of[1]], axis=0)
        assert early.interval("roc_auc") == pytest.approx(tuple(alone), abs=1e-12)
        both = [paired_interval(*b, a[1]) for a, b in zip(*of)]
        change = paired(early, dn2, "roc_auc")
        assert change == pytest.approx(tuple(np.mean(both, axis=0)), abs=1e-12)
        assert change[0] > 0 and early.interval("roc_auc")[0] < dn2.interval("roc_auc")[1]
    page = as_markdown(rows, plan_of(results), results, "Alt.")
    assert "draws of the test images" in page and "draws of the classes" not in page
    assert f"({change[0]:+.3f} to {change[1]:+.3f})" in page
    without = [{key: one[key] for key in one if key != "scores"} for one in results]
    assert summarise(without)[0].interval("roc_auc") is None  # from an older sweep


def test_rows_are_told_apart():
    rows = summarise(
        [
            result("pictograms:star", "dn2"),
            result("pictograms:star", "dn2", k=5),
            result("pictograms:star", "early"),
            result("surfaces:weave", "dn2"),
            result("pictograms:star+heart", "dn2"),
            result("pictograms:heart", "dn2", backbone="resnet18"),
            result("folder:/a:cat", "dn2"),
            result("folder:/b:cat", "dn2"),
            result("folder:/b", "dn2"),  # in MVTec's layout
        ]
    )
    assert [row.normal_classes for row in rows] == [1, 1, 1, 1, 2, 1, 1, 1]
    assert [row.data_set for row in rows[-2:]] == ["folder:/a", "folder:/b"]
    assert set(rows[-1].by_class["roc_auc"]) == {"cat", "/b"}
    assert labels(rows[:5])[0] == ["dn2, k = 2", "dn2, k = 5", "early", "dn2, k = 2"] + [
        "dn2, k = 2, 2 normal classes"
    ]


def test_results_of_different_weights_are_never_averaged():
    results = [result("pictograms:star", "dn2"), result("pictograms:heart", "dn2", weights="b")]
    with pytest.raises(ValueError, match="pictograms dn2: results of different weights"):
        summarise(results)
    random = [
        result("pictograms:star", "dn2", weights=digit, seed=seed)
        for seed, digit in enumerate("ab")
    ]
    for one in random:
        one["settings"]["weights"] = "random"  # drawn again for each seed
    assert summarise(random)[0].n_runs == 2


def test_what_is_incomplete_says_so():
    done = of_classes("dn2", dict(star=0.8, heart=0.9))
    broken = result("pictograms:plane", "dn2", error="no memory\nleft")
    plan = plan_of([*done, broken], [result("pictograms:phone", "dn2")], pictograms=10)
    (row,) = summarise([*done, broken], plan)
    assert (row.n_classes, row.classes_wanted, row.n_runs, row.runs_wanted) == (2, 10, 2, 4)
    page = as_markdown([row], plan, [*done, broken], "Alt.")
    assert "| 2 of 4, 2 of 10 classes, 1 failed |" in page
    assert "- pictograms:plane dn2 seed 0 FAILED: ValueError: no memory left\n" in page
    complete = summarise(done, plan_of(done, pictograms=2))
    assert "| 2 |" in as_markdown(complete, plan_of(done), done, "Alt.")


def test_a_whole_history_tells_the_best_epoch_and_the_collapse():
    history = [
        dict(roc_auc=auc, feature_variance=v) for auc, v in ((0.8, 2.0), (0.9, 1), (0.7, 0.1))
    ]
    results = [
        result("pictograms:star", "compactness", roc_auc=0.7, history=history, checkpoints=2),
        result("pictograms:star", "early", history=history[:2]),
    ]
    rows = summarise(results)
    assert rows[0].mean("best_roc_auc") == 0.9 and rows[0].mean("variance_ratio") == 0.05
    assert list(rows[1].by_class) == ["roc_auc"]
    page = as_markdown(rows, plan_of(results), results, "Alt.")
    assert "an upper bound, not a method" in page and "| 0.900 | 0.050 |" in page


CIFAR = [
    result(f"cifar10:{name}", "ewc", tier="standard", roc_auc=auc, normalise=False)
    for name, auc in (("airplane", 0.9), ("bird", 0.91))
]


def test_published_numbers_stand_beside_the_same_experiment_only():
    (number,) = summarise(CIFAR)[0].published("roc_auc")
    assert number.value == pytest.approx(0.962)
    for other in (
        result("cifar10:bird", "ewc", tier="standard"),  # features of length 1
        result("cifar10:bird", "ewc", tier="embedded"),  # whatever images those are
        result("pictograms:star", "ewc", tier="standard"),  # another data set
        result("cifar10:bird", "compactness", tier="standard"),  # another method
        result("cifar10:bird", "ewc", tier="paper", k=5),
        result("cifar10:bird", "ewc", tier="paper", ewc_lambda=1.0),
        result("cifar10:bird", "ewc", tier="paper", n_train=100),  # an ablation
        result("cifar10:bird+cat", "ewc", tier="paper"),  # several normal classes
    ):
        assert summarise([other])[0].published("roc_auc") == [], other["settings"]
    harmless = result("cifar10:bird", "ewc", tier="paper", checkpoints=1, bf16=True)
    assert len(summarise([harmless])[0].published("roc_auc")) == 1
    measured = result("cifar10:bird", "ewc", tier="standard", normalise=False, ewc_lambda=10.0)
    assert len(summarise([measured])[0].published("roc_auc")) == 1


def test_a_table_with_published_numbers(tmp_path):
    more = dict(tier="standard")
    exposed = result("cifar10:bird", "oe", outlier_images="cifar100", **more)
    results = [*CIFAR, result("cifar10:bird", "dn2", roc_auc=0.4, **more), exposed]
    write_table(folder_of(tmp_path, results, cifar10=10))
    page = (tmp_path / "table.md").read_text()
    for words in (
        "| 2, 2 of 10 classes | ROC-AUC 0.962 [1] |",
        "ROC-AUC 0.989 [2]",
        "1. PANDA: CIFAR-10, one class normal",
        "| published [1] | 0.974 | 0.939 |",
        "were reached with other outliers: 80 Million Tiny Images",
        "The same in all rows: normalise = False (ewc); outlier_images = cifar100 (oe).",
    ):
        assert words in page
    alt = "Mean ROC-AUC, from cifar10: dn2 (0.400) to cifar10: ewc (0.905)."
    assert "published [1]" not in read_by_class(tmp_path)
    assert f"![{alt}](table.png)" in page and page.count(alt) == 2
    lines = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert [(line["method"], line["published"]) for line in lines] == [
        ("ewc", "0.96200"),
        ("dn2", ""),  # no source for its number could be read
        ("oe", "0.98900"),
    ]
    assert all(("CIFAR-10" in line["experiment"]) == bool(line["published"]) for line in lines)
    with Image.open(tmp_path / "table.png") as image:
        assert image.width > 500 and image.height > 100


def test_embedded_results_never_stand_beside_published_ones(tmp_path):
    tasks = ("cifar10:bird", "mvtec:screw")  # even under a published data set's name
    methods = ("dn2", "ewc", "oe", "spade")
    both = dict(pixel=0.9, pro=0.9)
    write_table(folder_of(tmp_path, [result(one, m, **both) for one in tasks for m in methods]))
    page, table = (tmp_path / "table.md").read_text(), (tmp_path / "table.csv").read_text()
    assert not re.search(r"verified|Reiss|0\.962", page + table)
    assert page.count("published") == 1 and "may stand beside published ones" in page


def test_each_published_number_stands_with_its_experiment(tmp_path):
    names = {
        (number.data_set, method) for number in published_numbers() for method in number.methods
    }
    maps = dict(pixel=0.5, pro=0.5)
    results = [
        result(
            f"{name}:x", method, tier="paper", roc_auc=0.5, **(maps if method == "spade" else {})
        )
        for name, method in sorted(names)
    ]
    rows = write_table(folder_of(tmp_path, results))
    page = (tmp_path / "table.md").read_text()
    shown = [number for row in rows for metric in row.by_class for number in row.published(metric)]
    assert len(shown) == sum(len(number.methods) for number in published_numbers()) > 10
    for number in shown:
        assert f"{number.value:.3f} [" in page and number.experiment in page
        assert not re.search(rf"{number.value:.3f}(?! \[)", page)


def test_one_line_of_csv_for_each_metric():
    rows = summarise([result("surfaces:weave", "spade", roc_auc=0.9, pixel=0.8, pro=0.7)])
    lines = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [(line["metric"], line["mean"], line["low"]) for line in lines] == [
        ("roc_auc", "0.90000", ""),
        ("pixel_roc_auc", "0.80000", ""),
        ("pro", "0.70000", ""),
    ]


def test_values_of_options_where_they_were_left_out():
    lambdas = [
        result("pictograms:star", "ewc", ewc_lambda=value) for value in (300.0, None, 30000.0)
    ]
    rows = summarise([*lambdas, result("pictograms:star", "dn2", weights="c")])
    words, same = labels(rows)
    assert words == [f"ewc, ewc_lambda = {value}" for value in (300.0, 3000.0, 30000.0)] + ["dn2"]
    assert same == ""


def test_the_same_results_give_the_same_files(tmp_path):
    results = of_classes("dn2", dict(star=0.8, heart=0.9, plane=0.7))
    pages = []
    for number in range(2):
        folder = folder_of(tmp_path / str(number), results)
        write_table(folder)
        names = ("table.md", "table.csv", "table.png")
        pages.append([(folder / name).read_bytes() for name in names])
    assert pages[0] == pages[1]


def test_a_table_of_nothing(tmp_path):
    failed = result("pictograms:star", "dn2", error="no memory")
    with pytest.raises(ValueError, match="no run has a result yet, 1 failed"):
        write_table(folder_of(tmp_path, [failed]))
    other = result("surfaces:weave", "dn2")
    rows = summarise([failed, other])
    page = as_markdown(rows, plan_of([failed, other]), [failed, other], "Alt.")
    assert "## pictograms\n\nNo run has a result yet." in page


@pytest.mark.parametrize("names", ["ab", "abcdefg"], ids=["classes across", "classes down"])
def test_a_kept_table_is_read_class_by_class(tmp_path, names):
    rng = np.random.default_rng(0)
    history = [dict(roc_auc=0.5, feature_variance=1.0)] * 2
    wanted, runs = {}, []
    for method, rate in (("dn2", None), ("early", 0.1), ("early", 0.2)):
        values = dict(zip(names, rng.random(len(names)).round(3)))
        options = dict(lr=rate, history=[*history, dict(roc_auc=0.25, feature_variance=0.5)])
        runs += of_classes(method, values, **(options if rate else {}))
        wanted[f"{method}, lr = {rate}" if rate else method] = values
    del wanted["early, lr = 0.2"][names[-1]]  # not measured yet
    write_table(folder_of(tmp_path, runs[:-1], pictograms=len(names)))
    assert read_by_class(tmp_path) == wanted
    best = read_by_class(tmp_path, "best_roc_auc")
    assert best["early, lr = 0.1"] == dict.fromkeys(names, 0.5) and "dn2" not in best
    with pytest.raises(ValueError, match='0 tables "PRO by normal class:", expected one'):
        read_by_class(tmp_path, "pro")
