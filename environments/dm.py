"""dm_env's environments as ours, and ours as dm_env's."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import dm_env
import jax
import numpy as np
from dm_env import specs

from kullback.core import types
from kullback.environments import rows

__all__ = ["as_dm_env", "from_dm_env"]


def from_dm_env(environment: dm_env.Environment | Sequence[dm_env.Environment]) -> rows.Rows:
    """Returns dm_env environments of the caller's, alike, as the rows of one.

    dm_env has no seeds: its environments get theirs when they are made, and `reset` only begins
    new episodes.

    Args:
      environment: One row, or a sequence of them. An action must be one integer, an observation
        one array.

    Raises:
      ValueError: if they are not, or one object should be several rows.
    """
    if isinstance(environment, dm_env.Environment):
        environment = [environment]
    return rows.Rows([functools.partial(Row, row) for row in environment])


class Row:
    """A dm_env environment as a `rows.Row`."""

    is_owned = False  # The caller made it.

    def __init__(self, environment: dm_env.Environment) -> None:
        self.underlying = environment
        self.name = f"environment {type(environment).__name__}"
        action = environment.action_spec()
        if not (
            isinstance(action, specs.BoundedArray)
            and action.shape == ()
            and np.issubdtype(action.dtype, np.integer)
        ):
            raise ValueError(
                f"{self.name} needs one integer for an action (specs.DiscreteArray), got {action}"
            )
        self._action_dtype = action.dtype
        self._first_action = int(action.minimum)
        num_actions = int(action.maximum) - self._first_action + 1
        self.spec = _spec(environment.observation_spec(), num_actions, self.name)

    def reset(self, seed: int | None) -> Any:
        """Begins an episode and returns its first observation; `seed` is ignored."""
        del seed
        return self._timestep("reset", self.underlying.reset).observation

    def step(self, action: int) -> rows.Step:
        """Acts; `action` is one of ours, from 0."""
        sent = self._action_dtype.type(action + self._first_action)
        step = self._timestep("step", self.underlying.step, sent)
        if step.discount not in (0, 1):
            raise ValueError(
                f"{self.name}: dm_env discounts must be 0 or 1 (gamma is the agent's), got "
                f"{step.discount}"
            )
        return rows.Step(step.observation, step.reward, float(step.discount), step.last())

    def render(self) -> np.ndarray:
        """Raises ValueError: dm_env has no pictures."""
        raise ValueError("a dm_env.Environment cannot be drawn")

    def close(self) -> None:
        """Closes the environment."""
        self.underlying.close()

    def _timestep(self, call: str, function: Any, *arguments: Any) -> dm_env.TimeStep:
        step = rows.called(self.name, call, function, *arguments)
        if not isinstance(step, dm_env.TimeStep):
            raise ValueError(f"{self.name}: {call} must return a dm_env.TimeStep, got {step!r}")
        return step


def as_dm_env(
    environment: types.Environment | types.HostEnvironment, seed: int = 0
) -> dm_env.Environment:
    """Returns the dm_env view of an environment of one row.

    The observation at LAST is the last of the episode, and the step after it is FIRST, whatever
    the action; the environment has reset itself by then, so that step costs none of its own.

    Args:
      environment: With num_envs == 1; nothing else may step it from now on.
      seed: Seeds the first episode; a `reset` during an episode draws a further seed from it.

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
        # First observation of an episode that began when the environment reset itself.
        self._next_first: types.Array | None = None
        self._restart, self._tick = _functions(environment)

    def reset(self) -> dm_env.TimeStep:
        observation, self._next_first = self._next_first, None
        if observation is None:
            observation = self._restart(int(self._seeds.integers(2**31))).observation
        self._is_over = False
        return dm_env.restart(np.array(observation[0]))  # A copy, which the caller may change.

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
            observation=np.array(timestep.next_observation[0]),
        )

    def observation_spec(self) -> Any:  # dm_env declares none, and checkers infer None.
        # Not bounded: `bounds` scale a network's input, and may be exceeded (as in CartPole).
        return specs.Array(self._spec.shape, self._spec.dtype, name="observation")

    def action_spec(self) -> Any:
        return specs.DiscreteArray(self._spec.num_actions, dtype=np.int32, name="action")

    def close(self) -> None:
        if not isinstance(self._environment, types.Environment):
            self._environment.close()


def _functions(
    environment: types.Environment | types.HostEnvironment,
) -> tuple[Callable[[int], types.TimeStep], Callable[[np.ndarray], types.TimeStep]]:
    """Returns a reset by seed and a step by action [1], which keep the state between them."""
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


def _spec(observation: Any, num_actions: int, name: str) -> types.Spec:
    if not isinstance(observation, specs.Array):
        raise ValueError(f"{name} needs one array to observe, got {observation}")
    is_image = observation.dtype == np.uint8
    bounds, largest = None, 255
    if isinstance(observation, specs.BoundedArray) and is_image:
        largest = max(int(np.max(observation.maximum)), 1)
    elif isinstance(observation, specs.BoundedArray) and len(observation.shape) == 1:
        low = np.broadcast_to(observation.minimum, observation.shape)
        high = np.broadcast_to(observation.maximum, observation.shape)
        if np.all(np.isfinite([low, high])):
            bounds = (tuple(low.tolist()), tuple(high.tolist()))
    return types.Spec(
        shape=observation.shape,
        dtype=np.uint8 if is_image else np.float32,
        num_actions=num_actions,
        bounds=bounds,
        largest_byte=largest,
    )
