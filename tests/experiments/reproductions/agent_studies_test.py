"""Tests of experiments/reproductions/agent_runs.py and agent_studies.py."""

import functools
import pathlib

import numpy as np
import pytest

from kullback.experiments import progress
from kullback.experiments.reproductions import agent_runs, agent_studies, charts, study
from kullback.experiments.runs import run_folder, training


@pytest.fixture
def journal(tmp_path: pathlib.Path) -> study.Journal:
    return study.Journal(tmp_path, progress.Progress("test", 0, 4_000, quiet=True))


def run(journal: study.Journal) -> study.Rows:
    arm = agent_runs.Arm("a label", "dqn", "toy/chain", 2, 2_000)
    part = study.Arm(arm.part, 4_000, functools.partial(agent_runs.train, arm))
    return study.run([part], journal)


@pytest.mark.slow
def test_a_part_is_a_run_that_goes_on_where_it_was_interrupted(
    journal: study.Journal, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    path = journal.path("a-label-toy-chain.run")
    # What a part leaves that was stopped half-way: the run, and no rows.
    training.train(
        "dqn", "toy/chain", out=path, quiet=True, steps=1_000, num_seeds=2, checkpoint_every=200
    )
    config = run_folder.RunFolder(path).config()
    config["plan"]["steps"] = 2_000
    run_folder.RunFolder(path).write_config(config)
    rows = without_wall_time(run(journal))
    fresh = study.Journal(tmp_path / "fresh", progress.Progress("test", 0, 1, quiet=True))
    assert rows == without_wall_time(run(fresh))
    assert {row["seed"] for row in rows} == {0, 1}
    assert max(row["steps"] for row in rows) == 2_000
    # Done, it is read and not run.
    monkeypatch.setattr(training, "train", None)
    monkeypatch.setattr(training, "resume", None)
    assert without_wall_time(run(journal)) == rows


def without_wall_time(rows: study.Rows) -> study.Rows:
    return [{n: x for n, x in row.items() if n != "wall_seconds"} for row in rows]


def rows_of(values: np.ndarray, label: str = "a") -> study.Rows:
    return [
        {
            "label": label,
            "environment": "minatar/breakout",
            "seed": seed,
            "steps": 100 * (t + 1),
            "return_mean": None if np.isnan(value) else float(value),
            "action_gap": 1.0,
        }
        for seed, row in enumerate(values)
        for t, value in enumerate(row)
    ]


def test_final_is_of_the_last_tenth_and_area_of_all():
    values = np.arange(40.0).reshape(2, 20)
    values[0, 18] = np.nan  # No episode ended there.
    rows = rows_of(values) + rows_of(values + 100, "b")
    runs = agent_runs.Runs(rows)
    np.testing.assert_allclose(runs.measure(agent_runs.END, "a", "minatar/breakout"), [19, 38.5])
    np.testing.assert_allclose(
        runs.measure(agent_runs.SCORE, "b", "minatar/breakout"), np.nanmean(values, axis=1) + 100
    )


def test_the_curve_drawn_is_the_mean_over_seeds_and_rows():
    values = np.random.default_rng(0).normal(size=(3, 12))
    values[:, 0] = np.nan
    values[1, 5] = np.nan
    runs = agent_runs.Runs(rows_of(values))
    panel = agent_studies.curves(runs, ["a"], "minatar/breakout", width=3)
    axes = charts.Grid(panels=[panel]).draw().axes[0]
    x, y = axes.lines[0].get_data()
    assert np.asarray(x).tolist() == [100 * (t + 1) for t in range(1, 12)]
    expected = [
        np.mean([np.nanmean(row[max(0, t - 2) : t + 1]) for row in values]) for t in range(1, 12)
    ]
    np.testing.assert_allclose(np.asarray(y, float), expected)


def test_random_scores_come_from_the_catalogue():
    assert agent_runs.random_score("minatar/breakout") == 0.5
    with pytest.raises(ValueError, match="gym/CartPole-v1"):
        agent_runs.random_score("gym/CartPole-v1")


def test_final_is_the_last_known_where_nothing_ended_in_the_tail():
    values = np.full((2, 20), np.nan)
    values[0, 5] = 3.0
    runs = agent_runs.Runs(rows_of(values))
    returns = runs.measure(agent_runs.END, "a", "minatar/breakout")
    np.testing.assert_array_equal(returns, [3.0, np.nan])


def test_a_claim_of_arms_that_did_not_run_is_none():
    runs = agent_runs.Runs(rows_of(np.ones((3, 20)), "dqn") + rows_of(np.ones((3, 20)) * 2, "b"))
    claims = [agent_studies.above("b", "dqn"), agent_studies.above("b", "c")]
    [check] = agent_studies.judge_claims(claims, runs, None, says_so=False)
    assert check.claim == "minatar/breakout: b ends above dqn" and check.verdict
