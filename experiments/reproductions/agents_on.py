"""What reproductions with agents share: runs of several seeds as parts, their curves, their ends.

A part is a run folder under way, so that what was interrupted goes on within it, bit by bit.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from kullback.experiments import catalog, reproduce, run_folder, training

TAIL = 0.1  # Of a run's steps, over which `final` averages.
BAND = 0.2  # Opacity of an interval.
COLUMNS = ("return_mean", "action_gap", "policy_entropy", "loss")  # Of metrics.csv, kept.


def train(
    work: reproduce.Work,
    part: str,
    agent: str,
    environment: str,
    *,
    seeds: int,
    steps: int,
    label: str,
    settings: Sequence[str] = (),
    **plan: Any,
) -> reproduce.Rows:
    """Rows of metrics.csv of a run with seeds 0 .. seeds - 1, as a part of a reproduction.

    Args:
      work: keeps the part; its amount of work is seeds * steps.
      part: its name, a file's.
      agent, environment, settings: as `kullback train` takes them.
      seeds, steps: number of seeds, and agent steps of each.
      label: of the run in tables and figures.
      **plan: other fields of `plan.Plan`.

    Returns:
      Rows of label, environment, seed, steps and of what `COLUMNS` names.
    """
    path = work.path(f"{part}.run")

    def tick(row: Mapping[str, Any]) -> None:
        # Seeds of a host loop run in turn, those of a compiled one together.
        done = row["steps"] * seeds if together else row["seed"] * steps + row["steps"]
        work.tick(done, row["recent_return"], "return")

    together = environment.startswith(("minatar/", "toy/"))

    def compute() -> reproduce.Rows:
        if path.exists():
            training.resume(path, quiet=True, callback=tick)
        else:
            training.train(
                agent,
                environment,
                out=path,
                quiet=True,
                callback=tick,
                steps=steps,
                num_seeds=seeds,
                settings=settings,
                checkpoint_every=max(steps // 10, 1),
                **plan,
            )
        found = run_folder.RunFolder(path).rows()
        return [
            {
                "label": label,
                "environment": environment,
                "seed": int(row["seed"]),
                "steps": int(row["steps"]),
                **{name: _number(row[name]) for name in COLUMNS if name in row},
            }
            for row in found
        ]

    return work.part(part, seeds * steps, compute)


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
    """Mean over the last tenth of the steps, [seeds]."""
    steps, values = curve(rows, label, environment, column)
    return np.nanmean(values[:, steps > (1 - TAIL) * steps[-1]], axis=1)


def area(rows: reproduce.Rows, label: str, environment: str) -> np.ndarray:
    """Mean return over the whole run, [seeds]."""
    return np.nanmean(curve(rows, label, environment)[1], axis=1)


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
        found = [reproduce.interval(values_at) for values_at in smooth[:, is_whole].T]
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
