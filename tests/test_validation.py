import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from pandalib import KNN
from pandalib.validation import as_features, check_counts, check_fitted, check_k, check_rates


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
    assert np.shares_memory(as_features(features), features)


@pytest.mark.parametrize(
    "values, message",
    [
        (np.ones(512), r"gallery are float64 \(512,\): expected real numbers of shape \(n, d\)"),
        (np.ones((2, 3, 4)), r"gallery are float64 \(2, 3, 4\)"),
        (np.ones((0, 5)), r"gallery are float64 \(0, 5\)"),
        (np.ones((2, 2), complex), "gallery are complex128"),
        ([["a", "b"]], "gallery are <U1"),
        ("folder/", r"gallery are <U7 \(\)"),
        ([[0, np.nan]], "gallery contains NaN"),
        ([[0, -np.inf]], "gallery contains infinity"),
    ],
)
def test_broken_features_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        as_features(values, "gallery")


@pytest.mark.parametrize("value", [0, -1, 2.0, None, "3"])
def test_counts_are_whole_and_positive(value):
    check_counts(k=1, epochs=np.int32(7))
    with pytest.raises(ValueError, match="epochs=.*whole number of at least 1"):
        check_counts(k=1, epochs=value)


@pytest.mark.parametrize("value", [0, -0.1, np.nan, np.inf])
def test_rates_are_positive_or_none(value):
    check_rates(lr=1e-9, max_grad_norm=None)
    with pytest.raises(ValueError, match="lr=.*above 0"):
        check_rates(lr=value)


def test_a_gallery_holds_k_neighbours():
    check_k(5, 5)
    check_k(4, 5, leave_out=True)
    with pytest.raises(ValueError, match=r"k=6: .*neighbours.*\(5\)"):
        check_k(6, 5)
    with pytest.raises(ValueError, match=r"k=5: .*neighbours.*\(5 with one left out\)"):
        check_k(5, 5, leave_out=True)
    with pytest.raises(ValueError, match="k=0: .*at least 1"):
        check_k(0, 5)


def test_an_estimator_before_fit():
    with pytest.raises(NotFittedError, match="This KNN has seen no normal images yet: call fit"):
        check_fitted(KNN(), "gallery_")
    check_fitted(KNN(1).fit([[0.0]]), "gallery_")
