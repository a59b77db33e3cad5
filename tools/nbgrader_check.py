"""Assign a lesson with nbgrader, let it grade three submissions, and compare the points with what they deserve.

    python tools/nbgrader_check.py --install     nbgrader in an environment of its own, once: `make nbgrader`
    python tools/nbgrader_check.py [--json]      the check itself; exit 1 when points or metadata are wrong

nbgrader brings another Jupyter than the one that the lessons were run with, so it lives in `.venv-nbgrader`; the kernel
that executes the submissions is this environment's. The three: the solution, the stub as it was handed out, and a
typical wrong answer to one exercise beside right ones to the others. Nothing outside a temporary folder is written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-nbgrader"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
VERSION = "0.9.6"
LESSON = "00_start_here"  # the quickest one, with two exercises
# A wrong answer that many give: in this cell of the lesson, this piece of the solution replaced by that one.
WRONG = ("auc-exercise", "auc-check", "(higher + 0.5 * equal)", "higher")
STUB = 'raise NotImplementedError("your turn")'
MARKS = r"^\s*### (BEGIN|END) SOLUTION\n?"


class Trouble(Exception):
    """A message for the user: what was found, what was expected, what to do."""


def why_not() -> str | None:
    """None if nbgrader's environment is complete, else the reason."""
    marker = VENV / "complete"
    if marker.is_file() and marker.read_text().strip() == VERSION:
        return None
    return f"nbgrader {VERSION} is not installed in {VENV.name}: run `make nbgrader` first"


def install() -> None:
    """Make `.venv-nbgrader` from the package index that pip is set up with; quick when it is there."""
    if why_not() is None:
        print(f"nbgrader {VERSION} is installed in {VENV.name}")
        return
    shutil.rmtree(VENV, ignore_errors=True)
    for command in (
        ["-m", "venv", str(VENV)],
        ["-m", "pip", "install", "-q", "--disable-pip-version-check", f"nbgrader=={VERSION}"],
    ):
        done = subprocess.run(
            [sys.executable if "venv" in command else PYTHON, *command],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            shutil.rmtree(VENV, ignore_errors=True)
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Trouble(
                f"nbgrader could not be installed ({last}). It needs a package index; its test is left out until then."
            )
    (VENV / "complete").write_text(VERSION + "\n")
    print(f"installed nbgrader {VERSION} in {VENV.name}")


def submissions(released: dict, original: dict) -> dict[str, dict]:
    """Three filled-in copies of the notebook that nbgrader hands out."""
    solved = {
        cell["id"]: re.sub(MARKS, "", _source(cell), flags=re.M)
        for cell in original["cells"]
        if "### BEGIN SOLUTION" in _source(cell)
    }
    cell, _, piece, instead = WRONG
    if piece not in solved[cell]:
        raise Trouble(
            f"the solution in cell {cell!r} has no {piece!r} any more: name another wrong answer in tools/nbgrader_check.py."
        )
    return {
        "solution": _filled(released, solved),
        "stub": released,
        "wrong": _filled(released, solved | {cell: solved[cell].replace(piece, instead)}),
    }


def _source(cell: dict) -> str:
    return "".join(cell["source"])


def _filled(notebook: dict, sources: dict[str, str]) -> dict:
    return notebook | {
        "cells": [
            cell | {"source": sources.get(cell["id"], cell["source"])} for cell in notebook["cells"]
        ]
    }


def deserved(points: dict[str, float]) -> dict[str, dict[str, float]]:
    """The points that each of the three submissions deserves, check by check."""
    return {
        "solution": points,
        "stub": dict.fromkeys(points, 0.0),
        "wrong": points | {WRONG[1]: 0.0},
    }


def grade(course: Path) -> dict:
    """Assign the lesson in an empty folder and autograde the submissions: {"released": .., "points": .., "grades": ..}."""
    original = json.loads((ROOT / "notebooks" / f"{LESSON}.ipynb").read_text(encoding="utf-8"))
    (course / "nbgrader_config.py").write_text(
        "c = get_config()\n"
        "c.CourseDirectory.course_id = 'course'\n"
        f"c.ClearSolutions.code_stub = {{'python': {STUB!r}}}\n"
        "c.Execute.timeout = 600\n"
    )
    kernel = (
        course / "jupyter" / "kernels" / "python3"
    )  # comes before nbgrader's own: submissions need torch
    _write(
        kernel / "kernel.json",
        {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "the course's own environment",
            "language": "python",
            "env": {"PYTHONPATH": str(ROOT), "PANDALIB_QUIET": "1"},
        },
    )
    _write(course / "source" / "lesson" / f"{LESSON}.ipynb", original)
    _nbgrader(course, "generate_assignment", "lesson", "--create")
    released = json.loads(
        (course / "release" / "lesson" / f"{LESSON}.ipynb").read_text(encoding="utf-8")
    )
    for name, notebook in submissions(released, original).items():
        _write(course / "submitted" / name / "lesson" / f"{LESSON}.ipynb", notebook)
    _nbgrader(course, "autograde", "lesson")
    return {"released": released, **_inside("--grades", str(course / "gradebook.db"))}


def validate(paths: list[Path]) -> dict[str, str]:
    """What nbgrader's own validator finds wrong with the metadata: {notebook: message}, empty when all are valid."""
    return _inside("--validate", *map(str, paths))


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _environment(course: Path | None = None) -> dict[str, str]:
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JUPYTER", "IPYTHON", "VIRTUAL_ENV", "PYTHON"))
    }
    own["PATH"] = os.pathsep.join(
        [str(PYTHON.parent), own.get("PATH", "")]
    )  # nbgrader calls alembic by name
    if course is not None:  # neither read nor write the settings of whoever runs this
        own |= {
            f"JUPYTER_{name}_DIR": str(course / "jupyter" / name.lower())
            for name in ("CONFIG", "DATA", "RUNTIME")
        }
        own |= {
            "JUPYTER_PATH": str(course / "jupyter"),
            "IPYTHONDIR": str(course / "jupyter" / "ipython"),
        }
    return own


def _nbgrader(course: Path, *command: str) -> None:
    done = subprocess.run(
        [PYTHON, "-m", "nbgrader", *command],
        cwd=course,
        env=_environment(course),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Trouble(f"nbgrader {command[0]} failed:\n{done.stdout}{done.stderr}")


def _inside(*arguments: str) -> dict:
    """This file once more, run by nbgrader's Python."""
    done = subprocess.run(
        [PYTHON, __file__, *arguments], env=_environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise Trouble(done.stderr)
    return json.loads(done.stdout)


def _print_grades(database: str) -> None:
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{database}") as book:
        points = {
            cell.name: float(cell.max_score)
            for cell in book.find_notebook(LESSON, "lesson").grade_cells
        }
        found = {
            student.id: book.find_submission_notebook(LESSON, "lesson", student.id).grades
            for student in book.students
        }
        print(
            json.dumps(
                {
                    "points": points,
                    "grades": {
                        name: {grade.name: float(grade.score) for grade in grades}
                        for name, grades in found.items()
                    },
                }
            )
        )


def _print_problems(paths: list[str]) -> None:
    import nbformat
    from nbgrader.nbgraderformat import MetadataValidator

    problems = {}
    for path in paths:
        try:
            MetadataValidator().validate_nb(nbformat.read(path, as_version=4))
        except Exception as error:  # whatever it raises is what it finds wrong
            problems[path] = f"{type(error).__name__}: {error}"
    print(json.dumps(problems))


def run() -> dict:
    """The whole check, in a folder that is thrown away."""
    if why_not():
        raise Trouble(why_not())
    with tempfile.TemporaryDirectory() as folder:
        result = grade(Path(folder).resolve())
    return result | {"deserved": deserved(result["points"])}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--install",
        action="store_true",
        help="install nbgrader in an environment of its own, and stop",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--grades", help=argparse.SUPPRESS)
    parser.add_argument("--validate", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.grades:
        _print_grades(options.grades)
        return 0
    if options.validate:
        _print_problems(options.validate)
        return 0
    try:
        if options.install:
            install()
            return 0
        invalid = validate(sorted((ROOT / "notebooks").glob("**/*.ipynb")))
        result = run()
    except Trouble as error:
        print(f"nbgrader_check: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(result))
    else:
        for name, wanted in result["deserved"].items():
            got = result["grades"][name]
            print(
                f"{name:10s} {sum(got.values()):g} of {sum(result['points'].values()):g} points, {'as' if got == wanted else 'NOT as'} deserved: {got}"
            )
        print(
            "\n".join(f"{path}: {message}" for path, message in invalid.items())
            or "metadata of all notebooks: valid"
        )
    return int(bool(invalid) or result["grades"] != result["deserved"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
