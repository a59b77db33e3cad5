"""A detector for one's own images: normal photographs in; scores, heat maps and an alarm out; kept on disk.

Two questions are asked of an image x, since an anomaly may be another kind of thing, or a small fault in a thing that is right:

    image(x) = DN2: squared distances of the pooled feature to the k nearest among all normal images (`pandalib.methods.knn`)
    place(x) = SPADE: the largest value of the map of correspondences with normal images (`pandalib.methods.spade`)

Each is divided by what one normal image in ten exceeds when it is held against the others, so that in both parts 1 is where the
unusual begins. The score is the larger of the two, and one threshold, from the leave-one-out scores of the normal images, serves
scores and maps.

Memory stays bounded. Images are read in batches; all pooled features are kept, 4 d bytes an image; maps need whole pyramids,
which are kept of a random sample of at most `n_maps` images.
"""

from __future__ import annotations

import copy
import hashlib
import heapq
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pandalib.methods.panda import check_counts
from pandalib.backbones import EMBEDDED, PIXELS_PER_BATCH, Backbone, normalise
from pandalib.validation import check_fitted
from pandalib.methods.knn import KNN, squared_distances
from pandalib.metrics import threshold_at
from pandalib.progress import progress as bar
from pandalib.methods.spade import SPADE, Pyramids, image_scores
from pandalib.datasets.found import open_images
from pandalib.datasets.images import ImageError, ImageFolder, check_geometry

LAYERS = ("layer1", "layer2", "layer3")  # of SPADE, as far as the network has them
SIZES = {EMBEDDED: 128}  # side in pixels to which files are brought; 224 for other networks
PARTS = ("image", "place")


class Inspected(NamedTuple):
    """A batch of images and what was found in them."""

    numbers: Sequence[int]  # in the sequence that was given
    names: list[str]
    images: np.ndarray  # uint8 (b, 3, H, W)
    parts: dict[str, np.ndarray]  # "image" and "place", (b,) each
    maps: np.ndarray  # float32 (b, H, W)

    @property
    def scores(self) -> np.ndarray:
        return np.maximum(*(self.parts[part] for part in PARTS))


class Finding(NamedTuple):
    """One image of the top of a ranking."""

    number: int  # its row in the ranking
    image: np.ndarray  # uint8 (3, H, W)
    map: np.ndarray  # float32 (H, W)


class Ranking(NamedTuple):
    """All images with their scores, in the order in which they were given, and the most anomalous of them with their maps."""

    names: list[str]
    scores: np.ndarray  # (n,)
    parts: dict[str, np.ndarray]  # "image" and "place", (n,) each
    spots: np.ndarray  # (n, 2), where each map is largest: from the top and from the left, 0 to 1
    top: list[Finding]  # highest score first
    unreadable: list[tuple[str, str]]  # name and reason

    @property
    def order(self) -> np.ndarray:
        """Rows from the highest score to the lowest; of equal scores the earlier image first."""
        return np.argsort(-self.scores, kind="stable")


class Inspector:
    """From a folder of normal images to a detector: `Inspector(load_backbone()).fit("FOLDER").save("MODEL")`.

    Images, throughout, are a folder, a file, a list of files, an `ImageFolder`, or an array uint8 (N, 3, H, W).

    Parameters
    ----------
    backbone : the pretrained network.
    size, resize : side in pixels to which files are brought, as in `pandalib.datasets.images.read_image`; None: 128 for the
        embedded network, 224 for others. Arrays keep their own size.
    layers : of the maps; None: layer1 to layer3, as far as the network has them.
    n_maps : at most so many normal images lend their pyramids to the maps and their scores to the threshold. A false-alarm
        rate r needs 1 / r - 1 of them.
    n_images, sigma : of `pandalib.methods.spade.SPADE`.
    k : neighbours of DN2.
    false_alarm_rate : share of the normal images that may raise an alarm.
    seed : draws the `n_maps` images.
    memory_mb : about how much the features of the images in hand may take.

    Attributes
    ----------
    features_ : float32 (N, d), of all normal images.
    kept_ : int64 (M,), which of them lend their pyramids.
    knn_, spade_ : the two detectors.
    usual_ : of each part, what it is divided by.
    normal_parts_, normal_scores_ : of the M images, each held against the others.
    image_size_ : height and width.
    n_copies_ : images that were left out so far, because the same pixels were there already: a copy would make its
        double look more normal than any new image can be.
    unreadable_ : name and reason of the files that the last `fit` or `add` left out.
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
        check_counts(n_maps=n_maps, n_images=n_images, k=k)
        self.size, self.resize = check_geometry(size or SIZES.get(backbone.name, 224), resize)
        stages = [
            name
            for part in (backbone.frozen, backbone.trainable)
            for name, _ in part.named_children()
        ]
        self.layers = (
            tuple(name for name in LAYERS if name in stages) if layers is None else tuple(layers)
        )
        self._spade = SPADE(
            backbone,
            layers=self.layers,
            n_images=n_images,
            sigma=sigma,
            balanced=True,
            memory_mb=memory_mb,
        )  # checks the rest
        if not (isinstance(seed, (int, np.integer)) and seed >= 0):
            raise ValueError(f"seed={seed!r}: expected a whole number, 0 or more.")
        if not 0 < false_alarm_rate < 1:
            raise ValueError(
                f"false_alarm_rate={false_alarm_rate!r}: expected a share between 0 and 1, for example 0.05."
            )
        if n_maps < (needed := _needed(false_alarm_rate)):
            raise ValueError(
                f"n_maps={n_maps}: a false-alarm rate of {false_alarm_rate:g} needs {needed} or more. Raise n_maps or the rate."
            )
        self.backbone, self.n_maps, self.n_images, self.sigma, self.k = (
            backbone,
            n_maps,
            n_images,
            sigma,
            k,
        )
        self.false_alarm_rate, self.seed, self.memory_mb, self.progress = (
            false_alarm_rate,
            seed,
            memory_mb,
            progress,
        )

    # ---- normal images ----

    def fit(self, images, *, recursive: bool = False, skip_unreadable: bool = False) -> Inspector:
        """Learn what is normal. Of a folder in MVTec's layout, train/good is taken.

        Parameters
        ----------
        images : normal images, nothing else.
        recursive : search subfolders too.
        skip_unreadable : leave out files that are no images, and list them in `unreadable_`, instead of raising.

        Raises
        ------
        ImageError naming the file; ValueError for fewer images than the false-alarm rate needs (19 for 0.05), or images of another
        form. A detector that was fitted before is then as it was.
        """
        return self._learn(images, recursive, skip_unreadable, fresh=True)

    def add(self, images, *, recursive: bool = False, skip_unreadable: bool = False) -> Inspector:
        """Learn further normal images. `fit(A).add(B)` is `fit(A + B)`, to the rounding of the network in other batches.

        Parameters and errors as in `fit`.
        """
        check_fitted(self, "features_")
        return self._learn(images, recursive, skip_unreadable, fresh=False)

    def _learn(self, images, recursive: bool, skip_unreadable: bool, fresh: bool) -> Inspector:
        images, names = open_images(
            images, self.size, self.resize, recursive=recursive, normal=True
        )
        new = copy.copy(self)  # nothing in `self` changes before all is done
        if fresh:
            new.image_size_ = (
                tuple(np.shape(images[:1])[-2:])
                if not isinstance(images, ImageFolder)
                else images.shape[2:]
            )
            if isinstance(images, ImageFolder):
                new.size, new.resize = images.size, images.resize
            new.digests_, new.n_copies_ = np.empty(0, np.uint64), 0
        new._check_size(images)
        new.unreadable_ = []
        known, rows, digests, features = set(new.digests_.tolist()), [], [], []
        batches = _batches(
            images,
            max(1, PIXELS_PER_BATCH // math.prod(new.image_size_)),
            names,
            new.unreadable_ if skip_unreadable else None,
        )
        for numbers, batch in bar(batches, "features", shown=self.progress):
            batch = np.asarray(batch)
            found = [_digest(image) for image in batch]
            fresh_ones = [
                row
                for row, digest in enumerate(found)
                if digest not in known and found.index(digest) == row
            ]
            if fresh_ones:
                features.append(self.backbone.features(batch[fresh_ones]))
            known.update(found)
            rows += [numbers[row] for row in fresh_ones]
            digests += [found[row] for row in fresh_ones]
        new.n_copies_ += len(images) - len(new.unreadable_) - len(rows)
        new.digests_ = np.concatenate([new.digests_, np.array(digests, np.uint64)])
        new._check_enough()
        before = 0 if fresh else len(self.features_)
        new.features_ = np.concatenate(([] if fresh else [self.features_]) + features)
        new.kept_ = _sample(len(new.features_), self.n_maps, self.seed)
        chosen = [rows[number - before] for number in new.kept_ if number >= before]
        old = None if fresh else self.spade_.normal_[np.isin(self.kept_, new.kept_)]
        new._calibrate(new._pyramids(images, chosen, old))
        self.__dict__.update(new.__dict__)
        return self

    def _check_enough(self) -> None:
        """Enough normal images for the rate and for the neighbours."""
        n, needed = len(self.digests_), max(_needed(self.false_alarm_rate), self.k + 1, 2)
        if n < needed:
            left_out = [
                f"{count} {what}"
                for count, what in (
                    (self.n_copies_, "copies"),
                    (len(self.unreadable_), "unreadable files"),
                )
                if count
            ]
            raise ValueError(
                f"{n} normal image{'s' * (n != 1)}{f' (without {chr(32).join(left_out)})' if left_out else ''}: a false-alarm rate of {self.false_alarm_rate:g} needs "
                f"{needed}. Add normal images, or ask for a rate of {math.ceil(1000 / (n + 1)) / 1000:g} or more (and for at least {max(self.k + 1, 2)} images)."
            )

    def _pyramids(self, images, chosen: list[int], old: Pyramids | None) -> Pyramids:
        """The pyramids of `old`, then those of the chosen images."""
        if not chosen:
            return old
        found = Pyramids.of(self.backbone, _Chosen(images, np.array(chosen)), self.layers)
        return (
            found if old is None else Pyramids(np.concatenate([old.rows, found.rows]), found.shapes)
        )

    def _calibrate(self, pyramids: Pyramids) -> None:
        """Fit both detectors, and hold each of the M images against the others."""
        self._build(pyramids)
        place = np.concatenate(
            [
                image_scores(maps)
                for maps in self.spade_.iter_leave_one_out_maps(progress=self.progress)
            ]
        )
        raw = dict(image=self._image_part_without_itself(), place=place)
        self.usual_ = {part: _usual(values) for part, values in raw.items()}
        self.normal_parts_ = {part: values / self.usual_[part] for part, values in raw.items()}

    def _build(self, pyramids: Pyramids, scales: np.ndarray | None = None) -> None:
        self.knn_ = KNN(self.k).fit(self.features_)
        self.spade_ = copy.copy(self._spade).fit_pyramids(pyramids, self.image_size_, scales=scales)

    def _image_part_without_itself(self) -> np.ndarray:
        """DN2 of the M images, each left out of the gallery by index; the other images of the gallery need no score."""
        distances, found = squared_distances(self.features_, self.features_[self.kept_], self.k + 1)
        own = found == self.kept_[:, None]
        own[~own.any(axis=1), -1] = (
            True  # more than k others at distance 0: the image itself is not even among them
        )
        return distances[~own].reshape(-1, self.k).sum(axis=1, dtype=np.float64)

    @property
    def normal_scores_(self) -> np.ndarray:
        return np.maximum(*(self.normal_parts_[part] for part in PARTS))

    # ---- new images ----

    def threshold(self, rate: float | None = None) -> float:
        """The score, and the value of a map, above which to raise an alarm; `rate` None: the detector's own.

        Raises ValueError for a rate that the M normal images cannot tell: it needs 1 / rate - 1 of them.
        """
        check_fitted(self, "features_")
        rate = self.false_alarm_rate if rate is None else rate
        n = len(self.kept_)
        if 0 < rate < 1 and n < (needed := _needed(rate)) and n < len(self.features_):
            raise ValueError(
                f"a false-alarm rate of {rate:g} needs the scores of {needed} normal images, and this detector keeps those of {n} (n_maps) among "
                f"{len(self.features_)}: fit it with n_maps={needed} or more, or ask for a rate of {math.ceil(1000 / (n + 1)) / 1000:g} or more."
            )
        return threshold_at(self.normal_scores_, rate)

    def score(self, images, *, recursive: bool = False) -> np.ndarray:
        """Anomaly scores (n,): below 1 is usual, above `threshold()` raises an alarm. Raises ImageError naming a file that is no image."""
        return np.concatenate([found.scores for found in self.inspect(images, recursive=recursive)])

    def parts(self, images, *, recursive: bool = False) -> dict[str, np.ndarray]:
        """Both parts of the scores: "image", is it another kind of thing? and "place", is something wrong somewhere? (n,) each."""
        found = [batch.parts for batch in self.inspect(images, recursive=recursive)]
        return {part: np.concatenate([parts[part] for parts in found]) for part in PARTS}

    def maps(self, images, *, recursive: bool = False) -> np.ndarray:
        """Heat maps, float32 (n, H, W), in the unit of the scores: what is above `threshold()` is a place that raises an alarm."""
        return np.concatenate([found.maps for found in self.inspect(images, recursive=recursive)])

    def alarms(self, images, *, rate: float | None = None, recursive: bool = False) -> np.ndarray:
        """Which images raise an alarm, bool (n,)."""
        threshold = self.threshold(rate)  # first: it may say no
        return self.score(images, recursive=recursive) > threshold

    def inspect(
        self, images, *, recursive: bool = False, unreadable: list | None = None
    ) -> Iterator[Inspected]:
        """Batch by batch all that there is to know: memory does not grow with the number of images.

        Parameters
        ----------
        unreadable : a list that takes name and reason of each file that is no image, which is then passed over; None raises.
        """
        check_fitted(self, "features_")
        images, names = open_images(images, self.size, self.resize, recursive=recursive)
        self._check_size(images)
        for numbers, batch in _batches(images, self.spade_._images_at_once(), names, unreadable):
            pyramids = Pyramids.of(self.backbone, batch, self.layers, dtype=np.float32)
            maps = self.spade_.maps_of(pyramids)
            raw = dict(image=self.knn_.score(pyramids.pooled), place=image_scores(maps))
            parts = {part: raw[part] / self.usual_[part] for part in PARTS}
            yield Inspected(
                numbers,
                [names[number] for number in numbers],
                np.asarray(batch),
                parts,
                maps / np.float32(self.usual_["place"]),
            )

    def rank(
        self, images, *, top: int = 50, recursive: bool = False, skip_unreadable: bool = False
    ) -> Ranking:
        """Score images and keep the `top` most anomalous of them, with their maps.

        Raises ImageError for a file that is no image, unless `skip_unreadable` lists it in the ranking; ValueError where none could be read.
        """
        check_counts(top=top)
        unreadable, best, names, spots = [], [], [], []
        parts = {part: [] for part in PARTS}
        for found in bar(
            self.inspect(
                images, recursive=recursive, unreadable=unreadable if skip_unreadable else None
            ),
            "score",
            shown=self.progress,
        ):
            for row, score in enumerate(found.scores):
                entry = (
                    score,
                    -(len(names) + row),
                    found.images[row].copy(),
                    found.maps[row].copy(),
                )  # copies: a view would keep the batch
                (heapq.heappush if len(best) < top else heapq.heappushpop)(best, entry)
            largest = np.stack(
                np.unravel_index(
                    found.maps.reshape(len(found.maps), -1).argmax(axis=1), found.maps.shape[1:]
                ),
                axis=1,
            )
            spots.append((largest + 0.5) / found.maps.shape[1:])
            names += found.names
            for part in PARTS:
                parts[part].append(found.parts[part])
        if not names:
            raise ValueError(
                f"none of {len(unreadable)} files can be read as an image, the first, {unreadable[0][0]!r}: {unreadable[0][1]}."
            )
        parts = {part: np.concatenate(parts[part]) for part in PARTS}
        findings = [
            Finding(-number, image, heat)
            for _, number, image, heat in sorted(best, key=lambda entry: entry[:2], reverse=True)
        ]
        return Ranking(
            names, np.maximum(*parts.values()), parts, np.concatenate(spots), findings, unreadable
        )

    def _check_size(self, images) -> None:
        size = (
            images.shape[2:]
            if isinstance(images, ImageFolder)
            else tuple(normalise(images[:1]).shape[2:])
        )
        if tuple(size) != self.image_size_:
            raise ValueError(
                f"images are {size[0]} x {size[1]} pixels: expected {self.image_size_[0]} x {self.image_size_[1]}, as the normal images."
            )
        if isinstance(images, ImageFolder) and (images.size, images.resize) != (
            self.size,
            self.resize,
        ):
            raise ValueError(
                f"files are cropped to {images.size} after resizing to {images.resize}: expected {self.size} and {self.resize}, as the normal images."
            )

    # ---- on disk ----

    def save(self, folder) -> None:
        """Write the detector into a new or an empty folder, or over a detector: `detector.json` and one file of tensors, no pickle.

        A crash at any moment leaves the old detector or the new one. Raises FileExistsError where the folder holds something
        else, OSError where it cannot be written.
        """
        from pandalib.inspection.storage import save

        save(self, folder)

    @classmethod
    def load(cls, folder, *, weights=None, backbone: Backbone | None = None) -> Inspector:
        """Read a detector.

        Parameters
        ----------
        weights : the file of the network's weights, where it is not where it was; checked by its hash.
        backbone : the network itself, for one that was adapted or built by hand.

        Raises FileNotFoundError or ValueError naming the file, for a folder that holds no detector, one that is damaged or of a later
        version, and for other weights than it was fitted with.
        """
        from pandalib.inspection.storage import load

        return load(cls, folder, weights=weights, backbone=backbone)


class _Chosen(Sequence):
    """Some images of a sequence, read when they are asked for."""

    def __init__(self, images, numbers: np.ndarray):
        self.images, self.numbers = images, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index):
        return self.images[self.numbers[index]]


def _batches(
    images, step: int, names: list[str], unreadable: list | None
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Numbers and images, batch by batch; where `unreadable` is a list, files that are no images go there."""
    for start in range(0, len(images), step):
        numbers = list(range(start, min(start + step, len(images))))
        if unreadable is None or not isinstance(images, ImageFolder):
            yield numbers, images[start : start + step]
            continue
        batch = {}
        for number in numbers:
            try:
                batch[number] = images[number]
            except ImageError as error:
                unreadable.append((names[number], error.cause or str(error)))
        if batch:
            yield list(batch), np.stack(list(batch.values()))


def _sample(n: int, n_kept: int, seed: int) -> np.ndarray:
    """Which of n images to keep: those with the smallest random keys, where the key of an image depends on seed and number only.

    So whoever is kept among n + m images was kept among n, and images can be added at any time. The raw stream of a generator
    is the same in every version of numpy.
    """
    keys = np.random.Philox(seed).random_raw(n)
    return np.sort(np.argsort(keys, kind="stable")[:n_kept])


def _digest(image: np.ndarray) -> int:
    return int.from_bytes(
        hashlib.blake2b(np.ascontiguousarray(image), digest_size=8).digest(), "little"
    )


def _usual(values: np.ndarray) -> float:
    """What one image in ten exceeds; where nearly all are alike, the mean; 1 where all are.

    Not the median: what counts is that both parts reach as far above 1 among normal images, or the one that varies more hides
    the other.
    """
    return float(np.quantile(values, 0.9)) or float(values.mean()) or 1.0


def _needed(rate: float) -> int:
    """Number of normal images without which `threshold_at` cannot tell the threshold of a rate."""
    return math.ceil(1 / rate - 1 - 1e-9)
