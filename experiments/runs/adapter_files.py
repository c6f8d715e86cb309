"""Files of a run of adapters beside its checkpoints: the one A of models that are averaged."""

import functools
import pathlib
from typing import Any

import jax

from kullback.core import folders, types, weights
from kullback.experiments.runs import plans
from kullback.lm import gemma, lora

SHARED = "shared_a.safetensors"  # Beside config.json, where `lora.shared_a` is set.


def check_base(plan: plans.Plan) -> None:
    """Raises ValueError if a plan's adapters would be of weights that are drawn."""
    if plan.model in gemma.PRESETS:
        raise ValueError(
            f"adapters are of a trained model, a folder or a run, and the weights of the preset "
            f"{plan.model} are drawn: --model DIR, or lora.rank=0"
        )


def shared(
    config: gemma.Config, settings: lora.Config, seed: int, home: pathlib.Path | None
) -> types.Params:
    """Returns every A that the models of a run share; an empty tree if they share none.

    Args:
      config: of the base.
      settings: of the adapters.
      seed: of the run, by which a new one draws them.
      home: the folder of a run that goes on, which has them; None for a new one.

    Raises:
      ValueError: as `lora.shared_factors` and `read` do.
    """
    if not (settings and settings.shared_a):
        return {}
    if home is not None:
        return read(home, config, settings)
    return jax.jit(_program(config, settings))(jax.random.key(seed))


def save(folder: pathlib.Path, factors: types.Params) -> None:
    """Writes what `shared` gave into the folder of a run."""
    if factors:
        weights.export_params(folder / SHARED, factors)


def read(folder: pathlib.Path, config: gemma.Config, settings: lora.Config) -> types.Params:
    """Reads what `save` wrote.

    Raises:
      ValueError: if the file is missing, damaged or of another model.
    """
    if not (settings and settings.shared_a):
        return {}
    like = jax.eval_shape(_program(config, settings), jax.random.key(0))
    present = folders.present(folder, (SHARED,))
    if SHARED not in present:
        raise ValueError(f"{folder / SHARED} is missing: the one A of all of the run's adapters")
    return weights.import_params(present[SHARED], like)


def _program(config: gemma.Config, settings: lora.Config) -> Any:
    return functools.partial(lora.shared_factors, config, settings)
