"""Tests of experiments/pipelines/running.py: stages that run, fail, are killed, and go on."""

import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from kullback.core import files
from kullback.experiments.pipelines import outputs, running, stages
from kullback.experiments.runs import models
from tests.records import wait_for_checkpoint

SUMS = "tokens/arithmetic"
LENGTHS = {"max_prompt_length": 8, "max_new_tokens": 4}


def contents(**changes: Any) -> dict[str, Any]:
    start = {
        **{"run": "train", "agent": "sft", "environment": SUMS, "model": "tiny", "steps": 2},
        "settings": {"batch_size": 4, **LENGTHS},
        "model_flags": {"num_layers": 1},
    }
    # Of a folder, which names no task: nothing is evaluated.
    folder = {"run": "export", "model": "{start}"}
    bits = {"run": "quantize", "model": "{folder}", "format": "int8"}
    report = {"task": SUMS, "reward": "length", "episodes": 4, "samples": 2, **LENGTHS}
    tables = {"start": {**start, **changes}, "folder": folder, "bits": bits}
    return {"stage": tables, "report": report}


def written(out: pathlib.Path) -> dict[str, int]:
    """Returns when each record was written, by stage and key."""
    return {
        file.stem: file.stat().st_mtime_ns
        for file in (out / outputs.RECORDS).glob("*-*.json")
        if "measures" not in file.name
    }


@pytest.mark.slow
def test_a_pipeline_runs_once_and_redoes_what_changed(tmp_path: pathlib.Path):
    out, said, ticks = tmp_path / "out", list[str](), list[tuple[int, int]]()
    given = contents()
    assert (
        running.run(given, out=out, say=said.append, tick=lambda *done: ticks.append(done)) == out
    )
    assert ticks == [(1, 3), (2, 3), (3, 3)]
    before = written(out)
    assert [name.split("-")[0] for name in sorted(before)] == ["bits", "folder", "start"]
    assert (out / "report" / "index.html").is_file()
    rows = files.read_csv(out / "report" / "stages.csv")
    assert [row["stage"] for row in rows] == ["start", "folder", "bits"]
    assert abs(rows[0]["kl_start"]) < 1e-5 < abs(rows[2]["kl_start"])
    assert rows[1]["kl_start"] != rows[1]["kl_start"]  # It was not measured.
    gains = files.read_csv(out / "report" / "gains.csv")
    assert [(row["stage"], row["beyond"]) for row in gains] == [("bits", "start")]
    assert gains[0]["kl_start"] == pytest.approx(rows[2]["kl_start"], abs=1e-5)
    assert any("3 of 3, bits-" in line and "quantize, new" in line for line in said)
    # The same again does nothing; another format does that stage alone.
    running.run(given, out=out, quiet=True, say=said.append)
    assert written(out) == before
    given["stage"]["bits"]["format"] = "int4"
    running.run(given, out=out, quiet=True, say=said.append)
    (new,) = written(out).items() - before.items()
    assert new[0].startswith("bits-") and before.items() <= written(out).items()
    # Without a stage: what was done is taken, and the page has both.
    running.run(given, out=out, without=["bits"], quiet=True, say=said.append)
    rows = files.read_csv(out / "report" / "left-out.csv")
    assert [row["pipeline"] for row in rows] == ["all stages", "without bits"]
    assert rows[1]["reward that was lost"] == pytest.approx(rows[0]["reward"] - rows[1]["reward"])


def test_a_stage_is_looked_at_while_it_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(running, "_LOOK_SECONDS", 0.01)
    seen = set[str]()
    watch = lambda one: seen.add(f"{one.label} {one.path.is_dir()}")  # noqa: E731
    given = {"stage": {"start": contents()["stage"]["start"]}}
    running.run(given, out=tmp_path / "out", quiet=True, say=lambda line: None, watch=watch)
    names = {line.split("-")[0] for line in seen}
    assert names == {"start"} and len(seen) == 2  # Before the run has a folder, and after.


def test_nothing_is_done_before_all_is_checked(tmp_path: pathlib.Path):
    given = contents()
    given["stage"]["bits"]["format"] = "int5"
    with pytest.raises(ValueError, match=r"stage bits: .*int5"):
        running.run(given, out=tmp_path / "out")
    given = contents()
    given["report"]["episodes"] = "many"
    with pytest.raises(ValueError, match="report: episodes"):
        running.run(given, out=tmp_path / "out")
    with pytest.raises(ValueError, match="--out"):
        running.run(contents())
    assert running.run(contents(), out=tmp_path / "out", dry_run=True, quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_stage_that_fails_is_named(tmp_path: pathlib.Path):
    given = contents(settings={"batch_size": 4, "max_prompt_length": 2, "overlong": "error"})
    with pytest.raises(running.Failed, match=r"stage start: .*, more than .*\(log: .*\.log\); the"):
        running.run(given, out=tmp_path / "out", quiet=True)
    assert not written(tmp_path / "out")


FILE = f"""
[stage.start]
run = "train"
agent = "sft"
environment = "{SUMS}"
model = "tiny"
steps = 60
checkpoint_every = 5
log_every = 5
settings = {{ batch_size = 4, max_prompt_length = 8, max_new_tokens = 4 }}
model_flags = {{ num_layers = 1 }}
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_pipeline_goes_on_bit_by_bit(tmp_path: pathlib.Path, number: int):
    file = tmp_path / "pipeline.toml"
    file.write_text(FILE)
    whole = running.run(file, out=tmp_path / "whole", quiet=True)
    cut = tmp_path / "cut"
    run = outputs.plan(stages.read(file), cut)["start"].path
    process = subprocess.Popen(
        [sys.executable, "-m", "kullback.experiments.cli", "pipeline", str(file), f"--out={cut}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ),
    )
    wait_for_checkpoint(run, 5, process, 300)
    process.send_signal(number)
    said = process.communicate()[0]
    assert process.returncode == (130 if number == signal.SIGINT else -number), said
    assert not written(cut)
    if number == signal.SIGINT:
        assert f"go on with: kullback pipeline {file} --out {cut}" in said
    running.run(file, out=cut, quiet=True)
    params = [models.load(run_of).params for run_of in (run, *whole.glob("start-*"))]
    for x, y in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_array_equal(x, y)
