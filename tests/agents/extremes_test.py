"""Tests of agents at the ends of what environments have: actions, sizes of pictures, lengths."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback import agents
from kullback.agents import munchausen, pqn
from kullback.core import compiled, loops, online, replay, rollout, types
from kullback.environments import batched
from kullback.experiments.runs import settings

KEY = jax.random.key(0)
MANY = 10_000  # Actions.
LONG = 3_000  # Steps of an episode.
PICTURES = [(64, 64, 3), (210, 160, 3), (3, 64, 64), (4, 210, 160)]
FAST = ("dqn", "m-iqn", "c51", "pqn", "dcpi")  # One of each way to learn; of the others later.


def marked(value: Any, is_fast: bool) -> Any:
    return pytest.param(value, marks=() if is_fast else pytest.mark.slow)


def environment(spec: types.Spec, num_envs: int = 2) -> types.Environment:
    """Makes rows that observe the share of an episode that has passed, and pay 1 a step."""
    limit = spec.max_episode_steps or 1

    def observe(time: jax.Array) -> jax.Array:
        return jnp.full(spec.shape, time / limit).astype(spec.dtype)

    def step(key: types.Key, time: jax.Array, action: jax.Array) -> batched.Step:
        del key, action
        never, time = jnp.bool_(False), time + 1
        return batched.Step(observe(time), time, jnp.float32(1), never, never)

    reset = lambda key: (observe(jnp.int32(0)), jnp.int32(0))  # noqa: E731
    return batched.rows(batched.Single("it", spec, reset, step), num_envs)


def agent_of(name: str, spec: types.Spec, family: str, assignments: Sequence[str]) -> types.Agent:
    entry = agents.AGENTS[name]
    return entry.make(None, spec, settings.apply(entry.presets(family), assignments))


def traced(agent: types.Agent, spec: types.Spec) -> tuple[types.LearnerState, types.Feedback]:
    """Traces acting and a learner step, of which nothing is computed; returns what comes out."""
    rows = environment(spec)

    def learn(state: types.LearnerState):
        acting = agent.actor_params(state, jnp.int32(0), False, types.NO_CONSTANTS)
        actor = rollout.start(agent.policy, rows, acting, KEY)
        trajectory, _ = rollout.rollout(agent.policy, rows, acting, actor, KEY, 4)
        assert trajectory.action.shape == (4, 2) and trajectory.action.dtype == jnp.int32
        if isinstance(agent.experience, online.Experience):
            items = agent.experience.label(acting, trajectory)
            batch = types.Batch.of(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), items))
        else:
            store = replay.device(spec, agent.experience, 2)
            batch = store.sample(store.init(), KEY)
        return agent.learner.step(state, batch, types.NO_CONSTANTS)

    return jax.eval_shape(learn, jax.eval_shape(agent.learner.init, KEY))


@pytest.mark.parametrize("name", [marked(x, x in FAST) for x in sorted(agents.AGENTS)])
def test_ten_thousand_actions(name: str):
    spec = types.Spec(shape=(8,), dtype=np.float32, num_actions=MANY, max_episode_steps=9)
    small = () if name in ("pqn", "m-pqn") else ("capacity=64", "min_replay_size=32")
    state, feedback = traced(agent_of(name, spec, "toy", small), spec)
    sizes = {size for leaf in jax.tree.leaves(state.params) for size in leaf.shape}
    assert any(size % MANY == 0 for size in sizes)
    assert feedback.metrics["loss"].shape in ((), (32,), (16,), (8,))


def test_a_log_policy_of_a_hundred_thousand_actions_keeps_its_digits():
    tau, alpha, l_0 = 0.03, 0.9, -1.0
    q_tm1, q_t = np.random.default_rng(0).normal(size=(2, 100_000)).astype(np.float32)
    got = jax.jit(munchausen.munchausen_target)(
        q_tm1, 7, jnp.float32(1), jnp.float32(0.99), q_t, tau=tau, alpha=alpha, l_0=l_0
    )
    z_tm1, z_t = (q.astype(np.float64) / tau for q in (q_tm1, q_t))
    log_policy = tau * (z_tm1[7] - np.logaddexp.reduce(z_tm1))
    expected = 1 + alpha * np.clip(log_policy, l_0, 0) + 0.99 * tau * np.logaddexp.reduce(z_t)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name, torso",
    [("dqn", "auto"), ("rainbow", "auto"), ("pqn", "nature_ln"), ("btr", "impala")],
)
@pytest.mark.parametrize("shape", [marked(x, x in PICTURES[::3]) for x in PICTURES], ids=str)
def test_pictures_from_64_to_210_by_160(name: str, torso: str, shape: tuple[int, ...]):
    spec = types.Spec(shape=shape, dtype=np.uint8, num_actions=6, max_episode_steps=9)
    small = () if name == "pqn" else ("capacity=64", "min_replay_size=32", "batch_size=4")
    state, feedback = traced(agent_of(name, spec, "atari", (f"torso={torso}", *small)), spec)
    assert jax.tree.leaves(state.params) and "loss" in feedback.metrics


@pytest.mark.slow
@pytest.mark.parametrize("torso", ["nature", "impala"])
def test_a_large_picture_is_learnt_from(torso: str):
    spec = types.Spec(shape=(210, 160, 3), dtype=np.uint8, num_actions=3)
    learner = agent_of("dqn", spec, "atari", (f"torso={torso}",)).learner
    random = np.random.default_rng(0)
    seen = random.integers(0, 256, (2, 2, *spec.shape), np.uint8)
    ones = np.ones(2, np.float32)
    batch = types.Batch.of(
        types.Transition(seen[0], np.array([0, 2], np.int32), ones, 0.99 * ones, seen[1])
    )
    begun = learner.init(KEY)
    state, feedback = jax.jit(learner.step)(begun, batch, types.NO_CONSTANTS)
    assert np.isfinite(feedback.metrics["loss"])
    weights = [x for x in jax.tree.leaves(jax.tree.map(_moved, begun.params, state.params)) if x]
    assert len(weights) >= 5  # Through all layers.


def _moved(before: jax.Array, after: jax.Array) -> bool:
    return not np.array_equal(before, after)


def to_end(loop: loops.Loop, steps: int) -> list[dict[str, float]]:
    """Runs a loop and returns its last rows."""
    state = loop.init()
    while loop.steps(state) < steps:
        state = loop.advance(state, steps)
    return loop.rows(state)[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dqn", "pqn"])
def test_an_episode_far_longer_than_what_is_kept(name: str):
    spec = types.Spec(shape=(2,), dtype=np.float32, num_actions=2, max_episode_steps=LONG)
    small: tuple[str, ...] = ("capacity=64", "min_replay_size=32", "n_step=3")
    small = () if name == "pqn" else (*small, "samples_per_update=400")
    loop = compiled.make(agent_of(name, spec, "toy", small), environment(spec, 4), [0])
    (row,) = to_end(loop, 2 * 4 * LONG)
    # Each of four rows ends twice, by the limit, and each step pays 1.
    assert (row["episodes"], row["recent_return"]) == (8, LONG)
    assert (row["return_min"], row["return_max"]) == (LONG, LONG)
    assert np.isfinite(row["loss"])


def test_traces_of_a_long_trajectory_are_those_of_its_definition():
    ticks, gamma, decay = LONG, 0.999, 0.95
    random = np.random.default_rng(0)
    reward, q = random.normal(size=(2, ticks))
    last = random.random(ticks) < 0.001
    discount = np.where(last & (random.random(ticks) < 0.5), 0, gamma)
    expected, following = np.zeros(ticks), 0.0
    for t in reversed(range(ticks)):
        trace = 0.0 if last[t] or t == ticks - 1 else decay
        following = reward[t] + discount[t] * ((1 - trace) * q[t] + trace * following)
        expected[t] = following
    single = [x.astype(np.float32) for x in (reward, discount)]
    got = jax.jit(pqn.q_lambda_returns)(*single, last, q.astype(np.float32)[:, None], decay)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)
