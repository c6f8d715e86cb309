"""Tests of runs of `rlhf` by its variants: names, records, and bits after an interruption."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.experiments.runs import models, opened, plans, resolved
from kullback.lm import rlhf
from tests.records import as_killed, repeated

TASK = "tokens/arithmetic"
MODEL = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
SHORT = ("batch_size=4", "max_prompt_length=8", "max_new_tokens=4", "samples_per_prompt=2")
pytestmark = pytest.mark.usefixtures("few_sums")


def plan(*settings: str, agent: str = "rlhf") -> plans.Plan:
    return plans.Plan(agent=agent, environment=TASK, model="somewhere", settings=settings)


def train(path: pathlib.Path, algorithm: str, model: Any, **fields: Any) -> pathlib.Path:
    given: dict[str, Any] = {"log_every": 2, "checkpoint_every": 2, "quiet": True, **fields}
    return experiments.train(algorithm, TASK, out=path, model=str(model), steps=4, **given)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("start") / "run"
    return train(path, "sft", "tiny", model_flags=MODEL, settings=SHORT[:3])


@pytest.mark.slow
def test_ppo_with_epochs_and_minibatches_goes_on_bit_by_bit(
    start: pathlib.Path, tmp_path: pathlib.Path
):
    settings = (*SHORT, "variant=ppo", "epochs=2", "minibatches=2", "learning_rate=1e-2")
    whole = train(tmp_path / "whole", "rlhf", start, settings=settings, reward="length")
    table = repeated(whole)
    told = {"value_error", "clip_fraction", "kl_old", "ratio_max", "ratio_error", "equal_rewards"}
    assert told <= set(table[0])
    assert all(float(row["ratio_error"]) < 1e-5 < float(row["ratio_max"]) - 1 for row in table)
    config = json.loads((whole / "config.json").read_text())["config"]
    assert (config["variant"], config["baseline"], config["epochs"]) == ("ppo", "value", 2)
    part = as_killed(whole, tmp_path / "part", 2)
    experiments.resume(part, quiet=True)
    assert repeated(part) == table
    a, b = (models.load(path).params for path in (part, whole))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    moved = jax.tree.map(lambda x, y: bool(np.any(x != y)), a, models.load(start).params)
    assert any(jax.tree.leaves(moved))


def test_a_name_gives_settings_and_those_beside_it_win():
    config = resolved.resolve(plan("variant=dapo", "clip_high=0.5")).config
    assert config == rlhf.of_variant("dapo", clip_high=0.5)
    member = resolved.resolve(plan("variant=grpo", agent="warp")).config.member
    assert (member.variant, member.baseline, member.normalisation) == ("grpo", "group", "length")
    assert member.reference == "moving-average", "a variant does not speak of it"


def test_a_record_decides_what_a_name_gave():
    today = resolved.resolve(plan("variant=dapo", "epochs=2"))
    record = {"variant": "dapo", "clip_high": 0.3, "epochs": 2, "learning": {"widths": "steps"}}
    recorded = {"config": record}
    named = resolved.resolve(plan("variant=dapo", "epochs=2"), recorded)
    assert named.config == rlhf.of_variant("dapo", epochs=2, clip_high=0.3)
    assert today.config.clip_high == 0.28
    assert any("goes on with clip_high=0.3, as it began" in note for note in named.notes)


def test_a_run_that_began_before_there_were_variants_is_what_it_was():
    """Its record has neither names nor ratios: nothing is said, and REINFORCE it stays."""
    old = pathlib.Path(__file__).parents[1] / "fixtures" / "runs_of_0_1" / "rlhf"
    named = resolved.of(opened.open(old))
    c = named.config
    assert (c.variant, c.ratio, c.updates, c.oversample) == ("reinforce", "none", 1, 1)
    assert not any("variant" in note or "ratio" in note for note in named.notes)
