"""Tests of agents/momentum_dqn.py."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.agents import dqn, momentum_dqn
from kullback.core import types

target = jax.jit(momentum_dqn.momentum_target)
loss = jax.jit(momentum_dqn.averaging_loss)
slope = jax.jit(jax.grad(lambda *arguments: momentum_dqn.averaging_loss(*arguments).sum()))
plain = jax.jit(dqn.dqn_target)
values = hnp.arrays(np.float32, (3,), elements=st.floats(-9, 9, width=32, allow_subnormal=False))


def test_golden():
    # h chooses action 1, whose value is 5, though the best is 7; its own 9 is not bootstrapped.
    q, h = np.array([3, 5, 7], np.float32), np.array([1, 9, 2], np.float32)
    assert target(1.0, 0.5, q, h) == 1 + 0.5 * 5
    # The averages are 0.75 * 1 + 0.25 * 3 = 1.5, 0.75 * 9 + 0.25 * 5 = 8 and 0.75 * 2 + 0.25 * 7
    # = 3.25; the errors to 3 are 1.5, 5 and 0.25, two of them beyond Huber's limit.
    losses = loss(np.full(3, 3, np.float32), h, q, 0.75)
    np.testing.assert_allclose(losses, [1.5 - 0.5, 5 - 0.5, 0.25**2 / 2])


@hypothesis.settings(deadline=None)
@hypothesis.given(
    q=values,
    h=values,
    old=values,
    b=st.floats(0, 0.875, width=32, allow_subnormal=False),
)
def test_oracle(q, h, old, b):
    expected = 0.3 + 0.9 * np.float64(q[np.flatnonzero(old == old.max())[0]])
    np.testing.assert_allclose(target(0.3, 0.9, q, old), expected, atol=1e-5)
    error = np.abs(b * np.float64(old) + (1 - b) * np.float64(q) - h)
    huber = np.where(error <= 1, 0.5 * error**2, error - 0.5)
    np.testing.assert_allclose(loss(h, old, q, b), huber, rtol=1e-4, atol=1e-5)


@hypothesis.settings(deadline=None)
@hypothesis.given(q=values)
def test_without_momentum_it_is_dqn(q):
    assert momentum_dqn.momentum_weight(3.0, 0.0, 1.0) == 0
    np.testing.assert_allclose(loss(q, np.zeros(3, np.float32), q, 0.0), 0)  # h is q, so
    np.testing.assert_allclose(target(0.7, 0.9, q, q), plain(q, 0, 0.7, 0.9, q), atol=1e-6)


def test_the_momentum_rises_to_its_maximum_or_is_fixed():
    weight = functools.partial(momentum_dqn.momentum_weight, b_max=0.99)
    got = [float(weight(float(n), n_0=1.0)) for n in (0, 1, 2, 98, 99, 10**6)]
    np.testing.assert_allclose(got, [0, 1 / 2, 2 / 3, 98 / 99, 0.99, 0.99], rtol=1e-6)
    np.testing.assert_allclose(weight(30.0, n_0=10.0), 1 - 1 / (1 + 30 / 10), rtol=1e-6)
    assert weight(0.0, n_0=0.0) == np.float32(0.99)


def test_exact_updates_average_the_past():
    """Without the first network's values, which are as they were drawn."""
    h, past = np.array([0.4, -0.2, 0.1], np.float32), []
    rng = np.random.default_rng(0)
    for n in range(20):
        b = momentum_dqn.momentum_weight(float(n), 0.99, 1.0)
        q, old = rng.uniform(0, 0.5, 3).astype(np.float32), h
        past.append(np.float64(q))
        h = h - np.asarray(slope(h, old, q, b))
        np.testing.assert_allclose(h, np.mean(past, 0), atol=1e-6)


def test_it_acts_greedily_on_the_average_which_starts_as_the_values():
    spec = types.Spec(shape=(3,), dtype=np.float32, num_actions=4)
    agent = momentum_dqn.make(lambda x: x, spec)
    state = agent.learner.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, state.params["q"], state.params["actor"])
    state.params["actor"] = agent.learner.init(jax.random.key(1)).params["actor"]
    acting = agent.actor_params(state, np.asarray(0), True, types.NO_CONSTANTS)
    assert set(acting) == {"params", "epsilon"}
    acting["epsilon"] = np.float32(0)
    x = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    action, _, _ = jax.jit(agent.policy.step)(acting, x, None, jax.random.key(1))
    best = {
        name: (x @ np.asarray(p["linear"]["w"]) + np.asarray(p["linear"]["b"])).argmax(1)
        for name, p in state.params.items()
    }
    np.testing.assert_array_equal(action, best["actor"])
    assert np.any(best["actor"] != best["q"])


@pytest.mark.parametrize(("averaged", "moved"), [("all", [1, 1, 1, 1]), ("taken", [0, 0, 1, 0])])
def test_the_average_is_fitted_at_all_actions_or_at_the_one_taken(averaged, moved):
    spec = types.Spec(shape=(3,), dtype=np.float32, num_actions=4)
    agent = momentum_dqn.make(lambda x: x, spec, momentum_dqn.Config(averaged_actions=averaged))
    state = agent.learner.init(jax.random.key(0))
    state.params["actor"] = jax.tree.map(lambda x: x + 1.0, state.params["actor"])
    x = np.ones((2, 3), np.float32)
    numbers = np.zeros(2, np.float32)
    data = types.Transition(x, np.array([2, 2]), numbers, numbers, x)
    batch = types.Batch(data, np.arange(2), numbers + 0.5, numbers + 1)
    after, _ = jax.jit(agent.learner.step)(state, batch, types.NO_CONSTANTS)
    change = after.params["actor"]["linear"]["b"] - state.params["actor"]["linear"]["b"]
    np.testing.assert_array_equal(np.asarray(change) != 0, np.array(moved) == 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"averaged_actions": "some"}, "must be all or taken, got some"),
        ({"momentum_max": 1.0}, "momentum_max must lie in"),
        ({"momentum_copies": -1.0}, "momentum_copies must be >= 0, got -1.0"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        momentum_dqn.Config(**fields)
