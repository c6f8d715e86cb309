"""Tests of experiments/reproductions/token_line.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.experiments.reproductions import setups, small_models, students, token_line

TINY = token_line.Sizes(trajectories=16, batch_size=4, student_width=8, evaluation=300)
log_probabilities = jax.jit(token_line.log_probabilities, static_argnums=3)


@pytest.fixture(scope="module")
def setup() -> setups.Setup:
    return token_line.setups_of(TINY)(0)


@pytest.mark.parametrize(
    ("first", "last", "position", "target"),
    [
        # At 5 + 3 it is on the line, whose next token is 5 + 4.
        (5, 8, 3, 9),
        # The line is at 30 + 4 = 34, or 2 of 32: the last token is 8 ahead of it, the next one
        # should be 5 ahead, at 30 + 5 + 5 = 40, or 8.
        (30, 10, 4, 8),
        # 2 behind: with steps of 3 it is back at once. The lower neighbour is across the end.
        (27, 29, 4, 0),
    ],
)
def test_log_probabilities_by_hand(first: int, last: int, position: int, target: int):
    # 0.98 * 0.9 + 0.02 / 32, 0.98 * 0.05 + 0.02 / 32, 0.02 / 32.
    expected = np.full(32, 0.000625)
    expected[target] = 0.882625
    expected[[(target - 1) % 32, (target + 1) % 32]] = 0.049625
    got = log_probabilities(jnp.array(first), jnp.array(last), jnp.array(position), 32)
    np.testing.assert_allclose(got, np.log(expected), rtol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 31), st.integers(0, 31), st.integers(0, 40))
def test_it_agrees_with_the_definition_token_by_token(first: int, last: int, position: int):
    now = (first + position) % 32
    # Steps of a walk back along the shorter way round; both are as long where 16 apart.
    ahead = (last - now) % 32
    off = max(ahead - 3, 0) if ahead < 16 else min(ahead - 32 + 3, 0)
    target = (now + 1 + off) % 32
    weight = {0: 0.9, 1: 0.05, 31: 0.05}
    expected = [0.98 * weight.get((v - target) % 32, 0) + 0.02 / 32 for v in range(32)]
    got = log_probabilities(jnp.array(first), jnp.array(last), jnp.array(position), 32)
    np.testing.assert_allclose(np.exp(got), expected, rtol=1e-5)
    assert math.isclose(float(jnp.sum(jnp.exp(got))), 1, rel_tol=1e-6)


def test_the_model_is_the_function_in_both_passes():
    model = token_line.teacher(small_models.decoder(32, 8, 1, 12))
    tokens = np.random.default_rng(0).integers(0, 32, (3, 7))  # [B, T]
    columns = np.tile(np.arange(7), (3, 1))
    firsts = np.tile(tokens[:, :1], 7)
    expected = log_probabilities(jnp.array(firsts), jnp.array(tokens), jnp.array(columns), 32)
    np.testing.assert_array_equal(jax.jit(model.features)({}, tokens), expected)
    np.testing.assert_array_equal(model.apply({}, tokens), expected)
    np.testing.assert_array_equal(model.unembed({}, expected), expected)

    # Prompts of 1, 2 and 4 tokens, padded on the left to 4; two chunks, then token by token.
    lengths = np.array([1, 2, 4])
    pads = 4 - lengths
    moved = np.full((3, 7), 9)
    for b, pad in enumerate(pads):
        moved[b, pad:] = tokens[b, : 7 - pad]
    cache, outputs = model.init_cache(3, 7, lengths, 4), []
    for begin, end in ((0, 2), (2, 4), (4, 5), (5, 6), (6, 7)):
        measured, cache = jax.jit(model.decode)({}, moved[:, begin:end], cache)
        outputs.append(np.asarray(measured))
    decoded = np.concatenate(outputs, 1)
    for b, pad in enumerate(pads):
        np.testing.assert_array_equal(decoded[b, pad:], expected[b, : 7 - pad])


@pytest.mark.slow
def test_texts_in_one_row_follow_their_own_lines():
    model = token_line.teacher(small_models.decoder(32, 8, 1, 12))
    one, two = np.array([[3, 4, 9]]), np.array([[20, 20]])
    row, positions = np.concatenate([one, two], 1), np.array([[0, 1, 2, 0, 1]])
    apart = np.concatenate([model.features({}, one), model.features({}, two)], 1)
    segments = np.array([[1, 1, 1, 2, 2]])
    np.testing.assert_array_equal(model.features({}, row, positions, segments), apart)


def test_what_the_teacher_writes_stays_near_the_line(setup: setups.Setup):
    rows = students.prefixes(setup, setup.teacher, {}, seed=0)
    assert rows.tokens.shape == (300, 21) and bool(jnp.all(rows.is_answer[:, 1:]))
    # One step before the end it is within 3 but for what was drawn uniformly: 0.98 and a little.
    assert 0.93 < token_line.near(rows.tokens, 32) < 1
    ends = np.zeros((4, 3), int)
    ends[:, 0], ends[:, 2] = 30, [31, 0, 1, 2]  # The line ends at 32, or 0.
    assert token_line.near(ends, 32) == 0.75


def test_the_teacher_is_at_no_distance_from_itself(setup: setups.Setup):
    same = setup._replace(student=setup.teacher)
    value, entropy = students.distance(same, "kl")({}, {}, setup.rows)
    assert abs(float(value)) < 1e-6
    # That of the three numbers above, whatever the prefix.
    by_hand = -sum(n * p * math.log(p) for n, p in ((1, 0.882625), (2, 0.049625), (29, 0.000625)))
    assert math.isclose(float(entropy), by_hand, rel_tol=1e-5)


def test_seeds_draw_the_data_and_share_the_rest():
    setup = token_line.setups_of(TINY)
    zero, one, again = setup(0), setup(1), token_line.setups_of(TINY)(0)
    assert zero.student is one.student and zero.writers is one.writers
    assert bool(jnp.any(zero.rows.tokens != one.rows.tokens))
    np.testing.assert_array_equal(zero.rows.tokens, again.rows.tokens)
    np.testing.assert_array_equal(zero.rows.tokens[:, :1], zero.prompts.tokens)
    assert zero.rows.tokens.shape == (16, 21) and zero.held_out.tokens.shape == (300, 1)


@pytest.mark.parametrize(
    ("field", "value"), [("vocab_size", 3), ("trajectories", 0), ("horizon", 0), ("batch_size", 0)]
)
def test_sizes_are_checked(field: str, value: int):
    with pytest.raises(ValueError, match=f"must be >= .*got {value}"):
        token_line.Sizes(**{field: value})


@pytest.mark.slow
def test_distances_are_after_whose_prefixes_they_say(setup: setups.Setup):
    student = jax.jit(setup.student.init)(jax.random.key(0))
    measure = students.distance(setup, "kl")
    measured = students.measured(setup, measure, student, {}, seed=1, divergence="kl")
    for model, params, name in (
        (setup.teacher, {}, "after_teachers_prefixes"),
        (setup.student, student, "after_own_prefixes"),
    ):
        rows = students.prefixes(setup, model, params, seed=1)
        # All completions are as long, so that a mean of means is the mean over tokens.
        log_p, log_q = (
            np.asarray(jax.nn.log_softmax(m.apply(p, rows.tokens)), np.float64)[:, :-1]
            for m, p in ((setup.teacher, {}), (setup.student, student))
        )
        expected = np.mean(np.sum(np.exp(log_p) * (log_p - log_q), -1))
        np.testing.assert_allclose(measured[name], expected, rtol=1e-5)
    assert measured["after_teachers_prefixes"] != pytest.approx(
        measured["after_own_prefixes"], rel=1e-3
    )
