"""Tests of lm/reward_model.py."""

import dataclasses
import functools
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kullback.core import types
from kullback.environments import tokens
from kullback.lm import batches, gemma, preferences, reward_model, tuning
from kullback.lm.data import Example
from tests.states import begun, fresh_params

SIZE = 4  # Pairs of a batch.
DECODER = gemma.make(
    dataclasses.replace(
        gemma.PRESETS["tiny"], vocab_size=24, num_layers=1, embed_dim=16, hidden_dim=16, window=4
    )
)
MODEL = reward_model.on_decoder(DECODER)
LEARNING = tuning.Config(
    batch_size=SIZE, max_prompt_length=4, max_new_tokens=6, warmup_steps=0, learning_rate=1e-3
)
PLAIN = reward_model.Config(dropout=0.0, learning=LEARNING)

bradley_terry = jax.jit(reward_model.bradley_terry)
rewards_of = jax.jit(MODEL.rewards)
rewards = hnp.arrays(np.float32, (3,), elements=st.floats(-9, 9, width=32, allow_subnormal=False))


@functools.cache
def params(seed: int = 0) -> Any:
    """Returns random parameters with a head that is not 0."""
    w = jax.random.normal(jax.random.key(seed + 1), (16,))
    head = {"w": w, "b": jnp.float32(0.3)}
    return {"decoder": fresh_params(DECODER.init, seed), "head": head}


@functools.cache
def pairs() -> list[preferences.Pair]:
    rng = np.random.default_rng(0)

    def completion(length: int) -> tuple[int, ...]:
        return (*rng.integers(3, 24, length).tolist(), 1)

    prompts = [tuple(rng.integers(3, 24, n).tolist()) for n in (1, 4, 2, 3)]
    return [
        preferences.Pair(Example(p, completion(a)), Example(p, completion(b)))
        for p, a, b in zip(prompts, (2, 5, 1, 4), (5, 1, 2, 3), strict=True)
    ]


def batch() -> types.Batch:
    ones = np.ones(SIZE, np.float32)
    data = preferences.pad(pairs(), 10, 0)
    return types.Batch(data, np.arange(SIZE, dtype=np.int32), ones / SIZE, ones)


def step(config: reward_model.Config, start: Any = None, key: int = 0) -> Any:
    """Returns state and feedback of one learner step."""
    learner = reward_model.make(DECODER, config).learner
    state = begun(learner, start or params(), seed=key)
    return jax.jit(learner.step)(state, batch(), types.NO_CONSTANTS)


def close(a: Any, b: Any, atol: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_equal_rewards_cost_ln_2():
    np.testing.assert_allclose(bradley_terry(jnp.ones(3), jnp.ones(3)), np.log(2), rtol=1e-6)
    # ln(1 + e^-2) = 0.126928; with a margin of 2 the difference is none.
    two = jnp.float32(2), jnp.float32(0)
    np.testing.assert_allclose(bradley_terry(*two), 0.126928, rtol=1e-5)
    np.testing.assert_allclose(reward_model.bradley_terry(*two, 2.0), np.log(2), rtol=1e-6)


gradients = jax.jit(jax.grad(lambda *r: jnp.mean(reward_model.bradley_terry(*r)), argnums=(0, 1)))


@hypothesis.settings(deadline=None)
@hypothesis.given(chosen=rewards, rejected=rewards, offset=rewards)
def test_bradley_terry_is_of_differences(chosen: Any, rejected: Any, offset: Any):
    """Oracle in float64; an offset of both says nothing; a swapped label turns the gradient."""
    d = np.float64(chosen) - np.float64(rejected)
    np.testing.assert_allclose(bradley_terry(chosen, rejected), np.logaddexp(0, -d), rtol=1e-4)
    slope = -(1 - 1 / (1 + np.exp(-d))) / 3
    got = gradients(chosen, rejected)
    np.testing.assert_allclose(got[0], slope, atol=1e-5)
    np.testing.assert_allclose(got[1], -slope, atol=1e-5)
    moved = gradients(chosen + offset, rejected + offset)
    close(moved, got, 1e-5)
    swapped = gradients(rejected, chosen)
    assert np.all(np.sign(swapped[0]) == -np.sign(swapped[1]))
    np.testing.assert_allclose(swapped[1], 1 / 3 + slope, atol=1e-5)  # sigmoid(-d) + sigmoid(d) = 1


def test_the_best_margin_under_noise():
    """Of labels a quarter of which are wrong: ln(0.75 / 0.25) = ln 3."""

    def noisy(d: jax.Array) -> jax.Array:
        right, wrong = reward_model.bradley_terry(d, 0 * d), reward_model.bradley_terry(0 * d, d)
        return jnp.sum(0.75 * right + 0.25 * wrong)

    margins = jnp.array([np.log(3) - 0.1, np.log(3), np.log(3) + 0.1], jnp.float32)
    slope = jax.grad(noisy)(margins)
    np.testing.assert_allclose(slope[1], 0, atol=1e-6)
    assert slope[0] < -1e-3 and slope[2] > 1e-3


def test_a_constant_model_is_right_half_of_the_time():
    np.testing.assert_array_equal(reward_model.accuracy(np.array([2.0, -1.0, 0.0])), [1, 0, 0.5])
    zeros = rewards_of(reward_model.with_head(params()["decoder"], 16), batch().data.chosen)
    np.testing.assert_array_equal(reward_model.accuracy(zeros - zeros), np.full(SIZE, 0.5))


def test_calibration_by_hand():
    # Three pairs at sigmoid(1.2) = 0.7685, in [0.75, 0.80), of which two are right: 3/4 times
    # |2/3 - 0.7685|; and a tie at 0.5, which is right by half.
    error, table = reward_model.calibration(np.array([1.2, 1.2, -1.2, 0.0], np.float32))
    np.testing.assert_allclose(error, 0.75 * (0.7685248 - 2 / 3), rtol=1e-5)
    assert [row.pairs for row in table] == [1, 0, 0, 0, 0, 3, 0, 0, 0, 0]
    np.testing.assert_allclose(table[0][:2] + table[0][3:], [0.5, 0.55, 0.5, 0.5])
    np.testing.assert_allclose(table[5][3:], [0.7685248, 2 / 3], rtol=1e-6)
    assert reward_model.calibration(np.full(8, 50.0))[0] < 1e-9  # Sure, and right: in the last bin.
    assert reward_model.calibration(np.full(8, -50.0))[0] > 1 - 1e-9


def test_probing_finds_the_one_minimum():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(2, 40, 5)) + np.array([[[1.0]], [[0.0]]]) * np.eye(5)[0]
    head = reward_model.probe(chosen, rejected, 0.05)
    w, d = np.float64(head["w"]), chosen - rejected
    slope = -(1 / (1 + np.exp(d @ w))) @ d / len(d) + 0.05 * w
    np.testing.assert_allclose(slope, 0, atol=1e-5)
    assert head["w"][0] > 0.3 and head["b"] == 0
    order = rng.permutation(40)
    close(reward_model.probe(chosen[order], rejected[order], 0.05), head, 1e-5)
    assert np.linalg.norm(reward_model.probe(chosen, rejected, 5.0)["w"]) < np.linalg.norm(w) / 5


def test_the_reward_is_of_the_last_token():
    rows = batch().data.chosen
    inputs = rows.tokens, rows.positions, rows.segments
    every = jax.jit(DECODER.features)(params()["decoder"], *inputs)
    last = np.asarray(every, np.float64)[np.arange(SIZE), rows.lengths - 1]
    expected = last @ np.float64(params()["head"]["w"]) + 0.3
    got = rewards_of(params(), rows)
    assert got.dtype == jnp.float32 and got.shape == (SIZE,)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    centred = reward_model.centred(params(), jnp.mean(got))
    np.testing.assert_allclose(jnp.mean(rewards_of(centred, rows)), 0, atol=1e-5)


def test_neither_side_nor_length_of_the_padding_counts():
    rows = batch().data.chosen
    expected = rewards_of(params(), rows)
    examples = [pair.chosen for pair in pairs()]
    np.testing.assert_allclose(rewards_of(params(), batches.pad(examples, 16, 9)), expected, 1e-4)
    left = jax.tree.map(np.copy, rows)
    for b, n in enumerate(rows.lengths):
        for array in (left.tokens, left.positions, left.segments, left.is_answer):
            array[b] = np.roll(array[b], 10 - n)
    np.testing.assert_allclose(rewards_of(params(), left), expected, rtol=1e-4)
    alone = [rewards_of(params(), batches.pad([example], 10, 0))[0] for example in examples]
    np.testing.assert_allclose(alone, expected, rtol=1e-4)


@pytest.mark.slow
def test_a_step_is_the_mean_over_pairs():
    """Oracle: the loss in float64, from rewards; the metrics are of the same numbers."""
    state, feedback = step(dataclasses.replace(PLAIN, margin=0.5))
    chosen, rejected = (np.float64(rewards_of(params(), rows)) for rows in batch().data)
    d, metrics = chosen - rejected, feedback.metrics
    np.testing.assert_allclose(metrics["loss"], np.mean(np.logaddexp(0, 0.5 - d)), rtol=1e-4)
    np.testing.assert_allclose(metrics["margin"], d, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(metrics["accuracy"], d > 0)
    np.testing.assert_allclose(metrics["reward_mean"], (chosen + rejected) / 2, rtol=1e-3)
    sure = 1 / (1 + np.exp(-np.abs(d)))
    np.testing.assert_allclose(metrics["overconfidence"], sure - (d > 0), atol=1e-4)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), state.params, params())
    assert moved["head"]["w"] > 1e-4 and moved["decoder"]["embedding"] > 1e-4
    np.testing.assert_allclose(moved["head"]["b"], 0, atol=1e-5)  # No pair moves it: rounding may.


@pytest.mark.slow
def test_dropout_is_of_training_alone():
    learning = dataclasses.replace(LEARNING, learning_rate=1e-9)
    config = dataclasses.replace(PLAIN, dropout=0.5, learning=learning)
    losses = {float(step(config, key=key)[1].metrics["loss"]) for key in (0, 0, 1)}
    assert len(losses) == 2  # Of one key it is the same.
    scorer = reward_model.scorer(reward_model.on_decoder(DECODER), params())
    prompts = batches.pad_prompts([p.chosen.prompt for p in pairs()], 4, 0)
    answers = np.zeros((SIZE, 6), np.int32)
    for row, pair in zip(answers, pairs(), strict=True):
        row[: len(pair.chosen.completion)] = pair.chosen.completion
    lengths = np.array([len(p.chosen.completion) for p in pairs()], np.int32)
    is_answer = np.arange(6)[None] < lengths[:, None]
    completion = tokens.Completion(answers, is_answer, lengths, lengths < 0, np.zeros((SIZE, 6)))  # pyright: ignore[reportArgumentType]
    expected = rewards_of(params(), batch().data.chosen)
    program = jax.jit(scorer.score)
    for context in (prompts, (prompts, "targets")):
        got = scorer.score(scorer.params, completion, context)
        np.testing.assert_allclose(got, expected, rtol=1e-4)
    np.testing.assert_allclose(program(scorer.params, completion, prompts), expected, rtol=1e-4)
    assert scorer.is_compiled
    with pytest.raises(ValueError, match=r"reads \(prompts, ...\) as its context, got str"):
        scorer.score(scorer.params, completion, "prompts")


def test_dropout_keeps_the_mean():
    keys = jax.random.split(jax.random.key(0), 4_000)
    dropped = np.asarray(reward_model._dropout(jnp.ones((4_000, 8)), keys, 0.25))
    assert set(np.unique(dropped.round(4))) == {0.0, np.float32(1.3333)}
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.02)
    assert len({row.tobytes() for row in dropped[:20]}) > 10


@pytest.mark.slow
def test_micro_batches_add_up_to_the_batch():
    """With the same dropout: each pair has its key."""
    ends = []
    for count in (1, 4):
        learning = dataclasses.replace(LEARNING, micro_batches=count)
        state, feedback = step(dataclasses.replace(PLAIN, dropout=0.3, learning=learning))
        ends.append((state.params, feedback.metrics))
    close(ends[0][1], ends[1][1], 1e-5)
    close(ends[0][0], ends[1][0], 1e-4)


@pytest.mark.slow
def test_training_the_head_leaves_the_decoder_as_it_was():
    config = dataclasses.replace(PLAIN, trains="head")
    state, _ = step(config)
    jax.tree.map(np.testing.assert_array_equal, state.params["decoder"], params()["decoder"])
    whole, _ = step(PLAIN)
    # Adam's first step is of the sign alone: the head's is the same whatever else moves.
    close(state.params["head"], whole.params["head"], 1e-5)
    assert float(jnp.max(jnp.abs(state.params["head"]["w"] - params()["head"]["w"]))) > 1e-4
    sizes = [sum(x.size for x in jax.tree.leaves(s.opt_state)) for s in (state, whole)]
    assert sizes[0] < 40 < sizes[1], "a frozen decoder has no moments"


def test_a_reward_model_does_not_act():
    agent = reward_model.make(DECODER, PLAIN)
    with pytest.raises(ValueError, match="it has no policy"):
        agent.policy.initial_state({}, None, 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_a_gold_reward(seed: int):
    """How often token 5 was written; 240 pairs, 150 steps; held-out accuracy above 0.9."""
    rng = np.random.default_rng(seed)

    def pair() -> preferences.Pair:
        few, many = sorted(rng.choice(6, 2, replace=False))
        answers = []
        for count in (many, few):
            ids = np.where(np.arange(6) < count, 5, rng.integers(6, 24, 6))
            answers.append(Example((2, 3), (*rng.permutation(ids).tolist(), 1)))
        return preferences.Pair(*answers)

    train, test = [pair() for _ in range(240)], [pair() for _ in range(200)]
    learning = dataclasses.replace(LEARNING, batch_size=16, learning_rate=1e-2)
    decoder = gemma.make(dataclasses.replace(DECODER.config, window=16))  # The last token sees all.
    learner = reward_model.make(decoder, dataclasses.replace(PLAIN, learning=learning)).learner
    rewards = jax.jit(reward_model.on_decoder(decoder).rewards)
    sample = preferences.sampler(train, batches.Config(batch_size=16, seed=seed), 0)
    state, learn, ones = learner.init(jax.random.key(seed)), jax.jit(learner.step), np.ones(16)
    held_out = preferences.pad(test, 16, 0)

    def right(params: Any) -> float:
        chosen, rejected = (rewards(params, rows) for rows in held_out)
        return float(reward_model.accuracy(chosen - rejected).mean())

    assert right(state.params) == 0.5
    for number in range(150):
        step = types.Batch(sample(number), np.arange(16), ones / 16, ones.astype(np.float32))
        state, _ = learn(state, step, types.NO_CONSTANTS)
    assert right(state.params) > 0.9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1\.0"),
        ({"corruption": 1.5}, "corruption must lie in"),
        ({"margin": -1.0}, "margin must be >= 0, got -1"),
        ({"trains": "tail"}, "trains must be all or head, got 'tail'"),
        ({"probe_pairs": -1}, "probe_pairs must be >= 0"),
        ({"probe_penalty": 0.0}, "probe_penalty must be > 0, got 0"),
        (
            {"learning": tuning.Config(pack=True, reduction="token")},
            "a reward is of a whole row: pack must be False",
        ),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        reward_model.Config(**fields)
