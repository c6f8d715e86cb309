"""The score of a run, defined once, and the scores it is compared with.

The score after t steps is the mean undiscounted return of the last 100 training episodes that had
ended by then (`recent_return`), or that of the last tenth of these steps (`return_mean`, its mean
over rows of the log), or the latest evaluation (`evaluation`). Published Atari scores are returns
of training too (Vieillard et al. 2020, https://arxiv.org/abs/2007.14430).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kullback.experiments import catalog
from kullback.experiments.report import collect


class Kind(NamedTuple):
    """A kind of score."""

    column: str  # A column of metrics.csv.
    meaning: str
    short: str  # For an axis.
    share: float = 0.0  # Of the steps so far, of whose rows it is the mean; 0: the last known row.


KINDS = {
    "training": Kind("recent_return", "mean return of the last 100 training episodes", "return"),
    "last-tenth": Kind("return_mean", "mean return of the last tenth of the steps", "return", 0.1),
    "evaluation": Kind("evaluation", "mean return of the latest evaluation", "evaluation"),
}
# |b - random|, |human - random|, and the larger of both.
DENOMINATORS = ("baseline", "human", "largest")
CHECKPOINTS = 200  # At most, of a curve.

PerGame = Mapping[str, np.ndarray]  # By environment, [N] or [G, N]: runs last.
KNOWN = {row.name: row for row in catalog.ENVIRONMENTS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Scores of several agents after the same number of steps.

    `scores[label][environment]` is [N], a score a seed, without NaN.
    """

    kind: str  # A key of KINDS.
    steps: int
    used: tuple[collect.Series, ...]
    left_out: tuple[str, ...]  # Why some series are not used, a line each.
    scores: Mapping[str, PerGame]

    @property
    def labels(self) -> tuple[str, ...]:
        """Agents that have a score anywhere."""
        return tuple(self.scores)

    def shared(self) -> tuple[str, ...]:
        """Lists the environments on which every agent has a score: the games of an aggregate."""
        sets = [set(games) for games in self.scores.values()]
        return tuple(sorted(set.intersection(*sets))) if sets else ()

    def per_game(self, label: str, environments: Iterable[str]) -> list[np.ndarray]:
        """Returns the scores of an agent, [N_m] a game."""
        return [self.scores[label][environment] for environment in environments]


def at(series: collect.Series, steps: np.ndarray, column: str, share: float = 0.0) -> np.ndarray:
    """Returns a column's last known value at each of `steps`, [G]; NaN before the first.

    With a `share` of the steps it is the mean of the known values of their last part, if it has
    any.
    """
    values = series.columns.get(column)
    if values is None:
        return np.full(len(steps), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    place = np.searchsorted(series.steps[known], steps, side="right") - 1  # [G]
    if not len(known):
        return np.full(len(steps), np.nan)
    first = np.searchsorted(series.steps[known], (1 - share) * steps, side="right")
    first = np.minimum(first, place) if share else place
    sums = np.concatenate([[0.0], np.cumsum(values[known])])
    means = (sums[place + 1] - sums[first]) / np.maximum(place + 1 - first, 1)
    return np.where(place > first, means, np.where(place >= 0, values[known][place], np.nan))


def check_kind(series: Iterable[collect.Series], kind: str) -> None:
    """Raises ValueError where training returns are not those of whole games."""
    for seed in series:
        flags = collect.protocol(seed.run) if seed.environment.startswith("atari/") else {}
        if kind != "evaluation" and flags.get("life_loss") == "true":
            raise ValueError(
                f"{seed.run.folder}: a training episode is a life there, not a game, so its return "
                "is no score; compare evaluations, by --score evaluation"
            )


def compare(
    series: Sequence[collect.Series], kind: str = "training", steps: int | None = None
) -> Comparison:
    """Compares agents by their scores after a common number of steps.

    Args:
      series: at least one.
      kind: of KINDS.
      steps: the common number; None is the fewest that one of `series` has done. Series that have
        done less are left out, and so are those without a score yet.

    Raises:
      ValueError: if `kind` is unknown, a training episode is no whole game, or no series has done
        that many steps.
    """
    if kind not in KINDS:
        raise ValueError(f"score must be one of {', '.join(KINDS)}, got {kind!r}")
    check_kind(series, kind)
    furthest = max(seed.last for seed in series)
    if steps is not None and not 1 <= steps <= furthest:
        raise ValueError(f"no run has done {steps:,} steps, the furthest has done {furthest:,}")
    common = min(seed.last for seed in series) if steps is None else steps
    used, left_out = [], []
    scores: dict[str, dict[str, list[float]]] = {}
    for seed in series:
        name = f"seed {seed.seed} of {seed.label} on {seed.environment}"
        score = float(at(seed, np.array([common]), KINDS[kind].column, KINDS[kind].share)[0])
        if seed.last < common:
            left_out.append(f"{name}: it has done {seed.last:,} steps")
        elif np.isnan(score):
            left_out.append(f"{name}: it has no {KINDS[kind].meaning} by then")
        else:
            used.append(seed)
            scores.setdefault(seed.label, {}).setdefault(seed.environment, []).append(score)
    return Comparison(
        kind=kind,
        steps=common,
        used=tuple(used),
        left_out=tuple(left_out),
        scores={
            label: {name: np.array(values) for name, values in sorted(games.items())}
            for label, games in sorted(scores.items())
        },
    )


def checkpoints(series: Sequence[collect.Series], end: int | None = None) -> np.ndarray:
    """Returns the steps at which curves of these are read, int64 [G], G <= CHECKPOINTS.

    They are the rows of the shortest series, up to `end`, or up to the last common step.
    """
    end = min(seed.last for seed in series) if end is None else end
    rows = min((seed.steps[seed.steps <= end] for seed in series), key=len)
    if len(rows) == 0 or rows[-1] != end:
        rows = np.append(rows, end)
    places = np.linspace(0, len(rows) - 1, min(len(rows), CHECKPOINTS)).round().astype(int)
    return rows[places]


def curve(
    series: Sequence[collect.Series], steps: np.ndarray, column: str, share: float = 0.0
) -> np.ndarray:
    """Returns a column of several series at checkpoints, [G, N]; see `at`."""
    return np.stack([at(seed, steps, column, share) for seed in series], axis=-1)


def human_normalised(environment: str, scores: Any) -> Any:
    """Returns (score - random) / |human - random|."""
    row = KNOWN[environment]
    if row.human is None or row.random is None:
        raise ValueError(f"{environment} has no human score; see kullback list")
    return (scores - row.random) / abs(row.human - row.random)


def denominator(environment: str, baseline: float, kind: str = "baseline") -> float:
    """Returns the divisor of an improvement over a baseline, in units of score.

    |b - random|, |human - random| or the larger of both.

    Args:
      environment: one with a random score, and, unless `kind` is "baseline", a human one.
      baseline: the baseline's score.
      kind: one of DENOMINATORS.
    """
    row = KNOWN[environment]
    if kind not in DENOMINATORS:
        raise ValueError(f"denominator must be one of {', '.join(DENOMINATORS)}, got {kind!r}")
    if row.random is None or (kind != "baseline" and row.human is None):
        lacking = "random" if row.random is None else "human"
        raise ValueError(f"{environment} has no {lacking} score; see kullback list")
    over_random = abs(baseline - row.random)
    if kind == "baseline" or row.human is None:
        return over_random
    of_human = abs(row.human - row.random)
    return of_human if kind == "human" else max(over_random, of_human)


def has(environment: str, *, human: bool = False) -> bool:
    """Returns whether the random score is known, and the human one if asked for."""
    row = KNOWN.get(environment)
    return row is not None and row.random is not None and not (human and row.human is None)
