"""Every kind of picture file reads right or fails in one sentence; sequences, batches."""

import io
import multiprocessing
import os
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pictures import flat, one_sentence, ramp, save
from PIL import Image

from pandalib.datasets import images
from pandalib.datasets.images import (
    Geometry,
    ImageArray,
    ImageError,
    ImageFolder,
    join,
    take,
)
from pandalib.datasets.listing import ENDINGS, find_images
from pandalib.validation import as_images

# ---------------------------------------------------------------- geometry


def two_steps(pixels, size, resize, how):
    """The definition: resize all of it, then cut out the centre, rounded as torchvision does."""
    image = Image.fromarray(pixels)
    short = min(image.size)
    image = image.resize([int(resize * length / short) for length in image.size], how)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def off_the_border(length, size, resize, short):
    """Where a nearest neighbour is one for certain, and not exactly between two pixels."""
    new = int(resize * length / short)
    samples = (round((new - size) / 2) + np.arange(size) + 0.5) * length / new
    return np.abs(samples - samples.round()) > 1e-3


@pytest.mark.parametrize("width, height", [(40, 30), (31, 77), (61, 61), (500, 33), (7, 5)])
@pytest.mark.parametrize("size, resize", [(24, None), (28, 32), (15, 21)])
def test_a_crop_is_resize_then_centre_crop(tmp_path, width, height, size, resize):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    geometry = Geometry.square(size, resize, "crop")
    got = geometry.read(save(tmp_path / "a.png", noise))
    assert got.shape == (3, size, size) and got.dtype == np.uint8 and got.flags["C_CONTIGUOUS"]
    resize = resize or size
    wanted = two_steps(noise, size, resize, Image.Resampling.BILINEAR).transpose(2, 0, 1)
    assert np.abs(got.astype(int) - wanted).max() <= 1

    marks = (noise[..., 0] > 128).astype(np.uint8) * 255
    mask = geometry.read_mask(save(tmp_path / "m.png", marks))
    assert mask.shape == (size, size) and mask.dtype == bool
    wanted = two_steps(marks, size, resize, Image.Resampling.NEAREST) > 0
    sides = (off_the_border(side, size, resize, min(width, height)) for side in (height, width))
    definite = np.outer(*sides)
    assert definite.mean() > 0.5 and (mask == wanted)[definite].all()


def test_extreme_strips_do_not_swell(tmp_path, monkeypatch):
    strip = np.zeros((20, 20000, 3), np.uint8)
    strip[:, 9990:10010] = 200
    made, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda image, size, *how, **more: made.append(size) or resize(image, size, *how, **more),
    )
    for name, pixels in (("wide", strip), ("tall", strip.transpose(1, 0, 2))):
        image = Geometry.square(224, fit="crop").read(save(tmp_path / f"{name}.png", pixels))
        assert (image[:, 12:-12, 12:-12] == 200).all()
    assert made == [(224, 224)] * 2  # the whole strip would become 224000 x 224


@pytest.mark.parametrize("height, width", [(40, 120), (120, 40), (64, 64), (24, 200)])
@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_the_whole_image_is_seen(height, width, fit):
    """A spot at any place, corners included, lies at its place in image and mask and comes back."""
    geometry = Geometry(64, 96, fit)
    side = min(height, width)
    rows, columns = (sorted({0, length // 2, length - side // 4 - 1}) for length in (height, width))
    for row, column in [(row, column) for row in rows for column in columns]:
        spot = np.zeros((height, width), np.uint8)
        spot[row : row + side // 4 + 1, column : column + side // 4 + 1] = 255
        image = geometry.read(spot)[0]
        assert image.max() > 200
        mask = geometry.fit_mask(spot > 0)
        assert mask.any() and image[mask].mean() > 2 * max(1, image[~mask].mean())
        back = geometry.restore(image, height, width)
        assert back.shape == (height, width) and not np.isnan(back).any()
        found = np.argwhere(back >= 0.9 * back.max()).mean(axis=0)
        assert np.abs(found - np.argwhere(spot).mean(axis=0)).max() <= max(height, width) / 64 + 1


def test_proportions_of_a_padded_image():
    disc = np.hypot(*np.mgrid[-50:50, -100:100]) < 30
    shown = Geometry(64, 64, "pad").read(np.uint8(255) * disc)[0] > 128
    height, width = (np.ptp(place) + 1 for place in np.nonzero(shown))
    assert height == width == round(60 * 64 / 200)
    frame = Geometry(64, 64, "pad").read(np.uint8(255) * ~disc)  # its edges are repeated
    assert (frame[:, :16] == 255).all() and (frame[:, -16:] == 255).all()
    assert not Geometry(64, 64, "pad").fit_mask(~disc)[:15].any()  # but they are no anomaly


@pytest.mark.parametrize("size", [64, 40, 7])
def test_fits_agree_on_square_images(size):
    noise = np.random.default_rng(0).integers(0, 256, (61, 61, 3), dtype=np.uint8)
    one, *others = (Geometry.square(size, fit=fit) for fit in ("stretch", "pad", "crop"))
    for other in others:
        assert (one.read(noise) == other.read(noise)).all()
        assert (one.fit_mask(noise[..., 0] > 99) == other.fit_mask(noise[..., 0] > 99)).all()
        anomaly_map = noise[..., 0] / 7
        assert np.allclose(one.restore(anomaly_map, 50, 50), other.restore(anomaly_map, 50, 50))


def test_shrinking_averages():
    """A narrow line in a large image is fainter, but there: no pixel is skipped."""
    for column in range(0, 640, 31):
        line = np.zeros((640, 640), np.uint8)
        line[:, column] = 255
        for fit in ("stretch", "pad", "crop"):
            assert Geometry.square(64, fit=fit).read(line).max() >= 10


def test_restore_is_linear_interpolation():
    found = Geometry(2, 3).restore(np.array([[0.0, 1, 2], [4, 5, 6]]), 4, 6)
    assert found.dtype == np.float32
    assert np.allclose(found[0], [0, 0.25, 0.75, 1.25, 1.75, 2]) and np.allclose(
        found[:, 0], [0, 1, 3, 4]
    )


def test_restored_crops_say_where_they_did_not_look():
    noise = np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8)
    found = Geometry.square(32, 40).restore(np.ones((8, 8)), 40, 100)
    seen = ~np.isnan(found)
    assert seen.sum() == 32 * 32 and (found[seen] == 1).all()
    rows, columns = np.nonzero(seen)
    window = noise[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert (Geometry.square(32, 40).read(noise) == window.transpose(2, 0, 1)).all()


def test_a_geometry_for_a_folder(tmp_path):
    def fitted(*shapes, size=224, **options):
        pictures = [Image.new("L", (width, height)) for height, width in shapes]
        geometry = Geometry.for_images(pictures, size, **options)
        return geometry.height, geometry.width

    assert fitted((300, 300)) == fitted((5, 5)) == fitted((310, 300)) == fitted() == (224, 224)
    assert fitted((400, 1200)) == (128, 384) and fitted((1200, 400)) == (384, 128)
    assert fitted((3000, 4000), (3000, 4000), (50, 900)) == (192, 256)  # the median
    assert fitted((300, 400), (400, 300)) == (224, 224)  # both orientations
    assert fitted((20, 20000)) == (32, 1568)  # no larger than any other
    assert fitted((10, 20), size=50) == (35, 71)
    assert fitted((400, 1200), fit="crop") == fitted((400, 1200), resize=256) == (224, 224)
    assert fitted((400, 1200), fit="pad") == (128, 384)

    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.ascontiguousarray(np.rot90(ramp(48, 24), 1))
    for ending in ("png", "jpg", "tif", "webp"):
        path = save(tmp_path / f"a.{ending}", stored, exif=exif)
        found = Geometry.for_images([tmp_path / "gone.png", path], 64)
        assert (found.height, found.width) == (32, 128), ending


def test_geometries_that_cannot_be():
    for wrong in (
        lambda: Geometry(0, 8),
        lambda: Geometry(8, 8, "squeeze"),
        lambda: Geometry(8, 8, "stretch", 9),
        lambda: Geometry(8, 9, "crop"),
        lambda: Geometry.square(8, 7),
        lambda: Geometry(8, 8, black=9, white=9),
        lambda: Geometry(8, 8).read(np.zeros((3, 8, 8), np.uint8)),
        lambda: Geometry(8, 8).read(np.zeros((8, 8))),
    ):
        with pytest.raises(ValueError, match="expected|only") as error:
            wrong()
        one_sentence(error)
    assert str(Geometry(160, 224)) == "224 x 160 pixels, the whole image"


# ---------------------------------------------------------------- one frame in any form


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_file_picture_and_array_give_the_same_bits(tmp_path, fit):
    geometry = Geometry(32, 32, fit) if fit == "crop" else Geometry(32, 48, fit)
    colour = np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8)
    wide = np.random.default_rng(1).integers(0, 4096, (61, 90), dtype=np.uint16)
    for name, pixels in (("c.png", colour), ("g.png", colour[..., 0]), ("w.png", wide)):
        geometry = replace(geometry, white=4095)
        path = save(tmp_path / name, pixels)
        wanted = geometry.read(path)
        assert (geometry.read(pixels) == wanted).all() and (
            geometry.read(str(path)) == wanted
        ).all()
        with Image.open(path) as picture:
            assert (geometry.read(picture) == wanted).all()
    exif = Image.Exif()
    exif[0x0112] = 8
    path = save(tmp_path / "turned.jpg", colour, exif=exif)
    with Image.open(path) as picture:
        assert (geometry.read(picture) == geometry.read(path)).all()


# ---------------------------------------------------------------- colours


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending(tmp_path, ending):
    pixels = ramp(32, 32)
    if ending == ".pgm":
        pixels = pixels[..., 0]
    path = save(tmp_path / f"a{ending}", pixels)
    wanted = np.broadcast_to(np.atleast_3d(pixels), (32, 32, 3)).transpose(2, 0, 1).astype(int)
    lossy = ending in (".jpg", ".jpeg", ".jfif", ".webp", ".gif")
    assert np.abs(Geometry.square(32).read(path) - wanted).mean() <= 10 * lossy
    assert find_images(tmp_path).files == [path]
    other = path.rename(tmp_path / "a.png")  # the content decides, not the ending
    assert Geometry.square(8).read(other).shape == (3, 8, 8)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_keeps_its_upper_byte(tmp_path, name):
    wide = (ramp(32, 32)[..., 0].astype(np.uint16) << 8) + 200
    got = Geometry.square(32).read(save(tmp_path / name, wide))
    assert (got == ramp(32, 32)[..., 0]).all()  # three equal channels
    dark = save(tmp_path / f"dark {name}", np.full((8, 8), 255, np.uint16))
    assert Geometry.square(8).read(dark).max() == 0  # not stretched
    big = Image.frombytes("I;16B", (2, 2), np.full(4, 0x7B01, ">u2").tobytes())
    assert (Geometry.square(2).read(save(tmp_path / "b.tif", big)) == 0x7B).all()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_one_range_for_the_16_bit_files_of_a_folder(tmp_path, name, bits):
    """10 and 12 bits fill only the lowest part of 16: a faint defect must survive reading."""
    top = 2**bits - 1
    parts = [np.full((16, 16), round(0.45 * top), np.uint16) for _ in range(2)]
    parts[0][0, 0] = round(0.9 * top)
    files = [save(tmp_path / str(number) / name, part) for number, part in enumerate(parts)]
    geometry = Geometry.for_images([*files, flat(tmp_path / "8 bits.png", 9)], 16)
    assert (geometry.black, geometry.white) == (0, top)
    good = geometry.read(files[1])
    assert (good == round(0.45 * top) * 256 // (top + 1)).all()
    parts[1][4:8, 4:8] += round(0.024 * top)
    assert (geometry.read(parts[1]).astype(int) - good)[0, 4:8, 4:8].min() >= 5
    assert (geometry.read(np.full((8, 8), 65535, np.uint16)) == 255).all()  # cut off, not wrapped


@pytest.mark.parametrize("bits", [10, 12, 13, 16])
def test_16_bit_colour(tmp_path, bits):
    """Pillow keeps the upper byte: of 12 bits 4 would be left, so they are refused."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    pixels = np.full((8, 25), 2**bits - 1, ">u2")
    pixels[:, 0] = 0  # the filter of each row, and a byte more than is needed
    rows = b"".join(b"\0" + row[1:].tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    data = header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    files = [tmp_path / "a.png", flat(tmp_path / "b.png", 3)]
    if bits > 12:
        geometry = Geometry.for_images(files, 8)
        assert (geometry.read(files[0]) == 2 ** (bits - 8) - 1).all()
    else:
        with pytest.raises(ImageError) as error:
            Geometry.for_images(files, 8)
        one_sentence(error, "a.png", "12 of their 16 bits")


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_white_is_zero(tmp_path, bits):
    """A TIFF may store a negative, which Pillow turns for 8 bits only."""
    grey = ramp(16, 16)[..., 0].astype(np.uint16)
    stored = 255 - grey
    picture = Image.fromarray(stored.astype(np.uint8) if bits == 8 else stored << (bits - 8))
    path = save(tmp_path / "a.tif", picture, tiffinfo={262: 0})
    with Image.open(path) as picture:
        assert picture.tag_v2[262] == 0
    if bits == 8:  # Pillow writes a true negative of what it is given
        grey = stored
    geometry = Geometry.for_images([path], 16)
    assert (geometry.read(path)[0] == grey).all()
    with Image.open(path) as picture:
        assert (geometry.read(picture)[0] == grey).all()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_32_bits_declare_no_range(tmp_path, kind):
    path = save(tmp_path / "a.tif", np.array([[0, 1]], kind))
    with pytest.raises(ImageError, match="8 or 16 bits") as error:
        Geometry.square(2).read(path)
    one_sentence(error, path)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_transparency_is_laid_on_white(tmp_path, mode, ending):
    pixels = np.full((8, 8, 4), [100, 100, 100, 255], np.uint8)
    pixels[:, :4, 3] = 0
    pixels[0, 7, 3] = 128
    options = {"lossless": True} if ending == "webp" else {}
    image = Image.fromarray(pixels).convert(mode)
    got = Geometry.square(8).read(save(tmp_path / f"a.{ending}", image, **options))
    assert (got[:, :, :4] == 255).all() and (got[:, 1:, 4:] == 100).all()
    assert np.abs(got[:, 0, 7].astype(int) - 177).max() <= 1


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_exif_rotation(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    stored = np.ascontiguousarray(np.rot90(ramp(48, 32), 1))
    options = {"quality": 100, "subsampling": 0} if ending == "jpg" else {}
    got = Geometry.square(16, 32).read(save(tmp_path / f"a.{ending}", stored, exif=exif, **options))
    wanted = Geometry.square(16, 32).read(save(tmp_path / "b.png", ramp(48, 32)))
    assert np.abs(got.astype(int) - wanted).max() <= (4 if ending == "jpg" else 0)


def test_mask_values(tmp_path):
    half = np.zeros((8, 8), np.uint8)
    half[:, :4] = 1
    palette = Image.fromarray(half).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    clear = np.full((8, 8, 4), 255, np.uint8)
    clear[:, 4:, 3] = 0
    pictures = [half, half.astype(np.uint16), half.astype(bool), palette, clear]
    for number, picture in enumerate(pictures):
        mask = Geometry.square(8).read_mask(save(tmp_path / f"{number}.png", picture))
        assert (mask == half.astype(bool)).all(), number
    spot = np.zeros((16, 16), np.uint8)
    spot[5:11, 3:8] = 255
    noisy = save(tmp_path / "m.jpg", spot, quality=75)
    assert ((np.asarray(Image.open(noisy)) > 0) & (spot == 0)).any()
    assert (Geometry.square(16).read_mask(noisy) == (spot > 0)).all()


def test_mask_lies_on_its_image(tmp_path):
    pixels = np.zeros((90, 160, 3), np.uint8)
    pixels[20:50, 60:90] = 255
    picture = save(tmp_path / "a.png", pixels)
    mask = Geometry.square(32, 40).read_mask(
        save(tmp_path / "m.png", pixels[..., 0]), image=picture
    )
    assert (
        20 < mask.sum() and ((Geometry.square(32, 40).read(picture)[0] > 128) == mask).mean() > 0.95
    )
    smaller = save(tmp_path / "s.png", np.zeros((45, 80), np.uint8))
    assert (
        not Geometry.square(8).read_mask(smaller, image=picture).any()
    )  # another resolution is no harm
    with pytest.raises(ImageError, match="160 x 90 pixels, but it has 90 x 160") as error:
        Geometry.square(8).read_mask(
            save(tmp_path / "t.png", np.zeros((160, 90), np.uint8)), image=picture
        )
    one_sentence(error, "t.png", "a.png")


# ---------------------------------------------------------------- files that cannot be read


def test_not_images(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("these are words")
    (tmp_path / "page.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name, cause in {
        "empty.png": "0 bytes",
        "text.jpg": "none of PNG",
        "page.png": "none of PNG",
        "never.png": "no such file",
    }.items():
        for read in (Geometry.square(8).read, Geometry.square(8).read_mask):
            with pytest.raises(ImageError) as error:
                read(tmp_path / name)
            one_sentence(error, tmp_path / name, cause, error.value.cause)


@pytest.mark.parametrize("limit", [1000, 400])  # Pillow warns, and above twice its limit refuses
def test_too_many_pixels(tmp_path, monkeypatch, limit, recwarn):
    path = save(tmp_path / "a.png", ramp(40, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match=f"more than {limit} pixels"):
        Geometry.square(16).read(path)
    assert not recwarn.list


def encoded(form, mode, **options):
    """A small valid file: smooth, so that compressed formats have something to do."""
    smooth = np.random.default_rng(0).normal(128, 60, (5, 6, 4))
    smooth = np.clip(smooth, 0, 255).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    image = Image.fromarray(smooth if mode == "RGBA" else smooth[..., :3]).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


VALID = {
    "grey.png": encoded("PNG", "L"),
    "rgba.png": encoded("PNG", "RGBA"),
    "palette.png": encoded("PNG", "P", transparency=3),
    "rgb.jpg": encoded("JPEG", "RGB"),
    "cmyk.jpg": encoded("JPEG", "CMYK"),
    "progressive.jpg": encoded("JPEG", "RGB", progressive=True),
    "palette.bmp": encoded("BMP", "P"),
    "raw.tif": encoded("TIFF", "RGB"),
    "packed.tif": encoded("TIFF", "L", compression="tiff_lzw"),
    "jpeg.tif": encoded("TIFF", "RGB", compression="jpeg"),
    "fax.tif": encoded("TIFF", "1", compression="group4"),
    "palette.gif": encoded("GIF", "P"),
    "lossy.webp": encoded("WEBP", "RGB"),
    "lossless.webp": encoded("WEBP", "RGBA", lossless=True),
    "rgb.ppm": encoded("PPM", "RGB"),
    "plain.ppm": b"P3 2 2 255\n" + b"9 8 7 " * 4,
}
CHANGE = st.tuples(
    st.floats(0, 1),
    st.sampled_from(["set", "flip", "cut", "insert", "swap", "end"]),
    st.binary(min_size=1, max_size=8),
)


@pytest.mark.filterwarnings("ignore")  # Pillow has a word about most of these files
@settings(
    max_examples=400,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@hypothesis.given(
    name=st.sampled_from(sorted(VALID)),
    other=st.sampled_from(sorted(VALID)),
    changes=st.lists(CHANGE, max_size=6),
)
def test_damaged_files(tmp_path, name, other, changes):
    """An image of the right form, or an ImageError that names file and cause; nothing else."""
    content = bytearray(VALID[name])
    for where, kind, some in changes:
        place = int(where**2 * max(0, len(content) - 1))  # more often in front, where headers are
        if kind == "set":
            content[place : place + len(some)] = some
        elif kind == "flip":
            content[place : place + 1] = bytes(byte ^ some[0] for byte in content[place:][:1])
        elif kind == "cut":
            del content[place : place + 8 * len(some)]
        elif kind == "insert":
            content[place:place] = some
        elif kind == "swap":
            content[place:] = VALID[other][place:]
        else:
            del content[max(1, place) :]
    path = tmp_path / name
    path.write_bytes(content)
    readers = [
        lambda: Geometry.square(32, 40).read(path),
        lambda: Geometry.square(32).read_mask(path, image=path),
    ]
    for read in [*readers, lambda: ImageFolder([path], Geometry.square(32))[:1][0]]:
        try:
            found = read()
        except ImageError as error:
            assert changes and error.cause and error.cause in str(error) and str(path) in str(error)
            assert "\n" not in str(error)
        else:
            assert (found.dtype, found.shape[-2:]) in ((np.uint8, (32, 32)), (bool, (32, 32)))


# ---------------------------------------------------------------- sequences


@pytest.fixture
def five(tmp_path):
    return ImageFolder([flat(tmp_path / f"{i}.png", 10 * i) for i in range(5)], Geometry.square(6))


def test_indexing_is_numpys(five):
    whole = np.stack([np.full((3, 6, 6), 10 * i, np.uint8) for i in range(5)])
    assert len(five) == 5 and five.shape == whole.shape
    indices = [3, -1, np.int64(4), slice(1, 4), slice(None, None, -2), slice(9, None), [-1, 1], []]
    indices += [np.array([4, 0, 4]), np.array([True, False, False, True, False])]
    for index in indices:
        got, wanted = five[index], whole[index]
        assert got.dtype == np.uint8 and got.shape == wanted.shape and (got == wanted).all()
    assert (np.stack(list(five)) == whole).all() and (np.asarray(five) == whole).all()
    for wrong in (5, -6, [5], np.array([True]), 1.5):
        with pytest.raises(IndexError):
            five[wrong]
    assert repr(five) == "ImageFolder(5 images, 6 x 6 pixels)"


def test_fingerprint(tmp_path, five):
    whole = five.fingerprint()
    assert whole == ImageFolder(iter(five.files), Geometry(6, 6)).fingerprint()
    moved = [shutil.copy(file, tmp_path / f"copy {i}.png") for i, file in enumerate(five.files)]
    assert (
        ImageFolder(moved, Geometry.square(6)).fingerprint() == whole
    )  # names and places do not matter
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    others = [
        ImageFolder(five.files, Geometry.square(7)),
        ImageFolder(five.files, Geometry.square(6, 8)),
        ImageFolder(five.files[::-1], Geometry.square(6)),
        ImageArray(pixels, Geometry.square(16)),
        ImageArray(pixels, Geometry.square(16, 20)),
        ImageArray(pixels[::-1], Geometry.square(16)),
        ImageArray(pixels[..., 0], Geometry.square(16)),
    ]
    prints = {whole, *(other.fingerprint() for other in others)}
    flat(five.files[2], 21)
    assert len(prints | {five.fingerprint()}) == 9
    five.files[2].unlink()
    with pytest.raises(ImageError, match="no such file"):
        five.fingerprint()


@pytest.mark.parametrize("size, resize", [(32, None), (24, None), (50, None), (28, 32)])
def test_arrays_have_the_geometry_of_files(tmp_path, size, resize):
    geometry = Geometry.square(size, resize)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 40, 3), dtype=np.uint8)
    files = [save(tmp_path / f"{number}.png", image) for number, image in enumerate(pixels)]
    arrays, folder = ImageArray(pixels, geometry), ImageFolder(files, geometry)
    assert (arrays[:] == folder[:]).all()
    assert (ImageArray(pixels[..., 0], geometry)[2] == folder[2][0]).all()
    for wrong in (pixels.transpose(0, 3, 1, 2), pixels.astype(float)):
        with pytest.raises(ValueError, match="expected uint8"):
            ImageArray(wrong, geometry)


def test_parts_can_be_taken_and_joined(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    files = [save(tmp_path / f"{number}.png", image) for number, image in enumerate(pixels)]
    whole = pixels.transpose(0, 3, 1, 2)
    for some in (
        ImageFolder(files, Geometry.square(8)),
        ImageArray(pixels, Geometry.square(8)),
        whole,
    ):
        other = join([take(some, [3, 1]), take(some, [0])])
        assert type(other) is type(some) and (other[:] == whole[[3, 1, 0]]).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_slices(five, tmp_path, workers):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batches = list(five.iter_batches(2, workers=workers))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert (np.concatenate(batches) == five[:]).all()
    assert (torch.get_rng_state() == state).all()  # seeds elsewhere hold
    five.files[3].write_bytes(b"no image")
    with pytest.raises(ImageError, match="none of PNG") as error:
        list(five.iter_batches(2, workers=workers))
    one_sentence(error, five.files[3], error.value.cause)  # not a worker's traceback
    found = list(five.iter_readable(2, workers=workers))
    assert [numbers for numbers, _, _ in found] == [[0, 1], [2], [4]]
    assert [list(errors) for _, _, errors in found] == [[], [3], []]
    assert (np.concatenate([batch for _, batch, _ in found]) == five[[0, 1, 2, 4]]).all()


def test_batches_without_fork(five):
    """As on Windows: workers begin from nothing, and none are started unasked."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert images._default_workers(10**6) == 0
        assert (np.concatenate(list(five.iter_batches(3, workers=1))) == five[:]).all()
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_number_of_workers(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "fork")
    assert [images._default_workers(n) for n in (10, 10**6)] == [0, 4]
    monkeypatch.setenv("PANDALIB_WORKERS", "7")
    assert images._default_workers(10) == 7


# ---------------------------------------------------------------- mistakes at the door


def test_what_counts_as_images(five):
    array = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 9), dtype=np.uint8)
    assert as_images(array) is array and as_images(five) is five
    last = array.transpose(0, 2, 3, 1)
    pictures = [Image.fromarray(image) for image in last]
    for given in (last, pictures, list(array), torch.from_numpy(last.copy())):
        assert (np.asarray(as_images(given)) == array).all()
    grey = as_images([picture.convert("L") for picture in pictures])
    assert grey.shape == array.shape and (grey[:, 0] == grey[:, 2]).all()


class Labelled(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, number):
        return Image.new("RGB", (8, 8)), number


@pytest.mark.parametrize(
    "given, words",
    [
        ("photos", "path 'photos'"),
        (Path("photos"), "open_images"),
        (Labelled(), "torch data set Labelled"),
        (np.zeros((0, 3, 8, 8), np.uint8), "there are no images"),
        ([], "there are no images"),
        (np.zeros((3, 8, 8), np.uint8), "image[None]"),
        (np.zeros((2, 3, 8, 8)), "float64 (2, 3, 8, 8)"),
        (np.zeros((2, 4, 8, 8), np.uint8), "uint8 (2, 4, 8, 8)"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "one size"),
        ([Image.new("RGBA", (8, 8))], "mode RGBA"),
        ({"a": 1}, "dict"),
        (None, "NoneType"),
    ],
)
def test_what_does_not(given, words):
    with pytest.raises(ValueError) as error:
        as_images(given)
    one_sentence(error, words, "expected")


# ---------------------------------------------------------------- the range of 16-bit files


def grey16(folder, values, n=6):
    """Files of 16-bit grey with these values, each with another noise."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(n):
        picture = rng.normal(*values, (80, 100)).round().clip(0, 65535).astype(np.uint16)
        Image.fromarray(picture).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def test_a_hot_pixel_is_no_range(tmp_path):
    files = grey16(tmp_path / "camera", (2000, 300))
    assert (Geometry.for_images(files, 64).black, Geometry.for_images(files, 64).white) == (0, 4095)
    picture = np.asarray(Image.open(files[2])).copy()
    picture[7, 9] = 65535
    Image.fromarray(picture).save(files[2])
    assert Geometry.for_images(files, 64).white == 4095


def test_values_far_from_zero_keep_their_levels(tmp_path):
    files = grey16(tmp_path / "thermal", (29300, 60))
    geometry = Geometry.for_images(files, 64)
    assert geometry.black < 29100 and 29500 < geometry.white < 31000
    assert len(np.unique(geometry.pixels(files[0]))) > 40
    assert f"16-bit values {geometry.black} to {geometry.white}" in str(geometry)
