"""The teacher's guide names what exists, lesson by lesson."""

import re
from pathlib import Path

import pytest

from pandalib.teach.strings import table

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.name)
def test_every_lesson_has_its_part(path):
    parts = re.findall(rf"^### {path.name[:2]} .*?(?=^##)", GUIDE, flags=re.M | re.S)
    assert len(parts) == 1
    for mark in ("*Goals.*", "*What goes wrong.*", "*To discuss.*", "*What to cut.*", "*Rubric.*"):
        assert parts[0].count(mark) == 1, mark
    (points,) = re.findall(r"\*Exam question \((\d+) points\)\.\*", parts[0])
    rubric = parts[0].split("*Rubric.*")[1]
    assert sum(map(int, re.findall(r"\((\d)\)", rubric))) == int(points)


def test_wrong_answers_and_exercises_in_it_exist():
    exercises = table()["exercise"]
    known = set(exercises) | {name for entry in exercises.values() for name in entry["wrong"]}
    named = [
        name
        for line in re.findall(r"^\*What goes wrong\.\*.*(?:\n.+)*", GUIDE, flags=re.M)
        for name in re.findall(r"`([a-z_]+)`", line)
    ]
    assert len(named) >= 20 and set(named) <= known, set(named) - known


def test_every_lesson_has_its_measured_time():
    rows = GUIDE.split("<!-- lessons:")[1].split("<!-- end of lessons -->")[0]
    for path in LESSONS:
        row = rf"^\| {path.name[:2]} \|.*\| \d+ \| \d+ \| (\d+|not measured) \|$"
        assert re.search(row, rows, flags=re.M), path.name
