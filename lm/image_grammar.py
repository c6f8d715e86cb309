"""Images that a language model writes: ids of codes, and the grammar that closes every image.

Gemini 1.0 writes text and images as tokens of one sequence (https://arxiv.org/abs/2312.11805), how
is not published. Here the ids follow those of the text: one that begins an image, one that ends it,
and one for each of K codes (lm/image_codes.py), which stand row by row:

    text ... begin, length codes, end, text ...

The grammar is a machine whose state, int32, is OUTSIDE or the number of an image's codes so far.
The ids that may come next depend on it alone, and on the room that is left: an image begins only
where it can end.

Classifier-free guidance (Ho and Salimans, 2022, https://arxiv.org/abs/2207.12598) is an option;
that Gemini uses it is not said.

Shape letters: B rows, T tokens, V ids of text, K codes, D width of a model.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types
from kullback.lm import gemma_config

OUTSIDE = -1  # State between images.


class Ids(NamedTuple):
    """The ids of images, which follow `begin` ids of text."""

    begin: int  # V.
    num_codes: int  # K.
    length: int  # Codes of an image.

    @property
    def end(self) -> int:
        """The id that ends an image."""
        return self.begin + 1

    @property
    def first(self) -> int:
        """The id of code 0."""
        return self.begin + 2

    @property
    def total(self) -> int:
        """Ids of text and images."""
        return self.first + self.num_codes


def ids_of(num_text_ids: int, num_codes: int, length: int) -> Ids:
    """Returns the ids of images behind those of a text's vocabulary.

    Args:
      num_text_ids: V >= 1, rows of the embedding of a model that writes text.
      num_codes: K >= 1.
      length: codes of an image >= 1.
    """
    if min(num_text_ids, num_codes, length) < 1:
        raise ValueError(
            f"num_text_ids, num_codes and length must be >= 1, got {num_text_ids}, {num_codes} and "
            f"{length}"
        )
    return Ids(num_text_ids, num_codes, length)


def written(codes: types.Array, ids: Ids) -> np.ndarray:
    """Returns images as ids, int32 [B, length + 2], both delimiters included.

    Args:
      codes: int, [B, length], in [0, K).
      ids: of images.

    Raises:
      ValueError: for another code.
    """
    codes = np.asarray(codes)
    chex.assert_shape(codes, (None, ids.length))
    if codes.size and not 0 <= codes.min() <= codes.max() < ids.num_codes:
        raise ValueError(
            f"codes must lie in [0, {ids.num_codes}), got {codes.min()} to {codes.max()}"
        )
    ends = np.broadcast_to([[ids.begin, ids.end]], (len(codes), 2))
    return np.concatenate([ends[:, :1], ids.first + codes, ends[:, 1:]], 1).astype(np.int32)


def images(row: Sequence[int], ids: Ids) -> np.ndarray:
    """Returns the codes of a row's images in order, int32 [images, length].

    Raises:
      ValueError: for a row that is not of the grammar, or ends within an image.
    """
    state, codes = OUTSIDE, []
    for place, token in enumerate(np.asarray(row).tolist()):
        is_text = state == OUTSIDE and token <= ids.begin
        is_code = 0 <= state < ids.length and ids.first <= token < ids.total
        if not (is_text or is_code or (state == ids.length and token == ids.end)):
            so_far = "outside an image"
            if state != OUTSIDE:
                so_far = f"after {state} of {ids.length} codes"
            raise ValueError(f"token {place}, {token}, cannot come {so_far}")
        codes += [token - ids.first] if is_code else []
        state = int(advanced(np.int32(state), np.int32(token), ids, np))
    if state != OUTSIDE:
        raise ValueError(f"the row ends within an image, after {state} of {ids.length} codes")
    return np.asarray(codes, np.int32).reshape(-1, ids.length)


def advanced(state: Any, token: Any, ids: Ids, xp: Any = jnp) -> Any:
    """Returns the state after a token that the grammar allows, int32 [...].

    Args:
      state: int32, [...].
      token: int32, [...].
      ids: of images.
      xp: `numpy` or `jax.numpy`.
    """
    is_begin = (state == OUTSIDE) & (token == ids.begin)
    inside = xp.where(state < ids.length, state + 1, OUTSIDE)
    return xp.where(state == OUTSIDE, xp.where(is_begin, 0, OUTSIDE), inside)


def states(tokens: types.Array, ids: Ids) -> jax.Array:
    """Returns the state after each token of rows that begin outside, int32 [B, T]."""
    tokens = jnp.asarray(tokens)
    chex.assert_rank(tokens, 2)

    def step(state: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = advanced(state, token, ids).astype(jnp.int32)
        return state, state

    start = jnp.full(len(tokens), OUTSIDE, jnp.int32)
    return jax.lax.scan(step, start, tokens.T)[1].T


def allowed(state: jax.Array, room: jax.Array, ids: Ids) -> jax.Array:
    """Returns which ids may come next, bool [..., ids.total].

    Outside an image they are those of text, and its beginning if the room suffices to end it; then
    `length` codes, then the end.

    Args:
      state: int32, [...].
      room: int32, [...]: tokens that may still come, the next one included.
      ids: of images.
    """
    chex.assert_equal_shape([state, room])
    token = jnp.arange(ids.total).reshape(*[1] * jnp.ndim(state), -1)
    state, room = state[..., None], room[..., None]
    begins = (token == ids.begin) & (room >= ids.length + 2)
    is_code = token >= ids.first
    return jnp.where(
        state == OUTSIDE,
        (token < ids.begin) | begins,
        jnp.where(state < ids.length, is_code, token == ids.end),
    )


def guided(conditional: jax.Array, unconditional: jax.Array, scale: float) -> jax.Array:
    """Returns l_u + s (l_c - l_u), [..., V]: s = 1 is the condition's logits, 0 the others'.

    Args:
      conditional: logits after the prompt, l_c, [..., V].
      unconditional: logits after a prompt that says nothing, l_u, [..., V].
      scale: s.
    """
    chex.assert_equal_shape([conditional, unconditional])
    if scale == 1:
        return conditional
    return unconditional + scale * (conditional - unconditional)


def extended_config(config: gemma_config.Config, ids: Ids) -> gemma_config.Config:
    """Returns the configuration of a model that writes images too.

    Raises:
      ValueError: unless the ids of images follow the model's.
    """
    if config.vocab_size != ids.begin:
        raise ValueError(
            f"ids of images begin at {ids.begin}, and the model has {config.vocab_size} ids: make "
            f"them by ids_of({config.vocab_size}, ...)"
        )
    return dataclasses.replace(config, vocab_size=ids.total)


def extended_params(params: types.Params, ids: Ids, key: types.Key) -> types.Params:
    """Returns a model's parameters with rows for images in its embedding, drawn as `init` draws.

    Features of text stay as they are, bit for bit; so do their logits, but for the rounding of a
    product with more rows. `shared_ids.over(model, ids.begin)` is the model of text alone.

    Args:
      params: of a model of `ids.begin` ids.
      ids: of images.
      key: draws the rows.
    """
    table = params["embedding"]  # [V, D]
    chex.assert_shape(table, (ids.begin, None))
    shape = ids.total - ids.begin, table.shape[1]
    rows = jax.random.normal(key, shape) / math.sqrt(table.shape[1])
    return {**params, "embedding": jnp.concatenate([table, rows.astype(table.dtype)])}
