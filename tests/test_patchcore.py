"""PatchCore and its coreset against their definitions, by full distance matrices."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from small import images
from test_spade import IMAGES, QUERIES, close, plain_layers

from pandalib import PatchCore
from pandalib.methods.patchcore import coreset


def plain_patches(pictures, layers) -> np.ndarray:
    """(n, h, w, C): means over 3 x 3 positions, zeros beyond the border, on the first grid."""
    found, parts = plain_layers(pictures), []
    size = found[layers[0]].shape[1:3]
    for layer in layers:
        padded = np.pad(found[layer], ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        means = torch.from_numpy(windows.mean(axis=(-2, -1))).permute(0, 3, 1, 2)
        parts.append(F.interpolate(means, size, mode="bilinear").permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts, axis=3)


@pytest.mark.parametrize(
    ("layers", "ratio", "height"),
    [
        (("layer2", "layer3"), 1.0, 32),
        (("layer1", "layer2", "layer3"), 0.1, 48),
        (("layer2",), 0.3, 48),
    ],
)
def test_maps_are_those_of_the_definition(backbone, layers, ratio, height):
    normal, pictures = IMAGES[:, :, :height], QUERIES[:, :, :height]
    detector = PatchCore(backbone, layers=layers, coreset_ratio=ratio).fit(normal)
    patches = plain_patches(normal, layers)
    _, high, wide, channels = patches.shape
    patches = patches.reshape(-1, channels)
    bank = detector.memory_bank_
    assert bank.shape == (round(ratio * len(patches)), channels) and bank.dtype == torch.float32
    apart = cdist(bank.numpy(), patches, "sqeuclidean")
    chosen = apart.argmin(axis=1)  # some of the patches, none twice
    assert apart.min(axis=1).max() < 1e-6 * apart.max() and len(set(chosen)) == len(bank)

    expected = []
    for queries in plain_patches(pictures, layers):
        distances = cdist(queries.reshape(-1, channels), patches[chosen], "sqeuclidean")
        small = torch.from_numpy(distances.min(axis=1).reshape(1, 1, high, wide))
        whole = F.interpolate(small, pictures.shape[2:], mode="bilinear")[0, 0].numpy()
        expected.append(gaussian_filter(whole, 4.0))
    close(detector.maps(pictures), np.stack(expected), 1e-4)
    np.testing.assert_allclose(detector.score(pictures), np.max(expected, axis=(1, 2)), rtol=1e-3)
    assert (detector.maps(normal).max() < 1e-3 * np.max(expected)) == (ratio == 1)
    detector.memory_mb = 1e-9  # one image at a time
    close(detector.maps(pictures), np.stack(expected), 1e-4)


def test_patchcore_is_an_estimator(backbone):
    detector = clone(PatchCore(backbone, coreset_ratio=0.2)).set_params(progress=False)
    assert detector.get_params()["coreset_ratio"] == 0.2
    with pytest.raises(NotFittedError, match="This PatchCore has seen no normal images yet"):
        detector.maps(QUERIES)
    banks = [detector.set_params(seed=seed).fit(IMAGES).memory_bank_ for seed in (0, 0, 1)]
    assert torch.equal(banks[0], banks[1]) and not torch.equal(banks[0], banks[2])
    with pytest.raises(ValueError, match="images are of 32 x 32 pixels: expected 48 x 48"):
        detector.score(images(2))
    for ratio in (0, 1.5):
        with pytest.raises(ValueError, match=f"coreset_ratio={ratio}"):
            detector.set_params(coreset_ratio=ratio).fit(IMAGES)


def test_coreset_is_greedy():
    features = torch.randn(150, 9, generator=torch.Generator().manual_seed(0))
    chosen = coreset(features, 40, seed=3).tolist()
    distances = cdist(features, features)
    for number in range(1, 40):
        farthest = distances[:, chosen[:number]].min(axis=1).argmax()
        assert chosen[number] == farthest
    assert coreset(features, 15, seed=3).tolist() == chosen[:15]
    assert len({coreset(features, 1, seed=seed).item() for seed in range(9)}) > 3


@pytest.mark.parametrize("width", [16, 300])
def test_coreset_covers_better_than_chance(width):
    """With and without a projection."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(600, 6, generator=generator).exp()  # a dense middle and thin borders
    features = 50 + spread @ torch.randn(6, width, generator=generator)
    distances = cdist(features, features)
    chosen = coreset(features, 60)
    assert chosen.dtype == torch.int64 and len(set(chosen.tolist())) == 60
    radius = distances[:, chosen].min(axis=1).max()
    draws = [np.random.default_rng(seed).choice(600, 60, replace=False) for seed in range(20)]
    assert radius < 0.75 * min(distances[:, drawn].min(axis=1).max() for drawn in draws)


@pytest.mark.parametrize("width", [5, 200])
def test_no_patch_is_chosen_twice(width):
    distinct = torch.randn(12, width, generator=torch.Generator().manual_seed(0))
    chosen = coreset(distinct.repeat(10, 1) + 100, 120).tolist()
    assert sorted(chosen) == list(range(120))
    assert len({number % 12 for number in chosen[:12]}) == 12  # different ones first
    assert sorted(coreset(torch.ones(7, width), 7).tolist()) == list(range(7))
    for n_kept in (0, 121):
        with pytest.raises(ValueError, match=f"n_kept={n_kept}: expected 1 to 12"):
            coreset(distinct, n_kept)


@pytest.mark.parametrize("ratio", [1.0, 0.2])
def test_the_bank_without_an_image_is_that_of_the_others(backbone, ratio):
    detector = PatchCore(backbone, coreset_ratio=ratio).fit(IMAGES)
    patches = plain_patches(IMAGES, detector.layers)
    _, high, wide, channels = patches.shape
    rows = patches.reshape(-1, channels)
    chosen = cdist(detector.memory_bank_.numpy(), rows, "sqeuclidean").argmin(axis=1)
    assert np.array_equal(chosen // (high * wide), detector.owners_)
    without = rows[chosen[~np.isin(chosen // (high * wide), [2, 5])]]
    expected = cdist(patches[2].reshape(-1, channels), without, "sqeuclidean").min(axis=1)
    expected = torch.from_numpy(expected.reshape(1, 1, high, wide))
    expected = F.interpolate(expected, IMAGES.shape[2:], mode="bilinear")[0, 0].numpy()
    expected = gaussian_filter(expected, 4.0)
    maps, scores = detector.maps_and_scores(torch.from_numpy(patches[2:3]).float(), [2, 5])
    close(maps, expected[None], 1e-4)
    np.testing.assert_allclose(scores, [expected.max()], rtol=1e-3)


def test_learning_may_go_on(backbone):
    whole = PatchCore(backbone, coreset_ratio=1.0).fit(IMAGES)
    parts = PatchCore(backbone, coreset_ratio=1.0).fit(IMAGES[:5])
    parts.learn(parts._patches(IMAGES[5:]), range(5, len(IMAGES)))
    parts.finish()
    assert torch.equal(parts.owners_, whole.owners_)
    np.testing.assert_allclose(parts.score(QUERIES), whole.score(QUERIES), rtol=1e-4)
    small = PatchCore(backbone, bank_size=7).fit(IMAGES)
    small.learn(small._patches(QUERIES), range(100, 100 + len(QUERIES)))
    assert len(small.finish().memory_bank_) == 7 and small.owners_.max() >= 100


def test_the_weight_is_that_of_equation_7(backbone):
    plain = PatchCore(backbone, layers=("layer2", "layer3"), coreset_ratio=0.5).fit(IMAGES)
    weighted = PatchCore(
        backbone, layers=("layer2", "layer3"), coreset_ratio=0.5, reweight=True
    ).fit(IMAGES)
    bank = plain.memory_bank_.numpy().astype(float)
    for number, patches in enumerate(plain_patches(QUERIES, plain.layers)):
        patches = patches.reshape(-1, bank.shape[1])
        distances = cdist(patches, bank)
        farthest = distances.min(axis=1).argmax()
        nearest = distances[farthest].argmin()
        around = np.argsort(cdist(bank[nearest : nearest + 1], bank)[0])[:9]
        total = np.exp(distances[farthest, around]).sum()
        weight = 1 - np.exp(distances[farthest, nearest]) / total
        expected = plain.score(QUERIES[number : number + 1]) * weight
        np.testing.assert_allclose(
            weighted.score(QUERIES[number : number + 1]), expected, rtol=1e-3
        )
    np.testing.assert_allclose(weighted.maps(QUERIES), plain.maps(QUERIES))


def test_a_bank_in_parts(backbone):
    """Each part of its own images; a normal image is compared with the parts of the others."""
    detector = PatchCore(backbone, coreset_ratio=1.0, bank_size=24, n_parts=3).fit(IMAGES)
    assert np.bincount(detector.owners_ % 3).tolist() == [8, 8, 8]
    patches = detector._patches(IMAGES[4:5])
    for left_out, others in (
        ([4], detector.owners_ % 3 != 1),
        ([4, 2], (detector.owners_ % 3 != 1) & (detector.owners_ != 2)),
        ([], detector.owners_ >= 0),
    ):
        plain = PatchCore(backbone)
        plain.begin(detector.image_size_)
        bank = detector.memory_bank_[others]
        plain.set_bank(bank, detector.owners_[others], detector._grid)
        expected, _ = plain.maps_and_scores(patches)
        close(detector.maps_and_scores(patches, left_out)[0], expected, 1e-4)
    with pytest.raises(ValueError, match="n_parts=0"):
        PatchCore(backbone, n_parts=0).fit(IMAGES)
