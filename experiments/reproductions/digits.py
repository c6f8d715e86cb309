"""Handwritten digits of 8 x 8 pixels: the 1,797 that scikit-learn brings, and judges of pictures.

They are the test set of Alpaydin and Kaynak's "Optical Recognition of Handwritten Digits" (UCI,
1998, https://archive.ics.uci.edu/dataset/80), of 13 people; a pixel is a number from 0 to 16.

A judge tells which digit a picture shows, by a linear softmax or by a hidden layer. Judges learn
from digits of their own, so that one can say what another, which is climbed, does not.

N pictures, S = 8 pixels of a side, H hidden units of a judge.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.ndimage

from kullback.core import learners, ranges, types
from kullback.experiments.reproductions import small_models

SIDE, NUM_DIGITS, NUM_PICTURES = 8, 10, 1_797
INSTALL = "pip install 'kullback[digits]'"
TURN, GROW, SHIFT = 10.0, 0.1, 0.4  # Of variants, at most: degrees, a share, pixels.


class Digits(NamedTuple):
    """Pictures of digits."""

    pixels: np.ndarray  # float32 in [-1, 1], [N, S, S].
    labels: np.ndarray  # int32, [N].

    def part(self, rows: Any) -> "Digits":
        """Returns some of them, in an order."""
        return Digits(self.pixels[rows], self.labels[rows])


def load() -> Digits:
    """Reads scikit-learn's digits, in its order.

    Raises:
      ValueError: where scikit-learn is not installed, with the command that installs it.
    """
    try:
        datasets: Any = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ValueError(f"the digits are those of scikit-learn: {INSTALL}") from error
    read = datasets.load_digits()
    pixels = np.asarray(read.images) / 8 - 1
    return Digits(pixels.astype(np.float32), np.asarray(read.target).astype(np.int32))


def split(digits: Digits, sizes: Sequence[int], random: np.random.Generator) -> list[Digits]:
    """Returns parts of so many digits, drawn without putting back."""
    order, ends = random.permutation(len(digits.labels)), np.cumsum(sizes)
    return [digits.part(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def varied(digits: Digits, copies: int, random: np.random.Generator) -> Digits:
    """Returns so many copies of each digit, turned, grown and moved a little, one after another."""
    pixels, labels = np.repeat(digits.pixels, copies, 0), np.repeat(digits.labels, copies)
    angle = np.radians(random.uniform(-TURN, TURN, len(labels)))
    scale = 1 + random.uniform(-GROW, GROW, len(labels))
    shift = random.uniform(-SHIFT, SHIFT, (len(labels), 2))
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1)
    matrix = turn.reshape(-1, 2, 2) * scale[:, None, None]
    centre = np.full(2, (SIDE - 1) / 2)
    at = (
        np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"))
        - centre[:, None, None]
    )
    places = np.einsum("nij,jhw->nihw", matrix, at) + (centre + shift)[:, :, None, None]
    picture = np.broadcast_to(np.arange(len(labels))[:, None, None], places[:, 0].shape)
    coordinates = np.stack([picture, places[:, 0], places[:, 1]])
    moved = scipy.ndimage.map_coordinates(pixels, coordinates, order=1, cval=-1.0)
    return Digits(moved.astype(np.float32), labels)


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    """Returns pictures in grey as an encoder's input has them, uint8 [N, S, S, 3]."""
    grey = np.rint((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judging:
    """How a judge learns."""

    hidden: int = 0  # H; 0 is a linear softmax.
    copies: int = 4  # Variants of each digit.
    steps: int = 1_000
    batch_size: int = 128
    learning_rate: float = 3e-3  # Of Adam.
    weight_decay: float = 1e-2  # Decoupled, a step and unit of the rate.

    def __post_init__(self) -> None:
        ranges.at_least(0, self, "hidden")
        ranges.at_least(1, self, "copies", "steps", "batch_size")
        ranges.inside("(0, inf)", self, "learning_rate")
        ranges.inside("[0, inf)", self, "weight_decay")


def features(params: types.Params, pixels: types.Array) -> jax.Array:
    """Returns what a judge's last layer reads: hidden units [N, H], or pixels [N, S^2].

    Args:
      params: of a judge.
      pixels: [N, S, S], in [-1, 1].
    """
    x = jnp.asarray(pixels).reshape(-1, SIDE**2)
    return jax.nn.relu(x @ params["in"] + params["in_bias"][None]) if "in" in params else x


def log_policy(params: types.Params, pixels: types.Array) -> jax.Array:
    """Returns log-probabilities of digits, [N, 10]; see `features`."""
    logits = features(params, pixels) @ params["out"] + params["out_bias"][None]
    return jax.nn.log_softmax(logits)


def judge_learner(judging: Judging) -> types.Learner:
    """Returns the learner of a judge, whose batches' data are `Digits`."""

    def init(key: types.Key) -> types.Params:
        in_key, out_key = jax.random.split(key)
        width = judging.hidden or SIDE**2
        scale = 1 / math.sqrt(width)
        params = {
            "out": scale * jax.random.normal(out_key, (width, NUM_DIGITS)),
            "out_bias": jnp.zeros(NUM_DIGITS),
        }
        if judging.hidden:
            shape = SIDE**2, judging.hidden
            params["in"] = math.sqrt(2) / SIDE * jax.random.normal(in_key, shape)
            params["in_bias"] = jnp.zeros(judging.hidden)
        return params

    def loss(params: types.Params, data: Digits) -> tuple[jax.Array, dict[str, jax.Array]]:
        log_p = log_policy(params, data.pixels)
        nats = -jnp.take_along_axis(log_p, jnp.asarray(data.labels)[:, None], 1)
        return jnp.mean(nats), {}

    optimizer = optax.adamw(judging.learning_rate, weight_decay=judging.weight_decay)
    return learners.sgd(init, learners.plain(loss), optimizer)


@functools.cache
def _judge_trainer(judging: Judging) -> small_models.Trainer:
    return small_models.trainer(judge_learner(judging))


def train_judge(judging: Judging, digits: Digits, seed: int, stream: int) -> types.Params:
    """Returns a judge that has learnt from variants of some digits; `stream` tells two apart."""
    trainer, key = _judge_trainer(judging), jax.random.fold_in(jax.random.key(seed), stream)
    learnt = varied(digits, judging.copies, np.random.default_rng([seed, stream]))
    return small_models.trained(trainer, learnt, judging.steps, judging.batch_size, seed, key)


def told(params: types.Params, digits: Digits) -> dict[str, float]:
    """Returns how a judge takes pictures for the digits of their labels.

    Returns:
      "right": the share that it takes for those; "nats": the mean of -log of their probability.
    """
    log_p = np.asarray(log_policy(params, digits.pixels))
    of_label = np.take_along_axis(log_p, digits.labels[:, None], 1)
    right = np.mean(np.argmax(log_p, -1) == digits.labels)
    return {"right": float(right), "nats": float(-np.mean(of_label))}
