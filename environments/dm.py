"""dm_env's environments as ours, and ours as dm_env's."""

from collections.abc import Callable, Sequence
from typing import Any

import dm_env
import jax
import numpy as np
from dm_env import specs

from kullback.core import types


def from_dm_env(environment: dm_env.Environment | Sequence[dm_env.Environment]) -> "DmEnv":
    """dm_env environments of the caller's, alike, as the rows of one.

    Args:
      environment: One row, or a sequence of them. An action must be one integer, an observation
        one array.

    Raises:
      ValueError: if they are not.
    """
    if isinstance(environment, dm_env.Environment):
        environment = [environment]
    return DmEnv(environment)


class DmEnv:
    """B dm_env environments, stepped in turn; a `types.HostEnvironment`.

    dm_env has no seeds: its environments get theirs when they are made, and `reset` only begins
    new episodes.
    """

    def __init__(self, rows: Sequence[dm_env.Environment]) -> None:
        self._rows = list(rows)
        if not self._rows:
            raise ValueError("needs at least one dm_env.Environment, got none")
        self.num_envs = len(self._rows)
        action = self._rows[0].action_spec()
        if not (
            isinstance(action, specs.BoundedArray)
            and action.shape == ()
            and np.issubdtype(action.dtype, np.integer)
        ):
            raise ValueError(f"needs one integer for an action (specs.DiscreteArray), got {action}")
        self._action_dtype = action.dtype
        self._first_action = int(action.minimum)
        self.spec = _spec(
            self._rows[0].observation_spec(), int(action.maximum) - self._first_action + 1
        )
        self._action: np.ndarray | None = None

    def reset(self, seed: int) -> types.TimeStep:
        """Starts B episodes; `seed` is of no use here."""
        del seed
        self._action = None
        observation = self._stack([row.reset() for row in self._rows])
        return types.TimeStep(
            step_type=np.full(self.num_envs, types.FIRST, np.int8),
            reward=np.zeros(self.num_envs, np.float32),
            discount=np.ones(self.num_envs, np.float32),
            observation=observation,
            next_observation=observation,
        )

    def send(self, action: np.ndarray) -> None:
        """Says what `recv` does; `action` is int32, [B]."""
        if self._action is not None:
            raise RuntimeError("send was called twice; recv comes between")
        self._action = np.array(action, self._action_dtype) + self._action_dtype.type(
            self._first_action
        )

    def recv(self) -> types.TimeStep:
        """Steps the rows."""
        if self._action is None:
            raise RuntimeError("recv was called without send")
        steps = [row.step(action) for row, action in zip(self._rows, self._action, strict=True)]
        self._action = None
        discount = np.array([step.discount for step in steps], np.float32)
        if not np.all((discount == 0) | (discount == 1)):
            raise ValueError(
                f"dm_env discounts must be 0 or 1 (gamma is the agent's), got {discount.tolist()}"
            )
        last = np.array([step.last() for step in steps])
        next_observation = observation = self._stack(steps)
        if np.any(last):
            firsts = [
                row.reset() if step.last() else step
                for row, step in zip(self._rows, steps, strict=True)
            ]
            observation = self._stack(firsts)
        return types.TimeStep(
            step_type=np.where(last, types.LAST, types.MID).astype(np.int8),
            reward=np.array([step.reward for step in steps], np.float32),
            discount=discount,
            observation=observation,
            next_observation=next_observation,
        )

    def render(self) -> np.ndarray:
        """dm_env has no pictures."""
        raise ValueError("a dm_env.Environment cannot be drawn")

    def close(self) -> None:
        """Closes the rows."""
        for row in self._rows:
            row.close()

    def _stack(self, steps: list[dm_env.TimeStep]) -> np.ndarray:
        return np.stack([np.asarray(step.observation, self.spec.dtype) for step in steps])


def as_dm_env(
    environment: types.Environment | types.HostEnvironment, seed: int = 0
) -> dm_env.Environment:
    """The dm_env view of an environment of one row.

    The observation at LAST is the last of the episode, and the step after it is FIRST, whatever
    the action; the environment has reset itself by then, so that step costs none of its own.

    Args:
      environment: With num_envs == 1; it belongs to the view from now on.
      seed: Of the first episode; `reset` in the midst of one goes on with others drawn from it.

    Raises:
      ValueError: if it has several rows.
    """
    if environment.num_envs != 1:
        raise ValueError(f"dm_env has one row, got num_envs={environment.num_envs}")
    return _View(environment, seed)


class _View(dm_env.Environment):
    def __init__(self, environment: types.Environment | types.HostEnvironment, seed: int) -> None:
        self._environment = environment
        self._spec = environment.spec
        self._seeds = np.random.default_rng(seed)
        self._is_over = True  # No episode is under way.
        self._next_first: types.Array | None = None  # Of the episode that has begun by itself.
        self._restart, self._tick = _functions(environment)

    def reset(self) -> dm_env.TimeStep:
        observation, self._next_first = self._next_first, None
        if observation is None:
            observation = self._restart(int(self._seeds.integers(2**31))).observation
        self._is_over = False
        return dm_env.restart(np.asarray(observation[0]))

    def step(self, action: Any) -> dm_env.TimeStep:
        if self._is_over:
            return self.reset()
        timestep = self._tick(np.full(1, action, np.int32))
        if timestep.last()[0]:
            self._is_over = True
            if getattr(self._environment, "auto_reset", True):
                self._next_first = timestep.observation
        return dm_env.TimeStep(
            step_type=dm_env.StepType(int(timestep.step_type[0])),
            reward=float(timestep.reward[0]),
            discount=float(timestep.discount[0]),
            observation=np.asarray(timestep.next_observation[0]),
        )

    def observation_spec(self) -> Any:  # dm_env declares none, and checkers infer None.
        # Not bounded: what scales a network's input need not hold (CartPole's velocities).
        return specs.Array(self._spec.shape, self._spec.dtype, name="observation")

    def action_spec(self) -> Any:
        return specs.DiscreteArray(self._spec.num_actions, dtype=np.int32, name="action")

    def close(self) -> None:
        if not isinstance(self._environment, types.Environment):
            self._environment.close()


def _functions(
    environment: types.Environment | types.HostEnvironment,
) -> tuple[Callable[[int], types.TimeStep], Callable[[np.ndarray], types.TimeStep]]:
    """Reset by seed and step by action [1], the state kept between them."""
    if not isinstance(environment, types.Environment):

        def host_tick(action: np.ndarray) -> types.TimeStep:
            environment.send(action)
            return environment.recv()

        return environment.reset, host_tick

    state: Any = None
    reset, step = jax.jit(environment.reset), jax.jit(environment.step)

    def restart(seed: int) -> types.TimeStep:
        nonlocal state
        state, timestep = reset(jax.random.key(seed))
        return timestep

    def tick(action: np.ndarray) -> types.TimeStep:
        nonlocal state
        state, timestep = step(state, action)
        return timestep

    return restart, tick


def _spec(observation: Any, num_actions: int) -> types.Spec:
    if not isinstance(observation, specs.Array):
        raise ValueError(f"needs one array to observe, got {observation}")
    is_image = observation.dtype == np.uint8
    bounds = None
    if isinstance(observation, specs.BoundedArray) and len(observation.shape) == 1 and not is_image:
        low = np.broadcast_to(observation.minimum, observation.shape)
        high = np.broadcast_to(observation.maximum, observation.shape)
        if np.all(np.isfinite([low, high])):
            bounds = (tuple(low.tolist()), tuple(high.tolist()))
    return types.Spec(
        shape=observation.shape,
        dtype=np.uint8 if is_image else np.float32,
        num_actions=num_actions,
        bounds=bounds,
    )
