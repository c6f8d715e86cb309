"""Tests of `kullback reproduce munchausen-minatar`: what it judges, and a run at a small size."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from kullback.experiments import cli
from kullback.experiments.reproductions import agent_runs, agent_studies, munchausen_minatar, study

GAME = "minatar/breakout"
CONFIG = dataclasses.replace(munchausen_minatar.Config(), games=(GAME,), steps=2_000)


def rows_of(returns: dict[str, float], gaps: dict[str, float]) -> study.Rows:
    """Returns flat curves; seeds differ by a little."""
    return [
        {
            "label": agent,
            "environment": GAME,
            "seed": seed,
            "steps": 100 * (t + 1),
            "return_mean": value + 0.01 * seed,
            "action_gap": gaps.get(agent, 1.0) + 0.01 * seed,
        }
        for agent, value in returns.items()
        for seed in range(5 if agent in munchausen_minatar.SCALAR else 3)
        for t in range(20)
    ]


RETURNS = {"dqn": 5.0, "soft-dqn": 5.0, "al-dqn": 6.0, "m-dqn": 7.0, "iqn": 8.0, "m-iqn": 7.0}


def verdicts_of(rows: study.Rows) -> dict[str, str]:
    return {
        check.claim: check.verdict
        for check in munchausen_minatar.STUDY.claims(CONFIG, {"curves": rows})
    }


def test_what_it_judges():
    verdicts = verdicts_of(rows_of(RETURNS, {"m-dqn": 3.0, "al-dqn": 0.5}))
    assert verdicts[f"{GAME}: m-dqn ends above dqn"] == "held"
    assert verdicts[f"{GAME}: m-dqn ends above al-dqn"] == "held"
    assert verdicts[f"{GAME}: al-dqn ends above dqn"] == "held"
    assert verdicts[f"{GAME}: m-iqn ends above iqn"] == "contradicted"
    assert verdicts[f"{GAME}: m-dqn widens the gap of actions, in times DQN's"] == "held"
    assert verdicts[f"{GAME}: al-dqn widens the gap of actions, in times DQN's"] == "contradicted"
    worse = verdicts_of(rows_of({**RETURNS, "m-dqn": 4.0}, {}))
    assert worse[f"{GAME}: m-dqn ends above dqn"] == "contradicted"


def test_where_dqn_has_not_learnt_nothing_is_judged():
    verdicts = verdicts_of(rows_of({**RETURNS, "dqn": 2.0}, {"m-dqn": 3.0}))
    assert set(verdicts.values()) == {"reported"}
    assert any("DQN stays under 5 times" in claim for claim in verdicts)


def test_summary_and_picture():
    rows = rows_of(RETURNS, {})
    summary = {
        row["label"]: row for row in agent_studies.summary(agent_runs.Runs(rows), CONFIG.arms())
    }
    assert np.isclose(summary["m-dqn"]["final_return"], 7.02)
    assert summary["iqn"]["seeds"] == 3
    [grid] = munchausen_minatar.STUDY.figures(CONFIG, {"curves": rows}).values()
    lines = [len(axes.lines) for axes in grid.draw().axes]
    assert lines == [4, 2, 4]


def test_full_size_adds_rainbow_and_all_games():
    config = dataclasses.replace(munchausen_minatar.Config(), full=True)
    assert len(config.arms()) == 5 * 5 + 5 * 2
    assert munchausen_minatar.STUDY.seconds(config) > 3 * munchausen_minatar.STUDY.seconds(
        munchausen_minatar.Config()
    )


def test_refuses_other_games():
    with pytest.raises(ValueError, match="gym/CartPole-v1"):
        dataclasses.replace(munchausen_minatar.Config(), games=("gym/CartPole-v1",))


@pytest.mark.slow
def test_runs_small(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    small = ("steps=6000", "seeds=2", "quantile_seeds=2", f"games={GAME}")
    arguments = [argument for value in small for argument in ("--set", value)]
    assert cli.main(["reproduce", "munchausen-minatar", "--out", str(out), *arguments]) == 0
    assert "nothing is judged" in capsys.readouterr().out
    assert (out / "munchausen_minatar.png").stat().st_size > 20_000
    assert len(json.loads((out / "verdict.json").read_text())["checks"]) == 8
