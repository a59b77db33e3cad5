"""Published numbers (`data/published.json`), each with its experiment and its source.

A number that could not be read again in its source is not here. None is printed without its
experiment: data set, split, image or pixel level, one class or outlier exposure, adapted or not.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

from pandalib.io import data_folder


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes
    ----------
    data_set : str
        As in `pandalib.load_task`, for example "cifar10".
    methods : tuple of str
        The methods of this project with which it may be compared.
    published_as : str
        The name of the method in its source.
    metric : {"roc_auc", "pixel_roc_auc", "pro"}
    level : {"image", "pixel"}
    value : float
        0 to 1.
    outlier_exposure, adapted : bool
        Of the experiment; None if unknown.
    experiment, source : str
        In words: what was measured, and where the number was read.
    classes : dict of str to float
        The value of each normal class, where published.
    """

    data_set: str
    methods: tuple[str, ...]
    published_as: str
    metric: str
    level: str
    value: float
    outlier_exposure: bool
    adapted: bool | None
    experiment: str
    source: str
    classes: dict[str, float]

    def __str__(self) -> str:
        return f"{self.value:.3f}"


def published_numbers(
    data_set: str | None = None, method: str | None = None, metric: str | None = None
) -> list[Published]:
    """The published numbers, of one data set, method of this project or metric where given.

    Examples
    --------
    >>> print(*published_numbers("cifar10", "ewc"))
    0.962
    """
    return [
        number
        for number in _all()
        if data_set in (None, number.data_set)
        and metric in (None, number.metric)
        and (method is None or method in number.methods)
    ]


@functools.cache
def _all() -> list[Published]:
    """The file, whose values are in per cent."""
    text = (data_folder() / "published.json").read_text(encoding="utf-8")
    numbers = []
    for row in json.loads(text)["rows"]:
        classes = {name: value / 100 for name, value in row.pop("classes").items()}
        methods, value = tuple(row.pop("methods")), row.pop("value") / 100
        numbers.append(Published(methods=methods, value=value, classes=classes, **row))
    return numbers
