"""Statistics of a few runs on several games, with stratified bootstrap intervals.

Agarwal et al., "Deep RL at the edge of the statistical precipice", NeurIPS 2021,
https://arxiv.org/abs/2108.13264. Scores of M games are M arrays whose last axis is the N_m runs of
game m; runs are drawn with replacement, for each game apart. M games, N runs, R resamples.
"""

# rliable 1.2.0, the authors' own, is not used: its intervals need arch < 8, whose newest release
# (7.2) cannot be imported beside pandas 3; they draw from NumPy's global generator, whatever
# `random_state` says; and they need as many runs of one game as of the next, which a sweep that is
# under way has not. scipy.stats.bootstrap with one sample a game is the same resampling.

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

Statistic = Callable[..., Any]  # (*games [..., N_m]) -> [...].

CONFIDENCE = 0.95
RESAMPLES = 10_000
BATCH_ELEMENTS = 4_000_000  # Of what is resampled at once, 32 MB.


class Estimate(NamedTuple):
    """A statistic and its 95% percentile interval; floats, or arrays [...]."""

    value: Any
    low: Any
    high: Any

    def __str__(self) -> str:
        if self.low == self.high:  # One run a game, or equal runs: no interval to be shown.
            return shown(self.value)
        return f"{shown(self.value)} [{shown(self.low)}, {shown(self.high)}]"


def shown(value: float) -> str:
    """A number for a reader: four digits, and thousands in full."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def mean(*games: np.ndarray) -> Any:
    """Mean over games of the mean over runs, [...]."""
    return np.mean([game.mean(axis=-1) for game in games], axis=0)


def median(*games: np.ndarray) -> Any:
    """Median over games of the mean over runs, [...]."""
    return np.median([game.mean(axis=-1) for game in games], axis=0)


def interquartile_mean(*games: np.ndarray) -> Any:
    """Mean of the middle half of all runs of all games, [...].

    The lowest and the highest floor(sum_m N_m / 4) scores are left out. A game with fewer runs
    than another counts less.
    """
    return scipy.stats.trim_mean(np.concatenate(games, axis=-1), 0.25, axis=-1)


def optimality_gap(*games: np.ndarray, threshold: float = 1.0) -> Any:
    """How far scores stay below `threshold`, those above it counted as equal, [...].

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
    """Mean over games of P(a run of x scores more than one of y), a tie counted as half, [...].

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


def interval(
    statistic: Statistic,
    games: Sequence[np.ndarray],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A statistic of scores with its stratified bootstrap interval.

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
    found = scipy.stats.bootstrap(
        [games[m] for m in repeated],
        of_resampled,
        n_resamples=resamples,
        batch=max(1, BATCH_ELEMENTS // elements),
        vectorized=True,
        axis=-1,
        paired=False,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, found.low, found.high)


def improvement(
    x: Sequence[np.ndarray], y: Sequence[np.ndarray], *, resamples: int = RESAMPLES
) -> Estimate:
    """`probability_of_improvement` with its interval; runs of x and of y are drawn apart."""
    count = len(x)
    return interval(
        lambda *games: probability_of_improvement(games[:count], games[count:]),
        [*x, *y],
        resamples=resamples,
    )


def profile(
    games: Sequence[np.ndarray], thresholds: np.ndarray, *, resamples: int = 2_000
) -> Estimate:
    """Performance profile: the fraction of runs above each threshold, [K], with its interval.

    F(t) = mean_m mean_n 1{x_mn > t}

    Args:
      games: scores, [N_m] each.
      thresholds: [K], in units of the scores.
      resamples: R >= 1.
    """
    above = [(game[None] > thresholds[:, None]).astype(np.float64) for game in games]  # [K, N]
    return interval(mean, above, resamples=resamples)
