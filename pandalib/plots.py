"""Every figure of the course, each with a sentence that says what it shows.

`show` attaches that sentence to the picture as alternative text (the book and the slides carry it)
and prints it below as the caption, because JupyterLab drops the attachment: there the caption is
the alternative. Normal and anomalous differ in marker and line style as well as in colour, and the
colours are told apart by colour-blind readers (Okabe and Ito 2008).
"""

from __future__ import annotations

import base64
import io
import os
import zlib
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

NORMAL, ANOMALOUS, NEUTRAL = "#0072B2", "#D55E00", "#4D4D4D"
MAP_COLOURS = "magma_r"  # of heat maps: pale is like normal images, dark is not
REFERENCE = "#6E6E6E"  # lines to compare with: chance, guessing, a marked epoch
GRID = "#E5E5E5"
STYLES = {  # of curves and points, by what they stand for
    "normal": dict(color=NORMAL, linestyle="-", marker="o"),
    "anomalous": dict(color=ANOMALOUS, linestyle="--", marker="^"),
    "neutral": dict(color=NEUTRAL, linestyle=":", marker="s"),
}
SERIES = (  # of anything else: no blue, no orange; colour, marker and line style all differ
    STYLES["neutral"],
    dict(color="#8C4B2A", linestyle="--", marker="X"),
    dict(color="#A64DFF", linestyle="-", marker="P"),
    dict(color="#009E73", linestyle="-.", marker="D"),
    dict(color="#480060", linestyle=(0, (5, 1, 1, 1)), marker="v"),
)
NAMED = {  # these look alike in every figure that shows nothing else
    "no penalty": SERIES[0],
    "fixed": SERIES[3],
    "EWC": SERIES[3],
    "sample-wise": SERIES[4],
    "plain L2": SERIES[4],
}
AREAS = {  # filled pale, with an outline: opacity 0x59 of 0xFF
    "normal": dict(facecolor=NORMAL + "59", edgecolor=NORMAL),
    "anomalous": dict(facecolor=ANOMALOUS + "59", edgecolor=ANOMALOUS),
}
HATCHES = {"normal": None, "anomalous": "///"}
DPI = 110
FONT = 11


# ---------------------------------------------------------------- showing a figure


def show(fig: Figure, alt: str) -> None:
    """Display a figure with its alternative text, and the same sentence as its caption.

    Parameters
    ----------
    fig : Figure
        From one of the functions below.
    alt : str
        A full sentence with the finding in it, not a title; without a number that another machine
        may round differently.

    Raises
    ------
    ValueError
        When `alt` is not a sentence: it is all that some readers get.
    """
    _display(fig, alt)


def slider(draw: Callable, values: Sequence, *, start, label: str) -> None:
    """A figure that a slider redraws, caption and all.

    Without ipywidgets, and in files (PANDALIB_QUIET=1), it is the figure at `start` alone.

    Parameters
    ----------
    draw : callable
        value -> (figure, alt), as `show` takes them.
    values : sequence
        What the slider can stand at, in order.
    start : one of `values`
        Where it stands first.
    label : str
        What is set, with its unit.

    Raises
    ------
    ValueError
        When `start` is not one of `values`, or `alt` is not a sentence.
    """
    values = list(values)
    if start not in values:
        raise ValueError(f"start={start!r} is none of the slider's {len(values)} values.")
    if os.environ.get("PANDALIB_QUIET") == "1":
        return _display(*draw(start))
    try:
        from ipywidgets import Layout, SelectionSlider  # an optional package
    except ImportError:
        _display(*draw(start))
        print("sliders need ipywidgets: pip install ipywidgets")
        return
    from IPython.display import display  # comes with ipywidgets

    control = SelectionSlider(
        options=values,
        value=start,
        description=label,
        continuous_update=True,  # the figure follows while the handle is dragged
        style={"description_width": "initial"},
        layout=Layout(width="34em", max_width="100%"),
    )
    # Without its description in words: nbval would compare that, and a committed lesson has none.
    display(control, exclude=["text/plain"])
    name = f"{id(control)}-{os.getpid()}"
    _display(*draw(start), name=name)

    def redraw(change):
        _display(*draw(change["new"]), name=name, update=True)

    control.observe(redraw, names="value")


MOST_TICKS = 9  # one at each value, where there are no more
THUMBNAIL = 72  # pixels
CHOICE = """<style>
.{name} .row {{display: flex; flex-wrap: wrap; gap: 6px; margin: 6px 0}}
.{name} label img {{display: block}}
.{name} label {{cursor: pointer; padding: 2px; border-bottom: 4px solid transparent}}
.{name} .beside {{display: none}}
.{name} .beside p {{flex-basis: 100%; margin: 0}}
{rules}
</style>
<div class="{name}">{inputs}<div class="row">{labels}</div>{panels}</div>"""
HIDDEN = 'style="position: absolute; opacity: 0"'
CHOSEN = """
.{name} #{this}:checked ~ .row label[for={this}] {{border-color: currentColor}}
.{name} #{this}:focus-visible ~ .row label[for={this}] {{outline: 2px solid}}
.{name} #{this}:checked ~ .of-{i} {{display: flex}}"""


def click(images, beside, *, names: Sequence[str], anomalous, alt: str) -> None:
    """Images in a row; below them, what belongs to the one that is clicked.

    Plain HTML without a script: it needs no kernel, and works with the arrow keys. The first image
    is chosen. JupyterLab strips the rules from a notebook that it does not trust: then all rows
    stand below one another, each under its name.

    Parameters
    ----------
    images : array (n, 3, H, W), uint8
    beside : array (n, m, 3, H, W), uint8
        For each image the m normal ones that appear below it.
    names : sequence of str
        Of the n images, for those who do not see them.
    anomalous : array (n,)
        Which of the n images get the dashed frame.
    alt : str
        The caption, as `show` takes it.
    """
    from IPython.display import Markdown, display  # the command line draws without it

    _check_sentence(alt)
    name = f"choice-{zlib.crc32(np.ascontiguousarray(images).tobytes()):08x}"
    inputs = labels = panels = rules = ""
    for i, (image, others) in enumerate(zip(images, beside)):
        this = f"{name}-{i}"
        inputs += (
            f'<input type="radio" name="{name}" id="{this}"{"" if i else " checked"} {HIDDEN}>'
        )
        kind = "anomalous" if anomalous[i] else "normal"
        labels += f'<label for="{this}">{_img(image, names[i], kind)}</label>'
        shown = [_img(one, f"{names[i]}, number {n}", "normal") for n, one in enumerate(others, 1)]
        title = f"<p>{escape(names[i])}</p>"
        panels += f'<div class="row beside of-{i}">{title}{"".join(shown)}</div>'
        rules += CHOSEN.format(name=name, this=this, i=i)
    page = CHOICE.format(name=name, inputs=inputs, labels=labels, panels=panels, rules=rules)
    display({"text/html": page, "text/plain": f"({len(names)} images to click)"}, raw=True)
    display(Markdown(f"*Figure: {alt}*"))


def _img(image: np.ndarray, alt: str, kind: str) -> str:
    address = data_address(image.transpose(1, 2, 0), shrink=THUMBNAIL / max(image.shape))
    frame = {"normal": f"solid {NORMAL}", "anomalous": f"dashed {ANOMALOUS}"}[kind]
    style = f"width: {THUMBNAIL}px; border: 3px {frame}"
    return f'<img class="{kind}" style="{style}" alt="{escape(alt)}" src="{address}">'


def data_address(pixels: np.ndarray, shrink: float = 1) -> str:
    """uint8 (h, w, 3) as the data address of a JPEG file, its sides times `shrink`."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if shrink < 1:
        image = image.resize([max(1, round(side * shrink)) for side in image.size])
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _check_sentence(alt: str) -> None:
    if len(alt.split()) < 6 or not alt.endswith("."):
        raise ValueError(f"alt text {alt!r}: expected a full sentence about what the figure shows.")


def _display(fig: Figure, alt: str, *, name: str | None = None, update: bool = False) -> None:
    """The picture and its caption; under a `name` they can be replaced where they stand."""
    from IPython.display import Markdown, display  # the command line draws without it

    _check_sentence(alt)
    picture, caption = {}, {}
    if name is not None:
        picture = {"display_id": f"picture-{name}", "update": update}
        caption = {"display_id": f"caption-{name}", "update": update}
    display({"image/png": png(fig, alt)}, raw=True, metadata={"image/png": {"alt": alt}}, **picture)
    display(Markdown(f"*Figure: {alt}*"), **caption)


def png(fig: Figure, description: str | None = None) -> bytes:
    """The picture as a PNG that carries its sentence, so it is known wherever the file goes."""
    words = PngInfo()  # takes the place of matplotlib's own entry, its version
    if description is not None:
        words.add_text("Description", description)
    buffer = io.BytesIO()
    fig.savefig(
        buffer, dpi=DPI, bbox_inches="tight", facecolor="white", pil_kwargs={"pnginfo": words}
    )
    if getattr(fig, "few_colours", False):
        # 256 colours are hardly seen on photographs of one kind, and well under half the file.
        # Maps and greys have their own: without them rims and stains show that are not there.
        whole = Image.open(buffer).convert("RGB")
        buffer = io.BytesIO()
        scale = colormaps[MAP_COLOURS](np.linspace(0, 1, 96), bytes=True)[:, :3]
        greys = np.repeat(np.linspace(0, 255, 32, dtype=np.uint8), 3)
        own = whole.quantize(128, dither=Image.Dither.NONE).getpalette()
        palette = Image.new("P", (1, 1))
        palette.putpalette([*scale.ravel().tolist(), *greys.tolist(), *own[: 3 * 128]])
        few = whole.quantize(palette=palette, dither=Image.Dither.NONE)
        few.save(buffer, "PNG", optimize=True, pnginfo=words)
    return buffer.getvalue()


# ---------------------------------------------------------------- axes


def figure(rows: int = 1, columns: int = 1, *, width: float = 7.0, height: float = 3.2, **options):
    """A figure and its axes, in inches; not registered with pyplot, so nothing shows twice."""
    fig = Figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots(rows, columns, **options)
    for axis in np.atleast_1d(axes).ravel():
        axis.tick_params(labelsize=FONT - 1)
        for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
            text.set_size(FONT)
        axis.spines[["top", "right"]].set_visible(False)
    return fig, axes


def _legend(axis: Axes, **options) -> None:
    axis.legend(frameon=False, fontsize=FONT - 1, **options)


def _grid(axis: Axes, which: str = "both") -> None:
    axis.grid(axis=which, color=GRID)
    axis.set_axisbelow(True)


def _whole_ticks(axis: Axes, x) -> None:
    """Where x counts something, such as epochs, ticks at values of it, or at whole numbers."""
    if np.mod(x, 1).any():
        return
    if len(x) <= 3 * MOST_TICKS:
        some = list(x)[:: -(-len(x) // MOST_TICKS)]
        axis.set_xticks(some, [f"{value:.0f}" for value in some])
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _styles(curves) -> tuple[dict, ...]:
    """Of lines by name: a line alone is solid, since there is nothing to tell it from."""
    if len(curves) == 1:
        return (SERIES[0] | {"linestyle": "-"},)
    return tuple(NAMED[name] for name in curves) if set(curves) <= set(NAMED) else SERIES


def _plot_series(axis: Axes, x, curves: dict[str, np.ndarray]) -> None:
    for style, (name, series) in zip(_styles(curves), curves.items()):
        axis.plot(x, series, label=name, linewidth=2, markersize=5, **style)
    _grid(axis)


def _picture_axis(axis: Axes, image=None) -> None:
    """No ticks and no frame; an image uint8 (3, H, W) without its last two bits.

    They are noise that nobody sees and no PNG compresses: a third of the file.
    """
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    if image is not None:
        axis.imshow(image.transpose(1, 2, 0) & 0xFC, interpolation="nearest")


def _named_rows(axis: Axes, labels: list[str], xlabel: str) -> np.ndarray:
    """One row for each label, read from the top; the heights of the rows."""
    rows = np.arange(len(labels))[::-1]
    axis.set_ylim(-0.6, len(labels) - 0.4)  # room for the first and the last marker
    axis.set_yticks(rows, labels, fontsize=FONT - 1)
    axis.set_xlabel(xlabel)
    return rows


def _by_class(labels) -> dict[str, np.ndarray]:
    """Which rows are normal and which are anomalous, the latter drawn first."""
    anomalous = np.asarray(labels).astype(bool)
    return {"anomalous": anomalous, "normal": ~anomalous}


# ---------------------------------------------------------------- schematics


def pipeline(steps: dict[str, str], *, trained: str | None = None) -> Figure:
    """Boxes from left to right with arrows between them, and words below each.

    Parameters
    ----------
    steps : dict of str to str
        What stands in each box, and the words below it; both may have several lines.
    trained : one of `steps`
        The box that is framed with a dashed line: what may be trained.
    """
    fig, axis = figure(width=9, height=1.9)
    axis.set(xlim=(-0.55, len(steps) - 0.45), ylim=(-0.75, 0.55), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    middle = dict(ha="center", fontsize=FONT)
    for number, (step, words) in enumerate(steps.items()):
        frame = dict(facecolor="white", edgecolor=NEUTRAL, linewidth=2)
        frame["linestyle"] = "--" if step == trained else "-"
        box = FancyBboxPatch((number - 0.38, -0.22), 0.76, 0.6, "round,pad=0.02", **frame)
        axis.add_patch(box)
        axis.text(number, 0.08, step, va="center", **middle)
        axis.text(number, -0.34, words, va="top", color=NEUTRAL, **middle)
        if number:
            ends = dict(xy=(number - 0.4, 0.08), xytext=(number - 0.6, 0.08))
            arrow = dict(arrowstyle="-|>", color=NEUTRAL, linewidth=1.5)
            axis.annotate("", arrowprops=arrow, **ends)
    return fig


# ---------------------------------------------------------------- scores


def score_histogram(scores, labels, *, threshold=None, far=None, axis=None, xlabel="anomaly score"):
    """Distributions of the scores of normal and anomalous images, each of area one, shared bins.

    With `far`, numbers of images, and scores beyond it stand in an inset with an axis of its own.
    """
    scores, fig = np.asarray(scores, dtype=float), None
    if axis is None:
        fig, axis = figure()
    end = np.quantile(scores, 0.995) if far is None else far
    bins = np.linspace(scores.min(), end, 26)
    for name, rows in reversed(_by_class(labels).items()):
        # Without an inset the longest tail stands in the last bin.
        near = np.clip(scores[rows], None, end) if far is None else scores[rows & (scores <= far)]
        _histogram(axis, near, bins, name, density=far is None)
    if threshold is not None:
        axis.axvline(threshold, color="black", linewidth=1.5, label="threshold")
    axis.set(xlabel=xlabel, ylabel="density" if far is None else "images")
    if far is None:
        _legend(axis)
        return fig
    _legend(axis, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    inset = axis.inset_axes([0.66, 0.36, 0.34, 0.5])
    bins = np.linspace(far, max(scores.max(), far + 1e-9), 13)
    for name, rows in reversed(_by_class(labels).items()):
        _histogram(inset, scores[rows & (scores > far)], bins, name, density=False)
    inset.set_title(f"beyond {far:g}", fontsize=FONT - 1)
    inset.tick_params(labelsize=FONT - 2)
    inset.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    inset.spines[["top", "right"]].set_visible(False)
    return fig


def _histogram(axis: Axes, scores, bins, name: str, *, density: bool) -> None:
    look = dict(linestyle=STYLES[name]["linestyle"], hatch=HATCHES[name], linewidth=1.8)
    look |= dict(density=density, histtype="stepfilled", label=name, **AREAS[name])
    axis.hist(scores, bins=bins, **look)


def roc_curves(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """ROC curves by name: (false-positive rates, true-positive rates), and guessing's diagonal."""
    fig, axis = figure(width=4.2, height=4.0)
    axis.plot([0, 1], [0, 1], color=REFERENCE, linewidth=1, label="guessing")
    for style, (name, rates) in zip(_styles(curves), curves.items()):
        axis.plot(*rates, label=name, linewidth=2, **{**style, "marker": None})
    axis.set(xlabel="false-positive rate (false alarms)", ylabel="true-positive rate (found)")
    axis.set_aspect("equal")
    _legend(axis, loc="lower right")
    return fig


def dots(
    values: dict, labels: list[str], *, xlabel: str = "ROC-AUC", chance=0.5, low=0.0
) -> Figure:
    """One row for each label, one marker for each series (name -> values in 0..1).

    The axis begins at `low`, or lower where a value would be cut off.
    """
    fig, axis = figure(width=7.0, height=0.9 + 0.3 * len(labels))
    rows = _named_rows(axis, labels, xlabel)
    for style, (name, series) in zip(SERIES, values.items()):
        axis.plot(series, rows, label=name, markersize=7, **{**style, "linestyle": "none"})
    _whole_range(axis, chance, max(0.0, min(low, *(min(one) - 0.02 for one in values.values()))))
    above = (0.5, 1.0 + 0.7 / len(labels) + 0.1)
    _legend(axis, loc="upper center", bbox_to_anchor=above, ncols=len(values))
    return fig


def moves(labels, starts, ends: dict, *, start: str = "start", xlabel: str = "ROC-AUC") -> Figure:
    """One row for each label: an arrow from its start to each end (name -> values), axis cut."""
    fig, axis = figure(width=7.0, height=1.0 + 0.36 * len(labels))
    rows = _named_rows(axis, labels, xlabel)
    look = {**SERIES[0], "linestyle": "none"}
    axis.plot(starts, rows, label=start, markersize=6, **look)
    heights = np.linspace(-0.2, 0.2, len(ends)) if len(ends) > 1 else [0.0]
    for style, height, (name, values) in zip(SERIES[3:], heights, ends.items()):
        for row, begin, end in zip(rows, starts, values):
            line = dict(arrowstyle="-", color=style["color"], linewidth=1.5, shrinkA=4, shrinkB=0)
            axis.annotate("", (end, row + height), (begin, row), arrowprops=line)
        look = {**style, "linestyle": "none"}
        axis.plot(values, rows + height, label=name, markersize=7, **look)
    _grid(axis, "y")
    above = (0.5, 1.0 + 0.7 / len(labels) + 0.1)
    _legend(axis, loc="upper center", bbox_to_anchor=above, ncols=len(ends) + 1)
    return fig


def intervals(labels: list[str], values, ends, *, xlabel="ROC-AUC", chance=0.5) -> Figure:
    """One row for each label: a value in 0..1 and its interval, ends (n, 2)."""
    fig, axis = figure(width=7.0, height=0.8 + 0.3 * len(labels))
    rows = _named_rows(axis, labels, xlabel)
    axis.hlines(rows, *np.transpose(ends), color=NEUTRAL, linewidth=2)
    axis.plot(values, rows, color=NEUTRAL, marker="s", linestyle="none", markersize=7)
    _whole_range(axis, chance)
    return fig


def _whole_range(axis: Axes, chance: float | None, low: float = 0.0) -> None:
    """All values from `low` to 1, with a line at chance."""
    if chance is not None:
        axis.axvline(chance, color=REFERENCE, linewidth=1)
    axis.set_xlim(low, 1 + 0.02 * (1 - low))
    _grid(axis, "y")


def bars(labels: list[str], values, *, xlabel: str) -> Figure:
    """One bar for each label on a logarithmic axis, its value written beside it."""
    fig, axis = figure(width=7.0, height=0.8 + 0.32 * len(labels))
    rows = _named_rows(axis, labels, xlabel)
    drawn = axis.barh(rows, values, color=NEUTRAL, height=0.6)
    words = [f"{value:,.2g}" if value < 10 else f"{value:,.0f}" for value in values]
    axis.bar_label(drawn, words, padding=4, fontsize=FONT - 2)
    axis.set(xscale="log", xlim=(min(values) / 3, max(values) * 6))
    _grid(axis, "x")
    return fig


def scatter_strip(points: dict, labels, *, shared: bool, xlabel: str, ylabel: str) -> Figure:
    """One panel for each title: points (n, 2); `shared` gives all panels the same axes."""
    size = dict(width=3.1 * len(points), height=3.2)
    fig, axes = figure(1, len(points), sharex=shared, sharey=shared, squeeze=False, **size)
    for axis, (title, where) in zip(axes[0], points.items()):
        for name, rows in _by_class(labels).items():
            look = dict(marker=STYLES[name]["marker"], s=12 if name == "anomalous" else 20)
            axis.scatter(*where[rows].T, label=name, linewidths=0.7, **look, **AREAS[name])
        axis.set(title=title, xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    handles = axes[0, 0].get_legend_handles_labels()
    fig.legend(*handles, frameon=False, fontsize=FONT - 1, ncols=2, loc="outside upper center")
    return fig


# ---------------------------------------------------------------- curves


def lines(x, values: dict, *, xlabel: str, ylabel: str, log_x: bool = False) -> Figure:
    """Curves by name over a shared x axis, each with its own colour, marker and line style."""
    fig, axis = figure(width=6.4, height=3.4)
    _plot_series(axis, x, values)
    if log_x:
        axis.set_xscale("log", base=2)
        axis.set_xticks(x, [str(value) for value in x])
        axis.minorticks_off()
    else:
        _whole_ticks(axis, x)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    _legend(axis)
    return fig


def stacked(x, panels: dict, *, xlabel: str, columns: int = 1, marks=None, zero=False) -> Figure:
    """Small multiples over one x axis.

    Parameters
    ----------
    x : sequence
    panels : dict
        y label -> curves by name.
    columns : int
    marks : dict, optional
        Named vertical lines.
    zero : bool
        Whether every y axis starts at 0.
    """
    rows = -(-len(panels) // columns)
    width = 6.8 if columns == 1 else 4.0 * columns
    size = dict(width=width, height=2.1 * rows + 0.3)
    fig, axes = figure(rows, columns, sharex=True, squeeze=False, **size)
    for axis, (ylabel, curves) in zip(axes.flat, panels.items()):
        _plot_series(axis, x, curves)
        for name, position in (marks or {}).items():
            axis.axvline(position, color=REFERENCE, linewidth=1.2)
            above = axis.get_xaxis_transform()  # the axes' top edge, where no curve can cross it
            axis.text(position, 1.02, name, transform=above, ha="center", fontsize=FONT - 2)
        axis.set_ylabel(ylabel)
        if zero:
            axis.set_ylim(bottom=0)
        if len(curves) > 1:
            _legend(axis)
    for axis in axes[-1]:
        _whole_ticks(axis, x)
        axis.set_xlabel(xlabel)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    return fig


def contours(x, y, surfaces: dict, levels, *, points=None, xlabel: str, ylabel: str) -> Figure:
    """Level lines of surfaces (len(y), len(x)), the same levels for all; `points` by name."""
    fig, axis = figure(width=6.4, height=3.8)
    for style, (name, surface) in zip(reversed(SERIES), surfaces.items()):
        color, dashes = style["color"], style["linestyle"]
        axis.contour(x, y, surface, levels, colors=color, linestyles=[dashes], linewidths=2)
        axis.plot([], [], color=color, linestyle=dashes, linewidth=2, label=name)
    for marker, (name, where) in zip("*XPd", (points or {}).items()):
        axis.plot(*where, color="black", marker=marker, linestyle="none", markersize=11, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.set_aspect("equal")  # a circle must look like one
    _legend(axis, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def own_moments(ratios, labels, shown) -> Figure:
    """Sample-wise stopping: the courses of a few images, and the epochs that all images pick.

    Parameters
    ----------
    ratios : array, shape (T, n)
        Scores over the mean of the held-out images, at each checkpoint.
    labels : array, shape (n,)
    shown : list of int
        Images whose course is drawn on the left, with a ring at its maximum.
    """
    ratios, labels = np.asarray(ratios), np.asarray(labels).astype(bool)
    epochs, picked = np.arange(len(ratios)), ratios.argmax(axis=0)
    fig, (left, right) = figure(1, 2, width=9.0, height=3.4)
    left.axhline(1, color=REFERENCE, linewidth=1.2, label="typical")
    for number in shown:
        name = "anomalous" if labels[number] else "normal"
        left.plot(
            epochs, ratios[:, number], linewidth=1.8, markersize=5, label=name, **STYLES[name]
        )
        ring = dict(marker="o", markersize=13, markerfacecolor="none", markeredgecolor="black")
        left.plot(picked[number], ratios[:, number].max(), linestyle="none", **ring)
    left.set(xlabel="epoch (0: pretrained)", ylabel="ratio to what is typical")
    left.set_ylim(bottom=0)
    _grid(left)
    handles, names = left.get_legend_handles_labels()
    once = dict(zip(names, handles))
    _legend(left, handles=once.values(), labels=once.keys())
    for offset, (name, rows) in zip((0.2, -0.2), _by_class(labels).items()):
        share = np.bincount(picked[rows], minlength=len(epochs)) / rows.sum()
        look = dict(width=0.4, linewidth=1.4, hatch=HATCHES[name], **AREAS[name])
        right.bar(epochs + offset, share, label=name, **look)
    right.set(xlabel="epoch picked", ylabel="share of the images")
    _legend(right, reverse=True)
    for axis in (left, right):
        axis.set_xticks(epochs[:: max(1, len(epochs) // 8)])
    return fig


# ---------------------------------------------------------------- images


def image_grid(images, *, columns: int = 10, titles=None, anomalous=None, cell=0.9) -> Figure:
    """Images uint8 (n, 3, H, W) in rows; `anomalous` (n,) frames each in the look of its class."""
    rows = -(-len(images) // columns)
    size = dict(width=columns * cell, height=rows * (cell + (0.22 if titles is not None else 0)))
    fig, axes = figure(rows, columns, squeeze=False, **size)
    for axis in axes.flat[len(images) :]:
        axis.set_visible(False)
    for number, (axis, image) in enumerate(zip(axes.flat, images)):
        _picture_axis(axis, image)
        if titles is not None:
            axis.set_title(titles[number], fontsize=FONT - 1, pad=3)
        if anomalous is not None:
            style = STYLES["anomalous" if anomalous[number] else "normal"]
            look = dict(color=style["color"], linestyle=style["linestyle"])
            axis.spines[:].set(visible=True, linewidth=2.5, **look)
    return fig


def map_rows(images, maps: dict, *, masks=None, threshold=None, scale=None, titles=None) -> Figure:
    """Images in columns, below each its ground truth and its maps, a row of maps on ONE scale.

    Parameters
    ----------
    images : uint8 array, shape (n, 3, H, W)
    maps : dict
        Name -> array, shape (n, H, W); one row each.
    masks : bool array, shape (n, H, W), optional
        The ground truth; one row more.
    threshold : float, optional
        Where a map exceeds it, a contour is drawn into the map; that of the first map into the
        image too.
    scale : float, optional
        The value that has the darkest colour in all rows; otherwise the largest of each row.
    titles : list of str, optional
    """
    rows = {"image": None} | ({} if masks is None else {"ground truth": masks}) | maps
    size = dict(width=1.25 * len(images) + 0.5)
    size["height"] = 1.28 * len(rows) + (0.25 if titles is not None else 0)
    fig, axes = figure(len(rows), len(images), squeeze=False, **size)
    fig.few_colours = True
    outlines = {"image": next(iter(maps.values()), None)} | maps
    for line, (name, values) in zip(axes, rows.items()):
        line[0].set_ylabel(name)
        for column, axis in enumerate(line):
            _picture_axis(axis, images[column] if name == "image" else None)
            if name == "ground truth":
                axis.imshow(masks[column], cmap="gray", vmin=0, vmax=1)
                continue
            if name in maps:
                top = scale or float(values.max())
                drawn = axis.imshow(values[column], cmap=MAP_COLOURS, vmin=0, vmax=top)
            outlined = None if threshold is None else outlines[name][column]
            if outlined is not None and outlined.max() > threshold:
                # White over black: seen on light and on dark ground.
                axis.contour(outlined, [threshold], colors="black", linewidths=2.2)
                axis.contour(outlined, [threshold], colors="white", linewidths=1.0)
        if name in maps:
            bar = fig.colorbar(drawn, ax=line, fraction=0.03, pad=0.01)
            bar.ax.tick_params(labelsize=FONT - 3)
    for axis, title in zip(axes[0], () if titles is None else titles):
        axis.set_title(title, fontsize=FONT - 1, pad=3)
    return fig
