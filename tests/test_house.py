"""The house: who imports whom, the format, and whether the texts name what exists."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from pandalib.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
# From the ground up: a module imports from its own floor or from those below it.
FLOORS = (
    "pandalib validation io progress metrics plots",
    "weights cache backbones timm_backbones datasets",
    "methods",
    "experiments inspection",
    "teach doctor cli __main__",
)
HIGHEST = 9  # modules on the longest way down
NEVER = {"methods": {"datasets"}}  # pairs that the floors alone would allow
UNIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios"}


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {name_of(path): path.read_text() for path in (ROOT / "pandalib").rglob("*.py")}


def imports(tree):
    """Of each import its line and the full names that it asks for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield node, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            yield node, [f"{node.module}.{alias.name}" for alias in node.names]


def module_of(name):
    """The module of this library in which a full name lives, or None."""
    while name and name not in SOURCES:
        name = name.rpartition(".")[0]
    return name or None


def arrows():
    graph = {}
    for module, source in SOURCES.items():
        asked = [module_of(name) for _, names in imports(ast.parse(source)) for name in names]
        graph[module] = sorted({name for name in asked if name not in (None, module)})
    return graph


GRAPH = arrows()


def room(module):
    return (module.split(".") + ["pandalib"])[1] if module != "pandalib" else module


def floor(module):
    (number,) = [n for n, rooms in enumerate(FLOORS) if room(module) in rooms.split()]
    return number


# ---------------------------------------------------------------- imports


def test_every_module_has_its_floor():
    for module in SOURCES:
        assert floor(module) >= 0


def test_no_arrow_climbs():
    climbing = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if floor(other) > floor(module) or room(other) in NEVER.get(room(module), ())
    ]
    assert not climbing


def test_no_circle_and_at_most_nine_floors():
    way = []

    @cache
    def height(module):
        assert module not in way, f"a circle: {' -> '.join([*way, module])}"
        way.append(module)
        tallest = 1 + max(map(height, GRAPH[module]), default=0)
        way.pop()
        return tallest

    heights = {module: height(module) for module in GRAPH}
    assert max(heights.values()) <= HIGHEST, heights


@pytest.mark.parametrize("module", [name for name in SOURCES if name != "pandalib.cli"])
def test_an_import_within_a_function_has_its_reason(module):
    lines = SOURCES[module].splitlines()
    tree = ast.parse(SOURCES[module])
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node, names in imports(function):
                said = lines[node.lineno - 2] + lines[node.lineno - 1]
                assert "#" in said, f"{module}:{node.lineno}: why is {names[0]} imported here?"


def test_nothing_is_imported_that_only_unix_has():
    for module, source in SOURCES.items():
        asked = {name.split(".")[0] for _, names in imports(ast.parse(source)) for name in names}
        assert not asked & UNIX_ONLY, module


# ---------------------------------------------------------------- the format


@pytest.mark.parametrize("command", (["format", "--check"], ["check"]), ids=" ".join)
def test_the_format_is_decided_by_a_tool(command):
    pytest.importorskip("ruff", reason="the extra [test] is not installed: make install")
    ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
    done = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_no_line_escapes_the_formatter():
    for folder in ("pandalib", "tests", "tools", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "# " + "fmt:" not in path.read_text(), path


# ---------------------------------------------------------------- what the texts name

TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
ELSEWHERE = ("build/", "data/cache", "data/public")  # made on the spot
every_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).name)


def exists(dotted):
    """Does `pandalib.a.b` name a module or something in one?"""
    module = module_of(dotted)
    thing = importlib.import_module(module)
    for attribute in dotted.removeprefix(module).strip(".").split("."):
        if attribute and not hasattr(thing, attribute):
            return False
        thing = getattr(thing, attribute) if attribute else thing
    return True


@every_text
def test_names_of_the_library_exist(path):
    found = re.findall(r"(?<![\w/.-])pandalib(?:\.[A-Za-z_]\w*)+", path.read_text())
    assert not {name for name in found if not exists(name)}


@every_text
def test_files_and_links_exist(path):
    text = path.read_text()
    folders = "pandalib|tools|tests|bench|docs|notebooks|data"
    named = re.findall(rf"(?<![\w/.<-])(?:{folders})/[\w./*-]*[\w*]", text)
    missing = [
        name
        for name in named
        if not (name.startswith(ELSEWHERE) or re.search("N(N|AME)", name) or any(ROOT.glob(name)))
    ]
    links = re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", text)
    missing += [link for link in links if not (path.parent / link).exists()]
    assert not missing


@every_text
def test_commands_can_be_given(path):
    text = path.read_text()
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= set(targets)
    parser = build_parser()
    for line in re.findall(r"-m pandalib ([^`\n]+)", text):
        words = shlex.split(line.split("#")[0])
        if words and words[0].islower() and "..." not in line:
            try:
                parser.parse_args([{"N": "1"}.get(word, word) for word in words])
            except SystemExit as stop:
                assert stop.code == 0, line
