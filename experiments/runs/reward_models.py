"""Reward models of runs: loading them, and their rewards of texts and of pairs of answers."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kullback.core import finite, processes, types
from kullback.environments import tokens
from kullback.experiments.runs import model_files, models, opened, sights
from kullback.lm import (
    batches,
    encoded,
    forms,
    gemma_config,
    interleaved,
    narrow_weights,
    preferences,
    quantisation,
    reward_model,
    sharding,
    warm,
)
from kullback.lm.tokenizer import Tokenizer

ROWS = 32  # Sequences in a batch.


def load(
    path: str | pathlib.Path,
    seed: int | None = None,
    *,
    best: bool = False,
    modality: forms.Modality | None = None,
) -> model_files.Checkpoint:
    """Reads the reward model of a run, with parameters as `reward_model.on_decoder` has them.

    Args:
      path: of the run.
      seed, best, modality: as for `models.of_run`.

    Raises:
      ValueError: if it is no run of reward models, or has no such seed or checkpoint.
    """
    return models.of_run(opened_run(path), seed, best=best, modality=modality)


def opened_run(path: str | pathlib.Path) -> opened.Opened:
    """Opens a run of reward models.

    Raises:
      ValueError: if it is no such run.
    """
    run = opened.find(path)
    if run is None or run.kind != "preferences":
        raise ValueError(f"{path} is no run of a reward model; train one on tokens/preferences:...")
    return run


def scorer(
    path: str | pathlib.Path,
    *,
    ensemble: bool = False,
    storage: gemma_config.Storage = "float32",
    mesh: sharding.Mesh | None = None,
    images: encoded.Images | None = None,
) -> tokens.Scorer:
    """Returns a scorer of texts by the reward model of a run, for use in a compiled program.

    Args:
      path: of the run; a population scores by the average of its parameters.
      ensemble: scores by the mean of all members' rewards instead, at the cost of all of them.
      storage: format of the matrices in memory; of an ensemble they are float32.
      mesh: over which the parameters are sharded; None is one device, as of an ensemble.
      images: by which the policy sees, whose features it reads; None: of texts alone.

    Raises:
      ValueError: for a policy that sees, and a reward model that does not, or by another encoder.
    """
    run = opened_run(path)
    if images is not None and not run.plan.images:
        raise ValueError(
            f"reward-model:{path} was trained without --images, and would judge answers to images "
            "that it does not see"
        )
    modality = None if images is None else forms.IMAGES
    checkpoint = models.of_run(run, mesh=mesh, modality=modality)
    if images is not None:
        sights.check_shared(f"reward-model:{path}", checkpoint.images, "the policy", images)
    model = reward_model.on_decoder(checkpoint.model)
    if ensemble:
        return warm.ensemble_scorer(
            model, warm.stacked([*models.members(run, images=images is not None)])
        )
    params: Any = sharding.placed(checkpoint.config, checkpoint.params, mesh)
    scheme = quantisation.of_storage(storage)
    decoder = narrow_weights.narrowed(params["decoder"], scheme)
    return reward_model.scorer(model, {**params, "decoder": decoder})


def over_pairs(
    program: Callable[..., jax.Array],
    params: types.Params,
    pairs: list[preferences.Pair],
    width: int,
    pad_id: int,
    features: batches.Features | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the results of a compiled program on chosen and rejected answers, [n, ...] each.

    Args:
      program: (params, sequences of B rows) -> [B, ...].
      params: of the program's model.
      pairs: n of them.
      width: to which answers are padded.
      pad_id: of the tokenizer.
      features: of images, if pairs have some.

    Raises:
      ValueError: without pairs, or where a number is NaN.
    """
    if not pairs:
        raise ValueError("no pair to judge")
    columns: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for begin in range(0, len(pairs), ROWS):
        # The last batch is filled up, so that the program is compiled for one size.
        batch = [pairs[(begin + i) % len(pairs)] for i in range(ROWS)]
        padded = preferences.pad(batch, width, pad_id, features)
        for column, sequences in zip(columns, padded, strict=True):
            column.append(np.asarray(processes.fetch(program(params, sequences))))
    chosen, rejected = (np.concatenate(column)[: len(pairs)] for column in columns)
    finite.require((chosen, rejected), params, "what the model makes of pairs")
    return chosen, rejected


def line(
    tokenizer: Tokenizer, pair: preferences.Pair, chosen: Any, rejected: Any
) -> dict[str, Any]:
    """Returns a pair and its rewards for a reader, JSON-able."""
    files = interleaved.files(pair.chosen.media)
    return {
        "prompt": tokenizer.decode(pair.chosen.prompt),
        **({"images": files} if files else {}),
        "chosen": tokenizer.decode(pair.chosen.completion),
        "rejected": tokenizer.decode(pair.rejected.completion),
        "reward_chosen": float(chosen),
        "reward_rejected": float(rejected),
    }
