"""Images to be exposed to: reproducible, of four kinds, and nothing of the test among them."""

import numpy as np
import pytest
from PIL import Image

from pandalib import load_outliers, load_task
from pandalib.datasets.synthetic import glyphs
from pandalib.datasets.synthetic.drawing import FONT_FILES, glyph_mask
from pandalib.datasets.images import ImageError, read_image
from pandalib.datasets.outliers import KINDS, check_unseen, outlier_folder
from pandalib.datasets.synthetic.pictograms import OUTLIERS, SYMBOLS, Pictograms


def looks(characters, font) -> np.ndarray:
    """Shrunken masks as rows of length one."""
    small = np.stack(
        [
            np.asarray(glyph_mask(character, font).reduce(8), np.float32).ravel()
            for character in characters
        ]
    )
    return small / np.linalg.norm(small, axis=1, keepdims=True)


@pytest.mark.parametrize("font", FONT_FILES)
@pytest.mark.parametrize("kind", ["near", "middle"])
def test_no_outlier_is_a_symbol_of_the_test(kind, font):
    characters = {"near": OUTLIERS, "middle": glyphs.classes()}[kind]
    tested = SYMBOLS.values()
    assert len(set(characters)) == len(characters) > 20
    assert not set(characters) & set(tested) and not set(characters) & set(glyphs.RELATIVES)
    alike = looks(characters, font) @ looks(tested, font).T
    # As drawings: what looks more alike counts as one class in the upstream task. A bold φ is about as broad as a heart.
    assert alike.max() < (glyphs.SAME if font == FONT_FILES[0] else 0.95)
    if font == FONT_FILES[0]:
        np.testing.assert_allclose(
            looks("★♠", font), [glyphs._look(character) for character in "★♠"], rtol=1e-5
        )


def test_what_is_drawn():
    near = load_outliers("near", 25, seed=2, level="easy")
    for i in (0, 1, 20, 21, 24):
        assert np.array_equal(
            near[i],
            Pictograms(OUTLIERS[i % len(OUTLIERS)], 25, split="outliers", seed=2, level="easy")[i],
        )
    assert np.array_equal(
        load_outliers("near", 4, symbols="♠")[3], Pictograms("♠", 4, split="outliers")[3]
    )
    pictures, labels, _ = glyphs.draw_batch(range(5), split="outliers", seed=2)
    assert np.array_equal(load_outliers("middle", 5, seed=2), pictures) and labels.max() < len(
        glyphs.classes()
    )
    assert np.array_equal(
        load_outliers("far", 2, level="plain"),
        Pictograms(" ", 2, split="outliers", level="plain")[:],
    )
    noise = load_outliers("noise", 4).astype(float)
    assert abs(noise.mean() - 127.5) < 2 and abs(noise.std() - 73.9) < 2
    assert abs(np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_reproducible_and_a_prefix_of_more(kind):
    few, more, other = (load_outliers(kind, n, seed=seed) for n, seed in ((4, 1), (30, 1), (4, 2)))
    assert few.shape == (4, 3, 64, 64) and few.dtype == np.uint8
    assert np.array_equal(few, more[:4]) and not np.array_equal(few, other)
    assert len({image.tobytes() for image in more}) == 30


def test_kinds_differ_and_share_no_image_with_a_task():
    images = {image.tobytes() for kind in KINDS for image in load_outliers(kind, 10)}
    task = load_task("pictograms:star", n_train=10, n_test=10)
    assert len(images) == 40 and not images & {
        image.tobytes() for image in (*task.train, *task.test)
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(kind="nearer", n=3),
            "outliers 'nearer' are unknown: choose one of near, middle, far, noise.",
        ),
        (dict(kind="near", n=0), "n=0 outliers: expected at least 1"),
        (dict(kind="far", n=3, level="huge"), "level 'huge' is unknown"),
        (dict(kind="near", n=3, symbols=""), "there are no symbols: expected at least 1 character"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_outliers(**arguments)


@pytest.fixture
def folder(tmp_path):
    """Six images in the folder itself and six in each of two folders in it, with files that are none."""
    for i, picture in enumerate(load_outliers("far", 18)):
        place = tmp_path / ("", "a", "b")[i % 3]
        place.mkdir(exist_ok=True)
        Image.fromarray(picture.transpose(1, 2, 0)).save(place / f"{i:02}.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    (tmp_path / "b" / "deeper").mkdir()
    return tmp_path


def test_a_folder_of_outliers(folder):
    images = outlier_folder(folder, size=32, resize=40)
    assert len(images) == 18 and images[:].shape == (18, 3, 32, 32)
    assert [str(file.relative_to(folder)) for file in images.files[5:8]] == [
        "15.png",
        "a/01.png",
        "a/04.png",
    ]
    assert np.array_equal(images[6], read_image(folder / "a" / "01.png", 32, 40))
    few, more, other = (
        set(outlier_folder(str(folder), n, size=32, seed=seed).files)
        for n, seed in ((5, 1), (9, 1), (5, 2))
    )
    assert len(few) == 5 and few < more and few != other and more < set(images.files)
    assert len(outlier_folder(folder, 99, size=32)) == 18


def test_a_folder_without_outliers(folder):
    with pytest.raises(
        ValueError,
        match=f"the folder '{folder}/b/deeper' holds no images, nor do the folders in it: expected files ending in .png",
    ):
        outlier_folder(folder / "b" / "deeper", size=32)
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        outlier_folder(folder / "nowhere", size=32)
    with pytest.raises(ValueError, match="n=0 outliers: expected at least 1"):
        outlier_folder(folder, 0, size=32)


def test_a_test_image_among_the_outliers_is_named(folder, tmp_path):
    task = load_task("pictograms:star", n_train=2, n_test=2)
    check_unseen(outlier_folder(folder, size=64), task)
    Image.fromarray(task.train[0].transpose(1, 2, 0)).save(folder / "a" / "trained.png")
    check_unseen(outlier_folder(folder, size=64), task)
    Image.fromarray(task.test[5].transpose(1, 2, 0)).save(folder / "a" / "tested.bmp")
    with pytest.raises(
        ValueError,
        match=r"outlier '.*/a/tested.bmp' is the same as test image number 5 \(plane\): take it out",
    ):
        check_unseen(outlier_folder(folder, size=64), task)
    (folder / "broken.png").write_bytes(b"")
    with pytest.raises(ImageError, match="broken.png"):
        check_unseen(outlier_folder(folder, size=64), task)
