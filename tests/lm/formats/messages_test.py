"""Tests of lm/formats/messages.py."""

import sentencepiece

from kullback.lm.formats import messages
from tests.lm import tokenizer_test


def test_what_is_written_is_read():
    values = [(1, b"piece"), (2, -2.5), (3, 4), (45, b""), (7, 300), (1, b"x" * 200), (8, 0)]
    assert [*messages.fields(b"".join(messages.field(*one) for one in values))] == values
    # By hand: tag 7 << 3 | 0, then 300 = 0b10_0101100, its last seven bits first.
    assert messages.field(7, 300) == bytes([56, 0b1010_1100, 0b10])


def test_fields_of_a_model_are_those_that_its_library_reads():
    data = tokenizer_test.sentencepiece_model()
    inner = sentencepiece.SentencePieceProcessor(model_proto=data)  # pyright: ignore
    pieces = [dict(messages.fields(value)) for n, value in messages.fields(data) if n == 1]
    assert [piece[1].decode() for piece in pieces] == [
        inner.id_to_piece(i) for i in range(inner.vocab_size())
    ]
    scores = [piece.get(2, 0.0) for piece in pieces]
    assert scores == [inner.get_score(i) for i in range(inner.vocab_size())]
