"""Nearest positions and enlarged maps against full distance matrices and scipy's filters."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from small import images, small_backbone

from pandalib import SPADE, PatchCore
from pandalib.methods import distances
from pandalib.methods.distances import Nearest, enlarged, enlargement, nearest_squared


def nearest_by_definition(queries, gallery, kappa) -> np.ndarray:
    table = cdist(queries.astype(np.float64), gallery.astype(np.float64), "sqeuclidean")
    return np.sort(table, axis=1)[:, :kappa].sum(axis=1)


@pytest.mark.parametrize(
    ("n", "m", "channels", "kappa"),
    [(1, 3, 1, 3), (255, 1023, 2, 1), (256, 1024, 4, 3), (257, 1025, 64, 1), (9000, 40, 2, 3)],
)
def test_nearest_positions(n, m, channels, kappa):
    rng = np.random.default_rng(n)
    queries, gallery = (
        rng.normal(1.0, 2.0, size=(rows, channels)).astype(np.float32) for rows in (n, m)
    )
    found = nearest_squared(torch.from_numpy(queries), torch.from_numpy(gallery), kappa)
    assert found.shape == (n,) and found.dtype == torch.float32
    expected = nearest_by_definition(queries, gallery, kappa)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=kappa * 1e-5 * channels)
    itself = nearest_squared(torch.from_numpy(gallery), torch.from_numpy(gallery))
    assert itself.min() >= 0 and itself.max() < 1e-5 * channels


def test_a_common_offset_changes_nothing():
    rng = np.random.default_rng(0)
    queries, gallery = (
        1000 + rng.normal(size=(rows, 64)).astype(np.float32) for rows in (200, 1500)
    )
    expected = nearest_by_definition(queries, gallery, 1)
    found = nearest_squared(torch.from_numpy(queries), torch.from_numpy(gallery)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    naive = (queries**2).sum(1)[:, None] + (gallery**2).sum(1) - 2 * queries @ gallery.T
    assert np.abs(naive.min(axis=1) / expected - 1).max() > 0.01  # without the mean taken off


@pytest.mark.parametrize("kappa", [1, 2])
def test_a_running_minimum_of_some_images(kappa):
    rng = np.random.default_rng(0)
    queries, first, second = (rng.normal(size=size) for size in ((3, 5, 4), (7, 4), (6, 4)))
    nearest = Nearest(torch.from_numpy(np.float32(queries)), kappa)
    nearest.update(torch.from_numpy(np.float32(first)), [0, 1, 2])
    nearest.update(torch.from_numpy(np.float32(second)), [0, 2])
    for image, gallery in enumerate((np.r_[first, second], first, np.r_[first, second])):
        expected = nearest_by_definition(queries[image], gallery, kappa)
        np.testing.assert_allclose(nearest.squared()[image], expected, rtol=1e-4)


def test_more_neighbours_than_positions():
    with pytest.raises(ValueError, match="k=4: .*neighbours"):
        nearest_squared(torch.zeros(5, 2), torch.zeros(3, 2), kappa=4)
    nearest = Nearest(torch.zeros(1, 5, 2), kappa=4)
    nearest.update(torch.zeros(3, 2), [0])
    with pytest.raises(ValueError, match="kappa=4: .*positions"):
        nearest.squared()


def test_a_tile_stays_a_tile(monkeypatch):
    """However many positions there are, the distances in hand are those of one tile."""
    sizes, addmm = [], torch.addmm

    def counted(*parts, out, **options):
        sizes.append(out.numel())
        return addmm(*parts, out=out, **options)

    monkeypatch.setattr(torch, "addmm", counted)
    nearest_squared(torch.randn(3000, 4), torch.randn(5000, 4))
    assert max(sizes) <= distances.TILE_ROWS * distances.TILE_COLUMNS
    assert sum(sizes) == 3000 * 5000


@pytest.mark.parametrize(
    ("small", "size", "sigma"),
    [((14, 14), (224, 224), 4.0), ((7, 5), (48, 33), 0.5), ((3, 1), (20, 4), 0.0)],
)
def test_enlarged_is_interpolation_and_blur(small, size, sigma):
    maps = np.random.default_rng(0).normal(size=(3, *small)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(maps)[None], size=size, mode="bilinear")[0].numpy()
    if sigma:
        expected = np.stack([gaussian_filter(one, sigma) for one in expected])
    np.testing.assert_allclose(enlarged(maps, size, sigma), expected, atol=1e-5)


@pytest.mark.parametrize(("small", "large"), [(1, 5), (7, 7), (14, 224), (9, 4)])
def test_a_constant_stays_as_it_is(small, large):
    for matrix in (enlargement(small, large), enlargement(small, large, 4.0)):
        assert matrix.shape == (large, small) and matrix.dtype == np.float32 and matrix.min() >= 0
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)  # at the border as well


@pytest.mark.parametrize("make", [SPADE, PatchCore])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(layers="layer1"), "layers='layer1': expected names"),
        (dict(layers=()), r"layers=\(\)"),
        (dict(sigma=-1), "sigma=-1"),
        (dict(memory_mb=0), "memory_mb=0"),
    ],
)
def test_settings_that_cannot_be(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(small_backbone(), **options).fit(images(3))
