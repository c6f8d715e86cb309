"""Tests of experiments/runs/record.py and experiments/runs/events.py."""

import json
import math
import pathlib
import re
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from kullback.core import checkpoints
from kullback.experiments.runs import record, run_folder

CONFIG = {"plan": {"seed": 3, "steps": 100}, "config": {"learning_rate": 0.1}}


def row(steps: int, seed: int = 0, value: float = 0.1) -> dict[str, float]:
    return {
        "seed": seed,
        "steps": steps,
        "return_mean": value,
        "evaluation": math.nan,
        "wall_seconds": steps / 10,
    }


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> run_folder.RunFolder:
    with run_folder.created(tmp_path / "run", CONFIG) as folder:
        return folder


def begun(folder: run_folder.RunFolder, steps: int = 0, marks: Any = None) -> record.Record:
    written = record.Record(folder, has_texts=True)
    written.begin(steps, marks)
    return written


def test_a_run_goes_on_without_a_column_that_it_began_without(folder: run_folder.RunFolder):
    written = begun(folder)
    written.write(row(10))
    again = begun(folder, 10, written.marks())
    again.write({**row(20), "kl_runaway": 1.0})
    assert [list(r) for r in folder.rows()] == [list(row(10))] * 2
    assert not [tag for tag, _, _ in events(folder) if tag.startswith("kl_runaway")]


def save(folder: run_folder.RunFolder, step: int, marks: Any) -> None:
    meta = {"score": None, "notes": {}, "segments": [], record.META: marks}
    checkpoints.save(folder.checkpoints, step, {"x": np.zeros(1)}, meta)


def events(folder: run_folder.RunFolder) -> list[tuple[str, int, float]]:
    """Reads tag, step and value of all events from the files themselves."""
    scalars = []
    for path in sorted((folder.path / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            end = 12 + int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12:end])  # pyright: ignore[reportAttributeAccessIssue]
            scalars += [
                (value.tag, event.step, value.simple_value) for value in event.summary.value
            ]
            data = data[end + 4 :]
    return scalars


def test_rows_are_there_as_soon_as_they_are_written_and_read_back_the_same(
    folder: run_folder.RunFolder,
):
    log = begun(folder)
    assert folder.rows() == []
    third = 1 / 3
    log.write(row(10, value=third))
    assert folder.metrics_file.read_text() == (
        f"seed,steps,return_mean,evaluation,wall_seconds\n0,10,{third!r},nan,1.0\n"
    )
    log.write(row(20))
    assert [r["steps"] for r in folder.rows()] == ["10", "20"]
    assert float(folder.rows()[0]["return_mean"]) == third
    assert [event[:2] for event in events(folder)] == [
        (f"{name}/seed_0", steps) for steps in (10, 20) for name in ("return_mean", "wall_seconds")
    ]


@pytest.mark.parametrize("has_marks", [True, False])
def test_what_comes_after_the_checkpoint_is_dropped_everywhere_and_made_again_once(
    has_marks: bool, folder: run_folder.RunFolder
):
    log = begun(folder)

    def step(steps: int) -> None:
        for seed in (0, 1):
            log.write(row(steps, seed))
        log.write_texts(steps, 3, [{"completion": f"a\u2028b\nc{steps}"}, {"completion": "\ud800"}])

    step(10)
    step(20)
    marks = log.marks() if has_marks else None
    before = [f.read_bytes() for f in (folder.metrics_file, folder.samples_file)]
    step(30)
    whole = [f.read_bytes() for f in (folder.metrics_file, folder.samples_file)]
    both, texts = events(folder), folder.samples_file
    with folder.metrics_file.open("a") as file:
        file.write("1,60")
    with texts.open("a") as file:
        file.write('{"step": 1, "se')
    log = begun(folder, 20, marks)
    assert [f.read_bytes() for f in (folder.metrics_file, folder.samples_file)] == before
    assert {steps for _, steps, _ in events(folder)} == {10, 20}
    step(30)
    assert [f.read_bytes() for f in (folder.metrics_file, folder.samples_file)] == whole
    assert events(folder) == both and len(set(both)) == len(both) == 12
    lines = [json.loads(line) for line in before[1].decode().split("\n")[:-1]]
    assert lines[0] == {"step": 10, "seed": 3, "completion": "a\u2028b\nc10"}


def test_a_run_that_goes_on_at_its_first_step_has_each_event_once(folder: run_folder.RunFolder):
    for _ in range(2):
        half = folder.path / "tensorboard" / ".tmp-events.out.tfevents.1.host"
        half.parent.mkdir(exist_ok=True)
        half.touch()  # A killed process has left it.
        log = begun(folder)
        assert folder.rows() == [] and events(folder) == []
        log.write(row(10))
    assert len(folder.rows()) == 1 and len(events(folder)) == 2
    assert len(list((folder.path / "tensorboard").iterdir())) == 1


def test_a_full_disk_is_said_with_the_name_of_the_file(folder: run_folder.RunFolder):
    log = begun(folder)
    folder.metrics_file.unlink()
    folder.metrics_file.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.csv"):
        log.write(row(10))


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def zeros(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[40:48] = bytes(8)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["metrics.csv", "samples.jsonl"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pathlib.Path.unlink, "is missing, .* bytes were written"),
        (lambda path: path.write_text(""), "has 0 bytes, .* were written"),
        (cut, "has .* bytes, .* were written"),
        (zeros, "has changed in the .* bytes that were written"),
    ],
)
def test_a_record_that_is_not_as_it_was_is_found_and_nothing_overwritten(
    damage: Any, message: str, name: str, folder: run_folder.RunFolder
):
    log = begun(folder)
    for steps in (10, 20):
        log.write(row(steps))
        log.write_texts(steps, 0, [{"completion": "some text"}])
    marks = log.marks()
    save(folder, 20, marks)
    assert record.complaints(folder, CONFIG, 10) == []
    damage(folder.path / name)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    (text,) = record.complaints(folder, CONFIG, 10)
    assert re.fullmatch(f"{folder.path / name} {message}", text)
    assert {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()} == before
    begun(folder, 20, marks)  # Accepted: what is whole of it is kept.
    assert {int(r["steps"]) for r in folder.rows()} <= {10, 20}


def test_changes_of_a_configuration_are_named(folder: run_folder.RunFolder):
    log = begun(folder)
    save(folder, 20, log.marks())
    changed = {
        "plan": {"seed": 4, "steps": 200},
        "config": {"learning_rate": 0.2, "extra": None},
        "resumed": [{"accepted": []}],
    }
    file = folder.config_file
    assert record.complaints(folder, changed, 10) == [
        f"{file}: plan.seed was 3 and is 4",
        f"{file}: config.learning_rate was 0.1 and is 0.2",
        f"{file}: config.extra was missing and is null",
    ]
    assert record.config_changes(CONFIG, {**CONFIG, "plan": {"seed": 3, "steps": 99}}) == [
        "plan.steps was 100 and is 99"
    ]


def test_checkpoints_of_older_versions_are_accepted(folder: run_folder.RunFolder):
    log = begun(folder)
    meta = {"score": None, "notes": {}, "segments": []}
    checkpoints.save(folder.checkpoints, 20, {"x": np.zeros(1)}, meta)
    assert record.complaints(folder, CONFIG, 10) == [
        f"{folder.metrics_file} has no rows, and step 20 was saved"
    ]
    log.write(row(20))
    assert record.complaints(folder, {}, 10) == []
    with folder.metrics_file.open("a") as file:
        file.write("1,60")  # Which a crash has cut.
    assert record.complaints(folder, {}, 10) == []
    with folder.metrics_file.open("a") as file:
        file.write("\n0,70,1,1,1\n")
    (text,) = record.complaints(folder, {}, 10)
    assert "metrics.csv is damaged: line 3" in text


def test_how_a_run_stands(folder: run_folder.RunFolder):
    assert record.standing(folder, 100) == "new"
    begun(folder).write(row(50))
    with pytest.raises(ValueError, match=r"checkpoints is missing or empty, .* step 50 of 100"):
        record.standing(folder, 100)
    assert record.standing(folder, 50) == "finished"
    save(folder, 50, {})
    assert record.standing(folder, 100) == "saved"


def test_a_run_that_was_killed_in_its_first_checkpoint_is_new(folder: run_folder.RunFolder):
    begun(folder)
    folder.replay.mkdir()
    for number, standing in enumerate(("new", None)):
        (folder.replay / f"segment-{number:08d}.npz").touch()
        if standing:
            assert record.standing(folder, 100) == standing
    with pytest.raises(ValueError, match=r"checkpoints is missing or empty, .* step 0 of 100"):
        record.standing(folder, 100)


def test_texts_without_checkpoints_are_a_record_too(folder: run_folder.RunFolder):
    begun(folder).write_texts(1, 0, [{"completion": "x"}])
    with pytest.raises(ValueError, match="checkpoints is missing or empty"):
        record.standing(folder, 100)
