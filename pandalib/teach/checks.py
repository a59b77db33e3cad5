"""Checks of the exercises: the reader's function on fresh inputs, and the usual mistakes by name.

The inputs are of the kind that a later cell of the lesson hands over, and the result has to be of
the kind that this cell goes on with: what is right here must not crash there. A check passes with
one line or fails with one line, which says where to look and never gives the solution; the
sentences stand in `strings/`. As long as a function is the stub, the library's own takes its place
in the notebook, so that one unsolved exercise does not end the lesson.
"""

from __future__ import annotations

import copy
import functools
import inspect
import textwrap
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pandalib.teach.exercises import EXERCISES, Exercise
from pandalib.teach.lesson import callout, session
from pandalib.teach.strings import OneLine, say, text


class SaidAbove(OneLine):
    """An exception whose message stands in a box above it; an error's own is hard to read."""

    def _render_traceback_(self) -> list[str]:
        return [" "]  # of an empty one JupyterLab shows the message a second time


class CheckFailed(SaidAbove, AssertionError):
    """The exercise is not solved yet; the message says what to look at."""

    line = ""  # of the reader's code, in which an error arose


class NotSolved(SaidAbove, NotImplementedError):
    """The stub has not been touched."""


def check(key: str, function: Callable) -> None:
    """Check the reader's `function` for exercise `key`, and remember the outcome for the card.

    The answer stands in a box: grey for a stub, amber for "not yet", green for right.

    Raises
    ------
    CheckFailed
        With one line about what to look at.
    NotSolved
        When the stub still raises NotImplementedError.
    """
    try:
        praise = _check(key, function)
    except NotSolved as stub:
        callout("open", str(stub))
        raise
    except CheckFailed as failure:
        callout("not yet", str(failure))
        raise
    callout("right", say("right", praise=praise))


def _check(key: str, function: Callable) -> str:
    """Raise what `check` raises, or return the praise."""
    strings = text("exercise", key)
    exercise = EXERCISES[key]
    session.solved[key] = False  # until shown: what was solved once and fails now is open again
    function = getattr(function, "stands_in_for", function)
    if not callable(function):
        raise CheckFailed(say("not_a_function", key=key))
    cases = list(exercise.cases())
    answers, complaint = _answers(exercise, function, cases)
    right = [exercise.read(exercise.solution(*case), case) for case in cases]
    if not _agree(answers, right, exercise.tolerance):
        raise CheckFailed(_what_is_wrong(exercise, strings, cases, answers, right))
    if complaint:
        raise CheckFailed(complaint)
    session.solved[key] = True
    return strings["praise"]


# ---------------------------------------------------------------- the reader's function is called


def _answers(exercise: Exercise, function: Callable, cases: list) -> tuple[list, str]:
    """The reader's results as numbers; and why a later cell cannot go on with them, or ""."""
    try:
        results = [_call(exercise, function, case, exercise.given) for case in cases]
    except CheckFailed as failure:
        if not exercise.given:
            raise
        try:  # on arrays a mistake can still be recognised
            results = [_call(exercise, function, case, "") for case in cases]
        except CheckFailed:
            raise failure from None
        given = say(exercise.given)
        complaint = say("arrays_only", key=exercise.key, given=given, where=failure.line)
    else:
        complaint = next((why for _, why in results if why), "")
    return [numbers for numbers, _ in results], complaint


def _call(exercise: Exercise, function: Callable, case: tuple, given: str):
    """The result for one case, as numbers, and what is unfit about it, or ""."""
    key = exercise.key
    # A function that changes its arguments must not change what it is compared with.
    arguments = _tensors(case) if given else copy.deepcopy(case)
    before = [_contents(argument) for argument in arguments]
    n_by_place = len(arguments) - len(exercise.by_name)
    by_name = dict(zip(exercise.by_name, arguments[n_by_place:]))
    try:
        with warnings.catch_warnings():
            if given:  # torch warns of float(x) where x has a gradient; in the lesson not all have
                warnings.simplefilter("ignore")
            answer = function(*arguments[:n_by_place], **by_name)
    except NotImplementedError:
        goes_on = " " + say("goes_on") if _let_the_library_stand_in(exercise, function) else ""
        raise NotSolved(say("stub", key=key) + goes_on) from None
    except (Exception, SystemExit) as error:  # the reader's own, whatever it is, in one line
        failure = CheckFailed(_raised(key, function, error, arguments))
        failure.line = _line_of(function, error)
        raise failure from None
    if answer is None:
        raise CheckFailed(say("none", key=key))
    for number, argument in enumerate(arguments):
        if _contents(argument) != before[number]:
            raise CheckFailed(say("changed", key=key, number=number + 1))
    if exercise.returns == "page":
        return _read(exercise, answer, case), ""
    return _numbers(key, answer), _unfit(exercise, answer, arguments if given else ())


def _tensors(case: tuple) -> list:
    """The case as a training loop has it: in float32, and unreadable for numpy, as on a GPU."""
    import torch  # the lessons without a network need none

    def tensor(array):  # not a leaf, or torch itself would forbid changes; `changed` says it better
        return torch.tensor(array, dtype=torch.float32, requires_grad=True).clone()

    return [tensor(part) if isinstance(part, np.ndarray) else part for part in case]


def _contents(argument):
    """What is equal before and after a call, unless the function has changed its argument."""
    if hasattr(argument, "detach"):
        argument = argument.detach().numpy()
    if isinstance(argument, np.ndarray):
        return argument.tobytes()  # as bytes NaN equals NaN
    return copy.deepcopy(argument)


def _numbers(key: str, answer) -> np.ndarray:
    try:
        numbers = np.asarray(answer.detach().cpu() if hasattr(answer, "detach") else answer)
        if numbers.dtype.kind not in "biufO":  # neither text nor complex numbers
            raise TypeError
        return numbers.astype(float)
    except Exception:
        raise CheckFailed(say("not_numbers", key=key, type=type(answer).__name__)) from None


def _read(exercise: Exercise, page, case: tuple) -> np.ndarray:
    """A page as numbers; CheckFailed with the sentence that says what it lacks."""
    if not isinstance(page, str):
        raise CheckFailed(say("not_a_text", key=exercise.key, type=type(page).__name__))
    try:
        return exercise.read(page, case)
    except ValueError as error:
        message = text("exercise", exercise.key)["form"][str(error)]
        raise CheckFailed(say("not_yet", key=exercise.key, message=message)) from None


def _unfit(exercise: Exercise, answer, tensors: list) -> str:
    """Why a later cell cannot go on with this answer, even if it is right, or ""."""
    key, kind = exercise.key, type(answer).__name__
    if tensors and not hasattr(answer, "detach"):
        return say("not_a_tensor", key=key, type=kind)
    if tensors and exercise.given == "tensors_with_gradients":
        import torch  # as above

        try:
            torch.autograd.grad(answer.sum(), tensors[0])
        except RuntimeError:  # the way back to the input is cut
            return say("no_gradient", key=key)
    if exercise.returns == "array" and not isinstance(answer, np.ndarray):
        return say("not_an_array", key=key, type=kind)
    if exercise.returns == "whole" and (found := np.asarray(answer).dtype).kind not in "iu":
        return say("not_whole", key=key, type=found)
    return ""


def _let_the_library_stand_in(exercise: Exercise, stub: Callable) -> bool:
    """In the notebook that holds the stub, call the solution by its name until it is written."""
    space, name = getattr(stub, "__globals__", {}), getattr(stub, "__name__", "")
    if getattr(space.get(name), "stands_in_for", space.get(name)) is not stub:
        return False
    signature = inspect.signature(stub)

    @functools.wraps(stub)
    def library(*arguments, **named):
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        return exercise.solution(*bound.args, **bound.kwargs)

    library.stands_in_for = stub  # the next check must see the stub, not the solution
    space[name] = library
    return True


# ---------------------------------------------------------------- what is said about it


def _what_is_wrong(exercise: Exercise, strings: dict, cases: list, answers: list, right: list):
    key, tolerance = exercise.key, exercise.tolerance
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # a mistake may divide by zero
        warnings.simplefilter("ignore")
        mistakes = [
            {name: exercise.read(result, case) for name, result in exercise.mistakes(*case).items()}
            for case in cases
        ]
    for name, message in strings["wrong"].items():
        if _agree(answers, [results[name] for results in mistakes], tolerance):
            return say("not_yet", key=key, message=message)
    if exercise.returns == "page":
        pair = next(pair for pair in zip(answers, right) if not _close(*pair, tolerance))
        return say("not_yet", key=key, message=strings["rungs"][exercise.rung(*pair)])
    for answer, expected in zip(answers, right):
        if complaint := _other_form(key, answer, np.asarray(expected, dtype=float)):
            return complaint
    if _agree(answers, right, 1e-4):
        return say("rounded", key=key)
    pairs = zip(answers, right)
    number = next(i for i, pair in enumerate(pairs) if not _close(*pair, tolerance))
    message = f"{strings['otherwise']} ({_describe(cases[number])})"
    return say("not_yet", key=key, message=message)


def _agree(answers: list, expected: list, tolerance: float) -> bool:
    return all(_close(answer, right, tolerance) for answer, right in zip(answers, expected))


def _close(answer: np.ndarray, right, tolerance: float) -> bool:
    right = np.asarray(right, dtype=float)
    if answer.shape != right.shape:
        return False
    scale = max(1.0, np.abs(right[np.isfinite(right)]).max(initial=0.0))
    return np.allclose(answer, right, rtol=0, atol=tolerance * scale, equal_nan=True)


def _other_form(key: str, answer: np.ndarray, right: np.ndarray) -> str:
    def form(array):
        return say("array_of_shape", shape=array.shape) if array.shape else say("one_number")

    if answer.shape != right.shape:
        return say("shape", key=key, given=form(answer), expected=form(right))
    if np.isnan(answer).any():
        return say("nan", key=key)
    return say("infinite", key=key) if np.isinf(answer).any() else ""


def _raised(key: str, function: Callable, error: BaseException, arguments) -> str:
    sentence = f"{type(error).__name__}: {error}".rstrip(".")
    what = textwrap.shorten(sentence, 200, placeholder=" ...")
    where = _line_of(function, error)
    return say("raised", key=key, error=what, where=where, case=_describe(arguments))


def _line_of(function: Callable, error: BaseException) -> str:
    """The line of the reader's code in which the error arose; empty where there is no source."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.line for frame in frames if frame.filename == file and frame.line]
    return " " + say("in_the_line", line=lines[-1]) if lines else ""


def _describe(case: tuple) -> str:
    with np.printoptions(precision=3, suppress=True):  # to be read, not to be copied
        arguments = ", ".join(map(_name, case))
    return say("called_with", arguments=" ".join(arguments.split()))


def _name(argument) -> str:
    if hasattr(argument, "detach"):
        return f"tensor {tuple(argument.shape)}"
    if isinstance(argument, np.ndarray) and argument.size > 8:
        return f"array {argument.shape}"
    if isinstance(argument, list) and len(argument) > 8:
        return f"list of {len(argument)}"
    if isinstance(argument, Path):
        return f"folder {argument.name}"
    if inspect.isfunction(argument):
        return argument.__name__
    return repr(argument)
