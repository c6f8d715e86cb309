"""Tests of experiments/reproductions/{letters,mlp_policy,rewarded}.py."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import types
from kullback.experiments.reproductions import letters, mlp_policy, rewarded
from kullback.lm import gemma, rlhf

TINY = letters.Sizes(letters=4, horizon=3, held_out=5, texts=32, start_steps=2, start_batch=8)


@functools.cache
def language(seed: int = 0) -> letters.Language:
    return letters.make(TINY, seed)


def test_gold_by_hand():
    tables = letters.Tables(jnp.zeros((4, 4)), jnp.zeros((4, 4)), *_marks())
    # Prompt "ab": letters 0 and 1, then "cda".
    prompt, text = np.array([[2, 3]]), np.array([[4, 5, 2]])
    # tanh of 100 n is 1: U[0, 2] = 1 and B[1, 2] = 1 for c; B[2, 3] = -1 for d; nothing for a.
    whole = letters.gold(tables, prompt, text, np.ones((1, 3), bool))
    np.testing.assert_allclose(whole, [(2 - 1) / 3], rtol=1e-6)
    short = letters.gold(tables, prompt, text, np.array([[True, False, False]]))
    np.testing.assert_allclose(short, [2 / 3], rtol=1e-6)
    ended = letters.gold(tables, prompt, np.array([[4, letters.END, 5]]), np.array([[1, 1, 0]]) > 0)
    np.testing.assert_allclose(ended, [2 / 3], rtol=1e-6)


def _marks() -> tuple[jax.Array, jax.Array]:
    unigram, bigram = np.zeros((2, 4, 4), np.float32)
    unigram[0, 2] = bigram[1, 2] = 100
    bigram[2, 3] = -100
    return jnp.asarray(unigram), jnp.asarray(bigram)


def test_the_source_writes_by_its_tables():
    tables = language().tables
    prompts = jnp.asarray(np.tile([[3, 5]], (20_000, 1)), jnp.int32)  # "bd": letters 1 and 3.
    rows = letters.write(tables, prompts, 2, jax.random.key(0))
    first = np.asarray(rows.tokens)[:, 2] - letters.FIRST
    expected = jax.nn.softmax(tables.source_unigram[1] + tables.source_bigram[3])
    np.testing.assert_allclose(np.bincount(first, minlength=4) / 20_000, expected, atol=0.015)
    second = np.asarray(rows.tokens)[:, 3][first == 2] - letters.FIRST
    expected = jax.nn.softmax(tables.source_unigram[1] + tables.source_bigram[2])
    np.testing.assert_allclose(np.bincount(second, minlength=4) / len(second), expected, atol=0.03)
    assert np.all(np.asarray(rows.is_answer) == [False, False, True, True])


def test_held_out_prompts_are_apart_and_seeds_are_other_languages():
    train, held_out = (set(map(tuple, x.tolist())) for x in language()[1:3])
    assert len(held_out) == 5 and len(train | held_out) == 16 and not train & held_out
    assert not jnp.allclose(language(0).tables.gold_bigram, language(1).tables.gold_bigram)
    np.testing.assert_array_equal(letters.make(TINY, 0).held_out, language().held_out)
    corpus = letters.corpus(language(), TINY, 0)
    assert {tuple(row) for row in np.asarray(corpus.tokens)[:, :2].tolist()} == train


def test_the_better_of_two_texts_is_chosen():
    tables, key = language().tables, jax.random.key(3)
    prompts = jnp.asarray(np.resize(language().train, (64, 2)))
    one, two = (letters.write(tables, prompts, 3, k) for k in jax.random.split(key))
    pairs = letters.labelled(tables, one, two)
    margins = letters.of_rows(tables, pairs.chosen) - letters.of_rows(tables, pairs.rejected)
    assert bool(jnp.all(margins >= 0)) and bool(jnp.any(margins > 0.1))
    swapped = letters.labelled(tables, two, one)
    differ = np.asarray(margins) > 0
    for a, b in zip(*map(jax.tree.leaves, (pairs.chosen, swapped.chosen)), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[differ], np.asarray(b)[differ])


@functools.cache
def perceptron() -> gemma.Model:
    return mlp_policy.make(TINY.decoder(8, 1), letters.PROMPT)


@pytest.mark.slow
def test_the_perceptron_is_one_function_in_both_passes():
    model = perceptron()
    params = jax.jit(model.init)(jax.random.key(1))
    rows = np.random.default_rng(0).integers(0, 6, (3, 5))
    whole = jax.jit(model.features)(params, rows)
    decode = jax.jit(model.decode)
    for pieces in ((1, 1, 1, 1, 1), (2, 1, 2)):
        cache, parts = model.init_cache(3, 5, np.full(3, 2), 2), []
        ends = np.cumsum(pieces)
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            features, cache = decode(params, rows[:, begin:end], cache)
            parts.append(features)
        decoded = jnp.concatenate(parts, 1)
        np.testing.assert_allclose(decoded[:, 1:], whole[:, 1:], atol=1e-5)
    np.testing.assert_allclose(
        model.apply(params, rows), whole @ params["embedding"].T, rtol=1e-5, atol=1e-6
    )


def test_the_perceptron_sees_the_past_and_not_the_future():
    model = perceptron()
    params = jax.jit(model.init)(jax.random.key(1))
    features = jax.jit(model.features)
    rows = np.array([[2, 3, 4, 5, 2]])
    base = features(params, rows)
    for column in range(5):
        other = rows.copy()
        other[0, column] = 3 if rows[0, column] != 3 else 4
        moved = np.any(np.asarray(features(params, other) != base), -1)[0]
        assert not moved[1:column].any() and moved[max(column, 1) :].all(), column


@functools.cache
def world() -> rewarded.World:
    return rewarded.world(perceptron(), TINY)


def evaluated(params: types.Params) -> rewarded.Evaluation:
    return rewarded.evaluator(world(), TINY.horizon, 64)(params, 0, 5)


@pytest.mark.slow
def test_reinforce_raises_gold_and_leaves_the_start():
    config = rlhf.Config(samples_per_prompt=4, kl_coefficient=0.0, learning=TINY.learning(32, 2e-2))
    agent = rlhf.make(perceptron(), config=config)
    climber = rewarded.climber(world(), agent, rewarded.GOLD)
    state, metrics = climber.advance(climber.begin(0), 0, 1, 60)
    assert int(state.steps) == 60 and metrics["kl_start"].shape == (60,)
    before, after = evaluated(world().start(0)), evaluated(state.params)
    assert abs(float(jnp.mean(before.kl))) < 1e-5 < 0.3 < float(jnp.mean(after.kl))
    assert float(jnp.mean(after.reward)) > float(jnp.mean(before.reward)) + 0.3
    np.testing.assert_allclose(
        after.reward, letters.of_rows(language().tables, after.rows), rtol=1e-5, atol=1e-6
    )
    # Pieces are the whole: at the start and after each 20 steps.
    records = [*rewarded.records(climber, 0, 1, 60, 3)]
    assert [done for done, _ in records] == [0, 20, 40, 60]
    for at, expected in ((0, world().start(0)), (3, state.params)):
        close = functools.partial(np.testing.assert_allclose, atol=1e-5)
        jax.tree.map(close, records[at][1], expected)


@pytest.mark.slow
def test_the_kl_agrees_with_that_of_all_texts():
    """Oracle: all 6^3 ways to go on from each held-out prompt, with their probabilities."""
    model, start = perceptron(), world().start(0)
    other = jax.tree.map(lambda x: 1.3 * x, start)
    every = np.array(np.meshgrid(*[np.arange(6)] * 3)).reshape(3, -1).T
    exact = []
    for prompt in language().held_out:
        rows = np.concatenate([np.tile(prompt, (len(every), 1)), every], 1)
        of_tokens = [_log_probability(model, params, rows) for params in (other, start)]
        # After the end nothing follows: what stands there is summed over, and counts as one text.
        over = np.cumsum(every == letters.END, 1) - (every == letters.END) > 0
        log_p, log_q = (np.sum(np.where(over, 0, x), 1) for x in of_tokens)
        times = 6.0 ** over.sum(1)
        exact.append(np.sum(np.exp(log_p) / times * (log_p - log_q)))
    kls = np.asarray(evaluated(other).kl, np.float64)
    error = kls.std() / np.sqrt(len(kls))
    assert abs(kls.mean() - np.mean(exact)) < 4 * error < 0.3 * np.mean(exact)


def _log_probability(model: gemma.Model, params: Any, rows: np.ndarray) -> np.ndarray:
    log_p = np.asarray(jax.nn.log_softmax(jax.jit(model.apply)(params, rows)), np.float64)
    return np.take_along_axis(log_p[:, 1:-1], rows[:, 2:, None], -1)[..., 0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("letters", 1, r"letters must lie in \[2, 26\]"),
        ("held_out", 256, r"held_out must lie in \[1, 255\]"),
        ("horizon", 0, "horizon must be >= 1"),
        ("start_batch", 0, "batch_size must be >= 1"),
    ],
)
def test_sizes_are_checked(field: str, value: int, message: str):
    with pytest.raises(ValueError, match=message):
        letters.Sizes(**{field: value})
