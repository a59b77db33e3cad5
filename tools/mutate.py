"""Mutation testing: change the library in small ways, one at a time, and see whether a test notices.

    python tools/mutate.py                        all four modules: some 1500 mutants, hours on one core
    python tools/mutate.py ewc knn                these only
    python tools/mutate.py --again                once more those that were not killed last time, against the tests of now

The mutants and the running are mutmut's, which comes into an environment of its own beside this one's packages. It works
on a copy in build/mutate, so that nothing here is ever changed; each mutant meets only the tests that call its function.
Ends with the table of docs/testing.md and writes what survived, as differences, to build/mutate/survivors.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "mutate"
VENV, WORK = BUILD / "venv", BUILD / "work"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
VERSION = "3.8.1"
MODULES = ("metrics", "knn", "adapt", "ewc")
TESTS = [f"tests/test_{name}.py" for name in (*MODULES, "properties")]
COPIED = ("pandalib", "tests", "data/weights")
KILLED, SURVIVED = (
    {1, 3},
    {0, 5, 33},
)  # what pytest exits with; 5 and 33: no test calls the function
# The limits of time are a multiple of what the tests of a function take on the unchanged code.
SETTINGS = f"""\
[tool.mutmut]
source_paths = ["pandalib"]
only_mutate = {[f"pandalib/{name}.py" for name in MODULES]}
also_copy = ["data"]
pytest_add_cli_args = ["-p", "no:nbval", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {TESTS}
timeout_multiplier = 5.0
timeout_constant = 5.0
use_git_change_detection = false

[tool.pytest.ini_options]
"""


class Trouble(Exception):
    """A message for the user: what was found, what was expected, what to do."""


def install() -> None:
    """Make mutmut's environment; quick when it is there. It sees this environment's packages behind its own."""
    marker = VENV / "complete"
    if marker.is_file() and marker.read_text() == VERSION:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(VENV)],
        [PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"mutmut=={VERSION}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Trouble(
                f"mutmut could not be installed ({(done.stderr.strip().splitlines() or ['no message'])[-1]}). It needs a package index."
            )
    (own,) = VENV.glob("lib/python*/site-packages")
    (own / "course.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    marker.write_text(VERSION)


def copy() -> None:
    """Bring the copy up to date; what mutmut found out before, in its folder `mutants`, stays."""
    for name in COPIED:
        shutil.copytree(
            ROOT / name,
            WORK / name,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    (WORK / "pyproject.toml").write_text(SETTINGS)


def mutmut(*arguments: str) -> None:
    """Run mutmut in the copy, on one core, with what it says in build/mutate/log.txt."""
    # One thread each: a mutant is a fork of one process, and a pool of threads does not live through a fork.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    own |= {
        "OMP_NUM_THREADS": "1",
        "PANDALIB_CACHE": str(BUILD / "cache"),
        "PANDALIB_QUIET": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with open(BUILD / "log.txt", "a") as log:
        done = subprocess.run(
            [PYTHON, *arguments], cwd=WORK, env=own, stdout=log, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise Trouble(
            f"mutmut stopped with exit status {done.returncode}: see {BUILD / 'log.txt'}."
        )


def results(module: str) -> dict[str, int | None]:
    """What came of each mutant: its name and pytest's exit status, None when it was not tried."""
    path = WORK / "mutants" / "pandalib" / f"{module}.py.meta"
    return json.loads(path.read_text())["exit_code_by_key"] if path.is_file() else {}


def table(modules) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| module | mutants | killed | timed out | survived | killed or timed out |",
        "|---|---|---|---|---|---|",
    ]
    counts = []
    for module in modules:
        codes = list(results(module).values())
        killed, survived = (sum(code in kind for code in codes) for kind in (KILLED, SURVIVED))
        counts.append(
            (len(codes), killed, len(codes) - killed - survived - codes.count(None), survived)
        )
        if None in codes:
            raise Trouble(
                f"{codes.count(None)} of {len(codes)} mutants of {module} were not tried: run it again."
            )
    for name, (total, killed, late, survived) in zip(
        (*modules, "**all**"), (*counts, tuple(map(sum, zip(*counts))))
    ):
        lines.append(
            f"| {name} | {total} | {killed} | {late} | {survived} | {(killed + late) / total:.1%} |"
        )
    return "\n".join(lines)


def write_survivors(modules) -> None:
    """The differences that no test noticed, in build/mutate/survivors.txt."""
    names = [
        name for module in modules for name, code in results(module).items() if code in SURVIVED
    ]
    code = (
        "import sys; from mutmut.mutation.diff_apply import find_mutant, get_diff_for_mutant\n"
        "for name in sys.stdin.read().split(): print(name, get_diff_for_mutant(name, path=find_mutant(name).path), sep='\\n')"
    )
    done = subprocess.run(
        [PYTHON, "-c", code], cwd=WORK, input="\n".join(names), capture_output=True, text=True
    )
    if done.returncode:
        raise Trouble(f"mutmut could not show its mutants: {done.stderr}")
    # Of each difference the changed lines: the function's name says where they are.
    kept = [line for line in done.stdout.splitlines() if re.match(r"pandalib\.|[-+](?![-+])", line)]
    (BUILD / "survivors.txt").write_text("\n".join(kept) + "\n")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(MODULES)}; default: all")
    parser.add_argument("--again", action="store_true", help="only what was not killed last time")
    parser.add_argument(
        "--report", action="store_true", help="run nothing, print the table of last time"
    )
    options = parser.parse_args(arguments)
    modules = options.modules or list(MODULES)
    try:
        unknown = sorted(set(modules) - set(MODULES))
        if unknown:
            raise Trouble(
                f"{unknown[0]!r} is no module that is mutated: expected {', '.join(MODULES)}."
            )
        if not options.report:
            names = [f"pandalib.{module}.*" for module in modules]
            if options.again:
                names = [
                    name
                    for module in modules
                    for name, code in results(module).items()
                    if code not in KILLED
                ]
            else:
                shutil.rmtree(WORK, ignore_errors=True)
            BUILD.mkdir(parents=True, exist_ok=True)
            install()
            copy()
            if names:
                mutmut("-m", "mutmut", "run", "--max-children", "1", *names)
        write_survivors(modules)
        print(table(modules))
    except Trouble as error:
        print(f"mutate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
