"""A progress bar for long work: shown to people, silent under tests and when the lessons are re-executed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from tqdm.auto import tqdm


def progress(items: Iterable, text: str, *, shown: bool = True, total: int | None = None) -> tqdm:
    """Iterate over `items` behind a bar that vanishes at the end.

    `shown=False` or PANDALIB_QUIET=1 hides it; so does a standard error that is neither a terminal nor a notebook's.
    """
    watched = "ipykernel" in sys.modules or sys.stderr.isatty()
    return tqdm(
        items,
        desc=text,
        total=total,
        leave=False,
        disable=not (shown and watched) or os.environ.get("PANDALIB_QUIET") == "1",
    )
