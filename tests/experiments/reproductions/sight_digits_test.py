"""Tests of experiments/reproductions/sight_digits.py."""

import csv
import pathlib
from typing import Any

import numpy as np
import pytest

from kullback.experiments import reproduce
from kullback.experiments.reproductions import digit_models, sight_digits, study

SMALL = ("sight.encoder_width=8", "sight.width=8", "sight.layers=1", "coder.hidden=8")
SMALL += ("coder.patch=4", "coder.num_codes=6", "coder_steps=2", "coder_batch=4", "copies=1")
SMALL += (
    "rewarding.steps=2",
    "control.steps=2",
    "control.hidden=4",
    "learnt=20",
    "judged=10",
    "few=5",
)
SMALL += ("controlled=10", "held_out=10", "steps=2", "batch_size=4", "policy_steps=2")
SMALL += ("policy_batch=8", "samples_per_prompt=2", "drawn=10", "records=1", "seeds=2")


@pytest.mark.slow
def test_it_runs_small(tmp_path: pathlib.Path):
    pytest.importorskip("sklearn", reason="the extra kullback[digits] is not installed")
    said: list[str] = []
    out = tmp_path / "out"
    checks = reproduce.reproduce("sight-digits", out, SMALL, said.append)
    assert len(checks) == 22 and sum(check.is_headline for check in checks) == 4
    sizes = {"judges": 2 * 3, "readings": 2 * 3, "drawings": 2 * 5, "policy": 2 * 4, "shown": 5}
    for name, size in sizes.items():
        with (out / f"{name}.csv").open(newline="") as file:
            rows = [*csv.DictReader(file)]
        assert len(rows) == size
        seeds = {row["seed"] for row in rows}
        assert seeds == ({"100"} if name == "shown" else {"100", "101"})
    for name in ("sight_digits", "drawings"):
        assert (out / f"{name}.png").stat().st_size > 4_000


def tables(noise: float = 0.002) -> study.Tables:
    """Returns tables of three seeds, as of a decoder that reads and draws, and hacks its judge."""
    random = np.random.default_rng(0)
    rows: list[study.Row] = []

    def drawn(**values: float) -> dict[str, float]:
        return {name: x + noise * random.normal() for name, x in values.items()}

    spread = {"distance": 3.0, "distinct": 0.9, "copied": 0.1}
    rights = {"plain": 0.8, "guided": 0.9, "coded": 0.95}
    for seed in (100, 101, 102):
        at = {"seed": seed}
        for name in digit_models.JUDGES:
            rows += study.tagged("judges", [{**at, "judge": name, **drawn(right=0.95, nats=0.2)}])
        for model in ("sft", *digit_models.CLIMBED):
            row = {**at, "model": model, **drawn(right=0.95, shuffled=0.1, guessed=0.1)}
            rows += study.tagged("readings", [row])
        for model, way in sight_digits.PICTURES:
            shares = {f"{name}_right": rights[way] for name in digit_models.JUDGES}
            row = {**at, "model": model, "way": way, **drawn(**shares), **drawn(**spread)}
            rows += study.tagged("drawings", [row])
        for model, gap in {"many": 0.05, "few": 0.2}.items():
            for step, nats, right in ((0, 0.6, 0.75), (9, 0.1, 0.8)):
                values = {f"{name}_nats": nats for name in digit_models.JUDGES}
                values |= {f"{name}_right": right for name in digit_models.JUDGES}
                values[f"{model}_right"] += gap
                row = {**at, "model": model, "step": step, **drawn(**values, kl=1.0)}
                rows += study.tagged("policy", [row])
    return study.split(rows, "judges", "readings", "drawings", "policy")


def verdicts(given: study.Tables) -> list[str]:
    return [check.verdict for check in sight_digits.claims(sight_digits.Config(), given)]


def changed(table: str, column: str, value: float, **where: Any) -> study.Tables:
    """Returns the tables with another value, but for its noise, in the rows with these values."""
    given = {**tables()}
    given[table] = [
        {**row, column: value + row[column] % 0.003}
        if all(row[name] == x for name, x in where.items())
        else row
        for row in given[table]
    ]
    return given


def test_claims_of_a_decoder_that_reads_and_draws():
    assert verdicts(tables()) == ["held"] * 11 + ["reported"] * 11


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"table": "readings", "column": "right", "value": 0.7, "model": "sft"}),
        (1, {"table": "readings", "column": "shuffled", "value": 0.5, "model": "sft"}),
        (
            2,
            {
                "table": "drawings",
                "column": "control_right",
                "value": 0.5,
                "model": "sft",
                "way": "guided",
            },
        ),
        (
            3,
            {
                "table": "drawings",
                "column": "control_right",
                "value": 0.95,
                "model": "sft",
                "way": "plain",
            },
        ),
        (4, {"table": "policy", "column": "many_nats", "value": 0.9, "model": "many", "step": 9}),
        (5, {"table": "policy", "column": "many_right", "value": 0.7, "model": "many", "step": 9}),
        (
            6,
            {
                "table": "policy",
                "column": "control_right",
                "value": 0.7,
                "model": "many",
                "step": 9,
            },
        ),
        (7, {"table": "policy", "column": "few_nats", "value": 0.9, "model": "few", "step": 9}),
        (8, {"table": "policy", "column": "few_right", "value": 0.7, "model": "few", "step": 9}),
        (
            9,
            {"table": "policy", "column": "control_right", "value": 0.7, "model": "few", "step": 9},
        ),
        (10, {"table": "policy", "column": "few_right", "value": 0.81, "model": "few", "step": 9}),
    ],
)
def test_a_claim_fails_where_its_number_does(number: int, change: dict[str, Any]):
    assert verdicts(changed(**change))[number] == "contradicted"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"learnt": 1_000}, r"1797 that there are, got 1000 \+ 300 \+ 400 \+ 297"),
        ({"few": 301}, r"few must lie in \[1, judged=300\]"),
        ({"guidance": 1.0}, r"guidance must be > 1 and finite"),
        ({"drawn": 105}, "drawn must be a multiple of 10"),
        ({"unasked": 0.0}, r"unasked must lie in \(0, 1\)"),
        ({"policy_steps": 305}, "policy_steps must be a multiple of records=10"),
        ({"samples_per_prompt": 1}, "samples_per_prompt >= 2"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        sight_digits.Config(**fields)
