"""Targets on a few of a teacher's tokens: drawn from it, or its most probable ones.

Sampled teacher logits as in Gemma 3, https://arxiv.org/abs/2503.19786, and Anshumann et al.,
"Sparse logit sampling", 2025, https://arxiv.org/abs/2503.16870.

Shape letters: V vocabulary, K sampled or top tokens; "..." are any leading axes.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import regularizers
from kullback.lm import distillation

Reading = Literal["set", "counts"]


class SparseTargets(NamedTuple):
    """A distribution over a few tokens; probabilities of an id that occurs twice add up."""

    ids: jax.Array  # int32, [..., K].
    probabilities: jax.Array  # [..., K], sum 1 over K.


class TopKTargets(NamedTuple):
    """A distribution's K most probable tokens, all different; the rest of its mass is the tail."""

    ids: jax.Array  # int32, [..., K].
    log_probs: jax.Array  # [..., K], not renormalised.


def sampled_targets(
    key: jax.Array,
    teacher_log_probs: jax.Array,
    num_samples: int,
    reading: Reading = "set",
    replacement: bool = True,
) -> SparseTargets:
    """Draws targets from the teacher (Gemma 3: 256 tokens for each position).

    "set" follows the wording of the report: the teacher's probabilities of the drawn tokens,
    renormalised; it favours the head. "counts" gives each draw 1 / K, so that the expected target
    is the teacher's distribution, and the expected gradient that of full cross-entropy.

    Args:
      key: typed key.
      teacher_log_probs: [..., V].
      num_samples: K >= 1.
      reading: "set" or "counts".
      replacement: False draws K distinct tokens ("set" only, K <= V; K = V is all of them).

    Raises:
      ValueError: for another reading or number of samples.
    """
    distillation.check_choice("reading", reading, Reading)
    vocab_size = teacher_log_probs.shape[-1]
    if num_samples < 1 or (not replacement and num_samples > vocab_size):
        most = "" if replacement else f" and <= {vocab_size} without replacement"
        raise ValueError(f"num_samples must be >= 1{most}, got {num_samples}; Gemma 3 takes 256")
    log_p = regularizers.promote(teacher_log_probs)
    if replacement:
        ids = _draw(key, jnp.exp(log_p), num_samples)
    elif reading == "counts":
        raise ValueError('reading "counts" draws with replacement; use "set", or replacement=True')
    else:
        # Gumbel's top k are K draws without replacement.
        noise = jax.random.gumbel(key, log_p.shape, log_p.dtype)
        ids = jax.lax.top_k(log_p + noise, num_samples)[1]
    if reading == "counts":
        return SparseTargets(ids, jnp.full(ids.shape, 1 / num_samples, log_p.dtype))
    ids = jnp.sort(ids, -1)
    is_first = jnp.concatenate(
        [jnp.ones_like(ids[..., :1], bool), ids[..., 1:] != ids[..., :-1]], -1
    )
    unique_log_p = jnp.where(is_first, jnp.take_along_axis(log_p, ids, -1), -jnp.inf)
    return SparseTargets(ids, jax.nn.softmax(unique_log_p))


def sparse_cross_entropy(logits: jax.Array, targets: SparseTargets) -> jax.Array:
    """Returns the cross-entropy of logits [..., V] (over all of V) against sparse targets, [...].

        ln sum_v exp(z_v) - sum_k t_k z(id_k)

    The gradient is softmax(z) minus the targets; the unit is nats.
    """
    logits = regularizers.promote(logits)
    at_ids = jnp.take_along_axis(logits, targets.ids, -1)  # [..., K]
    t = jax.lax.stop_gradient(targets.probabilities)
    return jax.nn.logsumexp(logits, -1) - jnp.sum(jnp.where(t > 0, t * at_ids, 0), -1)


def top_k_targets(teacher_log_probs: jax.Array, k: int) -> TopKTargets:
    """Returns the K most probable tokens of log-probabilities [..., V].

    Raises:
      ValueError: unless 1 <= K < V.
    """
    vocab_size = teacher_log_probs.shape[-1]
    if not 1 <= k < vocab_size:
        raise ValueError(
            f"k must be >= 1 and < {vocab_size}, got {k}; all tokens leave no tail: "
            "use the divergence of the full distributions"
        )
    log_probs, ids = jax.lax.top_k(regularizers.promote(teacher_log_probs), k)
    return TopKTargets(ids, log_probs)


def top_k_loss(
    divergence: distillation.TokenDivergence,
) -> Callable[[jax.Array, TopKTargets], jax.Array]:
    """Returns the loss of student logits [..., V] against the teacher's top K tokens, [...].

    All other tokens are one class, the tail: with K + 1 classes on both sides it is a divergence
    (>= 0), never more than that of all V, and a student gains nothing by moving mass out of the K.
    """

    def loss(student_logits: jax.Array, targets: TopKTargets) -> jax.Array:
        log_p = regularizers.promote(jax.lax.stop_gradient(targets.log_probs))  # [..., K]
        # Rounding may make K probabilities sum to 1 or more, and a tail of 0 has no logarithm.
        mass = jnp.minimum(jax.nn.logsumexp(log_p, -1, keepdims=True), -jnp.finfo(log_p.dtype).eps)
        log_p = jnp.concatenate([log_p, jnp.log(-jnp.expm1(mass))], -1)  # [..., K+1]
        log_q = jax.nn.log_softmax(regularizers.promote(student_logits))  # [..., V]
        at_ids = jnp.take_along_axis(log_q, targets.ids, -1)
        # Not 1 - sum, which would lose the tail's digits, and its gradient.
        rest = jnp.put_along_axis(log_q, targets.ids, -jnp.inf, -1, inplace=False)
        tail = jax.nn.logsumexp(rest, -1, keepdims=True)
        return divergence(log_p, jnp.concatenate([at_ids, tail], -1))

    return loss


def _draw(key: jax.Array, p: jax.Array, num: int) -> jax.Array:
    """Draws `num` tokens with replacement from p [..., V], int32 [..., num], by inverse CDF.

    It has two levels of about sqrt(V) classes: one cumulative sum over V would round the
    probabilities of small tokens away.
    """
    vocab_size = p.shape[-1]
    size = math.isqrt(vocab_size - 1) + 1
    num_blocks = -(-vocab_size // size)
    padding = [(0, 0)] * (p.ndim - 1) + [(0, num_blocks * size - vocab_size)]
    within = _cumulative(jnp.pad(p, padding).reshape(*p.shape[:-1], num_blocks, size))
    blocks = _cumulative(within[..., -1])  # [..., num_blocks]
    u = jax.random.uniform(key, (2, *p.shape[:-1], num), p.dtype)
    block = _first_above(blocks, jnp.zeros(u.shape[1:], jnp.int32), num_blocks, u[0])
    return _first_above(within.reshape(*p.shape[:-1], -1), block * size, size, u[1])


def _cumulative(p: jax.Array) -> jax.Array:
    """Returns cumulative sums that do not rise where p is 0: such a class is never drawn."""
    # XLA adds in parallel, so rounding may make a sum smaller or larger than the one before it.
    return jax.lax.cummax(jnp.where(p > 0, jnp.cumsum(p, -1), 0), p.ndim - 1)


def _first_above(sums: jax.Array, start: jax.Array, size: int, u: jax.Array) -> jax.Array:
    """Returns the first index in [start, start + size) with a sum > u times the last, [..., n]."""
    level = u * jnp.take_along_axis(sums, start + size - 1, -1)  # Below the last, as u < 1.
    low, high = start, start + size - 1
    for _ in range(math.ceil(math.log2(size))):
        middle = (low + high) // 2
        is_above = jnp.take_along_axis(sums, middle, -1) > level
        low, high = jnp.where(is_above, low, middle + 1), jnp.where(is_above, middle, high)
    return low
