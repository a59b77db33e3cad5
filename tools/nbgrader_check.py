"""Assign the lessons with nbgrader and let it grade submissions: are the points deserved?

    python tools/nbgrader_check.py --install    makes nbgrader's environment: `make nbgrader`
    python tools/nbgrader_check.py              the check itself

nbgrader brings another Jupyter than the one that the lessons were run with, so it lives in
`.venv-nbgrader`; the kernel that executes the submissions is this environment's. They are the
solution, the stub as it was handed out, and a common wrong answer to one exercise beside right
ones to the others; and a solution in which cells were copied, moved and deleted, mended by
`tools/submissions.py`: nbgrader refuses copied cells, and gives no points where a check is missing
or stands before its exercise. Nothing outside a temporary folder is written.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-nbgrader"
sys.path.insert(0, str(ROOT / "tools"))
import beside
from submissions import mend

PYTHON = beside.python_of(VENV)
VERSION = "0.9.6"
LESSON = "00_start_here"  # the quickest one, with two exercises
# A wrong answer that many give: in the cell of an exercise, this piece replaced by that one.
EXERCISE, RIGHT, WRONG = "auc-exercise", "(higher + 0.5 * equal)", "higher"
CHECK = "auc-check"
OTHER = "threshold-exercise"
VALIDATE = """import sys, nbformat
from nbgrader.nbgraderformat import MetadataValidator
for path in sys.argv[1:]:
    MetadataValidator().validate_nb(nbformat.read(path, as_version=4))
"""
CONFIGURATION = """c = get_config()
c.CourseDirectory.course_id = 'course'
c.ClearSolutions.code_stub = {'python': 'raise NotImplementedError("your turn")'}
c.Execute.timeout = 600
"""


def is_installed() -> bool:
    return (VENV / VERSION).is_file()


def install() -> None:
    """Make `.venv-nbgrader` from a package index; quick when it is there."""
    if not beside.install(VENV, VERSION, [f"nbgrader=={VERSION}"]):
        sys.exit("error: nbgrader could not be installed; its test is left out until then.")


def problems(paths: list[Path]) -> str:
    """What nbgrader's own validator says of the first notebook whose metadata are wrong."""
    done = subprocess.run([PYTHON, "-c", VALIDATE, *paths], capture_output=True, text=True)
    return done.stderr


def nbgrader(course: Path, *command: str) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    own["PATH"] = f"{PYTHON.parent}{os.pathsep}{own['PATH']}"  # nbgrader calls alembic by name
    for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR", "PATH"):  # not of whoever runs this
        own[f"JUPYTER_{name}"] = str(course / "jupyter")
    own["IPYTHONDIR"] = str(course / "jupyter" / "ipython")
    run = [PYTHON, "-m", "nbgrader", *command]
    done = subprocess.run(run, cwd=course, env=own, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: nbgrader {command[0]} failed:\n{done.stdout}{done.stderr}")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def submissions(released: dict, original: dict) -> dict[str, dict]:
    """Filled-in copies of the notebook that nbgrader hands out."""
    sources = {cell["id"]: "".join(cell["source"]) for cell in original["cells"]}
    marks = r"^\s*### (BEGIN|END) SOLUTION\n?"
    solved = {
        name: re.sub(marks, "", source, flags=re.M)
        for name, source in sources.items()
        if "### BEGIN SOLUTION" in source
    }
    wrong = solved | {EXERCISE: solved[EXERCISE].replace(RIGHT, WRONG)}

    def filled(answers: dict[str, str]) -> dict:
        cells = [
            one | {"source": answers.get(one["id"], one["source"])} for one in released["cells"]
        ]
        return released | {"cells": cells}

    made = {"solution": filled(solved), "stub": released, "wrong": filled(wrong)}
    lesson = nbformat.reads(json.dumps(released), as_version=4)
    notebook = nbformat.reads(json.dumps(made["solution"]), as_version=4)
    disorder(notebook.cells)
    made["mended"] = json.loads(nbformat.writes(mend(notebook, lesson)[0]))
    return made


def disorder(cells: list) -> None:
    """Copy a check, move its exercise to the end, and delete another exercise."""
    (check,) = (cell for cell in cells if cell.id == CHECK)
    cells.insert(cells.index(check), nbformat.from_dict(check | {"id": "a-copy"}))
    (exercise,) = (cell for cell in cells if cell.id == EXERCISE)
    cells.remove(exercise)
    cells.append(exercise)
    cells[:] = [cell for cell in cells if cell.id != OTHER]


def grades() -> dict[str, float]:
    """The points that nbgrader gives to each submission, and the most there are, as "all"."""
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder).resolve()
        (course / "nbgrader_config.py").write_text(CONFIGURATION, encoding="utf-8")
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel = {"argv": argv, "display_name": "the course's own", "language": "python"}
        kernel["env"] = {"PYTHONPATH": str(ROOT), "PANDALIB_QUIET": "1"}
        write(course / "jupyter" / "kernels" / "python3" / "kernel.json", kernel)
        original = ROOT / "notebooks" / f"{LESSON}.ipynb"
        write(course / "source" / "lesson" / original.name, read(original))
        nbgrader(course, "generate_assignment", "lesson", "--create")
        released = read(course / "release" / "lesson" / original.name)
        for name, notebook in submissions(released, read(original)).items():
            write(course / "submitted" / name / "lesson" / original.name, notebook)
        nbgrader(course, "autograde", "lesson")
        nbgrader(course, "export")
        with open(course / "grades.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    found = {row["student_id"]: float(row["score"]) for row in rows}
    return found | {"all": float(rows[0]["max_score"])}


if __name__ == "__main__":
    if "--install" in sys.argv[1:]:
        install()
    elif not is_installed():
        sys.exit(f"error: nbgrader is not installed in {VENV.name}: run `make nbgrader` first.")
    else:
        print(problems([*ROOT.glob("notebooks/**/*.ipynb")]) or "The metadata are valid.")
        print(json.dumps(grades()))
