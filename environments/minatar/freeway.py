"""Freeway: cross eight lanes of cars, +1 at the other side, in 2500 steps.

The player moves every third step at most; a car sends it back to the start. Each crossing gives
the cars new speeds. There is no ramp.
Draws: (0 ... 7) the cars' speeds, to start an episode and in a step, where they are used after a
crossing; the ten parts of [0, 1) are -5 ... -1, 1 ... 5.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.environments.minatar import games, grid

NUM_CARS = 8  # In rows y = 1 ... 8.
START = 9
PLAYER_X = 4
MOVE_INTERVAL = 3
TIME_LIMIT = 2500
ROWS = np.arange(1, NUM_CARS + 1)


class State(NamedTuple):
    """One row; int32 [] unless said. The car in row y of the board is entry y - 1."""

    player_y: jax.Array
    x: jax.Array  # [8].
    car_timer: jax.Array  # [8]: steps before the car moves.
    speed: jax.Array  # [8]: the car moves every |speed| + 1 steps, leftwards if < 0.
    move_timer: jax.Array
    time_left: jax.Array


def init(draws: jax.Array) -> State:
    """Puts all cars at the left."""
    speed = _speeds(draws)
    return State(
        player_y=jnp.int32(START),
        x=jnp.zeros(NUM_CARS, jnp.int32),
        car_timer=abs(speed),
        speed=speed,
        move_timer=jnp.int32(MOVE_INTERVAL),
        time_left=jnp.int32(TIME_LIMIT),
    )


def step(state: State, action: jax.Array, draws: jax.Array, ramping: Any):
    """Advances the game by one tick; see `games.Game`."""
    del ramping
    walks = ((action == grid.UP) | (action == grid.DOWN)) & (state.move_timer == 0)
    player_y = jnp.where(
        walks, grid.walk(state.player_y, action, grid.UP, grid.DOWN), state.player_y
    )
    move_timer = jnp.where(walks, MOVE_INTERVAL, state.move_timer)

    crossed = player_y == 0
    player_y = jnp.where(crossed, START, player_y)
    speed = jnp.where(crossed, _speeds(draws), state.speed)
    car_timer = jnp.where(crossed, abs(speed), state.car_timer)

    drives = car_timer == 0
    x = state.x + jnp.where(drives, jnp.sign(speed), 0)
    x = jnp.where(x < 0, grid.SIZE - 1, jnp.where(x >= grid.SIZE, 0, x))
    # The player may have walked into the car, or the car into the player.
    hit = jnp.any((ROWS == player_y) & ((state.x == PLAYER_X) | (x == PLAYER_X)))

    time_left = state.time_left - 1
    state = State(
        player_y=jnp.where(hit, START, player_y),
        x=x,
        car_timer=jnp.where(drives, abs(speed), car_timer - 1),
        speed=speed,
        move_timer=jnp.maximum(move_timer - 1, 0),
        time_left=time_left,
    )
    return state, crossed.astype(jnp.float32), time_left < 0


def _speeds(draws: jax.Array) -> jax.Array:
    """Maps draws to speeds in -5 ... -1, 1 ... 5; int32, [8]."""
    tenth = grid.below(draws, 10)
    return jnp.where(tenth < 5, tenth - 5, tenth - 4)


def observe(state: State) -> jax.Array:
    """Returns the seven channels; bool, [10, 10, 7]. A car's trail is in its speed's channel."""
    behind = (state.x - jnp.sign(state.speed)) % grid.SIZE
    car, trail = (x[:, None] == grid.COLUMNS for x in (state.x, behind))  # [8, 10]
    trails = (trail & (abs(state.speed)[:, None] == speed) for speed in range(1, 6))
    return grid.planes(
        grid.cell(state.player_y, jnp.int32(PLAYER_X)),
        *(jnp.pad(board, ((1, 1), (0, 0))) for board in (car, *trails)),
    )


GAME = games.Game(
    init=init,
    step=step,
    observe=observe,
    channels=("chicken", "car", "speed1", "speed2", "speed3", "speed4", "speed5"),
    minimal_actions=(grid.NOOP, grid.UP, grid.DOWN),
    num_init_draws=NUM_CARS,
    num_step_draws=NUM_CARS,
)
