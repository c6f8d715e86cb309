"""Studies: what every reproduction is made of, as data.

A study has arms, which are computed once and kept as parts; tables of their rows; claims, judged by
intervals over seeds or processes (never by one alone); and panels, grids of lines with their bands.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kullback.core import types
from kullback.experiments import reproduce, statistics

Tables = Mapping[str, reproduce.Rows]
Numbers = Sequence[float] | np.ndarray
BAND = 0.2  # Opacity of an interval.


class Arm(NamedTuple):
    """One part of a study: a scheme, a model or an agent, with one seed or all of them."""

    part: str  # Its file's name.
    steps: int  # Amount of work.
    compute: Callable[[reproduce.Work], Iterable[reproduce.Row]]
    # To which its rows go; "": they say so themselves, see `split`, or there is one. None: to none,
    # but later arms read them.
    table: str | None = ""
    columns: Mapping[str, Any] = {}  # That its rows have besides; they stand in front.


def at_least(least: int, config: Any, *names: str) -> None:
    """Checks fields of a configuration, or each entry of those that are tuples.

    Raises:
      ValueError: if one is less than `least`, or an empty tuple.
    """
    for name in names:
        value = getattr(config, name)
        if not np.size(value) or np.min(value) < least:
            numbers = "numbers " if np.ndim(value) else ""
            raise ValueError(f"{name} must be {numbers}>= {least}, got {value}")


# Tables.


def run(arms: Iterable[Arm], work: reproduce.Work) -> reproduce.Rows:
    """Returns the rows of all arms, in their order; those that are kept are not computed again."""
    rows: reproduce.Rows = []
    for arm in arms:
        part = work.part(arm.part, arm.steps, lambda arm=arm: arm.compute(work))
        if arm.table is not None:
            part = [{**arm.columns, **row} for row in part]
            rows += tagged(arm.table, part) if arm.table else part
    return rows


def tagged(table: str, rows: Iterable[Mapping[str, Any]]) -> reproduce.Rows:
    """Returns rows that say to which table they go; `split` sorts them."""
    return [{"table": table, **row} for row in rows]


def split(rows: reproduce.Rows, *tables: str) -> dict[str, reproduce.Rows]:
    """Sorts `tagged` rows of several tables into those."""
    by_table: dict[str, reproduce.Rows] = {name: [] for name in tables}
    for row in rows:
        by_table[row["table"]].append({k: v for k, v in row.items() if k != "table"})
    return by_table


def where(rows: reproduce.Rows, **columns: Any) -> reproduce.Rows:
    """Returns the rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in columns.items())]


def column(rows: reproduce.Rows, name: str, **columns: Any) -> np.ndarray:
    """Returns a column of the rows with these values, [rows]: a number a seed or a process."""
    return np.array([row[name] for row in where(rows, **columns)])


def distinct(rows: reproduce.Rows, name: str) -> list[Any]:
    """Returns a column's values, each once, in their order."""
    return list(dict.fromkeys(row[name] for row in rows))


def by_seed(rows: reproduce.Rows, name: str, **columns: Any) -> np.ndarray:
    """Returns a column of the rows with these values, [seeds, n]; each seed has as many."""
    rows = where(rows, **columns)
    return np.array([column(rows, name, seed=seed) for seed in distinct(rows, "seed")])


# Claims.


def above(
    claim: str,
    values: Numbers,
    threshold: float = 0.0,
    units: tuple[str, str] = ("seed", "seeds"),
) -> reproduce.Check:
    """Judges whether the 95% interval of the mean lies above the threshold.

    Args:
      claim: the sentence.
      values: one a unit, [units].
      threshold: what the interval must exceed.
      units: what there is one and many of.
    """
    one, many = units
    if len(values) < 2:
        return reproduce.Check(claim, None, f"{values[0]:.4g}; one {one} has no interval")
    interval = statistics.t_interval(values)
    evidence = f"{interval} over {len(values)} {many}, against {threshold:g}"
    return reproduce.Check(claim, bool(interval.low > threshold), evidence)


def every(claim: str, held: Sequence[bool] | np.ndarray, evidence: str) -> reproduce.Check:
    """Judges whether something was so with every seed, [seeds]."""
    return reproduce.Check(claim, all(held), f"{sum(held)} of {len(held)} seeds; {evidence}")


def within(claim: str, largest_share: float, counted: str) -> reproduce.Check:
    """Judges whether a bound was never broken; `largest_share` is the largest value / bound."""
    evidence = f"at most {largest_share:.3g} of it {counted}"
    return reproduce.Check(claim, bool(0 <= largest_share <= 1), evidence)


def small(
    claim: str, difference: float, limit: float, counted: str, remaining: float = 0.0
) -> reproduce.Check:
    """Judges whether numbers that should be equal differ by `limit` at most.

    Args:
      claim: the sentence.
      difference: the largest that was seen.
      limit: the largest that may be.
      counted: where it was looked for, in words.
      remaining: what theory allows to be left of the difference after the iterations that were
        run; where it is more than the limit, these are too few to judge by.
    """
    evidence = f"at most {difference:.2g} {counted}, against {limit:g}"
    if remaining > limit and np.isfinite(difference):
        few = f"; not judged: after so few iterations {remaining:.2g} may be left"
        return reproduce.Check(claim, None, evidence + few)
    held = bool(np.isfinite(difference) and difference <= limit)
    return reproduce.Check(claim, held, evidence)


def mean(values: Numbers) -> str:
    """Returns the mean over seeds with its interval, in words; of one seed its value."""
    return str(statistics.t_interval(values)) if len(values) > 1 else f"{values[0]:.4g}"


def means(values: Mapping[str, Numbers], separator: str = ", ") -> str:
    """Returns means over seeds with their intervals, by name."""
    return separator.join(f"{name} {statistics.t_interval(x)}" for name, x in values.items())


def reported(claim: str, evidence: object) -> reproduce.Check:
    """Returns figures that are not judged."""
    return reproduce.Check(claim, None, str(evidence))


def unjudged(check: reproduce.Check) -> reproduce.Check:
    """Returns a check as a report, whatever its interval says."""
    return check._replace(held=None)


# Panels.


class Line(NamedTuple):
    """Values against x, [n]; with a band around them, and a bound dashed in the same colour."""

    x: types.Array | Sequence[float]
    y: types.Array | Sequence[float]
    label: str | None = None
    style: Mapping[str, Any] = {}  # As matplotlib's `plot` takes it.
    band: tuple[Any, Any] | None = None  # The lower edge and the upper.
    bound: Any = None

    def draw(self, axes: Axes) -> None:
        """Draws it."""
        (line,) = axes.plot(self.x, self.y, label=self.label, **self.style)
        if self.band:
            axes.fill_between(self.x, *self.band, color=line.get_color(), alpha=BAND, lw=0)
        if self.bound is not None:
            axes.plot(self.x, self.bound, "--", color=line.get_color(), lw=0.9)


class Bars(NamedTuple):
    """Means of samples against x, with their 95% intervals as bars where there is more than one."""

    x: Sequence[float]
    samples: Sequence[np.ndarray]  # Of each x, [seeds].
    label: str

    def draw(self, axes: Axes) -> None:
        """Draws them."""
        intervals = [statistics.t_interval(sample) for sample in self.samples]
        means = [i.mean for i in intervals]
        errors = [[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]]
        if len(self.samples[0]) > 1:
            axes.errorbar(self.x, means, errors, marker="o", capsize=3, label=self.label)
        else:
            axes.plot(self.x, means, marker="o", label=self.label)


class Seeds(NamedTuple):
    """Values of every seed against x as thin lines, [seeds, n], and their mean as a thick one."""

    x: types.Array | Sequence[float] | Sequence[Sequence[float]]  # [n], or each seed's.
    y: types.Array | Sequence[Sequence[float]]
    label: str | None = None
    style: Mapping[str, Any] = {}  # As matplotlib's `plot` takes it; of all lines.
    thin: Mapping[str, Any] = {}  # Of those of seeds, beside it.
    thick: Mapping[str, Any] = {}  # Of the mean's, beside it.

    def draw(self, axes: Axes) -> None:
        """Draws them."""
        alone, mean = np.transpose(self.x), np.mean(np.atleast_2d(self.x), axis=0)
        axes.plot(alone, np.transpose(self.y), **{"lw": 0.7, **self.style, **self.thin})
        axes.plot(
            mean,
            np.mean(self.y, axis=0),
            label=self.label,
            **{"lw": 1.8, **self.style, **self.thick},
        )


class SeedBars(NamedTuple):
    """Means of samples as bars at x, and a dot for each seed."""

    x: types.Array | Sequence[float]
    samples: Sequence[np.ndarray]  # Of each x, [seeds].
    label: str | None = None
    style: Mapping[str, Any] = {}  # As matplotlib's `bar` takes it.
    horizontal: bool = False  # Bars stand at heights x then.
    dot: float = 3  # Size of a dot, in points.

    def draw(self, axes: Axes) -> None:
        """Draws them."""
        means = [sample.mean() for sample in self.samples]
        (axes.barh if self.horizontal else axes.bar)(self.x, means, label=self.label, **self.style)
        for x, sample in zip(self.x, self.samples, strict=True):
            dots = np.full(len(sample), x), sample
            axes.plot(*(dots[::-1] if self.horizontal else dots), "k.", markersize=self.dot)


class Level(NamedTuple):
    """A horizontal line, or a vertical one."""

    at: float
    style: Mapping[str, Any]
    is_vertical: bool = False

    def draw(self, axes: Axes) -> None:
        """Draws it."""
        (axes.axvline if self.is_vertical else axes.axhline)(self.at, **self.style)


class Notes(NamedTuple):
    """Texts beside points, [n]."""

    x: types.Array | Sequence[float]
    y: types.Array | Sequence[float]
    texts: Sequence[str]
    style: Mapping[str, Any] = {}  # As matplotlib's `annotate` takes it.

    def draw(self, axes: Axes) -> None:
        """Draws them."""
        for x, y, text in zip(self.x, self.y, self.texts, strict=True):
            axes.annotate(text, (x, y), **self.style)


class Mark(Protocol):
    """A mark on axes: `Line`, `Bars`, `Seeds`, `SeedBars`, `Level`, `Notes`, or a study's own."""

    def draw(self, axes: Axes) -> None:
        """Draws it."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """Marks on axes; without any, an empty place in the grid."""

    marks: Sequence[Mark] = ()
    axes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # As `Axes.set` takes it.
    legend: Mapping[str, Any] | None = dataclasses.field(
        default_factory=dict
    )  # None: there is none.
    finish: Callable[[Axes], object] = lambda axes: None  # Sets the rest, such as formatters.

    def draw(self, axes: Axes) -> None:
        """Draws it."""
        if not self.marks:
            axes.set_axis_off()
            return
        for mark in self.marks:
            mark.draw(axes)
        axes.set(**self.axes)
        self.finish(axes)
        if self.legend is not None:
            axes.legend(**self.legend)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Panels in the order of reading; sizes are of one of them, in inches."""

    panels: Sequence[Panel]
    columns: int = 0  # As many as panels, if it is not said.
    width: float = 4.6
    height: float = 3.6
    title: str = ""
    title_size: float | None = None  # Of each panel's title, in points.

    def draw(self) -> Figure:
        """Draws it."""
        columns = self.columns or len(self.panels)
        rows = -(-len(self.panels) // columns)
        figure = reproduce.figure(columns, rows, self.width, self.height)
        for axes, panel in zip(figure.axes, self.panels, strict=False):
            panel.draw(axes)
            if self.title_size:
                axes.title.set_fontsize(self.title_size)
        if self.title:
            figure.suptitle(self.title, fontsize=10)
        return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A paper's claim, and all that is needed to run it again; C is the class of `config`."""

    claim: str  # A sentence.
    source: str  # The paper.
    config: Any  # A frozen dataclass with the default size; `--set` changes its fields.
    arms: Callable[[Any], Iterable[Arm]]  # C -> what is run.
    tables: Callable[[Any, reproduce.Rows], Tables]  # (C, rows of all arms) -> a CSV each.
    claims: Callable[[Any, Tables], Iterable[reproduce.Check]]
    figures: Callable[[Any, Tables], Mapping[str, Grid]]  # By the name of its files.
    seconds: Callable[[Any], float]  # C -> estimate, on 2 CPU cores.

    def steps(self, config: Any) -> int:
        """Returns the amount of work of all arms."""
        return sum(arm.steps for arm in self.arms(config))

    def run(self, config: Any, work: reproduce.Work) -> reproduce.Results:
        """Runs all arms, then judges and draws what they show."""
        tables = self.tables(config, run(self.arms(config), work))
        checks = list(self.claims(config, tables))
        figures = {name: grid.draw() for name, grid in self.figures(config, tables).items()}
        return reproduce.Results(tables, figures, checks)
