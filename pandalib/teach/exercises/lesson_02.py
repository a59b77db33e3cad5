"""Lesson 02: the compactness loss, a clipped gradient, and the effective rank of features."""

import numpy as np

from pandalib.teach.exercises.base import Exercise


class CompactnessLoss(Exercise):
    key = "compactness_loss"
    given = "tensors_with_gradients"

    def cases(self):
        rng = np.random.default_rng(9)
        for n, d in ((4, 3), (32, 16), (7, 5)):
            yield rng.normal(size=(n, d)) + 1.5, rng.normal(size=d)

    def solution(self, features, centre):
        return ((features - centre) ** 2).mean()

    def mistakes(self, features, centre):
        squares = (features - centre) ** 2
        return {
            "batch_centre": ((features - features.mean(axis=0)) ** 2).mean(),
            "not_over_d": squares.sum(axis=1).mean(),
            "total": squares.sum(),
            "root": np.sqrt(squares.sum(axis=1)).mean(),
            "absolute": np.abs(features - centre).mean(),
            "each_image": squares.mean(axis=1),
            "mean_first": ((features.mean(axis=0) - centre) ** 2).mean(),
        }


class ClipGradient(Exercise):
    key = "clip_gradient"
    given = "tensors"

    def cases(self):
        # Two beyond the limit and two within it: what is short enough has to stay as it is.
        rng = np.random.default_rng(10)
        for n, size, limit in ((6, 2.0, 1.0), (50, 1.0, 0.1), (5, 0.01, 0.1), (20, 0.1, 3.0)):
            yield size * rng.normal(size=n), limit

    def solution(self, gradient, limit):
        length = (gradient**2).sum() ** 0.5
        return gradient * min(1.0, limit / length)

    def mistakes(self, gradient, limit):
        length = np.linalg.norm(gradient)
        return {
            "each_entry": np.clip(gradient, -limit, limit),
            "always": gradient * limit / length,
            "squared_norm": gradient * min(1.0, limit / length**2),
            "largest_entry": gradient * min(1.0, limit / np.abs(gradient).max()),
            "unit": gradient if length <= limit else gradient / length,
            "untouched": gradient,
        }


class EffectiveRank(Exercise):
    key = "effective_rank"
    tolerance = 1e-4

    def cases(self):
        rng = np.random.default_rng(11)
        for n, d in ((40, 5), (12, 4), (60, 16), (6, 9)):
            features = rng.normal(size=(n, d)) * np.geomspace(3, 0.3, d) + 2.0
            if d > 8:  # with a dead channel, and as the network gives them
                features[:, 3] = 0.0
                features = np.float32(features)
            yield (features,)

    def solution(self, features):
        return float(np.exp(self._entropy(self._shares(features))))

    def mistakes(self, features):
        centred = features - features.mean(axis=0)
        shares = self._shares(features)
        entropy = self._entropy(shares)
        return {
            "not_centred": np.exp(self._entropy(self._shares(features, centre=False))),
            "singular_values": np.exp(self._entropy(self._shares(features, power=1))),
            "entropy_only": entropy,
            "participation": 1 / (shares**2).sum(),
            "plain_rank": np.linalg.matrix_rank(centred),
            "sign": np.exp(-entropy),
        }

    def _shares(self, features, *, centre=True, power=2):
        """The share of each direction in the variance of the features."""
        features = np.float64(features)
        if centre:
            features = features - features.mean(axis=0)
        weights = np.linalg.svd(features, compute_uv=False) ** power
        return weights[weights > 0] / weights.sum()

    def _entropy(self, shares):
        return -(shares * np.log(shares)).sum()


EXERCISES = [CompactnessLoss(), ClipGradient(), EffectiveRank()]
