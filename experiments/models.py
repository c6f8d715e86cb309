"""Language models on disk: of folders as Hugging Face has them, and of runs."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from kullback import lm
from kullback.core import checkpoints, files, regularizers, trees, types
from kullback.experiments import plan as plans
from kullback.experiments import run_folder, settings
from kullback.lm import (
    chat,
    distillation,
    gemma,
    hugging_face,
    hugging_face_config,
    sharding,
    tokenizer,
)

NOTES = "kullback"  # What we say of a model in the config.json that we export.


class Checkpoint(NamedTuple):
    """A model with its tokenizer, trained or not."""

    config: gemma.Config
    tokenizer: tokenizer.Tokenizer
    params: types.Params | None  # None: drawn when learning begins.
    divergence: str = "kl"  # f of the operator that it was trained with.

    @property
    def info(self) -> distillation.TokenizerInfo:
        """What teacher and student must share."""
        t = self.tokenizer
        return distillation.TokenizerInfo(
            t.vocab_size, t.fingerprint, t.eos_ids, chat.template_fingerprint(t)
        )


def is_run(path: pathlib.Path) -> bool:
    """Whether a folder is of a run of a language model."""
    return (path / "model.json").is_file()


def load(
    path: str | pathlib.Path,
    seed: int | None = None,
    *,
    best: bool = False,
    mesh: sharding.Mesh | None = None,
) -> Checkpoint:
    """The model of a folder as Hugging Face has them, or that a run has trained.

    Args:
      path: of the folder or the run.
      seed: which of a run's seeds; None is the first.
      best: of a run, the checkpoint of the highest evaluation in place of the newest.
      mesh: over which parameters go as they are read; None is one device.

    Raises:
      ValueError: if it is neither, or the run has no such seed, or no checkpoint with a score.
    """
    path = pathlib.Path(path)
    if is_run(path):
        words = tokenizer.load(path / "tokenizer")
        params = _trained(path, seed, best, mesh)
        return Checkpoint(saved_config(path), words, params, algorithm_config(path).operator)
    if seed is not None or best:
        raise ValueError(f"{path} is no run of a language model: it has no seeds and no best")
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{path} is no model: expected a folder with config.json and weights, a run of a "
            f"language model, or a preset ({', '.join(gemma.PRESETS)})"
        )
    homes = sharding.by_path(hugging_face_config.read(path), mesh)
    config, params, _ = hugging_face.load(path, sharding=homes)
    return Checkpoint(config, tokenizer.load(path), params, exported_operator(path))


def exported_operator(path: pathlib.Path) -> str:
    """Name of f of the operator, which `export` noted; models of others have softmax."""
    file = path / "config.json"
    notes = hugging_face_config.read_json(file).get(NOTES, {})
    if not isinstance(notes, dict) or not isinstance(notes.get("divergence", ""), str):
        raise ValueError(f"{file}: {NOTES!r} must be an object with a divergence, got {notes!r}")
    name = notes.get("divergence", "kl")
    try:
        return regularizers.named(name).name
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _trained(
    path: pathlib.Path, seed: int | None, best: bool, mesh: sharding.Mesh | None
) -> types.Params:
    """The newest whole parameters of a run, or its best, and nothing else of it."""
    plan = plans.Plan.from_json(run_folder.RunFolder(path).config()["plan"])
    seed = plan.seed if seed is None else seed
    seeds = range(plan.seed, plan.seed + plan.num_seeds)
    if seed not in seeds:
        raise ValueError(f"{path} has seeds {seeds[0]} to {seeds[-1]}, not {seed}")
    part = path / f"seed_{seed}"
    folder = run_folder.RunFolder(part if part.is_dir() else path).checkpoints
    like = {"learner": {"params": sharding.shapes(saved_config(path), mesh)}}
    if not best:
        return checkpoints.restore_latest(folder, like, part=True)[0]["learner"]["params"]
    step = checkpoints.best_step(folder)
    if step is None:
        raise ValueError(
            f"{folder} has no checkpoint with a score: train with --eval-every, or take the newest"
        )
    return checkpoints.restore(folder, step, like, part=True)[0]["learner"]["params"]


def algorithm_config(path: pathlib.Path) -> Any:
    """The configuration of the algorithm of a run, by its plan."""
    plan = plans.Plan.from_json(run_folder.RunFolder(path).config()["plan"])
    return settings.apply(lm.ALGORITHMS[plan.agent].presets(plan.family), plan.settings)


def save(checkpoint: Checkpoint, folder: pathlib.Path) -> None:
    """Writes model and tokenizer, without parameters, beside the config.json of a run."""
    shape = dataclasses.asdict(checkpoint.config)
    files.atomic_write_text(folder / "model.json", json.dumps(shape, indent=2))
    tokenizer.save(checkpoint.tokenizer, folder / "tokenizer")


def saved_config(home: pathlib.Path) -> gemma.Config:
    """The model's shape as `save` wrote it."""
    values = json.loads((home / "model.json").read_text())
    return gemma.Config(**{**values, "eos_ids": tuple(values["eos_ids"])})


def fingerprint(params: types.Params) -> str:
    """SHA-256 of names, shapes and numbers of parameters."""
    digest = hashlib.sha256()
    for name, leaf in sorted(trees.named_leaves(params).items()):
        digest.update(f"{name} {trees.describe(name, leaf)}".encode())
        digest.update(np.ascontiguousarray(trees.to_numpy(leaf)).tobytes())
    return digest.hexdigest()


def export(path: str | pathlib.Path, out: pathlib.Path, seed: int | None = None) -> None:
    """Writes the newest model of a run as a folder that Hugging Face's transformers load.

    Its operator goes with it, in a key of config.json that others pass over.
    """
    checkpoint = load(path, seed)
    words = pathlib.Path(path) / "tokenizer"
    hugging_face.save(
        out,
        checkpoint.config,
        checkpoint.params,
        tokenizer_files=sorted(words.iterdir()),
        extra={NOTES: {"divergence": checkpoint.divergence}},
    )
