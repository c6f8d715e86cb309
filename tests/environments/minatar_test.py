"""Tests of environments/minatar: the same steps as the minatar package, then what a batch adds."""

import functools
import importlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import types
from kullback.environments import minatar
from kullback.environments.minatar import games

STEPS = 10_000
GAMES = sorted(minatar.GAMES)


class ScriptedRandom:
    """Stands in for a RandomState; gives out our draws, in order, as NumPy would round them."""

    def __init__(self):
        self.draws = np.zeros(0, np.float32)
        self.used = 0

    def load(self, draws: np.ndarray) -> None:
        self.draws, self.used = draws, 0

    def rand(self) -> float:
        self.used += 1
        return float(self.draws[self.used - 1])

    def randint(self, low: int, high: int | None = None) -> int:
        low, high = (0, low) if high is None else (low, high)
        return low + int(np.float32(self.rand()) * np.float32(high - low))


class FreewayRandom(ScriptedRandom):
    """Each of our draws is a speed with its sign; minatar draws speeds, then signs."""

    def randint(self, low: int, high: int | None = None, size: int = 8) -> Any:
        assert (low, high, size) == (1, 6, 8)
        tenth = np.int64(self.draws * np.float32(10))
        return np.where(tenth < 5, 5 - tenth, tenth - 4)

    def rand(self, size: int = 8) -> Any:
        return np.where(self.draws < 0.5, 0.25, 0.75)


def make_oracle(name: str, ramping: bool, draws: np.ndarray):
    """Makes a game of the minatar package that draws from a script."""
    module = importlib.import_module(f"minatar.environments.{name}")
    oracle = module.Env(ramping=ramping)
    oracle.random = FreewayRandom() if name == "freeway" else ScriptedRandom()
    oracle.random.load(draws)
    oracle.reset()
    if name == "seaquest":  # A diver's draws come after an enemy's, whether or not one comes in.
        spawn_diver = oracle._spawn_diver

        def spawn_diver_from_its_draws():
            oracle.random.used = 3
            spawn_diver()

        oracle._spawn_diver = spawn_diver_from_its_draws
    return oracle


class Script(NamedTuple):
    """Input of the compiled game, [T, ...]."""

    action: Any
    step_draws: Any
    init_draws: Any
    resets: Any  # bool: whether a new episode begins after this step, if the old one ended.


class Record(NamedTuple):
    """Output of a game, [T, ...]."""

    observation: Any  # After the step, before any reset.
    reward: Any
    terminal: Any


@functools.cache
def compiled(name: str):
    """Compiles one program for a game, which scans a script from a state."""
    game = minatar.GAMES[name]

    def tick(carry, script: Script):
        state, ramping = carry
        state, reward, terminal = game.step(state, script.action, script.step_draws, ramping)
        record = Record(game.observe(state), reward, terminal)
        ended = terminal & script.resets
        state = jax.tree.map(
            lambda first, old: jnp.where(ended, first, old), game.init(script.init_draws), state
        )
        return (state, ramping), record

    return jax.jit(lambda state, ramping, script: jax.lax.scan(tick, (state, ramping), script))


@functools.cache
def beginning(name: str):
    """Compiles how a game begins, and what it shows of a state."""
    game = minatar.GAMES[name]
    return jax.jit(game.init), jax.jit(game.observe)


def follow_ball(oracle, action: int, rng) -> int:
    """Plays a paddle that is under the ball when it matters, most of the time."""
    if rng.random() < 0.04:
        return action
    x = oracle.ball_x + (1 if oracle.ball_dir in (1, 2) else -1)
    target = int(np.clip(oracle.ball_x if rng.random() < 0.5 else x, 0, 9))
    return 0 if target == oracle.pos else 1 if target < oracle.pos else 3


def dive(oracle, action: int, rng) -> int:
    """Plays a submarine that fetches divers and comes up with six, at times with fewer."""
    if rng.random() < 0.25:
        return action
    if oracle.diver_count == 6 or (oracle.diver_count != 0 and rng.random() < 0.1):
        return 2
    if oracle.sub_y < 2:
        return 4
    if oracle.divers:
        x, y = oracle.divers[-1][:2]
        if y != oracle.sub_y:
            return 4 if y > oracle.sub_y else 2
        if abs(x - oracle.sub_x) > 1:
            return 3 if x > oracle.sub_x else 1
    return 5 if rng.random() < 0.4 else action


def compare(
    name: str,
    *,
    ramping: bool,
    immortal: bool = False,
    policy=None,
    change=None,
    seed: int = 0,
    steps: int = STEPS,
):
    """Plays minatar's game, then ours from the same state, actions and draws; they must agree.

    Args:
      name: of the game.
      ramping: whether difficulty ramps.
      immortal: whether the game goes on where it says that it ended.
      policy: (oracle, random action, generator) -> action; uniformly random if None.
      change: (oracle, our state) -> our state, changes both before the start.
      seed: of actions and draws.
      steps: how many.

    Returns:
      What minatar's game looked like after each step (its attributes), and the record.
    """
    game = minatar.GAMES[name]
    rng = np.random.default_rng(seed)

    def uniform(*shape):  # As jax.random.uniform: multiples of 2^-23.
        return (rng.integers(0, 2**23, shape) / 2**23).astype(np.float32)

    script = Script(
        action=rng.integers(0, 6, steps, dtype=np.int32),
        step_draws=uniform(steps, game.num_step_draws),
        init_draws=uniform(steps, game.num_init_draws),
        resets=np.full(steps, not immortal),
    )
    first_draws = uniform(game.num_init_draws)
    oracle = make_oracle(name, ramping, first_draws)
    init, observe = beginning(name)
    state = init(first_draws)
    assert np.array_equal(np.asarray(observe(state)), oracle.state())
    if change is not None:
        state = change(oracle, state)
        assert np.array_equal(np.asarray(observe(state)), oracle.state())

    shape = (steps, 10, 10, len(game.channels))
    expected = Record(np.zeros(shape, bool), np.zeros(steps, np.float32), np.zeros(steps, bool))
    seen = []
    for t in range(steps):
        if policy is not None:
            script.action[t] = policy(oracle, int(script.action[t]), rng)
        oracle.random.load(script.step_draws[t])
        expected.reward[t], expected.terminal[t] = oracle.act(script.action[t])
        expected.observation[t] = oracle.state()
        seen.append(snapshot(oracle))
        if expected.terminal[t] and immortal:
            oracle.terminal = False
        elif expected.terminal[t]:
            oracle.random.load(script.init_draws[t])
            oracle.reset()

    _, got = compiled(name)(state, jnp.asarray(ramping), script)
    for field, wanted, given in zip(Record._fields, expected, got, strict=True):
        wrong = np.flatnonzero((wanted != np.asarray(given)).reshape(steps, -1).any(1))
        assert not wrong.size, f"{field} differs in {wrong.size} steps, first in {wrong[0]}"
    return {key: np.array([s[key] for s in seen]) for key in seen[0]}, expected


def snapshot(oracle) -> dict[str, float]:
    """Returns the oracle's numeric attributes, and the counts of its lists and boards."""
    numbers = {}
    for key, value in vars(oracle).items():
        if isinstance(value, bool | int | float | np.integer):
            numbers[key] = value
        elif isinstance(value, list):
            numbers[key] = sum(entry is not None for entry in value)
        elif isinstance(value, np.ndarray):
            numbers[key] = np.count_nonzero(value)
    if hasattr(oracle, "e_fish"):
        cells = [tuple(fish[:2]) for fish in oracle.e_fish]
        numbers["fish_sharing_a_cell"] = len(cells) - len(set(cells))
        cells = [tuple(submarine[:2]) for submarine in oracle.e_subs]
        numbers["submarines_sharing_a_cell"] = len(cells) - len(set(cells))
    return numbers


@pytest.mark.parametrize(
    "ramping",
    [
        pytest.param(True, id="ramping", marks=pytest.mark.slow),
        pytest.param(False, id="steady"),
    ],
)
@pytest.mark.parametrize("name", GAMES)
def test_random_actions_lead_where_they_do_in_minatar(name, ramping):
    _, record = compare(name, ramping=ramping, steps=STEPS if ramping else STEPS // 4)
    assert np.sum(record.terminal) >= (3 if ramping else 0)
    assert np.sum(record.reward) >= (0 if name == "freeway" else 5)


def test_asterix_when_it_is_hard():
    # Both ramps down to 1, all eight rows full, contact after own and after the others' moves.
    seen, record = compare("asterix", ramping=True, immortal=True, steps=4000)
    assert seen["spawn_speed"].min() == seen["move_speed"].min() == 1
    assert seen["ramp_index"].max() >= 9 and seen["entities"].max() >= 6
    assert record.reward.sum() > 20 and record.terminal.sum() > 20

    def crowd(oracle, state):
        oracle.entities = [[0, y, True, y % 2 == 0] for y in range(1, 9)]
        oracle.spawn_timer = oracle.move_timer = 0
        oracle.spawn_speed = 1
        return state._replace(
            present=jnp.ones(8, bool),
            gold=jnp.arange(1, 9) % 2 == 0,
            rightward=jnp.ones(8, bool),
            spawn_timer=jnp.int32(0),
            move_timer=jnp.int32(0),
            spawn_interval=jnp.int32(1),
        )

    seen, _ = compare("asterix", ramping=True, immortal=True, change=crowd, steps=2000)
    assert np.sum(seen["entities"] == 8) > 100


def test_breakout_when_played_well():
    # Walls cleared and rebuilt, bounces at both corners, long rallies.
    seen, record = compare("breakout", ramping=True, policy=follow_ball)
    bricks = seen["brick_map"]
    assert np.sum((bricks[1:] == 30) & (bricks[:-1] == 0)) >= 2
    assert 5 < np.sum(record.terminal) < 500


def test_freeway_when_played_well():
    # Crossings give new speeds; hits send back; the clock ends episodes.
    seen, record = compare(
        "freeway", ramping=True, policy=lambda _, action, rng: action if rng.random() < 0.3 else 2
    )
    assert record.reward.sum() > 50 and record.terminal.sum() == 3
    assert np.sum((seen["pos"][1:] == 9) & (seen["pos"][:-1] < 8)) > record.reward.sum() + 20


def test_space_invaders_when_it_is_hard():
    # Waves up to the fastest, the last alien, aliens at the bottom, ties between columns.
    def aim(oracle, action, rng):
        columns = np.flatnonzero(oracle.alien_map.any(0))
        target = columns[np.argmin(abs(columns - oracle.pos))] + oracle.alien_dir
        if rng.random() < 0.3:
            return action
        return 5 if target == oracle.pos else 1 if target < oracle.pos else 3

    seen, record = compare("space_invaders", ramping=True, immortal=True, policy=aim)
    assert seen["enemy_move_interval"].min() == 6 and seen["ramp_index"].max() == 6
    assert np.sum(seen["alien_map"] == 1) > 20 and record.terminal.sum() > 20
    seen, _ = compare("space_invaders", ramping=True, immortal=True, steps=2500, seed=1)
    assert np.sum(seen["alien_map"] == 24) > 20
    seen, _ = compare("space_invaders", ramping=False, immortal=True, policy=aim, steps=2500)
    assert seen["enemy_move_interval"].min() == 12 and seen["alien_map"].min() < 5


@pytest.mark.slow
def test_seaquest_when_it_is_hard():
    # Six divers and the bonus, divers < 0 after it, both ramps to their ends, several enemies in
    # one cell, a cell's first enemy shot, two divers and two bullets at a time, two hits at once.
    seen, record = compare("seaquest", ramping=True, immortal=True, policy=dive)
    assert seen["e_spawn_speed"].min() == 1 and seen["move_speed"].min() == 2
    assert seen["diver_count"].max() == 6 and seen["diver_count"].min() < -1
    assert np.sum(record.reward >= 5) > 3 and np.sum(record.reward == 2) > 1
    assert np.sum(seen["fish_sharing_a_cell"] > 0) > 500
    assert np.sum(seen["submarines_sharing_a_cell"] > 0) > 200
    assert np.sum(seen["divers"] == 2) > 50 and np.sum(seen["f_bullets"] == 2) > 20
    assert seen["e_bullets"].max() >= 5 and seen["divers"].max() == seen["f_bullets"].max() == 2
    seen, record = compare("seaquest", ramping=False, immortal=True, policy=dive, steps=2500)
    assert seen["diver_count"].max() == 6 and seen["e_spawn_speed"].min() == 20
    assert np.sum(record.reward == 1) > 20

    def late(oracle, state):
        oracle.e_spawn_speed, oracle.move_speed, oracle.ramp_index = 1, 2, 19
        oracle.e_spawn_timer = 0
        oracle.diver_count, oracle.oxygen, oracle.sub_y, oracle.surface = 6, 9, 3, False
        return state._replace(
            enemy_interval=jnp.int32(1),
            enemy_spawn_timer=jnp.int32(0),
            move_interval=jnp.int32(2),
            ramp_index=jnp.int32(19),
            num_divers=jnp.int32(6),
            oxygen=jnp.int32(9),
            y=jnp.int32(3),
            surfaced=jnp.zeros((), bool),
        )

    # Oxygen runs out, with six divers on board and other divers met.
    def stay_down(oracle, action, rng):
        return action if oracle.sub_y > 1 or rng.random() < 0.02 else 4

    seen, record = compare(
        "seaquest", ramping=True, immortal=True, policy=stay_down, change=late, steps=2500
    )
    assert np.sum(seen["oxygen"] < 0) > 10 and record.reward.max() <= 2
    assert seen["e_fish"].max() >= 10 and seen["e_subs"].max() >= 5


@pytest.mark.slow
def test_seaquest_where_order_matters():
    # A submarine and a fish come to a bullet at once: the submarine, which comes first, is hit, and
    # shoots all the same. Two divers meet the player, who has room for one: the younger's.
    def meet(oracle, state):
        oracle.sub_y, oracle.surface, oracle.diver_count = 4, False, 5
        oracle.f_bullets = [[3, 6, True]]
        oracle.e_subs = [[5, 6, False, 0, 0]]
        oracle.e_fish = [[5, 6, False, 0]]
        oracle.divers = [[5, 4, True, 3], [5, 4, False, 2]]
        return state._replace(
            y=jnp.int32(4),
            surfaced=jnp.zeros((), bool),
            num_divers=jnp.int32(5),
            bullets=state.bullets.at[1, 6, 3].set(True),
            submarines=state.submarines.at[0, 6, 5].set(1),
            fish=state.fish.at[6, 5].set(1),
            diver_present=jnp.ones(2, bool),
            diver_x=jnp.full(2, 5),
            diver_y=jnp.full(2, 4),
            diver_rightward=jnp.array([True, False]),
            diver_timer=jnp.array([3, 2]),
        )

    def stay(oracle, action, rng):
        return 0

    seen, record = compare(
        "seaquest", ramping=True, immortal=True, policy=stay, change=meet, steps=2500
    )
    assert seen["e_subs"][0] == 0 and seen["e_fish"][0] == 1 and record.reward[0] == 1
    assert seen["e_bullets"][0] == 1 and seen["f_bullets"][0] == 0
    assert seen["divers"][0] == 1 and seen["diver_count"][0] == 6


# Mean return and its standard error of uniformly random actions, minatar 1.0.15, six actions.
RANDOM_RETURNS = {
    "asterix": (0.518, 0.016),
    "breakout": (0.508, 0.013),
    "freeway": (0.135, 0.026),
    "seaquest": (0.101, 0.007),
    "space_invaders": (2.82, 0.04),
}


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.slow
def test_random_actions_earn_what_they_do_in_minatar(name):
    # The first episodes of each row, however long: a fixed time would favour short ones.
    rows, per_row = 256, 1 if name == "freeway" else 6
    environment = minatar.make(name, rows)

    @jax.jit
    def play(key):
        def tick(carry):
            state, returns, episode, key = carry
            key, action_key = jax.random.split(key)
            action = jax.random.randint(action_key, (rows,), 0, 6)
            state, timestep = environment.step(state, action)
            now = episode[:, None] == jnp.arange(per_row)[None, :]
            returns += jnp.where(now, timestep.reward[:, None], 0.0)
            return state, returns, episode + timestep.last(), key

        reset_key, key = jax.random.split(key)
        state, _ = environment.reset(reset_key)
        carry = state, jnp.zeros((rows, per_row)), jnp.zeros(rows, jnp.int32), key
        return jax.lax.while_loop(lambda carry: jnp.any(carry[2] < per_row), tick, carry)[1]

    returns = np.asarray(play(jax.random.key(0))).ravel()
    expected, standard_error = RANDOM_RETURNS[name]
    tolerance = 3 * np.hypot(standard_error, np.std(returns) / np.sqrt(returns.size))
    assert abs(np.mean(returns) - expected) < tolerance


def probe(length: int) -> games.Game:
    """Makes a game of `length` steps that shows its action and its steps in two cells."""

    def observe(state):
        steps, action, _ = state
        cells = jnp.arange(100).reshape(10, 10)
        return jnp.stack([cells == steps, cells == action], -1)

    def step(state, action, draws, ramping):
        del ramping
        steps = state[0] + 1
        return (steps, action, draws[0]), jnp.float32(1), steps >= length

    return games.Game(
        init=lambda draws: (jnp.int32(0), jnp.int32(99), draws[0]),
        step=step,
        observe=observe,
        channels=("steps", "action"),
        minimal_actions=(0, 3, 5),
        num_init_draws=1,
        num_step_draws=1,
    )


def shown(observation) -> np.ndarray:
    """Returns the number in each channel of the probe's observation [..., 10, 10, 2]."""
    return np.argmax(np.asarray(observation).reshape(*observation.shape[:-3], 100, 2), -2)


def rollout(environment: types.Environment, actions: np.ndarray, key: types.Key):
    """Timesteps [T, B, ...] that follow actions [T, B]."""
    state, first = environment.reset(key)
    return first, jax.lax.scan(environment.step, state, jnp.asarray(actions))[1]


def test_an_action_sticks_one_time_in_ten():
    actions = np.random.default_rng(0).integers(0, 6, (500, 64), dtype=np.int32)
    environment = games.make(probe(7), 64)
    _, timesteps = jax.jit(rollout, static_argnums=0)(environment, actions, jax.random.key(0))
    executed = shown(timesteps.next_observation)[..., 1]  # [T, B]
    before = np.concatenate([np.zeros((1, 64), int), executed[:-1]])  # Over episodes' ends, too.
    assert np.all((executed == actions) | (executed == before))
    differs = actions != before
    stuck = np.mean(executed[differs] == before[differs])
    assert abs(stuck - 0.1) < 4 * np.sqrt(0.09 / differs.sum())
    _, timesteps = rollout(
        games.make(probe(7), 64, sticky_action_prob=0.0), actions[:20], jax.random.key(0)
    )
    assert np.array_equal(shown(timesteps.next_observation)[..., 1], actions[:20])


def test_an_episode_that_ends_shows_its_end_and_the_next_start():
    actions = np.ones((8, 2), np.int32)
    first, timesteps = rollout(games.make(probe(3), 2), actions, jax.random.key(0))
    assert np.all(first.step_type == types.FIRST) and np.all(first.discount == 1)
    assert np.all(shown(first.observation)[..., 0] == 0)
    after = shown(timesteps.observation)[:, 0, 0]
    before_reset = shown(timesteps.next_observation)[:, 0, 0]
    assert before_reset.tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert after.tolist() == [1, 2, 0, 1, 2, 0, 1, 2]
    assert timesteps.discount[:, 1].tolist() == [1, 1, 0, 1, 1, 0, 1, 1]
    mid, last = types.MID, types.LAST
    assert timesteps.step_type[:, 1].tolist() == [mid, mid, last, mid, mid, last, mid, mid]


@pytest.mark.parametrize(
    "length, limit, discounts",
    [(9, 2, [1, 1, 1, 1]), (2, 2, [1, 0, 1, 0]), (9, None, [1, 1, 1, 1])],
    ids=["cut", "ends as it would be cut", "no limit"],
)
def test_a_cut_episode_keeps_its_discount(length, limit, discounts):
    environment = games.make(probe(length), 2, max_episode_steps=limit)
    _, timesteps = rollout(environment, np.ones((4, 2), np.int32), jax.random.key(0))
    assert timesteps.discount[:, 0].tolist() == discounts
    lasts = timesteps.last()[:, 0].tolist()
    assert lasts == ([False] * 4 if limit is None else [False, True, False, True])
    after = [1, 2, 3, 4] if limit is None else [1, 0, 1, 0]
    assert shown(timesteps.observation)[:, 0, 0].tolist() == after


def test_minimal_actions_are_those_of_minatar():
    for name in GAMES:
        oracle = importlib.import_module(f"minatar.environments.{name}").Env(ramping=True)
        assert list(minatar.GAMES[name].minimal_actions) == oracle.minimal_action_set()
        assert list(minatar.GAMES[name].channels) == list(oracle.channels)
    environment = games.make(probe(9), 3, minimal_actions=True, sticky_action_prob=0.0)
    assert environment.spec.num_actions == 3
    _, timesteps = rollout(environment, np.array([[0, 1, 2]]), jax.random.key(0))
    assert shown(timesteps.observation)[0, :, 1].tolist() == [0, 3, 5]


@pytest.mark.slow
def test_a_key_determines_all_and_seeds_run_side_by_side():
    environment = minatar.make("asterix", 4)
    actions = np.random.default_rng(0).integers(0, 6, (300, 1), dtype=np.int32).repeat(4, 1)
    run = jax.jit(lambda key: rollout(environment, actions, key))
    keys = jax.random.split(jax.random.key(0), 2)
    alone = [run(key) for key in keys]
    again = run(keys[0])
    together = jax.jit(jax.vmap(run))(keys)
    stacked = jax.tree.map(lambda *runs: np.stack(runs), *alone)
    jax.tree.map(np.testing.assert_array_equal, stacked, together)
    jax.tree.map(np.testing.assert_array_equal, alone[0], again)
    assert not np.array_equal(alone[0][1].observation, alone[1][1].observation)
    assert alone[0][1].last().any()
    assert not np.array_equal(again[1].observation[:, 0], again[1].observation[:, 1])


@pytest.mark.parametrize("name", GAMES)
def test_the_first_observation_is_as_specified(name):
    environment = minatar.make(name, 3)
    _, timestep = jax.jit(environment.reset)(jax.random.key(0))
    shape = (3, *environment.spec.shape)
    assert timestep.observation.shape == shape and timestep.observation.dtype == bool
    assert environment.spec.dtype == np.bool_ and environment.spec.num_actions == 6
    assert environment.render is not None
    picture = environment.render(np.asarray(timestep.observation[0]))
    assert picture.shape == (160, 160, 3) and picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) >= 2


def test_a_picture_shows_later_channels_over_earlier():
    observation = np.zeros((10, 10, 2), bool)
    observation[0, 0] = True
    observation[9, 1, 0] = True
    picture = games.render(observation)
    assert np.all(picture[:16, :16] == games.PALETTE[1])
    assert np.all(picture[-16:, 16:32] == games.PALETTE[0])
    assert np.all(picture[16:32] == games.BACKGROUND)


@pytest.mark.parametrize(
    "build, message",
    [
        (
            lambda: minatar.make("brakeout", 1),
            "unknown MinAtar game 'brakeout'; did you mean break",
        ),
        (lambda: minatar.make("breakout", 0), "num_envs must be >= 1, got 0"),
        (
            lambda: minatar.make("breakout", 1, sticky_action_prob=1.5),
            "sticky_action_prob must be in [0, 1], got 1.5",
        ),
        (
            lambda: minatar.make("breakout", 1, max_episode_steps=0),
            "max_episode_steps must lie in [1, 2^31) or be None, got 0",
        ),
    ],
)
def test_what_cannot_be_made_says_so_in_a_line(build, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}[^\n]*$"):
        build()
