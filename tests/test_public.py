"""Public data sets: tiny imitations in torchvision's formats become the tasks of the table."""

import gzip
import hashlib
import io
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from pictures import flat, one_sentence, real, save
from PIL import Image
from torchvision import datasets

from pandalib import load_task, sibling_tasks
from pandalib.datasets import public
from pandalib.datasets.images import Geometry, ImageArray
from pandalib.io import ROOT

# Fine label -> coarse label, as the files of CIFAR-100 have it.
COARSE = (
    "4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 "
    "11 5 5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 "
    "16 12 9 13 15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13"
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("PANDALIB_DATASETS", str(tmp_path / "sets"))
    monkeypatch.delenv("PANDALIB_DOWNLOAD", raising=False)
    return tmp_path / "sets"


# ---------------------------------------------------------------- imitations


def colour(label, number=0, test=False):
    """A flat colour that tells class, number and split of an image, also after JPEG."""
    return (20 + 12 * (label % 20), 20 + 20 * number, 220 if test else 40)


def shades(images):
    """Class, number and split of flat images, read back from their colours."""
    middle = np.asarray(images[:])[:, :, 4, 4].astype(float)
    return [(round((r - 20) / 12), round((g - 20) / 20), bool(b > 130)) for r, g, b in middle]


def rows_of(n_classes, per_class, test):
    labels = np.tile(np.arange(n_classes), per_class).tolist()
    pixels = [colour(label, row // n_classes, test) for row, label in enumerate(labels)]
    return labels, np.repeat(np.array(pixels, np.uint8), 1024, axis=1)


def put_cifar(root, monkeypatch, kind, folder, fine):
    """CIFAR's files are pickles whose MD5 torchvision knows."""
    n_classes, sums = len(fine), {}
    for name, _ in [*kind.train_list, *kind.test_list, (kind.meta["filename"], "")]:
        part = int(name[-1]) - 1 if name[-1].isdigit() else 0
        test = name.startswith("test")
        labels, data = rows_of(n_classes, 2, test)
        step = len(labels) // (5 if name[-1].isdigit() else 1)
        rows = slice(part * step, (part + 1) * step)
        content = dict(data=data[rows], labels=labels[rows], fine_labels=labels[rows])
        content |= dict(label_names=list(fine), fine_label_names=list(fine))
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((root / folder / name).read_bytes()).hexdigest()
    for which in ("train_list", "test_list"):
        known = [[name, sums[name]] for name, _ in getattr(kind, which)]
        monkeypatch.setattr(kind, which, known)
    monkeypatch.setattr(kind, "meta", kind.meta | dict(md5=sums[kind.meta["filename"]]))


def put_cifar10(root, monkeypatch):
    names = public.ROWS["cifar10"]["classes"]
    put_cifar(root, monkeypatch, datasets.CIFAR10, "cifar-10-batches-py", names)


def put_cifar100(root, monkeypatch):
    names = public.ROWS["cifar100fine"]["classes"]
    put_cifar(root, monkeypatch, datasets.CIFAR100, "cifar-100-python", names)


def put_fashion_mnist(root, monkeypatch):
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, per_class in (("train", 3), ("t10k", 2)):
        labels = np.tile(np.arange(10), per_class).astype(np.uint8)
        grey = (20 * labels + (name == "t10k")).astype(np.uint8)
        pixels = np.broadcast_to(grey[:, None, None], (len(labels), 28, 28))
        for kind, array in (("labels-idx1", labels), ("images-idx3", pixels)):
            head = bytes([0, 0, 8, array.ndim])
            head += b"".join(length.to_bytes(4, "big") for length in array.shape)
            (raw / f"{name}-{kind}-ubyte").write_bytes(head + array.tobytes())


def put_pets(root, monkeypatch):
    pet = root / "oxford-iiit-pet"
    (pet / "annotations").mkdir(parents=True)
    for split, per_class in (("trainval", 3), ("test", 2)):
        lines = []
        for label, breed in enumerate(("Abyssinian", "beagle")):
            for number in range(per_class):
                name = f"{breed}_{number + 10 * (split == 'test')}"
                image = Image.new("RGB", (32, 32), colour(label, number, split == "test"))
                save(pet / "images" / f"{name}.jpg", image, quality=95)
                lines.append(f"{name} {label + 1} {label + 1} 1\n")
        (pet / "annotations" / f"{split}.txt").write_text("".join(lines))


def put_flowers102(root, monkeypatch):
    from scipy.io import savemat

    labels = np.tile(np.arange(1, 103), 6)
    ids = np.arange(1, len(labels) + 1)
    for number, label in zip(ids, labels, strict=True):
        shade = colour(label - 1, (number - 1) // 102, number > 306)
        save(root / f"flowers-102/jpg/image_{number:05}.jpg", Image.new("RGB", (16, 16), shade))
    savemat(root / "flowers-102" / "imagelabels.mat", dict(labels=labels))
    split = dict(trnid=ids[:204], valid=ids[204:306], tstid=ids[306:])
    savemat(root / "flowers-102" / "setid.mat", split)
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)


PUT = dict(
    cifar10=put_cifar10,
    cifar100=put_cifar100,
    fashion_mnist=put_fashion_mnist,
    pets=put_pets,
    flowers102=put_flowers102,
)


@pytest.fixture
def put(monkeypatch, elsewhere):
    return lambda name: PUT[name](elsewhere / name, monkeypatch)


# ---------------------------------------------------------------- the table


def test_rows_are_complete():
    assert set(public.SETS.values()) == set(public.SETS) - {"cifar100fine"}
    assert {name for name in public.ROWS if "torchvision" in public.ROWS[name]} == {
        "cifar100fine",
        *PUT,
    }
    facts = ("title", "licence", "download", "example", "layout", "protocol")
    for name, row in public.ROWS.items():
        lacking = [fact for fact in facts if not row.get(fact)]
        assert not lacking, f"data/data_sets.toml: {name} lacks {', '.join(lacking)}"
        assert row["page"].startswith("https://"), name
        assert ("torchvision" in row) != ("folder" in row), name
    with pytest.raises(ValueError, match="'imagenet' is unknown"):
        public.row_of("imagenet")


def test_names_of_classes_are_torchvisions():
    def canonical(name):
        return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())

    for name in ("flowers102", "fashion_mnist"):
        kind = getattr(datasets, public.ROWS[name]["torchvision"])
        assert [canonical(known) for known in kind.classes] == public.ROWS[name]["classes"]
    row = public.ROWS["cifar100"]
    fine = sorted(name for group in row["groups"].values() for name in group)
    assert fine == public.ROWS["cifar100fine"]["classes"] and list(row["groups"]) == row["classes"]


def test_the_page_of_data_sets_says_what_the_table_says():
    text = (ROOT / "docs" / "data_sets.md").read_text(encoding="utf-8")
    for name in public.SETS.values():
        row = public.ROWS[name]
        facts = [f"[{row['title']}]({row['page']})"]
        facts += [row[key] for key in ("example", "download", "licence", "protocol")]
        line = "| " + " | ".join(facts) + " |"
        assert line in text.splitlines(), f"docs/data_sets.md: this line is missing: {line}"


# ---------------------------------------------------------------- torchvision's sets


def every(labels, numbers):
    return [(label % 20, number, True) for label in labels for number in numbers]


@pytest.mark.parametrize(
    "spec, train, test",
    [
        ("cifar10:airplane", [(0, 0), (0, 1)], every(range(10), (0, 1))),
        ("cifar10:3", [(3, 0), (3, 1)], every((3, 0, 1, 2, *range(4, 10)), (0, 1))),
        ("cifar100fine:apple", [(0, 0), (0, 1)], every(range(100), (0, 1))),
        ("pets:dog", [(1, 0), (1, 1), (1, 2)], every((1, 0), (0, 1))),
        ("flowers102:Sweet pea", [(3, 0), (3, 1)], every((3, 0, 1, 2, *range(4, 102)), (3, 4, 5))),
    ],
)
def test_train_on_the_normal_class_test_on_all(put, spec, train, test):
    put(public.SETS[spec.partition(":")[0]])
    task = load_task(spec, size=20)
    assert shades(task.train) == [(*shade, False) for shade in train]
    assert shades(task.test) == test
    normal = task.kinds[0]
    assert task.name.endswith(f":{normal}") and task.labels.dtype == np.int64
    assert task.labels.tolist() == [int(kind != normal) for kind in task.kinds]
    if task.files is not None:
        for file, image in zip(task.files[:5], task.test[:5], strict=True):
            assert (Geometry.square(20).read(file) == image).all()


def test_fine_and_coarse_classes(put):
    put("cifar100")
    task = load_task("cifar100:aquatic mammals", size=20)
    fine = public.ROWS["cifar100fine"]["classes"]
    names = ("beaver", "dolphin", "otter", "seal", "whale")
    wanted = sorted((fine.index(name) % 20, number, False) for name in names for number in (0, 1))
    assert sorted(shades(task.train)) == wanted
    assert task.kinds[:10] == ("aquatic_mammals",) * 10 and len(task.labels) == 200
    row = public.ROWS["cifar100"]
    coarse = {name: number for number, group in enumerate(row["groups"].values()) for name in group}
    assert [coarse[name] for name in fine] == [int(number) for number in COARSE.split()]


def test_fashion_mnist(put):
    put("fashion_mnist")
    task = load_task("fashion_mnist:bag", size=20)
    assert isinstance(task.train, ImageArray) and task.train.pixels.shape == (3, 28, 28)
    grey = task.test[:].mean(axis=(1, 2, 3))
    assert grey.tolist() == [20 * label + 1 for label in (8, *range(8), 9) for _ in (0, 1)]


def test_samples_and_mistakes(put):
    put("cifar10")
    some = load_task("cifar10:cat", size=8, n_train=2, n_test=1, seed=3)
    assert len(some.train) == 2 and len(some.test) == 10 and len(set(some.kinds)) == 10
    for spec, words in (("cifar10:plane", "no class 'plane'"), ("cifar10:10", "no class '10'")):
        with pytest.raises(ValueError) as error:
            load_task(spec)
        one_sentence(error, words, "airplane, automobile")
    with pytest.raises(ValueError, match="n_test=0"):
        load_task("cifar10:cat", n_test=0)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("which", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_harmful_pickle_is_never_opened(put, tmp_path, elsewhere, which):
    put("cifar10")
    path = elsewhere / "cifar10" / "cifar-10-batches-py" / which
    path.write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    with pytest.raises(ValueError, match="torchvision cannot read CIFAR-10") as error:
        load_task("cifar10:cat")
    assert "delete that folder" in str(error.value) and not (tmp_path / "harm").exists()


# ---------------------------------------------------------------- sets that are folders


def test_sets_that_are_downloaded_manually(elsewhere):
    for number in range(5):
        flat(elsewhere / "wbc" / "monocyte" / f"{number}.png", number)
        flat(elsewhere / "wbc" / "lymphocyte" / f"{number}.png", number)
        flat(elsewhere / "mvtec" / "bottle" / "train" / "good" / f"{number}.png", number)
        for kind in ("good", "hole"):
            flat(elsewhere / "mvtec" / "bottle" / "test" / kind / f"{number}.png", number)
            for split in ("train", "test"):
                bird = "owl" if kind == "good" else "auk"
                flat(elsewhere / "cub200" / split / bird / f"{number}.png", number)
    task = load_task("wbc:Monocyte", size=8)
    assert task.name == "wbc:monocyte" and len(task.train) == 4
    assert task.kinds == ("monocyte",) + ("lymphocyte",) * 5
    task = load_task("mvtec:bottle", size=8, missing_masks="drop")
    assert task.name == "mvtec:bottle" and len(task.train) == 5 and len(task.test) == 10
    with pytest.raises(FileNotFoundError, match="wood"):
        load_task("mvtec:wood")
    assert sibling_tasks("cub200:owl") == ["cub200:auk", "cub200:owl"]
    assert load_task("cub200:owl", size=8).kinds == ("owl",) * 5 + ("auk",) * 5


@pytest.mark.parametrize("source", public.SETS)
def test_a_missing_set_says_how_to_get_it(elsewhere, source):
    name, row = public.SETS[source], public.ROWS[source]
    with pytest.raises(FileNotFoundError) as error:
        load_task(f"{source}:{row.get('classes', ['owl'])[0]}")
    one_sentence(error, row["page"], elsewhere / name, row["layout"])
    command = f"python -m pandalib data {source}"
    assert (command in str(error.value)) == ("torchvision" in row) and not elsewhere.exists()
    if "torchvision" not in row:
        with pytest.raises(FileNotFoundError):
            public.fetch(name)


# ---------------------------------------------------------------- downloads


@pytest.fixture
def served(tmp_path, monkeypatch, put, elsewhere):
    """An imitation of CIFAR-10's archive on a server of this machine, in place of the real one."""
    for proxy in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    put("cifar10")
    (tmp_path / "served").mkdir()
    archive = tmp_path / "served" / datasets.CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(elsewhere / "cifar10" / "cifar-10-batches-py", "cifar-10-batches-py")
    (elsewhere / "cifar10").rename(tmp_path / "away")

    class Quiet(SimpleHTTPRequestHandler):
        log_message = staticmethod(lambda *arguments: None)

    handler = partial(Quiet, directory=archive.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        monkeypatch.setattr(datasets.CIFAR10, "url", url)
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5)
        yield archive
        server.shutdown()


def test_nothing_is_downloaded_unless_asked_for(served, monkeypatch):
    with pytest.raises(FileNotFoundError):
        load_task("cifar10:cat")
    monkeypatch.setenv("PANDALIB_DOWNLOAD", "1")
    with pytest.raises(FileNotFoundError):
        load_task("cifar10:cat", download=False)
    assert not public.is_here("cifar10")
    assert shades(load_task("cifar10:cat", size=8).train) == [(3, 0, False), (3, 1, False)]
    monkeypatch.delenv("PANDALIB_DOWNLOAD")
    served.unlink()
    assert public.fetch("cifar10") == public.require("cifar10")  # what is here is not fetched again


@pytest.mark.parametrize("fault", ["another file", "a missing file"])
def test_a_failed_download_leaves_nothing(served, elsewhere, fault):
    if fault == "another file":
        with tarfile.open(served, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("cifar-10-batches-py/test_batch"), io.BytesIO())
    else:
        served.unlink()
    with pytest.raises(OSError, match="cifar10 could not be downloaded") as error:
        load_task("cifar10:cat", download=True)
    one_sentence(error, "download it manually from https://www.cs.toronto.edu")
    assert not list(elsewhere.iterdir())


# ---------------------------------------------------------------- real images


def test_real_fashion_mnist(elsewhere):
    """The original test files, also in the place of the training files."""
    folder, raw = real("fashion_mnist"), elsewhere / "fashion_mnist" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    files = {}
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        packed = (folder / f"{name}.gz").read_bytes()
        known = dict(datasets.FashionMNIST.resources)[f"{name}.gz"]
        assert hashlib.md5(packed).hexdigest() == known
        files[name[5:11]] = gzip.decompress(packed)
        for split in ("t10k", "train"):
            (raw / name.replace("t10k", split)).write_bytes(files[name[5:11]])
    task = load_task("fashion_mnist:ankle_boot", size=28)
    assert len(task.train) == 1000 and len(task.test) == 10_000 and (task.labels == 0).sum() == 1000
    pixels = np.frombuffer(files["images"][16:], np.uint8).reshape(-1, 28, 28)
    labels = np.frombuffer(files["labels"][8:], np.uint8)
    assert (task.train[:50][:, 1] == pixels[labels == 9][:50]).all()


def test_real_leather(elsewhere):
    (elsewhere / "mvtec").mkdir(parents=True)
    (elsewhere / "mvtec" / "leather").symlink_to(real("mvtec_leather"))
    task = load_task("mvtec:leather", size=64, missing_masks="drop")
    assert len(task.train) == 4 and len(task.test) == 15
    assert (task.masks.any(axis=(1, 2)) == task.labels).all()
