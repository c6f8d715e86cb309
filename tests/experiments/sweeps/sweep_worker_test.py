"""Tests of experiments/sweeps/sweep_worker.py: a run's process is given the whole plan."""

import argparse
from typing import Any

import pytest

from kullback.experiments.commands import train
from kullback.experiments.runs import plans
from kullback.experiments.sweeps import sweep_worker

GAME: dict[str, Any] = {
    "agent": "m-dqn",
    "environment": "minatar/breakout",
    "seed": 3,
    "num_seeds": 2,
    "num_envs": 8,
    "eval_every": 500,
    "eval_episodes": 7,
    "eval_max_steps": 90,
    "settings": ("temperature=0.1", "hidden=64, 32"),
    "environment_flags": ("sticky_action_prob=0.2",),
    "log_every": 50,
    "checkpoint_every": 60,
}
TEXTS: dict[str, Any] = {
    "agent": "rlhf",
    "environment": "tokens/arithmetic",
    "model": "tiny",
    "model_flags": ("num_layers=2",),
    "tokenizer": "folder with a space",
    "teacher": "runs/x",
    "reward": "exact-0.01*length",
    "frozen": "bfloat16",
    "control_tokens": "parse",
    "mesh": "4x2",
}
SIGHT: dict[str, Any] = {
    "agent": "sft",
    "environment": "tokens/jsonl:rows.jsonl",
    "model": "sees",
    "images": True,
}


@pytest.mark.parametrize("fields", [GAME, TEXTS, SIGHT], ids=["game", "texts", "sight"])
def test_the_command_line_of_a_run_has_its_plan(fields: dict[str, Any]):
    plan = plans.Plan(**fields, steps=700)
    job = sweep_worker.Job(
        name="run", folder="out/run", log="", plan=plan.to_json(), threads=1, done=0, home=""
    )
    parser = argparse.ArgumentParser()
    train.add_parser(parser.add_subparsers())
    options = vars(parser.parse_args(["train", *sweep_worker._train_arguments(job)]))
    given = {name: options[name] for name in plan.to_json() if options.get(name) is not None}
    assert plans.Plan(**given) == plan
    assert str(options["out"]) == job.folder and not options["trust_code"]
    assert given.keys() >= fields.keys(), "what was not handed on has no other value by chance"
