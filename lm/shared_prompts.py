"""Several texts of one prompt in one row, which has the prompt once.

A full pass over G texts, with a prompt of P tokens and answers of A, computes P + G A tokens in
place of G (P + A). Tokens of an answer see the prompt and their own answer, at the positions that
they have in a row of their own, so that features are the same but for the order of sums.

The beginning that rows share is found from their tokens: it is the prompt, or more where answers
begin alike.

Shape letters: B rows, T tokens of a row, G adjacent rows of a prompt, n = B / G prompts, P tokens
of a prompt at most, A of an answer at most, D features.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import gemma

BEGINNING = -1  # Segment of what all texts of a row see, see `gemma.Model`.


class Packed(NamedTuple):
    """Prompts with all their texts, and where the features of each text lie."""

    tokens: jax.Array  # int32, [n, P + G A].
    positions: jax.Array  # int32, [n, P + G A].
    segments: jax.Array  # int32, [n, P + G A]: of the beginning, or of a text from 1; 0 is padding.
    columns: jax.Array  # int32, [n, G, T]: column of each token of the rows.
    fits: jax.Array  # bool, [n, G]: whether a text is no longer than its beginning and A.


def packed(
    tokens: types.Array, is_token: types.Array, samples_per_prompt: int, answer_length: int
) -> Packed:
    """Packs rows of which G adjacent ones begin with the same prompt.

    Args:
      tokens: int32, [B, T]; a row begins in column 0 with its prompt.
      is_token: bool, [B, T]: whether it is no padding, which follows a row.
      samples_per_prompt: G, divides B.
      answer_length: A < T.

    Raises:
      ValueError: if G does not divide B, or rows have no room for a prompt.
    """
    chex.assert_rank([tokens, is_token], 2)
    chex.assert_equal_shape([tokens, is_token])
    tokens, is_token = jnp.asarray(tokens), jnp.asarray(is_token)
    (rows, length), group, answer = tokens.shape, samples_per_prompt, answer_length
    prompt = length - answer
    if rows % group:
        raise ValueError(f"samples_per_prompt={group} must divide the {rows} rows of a batch")
    if prompt < 1:
        raise ValueError(f"rows of {length} tokens hold no prompt beside answers of {answer}")
    by_prompt = tokens.reshape(-1, group, length)
    lengths = jnp.sum(is_token.reshape(by_prompt.shape), 2)  # [n, G]
    is_equal = jnp.all(by_prompt == by_prompt[:, :1], 1)[:, :prompt]
    begun = jnp.sum(jnp.cumprod(is_equal, 1), 1)[:, None, None]  # [n, 1, 1]
    places = begun + jnp.arange(answer)[None, None]  # [n, 1, A]: columns of what follows.
    follows = jnp.take_along_axis(by_prompt, jnp.minimum(places, length - 1), 2)  # [n, G, A]
    index = jnp.broadcast_to(jnp.arange(prompt)[None], (len(by_prompt), prompt))
    numbers = 1 + jnp.arange(group)[None, :, None]  # [1, G, 1]
    of_follows = jnp.where(places < lengths[:, :, None], numbers, 0)  # [n, G, A]
    columns = jnp.arange(length)[None, None]  # [1, 1, T]
    at = jnp.minimum(columns - begun, answer - 1) + prompt + answer * (numbers - 1)  # [n, G, T]
    return Packed(
        tokens=_joined(by_prompt[:, 0, :prompt], follows),
        positions=_joined(index, jnp.broadcast_to(places, follows.shape)),
        segments=_joined(jnp.where(index < begun[:, 0], BEGINNING, 0), of_follows),
        columns=jnp.where(columns < begun, columns, at),
        fits=lengths <= begun[:, :, 0] + answer,
    )


def _joined(beginnings: jax.Array, follows: jax.Array) -> jax.Array:
    """Returns rows of beginnings, [n, P], and of what follows them, [n, G, A]."""
    return jnp.concatenate([beginnings, follows.reshape(len(follows), -1)], 1).astype(jnp.int32)


def model(whole: gemma.Model, samples_per_prompt: int, answer_length: int) -> gemma.Model:
    """Returns a model whose full pass computes the prompt of G adjacent rows once.

    Its `features`, `with_head` and `apply` take the arguments of those of `whole`, and give the
    same. Rows hold one text each, from column 0 on; rows of A tokens or fewer share nothing.
    Features of texts that are longer than what they share and A are NaN, as those of other prompts
    may be; what follows a text is meaningless. Images of a row are those of its prompt.

    Args:
      whole: computes a pass.
      samples_per_prompt: G, of all passes; with 1 there is nothing to share.
      answer_length: A, of all passes.
    """
    if samples_per_prompt == 1:
        return whole

    def once(
        run: Callable[..., tuple[jax.Array, Any]],
        params: types.Params,
        tokens: types.Array,
        positions: types.Array | None = None,
        segments: types.Array | None = None,
        keys: types.Key | None = None,
        **images: Any,
    ) -> tuple[jax.Array, Any]:
        tokens = jnp.asarray(tokens)
        if tokens.shape[1] <= answer_length:
            return run(params, tokens, positions, segments, keys, **images)
        if keys is not None:
            raise ValueError("texts that share a prompt have no dropout of their own")
        is_token = jnp.ones_like(tokens, bool) if segments is None else jnp.asarray(segments) > 0
        rows = packed(tokens, is_token, samples_per_prompt, answer_length)
        of_prompts = {name: x[::samples_per_prompt] for name, x in images.items()}
        features, head = run(params, rows.tokens, rows.positions, rows.segments, **of_prompts)
        return _apart(features, rows), head

    def features(params: types.Params, *inputs: Any, **images: Any) -> jax.Array:
        def run(*inputs: Any, **images: Any) -> tuple[jax.Array, None]:
            return whole.features(*inputs, **images), None

        return once(run, params, *inputs, **images)[0]

    def apply(params: types.Params, *inputs: Any, **images: Any) -> jax.Array:
        return whole.unembed(params, features(params, *inputs, **images))

    with_head = functools.partial(once, whole.with_head)
    return whole._replace(features=features, with_head=with_head, apply=apply)


def _apart(features: jax.Array, rows: Packed) -> jax.Array:
    """Returns the features of each row, [B, T, D], from those of packed ones, [n, P + G A, D]."""
    count, group, length = rows.columns.shape
    columns = rows.columns.reshape(count, group * length, 1)
    of_rows = jnp.take_along_axis(features, columns, 1).reshape(count, group, length, -1)
    # A text that does not fit is known at run time only: NaN, not wrong numbers.
    of_rows = jnp.where(rows.fits[:, :, None, None], of_rows, jnp.nan)
    return of_rows.reshape(count * group, length, -1)
