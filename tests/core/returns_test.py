"""Tests of core/returns.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import returns


def test_golden_n_step_return_clips_before_the_sum():
    # Clipped (1, 1, -1): 1 + 0.9 * 1 + 0.81 * -1 = 1.09 and 0.9^3; raw it would be 5.45.
    reward = np.array([[5, 5, -5]], np.float32)
    one, no = np.ones((1, 3), np.float32), np.zeros((1, 3), bool)
    for xp in (np, jnp):
        total, discount, m = returns.n_step_return(
            xp.asarray(reward), xp.asarray(one), xp.asarray(no), 0.9, 1.0
        )
        np.testing.assert_allclose(total, [1.09], rtol=1e-6)
        np.testing.assert_allclose(discount, [0.729], rtol=1e-6)
        assert m[0] == 3


@pytest.mark.parametrize(("d", "expected"), [(0.0, 0.0), (1.0, 0.81)], ids=["end", "cut"])
def test_golden_n_step_return_stops_at_an_end(d, expected):
    # Two steps to the end: 1 + 0.9 * 2; the third reward belongs to the next episode.
    total, discount, m = returns.n_step_return(
        np.array([[1, 2, 100]], np.float32),
        np.array([[1, d, 1]], np.float32),
        np.array([[False, True, False]]),
        0.9,
        None,
    )
    np.testing.assert_allclose(total, [2.8], rtol=1e-6)
    np.testing.assert_allclose(discount, [expected], rtol=1e-6)
    assert m[0] == 2


def test_an_n_step_return_is_of_a_batch():
    one, no = np.ones(3, np.float32), np.zeros(3, bool)
    with pytest.raises(AssertionError, match=r"must be \[B, n\], got \[\[3\], \[3\], \[3\]\]"):
        returns.n_step_return(one, one, no, 0.9, None)
    with pytest.raises(AssertionError, match=r"must be \[B, n\]"):
        returns.n_step_return(one[None], one[:, None], no[None], 0.9, None)
