"""The voice of a lesson: predict, reveal, hint, report, and the card at its end.

Its sentences stand in `strings/`. What the reader has done is kept in `session` as long as the
notebook's kernel lives; cells may run twice and in any order, so it says how things stand now.
"""

from __future__ import annotations

import html
import math
import os
import re
from dataclasses import dataclass, field

from pandalib.experiments.config import current_tier
from pandalib.teach.strings import Mistyped, OneLine, say, table, text


@dataclass
class Session:
    """What the reader has done since the kernel started."""

    predictions: dict[str, str] = field(default_factory=dict)  # the answers as they stand
    shown: dict[str, str] = field(default_factory=dict)  # ... and as they stood at the reveal
    hints: dict[str, int] = field(default_factory=dict)  # read, by exercise
    solved: dict[str, bool] = field(default_factory=dict)  # by the last check of the exercise

    def clear(self) -> None:
        """Forget everything, as a new kernel does."""
        for record in vars(self).values():
            record.clear()


session = Session()


class OutOfBand(OneLine, AssertionError):
    """A result has left the band in which the lesson's text is true."""


def predict(key: str, answer: str | None = None) -> None:
    """Show a question with its options and remember the answer; None: by a click, or not at all.

    Buttons need ipywidgets, and are left out of files (PANDALIB_QUIET=1).
    """
    entry = text("predict", key)
    options = entry["options"]
    listed = [f"- **{name}**: {option}" for name, option in options.items()]
    show(say("question", question=entry["question"]), *listed)
    if answer is None:
        session.predictions.pop(key, None)
        _show_buttons(key, list(options))
        print(say("how_to_answer", key=key, option=next(iter(options))))
        return
    choice = str(answer).strip().lower()
    if choice not in options:
        raise Mistyped(
            f"the answer {answer!r} is none of the options: choose {', '.join(options)}."
        )
    session.predictions[key] = choice
    print(say("answer_kept", choice=choice, option=options[choice]))


def _show_buttons(key: str, options: list[str]) -> None:
    """Buttons that remember the answer that was clicked last."""
    if os.environ.get("PANDALIB_QUIET") == "1":
        return
    try:
        from ipywidgets import ToggleButtons  # an optional package
    except ImportError:
        return
    from IPython.display import display  # comes with ipywidgets

    buttons = ToggleButtons(options=options, value=None, style={"button_width": "3em"})

    def keep(change):
        session.predictions[key] = change["new"]

    buttons.observe(keep, names="value")
    # Without its description in words: nbval would compare that, and a committed lesson has none.
    display(buttons, exclude=["text/plain"])


def reveal(key: str) -> None:
    """Answer the prediction that was made, or none, once the measurement stands above."""
    entry = text("predict", key)
    answer = {"right": entry["right"], "option": entry["options"][entry["right"]]}
    choice = session.predictions.get(key)
    if choice is None:  # folded, or "Run All Cells" would give every answer away
        opening = say("no_prediction", **answer)
        summary = say("fold_answer")
        folded = f"<details><summary>{summary}</summary>", f"{opening} {entry['why']}"
        return show(*folded, "", "</details>")
    session.shown.setdefault(key, choice)  # what is changed later is hindsight
    opening = say("predicted_right", right=choice)
    if choice != entry["right"]:
        opening = say("predicted_wrong", choice=choice, reply=entry["replies"][choice], **answer)
    show(f"{opening} {entry['why']}")


def hint(key: str) -> None:
    """Show the hints for an exercise up to the next one; each says a little more than the last."""
    hints = text("exercise", key)["hints"]
    step = session.hints[key] = min(session.hints.get(key, 0) + 1, len(hints))
    listed = [f"{number}. {one}" for number, one in enumerate(hints[:step], start=1)]
    show(say("hints", step=step, n=len(hints), key=key), *listed)


def report(name: str, value: float, low: float, high: float, *, digits: int = 3) -> None:
    """Print a rounded result, and check that it lies in its band, from `low` to `high`.

    The bands are set from several seeds in the embedded tier and are wide enough for another
    processor. In another tier the numbers differ, and the band is not asked.

    Raises
    ------
    OutOfBand
        Naming the result, its value and the band.
    """
    rounded = f"{value:z.{digits}f}"
    inside = math.isfinite(value) and low <= value <= high
    if current_tier().name == "embedded" and not inside:
        band = {"low": f"{low:g}", "high": f"{high:g}"}
        raise OutOfBand(say("out_of_band", name=name, value=rounded, **band))
    print(f"{name}: {rounded}")


def card(lesson: str) -> None:
    """Sum up the predictions and the exercises of a lesson, "00" to "10".

    A prediction counts as it stood when its answer was first shown, an exercise as its last check
    left it. Raises ValueError, naming the lessons that there are.
    """
    questions = {k: v for k, v in table()["predict"].items() if k.startswith(f"{lesson}-")}
    exercises = {k: v for k, v in table()["exercise"].items() if v["lesson"] == lesson}
    if not questions:
        lessons = sorted({key[:2] for key in table()["predict"]})
        raise ValueError(f"there is no lesson {lesson!r}: choose one of {', '.join(lessons)}.")
    made = [key for key in questions if key in session.predictions or key in session.shown]
    shown = [key for key in made if key in session.shown]
    wrong = [key for key in shown if session.shown[key] != questions[key]["right"]]
    unsolved = [key for key in exercises if not session.solved.get(key)]
    n_hints = sum(session.hints.get(key, 0) for key in exercises)

    predicted = say("card_no_prediction", n=len(questions))
    if made:
        n_right = len(shown) - len(wrong)
        predicted = say("card_predictions", made=len(made), n=len(questions), right=n_right)
    if len(made) > len(shown):
        predicted += " " + say("card_not_shown", n=len(made) - len(shown))
    solved = say("card_exercises", solved=len(exercises) - len(unsolved), n=len(exercises))
    if unsolved:
        solved += " " + say("card_open", names=", ".join(f"`{key}`" for key in unsolved))
    solved += " " + (say("card_hints", n=n_hints) if n_hints else say("card_no_hints"))
    entries = [*(questions[key] for key in wrong), *(exercises[key] for key in unsolved)]
    if entries:
        sections = dict.fromkeys(f"*{entry['section']}*" for entry in entries)  # each one once
        reread = say("card_reread", sections=", ".join(sections))
    else:
        reread = say("card_nothing_to_reread" if made else "card_predict_next_time")
    show(say("card_title", lesson=lesson), f"- {predicted}", f"- {solved}", f"- {reread}")


CALLOUTS = {"open": "#8c8c8c", "not yet": "#e69f00", "right": "#009e73"}  # grey, amber, green


def callout(kind: str, sentence: str) -> None:
    """Show a sentence in a box with the colour of `kind`; outside of a notebook, print it."""
    from IPython import get_ipython  # not needed to grade in a plain process

    if get_ipython() is None:
        print(sentence)
        return
    from IPython.display import display  # as above

    words = re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(sentence, quote=False))
    style = f"border-left: 5px solid {CALLOUTS[kind]}; padding: 0.4em 0.8em; max-width: 50em"
    box = f'<div style="{style}">{words}</div>'
    display({"text/html": box, "text/plain": sentence}, raw=True)


def show(paragraph: str, *lines: str) -> None:
    """Show a paragraph and, below it, the lines of a list, as Markdown."""
    from IPython.display import Markdown, display  # not needed to grade in a plain process

    display(Markdown("\n\n".join([paragraph, "\n".join(lines)])))
