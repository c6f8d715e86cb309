"""Runs that an old version made go on as they would have then: fixtures/runs_of_0_1."""

import csv
import json
import math
import pathlib
import runpy
import shutil
from typing import Any

import pytest

from kullback import experiments
from kullback.experiments.evaluate import evaluation, subjects
from kullback.experiments.runs import acting, opened, run_folder
from kullback.experiments.sweeps import sweeping

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
OLD = FIXTURES / "runs_of_0_1"
MADE: dict[str, Any] = runpy.run_path(str(FIXTURES / "make_runs.py"))
FACTS = json.loads((OLD / "facts.json").read_text())
QUICK = ("compiled",)  # In `make test`; the others are slow.
KINDS = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MADE["RUNS"]
]
# The last digits depend on the processor, the number of its cores and the compiler.
IS_SAME_MACHINE = MADE["machine"]() == FACTS["machine"]


@pytest.fixture
def copies(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Copies the old runs, and enters the copy: names in them are relative to it."""
    folder = tmp_path / "runs"
    shutil.copytree(OLD, folder)
    monkeypatch.chdir(folder)
    return folder


def agree(name: str, folder: pathlib.Path) -> None:
    """Checks a run that went on against the rows that the old version gave."""
    rows = run_folder.RunFolder(folder).rows()
    with (OLD / "after" / f"{name}.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    assert len(rows) == len(expected)
    for row, old in zip(rows, expected, strict=True):
        for column in old.keys() - set(run_folder.WALL_TIME_COLUMNS):
            value, wanted = float(row[column]), float(old[column])
            same = value == wanted or (math.isnan(value) and math.isnan(wanted))
            close = not IS_SAME_MACHINE and math.isclose(value, wanted, rel_tol=1e-3, abs_tol=1e-6)
            assert same or close, f"{column} at step {old['steps']}: {value}, not {wanted}"


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("name", KINDS)
def test_an_old_run_goes_on_as_it_would_have(name: str, copies: pathlib.Path):
    assert MADE["fingerprint"](name) == FACTS["sha256"][name]
    experiments.resume(name, steps=2 * MADE["steps_of"](name), quiet=True)
    agree(name, copies / name)
    if IS_SAME_MACHINE:
        assert MADE["fingerprint"](name) == FACTS["sha256_after"][name]


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE["RUNS"])
def test_an_old_run_is_evaluated(name: str, copies: pathlib.Path):
    if MADE["RUNS"][name]["environment"].startswith("tokens/"):
        run = opened.open(copies / name)
        subject = subjects.Subject(path=run.path, run=run)
        report = evaluation.run(subject, count=2, num_samples=1)
        assert report[0].estimates
    else:
        assert acting.load(name).evaluate(2).shape == (2,)


@pytest.mark.slow
def test_an_old_sweep_is_finished(copies: pathlib.Path):
    said: list[str] = []
    sweeping.sweep(MADE["SWEEP"], out="sweep", dry_run=True, say=said.append)
    assert said[-1] == "2 runs in sweep, 2 of them finished; 0 steps to go"


@pytest.mark.slow
def test_an_old_sweep_goes_on_as_it_would_have(copies: pathlib.Path):
    for folder in sweeping.sweep({**MADE["SWEEP"], "steps": 400}, out="sweep", quiet=True):
        agree(f"sweep,{folder.name}", folder)
