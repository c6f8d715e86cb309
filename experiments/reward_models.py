"""Reward models on disk: of runs, by the mean of whose seeds a population is one model."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from kullback import lm
from kullback.core import checkpoints, types
from kullback.environments import tokens
from kullback.experiments import models, run_folder
from kullback.experiments import plan as plans
from kullback.lm import gemma, preferences, reward_model, tokenizer, warm

ROWS = 32  # Sequences at once.


def is_run(path: str | pathlib.Path) -> bool:
    """Whether a folder is of a run of reward models."""
    path = pathlib.Path(path)
    if not models.is_run(path):
        return False
    entry = lm.ALGORITHMS.get(run_folder.RunFolder(path).config()["plan"]["agent"])
    return entry is not None and entry.reads_pairs


def is_population(path: pathlib.Path) -> bool:
    """Whether the models of a run's seeds are to be averaged."""
    return isinstance(models.algorithm_config(path), warm.Config)


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
    path = pathlib.Path(path)
    if not is_run(path):
        raise ValueError(f"{path} is no run of a reward model; train one on tokens/preferences:...")
    if seed is None and is_population(path):
        params = warm.average(members(path, best=best))
    else:
        params = params_of(path, decoder_of(path).config, seed, best=best)
    return decoder_of(path)._replace(params=params)


def members(path: pathlib.Path, *, best: bool = False) -> Iterator[types.Params]:
    """Parameters of each seed of a run, one at a time."""
    config = models.saved_config(path)
    for seed in seeds_of(path):
        yield params_of(path, config, seed, best=best)


def scorer(path: str | pathlib.Path, *, ensemble: bool = False) -> tokens.Scorer:
    """What scores texts by the reward model of a run, inside the program that writes them.

    Args:
      path: of the run; a population's is its average.
      ensemble: the mean of what all its members predict, at their cost together.
    """
    checkpoint = load(path)
    model = reward_model.on_decoder(gemma.make(checkpoint.config))
    if ensemble:
        return warm.ensemble_scorer(model, warm.stacked([*members(pathlib.Path(path))]))
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
      ValueError: without pairs.
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


def decoder_of(path: pathlib.Path) -> models.Checkpoint:
    """Shape and tokenizer of the decoder of a run, without parameters."""
    return models.Checkpoint(models.saved_config(path), tokenizer.load(path / "tokenizer"), None)


def seeds_of(path: pathlib.Path) -> range:
    """Those of a run."""
    plan = plans.Plan.from_json(run_folder.RunFolder(path).config()["plan"])
    return range(plan.seed, plan.seed + plan.num_seeds)


def folder_of(path: pathlib.Path, seed: int | None = None) -> pathlib.Path:
    """Where checkpoints of a seed of a run stand; None is the first."""
    seeds = seeds_of(path)
    if seed is not None and seed not in seeds:
        raise ValueError(f"{path} has seeds {seeds[0]} to {seeds[-1]}, not {seed}")
    part = path / f"seed_{seeds[0] if seed is None else seed}"
    return run_folder.RunFolder(part if part.is_dir() else path).checkpoints


def params_of(
    path: pathlib.Path, config: gemma.Config, seed: int | None, *, best: bool = False
) -> types.Params:
    """Parameters of one seed, the newest whole ones or the best, and nothing else of the run."""
    init, folder = reward_model.on_decoder(gemma.make(config)).init, folder_of(path, seed)
    like = {"learner": {"params": jax.eval_shape(init, jax.random.key(0))}}
    if not best:
        return checkpoints.restore_latest(folder, like, part=True)[0]["learner"]["params"]
    step = checkpoints.best_step(folder)
    if step is None:
        raise ValueError(f"{folder} has no checkpoint with a score: train with --eval-every")
    return checkpoints.restore(folder, step, like, part=True)[0]["learner"]["params"]
