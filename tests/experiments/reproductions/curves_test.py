"""Tests of experiments/reproductions/curves.py."""

import itertools
import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from kullback.experiments.reproductions import curves

column = hnp.arrays(np.float64, 6, elements=st.integers(-3, 3).map(float))


def test_the_area_of_a_front_by_hand():
    # From 1 to 2 nats 3 - 1, from 2 to 5 nats 4 - 1; the point (3, 2) is dominated, that at 6 far.
    kl, reward = [2.0, 1.0, 3.0, 6.0], [4.0, 3.0, 2.0, 9.0]
    assert curves.front_area(kl, reward, (5.0, 1.0)) == 1 * 2 + 3 * 3
    assert curves.front_area(kl, reward, (5.0, 3.5)) == 3 * 0.5, "what is below R counts nothing"
    assert curves.front_area([6.0], [9.0], (5.0, 0.0)) == 0
    with pytest.raises(ValueError, match="reference's KL must be > 0"):
        curves.front_area(kl, reward, (0.0, 1.0))
    with pytest.raises(ValueError, match="two columns"):
        curves.front_area(kl, reward[1:], (5.0, 1.0))


@hypothesis.settings(deadline=None)
@hypothesis.given(kl=column, reward=column)
def test_the_area_agrees_with_a_count_of_cells(kl: np.ndarray, reward: np.ndarray):
    kl = kl + 3
    # All numbers are whole: unit cells of [0, 6] x [-3, 3] that some point dominates.
    cells = itertools.product(range(6), range(-3, 3))
    covered = sum(any((kl <= x) & (reward >= y + 1)) for x, y in cells)
    assert curves.front_area(kl, reward, (6.0, -3.0)) == covered


def test_a_filled_line_has_the_area_of_its_triangle():
    kl, reward = curves.filled([0.0, 2.0], [0.0, 1.0], pieces=1_000)
    assert (len(kl), kl[500], reward[500]) == (1_001, 1, 0.5)
    assert math.isclose(curves.front_area(kl, reward, (2.0, 0.0)), 1, rel_tol=2e-3)
    np.testing.assert_array_equal(curves.filled([1.0], [2.0]), [[1], [2]])


def test_the_area_above_a_chord_by_hand():
    # The triangle (0, 0), (1, 2), (4, 4): its area is |1 * 4 - 2 * 4| / 2.
    assert curves.above_chord([0.0, 1.0, 4.0], [0.0, 2.0, 4.0]) == 2
    assert curves.above_chord([0.0, 2.0, 4.0], [0.0, 1.0, 4.0]) == -2


def test_the_value_on_the_way():
    kl, reward = [0.0, 2.0, 1.5, 3.0], [0.0, 4.0, 5.0, 1.0]
    assert curves.value_at(kl, reward, 1.75) == 3.5, "where it is reached first"
    assert curves.value_at(kl, reward, 2.25) == 3, "half-way from 1.5 to 3"
    assert curves.value_at(kl, reward, 0.0) == 0
    assert math.isnan(curves.value_at(kl, reward, 3.5))


@hypothesis.settings(deadline=None)
@hypothesis.given(gold=column, order=st.permutations(range(6)))
def test_the_best_of_n_is_the_mean_over_all_sets(gold: np.ndarray, order: list[int]):
    proxy, counts = np.array(order, float), (1, 2, 3, 5, 6)
    expected = [
        np.mean([gold[max(draws, key=order.__getitem__)] for draws in sets])
        for sets in (list(itertools.combinations(range(6), n)) for n in counts)
    ]
    np.testing.assert_allclose(curves.best_of(proxy, gold, counts), expected, atol=1e-12)


def test_the_best_of_many_draws_stays_finite():
    draws = np.random.default_rng(0).normal(size=20_000)
    means = curves.best_of(draws, draws, (1, 4, 1_000, 20_000))
    np.testing.assert_allclose(means[0], draws.mean(), atol=1e-12)
    # Of four normal numbers the greatest is 1.0294 on average; a set of all has the greatest.
    assert abs(means[1] - 1.0294) < 0.02 and means[3] == draws.max() and means[2] < means[3]
    for count in (0, 20_001):
        with pytest.raises(ValueError, match=rf"N in \[1, 20000\].*got {count}"):
            curves.best_of(draws, draws, (count,))


def test_wins_and_ties():
    assert curves.win_rate([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 4.0, 5.0]) == 1.5 / 4
