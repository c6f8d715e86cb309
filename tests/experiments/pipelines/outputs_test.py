"""Tests of experiments/pipelines/outputs.py: keys, records, and what was changed since."""

import json
import pathlib
from typing import Any

import pytest

from kullback.experiments.pipelines import outputs, stages


def planned(out: pathlib.Path, **changes: Any) -> dict[str, outputs.Planned]:
    first = {"run": "quantize", "model": str(out / "weights"), "format": "int8"}
    second = {"run": "quantize", "model": "{first}", "format": "int4"}
    third = {"run": "label", "model": "{second}", "prompts": 3}
    beside = {"run": "label", "model": "{first}", "prompts": 3}
    tables = {"first": first, "second": second, "third": third, "beside": beside}
    for name, fields in changes.items():
        tables[name] = {**tables[name], **fields}
    return outputs.plan(stages.read({"stage": tables}), out)


@pytest.fixture
def out(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"1")
    return tmp_path


def keys(plan: dict[str, outputs.Planned]) -> dict[str, str]:
    return {name: one.key for name, one in plan.items()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_a_changed_field_changes_what_depends_on_it(out: pathlib.Path):
    before = keys(planned(out))
    assert len(set(before.values())) == 4
    assert keys(planned(out)) == before
    assert changed(before, keys(planned(out, second={"format": "q4_0"}))) == {"second", "third"}
    assert changed(before, keys(planned(out, third={"prompts": 4}))) == {"third"}
    (out / "weights" / "model.safetensors").write_bytes(b"2")
    assert changed(before, keys(planned(out))) == {*before}


def test_files_that_a_mixture_names_are_those_of_its_stage(out: pathlib.Path):
    rows, mixture = out / "rows.jsonl", out / "mixture.json"
    rows.write_text('{"text": "a"}\n')
    parts = [{"task": f"tokens/{name}", "start": 1} for name in ("jsonl:rows.jsonl", "arithmetic")]
    mixture.write_text(json.dumps({"tasks": parts}))
    table = {"run": "train", "agent": "sft", "environment": f"tokens/mixture:{mixture}", "steps": 1}

    def plan() -> outputs.Planned:
        return outputs.plan(stages.read({"stage": {"a": table}}), out)["a"]

    before = plan()
    assert before.inputs == {str(x): outputs.fingerprint(x) for x in (mixture, rows)}
    rows.write_text('{"text": "b"}\n')
    assert plan().key != before.key


def test_the_order_of_fields_and_the_folder_change_nothing(out: pathlib.Path):
    table = {"run": "label", "model": "m", "prompts": 3, "seed": 1}
    backward = dict(reversed(table.items()))
    one, other = (stages.read({"stage": {"a": t}}) for t in (table, backward))
    assert outputs.plan(one, out)["a"].key == outputs.plan(other, out / "b")["a"].key


def test_a_stage_is_made_where_its_key_says(out: pathlib.Path):
    plan = planned(out)
    first, third = plan["first"], plan["third"]
    assert first.path == out / f"first-{first.key}" and third.path.suffix == ".jsonl"
    assert f"--out={third.path}" in third.arguments
    assert str(plan["second"].path) in third.arguments
    assert first.inputs == {str(out / "weights"): outputs.fingerprint(out / "weights")}


def make(one: outputs.Planned, text: str) -> None:
    one.path.mkdir(exist_ok=True)
    (one.path / "model.safetensors").write_text(text)


def test_a_record_says_what_was_made_of_what(out: pathlib.Path):
    plan = planned(out)
    first, second = plan["first"], plan["second"]
    assert outputs.recorded(first) is None and outputs.state(first) == "new"
    make(first, "a")
    assert outputs.state(first) == "begun"
    outputs.write_record(first, 1.0)
    make(second, "b")
    outputs.write_record(second, 2.0)
    assert outputs.state(second) == "finished, 2 s"
    saved = json.loads(second.record_file.read_text())
    assert saved["parents"] == {"first": outputs.fingerprint(first.path)}
    assert saved["command"][:2] == ["kullback", "quantize"]


def test_what_was_changed_since_is_refused(out: pathlib.Path):
    plan = planned(out)
    first, second = plan["first"], plan["second"]
    for one in (first, second):
        make(one, "a")
        outputs.write_record(one, 1.0)
    make(first, "b")
    with pytest.raises(ValueError, match="is not what it was"):
        outputs.recorded(first)
    outputs.write_record(first, 1.0)  # It was made again.
    with pytest.raises(ValueError, match="second was made from another"):
        outputs.recorded(second)
    (second.path / "model.safetensors").unlink()
    second.path.rmdir()
    with pytest.raises(ValueError, match="is gone"):
        outputs.recorded(second)


def test_a_fingerprint_is_of_names_and_contents(tmp_path: pathlib.Path):
    for name, files in (("a", {"x": "1"}), ("b", {"x": "1"}), ("c", {"y": "1"}), ("d", {"x": "2"})):
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    a, b, c, d = (outputs.fingerprint(tmp_path / name) for name in "abcd")
    assert a == b and len({a, c, d}) == 3
    with pytest.raises(ValueError, match="no file or folder"):
        outputs.fingerprint(tmp_path / "e")
