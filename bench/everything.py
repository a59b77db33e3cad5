"""All benches, one after the other: `python bench/everything.py`, or `make bench`. Do it on a quiet
machine.

Each is a process of its own and writes its page in docs/results; then docs/performance.md gets its
lines. One that fails is named at the end and stops nothing; one that compares with anomalib and
pyod is left out where those cannot be installed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import peers

HERE = Path(__file__).resolve().parent
BENCHES = (
    "extraction",
    "adaptation",
    "fisher",
    "segmentation",
    "segmentation_peers",
    "pixel_metrics",
    "inspector",
    "photographs",
    "growth",
    "sweep",
    "lessons",
)
WITH_PEERS = ("extraction", "segmentation_peers", "pixel_metrics", "inspector")
NO_TINY = ("lessons",)  # it writes what it measures


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "only", nargs="*", metavar="BENCH", help=f"these alone: {', '.join(BENCHES)}"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="try all of them out on little work; nothing is written"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.only) - set(BENCHES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(BENCHES)}.")
    chosen = [
        name
        for name in BENCHES
        if name in (options.only or BENCHES) and not (options.tiny and name in NO_TINY)
    ]
    left_out = {}
    if set(chosen) & set(WITH_PEERS):
        try:
            peers.install()
        except peers.Trouble as trouble:
            left_out = dict.fromkeys(set(chosen) & set(WITH_PEERS), str(trouble))
    for name in chosen:
        if name in left_out:
            continue
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        code = subprocess.run(
            [sys.executable, str(HERE / f"{name}.py"), *(["--tiny"] if options.tiny else [])]
        ).returncode
        print(f"== {name}: {time.perf_counter() - start:.0f} s", flush=True)
        if code:
            left_out[name] = f"ended with {code}"
    if not options.tiny:
        subprocess.run([sys.executable, str(HERE / "overview.py")], check=True)
    for name, why in left_out.items():
        print(f"bench: {name} has no new page: {why}", file=sys.stderr)
    return int(bool(left_out))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
