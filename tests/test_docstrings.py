"""The library's docstrings as reStructuredText: read by docutils itself, and compared with what was written."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
docutils_core = pytest.importorskip(
    "docutils.core", reason="the extra [book] is not installed: make install"
)
import docstrings  # noqa: E402


def tree(text):
    """What docutils makes of a docstring; any complaint of it is an error. Roles of Sphinx become plain literals."""
    from docutils import nodes
    from docutils.parsers.rst import roles

    roles.register_local_role(
        "py:obj",
        lambda name, raw, text, *rest, **more: ([nodes.literal("", text.split(" <")[0])], []),
    )
    source = "\n".join(docstrings.to_rst(text.splitlines()))
    return docutils_core.publish_doctree(
        source, settings_overrides={"halt_level": 2, "report_level": 2}
    )


def words(text):
    return tree(text).astext()


@pytest.mark.parametrize(
    "text",
    [
        "||f(x) - g||^2 and sum_i F_i",
        "lambda * F * (theta - theta*)",
        "a_ and |b| and `c",
        r"a \ b and x**2",
        "layers_ :no: *",
    ],
)
def test_mathematics_is_text(text):
    assert words(text) == text


def test_names_code_and_emphasis():
    document = tree("Take `KNN.fit` or `a + b`, *never* the test labels.")
    kinds = [
        (type(node).__name__, node.astext())
        for node in document[0].children
        if type(node).__name__ != "Text"
    ]
    assert kinds == [("literal", "KNN.fit"), ("literal", "a + b"), ("emphasis", "never")]


def test_an_indented_block_stays_as_it_is():
    document = tree("The score:\n\n    d = min over g of ||x - g||^2\n      and more\n\nThen this.")
    assert [type(node).__name__ for node in document] == ["paragraph", "literal_block", "paragraph"]
    assert document[1].astext() == "d = min over g of ||x - g||^2\n  and more"


SECTIONS = """Fit.

Parameters
----------
gallery : array or tensor, shape (N, d)
    Features of the normal images.
lr, momentum : of SGD. The last batch of an epoch may be smaller than all the others, and this sentence goes on and
    on to a second line.
k : int

Returns
-------
self

Raises
------
ValueError
    k above N.

And a last word.
"""


def test_sections_become_lists_of_their_names():
    document = tree(SECTIONS)
    fields = {
        field[0].astext(): field[1]
        for field in document.findall(lambda node: type(node).__name__ == "field")
    }
    assert list(fields) == ["Parameters", "Returns", "Raises"]
    entries = [item.astext() for item in fields["Parameters"][0]]
    assert entries[0] == "gallery : array or tensor, shape (N, d)\n\nFeatures of the normal images."
    assert entries[1].startswith("lr, momentum : of SGD.") and entries[1].endswith(
        "goes on and\non to a second line."
    )
    assert entries[2] == "k : int"
    assert fields["Returns"].astext() == "self" and "k above N." in fields["Raises"].astext()
    assert document[-1].astext() == "And a last word."


def test_names_without_a_title_and_bullets():
    assert (
        len(tree("Inputs.\n\ncases : tuples.\nwrong : name, and what is\n    meant by it.")[1]) == 2
    )
    assert len(tree("Steps:\n1. one\n2. two goes\n   on\n")[1]) == 2


def test_every_docstring_of_the_library_can_be_read():
    import ast

    for path in sorted((ROOT / "pandalib").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
                text := ast.get_docstring(node)
            ):
                try:
                    tree(text)
                except Exception as error:
                    raise AssertionError(
                        f"{path.name}, {getattr(node, 'name', 'module')}: {error}"
                    ) from None
