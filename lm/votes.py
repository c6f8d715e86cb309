"""Answers from many samples: votes, routing by their agreement, and the chance that one is right.

k answers are sampled to each question. Equal answers have one number, a code (`encode`); an answer
that cannot be read has none, NONE.

Majority (Wang et al., "Self-Consistency", 2023, https://arxiv.org/abs/2203.11171), and uncertainty
routing (Gemini Team, 2023, https://arxiv.org/abs/2312.11805, section 5.1.1): the agreed answer
where enough samples agree, else the greedy one, which is written without a chain of thought.

    a* = argmax_a sum_i w_i [a_i = a],  c = sum_i w_i [a_i = a*] / sum_i w_i,  w_i = 1 or a weight
    answer = a* if c >= tau, else g

Ties go to the answer that came first. The paper does not say how ties are broken, nor what
agreement is; this share of all samples, those that cannot be read included, is ours.

Shape letters: Q questions, k samples of each, D subsets of them.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import chex
import numpy as np

NONE = -1  # The code of what is no answer.
DRAWS = 1_000  # Subsets that stand for all of them, where there are more.


class Votes(NamedTuple):
    """The answer that most samples gave, to each of Q questions."""

    answers: np.ndarray  # int64, [Q]: its code; NONE if none was read.
    winners: np.ndarray  # int64, [Q]: the first sample that gave it; 0 if none was read.
    shares: np.ndarray  # float64, [Q]: c, its share of the weight of all samples, in [0, 1].


def encode(
    samples: Sequence[Sequence[Hashable | None]], *others: Sequence[Hashable | None]
) -> tuple[np.ndarray, ...]:
    """Returns codes of answers, equal where the answers to a question are; NONE for None.

    Args:
      samples: k answers to each of Q questions.
      *others: an answer each, such as the greedy ones and the references; a reference that nobody
        gave has a code of its own.

    Returns:
      int64 [Q, k] of the samples, then [Q] of each of the others.

    Raises:
      ValueError: unless each question has k samples and one of each of the others.
    """
    counts = {len(row) for row in samples}
    if len(counts) != 1 or any(len(other) != len(samples) for other in others):
        raise ValueError(
            f"expected equally many samples of each question and one of the others, got "
            f"{sorted(counts)} samples of {len(samples)} questions, and {[*map(len, others)]}"
        )
    coded = np.full((len(samples), len(samples[0]) + len(others)), NONE)
    for row, given in enumerate(zip(samples, *others, strict=True)):
        codes: dict[Hashable, int] = {}
        for column, answer in enumerate((*given[0], *given[1:])):
            if answer is not None:
                coded[row, column] = codes.setdefault(answer, len(codes))
    num_samples = len(samples[0])
    return coded[:, :num_samples], *coded[:, num_samples:].T


def majority(codes: np.ndarray, weights: np.ndarray | None = None) -> Votes:
    """Counts the votes of k samples for their answers.

    Args:
      codes: integers, [Q, k], NONE or >= 0.
      weights: w, float64, [Q, k], finite and > 0; None is ones.

    Raises:
      ValueError: for other weights.
    """
    chex.assert_rank(codes, 2)
    weights = np.ones(codes.shape) if weights is None else np.asarray(weights, np.float64)
    chex.assert_equal_shape([codes, weights])
    if not np.all((weights > 0) & np.isfinite(weights)):
        raise ValueError("weights of votes must be finite and > 0; take exponentials of scores")
    equal = codes[:, :, None] == codes[:, None, :]  # [Q, k, k]
    votes = np.where(codes == NONE, 0.0, np.einsum("qij,qj->qi", equal, weights))
    winners = np.argmax(votes, 1)  # The first of equals, hence the first that gave the answer.
    rows = np.arange(len(codes))
    # Of ones the sum is exact, so that a share equals its threshold.
    return Votes(codes[rows, winners], winners, votes[rows, winners] / np.sum(weights, 1))


def route(votes: Votes, greedy: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the codes of the routed answers, int64 [Q].

    Args:
      votes: of the samples.
      greedy: g, codes, [Q]; it is taken too where no sample could be read.
      threshold: tau, the least share of an agreed answer; 0 is the majority, above 1 is greedy.
    """
    chex.assert_equal_shape([votes.answers, greedy])
    return np.where(is_agreed(votes, threshold), votes.answers, greedy)


def is_agreed(votes: Votes, threshold: float) -> np.ndarray:
    """Returns which questions are answered by their samples, bool [Q], rather than greedily."""
    return (votes.answers != NONE) & (votes.shares >= threshold)


def choose_threshold(
    votes: Votes, greedy: np.ndarray, references: np.ndarray, num_samples: int
) -> float:
    """Returns the smallest threshold of the highest accuracy, of {0, 1/k, ..., 1, 1 + 1/k}.

    Args:
      votes, greedy: of validation questions.
      references: codes of the right answers, [Q].
      num_samples: k.
    """
    chex.assert_equal_shape([votes.answers, greedy, references])
    tried = [j / num_samples for j in range(num_samples + 2)]
    accuracies = [np.mean(route(votes, greedy, tau) == references) for tau in tried]
    return tried[int(np.argmax(accuracies))]


def pass_at_k(right: np.ndarray, num_samples: int, k: int) -> np.ndarray:
    """Returns unbiased estimates of the probability that at least one of k answers is right, [n].

        1 - C(n - c, k) / C(n, k),  n answers of which c are right

    Chen et al., "Evaluating Large Language Models Trained on Code", 2021, equation 1,
    https://arxiv.org/abs/2107.03374.

    Raises:
      ValueError: for k outside [1, num_samples].
    """
    _check_k(num_samples, k)
    wrong = [math.comb(num_samples - int(c), k) for c in right]
    return 1 - np.array(wrong, np.float64) / math.comb(num_samples, k)


def subsets(num_samples: int, k: int, *, seed: int = 0) -> np.ndarray:
    """Returns subsets of k of n samples, int64 [D, k], each in the samples' order.

    They are all C(n, k), or `DRAWS` random ones where there are more.

    Raises:
      ValueError: for k outside [1, num_samples].
    """
    _check_k(num_samples, k)
    if math.comb(num_samples, k) <= DRAWS:
        return np.array([*itertools.combinations(range(num_samples), k)])
    random = np.random.default_rng([seed, num_samples, k])
    order = np.argsort(random.random((DRAWS, num_samples)), 1)
    return np.sort(order[:, :k], 1)


def over_subsets(
    measure: Callable[[np.ndarray], Any], num_samples: int, k: int, *, seed: int = 0
) -> np.ndarray:
    """Returns the mean of a measure over subsets of k samples, float64 [Q].

    Args:
      measure: indices of samples [k] -> float or bool [Q].
      num_samples, k, seed: as for `subsets`.
    """
    chosen = subsets(num_samples, k, seed=seed)
    total = sum(np.asarray(measure(subset), np.float64) for subset in chosen)
    return np.asarray(total) / len(chosen)


def _check_k(num_samples: int, k: int) -> None:
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must lie in [1, {num_samples}], the number of samples, got {k}")
