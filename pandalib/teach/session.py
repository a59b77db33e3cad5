"""What the reader has done since the notebook's kernel started: predictions, hints, exercises.

One kernel is one notebook's session, so a few dictionaries are all there is to it. Cells may run twice and in any
order: each entry says how things stand now.
"""

from __future__ import annotations

predictions: dict[str, str] = {}  # key -> the answer given; the reveal speaks to it
shown: dict[
    str, str
] = {}  # key -> the answer that stood when the reveal came first: a later one is hindsight
hints: dict[str, int] = {}  # exercise -> hints read
solved: dict[str, bool] = {}  # exercise -> whether its last check passed; absent: never checked


def clear() -> None:
    """Forget everything, as a new kernel does."""
    for record in (predictions, shown, hints, solved):
        record.clear()
