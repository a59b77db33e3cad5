"""A detector for your own images: normal photographs in; scores, heat maps and alarms out.

Each image x is scored in two ways, since an anomaly may be another kind of object, or a small fault
in the right object:

    image(x) = DN2: squared distances of the pooled feature to the k nearest of all normal images
               (`pandalib.methods.knn`)
    place(x) = the largest value of a map: distances to a memory bank of normal patches
               (`pandalib.methods.patchcore`), or to the positions of similar normal images
               (`pandalib.methods.spade`)

Each part is divided by the value that one normal image in ten exceeds when compared with the
others, so that both have the same scale. The score is the larger of the two. One threshold, from
the leave-one-out scores of the normal images, serves scores and maps. An image is left
out together with its near-duplicates (`pandalib.inspection.duplicates`).

Memory is bounded. Images are read once, in batches; all pooled features are kept, 4 d bytes each,
and a bank of bounded size. The layers that the maps compare are kept for a random sample of the
images, whose scores set the scales and the threshold.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from sklearn.base import BaseEstimator

from pandalib.backbones import PIXELS_PER_BATCH, Backbone
from pandalib.datasets.folder import open_images
from pandalib.datasets.images import FITS, Geometry, ImageFolder, LazyImages, upright_size
from pandalib.datasets.listing import counted
from pandalib.datasets.region import check_proportions, read_region
from pandalib.datasets.tiles import tile_boxes, tile_side
from pandalib.inspection import adapted, storage, tiled
from pandalib.inspection.duplicates import (
    near_duplicates,
    others_of_group,
    scores_without,
    thumbnails,
)
from pandalib.inspection.opening import frames_of, in_pixels, notes_of, part_of, sizes_of
from pandalib.inspection.ranking import MOST_REGIONS, Finding, Ranking, Seen, larger_part
from pandalib.inspection.regions import p_values, regions_above
from pandalib.methods.distances import height_and_width, image_scores
from pandalib.methods.knn import KNN
from pandalib.methods.patchcore import PatchCore, patches_of
from pandalib.methods.spade import SPADE, Pyramids
from pandalib.methods.whitening import whitened_leave_one_out_scores
from pandalib.metrics import threshold_at
from pandalib.progress import progress as bar
from pandalib.validation import check_counts, check_fitted, check_rates
from pandalib.weights import EMBEDDED

METHODS = ("bank", "spade")
BANK_LAYERS = 2  # the coarsest of the network's: finer ones cost four times as much, for less
MOST_LOOKED_AT = 1000  # normal images that `leave_out_above` compares, if there are so many
BANK_PARTS = 10  # a normal image is compared with nine of them
PARTS = ("image", "place")


@dataclass(eq=False, repr=False)
class Inspector(BaseEstimator):
    """From normal images to a detector that scores, shows where, and raises alarms.

    Images are always a folder, a file, a pattern, a table of files or a list of these; one frame in
    memory, a PIL image or uint8 (H, W, 3), or a list of them, which is treated as a file with the
    same pixels; or anything that `pandalib.validation.as_images` takes, for example
    uint8 (N, 3, H, W), which keeps its size.

    Parameters
    ----------
    backbone : Backbone
        The pretrained network, which stays as it is.
    adapt : {"ewc", "early"} or None
        Adapt a copy of it to half of the normal images, with EWC or stopped early; the other half
        sets the threshold. For both parts of the score.
    size : int or None
        Files become images of about size x size pixels, at the proportions that their folder has;
        None: 128 for the embedded network, the network's own for others.
    tile, overlap : int or None
        Look at tiles of this side in pixels of the files, which share at least `overlap` (None: a
        quarter): for defects that are small in large images. It takes as long as that many images.
    smallest_defect : int or None
        In place of `tile`: the tiles are such that a defect of this many pixels can be seen.
    region : path, str, sequence of (x, y) or None
        The part of every image that is looked at, as for `pandalib.datasets.region.read_region`, in
        pixels of the first normal image; images of other sizes need its proportions.
    framing : {"stretch", "pad", "crop"} or None
        How a file of other proportions fits in; see `pandalib.datasets.images.Geometry`. None:
        "crop", the central square only, if `resize` is given; else "stretch", the whole image.
    resize : int or None
        For "crop": the shorter side before it.
    method : {"bank", "spade"}
        Of the maps: a memory bank, or SPADE, which is slower.
    layers : sequence of str or None
        For the maps; None: the network's own, for the bank the coarsest two of them.
    bank_size : int
        Largest number of patches in the memory bank.
    reweight : bool
        As for `pandalib.PatchCore`.
    leave_out_above : float or None
        After a first fit, leave out the images whose score exceeds this many times the median
        normal score, and fit again: there may be defects among them. Up to 1000 are looked at.
    n_maps : int
        Largest number of normal images, drawn with `seed`, whose layers are kept and whose scores
        give scales and threshold. A false-alarm rate r needs 1 / r - 1 of them.
    n_images : int
        Of SPADE: most similar normal images to compare with.
    sigma, memory_mb
        As for `pandalib.SPADE`.
    k : int
        Neighbours of DN2.
    normalise, whiten : bool
        How DN2 prepares its features, as for `pandalib.KNN`.
    false_alarm_rate : float
        Fraction of normal images that may raise an alarm.
    seed : int
    progress : bool
    batch_size : int or None
        Images at once; None: as many as fit into bounded memory.
    workers : int or None
        Processes that decode files; None: as `ImageFolder` chooses.

    Attributes
    ----------
    backbone_ : Backbone
        The network that is used: `backbone`, or its adapted copy.
    adapted_ : ndarray of int64
        Numbers of the normal images that were set aside to adapt to: they set no threshold.
    features_ : ndarray, shape (N, d), float32
        Of all normal images.
    names_ : list of str
        Of all normal images.
    sample_ : ndarray, shape (M,), int64
        Numbers of the images whose layers are kept, ascending.
    pyramids_ : Pyramids
        The layers of the sample.
    knn_, places_ : KNN, PatchCore or SPADE
        The two detectors.
    thumbnails_ : ndarray, shape (N, 768), uint8
        Of all normal images, for finding near-duplicates.
    groups_ : ndarray, shape (N,), int64
        Images of one group are near-duplicates.
    scales_ : dict of str to float
        What each part, "image" and "place", is divided by.
    normal_parts_, normal_scores_ : dict of str to ndarray (M,), ndarray (M,)
        Of the sample, each image compared with the others, without its near-duplicates.
    geometry_ : Geometry
        Of files.
    sizes_ : list of str
        The sizes of the files that were learned from, as "640 x 480".
    layers_, image_size_
        What was used: the layers; height and width of what the network sees.
    tile_, overlap_ : int or None
        Pixels; None without tiles.
    region_ : ndarray, shape (H, W), bool, or None
        What is looked at, in an image of this size.
    n_copies_ : int
        Number of images left out so far as copies of others: a copy would make its original look
        more normal than any new image can be.
    unreadable_ : list of (str, str)
        Name and reason of the files that the last `fit` or `add` left out.
    check_images_, check_names_ : ndarray, shape (n, 3, h, w), uint8, and list of str
        Confirmed defects, on which `check` reports.
    left_out_ : list of (str, float)
        Name and score, in multiples of the median, of what `leave_out_above` left out.
    notes_ : list of str
        How the last call read its folder, and what it left out there.

    Examples
    --------
    >>> import numpy as np
    >>> from pandalib import Inspector, load_backbone
    >>> images = np.random.default_rng(0).integers(90, 99, (20, 3, 64, 64), dtype=np.uint8)
    >>> inspector = Inspector(load_backbone(), progress=False).fit(images[:19])
    >>> images[19, :, 40:, 40:] = 255  # a white corner
    >>> inspector.alarms(images[19:]).tolist()
    [True]
    """

    backbone: Backbone
    _: KW_ONLY
    adapt: str | None = None
    size: int | None = None
    tile: int | None = None
    overlap: int | None = None
    smallest_defect: int | None = None
    region: object = None
    framing: str | None = None
    resize: int | None = None
    method: str = "bank"
    layers: Sequence[str] | None = None
    bank_size: int = 5000
    reweight: bool = False
    leave_out_above: float | None = None
    n_maps: int = 200
    n_images: int = 50
    sigma: float = 4.0
    k: int = 2
    normalise: bool = False
    whiten: bool = False
    false_alarm_rate: float = 0.05
    seed: int = 0
    memory_mb: float = 64.0
    progress: bool = True
    batch_size: int | None = None
    workers: int | None = None

    def fit(
        self, images, y=None, *, recursive: bool = False, skip_unreadable: bool = False
    ) -> Inspector:
        """Learn what is normal. A failure leaves the detector unchanged.

        Parameters
        ----------
        images : images, as above
            Normal images only. In a folder with MVTec's layout, train/good is taken.
        y : ignored
        recursive : bool
            Search subfolders too.
        skip_unreadable : bool
            List files that are not images in `unreadable_`; otherwise ImageError names one.

        Raises
        ------
        ValueError
            Invalid settings; fewer images than the false-alarm rate needs (19 for 0.05).
        """
        fitted = copy.copy(self)
        fitted.prepare()
        images, names, size_of = fitted._open_first(images, recursive)
        if fitted.tile_ is None:
            fitted.image_size_ = tuple(height_and_width(images))
        if math.prod(fitted.image_size_) > storage.MOST_PIXELS:
            raise ValueError(
                f"images become {in_pixels(fitted.image_size_)} pixels: expected at most "
                f"{storage.MOST_PIXELS} in all, as with size=2048; for small defects use tiles."
            )
        fitted.region_ = None
        if self.region is not None:
            fitted.region_ = read_region(self.region, *size_of(0))
            if fitted.tile_ is None and not fitted._inside.any():
                raise ValueError(
                    f"no pixel of the region {self.region!r} is looked at: {fitted.geometry_}."
                )
        if self.leave_out_above is not None:  # then as many as memory holds are looked at
            fitted.n_maps = max(self.n_maps, min(len(images), MOST_LOOKED_AT))
        fitted._learn_first(images, names, size_of, skip_unreadable)
        fitted.n_maps = self.n_maps
        if self.leave_out_above is not None:
            strange = [entry for entry in fitted.strangest(None) if entry[1] > self.leave_out_above]
            if strange:
                out = {name for name, _ in strange}
                kept = [number for number, name in enumerate(names) if name not in out]
                if len(kept) < self._n_needed:
                    raise ValueError(
                        f"leave_out_above={self.leave_out_above:g} leaves {len(out)} of "
                        f"{len(names)} normal images out: expected at least {self._n_needed} to "
                        "remain."
                    )
                images, names, size_of = part_of(images, names, size_of, kept)
                fitted._learn_first(images, names, size_of, skip_unreadable)
                fitted.left_out_ = strange
            elif fitted.n_maps < len(fitted.sample_):
                fitted._learn_first(images, names, size_of, skip_unreadable)
        if self.adapt is not None:
            fitted._adapt(images, names, size_of, skip_unreadable)
        vars(self).update(vars(fitted))
        return self

    def _adapt(self, images, names, size_of, skip_unreadable) -> None:
        """Adapt the network to half of the images, then learn from all of them again."""
        adapting, others = adapted.two_halves(self.groups_, self.seed)
        if len(adapting) < 2 or len(others) < self._n_needed:
            raise ValueError(
                f"adapt={self.adapt!r} sets half of the {len(self.features_)} normal images aside, "
                f"near-duplicates together, and {len(others)} remain for the threshold: expected "
                f"at least {self._n_needed} of them, and 2 to adapt to."
            )
        some = adapting[_sample(len(adapting), adapted.MOST, self.seed)]
        wanted = {self.names_[number] for number in some.tolist()}
        chosen = [number for number, name in enumerate(names) if name in wanted]
        part = part_of(images, names, size_of, chosen)
        batches = self._batches(*part, None, None, "adapt")
        frozen = torch.cat([self.backbone.frozen_features(batch) for _, batch in batches])
        self.backbone_ = adapted.adapt(
            self.backbone, frozen, self.adapt, seed=self.seed, progress=self.progress
        )
        self.adapted_, left_out = adapting, self.left_out_
        self._learn_first(images, names, size_of, skip_unreadable)
        self.left_out_ = left_out

    def _learn_first(self, images, names, size_of, skip_unreadable) -> None:
        self.digests_ = np.empty(0, np.uint64)
        self.features_, self.thumbnails_ = None, None
        self.names_, self.sizes_, self.n_copies_, self.left_out_ = [], [], 0, []
        self.check_images_, self.check_names_ = np.empty((0, 3, *self.image_size_), np.uint8), []
        if self.method == "bank":
            self.places_.begin(self.image_size_)
        self._learn(images, names, size_of, skip_unreadable, rows={}, shapes=None)

    def strangest(self, n: int | None = 5) -> list[tuple[str, float]]:
        """The normal images with the highest scores: name, and score in multiples of the median.

        Each is compared with the others; only those of the sample have a score. None: all of them.
        A defect among the normal images is found here.
        """
        check_fitted(self, "features_")
        relative = self.normal_scores_ / (np.median(self.normal_scores_) or 1)
        order = np.argsort(-relative, kind="stable")[:n]
        return [(self.names_[self.sample_[row]], float(relative[row])) for row in order]

    def add(self, images, *, recursive: bool = False, skip_unreadable: bool = False) -> Inspector:
        """Learn more normal images: with SPADE `fit(A).add(B)` is `fit(A + B)`, up to rounding.

        A memory bank that is full is thinned again, so its patches may be others than those of a
        fit to all images. Parameters and errors as in `fit`.
        """
        check_fitted(self, "features_")
        if self.tile_ is not None:
            raise ValueError("a detector with tiles cannot learn more: fit it again to all images.")
        images, names, size_of = self._open(images, recursive, normal=True)
        fitted = copy.copy(self)
        fitted.left_out_ = []
        fitted.places_ = copy.copy(self.places_)
        if self.method == "bank":  # lists of its own
            fitted.places_.set_bank(self.places_.memory_bank_, self.places_.owners_)
        rows = dict(zip(self.sample_.tolist(), self.pyramids_.rows, strict=True))
        fitted._learn(images, names, size_of, skip_unreadable, rows, self.pyramids_.shapes)
        vars(self).update(vars(fitted))
        return self

    def add_defects(self, images, names: Sequence[str] | None = None) -> Inspector:
        """Keep confirmed defects, so that `check` can say whether the detector finds them.

        They change neither scores nor threshold. Defects that are kept already are passed over.
        """
        check_fitted(self, "features_")
        if self.tile_ is not None:
            raise ValueError("a detector with tiles keeps no defects: their images are too large.")
        images, found, _ = self._open(images, recursive=False)
        kept = dict.fromkeys(map(_digest, self.check_images_))
        new = {_digest(image): number for number, image in enumerate(images[:])}
        learned = [found[new[digest]] for digest in new if digest in set(self.digests_.tolist())]
        if learned:
            raise ValueError(
                f"{learned[0]!r} is one of the normal images that were learned: it cannot be a "
                "defect too; fit again without it."
            )
        new = [number for digest, number in new.items() if digest not in kept]
        names = found if names is None else names
        self.check_images_ = np.concatenate([self.check_images_, *(images[[n]] for n in new)])
        self.check_names_ = [*self.check_names_, *(names[number] for number in new)]
        return self

    def check(self) -> np.ndarray:
        """The scores of the confirmed defects, (n,): those not above `threshold()` are missed."""
        check_fitted(self, "features_")
        return self.score(self.check_images_) if self.check_names_ else np.empty(0)

    def rate_that_finds_all(self) -> float | None:
        """The false-alarm rate whose threshold lies just below all confirmed defects.

        It was chosen by these defects and the normal images, and promises nothing about others.
        None if there are none, or if no rate below 1 does.
        """
        lowest = self.check().min(initial=np.inf)
        rate = float(p_values([lowest], self.normal_scores_)[0])
        rate = math.ceil(1e4 * rate - 1e-6) / 1e4  # as it is typed
        return rate if self.check_names_ and rate < 1 else None

    def prepare(self) -> None:
        """Check the settings, and set what follows from them and from the network."""
        check_counts(n_maps=self.n_maps, n_images=self.n_images, k=self.k)
        self.backbone_, self.adapted_ = self.backbone, np.empty(0, np.int64)
        options = {"method": METHODS, "framing": (None, *FITS), "adapt": (None, *adapted.KINDS)}
        for name, choices in options.items():
            if getattr(self, name) not in choices:
                expected = ", ".join(map(repr, choices))
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {expected}.")
        check_rates(leave_out_above=self.leave_out_above)
        rate = self.false_alarm_rate
        if not 0 < rate < 1 or self.n_maps < _needed(rate):
            raise ValueError(
                f"false_alarm_rate={rate!r}, n_maps={self.n_maps}: expected a rate between 0 and "
                "1, and n_maps of at least 1 / rate - 1."
            )
        size = self.size
        if size is None:
            size = 128 if self.backbone.name == EMBEDDED else self.backbone.size
        self.geometry_ = Geometry.square(size, self.resize, self.framing)
        self._prepare_tiles(size)
        self.layers_ = self.layers
        if self.layers is None:
            self.layers_ = list(self.backbone.map_layers)
            if self.method == "bank":
                self.layers_ = self.layers_[-BANK_LAYERS:]
        shared = dict(layers=self.layers_, sigma=self.sigma, memory_mb=self.memory_mb)
        if self.method == "bank":
            shared |= dict(bank_size=self.bank_size, reweight=self.reweight, seed=self.seed)
            self.places_ = PatchCore(self.backbone, coreset_ratio=1.0, n_parts=BANK_PARTS, **shared)
        else:
            self.places_ = SPADE(self.backbone, n_images=self.n_images, balanced=True, **shared)
        self.places_._check_settings()

    def _prepare_tiles(self, size: int) -> None:
        self.tile_, self.overlap_ = self.tile, self.overlap
        if self.smallest_defect is not None:
            if self.tile is not None:
                raise ValueError("tile and smallest_defect: expected one of them.")
            self.tile_ = tile_side(self.smallest_defect, size)
        if self.tile_ is None:
            if self.overlap is not None:
                raise ValueError(f"overlap={self.overlap} without tile: expected both.")
            return
        if self.overlap is None:
            self.overlap_ = max(self.tile_ // 4, self.smallest_defect or 0)
        tile_boxes(1, 1, self.tile_, self.overlap_)  # raises for what makes no tiles
        if self.method != "bank" or self.reweight or self.geometry_.fit == "crop":
            raise ValueError(
                "tiles need the whole image and a plain memory bank: expected method='bank', "
                "reweight=False and no crop."
            )
        if self.whiten or self.adapt:
            raise ValueError("tiles go without whitening and adaptation: expected none of them.")
        self.image_size_ = (size, size)

    @property
    def read_as(self) -> str:
        """How images are read, for people."""
        if self.tile_ is None:
            return str(self.geometry_)
        grey = str(self.geometry_).partition(", 16-bit")
        size = f"{self.geometry_.width} x {self.geometry_.height} pixels"
        tiles = f"tiles of {self.tile_} pixels that share {self.overlap_}, each as {size}"
        return tiles + grey[1] + grey[2]

    def n_tiles(self, images, *, recursive: bool = False, normal: bool = False) -> int:
        """How many tiles these images have, by the files' headers; 0 without tiles.

        Each costs about what an image costs without tiles, in `fit` twice.
        """
        probe = copy.copy(self)
        if not hasattr(self, "features_"):
            probe.prepare()
        if probe.tile_ is None:
            return 0
        frames = frames_of(images)
        if frames is None:
            images, _ = open_images(images, probe.geometry_, recursive=recursive, normal=normal)
            frames = tiled.sources_of(images)
        return tiled.number_of_tiles(frames, probe.tile_, probe.overlap_)

    def region_of(self, size: tuple[int, int]) -> np.ndarray | None:
        """What is looked at in an image of this height and width, bool (H, W); None: all of it."""
        if self.region_ is None or self.region_.shape == tuple(size):
            return self.region_
        check_proportions(self.region_, *size)
        return Geometry(*size).fit_mask(self.region_)

    @property
    def _inside(self) -> np.ndarray | None:
        """What is looked at, bool (h, w), as the detector sees it: images have its proportions."""
        return None if self.region_ is None else self.geometry_.fit_mask(self.region_)

    def _open_first(self, images, recursive: bool) -> tuple:
        """Normal images, names and sizes; their folder, or the arrays' size, sets the geometry."""
        size = self.geometry_.height
        how = size, self.geometry_.fit, self.geometry_.resize
        frames = frames_of(images)
        if frames is not None:
            self.geometry_ = Geometry.for_images(frames, *how)
            return self._read_frames(frames)
        images, names = open_images(images, size, fit=how[1], recursive=recursive, normal=True)
        self.notes_ = notes_of(images)
        if isinstance(images, ImageFolder) and self.resize is not None:
            geometry = Geometry.for_images(images.files, *how)
            images = ImageFolder(images.files, geometry, images.listing)
        self.geometry_ = getattr(images, "geometry", None) or Geometry(*height_and_width(images))
        return images, names, sizes_of(images)

    def _open(
        self, images, recursive: bool, normal: bool = False
    ) -> tuple[Sequence, list[str], Callable[[int], tuple[int, int]]]:
        """Images, names, and a function from number to the original's height and width."""
        frames = frames_of(images)
        if frames is not None:
            return self._read_frames(frames)
        images, names = open_images(images, self.geometry_, recursive=recursive, normal=normal)
        if self.tile_ is None:
            self._check_size(images)
        self.notes_ = notes_of(images)
        return images, names, sizes_of(images)

    def _read_frames(self, frames: list) -> tuple:
        self.notes_ = []
        names = [f"image {number}" for number in range(len(frames))]
        sizes = [upright_size(frame)[::-1] for frame in frames]
        if self.tile_ is None:
            frames = np.stack([self.geometry_.read(frame) for frame in frames])
        return frames, names, sizes.__getitem__

    def _learn(self, images, names, size_of, skip_unreadable, rows, shapes) -> None:
        """Go once through more normal images, then compare each of the sample with the others.

        `rows` and `shapes` are the pyramids of the sample so far. An image that leaves the sample
        never returns to it, so its pyramid can be dropped at once.
        """
        self.unreadable_ = []
        unreadable = self.unreadable_ if skip_unreadable else None
        if self.tile_ is not None:
            raw = tiled.learn(self, images, names, unreadable, _digest)
            self._set_scales(raw)
            return
        features, small = [], []
        if self.features_ is not None:
            features, small = [self.features_], [self.thumbnails_]
        known, sizes = list(self.names_), set(self.sizes_)
        digests = dict.fromkeys(self.digests_.tolist())
        defects = set(map(_digest, self.check_images_))
        for numbers, batch in self._batches(images, names, size_of, None, unreadable, "features"):
            n_before = len(digests)
            new = []
            for row, image in enumerate(batch):
                digest = _digest(image)
                if digest in defects:
                    raise ValueError(
                        f"{names[numbers[row]]!r} was confirmed as a defect before: it cannot be "
                        "normal too; fit again without that review."
                    )
                if digest in digests:
                    self.n_copies_ += 1
                else:
                    digests[digest] = None
                    new.append(row)
                    known.append(names[numbers[row]])
                    sizes.add(in_pixels(size_of(numbers[row])))
            if not new:
                continue
            pyramids = Pyramids.of(self.backbone_, batch[new], self.layers_, dtype=np.float32)
            shapes = pyramids.shapes
            features.append(pyramids.pooled.copy())  # a view would keep all of the pyramids
            small.append(thumbnails(batch[new]))
            if self.method == "bank":
                self.places_.learn(patches_of(pyramids.maps()), range(n_before, len(digests)))
            sample = self._sampled(len(digests)).tolist()
            with np.errstate(over="raise"):  # beyond the largest float16
                rows = {
                    number: rows[number]
                    if number < n_before
                    else pyramids.rows[number - n_before].astype(np.float16)
                    for number in sample
                }
        self.digests_, self.names_ = np.array(list(digests), np.uint64), known
        self.sizes_ = sorted(sizes)
        self._check_enough()
        self.features_, self.thumbnails_ = np.concatenate(features), np.concatenate(small)
        self._group()
        self.sample_, rows = np.array(list(rows), np.int64), np.stack(list(rows.values()))
        if self.method == "bank":
            self.places_.finish()
        self.build(Pyramids(rows, shapes))
        self._set_scales(self._leave_one_out())

    def _set_scales(self, raw: dict[str, np.ndarray]) -> None:
        self.scales_ = {part: _scale(values) for part, values in raw.items()}
        self.normal_parts_ = {part: raw[part] / self.scales_[part] for part in PARTS}

    def _leave_one_out(self) -> dict[str, np.ndarray]:
        """Both parts of the sample's scores, each image without itself and its near-duplicates."""
        gallery, twins = self.knn_.gallery_, others_of_group(self.groups_, self.sample_)
        if self.whiten:  # the image leaves mean and covariance, too
            copies = others_of_group(self.groups_, range(len(gallery)))
            whole = whitened_leave_one_out_scores(gallery, self.knn_.whitening_, self.k, copies)
            whole = whole[self.sample_]
        else:
            whole = scores_without(gallery, self.sample_, twins, self.k)
        places = [scores for _, scores in self._compared()]
        return {"image": whole, "place": np.concatenate(places)}

    def _compared(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield maps (n, h, w) and raw scores (n,) of the sample, as `_leave_one_out` has them."""
        if self.method == "bank":
            each = bar(range(len(self.sample_)), "leave one out", shown=self.progress, log=True)
            for row in each:
                yield self._places(self.pyramids_[[row]], self._left_out(row))
            return
        row_of = {number: row for row, number in enumerate(self.sample_.tolist())}
        twins = others_of_group(self.groups_, self.sample_)
        copies = [[row_of[number] for number in one.tolist() if number in row_of] for one in twins]
        inside = self._inside
        for maps in self.places_.iter_leave_one_out_maps(copies=copies, progress=self.progress):
            maps = maps if inside is None else np.where(inside, maps, np.float32(0))
            yield maps, image_scores(maps)

    def _sampled(self, n: int) -> np.ndarray:
        """Which of n images to sample, none of those that the network was adapted to."""
        return _sample(n, self.n_maps, self.seed, without=self.adapted_)

    def _left_out(self, row: int) -> list[int]:
        """The numbers of an image of the sample and, after it, of its near-duplicates."""
        number = int(self.sample_[row])
        return [number, *others_of_group(self.groups_, [number])[0].tolist()]

    def _places(self, pyramids: Pyramids, left_out=()) -> tuple[np.ndarray, np.ndarray]:
        """Maps and raw scores of images by their pyramids; maps are 0 outside the region."""
        if self.method == "bank":
            maps, scores = self.places_.maps_and_scores(patches_of(pyramids.maps()), left_out)
        else:
            maps = self.places_.maps_of(pyramids)
            scores = image_scores(maps)
        if (inside := self._inside) is not None:
            whole = image_scores(maps)
            maps = np.where(inside, maps, np.float32(0))
            # With reweighting a score is a multiple of the largest value.
            scores = scores * image_scores(maps) / np.where(whole > 0, whole, 1)
        return maps, scores

    @property
    def _n_needed(self) -> int:
        """How many different normal images threshold and kNN need."""
        return max(_needed(self.false_alarm_rate), self.k + 1)

    def _group(self) -> None:
        """Find near-duplicates. Raises ValueError if too few different images are left."""
        self.groups_, n_close = near_duplicates(self.thumbnails_)
        if 2 * n_close > len(self.groups_):
            note = (
                f"{n_close} of {len(self.groups_)} normal images are nearly the same as others, "
                "as parts of one kind are, or frames of a film; if they are frames, and new images "
                "show other scenes, far more of these will alarm than promised: fit with one image "
                "of each scene"
            )
            self.notes_ = [*(one for one in self.notes_ if "frames of a film" not in one), note]
        n, n_groups = len(self.groups_), int(self.groups_.max()) + 1
        if n_groups < self._n_needed:
            raise ValueError(
                f"{n} normal images are {n_groups} different ones and their near-duplicates: a "
                f"false-alarm rate of {self.false_alarm_rate:g} needs at least {self._n_needed} "
                "different ones."
            )

    def near_duplicates(self) -> list[list[str]]:
        """The names of near-duplicates among the normal images, by group."""
        check_fitted(self, "features_")
        groups: dict[int, list[str]] = {}
        for name, group in zip(self.names_, self.groups_.tolist(), strict=True):
            groups.setdefault(group, []).append(name)
        return [names for names in groups.values() if len(names) > 1]

    def _check_enough(self) -> None:
        n = len(self.digests_)
        if n < self._n_needed:
            raise ValueError(
                f"{counted(n, 'normal image')}, {counted(self.n_copies_, 'copy', 'copies')} and "
                f"{counted(len(self.unreadable_), 'unreadable file')} left out: a false-alarm rate "
                f"of {self.false_alarm_rate:g} with k={self.k} needs at least {self._n_needed}."
            )

    def build(self, pyramids: Pyramids, scales: np.ndarray | None = None) -> None:
        """Fit both detectors; `scales` as for `SPADE.fit_pyramids`. A bank is there already."""
        self.knn_ = KNN(self.k, normalise=self.normalise, whiten=self.whiten).fit(self.features_)
        self.pyramids_ = pyramids
        if self.method == "spade":
            spade = copy.copy(self.places_)
            self.places_ = spade.fit_pyramids(pyramids, self.image_size_, scales=scales)

    @property
    def normal_scores_(self) -> np.ndarray:
        return larger_part(self.normal_parts_)

    def threshold(self, rate: float | None = None) -> float:
        """The score, and the value of a map, above which to raise an alarm.

        `rate` is a false-alarm rate; None: the detector's own. Raises ValueError for a rate that
        needs more normal images: 1 / rate - 1.
        """
        check_fitted(self, "features_")
        rate = self.false_alarm_rate if rate is None else rate
        n, n_normal = len(self.sample_), len(self.features_) - len(self.adapted_)
        if 0 < rate < 1 and n < min(n_normal, _needed(rate)):
            raise ValueError(
                f"a false-alarm rate of {rate:g} needs the scores of {_needed(rate)} normal "
                f"images, and this detector has those of {n} (n_maps) among {n_normal}: fit it "
                f"with n_maps={_needed(rate)} or more."
            )
        return threshold_at(self.normal_scores_, rate)

    def score(self, images, *, recursive: bool = False) -> np.ndarray:
        """Anomaly scores, float64 (n,): higher = more anomalous, above `threshold()` an alarm."""
        return larger_part(self.parts(images, recursive=recursive))

    def parts(self, images, *, recursive: bool = False) -> dict[str, np.ndarray]:
        """Both parts of the scores, (n,) each.

        "image": is it another kind of thing? "place": is something wrong somewhere?
        """
        found = [seen.parts for seen in self.inspect(images, recursive=recursive)]
        return {part: np.array([parts[part] for parts in found]) for part in PARTS}

    def maps(self, images, *, recursive: bool = False) -> np.ndarray:
        """Anomaly maps, float32 (n, h, w), as the detector sees the images: above `threshold()` an
        alarm. `restored` lays one on its image.
        """
        return np.stack([seen.map for seen in self.inspect(images, recursive=recursive)])

    def restored(self, seen: Seen | Finding) -> np.ndarray:
        """The map in the original's pixels, float32 (H, W); NaN where a crop did not look."""
        if seen.size == seen.map.shape:
            return seen.map
        return self.geometry_.restore(seen.map, *seen.size)

    def alarms(self, images, *, rate: float | None = None, recursive: bool = False) -> np.ndarray:
        """Which images raise an alarm, bool (n,)."""
        threshold = self.threshold(rate)  # first, since it may raise
        return self.score(images, recursive=recursive) > threshold

    def inspect(
        self, images, *, recursive: bool = False, unreadable: list | None = None
    ) -> Iterator[Seen]:
        """Yield what is seen of each image: memory does not grow with the number of images.

        `unreadable` collects name and reason of each file that is not an image; None: ImageError.
        """
        check_fitted(self, "features_")
        images, names, size_of = self._open(images, recursive)
        known = set(self.digests_.tolist())
        if self.tile_ is not None:
            for name, image, raw, whole, pixels in tiled.inspect(self, images, names, unreadable):
                parts = {part: raw[part] / self.scales_[part] for part in PARTS}
                whole = whole / np.float32(self.scales_["place"])
                yield Seen(name, image, parts, whole, whole.shape, _digest(pixels) in known)
            return
        step = self.places_._images_at_once()
        for numbers, batch in self._batches(images, names, size_of, step, unreadable, "score"):
            pyramids = Pyramids.of(self.backbone_, batch, self.layers_, dtype=np.float32)
            maps, places = self._places(pyramids)
            raw = {"image": self.knn_.score(pyramids.pooled), "place": places}
            parts = {part: raw[part] / self.scales_[part] for part in PARTS}
            maps = maps / np.float32(self.scales_["place"])
            for row, number in enumerate(numbers):
                image, size = batch[row], tuple(size_of(number))
                own = {part: float(values[row]) for part, values in parts.items()}
                yield Seen(names[number], image, own, maps[row], size, _digest(image) in known)

    def rank(
        self,
        images,
        *,
        top: int = 50,
        rate: float | None = None,
        recursive: bool = False,
        skip_unreadable: bool = False,
        on_image: Callable[[Seen], None] | None = None,
    ) -> Ranking:
        """Score images and keep the `top` most anomalous of them, with their maps.

        With `skip_unreadable` the ranking lists files that are not images; otherwise ImageError
        names one. `rate` is that of the threshold for regions. `on_image` is called with what is
        seen of each image. Raises ValueError if no file could be read.
        """
        unreadable: list[tuple[str, str]] = []
        found = self.inspect(
            images, recursive=recursive, unreadable=unreadable if skip_unreadable else None
        )
        return self._ranked(found, top, rate, unreadable, on_image)

    def rank_normal(self, images, *, top: int = 50, recursive: bool = False) -> Ranking:
        """Rank the normal images, each compared with the others: is one of them a defect?

        `images` as they were given to `fit`, since a detector does not keep them. The ranking holds
        those of the sample whose pixels are still the same. Raises ValueError if there are none.
        """
        check_fitted(self, "features_")
        unreadable = list(self.unreadable_)
        found = self._inspect_normal(images, recursive, unreadable)
        return self._ranked(found, top, None, unreadable, None)

    def _inspect_normal(self, images, recursive: bool, unreadable: list) -> Iterator[Seen]:
        """Yield what is seen of the sample's images, each compared with the others."""
        images, names, size_of = self._open(images, recursive, normal=True)
        sample = self.sample_.tolist()
        wanted = {self.names_[number] for number in sample}  # after `add` a name can occur twice
        chosen = [number for number, name in enumerate(names) if name in wanted]
        part = part_of(images, names, size_of, chosen)
        row_of = {int(self.digests_[number]): row for row, number in enumerate(sample)}
        row = None
        for row, name, image, whole, size in self._read_again(*part, row_of, unreadable):
            parts = {part: float(self.normal_parts_[part][row]) for part in PARTS}
            yield Seen(name, image, parts, whole / np.float32(self.scales_["place"]), size, True)
        if row is None:
            raise ValueError(
                "none of these images is one of the normal images that set the threshold: expected "
                "the images that were given to `fit`, unchanged."
            )

    def _read_again(self, images, names, size_of, row_of, unreadable) -> Iterator[tuple]:
        """Yield row of the sample, name, picture, raw map and size of images that are in it.

        `row_of` goes from the digest of an image's pixels to its row.
        """
        if self.tile_ is not None:

            def others(pixels):
                row = row_of.get(_digest(pixels))
                return () if row is None else self._left_out(row)

            found = tiled.inspect(self, images, names, unreadable, others)
            for name, image, _, whole, pixels in found:
                if (row := row_of.get(_digest(pixels))) is not None:
                    yield row, name, image, whole, whole.shape
            return
        maps = np.concatenate([maps for maps, _ in self._compared()])
        for numbers, batch in self._batches(images, names, size_of, None, unreadable, "read again"):
            for number, image in zip(numbers, batch, strict=True):
                if (row := row_of.get(_digest(image))) is not None:
                    yield row, names[number], image, maps[row], tuple(size_of(number))

    def _ranked(self, found, top: int, rate: float | None, unreadable, on_image) -> Ranking:
        check_counts(top=top)
        threshold = self.threshold(rate)
        names, parts, peaks, regions, best, known = [], [], [], [], [], []
        n_regions: list[int] = []
        sizes: dict[str, None] = {}
        for number, seen in enumerate(found):
            if on_image is not None:
                on_image(seen)
            if len(best) < top or seen.score > best[-1][0]:
                # Copies, since a view would keep the batch.
                kept = self._finding(number, seen)
                best.append((seen.score, kept))
                best.sort(key=lambda entry: (-entry[0], entry[1].number))
                del best[top:]
            names.append(seen.name)
            parts.append(seen.parts)
            peaks.append(self._peak(seen))
            hot = seen.map.max() > threshold
            above = regions_above(self.restored(seen), threshold) if hot else []
            regions.append(above[:MOST_REGIONS])
            n_regions.append(len(above))
            known += [seen.name] if seen.fitted else []
            sizes[in_pixels(seen.size)] = None
        if not names:
            name, reason = unreadable[0]
            raise ValueError(
                f"{counted(len(unreadable), 'file')} and no image, {name!r} first: {reason}."
            )
        parts = {part: np.array([one[part] for one in parts]) for part in PARTS}
        return Ranking(
            names,
            parts,
            np.stack(peaks),
            [kept for _, kept in best],
            unreadable,
            p_values(larger_part(parts), self.normal_scores_),
            regions,
            n_regions,
            known,
            [size for size in sizes if self.sizes_ and size not in self.sizes_],
        )

    def _finding(self, number: int, seen: Seen) -> Finding:
        if self.tile_ is None:
            return Finding(number, seen.image.copy(), seen.map.copy(), seen.size)
        size = seen.image.shape[1:]  # a map of the original's size would be too large to keep
        return Finding(number, seen.image, tiled.small_map(seen.map, *size), size)

    def _peak(self, seen: Seen) -> np.ndarray:
        """Row and column in the original, 0 to 1, where the map is largest."""
        if seen.map.shape == seen.size:
            flat = seen.map.argmax()
            return (np.array(np.unravel_index(flat, seen.size)) + 0.5) / seen.size
        factor = min(1, max(seen.map.shape) / max(seen.size))
        height, width = (max(1, round(side * factor)) for side in seen.size)
        small = self.restored(seen._replace(size=(height, width)))
        flat = np.nan_to_num(small, nan=-np.inf).argmax()
        return (np.array(np.unravel_index(flat, small.shape)) + 0.5) / small.shape

    def _batches(
        self, images, names, size_of, step: int | None, unreadable: list | None, text: str
    ) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        """Yield numbers and images; files that are not images go to `unreadable`; None: raise.

        What is outside the region of interest is painted over.
        """
        step = min(step or math.inf, max(1, PIXELS_PER_BATCH // math.prod(self.image_size_)))
        step = self.batch_size or step
        inside = self._inside
        for numbers, batch in self._readable(images, names, step, unreadable, text):
            if inside is not None:
                for size in {tuple(size_of(number)) for number in numbers}:
                    self.region_of(size)  # raises for other proportions
                batch = np.where(inside, batch, np.uint8(tiled.PAINT))
            yield numbers, batch

    def _readable(self, images, names, step, unreadable, text) -> Iterator[tuple]:
        total = -(-len(images) // step)
        if not isinstance(images, LazyImages):
            for start in bar(range(0, len(images), step), text, shown=self.progress, log=True):
                batch = np.asarray(images[start : start + step])
                yield range(start, start + len(batch)), batch
            return
        batches = images.iter_readable(step, workers=self.workers)
        for numbers, batch, errors in bar(
            batches, text, total=total, shown=self.progress, log=True
        ):
            for number, error in errors.items():
                if unreadable is None:
                    raise error
                unreadable.append((names[number], error.cause))
            if numbers:
                yield numbers, batch

    def _check_size(self, images) -> None:
        given, expected = [height_and_width(images)], [self.image_size_]
        if isinstance(images, ImageFolder):
            given.append(str(images.geometry))
            expected.append(str(self.geometry_))
        if given != expected:
            raise ValueError(
                f"images have height and width {given[0]}, and files {given[1:]}: expected "
                f"{expected[0]} and {expected[1:]}, as the normal images."
            )

    def save(self, folder) -> None:
        """Write the detector into a new or an empty folder, or over a detector, without pickle.

        Raises FileExistsError for a folder that holds something else, OSError if it cannot be
        written; an earlier detector is then still there.
        """
        storage.save(self, folder)

    @classmethod
    def load(
        cls, folder, *, weights=None, backbone: Backbone | None = None, device=None
    ) -> Inspector:
        """Read a detector.

        Parameters
        ----------
        folder : path
        weights : path, optional
            The file of the network's weights, if it has moved; checked by its hash.
        backbone : Backbone, optional
            The network itself, if it was adapted or built by hand.
        device : str, optional
            Where the network runs; None: a GPU if there is one.

        Raises
        ------
        FileNotFoundError, ValueError
            Naming the file: no detector, a damaged one, another version, other weights.
        """
        return storage.load(cls, folder, weights=weights, backbone=backbone, device=device)


def _sample(n: int, n_maps: int, seed: int, without: Sequence[int] = ()) -> np.ndarray:
    """Which of n images to sample: those with the smallest of n random keys, in ascending order.

    The key of an image depends only on seed and number, so an image that left the sample never
    returns, and images can be added at any time. The raw stream of a generator is the same in
    every version of numpy.
    """
    order = np.argsort(np.random.Philox(seed).random_raw(n), kind="stable")
    return np.sort(order[~np.isin(order, without)][:n_maps])


def _digest(image: np.ndarray) -> int:
    digest = hashlib.blake2b(np.ascontiguousarray(image), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _scale(values: np.ndarray) -> float:
    """The value that one image in ten exceeds; if it is 0 the mean; if that is 0, 1.

    With the median in its place, the part that varies more would hide the other.
    """
    return float(np.quantile(values, 0.9)) or float(values.mean()) or 1.0


def _needed(rate: float) -> int:
    """Number of normal images that `threshold_at` needs for a rate."""
    return math.ceil(1 / rate - 1 - 1e-9)
