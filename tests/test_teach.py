"""Exercises answer back: right in two spellings, each known mistake by name, anything else in one line."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from pandalib.experiments.sweep import config as tiers
from pandalib.teach import (
    CheckFailed,
    OutOfBand,
    card,
    check,
    hint,
    predict,
    report,
    reveal,
    session,
    strings,
)
from pandalib.teach.checks import EXERCISES, NotSolved
from pandalib.teach.strings import table, text


def auc_by_ranks(labels, scores):
    from scipy.stats import mannwhitneyu

    return (
        mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
        / (labels == 1).sum()
        / (labels == 0).sum()
    )


def threshold_by_partition(scores, rate):
    return [*sorted(scores)][-int((len(scores) + 1) - np.ceil((1 - rate) * (len(scores) + 1)))]


def distances_by_scipy(gallery, queries):
    from scipy.spatial.distance import cdist

    return cdist(queries, gallery, "sqeuclidean")


def leave_one_out_by_loop(features, k):
    result = []
    for number in range(len(features)):
        others = np.delete(features, number, axis=0)
        result.append(np.sort(((others - features[number]) ** 2).sum(1))[:k].sum())
    return result  # a list is as good as an array


def compactness_by_rows(features, centre):
    return sum((row - centre) @ (row - centre) for row in features) / features.numel()


def effective_rank_by_covariance(features):
    from scipy.stats import entropy

    eigenvalues = np.linalg.eigvals(np.cov(features.T)).real
    return np.exp(entropy(eigenvalues[eigenvalues > 0]))


def sample_wise_by_loop(test_scores, held_out_scores):
    best = np.zeros(test_scores.shape[1])
    for test, held_out in zip(test_scores, held_out_scores):
        best = np.maximum(best, test / np.mean(held_out))
    return best


def pick_by_ranks(scores, labels, chooser):
    best = max(scores, key=lambda row: auc_by_ranks(labels[chooser], row[chooser]))
    return auc_by_ranks(labels[~chooser], best[~chooser])


def auc_on_unseen_by_ranks(scores, kinds, seen):
    kept = [number for number, kind in enumerate(kinds) if kind not in list(seen)]
    return auc_by_ranks((kinds[kept] != 0).astype(int), scores[kept])


def overlap_by_counting(regions, alarm):
    sizes = np.bincount(regions.ravel())
    return (np.bincount(regions[alarm], minlength=len(sizes)) / sizes)[1:].mean()


def area_by_segments(false_alarms, overlap, limit):
    area = 0.0
    for x0, x1, y0, y1 in zip(false_alarms, false_alarms[1:], overlap, overlap[1:]):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            area += (end - x0) * (y0 + (y1 - y0) * (end - x0) / (x1 - x0) / 2)
    return area / limit


def mean_by_dictionary(classes, values):
    runs = {}
    for one, value in zip(classes.tolist(), values):
        if value == value:  # not NaN
            runs.setdefault(one, []).append(value)
    return sum(sum(of) / len(of) for of in runs.values()) / len(runs)


def interval_by_sorting(means, draws):
    resampled = np.array([np.mean([means[number] for number in row]) for row in draws])
    return np.quantile(resampled, 0.025), np.quantile(resampled, 0.975)


OTHER_SOLUTIONS = {
    "roc_auc_by_pairs": auc_by_ranks,
    "threshold_from_normals": threshold_by_partition,
    "squared_distances": distances_by_scipy,
    "leave_one_out": leave_one_out_by_loop,
    "compactness_loss": compactness_by_rows,
    "clip_gradient": lambda gradient, limit: gradient / max(1.0, gradient.norm().item() / limit),
    "effective_rank": effective_rank_by_covariance,
    "fisher_diagonal": lambda gradients: (
        np.einsum("ij,ij->j", gradients, gradients) / len(gradients)
    ),
    "penalty_gradient": lambda theta, start, fisher, x: (theta.sub(start) * fisher).mul(x),
    "translate_strength": lambda ewc_lambda, theirs, ours: ewc_lambda / (ours.sum() / theirs.sum()),
    "epochs_for_work": lambda work, n, batch=32: max(1, int(work / -(-n // batch) + 0.5)),
    "sample_wise_scores": sample_wise_by_loop,
    "pick_then_judge": pick_by_ranks,
    "binary_cross_entropy": lambda logits, targets: np.mean(
        [np.logaddexp(0, (1 - 2 * t) * z) for z, t in zip(logits, targets)]
    ),
    "outlier_rows": lambda start, n, count: [row % n for row in range(start, start + count)],
    "auc_on_unseen": auc_on_unseen_by_ranks,
    "nearest_distance": lambda positions, gallery: distances_by_scipy(gallery, positions).min(
        axis=1
    ),
    "region_overlap": overlap_by_counting,
    "area_up_to": area_by_segments,
    "mean_over_classes": mean_by_dictionary,
    "class_interval": interval_by_sorting,
    "fair": lambda ours, theirs: (
        {k: v for k, v in ours.items() if k not in ("method", "ROC-AUC")}.items() <= theirs.items()
    ),
    "most_anomalous": lambda scores, n: sorted(
        range(len(scores)), key=lambda number: scores[number], reverse=True
    )[:n],
    "larger_part": lambda parts, normal: np.maximum(
        *(row / np.percentile(usual, 90) for row, usual in zip(parts, normal))
    ),
    "true_alarms": lambda caught, false, share: 1 / (1 + false / caught * (1 - share) / share),
}
checkpoint_every = pytest.mark.parametrize("key", EXERCISES)


@checkpoint_every
def test_the_solution_and_another_one_pass(key, capsys):
    check(key, EXERCISES[key].solution)
    check(key, OTHER_SOLUTIONS[key])
    assert capsys.readouterr().out.count(f"Right: {text('exercise', key)['praise']}") == 2


@pytest.mark.parametrize(
    ("key", "name"), [(key, name) for key, exercise in EXERCISES.items() for name in exercise.wrong]
)
def test_each_known_mistake_gets_its_message(key, name):
    with pytest.raises(CheckFailed) as failure:
        check(key, EXERCISES[key].wrong[name])
    assert str(failure.value) == f"Not yet, {key}: {text('exercise', key)['wrong'][name]}"


@checkpoint_every
def test_tables_and_checks_name_the_same_mistakes(key):
    entry = text("exercise", key)
    assert set(entry["wrong"]) == set(EXERCISES[key].wrong) and len(entry["wrong"]) >= 3
    assert len(entry["hints"]) == 3 and entry["praise"] and entry["otherwise"]


@checkpoint_every
def test_a_stub_never_passes(key):
    def stub(*arguments, **named):
        raise NotImplementedError("your turn")

    with pytest.raises(NotSolved, match=f"Not yet, {key} is still the stub"):
        check(key, stub)


@checkpoint_every
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *a, **named: None, "returned None. Is the `return` missing"),
        (lambda *a, **named: "0.5", "returned str: expected numbers"),
        (lambda *a, **named: {"auc": 1}, "returned dict: expected numbers"),
        (lambda *a, **named: [[1.0], [1.0, 2.0]], "returned list: expected numbers"),
        (lambda *a, **named: 0.5 + 0.1j, "returned complex: expected numbers"),
        (lambda *a, **named: (number for number in a), "returned generator: expected numbers"),
        (
            lambda *a, **named: np.zeros((2, 3, 4, 5)),
            r"returned an array of shape \(2, 3, 4, 5\): expected",
        ),
        (
            lambda *a, **named: np.full(np.shape(EXERCISES["leave_one_out"].solution) or 3, np.nan),
            "array of shape|NaN",
        ),
        (lambda *a, **named: 1 / 0, "raised ZeroDivisionError: division by zero"),
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
    (line,) = failure.value._render_traceback_()
    assert line.startswith(f"Not yet, {key}: ") and "\n" not in line
    assert failure.value.__cause__ is None


def test_a_result_of_the_right_form_is_told_with_what_it_was_called():
    with pytest.raises(CheckFailed) as failure:
        check(
            "roc_auc_by_pairs", lambda labels, scores: 0.75 if len(scores) == 4 else 0.123
        )  # right in the first case only
    otherwise = text("exercise", "roc_auc_by_pairs")["otherwise"]
    assert (
        str(failure.value)
        == f"Not yet, roc_auc_by_pairs: {otherwise} (called with array (30,), array (30,))"
    )


def test_the_readers_own_line_is_quoted():
    def divides(labels, scores):
        return helper(scores) / 0

    def helper(scores):
        return scores.sum().item()

    with pytest.raises(
        CheckFailed,
        match="raised ZeroDivisionError: .* in the line `return helper\\(scores\\) / 0` \\(called with",
    ):
        check("roc_auc_by_pairs", divides)


def test_nan_is_named():
    with pytest.raises(CheckFailed, match="contains NaN"):
        check("roc_auc_by_pairs", lambda labels, scores: np.nan)
    with pytest.raises(CheckFailed, match="contains infinite numbers"):
        check("roc_auc_by_pairs", lambda labels, scores: np.inf)
    with pytest.raises(CheckFailed, match=r"array of shape \(2,\): expected one number"):
        check("roc_auc_by_pairs", lambda labels, scores: [0.5, 0.5])
    with pytest.raises(
        CheckFailed, match=r"returned one number: expected an array of shape \(3, 5\)"
    ):
        check("squared_distances", lambda gallery, queries: np.nan)


@pytest.mark.parametrize("key", EXERCISES)
@pytest.mark.filterwarnings("error")
def test_recognising_a_mistake_warns_of_nothing(key):
    with pytest.raises(CheckFailed):
        check(key, like(key, lambda right: np.full(np.shape(right), 0.123456789)))


def sentences(entry):
    for value in entry.values():
        if isinstance(value, dict):
            yield from sentences(value)
        elif isinstance(value, list):
            yield from value
        else:
            yield value


@pytest.mark.parametrize(
    ("key", "name"), [(key, name) for key, exercise in EXERCISES.items() for name in exercise.wrong]
)
def test_messages_point_and_do_not_tell(key, name):
    message = text("exercise", key)["wrong"][name]
    assert (
        message.endswith((".", "?"))
        and len(re.findall(r"[.?!:](?= |$)", message)) <= 4
        and 5 <= len(message.split()) <= 45
    )
    assert not re.search(r"`[^`]*[(\[@=]", message), "code in a message is a piece of the solution"
    others = [other for wrong, other in text("exercise", key)["wrong"].items() if wrong != name]
    assert message not in others


def notebook(source):
    """The names that a notebook would hold after running the source in a cell."""
    space = {"check": check}
    exec(source, space)
    return space


STUB = """
def epochs_for_work(minibatches, n_images, batch_size=32):
    raise NotImplementedError("your turn")
"""


def test_the_library_stands_in_for_a_stub_until_it_is_written():
    space = notebook(STUB)
    for _ in range(
        2
    ):  # the second time the name holds the library's version: still a stub to the check
        with pytest.raises(
            NotSolved,
            match="is still the stub.* Until then the lesson goes on with the library's version",
        ):
            check("epochs_for_work", space["epochs_for_work"])
        assert (
            space["epochs_for_work"](2300, 5000)
            == space["epochs_for_work"](minibatches=2300, n_images=5000, batch_size=32)
            == 15
        )
    exec(
        STUB.replace('raise NotImplementedError("your turn")', "return minibatches / n_images"),
        space,
    )
    with pytest.raises(CheckFailed):
        check("epochs_for_work", space["epochs_for_work"])
    assert space["epochs_for_work"](4, 2) == 2  # a wrong answer stays the reader's


def test_the_library_stands_in_for_nothing_else():
    space = notebook(STUB + "also = epochs_for_work\n\ndef epochs_for_work(*case):\n    return 1\n")
    with pytest.raises(NotSolved) as failure:
        check("epochs_for_work", space["also"])
    assert "library" not in str(failure.value) and space["epochs_for_work"]() == 1


# --- what a later cell relies on: right values alone do not pass -------------------------------------------------


def solutions():
    """Exercise -> the teacher's function, out of the lessons."""
    found = {}
    for path in sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb")):
        space = {}
        exec("import math, numpy as np, torch, torch.nn.functional as F, pandalib", space)
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if "### BEGIN SOLUTION" in source:
                exec(source, space)
            if match := re.match(r'check\("(\w+)", (\w+)\)', source):
                found[match[1]] = space[match[2]]
    return found


SOLUTIONS = solutions()
TENSORS = [key for key, exercise in EXERCISES.items() if exercise.given]


@checkpoint_every
def test_the_teachers_solution_passes(key, capsys):
    check(key, SOLUTIONS[key])
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize("key", TENSORS)
def test_a_solution_that_reads_its_inputs_as_arrays_fails(key):
    def by_numpy(*case):
        case = [np.asarray(part) if hasattr(part, "shape") else part for part in case]
        return SOLUTIONS[key](*case)

    with pytest.raises(CheckFailed) as failure:
        check(key, by_numpy)
    given = "tensors with gradients" if key == "compactness_loss" else "tensors, perhaps on a GPU"
    assert str(failure.value) == (
        f"Not yet, {key}: your function works on numpy arrays, but the lesson will hand it "
        f"{given}: use torch's own operations in the line "
        '`case = [np.asarray(part) if hasattr(part, "shape") else part for part in case]`.'
    )


@checkpoint_every
def test_inputs_stay_as_they_are(key):
    case = EXERCISES[key].cases()[-1]
    numbers = [i for i, part in enumerate(case) if isinstance(part, (np.ndarray, list, dict))]

    def spoils(*arguments, **named):
        result = SOLUTIONS[key](*arguments, **named)
        if numbers:
            part = [*arguments, *named.values()][numbers[0]]
            if isinstance(part, dict):
                part.clear()
            elif hasattr(part, "detach"):
                part.data.mul_(2)
            elif not isinstance(part, float):  # a number in some cases, an array in others
                part[:] = part[::-1].copy()
        return result

    if not numbers:  # nothing but numbers goes in
        return check(key, spoils)
    with pytest.raises(CheckFailed) as failure:
        check(key, spoils)
    assert str(failure.value) == (
        f"Not yet, {key}: your function changes argument {numbers[0] + 1} in place. "
        "Leave the inputs as they are: later cells may use them again."
    )


def as_parameter(features, centre):
    import torch

    return torch.tensor(float(((features - centre) ** 2).mean()), requires_grad=True)


def rank_with_zeros(features):
    centred = np.float64(features) - np.float64(features).mean(axis=0)
    share = np.abs(np.linalg.eigvalsh(centred.T @ centred))
    share = np.where(share < 1e-12 * share.max(), 0, share) / share.sum()
    return np.exp(-(share * np.log(share)).sum())


def overlap_by_pixels(regions, alarm):
    covered, size = np.zeros(regions.max() + 1), np.bincount(regions.ravel())
    for row in range(regions.shape[0]):
        for column in range(regions.shape[1]):
            covered[regions[row, column]] += alarm[row, column]
    return (covered / size)[1:].mean()


def area_by_unique_corners(false_alarms, overlap, limit):
    x, first = np.unique(false_alarms, return_index=True)
    return EXERCISES["area_up_to"].solution(x, overlap[first], limit)


def alike_without_method(ours, theirs):
    ours, theirs = dict(ours), dict(theirs)
    for row in (ours, theirs):
        del row["method"], row["ROC-AUC"]
    return ours == theirs


def alike_in_order(ours, theirs):
    result = ("method", "ROC-AUC")
    return [ours[k] for k in ours if k not in result] == [
        theirs[k] for k in theirs if k not in result
    ]


def true_alarms_with_a_guard(caught, false_alarms, anomalous):
    if anomalous == 0:
        return 0.0
    return EXERCISES["true_alarms"].solution(caught, false_alarms, anomalous)


def like(key, change):
    """The solution with its result changed in kind."""
    return lambda *case, **named: change(SOLUTIONS[key](*case, **named))


BY_NUMPY = "works on numpy arrays, but the lesson will hand it tensors"
CRASHES_LATER = [
    ("compactness_loss", lambda f, c: np.mean(np.sum((f - c) ** 2, axis=1)) / len(c), BY_NUMPY),
    ("compactness_loss", lambda f, c: np.linalg.norm(f - c) ** 2 / f.size, BY_NUMPY),
    (
        "compactness_loss",
        like("compactness_loss", float),
        "returned float: a later cell needs a tensor",
    ),
    ("compactness_loss", lambda f, c: ((f - c) ** 2).mean().detach(), "no gradient leads back"),
    ("compactness_loss", as_parameter, "no gradient leads back"),
    ("clip_gradient", lambda g, limit: g * min(1, limit / np.linalg.norm(g)), BY_NUMPY),
    ("clip_gradient", like("clip_gradient", lambda g: g.tolist()), "cell needs a tensor"),
    ("penalty_gradient", lambda t, s, f, ewc_lambda: ewc_lambda * np.multiply(f, t - s), BY_NUMPY),
    ("penalty_gradient", lambda t, s, f, x: (x * f).diag() @ (t - s), r"tensor \(3, 2, 2, 2\)"),
    ("roc_auc_by_pairs", like("roc_auc_by_pairs", np.float32), "right to a few digits only"),
    ("threshold_from_normals", lambda s, share: np.quantile(s, share), "keyword argument 'rate'"),
    ("squared_distances", like("squared_distances", np.float32), "right to a few digits only"),
    ("squared_distances", like("squared_distances", list), "a numpy array, .* returned list"),
    ("leave_one_out", lambda f, count: np.sort(f)[:, 0], "keyword argument 'k'"),
    ("effective_rank", rank_with_zeros, "contains NaN"),
    ("fisher_diagonal", like("fisher_diagonal", list), "needs a numpy array, .* returned list"),
    ("epochs_for_work", like("epochs_for_work", float), "expected an integer type, got float64"),
    ("epochs_for_work", lambda m, n, b: round(m / np.ceil(n / b)), "missing 1 required positional"),
    ("sample_wise_scores", like("sample_wise_scores", list), "a numpy array, .* returned list"),
    ("outlier_rows", like("outlier_rows", np.float64), "expected an integer type, got float64"),
    ("auc_on_unseen", lambda s, k, seen: (k != seen[:, None]).all(axis=0), "list indices"),
    ("region_overlap", overlap_by_pixels, r"array \(3, 6, 6\)"),
    ("area_up_to", area_by_unique_corners, "not the area up to the limit"),
    ("area_up_to", like("area_up_to", np.float32), "right to a few digits only"),
    ("fair", alike_without_method, "raised KeyError: 'method'"),
    ("fair", alike_in_order, "not for every pair of rows"),
    ("most_anomalous", like("most_anomalous", np.float64), "expected an integer type, got float64"),
    ("larger_part", like("larger_part", np.float32), "right to a few digits only"),
    ("true_alarms", true_alarms_with_a_guard, r"raised ValueError: .*array \(5,\)|ambiguous"),
    ("true_alarms", like("true_alarms", float), "raised TypeError"),
]


@pytest.mark.parametrize(("key", "function", "words"), CRASHES_LATER)
@pytest.mark.filterwarnings("ignore")
def test_what_would_crash_in_a_later_cell_is_not_right(key, function, words):
    with pytest.raises(CheckFailed, match=words) as failure:
        check(key, function)
    assert "\n" not in str(failure.value) and not session.solved[key]


def test_torch_functions_are_right_where_the_lesson_has_tensors(capsys):
    import torch

    check("compactness_loss", lambda f, c: torch.nn.functional.mse_loss(f, c.expand_as(f)))
    check("clip_gradient", lambda g, limit: g * torch.clamp(limit / g.norm(), max=1))
    check("penalty_gradient", lambda t, s, f, x: torch.mul(f.detach(), torch.sub(t, s)) * x)
    assert capsys.readouterr().out.count("Right: ") == 3


@pytest.mark.parametrize("key", TENSORS)
def test_what_stands_in_takes_tensors_where_the_lesson_hands_them_over(key):
    import torch

    for case in EXERCISES[key].cases():
        tensors = [
            torch.tensor(part, requires_grad=True) if isinstance(part, np.ndarray) else part
            for part in case
        ]
        found = EXERCISES[key].solution(*tensors)
        assert np.allclose(found.detach().numpy(), EXERCISES[key].solution(*case))
        found.sum().backward()


def test_a_function_that_changes_its_arguments_cannot_fool_the_check():
    def sorts_in_place(labels, scores):
        scores.sort()
        labels[:] = np.sort(labels)
        return EXERCISES["roc_auc_by_pairs"].solution(labels, scores)

    def makes_them_equal(ours, theirs):
        theirs |= {key: value for key, value in ours.items() if key not in ("method", "ROC-AUC")}
        return True

    for key, function in (("roc_auc_by_pairs", sorts_in_place), ("fair", makes_them_equal)):
        with pytest.raises(CheckFailed):
            check(key, function)


def test_a_tensor_is_as_good_as_an_array():
    import torch

    def nearest(*case):
        return (torch.cdist(*map(torch.from_numpy, case)) ** 2).amin(dim=1)

    check("nearest_distance", nearest)


def test_unknown_keys_are_answered():
    for ask, message in (
        (
            lambda: check("leave_two_out", len),
            "there is no exercise 'leave_two_out': did you mean 'leave_one_out'?",
        ),
        (
            lambda: hint("xyz"),
            "there is no exercise 'xyz': choose one of area_up_to, auc_on_unseen, ",
        ),
        (
            lambda: predict("00-pixel", "a"),
            "there is no prediction '00-pixel': did you mean '00-pixels'?",
        ),
        (
            lambda: reveal("~"),
            "there is no prediction '~': choose one of 00-accuracy, 00-pixels, 01-features, ",
        ),
        (
            lambda: predict("00-pixels", "yes"),
            "the answer 'yes' is none of the options: choose a, b, c.",
        ),
        (lambda: predict("00-pixels", 2), "the answer 2 is none of the options: choose a, b, c."),
    ):
        with pytest.raises(ValueError) as failure:
            ask()
        (line,) = (
            failure.value._render_traceback_()
        )  # a slip of the keyboard is no reason for a page of traceback
        assert line.startswith(message) and "\n" not in line


def test_zeros_by_the_readers_own_matrix_product_are_recognised():
    """The trap of lesson 01 as it is written there: with the function of the exercise before, whose zeros must be zero."""

    def drops_zeros(features, k):
        squares = (features**2).sum(axis=1)
        distances = squares[:, None] + squares - 2 * features @ features.T
        distances[distances == 0] = np.inf
        return np.sort(distances, axis=1)[:, :k].sum(axis=1)

    with pytest.raises(CheckFailed, match="all zeros are gone, also that of a twin"):
        check("leave_one_out", drops_zeros)


def test_hints_come_one_by_one(capsys):
    hints = text("exercise", "leave_one_out")["hints"]
    session.clear()
    for _ in range(4):
        hint("leave_one_out")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"Hint {n} of 3: {hints[n - 1]}" for n in (1, 2, 3, 3)]


@pytest.fixture
def said(monkeypatch):
    import IPython.display

    spoken = []
    monkeypatch.setattr(IPython.display, "display", lambda what: spoken.append(what.data))
    return spoken


@pytest.mark.parametrize("key", table()["predict"])
def test_the_reveal_speaks_to_the_answer(key, said, capsys):
    entry = text("predict", key)
    assert (
        set(entry["replies"]) | {entry["right"]} == set(entry["options"])
        and entry["right"] not in entry["replies"]
    )
    predict(key)
    reveal(key)
    assert (
        entry["question"] in said[0]
        and "No prediction was made" in said[1]
        and entry["why"] in said[1]
    )
    for choice in entry["options"]:
        predict(key, choice.upper())
        reveal(key)
        assert f"You predicted **{choice}**" in said[-1] and entry["why"] in said[-1]
        assert (entry["options"][entry["right"]] in said[-1]) == (choice != entry["right"])
        if choice != entry["right"]:
            assert entry["replies"][choice] in said[-1]
    with pytest.raises(ValueError, match="'z' is none of the options: choose a, b"):
        predict(key, "z")


def test_report_prints_the_band_and_raises_outside(capsys):
    report("ROC-AUC", 0.52345, 0.45, 0.6)
    assert capsys.readouterr().out == "ROC-AUC: 0.523   (band 0.45 to 0.6)\n"
    for value in (0.61, 0.449, np.nan, np.inf):
        with pytest.raises(OutOfBand, match="ROC-AUC is .*, expected 0.45 to 0.6"):
            report("ROC-AUC", value, 0.45, 0.6)


def test_report_has_bands_in_the_embedded_tier_only(monkeypatch, capsys):
    monkeypatch.setattr(tiers, "_chosen", tiers.TIERS["standard"]._replace(task="folder:x"))
    report("ROC-AUC", 0.99, 0.45, 0.6)
    assert capsys.readouterr().out == "ROC-AUC: 0.990\n"


# --- the card ----------------------------------------------------------------------------------------------------


@pytest.fixture
def session_of_its_own():
    session.clear()
    yield
    session.clear()


LESSONS = {"02": ["compactness_loss", "clip_gradient", "effective_rank"]}


def solve(key):
    check(key, EXERCISES[key].solution)


def test_the_card_of_a_lesson_that_was_run_without_answers(said, session_of_its_own, capsys):
    for key in LESSONS["02"]:
        solve(key)
    for key in ("02-course", "02-biases", "02-constant"):
        predict(key)
        reveal(key)
    card("02")
    title, predictions, exercises, reread = said[-1].replace("\n\n", "\n").split("\n")
    assert title == "**Your card for lesson 02**"
    assert predictions.startswith("- Predictions: none of 3 made. Nothing is lost")
    assert exercises == "- Exercises: 3 of 3 solved. No hint was read."
    assert reread == "- To reread: the questions, with an answer before you look."


def test_the_card_counts_what_was_predicted_solved_and_hinted(said, session_of_its_own, capsys):
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
    assert (
        "Predictions: 2 of 3" not in said[-1]
        and "Predictions: 3 of 3 made, 1 came true. The answers to 1 have not been shown yet."
        in said[-1]
    )
    assert (
        "Exercises: 1 of 3 solved. Open: `compactness_loss`, `effective_rank`. Hints read: 3."
        in said[-1]
    )
    assert (
        "To reread: *Another way out: a network that cannot collapse*, *Pull the normal images together*, *What collapse looks like*."
        in said[-1]
    )


def test_the_card_holds_whatever_the_order_of_the_cells(said, session_of_its_own, capsys):
    card("02")
    assert "0 of 3 solved. Open: `compactness_loss`, `clip_gradient`, `effective_rank`." in said[-1]
    reveal("02-course")  # before any answer
    predict("02-course", "a")
    reveal("02-course")
    predict("02-course", "b")  # corrected afterwards: hindsight
    reveal("02-course")
    predict("02-course")  # the cell run again as it came
    for _ in range(2):
        card("02")
        assert (
            "Predictions: 1 of 3 made, 0 came true." in said[-1]
            and "have not been shown" not in said[-1]
        )


def test_an_exercise_that_fails_again_is_open_again(said, session_of_its_own, capsys):
    for key in LESSONS["02"]:
        solve(key)
    predict("02-course", "b")
    reveal("02-course")
    card("02")
    assert "3 of 3 solved" in said[-1] and "To reread: nothing has to be." in said[-1]
    for broken in (
        lambda *case: 1 / 0,
        7,
        lambda *case: None,
        EXERCISES["clip_gradient"].wrong["unit"],
    ):
        solve("clip_gradient")
        with pytest.raises(CheckFailed):
            check("clip_gradient", broken)
        card("02")
        assert (
            "2 of 3 solved. Open: `clip_gradient`." in said[-1]
            and "To reread: *The training loop*." in said[-1]
        )
    solve("clip_gradient")
    card("02")
    assert "3 of 3 solved" in said[-1]


def test_a_lesson_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="there is no lesson '2': choose one of 00, 01, 02"):
        card("2")


# --- languages ---------------------------------------------------------------------------------------------------


@pytest.fixture
def languages(tmp_path, monkeypatch):
    """A folder of sentences: English, and whatever the test writes beside it."""
    (tmp_path / "en.toml").write_bytes((strings.FOLDER / "en.toml").read_bytes())
    monkeypatch.setattr(strings, "FOLDER", tmp_path)
    strings._table.cache_clear()
    yield tmp_path
    strings._table.cache_clear()


def test_a_language_with_missing_keys_falls_back(languages, monkeypatch, capsys, said):
    (languages / "de.toml").write_text(
        '[say]\nright = "Richtig: {praise}"\nnot_yet = "Noch nicht, {key}: {message}"\nhint = ""\n'
        '[predict.00-pixels.options]\nb = "Fast wie ein Münzwurf."\n'
        '[exercise.leave_one_out.wrong]\nsign = "Das Vorzeichen."\n[exercise.clip_gradient]\nhints = "kein Feld"\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("PANDALIB_LANGUAGE", "de")
    solve("leave_one_out")
    english = strings.table("en")
    assert capsys.readouterr().out == f"Richtig: {english['exercise']['leave_one_out']['praise']}\n"
    for name, message in (
        ("sign", "Das Vorzeichen."),
        ("mean", english["exercise"]["leave_one_out"]["wrong"]["mean"]),
    ):
        with pytest.raises(CheckFailed) as failure:
            check("leave_one_out", EXERCISES["leave_one_out"].wrong[name])
        assert str(failure.value) == f"Noch nicht, leave_one_out: {message}"
    predict("00-pixels")
    assert (
        english["predict"]["00-pixels"]["question"] in said[0]
        and "Fast wie ein Münzwurf." in said[0]
    )
    assert english["predict"]["00-pixels"]["options"]["a"] in said[0]
    assert (
        text("exercise", "clip_gradient")["hints"] == english["exercise"]["clip_gradient"]["hints"]
    )  # a string is no ladder
    assert (
        strings.table()["say"]["hint"] == english["say"]["hint"]
    )  # an empty sentence says nothing
    assert shape_of(strings.table()) == shape_of(english)


def shape_of(entry):
    return (
        {key: shape_of(value) for key, value in entry.items()}
        if isinstance(entry, dict)
        else type(entry)
    )


def test_an_unknown_or_broken_language_is_answered(languages, monkeypatch):
    monkeypatch.setenv("PANDALIB_LANGUAGE", "xx")
    with pytest.raises(
        ValueError, match="no sentences in the language 'xx': set PANDALIB_LANGUAGE to one of en"
    ):
        hint("leave_one_out")
    (languages / "xx.toml").write_text("right = ", encoding="utf-8")
    with pytest.raises(ValueError, match="xx.toml is no TOML file in UTF-8"):
        hint("leave_one_out")


def test_every_sentence_stands_in_the_table():
    sources = [
        path.read_text(encoding="utf-8")
        for path in Path(strings.__file__).parent.parent.glob("*.py")
    ]
    assert {name for source in sources for name in re.findall(r'say\("(\w+)"', source)} == set(
        table()["say"]
    )  # none missing, none left over
    assert all(sentence.strip() for sentence in sentences(table()))
