"""Tests of experiments/gang_ray.py: processes of one run that a Ray cluster starts."""

import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

import pytest

from kullback.core import checkpoints
from kullback.experiments import cli, gang_ray
from kullback.experiments.commands import train
from tests import ray_here, several
from tests.records import wait_for_checkpoint

TASK = "tokens/arithmetic"


def test_each_process_is_told_of_the_run_and_not_of_the_gang(tmp_path: pathlib.Path):
    typed = (
        f"train sft {TASK} --mesh 2x1 --set batch_size=8 --set lora.rank=2 --steps 40 --seed 3 "
        "--trust-code --ray auto --processes 2"
    )
    options = cli.parse(typed.split())
    command = train._words(options, ["--out=new"])
    assert not any("ray" in word or "processes" in word for word in command)
    joining = [*gang_ray._spelled(command), *gang_ray._joining("10.0.0.1:9000", 2, 1)]
    assert joining[-5:-3] == ["--out", "new"]
    again = cli.parse(joining)
    joined = {"coordinator": "10.0.0.1:9000", "num_processes": 2, "process_id": 1}
    of_gang = {"ray": None, "processes": None}
    expected = vars(options) | joined | of_gang | {"out": pathlib.Path("new")}
    assert vars(again) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--ray", "auto"],
            "--ray ADDRESS goes with --processes N, of a language run over a mesh, or",
        ),
        (
            ["--processes", "2"],
            "--ray ADDRESS goes with --processes N, of a language run over a mesh",
        ),
        (
            ["--ray", "auto", "--processes", "2", "--workers", "2"],
            "and --processes learn together: name one",
        ),
        (["--ray", "auto", "--processes", "2"], "add --mesh, such as 2x1 for one device each"),
        (
            ["--ray", "auto", "--processes", "2", "--mesh", "2x1", "--distributed"],
            "--ray starts the processes: leave the other flags of processes out",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["train", "sft", TASK, *flags]) == 2
    assert message in capsys.readouterr().err


class Alive:
    """Stands for the handle of a member, which says how its process ended."""

    def __init__(self, said: Any):
        self.said = said

    @property
    def poll(self) -> "Alive":
        return self

    def remote(self) -> Any:
        return self.said


def test_who_was_killed_is_named_and_not_who_saw_it():
    class Ray:
        class exceptions:  # As the library's module is called.
            RayError = RuntimeError

        @staticmethod
        def get(said: Any) -> Any:
            return said

    gang = gang_ray.Gang(ray=Ray(), count=3, command=(), path=pathlib.Path("run"), again="")
    names = [f"process {n} (host, pid {n})" for n in range(3)]
    saw, was_killed = (
        (1, "process 2 is gone"),
        (-9, "it ended with signal SIGKILL; its last line: x"),
    )
    members = {1: Alive(None), 2: Alive(was_killed)}
    ended = gang._first(0, saw, members, names)
    assert ended.name == names[2]
    assert gang_ray._described(ended) == "ended with signal SIGKILL"
    refused = gang._first(0, saw, {1: Alive((2, "no such model"))}, names)
    assert (refused.status, refused.error) == (2, "no such model")


@pytest.mark.slow
def test_a_gang_begins_anew_when_a_process_is_killed(tmp_path: pathlib.Path):
    pytest.importorskip("ray", reason="the extra kullback[ray] is not installed")
    out = tmp_path / "run"
    model = ("--model=tiny", "--model-flag=num_layers=1", "--model-flag=embed_dim=16")
    settings = ("batch_size=8", "max_prompt_length=8", "max_new_tokens=4")
    command = [
        *(sys.executable, "-c", ray_here.program(2), "train", "sft", TASK, *model, "--mesh=2x1"),
        *(f"--set={setting}" for setting in settings),
        *("--steps=400", "--log-every=10", "--checkpoint-every=20", f"--out={out}"),
        *("--ray=auto", "--processes=2"),
    ]
    variables = {"JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": several.FAST}
    with subprocess.Popen(
        command,
        env={**ray_here.variables(tmp_path), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as gang:
        assert gang.stdout is not None
        lines = [gang.stdout.readline() for _ in range(2)]
        pid = re.fullmatch(r"process 1 \(.*, pid (\d+)\) writes to .*process-1.log\n", lines[1])
        assert pid is not None, (lines, gang.communicate())
        wait_for_checkpoint(out, 20, gang, 900)
        os.kill(int(pid[1]), signal.SIGKILL)
        said, errors = gang.communicate()
    assert gang.returncode == 0, errors
    assert f"pid {pid[1]}) ended with signal SIGKILL: all 2 processes begin anew" in errors
    assert "(1 of 3 times)" in errors and f"run: {out}" in said
    assert checkpoints.steps(out / "checkpoints")[-1] == 400
