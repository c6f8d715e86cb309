"""A layer of Gemma 3: norms, rotary embeddings, and grouped-query attention.

Shape letters: B rows, T tokens, S keys, N query heads, K key-value heads, H width of a head.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from kullback.lm import lora, narrow_weights

MASKED = -1e30  # A score with weight 0; finite, so that a row of masked scores is not NaN.
LARGE = 2**26  # Bytes of a table of which copies are avoided.


def lookup(table: narrow_weights.Matrix, ids: jax.Array) -> tuple[jax.Array, narrow_weights.Matrix]:
    """Returns rows of a table, [..., D], and the table itself, to be used once more.

    The gradient of the table's further use is there before that of the rows, which is added to it,
    in place if the table is large. Else there would be two arrays of its size, and their sum. A
    narrow table gets no gradient.

    Args:
      table: [V, D].
      ids: int, [...].
    """
    if isinstance(table, narrow_weights.Narrow):
        return narrow_weights.rows(table, ids), table
    return _lookup(table, ids)


@jax.custom_vjp
def _lookup(table: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    return table[ids], table


def _lookup_forward(table: jax.Array, ids: jax.Array) -> tuple[Any, jax.Array]:
    return _lookup(table, ids), ids


def _lookup_backward(ids: jax.Array, cotangents: tuple[jax.Array, jax.Array]) -> Any:
    of_rows, of_table = cotangents
    if of_table.nbytes < LARGE:
        return jnp.zeros_like(of_table).at[ids].add(of_rows) + of_table, None
    if jax.default_backend() != "cpu":
        return of_table.at[ids].add(of_rows), None
    # XLA's scatter copies a table on CPUs, and a loop of slices does not.
    ids, of_rows = ids.reshape(-1), of_rows.reshape(-1, of_rows.shape[-1])

    def add(i: Any, total: jax.Array) -> jax.Array:
        at = ids[i], 0
        old = jax.lax.dynamic_slice(total, at, (1, total.shape[1]))
        return jax.lax.dynamic_update_slice(total, old + of_rows[i][None], at)

    return jax.lax.fori_loop(0, len(ids), add, of_table), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Applies the root-mean-square norm over the last axis, in float32, and casts back.

        x / sqrt(mean(x^2) + epsilon) (1 + scale),  scale [x.shape[-1]]

    Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + epsilon)
    scale = jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))
    return (y * (1 + scale)).astype(x.dtype)


# The same, of which the gradient stores the input alone. That of a frozen scale needs no more.
_stored_once = functools.partial(jax.checkpoint, static_argnums=2)(rms_norm)


def layer_norm(x: jax.Array, name: str, epsilon: float) -> jax.Array:
    """Applies the layer norm over the last axis, in float32 at least, and casts back.

        (x - mean(x)) / sqrt(var(x) + epsilon) scale + offset,  the variance biased

    To be called inside `hk.transform`. Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """
    norm = hk.LayerNorm(-1, True, True, eps=epsilon, name=name)
    return norm(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)


def rope_table(
    positions: jax.Array, head_dim: int, theta: float, factor: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine of position / factor * theta^(-2j / H), j < H / 2, for RoPE.

    Su et al. 2021, https://arxiv.org/abs/2104.09864.

    Args:
      positions: [B, T].
      head_dim: H.
      theta: base of the frequencies.
      factor: divisor of the positions.

    Returns:
      Two tables, float32, [B, T, H / 2] each.
    """
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequency = 1 / (theta**exponent) / factor
    angle = positions.astype(jnp.float32)[..., None] * frequency[None, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array], scale: float = 1.0) -> jax.Array:
    """Rotates the pairs (x_j, x_{j + H/2}) by the angles of a table, and scales them.

    x is [B, T, heads, H]; it is computed in float32 and cast back.
    """
    cos, sin = (scale * table[:, :, None] for table in rope)
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes grouped-query attention, softmax(q k^T) v.

    Query head n reads key-value head n // (N / K). Ainslie et al. 2023,
    https://arxiv.org/abs/2305.13245.

    Args:
      q: scaled queries, [B, T, N, H].
      k, v: [B, K, S, H].
      mask: bool, [B or 1, T, S]; False is not attended to.

    Returns:
      [B, T, N * H].
    """
    b, t, n, h = q.shape
    num_kv, s = k.shape[1:3]
    # The queries of a group are rows of one matrix product with their keys. A token's queries stay
    # adjacent, so that with one key-value head nothing is moved.
    q = q.reshape(b, t, num_kv, -1, h).swapaxes(1, 2).reshape(b, num_kv, -1, h)
    scores = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, :, None], scores.reshape(b, num_kv, t, -1, s), MASKED)
    # Softmax's sum divides the product, of H numbers a query, not the S weights.
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True)))
    weights = weights.reshape(b, num_kv, -1, s)
    out = jnp.einsum(
        "bkqs,bksh->bkqh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    out = (out / jnp.sum(weights, -1, keepdims=True)).astype(v.dtype)
    return out.reshape(b, num_kv, t, -1, h).swapaxes(1, 2).reshape(b, t, n * h)


def attend_in_blocks(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, most: int
) -> jax.Array:
    """Returns what `attend` does, by blocks of at most `most` queries, whose scores alone are kept.

    Blocks are of equal size, the last filled up with queries whose results are dropped. The
    gradient computes a block's scores again. Key-value heads take their turn: scores of all of them
    would leave the processor's caches, which takes more than twice as long.

    Args:
      q, k, v: as of `attend`.
      mask: bool, [B or 1, T or 1, S or 1].
      most: queries of a block, >= 1.
    """
    b, t, n, h = q.shape
    num_blocks = -(-t // most)
    if num_blocks <= 1:
        return attend(q, k, v, mask)
    size = -(-t // num_blocks)

    def blocks(x: jax.Array) -> jax.Array:
        filled = jnp.pad(x, ((0, 0), (0, num_blocks * size - t), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(filled.reshape(x.shape[0], num_blocks, size, *x.shape[2:]), 1, 0)

    masks = None if mask.shape[1] == 1 else blocks(mask)  # None: all blocks share one.

    def of_head(given: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q, k, v = given[0], given[1][:, None], given[2][:, None]

        @jax.checkpoint
        def of_block(block: tuple[jax.Array, jax.Array | None]) -> jax.Array:
            q, own_mask = block
            return attend(q, k, v, mask if own_mask is None else own_mask)

        return jax.lax.map(of_block, (q, masks))

    num_kv = k.shape[1]
    # [K, blocks, B, size, N / K, H].
    queries = jnp.moveaxis(blocks(q.reshape(b, t, num_kv, -1, h)), 3, 0)
    out = jax.lax.map(of_head, (queries, k.swapaxes(0, 1), v.swapaxes(0, 1)))
    # [K, blocks, B, size, N / K * H].
    return jnp.moveaxis(out, (0, 1), (3, 1)).reshape(b, num_blocks * size, n * h)[:, :t]


def attend_all(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
    """Attends to the tokens of the same pass; q [B, T, N, H], k and v [B, T, K, H]."""
    return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask), None


def layer(
    x: jax.Array,
    rope: tuple[jax.Array, jax.Array],
    attend: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]],
    keys: jax.Array | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    hidden_dim: int,
    query_scale: float,
    rms_epsilon: float,
    adapters: lora.Config,
) -> tuple[jax.Array, Any]:
    """Applies one layer; to be called inside `hk.transform`.

        x = x + norm(attention(norm(x))),  x = x + norm(feed_forward(norm(x)))
        feed_forward(h) = (gelu(h W_gate) * (h W_up)) W_down,  gelu by its tanh approximation

    Args:
      x: [B, T, D].
      rope: the layer's table, [B or 1, T, H / 2] each.
      attend: (q [B, T, N, H], k, v [B, T, K, H]) -> ([B, T, N * H], extra).
      keys: [B], of the dropout of adapters' inputs; None leaves none out.
      num_heads, num_kv_heads, head_dim, hidden_dim: N, K, H, F.
      query_scale: q k^T is divided by its square root.
      rms_epsilon: of all norms.
      adapters: of the matrices, see lm/lora.py.

    Returns:
      x [B, T, D], and the extra result of `attend`.
    """
    b, t, d = x.shape

    def norm(x: jax.Array, name: str) -> jax.Array:
        scale = hk.get_parameter(name, x.shape[-1:], init=jnp.zeros)
        return (_stored_once if adapters else rms_norm)(x, scale, rms_epsilon)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(b * t, -1)

    # One matrix product of all tokens is fastest on CPUs. Matrices that read the same tokens are
    # handed one array, so that the gradient stores it once.
    def linear(x: jax.Array, name: str, size: int) -> jax.Array:
        init = hk.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
        w = hk.get_parameter(name, (x.shape[-1], size), init=init)
        y = narrow_weights.product(x, w)
        if adapters.adapts(name):
            if keys is not None:
                x = flat(lora.dropped(x.reshape(b, t, -1), keys, name, adapters))
            with hk.name_scope(name):
                y = y + lora.update(x, size, adapters)
        return y.reshape(b, t, size)

    def heads(x: jax.Array, name: str, number: int) -> jax.Array:
        x = linear(x, name, number * head_dim)
        return x.reshape(b, t, number, head_dim)

    with hk.name_scope("attention"):
        h = flat(norm(x, "pre_norm"))
        q = norm(heads(h, "query", num_heads), "query_norm")
        k = norm(heads(h, "key", num_kv_heads), "key_norm")
        v = heads(h, "value", num_kv_heads)
        q = rotate(q, rope, 1 / math.sqrt(query_scale))
        out, extra = attend(q, rotate(k, rope), v)
        x = x + norm(linear(flat(out), "output", d), "post_norm")
    with hk.name_scope("feed_forward"):
        h = flat(norm(x, "pre_norm"))
        h = _gated(linear(h, "gate", hidden_dim), linear(h, "up", hidden_dim))
        x = x + norm(linear(flat(h), "down", d), "post_norm")
    return x, extra


def scan(step: Callable[..., Any], carry: Any, stacked: Any) -> Any:
    """Scans step(carry, i, item i of `stacked`) -> carry over the layer axis.

    On CPUs a scan copies each layer's weights out of the stack, in each of its calls. A tuple of
    items, see `unstacked`, is gone through without a scan: the program grows with depth, and copies
    nothing. Slices of a stack in the program itself would not do: XLA copies all of them before the
    loop over tokens. The step is traced once for all items.
    """
    if isinstance(stacked, tuple):
        step = jax.jit(step)
        for i, item in enumerate(stacked):
            carry = step(carry, jnp.int32(i), item)
        return carry
    length = jax.tree.leaves(stacked)[0].shape[0]
    if length == 1:  # Without a scan nothing is copied.
        return step(carry, 0, jax.tree.map(lambda x: x[0], stacked))
    indices = jnp.arange(length)
    return jax.lax.scan(lambda c, item: (step(c, *item), None), carry, (indices, stacked))[0]


def unstacked(stacked: Any, *, shared: bool = False) -> tuple[Any, ...]:
    """Returns the items of a tree whose arrays have a layer axis, as arrays of their own.

    Args:
      stacked: the tree, on a CPU.
      shared: whether they lie in its memory, where they begin at addresses that XLA takes.
    """
    length = jax.tree.leaves(stacked)[0].shape[0]

    def item(x: jax.Array, i: int) -> jax.Array:
        return jax.device_put(np.asarray(x)[i]) if shared else x[i]

    return tuple(jax.tree.map(lambda x, i=i: item(x, i), stacked) for i in range(length))


@jax.checkpoint  # The gradient stores the inputs, and no third array as large.
def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.gelu(gate, approximate=True) * up
