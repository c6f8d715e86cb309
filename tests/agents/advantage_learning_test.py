"""Tests of agents/advantage_learning.py."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.agents import advantage_learning, dqn, munchausen

target = jax.jit(advantage_learning.advantage_learning_target)
soft = jax.jit(functools.partial(munchausen.munchausen_target, tau=1e-4, alpha=0.9, l_0=-100.0))
plain = jax.jit(dqn.dqn_target)
q_values = hnp.arrays(np.float32, (3,), elements=st.floats(-9, 9, width=32, allow_subnormal=False))


def test_golden():
    # The gap of action 0 is 4 - 1: 1 - 0.9 * 3 + 0.5 * 6; that of action 1 is none.
    q_tm1, q_t = np.array([1, 4], np.float32), np.array([6, -6], np.float32)
    np.testing.assert_allclose(target(q_tm1, 0, 1.0, 0.5, q_t, alpha=0.9), 1.3, rtol=1e-6)
    np.testing.assert_allclose(target(q_tm1, 1, 1.0, 0.5, q_t, alpha=0.9), 4.0, rtol=1e-6)


@hypothesis.settings(deadline=None)
@hypothesis.given(q_tm1=q_values, q_t=q_values, action=st.integers(0, 2))
def test_oracle_and_limits(q_tm1, q_t, action):
    got = target(q_tm1, action, 1.0, 0.99, q_t, alpha=0.9)
    old, new = q_tm1.astype(np.float64), q_t.astype(np.float64)
    gap = max(old[b] - old[action] for b in range(3))
    np.testing.assert_allclose(got, 1 - 0.9 * gap + 0.99 * max(new), atol=1e-5)
    # M-DQN without its floor, as tau vanishes: alpha tau ln 3 and gamma tau ln 3 are 2e-4.
    np.testing.assert_allclose(got, soft(q_tm1, action, 1.0, 0.99, q_t), atol=3e-4)
    without = target(q_tm1, action, 1.0, 0.99, q_t, alpha=0.0)
    assert without == plain(q_tm1, action, 1.0, 0.99, q_t)


@pytest.mark.parametrize("alpha", [-0.1, 1.0])
def test_settings_are_checked(alpha):
    with pytest.raises(ValueError, match=r"gap_scale must lie in \[0, 1\)"):
        advantage_learning.Config(gap_scale=alpha)
