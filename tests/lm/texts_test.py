"""Tests of lm/texts.py."""

import dataclasses

import pytest

from kullback.lm import gemma, texts
from kullback.lm.tokenizer import Tokenizer, train_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["42\n"], 262)


def test_a_model_has_its_own_ends_and_its_tokenizers(tokenizer: Tokenizer):
    config = gemma.PRESETS["tiny"]
    for ends, expected in (((1,), (1, 5)), ((5, 1), (5, 1)), ((7,), (7, 1, 5))):
        got = texts.with_all_ends(dataclasses.replace(config, eos_ids=ends), tokenizer)
        assert got == dataclasses.replace(config, eos_ids=expected)
    few = dataclasses.replace(config, vocab_size=4, eos_ids=(1,))
    assert texts.with_all_ends(few, tokenizer).eos_ids == (1,)  # It has no row for 5.


def test_an_answer_is_what_stands_before_its_end(tokenizer: Tokenizer):
    four, two, newline = tokenizer.encode("42\n")
    for ids, eos_ids, expected in (
        ([four, two, 5], (1, 5), "42"),
        ([four, two, newline], (1, newline), "42"),  # An end that has a piece.
        ([four, newline, two], (1, newline), "4\n2"),  # A target's, which ends elsewhere.
        ([four, two, newline], (1,), "42\n"),
        ([four, 999, two], (1,), "42"),  # A row of the table without a piece.
        ([], (1,), ""),
    ):
        assert texts.answer(ids, tokenizer, eos_ids) == expected
