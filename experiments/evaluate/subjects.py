"""The model and the task of an evaluation, as a user names them."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from kullback.experiments.runs import model_files, models, opened, text_work
from kullback.lm import data, forms, media_rows, splits, tasks, tuning
from kullback.lm.control_tokens import Reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained model, and the task on whose held-out examples it is evaluated."""

    path: pathlib.Path  # Of the run or the weights; or the name of a published model.
    run: opened.Opened | None = None  # None: weights.
    task_name: str = ""  # "tokens/..."; "" is the run's own.
    seed: int | None = None  # As for `models.load`.
    best: bool = False  # Likewise.
    control_tokens: Reading | None = None  # How a text that spells them is read; None: as recorded.
    images: bool = False  # Whether rows have the images that they name; a run's have its own media.
    crops: bool | None = None  # Whether long images are given with crops; None: as recorded.
    model_flags: Sequence[str] = ()  # "field=value" each, as of `Checkpoint.computing`.
    # Values for max_prompt_length, max_new_tokens and overlong in place of the run's, or of
    # `tuning.Config`'s defaults.
    lengths: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def learning(self) -> tuning.Config:
        """Settings of the run, or the defaults of the task, with the lengths that are asked for."""
        if self.run is not None:
            settings = models.algorithm_config(self.run).learning
        else:
            settings = dataclasses.replace(tuning.Config(), **tasks.lengths(self.task_name))
        return dataclasses.replace(settings, **self.lengths)

    @functools.cached_property
    def task(self) -> tasks.Task:
        """The task, whose held-out examples are those of the run's own rule.

        Raises:
          ValueError: for weights without a task.
        """
        if self.run is not None:
            rule = splits.rule_of(self.run.config)
            return tasks.make(self.task_name or self.run.plan.environment, rule=rule)
        if not self.task_name:
            raise ValueError(
                f"{self.path} is no run, which would name its task: add one, tokens/..."
            )
        return tasks.make(self.task_name, rule=splits.RULE)

    @functools.cached_property
    def checkpoint(self) -> model_files.Checkpoint:
        """The model, with its parameters."""
        if self.run is None:
            flags, modality = self.model_flags, forms.IMAGES if self.images else None
            loaded = models.load(
                self.path, self.seed, best=self.best, flags=flags, modality=modality
            )
            recorded = "text"
        else:
            modality = forms.IMAGES if self.images else self.run.plan.modality
            read = models.of_run(self.run, self.seed, best=self.best, modality=modality)
            loaded = read.computing(self.model_flags, str(self.path))
            recorded = self.run.plan.control_tokens
        return loaded.cutting(self.crops).reading(self.control_tokens or recorded)

    @property
    def rows(self) -> media_rows.Settings | None:
        """How rows with media are read; None reads text alone."""
        sense = self.checkpoint.sense
        return None if sense is None else sense.rows

    @property
    def limits(self) -> data.Limits:
        """Lengths that examples must fit."""
        return text_work.limits(self.learning, self.checkpoint.config)
