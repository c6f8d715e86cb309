"""The protocol by which all kinds of runs are trained: games, language models, reward models.

`games.py`, `language.py` and `preferences.py` implement `Work`; `kinds.py` builds the one that a
plan names. Training knows nothing else of the kind.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from kullback.core import loops, types
from kullback.experiments import plots
from kullback.experiments.runs import resolved, schedules

MakeAgent = Callable[[types.Spec], types.Agent]
MakeEnvironment = Callable[[int], Any]  # Number of rows -> environment of either kind.
OnTexts = Callable[[int, list[dict[str, Any]]], None]  # (learner steps done, texts)
Abandons = Callable[[], contextlib.AbstractContextManager[Any]]


class Epoch(NamedTuple):
    """One pass over what a language run learns from."""

    num_items: int  # Examples, packed rows, pairs, or prompts of reinforcement learning.
    noun: str  # For them, "examples".
    per_step: int  # Items of a learner step.

    def steps(self, epochs: int) -> int:
        """Returns the learner steps in which each item comes at least `epochs` times.

        Batches are full, so that the last may begin one epoch more.
        """
        return -(-epochs * self.num_items // self.per_step)

    def in_steps(self, named: resolved.Resolved) -> resolved.Resolved:
        """Returns a run with its plan's epochs as steps, and what depends on their number.

        Raises:
          ValueError: without items, for more steps than a run may have, or a schedule that does
            not fit them.
        """
        plan = named.plan
        if not self.num_items:
            raise ValueError(
                f"no {self.noun} of {plan.environment} to make batches of; was everything dropped?"
            )
        plan = dataclasses.replace(plan, steps=self.steps(plan.epochs), epochs=0)
        config = schedules.planned(plan, named.config)
        notes = (*named.notes, *schedules.notes(plan, config))
        return dataclasses.replace(named, plan=plan, config=config, notes=notes)

    def describe(self, epochs: int) -> str:
        """Returns a line that says how many steps so many epochs are."""
        return (
            f"{epochs:,} epoch{'s' if epochs > 1 else ''} of {self.num_items:,} {self.noun}, "
            f"{self.per_step:,} a step: {self.steps(epochs):,} steps"
        )


class Work(Protocol):
    """An agent and all that it learns from; methods with a body may be left out."""

    agent: types.Agent  # With the configuration of the whole run.
    spec: types.Spec  # The agent's observations and actions.
    axes: plots.Axes  # The learning curve's.
    has_texts: bool  # Whether samples.jsonl is written.
    seeds_together: bool  # Whether one loop runs all seeds; else each has its own, in turn.
    columns: Sequence[str]  # Columns of metrics.csv besides those of all runs.
    epoch: Epoch | None = None  # One pass over what is learnt from, if the plan has epochs.

    def loop(
        self, seeds: Sequence[int], on_texts: OnTexts, every: int, abandons: Abandons
    ) -> loops.Loop:
        """Returns the loop of some seeds.

        Args:
          seeds: all of the run's, or one.
          on_texts: receives some texts that the policy samples to learn from.
          every: learner steps of an interval, in which `on_texts` is called once.
          abandons: as for `sequences.make`.
        """
        ...

    def details(self) -> dict[str, Any]:
        """Returns further facts for config.json."""
        ...

    def notes(self) -> Iterator[str]:
        """Yields lines that are printed when the run begins or goes on."""
        yield from ()

    def beginning(self) -> Iterator[str]:
        """Yields lines that are printed to standard error when a new run begins."""
        yield from ()

    def check(self) -> None:
        """Raises ValueError for a configuration that would fail during training."""

    def save(self, folder: pathlib.Path) -> None:
        """Writes the files that stand beside config.json from the beginning."""

    def keep(self, folder: pathlib.Path) -> None:
        """Keeps in the folder of a run, or of a seed, what the loop is told from outside.

        Raises:
          ValueError: if what it recorded before is damaged.
        """

    def measures(self, learner: types.LearnerState, steps: int) -> dict[str, float]:
        """Returns values of `columns`, measured at an evaluation."""
        return {}

    def remember(
        self, notes: dict[str, Any], steps: int, measured: Mapping[str, float]
    ) -> str | None:
        """Adds measures to a checkpoint's notes; returns a warning about them, or None."""

    def watch(
        self, notes: dict[str, Any], steps: int, row: Mapping[str, float]
    ) -> tuple[dict[str, float], str | None]:
        """Judges a row of one seed, with a checkpoint's notes of those before, which it may change.

        Returns further columns of the row, and a warning, or None.
        """
        return {}, None

    def texts(self, learner: types.LearnerState, steps: int) -> list[dict[str, Any]]:
        """Returns texts for a reader, JSON-able, at an evaluation and at the end."""
        return []

    def finish(self, folder: pathlib.Path, learner: types.LearnerState) -> None:
        """Writes the files that a finished run leaves behind."""
