"""SPADE: each position of an image against all positions of the nearest normal images.

Cohen and Hoshen 2020 (arXiv 2005.02357), the segmentation of PANDA (Reiss et al. 2021). The
features are pretrained and not adapted. With f_l(x, p) that of layer l at position p of image x:

1. N_K(x) are the K normal images nearest to x by pooled feature.
2. In each layer every position is compared with *all* positions q of these K images:

       d_l(x, p) = min over g in N_K(x) and q of ||f_l(x, p) - f_l(g, q)||^2

   or, with kappa > 1, the sum over the kappa smallest.
3. Each map d_l is enlarged to the size of the image, then averaged over the layers and blurred.

The score of an image is the largest value of its map. `spade_reference` is this definition in plain
loops; `SPADE` computes the same faster, in batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from pandalib.backbones import Backbone
from pandalib.methods.distances import (
    MapDetector,
    Nearest,
    enlarged,
    height_and_width,
    image_scores,
)
from pandalib.methods.knn import nearest_others, squared_distances
from pandalib.metrics import threshold_at
from pandalib.progress import progress as bar
from pandalib.validation import as_images, check_counts, check_fitted

TOGETHER = 4096  # positions of normal images read at once: in a coarse layer, those of many images
FOR_SCALES = 16  # normal images are enough for a layer's scale, a mean over all their positions


def spade_reference(
    backbone: Backbone, normal_images, images, *, layers, n_images=50, kappa=1, sigma=4.0
) -> np.ndarray:
    """The maps of SPADE, float32 (n, H, W), by its definition. Parameters as for `SPADE`."""
    normal = _all_layers(backbone, normal_images, layers)
    test = _all_layers(backbone, images, layers)
    maps = []
    for i in range(len(images)):
        distances = torch.cdist(test["pooled"][i : i + 1], normal["pooled"])[0]  # (N,)
        nearest_images = distances.argsort()[:n_images]
        total = 0
        for layer in layers:
            positions = test[layer][i].flatten(1).T  # (h w, C)
            gallery = normal[layer][nearest_images].movedim(1, 3).flatten(0, 2)  # (K h w, C)
            squared = torch.cdist(positions, gallery).square()  # (h w, K h w)
            nearest = squared.topk(kappa, largest=False).values.sum(dim=1)
            small = nearest.view(1, 1, *test[layer].shape[2:])
            total = total + F.interpolate(small, images.shape[2:], mode="bilinear")[0, 0]
        maps.append(gaussian_filter(total.numpy() / len(layers), sigma))
    return np.stack(maps).astype(np.float32)


def _all_layers(backbone: Backbone, images, layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """Pooled features (n, d) and layers (n, C, h, w) in float64."""
    found = list(backbone.iter_layers(images, layers))
    return {name: torch.cat([batch[name] for batch in found]).cpu().double() for name in found[0]}


@dataclass(eq=False, repr=False)
class SPADE(MapDetector):
    """Semantic pyramid anomaly detection: correspondences with the nearest normal images.

    Parameters
    ----------
    backbone : Backbone
        The pretrained network, which reaches at least to the last of `layers`.
    layers : sequence of str
        Whose positions are compared; the defaults are the paper's.
    n_images : int
        K; all normal images if there are fewer.
    kappa : int
        Neighbours of a position.
    sigma : float
        Of the Gaussian blur, in pixels of the image: 4 for SPADE, 5 for PANDA.
    balanced : bool
        Divide the distances of each layer by their mean among normal images, so that a layer with
        large numbers does not dominate. The paper does not.
    memory_mb : float
        About how much the features of the images being scored may take.

    Attributes
    ----------
    normal_ : Pyramids
        Of the normal images.
    scales_ : ndarray, shape (len(layers),), float64
        What the distances of each layer are divided by; ones without `balanced`.
    image_size_ : (int, int)
        Height and width of the normal images.

    Examples
    --------
    >>> import numpy as np
    >>> from pandalib import SPADE, load_backbone
    >>> images = np.random.default_rng(0).integers(90, 99, (6, 3, 64, 64), dtype=np.uint8)
    >>> detector = SPADE(load_backbone(), layers=["layer1", "layer2"]).fit(images[:5])
    >>> images[5, :, 40:, 40:] = 255  # a white corner
    >>> row, column = np.unravel_index(detector.maps(images[5:])[0].argmax(), (64, 64))
    >>> bool(row > 32 and column > 32)
    True
    """

    backbone: Backbone
    _: KW_ONLY
    layers: Sequence[str] = ("layer1", "layer2", "layer3")
    n_images: int = 50
    kappa: int = 1
    sigma: float = 4.0
    balanced: bool = False
    memory_mb: float = 64.0

    def fit(self, normal_images, y=None) -> SPADE:
        """Remember the features of normal images, uint8 (N, 3, H, W); `balanced` needs two."""
        self._check_settings()
        check_counts(n_images=self.n_images, kappa=self.kappa)
        normal_images = as_images(normal_images)
        normal = Pyramids.of(self.backbone, normal_images, self.layers)
        return self.fit_pyramids(normal, height_and_width(normal_images))

    def fit_pyramids(
        self, normal: Pyramids, image_size: tuple[int, int], *, scales: np.ndarray | None = None
    ) -> SPADE:
        """Fit to the pyramids of normal images of this height and width.

        `scales` are those of an earlier fit to the same pyramids; None computes them.
        """
        self.normal_ = normal
        self.image_size_ = tuple(image_size)
        self._means = [normal.mean(layer) for layer in range(len(self.layers))]
        if scales is None:
            scales = self._scales() if self.balanced else np.ones(len(self.layers))
        self.scales_ = np.array(scales, dtype=np.float64)
        return self

    def leave_one_out_maps(self, *, progress: bool = True) -> np.ndarray:
        """The map of each normal image against the others, float32 (N, H, W): how uneven is normal?

        Left out by index: a copy of the image, if there is one, counts.
        """
        return np.concatenate(list(self.iter_leave_one_out_maps(progress=progress)))

    def iter_leave_one_out_maps(
        self, *, copies: Sequence[Sequence[int]] | None = None, progress: bool = True
    ) -> Iterator[np.ndarray]:
        """Yield `leave_one_out_maps` in batches: memory does not grow with the number of images.

        `copies` are numbers of normal images, for each normal image, that are left out as well.
        """
        check_fitted(self, "normal_")
        neighbours = self._nearest_others()
        if copies is not None:
            neighbours = self._without(copies, neighbours.shape[1])
        step = self._images_at_once()
        for start in bar(range(0, len(self.normal_), step), "leave one out", shown=progress):
            rows = slice(start, start + step)
            yield self._maps(self.normal_[rows], neighbours[rows])

    def threshold(self, false_alarm_rate: float) -> float:
        """The value of a map above which to raise an alarm, from the normal images alone.

        A new normal image exceeds it anywhere with a probability of about `false_alarm_rate`
        (`pandalib.metrics.threshold_at` on the scores of the leave-one-out maps).
        """
        return threshold_at(image_scores(self.leave_one_out_maps()), false_alarm_rate)

    def maps_of(self, part: Pyramids) -> np.ndarray:
        """The maps, float32 (n, H, W), of images whose pyramids are known."""
        k = min(self.n_images, len(self.normal_))
        return self._maps(part, squared_distances(self.normal_.pooled, part.pooled, k)[1])

    def _maps_of(self, images) -> np.ndarray:
        return self.maps_of(Pyramids.of(self.backbone, images, self.layers, dtype=np.float32))

    def _bytes_per_image(self) -> int:
        return 8 * self.normal_.rows.shape[1]  # float32, twice: as extracted, and without the mean

    def _nearest_others(self) -> np.ndarray:
        """For each normal image the numbers of the K nearest others."""
        k = min(self.n_images, max(1, len(self.normal_) - 1))
        return nearest_others(self.normal_.pooled, k)

    def _without(self, copies: Sequence[Sequence[int]], k: int) -> np.ndarray:
        """As `_nearest_others`, without copies; where fewer than K remain, the last is repeated.

        An image of which all the others are copies keeps them.
        """
        n, most = len(self.normal_), max(map(len, copies), default=0)
        found = nearest_others(self.normal_.pooled, min(n - 1, k + most))
        rows = [
            row[~np.isin(row, left_out)] if len(left_out) < n - 1 else row
            for row, left_out in zip(found, copies, strict=True)
        ]
        return np.array([np.pad(row[:k], (0, max(0, k - len(row))), "edge") for row in rows])

    def _scales(self) -> np.ndarray:
        """The mean distance in each layer of some normal images, each from the others."""
        rows = np.unique(np.linspace(0, len(self.normal_) - 1, FOR_SCALES).astype(int))
        part, neighbours = self.normal_[rows], self._nearest_others()[rows]
        scales = np.ones(len(self.layers))
        for layer, mean in enumerate(self._means):
            distance = float(self._layer_map(part, neighbours, layer).mean())
            spread = (part.positions(slice(None), layer) - mean).square().sum(dim=2).mean()
            # If all normal images are alike, only rounding is left, which is not a scale.
            if distance > 1e-5 * float(spread):
                scales[layer] = distance
        return scales

    def _maps(self, part: Pyramids, neighbours: np.ndarray) -> np.ndarray:
        """Maps of images, each against the normal images in its row of `neighbours` (n, K)."""
        total = np.zeros((len(part), *self.image_size_), np.float32)
        for layer, scale in enumerate(self.scales_):
            small = self._layer_map(part, neighbours, layer) / np.float32(scale)
            total += enlarged(small, self.image_size_, self.sigma)
        return total / len(self.scales_)

    def _layer_map(self, part: Pyramids, neighbours: np.ndarray, layer: int) -> np.ndarray:
        """The distances in one layer, (n, h, w)."""
        mean = self._means[layer]
        height, width, _ = part.shapes[layer]
        nearest = Nearest(part.positions(slice(None), layer) - mean, self.kappa)
        # Normal images that are neighbours of the same images go together, and each is read once.
        groups = defaultdict(list)
        for number in np.unique(neighbours):
            served = (neighbours == number).any(axis=1)
            groups[tuple(np.flatnonzero(served))].append(number)
        step = max(1, TOGETHER // (height * width))
        for served, numbers in groups.items():
            for start in range(0, len(numbers), step):
                gallery = self.normal_.positions(numbers[start : start + step], layer) - mean
                nearest.update(gallery.flatten(0, 1), served)
        return nearest.squared().numpy().reshape(-1, height, width)


class Pyramids:
    """One row of numbers for each image: the pooled feature, then each layer by position.

    Parameters
    ----------
    rows : array, shape (n, D), float16 or float32
    shapes : list of (int, int, int)
        Height, width and channels of each layer.
    """

    def __init__(self, rows: np.ndarray, shapes: list[tuple[int, int, int]]):
        self.rows = rows
        self.shapes = shapes
        sizes = [int(np.prod(shape)) for shape in shapes]
        # Where in a row the pooled feature ends, and each layer.
        self._ends = np.cumsum([rows.shape[1] - sum(sizes), *sizes])

    @classmethod
    def of(cls, backbone: Backbone, images, layers: Sequence[str], *, dtype=np.float16) -> Pyramids:
        """Extract the pyramids of images, uint8 (n, 3, H, W)."""
        rows, start = None, 0
        largest_possible = np.finfo(dtype).max
        for found in backbone.iter_layers(images, layers):
            maps = [found[name].permute(0, 2, 3, 1) for name in layers]
            parts = [found["pooled"], *(one.flatten(1) for one in maps)]
            batch = torch.cat([part.float().cpu() for part in parts], dim=1).numpy()
            largest = max(batch.max(), -batch.min())
            if not largest <= largest_possible:  # NaN passes no comparison
                raise ValueError(
                    f"features reach {largest:g}: expected at most {largest_possible:g}."
                )
            if rows is None:
                rows = np.empty((len(images), batch.shape[1]), dtype)
            rows[start : start + len(batch)] = batch
            start += len(batch)
        return cls(rows, [tuple(one.shape[1:]) for one in maps])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows) -> Pyramids:
        return Pyramids(self.rows[rows], self.shapes)

    @property
    def pooled(self) -> np.ndarray:
        """The pooled features, float32 (n, d)."""
        return np.asarray(self.rows[:, : self._ends[0]], dtype=np.float32)

    def positions(self, which, layer: int) -> torch.Tensor:
        """The features of a layer, float32 (..., positions, C), of the images `which`."""
        part = np.array(self.rows[which, self._ends[layer] : self._ends[layer + 1]])
        part = torch.from_numpy(part).float()  # ten times faster than numpy's cast
        return part.view(*part.shape[:-1], -1, self.shapes[layer][2])

    def maps(self) -> list[torch.Tensor]:
        """The layers as float32 (n, C, h, w)."""
        return [
            self.positions(slice(None), layer).view(-1, *shape).permute(0, 3, 1, 2)
            for layer, shape in enumerate(self.shapes)
        ]

    def mean(self, layer: int) -> torch.Tensor:
        """Mean over all images and positions, float32 (C,)."""
        images = (self.positions(number, layer) for number in range(len(self)))
        means = [positions.mean(dim=0, dtype=torch.float64) for positions in images]
        return torch.stack(means).mean(dim=0).float()
