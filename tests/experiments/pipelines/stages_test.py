"""Tests of experiments/pipelines/stages.py: what a file may say, and what is refused."""

import pathlib
from typing import Any

import pytest

from kullback.experiments.pipelines import stages

SUMS = "tokens/arithmetic"
START = {"run": "train", "agent": "sft", "environment": SUMS, "model": "tiny", "steps": 3}


def read(**tables: Any) -> stages.Pipeline:
    return stages.read({"out": "x", "stage": tables})


def rl(**more: Any) -> dict[str, Any]:
    return {"run": "train", "agent": "rlhf", "environment": SUMS, "model": "{start}", **more}


def test_a_stage_is_a_command():
    given = read(
        start={**START, "settings": {"learning_rate": 1e-3, "batch_size": 4}},
        merged={"run": "merge", "models": ["{start}", "b"], "method": "mean", "weights": [1, 3]},
        pairs={"run": "label", "model": "{start}", "prompts": 5},
    )
    start, merged, pairs = given.stages.values()
    places = {"start": "out/start-1"}
    assert start.arguments(places.__getitem__, "out/start-1") == [
        *("train", "sft", SUMS, "--out=out/start-1", "--model=tiny"),
        *("--set=learning_rate=0.001", "--set=batch_size=4", "--steps=3"),
    ]
    assert merged.arguments(places.__getitem__, "m") == [
        *("merge", "out/start-1", "b", "--out=m", "--method=mean", "--weights", "1", "3"),
    ]
    assert merged.needs == ("start",) and merged.begins_with == "{start}"
    assert (start.ending, pairs.ending) == ("", ".jsonl")
    for stage in given.stages.values():
        stages.check(stage, trust_code=False)


def test_expressions_keep_their_braces():
    stage = read(start=START, tuned=rl(reward="format:[0-9]{2,3}")).stages["tuned"]
    assert "--reward=format:[0-9]{2,3}" in stage.arguments(lambda name: "here", "out")
    assert stage.needs == ("start",)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"a": {"run": "fly"}}, "run"),
        ({"a": rl()}, r"\{start\} must be a stage that comes before it"),
        ({"1a": START}, "must be a letter"),
        ({"a": {**START, "out": "b"}}, "out follows"),
        ({"a": {**START, "settings": 3}}, "a table of field = value"),
        ({"a": {**START, "steps": {"b": 3}}}, "no table"),
        ({"a": {**START, "steps": [[{}]]}}, "must be a number"),
        ({"a": {**START, "instead": 3}}, "instead must be a text"),
    ],
)
def test_a_wrong_file_is_refused(tables: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        read(**tables)


def test_a_file_must_be_toml_of_stages(tmp_path: pathlib.Path):
    file = tmp_path / "a.toml"
    for text, message in (("[", "no TOML"), ("", "no stage"), ("stages = 3", "stages")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            stages.read(file)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rat": 3}, "stage a: .*learning-rat"),
        ({"settings": {"learning_rat": 3}}, "stage a: .*learning_rate"),
        ({"steps": 2.5}, "stage a: .*whole number"),
        ({"agent": "rlhff"}, "stage a: .*rlhf"),
        ({"environment": "toy/chain", "agent": "dqn", "model": ""}, "stage a"),
        ({"num_seeds": 2}, "one model"),
        ({"agent": "rlhf", "reward": "python:a:b"}, "--trust-code"),
        ({"agent": "rlhf", "reward": "exact+http://a/b"}, "--trust-code"),
    ],
)
def test_a_wrong_command_is_refused_with_its_stage(fields: dict[str, Any], message: str):
    stage = read(a={**START, **fields}).stages["a"]
    with pytest.raises(ValueError, match=message):
        stages.check(stage, trust_code=False)


def test_what_a_stage_began_with_takes_its_place():
    given = read(
        start=START,
        distilled={**START, "agent": "gkd", "model": "{start}", "teacher": "t"},
        tuned=rl(model="{distilled}", reward="exact"),
        bits={"run": "quantize", "model": "{tuned}", "format": "int8"},
    )
    assert [*given.without(()).stages] == ["start", "distilled", "tuned", "bits"]
    left = given.without(("distilled",)).stages
    assert [*left] == ["start", "tuned", "bits"] and left["tuned"].fields["model"] == "{start}"
    left = given.without(("distilled", "tuned")).stages
    assert left["bits"].fields["model"] == "{start}"
    assert [*given.without(("bits",)).stages] == ["start", "distilled", "tuned"]
    with pytest.raises(ValueError, match="stage start cannot be left out"):
        given.without(("start",))
    with pytest.raises(ValueError, match="tuned"):
        given.without(("tune",))


def test_a_stage_may_say_what_takes_its_place():
    one = {**START, "agent": "reward-model", "environment": "tokens/preferences:p"}
    given = read(
        start=START,
        one=one,
        many={**one, "agent": "warm", "instead": "{one}"},
        tuned=rl(reward="reward-model:{many}"),
    )
    left = given.without(("many",)).stages
    assert left["tuned"].fields["reward"] == "reward-model:{one}"
    assert left["tuned"].needs == ("start", "one")
