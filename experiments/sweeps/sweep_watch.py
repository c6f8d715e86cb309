"""How far the runs of a sweep are: read from the ends of their metrics.csv."""

import csv
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kullback.experiments.sweeps.sweep_worker import Job

METRICS = (("recent_return", "return"), ("loss", "loss"))  # The first that is a number is shown.
TAIL_BYTES = 1 << 16  # Many rows; all that are needed are those of the last step.


class Seen(NamedTuple):
    """Of a run: agent steps of a seed, and the mean over seeds of what matters."""

    steps: int = 0
    value: float = float("nan")
    metric: str = "return"


def latest(folder: str | pathlib.Path) -> Seen:
    """What the last whole rows of a run's metrics.csv say."""
    try:
        with (pathlib.Path(folder) / "metrics.csv").open("rb") as file:
            header = file.readline().decode()
            start = max(file.tell(), file.seek(0, 2) - TAIL_BYTES)
            file.seek(start)
            lines = file.read().decode().split("\n")[:-1]  # After the last end: half a row.
    except FileNotFoundError:
        return Seen()
    if start > len(header):
        lines = lines[1:]  # The tail began within it.
    rows = list(csv.DictReader([header, *lines]))
    if not rows:
        return Seen()
    steps = max(int(row["steps"]) for row in rows)
    last = [row for row in rows if int(row["steps"]) == steps]
    for column, metric in METRICS:
        values = [float(row.get(column) or "nan") for row in last]
        mean = sum(values) / len(values)
        if mean == mean:
            return Seen(steps, mean, metric)
    return Seen(steps)


class Watch:
    """Counts the runs of a sweep that have ended, and the steps of all."""

    def __init__(self, todo: Sequence[Job], finished: int):
        """`finished` runs need nothing; of the others, steps count from where each was."""
        self._done = {job: job.done for job in todo}
        self._ended, self._runs = finished, finished + len(todo)

    def steps(self) -> tuple[int, int]:
        """Agent steps done and in all, over all seeds of the runs to be done."""
        done = sum(steps * job.plan["num_seeds"] for job, steps in self._done.items())
        return done, sum(job.total * job.plan["num_seeds"] for job in self._done)

    def end(self, job: Job, error: str) -> str:
        """A line for a run that has ended, with its error if it failed."""
        self._ended += 1
        seen = latest(job.folder)
        self._done[job] = job.total  # What failed is over too, for the time that is left.
        count = f"{self._ended} of {self._runs}"
        if error:
            return f"{count}: {job.name} failed: {error}"
        shown = "" if seen.value != seen.value else f", {seen.metric} {seen.value:.2f}"
        return f"{count}: {job.name} finished{shown}"

    def look(self, running: Iterable[Job]) -> tuple[int, float | None, str]:
        """Steps done, the mean over the running ones of what matters, and what to call it."""
        values: dict[str, list[float]] = {}
        for job in running:
            seen = latest(job.folder)
            # Not all of them before it has ended: it still saves.
            self._done[job] = max(self._done[job], min(seen.steps, job.total - 1))
            if seen.value == seen.value:
                values.setdefault(seen.metric, []).append(seen.value)
        label = f"{self._ended} of {self._runs} runs,"
        if not values:
            return self.steps()[0], None, f"{label} return"
        metric, shown = max(values.items(), key=lambda item: len(item[1]))
        each = " ".join(f"{value:.2f}" for value in shown[:8])
        spread = f"{metric} {each}, mean" if len(shown) > 1 else metric
        return self.steps()[0], sum(shown) / len(shown), f"{label} {spread}"
