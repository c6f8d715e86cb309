"""Tests of lm/entailment/pair_tokenizer.py; fixtures/ is written by tests/parity/write_bert.py."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from kullback.lm.entailment import bert_folder, pair_tokenizer, scorers

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
KINDS = ("bert", "roberta")
# Those of tests/parity/write_bert.py.
PAIRS = [
    ("The cat sat on the mat, and a dog looked on.", "A cat sat."),
    ("Dogs do not like 12 cats.", "The dog likes the cat, which sat on the mat of the Dogs"),
    ("cat", "dog"),
]


def read(kind: str) -> pair_tokenizer.PairTokenizer:
    return pair_tokenizer.read(FIXTURES / kind, bert_folder.read_config(FIXTURES / kind))


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_become_the_ids_of_transformers(kind):
    tokenizer, expected = read(kind), np.load(FIXTURES / kind / "expected.npz")
    texts = [*zip(*(tokenizer.encode(column) for column in zip(*PAIRS, strict=True)), strict=True)]
    rows = tokenizer.rows(texts, expected["ids"].shape[1])
    np.testing.assert_array_equal(rows.token_ids, expected["ids"])
    np.testing.assert_array_equal(rows.mask, expected["mask"].astype(bool))
    np.testing.assert_array_equal(rows.token_types, expected["types"])


def test_the_first_text_alone_is_cut():
    tokenizer = read("bert")
    first, end = tokenizer.first_id, tokenizer.end_id
    rows = tokenizer.rows([([10, 11, 12, 13], [20, 21])], 8)
    assert rows.token_ids.tolist() == [[first, 10, 11, 12, end, 20, 21, end]]
    assert rows.token_types.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]
    rows = tokenizer.rows([([10, 11, 12, 13],)], 5)
    assert rows.token_ids.tolist() == [[first, 10, 11, 12, end]]
    assert tokenizer.rows([([10], [20] * 5)], 8).token_ids.tolist()[0][:3] == [first, end, 20]
    with pytest.raises(ValueError, match="second text of 6 tokens does not fit rows of 8"):
        tokenizer.rows([([10], [20] * 6)], 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_special_token_in_a_text_is_text(kind):
    tokenizer = read(kind)
    (ids,) = tokenizer.encode(["a [SEP] </s> [CLS] <pad> [PAD] cat"])
    assert not {tokenizer.first_id, tokenizer.end_id, tokenizer.pad_id} & set(ids)


def test_batches_keep_order_and_have_few_shapes():
    tokenizer, shapes = read("bert"), []

    def program(rows: pair_tokenizer.Rows) -> np.ndarray:
        shapes.append(rows.token_ids.shape)
        return np.where(rows.mask, rows.token_ids, 0).sum(1)

    lengths = np.random.default_rng(0).integers(0, 60, 50)
    texts = [(list(range(5, 5 + n % 30)), [6] * (n // 2)) for n in lengths]
    got = pair_tokenizer.in_batches(program, tokenizer, texts, max_length=60, batch_size=8)
    special = tokenizer.first_id + 2 * tokenizer.end_id
    assert got.tolist() == [special + sum(map(sum, text)) for text in texts]
    assert {shape[0] for shape in shapes} <= {2, 8}
    assert {shape[1] for shape in shapes} <= {32, 48, 60}


def test_a_folder_without_tokenizer_or_of_another_model_is_refused(tmp_path):
    config = bert_folder.read_config(FIXTURES / "bert")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json nor vocab\.txt"):
        pair_tokenizer.read(tmp_path, config)
    shutil.copyfile(FIXTURES / "roberta" / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"its tokenizer has no \[CLS\]"):
        pair_tokenizer.read(tmp_path, config)
    (tmp_path / "tokenizer.json").unlink()
    vocabulary = (FIXTURES / "bert" / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_text(vocabulary + "more\n")
    with pytest.raises(
        ValueError, match="ids up to 42 and pads with 0, its model has ids below 42"
    ):
        pair_tokenizer.read(tmp_path, config)


def test_ids_are_compared_and_not_counted(tmp_path: pathlib.Path):
    """Of as many pieces as the model has rows, one whose id is beyond them."""
    folder = tmp_path / "bert"
    shutil.copytree(FIXTURES / "bert", folder)
    config = bert_folder.read_config(folder)
    (folder / "vocab.txt").unlink(missing_ok=True)
    contents = json.loads(read("bert").sources["tokenizer.json"])
    vocabulary = contents["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] = config.vocab_size
    (folder / "tokenizer.json").write_text(json.dumps(contents))
    said = f"has ids up to {config.vocab_size} and pads with 0, its model has ids below"
    with pytest.raises(ValueError, match=said):
        pair_tokenizer.read(folder, config)
    pair_tokenizer.read(folder, dataclasses.replace(config, vocab_size=config.vocab_size + 1))


def test_a_bert_of_one_segment_reads_no_pairs():
    one = dataclasses.replace(bert_folder.read_config(FIXTURES / "bert"), num_types=1)
    tokenizer = pair_tokenizer.read(FIXTURES / "bert", one)
    assert tokenizer.rows([([10, 11],)], 8).mask.sum() == 4
    with pytest.raises(ValueError, match="type_vocab_size=1 has no second text in a row"):
        tokenizer.rows([([10], [11])], 8)
    classifier = bert_folder.load(FIXTURES / "bert")._replace(tokenizer=tokenizer)
    with pytest.raises(ValueError, match="type_vocab_size=1 has no second text in a row"):
        scorers.cross_encoder(classifier, scorers.Config())
    roberta = dataclasses.replace(read("roberta"), num_types=1)  # Its segments are all one.
    assert roberta.rows([([10], [11])], 8).mask.sum() == 6
