"""Images to be exposed to: reproducible, of five kinds, and nothing of the test among them."""

import numpy as np
import pytest
from pictures import one_sentence, save

from pandalib import load_outliers, load_task
from pandalib.datasets.images import Geometry, ImageError
from pandalib.datasets.outliers import KINDS, check_unseen, outlier_folder
from pandalib.datasets.synthetic import glyphs
from pandalib.datasets.synthetic.drawing import FONT_FILES, glyph_mask
from pandalib.datasets.synthetic.pictograms import OUTLIERS, SYMBOLS, Pictograms


def looks(characters, font) -> np.ndarray:
    """Shrunken masks as rows of length one."""
    masks = [np.asarray(glyph_mask(character, font).reduce(8)).ravel() for character in characters]
    small = np.float32(masks)
    return small / np.linalg.norm(small, axis=1, keepdims=True)


@pytest.mark.parametrize("font", FONT_FILES)
@pytest.mark.parametrize("kind", ["near", "middle"])
def test_no_outlier_is_a_symbol_of_the_test(kind, font):
    characters = {"near": OUTLIERS, "middle": glyphs.classes()}[kind]
    tested = SYMBOLS.values()
    assert len(set(characters)) == len(characters) > 20
    assert not set(characters) & set(tested) and not set(characters) & set(glyphs.RELATIVES)
    alike = looks(characters, font) @ looks(tested, font).T
    # What looks more alike counts as one class upstream. A bold phi is about as broad as a heart.
    assert alike.max() < (glyphs.SAME if font == FONT_FILES[0] else 0.95)


def test_what_is_drawn():
    near = load_outliers("near", 25, seed=2, level="easy")
    options = dict(split="outliers", seed=2, level="easy")
    for i in (0, 1, 20, 21, 24):
        assert (near[i] == Pictograms(OUTLIERS[i % len(OUTLIERS)], 25, **options)[i]).all()
    single = load_outliers("single", 25, seed=2, level="easy")
    assert (single == Pictograms(OUTLIERS[0], 25, **options)[:]).all()
    middle = glyphs.draw_batch(range(5), split="outliers", seed=2)[0]
    assert (load_outliers("middle", 5, seed=2) == middle).all()
    far = Pictograms(" ", 2, split="outliers", level="plain")[:]
    assert (load_outliers("far", 2, level="plain") == far).all()
    noise = load_outliers("noise", 4).astype(float)
    assert abs(noise.mean() - 127.5) < 2 and abs(noise.std() - 73.9) < 2


@pytest.mark.parametrize("kind", KINDS)
def test_reproducible_and_a_prefix_of_more(kind):
    few, more, other = (load_outliers(kind, n, seed=seed) for n, seed in ((4, 1), (30, 1), (4, 2)))
    assert few.shape == (4, 3, 64, 64) and few.dtype == np.uint8
    assert (few == more[:4]).all() and not (few == other).all()
    assert len({image.tobytes() for image in more}) == 30


def test_kinds_differ_and_share_no_image_with_a_task():
    drawn = {image.tobytes() for kind in KINDS for image in load_outliers(kind, 10)}
    task = load_task("pictograms:star", n_train=10, n_test=10)
    assert len(drawn) == 49  # the first single one is the first near one
    assert not drawn & {image.tobytes() for image in (*task.train, *task.test)}


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(kind="nearer"), "choose one of near, single, middle, far, noise"),
        (dict(kind="near", n=0), "n=0"),
        (dict(kind="far", level="huge"), "level 'huge' is unknown"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(ValueError) as error:
        load_outliers(**{"n": 3} | options)
    one_sentence(error, words)


@pytest.fixture
def folder(tmp_path):
    """Six images in the folder itself and six in each of two folders in it, with other files."""
    for i, picture in enumerate(load_outliers("far", 18)):
        place = tmp_path / ("", "a", "b")[i % 3]
        save(place / f"{i:02}.png", np.ascontiguousarray(picture.transpose(1, 2, 0)))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    (tmp_path / "b" / "deeper").mkdir()
    return tmp_path


def test_a_folder_of_outliers(folder):
    found = outlier_folder(folder, geometry=Geometry.square(32, 40))
    assert found[:].shape == (18, 3, 32, 32)
    names = [file.relative_to(folder).as_posix() for file in found.files]
    assert names[5:8] == ["15.png", "a/01.png", "a/04.png"]
    assert (found[6] == Geometry.square(32, 40).read(folder / "a" / "01.png")).all()
    few, more, other = (
        set(outlier_folder(str(folder), n, geometry=Geometry.square(32), seed=seed).files)
        for n, seed in ((5, 1), (9, 1), (5, 2))
    )
    assert len(few) == 5 and few < more and few != other and more < set(found.files)
    with pytest.raises(ValueError, match="nor do the folders in it"):
        outlier_folder(folder / "b" / "deeper", geometry=Geometry.square(32))
    with pytest.raises(FileNotFoundError):
        outlier_folder(folder / "nowhere", geometry=Geometry.square(32))
    with pytest.raises(ValueError, match="n=0"):
        outlier_folder(folder, 0, geometry=Geometry.square(32))


def test_a_test_image_among_the_outliers_is_named(folder):
    task = load_task("pictograms:star", n_train=2, n_test=2)
    check_unseen(outlier_folder(folder, geometry=Geometry.square(64)), task)
    save(folder / "a" / "trained.png", np.ascontiguousarray(task.train[0].transpose(1, 2, 0)))
    check_unseen(outlier_folder(folder, geometry=Geometry.square(64)), task)
    save(folder / "a" / "tested.bmp", np.ascontiguousarray(task.test[5].transpose(1, 2, 0)))
    with pytest.raises(ValueError) as error:
        check_unseen(outlier_folder(folder, geometry=Geometry.square(64)), task)
    one_sentence(error, folder / "a" / "tested.bmp", "'5' (plane)", "remove it")
    with pytest.raises(ValueError, match="outlier '1' is test image '5'"):
        check_unseen(np.stack([task.train[0], task.test[5]]), task)
    (folder / "broken.png").write_bytes(b"")
    with pytest.raises(ImageError, match="broken.png"):
        check_unseen(outlier_folder(folder, geometry=Geometry.square(64)), task)
