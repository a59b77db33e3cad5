"""`python -m pandalib COMMAND`: the same code without a browser."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

COMMANDS = (
    "doctor",
    "run",
    "export",
    "fit",
    "score",
    "data",
    "sweep",
    "table",
)  # a module each in pandalib/commands


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pandalib", description="Anomaly detection with pretrained features."
    )
    parsers = parser.add_subparsers(dest="command", required=True)
    commands = {name: import_module(f"pandalib.commands.{name}") for name in COMMANDS}
    for name, command in commands.items():
        command.add_arguments(
            parsers.add_parser(name, help=command.HELP, description=command.__doc__)
        )
    options = vars(parser.parse_args(arguments))
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a file name that the terminal cannot show is no reason to fail
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return commands[options.pop("command")].main(options)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"pandalib: {error}", file=sys.stderr)
    except (
        ImportError,
        RuntimeError,
    ) as error:  # a broken torch or torchvision shows as one of these
        print(
            f"pandalib: {error}\nRun `python -m pandalib doctor`: it says what is missing.",
            file=sys.stderr,
        )
    return 2


if __name__ == "__main__":
    sys.exit(main())
