"""Tests of core/rollout.py: games that reset themselves, tokens that do not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import rollout, types

LENGTHS = np.array([2, 5, 3])  # Of the episodes of three rows.
SPEC = types.Spec(shape=(), dtype=np.int32, num_actions=7)


def counter(auto_reset: bool) -> types.Environment:
    """Counts the steps of each episode; the reward is the action."""

    def reset(key):
        del key
        zero = jnp.zeros(3, jnp.int32)
        first = jnp.full(3, types.FIRST, jnp.int8)
        return zero, types.TimeStep(first, jnp.zeros(3), jnp.ones(3), zero, zero)

    def step(state, action):
        done = state >= LENGTHS
        following = jnp.where(done, state, state + 1)
        last = following >= LENGTHS
        after = jnp.where(last & auto_reset, 0, following)
        step_type = jnp.where(last, types.LAST, types.MID).astype(jnp.int8)
        reward = jnp.where(done, 0.0, action.astype(jnp.float32))
        return after, types.TimeStep(step_type, reward, 1.0 - last, after, following)

    return types.Environment(SPEC, 3, reset, step, auto_reset)


def recurrent() -> types.Policy:
    """Acts by how many steps it remembers; its memory starts from the context."""

    def initial_state(params, context, max_length):
        del params, max_length
        return jnp.zeros(3, jnp.int32) if context is None else context

    def step(params, observation, state, key):
        del params, observation
        draw = jax.random.uniform(key, (3,))
        return state, state + 1, {"log_probability": draw}

    return types.Policy(initial_state, step)


ZEROS = np.zeros(3, np.int32)  # A memory to start from.


@functools.cache
def program(auto_reset: bool, length: int):
    """Compiles (state, key, start, limit) -> the rollout, which tests of one length share."""
    environment, policy = counter(auto_reset), recurrent()

    def run(state, key, start=0, limit=None):
        return rollout.rollout(policy, environment, None, state, key, length, start, limit)

    return jax.jit(run)


@functools.partial(jax.jit, static_argnums=0)
def started(auto_reset: bool, context):
    key = jax.random.key(0)
    return rollout.start(recurrent(), counter(auto_reset), None, key, context)


def play(auto_reset: bool, lengths: list[int], context=None):
    state, parts = started(auto_reset, context), []
    for i, length in enumerate(lengths):
        part, state = program(auto_reset, length)(state, jax.random.key(i))
        parts.append(part)
    return jax.tree.map(lambda *x: np.concatenate(x), *parts), state


def test_a_game_restarts_and_the_policys_memory_with_it():
    trajectory, _ = play(True, [6])
    np.testing.assert_array_equal(trajectory.action[:, 0], [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(trajectory.action[:, 2], [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(trajectory.observation, trajectory.action)
    np.testing.assert_array_equal(trajectory.timestep.next_observation[:, 0], [1, 2, 1, 2, 1, 2])
    np.testing.assert_array_equal(trajectory.timestep.observation[:, 0], [1, 0, 1, 0, 1, 0])
    assert trajectory.valid.all()


def test_tokens_stop_when_every_row_has_finished_and_finished_rows_are_marked():
    trajectory, state = play(False, [9], context=ZEROS + 1)
    np.testing.assert_array_equal(trajectory.valid.sum(0), LENGTHS)
    np.testing.assert_array_equal(trajectory.action[:2, 0], [1, 2])  # From the context on.
    # Nothing was computed after the longest row: zeros, where extras are never zero.
    assert (trajectory.extras["log_probability"][:5] > 0).all()
    assert (trajectory.extras["log_probability"][5:] == 0).all()
    np.testing.assert_array_equal(state.done, [True] * 3)


@pytest.mark.parametrize("auto_reset", [True, False])
def test_in_pieces_it_is_the_same_but_for_the_keys(auto_reset):
    whole, end = play(auto_reset, [6])
    pieces, same_end = play(auto_reset, [2, 4])
    for name in ("observation", "action", "valid"):
        np.testing.assert_array_equal(
            np.where(whole.valid, getattr(whole, name), 0),
            np.where(pieces.valid, getattr(pieces, name), 0),
        )
    jax.tree.map(np.testing.assert_array_equal, end, same_end)


@pytest.mark.parametrize("auto_reset", [True, False])
def test_pieces_of_one_key_are_the_whole(auto_reset):
    key, first = jax.random.key(3), started(auto_reset, ZEROS)
    whole, end = program(auto_reset, 6)(first, key, 0)
    state, pieces = first, []
    for start in (0, 2, 4):
        piece, state = program(auto_reset, 2)(state, key, start)
        pieces.append(piece)
    pieces = jax.tree.map(lambda *x: np.concatenate(x), *pieces)
    jax.tree.map(np.testing.assert_array_equal, whole, pieces)
    jax.tree.map(np.testing.assert_array_equal, end, state)


def test_a_limit_ends_a_piece():
    key, first = jax.random.key(3), started(False, ZEROS)
    whole, _ = program(False, 4)(first, key, 0, 9)  # Beyond its length.
    part, state = jax.tree.map(np.asarray, program(False, 4)(first, key, 0, 1))
    whole = jax.tree.map(np.asarray, whole)
    assert part.valid.sum(0).tolist() == [1, 1, 1] and state.policy.tolist() == [1, 1, 1]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:1], y[:1]), part, whole)
    assert whole.valid.sum(0).tolist() == [2, 4, 3]
    with pytest.raises(ValueError, match="a limit of ticks is for environments that do not reset"):
        program(True, 4)(first, key, 0, 1)


def test_ticks_draw_different_numbers():
    trajectory, _ = play(True, [8])
    assert len(np.unique(trajectory.extras["log_probability"])) == 24
