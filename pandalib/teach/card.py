"""The card at the end of a lesson: what was predicted, what was solved, what to reread."""

from __future__ import annotations

from pandalib.teach import session
from pandalib.teach.lesson import show
from pandalib.teach.strings import say, table


def card(lesson: str) -> None:
    """Sum up the predictions and the exercises of a lesson, "00" to "08", as they stand in this session.

    A prediction counts as it stood when its answer was first shown. An exercise counts as its last check left it.

    Raises
    ------
    ValueError naming the lessons that there are.
    """
    predictions = {
        key: entry for key, entry in table()["predict"].items() if key.split("-")[0] == lesson
    }
    exercises = {
        key: entry for key, entry in table()["exercise"].items() if entry.get("lesson") == lesson
    }
    if not (predictions or exercises):
        lessons = sorted({key.split("-")[0] for key in table()["predict"]})
        raise ValueError(f"there is no lesson {lesson!r}: choose one of {', '.join(lessons)}.")
    wrong = [
        key
        for key in predictions
        if key in session.shown and session.shown[key] != predictions[key]["right"]
    ]
    open_ones = [key for key in exercises if not session.solved.get(key)]
    show(
        say("card_title", lesson=lesson),
        f"- {_predicted(predictions, wrong)}",
        f"- {_solved(exercises, open_ones)}",
        f"- {_reread([*(predictions[key] for key in wrong), *(exercises[key] for key in open_ones)], _made(predictions))}",
    )


def _made(predictions: dict) -> list[str]:
    return [key for key in predictions if key in session.predictions or key in session.shown]


def _predicted(predictions: dict, wrong: list[str]) -> str:
    made = _made(predictions)
    if not made:
        return say("card_no_prediction", n=len(predictions))
    shown = sum(key in session.shown for key in made)
    line = say("card_predictions", made=len(made), n=len(predictions), right=shown - len(wrong))
    return line + (" " + say("card_not_shown", n=len(made) - shown) if shown < len(made) else "")


def _solved(exercises: dict, open_ones: list[str]) -> str:
    line = say("card_exercises", solved=len(exercises) - len(open_ones), n=len(exercises))
    if open_ones:
        line += " " + say("card_open", names=", ".join(f"`{key}`" for key in open_ones))
    hints = sum(session.hints.get(key, 0) for key in exercises)
    return line + " " + (say("card_hints", n=hints) if hints else say("card_no_hints"))


def _reread(entries: list[dict], made: list[str]) -> str:
    sections = list(dict.fromkeys(entry["section"] for entry in entries if "section" in entry))
    if sections:
        return say("card_reread", sections=", ".join(f"*{section}*" for section in sections))
    return say("card_nothing_to_reread") if made and not entries else say("card_predict_next_time")
