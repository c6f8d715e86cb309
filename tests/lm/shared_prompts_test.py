"""Tests of lm/shared_prompts.py, and of learners that take the prompt of several texts once."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import types
from kullback.lm import (
    batches,
    bond,
    dpo,
    gemma,
    lora,
    preferences,
    rlhf,
    rollouts,
    shared_prompts,
    tuning,
    value_network,
)
from kullback.lm.data import Example
from tests.states import begun, fresh_params

GROUP, ANSWER = 3, 5
CONFIG = dataclasses.replace(
    gemma.PRESETS["tiny"],
    vocab_size=24,
    num_layers=3,
    pattern=2,
    embed_dim=16,
    hidden_dim=16,
    window=4,  # Shorter than a prompt and its answer.
)
MODEL = gemma.make(CONFIG)
SHARED = shared_prompts.model(MODEL, GROUP, ANSWER)


@functools.cache
def params() -> Any:
    return fresh_params(MODEL.init, 0)


def texts(prompts: tuple[int, ...], completions: tuple[int, ...]) -> batches.Sequences:
    """Returns rows of prompts of some lengths, `GROUP` completions each of others."""
    rng = np.random.default_rng(0)
    examples = []
    for n, prompt in enumerate(prompts):
        ids = tuple(rng.integers(3, 24, prompt))
        for length in completions[n * GROUP : (n + 1) * GROUP]:
            examples.append(Example(ids, (*rng.integers(3, 24, length - 1), 1)))
    return jax.tree.map(jnp.asarray, batches.pad(examples, max(prompts) + ANSWER, 0))


ROWS = texts((7, 2), (5, 1, 3, 2, 5, 4))
INPUTS = ROWS.tokens, ROWS.positions, ROWS.segments


def of_tokens(features: Any) -> np.ndarray:
    """Returns features of what is no padding."""
    return np.asarray(features)[np.asarray(ROWS.segments) > 0]


def test_features_and_gradients_are_those_of_rows_of_their_own():
    def total(params: Any, model: gemma.Model) -> tuple[jax.Array, jax.Array]:
        features, head = model.with_head(params, *INPUTS)
        wave = jnp.sin(jnp.arange(features.size)).reshape(features.shape)
        is_token = jnp.asarray(ROWS.segments)[..., None] > 0
        logits = model.unembed(head, features)
        return jnp.sum(jnp.where(is_token, wave * features, 0)) + jnp.sum(
            jnp.where(is_token, jax.nn.log_softmax(logits)[..., :1], 0)
        ), features

    compute = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)
    (apart, of_rows), (shared, of_groups) = (compute(params(), m) for m in (MODEL, SHARED))
    np.testing.assert_allclose(of_tokens(of_rows), of_tokens(of_groups), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), apart, shared)


def test_a_prompt_is_there_once_and_answers_do_not_see_each_other():
    packed = shared_prompts.packed(ROWS.tokens, ROWS.segments > 0, GROUP, ANSWER)
    assert packed.tokens.shape == (2, 7 + GROUP * ANSWER)
    begun = [np.sum(np.asarray(packed.segments[n]) == shared_prompts.BEGINNING) for n in (0, 1)]
    assert begun[0] == 7 and begun[1] >= 2
    assert int(np.sum(packed.segments > 0)) < int(np.sum(ROWS.segments > 0))
    # Each token of the rows is where `columns` says, at its own position.
    at = np.asarray(packed.columns).reshape(6, -1)
    for n in range(6):
        here = np.asarray(ROWS.segments[n]) > 0
        np.testing.assert_array_equal(packed.tokens[n // GROUP][at[n, here]], ROWS.tokens[n][here])
        np.testing.assert_array_equal(
            packed.positions[n // GROUP][at[n, here]], np.flatnonzero(here)
        )
    tokens = jnp.asarray(ROWS.tokens)
    changed = tokens.at[1, 7].set((tokens[1, 7] + 1) % 24)
    features = jax.jit(SHARED.features)
    one, other = (np.asarray(features(params(), x, *INPUTS[1:])) for x in (ROWS.tokens, changed))
    differs = np.any(one != other, -1)
    assert differs[1, 7] and not differs[np.arange(6) != 1].any() and not differs[1, :7].any()


def test_what_answers_begin_with_alike_is_shared_too():
    """The shorter prompt leaves room for it."""
    tokens = jnp.asarray([[3, 4, 5, 6, 7, 8], [3, 4, 5, 9, 7, 0]])
    packed = shared_prompts.packed(tokens, jnp.asarray([[1] * 6, [1] * 5 + [0]]) > 0, 2, 3)
    np.testing.assert_array_equal(packed.tokens[0], [3, 4, 5, 6, 7, 8, 9, 7, 0])
    np.testing.assert_array_equal(packed.segments[0], [-1, -1, -1, 1, 1, 1, 2, 2, 0])
    np.testing.assert_array_equal(packed.positions[0], [0, 1, 2, 3, 4, 5, 3, 4, 5])
    np.testing.assert_array_equal(packed.columns[0, 1], [0, 1, 2, 6, 7, 8])


def test_rows_of_other_prompts_and_answers_that_are_too_long_are_nan():
    swapped = ROWS.tokens[jnp.asarray([3, 1, 2, 0, 4, 5])]
    features = jax.jit(SHARED.features)
    assert np.isnan(np.asarray(features(params(), swapped, *INPUTS[1:]))).any()
    assert np.isfinite(np.asarray(features(params(), *INPUTS))).all()


def test_rows_that_are_no_longer_than_an_answer_share_nothing():
    model = shared_prompts.model(MODEL, GROUP, ROWS.tokens.shape[1])
    one, other = (jax.make_jaxpr(of.features)(params(), *INPUTS) for of in (model, MODEL))
    assert str(one) == str(other)


def test_misuse_is_refused():
    is_token = ROWS.segments > 0
    with pytest.raises(ValueError, match="must divide the 6 rows"):
        shared_prompts.packed(ROWS.tokens, is_token, 4, ANSWER)
    with pytest.raises(ValueError, match="hold no prompt beside answers of 12"):
        shared_prompts.packed(ROWS.tokens, is_token, GROUP, 12)
    with pytest.raises(AssertionError):
        shared_prompts.packed(ROWS.tokens[0], is_token, GROUP, ANSWER)
    with pytest.raises(ValueError, match="dropout"):
        SHARED.features(params(), *INPUTS, jax.random.split(jax.random.key(0), 6))


LEARNING = tuning.Config(
    batch_size=6,
    max_prompt_length=7,
    max_new_tokens=ANSWER,
    warmup_steps=0,
    chunk=8,
    max_grad_norm=1e9,
)


def learnt(make: Any, config: Any) -> tuple[Any, Any]:
    """Returns Adam's first moments and the metrics of a step of texts that `params` drew."""
    agent = make(MODEL, config=config)
    initial = value_network.with_value(params()) if agent.experience.has_value else params()
    state = begun(agent.learner, initial)
    rewards = np.array([1.0, -0.5, 0.25, 2.0, 0.0, 0.5], np.float32)
    logits = jax.nn.log_softmax(MODEL.apply(params(), *INPUTS)[:, :-1])
    drawn = jnp.take_along_axis(logits, ROWS.tokens[:, 1:, None], -1)[..., 0]
    drawn = jnp.pad(jnp.where(ROWS.is_answer[:, 1:], drawn, 0), ((0, 0), (1, 0)))
    ones = np.ones(6, np.float32)
    batch = types.Batch(
        rollouts.Episodes(ROWS, rewards, drawn), np.arange(6, dtype=np.int32), ones / 6, ones
    )
    start = fresh_params(MODEL.init, 1)
    state, feedback = jax.jit(agent.learner.step)(state, batch, types.Constants(start=start))
    moments = [x for _, x in optax.tree_utils.tree_get_all_with_path(state.opt_state, "mu")]
    return moments, feedback.metrics


@pytest.mark.parametrize(
    "fields",
    [
        {},
        pytest.param({"baseline": "value"}, marks=pytest.mark.slow),
        pytest.param({"variant": "grpo", "epochs": 2}, marks=pytest.mark.slow),
        pytest.param({"micro_batches": 2}, marks=pytest.mark.slow),
    ],
    ids=["rloo", "value", "grpo", "micro-batches"],
)
def test_a_step_of_policy_gradients_is_the_same(fields: dict[str, Any]):
    fields = {**fields}
    learning = dataclasses.replace(LEARNING, micro_batches=fields.pop("micro_batches", 1))
    fields |= {"samples_per_prompt": GROUP, "learning": learning}
    variant = fields.pop("variant", "reinforce")
    one, other = (
        learnt(rlhf.make, rlhf.of_variant(variant, **fields, share_prompts=shares))
        for shares in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one, other)


@pytest.mark.slow
def test_a_step_of_bond_is_the_same():
    one, other = (
        learnt(bond.make, bond.Config(learning=LEARNING, share_prompts=shares))
        for shares in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one, other)


@pytest.mark.slow
def test_a_step_of_pairs_is_the_same():
    rows = texts((7, 2), (5, 1, 3, 2, 5, 4))
    chosen, rejected = (
        jax.tree.map(lambda x, n=n: x[jnp.asarray(n)], rows) for n in ([0, 3], [1, 5])
    )
    batch = types.Batch(
        dpo.Referred(preferences.Pairs(chosen, rejected), np.zeros((2, 2), np.float32)),
        np.arange(2, dtype=np.int32),
        np.full(2, 0.5, np.float32),
        np.ones(2, np.float32),
    )
    learning = dataclasses.replace(LEARNING, batch_size=2)

    def step(shares: bool) -> Any:
        agent = dpo.make(MODEL, dpo.Config(learning=learning, share_prompts=shares))
        state = begun(agent.learner, params())
        state, feedback = jax.jit(agent.learner.step)(state, batch, types.Constants())
        return state.opt_state[1][0].mu, feedback.metrics

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), step(False), step(True)
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "ppo", "baseline": "group", "minibatches": 2}, "minibatches=1"),
        ({"micro_batches": 3}, "must divide the 2 that are learnt from"),
    ],
)
def test_groups_are_not_cut(fields: dict[str, Any], message: str):
    fields = {**fields}
    learning = dataclasses.replace(LEARNING, micro_batches=fields.pop("micro_batches", 1))
    with pytest.raises(ValueError, match=message):
        rlhf.of_variant(
            fields.pop("variant", "reinforce"),
            samples_per_prompt=GROUP,
            learning=learning,
            share_prompts=True,
            **fields,
        )


def test_dropout_is_refused():
    learning = dataclasses.replace(LEARNING, lora=lora.Config(rank=2, dropout=0.1))
    with pytest.raises(ValueError, match=r"lora.dropout=0"):
        dpo.Config(learning=learning, share_prompts=True)
