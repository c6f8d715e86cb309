"""Tests of core/online.py and of its part in core/experience.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import compiled, experience, learners, metrics, online, rollout, types
from kullback.environments import toy

CONFIG = online.Config(length=3, epochs=2, batch_size=2)


def recorder(number: int) -> types.Learner:
    """Returns a learner that counts in its parameters how often it saw each of `number` items."""

    def step(state: types.LearnerState, batch: types.Batch, constants: types.Constants) -> Any:
        del constants
        params = state.params.at[state.steps // 3, batch.data].add(1)
        feedback = types.Feedback({"loss": jnp.mean(batch.data.astype(jnp.float32))})
        return state._replace(params=params, steps=state.steps + 1), feedback

    def init(key: types.Key) -> types.LearnerState:
        seen = jnp.zeros((2, number), jnp.int32)
        return types.LearnerState(seen, None, {}, jnp.zeros((), jnp.int32), key)

    return types.Learner(init, step)


def test_each_epoch_sees_each_item_once_in_another_order():
    learner, key = recorder(6), jax.random.key(0)
    items = jnp.arange(6).reshape(3, 2)
    state, sums = jax.jit(
        lambda state, sums: online.learn(
            CONFIG, learner, items, state, sums, key, types.NO_CONSTANTS
        )
    )(learner.init(key), metrics.init(2, {"loss": None}))
    np.testing.assert_array_equal(state.params, np.ones((2, 6)))
    assert int(state.steps) == int(sums.updates) == 6
    orders = [jax.random.permutation(k, 6) for k in jax.random.split(key, 2)]
    assert np.any(orders[0] != orders[1])
    np.testing.assert_allclose(sums.learner["loss"], 15.0, 1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"length": 0}, "length must be >= 1"),
        ({"discount": 1.1}, "discount must lie in"),
        ({"reward_clip": 0.0}, "reward_clip must be > 0 or None"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        online.Config(**changed)


def walker(label: Any = None) -> types.Agent[online.Experience]:
    """Returns an agent of one parameter, which walks to the right and learns rewards' mean."""

    def act(params: Any, observation: Any, state: None, key: types.Key) -> Any:
        del params, key
        return jnp.full(len(observation), toy.RIGHT), state, {}

    return types.Agent(
        policy=types.Policy(lambda params, context, length: None, act),
        learner=learners.sgd(
            init_params=lambda key: jnp.zeros(()),
            loss=learners.plain(lambda params, data: (jnp.mean((params - data) ** 2), {})),
            optimizer=optax.sgd(0.1),
        ),
        actor_params=lambda state, steps, evaluate, constants: {"params": state.params},
        experience=online.Experience(
            CONFIG, label or (lambda acting, trajectory: trajectory.timestep.reward)
        ),
    )


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_pieces_of_a_run_equal_the_whole(seeds: tuple[int, ...]):
    loop = compiled.make(walker(), toy.chain(4), seeds)

    def proceed(state: Any, piece: int) -> Any:
        while loop.steps(state) < 120:
            state = loop.advance(state, min(loop.steps(state) + piece, 120))
        return state

    whole, parts = proceed(loop.init(), 120), proceed(loop.init(), 12)
    jax.tree.map(np.testing.assert_array_equal, whole.learner.params, parts.learner.params)
    jax.tree.map(np.testing.assert_array_equal, whole.metrics, parts.metrics)
    assert whole.replay is None
    # 12 items an iteration: 2 epochs of 6 batches.
    assert loop.steps(whole) == int(whole.learner.steps) == 120
    for row in loop.rows(whole)[1]:
        assert row["loss"] > 0 and row["episodes"] > 0


def test_the_acting_parameters_stay_until_the_iteration_ends():
    def label(acting: Any, trajectory: rollout.Trajectory) -> jax.Array:
        return jnp.full(trajectory.action.shape, acting["params"] + 1.0)

    loop = compiled.make(walker(label), toy.chain(4), (0,))
    state = loop.advance(loop.init(), 24)
    while loop.steps(state) < 24:
        state = loop.advance(state, 24)
    value = 0.0
    for _ in range(2):  # A step goes a fifth of the way; labels are those of the iteration's start.
        value += 1 - 0.8**12
    np.testing.assert_allclose(state.learner.params, value, 1e-5)


def test_an_environment_outside_xla_is_refused():
    with pytest.raises(ValueError, match="learns in compiled environments"):
        experience.learning_begins(walker().experience, 4, is_compiled=False)
