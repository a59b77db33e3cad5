"""The exercises: fresh inputs, the solution, and the usual wrong answers, so that `check` can answer each by name.

The sentences stand in `strings/`, under the names used here. A wrong answer is a function of the same inputs: it is
recognised when the reader's results equal its results on every case, so the cases must tell all of them apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class Exercise:
    """The inputs of an exercise, its solution, and the wrong answers that are recognised.

    cases : argument tuples, fresh ones of every size and kind that matters.
    solution : the right result for such a tuple. It also stands in for a stub in the lesson, so it takes what the lesson
        hands over (tensors, where that says so) and needs no more memory than the lesson's own.
    wrong : name in the strings table -> the result that this mistake gives.
    tolerance : relative to the largest number in a result; no wider than the lesson's own.

    The others say how a later cell uses the function, so no answer is right here and crashes there:

    given : "tensors", or "gradients" where the result is differentiated. Empty: the cases as is.
    returns : "array" where a later cell needs an array's methods, "whole" where it is an index.
    by_name : the last arguments, where the lesson passes them by name.
    """

    def __init__(
        self,
        cases: Callable[[], list[tuple]],
        solution: Callable,
        wrong: dict[str, Callable],
        tolerance: float = 1e-5,
        given: str = "",
        returns: str = "",
        by_name: tuple[str, ...] = (),
    ):
        self.cases, self.solution, self.wrong, self.tolerance = cases, solution, wrong, tolerance
        self.given, self.returns, self.by_name = given, returns, by_name


EXERCISES: dict[str, Exercise] = {}

# --- lesson 00 ---------------------------------------------------------------------------------------------------


def _labelled_scores() -> list[tuple]:
    rng = np.random.default_rng(5)
    cases = [(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))]
    for n, digits in ((30, 3), (80, 1), (50, 0)):  # few digits: many ties
        labels = rng.permutation(np.arange(n) % 3 == 0).astype(int)
        cases.append((labels, np.round(rng.normal(size=n) + labels, digits)))
    return cases


def _pairs(labels, scores, tie: float) -> float:
    normal, anomalous = scores[labels == 0], scores[labels == 1]
    greater = (anomalous[:, None] > normal[None]).mean()
    return float(greater + tie * (anomalous[:, None] == normal[None]).mean())


def _accuracy(labels, scores) -> float:
    return float(((scores > np.median(scores)).astype(int) == labels).mean())


EXERCISES["roc_auc_by_pairs"] = Exercise(
    _labelled_scores,
    lambda labels, scores: _pairs(labels, scores, 0.5),
    {
        "direction": lambda labels, scores: 1 - _pairs(labels, scores, 0.5),
        "direction_and_ties": lambda labels, scores: 1 - _pairs(labels, scores, 1.0),
        "ties_lost": lambda labels, scores: _pairs(labels, scores, 0.0),
        "ties_won": lambda labels, scores: _pairs(labels, scores, 1.0),
        "count": lambda labels, scores: (
            _pairs(labels, scores, 0.5) * (labels == 0).sum() * (labels == 1).sum()
        ),
        "accuracy": _accuracy,
    },
    tolerance=1e-9,
)


def _normal_scores() -> list[tuple]:
    rng = np.random.default_rng(6)
    return [(rng.gamma(4.0, size=n), rate) for n, rate in ((99, 0.05), (200, 0.10), (400, 0.02))]


def _order_statistic(scores, rate: float, extra: int) -> float:
    return float(np.sort(scores)[int(np.ceil((1 - rate) * (len(scores) + extra))) - 1])


EXERCISES["threshold_from_normals"] = Exercise(
    _normal_scores,
    lambda scores, rate: _order_statistic(scores, rate, 1),
    {
        "wrong_tail": lambda scores, rate: float(
            np.sort(scores)[int(np.ceil(rate * (len(scores) + 1))) - 1]
        ),
        "lower_quantile": lambda scores, rate: float(np.quantile(scores, rate)),
        "no_correction": lambda scores, rate: _order_statistic(scores, rate, 0),
        "counted_from_0": lambda scores, rate: float(
            np.sort(scores)[int(np.ceil((1 - rate) * (len(scores) + 1)))]
        ),
        "quantile": lambda scores, rate: float(np.quantile(scores, 1 - rate)),
        "maximum": lambda scores, rate: float(scores.max()),
        "gaussian": lambda scores, rate: float(scores.mean() + 2 * scores.std()),
    },
    tolerance=1e-9,
    by_name=("rate",),
)

# --- lesson 01 ---------------------------------------------------------------------------------------------------


def _two_sets() -> list[tuple]:
    rng = np.random.default_rng(7)
    return [
        (rng.normal(size=(n, d)), rng.normal(size=(m, d)))
        for n, m, d in ((5, 3, 2), (20, 7, 16), (1, 4, 3))
    ]


def _squared(gallery, queries) -> np.ndarray:
    return np.stack(
        [((gallery - query) ** 2).sum(axis=1) for query in queries]
    )  # exactly zero for twins


def _squared_by_product(gallery, queries) -> np.ndarray:
    return (queries**2).sum(axis=1)[:, None] + (gallery**2).sum(axis=1) - 2 * queries @ gallery.T


EXERCISES["squared_distances"] = Exercise(
    _two_sets,
    _squared_by_product,
    {
        "root": lambda gallery, queries: np.sqrt(_squared(gallery, queries)),
        "transposed": lambda gallery, queries: _squared(gallery, queries).T,
        "no_factor": lambda gallery, queries: _squared(gallery, queries) + queries @ gallery.T,
        "sign": lambda gallery, queries: _squared(gallery, queries) + 4 * queries @ gallery.T,
        "product_only": lambda gallery, queries: queries @ gallery.T,
        "mean": lambda gallery, queries: _squared(gallery, queries) / queries.shape[1],
    },
    tolerance=1e-9,
    returns="array",
)


def _features_with_twins() -> list[tuple]:
    rng = np.random.default_rng(8)
    cases = []
    for n, d, k in ((12, 3, 2), (30, 8, 1), (25, 4, 3)):
        features = (
            np.round(64 * rng.normal(size=(n, d))) / 64
        )  # so that a distance of zero is zero by the matrix product too
        features[n // 2] = features[0]  # an image that is in the set twice
        cases.append((features, k))
    return cases


def _nearest_sums(features, k: int, *, drop: str, power: float = 1.0, reduce=np.sum) -> np.ndarray:
    distances = _squared(features, features) ** power
    if drop == "self":
        np.fill_diagonal(distances, np.inf)
    elif drop == "zeros":
        distances[distances == 0] = np.inf
    return reduce(np.sort(distances, axis=1)[:, :k], axis=1)


EXERCISES["leave_one_out"] = Exercise(
    _features_with_twins,
    lambda features, k: _nearest_sums(features, k, drop="self"),
    {
        "self_kept": lambda features, k: _nearest_sums(features, k, drop="nothing"),
        "zeros_dropped": lambda features, k: _nearest_sums(features, k, drop="zeros"),
        "root": lambda features, k: _nearest_sums(features, k, drop="self", power=0.5),
        "mean": lambda features, k: _nearest_sums(features, k, drop="self", reduce=np.mean),
        "last_only": lambda features, k: _nearest_sums(
            features, k, drop="self", reduce=lambda a, axis: a[:, -1]
        ),
        "sign": lambda features, k: -_nearest_sums(features, k, drop="self"),
    },
    tolerance=1e-9,
    by_name=("k",),
)
# k = 1 makes sum, mean and last the same: a mistake must agree on every case, so the other cases decide.

# --- lesson 02 ---------------------------------------------------------------------------------------------------


def _batches_with_a_centre() -> list[tuple]:
    rng = np.random.default_rng(9)
    return [
        (rng.normal(size=(n, d)) + 1.5, rng.normal(size=d)) for n, d in ((4, 3), (32, 16), (7, 5))
    ]


EXERCISES["compactness_loss"] = Exercise(
    _batches_with_a_centre,
    lambda features, centre: ((features - centre) ** 2).mean(),
    {
        "batch_centre": lambda features, centre: float(
            ((features - features.mean(axis=0)) ** 2).mean()
        ),
        "not_over_d": lambda features, centre: float(((features - centre) ** 2).sum(axis=1).mean()),
        "total": lambda features, centre: float(((features - centre) ** 2).sum()),
        "root": lambda features, centre: float(
            np.sqrt(((features - centre) ** 2).sum(axis=1)).mean()
        ),
        "absolute": lambda features, centre: float(np.abs(features - centre).mean()),
        "each_image": lambda features, centre: ((features - centre) ** 2).mean(axis=1),
        "mean_first": lambda features, centre: float(
            ((features.mean(axis=0) - centre) ** 2).mean()
        ),
    },
    tolerance=1e-5,
    given="gradients",
)


def _gradients_with_a_limit() -> list[tuple]:
    rng = np.random.default_rng(10)
    # Two beyond the limit and two within it, of which one is small: what is short enough must stay as it is.
    return [
        (size * rng.normal(size=n), limit)
        for n, size, limit in ((6, 2.0, 1.0), (50, 1.0, 0.1), (5, 0.01, 0.1), (20, 0.1, 3.0))
    ]


def _cut(gradient, limit: float, norm: float) -> np.ndarray:
    return gradient * min(1.0, limit / norm)


EXERCISES["clip_gradient"] = Exercise(
    _gradients_with_a_limit,
    lambda gradient, limit: _cut(gradient, limit, (gradient**2).sum() ** 0.5),
    {
        "each_entry": lambda gradient, limit: np.clip(gradient, -limit, limit),
        "always": lambda gradient, limit: gradient * limit / np.linalg.norm(gradient),
        "squared_norm": lambda gradient, limit: _cut(gradient, limit, (gradient**2).sum()),
        "largest_entry": lambda gradient, limit: _cut(gradient, limit, np.abs(gradient).max()),
        "unit": lambda gradient, limit: (
            gradient if np.linalg.norm(gradient) <= limit else gradient / np.linalg.norm(gradient)
        ),
        "untouched": lambda gradient, limit: gradient,
    },
    tolerance=1e-5,
    given="tensors",
)


def _features_off_centre() -> list[tuple]:
    rng = np.random.default_rng(11)
    sizes = (40, 5), (12, 4), (60, 16), (6, 9)
    features = [rng.normal(size=(n, d)) * np.geomspace(3, 0.3, d) + 2.0 for n, d in sizes]
    features[2][:, 3] = 0.0  # a dead channel; and the last one has fewer images than channels
    return [(features[0],), (features[1],), (np.float32(features[2]),), (np.float32(features[3]),)]


def _rank(features, *, centred: bool = True, power: float = 2.0, result: str = "exp") -> float:
    features = np.float64(features)
    if centred:
        features = features - features.mean(axis=0)
    weights = np.linalg.svd(features, compute_uv=False) ** power
    share = weights[weights > 0] / weights.sum()
    entropy = -(share * np.log(share)).sum()
    return {
        "exp": float(np.exp(entropy)),
        "entropy": float(entropy),
        "participation": float(1 / (share**2).sum()),
    }[result]


EXERCISES["effective_rank"] = Exercise(
    _features_off_centre,
    _rank,
    {
        "not_centred": lambda features: _rank(features, centred=False),
        "singular_values": lambda features: _rank(features, power=1.0),
        "entropy_only": lambda features: _rank(features, result="entropy"),
        "participation": lambda features: _rank(features, result="participation"),
        "plain_rank": lambda features: float(
            np.linalg.matrix_rank(features - features.mean(axis=0))
        ),
        "sign": lambda features: 1 / _rank(features),
    },
    tolerance=1e-4,
)

# --- lesson 04 ---------------------------------------------------------------------------------------------------


def _sample_gradients() -> list[tuple]:
    rng = np.random.default_rng(41)
    # With a mean that is not zero, as true labels give it: the square of the mean is then another number than zero.
    return [
        (rng.normal(size=(n, p)) * np.geomspace(2, 0.3, p) + 0.4,)
        for n, p in ((8, 5), (32, 12), (50, 2))
    ]


EXERCISES["fisher_diagonal"] = Exercise(
    _sample_gradients,
    lambda gradients: (gradients**2).mean(axis=0),
    {
        "square_of_mean": lambda gradients: gradients.mean(axis=0) ** 2,
        "sum": lambda gradients: (gradients**2).sum(axis=0),
        "mean": lambda gradients: gradients.mean(axis=0),
        "absolute": lambda gradients: np.abs(gradients).mean(axis=0),
        "variance": lambda gradients: gradients.var(axis=0),
        "root": lambda gradients: np.sqrt((gradients**2).mean(axis=0)),
        "each_sample": lambda gradients: (gradients**2).mean(axis=1),
        "matrix": lambda gradients: gradients.T @ gradients / len(gradients),
    },
    tolerance=1e-6,
    returns="array",
)


def _moved_parameters() -> list[tuple]:
    rng = np.random.default_rng(42)
    # The lesson hands over a layer at a time, so one of them has the shape of a convolution.
    shapes = ((4,), 10.0), ((3, 2, 2, 2), 0.5), ((7,), 3.0)
    return [
        (rng.normal(size=shape), rng.normal(size=shape), rng.gamma(1.0, size=shape), ewc_lambda)
        for shape, ewc_lambda in shapes
    ]


EXERCISES["penalty_gradient"] = Exercise(
    _moved_parameters,
    lambda theta, start, fisher, ewc_lambda: ewc_lambda * fisher * (theta - start),
    {
        "no_strength": lambda theta, start, fisher, ewc_lambda: fisher * (theta - start),
        "no_fisher": lambda theta, start, fisher, ewc_lambda: ewc_lambda * (theta - start),
        "half": lambda theta, start, fisher, ewc_lambda: ewc_lambda / 2 * fisher * (theta - start),
        "twice": lambda theta, start, fisher, ewc_lambda: 2 * ewc_lambda * fisher * (theta - start),
        "sign": lambda theta, start, fisher, ewc_lambda: ewc_lambda * fisher * (start - theta),
        "to_zero": lambda theta, start, fisher, ewc_lambda: ewc_lambda * fisher * theta,
        "squared": lambda theta, start, fisher, ewc_lambda: (
            ewc_lambda * fisher * (theta - start) ** 2
        ),
        "value": lambda theta, start, fisher, ewc_lambda: (
            ewc_lambda / 2 * (fisher * (theta - start) ** 2).sum()
        ),
    },
    tolerance=1e-5,
    given="tensors",
)


def _two_recipes() -> list[tuple]:
    rng = np.random.default_rng(43)
    cases = []
    for n, ewc_lambda, factor in ((6, 1e4, 32), (40, 50.0, 8), (15, 3.0, 0.25)):
        theirs = rng.gamma(0.5, size=n) + 0.01
        cases.append((ewc_lambda, theirs, theirs * rng.uniform(0.7, 1.3, size=n) / factor))
    return cases


EXERCISES["translate_strength"] = Exercise(
    _two_recipes,
    lambda ewc_lambda, theirs, ours: float(ewc_lambda * theirs.mean() / ours.mean()),
    {
        "upside_down": lambda ewc_lambda, theirs, ours: float(
            ewc_lambda * ours.mean() / theirs.mean()
        ),
        "unchanged": lambda ewc_lambda, theirs, ours: float(ewc_lambda),
        "ours_left_out": lambda ewc_lambda, theirs, ours: float(ewc_lambda * theirs.mean()),
        "mean_of_ratios": lambda ewc_lambda, theirs, ours: float(
            ewc_lambda * (theirs / ours).mean()
        ),
        "each_parameter": lambda ewc_lambda, theirs, ours: ewc_lambda * theirs / ours,
        "difference": lambda ewc_lambda, theirs, ours: float(
            ewc_lambda + theirs.mean() - ours.mean()
        ),
    },
    tolerance=1e-6,
)

# --- lesson 03 ---------------------------------------------------------------------------------------------------


def _amounts_of_work() -> list[tuple]:
    # Without a batch size as well, as the lesson asks.
    by_default = [(2300, 5000), (39, 400)]
    return [*by_default, (40, 100, 32), (30, 65, 16), (3, 1000, 32), (44, 400, 32), (100, 450, 32)]


def _whole_epochs(
    minibatches, n_images, batch_size=32, *, per_epoch=np.ceil, whole=round, least=1
) -> float:
    return max(least, whole(minibatches / per_epoch(n_images / batch_size)))


EXERCISES["epochs_for_work"] = Exercise(
    _amounts_of_work,
    _whole_epochs,
    {
        "last_batch_lost": lambda *case: _whole_epochs(*case, per_epoch=np.floor),
        "fraction_of_a_batch": lambda *case: _whole_epochs(*case, per_epoch=float),
        "not_whole": lambda *case: _whole_epochs(*case, whole=float, least=0),
        "none_at_all": lambda *case: _whole_epochs(*case, least=0),
        "rounded_down": lambda *case: _whole_epochs(*case, whole=np.floor),
        "rounded_up": lambda *case: _whole_epochs(*case, whole=np.ceil),
        "images": lambda minibatches, n_images, *batch_size: max(1, round(minibatches / n_images)),
        "one_batch_size": lambda work, n_images, *batch_size: _whole_epochs(work, n_images),
    },
    returns="whole",
)


def _courses_with_held_out() -> list[tuple]:
    rng = np.random.default_rng(12)
    cases = []
    for n_checkpoints, n, m in ((5, 7, 4), (21, 60, 40), (9, 30, 6), (2, 5, 3)):
        # All scores shrink, at a pace that differs from image to image, as they do when features are drawn together.
        shrink = np.exp(-np.linspace(0, 2, n_checkpoints))[:, None]
        test = shrink ** rng.uniform(0.5, 1.5, size=n) * rng.gamma(5, 0.4, size=(n_checkpoints, n))
        cases.append((test, shrink * rng.gamma(2, 0.5, size=(n_checkpoints, m))))
    return cases


def _ratios(test_scores, held_out_scores) -> np.ndarray:
    return test_scores / held_out_scores.mean(axis=1, keepdims=True)


EXERCISES["sample_wise_scores"] = Exercise(
    _courses_with_held_out,
    lambda test, held_out: _ratios(test, held_out).max(axis=0),
    {
        "minimum": lambda test, held_out: _ratios(test, held_out).min(axis=0),
        "not_normalised": lambda test, held_out: test.max(axis=0),
        "test_mean": lambda test, held_out: (test / test.mean(axis=1, keepdims=True)).max(axis=0),
        "maximum_first": lambda test, held_out: test.max(axis=0) / held_out.mean(axis=1).max(),
        "level_of_all": lambda test, held_out: test.max(axis=0) / held_out.mean(),
        "when": lambda test, held_out: _ratios(test, held_out).argmax(axis=0),
        "one_for_all": lambda test, held_out: _ratios(test, held_out)[
            _ratios(test, held_out).mean(axis=1).argmax()
        ],
        "last": lambda test, held_out: _ratios(test, held_out)[-1],
        "mean": lambda test, held_out: _ratios(test, held_out).mean(axis=0),
        "median": lambda test, held_out: (test / np.median(held_out, axis=1, keepdims=True)).max(
            axis=0
        ),
        "each_image": lambda test, held_out: _ratios(test, held_out).max(axis=1),
    },
    tolerance=1e-6,
    returns="array",
)


def _courses_with_labels() -> list[tuple]:
    rng = np.random.default_rng(13)
    cases = []
    for n_checkpoints, n in ((6, 24), (12, 80), (9, 40), (20, 60)):
        labels = (np.arange(n) % 3 > 0).astype(int)
        chooser = np.arange(n) % 2 == 0  # of either kind in either part
        order = rng.permutation(n)
        scores = rng.normal(size=(n_checkpoints, n)) + labels * rng.uniform(
            0, 1, size=(n_checkpoints, 1)
        )
        cases.append((scores[:, order], labels[order], chooser[order]))
    return cases


def _picked_and_judged(scores, labels, choose, judge, best=np.argmax) -> float:
    course = [_pairs(labels[choose], row[choose], 0.5) for row in scores]
    return _pairs(labels[judge], scores[best(course)][judge], 0.5)


EXERCISES["pick_then_judge"] = Exercise(
    _courses_with_labels,
    lambda scores, labels, chooser: _picked_and_judged(scores, labels, chooser, ~chooser),
    {
        "same_images": lambda scores, labels, chooser: _picked_and_judged(
            scores, labels, chooser, chooser
        ),
        "test_labels": lambda scores, labels, chooser: _picked_and_judged(
            scores, labels, chooser | True, chooser | True
        ),
        "picked_on_all": lambda scores, labels, chooser: _picked_and_judged(
            scores, labels, chooser | True, ~chooser
        ),
        "best_of_the_rest": lambda scores, labels, chooser: _picked_and_judged(
            scores, labels, ~chooser, ~chooser
        ),
        "judged_on_all": lambda scores, labels, chooser: _picked_and_judged(
            scores, labels, chooser, chooser | True
        ),
        "swapped": lambda scores, labels, chooser: _picked_and_judged(
            scores, labels, ~chooser, chooser
        ),
        "worst": lambda scores, labels, chooser: _picked_and_judged(
            scores, labels, chooser, ~chooser, np.argmin
        ),
        "when": lambda scores, labels, chooser: float(
            np.argmax([_pairs(labels[chooser], row[chooser], 0.5) for row in scores])
        ),
    },
)

# --- lesson 05 ---------------------------------------------------------------------------------------------------


def _logits_with_targets() -> list[tuple]:
    rng = np.random.default_rng(51)
    cases = [
        (rng.normal(size=n) * 3, (rng.random(n) < share).astype(float))
        for n, share in ((6, 0.5), (40, 0.3))
    ]
    return [
        *cases,
        (np.array([900.0, -900.0, 0.0, -40.0]), np.array([0.0, 1.0, 1.0, 0.0])),
    ]  # sure, and wrong


def _cross_entropy_terms(logits, targets) -> np.ndarray:
    return np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))


def _cross_entropy_of_probabilities(logits, targets) -> float:
    with np.errstate(all="ignore"):
        p = 1 / (1 + np.exp(-logits))
        return float(-np.where(targets == 1, np.log(p), np.log(1 - p)).mean())


EXERCISES["binary_cross_entropy"] = Exercise(
    _logits_with_targets,
    lambda logits, targets: float(_cross_entropy_terms(logits, targets).mean()),
    {
        "flipped": lambda logits, targets: float(_cross_entropy_terms(logits, 1 - targets).mean()),
        "overflow": _cross_entropy_of_probabilities,
        "total": lambda logits, targets: float(_cross_entropy_terms(logits, targets).sum()),
        "outliers_only": lambda logits, targets: float(
            (targets * _cross_entropy_terms(logits, 1.0)).mean()
        ),
        "squared": lambda logits, targets: float(
            ((0.5 + 0.5 * np.tanh(logits / 2) - targets) ** 2).mean()
        ),
        "sign": lambda logits, targets: -float(_cross_entropy_terms(logits, targets).mean()),
        "each_image": _cross_entropy_terms,
    },
    tolerance=1e-6,
)


def _places_in_a_pile() -> list[tuple]:
    return [(0, 10, 4), (8, 10, 4), (37, 10, 4), (5, 3, 8), (64, 100, 32)]


EXERCISES["outlier_rows"] = Exercise(
    _places_in_a_pile,
    lambda start, n, count: (start + np.arange(count)) % n,
    {
        "always_from_the_first": lambda start, n, count: np.arange(count) % n,
        "past_the_end": lambda start, n, count: start + np.arange(count),
        "last_repeated": lambda start, n, count: np.minimum(start + np.arange(count), n - 1),
        "one_too_far": lambda start, n, count: (start + 1 + np.arange(count)) % n,
        "start_alone": lambda start, n, count: start % n + np.arange(count),
        "jumps": lambda start, n, count: (start * count + np.arange(count)) % n,
    },
    returns="whole",
)


def _scores_by_kind() -> list[tuple]:
    rng = np.random.default_rng(53)
    cases = []
    for n, n_kinds, seen in ((60, 5, [1, 3]), (90, 7, [2]), (40, 4, [1])):
        kinds = rng.integers(0, n_kinds, size=n)
        kinds[:n_kinds] = np.arange(n_kinds)
        scores = rng.normal(size=n) + (kinds > 0) + np.isin(kinds, seen)
        cases.append((scores, kinds, seen))  # a list, as in the lesson
    return cases


def _auc_on(scores, kinds, rows) -> float:
    return _pairs((kinds[rows] > 0).astype(int), scores[rows], 0.5)


EXERCISES["auc_on_unseen"] = Exercise(
    _scores_by_kind,
    lambda scores, kinds, seen: _auc_on(scores, kinds, ~np.isin(kinds, seen)),
    {
        "everything": lambda scores, kinds, seen: _auc_on(scores, kinds, kinds >= 0),
        "seen_only": lambda scores, kinds, seen: _auc_on(scores, kinds, np.isin(kinds, [0, *seen])),
        "called_normal": lambda scores, kinds, seen: _pairs(
            ((kinds > 0) & ~np.isin(kinds, seen)).astype(int), scores, 0.5
        ),
        "direction": lambda scores, kinds, seen: 1 - _auc_on(scores, kinds, ~np.isin(kinds, seen)),
        "mean_of_kinds": lambda scores, kinds, seen: float(
            np.mean(
                [
                    _auc_on(scores, kinds, (kinds == 0) | (kinds == kind))
                    for kind in set(kinds.tolist()) - {0, *seen}
                ]
            )
        ),
        "kinds_counted": lambda scores, kinds, seen: float(len(set(kinds.tolist()) - {0, *seen})),
    },
)

# --- lesson 06 ---------------------------------------------------------------------------------------------------


def _nearest(positions, gallery, *, power: float = 1.0, reduce=np.min, axis: int = 1) -> np.ndarray:
    return reduce(_squared(gallery, positions) ** power, axis=axis)


EXERCISES["nearest_distance"] = Exercise(
    lambda: [(queries, gallery) for gallery, queries in _two_sets()],
    lambda positions, gallery: _squared_by_product(gallery, positions).min(axis=1),
    {
        "root": lambda positions, gallery: _nearest(positions, gallery, power=0.5),
        "mean": lambda positions, gallery: _nearest(positions, gallery, reduce=np.mean),
        "farthest": lambda positions, gallery: _nearest(positions, gallery, reduce=np.max),
        "of_the_gallery": lambda positions, gallery: _nearest(positions, gallery, axis=0),
        "which": lambda positions, gallery: _nearest(positions, gallery, reduce=np.argmin),
        "over_channels": lambda positions, gallery: (
            _nearest(positions, gallery) / positions.shape[1]
        ),
        "centre": lambda positions, gallery: ((positions - gallery.mean(axis=0)) ** 2).sum(axis=1),
        "each_channel": lambda positions, gallery: (
            ((positions[:, None] - gallery[None]) ** 2).min(axis=1).sum(axis=1)
        ),
        "whole_table": lambda positions, gallery: _squared(gallery, positions),
    },
    tolerance=1e-6,
)


def _regions_with_alarms() -> list[tuple]:
    rng = np.random.default_rng(61)
    cases = []
    for size in (6, 12, 20):
        regions = np.zeros((size, size), int)
        regions[1:3, 1:3], regions[size // 2 :, size // 2 :] = 1, 2  # a small one and a large one
        regions[size - 2, 0:2] = 3
        alarm = rng.random((size, size)) < 0.25
        alarm[size // 2 :, size // 2 :] |= rng.random((size - size // 2, size - size // 2)) < 0.6
        alarm[1, 1] = True
        cases.append((regions, alarm))
    regions, alarm = (np.stack([part[:6, :6] for part in pair]) for pair in zip(*cases))
    regions[2, 0, 5] = 4
    alarm[2, 0, 5] = False  # a stack of images, as in the lesson, whose last region raises no alarm
    return [*cases, (np.int32(regions), alarm)]


def _share_of_region(regions, alarm, combine) -> np.ndarray:
    return np.array([combine(regions == number, alarm) for number in range(1, regions.max() + 1)])


def _covered(region, alarm) -> float:
    return (region & alarm).sum() / region.sum()


EXERCISES["region_overlap"] = Exercise(
    _regions_with_alarms,
    lambda regions, alarm: float(_share_of_region(regions, alarm, _covered).mean()),
    {
        "all_pixels": lambda regions, alarm: float(_covered(regions > 0, alarm)),
        "touched": lambda regions, alarm: float(
            _share_of_region(regions, alarm, lambda region, alarm: (region & alarm).any()).mean()
        ),
        "union": lambda regions, alarm: float(
            _share_of_region(
                regions,
                alarm,
                lambda region, alarm: (region & alarm).sum() / (region | alarm).sum(),
            ).mean()
        ),
        "of_the_alarm": lambda regions, alarm: float((alarm & (regions > 0)).sum() / alarm.sum()),
        "background": lambda regions, alarm: float(
            np.mean([_covered(regions == number, alarm) for number in range(regions.max() + 1)])
        ),
        "total": lambda regions, alarm: float(_share_of_region(regions, alarm, _covered).sum()),
        "each_region": lambda regions, alarm: _share_of_region(regions, alarm, _covered),
        "largest": lambda regions, alarm: float(_share_of_region(regions, alarm, _covered)[1]),
    },
    tolerance=1e-9,
)


def _curves_with_a_limit() -> list[tuple]:
    rng = np.random.default_rng(62)
    cases = []
    for n, limit in ((5, 0.3), (12, 0.3), (40, 0.05)):
        false_alarms = np.concatenate([[0], np.sort(rng.random(n - 2)) ** 2, [1]])
        overlap = np.concatenate([[0], np.sort(rng.random(n - 2)) ** 0.5, [1]])
        if n > 5:  # where only defects are added, the overlap rises and the false alarms do not
            false_alarms[1:3], false_alarms[6] = 0, false_alarms[5]
        cases.append((false_alarms, overlap, limit))
    return cases


def _trapezoids(x, y) -> float:
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())


def _cut_at(false_alarms, overlap, limit: float) -> tuple[np.ndarray, np.ndarray]:
    inside = false_alarms < limit
    return np.append(false_alarms[inside], limit), np.append(
        overlap[inside], np.interp(limit, false_alarms, overlap)
    )


def _stairs(false_alarms, overlap, limit: float) -> float:
    x, y = _cut_at(false_alarms, overlap, limit)
    return float((y[1:] * np.diff(x)).sum() / limit)


EXERCISES["area_up_to"] = Exercise(
    _curves_with_a_limit,
    lambda false_alarms, overlap, limit: (
        _trapezoids(*_cut_at(false_alarms, overlap, limit)) / limit
    ),
    {
        "not_over_limit": lambda false_alarms, overlap, limit: _trapezoids(
            *_cut_at(false_alarms, overlap, limit)
        ),
        "whole": lambda false_alarms, overlap, limit: _trapezoids(false_alarms, overlap),
        "stops_short": lambda false_alarms, overlap, limit: (
            _trapezoids(false_alarms[false_alarms <= limit], overlap[false_alarms <= limit]) / limit
        ),
        "its_own_end": lambda false_alarms, overlap, limit: (
            _trapezoids(x := false_alarms[false_alarms <= limit], overlap[false_alarms <= limit])
            / max(x[-1], 1e-9)
        ),
        "stairs": _stairs,
        "value_at_limit": lambda false_alarms, overlap, limit: float(
            np.interp(limit, false_alarms, overlap)
        ),
        "mean_of_corners": lambda false_alarms, overlap, limit: float(
            _cut_at(false_alarms, overlap, limit)[1].mean()
        ),
    },
    tolerance=1e-9,
)


# --- lesson 07 ---------------------------------------------------------------------------------------------------


def _runs_of_classes() -> list[tuple]:
    rng = np.random.default_rng(71)
    cases = [(np.array(["star", "star", "heart"]), np.array([0.8, 0.9, 0.5]))]
    for n, n_classes, failed in ((12, 4, 0), (30, 5, 4)):
        classes = np.concatenate(
            [np.arange(n_classes), rng.integers(0, n_classes, size=n - n_classes) ** 2 % n_classes]
        )
        values = 0.6 + 0.07 * classes + 0.05 * rng.normal(size=n)
        values[n_classes : n_classes + failed] = np.nan
        cases.append((classes, values))
    return cases


def _per_class(classes, values, of=np.nanmean) -> np.ndarray:
    return np.array([of(values[classes == one]) for one in np.unique(classes)])


EXERCISES["mean_over_classes"] = Exercise(
    _runs_of_classes,
    lambda classes, values: float(_per_class(classes, values).mean()),
    {
        "pooled": lambda classes, values: float(np.nanmean(values)),
        "best_seed": lambda classes, values: float(_per_class(classes, values, np.nanmax).mean()),
        "failed_as_zero": lambda classes, values: float(
            _per_class(classes, np.nan_to_num(values)).mean()
        ),
        "failed_kept": lambda classes, values: float(_per_class(classes, values, np.mean).mean()),
        "each_class": _per_class,
        "median": lambda classes, values: float(np.median(_per_class(classes, values))),
    },
)


def _class_means_with_draws() -> list[tuple]:
    rng = np.random.default_rng(72)
    return [
        (rng.uniform(0.5, 1, size=n), rng.integers(0, n, size=(draws, n)))
        for n, draws in ((10, 400), (6, 200), (3, 50))
    ]


def _around(values, spread: float) -> np.ndarray:
    return values.mean() + 1.96 * spread * np.array([-1, 1])


EXERCISES["class_interval"] = Exercise(
    _class_means_with_draws,
    lambda means, draws: np.percentile(means[draws].mean(axis=1), [2.5, 97.5]),
    {
        "of_the_classes": lambda means, draws: np.percentile(means, [2.5, 97.5]),
        "of_all_draws": lambda means, draws: np.percentile(means[draws], [2.5, 97.5]),
        "across_draws": lambda means, draws: np.percentile(means[draws].mean(axis=0), [2.5, 97.5]),
        "all_of_it": lambda means, draws: np.percentile(means[draws].mean(axis=1), [0, 100]),
        "five_each": lambda means, draws: np.percentile(means[draws].mean(axis=1), [5, 95]),
        "reversed": lambda means, draws: np.percentile(means[draws].mean(axis=1), [97.5, 2.5]),
        "normal_theory": lambda means, draws: _around(means, means.std(ddof=1) / len(means) ** 0.5),
        "per_cent": lambda means, draws: np.percentile(means[draws].mean(axis=1), [0.025, 0.975]),
    },
)

SETTING = (
    "images",
    "normal classes",
    "level",
    "outliers",
    "network",
)  # what must be equal before two figures are compared


def _pairs_of_rows() -> list[tuple]:
    row = {
        "images": "CIFAR-10",
        "normal classes": 1,
        "level": "image",
        "outliers": False,
        "network": "ResNet-152",
        "method": "DN2",
        "ROC-AUC": 0.9,
    }
    other = {
        "images": "MVTec AD",
        "normal classes": 20,
        "level": "pixel",
        "outliers": True,
        "network": "ResNet-18",
    }
    cases = [(row, row | {"ROC-AUC": 0.5}), (row | {"method": "PANDA-EWC"}, row)]
    cases += [(row, row | {key: other[key]}) for key in SETTING]
    pixel = row | {"level": "pixel"}
    cases += [(row | other, row | other), (pixel, pixel | {"method": "SPADE", "ROC-AUC": 0.95})]
    # The lesson's own rows: without method and result, and not always in the same order.
    bare = {key: row[key] for key in SETTING}
    return [*cases, (bare, dict(reversed(bare.items()))), (bare, bare | {"outliers": True})]


def _equal_but(*ignored):
    return lambda ours, theirs: all(
        ours[key] == theirs[key] for key in SETTING if key not in ignored
    )


EXERCISES["fair"] = Exercise(
    _pairs_of_rows,
    _equal_but(),
    {
        "everything": lambda ours, theirs: ours == theirs,
        "method": lambda ours, theirs: (
            _equal_but()(ours, theirs) and ours.get("method") == theirs.get("method")
        ),
        "level": _equal_but("level"),
        "outliers": _equal_but("outliers"),
        "normal_classes": _equal_but("normal classes"),
        "network": _equal_but("network"),
        "images_alone": lambda ours, theirs: ours["images"] == theirs["images"],
        "reversed": lambda ours, theirs: not _equal_but()(ours, theirs),
        "any": lambda ours, theirs: any(ours[key] == theirs[key] for key in SETTING),
    },
)


# --- lesson 08 ---------------------------------------------------------------------------------------------------


def _scores_to_rank() -> list[tuple]:
    rng = np.random.default_rng(81)
    return [(np.array([0.3, 2.0, 0.1, 1.5]), 2)] + [
        (rng.gamma(2, size=n), k) for n, k in ((9, 3), (40, 12), (5, 5))
    ]


EXERCISES["most_anomalous"] = Exercise(
    _scores_to_rank,
    lambda scores, n: np.argsort(-scores)[:n],
    {
        "least": lambda scores, n: np.argsort(scores)[:n],
        "least_first": lambda scores, n: np.argsort(scores)[-n:],
        "values": lambda scores, n: np.sort(scores)[::-1][:n],
        "ranks": lambda scores, n: np.argsort(np.argsort(-scores))[:n],
        "all": lambda scores, n: np.argsort(-scores),
        "in_order_of_files": lambda scores, n: np.sort(np.argsort(-scores)[:n]),
    },
    returns="whole",
)


def _parts_of_scores() -> list[tuple]:
    rng = np.random.default_rng(82)
    scales = np.array([[40.0], [0.6]])
    return [
        (rng.gamma(3, size=(2, n)) * scales, rng.gamma(2, size=(2, m)) * scales)
        for n, m in ((6, 30), (1, 9), (20, 50))
    ]


def _in_units(parts, normal, q: float = 0.9) -> np.ndarray:
    return parts / np.quantile(normal, q, axis=1, keepdims=True)


EXERCISES["larger_part"] = Exercise(
    _parts_of_scores,
    lambda parts, normal: _in_units(parts, normal).max(axis=0),
    {
        "not_scaled": lambda parts, normal: parts.max(axis=0),
        "own_unit": lambda parts, normal: _in_units(parts, parts).max(axis=0),
        "one_unit": lambda parts, normal: parts.max(axis=0) / np.quantile(normal, 0.9),
        "median": lambda parts, normal: _in_units(parts, normal, 0.5).max(axis=0),
        "lower_tenth": lambda parts, normal: _in_units(parts, normal, 0.1).max(axis=0),
        "sum": lambda parts, normal: _in_units(parts, normal).sum(axis=0),
        "mean": lambda parts, normal: _in_units(parts, normal).mean(axis=0),
        "smaller": lambda parts, normal: _in_units(parts, normal).min(axis=0),
        "by_the_largest": lambda parts, normal: _in_units(parts, normal, 1.0).max(axis=0),
        "one_number": lambda parts, normal: float(_in_units(parts, normal).max()),
    },
    tolerance=1e-9,
)


def _rates_of_alarms() -> list[tuple]:
    many = np.geomspace(0.001, 0.3, 5)  # the lesson draws a curve over such an array
    numbers = [(0.9, 0.05, 0.001), (1.0, 0.05, 0.5), (0.6, 0.01, 0.02), (0.95, 0.1, 0.2)]
    return [*numbers, (0.9, 0.05, many)]


EXERCISES["true_alarms"] = Exercise(
    _rates_of_alarms,
    lambda caught, false, share: caught * share / (caught * share + false * (1 - share)),
    {
        "caught": lambda caught, false, share: caught,
        "specificity": lambda caught, false, share: 1 - false,
        "half_and_half": lambda caught, false, share: caught / (caught + false),
        "all_alarms": lambda caught, false, share: caught * share + false * (1 - share),
        "true_only": lambda caught, false, share: caught * share,
        "false_share": lambda caught, false, share: (
            false * (1 - share) / (caught * share + false * (1 - share))
        ),
        "everybody": lambda caught, false, share: caught * share / (caught * share + false),
    },
)
