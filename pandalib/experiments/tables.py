"""Tables of a sweep: the mean over the classes of each data set, beside the published number.

    summarise(read_results("results/one_class"))          # rows, for a notebook
    write_table("results/one_class")                      # table.md, table.csv, table.png

A row is a data set, a number of normal classes, a network, a method and its options. Its result is
the mean over the normal classes of the mean over the seeds. The interval is the bootstrap over the
*classes*: how much the mean would change with other classes of the same kind, but not with other
test images or seeds. Two rows are compared class by class, so that differences between the classes
do not widen the interval. A kind of solar cell is a data set with one class: there the bootstrap is
over the *test images*, of each seed, and rows are compared image by image. Results of the embedded
tier never stand beside published ones.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pandalib import plots
from pandalib.experiments.config import default_of, options_of
from pandalib.experiments.published import Published, published_numbers
from pandalib.experiments.results import (
    MAIN,
    SETTINGS,
    identity,
    in_brief,
    read_plan,
    read_runs,
    settings_of,
)
from pandalib.io import write_atomically
from pandalib.metrics import bootstrap_interval, paired_interval

METRICS = {
    "roc_auc": "ROC-AUC",
    "pixel_roc_auc": "pixel ROC-AUC",
    "pro": "PRO",
    "best_roc_auc": "ROC-AUC of the best epoch",  # these two need a whole history
    "variance_ratio": "feature variance, end / start",
}
BY_CLASS, PUBLISHED = "{} by normal class:", "published"
UPPER_BOUND = "The best epoch is chosen by the test labels: an upper bound, not a method."
EMBEDDED = (
    "Embedded tier: these are this project's own images and network, not the paper's, and none of "
    "these numbers may stand beside published ones."
)
INTERVALS = (
    "Mean: over the normal classes, of the mean over the seeds. In brackets: 95 % interval, 2000 "
    "draws of the classes with replacement; it tells how much the mean would move with other "
    "classes of the same kind, not with other test images or seeds."
)
IMAGE_INTERVALS = (
    "Mean: over the seeds. In brackets: 95 % interval, 1000 draws of the test images with "
    "replacement, its ends averaged over the seeds; it tells how much the result of one seed would "
    "move with other test images of the same kind."
)
OUTLIERS = (
    "The published results of outlier exposure were reached with other outliers: 80 Million Tiny "
    "Images, which its owners withdrew in 2020."
)
# A run with any other option is not the published experiment. The paper brings no feature to length
# 1; lambda's scale is the recipe's, so that outside the paper's tier a measured one stands for its.
HARMLESS = set(
    "checkpoints bf16 outlier_images n_outliers fisher fisher_images fisher_samples missing_masks "
    "weights backbone balanced size epochs normalise lr".split()
)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes
    ----------
    data_set, tier, method, options, backbone, weights_sha256
        What all its runs have in common.
    normal_classes : int
        How many classes are normal at once.
    by_class : dict
        Metric -> normal class -> mean over the seeds.
    tests : dict
        Class and seed -> labels and scores of the test images; empty for several classes.
    seeds, n_runs, n_failed, n_classes
        Of the results so far.
    runs_wanted, classes_wanted : int
        How many there should be.
    """

    data_set: str
    normal_classes: int
    tier: str
    method: str
    options: dict
    backbone: str | None
    weights_sha256: str | None
    by_class: dict[str, dict[str, float]]
    tests: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]
    seeds: list[int]
    n_runs: int
    n_failed: int
    n_classes: int
    runs_wanted: int
    classes_wanted: int

    def mean(self, metric: str) -> float:
        return float(np.mean(list(self.by_class[metric].values())))

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Over the classes; for a single one, of ROC-AUC, over the test images."""
        over_classes = class_interval(list(self.by_class[metric].values()))
        return over_classes or (self._over_images if metric == "roc_auc" else None)

    @cached_property
    def _over_images(self) -> tuple[float, float] | None:
        return _mean_ends([bootstrap_interval(*test) for test in self.tests.values()])

    def published(self, metric: str) -> list[Published]:
        """The published numbers of the same experiment."""
        given = set(self.options) - ({"ewc_lambda"} if self.tier != "paper" else set())
        same = (
            self.tier != "embedded"
            and self.normal_classes == 1
            and given <= HARMLESS
            and (self.method != "ewc" or _value(self, "normalise") == "False")
        )
        return published_numbers(self.data_set, self.method, metric) if same else []


def class_interval(values: list[float]) -> tuple[float, float] | None:
    """95 % bootstrap interval of the mean of one value per class; None for fewer than two."""
    if len(values) < 2:
        return None
    values = np.sort(values)  # so that their order changes no bit
    means = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _mean_ends(ends: list[tuple[float, float]]) -> tuple[float, float] | None:
    return (float(np.mean(ends, axis=0)[0]), float(np.mean(ends, axis=0)[1])) if ends else None


def paired(row: Row, other: Row, metric: str) -> tuple[float, float] | None:
    """95 % interval of a row minus another: by class; for a single one, by test image."""
    over_classes = class_interval(differences(row, other, metric))
    if over_classes or metric != "roc_auc":
        return over_classes
    both = [key for key in row.tests if key in other.tests]
    return _mean_ends([paired_interval(*row.tests[key], other.tests[key][1]) for key in both])


def differences(row: Row, other: Row, metric: str) -> list[float]:
    """A row minus another, for each class that both have."""
    ours, theirs = row.by_class.get(metric, {}), other.by_class.get(metric, {})
    return [ours[name] - theirs[name] for name in ours if name in theirs]


def summarise(results: list[dict], plan: dict | None = None) -> list[Row]:
    """One row for each data set, method and choice of options.

    Parameters
    ----------
    results : list of dict
        As from `pandalib.read_results`; failed ones are counted and not averaged.
    plan : dict, optional
        As from `pandalib.experiments.results.read_plan`; tells how many runs and classes there
        should be.

    Returns
    -------
    rows : list of Row

    Raises
    ------
    ValueError
        If one row has results of different weights.
    """
    plan = plan or {"runs": [result["settings"] for result in results], "classes": {}}
    found = {identity(result["settings"]): result for result in results}
    places: dict[tuple, list[dict]] = {}
    for settings in plan["runs"]:
        places.setdefault(_place(settings), []).append(settings)
    rows = []
    for (source, pooled, tier, method, options), runs in places.items():
        here = [found[key] for key in map(identity, runs) if key in found]
        good = [result for result in here if "error" not in result]
        weights = {result["weights_sha256"] for result in good}
        options = json.loads(options)
        if len(weights) > 1 and options.get("weights") != "random":
            raise ValueError(
                f"{source} {method}: results of different weights cannot be averaged; sweep them "
                "into folders of their own."
            )
        tasks = {settings["task"] for settings in runs}
        row = Row(
            data_set=source,
            normal_classes=pooled,
            tier=tier,
            method=method,
            options=options,
            backbone=next((result["backbone"] for result in good), None),
            weights_sha256=weights.pop() if len(weights) == 1 else None,
            by_class=_by_class(good),
            tests=_tests(good) if len(tasks) == 1 else {},
            seeds=sorted({result["seed"] for result in good}),
            n_runs=len(good),
            n_failed=len(here) - len(good),
            n_classes=len({result["task"] for result in good}),
            runs_wanted=len(runs),
            classes_wanted=max(len(tasks), plan["classes"].get(source, 0) if pooled == 1 else 0),
        )
        rows.append(row)
    return rows


def _place(settings: dict) -> tuple:
    """What runs that are averaged have in common: all but class and seed."""
    source, _, name = settings["task"].partition(":")
    if source == "folder":
        folder, _, name = name.rpartition(":")
        source = f"folder:{folder or name}"
    elif source == "elpv":  # two kinds of cells, which are never each other's anomalies
        source, name = settings["task"], ""
    options = {key: value for key, value in settings.items() if key not in MAIN}
    return source, name.count("+") + 1, settings["tier"], settings["method"], json.dumps(options)


def _by_class(results: list[dict]) -> dict[str, dict[str, float]]:
    """Metric -> class -> mean over the seeds."""
    values: dict[str, dict[str, list[float]]] = {metric: {} for metric in METRICS}
    for result in results:
        found = {metric: result.get(metric) for metric in METRICS}
        history = result["history"]
        if len(history) > 2:
            variances = [one["feature_variance"] for one in history]
            found["best_roc_auc"] = max(one["roc_auc"] for one in history)
            found["variance_ratio"] = variances[-1] / variances[0]
        for metric, value in found.items():
            if value is not None:
                values[metric].setdefault(result["task"].rpartition(":")[2], []).append(value)
    means = {m: {name: float(np.mean(of)) for name, of in by.items()} for m, by in values.items()}
    return {metric: by for metric, by in means.items() if by}


def _tests(results: list[dict]) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """Labels and scores by class and seed, of the results that have them."""
    return {
        (one["task"], one["seed"]): (
            np.array(list(one["labels"]), np.int8),
            np.array(one["scores"]),
        )
        for one in results
        if "scores" in one
    }


def write_table(folder: str | Path) -> list[Row]:
    """Write `table.md`, `table.csv` and `table.png` beside the results of a sweep.

    `settings.json` tells what they were made with, so that a table that has gone stale is noticed.

    Raises
    ------
    FileNotFoundError
        If there was no sweep.
    ValueError
        If no run is finished, or weights are mixed.
    """
    folder = Path(folder).expanduser()
    plan = read_plan(folder)
    results = list(read_runs(plan["runs"], folder).values())
    rows = summarise(results, plan)
    done = [row for row in rows if row.n_runs]
    if not done:
        raise ValueError(f"{folder}: no run has a result yet, {len(results)} failed: sweep again.")
    settings = settings_of(plan["name"], plan["runs"], results)
    picture, alt = figure(done)
    write_atomically(folder / SETTINGS, (json.dumps(settings, indent=1) + "\n").encode())
    write_atomically(folder / "table.png", plots.png(picture))
    write_atomically(folder / "table.csv", as_csv(done).encode())
    write_atomically(folder / "table.md", as_markdown(rows, plan, results, alt).encode())
    return rows


def labels(rows: list[Row]) -> tuple[list[str], str]:
    """Each row in words, with the options in which rows of its method differ, and all others."""
    values: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        for name in {name for other in rows for name in other.options}:
            values.setdefault((row.method, name), set()).add(_value(row, name))
    words, same = [], {}
    for row in rows:
        varied = sorted(name for method, name in values if method == row.method)
        varied = [name for name in varied if len(values[row.method, name]) > 1]
        parts = [row.method, *(f"{name} = {_value(row, name)}" for name in varied)]
        if row.normal_classes > 1:
            parts.append(f"{row.normal_classes} normal classes")
        words.append(", ".join(parts))
        for name in row.options.keys() - set(varied):
            same.setdefault(f"{name} = {_value(row, name)}", {})[row.method] = None
    return words, "; ".join(f"{text} ({', '.join(same[text])})" for text in sorted(same))


def _value(row: Row, name: str) -> str:
    """The value of an option in a row, given or by default."""
    if name not in options_of(row.method):
        return "none"
    value = row.options.get(name, default_of(row.method, name, row.tier))
    return "default" if value is None else str(value)


def as_csv(rows: list[Row]) -> str:
    """One line for each row and metric, with the first published number to compare with."""
    names = (
        "data_set normal_classes tier method backbone weights_sha256 options metric mean low high "
        "n_classes classes_wanted seeds n_runs runs_wanted n_failed published experiment"
    ).split()
    out = io.StringIO()
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        for metric in row.by_class:
            low, high = row.interval(metric) or ("", "")
            beside = row.published(metric)
            about = vars(beside[0]) | {"published": beside[0].value} if beside else {}
            own = vars(row) | dict(metric=metric, mean=row.mean(metric), low=low, high=high)
            own |= dict(options=json.dumps(row.options), seeds=" ".join(map(str, row.seeds)))
            line = about | own
            writer.writerow({k: f"{v:.5f}" if isinstance(v, float) else v for k, v in line.items()})
    return out.getvalue()


def as_markdown(rows: list[Row], plan: dict, results: list[dict], alt: str) -> str:
    """The table as a page, without time and machine: the same results give the same page."""
    failed = [in_brief(result) for result in results if "error" in result]
    good = [result for result in results if "error" not in result]
    weights = {f"{row.backbone} `{row.weights_sha256[:12]}`" for row in rows if row.weights_sha256}
    versions = {json.dumps(result["versions"]).strip("{}").replace('"', "") for result in good}
    parts = [
        f"# {plan['name']}",
        plan["description"],
        f"{len(good)} of {len(plan['runs'])} runs of the tier {plan['tier']}; weights "
        f"{', '.join(sorted(weights)) or 'none'}; {' and '.join(sorted(versions))}.",
        EMBEDDED if plan["tier"] == "embedded" else "",
    ]
    for source in dict.fromkeys(row.data_set for row in rows):
        parts += _section(source, [row for row in rows if row.data_set == source])
    over = [bool(row.tests) for row in rows]
    parts += [INTERVALS] * (not all(over)) + [IMAGE_INTERVALS] * any(over)
    parts += [f"![{alt}](table.png)", alt]
    if any("best_roc_auc" in row.by_class for row in rows):
        parts.append(UPPER_BOUND)
    left_out = [f"{task}: {reason}" for task, reason in plan["left_out"].items()]
    for title, lines in (("Failed runs", failed), ("Left out", left_out)):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {' '.join(line.split())}" for line in lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(source: str, rows: list[Row]) -> list[str]:
    """The part of the page on one data set."""
    metrics = [metric for metric in METRICS if any(metric in row.by_class for row in rows)]
    if not metrics:
        return [f"## {source}", "No run has a result yet."]
    (words, same), main = labels(rows), metrics[0]
    reference = next((row for row in rows if row.method == "dn2"), rows[0])
    table = [["method", "network", *(METRICS[metric] for metric in metrics)]]
    table[0].append(f"{METRICS[main]} minus {words[rows.index(reference)]}")
    notes: list[str] = []
    published: dict[str, dict[str, float]] = {}
    for row, label in zip(rows, words):
        means = [
            _with_interval(row.mean(metric), row.interval(metric)) if metric in row.by_class else ""
            for metric in metrics
        ]
        change = [] if row is reference else differences(row, reference, main)
        ends = paired(row, reference, main)
        gain = _with_interval(float(np.mean(change)), ends, "+") if change else ""
        beside = []
        for number in (one for metric in metrics for one in row.published(metric)):
            note = f"{number.published_as}: {number.experiment} ({number.source})."
            notes += [] if note in notes else [note]
            if number.classes and number.metric == main:
                published[f"{PUBLISHED} [{notes.index(note) + 1}]"] = number.classes
            beside.append(f"{METRICS[number.metric]} {number} [{notes.index(note) + 1}]")
        table.append([label, row.backbone or "none", *means, gain, _count(row), ", ".join(beside)])
    table[0] += ["runs", "published"]
    if not notes:
        table = [row[:-1] for row in table]
    parts = [
        f"## {source}",
        _table(table),
        f"The same in all rows: {same}." if same else "",
    ]
    parts.append("\n".join(f"{place}. {note}" for place, note in enumerate(notes, 1)))
    if notes and any(row.method == "oe" for row in rows):
        parts.append(OUTLIERS)
    for metric in metrics:
        if any(len(row.by_class.get(metric, {})) > 1 for row in rows):
            beside = published if metric == main else {}
            table = _by_class_table(metric, rows, words, beside)
            parts += [BY_CLASS.format(METRICS[metric]), table]
    return parts


def _by_class_table(metric, rows, words, published) -> str:
    """The means by normal class, and published ones; the longer side goes down the page."""
    names = list(dict.fromkeys(name for row in rows for name in row.by_class.get(metric, {})))
    columns = [["", *names]]
    for row, label in zip(rows, words):
        if metric in row.by_class:
            columns.append([label, *_digits(row.by_class[metric], names)])
    columns += [[label, *_digits(values, names)] for label, values in published.items()]
    return _table(columns if len(columns) > len(names) else zip(*columns))


def _digits(values: dict[str, float], names: list[str]) -> list[str]:
    return [f"{values[name]:.3f}" if name in values else "" for name in names]


def _table(rows) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * (lines[0].count(" | ") + 1) + "|", *lines[1:]])


def read_by_class(folder: str | Path, metric: str = "roc_auc") -> dict[str, dict[str, float]]:
    """What a kept table says of each normal class.

    Parameters
    ----------
    folder : path
        With the `table.md` that `write_table` made of a single data set.
    metric : str
        A key of `METRICS`.

    Returns
    -------
    values : dict
        Row, as the page calls it -> normal class -> mean over the seeds, with the page's digits.

    Raises
    ------
    ValueError
        If the page does not have exactly one table by class of this metric.

    Examples
    --------
    >>> from pandalib.io import ROOT
    >>> by_class = read_by_class(ROOT / "docs/results/one_class_embedded")
    >>> by_class["dn2"]["star"] > by_class["pixels"]["star"]
    True
    """
    title = BY_CLASS.format(METRICS[metric])
    blocks = (Path(folder) / "table.md").read_text(encoding="utf-8").split("\n\n")
    found = [place for place, block in enumerate(blocks) if block == title]
    if len(found) != 1:
        raise ValueError(f'{folder}/table.md: {len(found)} tables "{title}", expected one.')
    head, *lines = [_cells(line) for line in blocks[found[0] + 1].splitlines()]
    by_class = [dict(zip(head, line)) for line in lines[1:]]
    means = next(block for block in blocks if block.startswith("| method |"))
    rows = [_cells(line)[0] for line in means.splitlines()[2:]]
    if not {line[""] for line in by_class} & set(rows):  # the classes go down the page
        by_class = [{"": name} | {line[""]: line[name] for line in by_class} for name in head[1:]]
    return {
        line.pop(""): {name: float(text) for name, text in line.items() if text}
        for line in by_class
        if not line[""].startswith(PUBLISHED)
    }


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def _with_interval(mean: float, ends: tuple[float, float] | None, sign: str = "") -> str:
    between = f" ({ends[0]:{sign}.3f} to {ends[1]:{sign}.3f})" if ends else ""
    return f"{mean:{sign}.3f}{between}"


def _count(row: Row) -> str:
    """How many runs are done, of how many, and how many failed."""
    text = f"{row.n_runs} of {row.runs_wanted}" if row.n_runs < row.runs_wanted else f"{row.n_runs}"
    if row.n_classes < row.classes_wanted:
        text += f", {row.n_classes} of {row.classes_wanted} classes"
    return text + (f", {row.n_failed} failed" if row.n_failed else "")


def figure(rows: list[Row]):
    """The means with their intervals, and a sentence that says what the figure shows."""
    metric = "pixel_roc_auc" if all("pixel_roc_auc" in row.by_class for row in rows) else "roc_auc"
    names = [f"{row.data_set}: {label}" for row, label in zip(rows, labels(rows)[0])]
    means = [row.mean(metric) for row in rows]
    ends = [row.interval(metric) or (mean, mean) for row, mean in zip(rows, means)]
    picture = plots.intervals(names, means, ends, xlabel=METRICS[metric])
    for height, row in enumerate(reversed(rows)):
        for number in row.published(metric):
            picture.axes[0].annotate(str(number), (number.value, height), color=plots.REFERENCE)
    low, high = int(np.argmin(means)), int(np.argmax(means))
    alt = f"Mean {METRICS[metric]}, from {names[low]} ({means[low]:.3f}) "
    return picture, alt + f"to {names[high]} ({means[high]:.3f})."
