"""Policy gradients of whole texts: baselines, returns, and estimators of the KL to a reference.

    grad J = E_{y ~ pi} [sum_n A_n grad log pi(y_n | y_<n, x)],  A_n = return after y_<n - baseline

Leave-one-out: Kool et al. 2019, and for language models Ahmadian et al., "Back to Basics", ACL
2024, https://arxiv.org/abs/2402.14740. Group: Shao et al., "DeepSeekMath", 2024,
https://arxiv.org/abs/2402.03300. The estimators' names are those of Schulman, "Approximating KL
Divergence", 2020, http://joschu.net/blog/kl-approx.html.

Shape letters: B texts, those of a prompt adjacent; G texts of a prompt; T tokens.
"""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp
import rlax

from kullback.core import names

__all__ = [
    "group",
    "has_equal",
    "kl_estimate",
    "lambda_returns",
    "leave_one_out",
    "overlong",
    "token_rewards",
    "token_weights",
    "unequal_first",
]

Baseline = Literal["leave-one-out", "group", "value"]
KlEstimator = Literal["k1", "k2", "k3"]
Placement = Literal["reward", "loss"]  # Place of the KL penalty.
# Divisor of each token's loss: B (the gradient above); B and the length of its text (GRPO); the
# number of tokens of the batch (DAPO); or B and the longest length there may be (Dr. GRPO).
Normalisation = Literal["none", "length", "tokens", "constant"]

EPSILON = 1e-4  # Added to a group's standard deviation.


def leave_one_out(returns: jax.Array, group_size: int) -> jax.Array:
    """Returns leave-one-out advantages, R_i minus the mean of the other R_j of its prompt, [B].

    They are unbiased, and sum to 0 for each prompt.

    Args:
      returns: R, [B], in units of reward.
      group_size: G >= 2, divides B.

    Raises:
      ValueError: for another G.
    """
    groups = _groups(returns, group_size)
    centred = groups - jnp.mean(groups, 1, keepdims=True)
    return (centred * (group_size / (group_size - 1))).reshape(-1)


def group(returns: jax.Array, group_size: int, *, scale: bool = True) -> jax.Array:
    """Returns group advantages, (R_i - mean R) / (standard deviation of R + 1e-4) by prompt, [B].

    The mean includes R_i, so that before the division the expected gradient is (G - 1) / G of the
    true one. The division gives prompts with nearly equal returns the same weight as others.

    Args:
      returns: R, [B].
      group_size: G >= 2, divides B.
      scale: whether to divide by the standard deviation, of G - 1 degrees of freedom (as in GRPO),
        or not (as in Dr. GRPO, https://arxiv.org/abs/2503.20783).

    Raises:
      ValueError: for another G.
    """
    groups = _groups(returns, group_size)
    centred = groups - jnp.mean(groups, 1, keepdims=True)
    if scale:
        centred = centred / (jnp.std(groups, 1, ddof=1, keepdims=True) + EPSILON)
    return centred.reshape(-1)


def kl_estimate(log_ratio: jax.Array, estimator: KlEstimator) -> jax.Array:
    """Estimates KL(pi || ref) from one draw y of pi, in the shape of `log_ratio`.

        k1 = l,  k2 = l^2 / 2,  k3 = e^-l - 1 + l,   l = log pi(y) - log ref(y)

    k1 and k3 are unbiased; k3 is >= 0 and has a smaller variance near the reference, but is
    unbounded where ref(y) is far above pi(y). k2 is >= 0 and biased.

    The policy gradient of beta times an estimate, in expectation over y:

              in the reward                      in the loss
        k1    beta grad KL(pi || ref), exact     nothing: its gradient is 0
        k2    a different gradient               beta grad KL(pi || ref), exact
        k3    a different gradient               beta grad KL(ref || pi), of the other direction

    "Exact" holds for one draw. For a text in the loss, each token's gradient is that of its own KL
    after the prefix that was drawn, without the token's influence on later prefixes.

    Args:
      log_ratio: l, float, in nats.
      estimator: "k1", "k2" or "k3".

    Raises:
      ValueError: for another name.
    """
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio**2 / 2
    if estimator == "k3":
        return jnp.expm1(-log_ratio) + log_ratio
    raise ValueError(names.unknown("KL estimator", estimator, get_args(KlEstimator), show_all=True))


def has_equal(returns: jax.Array, group_size: int) -> jax.Array:
    """Returns whether all texts of a text's prompt have the same return, bool, [B].

    Args:
      returns: R, [B].
      group_size: G >= 2, divides B.

    Raises:
      ValueError: for another G.
    """
    groups = _groups(returns, group_size)
    is_equal = jnp.max(groups, 1, keepdims=True) == jnp.min(groups, 1, keepdims=True)
    return jnp.broadcast_to(is_equal, groups.shape).reshape(-1)


def unequal_first(is_equal: jax.Array, group_size: int) -> jax.Array:
    """Returns an order of texts in which those of prompts that differ come first, int, [B].

    Prompts stay in order otherwise, and their texts adjacent.

    Args:
      is_equal: bool, [B], by `has_equal`.
      group_size: G, divides B.
    """
    prompts = jnp.argsort(is_equal.reshape(-1, group_size)[:, 0], stable=True)
    return (prompts[:, None] * group_size + jnp.arange(group_size)[None]).reshape(-1)


def overlong(lengths: jax.Array, max_length: int, fraction: float) -> jax.Array:
    """Returns how far texts are in the last part of the longest length, in [0, 1], [B].

    Yu et al., "DAPO", 2025, https://arxiv.org/abs/2503.14476, equation 13, without its sign.

    Args:
      lengths: tokens of each text, [B].
      max_length: of the longest text there may be.
      fraction: share of it that is the last part, in (0, 1].
    """
    part = fraction * max_length
    return jnp.clip((lengths - (max_length - part)) / part, 0, 1)


def token_rewards(scores: jax.Array, is_answer: jax.Array) -> jax.Array:
    """Returns the score of each text as the reward of its last token, 0 elsewhere, [B, T].

    Args:
      scores: [B], in units of reward.
      is_answer: bool, [B, T]; contiguous in each row.
    """
    chex.assert_rank([scores, is_answer], [1, 2])
    follows = jnp.concatenate([is_answer[:, 1:], jnp.zeros_like(is_answer[:, :1])], 1)
    return jnp.where(is_answer & ~follows, scores[:, None], 0)


def lambda_returns(
    rewards: jax.Array, values: jax.Array, is_answer: jax.Array, lambda_: float
) -> jax.Array:
    """Computes the undiscounted lambda-returns after each prefix, [B, T].

        G_n = r_n + (1 - lambda) V(y_<=n) + lambda G_{n+1},  G of the last token is its reward

    With lambda = 1 it is the sum of rewards to come, whatever the values; with 0 one step.

    Args:
      rewards: r of each token, [B, T].
      values: V, [B, T]; column n has the value of the prefix before token n.
      is_answer: bool, [B, T]; elsewhere the result is meaningless.
      lambda_: in [0, 1].
    """
    chex.assert_equal_shape([rewards, values, is_answer])
    zero = jnp.zeros_like(rewards[:, :1])
    next_values = jnp.concatenate([values[:, 1:], zero], 1)
    # 1 where a next token of the text exists: nothing is bootstrapped past the end.
    discount = jnp.concatenate([is_answer[:, 1:], jnp.zeros_like(is_answer[:, :1])], 1)
    discount = discount.astype(rewards.dtype)
    returns = jax.vmap(lambda r, d, v: jnp.asarray(rlax.lambda_returns(r, d, v, lambda_)))
    return returns(rewards, discount, next_values)


def token_weights(
    is_answer: jax.Array,
    weights: jax.Array,
    normalisation: Normalisation,
    max_length: int | None = None,
) -> jax.Array:
    """Returns the weight of each token in the loss, a sum, [B, T]; see `Normalisation`.

    Args:
      is_answer: bool, [B, T]; a text without any counts in B, and its tokens do not.
      weights: of the texts, [B].
      normalisation: "none", "length", "tokens" or "constant".
      max_length: the most tokens of a text, for "constant"; None is T.

    Raises:
      ValueError: for another name.
    """
    chex.assert_rank([is_answer, weights], [2, 1])
    counts = jnp.sum(is_answer, 1, keepdims=True)
    divisors = {
        "none": jnp.full_like(counts, len(is_answer)),
        "length": len(is_answer) * jnp.maximum(counts, 1),
        "tokens": jnp.full_like(counts, 1) * jnp.maximum(jnp.sum(counts), 1),
        "constant": jnp.full_like(counts, len(is_answer) * (max_length or is_answer.shape[1])),
    }
    if normalisation not in divisors:
        raise ValueError(names.unknown("normalisation", normalisation, divisors, show_all=True))
    return jnp.where(is_answer, weights[:, None] / divisors[normalisation], 0)


def distinct_bigrams(tokens: jax.Array, is_answer: jax.Array, group_size: int) -> jax.Array:
    """Returns the share of distinct bigrams among those of a prompt's texts, in [0, 1], [B / G].

    It is 0 where no text has two tokens. Li et al. 2016, https://arxiv.org/abs/1510.03055.

    Args:
      tokens: int32, [B, T].
      is_answer: bool, [B, T]; contiguous in each row.
      group_size: G, divides B.
    """
    pairs = is_answer[:, :-1] & is_answer[:, 1:]
    bigrams = [
        jnp.where(pairs, x, -1).reshape(-1, group_size * x.shape[1])
        for x in (tokens[:, :-1], tokens[:, 1:])
    ]
    first, second = jax.lax.sort(bigrams, dimension=1, num_keys=2)  # -1 comes first.
    is_new = (first[:, 1:] != first[:, :-1]) | (second[:, 1:] != second[:, :-1])
    is_pair = first >= 0
    distinct = jnp.sum(is_new & is_pair[:, 1:], 1) + is_pair[:, 0]
    return distinct / jnp.maximum(jnp.sum(is_pair, 1), 1)


def _groups(returns: jax.Array, group_size: int) -> jax.Array:
    chex.assert_rank(returns, 1)
    if group_size < 2 or returns.shape[0] % group_size:
        raise ValueError(
            f"a baseline of other texts needs 2 or more of each prompt, and {returns.shape[0]} "
            f"texts in groups of as many, got groups of {group_size}"
        )
    return returns.reshape(-1, group_size)
