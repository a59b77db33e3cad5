"""Image files: each becomes uint8 (3, size, size), a list of them a lazy sequence.

One geometry everywhere, the paper's "resize, then centre crop": the shorter side becomes `resize` pixels and the
central size x size square is kept. It is done in one step, by resampling only the source rectangle under the crop, so
that a strip of 20000 x 20 pixels never swells to 224000 x 224.
"""

from __future__ import annotations

import hashlib
import operator
import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
# Pillow chooses a reader by content, not by name, and some of its readers start other programs: allow these only.
_READERS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
# Part of every fingerprint: raise it when the same file would give other pixels, so that caches are made anew.
_READING_RULES = "pandalib folder images 1"


class ImageError(ValueError):
    """A file cannot be used as an image; the message is one sentence that names the file and the cause, which also stands alone in `.cause`."""

    cause = ""


@contextmanager
def _naming(path):
    """Turn whatever fails inside into one ImageError; damaged files make Pillow raise a dozen different types."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except Exception as error:
        if not os.path.exists(path):
            cause = (
                "it is a link to a file that does not exist"
                if os.path.islink(path)
                else "there is no such file"
            )
        elif os.path.isdir(path):
            cause = "it is a folder"
        elif isinstance(error, PermissionError):
            cause = "there is no permission to read it"
        elif os.path.getsize(path) == 0:
            cause = "it is empty (0 bytes)"
        elif isinstance(error, UnidentifiedImageError):
            cause = f"its content is none of {', '.join(_READERS)}, or is damaged"
        elif isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
            cause = f"it has more than {Image.MAX_IMAGE_PIXELS} pixels"
        else:
            cause = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        problem = ImageError(
            f"cannot read {str(path)!r} as an image: {cause}; mend, convert or remove this file."
        )
        problem.cause = cause
        raise problem from error


def _open(path) -> Image.Image:
    """The first frame, decoded and turned upright (EXIF); `.format` is kept."""
    with Image.open(path, formats=_READERS) as image:
        upright = ImageOps.exif_transpose(image)  # always a decoded copy, never the open file
        upright.format = image.format
    return upright


def _crop_box(width: int, height: int, size: int, resize: int) -> tuple[float, float, float, float]:
    """The rectangle of the source that ends up in the crop, with torchvision's rounding of Resize and CenterCrop."""
    short = min(width, height)
    new_width, new_height = int(resize * width / short), int(resize * height / short)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    x, y = width / new_width, height / new_height
    return left * x, top * y, min((left + size) * x, width), min((top + size) * y, height)


def check_geometry(size, resize) -> tuple[int, int]:
    size = operator.index(size)
    resize = size if resize is None else operator.index(resize)
    if not 1 <= size <= resize:
        raise ValueError(f"size={size}, resize={resize}: expected 1 <= size <= resize, in pixels.")
    return size, resize


def _wide_to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits to 8 bits, by a fixed factor: a stretch would hide that an image is too dark."""
    values = np.asarray(image)
    if image.mode != "F" and (
        image.mode != "I" or image.format in ("PNG", "PPM")
    ):  # declared as 16 bit
        return Image.fromarray((values >> 8).astype(np.uint8))
    low, high = values.min(), values.max()
    limits = (1, 255, 65535) if image.mode == "F" else (255, 65535)
    limit = next(
        (limit for limit in limits if low >= 0 and high <= limit), None
    )  # NaN passes no comparison
    if limit is None:
        raise ValueError(
            f"its 32-bit values go from {low:g} to {high:g}, where 0 to {', '.join(map(str, limits))} is expected"
        )
    factor = {1: 255, 255: 1, 65535: 1 / 256}[limit]
    return Image.fromarray((values * factor + (0.5 if limit == 1 else 0)).astype(np.uint8))


def squeeze_box(
    width: int, height: int, size: int, resize: int
) -> tuple[float, float, float, float]:
    """As `_crop_box`, for an image that is first squeezed to a square: its centre, in the image's own proportions."""
    margin = (resize - size) / 2 / resize
    return width * margin, height * margin, width * (1 - margin), height * (1 - margin)


def fit(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """The rectangle `box` (left, top, right, bottom) of an image as uint8 (3, size, size), as told in `read_image`."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _wide_to_8_bit(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def read_image(path, size: int, resize: int | None = None) -> np.ndarray:
    """Read one picture file as uint8 (3, size, size), RGB.

    The shorter side is resized to `resize` (bilinear, antialiased), then the centre is cropped.

    - Grey becomes three equal channels; 16-bit grey keeps its upper 8 bits.
    - 32-bit grey (TIFF) declares no range: the smallest of 0..1 (float only), 0..255 and 0..65535 that holds the image
      is taken. Where very dark images occur, save as 8 or 16 bits instead.
    - Transparent parts (palette, grey or RGB) are laid on white. CMYK is converted without a colour profile.
    - EXIF rotation is applied. Of several frames or pages the first is read.

    Parameters
    ----------
    path : file of type png, jpg, bmp, tif, webp, gif, ppm or pgm.
    size : side of the result in pixels.
    resize : shorter side before the crop, at least `size` (default: `size`; the paper: 256 for 224).

    Raises
    ------
    ImageError naming the file and the cause: missing, empty, truncated, not an image, too many pixels.
    """
    size, resize = check_geometry(size, resize)
    with _naming(path):
        image = _open(path)
        return fit(image, size, _crop_box(*image.size, size, resize))


def read_mask(path, size: int, resize: int | None = None) -> np.ndarray:
    """Read the mask of anomalous pixels as bool (size, size), with the geometry of `read_image` and nearest neighbours.

    Anomalous is every pixel that is not black (label images count), except in JPEG, which leaves noise in the black:
    there it is 128 and above. Transparent pixels are normal.

    Raises
    ------
    ImageError as in `read_image`.
    """
    size, resize = check_geometry(size, resize)
    with _naming(path):
        mask = _open(path)
        return fit_mask(mask, size, _crop_box(*mask.size, size, resize))


def fit_mask(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    smallest = 128 if image.format == "JPEG" else 1
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        anomalous = np.asarray(image) != 0
    else:
        colours = np.asarray(
            image.convert("RGBA")
        )  # a palette's numbers mean nothing, its colours do
        anomalous = (colours[..., :3] >= smallest).any(-1) & (colours[..., 3] > 0)
    mask = Image.fromarray(anomalous.astype(np.uint8))
    return np.asarray(mask.resize((size, size), Image.Resampling.NEAREST, box=box)) > 0


def read_mask_of(image_path: Path, mask_path: Path, size: int, resize: int) -> np.ndarray:
    """A mask after a check that it lies on its image: another proportion would shift it without a word."""
    with _naming(image_path):
        image_box = _crop_box(*(image_size := _open(image_path).size), size, resize)
    with _naming(mask_path):
        mask = _open(mask_path)
        if mask.size != image_size:
            mask_box = _crop_box(*mask.size, size, resize)
            scale = np.array(image_size * 2) / np.array(mask.size * 2)
            if np.abs(mask_box * scale - image_box).max() > 0.01 * max(image_size):
                raise ValueError(
                    f"as a mask of {image_path.name!r} it must have the image's proportions, "
                    f"{image_size[0]} x {image_size[1]} pixels, but it has {mask.size[0]} x {mask.size[1]}"
                )
        return fit_mask(mask, size, _crop_box(*mask.size, size, resize))


def list_images(folder) -> list[Path]:
    """Image files directly in `folder`, sorted by name (code points: the same order on every machine).

    Hidden files, subfolders and files with other endings are left out. Links count, even broken ones, so that reading
    names them.

    Raises
    ------
    FileNotFoundError, NotADirectoryError; ValueError where there is no image, naming the accepted endings.
    """
    found = image_names(folder)
    if not found:
        raise ValueError(
            f"the folder {str(folder)!r} holds no images: expected files ending in {' '.join(ENDINGS)}."
        )
    return [Path(folder, name) for name in found]


def visible_entries(folder) -> list[os.DirEntry]:
    if not os.path.exists(folder):
        raise FileNotFoundError(f"there is no folder {str(folder)!r}: check the path.")
    if not os.path.isdir(folder):
        raise NotADirectoryError(
            f"{str(folder)!r} is a file: expected the folder that holds the images."
        )
    with os.scandir(folder) as entries:
        return sorted(
            (entry for entry in entries if not entry.name.startswith(".")),
            key=lambda entry: entry.name,
        )


def image_names(folder) -> list[str]:
    return [
        e.name
        for e in visible_entries(folder)
        if e.name.lower().endswith(ENDINGS) and not e.is_dir()
    ]


def subfolders(folder) -> list[str]:
    return [entry.name for entry in visible_entries(folder) if entry.is_dir()]


class LazyImages(Sequence):
    """A sequence of images that are made when they are asked for: `__len__` and `_read(number)` say which."""

    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), 3, self.size, self.size

    def __getitem__(self, index) -> np.ndarray:
        if isinstance(index, slice):
            chosen = range(len(self))[index]
        elif np.ndim(index) == 0:
            return self._read(range(len(self))[operator.index(index)])
        else:
            index = np.asarray(index)
            chosen = np.arange(len(self))[
                index if len(index) else []
            ]  # numpy's own rules for masks, negatives, errors
        images = np.empty((len(chosen), 3, self.size, self.size), np.uint8)
        for row, number in enumerate(chosen):
            images[row] = self._read(int(number))
        return images


class ImageFolder(LazyImages):
    """A lazy sequence of image files: an image is decoded when it is asked for, and not kept.

    `folder[3]` is uint8 (3, size, size); `folder[10:20]` and `folder[[4, 1]]` are uint8 (n, 3, size, size).
    So 20,000 files cost no more memory than the slice in hand. An unreadable file raises ImageError when it is reached.

    Parameters
    ----------
    files : paths, in the order of the sequence.
    size, resize : as in `read_image`.
    """

    def __init__(self, files: Iterable, size: int, resize: int | None = None):
        self.files = tuple(Path(file) for file in files)
        self.size, self.resize = check_geometry(size, resize)

    def __len__(self) -> int:
        return len(self.files)

    def _read(self, number: int) -> np.ndarray:
        return read_image(self.files[number], self.size, self.resize)

    def __repr__(self) -> str:
        return f"ImageFolder({len(self)} files, {self.size} x {self.size} pixels)"

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the files' bytes in order and of the geometry: a key for caches, without decoding.

        Names and places of the files do not matter. Computed anew on each call, because files may change.
        """
        whole = hashlib.sha256(f"{_READING_RULES} {self.size} {self.resize}".encode())
        for path in self.files:
            with _naming(path), open(path, "rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()
