"""Formulas as MathML, and the font they are set in: no JavaScript and no network. Used by the book and the slides.

Browsers set MathML themselves, but only as well as the font that they find allows, and most Linux machines have none
with the OpenType tables for mathematics. So STIX Two Math (SIL Open Font License) comes along, cut down to the
characters that are needed. It lies in the package ziamath.
"""

from __future__ import annotations

import base64
import io
import logging
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
LIMITS = {"max", "min", "sup", "inf", "lim"}  # in a displayed formula their index stands below
PARTS = {"mfrac": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
FUNCTIONS = {"log", "exp", "sin", "cos", "ln", "det", "tr"}
ElementTree.register_namespace("", NAMESPACE)

# Enough for any formula of the course: ASCII, Greek, arrows, operators, blackboard and mathematical italic letters.
RANGES = (
    (0x20, 0x7F),
    (0x391, 0x3D7),
    (0x2016, 0x2017),
    (0x2026, 0x2027),
    (0x2032, 0x2033),
    (0x203E, 0x203F),
    (0x2190, 0x2195),
)
RANGES += (
    (0x2102, 0x2125),
    (0x2200, 0x2272),
    (0x2308, 0x230C),
    (0x27E8, 0x27EA),
    (0x1D434, 0x1D468),
    (0x1D538, 0x1D56C),
    (0x1D6FC, 0x1D71C),
)
CHARACTERS = "".join(chr(code) for first, end in RANGES for code in range(first, end))


def mathml(tex: str, display: bool = False) -> str:
    """A formula of LaTeX as one `<math>` element.

    Raises
    ------
    ValueError naming the formula, and the command that is not known.
    """
    from latex2mathml.converter import convert

    try:
        root = ElementTree.fromstring(
            convert(tex.strip(), display="block" if display else "inline")
        )
    except Exception as error:  # latex2mathml has a class for each of a dozen mistakes
        raise ValueError(
            f"the formula {tex.strip()!r} cannot be set: {type(error).__name__} {error}. Correct it where it stands."
        ) from error
    for element in root.iter():
        name, text = element.tag.split("}")[1], element.text or ""
        if text.startswith("\\"):  # an unknown command comes through as a letter
            raise ValueError(
                f"the formula {tex.strip()!r} has {text}, which is not known here. Write it with commands that are."
            )
        if len(element) != PARTS.get(name, len(element)):  # a brace that is never closed
            raise ValueError(
                f"a part is missing in the formula {tex.strip()!r}, perhaps a brace. Correct it where it stands."
            )
        if (
            text == "‖"
        ):  # the norm's bars: single ones, which must not grow to the height of the whole row
            element.set("stretchy", "false")
        if display and name in ("msub", "msubsup") and (element[0].text or "").strip() in LIMITS:
            element.tag = f"{{{NAMESPACE}}}" + {"msub": "munder", "msubsup": "munderover"}[name]
        _space_functions(element)
    return ElementTree.tostring(root, encoding="unicode")


def _space_functions(row: ElementTree.Element) -> None:
    """A thin space on either side of "log", except before an opening bracket."""
    for child in list(row):
        base = child[0] if len(child) and child.tag.endswith(("}msub", "}msup")) else child
        if (base.text or "").strip() not in FUNCTIONS:
            continue
        position = list(row).index(child)
        after = row[position + 1] if position + 1 < len(row) else None
        before = row[position - 1] if position else None
        if after is not None and not after.tag.endswith("}mo"):
            row.insert(position + 1, _thin_space())
        if before is not None and not before.tag.endswith(("}mo", "}mspace")):
            row.insert(position, _thin_space())


def _thin_space() -> ElementTree.Element:
    return ElementTree.Element(f"{{{NAMESPACE}}}mspace", width="0.167em")


def font(characters: str = CHARACTERS) -> bytes:
    """STIX Two Math with only these characters, and what their tables need, as WOFF."""
    from fontTools import subset  # comes with matplotlib

    package = find_spec("ziamath")
    if package is None:
        raise FileNotFoundError(
            "the font of the formulas lies in the package ziamath, which is not installed: `make install`."
        )
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # or it tells every glyph
    options = subset.Options(
        flavor="woff", layout_features=["*"], hinting=False, name_IDs=[0, 1, 2, 4, 5, 6, 13, 14]
    )
    whole = subset.load_font(
        str(Path(package.origin).parent / "fonts" / "STIXTwoMath-Regular.ttf"), options
    )
    part = subset.Subsetter(options)
    part.populate(text=characters)
    part.subset(whole)
    whole["head"].modified = whole["head"].created  # the same bytes at any time of day
    whole.recalcTimestamp = False
    file = io.BytesIO()
    subset.save_font(whole, file, options)
    return file.getvalue()


def font_face(source: bytes | str) -> str:
    """The CSS of the font: `source` is its address, or its bytes, which then stand in the CSS itself."""
    address = (
        source
        if isinstance(source, str)
        else "data:font/woff;base64," + base64.b64encode(source).decode()
    )
    return f'@font-face {{ font-family: "STIX Two Math"; src: url({address}) format("woff"); }}\nmath {{ font-family: "STIX Two Math", math; }}\n'
