"""Breakout: keep the ball in play with the paddle and break the bricks, +1 each.

A cleared wall comes back when the ball next reaches the bottom row. There is no ramp.
Draws: to start an episode, (0) on which side the ball starts; in a step, none.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kullback.environments.minatar import games, grid

FIRST_ROW, NUM_ROWS = 1, 3  # Rows of bricks.
BOTTOM = 9


class State(NamedTuple):
    """One row; int32 [] unless said."""

    paddle: jax.Array
    ball_x: jax.Array
    ball_y: jax.Array
    velocity_x: jax.Array  # -1 or 1.
    velocity_y: jax.Array
    trail_x: jax.Array  # Where the ball was.
    trail_y: jax.Array
    bricks: jax.Array  # bool, [3, 10].
    striking: jax.Array  # bool: the ball is within the wall, where it breaks nothing more.


def init(draws: jax.Array) -> State:
    """Puts the ball at either side, on its way down."""
    from_right = grid.below(draws[0], 2)
    x, y = 9 * from_right, jnp.int32(3)
    return State(
        paddle=jnp.int32(4),
        ball_x=x,
        ball_y=y,
        velocity_x=1 - 2 * from_right,
        velocity_y=jnp.int32(1),
        trail_x=x,
        trail_y=y,
        bricks=jnp.ones((NUM_ROWS, grid.SIZE), bool),
        striking=jnp.zeros((), bool),
    )


def step(state: State, action: jax.Array, draws: jax.Array, ramping: Any):
    """Advances the game by one tick; see `games.Game`."""
    del draws, ramping
    paddle = grid.walk(state.paddle, action, grid.LEFT, grid.RIGHT)
    x = state.ball_x + state.velocity_x
    y = state.ball_y + state.velocity_y
    at_side = (x < 0) | (x >= grid.SIZE)
    x = jnp.clip(x, 0, grid.SIZE - 1)
    at_top = y < 0
    y = jnp.maximum(y, 0)

    target = (y == grid.ROWS[FIRST_ROW : FIRST_ROW + NUM_ROWS]) & (x == grid.COLUMNS)  # [3, 10]
    at_brick = jnp.any(state.bricks & target)
    breaks = at_brick & ~state.striking
    bricks = state.bricks & ~(target & breaks)

    at_bottom = y == BOTTOM
    bricks |= at_bottom & ~jnp.any(state.bricks)
    above_paddle = at_bottom & (state.ball_x == paddle)  # Bounces up and on.
    at_corner = at_bottom & ~above_paddle & (x == paddle)  # Bounces back whence it came.
    caught = above_paddle | at_corner

    state = State(
        paddle=paddle,
        ball_x=x,
        ball_y=jnp.where(breaks | caught, state.ball_y, y),
        velocity_x=jnp.where(at_side ^ at_corner, -state.velocity_x, state.velocity_x),
        velocity_y=jnp.where(at_top | breaks | caught, -state.velocity_y, state.velocity_y),
        trail_x=state.ball_x,
        trail_y=state.ball_y,
        bricks=bricks,
        striking=at_brick,
    )
    return state, breaks.astype(jnp.float32), at_bottom & ~caught


def observe(state: State) -> jax.Array:
    """Returns the four channels; bool, [10, 10, 4]."""
    above, under = FIRST_ROW, grid.SIZE - FIRST_ROW - NUM_ROWS
    return grid.planes(
        grid.cell(jnp.int32(BOTTOM), state.paddle),
        grid.cell(state.ball_y, state.ball_x),
        grid.cell(state.trail_y, state.trail_x),
        jnp.pad(state.bricks, ((above, under), (0, 0))),
    )


GAME = games.Game(
    init=init,
    step=step,
    observe=observe,
    channels=("paddle", "ball", "trail", "brick"),
    minimal_actions=(grid.NOOP, grid.LEFT, grid.RIGHT),
    num_init_draws=1,
    num_step_draws=0,
)
