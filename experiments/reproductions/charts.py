"""Pictures of studies, as data: grids of panels, and their marks."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kullback.core import types
from kullback.experiments import plots, statistics

BAND = 0.2  # Opacity of an interval.


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


def beside(
    number: int,
    count: int,
    samples: Sequence[np.ndarray],
    label: str | None = None,
    *,
    at: types.Array | None = None,
    span: float = 0.8,
    dot: float = 3,
) -> SeedBars:
    """Returns the bars of one of `count` arms, all of which stand side by side at each x.

    Args:
      number: of the arm, from 0; it has a colour of its own.
      count: of arms.
      samples: of each x, [seeds].
      label: of the arm.
      at: x; None is 0, 1, 2, ...
      span: width of the bars of all arms at an x.
      dot: size of a dot, in points.
    """
    width = span / count
    x = (np.arange(len(samples)) if at is None else at) + (number - (count - 1) / 2) * width
    return SeedBars(x, samples, label, {"width": width, "color": f"C{number}"}, dot=dot)


class Level(NamedTuple):
    """A horizontal line, or a vertical one."""

    at: float
    style: Mapping[str, Any]
    is_vertical: bool = False

    def draw(self, axes: Axes) -> None:
        """Draws it."""
        (axes.axvline if self.is_vertical else axes.axhline)(self.at, **self.style)


ZERO = Level(0, {"color": "0.3", "lw": 0.8})


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


class Pixels(NamedTuple):
    """A picture alone on its axes, uint8 [H, W, 3]."""

    pixels: np.ndarray

    def draw(self, axes: Axes) -> None:
        """Draws it."""
        axes.imshow(self.pixels, interpolation="nearest")
        axes.set_axis_off()


class Mark(Protocol):
    """A mark: `Line`, `Bars`, `Seeds`, `SeedBars`, `Level`, `Notes`, `Pixels`, or a study's own."""

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
        figure = plots.grid(columns, rows, self.width, self.height)
        for axes, panel in zip(figure.axes, self.panels, strict=False):
            panel.draw(axes)
            if self.title_size:
                axes.title.set_fontsize(self.title_size)
        for axes in figure.axes[len(self.panels) :]:  # Of the last row, if it is not full.
            axes.remove()
        if self.title:
            figure.suptitle(self.title, fontsize=10)
        return figure
