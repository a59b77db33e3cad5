"""The sentences of predictions, hints and checks, one TOML file a language.

`PANDALIB_LANGUAGE=de` takes `de.toml`, beside `en.toml`; a sentence that it lacks comes from the
English one, so that a translation may begin with a single line.
"""

from __future__ import annotations

import difflib
import functools
import os
import tomllib
from importlib import resources

FOLDER = resources.files(__name__)


class OneLine(Exception):
    """An exception that a notebook shows as one line, not as a traceback through the library."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for this first
        return [str(self)]


class Mistyped(OneLine, ValueError):
    """A name or an answer that is none of those to choose from."""


def table() -> dict:
    """All sentences in the language PANDALIB_LANGUAGE, or in English.

    Raises ValueError when there is no file of that language, or one that is not TOML.
    """
    return _table(os.environ.get("PANDALIB_LANGUAGE") or "en")


@functools.cache
def _table(language: str) -> dict:
    file = FOLDER / f"{language}.toml"
    if not file.is_file():
        raise ValueError(f"PANDALIB_LANGUAGE={language}: there is no file {language}.toml.")
    try:
        sentences = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file.name} cannot be read: {error}.") from error
    return sentences if language == "en" else _completed(sentences, _table("en"))


def _completed(own: dict, english: dict) -> dict:
    """`own`, with the entries of `english` that it lacks."""
    return {
        key: _completed(own.get(key, {}), value) if isinstance(value, dict) else own.get(key, value)
        for key, value in english.items()
    }


def text(section: str, key: str) -> dict:
    """The entry `[section.key]`; Mistyped for an unknown key, with the one that was meant."""
    entries = table()[section]
    if key not in entries:
        near = difflib.get_close_matches(str(key), entries, n=1)
        choice = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(entries)}."
        kind = {"predict": "prediction"}.get(section, section)
        raise Mistyped(f"there is no {kind} {key!r}: {choice}")
    return entries[key]


def say(name: str, /, **values) -> str:
    """The sentence `name` of the section `[say]`, with the values in its braces."""
    return table()["say"][name].format(**values)
