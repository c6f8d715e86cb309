"""Gemma 3's config.json, as Hugging Face's transformers 4 and 5 write it, and `gemma.Config`.

transformers 4 has the fields rope_theta, rope_local_base_freq, rope_scaling and
sliding_window_pattern, transformers 5 rope_parameters and layer_types. We read both and write both
into one file, which either version loads. Missing fields have the defaults of transformers'
Gemma3TextConfig.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from kullback.core import files, folders, json_files
from kullback.lm import gemma

LOCAL, GLOBAL = "sliding_attention", "full_attention"
# Field of transformers -> (field of ours, default of transformers 5.24).
SIZES: dict[str, tuple[str, float]] = {
    "vocab_size": ("vocab_size", 262_208),
    "num_hidden_layers": ("num_layers", 26),
    "hidden_size": ("embed_dim", 2304),
    "num_attention_heads": ("num_heads", 8),
    "num_key_value_heads": ("num_kv_heads", 4),
    "head_dim": ("head_dim", 256),
    "intermediate_size": ("hidden_dim", 9216),
    "sliding_window": ("window", 4096),
    "query_pre_attn_scalar": ("query_scale", 256),
    "rms_norm_eps": ("rms_epsilon", 1e-6),
    "max_position_embeddings": ("context_length", 131_072),
}
REAL = ("query_pre_attn_scalar", "rms_norm_eps")  # The others are whole numbers.
# Fields with one value that our model supports.
FIXED: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "quantization_config": None,
}


def read(folder: files.Path, dtype: str = "float32") -> gemma.Config:
    """Reads the configuration of a folder.

    The tokens that end a text are those of generation_config.json if it names any, as in
    transformers: tuned models stop at the end of a turn too.

    Args:
      folder: with config.json, text only or with a nested text_config.
      dtype: of the computation, "float32" or "bfloat16".

    Raises:
      ValueError: if the file is missing or no JSON, or our Gemma 3 does not support it.
    """
    path = config_file(folder)
    outer = json_files.read(path)
    nested = outer.record("text_config", None)
    text = outer if nested is None or not nested.values else nested
    for fields, expected in ((outer, ("gemma3", "gemma3_text")), (text, ("gemma3_text", "gemma3"))):
        if fields.get("model_type", str, "gemma3_text") not in expected:
            raise fields.error("model_type", f"one of {expected}")
    for name, value in FIXED.items():
        for fields in (outer, text):
            if (fields.values.get(name) or None) not in (value or None, None):
                raise fields.error(name, "null" if value is None else json.dumps(value))
    generation = folders.present(path.parent, ("generation_config.json",))
    sources = (*map(json_files.read, generation.values()), outer, text)
    values: dict[str, Any] = {
        ours: text.get(name, (int, float) if name in REAL else int, default)
        for name, (ours, default) in SIZES.items()
    }
    values |= _rope(text)
    values["pattern"] = _pattern(text, values["num_layers"])
    try:
        return gemma.Config(
            **values,
            bos_id=_first_id(sources, "bos_token_id", 2),
            pad_id=_first_id(sources, "pad_token_id", 0),
            eos_ids=_ends(sources),
            dtype=dtype,  # type: ignore[arg-type]  # Config checks it.
        )
    except ValueError as error:
        read = " with ".join(dict.fromkeys(source.file for source in (*sources[1:], sources[0])))
        raise ValueError(f"{read}: {error}") from error


def config_file(folder: files.Path) -> pathlib.Path:
    """Returns the path of a folder's config.json.

    Raises:
      ValueError: if it is missing, or a link out of the folder.
    """
    path = pathlib.Path(folder) / "config.json"
    if not os.path.lexists(path):
        raise ValueError(f"{path} is missing; expected a folder of Hugging Face")
    return folders.inside(folder, path.name)


def to_json(config: gemma.Config, dtype: str) -> dict[str, Any]:
    """Returns the fields of config.json for Gemma3ForCausalLM, in both dialects.

    Args:
      config: the model.
      dtype: of the weights beside it, "float32".

    Raises:
      ValueError: for what transformers would refuse to load.
    """
    if config.query_scale != int(config.query_scale):
        raise ValueError(
            f"query_scale must be a whole number, got {config.query_scale}; transformers takes "
            "no other"
        )
    if config.embed_dim % config.num_heads:
        raise ValueError(
            f"embed_dim must be a multiple of num_heads, got {config.embed_dim} and "
            f"{config.num_heads}; transformers takes no other"
        )
    fields: dict[str, Any] = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    for name, (ours, default) in SIZES.items():
        value = getattr(config, ours)
        fields[name] = int(value) if isinstance(default, int) else value
    # transformers 5 fills in quantization_config where it finds one.
    fields |= {name: value for name, value in FIXED.items() if name != "quantization_config"}
    scaling = {"rope_type": "linear", "factor": float(config.global_rope_factor)}
    is_scaled = config.global_rope_factor != 1
    fields |= {
        "tie_word_embeddings": True,
        "sliding_window_pattern": config.pattern,
        "rope_theta": config.global_rope_theta,
        "rope_local_base_freq": config.local_rope_theta,
        "rope_scaling": scaling if is_scaled else None,
        "layer_types": [GLOBAL if config.is_global(i) else LOCAL for i in range(config.num_layers)],
        "rope_parameters": {
            GLOBAL: {
                "rope_theta": config.global_rope_theta,
                **(scaling if is_scaled else {"rope_type": "default"}),
            },
            LOCAL: {"rope_theta": config.local_rope_theta, "rope_type": "default"},
        },
    }
    return fields | generation_to_json(config)


def generation_to_json(config: gemma.Config) -> dict[str, Any]:
    """Returns the fields of generation_config.json: the special tokens."""
    eos = list(config.eos_ids)
    return {
        "bos_token_id": config.bos_id,
        "eos_token_id": eos if len(eos) > 1 else eos[0],
        "pad_token_id": config.pad_id,
    }


def _first_id(sources: Sequence[json_files.Record], name: str, default: int) -> int:
    """Returns the id that the first object with one gives; null is no id."""
    ids = (fields.get(name, int, None) for fields in sources)
    return next((number for number in ids if number is not None), default)


def _ends(sources: Sequence[json_files.Record]) -> tuple[int, ...]:
    """Returns the ids that end a text, from the first object that has any."""
    for fields in sources:
        ids = fields.get("eos_token_id", (int, list), None)
        if ids is not None:
            is_list = isinstance(ids, list)
            return tuple(fields.list_of("eos_token_id", int)) if is_list else (ids,)
    return (1,)


def _rope(text: json_files.Record) -> dict[str, float]:
    """Reads bases and factor of the rotary positions; the two dialects must not disagree."""
    empty = json_files.Record(text.file, (), {})
    parameters = text.record("rope_parameters", None) or empty
    if not set(parameters.values) <= {LOCAL, GLOBAL}:
        raise text.error("rope_parameters", f"an object with the keys {GLOBAL} and {LOCAL}")
    far, near, old = (
        dict((fields.record(name, None) or empty).items())
        for fields, name in ((parameters, GLOBAL), (parameters, LOCAL), (text, "rope_scaling"))
    )
    if "rope_theta" in text:
        old["rope_theta"] = text.get("rope_theta", (int, float))
    for fields in (far, near, old):
        if "type" in fields:  # As files before transformers 4.43 say.
            fields.setdefault("rope_type", fields.pop("type"))
    old_near = (
        {"rope_theta": text.get("rope_local_base_freq", (int, float))}
        if "rope_local_base_freq" in text
        else {}
    )
    for new, older in ((far, old), (near, old_near)):
        for name, value in older.items():
            if new.setdefault(name, value) != value:
                raise ValueError(
                    f"{text.file}: rope_parameters say {name}={json_files.shown(new[name])} and "
                    f"the older fields {json_files.shown(value)}; remove one of them"
                )
    for fields, kinds in ((far, ("default", "linear")), (near, ("default",))):
        kind = fields.get("rope_type", "default")
        extra = set(fields) - {"rope_type", "rope_theta", *(["factor"] if kind == "linear" else [])}
        if kind not in kinds or extra:
            raise ValueError(
                f"{text.file}: RoPE must be of a type of {kinds} with a factor if it is linear, "
                f"got {json_files.shown(fields)}"
            )
    if far.get("rope_type") == "linear" and "factor" not in far:
        raise ValueError(f"{text.file}: linear RoPE needs a factor, got {json_files.shown(far)}")
    keys = (*text.keys, "rope_parameters")
    globally = json_files.Record(text.file, (*keys, GLOBAL), far)
    locally = json_files.Record(text.file, (*keys, LOCAL), near)
    return {
        "global_rope_theta": globally.get("rope_theta", (int, float), 1_000_000.0),
        "local_rope_theta": locally.get("rope_theta", (int, float), 10_000.0),
        "global_rope_factor": globally.get("factor", (int, float), 1.0),
    }


def _pattern(text: json_files.Record, num_layers: int) -> int:
    """Reads the period of global layers; layer_types decide if they are there."""
    period = text.get("sliding_window_pattern", int, 6)
    kinds = text.list_of("layer_types", str, None)
    if kinds is None:
        return period
    if period < 1:
        raise text.error("sliding_window_pattern", ">= 1")
    first = kinds.index(GLOBAL) if GLOBAL in kinds else num_layers
    for pattern in (period, first + 1):
        if kinds == [LOCAL if (i + 1) % pattern else GLOBAL for i in range(len(kinds))]:
            if len(kinds) == num_layers:
                return pattern
    raise text.error(
        "layer_types",
        f"a list that names {num_layers} layers with {GLOBAL} at every n-th place and {LOCAL} at "
        "the others",
    )
