"""Draws from categorical distributions over many classes, and the settings of token sampling.

`jax.random.categorical` makes a random number and two logarithms for every class, which on a CPU
costs more than the step of a small language model. There classes are drawn by inverting the
distribution function, on two levels: a block of classes, then a class of the block. Both levels
use whole numbers, whose sums are exact: in float32 a class of probability 1e-9 adds nothing to a
sum near one, and would never be drawn.

B rows, T tokens, V classes (tokens).
"""

import dataclasses
import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from kullback.core import regularizers, types

_LANES = 128  # Blocks are multiples of it.
_RESOLUTION = 2.0**31  # What the counts of a level add up to, but for rounding.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn; the default draws from the model itself."""

    temperature: float = 1.0  # Logits are divided by it; 0 is greedy.
    top_k: int = 0  # Only the k most probable tokens; 0 is all of them.
    top_p: float = 1.0  # Only the most probable tokens that hold this mass, in (0, 1].
    # Only tokens with at least this share of the best one's probability, in [0, 1]; 0 is all.
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # Divisor of the logits of tokens that are there already.

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or 1e-6 <= self.temperature < math.inf):
            raise ValueError(
                f"temperature must be 0 (greedy) or finite and >= 1e-6, got {self.temperature}"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0 (0 keeps every token), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1] (1 keeps every token), got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie in [0, 1] (0 keeps every token), got {self.min_p}")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ValueError(
                "repetition_penalty must lie in [0.01, 100] (1 has no effect, the paper uses 1.2), "
                f"got {self.repetition_penalty}"
            )

    @property
    def is_on_policy(self) -> bool:
        """Whether tokens come from the model's own distribution."""
        return self == Sampling()

    @property
    def penalises(self) -> bool:
        """Whether a token's logit is changed if it stands in the text already."""
        return self.repetition_penalty != 1


def filter_logits(
    logits: jax.Array, sampling: Sampling, divergence: regularizers.Divergence | None = None
) -> jax.Array:
    """Returns the logits of the distribution that `sampling` draws from, [..., V].

    Removed tokens have -inf.

    The temperature comes first, then top-k, then top-p of what is left (Holtzman et al., "The
    Curious Case of Neural Text Degeneration", 2020, https://arxiv.org/abs/1904.09751), then min-p
    of what is left (Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent
    LLM Outputs", 2024, https://arxiv.org/abs/2407.01082): tokens of p >= min_p max p. Tokens as
    probable as the last one kept are kept too, so that the order of ids does not matter, except
    for temperature 0, which keeps the first of the best. The repetition penalty, which needs the
    tokens before, is `penalise_repetition`'s.

    Args:
      logits: [..., V]; the result is float32 at least.
      sampling: settings, static; a top_k of V or more keeps every token.
      divergence: f of the operator that makes probabilities of logits; None is KL (softmax).
    """
    logits = regularizers.promote(logits)
    if sampling.temperature == 0:
        return jnp.where(_is_first_of_best(logits), logits, -jnp.inf)
    if sampling.temperature != 1:  # The maximum goes first: a quotient might overflow.
        logits = (logits - jnp.max(logits, -1, keepdims=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kept = _largest(logits, lambda kept: _count(kept) >= sampling.top_k)
        logits = jnp.where(kept, logits, -jnp.inf)
    if sampling.top_p < 1:
        p = probabilities(logits, divergence)
        kept = _largest(p, lambda kept: _sum(jnp.where(kept, p, 0)) >= sampling.top_p)
        logits = jnp.where(kept, logits, -jnp.inf)
    if sampling.min_p > 0:
        p = probabilities(logits, divergence)
        kept = p >= sampling.min_p * jnp.max(p, -1, keepdims=True)
        logits = jnp.where(kept, logits, -jnp.inf)
    return logits


def penalise_repetition(logits: jax.Array, is_present: jax.Array, penalty: float) -> jax.Array:
    """Returns logits in which those of present tokens are lower; [..., V], float32 at least.

        x_i / penalty where x_i > 0,  x_i penalty where x_i < 0,  for i in the text

    Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable Generation",
    2019, section 4.1, https://arxiv.org/abs/1909.05858. The paper divides all logits; as a quotient
    would raise negative ones, these are multiplied, as in the authors' code and in transformers.

    Args:
      logits: of the model, before any temperature, [..., V].
      is_present: whether a token stands in the text so far, prompt included; bool, [..., V].
      penalty: > 0; 1 has no effect, below 1 repetition is encouraged.
    """
    logits = regularizers.promote(logits)
    penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(is_present, penalised, logits)


def mark_present(is_present: jax.Array, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns which tokens stand in texts, bool [B, V], after `tokens` have been added.

    Args:
      is_present: before, bool [B, V].
      tokens: int32, [B, T]; ids beyond V have no column, and are left out.
      valid: whether a token counts, bool [B, T]: padding does not.
    """
    rows = jnp.arange(is_present.shape[0])[:, None]
    columns = jnp.where(valid, tokens, is_present.shape[1])
    return is_present.at[rows, columns].set(True, mode="drop")


def probabilities(
    logits: jax.Array, divergence: regularizers.Divergence | None = None
) -> jax.Array:
    """Returns softargmax_f(logits), [..., V], with exact zeros where a logit is -inf."""
    logits = regularizers.promote(logits)
    # A removed class keeps 1e-38 under some operators.
    return jnp.where(logits > -jnp.inf, regularizers.softargmax(logits, divergence), 0)


def log_probability(
    logits: jax.Array, token: jax.Array, divergence: regularizers.Divergence | None = None
) -> jax.Array:
    """Returns log softargmax_f(logits) at `token`, [...]; -inf off the support.

    Args:
      logits: [..., V].
      token: int32, [...].
      divergence: f; None is KL, for which nothing of size V is stored.
    """
    logits = regularizers.promote(logits)
    if divergence is None or divergence is regularizers.kl:
        return _at(logits, token) - jax.nn.logsumexp(logits, -1)
    return jnp.log(_at(probabilities(logits, divergence), token))


def sample(
    key: types.Key, logits: jax.Array, divergence: regularizers.Divergence | None = None
) -> tuple[jax.Array, jax.Array]:
    """Draws tokens from softargmax_f(logits), int32 [B], with their log-probabilities, [B].

    Args:
      key: typed key.
      logits: [B, V]; every row has a finite one.
      divergence: f; None is KL (softmax).
    """
    if divergence is None or divergence is regularizers.kl:
        token = categorical(key, logits)
        return token, log_probability(logits, token)
    p = probabilities(logits, divergence)
    token = from_probabilities(key, p)
    return token, jnp.log(_at(p, token))


def categorical(key: types.Key, logits: jax.Array) -> jax.Array:
    """Draws from softmax(logits), int32 [B].

    The distribution is met within 1e-6 in total variation; a class of probability above 1e-9 can
    be drawn, one of logit -inf cannot. A row without a finite logit, or with NaN, gives some class.

    Args:
      key: typed key.
      logits: [B, V].
    """
    chex.assert_rank(logits, 2)
    logits = regularizers.promote(logits)
    if _is_cpu():
        best = jnp.max(logits, -1, keepdims=True)
        return _two_levels(
            _bits(key, logits), logits, -jnp.inf, lambda x: jnp.exp(x - best[..., None])
        )
    return _gumbel(key, logits)


def from_probabilities(key: types.Key, p: jax.Array) -> jax.Array:
    """Draws from p / sum p, int32 [B], as `categorical` does; a class where p is 0 is never drawn.

    Args:
      key: typed key.
      p: >= 0 and finite, [B, V]; no row is all zeros.
    """
    chex.assert_rank(p, 2)
    p = regularizers.promote(p)
    if _is_cpu():
        return _two_levels(_bits(key, p), p, 0, lambda x: x)
    return _gumbel(key, jnp.log(p))


def _is_cpu() -> bool:
    """Returns whether programs run on a CPU, whose draws are made differently."""
    return jax.default_backend() == "cpu"


def _gumbel(key: types.Key, logits: jax.Array) -> jax.Array:
    # The low mode draws no number large enough for a class of probability 1e-7.
    return jax.random.categorical(key, logits, mode="high").astype(jnp.int32)


def _bits(key: types.Key, x: jax.Array) -> jax.Array:
    return jax.random.bits(key, (2, x.shape[0]), jnp.uint32)


def _two_levels(
    bits: jax.Array, x: jax.Array, padding: float, weight: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Draws a class of each row with probability proportional to weight(x), int32 [B].

    Weights are computed from `x` at each of their two uses and never stored: [B, V] is only read.

    Args:
      bits: random, uint32 [2, B]: for the block and for the class in it.
      x: [B, V].
      padding: an x of weight 0.
      weight: x -> weight, >= 0, [B, n, m].
    """
    num_rows, num_classes = x.shape
    width = _block_width(num_classes)
    missing = -num_classes % width
    x = jnp.pad(x, ((0, 0), (0, missing)), constant_values=padding).reshape(num_rows, -1, width)
    block = _invert(_counts(jnp.sum(weight(x), -1)), bits[0])  # [B]
    of_block = jnp.take_along_axis(x, block[:, None, None], axis=1)  # [B, 1, width]
    token = block * width + _invert(_counts(weight(of_block)[:, 0]), bits[1])
    return jnp.minimum(token, num_classes - 1)  # For NaN: an id outside would index wrongly.


def _block_width(num_classes: int) -> int:
    """Returns the width of a block, about the square root of the number of classes."""
    return _LANES * max(1, round(math.sqrt(num_classes) / _LANES))


def _counts(weights: jax.Array) -> jax.Array:
    """Returns whole numbers in proportion to `weights`, uint32 [B, n]; they add up to about 2^31.

    A share above 2.4e-10 is at least 1, one of 0 is 0. Rounding moves less than n 2^-32 of the
    mass; the sum is off by less than that and n roundings of float32, which fits 32 bits.
    """
    shares = weights / jnp.sum(weights, -1, keepdims=True)
    return jnp.round(shares * _RESOLUTION).astype(jnp.uint32)


def _invert(counts: jax.Array, bits: jax.Array) -> jax.Array:
    """Finds the first class of [n] whose count is above `bits` modulo the sum, int32 [B].

        sum_{j < i} counts_j <= bits mod sum_j counts_j < sum_{j <= i} counts_j

    As 2^32 is about twice that sum, the remainder is uniform up to the sum's distance from 2^31.

    Args:
      counts: uint32, [B, n].
      bits: random, uint32 [B].
    """
    ends = jnp.cumsum(counts, -1)  # Exact.
    position = bits[:, None] % ends[:, -1:]
    return jnp.sum(ends <= position, -1, dtype=jnp.int32)


def _largest(x: jax.Array, is_enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Marks the largest x [..., V], as many as are enough together; bool [..., V].

    The bits of floats, as signed integers, have the order of the numbers, so that bisection over
    them ends at the exact threshold: thirty times faster than a sort on a CPU.

    Args:
      x: compared as float32.
      is_enough: whether a set, bool [..., V], is enough, bool [..., 1]; all classes always are.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    low = jnp.full((*x.shape[:-1], 1), jnp.iinfo(jnp.int32).min)
    high = jnp.full_like(low, jnp.iinfo(jnp.int32).max)  # Above every number: no class.

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # Their sum might overflow.
        enough = is_enough(order >= middle)
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return order >= low


def _is_first_of_best(x: jax.Array) -> jax.Array:
    """Returns the one-hot argmax, bool [..., V]; `jnp.argmax` takes twice as long on a CPU."""
    ids = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    is_best = x == jnp.max(x, -1, keepdims=True)
    return ids == jnp.min(jnp.where(is_best, ids, x.shape[-1]), -1, keepdims=True)


def _count(kept: jax.Array) -> jax.Array:
    return jnp.sum(kept, -1, keepdims=True, dtype=jnp.int32)


def _sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x, -1, keepdims=True)


def _at(x: jax.Array, token: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, token[..., None], -1)[..., 0]
