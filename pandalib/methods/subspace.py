"""The PCA residual: how far is a patch from the subspace that the normal patches span?

Patches are those of PatchCore (`pandalib.methods.patchcore`). Of all normal patches, their mean mu
and the eigenvectors V of their covariance with the largest eigenvalues are kept, as many as explain
a share of the variance; a patch p of a new image scores what they cannot explain:

    d(p) = ||(p - mu) - V V^T (p - mu)||^2

The map of d is enlarged and blurred; its largest value is the score. There is no bank to search,
and with a handful of normal images the subspace is known about as well as with many, which is why
recent work on few normal images came back to it (SubspaceAD, Lendering et al., CVPR 2026, with
DINOv2; the idea is much older: Jackson and Mudholkar 1979 call d the Q statistic).

Mean and covariance are running sums: memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch

from pandalib.backbones import Backbone
from pandalib.methods.distances import MapDetector, enlarged, height_and_width
from pandalib.methods.patchcore import iter_patches
from pandalib.progress import progress as bar
from pandalib.validation import as_images


@dataclass(eq=False, repr=False)
class PCAResidual(MapDetector):
    """Compare each patch with the principal subspace of all normal patches.

    Parameters
    ----------
    backbone : Backbone
        The pretrained network, which is not adapted.
    layers : sequence of str
        From fine to coarse.
    explained : float, above 0 and below 1
        The share of the variance that the subspace explains.
    sigma : float
        Of the Gaussian blur, in pixels of the image.
    memory_mb : float
        About how much the features of the images being scored may take.
    progress : bool

    Attributes
    ----------
    mean_ : tensor, shape (C,), float32
    components_ : tensor, shape (C, m), float32
        The eigenvectors, largest eigenvalue first.
    image_size_ : (int, int)
        Height and width of the normal images.

    Examples
    --------
    >>> import numpy as np
    >>> from pandalib import PCAResidual, load_backbone
    >>> images = np.random.default_rng(0).integers(90, 99, (6, 3, 64, 64), dtype=np.uint8)
    >>> detector = PCAResidual(load_backbone(), layers=["layer1", "layer2"], progress=False)
    >>> detector = detector.fit(images[:5])
    >>> images[5, :, 40:, 40:] = 255  # a white corner
    >>> row, column = np.unravel_index(detector.maps(images[5:])[0].argmax(), (64, 64))
    >>> bool(row > 32 and column > 32)
    True
    """

    backbone: Backbone
    _: KW_ONLY
    layers: Sequence[str] = ("layer2", "layer3")
    explained: float = 0.99
    sigma: float = 4.0
    memory_mb: float = 64.0
    progress: bool = True

    def fit(self, normal_images, y=None) -> PCAResidual:
        """Find the subspace of the patches of normal images, uint8 (N, 3, H, W)."""
        normal_images = as_images(normal_images)
        self._check_settings()
        if not 0 < self.explained < 1:
            raise ValueError(f"explained={self.explained!r}: expected between 0 and 1.")
        self.image_size_ = height_and_width(normal_images)
        n, shift = 0, None
        batches = iter_patches(self.backbone, normal_images, self.layers)
        for patches in bar(batches, "subspace", shown=self.progress):
            self._n_positions = patches.shape[1:3].numel()
            patches = patches.flatten(0, 2).double()
            if shift is None:  # the sums are of differences from it, so that little cancels
                shift = patches.mean(dim=0)
                total, products = torch.zeros_like(shift), 0
            difference = patches - shift
            n += len(difference)
            total += difference.sum(dim=0)
            products = products + difference.T @ difference
        mean = total / n
        values, vectors = torch.linalg.eigh(products / n - mean.outer(mean))
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        share = values.cumsum(0) / values.sum().clamp(min=torch.finfo(torch.float64).tiny)
        m = min(len(values) - 1, int((share < self.explained).sum()) + 1)
        self.mean_ = (mean + shift).float()
        self.components_ = vectors[:, :m].float().contiguous()
        return self

    def _maps_of(self, images) -> np.ndarray:
        maps = []
        for patches in iter_patches(self.backbone, images, self.layers):
            difference = patches - self.mean_
            rest = difference - difference @ self.components_ @ self.components_.T
            maps.append(rest.square().sum(dim=3))
        return enlarged(torch.cat(maps).numpy(), self.image_size_, self.sigma)

    def _bytes_per_image(self) -> int:
        return 16 * self._n_positions * len(self.mean_)
