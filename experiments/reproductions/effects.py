"""Effects that are judged: means, differences and slopes, with their intervals; see judging.py."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.stats

from kullback.experiments import statistics

Numbers = Sequence[float] | np.ndarray

POWER = 0.8  # Of the smallest effect that would have been seen.


class Effect(NamedTuple):
    """A number whose error is Student's: a mean, a difference of means or a slope."""

    mean: float
    error: float  # Standard error.
    freedom: float  # Degrees of freedom.
    num_seeds: int  # Or processes, or games; of the smaller arm.
    test: str

    def interval(self, confidence: float = statistics.CONFIDENCE) -> statistics.Estimate:
        """Returns the number with its interval."""
        half = float(scipy.stats.t.ppf((1 + confidence) / 2, self.freedom)) * self.error
        return statistics.Estimate(self.mean, self.mean - half, self.mean + half)

    def smallest(self, confidence: float = statistics.CONFIDENCE) -> float:
        """Returns the least distance from a threshold that is seen with probability `POWER`."""
        freedom = round(self.freedom, 1)  # Nearly the same, and kept for the next.
        return _noncentrality(freedom, confidence) * self.error


def smallest_of(count: int) -> float:
    """Returns what the mean of `count` >= 2 independent values shows with probability `POWER`.

    It is known before anything is run: the distance from a threshold, in standard deviations of a
    value, from which on a 95% interval lies beyond it.
    """
    return _noncentrality(float(count - 1), statistics.CONFIDENCE) / np.sqrt(count)


@functools.cache
def _noncentrality(freedom: float, confidence: float) -> float:
    """Returns the effect, in standard errors, whose lower end lies above 0 as often as `POWER`."""
    least = float(scipy.stats.t.ppf((1 + confidence) / 2, freedom))
    if not np.isfinite(least):
        return float("nan")

    def missing(effect: float) -> float:
        return float(scipy.stats.nct.sf(least, freedom, effect)) - POWER

    root: Any = scipy.optimize.brentq(missing, 0.0, 3 * least + 3)
    return float(root)


def mean_of(values: Numbers, shared: str = "") -> Effect:
    """Returns the mean of independent values.

    Args:
      values: [n], n >= 2; differences, if arms are compared that share something.
      shared: what these share, and why they are compared by pairs.
    """
    x = np.asarray(values, np.float64)
    error = float(x.std(ddof=1) / np.sqrt(len(x)))
    test = f"t of pairs, which share {shared}" if shared else "t"
    return Effect(float(x.mean()), error, len(x) - 1, len(x), test)


def difference(better: Numbers, over: Numbers) -> Effect:
    """Returns the difference of the means of two samples that share nothing, as Welch's.

    Welch, "The generalization of Student's problem when several different population variances are
    involved", Biometrika 1947.

    Args:
      better, over: [n] and [m], both >= 2.
    """
    x, y = (np.asarray(values, np.float64) for values in (better, over))
    parts = np.array([sample.var(ddof=1) / len(sample) for sample in (x, y)])
    ones = np.array([len(x) - 1, len(y) - 1])
    total = parts.sum()
    freedom = float(total**2 / (parts**2 / ones).sum()) if total > 0 else float(ones.sum())
    mean = float(x.mean() - y.mean())
    return Effect(mean, float(np.sqrt(total)), freedom, min(len(x), len(y)), "Welch's t")


def slope(x: Numbers, samples: Sequence[Numbers]) -> Effect:
    """Returns the slope of a least-squares line over an ordered factor, whose runs share nothing.

    Args:
      x: the factor of each arm, [arms], such as a logarithm; two values or more.
      samples: of each arm, [arms] of [n].
    """
    at, values = stacked(x, samples)
    return Effect(*_line(at, values), len(at) - 2, min(map(len, samples)), "t of a slope")


def slopes(x: Numbers, curves: np.ndarray) -> np.ndarray:
    """Returns the slope of each row's least-squares line, [rows]; they are what is then judged.

    Args:
      x: [T].
      curves: [rows, T]: a row a seed, whose points are no independent ones.
    """
    return np.array([_line(x, y)[0] for y in curves])


def _line(x: Numbers, y: Numbers) -> tuple[float, float]:
    """Returns the slope of a least-squares line, [n] over [n], and its standard error."""
    line: Any = scipy.stats.linregress(x, y)
    return float(line.slope), float(line.stderr)


def stacked(x: Numbers, samples: Sequence[Numbers]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the factor and the value of each run of all arms, [n] both."""
    at = [np.full(len(y), value) for value, y in zip(x, samples, strict=True)]
    return np.concatenate(at), np.concatenate([np.asarray(y, np.float64) for y in samples])
