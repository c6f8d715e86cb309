"""Tests of experiments/reproductions/{few_bits,quantisation}.py."""

import csv
import pathlib
from typing import Any

import numpy as np
import pytest

from kullback.experiments import reproduce
from kullback.experiments.reproductions import few_bits, quantisation, students, study, token_line
from kullback.lm.quantisation import Kept

TINY = token_line.Sizes(
    horizon=3,
    trajectories=8,
    batch_size=4,
    student_width=32,
    student_steps=2,
    steps=2,
    evaluation=8,
)


def steps_of(arm: study.Arm) -> tuple[dict[str, str], tuple[few_bits.Stage, ...]]:
    """Returns the names of an arm by format, and its stages."""
    compute: Any = arm.compute
    _, _, names, stages = compute.args
    return names, stages


def rows_of(config: quantisation.Config, good: bool) -> study.Rows:
    """Returns a row for each that arms yield; rounding to four bits costs 0.1."""
    values = {"float": 2.0, "rounded": 2.1, "distilled": 1.9}
    if good:
        values |= {"own": 2.02, "labels": 2.03, "teacher": 2.01, "distil, then bits": 1.93}
        values |= {"labels in float": 2.1, "teacher in float": 2.1, "bits first": 1.95}
    else:
        values |= {"own": 2.08, "labels": 2.01, "teacher": 2.09, "distil, then bits": 1.95}
        values |= {"labels in float": 2.0, "teacher in float": 2.0, "bits first": 1.93}
    rows: study.Rows = []
    for arm in quantisation.arms(config):
        seed = arm.columns["seed"]
        for form, name in steps_of(arm)[0].items():
            value = values[name]
            if name == "rounded" and form in config.eight_bits:
                value = 2.0005 if good else 2.05
            row = {"seed": seed, "arm": name, "format": form}
            rows.append({**row, "perplexity": value + 1e-4 * seed})
    return rows


@pytest.mark.parametrize("good", [True, False])
def test_what_is_judged(good: bool):
    config = quantisation.Config(seeds=3)
    rows = rows_of(config, good)
    checks = [*quantisation.claims(config, {"perplexities": rows})]
    expected = "held" if good else "contradicted"
    verdicts = [c.verdict for c in checks if c.verdict != "reported"]
    assert verdicts == [expected] * (2 * 6 + 4) and sum(c.is_headline for c in checks) == 2 * 3
    share = 0.8 if good else 0.2
    np.testing.assert_allclose(quantisation.won_back(rows, "own", "int4"), [share] * 3)
    reported = [c.claim for c in checks if c.verdict == "reported"]
    assert sum("published, of q4_0: 0.54" in claim for claim in reported) == 2


def test_the_picture_has_a_bar_for_each_format_and_target():
    config = quantisation.Config(seeds=2)
    cost, shares, order = quantisation.panels(config, rows_of(config, True)).draw().axes
    assert [len(axes.patches) for axes in (cost, shares, order)] == [2 * 4 + 2 * 2, 3 * 2, 3 * 2]
    assert [text.get_text() for text in cost.get_xticklabels()] == [*config.formats]
    heights = [bar.get_height() for bar in shares.patches]  # pyright: ignore
    np.testing.assert_allclose(heights, [0.8, 0.8, 0.7, 0.7, 0.9, 0.9], atol=1e-6)


def test_arms_that_are_compared_learn_as_many_steps():
    arms = [*quantisation.arms(quantisation.Config(seeds=2, first_seed=5))]
    assert len({arm.part for arm in arms}) == len(arms) == 2 * 16
    assert {arm.columns["seed"] for arm in arms} == {5, 6}
    after = {"float", "rounded", "distilled"}
    for names, stages in map(steps_of, arms):
        whole = {sum(stage.steps for stage in stages) for name in names.values()} - {2_000}
        assert whole <= {2_250} and bool(whole) == (not after & {*names.values()})
        # What is evaluated in a format was learnt in it, or in float.
        assert all(stages[-1].quantize in ("none", form) for form in names)


@pytest.mark.slow
def test_perplexity_is_that_of_the_teachers_next_tokens():
    first = few_bits.Stage("labels", "none", 2, 1e-2)
    params = few_bits.learnt(TINY, 0, (first,))
    names: dict[Kept, str] = {"none": "float", "int4": "rounded"}
    silent: Any = None
    rows = [*few_bits.rows(TINY, 0, names, (first,), silent)]
    setup = token_line.setups_of(TINY)(0)
    held_out = students.prefixes(setup, setup.teacher, {}, 0)
    p = np.exp(np.asarray(setup.teacher.apply({}, held_out.tokens), np.float64))[:, :-1]
    for row, held in zip(rows, (params, few_bits.rounded(params, "int4")), strict=True):
        logits = np.asarray(setup.student.apply(held, held_out.tokens), np.float64)[:, :-1]
        log_q = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
        expected = np.exp(-np.sum(p * log_q, -1).mean())
        np.testing.assert_allclose(row["perplexity"], expected, rtol=1e-5)
    assert rows[1]["perplexity"] != rows[0]["perplexity"]


@pytest.mark.slow
def test_it_runs(tmp_path: pathlib.Path):
    settings = ["seeds=2", "first_seed=3", "four_bits=int4", "eight_bits=int8"]
    sizes = "horizon trajectories batch_size student_steps steps evaluation"
    settings += [f"line.{name}={getattr(TINY, name)}" for name in sizes.split()]
    checks = reproduce.reproduce("quantisation", tmp_path / "out", settings, lambda line: None)
    assert sum(c.verdict != "reported" for c in checks) == 6 + 1
    with open(tmp_path / "out" / "perplexities.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["seed"] for row in rows} == {"3", "4"} and len(rows) == 2 * (3 + 2 + 2 + 4 + 2 + 2)
    assert (tmp_path / "out" / "quantisation.svg").is_file()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"seeds": 0}, "seeds must be >= 1"),
        ({"first_seed": -1}, "first_seed must be >= 0"),
        ({"four_bits": ()}, "four_bits must name one format"),
        ({"line": token_line.Sizes()}, "student_width must be a multiple of 32, got 16"),
    ],
)
def test_refusals(field: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        quantisation.Config(**field)
