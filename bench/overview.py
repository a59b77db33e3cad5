"""Every line of every bench, in docs/performance.md: `python bench/overview.py` puts in what
docs/results/*_speed.md have.

Only what stands between the two marks of docs/performance.md is rewritten; the words around it are
written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import HEADING, RESULTS, ROOT

PAGE = ROOT / "docs" / "performance.md"
START, END = (
    "<!-- lines: by `python bench/overview.py`, which rewrites what stands between these two marks "
    "-->",
    "<!-- end of lines -->",
)
PAGES = {
    "extraction": "1. Features and kNN scores",
    "adaptation": "2. Adaptation",
    "fisher": "3. Fisher information",
    "segmentation": "4. Segmentation, definition",
    "segmentation_peers": "4. Segmentation, peers",
    "inspector": "4. The inspector",
    "photographs": "4. Photographs",
    "pixel_metrics": "5. Metrics",
    "growth": "6. Growth",
    "sweep": "6. Workers",
    "lessons": "7. Lessons",
}


def lines_of(text: str) -> list[str]:
    """The rows of a page's section of lines; none where it has no such section."""
    _, found, after = text.partition(f"\n{HEADING}\n")
    if not found:
        return []
    rows = []
    for line in after.strip("\n").splitlines():
        if not line.startswith("|"):
            break
        rows.append(line)
    return rows[2:]  # without the head


def table(folder: Path) -> str:
    """One table of all lines, bench by bench; a bench that has not been run says so."""
    rows, counts = [], {"| met |": 0, "| **NOT met** |": 0}
    for name, title in PAGES.items():
        page = folder / f"{name}_speed.md"
        lines = lines_of(page.read_text(encoding="utf-8")) if page.is_file() else []
        for line in lines or ["| not measured yet | | | |"]:
            rows.append(
                f"| [{title}](results/{page.name}) {line}"
                if page.is_file()
                else f"| {title} {line}"
            )
            for end in counts:
                counts[end] += line.endswith(end)
    summary = f"{counts['| met |']} lines met, {counts['| **NOT met** |']} not met."
    return "\n".join(
        [summary, "", "| bench | line | wanted | measured | |", "|---|---|---|---|---|", *rows]
    )


def fill(text: str, content: str) -> str:
    """Put the content between the marks. Raises ValueError when a mark is missing."""
    if START not in text or END not in text:
        raise ValueError(f"{PAGE.name} has not both marks, {START!r} and {END!r}: put them back.")
    before, rest = text.split(START)
    return f"{before}{START}\n{content}\n{END}{rest.split(END)[1]}"


def main() -> None:
    from pandalib.io import write_atomically

    write_atomically(PAGE, fill(PAGE.read_text(encoding="utf-8"), table(RESULTS)).encode())


if __name__ == "__main__":
    sys.exit(main())
