"""Tests of lm/entailment/scorers.py; fixtures/ is written by tests/parity/write_bert.py."""

import itertools
import json
import math
import pathlib
import shutil
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from kullback.environments import tokens
from kullback.lm.entailment import bert_folder, pair_tokenizer, scorers

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
KINDS = ("bert", "roberta")
SHORT = scorers.Config(max_length=32, overlap=5, batch_size=4)
DOCUMENT = "The cat sat on the mat, and a dog looked on. Dogs do not like 12 cats. " * 3
# Of one piece, of several, of one word.
TEXTS = ["A cat sat.", "The dog likes the cat, which sat on the mat of the Dogs. " * 3, "cat"]


@hypothesis.given(
    length=st.integers(0, 200), room=st.integers(2, 40), overlap=st.integers(0, 30), data=st.data()
)
def test_windows_cover_all_and_overlap(length: int, room: int, overlap: int, data: st.DataObject):
    overlap = min(overlap, room - 1)
    spans = scorers.windows(length, room, overlap)
    covered = {i for begin, end in spans for i in range(begin, end)}
    assert covered == set(range(length))
    assert all(end - begin == min(room, length) for begin, end in spans)
    assert len(spans) == len(set(spans))  # None is read twice.
    for (_, end), (begin, _) in itertools.pairwise(spans):
        assert end - begin >= overlap
    # What is no longer than the overlap is whole in some window, wherever it stands.
    if length > overlap > 0:
        at = data.draw(st.integers(0, length - overlap))
        assert any(begin <= at and at + overlap <= end for begin, end in spans)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_of_a_hypothesis_is_unread(kind: str, monkeypatch: pytest.MonkeyPatch):
    classifier = bert_folder.load(FIXTURES / kind)
    tokenizer, read = classifier.tokenizer, []

    def note(program, tokenizer, texts, *, max_length, batch_size):
        read.extend(texts)
        return np.zeros((len(texts), 3))

    monkeypatch.setattr(pair_tokenizer, "in_batches", note)
    probability = scorers.cross_encoder(classifier, SHORT)
    for text in TEXTS:
        read.clear()
        probability([DOCUMENT], [text])
        document, ids = tokenizer.encode([DOCUMENT, text])
        pieces: list[list[int]] = []
        for first, second in read:
            assert len(first) + len(second) + tokenizer.num_special <= SHORT.max_length
            if not pieces or second != pieces[-1]:
                pieces.append(second)
        assert [token for piece in pieces for token in piece] == ids
        for piece in pieces:
            windows = [first for first, second in read if second == piece]
            room = SHORT.max_length - tokenizer.num_special - len(piece)
            cuts = scorers.windows(len(document), room, SHORT.overlap)
            assert windows == [document[begin:end] for begin, end in cuts]


@pytest.mark.parametrize("kind", ["bert", pytest.param("roberta", marks=pytest.mark.slow)])
def test_least_over_pieces_of_the_most_over_windows_by_single_calls(kind: str):
    classifier = bert_folder.load(FIXTURES / kind)
    tokenizer, logits_of = classifier.tokenizer, jax.jit(classifier.model.logits)
    premises = [DOCUMENT, DOCUMENT, "A cat.", "Dogs. " * 20, ""]
    hypotheses = [*TEXTS, TEXTS[1], TEXTS[0]]

    def single(first: list[int], second: list[int]) -> float:
        rows = tokenizer.rows([(first, second)], SHORT.max_length)
        logits = np.float64(logits_of(classifier.params, *rows)[0])
        return scipy.special.softmax(logits)[1]  # "entailment".

    expected, several = [], 0
    for premise, text in zip(premises, hypotheses, strict=True):
        document, ids = tokenizer.encode([premise, text])
        pieces = [ids[n : n + 16] for n in range(0, len(ids), 16)]
        of_pieces = []
        for piece in pieces:
            room = 32 - tokenizer.num_special - len(piece)
            cuts = scorers.windows(len(document), room, 5)
            of_pieces.append(max(single(document[a:b], piece) for a, b in cuts))
            several += len(cuts) > 1
        expected.append(min(of_pieces))
        several += len(pieces) > 1
    assert several > 4  # There was something to take the most and the least of.
    got = scorers.cross_encoder(classifier, SHORT)(premises, hypotheses)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_rows_longer_than_the_models_are_refused():
    classifier = bert_folder.load(FIXTURES / "bert")
    with pytest.raises(ValueError, match="max_length must be <= 48, the model's, got 64"):
        scorers.cross_encoder(classifier, scorers.Config(max_length=64, overlap=0))


@pytest.mark.parametrize(
    ("labels", "index"),
    [
        (["contradiction", "entailment", "neutral"], 1),
        (["ENTAILMENT", "NOT_ENTAILMENT"], 0),
        (["not_entailment", "entailment"], 1),
        (["non-entailing", "entails"], 1),
    ],
)
def test_the_class_is_found_by_its_name(labels: list[str], index: int):
    assert scorers.entailment_class(labels) == index


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1"], ["entailment", "entailed", "no"]])
def test_a_model_without_the_class_is_refused(labels: list[str], tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match="one class must be called entailment"):
        scorers.entailment_class(labels)
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "bert", folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(n): f"LABEL_{n}" for n in range(3)}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"name it in id2label of config\.json"):
        scorers.load(folder, SHORT)


def counted(config: scorers.Config, p=lambda premise, text: 0.5):
    """Returns a model with made-up P, and the list of pairs that it was called for."""
    scored: list[tuple[str, str]] = []

    def probability(premises, hypotheses):
        scored.extend(zip(premises, hypotheses, strict=True))
        return np.array([p(*pair) for pair in zip(premises, hypotheses, strict=True)])

    return scorers.make(probability, config), scored


def test_what_was_scored_is_remembered():
    model, scored = counted(scorers.Config(), lambda a, b: 0.1 if b == "x" else 0.2)
    for _ in range(2):
        got = model.log_probability(["d", "d", "d", "e"], ["x", "y", "x", "x"])
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, np.log([0.1, 0.2, 0.1, 0.1]), rtol=1e-6)
    assert scored == [("d", "x"), ("d", "y"), ("e", "x")]
    assert model.counts == {"asked": 8, "scored": 3}
    # One joined text, another pair.
    model.log_probability(["dx"], [""])
    model.log_probability(["dx", "d"], ["y", "xy"])
    assert scored[3:] == [("dx", "y"), ("d", "xy")]


def test_the_memory_forgets_what_was_asked_for_longest_ago():
    model, scored = counted(scorers.Config(cache_size=2))
    for text in "abacab":  # "b" is forgotten when "c" comes, then again "c".
        model.log_probability(["d"], [text])
    assert [text for _, text in scored] == ["a", "b", "c", "b"]
    model, scored = counted(scorers.Config(cache_size=0))
    for _ in range(2):
        model.log_probability(["d", "d"], ["a", "a"])
    assert [text for _, text in scored] == ["a", "a"]  # Within a call it is asked for once.


@pytest.mark.parametrize(
    ("aggregation", "p"), [("whole", 0.9), ("mean", (0.8 + 0.1 + 0.3) / 3), ("min", 0.1)]
)
def test_aggregation_over_sentences(aggregation, p: float):
    table = {"One.": 0.8, "Two!": 0.1, "Three": 0.3, "One. Two! Three": 0.9, "Alone": 0.7}
    config = scorers.Config(aggregation=aggregation)
    model, scored = counted(config, lambda premise, text: table[text])
    got = model.log_probability(["d", "d"], [" One. Two! Three\n", "Alone"])
    np.testing.assert_allclose(got, np.log([p, 0.7]), rtol=1e-6)
    assert model.counts["asked"] == len(scored) == (2 if aggregation == "whole" else 4)


@pytest.mark.parametrize("aggregation", ["whole", "mean", "min"])
def test_what_has_no_word_is_no_sentence_and_entailed_by_nothing(aggregation):
    config = scorers.Config(aggregation=aggregation)
    p = {"One.": 0.8, "Two.": 0.4, "One. . ... Two.": 0.6}
    model, scored = counted(config, lambda premise, text: p[text])
    got = model.log_probability(["d"] * 3, ["One. . ... Two.", "...", ". ."])
    expected = {"whole": 0.6, "mean": 0.6, "min": 0.4}[aggregation]
    floor = scorers.floor(config)
    np.testing.assert_allclose(got, [np.log(expected), floor, floor], rtol=1e-6)
    assert len(scored) == (1 if aggregation == "whole" else 2)


@pytest.mark.parametrize("aggregation", ["whole", "mean", "min"])
def test_the_logarithm_has_a_floor_which_an_empty_text_has_too(aggregation):
    config = scorers.Config(min_probability=1e-3, aggregation=aggregation)
    values = {"sure": 1.0, "over": 1 + 1e-9, "never": 0.0, "hardly": 1e-5, "so": 2e-3}
    model, scored = counted(config, lambda premise, text: values[text])
    got = model.log_probability(["d"] * 7, [*values, "", " \n"])
    floor = math.log(1e-3)
    assert scorers.floor(config) == floor
    expected = [0, 0, floor, floor, math.log(2e-3), floor, floor]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert len(scored) == len(values)
    assert model.log_probability([], []).shape == (0,)
    with pytest.raises(ValueError, match="must be as many, got 1 and 2"):
        model.log_probability(["d"], ["a", "b"])


def test_a_text_of_no_token_is_empty_too():
    model = scorers.load(FIXTURES / "bert", SHORT)
    texts = ["\u200b", "cat", "\x07\u00ad"]  # No space for str.strip.
    got = model.log_probability(["the cat"] * 3, texts)
    assert got[0] == got[2] == np.float32(scorers.floor(SHORT)) < got[1]
    assert np.all(model.log_probability(["the cat"], ["\u200b"]) == got[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_model_is_read_from_its_folder(kind: str):
    model = scorers.load(FIXTURES / kind, SHORT)
    got = model.log_probability([DOCUMENT] * 3, TEXTS)
    expected = scorers.cross_encoder(bert_folder.load(FIXTURES / kind), SHORT)
    np.testing.assert_allclose(got, np.log(expected([DOCUMENT] * 3, TEXTS)), rtol=1e-5)


def test_a_scorer_reads_the_text_of_each_answer():
    model, scored = counted(scorers.Config(), lambda premise, text: 0.25)
    tokenizer = SimpleNamespace(decode=lambda ids: " ".join(f"w{i}" for i in ids), vocab_size=8)
    scorer = scorers.scorer(model, tokenizer)  # pyright: ignore[reportArgumentType]  # Enough of one.
    assert not scorer.is_compiled
    ids = np.array([[1, 2, 3, 0], [4, 9, 5, 6]])  # The tokenizer has no 9.
    mask = np.array([[True, True, False, False], [True, True, True, True]])
    completion = tokens.Completion(
        *map(jnp.asarray, (ids, mask, mask.sum(1), ~mask[:, 0], 0.0 * ids))
    )
    got = scorer.score(None, completion, ["one", "two"])
    np.testing.assert_allclose(got, np.log([0.25, 0.25]), rtol=1e-6)
    assert scored == [("one", "w1 w2"), ("two", "w4 w5 w6")]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch_size": 6}, "batch_size must be a multiple of 4, got 6"),
        ({"batch_size": 0}, "batch_size must be a multiple of 4, got 0"),
        ({"max_length": 32, "overlap": 12}, r"overlap must lie in \[0, 11\] for max_length=32"),
        ({"overlap": -1}, r"overlap must lie in \[0, 59\] for max_length=128, got -1"),
        ({"aggregation": "max"}, "whole, mean or min, got 'max'"),
        ({"min_probability": 0.0}, r"min_probability must lie in \(0, 1\), got 0.0"),
        ({"min_probability": 1.0}, r"must lie in \(0, 1\), got 1.0"),
        ({"cache_size": -1}, "cache_size must be >= 0, got -1"),
    ],
)
def test_a_wrong_configuration_is_refused(fields, said: str):
    with pytest.raises(ValueError, match=said):
        scorers.Config(**fields)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_not_finite_gives_no_reward(kind: str, tmp_path: pathlib.Path):
    classifier = bert_folder.load(FIXTURES / kind)
    output = classifier.params["head"]["output"]
    bias = np.full_like(output["b"], np.nan)
    head = {**classifier.params["head"], "output": {**output, "b": bias}}
    broken = classifier._replace(params={**classifier.params, "head": head})
    with pytest.raises(
        ValueError, match="logits of the entailment model are not finite: parameter"
    ):
        scorers.cross_encoder(broken, SHORT)([DOCUMENT], ["cat"])
    with pytest.raises(ValueError, match="is nan at"):
        bert_folder.save(tmp_path / "out", broken)
    assert not (tmp_path / "out").exists()
