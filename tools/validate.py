"""Validate lessons that were changed, wherever they lie: `python tools/validate.py PATH ...`

A PATH is a notebook or a folder of them; docs/ci.md has the ten lines for a continuous integration.

1. Every cell is executed and compared with the output that the file holds: words must agree, digits
   may differ (`tests/nbval_words.cfg`; `--digits` compares them too, with the course's own rules).
2. Where solutions are marked, the students' copy is made and executed: its stubs may fail their
   checks, each in one line, and nothing else may fail.

Nothing is written beside the notebooks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
from student import BEGIN, execute, student_copy
from submissions import files, let_kernels_find_pandalib, read


def compare(paths: list[Path], digits: bool) -> bool:
    """Whether every cell gives the words that it gave."""
    rules = ROOT / "tests" / ("nbval_sanitize.cfg" if digits else "nbval_words.cfg")
    # Settings and plugins of a folder above, this course's own among them, stay out.
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", paths[0].parent]
    command += ["--noconftest", "-p", "no:cacheprovider", "--nbval-cell-timeout", "600"]
    command += ["--nbval", "--nbval-sanitize-with", rules, *paths]
    return subprocess.run(command).returncode == 0


def problems_of_the_copy(path: Path) -> list[str]:
    """What fails in the students' copy of a lesson beside its stubs; none without solutions."""
    lesson = read(path)
    if not any(BEGIN in cell.source for cell in lesson.cells):
        return []
    try:
        return execute(student_copy(lesson), path.parent)
    except ValueError as error:  # marks that do not match
        return [str(error)]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    parser.add_argument("--digits", action="store_true", help="compare digits as well")
    options = parser.parse_args(arguments)
    paths = [path.resolve() for path in files(options.paths)]
    if not paths:
        parser.error(f"no notebook in {', '.join(map(str, options.paths))}.")
    let_kernels_find_pandalib()
    failed = []
    for path in paths:
        try:
            wrong = problems_of_the_copy(path)
        except ValueError as error:
            parser.error(f"{path} {error}.")
        failed += wrong
        print(
            f"{path.name}, as students get it: {'; '.join(wrong) or 'only stubs fail'}", flush=True
        )
    return int(not compare(paths, options.digits) or bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
