"""The library's docstrings as reStructuredText, which Sphinx wants; for the API pages of the book.

They are written for people: `||x - g||^2`, `sum_i F_i` and `lambda * F` would all be markup, and wrong, if taken as
they stand. Here a backquoted name becomes a link where there is something of that name, what is indented stays as it
is, the sections "Parameters", "Returns", "Raises" and "Attributes" become lists, and everything else is plain text.
"""

from __future__ import annotations

import re

SECTIONS = {"Parameters", "Returns", "Raises", "Attributes", "Yields"}
WIDTH = 100  # a first line shorter than this was ended on purpose: it is the type, the description follows
ITEM = re.compile(r"([A-Za-z_*][\w.*]*(?:, [\w.*]+)*) : (.*)")


def to_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring, already dedented, as lines of reStructuredText."""
    result, position = [], 0
    parts: list[tuple[str, list[str]]] = [("", [])]  # the section's name, its lines
    while position < len(lines):
        line, following = lines[position], lines[position + 1] if position + 1 < len(lines) else ""
        if line.strip() in SECTIONS and re.fullmatch(r"\s*-{3,}\s*", following):
            parts.append((line.strip(), []))
            position += 2
            continue
        parts[-1][1].append(line)
        position += 1
    for name, body in parts:
        if not name:
            result += prose(body)
            continue
        body, rest = _until_prose(body)
        result += ["", f":{name}:", *indented(items(body)), "", *prose(rest)]
    return [*result, ""]


def _until_prose(body: list[str]) -> tuple[list[str], list[str]]:
    """A section ends at a paragraph that stands after a blank line and is no item."""
    for number, line in enumerate(body):
        starts_again = number and not body[number - 1].strip() and line[:1].strip()
        if (
            starts_again
            and not ITEM.match(line)
            and not (number + 1 < len(body) and body[number + 1].startswith("  "))
        ):
            return body[:number], body[number:]
    return body, []


def items(lines: list[str]) -> list[str]:
    """The lines of a section as a definition list, or as prose where they are a sentence."""
    groups: list[list[str]] = []
    for line in lines:
        if line.startswith(" ") and groups:
            groups[-1].append(line)
        elif (
            line.strip()
            and groups
            and not ITEM.match(line)
            and not ITEM.match(groups[-1][0])
            and len(groups[-1]) == 1
        ):
            groups[-1].append("    " + line)  # a sentence that goes on
        elif line.strip():
            groups.append([line])
    result = []
    for first, *more in groups:
        body = dedented(more)
        item = ITEM.match(first) or (body and re.match(r"([\w., ]+)()$", first))
        if not item:
            result += ["", *prose([first, *body]), ""]
            continue
        kind = f" : {inline(item[2])}" if item[2] else ""
        if body and (
            not item[2] or len(first) + 1 + len(body[0].split()[0]) <= WIDTH
        ):  # a type, then the description
            result += [f"* ``{item[1]}``{kind}", "", *["  " + line for line in prose(body)], ""]
        else:  # one sentence that goes on
            result += [f"* ``{item[1]}``{kind}", *["  " + line for line in prose(body)]]
    return result


def prose(lines: list[str]) -> list[str]:
    """Paragraphs, lists and indented blocks."""
    result, position, in_list = [], 0, ""
    while position < len(lines):
        line = lines[position]
        if line.startswith("   ") and (
            not result or not result[-1].strip()
        ):  # after a blank line: as it is
            block = []
            while position < len(lines) and (
                lines[position].startswith(" ") or not lines[position].strip()
            ):
                block.append(lines[position])
                position += 1
            result += ["::", "", *indented(dedented(block)), ""]
            continue
        bullet, new = re.match(r"((?:[-*]|\d+\.) )(.*)", line), not result or not result[-1].strip()
        if new and ITEM.match(line):  # a list of names without a title
            end = next(
                (number for number in range(position, len(lines)) if not lines[number].strip()),
                len(lines),
            )
            result += items(lines[position:end])
            position = end
            continue
        if bullet:
            result += [*([] if new or in_list else [""]), bullet[1] + inline(bullet[2])]
            in_list = bullet[1]
        elif line.startswith(" ") and in_list:  # the bullet's sentence goes on
            result.append(" " * len(in_list) + inline(line.strip()))
        else:
            result.append(inline(line.strip()))
            in_list = ""
        position += 1
    return result


def inline(text: str) -> str:
    """One line: names and code in backquotes, *emphasis*; all other characters stand for themselves."""
    result = []
    for piece in re.split(r"(`[^`]+`|(?<![\w*])\*[A-Za-z][^*`]*[A-Za-z]\*(?![\w*]))", text):
        if piece.startswith("`") and len(piece) > 2:
            code = piece.strip("`")
            name = code.removesuffix("()")
            result.append(
                f":py:obj:`{code} <{name}>`"
                if re.fullmatch(r"[A-Za-z_][\w.]*", name)
                else f"``{code}``"
            )
        elif re.fullmatch(r"\*[^*]+\*", piece):
            result.append(piece)
        else:
            plain = re.sub(r"([\\*|_`])", r"\\\1", piece)
            result.append(
                re.sub(r"\b(?!https?:)(\w+)://", r"\1\\://", plain)
            )  # tcp://... is no link
    return "".join(result)


def indented(lines: list[str]) -> list[str]:
    return [f"    {line}" if line.strip() else "" for line in lines]


def dedented(lines: list[str]) -> list[str]:
    depth = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[depth:] for line in lines]
