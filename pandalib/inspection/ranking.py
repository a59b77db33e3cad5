"""What is seen of an image, and the ranking of many."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pandalib.inspection.regions import Region


class Seen(NamedTuple):
    """One image as the detector sees it."""

    name: str
    image: np.ndarray  # uint8 (3, h, w)
    parts: dict[str, float]  # "image" and "place"
    map: np.ndarray  # float32 (h, w)
    size: tuple[int, int]  # height and width of the original
    fitted: bool  # whether the same pixels were among the normal images

    @property
    def score(self) -> float:
        return max(self.parts.values())


class Finding(NamedTuple):
    """One of the most anomalous images of a ranking."""

    number: int  # its row in the ranking
    image: np.ndarray  # uint8 (3, h, w), as the detector sees it
    map: np.ndarray  # float32 (h, w)
    size: tuple[int, int]  # height and width of the original


MOST_REGIONS = 20  # kept of an image: a map of noise has thousands


class Ranking(NamedTuple):
    """The scores of all images in the given order, and the most anomalous images with maps."""

    names: list[str]
    parts: dict[str, np.ndarray]  # "image" and "place", (n,) each
    peaks: np.ndarray  # (n, 2), where each map is largest: row and column, 0 to 1
    top: list[Finding]  # highest score first
    unreadable: list[tuple[str, str]]  # name and reason
    p_values: np.ndarray  # (n,), see `pandalib.inspection.regions.p_values`
    regions: list[list[Region]]  # of each image the `MOST_REGIONS` highest, in its own pixels
    n_regions: list[int]  # how many there are
    fitted: list[str]  # names of images that the detector was fitted with
    other_sizes: list[str]  # in pixels, of files: sizes that no normal one had

    @property
    def scores(self) -> np.ndarray:
        return larger_part(self.parts)

    @property
    def order(self) -> np.ndarray:
        """Rows from the highest score to the lowest; ties in the given order."""
        return np.argsort(-self.scores, kind="stable")


def larger_part(parts: dict[str, np.ndarray]) -> np.ndarray:
    """The score: the larger of both parts."""
    return np.maximum(parts["image"], parts["place"])
