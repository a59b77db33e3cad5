"""`python -m pandalib table`: the results of a sweep as a table, beside the published numbers."""

from __future__ import annotations

import argparse

HELP = "the results of a sweep as table.md, table.csv and table.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder of a sweep's results")


def main(options: dict) -> int:
    """Write the table; 1 if runs failed or are missing, else 0."""
    from pathlib import Path

    from pandalib.experiments.tables import write_table

    folder = Path(options["folder"]).expanduser()
    rows = write_table(folder)
    print((folder / "table.md").read_text(encoding="utf-8"))
    return int(any(row["n_runs"] < row["runs_wanted"] for row in rows))
