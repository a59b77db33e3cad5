"""Figures: a sentence with each, the same bytes each time; a slider moves both. Colours: tests/test_accessibility.py."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from pandalib import plots

IMAGES = np.random.default_rng(0).integers(0, 256, size=(7, 3, 16, 16), dtype=np.uint8)
SCORES = np.random.default_rng(1).gamma(3, size=60)
LABELS = (np.arange(60) % 3 > 0).astype(int)
PANELS = {
    "loss": {"one": np.arange(3.0), "two": np.ones(3)},
    "ROC-AUC": {"one": np.array([0.5, 0.7, 0.6])},
    "variance": {"one": np.array([3.0, 2.0, 1.0])},
}
POINTS = np.random.default_rng(2).gamma(2, size=(60, 2))
RATIOS = np.random.default_rng(4).gamma(4, 0.3, size=(6, 5))  # epochs, images
MAPS = np.random.default_rng(3).gamma(2, 2, size=(3, 16, 16))
BOWL = (np.arange(5)[:, None] - 2.0) ** 2 + (np.arange(6) - 2.0) ** 2
SENTENCE = "The curve rises from the left to the right, as it must."

FIGURES = {
    "image_grid": lambda: plots.image_grid(
        IMAGES, columns=4, titles=["x"] * 7, anomalous=[0, 1] * 3 + [0]
    ),
    "score_histogram": lambda: plots.score_histogram(SCORES, LABELS, threshold=3.0),
    "roc_curves": lambda: plots.roc_curves({"one": (np.array([0, 1]), np.array([0, 1]))}),
    "dots": lambda: plots.dots(
        {"one": np.array([0.5, 0.6]), "two": np.array([0.7, 0.8])}, ["a", "b"]
    ),
    "lines": lambda: plots.lines(
        [1, 2, 4],
        {"one": np.arange(3), "two": np.ones(3)},
        xlabel="k",
        ylabel="ROC-AUC",
        log_x=True,
    ),
    "intervals": lambda: plots.intervals(["a", "b"], [0.6, 0.8], [[0.5, 0.7], [0.75, 0.9]]),
    "bars": lambda: plots.bars(["a", "b"], [1.5, 1200.0], xlabel="seconds"),
    "stacked": lambda: plots.stacked(
        [0, 1, 2], PANELS, xlabel="epoch", columns=2, marks={"stop": 1}, zero=True
    ),
    "scatter_strip": lambda: plots.scatter_strip(
        {"before": POINTS, "after": POINTS / 9},
        LABELS,
        shared=True,
        xlabel="first",
        ylabel="second",
    ),
    "two_parts": lambda: plots.two_parts(POINTS.T, LABELS, threshold=2.0),
    "own_moments": lambda: plots.own_moments(RATIOS, [0, 1, 1, 0, 1], shown=[0, 1, 2]),
    "map_rows": lambda: plots.map_rows(
        IMAGES[:3], {"map": MAPS}, masks=MAPS > 8, threshold=5.0, titles=["x", "y", "z"]
    ),
    "contours": lambda: plots.contours(
        np.arange(6),
        np.arange(5),
        {"a": BOWL, "b": BOWL[::-1, ::-1] + 1},
        [4, 9],
        points={"here": (1, 2)},
        xlabel="x",
        ylabel="y",
    ),
}


@pytest.fixture
def shown(monkeypatch):
    import IPython.display

    calls = []
    monkeypatch.setattr(
        IPython.display, "display", lambda *what, **options: calls.append((what[0], options))
    )
    return calls


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_shown_with_its_sentence(name, shown):
    plots.show(FIGURES[name](), SENTENCE)
    (picture, options), (caption, _) = shown
    assert picture["image/png"].startswith(b"\x89PNG") and set(picture) == {"image/png"}
    assert options["metadata"] == {"image/png": {"alt": SENTENCE}} and options["raw"]
    assert caption.data == f"*Figure: {SENTENCE}*"


@pytest.mark.parametrize("alt", ["", "ROC curve", "A title with enough words but no full stop"])
def test_a_title_is_no_sentence(alt, shown):
    with pytest.raises(ValueError, match="expected a full sentence"):
        plots.show(FIGURES["lines"](), alt)
    assert not shown


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_figure_is_the_same_bytes(name):
    assert plots.png(FIGURES[name]()) == plots.png(FIGURES[name]())


def test_pyplot_is_not_involved():
    import subprocess
    import sys

    code = "import sys, pandalib.plots as p; p.png(p.lines([1, 2], {'a': [1, 2]}, xlabel='x', ylabel='y')); print('matplotlib.pyplot' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "False\n"
    )


def stepping(value):
    return FIGURES[
        "lines"
    ](), f"The curve rises from the left to the right, as it must at step {value}."


def test_a_slider_in_a_file_is_its_figure(shown, monkeypatch):
    monkeypatch.setenv("PANDALIB_QUIET", "1")
    plots.slider(stepping, range(5), start=2, label="step")
    (picture, options), (caption, _) = shown
    assert set(options["metadata"]["image/png"]) == {"alt"} and "display_id" not in options
    assert caption.data == f"*Figure: {stepping(2)[1]}*" and set(picture) == {"image/png"}


def test_a_slider_that_is_moved_replaces_picture_and_caption(shown, monkeypatch):
    monkeypatch.delenv("PANDALIB_QUIET", raising=False)
    plots.slider(stepping, [0, 5, 10], start=5, label="step, in steps")
    (control, _), (_, picture), (caption, words) = shown
    assert (
        control.options == (0, 5, 10)
        and control.value == 5
        and control.description == "step, in steps"
    )
    assert caption.data == f"*Figure: {stepping(5)[1]}*" and not picture["update"]
    control.value = 10
    assert len(shown) == 5
    (_, new_picture), (new_caption, new_words) = shown[3:]
    assert (
        new_caption.data == f"*Figure: {stepping(10)[1]}*"
        and new_picture["metadata"]["image/png"]["alt"] == stepping(10)[1]
    )
    assert (new_picture["display_id"], new_words["display_id"]) == (
        picture["display_id"],
        words["display_id"],
    )
    assert (
        new_picture["update"]
        and new_words["update"]
        and picture["display_id"] != words["display_id"]
    )


def test_without_ipywidgets_a_slider_is_its_figure_and_a_line(shown, monkeypatch, capsys):
    monkeypatch.delenv("PANDALIB_QUIET", raising=False)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # its import fails
    plots.slider(stepping, range(5), start=2, label="step")
    (picture, options), (caption, _) = shown
    assert picture["image/png"].startswith(b"\x89PNG") and "display_id" not in options
    assert caption.data == f"*Figure: {stepping(2)[1]}*"
    assert capsys.readouterr().out == "sliders need ipywidgets: pip install ipywidgets\n"


def test_no_other_place_needs_ipywidgets():
    root = Path(plots.__file__).parent
    texts = [*root.rglob("*.py"), *(root.parent / "notebooks").rglob("*.ipynb")]
    pattern = re.compile(r"(?:from|import) ipywidgets")
    users = [path.name for path in texts if pattern.search(path.read_text(encoding="utf-8"))]
    assert users == ["plots.py"]


def test_two_sliders_do_not_answer_for_each_other(shown, monkeypatch):
    monkeypatch.delenv("PANDALIB_QUIET", raising=False)
    for _ in range(2):
        plots.slider(stepping, range(3), start=0, label="step")
    assert len({options["display_id"] for _, options in shown if "display_id" in options}) == 4


def test_a_slider_starts_at_one_of_its_values(shown):
    with pytest.raises(
        ValueError, match=r"start=7 is none of the 5 values of the slider, \[0, 1, 2\]"
    ):
        plots.slider(stepping, range(5), start=7, label="step")
    with pytest.raises(ValueError, match="expected a full sentence"):
        plots.slider(lambda value: (FIGURES["lines"](), "no sentence"), [1], start=1, label="step")
    assert not [what for what, options in shown if isinstance(what, dict)]


def test_image_grid_frames_by_class():
    axes = plots.image_grid(IMAGES[:2], columns=2, anomalous=[0, 1]).axes
    frames = [axis.spines["left"] for axis in axes]
    assert [frame.get_linestyle() for frame in frames] == ["-", "--"]
    assert frames[0].get_edgecolor() != frames[1].get_edgecolor()


def test_histogram_clips_the_longest_tail_but_loses_no_image():
    scores = np.concatenate([SCORES, [1e6]])
    axis = plots.score_histogram(scores, np.concatenate([LABELS, [1]])).axes[0]
    assert axis.get_xlim()[1] < 1e6
    areas = [patch.get_path() for patch in axis.patches]
    assert len(areas) == 2


def xy(line) -> list[tuple[float, float]]:
    return [tuple(map(float, point)) for point in zip(*line.get_data())]


def test_dots_and_intervals_put_each_label_beside_its_values():
    for fig in (
        plots.dots({"one": np.array([0.5, 0.6]), "two": np.array([0.7, 0.8])}, ["a", "b"]),
        plots.intervals(["a", "b"], [0.5, 0.6], [[0.4, 0.7], [0.55, 0.9]]),
    ):
        (axis,) = fig.axes
        height = dict(
            zip([label.get_text() for label in axis.get_yticklabels()], axis.get_yticks())
        )
        assert height["a"] > height["b"] and axis.get_xlim() == (
            0,
            1.02,
        )  # read from the top; the whole range is shown
        assert xy(axis.lines[0]) == [(0.5, height["a"]), (0.6, height["b"])]
        assert list(axis.lines[-1].get_xdata()) == [0.5, 0.5]  # chance
        assert (
            axis.get_ylim()[0] < height["b"] - 0.4 and axis.get_ylim()[1] > height["a"] + 0.4
        )  # no marker on the frame
    (spans,) = [collection.get_segments() for collection in axis.collections]
    assert [[tuple(end) for end in span] for span in spans] == [
        [(0.4, height["a"]), (0.7, height["a"])],
        [(0.55, height["b"]), (0.9, height["b"])],
    ]
    assert (
        len(plots.intervals(["a"], [1.0], [[0, 2]], chance=None).axes[0].lines)
        == 1
        == len(plots.dots({"one": np.ones(1)}, ["a"], chance=None).axes[0].lines)
    )


def test_bars_carry_their_values():
    (axis,) = plots.bars(["a", "b", "c"], [1.512, 34.5, 1234.5], xlabel="seconds").axes
    assert [text.get_text() for text in axis.texts] == ["1.5", "34", "1,234"]
    assert [bar.get_width() for bar in axis.patches] == [
        1.512,
        34.5,
        1234.5,
    ] and axis.get_xscale() == "log"
    heights = [bar.get_y() for bar in axis.patches]
    assert heights == sorted(heights, reverse=True) and [
        label.get_text() for label in axis.get_yticklabels()
    ] == ["a", "b", "c"]
    low, high = axis.get_xlim()
    assert 0 < low < 1.512 and high > 1234.5


def test_stacked_panels_share_one_axis():
    fig = FIGURES["stacked"]()
    shown = [axis for axis in fig.axes if axis.get_visible()]
    assert [axis.get_ylabel() for axis in shown] == list(PANELS) and len(
        fig.axes
    ) == 4  # two by two, the last one empty
    for axis, curves in zip(shown, PANELS.values()):
        drawn = {line.get_label(): line for line in axis.lines}
        assert all(
            np.array_equal(drawn[name].get_ydata(), series) for name, series in curves.items()
        )
        assert any(list(line.get_xdata()) == [1, 1] for line in axis.lines) and [
            text.get_text() for text in axis.texts
        ] == ["stop"]
        assert axis.get_ylim()[0] == 0 and (axis.get_legend() is not None) == (len(curves) > 1)
    (below,) = plots.stacked([0, 1], {"loss": {"one": np.array([5.0, 6.0])}}, xlabel="epoch").axes
    assert below.get_ylim()[0] > 4 and below.get_xlabel() == "epoch" and not below.texts


def test_what_is_counted_has_no_ticks_between_two_numbers():
    for x, whole in (([0, 1, 2], True), (range(4), True), ([0.0, 0.1, 0.2], False)):
        one = np.arange(len(x), dtype=float)
        for fig in (
            plots.lines(x, {"one": one}, xlabel="epoch", ylabel="loss"),
            plots.stacked(x, {"loss": {"one": one}}, xlabel="epoch"),
        ):
            ticks = fig.axes[0].get_xticks()
            assert (ticks == ticks.round()).all() == whole and len(ticks) > 2


@pytest.mark.parametrize("shared", [True, False])
def test_clouds_hold_each_image_in_its_class(shared):
    fig = plots.scatter_strip(
        {"before": POINTS, "after": POINTS / 9},
        LABELS,
        shared=shared,
        xlabel="first",
        ylabel="second",
    )
    for axis, points in zip(fig.axes, (POINTS, POINTS / 9)):
        drawn = {
            collection.get_label(): collection.get_offsets() for collection in axis.collections
        }
        np.testing.assert_allclose(drawn["normal"], points[LABELS == 0])
        np.testing.assert_allclose(drawn["anomalous"], points[LABELS == 1])
    assert (fig.axes[0].get_xlim() == fig.axes[1].get_xlim()) == shared
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["anomalous", "normal"]


def test_the_line_of_two_parts_is_where_the_larger_one_alarms():
    (axis,) = plots.two_parts(POINTS.T, LABELS, threshold=2.0).axes
    low, high = axis.get_xlim()
    assert (
        xy(axis.lines[0]) == [(low, 2.0), (2.0, 2.0), (2.0, low)]
        and low < POINTS.min() < POINTS.max() < high
    )
    drawn = {collection.get_label(): collection.get_offsets() for collection in axis.collections}
    assert (len(drawn["normal"]), len(drawn["anomalous"])) == (
        20,
        40,
    ) and axis.get_xscale() == axis.get_yscale() == "log"


def test_each_image_has_a_ring_at_the_epoch_that_it_picks():
    labels = np.array([0, 1, 1, 0, 1])
    left, right = FIGURES["own_moments"]().axes
    picked = RATIOS.argmax(axis=0)
    rings = [xy(line)[0] for line in left.lines if line.get_markerfacecolor() == "none"]
    assert rings == [(float(picked[i]), float(RATIOS[picked[i], i])) for i in (0, 1, 2)]
    courses = [line.get_ydata() for line in left.lines if len(line.get_xdata()) == 6]
    np.testing.assert_array_equal(courses, RATIOS[:, :3].T)
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "usual",
        "normal",
        "anomalous",
    ]  # each name once
    for bars, kind in zip(right.containers, (0, 1)):
        np.testing.assert_allclose(
            [bar.get_height() for bar in bars],
            [np.mean(picked[labels == kind] == epoch) for epoch in range(6)],
        )


def test_maps_of_a_row_share_one_scale_from_zero():
    maps = {"first": MAPS, "second": 10 * MAPS}
    masks = MAPS > 8
    fig = plots.map_rows(
        IMAGES[:3], maps, masks=masks, threshold=float(MAPS[0].max()) - 0.1, titles=["x", "y", "z"]
    )
    panels = [axis for axis in fig.axes if axis.images]
    pictures, truth, first, second = (panels[3 * row : 3 * row + 3] for row in range(4))
    assert (
        [axis.get_title() for axis in pictures] == ["x", "y", "z"]
        and pictures[0].get_ylabel() == "image"
        and truth[0].get_ylabel() == "ground truth"
    )
    np.testing.assert_array_equal(truth[1].images[0].get_array(), masks[1])
    for row, values in ((first, MAPS), (second, 10 * MAPS)):
        for axis, values_here in zip(row, values):
            np.testing.assert_array_equal(axis.images[0].get_array(), values_here)
            assert axis.images[0].get_clim() == (0, values.max())
    contoured = [[bool(axis.collections) for axis in row] for row in (pictures, first, second)]
    above = [bool(one.max() > MAPS[0].max() - 0.1) for one in MAPS]
    assert contoured == [above, above, [True] * 3] and not any(axis.collections for axis in truth)
    fixed = plots.map_rows(IMAGES[:1], {"map": MAPS[:1]}, scale=99.0)
    assert [axis.images[0].get_clim() for axis in fixed.axes if axis.images][1:2] == [(0, 99.0)]


def test_contours_are_the_same_levels_on_every_surface():
    (axis,) = FIGURES["contours"]().axes
    assert [sorted(collection.levels) for collection in axis.collections] == [
        [4, 9],
        [4, 9],
    ] and axis.get_aspect() == 1
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == ["a", "b", "here"] and xy(
        next(line for line in axis.lines if line.get_label() == "here")
    ) == [(1.0, 2.0)]
    # A line of level 4 of the bowl around (2, 2) is the circle of radius 2, as far as straight pieces follow it.
    (circle,) = (
        plots.contours(
            np.linspace(-3, 3, 121),
            np.linspace(-3, 3, 121),
            {"a": np.add.outer(np.linspace(-3, 3, 121) ** 2, np.linspace(-3, 3, 121) ** 2)},
            [4],
            xlabel="x",
            ylabel="y",
        )
        .axes[0]
        .collections
    )
    np.testing.assert_allclose(np.hypot(*circle.get_paths()[0].vertices.T), 2, atol=0.01)


def test_curves_can_go_into_axes_that_are_there():
    fig, (left, right) = plots.figure(1, 2)
    assert plots.score_histogram(SCORES, LABELS, axis=left, threshold=3.0) is None
    assert (
        plots.roc_curves({"one": (np.array([0, 0.2, 1]), np.array([0, 0.9, 1]))}, axis=right)
        is None
    )
    assert left.get_xlabel() == "anomaly score" and list(left.lines[0].get_xdata()) == [3.0, 3.0]
    assert xy(right.lines[1]) == [(0.0, 0.0), (0.2, 0.9), (1.0, 1.0)] and xy(right.lines[0]) == [
        (0.0, 0.0),
        (1.0, 1.0),
    ]
