"""Figures: a sentence with each, and what they draw is where it belongs; a slider moves both."""

import base64
import io
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from pandalib import plots

IMAGES = np.random.default_rng(0).integers(0, 256, size=(7, 3, 16, 16), dtype=np.uint8)
SCORES = np.random.default_rng(1).gamma(3, size=60)
LABELS = (np.arange(60) % 3 > 0).astype(int)
POINTS = np.random.default_rng(2).gamma(2, size=(60, 2))
MAPS = np.random.default_rng(3).gamma(2, 2, size=(3, 16, 16))
RATIOS = np.random.default_rng(4).gamma(4, 0.3, size=(6, 5))  # epochs, images
PANELS = {
    "loss": {"one": np.arange(3.0), "two": np.ones(3)},
    "ROC-AUC": {"one": np.array([0.5, 0.7, 0.6])},
    "variance": {"one": np.array([3.0, 2.0, 1.0])},
}
SENTENCE = "The curve rises from the left to the right, as it must."


def a_figure():
    return plots.lines([1, 2, 4], {"one": np.arange(3)}, xlabel="k", ylabel="ROC-AUC", log_x=True)


def xy(line):
    return [tuple(map(float, point)) for point in zip(*line.get_data())]


def texts(artists):
    return [artist.get_text() for artist in artists]


# ---------------------------------------------------------------- showing


@pytest.fixture
def shown(monkeypatch):
    calls = []

    def display(what, **options):
        calls.append((what, options))

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.delenv("PANDALIB_QUIET", raising=False)
    return calls


def test_a_figure_is_shown_with_its_sentence(shown):
    plots.show(a_figure(), SENTENCE)
    (picture, options), (caption, _) = shown
    assert picture["image/png"].startswith(b"\x89PNG") and set(picture) == {"image/png"}
    assert options == {"metadata": {"image/png": {"alt": SENTENCE}}, "raw": True}
    assert caption.data == f"*Figure: {SENTENCE}*"
    assert plots.png(a_figure()) == plots.png(a_figure())


@pytest.mark.parametrize("alt", ["", "ROC curve", "A title with enough words but no full stop"])
def test_a_title_is_no_sentence(alt, shown):
    with pytest.raises(ValueError, match="expected a full sentence"):
        plots.show(a_figure(), alt)
    assert not shown


def test_pyplot_is_not_involved():
    code = "import sys, pandalib.plots as p; p.png(p.bars(['a'], [1], xlabel='x'));"
    code += "print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def sentence_at(value):
    return f"The curve rises from the left to the right, as it must at step {value}."


def draw(value):
    return a_figure(), sentence_at(value)


@pytest.mark.parametrize("reason", ["a file", "no ipywidgets"])
def test_a_slider_may_be_its_figure_alone(reason, shown, monkeypatch, capsys):
    if reason == "a file":
        monkeypatch.setenv("PANDALIB_QUIET", "1")
    else:
        monkeypatch.setitem(sys.modules, "ipywidgets", None)  # its import fails
    plots.slider(draw, range(5), start=2, label="step")
    (_, options), (caption, _) = shown
    assert "display_id" not in options and caption.data == f"*Figure: {sentence_at(2)}*"
    assert ("pip install ipywidgets" in capsys.readouterr().out) == (reason == "no ipywidgets")


def test_a_slider_that_is_moved_replaces_picture_and_caption(shown):
    plots.slider(draw, [0, 5, 10], start=5, label="step, in steps")
    (control, beside), (_, picture), (caption, words) = shown
    assert beside == {"exclude": ["text/plain"]}  # or nbval sees other words than the lesson has
    assert control.options == (0, 5, 10) and control.value == 5
    assert caption.data == f"*Figure: {sentence_at(5)}*" and not picture["update"]
    control.value = 10
    (_, new_picture), (new_caption, new_words) = shown[3:]
    assert new_caption.data == f"*Figure: {sentence_at(10)}*"
    assert new_picture["metadata"]["image/png"]["alt"] == sentence_at(10)
    assert new_picture["update"] and new_words["update"]
    assert new_picture["display_id"] == picture["display_id"]
    assert new_words["display_id"] == words["display_id"]
    plots.slider(draw, [0], start=0, label="another one")
    assert len({options.get("display_id") for _, options in shown}) == 5  # two each, and None


def test_a_slider_starts_at_one_of_its_values(shown):
    with pytest.raises(ValueError, match="start=7 is none of the slider's 5 values"):
        plots.slider(draw, range(5), start=7, label="step")


def test_images_to_click_have_names_and_the_first_is_chosen(shown):
    names = [f"cell {n}, good" for n in range(3)]
    beside = [IMAGES[2:], IMAGES[3:], IMAGES[4:]]
    plots.click(IMAGES[:3], beside, names=names, anomalous=[0, 1, 0], alt=SENTENCE)
    (page, _), (caption, _) = shown
    page = BeautifulSoup(page["text/html"], "html.parser")
    buttons, labels = page.select("input[type=radio]"), page.select("label")
    assert [button.has_attr("checked") for button in buttons] == [True, False, False]
    assert [label["for"] for label in labels] == [button["id"] for button in buttons]
    assert [label.img["alt"] for label in labels] == names
    assert [label.img["class"][0] for label in labels] == ["normal", "anomalous", "normal"]
    panels = page.select(".beside")
    assert [len(panel.find_all("img")) for panel in panels] == [5, 4, 3]
    for i, panel in enumerate(panels):
        for n, picture in enumerate(panel.find_all("img")):
            assert picture["alt"] == f"{names[i]}, number {n + 1}"
            data = base64.b64decode(picture["src"].partition(",")[2])
            pixels = np.asarray(Image.open(io.BytesIO(data)), float)
            wanted = beside[i][n].transpose(1, 2, 0)
            assert np.corrcoef(pixels.ravel(), wanted.ravel())[0, 1] > 0.5  # and not another one
    assert caption.data == f"*Figure: {SENTENCE}*"
    with pytest.raises(ValueError, match="expected a full sentence"):
        plots.click(IMAGES[:3], beside, names=names, anomalous=[0, 1, 0], alt="Cells")


# ---------------------------------------------------------------- what is drawn


def test_a_pipeline_reads_from_left_to_right_without_overlap():
    steps = {"images": "normal\nonly", "network": "pretrained", "score": "higher:\nanomalous"}
    fig = plots.pipeline(steps, trained="network")
    fig.draw_without_rendering()
    (axis,) = fig.axes
    boxes = [patch.get_window_extent() for patch in axis.patches]
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
    styles = [patch.get_linestyle() for patch in axis.patches]
    assert styles[1] != styles[0] == styles[2]
    words = [text for text in axis.texts if text.get_text()]
    assert [text.get_text() for text in words] == [part for pair in steps.items() for part in pair]
    extents = [text.get_window_extent() for text in words]
    for number, box in enumerate(boxes):  # each title lies in its box, its words below
        title, below = extents[2 * number], extents[2 * number + 1]
        assert box.x0 <= title.x0 and title.x1 <= box.x1 and below.y1 < box.y0
    assert all(one.x1 < other.x0 for one, other in pairwise(extents[1::2]))


def test_histogram_clips_the_longest_tail_but_loses_no_image():
    scores, labels = np.append(SCORES, 1e6), np.append(LABELS, 1)
    fig, axis = plots.figure()
    assert plots.score_histogram(scores, labels, axis=axis, threshold=3.0) is None
    assert axis.get_xlim()[1] < 1e6 and xy(axis.lines[0])[0][0] == 3.0
    for patch in axis.patches:
        x, y = patch.get_xy().T
        assert abs(np.trapezoid(y, x)) == pytest.approx(1)


def test_histogram_shows_far_scores_in_an_inset():
    scores, labels = np.append(SCORES, 1e6), np.append(LABELS, 1)
    far = float(np.quantile(SCORES, 0.9))
    (axis,) = plots.score_histogram(scores, labels, threshold=3.0, far=far).axes
    (inset,) = axis.child_axes
    assert axis.get_ylabel() == "images" and inset.get_title() == f"beyond {far:g}"
    n_drawn = 0
    for part in (axis, inset):
        for patch in part.patches:
            x, y = patch.get_xy().T
            width = np.diff(np.unique(x)).mean()
            n_drawn += abs(np.trapezoid(y, x)) / width
    assert n_drawn == pytest.approx(len(scores)) and inset.get_xlim()[1] >= 1e6


def test_roc_curves_stand_beside_guessing():
    (axis,) = plots.roc_curves({"one": ([0, 0.2, 1], [0, 0.9, 1])}).axes
    assert [xy(line) for line in axis.lines] == [
        [(0.0, 0.0), (1.0, 1.0)],
        [(0.0, 0.0), (0.2, 0.9), (1.0, 1.0)],
    ]


def test_dots_and_intervals_put_each_label_beside_its_values():
    values = {"one": [0.5, 0.6], "two": [0.7, 0.8]}
    intervals = plots.intervals(["a", "b"], [0.5, 0.6], [[0.4, 0.7], [0.55, 0.9]])
    for fig in (plots.dots(values, ["a", "b"]), intervals):
        (axis,) = fig.axes
        height = dict(zip(texts(axis.get_yticklabels()), axis.get_yticks()))
        assert height["a"] > height["b"] and axis.get_xlim() == (0, 1.02)
        assert xy(axis.lines[0]) == [(0.5, height["a"]), (0.6, height["b"])]
        assert list(axis.lines[-1].get_xdata()) == [0.5, 0.5]  # chance
    (spans,) = [collection.get_segments() for collection in intervals.axes[0].collections]
    assert np.allclose(spans, [[(0.4, 1), (0.7, 1)], [(0.55, 0), (0.9, 0)]])
    assert len(plots.dots({"one": [1.0]}, ["a"], chance=None).axes[0].lines) == 1


def test_moves_lead_each_label_from_its_start_to_its_ends():
    ends = {"one": np.array([0.6, 0.5]), "other": np.array([0.7, 0.9])}
    (axis,) = plots.moves(["a", "b"], np.array([0.5, 0.8]), ends).axes
    starts, one, other = axis.lines
    assert list(starts.get_xdata()) == [0.5, 0.8]
    assert list(one.get_xdata()) == [0.6, 0.5] and list(other.get_xdata()) == [0.7, 0.9]
    arrows = {(note.xyann[0], note.xy[0]) for note in axis.texts}  # from, to
    assert arrows == {(0.5, 0.6), (0.8, 0.5), (0.5, 0.7), (0.8, 0.9)}
    assert axis.get_xlim()[0] > 0.4, "the axis is cut to the data"


def test_bars_carry_their_values():
    (axis,) = plots.bars(["a", "b", "c"], [1.512, 34.5, 1234.5], xlabel="seconds").axes
    assert texts(axis.texts) == ["1.5", "34", "1,234"] and axis.get_xscale() == "log"
    assert [bar.get_width() for bar in axis.patches] == [1.512, 34.5, 1234.5]
    heights = [bar.get_y() for bar in axis.patches]
    assert heights == sorted(heights, reverse=True)
    low, high = axis.get_xlim()
    assert 0 < low < 1.512 and high > 1234.5


def test_stacked_panels_share_one_axis():
    options = dict(xlabel="epoch", columns=2, marks={"stop": 1}, zero=True)
    fig = plots.stacked([0, 1, 2], PANELS, **options)
    panels = [axis for axis in fig.axes if axis.get_visible()]
    assert [axis.get_ylabel() for axis in panels] == list(PANELS) and len(fig.axes) == 4
    for axis, curves in zip(panels, PANELS.values()):
        drawn = {line.get_label(): line.get_ydata() for line in axis.lines}
        assert all(np.array_equal(drawn[name], series) for name, series in curves.items())
        assert [1, 1] in [list(line.get_xdata()) for line in axis.lines]
        assert texts(axis.texts) == ["stop"] and axis.get_ylim()[0] == 0
        assert (axis.get_legend() is not None) == (len(curves) > 1)
    (below,) = plots.stacked([0, 1], {"loss": {"one": np.array([5.0, 6.0])}}, xlabel="x").axes
    assert below.get_ylim()[0] > 4 and below.get_xlabel() == "x"


def test_what_is_counted_has_no_ticks_between_two_numbers():
    for x, whole in (([0, 1, 2], True), (range(4), True), ([0.0, 0.1, 0.2], False)):
        one = np.arange(len(x), dtype=float)
        ticks = plots.lines(x, {"one": one}, xlabel="epoch", ylabel="loss").axes[0].get_xticks()
        assert (ticks == ticks.round()).all() == whole and len(ticks) > 2


@pytest.mark.parametrize("shared", [True, False])
def test_clouds_hold_each_image_in_its_class(shared):
    clouds = {"before": POINTS, "after": POINTS / 9}
    fig = plots.scatter_strip(clouds, LABELS, shared=shared, xlabel="first", ylabel="second")
    for axis, points in zip(fig.axes, clouds.values()):
        drawn = {cloud.get_label(): cloud.get_offsets() for cloud in axis.collections}
        np.testing.assert_allclose(drawn["normal"], points[LABELS == 0])
        np.testing.assert_allclose(drawn["anomalous"], points[LABELS == 1])
    assert (fig.axes[0].get_xlim() == fig.axes[1].get_xlim()) == shared
    assert texts(fig.legends[0].get_texts()) == ["anomalous", "normal"]


def test_each_image_has_a_ring_at_the_epoch_that_it_picks():
    labels = np.array([0, 1, 1, 0, 1])
    left, right = plots.own_moments(RATIOS, labels, shown=[0, 1, 2]).axes
    picked = RATIOS.argmax(axis=0)
    rings = [xy(line)[0] for line in left.lines if line.get_markerfacecolor() == "none"]
    assert rings == [(float(picked[i]), float(RATIOS[picked[i], i])) for i in (0, 1, 2)]
    courses = [line.get_ydata() for line in left.lines if len(line.get_xdata()) == 6]
    np.testing.assert_array_equal(courses, RATIOS[:, :3].T)
    assert sorted(texts(left.get_legend().get_texts())) == ["anomalous", "normal", "typical"]
    for bars in right.containers:
        of_class = picked[labels == (bars.get_label() == "anomalous")]
        expected = [np.mean(of_class == epoch) for epoch in range(6)]
        np.testing.assert_allclose([bar.get_height() for bar in bars], expected)


def test_contours_are_the_same_levels_on_every_surface():
    grid = np.linspace(-3, 3, 121)
    bowl = np.add.outer(grid**2, grid**2)
    surfaces = {"a": bowl, "b": bowl + 1}
    fig = plots.contours(
        grid, grid, surfaces, [4, 6], points={"here": (1, 2)}, xlabel="x", ylabel="y"
    )
    (axis,) = fig.axes
    assert [list(one.levels) for one in axis.collections] == [[4, 6], [4, 6]]
    assert axis.get_aspect() == 1 and texts(axis.get_legend().get_texts()) == ["a", "b", "here"]
    assert xy(axis.lines[-1]) == [(1.0, 2.0)]
    radius = np.hypot(*axis.collections[0].get_paths()[0].vertices.T)
    np.testing.assert_allclose(radius, 2, atol=0.01)  # the bowl is 4 high on a circle


def test_image_grid_frames_by_class():
    fig = plots.image_grid(IMAGES[:3], columns=2, titles=["x", "y", "z"], anomalous=[0, 1, 0])
    first, second, third, rest = fig.axes
    frames = [axis.spines["left"] for axis in (first, second, third)]
    assert [frame.get_linestyle() for frame in frames] == ["-", "--", "-"]
    assert third.get_title() == "z" and not rest.get_visible()
    shown = second.images[0].get_array()
    assert np.abs(shown - IMAGES[1].transpose(1, 2, 0).astype(int)).max() <= 3


def test_maps_of_a_row_share_one_scale_from_zero():
    maps, masks = {"first": MAPS, "second": 10 * MAPS}, MAPS > 8
    threshold = float(MAPS[0].max()) - 0.1
    titles = ["x", "y", "z"]
    fig = plots.map_rows(
        IMAGES[:3], maps, masks=masks, threshold=threshold, titles=np.array(titles)
    )
    panels = [axis for axis in fig.axes if axis.images]
    pictures, truth, first, second = (panels[3 * row : 3 * row + 3] for row in range(4))
    assert [axis.get_title() for axis in pictures] == titles
    assert pictures[0].get_ylabel() == "image" and truth[0].get_ylabel() == "ground truth"
    np.testing.assert_array_equal(truth[1].images[0].get_array(), masks[1])
    for row, values in ((first, MAPS), (second, 10 * MAPS)):
        for axis, values_here in zip(row, values):
            np.testing.assert_array_equal(axis.images[0].get_array(), values_here)
            assert axis.images[0].get_clim() == (0, values.max())
    above = [bool(one.max() > threshold) for one in MAPS]
    outlined = [[bool(axis.collections) for axis in row] for row in (pictures, first, second)]
    assert outlined == [above, above, [True] * 3]
    assert len(plots.map_rows(IMAGES[:2], {}, masks=masks[:2]).axes) == 4  # without a map
    fixed = plots.map_rows(IMAGES[:1], {"map": MAPS[:1]}, scale=99.0)
    assert fixed.axes[1].images[0].get_clim() == (0, 99.0)
    assert plots.png(fixed, SENTENCE).startswith(b"\x89PNG")  # of few colours
