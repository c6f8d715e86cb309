"""Best of N: of N texts that a policy samples from a prompt, the one with the highest score.

Its distribution is known exactly where texts can be enumerated, and bounded where not. Beirami et
al., "Theoretical guarantees on the best-of-n alignment policy", 2024,
https://arxiv.org/abs/2401.01879:

    P(best of N = y) = (F(r)^N - F_-(r)^N) p(y) / (F(r) - F_-(r)),  r the reward of y

F(r) is the probability of a reward <= r, and F_-(r) of one below: of texts with equal rewards the
first that was drawn is taken.

Shape letters: P prompts, N texts of each, Y possible texts.
"""

import math

import numpy as np

from kullback.core import types

TOLERANCE = 1e-5  # Error of a sum of probabilities, as of many texts in float32.


def kl_bound(n: int) -> float:
    """Returns the upper bound of KL(best of N || policy), in nats: log N - (N - 1) / N.

    The bound is reached where rewards are continuous, and not where rewards have point masses.

    Raises:
      ValueError: for n < 1.
    """
    _check(n)
    return math.log(n) - (n - 1) / n


def choose(scores: types.Array, n: int) -> np.ndarray:
    """Returns indices of the best texts, int64 [P]; the first of equals.

    Args:
      scores: [P N], texts of a prompt one after another.
      n: N.

    Raises:
      ValueError: if N does not divide the number of scores, or a score is NaN, which is neither
        better nor worse than another one.
    """
    _check(n)
    scores = np.asarray(scores)
    if scores.ndim != 1 or len(scores) % n:
        raise ValueError(f"best of {n} needs a multiple of {n} scores, got shape {scores.shape}")
    _check_no_nan("score", scores)
    return np.argmax(scores.reshape(-1, n), 1) + np.arange(0, len(scores), n)


def distribution(probabilities: types.Array, rewards: types.Array, n: int) -> np.ndarray:
    """Returns the probability of each text to be the best of N, float64 [Y].

    Args:
      probabilities: of the policy, [Y], sum 1.
      rewards: [Y]; texts of equal rewards are ties.
      n: N >= 1; 1 is the policy.

    Raises:
      ValueError: for n < 1, other shapes, invalid probabilities, or rewards that are NaN.
    """
    _check(n)
    p, level, mass = _levels(probabilities, rewards)
    below = np.concatenate([[0], np.cumsum(mass)])
    best = below[1:] ** n - below[:-1] ** n
    share = np.divide(p, mass[level], out=np.zeros_like(p), where=p > 0)
    return best[level] * share


def log_quantile(probabilities: types.Array, rewards: types.Array, n: int) -> np.ndarray:
    """Returns the reward whose regularised optimum is the best of N, float64 [Y].

        r(y) = log F(r) + 1 / (N - 1) log sum_{i=1..N} (F_-(r) / F(r))^(i - 1)

    p exp((N - 1) r) is the best of N, and sums to 1 by itself. Sessa et al., "BOND", 2024,
    equation 8, https://arxiv.org/abs/2407.14622. Texts of probability 0 below all others have none,
    -inf.

    Args:
      probabilities, rewards: as for `distribution`.
      n: N >= 2.

    Raises:
      ValueError: as `distribution` does, and for n < 2.
    """
    if n < 2:
        raise ValueError(f"a log-quantile of the best of N takes N >= 2, got {n}")
    _, level, mass = _levels(probabilities, rewards)
    below = np.concatenate([[0], np.cumsum(mass)])
    at_most, less = below[1:][level], below[:-1][level]
    with np.errstate(divide="ignore"):
        log_at_most = np.log(at_most)
    ratio = np.divide(less, at_most, out=np.zeros_like(at_most), where=at_most > 0)
    return log_at_most + np.log(np.sum(ratio[:, None] ** np.arange(n), 1)) / (n - 1)


def kl(probabilities: types.Array, rewards: types.Array, n: int) -> float:
    """Returns the exact KL(best of N || policy), in nats; arguments are those of `distribution`."""
    p, q = np.asarray(probabilities, np.float64), distribution(probabilities, rewards, n)
    inside = q > 0
    return float(np.sum(q[inside] * np.log(q[inside] / p[inside])))


def _levels(
    probabilities: types.Array, rewards: types.Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns probabilities and the level of each reward, [Y] each, and masses of levels, [L]."""
    p, r = np.asarray(probabilities, np.float64), np.asarray(rewards)
    if p.ndim != 1 or p.shape != r.shape:
        raise ValueError(f"expected one reward a probability, [Y] both, got {p.shape}, {r.shape}")
    if not np.all(p >= 0) or not abs(p.sum() - 1) <= TOLERANCE:
        raise ValueError(
            f"probabilities must be >= 0 and sum to 1, got {p[:8].tolist()} of sum {p.sum():g}; "
            "divide them by their sum"
        )
    _check_no_nan("reward", r)
    _, level = np.unique(r, return_inverse=True)
    return p, level, np.bincount(level, p)  # The lowest reward comes first.


def _check(n: int) -> None:
    if n < 1:
        raise ValueError(f"best of N takes N >= 1, got {n}")


def _check_no_nan(what: str, values: np.ndarray) -> None:
    wrong = np.flatnonzero(np.isnan(values))
    if len(wrong):
        raise ValueError(
            f"each {what} must be a number to be compared, got nan for text {wrong[0]} of "
            f"{len(values)}"
        )
