"""Students' copies: the lesson without its solutions, and every cell of it runs.

One copy is executed in full, the quickest. The others take minutes, and what is not cut in them is what nbval
executes in the lessons themselves: of these the cells that differ are run, in a kernel, with the imports, the questions
and the card. What they leave open is whether the library's function, which stands in for a stub, does in the lesson
what the solution does: so the two are compared on the inputs of the checks, and on tensors where the lesson has them.
`python tools/student.py --execute` runs all copies in full, as was done for those committed.
"""

import ast
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest

from pandalib.teach import session
from pandalib.teach.checks import NotSolved, check
from pandalib.teach.exercises import EXERCISES
from pandalib.teach.strings import table

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("tools_student", ROOT / "tools" / "student.py")
student = importlib.util.module_from_spec(spec)
spec.loader.exec_module(student)

LESSONS = {
    path.name: nbformat.read(path, as_version=4)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
COPIES = {
    path.name: nbformat.read(path, as_version=4)
    for path in sorted((ROOT / "notebooks" / "student").glob("*.ipynb"))
}
FULL = ("00_start_here.ipynb",)
checkpoint_every = pytest.mark.parametrize("name", LESSONS)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def imports_of(notebook):
    first = next(cell for cell in code(notebook) if cell.id != "colab")
    assert first.id == "setup"
    return "\n".join(
        ast.unparse(node)
        for node in ast.parse(first.source).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    )


def exercises_of(name):
    """The keys of a lesson's exercises and the functions that its cells check."""
    return re.findall(
        r'^check\("([^"]+)", (\w+)\)',
        "\n".join(cell.source for cell in code(LESSONS[name])),
        flags=re.M,
    )


def test_there_is_a_copy_of_each_lesson_and_of_nothing_else():
    assert list(COPIES) == list(LESSONS)


@checkpoint_every
def test_a_copy_differs_in_the_solutions_only(name):
    lesson, copy = LESSONS[name], COPIES[name]
    shown = {
        cell.id: cell
        for cell in lesson.cells
        if "after-solution" not in cell.metadata.get("tags", [])
    }
    assert [cell.id for cell in copy.cells] == list(shown)
    for cell in code(copy):
        assert (cell.source != shown[cell.id].source) == (
            "### BEGIN SOLUTION" in shown[cell.id].source
        ), cell.id
        tags = (
            {"tags": ["raises-exception"]} if cell.source.startswith("check(") else {}
        )  # "Run All Cells" goes on past a stub
        assert cell.metadata == shown[cell.id].metadata | tags


@checkpoint_every
def test_links_of_a_copy_lead_somewhere(name):
    text = "\n".join(cell.source for cell in COPIES[name].cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        assert (
            target.startswith("https://") or (ROOT / "notebooks" / "student" / target).exists()
        ), target


@pytest.mark.parametrize("name", FULL)
def test_a_copy_runs_with_only_its_stubs_open(name):
    notebook = nbformat.from_dict(COPIES[name])
    assert student.execute(notebook, ROOT / "notebooks" / "student") == []
    assert all(cell.execution_count for cell in code(notebook))
    assert card_of(notebook).startswith(f"**Your card for lesson {name[:2]}**")
    assert f"Exercises: 0 of {len(exercises_of(name))} solved." in card_of(notebook)


@pytest.mark.parametrize("name", [name for name in LESSONS if name not in FULL])
def test_the_cells_that_differ_run_with_only_the_stubs_open(name):
    notebook = nbformat.from_dict(COPIES[name])
    parts = ("predict(", "check(", "card(")
    notebook.cells = [
        cell
        for cell in code(notebook)
        if cell.id == "setup"
        or cell.source.startswith(parts)
        or "NotImplementedError" in cell.source
    ]
    notebook.cells[0].source = imports_of(
        notebook
    )  # drawing the images takes seconds, and no question needs them
    assert student.execute(notebook, ROOT / "notebooks" / "student") == []
    n = len(exercises_of(name))
    assert sum("NotImplementedError" in cell.source for cell in notebook.cells) == n
    assert f"Exercises: 0 of {n} solved. Open: " in card_of(notebook)


def card_of(notebook):
    (output,) = next(cell for cell in notebook.cells if cell.id == "card").outputs
    return output.data["text/markdown"]


def test_what_is_no_answer_to_a_stub_is_a_problem():
    cell = nbformat.v4.new_code_cell
    first = 'from pandalib.teach import check\ndef fair(ours, theirs):\n    raise NotImplementedError("your turn")'
    cells = [
        first,
        'check("fair", fair)',
        "fair({}, {})",
        "unknown",
        'check("fair", lambda *rows: None)',
        'check("fair", 1 / 0)',
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[cell(source, id=f"cell-{number}") for number, source in enumerate(cells)]
    )
    notebook.cells[2].source = "fair.stands_in_for({}, {})"
    problems = student.execute(notebook, ROOT)
    assert [problem.split(":")[0] for problem in problems] == [
        "cell-2",
        "cell-3",
        "cell-4",
        "cell-5",
    ]
    assert (
        problems[0] == "cell-2: NotImplementedError: your turn"
        and "NameError" in problems[1]
        and "CheckFailed" in problems[2]
    )


# --- the stub, the solution, and what stands in ------------------------------------------------------------------


def functions(name, notebooks, keep):
    """The functions of the exercises as a lesson or its copy defines them, with the names that its set-up imports."""
    space = {}
    exec(imports_of(notebooks[name]), space)
    for cell in code(notebooks[name]):
        if keep in cell.source:
            exec(cell.source, space)
    return space


PAIRS = [(name, key, function) for name in LESSONS for key, function in exercises_of(name)]


@pytest.mark.parametrize(("name", "key", "function"), PAIRS)
def test_the_unchanged_stub_never_passes(name, key, function, capsys):
    session.clear()
    space = functions(name, COPIES, "NotImplementedError")
    for _ in range(2):
        with pytest.raises(NotSolved):
            check(key, space[function])
    assert capsys.readouterr().out == "" and session.solved == {key: False}


@pytest.mark.parametrize(("name", "key", "function"), PAIRS)
def test_what_stands_in_does_what_the_solution_does(name, key, function, capsys):
    solution = functions(name, LESSONS, "### BEGIN SOLUTION")[function]
    check(key, solution)
    assert capsys.readouterr().out.startswith("Right: ")
    space = functions(name, COPIES, "NotImplementedError")
    with pytest.raises(NotSolved):
        check(key, space[function])
    for case in EXERCISES[key].cases():
        ours, theirs = solution(*case), space[function](*case)
        assert np.shape(ours) == np.shape(theirs) and np.allclose(ours, theirs, rtol=1e-6)
        assert isinstance(ours, (int, np.integer)) == isinstance(
            theirs, (int, np.integer)
        )  # a number of epochs is a range's end


@pytest.mark.parametrize("function", ["compactness_loss", "clip_gradient"])
def test_lesson_02_trains_with_what_stands_in(function):
    import torch

    gradients = []
    for notebooks, keep in ((LESSONS, "### BEGIN SOLUTION"), (COPIES, "NotImplementedError")):
        space = functions("02_collapse.ipynb", notebooks, keep)
        if notebooks is COPIES:
            with pytest.raises(NotSolved):
                check(function, space[function])
        features = torch.linspace(-1, 2, 12).reshape(4, 3).requires_grad_()
        second = torch.tensor([0.5, 0.1, -0.2]) if function == "compactness_loss" else 0.3
        value = space[function](
            features if function == "compactness_loss" else features.flatten(), second
        )
        gradients.append(torch.autograd.grad(value.sum(), features)[0])
    assert torch.allclose(*gradients)


# --- the card in the lesson --------------------------------------------------------------------------------------


@checkpoint_every
def test_a_lesson_ends_with_its_card(name):
    lesson = name[:2]
    last = code(LESSONS[name])[-1]
    assert last.id == "card" and last.source == f'card("{lesson}")'
    entries = table()["exercise"]
    assert [key for key in entries if entries[key].get("lesson") == lesson] == [
        key for key, _ in exercises_of(name)
    ]
    keys = [key for key in table()["predict"] if key.startswith(f"{lesson}-")]
    sources = "\n".join(cell.source for cell in code(LESSONS[name]))
    assert sorted(keys) == sorted(re.findall(r'^predict\("([^"]+)"\)', sources, flags=re.M))


@checkpoint_every
def test_the_sections_to_reread_are_there(name):
    headings = re.findall(
        r"^#{2,3} (.*)$",
        "\n".join(cell.source for cell in LESSONS[name].cells if cell.cell_type == "markdown"),
        flags=re.M,
    )
    asked = [table()["exercise"][key] for key, _ in exercises_of(name)]
    asked += [entry for key, entry in table()["predict"].items() if key.startswith(f"{name[:2]}-")]
    assert {entry.get("section") for entry in asked} <= set(headings)


@checkpoint_every
def test_effort_is_declared(name):
    text = "\n".join(cell.source for cell in LESSONS[name].cells if cell.cell_type == "markdown")
    declared = re.findall(
        r"^### Exercise (\d): .*\n\n\*(Easy|Medium|Hard), (\d+) minutes\.\*", text, flags=re.M
    )
    assert [int(number) for number, _, _ in declared] == list(
        range(1, len(exercises_of(name)) + 1)
    ) and 2 <= len(declared) <= 4


# --- drift -------------------------------------------------------------------------------------------------------


@pytest.fixture
def a_course(tmp_path, monkeypatch, capsys):
    """One lesson and its copy, in a folder of their own."""
    monkeypatch.setattr(student, "ROOT", tmp_path)
    folder = tmp_path / "notebooks"
    (folder / "student").mkdir(parents=True)
    nbformat.write(LESSONS["00_start_here.ipynb"], folder / "00_start_here.ipynb")
    assert student.main([]) == 0
    assert student.main(["--check"]) == 0
    capsys.readouterr()
    return folder


def test_drift_is_found_by_content(a_course, capsys):
    path = a_course / "student" / "00_start_here.ipynb"
    path.write_text(path.read_text().replace("\n", "\n  "))  # laid out in another way
    assert student.main(["--check"]) == 0
    copy = nbformat.read(path, as_version=4)
    copy.cells[3].source += "\n# a word more"
    nbformat.write(copy, path)
    assert student.main(["--check"]) == 1
    assert capsys.readouterr().err == "out of date: 00_start_here.ipynb. Run `make student`.\n"
    assert student.main(["--force"]) == 0 and student.main(["--check"]) == 0


NAME = "00_start_here.ipynb"


def change(path):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\n\nA sentence more."
    nbformat.write(notebook, path)
    return path.read_bytes()


def git(*arguments, cwd):
    settings = ("user.name=test", "user.email=test@example.org", "commit.gpgsign=false")
    options = [part for setting in settings for part in ("-c", setting)]
    subprocess.run(["git", *options, *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.mark.parametrize("state", ["no git", "not in git", "in git"])
def test_answers_are_overwritten_only_by_force(a_course, capsys, monkeypatch, state):
    if state == "no git":
        monkeypatch.setattr(student.shutil, "which", lambda name: None)
    elif not shutil.which("git"):
        pytest.skip("no git on this machine")
    else:
        git("init", "--quiet", cwd=a_course)
    if state == "in git":
        git("add", ".", cwd=a_course)
        git("commit", "--quiet", "-m", "a course", cwd=a_course)
    copy = a_course / "student" / NAME
    answers = change(copy)
    assert student.main([]) == 1 and copy.read_bytes() == answers
    said = capsys.readouterr().err
    assert f"notebooks/student/{NAME} holds text that git does not" in said
    assert "copy it into my/" in said and "ARGS=--force" in said
    assert student.main(["--force"]) == 0 and student.main(["--check"]) == 0


def test_a_copy_that_git_holds_follows_its_lesson(a_course):
    if not shutil.which("git"):
        pytest.skip("no git on this machine")
    git("init", "--quiet", cwd=a_course)
    git("add", ".", cwd=a_course)
    change(a_course / NAME)
    assert student.main(["--check"]) == 1
    assert student.main([]) == 0 and student.main(["--check"]) == 0


# --- my/, where a student works -----------------------------------------------------------------


def test_my_folder_is_filled_once_and_its_links_lead_somewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(student, "ROOT", tmp_path)
    shutil.copytree(ROOT / "notebooks" / "student", tmp_path / "notebooks" / "student")
    my, given = tmp_path / "my", tmp_path / "notebooks" / "student" / NAME
    assert student.main(["--my"]) == 0
    assert sorted(path.name for path in my.glob("*.ipynb")) == list(LESSONS)
    n_outside = 0
    for path in my.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        assert code(notebook) == code(COPIES[path.name])
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        for target in re.findall(r"\]\(([^)\s#:]+)[:#)]", text):
            if not target.startswith("http"):
                outside = target.startswith("../")
                n_outside += outside
                assert (ROOT / target[3:] if outside else my / target).exists(), (path.name, target)
    assert n_outside > 3
    answers = change(my / NAME)
    assert student.main(["--my"]) == 0 and (my / NAME).read_bytes() == answers
    assert capsys.readouterr().out == ""

    change(given)  # a newer version came with `git pull`
    assert student.main(["--my"]) == 0 and (my / NAME).read_bytes() == answers
    (line,) = capsys.readouterr().out.splitlines()
    assert f"newer version of my/{NAME};" in line and "rename yours" in line
    (my / NAME).rename(my / "mine.ipynb")
    assert student.main(["--my"]) == 0 and student.main(["--my"]) == 0
    assert capsys.readouterr().out == "" and "A sentence more." in (my / NAME).read_text()
    assert (my / "mine.ipynb").read_bytes() == answers


def test_lab_opens_the_students_copy_and_teach_the_original():
    def commands(target):
        shown = subprocess.check_output(["make", "-n", target], cwd=ROOT, text=True)
        return shown.replace("\\\n", " ").splitlines()

    *_, fill, lab = commands("lab")
    assert fill.endswith("tools/student.py --my")
    assert f"default_url=/lab/tree/my/{NAME} " in lab
    *_, teach = commands("teach")
    assert f"default_url=/lab/tree/notebooks/{NAME} " in teach
    assert "/my/" in (ROOT / ".gitignore").read_text().splitlines()


def test_a_copy_of_no_lesson_is_named(a_course, capsys):
    (a_course / "student" / "99_gone.ipynb").write_bytes(
        (a_course / "student" / "00_start_here.ipynb").read_bytes()
    )
    assert student.main(["--check"]) == 1 and "99_gone.ipynb" in capsys.readouterr().err
    assert (
        student.main([]) == 0 and "is the copy of no lesson: delete it" in capsys.readouterr().err
    )


def test_marks_that_do_not_match_are_refused():
    begin, end = student.BEGIN, student.END
    assert (
        student.without_solution(f"def f():\n    {begin}\n    return 1\n    {end}\nx = 1")
        == f"def f():\n    {student.STUB}\nx = 1"
    )
    for source, message in (
        (f"{begin}\n{begin}", "twice"),
        (f"{end}", "without"),
        (f"{begin}\nx = 1", "without"),
    ):
        with pytest.raises(ValueError, match=message):
            student.without_solution(source)
