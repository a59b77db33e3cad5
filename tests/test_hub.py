"""What a class or a borrowed machine starts from: Binder, a container, Colab. No network."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import nbformat
import pytest

import pandalib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import colab

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGE = (ROOT / "docs" / "hub.md").read_text()


# ---------------------------------------------------------------- Binder, container


def test_binder_reads_the_environment_of_the_root():
    """repo2docker reads nothing outside .binder; a link would not survive every copy."""
    files = [ROOT / "environment.yml", ROOT / ".binder" / "environment.yml"]
    assert len({path.read_text() for path in files}) == 1, "cp environment.yml .binder/"
    script = ROOT / ".binder" / "postBuild"
    assert os.access(script, os.X_OK) and "set -e" in script.read_text()
    assert script.read_text().endswith("python -m pip install --no-deps --editable .\n")


def test_devcontainer_uses_what_the_makefile_has():
    settings = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    oldest, image = (
        tuple(map(int, re.search(r"(\d+)\.(\d+)", text).groups()))
        for text in (PROJECT["requires-python"], settings["image"])
    )
    assert image >= oldest
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    for key in ("postCreateCommand", "postAttachCommand"):
        program, target, *_ = settings[key].split()
        assert program == "make" and target in targets
    assert f"--port={settings['forwardPorts'][0]}" in settings["postAttachCommand"]


def test_ci_brings_a_browser():
    script = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", script], check=True)
    assert re.search(r"apt-get .*install .*chromium", script.read_text())


# ---------------------------------------------------------------- Colab


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/**/[0-9]*.ipynb")), ids=str)
def test_each_lesson_begins_with_the_cell(path):
    cells = nbformat.read(path, as_version=4).cells
    first = next(cell for cell in cells if cell.cell_type == "code")
    expected = ("colab", colab.CELL, True)
    found = (first.id, first.source, first.metadata.jupyter.source_hidden)
    assert found == expected, "python tools/colab.py; make student"
    assert not first.outputs and first.metadata.slideshow.slide_type == "skip"


def test_the_release_is_the_version_of_pandalib():
    assert pandalib.__version__ == PROJECT["version"]
    assert set(re.findall(r"\bv\d+\.\d+\.\d+", PAGE)) == {f"v{pandalib.__version__}"}


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A release in a repository of its own, and a Python that seems to lack faiss alone."""
    if not shutil.which("git"):
        pytest.skip("no git on this machine: the cell fetches the release with it")
    base = tmp_path_factory.mktemp("colab")
    release, python = base / "release", base / "python" / "bin" / "python"
    for name in ("pandalib", "tools"):
        shutil.copytree(ROOT / name, release / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", release)
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    commit = [*who, "-c", "commit.gpgsign=false", "commit", "--quiet", "-m", "release"]
    for command in (["init", "--quiet"], ["add", "."], commit):
        subprocess.run(["git", *command], cwd=release, check=True)
    venv.create(base / "python", with_pip=False)
    (packages,) = (base / "python").glob("lib/python*/site-packages")
    for requirement in PROJECT["dependencies"]:
        name = re.match(r"[\w.-]+", requirement)[0]
        if name not in ("faiss-cpu", "jupyterlab"):
            folder = packages / f"{name.replace('-', '_')}-0.1.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (packages / "pip").mkdir()  # says what it is asked for, and installs nothing
    (packages / "pip" / "__main__.py").write_text("import sys\nprint('pip', *sys.argv[1:])\n")
    return base, python, colab.CELL.replace('address = ""', f'address = "{release.as_uri()}"')


def run_cell(machine, folder, start, then):
    _, python, cell = machine
    folder.mkdir(exist_ok=True)
    code = f"import sys, types\n{start}\n{cell}\n{then}"
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = [python, "-c", code]
    return subprocess.run(run, cwd=folder, env=own, capture_output=True, text=True)


def test_outside_of_colab_the_cell_does_nothing(machine):
    folder = machine[0] / "elsewhere"
    done = run_cell(machine, folder, "", "print('goes on')")
    assert (done.stdout, done.stderr, [*folder.iterdir()]) == ("goes on\n", "", [])


def test_in_colab_it_asks_for_the_address(machine):
    base, python, cell = machine
    empty = re.sub('^address = ".*?"', 'address = ""', cell, flags=re.M)
    pretend = "sys.modules['google.colab'] = types.ModuleType('google.colab')"
    done = run_cell((base, python, empty), base / "asked", pretend, "")
    assert done.returncode and "Fill in the repository's address in this cell" in done.stderr


def test_in_colab_it_fetches_the_release_and_what_is_missing(machine):
    folder = machine[0] / "content"
    pretend = "sys.modules['google.colab'] = types.ModuleType('google.colab')"
    done = run_cell(machine, folder, pretend, "import pandalib; print(pandalib.__file__)")
    assert done.returncode == 0, done.stderr
    missing, editable, found = done.stdout.splitlines()
    (faiss,) = [one for one in PROJECT["dependencies"] if one.startswith("faiss")]
    (cells,) = PROJECT["optional-dependencies"]["photographs"]
    assert missing == f"pip install --quiet {faiss} {cells}"
    assert editable == f"pip install --quiet --no-deps --editable {folder / 'course'}"
    assert Path(found) == folder / "course" / "pandalib" / "__init__.py"
