"""Progress of the runs of a sweep, read from the ends of their metrics.csv."""

import csv
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kullback.experiments.sweeps.sweep_worker import Job

METRICS = (("recent_return", "return"), ("loss", "loss"))  # The first that is a number is shown.
TAIL_BYTES = 1 << 16  # Many rows; the last step's are needed.


class Reached(NamedTuple):
    """A run's agent steps, of a seed, and the mean over seeds of its return or else its loss."""

    steps: int = 0
    value: float = float("nan")
    metric: str = "return"


def latest(folder: str | pathlib.Path) -> Reached:
    """Reads the last whole rows of a run's metrics.csv."""
    try:
        with (pathlib.Path(folder) / "metrics.csv").open("rb") as file:
            header = file.readline().decode()
            start = max(file.tell(), file.seek(0, 2) - TAIL_BYTES)
            file.seek(start)
            lines = file.read().decode().split("\n")[:-1]  # The last one may be half a row.
    except FileNotFoundError:
        return Reached()
    if start > len(header):
        lines = lines[1:]  # The tail may begin within the first.
    rows = list(csv.DictReader([header, *lines]))
    if not rows:
        return Reached()
    steps = max(int(row["steps"]) for row in rows)
    last = [row for row in rows if int(row["steps"]) == steps]
    for column, metric in METRICS:
        values = [float(row.get(column) or "nan") for row in last]
        mean = sum(values) / len(values)
        if mean == mean:
            return Reached(steps, mean, metric)
    return Reached(steps)


class Watch:
    """Counts the runs of a sweep that have ended, and the steps of all runs."""

    def __init__(self, todo: Sequence[Job], finished: int):
        """Begins with the jobs to do; `finished` runs need nothing, and only count as ended."""
        self._done = {job: job.done for job in todo}
        self._ended, self._runs = finished, finished + len(todo)

    def steps(self) -> tuple[int, int]:
        """Returns agent steps done and in all, over all seeds of the runs to be done."""
        done = sum(steps * job.plan["num_seeds"] for job, steps in self._done.items())
        return done, sum(job.total * job.plan["num_seeds"] for job in self._done)

    def end(self, job: Job, error: str) -> str:
        """Returns a line for a run that has ended, with its error if it failed."""
        self._ended += 1
        reached = latest(job.folder)
        self._done[job] = job.total  # Also if it failed: no time is left to be told for it.
        count = f"{self._ended} of {self._runs}"
        if error:
            return f"{count}: {job.name} failed: {error}"
        value = reached.value
        shown = "" if value != value else f", {reached.metric} {value:.2f}"
        return f"{count}: {job.name} finished{shown}"

    def look(self, running: Iterable[Job]) -> tuple[int, float | None, str]:
        """Returns steps done, the mean over running runs of their return or loss, and its label."""
        values: dict[str, list[float]] = {}
        for job in running:
            reached = latest(job.folder)
            # The last step counts once the run has ended: it still has to save.
            self._done[job] = max(self._done[job], min(reached.steps, job.total - 1))
            if reached.value == reached.value:
                values.setdefault(reached.metric, []).append(reached.value)
        label = f"{self._ended} of {self._runs} runs,"
        if not values:
            return self.steps()[0], None, f"{label} return"
        metric, shown = max(values.items(), key=lambda item: len(item[1]))
        each = " ".join(f"{value:.2f}" for value in shown[:8])
        spread = f"{metric} {each}, mean" if len(shown) > 1 else metric
        return self.steps()[0], sum(shown) / len(shown), f"{label} {spread}"
