"""Tests of experiments/reproductions/sight_minatar.py."""

import csv
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from kullback.experiments import reproduce
from kullback.experiments.reproductions import sight_minatar, small_sight, study

SMALL = ("teacher_steps=400", "sight.patch=5", "sight.num_soft=4", "sight.encoder_width=8")
SMALL += ("sight.width=8", "sight.layers=1", "num_envs=4", "steps=64", "policy_steps=64")
SMALL += ("distillation.iteration.length=4", "distillation.iteration.batch_size=8")
SMALL += ("improvement.iteration.length=4", "improvement.iteration.batch_size=8")
SMALL += ("episodes=2", "limit=20", "film=10", "records=2", "seeds=2")


@pytest.mark.slow
def test_it_runs_small(tmp_path: pathlib.Path):
    said: list[str] = []
    out = tmp_path / "out"
    checks = reproduce.reproduce("sight-minatar", out, SMALL, said.append)
    assert len(checks) == 10 and sum(check.is_headline for check in checks) == 3
    for name, size in {"returns": 2 * (3 + 3 * 3), "curves": 2 * 3 * 2}.items():
        with (out / f"{name}.csv").open(newline="") as file:
            rows = [*csv.DictReader(file)]
        assert len(rows) == size and {row["seed"] for row in rows} == {"100", "101"}
    assert (out / "sight_minatar.png").stat().st_size > 10_000
    with Image.open(out / "sight_minatar.gif") as film:
        assert 1 < len([*ImageSequence.Iterator(film)]) <= 10


RETURNS = {
    ("random", "drawn"): 0.5,
    ("teacher", "drawn"): 5.0,
    ("teacher", "greedy"): 6.0,
    ("lambda 0", "drawn"): 3.0,
    ("lambda 1", "drawn"): 4.5,
    ("lambda 1", "another game's frames"): 0.4,
    ("RL", "drawn"): 8.0,
}


def verdicts(returns: dict[tuple[str, str], float]) -> list[str]:
    """Returns verdicts of three seeds with these returns, and some noise."""
    random = np.random.default_rng(0)
    rows: list[study.Row] = []
    for seed in (100, 101, 102):
        for player in sight_minatar.LABELS:
            for acts in ("drawn", "greedy", "another game's frames"):
                value = returns.get((player, acts), returns[player, "drawn"])
                noise = 0.02 * random.normal()
                row = {"seed": seed, "player": player, "acts": acts, "cut": 0.1}
                rows.append({**row, "return": value + noise})
    given = {"returns": rows, "curves": [], "teachers": []}
    return [check.verdict for check in sight_minatar.claims(sight_minatar.Config(), given)]


def test_a_picture_shows_players_and_curves_with_gaps():
    """No episode may end in an interval of a short run."""
    rows = [
        {"seed": 100, "player": p, "acts": a, "cut": 0.0, "return": 1.0}
        for p in sight_minatar.LABELS
        for a in ("drawn", "greedy")
    ]
    curves = [
        {"seed": 100, "player": p, "frames": n, "return_mean": None if n == 1 else 2.0}
        for p in ("lambda 0", "lambda 1", "RL")
        for n in (1, 2)
    ]
    grid = sight_minatar.panels(
        sight_minatar.Config(), {"returns": rows, "curves": curves, "teachers": []}
    )
    assert len(grid.draw().axes) == 2


def test_claims_of_a_student_that_keeps_and_improves():
    assert verdicts(RETURNS) == ["held"] * 6 + ["reported"] * 4


@pytest.mark.parametrize(
    ("number", "player", "value"),
    [
        (0, ("lambda 1", "drawn"), 2.0),
        (1, ("lambda 0", "drawn"), 4.9),
        (2, ("RL", "drawn"), 4.0),
        (3, ("teacher", "drawn"), 8.5),
        (4, ("teacher", "greedy"), 9.0),
        (5, ("lambda 1", "another game's frames"), 4.9),
    ],
)
def test_a_claim_fails_where_its_number_does(number: int, player: tuple[str, str], value: float):
    assert verdicts({**RETURNS, player: value})[number] == "contradicted"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"game": "gym/CartPole-v1"}, "game must be one of minatar"),
        ({"scale": 2}, r"sight.side must be the 10 cells of 2 pixels of a frame, got 10"),
        ({"num_envs": 3}, "not a multiple of batch_size=128"),
        ({"film": 0}, "film"),
        (
            {"sight": small_sight.Sizes(side=20, patch=2, num_soft=25)},
            r"sight.side must be the 10 cells of 1 pixels",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        sight_minatar.Config(**fields)
