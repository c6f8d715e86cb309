"""Tests of core/learners.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import learners, types


def quadratic(params, targets, aux, batch, key, constants):
    """Returns (w - x)^2 / 2 with noise, which tells gradient, key, aux and constants apart."""
    drawn = jax.random.normal(key) * constants.base
    loss = 0.5 * jnp.mean((params["w"] - batch.data + drawn) ** 2)
    return loss, (aux + 1, types.Feedback({"noise": drawn}))


def make(**targets):
    return learners.sgd(
        init_params=lambda key: {"w": jax.random.normal(key)},
        loss=quadratic,
        optimizer=optax.sgd(0.5),
        targets=targets,
        init_aux=lambda params: jnp.zeros(()),
    )


def noise(scale: float) -> types.Constants:
    return types.Constants(base=scale)


def batch(x: float) -> types.Batch:
    return types.Batch.of(np.array([x], np.float32))


def test_golden_a_step_of_gradient_descent_halves_the_distance():
    learner = make(periodic=learners.periodic(2), average=learners.moving_average(0.25))
    state = learner.init(jax.random.key(0))
    state = state._replace(
        params={"w": jnp.float32(4)},
        targets={"periodic": {"w": jnp.float32(4)}, "average": {"w": jnp.float32(4)}},
    )
    state, feedback = learner.step(state, batch(0.0), noise(0.0))
    assert float(feedback.metrics["loss"]) == 8  # 4^2 / 2.
    assert float(state.params["w"]) == 2  # 4 - 0.5 * 4.
    assert float(state.targets["periodic"]["w"]) == 4  # The second step copies.
    assert float(state.targets["average"]["w"]) == 3.5  # 0.75 * 4 + 0.25 * 2.
    state, _ = learner.step(state, batch(0.0), noise(0.0))
    assert float(state.params["w"]) == float(state.targets["periodic"]["w"]) == 1
    assert float(state.targets["average"]["w"]) == 0.75 * 3.5 + 0.25
    assert int(state.steps) == float(state.aux) == 2


def test_a_plain_loss_is_descended_and_hands_what_is_carried_on():
    def distance(params: dict, data: np.ndarray):
        error = params["w"] - data
        return 0.5 * jnp.mean(error**2), {"error": error}

    learner = learners.sgd(
        init_params=lambda key: {"w": jnp.float32(4)},
        loss=learners.plain(distance),
        optimizer=optax.sgd(0.5),
        init_aux=lambda params: jnp.float32(7),
    )
    items = types.Batch.of(np.array([1.0, 3.0], np.float32))
    state, feedback = jax.jit(learner.step)(learner.init(jax.random.key(0)), items)
    assert float(feedback.metrics["loss"]) == 2.5  # (3^2 + 1^2) / 4.
    np.testing.assert_array_equal(feedback.metrics["error"], [3, 1])
    assert feedback.priorities is None
    assert float(state.params["w"]) == 3  # 4 - 0.5 * (3 + 1) / 2.
    assert float(state.aux) == 7


def test_each_step_has_randomness_of_its_own_that_the_state_decides():
    learner = make()
    state = learner.init(jax.random.key(1))
    following, first = learner.step(state, batch(0.0), noise(1.0))
    _, again = learner.step(state, batch(0.0), noise(1.0))
    _, second = learner.step(following, batch(0.0), noise(1.0))
    assert first.metrics["noise"] == again.metrics["noise"]
    assert first.metrics["noise"] != second.metrics["noise"]


def test_init_differs_between_keys_and_targets_start_as_copies():
    learner = make(periodic=learners.periodic(1))
    one, other = (learner.init(jax.random.key(seed)) for seed in (0, 1))
    assert one.params["w"] != other.params["w"]
    assert one.params["w"] == one.targets["periodic"]["w"]


def test_golden_a_rule_that_is_followed_at_every_second_step():
    """1 -> 0.5 -> 0.25, and the average of 4 with a half of what is there at the second step."""
    rule = learners.every(2, learners.moving_average(0.5))
    first = rule.update({"w": jnp.float32(0.5)}, {"w": jnp.float32(4)}, jnp.int32(1))
    second = rule.update({"w": jnp.float32(0.25)}, first, jnp.int32(2))
    assert (float(first["w"]), float(second["w"])) == (4, 2.125)


def test_periodic_stays_a_branch_under_vmap_over_seeds():
    learner = make(periodic=learners.periodic(3))
    branches = {}
    for counter_axis in (None, 0):
        axes = types.LearnerState(0, 0, 0, counter_axis, 0, 0)  # pyright: ignore[reportArgumentType]
        states = jax.vmap(learner.init, out_axes=axes if counter_axis is None else 0)(
            jax.random.split(jax.random.key(0), 2)
        )
        step = jax.vmap(learner.step, in_axes=(axes, None, None), out_axes=(axes, 0))
        branches[counter_axis] = "cond[" in str(
            jax.make_jaxpr(step)(states, batch(0.0), noise(0.0))
        )
    assert branches == {None: True, 0: False}  # A counter a seed would make it a select.


@pytest.mark.parametrize(
    "make_rule",
    [
        lambda: learners.periodic(0),
        lambda: learners.moving_average(0.0),
        lambda: learners.every(0, learners.moving_average(0.5)),
    ],
)
def test_rules_are_checked(make_rule):
    with pytest.raises(ValueError, match="got 0"):
        make_rule()


def test_rows_that_no_replay_keeps_count_alike():
    batch = types.Batch.of({"a": np.zeros((4, 3)), "b": np.zeros(4)})
    assert batch.indices.dtype == np.int32 and batch.indices.tolist() == [0, 1, 2, 3]
    assert batch.probabilities.tolist() == [0.25] * 4 and batch.weights.tolist() == [1.0] * 4
    assert batch.probabilities.dtype == batch.weights.dtype == np.float32


def test_a_scan_is_as_many_steps_and_its_stretches_are_the_whole():
    learner, key = make(), jax.random.key(7)
    items = jnp.arange(6, dtype=jnp.float32).reshape(6, 1)

    def rows(state, constants, item, key):
        """Returns the item, moved by the parameters and something drawn."""
        assert constants == noise(1.0)
        return item + state.params["w"] + jax.random.normal(key)

    def report(feedback, data):
        return feedback.metrics["loss"], data[0]

    state = start = learner.init(jax.random.key(0))
    expected = []
    for step, item in enumerate(items):
        data = rows(state, noise(1.0), item, jax.random.fold_in(key, step))
        state, feedback = learner.step(state, types.Batch.of(data), noise(1.0))
        expected.append((feedback.metrics["loss"], data[0]))
    run = learners.scan(learner, rows, report)
    first, one = run(start, noise(1.0), items[:2], key)
    last, two = run(first, noise(1.0), items[2:], key)
    columns = jax.tree.map(lambda *parts: jnp.concatenate(parts), one, two)
    for column, wanted in zip(columns, zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(column, jnp.stack(wanted), rtol=1e-5)
    np.testing.assert_allclose(last.params["w"], state.params["w"], rtol=1e-5)
    _, losses = learners.scan(learner, learners.stored)(start, noise(1.0), items, key)
    assert losses.shape == (6,)


def in_passes(epochs: int, minibatches: int, **targets) -> types.Learner:
    """Returns a learner of w^2 / 2 + w x, whose optimiser steps tell of their rows and keys."""

    def loss(params, targets, aux, batch, key, constants):
        told = {"rows": batch.data["x"], "key": jax.random.uniform(key), "start": batch.data["w"]}
        value = 0.5 * params["w"] ** 2 + params["w"] * jnp.mean(batch.data["x"])
        return value, (aux, types.Feedback(told))

    def prepare(params, targets, batch, constants):
        data = {"x": batch.data, "w": jnp.broadcast_to(params["w"], batch.data.shape)}
        return batch._replace(data=data), {"prepared": params["w"]}

    return learners.sgd(
        init_params=lambda key: {"w": jnp.float32(3)},
        loss=loss,
        optimizer=optax.sgd(0.1),
        targets=targets,
        prepare=prepare,
        passes=learners.Passes(epochs, minibatches),
    )


def test_passes_over_a_batch_are_optimiser_steps_of_one_learner_step():
    learner = in_passes(3, 2, average=learners.moving_average(0.5))
    state = learner.init(jax.random.key(0))
    items = types.Batch.of(np.array([1.0, 2.0, 4.0, 8.0], np.float32))
    state, feedback = jax.jit(learner.step)(state, items, types.NO_CONSTANTS)
    rows = np.asarray(feedback.metrics["rows"])
    assert rows.shape == (6, 2)
    for epoch in rows.reshape(3, 4):
        assert sorted(epoch) == [1, 2, 4, 8], "an epoch has each row once"
    assert len({tuple(epoch) for epoch in rows.reshape(3, 4)}) > 1, "parts are drawn anew"
    w = 3.0
    for part in rows:
        w -= 0.1 * (w + part.mean())
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-6)
    # A batch is prepared once, and targets follow once.
    np.testing.assert_array_equal(feedback.metrics["start"], np.full((6, 2), 3))
    assert float(feedback.metrics["prepared"]) == 3
    np.testing.assert_allclose(state.targets["average"]["w"], (3 + w) / 2, rtol=1e-6)
    assert int(state.steps) == 1 and len(set(feedback.metrics["key"].tolist())) == 6
    _, following = jax.jit(learner.step)(state, items, types.NO_CONSTANTS)
    assert not set(following.metrics["key"].tolist()) & set(feedback.metrics["key"].tolist())


def test_one_pass_over_all_of_a_batch_is_a_step():
    state = in_passes(1, 1).init(jax.random.key(0))
    items = types.Batch.of(np.array([1.0, 2.0], np.float32))
    state, feedback = in_passes(1, 1).step(state, items, types.NO_CONSTANTS)
    np.testing.assert_allclose(state.params["w"], 3 - 0.1 * (3 + 1.5), rtol=1e-6)
    np.testing.assert_array_equal(feedback.metrics["rows"], [[1, 2]])


def test_parts_that_do_not_divide_a_batch_are_refused():
    learner = in_passes(1, 3)
    with pytest.raises(ValueError, match="minibatches=3 must divide 4 rows"):
        learner.step(
            learner.init(jax.random.key(0)), types.Batch.of(np.zeros(4)), types.NO_CONSTANTS
        )
