"""What strangers send: pickles that run code, TOML and JSON without end, names and paths of every kind; and too few images, or numbers that are none."""

import contextlib
import json
import os
import pickle
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import images, small_backbone

from pandalib.__main__ import main
from pandalib.methods.panda import fit_compactness
from pandalib.backbones import load_backbone
from pandalib.weights import read_state
from pandalib.methods.patchcore import PatchCore
from pandalib.cache import FeatureCache
from pandalib.methods.panda import PANDA, PANDASES
from pandalib.methods.knn import DN2, PixelKNN
from pandalib.methods.ewc import Fisher
from pandalib.experiments.sweep import read_results
from pandalib.methods.outlier_exposure import OutlierExposure
from pandalib.io import ROOT, write_atomically
from pandalib.experiments.grids import MOST_RUNS, load_grid
from pandalib.inspection.inspector import Inspector
from pandalib.methods.knn import leave_one_out_scores
from pandalib.metrics import bootstrap_interval, pixel_roc_auc, pro, roc_auc
from pandalib.io import read_tensors
from pandalib.methods.spade import SPADE
from pandalib.datasets.images import ImageError, read_image
from pandalib.methods.deep_svdd import DeepSVDD

# ---------------------------------------------------------------- no pickle

RUNS_CODE = {  # what would run code that stands in a file, or unpack a pickle
    r"\bpickle\.(load|Unpickler)": "pickle",
    r"\b(c?[Pp]ickle|dill|cloudpickle|marshal|shelve|jsonpickle)\b.*import|import.*\b(c?[Pp]ickle|dill|cloudpickle|marshal|shelve|jsonpickle)\b": "import of pickle",
    r"torch\.load\((?!.*weights_only=True)": "torch.load without weights_only=True",
    r"torch\.(jit|package)\b.*load|torch\.hub\.load\(": "torch's other loaders",
    r"allow_pickle\s*=\s*True": "numpy's pickles",
    r"\b(np|numpy)\.load\((?!.*allow_pickle=False)": "np.load",
    r"joblib\.load\(": "joblib.load",
    r"read_pickle": "pandas' pickles",
    r"yaml\.(unsafe_|full_)?load\(": "yaml.load",
    r"(?<![\w.])(eval|exec)\(": "eval or exec",
    r"weights_only\s*=\s*False": "weights_only=False",
    r"extractall\(": "extractall",
    r"shell\s*=\s*True": "a shell",
    r"os\.system\(": "a shell",
}


def test_no_source_reads_pickles_or_runs_text():
    sources = {
        path: path.read_text(encoding="utf-8")
        for folder in ("pandalib", "tools", "bench")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources[path] = "\n".join(
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
        )
    assert len(sources) > 60
    found = [
        f"{path.relative_to(ROOT)}: {what}: {line.strip()}"
        for path, text in sources.items()
        for line in text.splitlines()
        for rule, what in RUNS_CODE.items()
        if re.search(rule, line)
    ]
    assert not found
    for line in (
        "pickle.load(f)",
        "import pickle",
        "torch.load(path)",
        "np.load(path)",
        "eval(text)",
        "joblib.load(a)",
        "np.fromfile(a, allow_pickle=True)",
    ):
        assert any(re.search(rule, line) for rule in RUNS_CODE), line  # the rules themselves


class Harmful:
    """Leaves a file where it was asked to, once it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def harm(tmp_path):
    harm = tmp_path / "harm"
    assert pickle.loads(pickle.dumps(Harmful(harm))) is None and harm.is_dir()  # it works
    harm.rmdir()
    return harm


def harmful_files(harm: Path) -> dict[str, bytes]:
    plain = pickle.dumps(Harmful(harm))
    (harm.parent / "made").mkdir()
    old, new, array, archive = (
        harm.parent / "made" / name for name in ("old", "new", "array.npy", "archive.npz")
    )
    torch.save(dict(a=Harmful(harm)), old, _use_new_zipfile_serialization=False)
    torch.save(dict(a=Harmful(harm)), new)
    np.save(array, np.array([Harmful(harm)], dtype=object), allow_pickle=True)
    np.savez(archive, a=np.array([Harmful(harm)], dtype=object))
    return dict(
        plain=plain,
        old=old.read_bytes(),
        new=new.read_bytes(),
        array=array.read_bytes(),
        archive=archive.read_bytes(),
    )


def test_harmful_pickles_never_run(harm, tmp_path, monkeypatch):
    """As weights, images, detector, checkpoint, Fisher information, cache, grid and result."""
    backbone = small_backbone()
    stem = backbone.frozen_features(images(4))
    model = tmp_path / "model"
    Inspector(backbone, false_alarm_rate=0.3, progress=False).fit(images(6)).save(model)
    tensors = next(model.glob("*.safetensors"))
    for kind, content in harmful_files(harm).items():
        path = tmp_path / kind
        path.mkdir()
        for ending in (".pth", ".pt", ".safetensors", ".npy", ".bin", ".pkl"):
            (path / f"w{ending}").write_bytes(content)
            with pytest.raises(ValueError, match=rf"weights .*w{ending} (cannot be read|hold)"):
                load_backbone("resnet18", path / f"w{ending}")
        for ending in (".png", ".tif", ".npy"):
            (path / f"i{ending}").write_bytes(content)
            with pytest.raises(ImageError):
                read_image(path / f"i{ending}", 8)
        (path / "f.safetensors").write_bytes(content)
        with pytest.raises(
            ValueError, match="f.safetensors is damaged, or holds no Fisher information"
        ):
            Fisher.load(path / "f.safetensors")
        (path / "run").mkdir()
        (path / "run" / "resume.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="resume.safetensors is damaged or no checkpoint"):
            fit_compactness(
                backbone,
                stem,
                folder=path / "run",
                epochs=1,
                lr=0.1,
                max_grad_norm=None,
                progress=False,
            )
        for name in (tensors.name, "detector.json"):
            shutil.copytree(model, path / f"model {name}")
            (path / f"model {name}" / name).write_bytes(content)
            with pytest.raises(ValueError, match=f"{name} is damaged"):
                Inspector.load(path / f"model {name}", backbone=backbone)
        (path / f"{'0' * 40}.float16.features").write_bytes(content)
        assert FeatureCache(path).get("0" * 40, (1, 2), iter([np.ones((1, 2))])).tolist() == [
            [1, 1]
        ]
        (path / "g.toml").write_bytes(content)
        with pytest.raises(ValueError, match="g.toml is no TOML"):
            load_grid(path / "g.toml")
        (path / "plan.json").write_bytes(content)
        with pytest.raises(ValueError, match="plan.json is damaged"):
            read_results(path)
        assert not harm.exists(), kind


def test_a_harmful_file_beside_fashion_mnist(harm, tmp_path, monkeypatch):
    """torchvision looks for an old form of that data set first, which was a pickle."""
    from pandalib.datasets.public import load_task

    monkeypatch.setenv("PANDALIB_DATASETS", str(tmp_path))
    raw, processed = (
        tmp_path / "fashion_mnist" / "unpacked" / "FashionMNIST" / name
        for name in ("raw", "processed")
    )
    raw.mkdir(parents=True)
    processed.mkdir()
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (raw / name).write_bytes(b"")
    for name in ("training.pt", "test.pt"):
        torch.save(Harmful(harm), processed / name)
    with pytest.raises(ValueError, match="torchvision's FashionMNIST cannot read"):
        load_task("fashion_mnist:bag", size=8)
    assert not harm.exists()


def test_weights_that_are_no_plain_tensors(tmp_path):
    """One number that claims to be a thousand million, numbers that are nowhere, and other kinds of tensors."""
    cases = dict(
        expanded=torch.zeros(1, 1).expand(10**9, 512),
        meta=torch.empty(3, device="meta"),
        sparse=torch.eye(3).to_sparse(),
        quantised=torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    )
    for name, tensor in cases.items():
        torch.save({"fc.weight": tensor}, tmp_path / f"{name}.pth")
        with pytest.raises(
            ValueError, match=f"{name}.pth(: fc.weight is no plain tensor| cannot be read)"
        ):
            load_backbone("resnet18", tmp_path / f"{name}.pth")
    torch.save({"fc.weight": torch.tensor(3.0)}, tmp_path / "scalar.pth")
    with pytest.raises(ValueError, match="scalar.pth .resnet18.* lack 100 tensors"):
        load_backbone("resnet18", tmp_path / "scalar.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["a.pth", "old.pth", "a.safetensors"])
def test_mutated_weights(tmp_path, name):
    """A few hundred of them: tensors, or one error that names the file."""
    from safetensors.torch import save_file

    state, path = {"a": torch.arange(4.0), "b": torch.ones(2, 3)}, tmp_path / name
    save_file(state, path) if name.endswith(".safetensors") else torch.save(
        state, path, _use_new_zipfile_serialization=name == "a.pth"
    )
    whole, draw = path.read_bytes(), random.Random(name)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(content))
            content[place : place + draw.choice([0, 1, 1, 30])] = draw.randbytes(
                draw.choice([0, 1, 1, 20])
            )
        path.write_bytes(content)
        try:
            found = read_state(path)
        except ValueError as error:
            assert f"weights {path} " in str(error) or f"weights {path}:" in str(error)
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


# ---------------------------------------------------------------- TOML and JSON of a stranger

GRID = """[grid]
name = "small"
tier = "embedded"
tasks = ["pictograms:star", "surfaces:weave"]
methods = ["dn2", "ewc"]
seeds = [0, 1]
backbones = ["glyphs_resnet4", { name = "resnet18", weights = "random", truncate_after = "layer3" }]
[settings]
n_train = 40
[settings.ewc]
epochs = 4
[vary]
k = [1, "default", 3]
[[also]]
methods = ["spade"]
vary = { sigma = [1.0, 2.5] }
"""


def test_mutated_grids(tmp_path):
    """Words of the file exchanged, taken out and put in: a grid whose runs can be counted, or one error that names the file."""
    path, draw, n_good = tmp_path / "g.toml", random.Random(0), 0
    pieces = re.findall(r"\w+|\s+|[^\w\s]", GRID)
    strange = [
        "[",
        "]",
        '"',
        "{",
        "=",
        "\n",
        "-1",
        "1e999",
        "nan",
        "true",
        "1979-05-27",
        "'''",
        "\0",
        "é",
        "9" * 5000,
        "[" * 3000,
        '"../x"',
        "folder",
        "k",
        "grid",
        ".",
        ",",
    ]
    for _ in range(400):
        changed = list(pieces)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(changed))
            changed[place : place + draw.randint(0, 1)] = [
                draw.choice(strange if draw.random() < 0.6 else pieces)
            ]
        path.write_text("".join(changed), encoding="utf-8")
        try:
            grid = load_grid(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}")
            continue
        with contextlib.suppress(ValueError):  # a task that is not there
            assert 0 < len(grid.runs()) <= MOST_RUNS
            n_good += 1
    assert n_good > 5


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "/tmp/x", "..", ".hidden", "a\\\\b", "", "x" * 101, "a\\u0000b"]
)
def test_a_grid_whose_name_leaves_its_folder(tmp_path, name):
    """`sweep` makes a folder of that name."""
    (tmp_path / "g.toml").write_text(GRID.replace('"small"', f'"{name}"'))
    with pytest.raises(ValueError, match="g.toml: name = "):
        load_grid(tmp_path / "g.toml")


def test_a_grid_without_end(tmp_path):
    options = "\n".join(
        f"{name} = [{', '.join(map(str, range(2, 400)))}]"
        for name in ("n_train", "n_test", "size", "k")
    )
    (tmp_path / "g.toml").write_text(
        GRID.split("[settings]")[0].replace('"ewc"', '"pixels"') + f"[vary]\n{options}\n"
    )
    with pytest.raises(
        ValueError, match=rf"g.toml stands for \d+ runs: expected at most {MOST_RUNS}"
    ):
        load_grid(tmp_path / "g.toml").runs()


@pytest.mark.parametrize("line", ["sigma = inf", "sigma = nan", "lr = -inf"])
def test_numbers_of_a_grid_that_no_result_could_hold(tmp_path, line):
    (tmp_path / "g.toml").write_text(GRID.replace("n_train = 40", line))
    with pytest.raises(ValueError, match=f"{line.split()[0]} = .*: expected a number"):
        load_grid(tmp_path / "g.toml")


# ---------------------------------------------------------------- names and paths

NAMES = {
    "blanks": " two  blanks ",
    "unicode": "Größe ☃ 日本 🐼",
    "composed": "e\u0301",
    "signs": "%s{} $HOME `x`;&|<b>'\"",
    "line": "new\nline",
    "bytes": os.fsdecode(b"by\xff\xfete"),
    "long": 120 * "ä",
    "deep": "/".join(8 * [100 * "d"]),
    "minus": "--json",
    "tilde": "~nobody",
}


@pytest.mark.parametrize(
    ("kind", "encoding"),
    [*((kind, "utf-8") for kind in NAMES), ("unicode", "ascii"), ("bytes", "ascii")],
)
def test_strange_paths(tmp_path, kind, encoding, monkeypatch):
    """Images, cache, checkpoints, detector, report and table below such a folder; what is printed suits every terminal."""
    root = tmp_path / NAMES[kind]
    try:
        root.mkdir(parents=True)
    except (OSError, UnicodeError) as error:
        pytest.skip(f"this file system has no such names ({error})")
    monkeypatch.setenv("PANDALIB_CACHE", str(root / "cache"))
    for number, picture in enumerate(images(20, 32)):
        place = (
            root
            / ("normal" if number < 18 else "odd")
            / f"{NAMES[kind].split('/')[0][:40]} {number}.png"
        )
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(picture.transpose(1, 2, 0)).save(open(place, "wb"), "PNG")
    backbone = small_backbone()
    features = backbone.features(images(3), cache=FeatureCache())
    assert np.array_equal(features, backbone.features(images(3), cache=FeatureCache()))
    stem = backbone.frozen_features(images(4))
    fit_compactness(
        backbone, stem, folder=root / "run", epochs=1, lr=0.1, max_grad_norm=None, progress=False
    )
    assert read_tensors(root / "run" / "resume.safetensors")[1]["epoch"] == 1
    fit = [
        "fit",
        str(root / "normal"),
        "--out",
        str(root / "model"),
        "--size",
        "32",
        "--false-alarm-rate",
        "0.1",
    ]
    score = [
        "score",
        str(root / "model"),
        str(root / "odd"),
        "--report",
        str(root / "r.html"),
        "--csv",
        str(root / "t.csv"),
        "--json",
        str(root / "t.json"),
    ]
    for command in (fit, score):
        with (
            open(tmp_path / "out", "w", encoding=encoding, errors="strict") as out,
            contextlib.redirect_stdout(out),
        ):
            assert main(command) == 0
    shown = (tmp_path / "out").read_text(encoding=encoding)
    assert "2 images raise" in shown or "of 2 images raise an alarm" in shown
    rows = json.loads((root / "t.json").read_text())["images"]
    assert len(rows) == 2 and sorted((root / "r.html").parent.iterdir())
    report = (root / "r.html").read_text(encoding="utf-8")
    assert "<b>" not in report and not re.search(r"[\udc80-\udcff]", report)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--task", "folder:{}:good", "--method", "dn2"],
        ["fit", "{}", "--out", "m"],
        ["score", "{}", "{}"],
        ["sweep", "{}"],
        ["table", "{}"],
    ],
)
@pytest.mark.parametrize("path", ["x" * 300, "/".join(50 * [100 * "x"]), "a\0b"])
def test_paths_that_cannot_be(arguments, path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(path, path) for argument in arguments]) == 2
    words = capsys.readouterr()
    assert (
        words.out == ""
        and re.fullmatch(r"pandalib: .+\n", words.err)
        and not list(tmp_path.iterdir())
    )


def test_a_name_too_long_is_named(tmp_path):
    with pytest.raises(OSError, match=f"{'x' * 300}' cannot be written .File name too long"):
        write_atomically(tmp_path / ("x" * 300), b"")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- few images, no numbers, one class

K = 4
PACE = dict(lr=0.1, max_grad_norm=0.01, progress=False)
DETECTORS = {
    "pixels": lambda b: PixelKNN(K),
    "dn2": lambda b: DN2(b, K),
    "normalised": lambda b: DN2(b, K, normalise=True),
    "whitened": lambda b: DN2(b, K, whiten=True),
    "centres": lambda b: DN2(b, 2, n_centres=2),
    "adapted": lambda b: PANDA(b, epochs=1, k=K, **PACE),
    "ses": lambda b: PANDASES(b, epochs=1, k=K, **PACE),
    "oe": lambda b: OutlierExposure(b, images(3, seed=5), epochs=1, **PACE),
    "svdd": lambda b: DeepSVDD(1, progress=False),
    "spade": lambda b: SPADE(b, n_images=K),
    "bank": lambda b: PatchCore(b, progress=False),
    "inspector": lambda b: Inspector(b, k=K, false_alarm_rate=0.3, progress=False),
}


@pytest.mark.parametrize("n", [0, 1, 2, K - 1])
@pytest.mark.parametrize("name", DETECTORS)
def test_few_training_images(name, n):
    """Scores, where the method needs no more; otherwise one sentence about the number of images."""
    try:
        scores = DETECTORS[name](small_backbone()).fit(images(n)).score(images(3, seed=9))
    except ValueError as error:
        assert re.search(
            rf"there are no|\b{n}\b.*image|got {n}\b|images?, {n}\b", str(error)
        ) and "\n" not in str(error), error
    else:
        assert n > 0 and scores.shape == (3,) and np.isfinite(scores).all()
        assert name in ("oe", "svdd", "spade", "bank", "centres")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [name for name in DETECTORS if name not in ("pixels", "svdd")])
def test_a_network_whose_numbers_are_none(name, value):
    """As after a flipped bit in weights that came without a hash: no detector gives a score."""
    backbone = small_backbone()
    with torch.no_grad():
        next(backbone.trainable.parameters())[0, 0, 0, 0] = value
    with pytest.raises((ValueError, FloatingPointError), match="NaN|nan|infinite|finite"):
        DETECTORS[name](backbone).fit(images(40)).score(images(3, seed=9))


def test_labels_all_of_one_class():
    scores = np.arange(4.0)
    for label in (0, 1):
        for work in (
            lambda: roc_auc(np.full(4, label), scores),
            lambda: bootstrap_interval(np.full(4, label), scores),
        ):
            with pytest.raises(ValueError, match="[Bb]oth|only|class|normal|anomalous"):
                work()
        for work in (pixel_roc_auc, pro):
            with pytest.raises(ValueError, match="normal|anomalous"):
                work(np.full((2, 4, 4), bool(label)), np.zeros((2, 4, 4)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_and_scores_that_are_no_numbers(bad):
    features = np.ones((6, 3), np.float32)
    features[2, 1] = bad
    with pytest.raises(ValueError, match="gallery contains (NaN|infinity)"):
        leave_one_out_scores(features, k=2)
    with pytest.raises(ValueError, match="NaN|infinite"):
        roc_auc([0, 1, 1], [0.0, 1.0, np.nan])
