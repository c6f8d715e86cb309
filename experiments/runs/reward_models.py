"""Reward models on disk: of runs, by the mean of whose seeds a population is one model."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from kullback.core import finite, types
from kullback.environments import tokens
from kullback.experiments.runs import models, opened
from kullback.lm import gemma, preferences, reward_model, tokenizer, warm

ROWS = 32  # Sequences at once.


def is_run(path: str | pathlib.Path) -> bool:
    """Returns whether a folder is of a run of reward models."""
    run = opened.find(path)
    return run is not None and run.kind == "preferences"


def is_population(run: opened.Opened) -> bool:
    """Returns whether the models of a run's seeds are to be averaged."""
    return isinstance(models.algorithm_config(run), warm.Config)


def load(
    path: str | pathlib.Path, seed: int | None = None, *, best: bool = False
) -> models.Checkpoint:
    """The reward model of a run: its parameters are those of `reward_model.on_decoder`.

    Args:
      path: of the run.
      seed: which of its seeds; None is the first, of a population the average of all.
      best: the checkpoint of the highest accuracy in place of the newest.

    Raises:
      ValueError: if it is no run of a reward model, or has no such seed or checkpoint.
    """
    run = opened.find(path)
    if run is None or run.kind != "preferences":
        raise ValueError(f"{path} is no run of a reward model; train one on tokens/preferences:...")
    decoder = models.decoder_of(run)
    if seed is None and is_population(run):
        params = warm.average(members(run, best=best))
    else:
        params = params_of(run, decoder.config, seed, best=best)
    return decoder._replace(params=params)


def members(run: opened.Opened, *, best: bool = False) -> Iterator[types.Params]:
    """Yields parameters of each seed of a run, one at a time."""
    config = models.saved_config(run.path)
    for seed in run.seeds:
        yield params_of(run, config, seed, best=best)


def scorer(path: str | pathlib.Path, *, ensemble: bool = False) -> tokens.Scorer:
    """What scores texts by the reward model of a run, inside the program that writes them.

    Args:
      path: of the run; a population's is its average.
      ensemble: the mean of what all its members predict, at their cost together.
    """
    checkpoint = load(path)
    model = reward_model.on_decoder(gemma.make(checkpoint.config))
    if ensemble:
        return warm.ensemble_scorer(model, warm.stacked([*members(opened.open(path))]))
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


def params_of(
    run: opened.Opened, config: gemma.Config, seed: int | None, *, best: bool = False
) -> types.Params:
    """Reads parameters of one seed, the newest whole ones or the best, and nothing else of it."""
    init = reward_model.on_decoder(gemma.make(config)).init
    return models.trained(run, jax.eval_shape(init, jax.random.key(0)), seed, best=best)
