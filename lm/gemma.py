"""Gemma 3, the text decoder: full causal pass, and cached decoding for generation.

Gemma Team 2025, https://arxiv.org/abs/2503.19786. Exact: logits equal those of the published
implementations for the same weights (lm/formats/hugging_face.py reads them).

Shape letters: B rows, T tokens, S keys, V vocabulary, D width, N query heads, K key-value heads,
H width of a head, F feed-forward width, L layers, W window, P periods.

Layers come in periods of `pattern`: local ones, then a global one. The parameters are

    embedding  [V, D]
    final_norm [D]
    periods/layer_J/...   [P, ...], J < pattern: layer p * pattern + J at index p
    remainder/layer_J/... [1, ...], J < L % pattern: the layers after the last whole period

and so are the keys and values of a cache. A layer axis leads every array below `periods` and
`remainder`. The periods are scanned, hence the program is of one size whatever the depth.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import layers, sizes

__all__ = ["PRESETS", "Cache", "Config", "Model", "make", "num_params"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of a Gemma 3 model, and how it computes."""

    vocab_size: int = 262_144  # V, rows of the embedding.
    num_layers: int  # L.
    embed_dim: int  # D.
    num_heads: int  # N.
    num_kv_heads: int  # K, divides N.
    head_dim: int = 256  # H, even.
    hidden_dim: int  # F.
    window: int  # W: a token of a local layer sees W keys, itself among them.
    query_scale: float = 256.0  # Queries are divided by its square root (query_pre_attn_scalar).
    local_rope_theta: float = 10_000.0
    global_rope_theta: float = 1_000_000.0
    global_rope_factor: float = 1.0  # Positions of global layers are divided by it; 8 from 4B on.
    pattern: int = 6  # Every pattern-th layer is global, the others are local.
    rms_epsilon: float = 1e-6
    context_length: int = 32_768  # Tokens it was trained for; nothing here is limited by it.
    bos_id: int = 2
    eos_ids: tuple[int, ...] = (1,)  # Any of them ends a text; tuned models add end_of_turn, 106.
    pad_id: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"  # Of the computation, whatever params are.
    remat: bool = False  # The backward pass makes each layer's inner values again.

    def __post_init__(self) -> None:
        ropes = ("local_rope_theta", "global_rope_theta", "global_rope_factor")
        sizes.check(self, "query_scale", "rms_epsilon", *ropes)
        if (depth := sum(depth for _, depth in self.blocks.values())) > sizes.TRACED:
            raise ValueError(
                f"pattern must leave at most {sizes.TRACED} layers that are traced one by one, "
                f"got pattern={self.pattern} for num_layers={self.num_layers}, which leaves {depth}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and "
                f"{self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (RoPE turns pairs), got {self.head_dim}")
        if not self.eos_ids:
            raise ValueError("eos_ids must name at least one token, got (); Gemma's is (1,)")
        for token in (self.bos_id, self.pad_id, *self.eos_ids):
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"bos_id, eos_ids and pad_id must lie in [0, {self.vocab_size}), got {token}"
                )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {self.dtype!r}")

    @property
    def num_periods(self) -> int:
        """P, the whole periods."""
        return self.num_layers // self.pattern

    @property
    def num_remaining(self) -> int:
        """Layers after the last whole period, all local."""
        return self.num_layers % self.pattern

    def is_global(self, layer: int) -> bool:
        """Whether a layer (counted from 0) attends to everything before it."""
        return (layer + 1) % self.pattern == 0

    @property
    def blocks(self) -> dict[str, tuple[int, int]]:
        """(Length of the layer axis, layers one after another) by name, empty ones left out."""
        all_ = {"periods": (self.num_periods, self.pattern), "remainder": (1, self.num_remaining)}
        return {name: sizes for name, sizes in all_.items() if all(sizes)}


_4B = Config(  # The vocabulary of the larger ones has rows for image tokens.
    vocab_size=262_208,
    num_layers=34,
    embed_dim=2560,
    num_heads=8,
    num_kv_heads=4,
    hidden_dim=10_240,
    window=1024,
    global_rope_factor=8.0,
    context_length=131_072,
)
_1B = Config(
    num_layers=26, embed_dim=1152, num_heads=4, num_kv_heads=1, hidden_dim=6912, window=512
)
# Sizes of models by name.
PRESETS: dict[str, Config] = {
    "gemma3-270m": dataclasses.replace(_1B, num_layers=18, embed_dim=640, hidden_dim=2048),
    "gemma3-1b": _1B,
    "gemma3-4b": _4B,
    "gemma3-12b": dataclasses.replace(
        _4B, num_layers=48, embed_dim=3840, num_heads=16, num_kv_heads=8, hidden_dim=15_360
    ),
    "gemma3-27b": dataclasses.replace(
        _4B,
        num_layers=62,
        embed_dim=5376,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        hidden_dim=21_504,
        query_scale=168.0,  # D / N, not H.
    ),
    "tiny": Config(  # For tests: a period, and one layer more.
        vocab_size=128,
        num_layers=7,
        embed_dim=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        hidden_dim=64,
        window=8,
        query_scale=8.0,
        context_length=512,
    ),
}


class Cache(NamedTuple):
    """Keys and values of the tokens so far, of B left-padded rows.

    All rows write at the same slot. The token in slot s of row b has position s - start[b], and
    slots before start[b] are never attended to. A local layer keeps a ring of min(W, max_length)
    slots, slot s at s % its length; a global layer keeps max_length.
    """

    slot: jax.Array  # int32, []: the next to be written; features are NaN past max_length.
    start: jax.Array  # int32, [B]: slot of the row's first token, prompt_length - length.
    keys: Any  # {block: {layer: [P, B, K, S, H]}}, in the compute type, turned by RoPE.
    values: Any  # The same.


class Model(NamedTuple):
    """A Gemma 3 model as pure functions; each may be jitted.

    `features(params, tokens, positions=None, segments=None)` is the full causal pass, for
    right-padded rows of training: tokens int32 [B, T] -> [B, T, D] in the compute type, after the
    final norm. `positions` int32 [B, T] count from 0 unless given. Of several texts packed into a
    row, `segments` int32 [B, T] tells which a token belongs to; each attends to its own, and
    `positions` should restart with it.

    `unembed(params, features [..., D])` gives logits float32 [..., V] by the tied embedding, and
    `apply(params, tokens, ...)` is both in one.

    `init_cache(batch, max_length, lengths, prompt_length)` is the empty cache of left-padded
    prompts: lengths int32 [B] <= prompt_length <= max_length. `decode(params, tokens, cache)`
    takes the next T tokens of all rows, int32 [B, T] (a step of generation, or a chunk of the
    prompt of any length), and returns features [B, T, D] and the cache with them. What it
    returns for padding means nothing.
    """

    config: Config
    init: Callable[[types.Key], types.Params]
    features: Callable[..., jax.Array]
    unembed: Callable[[types.Params, jax.Array], jax.Array]
    apply: Callable[..., jax.Array]
    init_cache: Callable[[int, int, types.Array, int], Cache]
    decode: Callable[[types.Params, types.Array, Cache], tuple[jax.Array, Cache]]
    num_ids: int  # V of the logits: rows of the table, or fewer (lm/shared_ids.py).


class NumParams(NamedTuple):
    """How many parameters a model has; the embedding counts once, for it is tied."""

    embedding: int
    other: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.other


def num_params(config: Config) -> NumParams:
    """Parameters of a model, from shapes alone."""
    shapes = jax.eval_shape(make(config).init, jax.random.key(0))
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)]
    embedding = math.prod(shapes["embedding"].shape)
    return NumParams(embedding, sum(sizes) - embedding)


def cache_bytes(config: Config, batch: int, max_length: int, itemsize: int) -> int:
    """Bytes of the keys and values of a `Cache`.

        B itemsize 2 K H (num_global S + num_local min(S, W)),  S = max_length

    Args:
      config: the model.
      batch: B.
      max_length: slots of a global layer.
      itemsize: bytes of a number: 4 for float32, 2 for bfloat16.
    """
    num_global = config.num_periods
    slots = num_global * max_length
    slots += (config.num_layers - num_global) * min(config.window, max_length)
    return batch * itemsize * 2 * config.num_kv_heads * config.head_dim * slots


def make(config: Config) -> Model:
    """The model of a configuration."""
    dtype = jnp.dtype(config.dtype)
    sizes = "num_heads num_kv_heads head_dim hidden_dim query_scale rms_epsilon".split()
    settings = {name: getattr(config, name) for name in sizes}
    layer = hk.without_apply_rng(hk.transform(functools.partial(layers.layer, **settings)))

    def init(key: types.Key) -> types.Params:
        def init_layer(key: types.Key) -> types.Params:
            x = jnp.zeros((1, 1, config.embed_dim), dtype)
            rope = layers.rope_table(jnp.zeros((1, 1)), config.head_dim, 1.0)
            return layer.init(key, x, rope, lambda q, k, v: (q.reshape(1, 1, -1), None))

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

    def embed(params: types.Params, tokens: types.Array) -> jax.Array:
        x = params["embedding"][tokens].astype(dtype)
        return x * jnp.asarray(math.sqrt(config.embed_dim), dtype)  # Rounded, as published.

    def ropes(positions: jax.Array) -> dict[bool, tuple[jax.Array, jax.Array]]:
        """Tables by whether the layer is global."""
        return {
            False: layers.rope_table(positions, config.head_dim, config.local_rope_theta),
            True: layers.rope_table(
                positions, config.head_dim, config.global_rope_theta, config.global_rope_factor
            ),
        }

    def features(
        params: types.Params,
        tokens: types.Array,
        positions: types.Array | None = None,
        segments: types.Array | None = None,
    ) -> jax.Array:
        length = tokens.shape[1]
        at = jnp.arange(length)
        positions = at[None] if positions is None else jnp.asarray(positions)
        causal = (at[None, :] <= at[:, None])[None]  # [1, T, S]
        if segments is not None:
            causal = causal & (segments[:, :, None] == segments[:, None, :])
        recent = (at[None, :] > at[:, None] - config.window)[None]
        masks = {False: causal & recent, True: causal}
        rope = ropes(positions)

        def one_layer(params: types.Params, x: jax.Array, *, is_global: bool) -> jax.Array:
            attend = functools.partial(layers.attend_all, mask=masks[is_global])
            return layer.apply(params, x, rope[is_global], attend)[0]

        def period(x: jax.Array, stacked: types.Params, depth: int) -> jax.Array:
            for j in range(depth):
                step = functools.partial(one_layer, is_global=config.is_global(j))
                step = jax.checkpoint(step) if config.remat else step
                x = step(stacked[f"layer_{j}"], x)
            return x

        x = embed(params, tokens)
        for block, (_, depth) in config.blocks.items():
            x = _scan(lambda x, i, p, depth=depth: period(x, p, depth), x, params[block])
        return layers.rms_norm(x, params["final_norm"], config.rms_epsilon)

    def unembed(params: types.Params, features: jax.Array) -> jax.Array:
        embedding = params["embedding"].astype(dtype)
        return jnp.einsum(
            "...d,vd->...v", features.astype(dtype), embedding, preferred_element_type=jnp.float32
        )

    def apply(
        params: types.Params,
        tokens: types.Array,
        positions: types.Array | None = None,
        segments: types.Array | None = None,
    ) -> jax.Array:
        return unembed(params, features(params, tokens, positions, segments))

    def init_cache(batch: int, max_length: int, lengths: types.Array, prompt_length: int) -> Cache:
        if not 0 < prompt_length <= max_length:
            raise ValueError(
                f"prompt_length must lie in [1, max_length={max_length}], got {prompt_length}"
            )
        if jnp.shape(lengths) != (batch,):
            raise ValueError(f"lengths must be of shape ({batch},), got {jnp.shape(lengths)}")

        def empty() -> Any:
            def slots(j: int) -> int:
                return max_length if config.is_global(j) else min(config.window, max_length)

            heads, width = config.num_kv_heads, config.head_dim
            return {
                block: {
                    f"layer_{j}": jnp.zeros((length, batch, heads, slots(j), width), dtype)
                    for j in range(depth)
                }
                for block, (length, depth) in config.blocks.items()
            }

        start = prompt_length - jnp.asarray(lengths, jnp.int32)
        return Cache(jnp.zeros((), jnp.int32), start, empty(), empty())

    def decode(params: types.Params, tokens: types.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        length = tokens.shape[1]
        room = _room(config, cache)
        if room is not None and length > room:
            raise ValueError(
                f"{length} tokens at once do not fit a cache of max_length {room}; decode fewer, "
                "or make it longer"
            )
        slots = cache.slot + jnp.arange(length, dtype=jnp.int32)
        rope = ropes(slots[None] - cache.start[:, None])
        local = functools.partial(layers.cached_local, window=config.window)

        def period(carry: Any, i: Any, stacked: types.Params) -> Any:
            x, keys, values = carry
            for j in range(len(stacked)):
                name, is_global = f"layer_{j}", config.is_global(j)
                attend = functools.partial(
                    layers.cached_global if is_global else local,
                    caches=(keys[name], values[name]),
                    period=i,
                    slots=slots,
                    start=cache.start,
                )
                x, (new_keys, new_values) = layer.apply(stacked[name], x, rope[is_global], attend)
                keys, values = keys | {name: new_keys}, values | {name: new_values}
            return x, keys, values

        x = embed(params, tokens)
        keys, values = dict(cache.keys), dict(cache.values)
        for block in config.blocks:
            # The caches are carried, not scanned over: a step then writes its token in place
            # where a scan would copy all of them out again.
            carry = x, keys[block], values[block]
            x, keys[block], values[block] = _scan(period, carry, params[block])
        x = layers.rms_norm(x, params["final_norm"], config.rms_epsilon)
        if room is not None:  # How far it is filled is known at run time alone: no silent wrong.
            x = jnp.where(cache.slot + length <= room, x, jnp.nan)
        return x, Cache(cache.slot + length, cache.start, keys, values)

    ids = config.vocab_size
    return Model(config, init, features, unembed, apply, init_cache, decode, ids)


def _room(config: Config, cache: Cache) -> int | None:
    """Slots that a cache has; None where each of its rings holds a whole window."""
    slots = {
        (config.is_global(j), cache.keys[block][f"layer_{j}"].shape[3])
        for block, (_, depth) in config.blocks.items()
        for j in range(depth)
    }
    return min((n for is_global, n in slots if is_global or n < config.window), default=None)


def _scan(step: Callable[..., Any], carry: Any, stacked: Any) -> Any:
    """Runs step(carry, i, item i of `stacked`) over the layer axis.

    On CPUs a scan copies each layer's weights out of the stack: decoding 24 layers of width 256
    took 1.8 times the time of layers stored apart for one row, 1.15 times for sixteen. Unrolled it
    took longer still, and twice the memory: XLA copies all weights ahead of the loop over tokens.
    """
    length = jax.tree.leaves(stacked)[0].shape[0]
    if length == 1:  # Then nothing is copied.
        return step(carry, 0, jax.tree.map(lambda x: x[0], stacked))
    indices = jnp.arange(length)
    return jax.lax.scan(lambda c, item: (step(c, *item), None), carry, (indices, stacked))[0]
