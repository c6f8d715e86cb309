"""Tests of theory/solve.py."""

import itertools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kullback.core import regularizers
from kullback.theory import garnet, mdp, solve
from kullback.theory.mdp import MDP

TINY = mdp.make(
    [[[1, 0], [0.25, 0.75]], [[0, 1], [0, 1]]], [[0.0, 1.0], [0.0, 2.0]], 0.5, initial=[1, 0]
)
ALWAYS_1 = np.array([[-np.inf, 0.0], [-np.inf, 0.0]])


def dense(process: MDP) -> np.ndarray:
    """Returns the transitions of one process of NumPy arrays, [S, A, S]."""
    full = np.zeros((*process.reward.shape, process.num_states))
    assert process.successors is not None
    for s, a, n in np.ndindex(process.probabilities.shape):
        full[s, a, process.successors[s, a, n]] += process.probabilities[s, a, n]
    return full


def test_golden():
    # v(1) = 2 / (1 - 1/2) = 4; v(0) = 1 + (v(0) / 4 + 3 v(1) / 4) / 2 = 2.5 / (7/8).
    v, q = solve.policy_values(TINY, ALWAYS_1)
    np.testing.assert_allclose(v, [20 / 7, 4], rtol=1e-14)
    np.testing.assert_allclose(q, [[10 / 7, 20 / 7], [2, 4]], rtol=1e-14)
    np.testing.assert_allclose(solve.policy_iteration(TINY).v, v, rtol=1e-14)
    # d(0) = 1/2 + 1/2 1/4 d(0).
    np.testing.assert_allclose(solve.occupancy(TINY, ALWAYS_1), [4 / 7, 3 / 7], rtol=1e-14)


def test_optimal_values_are_those_of_the_best_deterministic_policy():
    config = garnet.Config(num_states=4, num_actions=2, branching=2, discount=0.95)
    process = garnet.make(jax.random.key(5), config)
    full, states = dense(process), np.arange(4)
    values = [
        np.linalg.solve(np.eye(4) - 0.95 * full[states, policy], process.reward[states, policy])
        for policy in itertools.product(range(2), repeat=4)
    ]
    best = np.max(values, 0)  # In every state at once, for some policy.
    for solver in (solve.value_iteration, solve.policy_iteration):
        solution = solver(process, tolerance=1e-11)
        np.testing.assert_allclose(solution.v, best, atol=1e-11)
        assert solution.error_bound <= 1e-11


@pytest.mark.parametrize(
    "tau, divergence, num_sweeps",
    [
        (0.0, None, 4),
        (0.1, None, 1),
        pytest.param(0.1, regularizers.chi_squared, 3, marks=pytest.mark.slow),
    ],
)
def test_the_two_solvers_agree(garnets: MDP, tau: float, divergence, num_sweeps: int):
    by_policies = solve.policy_iteration(garnets, tolerance=1e-11, tau=tau, divergence=divergence)
    by_values = solve.value_iteration(
        garnets, tolerance=1e-9, tau=tau, divergence=divergence, num_sweeps=num_sweeps
    )
    assert np.all(by_policies.error_bound < 1e-11) and np.all(by_values.error_bound <= 1e-9)
    np.testing.assert_allclose(by_values.v, by_policies.v, atol=1e-9)
    # The greedy policy attains the values.
    v, q = solve.policy_values(garnets, by_policies.log_policy, tau=tau, divergence=divergence)
    np.testing.assert_allclose(v, by_policies.v, atol=1e-10)
    np.testing.assert_allclose(q, by_policies.q, atol=1e-10)


@pytest.mark.parametrize("tau", [0.0, pytest.param(0.1, marks=pytest.mark.slow)])
def test_where_policies_begin_changes_how_many_there_are_alone(garnets: MDP, tau: float):
    far, near = (solve.policy_iteration(garnets, tau=tau, num_backups=n) for n in (0, 10))
    np.testing.assert_allclose(near.v, far.v, atol=1e-8)
    assert np.sum(near.num_iterations) < np.sum(far.num_iterations)
    one = solve.policy_iteration(jax.tree.map(lambda x: x[1], garnets), tau=tau)
    np.testing.assert_allclose(one.v, near.v[1], rtol=1e-13)
    with pytest.raises(ValueError, match=r"num_backups must be >= 0, got -1"):
        solve.policy_iteration(garnets, num_backups=-1)


def test_values_with_entropy_are_their_definition(garnets: MDP):
    one = jax.tree.map(lambda x: x[0], garnets)
    policy = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    v, _ = solve.policy_values(one, np.log(policy), tau=0.3)
    reward = np.sum(policy * (one.reward - 0.3 * np.log(policy)), 1)
    kernel = np.einsum("sa,sat->st", policy, dense(one))
    np.testing.assert_allclose(v, np.linalg.solve(np.eye(12) - 0.9 * kernel, reward), rtol=1e-12)
    # The occupancy measure is its series, and turns rewards into the objective.
    series = sum(0.1 * 0.9**t * one.initial @ np.linalg.matrix_power(kernel, t) for t in range(400))
    occupancy = solve.occupancy(one, np.log(policy))
    np.testing.assert_allclose(occupancy, series, atol=1e-14)
    np.testing.assert_allclose(occupancy @ reward / 0.1, one.initial @ v, rtol=1e-12)


@hypothesis.settings(deadline=None)
@hypothesis.given(tolerance=st.sampled_from([10.0, 1.0, 0.1, 1e-3, 1e-6]))
def test_the_certificate_holds(garnets: MDP, optimum: solve.Solution, tolerance: float):
    solution = solve.value_iteration(garnets, tolerance=tolerance)
    gap = np.max(np.abs(solution.v - optimum.v), -1)
    assert np.all(gap <= solution.error_bound + 1e-11)
    assert np.all(solution.error_bound <= tolerance)


def test_giving_up_shows(garnets: MDP):
    solution = solve.value_iteration(garnets, max_iterations=3)
    assert np.all(solution.num_iterations == 3) and np.all(solution.error_bound > 1e-8)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    direction=hnp.arrays(np.float64, (12, 3), elements=st.floats(-1, 1, allow_subnormal=False))
)
def test_the_gradient_of_the_objective_is_the_slope(garnets: MDP, direction: np.ndarray):
    one = jax.tree.map(lambda x: x[0], garnets)
    policy = np.full((12, 3), 1 / 3)
    slope = np.sum(direction * solve.objective_gradient(one, np.log(policy)))

    def objective(step: float) -> float:  # Rows need not sum to one.
        return float(one.initial @ solve.policy_values(one, np.log(policy + step * direction))[0])

    np.testing.assert_allclose((objective(1e-5) - objective(-1e-5)) / 2e-5, slope, atol=1e-6)


@pytest.mark.slow
def test_twenty_thousand_states():
    process = garnet.make(jax.random.key(0), garnet.Config(num_states=20_000, discount=0.99))
    solution = solve.value_iteration(process, num_sweeps=5)
    assert solution.error_bound <= 1e-8
    bellman = np.max(process.backup(solution.v), -1) - solution.v
    assert np.max(np.abs(bellman)) <= 2e-8


@pytest.mark.parametrize("arguments", [{"tolerance": 0.0}, {"num_sweeps": 0}])
def test_impossible_arguments_are_refused(arguments: dict):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        solve.value_iteration(TINY, **arguments)
