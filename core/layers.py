"""Layers in Haiku with DQN's initialisation, of which torsos and heads are made."""

from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import convolution, spectral


def uniform_fan_in(fan_in: int) -> hk.initializers.Initializer:
    """Returns the initialiser U(-1/sqrt(n), 1/sqrt(n)) of DQN Zoo and the Lua DQN."""
    bound = 1 / np.sqrt(fan_in)
    return hk.initializers.RandomUniform(-bound, bound)


def linear(size: int) -> Callable[[jax.Array], jax.Array]:
    """Makes a dense layer with DQN's initialisation."""

    def apply(x: jax.Array) -> jax.Array:
        init = uniform_fan_in(x.shape[-1])
        return hk.Linear(size, w_init=init, b_init=init)(x)

    return apply


class Conv2D(hk.Module):
    """A convolution with DQN's initialisation; weights "w" [k, k, C, O] and "b" [O].

    With `spectral_norm` the weights are divided by their largest singular value; the vector of its
    estimate is a parameter of its own, see spectral.py.
    """

    def __init__(
        self,
        filters: int,
        kernel: int,
        stride: int,
        padding: convolution.Padding,
        *,
        spectral_norm: bool = False,
    ):
        super().__init__(name="conv2_d")
        self.filters, self.kernel, self.stride = filters, kernel, stride
        self.padding: convolution.Padding = padding
        self.spectral_norm = spectral_norm

    def __call__(self, x: jax.Array, channels_first: bool = False, largest: int = 255) -> jax.Array:
        """Maps [B, H, W, C] (or [B, C, H, W]) to [B, H', W', O]; bytes are divided by `largest`."""
        channels = x.shape[1 if channels_first else -1]
        init = uniform_fan_in(self.kernel * self.kernel * channels)
        shape = (self.kernel, self.kernel, channels, self.filters)
        w = hk.get_parameter("w", shape, jnp.float32, init=init)
        b = hk.get_parameter("b", (self.filters,), jnp.float32, init=init)
        if self.spectral_norm:
            w = spectral.normalised(w, spectral.vector(w))
        if x.dtype == jnp.uint8:  # Scales the weights, which are few, and moves bytes.
            w = w / largest
        y = convolution.conv2d(x, w, self.stride, self.padding, channels_first=channels_first)
        return y + b[None, None, None]
