"""A progress bar for long work: shown to people, silent in tests and in executed lessons."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized

from tqdm.auto import tqdm

EVERY = 30  # seconds between the lines of a log


def progress(
    items: Iterable,
    text: str,
    *,
    total: int | None = None,
    shown: bool = True,
    log: bool = False,
) -> Iterable:
    """Iterate over `items` behind a bar that vanishes at the end.

    Hidden without `shown`, with PANDALIB_QUIET=1, and when nobody watches: standard error is
    neither a terminal nor a notebook's. With `log` there is then a line every 30 seconds instead.
    """
    watched = "ipykernel" in sys.modules or sys.stderr.isatty()
    if log and shown and not watched and os.environ.get("PANDALIB_QUIET") != "1":
        total = len(items) if total is None and isinstance(items, Sized) else total
        return _lines(items, text, total)
    hidden = not (shown and watched) or os.environ.get("PANDALIB_QUIET") == "1"
    return tqdm(items, desc=text, total=total, leave=False, disable=hidden)


def _lines(items: Iterable, text: str, total: int | None) -> Iterator:
    began = last = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= EVERY:
            last = now
            left = "" if total is None else f" of {total}, {_time((now - began) / number * total)}"
            print(f"{text}: {number}{left}", file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return f"about {minutes:.0f} minutes in all" if minutes > 1.5 else "about a minute in all"
