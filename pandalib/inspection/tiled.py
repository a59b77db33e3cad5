"""Small defects in large images: an inspector that looks at tiles, one image in memory at a time.

Each tile is one view of its image. Both parts of an image's score are the largest of its tiles':

    image(x) = max over tiles of DN2 among the tiles of all normal images
    place(x) = the largest value of the map stitched from the tiles' maps

When a normal image is compared with the others, all of its own tiles are left out. Layers are not
kept, since those of a hundred large images would not fit into memory: normal images are read a
second time to be compared, and a detector with tiles cannot learn more later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from pandalib.datasets.images import Geometry, ImageError, ImageFolder, upright_size
from pandalib.datasets.tiles import Tiles, tile_boxes
from pandalib.inspection.duplicates import thumbnails
from pandalib.inspection.opening import in_pixels
from pandalib.methods.knn import KNN, squared_distances
from pandalib.methods.patchcore import patches_of
from pandalib.methods.spade import Pyramids
from pandalib.methods.whitening import l2_normalise
from pandalib.progress import progress as bar

PAINT = 128  # grey, over what is outside the region of interest
THUMBNAIL = 448  # pixels of the longer side of what a report shows


def sources_of(images) -> Sequence:
    """What `Tiles` can read, for each image of a folder, a list or uint8 (n, 3, H, W)."""
    if isinstance(images, list):
        return images
    if isinstance(images, ImageFolder):
        return images.files
    return [np.moveaxis(np.asarray(image), 0, 2) for image in images]


def number_of_tiles(sources: Sequence, tile: int, overlap: int) -> int:
    """How many tiles all images have, by their headers; unreadable files are passed over."""
    total = 0
    for source in sources:
        with suppress(ImageError):
            total += len(tile_boxes(*upright_size(source)[::-1], tile, overlap))
    return total


def open_tiles(inspector, source) -> Tiles:
    """The tiles of an image; what is outside the region of interest is painted over."""
    side = inspector.image_size_[0]
    geometry = replace(inspector.geometry_, height=side, width=side, fit="stretch", resize=None)
    pixels = geometry.pixels(source)
    inside = inspector.region_of(pixels.shape[:2])
    if inside is not None:
        pixels = np.where(inside[..., None], pixels, np.uint8(PAINT))
    return Tiles(pixels, inspector.tile_, inspector.overlap_, geometry)


def _readable(inspector, sources: Sequence, names, unreadable, text: str) -> Iterator[tuple]:
    """Yield numbers and tiles; files that are not images go to `unreadable`; None: raise."""
    for number in bar(range(len(sources)), text, shown=inspector.progress, log=True):
        try:
            tiles = open_tiles(inspector, sources[number])
        except ImageError as error:
            if unreadable is None:
                raise
            unreadable.append((names[number], error.cause))
        else:
            yield number, tiles


def look(inspector, tiles: Tiles, left_out=()) -> tuple[np.ndarray, np.ndarray]:
    """The raw map of an image (H, W), and the pooled features (n, d) of its tiles."""
    pooled, step = [], inspector.places_._images_at_once()

    def maps() -> Iterator[np.ndarray]:
        for start in range(0, len(tiles), step):
            pyramids = _pyramids(inspector, tiles[start : start + step])
            pooled.append(pyramids.pooled.copy())
            yield from inspector.places_.maps_and_scores(patches_of(pyramids.maps()), left_out)[0]

    whole = tiles.stitch(maps())
    inside = inspector.region_of(whole.shape)
    if inside is not None:
        whole[~inside] = 0
    return whole, np.concatenate(pooled)


def learn(inspector, images, names: list[str], unreadable: list | None, digest) -> dict:
    """Learn from the tiles of normal images; returns the raw parts of the sample.

    `digest` makes a number of an image's pixels, by which copies are found.
    """
    sources, kept, features, owners, means = sources_of(images), [], [], [], []
    small, sizes = [], set()
    digests = {}
    for number, tiles in _readable(inspector, sources, names, unreadable, "tiles"):
        key = digest(tiles.pixels)
        if key in digests:
            inspector.n_copies_ += 1
            continue
        digests[key] = None
        pooled = []
        for start in range(0, len(tiles), 8):
            pyramids = _pyramids(inspector, tiles[start : start + 8])
            patches = patches_of(pyramids.maps())
            inspector.places_.learn(patches, [len(kept)] * len(patches))
            pooled.append(pyramids.pooled.copy())
        features.append(np.concatenate(pooled))
        owners += [len(kept)] * len(tiles)
        means.append(features[-1].mean(axis=0))
        small.append(thumbnails(np.moveaxis(tiles.pixels, 2, 0)[None]))
        sizes.add(in_pixels(tiles.pixels.shape))
        kept.append(number)
    inspector.digests_ = np.array(list(digests), np.uint64)
    inspector.names_ = [names[number] for number in kept]
    inspector._check_enough()
    inspector.thumbnails_, inspector.sizes_ = np.concatenate(small), sorted(sizes)
    inspector._group()
    inspector.features_, inspector.tile_features_ = np.stack(means), np.concatenate(features)
    inspector.tile_owners_ = np.array(owners, np.int64)
    inspector.places_.finish()
    inspector.knn_ = KNN(inspector.k, normalise=inspector.normalise).fit(inspector.tile_features_)
    inspector.sample_ = inspector._sampled(len(kept))
    raw = {"image": [], "place": []}
    rows = bar(inspector.sample_.tolist(), "leave one out", shown=inspector.progress, log=True)
    for row, number in enumerate(rows):
        left_out = inspector._left_out(row)
        whole, pooled = look(inspector, open_tiles(inspector, sources[kept[number]]), left_out)
        raw["image"].append(_score_without(inspector, pooled, left_out))
        raw["place"].append(float(whole.max()))
    return {part: np.array(values) for part, values in raw.items()}


def _score_without(inspector, pooled: np.ndarray, left_out: list[int]) -> float:
    """DN2 of an image by its tiles (n, d), among the tiles of the others."""
    gallery, owners = inspector.knn_.gallery_, inspector.tile_owners_
    others = gallery[~np.isin(owners, left_out)]
    if inspector.normalise:
        pooled = l2_normalise(pooled)
    return float(squared_distances(others, pooled, inspector.k)[0].sum(axis=1).max())


def inspect(
    inspector, images, names: list[str], unreadable: list | None, left_out=lambda pixels: ()
) -> Iterator[tuple]:
    """Yield name, thumbnail, raw parts, raw map and pixels of each image.

    `left_out` gives, for an image's pixels, the numbers of the normal images that its map is not
    compared with.
    """
    for number, tiles in _readable(inspector, sources_of(images), names, unreadable, "score"):
        whole, pooled = look(inspector, tiles, left_out(tiles.pixels))
        raw = {"image": float(inspector.knn_.score(pooled).max()), "place": float(whole.max())}
        yield names[number], thumbnail(tiles.pixels), raw, whole, tiles.pixels


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """A small picture of an image (H, W, 3) at its own proportions: uint8 (3, h, w)."""
    factor = min(1, THUMBNAIL / max(pixels.shape))
    height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    return Geometry(height, width).read(pixels)


def small_map(whole: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map (H, W) at a smaller size: the largest value of each block, so that no peak is lost."""
    if whole.shape == (height, width):
        return whole
    rows = np.arange(height) * whole.shape[0] // height
    columns = np.arange(width) * whole.shape[1] // width
    return np.maximum.reduceat(np.maximum.reduceat(whole, rows, axis=0), columns, axis=1)


def _pyramids(inspector, batch: np.ndarray) -> Pyramids:
    return Pyramids.of(inspector.backbone_, batch, inspector.layers_, dtype=np.float32)
