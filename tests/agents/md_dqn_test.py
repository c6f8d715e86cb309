"""Tests of agents/md_dqn.py."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.agents import actor_critic, dqn, md_dqn, munchausen

BOTH = {"lambda_": 0.5, "tau": 0.2}


def jitted(function, lambda_: float, tau: float):
    return jax.jit(functools.partial(function, lambda_=lambda_, tau=tau))


target = jitted(actor_critic.expected_value_target, **BOTH)
without = jitted(actor_critic.expected_value_target, 0.0, 0.0)
soft = jitted(actor_critic.expected_value_target, 0.0, 0.2)
direct, indirect = jitted(md_dqn.direct_loss, **BOTH), jitted(md_dqn.indirect_loss, **BOTH)
slopes = [jax.jit(jax.grad(direct)), jax.jit(jax.grad(indirect))]
values = hnp.arrays(np.float32, (3,), elements=st.floats(-5, 5, width=32, allow_subnormal=False))


def log_softmax(x):
    x = np.float64(x)
    return x - x.max() - np.log(np.sum(np.exp(x - x.max())))


def closed_form(q, log_prior, lambda_, tau):
    """Returns the log-policy that maximises the greedy step, and its value."""
    z = (np.float64(q) + lambda_ * log_prior) / (lambda_ + tau)
    return log_softmax(z), (lambda_ + tau) * np.logaddexp.reduce(z)


def value(q, log_pi, log_prior, lambda_, tau):
    """Sums the definition term by term."""
    total = 0.0
    for x, p, m in zip(q.astype(np.float64), log_pi, log_prior, strict=True):
        total += np.exp(p) * (x - lambda_ * (p - m) - tau * p)
    return total


def test_golden():
    # Uniform policy and prior: <pi, q> = 3, KL = 0, H = ln 2.
    flat, q = np.zeros(2, np.float32), np.array([4, 2], np.float32)
    uniform = np.log(np.full(2, 0.5, np.float32))
    expected = 1 + 0.5 * (3 + 0.2 * 0.6931472)
    np.testing.assert_allclose(target(1.0, 0.5, q, uniform, uniform), expected, rtol=1e-6)
    np.testing.assert_allclose(without(1.0, 0.5, q, uniform, uniform), 1 + 0.5 * 3, rtol=1e-6)
    np.testing.assert_allclose(direct(flat, uniform, q), -(3 + 0.2 * 0.6931472), rtol=1e-6)
    # A prior of (0.9, 0.1): KL = -ln 2 - (ln 0.9 + ln 0.1) / 2 = 0.5108256.
    prior = np.log(np.array([0.9, 0.1], np.float32))
    expected -= 0.5 * 0.5 * 0.5108256
    np.testing.assert_allclose(target(1.0, 0.5, q, uniform, prior), expected, rtol=1e-6)


@hypothesis.settings(deadline=None)
@hypothesis.given(q=values, actor=values, old=values)
def test_oracle(q, actor, old):
    log_pi, log_prior = log_softmax(actor), log_softmax(old)
    inputs = (0.3, 0.9, q, np.float32(log_pi), np.float32(log_prior))
    for function, temperatures in ((target, BOTH), (without, {"lambda_": 0, "tau": 0})):
        expected = 0.3 + 0.9 * value(q, log_pi, log_prior, **temperatures)
        np.testing.assert_allclose(function(*inputs), expected, atol=3e-5)
    got = direct(actor, np.float32(log_prior), q)
    np.testing.assert_allclose(got, -value(q, log_pi, log_prior, **BOTH), atol=3e-5)
    best, _ = closed_form(q, log_prior, **BOTH)
    expected = np.sum(np.exp(best) * (best - log_pi))
    np.testing.assert_allclose(
        indirect(actor, np.float32(log_prior), q), expected, rtol=1e-4, atol=3e-5
    )


@hypothesis.settings(deadline=None)
@hypothesis.given(q=values, old=values)
def test_both_losses_rest_at_the_closed_form(q, old):
    log_prior = log_softmax(old)
    best, most = closed_form(q, log_prior, **BOTH)
    inputs = (np.float32(best), np.float32(log_prior), q)
    for slope in slopes:
        np.testing.assert_allclose(slope(*inputs), np.zeros(3), atol=1e-5)
        bent = np.float32(best + np.array([0.5, 0, -0.5]))
        moved = np.abs(slope(bent, *inputs[1:])).max()
        assert moved > 1e-5 or np.exp(best).max() > 0.999
    np.testing.assert_allclose(direct(*inputs), -most, atol=2e-5)
    np.testing.assert_allclose(indirect(*inputs), 0, atol=2e-6)


@hypothesis.settings(deadline=None)
@hypothesis.given(q=values, actor=values, old=values)
def test_the_direct_loss_is_a_divergence_the_other_way_around(q, actor, old):
    log_pi, log_prior = log_softmax(actor), log_softmax(old)
    best, most = closed_form(q, log_prior, **BOTH)
    reverse = np.sum(np.exp(log_pi) * (log_pi - best))
    got = direct(actor, np.float32(log_prior), q) + most
    np.testing.assert_allclose(got, 0.7 * reverse, rtol=1e-4, atol=3e-5)


@hypothesis.settings(deadline=None)
@hypothesis.given(q=values, old=values)
def test_limits_are_soft_dqn_and_dqn(q, old):
    log_prior = np.float32(log_softmax(old))
    values, action, r_t, discount_t = map(jnp.asarray, (q, 0, 0.3, 0.9))
    # lambda = 0: the closed form is softmax(q / tau), and the target that of M-DQN of alpha 0.
    log_pi = np.float32(log_softmax(np.float64(q) / 0.2))
    expected = munchausen.munchausen_target(
        values, action, r_t, discount_t, values, tau=0.2, alpha=0.0, l_0=-1.0
    )
    np.testing.assert_allclose(soft(0.3, 0.9, q, log_pi, log_prior), expected, atol=2e-5)
    # Both 0 and a greedy actor: DQN.
    greedy = np.where(np.arange(3) == q.argmax(), 0, -np.inf).astype(np.float32)
    expected = dqn.dqn_target(values, action, r_t, discount_t, values)
    np.testing.assert_allclose(without(0.3, 0.9, q, greedy, log_prior), expected, atol=1e-6)


@pytest.mark.parametrize(
    "temperatures",
    [
        (0.027, 0.003),
        (0.0, 0.0),
        pytest.param((0.0, 0.003), marks=pytest.mark.slow),
        pytest.param((0.027, 0.0), marks=pytest.mark.slow),
    ],
)
def test_gradients_are_finite_where_policies_underflow(temperatures):
    q = np.array([1e3, 0, -1e3], np.float32)
    for actor in (np.array([-300, 300, 0], np.float32), np.zeros(3, np.float32)):
        for function in (md_dqn.direct_loss, md_dqn.indirect_loss):
            slope = jax.grad(
                functools.partial(function, lambda_=temperatures[0], tau=temperatures[1])
            )
            log_prior = jax.nn.log_softmax(jnp.asarray(actor[::-1].copy()))
            assert np.all(np.isfinite(slope(jnp.asarray(actor), log_prior, jnp.asarray(q))))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kl_temperature": -1.0}, "kl_temperature must be >= 0, got -1.0"),
        ({"entropy_temperature": -1.0}, "entropy_temperature must be >= 0, got -1.0"),
        ({"greedy": "both"}, "greedy must be direct or indirect, got both"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        md_dqn.Config(**fields)


def test_the_defaults_are_munchausens_in_these_terms():
    ours, theirs = md_dqn.Config(), munchausen.Config()
    alpha, tau = theirs.log_policy_scale, theirs.temperature
    np.testing.assert_allclose(ours.kl_temperature, alpha * tau)
    np.testing.assert_allclose(ours.entropy_temperature, (1 - alpha) * tau)
