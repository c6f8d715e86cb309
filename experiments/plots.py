"""Pictures of runs, drawn from their rows."""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from kullback.core import files


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Draws and saves the pictures of a block with names that are only text.

    Matplotlib reads text between two "$" as mathematics, also in the name of a file.
    """
    with matplotlib.rc_context({"text.parse_math": False}):
        yield


@plain_text()
def learning_curve(
    rows: Sequence[Mapping[str, str]], path: pathlib.Path, title: str, *, of_language: bool = False
) -> None:
    """Draws mean episode return against agent steps: each seed thin, their mean thick.

    For a language model it is the score of its samples against learner steps, or the loss if it has
    no samples or no score.

    Args:
      rows: of metrics.csv, with the columns seed, steps, return_mean and evaluation.
      path: of the PNG; written whole or not at all.
      title: of the picture.
      of_language: whether this is a run of a language model.
    """
    column, x_label, y_label = "return_mean", "agent steps", "episode return"
    if of_language:
        x_label, y_label = "learner steps", "score of sampled sequences"
        if not any(math.isfinite(float(row[column])) for row in rows):
            column = y_label = "loss"
    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    seeds = sorted({int(row["seed"]) for row in rows})
    curves = [_curve(rows, seed, column) for seed in seeds]
    for k, (steps, returns) in enumerate(curves):
        label = "one seed" if k == 0 and len(seeds) > 1 else None
        if len(seeds) > 1:
            axes.plot(steps, returns, color="C0", alpha=0.3, linewidth=0.8, label=label)
        else:
            axes.plot(steps, returns, color="C0", alpha=0.45, linewidth=0.9, label="each interval")
            axes.plot(steps, _smooth(returns), color="C0", linewidth=2, label="mean of ten")
    if len(seeds) > 1 and all(len(c[0]) == len(curves[0][0]) for c in curves):
        # If no episode of a seed ended, its last value counts, so that the mean is over all seeds.
        values = np.stack([_last_known(c[1]) for c in curves])
        known = np.any(np.isfinite(values), axis=0)
        mean = np.nanmean(values[:, known], axis=0)
        axes.plot(curves[0][0][known], mean, color="C0", linewidth=2, label="mean of seeds")
    for k, seed in enumerate(seeds):
        steps, scores = _curve(rows, seed, "evaluation")
        known = np.isfinite(scores)
        if known.any() and column != "loss":
            label = "evaluation" if k == 0 else None
            axes.plot(steps[known], scores[known], "o", color="C1", markersize=3, label=label)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.ticklabel_format(axis="x", style="plain")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", frameon=True, framealpha=0.8, edgecolor="none")
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _curve(
    rows: Sequence[Mapping[str, str]], seed: int, column: str
) -> tuple[np.ndarray, np.ndarray]:
    of_seed = [row for row in rows if int(row["seed"]) == seed]
    steps = np.array([int(row["steps"]) for row in of_seed])
    return steps, np.array([float(row[column]) for row in of_seed])


def _last_known(values: np.ndarray) -> np.ndarray:
    """Returns the last known value at each place; NaN before the first."""
    known = np.isfinite(values)
    last = np.maximum.accumulate(np.where(known, np.arange(len(values)), -1))
    return np.where(last >= 0, values[last], np.nan)


def _smooth(values: np.ndarray, width: int = 10) -> np.ndarray:
    """Returns the mean of the last `width` known values."""
    smooth = np.full(len(values), np.nan)
    for i in range(len(values)):
        window = values[max(0, i + 1 - width) : i + 1]
        window = window[np.isfinite(window)]
        if len(window):
            smooth[i] = window.mean()
    return smooth
