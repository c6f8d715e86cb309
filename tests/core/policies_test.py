"""Tests of core/policies.py."""

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import policies

Q = jnp.array([[0.0, 2.0, 1.0], [5.0, 5.0, -1.0]])


def values(params, observation):
    return params["scale"] * observation


def frequencies(policy, acting, draws=4_000):
    def step(key):
        action, _, extras = policy.step(acting, Q, None, key)
        return action, extras["log_probability"]

    actions, log_probability = jax.jit(jax.vmap(step))(jax.random.split(jax.random.key(0), draws))
    assert actions.dtype == jnp.int32
    counts = np.stack([(np.asarray(actions) == a).mean(0) for a in range(3)], axis=1)
    given = np.stack(
        [
            np.exp(log_probability)[np.asarray(actions[:, b]) == a, b].mean() if counts[b, a] else 0
            for b in range(2)
            for a in range(3)
        ]
    ).reshape(2, 3)
    return counts, given


def test_epsilon_greedy_draws_as_its_definition_says():
    policy = policies.epsilon_greedy(values)
    acting = {"params": {"scale": jnp.float32(1)}, "epsilon": jnp.float32(0.3)}
    counts, given = frequencies(policy, acting)
    # 0.7 on the best, shared by ties, and 0.1 on each.
    expected = [[0.1, 0.8, 0.1], [0.45, 0.45, 0.1]]
    np.testing.assert_allclose(counts, expected, atol=0.03)
    np.testing.assert_allclose(given, expected, atol=1e-5)
    greedy, _ = frequencies(policy, {**acting, "epsilon": jnp.float32(0)})
    np.testing.assert_allclose(greedy[0], [0, 1, 0])


def test_softmax_draws_as_its_definition_says():
    policy = policies.softmax(values)
    acting = {"params": {"scale": jnp.float32(1)}, "temperature": jnp.float32(0.5)}
    counts, given = frequencies(policy, acting)
    z = np.exp(np.asarray(Q, np.float64) / 0.5)
    expected = z / z.sum(1, keepdims=True)
    np.testing.assert_allclose(counts, expected, atol=0.03)
    drawn = counts > 0  # The last action of row 1 has probability 3e-6.
    np.testing.assert_allclose(given[drawn], expected[drawn], rtol=1e-4)


def test_epsilon_softmax_draws_as_its_definition_says():
    policy = policies.epsilon_softmax(values)
    acting = {
        "params": {"scale": jnp.float32(1)},
        "temperature": jnp.float32(0.5),
        "epsilon": jnp.float32(0.3),
    }
    counts, given = frequencies(policy, acting)
    z = np.exp(np.asarray(Q, np.float64) / 0.5)
    expected = 0.7 * z / z.sum(1, keepdims=True) + 0.1
    np.testing.assert_allclose(counts, expected, atol=0.03)
    np.testing.assert_allclose(given, expected, rtol=1e-5)
    # Without exploration it is the softmax, and a low temperature is greedy.
    cold = {**acting, "temperature": jnp.float32(1e-6), "epsilon": jnp.float32(0)}
    counts, _ = frequencies(policy, cold)
    np.testing.assert_allclose(counts, [[0, 1, 0], [0.5, 0.5, 0]], atol=0.03)


def test_values_are_kept_beside_the_action_that_they_give():
    plain, keeping = (
        policies.epsilon_greedy(values),
        policies.with_values(policies.epsilon_greedy, values),
    )
    acting = {"params": {"scale": jnp.float32(2)}, "epsilon": jnp.float32(0.3)}
    key = jax.random.key(0)
    action, _, extras = plain.step(acting, Q, None, key)
    same, _, more = keeping.step(acting, Q, None, key)
    np.testing.assert_array_equal(action, same)
    np.testing.assert_array_equal(more.pop("action_values"), 2 * Q)
    np.testing.assert_array_equal(more["log_probability"], extras["log_probability"])
