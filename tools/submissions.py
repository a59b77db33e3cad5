"""Grade students' copies without nbgrader, or mend them for it.

    python tools/submissions.py LESSON SUBMISSION ...             grades them, a line each
    python tools/submissions.py LESSON SUBMISSION ... --csv FILE  the same as a table
    python tools/submissions.py LESSON SUBMISSION ... --mend OUT  grades nothing, writes mended ones

LESSON is the notebook that was handed out, or the original with its solutions. A SUBMISSION is a
notebook or a folder of them. Cells that were copied, deleted, moved, or changed though they belong
to the check are named, and each submission is graded in the shape in which it was handed out:

- of several copies of one exercise the last one that is not the stub counts;
- what was deleted comes back as it was handed out;
- checks are those of the lesson;
- cells that the student added stay behind the cell that they followed.

Submissions are run: do it where a stranger's code may run, in a container for example. A student
who wants to cheat can; this looks for accidents.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from difflib import SequenceMatcher
from pathlib import Path

import nbformat
from nbclient.exceptions import CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
from student import BEGIN, run, student_copy

from pandalib.io import write_atomically

SECONDS = 300  # for one cell
SHOWN = 4  # cells that a remark names


def key(cell) -> str:
    """What stays the same when a cell is copied or moved: nbgrader's name, else its own."""
    return cell.metadata.get("nbgrader", {}).get("grade_id") or cell.id


def is_check(cell) -> bool:
    return cell.cell_type == "code" and cell.source.startswith("check(")


def is_exercise(cell) -> bool:
    return "NotImplementedError(" in cell.source and cell.cell_type == "code"


def points_of(cell) -> float:
    """Of a check: nbgrader's points, or 1 where the lesson has none."""
    return cell.metadata.get("nbgrader", {}).get("points", 1)


def mend(submission, lesson) -> tuple[nbformat.NotebookNode, list[str]]:
    """A submission in the shape of the lesson, and what had to be done for it, a sentence each.

    Raises ValueError where no exercise of the lesson is left in it, as in another lesson.
    """
    handed_out = {key(cell): cell for cell in lesson.cells}
    by_source = {cell.source: name for name, cell in handed_out.items()}  # some editors drop names
    found: dict[str, list] = {name: [] for name in handed_out}
    added: dict[str | None, list] = {}
    order, before = {}, None
    for cell in submission.cells:
        name = key(cell) if key(cell) in found else by_source.get(cell.source)
        if name and cell.cell_type == handed_out[name].cell_type:
            found[name].append(cell)
            order[before := name] = None
        else:
            added.setdefault(before, []).append(cell)
    if not any(found[name] for name in handed_out if is_exercise(handed_out[name])):
        raise ValueError("holds no exercise of this lesson")

    remarks = []
    deleted = [name for name in found if not found[name]]
    copied = [name for name in found if len(found[name]) > 1]
    kept = [name for name in found if found[name]]
    same = SequenceMatcher(None, kept, [*order], autojunk=False).get_matching_blocks()
    in_place = {name for start, _, n in same for name in kept[start : start + n]}
    moved = [name for name in kept if name not in in_place]
    checks = [
        name
        for name in kept
        if is_check(handed_out[name]) and found[name][-1].source != handed_out[name].source
    ]
    for names, what in (
        (deleted, "deleted, and put back as handed out"),
        (copied, "copied; the last one that was changed counts"),
        (moved, "moved, and put back in the order of the lesson"),
        (checks, "checks that were changed, and are those of the lesson again"),
    ):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            remarks.append(f"{', '.join(names[:SHOWN])}{more}: {what}.")

    mended = nbformat.from_dict(submission)
    mended.metadata, mended.cells = lesson.metadata, list(added.get(None, ()))
    for name, cell in handed_out.items():
        mine = nbformat.from_dict(cell)
        changed = [one.source for one in found[name] if one.source != cell.source]
        if changed and not is_check(cell):
            mine.source = changed[-1]
        mended.cells += [mine, *added.get(name, ())]
    taken = set(map(key, lesson.cells)) | {cell.id for cell in lesson.cells}
    for cell in mended.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    for number, cell in enumerate(one for cells in added.values() for one in cells):
        cell.metadata.pop("nbgrader", None)
        cell.id = cell.id if cell.id not in taken else f"added-{number}"
        taken.add(cell.id)
    return mended, remarks


def grade(notebook, folder: Path, seconds: int = SECONDS) -> tuple[dict[str, float], list[str]]:
    """Run a mended notebook up to its last check: the points of each, and why there are none.

    Parameters
    ----------
    folder : Path
        Where the notebook is run, for files that it names.
    seconds : int
        The most that one cell may take.
    """
    checks = [number for number, cell in enumerate(notebook.cells) if is_check(cell)]
    notebook = nbformat.from_dict(notebook)
    del notebook.cells[max(checks) + 1 :]
    remarks = []
    try:
        run(notebook, folder, seconds)
    except CellTimeoutError:
        remarks.append(f"A cell took longer than {seconds} s: what follows it was not run.")
    except DeadKernelError:
        remarks.append("The kernel died, perhaps for want of memory: the rest was not run.")
    points = {}
    for number in checks:
        cell = notebook.cells[number]
        errors = [one for one in cell.outputs if one.output_type == "error"]
        points[key(cell)] = points_of(cell) if cell.execution_count and not errors else 0
        remarks += [f"{key(cell)}: {' '.join(one.evalue.split())}" for one in errors]
    return points, remarks


def read(path: Path):
    """A notebook; ValueError in half a sentence where the file is none."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"cannot be read: {error}") from None
    except Exception as error:  # nbformat and its validators raise of many kinds
        why = " ".join(f"{type(error).__name__} {error}".split())[:100]
        raise ValueError(f"is no notebook: {why}") from None
    return notebook


def let_kernels_find_pandalib() -> None:
    """Kernels inherit it: this tree's library, and no progress bars, wherever the notebooks lie."""
    os.environ["PANDALIB_QUIET"] = "1"
    around = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([around] if around else [])])


def files(paths: list[Path]) -> list[Path]:
    """The notebooks among the paths and below them, without the editor's own copies."""
    found = []
    for path in paths:
        below = sorted(path.rglob("*.ipynb")) if path.is_dir() else [path]
        found += [one for one in below if ".ipynb_checkpoints" not in one.parts]
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lesson", type=Path)
    parser.add_argument("submissions", type=Path, nargs="+")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--mend", type=Path, metavar="OUT")
    parser.add_argument(
        "--seconds", type=int, default=SECONDS, help="the most that a cell may take"
    )
    options = parser.parse_args(arguments)
    let_kernels_find_pandalib()
    try:
        lesson = read(options.lesson)
    except ValueError as error:
        parser.error(f"{options.lesson} {error}.")
    if any(BEGIN in cell.source for cell in lesson.cells):
        lesson = student_copy(lesson)
    checks = {key(cell): points_of(cell) for cell in lesson.cells if is_check(cell)}
    if not checks:
        parser.error(f"{options.lesson} has no check: expected a cell that begins with check(.")
    paths = files(options.submissions)
    if not paths:
        parser.error(f"no notebook in {', '.join(map(str, options.submissions))}.")
    rows = []
    for path in paths:
        points, remarks = dict.fromkeys(checks, 0), []
        try:
            notebook, remarks = mend(read(path), lesson)
            if options.mend:
                top = os.path.commonpath([one.parent for one in paths])
                target = options.mend / path.relative_to(top)
                write_atomically(target, (nbformat.writes(notebook) + "\n").encode())
            else:
                points, more = grade(notebook, path.resolve().parent, options.seconds)
                remarks += more
        except ValueError as error:
            remarks = [f"The file {error}."]
        rows.append([str(path), *points.values(), sum(points.values()), " ".join(remarks)])
        total = "mended" if options.mend else f"{rows[-1][-2]:g} of {sum(checks.values()):g}"
        print(f"{path}: {total}. {rows[-1][-1]}".rstrip(), flush=True)
    if options.csv:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerows([["submission", *checks, "all", "remarks"], *rows])
        write_atomically(options.csv, table.getvalue().encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
