"""Pickles that run code, names of every kind, too few images, a network that computes NaN."""

import contextlib
import json
import os
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from small import images, small_backbone

from pandalib import (
    DN2,
    PANDA,
    PANDASES,
    SPADE,
    DeepSVDD,
    FeatureCache,
    Fisher,
    Inspector,
    OutlierExposure,
    PatchCore,
    PixelKNN,
    load_grid,
    read_results,
)
from pandalib.cli import main
from pandalib.datasets.images import Geometry, ImageError
from pandalib.io import ROOT, read_tensors
from pandalib.methods.panda import fit_compactness
from pandalib.weights import read_state

TRAINING = dict(epochs=1, lr=0.1, max_grad_norm=0.01, progress=False)

RUNS_CODE = {  # what would run code that stands in a file, or unpack a pickle
    "pickle": r"\bimport\b.*\b(c?[Pp]ickle|dill|cloudpickle|marshal|shelve)\b|read_pickle",
    "unpickling": r"\b(pickle|joblib)\.(load|Unpickler)|allow_pickle\s*=\s*True",
    "torch.load": r"torch\.load\((?!.*weights_only=True)|torch\.hub\.load\(|weights_only\s*=\s*F",
    "np.load": r"\b(np|numpy)\.load\((?!.*allow_pickle=False)",
    "text": r"(?<![\w.])(eval|exec)\(|yaml\.(unsafe_|full_)?load\(",
    "archive or shell": r"extractall\(|shell\s*=\s*True|os\.system\(",
}


def test_no_source_reads_pickles_or_runs_text():
    sources = {
        path: path.read_text(encoding="utf-8").splitlines()
        for folder in ("pandalib", "tools", "bench")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
        sources[path] = "\n".join("".join(source) for source in code).splitlines()
    assert len(sources) > 60
    found = [
        f"{path.relative_to(ROOT)}: {what}: {line.strip()}"
        for path, lines in sources.items()
        for line in lines
        for what, rule in RUNS_CODE.items()
        if re.search(rule, line)
    ]
    assert not found
    for line in ("import pickle", "torch.load(a)", "np.load(a)", "eval(text)", "a.extractall()"):
        assert any(re.search(rule, line) for rule in RUNS_CODE.values()), line


class Harmful:
    """Makes a folder once it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_harmful_pickles_never_run(tmp_path):
    harm, pickled, model = Harmful(tmp_path / "harm"), tmp_path / "pickled", tmp_path / "model"
    pickled.mkdir()
    (pickled / "plain").write_bytes(pickle.dumps(harm))
    torch.save({"a": harm}, pickled / "torch")
    np.save(pickled / "array.npy", np.array([harm], dtype=object), allow_pickle=True)

    backbone = small_backbone()
    frozen = backbone.frozen_features(images(4))
    Inspector(backbone, false_alarm_rate=0.3, progress=False).fit(images(6)).save(model)
    tensors = next(model.glob("*.safetensors")).name

    for source in pickled.iterdir():
        folder = tmp_path / f"with {source.name}"
        folder.mkdir()

        def put(name):
            return shutil.copy(source, folder / name)

        with pytest.raises(ImageError):
            Geometry.square(8).read(put("image.png"))
        with pytest.raises(ValueError):
            read_state(put("weights.pth"))
        with pytest.raises(ValueError):
            Fisher.load(put("fisher.safetensors"))
        put("resume.safetensors")
        with pytest.raises(ValueError):
            fit_compactness(backbone, frozen, folder=folder, **TRAINING)
        put(f"{'0' * 40}.float16.npy")
        assert FeatureCache(folder).get("0" * 40, (1, 2), [np.ones((1, 2))]).tolist() == [[1, 1]]
        with pytest.raises(ValueError):
            load_grid(put("grid.toml"))
        put("plan.json")
        with pytest.raises(ValueError):
            read_results(folder)
        for name in (tensors, "detector.json"):
            copy = shutil.copytree(model, folder / f"model {name}")
            put(f"model {name}/{name}")
            with pytest.raises(ValueError):
                Inspector.load(copy, backbone=backbone)
        assert not harm.path.exists(), source
    pickle.loads((pickled / "plain").read_bytes())
    assert harm.path.exists()  # the files are as harmful as they should be


NAMES = {
    "blanks": " two  blanks ",
    "unicode": "Größe ☃ 日本 🐼",
    "signs": "%s{} $HOME `x`;&|<b>'\"",
    "bytes": os.fsdecode(b"by\xff\xfete"),
    "minus": "--json",
}


@pytest.mark.parametrize("kind", NAMES)
def test_strange_paths(tmp_path, kind, monkeypatch):
    root = tmp_path / NAMES[kind]
    try:
        (root / "odd").mkdir(parents=True)
        (root / "normal").mkdir()
    except (OSError, UnicodeError) as error:
        pytest.skip(f"this file system has no such names ({error})")
    monkeypatch.setenv("PANDALIB_CACHE", str(root / "cache"))
    for number, picture in enumerate(images(20, 32).transpose(0, 2, 3, 1)):
        place = root / ("normal" if number < 18 else "odd")
        with open(place / f"{NAMES[kind].split('/')[0]} {number}.png", "wb") as file:
            Image.fromarray(picture).save(file, "PNG")
    backbone = small_backbone()
    features = backbone.features(images(3), cache=FeatureCache())
    assert np.array_equal(features, backbone.features(images(3), cache=FeatureCache()))
    frozen = backbone.frozen_features(images(4))
    fit_compactness(backbone, frozen, folder=root / "run", **TRAINING)
    assert read_tensors(root / "run" / "resume.safetensors")[1]["epochs"] == [0, 1]

    fit = ["fit", f"{root}/normal", "--out", f"{root}/model", "--size", "32"]
    score = ["score", f"{root}/model", f"{root}/odd", "--report", f"{root}/r.html"]
    with open(tmp_path / "out", "w", encoding="ascii") as out, contextlib.redirect_stdout(out):
        assert main([*fit, "--false-alarm-rate", "0.1"]) == 0
        assert main([*score, "--csv", f"{root}/t.csv", "--json", f"{root}/t.json"]) == 0
    assert len(json.loads((root / "t.json").read_text())["images"]) == 2
    report = (root / "r.html").read_text(encoding="utf-8")
    assert "<b>'" not in report and not re.search(r"[\udc80-\udcff]", report)


K = 4
DETECTORS = {
    "pixels": lambda backbone: PixelKNN(K),
    "dn2": lambda backbone: DN2(backbone, K),
    "centres": lambda backbone: DN2(backbone, 2, n_centres=2),
    "panda": lambda backbone: PANDA(backbone, k=K, **TRAINING),
    "ses": lambda backbone: PANDASES(backbone, k=K, **TRAINING),
    "oe": lambda backbone: OutlierExposure(backbone, images(3, seed=5), **TRAINING),
    "svdd": lambda backbone: DeepSVDD(1, progress=False),
    "spade": lambda backbone: SPADE(backbone, n_images=K),
    "patchcore": lambda backbone: PatchCore(backbone, progress=False),
    "inspector": lambda backbone: Inspector(backbone, k=K, false_alarm_rate=0.3, progress=False),
}


@pytest.mark.parametrize("n", [0, 1, K - 1])
@pytest.mark.parametrize("name", DETECTORS)
def test_few_training_images(name, n):
    try:
        scores = DETECTORS[name](small_backbone()).fit(images(n)).score(images(3, seed=9))
    except ValueError as error:
        assert re.search(rf"there are no|\b{n}\b", str(error)) and "\n" not in str(error), error
    else:
        assert n > 0 and scores.shape == (3,) and np.isfinite(scores).all()
        assert name in ("oe", "svdd", "spade", "patchcore", "centres")


@pytest.mark.parametrize("name", [name for name in DETECTORS if name not in ("pixels", "svdd")])
def test_a_network_whose_numbers_are_nan_gives_no_score(name):
    backbone = small_backbone()
    with torch.no_grad():
        next(backbone.trainable.parameters())[0, 0, 0, 0] = float("nan")
    with pytest.raises((ValueError, FloatingPointError), match="NaN|nan|infinite|finite"):
        DETECTORS[name](backbone).fit(images(40)).score(images(3, seed=9))
