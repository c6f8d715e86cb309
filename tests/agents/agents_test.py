"""Tests of agents/__init__.py: every algorithm of the registry learns and goes on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback import agents
from kullback.core import checkpoints, compiled, loops, types
from kullback.environments import toy

SLIP = 0.1
SEEDS = (0, 1, 2)
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
    """Exact values of a deterministic policy, [S] actions, on the chain; [S]."""
    # As toy.optimal_values: gamma 0.99, a step goes the other way with probability SLIP.
    right = np.where(policy == toy.RIGHT, 1 - SLIP, SLIP)
    transition = np.diag(right[:-1], 1) + np.diag((1 - right)[1:], -1)
    transition[0, 0] = 1 - right[0]
    reward = right * np.eye(8)[-1]
    return np.linalg.solve(np.eye(8) - 0.99 * transition, reward)


def test_the_optimal_policy_has_the_optimal_values():
    np.testing.assert_allclose(value_of(OPTIMAL.argmax(1)), OPTIMAL.max(1))
    assert np.all(value_of(1 - OPTIMAL.argmax(1)) < OPTIMAL.max(1))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("dqn", "m-dqn") else pytest.mark.slow)
        for name in sorted(agents.AGENTS)
    ],
)
def test_every_agent_learns_the_optimum_of_the_chain(name: str):
    """Three seeds, 6,000 agent steps, preset "toy"; the greedy policy loses nothing anywhere."""
    loop = loop_of(name, SEEDS)
    state = to_end(loop, loop.init(), 6_000)
    step = jax.jit(agent(name).policy.step)
    for k in range(len(SEEDS)):
        learner = compiled.seed_of(state.learner, k, len(SEEDS))
        params = agent(name).actor_params(learner, state.env_steps, True)
        places = np.eye(8, dtype=np.float32)
        policy = np.asarray(step(params, places, None, jax.random.key(0))[0])
        np.testing.assert_allclose(value_of(policy), OPTIMAL.max(1), err_msg=f"{name}, seed {k}")
    _, rows = loop.rows(state)
    for row in rows:
        # Masses on atoms cost at least the entropy of their target, of two or three reached ones.
        # An actor's loss may be below 0, and is never 0 while its policy changes.
        loss = row["loss"] - row.get("actor_loss", 0)
        assert loss < (2.3 if name in ("c51", "rainbow") else 0.05)
        assert row["epsilon"] == pytest.approx(0.1)
    assert np.all(loop.evaluate(state, 5).returns == 1.0)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("m-dqn", "iqn", "rainbow") else pytest.mark.slow)
        for name in sorted(agents.AGENTS)
    ],
)
def test_every_agent_goes_on_from_a_checkpoint_bit_by_bit(name: str, tmp_path):
    first = loop_of(name, (5,))
    state = to_end(first, first.init(), 540)  # Ten updates.
    checkpoints.save(tmp_path, 540, first.snapshot(state), {})
    fresh = loop_of(name, (5,))
    saved, _, _ = checkpoints.restore_latest(tmp_path, fresh.template())
    whole = to_end(first, state, 580)
    resumed = to_end(fresh, fresh.restore(saved), 580)
    assert int(resumed.learner.steps) == 20
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)


def test_a_family_without_presets_is_refused():
    for entry in agents.AGENTS.values():
        with pytest.raises(ValueError, match="no presets for 'custom'; expected atari, minatar"):
            entry.presets("custom")
