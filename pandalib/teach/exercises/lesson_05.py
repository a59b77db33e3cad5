"""Lesson 05: cross-entropy without overflow, a pile gone through in turn, unseen kinds alone."""

import numpy as np

from pandalib.metrics import roc_auc
from pandalib.teach.exercises.base import Exercise


class BinaryCrossEntropy(Exercise):
    key = "binary_cross_entropy"
    tolerance = 1e-6

    def cases(self):
        rng = np.random.default_rng(51)
        for n, share in ((6, 0.5), (40, 0.3)):
            yield rng.normal(size=n) * 3, (rng.random(n) < share).astype(float)
        # Sure, and wrong.
        yield np.array([900.0, -900.0, 0.0, -40.0]), np.array([0.0, 1.0, 1.0, 0.0])

    def solution(self, logits, targets):
        return float(self._terms(logits, targets).mean())

    def mistakes(self, logits, targets):
        terms = self._terms(logits, targets)
        probability = 1 / (1 + np.exp(-logits))
        likelihood = np.where(targets == 1, np.log(probability), np.log(1 - probability))
        return {
            "flipped": self._terms(logits, 1 - targets).mean(),
            "overflow": -likelihood.mean(),
            "total": terms.sum(),
            "outliers_only": (targets * terms).mean(),
            "squared": ((probability - targets) ** 2).mean(),
            "sign": -terms.mean(),
            "each_image": terms,
        }

    def _terms(self, logits, targets):
        return np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))


class OutlierRows(Exercise):
    key = "outlier_rows"
    returns = "whole"

    def cases(self):
        return [(0, 10, 4), (8, 10, 4), (37, 10, 4), (5, 3, 8), (64, 100, 32)]

    def solution(self, start, n, count):
        return (start + np.arange(count)) % n

    def mistakes(self, start, n, count):
        counted = np.arange(count)
        return {
            "always_from_the_first": counted % n,
            "past_the_end": start + counted,
            "last_repeated": np.minimum(start + counted, n - 1),
            "one_too_far": (start + 1 + counted) % n,
            "start_alone": start % n + counted,
            "jumps": (start * count + counted) % n,
        }


class AucOnUnseen(Exercise):
    key = "auc_on_unseen"

    def cases(self):
        rng = np.random.default_rng(53)
        for n, n_kinds, seen in ((60, 5, [1, 3]), (90, 7, [2]), (40, 4, [1])):
            kinds = rng.integers(0, n_kinds, size=n)
            kinds[:n_kinds] = np.arange(n_kinds)
            scores = rng.normal(size=n) + (kinds > 0) + np.isin(kinds, seen)
            yield scores, kinds, seen  # a list, as in the lesson

    def solution(self, scores, kinds, seen):
        return self._auc(scores, kinds, ~np.isin(kinds, seen))

    def mistakes(self, scores, kinds, seen):
        unseen = sorted(set(kinds.tolist()) - {0, *seen})
        by_kind = [self._auc(scores, kinds, np.isin(kinds, [0, kind])) for kind in unseen]
        return {
            "everything": self._auc(scores, kinds, kinds >= 0),
            "seen_only": self._auc(scores, kinds, np.isin(kinds, [0, *seen])),
            "called_normal": roc_auc(np.isin(kinds, unseen), scores),
            "direction": 1 - self.solution(scores, kinds, seen),
            "mean_of_kinds": np.mean(by_kind),
            "kinds_counted": len(unseen),
        }

    def _auc(self, scores, kinds, rows):
        return roc_auc(kinds[rows] > 0, scores[rows])


EXERCISES = [BinaryCrossEntropy(), OutlierRows(), AucOnUnseen()]
