"""Tests of theory/momentum.py."""

import jax
import numpy as np
import pytest

from kullback.theory import garnet, iteration, mirror, momentum, run, solve
from kullback.theory.mdp import MDP


def test_it_is_its_definition(garnets: MDP, errors: np.ndarray):
    state = run.run(momentum.momentum_vi(), garnets, 60, errors=errors).records.state
    means = np.cumsum(state.q, 1) / np.arange(1, 62)[:, None, None]
    np.testing.assert_allclose(state.point.memory, means, atol=1e-12)
    actions = np.argmax(state.log_policy, -1)
    for k in range(60):
        # Ties are broken by rounding; the policy is best for the mean.
        chosen = np.take_along_axis(means[:, k], actions[:, k + 1, :, None], -1)[..., 0]
        np.testing.assert_allclose(chosen, np.max(means[:, k], -1), atol=1e-12)
        v = np.take_along_axis(state.q[:, k], actions[:, k + 1, :, None], -1)[..., 0]
        index = np.arange(20)[:, None, None, None]
        expected = 0.9 * np.sum(garnets.probabilities * v[index, garnets.successors], -1)
        expected += garnets.reward + errors[:, k]
        np.testing.assert_allclose(state.q[:, k + 1], expected, atol=1e-12)


def test_it_is_a_limit_of_dual_averaging(garnets: MDP, errors: np.ndarray):
    movi = run.run(momentum.momentum_vi(), garnets, 60, errors=errors).records.state
    greedy = run.run(mirror.da_mpi(0.0, regularized=False), garnets, 60, errors=errors)
    np.testing.assert_allclose(movi.q, greedy.records.state.q, atol=1e-10)


def test_without_momentum_it_is_value_iteration(garnets: MDP, errors: np.ndarray):
    movi = run.run(momentum.momentum_vi(0.0), garnets, 60, errors=errors).records.state
    vi = run.run(iteration.value_iteration(), garnets, 60, errors=errors).records.state
    np.testing.assert_allclose(movi.q, vi.q, atol=1e-13)
    fixed = run.run(momentum.momentum_vi(0.8), garnets, 60, errors=errors).records.state
    h = fixed.point.memory
    np.testing.assert_allclose(h[:, 1:], 0.8 * h[:, :-1] + 0.2 * fixed.q[:, 1:], atol=1e-13)


@pytest.mark.slow
def test_it_averages_the_noise_of_sampling():
    """Where value iteration does not converge: the experiment of the papers."""
    mdps = garnet.make(jax.random.split(jax.random.key(0), 10))
    optimum = solve.policy_iteration(mdps)
    error = {}
    for name, scheme in (("movi", momentum.momentum_vi()), ("vi", iteration.value_iteration())):
        final = run.run(
            scheme, mdps, 800, noise=run.sampled(), key=jax.random.key(1), measure=run.nothing
        ).final
        _, q = solve.policy_values(mdps, final.log_policy)
        norm = np.sum(np.abs(optimum.q), (1, 2))
        error[name] = np.mean(np.sum(np.abs(optimum.q - q), (1, 2)) / norm)
    assert error["movi"] < 0.05 and error["vi"] > 0.15


def test_an_impossible_weight_is_refused():
    with pytest.raises(ValueError, match=r"b must lie in \[0, 1\), got 1"):
        momentum.momentum_vi(1.0)
