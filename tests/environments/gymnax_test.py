"""Tests of environments/gymnax.py and batched.py, on environments of these forms.

gymnax itself is asked at the end, where it is installed.
"""

import dataclasses
import functools
import importlib.machinery
import sys
import types as modules
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback import environments, experiments
from kullback.core import types
from kullback.environments import gymnax, toy

END = 5  # Steps to a true end.


@functools.partial(jax.tree_util.register_dataclass, data_fields=["limit"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Unlimited:
    """Parameters without a limit that is known."""

    limit: int = 3


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["max_steps_in_episode"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Params:
    """Parameters as gymnax's."""

    max_steps_in_episode: int = 3


class CounterState(NamedTuple):
    """The state of a counter."""

    time: jax.Array
    seed: jax.Array
    key: types.Key
    terminal: jax.Array  # As in gymnax's MinAtar: once true, it stays an end for ever.


class Space(NamedTuple):
    """A space, as much of it as is read."""

    n: Any = None
    low: Any = None
    high: Any = None


class Counter:
    """Counts steps; it observes their number and a number drawn at its reset, and pays the action.

    As in gymnax before 1.0, `done` is the end or the limit.
    """

    name = "Counter-v1"
    default_params: Any = Params()

    def reset_env(self, key: types.Key, params: Any) -> tuple[Any, CounterState]:
        del params
        seed = jax.random.uniform(key, maxval=9.0)
        state = CounterState(jnp.int32(0), seed, key, jnp.bool_(False))
        return self.observe(state), state

    def step_env(
        self, key: types.Key, state: CounterState, action: jax.Array, params: Any
    ) -> tuple[Any, CounterState, jax.Array, jax.Array, dict[str, Any]]:
        time = state.time + 1
        done = state.terminal | (time >= END) | self.is_over(time, params)
        state = CounterState(time, state.seed, key, done)
        return self.observe(state), state, action, done, {"discount": 1.0 - done}

    def is_over(self, time: jax.Array, params: Any) -> jax.Array:
        return time >= params.max_steps_in_episode

    def observe(self, state: CounterState) -> Any:
        return jnp.stack([state.time, state.seed])

    def action_space(self, params: Any) -> Space:
        del params
        return Space(n=4)

    def observation_space(self, params: Any) -> Space:
        del params
        return Space(low=jnp.array([0, 0]), high=jnp.array([9, 9]))


class Newer(Counter):
    """The counter as from gymnax 1.0 on: ends and cuts are two things, which may meet."""

    default_params = Unlimited()

    def is_over(self, time: jax.Array, params: Any) -> jax.Array:
        return jnp.zeros_like(time, bool)

    def is_truncated(self, state: CounterState, params: Any) -> jax.Array:
        return state.time >= params.limit


@functools.partial(jax.jit, static_argnums=(0, 1))
def program(environment: types.Environment, ticks: int, seed: int = 0) -> types.TimeStep:
    """Returns the reset and `ticks` steps of action 1, [T, B, ...]."""
    state, first = environment.reset(jax.random.key(seed))
    actions = jnp.ones((ticks, environment.num_envs), jnp.int32)
    _, t = jax.lax.scan(environment.step, state, actions)
    return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, t)


def play(environment: types.Environment, ticks: int, seed: int = 0) -> types.TimeStep:
    """Returns them in NumPy: what a test then computes of them compiles nothing."""
    return jax.tree.map(np.asarray, program(environment, ticks, seed))


@pytest.mark.parametrize(
    "limit, length, discount",
    [(3, 3, 1), (8, END, 0), (END, END, 0)],
    ids=["cut", "end", "both"],
)
@pytest.mark.parametrize("newer", [False, True], ids=["before 1.0", "1.0"])
def test_an_episode_by_hand(newer: bool, limit: int, length: int, discount: int):
    environment, params = (Newer(), Unlimited(limit)) if newer else (Counter(), Params(limit))
    rows = gymnax.from_gymnax(environment, params, 2)
    assert rows.spec.max_episode_steps == (None if newer else limit)
    t = play(rows, 2 * length)
    ends = np.arange(2 * length + 1) % length == 0
    ends[0] = False
    np.testing.assert_array_equal(t.last()[:, 0], ends)
    np.testing.assert_array_equal(t.discount[:, 0], np.where(ends, discount, 1))
    np.testing.assert_array_equal(t.reward[:, 0], [0] + 2 * length * [1])
    times = np.arange(2 * length + 1) % length
    np.testing.assert_array_equal(t.observation[:, 0, 0], times)
    np.testing.assert_array_equal(t.next_observation[:, 0, 0], np.where(ends, length, times))
    assert t.step_type[0].tolist() == [types.FIRST] * 2 and t.step_type.dtype == jnp.int8
    # The number of an episode is drawn anew for each, and each row.
    seeds = np.asarray(t.observation[..., 1])
    assert len(set(seeds.ravel())) == 2 * 3
    np.testing.assert_array_equal(t.next_observation[length, :, 1], seeds[length - 1])


def test_the_same_key_is_the_same_run_whatever_the_rows():
    one, two = gymnax.from_gymnax(Counter()), gymnax.from_gymnax(Counter(), None, 2)
    np.testing.assert_array_equal(play(two, 9).observation, play(two, 9).observation)
    assert not np.array_equal(play(two, 9).observation, play(two, 9, seed=1).observation)
    assert one.num_envs == 1 and one.spec == two.spec
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0)))
    seeds = jax.eval_shape(jax.vmap(lambda key: two.reset(key)[1].observation), keys)
    assert seeds.shape == (2, 2, 2)


def test_a_spec_is_what_the_environment_gives():
    spec = gymnax.from_gymnax(Counter()).spec
    assert spec == types.Spec(
        shape=(2,),
        dtype=np.dtype(np.float32),
        num_actions=4,
        bounds=((0.0, 0.0), (9.0, 9.0)),
        max_episode_steps=3,
    )
    for shape, dtype, expected in (
        ((8, 8, 3), jnp.uint8, ((8, 8, 3), np.uint8)),
        ((8, 8, 3), jnp.bool_, ((8, 8, 3), np.bool_)),
        ((), jnp.int32, ((1,), np.float32)),
        ((3, 4), jnp.int32, ((12,), np.float32)),  # A matrix is a vector to a network.
    ):
        observe = functools.partial(jnp.full, shape, dtype=dtype)
        rows = gymnax.from_gymnax(Counter(), observation=lambda seen, f=observe: f(seen[0]))
        assert (rows.spec.shape, rows.spec.dtype) == (expected[0], np.dtype(expected[1]))
        assert rows.spec.bounds is None
        t = jax.eval_shape(functools.partial(program, rows, 2))
        assert (t.observation.shape, t.observation.dtype) == ((3, 1, *expected[0]), expected[1])


def test_limits_of_a_callers_own():
    assert play(gymnax.from_gymnax(Counter(), max_episode_steps=2), 4).last()[:, 0].tolist() == [
        *(False, False, True, False, True)
    ]
    kept = gymnax.from_gymnax(Counter(), limit_is_end=True)
    t = play(kept, 3)
    assert kept.spec.max_episode_steps is None
    assert t.last()[:, 0].tolist() == [False, False, False, True] and t.discount[3, 0] == 0


@pytest.mark.parametrize("limit, length, discount", [(3, 3, 1), (8, END, 0)])
def test_without_reset_a_row_stays_finished(limit: int, length: int, discount: int):
    rows = gymnax.from_gymnax(Counter(), Params(limit), auto_reset=False)
    assert not rows.auto_reset
    t = play(rows, length + 3)
    np.testing.assert_array_equal(t.last()[:, 0], np.arange(length + 4) >= length)
    np.testing.assert_array_equal(t.discount[length:, 0], [discount] * 4)
    np.testing.assert_array_equal(t.reward[length:, 0], [1, 0, 0, 0])
    np.testing.assert_array_equal(t.observation, t.next_observation)
    np.testing.assert_array_equal(t.observation[length:, 0, 0], [length] * 4)


def test_fewer_resets_than_rows_are_shared_by_those_that_end_together():
    t = play(gymnax.from_gymnax(Counter(), None, 4, resets=2), 3)
    first, _, _, second = np.asarray(t.observation[..., 1])
    assert len(set(first)) == 4  # All rows begin apart.
    assert second[0] == second[2] != second[1] == second[3]
    for resets in (-1, 5):
        with pytest.raises(ValueError, match=r"resets must lie in \[0, 4\]"):
            gymnax.from_gymnax(Counter(), None, 4, resets=resets)


def test_it_is_the_chain_that_it_describes():
    length, limit = 3, 7

    class Chain(Counter):
        def reset_env(self, key: types.Key, params: Any) -> Any:
            del key, params
            return jax.nn.one_hot(0, length), jnp.int32(0)

        def step_env(self, key: types.Key, state: Any, action: Any, params: Any) -> Any:
            place = jnp.maximum(state + jnp.where(action == toy.RIGHT, 1, -1), 0)
            return jax.nn.one_hot(place, length), place, place == length, place == length, {}

    chain = toy.chain(5, length=length, max_episode_steps=limit)
    ours = gymnax.from_gymnax(Chain(), Params(limit), 5)
    actions = jnp.asarray(np.random.default_rng(1).integers(0, 2, (300, 5), np.int32))

    @functools.partial(jax.jit, static_argnums=0)
    def walk(rows: types.Environment) -> types.TimeStep:
        return jax.lax.scan(rows.step, rows.reset(jax.random.key(0))[0], actions)[1]

    timesteps = [jax.tree.map(np.asarray, walk(rows)) for rows in (chain, ours)]
    jax.tree.map(np.testing.assert_array_equal, *timesteps)
    cuts = timesteps[0].last() & (timesteps[0].discount == 1)
    assert cuts.any() and (timesteps[0].discount == 0).any()


class Wrapper(Counter):
    """A wrapper as gymnax's."""

    _env = Counter()


class Continuous(Counter):
    """A counter whose action is a number in a box."""

    def action_space(self, params: Any) -> Space:
        return Space(low=0, high=1)


class Nested(Counter):
    """A counter whose observation is a dictionary."""

    def observe(self, state: CounterState) -> Any:
        return {"time": state.time}


class Faulty(Counter):
    """A counter whose step fails, as those of some environments with some versions of JAX do."""

    def step_env(self, key: types.Key, state: Any, action: Any, params: Any) -> Any:
        return state.time[action], state, action, action, {}


class DiscountingChain(Counter):
    """An environment that gymnax has, whose observation holds the time left."""


@pytest.mark.parametrize(
    "environment, params, message",
    [
        (Wrapper(), None, "Counter-v1 is a wrapper, whose step and reset would be passed over"),
        (object(), None, "object has no reset_env, so it is not of gymnax's form"),
        (Continuous(), None, "Counter-v1 needs a discrete action space, got Space"),
        (Nested(), None, "an observation must be one array, got a dict; observation= takes"),
        (Faulty(), None, r"Counter-v1: a step raised \w+: .*\(\w+.py:\d+\)"),
        (Counter(), Unlimited(), "a time limit cannot be told from an end; limit_is_end=True"),
        (Counter(), (3,), "has none of max_steps_in_episode, max_timesteps among its parameters"),
        (Counter(), Params(0), r"max_episode_steps must lie in \[1, 2\^31\), got 0"),
        (DiscountingChain(), None, "observes its time limit, so it cannot be taken out"),
    ],
)
def test_what_cannot_be_a_row_is_refused(environment: Any, params: Any, message: str):
    with pytest.raises(ValueError, match=message) as error:
        environments.from_gymnax(environment, params)
    assert "\n" not in str(error.value)


def test_an_observation_of_parts_is_mended_by_a_function():
    rows = gymnax.from_gymnax(Nested(), observation=lambda seen: seen["time"][None])
    assert play(rows, 2).observation[:, 0, 0].tolist() == [0, 1, 2]


class NavixStep(NamedTuple):
    """A timestep as navix's: 0 goes on, 1 is a cut, 2 an end."""

    t: jax.Array
    observation: jax.Array
    reward: jax.Array
    step_type: jax.Array


class Navix:
    """A counter of navix's form: ends at `end` steps, is cut at 4, and resets in the step after."""

    max_steps = 4
    action_space = Space(n=jnp.int32(7))

    def __init__(self, end: int) -> None:
        self.end = end

    def reset(self, key: types.Key) -> NavixStep:
        del key
        zero = jnp.int32(0)
        return NavixStep(zero, jnp.zeros((2, 2, 3), jnp.uint8), jnp.float32(0), zero)

    def step(self, timestep: NavixStep, action: jax.Array) -> NavixStep:
        del action
        t = timestep.t + 1
        kind = jnp.where(t >= self.end, 2, jnp.where(t >= self.max_steps, 1, 0))
        seen = jnp.full((2, 2, 3), t, jnp.uint8)
        resets = timestep.step_type > 0
        return jax.tree.map(
            lambda begun, stepped: jnp.where(resets, begun, stepped),
            self.reset(jax.random.key(0)),
            NavixStep(t, seen, jnp.float32(1), kind),
        )


@pytest.mark.parametrize("end, length, discount", [(9, 4, 1), (3, 3, 0)])
def test_a_step_of_navix_after_an_end_is_a_real_one(end: int, length: int, discount: int):
    rows = gymnax.from_navix(Navix(end), 2)
    assert rows.spec.num_actions == 7 and rows.spec.max_episode_steps == 4
    t = play(rows, 2 * length)
    ends = [False] + 2 * ([False] * (length - 1) + [True])
    np.testing.assert_array_equal(t.last()[:, 0], ends)
    np.testing.assert_array_equal(t.discount[:, 0], np.where(ends, discount, 1))
    np.testing.assert_array_equal(t.reward[:, 0], [0] + [1] * (2 * length))
    assert t.observation.dtype == jnp.uint8
    assert t.observation[length + 1, 0, 0, 0, 0] == 1


@pytest.fixture(name="installed")
def installed_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs a gymnax that knows the counter alone."""

    def make(game: str) -> tuple[Counter, Params]:
        if game != "Counter-v1":
            raise NotImplementedError("not yet")
        return Counter(), Params()

    module = modules.ModuleType("gymnax")
    module.__spec__ = importlib.machinery.ModuleSpec("gymnax", None)
    vars(module).update(make=make, registered_envs=["Counter-v1", "Slow-v0"])
    monkeypatch.setitem(sys.modules, "gymnax", module)


@pytest.mark.slow
def test_an_agent_learns_in_an_environment_by_name(installed: None, tmp_path: Any):
    del installed
    assert environments.is_compiled("gymnax/Counter-v1")
    rows: list[Any] = []
    path = experiments.train(
        *("dqn", "gymnax/Counter-v1"),
        out=tmp_path / "run",
        steps=1_600,
        log_every=800,
        callback=rows.append,
        settings=("torso=mlp_small", "min_replay_size=100", "batch_size=8", "epsilon=0.2"),
        environment_flags=("resets=1", "max_episode_steps=4"),
        quiet=True,
    )
    assert path.is_dir() and rows[-1]["steps"] == 1_600
    # Each of four steps pays the number of the action, at most 3; a fifth of actions is chance.
    assert rows[-1]["recent_return"] > 9 > 4 * 1.5


@pytest.mark.parametrize(
    "name, message",
    [
        ("gymnax/Counter-v2", "did you mean gymnax/Counter-v1"),
        ("gymnax/Slow-v0", "environment gymnax/Slow-v0: making it raised NotImplementedError: not"),
        ("gymnax/Craftax-Symbolic-v1", r"\.craftax.*pip install craftax|pip install craftax"),
    ],
)
def test_names_that_cannot_be_made(installed: None, name: str, message: str):
    del installed
    with pytest.raises(ValueError, match=message) as error:
        environments.make(name, 1)
    assert "\n" not in str(error.value)


def test_without_gymnax_its_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ValueError, match=r"pip install 'kullback\[gymnax\]'") as error:
        environments.make("gymnax/CartPole-v1")
    assert "\n" not in str(error.value)
    # A run of it can be read all the same.
    environments.check_name("gymnax/CartPole-v1")
    assert environments.parameters("gymnax/CartPole-v1")["limit_is_end"].default is False


# Gymnax casts to types that JAX warns of, and a warning is an error here.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.slow
def test_gymnax_itself():
    package = pytest.importorskip("gymnax", reason="the extra kullback[gymnax] is not installed")
    makeable = []
    for name in package.registered_envs:
        try:
            environment, params = package.make(name)
            rows = gymnax.make(name, 2, limit_is_end="Discounting" in name)
        # Continuous actions; a data set that is not here; bandits that fail on today's JAX.
        except (ValueError, OSError):
            continue
        makeable.append(name)
        check_beside(environment, params, rows)
    assert {"CartPole-v1", "Breakout-MinAtar", "Catch-bsuite", "FourRooms-misc"} <= set(makeable)
    cartpole = gymnax.make("CartPole-v1", 1)
    state, _ = cartpole.reset(jax.random.key(0))
    _, t = jax.lax.scan(cartpole.step, state, jnp.zeros((15, 1), jnp.int32))
    assert t.last().any() and t.discount[np.argmax(t.last())] == 0
    freeway = gymnax.make("Freeway-MinAtar", 1)
    state, _ = freeway.reset(jax.random.key(0))
    _, t = jax.jit(functools.partial(jax.lax.scan, freeway.step))(
        state, jnp.zeros((2_500, 1), jnp.int32)
    )
    assert np.flatnonzero(t.last()).tolist() == [2_499] and t.discount.min() == 1


def check_beside(environment: Any, params: Any, rows: types.Environment) -> None:
    """Compares rows with gymnax's own steps, from the same states and keys."""
    state, t = jax.jit(rows.reset)(jax.random.key(0))
    step, theirs = jax.jit(rows.step), jax.jit(environment.step_env)
    for tick in range(40):
        action = jax.random.randint(jax.random.key(tick), (2,), 0, rows.spec.num_actions)
        keys = jax.random.split(jax.random.split(state.key, 3)[1], 2)
        singles = [jax.tree.map(lambda x, row=row: x[row], state.single) for row in range(2)]
        state, t = step(state, action)
        for row in range(2):
            seen, _, reward, done, _ = theirs(keys[row], singles[row], action[row], params)
            np.testing.assert_allclose(
                t.next_observation[row].reshape(-1), jnp.ravel(seen), rtol=1e-5, atol=1e-6
            )
            np.testing.assert_allclose(t.reward[row], reward, rtol=1e-5)
            assert bool(t.last()[row]) == bool(done)
