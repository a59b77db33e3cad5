"""The page of methods quotes no number that its table does not have."""

import re
from pathlib import Path

from pandalib.experiments.config import METHODS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"


def test_every_number_stands_in_its_table():
    links = re.findall(r"\[([+-]?\d\.\d+)\]\((.+?)\)", PAGE.read_text(encoding="utf-8"))
    assert len(links) > 12
    for number, table in links:
        text = (PAGE.parent / table).read_text(encoding="utf-8")
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text), (number, table)


def test_every_method_of_run_is_there():
    named = re.findall(r"\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"))
    wanted = set(METHODS) - {"compactness"}  # `early` is compactness with a stop
    assert set(named) == wanted, f"docs/methods.md: {wanted ^ set(named)}"
