"""Tests of lm/texts.py."""

import dataclasses
import itertools

import hypothesis
import hypothesis.strategies as st
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


@pytest.mark.parametrize(
    ("text", "stop_texts", "expected"),
    [
        ("one two", (), "one two"),
        ("one two", ("three",), "one two"),
        ("one two", (" t",), "one"),
        ("one two", ("one",), ""),
        ("one two", ("o", "ne"), ""),
        ("one two", ("wo", "e t"), "on"),  # "e t" is complete first.
        ("abc", ("abc", "b"), "a"),
        ("aab", ("ab", "aab"), ""),  # They end together.
        ("aab", ("aac",), "aab"),  # What was held back comes in the end.
        ("a\n\nb", ("\n\n",), "a"),
    ],
)
def test_a_text_ends_before_the_first_stop_text(
    text: str, stop_texts: tuple[str, ...], expected: str
):
    for piece in (1, 2, len(text)):
        assert in_pieces([text[i : i + piece] for i in range(0, len(text), piece)], stop_texts) == (
            expected,
            expected != text,
        )


def in_pieces(pieces: list[str], stop_texts: tuple[str, ...]) -> tuple[str, bool]:
    tail, shown = texts.Tail(), ""
    for piece in pieces:
        more, tail = texts.cut(piece, tail, stop_texts)
        shown += more
    more, tail = texts.cut("", tail, stop_texts, last=True)
    return shown + more, tail.is_over


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(
    text=st.text("ab", max_size=12),
    stop_texts=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple),
    cuts=st.sets(st.integers(0, 12)),
)
def test_pieces_do_not_matter_to_stop_texts(text: str, stop_texts: tuple[str, ...], cuts: set[int]):
    bounds = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    # The shortest beginning that ends with a stop text, without the longest such.
    ends = [n for n in range(len(text) + 1) if text[:n].endswith(stop_texts)]
    expected = text
    if ends:
        whole = text[: ends[0]]
        expected = whole[: -max(len(stop) for stop in stop_texts if whole.endswith(stop))]
    assert in_pieces(pieces, stop_texts) == (expected, bool(ends))
