"""What a reader who does not see, or sees colours otherwise, gets: words for figures, contrast, order of headings, links that say where they lead.

That each figure of a lesson carries its sentence stands in tests/test_notebooks.py, that of a moved slider in tests/test_browser.py.
"""

import itertools
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from pandalib import plots

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs" / "results").rglob("*.md")),
    ]
}
NOTEBOOKS = {
    str(path.relative_to(ROOT)): path
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb"))
    if ".ipynb_checkpoints" not in path.parts
}
LITTLE = {
    "here",
    "link",
    "this",
    "this link",
    "click here",
    "this page",
    "page",
    "more",
    "read more",
    "see",
    "source",
    "paper",
    "code",
    "website",
}
COLOURS = {style["color"] for style in (*plots.SERIES, *plots.STYLES.values())}


# ---------------------------------------------------------------- colours

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB: what a reader without one kind of cone sees.
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
APART = 11.5  # CIEDE2000; about 2 is just noticed side by side


def linear(colour):
    channels = np.array(to_rgb(colour))
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(colour, page="white"):
    """WCAG's ratio of two colours, 1 to 21."""
    light, dark = sorted((TO_XYZ[1] @ linear(one) for one in (colour, page)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(colour, vision="all cones"):
    seen = np.clip(np.array(VISIONS[vision]) @ linear(colour), 0, 1)
    x = TO_XYZ @ seen / (TO_XYZ @ np.ones(3))
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(one, other):
    """Difference of two CIELAB colours (Sharma, Wu and Dalal 2005)."""
    (light_1, a_1, b_1), (light_2, a_2, b_2) = one, other
    chroma = (np.hypot(a_1, b_1) + np.hypot(a_2, b_2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    a_1, a_2 = stretch * a_1, stretch * a_2
    chroma_1, chroma_2 = np.hypot(a_1, b_1), np.hypot(a_2, b_2)
    hue_1, hue_2 = np.degrees(np.arctan2(b_1, a_1)), np.degrees(np.arctan2(b_2, a_2))
    turn = (hue_2 - hue_1 + 180) % 360 - 180 if chroma_1 * chroma_2 else 0.0
    light, chroma = (light_1 + light_2) / 2, (chroma_1 + chroma_2) / 2
    hue = hue_1 + turn / 2 if chroma_1 * chroma_2 else hue_1 + hue_2

    def cos(degrees):
        return np.cos(np.radians(degrees))

    t = (
        1
        - 0.17 * cos(hue - 30)
        + 0.24 * cos(2 * hue)
        + 0.32 * cos(3 * hue + 6)
        - 0.20 * cos(4 * hue - 63)
    )
    d_light = (light_2 - light_1) / (
        1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    )
    d_chroma = (chroma_2 - chroma_1) / (1 + 0.045 * chroma)
    d_hue = (
        2 * np.sqrt(chroma_1 * chroma_2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    )
    blue = 60 * np.exp(-((((hue % 360) - 275) / 25) ** 2))
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(np.radians(blue))
    return np.sqrt(d_light**2 + d_chroma**2 + d_hue**2 + rotation * d_chroma * d_hue)


def test_the_measures_themselves():
    assert contrast("black") == pytest.approx(21) and contrast("#777777") == pytest.approx(
        4.48, abs=0.01
    )
    assert np.allclose(
        [np.sum(matrix, axis=1) for matrix in VISIONS.values()], 1, atol=1e-5
    )  # white stays white
    assert lab("red") == pytest.approx([53.24, 80.09, 67.20], abs=0.05)
    for one, other, expected in (  # pairs of Sharma, Wu and Dalal
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ):
        assert ciede2000(one, other) == pytest.approx(expected, abs=1e-4) == ciede2000(other, one)
    # What the matrices are for: red and green of one lightness, without middle-wave cones.
    assert (
        ciede2000(lab("#D55E00", "no middle-wave cones"), lab("#009E73", "no middle-wave cones"))
        < ciede2000(lab("#D55E00"), lab("#009E73")) / 2
    )


@pytest.mark.parametrize("vision", VISIONS)
def test_every_pair_of_colours_is_told_apart(vision):
    for one, other in itertools.combinations(sorted({*COLOURS, plots.REFERENCE, "#000000"}), 2):
        assert ciede2000(lab(one, vision), lab(other, vision)) >= APART, f"{one} and {other}"


@pytest.mark.parametrize("colour", sorted({*COLOURS, plots.REFERENCE}))
def test_colours_stand_out_from_the_page(colour):
    assert contrast(colour) >= 3.0  # WCAG 2.2, 1.4.11: graphical objects


def test_no_other_colour_is_drawn():
    """Colours are named in one place; what else is written out is pale and says nothing: the grid."""
    source = (ROOT / "pandalib" / "plots.py").read_text(encoding="utf-8")
    written = set(re.findall(r'"(#[0-9A-Fa-f]{6})"', source)) - COLOURS - {plots.REFERENCE}
    assert written == {"#E5E5E5"}


def drawn_figures():
    rng = np.random.default_rng(0)
    scores, labels = rng.gamma(3, size=60), np.arange(60) % 2
    yield plots.score_histogram(scores, labels, threshold=3.0)
    yield plots.roc_curves({"one": ([0, 1], [0, 1])})
    yield plots.intervals(["a", "b"], [0.5, 0.7], [[0.4, 0.6], [0.6, 0.8]])
    yield plots.bars(["a", "b"], [1.0, 20.0], xlabel="seconds")
    yield plots.two_parts(rng.gamma(3, size=(2, 60)), labels, threshold=1.5)
    yield plots.dots({"one": [0.5, 0.6], "two": [0.7, 0.8]}, ["a", "b"])
    yield plots.stacked([1, 2, 3], {"loss": {"one": [1, 2, 3]}}, xlabel="epoch", marks={"peak": 2})
    yield plots.scatter_strip(
        {"start": rng.normal(size=(60, 2))}, labels, shared=True, xlabel="first", ylabel="second"
    )
    yield plots.own_moments(rng.gamma(3, size=(9, 60)), labels, [0, 1])


def test_words_and_outlines_in_figures_have_contrast():
    for fig in drawn_figures():
        fig.canvas.draw()
        for axis in fig.axes:
            words = [
                axis.title,
                axis.xaxis.label,
                axis.yaxis.label,
                *axis.get_xticklabels(),
                *axis.get_yticklabels(),
                *axis.texts,
            ]
            legend = axis.get_legend()
            for word in words + (list(legend.get_texts()) if legend else []):
                assert contrast(word.get_color()) >= 4.5, word  # WCAG 2.2, 1.4.3: text
                assert word.get_fontsize() >= 8
            for patch in axis.patches:  # bars and areas: a pale fill needs an outline that is not
                *colour, opacity = (
                    patch.get_facecolor()
                    if patch.get_facecolor()[3] == 1
                    else patch.get_edgecolor()
                )
                assert opacity == 1 and contrast(colour) >= 3.0
            for line in axis.lines:
                colour = (
                    line.get_markeredgecolor()
                    if line.get_linestyle() == "None"
                    else line.get_color()
                )
                assert contrast(colour) >= 3.0 and line.get_alpha() in (None, 1)
            for cloud in axis.collections:
                assert (
                    contrast(cloud.get_edgecolor()[0, :3]) >= 3.0
                    and cloud.get_edgecolor()[0, 3] == 1
                    and cloud.get_linewidth()[0] >= 0.5
                )


def test_maps_of_scores_grow_steadily_darker():
    """Read without colours, a map of anomaly scores says the same."""
    from matplotlib import colormaps

    shown = set(
        re.findall(r'cmap="(\w+)"', (ROOT / "pandalib" / "plots.py").read_text(encoding="utf-8"))
    )
    assert shown == {"gray", "magma_r"}
    lightness = [lab(colour)[0] for colour in colormaps["magma_r"](np.linspace(0, 1, 64))[:, :3]]
    assert np.all(np.diff(lightness) < 0)


# ---------------------------------------------------------------- more than colours


def test_normal_and_anomalous_differ_in_more_than_colour():
    for styles in ([plots.STYLES["normal"], plots.STYLES["anomalous"]], plots.SERIES):
        for one, other in itertools.combinations(styles, 2):
            assert all(one[key] != other[key] for key in ("color", "linestyle", "marker"))


def test_normal_and_anomalous_areas_differ_in_hatch_and_outline():
    histogram, *_, moments = drawn_figures()
    normal, anomalous = histogram.axes[0].patches
    assert (
        normal.get_hatch() is None
        and anomalous.get_hatch()
        and normal.get_linestyle() != anomalous.get_linestyle()
    )
    assert {bar.get_hatch() for bar in moments.axes[1].patches} == {None, "///"}


# ---------------------------------------------------------------- pages


def prose(path):
    """The Markdown of a page or notebook, without code blocks."""
    if path.suffix == ".ipynb":
        text = "\n\n".join(
            cell.source
            for cell in nbformat.read(path, as_version=4).cells
            if cell.cell_type == "markdown"
        )
    else:
        text = path.read_text(encoding="utf-8")
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)


def outlines(text):
    return [len(mark) for mark in re.findall(r"^(#+) ", text, flags=re.MULTILINE)]


every_page = pytest.mark.parametrize("name", [*PAGES, *NOTEBOOKS])


@every_page
def test_one_first_heading_and_none_skipped(name):
    levels = outlines(prose({**PAGES, **NOTEBOOKS}[name]))
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(deeper <= level + 1 for level, deeper in itertools.pairwise(levels))


@every_page
def test_links_say_where_they_lead(name):
    text = prose({**PAGES, **NOTEBOOKS}[name])
    for label in re.findall(r"(?<!!)\[([^\]]+)\]\([^)\s]+\)", text):
        assert label.strip(" `*_.").lower() not in LITTLE, label
        assert not re.match(r"https?://", label), f"{label}: an address read aloud says little"


@every_page
def test_pictures_have_a_sentence(name):
    text = prose({**PAGES, **NOTEBOOKS}[name])
    for alt in re.findall(r"!\[([^\]]*)\]\(", text):
        assert len(alt.split()) >= 6 and alt.endswith("."), alt
    assert "<img" not in text, "write it as Markdown, with its sentence"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_widget_state_in_files(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    assert "widgets" not in notebook.metadata
    kinds = {
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    }
    assert not [kind for kind in kinds if "widget" in kind]


def test_the_checks_of_pages_find_what_they_are_for(tmp_path, monkeypatch):
    for test, bad in (
        (test_one_first_heading_and_none_skipped, "# One\n\n### Three\n"),
        (test_one_first_heading_and_none_skipped, "# One\n\n# Another\n"),
        (test_links_say_where_they_lead, "# One\n\nSee [here](README.md).\n"),
        (test_links_say_where_they_lead, "# One\n\n[https://example.org](https://example.org)\n"),
        (test_pictures_have_a_sentence, "# One\n\n![result](docs/result.png)\n"),
    ):
        path = tmp_path / "page.md"
        path.write_text(bad)
        monkeypatch.setitem(PAGES, "page.md", path)
        with pytest.raises(AssertionError):
            test("page.md")
    path.write_text("# One\n\n```\n# a comment\n```\n\n## Two, with [what is told](README.md)\n")
    for test in (
        test_one_first_heading_and_none_skipped,
        test_links_say_where_they_lead,
        test_pictures_have_a_sentence,
    ):
        test("page.md")
