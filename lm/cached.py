"""Keys and values of a cache: as they are, or in 8 bits.

    s = max|k| / 127 of each token and head,  q = round(k / s),  k~ = q s

Keys are stored after their norm and RoPE. The norm bounds them, so that no outlier widens a scale.
The codes of a layer are opened where it attends to them; H + 2 bytes a token and head take the
place of 2 H in bfloat16.

Shape letters: H width of a head.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

Kind = Literal["float", "int8"]
SCALE_BYTES = 2


class Codes(NamedTuple):
    """Keys or values in 8 bits. The axes of both arrays are the same."""

    codes: jax.Array  # int8, [..., H].
    scales: jax.Array  # bfloat16, [..., 1].


Stored = Any  # Keys or values of a cache: an array [..., H], or `Codes`.


def empty(shape: tuple[int, ...], dtype: Any, kind: Kind) -> Stored:
    """Returns keys or values of zeros, [..., H].

    Args:
      shape: [..., H].
      dtype: of the computation, in which a cache of floats is.
      kind: of the cache.
    """
    if kind == "float":
        return jnp.zeros(shape, dtype)
    scales = jnp.zeros((*shape[:-1], 1), jnp.bfloat16)
    return Codes(jnp.zeros(shape, jnp.int8), scales)


def stored(x: jax.Array, like: Stored) -> Stored:
    """Returns new keys or values, [..., H], as a cache of the kind of `like` has them."""
    if not isinstance(like, Codes):
        return x
    x = x.astype(jnp.float32)
    scales = (jnp.max(jnp.abs(x), -1, keepdims=True) / 127).astype(jnp.bfloat16)
    divisor = jnp.where(scales == 0, 1.0, scales.astype(jnp.float32))
    # Of a scale that was rounded down, the largest would be 128.
    codes = jnp.clip(jnp.round(x / divisor), -127, 127).astype(jnp.int8)
    return Codes(codes, scales)


def opened(x: Stored, dtype: Any) -> jax.Array:
    """Returns keys or values, [..., H], in the type of the computation."""
    if not isinstance(x, Codes):
        return x
    return (x.codes.astype(jnp.float32) * x.scales.astype(jnp.float32)).astype(dtype)


def num_bytes(width: int, itemsize: int, kind: Kind) -> int:
    """Returns the bytes of a key or value of one token and head.

    Args:
      width: H.
      itemsize: of a number of a cache of floats.
      kind: of the cache.
    """
    return width * itemsize if kind == "float" else width + SCALE_BYTES
