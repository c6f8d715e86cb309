"""Tests of theory/run.py and of the registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback import theory
from kullback.theory import iteration, mirror, run, solve
from kullback.theory.mdp import MDP

# What is left of the gap: one rate is safe but slow, and entropy costs something.
LOOSE = {"cpi-optimal": 1.0, "soft-vi": 0.2, "soft-pi": 0.2, "soft-mpi": 0.2}


@pytest.mark.parametrize("name", list(theory.SCHEMES))
def test_every_scheme_gets_better(garnets: MDP, optimum: solve.Solution, name: str):
    few = jax.tree.map(lambda x: x[:4], garnets)
    entry = theory.SCHEMES[name]
    state = run.run(entry.make(**entry.defaults), few, 120, measure=run.nothing).final
    np.testing.assert_allclose(np.sum(np.exp(state.log_policy), -1), 1, rtol=1e-10)
    np.testing.assert_array_equal(state.steps, 120)
    v, _ = solve.policy_values(few, state.log_policy)
    start, _ = solve.policy_values(few, np.full((4, 12, 3), -np.log(3)))
    gap, first = (np.max(optimum.v[:4] - x, -1) for x in (v, start))
    assert np.all(gap < LOOSE.get(name, 0.15) * first)


def test_axes_are_parameters_processes_seeds_and_iterations(garnets: MDP):
    few = jax.tree.map(lambda x: x[:3], garnets)
    keys = jax.random.split(jax.random.key(0), 2)
    taus = {"lambda_": np.array([0.1, 0.2, 0.3, 0.4]), "tau": np.full(4, 0.1)}
    noise = run.gaussian(0.1)
    all_ = run.run(mirror.md_vi, few, 10, parameters=taus, noise=noise, key=keys)
    assert all_.records.state.q.shape == (4, 3, 2, 11, 12, 3)
    assert all_.final.q.shape == (4, 3, 2, 12, 3) and all_.final.q.dtype == np.float64
    # One of them alone, from its own key.
    key = jax.random.fold_in(keys[1], 2)
    one = run.run(
        mirror.md_vi(0.3, 0.1), jax.tree.map(lambda x: x[2], few), 10, noise=noise, key=key
    )
    np.testing.assert_allclose(one.records.state.q, all_.records.state.q[2, 2, 1], atol=1e-12)
    np.testing.assert_allclose(one.records.error, all_.records.error[2, 2, 1], atol=1e-12)
    assert np.std(all_.records.error[:, :, :, 1:]) == pytest.approx(0.1, rel=0.1)
    assert np.all(all_.records.error[:, :, :, 0] == 0)


def test_recorded_errors_make_the_same_run(garnets: MDP):
    """What sampling did, as errors, does it again."""
    scheme = mirror.da_mpi(0.1, 0.05, m=3)
    first = run.run(scheme, garnets, 20, noise=run.sampled(2), key=jax.random.key(1), clip=True)
    errors = first.records.error[:, 1:]
    assert np.std(errors) > 0.01
    again = run.run(scheme, garnets, 20, errors=errors)
    np.testing.assert_allclose(again.records.state.q, first.records.state.q, atol=1e-10)
    v_max = np.max(garnets.reward, (1, 2)) / 0.1
    assert np.all(np.abs(first.records.state.q) <= v_max[:, None, None, None] + 1e-12)


def test_sampled_evaluation_is_right_on_average(garnets: MDP):
    one = jax.tree.map(lambda x: x[0], garnets)
    state = run.run(mirror.md_vi(0.1, 0.1), one, 30).final
    keys = jax.random.split(jax.random.key(0), 2_000)
    records = run.run(
        mirror.md_vi(0.1, 0.1), one, 1, noise=run.sampled(), key=keys, start=state
    ).records
    error = records.error[:, 1]  # [R, S, A]
    standard = np.std(error, 0) / np.sqrt(2_000)
    assert np.all(np.abs(np.mean(error, 0)) <= 5 * standard + 1e-12) and np.max(standard) > 1e-3


def four_measures(mdp: MDP, record: run.Record, context) -> tuple:
    v, q = context
    return (
        record.state,
        run.policy_gap(mdp, record, v),
        run.policy_error(mdp, record, q),
        run.value_error(mdp, record, q),
    )


def test_measures_are_of_every_iterate(garnets: MDP, optimum: solve.Solution):
    context = optimum.v, optimum.q
    seen = run.run(
        iteration.value_iteration(), garnets, 15, measure=four_measures, context=context
    ).records
    states, gaps, errors, values = seen
    for k in (0, 1, 15):
        v, q = solve.policy_values(garnets, states.log_policy[:, k])
        np.testing.assert_allclose(gaps[:, k], np.max(optimum.v - v, -1), atol=1e-11)
        expected = np.sum(np.abs(optimum.q - q), (1, 2)) / np.sum(np.abs(optimum.q), (1, 2))
        np.testing.assert_allclose(errors[:, k], expected, atol=1e-11)
        expected = np.max(np.abs(optimum.q - states.q[:, k]), (1, 2))
        np.testing.assert_allclose(values[:, k], expected, atol=1e-11)


def test_a_run_leaves_the_default_precision_alone(garnets: MDP):
    run.run(iteration.value_iteration(), garnets, 1)
    assert jnp.zeros(1).dtype == jnp.float32 and jnp.arange(2.0).dtype == jnp.float32


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_iterations": 0}, "num_iterations must be >= 1, got 0"),
        ({"noise": run.sampled()}, "noise and key go together"),
        ({"errors": np.zeros((2, 12, 3))}, r"errors must have shape \(20, 2, 12, 3\)"),
        (
            {
                "errors": np.zeros((20, 2, 12, 3)),
                "noise": run.sampled(),
                "key": jax.random.key(0),
            },
            "not both",
        ),
        ({"parameters": {"tau": np.ones(2), "divergence": np.ones(3)}}, "of one length"),
    ],
)
def test_impossible_arguments_are_refused(garnets: MDP, arguments: dict, message: str):
    arguments = {"num_iterations": 2} | arguments
    with pytest.raises(ValueError, match=message):
        run.run(iteration.value_iteration(), garnets, **arguments)


def test_impossible_noise_is_refused():
    with pytest.raises(ValueError, match="num_samples"):
        run.sampled(0)
    with pytest.raises(ValueError, match="scale"):
        run.gaussian(-1.0)
