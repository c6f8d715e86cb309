"""Tests of experiments/reproductions/sight_shapes.py."""

import csv
import pathlib
from typing import Any

import numpy as np
import pytest

from kullback.experiments import reproduce
from kullback.experiments.reproductions import sight_shapes, small_sight, study

SMALL = ("sight.patch=8", "sight.encoder_width=8", "sight.encoder_layers=1", "sight.width=8")
SMALL += ("sight.layers=1", "encoder.pictures=8", "encoder.held_out=4", "encoder.steps=2")
SMALL += ("encoder.batch_size=4", "pictures=12", "steps=2", "batch_size=4", "policy_pictures=8")
SMALL += ("policy_steps=2", "policy_batch=4", "samples_per_prompt=2", "held_out=9", "records=1")
SMALL += ("seeds=2",)
FURTHER = sight_shapes.COUNTS


@pytest.mark.slow
def test_it_runs_small(tmp_path: pathlib.Path):
    said: list[str] = []
    out = tmp_path / "out"
    checks = reproduce.reproduce("sight-shapes", out, SMALL, said.append)
    assert len(checks) == 11 and sum(check.is_headline for check in checks) == 3
    sizes = {"answers": 2 * 3 * 5, "counts": 2 * 3 * 8, "policy": 2, "encoder": 2}
    for name, size in sizes.items():
        with (out / f"{name}.csv").open(newline="") as file:
            rows = [*csv.DictReader(file)]
        assert len(rows) == size and {row["seed"] for row in rows} == {"100", "101"}
    for name in ("sight_shapes", "pictures"):
        assert (out / f"{name}.png").stat().st_size > 10_000


def tables(noise: float = 0.002) -> study.Tables:
    """Returns tables of three seeds, as of a decoder that sees and counts further by reward."""
    random = np.random.default_rng(0)
    right = {"sft": 0.95, "sft-longer": 0.96, "rloo": 0.94}
    beyond = {"sft": 0.1, "sft-longer": 0.1, "rloo": 0.8}
    guessed = {"colours": 0.2, "shapes": 0.125, "total": 0.11, "relation": 0.5}
    guessed[FURTHER] = 0.125
    rows: list[study.Row] = []
    for seed in (100, 101, 102):
        at = {"seed": seed}
        for model in sight_shapes.MODELS:
            for kind, guess in guessed.items():
                values = {"right": right[model], "shuffled": guess, "guessed": guess}
                drawn = {name: x + noise * random.normal() for name, x in values.items()}
                row = {**at, "model": model, "questions": kind, **drawn}
                rows += study.tagged("answers", [row])
            for count in range(8):
                share = beyond[model] if count > 4 else right[model]
                row = {**at, "model": model, "count": count}
                rows += study.tagged("counts", [{**row, "right": share + noise * random.normal()}])
        rows += study.tagged(
            "policy", [{**at, "step": n, "reward": 0.5, "kl": 0.1} for n in (1, 2)]
        )
        rows += study.tagged("encoder", [{**at, "cells_right": 0.99}])
    return study.split(rows, "answers", "counts", "policy", "encoder")


def verdicts(given: study.Tables) -> list[str]:
    return [check.verdict for check in sight_shapes.claims(sight_shapes.Config(), given)]


def changed(column: str, value: float, **where: Any) -> study.Tables:
    """Returns the tables with another value, but for its noise, in the rows with these values."""
    given = tables()

    def row_of(row: study.Row) -> study.Row:
        is_other = column not in row or any(row.get(k) != x for k, x in where.items())
        return row if is_other else {**row, column: value + (row[column] % 0.003)}

    return {name: [row_of(row) for row in rows] for name, rows in given.items()}


def test_claims_of_a_decoder_that_sees():
    assert verdicts(tables()) == ["held"] * 6 + ["reported"] * 5


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"column": "right", "value": 0.6, "model": "sft", "questions": "relation"}),
        (1, {"column": "shuffled", "value": 0.8, "model": "sft", "questions": "colours"}),
        (2, {"column": "right", "value": 0.05, "model": "rloo", "count": 6}),
        (3, {"column": "right", "value": 0.99, "model": "sft-longer", "count": 7}),
        (
            4,
            {"column": "shuffled", "value": 0.4, "model": "rloo", "questions": sight_shapes.COUNTS},
        ),
        (5, {"column": "right", "value": 0.8, "model": "rloo", "questions": "colours"}),
    ],
)
def test_a_claim_fails_where_its_number_does(number: int, change: dict[str, Any]):
    if number in (2, 3):  # All counts beyond.
        given = tables()
        counts = [
            {**row, "right": change["value"] + row["right"] % 0.003}
            if row["model"] == change["model"] and row["count"] > 4
            else row
            for row in given["counts"]
        ]
        assert verdicts({**given, "counts": counts})[number] == "contradicted"
        return
    assert verdicts(changed(**change))[number] == "contradicted"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"most": 2}, r"most must lie in \[3, 8\]"),
        ({"largest": 4}, r"largest must lie in \[5, 9\]"),
        ({"policy_steps": 205}, "policy_steps must be a multiple of records=10"),
        (
            {"sight": small_sight.Sizes(side=32, patch=4, num_soft=4)},
            "16 cells, a soft token each, got side=32 and num_soft=4",
        ),
        ({"samples_per_prompt": 1}, "samples_per_prompt >= 2"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        sight_shapes.Config(**fields)


def test_all_questions_and_answers_fit():
    config = sight_shapes.Config(sight=small_sight.Sizes(side=32, patch=8, num_soft=16, width=8))
    world = sight_shapes.World(config)
    assert world.horizon == 2, "an answer is one token, and the end"
    assert world.width <= 1 + 2 + 16 + 8
    assert world.seer.decoder.config.context_length >= world.length
