"""Tests of lm/shared_ids.py: rows of a table that are padding change nothing of any comparison."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import rollout, types
from kullback.environments import tokens
from kullback.lm import (
    answers,
    batches,
    data,
    gemma,
    gkd,
    policy,
    rlhf,
    rollouts,
    shared_ids,
    tuning,
)
from tests.states import begun, fresh_params

IDS, ROWS = 12, 19
CONFIG = dataclasses.replace(gemma.PRESETS["tiny"], num_layers=1, embed_dim=8, vocab_size=IDS)
PADDED = dataclasses.replace(CONFIG, vocab_size=ROWS)
EXAMPLES = [data.Example((2, 5, 6), (7, 8, 1)), data.Example((2, 9), (3, 1))]
LEARNING = tuning.Config(batch_size=2, learning_rate=1e-2, warmup_steps=0, chunk=3)


@functools.cache
def params(seed: int) -> types.Params:
    return jax.tree.map(lambda x: 2.0 * x, fresh_params(gemma.make(CONFIG).init, seed))


def padded(of: types.Params) -> types.Params:
    """Returns parameters with padding rows, which would be the most probable ids."""
    rows = 30 * np.asarray(of["embedding"])[: ROWS - IDS]
    return {**of, "embedding": jnp.concatenate([of["embedding"], rows])}


def taught(teacher: types.Params) -> types.Constants:
    return types.Constants(teacher=teacher)


def step(agent: types.Agent, student: types.Params, constants: types.Constants, rows: Any) -> Any:
    state = begun(agent.learner, student)
    ones = np.ones(2, np.float32)
    batch = types.Batch(rows, np.arange(2, dtype=np.int32), ones, ones)
    return jax.jit(agent.learner.step)(state, batch, constants)


def assert_same(got: Any, expected: Any) -> None:
    """Asserts equal metrics and gradients of a step, with a gradient of 0 in the padding."""
    (state, feedback), (plain, metrics) = got, expected
    for name, x in metrics.metrics.items():
        np.testing.assert_allclose(feedback.metrics[name], x, rtol=1e-5, atol=1e-6, err_msg=name)
    # Adam's first moment, a tenth of the gradient: a step is of its sign alone.
    moments = [optax.tree_utils.tree_get(x.opt_state, "mu") for x in (state, plain)]
    rows = moments[0]["embedding"]
    np.testing.assert_array_equal(rows[IDS:], np.zeros_like(rows[IDS:]))
    cut = {**moments[0], "embedding": rows[:IDS]}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), cut, moments[1]
    )


def test_logits_are_those_of_a_table_without_padding():
    tokens = batches.pad(EXAMPLES, 8, pad_id=0).tokens
    plain, more = gemma.make(CONFIG), shared_ids.over(gemma.make(PADDED), IDS)
    got, expected = (
        jax.jit(model.apply)(of, tokens)
        for model, of in ((more, padded(params(0))), (plain, params(0)))
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("divergence", "targets"),
    [
        ("jsd-0.3", "full"),
        ("reverse_kl", "full"),
        ("total_variation", "full"),
        ("fenchel_young-alpha-1.5", "full"),
        ("kl", "counts"),
        ("kl", "top-k"),
    ],
)
def test_distillation_is_that_of_tables_without_padding(divergence: str, targets: Any):
    config = gkd.Config(divergence=divergence, targets=targets, num_targets=4, learning=LEARNING)
    rows = batches.pad(EXAMPLES, 8, pad_id=0)
    plain, more = gemma.make(CONFIG), gemma.make(PADDED)
    expected = step(gkd.make(plain, plain, config), params(0), taught(params(1)), rows)
    teacher = gkd.make(plain, more, config)
    assert_same(step(teacher, params(0), taught(padded(params(1))), rows), expected)
    student = gkd.make(more, plain, config)
    assert_same(step(student, padded(params(0)), taught(params(1)), rows), expected)


@pytest.mark.slow
def test_reinforcement_with_a_teacher_and_its_reference():
    config = rlhf.Config(samples_per_prompt=2, distillation_weight=0.5, learning=LEARNING)
    rows = batches.pad(EXAMPLES, 8, pad_id=0)
    plain, more = gemma.make(CONFIG), gemma.make(PADDED)
    drawn = answers.log_probabilities(plain, params(0), rows)
    episodes = rollouts.Episodes(
        rows, np.array([1.0, 0.0], np.float32), jnp.pad(drawn, ((0, 0), (1, 0)))
    )
    constants = types.Constants(start=params(2), teacher=params(1))
    expected = step(rlhf.make(plain, plain, config), params(0), constants, episodes)
    constants = types.Constants(start=padded(params(2)), teacher=params(1))
    got = step(rlhf.make(more, plain, config), padded(params(0)), constants, episodes)
    assert_same(got, expected)


@pytest.mark.slow
def test_what_is_measured_and_what_is_drawn():
    plain, wide = gemma.make(CONFIG), gemma.make(PADDED)
    more = shared_ids.over(wide, IDS)
    rows = batches.pad(EXAMPLES, 8, pad_id=0)

    def texts(model: gemma.Model, of: types.Params) -> jax.Array:
        acts, acting = policy.language_model(model), {"params": of}
        prompts = batches.pad_prompts([(2, 5), (2, 9, 3)], 4, 0)
        environment = tokens.make_batch(
            *prompts[:2], horizon=16, vocab_size=model.config.vocab_size, stop_tokens=()
        )
        key = jax.random.key(3)
        state = rollout.start(acts, environment, acting, key, prompts, 20)
        return rollout.rollout(acts, environment, acting, state, key, 16)[0].action

    def gap(one: jax.Array, two: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(jax.nn.softmax(one) - two), -1)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def measured(model: gemma.Model, other: gemma.Model, of: Any, of_other: Any) -> Any:
        gaps, _ = answers.per_token(gap, rows, (plain, params(0)), (other, of_other), chunk=3)
        logits = model.apply(of, rows.tokens)
        return logits, answers.log_probabilities(model, of, rows), gaps, texts(model, of)

    *numbers, drawn = measured(more, wide, padded(params(0)), padded(params(1)))
    *expected, expected_texts = measured(plain, plain, params(0), params(1))
    for got, number in zip(numbers, expected, strict=True):
        np.testing.assert_allclose(got, number, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(drawn, expected_texts)
    unbound = jax.jit(functools.partial(texts, wide))(padded(params(0)))
    assert unbound.max() >= IDS  # The padding would be drawn.


def test_what_cannot_be_is_refused():
    model = gemma.make(CONFIG)
    assert shared_ids.over(model, IDS + 1) is model
    with pytest.raises(ValueError, match="1 id or more"):
        shared_ids.over(model, 0)
    late = gemma.make(dataclasses.replace(PADDED, eos_ids=(15, 16)))
    with pytest.raises(ValueError, match=r"\(15, 16\), is not among the 12 ids"):
        shared_ids.shared([model, late])
