"""Tests of environments/rows.py, by environments of gymnasium and of dm_env."""

import itertools
from typing import Any

import dm_env
import gymnasium
import numpy as np
import pytest
from dm_env import specs

from kullback.core import replay, types
from kullback.environments import dm, gym

BOX = gymnasium.spaces.Box(-10.0, 10.0, (2,), np.float32)


class Gym(gymnasium.Env):
    """Says what `answers` says: observation, reward and info, of reset (0) and of steps."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, answers=None, space: Any = BOX) -> None:
        self.observation_space, self.zero = space, np.zeros(space.shape, space.dtype)
        self.answers = answers or {}
        self.closed = self.steps = 0

    def answer(self, name: str, default: Any) -> Any:
        value = self.answers.get((name, self.steps), default)
        if isinstance(value, Exception):
            raise value
        return value

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        observation = self.answer("observation", np.zeros_like(self.zero))
        return self.answer("all", (observation, self.answer("info", {})))

    def step(self, action):
        self.steps += 1
        observation = self.answer("observation", np.zeros_like(self.zero))
        answer = (observation, self.answer("reward", 1.0), False, False, self.answer("info", {}))
        return self.answer("all", answer)

    def close(self):
        self.closed += 1


def tick(environment: types.HostEnvironment) -> types.TimeStep:
    environment.send(np.zeros(environment.num_envs, np.int32))
    return environment.recv()


class GymInPlace(gymnasium.Env):
    """Its one array holds the steps since the reset; 100 after one."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(0.0, 1e3, (1,), np.float32)

    def __init__(self) -> None:
        self.o = np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        self.o[:] = 100
        return self.o, {}

    def step(self, action):
        self.o[:] = self.o % 100 + 1
        return self.o, 1.0, False, False, {}


class DmInPlace(dm_env.Environment):
    """The same, cut after three steps by itself; reward and discount are arrays of one, too."""

    def __init__(self) -> None:
        self.o, self.one = np.zeros(1, np.float32), np.ones((), np.float32)

    def reset(self):
        self.o[:] = 100
        return dm_env.restart(self.o)

    def step(self, action):
        self.o[:] = self.o % 100 + 1
        kind = dm_env.StepType.LAST if self.o[0] == 3 else dm_env.StepType.MID
        return dm_env.TimeStep(kind, self.one, self.one, self.o)

    def observation_spec(self) -> Any:
        return specs.Array((1,), np.float32)

    def action_spec(self) -> Any:
        return specs.DiscreteArray(2)


def limited() -> gymnasium.Env:
    return gymnasium.wrappers.TimeLimit(GymInPlace(), 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gym.from_gymnasium(limited, 2),
        lambda: dm.from_dm_env([DmInPlace(), DmInPlace()]),
    ],
    ids=["gymnasium", "dm_env"],
)
def test_a_cut_leads_to_the_last_observation_though_the_reset_writes_into_its_array(make):
    environment = make()
    timesteps = [environment.reset(0), *(tick(environment) for _ in range(4))]
    shown = np.array([t.observation[:, 0] for t in timesteps])
    led_to = np.array([t.next_observation[:, 0] for t in timesteps])
    np.testing.assert_array_equal(led_to, np.transpose([[100, 1, 2, 3, 1]] * 2))
    np.testing.assert_array_equal(shown, np.transpose([[100, 1, 2, 100, 1]] * 2))
    assert [bool(t.last().all()) for t in timesteps] == [False, False, False, True, False]
    assert all(np.all(t.discount == 1) for t in timesteps)

    # What an agent learns from: three steps on, up to the cut and never past it.
    config = replay.Config(capacity=64, min_replay_size=64, batch_size=64, n_step=3)
    store = replay.host(environment.spec, config, 2)
    contents = store.init()
    for before, after in itertools.pairwise(timesteps):
        contents = store.add(contents, before.observation, np.zeros(2, np.int32), after)
    data = store.sample(contents, np.random.default_rng(0)).data
    frames = {
        (o.item(), n.item()) for o, n in zip(data.observation, data.next_observation, strict=True)
    }
    assert frames == {(100, 3), (1, 3)}
    environment.close()


def test_what_a_caller_was_given_is_the_callers():
    """A view's observations may be changed, and held across further calls."""
    view = dm.as_dm_env(gym.from_gymnasium(limited))
    timesteps = [view.reset(), *(view.step(0) for _ in range(5))]
    held = [float(t.observation[0]) for t in timesteps]
    assert held == [100, 1, 2, 3, 100, 1]
    again = dm.as_dm_env(gym.from_gymnasium(limited))
    for expected in held:
        observation = again.step(0).observation
        assert observation[0] == expected
        observation[:] = -7


def test_nobody_reads_infos():
    infos = [{"mask": np.ones(2)}, {"mask": np.ones(3)}, {"mask": None}, None]
    answers = {("info", n): info for n, info in enumerate(infos)}
    environment = gym.from_gymnasium(lambda: Gym(answers), 2)
    environment.reset(0)
    for _ in infos:
        np.testing.assert_array_equal(tick(environment).reward, [1, 1])
    environment.close()


BYTES = gymnasium.spaces.Box(0, 255, (2,), np.uint8)


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "value", "space", "message"),
    [
        ("all", KeyError("pole"), BOX, "raised KeyError: 'pole' (rows_test.py:"),
        ("all", ValueError("two\nlines"), BOX, "raised ValueError: two lines (rows_test.py:"),
        ("all", 5, BOX, "must return (observation, "),
        ("observation", np.zeros(3), BOX, "returned an observation of shape (3,); the environment"),
        ("observation", np.zeros(()), BOX, "of shape (); the environment declares (2,)"),
        ("observation", [[1], [2, 3]], BOX, "must return one array, got "),
        ("observation", {"a": 1}, BOX, "of shape (); the environment declares (2,)"),
        ("observation", [1, None], BOX, "of type object; the environment declares float32"),
        ("observation", [1, 2j], BOX, "of type complex128; the environment declares float32"),
        ("observation", [1, np.nan], BOX, "is nan at [1] (row 0); it must be finite, in float32"),
        ("observation", [1e300, 1], BOX, "is inf at [0] (row 0); it must be finite, in float32"),
        ("observation", [0.5, 1], BYTES, "of type float64; the environment declares uint8"),
        ("observation", [0, 256], BYTES, "of int64 from 0 to 256; the environment declares uint8"),
    ],
)
def test_what_a_call_returns_is_checked(name, value, space, message, step):
    environment = gym.from_gymnasium(Gym({(name, step): value}, space))
    with pytest.raises(ValueError) as error:
        environment.reset(0)
        for _ in range(2):
            tick(environment)
    call = "reset" if step == 0 else "step"
    assert f"environment Gym: {call} " in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (None, "must return one number for a reward, got None"),
        ("1", "must return one number for a reward, got '1'"),
        ([1, 2], "must return one number for a reward, got [1, 2]"),
        (float("nan"), "returned the reward nan; it must be finite"),
        (1e39, "returned the reward 1e+39; it must be finite"),
    ],
)
def test_rewards_are_checked(reward, message):
    environment = gym.from_gymnasium(Gym({("reward", 1): reward}))
    environment.reset(0)
    with pytest.raises(ValueError) as error:
        tick(environment)
    assert str(error.value) == f"environment Gym: step {message}"


def test_integers_and_arrays_of_one_are_numbers():
    answers = {("observation", 1): [1, 2], ("reward", 1): np.ones(1), ("reward", 2): True}
    environment = gym.from_gymnasium(Gym(answers))
    environment.reset(0)
    np.testing.assert_array_equal(tick(environment).observation, [[1, 2]])
    assert tick(environment).reward == 1


def test_one_object_is_one_row():
    shared = Gym()
    message = "this environment Gym object is in use already; .* hand over a function that makes"
    with pytest.raises(ValueError, match=f"row 1: {message}"):
        gym.from_gymnasium(lambda: shared, 2)
    shared = Gym()
    first = gym.from_gymnasium(shared)
    for wrap in (lambda env: env, lambda env: gymnasium.wrappers.TimeLimit(env, 5)):
        with pytest.raises(ValueError, match=f"row 0: {message}"):
            gym.from_gymnasium(wrap(shared))
    assert not shared.closed  # It goes on where it is in use.
    first.close()
    second = gym.from_gymnasium(shared)
    first.close()  # Closed twice, it gives nothing free that is another's.
    with pytest.raises(ValueError, match=message):
        gym.from_gymnasium(shared)
    del second
    gym.from_gymnasium(shared)  # Nor does what is forgotten stay in use.
    with pytest.raises(ValueError, match=r"environment DmInPlace object is in use already"):
        dm.from_dm_env([DmInPlace()] * 2)


def test_rows_are_alike():
    spaces = iter([BOX, BOX, gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)])
    with pytest.raises(ValueError, match=r"row 2 is of shape \(3,\), .* and row 0 of shape \(2,\)"):
        gym.from_gymnasium(lambda: Gym(space=next(spaces)), 3)


@pytest.mark.parametrize("fault", ["raises", "continuous", "unlike"])
def test_rows_that_cannot_all_be_made_are_closed(fault):
    rows = []

    def make() -> gymnasium.Env:
        if len(rows) == 2 and fault == "raises":
            raise OSError("no display")
        rows.append(Gym(space=BYTES if len(rows) == 2 and fault == "unlike" else BOX))
        if len(rows) == 3 and fault == "continuous":
            rows[-1].action_space = BOX
        return rows[-1]

    with pytest.raises((OSError, ValueError)):
        gym.from_gymnasium(make, 4)
    assert [row.closed for row in rows] == [1] * (2 if fault == "raises" else 3)


def test_all_rows_are_closed_though_one_fails_to():
    rows = [Gym(), Gym(), Gym()]
    remaining = iter(rows)
    environment = gym.from_gymnasium(lambda: next(remaining), 3)
    rows[1].close = lambda: 1 / 0  # pyright: ignore # As users may.
    with pytest.raises(ZeroDivisionError):
        environment.close()
    assert [rows[0].closed, rows[2].closed] == [1, 1]


def test_a_function_makes_environments():
    with pytest.raises(ValueError, match=r"must return a gymnasium.Env, got 5"):
        gym.from_gymnasium(lambda: 5)  # pyright: ignore # As users may.


def test_dm_env_must_return_timesteps():
    environment = dm.from_dm_env(DmInPlace())
    environment.reset(0)
    environment._rows[0].underlying.step = lambda action: 5
    with pytest.raises(ValueError, match=r"DmInPlace: step must return a dm_env.TimeStep, got 5"):
        tick(environment)
