"""PaDiM and the PCA residual against their definitions, position by position in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from small import images
from test_patchcore import plain_patches
from test_spade import IMAGES, QUERIES, close, plain_layers

from pandalib import PaDiM, PCAResidual


def plain_positions(pictures, layers) -> np.ndarray:
    """(n, h, w, C): the layers side by side on the grid of the first."""
    found, parts = plain_layers(pictures), []
    size = found[layers[0]].shape[1:3]
    for layer in layers:
        maps = torch.from_numpy(found[layer]).permute(0, 3, 1, 2)
        parts.append(F.interpolate(maps, size, mode="bilinear").permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts, axis=3)


def whole(small: np.ndarray, size, sigma=4.0) -> np.ndarray:
    """Small maps (n, h, w) enlarged and blurred."""
    large = F.interpolate(torch.from_numpy(small)[:, None], size, mode="bilinear")[:, 0].numpy()
    return np.stack([gaussian_filter(one, sigma) for one in large])


@pytest.mark.parametrize("n_features", [7, 1000])
def test_padim_is_a_gaussian_at_each_position(backbone, n_features):
    layers, height = ("layer2", "layer3"), 32
    normal, pictures = IMAGES[:, :, :height], QUERIES[:, :, :height]
    detector = PaDiM(backbone, layers=layers, n_features=n_features, progress=False).fit(normal)
    channels = detector.channels_.numpy()
    gallery = plain_positions(normal, layers).astype(float)[..., channels]
    queries = plain_positions(pictures, layers).astype(float)[..., channels]
    assert len(channels) == len(set(channels)) == min(n_features, 28)
    small = np.empty(queries.shape[:3])
    for y in range(queries.shape[1]):
        for x in range(queries.shape[2]):
            here = gallery[:, y, x]
            covariance = np.cov(here, rowvar=False) + 0.01 * np.eye(len(channels))
            for number, query in enumerate(queries[:, y, x]):
                difference = query - here.mean(axis=0)
                inverse = np.linalg.inv(covariance)
                small[number, y, x] = np.sqrt(difference @ inverse @ difference)
    expected = whole(small, pictures.shape[2:])
    close(detector.maps(pictures), expected, 2e-3)
    np.testing.assert_allclose(detector.score(pictures), expected.max(axis=(1, 2)), rtol=2e-3)


def test_padim_sums_up_in_batches(backbone, monkeypatch):
    """Images with a common offset far from zero, in batches of any size."""
    detector = PaDiM(backbone, layers=["layer1"], progress=False)
    once = detector.fit(IMAGES).maps(QUERIES)
    monkeypatch.setattr("pandalib.backbones.PIXELS_PER_BATCH", 2 * 48 * 48)
    close(clone(detector).fit(IMAGES).maps(QUERIES), once, 1e-3)


@pytest.mark.parametrize("explained", [0.8, 0.99])
def test_the_residual_is_what_the_subspace_cannot_explain(backbone, explained):
    layers = ("layer2", "layer3")
    detector = PCAResidual(backbone, layers=layers, explained=explained, progress=False)
    detector.fit(IMAGES)
    patches = plain_patches(IMAGES, layers).astype(float)
    flat = patches.reshape(-1, patches.shape[-1])
    _, lengths, axes = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    share = np.cumsum(lengths**2) / np.sum(lengths**2)
    m = 1 + np.flatnonzero(share >= explained)[0]
    assert detector.components_.shape == (flat.shape[1], m)
    difference = plain_patches(QUERIES, layers) - flat.mean(axis=0)
    rest = difference - difference @ axes[:m].T @ axes[:m]
    expected = whole(np.square(rest).sum(axis=3), QUERIES.shape[2:])
    close(detector.maps(QUERIES), expected, 1e-3)
    detector.memory_mb = 1e-9  # one image at a time
    close(detector.maps(QUERIES), expected, 1e-3)


@pytest.mark.parametrize("kind", [PaDiM, PCAResidual])
def test_both_are_estimators_with_clear_errors(backbone, kind):
    detector = clone(kind(backbone, layers=["layer2"])).set_params(progress=False)
    with pytest.raises(NotFittedError, match=f"This {kind.__name__} has seen no normal images yet"):
        detector.maps(QUERIES)
    detector.fit(IMAGES)
    with pytest.raises(ValueError, match="images are of 32 x 32 pixels: expected 48 x 48"):
        detector.score(images(2))
    wrong = {"epsilon": 0} if kind is PaDiM else {"explained": 1.0}
    for name, value in {"layers": "layer2", "sigma": -1, **wrong}.items():
        with pytest.raises(ValueError, match=f"{name}={value!r}"):
            clone(detector).set_params(**{name: value}).fit(IMAGES)
    if kind is PaDiM:
        with pytest.raises(ValueError, match="1 normal image: a covariance needs at least 2"):
            clone(detector).fit(IMAGES[:1])


def test_identical_images_leave_no_variance(backbone):
    same = np.repeat(IMAGES[:1], 4, axis=0)
    maps = PaDiM(backbone, layers=["layer2"], progress=False).fit(same).maps(IMAGES[:2])
    assert maps[0].max() < 1e-2 < maps[1].max()
