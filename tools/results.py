"""Make the committed tables again: `make results`, or those named in ARGS.

    python tools/results.py [NAME ...]     sweeps the grid NAME and writes docs/results/NAME
    python tools/results.py --check        names the tables that are stale; runs nothing
    python tools/results.py --stale        makes those again, and no others

NAME is a folder of docs/results with a table, and a grid of data/grids; or a page or a picture of
`OTHERS`, which a script makes. The runs of a grid are kept in build/results until the table is
there, so that an interrupted sweep goes on. The embedded grids take minutes to an hour, those of
the standard tier hours. A grid whose images are not here is named at the end.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN = ROOT / "data" / "weights" / "glyphs_resnet4.safetensors"
sys.path.insert(0, str(ROOT))
from pandalib.experiments.grids import grids, load_grid
from pandalib.experiments.results import SETTINGS, outdated
from pandalib.io import sha256_of, write_atomically

TABLES, RUNS = ROOT / "docs" / "results", ROOT / "build" / "results"
FILES = ("table.md", "table.csv", "table.png", SETTINGS)
# What no grid can make, since it changes images or features, or draws: the script that does.
OTHERS = {
    "methods": "bench/methods.py",
    "nuisance": "bench/nuisance.py",
    "since": "bench/since.py",
    "pictures": "tools/picture.py",
}


def tables() -> list[str]:
    """Names of the committed tables: folders of docs/results that a grid has made."""
    return sorted(path.parent.name for path in TABLES.glob("*/table.md"))


def why_stale(name: str) -> list[str]:
    """Why a committed table has to be made again; [] if it need not, or nobody can tell."""
    if name in OTHERS:
        return []
    if name not in grids():
        return [f"no grid of data/grids is called {name}"]
    missing = [file for file in FILES if not (TABLES / name / file).is_file()]
    if missing:
        return [f"{', '.join(missing)} missing"]
    settings = json.loads((TABLES / name / SETTINGS).read_text(encoding="utf-8"))
    grid = load_grid(name)
    if settings["grid"] != grid.name:
        return [f"it was made by the grid {settings['grid']}"]
    with open(TABLES / name / "table.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ours = (row for row in rows if row["backbone"] == OWN.stem and "weights" not in row["options"])
    of_ours = {row["weights_sha256"] for row in ours}
    reasons = ["it was made with other weights"] * bool(of_ours - {sha256_of(OWN)})
    return reasons + outdated(settings, grid.planned())


def commands(name: str) -> list[list[str]]:
    """What makes a table: the sweep, and the table of its results; or the script of a page."""
    if name in OTHERS:
        return [[sys.executable, OTHERS[name]]]
    pandalib = [sys.executable, "-m", "pandalib"]
    return [
        [*pandalib, "sweep", name, "--out", str(RUNS / name)],
        [*pandalib, "table", str(RUNS / name)],
    ]


def make(name: str) -> int:
    for command in commands(name):
        code = subprocess.run(command, cwd=ROOT).returncode
        if code:
            return code
    if name in OTHERS:
        return 0
    kept = [path.name for path in (TABLES / name).glob("*")]  # of one table, the runs as well
    for file in {*FILES, *kept}:
        source, target = RUNS / name / file, TABLES / name / file
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
        else:
            write_atomically(target, source.read_bytes())
    shutil.rmtree(RUNS / name)
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every committed table")
    parser.add_argument("--check", action="store_true", help="only name the stale ones")
    parser.add_argument("--stale", action="store_true", help="only make the stale ones")
    options = parser.parse_args(arguments)
    known = [*grids(), *OTHERS]
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"{unknown[0]!r} is no grid: expected some of {', '.join(known)}.")
    names = options.names or tables()
    reasons = {name: why_stale(name) for name in names}
    if options.check:
        for name in names:
            print(f"{name}: {'; '.join(reasons[name]) or 'up to date'}")
        return int(any(reasons.values()))
    failed = [name for name in names if (not options.stale or reasons[name]) and make(name)]
    if failed:
        print(f"not made, for the reasons above: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
