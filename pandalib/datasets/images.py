"""Image files: each becomes uint8 (3, height, width), many of them a lazy sequence.

`Geometry` says how. By default the whole image is seen, at one height and width for a folder; the
paper's "resize, then centre crop" is one of three ways to fit an image into them.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import operator
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pandalib.datasets.listing import HEIC, Listing, common_folder
from pandalib.validation import as_array, check_counts

# Pillow chooses a reader by content, not by name, and some readers start other programs.
_READERS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
if HEIC:
    from pillow_heif import register_heif_opener  # an extra, which may be absent

    register_heif_opener()
    _READERS += ("HEIF",)
# Part of every fingerprint: to be raised when the same file would give other pixels.
_READING_RULES = "pandalib images 2"
_ORIENTATION, _PHOTOMETRIC = 0x0112, 0x0106  # tags of EXIF and TIFF
FITS = ("stretch", "pad", "crop")
RANGE = (0.1, 99.9)  # per cent of an image's pixels, between which its values are taken
FEW = 500  # images below which no worker processes are started to decode them


class ImageError(ValueError):
    """A file cannot be used as an image; `cause` says why in a few words."""

    cause = ""


@dataclass(frozen=True)
class Geometry:
    """How an image of any size becomes height x width pixels, and how a map goes back.

    Grey becomes three equal channels. Transparent parts are laid on white, CMYK is converted
    without a colour profile, EXIF rotation is applied. Of several frames or pages the first is
    read. When an image shrinks, each new pixel averages all the old ones that it covers.

    Parameters
    ----------
    height, width : int
        Of the result, in pixels.
    fit : {"stretch", "pad", "crop"}
        "stretch": the whole image, at the proportions of the result. "pad": the whole image at its
        own proportions, in the middle, its edges repeated. "crop", the paper's: the shorter side
        becomes `resize` pixels and the central square is kept.
    resize : int, optional
        For "crop" (default: the height; the paper: 256 for 224).
    black, white : int
        Values of 16-bit grey files that become 0 and 255. They belong to a folder, not to an image,
        since a stretch per image would hide that one is too dark.

    Raises
    ------
    ValueError
        Sides below 1, an unknown fit, a crop that is not square or is larger than `resize`.

    Examples
    --------
    >>> Geometry(64, 192).read(np.zeros((200, 600), np.uint8)).shape
    (3, 64, 192)
    """

    height: int
    width: int
    fit: str = "stretch"
    resize: int | None = None
    black: int = 0
    white: int = 65535

    def __post_init__(self):
        for name in ("height", "width", "black", "white"):
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        if self.fit not in FITS:
            raise ValueError(f"fit={self.fit!r}: expected {', '.join(map(repr, FITS))}.")
        if min(self.height, self.width) < 1:
            raise ValueError(f"{self.height} x {self.width} pixels: expected at least 1 x 1.")
        if self.black >= self.white:
            raise ValueError(f"black={self.black}, white={self.white}: expected black < white.")
        if self.fit == "crop":
            resize = self.height if self.resize is None else operator.index(self.resize)
            object.__setattr__(self, "resize", resize)
            if not self.height == self.width <= resize:
                raise ValueError(
                    f"size={self.height} x {self.width}, resize={resize}: expected a square and "
                    "size <= resize, in pixels."
                )
        elif self.resize is not None:
            raise ValueError(f"resize={self.resize} with fit={self.fit!r}: it is for 'crop' only.")

    @classmethod
    def square(cls, size: int, resize: int | None = None, fit: str | None = None) -> Geometry:
        """size x size pixels; `fit` is "crop" if `resize` is given, else "stretch"."""
        check_counts(size=size)
        return cls(size, size, fit or ("stretch" if resize is None else "crop"), resize)

    @classmethod
    def for_images(
        cls, images: Iterable, size: int, fit: str | None = None, resize: int | None = None
    ) -> Geometry:
        """The geometry for images of one kind, by their headers alone (of 16-bit files: by pixels).

        Proportions are the median of the images', the area is about size x size, and the sides are
        multiples of 32 if `size` is: square images become size x size. White is the smallest
        2**bits - 1 that holds the values of all 16-bit files, but for one pixel in a thousand of
        each, which may be hot, or mark what is missing: cameras of 10 or 12 bits fill only the
        lowest part of 16. Where the values fill less than an eighth of that (a thermal camera's),
        black and white are their ends, with as much room again on both sides. Files that cannot be
        read are passed over.

        Parameters
        ----------
        images : iterable
            Paths, PIL images or arrays, all of them normal.
        size, fit, resize
            As in `square`.

        Raises
        ------
        ImageError
            All 16-bit colour files use only the lowest 12 bits, of which Pillow keeps 4.
        """
        square = cls.square(size, resize, fit)
        ratios, ends, dark, bright = [], [], None, False
        for image in images:
            with suppress(ImageError), _opened(image) as picture:
                width, height = _size(picture)
                ratios.append(math.log(width / height))
                if _is_wide(picture):
                    ends.append(np.percentile(_grey_16(picture), RANGE))
                elif not bright and ";16" in str(getattr(picture, "tile", "")):  # colour
                    bright = np.percentile(np.asarray(picture.convert("RGB")), RANGE[1]) > 15
                    dark = dark or image
        if dark is not None and not bright:
            raise ImageError(
                f"{_name(dark)} and all other 16-bit colour images fill at most 12 of their 16 "
                "bits, of which 4 would be read: convert them to 8 bits, or to grey."
            )
        square = replace(square, **_range_of(ends))
        if square.fit == "crop" or not ratios:
            return square
        ratio = math.exp(np.median(ratios))
        step = 32 if size % 32 == 0 else 1
        short = step * max(1, round(size * min(ratio, 1 / ratio) ** 0.5 / step))
        long = step * max(1, round(size * size / short / step))
        height, width = (short, long) if ratio > 1 else (long, short)
        return replace(square, height=height, width=width)

    def read(self, source) -> np.ndarray:
        """Read an image.

        Parameters
        ----------
        source : path-like, PIL image or array
            A PNG, JPEG, BMP, TIFF, WebP, GIF, PPM or PGM file; or what it holds, as a PIL image,
            as uint8 (H, W, 3), or as uint8 or uint16 (H, W): the result is the same to the bit.

        Returns
        -------
        image : uint8 array (3, height, width), RGB

        Raises
        ------
        ImageError
            Naming the file and the cause: missing, damaged, no image, too many pixels, 32 bits.
        """
        with _opened(source) as picture:
            image = self._rgb(_upright(picture))
            if self.fit == "pad":
                (above, below), (left, right) = self._margins(image.height, image.width)
                inner = self.width - left - right, self.height - above - below
                pixels = np.asarray(image.resize(inner, Image.Resampling.BILINEAR))
                pixels = np.pad(pixels, ((above, below), (left, right), (0, 0)), "edge")
            else:
                shape, box = (self.width, self.height), self.window(image.height, image.width)
                pixels = np.asarray(image.resize(shape, Image.Resampling.BILINEAR, box=box))
            return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def pixels(self, source) -> np.ndarray:
        """The whole image at its own size, uint8 (H, W, 3): upright, in 8 bits, on white."""
        with _opened(source) as picture:
            return np.asarray(self._rgb(_upright(picture)))

    def read_mask(self, path, *, image=None) -> np.ndarray:
        """Read the mask of anomalous pixels, placed as the image is, by nearest neighbours.

        Anomalous is every pixel that is not black (label images count), except in JPEG, which
        leaves noise in the black: there it is 128 and above. Transparent pixels are normal, and so
        is what "pad" adds.

        Parameters
        ----------
        path : path-like
        image : path-like, PIL image or array, optional
            The image that the mask belongs to, whose proportions it must have.

        Returns
        -------
        mask : bool array (height, width)

        Raises
        ------
        ImageError
            As `read`, and for a mask without the proportions of `image`.
        """
        if image is not None:
            width, height = upright_size(image)
        with _opened(path) as picture:
            mask = _upright(picture)
            if image is not None:
                off = abs(mask.width - mask.height * width / height)
                if off > max(1, 0.01 * mask.width):
                    raise ValueError(
                        f"as a mask of {_name(image)} it must have the image's proportions, "
                        f"{width} x {height} pixels, but it has {mask.width} x {mask.height}"
                    )
            return self.fit_mask(_not_black(mask))

    def fit_mask(self, mask: np.ndarray) -> np.ndarray:
        """A bool array (H, W) in the geometry of an image of its size, by nearest neighbours."""
        image, nearest = Image.fromarray(mask.astype(np.uint8)), Image.Resampling.NEAREST
        if self.fit == "pad":
            (above, below), (left, right) = margins = self._margins(*mask.shape)
            inner = self.width - left - right, self.height - above - below
            return np.pad(np.asarray(image.resize(inner, nearest)) > 0, margins)
        box = self.window(*mask.shape)
        return np.asarray(image.resize((self.width, self.height), nearest, box=box)) > 0

    def restore(self, anomaly_map: np.ndarray, height: int, width: int) -> np.ndarray:
        """A map of an image of height x width pixels, laid on it by linear interpolation.

        Parameters
        ----------
        anomaly_map : array (h, w)
            Of what the geometry shows, at any resolution.
        height, width : int
            Of the original image, upright.

        Returns
        -------
        restored : float32 array (height, width)
            NaN where a crop did not look.
        """
        values = np.asarray(anomaly_map, np.float32)
        left, top, right, bottom = self.window(height, width)
        for axis, length, start, end in ((0, height, top, bottom), (1, width, left, right)):
            n = values.shape[axis]
            centres = np.arange(length) + 0.5
            at = np.clip((centres - start) / (end - start) * n - 0.5, 0, n - 1)
            below = at.astype(int)
            weight = (at - below).astype(np.float32)
            weight[(centres < start) | (centres > end)] = np.nan
            weight = np.expand_dims(weight, 1 - axis)
            lower = values.take(below, axis)
            upper = values.take(np.minimum(below + 1, n - 1), axis)
            values = lower + weight * (upper - lower)
        return values

    def __str__(self) -> str:
        how = {
            "stretch": "the whole image",
            "pad": "the whole image, padded",
            "crop": f"the central square, shorter side resized to {self.resize}",
        }[self.fit]
        usual = (self.black, self.white) == (0, 65535)
        grey = "" if usual else f", 16-bit values {self.black} to {self.white}"
        return f"{self.width} x {self.height} pixels, {how}{grey}"

    def window(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what is shown, in pixels of the original."""
        if self.fit == "stretch":
            return 0, 0, width, height
        if self.fit == "pad":
            (above, below), (left, right) = self._margins(height, width)
            x = width / (self.width - left - right)
            y = height / (self.height - above - below)
            return -left * x, -above * y, width + right * x, height + below * y
        short = min(width, height)  # rounded as by torchvision's Resize and CenterCrop
        new_width, new_height = int(self.resize * width / short), int(self.resize * height / short)
        left, top = round((new_width - self.width) / 2), round((new_height - self.height) / 2)
        # Only this part of the source is resampled: a strip of 20000 x 20 pixels is never enlarged.
        x, y = width / new_width, height / new_height
        right, bottom = min((left + self.width) * x, width), min((top + self.height) * y, height)
        return left * x, top * y, right, bottom

    def _margins(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows above and below, columns left and right, that "pad" adds."""
        scale = min(self.height / height, self.width / width)
        rows = self.height - max(1, round(height * scale))
        columns = self.width - max(1, round(width * scale))
        return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)

    def _rgb(self, image: Image.Image) -> Image.Image:
        if _is_wide(image):
            # With black 0 and white 65535 this keeps the upper 8 bits.
            levels = (_grey_16(image).astype(np.int32) - self.black) * 256
            levels = np.clip(levels // (self.white - self.black + 1), 0, 255)
            if image.info.get("white is zero"):  # Pillow inverts 8 bits only
                levels = 255 - levels
            image = Image.fromarray(levels.astype(np.uint8))
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def _range_of(ends: list) -> dict[str, int]:
    """Black and white for 16-bit files with these lowest and highest values; {} without any."""
    if not ends:
        return {}
    low, high = (int(bound) for bound in (np.min(ends, axis=0)[0], np.max(ends, axis=0)[1]))
    black, white, room = 0, 2 ** max(8, high.bit_length()) - 1, high - low + 1
    if 8 * room < white:
        black, white = max(0, low - room), min(65535, high + room)
    return {"black": black, "white": white}


def several_pages(files: Iterable) -> list[Path]:
    """Those of these files that hold several pages or frames, of which the first is read."""
    found = []
    for file in map(Path, files):
        if file.suffix.lower() in (".tif", ".tiff", ".gif", ".webp"):
            with suppress(ImageError), _opened(file) as picture:
                found += [file] * (getattr(picture, "n_frames", 1) > 1)
    return found


@contextmanager
def _opened(source) -> Iterator[Image.Image]:
    """A PIL image of a path, a PIL image or an array. Any failure with a path is an ImageError."""
    if isinstance(source, (str, os.PathLike)):
        with _naming(source), Image.open(source, formats=_READERS) as image:
            yield image
    elif isinstance(source, Image.Image):
        yield source
    else:
        array = as_array(source)
        wide = array.dtype == np.uint16 and array.ndim == 2
        if not (wide or array.dtype == np.uint8 and array.shape[2:] in ((), (3,))):
            raise ValueError(
                f"an image is {array.dtype} {array.shape}: expected uint8 (H, W, 3), or uint8 or "
                "uint16 (H, W)."
            )
        yield Image.fromarray(np.ascontiguousarray(array))


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


def _name(source) -> str:
    return repr(Path(source).name) if isinstance(source, (str, os.PathLike)) else "the image"


def _upright(picture: Image.Image) -> Image.Image:
    """The first frame, decoded and turned upright; `.format` is kept."""
    upright = ImageOps.exif_transpose(picture)  # always a decoded copy, never the open file
    upright.format = picture.format
    tags = getattr(picture, "tag_v2", {})
    upright.info["white is zero"] = tags.get(_PHOTOMETRIC) == 0
    return upright


def upright_size(source) -> tuple[int, int]:
    """Width and height of an image as it is read, by its header; raises as `Geometry.read`."""
    with _opened(source) as picture:
        return _size(picture)


def _size(picture: Image.Image) -> tuple[int, int]:
    # A PNG's own method would decode it; a TIFF has turned its size already.
    orientation = Image.Image.getexif(picture).get(_ORIENTATION, 1)
    turned = orientation in (5, 6, 7, 8) and picture.format != "TIFF"
    return picture.size[::-1] if turned else picture.size


def _not_black(mask: Image.Image) -> np.ndarray:
    if _is_wide(mask):
        return np.asarray(mask) != 0
    colours = np.asarray(mask.convert("RGBA"))  # a palette's numbers mean nothing, its colours do
    smallest = 128 if mask.format == "JPEG" else 1
    return (colours[..., :3] >= smallest).any(-1) & (colours[..., 3] > 0)


def _is_wide(image: Image.Image) -> bool:
    """Grey of 16 or 32 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _grey_16(image: Image.Image) -> np.ndarray:
    if image.mode == "F" or image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError("its 32-bit values declare no range: expected 8 or 16 bits")
    return np.asarray(image)


# ---------------------------------------------------------------- lazy sequences


class LazyImages(Sequence):
    """Images that are made when they are needed; a subclass has `__len__` and `_read`.

    `images[3]` is uint8 (3, H, W); `images[10:20]` and `images[[4, 1]]` have four dimensions.
    """

    geometry: Geometry  # or, in a subclass without one, a `shape` of its own

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), 3, self.geometry.height, self.geometry.width

    def __getitem__(self, index) -> np.ndarray:
        numbers = np.arange(len(self))[index]  # numpy's own rules for masks, negatives and errors
        if numbers.ndim == 0:
            return self._read(int(numbers))
        return self._stack([self._read(int(number)) for number in numbers])

    def _stack(self, images: list[np.ndarray]) -> np.ndarray:
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), np.uint8)

    def __repr__(self) -> str:
        n, _, height, width = self.shape
        return f"{type(self).__name__}({n} images, {height} x {width} pixels)"

    def iter_batches(self, batch_size: int, *, workers: int | None = None) -> Iterator[np.ndarray]:
        """Yield uint8 (n, 3, H, W) in order, decoded ahead while the caller computes.

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
        images : uint8 array (n, 3, H, W), those with these numbers
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
    geometry : Geometry
    listing : Listing, optional
        Where the files come from, for their names.

    Examples
    --------
    >>> ImageFolder(["a.png", "b.png"], Geometry(160, 288)).shape
    (2, 3, 160, 288)
    """

    def __init__(self, files: Iterable, geometry: Geometry, listing: Listing | None = None):
        self.files = tuple(Path(file) for file in files)
        self.geometry = geometry
        self.listing = listing or Listing(list(self.files), [], common_folder(self.files))

    def __len__(self) -> int:
        return len(self.files)

    def _read(self, number: int) -> np.ndarray:
        return self.geometry.read(self.files[number])

    def fingerprint(self) -> str:
        """SHA-256 of the files' bytes in order and of the geometry: a key for caches.

        Names and places do not matter. Computed again on each call, because files may change.
        """
        whole = hashlib.sha256(f"{_READING_RULES} {self.geometry!r}".encode())
        for path in self.files:
            with _naming(path), open(path, "rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()


class ImageArray(LazyImages):
    """Small images held at their own size: 50,000 of 32 x 32 are 150 MB, at 224 x 224 7.5 GB.

    Parameters
    ----------
    pixels : uint8 array (N, h, w, 3), or (N, h, w) for grey
    geometry : Geometry

    Examples
    --------
    >>> ImageArray(np.zeros((5, 32, 32, 3), np.uint8), Geometry.square(224))[:2].shape
    (2, 3, 224, 224)
    """

    def __init__(self, pixels, geometry: Geometry):
        self.pixels = np.asarray(pixels)
        if self.pixels.dtype != np.uint8 or self.pixels.shape[3:] not in ((), (3,)):
            given = f"{self.pixels.dtype} {self.pixels.shape}"
            raise ValueError(f"pixels are {given}: expected uint8 (N, h, w, 3) or (N, h, w).")
        self.geometry = geometry

    def __len__(self) -> int:
        return len(self.pixels)

    def _read(self, number: int) -> np.ndarray:
        return self.geometry.read(self.pixels[number])

    def fingerprint(self) -> str:
        """SHA-256 of the pixels and of the geometry: a key for caches."""
        kind = f"{_READING_RULES} array {self.geometry!r} {self.pixels.shape}"
        whole = hashlib.sha256(kind.encode())
        whole.update(np.ascontiguousarray(self.pixels))
        return whole.hexdigest()


def take(images, numbers: Sequence[int]):
    """Some images of an array, an ImageFolder or an ImageArray, as one of the same kind."""
    if isinstance(images, ImageFolder):
        return ImageFolder([images.files[n] for n in numbers], images.geometry)
    if isinstance(images, ImageArray):
        return ImageArray(images.pixels[np.asarray(numbers, int)], images.geometry)
    return images[np.asarray(numbers, int)]


def join(parts: Sequence, geometry: Geometry | None = None):
    """Arrays, ImageFolders or ImageArrays one after the other, in the geometry of the first."""
    first = parts[0]
    if isinstance(first, ImageFolder):
        files = [file for part in parts for file in part.files]
        return ImageFolder(files, geometry or first.geometry)
    if isinstance(first, ImageArray):
        pixels = np.concatenate([part.pixels for part in parts])
        return ImageArray(pixels, geometry or first.geometry)
    return np.concatenate(parts)
