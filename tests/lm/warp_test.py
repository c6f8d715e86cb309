"""Tests of lm/warp.py, with a learner of few numbers for each member."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import averaging, learners, types
from kullback.lm import merging, rlhf, warp

MEMBERS, STEPS, RATE = 3, 2, 0.3
CONFIG = warp.Config(members=MEMBERS, member_steps=STEPS, next_start=RATE)


def start() -> Any:
    rng = np.random.default_rng(0)
    return {
        "embedding": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
        "periods": {"layer_0": {"w": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)}},
    }


def loss(params: Any, targets: Any, aux: Any, batch: types.Batch, key: Any, constants: Any) -> Any:
    """Returns the loss of a pull to the batch's number, one to the anchor, and noise."""
    del constants
    noise = jax.random.normal(key)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(targets["anchor"]), strict=True)
    pulls = [
        jnp.mean((x - noise - batch.data[0]) ** 2 + 0.1 * (x - anchor) ** 2 * jnp.sin(x))
        for x, anchor in leaves
    ]
    return sum(pulls), (aux, types.Feedback({"noise": noise}))


def member() -> types.Learner:
    return learners.sgd(
        init_params=lambda key: jax.tree.map(jnp.zeros_like, start()),
        loss=loss,
        optimizer=optax.adam(0.1),
        targets={"anchor": learners.moving_average(0.5)},
    )


def batch(step: int) -> types.Batch:
    ones = jnp.ones(1)
    return types.Batch(jnp.full(1, np.sin(7.0 * step)), jnp.zeros(1, jnp.int32), ones, ones)


def run(steps: int) -> list[types.LearnerState]:
    learner = warp.learner(member(), CONFIG)
    state = learners.with_params(learner.init(jax.random.key(0)), start())
    learn, states = jax.jit(learner.step), [state]
    for step in range(steps):
        state, feedback = learn(state, batch(step), types.NO_CONSTANTS)
        assert float(feedback.metrics["iteration"]) == step // (MEMBERS * STEPS)
        states.append(state)
    return states


def close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)


@pytest.mark.usefixtures("optimized")  # Digits are compared.
def test_oracle_is_the_algorithm_as_it_is_written():
    """Two iterations, plain loops; each member has a new optimiser and a new anchor."""
    one, key = member(), warp.learner(member(), CONFIG).init(jax.random.key(0)).key
    learn, init, step = jax.jit(one.step), start(), 0
    merges = []
    for _ in range(2):
        trained = []
        for _ in range(MEMBERS):
            fresh = learners.with_params(one.init(jax.random.key(0)), init)
            state = fresh._replace(key=key)
            for _ in range(STEPS):
                state, _ = learn(state._replace(steps=jnp.asarray(step)), batch(step), None)
                step += 1
            trained.append(state.params)
        merged = averaging.slerp(trained, init, group_of=merging.gemma_groups("layer"))
        merges.append(merged)
        init = averaging.liti(init, merged, RATE)
    states = run(2 * MEMBERS * STEPS)
    close(states[MEMBERS * STEPS].aux.merged, merges[0])
    close(states[-1].aux.merged, merges[1])
    close(states[-1].params, init)
    close(states[-1].targets["anchor"], init)
    assert all(not np.any(x) for x in jax.tree.leaves(states[-1].opt_state))


def test_a_member_begins_where_its_iteration_did():
    states = run(MEMBERS * STEPS)
    for number in range(MEMBERS):
        close(states[number * STEPS].params, start())
    assert np.any(states[1].params["embedding"] != start()["embedding"])
    close(states[STEPS - 1].aux.init, start())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: warp.Config(members=0), "members must be >= 1, got 0"),
        (lambda: warp.Config(next_start=0.0), r"next_start \(eta\) must lie in"),
        (lambda: warp.Config(group="row"), "group must be one of"),  # pyright: ignore[reportArgumentType]
        (lambda: warp.Config(member=rlhf.Config(baseline="value")), "warp averages policies"),
        (
            lambda: warp.Config(member=rlhf.Config(distillation_weight=0.5)),
            "warp has no teacher",
        ),
        (
            lambda: CONFIG.check(7),
            "whole iterations of 3 members of 2 steps, got 7; the next is 12",
        ),
    ],
)
def test_settings_are_checked(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
