"""Tests of experiments/sweeps/sweep_watch.py: how far runs are, by their files."""

import math
import pathlib

import pytest

from kullback.experiments.runs import run_folder
from kullback.experiments.sweeps import sweep_watch, sweep_worker

COLUMNS = "seed,steps,recent_return,loss"


def metrics(folder: pathlib.Path, *lines: str) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    run_folder.RunFolder(folder).metrics_file.write_text("\n".join((COLUMNS, *lines)))
    return folder


def job(folder: pathlib.Path, steps: int = 1_000, seeds: int = 2, done: int = 0):
    return sweep_worker.Job(
        name=folder.name,
        folder=str(folder),
        log=str(folder) + ".log",
        plan={"steps": steps, "num_seeds": seeds},
        threads=1,
        done=done,
        home=str(folder.parent),
    )


def test_the_last_whole_rows_are_read(tmp_path: pathlib.Path):
    assert sweep_watch.latest(tmp_path / "none").steps == 0
    assert sweep_watch.latest(metrics(tmp_path / "no rows", "")) == sweep_watch.Reached(
        0, *nothing()
    )
    rows = ("0,500,1.0,9", "1,500,2.0,9", "0,1000,3.0,9", "1,1000,5.0,9")
    assert sweep_watch.latest(metrics(tmp_path / "run", *rows, "")) == (1_000, 4.0, "return")
    half = metrics(tmp_path / "run", *rows, "0,1500")
    assert sweep_watch.latest(half) == (1_000, 4.0, "return"), "a row that is being written"
    text = metrics(tmp_path / "text", "0,10,nan,2.5", "")
    assert sweep_watch.latest(text) == (10, 2.5, "loss"), "nothing there has a return"


def nothing() -> tuple[float, str]:
    value = sweep_watch.Reached()
    assert math.isnan(value.value)
    return value.value, value.metric


@pytest.mark.parametrize("digits", [1, 7])
def test_of_a_long_file_only_the_end_is_read(digits: int, tmp_path: pathlib.Path):
    count = sweep_watch.TAIL_BYTES // 10
    rows = [f"0,{n},{n:.{digits}f},9" for n in range(1, count)]
    assert sweep_watch.latest(metrics(tmp_path / "run", *rows, "")) == (
        count - 1,
        count - 1,
        "return",
    )


def test_steps_and_runs_are_counted(tmp_path: pathlib.Path):
    one, two = job(tmp_path / "one", seeds=2), job(tmp_path / "two", seeds=1, done=400)
    watch = sweep_watch.Watch([one, two], finished=3)
    assert watch.steps() == (400, 3_000)
    assert watch.look([one]) == (400, None, "3 of 5 runs, return")
    metrics(tmp_path / "one", "0,500,1.0,9", "1,500,2.0,9", "")
    assert watch.look([one, two]) == (1_400, 1.5, "3 of 5 runs, return")
    metrics(tmp_path / "two", "0,100,4.5,9", "")  # Of a run that makes its last rows again.
    assert watch.look([one, two]) == (1_400, 3.0, "3 of 5 runs, return 1.50 4.50, mean")
    metrics(tmp_path / "two", "0,1000,4.5,9", "")
    assert watch.look([two])[0] == 1_999, "it has not saved yet"
    assert watch.end(two, "") == "4 of 5: two finished, return 4.50"
    assert watch.end(one, "no memory") == "5 of 5: one failed: no memory"
    assert watch.look([])[0] == 3_000
