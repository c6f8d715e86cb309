"""Weights that are only read, kept in few bits and opened where they are computed with.

    y = x W~,  W~ = decode(codes), of some output channels of one matrix of one layer at a time

The codes are those of lm/quantisation.py. A matrix is opened inside the scan over layers, a block
of its output channels at a time, and so is the table of tokens, whose rows are the head's channels:
no whole float copy of them is in memory. What is computed equals computing with the numbers that
the format holds, `quantisation.held`. On CPUs this saves memory, not time: each matrix is opened
anew for each token.

A matrix has two blocks at least. What is opened at once XLA would open before a loop over tokens,
in which the weights do not change; on CPUs it does so in spite of an optimisation barrier. The
backward pass opens a matrix again, and nothing opened is stored for it.

Shape letters: I contraction axis, O other axis of a matrix; V vocabulary, D width.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types
from kullback.lm import quantisation

BLOCK_BYTES = 2**24  # Most of an opened block, which stays in the cache; it has a row at least.


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("stored",), meta_fields=("name", "axis")
)
@dataclasses.dataclass(frozen=True)
class Narrow:
    """A matrix, or a stack of them, in few bits."""

    stored: quantisation.Codes
    name: quantisation.Name  # Of the format.
    axis: int  # Of the contraction: -2 of [..., I, O], -1 of [..., O, I].

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        *lead, other, length = self.stored.codes.shape
        bits = 8 * self.stored.codes.dtype.itemsize
        size = length * bits // quantisation.FORMATS[self.name].bits
        return (*lead, other, size) if self.axis == -1 else (*lead, size, other)


Matrix = jax.Array | Narrow


def narrowed(params: types.Params, scheme: quantisation.Scheme) -> types.Params:
    """Returns a model's parameters with its matrices in a scheme's formats.

    The other leaves are copied: they may be parts of a mapped file, whose pages would all stay.

    Raises:
      ValueError: as of `read`.
    """
    if not scheme:
        return params

    def change(w: jax.Array, name: quantisation.Name, axis: int, path: tuple[str, ...]) -> Matrix:
        del name, axis
        return read("/".join(path), w.shape, _chunks(w), scheme)

    def copied(w: Any) -> Any:
        return w if _is_narrow(w) else jnp.array(w)

    changed = quantisation.map_matrices(change, params, scheme)
    return jax.tree.map(copied, changed, is_leaf=_is_narrow)


def read(
    path: str,
    shape: tuple[int, ...],
    chunks: Iterable[types.Array],
    scheme: quantisation.Scheme,
) -> Matrix:
    """Returns a parameter that is read piece by piece; one without a format is float32.

    Args:
      path: of the parameter, "periods/layer_0/attention/query".
      shape: of it.
      chunks: pieces along its first axis, whose codes are independent: whole layers [n, I, O], or
        rows of a table [n, D].
      scheme: formats of the model.

    Raises:
      ValueError: for a matrix that its format cannot hold, with its path.
    """
    form = scheme.of(tuple(path.split("/")))
    if form is None:
        return jnp.asarray(np.concatenate([*chunks]), jnp.float32)
    encode = functools.partial(quantisation.encode, name=form[0], axis=form[1])
    try:
        like = jax.eval_shape(encode, jax.ShapeDtypeStruct(shape, jnp.float32))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    stored, start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), 0
    for chunk in chunks:
        # A chunk may be pages of a file, which are given back once they were read.
        stored = jax.block_until_ready(_placed(stored, chunk, jnp.int32(start), *form))
        start += len(chunk)
    return Narrow(stored, *form)


@functools.partial(jax.jit, static_argnums=(3, 4), donate_argnums=0)
def _placed(
    stored: quantisation.Codes,
    chunk: jax.Array,
    start: jax.Array,
    name: quantisation.Name,
    axis: int,
) -> quantisation.Codes:
    def place(x: jax.Array, part: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, part, start, 0)

    return jax.tree.map(place, stored, quantisation.encode(chunk, name, axis))


def _chunks(w: jax.Array) -> Iterable[jax.Array]:
    """Yields pieces of a matrix along its first axis."""
    step = max(1, BLOCK_BYTES // max(1, 4 * w[:1].size))
    for start in range(0, len(w), step):
        yield w[start : start + step]


def product(x: jax.Array, w: Matrix) -> jax.Array:
    """Returns x w, [n, O], in x's type; a narrow matrix gets no gradient.

    Args:
      x: [n, I].
      w: [I, O].
    """
    if isinstance(w, Narrow):
        return _by_blocks(x, w).astype(x.dtype)
    return x @ w.astype(x.dtype)


def rows(table: Matrix, ids: types.Array) -> jax.Array:
    """Returns rows of a table [V, D], [..., D]; ids are [...]."""
    if not isinstance(table, Narrow):
        return table[ids]
    stored = jax.tree.map(lambda x: x[ids], table.stored)
    return quantisation.decode(stored, table.name, table.axis)


def logits(features: jax.Array, table: Matrix) -> jax.Array:
    """Returns features times the transposed table, float32 [..., V]; a narrow one has no gradient.

    Args:
      features: [..., D].
      table: [V, D].
    """
    if not isinstance(table, Narrow):
        return _dot(features, table.astype(features.dtype))
    *lead, width = features.shape
    return _by_blocks(features.reshape(-1, width), table).reshape(*lead, -1)


def opened_bytes(trees: Any) -> int:
    """Returns the bytes of what is open at a time of narrow weights: the largest block.

    Args:
      trees: of parameters, or of their shapes.
    """
    sizes = [0]
    for w in jax.tree.leaves(trees, is_leaf=_is_narrow):
        if isinstance(w, Narrow):
            sizes.append(4 * _block_size(w) * w.shape[w.axis])
    return max(sizes)


def is_any(params: types.Params) -> bool:
    """Returns whether a parameter is narrow."""
    return any(map(_is_narrow, jax.tree.leaves(params, is_leaf=_is_narrow)))


def whole(params: types.Params) -> types.Params:
    """Returns the parameters with all that is narrow opened, float32."""

    def opened(w: Any) -> Any:
        if not isinstance(w, Narrow):
            return w
        return quantisation.decode(w.stored, w.name, w.axis)

    return jax.tree.map(opened, params, is_leaf=_is_narrow)


def _is_narrow(w: Any) -> bool:
    return isinstance(w, Narrow)


def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns x times the transposed w, float32: [..., I], [O, I] -> [..., O]."""
    return jnp.einsum("...i,oi->...o", x, w, preferred_element_type=jnp.float32)


def _block_size(w: Narrow) -> int:
    """Returns the output channels of a block."""
    *_, num_channels, _ = w.stored.codes.shape
    num_blocks = max(2, -(-4 * num_channels * w.shape[w.axis] // BLOCK_BYTES))
    return max(1, num_channels // num_blocks)


def _over_blocks(step: Callable[[Any, Any, int], Any], carry: Any, w: Narrow) -> Any:
    """Returns the carry after step(carry, first channel, number of channels) of all blocks."""
    size, num_channels = _block_size(w), len(w.stored.codes)
    num_blocks, rest = divmod(num_channels, size)
    carry = jax.lax.fori_loop(0, num_blocks, lambda i, c: step(c, i * size, size), carry)
    return step(carry, num_blocks * size, rest) if rest else carry


def _opened(w: Narrow, start: Any, size: int, dtype: Any) -> jax.Array:
    """Returns some output channels of a matrix, [size, I]."""

    def cut(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, start, size)

    return quantisation.decode(jax.tree.map(cut, w.stored), w.name, -1).astype(dtype)


@jax.custom_vjp
def _by_blocks(x: jax.Array, w: Narrow) -> jax.Array:
    """Returns the product of x [n, I] and a matrix, float32 [n, O]."""

    def place(total: jax.Array, start: Any, size: int) -> jax.Array:
        part = _dot(x, _opened(w, start, size, x.dtype))
        return jax.lax.dynamic_update_slice_in_dim(total, part, start, 1)

    return _over_blocks(place, jnp.zeros((len(x), len(w.stored.codes)), jnp.float32), w)


def _forward(x: jax.Array, w: Narrow) -> tuple[jax.Array, Any]:
    return _by_blocks(x, w), (x[:0], w)  # Of x the shape and type alone are needed.


def _backward(residuals: Any, g: jax.Array) -> tuple[jax.Array, None]:
    x, w = residuals

    def add(total: jax.Array, start: Any, size: int) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(g, start, size, 1).astype(x.dtype)
        opened = _opened(w, start, size, x.dtype)
        return total + jnp.einsum("no,oi->ni", part, opened, preferred_element_type=jnp.float32)

    total = _over_blocks(add, jnp.zeros((len(g), x.shape[1]), jnp.float32), w)
    return total.astype(x.dtype), None


_by_blocks.defvjp(_forward, _backward)
