"""Lesson 03: a fixed amount of work, sample-wise stopping, a choice without its judges."""

import math

import numpy as np

from pandalib.metrics import roc_auc
from pandalib.teach.exercises.base import Exercise
from pandalib.teach.exercises.neighbours import knn


class EpochsForWork(Exercise):
    key = "epochs_for_work"
    returns = "whole"

    def cases(self):
        yield from [(2300, 5000), (39, 400)]  # without a batch size, as the lesson asks
        yield from [(40, 100, 32), (30, 65, 16), (3, 1000, 32), (44, 400, 32), (100, 450, 32)]

    def solution(self, minibatches, n_images, batch_size=32):
        return max(1, round(minibatches / math.ceil(n_images / batch_size)))

    def mistakes(self, minibatches, n_images, batch_size=32):
        epochs = minibatches / math.ceil(n_images / batch_size)
        return {
            "last_batch_lost": max(1, round(minibatches / (n_images // batch_size))),
            "fraction_of_a_batch": max(1, round(minibatches / (n_images / batch_size))),
            "not_whole": epochs,
            "none_at_all": round(epochs),
            "rounded_down": max(1, math.floor(epochs)),
            "rounded_up": max(1, math.ceil(epochs)),
            "images": max(1, round(minibatches / n_images)),
            "one_batch_size": self.solution(minibatches, n_images),
        }


class SampleWiseScores(Exercise):
    key = "sample_wise_scores"
    tolerance = 1e-6
    returns = "array"

    def cases(self):
        rng = np.random.default_rng(12)
        for n_checkpoints, n, m in ((5, 7, 4), (21, 60, 40), (9, 30, 6), (2, 5, 3)):
            # All scores shrink as features are drawn together, each image's at its own pace.
            shrink = np.exp(-np.linspace(0, 2, n_checkpoints))[:, None]
            paces = rng.uniform(0.5, 1.5, size=n)
            test = shrink**paces * rng.gamma(5, 0.4, size=(n_checkpoints, n))
            yield test, shrink * rng.gamma(2, 0.5, size=(n_checkpoints, m))

    def solution(self, test, held_out):
        return (test / held_out.mean(axis=1, keepdims=True)).max(axis=0)

    def mistakes(self, test, held_out):
        ratios = test / held_out.mean(axis=1, keepdims=True)
        return {
            "minimum": ratios.min(axis=0),
            "not_normalised": test.max(axis=0),
            "test_mean": (test / test.mean(axis=1, keepdims=True)).max(axis=0),
            "maximum_first": test.max(axis=0) / held_out.mean(axis=1).max(),
            "level_of_all": test.max(axis=0) / held_out.mean(),
            "when": ratios.argmax(axis=0),
            "one_for_all": ratios[ratios.mean(axis=1).argmax()],
            "last": ratios[-1],
            "mean": ratios.mean(axis=0),
            "median": (test / np.median(held_out, axis=1, keepdims=True)).max(axis=0),
            "each_image": ratios.max(axis=1),
        }


class SampleWiseStopping(Exercise):
    key = "sample_wise_stopping"
    tolerance = 1e-4
    returns = "array"

    def cases(self):
        rng = np.random.default_rng(16)
        for n_checkpoints, n, n_test, d, k in ((4, 12, 7, 3, 2), (6, 30, 9, 5, 2), (3, 9, 5, 2, 3)):
            # Features shrink from checkpoint to checkpoint, the test images' less than the others'.
            shrink = np.exp(-np.linspace(0, 1, n_checkpoints))[:, None, None]
            normal = shrink**1.5 * rng.normal(size=(n_checkpoints, n, d))
            pace = rng.uniform(0.3, 2.5, size=(1, n_test, 1))
            test = shrink**pace * rng.normal(scale=1.5, size=(n_checkpoints, n_test, d))
            held_out = np.zeros(n, dtype=bool)
            held_out[rng.permutation(n)[: n // 3]] = True
            yield normal, test, held_out, k

    def solution(self, features, test_features, held_out, k=2):
        level = self._level(features, held_out, k)
        return (self._scores(features, test_features, held_out, k) / level).max(axis=0)

    def mistakes(self, features, test_features, held_out, k):
        level = self._level(features, held_out, k)
        scores = self._scores(features, test_features, held_out, k)
        everyone = np.stack([knn(f, x, k) for f, x in zip(features, test_features)])
        inside = np.stack([knn(f, f[held_out], k) for f in features])
        trained = np.stack([knn(f[~held_out], f[~held_out], k) for f in features])
        leaking = inside.mean(axis=1, keepdims=True)
        return {
            "held_out_in_gallery": (scores / leaking).max(axis=0),
            "all_in_gallery": (everyone / leaking).max(axis=0),
            "test_gallery_too_large": (everyone / level).max(axis=0),
            "gallery_against_itself": (scores / trained.mean(axis=1, keepdims=True)).max(axis=0),
            "held_out_as_gallery": self.solution(features, test_features, ~held_out, k),
            "no_level": scores.max(axis=0),
            "first_level": (scores / level[0]).max(axis=0),
            "last_checkpoint": (scores / level)[-1],
            "minimum": (scores / level).min(axis=0),
            "one_neighbour": self.solution(features, test_features, held_out, 1),
        }

    def _level(self, features, held_out, k):
        """The mean score of the held-out images, one for each checkpoint: (T, 1)."""
        return np.array([[knn(f[~held_out], f[held_out], k).mean()] for f in features])

    def _scores(self, features, test_features, held_out, k):
        pairs = zip(features, test_features)
        return np.stack([knn(f[~held_out], x, k) for f, x in pairs])


class PickThenJudge(Exercise):
    key = "pick_then_judge"

    def cases(self):
        rng = np.random.default_rng(13)
        for n_checkpoints, n in ((6, 24), (12, 80), (9, 40), (20, 60)):
            labels = (np.arange(n) % 3 > 0).astype(int)
            chooser = np.arange(n) % 2 == 0  # of either kind in either part
            order = rng.permutation(n)
            noise = rng.normal(size=(n_checkpoints, n))
            scores = noise + labels * rng.uniform(0, 1, size=(n_checkpoints, 1))
            yield scores[:, order], labels[order], chooser[order]

    def solution(self, scores, labels, chooser):
        return self._judged(scores, labels, choose=chooser, judge=~chooser)

    def mistakes(self, scores, labels, chooser):
        def judged(choose, judge):
            return self._judged(scores, labels, choose, judge)

        all_images = np.ones_like(chooser)
        course = self._course(scores, labels, chooser)
        return {
            "same_images": judged(chooser, chooser),
            "test_labels": judged(all_images, all_images),
            "picked_on_all": judged(all_images, ~chooser),
            "best_of_the_rest": judged(~chooser, ~chooser),
            "judged_on_all": judged(chooser, all_images),
            "swapped": judged(~chooser, chooser),
            "worst": roc_auc(labels[~chooser], scores[np.argmin(course)][~chooser]),
            "when": np.argmax(course),
        }

    def _course(self, scores, labels, choose):
        """The ROC-AUC of each checkpoint on some images."""
        return [roc_auc(labels[choose], row[choose]) for row in scores]

    def _judged(self, scores, labels, choose, judge):
        best = np.argmax(self._course(scores, labels, choose))
        return roc_auc(labels[judge], scores[best][judge])


EXERCISES = [EpochsForWork(), SampleWiseScores(), SampleWiseStopping(), PickThenJudge()]
