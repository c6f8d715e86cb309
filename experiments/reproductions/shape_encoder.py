"""An encoder of SigLIP's form that learns which shape stands where in a picture (shapes.py).

N pictures, S pixels of a side, C cells, each of which a soft token stands for; E features of one.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kullback.core import learners, ranges, types
from kullback.experiments.reproductions import shapes, small_models, small_sight, students
from kullback.lm import siglip, vision

CELLS = shapes.CELLS**2
LABELS = {"kinds": 1 + shapes.NUM_KINDS, "cells": CELLS}  # Classes of each head.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """How an encoder learns."""

    pictures: int = 8_000
    held_out: int = 1_000  # Pictures by which it is measured.
    steps: int = 1_000  # 0 leaves it as it was drawn.
    batch_size: int = 64
    learning_rate: float = 2e-3  # Of Adam.

    def __post_init__(self) -> None:
        ranges.at_least(0, self, "steps")
        ranges.at_least(1, self, "pictures", "held_out", "batch_size")
        ranges.inside("(0, inf)", self, "learning_rate")


class Labelled(NamedTuple):
    """Pictures and what stands in their cells."""

    pixels: types.Array  # uint8, [N, S, S, 3].
    kinds: types.Array  # int32, [N, C]; `shapes.EMPTY` is none.


def labelled_loss(pooled: jax.Array, heads: types.Params, kinds: types.Array) -> jax.Array:
    """Returns the loss of linear heads on pooled features, in nats, [].

    One head tells which shape of which colour stands in a soft token's cell, or that none does, the
    other which cell it is: so that features say what there is, and where. It is the sum of both
    cross-entropies, a mean over pictures and cells.

    Args:
      pooled: features, [N, C, E].
      heads: matrices [E, classes], by the names of `LABELS`.
      kinds: int32, [N, C].
    """
    cells = jnp.broadcast_to(jnp.arange(CELLS), kinds.shape)
    labels = {"kinds": jnp.asarray(kinds) - shapes.EMPTY, "cells": cells}
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(pooled @ heads[name], label)
        for name, label in labels.items()
    ]
    return jnp.mean(sum(losses))


def learner(sizes: small_sight.Sizes, rate: float) -> types.Learner:
    """Returns the learner of an encoder with its heads; a batch's data are `Labelled`."""
    encoder, width = siglip.make(sizes.encoder), sizes.encoder_width

    def init(key: types.Key) -> types.Params:
        encoder_key, *keys = jax.random.split(key, 1 + len(LABELS))
        heads = {
            name: jax.random.normal(key, (width, number)) / math.sqrt(width)
            for key, (name, number) in zip(keys, LABELS.items(), strict=True)
        }
        return {"encoder": encoder.init(encoder_key), "heads": heads}

    def loss(params: types.Params, x: Labelled) -> tuple[jax.Array, dict[str, jax.Array]]:
        images = jnp.asarray(x.pixels, jnp.float32) / 127.5 - 1  # As `small_sight.normalized`.
        pooled = vision.pool(encoder.apply(params["encoder"], images), CELLS)
        return labelled_loss(pooled, params["heads"], x.kinds), {}

    return learners.sgd(init_params=init, loss=learners.plain(loss), optimizer=optax.adam(rate))


@functools.cache
def _trainer(sizes: small_sight.Sizes, rate: float) -> small_models.Trainer:
    return small_models.trainer(learner(sizes, rate))


class Encoder(NamedTuple):
    """An encoder that has learnt."""

    params: types.Params
    right: float  # Share of the cells of new pictures of which its head tells the kind.


def learn(
    sizes: small_sight.Sizes,
    learning: Learning,
    config: vision.Config,
    limits: tuple[int, int],
    seed: int,
    tick: students.Tick = students.ignore,
) -> Encoder:
    """Returns an encoder that has learnt from pictures of all kinds of questions.

    Args:
      sizes: of the encoder.
      learning: how it learns.
      config: of the vision that it is for.
      limits: of colours and shapes in a picture, see `shapes.learnt`.
      seed: of all that is drawn.
      tick: told how far it is.
    """
    trainer, key = _trainer(sizes, learning.learning_rate), jax.random.key(seed)
    state, random = trainer.learner.init(key), np.random.default_rng([seed, 0])
    rows = shapes.learnt(random, learning.pictures + learning.held_out, *limits)
    kinds = np.stack([row.kinds for row in rows]).astype(np.int32)
    new, kinds = kinds[: learning.held_out], kinds[learning.held_out :]
    labelled = Labelled(shapes.drawn(kinds, random), kinds)
    for first in range(0, learning.steps, students.STRETCH):
        steps = min(students.STRETCH, learning.steps - first)
        items = small_models.take(labelled, steps, learning.batch_size, seed, first)
        state, losses = trainer.run(state, types.NO_CONSTANTS, items, key)
        tick(first + steps, float(jnp.mean(losses)))
    params, pixels = state.params["encoder"], shapes.drawn(new, random)
    pooled = small_sight.encoded(config, params, pixels)[:, 0]
    told = np.argmax(pooled @ np.asarray(state.params["heads"]["kinds"]), -1) + shapes.EMPTY
    return Encoder(params, float(np.mean(told == new)))
