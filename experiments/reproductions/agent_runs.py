"""Runs of agents, several seeds an arm, their curves, and numbers of these.

A part is a run folder under way, so that what was interrupted goes on within it, bit by bit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kullback import environments
from kullback.core import ranges
from kullback.experiments import catalog
from kullback.experiments.reproductions import study
from kullback.experiments.runs import run_folder, training

TAIL = 0.1  # Of a run's steps, over which `final` averages.
LEARNT = 5.0  # Times the return of a random policy; under it no claim is judged.
# Agent steps a second on 2 CPU cores, of several seeds together where they are compiled.
RATES = {
    "minatar": 6_500.0,
    "toy": 20_000.0,
    "gym": 1_500.0,
    "atari": 180.0,
    # Agents on MinAtar whose loss costs more.
    "iqn": 800.0,
    "m-iqn": 800.0,
    "rainbow": 1_500.0,
    "mo-dqn": 2_500.0,
}
COLUMNS = ("return_mean", "action_gap", "policy_entropy", "loss", "wall_seconds")  # Kept.


class Arm(NamedTuple):
    """A run of several seeds, under a name of its own in tables and figures."""

    label: str
    agent: str
    environment: str
    seeds: int  # How many, from first_seed on.
    steps: int  # Agent steps of each.
    settings: tuple[str, ...] = ()  # field=value, as `kullback train --set` takes them.
    log_every: int | None = None  # As the plan has it, if None.
    first_seed: int = 0

    @property
    def part(self) -> str:
        """Name of the part, a file's."""
        return f"{self.label}-{self.environment}".replace("/", "-").replace(" ", "-")


def arms(
    kinds: Mapping[str, Sequence[str]],
    games: Sequence[str],
    seeds: int,
    steps: int,
    first_seed: int,
) -> list[Arm]:
    """Returns an arm a game and kind, in this order.

    Args:
      kinds: an agent and its settings, by label.
      games: environments.
      seeds: of each arm.
      steps: of each seed.
      first_seed: the lowest.
    """
    return [
        Arm(label, agent, game, seeds, steps, tuple(settings), first_seed=first_seed)
        for game in games
        for label, (agent, *settings) in kinds.items()
    ]


def check(config: Any, *games: str) -> None:
    """Checks the sizes of a study, and that of games the return of a random policy is known.

    Raises:
      ValueError: for one that is refused.
    """
    ranges.at_least(1, config, "seeds", "steps")
    ranges.at_least(0, config, "first_seed")
    for game in games:
        random_score(game)


def seconds_of(arms: Sequence[Arm]) -> float:
    """Estimates how long they take on 2 CPU cores."""

    def rate(arm: Arm) -> float:
        family = arm.environment.split("/")[0]
        return RATES.get(arm.agent, RATES["minatar"]) if family == "minatar" else RATES[family]

    return sum(arm.seeds * arm.steps / rate(arm) for arm in arms)


def train(arm: Arm, journal: study.Journal) -> study.Rows:
    """Runs an arm, or goes on with it, in a run folder among the parts.

    Returns:
      Rows of its metrics.csv: label, environment, seed, steps and what `COLUMNS` names.
    """
    path = journal.path(f"{arm.part}.run")
    # Seeds of a host loop run in turn, those of a compiled one together.
    is_compiled = environments.is_compiled(arm.environment)

    def tick(row: Mapping[str, Any]) -> None:
        steps = row["steps"]
        done = (
            steps * arm.seeds if is_compiled else (row["seed"] - arm.first_seed) * arm.steps + steps
        )
        journal.tick(done, row["recent_return"], "return")

    fields: dict[str, Any] = {} if arm.log_every is None else {"log_every": arm.log_every}
    if path.exists():
        training.resume(path, quiet=True, callback=tick)
    else:
        training.train(
            arm.agent,
            arm.environment,
            out=path,
            quiet=True,
            callback=tick,
            steps=arm.steps,
            seed=arm.first_seed,
            num_seeds=arm.seeds,
            settings=arm.settings,
            checkpoint_every=max(arm.steps // 10, 1),
            **fields,
        )
    return [
        {
            "label": arm.label,
            "environment": arm.environment,
            "seed": int(row["seed"]),
            "steps": int(row["steps"]),
            **{name: _number(row[name]) for name in COLUMNS if name in row},
        }
        for row in run_folder.RunFolder(path).rows()
    ]


def _number(text: str) -> float | None:
    """Returns a number; None, which JSON knows, where there is none."""
    value = float(text)
    return value if math.isfinite(value) else None


class Runs:
    """The curves of all arms, by label and environment."""

    def __init__(self, rows: study.Rows):
        self._rows: dict[tuple[str, str], study.Rows] = {}
        for row in rows:
            self._rows.setdefault((row["label"], row["environment"]), []).append(row)

    @property
    def environments(self) -> list[str]:
        """Names, in the order of the arms."""
        return list(dict.fromkeys(environment for _, environment in self._rows))

    def labels(self, environment: str) -> list[str]:
        """Returns the labels of the arms that ran there, in their order."""
        return [label for label, ran_in in self._rows if ran_in == environment]

    def curve(
        self, label: str, environment: str, column: str = "return_mean"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns steps, [T], and values, [seeds, T], of one arm; NaN where none was measured."""
        rows = self._rows[label, environment]
        seeds = sorted({row["seed"] for row in rows})
        values = [[row[column] for row in rows if row["seed"] == seed] for seed in seeds]
        steps = np.asarray([row["steps"] for row in rows if row["seed"] == seeds[0]])
        return steps, np.asarray(values, np.float64)

    def measure(self, measure: "Measure", label: str, environment: str) -> np.ndarray:
        """Returns one number a run, [seeds]."""
        return measure.of(*self.curve(label, environment, measure.column))


class Measure(NamedTuple):
    """A number of a run."""

    column: str  # Of its log.
    of: Callable[[np.ndarray, np.ndarray], np.ndarray]  # Steps [T], values [seeds, T] -> [seeds].


def final(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns means over the last tenth of the steps, [seeds]; else the last that is known."""
    is_tail = steps > (1 - TAIL) * steps[-1]

    def of_seed(row: np.ndarray) -> float:
        known = np.isfinite(row)
        chosen = row[known & is_tail] if np.any(known & is_tail) else row[known][-1:]
        return float(np.mean(chosen)) if len(chosen) else float("nan")

    return np.array([of_seed(row) for row in values])


END = Measure("return_mean", final)
SCORE = Measure("return_mean", lambda steps, values: np.nanmean(values, axis=1))  # Of all of it.
GAP = Measure("action_gap", final)
ENTROPY = Measure("policy_entropy", final)


def has_learnt(runs: Runs, environment: str, label: str = "dqn") -> bool:
    """Returns whether an arm ends at five times the return of a random policy or more."""
    score = float(runs.measure(END, label, environment).mean())
    return score >= LEARNT * random_score(environment)


def random_score(environment: str) -> float:
    """Returns the mean return of a random policy, from the catalogue.

    Raises:
      ValueError: where it lists none.
    """
    score = next((r.random for r in catalog.ENVIRONMENTS if r.name == environment), None)
    if score is None:
        raise ValueError(f"no score of a random policy is known for {environment}")
    return score
