"""Tests of agents/politex_dqn.py."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.agents import munchausen, politex_dqn, q_learning
from kullback.core import types

FADING, SUM = {"lambda_": 0.6, "tau": 0.2}, {"lambda_": 0.6, "tau": 0.0}
values = hnp.arrays(np.float32, (3,), elements=st.floats(-5, 5, width=32, allow_subnormal=False))


@functools.cache
def functions(tau: float):
    settings = {"lambda_": 0.6, "tau": tau}
    loss = functools.partial(politex_dqn.averaging_loss, **settings)
    policy = functools.partial(politex_dqn.log_policy, **settings)
    return jax.jit(loss), jax.jit(jax.grad(loss)), jax.jit(policy)


def log_softmax(x):
    x = np.float64(x)
    return x - x.max() - np.log(np.sum(np.exp(x - x.max())))


def test_golden():
    loss, _, policy = functions(0.2)
    h, old, q = (np.array(x, np.float32) for x in ([1, 2], [3, 0], [5, 4]))
    # beta = 0.6 / 0.8 = 0.75: the average is (3.5, 1), the errors 2.5 and -1.
    np.testing.assert_allclose(loss(h, old, q, 3.0), (2.5**2 + 1) / 4, rtol=1e-6)
    # Before the first copy there is no past: (1.25, 1), 0.25 and -1.
    np.testing.assert_allclose(loss(h, old, q, 0.0), (0.25**2 + 1) / 4, rtol=1e-6)
    # softmax(h / 0.2): a difference of 5.
    np.testing.assert_allclose(policy(h, 3.0)[0], -np.log1p(np.exp(5)), rtol=1e-6)
    loss, _, policy = functions(0.0)
    # The mean of four copies: 3/4 and 1/4, so the same; and softmax(4 h / 0.6).
    np.testing.assert_allclose(loss(h, old, q, 3.0), (2.5**2 + 1) / 4, rtol=1e-6)
    np.testing.assert_allclose(policy(h, 3.0)[0], -np.log1p(np.exp(4 / 0.6)), rtol=1e-6)
    for tau in (0.0, 0.2):
        np.testing.assert_allclose(functions(tau)[2](h, -1.0), np.log([0.5, 0.5]), rtol=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.2])
@hypothesis.settings(deadline=None)
@hypothesis.given(h=values, old=values, q=values, copies=st.integers(0, 1000))
def test_oracle(tau, h, old, q, copies):
    loss, _, policy = functions(tau)
    beta = 0.6 / 0.8 if tau else copies / (copies + 1)
    expected = 0.0
    for x, past, new in zip(*map(np.float64, (h, old, q)), strict=True):
        expected += (x - beta * (past if copies else 0) - (1 - beta) * new) ** 2 / 6
    np.testing.assert_allclose(loss(h, old, q, float(copies)), expected, rtol=1e-4, atol=1e-5)
    scale = 1 / tau if tau else (copies + 1) / 0.6
    np.testing.assert_allclose(
        policy(h, float(copies)), log_softmax(np.float64(h) * scale), rtol=1e-5, atol=2e-5
    )


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_exact_updates_average_the_past(tau):
    """Gradient steps of the size that minimises: h is what the loss says it is."""
    _, slope, policy = functions(tau)
    h = np.full(3, 7, np.float32)  # As drawn: of no account.
    past, rng = [], np.random.default_rng(0)
    for k in range(30):
        q = rng.normal(size=3).astype(np.float32)
        past.append(np.float64(q))
        h = h - 3 * np.asarray(slope(h, h, q, float(k)))  # The mean over three actions.
        if tau:
            powers = 0.75 ** np.arange(k, -1.0, -1)
            expected = 0.25 * np.sum(powers[:, None] * past, 0)
        else:
            expected = np.mean(past, 0)
            # Politex: the softmax of the sum over lambda.
            np.testing.assert_allclose(
                policy(h, float(k)), log_softmax(np.sum(past, 0) / 0.6), rtol=1e-4, atol=1e-4
            )
        np.testing.assert_allclose(h, expected, atol=1e-5)


def test_the_mean_of_a_hundred_thousand_copies_keeps_its_digits():
    def body(h, k):
        q = 1 + jnp.stack([jnp.sin(k), jnp.cos(k)])
        beta = politex_dqn.weight_of_past(k, **SUM)
        return beta * h + (1 - beta) * q, None

    ks = np.arange(100_000)
    h, _ = jax.jit(lambda: jax.lax.scan(body, jnp.zeros(2), jnp.asarray(ks, jnp.float32)))()
    expected = 1 + np.stack([np.sin(ks), np.cos(ks)]).mean(1)
    np.testing.assert_allclose(h, expected, atol=5e-5)


@hypothesis.settings(deadline=None)
@hypothesis.given(q=values)
def test_without_a_pull_the_policy_is_that_of_soft_dqn(q):
    settings = {"lambda_": 0.0, "tau": 0.2}
    assert politex_dqn.weight_of_past(5.0, **settings) == 0
    got = politex_dqn.log_policy(jnp.asarray(q), 5.0, **settings)
    expected = munchausen.scaled_log_policy(jnp.asarray(q), 0.2) / 0.2
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_extreme_values_and_counts_lose_nothing():
    h = np.array([1e3 + 0.01, 1e3], np.float32)
    gap = np.float64(h[0]) - np.float64(h[1])
    got = politex_dqn.log_policy(jnp.asarray(h), 1e4, lambda_=100.0, tau=0.0)
    np.testing.assert_allclose(got[0] - got[1], gap * 10_001 / 100, rtol=1e-5)
    slope = jax.grad(lambda h: politex_dqn.log_policy(h, 1e9, **SUM)[1])(jnp.asarray(h))
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_it_acts_at_the_temperature_of_its_policy(tau):
    spec = types.Spec(shape=(3,), dtype=np.float32, num_actions=4)
    config = politex_dqn.Config(
        kl_temperature=0.6,
        entropy_temperature=tau,
        learning=q_learning.Config(target_period=10),
    )
    agent = politex_dqn.make(lambda x: x, spec, config)
    state = agent.learner.init(jax.random.key(0))._replace(steps=jnp.asarray(29))
    acting = agent.actor_params(state, np.asarray(0), True, types.NO_CONSTANTS)
    temperature = acting["temperature"]
    np.testing.assert_allclose(temperature, tau or 0.6 / 3, rtol=1e-6)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    acting["epsilon"] = jnp.zeros(())
    action, _, extras = jax.jit(agent.policy.step)(acting, x, None, jax.random.key(1))
    layer = state.params["actor"]["linear"]
    h = x @ np.asarray(layer["w"]) + np.asarray(layer["b"])
    expected = [
        politex_dqn.log_policy(jnp.asarray(row), 2.0, lambda_=0.6, tau=tau)[a]
        for row, a in zip(h, np.asarray(action), strict=True)
    ]
    np.testing.assert_allclose(extras["log_probability"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kl_temperature": -1.0}, "kl_temperature must be >= 0, got -1.0"),
        ({"kl_temperature": 0.0, "entropy_temperature": 0.0}, "the greedy limit is mo-dqn"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        politex_dqn.Config(**fields)
