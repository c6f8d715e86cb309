"""Tests of experiments/report/scores.py: where a score is read, and what it is divided by."""

import math
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from kullback.experiments.report import collect, scores

WriteRun = Callable[..., pathlib.Path]
BREAKOUT = "minatar/breakout"


def series_of(*paths: pathlib.Path) -> list[collect.Series]:
    return [one for family in collect.families(paths) for one in family.series]


def test_a_score_is_the_last_that_is_known(tmp_path: pathlib.Path, write_run: WriteRun):
    values = {100: math.nan, 200: 2.0, 300: math.nan, 400: 4.0}
    run = write_run(tmp_path / "run", "dqn", BREAKOUT, lambda seed, step: values[step], seeds=(0,))
    (one,) = series_of(run)
    got = scores.at(one, np.array([50, 100, 199, 200, 399, 400, 900]), "recent_return")
    np.testing.assert_array_equal(got, [math.nan, math.nan, math.nan, 2, 2, 4, 4])
    np.testing.assert_array_equal(scores.at(one, np.array([400]), "no_column"), [math.nan])


def test_a_score_may_be_the_mean_of_the_last_tenth(tmp_path: pathlib.Path, write_run: WriteRun):
    values = {**{100 * n: float(n) for n in range(1, 31)}, 2900: math.nan}
    run = write_run(
        tmp_path / "run",
        "dqn",
        BREAKOUT,
        steps=[*values],
        seeds=(0,),
        extra=lambda seed, step: {"return_mean": values[step]},
    )
    (one,) = series_of(run)
    # Rows after 0.9 of the steps: 19, 20; 28, 30; none of 500's, so the last; none known.
    got = scores.at(one, np.array([2_000, 3_000, 550, 50]), "return_mean", 0.1)
    np.testing.assert_array_equal(got, [19.5, 29, 5, math.nan])
    compared = scores.compare([one], "last-tenth", 2_900)
    np.testing.assert_array_equal(compared.scores["dqn"][BREAKOUT], [27.5])  # 27 and 28.


def test_agents_are_compared_where_all_have_come(tmp_path: pathlib.Path, write_run: WriteRun):
    write_run(tmp_path / "a", "dqn", BREAKOUT)  # Its score is seed + step.
    write_run(tmp_path / "b", "m-dqn", BREAKOUT, steps=(100, 250), seeds=(0,))
    series = series_of(tmp_path)
    compared = scores.compare(series)
    assert compared.steps == 250 and not compared.left_out
    np.testing.assert_array_equal(compared.scores["dqn"][BREAKOUT], [200, 201, 202])
    np.testing.assert_array_equal(compared.scores["m-dqn"][BREAKOUT], [250])
    later = scores.compare(series, steps=400)
    assert later.labels == ("dqn",)
    assert later.left_out == ("seed 0 of m-dqn on minatar/breakout: it has done 250 steps",)
    with pytest.raises(ValueError, match="no run has done 401 steps, the furthest has done 400"):
        scores.compare(series, steps=401)


def test_evaluations_are_scores_if_asked_for(tmp_path: pathlib.Path, write_run: WriteRun):
    write_run(
        tmp_path / "a",
        "dqn",
        BREAKOUT,
        evaluation=lambda seed, step: 9.0 + seed if step == 200 else math.nan,
    )
    write_run(tmp_path / "b", "m-dqn", BREAKOUT)  # Never evaluated.
    compared = scores.compare(series_of(tmp_path), "evaluation")
    np.testing.assert_array_equal(compared.scores["dqn"][BREAKOUT], [9, 10, 11])
    assert compared.labels == ("dqn",) and len(compared.left_out) == 3
    assert "no mean return of the latest evaluation" in compared.left_out[0]
    with pytest.raises(
        ValueError, match="score must be one of training, last-tenth, evaluation, got 'best'"
    ):
        scores.compare(series_of(tmp_path), "best")


@pytest.mark.parametrize(
    "flags, is_by_life",
    [
        (("protocol=classic",), True),
        (("life_loss=true",), True),
        (("protocol=classic", "life_loss=false"), False),
        ((), False),
    ],
)
def test_returns_of_single_lives_are_no_scores(
    tmp_path: pathlib.Path, write_run: WriteRun, flags: tuple[str, ...], is_by_life: bool
):
    run = write_run(
        tmp_path / "a",
        "dqn",
        "atari/pong",
        environment_flags=flags,
        evaluation=lambda seed, step: 1.0,
    )
    scores.compare(series_of(run), "evaluation")
    if is_by_life:
        with pytest.raises(ValueError, match="a training episode is a life there"):
            scores.compare(series_of(run))
    else:
        scores.compare(series_of(run))


def test_the_set_of_games_is_what_all_agents_have(tmp_path: pathlib.Path, write_run: WriteRun):
    for game in ("asterix", "breakout", "freeway"):
        write_run(tmp_path / f"a-{game}", "dqn", f"minatar/{game}")
    for game in ("breakout", "freeway"):
        write_run(tmp_path / f"b-{game}", "m-dqn", f"minatar/{game}")
    assert scores.compare(series_of(tmp_path)).shared() == (BREAKOUT, "minatar/freeway")


def test_human_and_random_scores_are_one_and_zero():
    assert scores.human_normalised("atari/pong", 14.6) == pytest.approx(1)
    assert scores.human_normalised("atari/pong", -20.7) == pytest.approx(0)
    # Skiing: (-10717.5 + 17098.1) / (17098.1 - 4336.9) = 1/2.
    assert scores.human_normalised("atari/skiing", -10717.5) == pytest.approx(0.5)
    for name in ("atari/pooyan", BREAKOUT):
        with pytest.raises(ValueError, match="has no human score"):
            scores.human_normalised(name, 1.0)


def test_denominators_by_hand():
    # Breakout: random 1.7, human 30.5.
    assert scores.denominator("atari/breakout", 11.7) == pytest.approx(10)
    assert scores.denominator("atari/breakout", 1.2) == pytest.approx(0.5)  # Worse than random.
    assert scores.denominator("atari/breakout", 11.7, "human") == pytest.approx(28.8)
    assert scores.denominator("atari/breakout", 11.7, "largest") == pytest.approx(28.8)
    assert scores.denominator("atari/breakout", 101.7, "largest") == pytest.approx(100)
    assert scores.denominator(BREAKOUT, 10.5) == pytest.approx(10)
    with pytest.raises(ValueError, match="minatar/breakout has no human score"):
        scores.denominator(BREAKOUT, 10.5, "largest")
    with pytest.raises(ValueError, match="denominator must be one of baseline, human, largest"):
        scores.denominator(BREAKOUT, 10.5, "random")


def test_checkpoints_are_rows_of_the_coarsest(tmp_path: pathlib.Path, write_run: WriteRun):
    write_run(tmp_path / "a", "dqn", BREAKOUT, seeds=(0,), steps=range(10, 410, 10))
    write_run(tmp_path / "b", "m-dqn", BREAKOUT, seeds=(0,), steps=(100, 200, 350))
    series = series_of(tmp_path)
    np.testing.assert_array_equal(scores.checkpoints(series), [100, 200, 350])
    np.testing.assert_array_equal(scores.checkpoints(series, 300), [100, 200, 300])
    np.testing.assert_array_equal(
        scores.curve(series, np.array([100, 355]), "recent_return"), [[100, 100], [350, 350]]
    )
    long = write_run(tmp_path / "c", "c51", BREAKOUT, seeds=(0,), steps=range(1, 1001))
    grid = scores.checkpoints(series_of(long))
    assert len(grid) == scores.CHECKPOINTS and grid[0] == 1 and grid[-1] == 1000
