"""Tests of experiments/evaluate/labelling.py: pairs of a model's own answers."""

import json
import pathlib
import sys
import types as python_types

import pytest

from kullback.experiments.evaluate import labelling, subjects
from kullback.lm import preferences, tokenizer

TASK = "tokens/arithmetic"


# An untrained model ends a text at one in some two hundred tokens.
LENGTHS = {"max_prompt_length": 12, "max_new_tokens": 160}


def of(folder: pathlib.Path) -> subjects.Subject:
    return subjects.Subject(path=folder, task_name=TASK, lengths=LENGTHS)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a module whose reward is the number of letters a in a text."""
    module = python_types.ModuleType("rewards_by_letters")
    vars(module)["count"] = lambda prompts, texts, references: [float(t.count("a")) for t in texts]
    monkeypatch.setitem(sys.modules, "rewards_by_letters", module)


REWARD = "python:rewards_by_letters:count+0.001*length"


@pytest.mark.usefixtures("ends")
def test_the_better_answer_is_chosen(untuned: pathlib.Path, tmp_path: pathlib.Path, few_sums: None):
    out = tmp_path / "pairs.jsonl"
    labelled = labelling.label(of(untuned), REWARD, out, count=100)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert 0 < labelled.pairs == len(rows) < labelled.prompts == 100
    bpe = tokenizer.load(untuned)
    for row in rows:
        chosen, rejected = (
            row["texts"][x].count("a") + 0.001 * len(row[x]) for x in ("chosen", "rejected")
        )
        assert chosen > rejected
        assert row["rewards"]["chosen"] == pytest.approx(chosen, abs=1e-6)
    pairs, _ = preferences.from_rows([(f"{n}", row) for n, row in enumerate(rows)], bpe, None)
    for pair, row in zip(pairs, rows, strict=True):  # What was sampled is what is learnt.
        assert [*pair.chosen.prompt] == row["prompt"]
        assert [*pair.chosen.completion] == row["chosen"]
        assert [*pair.rejected.completion] == row["rejected"]


@pytest.mark.slow
@pytest.mark.usefixtures("ends")
def test_wrong_labels_and_earlier_pairs(
    untuned: pathlib.Path, tmp_path: pathlib.Path, few_sums: None
):
    right, wrong = tmp_path / "right.jsonl", tmp_path / "wrong.jsonl"
    first = labelling.label(of(untuned), REWARD, right, count=60, seed=1)
    second = labelling.label(
        of(untuned), REWARD, wrong, count=60, seed=1, swapped=0.5, earlier=right
    )
    assert second.earlier == first.pairs == second.pairs
    assert second.swapped == first.pairs // 2
    rows = [json.loads(line) for line in wrong.read_text().splitlines()]
    before, new = rows[: first.pairs], rows[first.pairs :]
    is_swapped = [a["chosen"] == b["rejected"] for a, b in zip(before, new, strict=True)]
    assert sum(is_swapped) == second.swapped
    same = [a == b for a, b in zip(before, new, strict=True)]
    assert sum(same) == first.pairs - second.swapped


def test_answers_of_equal_reward_are_no_pairs(
    untuned: pathlib.Path, tmp_path: pathlib.Path, few_sums: None
):
    with pytest.raises(ValueError, match="no pair of 20 can be labelled"):
        labelling.label(of(untuned), "0*length", tmp_path / "pairs.jsonl", count=20)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        labelling.label(of(untuned), "length", tmp_path / "p.jsonl", count=20, swapped=2)
