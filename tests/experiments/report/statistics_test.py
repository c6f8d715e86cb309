"""Tests of experiments/report/statistics.py against definitions written out."""

import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from kullback.experiments.report import statistics

QUICK = 200  # Resamples, where the interval itself is not looked at.
scores = hnp.arrays(np.float64, (3, 4), elements=st.floats(-50, 50, width=32))  # [M, N]
settings = hypothesis.settings(deadline=None, max_examples=25)


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
            statistics.interval(of, games, resamples=QUICK), [expected] * 3, rtol=1e-12
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
    found = statistics.improvement(x, y, resamples=QUICK)
    assert found.value == (1 / 2 + (0.5 + 1 + 0) / 3) / 2
    assert 0 <= found.low < found.value < found.high <= 1


def test_the_interval_is_that_of_all_resamples():
    games = [np.array([0.0, 1.0]), np.array([10.0, 30.0])]
    # Each game apart: 4 x 4 resamples, equally likely; their percentiles are the interval.
    draws = [list(itertools.product(game, repeat=2)) for game in games]
    means = [(np.mean(a) + np.mean(b)) / 2 for a, b in itertools.product(*draws)]
    found = statistics.interval(statistics.mean, games)
    # Each extreme has a probability of 1/16, more than 2.5%.
    assert found == (np.mean([0.5, 20]), min(means), max(means))


def test_games_are_resampled_apart():
    # Were runs of both games drawn from one pool, the mean would vary.
    found = statistics.interval(statistics.mean, [np.zeros(3), np.ones(3)], resamples=QUICK)
    assert found == (0.5, 0.5, 0.5)


def test_one_run_a_game_has_no_width_and_beside_others_it_stays():
    one = [np.array([1.0]), np.array([4.0])]
    assert statistics.interval(statistics.mean, one) == (2.5, 2.5, 2.5)
    found = statistics.interval(statistics.mean, [np.array([1.0]), np.array([0.0, 8.0])])
    assert found == (2.5, 0.5, 4.5)


def test_checkpoints_of_a_run_stay_together():
    game = np.random.default_rng(0).normal(size=5)
    # The second checkpoint is the first plus 3, and so is it in each resample.
    found = statistics.interval(statistics.mean, [np.stack([game, game + 3])])  # [G, N]
    first, second = np.array(found).T  # [value, low, high] each.
    np.testing.assert_allclose(second, first + 3)
    np.testing.assert_allclose(first, statistics.interval(statistics.mean, [game]))


def test_the_same_seed_gives_the_same_interval_whatever_was_drawn_before():
    games = [np.random.default_rng(1).normal(size=4) for _ in range(3)]
    first = statistics.interval(statistics.interquartile_mean, games, resamples=QUICK)
    np.random.default_rng().normal()
    again = statistics.interval(statistics.interquartile_mean, games, resamples=QUICK)
    other = statistics.interval(statistics.interquartile_mean, games, resamples=QUICK, seed=1)
    assert first == again and first != other


@settings
@hypothesis.given(x=scores)
def test_a_profile_falls_from_one_to_zero(x: np.ndarray):
    thresholds = np.linspace(x.min() - 1, x.max(), 9)
    found = statistics.profile([*x], thresholds, resamples=20)
    assert found.value[0] == 1 and found.value[-1] == 0  # Strictly above.
    assert np.all(np.diff(found.value) <= 1e-12)
    counted = [np.mean(x > t) for t in thresholds]
    np.testing.assert_allclose(found.value, counted, atol=1e-12)
    assert np.all(found.low <= found.high)


@pytest.mark.parametrize("games", [[], [np.array([1.0]), np.array([])]])
def test_nothing_has_no_statistics(games: list[np.ndarray]):
    with pytest.raises(ValueError, match="at least one run"):
        statistics.interval(statistics.mean, games)


def test_numbers_are_shown_with_their_interval():
    assert str(statistics.Estimate(12345.6, 12000.0, 13000.0)) == "12,346 [12,000, 13,000]"
    assert str(statistics.Estimate(0.25, 0.25, 0.25)) == "0.25"
