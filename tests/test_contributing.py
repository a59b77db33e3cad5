"""The pages for those who cite, follow and change the project: fields, length, what they name."""

import re
import tomllib
from datetime import date
from pathlib import Path

import pytest

import pandalib

yaml = pytest.importorskip("yaml", reason="PyYAML comes with Jupyter")
ROOT = Path(__file__).resolve().parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PAGES = {name: (ROOT / f"{name}.md").read_text() for name in ("CONTRIBUTING", "CHANGELOG")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Of the Citation File Format 1.2.0, those keys that this project may need.
KEYS = set(
    "cff-version message type title abstract authors version license keywords references url "
    "repository-code date-released doi identifiers preferred-citation".split()
)


def test_the_citation_has_the_fields_of_its_format():
    assert CITATION["cff-version"] == "1.2.0" and not CITATION.keys() - KEYS
    assert {"message", "title", "authors"} <= CITATION.keys() and CITATION["type"] == "software"
    assert CITATION["version"] == pandalib.__version__
    assert CITATION["license"] == PROJECT["license"]
    if "date-released" in CITATION:
        assert isinstance(CITATION["date-released"], date)
    for author in CITATION["authors"]:
        assert set(author) <= {"name", "family-names", "given-names", "orcid", "website"}


def test_the_citation_names_the_paper_as_the_readme_does():
    (paper,) = CITATION["references"]
    readme = (ROOT / "README.md").read_text()
    authors = re.search(r"author\s*= \{(.*)\}", readme)[1].split(" and ")
    assert [f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]] == authors
    title = re.search(r"title\s*= \{(.*)\}", readme)[1].replace("{", "").replace("}", "")
    assert paper["title"] == title and str(paper["year"]) in readme


def test_the_changelog_knows_this_version():
    versions = re.findall(r"^## (\S+)", PAGES["CHANGELOG"], re.M)
    assert versions[0] == "Unreleased" and versions[1] == pandalib.__version__
    assert set(re.findall(r"^### (\w+)", PAGES["CHANGELOG"], re.M)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Fixed",
        "Removed",
        "Security",
    }


def test_the_page_for_contributors_is_one_page():
    headings = re.findall(r"^## (.*)$", PAGES["CONTRIBUTING"], re.M)
    assert headings == ["A method", "A data set", "A lesson", "A language"]
    assert len(PAGES["CONTRIBUTING"].split()) < 650
