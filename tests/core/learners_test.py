"""Tests of core/learners.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import learners, types


def quadratic(params, targets, aux, batch, key, constants):
    """Returns (w - x)^2 / 2 with noise, which tells gradient, key, aux and constants apart."""
    noise = jax.random.normal(key) * constants
    loss = 0.5 * jnp.mean((params["w"] - batch.data + noise) ** 2)
    return loss, (aux + 1, types.Feedback({"noise": noise}))


def make(**targets):
    return learners.sgd(
        init_params=lambda key: {"w": jax.random.normal(key)},
        loss=quadratic,
        optimizer=optax.sgd(0.5),
        targets=targets,
        init_aux=lambda params: jnp.zeros(()),
    )


def batch(x: float) -> types.Batch:
    ones = np.ones(1, np.float32)
    return types.Batch(np.array([x], np.float32), ones.astype(np.int32), ones, ones)


def test_golden_a_step_of_gradient_descent_halves_the_distance():
    learner = make(periodic=learners.periodic(2), average=learners.moving_average(0.25))
    state = learner.init(jax.random.key(0))
    state = state._replace(
        params={"w": jnp.float32(4)},
        targets={"periodic": {"w": jnp.float32(4)}, "average": {"w": jnp.float32(4)}},
    )
    state, feedback = learner.step(state, batch(0.0), 0.0)
    assert float(feedback.metrics["loss"]) == 8  # 4^2 / 2.
    assert float(state.params["w"]) == 2  # 4 - 0.5 * 4.
    assert float(state.targets["periodic"]["w"]) == 4  # The second step copies.
    assert float(state.targets["average"]["w"]) == 3.5  # 0.75 * 4 + 0.25 * 2.
    state, _ = learner.step(state, batch(0.0), 0.0)
    assert float(state.params["w"]) == float(state.targets["periodic"]["w"]) == 1
    assert float(state.targets["average"]["w"]) == 0.75 * 3.5 + 0.25
    assert int(state.steps) == float(state.aux) == 2


def test_each_step_has_randomness_of_its_own_that_the_state_decides():
    learner = make()
    state = learner.init(jax.random.key(1))
    following, first = learner.step(state, batch(0.0), 1.0)
    _, again = learner.step(state, batch(0.0), 1.0)
    _, second = learner.step(following, batch(0.0), 1.0)
    assert first.metrics["noise"] == again.metrics["noise"]
    assert first.metrics["noise"] != second.metrics["noise"]


def test_init_differs_between_keys_and_targets_start_as_copies():
    learner = make(periodic=learners.periodic(1))
    one, other = (learner.init(jax.random.key(seed)) for seed in (0, 1))
    assert one.params["w"] != other.params["w"]
    assert one.params["w"] == one.targets["periodic"]["w"]


def test_periodic_stays_a_branch_under_vmap_over_seeds():
    learner = make(periodic=learners.periodic(3))
    branches = {}
    for counter_axis in (None, 0):
        axes = types.LearnerState(0, 0, 0, counter_axis, 0, 0)  # pyright: ignore[reportArgumentType]
        states = jax.vmap(learner.init, out_axes=axes if counter_axis is None else 0)(
            jax.random.split(jax.random.key(0), 2)
        )
        step = jax.vmap(learner.step, in_axes=(axes, None, None), out_axes=(axes, 0))
        branches[counter_axis] = "cond[" in str(jax.make_jaxpr(step)(states, batch(0.0), 0.0))
    assert branches == {None: True, 0: False}  # A counter a seed would make it a select.


@pytest.mark.parametrize(
    "make_rule", [lambda: learners.periodic(0), lambda: learners.moving_average(0.0)]
)
def test_rules_are_checked(make_rule):
    with pytest.raises(ValueError, match="got 0"):
        make_rule()
