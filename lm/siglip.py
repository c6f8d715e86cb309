"""SigLIP's image encoder, as Gemma 3 has it: So400m with patches of 14 pixels, at 896 pixels.

Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, https://arxiv.org/abs/2303.15343;
Gemma Team 2025, https://arxiv.org/abs/2503.19786. Features equal those of the published
implementations for the same weights (lm/formats/vision_files.py reads them). There is no token of a
class and no head that pools: what a decoder sees of the features is in lm/vision.py.

Shape letters: N images, S pixels of a side, P patches of an image, E width, H width of a head,
F feed-forward width, L layers.

The layers' parameters are stacked along a leading axis L and scanned, so that the program's size
does not depend on the depth. Attention goes a block of queries at a time: all scores of a layer at
896 pixels would be 1.07 GB an image.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import layers, narrow_weights, sizes

__all__ = ["CHANNELS", "Config", "Model", "make"]

CHANNELS = 3  # Red, green, blue.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of an encoder, and settings of its computation; the default is Gemma 3's."""

    image_size: int = 896  # S, a multiple of patch_size.
    patch_size: int = 14  # Pixels of a patch's side.
    embed_dim: int = 1152  # E.
    num_layers: int = 27  # L.
    num_heads: int = 16  # Divides E.
    hidden_dim: int = 4304  # F.
    norm_epsilon: float = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"  # Type of the computation, not of params.
    query_block: int = 1024  # Patches whose scores are in memory at once, >= 1. Ours.
    remat: bool = False  # Whether the backward pass recomputes each layer's activations.

    def __post_init__(self) -> None:
        sizes.check(self, "norm_epsilon")
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads, got {self.embed_dim} and "
                f"{self.num_heads}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size, got {self.image_size} and "
                f"{self.patch_size}"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {self.dtype!r}")
        if self.query_block < 1:
            raise ValueError(f"query_block must be >= 1 patch, got {self.query_block}")

    @property
    def side(self) -> int:
        """Patches of a side of the grid."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of an image, P."""
        return self.side**2


class Model(NamedTuple):
    """An encoder as pure functions; each may be jitted.

    `apply(params, images)` maps images float [N, S, S, 3] in [-1, 1], rows from top to bottom, to
    features [N, P, E] in the compute type, patches from left to right, then from top to bottom.
    """

    config: Config
    init: Callable[[types.Key], types.Params]
    apply: Callable[[types.Params, types.Array], jax.Array]


def make(config: Config) -> Model:
    """Returns the encoder of a configuration."""
    embedding = hk.without_apply_rng(hk.transform(functools.partial(_embed, config=config)))
    names = "num_heads hidden_dim norm_epsilon query_block".split()
    sizes_of_layer = {name: getattr(config, name) for name in names}
    layer = hk.without_apply_rng(hk.transform(functools.partial(encoder_layer, **sizes_of_layer)))
    norm = hk.without_apply_rng(
        hk.transform(lambda x: layers.layer_norm(x, "norm", config.norm_epsilon))
    )

    def init(key: types.Key) -> types.Params:
        embedding_key, layers_key, norm_key = jax.random.split(key, 3)
        keys = jax.random.split(layers_key, config.num_layers)
        size = config.image_size
        x = jnp.zeros((1, 1, config.embed_dim))
        return {
            "embedding": embedding.init(embedding_key, jnp.zeros((1, size, size, CHANNELS))),
            "layers": jax.vmap(lambda key: layer.init(key, x, jnp.ones((1, 1, 1), bool)))(keys),
            "final": norm.init(norm_key, x),
        }

    def apply(params: types.Params, images: types.Array) -> jax.Array:
        chex.assert_shape(images, (None, config.image_size, config.image_size, CHANNELS))
        x = embedding.apply(params["embedding"], images)
        seen = jnp.ones((1, 1, 1), bool)
        step = jax.checkpoint(layer.apply) if config.remat else layer.apply
        x, _ = jax.lax.scan(
            lambda x, of_layer: (step(of_layer, x, seen), None), x, params["layers"]
        )
        return norm.apply(params["final"], x)

    return Model(config, init, apply)


def patches(images: jax.Array, size: int) -> jax.Array:
    """Cuts images [N, S, S, 3] into squares, [N, P, size size 3]: row, column, channel in each."""
    chex.assert_rank(images, 4)
    number, height, width, channels = images.shape
    cut = images.reshape(number, height // size, size, width // size, size, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(number, -1, size * size * channels)


def linear(x: jax.Array, size: int, name: str) -> jax.Array:
    """Applies a product with a bias to [..., E]; to be called inside `hk.transform`."""
    init = hk.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
    with hk.name_scope(name):
        w = hk.get_parameter("w", (x.shape[-1], size), init=init)
        b = hk.get_parameter("b", (size,), init=jnp.zeros)
    # One matrix product of all patches is fastest on CPUs.
    y = narrow_weights.product(x.reshape(-1, x.shape[-1]), w) + b.astype(x.dtype)[None]
    return y.reshape(*x.shape[:-1], size)


def _embed(images: jax.Array, *, config: Config) -> jax.Array:
    """Returns patches through the convolution, which is a matrix product, with their positions."""
    x = patches(images.astype(config.dtype), config.patch_size)
    x = linear(x, config.embed_dim, "patch")
    shape = config.num_patches, config.embed_dim
    init = hk.initializers.RandomNormal(1 / math.sqrt(config.embed_dim))
    with hk.name_scope("table"):
        positions = hk.get_parameter("position", shape, init=init)
    return (x + positions[None]).astype(config.dtype)


def encoder_layer(
    x: jax.Array,
    seen: jax.Array,
    *,
    num_heads: int,
    hidden_dim: int,
    norm_epsilon: float,
    query_block: int,
) -> jax.Array:
    """Applies one layer of an encoder, whose tokens see each other whatever their order.

        x = x + attention(norm(x)),  x = x + gelu(norm(x) W_up) W_down

    The gelu is its tanh approximation. To be called inside `hk.transform`.

    Args:
      x: [N, P, E].
      seen: bool, [N or 1, 1, P or 1]: tokens that are there.
      num_heads: divides E.
      hidden_dim: F.
      norm_epsilon: of the layer norms.
      query_block: tokens whose scores are in memory at once.
    """
    number, length, width = x.shape

    def heads(h: jax.Array, name: str) -> jax.Array:
        return linear(h, width, name).reshape(number, length, num_heads, -1)

    with hk.name_scope("attention"):
        h = layers.layer_norm(x, "norm", norm_epsilon)
        q, k, v = (heads(h, name) for name in ("query", "key", "value"))
        q = q / math.sqrt(q.shape[-1])
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        out = layers.attend_in_blocks(q, k, v, seen, query_block)
        x = x + linear(out, width, "output")
    with hk.name_scope("feed_forward"):
        h = layers.layer_norm(x, "norm", norm_epsilon)
        h = jax.nn.gelu(linear(h, hidden_dim, "up"), approximate=True)
        return x + linear(h, width, "down")
