"""Checks of the exercises: each calls the reader's function on fresh inputs and knows the usual wrong answers.

A check passes with one line, or raises `CheckFailed`, which a notebook shows as one line as well. The messages say
where to look and never give the solution; they stand in `strings/`. As long as a function is the stub, the library's
own takes its place in the notebook, so that one unsolved exercise does not end the lesson.
"""

from __future__ import annotations

import copy
import functools
import inspect
import linecache
import textwrap
import warnings
from collections.abc import Callable

import numpy as np

from pandalib.teach import session
from pandalib.teach.exercises import EXERCISES
from pandalib.teach.strings import OneLine, say, text


class CheckFailed(OneLine, AssertionError):
    """The exercise is not solved yet; the message says what to look at."""


class NotSolved(OneLine, NotImplementedError):
    """The stub has not been touched."""


def check(key: str, function: Callable) -> None:
    """Check the reader's `function` for exercise `key`, and remember the outcome for the lesson's card.

    Raises
    ------
    CheckFailed with one line about what to look at; NotSolved when the stub still raises NotImplementedError.
    """
    exercise, strings = EXERCISES.get(key), text("exercise", key)
    if exercise is None:
        raise ValueError(f"there is no exercise {key!r}: choose one of {', '.join(EXERCISES)}.")
    session.solved[key] = False  # until shown: what was solved once and fails now is open again
    function = getattr(function, "stands_in_for", function)
    if not callable(function):
        raise CheckFailed(say("not_a_function", key=key))
    cases = exercise.cases()
    answers = [_call(key, function, case) for case in cases]
    with (
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
    ):  # a recognised mistake may well divide by zero
        warnings.simplefilter("ignore")
        expected = [exercise.solution(*case) for case in cases]
        if all(
            _close(answer, right, exercise.tolerance) for answer, right in zip(answers, expected)
        ):
            session.solved[key] = True
            print(say("right", praise=strings["praise"]))
            return
        for name, mistake in exercise.wrong.items():
            if all(
                _close(answer, mistake(*case), exercise.tolerance)
                for answer, case in zip(answers, cases)
            ):
                raise CheckFailed(say("not_yet", key=key, message=strings["wrong"][name]))
    for answer, right in zip(answers, expected):
        _same_form(key, answer, right)
    number = next(
        i for i, (a, b) in enumerate(zip(answers, expected)) if not _close(a, b, exercise.tolerance)
    )
    raise CheckFailed(
        say("not_yet", key=key, message=f"{strings['otherwise']} ({_describe(cases[number])})")
    )


def _call(key: str, function: Callable, case: tuple) -> np.ndarray:
    try:
        answer = function(
            *copy.deepcopy(case)
        )  # one that changes its arguments must not change what it is compared with
    except NotImplementedError:
        raise NotSolved(
            say("stub", key=key)
            + (" " + say("goes_on") if _let_the_library_stand_in(key, function) else "")
        ) from None
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever the reader's code raises is the reader's to see, in one line
        what = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        raise CheckFailed(
            say(
                "raised", key=key, error=what, where=_line_of(function, error), case=_describe(case)
            )
        ) from None
    if answer is None:
        raise CheckFailed(say("none", key=key))
    try:
        numbers = np.asarray(answer.detach().cpu() if hasattr(answer, "detach") else answer)
        if (
            numbers.dtype.kind not in "biufO"
        ):  # text that looks like a number is no number, and a complex one would lose a part
            raise TypeError
        return numbers.astype(float)
    except Exception:
        raise CheckFailed(say("not_numbers", key=key, type=type(answer).__name__)) from None


def _line_of(function: Callable, error: BaseException) -> str:
    """The line of the reader's own code in which the error arose, quoted; empty where the source is not at hand."""
    file, found, trace = (
        getattr(getattr(function, "__code__", None), "co_filename", None),
        "",
        error.__traceback__,
    )
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            found = linecache.getline(file, trace.tb_lineno).strip()
        trace = trace.tb_next
    return " " + say("in_the_line", line=found) if found else ""


def _let_the_library_stand_in(key: str, stub: Callable) -> bool:
    """In the notebook that holds the stub, call the library's solution by the stub's name, until it is defined again."""
    space, name = getattr(stub, "__globals__", {}), getattr(stub, "__name__", "")
    if getattr(space.get(name), "stands_in_for", space.get(name)) is not stub:
        return False
    signature = inspect.signature(stub)

    @functools.wraps(stub)
    def library(*arguments, **named):
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        return EXERCISES[key].solution(*bound.args, **bound.kwargs)

    library.stands_in_for = stub  # the next check must see the stub, not the solution
    space[name] = library
    return True


def _same_form(key: str, answer: np.ndarray, right) -> None:
    shape = np.shape(right)
    if answer.shape != shape:
        expected = say("one_number") if shape == () else say("array_of_shape", shape=shape)
        given = (
            say("one_number") if answer.shape == () else say("array_of_shape", shape=answer.shape)
        )
        raise CheckFailed(say("shape", key=key, given=given, expected=expected))
    if np.isnan(answer).any() and not np.isnan(np.asarray(right, dtype=float)).any():
        raise CheckFailed(say("nan", key=key))
    if np.isinf(answer).any() and np.isfinite(np.asarray(right, dtype=float)).all():
        raise CheckFailed(say("infinite", key=key))


def _close(answer: np.ndarray, right, tolerance: float) -> bool:
    right = np.asarray(right, dtype=float)
    if answer.shape != right.shape:
        return False
    scale = max(1.0, float(np.abs(right[np.isfinite(right)]).max(initial=0.0)))
    return bool(np.allclose(answer, right, rtol=0, atol=tolerance * scale, equal_nan=True))


def _describe(case: tuple) -> str:
    with np.printoptions(precision=3, suppress=True):  # to be read, not to be copied
        parts = [
            f"array {argument.shape}"
            if isinstance(argument, np.ndarray) and argument.size > 8
            else repr(argument)
            for argument in case
        ]
    return say("called_with", arguments=" ".join(", ".join(parts).split()))
