"""How each public data set lies on the disk: a function a set, from its folder to classes, training part and test part.

torchvision reads what it knows. Its CIFAR files are pickles, which can run code: it compares each with its MD5 before it
opens it, and nothing else here is ever unpickled (tests/test_public.py tries it with a harmful one).
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from pandalib.datasets.folder import _split_80_20
from pandalib.datasets.images import _READERS, ImageFolder, LazyImages, list_images, subfolders
from pandalib.datasets.lazy import ImageArray, ImageCrops, SqueezedImages

SMALLEST_OBJECT = 120  # pixels; DIOR objects that are not larger in both directions are left out
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The twenty coarse classes of CIFAR-100, with five fine ones each. Fine labels count these in alphabetical order.
CIFAR100 = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man_made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non_insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
CIFAR100_FINE = tuple(sorted(fine for fines in CIFAR100.values() for fine in fines.split()))
COARSE_OF_FINE = np.array(
    [[fine in fines.split() for fines in CIFAR100.values()].index(True) for fine in CIFAR100_FINE]
)
FASHION = (
    "t_shirt_top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle_boot",
)
DIOR = (
    "airplane",
    "airport",
    "baseballfield",
    "basketballcourt",
    "bridge",
    "chimney",
    "dam",
    "expressway_service_area",
    "expressway_toll_station",
    "golffield",
    "groundtrackfield",
    "harbor",
    "overpass",
    "ship",
    "stadium",
    "storagetank",
    "tenniscourt",
    "trainstation",
    "vehicle",
    "windmill",
)
WBC = (
    "neutrophil",
    "lymphocyte",
    "monocyte",
    "eosinophil",
)  # their labels are 1 to 4; 5, basophil, has one image


class Part(NamedTuple):
    """The training or the test images of a data set."""

    labels: np.ndarray  # int (N,), the class of each image
    pick: Callable[
        [Sequence[int], int, int], LazyImages
    ]  # images by number, then size and resize in pixels
    masks: Sequence[Path] | None = None  # of each image


class Layout(NamedTuple):
    classes: tuple[str, ...]
    train: Part
    test: Part


def canonical(name: str) -> str:
    """A class name as it is written in a task: lower case, and one _ for whatever is neither letter nor digit."""
    return "_".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def cifar10(place: Path, seed: int) -> Layout:
    parts = [_torchvision("CIFAR10", place, train=train) for train in (True, False)]
    return Layout(CIFAR10, *(_array_part(part.data, part.targets) for part in parts))


def cifar100(place: Path, seed: int) -> Layout:
    parts = [_torchvision("CIFAR100", place, train=train) for train in (True, False)]
    return Layout(
        tuple(CIFAR100), *(_array_part(part.data, COARSE_OF_FINE[part.targets]) for part in parts)
    )


def cifar100_fine(place: Path, seed: int) -> Layout:
    parts = [_torchvision("CIFAR100", place, train=train) for train in (True, False)]
    return Layout(CIFAR100_FINE, *(_array_part(part.data, part.targets) for part in parts))


def fashion_mnist(place: Path, seed: int) -> Layout:
    parts = [_torchvision("FashionMNIST", place, train=train) for train in (True, False)]
    return Layout(
        FASHION, *(_array_part(part.data.numpy(), part.targets.numpy()) for part in parts)
    )


# torchvision keeps the lists of files and labels to itself, and without them every image would be decoded to learn its
# label. Its version is pinned (pyproject.toml), and the tests of this module would see a change.


def pets(place: Path, seed: int) -> Layout:
    parts = [
        _torchvision("OxfordIIITPet", place, split=split, target_types="binary-category")
        for split in ("trainval", "test")
    ]
    return Layout(("cat", "dog"), *(_file_part(part._images, part._bin_labels) for part in parts))


def flowers102(place: Path, seed: int) -> Layout:
    """The official training split of 10 images a class, and the official test split."""
    parts = [_torchvision("Flowers102", place, split=split) for split in ("train", "test")]
    return Layout(
        tuple(map(canonical, parts[0].classes)),
        *(_file_part(part._image_files, part._labels) for part in parts),
    )


def catsdogs(place: Path, seed: int) -> Layout:
    """By file number the first 80 % of each class for training: 10,000 of 12,500. Files that are no images are left out, aloud."""
    parts, broken = ([], []), []
    for label, name in enumerate(("Cat", "Dog")):
        files = sorted(
            list_images(place / "PetImages" / name), key=lambda file: (len(file.stem), file.stem)
        )
        for number, file in enumerate(files):
            if _is_image(file):
                parts[number >= round(0.8 * len(files))].append((file, label))
            else:
                broken.append(file)
    if broken:
        first = ", ".join(repr(str(file.relative_to(place))) for file in broken[:3]) + (
            " ..." if len(broken) > 3 else ""
        )
        warnings.warn(
            f"catsdogs: {len(broken)} files in {str(place)!r} are no images and are left out: {first}",
            stacklevel=2,
        )
    return Layout(
        ("cat", "dog"),
        *(_file_part([file for file, _ in part], [label for _, label in part]) for part in parts),
    )


def cub200(place: Path, seed: int) -> Layout:
    names, images, labels, training = (
        dict(line.split(maxsplit=1) for line in _lines(place / f"{table}.txt"))
        for table in ("classes", "images", "image_class_labels", "train_test_split")
    )
    order = sorted(names, key=int)
    parts = ([], [])
    for image in sorted(images, key=int):
        parts[training[image] != "1"].append(
            (place / "images" / images[image], order.index(labels[image]))
        )
    classes = tuple(
        canonical(names[label].partition(".")[2]) for label in order
    )  # 001.Black_footed_Albatross
    return Layout(
        classes,
        *(_file_part([file for file, _ in part], [label for _, label in part]) for part in parts),
    )


def dior(place: Path, seed: int) -> Layout:
    """Each object with more than 120 pixels in both directions becomes an image; horizontal boxes.

    Archives of this set are packed in different ways, so files are found by name, wherever they lie.
    """
    notes = {
        path.stem: path
        for path in sorted(place.rglob("*.xml"))
        if "oriented" not in str(path.relative_to(place)).lower()
    }
    pictures = {path.stem: path for path in sorted(place.rglob("*.jpg"))}
    lists = {path.stem: path for path in sorted(place.rglob("*.txt")) if path.parent.name == "Main"}
    if "test" not in lists or not {"trainval", "train"} & set(lists):
        raise ValueError(
            f"{str(place)!r} holds no ImageSets/Main with trainval.txt (or train.txt and val.txt) and test.txt: unpack ImageSets.zip there."
        )
    parts = []
    for names in (["trainval"] if "trainval" in lists else ["train", "val"], ["test"]):
        files, boxes, labels = [], [], []
        for image in (image for name in names for image in _lines(lists[name])):
            if image not in notes or image not in pictures:
                raise ValueError(
                    f"image {image!r} is in the lists of {str(lists['test'].parent)!r}, but its {'picture' if image in notes else 'annotation'} is not in "
                    f"{str(place)!r}: unpack what is missing."
                )
            for label, box in _objects(notes[image]):
                files.append(pictures[image])
                boxes.append(box)
                labels.append(label)
        parts.append(_crop_part(files, boxes, labels))
    return Layout(DIOR, *parts)


def wbc(place: Path, seed: int) -> Layout:
    """Classes 1 to 4 of Dataset 1; a seeded 80 % of each class for training, the rest for testing."""
    rows = _table(place / "Class Labels of Dataset 1.csv", ("image ID", "class label"))
    parts = ([], [])
    for label, _ in enumerate(WBC):
        files = [
            place / "Dataset 1" / f"{int(row['image ID']):03}.bmp"
            for row in rows
            if row["class label"] == str(label + 1)
        ]
        for part, chosen in zip(parts, _split_80_20(files, seed), strict=True):
            part += [(file, label) for file in chosen]
    return Layout(
        WBC,
        *(_file_part([file for file, _ in part], [label for _, label in part]) for part in parts),
    )


def ksdd(place: Path, seed: int) -> Layout:
    """A seeded two thirds of the items for training, without their defective images; all images of the others for testing.

    Images of one item look alike, so an item is never on both sides.
    """
    items = [name for name in subfolders(place) if name.startswith("kos")]
    testing = set(np.random.default_rng(seed).permutation(items)[: max(1, round(len(items) / 3))])
    parts = ([], [])
    for item in items:
        for file in list_images(place / item):
            if file.stem.endswith("_label"):
                continue
            mask = file.with_name(f"{file.stem}_label.bmp")
            if not mask.exists():
                raise FileNotFoundError(
                    f"{str(file)!r} has no label {mask.name!r} beside it: unpack the archive again."
                )
            with Image.open(mask) as image:
                defective = image.convert("L").getbbox() is not None
            if item in testing or not defective:
                parts[item in testing].append((file, int(defective), mask))
    files, labels, masks = zip(*parts[1], strict=True)
    test = _squeezed_part(files, labels)._replace(masks=masks)
    return Layout(
        ("good", "defect"),
        _squeezed_part([file for file, *_ in parts[0]], [0] * len(parts[0])),
        test,
    )


def chexpert(place: Path, seed: int) -> Layout:
    """Frontal views; normal is what has No Finding = 1. Of train.csv only these are used, of valid.csv all."""
    parts = []
    for name in ("train.csv", "valid.csv"):
        rows = [
            row
            for row in _table(place / name, ("Path", "Frontal/Lateral", "No Finding"))
            if row["Frontal/Lateral"] == "Frontal"
        ]
        labels = [int(row["No Finding"] not in ("1", "1.0")) for row in rows]
        parts.append(_file_part([place / row["Path"].partition("/")[2] for row in rows], labels))
    return Layout(("no_finding", "finding"), *parts)


# ---------------------------------------------------------------- tools


def _torchvision(name: str, place: Path, **options):
    from torchvision import datasets

    try:
        return getattr(datasets, name)(place, download=False, **options)
    except Exception as error:  # damaged files make it raise a dozen types
        raise ValueError(
            f"torchvision's {name} cannot read {str(place)!r}: files are missing or damaged ({error}). Delete that folder and unpack the archive again."
        ) from error


def _array_part(pixels: np.ndarray, labels) -> Part:
    # Only the chosen images are copied, so the rest is freed.
    return Part(
        np.asarray(labels),
        lambda numbers, size, resize: ImageArray(pixels[np.asarray(numbers, int)], size, resize),
    )


def _file_part(files: Sequence[Path], labels) -> Part:
    return Part(
        np.asarray(labels, int),
        lambda numbers, size, resize: ImageFolder(
            [files[number] for number in numbers], size, resize
        ),
    )


def _squeezed_part(files: Sequence[Path], labels) -> Part:
    return Part(
        np.asarray(labels, int),
        lambda numbers, size, resize: SqueezedImages(
            [files[number] for number in numbers], size, resize
        ),
    )


def _crop_part(files: Sequence[Path], boxes, labels) -> Part:
    def pick(numbers, size, resize):
        return ImageCrops(
            [files[number] for number in numbers],
            [boxes[number] for number in numbers],
            size,
            resize,
        )

    return Part(np.asarray(labels, int), pick)


def _is_image(file: Path) -> bool:
    try:
        with Image.open(file, formats=_READERS):
            return True
    except Exception:  # among them Pillow's for an image that is too large to be one
        return False


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or [])]
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{str(path)!r} is no table of commas and lines in UTF-8 ({error}): get it again."
        ) from None
    if missing:
        raise ValueError(
            f"{str(path)!r} has no column {missing[0]!r}: expected {', '.join(columns)}."
        )
    return rows


def _objects(note: Path) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Class and box of each object that is large enough, from an XML file in the layout of Pascal VOC."""
    try:
        found = []
        for thing in ElementTree.parse(note).getroot().iter("object"):
            label = DIOR.index(canonical(thing.findtext("name", "")))
            left, top, right, bottom = (
                int(float(thing.findtext(f"bndbox/{edge}")))
                for edge in ("xmin", "ymin", "xmax", "ymax")
            )
            if min(right - left, bottom - top) > SMALLEST_OBJECT:
                found.append((label, (left, top, right, bottom)))
        return found
    except (ElementTree.ParseError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"cannot read the objects of {str(note)!r}: {error}; expected <object> with a <name> of {', '.join(DIOR)} and a <bndbox>."
        ) from error


LOADERS = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cifar100fine": cifar100_fine,
    "fashion_mnist": fashion_mnist,
    "pets": pets,
    "catsdogs": catsdogs,
    "flowers102": flowers102,
    "cub200": cub200,
    "dior": dior,
    "wbc": wbc,
    "ksdd": ksdd,
    "chexpert": chexpert,
}
