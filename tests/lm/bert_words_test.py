"""Tests of lm/bert_words.py; fixtures/ is written by tests/parity/write_bert.py."""

import pathlib
import shutil

import numpy as np
import pytest

from kullback.lm import bert_folder, bert_words

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
KINDS = ("bert", "roberta")
# Those of tests/parity/write_bert.py.
PAIRS = [
    ("The cat sat on the mat, and a dog looked on.", "A cat sat."),
    ("Dogs do not like 12 cats.", "The dog likes the cat, which sat on the mat of the Dogs"),
    ("cat", "dog"),
]


def read(kind: str) -> bert_words.Words:
    return bert_words.read(FIXTURES / kind, bert_folder.read_config(FIXTURES / kind))


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_become_the_ids_of_transformers(kind):
    words, expected = read(kind), np.load(FIXTURES / kind / "expected.npz")
    texts = [*zip(*(words.encode(column) for column in zip(*PAIRS, strict=True)), strict=True)]
    rows = words.rows(texts, expected["ids"].shape[1])
    np.testing.assert_array_equal(rows.token_ids, expected["ids"])
    np.testing.assert_array_equal(rows.mask, expected["mask"].astype(bool))
    np.testing.assert_array_equal(rows.token_types, expected["types"])


def test_the_first_text_alone_is_cut():
    words = read("bert")
    first, end = words.first_id, words.end_id
    rows = words.rows([([10, 11, 12, 13], [20, 21])], 8)
    assert rows.token_ids.tolist() == [[first, 10, 11, 12, end, 20, 21, end]]
    assert rows.token_types.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]
    rows = words.rows([([10, 11, 12, 13],)], 5)
    assert rows.token_ids.tolist() == [[first, 10, 11, 12, end]]
    assert words.rows([([10], [20] * 5)], 8).token_ids.tolist()[0][:3] == [first, end, 20]
    with pytest.raises(ValueError, match="second text of 6 tokens does not fit rows of 8"):
        words.rows([([10], [20] * 6)], 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_special_token_in_a_text_is_text(kind):
    words = read(kind)
    (ids,) = words.encode(["a [SEP] </s> [CLS] <pad> [PAD] cat"])
    assert not {words.first_id, words.end_id, words.pad_id} & set(ids)


def test_batches_keep_order_and_have_few_shapes():
    words, shapes = read("bert"), []

    def program(rows: bert_words.Rows) -> np.ndarray:
        shapes.append(rows.token_ids.shape)
        return np.where(rows.mask, rows.token_ids, 0).sum(1)

    lengths = np.random.default_rng(0).integers(0, 60, 50)
    texts = [(list(range(5, 5 + n % 30)), [6] * (n // 2)) for n in lengths]
    found = bert_words.in_batches(program, words, texts, max_length=60, batch_size=8)
    special = words.first_id + 2 * words.end_id
    assert found.tolist() == [special + sum(map(sum, text)) for text in texts]
    assert {shape[0] for shape in shapes} <= {2, 8}
    assert {shape[1] for shape in shapes} <= {32, 48, 60}


def test_a_folder_without_tokenizer_or_of_another_model_is_refused(tmp_path):
    config = bert_folder.read_config(FIXTURES / "bert")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json nor vocab\.txt"):
        bert_words.read(tmp_path, config)
    shutil.copyfile(FIXTURES / "roberta" / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"its tokenizer has no \[CLS\]"):
        bert_words.read(tmp_path, config)
    (tmp_path / "tokenizer.json").unlink()
    words = (FIXTURES / "bert" / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_text(words + "more\n")
    with pytest.raises(ValueError, match="43 tokens and pads with 0, its model has 42"):
        bert_words.read(tmp_path, config)
