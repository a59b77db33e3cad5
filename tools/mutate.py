"""Mutation testing: change the library in small ways, one at a time: does a test notice?

    python tools/mutate.py                     four modules: half an hour on two cores
    python tools/mutate.py methods.ewc metrics these only
    python tools/mutate.py --again             once more those that survived

The mutants and the running are mutmut's, which comes into an environment of its own beside this
one's packages. It works on a copy in build/mutate, so nothing here is ever changed; each mutant
meets only the tests that call its function. Ends with the table of docs/testing.md and writes what
survived to build/mutate/survivors.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import beside

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "mutate"
WORK, PYTHON = BUILD / "work", beside.python_of(BUILD / "venv")
VERSION = "3.8.1"
MODULES = ("metrics", "methods.knn", "methods.panda", "methods.ewc")
TESTS = [f"tests/test_{name}.py" for name in ("metrics", "knn", "panda", "training", "ewc")]
KILLED, SURVIVED = {1, 3}, {0, 5, 33}  # pytest's exit status; 5, 33: no test calls the function
SETTINGS = f"""\
[tool.mutmut]
source_paths = ["pandalib"]
only_mutate = {[f"pandalib/{name.replace('.', '/')}.py" for name in MODULES]}
also_copy = ["data"]
pytest_add_cli_args = ["-p", "no:nbval", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {TESTS}
timeout_multiplier = 5.0
timeout_constant = 5.0
use_git_change_detection = false

[tool.pytest.ini_options]
"""


def prepare() -> None:
    """mutmut's environment, which sees this one's packages behind its own, and the copy."""
    if not beside.install(BUILD / "venv", VERSION, [f"mutmut=={VERSION}"]):
        sys.exit("mutmut could not be installed: is there a package index?")
    (packages,) = (BUILD / "venv").glob("lib/python*/site-packages")
    paths = "\n".join(site.getsitepackages()) + "\n"
    (packages / "course.pth").write_text(paths, encoding="utf-8")
    unwanted = shutil.ignore_patterns("__pycache__", "cache", "public")
    for name in ("pandalib", "tests", "data"):
        shutil.copytree(ROOT / name, WORK / name, dirs_exist_ok=True, ignore=unwanted)
    (WORK / "pyproject.toml").write_text(SETTINGS, encoding="utf-8")


def mutmut(*arguments: str) -> str:
    # One thread each: a mutant is a fork of one process, and a pool of threads survives no fork.
    own = dict(os.environ, OMP_NUM_THREADS="1", PANDALIB_CACHE=str(BUILD / "cache"))
    own |= {"PANDALIB_QUIET": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    own.pop("PYTHONPATH", None)
    command = [PYTHON, "-m", "mutmut", *arguments]
    done = subprocess.run(command, cwd=WORK, env=own, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: mutmut {arguments[0]} failed:\n{done.stdout[-2000:]}")
    return done.stdout


def results(module: str) -> dict[str, int | None]:
    """Each mutant's name and pytest's exit status with it; None when it was not tried."""
    path = WORK / "mutants" / "pandalib" / f"{module.replace('.', '/')}.py.meta"
    return (
        json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"] if path.is_file() else {}
    )


def row(name: str, codes: list[int | None]) -> str:
    killed, survived = (sum(code in kind for code in codes) for kind in (KILLED, SURVIVED))
    late = len(codes) - killed - survived - codes.count(None)
    share = (killed + late) / len(codes)
    return f"| {name} | {len(codes)} | {killed} | {late} | {survived} | {share:.1%} |"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(MODULES))
    parser.add_argument("--again", action="store_true", help="only what survived last time")
    options = parser.parse_args(arguments)
    modules = options.modules or list(MODULES)
    names = [f"pandalib.{module}.*" for module in modules]
    if options.again:
        tried = {name: code for module in modules for name, code in results(module).items()}
        names = [name for name, code in tried.items() if code is None or code in SURVIVED]
        if not names:
            sys.exit("nothing survived last time, or nothing was tried: leave out --again.")
    else:
        shutil.rmtree(WORK, ignore_errors=True)
    prepare()
    mutmut("run", "--max-children", str(os.cpu_count() or 1), *names)
    found = {module: results(module) for module in modules}
    print("| module | mutants | killed | timed out | survived | killed or timed out |")
    print("|---|---|---|---|---|---|")
    for module in modules:
        print(row(module, list(found[module].values())))
    print(row("**all**", [code for codes in found.values() for code in codes.values()]))
    left = [name for codes in found.values() for name, code in codes.items() if code in SURVIVED]
    (BUILD / "survivors.txt").write_text(
        "\n".join(mutmut("show", name) for name in left), encoding="utf-8"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
