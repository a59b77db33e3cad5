import numpy as np
import pytest
import torch

from pandalib.validation import as_features, kmeans_gallery, l2_normalise


@pytest.mark.parametrize(
    "values, dtype",
    [
        (np.ones((2, 3), np.float16), np.float32),
        (np.ones((2, 3), np.uint8), np.float32),
        (np.ones((2, 3), np.int64), np.float64),
        (np.ones((2, 3)), np.float64),
        (np.ones((3, 2), np.float32).T, np.float32),
        ([[1, 1, 1], [1, 1, 1]], np.float64),
        (torch.ones(2, 3, requires_grad=True), np.float32),
        (torch.ones(2, 3, dtype=torch.bfloat16), np.float32),
    ],
)
def test_features_of_any_real_type_are_taken(values, dtype):
    features = as_features(values)
    assert features.dtype == dtype and features.shape == (2, 3) and features.flags.c_contiguous
    assert (features == 1).all()


def test_float32_features_are_not_copied():
    features = np.ones((2, 3), np.float32)
    assert as_features(features) is features


@pytest.mark.parametrize(
    "values, message",
    [
        (
            np.ones(512),
            r"gallery must be two-dimensional.*got shape \(512,\); for one image pass gallery\[None, :\]",
        ),
        (np.ones((2, 3, 4)), r"got shape \(2, 3, 4\)\."),
        (np.ones((0, 5)), r"gallery is empty, shape \(0, 5\)"),
        (np.ones((5, 0)), r"gallery is empty, shape \(5, 0\)"),
        (np.ones((2, 2), complex), "real numbers; got dtype complex128"),
        ([["a", "b"]], "real numbers"),
        (
            [[0, np.nan], [1, 1], [np.inf, -np.inf]],
            "3 NaN or infinite values in 2 of 3 rows, the first in row 0",
        ),
    ],
)
def test_broken_features_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        as_features(values, "gallery")


def test_rows_have_length_one_and_zeros_stay():
    features = np.random.default_rng(0).standard_normal((5000, 7)) * 10.0 ** np.arange(-2, 5)
    features[3] = 0
    normalised = l2_normalise(features)
    assert normalised.dtype == np.float32
    np.testing.assert_array_equal(normalised[3], 0)
    expected = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-300)
    np.testing.assert_allclose(normalised, expected, rtol=1e-7)  # float32 rounding is 6e-8
    np.testing.assert_array_equal(l2_normalise([[3.0, 4.0]]), np.float32([[0.6, 0.8]]))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_length_neither_over_nor_underflows(scale):
    np.testing.assert_array_equal(
        l2_normalise(np.array([[3.0, 4.0]]) * scale), np.float32([[0.6, 0.8]])
    )


def test_normalising_gives_the_same_bits_for_any_batch():
    features = np.random.default_rng(1).standard_normal((300, 33)).astype(np.float32)
    one_by_one = np.concatenate([l2_normalise(row[None]) for row in features])
    np.testing.assert_array_equal(l2_normalise(features), one_by_one)


@pytest.mark.parametrize("offset", [0, 1e4])
def test_kmeans_finds_separate_groups(offset):
    rng = np.random.default_rng(0)
    middles = np.array([[0.0, 0], [10, 0], [0, 10]]) + offset
    features = np.repeat(middles, 50, axis=0) + rng.uniform(-1, 1, (150, 2))
    centres = kmeans_gallery(features.astype(np.float32), 3)
    expected = features.reshape(3, 50, 2).mean(axis=1)
    order = [np.abs(centres - middle).sum(axis=1).argmin() for middle in middles]
    np.testing.assert_allclose(
        centres[order], expected, atol=2e-3 if offset else 1e-5
    )  # float32 steps by 1e-3 at 1e4


def test_kmeans_is_seeded_and_silent(capfd):
    features = np.random.default_rng(0).standard_normal((200, 5)).astype(np.float32)
    centres = kmeans_gallery(features, 60, seed=1)
    assert centres.shape == (60, 5) and centres.dtype == np.float32
    np.testing.assert_array_equal(kmeans_gallery(features, 60, seed=1), centres)
    assert (kmeans_gallery(features, 60, seed=2) != centres).any()
    np.testing.assert_allclose(kmeans_gallery(features, 1)[0], features.mean(axis=0), atol=1e-6)
    checkpoint_every = kmeans_gallery(features, 200)  # as many centres as images: the images
    np.testing.assert_allclose(
        checkpoint_every[np.lexsort(checkpoint_every.T)],
        features[np.lexsort(features.T)],
        atol=1e-6,
    )
    kmeans_gallery(np.ones((20, 5)), 10)  # identical images
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("n_centres", [0, 11])
def test_kmeans_needs_no_more_centres_than_images(n_centres):
    with pytest.raises(
        ValueError, match=f"between 1 and the number of images, 10; got {n_centres}"
    ):
        kmeans_gallery(np.eye(10), n_centres)
