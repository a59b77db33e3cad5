"""Lesson 04: the diagonal of the Fisher information, the penalty, and another paper's lambda."""

import numpy as np

from pandalib.teach.exercises.base import Exercise


class FisherDiagonal(Exercise):
    key = "fisher_diagonal"
    tolerance = 1e-6
    returns = "array"

    def cases(self):
        # Their mean is not zero, as with true labels, so that its square is another number.
        rng = np.random.default_rng(41)
        for n, p in ((8, 5), (32, 12), (50, 2)):
            yield (rng.normal(size=(n, p)) * np.geomspace(2, 0.3, p) + 0.4,)

    def solution(self, gradients):
        return (gradients**2).mean(axis=0)

    def mistakes(self, gradients):
        squares = gradients**2
        return {
            "square_of_mean": gradients.mean(axis=0) ** 2,
            "sum": squares.sum(axis=0),
            "mean": gradients.mean(axis=0),
            "absolute": np.abs(gradients).mean(axis=0),
            "variance": gradients.var(axis=0),
            "root": np.sqrt(squares.mean(axis=0)),
            "each_sample": squares.mean(axis=1),
            "matrix": gradients.T @ gradients / len(gradients),
        }


class PenaltyGradient(Exercise):
    key = "penalty_gradient"
    given = "tensors"

    def cases(self):
        # The lesson hands over a layer at a time, so one case has the shape of a convolution.
        rng = np.random.default_rng(42)
        for shape, ewc_lambda in (((4,), 10.0), ((3, 2, 2, 2), 0.5), ((7,), 3.0)):
            theta, start = rng.normal(size=shape), rng.normal(size=shape)
            yield theta, start, rng.gamma(1.0, size=shape), ewc_lambda

    def solution(self, theta, start, fisher, ewc_lambda):
        return ewc_lambda * fisher * (theta - start)

    def mistakes(self, theta, start, fisher, ewc_lambda):
        moved = theta - start
        gradient = ewc_lambda * fisher * moved
        return {
            "no_strength": fisher * moved,
            "no_fisher": ewc_lambda * moved,
            "half": gradient / 2,
            "twice": 2 * gradient,
            "sign": -gradient,
            "to_zero": ewc_lambda * fisher * theta,
            "squared": gradient * moved,
            "value": (gradient * moved).sum() / 2,
        }


class TranslateStrength(Exercise):
    key = "translate_strength"
    tolerance = 1e-6

    def cases(self):
        rng = np.random.default_rng(43)
        for n, ewc_lambda, factor in ((6, 1e4, 32), (40, 50.0, 8), (15, 3.0, 0.25)):
            theirs = rng.gamma(0.5, size=n) + 0.01
            yield ewc_lambda, theirs, theirs * rng.uniform(0.7, 1.3, size=n) / factor

    def solution(self, ewc_lambda, theirs, ours):
        return float(ewc_lambda * theirs.mean() / ours.mean())

    def mistakes(self, ewc_lambda, theirs, ours):
        return {
            "upside_down": ewc_lambda * ours.mean() / theirs.mean(),
            "unchanged": ewc_lambda,
            "ours_left_out": ewc_lambda * theirs.mean(),
            "mean_of_ratios": ewc_lambda * (theirs / ours).mean(),
            "each_parameter": ewc_lambda * theirs / ours,
            "difference": ewc_lambda + theirs.mean() - ours.mean(),
        }


EXERCISES = [FisherDiagonal(), PenaltyGradient(), TranslateStrength()]
