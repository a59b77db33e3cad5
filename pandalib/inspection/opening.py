"""From what someone calls images to a sequence, with names and the sizes of the originals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pandalib.datasets.images import ImageFolder, several_pages, take, upright_size
from pandalib.datasets.listing import first_names
from pandalib.methods.distances import height_and_width


def frames_of(images) -> list | None:
    """Single images in memory, which are treated as files are; None for anything else."""
    if _is_frame(images):
        return [images]
    some = isinstance(images, (list, tuple)) and len(images) > 0
    return list(images) if some and all(map(_is_frame, images)) else None


def _is_frame(image) -> bool:
    if isinstance(image, Image.Image):
        return True
    shape = getattr(image, "shape", ())
    return isinstance(image, np.ndarray) and (len(shape) == 2 or len(shape) == 3 == shape[2])


def part_of(images, names, size_of, numbers: list[int]) -> tuple:
    """The images of these numbers, their names and sizes."""
    part = [images[n] for n in numbers] if isinstance(images, list) else take(images, numbers)
    return part, [names[n] for n in numbers], lambda number: size_of(numbers[number])


def sizes_of(images) -> Callable[[int], tuple[int, int]]:
    """From the number of an image to the height and width of the original."""
    if isinstance(images, ImageFolder):
        return lambda number: upright_size(images.files[number])[::-1]
    return lambda number: height_and_width(images)


def notes_of(images) -> list[str]:
    """How a folder was read, and what was left out there."""
    listing = getattr(images, "listing", None)
    if listing is None:
        return []
    notes = [note for note in (listing.note, listing.warning) if note]
    pages = [Path(file).name for file in several_pages(images.files)]
    if pages:
        names = first_names(pages)
        notes.append(f"of files with several pages or frames the first is read: {names}")
    return notes


def in_pixels(size: Sequence[int]) -> str:
    """Height and width as people write a size: 640 x 480."""
    return f"{size[1]} x {size[0]}"
