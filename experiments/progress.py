"""The live line of a run: step, return, steps a second, time left."""

import collections
import datetime
import sys
import time
from types import TracebackType

import rich.console
import rich.progress

from kullback.experiments import display


def pace(speed: float) -> str:
    """Returns a speed in steps a second for a reader: "1,200 steps/s", "2.3 s/step"."""
    if speed >= 1:
        return f"{speed:,.0f} steps/s" if speed >= 10 else f"{speed:.1f} steps/s"
    if speed > 0:
        return f"{1 / speed:.1f} s/step" if speed > 0.1 else f"{1 / speed:,.0f} s/step"
    return "- steps/s"


class Progress:
    """A live bar on a terminal; elsewhere a plain line now and then."""

    PLAIN_SECONDS = 10.0  # Between two lines where there is no terminal.
    SPEED_SECONDS = 30.0  # Speed is measured over these: warming up is much faster than learning.

    def __init__(self, label: str, done: int, total: int, quiet: bool = False):
        # Names of files are no markup: "[/red]" would be an error.
        self._console = rich.console.Console(
            file=sys.stderr, quiet=quiet, markup=False, emoji=False
        )
        self._live = self._console.is_terminal or self._console.is_jupyter
        self._label, self._total, self._done = display.line(label), total, done
        self._last_line = time.monotonic()
        self._seen = collections.deque([(self._last_line, done)])
        self._value, self._metric = float("nan"), "return"
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            rich.progress.TextColumn("{task.fields[metric]} {task.fields[value]}", markup=False),
            rich.progress.TextColumn("{task.fields[speed]}"),
            rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            disable=quiet or not self._live,
            transient=False,
        )
        self._task = self._bar.add_task(
            self._label,
            total=total,
            completed=done,
            metric="return",
            value="-",
            speed=pace(0.0),
            start=True,
        )

    def __enter__(self) -> "Progress":
        self._bar.start()
        if not self._live:
            self._console.print(f"{self._label}: step {self._done:,} of {self._total:,}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, done: int, value: float | None = None, metric: str = "return") -> None:
        """Shows where the run is, and the metric that matters: a return is of 100 episodes.

        Without a value the metric stays as it was.
        """
        self._done = done
        if value is not None:
            self._value, self._metric = value, metric
        now = time.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > self.SPEED_SECONDS:
            self._seen.popleft()
        then, before = self._seen[0]
        speed = (done - before) / max(now - then, 1e-9)
        shown = "-" if self._value != self._value else f"{self._value:.2f}"
        self._bar.update(
            self._task, completed=done, metric=self._metric, value=shown, speed=pace(speed)
        )
        finished = done >= self._total
        if not self._live and (now - self._last_line > self.PLAIN_SECONDS or finished):
            self._last_line = now
            left = "-"  # The time of compiling says nothing about the steps to come.
            if speed > 0:
                left = datetime.timedelta(seconds=round(max(self._total - done, 0) / speed))
            self._console.print(
                f"{self._label}: step {done:,} of {self._total:,}, {self._metric} {shown}, "
                f"{pace(speed)}, {left} left",
                soft_wrap=True,
            )

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(display.printable(text), highlight=False, soft_wrap=True)
