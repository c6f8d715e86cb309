"""Tests of runs/schedules.py: how long a schedule is, and what prolonging a run means."""

from typing import Any

import pytest

from kullback.experiments.runs import plans, resolved
from tests.records import recorded

TASK = "tokens/arithmetic"


def plan(agent: str, *assignments: str, **fields: Any) -> plans.Plan:
    return plans.Plan(agent=agent, environment=TASK, settings=assignments, **fields)


@pytest.mark.parametrize(
    ("agent", "assignments", "length"),
    [
        ("sft", ("schedule=cosine",), 500),
        ("reward-model", ("schedule=linear",), 500),
        ("sft", ("schedule=cosine", "decay_steps=900"), 900),
        ("sft", (), 0),
        # Each member of WARP has an optimiser of its own.
        ("warp", ("schedule=cosine", "members=2", "member_steps=125"), 125),
    ],
)
def test_a_schedule_is_as_long_as_the_run(agent: str, assignments: tuple[str, ...], length: int):
    named = resolved.resolve(plan(agent, *assignments, steps=500))
    assert named.config.learning.decay_steps == length and named.notes == ()
    again = resolved.resolve(named.plan, recorded(named))
    assert again.config == named.config and again.notes == ()


def test_a_run_that_is_prolonged_keeps_the_length_of_its_schedule():
    named = resolved.resolve(plan("sft", "schedule=linear", "final_fraction=0.1", steps=500))
    longer = resolved.resolve(
        plan("sft", "schedule=linear", "final_fraction=0.1", steps=800), recorded(named)
    )
    assert longer.config == named.config
    assert longer.notes == (
        "the learning rate falls until step 500, and stays at 3e-05 until step 800",
    )
    members = ("schedule=cosine", "members=2", "member_steps=100")
    begun = resolved.resolve(plan("warp", *members, steps=200))
    more = resolved.resolve(plan("warp", *members, steps=600), recorded(begun))
    assert more.config == begun.config and more.notes == ()


def test_a_run_is_not_prolonged_where_it_would_learn_nothing():
    named = resolved.resolve(plan("sft", "schedule=cosine", steps=500))
    with pytest.raises(ValueError, match=r"rate is 0 from step 500 on .*steps=501 would learn not"):
        resolved.resolve(plan("sft", "schedule=cosine", steps=501), recorded(named))
    with pytest.raises(ValueError, match="rate is 0 from step 400 on"):
        resolved.resolve(plan("sft", "schedule=cosine", "decay_steps=400", steps=500))
    with pytest.raises(ValueError, match="decay_steps=20 must be more than warmup_steps=20"):
        resolved.resolve(plan("sft", "schedule=cosine", steps=20))


def test_an_old_run_has_the_settings_that_it_had():
    named = resolved.resolve(plan("sft", steps=500))
    record = recorded(named)
    later = resolved.LATER & set(record["config"]["learning"])  # Others are of agents.
    assert {"schedule", "optimizer", "quantize"} <= later
    for name in later:
        del record["config"]["learning"][name]
    again = resolved.resolve(named.plan, record)
    assert again.config == named.config and again.notes == ()
