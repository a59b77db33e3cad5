"""A bank of patches in place of the nearest images: the idea of PatchCore (Roth et al., CVPR 2022), and the coreset that thins it out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from pandalib.backbones import Backbone
from pandalib.methods.distances import MapDetector, Nearest, check_settings, enlarged
from pandalib.interpolation import enlargement
from pandalib.progress import progress as bar


class PatchCore(MapDetector):
    """A bank of patches of all normal images, thinned out by a coreset: the idea of PatchCore (Roth et al., CVPR 2022).

    A patch is the mean of a layer over 3 x 3 positions, zeros beyond the border, the layers laid side by side at the resolution
    of the first one.
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
        coreset_ratio: float = 0.1,
        sigma: float = 4.0,
        memory_mb: float = 64.0,
        seed: int = 0,
        progress: bool = True,
    ):
        check_settings(layers, sigma, memory_mb)
        if not 0 < coreset_ratio <= 1:
            raise ValueError(
                f"share={share!r}: expected the part of the patches that stay in the bank, above 0 and at most 1."
            )
        (
            self.backbone,
            self.layers,
            self.coreset_ratio,
            self.sigma,
            self.memory_mb,
            self.seed,
            self.progress,
        ) = backbone, tuple(layers), coreset_ratio, sigma, memory_mb, seed, progress

    def fit(self, normal_images) -> PatchCore:
        """Choose the bank among the patches of normal images, uint8 (N, 3, H, W)."""
        patches = self._patches(normal_images)
        self.image_size_, self._grid = tuple(np.shape(normal_images[:1])[-2:]), patches.shape[1:3]
        patches = patches.flatten(0, 2)
        n_kept = max(1, round(self.coreset_ratio * len(patches)))
        if n_kept < len(patches):
            patches = patches[coreset(patches, n_kept, seed=self.seed, progress=self.progress)]
        self._mean = patches.mean(dim=0)
        self.bank_ = patches
        return self

    def _bytes_per_image(self) -> int:
        return 12 * self._grid[0] * self._grid[1] * self.bank_.shape[1]

    def _maps_of(self, images) -> np.ndarray:
        patches = self._patches(images)
        nearest = Nearest(patches.flatten(1, 2) - self._mean, 1)
        nearest.update(self.bank_ - self._mean, range(len(patches)))
        return enlarged(
            nearest.squared().numpy().reshape(-1, *self._grid), self.image_size_, self.sigma
        )

    def _patches(self, images) -> torch.Tensor:
        """(n, h, w, C): mean over 3 x 3 positions, layers enlarged to the first one's grid and laid side by side."""
        parts = []
        for found in self.backbone.iter_layers(images, self.layers, pooled=False):
            # What lies outside counts as zero, as in PatchCore: a mean over fewer positions would vary more, and borders score higher.
            maps = [F.avg_pool2d(found[name].float().cpu(), 3, 1, 1) for name in self.layers]
            size = maps[0].shape[2:]
            maps[1:] = [
                _matrix(enlargement, map.shape[2], size[0])
                @ map
                @ _matrix(enlargement, map.shape[3], size[1]).T
                for map in maps[1:]
            ]
            parts.append(torch.cat(maps, dim=1).permute(0, 2, 3, 1))
            if not parts[-1].isfinite().all():
                raise ValueError(
                    "features hold NaN or infinite values: look for what produced them, as damaged weights or a learning rate too high."
                )
        return torch.cat(parts)


def coreset(
    features: torch.Tensor,
    n_kept: int,
    *,
    n_projected: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> torch.Tensor:
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
        features = (
            features
            @ torch.randn(features.shape[1], n_projected, generator=generator)
            / n_projected**0.5
        )
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


def _matrix(function, *arguments) -> torch.Tensor:
    return torch.from_numpy(function(*arguments))
