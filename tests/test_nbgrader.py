"""nbgrader itself, in an environment of its own: its validator, and the points that it gives."""

import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import nbgrader_check

with_nbgrader = pytest.mark.skipif(
    not nbgrader_check.is_installed(), reason="nbgrader is not installed: run `make nbgrader` first"
)


@with_nbgrader
def test_metadata_is_valid_to_nbgrader(tmp_path):
    paths = sorted((ROOT / "notebooks").glob("**/[0-9]*.ipynb"))
    lessons = [path.name for path in paths if path.parent.name == "notebooks"]
    assert sorted(lessons * 2) == sorted(path.name for path in paths)
    assert not nbgrader_check.problems(paths)
    twice = nbformat.read(paths[0], as_version=4)
    for cell in twice.cells:
        if "nbgrader" in cell.metadata:
            cell.metadata.nbgrader.grade_id = "the-same"
    nbformat.write(twice, tmp_path / "twice.ipynb")
    assert "the-same" in nbgrader_check.problems([tmp_path / "twice.ipynb"])


@with_nbgrader
def test_nbgrader_assigns_and_grades_a_lesson():
    teacher = nbformat.read(ROOT / "notebooks" / f"{nbgrader_check.LESSON}.ipynb", as_version=4)
    points = {
        cell.metadata.nbgrader.grade_id: cell.metadata.nbgrader.points
        for cell in teacher.cells
        if cell.metadata.get("nbgrader", {}).get("grade")
    }
    everything = sum(points.values())
    wrong = everything - points[nbgrader_check.CHECK]
    expected = {"solution": everything, "stub": 0, "wrong": wrong, "all": everything}
    expected["mended"] = points[nbgrader_check.CHECK]  # one exercise was deleted
    assert nbgrader_check.grades() == expected


def test_a_submission_differs_from_the_solution_in_one_piece_only():
    lesson = f"{nbgrader_check.LESSON}.ipynb"
    teacher, copy = (
        nbgrader_check.read(ROOT / "notebooks" / name) for name in (lesson, f"student/{lesson}")
    )
    made = {
        name: ["".join(cell["source"]) for cell in notebook["cells"]]
        for name, notebook in nbgrader_check.submissions(copy, teacher).items()
    }
    stubs = {name: str(made[name]).count("NotImplementedError") for name in made}
    assert "SOLUTION" not in str(made)
    assert stubs == {"solution": 0, "stub": 2, "wrong": 0, "mended": 1}
    assert sum(a != b for a, b in zip(made["solution"], made["wrong"])) == 1
