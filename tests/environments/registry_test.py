"""Tests of environments/__init__.py, and what all environments have in common."""

import math
import subprocess
import sys
from collections.abc import Generator
from typing import Any, Literal

import dm_env
import numpy as np
import pytest
from absl.testing import absltest
from dm_env import test_utils

from kullback import environments
from kullback.core import typed, types
from kullback.environments import atari, dm, minatar


class Conformance(test_utils.EnvironmentTestMixin):
    """dm_env's own tests over the view of `name`, with actions that end episodes."""

    name: str
    flags: tuple[tuple[str, Any], ...] = ()
    num_actions: int = 60

    def make_object_under_test(self, **unused_kwargs: Any) -> dm_env.Environment:
        return dm.as_dm_env(environments.make(self.name, **dict(self.flags)), seed=1)

    def make_action_sequence(self) -> Generator[Any]:
        rng = np.random.default_rng(0)
        for _ in range(self.num_actions):
            yield np.int32(rng.integers(self.environment.action_spec().num_values))

    def test_longer_action_sequence(self):
        step_types = []
        for action in self.make_action_sequence():
            step_types.append(self.environment.step(action).step_type)
        assert step_types.count(dm_env.StepType.LAST) >= 2  # The mixin only logs it.
        super().test_longer_action_sequence()


class AtariTest(Conformance, absltest.TestCase):
    name = "atari/pong"
    flags = (("max_frames", 80),)


class ClassicAtariTest(Conformance, absltest.TestCase):
    name = "atari/breakout"
    flags = (("protocol", "classic"),)
    num_actions = 250


class MinAtarTest(Conformance, absltest.TestCase):
    name = "minatar/breakout"
    num_actions = 150


class GymTest(Conformance, absltest.TestCase):
    name = "gym/CartPole-v1"


class CutGymTest(Conformance, absltest.TestCase):
    name = "gym/MountainCar-v0"
    flags = (("max_episode_steps", 10),)


class ToyTest(Conformance, absltest.TestCase):
    name = "toy/chain"
    flags = (("length", 3),)


class ToyWithoutResetTest(Conformance, absltest.TestCase):
    name = "toy/chain"
    flags = (("length", 3), ("slip", 0.1), ("auto_reset", False))


def test_names():
    names = environments.names()
    assert len(names) == len(set(names)) == 60 + len(minatar.GAMES) + 3 + 1
    assert {"atari/pong", "minatar/breakout", "gym/CartPole-v1", "toy/chain"} <= set(names)
    for name in names:
        environments.check_name(name)


@pytest.mark.parametrize(
    "name, flags",
    [
        ("atari/pong", {"max_noops": 3}),
        ("minatar/breakout", {"sticky_action_prob": 0.0}),
        ("gym/CartPole-v1", {"sutton_barto_reward": True}),
        ("gym/CartPole-v0", {}),  # Not listed, and known.
        ("toy/chain", {"length": 3}),
    ],
)
# gymnasium says that CartPole-v0 is out of date.
@pytest.mark.filterwarnings("ignore:.*out of date.*:DeprecationWarning")
def test_makes(name: str, flags: dict):
    environment = environments.make(name, 2, **flags)
    assert environment.num_envs == 2
    assert isinstance(environment, types.Environment) == name.startswith(("minatar", "toy"))
    if not isinstance(environment, types.Environment):
        environment.close()


@pytest.mark.parametrize(
    "name, message",
    [
        ("atri/png", "unknown family 'atri'; did you mean atari"),
        ("png", "unknown family 'png'; expected one of atari, gym, gymnax, minatar, toy"),
        ("atari", "unknown environment 'atari'; "),
        ("pong", "did you mean atari/pong?"),
        ("ALE/Pong-v5", "unknown environment 'ALE/Pong-v5'; did you mean atari/pong?"),
        ("gym/ALE/Pong-v5", "unknown environment 'gym/ALE/Pong-v5'; did you mean atari/pong?"),
        ("gym/PongNoFrameskip-v4", "did you mean atari/pong?"),
        ("ALE/MsPacman-v5", "did you mean atari/ms_pacman?"),
        ("CartPole-v1", "did you mean gym/CartPole-v1?"),
        ("gym/LunarLander-v2", "did you mean gym/LunarLander-v3?"),
        ("gym/:x", "unknown environment 'gym/:x'"),
        ("atari/pnog", "unknown environment 'atari/pnog'; did you mean atari/pong"),
        ("minatar/brekout", "did you mean minatar/breakout"),
        ("gym/CartPol-v1", "did you mean gym/CartPole-v1"),
        ("toy/chian", "did you mean toy/chain"),
    ],
)
def test_unknown_names(name: str, message: str):
    for function in (environments.check_name, environments.make):
        with pytest.raises(ValueError) as error:
            function(name)
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, valid",
    [
        ("atari/pong", "protocol"),
        ("minatar/breakout", "sticky_action_prob"),
        ("gym/CartPole-v1", "max_episode_steps"),
        ("toy/chain", "slip"),
    ],
)
def test_unknown_flags(name: str, valid: str):
    with pytest.raises(ValueError, match=f"{name}: unknown flag 'stiky'; .*{valid}") as error:
        environments.make(name, stiky=0.25)
    assert "\n" not in str(error.value)


def test_flags_have_types_and_defaults():
    flags = {
        name: {flag: (one.hint, one.default) for flag, one in environments.parameters(name).items()}
        for name in ("atari/pong", "minatar/breakout", "toy/chain", "gym/MountainCar-v0")
    }
    assert flags["atari/pong"]["life_loss"] == (bool | None, None)
    assert flags["atari/pong"]["protocol"] == (Literal["sticky", "classic"], "sticky")
    assert flags["minatar/breakout"]["sticky_action_prob"] == (float, 0.1)
    assert flags["toy/chain"]["auto_reset"] == (bool, True)
    # Of goal_velocity gymnasium declares no type, and its default is 0.
    assert flags["gym/MountainCar-v0"] == {
        "max_episode_steps": (int | None, 200),
        "goal_velocity": (int | float, 0),
    }
    assert environments.parameters("gym/Blackjack-v1")["natural"].hint is bool
    assert environments.parameters("gym/CartPole-v1")["sutton_barto_reward"].hint is bool


def test_defaults_are_of_the_types_that_are_declared():
    for name in ("atari/pong", "minatar/breakout", "toy/chain", "gym/CartPole-v1"):
        for flag, parameter in environments.parameters(name).items():
            typed.check(flag, parameter.hint, parameter.default)


@pytest.mark.parametrize(
    "name, flags, message",
    [
        ("atari/pong", {"life_loss": "maybe"}, "atari/pong: life_loss must be bool | None, got"),
        ("atari/pong", {"num_threads": 1e9}, "num_threads must be int, got 1000000000.0"),
        ("atari/pong", {"num_threads": 10**9}, "num_threads must lie in [0, 1024]"),
        ("atari/pong", {"max_frames": 2**31}, "max_frames must lie in [1, 2^31), got"),
        ("atari/pong", {"max_noops": 2**31}, "max_noops must lie in [0, 2^31 - 1), got"),
        ("atari/pong", {"protocol": "stiky"}, "protocol must be sticky or classic, got 'stiky'"),
        ("minatar/breakout", {"sticky_action_prob": "abc"}, "must be float, got 'abc'"),
        ("minatar/breakout", {"sticky_action_prob": math.nan}, "must be float, got nan"),
        ("minatar/breakout", {"difficulty_ramping": "abc"}, "must be True or False, got 'abc'"),
        ("minatar/breakout", {"minimal_actions": "no"}, "must be True or False, got 'no'"),
        ("minatar/breakout", {"max_episode_steps": 1.5}, "must be int | None, got 1.5"),
        ("minatar/breakout", {"max_episode_steps": 2**31}, "must lie in [1, 2^31) or be None"),
        ("gym/CartPole-v1", {"sutton_barto_reward": "maybe"}, "must be True or False, got"),
        ("gym/CartPole-v1", {"max_episode_steps": math.nan}, "must be int | None, got nan"),
        ("gym/CartPole-v1", {"max_episode_steps": 0}, "must lie in [1, 2^31), or be -1"),
        ("gym/MountainCar-v0", {"goal_velocity": "abc"}, "must be int | float, got 'abc'"),
        ("toy/chain", {"auto_reset": 1}, "toy/chain: auto_reset must be True or False, got 1"),
        ("toy/chain", {"length": 10**9}, "length must lie in [1, 10,000], got 1000000000"),
        ("toy/chain", {"max_episode_steps": 2**40}, "must lie in [1, 2^31), got"),
    ],
)
def test_flags_of_another_type_or_range(name: str, flags: dict[str, Any], message: str):
    with pytest.raises(ValueError) as error:
        environments.make(name, **flags)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_needs_a_row():
    for name, rows, most in (("toy/chain", 0, "1,048,576"), ("atari/pong", 5_000, "4,096")):
        with pytest.raises(ValueError) as error:
            environments.make(name, rows)
        assert str(error.value) == f"{name}: rows (num_envs) must lie in [1, {most}], got {rows}"


def test_hosts_are_host_environments():
    environment: types.HostEnvironment = atari.make("pong", 1)
    environment.close()


def test_imports_nothing_of_a_family():
    program = (
        "import sys; from kullback import environments; "
        "assert not {'ale_py', 'gymnasium', 'dm_env'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("minatar/breakout", True),
        ("toy/chain", True),
        ("gym/CartPole-v1", False),
        ("atari/pong", False),
    ],
)
def test_what_is_compiled_is_known_before_it_is_made(name: str, expected: bool):
    assert environments.is_compiled(name) is expected
    environment = environments.make(name)
    assert isinstance(environment, types.Environment) is expected
    if isinstance(environment, types.HostEnvironment):
        environment.close()
