"""Tests of runs whose models learn and act in formats of few bits."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.core import trees
from kullback.experiments.evaluate import quantised
from kullback.experiments.runs import models
from kullback.lm import quantisation
from tests.records import as_killed, repeated

MODEL = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
SHORT = ("batch_size=4", "max_prompt_length=8", "max_new_tokens=4", "warmup_steps=0")
SCHEME = quantisation.Scheme("int4", "int8")
FEW_BITS = ("quantize=int4", "quantize_table=int8", "learning_rate=1e-2")
pytestmark = pytest.mark.usefixtures("few_sums")


def train(path: pathlib.Path, *settings: str, **fields: Any) -> pathlib.Path:
    given = {"steps": 4, "log_every": 2, "checkpoint_every": 2, "quiet": True, **fields}
    given = {"agent": "sft", "environment": "tokens/arithmetic", **given}
    return experiments.train(out=path, settings=(*SHORT, *settings), **given)


def params_of(path: pathlib.Path) -> Any:
    return models.load(path).params


def largest_error(params: Any) -> float:
    return quantised.worst(quantised.quantise(params, SCHEME)).relative_error


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return train(tmp_path_factory.mktemp("start") / "run", steps=2, model="tiny", model_flags=MODEL)


@pytest.fixture(scope="module")
def run(start: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return train(tmp_path_factory.mktemp("few") / "run", *FEW_BITS, model=str(start))


@pytest.mark.slow
def test_its_model_has_the_numbers_of_the_format(run: pathlib.Path, start: pathlib.Path):
    assert largest_error(params_of(start)) > 1e-3
    assert largest_error(params_of(run)) < 1e-6


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_bit_by_bit(run: pathlib.Path, tmp_path: pathlib.Path):
    part = as_killed(run, tmp_path / "part", 2)
    experiments.resume(part, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, params_of(part), params_of(run))
    assert repeated(part) == repeated(run)


@pytest.mark.slow
def test_of_adapters_the_base_alone_has_a_format(start: pathlib.Path, tmp_path: pathlib.Path):
    path = train(tmp_path / "run", *FEW_BITS, "lora.rank=2", "lora.targets=up", model=str(start))
    base = quantisation.held(params_of(start), SCHEME)
    changed = {
        name: np.asarray(leaf - trees.named_leaves(base)[name])
        for name, leaf in trees.named_leaves(params_of(path)).items()
    }
    (up,) = (name for name, difference in changed.items() if np.any(difference))
    assert up.endswith("/up") and np.linalg.matrix_rank(changed[up][0], tol=1e-5) == 2


def letters(prompts: list[str], texts: list[str], references: list[str]) -> list[float]:
    """Rewards each text by its letters."""
    del prompts, references
    return [sum(map(ord, text)) / 100 for text in texts]


@pytest.mark.slow
def test_the_average_of_policies_is_written_in_the_format(
    start: pathlib.Path, tmp_path: pathlib.Path
):
    path = train(
        tmp_path / "run",
        *(*FEW_BITS, "samples_per_prompt=2", "members=2", "member_steps=2"),
        agent="warp",
        model=str(start),
        reward=f"python:{__name__}:letters",
    )
    assert largest_error(params_of(path / "merged-000004")) < 1e-6


@pytest.mark.slow
def test_a_reward_model_has_no_format(start: pathlib.Path, tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match="a reward model computes in float32"):
        train(
            tmp_path / "run",
            "quantize=int4",
            agent="reward-model",
            environment="tokens/preferences:x.jsonl",
            model=str(start),
        )
