"""Tests of experiments/reproductions/sight_nano.py."""

import csv
import pathlib
from typing import Any

import numpy as np
import pytest

from kullback.experiments import reproduce
from kullback.experiments.reproductions import sight_nano, small_sight, study

SMALL = ("sight.encoder_width=8", "sight.width=32", "sight.layers=1", "questions.facts=4")
SMALL += ("questions.learnt=9", "questions.held_out=4", "batch_size=4")
SMALL += ("encoder.pictures=8", "encoder.held_out=4", "encoder.steps=2", "encoder.batch_size=4")
SMALL += ("teacher_steps=2", "student_steps=2", "bits_steps=2", "seeds=2")


@pytest.mark.slow
def test_it_runs_small(tmp_path: pathlib.Path):
    said: list[str] = []
    out = tmp_path / "out"
    checks = reproduce.reproduce("sight-nano", out, SMALL, said.append)
    assert len(checks) == 23 and sum(check.is_headline for check in checks) == 2
    with (out / "answers.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 2 * (1 + 3 * (1 + 2 * 3)) and {row["seed"] for row in rows} == {
        "100",
        "101",
    }
    assert {row["form"] for row in rows if row["model"] == "half"} == {*sight_nano.FORMS}
    assert (out / "sight_nano.png").stat().st_size > 10_000


RIGHT = {"retrieval": 0.9, "facts": 0.5, "reasoning": 0.6}  # Of the wider student.


def tables(noise: float = 0.002, **changed: float) -> study.Tables:
    """Returns answers of three seeds, in the paper's order, but for the wider student's changes."""
    random, rows = np.random.default_rng(0), list[study.Row]()
    for seed in (100, 101, 102):
        encoder = {"model": "encoder", "form": "float", "questions": "cells", "right": 0.99}
        rows.append({"seed": seed, **encoder})
        for model in ("teacher", *sight_nano.STUDENTS):
            for form in sight_nano.FORMS:
                for kind, share in RIGHT.items():
                    right = {"teacher": 0.97, "half": share, "quarter": share - 0.2}[model]
                    right = changed.get(f"{model}_{form}_{kind}".replace(" ", "_"), right)
                    row = {"seed": seed, "model": model, "form": form, "questions": kind}
                    rows.append({**row, "right": right + noise * random.normal()})
    return {"answers": rows}


def verdicts(given: study.Tables) -> list[str]:
    return [check.verdict for check in sight_nano.claims(sight_nano.Config(), given)]


def test_claims_of_the_papers_order():
    assert verdicts(tables()) == ["held"] * 15 + ["reported"] * 8


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"half_float_facts": 0.95}, {0, 1}),
        ({"half_float_reasoning": 0.95}, {0, 2}),
        ({"half_rounded_retrieval": 0.55}, {3, 5}),
        ({"half_learnt_on_retrieval": 0.4}, {6, 7, 8}),
        ({"teacher_float_facts": 0.7}, {10}),
        ({"quarter_rounded_facts": 1.0, "quarter_rounded_retrieval": 1.0}, {13}),
    ],
)
def test_a_claim_fails_where_its_number_does(change: dict[str, float], failed: set[int]):
    given = verdicts(tables(**change))
    assert {n for n, verdict in enumerate(given) if verdict == "contradicted"} == failed


def test_a_share_is_of_the_teachers():
    given = tables(0.0, teacher_float_facts=0.8, half_float_facts=0.6)["answers"]
    np.testing.assert_allclose(sight_nano.kept(given, "half", "float", "facts"), [0.75] * 3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"sight": small_sight.Sizes(side=32, patch=8, num_soft=16, width=48)},
            r"sight\.width must be a multiple of 32",
        ),
        (
            {"sight": small_sight.Sizes(side=32, patch=8, num_soft=4)},
            "16 cells, a soft token each, got side=32 and num_soft=4",
        ),
        ({"bits_steps": 0}, "bits_steps"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        sight_nano.Config(**fields)
