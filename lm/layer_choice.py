"""A shallower model: some layers of a model, in their order, with its embedding and its norms.

The student of a distillation may begin so, as DistilBERT did (Sanh et al. 2019,
https://arxiv.org/abs/1910.01108, every other layer). A layer that attends to all tokens has to stay
one: the period of the new model, `pattern`, follows from where the chosen ones stand.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import gemma_config

__all__ = ["choose", "chosen_config"]


def chosen_config(config: gemma_config.Config, layers: Sequence[int]) -> gemma_config.Config:
    """Returns the shape of a model of some layers, counted from 0.

    Raises:
      ValueError: for layers that are not there, are not in order, or whose global ones stand at no
        regular distance.
    """
    if not layers or [*layers] != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1]:
        raise ValueError(f"layers must be numbers from 0 on that rise, got {layers}")
    if layers[-1] >= config.num_layers:
        raise ValueError(f"layers must lie below {config.num_layers}, the model's, got {layers}")
    is_global = [config.is_global(layer) for layer in layers]
    pattern = is_global.index(True) + 1 if any(is_global) else len(layers) + 1
    wanted = [(n + 1) % pattern == 0 for n in range(len(layers))]
    if is_global != wanted:
        places = [layer for layer in layers if config.is_global(layer)]
        raise ValueError(
            f"layers must have their global ones at a regular distance, got {[*layers]} with "
            f"{places}; the model has one in {config.pattern}"
        )
    return dataclasses.replace(config, num_layers=len(layers), pattern=pattern)


def choose(
    config: gemma_config.Config, params: types.Params, layers: Sequence[int]
) -> tuple[gemma_config.Config, types.Params]:
    """Returns the shape and the parameters of a model of some layers.

    Args:
      config: of the model that has them.
      params: its parameters, as of `gemma.make(config)`.
      layers: to be kept, counted from 0, in their order.

    Raises:
      ValueError: as of `chosen_config`.
    """
    new = chosen_config(config, layers)
    kept = {name: x for name, x in params.items() if name not in gemma_config.BLOCKS}
    first = 0
    for block, (length, depth) in new.blocks.items():
        stacks: dict[str, Any] = {}
        for j in range(depth):
            of_stack = [
                _layer(config, params, layers[first + p * depth + j]) for p in range(length)
            ]
            stacks[f"layer_{j}"] = jax.tree.map(lambda *x: jnp.stack(x), *of_stack)
        kept[block] = stacks
        first += length * depth
    return new, kept


def _layer(config: gemma_config.Config, params: types.Params, layer: int) -> Any:
    """Returns the parameters of a layer, without their layer axis."""
    periods, remainder = gemma_config.BLOCKS
    period, place = divmod(layer, config.pattern)
    block, index = (periods, period) if period < config.num_periods else (remainder, 0)
    return jax.tree.map(lambda x: x[index], params[block][f"layer_{place}"])
