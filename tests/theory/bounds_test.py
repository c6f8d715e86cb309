"""Tests of theory/bounds.py: no run breaks a theorem, on random processes with random errors."""

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.core import regularizers
from kullback.theory import (
    bounds,
    conservative,
    garnet,
    iteration,
    mdp,
    mirror,
    munchausen,
    politex,
    run,
    solve,
)

NUM_ITERATIONS = 25
SIZES = garnet.Config(num_states=6, num_actions=3, branching=2)
SLACK = 1e-10  # Rounding.

seeds = st.integers(0, 2**31 - 1)
discounts = st.sampled_from([0.5, 0.9, 0.99])
scales = st.sampled_from([0.0, 0.01, 0.3, 3.0])
property_test = hypothesis.settings(deadline=None)


def draw(seed: int, discount: float, scale: float) -> tuple[mdp.MDP, np.ndarray]:
    """Makes a Garnet with rewards of both signs, and errors with a bias that remains."""
    process = garnet.make(jax.random.key(seed), SIZES)
    rng = np.random.default_rng(seed)
    process = process._replace(
        discount=np.float64(discount), reward=rng.uniform(-1, 1, (6, 1)).repeat(3, 1)
    )
    bias, noise = rng.normal(size=(6, 3)), rng.normal(size=(NUM_ITERATIONS, 6, 3))
    return process, scale * (noise + 0.3 * bias)


def positive(process: mdp.MDP) -> mdp.MDP:
    """Makes the same with rewards in [0, 1]."""
    return process._replace(reward=(process.reward + 1) / 2)


def repeated(process: mdp.MDP, count: int) -> mdp.MDP:
    """Stacks the process `count` times."""
    return jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), process)


def gap(
    process: mdp.MDP,
    log_policies: np.ndarray,
    tau: float = 0.0,
    divergence: regularizers.Divergence | None = None,
) -> np.ndarray:
    """Returns q_* - q_{pi_k}, [K, S, A]."""
    same = {"tau": tau, "divergence": divergence}
    optimum = solve.policy_iteration(process, tolerance=1e-12, **same)
    batch = repeated(process, NUM_ITERATIONS)
    return np.asarray(optimum.q - solve.policy_values(batch, log_policies, **same)[1])


@property_test
@hypothesis.given(seed=seeds, discount=discounts, scale=scales)
def test_kl_averages_errors(seed: int, discount: float, scale: float):
    process, errors = draw(seed, discount, scale)
    lambda_ = 0.2
    records = run.run(
        mirror.da_vi,
        process,
        NUM_ITERATIONS,
        errors=errors,
        clip=True,
        parameters={"lambda_": [lambda_], "tau": [0.0]},
    ).records
    errors, policies = records.error[0, 1:], records.state.log_policy[0, 1:]
    loss = gap(process, policies)
    optimal = solve.policy_iteration(process).log_policy
    bound = bounds.kl_gap(process, optimal, policies, errors, lambda_)
    assert np.all(loss >= -SLACK) and np.all(loss <= bound + SLACK)
    norms = np.max(np.abs(np.cumsum(errors, 0)), (1, 2)) / np.arange(1, NUM_ITERATIONS + 1)
    r_max = float(np.max(np.abs(process.reward)))
    norm_bound = bounds.kl_gap_norm(norms, 3, r_max, discount, lambda_)
    assert np.all(np.max(bound, (1, 2)) <= norm_bound + SLACK)


@pytest.mark.slow
@property_test
@hypothesis.example(seed=1, discount=0.5, scale=0.3, beta=0.0)  # Breaks it with a plus.
@hypothesis.given(
    seed=seeds, discount=discounts, scale=scales, beta=st.sampled_from([0.0, 0.5, 0.95])
)
def test_kl_and_entropy_average_errors(seed: int, discount: float, scale: float, beta: float):
    process, errors = draw(seed, discount, scale)
    tau = 0.1
    lambda_ = tau * beta / (1 - beta)
    policies = run.run(
        mirror.da_vi,
        process,
        NUM_ITERATIONS,
        errors=errors,
        parameters={"lambda_": [lambda_], "tau": [tau]},
    ).records.state.log_policy[0, 1:]
    loss = gap(process, policies, tau)
    optimal = solve.policy_iteration(process, tau=tau).log_policy
    bound = bounds.entropy_gap(process, optimal, policies, errors, lambda_, tau)
    assert np.all(loss >= -SLACK) and np.all(loss <= bound + SLACK)
    norms = np.max(np.abs(bounds.moving_average(errors, beta)), (1, 2))
    r_max = float(np.max(np.abs(process.reward)))
    norm_bound = bounds.entropy_gap_norm(norms, 3, r_max, discount, lambda_, tau)
    assert np.all(np.max(bound, (1, 2)) <= norm_bound * (1 + 1e-12) + SLACK)


@pytest.mark.slow
@property_test
@hypothesis.given(
    seed=seeds, discount=discounts, scale=scales, alpha=st.sampled_from([0.0, 0.5, 0.95])
)
def test_munchausen_averages_errors_as_mirror_descent_does(
    seed: int, discount: float, scale: float, alpha: float
):
    process, errors = draw(seed, discount, scale)
    temperatures = alpha * 0.1, (1 - alpha) * 0.1
    policies = run.run(
        munchausen.munchausen_vi,
        process,
        NUM_ITERATIONS,
        errors=errors,
        parameters={"alpha": [alpha], "tau": [0.1]},
    ).records.state.log_policy[0, 1:]
    loss = gap(process, policies, temperatures[1])
    optimal = solve.policy_iteration(process, tau=temperatures[1]).log_policy
    bound = bounds.entropy_gap(process, optimal, policies, errors, *temperatures)
    assert np.all(loss >= -SLACK) and np.all(loss <= bound + SLACK)


@functools.cache
def mpi(m: float, name: str):
    """Returns a cached constructor by temperature, so that each m and f compile once."""
    divergence = regularizers.named(name)
    return functools.partial(iteration.modified_policy_iteration, m, divergence=divergence)


@pytest.mark.parametrize(
    "m, name",
    [
        (4, "kl"),
        *(
            pytest.param(*both, marks=pytest.mark.slow)
            for both in ((1, "kl"), (math.inf, "kl"), (1, "chi_squared"), (4, "alpha-1.5"))
        ),
    ],
)
@property_test
@hypothesis.given(seed=seeds, discount=discounts, scale=scales)
def test_modified_policy_iteration_discounts_errors(
    m: float, name: str, seed: int, discount: float, scale: float
):
    process, errors = draw(seed, discount, scale)
    tau, divergence = 0.1, regularizers.named(name)
    states = run.run(
        mpi(m, name), process, NUM_ITERATIONS, errors=errors, parameters={"tau": [tau]}
    ).records.state
    loss = np.max(gap(process, states.log_policy[0, 1:], tau, divergence), (1, 2))
    optimum = solve.policy_iteration(process, tau=tau, divergence=divergence, tolerance=1e-12)
    start = np.max(np.abs(optimum.q - states.q[0, 0]))
    bound = bounds.mpi_gap(np.max(np.abs(errors), (1, 2)), start, discount)
    assert np.all(loss <= bound + SLACK)


@pytest.mark.slow
@property_test
@hypothesis.given(seed=seeds, discount=discounts, lambda_=st.sampled_from([0.01, 0.3, 5.0]))
def test_mirror_descent_policy_iteration_improves_at_its_rate(
    seed: int, discount: float, lambda_: float
):
    process, _ = draw(seed, discount, 0.0)
    process = positive(process)
    states = run.run(
        md_pi, process, NUM_ITERATIONS, parameters={"lambda_": [lambda_]}
    ).records.state
    loss = gap(process, states.log_policy[0, 1:])
    assert np.all(np.diff(loss, axis=0) <= SLACK)  # Everywhere better, step by step.
    optimum = solve.policy_iteration(process, tolerance=1e-12)
    for k in (1, 2, 5, NUM_ITERATIONS):
        v, _ = solve.policy_values(process, states.log_policy[0, k])
        bound = bounds.md_pi_gap(k, 3, 1.0, discount, lambda_)
        assert np.max(optimum.v - v) <= bound + SLACK


def md_pi(lambda_: float):
    return mirror.md_mpi(lambda_, m=math.inf, regularized=False)


CPI = {
    "constant": conservative.cpi,  # By its rate.
    "optimal": conservative.cpi(conservative.optimal),
    "adaptive": conservative.cpi(conservative.adaptive),
}


def facts(process: mdp.MDP, record: run.Record, context: None):
    """Measures an iterate's values, and the inputs of the next step's bounds."""
    del context
    gain = conservative.advantage(process, record.state)
    largest, least = jnp.max(gain.per_state), jnp.min(gain.per_state)
    return {
        "v": solve.policy_values(process, record.state.log_policy)[0],
        "mean": gain.mean,
        "largest": jnp.maximum(jnp.abs(largest), jnp.abs(least)),
        "span": largest - least,
        "distance": gain.distance,
    }


@pytest.mark.parametrize(
    "name", ["adaptive", *(pytest.param(n, marks=pytest.mark.slow) for n in CPI if n != "adaptive")]
)
@property_test
@hypothesis.given(seed=seeds, discount=discounts, rate=st.sampled_from([0.01, 0.3, 1.0]))
def test_conservative_policy_iteration_gains_and_contracts(
    name: str, seed: int, discount: float, rate: float
):
    process, _ = draw(seed, discount, 0.0)
    if name == "optimal":  # Both the rate and its bound are of rewards in [0, r_max].
        process = positive(process)
    constant = {"rate": [rate]} if name == "constant" else None
    seen = run.run(CPI[name], process, NUM_ITERATIONS, parameters=constant, measure=facts).records
    if constant:
        seen = jax.tree.map(lambda x: x[0], seen)
    v, now = seen["v"], {key: x[:-1] for key, x in seen.items()}
    r_max = float(np.max(np.abs(process.reward)))
    a = np.full(NUM_ITERATIONS, rate)
    if name == "optimal":
        a = (1 - discount) ** 2 * now["mean"] / (4 * r_max)
    elif name == "adaptive":
        spread = discount * now["distance"] * now["span"]
        a = np.minimum(1, (1 - discount) * now["mean"] / np.maximum(spread, 1e-300))
    gain, slack = np.diff(v, axis=0) @ process.initial, SLACK / (1 - discount)
    assert np.all(gain >= bounds.cpi_gain(a, now["mean"], now["largest"], discount) - slack)
    safe = bounds.safe_gain(a, now["mean"], now["distance"], now["span"], discount)
    assert np.all(gain >= safe - slack)
    if name == "optimal":
        assert np.all(gain >= bounds.cpi_optimal_gain(now["mean"], r_max, discount) - slack)
    best = solve.policy_iteration(process, tolerance=1e-12)
    gaps = np.max(best.v - v, -1)
    assert np.all(gaps[1:] <= bounds.cpi_contraction(gaps[:-1], a, discount) + slack)


@property_test
@hypothesis.given(seed=seeds, discount=discounts, rate=st.sampled_from([0.01, 0.3, 1.0]))
def test_mixing_in_a_policy_that_is_not_greedy_costs_its_error(
    seed: int, discount: float, rate: float
):
    before, after, errors = mixtures(seed, discount, rate)
    assert np.all(after <= bounds.cpi_contraction(before, rate, discount, errors) + SLACK)


def test_that_error_cannot_be_left_out():
    before, after, _ = mixtures(3, 0.9, 0.3)
    assert np.any(after > bounds.cpi_contraction(before, 0.3, 0.9))


def mixtures(seed: int, discount: float, rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measures eight mixtures of two random policies: gaps before and after, e of the second."""
    process, _ = draw(seed, discount, 0.0)
    best = solve.policy_iteration(process, tolerance=1e-12)
    old, mixed_in = np.random.default_rng(seed).dirichlet(np.full(3, 0.3), (2, 8, 6))
    batch = repeated(process, 8)
    v, q = solve.policy_values(batch, np.log(np.maximum(old, 1e-300)))
    mixture = (1 - rate) * old + rate * mixed_in
    new, _ = solve.policy_values(batch, np.log(np.maximum(mixture, 1e-300)))
    errors = np.max(np.max(q, -1) - np.sum(mixed_in * q, -1), -1)
    return np.max(best.v - v, -1), np.max(best.v - new, -1), errors


def state_gaps(process: mdp.MDP, record: run.Record, optimal_v: np.ndarray):
    """Measures v_* - v_{pi_k}, [S], and the error of the estimate."""
    v, q = solve.policy_values(process, record.state.log_policy)
    return optimal_v - v, jnp.max(jnp.abs(record.state.q - q))


@property_test
@hypothesis.given(
    seed=seeds, discount=discounts, scale=scales, step=st.sampled_from([0.01, 1.0, 30.0])
)
def test_politex_keeps_its_regret(seed: int, discount: float, scale: float, step: float):
    """In every state, with estimates and without; rewards in [-1, 1] are as [0, 2]."""
    process, errors = draw(seed, discount, scale)
    best = solve.policy_iteration(process, tolerance=1e-12)
    eta = step * politex.step_size(NUM_ITERATIONS, 3, bounds.v_max(2.0, discount))
    gaps, off = run.run(
        politex.politex,
        process,
        NUM_ITERATIONS,
        errors=errors,
        clip=True,  # Into an interval of length 2 v_max at most.
        parameters={"eta": [eta]},
        measure=state_gaps,
        context=best.v,
    ).records
    for count in (1, 2, 7, NUM_ITERATIONS):
        regret = np.max(np.sum(gaps[0, :count], 0))
        bound = bounds.politex_regret(count, 3, 2.0, discount, eta, np.sum(off[0, :count]))
        assert regret <= bound + SLACK


@pytest.mark.slow
@property_test
@hypothesis.given(seed=seeds, discount=discounts, tau=st.sampled_from([0.01, 0.1, 1.0]))
def test_entropy_costs_no_more_than_its_bias(seed: int, discount: float, tau: float):
    process, _ = draw(seed, discount, 0.0)
    best = solve.policy_iteration(process)
    soft = solve.policy_iteration(process, tau=tau)
    _, q = solve.policy_values(process, soft.log_policy)
    assert np.max(best.q - q) <= bounds.entropy_bias(tau, 3, discount) + SLACK
    assert np.max(np.abs(soft.q)) <= bounds.v_max(1.0, discount, 3, tau) + SLACK
    # And acting greedily for the soft values costs what their distance allows.
    v, _ = solve.policy_values(process, np.log(np.eye(3)[np.argmax(soft.q, -1)] + 1e-300))
    distance = float(np.max(np.abs(soft.q - best.q)))
    assert np.max(best.v - v) <= bounds.greedy_loss(distance, discount) + SLACK


def test_golden():
    # beta = 1/2, gamma = 1/2: g(k) = 2 (k + 1) / 2^k v_max, v_max = (1 + ln 2) / (1/2).
    got = bounds.entropy_start(3, 2, 1.0, 0.5, 1.0, 1.0)
    np.testing.assert_allclose(got, np.array([2, 2, 1.5]) * 2 * (1 + np.log(2)), rtol=1e-12)
    # gamma = 1/2, d = 8: 4 d/2, 4 (eps_1 / 2 + d / 4), 4 (eps_2 / 2 + eps_1 / 4 + d / 8).
    got = bounds.mpi_gap(np.array([1.0, 3.0, 9.0]), 8.0, 0.5)
    np.testing.assert_allclose(got, [16, 10, 11], rtol=1e-12)
    np.testing.assert_allclose(bounds.kl_gap_norm(np.ones(2), 1, 0.5, 0.5, 1.0), [12, 8])
    # v_max = 2, so 2 (ln 2 + 4 . 4 / 8 + 2 . 3).
    got = bounds.politex_regret(4, 2, 1.0, 0.5, 1.0, 3.0)
    np.testing.assert_allclose(got, 2 * (np.log(2) + 8), rtol=1e-12)
    # (1 - 0.5 . 0.5) 8 + 0.5 . 3 / 0.5.
    np.testing.assert_allclose(bounds.cpi_contraction(8.0, 0.5, 0.5, 3.0), 9)
    # The first bound has no error in it, the second E_1.
    got = bounds.entropy_gap_norm(np.array([1.0, 7.0]), 2, 0.0, 0.5, 0.0, 1.0)
    expected = bounds.entropy_start(2, 2, 0.0, 0.5, 0.0, 1.0) + np.array([0, 4])
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_a_moving_average_has_its_variance():
    errors = np.random.default_rng(0).normal(size=(500, 4_000))
    got = np.var(bounds.moving_average(errors, 0.9)[-1])
    np.testing.assert_allclose(got, 0.1 / 1.9, rtol=0.1)
