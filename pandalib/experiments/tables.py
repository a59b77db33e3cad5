"""Tables of a sweep: per data set the mean over its classes, beside the published number where there is one.

    summarise(read_results("results/one_class"))          # rows, for a notebook
    write_table("results/one_class")                      # table.md, table.csv, table.png

A cell is a data set, a number of normal classes, a tier, a network, a method and its options. Its figure is the mean over
the normal classes of the mean over the seeds. The interval comes from drawing the *classes* again with replacement: how
much the mean would move with other classes of the same kind. It says nothing about other test images or other seeds.
Results of the embedded tier never stand beside published ones.
"""

from __future__ import annotations

import csv
import inspect
import io
import json
from pathlib import Path

import numpy as np

from pandalib.experiments import config as tiers
from pandalib.experiments.sweep import read_plan, read_runs
from pandalib.io import write_atomically
from pandalib.experiments.grids import CONCERNS, identity
from pandalib.experiments.published import published_numbers
from pandalib.experiments.run import run

METRICS = {"roc_auc": "ROC-AUC", "pixel_roc_auc": "pixel ROC-AUC", "pro": "PRO"}
LEVEL = 0.95
RESAMPLES = 2000
# Options that leave the experiment what it is: beside others, a run is not the published one.
HARMLESS = {
    "checkpoints",
    "bf16",
    "outliers",
    "n_outliers",
    "fisher",
    "fisher_images",
    "missing_masks",
    "weights",
    "balanced",
}


def summarise(results: list[dict], plan: dict | None = None) -> list[dict]:
    """One row for each cell of the table, in the order of the results.

    Parameters
    ----------
    results : as `pandalib.read_results` gives them; failed ones are counted and not averaged.
    plan : `pandalib.experiments.sweep.read_plan`, so that the rows know how many runs and classes they should have.

    Returns
    -------
    list of dict with data_set, normal_classes (1, or so many pooled), tier, method, backbone, options, weights_sha256;
    for each of roc_auc, pixel_roc_auc, pro that applies the mean, its `_low` and `_high` (None for a single class) and
    `_by_class` (class -> mean over seeds); n_classes and classes_wanted, seeds, n_runs and runs_wanted, n_failed, n_train
    (all that occur), seconds (mean of a run); published (a list of `pandalib.experiments.published.Published`, empty in the embedded tier).

    Raises ValueError where one cell holds results of different weights.
    """
    wanted: dict[tuple, set[str]] = {}
    for settings in plan["runs"] if plan else [result["settings"] for result in results]:
        wanted.setdefault(_cell(settings), set()).add(identity(settings))
    cells: dict[tuple, list[dict]] = {key: [] for key in wanted}
    for result in results:
        cells.setdefault(_cell(result["settings"]), []).append(result)
    return [_row(key, found, wanted.get(key, set()), plan) for key, found in cells.items()]


def _cell(settings: dict) -> tuple:
    source, _, name = settings["task"].partition(":")
    if source == "folder":
        source, pooled = f"folder:{name.rpartition(':')[0] or name}", 1
    else:
        pooled = len(name.split("+"))
    options = {
        key: value
        for key, value in settings.items()
        if key not in ("task", "seed", "method", "tier", "backbone", "truncate_after")
    }
    network = settings.get("backbone"), settings.get("truncate_after")
    return (
        source,
        pooled,
        settings["tier"],
        settings["method"],
        network,
        json.dumps(options, sort_keys=True),
    )


def _row(key: tuple, results: list[dict], wanted: set[str], plan: dict | None) -> dict:
    source, pooled, tier, method, _, options = key
    options = json.loads(options)
    good = [result for result in results if "error" not in result]
    weights = {result["weights_sha256"] for result in good}
    if (
        len(weights) > 1 and options.get("weights") != "random"
    ):  # random ones differ from seed to seed
        raise ValueError(
            f"{source} {method}: results of different weights ({', '.join(sorted(str(one)[:12] for one in weights))}) cannot be averaged: sweep into folders of their own."
        )
    classes = {result["task"] for result in good}
    of_set = (plan or {}).get("classes", {}).get(source)
    planned = {
        settings["task"] for settings in (plan["runs"] if plan else []) if _cell(settings) == key
    }
    row = dict(
        data_set=source,
        normal_classes=pooled,
        tier=tier,
        method=method,
        backbone=next((result["backbone"] for result in good), None),
        options=options,
        weights_sha256=next(iter(weights)) if len(weights) == 1 else None,
        n_classes=len(classes),
        classes_wanted=max(len(planned), of_set if of_set and pooled == 1 else 0) or len(classes),
        seeds=sorted({result["seed"] for result in good}),
        n_runs=len(good),
        runs_wanted=len(wanted),
        n_failed=len(results) - len(good),
        n_train=sorted({result["n_train"] for result in good}),
        seconds=float(np.mean([result["seconds"] for result in good])) if good else None,
    )
    for metric in METRICS:
        by_class: dict[str, list[float]] = {}
        for result in good:
            if result[metric] is not None:
                by_class.setdefault(_class_of(result["task"]), []).append(result[metric])
        means = {name: float(np.mean(values)) for name, values in by_class.items()}
        low, high = class_interval(list(means.values()))
        row |= {
            metric: float(np.mean(list(means.values()))) if means else None,
            f"{metric}_low": low,
            f"{metric}_high": high,
            f"{metric}_by_class": means,
        }
    comparable = tier != "embedded" and pooled == 1 and set(options) <= HARMLESS
    row["published"] = (
        [
            number
            for metric in METRICS
            if row[metric] is not None
            for number in published_numbers(source, method, metric)
        ]
        if comparable
        else []
    )
    return row


def _class_of(task: str) -> str:
    source, _, name = task.partition(":")
    return name.rpartition(":")[2] if source == "folder" else name


def class_interval(
    values: list[float], *, level: float = LEVEL, n_resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float | None, float | None]:
    """Percentile interval of the mean, the values (one a class) drawn again with replacement; (None, None) for fewer than 2."""
    if len(values) < 2:
        return None, None
    values = np.sort(
        np.asarray(values, dtype=float)
    )  # the order of the classes is to change no bit
    means = np.random.default_rng(seed).choice(values, (n_resamples, len(values))).mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def write_table(folder: str | Path) -> list[dict]:
    """Write `table.md`, `table.csv` and `table.png` beside the results of a sweep; the rows are returned.

    Raises FileNotFoundError where no sweep wrote, ValueError where nothing is finished or weights are mixed.
    """
    folder = Path(folder).expanduser()
    plan = read_plan(folder)
    results = list(read_runs(plan["runs"], folder).values())
    rows = summarise(results, plan)
    if not any(row["n_runs"] for row in rows):
        raise ValueError(
            f"{folder}: none of its {len(plan['runs'])} runs has a result yet ({sum('error' in result for result in results)} failed): call the sweep again."
        )
    picture, alt = figure(rows)
    from pandalib.plots import png

    write_atomically(folder / "table.png", png(picture))
    write_atomically(folder / "table.csv", as_csv(rows).encode())
    write_atomically(folder / "table.md", as_markdown(rows, plan, results, alt).encode())
    return rows


def describe(row: dict, varied: list[str] = ()) -> str:
    """A row in words: method, network where it is not the tier's, pooled classes, and the options that vary."""
    words = [row["method"]]
    words += [f"{name} = {_value(row, name)}" for name in varied if name in CONCERNS[row["method"]]]
    if row["normal_classes"] > 1:
        words.append(f"{row['normal_classes']} normal classes")
    return ", ".join(words)


def _value(row: dict, option: str):
    """The value of an option in a row; where it was left out, what that means."""
    if option in row["options"]:
        value = row["options"][option]
        return Path(value).name if isinstance(value, str) else value
    if option == "n_train" and len(row["n_train"]) == 1:
        return row["n_train"][0]
    default = inspect.signature(run).parameters[option].default
    pace = tiers.TIERS[row["tier"]].pace
    if default is None and row["method"] == "ewc" and option == "lr":
        return pace.ewc_lr
    if (
        default is None
        and option in ("ewc_lambda", "lr", "max_grad_norm")
        and row["method"] != "oe"
    ):
        return getattr(pace, option)
    return "none" if option == "n_centres" else "default" if default is None else default


def varied_options(rows: list[dict]) -> tuple[list[str], dict]:
    """The options in which rows differ that both could have, and those that are the same wherever they apply."""
    names = sorted({name for row in rows for name in row["options"]})
    values = {
        name: {
            json.dumps(row["options"].get(name)) for row in rows if name in CONCERNS[row["method"]]
        }
        for name in names
    }
    return [name for name in names if len(values[name]) > 1], {
        name: json.loads(next(iter(values[name]))) for name in names if len(values[name]) == 1
    }


def as_csv(rows: list[dict]) -> str:
    """One line for each row and metric. Only tables outside of the embedded tier have columns of published numbers."""
    embedded = all(row["tier"] == "embedded" for row in rows)
    out = io.StringIO()
    names = [
        "data_set",
        "normal_classes",
        "tier",
        "method",
        "backbone",
        "weights_sha256",
        "options",
        "metric",
        "mean",
        "low",
        "high",
    ]
    names += [
        "n_classes",
        "classes_wanted",
        "seeds",
        "n_runs",
        "runs_wanted",
        "n_failed",
        *([] if embedded else ["published", "mark", "published_as", "experiment"]),
    ]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        for metric in METRICS:
            if row[metric] is None:
                continue
            line = {name: row[name] for name in names if name in row and name != "published"}
            line |= dict(
                metric=metric,
                mean=f"{row[metric]:.5f}",
                low=_number(row[f"{metric}_low"], 5),
                high=_number(row[f"{metric}_high"], 5),
            )
            line |= dict(options=json.dumps(row["options"]), seeds=" ".join(map(str, row["seeds"])))
            there = [number for number in row["published"] if number.metric == metric]
            for number in there or [None]:
                beside = (
                    {}
                    if number is None
                    else dict(
                        published=f"{number.value:.4f}",
                        mark=number.mark,
                        published_as=number.published_as,
                        experiment=number.experiment,
                    )
                )
                writer.writerow(line | beside)
    return out.getvalue()


def as_markdown(rows: list[dict], plan: dict, results: list[dict], alt: str) -> str:
    """The table as a page. No time and no machine is in it: the same results give the same page."""
    good = [result for result in results if "error" not in result]
    lines = [f"# {plan['name']}", ""]
    if plan["description"]:
        lines += [plan["description"], ""]
    lines += [_provenance(good, plan), ""]
    if plan["tier"] == "embedded":
        lines += [
            "Embedded tier: these are this project's own images and network, not the paper's, and none of these figures may stand beside published ones.",
            "",
        ]
    varied, constant = varied_options(rows)
    if constant:
        lines += [
            "The same wherever it applies: "
            + ", ".join(f"{name} = {value}" for name, value in constant.items())
            + ".",
            "",
        ]
    missing = len(plan["runs"]) - len(results)
    if missing:
        lines += [
            f"**Not finished:** {missing} of {len(plan['runs'])} runs have no result yet.",
            "",
        ]
    for source in dict.fromkeys(row["data_set"] for row in rows):
        lines += _section(source, [row for row in rows if row["data_set"] == source], varied)
    lines += [
        f"Mean: over the normal classes, of the mean over the seeds. Interval: {100 * LEVEL:.0f} %, {RESAMPLES} draws of the classes with replacement; it tells how much the "
        "mean would move with other classes of the same kind, not with other test images or seeds.",
        "",
    ]
    lines += [f"![{alt}](table.png)", "", alt, ""]
    failed = [result for result in results if "error" in result]
    if failed:
        lines += ["## Failed runs", "", "| run | error |", "|---|---|"]
        lines += [
            f"| {_cell_text(_run_name(result))} | {_cell_text(result['error']['type'] + ': ' + result['error']['message'])} |"
            for result in failed
        ] + [""]
    if plan["left_out"]:
        lines += [
            "## Left out",
            "",
            *(
                f"- {_cell_text(task)}: {_cell_text(reason)}"
                for task, reason in plan["left_out"].items()
            ),
            "",
        ]
    return "\n".join(lines)


def _section(source: str, rows: list[dict], varied: list[str]) -> list[str]:
    metrics = [metric for metric in METRICS if any(row[metric] is not None for row in rows)]
    beside = any(row["published"] for row in rows)
    lines = [f"## {source}", ""]
    header = [
        "method",
        "network",
        *(
            part
            for metric in metrics
            for part in (METRICS[metric], "interval", *(["published"] if beside else []))
        ),
        "classes",
        "seeds",
    ]
    lines += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    notes: list[str] = []
    for row in rows:
        cells = [describe(row, varied), row["backbone"] or "none"]
        for metric in metrics:
            interval = (
                ""
                if row[f"{metric}_low"] is None
                else f"{row[f'{metric}_low']:.3f} to {row[f'{metric}_high']:.3f}"
            )
            cells += [_number(row[metric]), interval]
            if beside:
                there = [number for number in row["published"] if number.metric == metric]
                for number in there:
                    note = f"{number.published_as}: {number.experiment} ({number.source})."
                    notes += [note] if note not in notes else []
                cells.append(
                    ", ".join(
                        f"{number} [{notes.index(f'{number.published_as}: {number.experiment} ({number.source}).') + 1}]"
                        for number in there
                    )
                )
        cells += [_share(row), " ".join(map(str, row["seeds"]))]
        lines.append("| " + " | ".join(map(_cell_text, cells)) + " |")
    lines.append("")
    if notes:
        lines += [
            "Published numbers, by experiment:",
            "",
            *(f"{i}. {note}" for i, note in enumerate(notes, 1)),
            "",
        ]
    if any(row["method"] == "oe" and row["published"] for row in rows):
        lines += [
            "The published results of outlier exposure were reached with other outliers: 80 Million Tiny Images, which its owners withdrew in 2020.",
            "",
        ]
    for metric in metrics:
        for pooled in sorted({row["normal_classes"] for row in rows}):
            lines += _by_class(
                metric, [row for row in rows if row["normal_classes"] == pooled], varied
            )
    return lines


def _by_class(metric: str, rows: list[dict], varied: list[str]) -> list[str]:
    rows = [row for row in rows if row[f"{metric}_by_class"]]
    names = list(dict.fromkeys(name for row in rows for name in row[f"{metric}_by_class"]))
    if len(names) < 2:
        return []
    columns = []
    for row in rows:
        columns.append(
            (
                describe(row, varied),
                {name: f"{value:.3f}" for name, value in row[f"{metric}_by_class"].items()},
            )
        )
        for number in row["published"]:
            if number.metric == metric and number.classes:
                columns.append(
                    (
                        f"{number.published_as}, published, {number.mark}",
                        {name: f"{value:.3f}" for name, value in number.classes.items()},
                    )
                )
    grid = [
        ["", *(title for title, _ in columns)],
        *([name, *(values.get(name, "") for _, values in columns)] for name in names),
    ]
    if len(columns) > len(names):  # long rather than wide
        grid = [list(line) for line in zip(*grid)]
    lines = ["| " + " | ".join(map(_cell_text, line)) + " |" for line in grid]
    return [
        f"{METRICS[metric]} by normal class:",
        "",
        lines[0],
        "|---" * len(grid[0]) + "|",
        *lines[1:],
        "",
    ]


def _provenance(good: list[dict], plan: dict) -> str:
    weights = sorted(
        {
            f"{result['backbone']} `{result['weights_sha256'][:12]}`"
            for result in good
            if result["weights_sha256"]
        }
    )
    versions = sorted(
        {
            ", ".join(
                f"{name} {result['versions'][name]}" for name in ("pandalib", "torch", "faiss-cpu")
            )
            for result in good
        }
    )
    words = f"{len(good)} of {len(plan['runs'])} runs of the tier {plan['tier']}"
    return f"{words}; weights {', '.join(weights) or 'none'}; {' and '.join(versions)}."


def _share(row: dict) -> str:
    text = (
        str(row["n_classes"])
        if row["n_classes"] == row["classes_wanted"]
        else f"{row['n_classes']} of {row['classes_wanted']} classes"
    )
    if row["n_runs"] < row["runs_wanted"]:
        text += f", {row['n_runs']} of {row['runs_wanted']} runs"
    return text + (f", {row['n_failed']} failed" if row["n_failed"] else "")


def _run_name(result: dict) -> str:
    options = {
        key: value
        for key, value in result["settings"].items()
        if key not in ("task", "method", "tier", "seed")
    }
    return f"{result['task']} {result['method']} seed {result['seed']}" + "".join(
        f", {key} = {value}" for key, value in options.items()
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _cell_text(text) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def figure(rows: list[dict]):
    """The means with their intervals, a panel for each data set, and the sentence that says what it shows."""
    from pandalib.plots import ANOMALOUS, FONT, NORMAL, name_rows
    from pandalib.plots import figure as panels

    rows = [row for row in rows if row["n_runs"]]
    varied, _ = varied_options(rows)
    metric = "pixel_roc_auc" if all(row["pixel_roc_auc"] is not None for row in rows) else "roc_auc"
    sources = list(dict.fromkeys(row["data_set"] for row in rows))
    counts = [sum(row["data_set"] == source for row in rows) for source in sources]
    fig, axes = panels(
        len(sources),
        1,
        width=7.0,
        height=0.9 * len(sources) + 0.5 + 0.32 * sum(counts),
        squeeze=False,
        sharex=True,
        height_ratios=[count + 1 for count in counts],
    )
    lowest = min(
        row[metric] if row[f"{metric}_low"] is None else row[f"{metric}_low"] for row in rows
    )
    named: dict[str, object] = {}
    for axis, source in zip(axes[:, 0], sources):
        shown = [row for row in rows if row["data_set"] == source]
        for place, row in enumerate(reversed(shown)):
            if row[f"{metric}_low"] is not None:
                axis.plot(
                    [row[f"{metric}_low"], row[f"{metric}_high"]],
                    [place, place],
                    color=NORMAL,
                    linewidth=2,
                )
            (named["mean over classes, interval"],) = axis.plot(
                row[metric], place, color=NORMAL, marker="o", linestyle="none", markersize=7
            )
            for number in row["published"]:
                if number.metric == metric:
                    marker = "D" if number.mark == "verified" else "s"
                    (named[f"published, {number.mark}"],) = axis.plot(
                        number.value,
                        place,
                        marker=marker,
                        markerfacecolor="none",
                        markeredgecolor=ANOMALOUS,
                        markeredgewidth=1.8,
                        linestyle="none",
                        markersize=9,
                    )
        last = METRICS[metric] if source == sources[-1] else ""
        name_rows(
            axis, range(len(shown)), [describe(row, varied) for row in reversed(shown)], last, 0.5
        )
        axis.set_xlim(0.45 if lowest > 0.48 else 0, 1.02)
        axis.set_title(f"{source}, tier {shown[0]['tier']}", loc="left")
    fig.legend(
        named.values(),
        named.keys(),
        frameon=False,
        fontsize=FONT - 1,
        ncols=len(named),
        loc="outside lower center",
    )
    return fig, _alt(rows, sources, varied, metric)


def _alt(rows: list[dict], sources: list[str], varied: list[str], metric: str) -> str:
    sentences = []
    for source in sources:
        shown = sorted(
            (row for row in rows if row["data_set"] == source), key=lambda row: row[metric]
        )
        best, worst = (describe(row, varied) for row in (shown[-1], shown[0]))
        between = (
            f"from {worst} ({shown[0][metric]:.3f}) to {best} ({shown[-1][metric]:.3f})"
            if len(shown) > 1
            else f"of {best} ({shown[0][metric]:.3f})"
        )
        sentences.append(f"Mean {METRICS[metric]} on {source}, {between}.")
    return " ".join(sentences)
