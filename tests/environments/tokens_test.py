"""Tests of environments/tokens.py."""

from collections.abc import Generator
from typing import Any

import dm_env
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from dm_env import test_utils

from kullback.core import rollout, types
from kullback.environments import dm, tokens

STOP = (1, 2)
PROMPTS = np.array([[9, 9, 4], [5, 6, 7], [9, 3, 2]], np.int32)
LENGTHS = np.array([1, 3, 2], np.int32)
# Row 0 stops at the third token, row 1 is cut, row 2 stops with the horizon's token.
WRITTEN = np.array([[8, 8, 1, 6], [3, 4, 5, 6], [9, 8, 7, 2]], np.int32)


def make(horizon: int = 4, stop_tokens: tuple[int, ...] = STOP) -> types.Environment:
    return tokens.make_batch(
        PROMPTS, LENGTHS, horizon=horizon, vocab_size=10, stop_tokens=stop_tokens
    )


def writer(texts: np.ndarray) -> types.Policy:
    """Writes given texts, [B, T]."""

    def step(params, observation, state, key):
        del params, observation, key
        action = jnp.asarray(texts)[:, jnp.minimum(state, texts.shape[1] - 1)]
        return action, state + 1, {"log_probability": -1.0 - action}

    return types.Policy(lambda *_: jnp.zeros((), jnp.int32), step)


@jax.jit
def written() -> rollout.Trajectory:
    environment, policy = make(), writer(WRITTEN)
    state = rollout.start(policy, environment, None, jax.random.key(0))
    return rollout.rollout(policy, environment, None, state, jax.random.key(0), 6)[0]


def test_by_hand():
    environment = make()
    assert environment.num_envs == 3 and not environment.auto_reset
    assert environment.spec == types.Spec(shape=(), dtype=np.int32, num_actions=10)
    state, first = environment.reset(jax.random.key(0))
    # The last token of row 2's prompt is a stop token, and ends nothing.
    np.testing.assert_array_equal(first.observation, [4, 7, 2])
    np.testing.assert_array_equal(first.step_type, [types.FIRST] * 3)
    steps = jax.lax.scan(environment.step, state, jnp.asarray(WRITTEN).T)[1]
    np.testing.assert_array_equal(steps.observation.T, [[8, 8, 1, 1], [3, 4, 5, 6], [9, 8, 7, 2]])
    np.testing.assert_array_equal(steps.next_observation, steps.observation)
    np.testing.assert_array_equal(steps.last().T, [[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(steps.discount, 1 - steps.last())
    assert not np.any(steps.reward)
    assert {x.dtype for x in (steps.reward, steps.discount)} == {np.dtype(np.float32)}
    assert steps.step_type.dtype == np.int8 and steps.observation.dtype == np.int32


def test_a_finished_row_stays_finished_whatever_is_done_to_it():
    environment = make(horizon=2)
    state, _ = environment.reset(jax.random.key(0))
    actions = jnp.array([[1, 3, 3], [4, 4, 2], [5, 5, 5], [6, 6, 6]])
    steps = jax.lax.scan(environment.step, state, actions)[1]
    np.testing.assert_array_equal(steps.observation.T, [[1] * 4, [3, 4, 4, 4], [3, 2, 2, 2]])
    np.testing.assert_array_equal(steps.last()[1:], np.ones((3, 3)))


def test_without_stop_tokens_the_horizon_alone_ends_a_row():
    environment = make(horizon=3, stop_tokens=())
    state, _ = environment.reset(jax.random.key(0))
    steps = jax.lax.scan(environment.step, state, jnp.ones((3, 3), jnp.int32))[1]
    np.testing.assert_array_equal(steps.last().T, [[0, 0, 1]] * 3)


def test_made_of_traced_prompts():
    @jax.jit
    def last_step(prompts, lengths):
        environment = tokens.make_batch(
            prompts, lengths, horizon=4, vocab_size=10, stop_tokens=STOP
        )
        state, first = environment.reset(jax.random.key(0))
        steps = jax.lax.scan(environment.step, state, jnp.asarray(WRITTEN).T)[1]
        return first, steps

    state, first = make().reset(jax.random.key(0))
    steps = jax.lax.scan(make().step, state, jnp.asarray(WRITTEN).T)[1]
    jax.tree.map(np.testing.assert_array_equal, last_step(PROMPTS, LENGTHS), (first, steps))


def test_completions():
    completion = tokens.completions(written(), STOP)
    np.testing.assert_array_equal(completion.length, [3, 4, 4])
    np.testing.assert_array_equal(completion.truncated, [False, True, False])
    np.testing.assert_array_equal(
        completion.tokens, [[8, 8, 1, 0, 0, 0], [3, 4, 5, 6, 0, 0], [9, 8, 7, 2, 0, 0]]
    )
    np.testing.assert_array_equal(completion.is_answer, np.arange(6) < [[3], [4], [4]])
    np.testing.assert_array_equal(
        completion.log_probability,
        np.where(completion.is_answer, -1.0 - np.asarray(completion.tokens), 0),
    )


def test_a_rollout_shorter_than_the_text_is_truncated():
    trajectory = jax.tree.map(lambda x: x[:2], written())
    np.testing.assert_array_equal(tokens.completions(trajectory, STOP).truncated, [True] * 3)


def test_what_follows_a_row_is_no_stop_token():
    """Where nothing was computed any more tokens are 0, which here would end a text."""
    assert not np.any(written().action[4:])
    np.testing.assert_array_equal(tokens.completions(written(), (0,)).truncated, [True] * 3)


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_scores_go_to_the_last_token(penalty):
    scored = tokens.with_scores(written(), jnp.array([2.0, 3.0, 4.0]), STOP, penalty)
    expected = np.zeros((3, 6))
    expected[0, 2], expected[1, 3], expected[2, 3] = 2, 3 - penalty, 4
    np.testing.assert_array_equal(scored.timestep.reward.T, expected)
    np.testing.assert_array_equal(scored.timestep.discount, written().timestep.discount)
    twice = tokens.with_scores(scored, jnp.array([2.0, 3.0, 4.0]), STOP, penalty)
    jax.tree.map(np.testing.assert_array_equal, scored, twice)  # It replaces, and adds nothing.


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"horizon": 0}, "horizon must be >= 1 token, got 0"),
        ({"stop_tokens": (3, 10)}, r"\[0, vocab_size=10\), got 10"),
        ({"vocab_size": 7}, r"\[0, vocab_size=7\), got 7 in row 1"),
        ({"lengths": np.array([1, 4, 2])}, r"\[1, 3\], got 4 in row 1"),
        ({"lengths": np.array([1, 3, 0])}, "got 0 in row 2"),
        ({"prompts": -PROMPTS}, "got -4 in row 0"),
    ],
)
def test_refuses(changed: dict, message: str):
    arguments: Any = {
        "prompts": PROMPTS,
        "lengths": LENGTHS,
        "horizon": 4,
        "vocab_size": 10,
        "stop_tokens": STOP,
    }
    with pytest.raises(ValueError, match=message):
        tokens.make_batch(**arguments | changed)


def test_what_stands_in_the_padding_is_of_no_account():
    padded = np.where(np.arange(3) < 3 - LENGTHS[:, None], -1, PROMPTS)
    environment = tokens.make_batch(padded, LENGTHS, horizon=4, vocab_size=10, stop_tokens=STOP)
    np.testing.assert_array_equal(environment.reset(jax.random.key(0))[1].observation, [4, 7, 2])


def distance(params: Any, completion: tokens.Completion, context: Any) -> Any:
    """Returns -weight |length - wanted|, of JAX's arrays or NumPy's."""
    return -params["weight"] * abs(completion.length - context)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_scorer_inside_the_program_says_what_it_says_between_programs(is_compiled: bool):
    """Lengths 3, 4, 4 where 3, 2, 9 are wanted, weight 2: 0, -4, -10; row 1 is cut: -1 more."""
    params, wanted = {"weight": np.float32(2)}, np.array([3, 2, 9])
    scorer = tokens.Scorer("distance", distance, params, is_compiled)

    def program(params: Any) -> rollout.Trajectory:
        return tokens.scored(written(), scorer, params, wanted, STOP, 1.0)

    reward = (jax.jit(program) if is_compiled else program)(params).timestep.reward
    np.testing.assert_array_equal(np.sum(reward, 0), [0, -5, -10])
    np.testing.assert_array_equal(np.asarray(reward)[[2, 3, 3], [0, 1, 2]], [0, -5, -10])


def test_a_scorer_of_python_inside_a_program_is_refused_by_name():
    scorer = tokens.Scorer("rouge", distance, is_compiled=False)
    with pytest.raises(ValueError, match="scorer 'rouge' is Python and cannot run inside"):
        jax.jit(lambda t: tokens.scored(t, scorer, None, 1, STOP))(written())


def test_refuses_a_bonus_for_truncation():
    with pytest.raises(ValueError, match=r"truncation_penalty must be >= 0 .* got -1"):
        tokens.with_scores(written(), jnp.zeros(3), STOP, -1.0)


def one_row() -> dm_env.Environment:
    return dm.as_dm_env(
        tokens.make_batch(
            np.array([[0, 4]], np.int32),
            np.array([1]),
            horizon=5,
            vocab_size=8,
            stop_tokens=(1,),
        )
    )


class ConformanceTest(test_utils.EnvironmentTestMixin, absltest.TestCase):
    """dm_env's own tests."""

    def make_object_under_test(self, **unused_kwargs: Any) -> dm_env.Environment:
        return one_row()

    def make_action_sequence(self) -> Generator[Any]:
        for action in np.random.default_rng(0).integers(8, size=30):
            yield np.int32(action)


def test_stepped_by_hand():
    view = one_row()
    spec: Any = view.action_spec()
    assert spec.num_values == 8
    for _ in range(2):
        first = view.reset()
        assert first.first() and first.observation == 4 and np.shape(first.observation) == ()
        middle = view.step(3)
        assert middle.mid() and (middle.reward, middle.discount) == (0, 1)
        assert middle.observation == 3
        last = view.step(1)
        assert last.last() and (last.reward, last.discount) == (0, 0)
        assert view.step(6).first()  # Whatever the action, a text begins anew.
        steps = [view.step(6) for _ in range(5)]  # To the horizon.
        assert [step.last() for step in steps] == [False] * 4 + [True]
        assert steps[-1].discount == 0
