"""Tests of runs that write the next texts while they learn."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.experiments.runs import models, plans, resolved
from tests.records import as_killed, repeated

TASK = "tokens/arithmetic"
MODEL = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
SHORT = ("batch_size=8", "max_prompt_length=8", "max_new_tokens=4", "samples_per_prompt=2")
AHEAD = (*SHORT, "lag=1", "shards=2", "correction=truncate", "learning_rate=1e-2", "warmup_steps=0")
pytestmark = pytest.mark.usefixtures("few_sums")


def train(path: pathlib.Path, algorithm: str, model: Any, **fields: Any) -> pathlib.Path:
    given: dict[str, Any] = {"log_every": 1, "checkpoint_every": 2, "quiet": True, **fields}
    return experiments.train(algorithm, TASK, out=path, model=str(model), steps=4, **given)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("start") / "run"
    # The program of other modules' starts.
    settings = ("batch_size=4", *SHORT[1:3], "warmup_steps=0")
    return train(path, "sft", "tiny", model_flags=MODEL, settings=settings)


REWARD = {"reward": "python:tests.experiments.runs.lag_test:any_number"}
OWN = ("batch_size=8", *SHORT[1:3], "student_fraction=0.5", "lag=1", "shards=2", *AHEAD[-2:])
# By algorithm: settings, fields, and how old the texts of each step are, in steps.
RUNS: dict[str, tuple[tuple[str, ...], dict[str, Any], list[int]]] = {
    "rlhf": (AHEAD, REWARD, [0, 1, 1, 1]),
    "rlef": (tuple(x for x in AHEAD if "samples" not in x), REWARD, [0, 1, 1, 1]),
    "warp": ((*AHEAD, "members=2", "member_steps=2"), REWARD, [0, 1, 0, 1]),
    "gkd": ((*OWN, "mixing=row"), {"teacher": "START", "model_flags": MODEL}, [0, 1, 1, 1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", RUNS)
def test_a_killed_run_writes_what_was_in_flight_again(
    algorithm: str, start: pathlib.Path, tmp_path: pathlib.Path
):
    settings, fields, ages = RUNS[algorithm]
    student = "tiny" if "teacher" in fields else start  # Else it would have learnt all already.
    fields = {name: str(start) if x == "START" else x for name, x in fields.items()}
    whole = train(tmp_path / "whole", algorithm, student, settings=settings, **fields)
    table = repeated(whole)
    assert [float(row["sample_age"]) for row in table] == ages
    if "reward" in fields:  # Texts of the policy itself have a ratio of 1, all others have others.
        for row, age in zip(table, ages, strict=True):
            assert (abs(float(row["sampler_ratio"]) - 1) < 1e-3) == (age == 0), row
    part = as_killed(whole, tmp_path / "part", 2)
    experiments.resume(part, quiet=True, trust_code=True)
    assert repeated(part) == table
    texts = [(run / "samples.jsonl").read_text() for run in (part, whole)]
    assert texts[0] == texts[1] != ""
    a, b = (models.load(path).params for path in (part, whole))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def any_number(prompts: list[str], texts: list[str], references: list[str]) -> list[float]:
    """Returns rewards that differ between any two texts, nearly."""
    return [float(sum(map(ord, text)) % 7) for text in texts]


@pytest.mark.parametrize("agent", ["rlhf", "gkd"])
def test_a_run_from_before_there_was_a_lag_has_none(agent: str):
    plan = plans.Plan(agent=agent, environment=TASK, model="somewhere", settings=SHORT[:3])
    config = dataclasses.asdict(resolved.resolve(plan).config)
    del config["lag"], config["shards"]
    named = resolved.resolve(plan, {"config": config})
    assert (named.config.lag, named.config.shards) == (0, 1)
    assert not any("lag" in note or "shards" in note for note in named.notes)


def test_over_a_mesh_texts_are_not_written_ahead(start: pathlib.Path, tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match="lag=1 does not go with --mesh 1x1: programs that run"):
        train(tmp_path / "run", "rlhf", start, settings=AHEAD, reward="length", mesh="1x1")
    assert not (tmp_path / "run").exists()
