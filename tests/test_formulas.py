"""Formulas as MathML: what browsers get wrong without help, errors, and the font."""

import io
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
for package in ("latex2mathml", "ziamath"):
    pytest.importorskip(package, reason="the extra [book] is not installed: make install")
import formulas  # noqa: E402


def test_a_formula_is_one_element_without_a_trace_of_latex():
    text = formulas.mathml(
        r"L = \frac{1}{B} \sum_{i=1}^{B} \lVert f(x_i) - c \rVert^2", display=True
    )
    assert text.startswith("<math") and text.endswith("</math>") and text.count("<math") == 1
    assert 'display="block"' in text and "\\" not in text and "<mfrac>" in text
    assert 'display="inline"' in formulas.mathml("x")


def test_bars_of_a_norm_do_not_grow_to_the_height_of_the_row():
    assert (
        re.findall(r"<mo([^>]*)>‖</mo>", formulas.mathml(r"\sum_g \lVert x \rVert^2"))
        == [' stretchy="false"'] * 2
    )


def test_the_index_of_min_stands_below_it_when_displayed():
    assert "<munder><mo>min</mo>" in formulas.mathml(r"\min_{g} d", display=True)
    assert "<munder><mo>" not in formulas.mathml(r"\min_{g} d")


def test_a_function_keeps_its_distance():
    row = re.sub(r"<mspace[^>]*/>", "_", formulas.mathml(r"p \log p"))
    assert "<mi>p</mi>_<mi>log</mi>_<mi>p</mi>" in row
    assert "<mi>log</mi><mo" in formulas.mathml(r"\log (1 - p)")


@pytest.mark.parametrize(
    "tex, word",
    [
        (r"\nosuch x", r"\nosuch"),
        (r"\frac{1}", "missing"),
        ("x^", "cannot be set"),
        (r"\left( x", "cannot be set"),
    ],
)
def test_a_wrong_formula_is_named(tex, word):
    with pytest.raises(ValueError) as error:
        formulas.mathml(tex)
    assert word in str(error.value) and repr(tex.strip()) in str(error.value)


def test_the_font_has_the_letters_the_tables_and_its_licence_and_is_small():
    from fontTools.ttLib import TTFont

    data = formulas.font("x∑‖(\U0001d465")
    assert (
        data == formulas.font("x∑‖(\U0001d465")
        and len(data) < 60_000 < len(formulas.font()) < 200_000
    )
    font = TTFont(io.BytesIO(data))
    assert {ord("x"), ord("∑"), ord("‖"), 0x1D465} <= set(font.getBestCmap()) and "MATH" in font
    assert "Open Font License" in font["name"].getDebugName(13)
    assert {ord(letter) for letter in "abAB∑∂θλ𝔼∈≤→"} <= set(
        TTFont(io.BytesIO(formulas.font())).getBestCmap()
    )
    assert "url(data:font/woff;base64," in formulas.font_face(
        data
    ) and "url(a.woff)" in formulas.font_face("a.woff")
