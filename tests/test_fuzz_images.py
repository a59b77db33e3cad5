"""Five hundred damaged files before every loader of images: an image of the right form, or one ImageError that names the file."""

import io
import os
import resource
import shutil
import signal
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small import images, small_backbone
from worlds import in_child

from pandalib.inspection.inspector import Inspector
from pandalib.datasets.folder import labelled_images, load_task
from pandalib.datasets.found import open_images
from pandalib.datasets.images import ImageError, ImageFolder, read_image, read_mask
from pandalib.datasets.lazy import ImageCrops, SqueezedImages
from pandalib.datasets.outliers import outlier_folder

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow has a word about most of these files
SIZE = 32
SECONDS = 20  # for one file; none takes a tenth of a second
RNG = np.random.default_rng(0)


def encoded(name: str, mode: str, **options) -> bytes:
    """A small valid file: smooth, so that compressed formats have something to do."""
    smooth = (
        np.clip(RNG.normal(128, 60, (5, 6, 4)), 0, 255).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    )
    image = Image.fromarray(smooth if mode == "RGBA" else smooth[..., :3]).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def rotated(name: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(name, "RGB", exif=exif)


VALID = {
    "grey.png": encoded("PNG", "L"),
    "rgb.png": encoded("PNG", "RGB"),
    "rgba.png": encoded("PNG", "RGBA"),
    "palette.png": encoded("PNG", "P", transparency=3),
    "bits.png": encoded("PNG", "1"),
    "rgb.jpg": encoded("JPEG", "RGB"),
    "cmyk.jpg": encoded("JPEG", "CMYK"),
    "progressive.jpg": encoded("JPEG", "RGB", progressive=True),
    "turned.jpg": rotated("JPEG"),
    "rgb.bmp": encoded("BMP", "RGB"),
    "palette.bmp": encoded("BMP", "P"),
    "raw.tif": encoded("TIFF", "RGB"),
    "packed.tif": encoded("TIFF", "L", compression="tiff_lzw"),
    "jpeg.tif": encoded("TIFF", "RGB", compression="jpeg"),
    "float.tif": encoded("TIFF", "F"),
    "fax.tif": encoded("TIFF", "1", compression="group4"),
    "palette.gif": encoded("GIF", "P"),
    "frames.gif": encoded(
        "GIF", "RGB", save_all=True, append_images=[Image.new("RGB", (24, 20), "red")]
    ),
    "lossy.webp": encoded("WEBP", "RGB"),
    "lossless.webp": encoded("WEBP", "RGBA", lossless=True),
    "rgb.ppm": encoded("PPM", "RGB"),
    "grey.pgm": encoded("PPM", "L"),
    "plain.ppm": b"P3 2 2 255\n" + b"9 8 7 " * 4,
}
BYTES = [0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF]


class TooLong(BaseException):
    """No Exception, so that no loader takes it for damage."""


@contextmanager
def in_time():
    def stop(*_):
        raise TooLong

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A task in MVTec's layout with masks, whose file `strange` is what is damaged; a folder of classes; one that collects."""
    root = tmp_path_factory.mktemp("fuzz")
    whole = images(4, SIZE)
    for number, place in enumerate(
        ("train/good/1", "train/good/2", "test/good/1", "test/bad/strange")
    ):
        (root / "task" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(whole[number].transpose(1, 2, 0)).save(root / "task" / f"{place}.png")
    (root / "task" / "ground_truth" / "bad").mkdir(parents=True)
    for kind in ("a", "b"):
        (root / "classes" / kind).mkdir(parents=True)
        shutil.copy(root / "task" / "train" / "good" / "1.png", root / "classes" / kind / "1.png")
    (root / "all").mkdir()
    yield root
    shutil.rmtree(root)


def loaders(root: Path, path: Path):
    """Every way to images of a file, each a function that gives uint8 (3, SIZE, SIZE), or a mask."""
    yield lambda: read_image(path, SIZE)
    yield lambda: read_image(path, SIZE, SIZE + 8)
    yield lambda: ImageFolder([path], SIZE)[:1][0]
    yield lambda: SqueezedImages([path], SIZE)[0]
    yield lambda: open_images(path, SIZE)[0][0]
    yield lambda: ImageCrops([path], [(0, 0, 2, 2)], SIZE)[0]
    yield lambda: outlier_folder(path.parent, size=SIZE)[0]
    for name in (
        "classes/b/1.png",
        "task/test/bad/strange.png",
        "task/train/good/2.png",
        "task/ground_truth/bad/strange_mask.png",
    ):
        target = root / name

        def placed(name=name, target=target):
            kept = target.read_bytes() if target.exists() else None
            shutil.copy(path, target)
            try:
                if name.startswith("classes"):
                    return labelled_images(root / "classes", size=SIZE)[0][1]
                task = load_task(root / "task", size=SIZE)
                return (
                    task.masks[1]
                    if "truth" in name
                    else (task.train[1] if "train" in name else task.test[1])
                )
            finally:
                if kept is None:
                    target.unlink()
                else:
                    target.write_bytes(kept)

        yield placed
    yield lambda: read_mask(path, SIZE)


def try_all(root: Path, name: str, content: bytes) -> None:
    one = root / "one"
    shutil.rmtree(one, ignore_errors=True)
    one.mkdir()
    path = one / name
    path.write_bytes(content)
    for load in loaders(root, path):
        try:
            with in_time():
                found = load()
        except ImageError as error:
            assert (
                error.cause
                and "\n" not in str(error)
                and error.cause in str(error)
                and str(error).startswith("cannot read '")
            ), error
        else:
            assert (found.dtype, found.shape) in (
                (np.dtype(np.uint8), (3, SIZE, SIZE)),
                (np.dtype(bool), (SIZE, SIZE)),
            )
    shutil.copy(path, root / "all" / f"{len(os.listdir(root / 'all')):04d}-{name}")


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes, bits, runs or ends of a file changed; half of the places among the first hundred, where headers are."""
    found = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(min(len(found), 100) if rng.random() < 0.5 else len(found)))
        kind = rng.integers(6)
        if kind == 0:
            found[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            found[place] = BYTES[rng.integers(len(BYTES))]
        elif kind == 2:
            found[place : place + 4] = BYTES[rng.integers(len(BYTES))].to_bytes(1, "big") * int(
                rng.integers(1, 5)
            )
        elif kind == 3:
            del found[place : place + int(rng.integers(1, 40))]
        elif kind == 4:
            found[place:place] = rng.bytes(int(rng.integers(1, 20)))
        else:
            del found[max(1, place) :]
        found = found or bytearray(b"\0")
    return bytes(found)


@pytest.mark.parametrize("name", VALID)
def test_valid_files_are_read(folder, name):
    """Otherwise the mutations below would begin with a file that nobody can read."""
    path = folder / name
    path.write_bytes(VALID[name])
    assert read_image(path, SIZE).std() > 0 or name == "plain.ppm"


@pytest.mark.parametrize("name", VALID)
def test_mutated_files(folder, name):
    rng = np.random.default_rng([1, *name.encode()])
    for _ in range(11):
        try_all(folder, name, mutated(VALID[name], rng))


change = st.tuples(
    st.floats(0, 1),
    st.sampled_from(["set", "flip", "cut", "insert", "swap"]),
    st.binary(min_size=1, max_size=8),
)


@settings(
    max_examples=250,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    name=st.sampled_from(sorted(VALID)),
    other=st.sampled_from(sorted(VALID)),
    changes=st.lists(change, min_size=1, max_size=6),
    ending=st.booleans(),
)
def test_changed_files(folder, name, other, changes, ending):
    """As hypothesis likes them: bytes set, turned over, cut out, put in, and the tail of one file behind the head of another."""
    content = bytearray(VALID[name])
    for where, kind, some in changes:
        place = int(where * (len(content) - 1)) if content else 0
        if kind == "set":
            content[place : place + len(some)] = some
        elif kind == "flip":
            content[place : place + 1] = bytes(
                byte ^ some[0] for byte in content[place : place + 1]
            )
        elif kind == "cut":
            del content[place : place + 8 * len(some)]
        elif kind == "insert":
            content[place:place] = some
        else:
            content[place:] = VALID[other][place:]
    try_all(folder, other if ending else name, bytes(content))


def test_all_of_them_before_the_inspector(folder):
    """Fitted with `skip_unreadable` and ranked: what cannot be read is listed by name, the others are scored."""
    files = sorted((folder / "all").iterdir())
    assert len(files) >= 500, (
        "the tests above did not run: this one judges what they have collected"
    )
    readable = []
    for path in files:
        try:
            read_image(path, SIZE)
            readable.append(path.name)
        except ImageError:
            pass
    assert 50 < len(readable) < len(files) - 50
    inspector = Inspector(small_backbone(), size=SIZE, n_maps=20, n_images=5, progress=False)
    inspector.fit(folder / "all", skip_unreadable=True)
    strange = [name for name, _ in inspector.unreadable_]
    assert strange == [path.name for path in files if path.name not in readable]
    assert (
        len(inspector.features_) + inspector.n_copies_ == len(readable)
        and np.isfinite(inspector.features_).all()
    )
    ranking = inspector.rank(folder / "all", top=3, skip_unreadable=True)
    assert (
        ranking.names == readable
        and np.isfinite(ranking.scores).all()
        and [name for name, _ in ranking.unreadable] == strange
    )
    with pytest.raises(ImageError, match=strange[0]):
        inspector.score(folder / "all")
    for name, cause in ranking.unreadable:
        assert cause and "\n" not in cause


# ---------------------------------------------------------------- bombs


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width: int, height: int, *, extra: bytes = b"", rows: bytes | None = None) -> bytes:
    """A PNG of one bit a pixel, all black."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    packed = zlib.compress(bytes((width + 7) // 8 + 1) * height, 1) if rows is None else rows
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    text = zlib.compress(bytes(64 << 20), 1)
    return {
        "pixels.png": png(20_000, 20_000),  # 0.2 MB, 400 million pixels
        "claims.png": png(2**31 - 1, 2**31 - 1, rows=b""),
        "text.png": png(8, 8, extra=chunk(b"zTXt", b"comment\0\0" + text)),
        "profile.png": png(8, 8, extra=chunk(b"iCCP", b"icc\0\0" + text)),
        "more.png": png(16, 16, rows=text),  # more pixels than the header says
        "screen.gif": b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0)
        + bytes(6)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\x02\x02\x4c\x01\x00;",
        "frame.gif": b"GIF89a"
        + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0)
        + bytes(6)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\x02\x02\x4c\x01\x00;",
        "claims.bmp": b"BM"
        + struct.pack(
            "<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 6, 0, 0, 0, 0
        )
        + bytes(6),
        "claims.ppm": b"P6 100000 100000 255\n" + bytes(100),
        "digits.ppm": b"P6 " + b"9" * 3_000_000 + b" 1 255\n",
        "spaces.ppm": b"P3" + b" " * 3_000_000,
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="measures the memory of a fork")
def test_bombs_are_refused_before_they_go_off(tmp_path):
    """Small files that stand for gigabytes: an ImageError, or the small image that they hold, within 150 MB and in seconds."""
    for name, content in bombs().items():
        (tmp_path / name).write_bytes(content)

    def child():
        read_image_of = {}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sorted(tmp_path.iterdir()):
            for read in (read_image, read_mask):
                try:
                    with in_time():
                        read_image_of[path.name] = f"{read(path, SIZE).shape}"
                except ImageError as error:
                    read_image_of[path.name] = error.cause
            read_image_of[path.name] += (
                f" {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024}"
            )
        return read_image_of

    found = in_child(child)
    assert all(int(text.rsplit(" ", 1)[1]) < 150 for text in found.values()), found
    for name in ("pixels.png", "claims.png", "screen.gif", "frame.gif", "claims.bmp", "claims.ppm"):
        assert "pixels" in found[name], found
