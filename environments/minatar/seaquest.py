"""Seaquest: shoot fish and submarines, +1 each, and bring divers up before the oxygen ends.

Coming up with six divers gives up to +10, the oxygen that is left; with none it ends the game.
Each time the player comes up, enemies come more often, and every other time move faster too.
Draws: to start an episode, none; in a step, used where an enemy comes in, (0) from the left if
< 1/2, (1) a submarine if < 1/3, (2) in which of 8 rows; where a diver does, (3) from the left if
< 1/2, (4) in which row.

Enemies are bits on the board. An enemy moves when its timer is 0, so a cell of `fish` has bit t
set for a fish whose timer is t; a submarine has a second timer, for its shots, and is a bit of
`submarines[t]`. This is all there is to know about them: enemies in one row all go one way, as
none comes in against the others; no two of a kind share cell and timer, as they come at least 14
steps apart while intervals of moves still change, which is when one could catch up with another;
and the one that came first has the lower timer, hence is the first to be hit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.environments.minatar import games, grid

OXYGEN = 200
MAX_DIVERS = 6
SHOT_INTERVAL = 5
ENEMY_INTERVAL = 20  # At the start.
MOVE_INTERVAL = 5  # For enemies at the start, and for divers; timers are 0 ... 5.
MIN_MOVE_INTERVAL = 2
NUM_TIMERS = MOVE_INTERVAL + 1
ENEMY_SHOT_INTERVAL = 10  # Shot timers are 0 ... 10.
DIVER_INTERVAL = 30
TIMERS = np.arange(NUM_TIMERS)[:, None, None]  # [6, 1, 1]


class State(NamedTuple):
    """One row; int32 [] unless said."""

    x: jax.Array  # Column of the player's submarine.
    y: jax.Array
    rightward: jax.Array  # bool: where the player looks.
    surfaced: jax.Array  # bool: the player is at the surface, and has been dealt with.
    oxygen: jax.Array
    num_divers: jax.Array  # On board. Six brought up leave -1, -2 after coming up again, ...
    shot_timer: jax.Array
    bullets: jax.Array  # bool, [2, 10, 10]: the player's that go left, right.
    enemy_bullets: jax.Array  # bool, [2, 10, 10].
    fish: jax.Array  # uint8, [10, 10]: bit t for one with timer t.
    submarines: jax.Array  # uint16, [6, 10, 10]: in entry t, bit s for one with timers t and s.
    enemy_rightward: jax.Array  # bool, [10, 1]: the way of a row's enemies.
    diver_present: jax.Array  # bool, [2]: the older and the younger; there are two at most.
    diver_x: jax.Array  # [2].
    diver_y: jax.Array  # [2].
    diver_rightward: jax.Array  # bool, [2].
    diver_timer: jax.Array  # [2].
    diver_spawn_timer: jax.Array
    enemy_spawn_timer: jax.Array
    enemy_interval: jax.Array
    move_interval: jax.Array
    ramp_index: jax.Array


def init(draws: jax.Array) -> State:
    """Puts the player alone at the surface."""
    del draws
    bullets = jnp.zeros((2, grid.SIZE, grid.SIZE), bool)
    zeros = jnp.zeros(2, jnp.int32)
    return State(
        x=jnp.int32(5),
        y=jnp.int32(0),
        rightward=jnp.zeros((), bool),
        surfaced=jnp.ones((), bool),
        oxygen=jnp.int32(OXYGEN),
        num_divers=jnp.int32(0),
        shot_timer=jnp.int32(0),
        bullets=bullets,
        enemy_bullets=bullets,
        fish=jnp.zeros((grid.SIZE, grid.SIZE), jnp.uint8),
        submarines=jnp.zeros((NUM_TIMERS, grid.SIZE, grid.SIZE), jnp.uint16),
        enemy_rightward=jnp.zeros((grid.SIZE, 1), bool),
        diver_present=jnp.zeros(2, bool),
        diver_x=zeros,
        diver_y=zeros,
        diver_rightward=jnp.zeros(2, bool),
        diver_timer=zeros,
        diver_spawn_timer=jnp.int32(DIVER_INTERVAL),
        enemy_spawn_timer=jnp.int32(ENEMY_INTERVAL),
        enemy_interval=jnp.int32(ENEMY_INTERVAL),
        move_interval=jnp.int32(MOVE_INTERVAL),
        ramp_index=jnp.int32(0),
    )


def step(state: State, action: jax.Array, draws: jax.Array, ramping: Any):
    """Advances the game by one tick; see `games.Game`."""
    settle = jax.lax.optimization_barrier  # Or XLA computes a phase anew for each of its uses.
    state = _spawn_enemy(state, draws[:3])
    state = _spawn_diver(state, draws[3:])
    state = settle(_act(state, action))
    state, num_shot = settle(_move_bullets(state))
    state = _move_divers(state)
    state, num_rammed, caught = settle(_move_enemies(state))
    state, bonus, drowned = _breathe(state, ramping)
    reward = (num_shot + num_rammed + bonus).astype(jnp.float32)
    return state, reward, caught | drowned


def _spawn_enemy(state: State, draws: jax.Array) -> State:
    """Lets an enemy come in when it is time, unless its row's enemies go the other way."""
    due = state.enemy_spawn_timer == 0
    rightward = draws[0] < 1 / 2
    is_submarine = draws[1] < 1 / 3
    y = 1 + grid.below(draws[2], 8)
    in_row = grid.ROWS == y  # [10, 1]
    occupied = jnp.any((state.fish | _timers(state.submarines)) > 0, axis=1, keepdims=True)
    against = jnp.any(in_row & occupied & (state.enemy_rightward != rightward))
    comes = due & ~against
    entry = comes & grid.cell(y, jnp.where(rightward, 0, grid.SIZE - 1))
    timer = jnp.where(entry, _bit(state.move_interval), 0).astype(jnp.uint8)
    new = (TIMERS == state.move_interval) & (entry & is_submarine)[None]
    return state._replace(
        fish=jnp.where(is_submarine, state.fish, state.fish | timer),
        submarines=state.submarines | jnp.where(new, _bit(ENEMY_SHOT_INTERVAL), 0),
        enemy_rightward=jnp.where(comes & in_row, rightward, state.enemy_rightward),
        enemy_spawn_timer=jnp.where(due, state.enemy_interval, state.enemy_spawn_timer),
    )


def _spawn_diver(state: State, draws: jax.Array) -> State:
    """Lets a diver come in when it is time; the older of the two before has left by then."""
    due = state.diver_spawn_timer == 0
    rightward = draws[0] < 1 / 2

    def push(pair, young):
        return jnp.where(due, jnp.stack([pair[1], young]), pair)

    return state._replace(
        diver_present=push(state.diver_present, True),
        diver_x=push(state.diver_x, jnp.where(rightward, 0, grid.SIZE - 1)),
        diver_y=push(state.diver_y, 1 + grid.below(draws[1], 8)),
        diver_rightward=push(state.diver_rightward, rightward),
        diver_timer=push(state.diver_timer, MOVE_INTERVAL),
        diver_spawn_timer=jnp.where(due, DIVER_INTERVAL, state.diver_spawn_timer),
    )


def _act(state: State, action: jax.Array) -> State:
    """Shoots, or moves the player."""
    shoots = (action == grid.FIRE) & (state.shot_timer == 0)
    shot = shoots & grid.cell(state.y, state.x)
    way = jnp.stack([~state.rightward, state.rightward])[:, None, None]
    return state._replace(
        bullets=state.bullets | (way & shot[None]),
        shot_timer=jnp.where(shoots, SHOT_INTERVAL, state.shot_timer),
        x=grid.walk(state.x, action, grid.LEFT, grid.RIGHT),
        y=grid.walk(state.y, action, grid.UP, grid.DOWN, 0, 8),
        rightward=(action == grid.RIGHT) | (state.rightward & (action != grid.LEFT)),
    )


def _move_bullets(state: State) -> tuple[State, jax.Array]:
    """Moves the player's bullets; each takes a fish, or else a submarine, with it."""
    bullets = _fly(state.bullets)
    flying = bullets[0] | bullets[1]
    submarines = _timers(state.submarines)
    shot_fish = flying & (state.fish > 0)
    shot_submarine = flying & (submarines > 0) & ~shot_fish
    shot = shot_fish | shot_submarine
    # The lowest bit of a cell: the first that came.
    sunk = (_bit(TIMERS) & (submarines & -submarines)[None] > 0) & shot_submarine[None]
    state = state._replace(
        bullets=bullets & ~shot[None],
        fish=jnp.where(shot_fish, state.fish & (state.fish - 1), state.fish),
        submarines=jnp.where(sunk, 0, state.submarines),
    )
    return state, jnp.sum(shot)


def _move_divers(state: State) -> State:
    """Moves the divers, who are picked up while there is room, the younger first."""
    moves = state.diver_timer == 0
    x = state.diver_x + jnp.where(moves, jnp.where(state.diver_rightward, 1, -1), 0)
    inside = (x >= 0) & (x < grid.SIZE)
    in_row = state.diver_present & (state.diver_y == state.y)
    touched = in_row & ((state.diver_x == state.x) | (x == state.x))  # Before or after its move.
    younger = touched[1] & (state.num_divers < MAX_DIVERS)
    older = touched[0] & (state.num_divers + younger < MAX_DIVERS)
    return state._replace(
        diver_present=state.diver_present & inside & ~jnp.stack([older, younger]),
        diver_x=x,
        diver_timer=jnp.where(moves, MOVE_INTERVAL, state.diver_timer - 1),
        num_divers=state.num_divers + younger + older,
    )


def _move_enemies(state: State) -> tuple[State, jax.Array, jax.Array]:
    """Moves enemies, which shoot; returns how many hit bullets, and whether the player is hit."""
    here = grid.cell(state.y, state.x)
    right = state.enemy_rightward
    before = (state.fish | _timers(state.submarines)) > 0

    arrived_submarines = grid.sideways(state.submarines[0], right)  # uint16, [10, 10]
    arrived_fish = grid.sideways(state.fish & 1, right) > 0
    entered = arrived_fish | (arrived_submarines > 0)

    # Two of a kind never arrive together. A submarine meets a bullet before a fish does.
    flying = state.bullets[0] | state.bullets[1]
    sunk = flying & (arrived_submarines > 0)
    eaten = flying & arrived_fish & ~sunk
    bullets = state.bullets & ~(sunk | eaten)[None]

    timers_on = jnp.concatenate([state.submarines[1:], jnp.zeros_like(state.submarines[:1])])
    at_interval = TIMERS == state.move_interval
    # A submarine that is just being sunk shoots all the same.
    shoot = (timers_on & 1).astype(bool).any(0) | (arrived_submarines & 1 > 0)
    kept = timers_on | jnp.where(at_interval & ~sunk[None], arrived_submarines[None], 0)
    last_bit = _bit(ENEMY_SHOT_INTERVAL)
    submarines = (kept >> 1) | jnp.where(kept & 1 > 0, last_bit, 0).astype(kept.dtype)

    fish = state.fish >> 1
    fish |= jnp.where(arrived_fish & ~eaten, _bit(state.move_interval), 0).astype(fish.dtype)

    enemy_bullets = state.enemy_bullets | (jnp.stack([~right, right]) & shoot[None])
    moved_bullets = _fly(enemy_bullets)
    deadly = jnp.any(enemy_bullets | moved_bullets, axis=0) | before | entered
    state = state._replace(
        bullets=bullets, fish=fish, submarines=submarines, enemy_bullets=moved_bullets
    )
    return state, jnp.sum(sunk | eaten), jnp.any(here & deadly)


def _breathe(state: State, ramping: Any) -> tuple[State, jax.Array, jax.Array]:
    """Uses up oxygen and handles surfacing; returns the bonus, and whether the game ends."""
    under = state.y > 0
    comes_up = ~under & ~state.surfaced
    suffocates = (state.oxygen <= 0) | (comes_up & (state.num_divers == 0))
    delivers = comes_up & (state.num_divers != 0)
    full = delivers & (state.num_divers == MAX_DIVERS)
    bonus = jnp.where(full, _tenths(state.oxygen), 0)

    moving = state.move_interval > MIN_MOVE_INTERVAL
    spawning = state.enemy_interval > 1
    harder = delivers & ramping & (spawning | moving)
    state = state._replace(
        surfaced=~under & (state.surfaced | delivers),
        oxygen=jnp.where(delivers, OXYGEN, state.oxygen - under),
        num_divers=jnp.where(full, 0, state.num_divers) - delivers,
        move_interval=state.move_interval - (harder & moving & (state.ramp_index % 2 == 1)),
        enemy_interval=state.enemy_interval - (harder & spawning),
        ramp_index=state.ramp_index + harder,
        enemy_spawn_timer=jnp.maximum(state.enemy_spawn_timer - 1, 0),
        diver_spawn_timer=jnp.maximum(state.diver_spawn_timer - 1, 0),
        shot_timer=jnp.maximum(state.shot_timer - 1, 0),
    )
    return state, bonus, suffocates


def _bit(index: Any) -> jax.Array:
    return jnp.left_shift(1, index).astype(jnp.uint16)


def _timers(submarines: jax.Array) -> jax.Array:
    """Sets bit t of a cell where there is a submarine with move timer t; uint8, [10, 10]."""
    return jnp.sum(jnp.where(submarines > 0, _bit(TIMERS), 0), axis=0).astype(jnp.uint8)


def _fly(bullets: jax.Array) -> jax.Array:
    """Moves bullets by one cell; bool, [2, 10, 10]."""
    return jnp.stack([grid.left(bullets[0]), grid.right(bullets[1])])


def _tenths(oxygen: jax.Array) -> jax.Array:
    return oxygen * 10 // OXYGEN


def observe(state: State) -> jax.Array:
    """Returns the ten channels; bool, [10, 10, 10]. Fish, submarines and divers leave the trail."""
    fish = state.fish > 0
    submarine = jnp.any(state.submarines > 0, axis=0)
    diver_cells = (
        state.diver_present[:, None, None]
        & (grid.ROWS[None] == state.diver_y[:, None, None])
        & (grid.COLUMNS[None] == state.diver_x[:, None, None])
    )  # [2, 10, 10]
    diver_trails = grid.sideways(diver_cells, ~state.diver_rightward[:, None, None])
    trail = grid.sideways(fish | submarine, ~state.enemy_rightward) | diver_trails.any(0)
    gauges = grid.ROWS == 9
    return grid.planes(
        grid.cell(state.y, state.x),
        grid.cell(state.y, jnp.where(state.rightward, state.x - 1, state.x + 1)),
        state.bullets.any(0),
        trail,
        state.enemy_bullets.any(0),
        fish,
        submarine,
        gauges & (grid.COLUMNS < _tenths(jnp.maximum(state.oxygen, 0))),
        gauges & (grid.COLUMNS >= 9 - state.num_divers) & (grid.COLUMNS < 9),
        diver_cells.any(0),
    )


GAME = games.Game(
    init=init,
    step=step,
    observe=observe,
    channels=(
        "sub_front",
        "sub_back",
        "friendly_bullet",
        "trail",
        "enemy_bullet",
        "enemy_fish",
        "enemy_sub",
        "oxygen_guage",
        "diver_guage",
        "diver",
    ),
    minimal_actions=tuple(range(6)),
    num_init_draws=0,
    num_step_draws=5,
)
