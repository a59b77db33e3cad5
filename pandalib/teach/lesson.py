"""Predict, reveal, hint, report: the voice of a lesson. Its sentences stand in `strings/`, its memory in `session`."""

from __future__ import annotations

import math

from pandalib.teach import session
from pandalib.teach.strings import Mistyped, OneLine, say, text
from pandalib.experiments.config import current_tier


class OutOfBand(OneLine, AssertionError):
    """A result has left the band in which the lesson's text is true."""


def predict(key: str, answer: str | None = None) -> None:
    """Show a question with its options and remember the reader's answer; None goes on without one."""
    entry = text("predict", key)
    options = entry["options"]
    if answer is None:
        session.predictions.pop(key, None)
        show(
            say("question", question=entry["question"]),
            *(f"- **{name}**: {option}" for name, option in options.items()),
        )
        print(say("how_to_answer", key=key, option=next(iter(options))))
        return
    choice = str(answer).strip().lower()
    if choice not in options:
        raise Mistyped(
            f"the answer {answer!r} is none of the options: choose {', '.join(options)}."
        )
    session.predictions[key] = choice
    print(say("answer_kept", choice=choice, option=options[choice]))


def reveal(key: str) -> None:
    """Answer the prediction that was made, or none, once the measurement stands above."""
    entry = text("predict", key)
    right, choice = entry["right"], session.predictions.get(key)
    if choice is None:
        opening = say("no_prediction", right=right, option=entry["options"][right])
    else:
        session.shown.setdefault(key, choice)
        if choice == right:
            opening = say("predicted_right", right=right)
        else:
            opening = say(
                "predicted_wrong",
                choice=choice,
                reply=entry["replies"][choice],
                right=right,
                option=entry["options"][right],
            )
    show(f"{opening} {entry['why']}")


def hint(key: str) -> None:
    """The next hint for an exercise; each call says a little more, the last one is repeated."""
    hints = text("exercise", key)["hints"]
    session.hints[key] = min(session.hints.get(key, 0) + 1, len(hints))
    print(say("hint", step=session.hints[key], n=len(hints), hint=hints[session.hints[key] - 1]))


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
            say(
                "out_of_band",
                name=name,
                value=f"{value:.{digits}f}",
                low=f"{low:g}",
                high=f"{high:g}",
            )
        )
    print(f"{name}: {value:.{digits}f}   (band {low:g} to {high:g})")


def show(*paragraphs: str) -> None:
    """Show a paragraph and, below it, the lines of a list, as Markdown."""
    from IPython.display import Markdown, display

    display(Markdown("\n\n".join(paragraphs[:1]) + "\n\n" + "\n".join(paragraphs[1:])))
