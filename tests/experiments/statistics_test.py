"""Tests of experiments/statistics.py against definitions written out."""

import itertools
import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from kullback.experiments import statistics

QUICK = 200  # Resamples, where the interval itself is not looked at.
scores = hnp.arrays(np.float64, (3, 4), elements=st.floats(-50, 50, width=32))  # [M, N]
settings = hypothesis.settings(deadline=None)


def test_a_t_interval_is_students():
    # Of 1, 2, 3: mean 2, standard error 1 / sqrt(3), t_{0.975, 2} = 4.302653.
    interval = statistics.t_interval([1.0, 2.0, 3.0])
    np.testing.assert_allclose(interval, (2.0, 2 - 2.484138, 2 + 2.484138), rtol=1e-6)
    assert not np.isfinite(statistics.t_interval([1.0]).low)
    assert str(statistics.t_interval([1.0])) == "1 (no interval of one)"
    assert str(statistics.t_interval([1.0, np.nan])) == "nan [nan, nan]"


def test_a_ratio_of_sums_has_an_interval():
    # (1 + 5) nats of (1 + 3) tokens.
    interval = statistics.ratio(np.array([1.0, 5.0]), np.array([1, 3]))
    assert interval.mean == 1.5 and interval.low == 1.0 and interval.high == pytest.approx(5 / 3)
    assert interval == statistics.ratio(np.array([1.0, 5.0]), np.array([1, 3]))
    known = statistics.ratio(np.array([1.0, math.nan, 5.0]), np.array([1, 7, 3]))
    assert known == interval
    assert statistics.ratio(np.ones(5)) == (1.0, 1.0, 1.0)
    assert statistics.ratio(np.ones(1))[0] == 1.0
    assert math.isnan(statistics.ratio(np.array([math.nan])).mean)
    assert statistics.ratio(np.array([1.0, math.inf])).mean == math.inf


def test_the_interval_of_a_ratio_is_that_of_the_mean_of_many():
    values = np.random.default_rng(3).normal(2.0, 5.0, 400)
    interval = statistics.ratio(values)
    half = 1.96 * values.std() / math.sqrt(400)
    np.testing.assert_allclose(
        interval[1:], [values.mean() - half, values.mean() + half], atol=0.08
    )


def test_the_chance_of_a_higher_score_counts_pairs():
    # Of the pairs of {2, 1} and {1, 0, 3}: 2 > 1, 2 > 0, 1 = 1, 1 > 0.
    assert statistics.chance_of_higher(np.array([2.0, 1.0]), np.array([1.0, 0, 3])) == 3.5 / 6


def test_interquartile_mean_is_that_of_the_middle_half():
    # Of 1 .. 8 the middle four are 3, 4, 5, 6.
    assert statistics.interquartile_mean(np.arange(1.0, 9)) == 4.5
    # All runs of all games are one pool: of 0, 0, 1, 9, 100, 100 one is cut at each end.
    games = np.array([0.0, 100]), np.array([0.0, 1, 9, 100])
    assert statistics.interquartile_mean(*games) == (0 + 1 + 9 + 100) / 4


def test_aggregates_of_two_games_by_hand():
    games = np.array([0.0, 1.0]), np.array([2.0, 4.0, 0.0])  # Means 1/2 and 2.
    assert statistics.mean(*games) == 1.25
    assert statistics.median(*games) == 1.25
    assert statistics.median(*games, np.array([9.0])) == 2
    # min(x, 1) is 0, 1 and 1, 1, 0: means 1/2 and 2/3.
    np.testing.assert_allclose(statistics.optimality_gap(*games), 1 - (1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize("value", [-1.5, 0.25, 3.0])
def test_of_constant_scores_all_agree_and_no_interval_has_a_width(value: float):
    games = [np.full(3, value), np.full(5, value)]
    for name, of in statistics.AGGREGATES.items():
        expected = max(0.0, 1 - value) if name == "optimality gap" else value
        np.testing.assert_allclose(
            statistics.stratified(of, games, resamples=QUICK), [expected] * 3, rtol=1e-12
        )


@settings
@hypothesis.given(x=scores)
def test_aggregates_are_their_definitions(x: np.ndarray):
    task_means = [sum(game) / 4 for game in x.tolist()]
    np.testing.assert_allclose(statistics.mean(*x), sum(task_means) / 3, atol=1e-9)
    np.testing.assert_allclose(statistics.median(*x), sorted(task_means)[1], atol=1e-9)
    pooled = sorted(x.ravel().tolist())  # 12 scores, of which 3 are cut at each end.
    np.testing.assert_allclose(statistics.interquartile_mean(*x), sum(pooled[3:9]) / 6, atol=1e-9)
    capped = sum(min(value, 1.0) for value in pooled) / 12
    np.testing.assert_allclose(statistics.optimality_gap(*x), 1 - capped, atol=1e-9)


@settings
@hypothesis.given(x=scores, order=st.permutations(range(4)))
def test_the_order_of_runs_within_a_game_does_not_matter(x: np.ndarray, order: list[int]):
    shuffled = [x[0], x[1, order], x[2]]
    for of in statistics.AGGREGATES.values():
        np.testing.assert_allclose(of(*shuffled), of(*x), atol=1e-9)


@settings
@hypothesis.given(x=scores, y=scores)
def test_probability_of_improvement_is_mann_whitneys(x: np.ndarray, y: np.ndarray):
    x, y = x.round(-1), y.round(-1)  # So that there are ties.
    u = [
        scipy.stats.mannwhitneyu(a, b, method="asymptotic").statistic
        for a, b in zip(x, y, strict=True)
    ]
    got = statistics.probability_of_improvement([*x], [*y])
    np.testing.assert_allclose(got, np.mean(u) / 16, atol=1e-12)
    other = statistics.probability_of_improvement([*y], [*x])
    np.testing.assert_allclose(got + other, 1, atol=1e-12)
    assert statistics.probability_of_improvement([*x], [*x]) == 0.5


def test_improvement_of_games_with_other_numbers_of_runs():
    x, y = [np.array([3.0, 1.0]), np.array([5.0])], [np.array([2.0]), np.array([5.0, 4.0, 6.0])]
    # Game 1: one of two above. Game 2: a tie, one win, one loss. No resample is of x and y mixed.
    interval = statistics.improvement(x, y, resamples=QUICK)
    assert interval.mean == (1 / 2 + (0.5 + 1 + 0) / 3) / 2
    assert 0 <= interval.low < interval.mean < interval.high <= 1


def test_the_interval_is_that_of_all_resamples():
    games = [np.array([0.0, 1.0]), np.array([10.0, 30.0])]
    # Each game apart: 4 x 4 resamples, equally likely; their percentiles are the interval.
    draws = [list(itertools.product(game, repeat=2)) for game in games]
    means = [(np.mean(a) + np.mean(b)) / 2 for a, b in itertools.product(*draws)]
    interval = statistics.stratified(statistics.mean, games)
    # Each extreme has a probability of 1/16, more than 2.5%.
    assert interval == (np.mean([0.5, 20]), min(means), max(means))


def test_games_are_resampled_apart():
    # Were runs of both games drawn from one pool, the mean would vary.
    interval = statistics.stratified(statistics.mean, [np.zeros(3), np.ones(3)], resamples=QUICK)
    assert interval == (0.5, 0.5, 0.5)


def test_one_run_a_game_has_no_width_and_beside_others_it_stays():
    one = [np.array([1.0]), np.array([4.0])]
    assert statistics.stratified(statistics.mean, one) == (2.5, 2.5, 2.5)
    interval = statistics.stratified(statistics.mean, [np.array([1.0]), np.array([0.0, 8.0])])
    assert interval == (2.5, 0.5, 4.5)


def test_checkpoints_of_a_run_stay_together():
    game = np.random.default_rng(0).normal(size=5)
    # The second checkpoint is the first plus 3, and so is it in each resample.
    interval = statistics.stratified(statistics.mean, [np.stack([game, game + 3])])  # [G, N]
    first, second = np.array(interval).T  # [value, low, high] each.
    np.testing.assert_allclose(second, first + 3)
    np.testing.assert_allclose(first, statistics.stratified(statistics.mean, [game]))


def test_the_same_seed_gives_the_same_interval_whatever_was_drawn_before():
    games = [np.random.default_rng(1).normal(size=4) for _ in range(3)]
    first = statistics.stratified(statistics.interquartile_mean, games, resamples=QUICK)
    np.random.default_rng().normal()
    again = statistics.stratified(statistics.interquartile_mean, games, resamples=QUICK)
    other = statistics.stratified(statistics.interquartile_mean, games, resamples=QUICK, seed=1)
    assert first == again and first != other


@settings
@hypothesis.given(x=scores)
def test_a_profile_falls_from_one_to_zero(x: np.ndarray):
    thresholds = np.linspace(x.min() - 1, x.max(), 9)
    profile = statistics.profile([*x], thresholds, resamples=20)
    assert profile.mean[0] == 1 and profile.mean[-1] == 0  # Strictly above.
    assert np.all(np.diff(profile.mean) <= 1e-12)
    counted = [np.mean(x > t) for t in thresholds]
    np.testing.assert_allclose(profile.mean, counted, atol=1e-12)
    assert np.all(profile.low <= profile.high)


@pytest.mark.parametrize("games", [[], [np.array([1.0]), np.array([])]])
def test_nothing_has_no_statistics(games: list[np.ndarray]):
    with pytest.raises(ValueError, match="at least one run"):
        statistics.stratified(statistics.mean, games)
