"""Tests of environments/dm.py."""

from typing import Any

import dm_env
import numpy as np
import pytest
from dm_env import specs

from kullback.core import types
from kullback.environments import dm, toy


class Counter(dm_env.Environment):
    """Counts its steps and its episodes; actions 3 to 5; ends when told 5, is cut after three."""

    def __init__(self, dtype: type = np.int32) -> None:
        self.episodes = self.ticks = 0
        self.over, self.closed = True, False
        self._dtype = dtype

    def reset(self):
        self.count, self.over = 0, False
        self.episodes += 1
        return dm_env.restart(self._observation())

    def step(self, action):
        if self.over:
            return self.reset()
        assert 3 <= action <= 5 and action.dtype == self._dtype
        self.ticks += 1
        self.count += 1
        self.over = bool(action == 5 or self.count == 3)
        if action == 5:
            return dm_env.termination(reward=2.5, observation=self._observation())
        if self.count == 3:
            return dm_env.truncation(reward=2.5, observation=self._observation())
        return dm_env.transition(reward=2.5, observation=self._observation())

    def observation_spec(self) -> Any:
        return specs.BoundedArray((2,), np.float64, [0, 0], [9, 99])

    def action_spec(self) -> Any:
        return specs.BoundedArray((), self._dtype, 3, 5)

    def close(self):
        self.closed = True

    def _observation(self):
        return np.array([self.count, self.episodes], np.float64)


class Discounted(Counter):
    def step(self, action):
        return dm_env.transition(reward=0.0, observation=self._observation(), discount=0.9)


def tick(environment: types.HostEnvironment, action: list[int]) -> types.TimeStep:
    environment.send(np.array(action, np.int32))
    return environment.recv()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_rows_reset_within_the_tick(dtype):
    rows = [Counter(dtype), Counter(dtype)]
    environment = dm.from_dm_env(rows)
    assert environment.spec == types.Spec(
        shape=(2,), dtype=np.float32, num_actions=3, bounds=((0.0, 0.0), (9.0, 99.0))
    )
    first = environment.reset(0)
    np.testing.assert_array_equal(first.observation, [[0, 1], [0, 1]])
    np.testing.assert_array_equal(first.step_type, [types.FIRST] * 2)
    a = tick(environment, [0, 2])  # Row 1 ends.
    np.testing.assert_array_equal(a.step_type, [types.MID, types.LAST])
    np.testing.assert_array_equal(a.discount, [1, 0])
    np.testing.assert_array_equal(a.reward, [2.5, 2.5])
    np.testing.assert_array_equal(a.next_observation, [[1, 1], [1, 1]])
    np.testing.assert_array_equal(a.observation, [[1, 1], [0, 2]])
    tick(environment, [0, 0])
    b = tick(environment, [1, 1])  # Row 0 is cut.
    np.testing.assert_array_equal(b.step_type, [types.LAST, types.MID])
    np.testing.assert_array_equal(b.discount, [1, 1])
    np.testing.assert_array_equal(b.next_observation, [[3, 1], [2, 2]])
    np.testing.assert_array_equal(b.observation, [[0, 2], [2, 2]])
    assert [row.ticks for row in rows] == [3, 3]
    assert {x.dtype for x in (b.reward, b.discount, b.observation)} == {np.dtype(np.float32)}
    environment.close()
    assert all(row.closed for row in rows)


def test_the_largest_byte_is_the_declared_one():
    class Bytes(Counter):
        def observation_spec(self) -> Any:
            return specs.BoundedArray((2,), np.uint8, 0, 63)

    class Plain(Counter):
        def observation_spec(self) -> Any:
            return specs.Array((2,), np.uint8)

    assert dm.from_dm_env(Bytes()).spec.largest_byte == 63
    assert dm.from_dm_env(Plain()).spec.largest_byte == 255


def test_refuses_what_is_not_ours():
    class Vector(Counter):
        def action_spec(self) -> Any:
            return specs.BoundedArray((2,), np.float32, -1, 1)

    class Several(Counter):
        def observation_spec(self) -> Any:
            return {"a": specs.Array((2,), np.float32)}

    with pytest.raises(ValueError, match="needs one integer for an action"):
        dm.from_dm_env(Vector())
    with pytest.raises(ValueError, match="needs one array to observe"):
        dm.from_dm_env(Several())
    with pytest.raises(ValueError, match="at least one"):
        dm.from_dm_env([])
    environment = dm.from_dm_env(Discounted())
    environment.reset(0)
    with pytest.raises(ValueError, match=r"must be 0 or 1 .* got 0\.9"):
        tick(environment, [0])
    with pytest.raises(ValueError, match="num_envs=2"):
        dm.as_dm_env(toy.chain(2))


def test_view_of_a_wrapped_environment_is_that_environment():
    """FIRST after LAST, the observation at LAST, and no step of the wrapped one lost."""
    plain, wrapped = Counter(), Counter()
    view = dm.as_dm_env(dm.from_dm_env(wrapped))
    kinds = set()
    for action in np.random.default_rng(0).integers(3, size=200).astype(np.int32):
        expected, got = plain.step(action + np.int32(3)), view.step(action)
        assert got.step_type is expected.step_type
        assert got.reward == expected.reward and got.discount == expected.discount
        np.testing.assert_array_equal(got.observation, expected.observation)
        kinds.add((got.step_type, got.discount))
        assert wrapped.ticks == plain.ticks
        assert wrapped.episodes == plain.episodes + got.last()
    assert len(kinds) == 4  # FIRST, MID, and LAST of both kinds.
    view.close()
    assert wrapped.closed


def test_reset_after_an_end_is_the_reset_that_was_made():
    wrapped = Counter()
    view = dm.as_dm_env(dm.from_dm_env(wrapped))
    view.reset()
    assert view.step(2).last()
    np.testing.assert_array_equal(view.reset().observation, [0, 2])
    assert wrapped.episodes == 2
    np.testing.assert_array_equal(view.step(0).observation, [1, 2])
    np.testing.assert_array_equal(view.reset().observation, [0, 3])  # In the midst of one.


@pytest.mark.parametrize("auto_reset", [True, False])
def test_view_of_a_compiled_environment(auto_reset: bool):
    view = dm.as_dm_env(toy.chain(1, length=2, auto_reset=auto_reset))
    for _ in range(3):
        first = view.step(0)
        assert first.first() and first.reward is None and first.discount is None
        np.testing.assert_array_equal(first.observation, [1, 0])
        middle = view.step(toy.RIGHT)
        assert middle.mid() and (middle.reward, middle.discount) == (0, 1)
        np.testing.assert_array_equal(middle.observation, [0, 1])
        last = view.step(toy.RIGHT)
        assert last.last() and (last.reward, last.discount) == (1, 0)
        np.testing.assert_array_equal(last.observation, [0, 0])


def test_view_by_seed():
    def play(seed: int) -> np.ndarray:
        view = dm.as_dm_env(toy.chain(1, length=9, slip=0.4), seed)
        observations = []
        for _ in range(3):  # Each reset draws on.
            view.reset()
            observations.append([view.step(toy.RIGHT).observation for _ in range(20)])
        return np.array(observations)

    one = play(1)
    np.testing.assert_array_equal(one, play(1))
    assert np.any(one != play(2))
    assert np.any(one[0] != one[1]) and np.any(one[1] != one[2])
