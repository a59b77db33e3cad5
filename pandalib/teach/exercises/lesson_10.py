"""Lesson 10: how well an attribute was read, a nuisance as numbers, the projector, the erasure."""

import numpy as np

from pandalib.teach.exercises.base import Exercise


class RSquared(Exercise):
    key = "r_squared"

    def cases(self):
        rng = np.random.default_rng(101)
        for n, noise, offset in ((6, 0.5, 0.3), (40, 0.2, -0.1), (25, 2.0, 1.0)):
            truth = rng.normal(size=n) + 0.7
            yield truth, 0.8 * truth + offset + noise * rng.normal(size=n)

    def solution(self, truth, predicted):
        left = ((truth - predicted) ** 2).sum()
        return float(1 - left / ((truth - truth.mean()) ** 2).sum())

    def mistakes(self, truth, predicted):
        left, total = ((truth - predicted) ** 2).sum(), ((truth - truth.mean()) ** 2).sum()
        return {
            "correlation": np.corrcoef(truth, predicted)[0, 1] ** 2,
            "share_left": left / total,
            "about_zero": 1 - left / (truth**2).sum(),
            "of_predictions": 1 - left / ((predicted - predicted.mean()) ** 2).sum(),
            "residuals_centred": 1 - (truth - predicted).var() / truth.var(),
            "mean_square": left / len(truth),
        }


class NuisanceColumns(Exercise):
    key = "nuisance_columns"
    returns = "array"

    def cases(self):
        rng = np.random.default_rng(102)
        yield (np.array(["poly", "mono", "mono", "poly", "mono"]),)
        yield (rng.permutation(["C"] * 2 + ["A"] * 5 + ["B"] * 4),)
        yield (rng.normal(size=7) + 2,)

    def _words(self, nuisance):
        return nuisance.dtype.kind == "U"

    def _columns(self, nuisance):
        if self._words(nuisance):
            return (nuisance[:, None] == np.unique(nuisance)).astype(float)
        return nuisance[:, None].astype(float)

    def solution(self, nuisance):
        columns = self._columns(nuisance)
        return columns - columns.mean(axis=0)

    def mistakes(self, nuisance):
        columns = self._columns(nuisance)
        centred = columns - columns.mean(axis=0)
        codes = nuisance
        if self._words(nuisance):
            codes = np.unique(nuisance, return_inverse=True)[1].astype(float)
        return {
            "not_centred": columns,
            "codes": (codes - codes.mean())[:, None],
            "one_left_out": centred[:, 1:] if self._words(nuisance) else centred,
            "whole_mean": columns - columns.mean(),
            "lying_down": centred.T,
            "row_centred": columns - columns.mean(axis=1, keepdims=True),
        }


class NuisanceProjector(Exercise):
    key = "nuisance_projector"
    returns = "array"

    def cases(self):
        rng = np.random.default_rng(103)
        for n, d, m in ((30, 6, 1), (40, 8, 3), (25, 5, 2)):
            columns = rng.normal(size=(n, m))
            if m == 3:  # as one-hot columns do, they add up to zero
                columns -= columns.mean(axis=1, keepdims=True)
            columns -= columns.mean(axis=0)
            mix = rng.normal(size=(d, d))
            features = rng.normal(size=(n, d)) @ mix + columns @ rng.normal(size=(m, d)) + 1
            yield features, columns

    def _covariance(self, features, columns):
        return (features - features.mean(axis=0)).T @ columns / len(features)

    def _onto(self, matrix):
        directions, lengths, _ = np.linalg.svd(matrix, full_matrices=False)
        q = directions[:, lengths > 1e-8 * lengths[0]]
        return q @ q.T

    def solution(self, features, columns):
        return self._onto(self._covariance(features, columns))

    def mistakes(self, features, columns):
        covariance = self._covariance(features, columns)
        right = self._onto(covariance)
        centred = features - features.mean(axis=0)
        weights = np.linalg.lstsq(centred, columns, rcond=None)[0]
        _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
        main = axes[: np.linalg.matrix_rank(covariance, tol=1e-8)].T
        unit = covariance / np.linalg.norm(covariance, axis=0)
        every = np.linalg.svd(covariance, full_matrices=False)[0]
        first = every[:, :1]
        one = [
            np.eye(len(right)) - np.outer(u, u)
            for u in unit.T  # each column removed in turn, though they are not orthogonal
        ]
        product = np.linalg.multi_dot(one) if len(one) > 1 else one[0]
        return {
            "the_rest": np.eye(len(right)) - right,
            "weights": self._onto(weights),
            "not_orthonormal": covariance @ covariance.T,
            "only_length_one": unit @ unit.T,
            "in_turn": np.eye(len(right)) - product,
            "first_only": first @ first.T,
            "main_directions": main @ main.T,
            "one_too_many": every @ every.T,
        }


class Erase(Exercise):
    key = "erase"
    returns = "array"

    def cases(self):
        rng = np.random.default_rng(104)
        for n, d, words in ((30, 5, False), (36, 7, True), (20, 4, True)):
            z = rng.integers(0, 3, size=n)
            side = np.array(["A", "B", "C"])[z] if words else rng.normal(size=n)
            shift = z if words else side
            features = rng.normal(size=(n, d)) + np.outer(shift, rng.normal(size=d)) + 1.5
            yield features, side, rng.normal(size=(9, d)) - 0.5

    def _projector(self, features, nuisance):
        columns = NuisanceColumns().solution(nuisance)
        return NuisanceProjector().solution(features, columns)

    def solution(self, features, nuisance, new):
        mean, projector = features.mean(axis=0), self._projector(features, nuisance)
        return new - (new - mean) @ projector

    def mistakes(self, features, nuisance, new):
        mean, projector = features.mean(axis=0), self._projector(features, nuisance)
        along = (new - mean) @ projector
        return {
            "kept": mean + along,
            "only_the_nuisance": along,
            "added": new + along,
            "not_centred": new - new @ projector,
            "own_mean": new - (new - new.mean(axis=0)) @ projector,
            "mean_removed": (new - mean) - along,
            "learned_images": features - (features - mean) @ projector,
        }


EXERCISES = [RSquared(), NuisanceColumns(), NuisanceProjector(), Erase()]
