"""Tests of lm/votes.py."""

import collections
import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from kullback.lm import votes

some_codes = hnp.arrays(np.int64, (5, 6), elements=st.integers(-1, 3))
some_answers = hnp.arrays(np.int64, (5,), elements=st.integers(-1, 3))
settings = hypothesis.settings(deadline=None, max_examples=50)


def test_equal_answers_have_one_code():
    samples = [["b", "a", None, "b"], [None, None, None, None]]
    codes, greedy, references = votes.encode(samples, ["a", None], ["c", "c"])
    assert codes.tolist() == [[0, 1, -1, 0], [-1] * 4]
    assert greedy.tolist() == [1, -1]
    assert references.tolist() == [2, 0]
    for samples, others in (([["a"], []], []), ([["a"]], [[]]), ([], [])):
        with pytest.raises(ValueError, match="equally many samples"):
            votes.encode(samples, *others)


def test_majority_by_enumeration_of_all_votes():
    rows = np.array([*itertools.product((-1, 0, 1, 2), repeat=4)])
    counted = votes.majority(rows)
    for row, answer, winner, share in zip(rows.tolist(), *counted, strict=True):
        read = [x for x in row if x != votes.NONE]
        if not read:
            assert (answer, share) == (votes.NONE, 0)
            continue
        # `Counter` keeps the order in which answers appear.
        best, count = collections.Counter(read).most_common(1)[0]
        assert (answer, winner, share) == (best, row.index(best), count / 4)


@settings
@hypothesis.given(
    codes=some_codes, weights=hnp.arrays(np.float64, (5, 6), elements=st.floats(0.01, 1))
)
def test_weighted_votes_from_the_definition(codes: np.ndarray, weights: np.ndarray):
    counted = votes.majority(codes, weights)
    for q in range(5):
        sums = {a: weights[q][codes[q] == a].sum() for a in set(codes[q]) - {votes.NONE}}
        if sums:
            np.testing.assert_allclose(counted.shares[q] * weights[q].sum(), max(sums.values()))
            np.testing.assert_allclose(sums[counted.answers[q]], max(sums.values()))
    equal = votes.majority(codes, np.full(codes.shape, 0.5))
    for got, expected in zip(equal, votes.majority(codes), strict=True):
        np.testing.assert_allclose(got, expected)


def test_weights_are_finite_and_positive():
    for wrong in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and > 0"):
            votes.majority(np.zeros((1, 2), int), np.array([[1.0, wrong]]))
    with pytest.raises(AssertionError):
        votes.majority(np.zeros(2, int))


@settings
@hypothesis.given(codes=some_codes, greedy=some_answers, order=st.permutations(range(6)))
def test_ends_of_the_threshold(codes: np.ndarray, greedy: np.ndarray, order: list[int]):
    counted = votes.majority(codes)
    lowest = votes.route(counted, greedy, 0.0)
    is_read = np.any(codes != votes.NONE, 1)
    np.testing.assert_array_equal(lowest, np.where(is_read, counted.answers, greedy))
    np.testing.assert_array_equal(votes.route(counted, greedy, 1 + 1 / 6), greedy)
    # The order of samples decides ties alone.
    again = votes.majority(codes[:, order])
    np.testing.assert_array_equal(again.shares, counted.shares)
    sizes = [[np.sum(row == a) for a in range(4)] for row in codes]
    unique = np.array([s.count(max(s)) == 1 for s in sizes])
    np.testing.assert_array_equal(again.answers[unique], counted.answers[unique])


def test_a_share_that_equals_the_threshold_is_enough():
    codes = np.array([[0, 0, 1], [0, 1, 2]])
    counted, greedy = votes.majority(codes), np.array([5, 5])
    assert votes.route(counted, greedy, 2 / 3).tolist() == [0, 5]
    assert votes.route(counted, greedy, 1 / 3).tolist() == [0, 0]
    # What cannot be read lowers the share.
    unread = votes.majority(np.array([[0, 0, -1, -1], [0, 0, 0, 1]]))
    assert unread.shares.tolist() == [0.5, 0.75]


@settings
@hypothesis.given(codes=some_codes, greedy=some_answers, references=some_answers)
def test_the_threshold_is_the_smallest_of_the_best(
    codes: np.ndarray, greedy: np.ndarray, references: np.ndarray
):
    counted = votes.majority(codes)
    tau = votes.choose_threshold(counted, greedy, references, 6)

    def accuracy(threshold: float) -> float:
        routed = [
            a if a != votes.NONE and c >= threshold else g
            for a, c, g in zip(counted.answers, counted.shares, greedy, strict=True)
        ]
        return float(np.mean(np.array(routed) == references))

    best = max(accuracy(x) for x in np.linspace(0, 1.3, 400))
    assert accuracy(tau) == best
    assert all(accuracy(j / 6) < best for j in range(round(6 * tau)))
    assert accuracy(tau) >= max(accuracy(0), accuracy(2))


def test_routing_wins_where_samples_mislead_and_say_so():
    # Half of the questions are easy to the samples; in the other half they scatter.
    random = np.random.default_rng(0)
    count, k = 1_000, 32

    def world() -> tuple[votes.Votes, np.ndarray, np.ndarray]:
        is_easy = random.random(count) < 0.5
        chances = np.where(is_easy[:, None], [0.75, 0.09, 0.08, 0.08], [0.24, 0.30, 0.23, 0.23])
        codes = (random.random((count, k, 1)) > np.cumsum(chances, 1)[:, None]).sum(2)
        right = random.random(count) < np.where(is_easy, 0.8, 0.7)
        return votes.majority(codes), np.where(right, 0, 1), np.zeros(count, int)

    tau = votes.choose_threshold(*world(), k)
    counted, greedy, references = world()
    majority, plain = np.mean(counted.answers == 0), np.mean(greedy == 0)
    routed = np.mean(votes.route(counted, greedy, tau) == references)
    assert routed > max(majority, plain) + 0.05 and 0.4 < tau < 0.8


def test_pass_at_k_golden():
    # Of 4 answers c are right; 2 are drawn: 1 - C(4 - c, 2) / 6.
    got = votes.pass_at_k(np.array([0, 1, 3, 4]), 4, 2)
    np.testing.assert_allclose(got, [0, 0.5, 1, 1])
    np.testing.assert_allclose(
        [votes.pass_at_k(np.array([3]), 10, k)[0] for k in (1, 5, 8)], [0.3, 11 / 12, 1]
    )
    for k in (0, 5):
        with pytest.raises(ValueError, match=r"k must lie in \[1, 4\]"):
            votes.pass_at_k(np.array([1]), 4, k)


@settings
@hypothesis.given(right=st.lists(st.booleans(), min_size=1, max_size=9), k=st.integers(1, 9))
def test_measures_over_subsets_are_means_over_all(right: list[bool], k: int):
    k = min(k, len(right))
    chances = [any(subset) for subset in itertools.combinations(right, k)]
    got = votes.pass_at_k(np.array([sum(right)]), len(right), k)
    np.testing.assert_allclose(got, [np.mean(chances)])
    row = np.array([right])
    by_subsets = votes.over_subsets(lambda subset: row[:, subset].any(1), len(right), k)
    np.testing.assert_allclose(by_subsets, got)


def test_random_subsets_are_seeded_and_nearly_unbiased():
    drawn = votes.subsets(32, 8)
    assert drawn.shape == (votes.DRAWS, 8) and np.all(np.diff(drawn, axis=1) > 0)
    np.testing.assert_array_equal(drawn, votes.subsets(32, 8))
    assert np.any(drawn != votes.subsets(32, 8, seed=1))
    np.testing.assert_allclose(np.bincount(drawn.ravel()) / votes.DRAWS, 0.25, atol=0.06)
    right = np.arange(32)[None] < 4
    estimate = votes.over_subsets(lambda subset: right[:, subset].any(1), 32, 8)
    np.testing.assert_allclose(estimate, votes.pass_at_k(np.array([4]), 32, 8), atol=0.04)
