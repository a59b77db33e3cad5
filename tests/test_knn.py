import faiss
import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from pandalib.validation import kmeans_gallery
from pandalib.methods.knn import (
    KNN,
    knn_scores,
    leave_one_out_scores,
    nearest_others,
    squared_distances,
)
from pandalib.methods.whitening import whitened_leave_one_out_scores


def brute_force(gallery, queries, k, leave_out=False):
    """Differences in float64, all pairs, sorted: the definition."""
    gallery, queries = np.asarray(gallery, np.float64), np.asarray(queries, np.float64)
    distances = np.array([np.square(gallery - query).sum(axis=1) for query in queries])
    if leave_out:
        np.fill_diagonal(distances, np.inf)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, axis=1), indices


def test_dn2_by_hand():
    gallery = [[0.0, 0.0], [3.0, 4.0], [0.0, 2.0], [10.0, 0.0]]
    queries = [[0.0, 1.0], [3.0, 4.0], [10.0, 10.0]]
    # Squared distances of (0,1): 1, 18, 1, 101. Of (3,4): 25, 0, 13, 65. Of (10,10): 200, 85, 164, 100.
    np.testing.assert_array_equal(knn_scores(gallery, queries), [2, 13, 185])
    np.testing.assert_array_equal(knn_scores(gallery, queries, k=1), [1, 0, 85])
    np.testing.assert_array_equal(KNN().fit(gallery).score(queries), [2, 13, 185])
    # Left out, (0,0) sees 25, 4, 100; (3,4) sees 25, 13, 65; (0,2) sees 4, 13, 104; (10,0) sees 100, 65, 104.
    np.testing.assert_array_equal(leave_one_out_scores(gallery), [29, 38, 17, 165])
    np.testing.assert_array_equal(KNN().fit(gallery).leave_one_out(), [29, 38, 17, 165])


@pytest.mark.parametrize("trial", range(25))
def test_equals_brute_force(trial):
    rng = np.random.default_rng(trial)
    n, m, d = rng.integers(2, 300), rng.integers(1, 60), rng.integers(1, 70)
    k = rng.integers(1, min(n, 20) + 1)
    gallery, queries = (
        rng.standard_normal((n, d)).astype(np.float32),
        rng.standard_normal((m, d)).astype(np.float32),
    )
    distances, indices = squared_distances(gallery, queries, k)
    expected, expected_indices = brute_force(gallery, queries, k)
    assert distances.dtype == np.float32 and indices.dtype == np.int64
    np.testing.assert_allclose(distances, expected, rtol=1e-7)  # rounding to float32 is 6e-8
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("offset", [0, 1e3, 1e6])
def test_a_common_offset_costs_no_accuracy(offset):
    # The offset is put in first, so both sides see the same float32 numbers. 300 queries: see the twins below.
    rng = np.random.default_rng(0)
    gallery = (rng.standard_normal((1000, 512)) + offset).astype(np.float32)
    queries = (rng.standard_normal((300, 512)) + offset).astype(np.float32)
    distances, _ = squared_distances(gallery, queries, 2)
    np.testing.assert_allclose(distances, brute_force(gallery, queries, 2)[0], rtol=1e-7)


def test_an_offset_of_its_own_in_every_dimension_costs_no_accuracy():
    rng, offsets = np.random.default_rng(0), np.linspace(-1e4, 1e4, 512)  # their mean is nothing
    gallery, queries = (
        (rng.standard_normal((n, 512)) + offsets).astype(np.float32) for n in (1000, 300)
    )
    np.testing.assert_allclose(
        squared_distances(gallery, queries, 2)[0], brute_force(gallery, queries, 2)[0], rtol=1e-7
    )


def test_scores_are_summed_in_float64():
    # Neighbours at squared distances 1 and 2^24; in float32 their sum is 2^24.
    far = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 4096.0], [1.0, 4096.0]])
    for scores in (
        knn_scores(far, far, 3),
        leave_one_out_scores(far, 2),
        KNN(3).fit(far).score(far),
        KNN(2).fit(far).leave_one_out(),
    ):
        assert scores.dtype == np.float64
        np.testing.assert_array_equal(scores, 2.0**24 + 1)


def test_distances_near_100_that_differ_by_a_thousandth():
    steps = 100 + 0.001 * np.arange(50)
    queries = np.full((1, 50), 1e3)
    gallery = queries + np.diag(np.sqrt(steps))  # image i is at squared distance steps[i]
    order = np.random.default_rng(0).permutation(50)
    distances, indices = squared_distances(gallery[order], queries, 50)
    np.testing.assert_allclose(distances[0], steps, rtol=1e-7)
    np.testing.assert_array_equal(order[indices[0]], np.arange(50))


def test_collapsed_features_are_still_ranked():
    # Features that have shrunk to one point in a million: faiss alone sees nothing but rounding.
    rng = np.random.default_rng(0)
    gallery, queries = (
        5 + 1e-6 * rng.standard_normal((300, 64)),
        5 + 1e-6 * rng.standard_normal((50, 64)),
    )
    expected, _ = brute_force(gallery, queries, 3)
    np.testing.assert_allclose(squared_distances(gallery, queries, 3)[0], expected, rtol=1e-7)


def test_near_twins_are_told_apart():
    # Each image has a twin so near that float32 sums of squares cannot say which of the two is nearer. The batch is
    # large, because in small ones (rows times dimensions below 128,000) faiss takes differences, not sums of squares.
    rng = np.random.default_rng(0)
    gallery = 100 * rng.standard_normal((600, 128))
    gallery = np.concatenate([gallery, gallery + 1e-3 * rng.standard_normal((600, 128))])
    queries = gallery + 1e-4 * rng.standard_normal((1200, 128))
    for ours, expected in zip(
        squared_distances(gallery, queries, 1), brute_force(gallery, queries, 1)
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-7)
    expected = brute_force(gallery, gallery, 1, leave_out=True)[0].sum(axis=1)
    np.testing.assert_allclose(leave_one_out_scores(gallery, 1), expected, rtol=1e-7)


@pytest.mark.parametrize("offset", [0, 1e3])
def test_a_training_image_is_at_distance_zero_exactly(offset):
    gallery = (np.random.default_rng(0).standard_normal((700, 257)) + offset).astype(np.float32)
    distances, indices = squared_distances(gallery, gallery, 1)
    assert (distances == 0).all()
    np.testing.assert_array_equal(indices[:, 0], np.arange(700))


@pytest.mark.parametrize("options", [{}, {"normalise": True, "whiten": True}, {"n_centres": 40}])
def test_same_bits_for_any_batch_any_threads_and_again(options):
    rng = np.random.default_rng(0)
    gallery = 1 + rng.standard_normal((1500, 129)).astype(np.float32)
    queries = 1 + rng.standard_normal((1100, 129)).astype(np.float32)
    scores = KNN(**options).fit(gallery).score(queries)
    model = KNN(**options).fit(gallery)
    for size in (1, 7, 64, 600):
        parts = [
            model.score(queries[start : start + size])
            for start in range(0, min(600, 30 * size), size)
        ]
        parts = np.concatenate(parts)
        np.testing.assert_array_equal(parts, scores[: len(parts)])
    threads = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1)
        np.testing.assert_array_equal(KNN(**options).fit(gallery).score(queries), scores)
    finally:
        faiss.omp_set_num_threads(threads)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("copies", [2, 3, 30])
def test_leave_one_out_with_exact_duplicates(k, copies):
    rng = np.random.default_rng(k)
    gallery = rng.standard_normal((60, 9)).astype(np.float32)
    gallery[rng.choice(60, copies, replace=False)] = gallery[0]
    gallery[-2:] = gallery[-1]
    scores = leave_one_out_scores(gallery, k)
    np.testing.assert_allclose(
        scores, brute_force(gallery, gallery, k, leave_out=True)[0].sum(axis=1), rtol=1e-6
    )
    same_as_first = np.count_nonzero((gallery == gallery[0]).all(axis=1))
    assert (scores[0] == 0) == (same_as_first > k)


def test_leave_one_out_over_several_blocks():
    gallery = np.random.default_rng(0).standard_normal((2100, 4)).astype(np.float32)
    expected = brute_force(gallery, gallery, 2, leave_out=True)[0].sum(axis=1)
    np.testing.assert_allclose(leave_one_out_scores(gallery), expected, rtol=1e-6)


def test_equal_images_are_at_zero_and_in_order_of_the_gallery():
    distances, indices = squared_distances(np.ones((5, 3)), np.ones((1, 3)), 5)
    np.testing.assert_array_equal(distances, 0)
    np.testing.assert_array_equal(indices, [[0, 1, 2, 3, 4]])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, torch.float32, torch.bfloat16])
def test_any_real_type_gives_the_same(dtype):
    rng = np.random.default_rng(0)
    gallery, queries = (
        rng.integers(0, 9, (40, 6)),
        rng.integers(0, 9, (10, 6)),
    )  # whole numbers fit every type
    expected = knn_scores(gallery, queries)
    as_type = (
        (lambda a: torch.tensor(a).to(dtype))
        if isinstance(dtype, torch.dtype)
        else (lambda a: a.astype(dtype))
    )
    np.testing.assert_array_equal(knn_scores(as_type(gallery), as_type(queries)), expected)
    np.testing.assert_array_equal(KNN().fit(as_type(gallery)).score(as_type(queries)), expected)


GOOD = np.random.default_rng(0).standard_normal((5, 3))
BROKEN = np.where(np.arange(15).reshape(5, 3) == 4, np.nan, GOOD)


@pytest.mark.parametrize(
    "gallery, queries, k, message",
    [
        (GOOD, GOOD, 0, "k must be at least 1; got 0"),
        (GOOD, GOOD, -1, "k must be at least 1; got -1"),
        (GOOD, GOOD, 2.0, "whole number of at least 1; got 2.0"),
        (GOOD, GOOD, 6, "k = 6 neighbours were asked for, but the gallery holds 5 images"),
        (GOOD[:1], GOOD, 2, "holds 1 image;"),
        (GOOD, np.ones((2, 4)), 1, "same dimension; got 3 and 4"),
        (
            BROKEN,
            GOOD,
            1,
            "gallery holds 1 NaN or infinite values in 1 of 5 rows, the first in row 1",
        ),
        (GOOD, BROKEN, 1, "queries holds 1 NaN"),
        (GOOD[:0], GOOD, 1, r"gallery is empty, shape \(0, 3\)"),
        (GOOD, GOOD[:0], 1, r"queries is empty, shape \(0, 3\)"),
        (GOOD, GOOD[0], 1, r"got shape \(3,\); for one image pass queries\[None, :\]"),
        (GOOD * 1e25, GOOD, 1, "overflow float32"),
        (GOOD, GOOD * 1e200, 1, "overflow float32"),
    ],
)
@pytest.mark.filterwarnings("error")  # one clear error, and no warning of numpy's before it
def test_wrong_input_is_named(gallery, queries, k, message):
    with pytest.raises(ValueError, match=message):
        squared_distances(gallery, queries, k)
    with pytest.raises(ValueError, match=message):
        knn_scores(gallery, queries, k)


def test_nearest_others_by_hand():
    gallery = [[0.0], [1.0], [3.0], [3.0]]
    found = nearest_others(gallery, 2)
    assert found.dtype == np.int64 and found.tolist() == [[1, 2], [0, 2], [3, 1], [2, 1]]
    with pytest.raises(ValueError, match="4 with one left out"):
        nearest_others(GOOD, 5)


def test_neighbours_where_more_than_the_spare_candidates_are_equally_near():
    # Twenty copies of one image beside others: each sees k of the copies at zero, never itself, whatever faiss proposes.
    gallery = np.concatenate([np.zeros((20, 3)), np.eye(3)])
    assert (leave_one_out_scores(gallery, 5)[:20] == 0).all()
    others = nearest_others(gallery, 5)
    assert all(len(set(row)) == 5 and i not in row for i, row in enumerate(others))
    assert (others[:20] < 20).all()
    distances, indices = squared_distances(gallery, np.zeros((1, 3)), 23)
    np.testing.assert_array_equal(distances[0], [0] * 20 + [1] * 3)
    assert indices[0].tolist() == list(range(23))


def test_leave_one_out_needs_k_others():
    with pytest.raises(ValueError, match=r"k = 5 .* holds 5 images \(4 with one left out\)"):
        leave_one_out_scores(GOOD, 5)
    assert leave_one_out_scores(GOOD, 4).shape == (5,)
    model = KNN(k=5).fit(GOOD)  # enough to score others
    with pytest.raises(ValueError, match="4 with one left out"):
        model.leave_one_out()


def test_each_step_of_the_estimator_does_what_it_says():
    rng = np.random.default_rng(0)
    gallery, queries = rng.standard_normal((80, 10)) + 1, rng.standard_normal((20, 10)) + 1
    directions = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (gallery, queries)]
    expected = brute_force(*directions, 2)[0].sum(axis=1)
    np.testing.assert_allclose(KNN(normalise=True).fit(gallery).score(queries), expected, rtol=1e-5)

    model = KNN(normalise=True, whiten=True, k=3).fit(gallery)
    whitened = [model.whitening_.transform(x) for x in directions]
    np.testing.assert_allclose(
        model.score(queries), brute_force(*whitened, 3)[0].sum(axis=1), rtol=1e-5
    )
    assert not np.allclose(
        model.whitening_.mean_, gallery.mean(axis=0)
    )  # normalised first, whitened second
    expected = whitened_leave_one_out_scores(model.gallery_, model.whitening_, 3)
    np.testing.assert_array_equal(model.leave_one_out(), expected)

    model = KNN(n_centres=7, seed=5).fit(gallery)
    np.testing.assert_array_equal(model.gallery_, kmeans_gallery(gallery, 7, seed=5))
    np.testing.assert_allclose(
        model.score(queries), brute_force(model.gallery_, queries, 2)[0].sum(axis=1), rtol=1e-6
    )


def test_whitening_makes_the_score_independent_of_units():
    rng = np.random.default_rng(0)
    gallery, queries, mix = (
        rng.standard_normal((300, 4)),
        rng.standard_normal((50, 4)),
        rng.standard_normal((4, 4)),
    )
    plain, mixed = KNN(whiten=True).fit(gallery), KNN(whiten=True).fit(gallery @ mix)
    # Ledoit-Wolf shrinks a little, so the scores agree in order, not in every digit.
    ranks = [np.argsort(np.argsort(s)) for s in (plain.score(queries), mixed.score(queries @ mix))]
    assert np.corrcoef(ranks)[0, 1] > 0.98


def test_estimator_habits():
    model = KNN(3, normalise=True)
    assert vars(model) == {"k": 3, "normalise": True, "whiten": False, "n_centres": None, "seed": 0}
    for call in (lambda: model.score(GOOD), model.leave_one_out):
        with pytest.raises(
            NotFittedError, match="This KNN has seen no normal images yet; call fit"
        ):
            call()
    assert model.fit(GOOD) is model
    with pytest.raises(ValueError, match="k = 9 neighbours"):
        KNN(k=9).fit(GOOD)
    with pytest.raises(ValueError, match="k = 3 neighbours"):
        KNN(k=3, n_centres=2).fit(GOOD)
    with pytest.raises(ValueError, match="number of images, 5; got 6"):
        KNN(n_centres=6).fit(GOOD)
    with pytest.raises(
        ValueError, match="not defined for 3 k-means centres.*n_centres=None, or hold out"
    ):
        KNN(n_centres=3).fit(GOOD).leave_one_out()
