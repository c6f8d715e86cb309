"""Tests of experiments/reproductions/judging.py: verdicts, and how often they are wrong."""

from typing import Any

import numpy as np
import pytest
import scipy.stats

from kullback.core import json_files
from kullback.experiments.reproductions import judging


def test_an_interval_has_three_verdicts_and_one_value_none():
    # Of 1, 2, 3 the interval is 2 -+ 2.484.
    verdicts = {-0.5: "held", -0.4: "undecided", 4.4: "undecided", 4.5: "contradicted"}
    for threshold, verdict in verdicts.items():
        check = judging.above("c", [1.0, 2.0, 3.0], threshold)
        assert (check.verdict, check.num_seeds) == (verdict, 3)
        # 5.65 errors of 0.577, see Cohen's tables: 3 values are few.
        assert check.smallest_effect == pytest.approx(5.653 / np.sqrt(3), rel=1e-3)
        assert ("would have been seen" in check.evidence) == (verdict == "undecided")
    one = judging.above("c", [5.0], units=("game", "games"))
    assert one[:3] == ("c", "undecided", "5; one game has no interval")
    assert judging.unjudged(judging.above("c", [1.0, 1.0])).verdict == "reported"
    assert judging.above("c", [np.nan, 1.0, 2.0]).verdict == "undecided"
    assert judging.headline(one).is_headline and not one.is_headline


def test_arms_that_share_nothing_are_compared_by_welch():
    # As pairs these differ by 1 each; as samples by 1 with an error of 8.2.
    one, other = np.array([1.0, 11.0, 21.0]), np.array([0.0, 10.0, 20.0])
    assert judging.above("c", one - other, shared="the start").verdict == "held"
    check = judging.beyond("c", one, other)
    assert check.verdict == "undecided" and check.test == "Welch's t"
    assert judging.beyond("c", one + 99, other).verdict == "held"
    assert judging.beyond("c", one, other + 99).verdict == "contradicted"


def test_quotients_are_of_geometric_means():
    over, factors = np.array([1.0, 2.0, 4.0]), np.array([0.9, 1.0, 1.1])
    assert judging.times("c", factors, np.ones(3) * factors / 3).verdict == "held"
    check = judging.times("c", 8 * over, over)
    test = scipy.stats.ttest_ind(np.log(8 * over), np.log(over), equal_var=False)
    low, high = np.exp(test.confidence_interval(0.95))
    assert check.evidence.startswith(f"8 [{low:.4g}, {high:.4g}] over 3 seeds, against 1")
    assert judging.times("c", factors / 3, factors).verdict == "contradicted"
    assert judging.times("c", [0.0, 1.0], over).verdict == "undecided"


def test_no_difference_is_two_one_sided_tests():
    rng = np.random.default_rng(0)
    for margin in (0.2, 0.35, 0.5, 1.0):
        one, other = rng.normal(0.1, 0.3, 8), rng.normal(0, 0.3, 8)
        pairs = (one + margin, other), (other + margin, one)
        options: Any = {"equal_var": False, "alternative": "greater"}
        test: Any = scipy.stats.ttest_ind
        tests = [test(*pair, **options).pvalue for pair in pairs]
        is_held = judging.equal("c", margin, one, other).verdict == "held"
        assert is_held == (max(tests) < 0.05)
    assert judging.equal("c", 1.0, [5.0, 5.1, 5.2], shared="x").verdict == "contradicted"
    assert judging.equal("c", 1.0, [-5.0, -5.1, -5.2]).verdict == "contradicted"
    check = judging.alike("c", 0.5, np.array([1.0, 1.1, 1.2]), np.array([1.1, 1.2, 1.0]))
    assert check.verdict == "held" and check.evidence.endswith("within 50% of 1")
    assert judging.alike("c", 0.5, [3.0, 3.1], [1.0, 1.1]).verdict == "contradicted"


def test_the_margin_that_is_told_is_met_four_times_in_five():
    rng = np.random.default_rng(1)
    margin = judging.equal("c", 1.0, np.sqrt(19 / 20) * np.resize([-1.0, 1.0], 20))
    held = [
        judging.equal("c", margin.smallest_effect or 0.0, x).verdict == "held"
        for x in rng.normal(size=(400, 20))
    ]
    assert np.mean(held) == pytest.approx(0.8, abs=0.06)


def test_a_trend_is_judged_over_all_arms():
    # No neighbours differ clearly, and yet all of them rise.
    samples = [np.array([0.0, 1.0, 2.0]) + 0.9 * n for n in range(4)]
    assert judging.beyond("c", samples[1], samples[0]).verdict == "undecided"
    check = judging.trend("c", range(4), samples)
    assert check.verdict == "held" and "Spearman's rho 0.69" in check.evidence
    assert judging.trend("c", range(4), samples[::-1]).verdict == "contradicted"


def test_the_best_of_several_arms_is_seldom_better_by_chance():
    rng = np.random.default_rng(2)
    uncorrected, corrected = 0, 0
    for draws in rng.normal(size=(300, 7, 5)):
        over, *several = draws
        best = max(several, key=np.mean)
        uncorrected += judging.beyond("c", best, over).verdict == "held"
        arms = {str(n): x for n, x in enumerate(several)}
        corrected += judging.best_of("{best}", arms, over).verdict == "held"
    assert uncorrected > 0.06 * 300 and corrected <= 0.035 * 300


def test_the_best_of_several_arms_is_named():
    over = np.array([0.0, 0.1, 0.2])
    arms = {"a": over + 1, "b": over + 3}
    check = judging.best_of("{best} is best", arms, over)
    assert (check.claim, check.verdict) == ("b is best", "held")
    assert "at 97.5%, for the best of 2" in check.evidence and "Holm" in check.test
    below = {name: -x for name, x in arms.items()}
    assert judging.best_of("{best}", below, over).verdict == "contradicted"
    assert judging.best_of("{best}", {**below, "c": over}, over).verdict == "undecided"
    # The best on average may be the one whose seeds differ most.
    wild = {"steady": over + 1, "wild": np.array([-50.0, 0.0, 60.0])}
    assert judging.best_of("{best}", wild, over).verdict == "held"


def test_most_seeds_are_six_of_six():
    assert judging.mostly("c", [True] * 6, "x").verdict == "held"
    assert judging.mostly("c", [True] * 5, "x").verdict == "undecided"
    check = judging.mostly("c", [False] * 6, "x")
    assert (check.verdict, check.num_seeds) == ("contradicted", 6)
    assert check.evidence == "0 of 6 seeds, a share in [0.00, 0.46]; x"


def test_means_are_named_and_verdicts_are_counted():
    values = {"a": [1.0, 2.0, 3.0], "b": [5.0]}
    assert judging.means(values, "; ") == "a 2 [-0.4841, 4.484]; b 5 (no interval of one)"
    checks = [judging.exactly("c", is_so, "") for is_so in (True, False, True)]
    assert judging.counts([*checks, judging.reported("c", 1)]) == "1 contradicted, 2 held"
    assert judging.counts([]) == "none judged"


def test_verdicts_are_read_back_and_those_of_old_files_too():
    checks = [judging.above("c", [1.0, 2.0, 3.0]), judging.headline(judging.reported("d", "x"))]
    for check in checks:
        record = json_files.Record("verdict.json", (), check._asdict())
        assert judging.from_json(record) == check
    for held, verdict in {True: "held", False: "undecided", None: "reported"}.items():
        old = {"claim": "c", "held": held, "evidence": "e"}
        check = judging.from_json(json_files.Record("verdict.json", (), old))
        assert check[:3] == ("c", verdict, "e")
    wrong = json_files.Record("verdict.json", (), {**checks[0]._asdict(), "verdict": "maybe"})
    with pytest.raises(ValueError, match="verdict must be contradicted, undecided, held, reported"):
        judging.from_json(wrong)
