"""Enlarging and blurring as matrices, against the loops that they replace."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from pandalib.interpolation import blurred_enlargement, enlargement

SIZES = [(1, 5), (2, 9), (7, 7), (14, 224), (28, 224), (56, 224), (4, 30), (9, 4)]


@pytest.mark.parametrize(("small", "large"), SIZES)
@pytest.mark.parametrize("sigma", [0.0, 0.5, 4.0, 30.0])
def test_a_blurred_enlargement_is_one_after_the_other(small, large, sigma):
    image = np.random.default_rng(0).normal(size=(small, small + 1))
    expected = F.interpolate(
        torch.from_numpy(image)[None, None],
        size=(large, 2 * large),
        mode="bilinear",
        align_corners=False,
    )[0, 0].numpy()
    down, across = (
        blurred_enlargement(small, large, sigma),
        blurred_enlargement(small + 1, 2 * large, sigma),
    )
    np.testing.assert_allclose(
        down @ image.astype(np.float32) @ across.T, gaussian_filter(expected, sigma), atol=1e-5
    )
    if sigma == 0:
        assert down is enlargement(small, large)


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_a_constant_stays_as_it_is(small, large):
    for matrix in (enlargement(small, large), blurred_enlargement(small, large, 4.0)):
        assert matrix.shape == (large, small) and matrix.dtype == np.float32 and matrix.min() >= 0
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)  # at the border as well
    if small == 1:
        assert (enlargement(1, large) == 1).all()
    if small == large:
        assert np.array_equal(enlargement(small, large), np.eye(small))
