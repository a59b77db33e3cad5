"""Distances from each position of an image to the nearest of many others, and from maps of them to scores: what SPADE and the memory bank share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pandalib.backbones import normalise
from pandalib.validation import check_fitted, check_k
from pandalib.interpolation import blurred_enlargement

# Distances that are worked out at once: 1 MB, which stays in the processor's cache between the product and the minimum.
TILE_ROWS, TILE_COLUMNS = 256, 1024


class MapDetector:
    """What detectors with maps share. A detector brings `_maps_of(images)` and `_bytes_per_image()`."""

    def maps(self, images) -> np.ndarray:
        """Anomaly maps of images, uint8 (n, 3, H, W) -> float32 (n, H, W), higher = more anomalous."""
        return np.concatenate(list(self.iter_maps(images)))

    def score(self, images) -> np.ndarray:
        """Anomaly scores (n,) of images, uint8 (n, 3, H, W): the largest value of each map."""
        return np.concatenate([image_scores(maps) for maps in self.iter_maps(images)])

    def iter_maps(self, images) -> Iterator[np.ndarray]:
        """The maps batch by batch, (b, H, W): memory does not grow with the number of images.

        Raises ValueError when the images are not uint8 (n, 3, H, W) of the size of the normal ones.
        """
        check_fitted(self, "image_size_")
        if len(images) == 0:
            raise ValueError(
                "there are no images: expected uint8 (n, 3, H, W) with n of at least 1."
            )
        size = tuple(normalise(images[:1]).shape[2:])
        if size != self.image_size_:
            raise ValueError(
                f"images are {size[0]} x {size[1]} pixels: expected {self.image_size_[0]} x {self.image_size_[1]}, as the normal images."
            )
        step = self._images_at_once()
        for start in range(0, len(images), step):
            yield self._maps_of(images[start : start + step])

    def _images_at_once(self) -> int:
        return max(1, int(self.memory_mb * 1e6 / self._bytes_per_image()))


class Nearest:
    """A running minimum: squared distances from positions of several images to their kappa nearest so far.

    ||q - g||^2 = ||q||^2 + (||g||^2 - 2 q . g): one matrix product, added to the norms, gives all that depends on g, and
    ||q||^2 can wait. Whoever calls this takes the mean off first, so that little is lost where terms cancel.
    """

    def __init__(self, queries: torch.Tensor, kappa: int = 1):
        self.queries, self.own = queries, queries.square().sum(dim=2)
        self.best = torch.full((*self.own.shape, kappa), torch.inf)
        self._tile = torch.empty(TILE_ROWS * TILE_COLUMNS)

    def update(self, gallery: torch.Tensor, images: Sequence[int]) -> None:
        """Let the images with these numbers meet a gallery (m, C)."""
        everyone = len(images) == len(self.queries)
        images = slice(None) if everyone else torch.as_tensor(images)
        queries = self.queries[images].flatten(0, 1)
        best = self.best[images].flatten(0, 1)
        kappa = best.shape[1]
        for columns, norms in zip(
            gallery.split(TILE_COLUMNS), gallery.square().sum(dim=1).split(TILE_COLUMNS)
        ):
            # A narrow gallery takes more rows at a time: the tile keeps its size.
            for start in range(0, len(queries), step := len(self._tile) // len(columns)):
                rows = queries[start : start + step]
                tile = torch.addmm(
                    norms,
                    rows,
                    columns.T,
                    alpha=-2,
                    out=self._tile[: len(rows) * len(columns)].view(len(rows), len(columns)),
                )
                if kappa == 1:
                    low = best[start : start + step, 0]
                    torch.minimum(low, tile.amin(dim=1), out=low)
                else:
                    both = torch.cat([best[start : start + step], tile], dim=1)
                    best[start : start + step] = both.topk(kappa, dim=1, largest=False).values
        if not everyone:
            self.best[images] = best.view(-1, *self.best.shape[1:])

    def squared(self) -> torch.Tensor:
        """Sum of the kappa smallest squared distances, (n, positions)."""
        if torch.isinf(self.best).any():
            raise ValueError(
                f"kappa={self.best.shape[2]}: a gallery has fewer positions than that. Lower kappa, or compare with more images."
            )
        return (self.best + self.own[..., None]).clamp_(min=0).sum(dim=2)


def nearest_squared(queries: torch.Tensor, gallery: torch.Tensor, kappa: int = 1) -> torch.Tensor:
    """Sum of the squared distances from each of queries (n, C) to its kappa nearest in gallery (m, C): float32 (n,).

    Accurate to about 1e-6 of the squared spread of the gallery. Raises ValueError for kappa above m.
    """
    check_k(kappa, len(gallery))
    mean = gallery.mean(dim=0)
    nearest = Nearest((queries - mean)[None], kappa)
    nearest.update(gallery - mean, range(1))
    return nearest.squared()[0]


def enlarged(maps: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    """Small maps (n, h, w) enlarged to `size` by bilinear interpolation, then blurred by a Gaussian: (n, H, W)."""
    down, across = (
        blurred_enlargement(small, large, sigma) for small, large in zip(maps.shape[1:], size)
    )
    return down @ maps @ across.T


def image_scores(maps: np.ndarray) -> np.ndarray:
    """The largest value of each map, (n, H, W) -> (n,), float64."""
    return maps.max(axis=(1, 2)).astype(np.float64)


def check_settings(layers: Sequence[str], sigma: float, memory_mb: float) -> None:
    if isinstance(layers, str) or len(layers) == 0:
        raise ValueError(f"layers={layers!r}: expected a list of names, as ('layer1', 'layer2').")
    if not (np.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma={sigma!r}: expected the width of the blur in pixels, 0 or more.")
    if not memory_mb > 0:
        raise ValueError(f"memory_mb={memory_mb!r}: expected megabytes, above 0.")
