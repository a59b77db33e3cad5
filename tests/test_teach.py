"""Exercises answer: right in two spellings, each known mistake by name, the rest in one line."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pandalib.experiments import config
from pandalib.teach import (
    CheckFailed,
    OutOfBand,
    card,
    check,
    hint,
    predict,
    report,
    reveal,
    strings,
)
from pandalib.teach.checks import EXERCISES, NotSolved
from pandalib.teach.lesson import CALLOUTS, session
from pandalib.teach.strings import table, text

ROOT = Path(__file__).resolve().parent.parent
MISTAKES = [(key, name) for key in EXERCISES for name in text("exercise", key)["wrong"]]
each_exercise = pytest.mark.parametrize("key", EXERCISES)
each_mistake = pytest.mark.parametrize(("key", "name"), MISTAKES)


@pytest.fixture(autouse=True)
def a_new_session():
    session.clear()


def solve(key):
    check(key, EXERCISES[key].solution)


def mistaken(key, name):
    """A reader's function that makes one of the known mistakes."""
    return lambda *case, **named: EXERCISES[key].mistakes(*case, *named.values())[name]


def notebook(source):
    """The names that a notebook would hold after running the source in a cell."""
    space = {}
    exec(source, space)
    return space


def teachers_solutions():
    """Exercise -> the teacher's function, out of the lessons."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        space = notebook(
            "import copy, math, numpy as np, torch, torch.nn.functional as F, pandalib\n"
            "from pandalib.datasets.folder import open_images\n"
            "from torch.nn.utils import vector_to_parameters"
        )
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if "### BEGIN SOLUTION" in source:
                exec(source, space)
            if match := re.match(r'check\("(\w+)", (\w+)\)', source):
                found[match[1]] = space[match[2]]
    return found


SOLUTIONS = teachers_solutions()
TENSORS = [key for key, exercise in EXERCISES.items() if exercise.given]


# ------------------------------------------------------------- right


@each_exercise
def test_the_teachers_solution_passes(key, capsys):
    check(key, SOLUTIONS[key])
    assert capsys.readouterr().out == f"Right: {text('exercise', key)['praise']}\n"
    assert session.solved[key]


def test_lists_and_tensors_are_as_good_as_arrays():
    def nearest(*case):
        return (torch.cdist(*map(torch.from_numpy, case)) ** 2).amin(dim=1)

    check("nearest_distance", nearest)
    for key in ("leave_one_out", "class_interval"):
        check(key, like(key, list))


# ------------------------------------------------------------- mistakes


@each_mistake
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:overflow", "ignore:invalid value")
def test_each_known_mistake_gets_its_message(key, name):
    with pytest.raises(CheckFailed) as failure:
        check(key, mistaken(key, name))
    assert str(failure.value) == f"Not yet, {key}: {text('exercise', key)['wrong'][name]}"


def test_a_mistake_made_in_torch_is_recognised():
    with pytest.raises(CheckFailed, match="F is missing"):
        check("penalty_gradient", lambda theta, start, fisher, x: x * (theta - start))


@each_exercise
@pytest.mark.filterwarnings("error")
def test_strings_and_exercises_name_the_same_mistakes(key):
    with np.errstate(all="ignore"):
        names = set(EXERCISES[key].mistakes(*next(iter(EXERCISES[key].cases()))))
    entry = text("exercise", key)
    assert set(entry["wrong"]) == names and len(names) >= 3
    assert len(entry["hints"]) == 3 and entry["praise"] and entry["otherwise"]


@each_mistake
def test_messages_point_and_do_not_tell(key, name):
    messages = list(text("exercise", key)["wrong"].values())
    message = text("exercise", key)["wrong"][name]
    assert message.endswith((".", "?")) and 5 <= len(message.split()) <= 45
    assert not re.search(r"`[^`]*[(\[@=]", message), "code is a piece of the solution"
    assert messages.count(message) == 1


def test_zeros_by_the_readers_own_matrix_product_are_recognised():
    """As in lesson 01, where `squared_distances` of the exercise before is at hand."""

    def drops_zeros(features, k):
        distances = EXERCISES["squared_distances"].solution(features, features)
        distances[distances == 0] = np.inf
        return np.sort(distances, axis=1)[:, :k].sum(axis=1)

    with pytest.raises(CheckFailed, match="all zeros are gone, also that of a twin"):
        check("leave_one_out", drops_zeros)


# ------------------------------------------------------------- anything else, in one line


@each_exercise
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *a, **named: None, "returned None. Is the `return` missing"),
        (lambda *a, **named: int("two\nlines"), "raised ValueError: invalid literal"),
        (lambda *a, **named: sys.exit("enough"), "raised SystemExit: enough"),
        (lambda *a, **named: {}["no such key" * 99], r"raised KeyError: .* \.\.\. "),
        (lambda: 0.5, "raised TypeError"),
        (7, "hand over the function itself"),
    ],
)
def test_anything_else_is_answered_in_one_line(key, function, message):
    with pytest.raises(CheckFailed, match=message) as failure:
        check(key, function)
    line = str(failure.value)
    assert line.startswith(f"Not yet, {key}: ") and "\n" not in line


@pytest.mark.parametrize("key", [key for key in EXERCISES if EXERCISES[key].returns != "page"])
@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("0.5", "returned str: expected numbers"),
        ([[1.0], [1.0, 2.0]], "returned list: expected numbers"),
        (0.5 + 0.1j, "returned complex: expected numbers"),
        (np.zeros((2, 3, 4, 5)), r"of shape \(2, 3, 4, 5\): expected"),
    ],
)
def test_what_is_no_number_is_answered_in_one_line(key, result, message):
    with pytest.raises(CheckFailed, match=message) as failure:
        check(key, lambda *case, **named: result)
    assert "\n" not in str(failure.value)


FACTS = "Normal photographs: 24. False alarms promised: 0.05.\n"


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (np.zeros(3), "returned ndarray: expected a text"),
        ("", "lacks one of its two facts"),
        (FACTS, "no row of a table was found"),
        (FACTS + "| x.png | 1.00 | no |", "a file that is in neither"),
        (FACTS + "| new_01.png | 1.00 | no |", "rung 1 of 5"),
    ],
)
def test_a_page_that_cannot_be_read_is_answered_in_one_line(page, message):
    with pytest.raises(CheckFailed, match=message):
        check("inspect_folder", lambda *case: page)


ROW = r"(\| new_\d+\.png [^\n]*\n)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (ROW + ROW, r"\2\1", "rung 2 of 5"),  # each pair of neighbours has changed places
        (r"\| (\d+)\.(\d)", r"| 1\1.\2", "rung 3 of 5"),
        ("yes", "no", "rung 4 of 5"),
        (r"photographs: \d+", "photographs: 99", "rung 5 of 5"),
    ],
)
def test_a_page_is_told_how_far_up_the_ladder_it_is(old, new, message):
    with pytest.raises(CheckFailed, match=message):
        check("inspect_folder", like("inspect_folder", lambda page: re.sub(old, new, page)))


def test_a_result_of_another_form_is_named():
    for result, message in (
        (np.nan, "contains NaN"),
        (np.inf, "contains infinite numbers"),
        ([0.5, 0.5], r"array of shape \(2,\): expected one number"),
    ):
        with pytest.raises(CheckFailed, match=message):
            check("roc_auc_by_pairs", lambda labels, scores: result)
    with pytest.raises(CheckFailed, match=r"one number: expected an array of shape \(3, 5\)"):
        check("squared_distances", lambda gallery, queries: 1.0)


def test_a_wrong_result_is_told_with_what_it_was_called():
    def right_in_the_first_case_only(labels, scores):
        return 0.75 if len(scores) == 4 else 0.123

    with pytest.raises(CheckFailed, match=r"\(called with array \(30,\), array \(30,\)\)$"):
        check("roc_auc_by_pairs", right_in_the_first_case_only)


def test_the_readers_own_line_is_quoted():
    def divides(labels, scores):
        return helper(scores) / 0

    def helper(scores):
        return scores.sum().item()

    expected = r"raised ZeroDivisionError: .* in the line `return helper\(scores\) / 0` \(called"
    with pytest.raises(CheckFailed, match=expected):
        check("roc_auc_by_pairs", divides)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: check("leave_two_out", len), "no exercise .*: did you mean 'leave_one_out'"),
        (lambda: hint("xyz"), "no exercise 'xyz': choose one of .*clip_gradient, "),
        (lambda: predict("00-pixel", "a"), "no prediction .*: did you mean '00-pixels'"),
        (lambda: predict("00-pixels", "yes"), "'yes' is none of the options: choose a, b, c"),
        (lambda: predict("00-pixels", 2), "2 is none of the options: choose a, b, c"),
    ],
)
def test_a_slip_of_the_keyboard_is_answered_in_one_line(ask, message):
    with pytest.raises(ValueError, match=message) as failure:
        ask()
    (line,) = failure.value._render_traceback_()
    assert "\n" not in line


# ------------------------------------------------------------- the stub, and what stands in for it

STUB = """
def epochs_for_work(minibatches, n_images, batch_size=32):
    raise NotImplementedError("your turn")
"""


def test_the_library_stands_in_for_a_stub_until_it_is_written():
    space = notebook(STUB)
    for _ in range(2):  # the second time the name holds the library's version: still a stub
        with pytest.raises(NotSolved, match="still the stub.* the library's version"):
            check("epochs_for_work", space["epochs_for_work"])
        assert space["epochs_for_work"](2300, 5000) == 15
        assert space["epochs_for_work"](minibatches=2300, n_images=5000, batch_size=32) == 15
    exec("def epochs_for_work(minibatches, n_images): return minibatches / n_images", space)
    with pytest.raises(CheckFailed):
        check("epochs_for_work", space["epochs_for_work"])
    assert space["epochs_for_work"](4, 2) == 2  # a wrong answer stays the reader's


def test_the_library_stands_in_for_nothing_else():
    space = notebook(STUB + "also = epochs_for_work\n\ndef epochs_for_work(*case):\n    return 1\n")
    with pytest.raises(NotSolved) as failure:
        check("epochs_for_work", space["also"])
    assert "library" not in str(failure.value) and space["epochs_for_work"]() == 1


# ------------------------------------------------------------- what a later cell relies on


# Lesson 09's solutions call torch's functions, which refuse arrays by themselves.
@pytest.mark.parametrize("key", [key for key in TENSORS if text("exercise", key)["lesson"] != "09"])
def test_a_solution_that_reads_its_inputs_as_arrays_fails(key):
    def by_numpy(*case):
        case = [np.asarray(part) if hasattr(part, "shape") else part for part in case]
        return SOLUTIONS[key](*case)

    words = r"lesson will hand it tensors.*: use torch's own operations in the line `case = \["
    with pytest.raises(CheckFailed, match=words):
        check(key, by_numpy)


@pytest.mark.parametrize("key", TENSORS)
def test_what_stands_in_takes_tensors_where_the_lesson_hands_them_over(key):
    for case in EXERCISES[key].cases():
        is_array = [isinstance(part, np.ndarray) for part in case]
        tensors = [
            torch.tensor(part, requires_grad=True) if array else part
            for part, array in zip(case, is_array)
        ]
        found = EXERCISES[key].solution(*tensors)
        assert np.allclose(found.detach().numpy(), EXERCISES[key].solution(*case))
        found.sum().backward()


def test_a_long_argument_is_named_and_not_written_out():
    def fails(results, method, other, draws):
        raise KeyError("roc_auc")

    words = "called with list of 45, 'early', 'dn2', array"
    with pytest.raises(CheckFailed, match=words) as error:
        check("paired_gain", fails)
    assert len(str(error.value)) < 300


@each_exercise
def test_inputs_stay_as_they_are(key):
    case = list(EXERCISES[key].cases())[-1]
    changeable = [i for i, part in enumerate(case) if isinstance(part, (np.ndarray, list, dict))]

    def spoils(*arguments, **named):
        result = SOLUTIONS[key](*arguments, **named)
        part = [*arguments, *named.values()][changeable[0]]
        if isinstance(part, dict):
            part.clear()
        elif hasattr(part, "detach"):
            part.data.mul_(2)
        elif not isinstance(part, float):  # a number in some cases, an array in others
            part[:] = part[::-1].copy()
        return result

    if changeable:
        with pytest.raises(CheckFailed, match=rf"argument {changeable[0] + 1} in place\. Leave"):
            check(key, spoils)


def like(key, change):
    """The teacher's solution with its result changed in kind."""
    return lambda *case, **named: change(SOLUTIONS[key](*case, **named))


def leaves_its_hook(network, layer, images):
    network.get_submodule(layer).register_forward_hook(lambda *seen: None)
    return SOLUTIONS["extract_features"](network, layer, images)


def without_shrinkage(features, shrinkage):
    with np.errstate(all="ignore"):
        return SOLUTIONS["whitening_matrix"](features, 0.0) / np.zeros(1)


def trains_what_it_is_given(trainable, *settings):
    weights = SOLUTIONS["training_loop"](trainable, *settings)
    torch.nn.utils.vector_to_parameters(weights[-1], trainable.parameters())
    return weights


def trains_both_that_it_is_given(trainable, layer, *rest):
    logits = SOLUTIONS["exposure_loop"](trainable, layer, *rest)
    trainable.load_state_dict({k: v + 1 for k, v in trainable.state_dict().items()})
    return logits


def directions_by_norms(features, centre):
    phi = features / np.linalg.norm(features, axis=1, keepdims=True)
    return (phi - centre) / np.linalg.norm(phi - centre, axis=1, keepdims=True)


def overlap_of_one_image(regions, alarm):
    height, width = regions.shape
    return SOLUTIONS["region_overlap"](regions, alarm)


def area_by_unique_corners(false_alarms, overlap, limit):
    x, first = np.unique(false_alarms, return_index=True)
    return EXERCISES["area_up_to"].solution(x, overlap[first], limit)


def alike_in_order(ours, theirs):
    result = ("method", "ROC-AUC")
    ours, theirs = ([v for k, v in row.items() if k not in result] for row in (ours, theirs))
    return ours == theirs


def true_alarms_with_a_guard(caught, false_alarms, share):
    return 0.0 if share == 0 else SOLUTIONS["true_alarms"](caught, false_alarms, share)


def as_parameter(features, centre):
    return torch.tensor(float(((features - centre) ** 2).mean()), requires_grad=True)


BY_NUMPY = "works on numpy arrays, but the lesson will hand it tensors"
FEW_DIGITS = "right to a few digits only"
CRASHES_LATER = [
    ("compactness_loss", lambda f, c: np.linalg.norm(f - c) ** 2 / f.size, BY_NUMPY),
    ("compactness_loss", like("compactness_loss", float), "float: a later cell needs a tensor"),
    ("compactness_loss", lambda f, c: ((f - c) ** 2).mean().detach(), "no gradient leads back"),
    ("compactness_loss", as_parameter, "no gradient leads back"),
    ("clip_gradient", lambda g, limit: g * min(1, limit / np.linalg.norm(g)), BY_NUMPY),
    ("clip_gradient", like("clip_gradient", lambda g: g.tolist()), "cell needs a tensor"),
    ("penalty_gradient", lambda t, s, f, x: x * np.multiply(f, t - s), BY_NUMPY),
    ("penalty_gradient", lambda t, s, f, x: (x * f).diag() @ (t - s), r"tensor \(3, 2, 2, 2\)"),
    ("roc_auc_by_pairs", like("roc_auc_by_pairs", np.float32), FEW_DIGITS),
    ("threshold_from_normals", lambda s, share: np.quantile(s, share), "argument 'rate'"),
    ("squared_distances", like("squared_distances", list), "a numpy array, .* returned list"),
    ("leave_one_out", lambda f, count: np.sort(f)[:, 0], "argument 'k'"),
    ("extract_features", leaves_its_hook, "changes argument 1 in place"),
    ("extract_features", like("extract_features", torch.from_numpy), "a numpy array, .* Tensor"),
    ("whitening_matrix", without_shrinkage, "contains (NaN|infinite)"),
    ("whitening_matrix", like("whitening_matrix", list), "a numpy array, .* returned list"),
    ("sgd_step", like("sgd_step", lambda pair: pair[0]), r"expected an array of shape \(2, 6\)"),
    ("training_loop", trains_what_it_is_given, "changes argument 1 in place"),
    ("fisher_diagonal", like("fisher_diagonal", list), "needs a numpy array, .* returned list"),
    ("epochs_for_work", like("epochs_for_work", float), "an integer type, got float64"),
    ("epochs_for_work", lambda m, n, b: round(m / np.ceil(n / b)), "missing 1 required"),
    ("sample_wise_scores", like("sample_wise_scores", list), "a numpy array, .* returned list"),
    ("exposure_loop", trains_both_that_it_is_given, "changes argument 1 in place"),
    ("auc_on_unseen", lambda s, k, seen: (k != seen[:, None]).all(axis=0), "list indices"),
    ("region_overlap", overlap_of_one_image, r"array \(3, 6, 6\)"),
    ("area_up_to", area_by_unique_corners, "not the area up to the limit"),
    ("fair", lambda ours, theirs: ours["method"] != theirs["method"], "raised KeyError: 'method'"),
    ("fair", alike_in_order, "not the right answer for every pair of rows"),
    ("folder_report", like("folder_report", list), "a numpy array, .* returned list"),
    ("shifted_directions", directions_by_norms, BY_NUMPY),
    ("mean_shifted_loss", like("mean_shifted_loss", float), "float: a later cell needs a tensor"),
    ("pca_residual", like("pca_residual", list), "a numpy array, .* returned list"),
    ("trim", like("trim", list), "a numpy array, .* returned list"),
    ("larger_part", like("larger_part", np.float32), FEW_DIGITS),
    ("true_alarms", true_alarms_with_a_guard, "raised ValueError: .*ambiguous"),
    ("true_alarms", like("true_alarms", float), "raised TypeError"),
]


@pytest.mark.parametrize(("key", "function", "words"), CRASHES_LATER)
@pytest.mark.filterwarnings("ignore")
def test_what_would_crash_in_a_later_cell_is_not_right(key, function, words):
    with pytest.raises(CheckFailed, match=words):
        check(key, function)
    assert not session.solved[key]


# ------------------------------------------------------------- predictions, hints, bands


@pytest.fixture
def said(monkeypatch):
    spoken = []
    monkeypatch.setattr("IPython.display.display", lambda what: spoken.append(what.data))
    return spoken


@pytest.mark.parametrize("key", table()["predict"])
def test_the_reveal_speaks_to_the_answer(key, said):
    entry = text("predict", key)
    right = entry["right"]
    assert {*entry["replies"], right} == set(entry["options"]) and right not in entry["replies"]
    predict(key)
    reveal(key)
    assert entry["question"] in said[0]
    summary, answer = said[1].split("</summary>")  # folded
    assert summary.startswith("<details><summary>The answer: open this")
    assert answer.startswith(f"\n\nThe answer is **{right}**: ") and entry["why"] in answer
    assert answer.endswith("\n\n</details>")
    for choice in entry["options"]:
        predict(key, choice.upper())
        assert entry["question"] in said[-1]
        reveal(key)
        assert f"You predicted **{choice}**" in said[-1] and entry["why"] in said[-1]
        assert (entry["options"][right] in said[-1]) == (choice != right)
        assert entry["replies"].get(choice, "") in said[-1]


def test_an_answer_may_be_clicked(said, monkeypatch):
    widgets = pytest.importorskip("ipywidgets", reason="buttons need ipywidgets")
    shown = []
    monkeypatch.delenv("PANDALIB_QUIET")
    monkeypatch.setattr("IPython.display.display", lambda what, **_: shown.append(what))
    predict("00-pixels")
    (buttons,) = (one for one in shown if isinstance(one, widgets.ToggleButtons))
    assert list(buttons.options) == list(text("predict", "00-pixels")["options"])
    buttons.value = "a"
    buttons.value = "c"  # changed
    reveal("00-pixels")
    assert "You predicted **c**" in shown[-1].data


def test_hints_come_one_by_one_and_stay(said):
    first, second, third = text("exercise", "leave_one_out")["hints"]
    for _ in range(4):
        hint("leave_one_out")
    lists = [shown.split("\n\n")[1].splitlines() for shown in said]
    assert lists[0] == [f"1. {first}"] and lists[1] == [f"1. {first}", f"2. {second}"]
    assert lists[2] == lists[3] == [f"1. {first}", f"2. {second}", f"3. {third}"]
    assert said[1].startswith("**2 of 3 hints for `leave_one_out`**")


def test_a_check_answers_in_a_box(monkeypatch):
    """Grey for a stub, amber for a wrong answer, green for a right one; the error says no more."""
    shown = []
    monkeypatch.setattr("IPython.get_ipython", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda what, raw: shown.append(what))
    key, space = "roc_auc_by_pairs", notebook(STUB.replace("epochs_for_work", "roc_auc_by_pairs"))
    for function in (space["roc_auc_by_pairs"], lambda labels, scores: None):
        with pytest.raises((NotSolved, CheckFailed)) as failure:
            check(key, function)
        assert failure.value._render_traceback_() == [" "]
        assert shown[-1]["text/plain"] == str(failure.value)
    check(key, SOLUTIONS[key])
    boxes = [one["text/html"] for one in shown]
    assert [re.search("solid (#\\w+)", box)[1] for box in boxes] == list(CALLOUTS.values())
    assert "<code>return</code>" in boxes[1] and "`" not in boxes[1]


def test_report_prints_a_plain_number_and_raises_outside_of_the_band(capsys):
    report("ROC-AUC", 0.52345, 0.45, 0.6)
    assert capsys.readouterr().out == "ROC-AUC: 0.523\n"
    for value in (0.61, 0.449, np.nan, np.inf):
        with pytest.raises(OutOfBand, match="ROC-AUC is .*, expected 0.45 to 0.6"):
            report("ROC-AUC", value, 0.45, 0.6)


def test_report_has_bands_in_the_embedded_tier_only(monkeypatch, capsys):
    monkeypatch.setattr(config, "_chosen", None)
    config.use("standard", task="folder:x")
    report("ROC-AUC", 0.99, 0.45, 0.6)
    assert capsys.readouterr().out == "ROC-AUC: 0.990\n"


# ------------------------------------------------------------- the card

IN_LESSON_02 = ("compactness_loss", "clip_gradient", "sgd_step", "training_loop")
ASKED_IN_LESSON_02 = ("02-course", "02-moving", "02-biases", "02-constant")


def test_the_card_of_a_lesson_that_was_run_without_answers(said):
    for key in IN_LESSON_02:
        solve(key)
    for key in ASKED_IN_LESSON_02:
        predict(key)
        reveal(key)
    card("02")
    title, predictions, exercises, reread = said[-1].replace("\n\n", "\n").split("\n")
    assert title == "**Your card for lesson 02**"
    assert predictions.startswith("- Predictions: 4 to make.")
    assert exercises == "- Exercises: 4 of 4 solved. No hint was read."
    assert reread == "- To reread: the questions, with an answer before you look."


def test_the_card_counts_what_was_predicted_solved_and_hinted(said):
    predict("02-course", "b")
    reveal("02-course")
    predict("02-biases", "a")
    reveal("02-biases")
    predict("02-constant", "c")
    solve("clip_gradient")
    for _ in range(5):
        hint("clip_gradient")
    hint("leave_one_out")  # of another lesson
    card("02")
    assert "Predictions: 3 of 4 made, 1 came true. The answers to 1 have not" in said[-1]
    left = "`compactness_loss`, `sgd_step`, `training_loop`"
    assert f"1 of 4 solved. Open: {left}. Hints read: 3." in said[-1]
    assert (
        "To reread: *Appendix: a network that cannot collapse*, "
        "*Pull the normal images together*, *The training loop*." in said[-1]
    )


def test_the_card_holds_whatever_the_order_of_the_cells(said):
    reveal("02-course")  # before any answer
    predict("02-course", "a")
    reveal("02-course")
    predict("02-course", "b")  # corrected afterwards: hindsight
    reveal("02-course")
    predict("02-course")  # the cell run again as it came
    card("02")
    assert "Predictions: 1 of 4 made, 0 came true." in said[-1]
    assert "have not been shown" not in said[-1]


def test_an_exercise_that_fails_again_is_open_again(said):
    for key in IN_LESSON_02:
        solve(key)
    predict("02-course", "b")
    reveal("02-course")
    card("02")
    assert "4 of 4 solved" in said[-1] and "To reread: nothing has to be." in said[-1]
    for broken in (lambda *case: 1 / 0, 7, mistaken("clip_gradient", "unit")):
        solve("clip_gradient")
        with pytest.raises(CheckFailed):
            check("clip_gradient", broken)
        card("02")
        assert "3 of 4 solved. Open: `clip_gradient`." in said[-1]
        assert "To reread: *The training loop*." in said[-1]


def test_a_lesson_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no lesson '2': choose one of 00, 01, 02"):
        card("2")


# ------------------------------------------------------------- languages


def test_a_language_with_missing_sentences_falls_back(tmp_path, monkeypatch, capsys):
    english = table()
    (tmp_path / "en.toml").write_bytes((strings.FOLDER / "en.toml").read_bytes())
    (tmp_path / "de.toml").write_text(
        '[say]\nright = "Richtig: {praise}"\n[exercise.leave_one_out.wrong]\nsign = "Vorzeichen."',
        encoding="utf-8",
    )
    monkeypatch.setattr(strings, "FOLDER", tmp_path)
    monkeypatch.setenv("PANDALIB_LANGUAGE", "de")
    solve("leave_one_out")
    entry = english["exercise"]["leave_one_out"]
    assert capsys.readouterr().out == f"Richtig: {entry['praise']}\n"
    for name, message in (("sign", "Vorzeichen."), ("mean", entry["wrong"]["mean"])):
        with pytest.raises(CheckFailed, match=re.escape(message)):
            check("leave_one_out", mistaken("leave_one_out", name))
    monkeypatch.setenv("PANDALIB_LANGUAGE", "xx")
    with pytest.raises(ValueError, match="PANDALIB_LANGUAGE=xx: there is no file xx.toml"):
        hint("leave_one_out")


def test_every_sentence_has_its_place():
    sources = [path.read_text() for path in (ROOT / "pandalib" / "teach").glob("*.py")]
    used = {name for source in sources for name in re.findall(r'"([a-z_]+)"', source)}
    used |= {exercise.given for exercise in EXERCISES.values()}
    assert set(table()["say"]) <= used
