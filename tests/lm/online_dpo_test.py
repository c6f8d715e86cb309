"""Tests of lm/online_dpo.py."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import types
from kullback.lm import batches, dpo, lora, online_dpo, rollouts
from tests.lm import dpo_test
from tests.states import begun

REWARDS = np.array([1.0, 2.0, 0.5, -1.0, 3.0, 3.0, 0.0, 0.25], np.float32)  # The third is a tie.
CHOSEN = np.array([1, 2, 4, 7])
REJECTED = np.array([0, 3, 5, 6])


def config(objective: dict[str, Any] | None = None, **learning: Any) -> online_dpo.Config:
    learning = {"batch_size": 8, **learning}
    return online_dpo.Config(
        objective=dpo.Objective(**(objective or {})),
        learning=dataclasses.replace(dpo_test.LEARNING, **learning),
    )


def texts() -> batches.Sequences:
    """Returns two answers to each of four prompts, adjacent, [8, T]."""
    chosen, rejected = dpo_test.pairs()
    return jax.tree.map(
        lambda a, b: np.stack([a, b], 1).reshape(-1, *a.shape[1:]), chosen, rejected
    )


def step(c: online_dpo.Config, start: Any, reference: Any = None) -> Any:
    """Returns state and metrics of a step of the parameters of seed 0, and what is expected."""
    agent = online_dpo.make(dpo_test.MODEL, c)
    state = begun(agent.learner, dpo_test.params(0))
    state = state._replace(targets={name: reference for name in state.targets})
    drawn = np.zeros(texts().tokens.shape, np.float32)
    drawn[:, -1] = dpo_test.both(dpo_test.params(0)).reshape(-1)
    ones = np.ones(8, np.float32)
    data = rollouts.Episodes(texts(), REWARDS, drawn)
    batch = types.Batch(data, np.arange(8, dtype=np.int32), ones / 8, ones)
    state, feedback = jax.jit(agent.learner.step)(state, batch, types.Constants(start=start))
    return state, {name: np.asarray(x) for name, x in feedback.metrics.items()}


def test_the_better_answer_is_chosen():
    pairs, places, is_tie = online_dpo.ranked(texts(), jnp.asarray(REWARDS))
    np.testing.assert_array_equal(pairs.chosen.tokens, texts().tokens[CHOSEN])
    np.testing.assert_array_equal(pairs.rejected.lengths, texts().lengths[REJECTED])
    np.testing.assert_array_equal(places, [[1, 0], [0, 1], [0, 1], [1, 0]])
    np.testing.assert_array_equal(is_tie, [False, False, True, False])


@pytest.mark.parametrize("reference", ["fixed", "moving"])
def test_a_step_is_that_of_dpo_on_the_pairs(reference: str):
    """Of the pairs that the rewards rank, the tie left out, by the definition."""
    c = config({"reference": reference})
    follows = dpo_test.params(2) if reference == "moving" else None
    state, metrics = step(c, dpo_test.params(1), follows)
    given = dpo_test.both(follows or dpo_test.params(1)).reshape(-1)

    def loss(of: Any) -> jax.Array:
        h = jnp.stack([dpo_test.log_pi(of, rows) for rows in dpo_test.pairs()], 1).reshape(-1)
        d = (h - given)[CHOSEN] - (h - given)[REJECTED]
        return jnp.sum(jnp.array([1, 1, 0, 1]) * jnp.logaddexp(0, -0.1 * d)) / 4

    value, expected = jax.jit(jax.value_and_grad(loss))(dpo_test.params(0))
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-4)
    dpo_test.close(dpo_test.gradient(state), expected, atol=1e-5)
    np.testing.assert_array_equal(metrics["equal_rewards"], [0, 0, 1, 0])
    order = np.stack([CHOSEN, REJECTED], 1).reshape(-1)
    drawn, start = (dpo_test.both(dpo_test.params(n)).reshape(-1) for n in (0, 1))
    np.testing.assert_allclose(metrics["kl_start"], (drawn - start)[order], atol=1e-4)
    np.testing.assert_allclose(metrics["kl_reference"], (drawn - given)[order], atol=1e-4)
    assert metrics["entropy"].shape == (4,) and np.all(metrics["entropy"] > 0)


def test_what_is_refused():
    for size, micro_batches in ((7, 1), (8, 8)):
        with pytest.raises(ValueError, match="batch_size counts two texts of each prompt"):
            config(batch_size=size, micro_batches=micro_batches)
    with pytest.raises(ValueError, match=r"--set lora.shared_a=true"):
        config({"reference": "moving"}, lora=lora.Config(rank=2))
    assert config().penalty == ("beta", 0.1)
