"""Slides from the lessons' own cells, one HTML file a lesson: `make slides`.

    python tools/slides.py [FOLDER]      default: build/slides; index.html there lists them

Each file holds everything: reveal.js (from the package sphinx-revealjs), figures, formulas as MathML and their font. It
opens from a disk, without a network. Space goes on, S opens the speaker's window with the notes, F fills the screen.

What becomes of a cell: a section (##) begins a column of slides; long paragraphs show their first sentences, the whole
stands in the notes; a prediction, its answer, an exercise and a figure with its caption get a slide each; code goes
below its figure; of an exercise the stub is shown, hints and solution go into the notes. A cell's own
`slideshow.slide_type` (slide, subslide, fragment, notes, skip) goes before these rules.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import sys
from dataclasses import dataclass, field
from html import escape
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
import formulas  # noqa: E402

PACKAGES = "sphinx_revealjs", "latex2mathml", "ziamath", "mdit_py_plugins"
COURSE = "Anomaly detection with pretrained features"
PARAGRAPH = 260  # characters of a paragraph on a slide; its further sentences are for the notes
ROOM = 540  # pixels below the heading, of 720
SHORT = 17  # lines of code; from there on its letters are smaller
MERGED = {
    "text",
    "code",
}  # pages of these kinds follow each other on one slide for as long as there is room


@dataclass
class Page:
    """One slide: HTML of its heading and its body, about how many pixels the body takes, what the speaker sees (Markdown).

    `kind` is its CSS class; `opens` says that the heading is its own, not the section's once more.
    """

    heading: str
    body: str
    high: float
    kind: str = "text"
    notes: list[str] = field(default_factory=list)
    opens: bool = False


# ---------------------------------------------------------------- Markdown


def markdown(text: str, lessons: frozenset[str] = frozenset()) -> str:
    """Markdown as HTML. Links to other lessons lead to their slides; links to other files of the repository are words."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    parser = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin, renderer=_formula)

    def link(match: re.Match) -> str:
        target, words = match[1], match[2]
        if re.match(r"https?://", target):
            return match[0]
        name = Path(target.split("#")[0]).name
        return f'<a href="{Path(name).stem}.html">{words}</a>' if name in lessons else words

    return re.sub(r'<a href="([^"]*)"[^>]*>(.*?)</a>', link, parser.render(text), flags=re.DOTALL)


def _formula(tex: str, options: dict) -> str:
    if options["display_mode"]:
        return f'<div class="formula">{formulas.mathml(tex, display=True)}</div>'
    return formulas.mathml(tex)


def blocks(text: str) -> list[str]:
    """Paragraphs, lists, tables, formulas and fenced code of a text without headings."""
    parts, inside = [[]], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = not inside
        if line.strip() or inside:
            parts[-1].append(line)
        elif parts[-1]:
            parts.append([])
    return ["\n".join(part) for part in parts if part]


def lead(block: str) -> str:
    """A paragraph's first sentences, as many as a slide has room for; lists, tables and formulas stay whole."""
    if len(block) <= PARAGRAPH or re.match(
        r"[-*|>]\s|\d+\.\s|```|\$\$|\||\*\*Further reading", block
    ):
        return block
    sentences = re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)\s+(?=[A-Z*`$\"])", block)
    kept = [sentences[0]]
    for sentence in sentences[1:]:
        if len(" ".join([*kept, sentence])) > PARAGRAPH:
            break
        kept.append(sentence)
    short = " ".join(kept)
    if short.count("**") % 2 or any(short.replace("**", "").count(mark) % 2 for mark in "*`$"):
        return block  # the cut went through a phrase in bold, in italics or in code
    return short


def height(block: str) -> float:
    """About how many pixels a block takes."""
    lines = block.splitlines()
    if block.startswith("$$"):
        return 110
    if block.startswith("|"):
        return 45 * sum(1 + len(line) // 110 for line in lines)
    if block.startswith("```"):
        return 27 * len(lines) + 30
    if re.match(r"[-*]\s|\d+\.\s", block):
        return sum(38 * (1 + len(line) // 82) + 8 for line in lines) + 17
    return 38 * (1 + len(block.replace("\n", " ")) // 84) + 17


# ---------------------------------------------------------------- cells


def sections(source: str) -> list[tuple[int, str, str]]:
    """A text cell cut at its headings: (level, heading, text); level 0 without a heading."""
    parts = re.split(r"^(#{1,3}) (.+)$", source, flags=re.MULTILINE)
    found = [(0, "", parts[0].strip())] if parts[0].strip() else []
    return found + [
        (len(parts[i]), parts[i + 1].strip(), parts[i + 2].strip()) for i in range(1, len(parts), 3)
    ]


def title_page(heading: str, text: str, number: str) -> Page:
    question = re.search(r"^\*\*(.+)\*\*$", text, re.MULTILINE)
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.+?) \|$", text, re.MULTILINE))
    body = ""
    if question:
        body += f'<div class="question">{markdown(question[1])}</div>'
    if "You will" in rows:
        body += markdown(f"You will {rows['You will']}.")
    notes = [f"**{name}**: {value}" for name, value in rows.items()]
    return Page(
        f'<p class="course">{COURSE} · lesson {number}</p><h1>{escape(heading)}</h1>',
        body,
        400,
        "title",
        notes,
        opens=True,
    )


def text_pages(
    heading: str, level: int, section: str, text: str, lessons: frozenset[str]
) -> list[Page]:
    """One page or more: as many blocks as fit on each, the whole text in the notes of the first."""
    kind = "exercise" if heading.startswith("Exercise") else "text"
    first = f"<h{level}>{markdown(heading)[3:-5]}</h{level}>" if heading else again(section)
    pages = [Page(first, "", 0, kind, [text], opens=bool(heading))]
    room = ROOM
    for block in [
        lead(block) for block in blocks(re.sub(r"Stuck\? Run `hint\(.*?\.", "", text))
    ]:  # a room has no cell to run
        if pages[-1].high and pages[-1].high + height(block) > room:
            pages.append(Page(again(heading or section), "", 0, kind))
        room = (
            1.2 * ROOM if block.endswith(":") else ROOM
        )  # a list stays with the line that announces it
        pages[-1].body += markdown(block, lessons)
        pages[-1].high += height(block)
    return pages


def again(title: str) -> str:
    return f'<h2 class="again">{markdown(title)[3:-5]}</h2>' if title else ""


def code(source: str, language: str = "python") -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    words = highlight(source, get_lexer_by_name(language), HtmlFormatter(nowrap=True))
    return (
        f"<pre{' class=long' if source.count(chr(10)) > SHORT else ''}><code>{words}</code></pre>"
    )


def code_height(source: str) -> float:
    lines = source.count("\n") + 1
    return (27.2 if lines <= SHORT + 1 else 23.8) * lines + 44


def printed(cell) -> str:
    return "".join(
        output.text for output in cell.outputs if output.output_type == "stream"
    ).rstrip()


def shown(cell) -> list[str]:
    """The Markdown that a cell displays, captions left out: they stand under their figures."""
    texts = [
        "".join(output.data["text/markdown"])
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    ]
    return [text.strip() for text in texts if not text.startswith("*Figure: ")]


def figure_pages(cell, section: str) -> list[Page]:
    pages = []
    for output in cell.outputs:
        if "image/png" in output.get("data", {}):
            alt = escape(output.metadata["image/png"]["alt"])
            data = "".join(output.data["image/png"].split())
            width, tall = Image.open(io.BytesIO(base64.b64decode(data))).size
            scale = min(1160 / width, 500 / tall)
            image = f'<img alt="{alt}" width="{width * scale:.0f}" height="{tall * scale:.0f}" src="data:image/png;base64,{data}">'
            pages.append(
                Page(
                    again(section),
                    f"<figure>{image}<figcaption>{alt}</figcaption></figure>",
                    tall * scale + 80,
                    "figure",
                )
            )
    return pages


def code_pages(cell, section: str) -> list[Page]:
    """The code and, below it or on a page of its own, what it prints."""
    source, result = (
        re.sub(
            r"^reveal\(.*\)\n?", "", re.sub(r"\n{3,}", "\n\n", cell.source), flags=re.MULTILINE
        ).strip(),
        printed(cell),
    )
    if not source:
        return []
    page = Page(again(section), code(source), code_height(source), "code")
    if not result:
        return [page]
    output = Page(
        again(section),
        f'<pre class="printed"><code>{escape(result)}</code></pre>',
        code_height(result),
        "code",
    )
    return join([page, output], 1.15 * ROOM)  # rather a little smaller than torn apart


def join(pages: list[Page], room: float = ROOM) -> list[Page]:
    """Pages that may stand together do, for as long as there is room."""
    joined: list[Page] = []
    for page in pages:
        last = joined[-1] if joined else None
        alike = last and (
            {last.kind, page.kind} <= MERGED
            or (last.kind, page.kind) in (("text", "figure"), ("answer", "text"))
        )
        together = (
            alike
            and not page.opens
            and last.high + page.high <= (room if page.kind != "figure" else 1.2 * room)
        )
        if together:
            last.body, last.high, last.notes = (
                last.body + page.body,
                last.high + page.high,
                last.notes + page.notes,
            )
            last.kind = page.kind if last.kind in MERGED and not last.opens else last.kind
        else:
            joined.append(page)
    return joined


def prediction(cell, section: str) -> Page:
    """The question with its options; what is right, and why, for the speaker."""
    from pandalib.teach.strings import text

    key = re.search(r'predict\("([\w-]+)"', cell.source)[1]
    entry = text("predict", key)
    question, *options = blocks(shown(cell)[0].replace("**Your prediction:** ", "", 1))
    body = f'<div class="question">{markdown(question)}</div>{markdown(chr(10).join(options))}'
    return Page(
        "<h2>Predict</h2>", body, ROOM, "predict", [f"Right: {entry['right']}. {entry['why']}"]
    )


def exercise_notes(source: str) -> list[str]:
    from pandalib.teach.strings import text

    key = re.search(r"hint\(\"(\w+)\"\)", source)
    return (
        [
            f"Hint {number}: {hint}"
            for number, hint in enumerate(text("exercise", key[1])["hints"], 1)
        ]
        if key
        else []
    )


# ---------------------------------------------------------------- a lesson


def columns(notebook, number: str, lessons: frozenset[str]) -> list[list[Page]]:
    """The lesson as columns of pages, one column a section."""
    from student import BEGIN, END, without_solution

    result: list[list[Page]] = [[]]
    section = ""

    def add(pages: list[Page], cell) -> None:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        if kind == "skip":
            return
        if kind in ("notes", "fragment") and result[-1]:
            for page in pages:
                if kind == "notes":
                    result[-1][-1].notes.append(cell.source)
                else:
                    result[-1][-1].body += f'<div class="fragment">{page.body}</div>'
            return
        if kind == "slide" and result[-1]:
            result.append([])
        result[-1].extend(pages)

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts = sections(cell.source)
            for number_of_part, (level, heading, text) in enumerate(parts):
                if level == 1:
                    add([title_page(heading, text, number)], cell)
                    continue
                if level > 1 and not heading.startswith("Exercise"):
                    section = heading
                if level == 2:
                    if (
                        heading != "Set-up"
                        and cell.metadata.get("slideshow", {}).get("slide_type") != "skip"
                    ):
                        result.append([])
                if (
                    level == 2 and not text and number_of_part + 1 < len(parts)
                ):  # a title above another title: a slide of its own
                    add([Page(f"<h2>{markdown(heading)[3:-5]}</h2>", "", 0, opens=True)], cell)
                if level > 1 and not text:
                    continue  # its title stands on the slide of the cell that follows
                pages = text_pages(heading, level, section, text, lessons)
                pages[0].notes += exercise_notes(cell.source)
                add(pages, cell)
        elif cell.cell_type == "code":
            if "predict(" in cell.source and shown(cell):
                add([prediction(cell, section)], cell)
            elif BEGIN in cell.source:
                solution = "\n".join(
                    line for line in cell.source.splitlines() if line.strip() not in (BEGIN, END)
                )
                stub, before = without_solution(cell.source), result[-1][-1] if result[-1] else None
                if (
                    before is None
                    or before.kind != "exercise"
                    or before.high + code_height(stub) > ROOM
                ):
                    add([Page(again(section), "", 0, "exercise")], cell)
                result[-1][-1].body += code(stub)
                result[-1][-1].notes.append(f"```\n{solution}\n```")
            elif re.match(r"(check|card)\(", cell.source.strip()):
                continue  # the stub is the slide; a card is the reader's own
            else:
                figures = figure_pages(cell, section)
                answers = [
                    Page(
                        "<h2>What happened</h2>",
                        markdown(opening(text)),
                        sum(map(height, blocks(opening(text)))),
                        "answer",
                    )
                    for text in shown(cell)
                ]
                below = code_pages(cell, section)
                if (
                    figures and not printed(cell) and "def " not in cell.source
                ):  # it draws and does nothing else
                    figures[0].notes.append(f"```\n{cell.source}\n```")
                    below = []
                add([*figures, *answers, *below] if figures else [*below, *answers], cell)
    return [join(column) for column in result if column]


def opening(text: str) -> str:
    """An answer as a paragraph of its own, and the reason below it."""
    text = text.removeprefix("No prediction was made. ")
    return re.sub(r"^(The answer is \*\*\w+\*\*: .*?[.!?]) (?=[A-Z])", r"\1\n\n", text, count=1)


def html(notebook, number: str, lessons: frozenset[str]) -> str:
    """One file with everything in it."""
    from pygments.formatters import HtmlFormatter

    deck = []
    for column in columns(notebook, number, lessons):
        pages = []
        for page in column:
            notes = "".join(markdown(note, lessons) for note in page.notes)
            notes = f'<aside class="notes">{notes}</aside>' if notes else ""
            pages.append(
                f'<section class="page {page.kind}"><div class="body">{page.heading}{page.body}</div>{notes}</section>'
            )
        deck.append(f"<section>{''.join(pages)}</section>" if len(pages) > 1 else pages[0])
    body = "\n".join(deck)
    title = re.search(r"^# (.+)$", notebook.cells[0].source, re.MULTILINE)[1]
    reveal = Path(find_spec("sphinx_revealjs").origin).parent / "_static" / "revealjs"
    letters = "".join(re.findall(r"<math.*?</math>", body, re.DOTALL))
    italic = (
        "".join(chr(0x1D434 + i) for i in range(52))
        + "".join(chr(0x1D6FC + i) for i in range(26))
        + "ℎ"
    )  # single letters are set in these
    styles = [
        (reveal / "dist/reset.css").read_text(),
        (reveal / "dist/reveal.css").read_text(),
        formulas.font_face(formulas.font(letters + italic)),
    ]
    styles += [
        HtmlFormatter(style="a11y-high-contrast-light").get_style_defs(".reveal pre"),
        (ROOT / "docs/slides/slides.css").read_text(),
    ]
    scripts = [
        _without_map(reveal / "dist/reveal.js"),
        _without_map(reveal / "plugin/notes/notes.js"),
        (ROOT / "docs/slides/slides.js").read_text(),
    ]
    licence = (reveal / "LICENSE").read_text().replace("--", "- -")
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{number} {escape(title)}: slides</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<!-- reveal.js is part of this file:\n{licence}-->",
            *[f"<style>\n{style}\n</style>" for style in styles],
            f'</head><body><div class="reveal"><div class="slides">\n{body}\n</div></div>',
            *[f"<script>\n{script}\n</script>" for script in scripts],
            "</body></html>\n",
        ]
    )


def _without_map(path: Path) -> str:
    """A script without the address of its source map, which a browser's tools would look for."""
    text = re.sub(r"//# sourceMappingURL=.*", "", path.read_text(encoding="utf-8"))
    if "</script" in text:
        raise ValueError(f"{path} cannot stand inside a page: it holds an end tag of its own.")
    return text


def contents(decks: dict[str, str]) -> str:
    rows = "\n".join(
        f'<li><a href="{name}">{escape(title)}</a></li>' for name, title in decks.items()
    )
    style = "body{font:1.2rem/1.7 system-ui,sans-serif;max-width:40em;margin:3em auto;padding:0 1em}a{color:#0b5c8a}@media(prefers-color-scheme:dark){body{background:#14181b;color:#ddd}a{color:#6cbbee}}"
    keys = "<p>Space: on. Arrows: the next section, or down within one. S: notes. F: full screen. Esc: overview. For paper: add <code>?print-pdf</code> to the address and print.</p>"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Slides</title>'
        f"<style>{style}</style></head><body><h1>Slides: {COURSE}</h1><ul>\n{rows}\n</ul>{keys}</body></html>\n"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=ROOT / "build" / "slides",
        help="default: build/slides",
    )
    folder = parser.parse_args(arguments).folder.resolve()
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        print(
            f"error: the slides need {', '.join(missing)}: `make install` brings all packages.",
            file=sys.stderr,
        )
        return 1
    import nbformat

    from pandalib.io import write_atomically

    paths = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    lessons, decks = frozenset(path.name for path in paths), {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            notebook = nbformat.read(path, as_version=4)
            text = html(notebook, path.name[:2], lessons)
            write_atomically(folder / f"{path.stem}.html", text.encode())
            decks[f"{path.stem}.html"] = (
                f"{path.name[:2]} "
                + re.search(r"^# (.+)$", notebook.cells[0].source, re.MULTILINE)[1]
            )
            print(
                f"{path.stem}.html: {text.count('<section class=')} slides, {len(text) / 1e3:.0f} kB",
                flush=True,
            )
        write_atomically(folder / "index.html", contents(decks).encode())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Open {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
