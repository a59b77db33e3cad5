"""nbgrader itself, in an environment of its own: its validator, what it hands out, and the points it gives."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location(
    "tools_nbgrader_check", ROOT / "tools" / "nbgrader_check.py"
)
nbgrader_check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nbgrader_check)

with_nbgrader = pytest.mark.skipif(
    nbgrader_check.why_not() is not None, reason=str(nbgrader_check.why_not())
)


@with_nbgrader
def test_metadata_is_valid_to_nbgrader(tmp_path):
    paths = sorted((ROOT / "notebooks").glob("*.ipynb")) + sorted(
        (ROOT / "notebooks" / "student").glob("*.ipynb")
    )
    twice = nbformat.read(paths[0], as_version=4)
    for cell in twice.cells:
        if "nbgrader" in cell.metadata:
            cell.metadata.nbgrader.grade_id = "the-same"
    nbformat.write(twice, tmp_path / "twice.ipynb")
    problems = nbgrader_check.validate([*paths, tmp_path / "twice.ipynb"])
    assert list(problems) == [str(tmp_path / "twice.ipynb")], (
        problems
    )  # all of ours are valid, and the validator does see what is not


@with_nbgrader
def test_nbgrader_assigns_and_grades_a_lesson():
    result = nbgrader_check.run()
    lesson = f"{nbgrader_check.LESSON}.ipynb"
    teacher = nbformat.read(ROOT / "notebooks" / lesson, as_version=4)
    points = {
        cell.metadata.nbgrader.grade_id: cell.metadata.nbgrader.points
        for cell in teacher.cells
        if cell.metadata.get("nbgrader", {}).get("grade")
    }
    assert result["points"] == points and len(points) >= 2
    copy = nbformat.read(ROOT / "notebooks" / "student" / lesson, as_version=4)
    handed_out = {cell["id"]: "".join(cell["source"]) for cell in result["released"]["cells"]}
    stubs = [cell for cell in copy.cells if "NotImplementedError" in cell.source]
    assert len(stubs) == len(points) and all(
        handed_out[cell.id] == cell.source for cell in stubs
    )  # as `make student` cuts them
    grades = result["grades"]
    assert grades["solution"] == points
    assert set(grades["stub"].values()) == {0.0}
    lost = {name for name in points if grades["wrong"][name] != points[name]}
    assert lost == {"auc-check"} and grades["wrong"]["auc-check"] == 0.0


def test_a_submission_differs_from_the_solution_in_one_piece_only():
    teacher = json.loads((ROOT / "notebooks" / f"{nbgrader_check.LESSON}.ipynb").read_text())
    copy = json.loads(
        (ROOT / "notebooks" / "student" / f"{nbgrader_check.LESSON}.ipynb").read_text()
    )
    made = {
        name: ["".join(cell["source"]) for cell in notebook["cells"]]
        for name, notebook in nbgrader_check.submissions(copy, teacher).items()
    }
    assert not any(
        "SOLUTION" in source or "NotImplementedError" in source
        for name in ("solution", "wrong")
        for source in made[name]
    )
    assert sum("NotImplementedError" in source for source in made["stub"]) == 2
    ((right, wrong),) = [(a, b) for a, b in zip(made["solution"], made["wrong"]) if a != b]
    space = {"np": __import__("numpy")}
    exec(wrong, space)
    from pandalib.teach import CheckFailed, check

    with pytest.raises(CheckFailed, match="pairs with equal scores count nothing"):
        check("roc_auc_by_pairs", space["roc_auc_by_pairs"])


def test_without_the_environment_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(nbgrader_check, "VENV", tmp_path / ".venv-nbgrader")
    assert nbgrader_check.why_not().endswith(
        "is not installed in .venv-nbgrader: run `make nbgrader` first"
    )
    with pytest.raises(nbgrader_check.Trouble, match="run `make nbgrader` first"):
        nbgrader_check.run()


def test_a_failed_installation_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    venv = tmp_path / ".venv-nbgrader"
    monkeypatch.setattr(nbgrader_check, "VENV", venv)
    monkeypatch.setattr(nbgrader_check, "PYTHON", venv / "bin" / "python")
    monkeypatch.setattr(nbgrader_check, "VERSION", "0.0.0.dev0")
    empty = tmp_path / "no packages here"
    empty.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", empty.as_uri())
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert nbgrader_check.main(["--install"]) == 1
    assert "could not be installed" in capsys.readouterr().err and not venv.exists()


def test_its_help_has_no_inner_options():
    shown = subprocess.run(
        [sys.executable, ROOT / "tools" / "nbgrader_check.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--install" in shown and "--grades" not in shown
