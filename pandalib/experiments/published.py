"""Published numbers, each with its experiment and with a mark: verified, or unverified.

They stand in `data/published.json`. A number is never printed without the word "unverified" where it is, nor without its
experiment: data set, split, image or pixel level, one class or outlier exposure, adapted or not.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

from pandalib.io import data_folder

MARKS = ("verified", "unverified")


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes
    ----------
    data_set : as in `pandalib.load_task`, for example "cifar10".
    methods : the methods of this project beside which it may stand.
    published_as : the name of the method there.
    metric, level : roc_auc, pixel_roc_auc or pro; image or pixel.
    value : 0 to 1.
    mark : "verified" or "unverified".
    outlier_exposure, adapted : of the experiment; None where it is not known.
    experiment, source : in words.
    classes : by the name of the normal class, where that was published; 0 to 1.
    """

    data_set: str
    methods: tuple[str, ...]
    published_as: str
    metric: str
    level: str
    value: float
    mark: str
    outlier_exposure: bool
    adapted: bool | None
    experiment: str
    source: str
    classes: dict[str, float]

    def __str__(self) -> str:
        return f"{self.value:.3f} {self.mark}"


def published_numbers(
    data_set: str | None = None, method: str | None = None, metric: str | None = None
) -> list[Published]:
    """All published numbers, or those of a data set, a method of this project, a metric."""
    wanted = dict(data_set=data_set, metric=metric)
    return [
        number
        for number in _all()
        if all(value is None or getattr(number, key) == value for key, value in wanted.items())
        and (method is None or method in number.methods)
    ]


@functools.cache
def _all() -> tuple[Published, ...]:
    path = data_folder() / "published.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        numbers = [
            Published(
                **{
                    **row,
                    "methods": tuple(row["methods"]),
                    "value": row["value"] / 100,
                    "classes": {name: value / 100 for name, value in row["classes"].items()},
                }
            )
            for row in rows
        ]
        bad = [number for number in numbers if number.mark not in MARKS or not number.experiment]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is missing or damaged ({error}): restore it with `git checkout -- data/published.json`."
        ) from None
    if bad:
        raise ValueError(
            f"{path}: {bad[0].data_set} {bad[0].published_as} has no mark or no experiment: expected one of {', '.join(MARKS)}, and words."
        )
    return tuple(numbers)
