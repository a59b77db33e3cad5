"""Where is the anomaly? Distances from each position to its nearest, and maps made of them.

What SPADE and PatchCore share: the search for the nearest of many positions, in tiles that stay in
the processor's cache, and the way from small maps of distances to anomaly maps of the image's size.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from sklearn.base import BaseEstimator

from pandalib.validation import as_images, check_fitted, check_k

# Distances computed at once: 1 MB, which stays in the cache between product and minimum.
TILE_ROWS, TILE_COLUMNS = 256, 1024


class MapDetector(BaseEstimator):
    """A detector with anomaly maps: a subclass has `_bytes_per_image()`, and `_maps_of(images)` or,
    where a score is more than the largest value of its map, `_maps_and_scores_of(images)`.
    """

    def maps(self, images) -> np.ndarray:
        """Anomaly maps, float32 (n, H, W) of uint8 (n, 3, H, W): higher = more anomalous."""
        return np.concatenate([maps for maps, _ in self._iter_both(images)])

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,), higher = more anomalous."""
        return np.concatenate([scores for _, scores in self._iter_both(images)])

    def maps_with_scores(self, images) -> tuple[np.ndarray, np.ndarray]:
        """What `maps` and `score` return, worked out once."""
        maps, scores = zip(*self._iter_both(images))
        return np.concatenate(maps), np.concatenate(scores)

    def _iter_both(self, images) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield maps and scores in batches of about `memory_mb` of features."""
        for part in self._iter_parts(images):
            yield self._maps_and_scores_of(part)

    def _maps_and_scores_of(self, images) -> tuple[np.ndarray, np.ndarray]:
        maps = self._maps_of(images)
        return maps, image_scores(maps)

    def _iter_parts(self, images) -> Iterator:
        """Yield the images in batches, once they are found to be of the right size."""
        check_fitted(self, "image_size_")
        images = as_images(images)
        size = height_and_width(images)
        if size != self.image_size_:
            raise ValueError(
                f"images are of {size[0]} x {size[1]} pixels: expected "
                f"{self.image_size_[0]} x {self.image_size_[1]}, as in fit."
            )
        step = self._images_at_once()
        for start in range(0, len(images), step):
            yield images[start : start + step]

    def _images_at_once(self) -> int:
        return max(1, int(self.memory_mb * 1e6 / self._bytes_per_image()))

    def _check_settings(self) -> None:
        if isinstance(self.layers, str) or len(self.layers) == 0:
            raise ValueError(f"layers={self.layers!r}: expected names, as ('layer1', 'layer2').")
        if not 0 <= self.sigma < np.inf:
            raise ValueError(f"sigma={self.sigma!r}: expected pixels, 0 or more.")
        if not self.memory_mb > 0:
            raise ValueError(f"memory_mb={self.memory_mb!r}: expected megabytes, above 0.")


class Nearest:
    """A running minimum: squared distances from positions of several images to the kappa nearest.

    ||q - g||^2 = ||q||^2 + (||g||^2 - 2 q . g): one matrix product, added to the norms, gives all
    that depends on g, and ||q||^2 can wait. The caller subtracts the mean first, so that little is
    lost when terms cancel. Queries are of shape (n, positions, C).
    """

    def __init__(self, queries: torch.Tensor, kappa: int = 1):
        self.queries = queries
        self.own = queries.square().sum(dim=2)
        self.best = torch.full((*self.own.shape, kappa), torch.inf)
        self._tile = torch.empty(TILE_ROWS * TILE_COLUMNS)

    def update(self, gallery: torch.Tensor, images: Sequence[int]) -> None:
        """Update the running minimum of these images with the positions of a gallery (m, C)."""
        everyone = len(images) == len(self.queries)
        images = slice(None) if everyone else torch.as_tensor(images)
        queries = self.queries[images].flatten(0, 1)
        best = self.best[images].flatten(0, 1)
        norms = gallery.square().sum(dim=1)
        for columns, column_norms in zip(gallery.split(TILE_COLUMNS), norms.split(TILE_COLUMNS)):
            # With a narrow gallery, more rows at a time: the tile keeps its size.
            step = len(self._tile) // len(columns)
            for rows, row_best in zip(queries.split(step), best.split(step)):
                tile = self._tile[: len(rows) * len(columns)].view(len(rows), len(columns))
                torch.addmm(column_norms, rows, columns.T, alpha=-2, out=tile)
                if row_best.shape[1] == 1:
                    lowest = row_best[:, 0]
                    torch.minimum(lowest, tile.amin(dim=1), out=lowest)
                else:
                    both = torch.cat([row_best, tile], dim=1)
                    row_best.copy_(both.topk(row_best.shape[1], dim=1, largest=False).values)
        if not everyone:
            self.best[images] = best.view(-1, *self.best.shape[1:])

    def squared(self) -> torch.Tensor:
        """Sum of the kappa smallest squared distances, (n, positions)."""
        kappa = self.best.shape[2]
        if torch.isinf(self.best).any():
            raise ValueError(f"kappa={kappa}: expected no more than a gallery has positions.")
        return (self.best + self.own[..., None]).clamp_(min=0).sum(dim=2)


def nearest_squared(queries: torch.Tensor, gallery: torch.Tensor, kappa: int = 1) -> torch.Tensor:
    """Sum of the squared distances from queries (n, C) to their kappa nearest in a gallery (m, C).

    float32 (n,), accurate to about 1e-6 of the squared spread of the gallery.
    """
    check_k(kappa, len(gallery))
    mean = gallery.mean(dim=0)
    nearest = Nearest((queries - mean)[None], kappa)
    nearest.update(gallery - mean, range(1))
    return nearest.squared()[0]


@functools.cache
def enlargement(small: int, large: int, sigma: float = 0.0) -> np.ndarray:
    """Matrix E, float32 (large, small), of a bilinear enlargement and a Gaussian blur.

    Both are linear, so `E @ image @ E.T` enlarges a square image between pixel centres and blurs it
    by `sigma` pixels. The Gaussian is scipy's: cut off at four sigma, mirrored at the border.
    """
    basis = torch.eye(small, dtype=torch.float64)[None]
    matrix = F.interpolate(basis, size=large, mode="linear")[0].T.numpy()
    if sigma > 0:
        matrix = gaussian_filter1d(matrix, sigma, axis=0)
    return np.ascontiguousarray(matrix, dtype=np.float32)


def enlarged(maps: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    """Enlarge small maps (n, h, w) to `size` by bilinear interpolation, then blur: (n, H, W)."""
    rows = enlargement(maps.shape[1], size[0], sigma)
    columns = enlargement(maps.shape[2], size[1], sigma)
    return rows @ maps @ columns.T


def side_by_side(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Layers (n, C, h, w) on the grid of the first of them, as (n, h, w, sum of C)."""
    height, width = maps[0].shape[2:]
    found = [maps[0]]
    for coarse in maps[1:]:
        rows = torch.from_numpy(enlargement(coarse.shape[2], height))
        columns = torch.from_numpy(enlargement(coarse.shape[3], width))
        found.append(rows @ coarse @ columns.T)
    positions = torch.cat(found, dim=1).permute(0, 2, 3, 1)
    if not positions.isfinite().all():
        raise ValueError("features are NaN or infinite: expected finite numbers.")
    return positions


def height_and_width(images) -> tuple[int, int]:
    """Height and width of images (n, 3, H, W); those of files are known without reading one."""
    return tuple((images if hasattr(images, "shape") else np.asarray(images[:1])).shape[2:])


def image_scores(maps: np.ndarray) -> np.ndarray:
    """The largest value of each map, (n, H, W) -> float64 (n,)."""
    return maps.max(axis=(1, 2)).astype(np.float64)
