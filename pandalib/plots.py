"""Every figure of the course, each with a sentence that says what it shows.

`show` attaches that sentence to the picture as alternative text (nbconvert and the built book carry it) and prints
it below as the caption, because JupyterLab drops the attachment: there the caption is the alternative.
Normal and anomalous differ in marker and line style as well as in colour, and the colours are told apart by
colour-blind readers (Okabe and Ito 2008).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

NORMAL, ANOMALOUS, NEUTRAL = "#0072B2", "#D55E00", "#4D4D4D"
REFERENCE = "#6E6E6E"  # lines to compare with: chance, guessing, a marked moment
STYLES = {  # of curves and points, by what they stand for
    "normal": dict(color=NORMAL, linestyle="-", marker="o"),
    "anomalous": dict(color=ANOMALOUS, linestyle="--", marker="^"),
    "neutral": dict(color=NEUTRAL, linestyle=":", marker="s"),
}
# Further series, in this order: colour, marker and line style all differ from one to the next.
SERIES = (
    dict(color="#4D4D4D", linestyle=":", marker="s"),
    dict(color="#D55E00", linestyle="--", marker="^"),
    dict(color="#0072B2", linestyle="-", marker="o"),
    dict(color="#009E73", linestyle="-.", marker="D"),
    dict(color="#480060", linestyle=(0, (5, 1, 1, 1)), marker="v"),
)
DPI = 110
FONT = 11


def show(fig: Figure, alt: str) -> None:
    """Display a figure with its alternative text, and the same sentence as its caption.

    Parameters
    ----------
    fig : a figure from `figure`.
    alt : a full sentence with the finding in it, not a title; no number that another machine may round differently.

    Raises
    ------
    ValueError when `alt` is no sentence: screen readers read it aloud, and it is all that some readers get.
    """
    _display(fig, alt)


def slider(draw: Callable, values: Sequence, *, start, label: str) -> None:
    """A figure that a slider redraws, caption and all; in files and under tests (PANDALIB_QUIET=1) the figure alone.

    Without ipywidgets it is the figure alone too, and a line says what sliders need.

    Parameters
    ----------
    draw : value -> (figure, alt), as `show` takes them. The sentence has to hold for its value: it is read aloud anew at each step.
    values : what the slider can stand at, in order.
    start : the one of `values` that is shown first, and stands in the file.
    label : what is set, with its unit; stands before the slider.

    Raises
    ------
    ValueError when `start` is none of `values`, or a sentence is none.
    """
    values = list(values)
    if start not in values:
        raise ValueError(
            f"start={start!r} is none of the {len(values)} values of the slider, {values[:3]} ...: choose one of them."
        )
    if os.environ.get("PANDALIB_QUIET") == "1":
        return _display(*draw(start))
    try:
        from ipywidgets import Layout, SelectionSlider
    except ImportError:
        _display(*draw(start))
        print("sliders need ipywidgets: pip install ipywidgets")
        return
    from IPython.display import display

    control = SelectionSlider(
        options=values,
        value=start,
        description=label,
        continuous_update=False,
        style={"description_width": "initial"},
        layout=Layout(width="34em", max_width="100%"),
    )
    display(control)
    name = f"{id(control)}-{os.getpid()}"
    _display(*draw(start), name=name)
    control.observe(
        lambda change: _display(*draw(change["new"]), name=name, update=True), names="value"
    )


def _display(fig: Figure, alt: str, *, name: str | None = None, update: bool = False) -> None:
    """The picture and its caption; under a `name` they can be replaced where they stand."""
    from IPython.display import Markdown, display

    if len(alt.split()) < 6 or not alt.rstrip().endswith("."):
        raise ValueError(
            f"alt text {alt!r}: expected a full sentence, ending with a full stop, that says what the figure shows."
        )
    picture, caption = (
        ({}, {})
        if name is None
        else ({"display_id": f"{part}-{name}", "update": update} for part in ("picture", "caption"))
    )
    display({"image/png": png(fig, alt)}, raw=True, metadata={"image/png": {"alt": alt}}, **picture)
    display(Markdown(f"*Figure: {alt}*"), **caption)


def png(fig: Figure, description: str | None = None) -> bytes:
    """The picture as a PNG that carries its sentence, so it is known wherever the file goes."""
    words = PngInfo()  # takes the place of matplotlib's own entry, its version
    if description is not None:
        words.add_text("Description", description)
    settings = dict(dpi=DPI, bbox_inches="tight", facecolor="white")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", pil_kwargs={"pnginfo": words}, **settings)
    if getattr(fig, "few_colours", False):
        # 256 colours out of all: hardly seen on photographs of one kind, and well under half the file.
        whole = Image.open(buffer).convert("RGB")
        buffer = io.BytesIO()
        whole.quantize(256, dither=Image.Dither.NONE).save(
            buffer, "PNG", optimize=True, pnginfo=words
        )
    return buffer.getvalue()


def figure(rows: int = 1, columns: int = 1, *, width: float = 7.0, height: float = 3.2, **options):
    """A figure and its axes, (rows, columns) inches wide and high; not registered with pyplot, so nothing shows twice."""
    fig = Figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots(rows, columns, **options)
    for axis in np.atleast_1d(axes).ravel():
        axis.tick_params(labelsize=FONT - 1)
        axis.xaxis.label.set_size(FONT)
        axis.yaxis.label.set_size(FONT)
        axis.title.set_size(FONT)
        axis.spines[["top", "right"]].set_visible(False)
    return fig, axes


def image_grid(
    images, *, columns: int = 10, titles=None, anomalous=None, cell: float = 0.9
) -> Figure:
    """Images uint8 (n, 3, H, W) in rows; `anomalous` (n,) frames each in its class's colour and line style."""
    images = np.asarray(images)
    rows = -(-len(images) // columns)
    fig, axes = figure(
        rows,
        columns,
        width=columns * cell,
        height=rows * (cell + (0.22 if titles is not None else 0.0)),
        squeeze=False,
    )
    for number, axis in enumerate(axes.ravel()):
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        if number >= len(images):
            axis.set_visible(False)
            continue
        # The last two bits are noise that nobody sees and no PNG compresses: a third of the file.
        axis.imshow(images[number].transpose(1, 2, 0) & 0xFC, interpolation="nearest")
        if titles is not None:
            axis.set_title(titles[number], fontsize=FONT - 1, pad=3)
        if anomalous is not None:
            style = STYLES["anomalous" if anomalous[number] else "normal"]
            axis.spines[:].set(
                visible=True, color=style["color"], linestyle=style["linestyle"], linewidth=2.5
            )
    return fig


def score_histogram(
    scores, labels, *, threshold: float | None = None, axis=None, xlabel: str = "anomaly score"
):
    """Distributions of the scores of normal and of anomalous images, each of area one, on shared bins."""
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels).astype(bool)
    fig = None
    if axis is None:
        fig, axis = figure()
    bins = np.linspace(scores.min(), np.quantile(scores, 0.995), 26)
    for anomalous, name, hatch in ((False, "normal", None), (True, "anomalous", "///")):
        style = STYLES[name]
        axis.hist(
            np.clip(scores[labels == anomalous], None, bins[-1]),
            bins=bins,
            density=True,
            histtype="stepfilled",
            color=style["color"] + "59",
            hatch=hatch,
            edgecolor=style["color"],
            linestyle=style["linestyle"],
            linewidth=1.8,
            label=name,
        )
    if threshold is not None:
        axis.axvline(threshold, color="black", linewidth=1.5, label="threshold")
    axis.set_xlabel(xlabel)
    axis.set_ylabel("density")
    axis.legend(frameon=False, fontsize=FONT - 1)
    return fig


def roc_curves(curves: dict[str, tuple[np.ndarray, np.ndarray]], *, axis=None):
    """ROC curves by name: (false-positive rates, true-positive rates), with the diagonal of guessing."""
    fig = None
    if axis is None:
        fig, axis = figure(width=4.2, height=4.0)
    axis.plot([0, 1], [0, 1], color=REFERENCE, linewidth=1, label="guessing")
    for style, (name, (false_positive, true_positive)) in zip(SERIES, curves.items()):
        axis.plot(
            false_positive, true_positive, label=name, **{**style, "marker": None}, linewidth=2
        )
    axis.set_xlabel("false-positive rate (false alarms)")
    axis.set_ylabel("true-positive rate (found)")
    axis.set_aspect("equal")
    axis.legend(frameon=False, fontsize=FONT - 1, loc="lower right")
    return fig


def dots(
    values: dict[str, np.ndarray],
    labels: list[str],
    *,
    xlabel: str = "ROC-AUC",
    chance: float | None = 0.5,
) -> Figure:
    """One row for each label, one marker for each series (name -> values in 0..1), a line at chance; the whole range is shown."""
    fig, axis = figure(width=7.0, height=0.9 + 0.3 * len(labels))
    rows = np.arange(len(labels))[::-1]
    for style, (name, series) in zip(SERIES, values.items()):
        axis.plot(
            series,
            rows,
            label=name,
            color=style["color"],
            marker=style["marker"],
            linestyle="none",
            markersize=7,
        )
    name_rows(axis, rows, labels, xlabel, chance)
    axis.legend(
        frameon=False,
        fontsize=FONT - 1,
        loc="upper center",
        bbox_to_anchor=(0.5, 1.0 + 0.7 / len(labels) + 0.1),
        ncols=len(values),
    )
    return fig


def name_rows(axis, rows, labels: list[str], xlabel: str, chance: float | None) -> None:
    """The axes of a figure with one row for each label, at the heights `rows`, and values in 0..1; a line at chance."""
    if chance is not None:
        axis.axvline(chance, color=REFERENCE, linewidth=1)
    axis.set_xlim(0, 1.02)
    axis.set_ylim(-0.6, len(labels) - 0.4)  # room for the first and the last marker
    axis.set_yticks(rows, labels, fontsize=FONT - 1)
    axis.set_xlabel(xlabel)
    axis.grid(axis="y", color="#E5E5E5")
    axis.set_axisbelow(True)


def intervals(
    labels: list[str], values, ends, *, xlabel: str = "ROC-AUC", chance: float | None = 0.5
) -> Figure:
    """One row for each label: a value in 0..1 and its interval, ends (n, 2); a line at chance; the whole range is shown."""
    values, ends = np.asarray(values), np.asarray(ends)
    fig, axis = figure(width=7.0, height=0.8 + 0.3 * len(labels))
    rows = np.arange(len(labels))[::-1]
    axis.hlines(rows, *ends.T, color=NORMAL, linewidth=2)
    axis.plot(values, rows, color=NORMAL, marker="o", linestyle="none", markersize=7)
    name_rows(axis, rows, labels, xlabel, chance)
    return fig


def bars(labels: list[str], values, *, xlabel: str) -> Figure:
    """One bar for each label on a logarithmic axis, its value written beside it."""
    fig, axis = figure(width=7.0, height=0.8 + 0.32 * len(labels))
    rows = np.arange(len(labels))[::-1]
    axis.barh(rows, values, color=NORMAL, height=0.6)
    for row, value in zip(rows, values):
        axis.annotate(
            f"{value:,.2g}" if value < 10 else f"{value:,.0f}",
            (value, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=FONT - 2,
        )
    axis.set_xscale("log")
    axis.set_xlim(min(values) / 3, max(values) * 6)
    axis.set_yticks(rows, labels, fontsize=FONT - 1)
    axis.set_xlabel(xlabel)
    axis.grid(axis="x", color="#E5E5E5")
    axis.set_axisbelow(True)
    return fig


def lines(
    x, values: dict[str, np.ndarray], *, xlabel: str, ylabel: str, log_x: bool = False
) -> Figure:
    """Curves by name over a shared x axis; each series has its own colour, marker and line style."""
    fig, axis = figure(width=6.4, height=3.4)
    for style, (name, series) in zip(SERIES, values.items()):
        axis.plot(x, series, label=name, linewidth=2, markersize=6, **style)
    if log_x:
        axis.set_xscale("log", base=2)
        axis.set_xticks(x, [str(value) for value in x])
        axis.minorticks_off()
    else:
        _whole_ticks(axis, x)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.grid(color="#E5E5E5")
    axis.legend(frameon=False, fontsize=FONT - 1)
    return fig


def _whole_ticks(axis, x) -> None:
    """Where x counts something, such as epochs, no tick between two numbers."""
    if np.issubdtype(np.asarray(x).dtype, np.integer):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def stacked(
    x,
    panels: dict[str, dict[str, np.ndarray]],
    *,
    xlabel: str,
    columns: int = 1,
    marks: dict[str, float] | None = None,
    zero: bool = False,
) -> Figure:
    """Small multiples over one shared x axis: y label -> curves by name. `marks` are named vertical lines; `zero` starts every y axis there."""
    rows = -(-len(panels) // columns)
    fig, axes = figure(
        rows,
        columns,
        width=6.8 if columns == 1 else 4.0 * columns,
        height=2.1 * rows + 0.3,
        sharex=True,
        squeeze=False,
    )
    for axis, (ylabel, curves) in zip(axes.ravel(), panels.items()):
        for style, (name, series) in zip(SERIES, curves.items()):
            axis.plot(x, series, label=name, linewidth=2, markersize=5, **style)
        for name, position in (marks or {}).items():
            axis.axvline(position, color=REFERENCE, linewidth=1.2)
            # Above the axes, where no curve can cross the word.
            axis.annotate(
                name,
                (position, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=FONT - 2,
            )
        axis.set_ylabel(ylabel)
        axis.grid(color="#E5E5E5")
        if zero:
            axis.set_ylim(bottom=0)
        if len(curves) > 1:
            axis.legend(frameon=False, fontsize=FONT - 1)
    for axis in axes[-1]:
        _whole_ticks(axis, x)
        axis.set_xlabel(xlabel)
    for axis in axes.ravel()[len(panels) :]:
        axis.set_visible(False)
    return fig


def scatter_strip(
    points: dict[str, np.ndarray], labels, *, shared: bool, xlabel: str, ylabel: str
) -> Figure:
    """One panel for each title: points (n, 2), normal over anomalous; `shared` gives all panels the same axes."""
    labels = np.asarray(labels).astype(bool)
    fig, axes = figure(
        1,
        len(points),
        width=3.1 * len(points),
        height=3.2,
        sharex=shared,
        sharey=shared,
        squeeze=False,
    )
    for axis, (title, where) in zip(axes[0], points.items()):
        for name, rows, size in (("anomalous", labels, 12), ("normal", ~labels, 20)):
            style = STYLES[name]
            axis.scatter(
                *where[rows].T,
                s=size,
                facecolor=style["color"] + "59",
                edgecolor=style["color"],
                marker=style["marker"],
                linewidths=0.6,
                label=name,
            )
        axis.set_title(title)
        axis.set_xlabel(xlabel)
    axes[0, 0].set_ylabel(ylabel)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(
        handles, names, frameon=False, fontsize=FONT - 1, ncols=2, loc="outside upper center"
    )
    return fig


def two_parts(parts: np.ndarray, labels, *, threshold: float) -> Figure:
    """Both parts (2, n) of the scores of an `Inspector`, on logarithmic axes; beyond the line the larger one raises an alarm."""
    labels = np.asarray(labels).astype(bool)
    fig, axis = figure(width=5.2, height=4.0)
    for name, rows in (("anomalous", labels), ("normal", ~labels)):
        style = STYLES[name]
        axis.scatter(
            *parts[:, rows],
            s=34,
            facecolor=style["color"] + "59",
            edgecolor=style["color"],
            marker=style["marker"],
            linewidths=0.8,
            label=name,
        )
    low, high = parts.min() / 1.3, parts.max() * 1.3
    axis.plot(
        [low, threshold, threshold],
        [threshold, threshold, low],
        color=REFERENCE,
        linestyle="--",
        linewidth=1.5,
        label="threshold",
    )
    axis.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(low, high),
        xlabel="image part (1 normal image in 10 is above 1)",
        ylabel="place part (likewise)",
    )
    axis.grid(color="#E5E5E5")
    axis.legend(frameon=False, fontsize=FONT - 1)
    return fig


def map_rows(
    images,
    maps: dict[str, np.ndarray],
    *,
    masks=None,
    threshold: float | None = None,
    scale: float | None = None,
    titles=None,
) -> Figure:
    """Images in columns; below each its ground truth and its maps, all maps of one row on ONE scale from 0.

    Parameters
    ----------
    images : uint8 (n, 3, H, W).
    maps : name -> (n, H, W); one row each.
    masks : bool (n, H, W), the ground truth; one row more.
    threshold : where a map exceeds it, a contour is drawn into the map and the image.
    scale : the value that has the darkest colour, for all rows; None: the largest value of each row.
    """
    images, n = np.asarray(images), len(images)
    rows = ["image", *(["ground truth"] if masks is not None else []), *maps]
    fig, axes = figure(
        len(rows),
        n,
        width=1.25 * n + 0.5,
        height=1.28 * len(rows) + (0.25 if titles is not None else 0),
        squeeze=False,
    )
    fig.few_colours = True
    for line, name in zip(axes, rows):
        line[0].set_ylabel(name)
        for column, axis in enumerate(line):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            if name == "image":
                axis.imshow(images[column].transpose(1, 2, 0) & 0xFC)
                if titles is not None:
                    axis.set_title(titles[column], fontsize=FONT - 1, pad=3)
            elif name == "ground truth":
                axis.imshow(masks[column], cmap="gray", vmin=0, vmax=1)
            else:
                drawn = axis.imshow(
                    maps[name][column],
                    cmap="magma_r",
                    vmin=0,
                    vmax=scale or float(maps[name].max()),
                )
            if threshold is not None and name != "ground truth":
                shown = next(iter(maps.values()))[column] if name == "image" else maps[name][column]
                if shown.max() > threshold:
                    # White over black: seen on light and on dark ground.
                    axis.contour(shown, levels=[threshold], colors=["black"], linewidths=2.2)
                    axis.contour(shown, levels=[threshold], colors=["white"], linewidths=1.0)
        if name in maps:
            bar = fig.colorbar(drawn, ax=line, fraction=0.03, pad=0.01)
            bar.ax.tick_params(labelsize=FONT - 3)
    return fig


def contours(
    x,
    y,
    surfaces: dict[str, np.ndarray],
    levels,
    *,
    points: dict[str, tuple[float, float]] | None = None,
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Level lines of several surfaces (len(y), len(x)) over one plane, the same levels for all, each surface in its own colour and line style; `points` are named marks."""
    fig, axis = figure(width=6.4, height=3.8)
    for style, (name, surface) in zip(SERIES[::-1], surfaces.items()):
        axis.contour(
            x,
            y,
            surface,
            levels=levels,
            colors=style["color"],
            linestyles=[style["linestyle"]],
            linewidths=2,
        )
        axis.plot(
            [], [], color=style["color"], linestyle=style["linestyle"], linewidth=2, label=name
        )
    for marker, (name, where) in zip("*XPd", (points or {}).items()):
        axis.plot(*where, color="black", marker=marker, linestyle="none", markersize=11, label=name)
    axis.set_aspect("equal")  # a circle must look like one
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.legend(frameon=False, fontsize=FONT - 1, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def own_moments(ratios, labels, shown) -> Figure:
    """Sample-wise stopping: the courses of a few images, and the epochs that all images pick.

    Left, ratios[:, i] over the epochs for each i of `shown`, a ring at its maximum; right, for either kind, the share of
    images whose ratio is largest at each epoch. `ratios` (T, n), `labels` (n,).
    """
    ratios, labels = np.asarray(ratios), np.asarray(labels).astype(bool)
    epochs = np.arange(len(ratios))
    fig, (left, right) = figure(1, 2, width=9.0, height=3.4)
    left.axhline(1, color=REFERENCE, linewidth=1.2, label="usual")
    named = set()
    for number in shown:
        name = "anomalous" if labels[number] else "normal"
        left.plot(
            epochs,
            ratios[:, number],
            linewidth=1.8,
            markersize=5,
            label=None if name in named else name,
            **STYLES[name],
        )
        named.add(name)
        best = ratios[:, number].argmax()
        left.plot(
            best,
            ratios[best, number],
            marker="o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor="black",
            linestyle="none",
        )
    left.set(xlabel="epoch (0: pretrained)", ylabel="ratio to the usual")
    left.set_ylim(bottom=0)
    left.set_xticks(epochs[:: max(1, len(epochs) // 8)])
    left.grid(color="#E5E5E5")
    left.legend(frameon=False, fontsize=FONT - 1)
    for offset, name, rows, hatch in (
        (-0.2, "normal", ~labels, None),
        (0.2, "anomalous", labels, "///"),
    ):
        share = np.bincount(ratios[:, rows].argmax(axis=0), minlength=len(epochs)) / rows.sum()
        color = STYLES[name]["color"]
        right.bar(
            epochs + offset,
            share,
            width=0.4,
            label=name,
            color=color + "59",
            edgecolor=color,
            hatch=hatch,
            linewidth=1.4,
        )
    right.set(xlabel="epoch picked", ylabel="share of the images")
    right.set_xticks(epochs[:: max(1, len(epochs) // 8)])
    right.legend(frameon=False, fontsize=FONT - 1)
    return fig
