"""Tests of lm/entailment/embeddings.py; fixtures/ is written by tests/parity/write_bert.py."""

import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from kullback.core import files
from kullback.lm.entailment import bert_folder, embeddings, scorers
from tests.states import random_params

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures" / "bert"
CLASSIFIER = bert_folder.load(FOLDER)
DIM = 16  # Of its vectors.
TEXTS = ["The cat sat on the mat.", "A dog.", "Dogs do not like 12 cats, which sat.", "", "cat"]


def model() -> embeddings.Model:
    x = np.zeros((1, 2 * DIM + 2), np.float32)
    return embeddings.Model(CLASSIFIER, random_params(embeddings.head.init, jax.random.key(0), x))


def test_sentences():
    assert embeddings.sentences(" One. Two!  Is 3.5 three?\nYes . ") == [
        "One.",
        "Two!",
        "Is 3.5 three?",
        "Yes .",
    ]
    assert embeddings.sentences("without end") == ["without end"]
    assert embeddings.sentences(" \n") == []
    assert embeddings.sentences("One. . ... Two! - ? 3.") == ["One.", "Two!", "3."]
    assert embeddings.sentences("Ça va. _ . \u4eba. \u2022 !") == ["Ça va.", "\u4eba."]


def test_vectors_are_means_over_tokens_of_norm_1():
    features = jax.jit(CLASSIFIER.model.features)
    got = embeddings.encoder(CLASSIFIER, 4)(TEXTS)
    assert got.shape == (len(TEXTS), DIM) and got.dtype == np.float32
    for text, vector in [*zip(TEXTS, got, strict=True)][2:4]:
        (ids,) = CLASSIFIER.tokenizer.encode([text])
        rows = CLASSIFIER.tokenizer.rows([(ids,)], len(ids) + 2)  # Without padding.
        assert rows.mask.all()
        mean = np.mean(features(CLASSIFIER.params, *rows)[0], 0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-6)


@hypothesis.settings(deadline=None)
@hypothesis.given(seed=st.integers(0, 999), count=st.integers(1, 6))
def test_features_by_definition(seed: int, count: int):
    rng = np.random.default_rng(seed)
    h, *premise = (x / np.linalg.norm(x) for x in rng.normal(size=(1 + count, 5)))
    cos = [sum(a * b for a, b in zip(h, p, strict=True)) for p in premise]
    closest = premise[cos.index(max(cos))]
    three = sorted(cos, reverse=True)[:3]
    expected = [max(cos), sum(three) / len(three)]
    expected += [5**0.5 * abs(a - b) for a, b in zip(h, closest, strict=True)]
    expected += [5 * a * b for a, b in zip(h, closest, strict=True)]
    got = embeddings.features(h, np.array(premise))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_each_sentence_is_read_once():
    read: list[str] = []

    def vectors(texts):
        read.extend(texts)
        rng = {text: np.random.default_rng(len(text)).normal(size=3) for text in texts}
        return np.stack([rng[text] / np.linalg.norm(rng[text]) for text in texts])

    premises = ["A. Bbb.", "Bbb. A.", ""]
    got = embeddings.of_pairs(vectors, premises, ["Bbb.", "c", "c"])
    assert sorted(read) == ["", "A.", "Bbb.", "c"]
    expected = embeddings.features(vectors(["c"])[0], vectors(["Bbb.", "A."]))
    np.testing.assert_allclose(got[1], expected)


@pytest.mark.slow
def test_how_many_pairs_are_asked_at_once_changes_nothing():
    probability = embeddings.probability(model(), 4)
    pairs = [(a, b) for a in TEXTS for b in TEXTS if b][:9]
    got = probability(*zip(*pairs, strict=True))
    assert got.shape == (9,) and got.dtype == np.float64 and np.ptp(got) > 0
    alone = np.concatenate([probability([a], [b]) for a, b in pairs])
    np.testing.assert_allclose(alone, got, rtol=1e-4)
    vectors = embeddings.encoder(CLASSIFIER)
    x = embeddings.of_pairs(vectors, *zip(*pairs, strict=True))
    logits = np.float64(embeddings.head.apply(model().params, x))
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-logits)), rtol=1e-4)


def test_what_is_saved_reads_back_and_is_an_entailment_model(tmp_path: pathlib.Path):
    embeddings.save(tmp_path / "out", model(), {"report.json": "{}"})
    assert (tmp_path / "out" / "report.json").read_text() == "{}"
    again = embeddings.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.params, model().params)
    judged = scorers.load(tmp_path / "out", scorers.Config(batch_size=4))
    got = judged.log_probability(TEXTS[:2], TEXTS[1:3])
    expected = embeddings.probability(model())(TEXTS[:2], TEXTS[1:3])
    np.testing.assert_allclose(got, np.log(expected), rtol=1e-4)
    with pytest.raises(ValueError, match="is not empty"):
        embeddings.save(tmp_path / "out", model())


def test_what_is_no_such_folder_is_refused_by_name(tmp_path: pathlib.Path):
    folder = tmp_path / "out"
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        embeddings.load(folder)
    with pytest.raises(ValueError, match=r"model_type must be 'kullback-embeddings', got \"bert\""):
        embeddings.load(FOLDER)
    embeddings.save(folder, model())
    head = folder / embeddings.HEAD
    whole = safetensors_numpy.load_file(head)
    safetensors_numpy.save_file({"mlp/~/linear_0/w": np.zeros((3, 64), np.float32)}, head)
    with pytest.raises(ValueError, match=r"head\.safetensors.* expected float32\[34, 64\]|no leaf"):
        embeddings.load(folder)
    safetensors_numpy.save_file({**whole, "more": np.zeros(1)}, head)
    with pytest.raises(ValueError, match="has a leaf 'more'"):
        embeddings.load(folder)
    head.write_bytes(b"no")
    with pytest.raises(files.CorruptError, match="cannot be read"):
        embeddings.load(folder)
    head.unlink()
    with pytest.raises(ValueError, match=r"head\.safetensors is missing"):
        embeddings.load(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": None}))
    with pytest.raises(ValueError, match="got null"):
        embeddings.load(folder)
