"""Tests of `kullback reproduce pipeline`."""

import dataclasses
import pathlib

import numpy as np
import pytest

from kullback.core import files
from kullback.experiments import reproduce
from kullback.experiments.pipelines import outputs, stages
from kullback.experiments.reproductions import pipeline

CONFIG = pipeline.Config()
TINY = dataclasses.replace(
    CONFIG,
    seeds=2,
    teacher_width=8,
    teacher_steps=2,
    start_steps=200,  # It ends its answers, and some are right.
    distilled_steps=2,
    prompts=1_000,
    reward_models=2,
    reward_steps=2,
    policy_steps=2,
    episodes=8,
)


def test_every_pipeline_can_be_run_and_shares_what_it_can(tmp_path: pathlib.Path):
    given = stages.read(pipeline.contents(CONFIG, 100))
    keys = {}
    for name, left_out in pipeline.LEFT_OUT.items():
        without = given.without(left_out)
        for stage in without.stages.values():
            stages.check(stage, trust_code=False)
        keys[name] = {n: one.key for n, one in outputs.plan(without, tmp_path).items()}
    whole = keys[pipeline.WHOLE]
    same = {
        name: {stage for stage, key in of.items() if key == whole[stage]}
        for name, of in keys.items()
    }
    before = {"teacher", "start"}
    assert same["distillation"] == before
    assert same["WARM"] == before | {"distilled", "pairs", "single"}
    assert same["WARP"] == {*whole} - {"policy", "bits"}
    assert same["reinforcement learning"] == {*whole} - {"member", "policy", "bits"}


def rows(losses: dict[str, float]) -> list[dict[str, object]]:
    """Returns two seeds, of which the whole pipeline ends at 0.9 and 0.7, less what is lost."""
    zeros = dict.fromkeys(pipeline.COLUMNS, 0.0)
    return [
        {"seed": seed, "without": name, "stage": stage, **zeros, "gold": gold}
        for seed, best in ((100, 0.9), (101, 0.7))
        for name in pipeline.LEFT_OUT
        for stage, gold in (
            *(("start", 0.1), ("policy", best - losses.get(name, 0.0))),
            ("bits", best - losses.get(name, 0.0) - 0.01),
        )
    ]


def test_what_is_lost_is_that_of_the_last_model_in_float():
    table = rows({"distillation": 0.2, "WARP": 0.0})
    np.testing.assert_allclose(pipeline.final(table, "distillation"), [0.7, 0.5])
    checks = {check.claim: check for check in pipeline.claims(CONFIG, {"stages": table})}
    verdicts = {
        name: checks[f"without {name} fewer sums are right at the end (share that is lost)"]
        for name in pipeline.LEFT_OUT
        if name != pipeline.WHOLE
    }
    assert verdicts["distillation"].verdict == "held" and verdicts["distillation"].is_headline
    assert verdicts["WARP"].verdict == "undecided"
    (bits,) = (check for claim, check in checks.items() if claim.startswith("four bits"))
    assert bits.verdict == "held"


def test_it_fits_half_an_hour():
    assert pipeline.STUDY.seconds(CONFIG) <= 1_800
    with pytest.raises(ValueError, match="reward_models"):
        pipeline.Config(reward_models=1)


@pytest.mark.slow
def test_it_runs(tmp_path: pathlib.Path):
    names = [field.name for field in dataclasses.fields(TINY)]
    changed = [n for n in names if getattr(TINY, n) != getattr(CONFIG, n)]
    given = [f"{name}={getattr(TINY, name)}" for name in changed]
    checks = reproduce.reproduce("pipeline", tmp_path / "out", given, lambda line: None)
    assert len(checks) == 5 + len(pipeline.COLUMNS) + 1
    table = files.read_csv(tmp_path / "out" / "stages.csv")
    assert {row["seed"] for row in table} == {100, 101}
    assert {row["without"] for row in table} == {*pipeline.LEFT_OUT}
    # What is shared is measured once, and is the same.
    for name in ("WARP", "reinforcement learning"):
        values = [
            [row["gold"] for row in table if (row["without"], row["stage"]) == (of, "distilled")]
            for of in (name, pipeline.WHOLE)
        ]
        assert values[0] == values[1]
