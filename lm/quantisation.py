"""Weights in few bits: formats of matrices, as codes and scales, and what a model becomes in them.

A format is a pair of functions, of a matrix and of its codes. What it stores is a tree of arrays
whose layer axis, if there is one, leads, as the matrix's own does, so that a scan over layers may
decode one layer at a time.

    int8, int4  s = max|w| / (2^(b-1) - 1),  q = round(w / s),  w~ = q s      of each output channel
    q8_0        the same with b = 8 and float16 scales, of each 32 weights    (llama.cpp's)
    q4_0        d = m / -8,  q = clip(trunc(w / d + 8.5), 0, 15),  w~ = (q - 8) float16(d),
                m the largest of 32 weights with its sign                     (llama.cpp's)
    sfp8        the nearest number of 8 bits of gemma.cpp, times a scale of each output channel
    bfloat16    the nearest number of 16 bits, half to even; it needs no scale

Channels and blocks are of the contraction axis: -2 of a weight [in, out], and -1 of the table
[V, D], a row of which is an output channel of the head that it also is. Sources: Gemma Team 2025,
https://arxiv.org/abs/2503.19786, section 2.3, which names the formats; ggml and gemma.cpp, which
define theirs.

Shape letters: P layers, I contraction axis, O other axis of a matrix.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types
from kullback.lm import gemma_config

__all__ = [
    "FORMATS",
    "Codes",
    "Format",
    "Kept",
    "Name",
    "Scheme",
    "decode",
    "encode",
    "held",
    "map_matrices",
    "num_bytes",
    "round_trip",
    "simulate",
    "simulated",
]

# Formats of weights by name.
Name = Literal["int8", "int4", "q8_0", "q4_0", "sfp8", "bfloat16"]
# The same, or "none" of what stays float.
Kept = Literal["none", Name]
BLOCK = 32  # Weights of a block of llama.cpp's formats.
MATRICES = ("query", "key", "value", "output", "gate", "up", "down")  # Of a layer.
TABLE = "embedding"


class Codes(NamedTuple):
    """A matrix in few bits, its contraction axis last."""

    # uint8 or int8, [..., O, I], or I / 2 where a byte holds two. A bfloat16's bits are uint16: on
    # CPUs, XLA turns a whole stack of bfloat16 into float32 before it takes a part.
    codes: jax.Array
    # [..., O, 1], float32; [..., O, I / 32], float16, of blocks; [..., O, 0] of bfloat16.
    scales: jax.Array


class Format(NamedTuple):
    """A format: functions of matrices whose contraction axis is the last, and bits."""

    encode: Callable[[jax.Array], Codes]  # float [..., O, I] -> codes.
    decode: Callable[[Codes], jax.Array]  # The inverse, float32.
    bits: int  # Of a code.
    block: int | None  # Weights that share a scale; None is a whole channel.
    scale_bytes: int  # Of a scale; 0 without scales.


def _largest(w: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(w), -1, keepdims=True)


def _divisor(scale: jax.Array) -> jax.Array:
    return jnp.where(scale == 0, 1.0, scale)


def _pack(codes: jax.Array) -> jax.Array:
    """Returns bytes of two codes in [0, 16) each, of the first and the second half of an axis."""
    low, high = jnp.split(codes.astype(jnp.uint8), 2, -1)
    return low | (high << 4)


def _unpack(codes: jax.Array) -> jax.Array:
    return jnp.concatenate([codes & 15, codes >> 4], -1)


def _encode_int8(w: jax.Array) -> Codes:
    scale = _largest(w) / 127
    return Codes(jnp.round(w / _divisor(scale)).astype(jnp.int8), scale)


def _decode_int8(stored: Codes) -> jax.Array:
    return stored.codes.astype(jnp.float32) * stored.scales


def _encode_int4(w: jax.Array) -> Codes:
    scale = _largest(w) / 7
    return Codes(_pack(jnp.round(w / _divisor(scale)) + 8), scale)


def _decode_int4(stored: Codes) -> jax.Array:
    return (_unpack(stored.codes).astype(jnp.float32) - 8) * stored.scales


def _blocks(w: jax.Array) -> jax.Array:
    return w.reshape(*w.shape[:-1], -1, BLOCK)


def _whole(blocks: jax.Array) -> jax.Array:
    return blocks.reshape(*blocks.shape[:-2], -1)


def _encode_q8_0(w: jax.Array) -> Codes:
    w = _blocks(w)
    scale = _largest(w) / 127
    x = w * jnp.where(scale == 0, 0.0, 1 / _divisor(scale))
    # Halves away from zero, as C's roundf.
    codes = jnp.sign(x) * jnp.floor(jnp.abs(x) + 0.5)
    return Codes(_whole(codes.astype(jnp.int8)), scale[..., 0].astype(jnp.float16))


def _decode_q8_0(stored: Codes) -> jax.Array:
    scales = stored.scales.astype(jnp.float32)[..., None]
    return _whole(_blocks(stored.codes).astype(jnp.float32) * scales)


def _encode_q4_0(w: jax.Array) -> Codes:
    w = _blocks(w)
    place = jnp.argmax(jnp.abs(w), -1, keepdims=True)
    scale = jnp.take_along_axis(w, place, -1) / -8
    x = w * jnp.where(scale == 0, 0.0, 1 / _divisor(scale)) + 8.5
    codes = jnp.clip(jnp.trunc(x), 0, 15)
    return Codes(_whole(_pack(codes)), scale[..., 0].astype(jnp.float16))


def _decode_q4_0(stored: Codes) -> jax.Array:
    bytes_ = stored.codes.reshape(*stored.codes.shape[:-1], -1, BLOCK // 2)
    scales = stored.scales.astype(jnp.float32)[..., None]
    return _whole((_unpack(bytes_).astype(jnp.float32) - 8) * scales)


def _sfp8_magnitudes() -> np.ndarray:
    """Returns the numbers of codes 0 to 127: two bits of mantissa below 2^-7, and three above."""
    e = np.arange(128)
    small = (1 + (e & 3) / 4) * 2.0 ** ((e >> 2) - 23)
    large = (1 + (e & 7) / 8) * 2.0 ** ((e >> 3) - 15)
    return np.where(e == 0, 0.0, np.where(e < 64, small, large)).astype(np.float32)


_SFP8 = _sfp8_magnitudes()
# Between neighbours; the smallest number is taken from (1/2 - 1/32) 2^-22 on, as in gemma.cpp.
_SFP8_BOUNDS = np.append(
    np.nextafter(np.float32(15 / 32 * 2.0**-22), np.float32(0)), (_SFP8[1:-1] + _SFP8[2:]) / 2
)


def _encode_sfp8(w: jax.Array) -> Codes:
    scale = _largest(w) / _SFP8[-1]
    size = jnp.abs(w / _divisor(scale))
    below = jnp.searchsorted(_SFP8_BOUNDS, size, side="left")
    upto = jnp.searchsorted(_SFP8_BOUNDS, size, side="right")
    code = jnp.where(below % 2 == 1, upto, below).astype(jnp.uint8)  # Ties to the even code.
    sign = jnp.where((w < 0) & (code > 0), 128, 0).astype(jnp.uint8)  # 128 alone is reserved.
    return Codes(code | sign, scale)


def _decode_sfp8(stored: Codes) -> jax.Array:
    size = jnp.asarray(_SFP8)[stored.codes & 127]
    return jnp.where(stored.codes >= 128, -size, size) * stored.scales


def _encode_bfloat16(w: jax.Array) -> Codes:
    bits = jax.lax.bitcast_convert_type(w.astype(jnp.bfloat16), jnp.uint16)
    return Codes(bits, jnp.zeros((*w.shape[:-1], 0), jnp.float32))


def _decode_bfloat16(stored: Codes) -> jax.Array:
    # It is the upper half of a float32.
    return jax.lax.bitcast_convert_type(stored.codes.astype(jnp.uint32) << 16, jnp.float32)


# Formats by name.
FORMATS: dict[Name, Format] = {
    "int8": Format(_encode_int8, _decode_int8, 8, None, 4),
    "int4": Format(_encode_int4, _decode_int4, 4, None, 4),
    "q8_0": Format(_encode_q8_0, _decode_q8_0, 8, BLOCK, 2),
    "q4_0": Format(_encode_q4_0, _decode_q4_0, 4, BLOCK, 2),
    "sfp8": Format(_encode_sfp8, _decode_sfp8, 8, None, 4),
    "bfloat16": Format(_encode_bfloat16, _decode_bfloat16, 16, None, 0),
}


def _check(shape: tuple[int, ...], name: Name, axis: int) -> Format:
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    if axis not in (-1, -2) or len(shape) < 2:
        raise ValueError(f"expected a matrix, and axis -1 or -2; got {shape} and axis {axis}")
    form = FORMATS[name]
    multiple = form.block or max(1, 8 // form.bits)
    if shape[axis] % multiple:
        raise ValueError(
            f"{name} takes {multiple} weights at a time: {shape[axis]} of shape {shape}, "
            f"axis {axis}, is no multiple"
        )
    return form


def encode(w: jax.Array, name: Name, axis: int = -2) -> Codes:
    """Returns a matrix in a format.

    Args:
      w: float, [..., I, O] of axis -2, [..., O, I] of axis -1; finite.
      name: of the format.
      axis: of the contraction.

    Raises:
      ValueError: if the contraction axis is no multiple of the weights that share a byte or block.
    """
    form = _check(w.shape, name, axis)
    w = w.astype(jnp.float32)
    return form.encode(w if axis == -1 else w.swapaxes(-1, -2))


def decode(stored: Codes, name: Name, axis: int = -2) -> jax.Array:
    """Returns the matrix of codes, float32, with its contraction axis where it was."""
    w = FORMATS[name].decode(stored)
    return w if axis == -1 else w.swapaxes(-1, -2)


def round_trip(w: jax.Array, name: Name, axis: int = -2) -> jax.Array:
    """Returns the matrix that a format holds in place of w, in w's shape and type."""
    return decode(encode(w, name, axis), name, axis).astype(w.dtype)


def simulate(w: jax.Array, name: Name, axis: int = -2) -> jax.Array:
    """Returns `round_trip`, with the gradient of w itself: Q(w) + w - sg(w).

    The straight-through estimator, Bengio et al. 2013, https://arxiv.org/abs/1308.3432. What is
    learnt with it is w; what acts and what is judged is Q(w).
    """
    held = jax.lax.stop_gradient(w)
    return round_trip(held, name, axis) + (w - held)  # In this order it is Q(w) to the bit.


def num_bytes(shape: tuple[int, ...], name: Name, axis: int = -2) -> int:
    """Returns the bytes of a matrix's codes and scales."""
    form = _check(shape, name, axis)
    size = int(np.prod(shape))
    scales = size // (form.block or shape[axis])
    return size * form.bits // 8 + scales * form.scale_bytes


class Scheme(NamedTuple):
    """Formats of a model's matrices; norms stay float."""

    layers: Kept = "none"  # Of the matrices of layers.
    table: Kept = "none"  # Of the table of tokens.

    def __bool__(self) -> bool:
        """Returns whether anything has a format."""
        return (self.layers, self.table) != ("none", "none")

    def of(self, path: tuple[str, ...]) -> tuple[Name, int] | None:
        """Returns format and contraction axis of a leaf of `gemma`'s parameters, by its path.

        None is of what stays float. A tree of several networks has those of the first alone.
        """
        name, axis = "none", -2
        if path[0] == TABLE:
            name, axis = self.table, -1
        elif path[0] in gemma_config.BLOCKS and path[-1] in MATRICES:
            name = self.layers
        return None if name == "none" else (name, axis)


FLOAT = Scheme()  # No format: all stays float.


def of_storage(storage: gemma_config.Storage) -> Scheme:
    """Returns the scheme of a model whose matrices all have one format, or stay float32."""
    return FLOAT if storage == "float32" else Scheme(storage, storage)


def map_matrices(
    change: Callable[[jax.Array, Name, int, tuple[str, ...]], Any],
    params: types.Params,
    scheme: Scheme,
) -> types.Params:
    """Returns the parameters with change(w, format, contraction axis, path) of each matrix."""

    def leaf(path: Any, w: jax.Array) -> Any:
        names = tuple(str(entry.key) for entry in path)
        place = scheme.of(names)
        return w if place is None else change(w, *place, names)

    return jax.tree_util.tree_map_with_path(leaf, params)


@functools.partial(jax.jit, static_argnums=1)
def held(params: types.Params, scheme: Scheme) -> types.Params:
    """Returns the parameters that a model has in these formats, `round_trip` of each matrix."""
    return map_matrices(lambda w, name, axis, _: round_trip(w, name, axis), params, scheme)


def simulated(params: types.Params, scheme: Scheme) -> types.Params:
    """Returns `held`, with the gradient of the parameters themselves, see `simulate`."""
    return map_matrices(lambda w, name, axis, _: simulate(w, name, axis), params, scheme)
