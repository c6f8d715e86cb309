"""Constants of a run of adapters beside its base: the one A of models that are averaged, and ids.

Every A is in a file of the run; the ids of tokens whose rows learn are those of its tokenizer.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from kullback.core import folders, types, weights
from kullback.experiments.runs import plans
from kullback.lm import gemma, lora
from kullback.lm.tokenizer import Tokenizer, id_of

SHARED = "shared_a.safetensors"  # Beside config.json, where `lora.shared_a` is set.


def check_base(plan: plans.Plan) -> None:
    """Raises ValueError if a plan's adapters would be of weights that are drawn."""
    if plan.model in gemma.PRESETS:
        raise ValueError(
            f"adapters are of a trained model, a folder or a run, and the weights of the preset "
            f"{plan.model} are drawn: --model DIR, or lora.rank=0"
        )


def shared(
    config: gemma.Config,
    settings: lora.Config,
    tokenizer: Tokenizer,
    seed: int,
    home: pathlib.Path | None,
) -> types.Params:
    """Returns the constants beside the base that the models of a run share; maybe none.

    They are every A, if the models have one, and the ids of tokens whose rows learn.

    Args:
      config: of the base.
      settings: of the adapters.
      tokenizer: of the base.
      seed: of the run, by which a new one draws every A.
      home: the folder of a run that goes on, which has them; None for a new one.

    Raises:
      ValueError: as `lora.shared_factors` and `read` do.
    """
    ids = _row_ids(settings, tokenizer)
    if not (settings and settings.shared_a):
        return ids
    if home is not None:
        return {**_factors(home, config, settings), **ids}
    return {**jax.jit(_program(config, settings))(jax.random.key(seed)), **ids}


def save(folder: pathlib.Path, constants: types.Params) -> None:
    """Writes every A of what `shared` gave into the folder of a run."""
    factors = {name: x for name, x in constants.items() if name != lora.ROWS}
    if factors:
        weights.export_params(folder / SHARED, factors)


def read(
    folder: pathlib.Path,
    config: gemma.Config,
    settings: lora.Config,
    tokenizer: Callable[[], Tokenizer],
) -> types.Params:
    """Returns what `shared` gave to a run.

    Args:
      folder: of the run.
      config: of the base.
      settings: of the adapters.
      tokenizer: reads that of the run, if it is needed.

    Raises:
      ValueError: if every A is missing, damaged or of another model; if a token to train is none.
    """
    ids = _row_ids(settings, tokenizer()) if settings.train_tokens else {}
    return {**(_factors(folder, config, settings) if settings.shared_a else {}), **ids}


def _factors(folder: pathlib.Path, config: gemma.Config, settings: lora.Config) -> types.Params:
    like = jax.eval_shape(_program(config, settings), jax.random.key(0))
    present = folders.present(folder, (SHARED,))
    if SHARED not in present:
        raise ValueError(f"{folder / SHARED} is missing: the one A of all of the run's adapters")
    return weights.import_params(present[SHARED], like)


def _row_ids(settings: lora.Config, tokenizer: Tokenizer) -> types.Params:
    """Returns the ids of the tokens whose rows learn, as `lora.row_ids` does."""
    ids: dict[int, int | str] = {}
    for token in settings.train_tokens:
        try:
            place = id_of(tokenizer, token)
        except ValueError as error:
            raise ValueError(f"lora.train_tokens: {error}") from None
        if place in ids:
            raise ValueError(
                f"lora.train_tokens has {ids[place]} and {token}, both of id {place}; name it once"
            )
        ids[place] = token
    return lora.row_ids(tuple(ids))


def _program(config: gemma.Config, settings: lora.Config) -> Any:
    return functools.partial(lora.shared_factors, config, settings)
