"""PatchCore (Roth et al., CVPR 2022): a bank of patches of all normal images, thinned by a coreset.

A patch is the mean of a layer over 3 x 3 positions, the layers side by side at the resolution of
the finest. The bank M holds some of the normal images' patches, chosen so that each patch has one
nearby. A patch p of a test image scores

    d(p) = min over m in M of ||p - m||^2

and the map of d is enlarged and blurred. The score of an image is the largest value of its map. The
paper multiplies it by a weight, which `reweight` adds: with p* the patch that is farthest from the
bank, m* its nearest in the bank and N the patches of the bank nearest to m*, m* among them,

    w = 1 - exp(||p* - m*||) / sum over m in N of exp(||p* - m||)          (equation 7)

so that a patch counts for more if its nearest in the bank is itself a rare one.

The bank grows image by image, so that memory does not grow with the number of images: a coreset of
each portion of patches joins it, and what grows beyond twice `bank_size` is thinned again. A union
of coresets covers the patches as well as one coreset does, up to a constant (Malkomes et al. 2015).

With `n_parts` the bank is a union of banks, each made of every n-th image. A normal image is
compared with the parts to which it gave no patch, as a new image would be with all parts. (With a
single bank only its own patches could be left out. But each of them stands for similar patches of
other images, which the coreset dropped because of it, so the image would look too strange.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pandalib.backbones import Backbone
from pandalib.methods.distances import (
    MapDetector,
    Nearest,
    enlarged,
    height_and_width,
    image_scores,
    side_by_side,
)
from pandalib.progress import progress as bar
from pandalib.validation import as_images, check_counts

PORTION = 16384  # patches that one coreset is chosen from: its time grows with their square
NEIGHBOURS = 9  # of a patch in the bank, for `reweight`
PROJECTED = 128  # dimensions in which a coreset measures its distances


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
    n_parts : int
        The bank is a union of this many, each with its share of `bank_size`.
    reweight : bool
        Multiply the score of an image by the paper's weight.
    memory_mb : float
        About how much the features of the images being scored may take.
    seed : int
        Of the coreset.
    progress : bool

    Attributes
    ----------
    memory_bank_ : tensor, shape (M, C), float32
    owners_ : tensor, shape (M,), int64
        The number of the normal image that each patch of the bank comes from.
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
    n_parts: int = 1
    reweight: bool = False
    memory_mb: float = 64.0
    seed: int = 0
    progress: bool = True

    def fit(self, normal_images, y=None) -> PatchCore:
        """Choose the bank among the patches of normal images, uint8 (N, 3, H, W)."""
        normal_images = as_images(normal_images)
        self.begin(height_and_width(normal_images))
        batches, number = iter_patches(self.backbone, normal_images, self.layers), 0
        for patches in bar(batches, "memory bank", shown=self.progress):
            self.learn(patches, range(number, number + len(patches)))
            number += len(patches)
        return self.finish()

    def begin(self, image_size: tuple[int, int]) -> None:
        """Start an empty bank for normal images of this height and width; checks the settings."""
        self._check_settings()
        if not 0 < self.coreset_ratio <= 1:
            raise ValueError(f"coreset_ratio={self.coreset_ratio!r}: expected above 0, at most 1.")
        check_counts(n_parts=self.n_parts)
        if self.bank_size is not None:
            check_counts(bank_size=self.bank_size)
        self.image_size_ = tuple(image_size)
        # Pairs of patches and owners, for each part.
        self._bank = [[] for _ in range(self.n_parts)]
        self._portion = [[] for _ in range(self.n_parts)]

    def learn(self, patches: torch.Tensor, numbers: Sequence[int]) -> None:
        """Add the patches (n, h, w, C) of the normal images with these numbers to the bank."""
        self._grid = patches.shape[1:3]
        for rows, number in zip(patches.flatten(1, 2), numbers):
            part = number % self.n_parts
            self._portion[part].append((rows, torch.full((len(rows),), number)))
            if _size(self._portion[part]) >= PORTION / self.n_parts:
                self._end_portion(part)

    def finish(self) -> PatchCore:
        """Thin the bank to its size. `learn` may go on from here."""
        for part in range(self.n_parts):
            self._end_portion(part)
        parts = [self._limited(*_joined(bank)) for bank in self._bank if bank]
        self.set_bank(*_joined(parts))
        return self

    def set_bank(self, patches: torch.Tensor, owners: torch.Tensor, grid=None) -> None:
        """Take over a bank, for example that of an earlier fit with its grid (h, w) of patches."""
        self.memory_bank_, self.owners_ = patches, owners
        self._grid = self._grid if grid is None else torch.Size(grid)
        parts = [owners % self.n_parts == part for part in range(self.n_parts)]
        self._bank = [[(patches[part], owners[part])] if part.any() else [] for part in parts]
        self._portion = [[] for _ in parts]
        self._mean = patches.mean(dim=0)

    def _end_portion(self, part: int) -> None:
        bank, portion = self._bank[part], self._portion[part]
        if portion:
            bank.append(self._thinned(*_joined(portion), self.coreset_ratio))
        if self.bank_size and _size(bank) > 2 * self.bank_size / self.n_parts:
            bank[:] = [self._limited(*_joined(bank))]
        self._portion[part] = []

    def _thinned(self, patches: torch.Tensor, owners: torch.Tensor, ratio: float) -> tuple:
        n_kept = max(1, round(ratio * len(patches)))
        if n_kept == len(patches):
            return patches, owners
        chosen = coreset(patches, n_kept, seed=self.seed)
        return patches[chosen], owners[chosen]

    def _limited(self, patches: torch.Tensor, owners: torch.Tensor) -> tuple:
        most = self.bank_size / self.n_parts if self.bank_size else len(patches)
        return self._thinned(patches, owners, min(1, most / len(patches)))

    def maps_and_scores(
        self, patches: torch.Tensor, left_out: Sequence[int] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Maps (n, H, W) and scores (n,) of images by their patches (n, h, w, C).

        `left_out` are numbers of normal images whose patches do not count. If there are several
        parts, the whole part of the first of these images does not count either.
        """
        bank = self.memory_bank_
        if len(left_out):
            others = ~torch.isin(self.owners_, torch.as_tensor(left_out))
            if self.n_parts > 1:
                others &= self.owners_ % self.n_parts != left_out[0] % self.n_parts
            bank = bank[others]
        flat = patches.flatten(1, 2)
        nearest = Nearest(flat - self._mean)
        nearest.update(bank - self._mean, range(len(patches)))
        squared = nearest.squared()
        small = squared.numpy().reshape(-1, *patches.shape[1:3])
        maps = enlarged(small, self.image_size_, self.sigma)
        scores = image_scores(maps)
        if self.reweight:
            farthest = flat[torch.arange(len(flat)), squared.argmax(dim=1)]
            scores = scores * weights(farthest, bank).numpy()
        return maps, scores

    def _maps_and_scores_of(self, images) -> tuple[np.ndarray, np.ndarray]:
        return self.maps_and_scores(self._patches(images))

    def _patches(self, images) -> torch.Tensor:
        return torch.cat(list(iter_patches(self.backbone, images, self.layers)))

    def _bytes_per_image(self) -> int:
        return 12 * self._grid.numel() * self.memory_bank_.shape[1]


def iter_patches(backbone: Backbone, images, layers: Sequence[str]) -> Iterator[torch.Tensor]:
    """Yield the patches (b, h, w, C) of images in batches, on the grid of the first layer."""
    for found in backbone.iter_layers(images, layers, pooled=False):
        yield patches_of([found[name].float().cpu() for name in layers])


def patches_of(maps: list[torch.Tensor]) -> torch.Tensor:
    """The patches (n, h, w, C) of layers (n, C, h, w), on the grid of the first of them."""
    # Zeros beyond the border: means over fewer positions would vary more and score higher.
    return side_by_side([F.avg_pool2d(one, 3, 1, 1) for one in maps])


def weights(patches: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """The paper's weight, equation 7, of the farthest patch of each image: (n, C) -> (n,)."""
    distances = torch.cdist(patches, bank)
    nearest = distances.argmin(dim=1)
    around = torch.cdist(bank[nearest], bank).topk(min(NEIGHBOURS, len(bank)), largest=False)
    close = distances.gather(1, around.indices)
    own = distances.gather(1, nearest[:, None])
    return 1 - 1 / (close - own).exp().sum(dim=1)


def _size(pairs: list[tuple]) -> int:
    return sum(len(patches) for patches, _ in pairs)


def _joined(pairs: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
    patches, owners = zip(*pairs)
    return torch.cat(patches), torch.cat(owners)


def coreset(features: torch.Tensor, n_kept: int, *, seed: int = 0) -> torch.Tensor:
    """Choose `n_kept` of the rows (n, d) such that each row has a chosen one nearby.

    Greedy k-centre (Sener and Savarese 2018): each step takes the row that is farthest from all
    those chosen so far. Distances are taken in a random projection to 128 dimensions, which nearly
    preserves them (Johnson and Lindenstrauss). Returns int64 row numbers (n_kept,), in the order of
    choice.
    """
    n, d = features.shape
    if not 1 <= n_kept <= n:
        raise ValueError(f"n_kept={n_kept}: expected 1 to {n}, the number of features.")
    generator = torch.Generator().manual_seed(seed)
    features = features - features.mean(dim=0)
    if d > PROJECTED:
        projection = torch.randn(d, PROJECTED, generator=generator)
        features = features @ projection / PROJECTED**0.5
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
