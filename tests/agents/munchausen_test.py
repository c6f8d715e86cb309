"""Tests of agents/munchausen.py."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.agents import dqn, munchausen

PAPER = {"tau": 0.03, "alpha": 0.9, "l_0": -1.0}
target = jax.jit(munchausen.munchausen_target)  # Once, so that hypothesis pays no compilation.
entropy = jax.jit(munchausen.policy_entropy)
q_values = hnp.arrays(np.float32, (3,), elements=st.floats(-9, 9, width=32))


def oracle(q_tm1, a_tm1, r_t, discount_t, q_t, *, tau, alpha, l_0):
    """The definition in float64: softmax by explicit sums, the bootstrap as a sum over actions."""

    def log_softmax(q):
        z = np.float64(q) / tau
        z = z - z.max()
        return z - np.log(np.sum(np.exp(z)))

    log_pi_tm1, log_pi_t = log_softmax(q_tm1), log_softmax(q_t)
    v_t = sum(np.exp(p) * (np.float64(q) - tau * p) for q, p in zip(q_t, log_pi_t, strict=True))
    return r_t + alpha * np.clip(tau * log_pi_tm1[a_tm1], l_0, 0) + discount_t * v_t


def test_golden():
    # tau ln pi(1|s) = -0.5 ln(1 + e^2) = -1.0635, floored at -1: the bonus is 0.9 * -1.
    # v_t = 0.5 ln(2) above max q = 3: 1 - 0.9 + 0.5 * (3 + 0.34657).
    got = target(
        np.array([1, 0], np.float32),
        1,
        1.0,
        0.5,
        np.array([3, 3], np.float32),
        tau=0.5,
        alpha=0.9,
        l_0=-1.0,
    )
    np.testing.assert_allclose(got, 1 - 0.9 + 0.5 * 3.3465736, rtol=1e-6)
    # The first action: -0.5 ln(1 + e^-2) = -0.0634640, inside the bounds; no bootstrap at an end.
    got = target(
        np.array([1, 0], np.float32),
        0,
        1.0,
        0.0,
        np.array([3, 3], np.float32),
        tau=0.5,
        alpha=0.9,
        l_0=-1.0,
    )
    np.testing.assert_allclose(got, 1 - 0.9 * 0.0634640, rtol=1e-6)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(q_tm1=q_values, q_t=q_values, action=st.integers(0, 2))
def test_oracle(q_tm1, q_t, action):
    got = target(q_tm1, action, 1.0, 0.99, q_t, **PAPER)
    np.testing.assert_allclose(got, oracle(q_tm1, action, 1.0, 0.99, q_t, **PAPER), atol=2e-5)


@pytest.mark.parametrize("tau", [1e-3, 0.03])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_oracle_at_extreme_values(tau, scale):
    rng = np.random.default_rng(0)
    settings = {**PAPER, "tau": tau}
    for spread in (1e-3, 1.0, 100.0):
        for base in (scale, -scale):
            q_tm1, q_t = (base + spread * rng.normal(size=(2, 4))).astype(np.float32)
            got = target(q_tm1, 2, -1.0, 0.99, q_t, **settings)
            expected = oracle(q_tm1, 2, -1.0, 0.99, q_t, **settings)
            # One unit in the last place of q is 1e-3 at 1e4; nothing more may be lost.
            np.testing.assert_allclose(got, expected, atol=2e-7 * scale + 1e-5, rtol=0)


@pytest.mark.parametrize("variant", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_without_bonus_and_as_tau_vanishes_it_is_the_target_of_dqn(variant):
    q_tm1, q_t = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    ones, actions = np.ones(5, np.float32), np.ones(5, np.int32)
    expected = jax.vmap(dqn.dqn_target)(*map(jnp.asarray, (q_tm1, actions, ones, ones, q_t)))
    for tau in (1.0, 0.1, 1e-2, 1e-4):
        soft = functools.partial(munchausen.munchausen_target, tau=tau, alpha=0.0, l_0=-1.0)
        above = variant(jax.vmap(soft))(q_tm1, actions, ones, ones, q_t) - expected
        # 0 <= tau ln sum exp(q / tau) - max q <= tau ln A, times gamma = 1.
        assert np.all(above >= -1e-6) and np.all(above <= tau * np.log(3) + 1e-6)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(q_tm1=q_values, q_t=q_values, shift=st.floats(-5, 5, width=32))
def test_a_shift_of_values_moves_the_bootstrap_and_not_the_bonus(q_tm1, q_t, shift):
    before = target(q_tm1, 0, 0.0, 0.9, q_t, **PAPER)
    np.testing.assert_allclose(target(q_tm1 + shift, 0, 0.0, 0.9, q_t, **PAPER), before, atol=1e-5)
    moved = target(q_tm1, 0, 0.0, 0.9, q_t + shift, **PAPER)
    np.testing.assert_allclose(moved, before + 0.9 * shift, atol=1e-5)


def test_equal_values_have_the_entropy_of_the_uniform_policy_and_distant_ones_none():
    np.testing.assert_allclose(entropy(np.zeros(4, np.float32), 0.03), np.log(4), rtol=1e-6)
    np.testing.assert_allclose(entropy(np.array([1e4, 0, 0], np.float32), 1e-3), 0.0, atol=1e-6)
    q, tau = np.array([0.02, 0.0, -0.05], np.float32), 0.03
    p = np.exp(np.float64(q) / tau) / np.exp(np.float64(q) / tau).sum()
    np.testing.assert_allclose(entropy(q, tau), -np.sum(p * np.log(p)), rtol=1e-5)


def test_gradient_of_the_target_is_finite_where_the_policy_underflows():
    q = jnp.array([1e4, 0.0, -1e4], np.float32)
    grads = jax.grad(lambda q: target(q, 1, 0.0, 0.9, q, **PAPER))(q)
    assert np.all(np.isfinite(grads))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"log_policy_scale": 1.5}, "log_policy_scale must lie in"),
        ({"log_policy_min": 1.0}, "log_policy_min must be < 0"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        munchausen.Config(**fields)
