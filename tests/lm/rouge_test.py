"""Tests of lm/rouge.py."""

import json
import math
import pathlib

import pytest

from kullback.lm import rouge

FIXTURE = json.loads((pathlib.Path(__file__).parent / "fixtures" / "rouge.json").read_text())


def test_golden():
    # Words: 3 of 4 and of 5 are common, F1 = 2 * 3 / 9; pairs: "b c" of 3 and 4, 2 * 1 / 7; the
    # longest subsequence is "a b c", since "d" stands before it on one side.
    got = rouge.scores("d a b c", "a x b c y")
    assert got == pytest.approx({"rouge_1": 6 / 9, "rouge_2": 2 / 7, "rouge_l": 6 / 9})


@pytest.mark.parametrize("row", FIXTURE["rows"], ids=lambda row: row["target"][:20])
def test_it_is_the_reference_implementation(row: dict):
    got = rouge.scores(row["generated"], row["target"])
    assert got == {name: row[name] for name in rouge.NAMES}


def test_bounds_and_words_that_it_does_not_see():
    assert set(rouge.scores("Same words.", "same WORDS").values()) == {1.0}
    assert set(rouge.scores("", "some words").values()) == {0.0}
    assert all(map(math.isnan, rouge.scores("привет", "привет мир").values()))
    assert all(map(math.isnan, rouge.scores("anything", "").values()))
