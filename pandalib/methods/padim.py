"""PaDiM (Defard et al. 2021): one Gaussian at each position of the image.

Where parts lie at the same place in every image, a position need not be compared with all others.
With f(x, p) the layers of image x side by side at position p, and only d channels of them, drawn at
random, the normal images give each position a mean and a covariance,

    mu(p) = mean of f(x, p),    Sigma(p) = covariance of f(x, p) + epsilon I,

and a new image scores the Mahalanobis distance at each position:

    d(p) = sqrt((f(x, p) - mu(p))^T Sigma(p)^-1 (f(x, p) - mu(p)))

The map of d is enlarged and blurred; its largest value is the score. Mean and covariance are
running sums, so memory does not grow with the number of images: at each position d x d numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch

from pandalib.backbones import Backbone
from pandalib.methods.distances import MapDetector, enlarged, height_and_width, side_by_side
from pandalib.progress import progress as bar
from pandalib.validation import as_images, check_counts


@dataclass(eq=False, repr=False)
class PaDiM(MapDetector):
    """Compare each position with the Gaussian of the normal images at the same position.

    Parameters
    ----------
    backbone : Backbone
        The pretrained network, which is not adapted.
    layers : sequence of str
        From fine to coarse.
    n_features : int
        d, drawn with `seed`; all channels if there are fewer.
    epsilon : float
        Added to the diagonal of each covariance: with fewer images than channels it alone makes
        the covariance invertible.
    sigma : float
        Of the Gaussian blur, in pixels of the image.
    memory_mb : float
        About how much the features of the images being scored may take.
    seed : int
    progress : bool

    Attributes
    ----------
    channels_ : tensor, shape (d,), int64
        The channels that were drawn.
    mean_ : tensor, shape (positions, d), float32
    whitening_ : tensor, shape (positions, d, d), float32
        L^-1 of Sigma = L L^T at each position: a distance is the length of L^-1 (f - mu).
    image_size_ : (int, int)
        Height and width of the normal images.

    Examples
    --------
    >>> import numpy as np
    >>> from pandalib import PaDiM, load_backbone
    >>> images = np.random.default_rng(0).integers(90, 99, (6, 3, 64, 64), dtype=np.uint8)
    >>> detector = PaDiM(load_backbone(), layers=["layer1", "layer2"], progress=False)
    >>> maps = detector.fit(images[:5]).maps(images[5:] // 2)
    >>> maps.shape, bool(maps.min() > detector.maps(images[:5]).max())
    ((1, 64, 64), True)
    """

    backbone: Backbone
    _: KW_ONLY
    layers: Sequence[str] = ("layer1", "layer2", "layer3")
    n_features: int = 100
    epsilon: float = 0.01
    sigma: float = 4.0
    memory_mb: float = 64.0
    seed: int = 0
    progress: bool = True

    def fit(self, normal_images, y=None) -> PaDiM:
        """Sum up the normal images, uint8 (N, 3, H, W), one batch at a time.

        Raises
        ------
        ValueError
            Invalid settings, or fewer than two images.
        """
        normal_images = as_images(normal_images)
        self._check_settings()
        check_counts(n_features=self.n_features)
        if not 0 < self.epsilon < np.inf:
            raise ValueError(f"epsilon={self.epsilon!r}: expected above 0.")
        n = len(normal_images)
        if n < 2:
            raise ValueError(f"{n} normal image: a covariance needs at least 2.")
        self.image_size_ = height_and_width(normal_images)
        self.channels_ = shift = None
        for features in bar(self._iter_features(normal_images), "PaDiM", shown=self.progress):
            if shift is None:  # the sums are of differences from it, so that little cancels
                shift = features.mean(dim=1, keepdim=True)
                total, products = torch.zeros_like(shift), 0
            difference = features - shift
            total += difference.sum(dim=1, keepdim=True)
            products = products + difference.transpose(1, 2) @ difference  # (positions, d, d)
        mean = total / n
        covariance = products.sub_(n * mean.transpose(1, 2) @ mean).div_(n - 1)
        covariance.diagonal(dim1=1, dim2=2).add_(self.epsilon)
        identity = torch.eye(covariance.shape[1]).expand_as(covariance)
        lower = torch.linalg.cholesky(covariance)
        self.whitening_ = torch.linalg.solve_triangular(lower, identity, upper=False)
        self.mean_ = (mean + shift)[:, 0]
        return self

    def _iter_features(self, images) -> Iterator[torch.Tensor]:
        """Yield the chosen channels of batches, positions first: (positions, b, d)."""
        for found in self.backbone.iter_layers(images, self.layers, pooled=False):
            positions = side_by_side([found[name].float().cpu() for name in self.layers])
            self._grid = positions.shape[1:3]
            if self.channels_ is None:
                generator = torch.Generator().manual_seed(self.seed)
                drawn = torch.randperm(positions.shape[3], generator=generator)
                self.channels_ = drawn[: self.n_features].sort().values
            yield positions[..., self.channels_].flatten(1, 2).transpose(0, 1)

    def _maps_of(self, images) -> np.ndarray:
        maps = [
            ((features - self.mean_[:, None]) @ self.whitening_.transpose(1, 2)).norm(dim=2).T
            for features in self._iter_features(images)
        ]
        small = torch.cat(maps).view(-1, *self._grid).numpy()
        return enlarged(small, self.image_size_, self.sigma)

    def _bytes_per_image(self) -> int:
        return 12 * self.mean_.numel()
