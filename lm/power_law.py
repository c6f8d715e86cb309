"""The power law of a distillation run, and a warning where the run departs from it.

Tiapkin et al., "On Teacher Hacking in Language Model Distillation", ICML 2025,
https://arxiv.org/abs/2502.02671: the distance to the teacher, on held-out prompts, falls as
C step^-a while learning goes well, and more slowly where a student memorises its fixed sequences
and imitates the teacher's errors. This is visible without a ground truth.

The test is ours: a line is fitted to ln value over ln step on the first third of the N checkpoints;
a run has departed where several checkpoints in a row lie above the line by three standard errors
of prediction.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHARE = 1 / 3  # Share of the checkpoints that the line is fitted to.
LEAST = 4  # Checkpoints that it is fitted to at least: the scatter of fewer is too uncertain.
ERRORS = 3.0  # Standard errors above the line that count.
CONSECUTIVE = 3  # Checkpoints in a row that must lie so far above.
SCATTER = 0.01  # Least scatter of ln value: 1% above a law is no departure, however exact the rest.


class Fit(NamedTuple):
    """A fitted law C step^-a, with its uncertainty."""

    exponent: float  # a; positive where values fall.
    log_scale: float  # ln C.
    scatter: float  # Standard deviation of ln value about the line, N - 2 degrees of freedom.
    mean: float  # Mean of ln step.
    spread: float  # Sum of (ln step - mean)^2.
    num_points: int  # N.

    def value(self, step: float) -> float:
        """Returns the value that the law predicts at a step."""
        return math.exp(self.log_scale - self.exponent * math.log(step))

    def excess(self, steps: Sequence[float], values: Sequence[float]) -> np.ndarray:
        """Returns the excess of ln value over the line, in standard errors, float64 [N].

            scatter sqrt(1 + 1 / N + (ln step - mean)^2 / spread)

        is the standard error of prediction, which grows with the distance of the extrapolation.
        """
        x, y = _logarithms(steps, values)
        error = np.sqrt(1 + 1 / self.num_points + (x - self.mean) ** 2 / self.spread)
        line = self.log_scale - self.exponent * x
        return (y - line) / (max(self.scatter, SCATTER) * error)


def fit(steps: Sequence[float], values: Sequence[float]) -> Fit:
    """Fits a power law to values > 0 at steps > 0, by least squares of logarithms.

    Raises:
      ValueError: for fewer than three points, steps that do not increase from above 0, or values
        that are not positive and finite.
    """
    if len(steps) < 3:
        raise ValueError(f"a power law and its scatter need 3 points or more, got {len(steps)}")
    x, y = _logarithms(steps, values)
    mean = x.mean()
    spread = float(np.sum((x - mean) ** 2))
    slope = float(np.sum((x - mean) * (y - y.mean()))) / spread
    log_scale = float(y.mean() - slope * mean)
    scatter = math.sqrt(float(np.sum((y - log_scale - slope * x) ** 2)) / (len(x) - 2))
    return Fit(-slope, log_scale, scatter, float(mean), spread, len(x))


def early(steps: Sequence[float], values: Sequence[float]) -> Fit:
    """Fits the law to the first third of the checkpoints; raises as `fit` does."""
    num = _num_fitted(len(steps))
    return fit(steps[:num], values[:num])


def departure(steps: Sequence[float], values: Sequence[float]) -> int | None:
    """Returns the index of the checkpoint where a run rises above its law, or None.

    It is None too for too few checkpoints to fit a line and judge CONSECUTIVE more. Falling faster
    is no departure.

    Raises:
      ValueError: as `fit` does.
    """
    num = _num_fitted(len(steps))
    if len(steps) < num + CONSECUTIVE:
        return None
    above = early(steps, values).excess(steps, values) > ERRORS
    above[:num] = False
    for first in range(num, len(above) - CONSECUTIVE + 1):
        if above[first : first + CONSECUTIVE].all():
            return first
    return None


def warning(steps: Sequence[float], values: Sequence[float]) -> str | None:
    """Returns a warning of teacher hacking for a distillation run, or None.

    A loss that lacks a constant may be <= 0 and has no logarithm: such a run is not judged. Values
    that are not finite are left out of the fit; if the last one is not, the warning says so.

    Args:
      steps: learner steps of the evaluations, increasing, > 0.
      values: distance to the teacher on held-out prompts at each, less is better.

    Raises:
      ValueError: for steps that do not increase from above 0, or are not as many.
    """
    x, y = _points(steps, values)
    is_finite = np.isfinite(y)
    if len(y) and not is_finite[-1]:
        return (
            f"at step {x[-1]:,.0f} the distance to the teacher is {y[-1]:g}: a token of the "
            "held-out texts has no probability, or parameters are not finite"
        )
    if not (y[is_finite] > 0).all():
        return None
    steps, values = x[is_finite].tolist(), y[is_finite].tolist()
    first = departure(steps, values)
    if first is None:
        return None
    law = early(steps, values)
    change = (
        f"no longer falls as step^{-law.exponent:.2f}"
        if law.exponent > 0
        else f"rises faster than step^{-law.exponent:.2f}, as it did before"
    )
    return (
        f"since step {steps[first]:,.0f} the distance to the teacher {change}: "
        f"{values[first]:.3g}, where that is {law.value(steps[first]):.3g}. The student may be "
        "learning the teacher's errors (teacher hacking): stop here, sample sequences anew (a "
        "larger student_fraction), or use more prompts"
    )


def _num_fitted(count: int) -> int:
    return max(LEAST, round(count * SHARE))


def _points(steps: Sequence[float], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps and values as float64 [N]; only steps are checked."""
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"steps and values must be as many, got {x.shape} and {y.shape}")
    if not (x > 0).all() or not (np.diff(x) > 0).all():
        raise ValueError(f"steps must be > 0 and increase, got {x.tolist()}")
    return x, y


def _logarithms(steps: Sequence[float], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = _points(steps, values)
    wrong = np.flatnonzero(~((y > 0) & np.isfinite(y)))
    if len(wrong):
        raise ValueError(
            f"values must be > 0 and finite to have logarithms, got {y[wrong[0]]} at step "
            f"{x[wrong[0]]:g}; of a loss that may be negative, use a divergence instead"
        )
    return np.log(x), np.log(y)
