"""Exercises answer back: right in two spellings, each known mistake by name, anything else in one line."""

import numpy as np
import pytest

from pandalib import tiers
from pandalib.teach import CheckFailed, OutOfBand, check, hint, lesson, predict, report, reveal
from pandalib.teach.checks import EXERCISES, NotSolved
from pandalib.teach.strings import table, text


def auc_by_ranks(labels, scores):
    from scipy.stats import mannwhitneyu

    return mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic / (labels == 1).sum() / (labels == 0).sum()


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


def area_by_a_fine_grid(false_alarms, overlap, limit):
    at = np.union1d(false_alarms[false_alarms < limit], np.linspace(0, limit, 5))
    return np.trapezoid(np.interp(at, false_alarms, overlap), at) / limit


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
    "compactness_loss": lambda features, centre: np.mean([np.dot(row - centre, row - centre) / len(centre) for row in features]),
    "clip_gradient": lambda gradient, limit: gradient / max(1.0, np.sqrt(gradient @ gradient) / limit),
    "effective_rank": effective_rank_by_covariance,
    "fisher_diagonal": lambda gradients: np.einsum("ij,ij->j", gradients, gradients) / len(gradients),
    "penalty_gradient": lambda theta, start, fisher, strength: np.diag(strength * fisher) @ theta - strength * fisher * start,
    "translate_strength": lambda strength, theirs, ours: strength / (ours.sum() / theirs.sum()),
    "epochs_for_work": lambda minibatches, n, batch: max(1, int(minibatches / -(-n // batch) + 0.5)),
    "sample_wise_scores": sample_wise_by_loop,
    "pick_then_judge": pick_by_ranks,
    "binary_cross_entropy": lambda logits, targets: np.mean([np.logaddexp(0, (1 - 2 * t) * z) for z, t in zip(logits, targets)]),
    "outlier_rows": lambda start, n, count: [row % n for row in range(start, start + count)],
    "auc_on_unseen": auc_on_unseen_by_ranks,
    "nearest_distance": lambda positions, gallery: distances_by_scipy(gallery, positions).min(axis=1),
    "region_overlap": overlap_by_counting,
    "area_up_to": area_by_a_fine_grid,
    "mean_over_classes": mean_by_dictionary,
    "class_interval": interval_by_sorting,
    "fair": lambda ours, theirs: {k: v for k, v in ours.items() if k not in ("method", "ROC-AUC")}.items() <= theirs.items(),
    "most_anomalous": lambda scores, n: sorted(range(len(scores)), key=lambda number: scores[number], reverse=True)[:n],
    "larger_part": lambda parts, normal: np.maximum(*(row / np.median(usual) for row, usual in zip(parts, normal))),
    "true_alarms": lambda caught, false, share: 1 / (1 + false / caught * (1 - share) / share),
}
every = pytest.mark.parametrize("key", EXERCISES)


@every
def test_the_solution_and_another_one_pass(key, capsys):
    check(key, EXERCISES[key].solution)
    check(key, OTHER_SOLUTIONS[key])
    assert capsys.readouterr().out.count(f"Right: {text('exercise', key)['praise']}") == 2


@pytest.mark.parametrize(("key", "name"), [(key, name) for key, exercise in EXERCISES.items() for name in exercise.wrong])
def test_each_known_mistake_gets_its_message(key, name):
    with pytest.raises(CheckFailed) as failure:
        check(key, EXERCISES[key].wrong[name])
    assert str(failure.value) == f"Not yet, {key}: {text('exercise', key)['wrong'][name]}"


@every
def test_tables_and_checks_name_the_same_mistakes(key):
    entry = text("exercise", key)
    assert set(entry["wrong"]) == set(EXERCISES[key].wrong) and len(entry["wrong"]) >= 3
    assert len(entry["hints"]) == 3 and entry["praise"] and entry["otherwise"]


@every
def test_a_stub_never_passes(key):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    with pytest.raises(NotSolved, match=f"Not yet, {key} is still the stub"):
        check(key, stub)


@every
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *a: None, "returned None. Is the `return` missing"),
        (lambda *a: "0.5", "expected|look|Try|Compare|that is not|the scores are not"),
        (lambda *a: {"auc": 1}, "returned dict: expected numbers"),
        (lambda *a: np.full(np.shape(EXERCISES["leave_one_out"].solution) or 3, np.nan), "array of shape|NaN"),
        (lambda *a: 1 / 0, "raised ZeroDivisionError: division by zero"),
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


def test_nan_is_named():
    with pytest.raises(CheckFailed, match="contains NaN"):
        check("roc_auc_by_pairs", lambda labels, scores: np.nan)
    with pytest.raises(CheckFailed, match=r"array of shape \(2,\): expected one number"):
        check("roc_auc_by_pairs", lambda labels, scores: [0.5, 0.5])


def test_a_function_that_changes_its_arguments_cannot_fool_the_check():
    def sorts_in_place(labels, scores):
        scores.sort()
        labels[:] = np.sort(labels)
        return 1.0

    with pytest.raises(CheckFailed):
        check("roc_auc_by_pairs", sorts_in_place)


def test_a_tensor_is_as_good_as_an_array():
    import torch

    check("squared_distances", lambda gallery, queries: torch.cdist(torch.from_numpy(queries), torch.from_numpy(gallery)) ** 2)


def test_unknown_keys_are_answered():
    with pytest.raises(ValueError, match="no exercise 'leave_two_out': choose one of roc_auc_by_pairs"):
        check("leave_two_out", len)
    with pytest.raises(ValueError, match="no predict '99-x': choose one of 00-pixels"):
        predict("99-x")


def test_hints_come_one_by_one(capsys):
    hints = text("exercise", "leave_one_out")["hints"]
    lesson._hints_given.clear()
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
    assert set(entry["replies"]) | {entry["right"]} == set(entry["options"]) and entry["right"] not in entry["replies"]
    predict(key)
    reveal(key)
    assert entry["question"] in said[0] and "No prediction was made" in said[1] and entry["why"] in said[1]
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
