"""Boards of 10 x 10 cells as masks, which spare compiled loops costly gathers and scatters.

A board is [10, 10], row y (downwards) first. Everything here is for one row of an environment.
"""

import jax
import jax.numpy as jnp
import numpy as np

SIZE = 10
ROWS = np.arange(SIZE, dtype=np.int32)[:, None]  # [10, 1].
COLUMNS = np.arange(SIZE, dtype=np.int32)[None, :]  # [1, 10].
NOOP, LEFT, UP, RIGHT, DOWN, FIRE = range(6)


def cell(y: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the board that is true at (y, x) alone, if that is inside; bool, [10, 10]."""
    return (y == ROWS) & (x == COLUMNS)


def right(board: jax.Array) -> jax.Array:
    """Moves `board` [..., 10] one column to the right; what leaves it is lost."""
    return jnp.concatenate([jnp.zeros_like(board[..., :1]), board[..., :-1]], -1)


def left(board: jax.Array) -> jax.Array:
    """Moves `board` [..., 10] one column to the left; what leaves it is lost."""
    return jnp.concatenate([board[..., 1:], jnp.zeros_like(board[..., :1])], -1)


def sideways(board: jax.Array, rightward: jax.Array) -> jax.Array:
    """Moves `board` [..., 10] one column: right where `rightward` (of the same rank), else left."""
    return jnp.where(rightward, right(board), left(board))


def walk(
    position: jax.Array, action: jax.Array, back: int, forth: int, low: int = 0, high: int = 9
):
    """Moves a coordinate []: one less for `back`, one more for `forth`, within bounds."""
    step = (action == forth).astype(jnp.int32) - (action == back).astype(jnp.int32)
    return jnp.clip(position + step, low, high)


def below(draw: jax.Array, count: int | jax.Array) -> jax.Array:
    """Maps a uniform draw in [0, 1) to an integer in 0 ... count - 1; int32."""
    return (draw * count).astype(jnp.int32)  # Never `count`: draws have 23 bits.


def planes(*boards: jax.Array) -> jax.Array:
    """Stacks boards [10, 10] into an observation; bool, [10, 10, C]."""
    return jnp.stack(boards, axis=-1)
