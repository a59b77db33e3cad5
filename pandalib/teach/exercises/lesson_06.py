"""Lesson 06: nearest positions, regions that are covered, the area up to a limit, a memory bank."""

import numpy as np

from pandalib.teach.exercises.base import Exercise
from pandalib.teach.exercises.lesson_01 import distances_by_product, two_sets
from pandalib.teach.exercises.neighbours import squared_distances


class NearestDistance(Exercise):
    key = "nearest_distance"
    tolerance = 1e-6

    def cases(self):
        for gallery, queries in two_sets():
            yield queries, gallery

    def solution(self, positions, gallery):
        return distances_by_product(gallery, positions).min(axis=1)

    def mistakes(self, positions, gallery):
        squared = squared_distances(gallery, positions)
        by_channel = (positions[:, None] - gallery[None]) ** 2
        return {
            "root": np.sqrt(squared).min(axis=1),
            "mean": squared.mean(axis=1),
            "farthest": squared.max(axis=1),
            "of_the_gallery": squared.min(axis=0),
            "which": squared.argmin(axis=1),
            "over_channels": squared.min(axis=1) / positions.shape[1],
            "centre": ((positions - gallery.mean(axis=0)) ** 2).sum(axis=1),
            "each_channel": by_channel.min(axis=1).sum(axis=1),
            "whole_table": squared,
        }


class RegionOverlap(Exercise):
    key = "region_overlap"
    tolerance = 1e-9

    def cases(self):
        rng = np.random.default_rng(61)
        cases = []
        for size in (6, 12, 20):
            half = size // 2
            regions = np.zeros((size, size), int)
            regions[1:3, 1:3] = 1  # a small one
            regions[half:, half:] = 2  # a large one
            regions[size - 2, 0:2] = 3
            alarm = rng.random((size, size)) < 0.25
            alarm[half:, half:] |= rng.random((size - half, size - half)) < 0.6
            alarm[1, 1] = True
            cases.append((regions, alarm))
        # A stack of images, as in the lesson, whose last region raises no alarm.
        regions, alarm = (np.stack([part[:6, :6] for part in parts]) for parts in zip(*cases))
        regions[2, 0, 5], alarm[2, 0, 5] = 4, False
        yield from [*cases, (np.int32(regions), alarm)]

    def solution(self, regions, alarm):
        return float(np.mean(self._shares(regions, alarm)))

    def mistakes(self, regions, alarm):
        shares = np.array(self._shares(regions, alarm))
        masks = [regions == number for number in range(1, regions.max() + 1)]
        unions = [(mask & alarm).sum() / (mask | alarm).sum() for mask in masks]
        return {
            "all_pixels": alarm[regions > 0].mean(),
            "touched": (shares > 0).mean(),
            "union": np.mean(unions),
            "of_the_alarm": (alarm & (regions > 0)).sum() / alarm.sum(),
            "background": np.mean([alarm[regions == 0].mean(), *shares]),
            "total": shares.sum(),
            "each_region": shares,
            "largest": shares[1],
        }

    def _shares(self, regions, alarm):
        """What share of each region is in alarm."""
        return [alarm[regions == number].mean() for number in range(1, regions.max() + 1)]


class AreaUpTo(Exercise):
    key = "area_up_to"
    tolerance = 1e-9

    def cases(self):
        rng = np.random.default_rng(62)
        for n, limit in ((5, 0.3), (12, 0.3), (40, 0.05)):
            false_alarms = np.concatenate([[0], np.sort(rng.random(n - 2)) ** 2, [1]])
            overlap = np.concatenate([[0], np.sort(rng.random(n - 2)) ** 0.5, [1]])
            if n > 5:  # where only defects are added, the overlap rises and false alarms do not
                false_alarms[1:3], false_alarms[6] = 0, false_alarms[5]
            yield false_alarms, overlap, limit

    def solution(self, false_alarms, overlap, limit):
        return float(np.trapezoid(*self._up_to(false_alarms, overlap, limit)) / limit)

    def mistakes(self, false_alarms, overlap, limit):
        heights, places = self._up_to(false_alarms, overlap, limit)
        area = np.trapezoid(heights, places)
        inside = false_alarms <= limit
        short_of_limit = np.trapezoid(overlap[inside], false_alarms[inside])
        return {
            "not_over_limit": area,
            "whole": np.trapezoid(overlap, false_alarms),
            "stops_short": short_of_limit / limit,
            "its_own_end": short_of_limit / max(false_alarms[inside][-1], 1e-9),
            "stairs": (heights[1:] * np.diff(places)).sum() / limit,
            "value_at_limit": heights[-1],
            "mean_of_corners": heights.mean(),
        }

    def _up_to(self, false_alarms, overlap, limit):
        """Heights and places of the curve's corners, the last one at the limit."""
        inside = false_alarms < limit
        at_limit = np.interp(limit, false_alarms, overlap)
        return np.append(overlap[inside], at_limit), np.append(false_alarms[inside], limit)


class TwoLayers(Exercise):
    key = "two_layers"
    tolerance = 1e-9
    returns = "array"

    def cases(self):
        rng = np.random.default_rng(63)
        for n, high, wide, fine, coarse in ((1, 2, 2, 2, 3), (2, 4, 4, 3, 3), (2, 4, 6, 2, 4)):
            yield (
                rng.normal(size=(n, high, wide, fine)),
                rng.normal(size=(n, high // 2, wide // 2, coarse)),
            )

    def solution(self, fine, coarse):
        return np.concatenate([fine, self._enlarged(coarse)], axis=3)

    def mistakes(self, fine, coarse):
        down, across = fine.shape[1] // coarse.shape[1], fine.shape[2] // coarse.shape[2]
        tiled = np.tile(coarse, (1, down, across, 1))
        fewer = fine[:, ::2, ::2]
        means = (fewer + fine[:, 1::2, ::2] + fine[:, ::2, 1::2] + fine[:, 1::2, 1::2]) / 4
        return {
            "tiled": np.concatenate([fine, tiled], axis=3),
            "coarse_first": np.concatenate([self._enlarged(coarse), fine], axis=3),
            "on_the_coarse_grid": np.concatenate([fewer, coarse], axis=3),
            "fine_averaged": np.concatenate([means, coarse], axis=3),
            "coarse_alone": self._enlarged(coarse),
        }

    def _enlarged(self, coarse):
        return coarse.repeat(2, axis=1).repeat(2, axis=2)


class GreedyCoreset(Exercise):
    key = "greedy_coreset"
    tolerance = 1e-9
    returns = "whole"

    def cases(self):
        rng = np.random.default_rng(64)
        for n, d, n_kept in ((9, 2, 4), (60, 3, 12), (200, 8, 25)):
            centres = rng.normal(size=(5, d)) * 6
            yield centres[rng.integers(5, size=n)] + rng.normal(size=(n, d)), n_kept

    def solution(self, patches, n_kept, update=np.minimum):
        kept, distances = [0], self._to(patches, 0)
        while len(kept) < n_kept:
            kept.append(int(distances.argmax()))
            distances = update(distances, self._to(patches, kept[-1]))
        return np.array(kept)

    def mistakes(self, patches, n_kept):
        from_first = np.argsort(-self._to(patches, 0), kind="stable")
        nearest = np.sort(np.argsort(self._to(patches, 0), kind="stable")[:n_kept])
        return {
            "to_the_last": self.solution(patches, n_kept, lambda old, new: new),
            "sum": self.solution(patches, n_kept, np.add),
            "farthest_from_all": self.solution(patches, n_kept, np.maximum),
            "from_the_first": np.array([0, *from_first[: n_kept - 1]]),
            "nearest_ones": nearest,
            "first_rows": np.arange(n_kept),
            "one_too_many": self.solution(patches, n_kept + 1),
            "one_too_few": self.solution(patches, n_kept - 1),
            "without_the_first": self.solution(patches, n_kept + 1)[1:],
            "rows_themselves": patches[self.solution(patches, n_kept)],
        }

    def _to(self, patches, row):
        return ((patches - patches[row]) ** 2).sum(axis=1)


class BankMap(Exercise):
    key = "bank_map"
    tolerance = 1e-6
    returns = "array"

    def cases(self):
        rng = np.random.default_rng(65)
        for m, high, wide, channels in ((4, 2, 3, 2), (10, 5, 4, 3), (30, 6, 6, 8)):
            yield rng.normal(size=(m, channels)), rng.normal(size=(high, wide, channels))

    def solution(self, bank, features):
        high, wide, channels = features.shape
        return self._table(bank, features).min(axis=1).reshape(high, wide)

    def mistakes(self, bank, features):
        high, wide, channels = features.shape
        table = self._table(bank, features)
        return {
            "flat": table.min(axis=1),
            "turned": table.min(axis=1).reshape(high, wide).T,
            "mean": table.mean(axis=1).reshape(high, wide),
            "farthest": table.max(axis=1).reshape(high, wide),
            "root": np.sqrt(table.min(axis=1)).reshape(high, wide),
            "which": table.argmin(axis=1).reshape(high, wide),
            "of_the_bank": table.min(axis=0),
        }

    def _table(self, bank, features):
        return distances_by_product(bank, features.reshape(-1, features.shape[2]))


EXERCISES = [
    NearestDistance(),
    RegionOverlap(),
    AreaUpTo(),
    TwoLayers(),
    GreedyCoreset(),
    BankMap(),
]
