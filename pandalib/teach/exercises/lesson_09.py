"""Lesson 09: directions from the mean, the mean-shifted loss, the PCA residual, trimming."""

import numpy as np

from pandalib.teach.exercises.base import Exercise


def _unit(x):
    """Rows of length one, of arrays and of tensors."""
    return x / (x**2).sum(-1)[..., None] ** 0.5


def _library_of(x):
    """The module whose functions take x: the lesson hands over tensors, the mistakes are arrays."""
    import torch  # the lessons without a network need none

    return np if isinstance(x, np.ndarray) else torch


class ShiftedDirections(Exercise):
    key = "shifted_directions"
    given = "tensors_with_gradients"

    def cases(self):
        rng = np.random.default_rng(91)
        for n, d in ((6, 3), (11, 8), (4, 20)):
            features = rng.normal(size=(n, d)) * rng.uniform(1, 5, size=(n, 1)) + 2
            yield features, _unit(features + rng.normal(size=(n, d))).mean(axis=0)

    def solution(self, features, centre):
        return _unit(_unit(features) - centre)

    def mistakes(self, features, centre):
        phi = _unit(features)
        return {
            "phi": phi,
            "length_kept": phi - centre,
            "not_scaled_first": _unit(features - centre),
            "centre_scaled": _unit(phi - _unit(centre)),
            "own_centre": _unit(phi - phi.mean(axis=0)),
            "added": _unit(phi + centre),
            "turned_round": _unit(centre - phi),
            "columns": (phi - centre) / np.linalg.norm(phi - centre, axis=0),
        }


class MeanShiftedLoss(Exercise):
    key = "mean_shifted_loss"
    tolerance = 1e-4
    given = "tensors_with_gradients"

    def cases(self):
        rng = np.random.default_rng(92)
        for n, d, temperature in ((2, 3, 1.0), (6, 8, 0.5), (9, 16, 0.25)):
            images = rng.normal(size=(n, d)) * rng.uniform(1, 3, size=(n, 1)) + 1
            one, other = (images + 0.4 * rng.normal(size=(n, d)) for _ in range(2))
            yield one, other, _unit(images).mean(axis=0), temperature

    def _loss(self, theta, temperature, *, itself=False, partner=True, rows=None, mean=True):
        """The loss of directions (2B, d), and of what is often written in its place."""
        xp, n = _library_of(theta), len(theta)
        similarity = theta @ theta.T / temperature
        own = xp.eye(n)
        partners = xp.roll(own, n // 2, 0)
        counts = 1 - own * (not itself) - partners * (not partner)
        total = xp.log((xp.exp(similarity) * counts).sum(1))
        each = (total - (similarity * partners).sum(1))[:rows]
        return each.mean() if mean else each.sum()

    def solution(self, one, other, centre, temperature=0.25):
        features = _library_of(one).concatenate([one, other])
        return self._loss(_unit(_unit(features) - centre), temperature)

    def mistakes(self, one, other, centre, temperature):
        features = np.concatenate([one, other])
        phi = _unit(features)
        theta = _unit(phi - centre)
        n = len(one)
        crossed = np.exp(theta[:n] @ theta[n:].T / temperature)  # the other views alone
        columns = np.log(crossed.sum(axis=1)) - np.log(np.diag(crossed))
        mixed = np.stack([theta[:n], theta[n:]], axis=1).reshape(theta.shape)
        right = self._loss(theta, temperature)
        return {
            "itself_counts": self._loss(theta, temperature, itself=True),
            "partner_left_out": self._loss(theta, temperature, partner=False),
            "one_side": self._loss(theta, temperature, rows=n),
            "summed": self._loss(theta, temperature, mean=False),
            "no_temperature": self._loss(theta, 1.0),
            "times_temperature": self._loss(theta, 1 / temperature),
            "not_shifted": self._loss(phi, temperature),
            "length_kept": self._loss(phi - centre, temperature),
            "other_views_only": columns.mean(),
            "neighbours_as_partners": self._loss(mixed, temperature),
            "sign": -right,
        }


class PCAResidual(Exercise):
    key = "pca_residual"
    returns = "array"

    def cases(self):
        rng = np.random.default_rng(93)
        for n, d, n_new, m in ((30, 5, 7, 2), (50, 8, 4, 3), (24, 6, 9, 1)):
            mix = rng.normal(size=(d, d)) * np.linspace(3, 0.2, d)
            normal = rng.normal(size=(n, d)) @ mix.T + 4
            yield normal, rng.normal(size=(n_new, d)) * 2 + 5, m

    def _directions(self, x):
        return np.linalg.svd(x, full_matrices=False)[2]

    def solution(self, normal, new, m):
        mean = normal.mean(axis=0)
        directions = self._directions(normal - mean)[:m]
        rest = new - mean - (new - mean) @ directions.T @ directions
        return (rest**2).sum(axis=1)

    def mistakes(self, normal, new, m):
        mean = normal.mean(axis=0)
        centred, all_directions = new - mean, self._directions(normal - mean)

        def left(x, directions):
            return x - x @ directions.T @ directions

        right = (left(centred, all_directions[:m]) ** 2).sum(axis=1)
        return {
            "inside": ((centred @ all_directions[:m].T) ** 2).sum(axis=1),
            "smallest_directions": (left(centred, all_directions[-m:]) ** 2).sum(axis=1),
            "not_squared": np.sqrt(right),
            "mean_of_squares": right / new.shape[1],
            "not_centred": (left(new, self._directions(normal)[:m]) ** 2).sum(axis=1),
            "new_mean": (left(new - new.mean(axis=0), all_directions[:m]) ** 2).sum(axis=1),
            "new_directions": (left(centred, self._directions(centred)[:m]) ** 2).sum(axis=1),
            "mean_not_subtracted": (left(new, all_directions[:m]) ** 2).sum(axis=1),
            "one_too_many": (left(centred, all_directions[: m + 1]) ** 2).sum(axis=1),
            "columns_for_rows": (left(centred, all_directions[:, :m].T) ** 2).sum(axis=1),
        }


class Trim(Exercise):
    key = "trim"
    returns = "array"

    def cases(self):
        rng = np.random.default_rng(94)
        for n, share in ((10, 0.2), (25, 0.1), (31, 0.3), (8, 0.0), (15, 0.05)):
            yield rng.permutation(n) + rng.uniform(0, 0.5, size=n), share

    def solution(self, scores, share):
        order = np.argsort(scores)
        return np.sort(order[: len(scores) - round(share * len(scores))])

    def mistakes(self, scores, share):
        n, order = len(scores), np.argsort(scores)
        gone = round(share * n)
        return {
            "lowest_gone": np.sort(order[gone:]),
            "those_that_go": np.sort(order[n - gone :]),
            "not_in_order": order[: n - gone],
            "minus_nothing": np.sort(order[:-gone]),
            "scores": np.sort(scores)[: n - gone],
            "positions": np.arange(n - gone),
            "rounded_down": np.sort(order[: n - int(share * n)]),
            "rounded_up": np.sort(order[: n - int(np.ceil(share * n))]),
        }


EXERCISES = [ShiftedDirections(), MeanShiftedLoss(), PCAResidual(), Trim()]
