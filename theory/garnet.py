"""Garnets: random processes with sparse dynamics, thousands in one call.

Archibald, McKinnon & Thomas, "On the generation of Markov decision processes", 1995; with the
parameters of Vieillard et al., "Leverage the Average", NeurIPS 2020, appendix D,
https://arxiv.org/abs/2003.14089.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.theory import precision
from kullback.theory.mdp import MDP, check_key

__all__ = ["Config", "make"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a Garnet; the defaults are those of "Leverage the Average"."""

    num_states: int = 30
    num_actions: int = 4
    branching: int = 4  # Successors of each state and action, in [1, num_states].
    discount: float = 0.9  # In [0, 1).
    rewarded: float = 0.1  # Fraction of the states with a reward, in [0, 1]; at least one has it.

    def __post_init__(self) -> None:
        if self.num_states < 1 or self.num_actions < 1:
            raise ValueError(
                f"num_states and num_actions must be >= 1, got {self.num_states} and "
                f"{self.num_actions}"
            )
        if not 1 <= self.branching <= self.num_states:
            raise ValueError(
                f"branching must lie in [1, num_states={self.num_states}], got {self.branching}"
            )
        if not 0 <= self.discount < 1:
            raise ValueError(f"discount must lie in [0, 1), got {self.discount}")
        if not 0 <= self.rewarded <= 1:
            raise ValueError(f"rewarded must lie in [0, 1], got {self.rewarded}")

    @property
    def num_rewarded(self) -> int:
        """Number of states with a reward: at least one, as without any all values would be 0."""
        return max(1, round(self.rewarded * self.num_states))


@precision.float64
def make(key: types.Key, config: Config = Config()) -> MDP:
    """Draws a Garnet, or a batch of M for keys [M].

    Each state and action has `branching` different successors, drawn uniformly; the probabilities
    are the gaps between sorted uniforms, hence Dirichlet(1, ..., 1). Some states have a reward,
    uniform in (0, 1) and the same for all actions. A key gives the same process alone and in a
    batch. Memory is O(S A N).

    Args:
      key: typed key, [] or [M].
      config: sizes and discount.

    Raises:
      ValueError: for a key that is not typed.
    """
    check_key(key)
    return _make(key, config)


@functools.partial(jax.jit, static_argnames="config")
def _make(key: types.Key, config: Config) -> MDP:
    draw = functools.partial(_draw, config=config)
    return jax.vmap(draw)(key) if key.ndim else draw(key)


def _draw(key: types.Key, config: Config) -> MDP:
    num_states, num_rewarded = config.num_states, config.num_rewarded
    rows, size = (num_states, config.num_actions), config.branching
    # All uniforms in one draw: compiling a draw takes longer than anything else here.
    sizes = (size, size - 1)
    u = jax.random.uniform(key, (2 * num_states + num_states * config.num_actions * sum(sizes),))
    by_state, by_row = jnp.split(u, [2 * num_states])
    by_row = by_row.reshape(*rows, sum(sizes))  # [S, A, 2 N - 1]
    order_u, reward_u = by_state.reshape(2, num_states)
    cuts = jnp.sort(by_row[..., size:], -1)
    zeros = jnp.zeros((*rows, 1))
    rewarded = jnp.argsort(order_u)[:num_rewarded]
    reward = jnp.zeros(num_states).at[rewarded].set(reward_u[:num_rewarded])
    return MDP(
        successors=_without_replacement(by_row[..., :size], num_states),
        probabilities=jnp.diff(jnp.concatenate([zeros, cuts, zeros + 1], -1)),
        reward=jnp.broadcast_to(reward[:, None], rows),
        discount=jnp.asarray(config.discount),
        initial=jnp.full(num_states, 1 / num_states),
    )


def _without_replacement(u: jax.Array, num_states: int) -> jax.Array:
    """Returns distinct numbers below S along the last axis, every set as likely; int32, [..., N].

    Floyd's algorithm: the n-th number is drawn from those up to some last one, and is that last
    one if it has come before. Permuting all states instead would take O(S) memory a row.

    Args:
      u: uniforms in [0, 1), [..., N].
      num_states: S >= N.
    """
    size = u.shape[-1]

    def add(i: jax.Array, chosen: jax.Array) -> jax.Array:
        last = num_states - size + i
        drawn = jnp.floor(u[..., i] * (last + 1)).astype(jnp.int32)
        is_taken = jnp.any(chosen == drawn[..., None], -1)
        return chosen.at[..., i].set(jnp.where(is_taken, last, drawn).astype(jnp.int32))

    return jax.lax.fori_loop(0, size, add, jnp.full(u.shape, -1, jnp.int32))
