"""Estimates with 95% intervals: of a mean over seeds, of a ratio over prompts, of scores of games.

Those of games follow Agarwal et al., "Deep RL at the edge of the statistical precipice", NeurIPS
2021, https://arxiv.org/abs/2108.13264. Scores of M games are M arrays whose last axis is the N_m
runs of game m; runs are drawn with replacement, for each game apart. M games, N runs, R resamples.
"""

# rliable 1.2.0, the authors' own, is not used: its intervals need arch < 8, whose newest release
# (7.2) cannot be imported beside pandas 3; they draw from NumPy's global generator, whatever
# `random_state` says; and they need as many runs of one game as of the next, which a sweep that is
# under way has not. scipy.stats.bootstrap with one sample a game is the same resampling.

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

Statistic = Callable[..., Any]  # (*games [..., N_m]) -> [...].

CONFIDENCE = 0.95
RESAMPLES = 10_000  # For scores of games.
RATIO_RESAMPLES = 2_000
BATCH_ELEMENTS = 4_000_000  # Largest array that is resampled at once, 32 MB.


class Estimate(NamedTuple):
    """A mean, or another statistic, and its 95% interval; floats, or arrays [...]."""

    mean: Any
    low: Any = math.nan  # NaN: no interval is known.
    high: Any = math.nan

    def __str__(self) -> str:
        if self.low == -math.inf:  # As `t_interval` writes it; of values that diverged it is NaN.
            return f"{self.mean:.4g} (no interval of one)"
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def t_interval(values: Iterable[float]) -> Estimate:
    """Returns the mean of independent values with Student's t interval; infinite for one value."""
    x = np.asarray(list(values), np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return Estimate(mean, -math.inf, math.inf)
    # As scipy's ttest_1samp(x, 0).confidence_interval(), whose last digits depend on the mean.
    half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return Estimate(mean, mean - float(half), mean + float(half))


def ratio(values: np.ndarray, weights: np.ndarray | None = None) -> Estimate:
    """Returns sum(values) / sum(weights) with its bootstrap interval; the same each time.

    Args:
      values: [n]; NaN is left out. There is no interval for none, or if one is infinite.
      weights: [n], >= 0; None is ones, which gives the mean.
    """
    known = ~np.isnan(values)
    values = np.asarray(values, np.float64)[known]
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)[known]
    if len(values) == 0:
        return Estimate(math.nan)
    quotient = float(values.sum() / weights.sum())
    if len(values) == 1 or not np.all(np.isfinite(values)):
        return Estimate(quotient)
    low, high = _bootstrap(
        (values, weights),
        lambda x, w, axis: x.sum(axis) / w.sum(axis),
        paired=True,
        resamples=RATIO_RESAMPLES,
        batch=100,
    )
    return Estimate(quotient, float(low), float(high))


def chance_of_higher(higher: np.ndarray, lower: np.ndarray) -> float:
    """Returns the share of pairs, one of each, whose first is higher; a tie counts as half.

    Of scores of two classes, [n] and [m], it is the area under the ROC curve.
    """
    u = scipy.stats.mannwhitneyu(higher, lower, method="asymptotic").statistic
    return float(u / (len(higher) * len(lower)))


def _bootstrap(
    samples: Sequence[np.ndarray],
    statistic: Callable[..., Any],
    *,
    paired: bool,
    resamples: int,
    batch: int,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Returns the ends of the percentile interval; the other methods divide by a deviation of 0."""
    bounds = scipy.stats.bootstrap(
        samples,
        statistic,
        paired=paired,
        vectorized=True,
        axis=-1,
        method="percentile",
        n_resamples=resamples,
        confidence_level=CONFIDENCE,
        batch=batch,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return bounds.low, bounds.high


def mean(*games: np.ndarray) -> Any:
    """Returns the mean over games of the mean over runs, [...]."""
    return np.mean([game.mean(axis=-1) for game in games], axis=0)


def median(*games: np.ndarray) -> Any:
    """Returns the median over games of the mean over runs, [...]."""
    return np.median([game.mean(axis=-1) for game in games], axis=0)


def interquartile_mean(*games: np.ndarray) -> Any:
    """Returns the mean of the middle half of all runs of all games, [...].

    The lowest and the highest floor(sum_m N_m / 4) scores are left out. A game with fewer runs
    than another counts less.
    """
    return scipy.stats.trim_mean(np.concatenate(games, axis=-1), 0.25, axis=-1)


def optimality_gap(*games: np.ndarray, threshold: float = 1.0) -> Any:
    """Returns the mean shortfall of scores below `threshold`, [...]; 0 for those above it.

    threshold - mean_m mean_n min(x_mn, threshold)
    """
    return threshold - mean(*(np.minimum(game, threshold) for game in games))


AGGREGATES: dict[str, Statistic] = {
    "median": median,
    "IQM": interquartile_mean,
    "mean": mean,
    "optimality gap": optimality_gap,
}


def probability_of_improvement(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> Any:
    """Returns the mean over games of P(a run of x > one of y), a tie counted as half, [...].

    mean_m 1/(N K) sum_nk (1{x_mn > y_mk} + 1{x_mn = y_mk} / 2)

    Args:
      x: M games, [..., N_m] each.
      y: the same games, [..., K_m] each.
    """
    chances = []
    for ours, theirs in zip(x, y, strict=True):
        left, right = ours[..., :, None], theirs[..., None, :]  # [..., N, 1], [..., 1, K]
        wins = np.where(left == right, 0.5, (left > right).astype(np.float64))
        chances.append(wins.mean(axis=(-2, -1)))
    return np.mean(chances, axis=0)


def stratified(
    statistic: Statistic,
    games: Sequence[np.ndarray],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Returns a statistic of scores with its stratified bootstrap interval.

    Args:
      statistic: see `Statistic`; called with resamples as an axis before the runs'.
      games: scores, [..., N_m] each, with the same leading axes; those have resamples in common,
        so that checkpoints of a run stay together. A game with one run is never resampled.
      resamples: R >= 1.
      seed: of the resampling; the same seed, the same interval.

    Returns:
      The statistic of all runs and the 2.5% and 97.5% percentiles of it over resamples, [...].
      Where every game has one run, both are the statistic itself.

    Raises:
      ValueError: if there is no game, or a game without runs.
    """
    games = [np.asarray(game, np.float64) for game in games]
    if not games or any(game.shape[-1] == 0 for game in games):
        counts = [game.shape[-1] for game in games]
        raise ValueError(f"expected at least one run of each of one game or more, got {counts}")
    value = statistic(*games)
    repeated = [m for m, game in enumerate(games) if game.shape[-1] > 1]
    if not repeated:
        return Estimate(value, value, value)

    def of_resampled(*drawn: np.ndarray, axis: int = -1) -> Any:
        del axis  # The last, as everywhere here.
        shape = drawn[0].shape[:-1]
        whole = [np.broadcast_to(g, (*shape, 1)) if g.shape[-1] == 1 else g for g in lifted]
        for m, sample in zip(repeated, drawn, strict=True):
            whole[m] = sample
        return statistic(*whole)

    # Resamples stand before the runs: [..., 1, N] broadcasts against [..., R, N].
    lifted = [game[..., None, :] for game in games]
    elements = sum(game.size for game in games)
    low, high = _bootstrap(
        [games[m] for m in repeated],
        of_resampled,
        paired=False,
        resamples=resamples,
        batch=max(1, BATCH_ELEMENTS // elements),
        seed=seed,
    )
    return Estimate(value, low, high)


def improvement(
    x: Sequence[np.ndarray], y: Sequence[np.ndarray], *, resamples: int = RESAMPLES
) -> Estimate:
    """Estimates `probability_of_improvement`; runs of x and of y are resampled apart."""
    count = len(x)
    return stratified(
        lambda *games: probability_of_improvement(games[:count], games[count:]),
        [*x, *y],
        resamples=resamples,
    )


def profile(
    games: Sequence[np.ndarray], thresholds: np.ndarray, *, resamples: int = 2_000
) -> Estimate:
    """Estimates the performance profile, the fraction of runs above each threshold, [K].

    F(t) = mean_m mean_n 1{x_mn > t}

    Args:
      games: scores, [N_m] each.
      thresholds: [K], in units of the scores.
      resamples: R >= 1.
    """
    above = [(game[None] > thresholds[:, None]).astype(np.float64) for game in games]  # [K, N]
    return stratified(mean, above, resamples=resamples)
