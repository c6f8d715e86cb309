"""Numbers of curves of reward against KL: areas of fronts, values on the way, best of n draws.

A front is a set of points (KL, reward); the less of the one and the more of the other, the better.
"""

import math
from collections.abc import Sequence

import numpy as np

from kullback.core import types

Column = types.Array | Sequence[float]


def front_area(kl: Column, reward: Column, reference: tuple[float, float]) -> float:
    """Returns the area that a front dominates, in units of reward times nats: its hypervolume.

        integral over k from 0 to K of (max {reward_i: kl_i <= k} - R)_+,  reference = (K, R)

    Points without a KL within reach add nothing. A curve is given by points that lie near enough to
    each other, see `filled`.

    Args:
      kl: >= 0, [n].
      reward: [n].
      reference: a KL that no better front exceeds, and a reward that is worth nothing.

    Raises:
      ValueError: for other shapes, or a reference without area.
    """
    kl, reward = _points(kl, reward)
    most, least = reference
    if not most > 0:
        raise ValueError(f"the reference's KL must be > 0, got {most}")
    order = np.argsort(kl, kind="stable")
    kl, reward = np.maximum(kl[order], 0), reward[order]
    inside = kl <= most
    edges = np.append(kl[inside], most)
    best = np.maximum.accumulate(reward[inside]) if inside.any() else np.zeros(0)
    return float(np.sum(np.diff(edges) * np.maximum(best - least, 0)))


def filled(kl: Column, reward: Column, pieces: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Returns a curve's points, [n], and `pieces` - 1 more on the line to each next one."""
    kl, reward = _points(kl, reward)
    if len(kl) < 2:
        return kl, reward
    at = np.linspace(0, len(kl) - 1, (len(kl) - 1) * pieces + 1)
    places = np.arange(len(kl))
    return np.interp(at, places, kl), np.interp(at, places, reward)


def above_chord(kl: Column, reward: Column) -> float:
    """Returns the area between a curve and the line from end to end, positive above it.

    Args:
      kl: [n], the first and the last differ.
      reward: [n].
    """
    kl, reward = _points(kl, reward)
    chord = (kl[-1] - kl[0]) * (reward[0] + reward[-1]) / 2
    return float(np.trapezoid(reward, kl) - chord)


def value_at(kl: Column, reward: Column, at: float) -> float:
    """Returns the reward where a curve first has a KL of `at`, by straight lines; NaN if nowhere.

    Args:
      kl: [n], in the order of the curve; it may turn.
      reward: [n].
      at: nats.
    """
    kl, reward = _points(kl, reward)
    reached = np.flatnonzero(kl >= at)
    if not len(reached):
        return math.nan
    i = int(reached[0])
    if i == 0:
        return float(reward[0])
    share = (at - kl[i - 1]) / (kl[i] - kl[i - 1])
    return float((1 - share) * reward[i - 1] + share * reward[i])


def best_of(proxy: Column, gold: Column, counts: Sequence[int]) -> np.ndarray:
    """Returns the mean gold of the one of N draws that a proxy likes best, without bias, [counts].

        sum_i gold_(i) C(i - 1, N - 1) / C(n, N),  i = 1 .. n in the order of the proxy

    It is the mean over all sets of N of the n draws; of equals the later draw wins.

    Args:
      proxy: [n].
      gold: [n].
      counts: N, each in [1, n].

    Raises:
      ValueError: for an N out of range, or other shapes.
    """
    proxy, gold = _points(proxy, gold)
    n = len(proxy)
    ordered, rank = gold[np.argsort(proxy, kind="stable")], np.arange(1, n + 1)
    means = []
    for count in counts:
        if not 1 <= count <= n:
            raise ValueError(f"best of N takes N in [1, {n}], the number of draws, got {count}")
        # C(i - 1, N - 1) / C(n, N) is N / n at i = n, and (i - N) / (i - 1) of that before.
        ratio = np.ones(n)
        ratio[:-1] = np.maximum(rank[1:] - count, 0) / (rank[1:] - 1)
        weights = count / n * np.cumprod(ratio[::-1])[::-1]
        means.append(float(np.sum(weights * ordered)))
    return np.array(means)


def win_rate(one: Column, other: Column) -> float:
    """Returns the share of pairs in which the one is worth more; ties are half a win. [n] both."""
    one, other = _points(one, other)
    return float(np.mean((np.sign(one - other) + 1) / 2))


def _points(first: Column, second: Column) -> tuple[np.ndarray, np.ndarray]:
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.ndim != 1 or one.shape != two.shape or not len(one):
        raise ValueError(f"expected two columns, [n] both, n >= 1, got {one.shape}, {two.shape}")
    return one, two
