"""Tests of agents/munchausen_iqn.py."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.agents import iqn, munchausen, munchausen_iqn
from kullback.core import regularizers

PAPER = {"tau": 0.03, "alpha": 0.9, "l_0": -1.0}
target = jax.jit(munchausen_iqn.munchausen_iqn_target)
scalar = jax.jit(munchausen.munchausen_target)
static = ("tau", "alpha", "l_0", "divergence")
target_of_f = jax.jit(munchausen_iqn.munchausen_iqn_target, static_argnames=static)
scalar_of_f = jax.jit(munchausen.munchausen_target, static_argnames=static)
plain = jax.jit(iqn.iqn_target)
q_values = hnp.arrays(np.float32, (3,), elements=st.floats(-9, 9, width=32, allow_subnormal=False))
quantiles = hnp.arrays(
    np.float32, (5, 3), elements=st.floats(-9, 9, width=32, allow_subnormal=False)
)


def test_golden():
    # pi(.|s_tm1) is uniform of two: the bonus is 0.5 * 0.5 ln(1/2); so is pi(.|s_t), and
    # v_j = mean_a z_j + 0.5 ln 2: 2.5 and 0.5 above.
    q, z_t = np.zeros(2, np.float32), np.array([[2, 3], [0, 1]], np.float32)
    got = target(z_t, q, 1, 1.0, 0.5, q, tau=0.5, alpha=0.5, l_0=-10.0)
    np.testing.assert_allclose(got, 1 + np.array([1.25, 0.25]), rtol=1e-6)
    floored = target(z_t, q, 1, 1.0, 0.0, q, tau=0.5, alpha=0.5, l_0=-0.1)
    np.testing.assert_allclose(floored, [0.95, 0.95], rtol=1e-6)


@hypothesis.settings(deadline=None)
@hypothesis.given(z_t=quantiles, q_tm1=q_values, q_t=q_values, action=st.integers(0, 2))
def test_oracle(z_t, q_tm1, q_t, action):
    tau, alpha, l_0 = 0.03, 0.9, -1.0
    log_pi_tm1, log_pi_t = (
        x - np.logaddexp.reduce(x) for x in np.array([q_tm1, q_t], np.float64) / tau
    )
    bonus = alpha * np.clip(tau * log_pi_tm1[action], l_0, 0)
    values = [sum(np.exp(log_pi_t) * (np.float64(z) - tau * log_pi_t)) for z in z_t]
    got = target(z_t, q_tm1, action, 1.0, 0.99, q_t, **PAPER)
    np.testing.assert_allclose(got, 1 + bonus + 0.99 * np.array(values), atol=2e-5)


@hypothesis.settings(deadline=None)
@hypothesis.given(z_t=quantiles, q_tm1=q_values, action=st.integers(0, 2))
def test_where_the_policy_is_of_the_same_quantiles_its_mean_is_the_target_of_m_dqn(
    z_t, q_tm1, action
):
    q_t = z_t.mean(0)
    got = target(z_t, q_tm1, action, 1.0, 0.99, q_t, **PAPER)
    expected = scalar(q_tm1, action, 1.0, 0.99, q_t, **PAPER)
    np.testing.assert_allclose(np.mean(got), expected, atol=2e-5)
    same = target(z_t[:1].repeat(5, 0), q_tm1, action, 1.0, 0.99, z_t[0], **PAPER)
    np.testing.assert_allclose(same, scalar(q_tm1, action, 1.0, 0.99, z_t[0], **PAPER), atol=2e-5)


@hypothesis.settings(deadline=None)
@hypothesis.given(z_t=quantiles, q_tm1=q_values, action=st.integers(0, 2))
def test_without_bonus_and_as_tau_vanishes_it_is_the_target_of_iqn(z_t, q_tm1, action):
    q_t = np.array([0.5, 2.0, -1.0], np.float32)  # No ties: at these pi is one action.
    got = target(z_t, q_tm1, action, 1.0, 0.9, q_t, tau=1e-3, alpha=0.0, l_0=-1.0)
    expected = plain(z_t, q_tm1, action, 1.0, 0.9, q_t)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["kl", "alpha-1.5", "hellinger"])
def test_of_any_regularizer_its_mean_is_the_target_of_m_dqn(name):
    settings = {**PAPER, "divergence": regularizers.named(name)}
    rng = np.random.default_rng(0)
    for spread in (0.03, 3.0, 1e3):
        z_t = np.float32(spread * rng.normal(size=(5, 3)))
        q_tm1 = np.float32(spread * rng.normal(size=3))
        got = target_of_f(z_t, q_tm1, 1, 1.0, 0.99, z_t.mean(0), **settings)
        expected = scalar_of_f(q_tm1, 1, 1.0, 0.99, z_t.mean(0), **settings)
        np.testing.assert_allclose(np.mean(got), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"log_policy_scale": 1.5}, "log_policy_scale must lie in"),
        ({"log_policy_min": 0.0}, "log_policy_min must be < 0"),
        ({"huber_threshold": 0.0}, "huber_threshold must be > 0"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        munchausen_iqn.Config(**fields)


def test_gradient_of_the_target_is_finite_where_the_policy_underflows():
    q = np.array([1e4, 0.0, -1e4], np.float32)
    total = functools.partial(target, **PAPER)
    grads = jax.grad(lambda q: total(q[None], q, 1, 0.0, 0.9, q).sum())(q)
    assert np.all(np.isfinite(grads))
