"""Tests of theory/munchausen_f.py."""

from typing import Any, cast

import jax
import numpy as np
import pytest

from kullback.core import regularizers
from kullback.theory import advantage, iteration, munchausen, munchausen_f, run, scheme, solve
from kullback.theory.mdp import MDP

ENTMAX, SPARSEMAX = regularizers.alpha(1.5), regularizers.chi_squared
OUTSIDE: tuple[munchausen_f.Outside, ...] = ("threshold", "slope")


def history(make: scheme.Scheme, mdps: MDP, errors: np.ndarray | None, steps: int = 60) -> Any:
    return run.run(make, mdps, steps, errors=errors).records.state


def expect(mdps: MDP, v: np.ndarray) -> np.ndarray:
    """Returns P v, [M, S, A], of v [M, S]."""
    index = np.arange(len(v))[:, None, None, None]
    return np.asarray(np.sum(mdps.probabilities * v[index, mdps.successors], -1))


def projection(z: Any) -> np.ndarray:
    """Projects on the simplex, [..., A], by sorting: sparsemax."""
    down = -np.sort(-z, -1)
    over = (np.cumsum(down, -1) - 1) / np.arange(1, z.shape[-1] + 1)
    count = np.sum(down > over, -1, keepdims=True)
    return np.maximum(z - np.take_along_axis(over, count - 1, -1), 0)


@pytest.mark.parametrize(
    ("name", "alpha", "tau", "outside"),
    [
        ("alpha-1.5", 0.9, 0.3, "threshold"),
        ("chi_squared", 1.0, 0.2, "slope"),
        pytest.param("alpha-1.5", 0.9, 0.3, "slope", marks=pytest.mark.slow),
        pytest.param("chi_squared", 1.0, 0.2, "threshold", marks=pytest.mark.slow),
        pytest.param("hellinger", 0.5, 0.1, "slope", marks=pytest.mark.slow),
        pytest.param("kl", 0.9, 0.1, "threshold", marks=pytest.mark.slow),
    ],
)
def test_it_is_mirror_descent_seen_through_a_change_of_variable(
    garnets: MDP, errors: np.ndarray, name: str, alpha: float, tau: float, outside: Any
):
    f = regularizers.named(name)
    ours = history(munchausen_f.munchausen_f_vi(alpha, tau, f, outside=outside), garnets, errors)
    twin = history(munchausen_f.mirror_f_vi(alpha, tau, f, outside=outside), garnets, errors)
    np.testing.assert_allclose(munchausen_f.to_mirror(ours, alpha), twin.q, atol=1e-10)
    np.testing.assert_allclose(np.exp(ours.log_policy), np.exp(twin.log_policy), atol=1e-9)
    assert np.max(np.abs(ours.q - twin.q)) > 0.1  # The change of variable is one.
    if f.is_sparse:
        assert np.mean(np.isneginf(ours.log_policy)) > 0.1


@pytest.mark.parametrize("outside", OUTSIDE)
def test_of_chi_squared_it_is_projected_gradient_ascent(
    garnets: MDP, errors: np.ndarray, outside: Any
):
    # Omega = (|pi|^2 - 1) / 2 and D = |pi - pi_k|^2 / 2: the greedy step projects q' / tau +
    # alpha pi_k, or with what dual averaging remembers in the place of pi_k.
    alpha, tau = 0.8, 0.4
    make = munchausen_f.munchausen_f_vi(alpha, tau, SPARSEMAX, outside=outside)
    mirrored = munchausen_f.to_mirror(history(make, garnets, errors), alpha)
    q, pi = np.zeros((20, 12, 3)), np.full((20, 12, 3), 1 / 3)
    memory = pi
    for k in range(60):
        before, (pi, memory) = (pi, memory), (projection(x := q / tau + alpha * memory), x)
        grown = (np.sum(pi**2, -1) - 1) / 2
        pull = grown - (np.sum(before[0] ** 2, -1) - 1) / 2
        pull = pull - np.sum(before[1] * (pi - before[0]), -1)
        value = np.sum(pi * q, -1) - alpha * tau * pull - (1 - alpha) * tau * grown
        q = garnets.reward + 0.9 * expect(garnets, value) + errors[:, k]
        np.testing.assert_allclose(mirrored[:, k + 1], q, atol=1e-10)
        memory = pi if outside == "slope" else memory


@pytest.mark.parametrize("name", ["kl", "alpha-1.5", "chi_squared", "gan", "alpha-0.5"])
def test_the_bonus_is_minus_bregmans_divergence_from_the_action(name: str):
    f, tau = regularizers.named(name), 0.2
    mdp = MDP(
        np.zeros((5, 4, 1), int),
        np.ones((5, 4, 1)),
        np.random.default_rng(0).normal(size=(5, 4)),
        np.array(0.9),
        np.full(5, 0.2),
    )
    for outside in OUTSIDE:
        make = munchausen_f.munchausen_f_vi(0.9, tau, f, outside=outside)
        state = history(make, mdp, None, 2)
        q, pi = state.q[1], np.exp(state.log_policy[2])
        with jax.enable_x64(True):
            slope = np.asarray(f.derivative(np.maximum(pi, 1e-300)))
            values = np.asarray(f.term(state.log_policy[2], np.zeros(())))
        slope = np.where(pi > 0, slope, max(f.derivative_at_zero, -1e300))
        if outside == "threshold":
            best = np.argmax(pi, -1)[:, None]
            level = np.take_along_axis(slope - q / tau, best, -1)
            slope = q / tau + level  # Below f'(0) outside the support, and else f'(pi).
        omega = values.sum(-1, keepdims=True) - 3 * f.at_zero
        mean = np.sum(np.where(pi > 0, pi * slope, 0), -1, keepdims=True)
        expected = -tau * (0 - omega - (slope - mean))  # Omega(e_a) = 0.
        np.testing.assert_allclose(state.point.memory[2], expected, atol=1e-10)
        assert np.all(expected <= 1e-15)


def test_of_kl_it_is_munchausen_value_iteration(garnets: MDP, errors: np.ndarray):
    pairs = {"alpha": np.array([0.0, 0.5, 0.9, 1.0]), "tau": np.array([0.1, 0.03, 0.03, 0.2])}
    ours, papers = (
        run.run(make, garnets, 60, errors=errors, parameters=pairs).records.state
        for make in (munchausen_f.munchausen_f_vi, munchausen.munchausen_vi)
    )
    np.testing.assert_allclose(ours.q, papers.q, atol=1e-11)
    np.testing.assert_allclose(
        ours.point.memory, pairs["tau"][:, None, None, None, None] * ours.log_policy, atol=1e-11
    )


@pytest.mark.slow
def test_without_the_bonus_it_is_value_iteration_regularised_by_f(garnets, errors):
    plain = history(iteration.value_iteration(0.1, divergence=ENTMAX), garnets, errors)
    for outside in OUTSIDE:
        make = munchausen_f.munchausen_f_vi(0.0, 0.1, ENTMAX, outside=outside)
        np.testing.assert_allclose(history(make, garnets, errors).q, plain.q, atol=1e-11)


@pytest.mark.slow
def test_as_tau_vanishes_one_choice_is_advantage_learning_the_other_value_iteration(
    garnets, errors
):
    al = history(advantage.advantage_learning(0.9), garnets, errors)
    vi = history(iteration.value_iteration(), garnets, errors)
    for outside, limit in zip(OUTSIDE, (al, vi), strict=True):
        make = munchausen_f.munchausen_f_vi(0.9, 1e-8, ENTMAX, outside=outside)
        np.testing.assert_allclose(history(make, garnets, errors).q, limit.q, atol=1e-5)
    assert np.max(np.abs(al.q - vi.q)) > 1


@pytest.mark.parametrize("alpha", [pytest.param(0.7, marks=pytest.mark.slow), 1.0])
def test_averages_are_value_iteration_with_averaged_errors(
    garnets: MDP, errors: np.ndarray, alpha: float
):
    tau = 0.3
    make = munchausen_f.munchausen_f_vi(alpha, tau, ENTMAX)
    q = munchausen_f.to_mirror(history(make, garnets, errors), alpha)
    z, means = [q[:, 0]], [errors[:, 0]]  # h_k is (1 - alpha) z_k.
    for k in range(1, 60):
        z.append(alpha * z[-1] + q[:, k])
        means.append(alpha * means[-1] + errors[:, k])
    with jax.enable_x64(True):
        v = np.asarray(regularizers.greedy(np.array(z), np.array(z), 0.0, tau, ENTMAX)[1])
    most = tau * munchausen_f.max_entropy(3, ENTMAX)
    for k in range(60):
        expected = np.sum(alpha ** np.arange(k + 1)) * garnets.reward + means[k]
        expected = expected + 0.9 * expect(garnets, v[k] - alpha ** (k + 1) * most)
        np.testing.assert_allclose(alpha * z[k] + q[:, k + 1], expected, atol=1e-10)


@pytest.mark.slow
def test_the_gap_widens_outside_the_support_too_unless_it_is_floored(garnets: MDP):
    alpha, tau = 0.9, 0.3
    optimum = solve.policy_iteration(
        garnets, tau=(1 - alpha) * tau, divergence=ENTMAX, tolerance=1e-12
    )
    gap, is_out = munchausen.action_gap(optimum.q), np.isneginf(optimum.log_policy)
    ratios = {}
    for outside in OUTSIDE:
        make = munchausen_f.munchausen_f_vi(alpha, tau, ENTMAX, outside=outside)
        q = run.run(make, garnets, 1_000, measure=run.nothing).final.q
        ratios[outside] = munchausen.action_gap(q) / np.where(gap > 1e-3, gap, np.nan)
    is_in = ~is_out & (gap > 1e-3)
    assert np.sum(is_out) > 100 and np.sum(is_in) > 20
    np.testing.assert_allclose(ratios["threshold"][gap > 1e-3], 10, rtol=1e-6)
    np.testing.assert_allclose(ratios["slope"][is_in], 10, rtol=1e-6)
    assert np.all(ratios["slope"][is_out] < 10 - 1e-6)


@pytest.mark.slow
def test_only_the_threshold_averages_errors(garnets: MDP, optimum: solve.Solution):
    few, steps, tau = jax.tree.map(lambda x: x[:4], garnets), 400, 0.1
    errors = 0.5 * np.random.default_rng(5).normal(size=(4, steps, 12, 3))
    gaps = {}
    for outside in OUTSIDE:
        make = munchausen_f.munchausen_f_vi(1.0, tau, SPARSEMAX, outside=outside)
        state = history(make, few, errors, steps)
        q = [solve.policy_values(few, state.log_policy[:, k])[1] for k in (100, 200, 300, 350, 400)]
        gaps[outside] = np.array([np.max(np.abs(optimum.q[:4] - x), (-2, -1)) for x in q])
        if outside == "threshold":
            q_max = np.max(np.abs(munchausen_f.to_mirror(state, 1.0)))
            mean = np.cumsum(errors, 1) / np.arange(1, steps + 1)[:, None, None]
            entropy = munchausen_f.max_entropy(3, SPARSEMAX)
            for i in range(4):
                norms = np.max(np.abs(mean[i]), (-2, -1))
                bound = munchausen_f.average_gap_norm(norms, float(q_max), 0.9, tau, entropy)
                assert np.all(gaps[outside][:, i] <= bound[[99, 199, 299, 349, 399]])
    assert np.mean(gaps["threshold"][2:]) < 0.3 * np.mean(gaps["slope"][2:])


def test_golden_entropies():
    assert munchausen_f.max_entropy(5) == pytest.approx(np.log(5))
    assert munchausen_f.max_entropy(5, SPARSEMAX) == pytest.approx(0.4)
    # 2 / 0.1 (0.5 + (3 + 0.9 * 0.1 * 0.4) / 2) for k = 2.
    bound = munchausen_f.average_gap_norm(np.array([1.0, 0.5]), 3.0, 0.9, 0.1, 0.4)
    np.testing.assert_allclose(bound[1], 20 * (0.5 + 1.518))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: munchausen_f.munchausen_f_vi(1.1, 0.1), "alpha must lie"),
        (lambda: munchausen_f.munchausen_f_vi(0.9, 0.0, ENTMAX), "tau must be > 0"),
        (lambda: munchausen_f.mirror_f_vi(0.9, 0.1, regularizers.reverse_kl), "has no entropy"),
        (lambda: munchausen_f.mirror_f_vi(0.9, 0.1, outside=cast(Any, "in")), "outside must be"),
    ],
)
def test_impossible_schemes_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
