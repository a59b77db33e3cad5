"""Students' copies of the notebooks: solutions cut to stubs, outputs removed: `make student`.

    python tools/student.py              writes notebooks/student/*.ipynb from notebooks/*.ipynb
    python tools/student.py --force      the same, also over text that git does not hold
    python tools/student.py --my         copies lessons that my/ lacks there; a student works in it
    python tools/student.py --check      writes nothing; exit 1 when a committed copy is out of date
    python tools/student.py --execute [NAME ...]   runs the copies as they are; exit 1 when any cell
                                         but the check of a stub fails; takes minutes

Two marks in the notebooks say what to cut: lines between `### BEGIN SOLUTION` and `### END
SOLUTION` become a stub, and a cell with the tag "after-solution", a conclusion that would give an
answer away, is left out. A sentence after the stub's docstring is all that a student's function has
in it. The marks are nbgrader's own, so a teacher who has nbgrader can assign the originals
directly. What is compared is the content, not how the JSON is laid out.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pandalib.io import sha256_of, write_atomically

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
PLOTS = r"^plots\.(show|slider|click)\("  # at the beginning of a line: a figure of the lesson
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
    copy.cells = [
        cell for cell in copy.cells if "after-solution" not in cell.metadata.get("tags", [])
    ]
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.source = without_solution(cell.source)
            cell.outputs, cell.execution_count = [], None
            if re.search(PLOTS, cell.source, flags=re.MULTILINE):
                # The caption in it says what there is to see; the reader looks first.
                cell.metadata["jupyter"] = {"source_hidden": True}
            if cell.source.startswith("check("):  # or "Run All Cells" would stop at the first stub
                cell.metadata["tags"] = [*cell.metadata.get("tags", []), "raises-exception"]
        else:  # the copies lie one folder deeper; lessons link to each other within theirs
            cell.source = cell.source.replace("](../", "](../../")
    return copy


def run(notebook: nbformat.NotebookNode, folder: Path, seconds: int = 600) -> None:
    """Execute a notebook in place, to its end whatever fails; `seconds` are the most for a cell."""
    from nbclient import NotebookClient

    how = dict(kernel_name="python3", record_timing=False, allow_errors=True)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=seconds, resources=resources, **how).execute()


def execute(notebook: nbformat.NotebookNode, folder: Path) -> list[str]:
    """Run a students' copy as its reader first meets it, in place; what fails beside the checks of
    stubs, one line each.
    """
    os.environ["PANDALIB_QUIET"] = "1"
    run(notebook, folder)
    problems = []
    for cell in notebook.cells:
        errors = [output for output in cell.get("outputs", []) if output.output_type == "error"]
        if cell.source.startswith("check("):
            if [error.ename for error in errors] != ["NotSolved"] or len(errors[0].traceback) != 1:
                problems.append(
                    f"{cell.id}: the check of a stub should answer in one line that it is one, and "
                    f"said {errors}"
                )
        else:
            problems += [f"{cell.id}: {error.ename}: {error.evalue}" for error in errors]
    return problems


def execute_all(names: list[str]) -> int:
    folder = ROOT / "notebooks" / "student"
    failed = False
    for path in [folder / name for name in names] or sorted(folder.glob("*.ipynb")):
        start = time.perf_counter()
        problems = execute(nbformat.read(path, as_version=4), folder)
        print(
            f"{path.name}: {time.perf_counter() - start:.0f} s, "
            f"{'; '.join(problems) or 'only the checks of stubs fail'}",
            flush=True,
        )
        failed = failed or bool(problems)
    return int(failed)


def held_by_git(folder: Path) -> set[str]:
    """Names of the files in `folder` whose text is as git has it; none without git."""
    if not shutil.which("git"):
        return set()

    def listed(which: str) -> set[str]:
        command = ["git", "ls-files", which]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        return set(done.stdout.splitlines())

    return listed("--cached") - listed("--modified")


def metadata_of_this_python() -> dict:
    """What JupyterLab would write into a notebook that it opens, and then call it unsaved."""
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    language = {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": platform.python_version(),
    }
    return {"kernelspec": kernel, "language_info": language}


def fill_my_folder() -> None:
    """Copy each lesson that is not yet in my/, which git ignores; never touch what is there."""
    my = ROOT / "my"
    my.mkdir(exist_ok=True)
    record = my / ".copied.json"  # lesson -> hash of the copy that was given out
    given = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    changed = []
    for path in sorted((ROOT / "notebooks" / "student").glob("*.ipynb")):
        target, now = my / path.name, sha256_of(path)
        if target.exists():
            if given.get(path.name, now) != now:
                changed.append(f"my/{path.name}")
            continue
        copy = nbformat.read(path, as_version=4)
        for cell in copy.cells:  # my/ lies one folder higher than notebooks/student/
            cell.source = cell.source.replace("](../../", "](../")
        copy.metadata |= metadata_of_this_python()
        write_atomically(target, (nbformat.writes(copy) + "\n").encode())
        given[path.name] = now
        write_atomically(record, json.dumps(given, indent=1).encode())
    if changed:
        print(
            f"The course has a newer version of {', '.join(changed)}; yours stays as it is. "
            "To get the new one beside it, rename yours and repeat `make lab`."
        )


def main(arguments: list[str]) -> int:
    if "--execute" in arguments:
        return execute_all([argument for argument in arguments if argument != "--execute"])
    if "--my" in arguments:
        fill_my_folder()
        return 0
    only_check, force = "--check" in arguments, "--force" in arguments
    stale, refused = [], False
    originals = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for path in originals:
        target = path.parent / "student" / path.name
        copy = student_copy(nbformat.read(path, as_version=4))
        if (
            target.is_file() and nbformat.read(target, as_version=4) == copy
        ):  # by content: how the JSON is laid out is nobody's concern
            continue
        stale.append(target.name)
        if only_check:
            continue
        safe = force or not target.is_file() or target.name in held_by_git(target.parent)
        if not safe:
            refused = True
            print(
                f"notebooks/student/{target.name} holds text that git does not, answers perhaps, "
                "and was not overwritten. To keep it, copy it into my/ under another name; "
                "`make student ARGS=--force` then overwrites it.",
                file=sys.stderr,
            )
            continue
        write_atomically(target, (nbformat.writes(copy) + "\n").encode())
        print(f"wrote {target.relative_to(ROOT)}")
    left_over = {path.name for path in (ROOT / "notebooks" / "student").glob("*.ipynb")} - {
        path.name for path in originals
    }
    if only_check and (stale or left_over):
        print(
            f"out of date: {', '.join([*stale, *sorted(left_over)])}. Run `make student`.",
            file=sys.stderr,
        )
        return 1
    for name in left_over:
        print(f"notebooks/student/{name} is the copy of no lesson: delete it.", file=sys.stderr)
    return int(refused)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
