"""Tests of runs/learning_rates.py: defaults by the size of a trained model."""

import pathlib
from typing import Any

import pytest

from kullback.experiments.runs import learning_rates, plans, resolved
from kullback.lm import gemma
from tests.records import recorded

OLD = pathlib.Path(__file__).parents[1] / "fixtures" / "runs_of_0_1"
TASK = "tokens/arithmetic"


def plan(agent: str, *assignments: str, **fields: Any) -> plans.Plan:
    return plans.Plan(agent=agent, environment=TASK, settings=assignments, **fields)


@pytest.mark.parametrize(
    ("agent", "num_params", "rates"),
    [
        ("sft", 99_999_999, {}),
        ("sft", 268_098_176, {"learning_rate": 5e-5}),
        ("gkd", 999_885_952, {"learning_rate": 2e-5}),
        ("rlef", 268_098_176, {"learning_rate": 1e-6, "value_learning_rate": 9e-6}),
        ("bond", 268_098_176, {"learning_rate": 3e-6, "value_learning_rate": 9e-6}),
        ("reward-model", 268_098_176, {}),
        ("dpo", 268_098_176, {"learning_rate": 1e-6, "value_learning_rate": 9e-6}),
        ("warm", 268_098_176, {}),
    ],
)
def test_rates_by_size(agent: str, num_params: int, rates: dict[str, float]):
    assert learning_rates.by_size(agent, num_params) == rates


def test_a_trained_model_has_the_rate_of_its_size(monkeypatch: pytest.MonkeyPatch):
    model = str(OLD / "sft")
    small = resolved.resolve(plan("rlhf", model=model))
    assert learning_rates.sized(small) == small, "as recorded results were made"
    monkeypatch.setattr(learning_rates, "SMALL", 1_000)
    named = learning_rates.sized(small)
    assert named.config.learning.learning_rate == 1e-6
    assert named.config.value_learning_rate == 9e-6
    (note,) = named.notes
    assert note.startswith("value_learning_rate=9e-06, learning.learning_rate=1e-06: the default")
    assert "million parameters, a rule of thumb" in note
    # It is recorded as the default that it is: going on says nothing, whatever the size says then.
    monkeypatch.undo()
    again = resolved.resolve(named.plan, recorded(named))
    assert again.config == named.config and again.notes == ()


def test_a_published_model_has_the_rate_of_its_size_before_it_is_read():
    published = resolved.resolve(plan("sft", model="pretrained:gemma3-270m"))
    assert learning_rates.sized(published).config.learning.learning_rate == 5e-5


def test_a_rate_of_the_users_and_a_preset_without_learning_stay(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learning_rates, "SMALL", 1)
    model = str(OLD / "sft")
    for named in (
        resolved.resolve(plan("sft", "learning_rate=3e-4", model=model)),
        resolved.resolve(plan("sft", model=next(iter(gemma.PRESETS)))),
        resolved.resolve(plan("sft", model="nowhere")),
        resolved.resolve(plan("sft")),
    ):
        assert learning_rates.sized(named) == named
    half = learning_rates.sized(
        resolved.resolve(plan("rlhf", "learning.learning_rate=0.5", model=model))
    )
    assert half.config.learning.learning_rate == 0.5 and half.config.value_learning_rate == 9e-6
