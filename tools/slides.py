"""Slides from the lessons' own cells, one HTML file a lesson: `make slides`.

    python tools/slides.py [FOLDER]      default: build/slides; index.html there lists them

nbconvert's reveal.js exporter, with a template (docs/slides) that puts everything into the file:
reveal.js (from the package sphinx-revealjs), figures, formulas as MathML. It opens from a disk,
without a network. Space goes on, S opens the speaker's window with the notes, F fills the screen.

A section (##) begins a column of slides. Of a long paragraph the slide shows the first sentences
and the notes all of it; of an exercise the stub, and the notes the solution; of a figure the code
is in the notes. A cell's own `slideshow.slide_type` goes before these rules.
"""

from __future__ import annotations

import re
import sys
from html import escape
from importlib.util import find_spec
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
from student import BEGIN, END, without_solution

SENTENCES = 260  # characters of a paragraph on a slide; the rest is for the notes
ROOM = 700  # characters of text on a slide


def page(source: str, kind: str):
    return new_markdown_cell(source, metadata={"slideshow": {"slide_type": kind}})


def lead(block: str) -> str:
    """The first sentences of a paragraph; lists, tables, formulas and code stay whole."""
    if re.match(r"[-*|>] |\d+\. |```|\$\$|\|", block):
        return block
    kept = ""
    for sentence in re.split(r"(?<=[.!?:]) +(?=[A-Z*`$\"])", block):
        if kept and len(kept) + len(sentence) > SENTENCES:
            break
        kept += " " * bool(kept) + sentence
    cut_through = any(kept.replace("**", "_").count(mark) % 2 for mark in "*`$")
    return block if cut_through or kept.count("**") % 2 else kept


def text_pages(source: str) -> list:
    """A text cell as slides: one or more for each of its headings, with the whole in the notes."""
    pages = []
    for part in re.split(r"^(?=#{1,3} )", source, flags=re.MULTILINE):
        heading, text = re.match(r"(?:(#{1,3} .+)\n*)?([\s\S]*)", part).groups("")
        text = re.sub(r"Stuck\? Run `hint\(.*", "", text).strip()
        if not part.strip():
            continue
        shown = [heading]
        kind = "subslide" if heading.startswith("###") or not heading else "slide"
        for block in map(lead, re.split(r"\n{2,}", text)):
            if len("".join(shown)) + len(block) > ROOM and len(shown) > 1:
                pages.append(page("\n\n".join(shown), kind))
                shown, kind = [], "subslide"
            shown.append(block)
        pages += [page("\n\n".join(shown), kind), page(text, "notes")]
    return pages


def code_pages(cell) -> list:
    """A code cell as slides."""
    if re.match(r"(check|card)\(", cell.source.strip()):
        return []  # of the reader's own answers
    if BEGIN in cell.source:
        stub = without_solution(cell.source)
        solution = re.sub(rf" *({BEGIN}|{END})\n?", "", cell.source)
        return [page(f"```python\n{stub}\n```", "fragment"), notes(solution)]
    cell.metadata["slideshow"] = {"slide_type": "subslide"}
    if re.match(r"predict\(", cell.source):
        cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
    elif not any(is_figure(output) for output in cell.outputs):
        return [cell]
    cell.metadata["transient"] = {"remove_source": True}
    return [cell, notes(cell.source)]


def is_figure(output) -> bool:
    """A picture, or a row of images to click on."""
    data = output.get("data", {})
    return "image/png" in data or 'type="radio"' in data.get("text/html", "")


def notes(code: str):
    return page(f"```python\n{code}\n```", "notes")


def room_below(cells: list, cell) -> bool:
    """Whether the code, and what it prints, fits on the slide of the short text before it."""
    if len(cells) < 2 or cells[-1].cell_type == "code" or cell.metadata.get("transient"):
        return False
    if cells[-2].source.startswith("```"):
        return False  # a stub stands alone
    printed = sum(len(output.get("text", "")) for output in cell.outputs)
    return len(cells[-2].source) + len(cell.source) + printed < ROOM  # cells[-1] is its notes


def with_formulas(text: str) -> str:
    """Formulas of a Markdown text as MathML; those in code are none."""
    from formulas import mathml

    def put(match: re.Match) -> str:
        code, display, inline = match.groups()
        return code or mathml(display or inline, display=bool(display))

    return re.sub(r"(```[\s\S]*?```|`[^`]+`)|\$\$([\s\S]+?)\$\$|\$([^$\n]+)\$", put, text)


KEEP = "**Keep this"


def as_slides(notebook):
    """The notebook whose cells are the slides."""
    cells = []
    for cell in notebook.cells:
        if cell.metadata.get("slideshow", {}).get("slide_type", "-") != "-":
            cells.append(cell)
            continue
        if cell.cell_type == "code" and cells and cells[-1].source.startswith(KEEP):
            # The table that the line above announces, without the code that prints it.
            cell.metadata |= {
                "slideshow": {"slide_type": "-"},
                "transient": {"remove_source": True},
            }
            cells += [cell, notes(cell.source)]
            continue
        pages = text_pages(cell.source) if cell.cell_type == "markdown" else code_pages(cell)
        before, found, line = cell.source.rpartition(f"\n\n{KEEP}")
        if cell.cell_type == "markdown" and found and "\n\n" not in line:
            pages = [*text_pages(before), page(KEEP + line, "subslide")]
        if pages and pages[0] is cell and room_below(cells, cell):
            cell.metadata["slideshow"] = {"slide_type": "-"}  # goes on with the slide before it
        cells += pages
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = with_formulas(cell.source)
            # To another lesson's slides; what is no page here is words.
            cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](\1.html", cell.source)
            cell.source = re.sub(r"\[([^\]]+)\]\((?!https?:|\d\d_)[^)]*\)", r"\1", cell.source)
    return new_notebook(cells=cells, metadata=notebook.metadata)


def files() -> dict[str, object]:
    """What every deck holds beside its cells."""
    from pygments.formatters import HtmlFormatter

    reveal = Path(find_spec("sphinx_revealjs").origin).parent / "_static" / "revealjs"
    own = ROOT / "docs" / "slides"
    colours = HtmlFormatter(style="a11y-high-contrast-light").get_style_defs(".highlight")
    sheets = [reveal / "dist/reset.css", reveal / "dist/reveal.css", own / "slides.css"]
    scripts = [reveal / "dist/reveal.js", reveal / "plugin/notes/notes.js", own / "slides.js"]
    return {
        "licence": (reveal / "LICENSE").read_text(encoding="utf-8").replace("--", "- -"),
        "styles": [colours, *(path.read_text(encoding="utf-8") for path in sheets)],
        "scripts": [
            re.sub(r"//# sourceMapp.*", "", path.read_text(encoding="utf-8")) for path in scripts
        ],
    }


def main(arguments: list[str]) -> None:
    from nbconvert import SlidesExporter

    folder = Path(arguments[0] if arguments else ROOT / "build" / "slides").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    exporter = SlidesExporter(
        template_file=str(ROOT / "docs" / "slides" / "slides.html.j2"),
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    parts, rows = files(), []
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        title = f"{path.name[:2]} {re.search('^# (.+)$', notebook.cells[0].source, re.M)[1]}"
        deck, _ = exporter.from_notebook_node(as_slides(notebook), {**parts, "title": title})
        (folder / f"{path.stem}.html").write_text(deck, encoding="utf-8")
        rows.append(f'<li><a href="{path.stem}.html">{escape(title)}</a></li>')
    contents = (ROOT / "docs" / "slides" / "contents.html").read_text(encoding="utf-8")
    index = contents.replace("{{lessons}}", "\n".join(rows))
    (folder / "index.html").write_text(index, encoding="utf-8")
    print(f"Open {folder / 'index.html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
