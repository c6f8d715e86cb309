"""Tests of lm/image_grammar.py."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.lm import gemma, image_grammar, shared_ids
from tests.states import fresh_params

IDS = image_grammar.ids_of(10, 3, 2)  # Text 0 to 9, begin 10, end 11, codes 12 to 14.
OUT = image_grammar.OUTSIDE
allowed = jax.jit(image_grammar.allowed, static_argnums=2)
states = jax.jit(image_grammar.states, static_argnums=1)


def test_ids_follow_those_of_text():
    assert (IDS.begin, IDS.end, IDS.first, IDS.total) == (10, 11, 12, 15)
    got = image_grammar.written(np.array([[0, 2], [1, 1]]), IDS)
    np.testing.assert_array_equal(got, [[10, 12, 14, 11], [10, 13, 13, 11]])
    row = [3, *got[0], 4, *got[1], *got[0]]
    np.testing.assert_array_equal(image_grammar.images(row, IDS), [[0, 2], [1, 1], [0, 2]])
    assert image_grammar.images([3, 4], IDS).shape == (0, 2)
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 3\), got 0 to 3"):
        image_grammar.written(np.array([[0, 3]]), IDS)
    with pytest.raises(ValueError, match="must be >= 1, got 10, 0 and 2"):
        image_grammar.ids_of(10, 0, 2)


@pytest.mark.parametrize(
    "row, message",
    [
        ([3, 12], "token 1, 12, cannot come outside an image"),
        ([11], "token 0, 11, cannot come outside an image"),
        ([10, 12, 3], "token 2, 3, cannot come after 1 of 2 codes"),
        ([10, 12, 12, 12], "token 3, 12, cannot come after 2 of 2 codes"),
        ([10, 11], "token 1, 11, cannot come after 0 of 2 codes"),
        ([10, 12, 12], "ends within an image, after 2 of 2 codes"),
        ([15], "token 0, 15, cannot come outside"),
    ],
)
def test_other_rows_have_no_images(row: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        image_grammar.images(row, IDS)


def test_states_and_what_may_follow_by_hand():
    rows = np.array([[3, 10, 12, 14, 11, 10], [1, 2, 10, 13, 13, 11]])
    np.testing.assert_array_equal(
        states(rows, IDS), [[OUT, 0, 1, 2, OUT, 0], [OUT, OUT, 0, 1, 2, OUT]]
    )
    text, begin, end, codes = ([1] * 10, [1], [1], [1] * 3)
    none = [0] * 10
    state = jnp.array([OUT, OUT, 0, 1, 2])
    room = jnp.array([4, 3, 3, 2, 1])
    expected = [
        [*text, *begin, 0, 0, 0, 0],
        [*text, 0, 0, 0, 0, 0],  # There is no room for an image.
        [*none, 0, 0, *codes],
        [*none, 0, 0, *codes],
        [*none, 0, *end, 0, 0, 0],
    ]
    np.testing.assert_array_equal(allowed(state, room, IDS), expected)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(st.integers(0, 12), st.integers(0, 2**31))
def test_whatever_is_drawn_every_image_is_closed(length: int, seed: int):
    rng = np.random.default_rng(seed)
    state, row = np.int32(OUT), []
    for room in range(length, 0, -1):
        mask = np.asarray(allowed(jnp.asarray(state), jnp.asarray(room), IDS))
        # Images are as likely as all text, so that there are some.
        weight = mask * np.where(np.arange(IDS.total) == IDS.begin, 10, 1)
        row.append(int(rng.choice(IDS.total, p=weight / weight.sum())))
        state = np.asarray(image_grammar.advanced(state, np.int32(row[-1]), IDS, np))
    assert len(image_grammar.images(row, IDS)) == row.count(IDS.begin) == row.count(IDS.end)


def test_guidance_by_hand():
    c, u = jnp.array([1.0, 2.0, -1.0]), jnp.array([0.0, 4.0, -1.0])
    np.testing.assert_array_equal(image_grammar.guided(c, u, 3.0), [3.0, -2.0, -1.0])
    assert image_grammar.guided(c, u, 1) is c
    np.testing.assert_array_equal(image_grammar.guided(c, u, 0.0), u)


def test_what_a_model_says_of_text_stays():
    config = dataclasses.replace(gemma.PRESETS["tiny"], num_layers=2, pattern=2, vocab_size=61)
    ids = image_grammar.ids_of(61, 8, 4)
    model = gemma.make(config)
    params = fresh_params(model.init, 3)
    wider = gemma.make(image_grammar.extended_config(config, ids))
    extended = image_grammar.extended_params(params, ids, jax.random.key(1))
    assert wider.num_ids == 61 + 2 + 8 == len(extended["embedding"])
    tokens = np.random.default_rng(0).integers(0, 61, (2, 7))
    before, after = (
        jax.jit(model.features)(params, tokens),
        jax.jit(wider.features)(extended, tokens),
    )
    np.testing.assert_array_equal(after, before)
    text = shared_ids.over(wider, ids.begin)
    logits = text.unembed(extended, after)
    assert logits.shape == (2, 7, 61)
    np.testing.assert_allclose(logits, model.unembed(params, before), atol=3e-6)
    scale = float(jnp.std(extended["embedding"][61:])) * config.embed_dim**0.5
    assert 0.8 < scale < 1.2
    with pytest.raises(ValueError, match="ids of images begin at 10, and the model has 61 ids"):
        image_grammar.extended_config(config, IDS)
    with pytest.raises(AssertionError):
        image_grammar.extended_params(params, IDS, jax.random.key(1))
