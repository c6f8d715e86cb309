"""Tests of theory/mirror.py, iteration.py and scheme.py."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from kullback.core import regularizers
from kullback.theory import iteration, mirror, momentum, run, scheme, solve
from kullback.theory.mdp import MDP

PAIRS = {"lambda_": np.array([0.05, 0.5, 0.3]), "tau": np.array([0.1, 0.01, 0.3])}


def expect(mdps: MDP, v: np.ndarray) -> np.ndarray:
    """Returns P v, [M, S, A], of v [M, S]."""
    index = np.arange(len(v))[:, None, None, None]
    return np.asarray(np.sum(mdps.probabilities * v[index, mdps.successors], -1))


def backup(mdps: MDP, q: np.ndarray, log_pi: np.ndarray, tau: float) -> Any:
    """Computes T^{0,tau}_pi q, from the definition."""
    pi = np.exp(log_pi)
    v = np.sum(pi * q - tau * np.where(pi > 0, pi * np.maximum(log_pi, -1e30), 0), -1)
    return mdps.reward + 0.9 * expect(mdps, v)


def history(make, mdps: MDP, errors: np.ndarray | None = None, **parameters) -> scheme.State:
    """Iterates 0, ..., 60, [(P,) M, 61, S, A]."""
    return run.run(make, mdps, 60, errors=errors, parameters=parameters or None).records.state


@pytest.fixture(scope="module")
def with_tau(garnets: MDP, errors: np.ndarray) -> scheme.State:
    """Returns the run of DA-VI(lambda, tau)."""
    return history(mirror.da_vi, garnets, errors, **PAIRS)


@pytest.fixture(scope="module")
def without_tau(garnets: MDP, errors: np.ndarray) -> scheme.State:
    """Returns the run of DA-VI(0.2, 0)."""
    return history(mirror.da_vi(0.2), garnets, errors)


def test_value_iteration_is_its_definition(garnets: MDP, errors: np.ndarray):
    state = history(iteration.value_iteration(), garnets, errors)
    q = np.zeros((20, 12, 3))
    for k in range(60):
        best = np.argmax(q, -1)
        np.testing.assert_array_equal(np.argmax(state.log_policy[:, k + 1], -1), best)
        q = garnets.reward + 0.9 * expect(garnets, np.max(q, -1)) + errors[:, k]
        np.testing.assert_allclose(state.q[:, k + 1], q, atol=1e-12)


def test_md_vi_is_its_definition(garnets: MDP, errors: np.ndarray):
    state = history(mirror.md_vi, garnets, errors, **PAIRS)
    lambda_, tau = (PAIRS[name][:, None, None, None] for name in ("lambda_", "tau"))
    q, log_pi = state.q, state.log_policy
    for k in (0, 1, 30, 59):
        z = (q[:, :, k] + lambda_ * log_pi[:, :, k]) / (lambda_ + tau)
        expected = z - np.logaddexp.reduce(z, -1, keepdims=True)
        np.testing.assert_allclose(log_pi[:, :, k + 1], expected, atol=1e-9)
        pi = np.exp(expected)
        terms = pi * (q[:, :, k] - lambda_ * (expected - log_pi[:, :, k]) - tau * expected)
        for p in range(3):
            new = garnets.reward + 0.9 * expect(garnets, terms[p].sum(-1)) + errors[:, k]
            np.testing.assert_allclose(q[p, :, k + 1], new, atol=1e-11)


def test_mirror_descent_is_dual_averaging(garnets, errors, with_tau, without_tau):
    for one, other in (
        (history(mirror.md_vi, garnets, errors, **PAIRS), with_tau),
        (history(mirror.md_vi(0.2), garnets, errors), without_tau),
    ):
        np.testing.assert_allclose(one.q, other.q, atol=1e-10)
        np.testing.assert_allclose(np.exp(one.log_policy), np.exp(other.log_policy), atol=1e-10)


@pytest.mark.parametrize("m, regularized", [(3, True), (math.inf, False)])
def test_they_are_the_same_for_any_evaluation(garnets, errors, m: float, regularized: bool):
    md, da = (
        history(make(0.2, m=m, regularized=regularized), garnets, errors)
        for make in (mirror.md_mpi, mirror.da_mpi)
    )
    np.testing.assert_allclose(md.q, da.q, atol=1e-10)


def test_the_average_is_the_papers(with_tau: scheme.State, without_tau: scheme.State):
    mean = np.cumsum(without_tau.q, 1) / np.arange(1, 62)[:, None, None]
    last = jax.tree.map(lambda x: x[:, -1], without_tau)
    steps = last.steps[:, None, None]
    last = last._replace(point=last.point._replace(steps=steps))
    np.testing.assert_allclose(mirror.average(last, 0.2, 0.0), mean[:, 59], atol=1e-12)
    beta = (PAIRS["lambda_"] / (PAIRS["lambda_"] + PAIRS["tau"]))[:, None, None, None]
    h = np.zeros_like(with_tau.q[:, :, 0])
    for k in range(60):  # h_k, from h_{-1} = 0.
        h = beta * h + (1 - beta) * with_tau.q[:, :, k]
    last = jax.tree.map(lambda x: x[:, :, -1], with_tau)
    lambda_, tau = (PAIRS[name][:, None, None, None] for name in ("lambda_", "tau"))
    np.testing.assert_allclose(mirror.average(last, lambda_, tau), h, atol=1e-12)
    np.testing.assert_allclose(
        np.exp(last.log_policy), np.exp(h / tau) / np.exp(h / tau).sum(-1, keepdims=True), atol=1e-9
    )


def test_lemmas_of_kl_alone(garnets: MDP, errors: np.ndarray, without_tau: scheme.State):
    lambda_, entropy = 0.2, math.log(3)
    h = np.cumsum(without_tau.q, 1) / np.arange(1, 62)[:, None, None]  # h_k.
    log_pi, sums = without_tau.log_policy, np.cumsum(errors, 1)
    start = 0.9 * lambda_ * entropy  # gamma lambda P H(pi_0).
    for k in (0, 1, 5, 58):
        left = without_tau.q[:, k + 1] - errors[:, k]
        right = (k + 1) * backup(garnets, h[:, k], log_pi[:, k + 1], lambda_ / (k + 1))
        if k == 0:
            right = right - start
        else:
            right -= k * backup(garnets, h[:, k - 1], log_pi[:, k], lambda_ / k)
        np.testing.assert_allclose(left, right, atol=1e-10)  # Lemma 2.
        # Lemma 3, with -E_{k+1} the sum of the errors.
        right = (k + 1) * backup(garnets, h[:, k], log_pi[:, k + 1], lambda_ / (k + 1))
        right += without_tau.q[:, 0] - start + sums[:, k]
        np.testing.assert_allclose((k + 2) * h[:, k + 1], right, atol=1e-10)


def test_lemmas_of_kl_and_entropy(garnets: MDP, errors: np.ndarray, with_tau: scheme.State):
    for p in range(3):
        lambda_, tau = PAIRS["lambda_"][p], PAIRS["tau"][p]
        beta = lambda_ / (lambda_ + tau)
        q, log_pi = with_tau.q[p], with_tau.log_policy[p]
        h, average = [np.zeros_like(q[:, 0])], np.zeros_like(q[:, 0])
        first = backup(garnets, h[0], log_pi[:, 0], tau) - (1 - beta) * q[:, 0]
        for k in range(60):
            h.append(beta * h[-1] + (1 - beta) * q[:, k])  # h[k + 1] is h_k.
            left = q[:, k + 1] - errors[:, k]
            new = backup(garnets, h[k + 1], log_pi[:, k + 1], tau)
            old = backup(garnets, h[k], log_pi[:, k], tau)
            np.testing.assert_allclose(left, (new - beta * old) / (1 - beta), atol=1e-10)  # 5.
            average = beta * average + (1 - beta) * errors[:, k]
            right = new + average - beta ** (k + 1) * first  # Lemma 6.
            left = beta * h[k + 1] + (1 - beta) * q[:, k + 1]
            np.testing.assert_allclose(left, right, atol=1e-10)


@pytest.mark.slow
def test_limits_of_the_temperatures(garnets: MDP, errors: np.ndarray):
    plain = history(iteration.value_iteration(), garnets, errors).q
    soft = history(iteration.value_iteration(0.1), garnets, errors).q
    speedy = history(momentum.speedy_vi(), garnets, errors).q
    both = {"lambda_": np.array([0.0, 0.0, 1e-9]), "tau": np.array([0.1, 1e-9, 0.0])}
    for make in (mirror.md_vi, mirror.da_vi):
        no_pull, little_entropy, little_pull = history(make, garnets, errors, **both).q
        np.testing.assert_allclose(no_pull, soft, atol=1e-11)
        np.testing.assert_allclose(little_entropy, plain, atol=1e-6)
        # With tau = 0 the limit is not what lambda = 0 gives, which forgets.
        np.testing.assert_allclose(little_pull, speedy, atol=1e-6)
    assert np.max(np.abs(speedy - plain)) > 0.1
    np.testing.assert_array_equal(history(mirror.md_vi(0.0), garnets, errors).q, plain)


@pytest.mark.slow
def test_soft_policy_iteration_reaches_the_soft_optimum(garnets: MDP):
    state = run.run(iteration.policy_iteration(0.1), garnets, 12).final
    optimum = solve.policy_iteration(garnets, tau=0.1, tolerance=1e-11)
    np.testing.assert_allclose(state.q, optimum.q, atol=1e-10)


@pytest.mark.slow
def test_any_divergence_pulls(garnets: MDP, optimum: solve.Solution):
    for divergence in (regularizers.jensen_shannon, regularizers.chi_squared):
        scheme_ = mirror.md_mpi(0.1, m=math.inf, regularized=False, divergence=divergence)
        gaps = run.run(scheme_, garnets, 40, measure=run.policy_gap, context=optimum.v).records
        assert np.all(np.diff(gaps) <= 1e-12)  # Monotone, as for KL.
        assert np.all(gaps[:, -1] < 0.1 * gaps[:, 0])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: mirror.md_mpi(-0.1), "lambda_ must be >= 0 and finite, got -0.1"),
        (lambda: mirror.da_mpi(0.1, -1.0), "tau must be >= 0 and finite, got -1.0"),
        (lambda: mirror.md_mpi(0.1, m=0), "m must be a whole number"),
        (lambda: mirror.md_mpi(0.1, m=1.5), "m must be a whole number"),
        (
            lambda: mirror.da_mpi(0.0),
            "`momentum.speedy_vi`",
        ),
        (
            lambda: mirror.da_mpi(0.1, divergence=regularizers.chi_squared),
            "pass regularized=False",
        ),
        (
            lambda: mirror.da_mpi(0.1, divergence=regularizers.reverse_kl),
            "reverse_kl has no entropy .* dual averaging",
        ),
        (
            lambda: mirror.md_mpi(0.1, 0.1, divergence=regularizers.chi_squared),
            "takes exactly one of lambda_ and tau > 0, got 0.1 and 0.1",
        ),
        (
            lambda: mirror.da_mpi(0.0, regularized=False, divergence=regularizers.chi_squared),
            "needs lambda_ or tau > 0",
        ),
        (lambda: mirror.md_vi(math.inf), "lambda_ must be >= 0 and finite"),
    ],
)
def test_impossible_schemes_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
