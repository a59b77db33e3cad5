"""Lesson 00 where neither torch nor faiss can be had: in a browser, under Pyodide."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from pandalib.methods import knn

ROOT = Path(__file__).resolve().parent.parent
# What Pyodide lacks of the course's dependencies.
BLOCKED = ("torch", "torchvision", "faiss", "timm", "dask", "distributed")
RUN = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
import matplotlib
matplotlib.use("agg")
for number, source in enumerate(json.load(open({cells!r}, encoding="utf-8"))):
    exec(compile(source, f"cell {{number}}", "exec"), globals())
assert not {blocked} & set(sys.modules)
"""


def run_lesson_00(tmp_path, library: Path) -> None:
    """All cells in a new Python with the library of this folder, and what is blocked missing."""
    notebook = json.loads((ROOT / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    (tmp_path / "cells.json").write_text(json.dumps(cells), encoding="utf-8")
    code = f"import sys; sys.path.insert(0, {str(library)!r})\n"
    code += RUN.format(blocked=set(BLOCKED), cells=str(tmp_path / "cells.json"))
    code += f"\nassert pandalib.__file__.startswith({str(library)!r})"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=library, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "loops and library agree: True" in done.stdout


def test_lesson_00_runs_without_torch_and_faiss(tmp_path):
    run_lesson_00(tmp_path, ROOT)


def test_numpy_finds_the_neighbours_that_faiss_finds(monkeypatch):
    rng = np.random.default_rng(0)
    gallery, queries = (rng.normal(1000, 1, (n, 30)).astype(np.float32) for n in (200, 40))
    gallery[7] = gallery[150] = queries[3]  # a duplicate, at distance zero
    by_faiss = knn.squared_distances(gallery, queries, 5), knn.leave_one_out_scores(gallery)
    monkeypatch.setattr(knn, "faiss", None)
    distances, rows = knn.squared_distances(gallery, queries, 5)
    assert np.array_equal(distances, by_faiss[0][0]) and np.array_equal(rows, by_faiss[0][1])
    assert np.array_equal(knn.leave_one_out_scores(gallery), by_faiss[1])
