"""Pictures of runs, drawn from their rows."""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kullback.core import files

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Draws and saves the pictures of a block with names that are only text.

    Matplotlib reads text between two "$" as mathematics, also in the name of a file.
    """
    import matplotlib  # Late: whoever reads a run would wait for it.

    with matplotlib.rc_context({"text.parse_math": False}):
        yield


def figure(width: float, height: float) -> "matplotlib.figure.Figure":
    """Makes an empty figure that needs no display; sizes are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn


def grid(
    columns: int = 1, rows: int = 1, width: float = 4.6, height: float = 3.6
) -> "matplotlib.figure.Figure":
    """Makes an empty figure with a grid of axes; sizes are of one of them, in inches."""
    drawn = figure(columns * width, rows * height)
    drawn.subplots(rows, columns, squeeze=False)
    for axes in drawn.axes:
        axes.grid(alpha=0.25)
    return drawn


def save(drawn: "matplotlib.figure.Figure", path: pathlib.Path) -> None:
    """Writes a PNG or an SVG, as the path ends, whole or not at all; equal rows, equal files."""
    import matplotlib

    # An SVG's names of shapes are random otherwise, and it bears the time.
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    with files.atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "kullback"}):
        drawn.savefig(temporary, format=path.suffix[1:], metadata=metadata)


class Axes(NamedTuple):
    """Labels of a learning curve, whose column is the mean return of episodes."""

    x: str = "agent steps"
    y: str = "episode return"
    instead: str = ""  # Column that is drawn, and shown, where nothing has a return.
    below: str = ""  # Column of a second picture below the first; "" is none.
    below_y: str = ""


GAMES = Axes()
TEXTS = Axes("learner steps", "score of sampled sequences", instead="loss")
# A score means little without what it cost.
REWARDED = TEXTS._replace(below="kl_start", below_y="KL to the start, nats a text")
MARKED = "kl_runaway"  # Column that is 1 where the curve below is marked.


@plain_text()
def learning_curve(
    rows: Sequence[Mapping[str, str]], path: pathlib.Path, title: str, axes: Axes = GAMES
) -> None:
    """Draws the mean return against steps: each seed thin, their mean thick.

    Below it the column `axes.below` is drawn likewise, if there are rows of it.

    Args:
      rows: of metrics.csv, with the columns seed, steps, return_mean and evaluation.
      path: of the PNG; written whole or not at all.
      title: of the picture.
      axes: their labels.
    """
    from matplotlib.ticker import EngFormatter

    column, labels = "return_mean", axes
    if axes.instead and not any(math.isfinite(float(row[column])) for row in rows):
        column = axes.instead
        labels = axes._replace(y=column)
    is_double = bool(axes.below and rows and axes.below in rows[0])
    drawn = figure(6.4, 6.4 if is_double else 4.0)
    pictures = drawn.subplots(1 + is_double, squeeze=False, sharex=True)[:, 0]
    _draw(pictures[0], rows, column)
    seeds = sorted({int(row["seed"]) for row in rows})
    for k, seed in enumerate(seeds):
        steps, scores = _curve(rows, seed, "evaluation")
        known = np.isfinite(scores)
        if known.any() and column == "return_mean":
            label = "evaluation" if k == 0 else None
            pictures[0].plot(
                steps[known], scores[known], "o", color="C1", markersize=3, label=label
            )
    pictures[0].set_ylabel(labels.y)
    if is_double:
        _draw(pictures[1], rows, axes.below)
        _mark(pictures[1], rows, axes.below)
        pictures[1].set_ylabel(axes.below_y)
    pictures[-1].set_xlabel(labels.x)
    pictures[0].set_title(title)
    for plot in pictures:
        plot.grid(alpha=0.25)
        plot.ticklabel_format(axis="x", style="plain")
        plot.xaxis.set_major_formatter(EngFormatter(sep=""))
        if plot.get_legend_handles_labels()[0]:
            plot.legend(loc="best", frameon=True, framealpha=0.8, edgecolor="none")
    save(drawn, path)


def _draw(plot: "matplotlib.axes.Axes", rows: Sequence[Mapping[str, str]], column: str) -> None:
    """Draws a column against steps: each seed thin, their mean thick, or one seed and its mean."""
    seeds = sorted({int(row["seed"]) for row in rows})
    curves = [_curve(rows, seed, column) for seed in seeds]
    # A line through one point is no line.
    marker = "o" if all(np.isfinite(values).sum() <= 1 for _, values in curves) else ""
    for k, (steps, returns) in enumerate(curves):
        label = "one seed" if k == 0 and len(seeds) > 1 else None
        if len(seeds) > 1:
            plot.plot(steps, returns, color="C0", alpha=0.3, linewidth=0.8, label=label)
        else:
            plot.plot(steps, returns, color="C0", alpha=0.45, linewidth=0.9, label="each interval")
            smooth = _smooth(returns)
            plot.plot(steps, smooth, marker=marker, color="C0", linewidth=2, label="mean of ten")
    if len(seeds) > 1 and all(len(c[0]) == len(curves[0][0]) for c in curves):
        # If no episode of a seed ended, its last value counts, so that the mean is over all seeds.
        values = np.stack([_last_known(c[1]) for c in curves])
        known = np.any(np.isfinite(values), axis=0)
        mean = np.nanmean(values[:, known], axis=0)
        steps = curves[0][0][known]
        plot.plot(steps, mean, marker=marker, color="C0", linewidth=2, label="mean of seeds")


def _mark(plot: "matplotlib.axes.Axes", rows: Sequence[Mapping[str, str]], column: str) -> None:
    """Marks the points of a column where `MARKED` says so; older runs have none."""
    marked = [row for row in rows if float(row.get(MARKED, 0))]
    if marked:
        steps = [int(row["steps"]) for row in marked]
        values = [float(row[column]) for row in marked]
        plot.plot(steps, values, "x", color="C3", markersize=5, label="runs away")


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


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns the mean of the known ones of the last ten values."""
    smooth = np.full(len(values), np.nan)
    for i in range(len(values)):
        window = values[max(0, i - 9) : i + 1]
        window = window[np.isfinite(window)]
        if len(window):
            smooth[i] = window.mean()
    return smooth
