"""Lesson 00 for the browser: what goes into the page, and the page itself where it can be built."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import lite
from test_browser_only import run_lesson_00


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return lite.wheel(tmp_path_factory.mktemp("wheel"))


def test_the_lesson_is_the_students_and_fetches_what_it_needs():
    notebook = json.loads(lite.lesson())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert "piplite.install" in cells[0] and "NotImplementedError" in str(cells)
    assert "google.colab" not in str(cells) and "SOLUTION" not in str(cells)
    assert notebook["metadata"]["kernelspec"]["name"] == "python"


def test_the_wheel_is_pure_and_whole(wheel):
    assert wheel.name.endswith("py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "pandalib/teach/strings/en.toml" in names
    assert not any(name.endswith((".so", ".pyd", ".ipynb", ".png")) for name in names)


def test_the_lesson_runs_from_the_wheel_without_torch_and_faiss(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    run_lesson_00(tmp_path, tmp_path / "site")


@pytest.mark.skipif(not lite.PYTHON.is_file(), reason="run `make book ARGS=--lite` once first")
def test_the_page_is_built(tmp_path):
    page = lite.build(tmp_path / "site", tmp_path / "work")
    assert page.is_file() and (tmp_path / "site" / "files" / f"{lite.LESSON}.ipynb").is_file()
    served = json.loads((tmp_path / "site" / "pypi" / "all.json").read_text("utf-8"))
    assert "panda-course" in served
