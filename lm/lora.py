"""LoRA: low-rank updates of a frozen model's matrices.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685:

    y = x W + s (x A) B,  A [in, r], B [r, out],  s = alpha / r

A is random and B zero at first, so that the model begins as its base, bit for bit. With the rank
stabilisation of Kalajdzievski 2023, https://arxiv.org/abs/2312.03732, s = alpha / sqrt(r).

Learners whose models are averaged share one frozen A with orthonormal columns and train B alone:
updates s A B are linear in B, and inner products of updates are s^2 times those of B, so that
means, moving averages and spherical interpolations of B are those of whole models, at fixed rank.
What is given up is the subspace of inputs, which is drawn once for a run and never learnt.

Rows of the embedding may learn beside them, such as that of the end of a turn, which a pretrained
model has never seen. They are updates, too, of rows E_v of a frozen table,

    e_v = E_v + s u_v,  u_v [D]

zero at first, so that all of the above is true of them. The head is tied, and has the same rows.

Adapters are a tree beside the base's, whose leaves have other paths than the base's:

    periods/layer_J/attention/query/a [P, in, r], .../b [P, r, out];  and so of every target
    rows/ids int32 [n], constants;  rows/update [n, D]

Shape letters: P periods, r rank, n rows that learn, D width.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types
from kullback.lm import gemma_config

__all__ = [
    "ROWS",
    "TARGETS",
    "Config",
    "added_to_logits",
    "dropped",
    "init",
    "looked_up",
    "merged",
    "num_params",
    "of_logits",
    "row_ids",
    "shared_factors",
    "sizes",
    "update",
    "zeros",
]

# Matrices of a layer that may have an adapter, by name, and their modules.
TARGETS = {
    "query": "attention",
    "key": "attention",
    "value": "attention",
    "output": "attention",
    "gate": "feed_forward",
    "up": "feed_forward",
    "down": "feed_forward",
}
ROWS = "rows"  # Of the tree: rows of the embedding that learn.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of adapters; of rank 0 there are none, and all weights are trained."""

    rank: int = 0  # r >= 0: columns of A, rows of B. 8 to 64 are usual.
    alpha: float = 16.0  # > 0, the numerator of the scale s.
    # Matrices with an adapter, of query, key, value, output, gate, up, down; all of them learn
    # better than queries and values alone.
    targets: tuple[str, ...] = tuple(TARGETS)
    rslora: bool = False  # Whether s = alpha / sqrt(r), so that large ranks learn as fast.
    # Rate in [0, 1) of the inputs of adapters that are left out while stored texts are learnt; not
    # where the model samples texts itself, which it would not with what was left out.
    dropout: float = 0.0
    # Whether A is one of orthonormal columns for all of a run's models, is frozen, and B alone is
    # learnt; averages of models are then exact, and need it.
    shared_a: bool = False
    # Tokens whose rows of the embedding learn, too, such as <end_of_turn>: each is a text that is
    # one token, or a number, its id.
    train_tokens: tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank must be >= 0 (0 trains all weights), got {self.rank}")
        if self.train_tokens and not self.rank:
            raise ValueError(
                f"lora.train_tokens={','.join(map(str, self.train_tokens))} learns rows beside "
                "adapters, and without them all rows learn: set lora.rank"
            )
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ValueError(f"lora.alpha must be > 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must lie in [0, 1), got {self.dropout}")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"lora.targets must be some of {', '.join(TARGETS)}, each once, got "
                f"{', '.join(self.targets) or 'none'}"
            )

    def __bool__(self) -> bool:
        """Returns whether there are adapters."""
        return self.rank > 0

    @property
    def scale(self) -> float:
        """The factor s of every update."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def check_sampling(self) -> None:
        """Raises ValueError for dropout, of a learner that learns from texts of its own."""
        if self.rank and self.dropout:
            raise ValueError(
                f"lora.dropout={self.dropout} is of stored texts: those that the model samples are "
                "learnt without; take 0"
            )

    def adapts(self, name: str) -> bool:
        """Returns whether the matrix of that name has an adapter."""
        return self.rank > 0 and name in self.targets


def sizes(config: gemma_config.Config) -> dict[str, tuple[int, int]]:
    """Returns (in, out) of the matrices of a layer that may have an adapter, by name."""
    width, hidden = config.embed_dim, config.hidden_dim
    queries, keys = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
    return {
        "query": (width, queries),
        "key": (width, keys),
        "value": (width, keys),
        "output": (queries, width),
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
    }


def num_params(config: gemma_config.Config, settings: Config) -> int:
    """Counts the parameters that a model's adapters learn.

    They are r (in + out) of each matrix, and r out where A is shared; and D of each row.
    """
    pairs = [sizes(config)[name] for name in settings.targets]
    of_layer = sum(out if settings.shared_a else num_in + out for num_in, out in pairs)
    of_rows = len(settings.train_tokens) * config.embed_dim
    return config.num_layers * settings.rank * of_layer + of_rows


def init(config: gemma_config.Config, settings: Config, key: types.Key) -> types.Params:
    """Draws what adapters learn, float32: A uniformly in +-1 / sqrt(in), as peft does, and B = 0.

    Where A is shared, it is not among them, see `shared_factors`.

    Args:
      config: of the base.
      settings: of the adapters, of a rank above 0.
      key: of A.
    """
    numbers = itertools.count()

    def pair(length: int, num_in: int, num_out: int) -> dict[str, jax.Array]:
        b = {"b": jnp.zeros((length, settings.rank, num_out))}
        if settings.shared_a:
            return b
        bound, a_key = 1 / math.sqrt(num_in), jax.random.fold_in(key, next(numbers))
        shape = length, num_in, settings.rank
        return {"a": jax.random.uniform(a_key, shape, minval=-bound, maxval=bound), **b}

    drawn = _by_target(config, settings, lambda length, name: pair(length, *sizes(config)[name]))
    if not settings.train_tokens:
        return drawn
    return {**drawn, ROWS: {"update": jnp.zeros((len(settings.train_tokens), config.embed_dim))}}


def row_ids(ids: Sequence[int]) -> types.Params:
    """Returns the constants that say which rows learn, for the base; an empty tree without any.

    Args:
      ids: of the tokens of `Config.train_tokens`, in its order.
    """
    return {ROWS: {"ids": jnp.asarray(ids, jnp.int32)}} if ids else {}


def shared_factors(config: gemma_config.Config, settings: Config, key: types.Key) -> types.Params:
    """Draws every A with orthonormal columns, float32: uniform among these; a tree without B.

    Raises:
      ValueError: for a rank of more columns than inputs.
    """
    numbers = itertools.count()
    least = min(sizes(config)[name][0] for name in settings.targets)
    if settings.rank > least:
        raise ValueError(
            f"lora.rank={settings.rank} has no orthonormal columns of {least} inputs; take at most "
            f"{least}, or shared_a=False"
        )

    def factor(length: int, num_in: int) -> dict[str, jax.Array]:
        a_key = jax.random.fold_in(key, next(numbers))
        q, r = jnp.linalg.qr(jax.random.normal(a_key, (length, num_in, settings.rank)))
        signs = jnp.sign(jnp.diagonal(r, axis1=1, axis2=2))  # Without them Q is not uniform.
        return {"a": q * signs[:, None]}

    return _by_target(config, settings, lambda length, name: factor(length, sizes(config)[name][0]))


def zeros(config: gemma_config.Config, settings: Config) -> types.Params:
    """Returns adapters of zeros, float32 of NumPy, to be filled; with every A."""

    def pair(length: int, name: str) -> dict[str, np.ndarray]:
        num_in, num_out = sizes(config)[name]
        shapes = {"a": (length, num_in, settings.rank), "b": (length, settings.rank, num_out)}
        return {factor: np.zeros(shape, np.float32) for factor, shape in shapes.items()}

    return _by_target(config, settings, pair)


def update(x: jax.Array, size: int, settings: Config) -> jax.Array:
    """Returns s (x A) B, [n, size], of inputs [n, in]; to be called inside `hk.transform`.

    A and B are the parameters "a" and "b" of the current scope, and are cast to the type of x.
    """
    a = hk.get_parameter("a", (x.shape[-1], settings.rank))
    b = hk.get_parameter("b", (settings.rank, size))
    return (settings.scale * (x @ a.astype(x.dtype))) @ b.astype(x.dtype)


def looked_up(
    embedded: jax.Array, tokens: jax.Array, rows: types.Params, settings: Config
) -> jax.Array:
    """Adds to embedded tokens the updates of those rows that learn.

    Args:
      embedded: rows of the frozen table, [..., D].
      tokens: int, [...].
      rows: `ids` and `update`.
      settings: of the adapters.
    """
    ids = jnp.expand_dims(rows["ids"], range(tokens.ndim))
    is_learnt = tokens[..., None] == ids  # [..., n]
    update = settings.scale * rows["update"][jnp.argmax(is_learnt, -1)]
    return embedded + jnp.where(jnp.any(is_learnt, -1, keepdims=True), update, 0)


def of_logits(features: jax.Array, rows: types.Params, settings: Config) -> jax.Array:
    """Returns the updates of logits of the rows that learn, [..., n], of features [..., D]."""
    update = (settings.scale * rows["update"]).astype(features.dtype)
    return jnp.einsum("...d,nd->...n", features, update, preferred_element_type=jnp.float32)


def added_to_logits(logits: jax.Array, updates: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns logits [..., V], to which the updates [..., n] of ids [n] are added."""
    return logits.at[..., ids].add(updates.astype(logits.dtype))


def dropped(x: jax.Array, keys: types.Key, name: str, settings: Config) -> jax.Array:
    """Returns inputs with some left out, and the others larger, [B, T, in] as they were.

    Args:
      x: [B, T, in].
      keys: one for each row and layer, [B], so that micro-batches change nothing.
      name: of the matrix, whose inputs they are.
      settings: of the adapters.
    """
    number, share = settings.targets.index(name), 1 - settings.dropout

    def keeps(key: types.Key) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, number), share, x.shape[1:])

    return jnp.where(jax.vmap(keeps)(keys), x / share, 0).astype(x.dtype)


def merged(
    config: gemma_config.Config, settings: Config, base: types.Params, adapters: types.Params
) -> types.Params:
    """Returns the base with W + s A B in place of each adapted matrix, in the types of the base.

    Rows that learn are E_v + s u_v.

    Args:
      config: of the base.
      settings: of the adapters.
      base: parameters of the model, as lm/gemma.py has them.
      adapters: as `init` draws them, with every A, and the ids of rows.
    """

    def of_layer(base: types.Params, adapters: types.Params) -> types.Params:
        changed = {name: dict(base[name]) for name in base}
        for name in settings.targets:
            module, factors = TARGETS[name], adapters[_path(name)]
            w, a, b = base[module][name], factors["a"], factors["b"]
            delta = settings.scale * jnp.einsum("pir,pro->pio", a, b)
            changed[module][name] = w + delta.astype(w.dtype)
        return changed

    blocks = {
        block: {
            layer: of_layer(base[block][layer], adapters[block][layer]) for layer in base[block]
        }
        for block in config.blocks
    }
    table = base["embedding"]
    if ROWS in adapters:
        rows = adapters[ROWS]
        update = jnp.asarray(settings.scale * rows["update"], table.dtype)
        table = jnp.asarray(table).at[jnp.asarray(rows["ids"])].add(update)
    return {**base, **blocks, "embedding": table}


def _path(name: str) -> str:
    return f"{TARGETS[name]}/{name}"


def _by_target(
    config: gemma_config.Config, settings: Config, make: Callable[[int, str], Any]
) -> types.Params:
    """Returns a tree of adapters, each made from (length of the layer axis, name of the target)."""
    return {
        block: {
            f"layer_{j}": {_path(name): make(length, name) for name in settings.targets}
            for j in range(depth)
        }
        for block, (length, depth) in config.blocks.items()
    }
