"""The slides: from the lessons' own cells, each deck whole in one file, every slide on its page."""

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
import slides
from formulas import mathml
from student import without_solution

for package in ("sphinx_revealjs", "docutils"):
    pytest.importorskip(package, reason="the extra [book] is not installed: make install")
LESSONS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
every_lesson = pytest.mark.parametrize("name", LESSONS)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    command = [sys.executable, str(ROOT / "tools" / "slides.py"), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def squeezed(text):
    return re.sub(r"\W", "", text)


def test_contents_list_all_decks(folder):
    links = BeautifulSoup((folder / "index.html").read_text(), "html.parser").select("li a")
    assert [link["href"] for link in links] == [f"{name}.html" for name in LESSONS]


@every_lesson
def test_a_deck_is_the_lesson_and_holds_everything(name, folder):
    cells = nbformat.read(LESSONS[name], as_version=4).cells
    text = (folder / f"{name}.html").read_text()
    deck = BeautifulSoup(text, "html.parser")
    assert "MIT" in text and "Hakim El Hattab" in text and "sourceMappingURL" not in text
    assert not deck.find_all("link") and not deck.find_all("script", src=True)
    for style in deck.find_all("style"):
        assert not re.search(r"@import|url\((?!data:)", style.text)
    for link in deck.select(".slides a"):
        assert link["href"].startswith("http") or link["href"].removesuffix(".html") in LESSONS
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    sentences = [output.metadata["image/png"]["alt"] for output in figures]
    images = [image for image in deck.find_all("img") if not image.find_parent(class_="row")]
    assert [image["alt"] for image in images] == sentences  # those to click on have other names
    assert deck.find("math") or "$" not in str([cell.source for cell in cells])
    notes = squeezed("".join(aside.extract().text for aside in deck.select("aside.notes")))
    shown = squeezed(deck.select_one(".slides").text)
    for cell in cells:
        source, in_words = cell.source, cell.cell_type == "markdown"
        for heading in re.findall(r"^#{1,3} (.+)$", source, re.M) if in_words else []:
            assert "$" in heading or squeezed(heading) in shown
        if "### BEGIN SOLUTION" in source:
            solution = re.search(r"### BEGIN SOLUTION\n(.*?)### END", source, re.S)[1]
            assert squeezed(without_solution(source)) in shown
            assert squeezed(solution) in notes and squeezed(solution) not in shown


def test_a_long_paragraph_shows_its_first_sentences_and_the_notes_have_all():
    long = "First sentence of it. " + "And a further one that goes on for quite a while. " * 8
    short = slides.lead(long.strip())
    assert long.startswith(short) and 20 < len(short) <= slides.SENTENCES
    bold = "**A bold phrase. It goes on** " + "and on, without a stop, " * 15
    listed = "- " + "word " * 100
    assert slides.lead(bold) == bold and slides.lead(listed) == listed  # not cut in two
    shown, notes = slides.text_pages(long.strip())
    assert (shown.source.strip(), notes.source) == (short, long.strip())


def test_slide_type_of_a_cell_goes_before_the_rules():
    kinds = [None, "skip", "notes", "fragment"]
    cells = [slides.page(f"text {kind}", kind or "-") for kind in kinds]
    made = slides.as_slides(nbformat.v4.new_notebook(cells=cells)).cells
    types = [cell.metadata.slideshow.slide_type for cell in made]
    assert types == ["subslide", "notes", "skip", "notes", "fragment"]


def test_a_formula_is_one_element_and_a_wrong_one_is_named():
    text = mathml(r"\min_g \frac{1}{B} \lVert f(x_i) - c \rVert^2, \dots", display=True)
    assert text.startswith("<math") and "\\" not in text and '<mo stretchy="false">‖' in text
    for tex in (r"\nosuch x", r"\frac{1}", "x^"):
        with pytest.raises(ValueError, match="cannot be set") as error:
            mathml(tex)
        assert repr(tex) in str(error.value)


@pytest.mark.skipif(browser.PROGRAM is None, reason=browser.WHY_NOT)
def test_every_slide_fits_its_page(folder, tmp_path):
    ready = """new Promise(done => { const look = () => Reveal.isReady()
        ? done(Reveal.getTotalSlides()) : setTimeout(look, 20); look(); })"""
    state = """(() => { const body = Reveal.getCurrentSlide().querySelector('.body');
        const box = body.getBoundingClientRect();
        return [box.right, box.bottom, +(body.style.zoom || 1)] })()"""
    with browser.Browser(tmp_path) as page:
        page.size(1280, 720)
        for name in LESSONS:
            page.open((folder / f"{name}.html").as_uri())
            for slide in range(page.value(ready)):
                right, bottom, zoom = page.value(state)
                assert right <= 1280 and bottom <= 720, (name, slide, right, bottom)
                assert zoom >= 0.7, f"{name}, slide {slide}: made too small, {zoom}"
                while page.value("Reveal.availableFragments().next && (Reveal.nextFragment(), 1)"):
                    pass
                page.value("Reveal.next()")
            assert page.value("Reveal.isLastSlide()") and not page.complaints
            assert all(address.startswith(("file:", "data:")) for address in page.requested)
