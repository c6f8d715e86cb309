"""The section on pairs of agents: whether one scores above another, over the games of both.

Each pair has its own games and number of steps, so that an agent which ran on two games, or for
half of the steps, takes nothing from the others. Only whole runs count: of a sweep that is under
way, what is finished.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from kullback.experiments import statistics
from kullback.experiments.report import collect, scores
from kullback.experiments.report.chapters import Chapter

SEEN = 2.80 / 1.96  # Power 0.8 at a two-sided 5%, in half widths of a 95% interval.


class Pair(NamedTuple):
    """Two agents by their names in the report; whether the first scores above the second."""

    agent: str
    over: str

    def __str__(self) -> str:
        return f"{self.agent} over {self.over}"


def parse(text: str) -> Pair:
    """Reads "AGENT:AGENT".

    Raises:
      ValueError: if it is none.
    """
    agent, colon, over = text.partition(":")
    if not (agent and colon and over) or agent == over:
        raise ValueError(f"--compare takes AGENT:AGENT, such as m-dqn:dqn, got {text!r}")
    return Pair(agent, over)


def pairs(labels: Sequence[str], baseline: str | None, declared: Sequence[Pair]) -> list[Pair]:
    """Returns pairs that are declared, then all others over the baseline; each once."""
    others = [Pair(label, baseline) for label in labels if baseline not in (None, label)]
    return list(dict.fromkeys([*declared, *others])) if baseline in labels else list(declared)


def write(chapter: Chapter, declared: Sequence[Pair], steps: int | None) -> None:
    """Adds the section, if there is a pair.

    Args:
      chapter: of a family whose games are put together.
      declared: pairs besides those with the baseline.
      steps: at which runs are compared; None is the most that the runs of both are planned for.
    """
    out, family = chapter.out, chapter.family
    rows: list[dict[str, Any]] = []
    waiting: list[str] = []
    for pair in pairs(family.labels, chapter.baseline, declared):
        row = compare(family.series, pair, chapter.baseline, chapter.score, steps)
        if row is None:
            waiting.append(f"{pair}: no game on which runs of both are whole")
        else:
            rows.append(row)
    if not rows and not waiting:
        return
    out.heading("Comparisons")
    if waiting:
        out.warning("Some pairs cannot be compared yet.", waiting, "not compared")
    unit = chapter.baseline or "the other"
    out.table(
        f"{family.name}-comparisons",
        rows,
        f"Difference of IQMs over whole runs on the games of both; a score is the "
        f"{chapter.kind.meaning}, in times the mean of {unit} on that game, which is held fixed. "
        "95% stratified bootstrap intervals over seeds; above and below are intervals that lie on "
        'one side of 0; "seen from" is the difference that would have been seen with probability '
        "0.8.",
    )


def compare(
    series: Sequence[collect.Series],
    pair: Pair,
    baseline: str | None,
    kind: str,
    steps: int | None = None,
) -> dict[str, Any] | None:
    """Compares two agents.

    Args:
      series: of all agents.
      pair: of two of them.
      baseline: whose mean on a game is the unit there; None is the second of the pair.
      kind: of `scores.KINDS`.
      steps: see `write`.

    Returns:
      A row of the table; None if there is no game on which both, and the baseline, are whole.
    """
    planned = {label: _planned(series, label) for label in pair}  # 0 of one without runs.
    steps = min(planned.values()) if steps is None else steps
    of = {label: _whole(series, label, kind, steps) for label in (*pair, baseline or pair.over)}
    unit = of[baseline or pair.over]
    games = [
        game
        for game in sorted(set.intersection(*(set(values) for values in of.values())))
        if unit[game].mean() > 0
    ]
    if not games:
        return None
    x, y = ([of[label][game] / unit[game].mean() for game in games] for label in pair)
    count = len(games)
    difference = statistics.stratified(
        lambda *both: (
            statistics.interquartile_mean(*both[:count])
            - statistics.interquartile_mean(*both[count:])
        ),
        [*x, *y],
    )
    # One run of a game says nothing of how others would differ.
    is_known = min(game.size for game in (*x, *y)) > 1
    verdict = "above" if difference.low > 0 else "below" if difference.high < 0 else "undecided"
    return {
        "agent": pair.agent,
        "over": pair.over,
        "games": count,
        "runs": f"{sum(g.size for g in x)} and {sum(g.size for g in y)}",
        "steps": steps,
        "difference of IQM": difference,
        "verdict": verdict if is_known else "undecided",
        "seen from": SEEN * float(difference.high - difference.low) / 2,
        "probability of improvement": statistics.improvement(x, y),
    }


def _planned(series: Sequence[collect.Series], label: str) -> int:
    return max((s.run.plan.steps for s in series if s.label == label), default=0)


def _whole(
    series: Sequence[collect.Series], label: str, kind: str, steps: int
) -> dict[str, np.ndarray]:
    """Returns the scores of runs that have done so many steps, [N] by environment."""
    by_game: dict[str, list[float]] = {}
    for game, score in _scores(series, label, kind, steps):
        by_game.setdefault(game, []).append(score)
    return {game: np.array(values) for game, values in by_game.items()}


def _scores(
    series: Sequence[collect.Series], label: str, kind: str, steps: int
) -> Iterator[tuple[str, float]]:
    for seed in series:
        if seed.label == label and seed.last >= steps:
            column, share = scores.KINDS[kind].column, scores.KINDS[kind].share
            score = float(scores.at(seed, np.array([steps]), column, share)[0])
            if np.isfinite(score):
                yield seed.environment, score
