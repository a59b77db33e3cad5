"""Lesson 01: all squared distances by one matrix product, and scores with the image left out."""

import numpy as np

from pandalib.teach.exercises.base import Exercise


def two_sets():
    """Yield galleries and queries of several sizes."""
    rng = np.random.default_rng(7)
    for n, m, d in ((5, 3, 2), (20, 7, 16), (1, 4, 3)):
        yield rng.normal(size=(n, d)), rng.normal(size=(m, d))


def distances_by_difference(gallery, queries):
    """Squared distances (m, n), exactly zero for equal rows."""
    return np.stack([((gallery - query) ** 2).sum(axis=1) for query in queries])


def distances_by_product(gallery, queries):
    """Squared distances (m, n) by one matrix product."""
    return (queries**2).sum(axis=1)[:, None] + (gallery**2).sum(axis=1) - 2 * queries @ gallery.T


class SquaredDistances(Exercise):
    key = "squared_distances"
    tolerance = 1e-9
    returns = "array"

    def cases(self):
        return two_sets()

    def solution(self, gallery, queries):
        return distances_by_product(gallery, queries)

    def mistakes(self, gallery, queries):
        squared = distances_by_difference(gallery, queries)
        product = queries @ gallery.T
        return {
            "root": np.sqrt(squared),
            "transposed": squared.T,
            "no_factor": squared + product,
            "sign": squared + 4 * product,
            "product_only": product,
            "mean": squared / queries.shape[1],
        }


class LeaveOneOut(Exercise):
    key = "leave_one_out"
    tolerance = 1e-9
    by_name = ("k",)

    def cases(self):
        # With k = 1 sum, mean and last are the same; the other cases tell them apart.
        rng = np.random.default_rng(8)
        for n, d, k in ((12, 3, 2), (30, 8, 1), (25, 4, 3)):
            # Of few bits, so that a distance of zero is zero by the matrix product too.
            features = np.round(64 * rng.normal(size=(n, d))) / 64
            features[n // 2] = features[0]  # an image that is in the set twice
            yield features, k

    def solution(self, features, k):
        return self._nearest(features, k).sum(axis=1)

    def mistakes(self, features, k):
        squared = distances_by_difference(features, features)
        nearest = self._nearest(features, k)
        return {
            "self_kept": np.sort(squared, axis=1)[:, :k].sum(axis=1),
            "zeros_dropped": np.sort(np.where(squared == 0, np.inf, squared))[:, :k].sum(axis=1),
            "root": np.sqrt(nearest).sum(axis=1),
            "mean": nearest.mean(axis=1),
            "last_only": nearest[:, -1],
            "sign": -nearest.sum(axis=1),
        }

    def _nearest(self, features, k):
        squared = distances_by_difference(features, features)
        np.fill_diagonal(squared, np.inf)
        return np.sort(squared, axis=1)[:, :k]


EXERCISES = [SquaredDistances(), LeaveOneOut()]
