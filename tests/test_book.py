"""The book, built once and walked page by page: links, alternative text, formulas, and nothing from any network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import nbformat
import pytest
from bs4 import BeautifulSoup

import pandalib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import book  # noqa: E402

for package in book.PACKAGES:
    pytest.importorskip(package, reason="the extra [book] is not installed: make install")
NOTEBOOKS = {
    path.stem: nbformat.read(path, as_version=4)
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
}
checkpoint_every = pytest.mark.parametrize("name", NOTEBOOKS)
in_a_browser = pytest.mark.skipif(browser.PROGRAM is None, reason=browser.WHY_NOT)


def run(code, *arguments):
    """Python in a process of its own, with tools/ at hand; Sphinx leaves traces in the process it runs in."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "tools"))
    return subprocess.run(
        [sys.executable, *code, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    done = run([str(ROOT / "tools" / "book.py")], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


@pytest.fixture(scope="session")
def pages(site):
    return {
        path.relative_to(site).as_posix(): BeautifulSoup(path.read_text(), "html.parser")
        for path in sorted(site.rglob("*.html"))
    }


# ---------------------------------------------------------------- the pages


def test_every_lesson_and_text_has_its_page(pages):
    for name in NOTEBOOKS:
        assert f"notebooks/{name}.html" in pages
    for path in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "results").rglob("*.md")]:
        assert path.relative_to(ROOT).with_suffix(".html").as_posix() in pages
    cards = pages["index.html"].select("a.lesson")
    assert [card["href"] for card in cards] == [f"notebooks/{name}.html" for name in NOTEBOOKS]


def test_every_page_is_reached_from_the_side(pages):
    listed = {
        link["href"].split("#")[0]
        for link in pages["index.html"].select(".sidebar-tree a")
        if link.get("href")
    }
    rest = set(pages) - listed - {"index.html", "search.html", "genindex.html"}
    assert not rest


def test_links_lead_somewhere(site, pages):
    anchors = {name: {tag["id"] for tag in page.find_all(id=True)} for name, page in pages.items()}
    dead, n_links = [], 0
    for name, page in pages.items():
        for tag in page.find_all(lambda tag: tag.get("href") or tag.get("src")):
            address = tag.get("href") or tag["src"]
            parts = urlsplit(address)
            n_links += 1
            if parts.scheme:
                good = (
                    parts.scheme in ("http", "https")
                    and re.fullmatch(r"[\w.-]+\.[a-z]{2,}", parts.netloc)
                    and " " not in address
                )
                if not good:
                    dead.append((name, address))
                continue
            target = (
                (site / name).parent.joinpath(unquote(parts.path)).resolve()
                if parts.path
                else (site / name)
            )
            fragment, inside = (
                unquote(parts.fragment),
                target.relative_to(site).as_posix() if target.is_relative_to(site) else None,
            )
            if not target.is_file() or (
                fragment
                and tag.name == "a"
                and inside in anchors
                and fragment not in anchors[inside]
            ):
                dead.append((name, address))
    assert not dead and n_links > 1000


def test_nothing_is_loaded_from_a_network(site, pages):
    loading = {
        "script": "src",
        "link": "href",
        "img": "src",
        "iframe": "src",
        "source": "src",
        "video": "src",
        "audio": "src",
        "object": "data",
    }
    for name, page in pages.items():
        for tag in page.find_all(list(loading)):
            assert not re.match(r"(https?:)?//", tag.get(loading[tag.name], "")), (
                name,
                str(tag)[:200],
            )
        for style in page.find_all("style"):
            assert not re.search(r"url\(|@import", style.text), name
    for path in site.rglob("*.css"):
        text = path.read_text()
        assert not re.search(
            r"@import\s+(url\()?['\"]?(https?:)?//|url\(['\"]?(https?:)?//", text
        ), path
    for path in site.rglob("*.js"):
        assert not re.search(
            r"(fetch|import|importScripts|loadScript)\(\s*['\"`]https?://|\.src\s*=\s*['\"`]https?://",
            path.read_text(),
        ), path
    assert not list(site.rglob("*mathjax*"))


def test_every_image_says_what_it_shows(site, pages):
    images = [(name, image) for name, page in pages.items() for image in page.find_all("img")]
    assert len(images) > 30
    for name, image in images:
        if "sidebar-logo" in image.get("class", []):  # beside the course's name, which says it
            assert image.has_attr("alt")
            continue
        assert len(image.get("alt", "").split()) > 3, (name, str(image)[:200])


@checkpoint_every
def test_figures_of_a_lesson_carry_their_sentences(name, pages):
    sentences = [
        output.metadata["image/png"]["alt"]
        for cell in NOTEBOOKS[name].cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    figures = pages[f"notebooks/{name}.html"].select("article figure")
    assert [figure.img["alt"] for figure in figures] == sentences and sentences
    assert [figure.figcaption.p.span.text for figure in figures] == sentences


@checkpoint_every
def test_cells_and_their_outputs_are_there(name, pages):
    article = pages[f"notebooks/{name}.html"].select_one("article")
    text = " ".join(article.text.split())
    assert len(article.select("h1")) == 1
    for cell in NOTEBOOKS[name].cells:
        if cell.cell_type == "code" and cell.id != book.ONLY_TO_RUN:
            for line in cell.source.splitlines():
                assert (
                    line.startswith("### ") or "### " in line or " ".join(line.split()) in text
                ), line
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                assert " ".join(output.text.split()) in text


@checkpoint_every
def test_solutions_are_folded_below_their_stubs(name, pages):
    article = pages[f"notebooks/{name}.html"].select_one("article")
    solved = [cell for cell in NOTEBOOKS[name].cells if "### BEGIN SOLUTION" in cell.source]
    folds = article.select("details.hide")
    assert len(folds) == len(solved) and solved
    assert not any(fold.has_attr("open") for fold in folds) and "### BEGIN" not in article.text
    for fold in folds:
        before = fold.find_previous("pre")
        assert "NotImplementedError" in before.text and "NotImplementedError" not in fold.text


@checkpoint_every
def test_predictions_and_answers_stand_out(name, pages):
    article = pages[f"notebooks/{name}.html"].select_one("article")
    sources = [cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == "code"]
    assert len(article.select(".prediction li")) >= 2 * len(article.select(".prediction")) > 0
    assert len(article.select(".prediction")) == sum(
        source.startswith("predict(") for source in sources
    )
    assert len(article.select("p.answer")) == sum("reveal(" in source for source in sources)
    assert all(answer.text.startswith("The answer is") for answer in article.select("p.answer"))


@checkpoint_every
def test_the_notebook_can_be_taken_along(name, site, pages):
    links = pages[f"notebooks/{name}.html"].select('article a[href$=".ipynb"]')
    files = [(site / "notebooks" / link["href"]).resolve().read_bytes() for link in links]
    originals = [
        ROOT / "notebooks" / "student" / f"{name}.ipynb",
        ROOT / "notebooks" / f"{name}.ipynb",
    ]
    assert files == [path.read_bytes() for path in originals]


@checkpoint_every
def test_formulas_are_set(name, pages):
    written = sum(
        len(re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", re.sub(r"`[^`]*`", "", cell.source), re.DOTALL))
        for cell in NOTEBOOKS[name].cells
        if cell.cell_type == "markdown"
    )
    article = pages[f"notebooks/{name}.html"].select_one("article")
    assert len(article.find_all("math")) == written
    for code in article.find_all(["pre", "code", "math"]):
        code.decompose()
    assert "$" not in article.text and "\\" not in article.text


def test_reference_has_every_public_name(site, pages):
    for name in pandalib.__all__:
        module = pandalib._HOME[name]
        page = pages[f"api/pandalib.{module}.html"]
        entry = page.find(id=f"pandalib.{module}.{name}")
        assert entry is not None, f"{name} has no docstring"
        first = getattr(pandalib, name).__doc__.strip().split("\n")[0]
        said = entry.find_next_sibling("dd").p.text
        assert re.sub(r"\W", "", first) in re.sub(r"\W", "", said), name
    assert not [
        path for path in (site / "api").glob("*.html") if "TypeAliasForwardRef" in path.read_text()
    ]


def test_the_search_knows_the_lessons(site):
    index = json.loads(
        re.search(r"Search\.setIndex\((.*)\)", (site / "searchindex.js").read_text(), re.DOTALL)[1]
    )
    found = [number for terms in ("terms", "titleterms") for number in [index[terms]["fisher"]]]
    names = {
        index["docnames"][number]
        for one in found
        for number in (one if isinstance(one, list) else [one])
    }
    assert "notebooks/04_ewc" in names


# ---------------------------------------------------------------- what goes wrong


BUILD = "import sys, book; book.pages = lambda: {'index.md': sys.argv[1]}; sys.exit(book.main(sys.argv[2:]))"


def test_mistakes_end_the_build_each_with_its_line(tmp_path):
    text = "# A\n\n[dead](gone.md)\n\nThis $\\nosuch$ one.\n\n![a picture](gone.png)\n"
    for _ in range(2):  # and not only the first time
        done = run(["-c", BUILD], text, tmp_path)
        assert done.returncode == 1 and "error: the book was not built" in done.stderr
        for said in ("gone.md", "nosuch", "gone.png"):
            assert said in done.stderr, done.stderr
        assert "index.md:5" in done.stderr


def test_missing_packages_are_named(tmp_path):
    code = "import sys, book; book.PACKAGES = ('sphinx', 'no_such_package'); sys.exit(book.main(sys.argv[1:]))"
    done = run(["-c", code], tmp_path)
    assert (
        done.returncode == 1 and "no_such_package" in done.stderr and "make install" in done.stderr
    )


# ---------------------------------------------------------------- in a browser, without a network


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    with browser.Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


# Elements that reach beyond the screen, but for those that are rolled in a box of their own. The page as a whole must not roll sideways.
CUT_OFF = """[...document.querySelectorAll('article, article *')].filter(one => {
    if (one.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let outer = one; outer.tagName != 'ARTICLE'; outer = outer.parentElement)
        if (['auto', 'scroll'].includes(getComputedStyle(outer).overflowX)) return false;
    return true }).map(one => one.outerHTML.slice(0, 100))"""


@in_a_browser
def test_pages_fit_a_phone_and_are_quiet(site, pages, page):
    page.size(390, 800)
    for name in pages:
        page.open((site / name).as_uri())
        assert (
            page.value("document.documentElement.scrollWidth") <= 390 and page.value(CUT_OFF) == []
        ), (name, page.value(CUT_OFF)[:5])
        assert not page.complaints, (name, page.complaints)
        assert all(address.startswith(("file:", "data:")) for address in page.requested), name


@in_a_browser
def test_dark_mode_follows_the_system(site, page):
    def brightness():
        red, green, blue = re.findall(
            r"\d+", page.value("getComputedStyle(document.body).backgroundColor")
        )[:3]
        return int(red) + int(green) + int(blue)

    page.size(1200, 800, dark=True)
    page.open((site / "index.html").as_uri())
    assert brightness() < 150
    page.size(1200, 800)
    page.open((site / "index.html").as_uri())
    assert brightness() > 700


@in_a_browser
def test_formulas_have_their_font(site, page):
    page.size(1200, 800)
    page.open((site / "notebooks" / f"{list(NOTEBOOKS)[-1]}.html").as_uri())
    page.open((site / "notebooks" / "04_ewc.html").as_uri())
    assert (
        page.value(
            "[...document.fonts].filter(font => font.family.includes('STIX') && font.status == 'loaded').length"
        )
        == 1
    )
    high = "document.querySelector('.formula math').getBoundingClientRect().height / parseFloat(getComputedStyle(document.body).fontSize)"
    assert 1.5 < page.value(high) < 6


@in_a_browser
def test_search_works_from_a_disk(site, page):
    page.size(1200, 800)
    page.open((site / "search.html").as_uri() + "?q=fisher")
    found = page.value("""new Promise(done => { const look = () => {
        const links = [...document.querySelectorAll('#search-results li a')].map(link => link.href);
        /finished|found/i.test(document.querySelector('#search-results').innerText) ? done(links) : setTimeout(look, 50) }; look(); })""")
    assert any("04_ewc.html" in link for link in found) and not page.complaints
