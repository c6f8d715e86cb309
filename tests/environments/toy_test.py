"""Tests of environments/toy.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import types
from kullback.environments import toy


def play(environment: types.Environment, actions: np.ndarray, seed: int = 0) -> types.TimeStep:
    """Returns the timesteps after each of the actions [T, B], stacked: [T, B, ...]."""
    state, _ = environment.reset(jax.random.key(seed))
    return jax.lax.scan(environment.step, state, jnp.asarray(actions, jnp.int32))[1]


def test_chain_by_hand():
    right, left = toy.RIGHT, toy.LEFT
    environment = toy.chain(1, length=3)
    _, first = environment.reset(jax.random.key(0))
    np.testing.assert_array_equal(first.observation, [[1, 0, 0]])
    np.testing.assert_array_equal(first.step_type, [types.FIRST])
    # 0 -> 0 (left stays) -> 1 -> 0 -> 1 -> 2 -> past the end, hence 0 -> 1.
    actions = np.array([left, right, left, right, right, right, right])[:, None]
    t = play(environment, actions)
    np.testing.assert_array_equal(t.observation[:, 0], np.eye(3)[[0, 1, 0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(t.reward[:, 0], [0, 0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(t.discount[:, 0], [1, 1, 1, 1, 1, 0, 1])
    np.testing.assert_array_equal(t.step_type[:, 0], np.array([1, 1, 1, 1, 1, 2, 1]))
    np.testing.assert_array_equal(t.next_observation[5, 0], [0, 0, 0])
    others = [0, 1, 2, 3, 4, 6]
    for i in others:
        np.testing.assert_array_equal(t.next_observation[i], t.observation[i])


def test_chain_is_cut():
    t = play(toy.chain(2, length=9, max_episode_steps=3), np.ones((7, 2)))
    np.testing.assert_array_equal(t.last(), np.array([[0, 0, 1, 0, 0, 1, 0]]).T.repeat(2, 1))
    np.testing.assert_array_equal(t.discount, np.ones((7, 2)))
    np.testing.assert_array_equal(np.argmax(t.next_observation[2], -1), [3, 3])
    np.testing.assert_array_equal(np.argmax(t.observation[2], -1), [0, 0])


@pytest.mark.parametrize("limit, discount, reward", [(200, 0, 1), (2, 1, 0)])
def test_chain_without_reset_stays_finished(limit: int, discount: int, reward: int):
    environment = toy.chain(2, length=3, max_episode_steps=limit, auto_reset=False)
    assert not environment.auto_reset
    actions = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [1, 1]])
    t = play(environment, actions)
    end = 2 if limit == 200 else 1
    np.testing.assert_array_equal(t.last()[:, 0], np.arange(5) >= end)
    np.testing.assert_array_equal(t.discount[end:, 0], [discount] * (5 - end))
    assert t.reward[end, 0] == reward and np.sum(t.reward[:, 0]) == reward
    np.testing.assert_array_equal(t.observation, t.next_observation)
    for i in range(end, 5):
        np.testing.assert_array_equal(t.observation[i, 0], t.observation[end, 0])
    if limit == 200:  # The other row is not finished, and goes on.
        np.testing.assert_array_equal(np.argmax(t.observation[:, 1], -1), [0, 0, 0, 1, 2])
        assert not np.any(t.last()[:, 1])


def test_slip_by_its_frequency():
    # From place 0 a step right fails with the probability of a slip.
    t = play(toy.chain(4096, length=3, slip=0.2), np.ones((1, 4096)))
    slipped = np.mean(np.argmax(t.observation[0], -1) == 0)
    assert abs(slipped - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 4096)


def test_a_seed_decides_and_rows_differ():
    environment = toy.chain(4, length=9, slip=0.4)
    a, b, c = (play(environment, np.ones((30, 4)), seed).observation for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c)
    assert np.any(a[:, 0] != a[:, 1])


def test_optimal_values_without_slip_are_powers_of_the_discount():
    q = toy.optimal_values(3, discount=0.5)
    # v = (1/4, 1/2, 1); left from 0 stays there.
    np.testing.assert_allclose(q, [[0.125, 0.25], [0.125, 0.5], [0.25, 1.0]], rtol=1e-12)


@pytest.mark.parametrize("slip", [0.0, 0.1, 0.45])
def test_optimal_values_solve_the_optimality_equation_of_the_environment(slip: float):
    """Iterates values over the transitions of `step`, weighted by their probabilities."""
    length, discount = 5, 0.9
    environment = toy.chain(1, length=length)
    state, _ = environment.reset(jax.random.key(0))
    q = np.zeros((length, 2))
    moves = {}
    for s in range(length):
        for a in range(2):
            place = state._replace(position=jnp.full(1, s, jnp.int32))
            _, t = environment.step(place, jnp.full(1, a, jnp.int32))
            following = int(np.argmax(t.next_observation[0]))
            moves[s, a] = float(t.reward[0]), float(t.discount[0]), following
    for _ in range(600):
        v = q.max(-1)
        backup = {key: r + discount * d * v[s] for key, (r, d, s) in moves.items()}
        q = np.array(
            [
                [(1 - slip) * backup[s, a] + slip * backup[s, 1 - a] for a in range(2)]
                for s in range(length)
            ]
        )
    np.testing.assert_allclose(toy.optimal_values(length, slip=slip, discount=discount), q)


def test_jit_and_vmap_over_seeds():
    environment = toy.chain(3, length=4, slip=0.3)
    actions = jnp.ones((20, 3), jnp.int32)
    together = jax.jit(
        jax.vmap(lambda key: jax.lax.scan(environment.step, environment.reset(key)[0], actions)[1])
    )(jax.random.split(jax.random.key(0)))
    for i, key in enumerate(jax.random.split(jax.random.key(0))):
        state, _ = environment.reset(key)
        for step, action in enumerate(actions):
            state, alone = environment.step(state, action)
            for x, y in zip(together, alone, strict=True):
                np.testing.assert_array_equal(x[i, step], y)


def test_picture():
    render = toy.chain(1, length=5).render
    assert render is not None
    picture = render(np.eye(5)[2])
    assert picture.shape == (16, 80, 3) and picture.dtype == np.uint8
    assert picture[0, 40, 0] > picture[0, 0, 0]


@pytest.mark.parametrize("flags", [{"length": 0}, {"slip": 0.5}, {"max_episode_steps": 0}])
def test_refuses(flags: dict):
    with pytest.raises(ValueError, match="got"):
        toy.chain(1, **flags)
