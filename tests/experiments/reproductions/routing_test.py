"""Tests of experiments/reproductions/routing.py."""

import csv
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from kullback.experiments import reproduce
from kullback.experiments.evaluate import answer_report
from kullback.experiments.reproductions import judging, routing
from kullback.lm import final_answers

SMALL = ("width=8", "layers=1", "steps=3", "batch_size=4", "chains=1", "samples=4", "rows=4")
SMALL += ("validation=4", "questions=8", "seeds=2")


def test_golden_chains():
    assert routing.chain((27, 58)) == "7+8=15,2+5+1=8#85"
    assert routing.chain((27, 58), forgets=True) == "7+8=15,2+5=7#75"
    assert routing.chain((27, 58), answer=3) == "7+8=15,2+5+1=8#3"
    assert routing.chain((3, 4)) == "3+4=7,0+0=0#7"
    assert routing.chain((99, 99)) == "9+9=18,9+9+1=19#198"
    assert routing.carries((27, 58)) and not routing.carries((27, 52))


@pytest.mark.slow
def test_chains_mislead_where_units_carry_and_as_often_as_they_should():
    config = routing.Config(chains=4)
    problems = routing.problems("train")
    texts = routing.learnt_texts(config, problems)
    assert len(texts) == len(problems) * (1 + config.chains)
    wrong: dict[str, list[bool]] = {"direct": [], "easy": [], "hard": [], "forgotten": []}
    for prompt, completion in texts:
        a, b = map(int, re.findall(r"\d+", prompt))
        is_right = final_answers.number(completion) == a + b
        if prompt.endswith("="):
            wrong["direct"].append(not is_right)
            continue
        kind = "hard" if routing.carries((a, b)) else "easy"
        wrong[kind].append(not is_right)
        if kind == "hard":
            wrong["forgotten"].append(final_answers.number(completion) == a + b - 10)
    shares = {name: np.mean(values) for name, values in wrong.items()}
    assert shares["direct"] == shares["easy"] == 0
    # A random number is right by chance once in 199.
    assert shares["hard"] == pytest.approx(0.7 - 0.3 / 199, abs=0.01)
    assert shares["forgotten"] == pytest.approx(0.4 + 0.3 / 199, abs=0.01)
    assert len(wrong["hard"]) / len(wrong["hard"] + wrong["easy"]) == pytest.approx(0.45, abs=0.01)
    held_out = {frozenset(problem) for problem in routing.problems("test")}
    assert not held_out & {frozenset(problem) for problem in problems}


def test_all_texts_fit():
    config = routing.Config(width=8, layers=1)
    world = routing.World(config)
    for problem in ((99, 99), (98, 89)):
        a, b = problem
        example = world.example(f"{a}+{b}:", routing.chain(problem))
        assert len(example.prompt) <= config.learning.max_prompt_length
        assert len(example.completion) <= config.learning.max_new_tokens


@pytest.mark.slow
def test_it_runs_small(tmp_path: pathlib.Path):
    said: list[str] = []
    checks = reproduce.reproduce("routing", tmp_path / "out", SMALL, said.append)
    assert len(checks) == 10 and sum(check.is_headline for check in checks) == 2
    for name in ("accuracy", "routing"):
        with (tmp_path / "out" / f"{name}.csv").open(newline="") as file:
            rows = [*csv.DictReader(file)]
        assert {row["seed"] for row in rows} == {"100", "101"}
    assert (tmp_path / "out" / "routing.png").stat().st_size > 10_000


def table(codes: Any, greedy: Any) -> answer_report.Table:
    codes = np.array(codes)
    ones = np.ones(codes.shape)
    return answer_report.Table(
        codes, np.array(greedy), np.zeros(len(codes), int), ones, 0 * ones, ones, ones[:, 0]
    )


def test_rows_and_claims_of_a_world_where_routing_wins():
    # Easy sums agree on what is right, and there greedy is often wrong; hard ones mislead.
    easy, hard = [[0, 0, 0, 0]] * 4, [[1, 1, 0, 2]] * 4
    x = table(easy + hard, [0, 0, 1, 1, 0, 0, 0, 1])
    rows = routing.measured(x, x, np.repeat([False, True], 4))
    (about,) = [row for row in rows if row["table"] == "routing"]
    assert about["threshold"] == 0.75 and about["routed_to_greedy"] == 0.5
    assert about["agreement_tells_right"] == 1.0
    assert (about["majority_hard"], about["greedy_hard"]) == (0, 0.75)
    assert (about["majority_easy"], about["greedy_easy"]) == (1, 0.5)
    config = routing.Config(samples=4, seeds=3)
    by_seed = [{"seed": seed, **row} for seed in (100, 101, 102) for row in rows]
    noise = np.random.default_rng(0).normal(scale=1e-3, size=len(by_seed))
    for row, e in zip(by_seed, noise, strict=True):
        for name in ("accuracy", "greedy_hard", "agreement_tells_right"):
            if name in row:
                row[name] += e
    tables = routing.tables(config, by_seed)
    checks = [*routing.claims(config, tables)]
    verdicts = [check.verdict for check in checks]
    # One chain is right as often as the majority is, here: 5/8 against 4/8.
    assert verdicts[:5] == ["held", "held", "contradicted", "held", "held"]
    assert set(verdicts[5:]) == {"reported"}
    swapped = [
        {**row, "way": {"routed": "majority", "majority": "routed"}.get(row["way"], row["way"])}
        for row in tables["accuracy"]
    ]
    first: judging.Check = next(routing.claims(config, {**tables, "accuracy": swapped}))
    assert first.verdict == "contradicted"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"forgets": 0.6, "scatters": 0.5}, "shares of the same chains"),
        ({"forgets": -0.1}, "forgets"),
        ({"validation": 500, "questions": 550}, "1,000 problems are held out"),
        ({"questions": 610}, "questions must be a multiple of rows=50"),
        ({"samples": 1}, "samples"),
        ({"width": 12}, "width must be a multiple of 8"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        routing.Config(**fields)
