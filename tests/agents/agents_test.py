"""Tests of agents/__init__.py: every algorithm of the registry learns and goes on."""

import functools

import jax
import numpy as np
import pytest

from kullback import agents
from kullback.core import checkpoints, compiled, loops, online, replay, rollout, trees, types
from kullback.environments import toy

SLIP = 0.1
SEEDS = tuple(range(8))
PLACES = np.eye(8, dtype=np.float32)  # All observations.
OPTIMAL = toy.optimal_values(8, slip=SLIP)  # [S, A].


@functools.cache
def agent(name: str) -> types.Agent:
    entry = agents.AGENTS[name]
    return entry.make(None, toy.chain(1).spec, entry.presets("toy"))


def chain(num_envs: int) -> types.Environment:
    return toy.chain(num_envs, slip=SLIP)


def loop_of(name: str, seeds: tuple[int, ...]) -> loops.Loop:
    return compiled.make(agent(name), chain(4), seeds, chain)


def to_end(loop: loops.Loop, state: compiled.RunState, until: int) -> compiled.RunState:
    while loop.steps(state) < until:
        state = loop.advance(state, until)
    return state


def value_of(policy: np.ndarray) -> np.ndarray:
    """Returns exact values, [S], of a deterministic policy, [S] actions, on the chain."""
    # As toy.optimal_values: gamma 0.99, a step goes the other way with probability SLIP.
    right = np.where(policy == toy.RIGHT, 1 - SLIP, SLIP)
    transition = np.diag(right[:-1], 1) + np.diag((1 - right)[1:], -1)
    transition[0, 0] = 1 - right[0]
    reward = right * np.eye(8)[-1]
    return np.linalg.solve(np.eye(8) - 0.99 * transition, reward)


def test_the_optimal_policy_has_the_optimal_values():
    np.testing.assert_allclose(value_of(OPTIMAL.argmax(1)), OPTIMAL.max(1))
    assert np.all(value_of(1 - OPTIMAL.argmax(1)) < OPTIMAL.max(1))


@functools.cache
def transitions() -> types.Batch:
    """Makes a batch of the chain's transitions under random actions: every agent learns from it."""
    spec = toy.chain(1).spec
    config = replay.Config(capacity=64, min_replay_size=32, reward_clip=None)
    store, environment = replay.device(spec, config, 1), chain(1)
    contents, (state, timestep) = store.init(), environment.reset(jax.random.key(0))
    step, add = jax.jit(environment.step), jax.jit(store.add)
    for action in np.random.default_rng(0).integers(0, 2, (64, 1), np.int32):
        observation = timestep.observation
        state, timestep = step(state, action)
        contents = add(contents, observation, action, timestep)
    return store.sample(contents, jax.random.key(1))


@functools.cache
def labelled(name: str) -> types.Batch:
    """Makes a batch of an agent without replay: what it has just done, labelled."""
    begun, environment, key = agent(name), chain(4), jax.random.key(0)
    state = begun.learner.init(key)
    acting = begun.actor_params(state, np.asarray(0, np.int32), False, types.NO_CONSTANTS)

    @jax.jit
    def items():
        actor = rollout.start(begun.policy, environment, acting, key)
        trajectory, _ = rollout.rollout(begun.policy, environment, acting, actor, key, 8)
        return begun.experience.label(acting, trajectory)

    return types.Batch.of(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), items()))


@pytest.mark.parametrize("name", sorted(agents.AGENTS))
def test_every_agent_learns_from_a_batch_goes_on_from_a_checkpoint_and_acts(name: str, tmp_path):
    learner = agent(name).learner
    step = jax.jit(learner.step)
    begun = state = learner.init(jax.random.key(5))
    is_online = isinstance(agent(name).experience, online.Experience)
    batch = labelled(name) if is_online else transitions()
    for _ in range(3):
        state, feedback = step(state, batch, types.NO_CONSTANTS)
        assert np.isfinite(feedback.metrics["loss"])
    assert all(map(differ, jax.tree.leaves(state.params), jax.tree.leaves(begun.params)))
    checkpoints.save(tmp_path, 3, state, {})
    saved, _, _ = checkpoints.restore_latest(
        tmp_path, jax.eval_shape(learner.init, jax.random.key(0))
    )
    given = batch, types.NO_CONSTANTS
    whole, resumed = (step(x, *given)[0] for x in (state, saved))
    assert int(resumed.steps) == 4
    assert not any(map(differ, jax.tree.leaves(whole), jax.tree.leaves(resumed)))
    params = agent(name).actor_params(resumed, np.asarray(0, np.int32), True, types.NO_CONSTANTS)
    action, _, _ = agent(name).policy.step(params, PLACES, None, jax.random.key(0))
    assert action.shape == (8,) and set(np.unique(action)) <= {0, 1}


def differ(array: jax.Array, other: jax.Array) -> bool:
    """Says whether two arrays, or keys, differ in any bit."""
    return not np.array_equal(trees.to_numpy(array), trees.to_numpy(other))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(agents.AGENTS))
def test_every_agent_learns_the_chain(name: str):
    """Eight seeds, 6,000 agent steps: greedily they lose 5% of the largest value on average.

    Some seed may not have seen the reward often enough yet: it is their mean that is judged.
    """
    loop = loop_of(name, SEEDS)
    state = to_end(loop, loop.init(), 6_000)
    step = jax.jit(agent(name).policy.step)
    losses = []
    for k in range(len(SEEDS)):
        learner = compiled.seed_of(state.learner, k, len(SEEDS))
        params = agent(name).actor_params(learner, state.env_steps, True, types.NO_CONSTANTS)
        policy = np.asarray(step(params, PLACES, None, jax.random.key(0))[0])
        losses.append(np.mean(OPTIMAL.max(1) - value_of(policy)))
    limit = 0.05 * OPTIMAL.max()
    assert np.mean(losses) <= limit, (
        f"greedy policies of {name} lose {np.round(losses, 3)} of value on the chain, more than "
        f"{limit:.3f} on average: is its equation right, and does presets('toy') of it fit?"
    )
    _, rows = loop.rows(state)
    for row in rows:
        # Masses on atoms cost at least the entropy of their target, of two or three reached ones.
        # An actor's loss may be below 0, and is never 0 while its policy changes.
        loss = row["loss"] - row.get("actor_loss", 0)
        assert loss < (2.3 if name in ("c51", "rainbow") else 0.05)
        assert row["epsilon"] == pytest.approx(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(agents.AGENTS))
def test_every_run_goes_on_from_a_checkpoint_bit_by_bit(name: str, tmp_path):
    first = loop_of(name, (5,))
    state = to_end(first, first.init(), 540)  # Ten updates of agents with replay.
    checkpoints.save(tmp_path, 540, first.snapshot(state), {})
    fresh = loop_of(name, (5,))
    saved, _, _ = checkpoints.restore_latest(tmp_path, fresh.template())
    whole = to_end(first, state, 580)
    resumed = to_end(fresh, fresh.restore(saved), 580)
    is_online = isinstance(agent(name).experience, online.Experience)
    assert is_online or int(resumed.learner.steps) == 20
    assert not any(map(differ, jax.tree.leaves(resumed), jax.tree.leaves(whole)))


def test_a_family_without_presets_is_refused():
    for entry in agents.AGENTS.values():
        with pytest.raises(ValueError, match="no presets for 'custom'; expected atari, minatar"):
            entry.presets("custom")
