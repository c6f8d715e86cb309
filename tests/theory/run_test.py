"""Tests of theory/run.py and of the registry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback import theory
from kullback.core import regularizers, types
from kullback.theory import (
    conservative,
    iteration,
    mirror,
    momentum,
    munchausen,
    politex,
    run,
    solve,
)
from kullback.theory.mdp import MDP

EVERY = {name: entry.make(**entry.defaults) for name, entry in theory.SCHEMES.items()} | {
    f"cpi-{name}": conservative.cpi(rate) for name, rate in conservative.RATES.items()
}
# What is left of the gap: one rate is safe but slow, and entropy costs something.
LOOSE = {"cpi-optimal": 1.0, "soft-vi": 0.2, "soft-pi": 0.2, "soft-mpi": 0.2}


# Others are of a constructor of these with other arguments, or run below.
SHOWN = {"vi", "soft-vi", "cpi-optimal", "cpi-adaptive", "md-mpi-1", "md-vi", "da-vi", "politex"}
SHOWN |= {"m-vi-f", "speedy"}


@pytest.mark.parametrize(
    "name",
    [n if n in SHOWN else pytest.param(n, marks=pytest.mark.slow) for n in theory.SCHEMES],
)
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


def sampled_and_more(key: jax.Array, mdp: MDP) -> tuple[MDP, types.Array]:
    """Makes two successors, and errors that leave no two actions of equal value."""
    sample_key, key = jax.random.split(key)
    return mdp.sample(sample_key, 2), 1e-3 * jax.random.normal(key, mdp.reward.shape)


# Some kinds of steps are always looked at; the rest takes minutes to compile.
QUICK = {"m-vi", "movi", "al"}
SOME = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in EVERY]


@pytest.mark.parametrize("name", SOME)
def test_recorded_errors_make_the_same_run(garnets: MDP, name: str):
    """What sampling did, as errors, does it again; so it does if one steps oneself."""
    few, count = jax.tree.map(lambda x: x[:3], garnets), 8
    scheme = EVERY[name]
    first = run.run(scheme, few, count, noise=sampled_and_more, key=jax.random.key(1)).records
    errors = first.error[:, 1:]
    assert np.std(errors) > 0.01
    again = run.run(scheme, few, count, errors=errors).records
    np.testing.assert_allclose(again.state.q, first.state.q, atol=1e-10)
    policies = np.exp(first.state.log_policy)
    np.testing.assert_allclose(np.exp(again.state.log_policy), policies, atol=1e-10)
    # By hand, in a process whose default is float32.
    one = jax.tree.map(lambda x: x[0], few)
    state = scheme.init(one)
    for k in range(3):
        state = scheme.step(one, state, errors[0, k])
    assert isinstance(state.q, np.ndarray) and state.q.dtype == np.float64
    np.testing.assert_allclose(state.q, first.state.q[0, 3], atol=1e-12)
    np.testing.assert_allclose(np.exp(state.log_policy), policies[0, 3], atol=1e-12)


@pytest.mark.parametrize("name", ["adaptive", pytest.param("line-search", marks=pytest.mark.slow)])
def test_errors_are_those_of_the_policy_that_was_evaluated(garnets: MDP, name: str):
    scheme = EVERY["cpi-" + name]
    seen = run.run(scheme, garnets, 5, noise=run.sampled(), key=jax.random.key(2)).records
    for k in (1, 5):
        _, exact = solve.policy_values(garnets, seen.state.log_policy[:, k])
        np.testing.assert_allclose(seen.state.q[:, k] - exact, seen.error[:, k], atol=1e-11)
    assert np.std(seen.error[:, 1:]) > 0.01


@pytest.mark.slow
def test_clipping_is_part_of_the_error(garnets: MDP):
    scheme = mirror.da_mpi(0.1, 0.05, m=3)
    first = run.run(scheme, garnets, 20, noise=run.sampled(2), key=jax.random.key(1), clip=True)
    errors = first.records.error[:, 1:]
    assert np.std(errors) > 0.01
    again = run.run(scheme, garnets, 20, errors=errors)
    np.testing.assert_allclose(again.records.state.q, first.records.state.q, atol=1e-10)
    v_max = np.max(garnets.reward, (1, 2)) / 0.1
    assert np.all(np.abs(first.records.state.q) <= v_max[:, None, None, None] + 1e-12)


@pytest.mark.parametrize(
    "make, parameters, message",
    [
        (mirror.md_vi, {"lambda_": [0.1, -0.1], "tau": [0.0, 0.1]}, "setting 1 .* lambda_ must be"),
        (mirror.md_vi, {"lambda_": [np.nan], "tau": [0.1]}, "lambda_ must be >= 0 and finite"),
        (mirror.da_vi, {"lambda_": [0.0], "tau": [0.0]}, "`momentum.speedy_vi`"),
        (
            conservative.cpi,
            {"rate": [0.5, 1.5]},
            r"setting 1 .* rate must lie in \[0, 1\], got 1.5",
        ),
        (munchausen.munchausen_vi, {"alpha": [1.5], "tau": [0.1]}, "alpha must lie"),
        (munchausen.munchausen_vi, {"alpha": [0.5], "tau": [0.0]}, "tau must be > 0"),
        (politex.politex, {"eta": [0.0]}, "eta must be > 0"),
        (
            functools.partial(iteration.value_iteration, divergence=regularizers.chi_squared),
            {"tau": [0.0]},
            "exactly one of lambda_ and tau > 0",
        ),
        (
            functools.partial(mirror.md_mpi, divergence=regularizers.chi_squared),
            {"lambda_": [0.1], "tau": [0.1]},
            "exactly one of lambda_ and tau > 0",
        ),
    ],
)
def test_impossible_parameters_are_refused(garnets: MDP, make, parameters: dict, message: str):
    with pytest.raises(ValueError, match=message):
        run.run(make, garnets, 2, parameters=parameters)


def test_a_temperature_of_zero_is_the_number(garnets: MDP):
    """In an array too, where others are positive."""
    both = run.run(mirror.md_vi, garnets, 9, parameters={"lambda_": [0.0, 0.1], "tau": [0.0, 0.1]})
    plain = run.run(iteration.value_iteration(), garnets, 9).final
    np.testing.assert_allclose(both.final.q[0], plain.q, atol=1e-12)
    np.testing.assert_array_equal(both.final.log_policy[0], plain.log_policy)
    fading = run.run(
        functools.partial(mirror.da_mpi, regularized=False),
        garnets,
        9,
        parameters={"lambda_": [0.0, 0.1], "tau": [0.0, 0.1]},
    )
    movi = run.run(momentum.momentum_vi(), garnets, 9).final
    np.testing.assert_allclose(fading.final.q[0], movi.q, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, name",
    [
        (iteration.value_iteration, "tau"),
        pytest.param(mirror.md_mpi, "lambda_", marks=pytest.mark.slow),
    ],
)
def test_the_one_temperature_of_another_divergence_may_be_many(garnets: MDP, make, name: str):
    make_chi_squared = functools.partial(make, divergence=regularizers.chi_squared)
    many = run.run(make_chi_squared, garnets, 9, parameters={name: [0.05, 0.4]}).final
    for p, value in enumerate((0.05, 0.4)):
        one = run.run(make_chi_squared(**{name: value}), garnets, 9).final
        np.testing.assert_allclose(many.q[p], one.q, atol=1e-12)
    assert np.max(np.abs(many.q[0] - many.q[1])) > 0.01


@pytest.mark.slow
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
        ({"noise": run.sampled(), "key": np.zeros(2, np.uint32)}, "key must be typed, got uint32"),
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
