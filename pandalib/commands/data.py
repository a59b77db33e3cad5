"""`python -m pandalib data`: the public data sets, what is here of them, and how to get the rest."""

from __future__ import annotations

import argparse

HELP = "public data sets: list, download, check"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="download what is missing of these sets, check and unpack it; without a name, list all",
    )
    parser.add_argument(
        "--info",
        action="store_true",
        help="only print what is known of them: page, licence, files, split",
    )


def main(options: dict) -> int:
    from pandalib.datasets import public

    names = options["names"]
    for name in names:
        public.row_of(name)  # raises for an unknown one, before anything is downloaded
    if not names and not options["info"]:
        print(listing())
    for name in names or (public.ROWS if options["info"] else ()):
        if options["info"]:
            print(info(name))
        else:
            print(f"{name}: here, in {str(public.fetch(name))!r}")
    return 0


def listing() -> str:
    """A line for each set: name, size, licence, whether it is here, tasks."""
    from pandalib.datasets import public

    rows = [("name", "download", "licence", "state", "tasks")]
    for name in dict.fromkeys(public.SETS.values()):
        row = public.row_of(name)
        missing = "missing" if "torchvision" in row else "manual"
        state = "here" if public.is_here(name) else missing
        rows.append((name, row["download"], row["licence"], state, row["example"]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*map(str.ljust, row[:4], widths), row[4]]) for row in rows
    )


def info(name: str) -> str:
    """What is known of a set: page, licence, split, and how to get it."""
    from pandalib.datasets import public

    row = public.row_of(name)
    facts = {key: row[key] for key in ("page", "licence", "download", "example", "protocol")}
    facts["get it"] = public.how_to_get(name)
    return "\n".join([f"{name}: {row['title']}", *(f"  {key:<9} {facts[key]}" for key in facts)])
