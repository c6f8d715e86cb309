"""Tests of lm/formats/gguf_writer.py."""

import dataclasses
import pathlib
from typing import Any

import gguf
import jax
import numpy as np
import pytest

from kullback.core import files, trees
from kullback.lm import gemma, terms, tokenizer
from kullback.lm.formats import gguf_files, gguf_gemma, gguf_writer, stacked_layers
from tests.lm import tokenizer_test
from tests.lm.formats import gguf_gemma_test

BPE = tokenizer.train_bpe(tokenizer_test.TEXTS, 300)
CONFIG = dataclasses.replace(
    gemma.PRESETS["tiny"],
    **{"vocab_size": BPE.vocab_size + 6, "embed_dim": 32, "head_dim": 16, "query_scale": 16.0},
    **{"pattern": 3, "num_layers": 4, "local_rope_theta": 300.0, "global_rope_factor": 8.0},
    eos_ids=(5, 1, 9),
)
PARAMS = gguf_gemma_test.random_params(CONFIG)
NAME = "blk.2.ffn_down.weight"


def write(path: pathlib.Path, quantization: str = "f32", params=PARAMS, config=CONFIG, **fields):
    plan = gguf_writer.plan(config, BPE, quantization, name="small", **fields)
    gguf_writer.write(path, plan, stacked_layers.of_params(config, params))
    return plan


def with_number(number: float) -> Any:
    """Returns parameters of which NAME, the last layer of the first block, has another number."""
    params = jax.tree.map(np.copy, PARAMS)
    params["periods"]["layer_2"]["feed_forward"]["down"][0, 1, 2] = number
    return params


@pytest.mark.parametrize("quantization", gguf_writer.QUANTIZATIONS)
def test_what_is_written_is_read(tmp_path: pathlib.Path, quantization: str):
    path = tmp_path / "m.gguf"
    plan = write(path, quantization)
    assert path.stat().st_size == plan.num_bytes
    file = gguf_files.read(path)
    config, params, report = gguf_gemma.load(file)
    assert config == dataclasses.replace(CONFIG, vocab_size=BPE.vocab_size, eos_ids=(1, 5, 9))
    again = tokenizer.from_gguf(file)
    assert (again.fingerprint, again.eos_ids, again.pad_id) == (BPE.fingerprint, (1, 5), 0)
    expected, kind = trees.named_leaves(PARAMS), gguf_writer._KINDS[quantization]
    for name, read in trees.named_leaves(params).items():
        exact = expected[name]
        if name == "embedding":
            table = "Q8_0" if quantization == "q4_0" else kind
            exact = dequantised(exact[: BPE.vocab_size], table)  # The rest is padding.
        elif "norm" in name:
            exact = (exact + np.float32(1)) - np.float32(1)  # As it is stored.
        else:
            exact = dequantised(exact.swapaxes(1, 2), kind).swapaxes(1, 2)
        np.testing.assert_array_equal(read, exact, err_msg=name)
    kinds = {"q4_0": ("F32", "Q4_0", "Q8_0"), "f32": ("F32",)}.get(quantization)
    assert report.dtypes == (kinds or tuple(sorted(("F32", kind))))


def dequantised(array: np.ndarray, kind: str) -> np.ndarray:
    type_ = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(array), type_), type_)


def test_the_file_is_llama_cpps_for_another_reader(tmp_path: pathlib.Path):
    write(tmp_path / "m.gguf", "q8_0", notice=f"Mine.\n{terms.GEMMA.notice}")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    values = {name: field.contents() for name, field in reader.fields.items()}
    shape = {"block_count": 4, "embedding_length": 32, "attention.sliding_window": 8}
    shape |= {"attention.sliding_window_pattern": 3, "rope.freq_base_swa": 300.0}
    shape |= {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    assert {k: values[f"gemma3.{k}"] for k in shape} == shape
    general = {"architecture": "gemma3", "name": "small", "file_type": 7, "license": "gemma"}
    general |= {"license.name": "Gemma Terms of Use", "license.link": terms.GEMMA.address}
    assert {k: values[f"general.{k}"] for k in general} == general
    # As in llama.cpp's constants: 4 unsigned, 6 float32, 7 boolean, 8 text, 9 list.
    types = {name: int(field.types[0]) for name, field in reader.fields.items()}
    assert types["gemma3.block_count"] == types["tokenizer.ggml.eot_token_id"] == 4
    assert types["gemma3.attention.layer_norm_rms_epsilon"] == 6
    assert types["tokenizer.ggml.add_bos_token"] == 7
    assert [types[f"tokenizer.ggml.{k}"] for k in ("model", "tokens", "merges")] == [8, 9, 9]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == len(reader.tensors) == 2 + 13 * 4
    assert ([*tensors][:1], [*tensors][-1:]) == (["token_embd.weight"], ["output_norm.weight"])
    assert [*tensors[NAME].shape] == [64, 32]  # The row's length comes first there.
    norm = tensors["blk.3.attn_k_norm.weight"]
    stored = PARAMS["remainder"]["layer_0"]["attention"]["key_norm"][0]
    assert norm.tensor_type.name == "F32"
    np.testing.assert_array_equal(norm.data, 1 + stored)


def test_half_precision_is_written_as_its_numbers_are(tmp_path: pathlib.Path):
    half = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), PARAMS)
    write(tmp_path / "m.gguf", params=half)
    _, params, _ = gguf_gemma.load(gguf_files.read(tmp_path / "m.gguf"))
    name = "periods/layer_1/attention/value"
    read, exact = (trees.named_leaves(tree)[name] for tree in (params, half))
    np.testing.assert_array_equal(read, np.float32(exact))


def test_what_is_quantised_again_is_the_same(tmp_path: pathlib.Path):
    write(tmp_path / "m.gguf", "q4_0")
    file = gguf_files.read(tmp_path / "m.gguf")
    config = gguf_gemma.read_config(file)
    plan = gguf_writer.plan(config, tokenizer.from_gguf(file), "q4_0", name="small")
    gguf_writer.write(tmp_path / "again.gguf", plan, gguf_gemma.open_rows(file, config)[0])
    again = gguf_files.read(tmp_path / "again.gguf")
    np.testing.assert_array_equal(again.tensors[NAME].data, file.tensors[NAME].data)


@pytest.mark.parametrize(
    ("changes", "quantization", "message"),
    [
        ({"hidden_dim": 48}, "q4_0", "q4_0 takes rows of a multiple of 32 .* --quantize f16"),
        ({"embed_dim": 16}, "q8_0", r"token_embd.weight has 16; write it by --quantize f16"),
        ({"query_scale": 11.0}, "f32", "takes query_scale=16.0 for such a model, which has 11.0"),
        ({"num_layers": 62}, "f32", "takes query_scale=8.0 for such a model"),  # As for the 27B.
        ({"eos_ids": (1, 7, 8)}, "f32", r"keys for 3 ends of a text, and .* has \[1, 5, 7, 8\]"),
        ({"vocab_size": 200}, "f32", "has token 200, .* and the model's table 200 rows"),
        ({}, "q4_k", "must be one of f32, f16, q8_0, q4_0, got 'q4_k'"),
    ],
)
def test_what_such_a_file_cannot_say_is_refused(changes, quantization: str, message: str):
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=message):
        gguf_writer.plan(config, BPE, quantization, name="small")


@pytest.mark.parametrize(
    ("number", "quantization", "message"),
    [
        (np.nan, "f32", f"tensor '{NAME}' is nan at .*: the model is not written"),
        (7e4, "f16", f"{NAME} has a number of size 7e.04, .*write it by --quantize f32"),
        (6e5, "q4_0", f"{NAME} has a number of size 6e.05"),
        (1e7, "q8_0", f"{NAME} has a number of size 1e.07"),
    ],
)
def test_numbers_without_a_code_are_refused_and_nothing_is_left(
    number: float, quantization: str, message: str, tmp_path: pathlib.Path
):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "m.gguf", quantization, with_number(number))
    assert not [*tmp_path.iterdir()]


def test_tiny_numbers_become_zero_unsaid(tmp_path: pathlib.Path):
    params = jax.tree.map(lambda x: np.full_like(x, 1e-40), PARAMS)
    for quantization in ("f16", "q8_0", "q4_0"):
        write(tmp_path / f"{quantization}.gguf", quantization, params)
        file = gguf_files.read(tmp_path / f"{quantization}.gguf")
        assert not file.tensors[NAME].rows(slice(None)).any()


def test_nothing_is_overwritten_or_begun_without_room(tmp_path: pathlib.Path, monkeypatch):
    path = tmp_path / "m.gguf"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"m.gguf exists; nothing is overwritten"):
        write(path)
    assert path.read_text() == "mine"
    monkeypatch.setattr(files, "free_bytes", lambda path: 50_000)
    with pytest.raises(ValueError, match=r"weights in GGUF need .* and 50.0 kB are free"):
        write(tmp_path / "new.gguf")
    assert [*tmp_path.iterdir()] == [path]


def test_an_operator_is_noted(tmp_path: pathlib.Path):
    for divergence in ("kl", "alpha-1.5"):
        write(tmp_path / f"{divergence}.gguf", divergence=divergence)
        file = gguf_files.read(tmp_path / f"{divergence}.gguf")
        assert gguf_gemma.output_divergence(file) == divergence
