"""A virtual environment beside the course's own, for what needs other versions than the lessons."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(folder: Path, mark: str, packages: Sequence[str]) -> bool:
    """Make the environment from a package index; quick when it is there.

    A file named `mark` says that it is whole. False if pip failed: then nothing is left.
    """
    if (folder / mark).is_file():
        return True
    venv.create(folder, with_pip=True, clear=True)
    if subprocess.call([python_of(folder), "-m", "pip", "install", "-q", *packages]):
        shutil.rmtree(folder)
        return False
    (folder / mark).touch()
    return True
