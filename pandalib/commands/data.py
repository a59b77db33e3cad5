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
    from pandalib.datasets import registry

    names = options["names"]
    for name in names:
        registry.row_of(name)  # raises for an unknown one, before anything is fetched
    if not names and not options["info"]:
        print(listing())
    for name in names or (registry.registry() if options["info"] else ()):
        if options["info"]:
            print(info(name))
            continue
        row = registry.row_of(name)
        print(f"{name}: {row['title']}, {row['page']}, licence: {row['licence']}", flush=True)
        place = registry.fetch(name, say=lambda text: print(f"  {text}"))
        print(f"  here, in {str(place)!r}")
    return 0


def listing() -> str:
    """A line for each set: name, size, licence, what is here, tasks."""
    from pandalib.datasets import registry

    rows = [("name", "download", "licence", "state", "tasks")]
    for name, row in registry.registry().items():
        rows.append(
            (
                name,
                size_in_words(registry.size_of(name)),
                row["licence"],
                registry.state_of(name),
                row["tasks"],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]
    where = registry.folder_of("NAME")
    return "\n".join(
        [
            *lines,
            "",
            f"They live in {str(where)!r}. `python -m pandalib data NAME` gets or checks one, --info NAME tells more.",
        ]
    )


def info(name: str) -> str:
    from pandalib.datasets import registry

    row = registry.row_of(name)
    lines = [f"{name}: {row['title']}"]
    lines += [
        f"  {label:<8} {row[key]}"
        for label, key in (
            ("page", "page"),
            ("licence", "licence"),
            ("tasks", "tasks"),
            ("split", "protocol"),
        )
    ]
    for file in row["files"]:
        known = (
            f"SHA-256 {file['sha256']}"
            if file["sha256"]
            else f"MD5 {file['md5']}"
            if file["md5"]
            else "no published hash"
        )
        lines.append(
            f"  file     {file['name']}, {size_in_words(file['bytes'])}, {known} (from: {file['source']})"
        )
    lines += [f"  state    {registry.state_of(name)}", f"  get it   {registry.how_to_get(name)}"]
    if not row["tried"]:
        lines.append(
            "  note     its addresses and layout are from public sources and have not been tried with the real archive by this project"
        )
    return "\n".join(lines)


def size_in_words(n_bytes: int | None) -> str:
    if n_bytes is None:
        return "?"
    return next(
        (
            f"{n_bytes / unit:.1f} {word}"
            for unit, word in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
            if n_bytes >= unit
        ),
        f"{n_bytes} B",
    )
