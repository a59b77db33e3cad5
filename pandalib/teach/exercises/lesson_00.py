"""Lesson 00: ROC-AUC by counting pairs, and a threshold from the scores of normal images."""

import numpy as np

from pandalib.teach.exercises.base import Exercise


class RocAucByPairs(Exercise):
    key = "roc_auc_by_pairs"
    tolerance = 1e-9

    def cases(self):
        rng = np.random.default_rng(5)
        yield np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
        for n, digits in ((30, 3), (80, 1), (50, 0)):  # few digits: many ties
            labels = rng.permutation(np.arange(n) % 3 == 0).astype(int)
            yield labels, np.round(rng.normal(size=n) + labels, digits)

    def solution(self, labels, scores, tie=0.5):
        normal, anomalous = scores[labels == 0], scores[labels == 1]
        higher = (anomalous[:, None] > normal[None, :]).mean()
        equal = (anomalous[:, None] == normal[None, :]).mean()
        return float(higher + tie * equal)

    def mistakes(self, labels, scores):
        auc = self.solution(labels, scores)
        return {
            "direction": 1 - auc,
            "direction_and_ties": 1 - self.solution(labels, scores, tie=1.0),
            "ties_lost": self.solution(labels, scores, tie=0.0),
            "ties_won": self.solution(labels, scores, tie=1.0),
            "count": auc * (labels == 0).sum() * (labels == 1).sum(),
            "accuracy": ((scores > np.median(scores)) == labels).mean(),
        }


class ThresholdFromNormals(Exercise):
    key = "threshold_from_normals"
    tolerance = 1e-9
    by_name = ("rate",)

    def cases(self):
        rng = np.random.default_rng(6)
        for n, rate in ((99, 0.05), (200, 0.10), (400, 0.02)):
            yield rng.gamma(4.0, size=n), rate

    def solution(self, scores, rate):
        rank = int(np.ceil((1 - rate) * (len(scores) + 1)))
        return float(np.sort(scores)[rank - 1])

    def mistakes(self, scores, rate):
        ordered, n = np.sort(scores), len(scores)
        return {
            "wrong_tail": ordered[int(np.ceil(rate * (n + 1))) - 1],
            "lower_quantile": np.quantile(scores, rate),
            "no_correction": ordered[int(np.ceil((1 - rate) * n)) - 1],
            "counted_from_0": ordered[int(np.ceil((1 - rate) * (n + 1)))],
            "quantile": np.quantile(scores, 1 - rate),
            "maximum": scores.max(),
            "gaussian": scores.mean() + 2 * scores.std(),
        }


EXERCISES = [RocAucByPairs(), ThresholdFromNormals()]
