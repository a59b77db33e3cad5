"""Lesson 08: what to look at first, the larger of two parts, and how many alarms are right."""

import numpy as np

from pandalib.teach.exercises.base import Exercise


class MostAnomalous(Exercise):
    key = "most_anomalous"
    returns = "whole"

    def cases(self):
        rng = np.random.default_rng(81)
        yield np.array([0.3, 2.0, 0.1, 1.5]), 2
        for n, k in ((9, 3), (40, 12), (5, 5)):
            yield rng.gamma(2, size=n), k

    def solution(self, scores, n):
        return np.argsort(-scores)[:n]

    def mistakes(self, scores, n):
        order = np.argsort(-scores)
        return {
            "least": np.argsort(scores)[:n],
            "least_first": np.argsort(scores)[-n:],
            "values": scores[order[:n]],
            "ranks": np.argsort(order)[:n],
            "all": order,
            "in_order_of_files": np.sort(order[:n]),
        }


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


EXERCISES = [MostAnomalous(), LargerPart(), TrueAlarms()]
