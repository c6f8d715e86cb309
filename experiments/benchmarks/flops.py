"""Floating-point operations, counted from the shapes of the layers.

Two for each product in a convolution, a dense layer or attention; the rest is not counted.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kullback.lm import gemma


class Layer(NamedTuple):
    """Products of one layer for one observation: outputs times inputs of each."""

    outputs: int
    inputs_of_each: int

    @property
    def flops(self) -> int:
        """For one observation."""
        return 2 * self.outputs * self.inputs_of_each


def nature(num_actions: int) -> tuple[Layer, ...]:
    """Returns the layers of Mnih et al. 2015 for 4 frames of 84 x 84."""
    return (
        Layer(20 * 20 * 32, 8 * 8 * 4),
        Layer(9 * 9 * 64, 4 * 4 * 32),
        Layer(7 * 7 * 64, 3 * 3 * 64),
        Layer(512, 7 * 7 * 64),
        Layer(num_actions, 512),
    )


def minatar(channels: int, num_actions: int) -> tuple[Layer, ...]:
    """Returns the layers of Young & Tian 2019 for 10 x 10 x channels."""
    return (
        Layer(8 * 8 * 16, 3 * 3 * channels),
        Layer(128, 8 * 8 * 16),
        Layer(num_actions, 128),
    )


def impala(channels: int, side: int, blocks: Iterable[tuple[int, bool]]) -> tuple[Layer, ...]:
    """Returns the layers of IMPALA's torso for side x side x channels.

    Args:
      channels: of the observation.
      side: of the observation.
      blocks: channels of each, and whether it halves the side.
    """
    layers: list[Layer] = []
    for wide, halves in blocks:
        layers.append(Layer(side * side * wide, 9 * channels))
        channels, side = wide, -(-side // 2) if halves else side
        layers += 4 * [Layer(side * side * wide, 9 * wide)]
    return tuple(layers)


def forward(layers: Sequence[Layer]) -> int:
    """Counts the operations of one observation's forward pass."""
    return sum(layer.flops for layer in layers)


def gradient_step(layers: Sequence[Layer], batch_size: int, forwards: int) -> int:
    """Counts `forwards` passes of a batch, and the gradient of one of them.

    That of the weights costs as much as the pass, and so does that of the inputs, which the first
    layer does not need.
    """
    gradient = forward(layers) + forward(layers[1:])
    return batch_size * (forwards * forward(layers) + gradient)


def decoder(config: gemma.Config, positions: range) -> int:
    """Counts a pass of the tokens at `positions` of a text through a Gemma 3, without logits."""
    c, queries = config, config.num_heads * config.head_dim
    dense = (
        Layer(queries + 2 * c.num_kv_heads * c.head_dim, c.embed_dim),
        Layer(c.embed_dim, queries),
        Layer(2 * c.hidden_dim, c.embed_dim),
        Layer(c.embed_dim, c.hidden_dim),
    )
    total = c.num_layers * len(positions) * forward(dense)
    for layer in range(c.num_layers):
        most = positions.stop if c.is_global(layer) else c.window
        keys = sum(min(position + 1, most) for position in positions)
        total += 2 * 2 * queries * keys  # Scores, and the sum of the values.
    return total


def unembedding(config: gemma.Config) -> int:
    """Counts the operations of one token's logits."""
    return Layer(config.vocab_size, config.embed_dim).flops
