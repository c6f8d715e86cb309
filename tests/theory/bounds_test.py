"""Tests of theory/bounds.py: no run breaks a theorem, on random processes with random errors."""

import functools
import math

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.theory import bounds, garnet, iteration, mdp, mirror, run, solve

NUM_ITERATIONS = 25
SIZES = garnet.Config(num_states=6, num_actions=3, branching=2)
SLACK = 1e-10  # Rounding.

seeds = st.integers(0, 2**31 - 1)
discounts = st.sampled_from([0.5, 0.9, 0.99])
scales = st.sampled_from([0.0, 0.01, 0.3, 3.0])
property_test = hypothesis.settings(deadline=None, max_examples=25)


def draw(seed: int, discount: float, scale: float) -> tuple[mdp.MDP, np.ndarray]:
    """A Garnet with rewards of both signs, and errors with a bias that does not average out."""
    process = garnet.make(jax.random.key(seed), SIZES)
    rng = np.random.default_rng(seed)
    process = process._replace(
        discount=np.float64(discount), reward=rng.uniform(-1, 1, (6, 1)).repeat(3, 1)
    )
    bias, noise = rng.normal(size=(6, 3)), rng.normal(size=(NUM_ITERATIONS, 6, 3))
    return process, scale * (noise + 0.3 * bias)


def gap(process: mdp.MDP, log_policies: np.ndarray, tau: float = 0.0) -> np.ndarray:
    """q_* - q_{pi_k}, [K, S, A]."""
    optimum = solve.policy_iteration(process, tau=tau, tolerance=1e-12)
    batch = jax.tree.map(lambda x: np.broadcast_to(x, (NUM_ITERATIONS, *np.shape(x))), process)
    return np.asarray(optimum.q - solve.policy_values(batch, log_policies, tau=tau)[1])


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


@functools.cache
def mpi(m: float):
    """A constructor by its temperature, kept: one program for each m."""
    return functools.partial(iteration.modified_policy_iteration, m)


@pytest.mark.parametrize("m", [1, 4, math.inf])
@property_test
@hypothesis.given(seed=seeds, discount=discounts, scale=scales)
def test_modified_policy_iteration_discounts_errors(
    m: float, seed: int, discount: float, scale: float
):
    process, errors = draw(seed, discount, scale)
    tau = 0.1
    states = run.run(
        mpi(m), process, NUM_ITERATIONS, errors=errors, parameters={"tau": [tau]}
    ).records.state
    loss = np.max(gap(process, states.log_policy[0, 1:], tau), (1, 2))
    optimum = solve.policy_iteration(process, tau=tau, tolerance=1e-12)
    start = np.max(np.abs(optimum.q - states.q[0, 0]))
    bound = bounds.mpi_gap(np.max(np.abs(errors), (1, 2)), start, discount)
    assert np.all(loss <= bound + SLACK)


@property_test
@hypothesis.given(seed=seeds, discount=discounts, lambda_=st.sampled_from([0.01, 0.3, 5.0]))
def test_mirror_descent_policy_iteration_improves_at_its_rate(
    seed: int, discount: float, lambda_: float
):
    process, _ = draw(seed, discount, 0.0)
    process = process._replace(reward=(process.reward + 1) / 2)  # In [0, 1].
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
    # The first bound has no error in it, the second E_1.
    got = bounds.entropy_gap_norm(np.array([1.0, 7.0]), 2, 0.0, 0.5, 0.0, 1.0)
    expected = bounds.entropy_start(2, 2, 0.0, 0.5, 0.0, 1.0) + np.array([0, 4])
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_a_moving_average_has_its_variance():
    errors = np.random.default_rng(0).normal(size=(500, 4_000))
    got = np.var(bounds.moving_average(errors, 0.9)[-1])
    np.testing.assert_allclose(got, 0.1 / 1.9, rtol=0.1)
