"""Layers in Haiku of which torsos and heads are made, by default with DQN's initialisation."""

from collections.abc import Callable
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import convolution, spectral

__all__ = ["DQN", "FLAX", "NORMALIZED", "Conv2D", "Style", "linear", "numbers"]


FromFanIn = Callable[[int], hk.initializers.Initializer]  # Inputs of an output -> initialiser.


def uniform_fan_in(fan_in: int) -> hk.initializers.Initializer:
    """Returns the initialiser U(-1/sqrt(n), 1/sqrt(n)) of DQN Zoo and the Lua DQN."""
    bound = 1 / np.sqrt(fan_in)
    return hk.initializers.RandomUniform(-bound, bound)


def normal_fan_in(variance: float) -> FromFanIn:
    """Returns the initialiser of variance `variance` / n: a normal one, cut at two deviations.

    2 is He et al. 2015, https://arxiv.org/abs/1502.01852; 1 is LeCun et al. 1998.
    """
    return lambda fan_in: hk.initializers.TruncatedNormal(np.sqrt(variance / fan_in) / _CUT)


_CUT = 0.87962566103423978  # The standard deviation of a standard normal that is cut at 2.


def zeros(fan_in: int) -> hk.initializers.Initializer:
    """Returns the initialiser 0."""
    del fan_in
    return hk.initializers.Constant(0.0)


def normalized_relu(x: jax.Array) -> jax.Array:
    """Returns the ReLU of a layer normalisation over the last axis, with scale and offset.

    Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """
    return jax.nn.relu(hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, eps=1e-6)(x))


class Style(NamedTuple):
    """The initialisation of layers, and the activation after them."""

    weights: FromFanIn
    biases: FromFanIn
    activate: Callable[[jax.Array], jax.Array]


# Uniform weights and ReLU, as the first DQN has them.
DQN = Style(uniform_fan_in, uniform_fan_in, jax.nn.relu)
# PQN, Gallici et al. 2024, https://arxiv.org/abs/2407.04811, in its authors' code: normalised over
# channels alone.
NORMALIZED = Style(normal_fan_in(2.0), zeros, normalized_relu)
# Its output layer, which is flax's default.
FLAX = Style(normal_fan_in(1.0), zeros, jax.nn.relu)


def linear(size: int, style: Style = DQN) -> Callable[[jax.Array], jax.Array]:
    """Makes a dense layer, without activation."""

    def apply(x: jax.Array) -> jax.Array:
        n = x.shape[-1]
        return hk.Linear(size, w_init=style.weights(n), b_init=style.biases(n))(x)

    return apply


class Conv2D(hk.Module):
    """A convolution, without activation; weights "w" [k, k, C, O] and "b" [O].

    With `spectral_norm` the weights are divided by their largest singular value; the vector of its
    estimate is a parameter of its own, see spectral.py.
    """

    def __init__(
        self,
        filters: int,
        kernel: int,
        stride: int,
        padding: convolution.Padding,
        style: Style = DQN,
        *,
        spectral_norm: bool = False,
    ):
        super().__init__(name="conv2_d")
        self.filters, self.kernel, self.stride, self.style = filters, kernel, stride, style
        self.padding: convolution.Padding = padding
        self.spectral_norm = spectral_norm

    def __call__(self, x: jax.Array, channels_first: bool = False, largest: int = 255) -> jax.Array:
        """Maps [B, H, W, C] (or [B, C, H, W]) to [B, H', W', O]; bytes are divided by `largest`."""
        channels = x.shape[1 if channels_first else -1]
        n = self.kernel * self.kernel * channels
        shape = (self.kernel, self.kernel, channels, self.filters)
        w = hk.get_parameter("w", shape, jnp.float32, init=self.style.weights(n))
        b = hk.get_parameter("b", (self.filters,), jnp.float32, init=self.style.biases(n))
        if self.spectral_norm:
            w = spectral.normalised(w, spectral.vector(w))
        if x.dtype == jnp.uint8:  # Scales the weights, which are few, and moves bytes.
            w = w / largest
        y = convolution.conv2d(x, w, self.stride, self.padding, channels_first=channels_first)
        return y + b[None, None, None]


def numbers(observation: jax.Array, largest: int) -> jax.Array:
    """Returns float32; bytes are divided by the largest."""
    x = observation.astype(jnp.float32)
    return x / largest if observation.dtype == jnp.uint8 and largest != 1 else x
