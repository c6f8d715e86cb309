"""Tests of theory/convex.py, and that the schemes are its methods."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import regularizers
from kullback.theory import conservative, convex, mirror, politex, run, solve
from kullback.theory.mdp import MDP

NUM_ITERATIONS = 15
TARGET = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
UNIFORM = np.full((12, 3), -np.log(3))


@pytest.fixture
def garnet(garnets: MDP) -> MDP:
    return jax.tree.map(lambda x: x[1], garnets)


def minus_values(garnet: MDP):
    """Returns the oracle that is policy evaluation: minus q_pi."""
    return lambda log_x: -solve.policy_values(garnet, log_x)[1]


def minus_objective(garnet: MDP):
    """Returns the oracle of optimisation: the gradient of -<mu, v_pi>."""
    return lambda log_x: -solve.objective_gradient(garnet, log_x)


def quadratic(log_x: jax.Array) -> Any:
    return jnp.exp(log_x) - TARGET  # Of |x - target|^2 / 2.


def test_golden_steps():
    log_x = np.log([[0.5, 0.5]])
    gradient = np.array([[-np.log(3.0), 0.0]])
    with jax.enable_x64(True):
        for method, size, expected in (
            (convex.frank_wolfe(), 0.25, [0.625, 0.375]),
            (convex.mirror_descent(), 1.0, [0.75, 0.25]),  # exp(ln 3) : 1.
            (convex.mirror_descent(), 0.5, [0.9, 0.1]),  # exp(2 ln 3) : 1.
            (convex.mirror_descent(tau=0.5), 0.5, [0.75, 0.25]),
            (convex.dual_averaging(), 1.0, [0.75, 0.25]),
        ):
            point = method.step(method.init(jnp.asarray(log_x)), gradient, size)
            np.testing.assert_allclose(np.exp(point.log_x), [expected], rtol=1e-12)
        # The second step: the sum is 2 ln 3, or (1/2 + 1) ln 3 where old gradients fade.
        for tau, size, odds in ((0.0, 1.0, 9.0), (0.5, 0.5, 3**1.5)):
            method = convex.dual_averaging(tau)
            point = method.init(jnp.asarray(log_x))
            for _ in range(2):
                point = method.step(point, gradient, size)
            np.testing.assert_allclose(np.exp(point.log_x[0, 0] - point.log_x[0, 1]), odds)


@pytest.mark.parametrize(
    "name, size, tolerance",
    [
        ("frank-wolfe", lambda k: 2 / (k + 2), None),
        ("mirror-descent", 1.0, 1e-5),
        ("dual-averaging", 1.0, 1e-5),
    ],
)
def test_a_quadratic_is_minimised(name: str, size, tolerance: float | None):
    start = np.full((2, 3), -np.log(3))
    points = convex.minimize(convex.METHODS[name](), quadratic, start, size, 300)
    value = np.sum((np.exp(points.log_x) - TARGET) ** 2, (1, 2)) / 2
    k = np.arange(1, 301)
    if tolerance is None:  # Smooth with constant 1, and the diameter squared is 2 in each simplex.
        assert np.all(value[1:] <= 2 * 4 / (k + 2))
    else:
        assert value[-1] < tolerance
    np.testing.assert_allclose(np.sum(np.exp(points.log_x), -1), 1, rtol=1e-12)


PAIRS = {
    "cpi": (convex.frank_wolfe(), 0.3, conservative.cpi(0.3)),
    "md-mpi": (convex.mirror_descent(), 0.5, mirror.md_mpi(0.5, m=np.inf, regularized=False)),
    "politex": (convex.dual_averaging(), 0.5, politex.politex(2.0)),
    "md-mpi-entropy": (
        convex.mirror_descent(0.1),
        0.5,
        mirror.md_mpi(0.5, 0.1, m=np.inf, regularized=False),
    ),
    "md-mpi-tsallis": (
        convex.mirror_descent(divergence=regularizers.chi_squared),
        0.5,
        mirror.md_mpi(0.5, m=np.inf, regularized=False, divergence=regularizers.chi_squared),
    ),
}


@pytest.mark.parametrize(
    "name",
    [n if n == "md-mpi" else pytest.param(n, marks=pytest.mark.slow) for n in PAIRS],
)
def test_a_scheme_is_its_method_with_evaluation_as_the_oracle(garnet: MDP, name: str):
    method, size, scheme = PAIRS[name]
    points = convex.minimize(method, minus_values(garnet), UNIFORM, size, NUM_ITERATIONS)
    state = run.run(scheme, garnet, NUM_ITERATIONS).records.state
    np.testing.assert_allclose(np.exp(points.log_x), np.exp(state.log_policy), atol=1e-10)
    assert np.max(np.abs(np.exp(points.log_x[-1]) - 1 / 3)) > 0.3  # It moved.


def test_cpi_is_frank_wolfe_on_the_objective_itself(garnet: MDP):
    # A linear oracle does not see the scale of a gradient, which is d(s) q / (1 - gamma).
    points = convex.minimize(
        convex.frank_wolfe(), minus_objective(garnet), UNIFORM, 0.3, NUM_ITERATIONS
    )
    state = run.run(conservative.cpi(0.3), garnet, NUM_ITERATIONS).records.state
    np.testing.assert_allclose(np.exp(points.log_x), np.exp(state.log_policy), atol=1e-10)


def test_md_mpi_is_mirror_descent_on_the_objective_where_occupancy_weighs_the_divergence(
    garnet: MDP,
):
    scheme = mirror.md_mpi(0.5, m=np.inf, regularized=False)
    log_policy = run.run(scheme, garnet, NUM_ITERATIONS).records.state.log_policy
    method, oracle = convex.mirror_descent(), minus_objective(garnet)
    largest = 0.0
    for k in range(NUM_ITERATIONS):
        weights = solve.occupancy(garnet, log_policy[k])[:, None] / (1 - garnet.discount)
        with jax.enable_x64(True):
            start = method.init(jnp.asarray(log_policy[k]))
            weighted = method.step(start, oracle(log_policy[k]), 0.5 * weights)
            plain = method.step(start, oracle(log_policy[k]), 0.5)
        expected = np.exp(log_policy[k + 1])
        np.testing.assert_allclose(np.exp(weighted.log_x), expected, atol=1e-10)
        largest = max(largest, np.max(np.abs(np.exp(plain.log_x) - expected)))
    assert largest > 0.01  # Without the weights the correspondence stops.


@pytest.mark.slow
def test_where_mirror_descent_and_dual_averaging_part():
    """They agree for KL, a constant step size and a uniform start; each of the three matters."""
    uniform = np.full((2, 3), -np.log(3))
    skewed = np.broadcast_to(np.log([0.6, 0.3, 0.1]), (2, 3))

    def distance(start: np.ndarray, size, divergence=None) -> float:
        one, other = (
            convex.minimize(method(divergence=divergence), quadratic, start, size, 6)
            for method in (convex.mirror_descent, convex.dual_averaging)
        )
        return float(np.max(np.abs(np.exp(one.log_x) - np.exp(other.log_x))))

    assert distance(uniform, 0.5) < 1e-10
    assert distance(skewed, 0.5) > 0.01
    assert distance(uniform, lambda k: 0.5 * jnp.sqrt(k + 1.0)) > 0.01
    assert distance(uniform, 0.5, regularizers.chi_squared) > 0.01
