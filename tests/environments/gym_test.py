"""Tests of environments/gym.py."""

import sys

import gymnasium
import numpy as np
import pytest

from kullback import environments
from kullback.core import types
from kullback.environments import gym


def tick(environment: types.HostEnvironment, action: list[int]) -> types.TimeStep:
    environment.send(np.array(action, np.int32))
    return environment.recv()


class Counter(gymnasium.Env):
    """Counts its steps, in one array; actions 3 and 4, float64, ends when told 4."""

    action_space = gymnasium.spaces.Discrete(2, start=3)
    observation_space = gymnasium.spaces.Box(-1.0, 9.0, (1,), np.float64)

    def __init__(self):
        self.count = np.zeros(1)  # The only one: steps and resets write into it.

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count[:] = 0
        return self.count, {}

    def step(self, action):
        assert action in (3, 4)
        self.count += 1
        return self.count, 2.5, action == 4, self.count[0] == 3, {}


@pytest.mark.parametrize("game", gym.GAMES)
def test_equals_gymnasium(game: str):
    """Rows are plain gymnasium environments, ends and cuts included."""
    num_envs, limit = 2, 40
    ours = gym.make(game, num_envs, max_episode_steps=limit)
    timestep = ours.reset(3)
    seeds = np.random.SeedSequence(3).generate_state(num_envs).tolist()
    rows = [gymnasium.make(game, max_episode_steps=limit) for _ in range(num_envs)]
    for i, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        np.testing.assert_array_equal(timestep.observation[i], row.reset(seed=seed)[0])
    assert np.all(timestep.step_type == types.FIRST)
    rng = np.random.default_rng(0)
    discounts = set()
    for _ in range(150):
        action = rng.integers(ours.spec.num_actions, size=num_envs)
        timestep = tick(ours, action.tolist())
        assert timestep.observation.dtype == timestep.reward.dtype == np.float32
        for i, row in enumerate(rows):
            observation, reward, terminated, truncated, _ = row.step(action[i])
            np.testing.assert_array_equal(timestep.next_observation[i], observation)
            assert timestep.reward[i] == np.float32(reward)
            assert timestep.last()[i] == (terminated or truncated)
            assert timestep.discount[i] == (not terminated)
            if terminated or truncated:
                discounts.add(float(timestep.discount[i]))
                observation, _ = row.reset()
            np.testing.assert_array_equal(timestep.observation[i], observation)
    # Only CartPole ends within so few random steps, and some of its episodes are cut.
    assert discounts == ({0.0, 1.0} if game == "CartPole-v1" else {1.0})
    ours.close()


def test_seed_decides_and_rows_differ():
    environment = gym.make("CartPole-v1", 3)
    first, again, other = (environment.reset(seed).observation for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    # No row of a seed is a row of its neighbour.
    assert len({row.tobytes() for row in (*first, *other)}) == 6
    environment.close()


@pytest.mark.parametrize(
    "game, high",
    [
        ("CartPole-v1", [2.4, 5, np.pi / 12, 2 * np.pi]),  # Its own are infinite.
        ("Acrobot-v1", [1, 1, 1, 1, 4 * np.pi, 9 * np.pi]),
    ],
)
def test_bounds(game: str, high: list[float]):
    bounds = gym.make(game, 1).spec.bounds
    assert bounds is not None
    np.testing.assert_allclose(bounds, np.outer([-1, 1], high), rtol=1e-6)


@pytest.mark.parametrize(("high", "largest"), [(255, 255), (63, 63), (1, 1), (0, 1)])
def test_the_largest_byte_is_the_declared_one(high: int, largest: int):
    class Bytes(Counter):
        observation_space = gymnasium.spaces.Box(0, high, (4, 5, 3), np.uint8)

    spec = gym.from_gymnasium(Bytes).spec
    assert spec.largest_byte == largest and spec.dtype == np.uint8 and spec.bounds is None


def test_wrapped_cartpole_is_scaled_as_it_is_only_where_it_looks_as_it_does():
    def bounds(wrap):
        environment = gym.from_gymnasium(lambda: wrap(gymnasium.make("CartPole-v1")))
        environment.close()
        return environment.spec.bounds

    space = gymnasium.spaces.Box(-2.0, 2.0, (4,), np.float32)
    limits = bounds(lambda env: env)
    assert limits is not None and limits[1][0] == 2.4
    assert bounds(gymnasium.wrappers.RecordEpisodeStatistics) == limits
    assert bounds(gymnasium.wrappers.NormalizeObservation) is None
    half = lambda env: gymnasium.wrappers.TransformObservation(env, lambda o: o / 2, None)  # noqa: E731
    assert bounds(half) is None
    clipped = lambda env: gymnasium.wrappers.TransformObservation(env, np.tanh, space)  # noqa: E731
    assert bounds(clipped) == ((-2.0,) * 4, (2.0,) * 4)


def test_environment_of_the_callers():
    environment = gym.from_gymnasium(Counter(), 1)
    assert environment.spec == types.Spec(
        shape=(1,), dtype=np.float32, num_actions=2, bounds=((-1.0,), (9.0,))
    )
    environment.reset(0)
    steps = [tick(environment, [action]) for action in (0, 0, 0, 0, 1)]
    ends = np.array([step.last()[0] for step in steps])
    np.testing.assert_array_equal(ends, [False, False, True, False, True])
    np.testing.assert_array_equal([step.discount[0] for step in steps], [1, 1, 1, 1, 0])
    np.testing.assert_array_equal([step.reward[0] for step in steps], [2.5] * 5)
    after = [step.next_observation[0, 0] for step in steps]
    np.testing.assert_array_equal(after, [1, 2, 3, 1, 2])
    np.testing.assert_array_equal([step.observation[0, 0] for step in steps], [1, 2, 0, 1, 0])
    environment.close()


def test_arrays_are_the_callers_to_keep():
    environment = gym.make("CartPole-v1", 2)
    timesteps = [environment.reset(0)]
    copies = [[np.array(x) for x in timesteps[0]]]
    for _ in range(30):
        timesteps.append(tick(environment, [0, 1]))
        copies.append([np.array(x) for x in timesteps[-1]])
    for timestep, copy in zip(timesteps, copies, strict=True):
        for x, y in zip(timestep, copy, strict=True):
            np.testing.assert_array_equal(x, y)
    environment.close()


def test_function_makes_rows():
    environment = gym.from_gymnasium(Counter, 3)
    environment.reset(0)
    timestep = tick(environment, [0, 1, 0])
    np.testing.assert_array_equal(timestep.last(), [False, True, False])
    np.testing.assert_array_equal(timestep.observation[:, 0], [1, 0, 1])
    np.testing.assert_array_equal(timestep.next_observation[:, 0], [1, 1, 1])
    with pytest.raises(ValueError, match="one row"):
        gym.from_gymnasium(Counter(), 2)


@pytest.mark.parametrize(
    "make", [gym.make, lambda game, n: gym.from_gymnasium(gymnasium.make(game))]
)
def test_refuses_continuous_actions(make):
    with pytest.raises(ValueError, match=r"needs a Discrete action space, got Box\(.*\)") as error:
        make("Pendulum-v1", 1)
    assert "\n" not in str(error.value)


def test_refuses_observations_that_are_no_array():
    class Names(Counter):
        observation_space = gymnasium.spaces.Discrete(3)  # pyright: ignore # As users may.

    with pytest.raises(ValueError, match=r"needs observations in a Box, got Discrete\(3\)"):
        gym.from_gymnasium(Names, 1)


@pytest.mark.parametrize(
    ("game", "package", "needed"),
    [
        ("LunarLander-v3", "Box2D", "'gymnasium[box2d]'"),
        ("phys2d/CartPole-v1", "flax", "'gymnasium[jax]'"),
        ("HalfCheetah-v5", "mujoco", "'gymnasium[mujoco]'"),
    ],
)
def test_says_which_packages_are_missing(game, package, needed, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # As if it was not installed.
    for function in (lambda: gym.make(game, 1), lambda: gym.parameters(game)):
        with pytest.raises(ValueError) as error:
            function()
        message = str(error.value)
        assert f"{game} needs packages that are missing: pip install {needed} (" in message
        assert "\n" not in message


# The newest id of each class of environments is always looked at.
NEWEST = {str(spec.entry_point): game for game, spec in sorted(gymnasium.registry.items())}


@pytest.mark.parametrize(
    "game",
    [
        game if game in NEWEST.values() else pytest.param(game, marks=pytest.mark.slow)
        for game in sorted(gymnasium.registry)
    ],
)
@pytest.mark.filterwarnings("ignore:.*out of date.*:DeprecationWarning")
def test_each_id_of_gymnasium_works_or_is_refused_in_a_line(game):
    try:
        gym.make(game, 1).close()
    except ValueError as error:
        assert game in str(error) and "\n" not in str(error)


MODULE = """
import gymnasium
gymnasium.register("Theirs-v0", entry_point="its_parts.games:Game", max_episode_steps=7)
"""
GAME = """
import gymnasium, numpy
class Game(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), numpy.float32)
    def __init__(self, start: float = 0.0):
        if start > 1:
            raise RuntimeError("start\\nis too large")
        self.start = start
    def reset(self, *, seed=None, options=None):
        return numpy.full(3, self.start, numpy.float32), {}
    def step(self, action):
        return self.reset()[0], 1.0, False, False, {}
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Puts the user's modules into the current folder; one registers Theirs-v0."""
    (tmp_path / "registers.py").write_text(MODULE)
    (tmp_path / "ends.py").write_text("raise SystemExit(3)")
    (tmp_path / "its_parts").mkdir()
    (tmp_path / "its_parts" / "games.py").write_text(GAME)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    yield
    gymnasium.registry.pop("Theirs-v0", None)
    for name in ("registers", "its_parts", "its_parts.games"):
        sys.modules.pop(name, None)


def test_a_module_that_the_user_names_registers_an_id(theirs):
    name = "gym/registers:Theirs-v0"
    environments.check_name(name)
    assert "registers" not in sys.modules  # A name alone imports nothing.
    assert environments.parameters(name)["start"].hint is float
    environment = environments.make(name, 2, start=0.5)
    assert environment.spec.max_episode_steps == 7 and environment.num_envs == 2
    assert isinstance(environment, types.HostEnvironment)
    np.testing.assert_array_equal(environment.reset(0).observation, np.full((2, 3), 0.5))
    environment.close()


@pytest.mark.parametrize(
    ("game", "message"),
    [
        ("nowhere:Theirs-v0", "environment nowhere:Theirs-v0: No module named 'nowhere'"),
        ("registers:Their-v0", "of registers, 'Their-v0'; did you mean Theirs-v0"),
        ("ends:Theirs-v0", "environment ends:Theirs-v0: importing ends ends with SystemExit(3)"),
    ],
)
def test_a_module_that_registers_no_such_id_is_said_in_a_line(game, message, theirs):
    with pytest.raises(ValueError) as error:
        environments.make(f"gym/{game}")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_a_constructor_raises_is_a_line(theirs):
    with pytest.raises(ValueError) as error:
        environments.make("gym/registers:Theirs-v0", start=3.0)
    assert "Theirs-v0: making it raised RuntimeError: start is too large (g" in str(error.value)


def test_refuses_unknown_ids():
    with pytest.raises(ValueError, match=r"did you mean .*CartPole-v1"):
        gym.make("CartPol-v1", 1)


def test_picture(monkeypatch):
    environment = gym.make("CartPole-v1", 2)
    environment.reset(0)
    picture = environment.render()
    assert picture.shape == (400, 600, 3) and picture.dtype == np.uint8 and np.ptp(picture) > 0
    environment.close()
    monkeypatch.setitem(sys.modules, "pygame", None)
    environment = gym.make("CartPole-v1", 1)
    environment.reset(0)
    with pytest.raises(ValueError, match="pip install"):
        environment.render()
    with pytest.raises(ValueError, match="rgb_array"):
        gym.from_gymnasium(Counter()).render()
    environment.close()


def test_send_and_recv_alternate():
    environment = gym.make("CartPole-v1", 1)
    environment.reset(0)
    with pytest.raises(RuntimeError, match="without send"):
        environment.recv()
    environment.send(np.zeros(1, np.int32))
    with pytest.raises(RuntimeError, match="twice"):
        environment.send(np.zeros(1, np.int32))
