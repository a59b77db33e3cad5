"""More lazy images beside `ImageFolder`: arrays in memory, and parts of files. An image is resized when it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from pandalib.datasets.images import (
    _READING_RULES,
    ImageFolder,
    LazyImages,
    _crop_box,
    _naming,
    _open,
    check_geometry,
    fit,
    fit_mask,
    squeeze_box,
)


class ImageArray(LazyImages):
    """Small images of one size, held at that size: 50,000 of 32 x 32 are 150 MB, at 224 x 224 they would be 7.5 GB.

    Parameters
    ----------
    pixels : uint8 (N, h, w, 3), or (N, h, w) for grey.
    size, resize : as in `pandalib.datasets.images.read_image`.
    """

    def __init__(self, pixels: np.ndarray, size: int, resize: int | None = None):
        self.pixels = np.asarray(pixels)
        if (
            self.pixels.dtype != np.uint8
            or self.pixels.ndim not in (3, 4)
            or self.pixels.shape[3:] not in ((), (3,))
        ):
            raise ValueError(
                f"pixels {self.pixels.dtype} {self.pixels.shape}: expected uint8 (N, h, w, 3) or (N, h, w)."
            )
        self.size, self.resize = check_geometry(size, resize)

    def __len__(self) -> int:
        return len(self.pixels)

    def _read(self, number: int) -> np.ndarray:
        image = Image.fromarray(self.pixels[number])
        return fit(image, self.size, _crop_box(*image.size, self.size, self.resize))

    def __repr__(self) -> str:
        return f"ImageArray({len(self)} images, {self.size} x {self.size} pixels)"

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the pixels and of the geometry: a key for caches."""
        whole = hashlib.sha256(
            f"{_READING_RULES} array {self.size} {self.resize} {self.pixels.shape}".encode()
        )
        whole.update(np.ascontiguousarray(self.pixels))
        return whole.hexdigest()


class ImageCrops(ImageFolder):
    """Parts of image files, each cut out and then treated as an image of its own.

    Parameters
    ----------
    files : a path for each part; several parts may come from one file.
    boxes : int (N, 4), left, top, right, bottom in pixels, right and bottom excluded.
    size, resize : as in `pandalib.datasets.images.read_image`.
    """

    def __init__(self, files: Iterable, boxes, size: int, resize: int | None = None):
        super().__init__(files, size, resize)
        self.boxes = np.asarray(boxes, np.int64).reshape(len(self.files), 4)

    def _read(self, number: int) -> np.ndarray:
        with _naming(self.files[number]):
            image = _open(self.files[number])
            left, top, right, bottom = (int(edge) for edge in self.boxes[number])
            if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
                raise ValueError(
                    f"the box {left}, {top}, {right}, {bottom} does not lie in its {image.width} x {image.height} pixels"
                )
            part = image.crop((left, top, right, bottom))
            return fit(part, self.size, _crop_box(*part.size, self.size, self.resize))

    def __repr__(self) -> str:
        return f"ImageCrops({len(self)} parts of {len(set(self.files))} files, {self.size} x {self.size} pixels)"

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the files' bytes, the boxes and the geometry; a file is read once, however many parts it has."""
        whole = hashlib.sha256(
            f"{_READING_RULES} crops {self.size} {self.resize}".encode()
            + self.boxes.astype("<i8").tobytes()
        )
        digests = {}
        for path in self.files:
            if path not in digests:
                with _naming(path), open(path, "rb") as file:
                    digests[path] = hashlib.file_digest(file, "sha256").digest()
            whole.update(digests[path])
        return whole.hexdigest()


class SqueezedImages(ImageFolder):
    """Image files whose whole area is squeezed into the square, for images so long that the central square would show little.

    With `resize` above `size` the margin (resize - size) / 2 / resize is cut off on each side, as far as elsewhere.
    """

    def _read(self, number: int) -> np.ndarray:
        with _naming(self.files[number]):
            image = _open(self.files[number])
            return fit(image, self.size, squeeze_box(*image.size, self.size, self.resize))

    def __repr__(self) -> str:
        return f"SqueezedImages({len(self)} files, {self.size} x {self.size} pixels)"

    def fingerprint(self) -> str:
        return hashlib.sha256(f"squeezed {super().fingerprint()}".encode()).hexdigest()

    def mask(self, number: int, path) -> np.ndarray:
        """The mask of image `number`, bool (size, size), squeezed with nearest neighbours.

        Raises ImageError where it has not the size of its image.
        """
        with _naming(self.files[number]):
            size = _open(self.files[number]).size
        with _naming(path):
            mask = _open(path)
            if mask.size != size:
                raise ValueError(
                    f"as a mask of {self.files[number].name!r} it must have {size[0]} x {size[1]} pixels, but it has {mask.size[0]} x {mask.size[1]}"
                )
            return fit_mask(mask, self.size, squeeze_box(*mask.size, self.size, self.resize))
