"""Tests of report/published_curves.py: what is kept of publications, and what is known of it."""

import numpy as np
import pytest
import scipy.stats

from kullback import agents
from kullback.environments import atari
from kullback.experiments.report import published_curves, scores

GAMES = {f"atari/{game}" for game in atari.GAMES}


def test_each_source_has_its_games_and_agents():
    assert set(published_curves.load("dopamine")) == GAMES
    assert len(published_curves.load("btr")) == 19 and set(published_curves.load("btr")) <= GAMES
    for name, source in published_curves.SOURCES.items():
        for game, curves in published_curves.load(name).items():
            assert {curve.agent for curve in curves} == set(source.settings) <= set(agents.AGENTS)
            assert {curve.torso for curve in curves} == set(source.torsos)
            assert len({curve.label for curve in curves}) == len(curves), game
            for curve in curves:
                assert curve.frames.tolist() == [n * 10_000_000 for n in range(1, 21)]
                assert np.isfinite(curve.means).all() and 1 <= curve.fewest_seeds <= 5


@pytest.mark.parametrize(
    "label, expected",
    [
        ("dqn, cnn", 1.403),
        ("c51, cnn", 1.638),
        ("qr-dqn, cnn", 1.175),
        ("iqn, cnn", 1.940),
        ("rainbow, cnn", 1.677),
        ("dqn, impala", 1.608),
        ("c51, impala", 2.149),
        ("qr-dqn, impala", 1.234),
        ("iqn, impala", 2.220),
        ("rainbow, impala", 2.555),
    ],
)
def test_means_are_those_of_the_source(label: str, expected: float):
    # Computed apart, from the source's own files: the middle half of 55 human-normalised means.
    normalised = [
        scores.human_normalised(game, curve.at(200_000_000))
        for game, curves in published_curves.load("dopamine").items()
        for curve in curves
        if curve.label == label and scores.has(game, human=True)
    ]
    assert len(normalised) == 55
    assert scipy.stats.trim_mean(normalised, 0.25) == pytest.approx(expected, abs=5e-4)


def test_a_curve_says_when_a_score_was_first_reached():
    curve = published_curves.Curve(
        "dqn", "cnn", np.array([10, 20, 30]), np.array([1.0, 5.0, 4.0]), 5
    )
    assert [curve.first_at_least(score) for score in (0.5, 1.0, 4.5, 5.1)] == [10, 10, 20, None]
    assert curve.at(20) == 5 and np.isnan(curve.at(15))
