"""A detector for your own images: normal photographs in; scores, heat maps and alarms out.

Each image x is scored in two ways, since an anomaly may be another kind of object, or a small fault
in the right object:

    image(x) = DN2: squared distances of the pooled feature to the k nearest of all normal images
               (`pandalib.methods.knn`)
    place(x) = the largest value of a map, by a memory bank (`pandalib.methods.patchcore`) or by
               correspondences with similar images (`pandalib.methods.spade`)

Each part is divided by the value that one normal image in ten exceeds when compared with the
others, so that both have the same scale. The score is the larger of the two. One threshold, from
the leave-one-out scores of the normal images, serves scores and maps; near-duplicates are left out
together (`pandalib.inspection.duplicates`).

The whole of each image is seen, at one height and width for a folder. Memory is bounded. Images are
read once, in batches; all pooled features are kept, 4 d bytes each, and the rows from which maps
are made for a random sample of the images only.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.base import BaseEstimator

from pandalib.backbones import PIXELS_PER_BATCH, Backbone
from pandalib.datasets.folder import open_images
from pandalib.datasets.images import Geometry, ImageFolder, LazyImages, take, upright_size
from pandalib.datasets.region import check_proportions, read_region
from pandalib.inspection import storage
from pandalib.inspection.duplicates import leave_group_out, near_duplicates, thumbnails
from pandalib.inspection.places import PLACES
from pandalib.inspection.regions import Region, find_regions
from pandalib.methods.distances import height_and_width, image_scores
from pandalib.methods.knn import KNN
from pandalib.metrics import threshold_at
from pandalib.progress import progress as bar
from pandalib.validation import check_counts, check_fitted
from pandalib.weights import EMBEDDED

PARTS = ("image", "place")
OUTSIDE = 128  # the grey of what lies outside a region of interest


class Finding(NamedTuple):
    """One of the most anomalous images of a ranking."""

    number: int  # its row in the ranking
    image: np.ndarray  # uint8 (3, H, W)
    map: np.ndarray  # float32 (H, W)


class Ranking(NamedTuple):
    """The scores of all images in the given order, and the most anomalous images with maps."""

    names: list[str]
    parts: dict[str, np.ndarray]  # "image" and "place", (n,) each
    peaks: np.ndarray  # (n, 2), where each map is largest: row and column, 0 to 1
    top: list[Finding]  # highest score first
    unreadable: list[tuple[str, str]]  # name and reason
    regions: list[list[Region]]  # of each image, above the threshold
    n_known: int = 0  # images that the detector was fitted to
    other_sizes: tuple[str, ...] = ()  # of files, in pixels: sizes that no normal one had

    @property
    def scores(self) -> np.ndarray:
        return larger_part(self.parts)

    @property
    def order(self) -> np.ndarray:
        """Rows from the highest score to the lowest; ties in the given order."""
        return np.argsort(-self.scores, kind="stable")


class Inspector(BaseEstimator):
    """From normal images to a detector that scores, shows where, and raises alarms.

    Images are always a folder, a file, a list of files, or anything that
    `pandalib.validation.as_images` takes, for example uint8 (N, 3, H, W).

    Parameters
    ----------
    backbone : Backbone
        The pretrained network, which is not adapted.
    size : int or None
        Files are read at about size x size pixels; None: 128 for the embedded network, the
        network's own for others. Arrays keep their own size.
    framing : {"stretch", "pad", "crop"}
        How files of several proportions become one size, as in
        `pandalib.datasets.images.Geometry`; "crop" sees the central square only.
    resize : int or None
        For "crop": the shorter side before it.
    region : path, str, sequence of (x, y) or None
        The part of every image that is looked at, as for `pandalib.datasets.region.read_region`, in
        pixels of the first normal image; the others need its proportions.
    place : {"bank", "spade"}
        What makes the maps.
    layers : sequence of str or None
        For the maps; None: those of the network, for a bank the last two of them.
    bank_size : int
        At most this many patches in the bank.
    n_maps : int
        Largest number of normal images, drawn with `seed`, whose scores give the threshold. A
        false-alarm rate r needs 1 / r - 1 of them. SPADE compares with these alone.
    n_images, sigma, memory_mb
        As for `pandalib.SPADE`.
    k, normalise
        Of DN2, as for `pandalib.KNN`.
    false_alarm_rate : float
        Fraction of normal images that may raise an alarm.
    leave_out_above : float or None
        Leave out normal images that score more than this many times the median of the normal ones:
        defects that slipped in. None: leave out none.
    seed : int
    progress : bool

    Attributes
    ----------
    features_ : ndarray, shape (N, d), float32
        Of all normal images.
    thumbnails_ : ndarray, shape (N, 768), float32
        Of all normal images, for finding near-duplicates.
    groups_ : ndarray, shape (N,), int64
        Images of one group are near-duplicates.
    sample_ : ndarray, shape (M,), int64
        Numbers of the images whose scores give the threshold, ascending.
    knn_, place_ : KNN, BankPlaces or SpadePlaces
        The two detectors.
    scales_ : dict of str to float
        What each part, "image" and "place", is divided by.
    normal_parts_, normal_scores_ : dict of str to ndarray (M,), ndarray (M,)
        Of the sample, each image compared with the others.
    layers_, geometry_, image_size_
        What was used: the layers, the geometry of files, and height and width of all images.
    region_ : ndarray, shape (H, W), bool, or None
        What is looked at in an image of this size.
    sizes_ : list of str
        The sizes of the files that were learned from, as "640 x 480".
    n_copies_ : int
        Number of images left out so far as copies of others: a copy would make its original look
        more normal than any new image can be.
    unreadable_ : list of (str, str)
        Name and reason of the files that the last `fit` or `add` left out.
    names_ : list of str
        Of the images of the last `fit` or `add` that were learned from, in the order of their
        numbers.
    strange_ : list of (str, float)
        Names and scores of the normal images that `leave_out_above` left out.

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

    def __init__(
        self,
        backbone: Backbone,
        *,
        size: int | None = None,
        framing: str = "stretch",
        resize: int | None = None,
        region=None,
        place: str = "bank",
        layers: Sequence[str] | None = None,
        bank_size: int = 5000,
        n_maps: int = 200,
        n_images: int = 50,
        sigma: float = 4.0,
        k: int = 2,
        normalise: bool = False,
        false_alarm_rate: float = 0.05,
        leave_out_above: float | None = None,
        seed: int = 0,
        memory_mb: float = 64.0,
        progress: bool = True,
    ):
        self.backbone = backbone
        self.size = size
        self.framing = framing
        self.resize = resize
        self.region = region
        self.place = place
        self.layers = layers
        self.bank_size = bank_size
        self.n_maps = n_maps
        self.n_images = n_images
        self.sigma = sigma
        self.k = k
        self.normalise = normalise
        self.false_alarm_rate = false_alarm_rate
        self.leave_out_above = leave_out_above
        self.seed = seed
        self.memory_mb = memory_mb
        self.progress = progress

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
        size = fitted.prepare()
        images, names = open_images(
            images, size, fit=self.framing, resize=self.resize, recursive=recursive, normal=True
        )
        height, width = fitted.image_size_ = height_and_width(images)
        fitted.geometry_ = getattr(images, "geometry", Geometry(height, width))
        fitted.digests_, fitted.sizes_ = np.empty(0, np.uint64), []
        fitted.region_ = None
        if self.region is not None:
            fitted.region_ = read_region(self.region, *_size_of(images, 0))
        fitted.n_copies_, fitted.strange_ = 0, []
        fitted._learn(images, names, skip_unreadable)
        if self.leave_out_above is not None:
            strange = dict(fitted.strangest(limit=self.leave_out_above))
            if strange:
                again = copy.copy(self).set_params(leave_out_above=None)
                kept = [number for number, name in enumerate(names) if name not in strange]
                again.fit(take(images, kept), skip_unreadable=skip_unreadable)
                again.strange_, again.leave_out_above = list(strange.items()), self.leave_out_above
                again.n_copies_ = fitted.n_copies_
                fitted = again
        vars(self).update(vars(fitted))
        return self

    def add(self, images, *, recursive: bool = False, skip_unreadable: bool = False) -> Inspector:
        """Learn more normal images. With SPADE `fit(A).add(B)` is `fit(A + B)`, up to rounding.

        A memory bank does not keep the patches of earlier images, so their scores stay what they
        were, and its choice of patches may differ. Parameters and errors as in `fit`.
        """
        check_fitted(self, "features_")
        images, names = open_images(images, self.geometry_, recursive=recursive, normal=True)
        self._check_size(images)
        fitted = copy.copy(self)
        fitted.place_ = copy.copy(self.place_)  # self stays as it is if this fails
        fitted.place_.detector = copy.copy(self.place_.detector)
        fitted._learn(images, names, skip_unreadable)
        vars(self).update(vars(fitted))
        return self

    def prepare(self) -> int:
        """Check the settings, set what follows from them and from the network; return the size."""
        check_counts(n_maps=self.n_maps, n_images=self.n_images, k=self.k, bank_size=self.bank_size)
        rate = self.false_alarm_rate
        if not 0 < rate < 1 or self.n_maps < _needed(rate):
            raise ValueError(
                f"false_alarm_rate={rate!r}, n_maps={self.n_maps}: expected a rate between 0 and "
                "1, and n_maps of at least 1 / rate - 1."
            )
        if self.place not in PLACES:
            raise ValueError(f"place={self.place!r}: expected {' or '.join(map(repr, PLACES))}.")
        if self.leave_out_above is not None and not self.leave_out_above > 1:
            raise ValueError(f"leave_out_above={self.leave_out_above!r}: expected above 1.")
        size = self.size
        if size is None:
            size = 128 if self.backbone.name == EMBEDDED else self.backbone.size
        Geometry.square(size, self.resize, self.framing)  # raises for a wrong one
        own = self.backbone.map_layers
        self.layers_ = own[-2:] if self.place == "bank" else own
        if self.layers is not None:
            self.layers_ = self.layers
        how = vars(self)
        how = {name: how[name] for name in ("bank_size", "n_images", "sigma", "memory_mb", "seed")}
        self.place_ = PLACES[self.place](self.backbone, self.layers_, **how)
        return size

    def _learn(self, images, names, skip_unreadable) -> None:
        """Go once through more normal images, then compare each of the sample with the others.

        An image that leaves the sample never returns to it, so its row can be dropped at once.
        """
        self.unreadable_, self.names_ = [], []
        features, small = [], []
        if len(self.digests_):
            features, small = [self.features_], [self.thumbnails_]
        rows = self._rows_so_far()
        digests, sizes = dict.fromkeys(self.digests_.tolist()), set(self.sizes_)
        n_old = len(digests)
        step = max(1, PIXELS_PER_BATCH // math.prod(self.image_size_))
        batches = _batches(images, names, step, self.unreadable_ if skip_unreadable else None)
        for numbers, batch in bar(batches, "features", shown=self.progress):
            batch = self._only_region(batch, [_size_of(images, number) for number in numbers])
            n_before = len(digests)
            new = []
            for row, image in enumerate(batch):
                digest = _digest(image)
                if digest in digests:
                    self.n_copies_ += 1
                else:
                    digests[digest] = None
                    new.append(row)
                    sizes.add("{1} x {0}".format(*_size_of(images, numbers[row])))
                    self.names_.append(names[numbers[row]])
            if not new:
                continue
            pooled, own = self.place_.extract(batch[new])
            features.append(pooled)
            small.append(thumbnails(batch[new]))
            self.place_.see(own, range(n_before, len(digests)))
            sample = _sample(len(digests), self.n_maps, self.seed).tolist()
            with np.errstate(over="raise"):  # beyond the largest float16
                rows = {
                    number: rows[number]
                    if number < n_before
                    else own[number - n_before].astype(np.float16)
                    for number in sample
                    if number in rows or number >= n_before
                }
        self.digests_, self.sizes_ = np.array(list(digests), np.uint64), sorted(sizes)
        self._check_enough()
        if len(digests) > n_old:  # else all were copies
            self.features_, self.thumbnails_ = np.concatenate(features), np.concatenate(small)
            self._compare(rows, n_old)

    def _only_region(self, batch: np.ndarray, sizes: list[tuple[int, int]]) -> np.ndarray:
        """Images of these original heights and widths, with all but the region in grey."""
        if self.region_ is None:
            return batch
        for size in set(sizes):
            check_proportions(self.region_, *size)
        return np.where(self._outside, np.uint8(OUTSIDE), batch)

    def _looked_at(self, maps: np.ndarray) -> np.ndarray:
        """Maps (n, H, W) that are 0 outside of the region."""
        return maps if self.region_ is None else np.where(self._outside, np.float32(0), maps)

    @property
    def _outside(self) -> np.ndarray:
        """The pixels outside of the region, bool (H, W), as the detector sees images."""
        return ~self.geometry_.fit_mask(self.region_)

    def _rows_so_far(self) -> dict[int, np.ndarray]:
        """The rows of the sample that a detector still has: SPADE keeps them, a bank does not."""
        if self.place != "spade" or not len(self.digests_):
            return {}
        return dict(zip(self.sample_.tolist(), self.place_.detector.normal_.rows, strict=True))

    def _compare(self, rows: dict[int, np.ndarray], n_old: int) -> None:
        """Fit both detectors; compare each of the sample with the images of other groups.

        A bank does not keep the rows of the `n_old` images of earlier fits: their maps' scores stay
        what they were.
        """
        earlier = {}
        if n_old:
            place = self.normal_parts_["place"] * self.scales_["place"]
            earlier = dict(zip(self.sample_.tolist(), place.tolist(), strict=True))
        self.sample_ = _sample(len(self.features_), self.n_maps, self.seed)
        self.groups_ = near_duplicates(self.thumbnails_)
        self._check_enough(int(self.groups_.max()) + 1)
        numbers = np.array(list(rows), np.int64)
        known, groups = np.array(list(rows.values())), self.groups_
        if self.place == "spade":
            self.place_.learn(known, groups[numbers], self.image_size_)
        else:
            self.place_.learn(known, groups, self.image_size_)
        self._fit_knn()
        maps = bar(
            self.place_.maps_without(known, numbers, groups), "leave one out", shown=self.progress
        )
        scores = [score for one in maps for score in image_scores(self._looked_at(one))]
        found = dict(zip(numbers.tolist(), scores, strict=True))
        raw = {
            "image": leave_group_out(self.knn_.gallery_, groups, self.sample_, self.k),
            "place": np.array(
                [found.get(one, earlier.get(one)) for one in self.sample_.tolist()], np.float64
            ),
        }
        self.scales_ = {part: _scale(values) for part, values in raw.items()}
        self.normal_parts_ = {part: raw[part] / self.scales_[part] for part in PARTS}

    def _fit_knn(self) -> None:
        self.knn_ = KNN(self.k, normalise=self.normalise).fit(self.features_)

    def _check_enough(self, n_groups: int | None = None) -> None:
        n = len(self.digests_)
        needed = max(_needed(self.false_alarm_rate), self.k + 1)
        if n < needed:
            raise ValueError(
                f"{counted(n, 'normal image')}, {counted(self.n_copies_, 'copy', 'copies')} and "
                f"{counted(len(self.unreadable_), 'unreadable file')} left out: a false-alarm rate "
                f"of {self.false_alarm_rate:g} with k={self.k} needs at least {needed}."
            )
        if n_groups is not None and n_groups < needed:
            raise ValueError(
                f"{n} normal images are {n_groups} different ones and their near-duplicates: a "
                f"false-alarm rate of {self.false_alarm_rate:g} needs at least {needed} different "
                "ones."
            )

    def near_duplicates(self) -> list[list[str]]:
        """The names of near-duplicates among the images of the last `fit` or `add`, by group."""
        check_fitted(self, "features_")
        first = len(self.features_) - len(self.names_)
        groups: dict[int, list[str]] = {}
        for name, group in zip(self.names_, self.groups_[first:].tolist(), strict=True):
            groups.setdefault(group, []).append(name)
        return [names for names in groups.values() if len(names) > 1]

    def strangest(self, n: int = 10, *, limit: float | None = None) -> list[tuple[str, float]]:
        """Names and scores of the strangest normal images, each as if it were new.

        Scores are in units of the median normal score. `limit` lists all above it, else `n`. Only
        sampled images of the last `fit` or `add` have names and scores.
        """
        check_fitted(self, "features_")
        first = len(self.features_) - len(self.names_)
        scores = self.normal_scores_ / (np.median(self.normal_scores_) or 1.0)
        found = [
            (self.names_[number - first], float(score))
            for number, score in zip(self.sample_.tolist(), scores, strict=True)
            if number >= first
        ]
        found.sort(key=lambda one: -one[1])
        return found[:n] if limit is None else [one for one in found if one[1] > limit]

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
        n, n_normal = len(self.sample_), len(self.features_)
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
        found = [parts for _, _, parts, _ in self._inspect(*self._opened(images, recursive))]
        return {part: np.concatenate([parts[part] for parts in found]) for part in PARTS}

    def maps(self, images, *, recursive: bool = False) -> np.ndarray:
        """Anomaly maps, float32 (n, H, W): above `threshold()` an alarm."""
        found = self._inspect(*self._opened(images, recursive))
        return np.concatenate([maps for _, _, _, maps in found])

    def alarms(self, images, *, rate: float | None = None, recursive: bool = False) -> np.ndarray:
        """Which images raise an alarm, bool (n,)."""
        threshold = self.threshold(rate)  # first, since it may raise
        return self.score(images, recursive=recursive) > threshold

    def _opened(self, images, recursive: bool) -> tuple[Sequence, list[str]]:
        """Images to score as a sequence of the right size, and their names."""
        check_fitted(self, "features_")
        images, names = open_images(images, self.geometry_, recursive=recursive)
        self._check_size(images)
        return images, names

    def _inspect(self, images, names: list[str], unreadable: list | None = None) -> Iterator[tuple]:
        """Yield numbers, images, parts and maps of a batch: memory does not grow with the images.

        `unreadable` collects name and reason of each file that is not an image; None: ImageError.
        """
        for numbers, batch in _batches(images, names, self.place_.images_at_once(), unreadable):
            batch = self._only_region(batch, [_size_of(images, number) for number in numbers])
            pooled, rows = self.place_.extract(batch)
            maps = self._looked_at(self.place_.maps(rows))
            raw = {"image": self.knn_.score(pooled), "place": image_scores(maps)}
            parts = {part: raw[part] / self.scales_[part] for part in PARTS}
            maps = maps / np.float32(self.scales_["place"])
            yield numbers, batch, parts, maps

    def rank(
        self,
        images,
        *,
        top: int = 50,
        rate: float | None = None,
        recursive: bool = False,
        skip_unreadable: bool = False,
        on_map: Callable | None = None,
    ) -> Ranking:
        """Score images and keep the `top` most anomalous of them, with their maps.

        Parameters
        ----------
        images : images, as above
        top : int
        rate : float, optional
            False-alarm rate of the threshold for regions; None: the detector's own.
        recursive : bool
            Search subfolders too.
        skip_unreadable : bool
            List files that are not images in the ranking; otherwise ImageError names one.
        on_map : callable, optional
            Called for each image with its name, its source (a path, or the image) and its map.

        Raises
        ------
        ValueError
            No file could be read.
        """
        check_counts(top=top)
        threshold = self.threshold(rate)
        images, all_names = self._opened(images, recursive)
        files = images.files if isinstance(images, ImageFolder) else None
        known, n_known = set(self.digests_.tolist()), 0
        names, parts, peaks, regions, best, unreadable = [], [], [], [], [], []
        sizes: dict[str, None] = {}
        batches = self._inspect(images, all_names, unreadable if skip_unreadable else None)
        for numbers, batch, batch_parts, maps in bar(batches, "score", shown=self.progress):
            for row, score in enumerate(larger_part(batch_parts)):
                # Copies, since a view would keep the batch.
                found = Finding(len(names) + row, batch[row].copy(), maps[row].copy())
                best.append((score, found))
                source = batch[row] if files is None else files[numbers[row]]
                height, width = _size_of(images, numbers[row])
                regions.append(find_regions(maps[row], threshold, self.geometry_, height, width))
                n_known += _digest(batch[row]) in known
                sizes[f"{width} x {height}"] = None
                if on_map is not None:
                    on_map(all_names[numbers[row]], source, maps[row])
            best.sort(key=lambda entry: (-entry[0], entry[1].number))
            del best[top:]
            names += [all_names[number] for number in numbers]
            parts.append(batch_parts)
            peaks.append(_peaks(maps))
        if not names:
            name, reason = unreadable[0]
            raise ValueError(
                f"{counted(len(unreadable), 'file')} and no image, {name!r} first: {reason}."
            )
        return Ranking(
            names,
            {part: np.concatenate([one[part] for one in parts]) for part in PARTS},
            np.concatenate(peaks),
            [found for _, found in best],
            unreadable,
            regions,
            n_known,
            tuple(size for size in sizes if self.sizes_ and size not in self.sizes_),
        )

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


def larger_part(parts: dict[str, np.ndarray]) -> np.ndarray:
    """The score: the larger of both parts."""
    return np.maximum(parts["image"], parts["place"])


def counted(n: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 image, 2 images."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def _batches(
    images, names: list[str], step: int, unreadable: list | None
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Yield numbers and images; files that are not images go to `unreadable`; None: raise."""
    if not isinstance(images, LazyImages):
        for start in range(0, len(images), step):
            batch = np.asarray(images[start : start + step])
            yield range(start, start + len(batch)), batch
        return
    for numbers, batch, errors in images.iter_readable(step):
        for number, error in errors.items():
            if unreadable is None:
                raise error
            unreadable.append((names[number], error.cause))
        if numbers:
            yield numbers, batch


def _size_of(images, number: int) -> tuple[int, int]:
    """Height and width of an image before it was read, in pixels."""
    if isinstance(images, ImageFolder):
        return upright_size(images.files[number])[::-1]
    return height_and_width(images)


def _sample(n: int, n_maps: int, seed: int) -> np.ndarray:
    """Which of n images to sample: those with the smallest of n random keys, in ascending order.

    The key of an image depends only on seed and number, so an image that left the sample never
    returns, and images can be added at any time. The raw stream of a generator is the same in
    every version of numpy.
    """
    keys = np.random.Philox(seed).random_raw(n)
    return np.sort(np.argsort(keys, kind="stable")[:n_maps])


def _digest(image: np.ndarray) -> int:
    digest = hashlib.blake2b(np.ascontiguousarray(image), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _scale(values: np.ndarray) -> float:
    """The value that one image in ten exceeds; if it is 0 the mean; if that is 0, 1.

    With the median in its place, the part that varies more would hide the other.
    """
    return float(np.quantile(values, 0.9)) or float(values.mean()) or 1.0


def _peaks(maps: np.ndarray) -> np.ndarray:
    """Row and column, 0 to 1, where each map (n, H, W) is largest: (n, 2)."""
    flat = maps.reshape(len(maps), -1).argmax(axis=1)
    return (np.stack(np.unravel_index(flat, maps.shape[1:]), axis=1) + 0.5) / maps.shape[1:]


def _needed(rate: float) -> int:
    """Number of normal images that `threshold_at` needs for a rate."""
    return math.ceil(1 / rate - 1 - 1e-9)
