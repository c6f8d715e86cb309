"""Tests of lm/formats/gguf_gemma.py."""

import dataclasses
import pathlib

import gguf
import jax
import numpy as np
import pytest

from kullback.lm import gemma
from kullback.lm.formats import gguf_files, gguf_gemma
from tests import damage, gguf_models

CONFIG = dataclasses.replace(
    gemma.PRESETS["tiny"], vocab_size=32, embed_dim=16, hidden_dim=24, global_rope_factor=8.0
)


def random_params(config: gemma.Config):
    shapes = jax.eval_shape(gemma.make(config).init, jax.random.key(0))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), shapes)


PARAMS = random_params(CONFIG)
TENSORS = gguf_models.tensors_of(CONFIG, PARAMS)


def write(path: pathlib.Path, tensors=TENSORS, config=CONFIG, more=None, **kwargs) -> pathlib.Path:
    def metadata(writer: gguf.GGUFWriter) -> None:
        gguf_models.describe(writer, config)
        if more is not None:
            more(writer)

    gguf_models.write(path, tensors, metadata, **kwargs)
    return path


def load(path: pathlib.Path):
    return gguf_gemma.load(gguf_files.read(path))


def test_what_is_written_is_read(tmp_path):
    assert len(TENSORS) == 2 + 13 * CONFIG.num_layers
    config, params, report = load(write(tmp_path / "m.gguf"))
    assert config == CONFIG
    # Norms are stored as 1 + w, in float32.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-7), params, PARAMS)
    assert (report.num_tensors, report.dtypes) == (len(TENSORS), ("F32",))


def test_a_quantised_model_is_its_dequantised_one(tmp_path):
    config = dataclasses.replace(CONFIG, embed_dim=32, hidden_dim=64, head_dim=16, query_scale=16.0)
    tensors = gguf_models.tensors_of(config, random_params(config))
    kind = gguf.GGMLQuantizationType.Q5_0
    coded = {
        name: (gguf.quants.quantize(x, kind), kind) if x.ndim == 2 else x
        for name, x in tensors.items()
    }
    plain = {
        name: gguf.quants.dequantize(*x) if isinstance(x, tuple) else x for name, x in coded.items()
    }
    _, params, report = load(write(tmp_path / "m.gguf", coded, config))
    _, expected, _ = load(write(tmp_path / "plain.gguf", plain, config))
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert report.dtypes == ("F32", "Q5_0")


def test_what_the_file_leaves_to_llama_cpp_is_as_there():
    def read(config: gemma.Config, **fields) -> gemma.Config:
        prefix = f"{gguf_gemma.ARCHITECTURE}."
        values = {
            "general.architecture": "gemma3",
            "block_count": config.num_layers,
            "embedding_length": config.embed_dim,
            "feed_forward_length": config.hidden_dim,
            "context_length": config.context_length,
            "attention.head_count": config.num_heads,
            "attention.head_count_kv": config.num_kv_heads,
            "attention.key_length": config.head_dim,
            "attention.sliding_window": config.window,
            "attention.layer_norm_rms_epsilon": config.rms_epsilon,
            "rope.freq_base": config.global_rope_theta,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": config.global_rope_factor,
            **fields,
        }
        names = {k if k.startswith("general") else prefix + k: v for k, v in values.items()}
        record = gguf_gemma.json_files.Record("m.gguf", (), names)
        shape = (config.vocab_size, config.embed_dim)
        table = gguf_files.Tensor("token_embd.weight", "F32", shape, np.zeros(0, np.uint8))
        layers = {f"blk.{i}.attn_q.weight": table for i in range(config.num_layers)}
        return gguf_gemma.read_config(gguf_files.File(record, {table.name: table, **layers}))

    for name in ("gemma3-270m", "gemma3-1b", "gemma3-4b", "gemma3-12b", "gemma3-27b"):
        assert read(gemma.PRESETS[name]) == gemma.PRESETS[name]
    changed = read(
        gemma.PRESETS["gemma3-1b"],
        **{"attention.scale": 0.0625, "attention.sliding_window_pattern": 2},
    )
    assert (changed.query_scale, changed.pattern) == (256.0, 2)
    for field, value, message in (
        ("rope.scaling.type", "yarn", "must be none or linear"),
        ("attention.value_length", 128, "must be 256, as of the keys"),
        ("final_logit_softcapping", 30.0, "must be 0.0 or absent"),
        ("block_count", 2, "must be 26, the layers of the tensors"),
        ("attention.head_count", "4", "must be an integer"),
        ("attention.head_count_kv", 3, "must be a multiple of num_kv_heads"),
    ):
        with pytest.raises(ValueError, match=f"m.gguf: .*{message}"):
            read(gemma.PRESETS["gemma3-1b"], **{field: value})


def without(name: str) -> dict[str, np.ndarray]:
    return {key: x for key, x in TENSORS.items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without("blk.3.ffn_up.weight"), "misses tensors: layers.3.mlp.up_proj.weight"),
        (TENSORS | {"rope_freqs.weight": np.ones(4, np.float32)}, "unknown tensors: rope_freqs"),
        (TENSORS | {"output.weight": TENSORS["token_embd.weight"] + 1}, "output.weight must equal"),
        (
            TENSORS | {"blk.0.attn_q.weight": np.ones((16, 16), np.float32)},
            r"wrong shape: blk.0.attn_q.weight \[16, 16\], expected \[32, 16\]",
        ),
        (without("token_embd.weight"), "has no table token_embd.weight of tokens"),
    ],
)
def test_tensors_that_are_not_the_models_are_named(tensors, message, tmp_path):
    with pytest.raises(ValueError, match=f"m.gguf.* {message}"):
        load(write(tmp_path / "m.gguf", tensors))


def test_a_head_that_is_the_table_is_taken(tmp_path):
    tensors = TENSORS | {"output.weight": TENSORS["token_embd.weight"]}
    assert load(write(tmp_path / "m.gguf", tensors))[0] == CONFIG


def test_another_architecture_is_refused_by_name(tmp_path):
    path = write(tmp_path / "m.gguf", architecture="llama")
    with pytest.raises(
        ValueError, match=r'm.gguf is a model of architecture "llama"; expected "ge'
    ):
        load(path)


def test_damaged_metadata_are_a_line(tmp_path):
    path = write(tmp_path / "m.gguf", {"token_embd.weight": np.zeros((32, 16), np.float32)})
    sound = path.read_bytes()
    for at in range(24, sound.index(b"token_embd")):
        changed = sound[:at] + bytes([sound[at] ^ (1, 0x10, 0x80)[at % 3]]) + sound[at + 1 :]
        path.write_bytes(changed)
        fault = damage.fault_of(lambda: gguf_gemma.read_config(gguf_files.read(path)), path.name)
        assert not fault, (at, fault)
