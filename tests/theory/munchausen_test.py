"""Tests of theory/munchausen.py and advantage.py."""

import numpy as np
import pytest

from kullback.theory import advantage, iteration, mirror, munchausen, run, scheme, solve
from kullback.theory.mdp import MDP

ALPHA = np.array([0.0, 0.3, 0.5, 0.9, 1.0])
TAU = np.array([0.1, 0.03, 1.0, 0.03, 0.2])


def history(make, mdps: MDP, errors: np.ndarray, **parameters) -> scheme.State:
    return run.run(make, mdps, 60, errors=errors, parameters=parameters or None).records.state


@pytest.fixture(scope="module")
def m_vi(garnets: MDP, errors: np.ndarray) -> scheme.State:
    """Returns the runs of M-VI for every pair, [5, 20, 61, S, A]."""
    return history(munchausen.munchausen_vi, garnets, errors, alpha=ALPHA, tau=TAU)


def test_it_is_mirror_descent_seen_through_a_change_of_variable(garnets, errors, m_vi):
    md_vi = history(mirror.md_vi, garnets, errors, lambda_=ALPHA * TAU, tau=(1 - ALPHA) * TAU)
    alpha, tau = (x[:, None, None, None, None] for x in (ALPHA, TAU))
    np.testing.assert_allclose(munchausen.to_mirror(m_vi, alpha, tau), md_vi.q, atol=1e-10)
    np.testing.assert_allclose(np.exp(m_vi.log_policy), np.exp(md_vi.log_policy), atol=1e-10)
    assert np.max(np.abs(m_vi.q - md_vi.q)) > 0.1  # The change of variable is one.


def test_it_is_the_papers_one_line(garnets: MDP, errors: np.ndarray, m_vi: scheme.State):
    for p in range(5):
        q = m_vi.q[p]
        z = q[:, :-1]
        soft = TAU[p] * np.logaddexp.reduce(z / TAU[p], -1)  # [M, K, S]
        index = np.arange(20)[:, None, None, None]
        next_v = np.moveaxis(soft, 1, -1)[index, garnets.successors]  # [M, S, A, N, K]
        expected = np.moveaxis(np.sum(garnets.probabilities[..., None] * next_v, -2), -1, 1)
        expected = garnets.reward[:, None] + 0.9 * expected + errors
        expected += ALPHA[p] * (z - soft[..., None])
        np.testing.assert_allclose(q[:, 1:], expected, atol=1e-10)


def test_without_the_bonus_it_is_soft_value_iteration(garnets, errors, m_vi):
    soft = history(iteration.value_iteration(0.1), garnets, errors)
    np.testing.assert_allclose(m_vi.q[0], soft.q, atol=1e-11)


def test_advantage_learning_is_its_limit(garnets: MDP, errors: np.ndarray):
    al = history(advantage.advantage_learning, garnets, errors, alpha=[0.5, 0.9])
    limit = history(munchausen.munchausen_vi, garnets, errors, alpha=[0.5, 0.9], tau=[1e-8] * 2)
    np.testing.assert_allclose(limit.q, al.q, atol=1e-5)
    # Its own definition, once.
    index = np.arange(20)[:, None, None, None]
    v = np.max(al.q[1, :, 7], -1)
    expected = garnets.reward + errors[:, 7] - 0.9 * (v[..., None] - al.q[1, :, 7])
    expected += 0.9 * np.sum(garnets.probabilities * v[index, garnets.successors], -1)
    np.testing.assert_allclose(al.q[1, :, 8], expected, atol=1e-12)
    vi = history(iteration.value_iteration(), garnets, errors)
    al = history(advantage.advantage_learning(0.0), garnets, errors)
    np.testing.assert_allclose(al.q, vi.q, atol=1e-13)


@pytest.mark.slow
def test_the_action_gap_widens_by_one_over_one_minus_alpha(garnets: MDP):
    alphas, tau = np.array([0.5, 0.9]), 0.3
    parameters = {"alpha": alphas, "tau": np.full(2, tau)}
    state = run.run(
        munchausen.munchausen_vi, garnets, 2_000, parameters=parameters, measure=run.nothing
    ).final
    for alpha, q in zip(alphas, state.q, strict=True):
        optimum = solve.policy_iteration(garnets, tau=(1 - alpha) * tau, tolerance=1e-12)
        gap, widened = munchausen.action_gap(optimum.q), munchausen.action_gap(q)
        ratio = widened[gap > 1e-3] / gap[gap > 1e-3]
        np.testing.assert_allclose(ratio, munchausen.action_gap_ratio(alpha), rtol=1e-6)
        printed = (1 + alpha) / (1 - alpha)  # What the paper is remembered to say.
        assert np.all(np.abs(ratio - printed) > 0.9)


def test_golden_gap():
    np.testing.assert_array_equal(munchausen.action_gap(np.array([1.0, 3.0, 0.5])), [2, 0, 2.5])
    assert munchausen.action_gap_ratio(0.9) == pytest.approx(10)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: munchausen.munchausen_vi(1.1, 0.1), "alpha must lie"),
        (lambda: munchausen.munchausen_vi(0.9, 0.0), "tau must be > 0"),
        (lambda: advantage.advantage_learning(-0.1), "alpha must lie"),
        (lambda: munchausen.action_gap_ratio(1.0), "no limit at 1"),
    ],
)
def test_impossible_schemes_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
