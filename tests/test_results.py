"""What is said beside the results: near-duplicates, strange images, other sizes; p-values."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pandalib.cli import main
from pandalib.datasets.folder import write_images
from pandalib.inspection.regions import p_values


def clouds(n, seed):
    """Soft shades of grey, 36 x 48 pixels."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(90, 160, (n, 1, 3, 4)))
    soft = F.interpolate(coarse, (36, 48), mode="bicubic").numpy() + rng.normal(
        0, 2, (n, 1, 36, 48)
    )
    return np.clip(soft, 0, 255).astype(np.uint8).repeat(3, axis=1)


def spoilt(pictures):
    """A square in white and black, at the same place in each."""
    pictures = pictures.copy()
    pictures[:, :, 4:12, 20:30] = 255
    pictures[:, :, 6:10, 22:28] = 0
    return pictures


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of 36 x 48 pixels: 20 to learn from; 6 good and 5 bad ones."""
    folder = tmp_path_factory.mktemp("photos")
    pictures = clouds(31, seed=3)
    write_images(pictures[:20], folder / "normal")
    write_images(pictures[20:26], folder / "test" / "good")
    write_images(spoilt(pictures[26:]), folder / "test" / "bad")
    return folder


@pytest.fixture(scope="module")
def model(photos, tmp_path_factory):
    target = str(tmp_path_factory.mktemp("model") / "m")
    assert main(["fit", str(photos / "normal"), "--size", "48", "--out", target]) == 0
    return target


def test_p_values_are_ranks():
    normal = np.random.default_rng(0).normal(size=40)
    scores = np.array([-9.0, normal[3], 0.1, 9.0])
    expected = [(1 + sum(one >= score for one in normal)) / 41 for score in scores]
    assert p_values(scores, normal) == pytest.approx(expected)


def test_other_sizes_are_named_in_a_note(model, photos, tmp_path, capsys):
    with Image.open(next((photos / "test" / "good").iterdir())) as picture:
        picture.resize((60, 45)).save(tmp_path / "larger.png")
    assert main(["score", model, str(tmp_path / "larger.png")]) == 0
    said = capsys.readouterr().err
    assert "note: images of 60 x 45 pixels, and normal ones of 48 x 36: at another scale" in said
    assert main(["score", model, str(photos / "test" / "good")]) == 0
    assert "another scale" not in capsys.readouterr().err


def test_near_duplicates_and_strange_images_are_said(photos, tmp_path, capsys):
    files = sorted((photos / "normal").iterdir())
    for file in files[:2]:
        with Image.open(file) as picture:  # saved again: other pixels, the same scene
            picture.save(tmp_path / f"{file.stem}.jpg", quality=97)
    with Image.open(files[9]) as picture:
        strange = spoilt(np.asarray(picture).transpose(2, 0, 1)[None])[0]
    Image.fromarray(strange.transpose(1, 2, 0)).save(tmp_path / "strange.png")
    given = [str(photos / "normal"), str(tmp_path / "*.*g")]
    rest = ["--size", "48", "--out", str(tmp_path / "m")]
    assert main(["fit", *given, *rest]) == 0
    said = capsys.readouterr().err
    assert "near-duplicates: 4 images in 2 groups" in said and "00.jpg" in said
    assert "the strangest normal images, in multiples of the median score" in said
    assert said.index("strange.png") > 0 and "images as " in said
    assert main(["fit", *given, *rest, "--force", "--leave-out-above", "3"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"left out: \S+strange.png, [\d.]+ times the median normal score", said)
