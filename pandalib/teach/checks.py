"""Checks of the exercises: each calls the reader's function on fresh inputs and knows the usual wrong answers.

The inputs are of the kind that a later cell of the lesson hands over, and the result has to be of
the kind that this cell goes on with: what is right here must not crash there.

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
from pandalib.teach.exercises import EXERCISES, Exercise
from pandalib.teach.strings import OneLine, say, text


class CheckFailed(OneLine, AssertionError):
    """The exercise is not solved yet; the message says what to look at."""

    line = ""  # of the reader's code, in which an error arose


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
    answers, complaint = _answers(key, function, cases)
    with (
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
    ):  # a recognised mistake may well divide by zero
        warnings.simplefilter("ignore")
        expected = [exercise.solution(*case) for case in cases]
        if all(
            _close(answer, right, exercise.tolerance) for answer, right in zip(answers, expected)
        ):
            if complaint:
                raise CheckFailed(complaint)
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
    if all(_close(answer, right, 1e-4) for answer, right in zip(answers, expected)):
        raise CheckFailed(say("rounded", key=key))
    number = next(
        i for i, (a, b) in enumerate(zip(answers, expected)) if not _close(a, b, exercise.tolerance)
    )
    raise CheckFailed(
        say("not_yet", key=key, message=f"{strings['otherwise']} ({_describe(cases[number])})")
    )


def _answers(key: str, function: Callable, cases: list[tuple]) -> tuple[list[np.ndarray], str]:
    """The reader's results as numbers; and why a later cell cannot go on with them, or nothing."""
    exercise = EXERCISES[key]
    try:
        pairs = [_call(key, function, exercise, case, exercise.given) for case in cases]
    except CheckFailed as failure:
        if not exercise.given:
            raise
        try:  # on arrays a mistake can still be recognised
            pairs = [_call(key, function, exercise, case, "") for case in cases]
        except CheckFailed:
            raise failure from None
        given = say("tensors_with_gradients") if exercise.given == "gradients" else say("tensors")
        complaint = say("arrays_only", key=key, given=given, where=failure.line)
    else:
        complaint = next((why for _, why in pairs if why), "")
    return [numbers for numbers, _ in pairs], complaint


def _call(
    key: str, function: Callable, exercise: Exercise, case: tuple, given: str
) -> tuple[np.ndarray, str]:
    # One that changes its arguments must not change what it is compared with.
    arguments = _tensors(case) if given else copy.deepcopy(case)
    before = [_contents(argument) for argument in arguments]
    last = len(arguments) - len(exercise.by_name)
    try:
        with warnings.catch_warnings():
            if given:  # torch warns of float(x) where x has a gradient; in the lesson not all have
                warnings.simplefilter("ignore")
            answer = function(*arguments[:last], **dict(zip(exercise.by_name, arguments[last:])))
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
        where = _line_of(function, error)
        called = _describe(arguments)
        failure = CheckFailed(say("raised", key=key, error=what, where=where, case=called))
        failure.line = where
        raise failure from None
    if answer is None:
        raise CheckFailed(say("none", key=key))
    changed = [_contents(argument) for argument in arguments]
    if changed != before:
        number = next(i for i in range(len(before)) if changed[i] != before[i])
        raise CheckFailed(say("changed", key=key, number=number + 1))
    try:
        numbers = np.asarray(answer.detach().cpu() if hasattr(answer, "detach") else answer)
        if (
            numbers.dtype.kind not in "biufO"
        ):  # text that looks like a number is no number, and a complex one would lose a part
            raise TypeError
        numbers = numbers.astype(float)
    except Exception:
        raise CheckFailed(say("not_numbers", key=key, type=type(answer).__name__)) from None
    return numbers, _unfit(key, exercise, answer, arguments if given else ())


def _tensors(case: tuple) -> tuple:
    """The case as a training loop has it: float32, and nothing that numpy can read, as on a GPU."""
    import torch  # the lessons without a network need none

    def tensor(array):  # no leaf, which torch itself forbids to change: `changed` says it better
        return torch.tensor(array, dtype=torch.float32, requires_grad=True).clone()

    return tuple(tensor(part) if isinstance(part, np.ndarray) else part for part in case)


def _contents(argument) -> object:
    """What is equal before and after a call, unless the function has changed its argument."""
    if hasattr(argument, "detach"):
        argument = argument.detach().numpy()
    if isinstance(argument, np.ndarray):
        return argument.shape, argument.tobytes()  # as bytes NaN equals NaN
    return copy.deepcopy(argument)


def _unfit(key: str, exercise: Exercise, answer, tensors: tuple) -> str:
    """Why a later cell cannot go on with this answer, even if it is right, or nothing."""
    kind = type(answer).__name__
    if tensors and not hasattr(answer, "detach"):
        return say("not_a_tensor", key=key, type=kind)
    if tensors and exercise.given == "gradients":
        import torch

        try:
            torch.autograd.grad(answer.sum(), tensors[0])
        except RuntimeError:  # the way back to the input is cut
            return say("no_gradient", key=key)
    if exercise.returns == "array" and not isinstance(answer, np.ndarray):
        return say("not_an_array", key=key, type=kind)
    if exercise.returns == "whole" and (found := np.asarray(answer).dtype).kind not in "iu":
        return say("not_whole", key=key, type=found)
    return ""


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
        parts = map(_name, case)
        return say("called_with", arguments=" ".join(", ".join(parts).split()))


def _name(argument) -> str:
    if hasattr(argument, "detach"):
        return f"tensor {tuple(argument.shape)}"
    if isinstance(argument, np.ndarray) and argument.size > 8:
        return f"array {argument.shape}"
    return repr(argument)
