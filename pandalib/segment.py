"""Where is the anomaly? Each position of an image against those of normal images (SPADE), or against a bank of patches.

Cohen and Hoshen 2020 (SPADE, arXiv 2005.02357), the segmentation of PANDA (Reiss et al. 2021). The features are
pretrained and not adapted. With f_l(x, p) the feature of layer l at position p of image x:

1. N_K(x) are the K normal images nearest to x by pooled feature.
2. In each layer every position meets *all* positions q of these K images:

       d_l(x, p) = min over g in N_K(x) and q of ||f_l(x, p) - f_l(g, q)||^2

   or, with kappa > 1, the sum over the kappa smallest.
3. Each map d_l is enlarged to the size of the image; then the mean over the layers and a Gaussian blur.

The score of an image is the largest value of its map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from pandalib.adapt import check_counts
from pandalib.backbones import MEAN, STD, Backbone, normalise
from pandalib.cache import FeatureCache, content_key
from pandalib.features import check_fitted, check_k
from pandalib.interpolation import blurred_enlargement, enlargement
from pandalib.knn import nearest_others, squared_distances
from pandalib.metrics import threshold_at
from pandalib.progress import progress as bar

# Distances that are worked out at once: 1 MB, which stays in the processor's cache between the product and the minimum.
TILE_ROWS, TILE_COLUMNS = 256, 1024
TOGETHER = 4096  # positions of normal images that are read at once: coarse layers have few an image
FOR_SCALES = 16  # normal images that tell what is usual in a layer: their mean over all positions hardly varies


class _MapDetector:
    """What the detectors below share. A detector brings `_maps_of(images)` and `_bytes_per_image()`."""

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
            raise ValueError("there are no images: expected uint8 (n, 3, H, W) with n of at least 1.")
        size = tuple(normalise(images[:1]).shape[2:])
        if size != self.image_size_:
            raise ValueError(f"images are {size[0]} x {size[1]} pixels: expected {self.image_size_[0]} x {self.image_size_[1]}, as the normal images.")
        step = self._images_at_once()
        for start in range(0, len(images), step):
            yield self._maps_of(images[start : start + step])

    def _images_at_once(self) -> int:
        return max(1, int(self.memory_mb * 1e6 / self._bytes_per_image()))


class SPADE(_MapDetector):
    """Semantic pyramid anomaly detection: correspondences with the nearest normal images, position by position.

    Parameters
    ----------
    backbone : the pretrained network, reaching to the last of `layers` at least.
    layers : whose positions are compared; the defaults here are the paper's.
    n_images : K; all normal images where there are fewer.
    kappa : neighbours of a position.
    sigma : of the Gaussian, in pixels of the image. SPADE has 4, PANDA 5.
    balanced : divide the distances of each layer by their mean among normal images (leave one out), so that a layer with
        large numbers does not lead the mean. Without it, as in the paper, it does.
    cache : keep the features of the normal images (float16) on disk instead of in memory.
    memory_mb : about how much the features of the test images in hand may take: images are scored in batches of that.

    Attributes
    ----------
    normal_ : `Pyramids` of the normal images.
    scales_ : what the distances of each layer are divided by; ones without `balanced`.
    image_size_ : height and width of the normal images.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        layers: Sequence[str] = ("layer1", "layer2", "layer3"),
        n_images: int = 50,
        kappa: int = 1,
        sigma: float = 4.0,
        balanced: bool = False,
        cache: FeatureCache | None = None,
        memory_mb: float = 64.0,
    ):
        _check_settings(layers, sigma, memory_mb)
        check_counts(n_images=n_images, kappa=kappa)
        self.backbone, self.layers, self.n_images, self.kappa, self.sigma = backbone, tuple(layers), n_images, kappa, sigma
        self.balanced, self.cache, self.memory_mb = balanced, cache, memory_mb

    def fit(self, normal_images) -> SPADE:
        """Remember the features of normal images, uint8 (N, 3, H, W); with `balanced`, two or more."""
        normal = Pyramids.of(self.backbone, normal_images, self.layers, cache=self.cache)
        return self.fit_pyramids(normal, tuple(np.shape(normal_images[:1])[-2:]))

    def fit_pyramids(self, normal: Pyramids, image_size: tuple[int, int], *, scales: np.ndarray | None = None) -> SPADE:
        """As `fit`, from the pyramids of normal images of this height and width; `scales` are those of an earlier fit to the same."""
        self.normal_, self.image_size_ = normal, tuple(image_size)
        self._means = [self.normal_.mean(layer) for layer in range(len(self.layers))]
        if scales is not None:
            self.scales_ = np.array(scales, dtype=np.float64)
            return self
        self.scales_ = np.ones(len(self.layers))
        if self.balanced:
            rows = np.unique(np.linspace(0, len(self.normal_) - 1, FOR_SCALES).astype(int))
            part, neighbours = self.normal_[rows], self._others()[rows]
            usual = [float(self._layer_map(part, neighbours, layer).mean()) for layer in range(len(self.layers))]
            spread = [float((part.positions(slice(None), layer) - mean).square().sum(dim=2).mean()) for layer, mean in enumerate(self._means)]
            # Where all normal images are alike, only rounding is left, which is no scale.
            self.scales_ = np.array([value if value > 1e-5 * whole else 1.0 for value, whole in zip(usual, spread)])
        return self

    def _others(self) -> np.ndarray:
        """For each normal image the numbers of the K nearest others."""
        return nearest_others(self.normal_.pooled, min(self.n_images, max(1, len(self.normal_) - 1)))

    def _bytes_per_image(self) -> int:
        return 8 * self.normal_.rows.shape[1]  # float32, twice: as extracted, and without the mean

    def _maps_of(self, images) -> np.ndarray:
        return self.maps_of(Pyramids.of(self.backbone, images, self.layers, dtype=np.float32, like=self.normal_))

    def maps_of(self, part: Pyramids) -> np.ndarray:
        """The maps of images whose pyramids are there already: float32 (n, H, W)."""
        return self._maps(part, squared_distances(self.normal_.pooled, part.pooled, min(self.n_images, len(self.normal_)))[1])

    def leave_one_out_maps(self, *, progress: bool = True) -> np.ndarray:
        """The map of each normal image against the others: how uneven is normal? float32 (N, H, W).

        Left out by index: a copy of the image, where there is one, counts. Raises ValueError for a single normal image.
        """
        return np.concatenate(list(self.iter_leave_one_out_maps(progress=progress)))

    def iter_leave_one_out_maps(self, *, progress: bool = True) -> Iterator[np.ndarray]:
        """The same, batch by batch: memory does not grow with the number of normal images."""
        check_fitted(self, "normal_")
        n = len(self.normal_)
        neighbours = self._others()
        step = self._images_at_once()
        parts = [np.arange(start, min(n, start + step)) for start in range(0, n, step)]
        for rows in bar(parts, "leave one out", shown=progress):
            yield self._maps(self.normal_[rows], neighbours[rows])

    def threshold(self, false_alarm_rate: float) -> float:
        """The value of a map above which to raise an alarm, from the normal images alone.

        A new normal image has such a place anywhere with a probability of about `false_alarm_rate`
        (`pandalib.metrics.threshold_at` on the scores of the leave-one-out maps).
        """
        return threshold_at(image_scores(self.leave_one_out_maps()), false_alarm_rate)

    def _maps(self, part: Pyramids, neighbours: np.ndarray) -> np.ndarray:
        """Maps of the images in `part`, each against the normal images in its row of `neighbours` (n, K)."""
        whole = np.zeros((len(part), *self.image_size_), np.float32)
        for layer, scale in enumerate(self.scales_):
            whole += enlarged(self._layer_map(part, neighbours, layer) / np.float32(scale), self.image_size_, self.sigma)
        return whole / len(self.scales_)

    def _layer_map(self, part: Pyramids, neighbours: np.ndarray, layer: int) -> np.ndarray:
        """The distances in one layer, (n, h, w)."""
        mean, (high, wide, _) = self._means[layer], part.shapes[layer]
        nearest = _Nearest(part.positions(slice(None), layer) - mean, self.kappa)
        # Each normal image is read and prepared once for all images that it serves; those that serve the same go together.
        groups: dict[tuple[int, ...], list[int]] = {}
        for number in np.unique(neighbours):
            groups.setdefault(tuple(np.flatnonzero((neighbours == number).any(axis=1))), []).append(number)
        step = max(1, TOGETHER // (high * wide))
        for served, numbers in groups.items():
            for start in range(0, len(numbers), step):
                nearest.update((self.normal_.positions(numbers[start : start + step], layer) - mean).flatten(0, 1), served)
        return nearest.squared().numpy().reshape(-1, high, wide)


class MemoryBank(_MapDetector):
    """A bank of patches of all normal images, thinned out by a coreset: the idea of PatchCore (Roth et al., CVPR 2022).

    A patch is the mean of a layer over 3 x 3 positions, the layers laid side by side at the resolution of the first one.
    Each patch is compared with the whole bank; there is no retrieval of images. Left out of PatchCore: the reweighting
    of the image score.

    Parameters
    ----------
    layers : from fine to coarse.
    share : of the patches that stay in the bank, chosen greedily so that each patch has a chosen one near.
    sigma, memory_mb : as in `SPADE`.
    seed : of the random projection in which the choice is made, and of its first patch.

    Attributes
    ----------
    bank_ : float32 tensor (M, C).
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        layers: Sequence[str] = ("layer2", "layer3"),
        share: float = 0.1,
        sigma: float = 4.0,
        memory_mb: float = 64.0,
        seed: int = 0,
        progress: bool = True,
    ):
        _check_settings(layers, sigma, memory_mb)
        if not 0 < share <= 1:
            raise ValueError(f"share={share!r}: expected the part of the patches that stay in the bank, above 0 and at most 1.")
        self.backbone, self.layers, self.share, self.sigma, self.memory_mb, self.seed, self.progress = backbone, tuple(layers), share, sigma, memory_mb, seed, progress

    def fit(self, normal_images) -> MemoryBank:
        """Choose the bank among the patches of normal images, uint8 (N, 3, H, W)."""
        patches = self._patches(normal_images)
        self.image_size_, self._grid = tuple(np.shape(normal_images[:1])[-2:]), patches.shape[1:3]
        patches = patches.flatten(0, 2)
        n_kept = max(1, round(self.share * len(patches)))
        if n_kept < len(patches):
            patches = patches[coreset(patches, n_kept, seed=self.seed, progress=self.progress)]
        self._mean = patches.mean(dim=0)
        self.bank_ = patches
        return self

    def _bytes_per_image(self) -> int:
        return 12 * self._grid[0] * self._grid[1] * self.bank_.shape[1]

    def _maps_of(self, images) -> np.ndarray:
        patches = self._patches(images)
        nearest = _Nearest(patches.flatten(1, 2) - self._mean, 1)
        nearest.update(self.bank_ - self._mean, range(len(patches)))
        return enlarged(nearest.squared().numpy().reshape(-1, *self._grid), self.image_size_, self.sigma)

    def _patches(self, images) -> torch.Tensor:
        """(n, h, w, C): mean over 3 x 3 positions, layers enlarged to the first one's grid and laid side by side."""
        parts = []
        for found in self.backbone.iter_layers(images, self.layers):
            maps = [F.avg_pool2d(found[name].float().cpu(), 3, 1, 1, count_include_pad=False) for name in self.layers]
            size = maps[0].shape[2:]
            maps[1:] = [_matrix(enlargement, map.shape[2], size[0]) @ map @ _matrix(enlargement, map.shape[3], size[1]).T for map in maps[1:]]
            parts.append(torch.cat(maps, dim=1).permute(0, 2, 3, 1))
        return torch.cat(parts)


class Pyramids:
    """Of each image one row of numbers: its pooled feature, then each layer's map, position by position.

    Attributes
    ----------
    rows : (n, D), float16 or float32, in memory or on disk.
    shapes : height, width and channels of each layer.
    """

    def __init__(self, rows: np.ndarray, shapes: list[tuple[int, int, int]]):
        self.rows, self.shapes = rows, shapes
        sizes = [int(np.prod(shape)) for shape in shapes]
        self._ends = np.cumsum([rows.shape[1] - sum(sizes), *sizes])

    @classmethod
    def of(
        cls, backbone: Backbone, images, layers: Sequence[str], *, dtype=np.float16, cache: FeatureCache | None = None, like: Pyramids | None = None
    ) -> Pyramids:
        """Extract the pyramids of images, uint8 (n, 3, H, W).

        With a `cache` they lie on disk, in its type. `like`, pyramids of images of the same size, saves a pass of the
        first image, which tells the sizes. Raises ValueError for a layer that the network lacks, for images of another
        form, and for features beyond float16.
        """
        if like is None:
            first = next(backbone.iter_layers(images[:1], layers))
            shapes = [(*first[name].shape[2:], first[name].shape[1]) for name in layers]
            width = first["pooled"].shape[1] + sum(int(np.prod(shape)) for shape in shapes)
        else:
            shapes, width = like.shapes, like.rows.shape[1]
        dtype = np.dtype(dtype) if cache is None else cache.dtype
        chunks = _rows(backbone, images, layers, dtype)
        if cache is not None:
            # Every layer takes part, and so does the head, which may have been adapted.
            key = content_key("pyramids", backbone.stem_sha256(), backbone.head_sha256(), str(MEAN + STD), "+".join(layers), images)
            return cls(cache.get(key, (len(images), width), chunks), shapes)
        rows, start = np.empty((len(images), width), dtype), 0
        for chunk in chunks:
            rows[start : start + len(chunk)] = chunk
            start += len(chunk)
        return cls(rows, shapes)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows) -> Pyramids:
        return Pyramids(self.rows[rows], self.shapes)

    @property
    def pooled(self) -> np.ndarray:
        """float32 (n, d)."""
        return np.asarray(self.rows[:, : self._ends[0]], dtype=np.float32)

    def positions(self, which, layer: int) -> torch.Tensor:
        """The features of a layer, float32: (n, positions, channels) for a slice of images, (positions, channels) for a number."""
        part = torch.from_numpy(np.array(self.rows[which, self._ends[layer] : self._ends[layer + 1]])).float()  # ten times faster than numpy's cast
        return part.view(*part.shape[:-1], -1, self.shapes[layer][2])

    def mean(self, layer: int) -> torch.Tensor:
        """Mean over all images and positions, float32 (channels,)."""
        return torch.stack([self.positions(number, layer).mean(dim=0, dtype=torch.float64) for number in range(len(self))]).mean(dim=0).float()


def _rows(backbone: Backbone, images, layers: Sequence[str], dtype: np.dtype) -> Iterator[np.ndarray]:
    """Batch by batch the rows of `Pyramids`, of numbers that `dtype` can hold."""
    for found in backbone.iter_layers(images, layers):
        parts = [found["pooled"], *(found[name].permute(0, 2, 3, 1).flatten(1) for name in layers)]
        rows = torch.cat([part.float().cpu() for part in parts], dim=1).numpy()
        if not max(rows.max(), -rows.min()) <= np.finfo(dtype).max:  # NaN passes no comparison
            raise ValueError(f"features reach {np.abs(rows).max():g}: expected finite numbers below {np.finfo(dtype).max:,.0f}, the largest in {dtype}.")
        yield rows


class _Nearest:
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
        for columns, norms in zip(gallery.split(TILE_COLUMNS), gallery.square().sum(dim=1).split(TILE_COLUMNS)):
            # A narrow gallery takes more rows at a time: the tile keeps its size.
            for start in range(0, len(queries), step := len(self._tile) // len(columns)):
                rows = queries[start : start + step]
                tile = torch.addmm(norms, rows, columns.T, alpha=-2, out=self._tile[: len(rows) * len(columns)].view(len(rows), len(columns)))
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
            raise ValueError(f"kappa={self.best.shape[2]}: a gallery has fewer positions than that. Lower kappa, or compare with more images.")
        return (self.best + self.own[..., None]).clamp_(min=0).sum(dim=2)


def nearest_squared(queries: torch.Tensor, gallery: torch.Tensor, kappa: int = 1) -> torch.Tensor:
    """Sum of the squared distances from each of queries (n, C) to its kappa nearest in gallery (m, C): float32 (n,).

    Accurate to about 1e-6 of the squared spread of the gallery. Raises ValueError for kappa above m.
    """
    check_k(kappa, len(gallery))
    mean = gallery.mean(dim=0)
    nearest = _Nearest((queries - mean)[None], kappa)
    nearest.update(gallery - mean, range(1))
    return nearest.squared()[0]


def coreset(features: torch.Tensor, n_kept: int, *, n_projected: int = 128, seed: int = 0, progress: bool = True) -> torch.Tensor:
    """Greedy k-centre: numbers of `n_kept` rows such that every row has a chosen one near (Sener and Savarese 2018).

    Each step takes the row that is farthest from all chosen so far. One matrix-vector product a step, in a random
    projection to `n_projected` dimensions, which keeps distances nearly (Johnson and Lindenstrauss).

    Parameters
    ----------
    features : (n, d), float32.

    Returns
    -------
    int64 (n_kept,), in the order of choice.

    Raises ValueError unless n_kept lies between 1 and n.
    """
    if not 1 <= n_kept <= len(features):
        raise ValueError(f"n_kept={n_kept}: expected 1 to {len(features)}, the number of features.")
    generator = torch.Generator().manual_seed(seed)
    features = features - features.mean(dim=0)
    if features.shape[1] > n_projected:
        features = features @ torch.randn(features.shape[1], n_projected, generator=generator) / n_projected**0.5
    own = features.square().sum(dim=1)
    farthest = int(torch.randint(len(features), (), generator=generator))
    distance, chosen = torch.full_like(own, torch.inf), []
    for _ in bar(range(n_kept), "coreset", shown=progress):
        chosen.append(farthest)
        new = own + own[farthest] - 2 * (features @ features[farthest])
        torch.minimum(distance, new, out=distance)
        distance[farthest] = -torch.inf  # rounding must not let it be chosen twice
        farthest = int(distance.argmax())
    return torch.tensor(chosen)


def enlarged(maps: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    """Small maps (n, h, w) enlarged to `size` by bilinear interpolation, then blurred by a Gaussian: (n, H, W)."""
    down, across = (blurred_enlargement(small, large, sigma) for small, large in zip(maps.shape[1:], size))
    return down @ maps @ across.T


def image_scores(maps: np.ndarray) -> np.ndarray:
    """The largest value of each map, (n, H, W) -> (n,), float64."""
    return maps.max(axis=(1, 2)).astype(np.float64)


def _matrix(function, *arguments) -> torch.Tensor:
    return torch.from_numpy(function(*arguments))


def _check_settings(layers: Sequence[str], sigma: float, memory_mb: float) -> None:
    if isinstance(layers, str) or len(layers) == 0:
        raise ValueError(f"layers={layers!r}: expected a list of names, as ('layer1', 'layer2').")
    if not (np.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma={sigma!r}: expected the width of the blur in pixels, 0 or more.")
    if not memory_mb > 0:
        raise ValueError(f"memory_mb={memory_mb!r}: expected megabytes, above 0.")
