"""Reports on language models and reward models: estimates with their intervals, and rows."""

import math
from typing import Any, NamedTuple

from kullback.experiments import statistics


class Report(NamedTuple):
    """Estimates of one model over held-out examples or pairs."""

    title: str
    estimates: dict[str, statistics.Estimate]  # By name, in the order in which they are shown.
    notes: list[str]  # A line each: what is not shown, and why.
    rows: list[dict[str, Any]]  # An example or a pair each, JSON-able.


def show(report: Report) -> str:
    """Returns title, estimates as a table, and notes."""
    width = max(map(len, report.estimates)) + 2
    lines = [f"  {name:<{width}}{_shown(found)}" for name, found in report.estimates.items()]
    return "\n".join([report.title, *lines, *(f"  {note}" for note in report.notes)])


def _shown(found: statistics.Estimate) -> str:
    interval = "" if math.isnan(found.low) else f"  [{found.low:.4f}, {found.high:.4f}]"
    return f"{found.mean:.4f}{interval}"
