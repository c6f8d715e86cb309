"""Tests of lm/image_policy.py."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import learners, rollout, types
from kullback.core.sampling import Sampling
from kullback.environments import tokens
from kullback.lm import batches, gemma, image_codes, image_grammar, image_policy, policy
from tests import small_models
from tests.states import fresh_params

IDS = image_grammar.ids_of(20, 6, 4)
MODEL = gemma.make(small_models.shape(IDS.total))
PARAMS = {"params": fresh_params(MODEL.init, 7)}
P, T, ROWS = 7, 14, 6
STOP = (1,)
apply = jax.jit(MODEL.apply)
# Prompts that end in text, where an image begins, in the middle of one, and after one.
PROMPTS = [
    [5, 6, 7],
    [5, IDS.begin],
    [5, IDS.begin, IDS.first, IDS.first + 3],
    [IDS.begin, *[IDS.first + 1] * 4, IDS.end, 9],
    [IDS.begin, *[IDS.first + 1] * 4, IDS.end],
    [8],
]
CONTEXT = batches.pad_prompts(PROMPTS, P, pad_id=IDS.begin)  # Padding is no image's beginning.
NOTHING = batches.pad_prompts([[p[-1]] for p in PROMPTS], P, pad_id=0)


@functools.cache
def generator(scale: float) -> Any:
    """Returns key -> actions and extras, [T, B] each."""
    writer = image_policy.language_model(MODEL, IDS, guidance_scale=scale)
    context = CONTEXT if scale == 1 else image_policy.Guidance(CONTEXT, NOTHING)

    @jax.jit
    def run(key: jax.Array) -> Any:
        environment = tokens.make_batch(
            CONTEXT.tokens, CONTEXT.lengths, horizon=T, vocab_size=IDS.total, stop_tokens=STOP
        )
        state = rollout.start(writer, environment, PARAMS, key, context, P + T)
        trajectory, _ = rollout.rollout(writer, environment, PARAMS, state, key, T)
        return tokens.completions(trajectory, STOP), trajectory.extras

    return run


def teacher_forced(rows: list[list[int]]) -> np.ndarray:
    """Returns the logits after each token of some rows, float64 [B, P + T, ids]."""
    padded = np.zeros((len(rows), P + T), np.int32)
    for b, row in enumerate(rows):
        padded[b, : len(row)] = row
    return np.asarray(apply(PARAMS["params"], padded), np.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


@pytest.mark.parametrize("scale", [pytest.param(1.0, marks=pytest.mark.slow), 2.5])
def test_every_image_is_closed_and_probabilities_are_those_of_the_definition(scale: float):
    num_images = 0
    for seed in range(2):
        completion, extras = generator(scale)(jax.random.key(seed))
        answers = [
            np.asarray(row)[np.asarray(is_answer)].tolist()
            for row, is_answer in zip(completion.tokens, completion.is_answer, strict=True)
        ]
        rows = [[*prompt, *answer] for prompt, answer in zip(PROMPTS, answers, strict=True)]
        logits = teacher_forced(rows)
        without = teacher_forced([row[len(p) - 1 :] for row, p in zip(rows, PROMPTS, strict=True)])
        for b, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
            num_images += len(image_grammar.images(rows[b], IDS))  # It raises for any other row.
            for t, token in enumerate(answer):
                so_far = rows[b][: len(prompt) + t]
                begun = (
                    len(so_far) - 1 - so_far[::-1].index(IDS.begin) if IDS.begin in so_far else 0
                )
                num_codes = len(so_far) - 1 - begun
                x, u = logits[b, len(so_far) - 1], without[b, t]
                of_model = log_softmax(x)[token]
                text, begin, end, first = 20, IDS.begin, IDS.end, IDS.first
                mask = np.zeros(IDS.total, bool)
                if IDS.begin in so_far and num_codes <= IDS.length:
                    x = u + scale * (x - u)
                    mask[[*range(first, IDS.total)] if num_codes < IDS.length else [end]] = True
                else:
                    mask[:text] = True
                    mask[begin] = T - t >= IDS.length + 2
                of_draw = log_softmax(np.where(mask, x, -1e30))[token]
                np.testing.assert_allclose(extras["log_probability"][t, b], of_draw, atol=1e-4)
                got = extras["model_log_probability"][t, b]
                np.testing.assert_allclose(got, of_model, atol=1e-4)
    assert num_images >= 2 * 4  # Four rows hold one from the beginning.


def test_another_use_is_refused():
    with pytest.raises(ValueError, match="the model has 28 ids, expected 29"):
        image_policy.language_model(MODEL, IDS._replace(num_codes=7))
    with pytest.raises(ValueError, match="repetition_penalty must be 1"):
        image_policy.language_model(MODEL, IDS, Sampling(repetition_penalty=1.2))
    plain = image_policy.language_model(MODEL, IDS)
    with pytest.raises(ValueError, match=r"guidance_scale=1\.0 takes Prompts, got Guidance"):
        plain.initial_state(PARAMS, image_policy.Guidance(CONTEXT, NOTHING), P + T)
    guided = image_policy.language_model(MODEL, IDS, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0 takes Guidance, got Prompts"):
        guided.initial_state(PARAMS, CONTEXT, P + T)
    with pytest.raises(ValueError, match="a language model starts from"):
        plain.initial_state(PARAMS, None, P + T)
    assert policy.POLICY in PARAMS


@pytest.mark.slow
def test_a_model_learns_to_draw_what_a_word_names():
    """Four kinds of noisy pictures, by codes learnt of them, with guidance and without."""
    rng = np.random.default_rng(0)
    patterns = rng.choice([-0.8, 0.8], (4, 8, 8, 1))

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        kinds = rng.integers(0, 4, count)
        noise = rng.normal(size=(count, 8, 8, 1)) * 0.1
        return (patterns[kinds] + noise).astype(np.float32), kinds

    sizes = image_codes.Config(patch=4, num_codes=16, code_dim=4, hidden=32, learning_rate=5e-3)
    coder = image_codes.make(sizes)
    coded, learn = coder.learner.init(jax.random.key(0)), jax.jit(coder.learner.step)
    for _ in range(200):
        coded, feedback = learn(coded, types.Batch.of(draw(32)[0]))
        del feedback
    encode = jax.jit(coder.encode)

    text = dataclasses.replace(MODEL.config, vocab_size=20)
    ids = image_grammar.ids_of(20, sizes.num_codes, sizes.length)
    model = gemma.make(image_grammar.extended_config(text, ids))
    first_word = 5  # Ids 5 to 8 name the kinds.

    def init(key: jax.Array) -> types.Params:
        return image_grammar.extended_params(gemma.make(text).init(key), ids, key)

    def loss(params, rows):
        logits = model.apply(params, rows[:, :-1])[:, 1:]  # After the word.
        labels = rows[:, 2:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), {}

    learner = learners.sgd(init, learners.plain(loss), optax.adam(5e-3))
    state, step = learner.init(jax.random.key(1)), jax.jit(learner.step)
    for _ in range(200):
        images, kinds = draw(32)
        written = image_grammar.written(encode(coded.params, coded.aux, images), ids)
        ends = np.stack([np.full(32, 2), first_word + kinds, np.full(32, 1)], 1)
        rows = np.concatenate([ends[:, :2], written, ends[:, 2:]], 1).astype(np.int32)
        state, _ = step(state, types.Batch.of(rows))

    kinds = np.arange(64) % 4
    prompts = batches.pad_prompts([[2, first_word + kind] for kind in kinds.tolist()], 2, 0)
    nothing = batches.pad_prompts([[2, 0]] * 64, 2, 0)
    for scale, context in ((1.0, prompts), (2.0, image_policy.Guidance(prompts, nothing))):
        writer = image_policy.language_model(model, ids, guidance_scale=scale)
        place = tokens.make_batch(
            prompts.tokens, prompts.lengths, horizon=8, vocab_size=ids.total, stop_tokens=STOP
        )
        acting, key = {"params": state.params}, jax.random.key(2)
        start = rollout.start(writer, place, acting, key, context, 10)
        trajectory, _ = jax.jit(
            lambda start, writer=writer, place=place, acting=acting, key=key: rollout.rollout(
                writer, place, acting, start, key, 8
            )
        )(start)
        completion = tokens.completions(trajectory, STOP)
        drawn = [
            image_grammar.images(np.asarray(row)[np.asarray(is_answer)].tolist(), ids)
            for row, is_answer in zip(completion.tokens, completion.is_answer, strict=True)
        ]
        assert np.mean([len(codes) == 1 for codes in drawn]) > 0.9
        first = np.stack([codes[0] if len(codes) else np.zeros(4, int) for codes in drawn])
        pixels = np.asarray(coder.decode(coded.params, coded.aux, first))
        distances = ((pixels[:, None] - patterns[None]) ** 2).sum((2, 3, 4))
        assert np.mean(distances.argmin(1) == kinds) > 0.9
