"""Tests of whose code runs: what a user types, not what a file names."""

import json
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from kullback.experiments.commands import child
from kullback.experiments.runs import acting, plans, resolved, run_folder, training
from kullback.experiments.sweeps import sweep_plan, sweep_runs, sweep_worker
from kullback.lm import tasks, tokenizer

OLD = pathlib.Path(__file__).parent / "fixtures" / "runs_of_0_1"
EVIL = """
import pathlib
pathlib.Path(__file__).with_name("marker").write_text("ran")
def f(prompts, texts, references):
    return [0.0] * len(texts)
"""
REWARD = "0.5*exact+python:evil:f"
SWEEP = f"""
agents = ["rlhf"]
environments = ["tokens/arithmetic"]
out = "runs"
[plan]
model = "start"
reward = "{REWARD}"
"""
FIELDS: dict[str, Any] = {
    "agent": "rlhf",
    "environment": "tokens/arithmetic",
    "reward": REWARD,
    "model": "start",
}


@pytest.fixture
def stranger(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """Makes a stranger's folder, and enters it."""
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("evil", None)


def begun(folder: pathlib.Path, **more: object) -> None:
    config = {"plan": {**plans.Plan(**FIELDS).to_json(), **more}}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("use", [training.resume, acting.load], ids=["resume", "load"])
def test_a_run_of_a_strangers_runs_no_code(stranger: pathlib.Path, use: object):
    begun(stranger)
    with pytest.raises(ValueError) as error:
        use(stranger)  # pyright: ignore[reportCallIssue]
    assert not (stranger / "marker").exists()
    assert "config.json: its " in str(error.value) and "add --trust-code" in str(error.value)
    assert "evil" in str(error.value) and "\n" not in str(error.value)


def test_a_run_does_not_vouch_for_itself(stranger: pathlib.Path):
    begun(stranger, trust_code=True)
    with pytest.raises(ValueError, match=r"plan\.trust_code must be absent"):
        training.resume(stranger)
    assert "trust_code" not in plans.Plan(agent="dqn", environment="toy/chain").to_json()


def test_the_users_word_is_taken(stranger: pathlib.Path):
    begun(stranger)
    with pytest.raises((ValueError, OSError), match="tokenizer is missing"):  # It went on.
        training.resume(stranger, trust_code=True)
    typed = plans.Plan(**FIELDS)
    typed.require_trust()
    untrusted = plans.Plan.from_json(typed.to_json())
    assert untrusted == typed and untrusted.code == f"reward {REWARD!r}"
    with pytest.raises(ValueError, match="--trust-code"):
        untrusted.require_trust()
    plans.Plan.from_json(typed.to_json(), trust_code=True).require_trust()
    for harmless in ("exact", "reward-model:runs/a", ""):
        fields = {**typed.to_json(), "reward": harmless}
        plans.Plan.from_json(fields).require_trust()


def test_an_environment_of_an_untrusted_plan_is_not_made():
    plan = plans.Plan(agent="dqn", environment="toy/chain")
    object.__setattr__(plan, "environment", "gym/evil:Game-v0")
    object.__setattr__(plan, "trust_code", False)
    with pytest.raises(ValueError, match="--trust-code"):
        resolved.resolve(plan)
    named = resolved.resolve(plan, with_environment=False)
    for make in (named.make_environment, named.make_eval_environment):
        with pytest.raises(ValueError, match="--trust-code"):
            make(1)


@pytest.mark.parametrize("use", [training.resume, acting.load], ids=["resume", "load"])
def test_a_run_in_a_strangers_environment_runs_no_code(stranger: pathlib.Path, use: Any):
    begun(stranger, agent="dqn", environment="gym/evil:Game-v0", reward="", model="", family="gym")
    with pytest.raises(ValueError) as error:
        use(stranger)
    assert "config.json: its environment 'gym/evil:Game-v0' would run" in str(error.value)
    assert "--trust-code" in str(error.value) and "\n" not in str(error.value)
    assert not (stranger / "marker").exists()
    with pytest.raises(ValueError, match=r"of evil, 'Game-v0'"):  # It registers none, once it ran.
        use(stranger, trust_code=True)
    assert (stranger / "marker").exists()


def test_an_environment_that_is_typed_may_run(stranger: pathlib.Path):
    with pytest.raises(ValueError, match=r"of evil, 'Game-v0'"):
        training.train("dqn", "gym/evil:Game-v0", out=stranger / "run")
    assert (stranger / "marker").exists() and not (stranger / "run").exists()


def test_a_sweep_of_a_strangers_environments_runs_no_code(stranger: pathlib.Path):
    sweep = {"agents": ["dqn"], "environments": ["gym/evil:Game-v0"]}
    arguments = (sweep, stranger / "runs", {}, 1, "sweep.toml")
    checked = sweep_runs.runs(*arguments, trust_code=False, dry_run=True)
    assert checked["untrusted"] == ["environment 'gym/evil:Game-v0'"]
    sweep_runs.runs(*arguments, trust_code=True, dry_run=True)
    with pytest.raises(ValueError, match=r"sweep\.toml: its environment .* add --trust-code"):
        sweep_runs.runs(*arguments, trust_code=False)
    assert not (stranger / "marker").exists()


def test_a_sweep_of_a_strangers_runs_no_code(stranger: pathlib.Path):
    sweep = {
        "agents": ["rlhf"],
        "environments": ["tokens/arithmetic"],
        "plan": {"model": "start", "reward": REWARD},
    }
    for dry_run in (False, True):
        arguments = (sweep, stranger / "runs", {}, 1, "sweep.toml")
        if dry_run:
            checked = sweep_runs.runs(*arguments, trust_code=False, dry_run=True)
            assert checked["untrusted"] == [f"reward {REWARD!r}"] and len(checked["runs"]) == 1
            assert sweep_runs.runs(*arguments, trust_code=True, dry_run=True)["untrusted"] == []
        else:
            with pytest.raises(ValueError, match=r"sweep\.toml: its reward .* add --trust-code"):
                sweep_runs.runs(*arguments, trust_code=False)
    assert not (stranger / "marker").exists()
    with pytest.raises(ValueError, match="trust_code"):
        sweep_plan.configurations({**sweep, "plan": {"trust_code": True}})


def test_a_dry_run_tells_the_steps_of_epochs_without_a_strangers_code(stranger: pathlib.Path):
    rows = OLD / "rows.jsonl"
    plan = {"model": str(OLD / "sft"), "reward": REWARD, "epochs": 3}
    sweep = {
        "agents": ["rlhf"],
        "environments": [f"tokens/jsonl:{rows}"],
        "plan": plan,
        "settings": {"batch_size": 8, "samples_per_prompt": 4},
    }
    arguments = (sweep, stranger / "runs", {}, 1, "sweep.toml")
    (run,) = sweep_runs.runs(*arguments, trust_code=False, dry_run=True)["runs"]
    task, tokens = tasks.make(f"tokens/jsonl:{rows}"), tokenizer.load(OLD / "sft" / "tokenizer")
    num_prompts = len(task.examples("train", tokens, None)[0])
    assert (run["plan"]["steps"], run["plan"]["reward"]) == (math.ceil(3 * num_prompts / 2), REWARD)
    assert not (stranger / "marker").exists() and "evil" not in sys.modules


def test_children_of_a_sweep_are_told(tmp_path: pathlib.Path):
    plan = plans.Plan(agent="dqn", environment="toy/chain")
    run = run_folder.RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_config({"plan": plan.to_json()})
    for trusted in (True, False):
        job = sweep_worker.Job(
            name="run",
            folder=str(run.path),
            log="",
            plan=plan.to_json(),
            threads=1,
            done=0,
            home="",
            trust_code=trusted,
        )
        new = sweep_worker._train_arguments(job)
        assert ("--trust-code" in new) == trusted
        run.metrics_file.touch()
        going_on = child.command_of(["train", *new])
        assert going_on[:2] == ["train", "--resume"]
        assert ("--trust-code" in going_on) == trusted


def test_the_programs_search_no_folder_of_a_strangers(stranger: pathlib.Path):
    """Files called as libraries, in the folder that one is in, are not run either."""
    for library in ("numpy", "jax", "tomllib", "gymnasium"):
        (stranger / f"{library}.py").write_text(EVIL)
    begun(stranger)
    program = pathlib.Path(sys.executable).with_name("kullback")
    done = subprocess.run([program, "train", "--resume", "."], capture_output=True, text=True)
    assert done.returncode == 2 and "--trust-code" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
    done = subprocess.run([program, "sweep", "sweep.toml", "--dry-run"], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"needs --trust-code: reward" in done.stdout
    assert sorted(os.listdir(stranger))[:3] == ["config.json", "evil.py", "gymnasium.py"]
    assert not (stranger / "marker").exists()
