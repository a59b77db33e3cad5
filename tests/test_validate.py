"""Changed lessons in a folder of their own: words compared, digits not, students' copies run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import get_sanitize_patterns

ROOT = Path(__file__).resolve().parent.parent
LESSON = ROOT / "notebooks" / "00_start_here.ipynb"
KEPT = "auc-exercise auc-check".split()


@pytest.fixture
def changed(tmp_path):
    """A teacher's short version of a lesson, in an empty folder, executed with other numbers."""
    cells = {cell.id: cell for cell in nbformat.read(LESSON, as_version=4).cells}
    first = "import numpy as np\nfrom pandalib.teach import check"
    result = (
        "value = roc_auc_by_pairs(np.array([0, 1, 1]), np.array([1, 2, 0]))\n"
        "print(f'ROC-AUC {value:7.3f} of at most 1')"
    )
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(first),
        *(cells[name] for name in KEPT),
        nbformat.v4.new_code_cell(result, id="result"),
        nbformat.v4.new_code_cell(SLIDER, id="slider"),
    ]
    for number, cell in enumerate(notebook.cells, 1):
        cell.execution_count = number
    said = [nbformat.v4.new_output("stream", text="ROC-AUC  -12.25 of at most 9\n")]
    notebook.cells[3].outputs = said
    caption = {
        "text/markdown": "*Figure: One, two, 3, four, five, six.*",
        "text/plain": "<IPython.core.display.Markdown object>",
    }
    notebook.cells[4].outputs = [
        nbformat.v4.new_output("display_data", data) for data in ({"image/png": ""}, caption)
    ]

    def write():
        nbformat.write(notebook, tmp_path / "mine.ipynb")
        return notebook

    write()
    return notebook, write, tmp_path


SLIDER = """from matplotlib.figure import Figure
from pandalib import plots
draw = lambda value: (Figure(), f"One, two, {value}, four, five, six.")
plots.slider(draw, [1, 2], start=2, label="steps")"""


def validate(*words):
    command = [sys.executable, ROOT / "tools" / "validate.py", *words]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    own.pop("PANDALIB_QUIET", None)
    return subprocess.run(command, cwd=words[0], env=own, capture_output=True, text=True)


def test_other_digits_are_the_same_words(changed):
    notebook, write, folder = changed
    done = validate(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine.ipynb, as students get it: only stubs fail" in done.stdout
    assert "5 passed" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["mine.ipynb"]


def test_other_words_and_a_copy_that_fails_are_named(changed):
    notebook, write, folder = changed
    notebook.cells[3].outputs[0].text = "ROC-AUC 0.500 of at least 1\n"
    sentence = "assert 'SOLUTION' in open('mine.ipynb').read() and your_number"
    notebook.cells[1].source += "\n### BEGIN SOLUTION\nyour_number = 1\n### END SOLUTION"
    notebook.cells.append(nbformat.v4.new_code_cell(sentence, id="alone", execution_count=6))
    write()
    done = validate(folder)
    assert done.returncode == 1
    assert "as students get it: auc-exercise: NotImplementedError" in done.stdout
    assert "alone: NameError: name 'your_number' is not defined" in done.stdout
    assert "1 failed, 5 passed" in done.stdout and "at least" in done.stdout


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ROC-AUC 0.912", "ROC-AUC 12", True),
        ("  7 of 10\n 12 of 10", "100 of 10\n1 of 10", True),
        ("1e-05 left", "0.3 left", True),
        ("-0.5", "0.5", True),
        ("weights 71cf0d304918", "weights 000000000000", True),
        ("0.9 above", "0.9 below", False),
        ("nan", "0.9", False),
        ("one line", "one line\nanother", False),
    ],
)
def test_the_rules(one, other, same):
    path = ROOT / "tests" / "nbval_words.cfg"
    rules = get_sanitize_patterns(path.read_text(encoding="utf-8"))
    assert len(rules) == path.read_text().count("regex:")

    def cleaned(text):
        for pattern, replacement in rules:
            text = re.sub(pattern, replacement, text)
        return text

    assert (cleaned(one) == cleaned(other)) == same


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no notebook in"), ("{}", "is no notebook"), ("", "is no notebook")],
)
def test_what_is_no_notebook_is_named(tmp_path, content, said):
    if content is not None:
        (tmp_path / "mine.ipynb").write_text(content)
    done = validate(tmp_path)
    assert done.returncode == 2 and said in done.stderr
    assert "Traceback" not in done.stderr
