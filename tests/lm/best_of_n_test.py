"""Tests of lm/best_of_n.py."""

import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from kullback.lm import best_of_n

positive = hnp.arrays(np.float64, 5, elements=st.floats(0.05, 1))
some_rewards = hnp.arrays(np.float64, 5, elements=st.integers(0, 3))  # With ties.


@hypothesis.settings(deadline=None)
@hypothesis.given(weights=positive, rewards=some_rewards)
def test_oracle_by_enumeration_of_all_draws(weights: np.ndarray, rewards: np.ndarray):
    p = weights / weights.sum()
    expected = np.zeros(5)
    for draws in itertools.product(range(5), repeat=3):
        rows = best_of_n.choose(rewards[list(draws)], 3)
        expected[draws[rows[0]]] += np.prod(p[list(draws)])
    got = best_of_n.distribution(p, rewards, 3)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert best_of_n.kl(p, rewards, 3) <= best_of_n.kl_bound(3) + 1e-12
    np.testing.assert_allclose(best_of_n.distribution(p, rewards, 1), p)


@hypothesis.settings(deadline=None)
@hypothesis.given(weights=positive, rewards=some_rewards)
def test_the_best_of_two_of_the_best_of_two_is_the_best_of_four(
    weights: np.ndarray, rewards: np.ndarray
):
    p = weights / weights.sum()
    twice = best_of_n.distribution(best_of_n.distribution(p, rewards, 2), rewards, 2)
    np.testing.assert_allclose(twice, best_of_n.distribution(p, rewards, 4), atol=1e-12)


def test_the_bound_is_met_by_a_continuum():
    assert best_of_n.kl_bound(1) == 0
    texts = 20_000
    got = best_of_n.kl(np.full(texts, 1 / texts), np.arange(texts), 4)
    np.testing.assert_allclose(got, np.log(4) - 3 / 4, rtol=1e-3)
    assert best_of_n.kl(np.full(3, 1 / 3), np.zeros(3), 4) == pytest.approx(0, abs=1e-12)


def test_rows_of_the_best():
    np.testing.assert_array_equal(best_of_n.choose(np.array([1, 3, 3, 0, 0, -1]), 3), [1, 3])
    with pytest.raises(ValueError, match="best of 4 needs a multiple of 4 scores"):
        best_of_n.choose(np.array([1, 2, 3]), 4)
    with pytest.raises(ValueError, match="best of N takes N >= 1, got 0"):
        best_of_n.kl_bound(0)
    with pytest.raises(ValueError, match="one reward a probability"):
        best_of_n.distribution(np.array([1.0]), np.array([1, 2]), 2)


def test_a_reward_that_is_no_number_is_never_the_best():
    with pytest.raises(ValueError, match="got nan for text 1 of 3"):
        best_of_n.choose(np.array([1, np.nan, 3]), 3)
    np.testing.assert_array_equal(best_of_n.choose(np.array([-np.inf, 0, np.inf, 1]), 2), [1, 2])
    with pytest.raises(ValueError, match="got nan for text 0 of 2"):
        best_of_n.distribution(np.array([0.5, 0.5]), np.array([np.nan, 1]), 2)


@pytest.mark.parametrize("p", [[2, 8], [-0.5, 1.5], [0.5, 0.4], [np.nan, 1]])
def test_what_is_no_distribution_is_refused(p: list[float]):
    with pytest.raises(ValueError, match="must be >= 0 and sum to 1"):
        best_of_n.distribution(np.array(p), np.array([1, 2]), 2)


def test_probabilities_in_float32_are_a_distribution():
    p = np.random.default_rng(0).dirichlet(np.ones(100_000)).astype(np.float32)
    got = best_of_n.distribution(p, np.arange(len(p)), 2)
    np.testing.assert_allclose(got.sum(), 1, atol=1e-4)


@hypothesis.settings(deadline=None)
@hypothesis.given(weights=positive, rewards=some_rewards, n=st.integers(2, 6))
def test_by_the_log_quantile_as_a_reward_the_best_of_n_is_the_regularised_optimum(
    weights: np.ndarray, rewards: np.ndarray, n: int
):
    """It sums to 1 without a normaliser; the correction beyond log F is at most log N / (N - 1)."""
    p = weights / weights.sum()
    quantiles = best_of_n.log_quantile(p, rewards, n)
    optimum = p * np.exp((n - 1) * quantiles)
    assert abs(optimum.sum() - 1) < 1e-12
    np.testing.assert_allclose(optimum, best_of_n.distribution(p, rewards, n), atol=1e-12)
    at_most = np.array([p[rewards <= r].sum() for r in rewards])
    correction = quantiles - np.log(at_most)
    assert np.all((correction > -1e-12) & (correction < np.log(n) / (n - 1) + 1e-12))
    with pytest.raises(ValueError, match="N >= 2, got 1"):
        best_of_n.log_quantile(p, rewards, 1)
