"""What training asks of a kind of run: games, language models and reward models answer it.

`games.py`, `language.py` and `preferences.py` implement `Work`; `kinds.py` builds the one that a
plan names. Nothing else knows which it is.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from kullback.core import loops, types
from kullback.experiments import plots

OnTexts = Callable[[int, list[dict[str, Any]]], None]  # Receives learner steps done, and texts.
Abandons = Callable[[], contextlib.AbstractContextManager[Any]]


class Work(Protocol):
    """An agent and all that it learns from; methods with a body are for those that have more."""

    agent: types.Agent  # Its configuration is that of the whole run.
    spec: types.Spec  # What the agent observes and does.
    axes: plots.Axes  # Of the learning curve.
    has_texts: bool  # Whether samples.jsonl is written.
    seeds_together: bool  # Whether one loop runs all seeds; else each has its own, in turn.
    columns: Sequence[str]  # Of metrics.csv, beside those of all runs.

    def loop(
        self, seeds: Sequence[int], on_texts: OnTexts, every: int, abandons: Abandons
    ) -> loops.Loop:
        """Returns the loop of some seeds.

        Args:
          seeds: all of the run's, or one.
          on_texts: receives what the policy samples to learn from.
          every: learner steps, of each so many of which the last one's texts are received.
          abandons: as for `sequences.make`.
        """
        ...

    def details(self) -> dict[str, Any]:
        """Returns what config.json says beside the agent's configuration and the spec."""
        ...

    def notes(self) -> Iterator[str]:
        """Yields lines for who begins or goes on with the run."""
        yield from ()

    def check(self) -> None:
        """Raises ValueError for what does not fit, which is better known before training."""

    def save(self, folder: pathlib.Path) -> None:
        """Writes what stands beside config.json from the beginning."""

    def measures(self, learner: types.LearnerState, steps: int) -> dict[str, float]:
        """Returns values of `columns`, measured at an evaluation."""
        return {}

    def remember(
        self, notes: dict[str, Any], steps: int, measured: Mapping[str, float]
    ) -> str | None:
        """Adds measures to a checkpoint's notes; returns a warning that they give rise to."""

    def texts(self, learner: types.LearnerState, steps: int) -> list[dict[str, Any]]:
        """Returns texts for a reader, JSON-able, at an evaluation and at the end."""
        return []

    def finish(self, folder: pathlib.Path, learner: types.LearnerState) -> None:
        """Makes what a run leaves behind once it is over."""
