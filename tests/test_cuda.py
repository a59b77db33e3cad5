"""On a GPU every method ranks as on a CPU, and a detector can move between the two.

Each side has processes of its own; the CPU's see no GPU. Left out where there is none.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import save

from pandalib import load_task
from pandalib.experiments.config import METHODS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
HERE = Path(__file__).resolve().parent

# Scores of the test images by every method.
RUNS = """
import json, sys
from pandalib import run
from pandalib.experiments.config import METHODS, MapOptions
scores = {}
for name, options in METHODS.items():
    few = {"outlier_images": "far", "n_outliers": 40} if name == "oe" else {}
    drawn = "surfaces:weave" if issubclass(options, MapOptions) else "pictograms:star"
    record = run(drawn, name, n_train=40, n_test=6, with_scores=True, progress=False, **few)
    scores[name] = record["scores"]
json.dump(scores, open(sys.argv[1], "w"))
"""


def process(*command, gpu: bool, folder: Path) -> None:
    """Run Python with these arguments, with or without the GPU, and with a cache of its own."""
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    world = os.environ | {"PYTHONPATH": path, "PANDALIB_CACHE": str(folder / "cache")}
    if not gpu:
        world["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=world, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What every method scores, on the GPU and on the CPU."""
    found = []
    for gpu in (True, False):
        folder = tmp_path_factory.mktemp("gpu" if gpu else "cpu")
        process("-c", RUNS, folder / "scores.json", gpu=gpu, folder=folder)
        found.append(json.loads((folder / "scores.json").read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_method_ranks_alike(both, method):
    gpu, cpu = both
    assert np.corrcoef(gpu[method], cpu[method])[0, 1] > 0.99


def test_a_detector_fitted_on_a_gpu_scores_the_same_on_a_cpu(tmp_path):
    weave = load_task("surfaces:weave", n_train=24, n_test=3)
    for part, images in (("normal", weave.train), ("new", weave.test)):
        for number, image in enumerate(images):
            save(tmp_path / part / f"{number:02}.png", image.transpose(1, 2, 0))
    start = "-m", "pandalib"
    fit = "fit", tmp_path / "normal", "--out", tmp_path / "model", "--tier", "embedded"
    process(*start, *fit, gpu=True, folder=tmp_path)
    scores = []
    for gpu in (True, False):
        table = tmp_path / f"{gpu}.csv"
        score = "score", tmp_path / "model", tmp_path / "new", "--csv", table
        process(*start, *score, gpu=gpu, folder=tmp_path)
        with table.open(encoding="utf-8", newline="") as file:
            scores.append({row["file"]: float(row["score"]) for row in csv.DictReader(file)})
    assert len(scores[1]) == len(weave.test)
    for image, value in scores[1].items():
        assert scores[0][image] == pytest.approx(value, rel=0.02)
