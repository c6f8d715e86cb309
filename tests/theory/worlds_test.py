"""Tests of theory/worlds.py."""

import math

import numpy as np
import pytest

from kullback.environments import toy
from kullback.theory import solve, worlds


@pytest.mark.parametrize("slip", [0.0, 0.2])
def test_the_chain_is_the_environment_of_that_name(slip: float):
    solution = solve.policy_iteration(worlds.chain(6, slip=slip, discount=0.9))
    expected = toy.optimal_values(6, slip=slip, discount=0.9)
    np.testing.assert_allclose(solution.q[:6], expected, rtol=1e-12)
    np.testing.assert_allclose(solution.q[6], 0, atol=1e-15)


def test_the_random_walk_has_its_closed_form():
    discount, length = 0.95, 5
    v, _ = solve.policy_values(worlds.random_walk(length, discount=discount), np.zeros((6, 1)))
    z = (1 + math.sqrt(1 - discount**2)) / discount
    i = np.arange(1, length + 1.0)
    expected = (z**i - z**-i) / (z ** (length + 1) - z ** -(length + 1)) / discount
    np.testing.assert_allclose(v[:length], expected, rtol=1e-12)


def test_values_of_a_maze_are_powers_of_the_distance():
    # Distances to the goal, as one reads; "#" is a wall.
    rows, distances = ("S.#G", "....", ".#.."), [5, 4, 0, 4, 3, 2, 1, 5, 3, 2]
    maze = worlds.gridworld(rows, slip=0.0, discount=0.9)
    solution = solve.value_iteration(maze, tolerance=1e-12)
    np.testing.assert_allclose(solution.v[:-1], 0.9 ** np.array(distances), rtol=1e-10)
    np.testing.assert_array_equal(maze.initial, np.arange(11) == 0)
    # From the start: up and left stay, down and right lead to a distance of 4.
    np.testing.assert_allclose(solution.q[0], 0.9 ** np.array([6, 5, 6, 5]), rtol=1e-10)


def test_slips_go_in_all_directions():
    maze = worlds.gridworld(("S.G",), slip=0.4)
    # Right from the start: 0.6 + 0.1 to the middle; up, down and left stay.
    np.testing.assert_allclose(maze.transitions(np.eye(4)[[3, 3, 3, 3]])[0], [0.3, 0.7, 0, 0])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: worlds.gridworld(("..", "G")), "equal length"),
        (lambda: worlds.gridworld(("..",)), "no goal"),
        (lambda: worlds.gridworld(("xG",)), r"\['x'\]"),
        (lambda: worlds.gridworld(slip=1.5), "slip must lie"),
        (lambda: worlds.chain(0), "length must be >= 1, got 0"),
        (lambda: worlds.random_walk(0), "length must be >= 1, got 0"),
    ],
)
def test_impossible_worlds_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
