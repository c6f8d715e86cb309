"""Gemma 3, the decoder: full causal pass, and decoding with a key-value cache.

Gemma Team 2025, https://arxiv.org/abs/2503.19786. Logits equal those of the published
implementations for the same weights (lm/formats/hugging_face.py reads them).

Shape letters: B rows, T tokens, S keys, V vocabulary, D width, N query heads, K key-value heads,
H width of a head, F feed-forward width, L layers, W window, P periods, I soft tokens of a row.

Layers come in periods of `pattern`: local ones, then a global one. The parameters are

    embedding  [V, D]
    final_norm [D]
    periods/layer_J/...   [P, ...], J < pattern: layer p * pattern + J at index p
    remainder/layer_J/... [1, ...], J < L % pattern: the layers after the last whole period

and so are the keys and values of a cache. A layer axis leads every array below `periods` and
`remainder`. The periods are scanned, so that the size of a program does not grow with depth.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import (
    attention,
    cached,
    cached_attention,
    gemma_config,
    layers,
    lora,
    narrow_weights,
    soft_tokens,
)
from kullback.lm.gemma_config import PRESETS as PRESETS
from kullback.lm.gemma_config import Config as Config
from kullback.lm.gemma_config import num_params as num_params

__all__ = ["PRESETS", "Cache", "Config", "Model", "make", "num_params"]


class Cache(NamedTuple):
    """A key-value cache of B left-padded rows.

    All rows write to the same slot. The token in slot s of row b has position s - start[b], and
    slots before start[b] are never attended to. A local layer stores a ring of min(W, max_length)
    slots, slot s at s % its length; a global layer stores max_length slots.
    """

    slot: jax.Array  # int32, []: next slot to write; features are NaN past max_length.
    start: jax.Array  # int32, [B]: slot of the row's first token, prompt_length - length.
    # {block: {layer: [P, B, K, S, H]}}, rotated by RoPE; in the compute type, or `cached.Codes`.
    keys: Any
    values: Any  # The same.


class Model(NamedTuple):
    """A Gemma 3 model as pure functions; each may be jitted.

    `features(params, tokens, positions=None, segments=None, keys=None)` is the full causal pass,
    for right-padded rows of training: tokens int32 [B, T] -> [B, T, D] in the compute type, after
    the final norm. `positions` int32 [B, T] count from 0 unless given. For rows with several packed
    texts, `segments` int32 [B, T] numbers the text of each token; tokens attend to their own text,
    with which `positions` should restart, and to segment -1, a beginning of the row from which the
    `positions` of all texts go on (lm/shared_prompts.py). `keys` [B] draw what adapters leave out
    of their inputs; None leaves nothing out. `with_head(params, tokens, ...)` returns features and
    the parameters of `unembed`, for losses: the gradient through both uses of the tied embedding
    takes the memory of one. Where rows of a frozen embedding learn (lm/lora.py), what they add to
    their logits follows the features, [B, T, D + n], and the parameters have no gradient.

    Rows with images give `soft` [B, I, D] and `groups` int32 [B, T] besides, both or neither, see
    lm/soft_tokens.py: a soft vector stands where the group is no text's. Soft tokens of an image
    see each other; as in transformers 5.24 the window of a local layer ends how far they look
    back, not how far they look ahead:

        global: k <= q or same image,  local: (k <= q or same image) and k > q - W

    `unembed(params, features [..., D])` gives logits float32 [..., V] by the tied embedding, and
    `apply(params, tokens, ...)` is both in one.

    `init_cache(batch, max_length, lengths, prompt_length)` is the empty cache of left-padded
    prompts: lengths int32 [B] <= prompt_length <= max_length. `decode(params, tokens, cache)`
    takes the next T tokens of all rows, int32 [B, T] (a step of generation, or a chunk of the
    prompt of any length), and returns features [B, T, D] and the updated cache. Features of
    padding are meaningless. A chunk with images takes `soft` and `groups` of its tokens, and an
    image lies in one chunk whole: keys of a later one would come too late.
    """

    config: Config
    init: Callable[[types.Key], types.Params]
    features: Callable[..., jax.Array]
    with_head: Callable[..., tuple[jax.Array, types.Params]]
    unembed: Callable[[types.Params, jax.Array], jax.Array]
    apply: Callable[..., jax.Array]
    init_cache: Callable[[int, int, types.Array, int], Cache]
    decode: Callable[..., tuple[jax.Array, Cache]]
    num_ids: int  # Number of logits: rows of the embedding, or fewer (lm/shared_ids.py).
    unwritten_ids: tuple[int, ...] = ()  # Ids that a policy never samples.
    # Of a model that sees or hears (lm/senses.py): gives another decoder of its shape that sense,
    # whose parameters are frozen and no part of what `init` draws.
    lend_sense: "Callable[[Model], Model] | None" = None


def apart(params: types.Params, *, shared: bool = False) -> types.Params:
    """Returns parameters to decode with: those of large models on CPUs with each layer's apart.

    A block is then a tuple of its periods, see `layers.scan`. Small models, which compute faster
    than they compile, stay as they are, and so do trees without blocks, and models in few bits, of
    which a scan copies a period's codes only.

    Args:
      params: of the model.
      shared: whether a period lies in the memory of `params`, which nothing learns then: JAX cannot
        give that memory to a program any more. Else it is a copy.
    """
    num_bytes = sum(x.nbytes for x in jax.tree.leaves(params))
    is_small = num_bytes < layers.LARGE or narrow_weights.is_any(params)
    if jax.default_backend() != "cpu" or is_small:
        return params
    return {
        name: layers.unstacked(x, shared=shared) if name in gemma_config.BLOCKS else x
        for name, x in params.items()
    }


def cache_bytes(config: Config, batch: int, max_length: int, itemsize: int) -> int:
    """Returns the bytes of keys and values of a `Cache`.

        B 2 K h (num_global S + num_local min(S, W)),  S = max_length
        h = itemsize H, or H + 2 in 8 bits

    Args:
      config: of the model.
      batch: B.
      max_length: slots of a global layer.
      itemsize: bytes of a number that is not in 8 bits: 4 for float32, 2 for bfloat16.
    """
    num_global = config.num_periods
    slots = num_global * max_length
    slots += (config.num_layers - num_global) * min(config.window, max_length)
    of_head = cached.num_bytes(config.head_dim, itemsize, config.cache)
    return batch * 2 * config.num_kv_heads * of_head * slots


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Context:
    """The constants of a model, which its functions share."""

    config: Config
    adapters: lora.Config
    dtype: Any  # Of the computation.
    layer: hk.Transformed  # `layers.layer`, of one layer's parameters.


def make(config: Config, adapters: lora.Config = lora.Config()) -> Model:
    """Returns the model of a configuration.

    With adapters, `init` draws these alone, and other functions take parameters that have theirs
    beside those of the base, see lm/adapters.py.
    """
    names = "num_heads num_kv_heads head_dim hidden_dim query_scale rms_epsilon".split()
    settings = {name: getattr(config, name) for name in names}
    layer = functools.partial(layers.layer, **settings, adapters=adapters)
    context = _Context(
        config=config,
        adapters=adapters,
        dtype=jnp.dtype(config.dtype),
        layer=hk.without_apply_rng(hk.transform(layer)),
    )
    of_adapters = functools.partial(lora.init, config, adapters)
    return Model(
        config=config,
        init=of_adapters if adapters else functools.partial(_init, context),
        features=functools.partial(_features, context),
        with_head=functools.partial(_with_head, context),
        unembed=functools.partial(_unembed, context),
        apply=functools.partial(_apply, context),
        init_cache=functools.partial(_init_cache, context),
        decode=functools.partial(_decode, context),
        num_ids=config.vocab_size,
    )


def _init(context: _Context, key: types.Key) -> types.Params:
    config = context.config

    def init_layer(key: types.Key) -> types.Params:
        x = jnp.zeros((1, 1, config.embed_dim), context.dtype)
        rope = layers.rope_table(jnp.zeros((1, 1)), config.head_dim, 1.0)
        return context.layer.init(key, x, rope, lambda q, k, v: (q.reshape(1, 1, -1), None))

    embedding_key, key = jax.random.split(key)
    shape = config.vocab_size, config.embed_dim
    params: dict[str, Any] = {
        # sqrt(D) E has unit variance, and so have logits of features of unit mean square.
        "embedding": jax.random.normal(embedding_key, shape) / math.sqrt(config.embed_dim),
        "final_norm": jnp.zeros(config.embed_dim),
    }
    for block, (length, depth) in config.blocks.items():
        key, block_key = jax.random.split(key)
        keys = jax.random.split(block_key, (depth, length))
        params[block] = {f"layer_{j}": jax.vmap(init_layer)(keys[j]) for j in range(depth)}
    return params


def _scaled(context: _Context, embedded: jax.Array) -> jax.Array:
    scale = math.sqrt(context.config.embed_dim)
    return embedded.astype(context.dtype) * jnp.asarray(scale, context.dtype)  # As published.


def _ropes(config: Config, positions: jax.Array) -> dict[bool, tuple[jax.Array, jax.Array]]:
    """Returns rotary tables of local (False) and global (True) layers."""
    return {
        False: layers.rope_table(positions, config.head_dim, config.local_rope_theta),
        True: layers.rope_table(
            positions, config.head_dim, config.global_rope_theta, config.global_rope_factor
        ),
    }


def _features(
    context: _Context, params: types.Params, tokens: types.Array, *places: Any, **images: Any
) -> jax.Array:
    tokens = soft_tokens.looked_up(tokens, **images)
    embedded = narrow_weights.rows(params["embedding"], tokens)
    embedded = _learnt_rows(context, params, embedded, tokens)
    return _layers(context, params, embedded, *places, **images)


def _with_head(
    context: _Context, params: types.Params, tokens: types.Array, *places: Any, **images: Any
) -> tuple[jax.Array, types.Params]:
    tokens = soft_tokens.looked_up(tokens, **images)
    embedded, table = layers.lookup(params["embedding"], jnp.asarray(tokens))
    embedded = _learnt_rows(context, params, embedded, tokens)
    features, head = _layers(context, params, embedded, *places, **images), {"embedding": table}
    if not context.adapters.train_tokens:
        return features, head
    rows = params[lora.ROWS]
    updates = lora.of_logits(features, rows, context.adapters).astype(features.dtype)
    return jnp.concatenate([features, updates], -1), {**head, lora.ROWS: {"ids": rows["ids"]}}


def _learnt_rows(
    context: _Context, params: types.Params, embedded: jax.Array, tokens: types.Array
) -> jax.Array:
    """Returns embedded tokens, of which those whose rows learn have these."""
    if not context.adapters.train_tokens:
        return embedded
    return lora.looked_up(embedded, jnp.asarray(tokens), params[lora.ROWS], context.adapters)


def _layers(
    context: _Context,
    params: types.Params,
    embedded: jax.Array,
    positions: types.Array | None = None,
    segments: types.Array | None = None,
    keys: types.Key | None = None,
    *,
    soft: jax.Array | None = None,
    groups: types.Array | None = None,
) -> jax.Array:
    config, index = context.config, jnp.arange(embedded.shape[1])
    positions = index[None] if positions is None else jnp.asarray(positions)
    causal = (index[None, :] <= index[:, None])[None]  # [1, T, S]
    if groups is not None:
        causal = causal | soft_tokens.of_one_image(groups, groups)
    recent = (index[None, :] > index[:, None] - config.window)[None]
    if segments is not None:
        seen = jnp.asarray(segments)[:, None, :]  # [B, 1, S]
        causal = causal & ((jnp.asarray(segments)[:, :, None] == seen) | (seen < 0))
        # Texts of a row that go on from one beginning are far from it in columns alone.
        recent = positions[:, None, :] > positions[:, :, None] - config.window
    masks, ropes = {False: causal & recent, True: causal}, _ropes(config, positions)

    def layer(
        params: types.Params, x: jax.Array, keys: types.Key | None, *, is_global: bool
    ) -> jax.Array:
        attend = functools.partial(
            attention.full,
            mask=masks[is_global],
            window=None if is_global else config.window,
            is_packed=segments is not None,
            looks_ahead=groups is not None,
        )
        return context.layer.apply(params, x, ropes[is_global], attend, keys)[0]

    def period(x: jax.Array, i: Any, stacked: types.Params, of_period: Any) -> jax.Array:
        for j in range(len(stacked)):
            step = functools.partial(layer, is_global=config.is_global(j))
            step = jax.checkpoint(step) if config.remat else step
            x = step(stacked[f"layer_{j}"], x, _folded(_folded(of_period, j), i))
        return x

    x = soft_tokens.written(_scaled(context, embedded), soft, groups)
    for number, block in enumerate(config.blocks):
        of_period = functools.partial(period, of_period=_folded(keys, number))
        x = layers.scan(of_period, x, params[block])
    return layers.rms_norm(x, params["final_norm"], config.rms_epsilon)


def _folded(keys: types.Key | None, number: Any) -> types.Key | None:
    """Folds a number into each key, [B], if there are keys."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _unembed(context: _Context, params: types.Params, features: jax.Array) -> jax.Array:
    features, settings = features.astype(context.dtype), context.adapters
    table = params["embedding"]
    if not settings.train_tokens:
        return narrow_weights.logits(features, table)
    features, updates = jnp.split(features, [context.config.embed_dim], -1)
    rows = params[lora.ROWS]
    if not updates.shape[-1]:  # Features that are not `_with_head`'s.
        updates = lora.of_logits(features, rows, settings)
    return lora.added_to_logits(narrow_weights.logits(features, table), updates, rows["ids"])


def _apply(
    context: _Context,
    params: types.Params,
    tokens: types.Array,
    positions: types.Array | None = None,
    segments: types.Array | None = None,
    **images: Any,
) -> jax.Array:
    features = _features(context, params, tokens, positions, segments, **images)
    return _unembed(context, params, features)


def _init_cache(
    context: _Context, batch: int, max_length: int, lengths: types.Array, prompt_length: int
) -> Cache:
    config = context.config
    if not 0 < prompt_length <= max_length:
        raise ValueError(
            f"prompt_length must lie in [1, max_length={max_length}], got {prompt_length}"
        )
    if jnp.shape(lengths) != (batch,):
        raise ValueError(f"lengths must be of shape ({batch},), got {jnp.shape(lengths)}")

    def zeros(length: int, j: int) -> cached.Stored:
        slots = max_length if config.is_global(j) else min(config.window, max_length)
        shape = length, batch, config.num_kv_heads, slots, config.head_dim
        return cached.empty(shape, context.dtype, config.cache)

    def empty() -> Any:
        return {
            block: {f"layer_{j}": zeros(length, j) for j in range(depth)}
            for block, (length, depth) in config.blocks.items()
        }

    start = prompt_length - jnp.asarray(lengths, jnp.int32)
    return Cache(jnp.zeros((), jnp.int32), start, empty(), empty())


def _decode(
    context: _Context,
    params: types.Params,
    tokens: types.Array,
    cache: Cache,
    *,
    soft: jax.Array | None = None,
    groups: types.Array | None = None,
) -> tuple[jax.Array, Cache]:
    config, length = context.config, tokens.shape[1]
    room = _room(config, cache)
    if room is not None and length > room:
        raise ValueError(
            f"{length} tokens at once do not fit a cache of max_length {room}; decode fewer, "
            "or make it longer"
        )
    slots = cache.slot + jnp.arange(length, dtype=jnp.int32)
    ropes = _ropes(config, slots[None] - cache.start[:, None])
    local = functools.partial(cached_attention.of_window, window=config.window)

    def period(carry: Any, i: Any, stacked: types.Params) -> Any:
        x, keys, values = carry
        for j in range(len(stacked)):
            name, is_global = f"layer_{j}", config.is_global(j)
            attend = functools.partial(
                cached_attention.of_all if is_global else local,
                caches=(keys[name], values[name]),
                period=i,
                slots=slots,
                start=cache.start,
                groups=groups,
            )
            x, cached = context.layer.apply(stacked[name], x, ropes[is_global], attend)
            keys, values = keys | {name: cached[0]}, values | {name: cached[1]}
        return x, keys, values

    tokens = soft_tokens.looked_up(tokens, soft, groups)
    embedded = narrow_weights.rows(params["embedding"], tokens)
    x = _scaled(context, _learnt_rows(context, params, embedded, tokens))
    x = soft_tokens.written(x, soft, groups)
    keys, values = dict(cache.keys), dict(cache.values)
    for block in config.blocks:
        # The caches are carried, not scanned over: a step then writes its token in place
        # where a scan would copy all of them out again.
        carry = x, keys[block], values[block]
        x, keys[block], values[block] = layers.scan(period, carry, params[block])
    x = layers.rms_norm(x, params["final_norm"], config.rms_epsilon)
    if room is not None:  # An overflow is known at run time only: NaN, not wrong numbers.
        x = jnp.where(cache.slot + length <= room, x, jnp.nan)
    return x, Cache(cache.slot + length, cache.start, keys, values)


def _room(config: Config, cache: Cache) -> int | None:
    """Returns the slots of a cache; None if all its layers are rings of a whole window."""
    slots = {
        (config.is_global(j), jax.tree.leaves(cache.keys[block][f"layer_{j}"])[0].shape[3])
        for block, (_, depth) in config.blocks.items()
        for j in range(depth)
    }
    return min((n for is_global, n in slots if is_global or n < config.window), default=None)
