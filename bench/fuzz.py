"""Damaged and malicious files for every reader: `python bench/fuzz.py [READER ...]`

    python bench/fuzz.py                       2,000 mutated inputs for each reader
    python bench/fuzz.py images --inputs 99 --seed 7

A reader has to end in a result or in one sentence (ValueError or OSError, one line), within
seconds, and has to leave its folder as it was. Anything else is a fault: the input is kept in
build/fuzz, and the command ends with 1. The same seed gives the same inputs; tests/test_fuzz.py
runs a few of them.

Bytes are flipped, overwritten, cut, doubled, inserted and taken from other files; PNG chunks are
then given their right checksums, or no mutation would get past them. What is JSON or text inside is
changed by its meaning too (a number becomes -1, a name a path out of the folder), and what stands
under a hash is given its new hash, as a stranger could.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
from submissions import read as read_notebook

from pandalib import Fisher, Inspector, load_backbone, load_grid, read_results, summarise
from pandalib.datasets.images import Geometry, ImageFolder, upright_size
from pandalib.datasets.layouts import images_to_fit, images_to_score, read_layout
from pandalib.datasets.listing import find_images
from pandalib.datasets.load import load_task
from pandalib.datasets.region import read_region
from pandalib.experiments.results import file_name, identity, read_plan, write_result
from pandalib.experiments.tables import as_csv, as_markdown
from pandalib.inspection.review import read_review
from pandalib.inspection.storage import FACTS
from pandalib.io import dump_json_with_hash, load_json_with_hash, read_tensors, write_tensors
from pandalib.weights import read_state

SLOWEST = 30  # seconds for one input
SIDE = 32  # pixels
STRANGE = [
    None,
    True,
    -1,
    0,
    1e308,
    2**63,
    "",
    "x",
    "../../x",
    "/etc/passwd",
    "\0",
    "é\u202e",
    [],
    {},
]
NUMBERS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]
WORDS = [
    "-1",
    "0",
    "1e999",
    "nan",
    "99999999999",
    "''",
    '""',
    "[]",
    "{}",
    "../..",
    "\0",
    "\u202e",
    ",",
]


class Reader(NamedTuple):
    """How a good input is made in a folder, changed there, and read.

    `make(folder)` writes a good one; `change(rng, folder)` damages it; `read(folder)` is what a
    reader of such a file does, and raises AssertionError for a result that is wrong.
    """

    make: Callable[[Path], None]
    change: Callable[[np.random.Generator, Path], None]
    read: Callable[[Path], object]


# ---------------------------------------------------------------- changes


def change_bytes(rng: np.random.Generator, content: bytes, other: bytes = b"") -> bytes:
    """One to four changes, more often in front, where headers are."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.random() ** 2 * len(content))
        n = int(rng.integers(1, 9))
        match rng.integers(8):
            case 0:
                content[place : place + 1] = bytes(
                    b ^ (1 << rng.integers(8)) for b in content[place:][:1]
                )
            case 1:
                content[place : place + n] = rng.bytes(n)
            case 2:
                del content[place : place + n * n]
            case 3:
                content[place:place] = rng.bytes(n)
            case 4:
                content[place:place] = content[place : place + n * n]
            case 5:
                del content[max(1, place) :]
            case 6:
                number = NUMBERS[rng.integers(len(NUMBERS))]
                size = rng.choice(["<I", ">I", "<H", ">H"])
                content[place : place + struct.calcsize(size)] = struct.pack(
                    size, number & (0xFFFF if "H" in size else 0xFFFFFFFF)
                )
            case 7:
                content[place:] = other[place:] or content[place:]
    return bytes(content)


def change_text(rng: np.random.Generator, text: str) -> str:
    """Words are replaced, and lines are deleted, doubled and exchanged."""
    for _ in range(rng.integers(1, 4)):
        lines = text.splitlines()
        words = list(re.finditer(r"[^\s\"',=\[\]{}:]+", text))
        row, other = rng.integers(len(lines) or 1, size=2)
        match rng.integers(5):
            case 0 | 1 if words:
                start, end = words[rng.integers(len(words))].span()
                text = text[:start] + WORDS[rng.integers(len(WORDS))] + text[end:]
            case 2 if lines:
                del lines[row]
                text = "\n".join(lines)
            case 3 if lines:
                lines.insert(other, lines[row])
                text = "\n".join(lines)
            case 4:
                place = int(rng.integers(len(text) + 1))
                text = text[:place] + WORDS[rng.integers(len(WORDS))] + text[place + 1 :]
    return text


def change_tree(rng: np.random.Generator, tree):
    """One to three values of a JSON tree are replaced by strange ones, deleted or doubled."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.integers(1, 4)):
        places = [(tree, key) for key in _keys(tree)]
        for parent, key in places:  # grows while it is read
            places += [(parent[key], inner) for inner in _keys(parent[key])]
        if not places:
            return tree
        parent, key = places[rng.integers(len(places))]
        match rng.integers(4):
            case 0:
                del parent[key]
            case 1 if isinstance(parent[key], (int, float)):
                scaled = float(parent[key]) * float(rng.choice([-1, 0, 0.5, 2, 1e6]))
                parent[key] = scaled if np.isfinite(scaled) else 0.0  # JSON has no infinity
            case _:
                parent[key] = json.loads(json.dumps(STRANGE[rng.integers(len(STRANGE))]))
    return tree


def _keys(tree):
    if isinstance(tree, list):
        return range(len(tree))
    return list(tree) if isinstance(tree, dict) else ()


def change_file(rng: np.random.Generator, path: Path, other: bytes = b"") -> None:
    """Damage a file's bytes; a PNG keeps right checksums half of the time."""
    content = change_bytes(rng, path.read_bytes(), other)
    if path.suffix == ".png" and rng.random() < 0.5:
        content = with_checksums(content)
    path.write_bytes(content)


def change_text_file(rng: np.random.Generator, path: Path) -> None:
    if rng.random() < 0.3:
        change_file(rng, path)
    else:
        text = change_text(rng, path.read_text(encoding="utf-8"))
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))


def change_json_with_hash(rng: np.random.Generator, path: Path) -> None:
    if rng.random() < 0.2:
        return change_file(rng, path)
    path.write_bytes(dump_json_with_hash(change_tree(rng, load_json_with_hash(path.read_bytes()))))


def with_checksums(png: bytes) -> bytes:
    """The chunks of a PNG with the checksums of what they hold now."""
    out, place = bytearray(png[:8]), 8
    while place + 12 <= len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        body = png[place + 4 : place + 8 + length]
        out += png[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(out + png[place:])


# ---------------------------------------------------------------- images, masks, lists, folders

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


FORMS = {
    "colour.png": lambda: (Image.fromarray(PICTURE), {}),
    "grey16.png": lambda: (Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257), {}),
    "palette.png": lambda: (Image.fromarray(PICTURE).quantize(16), {"transparency": 3}),
    "alpha.png": lambda: (Image.fromarray(PICTURE).convert("RGBA"), {}),
    "photo.jpg": lambda: (Image.fromarray(PICTURE), {"exif": _rotated()}),
    "cmyk.jpg": lambda: (Image.fromarray(PICTURE).convert("CMYK"), {}),
    "pages.tiff": lambda: (
        Image.fromarray(PICTURE),
        {"save_all": True, "append_images": [Image.fromarray(PICTURE)]},
    ),
    "packed.tiff": lambda: (Image.fromarray(PICTURE), {"compression": "tiff_lzw"}),
    "deflated.tiff": lambda: (Image.fromarray(PICTURE), {"compression": "tiff_deflate"}),
    "wide.tiff": lambda: (Image.fromarray(PICTURE[..., 0].astype(np.uint16)), {}),
    "plain.bmp": lambda: (Image.fromarray(PICTURE), {}),
    "lossy.webp": lambda: (Image.fromarray(PICTURE), {}),
    "moving.gif": lambda: (
        Image.fromarray(PICTURE).quantize(8),
        {"save_all": True, "append_images": [Image.fromarray(PICTURE).quantize(8)]},
    ),
    "plain.ppm": lambda: (Image.fromarray(PICTURE), {}),
    "plain.pgm": lambda: (Image.fromarray(PICTURE[..., 0]), {}),
}


def _image(name: str) -> bytes:
    picture, options = FORMS[name]()
    buffer = io.BytesIO()
    kind = {"jpg": "jpeg", "ppm": "ppm", "pgm": "ppm"}.get(name[-3:], name.rpartition(".")[2])
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


IMAGES = {name: _image(name) for name in FORMS}


def make_images(folder: Path) -> None:
    for name, content in IMAGES.items():
        (folder / name).write_bytes(content)


def change_image(rng: np.random.Generator, folder: Path) -> None:
    """One file is left, and damaged."""
    chosen = str(rng.choice(list(IMAGES)))
    for path in folder.iterdir():
        if path.name != chosen:
            path.unlink()
    change_file(rng, folder / chosen, IMAGES[str(rng.choice(list(IMAGES)))])


def read_image(folder: Path):
    (path,) = folder.iterdir()
    width, height = upright_size(path)
    assert width > 0 and height > 0
    pixels = Geometry.square(SIDE).read(path)
    assert pixels.shape == (3, SIDE, SIDE) and pixels.dtype == np.uint8
    assert np.array_equal(ImageFolder([path], Geometry.square(SIDE))[:1][0], pixels)
    geometry = Geometry.for_images([path], SIDE)
    assert geometry.read(path).shape == (3, geometry.height, geometry.width)


def read_mask(folder: Path):
    (path,) = folder.iterdir()
    mask = Geometry.square(SIDE).read_mask(path, image=Image.new("L", (20, 24)))
    assert mask.shape == (SIDE, SIDE) and mask.dtype == bool
    inside = read_region(path, 24, 20)
    assert inside.shape == (24, 20) and inside.any()


def make_list(folder: Path) -> None:
    (folder / "images").mkdir()
    for name in ("one.png", "two.png"):
        (folder / "images" / name).write_bytes(IMAGES["colour.png"])
    rows = "file,label\nimages/one.png,good\nimages/two.png,good\n"
    (folder / "list.csv").write_text(rows)


def read_list(folder: Path):
    listing = find_images(folder / "list.csv")
    assert listing.files and all(path.is_file() for path in listing.files)


def make_layout(folder: Path) -> None:
    for kind in ("train/good", "test/good", "test/hole", "ground_truth/hole"):
        (folder / "set" / kind).mkdir(parents=True)
        for name in ("a.png", "b.png", "c.png"):
            (folder / "set" / kind / name).write_bytes(IMAGES["colour.png"])


def change_layout(rng: np.random.Generator, folder: Path) -> None:
    """Names are changed, and files and folders are deleted, moved and damaged."""
    for _ in range(rng.integers(1, 4)):
        paths = sorted((folder / "set").rglob("*"))
        if not paths:
            return
        path, other = (paths[n] for n in rng.integers(len(paths), size=2))
        match rng.integers(5):
            case 0:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            case 1:
                name = str(rng.choice(["ä ö", "x" * 200, "-", "MASKS", "good", ".hidden", "a:b"]))
                if not path.with_name(name).exists():
                    path.rename(path.with_name(name))
            case 2 if path.is_file():
                path.write_bytes(change_bytes(rng, path.read_bytes()))
            case 3 if path.is_file() and other.is_dir():
                path.rename(other / path.name)
            case 4 if path.is_file():
                path.with_suffix(str(rng.choice([".txt", ".jpg", ".PNG", ""]))).write_bytes(b"?")


def read_folder(folder: Path):
    found = read_layout(folder / "set")
    assert found.train and found.tests
    task = load_task(f"folder:{folder / 'set'}", size=SIDE, missing_masks="drop")
    assert len(task.train[:]) and len(task.test[:]) == len(task.labels)


def read_listing(folder: Path):
    assert images_to_fit(folder / "set", recursive=True).files
    assert images_to_score(folder / "set").files


def make_region(folder: Path) -> None:
    (folder / "region").write_text("10,20 300,20 300,180", encoding="utf-8")


def read_polygon(folder: Path):
    text = (folder / "region").read_text(encoding="utf-8", errors="surrogateescape")
    assert read_region(text, 200, 320).any()


# ---------------------------------------------------------------- grids, results, models, weights


def make_grid(folder: Path) -> None:
    names = ("surfaces_embedded", "adaptation_embedded", "fisher_embedded")
    for name in names:
        shutil.copy(ROOT / "data" / "grids" / f"{name}.toml", folder)


def change_grid(rng: np.random.Generator, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    kept = paths[rng.integers(len(paths))]
    change_text_file(rng, kept)
    kept.rename(folder / "grid.toml")
    for path in paths:
        path.unlink(missing_ok=True)


def read_grid(folder: Path):
    grid = load_grid(folder / "grid.toml")
    for settings in grid.runs(skip_missing=True):
        assert "/" not in file_name(settings)


def make_results(folder: Path) -> None:
    runs = [
        {"task": "pictograms:star", "method": method, "tier": "embedded", "seed": 0}
        for method in ("dn2", "whitened")
    ]
    plan = {"name": "tiny", "description": "Two runs.", "tier": "embedded", "runs": runs}
    plan |= {"left_out": {}, "classes": {"pictograms": 10}}
    (folder / "plan.json").write_bytes(dump_json_with_hash(plan))
    for run in runs:
        history = [{"epoch": 0, "roc_auc": 0.8, "feature_variance": 1.0}]
        facts = {"versions": {"torch": "2"}, "backbone": "glyphs_resnet4", "weights_sha256": "ab"}
        facts |= {"labels": "0011", "scores": [0.1, 0.3, 0.2, 0.4], "n_test": 4}
        result = {**run, "settings": run, "id": identity(run), "roc_auc": 0.8, "history": history}
        write_result(result | facts, folder)


def change_results(rng: np.random.Generator, folder: Path) -> None:
    paths = sorted(folder.rglob("*.json"))
    change_json_with_hash(rng, paths[rng.integers(len(paths))])


def read_sweep(folder: Path):
    plan, results = read_plan(folder), read_results(folder)
    rows = summarise(results, plan)
    for row in rows:
        assert all(np.isfinite(row.mean(metric)) for metric in row.by_class)
    done = [row for row in rows if row.n_runs]
    assert as_csv(done) and as_markdown(rows, plan, results, "A sentence.")


BACKBONE = load_backbone()


def make_model(folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (22, 3, 64, 64), dtype=np.uint8)
    Inspector(BACKBONE, n_maps=20, progress=False).fit(images).save(folder / "model")


def change_model(rng: np.random.Generator, folder: Path) -> None:
    facts_file = folder / "model" / FACTS
    (tensors_file,) = (folder / "model").glob("*.safetensors")
    if rng.random() < 0.6:
        return change_json_with_hash(rng, facts_file)
    change_tensors(rng, tensors_file)
    if rng.random() < 0.8:  # a stranger names the file as it should be named
        digest = hashlib.sha256(tensors_file.read_bytes()).hexdigest()
        tensors_file.rename(tensors_file.with_name(f"normal-{digest[:12]}.safetensors"))
        facts = load_json_with_hash(facts_file.read_bytes())
        facts["tensors"] = {"file": f"normal-{digest[:12]}.safetensors", "sha256": digest}
        facts_file.write_bytes(dump_json_with_hash(facts))


def change_tensors(rng: np.random.Generator, path: Path) -> None:
    """Bytes, the header's meaning, or numbers of a file of tensors."""
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    match rng.integers(4):
        case 0:
            content = change_bytes(rng, content)
        case 1:
            header = json.dumps(change_tree(rng, json.loads(content[8 : 8 + n]))).encode()
            content = len(header).to_bytes(8, "little") + header + content[8 + n :]
        case 2:
            header = change_text(rng, content[8 : 8 + n].decode()).encode()
            content = len(header).to_bytes(8, "little") + header + content[8 + n :]
        case 3:
            numbers = bytearray(content)
            for _ in range(rng.integers(1, 9)):
                place = 8 + n + 4 * int(rng.integers((len(content) - 8 - n) // 4))
                value = rng.choice([np.nan, np.inf, -np.inf, -1, 1e38, 0])
                numbers[place : place + 4] = struct.pack("<f", value)
            content = bytes(numbers)
    path.write_bytes(content)


PROBE = np.random.default_rng(1).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)


def read_model(folder: Path):
    inspector = Inspector.load(folder / "model", backbone=BACKBONE)
    inspector.progress = False
    scores = inspector.score(PROBE)
    assert np.isfinite(scores).all() and np.isfinite(inspector.threshold()), scores


def make_tensors(folder: Path) -> None:
    facts = {"epochs": [0, 1], "name": "x", "nested": {"a": [1.5, None]}}
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2, dtype=torch.int64)}
    write_tensors(folder / "some.safetensors", tensors, facts)


def change_some_tensors(rng: np.random.Generator, folder: Path) -> None:
    """Damage the file, or write other facts and tensors with their right hash."""
    path = folder / "some.safetensors"
    if rng.random() < 0.5:
        return change_tensors(rng, path)
    tensors, facts = read_tensors(path)
    if rng.random() < 0.7:
        facts = change_tree(rng, facts)
    else:
        name = str(rng.choice(list(tensors)))
        one = tensors[name]
        others = [one * torch.nan, -one, one.double(), one.int(), one[:0], one.flatten(), one[None]]
        tensors[name] = others[rng.integers(len(others))]
    write_tensors(path, tensors, facts)


def read_some_tensors(folder: Path):
    read_tensors(folder / "some.safetensors")


def make_fisher(folder: Path) -> None:
    named = dict(BACKBONE.trainable.named_parameters())
    values = {name: torch.ones_like(parameter) for name, parameter in named.items()}
    places = BACKBONE.weights_sha256, BACKBONE.adapt_from, BACKBONE.truncate_after
    Fisher(values, *places, "ones", 3).save(folder / "some.safetensors")


def read_fisher(folder: Path):
    assert 0 <= Fisher.load(folder / "some.safetensors", BACKBONE).mean() < np.inf


def make_weights(folder: Path) -> None:
    state = {"conv.weight": torch.ones(2, 3, 1, 1), "n": torch.tensor(3)}
    torch.save(state, folder / "weights.pth")
    torch.save({"state_dict": state}, folder / "old.pth", _use_new_zipfile_serialization=False)
    write_tensors(folder / "weights.safetensors", state, {})


def change_weights(rng: np.random.Generator, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    kept = paths[rng.integers(len(paths))]
    for path in paths:
        if path != kept:
            path.unlink()
    if kept.suffix == ".safetensors":
        change_tensors(rng, kept)
    else:
        change_file(rng, kept)


def read_weights(folder: Path):
    (path,) = folder.iterdir()
    assert all(isinstance(value, torch.Tensor) for value in read_state(path).values())


def make_notebook(folder: Path) -> None:
    cells = [nbformat.v4.new_markdown_cell("# A"), nbformat.v4.new_code_cell("check('a', 1)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "lesson.ipynb")


def change_notebook(rng: np.random.Generator, folder: Path) -> None:
    path = folder / "lesson.ipynb"
    if rng.random() < 0.4:
        return change_file(rng, path)
    path.write_text(json.dumps(change_tree(rng, json.loads(path.read_text()))))


def read_lesson(folder: Path):
    for cell in read_notebook(folder / "lesson.ipynb").cells:
        assert isinstance(cell.source, str)


def text_file(name: str) -> Callable:
    return lambda rng, folder: change_text_file(rng, folder / name)


# ---------------------------------------------------------------- reviews

PATHS = ("../secret.png", "/etc/passwd", "b/../../secret.png", "b/..", "", ".", "b", "one.png/")
PATHS += ("x" * 5000, "\ud800", "a\0b", "b/two.png")


def make_review(folder: Path) -> None:
    """A review of two images, and beside their folder a file that is none of its business."""
    (folder / "images" / "b").mkdir(parents=True)
    for name in ("images/one.png", "images/b/two.png", "secret.png"):
        (folder / name).write_bytes(IMAGES["colour.png"])
    entries = [
        {"file": "one.png", "verdict": "normal", "alarm": True},
        {"file": "b/two.png", "verdict": "defect", "alarm": False},
    ]
    review = {"format": "pandalib review", "version": 1, "reviewed": entries}
    (folder / "review.json").write_text(json.dumps(review, indent=1), encoding="utf-8")


def change_review(rng, folder: Path) -> None:
    path, kind = folder / "review.json", rng.random()
    if kind < 0.3:
        return change_text_file(rng, path)
    tree = json.loads(path.read_text(encoding="utf-8"))
    if kind < 0.6:
        tree["reviewed"][rng.integers(2)]["file"] = PATHS[rng.integers(len(PATHS))]
    else:
        tree = change_tree(rng, tree)
    path.write_text(json.dumps(tree), encoding="utf-8")


def read_reviewed(folder: Path) -> None:
    review = read_review(folder / "review.json", folder / "images")
    inside = (folder / "images").resolve()
    for path in [*review.normal, *review.defects]:
        assert path.resolve().is_relative_to(inside) and path.is_file(), path


READERS = {
    "images": Reader(make_images, change_image, read_image),
    "masks": Reader(make_images, change_image, read_mask),
    "lists": Reader(make_list, text_file("list.csv"), read_list),
    "folders": Reader(make_layout, change_layout, read_folder),
    "listings": Reader(make_layout, change_layout, read_listing),
    "regions": Reader(make_region, text_file("region"), read_polygon),
    "grids": Reader(make_grid, change_grid, read_grid),
    "results": Reader(make_results, change_results, read_sweep),
    "models": Reader(make_model, change_model, read_model),
    "tensors": Reader(make_tensors, change_some_tensors, read_some_tensors),
    "fisher": Reader(make_fisher, change_some_tensors, read_fisher),
    "weights": Reader(make_weights, change_weights, read_weights),
    "notebooks": Reader(make_notebook, change_notebook, read_lesson),
    "reviews": Reader(make_review, change_review, read_reviewed),
}


# ---------------------------------------------------------------- the run


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder with the hash of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def outcome(reader: Reader, folder: Path) -> tuple[str, str]:
    """ "result" or "sentence", or a fault and what is wrong."""
    before, start = contents(folder), time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about damaged metadata
            reader.read(folder)
        found = "result", ""
    except (ValueError, OSError) as error:
        found = "sentence", str(error)
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return "traceback", f"{type(error).__name__} at {where}: {str(error)[:200]}"
    if time.perf_counter() - start > SLOWEST:
        return "slow", f"{time.perf_counter() - start:.0f} s"
    if contents(folder) != before:
        return "written", f"{contents(folder).keys() ^ before.keys()}"
    kind, said = found
    if kind == "sentence" and (not said.strip() or len(said.splitlines()) > 1):
        return "no sentence", repr(said[:300])
    return found


def run(
    name: str, inputs: int, seed: int, keep: Path | None = None, first: int = 0
) -> tuple[Counter, list[str]]:
    """So many mutated inputs for one reader: how each ended, and the faults in words.

    Parameters
    ----------
    keep : Path, optional
        Where to leave the inputs of faults.
    first : int
        The number of the first input.
    """
    reader, counts, faults = READERS[name], Counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        good = Path(scratch) / "good"
        good.mkdir()
        reader.make(good)
        for number in range(first, first + inputs):
            folder = Path(scratch) / "input"
            shutil.copytree(good, folder)
            reader.change(np.random.default_rng([seed, number]), folder)
            kind, said = outcome(reader, folder)
            counts[kind] += 1
            if kind not in ("result", "sentence"):
                faults.append(f"{name} {number}: {kind}: {said}")
                if keep is not None:
                    shutil.rmtree(keep / f"{name}-{number}", ignore_errors=True)
                    shutil.copytree(folder, keep / f"{name}-{number}")
            shutil.rmtree(folder)
    return counts, faults


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    options = parser.parse_args(arguments)
    unknown = set(options.readers) - set(READERS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(READERS)}.")
    os.environ["PANDALIB_QUIET"] = "1"
    keep, failed = ROOT / "build" / "fuzz", False
    for name in options.readers or READERS:
        start = time.perf_counter()
        counts, faults = run(name, options.inputs, options.seed, keep, options.first)
        ends = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        print(f"{name}: {ends}; {time.perf_counter() - start:.0f} s", flush=True)
        for fault in faults[:20]:
            print(f"  {fault}")
        failed = failed or bool(faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
