"""PatchCore (Roth et al., CVPR 2022): a bank of patches of all normal images, thinned by a coreset.

A patch is the mean of a layer over 3 x 3 positions, the layers side by side at the resolution of
the finest. The bank M holds some of the normal images' patches, chosen so that each patch has one
nearby. A patch p of a test image scores

    d(p) = min over m in M of ||p - m||^2

and the map of d is enlarged and blurred. Left out here: PatchCore's reweighting of the image score.

The bank grows image by image, so that memory does not grow with the number of images: a coreset of
each portion of patches joins it, and what grows beyond twice `bank_size` is thinned again. A union
of coresets covers the patches as well as one coreset does, up to a constant (Malkomes et al. 2015).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pandalib.backbones import Backbone
from pandalib.methods.distances import MapDetector, Nearest, enlarged, enlargement, height_and_width
from pandalib.progress import progress as bar
from pandalib.validation import as_images, check_counts

PORTION = 16384  # patches of which one coreset is chosen: its time grows with their square


@dataclass(eq=False, repr=False)
class PatchCore(MapDetector):
    """Compare each patch with a memory bank of normal patches.

    Parameters
    ----------
    backbone : Backbone
        The pretrained network, which is not adapted.
    layers : sequence of str
        From fine to coarse.
    coreset_ratio : float, above 0 and at most 1
        The fraction of the patches that stay in the bank.
    bank_size : int or None
        At most this many stay.
    sigma : float
        Of the Gaussian blur, in pixels of the image.
    memory_mb : float
        About how much the features of the images being scored may take.
    seed : int
        Of the coreset.
    progress : bool

    Attributes
    ----------
    memory_bank_ : tensor, shape (M, C), float32
    image_size_ : (int, int)
        Height and width of the normal images.

    Examples
    --------
    >>> import numpy as np
    >>> from pandalib import PatchCore, load_backbone
    >>> images = np.random.default_rng(0).integers(90, 99, (6, 3, 64, 64), dtype=np.uint8)
    >>> detector = PatchCore(load_backbone(), layers=["layer1", "layer2"]).fit(images[:5])
    >>> images[5, :, 40:, 40:] = 255  # a white corner
    >>> row, column = np.unravel_index(detector.maps(images[5:])[0].argmax(), (64, 64))
    >>> bool(row > 32 and column > 32)
    True
    """

    backbone: Backbone
    _: KW_ONLY
    layers: Sequence[str] = ("layer2", "layer3")
    coreset_ratio: float = 0.1
    bank_size: int | None = None
    sigma: float = 4.0
    memory_mb: float = 64.0
    seed: int = 0
    progress: bool = True

    def fit(self, normal_images, y=None) -> PatchCore:
        """Choose the bank among the patches of normal images, uint8 (N, 3, H, W)."""
        self._check_settings()
        if not 0 < self.coreset_ratio <= 1:
            raise ValueError(f"coreset_ratio={self.coreset_ratio!r}: expected above 0, at most 1.")
        if self.bank_size is not None:
            check_counts(bank_size=self.bank_size)
        normal_images = as_images(normal_images)
        self.image_size_ = height_and_width(normal_images)
        bank, portion, waiting, n_seen = [], [], 0, 0
        batches = self._iter_patches(normal_images)
        for patches in bar(batches, "memory bank", shown=self.progress):
            self._grid = patches.shape[1:3]
            portion.append(patches.flatten(0, 2))
            waiting += len(portion[-1])
            if waiting >= PORTION:
                n_seen += waiting
                bank.append(self._thinned(torch.cat(portion), self.coreset_ratio))
                portion, waiting = [], 0
                if self.bank_size and sum(map(len, bank)) > 2 * self.bank_size:
                    bank = [self._limited(torch.cat(bank))]
        if portion:
            bank.append(self._thinned(torch.cat(portion), self.coreset_ratio))
        self.memory_bank_ = self._limited(torch.cat(bank))
        self._mean = self.memory_bank_.mean(dim=0)
        return self

    def _thinned(self, patches: torch.Tensor, ratio: float) -> torch.Tensor:
        n_kept = max(1, round(ratio * len(patches)))
        if n_kept == len(patches):
            return patches
        return patches[coreset(patches, n_kept, seed=self.seed)]

    def _limited(self, patches: torch.Tensor) -> torch.Tensor:
        return self._thinned(patches, min(1, (self.bank_size or len(patches)) / len(patches)))

    def _maps_of(self, images) -> np.ndarray:
        patches = torch.cat(list(self._iter_patches(images)))
        nearest = Nearest(patches.flatten(1, 2) - self._mean)
        nearest.update(self.memory_bank_ - self._mean, range(len(patches)))
        maps = nearest.squared().numpy().reshape(-1, *self._grid)
        return enlarged(maps, self.image_size_, self.sigma)

    def _iter_patches(self, images) -> Iterator[torch.Tensor]:
        """Yield the patches (b, h, w, C) of images, on the grid of the first layer."""
        for found in self.backbone.iter_layers(images, self.layers, pooled=False):
            # Zeros beyond the border: means over fewer positions would vary more and score higher.
            maps = [F.avg_pool2d(found[name].float().cpu(), 3, 1, 1) for name in self.layers]
            height, width = maps[0].shape[2:]
            for number, coarse in enumerate(maps[1:], start=1):
                rows = torch.from_numpy(enlargement(coarse.shape[2], height))
                columns = torch.from_numpy(enlargement(coarse.shape[3], width))
                maps[number] = rows @ coarse @ columns.T
            patches = torch.cat(maps, dim=1).permute(0, 2, 3, 1)
            if not patches.isfinite().all():
                raise ValueError("features are NaN or infinite: expected finite numbers.")
            yield patches

    def _bytes_per_image(self) -> int:
        return 12 * self._grid[0] * self._grid[1] * self.memory_bank_.shape[1]


def coreset(
    features: torch.Tensor,
    n_kept: int,
    *,
    n_projected: int = 128,
    seed: int = 0,
) -> torch.Tensor:
    """Choose `n_kept` of the rows (n, d) such that each row has a chosen one nearby.

    Greedy k-centre (Sener and Savarese 2018): each step takes the row that is farthest from all
    those chosen so far. Distances are taken in a random projection to `n_projected` dimensions,
    which nearly preserves them (Johnson and Lindenstrauss). Returns int64 row numbers (n_kept,), in
    the order of choice.
    """
    n, d = features.shape
    if not 1 <= n_kept <= n:
        raise ValueError(f"n_kept={n_kept}: expected 1 to {n}, the number of features.")
    generator = torch.Generator().manual_seed(seed)
    features = features - features.mean(dim=0)
    if d > n_projected:
        projection = torch.randn(d, n_projected, generator=generator)
        features = features @ projection / n_projected**0.5
    norms = features.square().sum(dim=1)
    distances = torch.full_like(norms, torch.inf)  # squared, to the nearest chosen row
    farthest = int(torch.randint(n, (), generator=generator))
    chosen = []
    for _ in range(n_kept):
        chosen.append(farthest)
        to_new = norms + norms[farthest] - 2 * (features @ features[farthest])
        torch.minimum(distances, to_new, out=distances)
        distances[farthest] = -torch.inf  # rounding must not let it be chosen twice
        farthest = int(distances.argmax())
    return torch.tensor(chosen)
