"""The scores of a ranking as files for other programs: a table, JSON, heat maps.

Every target is tried before the first image is scored (`check_targets`), so that no work is lost to
a wrong name.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pandalib.inspection.report import coloured
from pandalib.io import write_atomically

STDOUT = "-"
AT_THRESHOLD = 1000  # the value in a 16-bit map that stands for the threshold


def check_targets(*, folders=(), **files: str | None) -> None:
    """Raise OSError where one of the files, by option, or folders could not be written."""
    for option, name in files.items():
        if name is None or name == STDOUT:
            continue
        path = Path(name).expanduser()
        if path.is_dir():
            raise IsADirectoryError(
                f"--{option} {name!r} is a folder: expected the name of a file, as "
                f"{str(Path(name) / ('results.' + ('html' if option == 'report' else option)))!r}."
            )
        _check_folder(path.parent, f"--{option} {name!r}")
    for name in folders:
        path = Path(name).expanduser()
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{name!r} is a file: expected a folder.")
        while not path.exists():
            path = path.parent
        _check_folder(path, repr(str(name)))


def _check_folder(folder: Path, what: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{what}: there is no folder {str(folder)!r}.")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{what}: the folder {str(folder)!r} cannot be written to.")


def write_csv(target: str, rows: list[dict]) -> None:
    """One line for each image; of its regions the number and the highest. "-": print it."""
    buffer = io.StringIO()
    table = [_flat(row) for row in rows]
    writer = csv.DictWriter(buffer, table[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    _write(target, buffer.getvalue())


def _flat(row: dict) -> dict:
    row = dict(row)
    regions = row.pop("regions")
    first = regions[0] if regions else dict.fromkeys(("left", "top", "right", "bottom", "area"), "")
    names = ("left", "top", "right", "bottom", "area")
    return row | {"n_regions": len(regions)} | {f"region_{name}": first[name] for name in names}


def write_json(target: str, content: dict) -> None:
    """Everything that is known; "-": print it."""
    _write(target, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _write(target: str, text: str) -> None:
    if target == STDOUT:
        sys.stdout.write(text)
    else:  # names as they are
        write_atomically(Path(target).expanduser(), text.encode(errors="surrogateescape"))


def map_writer(folder, inspector, threshold: float):
    """A function for `Inspector.rank(on_map=)`: two files for each image, in its own size.

    NAME.map.png shows the map over the image in grey. NAME.map.tif holds it in 16 bits, 1,000 at
    the threshold, and 0 where a crop did not look.
    """
    folder, geometry = Path(folder).expanduser(), inspector.geometry_

    def write(name: str, source, anomaly_map: np.ndarray) -> None:
        if isinstance(source, np.ndarray):
            pixels = source.transpose(1, 2, 0)
        else:
            pixels = geometry.pixels(source)
        relative = geometry.restore(anomaly_map, *pixels.shape[:2]) / np.float32(threshold)
        inside = [part for part in PurePosixPath(name).parts if part not in ("..", "/")]
        path = folder.joinpath(*inside)
        for suffix, kind, content in (
            (".map.png", "PNG", coloured(pixels, np.nan_to_num(relative))),
            (
                ".map.tif",
                "TIFF",
                np.uint16(np.clip(np.nan_to_num(relative) * AT_THRESHOLD, 0, 65535)),
            ),
        ):
            buffer = io.BytesIO()
            Image.fromarray(content).save(buffer, kind)
            write_atomically(path.with_name(path.name + suffix), buffer.getvalue())

    return write
