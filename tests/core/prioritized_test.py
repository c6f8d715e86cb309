"""Tests of core/prioritized.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import learners, prioritized, types


def make_scheme(xp, size: int, exponent: float = 1.0) -> prioritized.Scheme:
    scheme = prioritized.make(xp, size, exponent)
    return scheme if xp is np else prioritized.Scheme(scheme.init, *map(jax.jit, scheme[1:]))


def filled(xp, size: int, slots, priorities, exponent: float = 1.0):
    scheme = make_scheme(xp, size, exponent)
    slots, priorities = np.asarray(slots, np.int32), np.asarray(priorities, np.float32)
    state = scheme.insert(scheme.init(), slots, np.ones(len(slots), bool))
    return scheme, scheme.update(state, slots, priorities)


BOTH = pytest.mark.parametrize("xp", [np, jnp], ids=["host", "device"])


@BOTH
def test_golden(xp):
    # Masses sqrt(1, 4, 9) = 1, 2, 3 of 6; uniform numbers 0.5 in thirds of 6: 1, 3 and 5, which
    # are in [1, 3) or its left end, at the left end of [3, 6), and inside it.
    scheme, state = filled(xp, 5, [0, 2, 3], [1, 4, 9], 0.5)
    slots, probabilities = scheme.draw(state, np.full((1, 3), 0.5, np.float32))
    np.testing.assert_array_equal(slots, [2, 3, 3])
    np.testing.assert_allclose(probabilities, [2 / 6, 3 / 6, 3 / 6], rtol=1e-6)
    assert float(state.largest) == pytest.approx(3)


@BOTH
@pytest.mark.parametrize("size", [3, 64, 20_000])
def test_draws_are_in_proportion_to_the_masses(xp, size):
    rng = np.random.default_rng(size)
    slots = rng.choice(size, min(size, 40), replace=False)
    slots[:2] = 0, size - 1
    slots = np.unique(slots)
    priorities = rng.exponential(size=len(slots)) + 0.1
    scheme, state = filled(xp, size, slots, priorities, 0.6)
    expected = priorities**0.6 / np.sum(priorities**0.6)
    counts, draws = np.zeros(size), 200 * 512
    drawn, probabilities = scheme.draw(state, rng.random((1, 512), np.float32))
    np.testing.assert_allclose(
        probabilities,
        [expected[slots == slot].item() for slot in np.asarray(drawn)],
        rtol=1e-5,
    )
    for _ in range(200):
        drawn, _ = scheme.draw(state, rng.random((1, 512), np.float32))
        np.add.at(counts, np.asarray(drawn), 1)
    assert counts.sum() == counts[slots].sum()  # Nothing without a mass.
    spread = np.sqrt(draws * expected)  # More than that of parts of the sum, one draw in each.
    assert np.all(np.abs(counts[slots] - draws * expected) < 5 * spread)


@BOTH
def test_one_draw_falls_in_each_equal_part_of_the_sum(xp):
    # 64 equal items and 64 draws: each once a batch, whatever the uniform numbers.
    scheme, state = filled(xp, 500, np.arange(64) * 7, np.ones(64))
    for seed in range(5):
        uniform = np.random.default_rng(seed).random((3, 64), np.float32) * 0.98 + 0.01
        drawn, _ = scheme.draw(state, uniform)
        np.testing.assert_array_equal(drawn, np.tile(np.arange(64) * 7, 3))


@BOTH
def test_masses_of_other_sizes_by_far_lose_nothing_and_nothing_empty_is_drawn(xp):
    rng = np.random.default_rng(0)
    size = 3 * 64**2
    slots = np.arange(0, size, 3)
    scheme, state = filled(xp, size, slots, 10.0 ** rng.uniform(-9, 6, len(slots)))
    edges = np.array([0, np.nextafter(np.float32(1), np.float32(0))], np.float32)
    for uniform in (np.repeat(edges[:, None], 256, 1), rng.random((1, 256), np.float32)):
        drawn, probabilities = map(np.asarray, scheme.draw(state, uniform))
        assert np.all(drawn % 3 == 0) and np.all(probabilities > 0)
    # Where it all hangs on one item, after many changes elsewhere, no dust of them is left.
    state = scheme.update(state, slots.astype(np.int32), np.full(len(slots), 1e6, np.float32))
    state = scheme.insert(state, slots[1:].astype(np.int32), np.zeros(len(slots) - 1, bool))
    drawn, probabilities = map(np.asarray, scheme.draw(state, rng.random((1, 8), np.float32)))
    np.testing.assert_array_equal(drawn, 0)
    np.testing.assert_allclose(probabilities, 1, rtol=1e-6)


@BOTH
def test_new_items_have_the_largest_mass_so_far_and_forgotten_ones_stay_forgotten(xp):
    scheme, state = filled(xp, 300, [1, 2], [5.0, 0.5])
    state = scheme.insert(state, np.array([7, 1, 300], np.int32), np.array([True, False, False]))
    masses = np.asarray(state.levels[0])
    np.testing.assert_allclose(masses[[1, 2, 7]], [0, 0.5, 5.0])
    # 1 has been forgotten, 300 is nobody's; of the two for 2 the larger holds.
    state = scheme.update(
        state, np.array([1, 300, 2, 2], np.int32), np.array([9, 9, 3, 2], np.float32)
    )
    np.testing.assert_allclose(np.asarray(state.levels[0])[[1, 2, 7, 300]], [0, 3, 5, 0])
    np.testing.assert_allclose(np.sum(state.levels[-1]), 8)
    assert float(state.largest) == 9


def test_an_item_of_no_priority_can_still_be_drawn():
    scheme, state = filled(np, 3, [0, 1], [0.0, 0.0], 0.5)
    _, probabilities = scheme.draw(state, np.zeros((1, 2), np.float32))
    np.testing.assert_allclose(probabilities, 0.5)
    assert state.levels[0][0] == pytest.approx(1e-5)


def test_memory_is_what_the_levels_take():
    state = prioritized.make(np, 1_000_000, 0.5).init()
    assert prioritized.memory_needed(1_000_000) == sum(level.nbytes for level in state.levels)
    assert [len(level) for level in state.levels] == [1_000_064, 15_680, 256, 64]


def test_importance_weights_undo_the_bias_and_are_ones_of_equal_probabilities():
    probabilities = np.array([0.1, 0.4, 0.2], np.float32)
    weights = prioritized.importance_weights(probabilities, 1.0)
    np.testing.assert_allclose(weights, [1, 0.25, 0.5], rtol=1e-6)
    # With beta = 1 the weighted mean under P is the plain mean, but for the scale.
    values = np.array([3.0, -1.0, 5.0])
    mean = np.sum(probabilities * weights * values) / np.sum(probabilities * weights)
    np.testing.assert_allclose(mean, values.mean(), rtol=1e-6)
    half = prioritized.importance_weights(probabilities, 0.5)
    np.testing.assert_allclose(half, np.sqrt([1, 0.25, 0.5]), rtol=1e-6)
    same = prioritized.importance_weights(np.full(5, 0.3, np.float32), 0.4)
    np.testing.assert_array_equal(same, np.ones(5))


def test_a_weighted_learner_anneals_by_its_own_steps():
    import optax

    def loss(params, targets, aux, batch, key, constants):
        return jnp.mean(batch.weights) * params, (aux, types.Feedback({"w": batch.weights}))

    learner = learners.sgd(lambda key: jnp.ones(()), loss, optax.sgd(0.1))
    learner = prioritized.weighted(learner, optax.linear_schedule(0.0, 1.0, 2))
    state = learner.init(jax.random.key(0))
    probabilities = np.array([0.5, 0.25], np.float32)
    batch = types.Batch(None, np.zeros(2, np.int32), probabilities, np.ones(2, np.float32))
    for expected in (1.0, np.sqrt(0.5), 0.5, 0.5):
        state, feedback = learner.step(state, batch, types.NO_CONSTANTS)
        np.testing.assert_allclose(feedback.metrics["w"], [expected, 1], rtol=1e-6)
