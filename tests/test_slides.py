"""The slides: from the lessons' own cells, each deck whole in one file, and every slide within its page."""

import re
import subprocess
import sys
from pathlib import Path

import browser
import nbformat
import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import slides  # noqa: E402
from student import without_solution  # noqa: E402

for package in slides.PACKAGES:
    pytest.importorskip(package, reason="the extra [book] is not installed: make install")
NOTEBOOKS = {
    path.stem: nbformat.read(path, as_version=4)
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
}
checkpoint_every = pytest.mark.parametrize("name", NOTEBOOKS)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "slides.py"), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def decks(folder):
    return {
        name: BeautifulSoup((folder / f"{name}.html").read_text(), "html.parser")
        for name in NOTEBOOKS
    }


def squeezed(text):
    return re.sub(r"\W", "", text)


# ---------------------------------------------------------------- the decks


def test_contents_list_all_decks(folder):
    links = BeautifulSoup((folder / "index.html").read_text(), "html.parser").select("li a")
    assert [link["href"] for link in links] == [f"{name}.html" for name in NOTEBOOKS]
    assert {path.name for path in folder.iterdir()} == {
        "index.html",
        *[f"{name}.html" for name in NOTEBOOKS],
    }


@checkpoint_every
def test_a_deck_holds_everything(name, decks):
    deck = decks[name]
    assert not deck.find_all("link") and not [
        script for script in deck.find_all("script") if script.get("src")
    ]
    assert "Reveal=" in deck.find_all("script")[0].text.replace(" ", "")
    assert all(image["src"].startswith("data:image/png;base64,") for image in deck.find_all("img"))
    for style in deck.find_all("style"):
        assert not re.search(r"@import|url\((?!data:)", style.text)
    for link in deck.select(".slides a"):
        assert (
            re.match(r"https?://[\w.-]+", link["href"])
            or link["href"].removesuffix(".html") in NOTEBOOKS
        ), link
    text = str(deck)
    assert (
        "sourceMappingURL" not in text and "MIT" in text and "Hakim El Hattab" in text
    )  # the licence comes along


@checkpoint_every
def test_the_parts_of_the_lesson_are_on_slides(name, decks):
    notebook, deck = NOTEBOOKS[name], decks[name]
    pages = deck.select(".slides section.page")
    title = re.search(r"^# (.+)$", notebook.cells[0].source, re.MULTILINE)[1]
    assert deck.h1.text == title and len(deck.select("h1")) == 1
    headings = [
        heading
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for heading in re.findall(r"^#{2,3} (.+)$", cell.source, re.MULTILINE)
    ]
    shown = {squeezed(heading.text) for heading in deck.select("h2, h3")}
    assert {squeezed(heading) for heading in headings} <= shown
    predictions = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and re.match(r"predict\(", cell.source)
    ]
    assert len(deck.select("section.predict")) == len(predictions) > 0
    sentences = [
        output.metadata["image/png"]["alt"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert [image["alt"] for image in deck.find_all("img")] == sentences
    assert [caption.text for caption in deck.find_all("figcaption")] == sentences
    assert 20 < len(pages) < 90


@checkpoint_every
def test_exercises_show_the_stub_and_the_solution_is_in_the_notes(name, decks):
    bodies = squeezed("".join(body.text for body in decks[name].select(".body")))
    notes = squeezed("".join(note.text for note in decks[name].select("aside.notes")))
    solved = [cell.source for cell in NOTEBOOKS[name].cells if "### BEGIN SOLUTION" in cell.source]
    assert solved
    for source in solved:
        assert squeezed(without_solution(source)) in bodies
        solution = re.search(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", source, re.DOTALL)[1]
        assert squeezed(solution) in notes and squeezed(solution) not in bodies


@checkpoint_every
def test_no_word_of_a_text_is_lost(name, decks):
    said = squeezed(
        BeautifulSoup(
            re.sub(r"<math.*?</math>", "", str(decks[name].select_one(".slides")), flags=re.DOTALL),
            "html.parser",
        ).text
    )
    for cell in NOTEBOOKS[name].cells[1:]:
        if cell.cell_type == "markdown":
            for sentence in re.split(
                r"(?<=[.!?])\s+", re.sub(r"^#.*$", "", cell.source, flags=re.MULTILINE)
            ):
                if "$" not in sentence and "](" not in sentence and "|" not in sentence:
                    assert squeezed(sentence) in said, sentence


# ---------------------------------------------------------------- the rules


def test_a_long_paragraph_shows_its_first_sentences():
    long = "First sentence of it. " + "And a further one that goes on for quite a while. " * 8
    assert (
        long.startswith(slides.lead(long.strip()))
        and len(slides.lead(long.strip())) <= slides.PARAGRAPH
    )
    assert slides.lead("short") == "short"
    bold = "**A bold phrase. It goes on** " + "and on, without a stop, " * 15
    assert slides.lead(bold) == bold  # not cut in two
    listed = "- " + "word " * 100
    assert slides.lead(listed) == listed


def test_slide_type_of_a_cell_goes_before_the_rules():
    def cell(source, kind=None):
        metadata = {"slideshow": {"slide_type": kind}} if kind else {}
        return nbformat.v4.new_markdown_cell(source, metadata=metadata)

    cells = [
        cell("# T\n\n**Q?**"),
        cell("## A\n\none"),
        cell("two", "skip"),
        cell("three", "notes"),
        cell("four", "slide"),
        cell("five", "fragment"),
    ]
    columns = slides.columns(nbformat.v4.new_notebook(cells=cells), "00", frozenset())
    texts = [[page.body for page in column] for column in columns]
    assert "two" not in str(texts) and "three" in columns[1][0].notes
    assert (
        len(columns) == 3
        and "four" in texts[2][0]
        and 'class="fragment"' in texts[2][0]
        and "five" in texts[2][0]
    )


def test_links_between_lessons_lead_to_slides_and_others_are_words():
    text = slides.markdown(
        "[a](01_x.ipynb) [b](../docs/results/t.md) [c](https://arxiv.org/abs/1)",
        frozenset({"01_x.ipynb"}),
    )
    assert 'href="01_x.html"' in text and ".md" not in text and ">c</a>" in text and " b " in text


def test_missing_packages_are_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(slides, "PACKAGES", ("no_such_package",))
    assert slides.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "no_such_package" in error and "make install" in error and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- in a browser


@pytest.mark.skipif(browser.PROGRAM is None, reason=browser.WHY_NOT)
def test_every_slide_fits_its_page(folder, tmp_path):
    state = """(() => { const body = Reveal.getCurrentSlide().querySelector('.body'), box = body.getBoundingClientRect();
        return [box.right, box.bottom, Math.max(...[...body.querySelectorAll('*')].map(one => one.getBoundingClientRect().right)), +(body.style.zoom || 1)] })()"""
    with browser.Browser(tmp_path) as page:
        page.size(1280, 720)
        for name in NOTEBOOKS:
            page.open((folder / f"{name}.html").as_uri())
            number = page.value(
                "new Promise(done => Reveal.isReady() ? done(Reveal.getTotalSlides()) : Reveal.on('ready', () => done(Reveal.getTotalSlides())))"
            )
            for slide in range(number):
                right, bottom, furthest, zoom = page.value(state)
                assert right <= 1280 and furthest <= 1280 and bottom <= 720, (
                    name,
                    slide,
                    right,
                    furthest,
                    bottom,
                )
                assert zoom >= 0.75, f"{name}, slide {slide}: made too small, {zoom}"
                page.value("Reveal.next()")
            assert page.value("Reveal.isLastSlide()") and not page.complaints
            assert all(address.startswith(("file:", "data:")) for address in page.requested)
