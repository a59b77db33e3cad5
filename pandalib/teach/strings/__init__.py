"""The sentences of predictions, hints and checks, one TOML file a language."""

from __future__ import annotations

import functools
import tomllib
from importlib import resources


@functools.cache
def table(language: str = "en") -> dict:
    return tomllib.loads((resources.files(__name__) / f"{language}.toml").read_text(encoding="utf-8"))


def text(section: str, key: str) -> dict:
    """The entry `[section.key]`; KeyError-free: an unknown key is answered with those that exist."""
    entries = table().get(section, {})
    if key not in entries:
        raise ValueError(f"there is no {section} {key!r}: choose one of {', '.join(entries)}.")
    return entries[key]
