"""Tests of theory/conservative.py and its bounds."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.theory import bounds, conservative, convex, iteration, run, scheme, solve
from kullback.theory.mdp import MDP

NUM_ITERATIONS = 25


def objective(mdp: MDP, record: run.Record, context: None) -> Any:
    del context
    return jnp.sum(mdp.initial * solve.policy_values(mdp, record.state.log_policy)[0])


def facts(mdp: MDP, record: run.Record, context: None) -> dict[str, Any]:
    """Measures an iterate's values and its advantage."""
    del context
    v, _ = solve.policy_values(mdp, record.state.log_policy)
    gain = conservative.advantage(mdp, record.state)
    return {
        "v": v,
        "objective": jnp.sum(mdp.initial * v),
        "mean": gain.mean,
        "largest": jnp.max(jnp.abs(gain.per_state)),
        "span": jnp.max(gain.per_state) - jnp.min(gain.per_state),
        "distance": gain.distance,
        "r_max": jnp.max(mdp.reward),
    }


# The rates from their definitions, of the facts.
RATES = {
    "optimal": lambda x: 0.1 * x["mean"] / (4 * x["r_max"] / 0.1),
    "adaptive": lambda x: np.minimum(
        1, 0.1 * x["mean"] / np.maximum(0.9 * x["distance"] * x["span"], 1e-300)
    ),
}


@pytest.fixture(scope="module")
def measured(garnets: MDP) -> dict[Any, dict[str, np.ndarray]]:
    """Runs every rate; the measures are [M, K + 1, ...]."""
    constant = {"rate": np.array([0.0, 0.05, 0.5, 1.0])}
    seen = run.run(
        conservative.cpi, garnets, NUM_ITERATIONS, parameters=constant, measure=facts
    ).records
    every = {rate: {n: x[i] for n, x in seen.items()} for i, rate in enumerate(constant["rate"])}
    for name in ("optimal", "adaptive"):
        scheme_ = conservative.cpi(conservative.RATES[name])
        every[name] = run.run(scheme_, garnets, NUM_ITERATIONS, measure=facts).records
    return every


@pytest.mark.parametrize(
    "rate",
    [0.5, "adaptive", *(pytest.param(x, marks=pytest.mark.slow) for x in (0.05, 1.0, "optimal"))],
)
def test_gains_and_gaps_keep_their_bounds(garnets, optimum, measured, rate):
    seen = measured[rate]
    before = {name: x[:, :-1] for name, x in seen.items()}
    a = RATES[rate](before) if isinstance(rate, str) else rate
    gain = np.diff(seen["objective"], axis=1)
    slack = 1e-12
    kakade = bounds.cpi_gain(a, before["mean"], before["largest"], 0.9)
    safe = bounds.safe_gain(a, before["mean"], before["distance"], before["span"], 0.9)
    assert np.all(gain >= kakade - slack) and np.all(gain >= safe - slack)
    gaps = np.max(optimum.v[:, None] - seen["v"], -1)
    assert np.all(gaps[:, 1:] <= bounds.cpi_contraction(gaps[:, :-1], a, 0.9) + slack)
    assert np.all(np.diff(seen["v"], axis=1) >= -slack)  # Everywhere better, step by step.
    if rate == "optimal":
        least = bounds.cpi_optimal_gain(before["mean"], before["r_max"], 0.9)
        assert np.all(gain >= least - slack)
    if rate == "adaptive":
        inside = (a < 1) & (before["mean"] > 1e-9)
        mean, distance, span = (before[name][inside] for name in ("mean", "distance", "span"))
        assert mean.size and np.all(gain[inside] >= mean**2 / (1.8 * distance * span) - slack)


def test_golden_advantage(garnets: MDP, measured):
    """From the definitions, with q of the uniform policy."""
    seen = measured[0.0]
    log_policy = np.full((20, 12, 3), -np.log(3))
    _, q = solve.policy_values(garnets, log_policy)
    per_state = np.max(q, -1) - np.mean(q, -1)
    mean = np.sum(solve.occupancy(garnets, log_policy) * per_state, -1)
    np.testing.assert_allclose(seen["mean"][:, 0], mean, rtol=1e-10)
    np.testing.assert_allclose(seen["span"][:, 0], np.ptp(per_state, 1), rtol=1e-10)
    np.testing.assert_allclose(seen["distance"][:, 0], 4 / 3)  # |1 - 1/3| + 2 |0 - 1/3|.
    # A rate of 0 stays.
    np.testing.assert_allclose(seen["v"][:, -1], seen["v"][:, 0], rtol=1e-12)


@pytest.mark.parametrize("name", ["optimal", "adaptive"])
def test_golden_rates(garnets: MDP, measured, name: str):
    one = jax.tree.map(lambda x: x[3], garnets)
    point = convex.Point(np.full((12, 3), -np.log(3)), np.zeros((), np.int32))
    _, q = solve.policy_values(one, point.log_x)
    rate = conservative.RATES[name](one, scheme.State(q, point))
    expected = RATES[name]({n: x[3, 0] for n, x in measured[0.0].items()})
    np.testing.assert_allclose(rate, expected, rtol=1e-10)
    assert 0 < expected < 1


@pytest.mark.parametrize("m", [1, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_a_rate_of_one_is_modified_policy_iteration(garnets, errors, m: float):
    cpi = run.run(conservative.cpi(1.0, m=m), garnets, 60, errors=errors).records.state
    mpi = run.run(iteration.modified_policy_iteration(m), garnets, 60, errors=errors)
    np.testing.assert_allclose(cpi.q, mpi.records.state.q, atol=1e-11)


@pytest.mark.slow
def test_the_scheme_of_deep_cpi_converges(garnets: MDP, optimum: solve.Solution):
    final = run.run(conservative.cpi(0.1, m=1), garnets, 500).final
    np.testing.assert_allclose(final.q, optimum.q, atol=1e-10)
    # What has always been greedy has all but (1 - a)^500 of the mass.
    np.testing.assert_allclose(np.sum(np.exp(final.log_policy), -1), 1, rtol=1e-12)


@pytest.mark.slow
def test_the_line_search_is_the_best_of_its_rates(garnets: MDP):
    rates = np.array([0.0, *(2.0 ** np.arange(-10, 1))])
    every = run.run(conservative.cpi, garnets, 1, parameters={"rate": rates}, measure=objective)
    result = run.run(conservative.cpi(conservative.line_search), garnets, 1, measure=objective)
    best = np.max(every.records[:, :, 1], 0)
    np.testing.assert_allclose(result.records[:, 1], best, rtol=1e-12)


@pytest.mark.slow
def test_the_rate_of_frank_wolfe(garnets: MDP):
    state = run.run(conservative.cpi(conservative.harmonic), garnets, 3).records.state
    best = np.argmax(state.q, -1)  # [M, 4, S]
    policy = np.exp(state.log_policy)
    for k, rate in enumerate([1, 2 / 3, 1 / 2]):
        expected = (1 - rate) * policy[:, k] + rate * np.eye(3)[best[:, k]]
        np.testing.assert_allclose(policy[:, k + 1], expected, atol=1e-12)


def test_an_impossible_rate_is_refused():
    with pytest.raises(ValueError, match="rate must lie in"):
        conservative.cpi(1.5)
