"""Tests of theory/politex.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from kullback.theory import bounds, mirror, politex, run, solve
from kullback.theory.mdp import MDP


def test_it_is_dual_averaging_without_regularised_evaluation(garnets, errors):
    da = run.run(mirror.da_mpi(0.5, m=3, regularized=False), garnets, 60, errors=errors)
    mine = run.run(politex.politex(2.0, m=3), garnets, 60, errors=errors)
    np.testing.assert_allclose(mine.records.state.q, da.records.state.q, atol=1e-10)


def test_it_is_exponential_weights(garnets: MDP):
    state = run.run(politex.politex(lambda k: 1 / jnp.sqrt(k + 1.0)), garnets, 20).records.state
    for k in range(20):
        z = np.sum(state.q[:, : k + 1], 1) / np.sqrt(k + 1)
        expected = z - np.logaddexp.reduce(z, -1, keepdims=True)
        np.testing.assert_allclose(state.log_policy[:, k + 1], expected, atol=1e-11)
    _, q = solve.policy_values(garnets, state.log_policy[:, -1])
    np.testing.assert_allclose(state.q[:, -1], q, rtol=1e-12)


@pytest.mark.parametrize("scale", [pytest.param(1.0, marks=pytest.mark.slow), 10.0])
def test_its_regret_keeps_its_bound(garnets: MDP, optimum: solve.Solution, scale: float):
    count, r_max = 200, float(np.max(garnets.reward))
    eta = scale * politex.step_size(count, 3, bounds.v_max(r_max, 0.9))

    def parts(mdp: MDP, record: run.Record, v: jnp.ndarray) -> jnp.ndarray:
        return v - solve.policy_values(mdp, record.state.log_policy)[0]

    gaps = run.run(
        politex.politex, garnets, count, parameters={"eta": [eta]}, measure=parts, context=optimum.v
    ).records[0]
    regret = np.max(np.sum(gaps[:, :count], 1))
    bound = bounds.politex_regret(count, 3, r_max, 0.9, eta)
    assert 0 < regret <= bound
    if scale == 1:  # The best step size has the closed form.
        closed = bounds.v_max(r_max, 0.9) / 0.1 * np.sqrt(count * np.log(3) / 2)
        np.testing.assert_allclose(bound, closed, rtol=1e-12)


def test_an_impossible_step_size_is_refused():
    with pytest.raises(ValueError, match="eta must be > 0, got 0"):
        politex.politex(0.0)
