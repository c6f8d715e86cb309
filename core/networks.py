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

from kullback.core import convolution, impala, layers, types

__all__ = ["Network", "Torso", "TorsoName", "action_values", "mlp", "torso"]

Torso = Callable[[jax.Array], jax.Array]  # [B, ...] -> [B, D], called inside `hk.transform`.

# Torsos by name, see `torso`; "_ln" normalises layers, as PQN does.
TorsoName = Literal[
    "auto",
    "nature",
    "nature_same",
    "nature_conv",
    "nature_ln",
    "minatar",
    "minatar_linear",
    "minatar_conv",
    "minatar_ln",
    "impala",
    "impala_small",
    "mlp",
    "mlp_small",
    "mlp_ln",
]


class Network(NamedTuple):
    """A network as two pure functions."""

    init: Callable[[types.Key, Any], types.Params]  # (key, observation [B, ...]) -> params.
    apply: Callable[[types.Params, Any], jax.Array]  # (params, observation [B, ...]) -> output.


def action_values(torso: Torso, num_actions: int, output: layers.Style = layers.DQN) -> Network:
    """Makes a network of q(s, a): observations [B, ...] -> [B, A].

    `output` is the style of the output layer.
    """

    def forward(observation: jax.Array) -> jax.Array:
        return layers.linear(num_actions, output)(torso(observation))

    transformed = hk.without_apply_rng(hk.transform(forward))
    return Network(transformed.init, transformed.apply)


def torso(
    name: TorsoName,
    spec: types.Spec,
    *,
    hidden: bool = True,
    residual: impala.Config | None = None,
) -> Torso:
    """Returns the torso of a name, for observations of `spec`.

    Args:
      name: "auto" picks by the observation's shape: frames of at least 36 x 36 are for Nature's
        network, other grids for MinAtar's, vectors for layers.
      spec: of the environment.
      hidden: whether "auto" picks an image torso with a hidden layer, and "impala" has one; pass
        False for a head that has one.
      residual: settings of "impala" and "impala_small"; None is the defaults of the first and
        `impala.SMALL` for the second.

    Raises:
      ValueError: if the name is unknown, or the torso cannot take such observations.
    """
    if name not in get_args(TorsoName):
        raise ValueError(f"unknown torso {name!r}; expected one of {get_args(TorsoName)}")
    is_old = spec.input_rules == 1
    if name == "auto":
        name = _by_rank(spec) if is_old else _fitting(spec)
        if not hidden and name in ("nature", "minatar"):
            name = "nature_conv" if name == "nature" else "minatar_conv"
    if not is_old or len(spec.shape) != _RANKS[_kind(name)]:
        _check(name, spec)
    # Version 0.1 read bytes as they are but in Nature's network, channels first always, and took
    # bounds of any width as a scale.
    largest = spec.largest_byte
    if is_old:
        largest = 255 if _kind(name) == "nature" else 1
    first = is_old or len(spec.shape) != 3 or has_channels_first(spec.shape)
    frames = functools.partial(nature_cnn, channels_first=first, largest=largest)
    grid = functools.partial(minatar_cnn, largest=largest)
    vector = functools.partial(
        mlp, bounds=spec.bounds, widest=None if is_old else WIDEST, largest=largest
    )
    return {
        "nature": functools.partial(frames, padding="VALID"),
        "nature_same": functools.partial(frames, padding="SAME"),
        "nature_conv": functools.partial(frames, hidden=0),
        "nature_ln": functools.partial(frames, padding="VALID", style=layers.NORMALIZED),
        "minatar": grid,
        "minatar_conv": functools.partial(grid, hidden=0),
        "minatar_linear": functools.partial(grid, padding="SAME", hidden=0),
        "impala": functools.partial(
            impala.features,
            config=residual or impala.Config(),
            blocks=impala.BLOCKS["impala"],
            hidden=512 if hidden else 0,
            channels_first=first,
            largest=largest,
        ),
        "impala_small": functools.partial(
            impala.features,
            config=residual or impala.SMALL,
            blocks=impala.BLOCKS["impala_small"],
            hidden=128 if hidden else 0,
            largest=largest,
        ),
        "minatar_ln": functools.partial(grid, style=layers.NORMALIZED),
        "mlp": vector,
        "mlp_small": functools.partial(vector, sizes=(64, 64)),
        "mlp_ln": functools.partial(vector, sizes=(128, 128), style=layers.NORMALIZED),
    }[name]


_RANKS = {"nature": 3, "minatar": 3, "mlp": 1}
_LIKE = {"impala": "nature", "impala_small": "minatar"}  # Torsos that take what others take.
_SMALLEST_FRAME = 36  # Of which Nature's convolutions, without padding, leave one pixel.


def _kind(name: TorsoName) -> str:
    """Returns the first of the torsos that take the same observations: nature, minatar or mlp."""
    return _LIKE.get(name, name).split("_")[0]


def has_channels_first(shape: tuple[int, ...]) -> bool:
    """Returns whether frames of a shape are [C, H, W], not [H, W, C]; C is the smaller."""
    return not shape[-1] < min(shape[:-1])


def is_grid(spec: types.Spec) -> bool:
    """Returns whether "auto" treats observations as a grid of cells, not as a picture."""
    return len(spec.shape) == 3 and _fitting(spec).startswith("minatar")


def _by_rank(spec: types.Spec) -> TorsoName:
    """Returns what "auto" is by the rules of version 0.1."""
    if len(spec.shape) == 3:
        return "nature" if spec.frame_stack > 1 else "minatar"
    return _fitting(spec)


def _fitting(spec: types.Spec) -> TorsoName:
    """Returns a torso that takes such observations.

    Raises:
      ValueError: if there is none.
    """
    if len(spec.shape) == 3:
        height, width, _ = _as_frames(spec.shape)
        are_planes = np.dtype(spec.dtype) == np.bool_
        if spec.frame_stack > 1 or (min(height, width) >= _SMALLEST_FRAME and not are_planes):
            return "nature" if min(height, width) >= _SMALLEST_FRAME else "nature_same"
        return "minatar" if min(spec.shape[:2]) >= 3 else "minatar_linear"
    if len(spec.shape) == 1:
        return "mlp"
    raise ValueError(
        f"no torso takes observations of shape {spec.shape}: expected [n], [H, W, C] or [C, H, W]; "
        "reshape them, or pass a torso of your own"
    )


def _as_frames(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns height, width and channels of frames of a shape."""
    return (*shape[1:], shape[0]) if has_channels_first(shape) else shape  # pyright: ignore[reportReturnType]  # Of rank 3.


def _check(name: TorsoName, spec: types.Spec) -> None:
    """Raises ValueError unless the torso takes observations of `spec`."""
    kind, shape = _kind(name), spec.shape
    fault = ""
    if len(shape) != _RANKS[kind]:
        fault = f"takes observations of rank {_RANKS[kind]}, got shape {shape}"
    elif kind == "nature":
        height, width, channels = _as_frames(shape)
        if name != "nature_same" and min(height, width) < _SMALLEST_FRAME:
            fault = (
                f"takes frames [C, H, W] or [H, W, C] of at least {_SMALLEST_FRAME} x "
                f"{_SMALLEST_FRAME}, got shape {shape}, which is {height} x {width} with "
                f"{channels} channels"
            )
    elif kind == "minatar":
        height, width, channels = shape
        if name != "minatar_linear" and min(height, width) < 3:
            fault = f"takes grids [H, W, C] of at least 3 x 3, got shape {shape}"
        elif has_channels_first(shape) and height < _SMALLEST_FRAME <= min(width, channels):
            fault = (
                f"takes grids [H, W, C], got shape {shape}, which looks like frames with the "
                "channels first"
            )
    if fault:
        raise ValueError(
            f"torso {name!r} {fault}; set torso={_fitting(spec)}, or pass a torso of your own"
        )


def nature_cnn(
    observation: jax.Array,
    padding: convolution.Padding = "VALID",
    hidden: int = 512,
    *,
    channels_first: bool = True,
    largest: int = 255,
    style: layers.Style = layers.DQN,
) -> jax.Array:
    """Applies the network of Mnih et al. 2015: frames [B, 4, 84, 84], oldest first -> [B, 512].

    DQN Zoo pads VALID (3,136 features before the hidden layer), Dopamine's TensorFlow network SAME
    (7,744). With `hidden` 0 there is no hidden layer, and these features are returned. Frames are
    uint8 and divided by `largest`; without `channels_first` they are [B, 84, 84, 4].
    """
    first = layers.Conv2D(32, 8, 4, padding, style)
    x = style.activate(first(observation, channels_first=channels_first, largest=largest))
    x = style.activate(layers.Conv2D(64, 4, 2, padding, style)(x))
    x = style.activate(layers.Conv2D(64, 3, 1, padding, style)(x))
    x = hk.Flatten()(x)
    return style.activate(layers.linear(hidden, style)(x)) if hidden else x


def minatar_cnn(
    observation: jax.Array,
    padding: convolution.Padding = "VALID",
    hidden: int = 128,
    *,
    largest: int = 255,
    style: layers.Style = layers.DQN,
) -> jax.Array:
    """Applies the network of Young & Tian 2019: [B, 10, 10, C] -> [B, 128].

    Ceron & Castro 2021 pad SAME and have no hidden layer (`hidden` 0): [B, 1600]. Bytes are
    divided by `largest`, which is 1 for planes of zeros and ones.
    """
    convolved = layers.Conv2D(16, 3, 1, padding, style)(layers.numbers(observation, largest))
    x = hk.Flatten()(style.activate(convolved))
    return style.activate(layers.linear(hidden, style)(x)) if hidden else x


# Widest bounds to scale by. Declared bounds are often the largest floats, and scaled by a wider
# range than this, numbers that differ by 1 become equal in float32.
WIDEST = float(2**24)


def mlp(
    observation: jax.Array,
    sizes: tuple[int, ...] = (512, 512),
    bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    *,
    widest: float | None = WIDEST,
    largest: int = 255,
    style: layers.Style = layers.DQN,
) -> jax.Array:
    """Applies ReLU layers over a vector, [B, n] -> [B, sizes[-1]].

    `bounds` (low, high), if given, scale the vector to [-1, 1], as Dopamine does for CartPole;
    entries whose bounds are `unscalable` stay as they are (none, if `widest` is None). Bytes are
    divided by `largest`.
    """
    x = layers.numbers(hk.Flatten()(observation), largest)
    if bounds is not None:
        apart = [] if widest is None else unscalable(bounds, widest)
        low, high = (_in_place_of(apart, bound, n) for n, bound in enumerate(bounds))
        scaled = 2 * (x - low) / (high - low) - 1
        is_apart = np.isin(np.arange(x.shape[-1]), apart)[None]
        x = jnp.where(is_apart, x, scaled) if apart else scaled
    for size in sizes:
        x = style.activate(layers.linear(size, style)(x))
    return x


def unscalable(
    bounds: tuple[tuple[float, ...], tuple[float, ...]], widest: float = WIDEST
) -> list[int]:
    """Returns the entries of a vector that cannot be scaled by their bounds.

    Their width, in float32, is not finite, 0 or less, or more than `widest`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = (np.asarray(bound, np.float32) for bound in bounds)
        width = high - low
    is_scale = (width >= np.finfo(np.float32).tiny) & (width <= widest)
    return np.flatnonzero(~is_scale).tolist()


def _in_place_of(apart: list[int], bound: tuple[float, ...], value: float) -> jax.Array:
    """Returns bounds [1, n] with `value`, which is finite, in place of those that are no scale."""
    with np.errstate(over="ignore"):
        replaced = np.asarray(bound, np.float32)
    replaced[apart] = value
    return jnp.asarray(replaced)[None]
