"""Studies with agents: claims that set the runs of one arm against another's, and their panels."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.ticker import EngFormatter

from kullback.experiments import statistics
from kullback.experiments.reproductions import agent_runs, charts, judging, study


class Claim(NamedTuple):
    """A sentence that `better` has more of something than `over`, or as much.

    Runs of one seed share the drawing of the first network at most, of which nothing is left at the
    end: over seeds they are correlated by -0.9 to 0.8 on MinAtar, with no sign in common. So arms
    are compared by Welch's interval, not by pairs.
    """

    better: str  # Label of an arm.
    over: str
    sentence: str = "{game}: {better} ends above {over}"
    by: agent_runs.Measure = agent_runs.END
    is_ratio: bool = False  # Whether it is of the quotient, and not of the difference.
    threshold: float = 0.0
    share: float = (
        0.0  # If more than 0: that their quotient lies within 1 / (1 + share), 1 + share.
    )
    is_judged: bool = True
    is_headline: bool = False

    def check(self, runs: agent_runs.Runs, game: str) -> judging.Check:
        """Judges it on one environment."""
        better, over = (runs.measure(self.by, label, game) for label in (self.better, self.over))
        sentence = self.sentence.format(game=game, better=self.better, over=self.over)
        if self.share:
            check = judging.alike(sentence, self.share, better, over)
        elif self.is_ratio:
            check = judging.times(sentence, better, over, self.threshold)
        else:
            check = judging.beyond(sentence, better, over, self.threshold)
        check = check._replace(is_headline=self.is_headline)
        return check if self.is_judged else judging.unjudged(check)


above = Claim
wider = functools.partial(  # The best action is farther from the others, in times `over`'s gap.
    Claim,
    sentence="{game}: {better} widens the gap of actions, in times DQN's",
    by=agent_runs.GAP,
    is_ratio=True,
    threshold=1.0,
)
reported = functools.partial(Claim, is_judged=False)
headline = functools.partial(Claim, is_headline=True)


def judge_claims(
    claims: Sequence[Claim], runs: agent_runs.Runs, learner: str | None, says_so: bool
) -> list[judging.Check]:
    """Judges claims on every environment, those whose arms ran there; see `make`."""
    checks: list[judging.Check] = []
    for game in runs.environments:
        labels = runs.labels(game)
        of_game = [c.check(runs, game) for c in claims if {c.better, c.over} <= {*labels}]
        if learner is not None and not (
            learner in labels and agent_runs.has_learnt(runs, game, learner)
        ):
            of_game = [judging.unjudged(check) for check in of_game]
            if says_so and learner in labels:
                of_game.append(not_learnt(runs, game, learner))
        checks += of_game
    return checks


def not_learnt(runs: agent_runs.Runs, game: str, label: str) -> judging.Check:
    """Reports that an arm has not learnt."""
    limit = f"{agent_runs.LEARNT:g}"
    name, score = label.upper(), float(runs.measure(agent_runs.END, label, game).mean())
    return judging.reported(
        f"{game}: {name} stays under {limit} times a random policy, so nothing is judged",
        f"{score:.3g} against {agent_runs.random_score(game):g}",
    )


# Tables and panels.


def summary(
    runs: agent_runs.Runs,
    arms: Sequence[agent_runs.Arm],
    measures: Mapping[str, agent_runs.Measure] | None = None,
) -> study.Rows:
    """Returns a row an arm: return at the end and over the run with 95% intervals, and means.

    Args:
      runs: of all arms.
      arms: in the order of the rows.
      measures: by column, beside the gap of actions.
    """

    def row(arm: agent_runs.Arm) -> study.Row:
        of = functools.partial(runs.measure, label=arm.label, environment=arm.environment)
        size = {"environment": arm.environment, "seeds": arm.seeds, "steps": arm.steps}
        returns: dict[str, float] = {}
        for name, measure in {"final": agent_runs.END, "mean": agent_runs.SCORE}.items():
            interval = statistics.t_interval(of(measure))
            returns |= {f"{name}_return": interval.mean}
            returns |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        more = {"action_gap": agent_runs.GAP, **(measures or {})}
        means = {column: float(np.mean(of(measure))) for column, measure in more.items()}
        return {"label": arm.label, **size, **returns, **means}

    return [row(arm) for arm in arms]


def curves(
    runs: agent_runs.Runs,
    labels: Sequence[str],
    game: str,
    column: str = "return_mean",
    width: int = 5,
) -> charts.Panel:
    """Returns means over seeds against steps with 95% intervals, each over `width` rows of a log.

    Args:
      runs: of all arms.
      labels: of those that are shown; without any the panel is empty.
      game: environment.
      column: of the log.
      width: rows of the log that are averaged.
    """

    def line(k: int, label: str) -> charts.Line:
        steps, values = runs.curve(label, game, column)
        smooth = smoothed(values, width)
        is_whole = np.all(np.isfinite(smooth), axis=0)
        intervals = [statistics.t_interval(values_at) for values_at in smooth[:, is_whole].T]
        mean, low, high = np.array(intervals, np.float64).reshape(-1, 3).T
        band = (low, high) if len(values) > 1 else None
        return charts.Line(steps[is_whole], mean, label, {"color": f"C{k}"}, band)

    return charts.Panel(
        marks=[line(k, label) for k, label in enumerate(labels)],
        axes={
            "xlabel": "agent steps",
            "ylabel": "episode return" if column == "return_mean" else column.replace("_", " "),
            "title": game,
        },
        finish=lambda axes: axes.xaxis.set_major_formatter(EngFormatter(sep="")),
        legend={"fontsize": "small"},
    )


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Returns means over the last `width` columns, those that are known; [seeds, T]."""
    known = np.isfinite(values)
    window = np.ones(width)
    sums = [np.convolve(row, window) for row in np.where(known, values, 0.0)]
    counts = np.array([np.convolve(row, window) for row in known.astype(float)])
    empty = np.full(counts.shape, np.nan)
    return np.divide(sums, counts, out=empty, where=counts > 0)[:, : values.shape[1]]


def grid(
    runs: agent_runs.Runs, *rows: str | tuple[str, Sequence[str]], columns: int | None = None
) -> charts.Grid:
    """Returns a grid of curves: a column an environment, at most ten, and a row a column of logs.

    Args:
      runs: of all arms.
      *rows: column of the log, alone or with the labels of the arms that are shown.
      columns: of the grid, if they are others.
    """

    def panel(game: str, row: str | tuple[str, Sequence[str]]) -> charts.Panel:
        labels = runs.labels(game)
        column, shown = (row, labels) if isinstance(row, str) else row
        return curves(runs, [label for label in labels if label in shown], game, column)

    games = runs.environments
    return charts.Grid(
        panels=[panel(game, row) for row in rows for game in games],
        columns=columns or min(len(games), 10),
    )


class Compared(Protocol):
    """The configuration of a study with agents: a frozen dataclass that names its arms."""

    def arms(self) -> list[agent_runs.Arm]:
        """Returns all that is run."""
        ...


def make(
    figure: str,
    claims: Callable[[Any, agent_runs.Runs], Iterable[Claim]] = lambda config, runs: (),
    panels: Callable[[Any, agent_runs.Runs], charts.Grid] = lambda config, runs: grid(
        runs, "return_mean"
    ),
    learner: str | None = None,
    says_so: bool = False,
    measures: Mapping[str, agent_runs.Measure] | None = None,
    tables: Callable[[Any, agent_runs.Runs], study.Tables] = lambda config, runs: {},
    checks: Callable[[Any, agent_runs.Runs], list[judging.Check]] = lambda config, runs: [],
    **of_study: Any,
) -> study.Study:
    """Returns a study whose configuration names its arms.

    Args:
      figure: name of its picture.
      claims: (configuration, runs) -> claims of arms.
      panels: (configuration, runs) -> the picture; unless it is given, of returns.
      learner: label of an arm; on environments where it has not learnt, no claim is judged.
      says_so: whether a check more says so there.
      measures: more columns of the table final.csv.
      tables: more tables.
      checks: of other things than arms.
      **of_study: claim, source and config of `study.Study`.
    """

    def arms(config: Compared) -> list[study.Arm]:
        return [
            study.Arm(arm.part, arm.seeds * arm.steps, functools.partial(agent_runs.train, arm))
            for arm in config.arms()
        ]

    def tables_of(config: Compared, rows: study.Rows) -> study.Tables:
        runs = agent_runs.Runs(rows)
        final = summary(runs, config.arms(), measures)
        return {"curves": rows, "final": final, **tables(config, runs)}

    def judged(config: Compared, tables: study.Tables) -> list[judging.Check]:
        runs = agent_runs.Runs(tables["curves"])
        of_arms = judge_claims([*claims(config, runs)], runs, learner, says_so)
        return of_arms + checks(config, runs)

    return study.Study(
        arms=arms,
        tables=tables_of,
        claims=judged,
        figures=lambda config, tables: {figure: panels(config, agent_runs.Runs(tables["curves"]))},
        seconds=lambda config: agent_runs.seconds_of(config.arms()),
        **of_study,
    )
