"""Space Invaders: shoot the aliens, +1 each, before they or their bullets reach the cannon.

They move faster when fewer than twelve are left, and each wave is faster than the one before.
Nothing is random.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.environments.minatar import games, grid

BOTTOM = 9
SHOT_INTERVAL = 5
ALIEN_SHOT_INTERVAL = 10
MOVE_INTERVAL = 12  # Of the first wave's aliens, and the least that a wave can have:
MIN_MOVE_INTERVAL = 6
WAVE = np.zeros((grid.SIZE, grid.SIZE), bool)
WAVE[0:4, 2:8] = True


class State(NamedTuple):
    """One row; int32 [] unless said."""

    cannon: jax.Array
    bullets: jax.Array  # bool, [10, 10]: the player's.
    alien_bullets: jax.Array  # bool, [10, 10].
    aliens: jax.Array  # bool, [10, 10].
    rightward: jax.Array  # bool: the way the aliens go.
    move_interval: jax.Array
    move_timer: jax.Array
    alien_shot_timer: jax.Array
    shot_timer: jax.Array


def init(draws: jax.Array) -> State:
    """Starts the first wave."""
    del draws
    return State(
        cannon=jnp.int32(5),
        bullets=jnp.zeros(WAVE.shape, bool),
        alien_bullets=jnp.zeros(WAVE.shape, bool),
        aliens=jnp.asarray(WAVE),
        rightward=jnp.zeros((), bool),
        move_interval=jnp.int32(MOVE_INTERVAL),
        move_timer=jnp.int32(MOVE_INTERVAL),
        alien_shot_timer=jnp.int32(ALIEN_SHOT_INTERVAL),
        shot_timer=jnp.int32(0),
    )


def step(state: State, action: jax.Array, draws: jax.Array, ramping: Any):
    """Advances the game by one tick; see `games.Game`."""
    del draws
    cannon = grid.walk(state.cannon, action, grid.LEFT, grid.RIGHT)
    here = grid.cell(jnp.int32(BOTTOM), cannon)
    shoots = (action == grid.FIRE) & (state.shot_timer == 0)
    shot_timer = jnp.where(shoots, SHOT_INTERVAL, state.shot_timer)

    bullets = _up(state.bullets | (here & shoots))
    alien_bullets = _down(state.alien_bullets)
    deadly = alien_bullets | state.aliens

    moves = state.move_timer == 0
    aliens = jnp.where(moves, _march(state.aliens, state.rightward), state.aliens)
    turns = moves & _at_edge(state.aliens, state.rightward)
    landed = turns & jnp.any(state.aliens[BOTTOM])
    terminal = landed | jnp.any(here & (deadly | aliens))

    alien_shoots = state.alien_shot_timer == 0
    alien_bullets |= alien_shoots & _nearest(aliens, cannon)

    killed = aliens & bullets
    aliens &= ~killed
    cleared = ~jnp.any(aliens)
    faster = cleared & (state.move_interval > MIN_MOVE_INTERVAL) & ramping
    interval = jnp.minimum(jnp.sum(state.aliens), state.move_interval)

    state = State(
        cannon=cannon,
        bullets=bullets & ~killed,
        alien_bullets=alien_bullets,
        aliens=aliens | (cleared & WAVE),
        rightward=state.rightward ^ turns,
        move_interval=state.move_interval - faster,
        move_timer=jnp.where(moves, interval, state.move_timer) - 1,
        alien_shot_timer=jnp.where(alien_shoots, ALIEN_SHOT_INTERVAL, state.alien_shot_timer) - 1,
        shot_timer=jnp.maximum(shot_timer - 1, 0),
    )
    return state, jnp.sum(killed).astype(jnp.float32), terminal


def _up(board: jax.Array) -> jax.Array:
    return jnp.concatenate([board[1:], jnp.zeros_like(board[:1])])


def _down(board: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.zeros_like(board[:1]), board[:-1]])


def _at_edge(aliens: jax.Array, rightward: jax.Array) -> jax.Array:
    """Returns whether some alien cannot go on sideways; bool, []."""
    return jnp.any(jnp.where(rightward, aliens[:, -1], aliens[:, 0]))


def _march(aliens: jax.Array, rightward: jax.Array) -> jax.Array:
    """Moves the aliens one cell: down where one is at the edge, else sideways; bool, [10, 10]."""
    down = jnp.roll(aliens, 1, axis=0)  # The bottom row goes to the top: the game is over by then.
    return jnp.where(
        _at_edge(aliens, rightward), down, grid.sideways(aliens, rightward[None, None])
    )


def _nearest(aliens: jax.Array, cannon: jax.Array) -> jax.Array:
    """Finds the lowest alien of the nearest column, of two the left one; bool, [10, 10]."""
    lowest = jnp.max(jnp.where(aliens, grid.ROWS, -1), axis=0, keepdims=True)  # [1, 10]
    away = 2 * abs(grid.COLUMNS - cannon) + (grid.COLUMNS > cannon)  # Distinct.
    away = jnp.where(lowest >= 0, away, 2 * grid.SIZE)
    return (away == jnp.min(away)) & (grid.ROWS == lowest)


def observe(state: State) -> jax.Array:
    """Returns the six channels; bool, [10, 10, 6]."""
    return grid.planes(
        grid.cell(jnp.int32(BOTTOM), state.cannon),
        state.aliens,
        state.aliens & ~state.rightward,
        state.aliens & state.rightward,
        state.bullets,
        state.alien_bullets,
    )


GAME = games.Game(
    init=init,
    step=step,
    observe=observe,
    channels=(
        "cannon",
        "alien",
        "alien_left",
        "alien_right",
        "friendly_bullet",
        "enemy_bullet",
    ),
    minimal_actions=(grid.NOOP, grid.LEFT, grid.RIGHT, grid.FIRE),
    num_init_draws=0,
    num_step_draws=0,
)
