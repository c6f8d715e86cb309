"""Torsos and heads in Haiku; learners see only `init` and `apply`.

A torso maps observations [B, ...] to features [B, D] and may be any function that uses Haiku
modules.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import convolution, types

Torso = Callable[[jax.Array], jax.Array]  # [B, ...] -> [B, D], called inside `hk.transform`.

TorsoName = Literal[
    "auto",
    "nature",
    "nature_same",
    "nature_conv",
    "minatar",
    "minatar_linear",
    "minatar_conv",
    "mlp",
    "mlp_small",
]


class Network(NamedTuple):
    """A network as two pure functions."""

    init: Callable[[types.Key, Any], types.Params]  # (key, observation [B, ...]) -> params.
    apply: Callable[[types.Params, Any], jax.Array]  # (params, observation [B, ...]) -> output.


def action_values(torso: Torso, num_actions: int) -> Network:
    """Network of q(s, a): observations [B, ...] -> [B, A]."""

    def forward(observation: jax.Array) -> jax.Array:
        return linear(num_actions)(torso(observation))

    transformed = hk.without_apply_rng(hk.transform(forward))
    return Network(transformed.init, transformed.apply)


def torso(name: TorsoName, spec: types.Spec, *, hidden: bool = True) -> Torso:
    """The torso of a name, for observations of `spec`.

    Args:
      name: "auto" picks by the observation's shape.
      spec: of the environment.
      hidden: whether "auto" picks one of images that ends in its hidden layer; a head that has
        a hidden layer of its own says False.

    Raises:
      ValueError: if the name is unknown, or the torso cannot take such observations.
    """
    if name not in get_args(TorsoName):
        raise ValueError(f"unknown torso {name!r}; expected one of {get_args(TorsoName)}")
    if name == "auto":
        name = _torso_for(spec)
        if not hidden and name in ("nature", "minatar"):
            name = "nature_conv" if name == "nature" else "minatar_conv"
    rank = {"nature": 3, "minatar": 3, "mlp": 1}[name.split("_")[0]]
    if len(spec.shape) != rank:
        raise ValueError(
            f"torso {name!r} takes observations of rank {rank}, got shape {spec.shape}; set "
            f"torso={_torso_for(spec)}, or pass a torso of your own"
        )
    return {
        "nature": functools.partial(nature_cnn, padding="VALID"),
        "nature_same": functools.partial(nature_cnn, padding="SAME"),
        "nature_conv": functools.partial(nature_cnn, hidden=0),
        "minatar": minatar_cnn,
        "minatar_conv": functools.partial(minatar_cnn, hidden=0),
        "minatar_linear": functools.partial(minatar_cnn, padding="SAME", hidden=0),
        "mlp": functools.partial(mlp, bounds=spec.bounds),
        "mlp_small": functools.partial(mlp, sizes=(64, 64), bounds=spec.bounds),
    }[name]


def _torso_for(spec: types.Spec) -> TorsoName:
    if len(spec.shape) == 3:
        return "nature" if spec.frame_stack > 1 else "minatar"
    if len(spec.shape) == 1:
        return "mlp"
    raise ValueError(f"no torso for observations of shape {spec.shape}; pass one of your own")


def nature_cnn(
    observation: jax.Array, padding: convolution.Padding = "VALID", hidden: int = 512
) -> jax.Array:
    """The network of Mnih et al. 2015: uint8 frames [B, 4, 84, 84], oldest first -> [B, 512].

    Padded VALID, as DQN Zoo's (3,136 features before the hidden layer); Dopamine's TensorFlow
    network pads SAME (7,744). Without a hidden layer (`hidden` 0) those are what it returns.
    """
    x = jax.nn.relu(Conv2D(32, 8, 4, padding)(observation, channels_first=True))
    x = jax.nn.relu(Conv2D(64, 4, 2, padding)(x))
    x = jax.nn.relu(Conv2D(64, 3, 1, padding)(x))
    x = hk.Flatten()(x)
    return jax.nn.relu(linear(hidden)(x)) if hidden else x


def minatar_cnn(
    observation: jax.Array, padding: convolution.Padding = "VALID", hidden: int = 128
) -> jax.Array:
    """The network of Young & Tian 2019: [B, 10, 10, C] -> [B, 128].

    Ceron & Castro 2021 pad SAME and have no hidden layer (`hidden` 0): [B, 1600].
    """
    x = jax.nn.relu(Conv2D(16, 3, 1, padding)(observation.astype(jnp.float32)))
    x = hk.Flatten()(x)
    return jax.nn.relu(linear(hidden)(x)) if hidden else x


def mlp(
    observation: jax.Array,
    sizes: tuple[int, ...] = (512, 512),
    bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> jax.Array:
    """ReLU layers over a vector, [B, n] -> [B, sizes[-1]].

    `bounds` (low, high), if given, scale the vector to [-1, 1], as Dopamine does for CartPole.
    """
    x = hk.Flatten()(observation).astype(jnp.float32)
    if bounds is not None:
        low, high = (jnp.asarray(bound, jnp.float32)[None] for bound in bounds)
        x = 2 * (x - low) / (high - low) - 1
    for size in sizes:
        x = jax.nn.relu(linear(size)(x))
    return x


def uniform_fan_in(fan_in: int) -> hk.initializers.Initializer:
    """U(-1/sqrt(n), 1/sqrt(n)) for weights and biases, as DQN Zoo and the Lua DQN initialise."""
    bound = 1 / np.sqrt(fan_in)
    return hk.initializers.RandomUniform(-bound, bound)


def linear(size: int) -> Callable[[jax.Array], jax.Array]:
    """A dense layer with DQN's initialisation."""

    def apply(x: jax.Array) -> jax.Array:
        init = uniform_fan_in(x.shape[-1])
        return hk.Linear(size, w_init=init, b_init=init)(x)

    return apply


class Conv2D(hk.Module):
    """A convolution with DQN's initialisation; weights "w" [k, k, C, O] and "b" [O]."""

    def __init__(self, filters: int, kernel: int, stride: int, padding: convolution.Padding):
        super().__init__(name="conv2_d")
        self.filters, self.kernel, self.stride = filters, kernel, stride
        self.padding: convolution.Padding = padding

    def __call__(self, x: jax.Array, channels_first: bool = False) -> jax.Array:
        """[B, H, W, C] (or [B, C, H, W]) -> [B, H', W', O]; bytes are fractions of 255."""
        channels = x.shape[1 if channels_first else -1]
        init = uniform_fan_in(self.kernel * self.kernel * channels)
        shape = (self.kernel, self.kernel, channels, self.filters)
        w = hk.get_parameter("w", shape, jnp.float32, init=init)
        b = hk.get_parameter("b", (self.filters,), jnp.float32, init=init)
        if x.dtype == jnp.uint8:  # Scales the weights, which are few, and moves bytes.
            w = w / 255
        y = convolution.conv2d(x, w, self.stride, self.padding, channels_first=channels_first)
        return y + b[None, None, None]
