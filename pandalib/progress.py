"""A progress bar for long work: shown to people, silent under tests and when the lessons are re-executed."""

from __future__ import annotations

import os
from collections.abc import Iterable

from tqdm.auto import tqdm


def progress(items: Iterable, text: str, *, shown: bool = True, total: int | None = None) -> tqdm:
    """Iterate over `items` behind a bar that vanishes at the end; PANDALIB_QUIET=1 or `shown=False` hides it."""
    return tqdm(items, desc=text, total=total, leave=False, disable=not shown or os.environ.get("PANDALIB_QUIET") == "1")
