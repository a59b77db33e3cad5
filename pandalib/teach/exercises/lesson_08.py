"""Lesson 08: the larger of two parts, the report of a folder, and how many alarms are right."""

import numpy as np

from pandalib.teach.exercises.base import Exercise


class LargerPart(Exercise):
    key = "larger_part"
    tolerance = 1e-9

    def cases(self):
        rng = np.random.default_rng(82)
        units = np.array([[40.0], [0.6]])
        for n, m in ((6, 30), (1, 9), (20, 50)):
            yield rng.gamma(3, size=(2, n)) * units, rng.gamma(2, size=(2, m)) * units

    def solution(self, parts, normal):
        return self._scaled(parts, normal).max(axis=0)

    def mistakes(self, parts, normal):
        scaled = self._scaled(parts, normal)
        return {
            "not_scaled": parts.max(axis=0),
            "own_unit": self._scaled(parts, parts).max(axis=0),
            "one_unit": parts.max(axis=0) / np.quantile(normal, 0.9),
            "median": self._scaled(parts, normal, 0.5).max(axis=0),
            "lower_tenth": self._scaled(parts, normal, 0.1).max(axis=0),
            "sum": scaled.sum(axis=0),
            "mean": scaled.mean(axis=0),
            "smaller": scaled.min(axis=0),
            "by_the_largest": self._scaled(parts, normal, 1.0).max(axis=0),
            "one_number": scaled.max(),
        }

    def _scaled(self, parts, normal, q=0.9):
        """Each part in its unit, the quantile q of its normal scores."""
        return parts / np.quantile(normal, q, axis=1, keepdims=True)


class TrueAlarms(Exercise):
    key = "true_alarms"

    def cases(self):
        yield from [(0.9, 0.05, 0.001), (1.0, 0.05, 0.5), (0.6, 0.01, 0.02), (0.95, 0.1, 0.2)]
        yield 0.9, 0.05, np.geomspace(0.001, 0.3, 5)  # the lesson draws a curve over an array

    def solution(self, caught, false_alarms, share):
        return caught * share / (caught * share + false_alarms * (1 - share))

    def mistakes(self, caught, false_alarms, share):
        right, wrong = caught * share, false_alarms * (1 - share)
        return {
            "caught": caught,
            "specificity": 1 - false_alarms,
            "half_and_half": caught / (caught + false_alarms),
            "all_alarms": right + wrong,
            "true_only": right,
            "false_share": wrong / (right + wrong),
            "everybody": right / (right + false_alarms),
        }


class FolderReport(Exercise):
    key = "folder_report"
    tolerance = 1e-5
    returns = "array"

    def cases(self):
        rng = np.random.default_rng(85)
        for n, m, d in ((30, 8, 5), (47, 12, 3), (24, 9, 4)):
            normal = rng.normal(size=(n, d)) + 2
            far = rng.normal(size=(m, d)) * rng.uniform(0.5, 3, size=(m, 1)) + 2
            yield normal, far  # rate and k as they are by default

    def solution(self, normal, new, rate=0.05, k=2):
        return self._rows(normal, new, rate, k)

    def mistakes(self, normal, new, rate=0.05, k=2):
        right = self._rows(normal, new, rate, k)
        scores = _knn(normal, new, k)
        own = _knn(normal, normal, k)
        ascending = right[::-1]
        by_file = right[np.argsort(right[:, 0])]
        unsorted = np.stack([right[:, 0], by_file[:, 1], by_file[:, 2]], axis=1)
        return {
            "self_kept": self._rows(normal, new, rate, k, normal_scores=own),
            "threshold_from_the_new": self._rows(normal, new, rate, k, threshold_of=scores),
            "least_first": ascending,
            "in_order_of_files": by_file,
            "names_out_of_order": unsorted,
            "not_counted_in": self._rows(normal, new, rate, k, counted_in=0),
            "share_below": right * [1, 1, -1] + [0, 0, 1],
            "not_over_threshold": self._rows(normal, new, rate, k, relative=False),
            "no_correction": self._rows(normal, new, rate, k, correction=0),
            "largest_normal": self._rows(normal, new, 0.0, k),
            "new_among_themselves": self._rows(normal, new, rate, k, scores=_loo(new, k)),
            "one_neighbour": self._rows(normal, new, rate, 1),
        }

    def _rows(
        self,
        normal,
        new,
        rate,
        k,
        *,
        normal_scores=None,
        threshold_of=None,
        scores=None,
        counted_in=1,
        correction=1,
        relative=True,
    ):
        """The rows of the report; what comes by name is a mistake."""
        normal_scores = _loo(normal, k) if normal_scores is None else normal_scores
        scores = _knn(normal, new, k) if scores is None else scores
        of = np.sort(normal_scores if threshold_of is None else threshold_of)
        rank = min(int(np.ceil((1 - rate) * (len(of) + correction))), len(of))
        n = len(normal) + counted_in
        p = ((normal_scores >= scores[:, None]).sum(axis=1) + counted_in) / n
        order = np.argsort(-scores)
        values = scores / of[rank - 1] if relative else scores
        return np.stack([order, values[order], p[order]], axis=1)


def _squared(a, b):
    return ((a[:, None] - b[None]) ** 2).sum(axis=2)


def _knn(normal, new, k):
    """Sum of the squared distances to the k nearest."""
    return np.sort(_squared(new, normal), axis=1)[:, :k].sum(axis=1)


def _loo(features, k):
    """The same for each image among the others."""
    squared = _squared(features, features)
    np.fill_diagonal(squared, np.inf)
    return np.sort(squared, axis=1)[:, :k].sum(axis=1)


EXERCISES = [LargerPart(), FolderReport(), TrueAlarms()]
