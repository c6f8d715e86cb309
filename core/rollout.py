"""The one sampling loop of compiled environments: games, tokens, evaluation, training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import trees, types

__all__ = ["ActorState", "Trajectory", "rollout", "start"]


class ActorState(NamedTuple):
    """State of acting."""

    environment: Any
    observation: jax.Array  # [B, ...], to act on.
    policy: Any  # Memory of the policy, or None.
    done: jax.Array  # bool, [B]: the row finished, in an environment that does not reset.


class Trajectory(NamedTuple):
    """T ticks of B rows; leading axes [T, B]."""

    observation: jax.Array  # The one that the policy acted on.
    action: jax.Array  # int32.
    timestep: types.TimeStep  # The environment's answer.
    extras: dict[str, jax.Array]  # The policy's.
    valid: jax.Array  # bool: the row had not finished before this tick.


def start(
    policy: types.Policy,
    environment: types.Environment,
    params: types.Params,
    key: types.Key,
    context: Any = None,
    max_length: int = 0,
) -> ActorState:
    """Resets the environment and the policy's memory."""
    state, timestep = environment.reset(key)
    return ActorState(
        environment=state,
        observation=jnp.asarray(timestep.observation),
        policy=policy.initial_state(params, context, max_length),
        done=jnp.zeros(environment.num_envs, bool),
    )


def rollout(
    policy: types.Policy,
    environment: types.Environment,
    params: types.Params,
    state: ActorState,
    key: types.Key,
    length: int,
    start_tick: jax.Array | int = 0,
    limit: jax.Array | int | None = None,
) -> tuple[Trajectory, ActorState]:
    """Acts for `length` ticks, or until every row of a non-resetting environment has finished.

    Args:
      policy: acts with `params`, which do not change meanwhile.
      environment: B rows.
      params: as `Agent.actor_params` returns them.
      state: from `start` or an earlier call, so that sampling goes on where it stopped.
      key: typed key; tick t draws from fold_in(key, start_tick + t).
      length: T, static.
      start_tick: ticks that earlier calls made with this key, so that pieces with one key equal
        one long call. Calls with new keys leave it 0.
      limit: ticks that are made, at most T, of an environment that does not reset; it may be
        traced, so that one program makes pieces of many lengths. None is T.

    Returns:
      The trajectory, [T, B, ...], and the state after it. If all rows finish early, or the limit
      comes before, the rest of the trajectory is zeros with `valid` False.

    Raises:
      ValueError: for a limit where rows reset themselves.
    """
    if limit is not None and environment.auto_reset:
        raise ValueError("a limit of ticks is for environments that do not reset themselves")

    def tick(state: ActorState, t: jax.Array) -> tuple[ActorState, Trajectory]:
        action, memory, extras = policy.step(
            params, state.observation, state.policy, jax.random.fold_in(key, start_tick + t)
        )
        env_state, timestep = environment.step(state.environment, action)
        valid = ~state.done
        done = state.done
        if environment.auto_reset:
            if memory is not None:
                fresh = policy.initial_state(params, None, 0)
                memory = reset_memory(fresh, memory, timestep.last())
        else:
            done = done | timestep.last()
        following = ActorState(env_state, jnp.asarray(timestep.observation), memory, done)
        return following, Trajectory(state.observation, action, timestep, extras, valid)

    if environment.auto_reset:
        state, trajectory = jax.lax.scan(tick, state, jnp.arange(length))
        return trajectory, state

    shapes = jax.eval_shape(lambda: tick(state, jnp.zeros((), jnp.int32))[1])
    empty = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

    def body(carry: Any) -> Any:
        t, state, trajectory = carry
        state, item = tick(state, t)
        trajectory = jax.tree.map(lambda all_, x: all_.at[t].set(x), trajectory, item)
        return t + 1, state, trajectory

    last = length if limit is None else jnp.minimum(limit, length)
    # One flag for all rows: a batched predicate would select the whole carry at each tick.
    _, state, trajectory = jax.lax.while_loop(
        lambda carry: (carry[0] < last) & ~jnp.all(carry[1].done),
        body,
        (jnp.zeros((), jnp.int32), state, empty),
    )
    return trajectory, state


def reset_memory(fresh: Any, memory: Any, last: types.Array) -> Any:
    """Returns a policy's memory, fresh in the rows whose episode ended; `last` is bool, [B]."""
    return trees.pick(last, fresh, memory)
