"""Parameters that a run of a language model or a reward model has learnt, or adapters of a base.

The base itself is read by models.py, which may be a run, too.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from kullback.core import checkpoints, folders, trees, types
from kullback.experiments.runs import adapter_files, model_files, opened, plans, resolved
from kullback.lm import adapters, gemma, lora, quantisation, reward_model, sharding, tokenizer


def adapters_of(run: opened.Opened) -> lora.Config:
    """Returns the settings of a run's adapters; without any, those of rank 0."""
    return lora.Config() if run.kind == "games" else resolved.of(run).config.learning.lora


def has_base(run: opened.Opened) -> bool:
    """Returns whether a run reads what it began with anew: a base, or what images are seen by."""
    return bool(adapters_of(run)) or run.plan.images


def beside(run: opened.Opened, base: str) -> opened.Opened:
    """Returns a run whose base is elsewhere now; "" leaves it as it is.

    Raises:
      ValueError: if the run has none.
    """
    if not base:
        return run
    if not has_base(run):
        raise ValueError(f"{run.path} has no adapters, and no use for a base, got {base}")
    return dataclasses.replace(run, plan=dataclasses.replace(run.plan, model=base))


def check_bases(run: opened.Opened) -> None:
    """Raises ValueError if the base of a run's base, and so on, is the run itself."""
    seen: list[pathlib.Path] = []
    at: opened.Opened | None = run
    while at is not None and has_base(at):
        if at.path.resolve() in seen:
            raise ValueError(f"{run.path}: {at.path} is its own base")
        seen.append(at.path.resolve())
        at = opened.find(at.plan.model.partition(plans.ADAPTER)[0])


def shapes(run: opened.Opened, config: gemma.Config, mesh: sharding.Mesh | None = None) -> Any:
    """Returns the shapes of what a run has learnt: all parameters, or adapters (and a head)."""
    if run.kind == "language":
        return sharding.shapes(config, mesh, adapters_of(run))
    model = adapters.adapted(gemma.make(config), adapters_of(run))
    leaves = jax.eval_shape(reward_model.on_decoder(model).init, jax.random.key(0))
    return sharding.annotated(config, leaves, mesh)


def read(run: opened.Opened, like: Any, seed: int | None, *, best: bool = False) -> types.Params:
    """Reads nothing but the parameters of a seed's newest whole checkpoint, or of its best."""
    folder, tree = run.folder(seed).checkpoints, {"learner": {"params": like}}
    saved, _, _ = checkpoints.restore_latest(folder, tree, part=True, best=best)
    return saved["learner"]["params"]


def whole(
    run: opened.Opened, config: gemma.Config, base: types.Params, learnt: types.Params
) -> types.Params:
    """Returns the parameters of a model: what was learnt, or its base with adapters merged.

    Where it was learnt for a format of few bits, they are the numbers that the format holds.
    """
    settings = adapters_of(run)
    scheme = resolved.of(run).config.learning.scheme
    if not settings:
        return quantisation.held(learnt, scheme) if scheme else learnt
    scheme = scheme or quantisation.of_storage(run.plan.frozen)
    base = quantisation.held(base, scheme) if scheme else base
    shared = _shared(run, config, settings)
    if run.kind == "language":
        return lora.merged(config, settings, base, trees.joined(shared, learnt))
    factors = trees.joined(shared, learnt["decoder"])
    return {**learnt, "decoder": lora.merged(config, settings, base, factors)}


def factors(run: opened.Opened, config: gemma.Config, seed: int | None = None) -> types.Params:
    """Returns the adapters of a seed of a run of a language model, as `lora.init` draws them.

    Raises:
      ValueError: if it is no such run, or has no adapters.
    """
    if run.kind != "language":
        raise ValueError(f"{run.path} is no run of a language model, whose adapters are written")
    if not (settings := adapters_of(run)):
        raise ValueError(f"{run.path} has no adapters: it has learnt all weights")
    shared = _shared(run, config, settings)
    return trees.joined(shared, read(run, shapes(run, config), seed))


def _shared(run: opened.Opened, config: gemma.Config, settings: lora.Config) -> types.Params:
    """Returns constants beside the base that the models of a run share."""
    folder = functools.partial(folders.subfolder, run.path, model_files.TOKENIZER)
    return adapter_files.read(run.path, config, settings, lambda: tokenizer.load(folder()))
