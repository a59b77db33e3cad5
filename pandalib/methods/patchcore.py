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

from collections.abc import Sequence
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
    owners_ : tensor, shape (M,), int64
        The number of the normal image that each patch comes from.
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
        normal_images = as_images(normal_images)
        bank, number = self.new_bank(), 0
        batches = self.backbone.iter_layers(normal_images, self.layers, pooled=False)
        for found in bar(batches, "memory bank", shown=self.progress):
            patches = self.patches_of(found)
            bank.add(patches, range(number, number + len(patches)))
            number += len(patches)
        return self.fit_bank(*bank.close(), patches.shape[1:3], height_and_width(normal_images))

    def new_bank(self) -> MemoryBank:
        """An empty memory bank with the settings of this detector."""
        if not 0 < self.coreset_ratio <= 1:
            raise ValueError(f"coreset_ratio={self.coreset_ratio!r}: expected above 0, at most 1.")
        if self.bank_size is not None:
            check_counts(bank_size=self.bank_size)
        return MemoryBank(self.coreset_ratio, self.bank_size, self.seed)

    def fit_bank(self, patches, owners, grid, image_size) -> PatchCore:
        """Use a bank (M, C) whose patches come from the normal images `owners` (M,).

        `grid` is the height and width of the maps before they are enlarged to `image_size`.
        """
        self.memory_bank_, self.owners_ = patches, owners
        self.grid_, self.image_size_ = tuple(grid), tuple(image_size)
        self._mean = patches.mean(dim=0)
        return self

    def patches_of(self, found: dict[str, torch.Tensor]) -> torch.Tensor:
        """Patches (n, h, w, C) on the grid of the first layer, from the layers (n, C, h, w)."""
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
        return patches

    def maps_of(self, patches: torch.Tensor, without: Sequence[int] = ()) -> np.ndarray:
        """The maps, float32 (n, H, W), of images whose patches (n, h, w, C) are known.

        `without` are normal images whose patches do not count: those of an image that is itself in
        the bank, and of its copies.
        """
        bank = self.memory_bank_
        if len(without):
            bank = bank[~torch.isin(self.owners_, torch.as_tensor(without))]
        nearest = Nearest(patches.flatten(1, 2) - self._mean)
        nearest.update(bank - self._mean, range(len(patches)))
        maps = nearest.squared().numpy().reshape(-1, *self.grid_)
        return enlarged(maps, self.image_size_, self.sigma)

    def _maps_of(self, images) -> np.ndarray:
        batches = self.backbone.iter_layers(images, self.layers, pooled=False)
        return self.maps_of(torch.cat([self.patches_of(found) for found in batches]))

    def _bytes_per_image(self) -> int:
        return 12 * self.grid_[0] * self.grid_[1] * self.memory_bank_.shape[1]


class MemoryBank:
    """Patches that stand for all those seen so far, and the image that each comes from.

    Parameters
    ----------
    ratio : float
        The fraction of the patches that stay.
    size : int or None
        At most this many.
    seed : int

    Examples
    --------
    >>> bank = MemoryBank(ratio=0.5)
    >>> bank.add(torch.arange(8.0).view(2, 2, 2, 1), images=[0, 1])
    >>> patches, owners = bank.close()
    >>> patches.shape, owners.shape
    (torch.Size([4, 1]), torch.Size([4]))
    """

    def __init__(self, ratio: float = 0.1, size: int | None = None, seed: int = 0):
        self.ratio, self.size, self.seed = ratio, size, seed
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []  # patches and owners
        self._portion: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, patches: torch.Tensor, images: Sequence[int]) -> None:
        """Take in the patches (n, h, w, C) of the images with these numbers."""
        owners = torch.as_tensor(images).repeat_interleave(patches[0].shape[:2].numel())
        self._portion.append((patches.flatten(0, 2), owners))
        if sum(len(part) for part, _ in self._portion) >= PORTION:
            self._choose()

    def close(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The bank, (M, C) and (M,)."""
        self._choose()
        return self._limited()

    def _choose(self) -> None:
        """A coreset of the portion joins the bank."""
        if self._portion:
            self.kept.append(self._thinned(*_joined(self._portion), self.ratio))
            self._portion = []
        if self.size and sum(len(part) for part, _ in self.kept) > 2 * self.size:
            self.kept = [self._limited()]

    def _limited(self) -> tuple[torch.Tensor, torch.Tensor]:
        patches, owners = _joined(self.kept)
        return self._thinned(patches, owners, min(1, (self.size or len(patches)) / len(patches)))

    def _thinned(self, patches, owners, ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
        n_kept = max(1, round(ratio * len(patches)))
        if n_kept == len(patches):
            return patches, owners
        chosen = coreset(patches, n_kept, seed=self.seed)
        return patches[chosen], owners[chosen]


def _joined(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([one for one, _ in parts]), torch.cat([one for _, one in parts])


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
