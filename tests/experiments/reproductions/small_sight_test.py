"""Tests of experiments/reproductions/small_sight.py."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from kullback.core import sampling
from kullback.environments import tokens
from kullback.experiments.reproductions import small_senses, small_sight
from kullback.lm import batches, completions, siglip

SIZES = small_sight.Sizes(
    side=8, patch=2, num_soft=4, encoder_width=8, encoder_layers=1, width=8, layers=1
)
TEXTS = ("ab?", "b?", "a", "b", "ba")


@pytest.fixture(scope="module")
def seer() -> small_sight.Seer:
    return small_sight.make(SIZES, TEXTS * 2, 16)


def features(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(number, 1, 4, 8)).astype(np.float32)


def test_an_image_stands_before_its_text(seer: small_sight.Seer):
    ids = seer.vision.ids
    text = seer.tokenizer.encode("ab?")
    expected = [seer.tokenizer.bos_id, ids.begin, *[ids.soft] * 4, ids.end, *text]
    assert [*seer.prompt("ab?")] == expected
    (example,) = seer.examples([("ab?", "ba")])
    assert example.prompt == tuple(expected)
    assert example.completion == (*seer.tokenizer.encode("ba"), seer.tokenizer.eos_id)
    rows = small_senses.sequences(seer, [example], features(1), 16)
    assert rows.senses["sensed"].shape == (1, 1, 4, 8)


def test_pictures_are_encoded_in_batches_of_one_size(
    seer: small_sight.Seer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(small_sight, "BATCH", 2)
    siglip_model = siglip.make(SIZES.encoder)
    encoder = jax.jit(siglip_model.init)(jax.random.key(0))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    got = small_sight.encoded(seer.vision, encoder, pixels)
    # x / 127.5 - 1, and the mean over squares of patches.
    images = np.float32(pixels / 127.5 - 1)
    features = np.asarray(jax.jit(siglip_model.apply)(encoder, images))
    grid = features.reshape(3, 2, 2, 2, 2, 8)
    np.testing.assert_allclose(got[:, 0], grid.mean((2, 4)).reshape(3, 4, 8), atol=1e-5)


def test_right_answers_are_those_that_are_decoded_greedily(seer: small_sight.Seer):
    """Half of the rows have the answer that the model decodes, half another."""
    params = jax.jit(seer.decoder.init)(jax.random.key(3))
    questions = seer.examples([("ab?", "a"), ("b?", "ba")] * 4)
    pooled, width, horizon = features(8), max(len(x.prompt) for x in questions), 3
    prompts = small_sight.prompts(seer, questions, pooled, width)
    greedy = sampling.Sampling(temperature=0.0)
    sampler = completions.sampler(seer.decoder, horizon, sampling=greedy)
    decoded = jax.jit(sampler.completions)({"params": params}, prompts, jax.random.key(0))
    answers = [
        tuple(np.asarray(x)[np.asarray(m)].tolist()) for x, m in zip(*decoded[:2], strict=True)
    ]
    other = seer.tokenizer.encode("b")[0]
    rows = [
        x._replace(completion=a if n % 2 else (*a[:-1], a[-1] ^ 1 or other))
        for n, (x, a) in enumerate(zip(questions, answers, strict=True))
    ]
    given = small_senses.sequences(seer, rows, pooled, width + horizon)
    is_right = np.asarray(jax.jit(functools.partial(small_senses.is_right, seer))(params, given))
    assert is_right.tolist() == [False, True] * 4
    # Another picture gives another answer somewhere, or the model would not see.
    apply = jax.jit(seer.decoder.apply)
    logits, rolled = (
        np.asarray(apply(params, given.tokens, sensed=x)) for x in (pooled, np.roll(pooled, 1, 0))
    )
    assert np.abs(logits - rolled)[:, -1].max() > 1e-3


def test_answers_of_prompts_have_zeros_behind_their_end(seer: small_sight.Seer):
    examples = seer.examples([("ab?", "a"), ("b?", "ba")])
    got = small_sight.prompted(seer, examples, features(2), 12, 4)
    (a,), ba, eos = seer.tokenizer.encode("a"), seer.tokenizer.encode("ba"), seer.tokenizer.eos_id
    assert got.answers.tolist() == [[a, eos, 0, 0], [*ba, eos, *[0] * (3 - len(ba))]]
    assert got.prompts.lengths.tolist() == [len(x.prompt) for x in examples]


def test_golden_rewards():
    ids = np.array([[5, 1], [5, 0], [7, 1], [1, 0]], np.int32)
    none = np.zeros(0)
    completion = tokens.Completion(ids, none, none, none, none)  # pyright: ignore[reportArgumentType]
    answers = np.array([[5, 1], [1, 0]], np.int32)  # Of two samples each.
    prompts: Any = batches.Prompts(none, none)
    assert small_sight.exact(answers, completion, prompts).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_soft": 8}, "num_soft must be the square"),
        ({"patch": 3}, "image_size must be a multiple of patch_size"),
        ({"width": 12}, "width must be a multiple of 8"),
        ({"encoder_width": 6}, "encoder_width must be a multiple of 4"),
        ({"layers": 0}, "layers"),
    ],
)
def test_sizes_that_cannot_be_are_refused(fields: dict[str, Any], said: str):
    sizes: dict[str, Any] = {"side": 8, "patch": 2, "num_soft": 4, **fields}
    with pytest.raises(ValueError, match=said):
        small_sight.Sizes(**sizes)
