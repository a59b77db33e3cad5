"""Every translation says what the English file says: the same places, the same names in braces."""

import os
import string
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pandalib.teach import strings

FOLDER = Path(__file__).resolve().parent.parent / "pandalib" / "teach" / "strings"
LANGUAGES = sorted({path.stem for path in FOLDER.glob("*.toml")} - {"en"})
ENGLISH = tomllib.loads((FOLDER / "en.toml").read_text(encoding="utf-8"))


def sentences(table, place=()):
    """Every sentence with its place; the entries of a list are places of their own."""
    if isinstance(table, str):
        yield place, table
    for key, value in table.items() if isinstance(table, dict) else ():
        yield from sentences(value, (*place, key))
    for key, value in enumerate(table) if isinstance(table, list) else ():
        yield from sentences(value, (*place, key))


def problems(own, english):
    """What a translation has that English has not, and names in braces that differ."""
    expected = dict(sentences(english))
    for place, text in sentences(own):
        where = ".".join(map(str, place))
        if place not in expected:
            yield f"{where} is not in en.toml"
        elif place[0] == "say" and names(text) != names(expected[place]):
            yield f"{where} has {names(text)}, expected {names(expected[place])}"
        elif place[-1] in ("right", "section", "lesson") and place[0] != "say":
            yield f"{where} is no sentence: leave it out"
    for section, key in {place[:2] for place, _ in sentences(own) if place[-2:-1] == ("hints",)}:
        if len(own[section][key]["hints"]) != len(english[section][key]["hints"]):
            yield f"{section}.{key}.hints: another number of hints"


def names(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_fits_the_english_file(language):
    own = tomllib.loads((FOLDER / f"{language}.toml").read_text(encoding="utf-8"))
    found = list(problems(own, ENGLISH))
    assert not found, "\n".join(found)
    assert list(sentences(own))


def test_what_does_not_fit_is_named():
    own = {
        "say": {"right": "Richtig: {lob}", "nothing": "x"},
        "predict": {"00-pixels": {"right": "c"}},
        "exercise": {"roc_auc_by_pairs": {"hints": ["nur einer"]}},
    }
    assert sorted(problems(own, ENGLISH)) == [
        "exercise.roc_auc_by_pairs.hints: another number of hints",
        "predict.00-pixels.right is no sentence: leave it out",
        "say.nothing is not in en.toml",
        "say.right has {'lob'}, expected {'praise'}",
    ]


def test_lesson_00_answers_in_german_and_the_others_in_english():
    code = """
from pandalib.teach import check
from pandalib.teach.strings import say, text
for key in ("roc_auc_by_pairs", "leave_one_out"):
    print(say("hints", step=1, n=3, key=key), text("exercise", key)["hints"][0])
try:
    check("roc_auc_by_pairs", lambda labels, scores: 1 - abs(labels - 0).mean())
except AssertionError:
    pass
"""
    own = os.environ | {"PANDALIB_LANGUAGE": "de", "PYTHONIOENCODING": "utf-8"}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=own, capture_output=True, text=True, encoding="utf-8")
    german, english, answer = done.stdout.splitlines()
    assert german.startswith("**1 von 3 Hinweisen zu `roc_auc_by_pairs`** Teilen Sie die Scores")
    assert ENGLISH["exercise"]["leave_one_out"]["hints"][0] in english
    assert answer.startswith("Noch nicht, roc_auc_by_pairs: ")


def test_a_broken_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "xx.toml").write_text('[say]\nright = "\n', encoding="utf-8")
    monkeypatch.setattr(strings, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"xx\.toml cannot be read: .*line 2"):
        strings._table("xx")
