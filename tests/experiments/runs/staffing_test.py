"""Tests of experiments/runs/staffing.py: who acts for a run of games."""

import json
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import psutil
import pytest

from kullback import experiments
from kullback.core import acting, checked_lines, checkpoints, crews
from kullback.experiments.runs import plans, resolved, staffing
from tests import ray_here
from tests.records import repeated, wait_for_checkpoint

PLAN: dict[str, Any] = {
    "agent": "dqn",
    "environment": "gym/CartPole-v1",
    "num_envs": 4,
    "steps": 240,
    "seed": 3,
    "settings": ("shards=2", "lag=1", "min_replay_size=40", "batch_size=8", "torso=mlp_small"),
}


def test_a_recipe_makes_elsewhere_what_a_named_run_acts_with():
    named = resolved.resolve(plans.Plan(**PLAN))
    spec = named.make_environment(1).spec
    recipe = staffing.Recipe(named=named, make_agent=None, make_environment=None, spec=spec, rows=2)
    local = pickle.loads(pickle.dumps(recipe))()
    learner = named.make_agent(spec).learner.init(jax.random.key(0))
    key = np.asarray(jax.random.key_data(jax.random.key(1)))
    leaves = acting.read(local.program, learner)
    ticks = local.act(acting.Ask(1, 3, 8, 4, key, seed=5), leaves)
    assert [tick.action.shape for tick in ticks] == [(2,)] * 3
    local.close()


def test_restarts_are_kept_up_to_a_checkpoint(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / staffing.RESTARTS
    restarts = staffing.Restarts(path=path)
    restarts.begin(0)
    for steps in (40, 80, 120):
        restarts.write(crews.Restart(1, steps, "worker 0 (here, pid 5) is gone"))
    assert "pid 5) is gone: shard 1 began anew at step 120\n" in capsys.readouterr().err
    with path.open("a") as file:
        file.write('{"shard": 1, "st')  # A kill.
    restarts.begin(120)
    kept = [(line.get("shard", int), line.get("steps", int)) for line in checked_lines.begin(path)]
    assert kept == [(1, 40), (1, 80)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"environment": "toy/chain", "settings": ()}, "workers=2 act in environments on the host"),
        ({"settings": ("min_replay_size=40", "batch_size=8")}, r"must lie in \[1, 1\]"),
        ({"settings": ("shards=3",)}, "shards=3 must divide num_envs=4"),
        ({"environment": "toy/chain", "settings": ("shards=2",)}, "are for environments on the ho"),
        (
            {"environment": "toy/chain", "settings": (), "ray": "auto"},
            "in environments on the host",
        ),
        ({"workers": 0, "ray": "auto"}, "acts by workers=N, which says how many"),
        ({"workers": 3, "ray": "auto"}, r"workers=3 must lie in \[1, 2\]"),
    ],
)
def test_refuses_what_nobody_can_act(fields: dict[str, Any], message: str, tmp_path: pathlib.Path):
    plan: dict[str, Any] = PLAN | {"workers": 2} | fields
    agent, environment = plan.pop("agent"), plan.pop("environment")
    with pytest.raises(ValueError, match=message):
        experiments.train(agent, environment, out=tmp_path / "run", **plan)
    assert not any(tmp_path.iterdir())


# Who acts: the arguments of Python that run a command, its further flags, and a word of the command
# line of each worker.
WHERE = {
    "here": (("-m", "kullback.experiments.cli"), ("--workers=2",), "kullback.core.actor_process"),
    "cluster": (("-c", ray_here.program(2)), ("--workers=2", "--ray=auto"), "ray::Actor"),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", WHERE)
def test_a_run_with_workers_is_that_with_threads_and_outlives_one(
    where: str, tmp_path: pathlib.Path
):
    if where == "cluster":
        pytest.importorskip("ray", reason="the extra kullback[ray] is not installed")
    program, more, word = WHERE[where]
    variables = ray_here.variables(tmp_path)
    settings = (f"--set={setting}" for setting in PLAN["settings"])
    command = [
        *("train", "dqn", PLAN["environment"], "--num-envs=4", "--seed=3"),
        *("--checkpoint-every=400", *settings),
    ]

    def ended(name: str, program: Sequence[str], *more: str) -> list[dict[str, str]]:
        out = (f"--out={tmp_path / name}", "--steps=240", "--log-every=40")
        line = [sys.executable, *program, *command, *out, *more]
        done = subprocess.run(line, capture_output=True, env=variables)
        assert done.returncode == 0, done.stderr.decode()
        return repeated(tmp_path / name)

    assert ended("threads", WHERE["here"][0]) == ended("workers", program, *more) != []
    out = tmp_path / "killed"
    with subprocess.Popen(
        [
            sys.executable,
            *program,
            *command,
            f"--out={out}",
            "--steps=4000",
            "--log-every=400",
            *more,
        ],
        stderr=subprocess.PIPE,
        env=variables,
        text=True,
    ) as run:
        # A worker that is killed before its first chunk is replaced, and nothing was lost.
        wait_for_checkpoint(out, 400, run, 300)
        children = psutil.Process(run.pid).children(recursive=True)
        workers = [x.pid for x in children if word in " ".join(x.cmdline())]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        _, errors = run.communicate()
    assert run.returncode == 0, errors
    (line,) = map(json.loads, (out / staffing.RESTARTS).read_text().splitlines())
    assert re.search(rf"pid {workers[0]}\) (was ended by SIGKILL|is gone: )", line["cause"])
    assert line["steps"] > 0 and line["cause"] in errors


SHORT = ("batch_size=4", "samples_per_prompt=2", "max_new_tokens=2")
SETTINGS = (*SHORT, "lag=1", "shards=2", "correction=truncate")
# Of a run of games and of one of texts: what begins it, and its settings.
BEGUN = {
    "dqn": (("gym/CartPole-v1", "--num-envs=4"), PLAN["settings"]),
    "rlhf": (("tokens/arithmetic", "--reward=length", "--model=UNTUNED"), SETTINGS),
}


@pytest.mark.slow
@pytest.mark.parametrize("agent", BEGUN)
def test_a_run_whose_cluster_loses_its_head_says_so_and_goes_on(
    agent: str, untuned: pathlib.Path, tmp_path: pathlib.Path
):
    pytest.importorskip("ray", reason="the extra kullback[ray] is not installed")
    variables, out = ray_here.variables(tmp_path), tmp_path / "run"
    program = (sys.executable, "-m", "kullback.experiments.cli", "train")
    given = {"env": variables, "stderr": subprocess.PIPE, "text": True}
    every = 400 if agent == "dqn" else 20

    def saved() -> int:
        return checkpoints.steps(out / "checkpoints")[-1]

    with ray_here.head(tmp_path, 2) as head:
        arguments, settings = BEGUN[agent]
        new = (agent, *(word.replace("UNTUNED", str(untuned)) for word in arguments))
        more = ("--steps=10000000", f"--log-every={every}", f"--checkpoint-every={every}")
        more += ("--workers=2", f"--ray={head.address}", f"--out={out}")
        sets = (f"--set={setting}" for setting in settings)
        with subprocess.Popen([*program, *new, *more, *sets], **given) as run:
            wait_for_checkpoint(out, every, run, 300)
            os.kill(head.pid, signal.SIGKILL)
            _, errors = run.communicate(timeout=300)
    assert run.returncode == 1, errors
    assert f"the head of the cluster ({head.address}) is gone" in errors
    assert f"kullback train --resume {out}" in errors and "Traceback" not in errors
    kept = saved()
    with subprocess.Popen([*program, f"--resume={out}"], **given) as run:
        wait_for_checkpoint(out, kept + every, run, 300)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=300)
    assert run.returncode == 130, errors
    assert saved() >= kept + every
