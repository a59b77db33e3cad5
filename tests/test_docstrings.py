"""Docstrings: their examples run, each public class has one, and they name real parameters."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import pandalib

MODULES = [
    one.name
    for one in pkgutil.walk_packages(pandalib.__path__, "pandalib.")
    if not one.name.endswith("__main__")
]
PUBLIC = {name: getattr(pandalib, name) for name in pandalib.__all__}
CLASSES = [name for name, one in PUBLIC.items() if inspect.isclass(one)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PANDALIB_QUIET", "1")
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_has_an_example(name):
    assert ">>> " in PUBLIC[name].__doc__


@pytest.mark.parametrize("name", PUBLIC)
def test_the_parameters_are_those_of_the_signature(name):
    text = inspect.getdoc(PUBLIC[name])
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w+\n-+\n|\Z)", text, flags=re.M | re.S)
    if section is None:
        return
    heads = re.findall(r"^(\*{0,2}\w[^:\n]*?)(?: :.*)?$", section[1], flags=re.M)
    named = [one.strip(" *") for head in heads for one in head.split(",")]
    assert set(named) - {"..."} <= set(inspect.signature(PUBLIC[name]).parameters)
