"""What a person decided about images in a report: one small JSON file, read with care.

    {"format": "pandalib review", "version": 1,
     "reviewed": [{"file": "b/07.png", "verdict": "normal", "alarm": true}, ...]}

A verdict is "normal" or "defect". The report's page writes the file; its names are those of the
report, below the folder of the images. Names that lead out of that folder are refused.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from pandalib.io import load_strict_json

FORMAT = {"format": "pandalib review", "version": 1}
VERDICTS = ("normal", "defect")


class Review(NamedTuple):
    """Files by verdict, and their names in the report."""

    normal: list[Path]
    defects: list[Path]
    defect_names: list[str]


def read_review(path, folder=None) -> Review:
    """Read a review of images below `folder`, by default the folder that the review lies in.

    Raises
    ------
    FileNotFoundError
        The review, or an image that it names, is not there.
    ValueError
        It is no review, or names something outside of the folder.
    """
    path = Path(path).expanduser()
    folder = path.parent if folder is None else Path(folder).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no review {str(path)!r}: check the path.")
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder: expected the one that was scored.")
    try:
        content = load_strict_json(path.read_bytes())
        if not isinstance(content, dict) or {key: content.get(key) for key in FORMAT} != FORMAT:
            raise ValueError(f"expected {json.dumps(FORMAT)} in it")
        verdicts = {}
        for entry in content["reviewed"]:
            name, verdict = entry["file"], entry["verdict"]
            if not isinstance(name, str) or verdict not in VERDICTS:
                raise ValueError(f"the entry {entry!r} is none of {', '.join(VERDICTS)}")
            if verdicts.setdefault(name, verdict) != verdict:
                raise ValueError(f"{name!r} is both normal and a defect")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is not a review as a report writes it: {error}.") from None
    files = {name: _below(folder, name, path) for name in verdicts}
    return Review(
        [files[name] for name in verdicts if verdicts[name] == "normal"],
        [files[name] for name in verdicts if verdicts[name] == "defect"],
        [name for name in verdicts if verdicts[name] == "defect"],
    )


def _below(folder: Path, name: str, review: Path) -> Path:
    """The file of this name below the folder, links followed."""
    if "\0" not in name and name:
        root = Path(os.path.realpath(folder))
        file = Path(os.path.realpath(root / name))
        if not Path(name).is_absolute() and file.is_relative_to(root):
            if file.is_file():
                return root / name
            raise FileNotFoundError(
                f"{str(review)!r} names {name!r}, which is not in {str(folder)!r}: give the folder "
                "that was scored."
            )
    raise ValueError(
        f"{str(review)!r} names {name!r}, which leads out of {str(folder)!r}: expected files below "
        "the folder that was scored."
    )
