"""Tests of lm/entailment/bert_folder.py; fixtures/ is written by tests/parity/write_bert.py."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from kullback.core import files
from kullback.lm.entailment import bert_folder

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
KINDS = ("bert", "roberta")


def unpack(kind: str, folder: pathlib.Path) -> pathlib.Path:
    shutil.copytree(FIXTURES / kind, folder)
    return folder


def rewrite(folder: pathlib.Path, change) -> None:
    path = folder / "model.safetensors"
    safetensors_numpy.save_file(change(safetensors_numpy.load_file(path)), path)


def edit(folder: pathlib.Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def assert_equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_reads_back_and_has_the_tensors_that_were_read(kind, tmp_path):
    read = bert_folder.load(FIXTURES / kind)
    bert_folder.save(tmp_path / "out", read, {"report.json": "{}"})
    again = bert_folder.load(tmp_path / "out")
    assert again.model.config == read.model.config
    assert_equal(again.params, read.params)
    assert again.tokenizer.encode(["A cat."]) == read.tokenizer.encode(["A cat."])
    old, new = (
        safetensors_numpy.load_file(folder / "model.safetensors")
        for folder in (FIXTURES / kind, tmp_path / "out")
    )
    assert_equal(old, new)
    assert (tmp_path / "out" / "report.json").read_text() == "{}"
    with pytest.raises(ValueError, match="is not empty"):
        bert_folder.save(tmp_path / "out", read)


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_without_prefix_gets_a_new_head(kind, tmp_path):
    folder = unpack(kind, tmp_path / "model")

    def change(tensors):
        # As of an encoder that was saved alone: RoBERTa's head is gone, BERT's pooler is its own.
        named = {k.removeprefix(f"{kind}."): v for k, v in tensors.items() if "classifier" not in k}
        return named | {"embeddings.position_ids": np.arange(4), "cls.predictions.bias": np.ones(3)}

    rewrite(folder, change)
    with pytest.raises(ValueError, match=r"classifier.*is missing"):
        bert_folder.load(folder)
    loaded = bert_folder.load(folder, ("no", "yes"))
    whole = bert_folder.load(FIXTURES / kind)
    assert loaded.model.config.labels == ("no", "yes")
    assert_equal(loaded.params["layers"], whole.params["layers"])
    assert loaded.params["head"]["output"]["w"].shape == (16, 2)
    assert not np.any(loaded.params["head"]["output"]["w"])
    dense = loaded.params["head"]["dense"]["w"]
    assert np.array_equal(dense, whole.params["head"]["dense"]["w"]) == (kind == "bert")
    assert np.any(dense)  # Or it would never learn.


def test_a_classifier_may_get_other_classes(tmp_path):
    folder = unpack("bert", tmp_path / "model")
    assert bert_folder.load(folder, ("a", "b")).model.config.labels == ("a", "b")


def test_half_precision_is_read_as_float32(tmp_path):
    folder = unpack("bert", tmp_path / "model")
    rewrite(folder, lambda t: {k: v.astype(ml_dtypes.bfloat16) for k, v in t.items()})
    params = bert_folder.load(folder).params
    whole = bert_folder.load(FIXTURES / "bert").params
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.01), params, whole)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "deberta-v2"}, r"one of \['bert', 'roberta'\], got .deberta-v2."),
        ({"hidden_act": "gelu_new"}, "hidden_act must be .gelu., got .gelu_new."),
        ({"position_embedding_type": "relative_key"}, "must be .absolute."),
        ({"is_decoder": True}, "is_decoder must be false"),
        ({"num_attention_heads": 3}, "multiple of num_heads"),
    ],
)
def test_what_we_do_not_run_is_refused_by_name(fields, said, tmp_path):
    folder = unpack("bert", tmp_path / "model")
    edit(folder, **fields)
    with pytest.raises(ValueError, match=said):
        bert_folder.load(folder)


@pytest.mark.parametrize(
    ("field", "most", "said"),
    [
        ("num_hidden_layers", 1024, r"encoder\.layer\.11\..* is missing"),
        ("vocab_size", 2**23, r"expected \[8388608, "),
        ("hidden_size", 2**17, r"expected \[.*131072"),
        ("intermediate_size", 2**20, r"expected \[1048576"),
        ("max_position_embeddings", 2**24, r"expected \[16777216"),
        ("type_vocab_size", 2**10, r"expected \[1024"),
    ],
)
def test_sizes_are_those_of_the_tensors_before_anything_is_made(
    field, most, said, tmp_path, monkeypatch
):
    folder = unpack("bert", tmp_path / "model")
    for name in ("_new", "_joined"):
        monkeypatch.setattr(bert_folder, name, lambda *_, **__: pytest.fail("something is made"))
    edit(folder, **{field: most})
    with pytest.raises(ValueError, match=said):
        bert_folder.load(folder, labels=("yes", "no"))
    for value in (most + 1, 10**15, 0):
        edit(folder, **{field: value})
        with pytest.raises(ValueError, match=rf"config\.json: .* must lie in \[1, {most}\]"):
            bert_folder.load(folder, labels=("yes", "no"))


def test_wrong_tensors_are_all_named(tmp_path):
    folder = unpack("bert", tmp_path / "model")

    def change(tensors):
        del tensors["bert.encoder.layer.1.output.dense.bias"]
        tensors["classifier.bias"] = np.ones(5, np.float32)
        return tensors | {"adapter.w": np.ones(1, np.float32)}

    rewrite(folder, change)
    with pytest.raises(ValueError) as error:
        bert_folder.load(folder)
    for said in (
        "bert.encoder.layer.1.output.dense.bias is missing",
        r"classifier.bias is [5], expected [3]",
        "adapter.w is unknown",
    ):
        assert said in str(error.value)


def test_missing_and_broken_files_are_named(tmp_path):
    folder = unpack("bert", tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(files.CorruptError, match="cannot be read as safetensors"):
        bert_folder.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        bert_folder.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        bert_folder.load(folder)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_])
def test_what_is_no_floating_tensor_is_refused(dtype, tmp_path):
    folder = unpack("bert", tmp_path / "bert")
    name = "classifier.bias"
    rewrite(folder, lambda tensors: {**tensors, name: np.ones(3, dtype)})
    said = f"classifier.bias is of {np.dtype(dtype)}, expected floating numbers"
    with pytest.raises(ValueError, match=said):
        bert_folder.load(folder)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression", 5])
def test_classes_that_do_not_exclude_each_other_are_refused(problem, tmp_path):
    folder = unpack("bert", tmp_path / "bert")
    edit(folder, problem_type="single_label_classification")
    bert_folder.load(folder)
    edit(folder, problem_type=problem)
    with pytest.raises(ValueError, match="problem_type must be"):
        bert_folder.load(folder)
    bert_folder.load(folder, ("no", "yes"))  # A new head has classes of its own.
