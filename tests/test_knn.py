"""Nearest neighbours against brute force: differences in float64, all pairs, sorted."""

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from small import images, small_backbone

from pandalib import DN2, FeatureCache, PixelKNN
from pandalib.methods.knn import (
    KNN,
    _candidates_by_numpy,
    kmeans_gallery,
    knn_scores,
    leave_one_out_scores,
    nearest_others,
    pixels,
    squared_distances,
)
from pandalib.methods.whitening import Whitening, l2_normalise, whitened_leave_one_out_scores


def brute_force(gallery, queries, k, leave_out=False):
    """The definition."""
    gallery, queries = np.asarray(gallery, np.float64), np.asarray(queries, np.float64)
    distances = np.array([np.square(gallery - query).sum(axis=1) for query in queries])
    if leave_out:
        np.fill_diagonal(distances, np.inf)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, axis=1), indices


def normal(n, d, seed=0, offset=0.0):
    """The offset is put in first, so all sides see the same float32 numbers."""
    return (np.random.default_rng(seed).standard_normal((n, d)) + offset).astype(np.float32)


@st.composite
def galleries(draw):
    """Gallery, queries and k, often with duplicates, one dimension, k = n, an offset of 1000."""
    d = draw(st.sampled_from([1, 1, 2, 3, 17]))
    n, m = draw(st.integers(2, 14)), draw(st.integers(1, 6))
    # Eighths, so that float32 holds them beside 1000 and distances are exact in float64.
    values = st.integers(-2, 2).map(float) | st.integers(-64, 64).map(lambda i: i / 8)
    rows = draw(arrays(np.float32, (n + m, d), elements=values.map(np.float32)))
    if draw(st.booleans()):  # some rows are others once more
        rows = rows[draw(st.lists(st.integers(0, n + m - 1), min_size=n + m, max_size=n + m))]
    rows = rows + np.float32(draw(st.sampled_from([0, 0, 1000, -1024])))
    return rows[:n], rows[n:], draw(st.integers(1, n))


def test_dn2_by_hand():
    gallery = [[0.0, 0.0], [3.0, 4.0], [0.0, 2.0], [10.0, 0.0]]
    queries = [[0.0, 1.0], [3.0, 4.0], [10.0, 10.0]]
    # Squared distances of (0,1): 1, 18, 1, 101; of (3,4): 25, 0, 13, 65; of (10,10): 200, 85, ...
    np.testing.assert_array_equal(knn_scores(gallery, queries), [2, 13, 185])
    np.testing.assert_array_equal(knn_scores(gallery, queries, k=1), [1, 0, 85])
    np.testing.assert_array_equal(KNN().fit(gallery).score(queries), [2, 13, 185])
    # Left out: (0,0) sees 25, 4, 100; (3,4) 25, 13, 65; (0,2) 4, 13, 104; (10,0) 100, 65, 104.
    np.testing.assert_array_equal(leave_one_out_scores(gallery), [29, 38, 17, 165])
    np.testing.assert_array_equal(KNN().fit(gallery).leave_one_out(), [29, 38, 17, 165])


@given(galleries())
def test_neighbours_are_those_of_brute_force(case):
    gallery, queries, k = case
    expected, expected_indices = brute_force(gallery, queries, k)
    distances, indices = squared_distances(gallery, queries, k)
    assert distances.dtype == np.float32 and indices.dtype == np.int64
    np.testing.assert_allclose(distances, expected, rtol=1e-7)  # rounding to float32 is 6e-8
    if len(gallery) <= k + 2:  # every row is a candidate: ties are told apart by index
        np.testing.assert_array_equal(indices, expected_indices)
    scores = knn_scores(gallery, queries, k)
    np.testing.assert_allclose(scores, expected.sum(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(KNN(k).fit(gallery).score(queries), scores)


@given(galleries())
def test_leaving_one_out_is_brute_force_without_that_row(case):
    gallery, _, k = case
    k = min(k, len(gallery) - 1)
    expected, expected_indices = brute_force(gallery, gallery, k, leave_out=True)
    scores = leave_one_out_scores(gallery, k)
    np.testing.assert_allclose(scores, expected.sum(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(KNN(k).fit(gallery).leave_one_out(), scores)
    others = nearest_others(gallery, k)
    assert others.shape == (len(gallery), k)
    assert not (others == np.arange(len(gallery))[:, None]).any()
    if len(gallery) <= k + 3:
        np.testing.assert_array_equal(others, expected_indices)


@pytest.mark.parametrize("leave_out", [False, True])
def test_several_blocks_of_queries(leave_out):
    gallery = normal(2100, 4)
    expected = brute_force(gallery, gallery, 2, leave_out)[0].sum(axis=1)
    scores = leave_one_out_scores(gallery) if leave_out else knn_scores(gallery, gallery)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("spread", "offset"),
    [(1, 0), (1, 1e3), (1, np.linspace(-1e4, 1e4, 512)), (1e-6, 5)],  # the last: collapsed features
)
def test_an_offset_costs_no_accuracy(spread, offset):
    # 300 queries, because with fewer numbers faiss takes differences, not sums of squares.
    rng = np.random.default_rng(0)
    gallery, queries = (spread * rng.standard_normal((n, 512)) + offset for n in (1000, 300))
    expected, _ = brute_force(gallery, queries, 2)
    np.testing.assert_allclose(squared_distances(gallery, queries, 2)[0], expected, rtol=1e-7)
    distances, indices = squared_distances(gallery, gallery, 1)  # each image meets itself
    assert (distances == 0).all() and (indices[:, 0] == np.arange(1000)).all()


def test_near_twins_are_told_apart():
    # Each image has a twin so near that float32 sums of squares cannot say which is nearer.
    rng = np.random.default_rng(0)
    gallery = 100 * rng.standard_normal((600, 128))
    gallery = np.concatenate([gallery, gallery + 1e-3 * rng.standard_normal((600, 128))])
    queries = gallery + 1e-4 * rng.standard_normal((1200, 128))
    for found, expected in zip(
        squared_distances(gallery, queries, 1), brute_force(gallery, queries, 1)
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-7)
    expected = brute_force(gallery, gallery, 1, leave_out=True)[0].sum(axis=1)
    np.testing.assert_allclose(leave_one_out_scores(gallery, 1), expected, rtol=1e-7)


def test_scores_are_summed_in_float64():
    # Neighbours at squared distances 1 and 2^24; in float32 their sum is 2^24.
    far = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 4096.0], [1.0, 4096.0]])
    for scores in (knn_scores(far, far, 3), KNN(2).fit(far).leave_one_out()):
        assert scores.dtype == np.float64
        np.testing.assert_array_equal(scores, 2.0**24 + 1)


def test_more_equal_neighbours_than_spare_candidates():
    gallery = np.concatenate([np.zeros((20, 3)), np.eye(3)])
    others = nearest_others(gallery, 5)
    assert all(len(set(row)) == 5 and i not in row for i, row in enumerate(others))
    assert (others[:20] < 20).all() and (leave_one_out_scores(gallery, 5)[:20] == 0).all()


@pytest.mark.parametrize("options", [{}, {"normalise": True, "whiten": True}, {"n_centres": 40}])
def test_same_bits_for_any_batch_any_threads_and_again(options):
    gallery, queries = normal(1500, 129, 0, 1), normal(1100, 129, 1, 1)
    model = KNN(**options).fit(gallery)
    scores = model.score(queries)
    for size in (1, 7, 600):
        starts = range(0, min(600, 30 * size), size)
        parts = np.concatenate([model.score(queries[start : start + size]) for start in starts])
        np.testing.assert_array_equal(parts, scores[: len(parts)])
    threads = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(2 if threads == 1 else 1)
        np.testing.assert_array_equal(KNN(**options).fit(gallery).score(queries), scores)
    finally:
        faiss.omp_set_num_threads(threads)


GOOD = normal(5, 3)


@pytest.mark.parametrize(
    "gallery, queries, k, message",
    [
        (GOOD, GOOD, 6, r"k=6: .*neighbours.*\(5\)"),
        (GOOD, np.ones((2, 4)), 1, "queries have 4 dimensions: expected 3"),
        (GOOD * np.nan, GOOD, 1, "gallery contains NaN"),
        (GOOD, GOOD[0], 1, r"queries are float32 \(3,\)"),
        (GOOD.astype(float) * 1e25, GOOD, 1, "overflow float32"),
    ],
)
def test_wrong_input_is_named(gallery, queries, k, message):
    for function in (squared_distances, knn_scores):
        with pytest.raises(ValueError, match=message):
            function(gallery, queries, k)


@pytest.mark.parametrize("function", [leave_one_out_scores, nearest_others])
def test_a_wrong_gallery_is_named(function):
    with pytest.raises(ValueError, match="^Input gallery contains NaN"):
        function(GOOD * np.nan, 1)


@pytest.mark.parametrize("n", [1, 7, 40])
def test_without_faiss_the_candidates_are_the_same(n):
    gallery, queries = normal(40, 6), normal(9, 6, 1)
    found = _candidates_by_numpy(queries, gallery, n)
    expected = cdist(queries, gallery).argsort(axis=1)[:, :n]
    np.testing.assert_array_equal(np.sort(found), np.sort(expected))


def test_leave_one_out_needs_k_others():
    assert leave_one_out_scores(GOOD, 4).shape == (5,)
    for call in (lambda: nearest_others(GOOD, 5), KNN(k=5).fit(GOOD).leave_one_out):
        with pytest.raises(ValueError, match="5 with one left out"):
            call()


@pytest.mark.parametrize("offset", [0, 1e4])
def test_kmeans_finds_separate_groups(offset):
    middles = np.array([[0.0, 0], [10, 0], [0, 10]]) + offset
    features = np.repeat(middles, 50, axis=0) + np.random.default_rng(0).uniform(-1, 1, (150, 2))
    centres = kmeans_gallery(features.astype(np.float32), 3)
    expected = features.reshape(3, 50, 2).mean(axis=1)
    order = [np.abs(centres - middle).sum(axis=1).argmin() for middle in middles]
    within = 2e-3 if offset else 1e-5  # float32 steps by 1e-3 at 1e4
    np.testing.assert_allclose(centres[order], expected, atol=within)


def test_kmeans_is_seeded_and_silent(capfd):
    features = normal(200, 5)
    centres = kmeans_gallery(features, 60, seed=1)
    assert centres.shape == (60, 5) and centres.dtype == np.float32
    np.testing.assert_array_equal(kmeans_gallery(features, 60, seed=1), centres)
    assert (kmeans_gallery(features, 60) != centres).any()
    every = kmeans_gallery(features, 200)  # as many centres as images: the images
    expected = features[np.lexsort(features.T)]
    np.testing.assert_allclose(every[np.lexsort(every.T)], expected, atol=1e-6)
    assert capfd.readouterr() == ("", "")
    for n_centres in (0, 201):
        with pytest.raises(ValueError, match=f"n_centres={n_centres}: expected 1 to 200"):
            kmeans_gallery(features, n_centres)


def test_each_step_of_knn_does_what_it_says():
    gallery, queries = normal(80, 10, 0, 1), normal(20, 10, 1, 1)
    directions = l2_normalise(gallery), l2_normalise(queries)
    scores = KNN(normalise=True).fit(gallery).score(queries)
    np.testing.assert_array_equal(scores, knn_scores(*directions))

    model = KNN(normalise=True, whiten=True, k=3).fit(gallery)  # in this order
    whitening = Whitening().fit(directions[0])
    whitened = [whitening.transform(features) for features in directions]
    np.testing.assert_array_equal(model.score(queries), knn_scores(*whitened, 3))
    expected = whitened_leave_one_out_scores(whitened[0], whitening, 3)
    np.testing.assert_array_equal(model.leave_one_out(), expected)

    model = KNN(n_centres=7, seed=5).fit(gallery)
    np.testing.assert_array_equal(model.gallery_, kmeans_gallery(gallery, 7, seed=5))
    np.testing.assert_array_equal(model.score(queries), knn_scores(model.gallery_, queries))
    words = "n_centres=7: leave-one-out.*, since each image has shaped the k"
    with pytest.raises(ValueError, match=words):
        model.leave_one_out()


def test_knn_in_a_pipeline():
    gallery, queries = normal(80, 10), normal(20, 10, 1)
    pipeline = make_pipeline(Whitening(), KNN(3)).fit(gallery)
    expected = KNN(3, whiten=True).fit(gallery).score(queries)
    np.testing.assert_array_equal(pipeline.score(queries), expected)
    assert pipeline.set_params(knn__k=1).get_params()["knn__k"] == 1


def test_detectors_are_estimators():
    assert repr(KNN(3, whiten=True)) == "KNN(k=3, whiten=True)"
    assert vars(KNN()) == dict(k=2, normalise=False, whiten=False, n_centres=None, seed=0)
    backbone = small_backbone()
    scorer = KNN().get_params()
    assert DN2(backbone).get_params() == dict(backbone=backbone, cache=None, **scorer)
    assert PixelKNN().k == 2
    features, pictures = GOOD, images(5)
    for detector, given_data in (
        (KNN(), features),
        (DN2(backbone), pictures),
        (PixelKNN(), pictures),
    ):
        fitted = clone(detector).set_params(k=1)
        with pytest.raises(NotFittedError, match="call fit"):
            fitted.score(given_data)
        assert fitted.fit(given_data, None) is fitted
        assert (fitted.score(given_data) == 0).all()
        with pytest.raises(ValueError, match="k=9: .*neighbours"):
            detector.set_params(k=9).fit(given_data)
    with pytest.raises(NotFittedError):
        KNN().leave_one_out()


@pytest.mark.parametrize(
    "options", [dict(k=3, normalise=True, whiten=True), dict(n_centres=4, seed=2)]
)
def test_dn2_is_knn_on_pooled_features(options, tmp_path):
    backbone, normal_images, test = small_backbone(), images(12), images(6, seed=1)
    scorer = KNN(**options).fit(backbone.features(normal_images))
    expected = scorer.score(backbone.features(test))
    np.testing.assert_array_equal(DN2(backbone, **options).fit(normal_images).score(test), expected)
    cached = DN2(backbone, cache=FeatureCache(tmp_path), **options)
    np.testing.assert_allclose(cached.fit(normal_images).score(test), expected, rtol=0.02)
    assert len(list(tmp_path.iterdir())) == 2


def test_pixel_knn_is_knn_on_values_from_0_to_1():
    rows = pixels(images(3))
    assert rows.shape == (3, 3 * 32 * 32) and rows.dtype == np.float32
    np.testing.assert_allclose(rows, images(3).reshape(3, -1) / 255, rtol=1e-6)
    scores = PixelKNN(k=1).fit(images(9)).score(images(4, seed=1))
    expected = brute_force(pixels(images(9)), pixels(images(4, seed=1)), 1)[0].sum(axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="images are float32"):
        PixelKNN().fit(images(3).astype(np.float32))
