"""Tests of lm/image_policy.py."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from kullback.core import rollout
from kullback.core.sampling import Sampling
from kullback.environments import tokens
from kullback.lm import batches, gemma, image_grammar, image_policy, policy
from tests.states import fresh_params

IDS = image_grammar.ids_of(20, 6, 4)
MODEL = gemma.make(
    gemma.Config(
        vocab_size=IDS.total,
        num_layers=2,
        embed_dim=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        hidden_dim=32,
        window=4,
        query_scale=8.0,
        pattern=2,
    )
)
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


@pytest.mark.parametrize("scale", [1.0, 2.5])
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
