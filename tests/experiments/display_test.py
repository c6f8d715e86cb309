"""Tests of experiments/display.py: a reader that goes away ends no work."""

import pathlib
import subprocess
import sys

import pytest

from kullback import experiments

PROGRAM = pathlib.Path(sys.executable).with_name("kullback")


def shell(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script, "bash", PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "reader",
    [
        pytest.param("2>&1 | true; exit ${PIPESTATUS[0]}", id="gone"),
        pytest.param("> /dev/full 2>&1", id="full", marks=pytest.mark.slow),
        pytest.param(">&- 2>&-", id="closed", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_trained_whoever_reads(reader: str, tmp_path: pathlib.Path):
    out = tmp_path / "run"
    done = shell(f'"$@" {reader}', "train", "dqn", "toy/chain", "--steps", 1000, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert experiments.load(out).env_steps == 1000


def test_what_only_prints_ends_as_others_do():
    done = shell('(sleep 1; "$@"; echo $? >&2) | true', "list")
    assert done.stderr == "141\n"
