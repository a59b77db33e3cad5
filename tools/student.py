"""Students' copies of the notebooks: solutions cut to stubs, outputs removed: `make student`.

    python tools/student.py            writes notebooks/student/*.ipynb from notebooks/*.ipynb
    python tools/student.py --check    writes nothing; exit 1 when a committed copy differs from what it should be

Two marks in the notebooks say what to cut: lines between `### BEGIN SOLUTION` and `### END SOLUTION` become a stub,
and a cell with the tag "after-solution", a conclusion that would give an answer away, is left out. A sentence after
the stub's docstring is all that a student's function has in it. The marks are nbgrader's own, so a teacher who has
nbgrader can assign the originals directly.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pandalib.files import write_atomically  # noqa: E402

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = 'raise NotImplementedError("your turn")'


def without_solution(source: str) -> str:
    """The source of a cell with each marked block replaced by a stub of the same indentation."""
    kept, inside = [], False
    for line in source.splitlines():
        mark = line.strip()
        if mark == BEGIN:
            if inside:
                raise ValueError(f"{BEGIN} twice without {END} between: {line!r}")
            inside = True
            kept.append(line[: len(line) - len(line.lstrip())] + STUB)
        elif mark == END:
            if not inside:
                raise ValueError(f"{END} without {BEGIN}: {line!r}")
            inside = False
        elif not inside:
            kept.append(line)
    if inside:
        raise ValueError(f"{BEGIN} without {END}")
    return "\n".join(kept)


def student_copy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    copy = nbformat.from_dict(notebook)
    copy.cells = [cell for cell in copy.cells if "after-solution" not in cell.metadata.get("tags", [])]
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.source = without_solution(cell.source)
            cell.outputs, cell.execution_count = [], None
        else:  # the copies lie one folder deeper; lessons link to each other within theirs
            cell.source = cell.source.replace("](../", "](../../")
    return copy


def main(arguments: list[str]) -> int:
    only_check, stale = "--check" in arguments, []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        target = path.parent / "student" / path.name
        text = nbformat.writes(student_copy(nbformat.read(path, as_version=4))) + "\n"
        if target.is_file() and target.read_text(encoding="utf-8") == text:
            continue
        stale.append(target.name)
        if not only_check:
            write_atomically(target, text.encode())
            print(f"wrote {target.relative_to(ROOT)}")
    if only_check and stale:
        print(f"out of date: {', '.join(stale)}. Run `make student`.", file=sys.stderr)
    return int(only_check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
