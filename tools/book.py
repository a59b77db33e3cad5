"""Build the book, a static site of all lessons, results and the library's reference: `make book`.

    python tools/book.py [FOLDER]        default: build/book; the front page is FOLDER/html/index.html

The pages are gathered first in FOLDER/source, in the repository's own layout, so that a link between two files is also
a link between two pages. Lessons are shown as committed, not executed. The result asks nothing of any network, and
opens from a disk as well as from a server. A warning is an error: a dead link, a formula that cannot be set.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import sys
import time
from html import escape
from importlib import import_module
from importlib.util import find_spec
from inspect import getdoc
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
PACKAGES = "sphinx", "myst_nb", "furo", "sphinx_copybutton", "latex2mathml", "ziamath"
ONLY_TO_RUN = "colab"  # name of the cell that a hosted notebook needs and a reader does not


# ---------------------------------------------------------------- lessons


def lesson(path: Path):
    """A notebook as a page: solutions folded below their stubs, and the files to take along."""
    import nbformat
    from student import BEGIN, END, without_solution

    notebook = nbformat.read(path, as_version=4)
    cells = []
    for cell in notebook.cells:
        if cell.id == ONLY_TO_RUN:
            continue
        if cell.cell_type == "code" and BEGIN in cell.source:
            cells.append(
                nbformat.v4.new_markdown_cell(
                    f"```python\n{without_solution(cell.source)}\n```", id=f"{cell.id}-stub"
                )
            )
            cell.source = "\n".join(
                line for line in cell.source.splitlines() if line.strip() not in (BEGIN, END)
            )
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
        cells.append(cell)
    notebook.cells = cells
    name = path.name
    files = f"[this notebook with its solutions](path:../downloads/{name})"
    if (path.parent / "student" / name).is_file():
        files = (
            f"[the student's copy](path:../downloads/student/{name}), without solutions, or {files}"
        )
    cells[0].source += f"\n\nTake along: {files}."
    return notebook


def about_lesson(path: Path) -> dict[str, str]:
    """Number, title, question, times and first figure of a lesson."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    head = notebook.cells[0].source
    title, question = (
        re.search(r"^# (.+)$", head, re.MULTILINE),
        re.search(r"^\*\*(.+)\*\*$", head, re.MULTILINE),
    )
    reading = re.search(r"about (\d+ minutes)", head)
    if not (title and question and reading):
        raise ValueError(
            f"{path}: its first cell needs a title `# ...`, a question `**...**` and a time `about N minutes`."
        )
    figures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    about = {
        "number": path.name[:2],
        "title": title[1],
        "question": question[1],
        "time": reading[1],
        "page": f"notebooks/{path.stem}",
    }
    if figures:
        about |= {
            "alt": figures[0].metadata["image/png"]["alt"],
            "png": figures[0].data["image/png"],
        }
    return about


def card(about: dict[str, str]) -> str:
    picture = (
        f'<img src="_static/lesson_{about["number"]}.png" alt="{escape(about["alt"])}">'
        if "png" in about
        else ""
    )
    return (
        f'<a class="lesson" href="{about["page"]}.html"><span class="picture">{picture}</span>'
        f'<span class="words"><strong><small>{about["number"]}</small> {escape(about["title"])}</strong>'
        f"<span>{plain(about['question'])}</span><small>{about['time']}</small></span></a>"
    )


def plain(markdown: str) -> str:
    """One line of Markdown as HTML: *emphasis* is all that questions have."""
    return re.sub(r"\*(.+?)\*", r"<em>\1</em>", escape(markdown))


# ---------------------------------------------------------------- the library


def modules() -> list[str]:
    """The library's modules, without the commands, which have a page of their own."""
    package = ROOT / "pandalib"
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(package.rglob("*.py"))
    ]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    return [
        name
        for name in names
        if name != "pandalib"
        and name != "pandalib.cli"
        and getdoc(import_module(name))
    ]


def first_line(thing: object) -> str:
    from docstrings import inline

    return inline((getdoc(thing) or "").split("\n\n")[0].replace("\n", " "))


def rst_title(title: str, mark: str = "=") -> list[str]:
    return [title, mark * len(title), ""]


def api_pages() -> dict[str, str]:
    import pandalib

    names = modules()
    pages = {}
    for name in names:
        pages[f"api/{name}.rst"] = "\n".join(
            [
                *rst_title(name),
                f".. automodule:: {name}",
                "   :members:",
                "   :ignore-module-all:",
                "",
            ]
        )
    index = [
        *rst_title("The library"),
        "Names that ``import pandalib`` brings:",
        "",
        ".. list-table::",
        "   :class: names",
        "",
    ]
    for public in pandalib.__all__:
        thing = getattr(pandalib, public)
        index += [
            f"   * - :py:obj:`{public} <pandalib.{pandalib._HOME[public]}.{public}>`",
            f"     - {first_line(thing)}",
        ]
    index += ["", *rst_title("Modules", "-"), ".. list-table::", "   :class: names", ""]
    for name in names:
        index += [f"   * - :doc:`{name} <{name}>`", f"     - {first_line(import_module(name))}"]
    index += [
        "",
        ".. toctree::",
        "   :hidden:",
        "",
        *[f"   {name.removeprefix('pandalib.')} <{name}>" for name in names],
        "",
    ]
    pages["api/index.rst"] = "\n".join(index)
    pages["api/command_line.rst"] = "\n".join(command_line())
    return pages


def command_line() -> list[str]:
    """What `python -m pandalib COMMAND --help` prints, for each command."""
    from pandalib.cli import COMMANDS

    os.environ["COLUMNS"] = "88"  # argparse breaks its lines there
    page = [*rst_title("The command line"), "The same code without a browser.", ""]
    for name, (add_arguments, command) in COMMANDS.items():
        parser = argparse.ArgumentParser(
            prog=f"python -m pandalib {name}", description=command.__doc__
        )
        add_arguments(parser)
        page += [
            *rst_title(name, "-"),
            ".. code-block:: text",
            "",
            *[f"   {line}" for line in parser.format_help().splitlines()],
            "",
        ]
    return page


# ---------------------------------------------------------------- all pages


def readme() -> tuple[str, str]:
    """README.md as two texts: what stands before its first section, and all sections but the list of lessons."""
    opening, *sections = re.split(
        r"^(?=## )", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    return opening.strip(), "\n".join(
        section for section in sections if not section.startswith("## Lessons")
    )


def with_use_for_readme(text: str) -> str:
    """README.md is two pages here: links to it lead to the page "Set-up and use", to its list of lessons to the front page."""
    text = re.sub(r"\]\(((?:\.\./)*)README\.md#lessons\)", r"](\1index.md#lessons)", text)
    return re.sub(r"\]\(((?:\.\./)*)README\.md", r"](\1use.md", text)


def linked_files(pages: dict[str, str | bytes]) -> dict[str, bytes]:
    """Files of the repository that a page links to and that are no pages: a reader gets them as they are."""
    found = {}
    for name, content in pages.items():
        if not name.endswith((".md", ".ipynb")) or name.startswith("downloads/"):
            continue
        for target in re.findall(
            r"\]\(([^)#\s:]+)", content if isinstance(content, str) else content.decode()
        ):
            path = Path(os.path.normpath(ROOT / Path(name).parent / target))
            inside = path.is_relative_to(ROOT) and path.relative_to(ROOT).as_posix()
            if (
                inside
                and inside not in pages
                and path.is_file()
                and path.suffix not in (".md", ".ipynb")
            ):
                found[inside] = path.read_bytes()
    return found


def toctree(caption: str, entries: list[str]) -> str:
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(entries) + "\n```\n"


def reading_order(path: Path) -> tuple[int, str]:
    """For teachers first, decisions last, what is not named between them in the order of the alphabet."""
    first, last = ("teaching", "hub"), ("decisions",)
    return (
        first.index(path.stem) - len(first) if path.stem in first else int(path.stem in last),
        path.name,
    )


def documents() -> list[Path]:
    """The texts that get a page: docs/ itself and all results, those of a sweep in a folder of their own included."""
    return [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/results").rglob("*.md")]


def pages() -> dict[str, str | bytes]:
    """Everything that Sphinx reads: path below the source folder -> content."""
    import nbformat
    from formulas import font, font_face

    lessons = [path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
    if not lessons:
        raise FileNotFoundError(
            f"{ROOT / 'notebooks'} holds no lesson: expected files such as 00_start_here.ipynb."
        )
    abouts = [about_lesson(path) for path in lessons]
    texts = sorted(documents(), key=reading_order)
    result: dict[str, str | bytes] = dict(api_pages())
    for path in lessons:
        result[f"notebooks/{path.name}"] = with_use_for_readme(nbformat.writes(lesson(path)))
        for original in (path, path.parent / "student" / path.name):
            if original.is_file():
                result[f"downloads/{original.relative_to(ROOT / 'notebooks')}"] = (
                    original.read_bytes()
                )
    for path in texts:
        result[path.relative_to(ROOT).as_posix()] = with_use_for_readme(
            path.read_text(encoding="utf-8")
        )
    for path in (ROOT / "docs").rglob("*.png"):
        result[path.relative_to(ROOT).as_posix()] = path.read_bytes()
    for path in (ROOT / "docs/book").glob("*"):
        if path.suffix in (".css", ".js", ".svg"):
            result[f"static/{path.name}"] = path.read_bytes()
    for about in abouts:
        if "png" in about:
            result[f"static/lesson_{about['number']}.png"] = base64.b64decode(about["png"])
    result["static/formulas.woff"] = font()
    result["static/formulas.css"] = font_face("formulas.woff")
    opening, use = readme()
    result["use.md"] = f"# Set-up and use\n\n{use}"
    trees = [
        toctree(
            "Lessons", [f"{about['number']} {about['title']} <{about['page']}>" for about in abouts]
        ),
        toctree(
            "The course",
            [
                "use",
                *[
                    path.relative_to(ROOT).with_suffix("").as_posix()
                    for path in texts
                    if path.parent == ROOT / "docs"
                ],
            ],
        ),
        toctree("Reference", ["api/index", "api/command_line"]),
        toctree(
            "Results",
            [
                path.relative_to(ROOT).with_suffix("").as_posix()
                for path in texts
                if path.parent != ROOT / "docs"
            ],
        ),
    ]
    cards = (
        '```{raw} html\n<nav class="lessons" aria-label="Lessons">'
        + "\n".join(card(about) for about in abouts)
        + "</nav>\n```\n"
    )
    start = f'```{{raw}} html\n<a class="start" href="{abouts[0]["page"]}.html">Begin with lesson {abouts[0]["number"]}</a>\n```\n'
    front = (ROOT / "docs/book/index.md").read_text(encoding="utf-8")
    for place, text in (("{{opening}}", opening), ("{{start}}", start), ("{{lessons}}", cards)):
        front = front.replace(place, text)
    result["index.md"] = front + "\n" + "\n".join(trees)
    return result | linked_files(result)


def gather(folder: Path) -> None:
    """Write the pages into `folder`; leave those that have not changed, so that only changed pages are built again."""
    wanted = pages()
    for path in [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() not in wanted
    ]:
        path.unlink()
    for name, content in wanted.items():
        content = content.encode() if isinstance(content, str) else content
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def build(folder: Path) -> None:
    """Make the site in folder/html; its sources and what Sphinx remembers lie beside it.

    Raises
    ------
    ModuleNotFoundError when packages of the extra [book] are missing; RuntimeError when Sphinx found something wrong.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"the book needs {', '.join(missing)}: `make install` brings all packages."
        )
    from sphinx.cmd.build import build_main

    source, memory = folder / "source", folder / "doctrees"
    source.mkdir(parents=True, exist_ok=True)
    gather(source)
    arguments = [
        "-b",
        "html",
        "-W",
        "--keep-going",
        "-q",
        "-c",
        str(ROOT / "docs/book"),
        "-d",
        str(memory),
        str(source),
        str(folder / "html"),
    ]
    if build_main(arguments):
        shutil.rmtree(
            memory, ignore_errors=True
        )  # or the next run would read only changed pages and pass over the rest
        raise RuntimeError(
            "the book was not built without a warning; what Sphinx says stands above."
        )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=ROOT / "build" / "book", help="default: build/book"
    )
    folder = parser.parse_args(arguments).folder.resolve()
    start = time.perf_counter()
    try:
        build(folder)
    except (ValueError, OSError, ModuleNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    site = folder / "html"
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    print(f"{time.perf_counter() - start:.0f} s, {size / 1e6:.1f} MB. Open {site / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
