"""The residual torso of IMPALA for images, as wide as asked, with spectral normalisation.

Espeholt et al., ICML 2018, https://arxiv.org/abs/1802.01561, figure 3, without its LSTM. Twice as
wide, with normalised residual units and a last maximum over few cells it is the torso of "Beyond
the Rainbow", Clark et al., ICML 2025, https://arxiv.org/abs/2411.03820.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from kullback.core import layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the torso; the defaults are those of "Beyond the Rainbow" for Atari."""

    width: int = 2  # >= 1, times the channels of IMPALA: 16, 32 and 32.
    spectral_norm: bool = True  # Whether the convolutions of residual units are normalised.
    adaptive_pool: int = 6  # Rows and columns left by a last maximum; 0: all are left.

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be >= 1, got {self.width}; IMPALA: 1, BTR: 2")
        if self.adaptive_pool < 0:
            raise ValueError(f"adaptive_pool must be >= 0, got {self.adaptive_pool}; BTR: 6")


SMALL = Config(width=1, adaptive_pool=0)  # Settings for grids of ten cells or so, ours.


class Block(NamedTuple):
    """A convolution, a maximum that halves rows and columns, or none, and two residual units."""

    channels: int  # Before they are multiplied by the width.
    halves: bool


# Blocks by the torso's name: IMPALA's for pictures, and ours for grids such as MinAtar's.
BLOCKS = {
    "impala": (Block(16, True), Block(32, True), Block(32, True)),
    "impala_small": (Block(16, False), Block(32, True)),
}


def features(
    observation: jax.Array,
    config: Config,
    blocks: Sequence[Block],
    hidden: int,
    *,
    channels_first: bool = False,
    largest: int = 255,
) -> jax.Array:
    """Applies the torso: images [B, H, W, C] -> [B, D].

    For frames of 84 x 84 D is 36 x 64 = 2,304, before a hidden layer.

    Args:
      observation: images, [B, C, H, W] if `channels_first`; bytes are divided by `largest`.
      config: settings.
      blocks: the blocks, from the image on.
      hidden: units of a last layer; 0 is none.
      channels_first: of the observation.
      largest: largest byte.
    """
    x = observation
    for number, block in enumerate(blocks):
        channels = config.width * block.channels
        conv = layers.Conv2D(channels, 3, 1, "SAME")
        x = conv(x) if number else conv(x, channels_first=channels_first, largest=largest)
        x = max_pool(x) if block.halves else x
        for _ in range(2):
            x = x + _unit(x, channels, config.spectral_norm)
    x = jax.nn.relu(x)
    if config.adaptive_pool:
        x = adaptive_max_pool(x, config.adaptive_pool)
    x = hk.Flatten()(x)
    return jax.nn.relu(layers.linear(hidden)(x)) if hidden else x


def _unit(x: jax.Array, channels: int, spectral_norm: bool) -> jax.Array:
    """Returns what a residual unit adds to x, [B, H, W, channels]."""
    for _ in range(2):
        x = layers.Conv2D(channels, 3, 1, "SAME", spectral_norm=spectral_norm)(jax.nn.relu(x))
    return x


def max_pool(x: jax.Array) -> jax.Array:
    """Returns maxima over 3 x 3 pixels, at every second: [B, H, W, C] -> [B, ceil(H / 2), .., C].

    It pads one pixel of -inf on each side, as PyTorch does; TensorFlow's SAME pads one side. Where
    maxima are equal, they share the gradient.
    """
    for axis in (1, 2):
        pads = [(0, 0)] * x.ndim
        pads[axis] = (1, 1)
        padded = jnp.pad(x, pads, constant_values=-jnp.inf)
        size = -(-x.shape[axis] // 2)
        left, middle, right = (
            jax.lax.slice_in_dim(padded, at, at + 2 * size - 1, 2, axis) for at in range(3)
        )
        x = jnp.maximum(jnp.maximum(left, middle), right)
    return x


def adaptive_max_pool(x: jax.Array, size: int) -> jax.Array:
    """Returns maxima over `size` x `size` bins, [B, size, size, C], of images [B, H, W, C].

    Bin i has the rows from floor(i H / size) to before ceil((i + 1) H / size); they may overlap.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        bins = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        x = jnp.stack(
            [jnp.max(jax.lax.slice_in_dim(x, *bin_, axis=axis), axis) for bin_ in bins], axis
        )
    return x
