"""Tests of experiments/evaluate/subjects.py; commands/evaluate.py's try it on runs and weights."""

import pathlib

import pytest

from kullback.experiments.evaluate import subjects


def test_weights_name_no_task(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=r"is no run, which would name its task: add one, tokens"):
        _ = subjects.Subject(path=tmp_path).task
    subject = subjects.Subject(path=tmp_path, task_name="tokens/arithmetic")
    assert subject.task.name == "tokens/arithmetic"


def test_lengths_that_are_asked_for_win_over_those_of_the_task(tmp_path: pathlib.Path):
    lengths = {"max_new_tokens": 3, "overlong": "drop"}
    subject = subjects.Subject(path=tmp_path, task_name="tokens/conversations", lengths=lengths)
    learning = subject.learning
    assert (learning.max_prompt_length, learning.max_new_tokens) == (128, 3)
    assert learning.overlong == "drop" and learning.width == 131
