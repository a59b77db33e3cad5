"""Figures: a sentence with each, legible to colour-blind readers, the same bytes each time."""

import itertools

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


def test_normal_and_anomalous_differ_in_more_than_colour():
    for styles in ([plots.STYLES["normal"], plots.STYLES["anomalous"]], plots.SERIES):
        for one, other in itertools.combinations(styles, 2):
            assert all(one[key] != other[key] for key in ("color", "linestyle", "marker"))


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


def test_colours_stand_out_from_the_page():
    for colour in {style["color"] for style in (*plots.SERIES, *plots.STYLES.values())}:
        assert 1.05 / (luminance(colour) + 0.05) >= 3.0  # WCAG 2.2, 1.4.11: graphical objects


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
