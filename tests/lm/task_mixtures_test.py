"""Tests of lm/task_mixtures.py."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from kullback.lm import data, mixtures, tasks, tokenizer


def write(path: pathlib.Path, mixture: Any) -> str:
    path.write_text(json.dumps(mixture))
    return f"tokens/mixture:{path}"


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    for name, count in (("one", 3), ("two", 2)):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            rows = [{"prompt": f"{name} {n}", "completion": "a"} for n in range(count)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / name / f"{split}.jsonl").write_text(text)
    return tmp_path


MIXTURE: dict[str, Any] = {
    "tasks": [
        {"task": "tokens/jsonl:one", "start": 3, "end": 0},
        {"task": "tokens/jsonl:two", "start": 1},
    ],
    "steps": 10,
}


def test_examples_are_those_of_all_tasks(folder: pathlib.Path):
    bpe = tokenizer.train_bpe(["one two"], 262)
    task = tasks.make(write(folder / "mixture.json", MIXTURE))
    train, report = task.examples("train", bpe)
    parts = [tasks.make(f"tokens/jsonl:{folder / name}") for name in ("one", "two")]
    one, two = (part.examples("train", bpe)[0] for part in parts)
    assert train == [*one, *(example._replace(source=1) for example in two)]
    assert (report.rows, report.tokens) == (5, sum(example.length for example in train))
    test, _ = task.examples("test", bpe)
    assert [x.source for x in test] == [0, 1, 0, 1, 0], "the first few are of both"
    assert sorted(task.texts("train")) == sorted(x for part in parts for x in part.texts("train"))
    assert task.score is None and task.mixed is not None
    got = task.mixed.over([x.source for x in train], 8, 1)
    assert got == mixtures.Mixture(
        sizes=(3, 2), start=(3.0, 1.0), end=(0.0, 1.0), num_steps=10, batch_size=8, seed=1
    )
    assert set(got.rows(10)) == {3, 4}, "the first has no weight then"
    short, _ = task.examples("train", bpe, data.Limits(max_length=6, overlong="drop"))
    assert not short
    with pytest.raises(ValueError, match=r"no example of tokens/jsonl:.*one is left to learn from"):
        task.mixed.over([], 8, 1)


def test_a_score_is_that_of_all(folder: pathlib.Path):
    sums = {"task": "tokens/arithmetic", "start": 1}
    assert tasks.make(write(folder / "a.json", {"tasks": [sums, sums]})).score is not None
    both = {"tasks": [sums, {"task": "tokens/jsonl:one", "start": 1}]}
    assert tasks.make(write(folder / "b.json", both)).score is None


def test_a_data_set_that_is_empty_and_weighs_nothing_is_left_out():
    parts = (mixtures.Part("a", 0, 0), mixtures.Part("b", 1, 1), mixtures.Part("c", 1, 1))
    got = mixtures.Mixed(parts, 1).over([1, 1, 2], 4, 0)
    assert got.sizes == (2, 1) and set(np.concatenate([got.rows(n) for n in range(9)])) == {0, 1, 2}


def test_a_mixture_is_known_by_its_tasks_and_weights_wherever_it_is(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    def known(mixture: Any, path: pathlib.Path = folder / "mixture.json") -> str:
        mixed = tasks.make(write(path, mixture)).mixed
        assert mixed is not None
        return mixed.fingerprint

    first, second = MIXTURE["tasks"]
    monkeypatch.chdir(folder)
    assert known(MIXTURE, pathlib.Path("here.json")) == known(MIXTURE)
    others = (
        MIXTURE | {"steps": 11},
        MIXTURE | {"tasks": [second, first]},
        MIXTURE | {"tasks": [first | {"end": 1}, second]},
        MIXTURE | {"tasks": [first, second | {"task": "tokens/arithmetic"}]},
    )
    assert len({known(MIXTURE), *map(known, others)}) == 5


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ([], r"must hold an object, got \[\]"),
        ({}, "tasks is missing"),
        ({"tasks": []}, "tasks must be at least one task"),
        ({"tasks": [{"task": "tokens/arithmetic", "start": 0}]}, "weights whose sums are finite"),
        ({"tasks": [{"task": "tokens/arithmetic", "start": 1e308}] * 2}, "sums are finite and > 0"),
        ({"tasks": [{"start": 1}]}, r"tasks\[0\].task is missing"),
        ({"tasks": [{"task": "tokens/arithmetic"}]}, "start is missing"),
        ({"tasks": [{"task": "tokens/arithmetic", "start": -1}]}, "start must be a finite weight"),
        ({"tasks": [{"task": "tokens/arithmetic", "start": 1, "end": 2}]}, "steps is missing"),
        ({"tasks": [{"task": "tokens/arithmetic", "start": 1}], "steps": 0}, "steps must be a"),
        ({"tasks": [{"task": "tokens/arithmetic", "start": 1, "weight": 1}]}, "known are"),
        ({"tasks": [{"task": "tokens/mixture:a.json", "start": 1}]}, "a task that is no mixture"),
        ({"tasks": [{"task": "tokens/arithmetics", "start": 1}]}, "tokens/arithmetic"),
        ({"tasks": [{"task": "tokens/jsonl:none", "start": 1}]}, "no file or folder at"),
    ],
)
def test_other_files_are_refused_in_one_line(folder: pathlib.Path, mixture: Any, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        tasks.make(write(folder / "mixture.json", mixture))
    assert "\n" not in str(caught.value)
