"""Surrogates of the policy gradient, for texts that are learnt from several times.

With ratios of the policy to the one that began to learn from a batch, rho = pi / pi_old,

    PPO      L_n = -min(rho_n A_n, clip(rho_n, 1 - e_low, 1 + e_high) A_n)
    GSPO     the same with the geometric mean of the text's rho_n in place of rho_n
    CISPO    L_n = -sg(min(rho_n, 1 + e_high)) A_n log pi(y_n | y_<n, x)
    none     L_n = -A_n log pi(y_n | y_<n, x), the policy gradient itself

PPO: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7. GSPO: Zheng et al. 2025,
https://arxiv.org/abs/2507.18071. CISPO: MiniMax, "MiniMax-M1", 2025,
https://arxiv.org/abs/2506.13585. The bound of ratios where A < 0: Prime Intellect, "INTELLECT-2",
2025, https://arxiv.org/abs/2505.07291.

Shape letters: B texts, T tokens of a row.
"""

import dataclasses
from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from kullback.core import names
from kullback.lm import policy_gradient

__all__ = ["Corrected", "Correction", "Ratio", "Rule", "corrected", "log_ratios", "surrogate"]

# Ratio to the policy before a batch: none; of each token; of a text, the geometric mean over its
# tokens (GSPO); of a text, the product, which is that of its probabilities.
Ratio = Literal["none", "token", "sequence", "product"]
# Treatment of texts whose sampler was not the policy: none; weights of tokens, truncated; weights
# of texts, where those above a limit are dropped.
Correction = Literal["none", "truncate", "mask"]

BOUND = 20.0  # Largest |log rho|, so that products of many tokens stay finite.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A surrogate by its ratio and bounds."""

    ratio: Ratio = "token"
    clip_low: float = 0.2  # e_low in [0, 1); 0 is no bound.
    clip_high: float = 0.2  # e_high >= 0; 0 is no bound.
    limit: float = 0.0  # Bound of rho where A < 0, above 1 + e_high; 0 is none.
    detach: bool = False  # Whether the ratio is a weight without a gradient (CISPO).

    def __post_init__(self) -> None:
        if self.ratio not in get_args(Ratio):
            raise ValueError(names.unknown("ratio", self.ratio, get_args(Ratio), show_all=True))
        if not 0 <= self.clip_low < 1:
            raise ValueError(f"clip_low must lie in [0, 1), got {self.clip_low}; PPO has 0.2")
        if not self.clip_high >= 0:
            raise ValueError(f"clip_high must be >= 0, got {self.clip_high}; PPO has 0.2")
        if self.limit and not self.limit > 1 + self.clip_high:
            raise ValueError(
                f"ratio_limit must be 0, or above 1 + clip_high={1 + self.clip_high:g}, got "
                f"{self.limit}"
            )


def log_ratios(
    log_pi: jax.Array, old_log_pi: jax.Array, is_answer: jax.Array, ratio: Ratio
) -> jax.Array:
    """Returns log rho of each token, without a gradient, 0 outside of answers, [B, T].

    Args:
      log_pi: log-probabilities of the tokens under the policy, [B, T].
      old_log_pi: the same before the batch, [B, T].
      is_answer: bool, [B, T].
      ratio: see `Ratio`; those of texts are repeated for each token, those of "none" are 0.
    """
    chex.assert_rank(log_pi, 2)
    chex.assert_equal_shape([log_pi, old_log_pi, is_answer])
    token = jax.lax.stop_gradient(jnp.where(is_answer, log_pi - old_log_pi, 0))
    if ratio == "token":
        return token
    if ratio == "none":
        return jnp.zeros_like(token)
    total = jnp.sum(token, 1, keepdims=True)
    if ratio == "sequence":
        total = total / jnp.maximum(jnp.sum(is_answer, 1, keepdims=True), 1)
    return jnp.where(is_answer, total, 0)


def surrogate(
    log_pi: jax.Array, log_ratio: jax.Array, advantages: jax.Array, rule: Rule
) -> tuple[jax.Array, jax.Array]:
    """Returns losses of tokens, and whether a bound stopped or cut their gradient, bool.

    A token's loss has the value of its ratio, of which a text's is a constant of all its tokens,
    and the gradient rho grad log pi(y_n | ..). So the mean over the tokens of a text (the
    normalisation "length") has the gradient of a geometric mean, and the sum ("none") that of a
    product.

    Args:
      log_pi: log-probabilities of the tokens, any shape; the gradient flows through them.
      log_ratio: log rho by `log_ratios`, as `log_pi`.
      advantages: A, in units of reward, as `log_pi`.
      rule: ratio and bounds.
    """
    chex.assert_equal_shape([log_pi, log_ratio, advantages])
    if rule.ratio == "none":
        return -advantages * log_pi, jnp.zeros(log_pi.shape, bool)
    log_ratio = jax.lax.stop_gradient(jnp.clip(log_ratio, -BOUND, BOUND))
    low = 1 - rule.clip_low if rule.clip_low else 0.0
    high = 1 + rule.clip_high if rule.clip_high else jnp.inf
    if rule.detach:
        rho = jnp.exp(log_ratio)
        held = jnp.clip(rho, low, high)
        return -held * advantages * log_pi, held != rho
    # The gradient of the exponent is that of log pi, whatever ratio its value is.
    rho = jnp.exp(log_ratio + log_pi - jax.lax.stop_gradient(log_pi))
    # The minimum of both products: a bound acts where going on would raise the objective.
    is_good = advantages > 0
    largest = jnp.where(is_good, high, rule.limit or jnp.inf)
    bounded = jnp.clip(rho, jnp.where(is_good, 0.0, low), largest)
    is_clipped = (bounded != rho) & (advantages != 0)
    return -advantages * jnp.where(is_clipped, jax.lax.stop_gradient(bounded), rho), is_clipped


class Corrected(NamedTuple):
    """Weights of tokens whose sampler was not the policy, and how far the two are apart."""

    weights: jax.Array  # [B, T].
    is_cut: jax.Array  # bool, [B, T]: whether the limit acted.
    sampler_kl: jax.Array  # [B]: KL(sampler || policy) by k1 of the text, nats.
    largest: jax.Array  # [B]: largest ratio pi / sampler of a token.


def corrected(
    log_pi: jax.Array,
    sampler_log_pi: jax.Array,
    is_answer: jax.Array,
    correction: Correction,
    limit: float,
) -> Corrected:
    """Returns the weights pi / sampler that correct for another sampler, such as a rounded one.

        truncate   min(rho_n, C) for each token
        mask       rho of the text, the product, for all its tokens; 0 if it is above C
        none       1

    Truncated: Espeholt et al., "IMPALA", 2018, https://arxiv.org/abs/1802.01561. The sums that
    weights are shares of count all texts, dropped ones too.

    Args:
      log_pi: log-probabilities under the policy before the batch, as it is learnt, [B, T].
      sampler_log_pi: the same as the tokens were drawn, [B, T].
      is_answer: bool, [B, T].
      correction: see `Correction`.
      limit: C >= 1.

    Raises:
      ValueError: for another correction or limit.
    """
    chex.assert_rank(log_pi, 2)
    chex.assert_equal_shape([log_pi, sampler_log_pi, is_answer])
    check_correction(correction, limit)
    kind: Ratio = "product" if correction == "mask" else "token"
    token = log_ratios(log_pi, sampler_log_pi, is_answer, "token")
    rho = jnp.exp(jnp.minimum(log_ratios(log_pi, sampler_log_pi, is_answer, kind), BOUND))
    is_cut = is_answer & (rho > limit)
    weights = {
        "none": jnp.ones_like(rho),
        "truncate": jnp.minimum(rho, limit),
        "mask": jnp.where(is_cut, 0, rho),
    }
    return Corrected(
        weights=weights[correction],
        is_cut=is_cut & (correction != "none"),
        sampler_kl=-jnp.sum(policy_gradient.kl_estimate(token, "k1"), 1),
        largest=jnp.exp(jnp.minimum(jnp.max(token, 1), BOUND)),
    )


def check_correction(correction: Correction, limit: float) -> None:
    """Raises ValueError for an unknown correction or a limit below 1."""
    if correction not in get_args(Correction):
        raise ValueError(
            names.unknown("correction", correction, get_args(Correction), show_all=True)
        )
    if not limit >= 1:
        raise ValueError(
            f"correction_limit must be >= 1, got {limit}; 2 truncates tokens, 3 drops texts"
        )
