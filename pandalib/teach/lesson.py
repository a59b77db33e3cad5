"""Predict, reveal, hint, report: the voice of a lesson. Its sentences stand in `strings/`."""

from __future__ import annotations

import math

from pandalib.teach.strings import text
from pandalib.tiers import current_tier


class OneLine(Exception):
    """An exception that a notebook shows as one line, not as a traceback through the library."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for this first
        return [str(self)]


_predictions: dict[str, str] = {}  # kept for the session: the reveal speaks to the answer given
_hints_given: dict[str, int] = {}


class OutOfBand(OneLine, AssertionError):
    """A result has left the band in which the lesson's text is true."""


def predict(key: str, answer: str | None = None) -> None:
    """Show a question with its options and remember the reader's answer; None goes on without one."""
    entry = text("predict", key)
    options = entry["options"]
    if answer is None:
        _predictions.pop(key, None)
        _say(f"**Your prediction:** {entry['question']}", *(f"- **{name}**: {option}" for name, option in options.items()))
        print(f'Write your answer as predict("{key}", "{next(iter(options))}"), then run this cell again.')
        return
    choice = str(answer).strip().lower()
    if choice not in options:
        raise ValueError(f"the answer {answer!r} is none of the options: choose {', '.join(options)}.")
    _predictions[key] = choice
    print(f"Your prediction: {choice}. {options[choice]} Read on to see.")


def reveal(key: str) -> None:
    """Answer the prediction that was made, or none, once the measurement stands above."""
    entry = text("predict", key)
    right, choice = entry["right"], _predictions.get(key)
    if choice is None:
        opening = f"No prediction was made. The answer is **{right}**: {entry['options'][right]}"
    elif choice == right:
        opening = f"You predicted **{right}**, and that is what happened."
    else:
        opening = f"You predicted **{choice}**: {entry['replies'][choice]} The answer is **{right}**: {entry['options'][right]}"
    _say(f"{opening} {entry['why']}")


def hint(key: str) -> None:
    """The next hint for an exercise; each call says a little more, the last one is repeated."""
    hints = text("exercise", key)["hints"]
    step = min(_hints_given.get(key, 0), len(hints) - 1)
    _hints_given[key] = step + 1
    print(f"Hint {step + 1} of {len(hints)}: {hints[step]}")


def report(name: str, value: float, low: float, high: float, *, digits: int = 3) -> None:
    """Print a rounded result with the band in which it must lie; raise when it has left it.

    The bands are set from several seeds in the embedded tier and are wide enough for another processor. In another
    tier the lesson's numbers differ, so there the value is printed without a band.

    Raises
    ------
    OutOfBand naming the result, its value and the band.
    """
    value = float(value)
    if current_tier().name != "embedded":
        print(f"{name}: {value:.{digits}f}")
        return
    if not (math.isfinite(value) and low <= value <= high):
        raise OutOfBand(
            f"{name} is {value:.{digits}f}, expected {low:g} to {high:g}. If a cell above was changed, that is the effect of the change; "
            f"if none was, run `python -m pandalib doctor`."
        )
    print(f"{name}: {value:.{digits}f}   (band {low:g} to {high:g})")


def _say(*paragraphs: str) -> None:
    from IPython.display import Markdown, display

    display(Markdown("\n\n".join(paragraphs[:1]) + "\n\n" + "\n".join(paragraphs[1:])))
