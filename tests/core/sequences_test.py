"""Tests of core/sequences.py, with a table of logits as the smallest language model."""

import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import checkpoints, learners, policies, sequences, trees, types

ROWS, LENGTH, TOKENS = 4, 5, 3


def agent() -> types.Agent:
    """Learns the frequencies of the tokens in its batches."""

    def loss(params: Any, targets: Any, aux: Any, batch: types.Batch, key: Any, constants: Any):
        log_p = jax.nn.log_softmax(params["logits"] + constants.teacher)
        losses = -jnp.mean(log_p[batch.data], -1)  # [B]
        ones = jnp.mean(batch.data == 1, -1)
        return jnp.mean(batch.weights * losses), (aux, types.Feedback({"share_of_1": ones}))

    learner = learners.sgd(
        init_params=lambda key: {"logits": jnp.zeros(TOKENS)},
        loss=loss,
        optimizer=optax.adam(0.1),
        targets={"average": learners.moving_average(0.5)},
    )
    nobody = policies.softmax(lambda params, observation: jnp.asarray(observation))  # Not asked.
    return types.Agent(
        policy=nobody,
        learner=learner,
        actor_params=lambda state, steps, evaluate, constants: {"params": state.params},
        experience=None,
    )


def constant(value: float) -> types.Constants:
    """Returns a frozen term of the logit of token 1."""
    return types.Constants(teacher=jnp.array([0, value, 0], jnp.float32))


class Calls:
    """A source that notes what it was asked for."""

    def __init__(self, num_sampled: Any, max_age: int = 0):
        self.stored: list[tuple[int, int]] = []
        self.prompts: list[tuple[int, int]] = []
        self.keys: list[np.ndarray] = []
        self.source = sequences.Source(
            num_rows=ROWS,
            example=jax.ShapeDtypeStruct((ROWS, LENGTH), np.int32),
            stored=self._stored,
            sampling=sequences.Sampling(
                num_rows=num_sampled,
                prompts=self._prompts,
                sample=self._sample,
                score=lambda rows, prompts: np.asarray(prompts, np.float32),
                max_age=max_age,
            ),
        )

    def _stored(self, step: int, rows: int) -> np.ndarray:
        self.stored.append((step, rows))
        return np.random.default_rng(step).integers(1, TOKENS, (rows, LENGTH), np.int32)

    def _prompts(self, step: int, rows: int) -> np.ndarray:
        self.prompts.append((step, rows))
        return np.arange(rows) + step

    def _sample(self, acting: Any, prompts: np.ndarray, key: types.Key) -> jax.Array:
        self.keys.append(np.asarray(jax.random.key_data(key)))
        shape = (len(prompts), LENGTH)
        return jax.random.categorical(key, acting["params"]["logits"], shape=shape)


def run(loop: Any, state: Any, until: int) -> Any:
    while loop.steps(state) < until:
        state = loop.advance(state, until)
    return state


def numbers(state: sequences.RunState) -> list[np.ndarray]:
    return [trees.to_numpy(leaf) for leaf in jax.tree.leaves(state)]


def equal(a: sequences.RunState, b: sequences.RunState) -> None:
    for x, y in zip(numbers(a), numbers(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("count", [0, 1, ROWS])
def test_rows_come_from_where_they_should(count):
    calls = Calls(lambda step: count)
    loop = sequences.make(agent(), calls.source, seed=0, constants=constant(0))
    state = run(loop, loop.init(), 3)
    assert calls.prompts == [(step, count) for step in range(3) if count]
    assert calls.stored == [(step, ROWS - count) for step in range(3) if count < ROWS]
    assert len({key.tobytes() for key in calls.keys}) == len(calls.keys)
    _, (row,) = loop.rows(state)
    assert row["episodes"] == 3 * count
    if count == ROWS:  # Scores 0 1 2 3, 1 2 3 4 and 2 3 4 5.
        assert (row["return_mean"], row["return_min"], row["return_max"]) == (2.5, 0, 5)
    elif count == 0:
        assert np.isnan(row["return_mean"])
        # What is stored holds no 0: the table learns it.
        logits = np.asarray(run(loop, state, 60).learner.params["logits"])
        assert logits[0] < logits[1:].min() - 1


def test_a_learner_step_is_traced_once():
    """Tracing that of a language model takes as long as some hundred steps of a small one."""
    built, traces = agent(), []

    def step(*arguments: Any) -> Any:
        traces.append(arguments)
        return built.learner.step(*arguments)

    watched = built._replace(learner=built.learner._replace(step=step))
    loop = sequences.make(watched, Calls(lambda step: 1).source, seed=0, constants=constant(0))
    run(loop, loop.init(), 3)
    assert len(traces) == 1


def test_a_run_that_goes_on_is_the_run_that_did_not_stop(tmp_path):
    def loop():
        calls = Calls(lambda step: ROWS * (step % 2))
        return sequences.make(agent(), calls.source, seed=3, constants=constant(0))

    whole = run(loop(), loop().init(), 9)
    first = loop()
    state = run(first, first.init(), 4)
    checkpoints.save(tmp_path, 4, first.snapshot(state), {})
    second = loop()
    saved, _, _ = checkpoints.restore_latest(tmp_path, second.template())
    equal(run(second, second.restore(saved), 9), whole)
    other = sequences.make(agent(), Calls(lambda step: ROWS).source, seed=4, constants=constant(0))
    assert not np.array_equal(
        run(other, other.init(), 9).learner.params["logits"], whole.learner.params["logits"]
    )


def test_what_was_sampled_may_be_learnt_from_again(tmp_path):
    """Windows of 3 steps, of which every second is on-policy: 1, 3 and 5, 7, 9 and 11.

    Steps 1, 3, 7 and 9 sample; 5 and 11 take what is 2 steps old.
    """

    def loop(max_age: int = 2) -> tuple[Any, Calls]:
        calls = Calls(lambda step: 2 * (step % 2), max_age)
        return sequences.make(agent(), calls.source, seed=3, constants=constant(0)), calls

    whole, calls = loop()
    end = run(whole, whole.init(), 12)
    assert calls.prompts == [(step, 2) for step in (1, 3, 7, 9)]
    _, (row,) = whole.rows(end)
    np.testing.assert_allclose(row["sample_age"], (2 + 2) / 12)
    assert row["episodes"] == 8
    first, _ = loop()
    state = run(first, first.init(), 5)  # The next step takes what is kept.
    checkpoints.save(tmp_path, 5, first.snapshot(state), {})
    second, calls = loop()
    saved, _, _ = checkpoints.restore_latest(tmp_path, second.template())
    equal(run(second, second.restore(saved), 12), end)
    assert calls.prompts == [(7, 2), (9, 2)]
    fresh, calls = loop(max_age=0)
    assert len(jax.tree.leaves(fresh.template())) < len(jax.tree.leaves(second.template()))
    run(fresh, fresh.init(), 12)
    assert calls.prompts == [(step, 2) for step in (1, 3, 5, 7, 9, 11)]


def test_constants_reach_the_loss_and_stay_out_of_checkpoints():
    calls = Calls(lambda step: 0)
    ends = []
    for value in (0, 3):
        loop = sequences.make(agent(), calls.source, seed=0, constants=constant(value))
        state = run(loop, loop.init(), 20)
        ends.append(np.asarray(state.learner.params["logits"]))
        assert len(jax.tree.leaves(loop.template())) == len(jax.tree.leaves(state))
    assert ends[1][1] < ends[0][1] - 0.5


def test_learning_starts_from_the_parameters_given():
    calls = Calls(lambda step: 0)
    given = {"logits": jnp.array([1.0, 2.0, 3.0])}
    loop = sequences.make(
        agent(), calls.source, seed=0, params=lambda: given, constants=constant(0)
    )
    state = loop.init()
    np.testing.assert_array_equal(state.learner.params["logits"], [1, 2, 3])
    np.testing.assert_array_equal(state.learner.targets["average"]["logits"], [1, 2, 3])
    run(loop, state, 2)
    np.testing.assert_array_equal(given["logits"], [1, 2, 3])  # Not donated.
    wrong = {"logits": jnp.zeros(TOKENS + 1)}
    with pytest.raises(ValueError, match=r"'logits' of the parameters given is float32\[4\]"):
        sequences.make(
            agent(), calls.source, seed=0, params=lambda: wrong, constants=constant(0)
        ).init()


def num_live() -> int:
    """Returns the number of arrays of the parameters' shape that are in memory."""
    gc.collect()
    return sum(x.shape == (TOKENS,) for x in jax.live_arrays())


def test_a_run_holds_its_state_and_nothing_of_the_parameters_given():
    frozen, source = constant(0), Calls(lambda step: 0).source
    before = num_live()
    given = [{"logits": jnp.array([1.0, 2.0, 3.0])}]
    loop = sequences.make(agent(), source, 0, params=given.pop, constants=frozen)
    state = loop.init()
    # Parameters, their average, and two moments.
    assert sum(x.shape == (TOKENS,) for x in jax.tree.leaves(state.learner)) == 4
    assert num_live() == before + 4
    state = run(loop, state, 2)
    assert num_live() == before + 4


def test_evaluation_has_keys_of_its_own_and_changes_nothing():
    seen = []

    def evaluate(acting: Any, count: int, key: types.Key) -> np.ndarray:
        seen.append(np.asarray(jax.random.key_data(key)))
        return np.full(count, float(acting["params"]["logits"][1]))

    def loop(function: Any):
        source = Calls(lambda step: ROWS).source
        return sequences.make(agent(), source, seed=0, constants=constant(0), evaluate=function)

    one, other = loop(evaluate), loop(None)
    state = one.init()
    for until in (2, 5):
        state = run(one, state, until)
        scores = one.evaluate(state, 6).returns
        assert scores.shape == (1, 6)
        assert scores[0, 0] == state.learner.params["logits"][1]
    assert not np.array_equal(*seen)
    equal(run(other, other.init(), 5), state)
    with pytest.raises(ValueError, match="nothing to evaluate by"):
        other.evaluate(state, 2)
