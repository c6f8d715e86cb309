"""Gemma 3's eye: an image's features, pooled to few soft tokens and projected to a decoder's width.

Gemma Team 2025, https://arxiv.org/abs/2503.19786. The encoder (lm/siglip.py) is frozen, and one for
all sizes of decoders: pooled features are what student, teacher and reference share, so that an
image is encoded once. The projector belongs to a decoder, of whose width it is, and may learn.

    pooled = mean over squares of the grid of patches      [N, M, E]
    soft   = rms_norm(pooled) W                            [N, M, D]

A soft token is not multiplied by sqrt(D), as tokens of text are. The projector's parameters stand
beside the decoder's, under "projector": {"norm": [E], "weight": [E, D]}.

Shape letters: N images, P patches of an image, M soft tokens of an image, E width of the encoder,
D width of the decoder.
"""

import dataclasses
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import blocks, layers, siglip

__all__ = ["Config", "Eye", "init_projector", "num_params", "pool", "pooled", "project"]

PROJECTOR = "projector"  # Name of a decoder's projector among its parameters.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of Gemma 3's vision, and the ids that stand for an image; the default is Gemma 3's."""

    encoder: siglip.Config = siglip.Config()
    num_soft: int = 256  # M, soft tokens of an image: a square whose side divides the grid's.
    ids: blocks.Delimiters = blocks.IMAGE  # An image is begin, num_soft times soft, end.

    def __post_init__(self) -> None:
        side = math.isqrt(max(self.num_soft, 0))
        if side < 1 or side**2 != self.num_soft or self.encoder.side % side:
            raise ValueError(
                "num_soft must be the square of a divisor of the grid's side, "
                f"{self.encoder.side}, got {self.num_soft}"
            )
        blocks.Markers(image=self.ids)  # It checks them.

    @property
    def unwritten_ids(self) -> tuple[int, ...]:
        """Ids that a policy never samples: they begin an image, or are part of one."""
        return self.ids.begin, self.ids.soft


class Eye(NamedTuple):
    """The encoder and projector that a decoder sees by."""

    config: Config
    encoder: types.Params  # As of `siglip.make(config.encoder)`; a frozen constant.
    projector: types.Params  # {"norm": [E], "weight": [E, D]}.


def pool(features: types.Array, num_soft: int) -> jax.Array:
    """Returns means over squares of the grid of patches, [N, M, E], in the order of the patches.

    Args:
      features: of the encoder, [N, P, E], rows of a square grid.
      num_soft: M, the square of a divisor of the grid's side.
    """
    chex.assert_rank(features, 3)
    number, num_patches, width = features.shape
    side, to = math.isqrt(num_patches), math.isqrt(num_soft)
    grid = features.reshape(number, to, side // to, to, side // to, width)
    return jnp.mean(grid, (2, 4)).reshape(number, num_soft, width)


def pooled(config: Config, params: types.Params, images: types.Array) -> jax.Array:
    """Encodes images; no gradient reaches the encoder.

    Args:
      config: of the vision.
      params: of the encoder.
      images: float [N, S, S, 3], see `siglip.Model`.

    Returns:
      Pooled features, [N, M, E], in the encoder's compute type.
    """
    features = siglip.make(config.encoder).apply(params, images)
    return jax.lax.stop_gradient(pool(features, config.num_soft))


def project(config: Config, params: types.Params, pooled: types.Array) -> jax.Array:
    """Returns soft tokens, [..., M, D], of pooled features [..., M, E], in their type.

    Args:
      config: of the vision; the norm's epsilon is that of the encoder's norms.
      params: of the projector.
      pooled: of the encoder.
    """
    chex.assert_axis_dimension(pooled, -1, config.encoder.embed_dim)
    normed = layers.rms_norm(jnp.asarray(pooled), params["norm"], config.encoder.norm_epsilon)
    return normed @ params["weight"].astype(pooled.dtype)


def init_projector(key: types.Key, config: Config, embed_dim: int) -> types.Params:
    """Draws a projector whose soft tokens have the unit mean square of embedded text.

    Args:
      key: typed key.
      config: of the vision.
      embed_dim: D.
    """
    width = config.encoder.embed_dim
    weight = jax.random.normal(key, (width, embed_dim)) / math.sqrt(width)
    return {"norm": jnp.zeros(width), "weight": weight}


def num_params(config: Config, embed_dim: int) -> tuple[int, int]:
    """Counts the parameters of the encoder, and of a projector to the width D.

    Of a layer of the encoder they are four square matrices, two of the feed-forward part, their
    biases, and two norms; besides there are the patches, the positions and a norm.

        encoder:   L (4 (E^2 + E) + 2 E F + F + E + 4 E) + (3 p^2 + 1) E + P E + 2 E
        projector: E D + E
    """
    e = config.encoder
    width, hidden = e.embed_dim, e.hidden_dim
    layer = 4 * (width**2 + width) + 2 * width * hidden + hidden + 5 * width
    patch = (siglip.CHANNELS * e.patch_size**2 + 1) * width
    encoder = e.num_layers * layer + patch + e.num_patches * width + 2 * width
    return encoder, width * embed_dim + width
