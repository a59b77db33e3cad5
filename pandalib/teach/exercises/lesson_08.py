"""Lesson 08: rank agreement, the larger of two parts, a report of a folder, alarms that are right.

The report is written twice: `folder_report` as numbers, from features; `inspect_folder` as a page
of text, from two folders. The page is read back into numbers, so its form is free beyond its table.
"""

import functools
import re
import tempfile
from pathlib import Path

import numpy as np

from pandalib.teach.exercises.base import Exercise
from pandalib.teach.exercises.neighbours import knn, leave_one_out

SIZE = 128  # at which `inspect_folder` opens both folders


class RankAgreement(Exercise):
    key = "rank_agreement"
    tolerance = 1e-6

    def cases(self):
        rng = np.random.default_rng(83)
        yield np.array([0.3, 2.0, 0.1, 1.5]), np.array([10.0, 40.0, 20.0, 90.0])
        for n, noise in ((12, 0.6), (50, 1.5), (7, 4.0)):
            common = rng.gamma(2, size=n)
            yield np.exp(common), common + noise * rng.gamma(2, size=n)

    def solution(self, one, other):
        return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])

    def mistakes(self, one, other):
        a, b = _ranks(one), _ranks(other)
        n = len(a)
        earlier = np.triu(np.ones((n, n), bool), 1)
        alike = (one[:, None] < one) == (other[:, None] < other)
        return {
            "scores_themselves": np.corrcoef(one, other)[0, 1],
            "sorted_once": np.corrcoef(np.argsort(one), np.argsort(other))[0, 1],
            "sorted_scores": np.corrcoef(np.sort(one), np.sort(other))[0, 1],
            "same_rank": (a == b).mean(),
            "pairs": alike[earlier].mean(),
            "whole_table": np.corrcoef(a, b),
            "rank_distance": np.abs(a - b).mean(),
            "squared": np.corrcoef(a, b)[0, 1] ** 2,
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
            "by_rank": (parts / self._ranked(normal)).max(axis=0),
        }

    def _ranked(self, normal):
        rank = int(np.ceil(0.9 * (normal.shape[1] + 1)))
        return np.sort(normal, axis=1)[:, rank - 1 : rank]

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
        for n, m, d, rate in ((30, 8, 5, 0.05), (47, 12, 3, 0.05), (24, 9, 4, 0.15)):
            normal = rng.normal(size=(n, d)) + 2
            far = rng.normal(size=(m, d)) * rng.uniform(0.5, 3, size=(m, 1)) + 2
            yield normal, far, rate  # k as it is by default

    def solution(self, normal, new, rate=0.05, k=2):
        return _rows(normal, new, rate, k)

    def mistakes(self, normal, new, rate=0.05, k=2):
        right = _rows(normal, new, rate, k)
        scores = knn(normal, new, k)
        own = knn(normal, normal, k)
        by_file = right[np.argsort(right[:, 0])]
        unsorted = np.stack([right[:, 0], by_file[:, 1], by_file[:, 2]], axis=1)
        return {
            "self_kept": _rows(normal, new, rate, k, normal_scores=own),
            "threshold_from_the_new": _rows(normal, new, rate, k, threshold_of=scores),
            "least_first": right[::-1],
            "in_order_of_files": by_file,
            "names_out_of_order": unsorted,
            "not_counted_in": _rows(normal, new, rate, k, counted_in=0),
            "share_below": right * [1, 1, -1] + [0, 0, 1],
            "not_over_threshold": _rows(normal, new, rate, k, relative=False),
            "no_correction": _rows(normal, new, rate, k, correction=0),
            "largest_normal": _rows(normal, new, 0.0, k),
            "new_among_themselves": _rows(normal, new, rate, k, scores=leave_one_out(new, k)),
            "one_neighbour": _rows(normal, new, rate, 1),
            "by_quantile": self._by_quantile(normal, new, rate, k),
        }

    def _by_quantile(self, normal, new, rate, k):
        rows = _rows(normal, new, rate, k, relative=False)
        rows[:, 1] /= np.quantile(leave_one_out(normal, k), 1 - rate)
        return rows


class InspectFolder(Exercise):
    key = "inspect_folder"
    tolerance = 2.5e-4  # two decimals on a page beside file numbers up to 30
    returns = "page"

    def cases(self):
        for normal, new, rate in _drawn_folders():
            yield normal, new, colours_and_edges, rate

    def solution(self, normal_folder, new_folder, features, rate=0.05):
        normal, new, names = self._opened(normal_folder, new_folder)
        return _page(names, _rows(features(normal), features(new), rate), len(normal), rate)

    def mistakes(self, normal_folder, new_folder, features, rate=0.05):
        normal, new, names = self._opened(normal_folder, new_folder)
        own, normal_names = _open(new_folder, SIZE)[0], _open(normal_folder, SIZE)[1]
        a, b = features(normal), features(new)
        rows, n = _rows(a, b, rate), len(normal)
        in_order, alarms = np.sort(rows[:, 0]), rows[:, 1] > 1

        def page(rows=rows, names=names, n=n, rate=rate):
            return _page(names, rows, n, rate)

        return {
            "threshold_from_the_new": page(_rows(a, b, rate, threshold_of=knn(a, b, 2))),
            "self_kept": page(_rows(a, b, rate, normal_scores=knn(a, a, 2))),
            "least_first": page(rows[::-1]),
            "names_out_of_order": page(np.column_stack([in_order, rows[:, 1:]])),
            "in_order_of_files": page(rows[np.argsort(rows[:, 0])]),
            "normal_listed": page(_rows(a, a, rate), normal_names),
            "folders_swapped": page(_rows(b, a, rate), normal_names, len(new)),
            "both_are_normal": page(_rows(np.concatenate([a, b]), b, rate)),
            "own_proportions": page(_rows(a, features(own), rate)),
            "alarms_only": page(rows[alarms]),
            "rate_forgotten": page(_rows(a, b, 0.05)),
            "scores_themselves": page(_rows(a, b, rate, relative=False)),
        }

    def _opened(self, normal_folder, new_folder):
        normal, _ = _open(normal_folder, SIZE)
        new, names = _open(new_folder, normal.geometry)
        return normal, new, names

    def read(self, page: str, case: tuple) -> np.ndarray:
        """A page as numbers: [normal photographs, rate, 0], then a row for each photograph.

        The row: which file, counted through the new ones and then the normal ones; its number; 1
        for an alarm. ValueError with the name of a sentence if the page has not the form asked for.
        """
        files = [file.name for folder in (case[1], case[0]) for file in sorted(folder.iterdir())]
        facts = [re.search(rf"{name}: *([\d.]+\d|\d+)", page) for name in FACTS]
        if None in facts:
            raise ValueError("no_facts")
        rows = re.findall(r"^\| *(\S+\.png) *\| *([-\d.e+]+) *\| *(yes|no) *\| *$", page, re.M)
        if not rows:
            raise ValueError("no_rows")
        if any(Path(name).name not in files for name, _, _ in rows):
            raise ValueError("unknown_file")
        table = [
            [files.index(Path(name).name), float(value), alarm == "yes"]
            for name, value, alarm in rows
        ]
        return np.array([[*(float(fact[1]) for fact in facts), 0], *table], float)

    def rung(self, answer: np.ndarray, right: np.ndarray) -> str:
        """How far up the ladder a wrong page has come: the name of a sentence."""
        if sorted(answer[1:, 0]) != sorted(right[1:, 0]):
            return "files"
        if (answer[1:, 0] != right[1:, 0]).any():
            return "order"
        if not np.allclose(answer[1:, 1], right[1:, 1], atol=0.006, rtol=0):
            return "values"
        return "alarms" if (answer[1:, 2] != right[1:, 2]).any() else "facts"


FACTS = ("Normal photographs", "False alarms promised")


def _page(names, rows, n_normal, rate) -> str:
    """The page that the solution writes."""
    facts = f"Normal photographs: {n_normal}. False alarms promised: {rate:g}."
    table = ["| file | times the threshold | alarm |", "|---|---|---|"]
    for number, multiple, _ in rows:
        alarm = "yes" if multiple > 1 else "no"
        table.append(f"| {names[int(number)]} | {multiple:.2f} | {alarm} |")
    return "\n".join(["# Report", "", facts, "", *table, ""])


def colours_and_edges(images) -> np.ndarray:
    """Stands in for a network in the check: mean colours on a grid, and steps between pixels."""
    images = np.asarray(images[:], np.float64) / 255
    n, channels, high, wide = images.shape
    colours = images.reshape(n, channels, 4, high // 4, 4, wide // 4).mean(axis=(3, 5))
    steps = [np.abs(np.diff(images, axis=axis)).mean(axis=(2, 3)) for axis in (2, 3)]
    return np.concatenate([colours.reshape(n, -1), *(20 * one for one in steps)], axis=1)


def _open(folder, geometry):
    from pandalib.datasets.folder import open_images  # the other lessons' checks read no file

    return open_images(folder, geometry)


@functools.cache
def _stock() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="pandalib-")  # goes when Python ends


@functools.cache
def _drawn_folders() -> tuple:
    """Two pairs of tiny folders: striped plates, some with a spot; the second is not square."""
    from PIL import Image  # as above

    rng, found = np.random.default_rng(86), []
    for pair, (n, m, size, new_size, rate) in enumerate(
        ((24, 7, (32, 32), (32, 32), 0.05), (21, 6, (24, 48), (32, 32), 0.2))
    ):
        folders = []
        for kind, count, (high, wide) in (("normal", n, size), ("new", m, new_size)):
            folder = Path(_stock().name, f"{kind}{pair}")
            folder.mkdir()
            for number in rng.permutation(count):
                plate = np.full((high, wide, 3), 120.0) + rng.normal(size=3) * 12
                plate[: high // 2] += rng.normal() * 12
                plate[:, ::4] += 40  # stripes
                if kind == "new":
                    plate[-high // 4 :, -wide // 4 :] += 22 * number * np.array([0.9, -0.6, -0.5])
                pixels = np.clip(plate, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{kind}_{number:02d}.png")
            folders.append(folder)
        found.append((*folders, rate))
    return tuple(found)


# ---------------------------------------------------------------- scores and rows


def _ranks(scores):
    return np.argsort(np.argsort(scores))


def _rows(
    normal,
    new,
    rate,
    k=2,
    *,
    normal_scores=None,
    threshold_of=None,
    scores=None,
    counted_in=1,
    correction=1,
    relative=True,
):
    """The rows of the report; what comes by name is a mistake."""
    normal_scores = leave_one_out(normal, k) if normal_scores is None else normal_scores
    scores = knn(normal, new, k) if scores is None else scores
    of = np.sort(normal_scores if threshold_of is None else threshold_of)
    rank = min(int(np.ceil((1 - rate) * (len(of) + correction) - 1e-9)), len(of))
    n = len(normal) + counted_in
    p = ((normal_scores >= scores[:, None]).sum(axis=1) + counted_in) / n
    order = np.argsort(-scores)
    values = scores / of[rank - 1] if relative else scores
    return np.stack([order, values[order], p[order]], axis=1)


EXERCISES = [RankAgreement(), LargerPart(), FolderReport(), InspectFolder(), TrueAlarms()]
