"""What the benches share: the clock, sides that take turns, the machine in words, and the lines
that docs/performance.md collects.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "docs" / "results"
HEADING = "## Wanted and measured"
EQUAL = 0.005  # figures of quality that differ by less are called equal


class Line(NamedTuple):
    """One comparison: what, what is wanted of it, what was measured, and whether that is met; None
    where nothing is wanted.
    """

    what: str
    wanted: str
    measured: str
    met: bool | None

    def row(self) -> str:
        return f"| {self.what} | {self.wanted} | {self.measured} | {verdict(self.met)} |"


def verdict(met: bool | None) -> str:
    return {True: "met", False: "**NOT met**", None: ""}[met]


def faster(
    what: str,
    theirs: float,
    ours: float,
    *,
    wanted: float = 1.0,
    qualities: dict[str, tuple[float, float]] | None = None,
) -> Line:
    """The line of a peer: at least `wanted` times as fast, and no figure of quality (theirs, ours)
    lower by `EQUAL` or more.
    """
    qualities = qualities or {}
    ratio, lower = (
        theirs / ours,
        [name for name, (one, other) in qualities.items() if other <= one - EQUAL],
    )
    asked = (f"{wanted:g} times as fast" if wanted != 1 else "faster") + (
        ", no figure lower" if qualities else ""
    )
    figures = "".join(
        f"; {name} {other:.3f} against {one:.3f}" for name, (one, other) in qualities.items()
    )
    return Line(
        what,
        asked,
        f"{ratio:.3g} times as fast{figures}",
        (ratio > 1 if wanted == 1 else ratio >= wanted) and not lower,
    )


def at_most(what: str, measured: float, wanted: float, unit: str = "") -> Line:
    """A line that is met below a limit."""
    return Line(what, f"at most {wanted:g}{unit}", f"{measured:.3g}{unit}", measured <= wanted)


def section(lines: list[Line]) -> str:
    """The lines as the section that `bench/overview.py` looks for."""
    return "\n".join(
        [
            HEADING,
            "",
            "| line | wanted | measured | |",
            "|---|---|---|---|",
            *(line.row() for line in lines),
            "",
        ]
    )


def seconds(function: Callable, *arguments, times: int = 1) -> tuple[float, object]:
    """Median seconds of so many calls, and what the last one returned."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        value = function(*arguments)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), value


def alternate(
    sides: dict[str, Callable],
    rounds: int,
    *,
    times: dict[str, int] | None = None,
    warm: bool = True,
) -> tuple[dict[str, float], dict[str, object]]:
    """The sides take turns: median seconds of each over the rounds, and what each returned last.

    One turn before does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    values = {}
    for number in range(-1 if warm else 0, rounds):
        for name, side in sides.items():
            spent, values[name] = seconds(
                side, times=1 if number < 0 else (times or {}).get(name, 1)
            )
            if number >= 0:
                taken[name].append(spent)
    return {name: statistics.median(spent) for name, spent in taken.items()}, values


def machine() -> str:
    """The processor, its instructions and its cores, as far as the system tells."""
    import torch

    name = platform.machine()
    try:
        with open("/proc/cpuinfo") as facts:
            name = next(
                (line.split(":", 1)[1].strip() for line in facts if line.startswith("model name")),
                name,
            )
    except OSError:
        pass
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"{name}, {capability}, {os.cpu_count()} cores, {threads} threads used"


def mean_and_half(values) -> tuple[float, float]:
    """Mean of (n,) values, and half its 95 % interval by Student's t."""
    values = np.asarray(values, float)
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def with_half(values, sign: str = "") -> str:
    """The same as text."""
    mean, half = mean_and_half(values)
    return f"{mean:{sign}.3f} ± {half:.3f}"


def versions(*names: str) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def arguments(description: str, rounds: int, *more: tuple[str, dict]) -> argparse.Namespace:
    """`--rounds`, and `--tiny` for trying a bench out: one round, little work, and the page is
    printed and not written.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument(
        "--tiny", action="store_true", help="one round of little work; nothing is written"
    )
    for name, options in more:
        parser.add_argument(name, **options)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: expected at least 1.")
    if options.tiny:
        options.rounds = 1
    return options


def finish(name: str, page: str, tiny: bool) -> None:
    """Write docs/results/`name`, or print it in place of that."""
    from pandalib.io import write_atomically

    if tiny:
        print(page)
    else:
        write_atomically(RESULTS / name, page.encode())
