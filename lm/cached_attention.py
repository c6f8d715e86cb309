"""Attention to a key-value cache: of all slots so far, and of a ring of the last ones.

Shape letters: B rows, T tokens, S keys, N query heads, K key-value heads, H width of a head,
W window, P length of the layer axis of a cache.

A cache is (keys, values), [P, B, K, S, H] each, for all layers at the same place in their period;
in 8 bits they are trees of such arrays, see lm/cached.py. The functions take q [B, T, N, H] and k,
v [B, T, K, H] of the T newest tokens, store k and v at index `period`, and return the output
[B, T, N * H] and the cache.
"""

from typing import Any

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import cached, layers, soft_tokens

Caches = tuple[cached.Stored, cached.Stored]
QUERIES = 256  # Queries whose scores are in memory at once, where a prompt is read in one call.


def of_all(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    caches: Caches,
    period: Any,
    slots: jax.Array,
    start: jax.Array,
    groups: types.Array | None = None,
) -> tuple[jax.Array, Caches]:
    """Attends to all slots so far, in a cache that has one for each.

    Args:
      q, k, v: of the newest tokens, see above.
      caches: keys and values.
      period: int, [].
      slots: int32, [T]: consecutive slots of the tokens.
      start: int32, [B]: first slot that is attended to.
      groups: int32, [B, T]: which of the tokens are soft tokens of an image, see
        lm/soft_tokens.py; None is of text alone.
    """
    at = (period, 0, 0, slots[0], 0)
    keys, values = (
        _written(cache, cached.stored(x.swapaxes(1, 2), cache), at)
        for cache, x in zip(caches, (k, v), strict=True)
    )
    stored = jnp.arange(_num_slots(keys))
    visible = _visible(stored, slots, start, groups)
    return _attend(q, *_opened((keys, values), period, q.dtype), visible, groups), (keys, values)


def of_window(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    caches: Caches,
    period: Any,
    slots: jax.Array,
    start: jax.Array,
    groups: types.Array | None = None,
    window: int,
) -> tuple[jax.Array, Caches]:
    """Attends to the last W slots, in a ring of min(W, max_length) where slot s is at s % S.

    Arguments are those of `of_all`, and `window`, W.
    """
    # [B, K, T, H] each.
    new = tuple(
        cached.stored(x.swapaxes(1, 2), cache) for x, cache in zip((k, v), caches, strict=True)
    )
    length, ring = k.shape[1], _num_slots(caches[0])
    places = jnp.arange(ring)
    if length == 1:
        # The slot that is overwritten is the one that has just left the window.
        at = (period, 0, 0, slots[0] % ring, 0)
        keys, values = (_written(cache, x, at) for cache, x in zip(caches, new, strict=True))
        stored = slots[0] - (slots[0] - places) % ring
        mask = _visible(stored, slots, start) & (stored > slots[0] - window)[None, None]
        return layers.attend(q, *_opened((keys, values), period, q.dtype), mask), (keys, values)

    # The first tokens of a chunk still need keys that its last tokens overwrite: attend to the old
    # ring and to the chunk, then store.
    last = slots[0] - 1
    stored = jnp.concatenate([last - (last - places) % ring, slots])
    recent = stored[None, :] > slots[:, None] - window
    old = _at(caches, period)
    both = jax.tree.map(lambda before, x: jnp.concatenate([before, x], 2), old, new)
    all_keys, all_values = (cached.opened(x, q.dtype) for x in both)
    visible = _visible(stored, slots, start, groups) & recent[None]
    out = _attend(q, all_keys, all_values, visible, groups)
    num_stored = min(length, ring)
    where = slots[-num_stored:] % ring

    def place(cache: jax.Array, before: jax.Array, x: jax.Array) -> jax.Array:
        last = before.at[:, :, where].set(x[:, :, -num_stored:])
        return jax.lax.dynamic_update_index_in_dim(cache, last, period, 0)

    return out, jax.tree.map(place, caches, old, new)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, groups: types.Array | None
) -> jax.Array:
    """Attends; of rows with images, which are read in one call, by blocks of queries."""
    if groups is None:
        return layers.attend(q, k, v, mask)
    return layers.attend_in_blocks(q, k, v, mask, QUERIES)


def _visible(
    stored: jax.Array, slots: jax.Array, start: jax.Array, groups: types.Array | None = None
) -> jax.Array:
    """Returns which keys, by slot [S], the queries at `slots` [T] may attend to; bool [B, T, S]."""
    seen = (stored[None, :] <= slots[:, None])[None]  # [1, T, S]
    if groups is not None:  # An image lies in one chunk: other keys are of no image of it.
        place = stored - slots[0]
        is_new = (place >= 0) & (place < len(slots))
        of_new = jnp.asarray(groups)[:, jnp.where(is_new, place, 0)]
        of_keys = jnp.where(is_new[None], of_new, soft_tokens.TEXT)
        seen = seen | soft_tokens.of_one_image(groups, of_keys)
    return seen & (stored[None, :] >= start[:, None])[:, None]


def _num_slots(cache: cached.Stored) -> int:
    return jax.tree.leaves(cache)[0].shape[3]


def _written(cache: cached.Stored, new: cached.Stored, at: tuple[Any, ...]) -> cached.Stored:
    """Returns keys or values [P, B, K, S, H] with new ones [B, K, T, H] from an index on."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice(x, y[None], at), cache, new)


def _at(cache: cached.Stored, period: Any) -> cached.Stored:
    """Returns keys or values of a period, [B, K, S, H]."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, period, 0, keepdims=False), cache)


def _opened(caches: Caches, period: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values of a period as numbers, [B, K, S, H]."""
    keys, values = (cached.opened(_at(cache, period), dtype) for cache in caches)
    return keys, values
