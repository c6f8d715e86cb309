"""A layer of Gemma 3: norms, rotary positions, grouped queries, and what it may attend to.

Shape letters: B rows, T tokens, S keys, N query heads, K key-value heads, H width of a head,
W window, P length of the layer axis of a cache.

A cache is (keys, values), [P, B, K, S, H] each, one for all layers that share a place in their
period. The functions that attend to one take q [B, T, N, H] and k, v [B, T, K, H] of the T newest
tokens, store k and v at index `period`, and return the output [B, T, N * H] and the cache.
"""

import math
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

MASKED = -1e30  # A score that softmax turns into 0; finite, so that a row of them is no NaN.
Caches = tuple[jax.Array, jax.Array]


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32 and cast back.

    x / sqrt(mean(x^2) + epsilon) (1 + scale),  scale [x.shape[-1]]
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + epsilon)
    scale = jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))
    return (y * (1 + scale)).astype(x.dtype)


def rope_table(
    positions: jax.Array, head_dim: int, theta: float, factor: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of position / factor * theta^(-2j / H), j < H / 2; [B, T, H / 2] each."""
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequency = 1 / (theta**exponent) / factor
    angle = positions.astype(jnp.float32)[..., None] * frequency[None, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array], scale: float = 1.0) -> jax.Array:
    """Turns the pairs (x_j, x_{j + H/2}) by the angles of a table, and scales them.

    x is [B, T, heads, H]; it is computed in float32 and cast back.
    """
    cos, sin = (scale * table[:, :, None] for table in rope)
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention, softmax(q k^T) v; query head n reads key-value head n // (N / K).

    Args:
      q: scaled queries, [B, T, N, H].
      k, v: [B, K, S, H].
      mask: bool, [B or 1, T, S]; False is not attended to.

    Returns:
      [B, T, N * H].
    """
    b, t, n, h = q.shape
    num_kv, s = k.shape[1:3]
    # The queries of a group are rows of one matrix product with their keys. A token's stand
    # together, as they come: where all share one head of keys nothing is moved.
    q = q.reshape(b, t, num_kv, -1, h).swapaxes(1, 2).reshape(b, num_kv, -1, h)
    scores = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, :, None], scores.reshape(b, num_kv, t, -1, s), MASKED)
    # Softmax, divided by its sum after the product: by H numbers a query, not by S.
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True)))
    weights = weights.reshape(b, num_kv, -1, s)
    out = jnp.einsum(
        "bkqs,bksh->bkqh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    out = (out / jnp.sum(weights, -1, keepdims=True)).astype(v.dtype)
    return out.reshape(b, num_kv, t, -1, h).swapaxes(1, 2).reshape(b, t, n * h)


def attend_all(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
    """Attention to the tokens of the same pass; k, v [B, T, K, H]."""
    return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask), None


def cached_global(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    caches: Caches,
    period: Any,
    slots: jax.Array,
    start: jax.Array,
) -> tuple[jax.Array, Caches]:
    """Attention to all slots so far, in a cache that has one for each.

    Args:
      q, k, v: of the newest tokens, see above.
      caches: keys and values.
      period: int, [].
      slots: int32, [T]: where the tokens go, one after another.
      start: int32, [B]: no slot before it is attended to.
    """
    at = (period, 0, 0, slots[0], 0)
    keys, values = (
        jax.lax.dynamic_update_slice(cache, x.swapaxes(1, 2)[None], at)
        for cache, x in zip(caches, (k, v), strict=True)
    )
    stored = jnp.arange(keys.shape[3])
    mask = _visible(stored, slots, start)
    return attend(q, _at(keys, period), _at(values, period), mask), (keys, values)


def cached_local(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    caches: Caches,
    period: Any,
    slots: jax.Array,
    start: jax.Array,
    window: int,
) -> tuple[jax.Array, Caches]:
    """Attention to the last W slots, in a ring of min(W, max_length) where slot s is at s % S.

    The arguments are those of `cached_global`, and W.
    """
    new = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, K, T, H]
    length, ring = new[0].shape[2], caches[0].shape[3]
    places = jnp.arange(ring)
    if length == 1:
        # The slot that is overwritten has just left the window.
        at = (period, 0, 0, slots[0] % ring, 0)
        keys, values = (
            jax.lax.dynamic_update_slice(cache, x[None], at)
            for cache, x in zip(caches, new, strict=True)
        )
        stored = slots[0] - (slots[0] - places) % ring
        mask = _visible(stored, slots, start) & (stored > slots[0] - window)[None, None]
        return attend(q, _at(keys, period), _at(values, period), mask), (keys, values)

    # The first tokens of a chunk still need what its last ones overwrite: attend to the ring as
    # it was and to the chunk, then store.
    last = slots[0] - 1
    stored = jnp.concatenate([last - (last - places) % ring, slots])
    recent = stored[None, :] > slots[:, None] - window
    old = tuple(_at(cache, period) for cache in caches)
    all_keys, all_values = (jnp.concatenate(pair, 2) for pair in zip(old, new, strict=True))
    out = attend(q, all_keys, all_values, _visible(stored, slots, start) & recent[None])
    kept = min(length, ring)
    where = slots[-kept:] % ring
    keys, values = (
        jax.lax.dynamic_update_index_in_dim(
            cache, before.at[:, :, where].set(x[:, :, -kept:]), period, 0
        )
        for cache, before, x in zip(caches, old, new, strict=True)
    )
    return out, (keys, values)


def layer(
    x: jax.Array,
    rope: tuple[jax.Array, jax.Array],
    attend: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]],
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    hidden_dim: int,
    query_scale: float,
    rms_epsilon: float,
) -> tuple[jax.Array, Any]:
    """One layer; called inside `hk.transform`.

        x = x + norm(attention(norm(x))),  x = x + norm(feed_forward(norm(x)))
        feed_forward(h) = (gelu(h W_gate) * (h W_up)) W_down,  gelu by its tanh approximation

    Args:
      x: [B, T, D].
      rope: the layer's table, [B or 1, T, H / 2] each.
      attend: (q [B, T, N, H], k, v [B, T, K, H]) -> ([B, T, N * H], extra).
      num_heads, num_kv_heads, head_dim, hidden_dim: N, K, H, F.
      query_scale: q k^T is divided by its square root.
      rms_epsilon: of all norms.

    Returns:
      x [B, T, D], and what `attend` gave beside its output.
    """
    b, t, d = x.shape

    def norm(x: jax.Array, name: str) -> jax.Array:
        scale = hk.get_parameter(name, x.shape[-1:], init=jnp.zeros)
        return rms_norm(x, scale, rms_epsilon)

    def linear(x: jax.Array, name: str, size: int) -> jax.Array:
        init = hk.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
        w = hk.get_parameter(name, (x.shape[-1], size), init=init)
        # One plain matrix product of all tokens, which CPUs do best.
        return (x.reshape(b * t, -1) @ w.astype(x.dtype)).reshape(b, t, size)

    def heads(x: jax.Array, name: str, number: int) -> jax.Array:
        x = linear(x, name, number * head_dim)
        return x.reshape(b, t, number, head_dim)

    with hk.name_scope("attention"):
        h = norm(x, "pre_norm")
        q = norm(heads(h, "query", num_heads), "query_norm")
        k = norm(heads(h, "key", num_kv_heads), "key_norm")
        v = heads(h, "value", num_kv_heads)
        q = rotate(q, rope, 1 / math.sqrt(query_scale))
        out, extra = attend(q, rotate(k, rope), v)
        x = x + norm(linear(out, "output", d), "post_norm")
    with hk.name_scope("feed_forward"):
        h = norm(x, "pre_norm")
        h = _gated(linear(h, "gate", hidden_dim), linear(h, "up", hidden_dim))
        x = x + norm(linear(h, "down", d), "post_norm")
    return x, extra


@jax.checkpoint  # Its inputs are kept for the gradient, and no third array as large.
def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.gelu(gate, approximate=True) * up


def _visible(stored: jax.Array, slots: jax.Array, start: jax.Array) -> jax.Array:
    """Which keys, by slot [S], the queries at `slots` [T] may see; bool [B, T, S]."""
    causal = stored[None, :] <= slots[:, None]  # [T, S]
    return causal[None] & (stored[None, :] >= start[:, None])[:, None]


def _at(cache: jax.Array, period: Any) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(cache, period, 0, keepdims=False)
