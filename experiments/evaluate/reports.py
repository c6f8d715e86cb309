"""Reports on language models and reward models: estimates with their intervals, and examples."""

import math
from typing import Any, NamedTuple

from kullback.experiments import statistics


class Report(NamedTuple):
    """Estimates of one model over held-out examples or pairs."""

    title: str
    estimates: dict[str, statistics.Estimate]  # By name, in the order in which they are shown.
    notes: list[str]  # A line each: what is not shown, and why.
    lines: list[dict[str, Any]]  # An example or a pair each, JSON-able.


def show(report: Report) -> str:
    """Returns title, estimates as a table, and notes."""
    width = max(map(len, report.estimates)) + 2
    lines = [f"  {name:<{width}}{_shown(x)}" for name, x in report.estimates.items()]
    return "\n".join([report.title, *lines, *(f"  {note}" for note in report.notes)])


def _shown(estimate: statistics.Estimate) -> str:
    mean, low, high = estimate
    return f"{mean:.4f}" if math.isnan(low) else f"{mean:.4f}  [{low:.4f}, {high:.4f}]"
