"""Floating-point operations of a gradient step, counted from the shapes of the layers.

Two for each product in a convolution or dense layer; the rest is not counted.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Layer(NamedTuple):
    """Products of one layer for one observation: outputs times inputs of each."""

    outputs: int
    inputs_of_each: int

    @property
    def flops(self) -> int:
        """For one observation."""
        return 2 * self.outputs * self.inputs_of_each


def nature(num_actions: int) -> tuple[Layer, ...]:
    """The network of Mnih et al. 2015 on 4 frames of 84 x 84."""
    return (
        Layer(20 * 20 * 32, 8 * 8 * 4),
        Layer(9 * 9 * 64, 4 * 4 * 32),
        Layer(7 * 7 * 64, 3 * 3 * 64),
        Layer(512, 7 * 7 * 64),
        Layer(num_actions, 512),
    )


def minatar(channels: int, num_actions: int) -> tuple[Layer, ...]:
    """The network of Young & Tian 2019 on 10 x 10 x channels."""
    return (
        Layer(8 * 8 * 16, 3 * 3 * channels),
        Layer(128, 8 * 8 * 16),
        Layer(num_actions, 128),
    )


def forward(layers: Sequence[Layer]) -> int:
    """Values of one observation."""
    return sum(layer.flops for layer in layers)


def gradient_step(layers: Sequence[Layer], batch_size: int, forwards: int) -> int:
    """`forwards` passes of a batch, and the gradient of one of them.

    That of the weights costs as much as the pass, and so does that of the inputs, which the first
    layer does not need.
    """
    gradient = forward(layers) + forward(layers[1:])
    return batch_size * (forwards * forward(layers) + gradient)
