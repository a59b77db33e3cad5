"""Students' copies: the lesson without its solutions, and every cell of it runs.

One copy is executed in full, the quickest. Of the others only the cells that differ from the lesson
are run, with the questions and the card; nbval executes the rest in the lessons themselves. What
stands in for a stub is compared with the solution on the inputs of the checks.
`python tools/student.py --execute` runs all copies in full.
"""

import ast
import importlib.util
import platform
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from pandalib.teach.checks import NotSolved, check
from pandalib.teach.exercises import EXERCISES
from pandalib.teach.lesson import session

ROOT = Path(__file__).resolve().parent.parent
STUDENT = ROOT / "notebooks" / "student"
NAME = "00_start_here.ipynb"
spec = importlib.util.spec_from_file_location("tools_student", ROOT / "tools" / "student.py")
student = importlib.util.module_from_spec(spec)
spec.loader.exec_module(student)


def notebooks(folder):
    return {path.name: nbformat.read(path, as_version=4) for path in sorted(folder.glob("*.ipynb"))}


LESSONS, COPIES = notebooks(ROOT / "notebooks"), notebooks(STUDENT)
every_lesson = pytest.mark.parametrize("name", LESSONS)
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="no git on this machine")


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def exercises_of(name):
    """The keys of a lesson's exercises and the functions that its cells check."""
    sources = "\n".join(cell.source for cell in code(LESSONS[name]))
    return re.findall(r'^check\("([^"]+)", (\w+)\)', sources, flags=re.M)


def imports_of(notebook):
    """The imports of the set-up: drawing its images takes seconds, and no question needs them."""
    (setup,) = [cell for cell in code(notebook) if cell.id == "setup"]
    nodes = [node for node in ast.parse(setup.source).body if type(node).__name__.startswith("Imp")]
    return "\n".join(map(ast.unparse, nodes))


# ---------------------------------------------------------------- the copies


def test_they_are_current():
    assert list(COPIES) == list(LESSONS)
    assert student.main(["--check"]) == 0


@every_lesson
def test_a_copy_differs_in_the_solutions_only(name):
    shown = {
        cell.id: cell
        for cell in LESSONS[name].cells
        if "after-solution" not in cell.metadata.get("tags", [])
    }
    assert [cell.id for cell in COPIES[name].cells] == list(shown)
    for cell in code(COPIES[name]):
        lesson = shown[cell.id]
        assert (cell.source != lesson.source) == ("### BEGIN SOLUTION" in lesson.source), cell.id
        assert ("NotImplementedError" in cell.source) == (cell.source != lesson.source)
        # "Run All Cells" goes on past a stub.
        more = {"tags": ["raises-exception"]} if cell.source.startswith("check(") else {}
        if re.search(student.PLOTS, cell.source, flags=re.MULTILINE):
            more = {"jupyter": {"source_hidden": True}}  # its caption gives the finding away
        assert cell.metadata == lesson.metadata | more and not cell.outputs
        assert "SOLUTION" not in cell.source


@every_lesson
def test_links_of_a_copy_lead_somewhere(name):
    text = "\n".join(cell.source for cell in COPIES[name].cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        assert target.startswith("https://") or (STUDENT / target).exists(), target


@every_lesson
def test_a_copy_runs_with_only_its_stubs_open(name):
    notebook = nbformat.from_dict(COPIES[name])
    if name != NAME:
        parts = ("predict(", "check(", "card(")
        notebook.cells = [
            cell
            for cell in code(notebook)
            if cell.id == "setup"
            or cell.source.startswith(parts)
            or "NotImplementedError" in cell.source
        ]
        notebook.cells[0].source = imports_of(notebook)
    assert student.execute(notebook, STUDENT) == []
    assert all(cell.execution_count for cell in code(notebook))
    (output,) = next(cell for cell in notebook.cells if cell.id == "card").outputs
    card, n = output.data["text/markdown"], len(exercises_of(name))
    assert card.startswith(f"**Your card for lesson {name[:2]}**")
    assert f"Exercises: 0 of {n} solved. Open: " in card


def test_what_is_no_answer_to_a_stub_is_a_problem():
    sources = [
        "from pandalib.teach import check\n"
        "def fair(ours, theirs):\n"
        "    raise NotImplementedError('your turn')",
        'check("fair", fair)',
        "fair.stands_in_for({}, {})",
        "unknown",
        'check("fair", lambda *rows: None)',
    ]
    cells = [nbformat.v4.new_code_cell(one, id=f"cell-{n}") for n, one in enumerate(sources)]
    problems = student.execute(nbformat.v4.new_notebook(cells=cells), ROOT)
    words = ["cell-2: NotImplementedError: your turn", "cell-3: NameError", "cell-4: .*CheckFailed"]
    assert all(map(re.match, words, problems)) and len(problems) == 3


# ---------------------------------------------------------------- the stub, and what stands in

PAIRS = [(name, key, function) for name in LESSONS for key, function in exercises_of(name)]


def functions(name, of, keep):
    """The functions of the exercises as a lesson or its copy defines them."""
    space = {}
    exec(imports_of(of[name]), space)
    for cell in code(of[name]):
        if keep in cell.source:
            exec(cell.source, space)
    return space


@pytest.mark.parametrize(("name", "key", "function"), PAIRS)
def test_what_stands_in_for_a_stub_does_what_the_solution_does(name, key, function, capsys):
    session.clear()
    space = functions(name, COPIES, "NotImplementedError")
    for _ in range(2):
        with pytest.raises(NotSolved):
            check(key, space[function])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "is still the stub" in said[0] and session.solved == {key: False}
    solution = functions(name, LESSONS, "### BEGIN SOLUTION")[function]
    for case in EXERCISES[key].cases():
        if EXERCISES[key].given:  # what the lesson hands over
            case = [torch.tensor(x) if isinstance(x, np.ndarray) else x for x in case]
        ours, theirs = solution(*case), space[function](*case)
        ours, theirs = (EXERCISES[key].read(answer, case) for answer in (ours, theirs))
        assert np.shape(ours) == np.shape(theirs) and np.allclose(ours, theirs, rtol=1e-6)
        whole = [isinstance(one, (int, np.integer)) for one in (ours, theirs)]
        assert whole[0] == whole[1]  # a number of epochs is the end of a range


# ---------------------------------------------------------------- drift, and whose text it is


@pytest.fixture
def a_course(tmp_path, monkeypatch):
    """One lesson and its copy, in a folder of their own."""
    monkeypatch.setattr(student, "ROOT", tmp_path)
    folder = tmp_path / "notebooks"
    (folder / "student").mkdir(parents=True)
    nbformat.write(LESSONS[NAME], folder / NAME)
    assert student.main([]) == 0 and student.main(["--check"]) == 0
    return folder


def change(path):
    """Another sentence in a notebook; its bytes."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\n\nA sentence more."
    nbformat.write(notebook, path)
    return path.read_bytes()


def commit(folder):
    who = [
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@example.org",
        "-c",
        "commit.gpgsign=false",
    ]
    for words in (["init"], ["add", "."], ["commit", "-m", "a course"]):
        subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_drift_is_found_by_content(a_course, capsys):
    path = a_course / "student" / NAME
    path.write_text(path.read_text().replace("\n", "\n  "))  # laid out in another way
    assert student.main(["--check"]) == 0
    change(path)
    assert student.main(["--check"]) == 1 and NAME in capsys.readouterr().err
    assert student.main(["--force"]) == 0 and student.main(["--check"]) == 0
    path.rename(path.with_name("99_gone.ipynb"))
    assert student.main(["--check"]) == 1 and "99_gone.ipynb" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["no git", pytest.param("in git", marks=needs_git)])
def test_answers_are_overwritten_only_by_force(a_course, capsys, monkeypatch, state):
    if state == "in git":
        commit(a_course)
    else:
        monkeypatch.setattr(student.shutil, "which", lambda name: None)
    copy = a_course / "student" / NAME
    answers = change(copy)
    assert student.main([]) == 1 and copy.read_bytes() == answers
    said = capsys.readouterr().err
    assert f"notebooks/student/{NAME} holds" in said and "ARGS=--force" in said
    assert student.main(["--force"]) == 0 and student.main(["--check"]) == 0


@needs_git
def test_a_copy_that_git_holds_follows_its_lesson(a_course):
    commit(a_course)
    change(a_course / NAME)
    assert student.main(["--check"]) == 1
    assert student.main([]) == 0 and student.main(["--check"]) == 0


def test_a_plotting_cell_is_folded_and_my_folder_opens_without_changes(tmp_path):
    """JupyterLab marks a notebook as unsaved when it has to complete its metadata."""
    cells = [
        nbformat.v4.new_code_cell(source)
        for source in ("# why\nplots.show(figure, 'finding')", "x = 1\nplots.show(figure, 'x')")
    ]
    copy = student.student_copy(nbformat.v4.new_notebook(cells=cells))
    hidden = [cell.metadata.get("jupyter", {}).get("source_hidden") for cell in copy.cells]
    assert hidden == [True, True]
    found = student.metadata_of_this_python()
    assert found["language_info"]["version"] == platform.python_version()
    assert found["kernelspec"]["display_name"] == "Python 3 (ipykernel)"


def test_my_folder_is_filled_once_and_its_links_lead_somewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(student, "ROOT", tmp_path)
    given = shutil.copytree(STUDENT, tmp_path / "notebooks" / "student")
    my = tmp_path / "my"
    assert student.main(["--my"]) == 0
    mine = notebooks(my)
    assert list(mine) == list(LESSONS)
    for name, notebook in mine.items():
        assert code(notebook) == code(COPIES[name])
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        for target in re.findall(r"\]\(([^)\s#:]+)[:#)]", text):
            if target != "https":
                outside = target.startswith("../")
                assert (ROOT / target[3:] if outside else my / target).exists(), (name, target)
    answers = change(my / NAME)
    assert student.main(["--my"]) == 0 and (my / NAME).read_bytes() == answers
    assert capsys.readouterr().out == ""

    change(given / NAME)  # a newer version came with `git pull`
    assert student.main(["--my"]) == 0 and (my / NAME).read_bytes() == answers
    said = capsys.readouterr().out
    assert f"newer version of my/{NAME}" in said and "rename yours" in said
    (my / NAME).rename(my / "mine.ipynb")
    assert student.main(["--my"]) == 0 and "A sentence more." in (my / NAME).read_text()
    assert (my / "mine.ipynb").read_bytes() == answers


def test_lab_opens_the_students_copy_and_teach_the_original():
    def commands(target):
        shown = subprocess.check_output(
            ["make", "--no-print-directory", "-n", target], cwd=ROOT, text=True
        )
        return shown.replace("\\\n", " ").splitlines()

    *_, fill, lab = commands("lab")
    assert fill.endswith("tools/student.py --my") and f"/lab/tree/my/{NAME} " in lab
    assert f"/lab/tree/notebooks/{NAME} " in commands("teach")[-1]
    assert "/my/" in (ROOT / ".gitignore").read_text().splitlines()


def test_marks_that_do_not_match_are_refused():
    begin, end = student.BEGIN, student.END
    source = f"def f():\n    {begin}\n    return 1\n    {end}\nx = 1"
    assert student.without_solution(source) == f"def f():\n    {student.STUB}\nx = 1"
    for source in (f"{begin}\n{begin}", f"{end}", f"{begin}\nx = 1"):
        with pytest.raises(ValueError, match="SOLUTION"):
            student.without_solution(source)
