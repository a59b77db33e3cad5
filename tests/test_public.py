"""Public data sets: tiny imitations of the real archives' layout become the task that the protocol says, or a clear error."""

import copy
import csv
import gzip
import hashlib
import io
import pickle
import re
import tarfile
import threading
import warnings
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pandalib.__main__ import main
from pandalib.datasets.archives import unpack
from pandalib.datasets.download import DownloadError
from pandalib.datasets import layouts, public, registry
from pandalib.datasets.images import ImageError, read_image
from pandalib.datasets.lazy import ImageArray, ImageCrops, SqueezedImages
from pandalib.datasets.load import load_task, sibling_tasks

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
# Fine label -> coarse label as the files of CIFAR-100 have it.
COARSE = (
    "4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5 5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 "
    "12 1 9 19 2 10 0 1 16 12 9 13 15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13"
)


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(
            f"the real images are not here: no folder ../shared/real/{name} beside the checkout"
        )
    return REAL / name


# ---------------------------------------------------------------- imitations: {archive: its content}, by data set


def colour(label, number=0, test=False):
    """A flat colour that tells class, number and split of an image, also after JPEG."""
    return (20 + 12 * (label % 20), 20 + 20 * number, 220 if test else 40)


def picture(shade, size=(32, 32), form="JPEG"):
    buffer = io.BytesIO()
    image = shade if isinstance(shade, Image.Image) else Image.new("RGB", size, shade)
    image.save(buffer, form, **({"quality": 95} if form == "JPEG" else {}))
    return buffer.getvalue()


def tar(members, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def rows_of(n_classes, per_class, test):
    labels = np.tile(np.arange(n_classes), per_class)
    pixels = np.array(
        [colour(label, number // n_classes, test) for number, label in enumerate(labels)], np.uint8
    )
    return labels.tolist(), np.repeat(pixels[:, :, None], 1024, axis=2).reshape(len(labels), 3072)


def cifar10(per_class=5):
    files = {}
    labels, data = rows_of(10, per_class, False)
    for part in range(5):
        batch = slice(part * len(labels) // 5, (part + 1) * len(labels) // 5)
        files[f"data_batch_{part + 1}"] = pickle.dumps(dict(data=data[batch], labels=labels[batch]))
    labels, data = rows_of(10, 2, True)
    files["test_batch"] = pickle.dumps(dict(data=data, labels=labels))
    files["batches.meta"] = pickle.dumps(dict(label_names=list(layouts.CIFAR10)))
    return {
        "cifar-10-python.tar.gz": tar(
            {f"cifar-10-batches-py/{name}": content for name, content in files.items()}
        )
    }


def cifar100():
    files = {
        "meta": pickle.dumps(
            dict(
                fine_label_names=list(layouts.CIFAR100_FINE),
                coarse_label_names=list(layouts.CIFAR100),
            )
        )
    }
    for name, per_class in (("train", 2), ("test", 1)):
        labels, data = rows_of(100, per_class, name == "test")
        files[name] = pickle.dumps(
            dict(
                data=data,
                fine_labels=labels,
                coarse_labels=[int(COARSE.split()[label]) for label in labels],
            )
        )
    return {
        "cifar-100-python.tar.gz": tar(
            {f"cifar-100-python/{name}": content for name, content in files.items()}
        )
    }


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(
        length.to_bytes(4, "big") for length in array.shape
    )
    return gzip.compress(head + array.astype(np.uint8).tobytes())


def fashion_mnist():
    files = {}
    for name, per_class in (("train", 3), ("t10k", 2)):
        labels = np.tile(np.arange(10), per_class)
        files[f"{name}-labels-idx1-ubyte.gz"] = idx(labels)
        files[f"{name}-images-idx3-ubyte.gz"] = idx(
            np.broadcast_to((20 * labels + (name == "t10k"))[:, None, None], (len(labels), 28, 28))
        )
    return files


def pets():
    images, lists = {}, {"trainval": [], "test": []}
    for split, per_class in (("trainval", 3), ("test", 2)):
        for label, breed in enumerate(("Abyssinian", "beagle")):
            for number in range(per_class):
                name = f"{breed}_{number + 10 * (split == 'test')}"
                images[f"images/{name}.jpg"] = picture(colour(label, number, split == "test"))
                lists[split].append(f"{name} {label + 1} {label + 1} 1\n")
    notes = {f"annotations/{split}.txt": "".join(lines).encode() for split, lines in lists.items()}
    return {
        "images.tar.gz": tar(images),
        "annotations.tar.gz": tar(notes | {"annotations/README": b"by hand"}),
    }


def catsdogs():
    files = {
        f"PetImages/{name}/{number}.jpg": picture(colour(label, number))
        for label, name in enumerate(("Cat", "Dog"))
        for number in range(11)
    }
    return {
        "kagglecatsanddogs_5340.zip": zipped(
            files
            | {
                "PetImages/Cat/3.jpg": b"",
                "PetImages/Dog/10.jpg": b"no image",
                "PetImages/Cat/Thumbs.db": b"x",
                "readme[1].txt": b".",
            }
        )
    }


def flowers102():
    from scipy.io import savemat

    labels = np.tile(np.arange(1, 103), 6)
    ids = np.arange(1, len(labels) + 1)
    split = dict(trnid=ids[:204], valid=ids[204:306], tstid=ids[306:])
    files = {}
    for name, content in (("imagelabels.mat", dict(labels=labels)), ("setid.mat", split)):
        buffer = io.BytesIO()
        savemat(buffer, content)
        files[name] = buffer.getvalue()
    pictures = {
        f"jpg/image_{number:05}.jpg": picture(
            colour(label - 1, (number - 1) // 102, number > 306), (16, 16)
        )
        for number, label in zip(ids, labels, strict=True)
    }
    return files | {"102flowers.tgz": tar(pictures)}


def cub200():
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Rhinoceros_Auklet"]
    images = [
        (f"{name}/{name[4:]}_{number}.jpg", label, number)
        for label, name in enumerate(names)
        for number in range(5)
    ]
    files = {
        f"images/{path}": picture(colour(label, number, number > 2))
        for path, label, number in images
    }
    lines = {
        "classes": [f"{label + 1} {name}" for label, name in enumerate(names)],
        "images": [f"{row + 1} {path}" for row, (path, _, _) in enumerate(images)],
        "image_class_labels": [
            f"{row + 1} {label + 1}" for row, (_, label, _) in enumerate(images)
        ],
        "train_test_split": [
            f"{row + 1} {int(number <= 2)}" for row, (_, _, number) in enumerate(images)
        ],
    }
    files |= {f"{name}.txt": "\n".join(text).encode() for name, text in lines.items()}
    return {
        "CUB_200_2011.tgz": tar(
            {f"CUB_200_2011/{name}": content for name, content in files.items()}
            | {"attributes.txt": b"x"}
        )
    }


DIOR_OBJECTS = {  # image -> objects: name, box
    "00001": [
        ("airplane", (10, 20, 131, 161)),
        ("airplane", (200, 0, 320, 400)),
        ("ship", (0, 0, 400, 400)),
    ],  # the second is 120 wide
    "00002": [("airplane", (0, 0, 200, 121)), ("Expressway-Service-area", (100, 100, 350, 350))],
    "00003": [
        ("airplane", (0, 0, 300, 300)),
        ("ship", (50, 60, 250, 260)),
        ("vehicle", (5, 5, 30, 30)),
    ],
}


def dior_pixels(name):
    return np.random.default_rng(int(name)).integers(0, 256, (400, 400, 3), dtype=np.uint8)


def dior(nested=True):
    def note(objects):
        things = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
            for name, (a, b, c, d) in objects
        )
        return f"<annotation><filename>x.jpg</filename>{things}</annotation>".encode()

    place = "Annotations/Horizontal Bounding Boxes" if nested else "Annotations"
    notes = {f"{place}/{name}.xml": note(objects) for name, objects in DIOR_OBJECTS.items()}
    if nested:
        notes |= {
            f"Annotations/Oriented Bounding Boxes/{name}.xml": b"<other/>" for name in DIOR_OBJECTS
        }
    pictures = {name: picture(Image.fromarray(dior_pixels(name))) for name in DIOR_OBJECTS}
    return {
        "Annotations.zip": zipped(notes),
        "ImageSets.zip": zipped(
            {
                f"{'' if nested else 'ImageSets/'}Main/{name}.txt": text
                for name, text in (("train", b"00001\n"), ("val", b"00002\n"), ("test", b"00003\n"))
            }
        ),
        "JPEGImages-trainval.zip": zipped(
            {f"JPEGImages-trainval/{name}.jpg": pictures[name] for name in ("00001", "00002")}
        ),
        "JPEGImages-test.zip": zipped({"JPEGImages-test/00003.jpg": pictures["00003"]}),
    }


def wbc():
    labels = [1] * 10 + [2] * 5 + [3] * 5 + [4] * 6 + [5]
    files = {
        f"Dataset 1/{row + 1:03}.bmp": picture(colour(label - 1, row % 10), (120, 120), "BMP")
        for row, label in enumerate(labels)
    }
    files |= {
        f"Dataset 1/{row + 1:03}.png": picture((255, 255, 255), (120, 120), "PNG")
        for row in range(len(labels))
    }  # masks
    text = "image ID,class label\n" + "".join(
        f"{row + 1},{label}\n" for row, label in enumerate(labels)
    )
    files |= {"Class Labels of Dataset 1.csv": text.encode(), "Dataset 2/001.bmp": b"another"}
    return {
        "segmentation_WBC-master.zip": zipped(
            {f"segmentation_WBC-master/{name}": content for name, content in files.items()}
        )
    }


def mvtec():
    files = {
        f"bottle/train/good/{number:03}.png": picture(colour(0, number), form="PNG")
        for number in range(4)
    }
    files |= {
        f"bottle/test/good/{number:03}.png": picture(colour(0, number, True), form="PNG")
        for number in range(2)
    }
    for number in range(3):
        mask = np.zeros((32, 32), np.uint8)
        mask[: 8 + number, :8] = 255
        files[f"bottle/test/broken_large/{number:03}.png"] = picture(
            colour(5, number, True), form="PNG"
        )
        files[f"bottle/ground_truth/broken_large/{number:03}_mask.png"] = picture(
            Image.fromarray(mask), form="PNG"
        )
    return {"mvtec_anomaly_detection.tar.xz": tar(files | {"license.txt": b"x"}, "w:xz")}


def ksdd_pixels(item, part):
    return np.random.default_rng(100 * item + part).integers(0, 256, (124, 50), dtype=np.uint8)


def ksdd_mask(item, part):
    mask = np.zeros((124, 50), np.uint8)
    if part == item % 4:  # one image of each item has a defect
        mask[90:114, 10:30] = 255
    return mask


def ksdd(items=9):
    files = {}
    for item in range(1, items + 1):
        for part in range(4):
            files[f"kos{item:02}/Part{part}.jpg"] = picture(
                Image.fromarray(ksdd_pixels(item, part))
            )
            files[f"kos{item:02}/Part{part}_label.bmp"] = picture(
                Image.fromarray(ksdd_mask(item, part)), form="BMP"
            )
    return {"KolektorSDD.zip": zipped(files)}


def chexpert():
    def table(split, rows):
        lines = ["Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema"]
        lines += [
            f"CheXpert-v1.0-small/{split}/patient{row:05}/study1/view1_{view.lower()}.jpg,Male,50,{view},AP,{normal},0.0"
            for row, (view, normal) in enumerate(rows)
        ]
        return "\n".join(lines).encode()

    tables = {
        "train": [
            ("Frontal", "1.0"),
            ("Lateral", "1.0"),
            ("Frontal", ""),
            ("Frontal", "1.0"),
            ("Frontal", "1.0"),
        ],
        "valid": [("Frontal", "1.0"), ("Frontal", "0.0"), ("Lateral", "1.0"), ("Frontal", "0.0")],
    }
    files = {}
    for split, rows in tables.items():
        files[f"{split}.csv"] = table(split, rows)
        for row, (view, normal) in enumerate(rows):
            shade = colour(int(normal != "1.0"), row, split == "valid")
            files[f"{split}/patient{row:05}/study1/view1_{view.lower()}.jpg"] = picture(
                shade, (39, 32)
            )
    return {
        "CheXpert-v1.0-small.zip": zipped(
            {f"CheXpert-v1.0-small/{name}": content for name, content in files.items()}
        )
    }


IMITATIONS = dict(
    cifar10=cifar10,
    cifar100=cifar100,
    fashion_mnist=fashion_mnist,
    pets=pets,
    catsdogs=catsdogs,
    flowers102=flowers102,
    cub200=cub200,
    dior=dior,
    wbc=wbc,
    mvtec=mvtec,
    ksdd=ksdd,
    chexpert=chexpert,
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own for the data sets, and rows that may be changed."""
    monkeypatch.setenv("PANDALIB_DATASETS", str(tmp_path / "sets"))
    monkeypatch.delenv("PANDALIB_DOWNLOAD", raising=False)
    rows = copy.deepcopy(registry.registry())
    monkeypatch.setattr(registry, "registry", lambda: rows)
    return tmp_path / "sets"


def md5(content):
    return hashlib.md5(content).hexdigest()


def trust(monkeypatch, name, archives):
    """Let registry and torchvision expect the imitation's hashes in place of the real ones."""
    import torchvision.datasets as datasets

    for file in registry.registry()[name]["files"]:
        content = archives[file["name"]]
        file.update(
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest() if file["sha256"] else None,
            md5=md5(content) if file["md5"] else None,
        )
    if name in ("cifar10", "cifar100"):
        with tarfile.open(fileobj=io.BytesIO(next(iter(archives.values())))) as archive:
            sums = {
                Path(member.name).name: md5(archive.extractfile(member).read())
                for member in archive
            }
        kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        for which in ("train_list", "test_list"):
            monkeypatch.setattr(
                kind, which, [[file, sums[file]] for file, _ in getattr(kind, which)]
            )
        monkeypatch.setattr(kind, "meta", kind.meta | dict(md5=sums[kind.meta["filename"]]))
    if name == "flowers102":
        known = datasets.Flowers102._file_dict
        monkeypatch.setattr(
            datasets.Flowers102,
            "_file_dict",
            {key: (file, md5(archives[file])) for key, (file, _) in known.items()},
        )


@pytest.fixture
def put(monkeypatch, elsewhere):
    """Put the imitation of a set where the real archives go, then unpack it as the command does."""

    def place(name, archives=None, fetch=True):
        archives = IMITATIONS[name]() if archives is None else archives
        trust(monkeypatch, name, archives)
        for file, content in archives.items():
            (elsewhere / name).mkdir(parents=True, exist_ok=True)
            (elsewhere / name / file).write_bytes(content)
        return registry.fetch(name, progress=False) if fetch else elsewhere / name

    return place


def shades(images):
    """Class, number and split of flat images, read back from their colours."""
    middle = np.asarray(images[:])[:, :, 4, 4].astype(float)
    return [(round((r - 20) / 12), round((g - 20) / 20), bool(b > 130)) for r, g, b in middle]


def expected(label, numbers, test=False):
    return [(label % 20, number, test) for number in numbers]


# ---------------------------------------------------------------- the registry


def test_rows_are_complete():
    rows = registry.registry()
    assert set(public.SETS.values()) == set(rows) == set(IMITATIONS)
    assert set(layouts.LOADERS) == set(public.SETS) - {"mvtec"}
    for name, row in rows.items():
        assert (
            set(row)
            == {
                "title",
                "page",
                "licence",
                "tasks",
                "marker",
                "into",
                "files",
                "by_hand",
                "protocol",
                "tried",
            }
            and row["tried"] is False
        )
        assert row["page"].startswith("https://") and row["protocol"] and row["licence"], name
        for file in row["files"]:
            assert re.fullmatch(r"[0-9a-f]{64}", file["sha256"] or "0" * 64) and re.fullmatch(
                r"[0-9a-f]{32}", file["md5"] or "0" * 32
            )
            assert file["source"] and all(
                url.startswith(("https://", "http://fashion-mnist.")) for url in file["urls"]
            )
            assert file["urls"] or row["by_hand"], f"{name}: nobody says how to get {file['name']}"


def test_md5_are_those_of_torchvision():
    import torchvision.datasets as datasets

    known = {
        "cifar-10-python.tar.gz": datasets.CIFAR10.tgz_md5,
        "cifar-100-python.tar.gz": datasets.CIFAR100.tgz_md5,
        **dict(datasets.FashionMNIST.resources),
        **{url.rpartition("/")[2]: value for url, value in datasets.OxfordIIITPet._RESOURCES},
        **dict(datasets.Flowers102._file_dict.values()),
    }
    found = {
        file["name"]: file["md5"]
        for row in registry.registry().values()
        for file in row["files"]
        if file["name"] in known
    }
    assert found == known and len(known) == 11


def test_coarse_classes_of_cifar100():
    assert layouts.COARSE_OF_FINE.tolist() == [int(number) for number in COARSE.split()]
    assert (
        list(layouts.CIFAR100) == sorted(layouts.CIFAR100)
        and len(layouts.CIFAR100) == 20
        and len(layouts.CIFAR100_FINE) == len(set(layouts.CIFAR100_FINE)) == 100
    )


def test_names_of_classes_are_those_of_torchvision():
    import torchvision.datasets as datasets

    assert tuple(map(layouts.canonical, datasets.FashionMNIST.classes)) == layouts.FASHION
    assert len(set(public.names_of("flowers102"))) == 102 and "colt_s_foot" in public.names_of(
        "flowers102"
    )


def test_the_page_of_data_sets_says_what_the_registry_says():
    text = (registry.ROOT / "docs" / "data_sets.md").read_text(encoding="utf-8")
    for row in registry.registry().values():
        line = next(
            line
            for line in text.splitlines()
            if line.startswith(f"| [{row['title']}]({row['page']})")
        )
        assert all(f"| {row[key]} |" in line for key in ("tasks", "licence", "protocol"))


# ---------------------------------------------------------------- every set, from its archives to a task


CASES = {  # task -> training images, test images: (class, number, split) of each
    "cifar10:airplane": (
        expected(0, range(5)),
        [(label, number, True) for label in range(10) for number in range(2)],
    ),
    "cifar10:3": (
        expected(3, range(5)),
        [(label, number, True) for label in (3, 0, 1, 2, *range(4, 10)) for number in range(2)],
    ),
    "cifar100fine:apple": (expected(0, range(2)), [(label % 20, 0, True) for label in range(100)]),
    "pets:dog": (
        expected(1, range(3)),
        [(label, number, True) for label in (1, 0) for number in range(2)],
    ),
    "catsdogs:cat": (
        expected(0, [0, 1, 2, 4, 5, 6, 7, 8]),
        [(0, 9, False), (0, 10, False), (1, 9, False)],
    ),
    "flowers102:sweet pea": (
        expected(3, [0, 1]),
        [
            (label % 20, number, True)
            for label in (3, 0, 1, 2, *range(4, 102))
            for number in (3, 4, 5)
        ],
    ),
    "cub200:Laysan_Albatross": (
        expected(1, range(3)),
        [(label, number, True) for label in (1, 0, 2) for number in (3, 4)],
    ),
    "chexpert:no_finding": (expected(0, [0, 3, 4]), [(0, 0, True), (1, 1, True), (1, 3, True)]),
    "mvtec:bottle": (
        expected(0, range(4)),
        [(0, 0, True), (0, 1, True), (5, 0, True), (5, 1, True), (5, 2, True)],
    ),
}


@pytest.mark.filterwarnings("ignore:catsdogs")
@pytest.mark.parametrize("spec", CASES)
def test_train_on_the_normal_class_test_on_all(put, spec):
    train, test = CASES[spec]
    put(public.SETS[spec.partition(":")[0]])
    task = load_task(spec, size=20)
    assert shades(task.train) == train and shades(task.test) == test
    normal = test[0][0]
    if not spec.startswith("flowers102") and not spec.startswith(
        "cifar100fine"
    ):  # whose colours repeat
        assert task.labels.tolist() == [int(label != normal) for label, _, _ in test]
    assert task.labels.dtype == np.int64 and task.labels[0] == 0 and task.labels[-1] == 1
    assert (
        len(task.kinds) == len(task.labels) == len(task.test)
        and len({kind for kind, label in zip(task.kinds, task.labels, strict=True) if not label})
        == 1
    )
    assert task.train.shape == (len(train), 3, 20, 20) and task.train[0].dtype == np.uint8
    if task.files is not None:
        assert [
            np.abs(read_image(file, 20).astype(int) - image).max()
            for file, image in zip(task.files, task.test, strict=True)
        ] == [0] * len(test)


def test_names_and_kinds(put):
    put("cifar10")
    task = load_task("cifar10:9", size=20)
    assert task.name == "cifar10:truck" and task.kinds[:4] == (
        "truck",
        "truck",
        "airplane",
        "airplane",
    )
    put("chexpert")
    task = load_task("chexpert:no_finding", size=20)
    assert task.name == "chexpert:no_finding" and task.kinds == ("no_finding", "finding", "finding")
    put("cub200")
    assert load_task("cub200:2", size=20).name == "cub200:rhinoceros_auklet"
    assert sibling_tasks("cub200:2") == [
        "cub200:black_footed_albatross",
        "cub200:laysan_albatross",
        "cub200:rhinoceros_auklet",
    ]
    for spec, n in (
        ("cifar10:cat", 10),
        ("cifar100:x", 20),
        ("cifar100fine:x", 100),
        ("fashion_mnist:0", 10),
        ("flowers102:1", 102),
        ("mvtec:wood", 15),
        ("wbc:1", 4),
        ("ksdd:all", 1),
    ):
        assert len(set(sibling_tasks(spec))) == n


def test_cifar100_coarse(put):
    put("cifar100")
    task = load_task("cifar100:aquatic mammals", size=20)
    fine = [
        layouts.CIFAR100_FINE.index(name)
        for name in ("beaver", "dolphin", "otter", "seal", "whale")
    ]
    assert sorted(shades(task.train)) == sorted(
        shade for label in fine for shade in expected(label, range(2))
    )
    assert (
        (task.labels == 0).sum() == 5
        and len(task.labels) == 100
        and task.kinds[:5] == ("aquatic_mammals",) * 5
    )


def test_fashion_mnist(put):
    put("fashion_mnist")
    task = load_task("fashion_mnist:T-shirt/top", size=20)
    assert (
        task.name == "fashion_mnist:t_shirt_top"
        and task.train[:].std() == 0
        and task.train[0].shape == (3, 20, 20)
    )
    assert (
        len(task.train) == 3
        and (
            task.test[:].mean(axis=(1, 2, 3))
            == [20 * label + 1 for label in range(10) for _ in range(2)]
        ).all()
    )


def test_wbc(put):
    put("wbc")
    task = load_task("wbc:1", size=20)
    assert len(task.train) == 8 and task.kinds == ("neutrophil",) * 2 + (
        "lymphocyte",
        "monocyte",
        "eosinophil",
    )
    together = shades(task.train) + shades(task.test)[:2]
    assert sorted(together) == expected(0, range(10))  # no image on both sides, none lost
    assert (
        load_task("wbc:Monocyte", size=20).name
        == "wbc:monocyte"
        == load_task("wbc:3", size=20).name
    )
    assert shades(load_task("wbc:1", size=20, seed=1).train) != shades(task.train)
    assert shades(load_task("wbc:1", size=20).train) == shades(task.train)


@pytest.mark.parametrize("nested", [True, False])
def test_dior_objects_become_images(put, nested):
    put("dior", dior(nested))
    task = load_task("dior:airplane", size=30)
    assert task.kinds == ("airplane", "ship") and task.labels.tolist() == [
        0,
        1,
    ]  # the vehicle is too small
    wanted = [
        ("00001", (10, 20, 131, 161)),
        ("00002", (0, 0, 200, 121)),
    ]  # not the one of exactly 120
    for got, (name, box) in zip(task.train, wanted, strict=True):
        part = Image.open(io.BytesIO(picture(Image.fromarray(dior_pixels(name))))).crop(box)
        short = min(part.size)
        part = part.resize(
            (int(30 * part.width / short), int(30 * part.height / short)), Image.Resampling.BILINEAR
        )
        left, top = round((part.width - 30) / 2), round((part.height - 30) / 2)
        assert (
            np.abs(
                got.astype(int)
                - np.asarray(part.crop((left, top, left + 30, top + 30))).transpose(2, 0, 1)
            ).max()
            <= 1
        )
    with pytest.raises(ValueError, match=r"dior has 1 training image\(s\) of ship: at least 2"):
        load_task("dior:ship")


def test_dior_incomplete_or_strange(put, elsewhere):
    place = put("dior")
    (next(place.rglob("00002.jpg"))).unlink()
    with pytest.raises(ValueError, match="'00002' is in the lists of .*, but its picture"):
        load_task("dior:airplane")
    note = place / "Annotations" / "Horizontal Bounding Boxes" / "00001.xml"
    note.write_text("<annotation><object><name>house</name></object></annotation>")
    with pytest.raises(ValueError, match="cannot read the objects of .*00001.xml"):
        load_task("dior:airplane")
    next(place.rglob("test.txt")).unlink()
    with pytest.raises(ValueError, match="no ImageSets/Main"):
        load_task("dior:airplane")


def test_ksdd_items_are_on_one_side(put):
    put("ksdd")
    for seed in (0, 1):
        task = load_task("ksdd:all", size=40, seed=seed)
        train = {(file.parent.name, file.stem) for file in task.train.files}
        test = [(Path(file).parent.name, Path(file).stem) for file in task.files]
        assert not {item for item, _ in train} & {item for item, _ in test}
        assert len({item for item, _ in test}) == 3 and len(test) == 12 and len(train) == 6 * 3
        assert all(
            int(part[4:]) != int(item[3:]) % 4 for item, part in train
        )  # no defect to learn from
        assert (
            [kind == "defect" for kind in task.kinds]
            == [int(part[4:]) == int(item[3:]) % 4 for item, part in test]
            == task.labels.astype(bool).tolist()
        )
        assert (
            task.masks.shape == (12, 40, 40) and (task.masks.any(axis=(1, 2)) == task.labels).all()
        )
        first = int(np.flatnonzero(task.labels)[0])
        item, part = int(test[first][0][3:]), int(test[first][1][4:])
        image = (
            Image.open(io.BytesIO(picture(Image.fromarray(ksdd_pixels(item, part)))))
            .convert("RGB")
            .resize((40, 40), Image.Resampling.BILINEAR)
        )
        assert (
            np.abs(task.test[first].astype(int) - np.asarray(image).transpose(2, 0, 1)).max() <= 1
        )  # all of it, squeezed
        assert (
            task.masks[first]
            == (
                np.asarray(
                    Image.fromarray(ksdd_mask(item, part)).resize(
                        (40, 40), Image.Resampling.NEAREST
                    )
                )
                > 0
            )
        ).all()
    assert (
        load_task("ksdd:all", size=40, seed=0).files != load_task("ksdd:all", size=40, seed=1).files
    )


def test_ksdd_without_a_label(put):
    place = put("ksdd")
    (place / "kos03" / "Part2_label.bmp").unlink()
    with pytest.raises(
        FileNotFoundError,
        match="ksdd in .* is not whole: .*Part2.jpg' has no label 'Part2_label.bmp'",
    ):
        load_task("ksdd:all")


def test_mvtec_has_masks_and_may_be_one_kind(put):
    put("mvtec")
    task = load_task("mvtec:bottle", size=32)
    assert task.name == "mvtec:bottle" and task.masks.sum(axis=(1, 2)).tolist() == [
        0,
        0,
        64,
        72,
        80,
    ]
    with pytest.raises(FileNotFoundError, match="without wood. By hand: The page asks for a form"):
        load_task("mvtec:wood")
    (next(Path(task.files[0]).parents[2].rglob("001_mask.png"))).unlink()
    with pytest.raises(ValueError, match="has no mask"):
        load_task("mvtec:bottle", size=32)
    assert len(load_task("mvtec:bottle", size=32, missing_masks="drop").test) == 4


def test_cats_and_dogs_tell_what_is_left_out(put):
    put("catsdogs")
    with pytest.warns(
        UserWarning,
        match=r"2 files in .* are no images and are left out: 'PetImages/Cat/3.jpg', 'PetImages/Dog/10.jpg'",
    ):
        load_task("catsdogs:dog")


def test_flowers_use_the_small_training_split(put):
    put("flowers102")
    task = load_task("flowers102:0", size=8)
    assert task.name == "flowers102:pink_primrose" and [
        int(Path(file).stem[6:]) for file in map(str, task.train.files)
    ] == [1, 103]


# ---------------------------------------------------------------- samples, geometry, laziness


def test_samples(put):
    put("cifar10", cifar10(per_class=10))
    whole = load_task("cifar10:cat", size=8)
    some = load_task("cifar10:cat", size=8, n_train=4, n_test=1, seed=3)
    fewer = load_task("cifar10:cat", size=8, n_train=2, n_test=1, seed=3)
    assert len(some.train) == 4 and len(some.test) == 10 and len(set(some.kinds)) == 10
    assert set(shades(fewer.train)) < set(shades(some.train)) < set(shades(whole.train))
    assert {
        tuple(shades(load_task("cifar10:cat", size=8, n_train=4, seed=seed).train))
        for seed in range(6)
    } != {tuple(shades(some.train))}
    for options, words in (
        (dict(n_train=1), "at least 2"),
        (dict(n_test=0), "at least 1"),
        (dict(size=32, resize=16), "1 <= size <= resize"),
    ):
        with pytest.raises(ValueError, match=words):
            load_task("cifar10:cat", **options)
    with pytest.raises(ValueError, match="only pictograms and surfaces have levels"):
        load_task("cifar10:cat", level="hard")


@pytest.mark.parametrize("size, resize", [(32, None), (24, None), (50, None), (28, 32)])
def test_arrays_have_the_geometry_of_files(tmp_path, size, resize):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    images = ImageArray(pixels, size, resize)
    for number in range(4):
        Image.fromarray(pixels[number]).save(tmp_path / "a.png")
        assert (images[number] == read_image(tmp_path / "a.png", size, resize)).all()
    assert images.shape == images[:].shape == (4, 3, size, size) and images[:].flags["C_CONTIGUOUS"]
    assert (
        (images[[2, 0]] == images[:][[2, 0]]).all()
        and (images[1:3] == images[:][1:3]).all()
        and (images[-1] == images[:][-1]).all()
    )
    assert (images[np.array([True, False, True, False])] == images[:][::2]).all() and images[
        []
    ].shape == (0, 3, size, size)
    with pytest.raises(IndexError):
        images[4]
    grey = ImageArray(pixels[..., 0], size, resize)[0]
    assert (grey[0] == grey[1]).all() and (grey[0] == images[0][0]).all()


def test_arrays_stay_small():
    images = ImageArray(np.zeros((1000, 32, 32, 3), np.uint8), 224)
    assert images.pixels.nbytes < 4e6 and images.shape[-1] == 224
    with pytest.raises(ValueError, match=r"expected uint8 \(N, h, w, 3\)"):
        ImageArray(np.zeros((2, 3, 32, 32), np.uint8), 32)
    with pytest.raises(ValueError, match="expected uint8"):
        ImageArray(np.zeros((2, 32, 32, 3)), 32)


def test_fingerprints_tell_everything_apart(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    files = []
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        files.append(tmp_path / f"{number}.png")
    boxes = [(0, 0, 16, 16), (0, 0, 16, 32)]
    all_different = [
        ImageArray(pixels, 16),
        ImageArray(pixels, 17),
        ImageArray(pixels, 16, 20),
        ImageArray(pixels[::-1], 16),
        ImageArray(pixels[:1], 16),
        ImageArray(pixels[..., 0], 16),
        ImageCrops(files, boxes, 16),
        ImageCrops(files, boxes[::-1], 16),
        ImageCrops(files, boxes, 8),
        ImageCrops(files[::-1], boxes, 16),
        SqueezedImages(files, 16),
    ]
    prints = [images.fingerprint() for images in all_different]
    assert (
        len(set(prints)) == len(prints) and prints[0] == ImageArray(pixels.copy(), 16).fingerprint()
    )


def test_a_box_outside_its_image(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    images = ImageCrops([tmp_path / "a.png"], [(0, 0, 33, 10)], 8)
    with pytest.raises(ImageError, match="does not lie in its 32 x 32 pixels"):
        images[0]


def test_squeezed_margin_is_that_of_the_centre_crop(tmp_path):
    pixels = np.zeros((64, 32, 3), np.uint8)
    pixels[:8] = pixels[:, :4] = 255  # as wide as the margin of 32 -> 24: an eighth on each side
    pixels[-8:] = pixels[:, -4:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (
        SqueezedImages([tmp_path / "a.png"], 24, 32)[0][..., 1:-1, 1:-1].max()
        == 0
        < SqueezedImages([tmp_path / "a.png"], 32)[0].max()
    )
    Image.new("L", (32, 63)).save(tmp_path / "mask.png")
    with pytest.raises(ImageError, match="it must have 32 x 64 pixels, but it has 32 x 63"):
        SqueezedImages([tmp_path / "a.png"], 24).mask(0, tmp_path / "mask.png")


# ---------------------------------------------------------------- what is missing, damaged or harmful


@pytest.mark.parametrize("source", public.SETS)
def test_a_missing_set_says_how_to_get_it(elsewhere, source):
    name = public.SETS[source]
    with pytest.raises(FileNotFoundError) as error:
        public.load_task(
            f"{source}:{'1' if name in ('wbc', 'cub200') else public.names_of(source)[0]}"
        )
    message, row = str(error.value), registry.registry()[name]
    assert (
        f"python -m pandalib data {name}" in message
        and row["page"] in message
        and str(elsewhere / name) in message
        and "\n" not in message
    )
    assert all(file["name"] in message for file in row["files"]) and not elsewhere.exists()


@pytest.mark.parametrize(
    "spec, words",
    [
        ("cifar10:plane", "no class 'plane'. Did you mean 'airplane'?"),
        ("cifar10:10", "number from 0 to 9"),
        ("cifar10:", "no class ''"),
        ("wbc:0", "number from 1 to 4"),
        ("ksdd:kos01", "Choose one of all."),
        ("imagenet:cat", "SET one of cifar10, "),
    ],
)
def test_unknown_classes_and_sets(spec, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        load_task(spec)
    with pytest.raises(ValueError, match="is unknown"):
        sibling_tasks("imagenet:cat")


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("which", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_harmful_pickle_is_never_opened(put, tmp_path, which):
    place = put("cifar10")
    (place / "cifar-10-batches-py" / which).write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    with pytest.raises(ValueError, match="torchvision's CIFAR10 cannot read .* missing or damaged"):
        load_task("cifar10:cat")
    assert not (tmp_path / "harm").exists()


def test_a_harmful_archive_is_never_unpacked(put, tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr("pandalib.datasets.download.PAUSE", 0)
    put("cifar10", fetch=False)
    archive = elsewhere / "cifar10" / "cifar-10-python.tar.gz"
    registry.registry()["cifar10"]["files"][0]["urls"] = ["http://127.0.0.1:9/none"]
    archive.write_bytes(
        tar({"cifar-10-batches-py/test_batch": pickle.dumps(Harmful(tmp_path / "harm"))})
    )
    with pytest.raises(
        DownloadError, match="the one in .* is another.*By hand: get cifar-10-python.tar.gz"
    ):
        registry.fetch("cifar10", progress=False)
    assert (
        not (elsewhere / "cifar10" / "unpacked").exists()
        and not (tmp_path / "harm").exists()
        and archive.exists()
    )


def test_damaged_sets_are_named(put):
    place = put("fashion_mnist")
    (place / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(b"\0\0")
    with pytest.raises(ValueError, match="torchvision's FashionMNIST cannot read"):
        load_task("fashion_mnist:bag")
    place = put("cub200")
    (place / "images.txt").write_text("1 x/y.jpg")
    (place / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match="cub200 in .* is not whole"):
        load_task("cub200:1")
    place = put("chexpert")
    (place / "valid.csv").write_text("Path,Sex\na,b\n")
    with pytest.raises(ValueError, match="valid.csv' has no column 'Frontal/Lateral'"):
        load_task("chexpert:no_finding")
    place = put("wbc")
    (place / "Dataset 1" / "001.bmp").unlink()
    task = load_task("wbc:1", size=8)
    with pytest.raises(ImageError, match="001.bmp' as an image: there is no such file"):
        task.train[:], task.test[:]


@pytest.mark.filterwarnings("ignore:catsdogs")
@pytest.mark.parametrize("name", IMITATIONS)
def test_sets_unpacked_by_hand(elsewhere, monkeypatch, name):
    """The contents lie in the folder of the set itself, without its archives."""
    archives = IMITATIONS[name]()
    trust(monkeypatch, name, archives)
    for file, content in archives.items():
        (elsewhere / "packed").mkdir(parents=True, exist_ok=True)
        (elsewhere / "packed" / file).write_bytes(content)
    into = registry.registry()[name]["into"]
    unpack([elsewhere / "packed" / file for file in archives], elsewhere / name / into)
    assert registry.state_of(name) == "here"
    source = next(source for source, data_set in public.SETS.items() if data_set == name)
    task = load_task(
        f"{source}:{'airplane' if name == 'dior' else '1' if name in ('wbc', 'cub200') else public.names_of(source)[0]}",
        size=8,
    )
    assert len(task.train) >= 2 and {0, 1} == set(task.labels.tolist())


# ---------------------------------------------------------------- fetching, and the command


@pytest.fixture
def served(tmp_path):
    """A folder served on this machine."""
    (tmp_path / "served").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path / "served")

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_nothing_is_fetched_unless_asked_for(served, monkeypatch, elsewhere, capsys):
    for proxy in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    folder, address = served
    archives = cifar10()
    trust(monkeypatch, "cifar10", archives)
    (folder / "cifar-10-python.tar.gz").write_bytes(archives["cifar-10-python.tar.gz"])
    registry.registry()["cifar10"]["files"][0]["urls"] = [
        f"{address}/moved.tar.gz",
        f"{address}/cifar-10-python.tar.gz",
    ]
    with pytest.raises(FileNotFoundError):
        load_task("cifar10:cat")
    assert registry.state_of("cifar10") == "missing"
    monkeypatch.setenv("PANDALIB_DOWNLOAD", "1")
    with pytest.raises(FileNotFoundError):
        public.load_task("cifar10:cat", download=False)
    assert shades(load_task("cifar10:cat", size=8).train) == expected(3, range(5))
    assert registry.state_of("cifar10") == "here" and sorted(
        path.name for path in (elsewhere / "cifar10").iterdir()
    ) == ["cifar-10-python.tar.gz", "unpacked"]
    monkeypatch.delenv("PANDALIB_DOWNLOAD")
    (elsewhere / "cifar10" / "cifar-10-python.tar.gz").unlink()  # may be deleted now
    assert main(["data", "cifar10"]) == 0 and "  here, in '" in capsys.readouterr().out


def test_command_checks_what_was_put_by_hand(put, capsys, elsewhere):
    put("mvtec", fetch=False)
    assert main(["data", "mvtec"]) == 0
    assert "SHA-256 as expected" in capsys.readouterr().out
    archive = elsewhere / "mvtec" / "mvtec_anomaly_detection.tar.xz"
    archive.write_bytes(archive.read_bytes()[:-10])
    assert main(["data", "mvtec"]) == 2  # the cached file is checked as well
    error = capsys.readouterr().err
    assert (
        "is not the file expected" in error
        and "Delete it and get it again. By hand: The page asks for a form" in error
    )


def test_where_no_hash_is_published_the_first_one_holds(put, capsys, elsewhere):
    put("chexpert", fetch=False)
    assert main(["data", "chexpert"]) == 0
    assert (
        "nobody publishes a hash; this one's is kept in CheXpert-v1.0-small.zip.sha256"
        in capsys.readouterr().out
    )
    assert main(["data", "chexpert"]) == 0
    assert "SHA-256 as when it came here first" in capsys.readouterr().out
    archive = elsewhere / "chexpert" / "CheXpert-v1.0-small.zip"
    content = bytearray(archive.read_bytes())
    content[100] ^= 1
    archive.write_bytes(content)
    assert main(["data", "chexpert"]) == 2 and "not the file expected" in capsys.readouterr().err


def test_command_lists_and_tells(put, capsys):
    put("wbc")
    put("dior", fetch=False)
    assert main(["data"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(registry.registry()) < set(lines)
    assert (
        "GPL v3" in lines["wbc"]
        and " here " in lines["wbc"]
        and "here, packed" in lines["dior"]
        and "by hand" in lines["chexpert"]
    )
    assert "170.5 MB" in lines["cifar10"] and "missing" in lines["cifar10"]
    assert main(["data", "--info", "ksdd", "mvtec"]) == 0
    told = capsys.readouterr().out
    assert (
        "65dc621693418585" in told
        and "squeezed" in told
        and "have not been tried" in told
        and "asks for a form" in told
    )
    assert (
        main(["data", "cifar10", "nonsense"]) == 2
        and "'nonsense' is unknown: choose one of" in capsys.readouterr().err
    )
    assert (
        main(["data", "chexpert"]) == 2
        and "CheXpert-v1.0-small.zip, which no program can fetch" in capsys.readouterr().err
    )


def test_an_archive_with_another_content(put, elsewhere):
    with pytest.raises(ValueError, match="does not hold 'Dataset 1' after unpacking"):
        put("wbc", {"segmentation_WBC-master.zip": zipped({"other/a.txt": b"x"})})


# ---------------------------------------------------------------- real images


def test_real_fashion_mnist(put, monkeypatch):
    """The original test files, whose hashes the registry has, also in the place of the training files."""
    folder = real("fashion_mnist")
    files = {
        name: (folder / name).read_bytes()
        for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    }
    for file in registry.registry()["fashion_mnist"]["files"][2:]:
        content = files[file["name"]]
        assert (len(content), hashlib.sha256(content).hexdigest(), md5(content)) == (
            file["bytes"],
            file["sha256"],
            file["md5"],
        )
    put(
        "fashion_mnist",
        files | {name.replace("t10k", "train"): content for name, content in files.items()},
    )
    task = load_task("fashion_mnist:ankle_boot", size=28)
    assert len(task.train) == 1000 and len(task.test) == 10_000 and (task.labels == 0).sum() == 1000
    raw = np.frombuffer(gzip.decompress(files["t10k-images-idx3-ubyte.gz"])[16:], np.uint8).reshape(
        -1, 28, 28
    )
    labels = np.frombuffer(gzip.decompress(files["t10k-labels-idx1-ubyte.gz"])[8:], np.uint8)
    assert (task.train[:50][:, 1] == raw[labels == 9][:50]).all()


def test_real_white_blood_cells(put):
    folder = real("wbc")
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    files = {
        "Class Labels of Dataset 1.csv": (
            "image ID,class label\n" + "".join(f"{int(row['id'])},{row['label']}\n" for row in rows)
        ).encode()
    }
    for image in folder.glob("images/*/*.png"):
        files[f"Dataset 1/{image.stem}.bmp"] = picture(Image.open(image).convert("RGB"), form="BMP")
    put(
        "wbc",
        {
            "segmentation_WBC-master.zip": zipped(
                {f"segmentation_WBC-master/{name}": content for name, content in files.items()}
            )
        },
    )
    task = load_task("wbc:1", size=64)
    assert len(task.train) == 141 and {
        kind: task.kinds.count(kind) for kind in layouts.WBC
    } == dict(neutrophil=35, lymphocyte=11, monocyte=10, eosinophil=4)
    stem = task.train.files[0].stem
    assert (
        task.train[0] == read_image(folder / "images" / "1_neutrophil" / f"{stem}.png", 64)
    ).all()


def test_real_leather(elsewhere):
    folder = real("mvtec_leather")
    (elsewhere / "mvtec").mkdir(parents=True)
    (elsewhere / "mvtec" / "leather").symlink_to(folder)
    task = load_task("mvtec:leather", size=64, missing_masks="drop")
    assert (
        len(task.train) == 4
        and len(task.test) == 15
        and (task.masks.any(axis=(1, 2)) == task.labels).all()
    )


def test_real_cifar10(put):
    folder = real("cifar10")
    archives = {}
    for split, names in (
        ("train", [f"data_batch_{part}" for part in range(1, 6)]),
        ("test", ["test_batch"]),
    ):
        images, labels = [], []
        for label, name in enumerate(layouts.CIFAR10):
            for path in sorted((folder / split / name).iterdir())[: 5 * len(names)]:
                images.append(np.asarray(Image.open(path)).transpose(2, 0, 1).ravel())
                labels.append(label)
        for part, name in enumerate(names):
            archives[f"cifar-10-batches-py/{name}"] = pickle.dumps(
                dict(data=np.stack(images[part :: len(names)]), labels=labels[part :: len(names)])
            )
    archives["cifar-10-batches-py/batches.meta"] = pickle.dumps(
        dict(label_names=list(layouts.CIFAR10))
    )
    put("cifar10", {"cifar-10-python.tar.gz": tar(archives)})
    task = load_task("cifar10:frog", size=32)
    wanted = [
        np.asarray(Image.open(path)).transpose(2, 0, 1)
        for path in sorted((folder / "test" / "frog").iterdir())[:5]
    ]
    assert (
        len(task.train) == 25
        and (task.test[:5] == np.stack(wanted)).all()
        and task.kinds[:6] == ("frog",) * 5 + ("airplane",)
    )


def test_no_warning_without_a_reason(put):
    put("cifar10")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_task("cifar10:cat", size=8).train[:]
