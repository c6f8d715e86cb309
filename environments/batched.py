"""B rows of an environment that is written for one, as pure functions of JAX.

An environment's step must not reset: rows are reset here, so that `next_observation` is what was
before. A time limit is counted here too, and is a cut, with discount 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types
from kullback.environments.rows import called

KEY = jax.eval_shape(lambda: jax.random.key(0))  # The shape of a key.


class Step(NamedTuple):
    """A step of one row, before any reset."""

    observation: jax.Array  # [...].
    state: Any
    reward: jax.Array  # [].
    is_end: jax.Array  # bool, []: a true end.
    is_cut: jax.Array  # bool, []: a cut, as the environment itself makes it.


class Single(NamedTuple):
    """An environment of one row; its observations have the spec's shape and type."""

    name: str  # For messages.
    spec: types.Spec
    reset: Callable[[types.Key], tuple[jax.Array, Any]]  # key -> (observation, state).
    step: Callable[[types.Key, Any, jax.Array], Step]  # (key, state, action int32, []).


class State(NamedTuple):
    """B rows."""

    single: Any  # States of the environment, [B, ...].
    env_steps: jax.Array  # int32, [B]: steps of the episode so far.
    discount: jax.Array  # float32, [B]: that of the last step.
    observation: jax.Array  # [B, ...].
    is_finished: jax.Array  # bool, [B]; all false if rows reset themselves.
    key: types.Key


def rows(
    single: Single, num_envs: int, *, auto_reset: bool = True, resets: int = 0
) -> types.Environment:
    """Returns `num_envs` rows of an environment, cut after the `max_episode_steps` of its spec.

    Args:
      single: the environment.
      num_envs: B.
      auto_reset: if False, finished rows stay where they are, with LAST and no more reward.
      resets: episodes that are begun a tick, R, in [1, B], and most of the time not needed: where
        a reset costs more than a step, fewer make ticks faster, and rows that end in the same tick
        beyond R begin alike. 0 is B.

    Raises:
      ValueError: if `resets` lies outside its range, or a step of the environment cannot be traced
        or is not of the types of `Step`.
    """
    if not 0 <= resets <= num_envs:
        raise ValueError(f"resets must lie in [0, {num_envs}], the number of rows, got {resets}")
    _check(single)
    resets = resets or num_envs
    limit = single.spec.max_episode_steps

    def reset(key: types.Key) -> tuple[State, types.TimeStep]:
        key, reset_key = jax.random.split(key)
        observation, states = jax.vmap(single.reset)(jax.random.split(reset_key, num_envs))
        zeros, ones = jnp.zeros(num_envs, jnp.int32), jnp.ones(num_envs)
        is_finished = jnp.zeros(num_envs, bool)
        state = State(states, zeros, ones, observation, is_finished, key)
        step_type = jnp.full(num_envs, types.FIRST, jnp.int8)
        return state, types.TimeStep(step_type, 0 * ones, ones, observation, observation)

    def step(state: State, action: jax.Array) -> tuple[State, types.TimeStep]:
        key, step_key, reset_key = jax.random.split(state.key, 3)
        stepped: Step = jax.vmap(single.step)(
            jax.random.split(step_key, num_envs), state.single, action
        )
        env_steps, is_finished = state.env_steps + 1, state.is_finished
        is_last = stepped.is_end | stepped.is_cut
        if limit is not None:
            is_last |= env_steps >= limit
        discount = 1.0 - stepped.is_end.astype(jnp.float32)
        reward = stepped.reward.astype(jnp.float32)
        observation, states = stepped.observation, stepped.state
        if auto_reset:
            begun, begun_states = jax.vmap(single.reset)(jax.random.split(reset_key, resets))
            # The n-th row that ends takes the n-th of the episodes that were begun.
            which = (jnp.cumsum(is_last) - 1) % resets
            begun, begun_states = jax.tree.map(lambda x: x[which], (begun, begun_states))
            next_observation = observation
            observation, states = _where(is_last, (begun, begun_states), (observation, states))
            env_steps = jnp.where(is_last, 0, env_steps)
        else:
            kept = (state.observation, state.single, state.discount, 0 * reward)
            observation, states, discount, reward = _where(
                is_finished, kept, (observation, states, discount, reward)
            )
            next_observation = observation
            is_finished = is_last = is_finished | is_last
        following = State(states, env_steps, discount, observation, is_finished, key)
        step_type = jnp.where(is_last, types.LAST, types.MID).astype(jnp.int8)
        return following, types.TimeStep(step_type, reward, discount, observation, next_observation)

    return types.Environment(single.spec, num_envs, reset, step, auto_reset)


def _check(single: Single) -> None:
    """Traces a step, whose reward, end and cut must be scalars.

    Raises:
      ValueError: in one line, whatever the environment raises.
    """
    action = jax.ShapeDtypeStruct((), np.int32)
    _, state = called(single.name, "a reset", jax.eval_shape, single.reset, KEY)
    step = called(single.name, "a step", jax.eval_shape, single.step, KEY, state, action)
    shapes = {"reward": step.reward, "end": step.is_end, "cut": step.is_cut}
    for name, value in shapes.items():
        if value.shape != ():
            raise ValueError(f"{single.name}: the {name} of a step must be [], got {value.shape}")


def _where(rows_chosen: jax.Array, one: Any, other: Any) -> Any:
    """Returns the rows of trees [B, ...]: of `one` where they are chosen."""

    def choose(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(rows_chosen.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, one, other)


def spec(
    name: str,
    observation: Any,
    num_actions: int,
    *,
    bounds: tuple[Any, Any] | None = None,
    max_episode_steps: int | None,
) -> types.Spec:
    """Returns the spec of an environment.

    Args:
      name: for messages.
      observation: its shape and dtype, as `jax.eval_shape` gives them; see `array`.
      num_actions: A.
      bounds: lowest and highest values, which count if they are vectors like the observation.
      max_episode_steps: steps after which an episode is cut, in [1, 2^31); None: never.

    Raises:
      ValueError: for an observation that is no single array, and a limit out of range.
    """
    if not isinstance(observation, jax.ShapeDtypeStruct):
        kind = type(observation).__name__
        raise ValueError(
            f"{name}: an observation must be one array, got a {kind}; observation= takes a "
            "function that makes one of it"
        )
    if max_episode_steps is not None and not 1 <= max_episode_steps < 2**31:
        raise ValueError(
            f"{name}: max_episode_steps must lie in [1, 2^31), got {max_episode_steps}"
        )
    shape = observation.shape if len(observation.shape) in (1, 3) else (observation.size,)
    vectors = None
    if bounds is not None and all(np.shape(bound) == shape for bound in bounds) and len(shape) == 1:
        low, high = (tuple(np.asarray(bound, np.float64).tolist()) for bound in bounds)
        vectors = (low, high)
    return types.Spec(
        shape=shape,
        dtype=_dtype(observation.dtype),
        num_actions=num_actions,
        bounds=vectors,
        max_episode_steps=max_episode_steps,
    )


def array(observation: jax.Array, of: types.Spec) -> jax.Array:
    """Returns an observation as it is in `spec`: vectors and pictures, else a vector of all of it.

    No torso takes a matrix. Bytes and booleans stay; other numbers become float32.
    """
    return observation.reshape(of.shape).astype(of.dtype)


def _dtype(dtype: Any) -> np.dtype:
    kept = np.dtype(dtype) in (np.dtype(np.uint8), np.dtype(np.bool_))
    return np.dtype(dtype) if kept else np.dtype(np.float32)
