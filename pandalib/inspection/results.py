"""Results as files: tables, maps in the originals' pixels; targets are tried before the work."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from pandalib.io import write_atomically

MAP_UNIT = 8192  # of a 16-bit map: the threshold; 65535 is eight times the threshold, and beyond
COLUMNS = "rank file score relative alarm image place p_value hottest n_regions".split()
BOX = "left top right bottom area peak peak_x peak_y".split()  # of the region with the highest peak


def check_file(path) -> None:
    """Raise OSError unless a file can be written under this name; "-" is standard output."""
    if path is None or str(path) == "-":
        return
    path = Path(path).expanduser()
    if path.is_dir() or str(path) == "":
        raise IsADirectoryError(f"{str(path)!r} is a folder: expected the name of a file.")
    check_folder(path.parent)


def check_folder(path) -> None:
    """Raise OSError unless files can be written into this folder, which may not exist yet."""
    path = Path(path).expanduser().absolute()
    there = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not there.is_dir():
        raise NotADirectoryError(f"{str(there)!r} is a file: expected a folder to write into.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{str(there)!r} cannot be written to: choose another folder.")


def write_text(path, text: str) -> None:
    """Write a file as a whole, names in it as they are; "-" is standard output."""
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        write_atomically(Path(path).expanduser(), text.encode(errors="surrogateescape"))


def as_csv(rows: Iterable[dict]) -> str:
    """A table of ranked rows, one line an image; of its regions the one with the highest peak."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*COLUMNS, *BOX], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        first = row["regions"][0] if row["regions"] else {}
        writer.writerow(row | first | {"n_regions": len(row["regions"])})
    return buffer.getvalue()


def as_json(inspector, ranking, rows: list[dict], rate: float | None) -> str:
    """All that is known of a ranking."""
    threshold, check = inspector.threshold(rate), inspector.check().tolist()
    found = dict(
        threshold=threshold,
        false_alarm_rate=rate or inspector.false_alarm_rate,
        n_images=len(rows),
        n_alarms=sum(row["alarm"] for row in rows),
        weights_sha256=inspector.backbone.weights_sha256,
        geometry=str(inspector.geometry_),
        unreadable=[dict(file=name, reason=reason) for name, reason in ranking.unreadable],
        fitted=ranking.fitted,
        check=[
            dict(file=name, score=score, alarm=score > threshold)
            for name, score in zip(inspector.check_names_, check)
        ],
        images=rows,
    )
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


class MapFolder:
    """Writes the map of each image, in the original's size, as it is scored.

    NAME.png shows it in the colours of the report; NAME.tif holds 16-bit numbers: 8192 is the
    threshold, 0 is also where a crop did not look.

    Parameters
    ----------
    folder : path
    inspector : Inspector
    threshold : float
    """

    def __init__(self, folder, inspector, threshold: float):
        self.folder = Path(folder).expanduser()
        self.inspector, self.threshold = inspector, threshold

    def __call__(self, seen) -> None:
        # Imported here: it brings matplotlib, which tables do not need.
        from pandalib.inspection.report import heat_colours

        relative = np.nan_to_num(self.inspector.restored(seen)) / self.threshold
        levels = np.clip(np.rint(relative * MAP_UNIT), 0, 65535).astype(np.uint16)
        parts = [part for part in Path(seen.name).parts if part not in ("..", "/")]
        for ending, kind, pixels in (
            ("png", "PNG", heat_colours(relative)),
            ("tif", "TIFF", levels),
        ):
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, kind)
            path = self.folder.joinpath(*parts[:-1], f"{parts[-1]}.{ending}")
            write_atomically(path, content.getvalue())
