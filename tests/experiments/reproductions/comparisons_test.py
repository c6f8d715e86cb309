"""Tests of the reproductions with agents that share a form: what each judges, on made-up curves."""

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kullback.experiments.reproductions import (
    action_gap,
    agent_runs,
    conservative_cartpole,
    momentum_minatar,
    munchausen_atari,
    study,
)


def made_up(
    arms: list[agent_runs.Arm],
    value: Callable[[agent_runs.Arm], float],
    gap: Callable[[agent_runs.Arm], float] = lambda arm: 1.0,
    noise: Callable[[agent_runs.Arm], float] = lambda arm: 0.0,
) -> study.Rows:
    """Returns flat curves, with `noise` of alternating sign; seeds differ by a little."""
    return [
        {
            "label": arm.label,
            "environment": arm.environment,
            "seed": seed,
            "steps": arm.steps * (t + 1) // 20,
            "return_mean": value(arm) + 0.01 * seed + noise(arm) * (-1) ** t * (1 + 0.1 * seed),
            "action_gap": gap(arm) * (1 + 0.01 * seed),
            "wall_seconds": 10.0 * (t + 1),
        }
        for arm in arms
        for seed in range(arm.seeds)
        for t in range(20)
    ]


def held(module: types.ModuleType, config: Any, rows: study.Rows) -> dict[str, str]:
    return {c.claim: c.verdict for c in module.STUDY.claims(config, {"curves": rows})}


def drawn(module: types.ModuleType, config: Any, rows: study.Rows) -> list[int]:
    """Returns the number of lines of each panel."""
    [grid] = module.STUDY.figures(config, {"curves": rows}).values()
    return [len(axes.lines) for axes in grid.draw().axes]


def test_action_gap():
    config = action_gap.Config()
    gaps = {"soft-dqn": 1.0, "m-dqn 0.5": 2.0, "m-dqn 0.9": 9.0, "al-dqn 0.9": 12.0, "dqn": 1.0}
    rows = made_up(config.arms(), lambda arm: 5.0, lambda arm: gaps.get(arm.label, 3.0))
    verdicts = held(action_gap, config, rows)
    assert verdicts["the gap of m-dqn 0.5 is wider than that of soft-dqn, in times"] == "held"
    assert verdicts["the gap of m-dqn 0.9 is wider than that of m-dqn 0.5, in times"] == "held"
    assert verdicts["advantage learning widens it more than M-DQN, alpha 0.9, in times"] == "held"
    reverse = made_up(config.arms(), lambda arm: 5.0, lambda arm: 1 / gaps.get(arm.label, 3.0))
    assert set(held(action_gap, config, reverse).values()) == {"contradicted", "reported"}
    assert drawn(action_gap, config, rows) == [6, 6]


def test_conservative_cartpole():
    config = conservative_cartpole.Config()
    scores = {"dqn": 200.0, "dcpi 1": 180.0, "dcpi 0.1": 300.0, "dcpi 0.01": 50.0}
    noise = {"dqn": 40.0, "dcpi 1": 50.0}
    rows = made_up(
        config.arms(),
        lambda arm: scores.get(arm.label, 250.0),
        noise=lambda arm: noise.get(arm.label, 5.0),
    )
    verdicts = held(conservative_cartpole, config, rows)
    assert list(verdicts.values()) == ["held"] * 6
    assert "dcpi 0.1, the best rate between, scores above dqn" in verdicts
    unsteadiness = agent_runs.Runs(rows).measure(
        conservative_cartpole.UNSTEADINESS, "dqn", "gym/CartPole-v1"
    )
    np.testing.assert_allclose(unsteadiness, 40 + 4 * np.arange(10))
    # From 204 up and down by 44: 88 of 248 are lost at each second row.
    drop = agent_runs.Runs(rows).measure(conservative_cartpole.DROP, "dqn", "gym/CartPole-v1")
    np.testing.assert_allclose(drop[1], 0.5 * 88 / 244.01)
    worse = made_up(config.arms(), lambda arm: 500.0 if arm.label == "dqn" else 100.0)
    assert (
        held(conservative_cartpole, config, worse)[
            "a rate that follows the advantage scores above DQN"
        ]
        == "contradicted"
    )
    assert drawn(conservative_cartpole, config, rows)[0] == len(config.arms())


def test_momentum_minatar():
    config = dataclasses.replace(momentum_minatar.Config(), games=("minatar/breakout",))
    claim = "minatar/breakout: mo-dqn scores above dqn over the run"
    values = {"dqn": 5.0, "mo-dqn": 7.0}
    rows = made_up(config.arms(), lambda arm: values.get(arm.label, 6.0))
    assert held(momentum_minatar, config, rows)[claim] == "held"
    values["mo-dqn"] = 4.0
    rows = made_up(config.arms(), lambda arm: values.get(arm.label, 6.0))
    assert held(momentum_minatar, config, rows)[claim] == "contradicted"
    values["dqn"] = 1.0  # It has not learnt.
    rows = made_up(config.arms(), lambda arm: values.get(arm.label, 6.0))
    assert held(momentum_minatar, config, rows)[claim] == "reported"
    assert drawn(momentum_minatar, config, rows) == [len(config.arms())]


def test_munchausen_atari_says_what_the_whole_would_take():
    config = munchausen_atari.Config()
    rows = made_up(config.arms(), lambda arm: -20.0)
    cost = munchausen_atari.cost(agent_runs.Runs(rows), config.arms()[0])
    assert cost["steps_per_second"] == pytest.approx(25_000 / 20 / 10)
    assert cost["days_of_all_games"] == pytest.approx(60 * 3 * 50e6 / 125 / 86_400)
    assert set(held(munchausen_atari, config, rows).values()) == {"reported"}


def test_munchausen_atari_in_full_is_the_published_protocol():
    config = munchausen_atari.Config(full=True)
    assert munchausen_atari.STUDY.steps(config) == 6 * 60 * 3 * 50_000_000
    assert munchausen_atari.STUDY.seconds(config) > 1e8
    rows = made_up(config.arms(), lambda arm: 2.0 if arm.agent.startswith("m-") else 1.0)
    assert list(held(munchausen_atari, config, rows).values())[:2] == ["held", "held"]


@pytest.mark.parametrize(
    ("module", "change", "match"),
    [
        (action_gap, {"alphas": (0.9, 0.5)}, "ascend"),
        (action_gap, {"alphas": (1.0,)}, "in \\(0, 1\\)"),
        (action_gap, {"game": "gym/CartPole-v1"}, "random policy"),
        (conservative_cartpole, {"rates": (0.5, 0.1, 0.01)}, "descend from 1"),
        (conservative_cartpole, {"rates": (1.0, 0.1)}, "three or more"),
        (momentum_minatar, {"seeds": 0}, "seeds"),
        (munchausen_atari, {"games": ("minatar/breakout",)}, "minatar/breakout"),
    ],
)
def test_refusals(module: types.ModuleType, change: dict[str, Any], match: str):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(module.Config(), **change)
