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

from pandalib.datasets.listing import Listing
from pandalib.io import real_path, write_atomically

MAP_UNIT = 8192  # of a 16-bit map: the threshold; 65535 is eight times the threshold, and beyond
COLUMNS = "rank file score relative alarm image place p_value hottest n_regions".split()
BOX = "left top right bottom area peak peak_x peak_y".split()  # of the region with the highest peak


def check_file(path) -> None:
    """Raise OSError unless a file can be written under this name; "-" is standard output."""
    if path is None or str(path) == "-":
        return
    name, path = str(Path(path).expanduser()), real_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{name!r} is a folder: expected the name of a file.")
    if path.exists() and not path.is_file():
        raise OSError(
            f"{name!r} is a device or a pipe: expected the name of a file; - is standard output."
        )
    check_folder(path.parent)


def check_targets(files: dict[str, str | None], maps, listing: Listing, model) -> None:
    """Raise ValueError if a target would replace another, an image or a part of the detector.

    Parameters
    ----------
    files : dict
        Option -> the name of a file, "-" or None.
    maps : path or None
        The folder of the maps.
    listing : Listing
        The images.
    model : path
        The folder of the detector.
    """
    images, taken = {real_path(file): file for file in listing.files}, {}
    for option, name in files.items():
        if name in (None, "-"):
            continue
        path = real_path(name)
        if (other := taken.setdefault(path, option)) != option:
            raise ValueError(f"{option} and {other} name the same file, {name!r}: expected two.")
        if path in images:
            raise ValueError(f"{option} {name!r} is one of the images: choose another name.")
        if path.is_relative_to(real_path(model)):
            raise ValueError(f"{option} {name!r} lies in the detector's folder: choose another.")
    if maps is not None:
        folder = real_path(maps)
        if str(maps) == "-" or any(image.is_relative_to(folder) for image in images):
            raise ValueError(
                f"--maps {str(maps)!r}: expected a folder that holds none of the images, since "
                "maps would be taken for images the next time."
            )


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
    content = text.encode(errors="surrogateescape")
    if str(path) != "-":
        write_atomically(real_path(path), content)
    elif hasattr(sys.stdout, "buffer"):  # as it is, whatever the terminal can show
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        sys.stdout.write(text)


def as_csv(rows: Iterable[dict]) -> str:
    """A table of ranked rows, one line an image; of its regions the one with the highest peak."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*COLUMNS, *BOX], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        first = row["regions"][0] if row["regions"] else {}
        writer.writerow(row | first)
    return buffer.getvalue()


def as_json(inspector, ranking, rows: list[dict], rate: float | None, folder=".") -> str:
    """All that is known of a ranking of images, whose names begin at `folder`."""
    threshold, check = inspector.threshold(rate), inspector.check().tolist()
    found = dict(
        threshold=threshold,
        false_alarm_rate=rate or inspector.false_alarm_rate,
        n_images=len(rows),
        n_alarms=sum(row["alarm"] for row in rows),
        weights_sha256=inspector.backbone.weights_sha256,
        geometry=inspector.read_as,
        folder=str(folder),
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
    threshold, 0 is also where a crop did not look. What cannot be written is listed in `failed`, by
    name and reason, so that no other result is lost.

    Parameters
    ----------
    folder : path
    inspector : Inspector
    threshold : float
    """

    def __init__(self, folder, inspector, threshold: float):
        self.folder = Path(folder).expanduser()
        self.inspector, self.threshold = inspector, threshold
        self.failed: list[tuple[str, str]] = []

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
            try:
                write_atomically(path, content.getvalue())
            except OSError as error:
                self.failed.append((path.name, error.strerror or str(error)))
