"""What holds for any input of the diagnostics and of sample-wise early stopping."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pandalib.methods.diagnostics import effective_rank, feature_variance
from pandalib.methods.panda import hold_out, sample_wise_scores

# The same examples every time, and no limit on a single one: the machine may be busy.
settings.register_profile("same", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("same")


@st.composite
def spreads(draw):
    """Features with a spread in every direction: a seeded normal distribution, turned."""
    n, d = draw(st.integers(3, 30)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    scale = 10.0 ** rng.uniform(-1, 1, size=d)
    return rng.normal(size=(n, d)) * scale @ np.linalg.qr(rng.normal(size=(d, d)))[0] + draw(
        st.sampled_from([0.0, 1000.0])
    )


@given(spreads())
def test_rank_and_variance_see_neither_a_turn_nor_a_shift(features):
    n, d = features.shape
    rank, variance = effective_rank(features), feature_variance(features)
    assert 1 - 1e-9 <= rank <= min(n - 1, d) + 1e-6
    assert variance == pytest.approx(
        np.mean([np.mean((column - sum(column) / n) ** 2) for column in features.T])
    )
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0]
    assert effective_rank(features @ turn - 3) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(7 * features) == pytest.approx(rank, rel=1e-6)
    assert feature_variance(7 * (features @ turn - 3)) == pytest.approx(49 * variance, rel=1e-6)
    share = np.linalg.svd(features - features.mean(axis=0), compute_uv=False) ** 2
    share = share[share > 1e-12 * share.max()] / share.sum()
    assert rank == pytest.approx(
        math.prod(p**-p for p in share), rel=1e-6
    )  # exp of the entropy, written as a product


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.data())
def test_sample_wise_takes_the_largest_ratio(n_checkpoints, n, m, data):
    test = data.draw(
        arrays(
            np.float64,
            (n_checkpoints, n),
            elements=st.integers(0, 3).map(float) | st.floats(0, 1e6),
        )
    )
    held_out = data.draw(arrays(np.float64, (n_checkpoints, m), elements=st.floats(0.1, 1e6)))
    scores, chosen = sample_wise_scores(test, held_out)
    levels = held_out.mean(axis=1)
    for image in range(n):
        ratios = [test[t, image] / levels[t] for t in range(n_checkpoints)]
        assert scores[image] == max(ratios) and chosen[image] == ratios.index(max(ratios))
    # Another unit at every checkpoint (both kinds of images alike) changes nothing but rounding;
    # powers of two not even that.
    units = 2.0 ** np.arange(n_checkpoints)[:, None]
    again, same = sample_wise_scores(test * units, held_out * units)
    np.testing.assert_array_equal(again, scores)
    np.testing.assert_array_equal(same, chosen)


@given(st.integers(4, 200), st.floats(0, 1), st.integers(0, 3))
def test_hold_out_splits(n, share, seed):
    n_held_out = round(n * share)
    if min(n_held_out, n - n_held_out) < 2:
        with pytest.raises(ValueError, match="expected at least 2 images in either part"):
            hold_out(n, share, seed)
        return
    train, held_out = hold_out(n, share, seed)
    assert len(held_out) == n_held_out and sorted([*train, *held_out]) == list(range(n))
    assert list(train) == sorted(train) and list(held_out) == sorted(held_out)
