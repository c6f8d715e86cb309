"""gymnasium's environments as B rows: by id (classic control), or handed over in Python."""

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from kullback.core import names, types

GAMES = ("Acrobot-v1", "CartPole-v1", "MountainCar-v0")
UNLISTED = gymnasium.registry  # Every id that gymnasium knows, by name; most need more packages.

# The velocities of CartPole have no bounds; these are those of Vieillard et al. (and Dopamine), by
# which the network's input is scaled: x, its velocity, angle, its velocity.
_CARTPOLE = (2.4, 5.0, np.pi / 12, 2 * np.pi)


def make(game: str, num_envs: int, **flags: Any) -> "Gymnasium":
    """The environment of gymnasium id `game`, its time limit included, with `num_envs` rows.

    Args:
      game: One of GAMES, or another id with a Discrete action space and a Box to observe.
      num_envs: B.
      **flags: `max_episode_steps` and what the environment's constructor takes.

    Raises:
      ValueError: if the id or a flag is unknown, or the spaces are none of ours.
    """
    if game not in UNLISTED:
        raise ValueError(names.unknown("gymnasium id", game, UNLISTED))
    modes = _creator(game).metadata.get("render_modes", ())
    drawn = {"render_mode": "rgb_array"} if "rgb_array" in modes else {}

    def make_row(row: int) -> Callable[[], gymnasium.Env]:
        more = flags if row else {**drawn, **flags}  # Only row 0 is drawn.
        return lambda: gymnasium.make(game, disable_env_checker=True, **more)

    return Gymnasium([make_row(row) for row in range(num_envs)])


def flags(game: str) -> list[str]:
    """Names of the flags that `make` takes for an id."""
    parameters = inspect.signature(_creator(game)).parameters
    return ["max_episode_steps", *(name for name in parameters if name != "render_mode")]


def from_gymnasium(
    environment: gymnasium.Env | Callable[[], gymnasium.Env], num_envs: int = 1
) -> "Gymnasium":
    """A gymnasium environment of the caller's, as B rows.

    Args:
      environment: The environment itself (then B is 1), or a function that makes a row. To be
        drawn it must have render_mode="rgb_array".
      num_envs: B.

    Raises:
      ValueError: if its spaces are none of ours, or one object should be several rows.
    """
    if not isinstance(environment, gymnasium.Env):
        return Gymnasium([environment] * num_envs)
    if num_envs != 1:
        raise ValueError(f"one object is one row, not {num_envs}; give a function that makes it")
    return Gymnasium([lambda: environment])


class Gymnasium:
    """B rows of gymnasium environments, stepped in turn; a `types.HostEnvironment`."""

    def __init__(self, make_rows: list[Callable[[], gymnasium.Env]]) -> None:
        # `recv` copies, so that they need not.
        self._rows = SyncVectorEnv(make_rows, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
        self.num_envs = self._rows.num_envs
        action_space = self._rows.single_action_space
        if not isinstance(action_space, gymnasium.spaces.Discrete):
            raise ValueError(f"needs a Discrete action space, got {action_space}")
        self._first_action = int(action_space.start)
        self.spec = _spec(self._rows.envs[0], int(action_space.n))
        self._action: np.ndarray | None = None

    def reset(self, seed: int) -> types.TimeStep:
        """Starts B episodes; each row has a seed of its own, drawn from `seed` (>= 0)."""
        self._action = None
        # seed, seed + 1, ... for the rows would share episodes between neighbouring seeds.
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs).tolist()
        observation = self._cast(self._rows.reset(seed=seeds)[0])
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
        self._action = np.array(action, np.int64) + self._first_action

    def recv(self) -> types.TimeStep:
        """Steps the rows."""
        if self._action is None:
            raise RuntimeError("recv was called without send")
        observation, reward, terminated, truncated, info = self._rows.step(self._action)
        self._action = None
        last = terminated | truncated
        next_observation = observation = self._cast(observation)
        if np.any(last):
            next_observation = observation.copy()
            for row in np.flatnonzero(last):
                next_observation[row] = info["final_obs"][row]
        return types.TimeStep(
            step_type=np.where(last, types.LAST, types.MID).astype(np.int8),
            reward=reward.astype(np.float32),
            discount=1 - terminated.astype(np.float32),
            observation=observation,
            next_observation=next_observation,
        )

    def render(self) -> np.ndarray:
        """Picture of row 0, RGB, uint8, [H, W, 3]."""
        row = self._rows.envs[0]
        if row.render_mode != "rgb_array":
            raise ValueError(f"{row} has render_mode {row.render_mode!r}; make it with 'rgb_array'")
        try:
            picture = row.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise ValueError(
                f"drawing {row} needs pygame: pip install 'gymnasium[classic-control]'"
            ) from error
        return np.asarray(picture, np.uint8)

    def close(self) -> None:
        """Closes the rows."""
        self._rows.close()

    def _cast(self, observation: Any) -> np.ndarray:
        return np.array(observation, self.spec.dtype)


def _creator(game: str) -> Any:
    entry_point = UNLISTED[game].entry_point
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def _spec(row: gymnasium.Env, num_actions: int) -> types.Spec:
    space = row.observation_space
    if not isinstance(space, gymnasium.spaces.Box):
        raise ValueError(f"needs observations in a Box, got {space}")
    is_image = space.dtype == np.uint8
    bounds = None
    if row.spec is not None and row.spec.id.startswith("CartPole-"):
        bounds = (tuple(-bound for bound in _CARTPOLE), _CARTPOLE)
    elif not is_image and len(space.shape) == 1 and space.is_bounded():
        bounds = (tuple(space.low.tolist()), tuple(space.high.tolist()))
    return types.Spec(
        shape=space.shape,
        dtype=np.uint8 if is_image else np.float32,
        num_actions=num_actions,
        bounds=bounds,
        max_episode_steps=None if row.spec is None else row.spec.max_episode_steps,
    )
