"""What a class or a borrowed machine starts from: Binder, a development container, the cell for Google Colab. No network."""

import ast
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
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")


def make_targets():
    return set(
        re.search(
            r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
        )[1].split()
    )


# ---------------------------------------------------------------- Binder, container


def test_binder_reads_the_environment_of_the_root():
    """repo2docker reads nothing outside of .binder once that folder exists; a link would not survive every copy."""
    same = (ROOT / ".binder" / "environment.yml").read_text() == (
        ROOT / "environment.yml"
    ).read_text()
    assert same, "cp environment.yml .binder/environment.yml"
    assert not (ROOT / "postBuild").exists(), "repo2docker would not read it there"


def test_binder_lets_python_find_pandalib():
    script = ROOT / ".binder" / "postBuild"
    assert os.access(script, os.X_OK) and script.read_text().startswith("#!/bin/bash\n")
    command = script.read_text().splitlines()[-1].split()
    assert command[0] == "python" and (ROOT / command[1]).is_file() and command[2] == "--link"
    assert "set -e" in script.read_text()


def test_devcontainer_uses_what_the_makefile_has():
    settings = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    wanted = tuple(map(int, re.search(r"(\d+)\.(\d+)", PROJECT["requires-python"]).groups()))
    assert (
        tuple(map(int, re.fullmatch(r"python:(\d+)\.(\d+)", settings["image"]).groups())) >= wanted
    )
    for key in ("postCreateCommand", "postAttachCommand"):
        program, target, *_ = settings[key].split()
        assert program == "make" and target in make_targets()
    port = re.search(r"--port=(\d+)", settings["postAttachCommand"])[1]
    assert settings["forwardPorts"] == [int(port)]
    assert settings["customizations"]["vscode"]["settings"][
        "python.defaultInterpreterPath"
    ].endswith("/.venv/bin/python")


def test_ci_brings_a_browser():
    script = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", script], check=True)
    assert re.search(r"apt-get .*install .*chromium chromium-driver", script.read_text())


# ---------------------------------------------------------------- Colab

TOOL = ROOT / "tools" / "colab.py"
sys.path.insert(0, str(TOOL.parent))
import colab  # noqa: E402

sys.path.pop(0)
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_the_release_is_the_version_of_pandalib():
    assert colab.version() == pandalib.__version__ == PROJECT["version"]
    assert f'"v{pandalib.__version__}"' in colab.cell_source()
    assert len(colab.cell_source().splitlines()) <= 9


def test_one_place_names_the_repository():
    """Until the project has an address, it says so in one place; lessons and page follow from there."""
    named = [
        path
        for folder in ("pandalib", "tools", "notebooks", "docs")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".py", ".md")
    ]
    holders = [
        path.relative_to(ROOT).as_posix()
        for path in named
        if colab.REPOSITORY in path.read_text(encoding="utf-8")
    ]
    assert holders == ["tools/colab.py"]
    assert "REPOSITORY" in PAGE and "tools/colab.py" in PAGE


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_each_lesson_begins_with_the_cell(path):
    assert len(LESSONS) >= 7
    for one in (path, path.parent / "student" / path.name):
        first = next(
            cell for cell in nbformat.read(one, as_version=4).cells if cell.cell_type == "code"
        )
        assert (first.id, first.source) == ("colab", colab.cell_source()), (
            "python tools/colab.py; make student"
        )
        assert not first.outputs and first.metadata.slideshow.slide_type == "skip"


def test_the_tool_says_when_a_cell_is_out_of_date_and_mends_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    shutil.copytree(
        ROOT / "pandalib", tmp_path / "pandalib", ignore=shutil.ignore_patterns("__pycache__")
    )
    cells = [nbformat.v4.new_markdown_cell("# Title", id="title")]
    cells += [
        nbformat.v4.new_code_cell("1 + 1", id=name, execution_count=number)
        for number, name in ((1, "one"), (2, "two"))
    ]
    path = tmp_path / "notebooks" / "00_x.ipynb"
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells)) + "\n")
    monkeypatch.setattr(colab, "ROOT", tmp_path)
    monkeypatch.setattr(
        sys, "path", list(sys.path)
    )  # the tool puts its copy of pandalib first, for processes started later as well
    assert colab.main(["--check"]) == 1 and "00_x.ipynb" in capsys.readouterr().err
    assert colab.main([]) == 0 and colab.main(["--check"]) == 0
    written = nbformat.read(path, as_version=4)
    nbformat.validate(written)
    assert [cell.id for cell in written.cells] == ["title", "colab", "one", "two"]
    assert [cell.execution_count for cell in written.cells[1:]] == [1, 2, 3]
    monkeypatch.setattr(colab, "REPOSITORY", "https://example.org/course")
    assert colab.main(["--check"]) == 1 and colab.main([]) == 0
    again = nbformat.read(path, as_version=4)
    assert [cell.execution_count for cell in again.cells[1:]] == [
        1,
        2,
        3,
    ] and "example.org/course" in again.cells[1].source


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A release in a repository of its own, and a bare Python to which all packages but faiss seem to be installed."""
    if not shutil.which("git"):
        pytest.skip("no git on this machine: the cell fetches the release with it")
    base = tmp_path_factory.mktemp("colab")
    release = base / "release"
    for name in ("pandalib", "tools"):
        shutil.copytree(ROOT / name, release / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", release)
    who = [
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@example.org",
        "-c",
        "commit.gpgsign=false",
    ]
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        [*who, "commit", "--quiet", "-m", "release"],
        ["tag", f"v{pandalib.__version__}"],
    ):
        subprocess.run(["git", *command], cwd=release, check=True)
    venv.create(base / "python", with_pip=False)
    python = base / "python" / "bin" / "python"
    packages = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    for requirement in PROJECT["dependencies"]:
        name = re.match(r"[\w.-]+", requirement)[0]
        if name not in ("faiss-cpu", "jupyterlab"):
            folder = packages / f"{name.replace('-', '_')}-0.1.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (packages / "pip").mkdir()  # says what it is asked for, and installs nothing
    (packages / "pip" / "__main__.py").write_text("import sys\nprint('pip', *sys.argv[1:])\n")
    return base, python, colab.cell_source().replace(colab.REPOSITORY, release.as_uri())


def run_cell(machine, folder, *, pretend, then="import pandalib; print(pandalib.__file__)"):
    _, python, cell = machine
    folder.mkdir(exist_ok=True)
    start = (
        "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')\n"
        if pretend
        else ""
    )
    return subprocess.run(
        [python, "-c", f"{start}{cell}\n{then}"], cwd=folder, capture_output=True, text=True
    )


def test_outside_of_colab_the_cell_does_nothing(machine):
    folder = machine[0] / "elsewhere"
    result = run_cell(machine, folder, pretend=False, then="print('goes on')")
    assert (result.stdout, result.stderr, list(folder.iterdir())) == ("goes on\n", "", [])
    # Where pandalib is found, as here, not in Colab either.
    code = (
        "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')\n"
        + machine[2]
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr, list(folder.iterdir())) == (
        0,
        "",
        "",
        [],
    )


def test_in_colab_it_fetches_the_release_and_what_is_missing(machine):
    folder = machine[0] / "content"
    result = run_cell(machine, folder, pretend=True)
    assert result.returncode == 0, result.stderr
    asked, found = result.stdout.splitlines()
    faiss = next(
        requirement for requirement in PROJECT["dependencies"] if requirement.startswith("faiss")
    )
    assert asked == f"pip install --quiet {faiss}"
    assert Path(found) == folder / "course" / "pandalib" / "__init__.py"
    # A kernel that is started again finds pandalib by itself, and the cell does nothing any more.
    again = run_cell(machine, folder, pretend=True)
    assert (again.returncode, again.stdout) == (0, found + "\n"), again.stderr


def test_the_cell_of_the_lessons_is_plain_python():
    ast.parse(colab.cell_source())  # tools that read the lessons need no IPython
    assert max(map(len, colab.cell_source().splitlines())) <= 88


# ---------------------------------------------------------------- the page


def test_the_page_names_what_exists_and_says_what_was_not_tried():
    for name in re.findall(r"`make ([a-z]+)", PAGE):
        assert name in make_targets(), name
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGE):
        assert (
            target.startswith(("https://", "#")) or (ROOT / "docs" / target.split("#")[0]).exists()
        ), target
    assert set(re.findall(r"\bv\d+\.\d+\.\d+", PAGE)) == {f"v{pandalib.__version__}"}
    for heading in ("Binder", "container", "Colab", "JupyterHub"):
        part = next(
            section
            for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)
            if heading.lower() in section.split("\n")[0].lower()
        )
        assert re.search(r"not tried", part, re.IGNORECASE), (
            f"{heading}: what could not be tried is marked"
        )
