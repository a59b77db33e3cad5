"""Image files: each becomes uint8 (3, size, size), many of them a lazy sequence.

One geometry everywhere, the paper's "resize, then centre crop": the shorter side becomes `resize`
pixels and the central size x size square is kept. Only that part of the source is
resampled, so a strip of 20000 x 20 pixels is never enlarged to 224000 x 224.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import operator
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pandalib.validation import as_images

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
# Pillow chooses a reader by content, not by name, and some readers start other programs.
_READERS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
# Part of every fingerprint: to be raised when the same file would give other pixels.
_READING_RULES = "pandalib folder images 1"
FEW = 500  # images below which no worker processes are started to decode them


class ImageError(ValueError):
    """A file cannot be used as an image; `cause` says why in a few words."""

    cause = ""


def read_image(path, size: int, resize: int | None = None) -> np.ndarray:
    """Read one picture file.

    Grey becomes three equal channels; 16-bit grey keeps its upper 8 bits, since a stretch would
    hide that an image is too dark. Transparent parts are laid on white, CMYK is converted without
    a colour profile, EXIF rotation is applied. Of several frames or pages the first is read.

    Parameters
    ----------
    path : path-like
        PNG, JPEG, BMP, TIFF, WebP, GIF, PPM or PGM.
    size : int
        Side of the result in pixels.
    resize : int, optional
        Shorter side before the centre crop (default: `size`; the paper: 256 for 224).

    Returns
    -------
    image : uint8 array (3, size, size), RGB

    Raises
    ------
    ImageError
        Naming the file and the cause: missing, damaged, no image, too many pixels, 32 bits.
    """
    size, resize = check_geometry(size, resize)
    with _naming(path):
        return _to_square(_open(path), size, resize)


def read_mask(path, size: int, resize: int | None = None, *, image=None) -> np.ndarray:
    """Read the mask of anomalous pixels, with the geometry of `read_image` and nearest neighbours.

    Anomalous is every pixel that is not black (label images count), except in JPEG, which leaves
    noise in the black: there it is 128 and above. Transparent pixels are normal.

    Parameters
    ----------
    path, size, resize
        As in `read_image`.
    image : path-like, optional
        The image that the mask belongs to, whose proportions it must have.

    Returns
    -------
    mask : bool array (size, size)

    Raises
    ------
    ImageError
        As `read_image`, and for a mask without the proportions of `image`.
    """
    size, resize = check_geometry(size, resize)
    if image is not None:
        with _naming(image):
            width, height = _open(image).size
    with _naming(path):
        mask = _open(path)
        if image is not None:
            off = abs(mask.width - mask.height * width / height)
            if off > max(1, 0.01 * mask.width):
                raise ValueError(
                    f"as a mask of {Path(image).name!r} it must have the image's proportions, "
                    f"{width} x {height} pixels, but it has {mask.width} x {mask.height}"
                )
        anomalous = Image.fromarray(_not_black(mask).astype(np.uint8))
        box = _crop_box(*mask.size, size, resize)
        return np.asarray(anomalous.resize((size, size), Image.Resampling.NEAREST, box=box)) > 0


def check_geometry(size, resize) -> tuple[int, int]:
    """`size` and `resize` as integers, `resize` filled in."""
    size = operator.index(size)
    resize = size if resize is None else operator.index(resize)
    if not 1 <= size <= resize:
        raise ValueError(f"size={size}, resize={resize}: expected 1 <= size <= resize, in pixels.")
    return size, resize


@contextmanager
def _naming(path) -> Iterator[None]:
    """Turn any failure inside into one ImageError: damaged files raise a dozen types."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except Exception as error:
        cause = _cause(path, error)
        problem = ImageError(
            f"cannot read {str(path)!r} as an image: {cause}; repair, convert or remove this file."
        )
        problem.cause = cause
        raise problem from error


def _cause(path, error: Exception) -> str:
    if not os.path.exists(path):
        return "there is no such file"
    if os.path.getsize(path) == 0:
        return "it is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return f"its content is none of {', '.join(_READERS)}, or is damaged"
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return f"it has more than {Image.MAX_IMAGE_PIXELS} pixels"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _open(path) -> Image.Image:
    """The first frame, decoded and turned upright; `.format` is kept."""
    with Image.open(path, formats=_READERS) as image:
        upright = ImageOps.exif_transpose(image)  # always a decoded copy, never the open file
        upright.format = image.format
    return upright


def _crop_box(width: int, height: int, size: int, resize: int) -> tuple[float, ...]:
    """Left, top, right and bottom of the part of an image that becomes the square."""
    short = min(width, height)  # rounded as by torchvision's Resize and CenterCrop
    new_width, new_height = int(resize * width / short), int(resize * height / short)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    x, y = width / new_width, height / new_height
    return left * x, top * y, min((left + size) * x, width), min((top + size) * y, height)


def _to_square(image: Image.Image, size: int, resize: int) -> np.ndarray:
    if _is_wide(image):
        if image.mode == "F" or image.mode == "I" and image.format not in ("PNG", "PPM"):
            raise ValueError("its 32-bit values declare no range: expected 8 or 16 bits")
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    box = _crop_box(*image.size, size, resize)
    image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _not_black(mask: Image.Image) -> np.ndarray:
    if _is_wide(mask):
        return np.asarray(mask) != 0
    colours = np.asarray(mask.convert("RGBA"))  # a palette's numbers mean nothing, its colours do
    smallest = 128 if mask.format == "JPEG" else 1
    return (colours[..., :3] >= smallest).any(-1) & (colours[..., 3] > 0)


def _is_wide(image: Image.Image) -> bool:
    """Grey of 16 or 32 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


# ---------------------------------------------------------------- folders


def subfolders(folder) -> list[str]:
    """Names of the folders in a folder, hidden ones left out, sorted by code points."""
    return [path.name for path in _visible(folder) if path.is_dir()]


def image_files(folder, *, recursive: bool = False) -> list[Path]:
    """Paths of the image files in a folder, sorted by code points: the same order on every machine.

    Hidden files are left out. Broken links count, so that reading reports them; with `recursive`,
    links to folders are not followed, since they may form a loop.
    """
    files = [
        path
        for path in _visible(folder)
        if path.name.lower().endswith(ENDINGS) and not path.is_dir()
    ]
    for path in _visible(folder) if recursive else ():
        if path.is_dir() and not path.is_symlink():
            files += image_files(path, recursive=True)
    return sorted(files, key=lambda path: path.parts)


def list_images(path, *, recursive: bool = False) -> list[Path]:
    """As `image_files`, or the file itself; ValueError if there are no images."""
    path = Path(path).expanduser()
    files = [path] if path.is_file() else image_files(path, recursive=recursive)
    if not files:
        hint = "" if recursive else " Subfolders are searched with recursive=True (--recursive)."
        endings = " ".join(ENDINGS)
        raise ValueError(
            f"{str(path)!r} holds no images: expected files ending in {endings}.{hint}"
        )
    return files


def _visible(folder) -> list[Path]:
    if not os.path.exists(folder):  # not Path(folder): an empty name is no folder
        raise FileNotFoundError(f"there is no folder {str(folder)!r}: check the path.")
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{str(folder)!r} is a file: expected a folder of images.")
    visible = [path for path in Path(folder).iterdir() if not path.name.startswith(".")]
    return sorted(visible, key=lambda path: path.name)


def open_images(
    images, size: int, resize: int | None = None, *, recursive: bool = False, normal: bool = False
) -> tuple[Sequence, list[str]]:
    """Images in any form, as one sequence with a name for each.

    Parameters
    ----------
    images : path-like, list of paths, or sequence of images
        A folder, a file, a list of files, or what `pandalib.validation.as_images` takes.
    size, resize : int
        Of files, as in `read_image`.
    recursive : bool
        Search subfolders too.
    normal : bool
        Of a folder in MVTec's layout take train/good.

    Returns
    -------
    images : sequence whose slices are uint8 (n, 3, H, W)
    names : list of str

    Raises
    ------
    FileNotFoundError, ValueError
        There are no images, or something else was given.
    """
    top = None
    if isinstance(images, (str, os.PathLike)):
        root = Path(images).expanduser()
        top = root if root.is_dir() else root.parent
        if normal and (root / "train" / "good").is_dir():
            root = root / "train" / "good"
        images = ImageFolder(list_images(root, recursive=recursive), size, resize)
    elif isinstance(images, (list, tuple)) and images:
        if all(isinstance(file, (str, os.PathLike)) for file in images):
            images = ImageFolder([Path(file).expanduser() for file in images], size, resize)
    images = as_images(images)
    if not isinstance(images, ImageFolder):
        return images, [f"image {number}" for number in range(len(images))]
    files = [os.path.abspath(file) for file in images.files]
    top = top or os.path.commonpath([os.path.dirname(file) for file in files])
    return images, [_printable(Path(os.path.relpath(file, top)).as_posix()) for file in files]


def _printable(name: str) -> str:
    """The name with all characters escaped that a terminal or a page could not show."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


# ---------------------------------------------------------------- lazy sequences


class LazyImages(Sequence):
    """Images that are made when they are needed; a subclass has `size`, `__len__` and `_read`.

    `images[3]` is uint8 (3, size, size); `images[10:20]` and `images[[4, 1]]` have four dimensions.
    """

    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), 3, self.size, self.size

    def __getitem__(self, index) -> np.ndarray:
        numbers = np.arange(len(self))[index]  # numpy's own rules for masks, negatives and errors
        if numbers.ndim == 0:
            return self._read(int(numbers))
        return self._stack([self._read(int(number)) for number in numbers])

    def _stack(self, images: list[np.ndarray]) -> np.ndarray:
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), np.uint8)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images, {self.size} x {self.size} pixels)"

    def iter_batches(self, batch_size: int, *, workers: int | None = None) -> Iterator[np.ndarray]:
        """Yield uint8 (n, 3, size, size) in order, decoded ahead while the caller computes.

        Parameters
        ----------
        batch_size : int
        workers : int, optional
            Processes that decode; 0: this one. None: PANDALIB_WORKERS, else 0 for fewer than 500
            images or where processes cannot be forked, else at most 4.

        Raises
        ------
        ImageError
            At the batch that holds an unreadable file.
        """
        for _, images, errors in self.iter_readable(batch_size, workers=workers):
            for error in errors.values():
                raise error
            yield images

    def iter_readable(self, batch_size: int, *, workers: int | None = None) -> Iterator[tuple]:
        """As `iter_batches`, but leave unreadable files out and say which.

        Yields
        ------
        numbers : list of int
        images : uint8 array (n, 3, size, size), those with these numbers
        errors : dict of int to ImageError, of the other numbers of the batch
        """
        import torch  # takes a second or two, and a list of files does not need it
        from torch.utils.data import DataLoader

        yield from DataLoader(
            _Batches(self, batch_size),
            batch_size=None,
            num_workers=_default_workers(len(self)) if workers is None else workers,
            collate_fn=_unchanged,  # arrays go through a pipe: containers have a small /dev/shm
            generator=torch.Generator(),  # torch's own random numbers stay as they were
        )


class _Batches:
    """A torch data set of batches. Errors are returned: torch would wrap them in a traceback."""

    def __init__(self, images: LazyImages, batch_size: int):
        self.images, self.batch_size = images, batch_size

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, batch: int) -> tuple[list[int], np.ndarray, dict[int, ImageError]]:
        read, errors = {}, {}
        for number in range(len(self.images))[batch * self.batch_size :][: self.batch_size]:
            try:
                read[number] = self.images[number]
            except ImageError as error:
                errors[number] = error
        return list(read), self.images._stack(list(read.values())), errors


def _unchanged(batch):
    return batch


def _default_workers(n_images: int) -> int:
    if "PANDALIB_WORKERS" in os.environ:
        return int(os.environ["PANDALIB_WORKERS"])
    started = multiprocessing.get_start_method(allow_none=True)
    method = started or multiprocessing.get_all_start_methods()[0]
    # Without fork each worker would import torch again, and scripts need a main guard.
    if n_images < FEW or method != "fork" or multiprocessing.current_process().daemon:
        return 0
    return min(4, (os.cpu_count() or 1) - 1)


class ImageFolder(LazyImages):
    """Image files, each decoded when it is needed and not kept in memory.

    Parameters
    ----------
    files : iterable of path-like
        An unreadable one raises ImageError when it is reached.
    size, resize : int
        As in `read_image`.

    Examples
    --------
    >>> ImageFolder(["a.png", "b.png"], 224).shape
    (2, 3, 224, 224)
    """

    def __init__(self, files: Iterable, size: int, resize: int | None = None):
        self.files = tuple(Path(file) for file in files)
        self.size, self.resize = check_geometry(size, resize)

    def __len__(self) -> int:
        return len(self.files)

    def _read(self, number: int) -> np.ndarray:
        return read_image(self.files[number], self.size, self.resize)

    def fingerprint(self) -> str:
        """SHA-256 of the files' bytes in order and of the geometry: a key for caches.

        Names and places do not matter. Computed again on each call, because files may change.
        """
        whole = hashlib.sha256(f"{_READING_RULES} {self.size} {self.resize}".encode())
        for path in self.files:
            with _naming(path), open(path, "rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()


class ImageArray(LazyImages):
    """Small images held at their own size: 50,000 of 32 x 32 are 150 MB, at 224 x 224 7.5 GB.

    Parameters
    ----------
    pixels : uint8 array (N, h, w, 3), or (N, h, w) for grey
    size, resize : int
        As in `read_image`.

    Examples
    --------
    >>> ImageArray(np.zeros((5, 32, 32, 3), np.uint8), 224)[:2].shape
    (2, 3, 224, 224)
    """

    def __init__(self, pixels, size: int, resize: int | None = None):
        self.pixels = np.asarray(pixels)
        if self.pixels.dtype != np.uint8 or self.pixels.shape[3:] not in ((), (3,)):
            given = f"{self.pixels.dtype} {self.pixels.shape}"
            raise ValueError(f"pixels are {given}: expected uint8 (N, h, w, 3) or (N, h, w).")
        self.size, self.resize = check_geometry(size, resize)

    def __len__(self) -> int:
        return len(self.pixels)

    def _read(self, number: int) -> np.ndarray:
        return _to_square(Image.fromarray(self.pixels[number]), self.size, self.resize)

    def fingerprint(self) -> str:
        """SHA-256 of the pixels and of the geometry: a key for caches."""
        kind = f"{_READING_RULES} array {self.size} {self.resize} {self.pixels.shape}"
        whole = hashlib.sha256(kind.encode())
        whole.update(np.ascontiguousarray(self.pixels))
        return whole.hexdigest()


def take(images, numbers: Sequence[int]):
    """Some images of an array, an ImageFolder or an ImageArray, as one of the same kind."""
    if isinstance(images, ImageFolder):
        return ImageFolder([images.files[n] for n in numbers], images.size, images.resize)
    if isinstance(images, ImageArray):
        return ImageArray(images.pixels[np.asarray(numbers, int)], images.size, images.resize)
    return images[np.asarray(numbers, int)]


def join(parts: Sequence):
    """Arrays, ImageFolders or ImageArrays of one geometry, one after the other."""
    first = parts[0]
    if isinstance(first, ImageFolder):
        files = [file for part in parts for file in part.files]
        return ImageFolder(files, first.size, first.resize)
    if isinstance(first, ImageArray):
        pixels = np.concatenate([part.pixels for part in parts])
        return ImageArray(pixels, first.size, first.resize)
    return np.concatenate(parts)
