"""A small autoregressive policy without attention, in the form of a decoder.

    h = MLP(embedding of the last token, mean of those written so far, the prompt, the place)
    logits = embedding h

Whatever learns a decoder by `gemma.Model` learns this one. B rows, P tokens of a prompt, T columns,
D width.
"""

import math
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import gemma


def unembed(params: types.Params, features: jax.Array) -> jax.Array:
    """Computes logits, [..., V], of features, [..., D]."""
    return jnp.einsum("...d,vd->...v", features, params["embedding"])


def make(config: gemma.Config, prompt_length: int) -> gemma.Model:
    """Returns the policy, of the width, hidden width and vocabulary of `config`.

    Rows hold one text each, and every prompt has P tokens. Features of a prompt's columns but the
    last mean nothing.

    Args:
      config: its layers are not looked at: two are hidden.
      prompt_length: P.
    """
    width = config.embed_dim

    @hk.without_apply_rng
    @hk.transform
    def network(inputs: jax.Array) -> jax.Array:
        return hk.nets.MLP([config.hidden_dim, config.hidden_dim, width])(inputs)

    def init(key: types.Key) -> types.Params:
        network_key, key = jax.random.split(key)
        size = (1 + 1 + prompt_length) * width + config.context_length
        embedding = jax.random.normal(key, (config.vocab_size, width)) / math.sqrt(width)
        return {**network.init(network_key, jnp.zeros((1, size))), "embedding": embedding}

    def advance(
        params: types.Params,
        tokens: jax.Array,
        positions: jax.Array,
        prompt: jax.Array,
        total: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns features of the next T tokens, [B, T, D], and the prompt and sum after them."""
        is_new = positions[:, :, None] == jnp.arange(prompt_length)[None, None]  # [B, T, P]
        given = jnp.sum(jnp.where(is_new, tokens[:, :, None], 0), 1)
        prompt = jnp.where(jnp.any(is_new, 1), given, prompt)
        embedded = params["embedding"][tokens]  # [B, T, D]
        is_text = (positions >= prompt_length)[:, :, None]
        sums = total[:, None] + jnp.cumsum(jnp.where(is_text, embedded, 0), 1)
        count = jnp.maximum(positions - prompt_length + 1, 1)
        of_prompt = params["embedding"][prompt].reshape(len(tokens), 1, -1)  # [B, 1, P D]
        inputs = [
            embedded * math.sqrt(width),
            sums / count[:, :, None] * math.sqrt(width),
            jnp.repeat(of_prompt, tokens.shape[1], 1) * math.sqrt(width),
            jax.nn.one_hot(positions, config.context_length),
        ]
        layers = {name: value for name, value in params.items() if name != "embedding"}
        return network.apply(layers, jnp.concatenate(inputs, -1)), prompt, sums[:, -1]

    def empty(batch: int) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros((batch, prompt_length), jnp.int32), jnp.zeros((batch, width))

    def features(
        params: types.Params,
        tokens: Any,
        positions: Any = None,
        segments: Any = None,
        keys: Any = None,
    ) -> jax.Array:
        del positions, segments, keys  # A row is one text.
        tokens = jnp.asarray(tokens)
        columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return advance(params, tokens, columns, *empty(len(tokens)))[0]

    def init_cache(batch: int, max_length: int, lengths: Any, prompt_width: int) -> gemma.Cache:
        del max_length  # The prompt stands in the place of keys, the sum in that of values.
        start = prompt_width - jnp.asarray(lengths)
        prompt, total = empty(batch)
        # Of one layer: its axis is the first, as in any decoder's cache.
        return gemma.Cache(jnp.zeros((), jnp.int32), start, prompt[None], total[None])

    def decode(
        params: types.Params, tokens: types.Array, cache: gemma.Cache
    ) -> tuple[jax.Array, gemma.Cache]:
        ids = jnp.asarray(tokens)
        slots = cache.slot + jnp.arange(ids.shape[1], dtype=jnp.int32)
        positions = slots[None] - cache.start[:, None]
        advanced = advance(params, ids, positions, cache.keys[0], cache.values[0])
        next_features, prompt, total = advanced
        slot = cache.slot + ids.shape[1]
        return next_features, gemma.Cache(slot, cache.start, prompt[None], total[None])

    def apply(params: types.Params, *inputs: Any) -> jax.Array:
        return unembed(params, features(params, *inputs))

    def with_head(params: types.Params, *inputs: Any) -> tuple[jax.Array, types.Params]:
        return features(params, *inputs), {"embedding": params["embedding"]}

    return gemma.Model(
        config=config,
        init=init,
        features=features,
        with_head=with_head,
        unembed=unembed,
        apply=apply,
        init_cache=init_cache,
        decode=decode,
        num_ids=config.vocab_size,
    )
