"""Submissions in which cells were copied, deleted or moved: named, mended and graded."""

import csv
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import submissions
from student import student_copy

NAME = "00_start_here.ipynb"
KEPT = "auc-exercise auc-check threshold-exercise threshold-check".split()
WRONG = ("(higher + 0.5 * equal)", "higher")


@pytest.fixture(scope="module")
def original():
    """The exercises of a lesson and their checks, without what takes seconds."""
    notebook = nbformat.read(ROOT / "notebooks" / NAME, as_version=4)
    by_id = {cell.id: cell for cell in notebook.cells}
    code = "import numpy as np\nfrom pandalib.teach import check"
    first = [nbformat.v4.new_code_cell(code, id="setup"), nbformat.v4.new_markdown_cell("Read.")]
    notebook.cells = [*first, *(by_id[name] for name in KEPT)]
    return notebook


@pytest.fixture(scope="module")
def lesson(original):
    return student_copy(original)


@pytest.fixture
def solved(original):
    """A submission with everything right; tests change it."""
    notebook = nbformat.from_dict(original)
    for cell in notebook.cells:
        cell.source = "\n".join(line for line in cell.source.splitlines() if "SOLUTION" not in line)
    return notebook


def at(notebook, name):
    return next(n for n, cell in enumerate(notebook.cells) if submissions.key(cell) == name)


def copied(notebook, lesson, name="auc-exercise", source=None, place=None):
    """Copy a cell, as Jupyter does: nbgrader's name stays, the cell's own is new."""
    cell = nbformat.from_dict(notebook.cells[at(notebook, name)])
    cell.id = "a-copy"
    cell.source = cell.source if source is None else source
    notebook.cells.insert(at(notebook, name) + 1 if place is None else place, cell)


def stub(lesson, name="auc-exercise"):
    return lesson.cells[at(lesson, name)].source


def test_an_untouched_shape_needs_no_mending(solved, lesson):
    for submission in (solved, lesson):
        mended, remarks = submissions.mend(submission, lesson)
        assert not remarks
        assert [cell.source for cell in mended.cells] == [cell.source for cell in submission.cells]
        assert [cell.id for cell in mended.cells] == [cell.id for cell in lesson.cells]


def test_of_copies_the_last_that_is_not_the_stub_counts(solved, lesson):
    answer = solved.cells[at(solved, "auc-exercise")].source
    copied(solved, lesson, source=answer + "\n# a second thought")
    copied(solved, lesson, source=stub(lesson), place=len(solved.cells))
    mended, (remark,) = submissions.mend(solved, lesson)
    assert remark == "auc-exercise: copied; the last one that was changed counts."
    assert [submissions.key(cell) for cell in mended.cells[2:]] == KEPT
    assert mended.cells[at(mended, "auc-exercise")].source.endswith("# a second thought")


def test_what_was_deleted_comes_back(solved, lesson):
    names = ["auc-exercise", "threshold-check"]
    solved.cells = [cell for cell in solved.cells if submissions.key(cell) not in names]
    mended, (remark,) = submissions.mend(solved, lesson)
    assert remark == "auc-exercise, threshold-check: deleted, and put back as handed out."
    assert [cell.id for cell in mended.cells] == [cell.id for cell in lesson.cells]
    assert mended.cells[at(mended, "auc-exercise")].source == stub(lesson)


def test_only_what_was_moved_is_named(solved, lesson):
    solved.cells.append(solved.cells.pop(at(solved, "auc-exercise")))
    mended, (remark,) = submissions.mend(solved, lesson)
    assert remark == "auc-exercise: moved, and put back in the order of the lesson."
    assert [cell.id for cell in mended.cells] == [cell.id for cell in lesson.cells]


def test_added_cells_stay_where_they_were(solved, lesson):
    helper = nbformat.v4.new_code_cell("def helper():\n    return 1", id="setup")  # as in a copy
    solved.cells.insert(at(solved, "auc-exercise"), helper)
    helper.id = "helper"
    mended, remarks = submissions.mend(solved, lesson)
    assert not remarks
    assert [cell.id for cell in mended.cells] == [cell.id for cell in solved.cells]


def test_a_changed_check_is_that_of_the_lesson(solved, lesson):
    solved.cells[at(solved, "auc-check")].source = "check(None, None) if False else print('ok')"
    mended, (remark,) = submissions.mend(solved, lesson)
    assert remark.startswith("auc-check: checks that were changed")
    assert mended.cells[at(mended, "auc-check")].source.startswith('check("roc_auc_by_pairs"')


def test_cells_without_names_are_known_by_their_text(solved, lesson):
    for number, cell in enumerate(solved.cells):
        cell.id = f"other-{number}"
    _, remarks = submissions.mend(solved, lesson)
    assert not remarks


def test_another_lesson_is_none(lesson):
    with pytest.raises(ValueError, match="holds no exercise of this lesson"):
        submissions.mend(nbformat.v4.new_notebook(cells=lesson.cells[:2]), lesson)


def test_a_folder_is_graded_and_what_cannot_be_is_named(original, solved, lesson, tmp_path, capsys):
    def write(notebook, name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nbformat.write(notebook, tmp_path / name)

    write(original, "lesson.ipynb")
    copied(solved, lesson, source=stub(lesson))
    write(solved, "all/copied.ipynb")
    mistaken = nbformat.from_dict(solved)
    cell = mistaken.cells[at(mistaken, "auc-exercise")]
    cell.source = cell.source.replace(*WRONG)
    del mistaken.cells[at(mistaken, "threshold-exercise")]
    write(mistaken, "all/mistaken.ipynb")
    (tmp_path / "all" / "torn.ipynb").write_text('{"cells": [')
    write(nbformat.v4.new_notebook(), "all/other.ipynb")
    words = [tmp_path / "lesson.ipynb", tmp_path / "all", "--csv", tmp_path / "marks.csv"]
    assert submissions.main(list(map(str, words))) == 0
    lines = [line.partition(": ") for line in capsys.readouterr().out.splitlines()]
    said = {Path(path).stem: text for path, _, text in lines}
    assert said["copied"] == ("4 of 4. auc-exercise: copied; the last one that was changed counts.")
    assert said["mistaken"].startswith("0 of 4. threshold-exercise: deleted")
    assert "Not yet, roc_auc_by_pairs: " in said["mistaken"]
    assert "threshold_from_normals is still the stub" in said["mistaken"]
    assert said["torn"].startswith("0 of 4. The file is no notebook: ")
    assert said["other"] == "0 of 4. The file holds no exercise of this lesson."
    with open(tmp_path / "marks.csv", newline="") as file:
        rows = {Path(row["submission"]).stem: row for row in csv.DictReader(file)}
    assert [rows[name]["all"] for name in ("copied", "mistaken", "torn", "other")] == [
        "4",
        "0",
        "0",
        "0",
    ]
    assert (rows["copied"]["auc-check"], rows["copied"]["threshold-check"]) == ("2", "2")


def test_an_endless_cell_and_a_dead_kernel_are_named(solved, lesson, tmp_path):
    for source, said in (("while True: pass", "took longer than 2 s"), (KILL, "kernel died")):
        submission = nbformat.from_dict(solved)
        cell = nbformat.v4.new_code_cell(source)
        submission.cells.insert(at(submission, "threshold-exercise"), cell)
        mended, _ = submissions.mend(submission, lesson)
        points, (remark,) = submissions.grade(mended, tmp_path, seconds=2 + 28 * (source == KILL))
        assert said in remark
        assert points == {"auc-check": 2, "threshold-check": 0}


KILL = "import os\nos._exit(1)"


def test_mended_copies_are_written_and_nothing_is_run(original, solved, lesson, tmp_path, capsys):
    del solved.cells[at(solved, "auc-check")]
    for student in ("ada", "emmy"):
        (tmp_path / "in" / student).mkdir(parents=True)
        nbformat.write(solved, tmp_path / "in" / student / NAME)
    nbformat.write(original, tmp_path / NAME)
    words = [tmp_path / NAME, tmp_path / "in", "--mend", tmp_path / "out"]
    assert submissions.main(list(map(str, words))) == 0
    assert capsys.readouterr().out.count(": mended. auc-check: deleted") == 2
    for student in ("ada", "emmy"):
        mended = nbformat.read(tmp_path / "out" / student / NAME, as_version=4)
        assert [cell.id for cell in mended.cells] == [cell.id for cell in lesson.cells]


@pytest.mark.parametrize(
    ("lesson_file", "said"),
    [("none.ipynb", "cannot be read"), ("empty.ipynb", "has no check")],
)
def test_a_lesson_without_checks_is_refused(tmp_path, capsys, lesson_file, said):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "empty.ipynb")
    with pytest.raises(SystemExit):
        submissions.main([str(tmp_path / lesson_file), str(tmp_path)])
    assert said in capsys.readouterr().err
