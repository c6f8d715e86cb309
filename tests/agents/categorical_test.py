"""Tests of agents/categorical.py, c51.py and rainbow.py."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import strategies as st

from kullback.agents import c51, categorical, distributional, dqn, rainbow
from kullback.core import heads, networks, types

SPEC = types.Spec(shape=(3,), dtype=np.float32, num_actions=4)
ATOMS = categorical.Atoms(num_atoms=5, v_min=-2.0, v_max=2.0)  # At -2, -1, 0, 1, 2.
Z = np.linspace(-2, 2, 5)
target = jax.jit(categorical.categorical_target)
peer = jax.jit(rlax.categorical_double_q_learning)
cross_entropy = jax.jit(categorical.cross_entropy)
all_logits = hnp.arrays(
    np.float32, (3, 5), elements=st.floats(-5, 5, width=32, allow_subnormal=False)
)


def softmax(logits):
    e = np.exp(np.float64(logits) - np.max(logits, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def project(values, masses):
    """Projects as the definition does: a loop splits each mass between the two nearest atoms."""
    projected = np.zeros(5)
    for value, mass in zip(values, masses, strict=True):
        place = (np.clip(value, -2, 2) + 2) / 1.0
        low = int(min(np.floor(place), 3))
        projected[low] += mass * (1 - (place - low))
        projected[low + 1] += mass * (place - low)
    return projected


def transitions(seed: int = 0, size: int = 8) -> types.Transition:
    rng = np.random.default_rng(seed)
    return types.Transition(
        rng.normal(size=(size, 3)).astype(np.float32),
        rng.integers(0, 4, size).astype(np.int32),
        rng.normal(size=size).astype(np.float32),
        np.float32(0.9) * rng.integers(0, 2, size).astype(np.float32),
        rng.normal(size=(size, 3)).astype(np.float32),
    )


def batch_of(t: types.Transition, weights=None) -> types.Batch:
    ones = np.ones(len(t.action), np.float32)
    return types.Batch(t, ones.astype(np.int32), ones, ones if weights is None else weights)


def small(**fields) -> distributional.Config:
    return distributional.Config(torso="mlp_small", learning_rate=1e-2, **fields)


def test_golden():
    # All mass of the chosen action 1 at z = 2: 0.25 + 0.5 * 2 = 1.25, a quarter of the way from 1
    # to 2. Of an episode's end, 0.25 itself; beyond the last atom, all on that.
    logits = np.zeros((2, 5), np.float32)
    logits[1] = [-99, -99, -99, -99, 99]
    q, z = np.array([0, 1], np.float32), Z.astype(np.float32)
    np.testing.assert_allclose(target(logits, q, 0.25, 0.5, z), [0, 0, 0, 0.75, 0.25], atol=1e-6)
    np.testing.assert_allclose(target(logits, q, 0.25, 0.0, z), [0, 0, 0.75, 0.25, 0], atol=1e-6)
    np.testing.assert_allclose(target(logits, q, 1.0, 0.0, z), [0, 0, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(target(logits, q, 7.0, 0.9, z), [0, 0, 0, 0, 1], atol=1e-6)


# rlax's own cross-entropy says that it will go.
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@hypothesis.settings(deadline=None)
@hypothesis.given(
    logits_tm1=all_logits,
    logits_t=all_logits,
    reward=st.floats(-4, 4, width=32, allow_subnormal=False),
    discount=st.sampled_from([0.0, 0.5, 0.99]),
)
def test_target_and_loss_are_those_of_the_definition_and_of_rlax(
    logits_tm1, logits_t, reward, discount
):
    q = softmax(logits_t) @ Z
    got = target(logits_t, q.astype(np.float32), reward, discount, Z.astype(np.float32))
    p = softmax(logits_t)[q.astype(np.float32).argmax()]
    np.testing.assert_allclose(got, project(reward + discount * Z, p), atol=1e-5)
    np.testing.assert_allclose(np.sum(got), 1, rtol=1e-5)
    z = Z.astype(np.float32)
    theirs = peer(z, logits_tm1, 2, reward, discount, z, logits_t, q.astype(np.float32))
    np.testing.assert_allclose(cross_entropy(got, logits_tm1[2]), theirs, rtol=1e-4)
    expected = -np.sum(project(reward + discount * Z, p) * np.log(softmax(logits_tm1[2])))
    np.testing.assert_allclose(theirs, expected, rtol=1e-4, atol=1e-5)


@hypothesis.settings(deadline=None)
@hypothesis.given(logits_t=all_logits, reward=st.floats(-1, 1, width=32, allow_subnormal=False))
def test_where_nothing_is_clipped_the_mean_of_the_target_is_the_target_of_dqn(logits_t, reward):
    q = (softmax(logits_t) @ Z).astype(np.float32)
    masses = target(logits_t, q, reward, 0.5, Z.astype(np.float32))
    expected = dqn.dqn_target(jnp.asarray(q), jnp.asarray(0), reward, 0.5, jnp.asarray(q))  # pyright: ignore
    np.testing.assert_allclose(np.asarray(masses) @ Z, expected, atol=1e-5)


def test_divergence_is_the_cross_entropy_less_the_entropy_and_none_of_equal_masses():
    logits = np.array([0.5, -1.0, 2.0, 0.0, 0.1], np.float32)
    masses = np.array([0.5, 0.0, 0.25, 0.25, 0.0], np.float32)
    entropy = -(0.5 * np.log(0.5) + 0.5 * np.log(0.25))
    got = categorical.divergence(jnp.asarray(masses), jnp.asarray(logits))
    np.testing.assert_allclose(got, cross_entropy(masses, logits) - entropy, rtol=1e-5)
    same = softmax(logits).astype(np.float32)
    np.testing.assert_allclose(
        categorical.divergence(jnp.asarray(same), jnp.asarray(logits)), 0, atol=1e-6
    )


@pytest.mark.parametrize(
    "double",
    [pytest.param(False, id="single", marks=pytest.mark.slow), pytest.param(True, id="double")],
)
def test_loss_and_priorities_are_those_of_the_definition(double):
    config = rainbow.Config(atoms=ATOMS, hidden=0, double=double, learning=small())
    agent = rainbow.make(None, SPEC, config)
    network = heads.categorical(networks.torso("mlp_small", SPEC), 4, 5)
    state = agent.learner.init(jax.random.key(0))
    old = network.init(jax.random.key(1), SPEC.zeros())
    state = state._replace(targets={"periodic": old})
    t, weights = transitions(), np.linspace(0, 2, 8).astype(np.float32)

    key = jax.random.key(0)  # Nothing is random in this network.
    p = softmax(network.apply(state.params, key, t.observation))[np.arange(8), t.action]
    p_t = softmax(network.apply(old, key, t.next_observation))
    online_t = softmax(network.apply(state.params, key, t.next_observation))
    chosen = ((online_t if double else p_t) @ Z).argmax(-1)
    assert np.any((online_t @ Z).argmax(-1) != (p_t @ Z).argmax(-1))
    losses = [
        -np.sum(project(t.reward[i] + t.discount[i] * Z, p_t[i, chosen[i]]) * np.log(p[i]))
        for i in range(8)
    ]
    after, feedback = jax.jit(agent.learner.step)(state, batch_of(t, weights), types.NO_CONSTANTS)
    np.testing.assert_allclose(feedback.metrics["loss"], np.mean(weights * losses), rtol=1e-4)
    assert feedback.priorities is not None
    np.testing.assert_allclose(feedback.priorities, losses, rtol=1e-4)
    np.testing.assert_allclose(feedback.metrics["mean_q"], np.mean(p @ Z), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, after.targets["periodic"], old)


def test_rainbow_without_its_parts_is_c51_to_the_bit():
    learning = small()
    ours = c51.make(None, SPEC, c51.Config(atoms=ATOMS, learning=learning))
    config = rainbow.Config(atoms=ATOMS, hidden=0, learning=learning)
    theirs = rainbow.make(None, SPEC, config)
    states = [agent.learner.init(jax.random.key(3)) for agent in (ours, theirs)]
    steps = [jax.jit(agent.learner.step) for agent in (ours, theirs)]
    for i in range(3):
        batch = batch_of(transitions(i))
        states = [
            step(state, batch, types.NO_CONSTANTS)[0]
            for step, state in zip(steps, states, strict=True)
        ]
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)


def test_what_a_prioritised_replay_draws_is_weighted_by_importance():
    preset = rainbow.presets("toy")
    assert preset.learning.replay.priority_exponent == 0.5
    agent = rainbow.make(None, SPEC, preset)
    state = agent.learner.init(jax.random.key(0))
    probabilities = np.array([4, 1, 1, 1, 1, 1, 1, 1], np.float32) / 11
    batch = batch_of(transitions())._replace(probabilities=probabilities)
    _, feedback = jax.jit(agent.learner.step)(state, batch, types.NO_CONSTANTS)
    weights = np.array([0.5, 1, 1, 1, 1, 1, 1, 1])  # (1/11 over 4/11) to the power of 1/2.
    assert feedback.priorities is not None
    expected = np.mean(weights * np.asarray(feedback.priorities))
    np.testing.assert_allclose(feedback.metrics["loss"], expected, rtol=1e-5)


FULL = rainbow.full(dataclasses.replace(rainbow.presets("toy"), hidden=8))


@functools.cache
def full() -> tuple[types.Agent, types.LearnerState, Callable[..., Any]]:
    """Returns the full Rainbow, its first state on the host, and how it acts as a program."""
    agent = rainbow.make(None, SPEC, FULL)
    state = jax.jit(agent.learner.init)(jax.random.key(0))
    state = state._replace(params=jax.tree.map(np.asarray, state.params))
    return agent, state, jax.jit(agent.policy.step)


@pytest.mark.slow
def test_the_full_rainbow_draws_noise_to_act_and_to_learn():
    assert FULL.dueling and FULL.double and FULL.noise == 0.5
    assert FULL.learning.replay.importance_exponent_final == 1.0
    agent, state, step = full()
    acting = agent.actor_params(state, np.asarray(0), False, types.NO_CONSTANTS)
    assert acting["epsilon"] == 0
    observation = np.zeros((32, 3), np.float32)
    actions = [np.asarray(step(acting, observation, None, jax.random.key(k))[0]) for k in range(9)]
    assert all(len(np.unique(a)) == 1 for a in actions)  # One draw for all rows,
    assert len(np.unique(actions)) > 1  # and another at the next call.
    learn = jax.jit(agent.learner.step)
    losses = [
        learn(state._replace(key=jax.random.key(k)), batch_of(transitions()), None) for k in (1, 2)
    ]
    assert losses[0][1].metrics["loss"] != losses[1][1].metrics["loss"]
    after = jax.tree.map(np.asarray, losses[0][0].params)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after, state.params)
    assert min(jax.tree.leaves(moved)) > 0  # Noise's scales are learnt too.


@pytest.mark.slow
def test_the_full_rainbow_is_evaluated_by_the_means_of_its_noisy_layers():
    agent, state, step = full()
    observation = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)

    def actions(evaluate: bool) -> np.ndarray:
        acting = agent.actor_params(state, np.asarray(0), evaluate, types.NO_CONSTANTS)
        keys = map(jax.random.key, range(5))
        return np.stack([step(acting, observation, None, key)[0] for key in keys])

    assert np.all(actions(True) == actions(True)[0])
    assert np.any(actions(False) != actions(False)[0])
    means = agent.actor_params(state, np.asarray(0), True, types.NO_CONSTANTS)["params"]
    zeroed = {name for name in means if not np.any(means[name]["w"])}
    # A hidden and a last layer in each of two streams; nothing else is left out.
    assert zeroed == {"noise", "noise_1", "noise_2", "noise_3"} <= set(state.params)
    assert all(np.all(state.params[name]["w"] != 0) for name in zeroed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: categorical.Atoms(num_atoms=1), "num_atoms must be >= 2, got 1"),
        (lambda: categorical.Atoms(v_min=10.0), "v_min must be < v_max, got 10.0 and 10.0"),
        (lambda: rainbow.Config(noise=-0.5), "noise must be >= 0"),
        (lambda: rainbow.Config(hidden=-1), "hidden must be >= 0"),
        (lambda: distributional.Config(learning_rate=0.0), "learning_rate must be > 0"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
