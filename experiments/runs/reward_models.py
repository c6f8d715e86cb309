"""Reward models of runs: what they make of texts and of pairs of answers."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kullback.core import finite, types
from kullback.environments import tokens
from kullback.experiments.runs import models, opened
from kullback.lm import gemma, preferences, reward_model, tokenizer, warm

ROWS = 32  # Sequences at once.


def load(
    path: str | pathlib.Path, seed: int | None = None, *, best: bool = False
) -> models.Checkpoint:
    """Reads the reward model of a run: its parameters are those of `reward_model.on_decoder`.

    Args:
      path: of the run.
      seed, best: as for `models.of_run`.

    Raises:
      ValueError: if it is no run of a reward model, or has no such seed or checkpoint.
    """
    return models.of_run(opened_run(path), seed, best=best)


def opened_run(path: str | pathlib.Path) -> opened.Opened:
    """Opens a run of reward models.

    Raises:
      ValueError: if it is none.
    """
    run = opened.find(path)
    if run is None or run.kind != "preferences":
        raise ValueError(f"{path} is no run of a reward model; train one on tokens/preferences:...")
    return run


def scorer(path: str | pathlib.Path, *, ensemble: bool = False) -> tokens.Scorer:
    """What scores texts by the reward model of a run, inside the program that writes them.

    Args:
      path: of the run; a population's is its average.
      ensemble: the mean of what all its members predict, at their cost together.
    """
    run = opened_run(path)
    checkpoint = models.of_run(run)
    model = reward_model.on_decoder(gemma.make(checkpoint.config))
    if ensemble:
        return warm.ensemble_scorer(model, warm.stacked([*models.members(run)]))
    return reward_model.scorer(model, checkpoint.params)


def over_pairs(
    program: Callable[..., jax.Array],
    params: types.Params,
    pairs: list[preferences.Pair],
    width: int,
    pad_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """What a compiled (params, sequences) -> [B, ...] makes of both answers of n pairs, [n, ...].

    Raises:
      ValueError: without pairs, or where a number is NaN.
    """
    if not pairs:
        raise ValueError("no pair to judge")
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for begin in range(0, len(pairs), ROWS):
        # Of one size, compiled once: the last part is filled up.
        part = [pairs[(begin + i) % len(pairs)] for i in range(ROWS)]
        for column, rows in zip(found, preferences.pad(part, width, pad_id), strict=True):
            column.append(np.asarray(program(params, rows)))
    chosen, rejected = (np.concatenate(column)[: len(pairs)] for column in found)
    finite.require((chosen, rejected), params, "what the reward model makes of pairs")
    return chosen, rejected


def line(
    words: tokenizer.Tokenizer, pair: preferences.Pair, chosen: Any, rejected: Any
) -> dict[str, Any]:
    """A pair and its rewards for a reader, JSON-able."""
    return {
        "prompt": words.decode(pair.chosen.prompt),
        "chosen": words.decode(pair.chosen.completion),
        "rejected": words.decode(pair.rejected.completion),
        "reward_chosen": float(chosen),
        "reward_rejected": float(rejected),
    }
