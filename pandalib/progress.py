"""A progress bar for long work: shown to people, silent in tests and in executed lessons."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from tqdm.auto import tqdm


def progress(items: Iterable, text: str, *, total: int | None = None, shown: bool = True) -> tqdm:
    """Iterate over `items` behind a bar that vanishes at the end.

    Hidden without `shown`, with PANDALIB_QUIET=1, and when nobody watches: standard error is
    neither a terminal nor a notebook's.
    """
    watched = "ipykernel" in sys.modules or sys.stderr.isatty()
    hidden = not (shown and watched) or os.environ.get("PANDALIB_QUIET") == "1"
    return tqdm(items, desc=text, total=total, leave=False, disable=hidden)
