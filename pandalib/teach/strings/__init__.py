"""The sentences of predictions, hints and checks, one TOML file a language.

`PANDALIB_LANGUAGE=de` takes `de.toml`, beside `en.toml`, and whatever that file lacks, one sentence at a time, comes
from the English one. So a translation may begin with a single line.
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


def table(language: str | None = None) -> dict:
    """All sentences of a language (default: PANDALIB_LANGUAGE, or English), completed by the English ones.

    Raises
    ------
    ValueError when there is no file of that language, or one that is no TOML.
    """
    return _table(language or os.environ.get("PANDALIB_LANGUAGE") or "en")


@functools.cache
def _table(language: str) -> dict:
    found = sorted(
        file.name.removesuffix(".toml") for file in FOLDER.iterdir() if file.name.endswith(".toml")
    )
    if language not in found:
        raise ValueError(
            f"there are no sentences in the language {language!r}: set PANDALIB_LANGUAGE to one of {', '.join(found)}."
        )
    try:
        own = tomllib.loads((FOLDER / f"{language}.toml").read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{language}.toml is no TOML file in UTF-8: {error}.") from None
    return own if language == "en" else _completed(own, _table("en"))


def _completed(own, english):
    """`own`, with the entries of `english` where it has none or one of another kind."""
    if not isinstance(english, dict):
        return own if isinstance(own, type(english)) and own else english
    own = own if isinstance(own, dict) else {}
    return {key: _completed(own.get(key), value) for key, value in english.items()}


def text(section: str, key: str) -> dict:
    """The entry `[section.key]`; Mistyped for an unknown key, with the one that was meant or all that exist."""
    entries = table().get(section, {})
    if key not in entries:
        near = difflib.get_close_matches(str(key), entries, n=1)
        choice = (
            f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(entries))}."
        )
        raise Mistyped(
            f"there is no {'prediction' if section == 'predict' else section} {key!r}: {choice}"
        )
    return entries[key]


def say(name: str, /, **values) -> str:
    """The sentence `name` of the section `[say]`, with the values in its braces."""
    return table()["say"][name].format(**values)
