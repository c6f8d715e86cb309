"""Tests of agents/q_learning.py: what DQN and M-DQN share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback import agents
from kullback.agents import btr, dqn, munchausen, q_learning
from kullback.core import types

SPEC = types.Spec(shape=(3,), dtype=np.float32, num_actions=4)


def batch(seed: int = 0, size: int = 8, **changes) -> types.Batch:
    rng = np.random.default_rng(seed)
    data = types.Transition(
        observation=rng.normal(size=(size, 3)).astype(np.float32),
        action=rng.integers(0, 4, size).astype(np.int32),
        reward=2 * rng.normal(size=size).astype(np.float32),
        discount=np.float32(0.99) * rng.integers(0, 2, size).astype(np.float32),
        next_observation=rng.normal(size=(size, 3)).astype(np.float32),
    )
    ones = np.ones(size, np.float32)
    fields = {"data": data, "indices": ones.astype(np.int32), "probabilities": ones}
    return types.Batch(**{**fields, "weights": ones, **changes})


def make(name: str, **fields) -> types.Agent:
    learning = q_learning.Config(torso="mlp_small", learning_rate=1e-2, **fields)
    config = {"dqn": dqn.Config, "m-dqn": munchausen.Config}[name](learning=learning)
    return agents.AGENTS[name].make(None, SPEC, config)


@pytest.mark.parametrize("name", ["dqn", "m-dqn"])
def test_only_online_values_move_and_targets_follow_when_they_should(name):
    agent = make(name, target_period=3)
    step = jax.jit(agent.learner.step)
    state = agent.learner.init(jax.random.key(0))
    first = state.params
    for i in range(1, 7):
        before = state
        state, feedback = step(state, batch(i), types.NO_CONSTANTS)
        assert np.isfinite(feedback.metrics["loss"])
        old = before.targets["periodic"]
        expected = state.params if i % 3 == 0 else old
        jax.tree.map(np.testing.assert_array_equal, state.targets["periodic"], expected)
    assert int(state.steps) == 6
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, first)
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize("loss", ["huber", "squared"])
@pytest.mark.parametrize("name", ["dqn", "m-dqn"])
def test_loss_is_the_mean_over_weights_of_the_error_to_the_target(name, loss):
    agent = make(name, loss=loss)
    state = agent.learner.init(jax.random.key(0))
    state = state._replace(params=jax.tree.map(lambda x: x + 0.01, state.params))
    weights = np.linspace(0, 2, 8).astype(np.float32)
    items = batch(weights=weights)
    _, feedback = jax.jit(agent.learner.step)(state, items, types.NO_CONSTANTS)

    def values(params, observation):  # The policy's own network, by acting greedily on it.
        from kullback.core import networks

        network = networks.action_values(networks.torso("mlp_small", SPEC), 4)
        return np.asarray(network.apply(params, observation), np.float64)

    t = items.data
    q = values(state.params, t.observation)[np.arange(8), t.action]
    old, new = (values(state.targets["periodic"], o) for o in (t.observation, t.next_observation))
    if name == "dqn":
        target = t.reward + t.discount * new.max(1)
    else:
        tau, alpha, l_0 = 0.03, 0.9, -1.0
        soft = [tau * np.logaddexp.reduce(x / tau, axis=1) for x in (old, new)]
        bonus = np.clip(old[np.arange(8), t.action] - soft[0], l_0, 0)
        target = t.reward + alpha * bonus + t.discount * soft[1]
    error = np.abs(target - q)
    squared = 0.5 * error**2
    losses = squared if loss == "squared" else np.where(error <= 1, squared, error - 0.5)
    assert np.any(error > 1) and np.any(error < 1)  # Both branches of Huber's.
    np.testing.assert_allclose(feedback.metrics["loss"], np.mean(weights * losses), rtol=1e-4)
    assert feedback.priorities is not None
    np.testing.assert_allclose(feedback.priorities, error, rtol=1e-4)


@pytest.mark.slow
def test_seeds_by_vmap_equal_runs_one_by_one_over_ten_updates():
    agent = make("m-dqn", target_period=4)
    keys = [jax.random.key(seed) for seed in range(3)]
    axes = types.LearnerState(0, 0, 0, None, 0, 0)  # pyright: ignore[reportArgumentType]
    together = jax.jit(jax.vmap(agent.learner.step, in_axes=(axes, None, None), out_axes=(axes, 0)))
    alone = jax.jit(agent.learner.step)
    states = jax.vmap(agent.learner.init, out_axes=axes)(jnp.stack(keys))
    singles = [agent.learner.init(key) for key in keys]
    for i in range(10):
        states, _ = together(states, batch(i), None)
        singles = [alone(single, batch(i), None)[0] for single in singles]
    stacked = jax.tree.map(lambda *x: np.stack(x), *[single.params for single in singles])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), states.params, stacked)


def test_action_gap_is_the_distance_of_the_two_best():
    q = np.array([[1, 4, 2], [5, 5, 0], [-1, -3, -9]], np.float32)
    np.testing.assert_allclose(jax.vmap(q_learning.action_gap)(jnp.asarray(q)), [2, 0, 2])
    assert q_learning.action_gap(jnp.ones(1)) == 0


def test_epsilon_follows_dopamines_schedule():
    config = q_learning.Config(torso="mlp_small")
    agent = dqn.make(None, SPEC, dqn.Config(learning=config))
    state = agent.learner.init(jax.random.key(0))

    def epsilon(step, evaluate=False):
        return float(
            agent.actor_params(state, np.asarray(step), evaluate, types.NO_CONSTANTS)["epsilon"]
        )

    # 1 for 20,000 steps, then 0.01 after 250,000 more; half-way 0.505.
    assert [epsilon(0), epsilon(20_000)] == [1.0, 1.0]
    np.testing.assert_allclose(epsilon(145_000), 0.505, rtol=1e-5)
    np.testing.assert_allclose([epsilon(270_000), epsilon(10**7)], 0.01, rtol=1e-5)
    np.testing.assert_allclose(epsilon(0, evaluate=True), 0.001, rtol=1e-5)


def test_epsilon_may_fall_exponentially_from_the_first_step_and_be_zero_later():
    config = btr.presets("atari").learning
    config = dataclasses.replace(config, torso="mlp_small")
    agent = dqn.make(None, SPEC, dqn.Config(learning=q_learning.Config(**vars(config))))
    state = agent.learner.init(jax.random.key(0))
    steps = np.array([0, 200_000, 2_000_000, 24_999_999, 25_000_000])
    expected = [0.01 + 0.99 * np.exp(-t / 2e6) for t in steps[:-1]] + [0]
    for evaluate, values in ((False, expected), (True, 4 * [0.01] + [0])):
        got = [
            agent.actor_params(state, step, evaluate, types.NO_CONSTANTS)["epsilon"]
            for step in steps
        ]
        np.testing.assert_allclose(got, values, rtol=1e-5)
    np.testing.assert_allclose(expected[:3], [1, 0.9058, 0.3742], atol=1e-4)


def test_gradients_are_clipped_to_their_norm_over_all_parameters():
    norms = []
    for most in (None, 0.125, 1e3):
        agent = make("dqn", max_gradient_norm=most)
        state = agent.learner.init(jax.random.key(0))
        after, _ = jax.jit(agent.learner.step)(state, batch(), types.NO_CONSTANTS)
        moment = optax.tree.get(after.opt_state, "mu")  # After a step a tenth of the gradient.
        leaves = [np.asarray(x).ravel() for x in jax.tree.leaves(moment)]
        norms.append(10 * np.linalg.norm(np.concatenate(leaves)))
    assert norms[0] > 0.25
    np.testing.assert_allclose(norms[1:], [0.125, norms[0]], rtol=1e-5)


def test_every_agent_has_presets_for_every_family():
    for entry in agents.AGENTS.values():
        for family in ("atari", "minatar", "gym", "toy"):
            entry.presets(family)
        with pytest.raises(ValueError, match="no presets for 'chess'"):
            entry.presets("chess")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"adam_epsilon": 0.0}, "adam_epsilon must be > 0"),
        ({"loss": "cubic"}, "loss must be huber or squared"),
        ({"target_period": 0}, "target_period must be >= 1"),
        ({"epsilon": 1.5}, "epsilon must lie in"),
        ({"epsilon_decay_env_steps": -1}, "epsilon_decay_env_steps must be >= 0"),
        ({"epsilon_decay": "cosine"}, "epsilon_decay must be linear or exponential"),
        ({"epsilon_zero_env_steps": -1}, "epsilon_zero_env_steps must be >= 0 or None"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm must be > 0 or None"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        q_learning.Config(**fields)
