"""Soft tokens: vectors in a row of tokens that no table has, such as those of an image.

A row says by `groups`, int32 [B, T], which of its tokens are soft: -1 is a token of text, a number
>= 0 that of the image that a soft token is of (`blocks.groups`). An image's are adjacent.

Gemma Team 2025, https://arxiv.org/abs/2503.19786: an image's soft tokens see each other, also those
that come later; all else sees what came before.

Shape letters: B rows, T tokens, S keys, K soft tokens of a row at most, D width.
"""

import chex
import jax
import jax.numpy as jnp

from kullback.core import types

TEXT = -1  # Group of a token of text.


def written(x: types.Array, soft: types.Array | None, groups: types.Array | None) -> jax.Array:
    """Returns embedded tokens with a row's soft vectors in the places of its soft tokens, in order.

    Args:
      x: embedded tokens, scaled as text is, [B, T, D].
      soft: vectors, [B, K, D]; a row of fewer soft tokens leaves its last ones out.
      groups: int32, [B, T]; None, as `soft`, for rows of text alone, which are as they were.

    Returns:
      [B, T, D] in the type of x; NaN for the soft tokens of a row that has more than K.
    """
    x = jnp.asarray(x)
    if soft is None or groups is None:
        return x
    soft, groups = jnp.asarray(soft), jnp.asarray(groups)
    chex.assert_rank([x, soft, groups], [3, 3, 2])
    chex.assert_equal_shape_prefix([x, groups], 2)
    chex.assert_shape(soft, (x.shape[0], None, x.shape[2]))
    is_soft = groups >= 0
    rank = jnp.cumsum(is_soft, 1) - 1  # [B, T]
    last = soft.shape[1] - 1
    vectors = jnp.take_along_axis(soft, jnp.clip(rank, 0, last)[..., None], 1).astype(x.dtype)
    # How many there are is known at run time only: NaN, not wrong numbers.
    vectors = jnp.where((rank <= last)[..., None], vectors, jnp.nan)
    return jnp.where(is_soft[..., None], vectors, x)


def looked_up(
    tokens: types.Array, soft: types.Array | None = None, groups: types.Array | None = None
) -> types.Array:
    """Returns the ids to look up, int32 [B, T]: those of soft tokens may be in no table.

    Args:
      tokens: int32, [B, T].
      soft, groups: as of `written`.

    Raises:
      ValueError: for one of soft and groups without the other.
    """
    if (soft is None) != (groups is None):
        raise ValueError("soft vectors and groups come together: give both, or neither")
    return tokens if groups is None else jnp.where(jnp.asarray(groups) >= 0, 0, tokens)


def of_one_image(queries: types.Array, keys: types.Array) -> jax.Array:
    """Returns which tokens are soft tokens of one image, bool [B, T, S], by groups [B, T], [B, S].

    Such pairs may attend to each other whatever their order.
    """
    queries, keys = jnp.asarray(queries), jnp.asarray(keys)
    return (queries[:, :, None] == keys[:, None, :]) & (queries >= 0)[:, :, None]
