"""A lesson as readers run it: cells out of order, twice, without the set-up, after a restart."""

import copy
import os

import nbformat
import pytest
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from pandalib.io import ROOT

LESSON = ROOT / "notebooks" / "00_start_here.ipynb"
# Fewer images, so that it takes seconds; the bands of `report` hold for all of them only.
SMALLER = ("seed=0, size=tier.size)", "seed=0, size=tier.size, n_train=40, n_test=6)")
WITHOUT_BANDS = """import types
import pandalib.teach.lesson as lesson
lesson.current_tier = lambda: types.SimpleNamespace(name='fewer images')"""
PATIENCE = 300  # seconds for one cell; the machine may be busy


class Reader:
    """A kernel, and the code cells of lesson 00 by number."""

    def __init__(self, client: NotebookClient):
        self.client = client
        self.cells = [cell for cell in client.nb.cells if cell.cell_type == "code"]
        self.set_up = self.find("current_tier()")

    def find(self, text: str) -> int:
        return next(number for number, cell in enumerate(self.cells) if text in cell.source)

    def run(self, number: int) -> list:
        """Run a cell; its outputs without the numbers of executions and of widgets."""
        cell = copy.deepcopy(self.cells[number])
        self.client.execute_cell(cell, 0)
        return self.plain(cell.outputs)

    def error(self, number: int) -> str:
        with pytest.raises(CellExecutionError) as caught:
            self.run(number)
        return f"{caught.value.ename}: {caught.value.evalue}"

    def say(self, code: str) -> str:
        """Run a cell of one's own; what it printed and showed."""
        cell = nbformat.v4.new_code_cell(code)
        self.client.execute_cell(cell, 0)
        return "".join(
            output.get("text", "") + str(output.get("data", {}).get("text/markdown", ""))
            for output in cell.outputs
        )

    def all(self) -> list[list]:
        return [self.run(number) for number in range(len(self.cells))]

    @staticmethod
    def plain(outputs: list) -> list:
        found = []
        for output in outputs:
            output = dict(output)
            output.pop("execution_count", None)
            output["data"] = {
                kind: value
                for kind, value in output.get("data", {}).items()
                if "widget" not in kind
            }
            if "VBox" in str(output["data"].get("text/plain")):  # the text that stands for a slider
                output["data"] = {}
            if found and output.get("name") == found[-1].get("name") == "stdout":
                found[-1]["text"] += output["text"]  # into how many pieces it is cut is chance
            else:
                found.append(output)
        return found


@pytest.fixture(scope="module")
def reader():
    notebook = nbformat.read(LESSON, as_version=4)
    changed = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            changed += SMALLER[0] in cell.source
            cell.source = cell.source.replace(*SMALLER)
    assert changed == 2
    environment = {**os.environ, "PANDALIB_QUIET": "1", "PANDALIB_TIER": "embedded"}
    client = NotebookClient(
        notebook,
        timeout=PATIENCE,
        kernel_name="python3",
        resources={"metadata": {"path": str(LESSON.parent)}},
    )
    with client.setup_kernel(env=environment):
        yield Reader(client)


@pytest.fixture(scope="module")
def first(reader):
    """A cell before the set-up, then the lesson from top to bottom."""
    reader.before_set_up = reader.error(reader.find("def pixel_score"))
    reader.say(WITHOUT_BANDS)
    outputs = reader.all()
    assert sum("image/png" in output["data"] for cell in outputs for output in cell) >= 6
    return outputs


def test_a_cell_before_the_set_up_says_what_is_missing_and_spoils_nothing(reader, first):
    assert reader.before_set_up == "NameError: name 'np' is not defined"
    assert len(first) == len(reader.cells)  # and the whole lesson ran after it


def test_cells_out_of_order_and_twice(reader, first):
    """Backwards, then in order again: every output is what it was."""
    numbers = [number for number in range(len(reader.cells)) if number != reader.set_up]
    for number in reversed(numbers):
        reader.run(number)
    again = reader.all()
    for number, (one, other) in enumerate(zip(first, again, strict=True)):
        assert one == other, reader.cells[number].source


def test_answers_hints_and_checks_twice(reader, first):
    """An answer may be changed, the last hint stays, the card counts each thing once."""
    for answer in ("a", "b", "b"):
        assert reader.say(f'predict("00-pixels", "{answer}")')
    reader.say('reveal("00-pixels")')
    one = reader.say('card("00")')
    for _ in range(2):
        reader.say('reveal("00-pixels"); predict("00-pixels", "b")')
        reader.say('check("roc_auc_by_pairs", roc_auc_by_pairs)')
    assert reader.say('card("00")') == one
    hints = [reader.say('hint("threshold_from_normals")') for _ in range(8)]
    assert len(set(hints)) > 1 and hints[-1] == hints[-2] == hints[-3]
    reader.say('predict("00-pixels")')


def test_a_kernel_restarted_in_the_middle(reader, first):
    """All definitions are gone, and Python says so; from the set-up on, the lesson is as before."""
    reader.run(reader.set_up)
    run_sync(reader.client.km.restart_kernel)(now=True)
    run_sync(reader.client.kc.wait_for_ready)(timeout=PATIENCE)
    alarm = reader.find("flat = train.reshape")
    assert reader.error(alarm) == "NameError: name 'train' is not defined"
    reader.say(WITHOUT_BANDS)
    for number, (one, other) in enumerate(zip(first, reader.all(), strict=True)):
        assert one == other, reader.cells[number].source
