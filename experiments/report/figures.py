"""Figures of a report: an agent has one colour in all of them, and intervals are drawn.

What is drawn is in a CSV of the same name: each function takes numbers and gives a figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from kullback.experiments import plots
from kullback.experiments.statistics import Estimate

Colours = Mapping[str, object]  # By label.
WIDTH, DPI = 4.8, 160  # Inches, so that letters can be read where the picture fills a phone.
SHORT = 0.1  # Share of the published frames below which the axis of frames is logarithmic.
LINEAR_PERCENT = 100  # Beyond it an axis of bars is logarithmic, if one bar is far longer.


class Curve(NamedTuple):
    """A curve of one agent."""

    steps: np.ndarray  # [G].
    estimate: Estimate  # Arrays [G].
    seeds: Sequence[tuple[np.ndarray, np.ndarray]] = ()  # Steps and values of each, [T].


def rows(curves_by_label: Mapping[str, Curve], name: str) -> list[dict[str, object]]:
    """Turns curves into rows of a table, a row an agent and checkpoint."""
    return [
        {"agent": label, "steps": int(steps), name: Estimate(*estimate)}
        for label, curve in curves_by_label.items()
        for steps, *estimate in zip(curve.steps, *curve.estimate, strict=True)
    ]


def colours(labels: Sequence[str]) -> Colours:
    """Assigns a colour to each label, the same in each figure."""
    palette = matplotlib.colormaps["tab10" if len(labels) <= 10 else "tab20"]
    return {label: palette(n % palette.N) for n, label in enumerate(labels)}


def curves(
    curves_by_label: Mapping[str, Curve], colour: Colours, title: str, y_label: str, x_label: str
) -> Figure:
    """Draws estimates with their bands against steps, over thin lines of single seeds."""
    figure, axes = _one(title)
    _lines(axes, curves_by_label, colour)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _legend(axes, len(curves_by_label))
    return figure


def beside(
    ours: Mapping[str, Curve],
    published: Mapping[str, tuple[np.ndarray, np.ndarray]],
    colour: Colours,
    title: str,
    y_label: str,
) -> Figure:
    """Draws our curves with their bands over published ones, which are dashed, against frames.

    Args:
      ours: curves, whose steps are frames.
      published: frames and scores, [G] each, by label.
      colour: of our labels; the published ones have a palette of their own.
      title: names the environment.
      y_label: names the score.
    """
    count = len(ours) + len(published)
    figure, axes = _one(title, height=3.4 + 0.11 * count)
    _lines(axes, ours, colour)
    palette = matplotlib.colormaps["Dark2"]
    for n, (label, (frames, means)) in enumerate(published.items()):
        style = {"color": palette(n % palette.N), "linewidth": 1.2, "zorder": 1.5}
        axes.plot(frames, means, linestyle="--", label=label, **style)
    ends = [float(curve.steps[-1]) for curve in ours.values()]
    if ends and max(ends) < SHORT * max(frames[-1] for frames, _ in published.values()):
        axes.set_xscale("log")  # Ours would be a line at the edge.
    axes.set_xlabel("frames of the emulator")
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    # Below: published curves leave no corner free.
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def intervals(
    estimates: Mapping[str, Mapping[str, Estimate]], colour: Colours, title: str, unit: str
) -> Figure:
    """Draws estimates with intervals: a panel for each statistic, a row for each agent.

    Args:
      estimates: by statistic and label.
      colour: of each label.
      title: names the set of games.
      unit: of all statistics.
    """
    labels = list(next(iter(estimates.values())))
    columns = min(2, len(estimates))
    rows = -(-len(estimates) // columns)
    figure = plots.grid(columns, rows, WIDTH / columns, 1.0 + 0.25 * len(labels))
    figure.set_dpi(DPI)
    figure.suptitle(title, fontsize="medium")
    for n, (axes, (statistic, by_label)) in enumerate(
        zip(figure.axes, estimates.items(), strict=False)
    ):
        for place, label in enumerate(labels):
            _interval(axes, place, by_label[label], colour[label])
        axes.set_title(statistic, fontsize="medium")
        axes.set_xlabel(unit)
        axes.set_yticks(range(len(labels)), labels if n % columns == 0 else [""] * len(labels))
        axes.set_ylim(len(labels) - 0.4, -0.6)
    for empty in figure.axes[len(estimates) :]:
        empty.remove()
    return figure


def profiles(
    thresholds: np.ndarray,
    profiles_by_label: Mapping[str, Estimate],
    colour: Colours,
    title: str,
    unit: str,
) -> Figure:
    """Draws the fraction of runs above each threshold, with its band."""
    figure, axes = _one(title)
    for label, profile in profiles_by_label.items():
        axes.fill_between(
            thresholds, profile.low, profile.high, color=colour[label], alpha=0.2, linewidth=0
        )
        axes.plot(thresholds, profile.mean, color=colour[label], linewidth=1.8, label=label)
    axes.set_xlabel(f"threshold, {unit}")
    axes.set_ylabel("fraction of runs above it")
    axes.set_ylim(-0.02, 1.02)
    _legend(axes, len(profiles_by_label), "lower left")  # They fall from 1.
    return figure


def chances(estimates: Mapping[tuple[str, str], Estimate], colour: Colours, title: str) -> Figure:
    """Draws the probability that the first of each pair does better, a row a pair."""
    figure, axes = _one(title, height=1.4 + 0.32 * len(estimates))
    for place, ((label, _), estimate) in enumerate(estimates.items()):
        _interval(axes, place, estimate, colour[label])
    axes.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(estimates)), [f"{x} over {y}" for x, y in estimates])
    axes.set_ylim(len(estimates) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("probability of improvement")
    return figure


def bars(improvements: Mapping[str, float], title: str, x_label: str) -> Figure:
    """Draws improvements in percent, sorted; the axis is logarithmic if one is far out."""
    order = sorted(improvements, key=lambda name: improvements[name])
    values = [improvements[name] for name in order]
    figure, axes = _one(title, height=1.4 + 0.2 * len(order))
    better = ["C0" if value >= 0 else "C3" for value in values]
    axes.barh(range(len(order)), values, color=better, height=0.75)
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(order)), [name.split("/", 1)[-1] for name in order], fontsize="small")
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.axvline(0, color="black", linewidth=0.8)
    far = max(map(abs, values)) > 5 * LINEAR_PERCENT
    if far:
        axes.set_xscale("symlog", linthresh=LINEAR_PERCENT)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    # Each bar says its number, and there is room for it.
    axes.margins(x=0.25)
    for place, value in enumerate(values):
        side = "left" if value >= 0 else "right"
        axes.annotate(f" {value:+.0f}% ", (value, place), ha=side, va="center", fontsize="x-small")
    axes.set_xlabel(x_label + (f"; logarithmic beyond {LINEAR_PERCENT}%" if far else ""))
    return figure


def _one(title: str, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = plots.grid(width=WIDTH, height=height)
    figure.set_dpi(DPI)
    axes = figure.axes[0]
    axes.set_title(title, fontsize="medium")
    return figure, axes


def _lines(axes: Axes, curves_by_label: Mapping[str, Curve], colour: Colours) -> None:
    for label, curve in curves_by_label.items():
        for steps, values in curve.seeds if len(curve.seeds) > 1 else ():
            axes.plot(steps, values, color=colour[label], alpha=0.25, linewidth=0.7)
        low, high = np.asarray(curve.estimate.low), np.asarray(curve.estimate.high)
        axes.fill_between(curve.steps, low, high, color=colour[label], alpha=0.2, linewidth=0)
        dot = "o" if len(curve.steps) == 1 else None  # No line goes through one point.
        style = {"color": colour[label], "linewidth": 1.8, "marker": dot, "markersize": 5}
        axes.plot(curve.steps, curve.estimate.mean, label=label, **style)


def _interval(axes: Axes, place: float, estimate: Estimate, colour: Any) -> None:
    """Draws an estimate as a mark on a bar."""
    axes.plot([estimate.low, estimate.high], [place] * 2, color=colour, linewidth=7, alpha=0.4)
    axes.plot(estimate.mean, place, "|", color=colour, markersize=12, markeredgewidth=2)


def _legend(axes: Axes, count: int, place: Literal["best", "lower left"] = "best") -> None:
    if count:
        axes.legend(loc=place, frameon=True, framealpha=0.8, edgecolor="none", fontsize="small")
