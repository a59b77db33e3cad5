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

from pandalib.methods.panda import check_counts
from pandalib.backbones import MEAN, STD, Backbone
from pandalib.methods.patchcore import PatchCore, coreset  # noqa: F401 - lesson 06 compares the two, and finds both here
from pandalib.cache import FeatureCache, content_key
from pandalib.methods.distances import (
    MapDetector,
    Nearest,
    check_settings,
    enlarged,
    image_scores,
    nearest_squared,
)  # noqa: F401 - as well
from pandalib.validation import check_fitted
from pandalib.methods.knn import nearest_others, squared_distances
from pandalib.metrics import threshold_at
from pandalib.progress import progress as bar

TOGETHER = 4096  # positions of normal images that are read at once: coarse layers have few an image
FOR_SCALES = 16  # normal images that tell what is usual in a layer: their mean over all positions hardly varies


class SPADE(MapDetector):
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
        check_settings(layers, sigma, memory_mb)
        check_counts(n_images=n_images, kappa=kappa)
        self.backbone, self.layers, self.n_images, self.kappa, self.sigma = (
            backbone,
            tuple(layers),
            n_images,
            kappa,
            sigma,
        )
        self.balanced, self.cache, self.memory_mb = balanced, cache, memory_mb

    def fit(self, normal_images) -> SPADE:
        """Remember the features of normal images, uint8 (N, 3, H, W); with `balanced`, two or more."""
        normal = Pyramids.of(self.backbone, normal_images, self.layers, cache=self.cache)
        return self.fit_pyramids(normal, tuple(np.shape(normal_images[:1])[-2:]))

    def fit_pyramids(
        self, normal: Pyramids, image_size: tuple[int, int], *, scales: np.ndarray | None = None
    ) -> SPADE:
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
            usual = [
                float(self._layer_map(part, neighbours, layer).mean())
                for layer in range(len(self.layers))
            ]
            spread = [
                float((part.positions(slice(None), layer) - mean).square().sum(dim=2).mean())
                for layer, mean in enumerate(self._means)
            ]
            # Where all normal images are alike, only rounding is left, which is no scale.
            self.scales_ = np.array(
                [value if value > 1e-5 * whole else 1.0 for value, whole in zip(usual, spread)]
            )
        return self

    def _others(self) -> np.ndarray:
        """For each normal image the numbers of the K nearest others."""
        return nearest_others(
            self.normal_.pooled, min(self.n_images, max(1, len(self.normal_) - 1))
        )

    def _bytes_per_image(self) -> int:
        return 8 * self.normal_.rows.shape[1]  # float32, twice: as extracted, and without the mean

    def _maps_of(self, images) -> np.ndarray:
        return self.maps_of(
            Pyramids.of(self.backbone, images, self.layers, dtype=np.float32, like=self.normal_)
        )

    def maps_of(self, part: Pyramids) -> np.ndarray:
        """The maps of images whose pyramids are there already: float32 (n, H, W)."""
        return self._maps(
            part,
            squared_distances(
                self.normal_.pooled, part.pooled, min(self.n_images, len(self.normal_))
            )[1],
        )

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
            whole += enlarged(
                self._layer_map(part, neighbours, layer) / np.float32(scale),
                self.image_size_,
                self.sigma,
            )
        return whole / len(self.scales_)

    def _layer_map(self, part: Pyramids, neighbours: np.ndarray, layer: int) -> np.ndarray:
        """The distances in one layer, (n, h, w)."""
        mean, (high, wide, _) = self._means[layer], part.shapes[layer]
        nearest = Nearest(part.positions(slice(None), layer) - mean, self.kappa)
        # Each normal image is read and prepared once for all images that it serves; those that serve the same go together.
        groups: dict[tuple[int, ...], list[int]] = {}
        for number in np.unique(neighbours):
            groups.setdefault(tuple(np.flatnonzero((neighbours == number).any(axis=1))), []).append(
                number
            )
        step = max(1, TOGETHER // (high * wide))
        for served, numbers in groups.items():
            for start in range(0, len(numbers), step):
                nearest.update(
                    (self.normal_.positions(numbers[start : start + step], layer) - mean).flatten(
                        0, 1
                    ),
                    served,
                )
        return nearest.squared().numpy().reshape(-1, high, wide)


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
        cls,
        backbone: Backbone,
        images,
        layers: Sequence[str],
        *,
        dtype=np.float16,
        cache: FeatureCache | None = None,
        like: Pyramids | None = None,
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
        dtype = np.dtype(dtype if cache is None or cache.dtype is None else cache.dtype)
        chunks = _rows(backbone, images, layers, dtype)
        if cache is not None:
            # Every layer takes part, and so does the head, which may have been adapted.
            key = content_key(
                "pyramids",
                backbone.frozen_sha256(),
                backbone.trainable_sha256(),
                str(MEAN + STD),
                "+".join(layers),
                dtype.name,
                images,
            )
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
        part = torch.from_numpy(
            np.array(self.rows[which, self._ends[layer] : self._ends[layer + 1]])
        ).float()  # ten times faster than numpy's cast
        return part.view(*part.shape[:-1], -1, self.shapes[layer][2])

    def mean(self, layer: int) -> torch.Tensor:
        """Mean over all images and positions, float32 (channels,)."""
        return (
            torch.stack(
                [
                    self.positions(number, layer).mean(dim=0, dtype=torch.float64)
                    for number in range(len(self))
                ]
            )
            .mean(dim=0)
            .float()
        )


def _rows(
    backbone: Backbone, images, layers: Sequence[str], dtype: np.dtype
) -> Iterator[np.ndarray]:
    """Batch by batch the rows of `Pyramids`, of numbers that `dtype` can hold."""
    for found in backbone.iter_layers(images, layers):
        parts = [found["pooled"], *(found[name].permute(0, 2, 3, 1).flatten(1) for name in layers)]
        rows = torch.cat([part.float().cpu() for part in parts], dim=1).numpy()
        if not max(rows.max(), -rows.min()) <= np.finfo(dtype).max:  # NaN passes no comparison
            raise ValueError(
                f"features reach {np.abs(rows).max():g}: expected finite numbers below {np.finfo(dtype).max:,.0f}, the largest in {dtype}."
            )
        yield rows.astype(dtype, copy=False)  # here, since not every cache has a type of its own
