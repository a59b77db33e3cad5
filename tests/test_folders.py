"""Own images: every kind of file reads right or fails with one clear sentence, and every layout becomes its task."""

import shutil
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pandalib.datasets import images
from pandalib.datasets.folder import class_specs, load_task
from pandalib.datasets.images import (
    ENDINGS,
    ImageError,
    ImageFolder,
    list_images,
    read_image,
    read_mask,
)

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(
            f"the real images are not here: no folder ../shared/real/{name} beside the checkout"
        )
    return REAL / name


def ramp(width=40, height=30):
    """RGB that differs in every channel and direction, so that a swap, a flip or a shift shows."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 250, height))
    return np.stack([x, y, 255 - (x + y) / 2], -1).astype(np.uint8)


def save(path, pixels=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = (
        pixels
        if isinstance(pixels, Image.Image)
        else Image.fromarray(ramp() if pixels is None else pixels)
    )
    image.save(path, **options)
    return path


def flat(path, value, size=8):
    return save(path, np.full((size, size, 3), value, np.uint8))


def one_sentence(error, *words):
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    for word in words:
        assert str(word) in message, message
    return message


# --- one file ---


def two_steps(pixels, size, resize, how):
    """The definition: resize the whole image, then cut out the centre, with torchvision's rounding."""
    image = Image.fromarray(pixels)
    width, height = image.size
    short = min(width, height)
    image = image.resize((int(resize * width / short), int(resize * height / short)), how)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def off_the_border(length, size, resize, short):
    """Where a nearest neighbour is one for certain: a sample exactly between two pixels may go to either of them."""
    new = int(resize * length / short)
    samples = (round((new - size) / 2) + np.arange(size) + 0.5) * length / new
    return np.abs(samples - samples.round()) > 1e-3


@pytest.mark.parametrize(
    "width, height", [(40, 30), (31, 77), (61, 61), (500, 33), (7, 5), (263, 301)]
)
@pytest.mark.parametrize("size, resize", [(24, None), (28, 32), (15, 21)])
def test_geometry_is_resize_then_centre_crop(tmp_path, width, height, size, resize):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    got = read_image(save(tmp_path / "a.png", noise), size, resize)
    assert got.shape == (3, size, size) and got.dtype == np.uint8 and got.flags["C_CONTIGUOUS"]
    expected = two_steps(noise, size, resize or size, Image.Resampling.BILINEAR).transpose(2, 0, 1)
    assert np.abs(got.astype(int) - expected).max() <= 1

    spots = (noise[..., 0] > 128).astype(np.uint8) * 255
    mask = read_mask(save(tmp_path / "m.png", spots), size, resize)
    assert mask.shape == (size, size) and mask.dtype == bool
    expected = two_steps(spots, size, resize or size, Image.Resampling.NEAREST) > 0
    clear = np.outer(
        *(
            off_the_border(length, size, resize or size, min(width, height))
            for length in (height, width)
        )
    )
    assert clear.mean() > 0.5 and (mask == expected)[clear].all()


def test_geometry_agrees_with_torchvision(tmp_path):
    transforms = pytest.importorskip("torchvision.transforms")
    path = save(tmp_path / "a.png", ramp(333, 250))
    expected = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(
        Image.open(path)
    )
    assert (
        np.abs(
            read_image(path, 224, 256).astype(int) - np.asarray(expected).transpose(2, 0, 1)
        ).max()
        <= 1
    )


def test_same_size_is_bit_equal(tmp_path):
    pixels = ramp(32, 32)
    assert (read_image(save(tmp_path / "a.png", pixels), 32) == pixels.transpose(2, 0, 1)).all()


@pytest.mark.parametrize("size, resize", [(0, None), (-1, None), (64, 32)])
def test_impossible_geometry(tmp_path, size, resize):
    with pytest.raises(ValueError, match="1 <= size <= resize") as error:
        read_image(save(tmp_path / "a.png"), size, resize)
    one_sentence(error, f"size={size}")


@pytest.mark.parametrize("ending", [e for e in ENDINGS if e != ".pgm"])
def test_every_ending(tmp_path, ending):
    path = save(tmp_path / f"a{ending}", ramp(32, 32))
    expected = ramp(32, 32).transpose(2, 0, 1).astype(int)
    loss = 40 if ending in (".jpg", ".jpeg", ".webp", ".gif") else 0
    assert np.abs(read_image(path, 32) - expected).mean() <= loss / 4
    assert list_images(tmp_path) == [path]


def grey(mode):
    return Image.fromarray(ramp(32, 32)[..., 0]).convert(mode)


@pytest.mark.parametrize("name", ["g.png", "g.pgm", "g.jpg", "g.tif"])
def test_grey_becomes_three_equal_channels(tmp_path, name):
    got = read_image(save(tmp_path / name, grey("L")), 32).astype(int)
    assert (got[0] == got[1]).all() and (got[0] == got[2]).all()
    assert np.abs(got[0] - ramp(32, 32)[..., 0]).max() <= (6 if name == "g.jpg" else 0)


def test_bilevel(tmp_path):
    got = read_image(
        save(tmp_path / "b.png", grey("L").point(lambda v: 255 * (v > 90)).convert("1")), 32
    )
    assert (got[0] == 255 * (ramp(32, 32)[..., 0] > 90)).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_keeps_its_upper_byte(tmp_path, name):
    wide = (ramp(32, 32)[..., 0].astype(np.uint16) << 8) + 200
    assert (read_image(save(tmp_path / name, wide), 32)[1] == ramp(32, 32)[..., 0]).all()


def test_16_bit_is_not_stretched_when_dark(tmp_path):
    assert read_image(save(tmp_path / "a.png", np.full((8, 8), 255, np.uint16)), 8).max() == 0
    (tmp_path / "b.pgm").write_bytes(b"P5\n2 2\n4095\n" + np.full(4, 10, ">u2").tobytes())
    assert read_image(tmp_path / "b.pgm", 2).max() == 0


def test_big_endian_16_bit_tiff(tmp_path):
    path = save(
        tmp_path / "a.tif", Image.frombytes("I;16B", (2, 2), np.full(4, 0x7B01, ">u2").tobytes())
    )
    assert (read_image(path, 2) == 0x7B).all()


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array([[0.0, 1.0], [0.5, 0.25]], np.float32), [[0, 255], [128, 64]]),
        (np.array([[0.0, 255.0], [128.4, 2.0]], np.float32), [[0, 255], [128, 2]]),
        (np.array([[0.0, 65535.0], [512.0, 256.0]], np.float32), [[0, 255], [2, 1]]),
        (np.array([[0, 255], [1, 2]], np.int32), [[0, 255], [1, 2]]),
        (np.array([[0, 1], [1, 0]], np.int32), [[0, 1], [1, 0]]),
        (np.array([[0, 65535], [512, 511]], np.int32), [[0, 255], [2, 1]]),
    ],
)
def test_32_bit_tiff(tmp_path, values, expected):
    assert (read_image(save(tmp_path / "a.tif", values), 2)[2] == expected).all()


@pytest.mark.parametrize("value", [-1.0, 70000.0, np.nan, np.inf])
def test_32_bit_without_a_known_range(tmp_path, value):
    path = save(tmp_path / "a.tif", np.array([[0, value]], np.float32))
    with pytest.raises(ImageError, match="65535 is expected") as error:
        read_image(path, 2)
    one_sentence(error, path)


def test_float_ppm_reader_is_not_taken_for_16_bit(tmp_path):
    save(tmp_path / "a.pfm", np.full((2, 2), 0.5, np.float32))
    (tmp_path / "a.pfm").rename(tmp_path / "a.ppm")
    assert (read_image(tmp_path / "a.ppm", 2) == 128).all()


def test_palette(tmp_path):
    image = Image.fromarray(ramp(32, 32)).quantize(64)
    assert image.mode == "P"
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert (read_image(save(tmp_path / "p.png", image), 32) == expected).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_transparency_is_laid_on_white(tmp_path, mode, ending):
    pixels = np.full((8, 8, 4), [100, 100, 100, 255], np.uint8)
    pixels[:, :4, 3] = 0
    pixels[0, 7, 3] = 128
    options = {"lossless": True} if ending == "webp" else {}
    got = read_image(
        save(tmp_path / f"a.{ending}", Image.fromarray(pixels).convert(mode), **options), 8
    )
    assert (got[:, :, :4] == 255).all() and (got[:, 1:, 4:] == 100).all()
    assert np.abs(got[:, 0, 7].astype(int) - 177).max() <= 1


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparent_colour_is_laid_on_white(tmp_path, mode):
    image = Image.new("RGB", (4, 4), (250, 0, 0))
    image.paste((0, 0, 200), (0, 0, 2, 4))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    got = read_image(save(tmp_path / "a.png", image, transparency=image.getpixel((0, 0))), 4)
    assert (got[:, :, :2] == 255).all()
    assert (got[:, :, 2:].transpose(1, 2, 0) == np.asarray(image.convert("RGB"))[:, 2:]).all()


@pytest.mark.parametrize("name", ["c.jpg", "c.tif"])
def test_cmyk(tmp_path, name):
    options = {"quality": 100} if name == "c.jpg" else {}
    path = save(
        tmp_path / name, Image.new("RGB", (16, 16), (200, 30, 90)).convert("CMYK"), **options
    )
    assert Image.open(path).mode == "CMYK"
    assert np.abs(read_image(path, 16)[:, 8, 8] - np.array([200, 30, 90])).max() <= 3


TURNED = {  # what a camera stores, so that the picture shown is `upright`
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_exif_rotation(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(TURNED[orientation](ramp(48, 32)))
    options = {"quality": 100, "subsampling": 0} if ending == "jpg" else {}
    got = read_image(save(tmp_path / f"a.{ending}", stored, exif=exif, **options), 16, 32)
    expected = read_image(save(tmp_path / "b.png", ramp(48, 32)), 16, 32)
    assert np.abs(got.astype(int) - expected).max() <= (4 if ending == "jpg" else 0)


@pytest.mark.parametrize("ending", ["gif", "webp", "tif"])
def test_first_frame(tmp_path, ending):
    frames = [Image.new("RGB", (8, 8), (v, v, v)) for v in (10, 240)]
    path = save(tmp_path / f"a.{ending}", frames[0], save_all=True, append_images=frames[1:])
    assert Image.open(path).n_frames == 2
    assert read_image(path, 8).max() < 20


def test_one_pixel_and_extreme_strips(tmp_path, monkeypatch):
    assert (read_image(flat(tmp_path / "dot.png", 77, size=1), 24) == 77).all()
    strip = np.zeros((20, 20000, 3), np.uint8)
    strip[:, 9990:10010] = 200
    made, resize = [], Image.Image.resize
    spy = lambda image, size, *how, **more: made.append(size) or resize(image, size, *how, **more)  # noqa: E731
    monkeypatch.setattr(Image.Image, "resize", spy)
    for name, pixels in (("wide", strip), ("tall", strip.transpose(1, 0, 2))):
        assert (
            read_image(save(tmp_path / f"{name}.png", pixels), 224)[:, 12:-12, 12:-12] == 200
        ).all()
    assert made == [(224, 224)] * 2  # resizing the whole strip would make 224000 x 224


def test_content_decides_not_the_ending(tmp_path):
    save(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg", 8).shape == (3, 8, 8)


# --- files that cannot be read ---


@pytest.mark.parametrize("ending", [e for e in ENDINGS if e not in (".jpeg", ".tiff")])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_truncated(tmp_path, ending, part):
    noise = np.random.default_rng(0).integers(
        0, 256, (64, 64) if ending == ".pgm" else (64, 64, 3), dtype=np.uint8
    )
    path = save(tmp_path / f"a{ending}", noise)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ImageError) as error:
        read_image(path, 16)
    one_sentence(error, path)


def test_not_images(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("these are words")
    (tmp_path / "page.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    for name, cause in {
        "empty.png": "0 bytes",
        "text.jpg": "none of PNG",
        "page.png": "none of PNG",
        "folder.png": "is a folder",
        "broken.png": "link to a file that does not exist",
        "never.png": "no such file",
    }.items():
        for read in (read_image, read_mask):
            with pytest.raises(ImageError) as error:
                read(tmp_path / name, 8)
            one_sentence(error, tmp_path / name, cause)


@pytest.mark.parametrize(
    "limit", [1000, 400]
)  # Pillow warns above its limit, and refuses above twice the limit
def test_too_many_pixels(tmp_path, monkeypatch, limit, recwarn):
    path = save(tmp_path / "a.png", ramp(40, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError) as error:
        read_image(path, 16)
    one_sentence(error, path, f"more than {limit} pixels")
    assert not recwarn.list


# --- masks ---


def test_mask_values(tmp_path):
    half = np.zeros((8, 8), np.uint8)
    half[:, :4] = 1
    label, wide, bits = half, half.astype(np.uint16), half.astype(bool)
    palette = Image.fromarray(half)
    palette = palette.convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    clear = np.full((8, 8, 4), 255, np.uint8)
    clear[:, 4:, 3] = 0
    pictures = {"label": label, "wide": wide, "bits": bits, "palette": palette, "clear": clear}
    for name, picture in pictures.items():
        assert (read_mask(save(tmp_path / f"{name}.png", picture), 8) == half.astype(bool)).all(), (
            name
        )
    spot = np.zeros((16, 16), np.uint8)
    spot[5:11, 3:8] = 255
    noisy = save(tmp_path / "m.jpg", spot, quality=75)
    assert ((np.asarray(Image.open(noisy)) > 0) & (spot == 0)).any()
    assert (read_mask(noisy, 16) == (spot > 0)).all()
    assert not read_mask(save(tmp_path / "m.png", np.zeros((5, 9), np.uint8)), 8).any()


def test_mask_lies_on_its_image(tmp_path):
    pixels = np.zeros((90, 160, 3), np.uint8)
    pixels[20:50, 60:90] = 255
    image = read_image(save(tmp_path / "a.png", pixels), 32, 40)
    mask = read_mask(save(tmp_path / "m.png", pixels[..., 0]), 32, 40)
    assert 20 < mask.sum() and ((image[0] > 128) == mask).mean() > 0.95


# --- folders and sequences ---


def test_list_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "10.png", "9.png", "Ä ö.png", ".hidden.png", "._a.jpg"):
        save(tmp_path / name, format="png")
    for name in ("readme.txt", "Thumbs.db", "png"):
        (tmp_path / name).write_text("x")
    save(tmp_path / "deeper" / "c.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "broken.gif").symlink_to("gone.gif")
    (tmp_path / "link.bmp").symlink_to("a.jpg")
    names = [path.name for path in list_images(tmp_path)]
    assert names == ["10.png", "9.png", "a.jpg", "b.PNG", "broken.gif", "link.bmp", "Ä ö.png"]
    assert list_images(str(tmp_path)) == list_images(tmp_path)


def test_folders_without_images(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(ValueError) as error:
        list_images(tmp_path)
    one_sentence(error, tmp_path, ".png .jpg .jpeg")
    with pytest.raises(NotADirectoryError) as error:
        list_images(tmp_path / "readme.txt")
    one_sentence(error, tmp_path / "readme.txt", "is a file")
    with pytest.raises(FileNotFoundError) as error:
        list_images(tmp_path / "gone")
    one_sentence(error, tmp_path / "gone")


@pytest.fixture
def five(tmp_path):
    return ImageFolder([flat(tmp_path / f"{i}.png", 10 * i) for i in range(5)], 6)


def test_indexing(five):
    def levels(images):
        assert images.dtype == np.uint8 and images.shape[1:] == (3, 6, 6)
        return (images[:, 0, 0, 0] // 10).tolist()

    assert len(five) == 5 and five.shape == (5, 3, 6, 6)
    assert five[3].shape == (3, 6, 6) and five[3].max() == 30
    assert five[-1].max() == five[np.int64(4)].max() == 40
    assert (
        levels(five[1:4]) == [1, 2, 3]
        and levels(five[::-2]) == [4, 2, 0]
        and levels(five[9:]) == []
    )
    assert levels(five[np.array([4, 0, 4])]) == [4, 0, 4] and levels(five[[-1, 1]]) == [4, 1]
    assert levels(five[np.array([True, False, False, True, False])]) == [0, 3]
    assert levels(five[[]]) == levels(five[np.array([], int)]) == []
    assert levels(np.stack(list(five))) == levels(np.asarray(five)) == [0, 1, 2, 3, 4]
    for wrong in (5, -6, [5], np.array([True]), np.array([0.5])):
        with pytest.raises(IndexError):
            five[wrong]
    with pytest.raises(TypeError):
        five[1.5]


def test_lazy_and_bounded(tmp_path, monkeypatch):
    path = flat(tmp_path / "a.png", 9)
    calls = []
    monkeypatch.setattr(
        images, "read_image", lambda *a: calls.append(a) or np.zeros((3, 64, 64), np.uint8)
    )
    tracemalloc.start()
    try:
        many = ImageFolder([path] * 20_000, 64)
        assert not calls
        total = sum(len(many[start : start + 500]) for start in range(0, len(many), 500))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == len(calls) == 20_000
    assert peak < 40e6  # all images together would be 246 MB


def test_unreadable_file_is_named_when_reached(tmp_path):
    files = [flat(tmp_path / f"{i}.png", i) for i in range(3)]
    files[1].write_bytes(b"no image")
    images = ImageFolder(files, 8)
    assert images[0].max() == 0
    with pytest.raises(ImageError) as error:
        images[:]
    one_sentence(error, files[1])


def test_fingerprint(tmp_path, five):
    whole = five.fingerprint()
    assert len(whole) == 64 and whole == ImageFolder(five.files, 6, 6).fingerprint()
    moved = [shutil.copy(file, tmp_path / f"copy {i}.png") for i, file in enumerate(five.files)]
    assert ImageFolder(moved, 6).fingerprint() == whole
    others = [
        ImageFolder(five.files, 7),
        ImageFolder(five.files, 6, 8),
        ImageFolder(five.files[::-1], 6),
        ImageFolder(five.files[:4], 6),
    ]
    prints = {whole, *(other.fingerprint() for other in others)}
    flat(five.files[2], 21)
    assert len(prints | {five.fingerprint()}) == 6
    five.files[2].unlink()
    with pytest.raises(ImageError, match="no such file"):
        five.fingerprint()


# --- tasks ---


def classes(root, **counts):
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            flat(root / name / f"{i:02}.png", 50 * number + i)
    return root


def mvtec(root, masks=True):
    classes(root / "train", good=6)
    classes(root / "test", good=3, scratch=4, hole=2)
    for i in range(4 * masks):
        mask = np.zeros((8, 8), np.uint8)
        mask[i, :] = 255 * (i > 0)  # the first one is empty
        save(
            root / "ground_truth" / "scratch" / (f"{i:02}_mask.png" if i % 2 else f"{i:02}.png"),
            mask,
        )
    for i in range(2 * masks):
        save(root / "ground_truth" / "hole" / f"{i:02}_mask.png", np.full((8, 8), 255, np.uint8))
    return root


def names(sequence):
    return [f"{file.parent.name}/{file.stem}" for file in sequence.files]


def test_mvtec_layout(tmp_path):
    task = load_task(mvtec(tmp_path / "parts"), size=8)
    assert task.name == f"folder:{tmp_path / 'parts'}"
    assert names(task.train) == [f"good/0{i}" for i in range(6)]
    assert task.kinds == ("good",) * 3 + ("hole",) * 2 + ("scratch",) * 4
    assert task.labels.dtype == np.int64 and task.labels.tolist() == [0] * 3 + [1] * 6
    assert task.files == tuple(map(str, task.test.files)) and task.files[3].endswith(
        "test/hole/00.png"
    )
    assert task.test[:].shape == (9, 3, 8, 8) and task.test[5].max() == 50
    assert task.masks.shape == (9, 8, 8) and task.masks.dtype == bool
    assert task.masks.sum((1, 2)).tolist() == [0, 0, 0, 64, 64, 0, 8, 8, 8]
    assert task.masks[7, 2].all()
    assert load_task(f"{tmp_path / 'parts'}:good", size=8).name == task.name
    assert class_specs(tmp_path / "parts") == [str(tmp_path / "parts")]


def test_mvtec_without_masks(tmp_path):
    root = mvtec(tmp_path, masks=False)
    assert load_task(root, size=8).masks is None
    (root / "ground_truth" / "hole").mkdir(parents=True)
    assert load_task(root, size=8).masks is None


def test_missing_masks(tmp_path):
    root = mvtec(tmp_path)
    (root / "ground_truth/scratch/01_mask.png").rename(root / "ground_truth/scratch/99_mask.png")
    with pytest.raises(ValueError) as error:
        load_task(root, size=8, n_test=1)  # even if the sample would miss it
    one_sentence(
        error,
        root / "test/scratch/01.png",
        "1 of 6",
        root / "ground_truth/scratch/01_mask.png",
        "'drop'",
    )
    task = load_task(root, size=8, missing_masks="drop")
    assert names(task.test)[-4:] == ["hole/01", "scratch/00", "scratch/02", "scratch/03"]
    assert task.masks.sum((1, 2)).tolist() == [0, 0, 0, 64, 64, 0, 8, 8] and task.masks[6, 2].all()
    task = load_task(root, size=8, missing_masks="none")
    assert task.masks is None and len(task.test) == 9
    with pytest.raises(ValueError, match="missing_masks='skip'"):
        load_task(root, size=8, missing_masks="skip")

    shutil.rmtree(root / "ground_truth/scratch")  # a defect without any mask is no reason to guess
    with pytest.raises(ValueError, match="scratch/00.png' has no mask"):
        load_task(root, size=8)
    (root / "ground_truth/hole/00_mask.png").rename(root / "ground_truth/hole/x.png")
    (root / "ground_truth/hole/01_mask.png").unlink()
    with pytest.raises(ValueError, match="6 of 6"):  # nothing pairs: wrong names, not "no masks"
        load_task(root, size=8)
    with pytest.raises(ValueError, match="none has a mask"):
        load_task(root, size=8, missing_masks="drop")


def test_masks_that_do_not_fit(tmp_path):
    root = mvtec(tmp_path)
    path = save(root / "ground_truth/hole/01_mask.png", np.zeros((16, 16), np.uint8))
    assert load_task(root, size=8).masks is not None  # another resolution is no harm
    save(path, np.zeros((16, 8), np.uint8))
    with pytest.raises(ImageError) as error:
        load_task(root, size=8)
    one_sentence(error, path, "01.png", "8 x 8", "8 x 16")
    save(path, np.zeros((8, 8), np.uint8))
    save(root / "ground_truth/hole/01_mask.bmp", np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="masks are ambiguous") as error:
        load_task(root, size=8)
    one_sentence(error, "01_mask.bmp", "01_mask.png")


def test_train_and_test_classes(tmp_path):
    classes(tmp_path / "train", cat=5, dog=4)
    classes(tmp_path / "test", bird=2, cat=3, dog=2)
    task = load_task(f"{tmp_path}:dog", size=8)
    assert task.name == f"folder:{tmp_path}:dog" and task.masks is None
    assert (
        names(task.train) == [f"dog/0{i}" for i in range(4)]
        and task.train.files[0].parts[-3] == "train"
    )
    assert task.kinds == ("dog",) * 2 + ("bird",) * 2 + ("cat",) * 3
    assert task.labels.tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert (
        class_specs(tmp_path)
        == class_specs(f"{tmp_path}:cat")
        == [f"{tmp_path}:cat", f"{tmp_path}:dog"]
    )


def test_class_called_good_among_others(tmp_path):
    """train/good makes it MVTec's layout only as long as nobody names another class."""
    classes(tmp_path / "train", good=3, bad=3)
    classes(tmp_path / "test", good=1, bad=1)
    assert load_task(f"{tmp_path}:bad", size=8).kinds == ("bad", "good")


def test_class_folders_are_split(tmp_path):
    classes(tmp_path, cat=20, dog=3, train=2)  # a class may be called "train"
    task = load_task(f"{tmp_path}:cat", size=8, seed=1)
    train, test = set(names(task.train)), set(names(task.test))
    assert (
        len(train) == 16
        and not train & test
        and {f"cat/{i:02}" for i in range(20)}
        == train | {name for name in test if name.startswith("cat")}
    )
    assert task.kinds == ("cat",) * 4 + ("dog",) * 3 + ("train",) * 2
    assert names(task.train) == sorted(train)
    assert names(load_task(f"{tmp_path}:cat", size=8, seed=1).train) == names(task.train)
    assert names(load_task(f"{tmp_path}:cat", size=8, seed=2).train) != names(task.train)
    assert class_specs(tmp_path) == [f"{tmp_path}:cat", f"{tmp_path}:dog", f"{tmp_path}:train"]


def test_samples(tmp_path, monkeypatch):
    classes(tmp_path, cat=30, dog=20, eel=2)
    spec = f"{tmp_path}:cat"
    everything, small, larger = (
        load_task(spec, size=8, n_train=n, n_test=m) for n, m in ((None, None), (5, 3), (9, 4))
    )
    assert len(small.train) == 5 and small.kinds == ("cat",) * 3 + ("dog",) * 3 + ("eel",) * 2
    assert set(names(small.train)) < set(names(larger.train)) < set(names(everything.train))
    assert set(names(small.test)) < set(names(larger.test)) < set(names(everything.test))
    assert names(load_task(spec, size=8, n_train=5, n_test=3, seed=7).test) != names(small.test)
    assert len(load_task(spec, size=8, n_train=1000, n_test=1000).train) == 24

    scandir = images.os.scandir  # another file system lists in another order

    class Backwards:
        def __init__(self, folder):
            with scandir(folder) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self):
            return iter(sorted(self.entries, key=lambda entry: entry.name, reverse=True))

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(images.os, "scandir", Backwards)
    again = load_task(spec, size=8, n_train=5, n_test=3)
    assert names(again.train) == names(small.train) and names(again.test) == names(small.test)
    monkeypatch.undo()

    classes(tmp_path, ape=20)  # a further class changes no other's sample, and repeats none
    more = names(load_task(spec, size=8, n_test=3).test)
    assert set(more) > set(names(small.test))
    assert [name[-2:] for name in more if name[:3] == "ape"] != [
        name[-2:] for name in more if name[:3] == "dog"
    ]
    for wrong in ({"n_train": 1}, {"n_test": 0}, {"n_train": -3}):
        with pytest.raises(ValueError, match="expected at least") as error:
            load_task(spec, size=8, **wrong)
        one_sentence(error, *map(str, wrong.values()))


def test_colons_spaces_unicode_links(tmp_path, monkeypatch):
    root = classes(tmp_path / "my parts: größe", **{"gut: ja": 5, "schlecht": 2})
    (tmp_path / "link").symlink_to(root)
    for spec in (f"{root}:gut: ja", f"{tmp_path}/link:gut: ja"):
        task = load_task(spec, size=8)
        assert task.kinds == ("gut: ja",) * 1 + ("schlecht",) * 2 and task.test[:].shape == (
            3,
            3,
            8,
            8,
        )
    assert load_task(mvtec(tmp_path / "a:good"), size=8).name == f"folder:{tmp_path}/a:good"

    monkeypatch.setenv("HOME", str(tmp_path))
    assert class_specs("~/link") == [f"{tmp_path}/link:gut: ja", f"{tmp_path}/link:schlecht"]

    accents = classes(tmp_path / "accents", **{unicodedata.normalize("NFD", "é"): 5, "x": 2})
    assert len(load_task(f"{accents}:{unicodedata.normalize('NFC', 'é')}", size=8).train) == 4


def test_missing_classes(tmp_path):
    root = classes(tmp_path, Airplane=3, bird=3)
    for spec in (root, str(root), f"{root}:"):
        with pytest.raises(ValueError, match="which class is normal") as error:
            load_task(spec, size=8)
        one_sentence(error, "Airplane, bird")
    for wrong in ("airplane", "Airplanes"):
        for function in (class_specs, lambda spec: load_task(spec, size=8)):
            with pytest.raises(ValueError, match=f"no class '{wrong}'") as error:
                function(f"{root}:{wrong}")
            one_sentence(error, "Did you mean 'Airplane'?", "Airplane, bird")
    with pytest.raises(ValueError, match="no class 'zzz'") as error:
        load_task(f"{root}:zzz", size=8)
    assert "Did you mean" not in one_sentence(error)


def test_paths_that_are_no_folders(tmp_path):
    path = flat(tmp_path / "a.png", 1)
    for spec in (path, f"{path}:cat"):
        with pytest.raises(NotADirectoryError) as error:
            load_task(spec, size=8)
        one_sentence(error, path, "is a file")
    for spec in (tmp_path / "gone", "gone:cat", ":cat", ""):
        with pytest.raises(FileNotFoundError) as error:
            load_task(spec, size=8)
        one_sentence(error, spec)
    for function in (class_specs, lambda spec: load_task(spec, size=8)):
        with pytest.raises(ValueError, match="no class folders") as error:
            function(tmp_path)
        one_sentence(error, tmp_path)


def test_too_few_images(tmp_path):
    def fails(spec, *words):
        with pytest.raises(ValueError) as error:
            load_task(spec, size=8)
        one_sentence(error, *words)

    root = classes(tmp_path / "a", cat=2, dog=1)
    fails(f"{root}:cat", "1 normal training image(s)", "80 % of the 2", root / "cat", "at least 2")
    fails(f"{root}:dog", "0 normal training image(s)", root / "dog")
    (root / "empty").mkdir()
    fails(f"{root}:cat", root / "empty", "holds no images")
    fails(f"{classes(tmp_path / 'b', cat=9)}:cat", "no anomalous test images", "cat")

    root = classes(tmp_path / "c" / "train", good=1).parent
    fails(root, root, "only one of train/ and test/")
    classes(root / "test", bad=1)
    fails(root, "1 normal training image(s)", root / "train/good")
    classes(root / "train", good=2)
    fails(root, "no normal test images", root / "test/good")
    shutil.move(root / "test/bad", root / "test/good")
    fails(root, "no anomalous test images", root / "test")
    assert len(load_task(f"{classes(tmp_path / 'd', cat=3, dog=1)}:cat", size=8).train) == 2


# --- real images ---


def test_real_cifar10():
    root = real("cifar10")
    task = load_task(f"{root}:airplane", size=32, n_train=50, n_test=20)
    assert len(task.train) == 50 and task.labels.sum() == 180 and len(task.labels) == 200
    assert task.kinds[:20] == ("airplane",) * 20 and len(set(task.kinds)) == 10
    images = task.test[:40]
    assert images.shape == (40, 3, 32, 32)
    assert (images[25] == np.asarray(Image.open(task.files[25])).transpose(2, 0, 1)).all()
    assert len(class_specs(root)) == 10 and len(load_task(f"{root}:airplane", size=32).train) == 500


def test_real_mvtec_leather():
    root = real("mvtec_leather")
    with pytest.raises(ValueError, match="color/008.png"):
        load_task(root, size=64)
    task = load_task(root, size=56, resize=64, missing_masks="drop")
    assert task.train[:].shape == (4, 3, 56, 56) and task.kinds.count("good") == 4
    assert task.masks.shape == (len(task.labels), 56, 56)
    assert (
        task.masks[task.labels == 1].any((1, 2)).mean() > 0.8
        and not task.masks[task.labels == 0].any()
    )
    assert set(load_task(root, size=64, missing_masks="none").kinds) == {
        "good",
        "color",
        "cut",
        "fold",
        "glue",
        "poke",
    }


def test_real_magnetic_tile():
    root = real("magnetic_tile")
    task = load_task(root, size=32, n_test=10)
    assert len(task.train) == 151 and len(task.labels) == 58 and task.labels.sum() == 48
    images = task.test[::4]
    assert (images[:, 0] == images[:, 2]).all() and images.std() > 10
    whole = load_task(root, size=32)
    empty = {
        kind
        for kind, label, mask in zip(whole.kinds, whole.labels, whole.masks)
        if label and not mask.any()
    }
    assert "uneven" in empty  # allowed: some "uneven" masks mark no pixel


def test_images_are_written_in_their_order_and_only_into_an_empty_folder(tmp_path):
    from pandalib.datasets.folder import write_images

    images = np.random.default_rng(0).integers(0, 256, (12, 3, 20, 20), dtype=np.uint8)
    folder = write_images(images, tmp_path / "new" / "photographs")
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == "00.png" and len(names) == 12
    assert np.array_equal(np.stack([read_image(folder / name, 20) for name in names]), images)
    with pytest.raises(FileExistsError, match="is not empty: expected a new or an empty folder"):
        write_images(images, folder)
    assert sorted(path.name for path in folder.iterdir()) == names
