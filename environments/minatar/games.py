"""The interface of a MinAtar game, and an environment of B rows of one.

Young & Tian, "MinAtar", 2019, https://arxiv.org/abs/1903.03176. The rules are those of the
minatar package, 1.0.15: from the same state, action and draws, the same next state.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types
from kullback.environments.minatar import grid

PIXELS = 16  # Width of a cell in a picture.
BACKGROUND = (16, 16, 24)
PALETTE = np.array(
    [
        (86, 180, 233),
        (230, 75, 53),
        (120, 120, 130),
        (240, 200, 60),
        (0, 158, 115),
        (204, 121, 167),
        (213, 130, 40),
        (120, 200, 255),
        (250, 250, 250),
        (150, 220, 90),
    ],
    np.uint8,
)  # One colour a channel.


class Game(NamedTuple):
    """A game for one row, as pure functions of its state (a NamedTuple of small arrays).

    All randomness comes in as draws, uniform in [0, 1) and float32; each game documents its use of
    them. Once `step` has returned terminal, it must not be called again.
    """

    init: Callable[[jax.Array], Any]  # draws [num_init_draws] -> state.
    # (state, action [], draws [num_step_draws], ramping) -> (state, reward [], terminal []).
    step: Callable[[Any, jax.Array, jax.Array, Any], tuple[Any, jax.Array, jax.Array]]
    observe: Callable[[Any], jax.Array]  # state -> bool, [10, 10, C].
    channels: tuple[str, ...]  # The C names.
    minimal_actions: tuple[int, ...]  # The ones of the six that have an effect.
    num_init_draws: int
    num_step_draws: int


class State(NamedTuple):
    """State of B rows."""

    game: Any  # The game's state, [B, ...].
    last_action: jax.Array  # int32, [B]: the one executed last, be it in the episode before.
    steps: jax.Array  # int32, [B]: steps taken in this episode.
    key: types.Key  # One for all rows.


def make(
    game: Game,
    num_envs: int,
    *,
    sticky_action_prob: float = 0.1,
    difficulty_ramping: bool = True,
    max_episode_steps: int | None = 10_000,
    minimal_actions: bool = False,
) -> types.Environment:
    """Returns `num_envs` rows of `game`, which reset themselves.

    Args:
      game: for one row.
      num_envs: B.
      sticky_action_prob: probability that the action executed last replaces the agent's.
      difficulty_ramping: whether games speed up.
      max_episode_steps: steps after which an episode is cut, with discount 1; None for never.
      minimal_actions: whether the agent has only the actions with an effect, not all six.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be >= 1, got {num_envs}")
    if not 0.0 <= sticky_action_prob <= 1.0:
        raise ValueError(f"sticky_action_prob must be in [0, 1], got {sticky_action_prob}")
    if max_episode_steps is not None and not 1 <= max_episode_steps < 2**31:  # Counted in int32.
        raise ValueError(
            f"max_episode_steps must lie in [1, 2^31) or be None, got {max_episode_steps}"
        )
    actions = game.minimal_actions if minimal_actions else tuple(range(6))
    spec = types.Spec(
        shape=(grid.SIZE, grid.SIZE, len(game.channels)),
        dtype=np.bool_,
        num_actions=len(actions),
    )
    num_draws = 1 + game.num_step_draws + game.num_init_draws  # The first is for stickiness.

    def reset(key: types.Key) -> tuple[State, types.TimeStep]:
        draws, key = _draw(key, num_envs, game.num_init_draws)
        game_state = jax.vmap(game.init)(draws)
        zeros = jnp.zeros(num_envs, jnp.int32)
        observation = jax.vmap(game.observe)(game_state)
        timestep = types.TimeStep(
            step_type=jnp.full(num_envs, types.FIRST, jnp.int8),
            reward=jnp.zeros(num_envs),
            discount=jnp.ones(num_envs),
            observation=observation,
            next_observation=observation,
        )
        return State(game_state, last_action=zeros, steps=zeros, key=key), timestep

    def step_row(game_state, last_action, steps, action, draws):
        sticky_draw, step_draws, init_draws = jnp.split(draws, [1, 1 + game.num_step_draws])
        action = jnp.where(sticky_draw[0] < sticky_action_prob, last_action, action)
        # The barrier keeps XLA from computing the step anew for each of its uses.
        game_state, reward, terminal = jax.lax.optimization_barrier(
            game.step(game_state, action, step_draws, difficulty_ramping)
        )
        steps += 1
        last = terminal if max_episode_steps is None else terminal | (steps >= max_episode_steps)
        next_observation = game.observe(game_state)
        first_state = game.init(init_draws)
        timestep = types.TimeStep(
            step_type=jnp.where(last, types.LAST, types.MID).astype(jnp.int8),
            reward=reward,
            discount=1.0 - terminal.astype(jnp.float32),
            observation=jnp.where(last, game.observe(first_state), next_observation),
            next_observation=next_observation,
        )
        game_state = jax.tree.map(functools.partial(jnp.where, last), first_state, game_state)
        return game_state, action, jnp.where(last, 0, steps), timestep

    def step(state: State, action: jax.Array) -> tuple[State, types.TimeStep]:
        draws, key = _draw(state.key, num_envs, num_draws)
        if minimal_actions:
            action = jnp.asarray(actions)[action]
        game_state, last_action, steps, timestep = jax.vmap(step_row)(
            state.game, state.last_action, state.steps, action.astype(jnp.int32), draws
        )
        return State(game_state, last_action, steps, key), timestep

    return types.Environment(spec, num_envs, reset, step, auto_reset=True, render=render)


def render(observation: np.ndarray) -> np.ndarray:
    """Draws an observation [10, 10, C], later channels over earlier; uint8, [160, 160, 3]."""
    picture = np.full((*observation.shape[:2], 3), BACKGROUND, np.uint8)
    for channel in range(observation.shape[2]):
        picture[np.asarray(observation[..., channel], bool)] = PALETTE[channel]
    return picture.repeat(PIXELS, 0).repeat(PIXELS, 1)


def _draw(key: types.Key, num_envs: int, count: int) -> tuple[jax.Array, types.Key]:
    """Returns uniform draws, [num_envs, count], and the next key."""
    key, draw_key = jax.random.split(key)
    return jax.random.uniform(draw_key, (num_envs, count)), key
