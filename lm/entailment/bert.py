"""BERT and RoBERTa that put a sequence, or a pair of them, into classes.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
NAACL 2019, https://arxiv.org/abs/1810.04805, and Liu et al., "RoBERTa: A Robustly Optimized BERT
Pretraining Approach", 2019, https://arxiv.org/abs/1907.11692. For the same weights (bert_folder.py
reads them) logits equal those of the published implementations. There is no dropout, also in
training.

Shape letters: B rows, T tokens, V vocabulary, S positions, D width, N heads, F feed-forward
width, L layers, C classes.

The two differ only in their first position id. In both the head is a dense layer and tanh on the
first token's features, then the classes. The layers' parameters are stacked along a leading axis L
and scanned, so that the program's size does not depend on the depth.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of a classifier."""

    kind: Literal["bert", "roberta"]
    vocab_size: int  # V.
    num_layers: int  # L.
    embed_dim: int  # D.
    num_heads: int  # N, divides D.
    hidden_dim: int  # F.
    num_positions: int = 512  # S, rows of the table; RoBERTa's first pad_id + 1 hold no token.
    num_types: int = 2  # Segments that a token may be of; RoBERTa's is 1.
    norm_epsilon: float = 1e-12
    pad_id: int = 0
    labels: tuple[str, ...]  # Names of the C classes.

    def __post_init__(self) -> None:
        if self.kind not in ("bert", "roberta"):
            raise ValueError(f"kind must be 'bert' or 'roberta', got {self.kind!r}")
        sizes.check(self, "norm_epsilon")
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads, got {self.embed_dim} and "
                f"{self.num_heads}"
            )
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id must lie in [0, {self.vocab_size}), got {self.pad_id}")
        if self.max_length < 1:
            raise ValueError(
                f"num_positions must be > {self.first_position}, got {self.num_positions}"
            )
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must be two different names at least, got {self.labels}")

    @property
    def first_position(self) -> int:
        """Position id of the first token."""
        return self.pad_id + 1 if self.kind == "roberta" else 0

    @property
    def max_length(self) -> int:
        """Largest number of tokens of a row."""
        return self.num_positions - self.first_position


class Model(NamedTuple):
    """A classifier as pure functions; each may be jitted.

    Rows are padded on the right: `token_ids` int32 [B, T], `mask` bool [B, T] (False is padding,
    which changes nothing before it), `token_types` int32 [B, T] (which of a pair a token is of;
    zeros for RoBERTa).

    `logits(params, token_ids, mask, token_types)` -> float32 [B, C] is all of it, `features(...)`
    -> [B, T, D] the same before the head. Their parts let a part be tuned alone: `embed(
    params["embeddings"], token_ids, mask, token_types)` -> x [B, T, D], `encode(layers, x, mask)`
    for a stack of layers, all of `params["layers"]` or a slice of it, and `classify(
    params["head"], x)` -> [B, C]. The head reads the first token alone: where the last layer is
    among the stack, `encode_first(layers, x, mask)` -> [B, 1, D] leaves out what it does to others.
    """

    config: Config
    init: Callable[[types.Key], types.Params]
    embed: Callable[..., jax.Array]
    encode: Callable[[types.Params, jax.Array, types.Array], jax.Array]
    encode_first: Callable[[types.Params, jax.Array, types.Array], jax.Array]
    classify: Callable[[types.Params, jax.Array], jax.Array]
    features: Callable[..., jax.Array]
    logits: Callable[..., jax.Array]


def make(config: Config) -> Model:
    """Makes the model of a configuration."""
    embedding = hk.without_apply_rng(hk.transform(lambda *x: _embed(*x, config=config)))
    layer = hk.without_apply_rng(hk.transform(lambda *x: _layer(*x, config=config)))
    last = hk.without_apply_rng(hk.transform(lambda *x: _layer(*x, config=config, first_only=True)))
    head = hk.without_apply_rng(hk.transform(lambda x: _head(x, config=config)))

    def init(key: types.Key) -> types.Params:
        embedding_key, layers_key, head_key = jax.random.split(key, 3)
        ids, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
        x = jnp.zeros((1, 1, config.embed_dim))
        keys = jax.random.split(layers_key, config.num_layers)
        return {
            "embeddings": embedding.init(embedding_key, ids, mask, ids),
            "layers": jax.vmap(lambda key: layer.init(key, x, mask))(keys),
            "head": head.init(head_key, x),
        }

    def run(stacked: types.Params, x: jax.Array, seen: jax.Array, num_layers: int) -> jax.Array:
        """Applies the first layers of a stack, by index, as slicing the stack would copy it."""

        def step(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            at = functools.partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
            return layer.apply(jax.tree.map(at, stacked), x, seen), None

        return jax.lax.scan(step, x, jnp.arange(num_layers))[0]

    def encode(stacked: types.Params, x: jax.Array, mask: types.Array) -> jax.Array:
        return run(stacked, x, jnp.asarray(mask, bool), _depth(stacked))

    def encode_first(stacked: types.Params, x: jax.Array, mask: types.Array) -> jax.Array:
        seen = jnp.asarray(mask, bool)
        x = run(stacked, x, seen, _depth(stacked) - 1)
        return last.apply(jax.tree.map(lambda p: p[-1], stacked), x, seen)

    def features(params: types.Params, token_ids: Any, mask: Any, token_types: Any) -> jax.Array:
        x = embedding.apply(params["embeddings"], token_ids, mask, token_types)
        return encode(params["layers"], x, mask)

    def logits(params: types.Params, token_ids: Any, mask: Any, token_types: Any) -> jax.Array:
        x = embedding.apply(params["embeddings"], token_ids, mask, token_types)
        return head.apply(params["head"], encode_first(params["layers"], x, mask))

    return Model(config, init, embedding.apply, encode, encode_first, head.apply, features, logits)


def _depth(stacked: types.Params) -> int:
    return len(jax.tree.leaves(stacked)[0])


def _gelu(x: jax.Array) -> jax.Array:
    """Computes GELU by erf, as published."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


def _linear(x: jax.Array, size: int, name: str) -> jax.Array:
    return hk.Linear(size, w_init=hk.initializers.TruncatedNormal(0.02), name=name)(x)


def _embed(
    token_ids: types.Array, mask: types.Array, token_types: types.Array, *, config: Config
) -> jax.Array:
    """Sums the embeddings of token, position and segment, and normalises; [B, T, D]."""
    if token_ids.shape[1] > config.max_length:
        raise ValueError(
            f"rows must have at most {config.max_length} tokens, got {token_ids.shape[1]}; cut "
            "long texts into windows"
        )

    sizes = {
        "token": config.vocab_size,
        "position": config.num_positions,
        "type": config.num_types,
    }
    init = hk.initializers.TruncatedNormal(0.02)
    with hk.name_scope("table"):
        tables = {
            name: hk.get_parameter(name, (rows, config.embed_dim), init=init)
            for name, rows in sizes.items()
        }
    # As published: RoBERTa counts from pad_id + 1, and all padding has the position pad_id.
    position = jnp.broadcast_to(jnp.arange(token_ids.shape[1])[None], token_ids.shape)
    if config.kind == "roberta":
        position = jnp.where(
            jnp.asarray(mask, bool), position + config.first_position, config.pad_id
        )
    ids = {"token": token_ids, "position": position, "type": token_types}
    x = functools.reduce(jnp.add, [tables[name][jnp.asarray(ids[name])] for name in ids])
    return layers.layer_norm(x, "norm", config.norm_epsilon)


def _layer(x: jax.Array, mask: jax.Array, *, config: Config, first_only: bool = False) -> jax.Array:
    """Applies one layer, with norms after the sums, to all tokens or to the first alone.

    x = norm(x + attention(x)),  x = norm(x + gelu(x W_up) W_down),  gelu by erf
    """
    b, _, d = x.shape
    width = d // config.num_heads
    # One matrix product for all tokens, the fastest form on CPUs.
    seen = x.reshape(-1, d)
    x = x[:, 0] if first_only else seen
    with hk.name_scope("attention"):
        q, k, v = (
            _linear(of, d, name).reshape(b, -1, config.num_heads, width)
            for of, name in ((x, "query"), (seen, "key"), (seen, "value"))
        )
        out, _ = layers.attend_all(q / math.sqrt(width), k, v, mask[:, None])
        out = _linear(out.reshape(-1, d), d, "output")
        x = layers.layer_norm(x + out, "norm", config.norm_epsilon)
    with hk.name_scope("feed_forward"):
        h = _gelu(_linear(x, config.hidden_dim, "up"))
        x = layers.layer_norm(x + _linear(h, d, "down"), "norm", config.norm_epsilon)
    return x.reshape(b, -1, d)


def _head(x: jax.Array, *, config: Config) -> jax.Array:
    """Returns the logits of the classes from the first token; float32 at least, [B, C]."""
    h = jnp.tanh(_linear(x[:, 0], config.embed_dim, "dense"))
    out = _linear(h, len(config.labels), "output")
    return out.astype(jnp.promote_types(out.dtype, jnp.float32))
