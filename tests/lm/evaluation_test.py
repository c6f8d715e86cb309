"""Tests of lm/evaluation.py; the tests of runs and of `kullback evaluate` hold its measures."""

import dataclasses
import math

import pytest

from kullback.lm import data, evaluation, gemma, layers, tasks, tokenizer, tuning


@pytest.fixture(scope="module")
def evaluator() -> evaluation.Evaluator:
    """Returns the evaluator of a tiny model with 40 held-out examples."""
    task = tasks.make("tokens/arithmetic")
    ids = tokenizer.train_bpe(task.texts("test"), 300)
    example = data.Example((ids.bos_id, 5), (6, ids.eos_id))
    model = gemma.make(gemma.PRESETS["tiny"])
    return evaluation.Evaluator(model, ids, task, [example] * 40, tuning.Config())


@pytest.mark.parametrize("count, rows", [(1, 1), (4, 4), (5, 8), (17, 32), (33, 32), (99, 32)])
def test_few_texts_of_a_large_model_are_few_rows(
    evaluator: evaluation.Evaluator, count: int, rows: int, monkeypatch: pytest.MonkeyPatch
):
    few = dataclasses.replace(evaluator)
    assert few.num_rows(count) == evaluation.ROWS  # Of a small model.
    monkeypatch.setattr(layers, "LARGE", 0)
    large = dataclasses.replace(evaluator)
    assert large.num_rows(count) == rows
    parts = large.parts(count)
    assert [len(part) for part in parts] == [rows] * math.ceil(min(count, 40) / rows)
