"""Tests of experiments/reproductions/real_rl.py."""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from kullback.core import files
from kullback.experiments import reproduce
from kullback.experiments.pipelines import stages
from kullback.experiments.reproductions import (
    real_bits,
    real_rl,
    real_sft,
    real_summaries,
    study,
)

CONFIG = real_rl.Config()


def tables_of(control: float, *, kl: float = 0.5) -> study.Tables:
    """Returns tables in which best of N gains the root of its KL, and policies so much more."""
    rows: study.Rows = []
    arms = {real_rl.START: 0.0}
    arms |= {real_rl.best(n): real_rl.best_of_n.kl_bound(n) for n in CONFIG.best_of}
    arms[real_rl.POLICY] = kl
    for arm, of_arm in arms.items():
        for n in range(CONFIG.sft.examples):
            gain = 0.1 * math.sqrt(max(of_arm, 0.0))
            gain += control * (1 + 0.01 * (n % 4)) if arm == real_rl.POLICY else 0.0
            row = {"arm": arm, "seed": 100, "example": n, "paper": n // 3, "kl": of_arm}
            row |= dict.fromkeys(real_summaries.COLUMNS, 0.3)
            rows.append({**row, "entailment": 0.4 + gain, "control": 0.4 + gain})
    judges = [
        {"role": role, "kind": kind, "accuracy": 0.8, "auc": 0.9}
        for role, kind in real_summaries.ROLES.items()
    ]
    return {"base": [{"model": "m", "sha256": "a5"}], "judges": judges, "summaries": rows}


@pytest.mark.parametrize(("control", "verdict"), [(0.05, "held"), (-0.05, "contradicted")])
def test_what_is_judged(control: float, verdict: str):
    checks = [*real_rl.claims(CONFIG, tables_of(control))]
    (beyond,) = [check for check in checks if "best of N at equal KL" in check.claim]
    assert beyond.verdict == verdict and beyond.is_headline and beyond.num_seeds == 34
    (rouge,) = [check for check in checks if check.claim.startswith("ROUGE-L falls")]
    assert rouge.evidence.startswith("0.02 [0.02, 0.02]")
    drawn = real_rl.panels(CONFIG, tables_of(control)).draw().axes
    assert len(drawn) == 4


def test_best_of_n_has_no_kl_beyond_its_last():
    checks = [*real_rl.claims(CONFIG, tables_of(0.1, kl=9.0))]
    assert not [check for check in checks if "best of N at equal KL" in check.claim]
    (said,) = [check for check in checks if check.claim.startswith("KL of the policies")]
    assert said.evidence == "9" and said.verdict == "reported"


def test_best_of_n_is_a_line_over_the_root_of_its_kl():
    rows = tables_of(0.0)["summaries"]
    for kl in (0.0, 0.1, 1.0):
        np.testing.assert_allclose(
            real_rl.at_kl(CONFIG, rows, "control", kl), 0.4 + 0.1 * math.sqrt(kl)
        )


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_shortest_runs_can_be_run(steps: int):
    config = dataclasses.replace(CONFIG, steps=steps, sft_steps=steps)
    given = real_rl.stages(config, pathlib.Path("judges/reward"), 101)
    tuned = real_sft.stage(dataclasses.replace(config.sft, steps=steps), 16, 101)
    format_learnt = real_bits.stage(real_bits.Config(steps=steps), "q4_0", "tokens/jsonl:texts")
    given |= {"tuned": tuned, "format": format_learnt}
    for stage in stages.read({"stage": given}).stages.values():
        stages.check(stage, trust_code=False)


def test_policies_begin_where_the_start_ends():
    given = real_rl.stages(CONFIG, pathlib.Path("judges/reward"), 101)
    policy = given["policy"]
    assert policy["model"] == "{start}" and policy["reward"] == "entailment:judges/reward"
    for stage in stages.read({"stage": given}).stages.values():
        stages.check(stage, trust_code=False)
    assert [arm.part for arm in real_rl.arms(CONFIG)] == [
        *("base", "entailment-judge", "control-judge", "start"),
        *("policy-100", "policy-101"),
    ]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"best_of": (4, 2)}, "best_of must be numbers >= 2 that rise"),
        ({"best_of": (2, 6)}, "the last of best_of must be a multiple of 4"),
        ({"batch_size": 6}, "batch_size must be a multiple of 4"),
        ({"papers": 1}, "papers must lie in"),
    ],
)
def test_refusals(field: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **field)


@pytest.mark.slow
def test_it_runs(tiny_base: pathlib.Path, tmp_path: pathlib.Path):
    """Judges learn for two steps, if what they are tuned from is installed."""
    real_models = real_rl.real_models
    try:
        real_models.require(str(tiny_base), *real_summaries.PACKAGES)
    except ValueError as error:
        pytest.skip(str(error))
    given = [f"model={tiny_base}", "seeds=1", "rank=2", "sft_steps=1", "steps=1", "batch_size=4"]
    given += ["best_of=2,4", "papers=2", "max_prompt_length=260", "max_new_tokens=4"]
    given += ["entailment_steps=2", "control_steps=2", "least_area=0"]
    out = tmp_path / "out"
    checks = reproduce.reproduce("real-rl", out, given, lambda line: None)
    assert sum(check.is_headline for check in checks) >= 2
    rows = files.read_csv(out / "summaries.csv")
    assert {row["arm"] for row in rows} == {"start", "best of 2", "best of 4", "RLOO"}
    assert len(rows) == 4 * 6 and all(0 <= row["control"] <= 1 for row in rows)
    # The best of more texts is no worse by the reward.
    means = [
        np.mean([row["entailment"] for row in rows if row["arm"] == arm])
        for arm in ("start", "best of 2", "best of 4")
    ]
    assert means == sorted(means)
