"""Figures: a sentence with each, the same bytes each time; a slider moves both. Colours: tests/test_accessibility.py."""

import numpy as np
import pytest

from pandalib import plots

IMAGES = np.random.default_rng(0).integers(0, 256, size=(7, 3, 16, 16), dtype=np.uint8)
SCORES = np.random.default_rng(1).gamma(3, size=60)
LABELS = (np.arange(60) % 3 > 0).astype(int)
SENTENCE = "The curve rises from the left to the right, as it must."

FIGURES = {
    "image_grid": lambda: plots.image_grid(IMAGES, columns=4, titles=["x"] * 7, anomalous=[0, 1] * 3 + [0]),
    "score_histogram": lambda: plots.score_histogram(SCORES, LABELS, threshold=3.0),
    "roc_curves": lambda: plots.roc_curves({"one": (np.array([0, 1]), np.array([0, 1]))}),
    "dots": lambda: plots.dots({"one": np.array([0.5, 0.6]), "two": np.array([0.7, 0.8])}, ["a", "b"]),
    "lines": lambda: plots.lines([1, 2, 4], {"one": np.arange(3), "two": np.ones(3)}, xlabel="k", ylabel="ROC-AUC", log_x=True),
}


@pytest.fixture
def shown(monkeypatch):
    import IPython.display

    calls = []
    monkeypatch.setattr(IPython.display, "display", lambda *what, **options: calls.append((what[0], options)))
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
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def stepping(value):
    return FIGURES["lines"](), f"The curve rises from the left to the right, as it must at step {value}."


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
    assert control.options == (0, 5, 10) and control.value == 5 and control.description == "step, in steps"
    assert caption.data == f"*Figure: {stepping(5)[1]}*" and not picture["update"]
    control.value = 10
    assert len(shown) == 5
    (_, new_picture), (new_caption, new_words) = shown[3:]
    assert new_caption.data == f"*Figure: {stepping(10)[1]}*" and new_picture["metadata"]["image/png"]["alt"] == stepping(10)[1]
    assert (new_picture["display_id"], new_words["display_id"]) == (picture["display_id"], words["display_id"])
    assert new_picture["update"] and new_words["update"] and picture["display_id"] != words["display_id"]


def test_two_sliders_do_not_answer_for_each_other(shown, monkeypatch):
    monkeypatch.delenv("PANDALIB_QUIET", raising=False)
    for _ in range(2):
        plots.slider(stepping, range(3), start=0, label="step")
    assert len({options["display_id"] for _, options in shown if "display_id" in options}) == 4


def test_a_slider_starts_at_one_of_its_values(shown):
    with pytest.raises(ValueError, match=r"start=7 is none of the 5 values of the slider, \[0, 1, 2\]"):
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
