"""Build the book, a static site of all lessons, texts and the library's reference: `make book`.

    python tools/book.py [--lite] [FOLDER]    default: build/book; open FOLDER/html/index.html

Sphinx with myst-nb and numpydoc, on a copy of the texts in the repository's own layout. Lessons are
shown as committed, not executed. The result asks nothing of any network, and opens from a disk as
well as from a server. A warning is an error: a dead link, a formula that cannot be set.

With `--lite`, lesson 00 can be run on its page, from a server and with a network: `tools/lite.py`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
import lite
from animations import file_of, labels
from student import BEGIN, END, without_solution

import pandalib
from pandalib.cli import COMMANDS
from pandalib.experiments.config import METHODS

ONLY_TO_RUN = "colab"  # name of the cell that a hosted notebook needs and a reader does not
MOVING = """<details><summary>As an animation, by {label}</summary>

![The figure above, at one value of its slider after another.](../docs/animations/{file})

Photographs, where there are any: as credited under the figure above.

</details>"""
IN_BROWSER = """

<p><a href="../lite/notebooks/index.html?path={}">Run this lesson in the browser</a>: nothing is
installed; about 100 MB are fetched the first time.</p>"""
# Methods whose equation stands in another file than their detector.
IN_FILE = {"whitened": "whitening", "ewc": "ewc", "nuisance": "nuisance"}
METHOD = """# {title}

| | |
|---|---|
{facts}

## Definition

```{{eval-rst}}
.. automodule:: pandalib.methods.{file}
   :no-index:
```

## The file

[Its reference](../../library/pandalib.methods.{file}.rst); [all methods](../methods.md).

````python
{source}````
"""
TOCTREE = "\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {}\n\n{}\n```\n"


def lesson(path: Path, in_browser: bool) -> str:
    """A notebook as a page: solutions folded below their stubs, and the files to take along."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.id != ONLY_TO_RUN]
    notebook.cells = []
    for cell in cells:
        if BEGIN in cell.source:
            stub = f"```python\n{without_solution(cell.source)}\n```"
            stub_cell = nbformat.v4.new_markdown_cell(stub, id=f"{cell.id}-stub")
            notebook.cells.append(stub_cell)
            cell.source = re.sub(rf" *({BEGIN}|{END})\n?", "", cell.source)
            cell.metadata["tags"] = ["hide-input"]
        notebook.cells.append(cell)
        for label in labels(cell.source):  # no kernel moves a slider here
            moving = MOVING.format(file=file_of(label), label=label)
            notebook.cells.append(nbformat.v4.new_markdown_cell(moving, id=f"{cell.id}-moving"))
    copies = "[the student's copy]({0}student/{1}), or [the notebook with its solutions]({0}{1})"
    cells[0].source += f"\n\nTake along: {copies.format('path:../downloads/', path.name)}."
    if in_browser and path.stem == lite.LESSON:
        cells[0].source += IN_BROWSER.format(path.name)
    return nbformat.writes(notebook).replace("](../README.md", "](../index.md")


def module_page(name: str) -> str:
    return f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n   :members:\n"


def method_pages(table: str) -> tuple[str, dict[str, str]]:
    """docs/methods.md with links, and a page for each of its rows: facts, equation, file."""
    pages, header, lines = {}, [], []
    for line in table.splitlines():
        title, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| method "):
            header = cells
        elif line.startswith("| "):
            method = cells[0].strip("`")
            name = method if method in METHODS else "nuisance"  # the one that `run` has not
            pages[f"docs/methods/{name}.md"] = method_page(title, name, zip(header, cells))
            line = line.replace(f"| {title} |", f"| [{title}](methods/{name}.md) |", 1)
        lines.append(line)
    return "\n".join(lines) + "\n", pages


def method_page(title: str, name: str, facts) -> str:
    file = IN_FILE.get(name) or getattr(pandalib, METHODS[name].detector).__module__.split(".")[-1]
    rows = "\n".join(f"| {key} | {cell} |" for key, cell in facts)
    return METHOD.format(
        title=title,
        facts=re.sub(r"\]\((?!https?:)", "](../", rows),
        file=file,
        source=(ROOT / "pandalib" / "methods" / f"{file}.py").read_text(encoding="utf-8"),
    )


def command_line() -> str:
    """What `python -m pandalib COMMAND --help` prints, for each command."""
    os.environ["COLUMNS"] = "88"  # argparse breaks its lines there
    page = "# The command line\n"
    for name, (add_arguments, command) in COMMANDS.items():
        words = dict(prog=f"python -m pandalib {name}", description=command.__doc__)
        parser = argparse.ArgumentParser(**words)
        add_arguments(parser)
        page += f"\n## {name}\n\n```text\n{parser.format_help()}```\n"
    return page


def gather(source: Path, in_browser: bool) -> None:
    """Everything that Sphinx reads, in `source`."""
    shutil.copytree(ROOT / "docs", source / "docs", dirs_exist_ok=True)
    notebooks = ROOT / "notebooks"
    only = shutil.ignore_patterns("[!0-9s]*", "*.md")
    shutil.copytree(notebooks, source / "downloads", dirs_exist_ok=True, ignore=only)
    for name in ("LICENSE", "CONTRIBUTING.md"):
        shutil.copy2(ROOT / name, source / name)
    lessons = notebooks.glob("[0-9]*.ipynb")
    pages = {f"notebooks/{path.name}": lesson(path, in_browser) for path in lessons}
    for path in source.glob("docs/**/*.md"):
        text = path.read_text(encoding="utf-8").replace("../README.md", "../index.md")
        pages[path.relative_to(source).as_posix()] = text
    for path in (ROOT / "pandalib").rglob("[!_]*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name != "cli.py" and "exercises" not in path.parts:
            pages[f"library/{name}.rst"] = module_page(name)
    pages["library/command_line.md"] = command_line()
    pages["docs/methods.md"], methods = method_pages(pages["docs/methods.md"])
    pages |= methods
    front = (ROOT / "README.md").read_text(encoding="utf-8").replace("](notebooks)", "](#lessons)")
    trees = [
        ("Lessons", "notebooks/*"),
        ("Methods", "\n".join(name.removesuffix(".md") for name in methods)),
        ("The course", "docs/teaching\ndocs/*\nCONTRIBUTING"),
        ("The library", "library/command_line\nlibrary/*"),
        ("Results", "docs/results/**"),
    ]
    front += "".join(TOCTREE.format(*tree) for tree in trees)
    pages["index.md"] = front.replace("](notebooks/student/", "](notebooks/")
    for name, text in pages.items():
        page = source / name
        page.parent.mkdir(parents=True, exist_ok=True)
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    from sphinx.cmd.build import build_main

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "book")
    parser.add_argument("--lite", action="store_true", help="lesson 00 runs in the browser")
    chosen = parser.parse_args(arguments)
    folder = chosen.folder.resolve()
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    gather(source, chosen.lite)
    options = ["-b", "html", "-W", "--keep-going", "-q", "-E", "-c", str(ROOT / "docs" / "book")]
    failed = build_main([*options, str(source), str(folder / "html")])
    if chosen.lite and not failed:
        try:
            lite.build(folder / "html" / "lite", folder / "lite")
        except lite.Trouble as trouble:
            print(f"error: {trouble}")
            return 1
    print("error: see above." if failed else f"Open {folder / 'html' / 'index.html'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
