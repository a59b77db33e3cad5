"""The report as a reader, a screen reader and a suspicious browser meet it."""

import base64
import hashlib
import io
import json
import re
from datetime import datetime
from html.parser import HTMLParser
from types import SimpleNamespace

import browser
import numpy as np
import pytest
from PIL import Image

from pandalib.datasets.images import Geometry
from pandalib.inspection.ranking import Finding, Ranking
from pandalib.inspection.report import (
    in_words,
    overlay,
    ranked_rows,
    scale_bar,
    write_report,
)
from pandalib.inspection.review import read_review

SIDE = 40
EVIL = "<script>alert('x')</script>&\"onerror=\".png"
VOID = {"meta", "img", "br", "line", "rect", "path", "input"}
SHA = 64 * "a"
KINDS = ("normal", "found")


def detector(source="imagenet", n=30):
    backbone = SimpleNamespace(
        name="resnet18", truncate_after="layer4", source=source, weights_sha256=SHA
    )
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        backbone=backbone,
        false_alarm_rate=0.05,
        normal_scores_=rng.uniform(0.5, 1.5, n),
        features_=np.zeros((3 * n, 2)),
        sample_=np.arange(n),
        geometry_=Geometry(SIDE, SIDE),
        read_as=str(Geometry(SIDE, SIDE)),
        method="spade",
        tile_=None,
        k=2,
        normalise=True,
        whiten=False,
        adapt="ewc",
        adapted_=[0, 1, 2],
        check_names_=[],
        left_out_=[],
        check=lambda: [],
        layers_=["layer1", "layer2"],
        n_images=50,
        sigma=4.0,
        threshold=lambda rate: {0.05: 1.25, 0.1: 1.0, 0.3: 1.0}[rate],
    )


def ranking(n=8, top=3, names=None, unreadable=(), scale=1.0):
    rng = np.random.default_rng(1)
    parts = dict(image=rng.uniform(0.2, 1.1, n), place=rng.uniform(0.2, 1.1, n))
    parts["place"][2] = 5.0
    parts = {part: values * scale for part, values in parts.items()}
    peaks = np.full((n, 2), 0.5)
    peaks[2] = 0.1, 0.9
    order = np.argsort(-np.maximum(*parts.values()))
    findings = []
    for number in order[:top].tolist():
        heat = np.zeros((SIDE, SIDE), np.float32)
        heat[2:10, 30:40] = parts["place"][number]
        image = rng.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
        findings.append(Finding(number, image, heat, (SIDE, SIDE)))
    names = names or [f"photo {number}.png" for number in range(n)]
    return Ranking(names, parts, peaks, findings, list(unreadable), *no_news(n))


def no_news(n):
    """p-values, regions, images that were fitted, and sizes that are new."""
    return np.full(n, 0.5), [[] for _ in range(n)], [0] * n, [], []


class Page(HTMLParser):
    """Elements with attributes, text and headings; fails on a tag that is not closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self):
        return " ".join("".join(self.text).split())


def written(tmp_path, *arguments, **options) -> str:
    write_report(tmp_path / "report.html", *arguments, **options)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def text(tmp_path):
    return written(tmp_path, detector(), ranking(), when=datetime(2026, 3, 4, 5, 6))


def test_structure(text):
    page = Page(text)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    assert page.all("html") == [{"lang": "en"}] and page.all("title")
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in page.elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids
        assert attributes.get("href", "#" + ids[0])[1:] in ids
    scopes = [th["scope"] for th in page.all("th")]
    assert scopes == ["col"] * 8 + ["row"] * 8


def test_nothing_is_fetched_and_only_the_review_runs(text):
    page = Page(text)
    tags = [tag for tag, _ in page.elements]
    assert not set(tags) & {"link", "iframe", "object", "embed", "base", "form"}
    assert tags.count("script") == 1 and page.all("script") == [{}]
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert attributes.get("href", "#").startswith("#")
    script = text.partition("<script>")[2].partition("</script>")[0]
    assert not re.search(r"@import|https?:|url\((?!#)|[{%#]}|{[%#{]", text.replace(script, ""))
    # The browser runs the script with this hash and no other, and fetches nothing.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    assert not re.search(r"fetch|XMLHttp|eval|Function|innerHTML|import|document.write", script)


def test_each_image_can_be_reviewed_once(text, tmp_path):
    found = ranking()
    sets = Page(text).all("fieldset")
    names = [json.loads(one["data-file"]) for one in sets]
    assert names == [found.names[number] for number in found.order]  # cards, then the table's rest
    assert [one["data-alarm"] for one in sets] == ["true"] + 7 * ["false"]
    radios = [one for one in Page(text).all("input") if one["type"] == "radio"]
    assert [one["value"] for one in radios] == ["normal", "defect"] * 8
    assert len({one["name"] for one in radios}) == 8
    odd = ["a\udce9.png", "b\u202f\U0001f600.png", "\"'<&>.png", *"cdefg"]
    text = written(tmp_path, detector(), ranking(names=odd))
    assert {json.loads(one["data-file"]) for one in Page(text).all("fieldset")} == set(odd)


def test_the_report_says_whether_confirmed_defects_are_found(tmp_path):
    one = detector()
    one.check_names_, one.check = ["x.png", "<y>.png"], lambda: [9.0, 0.1]
    words = Page(written(tmp_path, one, ranking())).words()
    assert "Of 2 confirmed defects from earlier reviews, 1 are found. Missed: <y>.png" in words


@pytest.mark.parametrize("top", [50, 240])
def test_a_report_of_2000_images_is_small(tmp_path, top):
    rng = np.random.default_rng(0)
    found = ranking(n=2000, top=top)
    noise = [
        Finding(
            one.number, rng.integers(0, 256, (3, 224, 224), dtype=np.uint8), one.map, (224, 224)
        )
        for one in found.top
    ]
    noise = [one._replace(map=np.zeros((224, 224), np.float32)) for one in noise]
    text = written(tmp_path, detector(), found._replace(top=noise))
    assert len(text) < 10e6 and text.count("<fieldset") == 2000


def test_more_than_a_page_of_cards_is_folded(tmp_path):
    page = Page(written(tmp_path, detector(), ranking(n=150, top=130)))
    assert [one.get("start") for one in page.all("ol")] == [None, "61", "121"]
    assert len(page.all("details")) == 3 and "Ranks 121 to 130" in page.words()


@pytest.mark.skipif(browser.PROGRAM is None, reason=browser.WHY_NOT)
def test_the_review_in_a_browser(tmp_path):
    """By keyboard and by mouse, into the folded cards; the file that is saved is a review."""
    found = ranking(n=70, top=70)
    written(tmp_path, detector(), found)
    key = """document.activeElement.dispatchEvent(
        new KeyboardEvent("keydown", {key: "%s", bubbles: true}))"""
    with browser.Browser(tmp_path / "profile") as page:
        page.open((tmp_path / "report.html").as_uri())
        assert page.value("document.getElementById('save').disabled")
        page.value("document.querySelector('fieldset input').focus()")
        for verdict in 59 * "a" + "da":
            page.value(key % verdict)
        place = "[...document.querySelectorAll('fieldset')].indexOf({}.closest('fieldset'))"
        assert page.value(place.format("document.activeElement")) == 61  # the fold has opened
        page.value("document.querySelectorAll('fieldset')[65].querySelector('label').click()")
        assert page.value("document.getElementById('count').textContent") == "62 of 70 reviewed."
        page.value("""URL.createObjectURL = blob => { window.saved = blob; return "#" }""")
        page.value("document.getElementById('save').click()")
        review = json.loads(page.value("window.saved.text()"))
        assert page.complaints == []
    verdicts = [one["verdict"] for one in review["reviewed"]]
    assert verdicts == 59 * ["normal"] + ["defect", "normal", "normal"]
    names = [found.names[number] for number in found.order]
    assert [one["file"] for one in review["reviewed"]] == names[:61] + [names[65]]
    (tmp_path / "review.json").write_text(json.dumps(review), encoding="utf-8")
    for name in names:
        (tmp_path / name).touch()
    normal, defects, _ = read_review(tmp_path / "review.json", tmp_path)
    assert len(normal) == 61 and [file.name for file in defects] == [names[59]]


def test_names_cannot_become_markup(tmp_path):
    found = ranking(names=[EVIL] * 8, unreadable=[(EVIL, EVIL)])
    text = written(tmp_path, detector(), found, title=EVIL)
    page = Page(text)
    assert len(page.all("script")) == 1 and text.lower().count("<script") == 1
    assert not any("onerror" in attributes for _, attributes in page.elements)
    # Cards, table, verdicts, list of failures, title and heading.
    assert page.words().count(EVIL) == 3 + 8 + 8 + 2 + 2
    assert sum(EVIL in image["alt"] for image in page.all("img")) == 6


def test_the_report_of_normal_images(tmp_path):
    one = detector()
    one.left_out_ = [("a.png", 4.0), (EVIL, 3.5), ("c.png", 3.2)]
    page = Page(written(tmp_path, one, ranking(), of_normal=True))
    assert [th["scope"] for th in page.all("th")] == ["col"] * 7 + ["row"] * 8
    assert len(page.all("td")) == 6 * 8
    assert not page.all("fieldset") + page.all("script") + page.all("button")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert all(given.get("aria-labelledby", ids[0]) in ids for _, given in page.elements)
    words = page.words()
    assert f"a.png (4.00 times the median), {EVIL} (3.50 times the median), c.png" in words
    assert "Only 30 images, drawn from 87, were looked at" in words  # of 90, 3 were adapted to
    assert "The 3 images that the network was adapted to are not among these" in words
    assert "Missing here: 22 images, changed or unreadable" in words


def test_every_picture_has_a_sentence(text):
    images = Page(text).all("img")
    assert len(images) == 1 + 2 * 3
    for image in images:
        assert len(image["alt"].split()) > 5 and image["alt"].endswith(".")
        assert int(image["width"]) and int(image["height"])
        pixels = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
        assert pixels.format == "JPEG"
    assert images[1]["alt"] == "photo 2.png, rank 1 of 8, 4.00 times the threshold."
    assert images[2]["alt"] == (
        "Heat map of photo 2.png: hottest at the upper right, where it reaches 4.00 times the "
        "threshold; 5 % of the image lies above the threshold."
    )
    assert "no place lies above the threshold" in images[4]["alt"]


def test_numbers_and_facts(text):
    words = Page(text).words()
    # In the gallery and in the table.
    assert text.count("▲ alarm") == 2 and text.count(">no alarm<") == 2 + 7
    for fact in (
        "1 of 8 images raises an alarm.",
        "About 1 in 20 new normal images",
        "The 3 most unusual of 8 images",
        "Table of 8 images",
        SHA,
        "2026-03-04 05:06",
        "90, of which 30 serve",
        "5 %, about 1 in 20",
        "resnet18 up to layer4, weights: ImageNet",
        "40 x 40 pixels, the whole image",
        "layer1, layer2; SPADE, 50 nearest images; blur of 4 pixels",
        "2 nearest normal images; features normalised; network adapted to 3 of the normal images, "
        "with EWC",
        "torch ",
        "Python 3",
    ):
        assert fact in words, fact
    assert "embedded network" not in words and "could not be read" not in words


def test_the_table_has_all_scores_in_order(text):
    found = ranking()
    cells = re.findall(r"<tr><td>(\d+)</td>.*?<bdi>(.*?)</bdi>(.*?)</tr>", text, re.DOTALL)
    order = np.argsort(-found.scores)
    assert [name for _, name, _ in cells] == [found.names[number] for number in order]
    numbers = re.findall(r"<td>([^<]+)</td>", cells[0][2])
    assert numbers[:4] == ["4.000", f"{found.parts['image'][2] / 1.25:.3f}", "4.000", "upper right"]
    rows = list(ranked_rows(found, 1.25))
    assert [row["rank"] for row in rows] == list(range(1, 9))
    assert [row["score"] for row in rows] == found.scores[order].tolist()
    assert rows[0]["alarm"] is True and rows[0]["relative"] == 4 and rows[1]["alarm"] is False


def test_another_rate_moves_the_threshold(tmp_path):
    words = Page(written(tmp_path, detector(), ranking(), rate=0.1)).words()
    assert f"{(ranking().scores > 1).sum()} of 8 images" in words
    assert "About 1 in 10 new normal images" in words
    words = Page(written(tmp_path, detector(), ranking(), rate=0.3)).words()
    assert "About 30 in 100 new normal images" in words


def test_what_a_reader_must_be_told(tmp_path):
    broken = [("a.png", "it is empty (0 bytes)")]
    words = Page(written(tmp_path, detector("embedded"), ranking(unreadable=broken))).words()
    assert "Made with the embedded network" in words
    assert "1 file could not be read and is not among them" in words
    assert "1 file that could not be read a.png: it is empty (0 bytes)" in words
    words = Page(written(tmp_path, detector(None), ranking(top=8, scale=0.1))).words()
    assert "None of 8 images raise an alarm" in words and "weights: given by hand" in words
    assert "All 8 images, the most unusual first" in words
    words = Page(written(tmp_path, detector("/a/b.pth"), one_image())).words()
    assert "1 of 1 image raises an alarm" in words and "Table of 1 image " in words
    assert "weights: b.pth" in words and "12.0 times the threshold" in words


def one_image():
    parts = dict(image=np.array([15.0]), place=np.array([3.0]))
    found = ranking()
    return Ranking(
        ["a.png"], parts, np.zeros((1, 2)), [found.top[0]._replace(number=0)], [], *no_news(1)
    )


def test_histogram_holds_the_shares(text):
    """The heights of the outline, back into shares, add up to all images of either kind."""
    svg = re.search(r"<svg class=\"histogram\".*?</svg>", text, re.DOTALL).group()
    base = float(re.search(r'class="axis" x1="46" x2="466" y1="([\d.]+)"', svg).group(1))
    paths = {kind: re.search(rf'class="{kind}" d="(.*?)"', svg).group(1) for kind in KINDS}
    heights = {
        kind: [base - float(y) for y in re.findall(r"V([\d.]+)H", path)]
        for kind, path in paths.items()
    }
    highest = max(max(values) for values in heights.values())
    share_of_highest = int(re.findall(r">(\d+) %<", svg)[1]) / 100
    for kind in KINDS:
        assert sum(heights[kind]) / highest * share_of_highest == pytest.approx(1, abs=0.05)
        assert paths[kind].count("M") == paths[kind].count("Z") > 1  # runs of bins
    label = Page(svg).all("svg")[0]["aria-label"]
    assert f"the highest at {detector().normal_scores_.max() / 1.25:.2f}" in label
    assert "1 of 8 above the threshold" in label
    # The two kinds differ not by colour alone.
    assert "url(#hatch)" in text and "stroke-dasharray" in text


@pytest.mark.parametrize("scores", [[0] * 5, [1e6] * 5, [0, 1e-9, 1, 50, 4000.0]])
def test_extreme_scores(tmp_path, scores):
    scores = np.array(scores, float)
    found = ranking(n=5)._replace(parts=dict(image=scores, place=scores))
    text = written(tmp_path, detector(), found)
    Page(text)
    assert not re.search(r"[\"> ,](nan|inf)[\"< ,]", re.sub('base64,[^"]*', "", text))


def test_a_failure_leaves_the_old_report(tmp_path, text):
    with pytest.raises(IndexError):
        write_report(tmp_path / "report.html", detector(), ranking()._replace(names=["only one"]))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text
    assert len(list(tmp_path.iterdir())) == 1


def test_pictures_have_the_proportions_of_their_originals(tmp_path):
    found = ranking()
    tall = [one._replace(size=(90, 30)) for one in found.top]
    for fit, sides in (("stretch", (13, 40)), ("pad", (13, 40)), ("crop", (40, 40))):
        one = detector()
        one.geometry_ = Geometry(SIDE, SIDE, fit)
        images = Page(written(tmp_path, one, found._replace(top=tall))).all("img")[1:]
        assert {(int(image["width"]), int(image["height"])) for image in images} == {sides}


# --- pictures ---


def test_overlay_colours_what_is_hot_and_leaves_the_rest():
    image = np.random.default_rng(0).integers(60, 200, (3, 64, 64), dtype=np.uint8)
    heat = np.zeros((64, 64), np.float32)
    heat[:, 40:] = 3.0
    laid = overlay(image, heat, 1.5)
    assert laid.shape == (320, 320, 3) and laid.dtype == np.uint8
    cool, hot = laid[:, :150], laid[:, 230:]
    assert np.array_equal(cool[..., 0], cool[..., 1]) and np.array_equal(cool[..., 1], cool[..., 2])
    # Darker, and the image still shows.
    assert hot.mean() < cool.mean() - 30 and hot[..., 0].std() > 3
    # A white line where the map passes the threshold, in its dark border.
    columns = np.flatnonzero((laid == 255).all(axis=(0, 2)))
    assert len(columns) == 2 and 180 < columns[0] < 205
    assert (laid[:, columns[0] - 1] == 0).all() and (laid[:, columns[-1] + 1] == 0).all()
    assert not (overlay(image, heat, 3.1) == 255).all(axis=2).any()
    large = overlay(np.zeros((3, 500, 400), np.uint8), np.zeros((500, 400), np.float32), 1.0)
    assert large.shape == (500, 400, 3)


def test_the_scale_darkens_evenly():
    bar = scale_bar().astype(float)[0] @ [0.299, 0.587, 0.114]
    assert bar[128] == pytest.approx(255) and bar[126] == 0
    clean = np.concatenate([bar[70:120], bar[136:]])
    assert np.all(np.diff(clean) <= 1)


def test_places_in_words():
    places = [in_words((row, column)) for row, column in ((0, 0), (0.1, 0.4), (0.5, 1), (1, 0.9))]
    assert places == ["upper left", "top", "right", "lower right"]
