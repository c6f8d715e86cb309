"""What reproductions with agents share: runs of several seeds as parts, their curves, their ends.

A part is a run folder under way, so that what was interrupted goes on within it, bit by bit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from kullback.experiments import catalog, reproduce, statistics
from kullback.experiments.runs import run_folder, training

TAIL = 0.1  # Of a run's steps, over which `final` averages.
LEARNT = 5.0  # Times the return of a random policy; under it no claim is judged.
BAND = 0.2  # Opacity of an interval.
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
}
COLUMNS = ("return_mean", "action_gap", "policy_entropy", "loss", "wall_seconds")  # Kept.


class Arm(NamedTuple):
    """A run of several seeds, under a name of its own in tables and figures."""

    label: str
    agent: str
    environment: str
    seeds: int  # 0 .. seeds - 1.
    steps: int  # Agent steps of each.
    settings: tuple[str, ...] = ()  # field=value, as `kullback train --set` takes them.

    @property
    def part(self) -> str:
        """Name of the part, a file's."""
        return f"{self.label}-{self.environment}".replace("/", "-").replace(" ", "-")


def work_of(arms: Sequence[Arm]) -> int:
    """Agent steps of all seeds of all arms."""
    return sum(arm.seeds * arm.steps for arm in arms)


def seconds_of(arms: Sequence[Arm]) -> float:
    """Estimate of how long they take on 2 CPU cores."""

    def rate(arm: Arm) -> float:
        family = arm.environment.split("/")[0]
        return RATES.get(arm.agent, RATES["minatar"]) if family == "minatar" else RATES[family]

    return sum(arm.seeds * arm.steps / rate(arm) for arm in arms)


class Compared(Protocol):
    """The configuration of a reproduction with agents: a frozen dataclass that names its arms."""

    def arms(self) -> list[Arm]:
        """All that is run."""
        ...


def reproduction(
    claim: str,
    source: str,
    config: Compared,
    run: Callable[[Any, reproduce.Work], reproduce.Found],
) -> reproduce.Reproduction:
    """A reproduction whose work is that of its arms; for the arguments see `Reproduction`."""
    return reproduce.Reproduction(
        claim=claim,
        source=source,
        config=config,
        steps=lambda config: work_of(config.arms()),
        seconds=lambda config: seconds_of(config.arms()),
        run=run,
    )


def compare(
    config: Compared,
    work: reproduce.Work,
    title: str,
    judge: Callable[[Any, reproduce.Rows], list[reproduce.Check]],
    draw: Callable[[Any, reproduce.Rows], Figure],
) -> reproduce.Found:
    """All arms, then what they show: `judge` and `draw` take the configuration and all rows."""
    arms = config.arms()
    rows = train_all(work, arms)
    tables = {"curves": rows, "final": summary(rows, arms)}
    return reproduce.Found(tables, {title: draw(config, rows)}, judge(config, rows))


def train_all(work: reproduce.Work, arms: Sequence[Arm], **plan: Any) -> reproduce.Rows:
    """Rows of all arms, one after another; see `train`."""
    return [row for arm in arms for row in train(work, arm, **plan)]


def train(work: reproduce.Work, arm: Arm, **plan: Any) -> reproduce.Rows:
    """Rows of metrics.csv of an arm, as a part of a reproduction.

    Args:
      work: keeps the part; its amount of work is seeds * steps.
      arm: what is run.
      **plan: other fields of `plan.Plan`.

    Returns:
      Rows of label, environment, seed, steps and of what `COLUMNS` names.
    """
    path = work.path(f"{arm.part}.run")
    # Seeds of a host loop run in turn, those of a compiled one together.
    is_compiled = arm.environment.startswith(("minatar/", "toy/"))

    def tick(row: Mapping[str, Any]) -> None:
        steps = row["steps"]
        done = steps * arm.seeds if is_compiled else row["seed"] * arm.steps + steps
        work.tick(done, row["recent_return"], "return")

    def compute() -> reproduce.Rows:
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
                num_seeds=arm.seeds,
                settings=arm.settings,
                checkpoint_every=max(arm.steps // 10, 1),
                **plan,
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

    return work.part(arm.part, arm.seeds * arm.steps, compute)


def _number(text: str) -> float | None:
    """A number; None, which JSON knows, where there is none."""
    value = float(text)
    return value if math.isfinite(value) else None


def curve(
    rows: reproduce.Rows, label: str, environment: str, column: str = "return_mean"
) -> tuple[np.ndarray, np.ndarray]:
    """Steps, [T], and values, [seeds, T], of one arm; NaN where nothing was measured."""
    own = [row for row in rows if (row["label"], row["environment"]) == (label, environment)]
    seeds = sorted({row["seed"] for row in own})
    values = [[row[column] for row in own if row["seed"] == seed] for seed in seeds]
    steps = np.asarray([row["steps"] for row in own if row["seed"] == seeds[0]])
    return steps, np.asarray(values, np.float64)


def final(
    rows: reproduce.Rows, label: str, environment: str, column: str = "return_mean"
) -> np.ndarray:
    """Mean over the last tenth of the steps, [seeds]; the last that is known, if it is before."""
    steps, values = curve(rows, label, environment, column)
    is_tail = steps > (1 - TAIL) * steps[-1]

    def of_seed(row: np.ndarray) -> float:
        known = np.isfinite(row)
        chosen = row[known & is_tail] if np.any(known & is_tail) else row[known][-1:]
        return float(np.mean(chosen)) if len(chosen) else float("nan")

    return np.array([of_seed(row) for row in values])


def area(rows: reproduce.Rows, label: str, environment: str) -> np.ndarray:
    """Mean return over the whole run, [seeds]."""
    return np.nanmean(curve(rows, label, environment)[1], axis=1)


def summary(rows: reproduce.Rows, arms: Sequence[Arm]) -> reproduce.Rows:
    """A row an arm: return at the end and over the run with 95% intervals, gap of actions."""
    found: reproduce.Rows = []
    for arm in arms:
        ends, areas = (
            statistics.t_interval(measure(rows, arm.label, arm.environment))
            for measure in (final, area)
        )
        gaps = final(rows, arm.label, arm.environment, "action_gap")
        found.append(
            {
                "label": arm.label,
                "environment": arm.environment,
                "seeds": arm.seeds,
                "steps": arm.steps,
                "final_return": ends.mean,
                "final_low": ends.low,
                "final_high": ends.high,
                "mean_return": areas.mean,
                "mean_low": areas.low,
                "mean_high": areas.high,
                "action_gap": float(np.mean(gaps)),
            }
        )
    return found


def has_learnt(rows: reproduce.Rows, environment: str, label: str = "dqn") -> bool:
    """Whether a baseline ends at five times the return of a random policy or more."""
    score = float(final(rows, label, environment).mean())
    return score >= LEARNT * random_score(environment)


def random_score(environment: str) -> float:
    """Mean return of a random policy, from the catalogue.

    Raises:
      ValueError: where it lists none.
    """
    score = next((r.random for r in catalog.ENVIRONMENTS if r.name == environment), None)
    if score is None:
        raise ValueError(f"no score of a random policy is known for {environment}")
    return score


def draw(
    axes: Axes,
    rows: reproduce.Rows,
    labels: Sequence[str],
    environment: str,
    column: str = "return_mean",
    width: int = 5,
) -> None:
    """Means over seeds against steps with 95% intervals, each over `width` rows of the log."""
    for k, label in enumerate(labels):
        steps, values = curve(rows, label, environment, column)
        known = np.isfinite(values)
        window = np.ones(width)
        sums = [np.convolve(row, window) for row in np.where(known, values, 0.0)]
        counts = [np.convolve(row, window) for row in known.astype(float)]
        smooth = np.divide(
            sums, counts, out=np.full(np.shape(sums), np.nan), where=np.array(counts) > 0
        )
        smooth = smooth[:, : values.shape[1]]
        is_whole = np.all(np.isfinite(smooth), axis=0)
        found = [statistics.t_interval(values_at) for values_at in smooth[:, is_whole].T]
        mean, low, high = (
            np.array([getattr(i, n) for i in found]) for n in ("mean", "low", "high")
        )
        axes.plot(steps[is_whole], mean, color=f"C{k}", label=label)
        if len(values) > 1:
            axes.fill_between(steps[is_whole], low, high, color=f"C{k}", alpha=BAND, linewidth=0)
    axes.set_xlabel("agent steps")
    axes.set_ylabel("episode return" if column == "return_mean" else column.replace("_", " "))
    axes.set_title(environment)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(fontsize="small")
