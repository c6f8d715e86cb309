"""Asterix: collect gold, +1 each, and keep away from the enemies.

Both come from either side, one to a row at most. About every hundred steps they come more
often, and every other time they move faster too.
Draws: to start an episode, none; in a step, used where something comes in, (0) from the left if
< 1/2, (1) gold if < 1/3, (2) in which of the free rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.environments.minatar import games, grid

NUM_ROWS = 8  # y = 1 ... 8.
RAMP_INTERVAL = 100
SPAWN_INTERVAL = 10  # At the start.
MOVE_INTERVAL = 5


class State(NamedTuple):
    """One row; int32 [] unless said. What lives in row y of the board is entry y - 1."""

    player_x: jax.Array
    player_y: jax.Array
    present: jax.Array  # bool, [8].
    gold: jax.Array  # bool, [8]: gold, else an enemy.
    rightward: jax.Array  # bool, [8].
    x: jax.Array  # [8].
    spawn_interval: jax.Array
    spawn_timer: jax.Array
    move_interval: jax.Array
    move_timer: jax.Array
    ramp_timer: jax.Array
    ramp_index: jax.Array


def init(draws: jax.Array) -> State:
    """Returns an empty board."""
    del draws
    nobody = jnp.zeros(NUM_ROWS, bool)
    return State(
        player_x=jnp.int32(5),
        player_y=jnp.int32(5),
        present=nobody,
        gold=nobody,
        rightward=nobody,
        x=jnp.zeros(NUM_ROWS, jnp.int32),
        spawn_interval=jnp.int32(SPAWN_INTERVAL),
        spawn_timer=jnp.int32(SPAWN_INTERVAL),
        move_interval=jnp.int32(MOVE_INTERVAL),
        move_timer=jnp.int32(MOVE_INTERVAL),
        ramp_timer=jnp.int32(RAMP_INTERVAL),
        ramp_index=jnp.int32(0),
    )


def step(state: State, action: jax.Array, draws: jax.Array, ramping: Any):
    """Advances the game by one tick; see `games.Game`."""
    spawns = state.spawn_timer == 0
    spawn_timer = jnp.where(spawns, state.spawn_interval, state.spawn_timer)
    state = _spawn(state, spawns, draws)

    player_x = grid.walk(state.player_x, action, grid.LEFT, grid.RIGHT)
    player_y = grid.walk(state.player_y, action, grid.UP, grid.DOWN, 1, NUM_ROWS)
    in_row = player_y == np.arange(1, NUM_ROWS + 1)  # [8]

    # The player walks onto things, then things onto the player.
    touched = state.present & in_row & (state.x == player_x)
    present = state.present & ~(touched & state.gold)
    moves = state.move_timer == 0
    x = state.x + jnp.where(moves, jnp.where(state.rightward, 1, -1), 0)
    present &= (x >= 0) & (x < grid.SIZE)
    touched |= present & in_row & (x == player_x)
    present &= ~(touched & state.gold)

    state = state._replace(
        player_x=player_x,
        player_y=player_y,
        present=present,
        x=x,
        spawn_timer=spawn_timer - 1,
        move_timer=jnp.where(moves, state.move_interval, state.move_timer) - 1,
    )
    reward = jnp.sum(touched & state.gold).astype(jnp.float32)
    return _ramp(state, ramping), reward, jnp.any(touched & ~state.gold)


def _spawn(state: State, spawns: jax.Array, draws: jax.Array) -> State:
    """Lets something come into a free row, if there is one, where `spawns`."""
    free = ~state.present
    lower_rows = np.tri(NUM_ROWS, k=-1, dtype=bool)
    rank = jnp.sum(lower_rows & free[None, :], axis=1)  # [8]: free rows before this one.
    chosen = spawns & free & (rank == grid.below(draws[2], jnp.sum(free)))
    rightward = draws[0] < 1 / 2
    return state._replace(
        present=state.present | chosen,
        gold=jnp.where(chosen, draws[1] < 1 / 3, state.gold),
        rightward=jnp.where(chosen, rightward, state.rightward),
        x=jnp.where(chosen, jnp.where(rightward, 0, grid.SIZE - 1), state.x),
    )


def _ramp(state: State, ramping: Any) -> State:
    """Makes the game harder when it is time, until both intervals are 1."""
    ramping &= (state.spawn_interval > 1) | (state.move_interval > 1)
    now = ramping & (state.ramp_timer < 0)
    moves_faster = now & (state.move_interval > 1) & (state.ramp_index % 2 == 1)
    return state._replace(
        spawn_interval=state.spawn_interval - (now & (state.spawn_interval > 1)),
        move_interval=state.move_interval - moves_faster,
        ramp_timer=jnp.where(now, RAMP_INTERVAL, state.ramp_timer - ramping),
        ramp_index=state.ramp_index + now,
    )


def observe(state: State) -> jax.Array:
    """Returns the four channels; bool, [10, 10, 4]. The trail is one cell behind what moves."""
    at = state.present[:, None] & (state.x[:, None] == grid.COLUMNS)  # [8, 10]
    gold = state.gold[:, None]
    trail = grid.sideways(at, ~state.rightward[:, None])
    enemy, trail, gold = (
        jnp.pad(board, ((1, 1), (0, 0))) for board in (at & ~gold, trail, at & gold)
    )
    return grid.planes(grid.cell(state.player_y, state.player_x), enemy, trail, gold)


GAME = games.Game(
    init=init,
    step=step,
    observe=observe,
    channels=("player", "enemy", "trail", "gold"),
    minimal_actions=(grid.NOOP, grid.LEFT, grid.UP, grid.RIGHT, grid.DOWN),
    num_init_draws=0,
    num_step_draws=3,
)
