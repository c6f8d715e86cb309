"""Small compiled environments whose optimal action values are known."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback import environments
from kullback.core import types

__all__ = ["chain", "make", "optimal_values"]

LEFT, RIGHT = 0, 1
MAX_LENGTH = 10_000  # A chain's observations are one-hot, and its values solve a linear system.


class ChainState(NamedTuple):
    """B rows of a chain."""

    position: jax.Array  # int32, [B], in [0, length]; length is past the end.
    env_steps: jax.Array  # int32, [B]: steps of the episode so far.
    key: types.Key


def chain(
    num_envs: int,
    *,
    length: int = 8,
    slip: float = 0.0,
    max_episode_steps: int = 200,
    auto_reset: bool = True,
) -> types.Environment:
    """Makes a corridor: right from the last of `length` places ends it with the only reward, 1.

    An episode begins at place 0, where left stays. The observation is the place, one-hot; it is
    all zeros past the end.

    Args:
      num_envs: B.
      length: S, at least 1 and at most MAX_LENGTH.
      slip: Probability in [0, 0.5) that a step goes the other way.
      max_episode_steps: Steps after which an episode is cut, with discount 1.
      auto_reset: If False, finished rows stay where they are, with LAST and no more reward.
    """
    _check(length, slip)
    if not 1 <= max_episode_steps < 2**31:  # Counted in int32.
        raise ValueError(f"max_episode_steps must lie in [1, 2^31), got {max_episode_steps}")

    def observe(position: jax.Array) -> jax.Array:
        return jax.nn.one_hot(position, length, dtype=jnp.float32)  # [B, S]

    def reset(key: types.Key) -> tuple[ChainState, types.TimeStep]:
        zeros = jnp.zeros(num_envs, jnp.int32)
        observation = observe(zeros)
        return ChainState(zeros, zeros, key), types.TimeStep(
            step_type=jnp.full(num_envs, types.FIRST, jnp.int8),
            reward=jnp.zeros(num_envs),
            discount=jnp.ones(num_envs),
            observation=observation,
            next_observation=observation,
        )

    def is_last(position: jax.Array, env_steps: jax.Array) -> jax.Array:
        return (position == length) | (env_steps == max_episode_steps)

    def step(state: ChainState, action: jax.Array) -> tuple[ChainState, types.TimeStep]:
        key, slip_key = jax.random.split(state.key)
        finished = is_last(state.position, state.env_steps)  # All false if rows reset themselves.
        goes_right = (action == RIGHT) ^ jax.random.bernoulli(slip_key, slip, (num_envs,))
        position = jnp.maximum(state.position + jnp.where(goes_right, 1, -1), 0)
        position = jnp.where(finished, state.position, position)
        env_steps = state.env_steps + ~finished
        solved = position == length
        last = is_last(position, env_steps)
        next_observation = observation = observe(position)
        if auto_reset:
            env_steps = jnp.where(last, 0, env_steps)
            position = jnp.where(last, 0, position)
            observation = observe(position)
        return ChainState(position, env_steps, key), types.TimeStep(
            step_type=jnp.where(last, types.LAST, types.MID).astype(jnp.int8),
            reward=(solved & ~finished).astype(jnp.float32),
            discount=1.0 - solved.astype(jnp.float32),
            observation=observation,
            next_observation=next_observation,
        )

    return types.Environment(
        spec=types.Spec(
            shape=(length,),
            dtype=np.float32,
            num_actions=2,
            max_episode_steps=max_episode_steps,
        ),
        num_envs=num_envs,
        reset=reset,
        step=step,
        auto_reset=auto_reset,
        render=_render,
    )


def optimal_values(length: int, *, slip: float = 0.0, discount: float = 0.99) -> np.ndarray:
    """Returns the optimal action values of `chain`, cut episodes bootstrapped; float64, [S, A].

    Going right is optimal, so v solves the linear system of that policy,

        v = r_right + discount P_right v,   q_a = r_a + discount P_a v

    and without slip q(s, right) = discount^(S - 1 - s).
    """
    _check(length, slip)
    if not 0 < discount <= 1:
        raise ValueError(f"discount must lie in (0, 1], got {discount}")
    left = np.eye(length, k=-1)
    left[0, 0] = 1.0
    right = np.eye(length, k=1)  # The last row is zero: the episode ends.
    ends = np.eye(length)[-1]  # [S], 1 where a step right is rewarded.
    transition = np.stack([slip * right + (1 - slip) * left, (1 - slip) * right + slip * left])
    reward = np.stack([slip * ends, (1 - slip) * ends])  # [A, S]
    v = np.linalg.solve(np.eye(length) - discount * transition[RIGHT], reward[RIGHT])
    return (reward + discount * transition @ v).T


GAMES: dict[str, Callable[..., types.Environment]] = {"chain": chain}


def make(game: str, num_envs: int, **flags: Any) -> types.Environment:
    """Makes the toy `game`, one of GAMES, with `num_envs` rows and its constructor's flags."""
    return GAMES[game](num_envs, **flags)


def parameters(game: str) -> dict[str, environments.Parameter]:
    """Returns the flags that `make` takes for a game."""
    return environments.keywords(GAMES[game])


def _check(length: int, slip: float) -> None:
    if not 1 <= length <= MAX_LENGTH:
        raise ValueError(f"length must lie in [1, {MAX_LENGTH:,}], got {length}")
    if not 0 <= slip < 0.5:
        raise ValueError(f"slip must lie in [0, 0.5), got {slip}; beyond, left would be optimal")


def _render(observation: np.ndarray) -> np.ndarray:
    places = np.where(np.asarray(observation) > 0, 255, 40).astype(np.uint8)  # [S]
    return np.repeat(np.kron(places[None], np.ones((16, 16), np.uint8))[..., None], 3, axis=-1)
