"""Solar cells: the split of the package's labels, outliers of the other kind, and the licence."""

import hashlib
from itertools import product

import numpy as np
import pytest
from photographs import needs_photographs
from PIL import Image

from pandalib import load_task, run, sibling_tasks
from pandalib.datasets import elpv
from pandalib.datasets.images import Geometry

pytestmark = needs_photographs
# Counted by hand in the package's labels.csv: probability 0, 1/3, 2/3, 1.
COUNTS = {"mono": (588, 117, 56, 313), "poly": (920, 178, 50, 402)}


@pytest.mark.parametrize("name", elpv.CLASSES)
def test_every_cell_is_in_one_place(name):
    task = load_task(f"elpv:{name}", seed=3)
    good, low, high, defective = COUNTS[name]
    n_held_out = round(0.2 * good)
    assert len(task.train) == good - n_held_out
    assert np.bincount(task.labels).tolist() == [n_held_out, defective]
    assert task.kinds == ("good",) * n_held_out + ("defect",) * defective
    train, test = set(map(str, task.train.files)), set(task.files)
    assert len(train) + len(test) == good + defective and not train & test
    assert "CC BY-NC-SA 4.0" in task.credit and "Deitsch et al. 2019, 2021" in task.credit
    with_doubt = load_task(f"elpv:{name}", seed=3, doubtful="anomalous")
    assert with_doubt.kinds.count("doubtful, 1/3") == low
    assert with_doubt.kinds.count("doubtful, 2/3") == high
    assert with_doubt.labels.sum() == low + high + defective
    assert set(task.files) < set(with_doubt.files)


def test_the_split_follows_the_seed_and_a_sample_is_part_of_it():
    whole, again, other = (load_task("elpv:mono", seed=seed) for seed in (0, 0, 1))
    assert whole.files == again.files != other.files
    few = load_task("elpv:mono", n_train=9, n_test=4)
    assert len(few.train) == 9 and few.kinds.count("defect") == 4
    assert set(few.files) < set(whole.files)
    assert set(few.train.files) < set(whole.train.files)
    assert few.train.shape == (9, 3, 160, 160)
    picture = np.asarray(Image.open(few.files[0]).resize((160, 160), Image.Resampling.BILINEAR))
    assert np.array_equal(few.test[0], np.stack([picture] * 3))


def test_outliers_are_the_other_kinds_defects_and_no_test_image():
    assert sibling_tasks("elpv:mono") == ["elpv:mono", "elpv:poly"]

    def contents(files):
        return {hashlib.sha256(np.asarray(Image.open(file)).tobytes()).digest() for file in files}

    for name, other in product(elpv.CLASSES, repeat=2):
        if name != other:
            outliers = elpv.other_defects(name, Geometry(32, 32)).files
            assert list(outliers) == elpv.cells(other, "defect")
            task = load_task(f"elpv:{name}", doubtful="anomalous")
            assert not contents(outliers) & contents([*task.train.files, *task.files])


def test_a_run_on_cells_prints_the_licence(capsys):
    options = dict(tier="standard", n_train=20, n_test=5, size=64, epochs=1, progress=True)
    for kind in ("near", "far"):
        found = run("elpv:poly", "oe", outlier_images=kind, n_outliers=20, **options)
        assert found["backbone"] == "mobilenet_v2" and 0 <= found["roc_auc"] <= 1
    assert "CC BY-NC-SA 4.0" in capsys.readouterr().err


def test_what_cannot_be(monkeypatch):
    with pytest.raises(ValueError, match="no class 'thin': choose one of mono, poly"):
        load_task("elpv:thin")
    with pytest.raises(ValueError, match="doubtful='yes': expected 'out' or 'anomalous'"):
        load_task("elpv:mono", doubtful="yes")
    with pytest.raises(ValueError, match="does not concern pictograms:star"):
        load_task("pictograms:star", doubtful="out")
    monkeypatch.setattr(elpv, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match="run `make install`, or `python -m pip"):
        load_task("elpv:mono")
