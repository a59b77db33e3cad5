"""What the notebooks store is what their cells make: results in their bands, captions, pictures.

nbval runs the notebooks again, but it compares neither the digits of a result nor a picture, for
these differ from machine to machine. So here the files are read against their own source, and no
cell is run. A wrong digit that stays inside its band is not noticed.
"""

import ast
import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

PATHS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
NOTEBOOKS = {path.name: nbformat.read(path, as_version=4) for path in PATHS}
every_lesson = pytest.mark.parametrize("name", NOTEBOOKS)
GAP = ".*"  # a text that only a run can tell


def code_cells(name):
    return [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == "code"]


# ---------------------------------------------------------------- what a cell's source makes


def text(node, known):
    """A regular expression of what an expression makes; `known` holds those of names."""
    match node:
        case ast.Constant(value=str(value)):
            return re.escape(value)
        case ast.JoinedStr():
            return "".join(text(part, known) for part in node.values)
        case ast.FormattedValue(format_spec=None):
            return text(node.value, known)
        case ast.FormattedValue():
            return r"-?\d[\d,.]*"
        case ast.IfExp():
            return f"(?:{text(node.body, known)}|{text(node.orelse, known)})"
        case ast.Name():
            return known.get(node.id, GAP)
    return GAP


def assign(target, value, known):
    """Note what the names of `target` hold now, a gap where that cannot be told."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, other in zip(target.elts, value.elts, strict=True):
            assign(one, other, known)
    elif isinstance(target, ast.Name):
        known[target.id] = text(value, known)
    else:
        known.update({node.id: GAP for node in ast.walk(target) if isinstance(node, ast.Name)})


def calls(body, known):
    """Each call that stands as a statement of its own, with the texts of names at that moment."""
    for node in body:
        match node:
            case ast.Expr(value=ast.Call()):
                yield node.value, known
            case ast.Assign():
                assign(node.targets[0], node.value, known)
            case ast.AugAssign(target=ast.Name(id=name)):
                known[name] = known.get(name, GAP) + text(node.value, known)
            case ast.For():
                for item in node.iter.elts if isinstance(node.iter, ast.Tuple) else [None]:
                    assign(node.target, item, known)
                    yield from calls(node.body, known)
            case ast.If() | ast.With() | ast.Try():
                yield from calls(node.body, known)
                yield from calls(getattr(node, "orelse", []), known)


def captions(source):
    """For each figure that a cell shows, in order, a regular expression of its sentence."""
    tree = ast.parse(source)
    for call, known in calls(tree.body, {}):
        match ast.unparse(call.func):
            case "plots.show":
                yield text(call.args[1], known)
            case "plots.slider":  # the file holds the figure at its start
                functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
                draw = next(node for node in functions if node.name == call.args[0].id)
                result = next(node.value for node in draw.body if isinstance(node, ast.Return))
                start = next(option.value for option in call.keywords if option.arg == "start")
                start = re.escape(str(ast.literal_eval(start)))
                yield text(result.elts[1], {draw.args.args[0].arg: start})


def reports(source):
    """For each `report` of a cell a regular expression of the lines that it prints, and its band;
    of a band that is computed, None.
    """
    for call, known in calls(ast.parse(source).body, {}):
        if ast.unparse(call.func) == "report":
            name, _, *band = call.args
            digits = {option.arg: option.value.value for option in call.keywords}.get("digits", 3)
            value = r"-?\d+" + (rf"\.\d{{{digits}}}" if digits else "")
            low, high = (None if isinstance(end, ast.Name) else number(end) for end in band)
            yield rf"{text(name, known)}: ({value})", low, high


def number(node):
    return ast.literal_eval(node)


# ---------------------------------------------------------------- what the files hold


@every_lesson
def test_every_stored_result_lies_in_its_band(name):
    for cell in code_cells(name):
        printed = "".join(output.get("text", "") for output in cell.outputs).splitlines()
        for one, low, high in reports(cell.source):
            found = [match[1] for line in printed if (match := re.fullmatch(one, line))]
            assert found, f"{cell.id}: nothing like {one}"
            for value in found:
                rounding = 0.5 * 10 ** -len(value.partition(".")[2])
                assert low is None or low - rounding <= float(value), f"{cell.id}: {one}, {value}"
                assert high is None or float(value) <= high + rounding, f"{cell.id}: {one}, {value}"


@every_lesson
def test_every_stored_picture_is_the_one_of_its_sentence(name):
    for cell in code_cells(name):
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        expected = list(captions(cell.source))
        assert len(pictures) == len(expected), cell.id
        assert GAP not in expected, f"{cell.id}: write the sentence in the figure's own cell"
        for output, sentence in zip(pictures, expected):
            alt = output.metadata["image/png"]["alt"]
            assert re.fullmatch(sentence, alt), f"{cell.id}: its code does not make {alt!r}"
            for count in re.findall(r"(\d+) in 100\b", alt):
                assert int(count) <= 100, f"{cell.id}: {count} in 100"
            drawn = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
            inside = drawn.info.get("Description")
            assert inside == alt, f"{cell.id}: a picture drawn for {inside!r}, not for {alt!r}"
