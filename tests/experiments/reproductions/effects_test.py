"""Tests of experiments/reproductions/effects.py, against SciPy, algebra and simulation."""

from typing import Any

import numpy as np
import pytest
import scipy.stats

from kullback.experiments import statistics
from kullback.experiments.reproductions import effects


def test_a_mean_is_students():
    x = np.random.default_rng(0).normal(size=7)
    effect = effects.mean_of(x)
    expected = scipy.stats.ttest_1samp(x, 0).confidence_interval(0.9)
    np.testing.assert_allclose(effect.interval(0.9)[1:], expected)
    np.testing.assert_allclose(effect.interval(), statistics.t_interval(x))
    assert effect.test == "t"
    assert effects.mean_of(x, "the start").test == "t of pairs, which share the start"


def test_a_difference_is_welchs():
    rng = np.random.default_rng(1)
    x, y = rng.normal(1, 1, 4), rng.normal(0, 5, 9)
    effect = effects.difference(x, y)
    test: Any = scipy.stats.ttest_ind(x, y, equal_var=False)
    np.testing.assert_allclose(effect.interval()[1:], test.confidence_interval(0.95))
    np.testing.assert_allclose(effect.freedom, test.df)
    assert effect.num_seeds == 4
    assert effects.difference([2.0, 2.0], [1.0, 1.0]).interval() == (1, 1, 1)


def test_a_slope_is_that_of_least_squares():
    rng = np.random.default_rng(2)
    x, samples = [0.0, 1.0, 3.0], [rng.normal(2 * at, 1, n) for at, n in ((0, 3), (1, 4), (3, 5))]
    design = np.column_stack([np.ones(12), np.repeat(x, [3, 4, 5])])
    y = np.concatenate(samples)
    beta, [residual], *_ = np.linalg.lstsq(design, y)
    error = np.sqrt(residual / 10 * np.linalg.inv(design.T @ design)[1, 1])
    effect = effects.slope(x, samples)
    np.testing.assert_allclose(effect[:3], [beta[1], error, 10])
    assert effect.num_seeds == 3
    np.testing.assert_allclose(effects.slopes([0, 1, 2], np.array([[0, 2, 4], [1, 1, 1]])), [2, 0])


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_smallest_effect_is_seen_four_times_in_five(count: int):
    # Of a standard deviation 1 the error is 1 / sqrt(count), on average over what was observed.
    shift = effects.Effect(0.0, 1 / np.sqrt(count), count - 1, count, "").smallest()
    x = np.random.default_rng(3).normal(shift, 1, (20_000, count))
    least = scipy.stats.ttest_1samp(x, 0, axis=1).confidence_interval(0.95).low
    assert np.mean(least > 0) == pytest.approx(0.8, abs=0.01)
