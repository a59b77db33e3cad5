"""Formulas as MathML, which browsers set themselves: no JavaScript, no font and no network.

Used by the book and the slides.
"""

from __future__ import annotations

from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml

SAME = {r"\dots": r"\ldots", r"\big": ""}  # docutils knows the commands at the right


def mathml(tex: str, display: bool = False) -> str:
    """A formula of LaTeX as one `<math>` element; raises ValueError that names the formula."""
    text = tex.strip()
    for command, known in SAME.items():
        text = text.replace(command, known)
    try:
        found = tex2mathml(text, as_block=display)
    except MathError as error:
        raise ValueError(f"the formula {tex.strip()!r} cannot be set: {error}") from error
    # The bars of a norm must not grow to the height of the whole row.
    return found.replace('<mo class="mathopen">‖', '<mo stretchy="false">‖').replace("\n", " ")
