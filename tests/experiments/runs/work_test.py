"""Tests of experiments/runs/work.py: epochs in place of steps, from a plan to a longer run."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from kullback import experiments
from kullback.experiments.runs import kinds, plans, resolved, run_folder, work
from kullback.experiments.sweeps import sweep_plan
from kullback.lm.epochs import indices

MODEL = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
SHORT = ("warmup_steps=1", "batch_size=4", "max_prompt_length=8", "max_new_tokens=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns a folder of 10 rows to learn, of which one is too long, and of 2 to hold out."""
    path = tmp_path_factory.mktemp("rows")
    lines = [{"prompt": f"{n}", "chosen": "a", "rejected": "b" * (1 + n % 2)} for n in range(9)]
    lines += [{"prompt": [9] * 99, "chosen": "a", "rejected": "b"}]
    for name, rows in (("train", lines), ("test", lines[:2])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (path / f"{name}.jsonl").write_text(text)
    return path


def given(folder: pathlib.Path, **fields: Any) -> dict[str, Any]:
    settings = (*SHORT, "overlong=drop", *fields.pop("settings", ()))
    environment = f"tokens/preferences:{folder}"
    return {
        "environment": environment,
        "model": "tiny",
        "model_flags": MODEL,
        "settings": settings,
        **fields,
    }


def table(assignments: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, _, value in (text.partition("=") for text in assignments)}


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize(("num_items", "per_step"), [(9, 4), (8, 4), (3, 4), (1, 1)])
def test_every_item_comes_as_often_as_there_are_epochs(epochs: int, num_items: int, per_step: int):
    steps = work.Epoch(num_items, "examples", per_step).steps(epochs)

    def least(num_steps: int) -> int:
        drawn = [
            indices(n, num_items=num_items, batch_size=per_step, seed=1) for n in range(num_steps)
        ]
        return np.bincount(np.concatenate(drawn), minlength=num_items).min() if drawn else 0

    assert least(steps) >= epochs > least(steps - 1)


@pytest.mark.parametrize(
    ("agent", "settings", "expected"),
    [
        ("sft", (), (9, "examples", 4)),
        # Rows of 16 tokens hold 4 examples of 4: BOS, a digit, a letter, the end.
        ("sft", ("pack=True", "reduction=token", "schedule=cosine"), (3, "packed rows", 4)),
        ("reward-model", (), (9, "pairs", 4)),
    ],
)
def test_an_epoch_is_of_what_is_batched(
    agent: str, settings: tuple[str, ...], expected: tuple[int, str, int], folder: pathlib.Path
):
    plan = plans.Plan(agent=agent, **given(folder, epochs=2, settings=settings))
    assert plan.steps == 0
    recipe = kinds.Recipe(named=resolved.resolve(plan))
    with recipe.built() as built:
        assert built.epoch == expected
        named = recipe.in_steps(built, quiet=True).named
    steps = -(-2 * expected[0] // 4)
    assert (named.plan.epochs, named.plan.steps) == (0, steps)
    rate = named.config.learning.rate
    assert rate == built.agent.config.learning.rate
    assert rate.decay_steps == (steps if "schedule=cosine" in settings else 0)


@pytest.mark.slow
def test_a_run_of_epochs_says_its_steps_and_is_prolonged(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    path = experiments.train("sft", out=tmp_path / "run", **given(folder, epochs=1))
    said = capsys.readouterr().out
    assert said.startswith("1 epoch of 9 examples, 4 a step: 3 steps\n")
    assert run_folder.RunFolder(path).config()["plan"]["steps"] == 3
    with pytest.raises(ValueError, match=r"epochs must be >= 1, got 0"):
        experiments.resume(path, epochs=0)
    with pytest.raises(ValueError, match="steps=9 and epochs=2 both say when the run ends"):
        experiments.resume(path, steps=9, epochs=2)
    experiments.resume(path, epochs=2)
    assert "2 epochs of 9 examples, 4 a step: 5 steps" in capsys.readouterr().out
    assert run_folder.RunFolder(path).config()["plan"]["steps"] == 5
    assert run_folder.RunFolder(path).rows()[-1]["steps"] == "5"
    with pytest.raises(ValueError, match="epochs=1 are 3 steps, less than the run's 5; it can onl"):
        experiments.resume(path, epochs=1)
    assert run_folder.RunFolder(path).config()["plan"]["steps"] == 5


def test_a_sweep_counts_the_steps_of_its_epochs(folder: pathlib.Path):
    fields = given(folder, epochs=2)
    (asked_for,) = sweep_plan.configurations(
        {
            "agents": ["sft"],
            "environments": [fields["environment"]],
            "plan": {"model": "tiny", "epochs": 2},
            "settings": table(fields["settings"]),
            "model_flags": table(MODEL),
        }
    )
    plan = sweep_plan.check(asked_for).configuration.plan((0,))
    assert (plan.steps, plan.epochs) == (5, 0)


def test_runs_without_epochs_refuse_them(folder: pathlib.Path):
    with pytest.raises(
        ValueError, match="epochs are passes over the examples of a language run; t"
    ):
        plans.Plan(agent="dqn", environment="toy/chain", epochs=2)
    with pytest.raises(ValueError, match="steps=3 and epochs=2 both say when the run ends"):
        plans.Plan(agent="sft", **given(folder, steps=3, epochs=2))
    with pytest.raises(ValueError, match=r"epochs must lie in \[0, 1,000,000\], got -1"):
        plans.Plan(agent="sft", **given(folder, epochs=-1))
