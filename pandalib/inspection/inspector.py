"""A detector for your own images: normal photographs in; scores, heat maps and alarms out.

Each image x is scored in two ways, since an anomaly may be another kind of object, or a small fault
in the right object:

    image(x) = DN2: squared distances of the pooled feature to the k nearest of all normal images
               (`pandalib.methods.knn`)
    place(x) = SPADE: the largest value of the map of correspondences with normal images
               (`pandalib.methods.spade`)

Each part is divided by the value that one normal image in ten exceeds when compared with the
others, so that both have the same scale. The score is the larger of the two. One threshold, from
the leave-one-out scores of the normal images, serves scores and maps.

Memory is bounded. Images are read once, in batches; all pooled features are kept, 4 d bytes each;
the maps need whole pyramids of features, which are kept for a random sample of the images.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.base import BaseEstimator

from pandalib.backbones import PIXELS_PER_BATCH, Backbone
from pandalib.datasets.folder import open_images
from pandalib.datasets.images import Geometry, ImageFolder, LazyImages
from pandalib.inspection import storage
from pandalib.methods.distances import height_and_width, image_scores
from pandalib.methods.knn import KNN
from pandalib.methods.spade import SPADE, Pyramids
from pandalib.metrics import threshold_at
from pandalib.progress import progress as bar
from pandalib.validation import check_counts, check_fitted
from pandalib.weights import EMBEDDED

PARTS = ("image", "place")


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
    size, resize : int or None
        Size in pixels of files and of the shorter side before the centre crop; None: 128 for the
        embedded network, the network's own for others. Arrays keep their own size.
    layers : sequence of str or None
        For the maps; None: the network's own `map_layers`.
    n_maps : int
        Largest number of normal images, drawn with `seed`, whose pyramids are kept for the maps and
        whose scores give the threshold. A false-alarm rate r needs 1 / r - 1 of them.
    n_images, sigma, memory_mb
        As for `pandalib.SPADE`.
    k : int
        Neighbours of DN2.
    false_alarm_rate : float
        Fraction of normal images that may raise an alarm.
    seed : int
    progress : bool

    Attributes
    ----------
    features_ : ndarray, shape (N, d), float32
        Of all normal images.
    sample_ : ndarray, shape (M,), int64
        Numbers of the images whose pyramids are kept, ascending.
    knn_, spade_ : KNN, SPADE
        The two detectors.
    scales_ : dict of str to float
        What each part, "image" and "place", is divided by.
    normal_parts_, normal_scores_ : dict of str to ndarray (M,), ndarray (M,)
        Of the sample, each image compared with the others.
    layers_, size_, resize_, image_size_
        What was used: the layers, the geometry of files, and height and width of all images.
    n_copies_ : int
        Number of images left out so far as copies of others: a copy would make its original look
        more normal than any new image can be.
    unreadable_ : list of (str, str)
        Name and reason of the files that the last `fit` or `add` left out.

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
        resize: int | None = None,
        layers: Sequence[str] | None = None,
        n_maps: int = 200,
        n_images: int = 50,
        sigma: float = 4.0,
        k: int = 2,
        false_alarm_rate: float = 0.05,
        seed: int = 0,
        memory_mb: float = 64.0,
        progress: bool = True,
    ):
        self.backbone = backbone
        self.size = size
        self.resize = resize
        self.layers = layers
        self.n_maps = n_maps
        self.n_images = n_images
        self.sigma = sigma
        self.k = k
        self.false_alarm_rate = false_alarm_rate
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
        fitted.prepare()
        images, names = open_images(images, fitted.geometry_, recursive=recursive, normal=True)
        fitted.geometry_ = getattr(images, "geometry", fitted.geometry_)
        fitted.size_, fitted.resize_ = fitted.geometry_.height, fitted.geometry_.resize
        fitted.image_size_ = height_and_width(images)
        fitted.digests_ = np.empty(0, np.uint64)
        fitted.n_copies_ = 0
        fitted._learn(images, names, skip_unreadable, features=[], rows={}, shapes=None)
        vars(self).update(vars(fitted))
        return self

    def add(self, images, *, recursive: bool = False, skip_unreadable: bool = False) -> Inspector:
        """Learn more normal images: `fit(A).add(B)` is `fit(A + B)`, up to rounding.

        Parameters and errors as in `fit`.
        """
        check_fitted(self, "features_")
        images, names = open_images(images, self.geometry_, recursive=recursive, normal=True)
        self._check_size(images)
        fitted = copy.copy(self)
        pyramids = self.spade_.normal_
        rows = dict(zip(self.sample_.tolist(), pyramids.rows, strict=True))
        fitted._learn(images, names, skip_unreadable, [self.features_], rows, pyramids.shapes)
        vars(self).update(vars(fitted))
        return self

    def prepare(self) -> None:
        """Check the settings, and set what follows from them and from the network."""
        check_counts(n_maps=self.n_maps, n_images=self.n_images, k=self.k)
        rate = self.false_alarm_rate
        if not 0 < rate < 1 or self.n_maps < _needed(rate):
            raise ValueError(
                f"false_alarm_rate={rate!r}, n_maps={self.n_maps}: expected a rate between 0 and "
                "1, and n_maps of at least 1 / rate - 1."
            )
        size = self.size
        if size is None:
            size = 128 if self.backbone.name == EMBEDDED else self.backbone.size
        self.geometry_ = Geometry.square(size, self.resize, "crop")
        self.size_, self.resize_ = self.geometry_.height, self.geometry_.resize
        self.layers_ = self.layers
        if self.layers is None:
            self.layers_ = list(self.backbone.map_layers)
        self.spade_ = SPADE(
            self.backbone,
            layers=self.layers_,
            n_images=self.n_images,
            sigma=self.sigma,
            balanced=True,
            memory_mb=self.memory_mb,
        )
        self.spade_._check_settings()

    def _learn(self, images, names, skip_unreadable, features, rows, shapes) -> None:
        """Go once through more normal images, then compare each of the sample with the others.

        `features` is a list of arrays, the pooled features so far; `rows` and `shapes` are the
        pyramids of the sample so far. An image that leaves the sample never returns to it, so its
        pyramid can be dropped at once.
        """
        self.unreadable_ = []
        digests = dict.fromkeys(self.digests_.tolist())
        step = max(1, PIXELS_PER_BATCH // math.prod(self.image_size_))
        batches = _batches(images, names, step, self.unreadable_ if skip_unreadable else None)
        for _, batch in bar(batches, "features", shown=self.progress):
            n_before = len(digests)
            new = []
            for row, image in enumerate(batch):
                digest = _digest(image)
                if digest in digests:
                    self.n_copies_ += 1
                else:
                    digests[digest] = None
                    new.append(row)
            if not new:
                continue
            pyramids = Pyramids.of(self.backbone, batch[new], self.layers_, dtype=np.float32)
            shapes = pyramids.shapes
            features.append(pyramids.pooled.copy())  # a view would keep all of the pyramids
            sample = _sample(len(digests), self.n_maps, self.seed).tolist()
            with np.errstate(over="raise"):  # beyond the largest float16
                rows = {
                    number: rows[number]
                    if number < n_before
                    else pyramids.rows[number - n_before].astype(np.float16)
                    for number in sample
                }
        self.digests_ = np.array(list(digests), np.uint64)
        self._check_enough()
        self.features_ = np.concatenate(features)
        self.sample_, rows = np.array(list(rows), np.int64), np.stack(list(rows.values()))
        self.build(Pyramids(rows, shapes))
        maps = self.spade_.iter_leave_one_out_maps(progress=self.progress)
        raw = {
            "image": self.knn_.leave_one_out()[self.sample_],
            "place": np.concatenate([image_scores(batch) for batch in maps]),
        }
        self.scales_ = {part: _scale(values) for part, values in raw.items()}
        self.normal_parts_ = {part: raw[part] / self.scales_[part] for part in PARTS}

    def _check_enough(self) -> None:
        n = len(self.digests_)
        needed = max(_needed(self.false_alarm_rate), self.k + 1)
        if n < needed:
            raise ValueError(
                f"{counted(n, 'normal image')}, {counted(self.n_copies_, 'copy', 'copies')} and "
                f"{counted(len(self.unreadable_), 'unreadable file')} left out: a false-alarm rate "
                f"of {self.false_alarm_rate:g} with k={self.k} needs at least {needed}."
            )

    def build(self, pyramids: Pyramids, scales: np.ndarray | None = None) -> None:
        """Fit both detectors; `scales` as for `SPADE.fit_pyramids`."""
        self.knn_ = KNN(self.k).fit(self.features_)
        spade = copy.copy(self.spade_)
        self.spade_ = spade.fit_pyramids(pyramids, self.image_size_, scales=scales)

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
        found = [parts for _, _, parts, _ in self._inspect(images, recursive)]
        return {part: np.concatenate([parts[part] for parts in found]) for part in PARTS}

    def maps(self, images, *, recursive: bool = False) -> np.ndarray:
        """Anomaly maps, float32 (n, H, W): above `threshold()` an alarm."""
        return np.concatenate([maps for _, _, _, maps in self._inspect(images, recursive)])

    def alarms(self, images, *, rate: float | None = None, recursive: bool = False) -> np.ndarray:
        """Which images raise an alarm, bool (n,)."""
        threshold = self.threshold(rate)  # first, since it may raise
        return self.score(images, recursive=recursive) > threshold

    def _inspect(self, images, recursive: bool, unreadable: list | None = None) -> Iterator[tuple]:
        """Yield names, images, parts and maps of a batch: memory does not grow with the images.

        `unreadable` collects name and reason of each file that is not an image; None: ImageError.
        """
        check_fitted(self, "features_")
        images, names = open_images(images, self.geometry_, recursive=recursive)
        self._check_size(images)
        for numbers, batch in _batches(images, names, self.spade_._images_at_once(), unreadable):
            pyramids = Pyramids.of(self.backbone, batch, self.layers_, dtype=np.float32)
            maps = self.spade_.maps_of(pyramids)
            raw = {"image": self.knn_.score(pyramids.pooled), "place": image_scores(maps)}
            parts = {part: raw[part] / self.scales_[part] for part in PARTS}
            maps = maps / np.float32(self.scales_["place"])
            yield [names[number] for number in numbers], batch, parts, maps

    def rank(
        self, images, *, top: int = 50, recursive: bool = False, skip_unreadable: bool = False
    ) -> Ranking:
        """Score images and keep the `top` most anomalous of them, with their maps.

        With `skip_unreadable` the ranking lists files that are not images; otherwise ImageError
        names one. Raises ValueError if no file could be read.
        """
        check_counts(top=top)
        names, parts, peaks, best, unreadable = [], [], [], [], []
        batches = self._inspect(images, recursive, unreadable if skip_unreadable else None)
        for batch_names, batch, batch_parts, maps in bar(batches, "score", shown=self.progress):
            for row, score in enumerate(larger_part(batch_parts)):
                # Copies, since a view would keep the batch.
                found = Finding(len(names) + row, batch[row].copy(), maps[row].copy())
                best.append((score, found))
            best.sort(key=lambda entry: (-entry[0], entry[1].number))
            del best[top:]
            names += batch_names
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
    def load(cls, folder, *, weights=None, backbone: Backbone | None = None) -> Inspector:
        """Read a detector.

        Parameters
        ----------
        folder : path
        weights : path, optional
            The file of the network's weights, if it has moved; checked by its hash.
        backbone : Backbone, optional
            The network itself, if it was adapted or built by hand.

        Raises
        ------
        FileNotFoundError, ValueError
            Naming the file: no detector, a damaged one, another version, other weights.
        """
        return storage.load(cls, folder, weights=weights, backbone=backbone)


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
