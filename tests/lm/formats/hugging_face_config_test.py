"""Tests of lm/formats/hugging_face_config.py."""

import dataclasses
import json

import pytest

from kullback.lm import gemma
from kullback.lm.formats import hugging_face_config

# As the published 4B model has it, in the dialect of transformers 4: most fields are absent.
OLD_4B = {
    "model_type": "gemma3",
    "eos_token_id": [1, 106],
    "vision_config": {"hidden_size": 1152},
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}
KINDS = (["sliding_attention"] * 5 + ["full_attention"]) * 4 + ["sliding_attention"] * 2
NEW_1B = {
    "model_type": "gemma3_text",
    "vocab_size": 262_144,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "sliding_window": 512,
    "max_position_embeddings": 32_768,
    "layer_types": KINDS,
    "rope_parameters": {
        "full_attention": {"rope_theta": 1_000_000, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 10_000, "rope_type": "default"},
    },
}
OLD_1B = {k: v for k, v in NEW_1B.items() if k not in ("layer_types", "rope_parameters")} | {
    "rope_theta": 1_000_000,
    "rope_local_base_freq": 10_000,
    "rope_scaling": None,
    "sliding_window_pattern": 6,
}


def read(folder, fields, generation=None):
    (folder / "config.json").write_text(json.dumps(fields))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return hugging_face_config.read(folder)


def test_absent_fields_are_the_defaults_of_transformers(tmp_path):
    expected = dataclasses.replace(gemma.PRESETS["gemma3-4b"], eos_ids=(1, 106))
    assert read(tmp_path, OLD_4B) == expected
    # transformers 5.24's Gemma3TextConfig() with nothing given.
    config = read(tmp_path, {"model_type": "gemma3_text"})
    assert config == gemma.Config(
        vocab_size=262_208,
        num_layers=26,
        embed_dim=2304,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        hidden_dim=9216,
        window=4096,
        query_scale=256,
        context_length=131_072,
    )


@pytest.mark.parametrize("fields", [OLD_1B, NEW_1B, OLD_1B | NEW_1B], ids=["4", "5", "both"])
def test_both_dialects_say_the_same(fields, tmp_path):
    assert read(tmp_path, fields) == gemma.PRESETS["gemma3-1b"]


@pytest.mark.parametrize("name", list(gemma.PRESETS))
def test_what_is_written_is_read(name, tmp_path):
    config = dataclasses.replace(gemma.PRESETS[name], eos_ids=(1, 106))
    fields = hugging_face_config.to_json(config, "float32")
    assert read(tmp_path, fields) == config
    for absent in (
        ("rope_parameters", "layer_types"),
        ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern"),
    ):
        assert read(tmp_path, {k: v for k, v in fields.items() if k not in absent}) == config


@pytest.mark.parametrize("layers, pattern", [(3, 6), (8, 7), (4, 1), (9, 4), (7, 12)])
def test_patterns_are_found_in_the_kinds_of_layers(layers, pattern, tmp_path):
    config = dataclasses.replace(gemma.PRESETS["tiny"], num_layers=layers, pattern=pattern)
    fields = hugging_face_config.to_json(config, "float32")
    del fields["sliding_window_pattern"]
    got = read(tmp_path, fields)
    assert [got.is_global(i) for i in range(layers)] == [config.is_global(i) for i in range(layers)]


def test_texts_end_where_the_generation_of_transformers_ends(tmp_path):
    assert read(tmp_path, OLD_4B, {"eos_token_id": [7, 8]}).eos_ids == (7, 8)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "gemma2"}, "model_type must be one of"),
        ({"attention_bias": True}, "attention_bias must be false, got true"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping must be null, got 30.0"),
        ({"hidden_activation": "relu"}, "hidden_activation must be .gelu_pytorch_tanh."),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"sliding_window": None}, "sliding_window must be an integer, got null"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers must be an integer, got 2.5"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"rope_theta": 5.0}, "rope_theta=1000000 and the older fields 5.0"),
        ({"rope_parameters": {"rope_theta": 1.0}}, "an object with the keys full_attention"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "RoPE must be of a type"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, "needs a factor"),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 8.0}}},
            "RoPE must be of a type",
        ),
        (
            {"layer_types": ["sliding_attention"] * 3},
            "a list that names 26 layers",
        ),
        ({"layer_types": KINDS[1:] + KINDS[:1]}, "at every n-th place"),
        ({"layer_types": None, "sliding_window_pattern": 0}, r"pattern must lie in \[1, .*got 0"),
    ],
)
def test_what_our_gemma_does_not_do_is_refused_by_name(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, NEW_1B | change)


def test_files_that_are_no_configuration_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        hugging_face_config.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        hugging_face_config.read(tmp_path)
    with pytest.raises(ValueError, match=r"must hold an object, got \[\]"):
        read(tmp_path, [])


@pytest.mark.parametrize(
    "change, message",
    [({"query_scale": 8.5}, "query_scale must be whole"), ({"num_heads": 3}, "a multiple of")],
)
def test_what_transformers_cannot_load_is_not_written(change, message):
    config = dataclasses.replace(gemma.PRESETS["tiny"], num_kv_heads=1, **change)
    with pytest.raises(ValueError, match=message.replace("whole", "a whole number")):
        hugging_face_config.to_json(config, "float32")
