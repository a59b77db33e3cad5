"""For the tests of images: small picture files, and the real ones beside the checkout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"


def real(name):
    """A folder of real images; the test is skipped where they are not."""
    if not (REAL / name).is_dir():
        pytest.skip(f"the real images are not here: no folder ../shared/real/{name}")
    return REAL / name


def ramp(width=40, height=30):
    """RGB that differs in every channel and direction, so that a swap, a flip or a shift shows."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 250, height))
    return np.stack([x, y, 255 - (x + y) / 2], -1).astype(np.uint8)


def save(path, pixels=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(pixels, Image.Image):
        pixels = Image.fromarray(ramp() if pixels is None else pixels)
    pixels.save(path, **options)
    return path


def flat(path, value, size=8):
    return save(path, np.full((size, size, 3), value, np.uint8))


def one_sentence(error, *words):
    message = str(error.value)
    assert "\n" not in message and message.endswith("."), message
    for word in words:
        assert str(word) in message, message
