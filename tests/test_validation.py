import numpy as np
import pytest
import torch

from pandalib.validation import as_features, check_counts, check_k, check_rates


@pytest.mark.parametrize(
    "values, dtype",
    [
        (np.ones((2, 3), np.float16), np.float32),
        (np.ones((2, 3), np.uint8), np.float32),
        (np.ones((2, 3)), np.float64),
        (np.ones((3, 2), np.float32).T, np.float32),
        ([[1, 1, 1], [1, 1, 1]], np.float64),
        (torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True), np.float32),
    ],
)
def test_features_of_any_real_type_are_taken(values, dtype):
    features = as_features(values)
    assert features.dtype == dtype and features.shape == (2, 3) and features.flags.c_contiguous
    assert (features == 1).all()
    assert np.shares_memory(as_features(features), features)  # no copy without need


@pytest.mark.parametrize(
    "values, message",
    [
        (np.ones(512), r"gallery are float64 \(512,\): expected real numbers of shape \(n, d\)"),
        (np.ones((0, 5)), r"gallery are float64 \(0, 5\)"),
        (np.ones((2, 2), complex), "gallery are complex128"),
        ([[0, np.nan]], "gallery contains NaN"),
        ([[0, -np.inf]], "gallery contains infinity"),
    ],
)
def test_broken_features_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        as_features(values, "gallery")


def test_numbers_out_of_range_are_named():
    check_counts(k=1, epochs=np.int32(7))
    check_rates(lr=1e-9, max_grad_norm=None)
    check_k(5, 5)
    check_k(4, 5, leave_out=True)
    for value in (0, -1, 2.0, None, "3"):
        with pytest.raises(ValueError, match="epochs=.*whole number of at least 1"):
            check_counts(k=1, epochs=value)
    for value in (0, -0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match="lr=.*above 0"):
            check_rates(lr=value)
    for arguments, message in (
        ((6, 5), r"k=6: .*neighbours.*\(5\)"),
        ((5, 5, True), r"k=5: .*neighbours.*\(5 with one left out\)"),
        ((0, 5), "k=0: .*at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            check_k(*arguments)
