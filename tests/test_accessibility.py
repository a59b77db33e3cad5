"""What a reader who does not see, or sees colours otherwise, gets.

Words for figures, contrast, order of headings, links that say where they lead. That each figure of
a lesson carries its sentence stands in test_notebooks.py.
"""

import itertools
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from pandalib import plots

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "results").rglob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
LITTLE = {"here", "link", "this", "click here", "this page", "page", "more", "see", "source"}
COLOURS = sorted({style["color"] for style in (*plots.SERIES, *plots.STYLES.values())})

# ---------------------------------------------------------------- colours

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB: without one kind of cones.
VISIONS = {
    "all cones": np.eye(3),
    "no long-wave cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no middle-wave cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no short-wave cones": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
APART = 12  # CIELAB; about 2 is just noticed side by side


def linear(colour):
    channels = np.array(to_rgb(colour))
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(colour):
    """WCAG's ratio to a white page, 1 to 21."""
    return 1.05 / (TO_XYZ[1] @ linear(colour) + 0.05)


def lab(colour, vision="all cones"):
    seen = np.clip(np.array(VISIONS[vision]) @ linear(colour), 0, 1)
    x = TO_XYZ @ seen / (TO_XYZ @ np.ones(3))
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_measures_themselves():
    assert contrast("black") == pytest.approx(21)
    assert contrast("#777777") == pytest.approx(4.48, abs=0.01)
    assert lab("red") == pytest.approx([53.24, 80.09, 67.20], abs=0.05)


@pytest.mark.parametrize("vision", VISIONS)
def test_every_pair_of_colours_is_told_apart(vision):
    for one, other in itertools.combinations([*COLOURS, plots.REFERENCE, "#000000"], 2):
        assert np.linalg.norm(lab(one, vision) - lab(other, vision)) >= APART, (one, other)


def test_colours_stand_out_from_the_page():
    for colour in (*COLOURS, plots.REFERENCE):
        assert contrast(colour) >= 3.0  # WCAG 2.2, 1.4.11: graphical objects


def test_no_other_colour_is_drawn():
    source = Path(plots.__file__).read_text(encoding="utf-8")
    written = re.findall(r'"(#[0-9A-Fa-f]{6})"', source)
    assert set(written) == {*COLOURS, plots.REFERENCE, plots.GRID}  # the grid is pale and mute
    assert set(re.findall(r'cmap="(\w+)"', source)) == {"gray"}
    assert plots.MAP_COLOURS == "magma_r"


def test_maps_of_scores_grow_steadily_darker():
    """Read without colours, a map of anomaly scores says the same."""
    lightness = [lab(colour)[0] for colour in colormaps["magma_r"](np.linspace(0, 1, 64))[:, :3]]
    assert np.all(np.diff(lightness) < 0)


def drawn_figures():
    rng = np.random.default_rng(0)
    scores, labels = rng.gamma(3, size=60), np.arange(60) % 2
    axes = dict(xlabel="first", ylabel="second")
    yield plots.score_histogram(scores, labels, threshold=3.0)
    yield plots.own_moments(rng.gamma(3, size=(9, 60)), labels, [0, 1])
    yield plots.roc_curves({"one": ([0, 1], [0, 1])})
    yield plots.intervals(["a", "b"], [0.5, 0.7], [[0.4, 0.6], [0.6, 0.8]])
    yield plots.moves(["a", "b"], [0.5, 0.7], {"one": [0.6, 0.6], "other": [0.7, 0.8]})
    yield plots.bars(["a", "b"], [1.0, 20.0], xlabel="seconds")
    yield plots.stacked([1, 2, 3], {"loss": {"one": [1, 2, 3]}}, xlabel="epoch", marks={"peak": 2})
    yield plots.scatter_strip({"start": rng.normal(size=(60, 2))}, labels, shared=True, **axes)


def test_words_and_outlines_in_figures_have_contrast():
    for axis in itertools.chain(*(fig.axes for fig in drawn_figures())):
        words = [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts]
        words += [*axis.get_xticklabels(), *axis.get_yticklabels()]
        if axis.get_legend():
            words += axis.get_legend().get_texts()
        for word in words:
            assert contrast(word.get_color()) >= 4.5  # WCAG 2.2, 1.4.3: text
            assert word.get_fontsize() >= 8
        for patch in axis.patches:  # bars and areas: a pale fill needs an outline that is not
            filled = patch.get_facecolor()[3] == 1
            *colour, opacity = patch.get_facecolor() if filled else patch.get_edgecolor()
            assert opacity == 1 and contrast(colour) >= 3.0
        for line in axis.lines:
            only_markers = line.get_linestyle() == "None"
            colour = line.get_markeredgecolor() if only_markers else line.get_color()
            assert contrast(colour) >= 3.0 and line.get_alpha() in (None, 1)
        for cloud in axis.collections:
            *colour, opacity = cloud.get_edgecolor()[0]
            assert opacity == 1 and contrast(colour) >= 3.0 and cloud.get_linewidth()[0] >= 0.5


def test_normal_and_anomalous_differ_in_more_than_colour():
    for styles in ([plots.STYLES["normal"], plots.STYLES["anomalous"]], plots.SERIES):
        for one, other in itertools.combinations(styles, 2):
            assert all(one[key] != other[key] for key in ("color", "linestyle", "marker"))
    histogram, moments, *_ = drawn_figures()
    normal, anomalous = histogram.axes[0].patches
    assert normal.get_hatch() is None and anomalous.get_hatch()
    assert normal.get_linestyle() != anomalous.get_linestyle()
    assert {bar.get_hatch() for bar in moments.axes[1].patches} == {None, "///"}


# ---------------------------------------------------------------- pages


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def prose(request):
    """The Markdown of a page or notebook, without code blocks."""
    text = request.param.read_text(encoding="utf-8")
    if request.param.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)


def test_one_first_heading_and_none_skipped(prose):
    levels = [len(mark) for mark in re.findall(r"^(#+) ", prose, flags=re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(deeper <= level + 1 for level, deeper in itertools.pairwise(levels))


def test_links_say_where_they_lead(prose):
    for label in re.findall(r"(?<!!)\[([^\]]+)\]\([^)\s]+\)", prose):
        assert label.strip(" `*_.").lower() not in LITTLE
        assert not label.startswith("http"), "an address read aloud says little"


def test_pictures_have_a_sentence(prose):
    for alt in re.findall(r"!\[([^\]]*)\]\(", prose):
        assert len(alt.split()) >= 6 and alt.endswith("."), alt
    assert "<img" not in prose, "write it as Markdown, with its sentence"
