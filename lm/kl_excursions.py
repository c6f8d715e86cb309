"""Policies that run away from their supervised start, and a warning where one does.

The distance is KL(pi || pi_start) by samples of pi, in nats a token. Of all texts that the start
writes, nearly all cost it H(start) nats a token, its own entropy (Cover & Thomas, "Elements of
Information Theory", chapter 3), so that a policy which writes one such text, and no other, is at a
KL of H(start) a token. What is farther off writes what the start does not write. A start that is
sure of itself has an H near 0, and a reward may rightly ask for another answer: choosing one of e
texts costs 1 nat, whatever the start (the best of n samples is at ln n - (n - 1) / n; Gao et al.,
"Scaling Laws for Reward Model Overoptimization", 2022, https://arxiv.org/abs/2210.10760). To choose
so at every token is the least that counts as running away:

    threshold = max(1 nat, H(start)) a token
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

LEAST = 1.0  # Nats a token.
ENDS = 0.5  # Share of the threshold below which an excursion is over: KL of samples is noisy.


class Distance(NamedTuple):
    """The distance of a policy from its start, as a mean over the texts of an interval."""

    kl: float  # Nats a text.
    tokens: float  # Of a text.
    start_entropy: float  # H(start), nats a token.

    @property
    def per_token(self) -> float:
        """KL in nats a token; NaN for texts without a token."""
        return self.kl / self.tokens if self.tokens > 0 else float("nan")

    @property
    def threshold(self) -> float:
        """The largest KL, in nats a token, that is no excursion."""
        return max(LEAST, self.start_entropy)


def is_excursion(distance: Distance, was_one: bool) -> bool:
    """Returns whether a policy is on an excursion, given whether it was one interval before."""
    least = distance.threshold * (ENDS if was_one else 1.0)
    return distance.per_token > least


def watch(
    notes: dict[str, Any], steps: int, row: Mapping[str, float], remedy: str
) -> tuple[dict[str, float], str | None]:
    """Judges an interval of reinforcement learning.

    Args:
      notes: of the intervals before, JSON-able; they are brought up to date.
      steps: learner steps at the interval's end.
      row: means over the interval, of which `kl_start`, `answer_tokens` and `entropy` are read.
      remedy: the settings to change, as a clause.

    Returns:
      The column `kl_runaway`, 1 on an excursion and else 0; and a warning where one begins.
    """
    distance = Distance(
        kl=row["kl_start"],
        tokens=row["answer_tokens"],
        # The policy of the first interval is all but its start.
        start_entropy=notes.setdefault("start_entropy", row["entropy"]),
    )
    was_one = notes.get("runs_away", False)
    notes["runs_away"] = is_one = is_excursion(distance, was_one)
    warning = None
    if is_one and not was_one:
        warning = (
            f"at step {steps:,} the KL to the supervised start is {distance.kl:.3g} nats a text, "
            f"{distance.per_token:.2g} a token, above {distance.threshold:.2g}: the policy writes "
            f"what its start does not, as one that games its reward or has collapsed; {remedy}"
        )
    return {"kl_runaway": float(is_one)}, warning
