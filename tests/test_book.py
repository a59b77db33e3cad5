"""The book, built once and walked page by page: links, figures, formulas; no network."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import nbformat
import pytest
from bs4 import BeautifulSoup
from PIL import Image

import pandalib
from pandalib.experiments.config import METHODS

ROOT = Path(__file__).resolve().parent.parent
for package in ("sphinx", "myst_nb", "numpydoc", "furo", "sphinx_copybutton"):
    pytest.importorskip(package, reason="the extra [book] is not installed: make install")
LESSONS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
every_lesson = pytest.mark.parametrize("name", LESSONS)
in_a_browser = pytest.mark.skipif(browser.PROGRAM is None, reason=browser.WHY_NOT)


def run(*command):
    """In a process of its own: Sphinx leaves traces in the one it runs in."""
    whole = [sys.executable, *map(str, command)]
    return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    done = run(ROOT / "tools" / "book.py", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


@pytest.fixture(scope="session")
def pages(site):
    return {
        path.relative_to(site).as_posix(): BeautifulSoup(path.read_text(), "html.parser")
        for path in site.rglob("*.html")
    }


def test_every_lesson_and_text_is_reached_from_the_side(pages):
    links = pages["index.html"].select(".sidebar-tree a")
    listed = {link["href"].split("#")[0] for link in links}
    own = {"index.html", "search.html", "genindex.html", "py-modindex.html"}
    assert not pages.keys() - listed - own
    texts = [*LESSONS.values(), *(ROOT / "docs").rglob("*.md")]
    assert {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in texts} <= listed


def test_each_method_has_a_page_with_its_equation_its_file_and_its_lesson(pages):
    methods = METHODS.keys() - {"compactness"} | {"nuisance"}
    assert {f"docs/methods/{name}.html" for name in methods} == {
        name for name in pages if name.startswith("docs/methods/")
    }
    for name in methods:
        page = pages[f"docs/methods/{name}.html"]
        facts = [row.text for row in page.select("table.docutils tr")]
        assert any(text.strip().startswith("in our measurements") for text in facts), name
        assert page.select("table.docutils a[href*='notebooks/']"), name
        equation, file = page.select("article pre")[0].text, page.select("article pre")[-1].text
        assert "=" in equation and equation.split("=")[0].strip() in file, name
    assert "lambda / 2 * sum_i F_i" in pages["docs/methods/ewc.html"].select("pre")[0].text


def test_in_place_of_a_slider_there_is_an_animation(site, pages):
    sliders = {name: path.read_text(encoding="utf-8") for name, path in LESSONS.items()}
    sliders = {name: text.count("plots.slider(") for name, text in sliders.items()}
    assert sum(sliders.values()) >= 4
    for name, number in sliders.items():
        shown = pages[f"notebooks/{name}.html"].select("details img[src$='.gif']")
        assert len(shown) == number, name
        for picture in shown:
            assert picture["alt"].endswith(".")
            with Image.open(site / "notebooks" / picture["src"]) as moving:
                assert moving.n_frames > 3, name


def test_links_lead_somewhere(site, pages):
    anchors = {name: {tag["id"] for tag in page.find_all(id=True)} for name, page in pages.items()}
    dead = []
    for name, page in pages.items():
        for tag in page.find_all(lambda tag: tag.get("href") or tag.get("src")):
            parts = urlsplit(tag.get("href") or tag["src"])
            if parts.scheme:
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            inside = target.resolve().relative_to(site.resolve()).as_posix()
            fragment = unquote(parts.fragment) if tag.name == "a" and inside in anchors else ""
            if not target.is_file() or (fragment and fragment not in anchors[inside]):
                dead.append((name, parts.geturl()))
    assert not dead


def test_nothing_is_loaded_from_a_network(site, pages):
    loading = dict(script="src", link="href", img="src", iframe="src", source="src")
    for name, page in pages.items():
        for tag in page.find_all(list(loading)):
            assert not re.match(r"(https?:)?//", tag.get(loading[tag.name], "")), (name, str(tag))
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", path.read_text()), path
    assert not list(site.rglob("*mathjax*"))


@every_lesson
def test_a_lesson_is_whole(name, pages):
    """What it printed, figures with their sentences, solutions folded, formulas set."""
    article = pages[f"notebooks/{name}.html"].select_one("article")
    cells = nbformat.read(LESSONS[name], as_version=4).cells
    text = " ".join(article.text.split())
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    for output in outputs:
        if output.output_type == "stream":
            assert " ".join(output.text.split()) in text
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    sentences = [output.metadata["image/png"]["alt"] for output in figures]
    images = [image for image in article.find_all("img") if not image.find_parent(class_="row")]
    images = [image for image in images if not image["src"].endswith(".gif")]
    assert [image["alt"] for image in images] == sentences
    folds = article.select("details.hide")
    assert len(folds) == sum("### BEGIN SOLUTION" in cell.source for cell in cells) > 0
    for fold in folds:
        assert "NotImplementedError" in fold.find_previous("pre").text and not fold.has_attr("open")
    for code in article.find_all(["pre", "code", "math"]):
        code.decompose()
    assert "$" not in article.text and "\\" not in article.text
    copies = [link["href"] for link in article.select('a[href$=".ipynb"]')]
    assert len(copies) == 2


def test_reference_has_every_public_name(pages):
    for name in pandalib.__all__:
        module = f"pandalib.{pandalib._HOME[name]}"
        entry = pages[f"library/{module}.html"].find(id=f"{module}.{name}")
        assert entry is not None and entry.find_next_sibling("dd").p, f"{name} has no docstring"


def test_mistakes_end_the_build_each_with_its_line(tmp_path):
    code = "import pathlib, sys; sys.path.insert(0, 'tools'); import book\n"
    code += "text = sys.argv[1]\n"
    code += "write = lambda folder, _: (folder.mkdir(), (folder / 'index.md').write_text(text))\n"
    code += "book.gather = write; sys.exit(book.main(sys.argv[2:]))"
    text = "# A\n\n[dead](gone.md)\n\nThis $\\nosuch$ one.\n\n![a picture](gone.png)\n"
    done = run("-c", code, text, tmp_path)
    assert done.returncode == 1
    for said in ("gone.md", "nosuch", "gone.png", "index.md:5"):
        assert said in done.stderr, done.stderr


# ---------------------------------------------------------------- in a browser, without a network


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    with browser.Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@in_a_browser
def test_pages_fit_a_phone_and_are_quiet(site, pages, page):
    page.size(390, 800)
    for name in pages:
        page.open((site / name).as_uri())
        assert page.value("document.documentElement.scrollWidth") <= 390, name
        assert not page.complaints, (name, page.complaints)
        assert all(address.startswith(("file:", "data:")) for address in page.requested), name


@in_a_browser
def test_a_click_on_an_image_shows_its_neighbours(site, page):
    page.size(1200, 800)
    page.open((site / "notebooks" / "01_knn_baseline.html").as_uri())
    visible = """[...document.querySelectorAll('.beside')].map(
        panel => getComputedStyle(panel).display != 'none')"""
    before = page.value(visible)
    assert before == [True] + [False] * 8
    page.value("document.querySelectorAll('[for^=choice-]')[4].click()")
    assert page.value(visible) == [n == 4 for n in range(9)]


@in_a_browser
def test_search_works_from_a_disk(site, page):
    page.size(1200, 800)
    page.open((site / "search.html").as_uri() + "?q=fisher")
    found = page.value("""new Promise(done => { const look = () => {
        const results = document.querySelector('#search-results');
        const links = [...results.querySelectorAll('li a')].map(link => link.href);
        if (/finished|found/i.test(results.innerText)) done(links); else setTimeout(look, 50)
        }; look(); })""")
    assert any("04_ewc.html" in link for link in found) and not page.complaints
