"""Tests of lm/cached.py: decoding with keys and values in 8 bits."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.lm import attention, cached, gemma
from tests.states import fresh_params

FLOAT = dataclasses.replace(gemma.PRESETS["tiny"], num_layers=3, pattern=2, window=4, vocab_size=97)
CONFIG = dataclasses.replace(FLOAT, cache="int8")
MODEL = gemma.make(CONFIG)
LENGTHS = np.array([1, 3, 9])  # Shorter than the window, and longer, left-padded to 9.
TOKENS = np.random.default_rng(0).integers(3, 97, (3, 14))
decode = jax.jit(MODEL.decode)


@functools.cache
def params() -> Any:
    return fresh_params(MODEL.init)


def rounded(x: jax.Array) -> jax.Array:
    codes = cached.stored(x, cached.empty((1,), x.dtype, "int8"))
    return cached.opened(codes, x.dtype)


def decoded(chunks: list[int]) -> np.ndarray:
    """Returns features of prompts and what follows, read in chunks of some lengths."""
    cache, parts, at = MODEL.init_cache(3, 14, LENGTHS, 9), [], 0
    for size in chunks:
        features, cache = decode(params(), TOKENS[:, at : at + size], cache)
        parts.append(features)
        at += size
    return np.concatenate(parts, 1)


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([9, 1, 1, 1, 1, 1], id="chunk", marks=pytest.mark.slow),
        pytest.param([1] * 14, id="tokens"),
    ],
)
def test_decoding_is_the_full_pass_over_rounded_keys_and_values(
    chunks: list[int], monkeypatch: pytest.MonkeyPatch
):
    """Rows are padded on the left, and rings of 4 slots wrap."""
    full, got = attention.full, decoded(chunks)

    def of_rounded(q: Any, k: Any, v: Any, **named: Any) -> Any:
        return full(q, rounded(k), rounded(v), **named)

    alone = np.stack([np.pad(TOKENS[row, 9 - n :], (0, 9 - n)) for row, n in enumerate(LENGTHS)])
    plain = jax.jit(gemma.make(FLOAT).features)(params(), alone)
    monkeypatch.setattr(attention, "full", of_rounded)
    expected = jax.jit(gemma.make(FLOAT).features)(params(), alone)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(got[row, 9 - length :], expected[row, : length + 5], atol=5e-4)
    error = float(jnp.max(jnp.abs(expected - plain)))
    assert 5e-3 < error < 0.1  # Of features of unit mean square.


def test_codes_are_the_nearest_and_zeros_stay():
    x = np.random.default_rng(1).normal(size=(5, 3, 16)).astype(np.float32)
    x[0] = 0
    scale = np.abs(x).max(-1, keepdims=True) / 127
    got = np.asarray(rounded(jnp.asarray(x)))
    assert not got[0].any() and np.all(np.abs(got - x) <= scale * (0.5 + 127 / 2**8))
    kept = jnp.asarray(x)
    assert cached.opened(cached.stored(kept, kept), kept.dtype) is kept  # Of a cache of floats.


@pytest.mark.parametrize("max_length", [3, 20])
def test_bytes_are_those_of_the_formula(max_length: int):
    cache = MODEL.init_cache(3, max_length, np.ones(3), 2)
    leaves = jax.tree.leaves((cache.keys, cache.values))
    expected = sum(leaf.nbytes for leaf in leaves)
    assert gemma.cache_bytes(CONFIG, 3, max_length, 4) == expected
    # Keys and values of 2 heads of 8 and a scale of 2 bytes, of 1 global layer and 2 local ones.
    assert expected == 3 * 2 * 2 * (8 + 2) * (max_length + 2 * min(4, max_length))
    published = dataclasses.replace(gemma.PRESETS["gemma3-1b"], cache="int8")
    half = gemma.cache_bytes(gemma.PRESETS["gemma3-1b"], 1, 32_768, 2)
    assert gemma.cache_bytes(published, 1, 32_768, 2) / half == 258 / 512


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="cache must be 'float' or 'int8', got 'int4'"):
        dataclasses.replace(CONFIG, cache="int4")
