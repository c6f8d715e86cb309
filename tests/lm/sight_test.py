"""Tests of lm/sight.py, and of policies and learners over rows with images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import types
from kullback.core.sampling import Sampling
from kullback.lm import (
    adapters,
    answers,
    batches,
    blocks,
    completions,
    dpo,
    gemma,
    interleaved,
    lora,
    policy,
    preferences,
    reward_model,
    rlhf,
    rollouts,
    sft,
    sight,
    siglip,
    tuning,
    value_network,
    vision,
)
from kullback.lm.data import Example
from tests import small_models
from tests.states import begun, fresh_params

IDS = blocks.Delimiters(begin=29, soft=28, end=30)
M, E, HORIZON = 4, 6, 5
VISION = vision.Config(
    encoder=siglip.Config(
        image_size=8, patch_size=2, embed_dim=E, num_layers=1, num_heads=2, hidden_dim=8
    ),
    num_soft=M,
    ids=IDS,
)
DECODER = gemma.make(small_models.shape(32, num_heads=4, num_kv_heads=2, hidden_dim=24, window=3))
MODEL = sight.seeing(DECODER, VISION)
IMAGE = [IDS.begin, *[IDS.soft] * M, IDS.end]
PROMPTS = [[2, 5, *IMAGE, 7, *IMAGE, 8, 9], [2, *IMAGE, 4, 6], [2, 11, 3]]
apply = jax.jit(MODEL.apply)


@pytest.fixture(autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def params():
    """Returns random parameters, also of norms: else every text would echo its last token."""
    projector = vision.init_projector(jax.random.key(1), VISION, 16)
    random = np.random.default_rng(1)

    def noisy(path, x):
        is_norm = path[-1].key.endswith("norm")
        return x + 3 * random.normal(size=x.shape).astype(np.float32) if is_norm else x

    decoder = jax.tree_util.tree_map_with_path(noisy, fresh_params(DECODER.init))
    return {**decoder, vision.PROJECTOR: projector}


def medium(number: int) -> interleaved.Medium:
    return interleaved.Medium(number, 0, M)


def features(media) -> np.ndarray:
    """Returns random features of images, by their number."""
    of = [np.random.default_rng(m.source).normal(size=(M, E)).astype(np.float32) for m in media]
    return np.stack(of) if of else np.zeros((0, M, E), np.float32)


def examples() -> list[Example]:
    media = [(medium(0), medium(1)), (medium(2),), ()]
    return [Example(tuple(p), (12, 1), media=m) for p, m in zip(PROMPTS, media, strict=True)]


def prompts() -> batches.Prompts:
    pooled = batches.pad_features([e.media for e in examples()], features)
    return batches.pad_prompts(PROMPTS, 18, 0)._replace(sensed=pooled)


def greedy_texts(model: gemma.Model, acting, given: batches.Prompts, samples: int):
    sampler = completions.sampler(
        model, HORIZON, sampling=Sampling(temperature=0), samples_per_prompt=samples
    )
    write = jax.jit(
        lambda acting: sampler.completions({"params": acting}, given, jax.random.key(0))
    )
    return write(acting)


def full_pass(acting, completion) -> tuple[batches.Sequences, jax.Array]:
    """Returns two texts of each prompt as rows, and the logits of a full pass over them."""
    rows = completions.joined(policy.repeat_prompts(prompts(), 2), completion)
    assert rows.sensed is not None
    return rows, apply(acting, rows.tokens, rows.positions, rows.segments, **rows.senses)


@pytest.mark.slow
def test_greedy_texts_of_a_policy_are_those_of_the_full_pass():
    """The prompt is read once, with its images, for both samples of it."""
    got = greedy_texts(MODEL, params(), prompts(), 2)
    rows, logits = full_pass(params(), got)
    logits = logits.at[..., IDS.begin].set(-jnp.inf)
    best = np.asarray(jnp.argmax(logits, -1))[:, :-1]
    is_answer = np.asarray(rows.is_answer)[:, 1:]
    np.testing.assert_array_equal(best[is_answer], np.asarray(rows.tokens)[:, 1:][is_answer])
    # They depend on the images.
    blind = prompts()._replace(sensed=0 * np.asarray(prompts().sensed))
    other = greedy_texts(MODEL, params(), blind, 2)
    assert np.any(other.tokens[:4] != got.tokens[:4])
    np.testing.assert_array_equal(other.tokens[4:], got.tokens[4:])


def test_what_begins_an_image_is_never_drawn():
    p = {**params(), "embedding": params()["embedding"].at[IDS.begin].mul(50.0)}
    got = greedy_texts(MODEL, p, prompts(), 2)
    assert not np.any(got.tokens == IDS.begin)
    rows, logits = full_pass(p, got)
    is_best = np.argmax(logits, -1)[:, :-1] == IDS.begin
    assert np.any(is_best[np.asarray(rows.is_answer)[:, 1:]])


def test_text_alone_is_that_of_the_decoder():
    row = np.arange(9, dtype=np.int32)[None]
    np.testing.assert_array_equal(apply(params(), row), jax.jit(DECODER.apply)(params(), row))
    with pytest.raises(AssertionError):
        MODEL.apply(params(), row, sensed=np.zeros((1, 1, M, E + 1), np.float32))


def test_batches_carry_features_in_the_order_of_the_images():
    config = batches.Config(batch_size=3, lengths=(32,))
    sampler = batches.make(examples(), config, 0, features=features)
    batch = sampler.sequences(0)
    assert batch.data.sensed.shape == (3, 2, M, E)
    for row, i in enumerate(batch.indices):
        media = examples()[i].media
        np.testing.assert_array_equal(batch.data.sensed[row, : len(media)], features(media))
        assert not np.any(batch.data.sensed[row, len(media) :])
    np.testing.assert_array_equal(sampler.prompts(0).sensed, batch.data.sensed)
    packing = batches.Config(batch_size=1, lengths=(64,), pack=True)
    packed = batches.make(examples(), packing, 0, features=features)
    assert packed.sequences(0).data.sensed.shape == (1, 4, M, E)
    assert batches.make(examples()[2:], config, 0).sequences(0).data.sensed is None
    only_text = batches.pad_features([()], features)
    assert only_text.shape == (1, 1, M, E)
    with pytest.raises(ValueError, match="examples have images or clips, which this"):
        batches.make(examples(), config, 0)


@pytest.mark.slow
def test_packed_rows_are_learnt_as_rows_of_their_own():
    one = batches.pad(examples(), 20, 0)
    one = one._replace(sensed=batches.pad_features([e.media for e in examples()], features))
    packed = batches.pack([examples()], 64, 0)
    packed = packed._replace(
        sensed=batches.pad_features([[m for e in examples() for m in e.media]], features)
    )
    got, expected = (
        np.asarray(apply(params(), x.tokens, x.positions, x.segments, **x.senses))
        for x in (packed, one)
    )
    begin = 0
    for row, example in enumerate(examples()):
        of_packed = got[0, begin : begin + example.length]
        np.testing.assert_allclose(of_packed, expected[row, : example.length], atol=5e-5)
        begin += example.length


LEARNING = tuning.Config(
    batch_size=8, max_prompt_length=16, max_new_tokens=2, warmup_steps=0, learning_rate=1e-2
)


@pytest.mark.slow
def test_sft_learns_to_say_what_an_image_is_and_guesses_where_images_are_shuffled():
    """The images alone tell the answer; the projector learns with the decoder."""
    data = [Example((2, *IMAGE, 4), (12 + n % 2, 1), media=(medium(n),)) for n in range(8)]
    batch = batches.make(
        data, batches.Config(batch_size=8, lengths=(16,)), 0, features=features
    ).sequences(0)
    agent = sft.make(MODEL, sft.Config(learning=LEARNING))
    state, step = begun(agent.learner, params()), jax.jit(agent.learner.step)
    for _ in range(60):
        state, _ = step(state, batch, types.Constants())
    _, feedback = step(state, batch, types.Constants())
    assert np.mean(feedback.metrics["accuracy"]) == 1
    moved = jax.tree.map(lambda a, b: np.any(a != b), state.params, params())
    assert all(jax.tree.leaves(moved[vision.PROJECTOR]))
    others = features([medium(i ^ 1) for i in batch.indices])[:, None]  # Of the other answer.
    wrong = batch._replace(data=batch.data._replace(sensed=others))
    _, feedback = step(state, wrong, types.Constants())
    np.testing.assert_array_equal(feedback.metrics["accuracy"], 0.5)  # The end of the text.


@pytest.mark.slow
def test_adapters_learn_beside_a_projector_that_is_the_bases():
    settings = lora.Config(rank=2)
    model = adapters.adapted(MODEL, settings)
    learnt = jax.eval_shape(model.init, jax.random.key(0))
    assert model.lend_sense is not None and vision.PROJECTOR not in learnt


def seen_rows() -> batches.Sequences:
    """Returns two answers to each of two prompts with images, and the images' features."""
    completed = [(12, 7, 1), (13, 1), (14, 1), (12, 9, 5, 1)]
    first, second, _ = examples()
    of = [first, first, second, second]
    rows = [e._replace(completion=a) for e, a in zip(of, completed, strict=True)]
    padded = batches.pad(rows, 22, 0)
    return padded._replace(sensed=batches.pad_features([e.media for e in rows], features))


def test_measures_and_rewards_of_answers_see_the_images():
    rows = seen_rows()
    model = reward_model.on_decoder(MODEL)
    random = np.random.default_rng(3).normal(size=16).astype(np.float32)
    head = {"w": random, "b": np.float32(0)}

    @jax.jit
    def all_three(decoder, rows):
        measured, mask = answers.per_token(
            lambda logits, labels: answers.log_probability(logits, labels, 1.0),
            rows,
            (MODEL, decoder),
            chunk=16,
        )
        value = {"decoder": decoder, "head": random}
        predicted = value_network.predict(MODEL, {**decoder, value_network.KEY: value}, rows)
        return measured, mask, model.rewards({"decoder": decoder, "head": head}, rows), predicted

    measured, mask, rewards, predicted = all_three(params(), rows)
    logits = apply(params(), rows.tokens, rows.positions, rows.segments, **rows.senses)
    log_p = jax.nn.log_softmax(logits)[:, :-1]
    expected = jnp.take_along_axis(log_p, jnp.asarray(rows.tokens)[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(measured, np.where(mask, expected, 0), atol=5e-4)
    blind = all_three(params(), rows._replace(sensed=0 * np.asarray(rows.sensed)))
    for one, other in zip((measured, rewards, predicted), (blind[0], *blind[2:]), strict=True):
        assert np.all(np.max(np.abs(one - other).reshape(4, -1), 1) > 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rlhf", "dpo", "reward-model"])
def test_learners_of_rewards_and_pairs_move_the_projector(algorithm: str):
    rows, ones = seen_rows(), np.ones(4, np.float32)
    learning = tuning.Config(batch_size=4, max_prompt_length=18, max_new_tokens=4, warmup_steps=0)
    pairs = preferences.Pairs(rows, jax.tree.map(lambda x: np.roll(x, 1, 0), rows))
    if algorithm == "rlhf":
        agent = rlhf.make(MODEL, config=rlhf.Config(samples_per_prompt=2, learning=learning))
        drawn = np.zeros(rows.tokens.shape, np.float32)
        data = rollouts.Episodes(rows, np.array([1, 0, 0, 2], np.float32), drawn)
        initial = params()
    elif algorithm == "dpo":
        agent = dpo.make(MODEL, dpo.Config(learning=learning))
        data, initial = dpo.Referred(pairs, np.zeros((4, 2), np.float32)), params()
    else:
        agent = reward_model.make(MODEL, reward_model.Config(learning=learning))
        head = {"w": np.ones(16, np.float32), "b": np.zeros((), np.float32)}
        data, initial = pairs, {"decoder": params(), "head": head}
    batch = types.Batch(data, np.arange(4, dtype=np.int32), ones / 4, ones)
    state = begun(agent.learner, initial)
    state, _ = jax.jit(agent.learner.step)(state, batch, types.Constants(start=params()))
    before = initial["decoder"] if "decoder" in initial else initial
    after = state.params["decoder"] if "decoder" in state.params else state.params
    moved = jax.tree.map(
        lambda a, b: np.any(a != b), *(x[vision.PROJECTOR] for x in (before, after))
    )
    assert all(jax.tree.leaves(moved))


def test_pairs_carry_features_of_their_prompt():
    first = examples()[0]
    pair = preferences.Pair(first, first._replace(completion=(14, 1)))
    batched = preferences.batched([pair], batches.Config(batch_size=1), 0, features)
    got = batched.padded(np.array([0]))
    assert got.chosen.sensed is not None
    np.testing.assert_array_equal(got.chosen.sensed[0], features(first.media))
    np.testing.assert_array_equal(got.rejected.sensed, got.chosen.sensed)
    with pytest.raises(ValueError, match="examples have images or clips, which this"):
        preferences.batched([pair], batches.Config(batch_size=1), 0)
